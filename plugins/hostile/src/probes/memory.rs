//! Code that nobody verified, and memory that no limit counts. Each attempt works on pages of its own.

use super::call::{no, or_stdout, owned, page, PAGE};
use super::Probe;
use libc::{MAP_ANONYMOUS, MAP_PRIVATE, MAP_SHARED, PROT_EXEC, PROT_READ, PROT_WRITE};
use std::io;
use std::os::fd::AsRawFd;

const GROUP: &str = "memory";

pub(super) const PROBES: &[Probe] = &[
    probe!("rwx", "writable executable memory", None, |_| {
        page(PROT_READ | PROT_WRITE | PROT_EXEC, PRIVATE, -1).map(drop)
    }),
    probe!("execute-anonymous", "executable memory that comes from no file", None, |_| {
        page(PROT_READ | PROT_EXEC, PRIVATE, -1).map(drop)
    }),
    probe!("mprotect-exec", "making written memory executable", None, |_| {
        let page = page(PROT_READ | PROT_WRITE, PRIVATE, -1)?;
        sys!(SYS_mprotect, page, PAGE, PROT_READ | PROT_EXEC)
    }),
    probe!("pkey-mprotect-exec", "making written memory executable (pkey_mprotect)", None, |_| {
        let page = page(PROT_READ | PROT_WRITE, PRIVATE, -1)?;
        sys!(SYS_pkey_mprotect, page, PAGE, PROT_READ | PROT_EXEC, -1)
    }),
    probe!("mprotect-code-write", "making its code writable", None, |_| {
        let code: fn() -> io::Result<libc::c_long> = execute_stack;
        let page = code as usize & !(PAGE_UNIT - 1);
        sys!(SYS_mprotect, page, PAGE_UNIT, PROT_READ | PROT_WRITE | PROT_EXEC)
    }),
    probe!("moved-stack", "memory that no limit counts (a page of the stack, moved and grown)", None, |_| {
        // SAFETY: asks the kernel's own list. The text it points to lies at the top of the first thread's stack; a page well below
        // that is mapped from the start and holds nothing yet.
        let top = unsafe { libc::getauxval(libc::AT_RANDOM) } as usize & !(PAGE_UNIT - 1);
        sys!(SYS_mremap, top - 28 * PAGE_UNIT, PAGE, 64usize << 20, libc::MREMAP_MAYMOVE)
    }),
    probe!("stack-exec", "an executable stack", None, |_| execute_stack()),
    probe!("memfd", "a file in memory", None, |_| sys!(SYS_memfd_create, c"x".as_ptr(), 0)),
    probe!("memfd-secret", "memory that the kernel cannot see", None, |_| sys!(SYS_memfd_secret, 0))
        .no_control("many kernels have it turned off"),
    probe!("memfd-exec", "executable memory from a memfd", None, |_| {
        let file = memfd()?;
        page(PROT_READ | PROT_EXEC, MAP_PRIVATE, file.as_raw_fd()).map(drop)
    }),
    probe!("memfd-two-views", "one memory, writable here and executable there", None, |_| {
        let file = memfd()?;
        page(PROT_READ | PROT_WRITE, MAP_SHARED, file.as_raw_fd())?;
        page(PROT_READ | PROT_EXEC, MAP_SHARED, file.as_raw_fd()).map(drop)
    }),
    probe!("memfd-seal", "sealing a file in memory", None, |_| {
        touch!(SYS_fcntl, 1, libc::F_ADD_SEALS, 0);
        let file = owned(sys!(SYS_memfd_create, c"x".as_ptr(), libc::MFD_ALLOW_SEALING));
        sys!(SYS_fcntl, or_stdout(&file), libc::F_ADD_SEALS, libc::F_SEAL_GROW)
    }),
    probe!("shared-memory", "memory that no limit counts (shared)", None, |_| {
        page(PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1).map(drop)
    }),
    probe!("grows-down", "memory that no limit counts (growing down)", None, |_| {
        page(PROT_READ | PROT_WRITE, PRIVATE | libc::MAP_GROWSDOWN, -1).map(drop)
    }),
    probe!("huge-pages", "memory that no limit counts (huge pages)", None, |_| {
        let flags = PRIVATE | libc::MAP_HUGETLB | libc::MAP_NORESERVE;
        sys!(SYS_mmap, 0, 2 << 20, PROT_READ | PROT_WRITE, flags, -1, 0)
    }),
    probe!("locked-pages", "memory that is never swapped (MAP_LOCKED)", None, |_| {
        page(PROT_READ | PROT_WRITE, PRIVATE | libc::MAP_LOCKED, -1).map(drop)
    }),
    probe!("mlock", "locking memory", None, |_| {
        let page = page(PROT_READ | PROT_WRITE, PRIVATE, -1)?;
        sys!(SYS_mlock, page, PAGE)
    }),
    probe!("mlockall", "locking all memory to come", None, |_| sys!(SYS_mlockall, libc::MCL_FUTURE)),
    probe!("remap-file-pages", "rearranging a mapping (remap_file_pages)", None, |_| {
        touch!(SYS_remap_file_pages, 0, 0, 0, 0, 0);
        let page = page(PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1)?;
        sys!(SYS_remap_file_pages, page, PAGE_UNIT, 0, 1, 0)
    }),
    probe!("mremap-alias", "a second view of shared memory (mremap)", None, |_| {
        let page = page(PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1)?;
        sys!(SYS_mremap, page, 0, PAGE, libc::MREMAP_MAYMOVE)
    }),
    probe!("zero-page", "memory at address 0", None, |_| {
        sys!(SYS_mmap, 0, PAGE, PROT_READ, PRIVATE | libc::MAP_FIXED, -1, 0)
    })
    .root_only("needs CAP_SYS_RAWIO"),
    probe!("address-space", "a terabyte of address space", None, |_| {
        sys!(SYS_mmap, 0, 1u64 << 40, libc::PROT_NONE, PRIVATE | libc::MAP_NORESERVE, -1, 0)
    }),
    probe!("merge-pages", "merging equal pages with other processes (MADV_MERGEABLE)", None, |_| {
        // Whether a page was merged shows in the time of a write: a way to read what others hold.
        let page = page(PROT_READ | PROT_WRITE, PRIVATE, -1)?;
        sys!(SYS_madvise, page, PAGE, libc::MADV_MERGEABLE)
    }),
    probe!("poison-page", "declaring memory broken (MADV_SOFT_OFFLINE)", None, |_| {
        sys!(SYS_madvise, 1, PAGE, libc::MADV_SOFT_OFFLINE)
    })
    .no_control("asked at an address that is none: a control would take memory from the machine"),
    probe!("numa-policy", "choosing where memory lies", None, |_| sys!(SYS_set_mempolicy, 0, 0, 0)),
    probe!("core-limit", "core files", None, |_| {
        let mut limits = [0u64; 2];
        sys!(SYS_prlimit64, 0, libc::RLIMIT_CORE, 0, limits.as_mut_ptr())?;
        if limits[1] == 0 {
            return no("none may be written");
        }
        Ok(format!("up to {} bytes", limits[1]))
    }),
];

const PRIVATE: i32 = MAP_PRIVATE | MAP_ANONYMOUS;
/// Alignment that mprotect wants on every machine we know.
const PAGE_UNIT: usize = 4096;

fn memfd() -> io::Result<std::os::fd::OwnedFd> {
    let file = owned(sys!(SYS_memfd_create, c"x".as_ptr(), 0))?;
    sys!(SYS_ftruncate, file.as_raw_fd(), PAGE)?;
    Ok(file)
}

/// What the loader does for a library that says it needs one.
fn execute_stack() -> io::Result<libc::c_long> {
    let here = 0u8;
    let page = std::ptr::from_ref(&here) as usize & !(PAGE_UNIT - 1);
    sys!(SYS_mprotect, page, PAGE_UNIT, PROT_READ | PROT_WRITE | PROT_EXEC)
}
