//! The seccomp filters. The first is the allow-list: what it does not contain is not decided by the kernel but told to the
//! broker, which knows no answer that lets a call run. Two small ones are stacked on it, whose answer is the end of the process:
//! one as soon as the broker holds the listener, one when the library is registered. They bind every thread (there is one
//! before the library is opened; the last must also bind threads that a constructor started, or installing it fails and we stop).

use super::rlimits;
use super::syscalls::{self, Allowed, Args, LOWEST_ADDRESS};
use crate::sys::{self, Handover, Program};
use seccompiler::{
    sock_filter, BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen as Len, SeccompCmpOp as Op,
    SeccompCondition as Condition, SeccompFilter, SeccompRule as Rule, TargetArch,
};
use std::collections::BTreeMap;
use std::ops::Range;
use std::os::fd::OwnedFd;
use thenodes_ipc::launch::{Layer, NodeHello, ProcessLimits};

type Rules = BTreeMap<i64, Vec<Rule>>;

/// Stands for "tell the broker" until the program is finished: the compiler knows no such answer.
const ASK: SeccompAction = SeccompAction::Trace(0x0a5b);
/// `BPF_RET | BPF_K`.
const RETURN: u16 = 0x06;
/// `BPF_LD | BPF_W | BPF_ABS`, `BPF_JMP | BPF_JEQ | BPF_K`, `BPF_JMP | BPF_JA`.
const LOAD_WORD: u16 = 0x20;
const JUMP_IF_EQUAL: u16 = 0x15;
const JUMP: u16 = 0x05;
/// `BPF_JMP | BPF_JGE | BPF_K`.
const JUMP_IF_AT_LEAST: u16 = 0x35;
/// Numbers that are compared one after the other; a jump goes 255 instructions far.
const GROUP: usize = 12;
/// `SECCOMP_RET_TRACE` with that mark, `SECCOMP_RET_KILL_PROCESS`, `SECCOMP_RET_USER_NOTIF`.
const MARKED: u32 = 0x7ff0_0a5b;
const KILL: u32 = 0x8000_0000;
const TELL: u32 = 0x7fc0_0000;
const ALLOW: u32 = 0x7fff_0000;

/// The filters of one runner, compiled before the first is installed: what installs the last must have an address by then.
pub(crate) struct Filters {
    allow_list: Program,
    sealing: Program,
    second: Program,
    /// For tests of the other walls: only what must be answered is asked, the rest passes.
    free: bool,
}

impl Filters {
    /// Compiles the filters for what the node granted. `handover` is the only message that may be sent.
    pub(crate) fn compile(hello: &NodeHello, handover: &Handover) -> Result<Filters, String> {
        let text = |e: BackendError| format!("compiling the filters: {e}");
        let fill = |place: &mut Program, program: BpfProgram| {
            place.fill(&program).map_err(|e| format!("placing the filters: {e}"))
        };
        let room = Program::reserve().map_err(|e| format!("memory for the filters: {e}"))?;
        let programs = Program::extent(&room);
        let [mut second, mut sealing, mut list] = room;
        let bounds = Bounds::of(&hello.limits);
        let heap_end = sys::heap_end().saturating_add(bounds.data);
        let special = Special {
            second: second.address(),
            sealing: sealing.address(),
            handover,
            programs,
            bounds,
            heap_end,
        };
        fill(&mut second, second_program(&special).map_err(text)?)?;
        fill(&mut sealing, sealing_program(&special).map_err(text)?)?;
        let mut omitted = Vec::new();
        if let Some(without) = &hello.without {
            omitted.extend(without.calls.iter().filter_map(|name| syscalls::number_of(name)));
        }
        let entries = syscalls::entries(hello.seccomp, &hello.all_paths());
        let added = syscalls::entries_of(&syscalls::added(&hello.calls)?);
        let entries = entries.into_iter().chain(added).filter(|entry| !omitted.contains(&entry.number));
        let free = super::omitted(hello, Layer::Seccomp);
        let program = if free { only_asking() } else { allow_list(entries, &special) };
        fill(&mut list, program.map_err(text)?)?;
        Ok(Filters { allow_list: list, sealing, second, free })
    }

