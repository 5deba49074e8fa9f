//! Numbers of a refused call as words: names of flags where one glance should tell what was attempted, and texts from the
//! plugin's memory, escaped and cut. Wrong words are possible (the plugin can change its memory while we look), wrong verdicts
//! are not: nothing here decides.

use super::memory::Memory;
use super::verdict::is_foreign;
use crate::confine::syscalls::name_of;
use crate::sys::Question;
use std::fmt::Write as _;
use thenodes_ipc::report::MAX_ARGUMENTS;

/// Bit of x86's third calling convention.
const X32: i64 = 0x4000_0000;

/// Name of the call.
pub(crate) fn name(question: &Question) -> String {
    match name_of(question.number) {
        _ if is_foreign(question) => format!("call {} of another architecture", question.number),
        Some(name) => name.to_owned(),
        None if question.number & X32 != 0 => format!("x32 call {}", question.number & !X32),
        None => format!("call {}", question.number),
    }
}

/// What an argument is.
#[derive(Clone, Copy)]
enum Kind {
    Path,
    Address,
    Hex,
    Signed,
    /// All 64 bits, for people.
    Length,
    Flags(&'static [(u64, &'static str)]),
    Word(&'static [(u64, &'static str)]),
}
use Kind::{Address, Flags, Hex, Length, Path, Signed, Word};

macro_rules! words {
    ($($name:ident),* $(,)?) => { &[$((libc::$name as u64, stringify!($name))),*] };
}

const OPEN: &[(u64, &str)] = words![
    O_WRONLY,
    O_RDWR,
    O_CREAT,
    O_EXCL,
    O_TRUNC,
    O_APPEND,
    O_PATH,
    O_DIRECTORY,
    O_NOFOLLOW,
    O_CLOEXEC,
    O_NONBLOCK
];
const PROTECTION: &[(u64, &str)] = words![PROT_READ, PROT_WRITE, PROT_EXEC];
const MAPPING: &[(u64, &str)] =
    words![MAP_SHARED, MAP_PRIVATE, MAP_FIXED, MAP_ANONYMOUS, MAP_GROWSDOWN, MAP_HUGETLB, MAP_NORESERVE];
const FAMILIES: &[(u64, &str)] = words![
    AF_UNIX,
    AF_INET,
    AF_INET6,
    AF_NETLINK,
    AF_PACKET,
    AF_ALG,
    AF_VSOCK,
    AF_BLUETOOTH,
    AF_KEY,
    AF_CAN,
    AF_XDP
];
const NEW: &[(u64, &str)] = words![
    CLONE_NEWUSER,
    CLONE_NEWNS,
    CLONE_NEWPID,
    CLONE_NEWNET,
    CLONE_NEWIPC,
    CLONE_NEWUTS,
    CLONE_NEWCGROUP,
    CLONE_VM,
    CLONE_THREAD,
    CLONE_VFORK,
    CLONE_PARENT,
    CLONE_FILES,
    CLONE_FS
];
const PRCTL: &[(u64, &str)] = words![
    PR_SET_DUMPABLE,
    PR_SET_PTRACER,
    PR_SET_MM,
    PR_SET_SECCOMP,
    PR_CAPBSET_DROP,
    PR_SET_PDEATHSIG,
    PR_SET_KEEPCAPS,
    PR_SET_NO_NEW_PRIVS,
    PR_SET_SECUREBITS,
    PR_CAP_AMBIENT,
    PR_SET_TSC,
    PR_SET_SPECULATION_CTRL,
    PR_GET_DUMPABLE
];
const IOCTLS: &[(u64, &str)] = words![TIOCSTI, TIOCLINUX, TCGETS, TIOCGWINSZ, FIONREAD, FIOCLEX];
const FCNTLS: &[(u64, &str)] = words![
    F_DUPFD,
    F_DUPFD_CLOEXEC,
    F_SETOWN,
    F_NOTIFY,
    F_ADD_SEALS,
    F_SETLEASE,
    F_SETPIPE_SZ,
    F_GETLK,
    F_SETLK,
    F_OFD_SETLK
];

