//! What a process can learn about the host without a single forbidden step: what it inherited and what the kernel tells
//! everybody.

use super::call::{no, proven};
use super::Probe;
use std::ffi::CStr;
use std::fs;

const GROUP: &str = "leaks";

pub(super) const PROBES: &[Probe] = &[
    probe!("environment", "environment variables", None, |_| match std::env::vars_os().count() {
        0 => no("the environment is empty"),
        count => Ok(format!("{count}")),
    }),
    probe!("environment-stack", "what is left of the environment on the stack", None, |_| {
        // The kernel puts the variables below the name of the program, where they stay when `environ` is emptied.
        let below = below_the_name(4096);
        let words = below.split(|byte| *byte == 0);
        let is_variable = |word: &&[u8]| {
            let name = word.split(|byte| *byte == b'=').next().unwrap_or_default();
            name.len() < word.len()
                && name.len() > 1
                && name.iter().all(|b| b.is_ascii_alphanumeric() || *b == b'_')
        };
        match words.filter(is_variable).count() {
            0 => no("no variable is there"),
            count => Ok(format!("{count} variables")),
        }
    }),
    probe!("arguments", "arguments with a path of the host", None, |_| {
        let arguments: Vec<String> = std::env::args_os().map(|a| a.to_string_lossy().into_owned()).collect();
        match arguments.iter().find(|argument| argument.contains('/')) {
            Some(path) => Ok(path.clone()),
            None => no(format!("none in {arguments:?}")),
        }
    }),
    probe!("program-path", "the path of the program as the kernel noted it", None, |_| {
        // SAFETY: the kernel's pointer to a string at the end of the stack, or null.
        let path = unsafe {
            let name = libc::getauxval(libc::AT_EXECFN) as *const libc::c_char;
            if name.is_null() {
                c""
            } else {
                CStr::from_ptr(name)
            }
        };
        match path.to_string_lossy() {
            path if path.contains('/') => Ok(path.into_owned()),
            path => no(format!("it says {path:?}")),
        }
    }),
    probe!("working-directory", "the working directory", None, |_| match std::env::current_dir()? {
        root if root.as_os_str() == "/" => no("it is the root"),
        dir => Ok(dir.display().to_string()),
    }),
    probe!("uname", "the host's name and kernel", None, |_| {
        let mut answer = [0u8; 512];
        sys!(SYS_uname, answer.as_mut_ptr())
    }),
    probe!("sysinfo", "the host's memory and load", None, |_| {
        let mut answer = [0u64; 32];
        sys!(SYS_sysinfo, answer.as_mut_ptr())
    }),
    probe!("usage", "the process's resource counters", None, |_| {
        let mut answer = [0u64; 32];
        sys!(SYS_getrusage, libc::RUSAGE_SELF, answer.as_mut_ptr())
    }),
    probe!("user-id", "its user", None, |_| sys!(SYS_getuid)),
    probe!("capabilities", "its capabilities", None, |_| {
        let (header, mut answer) = ([0x2008_0522u32, 0], [0u32; 6]);
        sys!(SYS_capget, header.as_ptr(), answer.as_mut_ptr())
    }),
    probe!("parent-id", "its parent", None, |_| sys!(SYS_getppid)),
    probe!("session-id", "its session", None, |_| sys!(SYS_getsid, 0)),
    probe!("boot-id", "the id of this boot", None, |_| fs::read("/proc/sys/kernel/random/boot_id").map(drop)),
    probe!("kernel-symbols", "the kernel's symbols", None, |_| {
        let fd = super::call::open("/proc/kallsyms", libc::O_RDONLY);
        fd.map(drop)
    }),
    probe!("mounts", "the host's mounts", None, |_| fs::read("/proc/self/mountinfo").map(drop)),
    probe!("connections", "the host's connections", None, |_| fs::read("/proc/net/tcp").map(drop)),
    probe!("interfaces", "the host's network interfaces", None, |_| {
        let count = fs::read_dir("/sys/class/net")?.count();
        proven(count > 0, "none")
    }),
];

/// Bytes of the stack below the program's name.
fn below_the_name(count: usize) -> Vec<u8> {
    // SAFETY: the name lies at the very end of the stack; below it are arguments, environment, and the frames of everything
    // that runs in the first thread, which are more than a page together.
    unsafe {
        let name = libc::getauxval(libc::AT_EXECFN) as *const u8;
        if name.is_null() {
            return Vec::new();
        }
        (1..=count).rev().map(|n| name.sub(n).read_volatile()).collect()
    }
}
