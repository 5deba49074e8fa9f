//! The seccomp filters. Several are stacked, because one filter has one way of saying no; of several verdicts the kernel
//! takes the strictest. They are installed on all threads (there is one before the library is opened, and the second
//! filter must also bind threads that a constructor started; if one of them cannot be bound, installing fails and we stop).

use super::syscalls::{Args, ALLOWED, ALLOWED_HERE, FAILING, IOCTL_ALLOWED};
use super::Walls;
use seccompiler::{
    apply_filter_all_threads, BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen as Len,
    SeccompCmpOp as Op, SeccompCondition as Condition, SeccompFilter, SeccompRule as Rule, TargetArch,
};
use std::collections::BTreeMap;
use thenodes_ipc::launch::Layer;

type Rules = BTreeMap<i64, Vec<Rule>>;

/// Installs the allow-list. From here on this process may do only what `syscalls` names.
pub(crate) fn first_filter(walls: &mut Walls) {
    let installed = first_programs().map_err(|e| e.to_string()).and_then(|programs| install(&programs));
    walls.step(Layer::Seccomp, "installing the allow-list", installed);
}

/// Tightens once the library is registered: nothing more is opened, mapped executable, or filtered. It binds libraries whose
/// constructors return; one that never lets this be reached keeps the first filter and the other walls, and no more than
/// those may be relied on.
pub(crate) fn second_filter() -> Result<(), String> {
    let programs = second_programs().map_err(|e| e.to_string())?;
    install(&programs).map_err(|e| format!("the second filter could not bind every thread: {e}"))
}

fn install(programs: &[BpfProgram]) -> Result<(), String> {
    programs.iter().try_for_each(|program| apply_filter_all_threads(program).map_err(|e| e.to_string()))
}

fn arch() -> Result<TargetArch, BackendError> {
    std::env::consts::ARCH.try_into()
}

/// A filter that lets pass what it does not mention and answers what it mentions with `verdict`.
fn refusing(rules: Rules, verdict: SeccompAction) -> Result<BpfProgram, BackendError> {
    SeccompFilter::new(rules, SeccompAction::Allow, verdict, arch()?)?.try_into()
}

fn first_programs() -> Result<Vec<BpfProgram>, BackendError> {
    let mut programs = Vec::new();
    let errors: std::collections::BTreeSet<i32> = FAILING.iter().map(|(_, errno, _)| *errno).collect();
    for errno in errors {
        let rules = FAILING.iter().filter(|entry| entry.1 == errno).map(|entry| (entry.0, vec![])).collect();
        programs.push(refusing(rules, SeccompAction::Errno(errno as u32))?);
    }
    let other_ioctl = Rule::new(vec![Condition::new(1, Len::Qword, Op::Ne, IOCTL_ALLOWED)?])?;
    let rules = BTreeMap::from([(libc::SYS_ioctl, vec![other_ioctl])]);
    programs.push(refusing(rules, SeccompAction::Errno(libc::ENOTTY as u32))?);
    // Memory that RLIMIT_DATA does not count must not be had: shared mappings stay pinned when all but a page is unmapped,
    // and a mapping that grows down is taken for a stack.
    let flag = |mask: i32, value: i32| {
        Rule::new(vec![Condition::new(3, Len::Qword, Op::MaskedEq(mask as u64), value as u64)?])
    };
    let uncounted = vec![
        flag(libc::MAP_TYPE, libc::MAP_SHARED)?,
        flag(libc::MAP_TYPE, libc::MAP_SHARED_VALIDATE)?,
        flag(libc::MAP_GROWSDOWN, libc::MAP_GROWSDOWN)?,
        flag(libc::MAP_HUGETLB, libc::MAP_HUGETLB)?,
    ];
    programs.push(refusing(
        BTreeMap::from([(libc::SYS_mmap, uncounted)]),
        SeccompAction::Errno(libc::EPERM as u32),
    )?);
    // The allow-list comes last: after it, installing needs calls that it allows.
    let mut rules = Rules::new();
    for entry in ALLOWED.iter().chain(ALLOWED_HERE) {
        rules.insert(entry.number, conditions(entry.args)?);
    }
    for (number, _, _) in FAILING {
        rules.insert(*number, vec![]); // the strictest verdict counts: these fail, and do not kill
    }
    rules.insert(libc::SYS_ioctl, vec![]); // likewise: ENOTTY above for all but one
    let kill = SeccompAction::KillProcess;
    programs.push(SeccompFilter::new(rules, kill, SeccompAction::Allow, arch()?)?.try_into()?);
    Ok(programs)
}

fn second_programs() -> Result<Vec<BpfProgram>, BackendError> {
    let executable =
        Rule::new(vec![Condition::new(2, Len::Qword, has(libc::PROT_EXEC as u64), libc::PROT_EXEC as u64)?])?;
    let opening = BTreeMap::from([(libc::SYS_openat, vec![]), (libc::SYS_mmap, vec![executable])]);
    let filtering = BTreeMap::from([(libc::SYS_seccomp, vec![]), (libc::SYS_pread64, vec![])]);
    Ok(vec![
        refusing(opening, SeccompAction::Errno(libc::EACCES as u32))?,
        refusing(filtering, SeccompAction::KillProcess)?,
    ])
}

/// All bits of `mask` that the value names are set.
fn has(mask: u64) -> Op {
    Op::MaskedEq(mask)
}

/// The alternatives under which a call passes; no alternative at all means always.
fn conditions(args: Args) -> Result<Vec<Rule>, BackendError> {
    let one = |condition| Rule::new(vec![condition]);
    Ok(match args {
        Args::Any => vec![],
        Args::OneOf { arg, values } => values
            .iter()
            .map(|value| one(Condition::new(arg, Len::Dword, Op::Eq, u64::from(*value))?))
            .collect::<Result<_, _>>()?,
        Args::Equals { arg, value } => vec![one(Condition::new(arg, Len::Qword, Op::Eq, value)?)?],
        Args::Without { arg, mask } => vec![one(Condition::new(arg, Len::Qword, Op::MaskedEq(mask), 0)?)?],
        Args::MapWriteXorExecute => {
            let (write, run) = (libc::PROT_WRITE as u64, libc::PROT_EXEC as u64);
            vec![
                one(Condition::new(2, Len::Qword, Op::MaskedEq(run), 0)?)?,
                Rule::new(vec![
                    Condition::new(2, Len::Qword, Op::MaskedEq(write | run), run)?,
                    Condition::new(3, Len::Qword, Op::MaskedEq(libc::MAP_ANONYMOUS as u64), 0)?,
                ])?,
            ]
        }
        Args::OwnPid => {
            let pid = u64::from(std::process::id());
            vec![one(Condition::new(0, Len::Dword, Op::Eq, pid)?)?]
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_filters_compile_for_this_architecture_and_fit_the_kernels_limit() {
        for program in first_programs().expect("first").into_iter().chain(second_programs().expect("second"))
        {
            assert!(program.len() < 4096, "{} instructions", program.len());
        }
    }
}
