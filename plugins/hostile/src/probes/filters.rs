//! The filters' own programs. The last filter is installed after the library was opened, from memory that was written before: whoever
//! puts another program there first is bound by his own rules. It is found as any code in the process could find it: by looking.

use super::call::{no, PAGE};
use super::Probe;
use libc::{MAP_ANONYMOUS, MAP_FIXED, MAP_PRIVATE, PROT_READ, PROT_WRITE};
use std::io;

const GROUP: &str = "filters";

pub(super) const PROBES: &[Probe] = &[
    probe!("filter-rewrite", "making a filter's program writable and changing it", None, |_| {
        let program = find()?;
        sys!(SYS_mprotect, program, UNIT, PROT_READ | PROT_WRITE)?;
        // SAFETY: it was made writable a moment ago; what was there is put back, so that a control harms nobody.
        unsafe {
            let at = program as *mut u64;
            let before = at.read_volatile();
            at.write_volatile(before ^ 1);
            let changed = at.read_volatile() != before;
            at.write_volatile(before);
            super::call::proven(changed, "it did not change")
        }
    }),
    probe!("filter-replace", "putting other memory in a filter's program's place", None, |_| {
        let program = find()?;
        sys!(SYS_mmap, program, UNIT, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0)
    }),
    probe!("filter-unmap", "taking a filter's program away", None, |_| {
        let program = find()?;
        sys!(SYS_munmap, program, UNIT)
    }),
];

const UNIT: usize = 4096;
/// How far from a place to look, to both sides: the programs were mapped shortly before the library.
const FAR: usize = 1 << 30;
/// `sock_fprog` and the longest program it may name.
const MOST: u64 = 4096;

/// The address of a program as the runner lays them out: a header whose pointer says "right behind me".
fn find() -> io::Result<usize> {
    // What the kernel mapped last lies lowest: begin at memory that is as new as can be, and at our own code.
    let new = super::call::page(PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1)? as usize;
    let code: fn() -> io::Result<usize> = find;
    for from in [new, code as usize & !(UNIT - 1)] {
        let above = (from..from.saturating_add(FAR)).step_by(UNIT);
        let below = (from.saturating_sub(FAR)..from).rev().step_by(UNIT);
        for page in above.chain(below.map(|at| at & !(UNIT - 1))) {
            if is_program(page) {
                return Ok(page);
            }
        }
    }
    no("no program of a filter within reach")
}

/// True if a header lies here. A call that reads 8 bytes says whether they are there, without a fault.
fn is_program(at: usize) -> bool {
    // A `how` that does not exist is refused after the set was read (EINVAL); a set that cannot be read, before (EFAULT).
    const NO_SUCH_HOW: i32 = 99;
    let readable = |at: usize| {
        let asked = sys!(SYS_rt_sigprocmask, NO_SUCH_HOW, at, 0, 8);
        matches!(asked, Err(e) if e.raw_os_error() == Some(libc::EINVAL))
    };
    if !readable(at) {
        return false;
    }
    // SAFETY: the page can be read; nobody else runs that would take it away.
    let (length, pointer) =
        unsafe { ((at as *const u64).read_volatile(), (at as *const u64).add(1).read_volatile()) };
    (1..=MOST).contains(&(length & 0xffff)) && length >> 16 == 0 && pointer == at as u64 + 16
}

/// What a runner does without sealing: a program in memory that is read-only and nothing more. For the control.
pub(crate) fn lay_out() -> io::Result<()> {
    let program = super::call::page(PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1)?;
    // SAFETY: new memory of ours.
    unsafe {
        let header = program.cast::<u64>();
        header.write_volatile(1);
        header.add(1).write_volatile(program as u64 + 16);
    }
    sys!(SYS_mprotect, program, PAGE, PROT_READ).map(drop)
}
