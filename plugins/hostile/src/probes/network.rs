//! Reaching anybody: by every family of sockets, and by the ways that remain when making a socket is all that is forbidden.
//! The targets are on this machine and made for the purpose.

use super::call::{c, no, owned, pair, proven, At};
use super::Probe;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};

const GROUP: &str = "network";

const AF_QIPCRTR: i32 = 42;
const AF_SMC: i32 = 43;
const ETHERNET_ALL: i32 = 0x0300; // ETH_P_ALL in network order

pub(super) const PROBES: &[Probe] = &[
    probe!("socket", "a TCP socket", None, |_| socket(libc::AF_INET, libc::SOCK_STREAM, 0)),
    probe!("socket-udp", "a UDP socket", None, |_| socket(libc::AF_INET, libc::SOCK_DGRAM, 0)),
    probe!("socket-v6", "an IPv6 socket", None, |_| socket(libc::AF_INET6, libc::SOCK_STREAM, 0)),
    probe!("socket-mptcp", "a multipath TCP socket", None, |_| {
        socket(libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_MPTCP)
    }),
    probe!("socket-unix", "a Unix socket", None, |_| socket(libc::AF_UNIX, libc::SOCK_STREAM, 0)),
    probe!("socket-netlink", "the kernel's routing table (netlink)", None, |_| {
        socket(libc::AF_NETLINK, libc::SOCK_RAW, 0)
    }),
    probe!("socket-audit", "the kernel's audit (netlink)", None, |_| socket(
        libc::AF_NETLINK,
        libc::SOCK_RAW,
        9
    )),
    probe!("socket-netfilter", "the kernel's packet filter (netlink)", None, |_| {
        socket(libc::AF_NETLINK, libc::SOCK_RAW, 12)
    }),
    probe!("socket-raw", "raw packets (ICMP)", None, |_| {
        socket(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_ICMP)
    })
    .namespaced(),
    probe!("socket-ping", "pings without privileges", None, |_| {
        socket(libc::AF_INET, libc::SOCK_DGRAM, libc::IPPROTO_ICMP)
    })
    .no_control("net.ipv4.ping_group_range lets nobody on many machines"),
    probe!("socket-packet", "packets as they come (AF_PACKET)", None, |_| {
        socket(libc::AF_PACKET, libc::SOCK_RAW, ETHERNET_ALL)
    })
    .namespaced(),
    probe!("socket-xdp", "packets before the kernel (AF_XDP)", None, |_| socket(
        libc::AF_XDP,
        libc::SOCK_RAW,
        0
    ))
    .namespaced(),
    probe!("socket-vsock", "the virtual machine's host (AF_VSOCK)", None, |_| {
        socket(libc::AF_VSOCK, libc::SOCK_STREAM, 0)
    })
    .no_control("only in virtual machines"),
    probe!("socket-alg", "the kernel's cryptography (AF_ALG)", None, |_| {
        socket(libc::AF_ALG, libc::SOCK_SEQPACKET, 0)
    })
    .no_control("many kernels are built without it"),
    probe!("socket-bluetooth", "Bluetooth", None, |_| socket(libc::AF_BLUETOOTH, libc::SOCK_RAW, 1))
        .no_control("few machines have it"),
    probe!("socket-qrtr", "the modem's router (AF_QIPCRTR)", None, |_| socket(
        AF_QIPCRTR,
        libc::SOCK_DGRAM,
        0
    ))
    .no_control("few kernels are built with it"),
    probe!("socket-smc", "shared memory as a network (AF_SMC)", None, |_| socket(
        AF_SMC,
        libc::SOCK_STREAM,
        0
    ))
    .no_control("few kernels are built with it"),
    probe!("socket-can", "vehicle networks (AF_CAN)", None, |_| socket(libc::AF_CAN, libc::SOCK_RAW, 1))
        .no_control("few kernels are built with it"),
    probe!("socketpair-inet", "a pair of sockets of another family", None, |_| {
        let mut ends = [0i32; 2];
        sys!(SYS_socketpair, libc::AF_TIPC, libc::SOCK_STREAM, 0, ends.as_mut_ptr())
    })
    .no_control("only AF_TIPC makes such pairs, and few kernels have it"),
    probe!("connect", "connecting", TcpPort, |arg| {
        // A port, or an address with one.
        let to = if arg.contains(':') { arg.to_owned() } else { format!("127.0.0.1:{}", port(arg)) };
        TcpStream::connect(to).map(drop)
    }),
    probe!("connect-v4-mapped", "connecting by an IPv6 address that means IPv4", TcpPort, |arg| {
        TcpStream::connect(format!("[::ffff:127.0.0.1]:{}", port(arg))).map(drop)
    }),
    probe!("connect-mptcp", "connecting by multipath TCP", TcpPort, |arg| {
        let socket = socket(libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_MPTCP)?;
        connect_v4(&socket, port(arg))
    }),
    probe!("connect-bare", "connecting a socket that it has already", TcpPort, |arg| {
        let (a, _b) = pair(libc::SOCK_STREAM)?;
        let _ = connect_v4(&a, port(arg)); // the call itself comes first
        let socket = socket(libc::AF_INET, libc::SOCK_STREAM, 0)?;
        connect_v4(&socket, port(arg))
    }),
    probe!("reconnect", "disconnecting a socket and sending it elsewhere (AF_UNSPEC)", UdpPort, |arg| {
        let nowhere = [0u8; 16];
        touch!(SYS_connect, -1, nowhere.as_ptr(), 16);
        let socket = UdpSocket::bind("127.0.0.1:0")?;
        socket.connect("127.0.0.1:9")?;
        sys!(SYS_connect, socket.as_raw_fd(), nowhere.as_ptr(), 16).at("AF_UNSPEC")?;
        socket.connect(SocketAddrV4::new(Ipv4Addr::LOCALHOST, port(arg)))?;
        socket.send(b"leak").map(drop)
    }),
    probe!("fast-open", "TCP fast open", TcpPort, |arg| {
        let to = address_v4(port(arg));
        touch!(SYS_sendto, -1, b"leak".as_ptr(), 4, libc::MSG_FASTOPEN, to.as_ptr(), to.len());
        let socket = socket(libc::AF_INET, libc::SOCK_STREAM, 0)?;
        sys!(SYS_sendto, socket.as_raw_fd(), b"leak".as_ptr(), 4, libc::MSG_FASTOPEN, to.as_ptr(), to.len())
    }),
    probe!("udp-send", "a datagram", UdpPort, |arg| {
        let to = address_v4(port(arg));
        let (a, _b) = pair(libc::SOCK_DGRAM)?;
        touch!(SYS_sendto, a.as_raw_fd(), b"leak".as_ptr(), 4, 0, to.as_ptr(), to.len());
        let socket = socket(libc::AF_INET, libc::SOCK_DGRAM, 0)?;
        sys!(SYS_sendto, socket.as_raw_fd(), b"leak".as_ptr(), 4, 0, to.as_ptr(), to.len())
    }),
    probe!("udp-bind", "taking datagrams", None, |_| UdpSocket::bind("127.0.0.1:0").map(drop)),
    probe!("tcp-listen", "taking connections", None, |_| TcpListener::bind("127.0.0.1:0").map(drop)),
    probe!("listen-pair", "listening on a socket that it has already", None, |_| {
        let (a, _b) = pair(libc::SOCK_STREAM)?;
        touch!(SYS_listen, a.as_raw_fd(), 1);
        let socket = socket(libc::AF_INET, libc::SOCK_STREAM, 0)?;
        sys!(SYS_listen, socket.as_raw_fd(), 1)
    }),
    probe!("accept", "accepting a connection", None, |_| {
        touch!(SYS_accept4, -1, 0, 0, 0);
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let _client = TcpStream::connect(listener.local_addr()?)?;
        listener.accept().map(drop)
    }),
    probe!("resolve", "asking for the address of a name", None, |_| resolve()),
    probe!("unix-connect", "connecting to a socket file of the host", UnixPath, |arg| {
        let to = address_unix(arg.as_bytes());
        touch!(SYS_connect, -1, to.as_ptr(), to.len());
        std::os::unix::net::UnixStream::connect(arg).map(drop)
    }),
    probe!(
        "unix-send-pair",
        "a datagram to a socket file, from a pair that it may have",
        UnixDatagram,
        |arg| {
            // socketpair is allowed; an address in sendto would make of it what a socket is.
            let (a, _b) = pair(libc::SOCK_DGRAM)?;
            let to = address_unix(arg.as_bytes());
            sys!(SYS_sendto, a.as_raw_fd(), b"leak".as_ptr(), 4, 0, to.as_ptr(), to.len())
        }
    ),
    probe!("unix-connect-pair", "sending a pair's end to a socket file (connect)", UnixDatagram, |arg| {
        let (a, _b) = pair(libc::SOCK_DGRAM)?;
        let to = address_unix(arg.as_bytes());
        sys!(SYS_connect, a.as_raw_fd(), to.as_ptr(), to.len())
    }),
    probe!("unix-bind", "a socket file on the host", CanaryDir, |arg| {
        let name = super::call::fresh(arg, "socket");
        let (a, _b) = pair(libc::SOCK_DGRAM)?;
        let to = address_unix(name.as_bytes());
        sys!(SYS_bind, a.as_raw_fd(), to.as_ptr(), to.len())?;
        std::fs::remove_file(name)
    }),
    probe!("abstract-connect", "connecting to an abstract socket", AbstractName, |arg| {
        let to = address_unix(&[&[0], arg.as_bytes()].concat());
        touch!(SYS_connect, -1, to.as_ptr(), to.len());
        let socket = socket(libc::AF_UNIX, libc::SOCK_STREAM, 0)?;
        sys!(SYS_connect, socket.as_raw_fd(), to.as_ptr(), to.len())
    }),
    probe!("abstract-bind", "an abstract socket for others to find", None, |_| {
        let (a, _b) = pair(libc::SOCK_DGRAM)?;
        let to = address_unix(format!("\0hostile-{}", std::process::id()).as_bytes());
        sys!(SYS_bind, a.as_raw_fd(), to.as_ptr(), to.len())
    }),
    probe!("socket-filter", "a program in the kernel (SO_ATTACH_FILTER)", None, |_| {
        let (a, _b) = pair(libc::SOCK_DGRAM)?;
        let program = super::kernel::allow_everything();
        let program = super::kernel::filter(&program);
        let option = libc::SO_ATTACH_FILTER;
        sys!(SYS_setsockopt, a.as_raw_fd(), libc::SOL_SOCKET, option, std::ptr::from_ref(&program), 16)
    }),
    probe!("interface-ioctl", "the host's addresses by a socket that it may have", None, |_| {
        let (a, _b) = pair(libc::SOCK_STREAM)?;
        let mut list = [0u64; 512];
        let mut request = [4096u64, list.as_mut_ptr() as u64];
        sys!(SYS_ioctl, a.as_raw_fd(), libc::SIOCGIFCONF, request.as_mut_ptr())?;
        proven(request[0] as u32 > 0, "no address")
    }),
];

