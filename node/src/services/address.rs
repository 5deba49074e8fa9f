//! What a host name and an address are before anybody is called: pure functions, `&str` and `IpAddr` in, an answer out.
//! A name may resolve to anything its owner likes, the machine of this node included; [`is_public`] tells which addresses
//! belong to the internet at large. It knows the registries of IANA, not this machine: an own public address is public.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Longest host name, bytes.
const MAX_HOST: usize = 253;

/// A host as a scope and a resolver understand it: an address in its one spelling, or a lower-case name without a final dot.
///
/// `None` for what is neither. A name whose last label is a number is refused too: resolvers take `127.1` or `2130706433`
/// for addresses, and whoever reads a scope does not.
pub fn host(text: &str) -> Option<String> {
    if text.is_empty() || text.len() > MAX_HOST {
        return None;
    }
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']'));
    if let Ok(ip) = bare.unwrap_or(text).parse::<IpAddr>() {
        // Brackets are for IPv6 alone.
        return (bare.is_none() || ip.is_ipv6()).then(|| ip.to_canonical().to_string());
    }
    let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    let label = |label: &str| (1..=63).contains(&label.len()) && label.bytes().all(plain);
    let number = |label: &str| {
        let hex = label.strip_prefix("0x").is_some_and(|rest| rest.bytes().all(|b| b.is_ascii_hexdigit()));
        hex || label.bytes().all(|b| b.is_ascii_digit())
    };
    let last = name.rsplit('.').next().unwrap_or_default();
    (name.split('.').all(label) && !number(last)).then_some(name)
}

/// The address that is really meant: `::ffff:127.0.0.1` is `127.0.0.1`. What is checked and what is dialed is this one.
pub fn canonical(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}

/// True for addresses of the internet at large: not this machine, not its networks, nothing reserved, nothing that carries
/// another address inside and leads to it.
pub fn is_public(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(ip) => is_public_v4(ip),
        IpAddr::V6(ip) => is_public_v6(ip),
    }
}

/// IPv4 blocks that are not the internet at large, as network and prefix length.
const V4: [(Ipv4Addr, u32); 15] = [
    (Ipv4Addr::new(0, 0, 0, 0), 8), // "this network"; Linux connects 0.0.0.0 to itself
    (Ipv4Addr::new(10, 0, 0, 0), 8), // private
    (Ipv4Addr::new(100, 64, 0, 0), 10), // carrier-grade NAT
    (Ipv4Addr::new(127, 0, 0, 0), 8), // loopback
    (Ipv4Addr::new(168, 63, 129, 16), 32), // looks public, and is the host's agent in one large cloud
    (Ipv4Addr::new(169, 254, 0, 0), 16), // link-local; clouds give out credentials at 169.254.169.254
    (Ipv4Addr::new(172, 16, 0, 0), 12), // private
    (Ipv4Addr::new(192, 0, 0, 0), 24), // protocol assignments
    (Ipv4Addr::new(192, 0, 2, 0), 24), // documentation
    (Ipv4Addr::new(192, 88, 99, 0), 24), // relays from IPv6, given up
    (Ipv4Addr::new(192, 168, 0, 0), 16), // private
    (Ipv4Addr::new(198, 18, 0, 0), 15), // benchmarks
    (Ipv4Addr::new(198, 51, 100, 0), 24), // documentation
    (Ipv4Addr::new(203, 0, 113, 0), 24), // documentation
    (Ipv4Addr::new(224, 0, 0, 0), 3), // multicast, reserved, broadcast
];

fn is_public_v4(ip: Ipv4Addr) -> bool {
    let within =
        |(network, prefix): &(Ipv4Addr, u32)| (ip.to_bits() ^ network.to_bits()) >> (32 - prefix) == 0;
    !V4.iter().any(within)
}

/// IPv6 blocks inside 2000::/3 that are not the internet at large.
const V6: [(Ipv6Addr, u32); 4] = [
    (Ipv6Addr::new(0x2001, 0, 0, 0, 0, 0, 0, 0), 23), // protocol assignments; Teredo, which carries IPv4 inside
    (Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0), 32), // documentation
    (Ipv6Addr::new(0x2002, 0, 0, 0, 0, 0, 0, 0), 16), // 6to4, which carries IPv4 inside
    (Ipv6Addr::new(0x3fff, 0, 0, 0, 0, 0, 0, 0), 20), // documentation
];

