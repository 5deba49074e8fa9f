//! Destinations: names, addresses and blocks of them, with a port. A name is chosen by whoever asks, and what it resolves to by
//! whoever owns it; neither is trusted, so the two are judged one after the other and never stand for each other.

use super::{bad, BadScope};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The host part of a destination.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum NetHost {
    /// One name, lower case.
    Name(String),
    /// Every name below this one; not the name itself.
    Suffix(String),
    /// Addresses whose first `bits` bits are these.
    Block { first: IpAddr, bits: u8 },
}

/// A destination: `host:port`, `*.suffix:port`, `IP:port`, `CIDR:port`, `[v6]:port`, `[v6/bits]:port`; the port may be `*`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NetScope {
    host: NetHost,
    /// `None` is every port.
    port: Option<u16>,
}

const NET_HELP: &str =
    "write host:port, *.suffix:port, IP:port, IP/bits:port, [v6]:port or [v6/bits]:port; '*' is every port";

impl NetScope {
    pub(super) fn parse(text: &str) -> Result<NetScope, BadScope> {
        let Some((host, port)) = text.rsplit_once(':') else {
            return bad("a destination without a port", NET_HELP);
        };
        let port = match port {
            "*" => None,
            digits if digits.bytes().all(|b| b.is_ascii_digit()) => match digits.parse::<u16>() {
                Ok(port) if port > 0 => Some(port),
                Ok(_) | Err(_) => return bad("a port from 1 to 65535, or '*'", NET_HELP),
            },
            _ => return bad("a port from 1 to 65535, or '*'", NET_HELP),
        };
        let host = if let Some(inner) = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
            NetHost::block(inner, true)?
        } else if host.contains('/') || host.parse::<Ipv4Addr>().is_ok() {
            NetHost::block(host, false)?
        } else if let Some(suffix) = host.strip_prefix("*.") {
            NetHost::Suffix(name(suffix).ok_or(BadScope { what: "not a host name".into(), help: NET_HELP })?)
        } else {
            NetHost::Name(name(host).ok_or(BadScope { what: "not a host name".into(), help: NET_HELP })?)
        };
        Ok(NetScope { host, port })
    }

    /// True if a connection to this host, as the plugin wrote it, may be tried. A name still has to resolve to an address that
    /// [`Self::allows_addr`]; an address written as text is judged as an address.
    pub fn allows_name(&self, host: &str, port: u16) -> bool {
        if !self.allows_port(port) {
            return false;
        }
        let inner = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        if let Ok(address) = inner.parse::<IpAddr>() {
            return matches!(self.host, NetHost::Block { .. })
                && self.allows_addr(SocketAddr::new(address, port));
        }
        let Some(host) = name(host.strip_suffix('.').unwrap_or(host)) else { return false };
        match &self.host {
            NetHost::Name(own) => *own == host,
            NetHost::Suffix(suffix) => below(&host, suffix),
            NetHost::Block { .. } => false,
        }
    }

    /// True if this address, which a name resolved to or which was asked for itself, may be connected to. A name never opens an
    /// address inside the machine, its network or its provider: whoever owns the name chooses what it resolves to.
    pub fn allows_addr(&self, resolved: SocketAddr) -> bool {
        let address = resolved.ip().to_canonical();
        self.allows_port(resolved.port())
            && match &self.host {
                NetHost::Name(_) | NetHost::Suffix(_) => is_public(address),
                NetHost::Block { first, bits } => in_block(*first, *bits, address),
            }
    }

    /// True if the scope is an address or a block of them, not a name.
    pub fn is_address(&self) -> bool {
        matches!(self.host, NetHost::Block { .. })
    }

    fn allows_port(&self, port: u16) -> bool {
        port > 0 && self.port.is_none_or(|own| own == port)
    }

    pub(super) fn meet(&self, other: &NetScope) -> Option<NetScope> {
        let port = match (self.port, other.port) {
            (None, port) | (port, None) => port,
            (Some(a), Some(b)) if a == b => Some(a),
            (Some(_), Some(_)) => return None,
        };
        Some(NetScope { host: self.host.meet(&other.host)?, port })
    }
}

impl NetHost {
    fn block(text: &str, v6: bool) -> Result<NetHost, BadScope> {
        let (address, bits) = match text.split_once('/') {
            None => (text, None),
            Some((address, bits)) => (address, Some(bits)),
        };
        let Ok(written) = address.parse::<IpAddr>() else { return bad("not an address", NET_HELP) };
        if written.is_ipv6() != v6 {
            return bad("an IPv6 address without brackets, or an IPv4 address in them", NET_HELP);
        }
        let first = written.to_canonical();
        let most = if first.is_ipv4() { 32 } else { 128 };
        let bits = match bits {
            None => most,
            Some(_) if first.is_ipv4() && v6 => {
                return bad("a block of IPv4 addresses written as IPv6", "write it as IPv4");
            }
            Some(bits) if bits.len() <= 3 && bits.bytes().all(|b| b.is_ascii_digit()) => {
                match bits.parse::<u8>() {
                    Ok(bits) if bits <= most => bits,
                    Ok(_) | Err(_) => return bad("more bits than the address has", NET_HELP),
                }
            }
            Some(_) => return bad("not a number of bits", NET_HELP),
        };
        if mask(first, bits) != first {
            return bad(
                "an address with bits set behind its block",
                "write the block's first address, like 10.0.0.0/8",
            );
        }
        Ok(NetHost::Block { first, bits })
    }

