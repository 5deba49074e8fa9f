//! What becomes of a call that is not on the allow-list, as a pure function of its numbers. Nothing of the plugin's memory is
//! read to decide: what lies there can change while we look.

use crate::confine::seccomp::Bounds;
use crate::confine::syscalls::{
    added, entries, entries_of, Args, COPIES, FAILING, LOWEST_ADDRESS, PR_MARK_PHASE,
};
use crate::sys::Question;
use std::collections::BTreeSet;
use thenodes_ipc::launch::NodeHello;
use thenodes_ipc::report::Phase;

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    /// Open this path, if it is one of the plugin's own or granted.
    Open {
        /// Address of the path in the plugin's memory.
        path: u64,
        flags: u64,
        mode: u64,
    },
    /// Hand over a new event counter.
    Counter { initial: u32, flags: i32 },
    /// Hand over a new set of descriptors to wait for.
    Waiting { flags: i32 },
    /// Fail with this error number.
    Fail(i32),
    /// Fail with this error number, because no limit of this plugin's leaves room for it.
    Limit(i32),
    /// The same for the heap, whose end is where it was: `brk` knows no error.
    NoHeap,
    /// End the process.
    Kill,
}

#[cfg(target_arch = "x86_64")]
const HERE: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const HERE: u32 = 0xc000_00b7;

/// True if the call was made by the rules of another architecture (`int 0x80`).
pub(crate) fn is_foreign(question: &Question) -> bool {
    question.arch != HERE
}

/// The phase that this call announces, if it does.
pub(crate) fn mark(question: &Question) -> Option<Phase> {
    let is_mark = question.number == libc::SYS_prctl
        && !is_foreign(question)
        && question.args[0] == u64::from(PR_MARK_PHASE);
    let place = usize::try_from(question.args[1]).ok()?;
    Phase::ALL.get(place).copied().filter(|_| is_mark)
}

/// What the filter was built from, as far as an answer depends on it.
pub(crate) struct Rules {
    /// What no single call can have.
    pub(crate) bounds: Bounds,
    /// Numbers that the list has, with conditions or without.
    pub(crate) listed: BTreeSet<i64>,
}

impl Rules {
    /// Of this plugin.
    pub(crate) fn of(hello: &NodeHello) -> Rules {
        // A list that cannot be built is an error in the runner, before it asks anything.
        let added = entries_of(&added(&hello.calls).unwrap_or_default());
        let entries = entries(hello.seccomp, &hello.all_paths());
        let listed = entries.into_iter().chain(added).map(|entry| entry.number).collect();
        Rules { bounds: Bounds::of(&hello.limits), listed }
    }
}

/// Decides.
pub(crate) fn judge(question: &Question, rules: &Rules) -> Answer {
    if is_foreign(question) {
        return Answer::Kill;
    }
    let args = question.args;
    let (write, run) = (libc::PROT_WRITE as u64, libc::PROT_EXEC as u64);
    let fixed = (libc::MAP_FIXED | libc::MAP_FIXED_NOREPLACE) as u64;
    let Bounds { data, space, .. } = rules.bounds;
    match question.number {
        libc::SYS_openat if args[0] as u32 == libc::AT_FDCWD as u32 => {
            Answer::Open { path: args[1], flags: args[2] & u64::from(u32::MAX), mode: args[3] }
        }
        #[cfg(target_arch = "x86_64")]
        libc::SYS_open => Answer::Open { path: args[0], flags: args[1] & u64::from(u32::MAX), mode: args[2] },
        // Memory that limits do not count is refused, and what is not the plugin's to map; memory that is both writable and
        // executable is an attack.
        libc::SYS_mmap => {
            let code =
                args[2] & run != 0 && (args[2] & write != 0 || args[3] & libc::MAP_ANONYMOUS as u64 != 0);
            let room = if args[2] & write != 0 { data } else { space };
            match (code, args[3] & fixed != 0 && args[0] < LOWEST_ADDRESS) {
                (true, _) => Answer::Kill,
                (false, false) if args[1] > room => Answer::Limit(libc::ENOMEM),
                _ => Answer::Fail(libc::EPERM),
            }
        }
        libc::SYS_mprotect if args[2] & run != 0 => Answer::Kill,
        libc::SYS_mprotect if args[2] & write != 0 && args[1] > data => Answer::Limit(libc::ENOMEM),
        // What is left of these two is the memory of the filters' programs.
        libc::SYS_mprotect | libc::SYS_munmap => Answer::Fail(libc::EPERM),
        libc::SYS_brk => Answer::NoHeap,
        libc::SYS_eventfd2 => Answer::Counter { initial: args[0] as u32, flags: args[1] as i32 },
        libc::SYS_epoll_create1 => Answer::Waiting { flags: args[0] as i32 },
        libc::SYS_fcntl if COPIES.contains(&(args[1] as u32)) => Answer::Limit(libc::EINVAL),
        libc::SYS_dup3 if rules.listed.contains(&libc::SYS_dup3) => Answer::Limit(libc::EBADF),
        #[cfg(target_arch = "x86_64")]
        libc::SYS_dup2 if rules.listed.contains(&libc::SYS_dup2) => Answer::Limit(libc::EBADF),
        number => match FAILING.iter().find(|(failing, _, _)| *failing == number) {
            Some((_, error, _)) => Answer::Fail(*error),
            None => Answer::Kill,
        },
    }
}