    /// Installs the allow-list. From here on this process may do only what `syscalls` names. The listener goes to the broker.
    pub(crate) fn first(&self) -> Result<OwnedFd, String> {
        sys::install_with_listener(&self.allow_list).map_err(|e| match e {
            nix::errno::Errno::EBUSY => {
                "installing the allow-list: another program already supervises the system calls of this one (EBUSY); run the node outside of it".to_owned()
            }
            e => format!("installing the allow-list: {e}"),
        })
    }

    /// Forbids the message that handed the listener over.
    pub(crate) fn seal(&self) -> Result<(), String> {
        if self.free {
            return Ok(());
        }
        sys::install_on_all_threads(&self.sealing).map_err(|e| format!("installing the sealing filter: {e}"))
    }

    /// Tightens once the library is registered: nothing more is mapped executable, no filter is installed. It binds libraries
    /// whose constructors return; one that never lets this be reached keeps the first filters and the other walls, and no more
    /// than those may be relied on.
    pub(crate) fn second(&self) -> Result<(), String> {
        if self.free {
            return Ok(());
        }
        sys::install_on_all_threads(&self.second)
            .map_err(|e| format!("the second filter could not bind every thread: {e}"))
    }
}

/// Addresses by which the runner's own calls are known from everybody else's.
struct Special<'a> {
    second: u64,
    sealing: u64,
    handover: &'a Handover,
    /// Where the programs lie: what is installed later must be what was compiled. They are sealed too, where the kernel can; asking
    /// makes an attempt known, and holds where it cannot.
    programs: Range<u64>,
    bounds: Bounds,
    /// No end of the heap beyond this can be within the limit.
    heap_end: u64,
}

/// What no single call can have, because the limits forbid it whatever else there is. The kernel would refuse it too, and tell only
/// the caller; the filter asks the broker, which tells the node.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    /// Bytes that may be written to.
    pub(crate) data: u64,
    /// Bytes of address space.
    pub(crate) space: u64,
    /// Descriptors.
    pub(crate) descriptors: u64,
}

impl Bounds {
    /// Of these limits.
    pub(crate) fn of(limits: &ProcessLimits) -> Bounds {
        Bounds {
            data: limits.data(),
            space: rlimits::address_space(limits),
            descriptors: limits.descriptors.min(u64::from(u32::MAX)),
        }
    }
}

fn arch() -> Result<TargetArch, BackendError> {
    std::env::consts::ARCH.try_into()
}

fn allow_list<'a>(
    entries: impl Iterator<Item = &'a Allowed>,
    special: &Special<'_>,
) -> Result<BpfProgram, BackendError> {
    let mut rules = Rules::new();
    let mut always = Vec::new();
    for entry in entries {
        let alternatives = conditions(entry.args, special)?;
        if alternatives.is_empty() {
            always.push(entry.number);
        }
        rules.entry(entry.number).or_default().extend(alternatives);
    }
    for number in &always {
        rules.remove(number); // no condition at all: the widest entry counts
    }
    let ruled: Vec<i64> = rules.keys().copied().collect();
    let program = asking(SeccompFilter::new(rules, ASK, SeccompAction::Allow, arch()?)?)?;
    Ok(with_directory(program, &always, &ruled))
}

/// Sorts numbers before any rule is looked at: what always passes, what is on no list, and what has rules and goes on to them. The
/// compiler's program asks for one number after the other, and the kernel runs it for every number there is when it is
/// installed, which is at each start of a plugin.
fn with_directory(mut program: BpfProgram, always: &[libc::c_long], ruled: &[i64]) -> BpfProgram {
    let instruction = |code, jt, jf, k| sock_filter { code, jt, jf, k };
    let numbers = always.iter().map(|number| (*number as u32, true));
    let mut listed: Vec<(u32, bool)> = numbers.chain(ruled.iter().map(|n| (*n as u32, false))).collect();
    listed.sort_unstable();
    // From the last group to the first: each has to know how far it is to the rules, which stand behind the last.
    let mut directory = Vec::new();
    for (index, group) in listed.chunks(GROUP).enumerate().rev() {
        let compare = |(i, (number, always)): (usize, &(u32, bool))| {
            let answer = if *always { 1 } else { 2 };
            instruction(JUMP_IF_EQUAL, (group.len() - 1 - i) as u8 + answer, 0, *number)
        };
        let mut body: Vec<sock_filter> = group.iter().enumerate().map(compare).collect();
        body.push(instruction(RETURN, 0, 0, TELL));
        body.push(instruction(RETURN, 0, 0, ALLOW));
        body.push(instruction(JUMP, 0, 0, directory.len() as u32));
        if let Some((next, _)) = listed.get((index + 1) * GROUP) {
            body.insert(0, instruction(JUMP_IF_AT_LEAST, body.len() as u8, 0, *next));
        }
        body.append(&mut directory);
        directory = body;
    }
    // Behind the check of the architecture, where the number is loaded.
    let loads_number = |i: &sock_filter| i.code == LOAD_WORD && i.k == 0;
    let at = program.iter().position(loads_number).map_or(program.len(), |at| at + 1);
    program.splice(at..at, directory);
    program
}

