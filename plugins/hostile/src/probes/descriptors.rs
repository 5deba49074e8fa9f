//! Descriptors: those that were inherited, those that can be passed, and what can be asked of the other end of a socket.

use super::call::{no, or_stdout, pair, proven, At};
use super::Probe;
use std::io;
use std::os::fd::AsRawFd;

const GROUP: &str = "descriptors";

const SO_PEERPIDFD: i32 = 77;
/// The link; in the control there is none, and a pair of its own stands for it.
const LINK: i32 = 3;

pub(super) const PROBES: &[Probe] = &[
    probe!("descriptors", "inherited files", None, |_| {
        // Beyond 3 a runner holds only what its own runtime opened; a directory or file would be inherited.
        match (LINK + 1..1024).filter(|fd| is_file(*fd)).count() {
            0 => no("no inherited descriptor"),
            count => Ok(format!("{count}")),
        }
    }),
    probe!("pass-descriptor", "passing a descriptor (sendmsg)", None, |_| {
        let (a, b) = pair(libc::SOCK_STREAM)?;
        let mut message = Message::new(a.as_raw_fd());
        sys!(SYS_sendmsg, a.as_raw_fd(), message.header(), 0)?;
        let mut taken = Message::new(-1);
        // SAFETY: the message lives for the call.
        sys!(SYS_recvmsg, b.as_raw_fd(), taken.header(), 0).at("recvmsg")?;
        proven(taken.control[2] > 0, "no descriptor arrived")
    }),
    probe!("out-of-band", "urgent data on a pair that it may have (MSG_OOB)", None, |_| {
        // An ordinary send with one more flag, and a way out of a browser's sandbox once (CVE-2025-38236).
        let (a, b) = pair(libc::SOCK_STREAM)?;
        let mut taken = [0u8; 1];
        sys!(SYS_sendto, a.as_raw_fd(), b"x".as_ptr(), 1, libc::MSG_OOB, 0, 0)?;
        sys!(SYS_recvfrom, b.as_raw_fd(), taken.as_mut_ptr(), 1, libc::MSG_OOB | libc::MSG_DONTWAIT, 0, 0)
    }),
    probe!("pass-descriptor-link", "passing a descriptor to the node (sendmsg)", None, |_| {
        let (a, _b) = pair(libc::SOCK_STREAM)?;
        let mut message = Message::new(1);
        sys!(SYS_sendmsg, link(&a), message.header(), libc::MSG_NOSIGNAL)
    }),
    probe!("pass-descriptors", "passing descriptors in bulk (sendmmsg)", None, |_| {
        let (a, _b) = pair(libc::SOCK_STREAM)?;
        let mut message = Message::new(a.as_raw_fd());
        let mut header = [0u64; 8];
        // SAFETY: both are plain memory of the sizes given.
        unsafe {
            std::ptr::copy_nonoverlapping(
                message.header().cast::<u8>(),
                header.as_mut_ptr().cast::<u8>(),
                std::mem::size_of::<libc::msghdr>(),
            );
        }
        sys!(SYS_sendmmsg, a.as_raw_fd(), header.as_mut_ptr(), 1, 0)
    }),
    probe!("take-descriptor", "taking a message with room for descriptors (recvmsg)", None, |_| {
        let (a, b) = pair(libc::SOCK_STREAM)?;
        sys!(SYS_sendto, a.as_raw_fd(), b"x".as_ptr(), 1, 0, 0, 0)?;
        let mut message = Message::new(-1);
        sys!(SYS_recvmsg, b.as_raw_fd(), message.header(), libc::MSG_DONTWAIT)
    }),
    probe!("take-descriptors", "taking messages in bulk (recvmmsg)", None, |_| {
        let (_a, b) = pair(libc::SOCK_STREAM)?;
        sys!(SYS_recvmmsg, b.as_raw_fd(), 0, 0, libc::MSG_DONTWAIT, 0)
    }),
    probe!("peer-credentials", "who is at the other end of the link (SO_PEERCRED)", None, |_| {
        let mut answer = [0i32; 3];
        ask(libc::SO_PEERCRED, answer.as_mut_ptr().cast(), 12)
    }),
    probe!("peer-handle", "a handle of who is at the other end (SO_PEERPIDFD)", None, |_| {
        let mut answer = -1i32;
        ask(SO_PEERPIDFD, std::ptr::from_mut(&mut answer).cast(), 4)
    }),
    probe!("peer-name", "the name of the other end", None, |_| {
        let (a, _b) = pair(libc::SOCK_STREAM)?;
        let (mut name, mut size) = ([0u8; 128], 128u32);
        sys!(SYS_getpeername, link(&a), name.as_mut_ptr(), std::ptr::from_mut(&mut size))
    }),
    probe!("splice", "moving data between descriptors in the kernel (splice)", None, |_| {
        let (a, b) = pair(libc::SOCK_STREAM)?;
        sys!(SYS_sendto, a.as_raw_fd(), b"\n".as_ptr(), 1, 0, 0, 0)?;
        touch!(SYS_splice, b.as_raw_fd(), 0, -1, 0, 1, libc::SPLICE_F_NONBLOCK);
        let ends = pipe()?;
        sys!(SYS_splice, b.as_raw_fd(), 0, ends[1], 0, 1, libc::SPLICE_F_NONBLOCK)
    }),
    probe!("vmsplice", "giving memory pages to a pipe (vmsplice)", None, |_| {
        touch!(SYS_vmsplice, -1, 0, 0, 0);
        let ends = pipe()?;
        let part = libc::iovec { iov_base: b"x".as_ptr().cast_mut().cast(), iov_len: 1 };
        sys!(SYS_vmsplice, ends[1], std::ptr::from_ref(&part), 1, libc::SPLICE_F_NONBLOCK)
    }),
    probe!("tee", "copying a pipe in the kernel (tee)", None, |_| {
        touch!(SYS_tee, -1, -1, 1, 0);
        let (from, to) = (pipe()?, pipe()?);
        sys!(SYS_write, from[1], b"x".as_ptr(), 1)?;
        sys!(SYS_tee, from[0], to[1], 1, libc::SPLICE_F_NONBLOCK)
    }),
    probe!("sendfile", "sending a file in the kernel (sendfile)", CanaryFile, |arg| {
        let file = super::call::open(super::call::file(arg), libc::O_RDONLY);
        let (a, _b) = pair(libc::SOCK_STREAM)?;
        sys!(SYS_sendfile, a.as_raw_fd(), or_stdout(&file), 0, 4)
    }),
];

