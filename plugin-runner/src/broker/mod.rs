//! Answers every system call that is not on the allow-list. It lives in the warden, outside the plugin's process, and trusts
//! nothing it is asked: it hands out the library's own files, makes the descriptors that it alone may make, opens granted paths behind the same walls that hold the plugin,
//! fails what honest code may try, ends the process for the rest, and writes a record of each refusal. There is no answer that
//! lets a call run, and where the broker itself fails the kernel fails the call.

mod decode;
mod memory;
mod records;
mod verdict;

pub(crate) use memory::Memory;
pub(crate) use records::Records;
pub(crate) use verdict::rule_text;

use crate::confine::syscalls::THREAD_FLAGS;
use crate::sys::{self, Question};
use nix::errno::Errno;
use nix::fcntl::{fcntl, openat2, FcntlArg, OFlag, OpenHow, ResolveFlag};
use nix::sys::epoll::{Epoll, EpollCreateFlags};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::stat::{fstat, Mode, SFlag};
use std::fs::File;
use std::io::Seek;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use thenodes_ipc::launch::NodeHello;
use thenodes_ipc::report::{Denial, Phase, Verdict};
use verdict::{Answer, Rules};

/// Path of the plugin's library inside.
pub(crate) const LIBRARY: &str = "/plugin.so";

/// Path of a library that the plugin needs.
pub(crate) fn needed_path(soname: &str) -> String {
    format!("/lib/{soname}")
}

/// What the broker knows of one plugin.
pub(crate) struct Broker {
    /// The plugin's own files by the path that is asked for. Nothing of the host is opened for them.
    files: Vec<(String, File)>,
    grants: bool,
    rules: Rules,
    gentle: bool,
    #[cfg_attr(not(feature = "without"), allow(dead_code))] // only a runner for tests lets anything run
    free: bool,
    phase: Phase,
    memory: Option<Memory>,
    records: Records,
}

/// What is to be done after a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Then {
    /// The next one.
    GoOn,
    /// End the plugin.
    Kill,
}

impl Broker {
    /// A broker that hands out these files: the library and what it needs, in the order of `hello`.
    pub(crate) fn new(hello: &NodeHello, files: Vec<File>, records: Records) -> Broker {
        let names = std::iter::once(LIBRARY.to_owned())
            .chain(hello.needed.iter().map(|needed| needed_path(&needed.soname)));
        let without = hello.without.clone().unwrap_or_default();
        Broker {
            files: names.zip(files).collect(),
            grants: !hello.all_paths().is_empty(),
            rules: Rules::of(hello),
            gentle: without.gentle,
            free: without.layers.contains(&thenodes_ipc::launch::Layer::Seccomp),
            phase: Phase::Confine,
            memory: None,
            records,
        }
    }

    /// The runner's memory, from which paths are read.
    pub(crate) fn look_into(&mut self, memory: Memory) {
        self.memory = Some(memory);
    }

    /// Answers one question.
    pub(crate) fn serve(&mut self, listener: BorrowedFd<'_>, question: &Question) -> Then {
        if let Some(phase) = verdict::mark(question) {
            // Only ever forward: a later phase has tighter walls, and going back would hide nothing but itself.
            self.phase = self.phase.max(phase);
            sys::answer(listener, question.id, Ok(0));
            return Then::GoOn;
        }
        match verdict::judge(question, &self.rules) {
            Answer::Open { path, flags, mode } => self.open(listener, question, path, flags, mode),
            Answer::Counter { initial, flags } => {
                self.hand_over(listener, question, flags & libc::EFD_CLOEXEC, event_counter(initial, flags))
            }
            Answer::Waiting { flags } => {
                self.hand_over(listener, question, flags & libc::EPOLL_CLOEXEC, waiting_set(flags))
            }
            Answer::Fail(error) => self.refuse(listener, question, error, "seccomp"),
            Answer::Limit(error) => self.refuse(listener, question, error, "rlimits"),
            Answer::NoHeap => {
                self.note(question, libc::ENOMEM, "rlimits");
                // An end below the one that was asked for: every libc takes it for a refusal, and asks again where the end is.
                sys::answer(listener, question.id, Ok(0));
                Then::GoOn
            }
            Answer::Kill if self.gentle => self.refuse(listener, question, libc::EPERM, "seccomp"),
            // Our own code before the library: the self-test tries what must fail.
            Answer::Kill if self.phase == Phase::Confine => {
                self.refuse(listener, question, libc::EPERM, "seccomp")
            }
            Answer::Kill => {
                let denial = self.denial(question, Verdict::Killed, "seccomp");
                self.records.last(denial);
                Then::Kill
            }
        }
    }

