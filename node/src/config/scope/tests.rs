//! Scopes: what is refused, what they allow, and that no combination of two allows more than either.

use super::net::mask;
use super::*;
use proptest::prelude::*;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

fn net(text: &str) -> NetScope {
    NetScope::parse(text).expect(text)
}

#[test]
fn paths_are_matched_by_whole_components() {
    let data = PathScope::parse("/srv/data").expect("a path");
    for inside in ["/srv/data", "/srv/data/a", "/srv/data/a/b.txt"] {
        assert!(data.allows(Path::new(inside)), "{inside}");
    }
    for outside in
        ["/srv", "/srv/database", "/srv/data/../etc", "/srv/data//x", "/srv/data/", "srv/data", "/", ""]
    {
        assert!(!data.allows(Path::new(outside)), "{outside}");
    }
}

#[test]
fn paths_that_are_never_given_are_no_scopes() {
    for text in [
        "/",
        "//",
        "relative",
        "/a/../b",
        "/a/./b",
        "/a//b",
        "/a/",
        "/..",
        "/proc",
        "/proc/self/mem",
        "/sys/kernel",
        "/dev",
        "/dev/null",
        "/a\0b",
        "/a\nb",
    ] {
        assert!(Scope::parse(Permission::FsRead, text).is_err(), "{text:?}");
    }
    for text in ["/procfs", "/devices/x", "/system", "/srv/proc", "/a..b/...", "/a b/ü"] {
        assert!(Scope::parse(Permission::FsRead, text).is_ok(), "{text:?}");
    }
}

#[test]
fn names_are_matched_by_whole_labels() {
    let below = net("*.example.com:443");
    assert!(below.allows_name("api.example.com", 443) && below.allows_name("A.B.Example.COM.", 443));
    for (host, port) in [
        ("badexample.com", 443),
        ("example.com", 443),
        (".example.com", 443),
        ("api.example.com", 80),
        ("api.example.com.evil.org", 443),
    ] {
        assert!(!below.allows_name(host, port), "{host}:{port}");
    }
    let one = net("Api.example.com:*");
    assert!(one.allows_name("api.example.com", 1) && !one.allows_name("x.api.example.com", 1));
    assert!(!one.allows_name("api.example.com", 0));
}

#[test]
fn a_name_never_opens_an_inner_address_and_an_address_does() {
    let inner = [
        "127.0.0.1:80",
        "10.1.2.3:80",
        "172.16.0.1:80",
        "192.168.1.1:80",
        "169.254.169.254:80",
        "100.64.0.1:80",
        "0.0.0.0:80",
        "0.1.2.3:80",
        "224.0.0.1:80",
        "255.255.255.255:80",
        "240.0.0.1:80",
        "[::1]:80",
        "[::]:80",
        "[::127.0.0.1]:80",
        "[fe80::1]:80",
        "[fec0::1]:80",
        "[fd00:ec2::254]:80",
        "[ff02::1]:80",
        "[::ffff:127.0.0.1]:80",
        "[::ffff:169.254.169.254]:80",
        "[64:ff9b::a9fe:a9fe]:80",
        "[64:ff9b:1::1]:80",
        "[2002:7f00:1::]:80",
        "[2001:0:1::1]:80",
    ];
    for text in inner {
        let addr: SocketAddr = text.parse().expect(text);
        for name in ["metadata.example.com:80", "*.example.com:*", "localhost:*"] {
            assert!(!net(name).allows_addr(addr), "{name} opened {text}");
        }
        let own = match addr.ip() {
            IpAddr::V4(v4) => net(&format!("{v4}:80")),
            IpAddr::V6(v6) => net(&format!("[{v6}]:80")),
        };
        assert!(own.allows_addr(addr), "{own} is explicit");
        assert!(!own.allows_addr(SocketAddr::new(addr.ip(), 81)));
    }
    for text in [
        "1.1.1.1:80",
        "172.32.0.1:80",
        "100.128.0.1:80",
        "[2606:4700::1]:80",
        "[::ffff:1.1.1.1]:80",
        "[64:ff9b::101:101]:80",
    ] {
        assert!(net("a.example.com:80").allows_addr(text.parse().expect(text)), "{text}");
    }
}

