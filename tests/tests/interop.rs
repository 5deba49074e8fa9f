//! At home among real nodes of 0.2.0 and 0.4.0: messages, probes, lists of peers, delivery, and relaying in every seat. What passed is
//! printed as a row of the matrix; `cargo xtask interop` writes it to `docs/interop.md`.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};
use thenodes_tests::upstream::{free_port, lay_out, Upstream};
use thenodes_tests::{Spec, TestNode, PATIENCE};

const RELAY: &str = "[network.relay]\nenabled = true\nstore_forward = true\n";
/// Probes come often, and silence is noticed soon.
const LIVELY: &str = "[network.connection_policy]\nheartbeat_interval_ms = 200\nheartbeat_timeout_ms = 800\n";

#[derive(Clone, Copy)]
enum Release {
    Old,
    New,
}

impl Release {
    const BOTH: [Release; 2] = [Release::Old, Release::New];

    fn word(self) -> &'static str {
        match self {
            Release::Old => "0.2.0",
            Release::New => "0.4.0",
        }
    }

    fn start(self, id: &str, port: u16, bootstrap: &[u16], more: &str) -> Upstream {
        self.start_in(lay_out(id, port, bootstrap, false, more))
    }

    fn start_in(self, dir: tempfile::TempDir) -> Upstream {
        match self {
            Release::Old => Upstream::start_02(dir),
            Release::New => Upstream::start(dir),
        }
    }
}

/// A row of the matrix.
fn row(what: &str, with: &str) {
    println!("INTEROP {what}\t{with}");
}

fn ours(id: &str, bootstrap: &[u16]) -> Spec {
    let nodes: Vec<String> = bootstrap.iter().map(|port| format!("\"127.0.0.1:{port}\"")).collect();
    Spec::new(id).with("courier").top(&format!("bootstrap_nodes = [{}]", nodes.join(", ")))
}

/// Waits until a node has this peer.
#[track_caller]
fn has(node: &TestNode, id: &str) {
    let begun = Instant::now();
    loop {
        let peers = node.json(&["peers"]);
        if peers["peers"].as_array().is_some_and(|list| list.iter().any(|peer| peer["node_id"] == id)) {
            return;
        }
        assert!(begun.elapsed() < PATIENCE, "{id} never came: {peers}");
        std::thread::park_timeout(Duration::from_millis(20));
    }
}

/// Waits until the courier's book has this line.
#[track_caller]
fn got(node: &TestNode, line: &str) {
    let begun = Instant::now();
    loop {
        let book = node.prompt("courier", "got").unwrap_or_default();
        if book.lines().any(|entry| entry == line) {
            return;
        }
        assert!(begun.elapsed() < PATIENCE, "no {line:?} in:\n{book}");
        std::thread::park_timeout(Duration::from_millis(20));
    }
}

fn text(from: &str, to: &str, text: &str) -> String {
    format!(
        r#"{{"from":"{from}","to":"{to}","msg_type":{{"TEXT":"{text}"}},"payload":null,"realm":{{"name":"Test","version":"1.0"}}}}"#
    )
}