/// The arguments of a call, as many as are worth showing.
fn kinds(number: i64) -> &'static [Kind] {
    match number {
        libc::SYS_openat => &[Signed, Path, Flags(OPEN)],
        libc::SYS_openat2 => &[Signed, Path],
        libc::SYS_execve | libc::SYS_chroot | libc::SYS_truncate | libc::SYS_acct | libc::SYS_swapon => {
            &[Path]
        }
        libc::SYS_execveat
        | libc::SYS_newfstatat
        | libc::SYS_statx
        | libc::SYS_readlinkat
        | libc::SYS_faccessat => &[Signed, Path],
        libc::SYS_faccessat2
        | libc::SYS_mkdirat
        | libc::SYS_mknodat
        | libc::SYS_unlinkat
        | libc::SYS_fchmodat => &[Signed, Path],
        libc::SYS_fchownat | libc::SYS_utimensat | libc::SYS_name_to_handle_at | libc::SYS_open_tree => {
            &[Signed, Path]
        }
        libc::SYS_symlinkat => &[Path, Signed, Path],
        libc::SYS_linkat | libc::SYS_renameat | libc::SYS_renameat2 | libc::SYS_move_mount => {
            &[Signed, Path, Signed, Path]
        }
        libc::SYS_mount => &[Path, Path, Path, Hex],
        libc::SYS_umount2 | libc::SYS_fsopen | libc::SYS_memfd_create | libc::SYS_mq_open => &[Path, Hex],
        libc::SYS_pivot_root => &[Path, Path],
        libc::SYS_socket | libc::SYS_socketpair => &[Word(FAMILIES), Hex, Signed],
        libc::SYS_connect | libc::SYS_bind => &[Signed, Address],
        libc::SYS_sendto => &[Signed, Hex, Signed, Hex, Address],
        libc::SYS_mmap => &[Hex, Length, Flags(PROTECTION), Flags(MAPPING), Signed],
        libc::SYS_mprotect | libc::SYS_pkey_mprotect => &[Hex, Length, Flags(PROTECTION)],
        libc::SYS_munmap => &[Hex, Length],
        libc::SYS_brk => &[Hex],
        libc::SYS_mremap => &[Hex, Length, Length, Hex],
        libc::SYS_eventfd2 => &[Length, Hex],
        libc::SYS_epoll_create1 => &[Hex],
        libc::SYS_dup3 => &[Signed, Signed, Flags(OPEN)],
        libc::SYS_clone | libc::SYS_unshare => &[Flags(NEW)],
        libc::SYS_setns => &[Signed, Flags(NEW)],
        libc::SYS_prctl => &[Word(PRCTL), Hex, Hex],
        libc::SYS_ioctl => &[Signed, Word(IOCTLS)],
        libc::SYS_fcntl => &[Signed, Word(FCNTLS), Hex],
        libc::SYS_kill | libc::SYS_tkill => &[Signed, Signed],
        libc::SYS_tgkill => &[Signed, Signed, Signed],
        libc::SYS_ptrace => &[Signed, Signed],
        #[cfg(target_arch = "x86_64")]
        libc::SYS_open => &[Path, Flags(OPEN)],
        #[cfg(target_arch = "x86_64")]
        libc::SYS_stat
        | libc::SYS_lstat
        | libc::SYS_access
        | libc::SYS_readlink
        | libc::SYS_mkdir
        | libc::SYS_rmdir => &[Path],
        #[cfg(target_arch = "x86_64")]
        libc::SYS_creat
        | libc::SYS_unlink
        | libc::SYS_chmod
        | libc::SYS_chown
        | libc::SYS_mknod
        | libc::SYS_chdir => &[Path],
        #[cfg(target_arch = "x86_64")]
        libc::SYS_rename | libc::SYS_link | libc::SYS_symlink => &[Path, Path],
        _ => &[Hex, Hex, Hex],
    }
}

/// The arguments as text, at most [`MAX_ARGUMENTS`] bytes.
pub(crate) fn arguments(question: &Question, memory: Option<&Memory>) -> String {
    let mut text = String::new();
    let known: &[Kind] = if is_foreign(question) { &[Hex, Hex, Hex] } else { kinds(question.number) };
    for (kind, value) in known.iter().zip(question.args) {
        if !text.is_empty() {
            text.push_str(", ");
        }
        let _ = match kind {
            Path => {
                write!(text, "{}", memory.map_or_else(|| format!("{value:#x}"), |memory| path(memory, value)))
            }
            Address => write!(
                text,
                "{}",
                memory.map_or_else(|| format!("{value:#x}"), |memory| address(memory, value, question))
            ),
            Hex => write!(text, "{value:#x}"),
            // An int in a register: the upper half is not looked at by the kernel.
            Signed => write!(text, "{}", value as i32),
            Length => write!(text, "{value}"),
            Flags(names) => write!(text, "{}", flags(value, names)),
            Word(names) => match names.iter().find(|(number, _)| *number == value) {
                Some((_, name)) => write!(text, "{name}"),
                None => write!(text, "{value:#x}"),
            },
        };
    }
    let mut end = text.len().min(MAX_ARGUMENTS);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
    text
}

