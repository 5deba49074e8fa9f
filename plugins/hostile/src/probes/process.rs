//! Becoming more processes, running other programs, and reaching into other processes. Children end at once; the other
//! process is a victim made for the purpose.

use super::call::{c, checked, no, open, or_stdout, owned, pid, proven, At};
use super::Probe;
use std::ffi::c_void;
use std::io;
use std::os::fd::AsRawFd;
use std::ptr::null_mut;

const GROUP: &str = "process";

const KCMP_VM: i32 = 1;

pub(super) const PROBES: &[Probe] = &[
    // SAFETY: the child does nothing but end, without running what Rust would at an orderly end.
    probe!("fork", "forking", None, |_| match unsafe { libc::fork() } {
        0 => unsafe { libc::_exit(0) },
        child => reap(checked(child)?),
    }),
    #[cfg(target_arch = "x86_64")]
    probe!("fork-legacy", "the old fork call", None, |_| match sys!(SYS_fork)? {
        // SAFETY: the child ends.
        0 => unsafe { libc::_exit(0) },
        child => reap(child as i32),
    }),
    #[cfg(target_arch = "x86_64")]
    probe!("vfork", "the vfork call", None, |_| vfork()),
    probe!("clone", "a child by clone", None, |_| spawn(libc::SIGCHLD).and_then(reap)),
    probe!("clone-memory", "a process that shares this memory (CLONE_VM)", None, |_| {
        spawn(libc::CLONE_VM | libc::SIGCHLD).and_then(reap)
    }),
    probe!("clone-parent", "a sibling instead of a child (CLONE_PARENT)", None, |_| {
        spawn(libc::CLONE_PARENT | libc::SIGCHLD) // whoever started this process reaps it, or init does
    }),
    probe!("clone-traced", "a child that inherits a tracer (CLONE_PTRACE)", None, |_| {
        spawn(libc::CLONE_PTRACE | libc::SIGCHLD).and_then(reap)
    }),
    probe!("clone-files", "a process that shares these descriptors (CLONE_FILES)", None, |_| {
        spawn(libc::CLONE_FILES | libc::CLONE_FS | libc::SIGCHLD).and_then(reap)
    }),
    probe!("clone-silent", "a child whose end sends no signal", None, |_| {
        let child = spawn(0)?;
        // SAFETY: our own child.
        checked(unsafe { libc::waitpid(child, null_mut(), libc::__WCLONE) })
    }),
    probe!("clone3", "a child by clone3", None, |_| clone3(0)),
    probe!("exec", "running a program", None, |_| {
        std::process::Command::new("/bin/true").status().map(drop)
    }),
    probe!("execve", "becoming another program (execve)", None, |_| execve(|path, argv, envp| {
        sys!(SYS_execve, path, argv, envp)
    })),
    probe!("execveat", "becoming another program by a descriptor (execveat)", None, |_| {
        let program = open("/bin/echo", libc::O_PATH);
        execve(|_, argv, envp| {
            sys!(SYS_execveat, or_stdout(&program), c"".as_ptr(), argv, envp, libc::AT_EMPTY_PATH)
        })
    }),
    probe!("exec-memfd", "becoming a program that lies in memory", None, |_| {
        let memory = owned(sys!(SYS_memfd_create, c"x".as_ptr(), 0)).at("memfd_create")?;
        let program = std::fs::read("/bin/echo")?;
        sys!(SYS_write, memory.as_raw_fd(), program.as_ptr(), program.len())?;
        execve(|_, argv, envp| {
            sys!(SYS_execveat, memory.as_raw_fd(), c"".as_ptr(), argv, envp, libc::AT_EMPTY_PATH)
        })
    }),
    probe!("ptrace", "being traced (PTRACE_TRACEME)", None, |_| sys!(
        SYS_ptrace,
        libc::PTRACE_TRACEME,
        0,
        0,
        0
    )),
    probe!("ptrace-seize", "tracing another process (PTRACE_SEIZE)", Pid, |arg| {
        sys!(SYS_ptrace, libc::PTRACE_SEIZE, pid(arg), 0, 0)
    }),
    probe!("ptrace-attach", "stopping and tracing another process (PTRACE_ATTACH)", Pid, |arg| {
        sys!(SYS_ptrace, libc::PTRACE_ATTACH, pid(arg), 0, 0)?;
        // SAFETY: a process that we trace may be waited for.
        checked(unsafe { libc::waitpid(pid(arg) as i32, null_mut(), libc::__WALL) })?;
        sys!(SYS_ptrace, libc::PTRACE_DETACH, pid(arg), 0, 0)
    }),
    probe!("memory-read-other", "reading another process's memory", Pid, |arg| {
        foreign(arg, true).map(drop)
    }),
    probe!("memory-write-other", "writing another process's memory", Pid, |arg| foreign(arg, false)),
    probe!("pidfd-open", "a handle of another process", Pid, |arg| sys!(SYS_pidfd_open, pid(arg), 0)),
    probe!("pidfd-getfd", "taking another process's descriptor", Pid, |arg| {
        touch!(SYS_pidfd_getfd, -1, 0, 0);
        let process = owned(sys!(SYS_pidfd_open, pid(arg), 0)).at("pidfd_open")?;
        sys!(SYS_pidfd_getfd, process.as_raw_fd(), 0, 0)
    }),
    probe!("kcmp", "comparing two processes' memory (kcmp)", Pid, |arg| {
        sys!(SYS_kcmp, std::process::id(), pid(arg), KCMP_VM, 0, 0)
    }),
    probe!("robust-list-other", "the address of another process's lock list", Pid, |arg| {
        let (mut head, mut length) = (0usize, 0usize);
        sys!(SYS_get_robust_list, pid(arg), std::ptr::from_mut(&mut head), std::ptr::from_mut(&mut length))
    }),
    probe!("cpu-clock-other", "how long another process has run (clock_gettime)", Pid, |arg| {
        let (clock, mut time) = ((!pid(arg) << 3) | 2, [0i64; 2]);
        sys!(SYS_clock_gettime, clock, time.as_mut_ptr())
    }),
    probe!("move-pages-other", "moving another process's memory", Pid, |arg| {
        sys!(SYS_move_pages, pid(arg), 0, 0, 0, 0, 0) // no page at all; the kernel checks the right to first
    }),
    probe!("setsid", "leaving the session", None, |_| sys!(SYS_setsid)),
    probe!("setpgid", "leaving the process group", None, |_| sys!(SYS_setpgid, 0, 0)),
];

