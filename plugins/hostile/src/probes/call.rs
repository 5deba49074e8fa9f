//! System calls with as little around them as possible: libc's wrappers add calls of their own, which a filter would refuse
//! instead of the one that is meant. Nothing here is trusted by anybody; it is the attacker's toolbox.

use super::Outcome;
use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// What an attempt has to show for itself.
pub(super) trait Proof {
    fn words(self) -> String;
}

impl Proof for () {
    fn words(self) -> String {
        String::new()
    }
}

impl Proof for libc::c_long {
    fn words(self) -> String {
        String::new()
    }
}

impl Proof for i32 {
    fn words(self) -> String {
        String::new()
    }
}

impl Proof for OwnedFd {
    fn words(self) -> String {
        String::new()
    }
}

impl Proof for String {
    fn words(self) -> String {
        format!(": {self}")
    }
}

/// Runs an attempt and words what came of it.
pub(super) fn attempt<T: Proof>(what: &str, arg: &str, run: impl FnOnce(&str) -> io::Result<T>) -> Outcome {
    match run(arg) {
        Ok(proof) => Outcome::Through(format!("{what}{}", proof.words())),
        Err(error) => Outcome::Denied(format!("{what}: {error}")),
    }
}

/// An entry of a group: name, what it is, target, and the attempt as a closure from its argument to `io::Result`.
macro_rules! probe {
    ($name:literal, $what:literal, $target:ident, $run:expr) => {
        $crate::probes::Probe {
            name: $name,
            group: GROUP,
            what: $what,
            target: $crate::probes::Target::$target,
            run: |arg| $crate::probes::call::attempt($what, arg, $run),
            root_only: false,
            namespaced: false,
            control: true,
            reason: "",
        }
    };
}

/// A system call by its name in libc; arguments of any integer or pointer type.
macro_rules! sys {
    ($number:ident $(, $arg:expr)* $(,)?) => {
        $crate::probes::call::raw(libc::$number, &[$($arg as libc::c_long),*])
    };
}

/// The call, whatever it answers, so that a filter meets it before anything that leads up to it.
macro_rules! touch {
    ($($call:tt)*) => {
        let _ = sys!($($call)*);
    };
}

/// A system call by number.
pub(super) fn raw(number: libc::c_long, args: &[libc::c_long]) -> io::Result<libc::c_long> {
    let mut six = [0; 6];
    six[..args.len()].copy_from_slice(args);
    // SAFETY: none is claimed; these are attacks, and the pointers among them are null or to memory that outlives the call.
    let result = unsafe { libc::syscall(number, six[0], six[1], six[2], six[3], six[4], six[5]) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result)
}

/// An outcome of libc's own wrappers.
pub(super) fn checked(result: i32) -> io::Result<i32> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result)
}

/// A refusal in words.
pub(super) fn no<T>(why: impl Into<String>) -> io::Result<T> {
    Err(io::Error::other(why.into()))
}

/// True, or a refusal in words.
pub(super) fn proven(proof: bool, why: &str) -> io::Result<()> {
    if proof {
        Ok(())
    } else {
        no(why)
    }
}

/// Names the step that failed.
pub(super) trait At<T> {
    fn at(self, step: &str) -> io::Result<T>;
}

impl<T> At<T> for io::Result<T> {
    fn at(self, step: &str) -> io::Result<T> {
        self.map_err(|e| io::Error::other(format!("{step}: {e}")))
    }
}

/// A path or name for the kernel. An argument with a zero byte is cut there, as C would.
pub(super) fn c(text: &str) -> CString {
    CString::new(text.split('\0').next().unwrap_or_default()).unwrap_or_default()
}

/// The argument, or what to try without one.
pub(super) fn or<'a>(arg: &'a str, default: &'a str) -> &'a str {
    if arg.is_empty() {
        default
    } else {
        arg
    }
}

/// A host file that can be read everywhere.
pub(super) fn file(arg: &str) -> &str {
    or(arg, "/etc/passwd")
}

/// A directory that anybody may write to.
pub(super) fn dir(arg: &str) -> &str {
    or(arg, "/tmp")
}

/// A name in the target directory that nobody uses.
pub(super) fn fresh(arg: &str, name: &str) -> String {
    format!("{}/hostile-{name}-{}", dir(arg), std::process::id())
}

/// A pid from the argument; without one, process 1.
pub(super) fn pid(arg: &str) -> libc::c_long {
    arg.trim().parse().unwrap_or(1)
}

/// A path opened with these flags.
pub(super) fn open(path: &str, flags: i32) -> io::Result<OwnedFd> {
    let path = c(path);
    owned(sys!(SYS_openat, libc::AT_FDCWD, path.as_ptr(), flags | libc::O_CLOEXEC, 0o600))
}

/// A descriptor that a call just made.
pub(super) fn owned(fd: io::Result<libc::c_long>) -> io::Result<OwnedFd> {
    // SAFETY: the kernel gave this number to us a moment ago.
    fd.map(|fd| unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// The descriptor's number, or standard output: an attempt goes on with something that exists, because the call that matters
/// is still to come.
pub(super) fn or_stdout(fd: &io::Result<OwnedFd>) -> i32 {
    fd.as_ref().map_or(1, AsRawFd::as_raw_fd)
}

/// A connected pair of sockets; the one kind of socket a plugin may have.
pub(super) fn pair(kind: i32) -> io::Result<(OwnedFd, OwnedFd)> {
    let mut fds = [0i32; 2];
    sys!(SYS_socketpair, libc::AF_UNIX, kind | libc::SOCK_CLOEXEC, 0, fds.as_mut_ptr()).at("socketpair")?;
    // SAFETY: both were just made.
    Ok(unsafe { (OwnedFd::from_raw_fd(fds[0]), OwnedFd::from_raw_fd(fds[1])) })
}

/// A page of memory.
pub(super) fn page(protection: i32, flags: i32, fd: i32) -> io::Result<*mut u8> {
    sys!(SYS_mmap, 0, PAGE, protection, flags, fd, 0).map(|address| address as *mut u8)
}

/// Size of a page, or a multiple of it.
pub(super) const PAGE: usize = 65536;