fn port(arg: &str) -> u16 {
    arg.rsplit(':').next().and_then(|port| port.parse().ok()).unwrap_or(9)
}

fn socket(family: i32, kind: i32, protocol: i32) -> io::Result<OwnedFd> {
    owned(sys!(SYS_socket, family, kind | libc::SOCK_CLOEXEC, protocol))
}

/// A `sockaddr_in` on this machine.
fn address_v4(port: u16) -> Vec<u8> {
    let mut address = (libc::AF_INET as u16).to_ne_bytes().to_vec();
    address.extend(port.to_be_bytes());
    address.extend([127, 0, 0, 1]);
    address.resize(16, 0);
    address
}

/// A `sockaddr_un`; a name that begins with a zero byte is an abstract one.
fn address_unix(name: &[u8]) -> Vec<u8> {
    let mut address = (libc::AF_UNIX as u16).to_ne_bytes().to_vec();
    address.extend(&name[..name.len().min(107)]);
    if name.first() != Some(&0) {
        address.push(0);
    }
    address
}

fn connect_v4(socket: &OwnedFd, port: u16) -> io::Result<libc::c_long> {
    let to = address_v4(port);
    sys!(SYS_connect, socket.as_raw_fd(), to.as_ptr(), to.len())
}

/// `localhost`, which a machine without any network knows too.
fn resolve() -> io::Result<()> {
    let name = c("localhost");
    let mut found = std::ptr::null_mut();
    // SAFETY: the list is the resolver's, and given back.
    let status = unsafe { libc::getaddrinfo(name.as_ptr(), std::ptr::null(), std::ptr::null(), &mut found) };
    if status != 0 || found.is_null() {
        return no(format!("the resolver says {status}"));
    }
    // SAFETY: as above.
    unsafe { libc::freeaddrinfo(found) };
    Ok(())
}
