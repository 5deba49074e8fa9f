//! The kernel's large and rarely used surfaces, where most of its bugs are, and calls that only an administrator has use for.
//! The dangerous ones are called in ways that cannot do anything even if they were allowed.

use super::call::{c, open, owned, proven, raw, At};
use super::Probe;
use std::io;
use std::os::fd::AsRawFd;

const GROUP: &str = "kernel";

const UFFD_USER_MODE_ONLY: i32 = 1;
const FAN_REPORT_FID: u32 = 0x200;
const IORING_REGISTER_PROBE: i32 = 8;
const KEYCTL_GET_KEYRING_ID: i32 = 0;
const KEY_SPEC_PROCESS_KEYRING: i32 = -2;
const BPF_MAP_CREATE: i32 = 0;
const LANDLOCK_VERSION: i32 = 1;
#[cfg(target_arch = "x86_64")]
const ARCH_SET_GS: i32 = 0x1001;
#[allow(non_upper_case_globals)]
const SYS_lsm_list_modules: libc::c_long = 461;
/// Upper half of an argument whose lower half the kernel looks at.
const HIGH_BITS: u64 = 0xdead_beef << 32;

pub(super) const PROBES: &[Probe] = &[
    probe!("io-uring", "io_uring", None, |_| io_uring()),
    probe!("io-uring-register", "io_uring's other calls", None, |_| {
        touch!(SYS_io_uring_register, -1, IORING_REGISTER_PROBE, 0, 0);
        touch!(SYS_io_uring_enter, -1, 0, 0, 0, 0, 0);
        let (ring, mut answer) = (io_uring()?, [0u8; 4096]);
        sys!(SYS_io_uring_register, ring, IORING_REGISTER_PROBE, answer.as_mut_ptr(), 64)
    }),
    probe!("bpf", "a BPF map", None, |_| {
        // An array of one entry: kind 2, key 4 bytes, value 4 bytes, 1 entry.
        let map = [2u32, 4, 4, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        sys!(SYS_bpf, BPF_MAP_CREATE, map.as_ptr(), 72)
    })
    .root_only("kernel.unprivileged_bpf_disabled"),
    probe!("perf", "performance counters", None, |_| {
        // A software counter of this process without the kernel: what the strictest common setting allows.
        let mut event = [0u64; 16];
        event[0] = 1 | 128 << 32; // PERF_TYPE_SOFTWARE, size of the structure
        event[5] = 1 << 5 | 1 << 6; // exclude_kernel, exclude_hv
        sys!(SYS_perf_event_open, event.as_ptr(), 0, -1, -1, 0)
    }),
    probe!("userfaultfd", "handling own page faults", None, |_| sys!(SYS_userfaultfd, UFFD_USER_MODE_ONLY)),
    probe!("keyctl", "the kernel's keyrings", None, |_| {
        sys!(SYS_keyctl, KEYCTL_GET_KEYRING_ID, KEY_SPEC_PROCESS_KEYRING, 1)
    }),
    probe!("add-key", "a key in the kernel", None, |_| add_key()),
    probe!("request-key", "asking the kernel for a key", None, |_| {
        touch!(SYS_request_key, 0, 0, 0, 0);
        add_key()?;
        sys!(SYS_request_key, c"user".as_ptr(), c"hostile".as_ptr(), 0, KEY_SPEC_PROCESS_KEYRING)
    }),
    probe!("inotify", "watching a host directory", CanaryDir, |arg| {
        let fd = owned(sys!(SYS_inotify_init1, libc::IN_CLOEXEC))?;
        let path = c(super::call::dir(arg));
        sys!(SYS_inotify_add_watch, fd.as_raw_fd(), path.as_ptr(), libc::IN_CREATE)
    }),
    probe!("fanotify", "watching whole filesystems", None, |_| sys!(SYS_fanotify_init, FAN_REPORT_FID, 0)),
    probe!("landlock", "rules of its own (Landlock)", None, |_| {
        sys!(SYS_landlock_create_ruleset, 0, 0, LANDLOCK_VERSION)
    }),
    probe!("seccomp-listener", "answering its own refused calls (seccomp listener)", None, |_| {
        let program = allow_everything();
        let program = filter(&program);
        // SAFETY: an action that filters of unprivileged processes need first.
        unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
        let flags = libc::SECCOMP_FILTER_FLAG_NEW_LISTENER;
        sys!(SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, std::ptr::from_ref(&program))
    }),
    probe!("seccomp-pretend", "making a later filter only seem to be installed", None, |_| {
        // Whoever filters before the host's last filter can answer that call itself, with "done".
        let program = pretend(libc::SYS_seccomp);
        let program = filter(&program);
        // SAFETY: an action that filters of unprivileged processes need first.
        unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
        sys!(SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, std::ptr::from_ref(&program))?;
        sys!(SYS_seccomp, -1, -1, 0)
    }),
    probe!("futex-requeue", "moving waiters between locks (FUTEX_CMP_REQUEUE_PI)", None, |_| {
        // No lock of a program needs it, and it has given root before (CVE-2014-3153).
        let locks = [0u32; 2];
        let (from, to) = (&raw const locks[0], &raw const locks[1]);
        sys!(SYS_futex, from, libc::FUTEX_CMP_REQUEUE_PI | libc::FUTEX_PRIVATE_FLAG, 1, 0, to, 0)
    }),
    #[cfg(target_arch = "x86_64")]
    probe!("call-32-bit", "a call by the 32-bit door (int 0x80)", None, |_| {
        let result: i64;
        // SAFETY: getpid by its 32-bit number; the gate may clobber r8 to r11.
        unsafe {
            std::arch::asm!("int 0x80", inout("rax") 20i64 => result, out("r8") _, out("r9") _, out("r10") _, out("r11") _);
        }
        proven(result > 0, "no answer")
    }),
    #[cfg(target_arch = "x86_64")]
    probe!("call-x32", "a call by an x32 number", None, |_| raw(libc::SYS_getpid | 0x4000_0000, &[]))
        .no_control("most kernels are built without x32"),
    probe!("call-unknown", "calls that do not exist yet reaching the kernel", None, |_| {
        // The kernel itself answers "no such call"; a filter that lets numbers pass which it does not know leaves the door
        // open for the calls of later kernels.
        let reached = (600..640).all(|number| {
            raw(number, &[-1; 6]).is_err_and(|error| error.raw_os_error() == Some(libc::ENOSYS))
        });
        proven(reached, "something else answers")
    }),
    #[cfg(target_arch = "x86_64")]
    probe!("vsyscall", "a call by the old fixed address (vsyscall)", None, |_| {
        // SAFETY: the fixed address of `time`, which kernels emulate; a kernel without it ends the process.
        let time: extern "C" fn(*mut i64) -> i64 = unsafe { std::mem::transmute(0xffff_ffff_ff60_0400usize) };
        proven(time(std::ptr::null_mut()) > 0, "no answer")
    }),
    #[cfg(target_arch = "x86_64")]
    probe!("modify-ldt", "the processor's segment table", None, |_| {
        let mut table = [0u8; 64];
        sys!(SYS_modify_ldt, 0, table.as_mut_ptr(), 64)
    }),
    #[cfg(target_arch = "x86_64")]
    probe!("arch-prctl", "a segment register", None, |_| sys!(SYS_arch_prctl, ARCH_SET_GS, 0)),
    #[cfg(target_arch = "x86_64")]
    probe!("iopl", "the machine's ports (iopl)", None, |_| sys!(SYS_iopl, 0))
        .no_control("many kernels are built without it"),
    #[cfg(target_arch = "x86_64")]
    probe!("ioperm", "one of the machine's ports (ioperm)", None, |_| sys!(SYS_ioperm, 0x80, 1, 0))
        .no_control("many kernels are built without it"),
    probe!("reboot", "rebooting", None, |_| sys!(SYS_reboot, 0, 0, 0, 0))
        .no_control("asked with the wrong magic numbers: a control would reboot"),
    probe!("kexec", "another kernel", None, |_| sys!(SYS_kexec_load, 0, 0, 0, 0xffff))
        .no_control("asked with flags that do not exist: a control would change what the machine boots next"),
    probe!("load-module", "loading a kernel module", None, |_| sys!(SYS_finit_module, -1, c"".as_ptr(), 0))
        .no_control("a control would load a module"),
    probe!("load-module-bytes", "loading a kernel module from memory", None, |_| {
        sys!(SYS_init_module, 0, 0, c"".as_ptr())
    })
    .no_control("a control would load a module"),
    probe!("unload-module", "unloading a kernel module", None, |_| {
        sys!(SYS_delete_module, c"hostile-no-such-module".as_ptr(), libc::O_NONBLOCK)
    })
    .no_control("a control would unload a module"),
    probe!("acct", "process accounting", None, |_| sys!(SYS_acct, c"/nonexistent/hostile".as_ptr()))
        .no_control("a control would change the machine's accounting"),
    probe!("settimeofday", "setting the clock (settimeofday)", None, |_| sys!(SYS_settimeofday, 0, 0))
        .root_only("needs CAP_SYS_TIME; called with nothing to set"),
    probe!("clock-settime", "setting the clock (clock_settime)", None, |_| {
        let never = [0i64, -1];
        sys!(SYS_clock_settime, libc::CLOCK_REALTIME, never.as_ptr())
    })
    .no_control("asked with a time that does not exist: a control would set the clock"),
    probe!("adjtimex", "the state of the machine's clock (adjtimex)", None, |_| {
        let mut state = [0u64; 32];
        sys!(SYS_adjtimex, state.as_mut_ptr())
    }),
    probe!("clock-adjtime", "the state of the machine's clock (clock_adjtime)", None, |_| {
        let mut state = [0u64; 32];
        sys!(SYS_clock_adjtime, libc::CLOCK_REALTIME, state.as_mut_ptr())
    }),
    probe!("sethostname", "the host's name", None, |_| sys!(SYS_sethostname, c"hostile".as_ptr(), 7))
        .namespaced(),
    probe!("kernel-log", "the kernel's log (syslog)", None, |_| sys!(SYS_syslog, 10, 0, 0))
        .root_only("with dmesg_restrict only root may"),
    probe!("lsm-list", "the list of security modules", None, |_| {
        let (mut ids, mut size) = ([0u64; 32], 256u32);
        let size = std::ptr::from_mut(&mut size) as libc::c_long;
        raw(SYS_lsm_list_modules, &[ids.as_mut_ptr() as libc::c_long, size, 0])
    }),
    probe!("tty-inject", "typing into a terminal (TIOCSTI)", None, |_| tty_inject(libc::TIOCSTI)),
    probe!("tty-inject-high-bits", "typing into a terminal with garbage above 32 bits", None, |_| {
        tty_inject(libc::TIOCSTI | HIGH_BITS)
    }),
    probe!("console-paste", "pasting into the console (TIOCLINUX)", None, |_| {
        let mut paste = 3u8;
        sys!(SYS_ioctl, 0, libc::TIOCLINUX, std::ptr::from_mut(&mut paste))
    })
    .no_control("needs a terminal of the console"),
    probe!("ioctl", "an ioctl", None, |_| ioctl_bytes_waiting(libc::FIONREAD)),
    probe!("ioctl-high-bits", "an ioctl with garbage above 32 bits", None, |_| {
        ioctl_bytes_waiting(libc::FIONREAD | HIGH_BITS)
    }),
    probe!("ioctl-allowed-high-bits", "the one allowed ioctl with garbage above 32 bits", None, |_| {
        ioctl_bytes_waiting(libc::FIONBIO | HIGH_BITS)
    }),
];

/// A program that allows everything: one instruction.
pub(super) fn allow_everything() -> [libc::sock_filter; 1] {
    [libc::sock_filter { code: 0x06, jt: 0, jf: 0, k: 0x7fff_0000 }]
}

/// The program as the kernel wants it, to be used while the program lives.
pub(super) fn filter(program: &[libc::sock_filter]) -> libc::sock_fprog {
    libc::sock_fprog { len: program.len() as u16, filter: program.as_ptr().cast_mut() }
}

/// A program by which this call succeeds without being made, and every other one is made.
fn pretend(number: libc::c_long) -> [libc::sock_filter; 4] {
    let word = |code, jt, k| libc::sock_filter { code, jt, jf: 0, k };
    let (load, equal, answer) = (0x20, 0x15, 0x06);
    // The number; if it is the one, skip to "error 0"; else allow.
    [
        word(load, 0, 0),
        word(equal, 1, number as u32),
        word(answer, 0, 0x7fff_0000),
        word(answer, 0, 0x0005_0000),
    ]
}

fn io_uring() -> io::Result<libc::c_long> {
    let mut parameters = [0u8; 256];
    sys!(SYS_io_uring_setup, 4, parameters.as_mut_ptr())
}

fn add_key() -> io::Result<libc::c_long> {
    let (kind, name) = (c"user".as_ptr(), c"hostile".as_ptr());
    sys!(SYS_add_key, kind, name, b"x".as_ptr(), 1, KEY_SPEC_PROCESS_KEYRING)
}

/// On a socket of its own, so that nothing but the number is against it.
fn ioctl_bytes_waiting(request: u64) -> io::Result<libc::c_long> {
    let (socket, _peer) = super::call::pair(libc::SOCK_STREAM)?;
    let mut answer = 0i32;
    sys!(SYS_ioctl, socket.as_raw_fd(), request, std::ptr::from_mut(&mut answer))
}

/// Into a terminal made for it, which nobody reads.
fn tty_inject(request: u64) -> io::Result<libc::c_long> {
    let letter = b"x".as_ptr();
    touch!(SYS_ioctl, 0, request, letter);
    let master = open("/dev/ptmx", libc::O_RDWR | libc::O_NOCTTY).at("/dev/ptmx")?;
    let (mut number, unlock) = (0i32, 0i32);
    sys!(SYS_ioctl, master.as_raw_fd(), libc::TIOCSPTLCK, std::ptr::from_ref(&unlock)).at("TIOCSPTLCK")?;
    sys!(SYS_ioctl, master.as_raw_fd(), libc::TIOCGPTN, std::ptr::from_mut(&mut number)).at("TIOCGPTN")?;
    sys!(SYS_setsid).at("setsid")?; // so that the new terminal becomes this session's
    let terminal = open(&format!("/dev/pts/{number}"), libc::O_RDWR).at("terminal")?;
    std::mem::forget(master); // closing it would hang the terminal up, and us with it
    sys!(SYS_ioctl, terminal.as_raw_fd(), request, letter)
}