/// Handshake in both directions, TEXT, EXTENSION with JSON and with bytes, in both directions.
#[test]
fn each_release_dials_and_is_dialed_and_messages_of_every_kind_pass() {
    for release in Release::BOTH {
        for they_dial in [true, false] {
            let port = free_port();
            let (mut node, mut peer) = if they_dial {
                let node = ours("ours", &[]).with("echo").start();
                let peer = release.start("theirs", port, &[node.port], "");
                (node, peer)
            } else {
                let peer = release.start("theirs", port, &[], "");
                (ours("ours", &[port]).with("echo").start(), peer)
            };
            node.seen("app_handshake_success");
            peer.knows("ours");
            peer.say(&format!("send ours {}", text("theirs", "ours", "hello")));
            got(&node, "theirs: hello");
            peer.expect("EXTENSION"); // echo's answer, with a text as payload
            assert_eq!(node.prompt("courier", "send theirs back").as_deref(), Ok("ForwardedToTransport"));
            assert!(peer.expect("back").contains("TEXT"));
            for (payload, noted) in [
                (r#"{"type":"Json","value":{"k":[1,null]}}"#, r#"(json) {"k":[1,null]}"#),
                (r#"{"type":"Binary","value":[0,255]}"#, "(bytes) [0, 255]"),
            ] {
                peer.say(&format!(r#"send ours {{"from":"theirs","to":"ours","msg_type":{{"EXTENSION":{{"kind":"courier.note"}}}},"payload":{payload},"realm":null}}"#));
                got(&node, &format!("theirs: {noted}"));
            }
            for (order, value) in
                [(r#"json theirs {"k":[1,null]}"#, r#"{\"k\":[1,null]}"#), ("bytes theirs hi", "[104,105]")]
            {
                assert_eq!(node.prompt("courier", order).as_deref(), Ok("ForwardedToTransport"));
                let came = peer.expect("courier.note");
                assert!(came.contains(&format!(r#"\"value\":{value}"#)), "{came}");
            }
            let who = if they_dial { "they dial" } else { "we dial" };
            row(
                &format!("handshake; TEXT, EXTENSION with text, JSON and bytes, both directions; {who}"),
                release.word(),
            );
        }
    }
}

/// Mutual TLS, each trusting the other's key, whoever dials.
#[test]
fn each_release_and_we_trust_each_other_by_key_whoever_dials() {
    for release in Release::BOTH {
        for they_dial in [true, false] {
            let port = free_port();
            let nodes = if they_dial { vec![] } else { vec![format!("\"127.0.0.1:{port}\"")] };
            let node = Spec::encrypted("ours").with("courier").with("echo");
            let mut node = node.top(&format!("bootstrap_nodes = [{}]", nodes.join(", "))).start();
            let bootstrap = if they_dial { vec![node.port] } else { vec![] };
            let dir = lay_out("upstream", port, &bootstrap, true, "");
            let copy = |from: &Path, to: &Path| fs::copy(from, to).expect("copied");
            copy(&node.dir.path().join("pki/own/cert.pem"), &dir.path().join("pki/trusted/ours.pem"));
            fs::create_dir_all(node.dir.path().join("pki/trusted/certs")).expect("a directory");
            copy(
                &dir.path().join("pki/own/cert.pem"),
                &node.dir.path().join("pki/trusted/certs/upstream.pem"),
            );
            let mut peer = match release {
                Release::Old => Upstream::start_02(dir),
                Release::New => Upstream::start(dir),
            };
            let role = if they_dial { "inbound" } else { "outbound" };
            node.expect(&format!("TRUST role={role} decision=Accept reason=present-in-allowlist"));
            node.seen("app_handshake_success");
            peer.knows("ours");
            peer.say(&format!("send ours {}", text("upstream", "ours", "hello")));
            got(&node, "upstream: hello");
            peer.expect("EXTENSION");
            assert_eq!(node.prompt("courier", "send upstream back").as_deref(), Ok("ForwardedToTransport"));
            assert!(peer.expect("back").contains("TEXT"));
            let who = if they_dial { "they dial" } else { "we dial" };
            row(&format!("mutual TLS with allow-listed keys, TEXT, EXTENSION; {who}"), release.word());
        }
    }
}

/// Longer than the time after which a silent peer is dropped: 0.4 answers probes, and 0.2 is not expected to.
#[test]
fn no_release_is_dropped_for_silence_and_ours_is_not_dropped_by_theirs() {
    for release in Release::BOTH {
        let mut node = ours("ours", &[]).more(LIVELY).start();
        let lively = if matches!(release, Release::New) { LIVELY } else { "" };
        let mut peer = release.start("theirs", free_port(), &[node.port], lively);
        peer.knows("ours");
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(3) {
            std::thread::park_timeout(Duration::from_millis(100)); // time is what this test is about
        }
        peer.say(&format!("send ours {}", text("theirs", "ours", "still here")));
        got(&node, "theirs: still here");
        let said = node.heard();
        assert!(!said.contains("peer_unresponsive") && !said.contains("peer_disconnected"), "{said}");
        row("liveness, several times the timeout", release.word());
    }
}

#[test]
fn each_release_is_told_of_peers_when_it_asks() {
    for release in Release::BOTH {
        let known = ours("known", &[]).start();
        let node = ours("ours", &[known.port]).start();
        has(&node, "known");
        let mut peer = release.start("theirs", free_port(), &[node.port], "");
        peer.knows("ours");
        peer.say(r#"send ours {"from":"theirs","to":"ours","msg_type":{"PEER_REQUEST":{"want":4}},"payload":null,"realm":null}"#);
        let list = peer.expect("PEER_LIST");
        assert!(list.contains(&format!("127.0.0.1:{}", known.port)), "{list}");
        row("PEER_REQUEST answered with PEER_LIST", release.word());
    }
}

/// The other way round, to the end of it: what they tell is dialed.
#[test]
fn we_ask_each_release_for_peers_and_dial_those_that_it_tells_of() {
    for release in Release::BOTH {
        // They tell of addresses that they know and are not connected with: nobody is there yet.
        let (port, later) = (free_port(), free_port());
        let dir = lay_out("theirs", port, &[later], false, "");
        let path = dir.path().join("config.toml");
        let tells = fs::read_to_string(&path).expect("read").replace("enabled = false", "enabled = true");
        fs::write(&path, tells).expect("written");
        let mut peer = release.start_in(dir);
        let more = "[discovery]\nenabled = true\nrequest_interval_secs = 1\n";
        let mut node = ours("ours", &[port]).more(more).start();
        peer.knows("ours");
        node.seen("app_handshake_success");
        let begun = Instant::now();
        while !node.json(&["peers", "known"]).to_string().contains(&format!("127.0.0.1:{later}")) {
            assert!(begun.elapsed() < PATIENCE, "{} tells nothing", release.word());
            std::thread::park_timeout(Duration::from_millis(50));
        }
        let _third = ours("third", &[]).top(&format!("port = {later}")).start();
        has(&node, "third");
        row("PEER_REQUEST of ours answered by theirs, and what it tells is dialed", release.word());
    }
}

#[test]
fn reliable_and_ordered_messages_are_acknowledged_in_both_directions() {
    let node = ours("ours", &[]).start();
    let mut peer = Release::New.start("theirs", free_port(), &[node.port], "");
    peer.knows("ours");
    has(&node, "theirs");
    assert_eq!(node.prompt("courier", "reliable theirs one").as_deref(), Ok("AcknowledgedByPeer"));
    assert_eq!(node.prompt("courier", "ordered theirs k two").as_deref(), Ok("AcknowledgedByPeer"));
    assert_eq!(node.prompt("courier", "ordered theirs k three").as_deref(), Ok("AcknowledgedByPeer"));
    peer.say(&format!("deliver reliable ours - {}", text("theirs", "ours", "four")));
    assert!(peer.expect("\"deliver\"").contains("AcknowledgedByPeer"));
    for word in ["five", "six"] {
        peer.say(&format!("deliver ordered_reliable ours key {}", text("theirs", "ours", word)));
        assert!(peer.expect("\"deliver\"").contains("AcknowledgedByPeer"));
    }
    for word in ["four", "five", "six"] {
        got(&node, &format!("theirs: {word}"));
    }
    row("reliable and ordered delivery, both directions", "0.4.0");
}

#[test]
fn our_relay_stands_between_two_of_theirs_in_every_mix_of_releases() {
    let node = ours("relay", &[]).more(RELAY).start();
    let mut a = Release::New.start("new-a", free_port(), &[node.port], "");
    let mut b = Release::New.start("new-b", free_port(), &[node.port], "");
    let mut old = Release::Old.start("old", free_port(), &[node.port], "");
    for peer in [&mut a, &mut b, &mut old] {
        peer.knows("relay");
    }
    for id in ["new-a", "new-b", "old"] {
        has(&node, id);
    }
    a.say(&format!("deliver reliable new-b - {}", text("new-a", "new-b", "by delivery")));
    assert!(b.expect("by delivery").contains("TEXT"));
    let outcome = a.expect("\"deliver\"");
    assert!(outcome.contains("AcknowledgedByPeer"), "{outcome}");
    row("our relay between two of theirs, reliable, acknowledged end to end", "0.4.0 to 0.4.0");
    let old_frame = |to: &str, text: &str| {
        format!(
            r#"send relay {{"from":"old","to":"relay","msg_type":{{"RELAY_FWD":{{"to":"{to}","from":"old","sequence":1}}}},"payload":{{"type":"Text","value":"{text}"}},"realm":null}}"#
        )
    };
    old.say(&old_frame("new-a", "from the old"));
    // "from the old" in base64: 0.4 reads no other form.
    assert!(a.expect("RELAY_FWD").contains("ZnJvbSB0aGUgb2xk"));
    row("our relay turns the old form into the new", "0.2.0 to 0.4.0");
    // One of 0.2 is known as such two seconds after it came, when it says something.
    let (begun, mut n) = (Instant::now(), 1);
    loop {
        old.say(&format!("send relay {}", text("old", "relay", "x")));
        b.say(&format!(r#"send relay {{"from":"new-b","to":"relay","msg_type":{{"RELAY_FWD":{{"to":"old","from":"new-b","sequence":{n},"opaque_payload_b64":"ZnJvbSB0aGUgbmV3"}}}},"payload":null,"realm":null}}"#));
        let got = old.expect("RELAY_FWD");
        if got.contains("from the new") {
            break;
        }
        assert!(begun.elapsed() < PATIENCE, "{got}");
        n += 1;
    }
    row("our relay turns the new form into the old", "0.4.0 to 0.2.0");
}

/// A frame of one of 0.2, and one for it in its form, again and again until the relay has seen of which release it is.
#[test]
fn our_relay_stands_between_one_of_the_old_and_another_or_one_of_ours() {
    let relay = ours("relay", &[]).more(RELAY).start();
    let node = ours("ours", &[relay.port]).start();
    let mut old = Release::Old.start("old", free_port(), &[relay.port], "");
    let mut other = Release::Old.start("other", free_port(), &[relay.port], "");
    for (peer, id) in [(&mut old, "old"), (&mut other, "other")] {
        peer.knows("relay");
        has(&relay, id);
    }
    has(&relay, "ours");
    let frame = |to: &str, n: u32| {
        format!(
            r#"send relay {{"from":"old","to":"relay","msg_type":{{"RELAY_FWD":{{"to":"{to}","from":"old","sequence":{n}}}}},"payload":{{"type":"Text","value":"for {to}"}},"realm":null}}"#
        )
    };
    old.say(&frame("ours", 1));
    got(&node, "old via relay: (frame) for ours");
    row("our relay between one of theirs and one of ours, a frame", "0.2.0 to ours");
    let addr = format!("127.0.0.1:{}", relay.port);
    let begun = Instant::now();
    let mut n = 1;
    let mut seen = |peer: &mut Upstream, id: &str, what: &str, mut again: Box<dyn FnMut(u32) + '_>| loop {
        peer.say(&format!("send relay {}", text(id, "relay", "x")));
        n += 1;
        again(n);
        if peer.expect("RELAY_FWD").contains(what) {
            return;
        }
        assert!(begun.elapsed() < PATIENCE, "{id} never got {what:?} in its form");
    };
    seen(&mut other, "other", "for other", Box::new(|n| old.say(&frame("other", n))));
    row("our relay between two of theirs, a frame in their form", "0.2.0 to 0.2.0");
    let order = format!("forward {addr} other hello from ours");
    seen(
        &mut other,
        "other",
        "hello from ours",
        Box::new(|_| {
            assert_eq!(node.prompt("courier", &order).as_deref(), Ok("sent"));
        }),
    );
    row("our relay between one of ours and one of theirs, a frame", "ours to 0.2.0");
}

#[test]
fn their_old_relay_stands_between_one_of_ours_and_one_of_the_old() {
    let port = free_port();
    let mut relay = Release::Old.start("relay", port, &[], RELAY);
    let node = ours("ours", &[port]).start();
    let mut old = Release::Old.start("old", free_port(), &[port], "");
    relay.knows("ours");
    relay.knows("old");
    old.knows("relay");
    old.say(r#"send relay {"from":"old","to":"relay","msg_type":{"RELAY_FWD":{"to":"ours","from":"old","sequence":1}},"payload":{"type":"Text","value":"for ours"},"realm":null}"#);
    got(&node, "old via relay: (frame) for ours");
    row("their relay between one of theirs and one of ours, a frame", "0.2.0, 0.2.0 and ours");
    // One that answers no probes for two seconds is of 0.2; any line of it makes our node look.
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(2200) {
        std::thread::park_timeout(Duration::from_millis(100));
    }
    relay.say(&format!("broadcast {}", text("relay", "*", "a line")));
    got(&node, "relay: a line");
    let order = format!("forward 127.0.0.1:{port} old hello from ours");
    assert_eq!(node.prompt("courier", &order).as_deref(), Ok("sent"));
    assert!(old.expect("hello from ours").contains("RELAY_FWD"));
    row("their relay between one of ours and one of theirs, a frame", "ours, 0.2.0 and 0.2.0");
}

#[test]
fn their_relay_stands_between_one_of_ours_and_one_of_theirs() {
    let port = free_port();
    let mut relay = Release::New.start("relay", port, &[], RELAY);
    let node = ours("ours", &[port]).start();
    let mut peer = Release::New.start("theirs", free_port(), &[port], "");
    relay.knows("ours");
    relay.knows("theirs");
    peer.knows("relay");
    let sent = node.prompt("courier", "reliable theirs through their relay");
    assert_eq!(sent.as_deref(), Ok("AcknowledgedByPeer"));
    assert!(peer.expect("through their relay").contains("TEXT"));
    peer.say(&format!("deliver reliable ours - {}", text("theirs", "ours", "and back")));
    let outcome = peer.expect("\"deliver\"");
    assert!(outcome.contains("AcknowledgedByPeer"), "{outcome}");
    got(&node, "theirs via relay: and back");
    row("their relay between one of ours and one of theirs, both directions, acknowledged", "0.4.0");
}

#[test]
fn our_relay_keeps_what_is_for_one_of_theirs_that_is_away() {
    let node = ours("relay", &[]).more(RELAY).start();
    let mut a = Release::New.start("new-a", free_port(), &[node.port], "");
    a.knows("relay");
    has(&node, "new-a");
    a.say(r#"send relay {"from":"new-a","to":"relay","msg_type":{"RELAY_BIND":{"target":"late","want_store_forward":true,"qos":"reliable","nonce":1,"expires_at":null}},"payload":null,"realm":null}"#);
    assert!(a.expect("RELAY_BIND_ACK").contains(r#"\"ok\":true"#));
    for n in 1..=100 {
        a.say(&format!(r#"send relay {{"from":"new-a","to":"relay","msg_type":{{"RELAY_FWD":{{"to":"late","from":"new-a","sequence":{n},"opaque_payload_b64":"aGk="}}}},"payload":null,"realm":null}}"#));
        a.expect("\"send\"");
    }
    let mut late = Release::New.start("late", free_port(), &[node.port], "");
    for n in 1..=100 {
        let frame = late.expect("RELAY_FWD");
        assert!(frame.contains(&format!(r#"\"sequence\":{n},"#)), "{n}: {frame}");
    }
    row("our relay keeps 100 frames for one of theirs, all arrive in order", "0.4.0");
}

#[test]
fn their_relay_stands_between_two_of_ours() {
    for release in Release::BOTH {
        let port = free_port();
        let mut relay = release.start("relay", port, &[], RELAY);
        let (a, b) = (ours("our-a", &[port]).start(), ours("our-b", &[port]).start());
        relay.knows("our-a");
        relay.knows("our-b");
        if matches!(release, Release::Old) {
            // One that answers no probes for two seconds is of 0.2; any line of it makes our node look.
            let begun = Instant::now();
            while begun.elapsed() < Duration::from_millis(2200) {
                std::thread::park_timeout(Duration::from_millis(100));
            }
            relay.say(&format!("broadcast {}", text("relay", "*", "a line")));
            got(&a, "relay: a line");
            got(&b, "relay: a line");
        }
        let outcome = a.prompt("courier", "reliable our-b through their relay");
        assert_eq!(outcome.as_deref(), Ok("AcknowledgedByPeer"), "{}", release.word());
        got(&b, "our-a via relay: through their relay");
        row("their relay between two of ours, reliable, acknowledged end to end", release.word());
    }
}

#[test]
fn one_of_theirs_reaches_one_of_ours_through_our_relay_and_the_other_way() {
    let relay = ours("relay", &[]).more(RELAY).start();
    let node = ours("ours", &[relay.port]).start();
    let mut peer = Release::New.start("theirs", free_port(), &[relay.port], "");
    peer.knows("relay");
    has(&relay, "theirs");
    has(&relay, "ours");
    peer.say(&format!("deliver reliable ours - {}", text("theirs", "ours", "there")));
    let outcome = peer.expect("\"deliver\"");
    assert!(outcome.contains("AcknowledgedByPeer"), "{outcome}");
    got(&node, "theirs via relay: there");
    assert_eq!(node.prompt("courier", "ordered theirs k back").as_deref(), Ok("AcknowledgedByPeer"));
    assert!(peer.expect("back").contains("TEXT"));
    row("our relay between one of theirs and one of ours, both directions, acknowledged", "0.4.0");
}

/// The builders of the seeds, from inside a sandboxed plugin.
#[test]
fn a_sandboxed_plugin_binds_and_forwards_with_the_builders_of_the_seeds() {
    let port = free_port();
    let mut relay = Release::New.start("relay", port, &[], RELAY);
    let (a, b) = (ours("our-a", &[port]).start(), ours("our-b", &[port]).start());
    relay.knows("our-a");
    relay.knows("our-b");
    let addr = format!("127.0.0.1:{port}");
    assert_eq!(a.prompt("courier", &format!("bind {addr} our-b")).as_deref(), Ok("asked"));
    got(&a, "relay: (bound) true None");
    assert_eq!(a.prompt("courier", &format!("forward {addr} our-b hello")).as_deref(), Ok("sent"));
    got(&b, "our-a via relay: (frame) hello");
    let failed = a.prompt("courier", "forward 127.0.0.1:1 our-b hello");
    assert!(failed.as_ref().is_ok_and(|text| text.starts_with("failed: ")), "{failed:?}");
    row("RelayBindBuilder and RelayForwardBuilder from a sandboxed plugin through their relay", "0.4.0");
}
