//! What an operator meets: configuration, the end of a node, its log, its name.

use super::{does_not_start, theirs};
use nix::sys::signal::Signal;
use std::fs;
use std::io::Write;
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use thenodes_tests::peer::Peer;
use thenodes_tests::upstream::{free_port, lay_out, Stock, Upstream};
use thenodes_tests::{bin_dir, Spec, PATIENCE};

#[test]
fn d33_a_wrong_value_is_an_error_that_says_where_and_no_panic() {
    for wrong in [
        "[network.persistence]\nenabled = true\nsave_interval_secs = 0",
        "[discovery]\nenabled = true\nrequest_interval_secs = 0",
        "[network.delivery]\nretry_interval_ms = 0",
    ] {
        does_not_start(&Spec::new("node").more(wrong));
    }
    does_not_start(&Spec::new("node").top("port = 65536"));
    // The highest port there is, and a key that is none.
    let spec = Spec::encrypted("node");
    let dir = spec.lay_out();
    fs::create_dir_all(dir.path().join("pki/own")).expect("a directory");
    for file in ["cert.pem", "key.pem"] {
        fs::write(dir.path().join("pki/own").join(file), "no key").expect("written");
    }
    let mut node = spec.spawn(dir);
    let status = node.wait();
    let said = node.heard();
    assert!(status.code() == Some(78) && said.contains("cert.pem") && !said.contains("panicked"), "{said}");
    // Upstream starts, and a part of it is dead: nothing is ever saved; each connection that comes ends in a panic.
    let saving = "[network.persistence]\nenabled = true\npath = \"peers.json\"\nsave_interval_secs = 0\n";
    panics(free_port(), false, saving, "peer_store.rs");
    panics(free_port(), true, "", "invalid cert/key");
    // And none at the end, while events are written: peers come and go.
    for _ in 0..5 {
        let mut node = Spec::new("node").with("echo").start();
        let peers: Vec<Peer> = (0..20).map(|n| Peer::silent(&node, &format!("p{n}"), "null")).collect();
        drop(peers);
        node.signal(Signal::SIGTERM);
        let status = node.wait();
        let said = node.heard();
        assert!(status.success() && !said.contains("panicked"), "{status}: {said}");
    }
}

/// Upstream's own program panics with this text, and goes on. With TLS, its key is none, and somebody comes.
fn panics(port: u16, tls: bool, more: &str, text: &str) {
    let dir = lay_out("node", port, &[], tls, more);
    if tls {
        let junk = "-----BEGIN PRIVATE KEY-----\nanVuaw==\n-----END PRIVATE KEY-----\n";
        fs::write(dir.path().join("pki/own/key.pem"), junk).expect("written");
    }
    let mut node = Stock::start(dir.path(), "config.toml");
    // To one that listens only after some time somebody comes again.
    node.expect(&["panicked", text], || {
        if tls {
            let hello = TcpStream::connect(("127.0.0.1", port)).and_then(|mut tcp| tcp.write_all(b"hello"));
            drop(hello);
        }
    });
    assert!(node.lives(), "it goes on without that part");
}

#[test]
fn d35_a_node_that_is_told_to_end_says_goodbye_and_keeps_what_it_knows() {
    // All that a peer hears from then on.
    fn last_words(peer: &mut Peer) -> String {
        let mut words = String::new();
        loop {
            match peer.line() {
                line if line.is_empty() => return words,
                line => words.push_str(&line),
            }
        }
    }
    let spec = Spec::new("node").more("[network.persistence]\nenabled = true\nsave_interval_secs = 3600\n");
    let other = Spec::new("other").start();
    let mut node = spec.top(&format!("bootstrap_nodes = [\"127.0.0.1:{}\"]", other.port)).start();
    node.expect("app_handshake_success");
    let mut peer = Peer::greeted(&node, "peer");
    node.signal(Signal::SIGTERM);
    assert!(last_words(&mut peer).contains("DISCONNECT"));
    assert!(node.wait().success());
    let kept = fs::read_to_string(node.dir.path().join("data/peers.json")).expect("written at the end");
    assert!(kept.contains(&format!("127.0.0.1:{}", other.port)) && kept.contains("\"other\""), "{kept}");
    let (upstream, port) = theirs();
    let mut peer = Peer::silent_at(port, "peer", "null");
    assert!(super::answers(&mut peer, PATIENCE));
    upstream.terminate();
    assert!(!last_words(&mut peer).contains("DISCONNECT"));
}

