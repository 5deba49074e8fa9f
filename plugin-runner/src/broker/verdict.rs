//! What becomes of a call that is not on the allow-list, as a pure function of its numbers. Nothing of the plugin's memory is
//! read to decide: what lies there can change while we look.

use crate::confine::syscalls::{Args, FAILING, PR_MARK_PHASE};
use crate::sys::Question;
use thenodes_ipc::launch::SeccompMode;
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
    /// Fail with this error number.
    Fail(i32),
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

/// Decides.
pub(crate) fn judge(question: &Question, _mode: SeccompMode) -> Answer {
    if is_foreign(question) {
        return Answer::Kill;
    }
    let args = question.args;
    match question.number {
        libc::SYS_openat if args[0] as u32 == libc::AT_FDCWD as u32 => {
            Answer::Open { path: args[1], flags: args[2] & u64::from(u32::MAX), mode: args[3] }
        }
        #[cfg(target_arch = "x86_64")]
        libc::SYS_open => Answer::Open { path: args[0], flags: args[1] & u64::from(u32::MAX), mode: args[2] },
        // Memory that limits do not count is refused; memory that is both writable and executable is an attack.
        libc::SYS_mmap => {
            let (write, run) = (libc::PROT_WRITE as u64, libc::PROT_EXEC as u64);
            let code =
                args[2] & run != 0 && (args[2] & write != 0 || args[3] & libc::MAP_ANONYMOUS as u64 != 0);
            if code {
                Answer::Kill
            } else {
                Answer::Fail(libc::EPERM)
            }
        }
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
            "private; executable only if neither writable nor anonymous; not growing down, not locked, no huge pages"
                .into()
        }
        Args::OwnPid => "argument 1 is this process".into(),
        Args::All(parts) => parts.iter().map(|part| rule_text(*part)).collect::<Vec<_>>().join(", and "),
        Args::SecondFilter => "only the runner's second filter, before it is in force".into(),
        Args::Handover => "only the runner's message to the broker, before the library is opened".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(number: libc::c_long, args: [u64; 6]) -> Question {
        Question { id: 1, thread: 1, arch: HERE, number, address: 0, args }
    }

    #[test]
    fn what_is_on_no_list_ends_the_process_whatever_its_arguments() {
        for number in (0..1024).chain([0x4000_0000, 0x4000_0001, i64::from(i32::MAX), -1]) {
            let question = Question { number, ..asked(0, [u64::MAX; 6]) };
            let answer = judge(&question, SeccompMode::Strict);
            let fails = FAILING.iter().any(|(failing, _, _)| *failing == number);
            match answer {
                Answer::Kill => assert!(!fails, "{number}"),
                Answer::Fail(error) => assert!(error > 0 && (fails || number == libc::SYS_mmap), "{number}"),
                Answer::Open { .. } => assert!(fails, "{number}"),
            }
        }
        let foreign = Question { arch: 0x4000_0003, ..asked(libc::SYS_openat, [0; 6]) };
        assert_eq!(judge(&foreign, SeccompMode::Strict), Answer::Kill);
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
