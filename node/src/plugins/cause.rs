//! The true cause of a death, as far as it can be known from outside: what the wait status alone does not say, and what the
//! kernel's counters and the watchdog's last look add. What nobody can know is not claimed.

use super::cgroup::Leaf;
use super::lifecycle::{Cause, LimitKind};
use super::watchdog::Record;
use std::time::Duration;
use thenodes_ipc::launch::ProcessLimits;

const SIGKILL: i32 = nix::sys::signal::Signal::SIGKILL as i32;
const SIGXFSZ: i32 = nix::sys::signal::Signal::SIGXFSZ as i32;
const SIGXCPU: i32 = nix::sys::signal::Signal::SIGXCPU as i32;

/// What was seen of a process that is dead now.
#[derive(Debug, Clone, Copy, Default)]
pub struct Seen {
    /// Processes that the kernel killed because their control group was full.
    pub oom_kills: u64,
    /// The most memory it had, where the kernel says so.
    pub memory_peak: Option<u64>,
    /// Processor time at the watchdog's last look.
    pub cpu: Option<Duration>,
}

impl Seen {
    /// Reads counters that outlive the process.
    pub fn of(leaf: &Leaf, record: &Record) -> Seen {
        Seen {
            oom_kills: leaf.oom_kills(),
            memory_peak: leaf.memory_peak(),
            cpu: record.usage().map(|usage| usage.cpu),
        }
    }
}

/// The cause, and a line for the log where there is something to say and no proof.
pub fn refine(cause: Cause, seen: &Seen, limits: &ProcessLimits) -> (Cause, Option<String>) {
    let Cause::Signal(signal) = cause else { return (cause, None) };
    let limit = |kind, detail| (Cause::Limit { kind, detail, give_up: false }, None);
    match limits.cpu_seconds {
        _ if signal == SIGKILL && seen.oom_kills > 0 => {
            let peak = seen.memory_peak.unwrap_or_default() >> 20;
            limit(LimitKind::Oom, format!("the kernel killed it at {peak} MiB: its control group was full"))
        }
        _ if signal == SIGXFSZ && limits.file_size > 0 => {
            limit(LimitKind::FileSize, format!("SIGXFSZ: a file of {} bytes, its limit", limits.file_size))
        }
        Some(seconds) if signal == SIGXCPU => {
            limit(LimitKind::Cpu, format!("SIGXCPU: it used {seconds} s of processor time"))
        }
        // It ignored SIGXCPU. Known only if it was seen between the two limits.
        Some(seconds) if signal == SIGKILL && seen.cpu >= Some(Duration::from_secs(seconds)) => {
            limit(LimitKind::Cpu, format!("SIGKILL: it went on after {seconds} s of processor time"))
        }
        // A program whose allocation fails aborts; whether this one did cannot be known from outside.
        _ => {
            let near = seen.memory_peak.filter(|peak| *peak >= limits.memory / 10 * 9);
            let note = near.map(|peak| {
                format!("its memory had reached {} MiB; memory_mb is {}", peak >> 20, limits.memory >> 20)
            });
            (cause, note)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(cpu_seconds: Option<u64>) -> ProcessLimits {
        ProcessLimits { memory: 100 << 20, threads: 4, descriptors: 16, cpu_seconds, file_size: 0 }
    }

    fn word(signal: i32, seen: Seen, cpu_seconds: Option<u64>) -> &'static str {
        refine(Cause::Signal(signal), &seen, &limits(cpu_seconds)).0.word()
    }

    #[test]
    fn a_limit_is_named_only_where_there_is_proof() {
        let oom = Seen { oom_kills: 1, ..Seen::default() };
        assert_eq!(word(SIGKILL, oom, None), "oom");
        assert_eq!(word(SIGXCPU, Seen::default(), Some(5)), "cpu");
        assert_eq!(word(SIGXCPU, Seen::default(), None), "signal", "it sent that to itself");
        let late = Seen { cpu: Some(Duration::from_secs(5)), ..Seen::default() };
        assert_eq!(word(SIGKILL, late, Some(5)), "cpu");
        assert_eq!(word(SIGKILL, late, Some(6)), "signal");
        assert_eq!(word(SIGKILL, Seen::default(), Some(5)), "signal", "nobody looked");
        assert_eq!(word(6, oom, None), "signal", "an abort is an abort");
        assert_eq!(refine(Cause::Exit(3), &oom, &limits(None)).0, Cause::Exit(3));
    }

    #[test]
    fn an_abort_near_the_memory_limit_is_noted_and_not_renamed() {
        let near = Seen { memory_peak: Some(95 << 20), ..Seen::default() };
        let (cause, note) = refine(Cause::Signal(6), &near, &limits(None));
        assert_eq!(cause, Cause::Signal(6));
        assert_eq!(note.as_deref(), Some("its memory had reached 95 MiB; memory_mb is 100"));
        let far = Seen { memory_peak: Some(10 << 20), ..Seen::default() };
        assert_eq!(refine(Cause::Signal(6), &far, &limits(None)).1, None);
    }
}