fn path(memory: &Memory, at: u64) -> String {
    match memory.text(at) {
        _ if at == 0 => "null".into(),
        Some(text) => {
            let shown: Vec<u8> = text.iter().take(256).copied().collect();
            let rest = if text.len() > shown.len() { "..." } else { "" };
            format!("\"{}\"{rest}", shown.escape_ascii())
        }
        None => format!("unreadable text at {at:#x}"),
    }
}

/// A socket address: what it points at.
fn address(memory: &Memory, at: u64, question: &Question) -> String {
    let length = if question.number == libc::SYS_sendto { question.args[5] } else { question.args[2] };
    let Some(bytes) = memory.bytes(at, usize::try_from(length).unwrap_or(0).clamp(2, 110)) else {
        return format!("{at:#x}");
    };
    let port = |bytes: &[u8]| bytes.get(2..4).map_or(0, |b| u16::from_be_bytes([b[0], b[1]]));
    let ip4 = |b: &[u8]| <[u8; 4]>::try_from(b).map(std::net::Ipv4Addr::from);
    let ip6 = |b: &[u8]| <[u8; 16]>::try_from(b).map(std::net::Ipv6Addr::from);
    match (i32::from(u16::from_ne_bytes([bytes[0], bytes[1]])), bytes.len()) {
        (libc::AF_INET, 8..) => {
            ip4(&bytes[4..8]).map_or_else(|_| String::new(), |ip| format!("{ip}:{}", port(&bytes)))
        }
        (libc::AF_INET6, 24..) => {
            ip6(&bytes[8..24]).map_or_else(|_| String::new(), |ip| format!("[{ip}]:{}", port(&bytes)))
        }
        (libc::AF_UNIX, 3..) => format!("unix \"{}\"", bytes[2..].escape_ascii()),
        (family, _) => format!("family {family}"),
    }
}

fn flags(value: u64, names: &[(u64, &str)]) -> String {
    let mut left = value;
    let mut words = Vec::new();
    for (bits, name) in names {
        if *bits != 0 && left & bits == *bits {
            words.push((*name).to_owned());
            left &= !bits;
        }
    }
    if left != 0 || words.is_empty() {
        words.push(format!("{left:#x}"));
    }
    words.join("|")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    fn ours() -> Memory {
        let open = |name: &str| File::open(format!("/proc/self/{name}")).expect("our own memory");
        Memory::new(open("mem"), open("maps"))
    }

    fn question(number: libc::c_long, args: [u64; 6]) -> Question {
        let arch = if cfg!(target_arch = "x86_64") { 0xc000_003e } else { 0xc000_00b7 };
        Question { id: 1, thread: 1, arch, number, address: 0, args }
    }

    #[test]
    fn a_refused_call_reads_as_what_was_attempted() {
        let path = c"/etc/\x1b[31mpasswd";
        let open = question(
            libc::SYS_openat,
            [libc::AT_FDCWD as u64, path.as_ptr() as u64, libc::O_RDWR as u64, 0, 0, 0],
        );
        assert_eq!(arguments(&open, Some(&ours())), "-100, \"/etc/\\x1b[31mpasswd\", O_RDWR");
        let socket = question(libc::SYS_socket, [libc::AF_INET as u64, 1, 0, 0, 0, 0]);
        assert_eq!(
            (name(&socket).as_str(), arguments(&socket, None).as_str()),
            ("socket", "AF_INET, 0x1, 0")
        );
        let mut address = vec![2u8, 0, 0, 80, 127, 0, 0, 1];
        address.resize(16, 0);
        let connect = question(libc::SYS_connect, [5, address.as_ptr() as u64, 16, 0, 0, 0]);
        assert_eq!(arguments(&connect, Some(&ours())), "5, 127.0.0.1:80");
        assert_eq!(name(&question(libc::SYS_read | 0x4000_0000, [0; 6])), "x32 call 0");
    }

    proptest::proptest! {
        #[test]
        fn no_numbers_make_a_long_text_or_a_panic(number in 0i64..700, args in proptest::array::uniform6(proptest::num::u64::ANY)) {
            let question = Question { number, ..question(0, args) };
            proptest::prop_assert!(arguments(&question, Some(&ours())).len() <= MAX_ARGUMENTS);
            let _ = name(&question);
        }
    }
}