fn pipe() -> io::Result<[i32; 2]> {
    let mut ends = [0i32; 2];
    sys!(SYS_pipe2, ends.as_mut_ptr(), libc::O_CLOEXEC).at("pipe2")?;
    Ok(ends)
}

fn is_file(fd: i32) -> bool {
    // SAFETY: an all-zero stat is a valid value, and fstat fills it.
    unsafe {
        let mut stat: libc::stat = std::mem::zeroed();
        libc::fstat(fd, &mut stat) == 0
            && matches!(stat.st_mode & libc::S_IFMT, libc::S_IFREG | libc::S_IFDIR)
    }
}

/// The link if descriptor 3 is a socket; else the given one.
fn link(instead: &impl AsRawFd) -> i32 {
    // SAFETY: as in `is_file`.
    let socket = unsafe {
        let mut stat: libc::stat = std::mem::zeroed();
        libc::fstat(LINK, &mut stat) == 0 && stat.st_mode & libc::S_IFMT == libc::S_IFSOCK
    };
    if socket {
        LINK
    } else {
        instead.as_raw_fd()
    }
}

fn ask(option: i32, answer: *mut u8, size: u32) -> io::Result<libc::c_long> {
    let (a, _b) = pair(libc::SOCK_STREAM)?;
    let mut size = size;
    let size = std::ptr::from_mut(&mut size);
    sys!(SYS_getsockopt, link(&a), libc::SOL_SOCKET, option, answer, size)
}

/// One byte of data and one descriptor.
struct Message {
    data: [u8; 8],
    part: libc::iovec,
    /// A `cmsghdr` of 20 bytes: length, level, kind, the descriptor.
    control: [u64; 3],
    header: libc::msghdr,
}

impl Message {
    fn new(fd: i32) -> Box<Self> {
        // SAFETY: all zero is a valid value of all four.
        let mut message: Box<Self> = Box::new(unsafe { std::mem::zeroed() });
        let kind = libc::SOL_SOCKET as u64 | (libc::SCM_RIGHTS as u64) << 32;
        message.control = if fd < 0 { [0; 3] } else { [20, kind, fd as u64] };
        message
    }

    /// The header, pointing into this message.
    fn header(&mut self) -> *mut libc::msghdr {
        self.part = libc::iovec { iov_base: self.data.as_mut_ptr().cast(), iov_len: 1 };
        self.header.msg_iov = &mut self.part;
        self.header.msg_iovlen = 1;
        self.header.msg_control = self.control.as_mut_ptr().cast();
        self.header.msg_controllen = 24;
        &mut self.header
    }
}