#[test]
fn an_address_written_as_a_name_is_judged_as_an_address() {
    assert!(net("10.0.0.0/8:80").allows_name("10.9.8.7", 80));
    assert!(
        net("[fd00::/8]:80").allows_name("[fd00::1]", 80) && net("[fd00::/8]:80").allows_name("fd00::1", 80)
    );
    assert!(!net("*.com:*").allows_name("127.0.0.1", 80));
    // What resolvers of the C library take for addresses is not a name.
    for host in
        ["127.1", "2130706433", "0x7f000001", "0177.0.0.1", "a.1", "", ".", "a..b", "a b", "-a.b", "[::1"]
    {
        assert!(
            !net("*.com:*").allows_name(host, 80) && NetScope::parse(&format!("{host}:80")).is_err(),
            "{host:?}"
        );
    }
    assert!(
        net("127.0.0.1:80").allows_addr("[::ffff:127.0.0.1]:80".parse().expect("an address")),
        "two forms, one address"
    );
    assert!(
        !net("[::/0]:*").allows_addr("[::ffff:127.0.0.1]:80".parse().expect("an address")),
        "that one is IPv4"
    );
}

#[test]
fn destinations_that_could_be_misread_are_refused() {
    for text in [
        "example.com",
        "example.com:",
        "example.com:0",
        "example.com:65536",
        "example.com:+1",
        "*:80",
        "*.:80",
        "a.*.com:80",
        "10.0.0.1/8:80",
        "10.0.0.0/33:80",
        "10.0.0.0/:80",
        "10.0.0.0/-1:80",
        "::1:80",
        "[10.0.0.1]:80",
        "fd00::/8:80",
        "[::ffff:0.0.0.0/96]:80",
        "http://a.com:80",
        "a.com/x:80",
        "user@a.com:80",
        "a.com.:80",
        ":80",
        "[]:80",
        "ü.com:80",
    ] {
        assert!(NetScope::parse(text).is_err(), "{text:?}");
    }
}

#[test]
fn scopes_of_other_permissions_are_exact_words() {
    assert!(Scope::parse(Permission::EnvRead, "LANG_2").is_ok());
    for text in ["", "*", "A*", "1A", "A=B", "A B"] {
        assert!(Scope::parse(Permission::EnvRead, text).is_err(), "{text:?}");
    }
    assert!(Scope::parse(Permission::MessageSend, "node-1.x_y").is_ok());
    assert!(Scope::parse(Permission::MessageSend, "a b").is_err());
    assert!(Scope::parse(Permission::CommandRegister, "kv").is_ok());
    assert!(Scope::parse(Permission::CommandRegister, "k v").is_err());
    assert!(Scope::parse(Permission::Random, "x").is_err());
}

#[test]
fn containment_goes_by_meaning() {
    let scope = |permission, text| Scope::parse(permission, text).expect(text);
    for (permission, wide, narrow) in [
        (Permission::FsRead, "/srv", "/srv/data"),
        (Permission::NetConnect, "10.0.0.0/8:*", "10.1.0.0/16:80"),
        (Permission::NetConnect, "*.example.com:443", "a.b.example.com:443"),
        (Permission::NetConnect, "*.example.com:443", "*.b.example.com:443"),
        (Permission::NetConnect, "[fd00::/8]:1", "[fd00::7]:1"),
        (Permission::NetConnect, "10.0.0.0/8:80", "[::ffff:10.0.0.1]:80"),
    ] {
        let (wide, narrow) = (scope(permission, wide), scope(permission, narrow));
        assert!(wide.contains(&narrow) && !narrow.contains(&wide), "{wide} {narrow}");
    }
    for (permission, a, b) in [
        (Permission::FsRead, "/srv/data", "/srv/database"),
        (Permission::NetConnect, "*.example.com:443", "badexample.com:443"),
        (Permission::NetConnect, "*.example.com:443", "*.example.com:80"),
        (Permission::NetConnect, "*.com:*", "10.0.0.1:80"),
        (Permission::NetConnect, "0.0.0.0/0:*", "[::/0]:*"),
        (Permission::EnvRead, "A", "AB"),
    ] {
        assert_eq!(scope(permission, a).meet(&scope(permission, b)), None, "{a} {b}");
    }
    let (a, b) =
        (scope(Permission::NetConnect, "10.0.0.0/8:80"), scope(Permission::NetConnect, "10.1.0.0/16:*"));
    assert_eq!(
        a.meet(&b),
        Some(scope(Permission::NetConnect, "10.1.0.0/16:80")),
        "the narrower of each part"
    );
}

