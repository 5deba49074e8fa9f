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
        // The kernel puts the variables before the name of the program, where they stay when `environ` is emptied.
        let below = strings_of_the_kernel();
        let words = below.split(|byte| *byte == 0);
        let is_variable = |word: &&[u8]| {
            let name = word.split(|byte| *byte == b'=').next().unwrap_or_default();
            name.len() < word.len()
                && name.len() > 1
                && name.iter().all(|b| b.is_ascii_alphanumeric() || *b == b'_')
        };
        match words.filter(is_variable).map(|word| word.escape_ascii().to_string()).next() {
            None => no("no variable is there"),
            Some(first) => Ok(first),
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

/// Longest text that is read; the kernel lets arguments and environment be longer.
const MOST_STRINGS: usize = 128 * 1024;

/// Where the kernel puts arguments and environment as text: from the random bytes that it gives every program up to the program's
/// name. What lies below are addresses and frames, whose bytes may look like anything.
fn strings_of_the_kernel() -> Vec<u8> {
    // SAFETY: both lie at the end of the stack, which stays; between them there is nothing but text of the kernel's making.
    unsafe {
        let (random, name) = (libc::getauxval(libc::AT_RANDOM), libc::getauxval(libc::AT_EXECFN));
        if random == 0 || name == 0 {
            return Vec::new();
        }
        let begin = (random as usize + 16).max((name as usize).saturating_sub(MOST_STRINGS));
        (begin..name as usize).map(|at| (at as *const u8).read_volatile()).collect()
    }
}
