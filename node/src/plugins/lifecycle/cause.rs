//! Why a runner ended, as data: what follows, what events call it, what people read. The plugin's own words for it are not
//! believed; texts in here were made printable by whoever took them from it.

use std::fmt;
use thenodes_ipc::launch::{Level, Step};

/// A limit that a plugin met or went beyond.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LimitKind {
    /// The kernel killed it for memory.
    Oom,
    /// Processor time.
    Cpu,
    /// Memory in use.
    Memory,
    /// Threads.
    Threads,
    /// Open descriptors.
    Fds,
    /// Log lines a second.
    LogRate,
    /// Messages over the link a second.
    LinkRate,
    /// Size of a file it wrote.
    FileSize,
    /// All files together where it may write.
    Disk,
}

impl LimitKind {
    /// All of them, in the order of their declaration.
    pub const ALL: [LimitKind; 9] = [
        LimitKind::Oom,
        LimitKind::Cpu,
        LimitKind::Memory,
        LimitKind::Threads,
        LimitKind::Fds,
        LimitKind::LogRate,
        LimitKind::LinkRate,
        LimitKind::FileSize,
        LimitKind::Disk,
    ];

    /// A stable word.
    pub fn word(self) -> &'static str {
        match self {
            LimitKind::Oom => "oom",
            LimitKind::Cpu => "cpu",
            LimitKind::Memory => "memory",
            LimitKind::Threads => "threads",
            LimitKind::Fds => "fds",
            LimitKind::LogRate => "log_rate",
            LimitKind::LinkRate => "link_rate",
            LimitKind::FileSize => "file_size",
            LimitKind::Disk => "disk",
        }
    }
}

/// Why a runner ended, as true as can be known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cause {
    /// A signal ended the plugin.
    Signal(i32),
    /// A wall ended the plugin: what it attempted.
    Denied(String),
    /// It ended itself.
    Exit(i32),
    /// It broke the link protocol.
    Violation(String),
    /// It did not answer a call within deadline and grace.
    Hang(String),
    /// Its runner does not read its link any more: stopped, or its reader is gone.
    Wedged(String),
    /// It was asked for its health too often in vain.
    Health(String),
    /// A step of the start took too long.
    Deadline(&'static str),
    /// The runner said no.
    Refused(Step, String),
    /// Too few walls stand.
    Level {
        /// What was measured.
        level: Level,
        /// What the configuration asks for.
        required: String,
    },
    /// `on_load` failed.
    Load(String),
    /// A permission that its manifest requires is not given.
    Permissions(String),
    /// The runner could not be started at all.
    Spawn(String),
    /// It met a limit that ends a process, or went beyond limits too often.
    Limit {
        /// Which.
        kind: LimitKind,
        /// What was seen, and by whom.
        detail: String,
        /// The operator wants no restart after this.
        give_up: bool,
    },
    /// Somebody asked for it.
    Asked,
}

impl Cause {
    /// True if the same start would fail the same way: no restart by itself.
    pub fn is_final(&self) -> bool {
        match self {
            Cause::Refused(..) | Cause::Level { .. } | Cause::Load(_) | Cause::Permissions(_) => true,
            Cause::Limit { give_up, .. } => *give_up,
            Cause::Signal(_)
            | Cause::Denied(_)
            | Cause::Exit(_)
            | Cause::Violation(_)
            | Cause::Hang(_)
            | Cause::Wedged(_)
            | Cause::Health(_)
            | Cause::Deadline(_)
            | Cause::Spawn(_)
            | Cause::Asked => false,
        }
    }

    /// A stable word for events and `--json`.
    pub fn word(&self) -> &'static str {
        match self {
            Cause::Signal(libc_sigsys::SIGSYS) | Cause::Denied(_) => "denied_syscall",
            Cause::Signal(_) => "signal",
            Cause::Exit(_) => "exit",
            Cause::Violation(_) => "protocol_violation",
            Cause::Hang(_) => "hang",
            Cause::Wedged(_) => "wedged",
            Cause::Health(_) => "health",
            Cause::Deadline(_) => "start_deadline",
            Cause::Refused(..) => "refused",
            Cause::Level { .. } => "sandbox_level",
            Cause::Load(_) => "on_load",
            Cause::Permissions(_) => "permissions",
            Cause::Spawn(_) => "spawn",
            Cause::Limit { kind, .. } => kind.word(),
            Cause::Asked => "asked",
        }
    }
}

mod libc_sigsys {
    /// The signal of a denied system call.
    pub(super) const SIGSYS: i32 = nix::sys::signal::Signal::SIGSYS as i32;
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use nix::sys::signal::Signal;
        match self {
            Cause::Signal(number) => match Signal::try_from(*number) {
                Ok(Signal::SIGSYS) => f.write_str("SIGSYS: a system call that the sandbox does not allow"),
                Ok(Signal::SIGSEGV) => f.write_str("SIGSEGV: invalid memory access, or stack overflow"),
                Ok(Signal::SIGABRT) => f.write_str("SIGABRT: abort"),
                Ok(Signal::SIGKILL) => {
                    f.write_str("SIGKILL: killed from outside, by an operator or for memory")
                }
                Ok(signal) => write!(f, "{signal}"),
                Err(_) => write!(f, "signal {number}"),
            },
            Cause::Denied(what) => write!(f, "a wall of the sandbox ended it: {what}"),
            Cause::Exit(code) => write!(f, "ended itself with exit code {code}"),
            Cause::Violation(what) => write!(f, "broke the link protocol: {what}"),
            Cause::Hang(method) => write!(f, "did not answer {method} within deadline and grace"),
            Cause::Wedged(method) => {
                write!(f, "wedged: its runner takes nothing from its link any more (open for long: {method})")
            }
            Cause::Health(why) => write!(f, "not healthy: {why}"),
            Cause::Deadline(step) => write!(f, "took too long: {step}"),
            Cause::Refused(step, reason) => {
                let at = match step {
                    Step::Hello => "before the walls",
                    Step::Confine => "while confining",
                    Step::Open => "opening the library",
                    Step::Register => "registering",
                };
                write!(f, "{at}: {reason}")
            }
            Cause::Level { level, required } => {
                write!(f, "sandbox level {level}, but [plugins.sandbox] required = \"{required}\"; see `thenodes doctor`")
            }
            Cause::Load(why) => write!(f, "on_load said: {why}"),
            Cause::Permissions(why) => f.write_str(why),
            Cause::Spawn(why) => write!(f, "the runner could not be started: {why}"),
            Cause::Limit { kind, detail, .. } => write!(f, "limit {}: {detail}", kind.word()),
            Cause::Asked => f.write_str("asked to stop"),
        }
    }
}