fn paths() -> impl Strategy<Value = String> {
    proptest::collection::vec("[ab]{1,2}", 1..4).prop_map(|parts| format!("/{}", parts.join("/")))
}

fn destinations() -> impl Strategy<Value = String> {
    let port = prop_oneof![Just("*".to_owned()), (1u16..4).prop_map(|port| port.to_string())];
    let names = proptest::collection::vec("[ab]", 1..4).prop_map(|labels| labels.join("."));
    let host = prop_oneof![
        names.clone(),
        names.prop_map(|name| format!("*.{name}")),
        (0u32.., 0u8..=32)
            .prop_map(|(bits, n)| format!("{}/{n}", mask(Ipv4Addr::from(bits & 0xe000_00ff).into(), n))),
        (0u32.., 0u8..=128).prop_map(|(bits, n)| {
            format!("[{}/{n}]", mask(Ipv6Addr::from(u128::from(bits) << 96 | 1).into(), n))
        }),
    ];
    (host, port).prop_map(|(host, port)| format!("{host}:{port}"))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn what_two_scopes_share_is_never_more_than_either(a in paths(), b in paths(), probe in paths()) {
        let scope = |text: &str| Scope::parse(Permission::FsRead, text).expect("a path");
        let (a, b) = (scope(&a), scope(&b));
        prop_assert_eq!(a.meet(&b), b.meet(&a));
        let allows = |scope: &Scope| matches!(scope, Scope::Path(path) if path.allows(Path::new(&probe)));
        let both = allows(&a) && allows(&b);
        prop_assert_eq!(a.meet(&b).is_some_and(|met| allows(&met)), both);
        if a.contains(&b) {
            prop_assert!(!allows(&b) || allows(&a));
        }
    }

    #[test]
    fn what_two_destinations_share_is_never_more_than_either(
        a in destinations(), b in destinations(), labels in proptest::collection::vec("[ab]", 1..5), bits in 0u32.., port in 1u16..4,
    ) {
        let scope = |text: &str| NetScope::parse(text).expect("a destination");
        let (a, b) = (scope(&a), scope(&b));
        let met = a.meet(&b);
        prop_assert_eq!(&met, &b.meet(&a));
        let name = labels.join(".");
        let both = a.allows_name(&name, port) && b.allows_name(&name, port);
        prop_assert_eq!(met.as_ref().is_some_and(|met| met.allows_name(&name, port)), both);
        for ip in [IpAddr::from(Ipv4Addr::from(bits & 0xe000_00ff)), Ipv6Addr::from(u128::from(bits) << 96 | 1).into()] {
            let addr = SocketAddr::new(ip, port);
            if met.as_ref().is_some_and(|met| met.allows_addr(addr)) {
                prop_assert!(a.allows_addr(addr) && b.allows_addr(addr));
            }
            if a.is_address() && b.is_address() && a.allows_addr(addr) && b.allows_addr(addr) {
                prop_assert!(met.as_ref().is_some_and(|met| met.allows_addr(addr)));
            }
        }
    }

    #[test]
    fn a_scope_reads_back_as_it_is_written(text in "[a-c.:/\\[\\]*0-9]{0,24}") {
        for permission in Permission::ALL {
            if let Ok(scope) = Scope::parse(permission, &text) {
                prop_assert_eq!(Scope::parse(permission, &scope.to_string()), Ok(scope));
            }
        }
    }
}