    /// Records that the stacked filters, which ask nobody, ended the process.
    pub(crate) fn killed_unasked(&mut self) {
        let what = match self.phase {
            Phase::Serve => {
                "PROT_EXEC from a file; or SIGSYS raised by itself, or one of the runner's own calls repeated"
            }
            _ => "one of the runner's own calls repeated, or SIGSYS raised by itself",
        };
        let denial = Denial {
            verdict: Verdict::Killed,
            phase: self.phase,
            layer: "second-filter".into(),
            syscall: if self.phase == Phase::Serve { "mmap".into() } else { "sendmsg".into() },
            arguments: what.into(),
            at: String::new(),
            thread: 0,
            count: 1,
        };
        self.records.last(denial);
    }

    /// True while refusals were counted and not told; then [`Broker::finish`] is due within a second.
    pub(crate) fn owes(&self) -> bool {
        self.records.owes()
    }

    /// Opens nothing for the plugin: the wall that holds this process to the grants is missing.
    pub(crate) fn open_nothing(&mut self) {
        self.grants = false;
    }

    /// Tells what was only counted so far.
    pub(crate) fn finish(&mut self) {
        self.records.flush();
    }

    /// Tells how the plugin's process ended, and before it whatever is still to be told.
    pub(crate) fn ended(&mut self, status: i32) {
        self.records.ended(status);
    }

    fn open(
        &mut self,
        listener: BorrowedFd<'_>,
        question: &Question,
        path: u64,
        flags: u64,
        mode: u64,
    ) -> Then {
        let Some(path) = self.memory.as_ref().and_then(|memory| memory.text(path)) else {
            return self.refuse(listener, question, libc::EFAULT, "seccomp");
        };
        // What was read may belong to a process that took the place of the one that asked.
        if !sys::still_asks(listener, question.id) {
            return Then::GoOn;
        }
        let reading = flags & libc::O_ACCMODE as u64 == libc::O_RDONLY as u64 && self.phase < Phase::Serve;
        if let Some((_, file)) = self.files.iter_mut().find(|(name, _)| reading && name.as_bytes() == path) {
            let _ = file.rewind();
            let close = flags as u32 & libc::O_CLOEXEC as u32;
            return match sys::answer_with_file(listener, question.id, file.as_fd(), close) {
                Ok(()) => Then::GoOn,
                Err(error) => self.refuse(listener, question, error as i32, "rlimits"),
            };
        }
        #[cfg(feature = "without")]
        if self.free {
            sys::let_it_run(listener, question.id);
            return Then::GoOn;
        }
        if !self.grants {
            return self.refuse(listener, question, libc::ENOENT, "root");
        }
        match open_granted(&path, flags, mode) {
            Ok((file, close)) => match sys::answer_with_file(listener, question.id, file.as_fd(), close) {
                Ok(()) => Then::GoOn,
                Err(error) => self.refuse(listener, question, error as i32, "rlimits"),
            },
            Err(error @ Errno::ENOENT) => self.refuse(listener, question, error as i32, "root"),
            Err(error) => self.refuse(listener, question, error as i32, "grant"),
        }
    }

    /// Answers with a descriptor that was made for the plugin, or with why there is none.
    fn hand_over(
        &mut self,
        listener: BorrowedFd<'_>,
        question: &Question,
        close: i32,
        made: Result<OwnedFd, Errno>,
    ) -> Then {
        match made.and_then(|fd| sys::answer_with_file(listener, question.id, fd.as_fd(), close as u32)) {
            Ok(()) => Then::GoOn,
            Err(error @ Errno::EINVAL) => self.refuse(listener, question, error as i32, "seccomp"),
            Err(error) => self.refuse(listener, question, error as i32, "rlimits"),
        }
    }

    fn refuse(&mut self, listener: BorrowedFd<'_>, question: &Question, error: i32, layer: &str) -> Then {
        self.note(question, error, layer);
        sys::answer(listener, question.id, Err(error));
        Then::GoOn
    }

    /// Writes a refusal down, or counts it.
    fn note(&mut self, question: &Question, error: i32, layer: &str) {
        if self.phase != Phase::Confine && !self.is_ordinary(question) {
            // Putting a refusal into words reads the plugin's memory and its list of mappings: only for those that will be told.
            if self.records.would_tell(question.number) {
                let denial = self.denial(question, Verdict::Failed(error), layer);
                self.records.add(question.number, denial);
            } else {
                self.records.count(question.number);
            }
        }
    }