/// No wall at all, for tests of the others: the broker still hands out the library, and hears of phases.
fn only_asking() -> Result<BpfProgram, BackendError> {
    let one = |arg, value: u32| Rule::new(vec![Condition::new(arg, Len::Dword, Op::Eq, u64::from(value))?]);
    let rules = Rules::from([
        (libc::SYS_openat, vec![one(0, libc::AT_FDCWD as u32)?]),
        (libc::SYS_prctl, vec![one(0, syscalls::PR_MARK_PHASE)?]),
    ]);
    asking(SeccompFilter::new(rules, SeccompAction::Allow, ASK, arch()?)?)
}

fn asking(filter: SeccompFilter) -> Result<BpfProgram, BackendError> {
    let mut program: BpfProgram = filter.try_into()?;
    // The broker hears about other architectures' calls too, which the compiler answers by killing.
    for instruction in &mut program {
        if instruction.code == RETURN && matches!(instruction.k, MARKED | KILL) {
            instruction.k = TELL;
        }
    }
    Ok(program)
}

/// Lets everything pass but these, which end the process.
fn killing(rules: Rules) -> Result<BpfProgram, BackendError> {
    SeccompFilter::new(rules, SeccompAction::Allow, SeccompAction::KillProcess, arch()?)?.try_into()
}

/// Every other message is the broker's to refuse; this one the allow-list lets pass, so it must die here.
fn sealing_program(special: &Special<'_>) -> Result<BpfProgram, BackendError> {
    killing(BTreeMap::from([(libc::SYS_sendmsg, conditions(Args::Handover, special)?)]))
}

/// Likewise for the runner's own filters; and nothing more becomes executable.
fn second_program(special: &Special<'_>) -> Result<BpfProgram, BackendError> {
    // What the first filter lets pass: code from a file. Every other executable mapping is the broker's to refuse.
    let (write, run) = (libc::PROT_WRITE as u64, libc::PROT_EXEC as u64);
    let executable = Rule::new(vec![
        Condition::new(2, Len::Qword, Op::MaskedEq(write | run), run)?,
        Condition::new(3, Len::Qword, Op::MaskedEq(libc::MAP_ANONYMOUS as u64), 0)?,
    ])?;
    let filtering = conditions(Args::SecondFilter, special)?;
    killing(BTreeMap::from([(libc::SYS_mmap, vec![executable]), (libc::SYS_seccomp, filtering)]))
}

/// The alternatives of a rule about one argument; none for every other rule.
fn simple(args: Args) -> Result<Vec<Condition>, BackendError> {
    Ok(match args {
        Args::OneOf { arg, values } => values
            .iter()
            .map(|value| Condition::new(arg, Len::Dword, Op::Eq, u64::from(*value)))
            .collect::<Result<_, _>>()?,
        Args::Equals { arg, value } => vec![Condition::new(arg, Len::Qword, Op::Eq, value)?],
        Args::Not { arg, value } => vec![Condition::new(arg, Len::Dword, Op::Ne, u64::from(value))?],
        Args::Without { arg, mask } => vec![Condition::new(arg, Len::Qword, Op::MaskedEq(mask), 0)?],
        _ => vec![],
    })
}