fn is_public_v6(ip: Ipv6Addr) -> bool {
    // Networks without IPv4 reach it through this prefix; what counts is who answers.
    if let [0x64, 0xff9b, 0, 0, 0, 0, high, low] = ip.segments() {
        return is_public_v4(Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low)));
    }
    let within =
        |(network, prefix): &(Ipv6Addr, u32)| (ip.to_bits() ^ network.to_bits()) >> (128 - prefix) == 0;
    // Everything outside 2000::/3 is loopback, unspecified, link-local, unique local, multicast, or not given out.
    ip.segments()[0] >> 13 == 1 && !V6.iter().any(within)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn public(text: &str) -> bool {
        is_public(text.parse().unwrap_or_else(|e| panic!("{text}: {e}")))
    }

    #[test]
    fn addresses_of_the_internet_are_public() {
        for ip in [
            "1.1.1.1",
            "8.8.8.8",
            "9.255.255.255",
            "11.0.0.0",
            "100.63.255.255",
            "100.128.0.0",
            "126.255.255.255",
            "128.0.0.1",
            "168.63.129.15",
            "169.253.255.255",
            "169.255.0.0",
            "172.15.255.255",
            "172.32.0.0",
            "192.0.1.1",
            "192.167.255.255",
            "192.169.0.0",
            "198.17.255.255",
            "198.20.0.0",
            "223.255.255.255",
            "2606:4700::1111",
            "2a00:1450:4001::1",
            "2001:200::1",
            "64:ff9b::8.8.8.8",
            "::ffff:8.8.8.8",
        ] {
            assert!(public(ip), "{ip}");
        }
    }

    #[test]
    fn this_machine_its_networks_and_what_leads_to_them_are_not() {
        for ip in [
            "0.0.0.0",
            "0.1.2.3",
            "10.0.0.1",
            "10.255.255.255",
            "100.64.0.1",
            "100.100.100.200",
            "100.127.255.255",
            "127.0.0.1",
            "127.255.255.255",
            "168.63.129.16",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.170",
            "192.0.2.1",
            "192.88.99.1",
            "192.168.0.1",
            "198.18.0.1",
            "198.19.255.255",
            "198.51.100.7",
            "203.0.113.7",
            "224.0.0.1",
            "239.255.255.255",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::ffff:127.0.0.1",
            "::ffff:169.254.169.254",
            "::127.0.0.1",
            "64:ff9b::10.0.0.1",
            "64:ff9b::7f00:1",
            "64:ff9b:1::8.8.8.8",
            "100::1",
            "fc00::1",
            "fd12:3456::1",
            "fe80::1",
            "fec0::1",
            "ff02::1",
            "2001::1",
            "2001:db8::1",
            "2002:7f00:1::",
            "3fff::1",
            "4000::1",
        ] {
            assert!(!public(ip), "{ip}");
        }
    }

    #[test]
    fn one_host_has_one_spelling() {
        for (text, meant) in [
            ("Example.COM", "example.com"),
            ("example.com.", "example.com"),
            ("localhost", "localhost"),
            ("_srv.a-b.example", "_srv.a-b.example"),
            ("xn--bcher-kva.example", "xn--bcher-kva.example"),
            ("1.2.3.4", "1.2.3.4"),
            ("[::1]", "::1"),
            ("0:0:0:0:0:0:0:1", "::1"),
            ("::ffff:127.0.0.1", "127.0.0.1"),
            ("[::FFFF:7f00:1]", "127.0.0.1"),
        ] {
            assert_eq!(host(text).as_deref(), Some(meant), "{text}");
        }
    }

    #[test]
    fn what_is_no_host_is_none() {
        let long = format!("{}.example", "a".repeat(64));
        let longer = "a.".repeat(127);
        for text in [
            "",
            ".",
            "..",
            "a..b",
            ".a",
            " a",
            "a b",
            "a\0",
            "a/b",
            "a:80",
            "user@a",
            "fe80::1%eth0",
            "[1.2.3.4]",
            "[::1",
            "127.1",
            "0x7f.1",
            "2130706433",
            "0x7f000001",
            "1.2.3.4.",
            "1.2.3.4.5",
            "a.1",
            "bücher.example",
            &long,
            &longer,
        ] {
            assert_eq!(host(text), None, "{text:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn a_host_is_its_own_spelling_and_no_text_panics(text: String) {
            if let Some(meant) = host(&text) {
                proptest::prop_assert_eq!(host(&meant), Some(meant));
            }
        }

        #[test]
        fn wrapping_an_address_in_ipv6_changes_nothing(bits: u32) {
            let ip = Ipv4Addr::from_bits(bits);
            proptest::prop_assert_eq!(is_public(ip.to_ipv6_mapped().into()), is_public(ip.into()));
            let [a, b, c, d] = ip.octets();
            let (high, low) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
            let nat64 = Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, high, low);
            proptest::prop_assert_eq!(is_public(nat64.into()), is_public(ip.into()));
            // The standard library knows some of these too; nothing it calls special is public here.
            let special = ip.is_private() || ip.is_loopback() || ip.is_link_local() || ip.is_multicast()
                || ip.is_broadcast() || ip.is_documentation() || ip.is_unspecified();
            proptest::prop_assert!(!(special && is_public(ip.into())));
        }
    }
}