#[test]
fn d36_a_rotation_that_fails_costs_no_events() {
    // Has a log that cannot be rotated grow beyond its bound.
    fn fill(dir: &Path, port: u16) {
        // Where the old one goes, and where upstream would put that out of the way.
        for number in 1..=2 {
            fs::create_dir_all(dir.join(format!("events.jsonl.{number}/in the way"))).expect("a directory");
        }
        for n in 0..60 {
            let mut peer = Peer::silent_at(port, &format!("early{n}"), "null");
            assert!(super::answers(&mut peer, PATIENCE));
        }
    }
    fn logs(dir: &Path, port: u16, id: &str, patience: std::time::Duration) -> bool {
        let mut peer = Peer::silent_at(port, id, "null");
        assert!(super::answers(&mut peer, PATIENCE));
        let begun = std::time::Instant::now();
        while begun.elapsed() < patience {
            if fs::read_to_string(dir.join("events.jsonl")).unwrap_or_default().contains(id) {
                return true;
            }
            std::thread::park_timeout(std::time::Duration::from_millis(20));
        }
        false
    }
    let small = "json_max_bytes = 4096\njson_rotate = 1\n";
    let node = Spec::new("node").more(&format!("[logging]\njson_path = \"events.jsonl\"\n{small}")).start();
    let dir = node.dir.path();
    fill(dir, node.port);
    assert!(
        fs::metadata(dir.join("events.jsonl")).is_ok_and(|of| of.len() > 4096),
        "it goes on in the same file"
    );
    assert!(logs(dir, node.port, "late", PATIENCE));
    // And is rotated when nothing is in the way any more.
    fs::remove_dir_all(dir.join("events.jsonl.1")).expect("removed");
    assert!(logs(dir, node.port, "last", PATIENCE));
    assert!(dir.join("events.jsonl.1").is_file());
    let port = free_port();
    let dir = lay_out("node", port, &[], false, "");
    let path = dir.path().join("config.toml");
    let text = fs::read_to_string(&path).expect("read");
    fs::write(&path, text.replace("disable_console = true\n", &format!("disable_console = true\n{small}")))
        .expect("written");
    let upstream = Upstream::start(dir);
    assert!(logs(upstream.dir.path(), port, "control", PATIENCE));
    fill(upstream.dir.path(), port);
    assert!(!logs(upstream.dir.path(), port, "late", super::LONG), "upstream's log has ended");
}

#[test]
fn d41_what_is_shown_has_something_behind_it() {
    // The commit that it was built from; and the policy that a verdict was of.
    let version = Command::new(bin_dir().join("thenodes")).arg("--version").output().expect("it runs");
    let version = String::from_utf8_lossy(&version.stdout).into_owned();
    let commit = version.split(['(', ')']).nth(1).unwrap_or_default();
    let in_git = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.git").exists();
    let is_commit = commit.len() >= 12 && commit.bytes().all(|b| b.is_ascii_hexdigit());
    assert!(is_commit || (!in_git && commit == "unknown"), "{version}");
    let checksum = |more: &str| {
        let spec =
            Spec::encrypted("node").more(&format!("[encryption.trust_policy]\nmode = \"open\"\n{more}"));
        let mut node = spec.start();
        let dial = format!("bootstrap_nodes = [\"127.0.0.1:{}\"]", node.port);
        let _peer =
            Spec::encrypted("peer").more("[encryption.trust_policy]\nmode = \"open\"").top(&dial).start();
        node.seen("action=app_handshake_success");
        let log = fs::read_to_string(node.dir.path().join("logs/trust_audit.jsonl")).expect("a log");
        let line = log
            .lines()
            .find(|line| line.contains(r#""type":"trust_decision""#))
            .expect("a verdict")
            .to_owned();
        let event: serde_json::Value = serde_json::from_str(&line).expect("JSON");
        event["meta"]["policy_checksum"].as_str().expect("one").to_owned()
    };
    let open = checksum("");
    assert_eq!(open, checksum(""));
    assert_ne!(open, checksum("reject_expired = false"));
}

#[test]
fn d41_a_goodbye_ends_a_connection() {
    const GOODBYE: &str =
        r#"{"from":"peer","to":"node","msg_type":"DISCONNECT","payload":null,"realm":null}"#;
    let mut node = Spec::new("node").start();
    let mut peer = Peer::greeted(&node, "peer");
    peer.say(GOODBYE);
    assert!(peer.is_closed());
    assert!(node.seen("action=peer_disconnected").contains("DISCONNECT"));
    let (_upstream, port) = theirs();
    let mut peer = Peer::silent_at(port, "peer", "null");
    peer.say(GOODBYE);
    assert!(super::answers(&mut peer, PATIENCE), "upstream goes on as if nothing had been said");
}

#[test]
fn d37_nodes_without_a_name_have_each_their_own() {
    let nameless = |_| {
        let spec = Spec::new("nameless");
        let dir = spec.lay_out();
        let path = dir.path().join("config.toml");
        let text = fs::read_to_string(&path).expect("laid out");
        fs::write(&path, text.replace("[node]\nid = \"nameless\"\n", "")).expect("written");
        spec.start_in(dir)
    };
    let nodes = [0, 1].map(nameless);
    let id = |node: &thenodes_tests::TestNode| {
        node.json(&["status"])["node_id"].as_str().expect("an id").to_owned()
    };
    let [a, b] = [0, 1].map(|n: usize| id(&nodes[n]));
    assert_ne!(a, b);
    let connected = nodes[0].json(&["peers", "connect", &format!("127.0.0.1:{}", nodes[1].port)]);
    assert_eq!(connected["connected"], b.as_str());
    does_not_start(&Spec::new(""));
    let port = free_port();
    let dir = lay_out("nameless", port, &[], false, "");
    let path = dir.path().join("config.toml");
    let text = fs::read_to_string(&path).expect("read");
    fs::write(&path, text.replace("[node]\nid = \"nameless\"\nstate_dir = \"data\"\n", "")).expect("written");
    let _upstream = Upstream::start(dir);
    let mut peer = Peer::connect(port);
    peer.say(r#"{"from":"unknown-node","to":"x","msg_type":{"HELLO":{"node_id":"unknown-node"}},"realm":{"name":"Test","version":"1.0"}}"#);
    assert!(peer.is_closed(), "upstream takes another nameless node for itself");
}