    fn meet(&self, other: &NetHost) -> Option<NetHost> {
        match (self, other) {
            (NetHost::Name(a), NetHost::Name(b)) => (a == b).then(|| self.clone()),
            (NetHost::Name(a), NetHost::Suffix(s)) => below(a, s).then(|| self.clone()),
            (NetHost::Suffix(s), NetHost::Name(b)) => below(b, s).then(|| other.clone()),
            (NetHost::Suffix(a), NetHost::Suffix(b)) => {
                if a == b || below(b, a) {
                    Some(other.clone())
                } else {
                    below(a, b).then(|| self.clone())
                }
            }
            (NetHost::Block { first: a, bits: n }, NetHost::Block { first: b, bits: m }) => {
                if n <= m {
                    in_block(*a, *n, *b).then(|| other.clone())
                } else {
                    in_block(*b, *m, *a).then(|| self.clone())
                }
            }
            // A name and an address have nothing in common: what a name resolves to is nobody's promise.
            (NetHost::Name(_) | NetHost::Suffix(_), NetHost::Block { .. })
            | (NetHost::Block { .. }, NetHost::Name(_) | NetHost::Suffix(_)) => None,
        }
    }
}

impl fmt::Display for NetScope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            NetHost::Name(name) => write!(f, "{name}")?,
            NetHost::Suffix(suffix) => write!(f, "*.{suffix}")?,
            NetHost::Block { first: IpAddr::V4(first), bits: 32 } => write!(f, "{first}")?,
            NetHost::Block { first: IpAddr::V4(first), bits } => write!(f, "{first}/{bits}")?,
            NetHost::Block { first: IpAddr::V6(first), bits: 128 } => write!(f, "[{first}]")?,
            NetHost::Block { first: IpAddr::V6(first), bits } => write!(f, "[{first}/{bits}]")?,
        }
        match self.port {
            Some(port) => write!(f, ":{port}"),
            None => f.write_str(":*"),
        }
    }
}

/// A host name in lower case: labels of letters, digits, '-' and '_'. A last label that begins with a digit makes none, because
/// resolvers take `127.1`, `2130706433` and `0x7f000001` for addresses.
fn name(text: &str) -> Option<String> {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let last = text.rsplit('.').next().unwrap_or_default();
    let number = last.as_bytes().first().is_some_and(u8::is_ascii_digit);
    (text.len() <= 253 && text.split('.').all(label) && !number).then(|| text.to_ascii_lowercase())
}

/// True if the name has more labels in front of these.
fn below(name: &str, suffix: &str) -> bool {
    name.strip_suffix(suffix).is_some_and(|front| front.len() > 1 && front.ends_with('.'))
}

pub(super) fn mask(address: IpAddr, bits: u8) -> IpAddr {
    match address {
        IpAddr::V4(address) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(bits.min(32))).unwrap_or(0);
            Ipv4Addr::from(u32::from(address) & mask).into()
        }
        IpAddr::V6(address) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(bits.min(128))).unwrap_or(0);
            Ipv6Addr::from(u128::from(address) & mask).into()
        }
    }
}

fn in_block(first: IpAddr, bits: u8, address: IpAddr) -> bool {
    first.is_ipv4() == address.is_ipv4() && mask(address, bits) == first
}

/// True if an address is somebody else's on the internet: not this machine, its networks, its provider's metadata, a group, or
/// an IPv6 address that stands for such an IPv4 one.
fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            let [a, b, c, _] = v4.octets();
            !(v4.is_loopback()
                || v4.is_private()
                || v4.is_link_local()
                || v4.is_multicast()
                || a == 0                               // this network
                || a >= 240                             // reserved, broadcast
                || (a == 100 && (64..128).contains(&b)) // carriers' own
                || (a == 192 && b == 0 && c == 0)       // protocol assignments
                || (a == 198 && (18..20).contains(&b))) // benchmarks
        }
        IpAddr::V6(v6) => {
            let part = v6.segments();
            let inner = |high: u16, low: u16| {
                let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
                is_public(Ipv4Addr::new(a, b, c, d).into())
            };
            match part {
                // Unspecified, loopback, mapped and compatible forms, all of them local uses.
                [0, 0, 0, 0, 0, 0xffff, high, low] => inner(high, low),
                [0, 0, 0, 0, ..] => false,
                // Translation to IPv4, and the local form of it.
                [0x64, 0xff9b, 0, 0, 0, 0, high, low] => inner(high, low),
                [0x64, 0xff9b, ..] => false,
                [0x2002, high, low, ..] => inner(high, low),
                [0x2001, 0, ..] => false, // Teredo carries an IPv4 address in disguise
                [first, ..] => (0x2000..0x4000).contains(&first), // what is assigned for everybody
            }
        }
    }
}