/// Words for an argument rule, for `--explain`.
pub(crate) fn rule_text(args: Args) -> String {
    let n = |arg: u8| arg + 1;
    match args {
        Args::Any => "any arguments".into(),
        Args::OneOf { arg, values } => {
            let values: Vec<String> = values.iter().map(|value| format!("{value:#x}")).collect();
            format!("argument {} is one of {}", n(arg), values.join(", "))
        }
        Args::Equals { arg, value } => format!("argument {} is {value:#x}, all 64 bits", n(arg)),
        Args::Not { arg, value } => format!("argument {} is not {:#x}", n(arg), value),
        Args::Without { arg, mask } => format!("argument {} has no bit of {mask:#x}", n(arg)),
        Args::CountedWriteXorExecute => {
            "private; executable only if neither writable nor anonymous; not growing down, not locked, no huge pages; no longer \
             than the limits leave room for; at no fixed place below 64 KiB or in the filters' programs"
                .into()
        }
        Args::Protect => {
            "never executable; writable no more than may be written to; not in the filters' programs".into()
        }
        Args::Unmap => "not in the filters' programs".into(),
        Args::Heap => "an end within the limit of memory".into(),
        Args::Descriptors { commands, copies } => {
            let commands: Vec<String> =
                commands.iter().chain(copies).map(|value| format!("{value:#x}")).collect();
            format!("argument 2 is one of {}; copies within the limit of descriptors", commands.join(", "))
        }
        Args::WithinTable { arg } => format!("argument {} is within the limit of descriptors", n(arg)),
        Args::OwnPid => "argument 1 is this process".into(),
        Args::All(parts) => parts.iter().map(|part| rule_text(*part)).collect::<Vec<_>>().join(", and "),
        Args::SecondFilter => "only the runner's second filter, before it is in force".into(),
        Args::Handover => "only the runner's message to the broker, before the library is opened".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::confine::syscalls::MADE;
    use thenodes_ipc::launch::SeccompMode;

    fn asked(number: libc::c_long, args: [u64; 6]) -> Question {
        Question { id: 1, thread: 1, arch: HERE, number, address: 0, args }
    }

    const BOUNDS: Bounds = Bounds { data: 1 << 20, space: 1 << 30, descriptors: 64 };

    fn strict() -> Rules {
        let listed = entries(SeccompMode::Strict, &[]).into_iter().map(|entry| entry.number).collect();
        Rules { bounds: BOUNDS, listed }
    }

    #[test]
    fn what_no_limit_leaves_room_for_fails_as_the_kernel_would_and_is_a_limits_refusal() {
        let private = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as u64;
        let (none, write) = (libc::PROT_NONE as u64, libc::PROT_WRITE as u64);
        let map = |at, length, protection, flags| {
            judge(&asked(libc::SYS_mmap, [at, length, protection, flags, u64::MAX, 0]), &strict())
        };
        assert_eq!(map(0, (1 << 20) + 1, write, private), Answer::Limit(libc::ENOMEM));
        assert_eq!(map(0, (1 << 30) + 1, none, private), Answer::Limit(libc::ENOMEM));
        // Whatever its length, a place that is not the plugin's is refused as such.
        let fixed = private | libc::MAP_FIXED as u64;
        assert_eq!(map(0, 1 << 40, none, fixed), Answer::Fail(libc::EPERM));
        assert_eq!(
            map(LOWEST_ADDRESS, 4096, none, fixed),
            Answer::Fail(libc::EPERM),
            "the filters' programs"
        );
        let protect = |length, protection| {
            judge(&asked(libc::SYS_mprotect, [0, length, protection, 0, 0, 0]), &strict())
        };
        assert_eq!(protect(1 << 30, write), Answer::Limit(libc::ENOMEM));
        assert_eq!(protect(4096, write), Answer::Fail(libc::EPERM), "the filters' programs");
        assert_eq!(protect(1 << 30, libc::PROT_EXEC as u64), Answer::Kill);
        assert_eq!(judge(&asked(libc::SYS_brk, [u64::MAX; 6]), &strict()), Answer::NoHeap);
        let copy = asked(libc::SYS_fcntl, [1, libc::F_DUPFD as u64, 64, 0, 0, 0]);
        assert_eq!(judge(&copy, &strict()), Answer::Limit(libc::EINVAL));
        // A list that has the call refuses its argument; one that has it not ends the process.
        let copy = asked(libc::SYS_dup3, [1, 64, 0, 0, 0, 0]);
        assert_eq!(judge(&copy, &strict()), Answer::Kill);
        let listed = Rules { listed: [libc::SYS_dup3].into(), ..strict() };
        assert_eq!(judge(&copy, &listed), Answer::Limit(libc::EBADF));
    }

    #[test]
    fn what_is_on_no_list_ends_the_process_whatever_its_arguments() {
        // Of these a list has some arguments; what is asked is about others.
        let partly = [libc::SYS_mmap, libc::SYS_munmap, libc::SYS_brk];
        for number in (0..1024).chain([0x4000_0000, 0x4000_0001, i64::from(i32::MAX), -1]) {
            let question = Question { number, ..asked(0, [u64::MAX; 6]) };
            let answer = judge(&question, &strict());
            let fails = FAILING.iter().any(|(failing, _, _)| *failing == number);
            match answer {
                Answer::Kill => assert!(!fails, "{number}"),
                Answer::Fail(error) | Answer::Limit(error) => {
                    assert!(error > 0 && (fails || partly.contains(&number)), "{number}");
                }
                Answer::Counter { .. } | Answer::Waiting { .. } => {
                    assert!(MADE.iter().any(|(made, _)| *made == number), "{number}");
                }
                Answer::NoHeap => assert!(partly.contains(&number), "{number}"),
                Answer::Open { .. } => assert!(fails, "{number}"),
            }
        }
        let foreign = Question { arch: 0x4000_0003, ..asked(libc::SYS_openat, [0; 6]) };
        assert_eq!(judge(&foreign, &strict()), Answer::Kill);
    }

    #[test]
    fn only_the_runners_own_word_marks_a_phase() {
        let word = u64::from(PR_MARK_PHASE);
        assert_eq!(mark(&asked(libc::SYS_prctl, [word, 1, 0, 0, 0, 0])), Some(Phase::Constructor));
        assert_eq!(mark(&asked(libc::SYS_prctl, [word, 99, 0, 0, 0, 0])), None);
        assert_eq!(mark(&asked(libc::SYS_prctl, [word | 1 << 32, 1, 0, 0, 0, 0])), None);
        assert_eq!(mark(&asked(libc::SYS_openat, [word, 1, 0, 0, 0, 0])), None);
    }
}