/// The alternatives under which a call passes; no alternative at all means always.
fn conditions(args: Args, special: &Special<'_>) -> Result<Vec<Rule>, BackendError> {
    let one = |condition| Rule::new(vec![condition]);
    let masked =
        |arg, mask: i32, value: i32| Condition::new(arg, Len::Qword, Op::MaskedEq(mask as u64), value as u64);
    let whole = |arg, op, value| Condition::new(arg, Len::Qword, op, value);
    let (write, run) = (libc::PROT_WRITE, libc::PROT_EXEC);
    let Special { programs, bounds, .. } = special;
    // Argument 0 is an address below the programs, or above: a call that begins in them is the broker's to refuse.
    let beside = || -> Result<_, BackendError> {
        Ok([whole(0, Op::Lt, programs.start)?, whole(0, Op::Ge, programs.end)?])
    };
    Ok(match args {
        Args::Any => vec![],
        Args::OneOf { .. } | Args::Equals { .. } | Args::Not { .. } | Args::Without { .. } => {
            simple(args)?.into_iter().map(one).collect::<Result<_, _>>()?
        }
        Args::CountedWriteXorExecute => {
            // Memory that RLIMIT_DATA does not count must not be had: shared mappings stay pinned when all but a page is
            // unmapped, and a mapping that grows down is taken for a stack.
            let counted = [
                masked(3, libc::MAP_TYPE, libc::MAP_PRIVATE)?,
                masked(3, libc::MAP_GROWSDOWN | libc::MAP_HUGETLB | libc::MAP_LOCKED, 0)?,
            ];
            let kinds = [
                vec![masked(2, write | run, 0)?, whole(1, Op::Le, bounds.space)?],
                vec![masked(2, write | run, write)?, whole(1, Op::Le, bounds.data)?],
                vec![
                    masked(2, write | run, run)?,
                    masked(3, libc::MAP_ANONYMOUS, 0)?,
                    whole(1, Op::Le, bounds.space)?,
                ],
            ];
            let mut places = vec![vec![masked(3, libc::MAP_FIXED | libc::MAP_FIXED_NOREPLACE, 0)?]];
            places.extend(beside()?.map(|side| vec![side]));
            for fixed in &mut places[1..] {
                fixed.push(whole(0, Op::Ge, LOWEST_ADDRESS)?);
            }
            let mut rules = Vec::new();
            for (kind, place) in kinds.iter().flat_map(|kind| places.iter().map(move |place| (kind, place))) {
                rules.push(Rule::new([&counted[..], kind, place].concat())?);
            }
            rules
        }
        Args::Protect => {
            let mut rules = Vec::new();
            for side in beside()? {
                rules.push(Rule::new(vec![masked(2, write | run, 0)?, side.clone()])?);
                let room = whole(1, Op::Le, bounds.data)?;
                rules.push(Rule::new(vec![masked(2, write | run, write)?, room, side])?);
            }
            rules
        }
        Args::Unmap => beside()?.into_iter().map(one).collect::<Result<_, _>>()?,
        Args::Heap => vec![one(whole(0, Op::Le, special.heap_end)?)?],
        Args::WithinTable { arg } => {
            vec![one(Condition::new(arg, Len::Dword, Op::Lt, bounds.descriptors)?)?]
        }
        Args::Descriptors { commands, copies } => {
            let mut rules: Vec<Rule> = simple(Args::OneOf { arg: 1, values: commands })?
                .into_iter()
                .map(one)
                .collect::<Result<_, _>>()?;
            for command in simple(Args::OneOf { arg: 1, values: copies })? {
                let target = Condition::new(2, Len::Dword, Op::Lt, bounds.descriptors)?;
                rules.push(Rule::new(vec![command, target])?);
            }
            rules
        }
        Args::OwnPid => {
            let pid = u64::from(std::process::id());
            vec![one(Condition::new(0, Len::Dword, Op::Eq, pid)?)?]
        }
        Args::All(parts) => {
            // Simple ones have one condition in each alternative; every combination of alternatives is one of the whole.
            let mut whole: Vec<Vec<Condition>> = vec![vec![]];
            for part in parts {
                let alternatives = simple(*part)?;
                whole = whole
                    .iter()
                    .flat_map(|so_far| {
                        alternatives.iter().map(|one| [so_far.clone(), vec![one.clone()]].concat())
                    })
                    .collect();
            }
            whole.into_iter().map(Rule::new).collect::<Result<_, _>>()?
        }
        Args::SecondFilter => [special.second, special.sealing]
            .into_iter()
            .map(|address| {
                Rule::new(vec![
                    Condition::new(0, Len::Qword, Op::Eq, u64::from(libc::SECCOMP_SET_MODE_FILTER))?,
                    Condition::new(1, Len::Qword, Op::Eq, libc::SECCOMP_FILTER_FLAG_TSYNC)?,
                    Condition::new(2, Len::Qword, Op::Eq, address)?,
                ])
            })
            .collect::<Result<_, _>>()?,
        Args::Handover => vec![Rule::new(vec![
            Condition::new(0, Len::Qword, Op::Eq, special.handover.socket())?,
            Condition::new(1, Len::Qword, Op::Eq, special.handover.address())?,
        ])?],
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use thenodes_ipc::launch::{PathGrant, SeccompMode};

    #[test]
    fn the_filters_compile_for_this_architecture_and_fit_the_kernels_limit() {
        let paths = [PathGrant { path: "/x".into(), read: true, write: true, create: true }];
        let handover = Handover::prepare(4);
        let bounds = Bounds { data: 1 << 27, space: 1 << 30, descriptors: 64 };
        let special =
            Special { second: 1, sealing: 2, handover: &handover, programs: 1..3, bounds, heap_end: 1 << 40 };
        for mode in SeccompMode::ALL {
            let entries = syscalls::entries(mode, &paths);
            let program = allow_list(entries.into_iter(), &special).expect("compiles");
            assert!(program.len() < 4096, "{} instructions", program.len());
            let answers = program.iter().filter(|i| i.code == RETURN).map(|i| i.k);
            assert!(answers.clone().all(|k| matches!(k, TELL | ALLOW)), "allow or tell, nothing else");
            assert!(answers.clone().any(|k| k == TELL));
        }
        assert!(second_program(&special).expect("compiles").len() < 4096);
    }

    /// What the program answers to a call with these arguments: the few instructions that the compiler and we use.
    fn answer(program: &[sock_filter], number: i64, args: [u64; 6]) -> u32 {
        let mut data =
            vec![number as u32, if cfg!(target_arch = "x86_64") { 0xc000_003e } else { 0xc000_00b7 }, 0, 0];
        data.extend(args.iter().flat_map(|arg| [*arg as u32, (*arg >> 32) as u32]));
        let (mut at, mut value) = (0, 0_u32);
        loop {
            let i = &program[at];
            at += 1;
            let jump = |taken| usize::from(if taken { i.jt } else { i.jf });
            match i.code {
                LOAD_WORD => value = data[i.k as usize / 4],
                JUMP => at += i.k as usize,
                JUMP_IF_EQUAL => at += jump(value == i.k),
                0x25 => at += jump(value > i.k),
                JUMP_IF_AT_LEAST => at += jump(value >= i.k),
                0x54 => value &= i.k,
                RETURN => return i.k,
                other => panic!("an instruction {other:#x} that this test does not know"),
            }
        }
    }

    #[test]
    fn a_number_passes_always_or_by_its_rule_and_no_other_does() {
        let handover = Handover::prepare(4);
        let bounds = Bounds { data: 1 << 27, space: 1 << 30, descriptors: 64 };
        let special =
            Special { second: 1, sealing: 2, handover: &handover, programs: 1..3, bounds, heap_end: 1 << 40 };
        for mode in SeccompMode::ALL {
            let entries = syscalls::entries(mode, &[]);
            let program = allow_list(entries.iter().copied(), &special).expect("compiles");
            for number in 0..1024 {
                let any = entries.iter().any(|e| e.number == number && matches!(e.args, Args::Any));
                let listed = entries.iter().any(|e| e.number == number);
                let told = answer(&program, number, [u64::MAX; 6]);
                assert!(!any || told == ALLOW, "{mode:?} {number} passes always");
                assert!(listed || told == TELL, "{mode:?} {number} is not on the list");
            }
            assert_eq!(answer(&program, libc::SYS_mmap, [0, 4096, 7, 0x22, u64::MAX, 0]), TELL, "{mode:?}");
            assert_eq!(answer(&program, libc::SYS_mmap, [0, 4096, 3, 0x22, u64::MAX, 0]), ALLOW, "{mode:?}");
        }
    }
}