    /// What every libc tries and goes on without is no attempt at anything: `clone3` for a thread (then `clone`), and `mremap` of
    /// anything but the stack to what could be had (then a copy). The flags of `clone3` lie in the plugin's memory: one that changes them while we look
    /// hides a call that failed.
    fn is_ordinary(&self, question: &Question) -> bool {
        if question.number == libc::SYS_mremap {
            if question.args[2] > self.rules.bounds.data {
                return false;
            }
            let of = self.memory.as_ref().and_then(|memory| memory.locate(question.args[0]));
            return of.is_some_and(|of| !of.starts_with("[stack]"));
        }
        question.number == libc::SYS_clone3
            && self
                .memory
                .as_ref()
                .and_then(|memory| memory.bytes(question.args[0], 8))
                .is_some_and(|flags| <[u8; 8]>::try_from(flags).map(u64::from_ne_bytes) == Ok(THREAD_FLAGS))
    }

    fn denial(&self, question: &Question, verdict: Verdict, layer: &str) -> Denial {
        let memory = self.memory.as_ref();
        Denial {
            verdict,
            phase: self.phase,
            layer: layer.into(),
            syscall: decode::name(question),
            arguments: decode::arguments(question, memory),
            at: memory.and_then(|memory| memory.locate(question.address)).unwrap_or_default(),
            thread: question.thread,
            count: 1,
        }
    }
}

fn event_counter(initial: u32, flags: i32) -> Result<OwnedFd, Errno> {
    let flags = EfdFlags::from_bits(flags).ok_or(Errno::EINVAL)?;
    Ok(EventFd::from_value_and_flags(initial, flags)?.into())
}

fn waiting_set(flags: i32) -> Result<OwnedFd, Errno> {
    let flags = EpollCreateFlags::from_bits(flags).ok_or(Errno::EINVAL)?;
    Ok(Epoll::new(flags)?.0)
}

/// Flags that a plugin may open a granted path with.
const FLAGS: OFlag = OFlag::O_ACCMODE
    .union(OFlag::O_CREAT)
    .union(OFlag::O_EXCL)
    .union(OFlag::O_TRUNC)
    .union(OFlag::O_APPEND)
    .union(OFlag::O_NONBLOCK)
    .union(OFlag::O_DIRECTORY)
    .union(OFlag::O_NOFOLLOW)
    .union(OFlag::O_CLOEXEC)
    .union(OFlag::O_LARGEFILE);

/// Opens a path as the plugin would: in the same root, behind the same Landlock rules. Only files and directories come back.
fn open_granted(path: &[u8], flags: u64, mode: u64) -> Result<(OwnedFd, u32), Errno> {
    let wanted =
        OFlag::from_bits(flags as i32).filter(|flags| FLAGS.contains(*flags)).ok_or(Errno::EINVAL)?;
    let path = std::ffi::CString::new(path).map_err(|_| Errno::EINVAL)?;
    if !path.as_bytes().starts_with(b"/") {
        return Err(Errno::ENOENT); // the plugin's working directory is the root, and it is empty
    }
    // Never wait for whoever made a pipe at this path.
    let mut how = OpenHow::new()
        .flags(wanted | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC | OFlag::O_NOCTTY)
        .resolve(ResolveFlag::RESOLVE_NO_MAGICLINKS);
    if wanted.contains(OFlag::O_CREAT) {
        how = how.mode(Mode::from_bits_truncate(mode as u32 & 0o777));
    }
    let file = openat2(nix::fcntl::AT_FDCWD, path.as_c_str(), how)?;
    let kind = SFlag::from_bits_truncate(fstat(&file)?.st_mode) & SFlag::S_IFMT;
    if kind != SFlag::S_IFREG && kind != SFlag::S_IFDIR {
        return Err(Errno::EACCES);
    }
    if !wanted.contains(OFlag::O_NONBLOCK) {
        let kept = OFlag::from_bits_truncate(fcntl(&file, FcntlArg::F_GETFL)?);
        fcntl(&file, FcntlArg::F_SETFL(kept.difference(OFlag::O_NONBLOCK)))?;
    }
    Ok((file, (wanted & OFlag::O_CLOEXEC).bits() as u32))
}