/// A child by clone with these flags, which ends at once. It has a stack of its own, so that it may share our memory.
pub(super) fn spawn(flags: i32) -> io::Result<i32> {
    extern "C" fn end(_: *mut c_void) -> i32 {
        0
    }
    let stack = vec![0u128; 4096].leak(); // the child may outlive this call
                                          // SAFETY: the stack is big, aligned, and never freed; the function only returns.
    checked(unsafe { libc::clone(end, stack.as_mut_ptr_range().end.cast(), flags, null_mut()) })
}

/// Waits for a child that ends by itself.
pub(super) fn reap(child: i32) -> io::Result<()> {
    // SAFETY: our own child.
    checked(unsafe { libc::waitpid(child, null_mut(), libc::__WALL) }).map(drop)
}

/// A child by clone3, which ends at once.
pub(super) fn clone3(flags: u64) -> io::Result<()> {
    let arguments = [flags, 0, 0, 0, libc::SIGCHLD as u64, 0, 0, 0];
    match sys!(SYS_clone3, arguments.as_ptr(), 64)? {
        // SAFETY: the child ends.
        0 => unsafe { libc::_exit(0) },
        child => reap(child as i32),
    }
}

#[cfg(target_arch = "x86_64")]
fn vfork() -> io::Result<()> {
    let result: i64;
    // SAFETY: the child shares this stack, so it must not touch it: it ends within these instructions.
    unsafe {
        std::arch::asm!(
            "syscall", "test rax, rax", "jnz 2f", "mov edi, 0", "mov eax, 60", "syscall", "2:",
            inout("rax") libc::SYS_vfork => result, out("rdi") _, out("rcx") _, out("r11") _,
        );
    }
    if result < 0 {
        return Err(io::Error::from_raw_os_error(-result as i32));
    }
    reap(result as i32)
}

/// Becomes `echo`, which then says that it got through: nobody else is left to say so.
fn execve(
    call: impl FnOnce(*const i8, *const *const i8, *const *const i8) -> io::Result<libc::c_long>,
) -> io::Result<()> {
    let (program, name) = (c("/bin/echo"), c("echo"));
    let words = c("GOT THROUGH: becoming another program: this line is its");
    let argv = [name.as_ptr(), words.as_ptr(), std::ptr::null()];
    let envp: [*const i8; 1] = [std::ptr::null()];
    call(program.as_ptr().cast(), argv.as_ptr().cast(), envp.as_ptr()).and_then(|_| no("it returned"))
}

/// Reads eight bytes of another process, or writes back what is there.
fn foreign(arg: &str, only_read: bool) -> io::Result<()> {
    let mut bytes = [0u8; 8];
    // Where its memory is can be learned only from /proc; where there is none, our own addresses are a guess.
    let maps = std::fs::read_to_string(format!("/proc/{}/maps", pid(arg))).unwrap_or_default();
    let line = maps.lines().find(|line| line.contains(" rw-p ")).unwrap_or_default();
    let known = line.split('-').next().and_then(|start| usize::from_str_radix(start, 16).ok());
    let there = libc::iovec {
        iov_base: known.map_or(bytes.as_mut_ptr().cast(), |address| address as *mut c_void),
        iov_len: bytes.len(),
    };
    let here = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    let (here, there) = (std::ptr::from_ref(&here), std::ptr::from_ref(&there));
    if !only_read {
        touch!(SYS_process_vm_writev, -1, 0, 0, 0, 0, 0);
    }
    let read = sys!(SYS_process_vm_readv, pid(arg), here, 1, there, 1, 0)?;
    proven(read == 8, "not all bytes were read")?;
    if only_read {
        return Ok(());
    }
    let written = sys!(SYS_process_vm_writev, pid(arg), here, 1, there, 1, 0)?;
    proven(written == 8, "not all bytes were written")
}
