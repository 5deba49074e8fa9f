//! How nodes find each other, remember each other, and whom they do not dial. Real nodes on this machine; a peer made by hand where
//! somebody tells tales.

use std::fs;
use std::time::{Duration, Instant};
use thenodes_tests::peer::Peer;
use thenodes_tests::{Spec, TestNode, PATIENCE};

const ASKS: &str = "[discovery]\nenabled = true\nrequest_interval_secs = 1\n";

fn bootstrap(port: u16) -> String {
    format!("bootstrap_nodes = [\"127.0.0.1:{port}\"]")
}

fn peers(node: &TestNode) -> Vec<String> {
    let value = node.json(&["peers"]);
    let list = value["peers"].as_array().cloned().unwrap_or_default();
    list.iter().filter_map(|peer| Some(peer["node_id"].as_str()?.to_owned())).collect()
}

#[track_caller]
fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < PATIENCE, "{what}");
        std::thread::park_timeout(Duration::from_millis(30));
    }
}

#[test]
fn nodes_that_know_one_node_find_each_other() {
    let hub = Spec::new("hub").more(ASKS).start();
    let spokes: Vec<TestNode> =
        ["a", "b", "c"].iter().map(|id| Spec::new(id).top(&bootstrap(hub.port)).more(ASKS).start()).collect();
    for node in &spokes {
        until("every node has every other", || peers(node).len() == 3);
    }
    // The control: one that asks nobody stays with the one that it knows.
    let shy = Spec::new("shy")
        .top(&bootstrap(hub.port))
        .more("[discovery]\nenabled = true\ntarget_peers = 1\n")
        .start();
    until("it has the hub", || peers(&shy) == ["hub"]);
    until("the others are known to it", || {
        shy.json(&["peers", "known"])["known"].as_array().is_some_and(|known| known.len() >= 3)
    });
    // Others may dial it; itself it dials nobody, however often it looks.
    let dialed = || -> Vec<String> {
        let list = shy.json(&["peers"])["peers"].as_array().cloned().unwrap_or_default();
        let out = list.iter().filter(|peer| peer["direction"] == "outbound");
        out.filter_map(|peer| Some(peer["node_id"].as_str()?.to_owned())).collect()
    };
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(2) {
        assert_eq!(dialed(), ["hub"]);
        std::thread::park_timeout(Duration::from_millis(50));
    }
}

#[test]
fn a_node_with_as_many_peers_as_it_may_have_dials_nobody() {
    let node = Spec::new("full").more("[network.limits]\nconnections = 2\n").start();
    let other = Spec::new("other").start();
    let target = format!("127.0.0.1:{}", other.port);
    let first = Peer::greeted(&node, "first");
    let _second = Peer::greeted(&node, "second");
    let refused = node.json(&["peers", "connect", &target]);
    let text = refused["error"]["message"].as_str().unwrap_or_default();
    assert!(text.contains("[network.limits] connections"), "{refused}");
    // The control: with a place.
    drop(first);
    // The node may dial it by itself as soon as there is one; it has heard of it.
    until("a connection", || {
        node.json(&["peers", "connect", &target]);
        peers(&node) == ["other", "second"]
    });
}

#[test]
fn a_tale_of_many_addresses_costs_little_and_is_not_passed_on() {
    let node = Spec::new("n")
        .more("[discovery]\nenabled = true\ntarget_peers = 0\n[network.persistence]\nmax_entries = 100\n")
        .start();
    let mut liar = Peer::greeted(&node, "liar");
    let before = node.memory();
    for round in 0..20 {
        let list: Vec<String> =
            (0..2000).map(|n| format!("\"10.{round}.{}.{}:1\"", n / 250, n % 250)).collect();
        liar.say(&format!(r#"{{"from":"liar","to":"n","msg_type":{{"PEER_LIST":{{"peers":[{}]}}}},"payload":null,"realm":null}}"#, list.join(",")));
    }
    liar.say(r#"{"from":"liar","to":"n","msg_type":{"PEER_LIST":{"peers":["nonsense","127.0.0.1:0","224.0.0.1:9"]}},"payload":null,"realm":null}"#);
    liar.settle();
    let known = node.json(&["peers", "known"]);
    let known = known["known"].as_array().expect("a list");
    assert!(known.len() <= 100 && !known.is_empty(), "{}", known.len());
    assert!(node.memory().saturating_sub(before) < 4 << 20);
    // What nobody ever reached is not told to others.
    let mut asker = Peer::greeted(&node, "asker");
    asker.say(
        r#"{"from":"asker","to":"n","msg_type":{"PEER_REQUEST":{"want":65535}},"payload":null,"realm":null}"#,
    );
    assert!(asker.heard().iter().all(|line| !line.contains("PEER_LIST")));
}

#[test]
fn what_is_known_survives_a_restart_in_the_form_of_the_documents() {
    let keeps = "[network.persistence]\nenabled = true\n";
    let b = Spec::new("b").start();
    let a = Spec::new("a").top(&bootstrap(b.port)).more(keeps).start();
    until("connected", || peers(&a) == ["b"]);
    // Without a bootstrap node it knows where to go.
    let spec = Spec::new("a").more(keeps);
    let a = {
        let path = a.dir.path().join("config.toml");
        let text = fs::read_to_string(&path).expect("read").replace(&bootstrap(b.port), "");
        fs::write(&path, text).expect("written");
        a.again(&spec)
    };
    let file = a.dir.path().join("data/peers.json");
    let records: serde_json::Value = serde_json::from_slice(&fs::read(&file).expect("a file")).expect("JSON");
    assert_eq!(records[0]["node_id"], "b");
    assert_eq!(records[0]["addr"], format!("127.0.0.1:{}", b.port));
    assert!(records[0]["last_success_epoch"].is_u64() && records[0]["failures"] == 0, "{records}");
    let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&file).expect("a file").permissions());
    assert_eq!(mode & 0o777, 0o600);
    until("it went there by itself", || peers(&a) == ["b"]);
}

#[test]
fn what_is_known_of_a_peer_is_kept_whoever_dialed_and_forgotten_when_it_is_too_old() {
    let keeps = "[network.persistence]\nenabled = true\nsave_interval_secs = 1\nttl_secs = 2\n";
    let a = Spec::new("a").more(keeps).start();
    let file = a.dir.path().join("data/peers.json");
    let known = || -> Vec<serde_json::Value> {
        fs::read(&file).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default()
    };
    let named = |id: &str| known().into_iter().find(|record| record["node_id"] == id);
    // Of one that it dialed, and of one that dialed it and says where it listens.
    let b = Spec::new("b").more("[network.relay]\nenabled = true\n").start();
    assert_eq!(a.json(&["peers", "connect", &format!("127.0.0.1:{}", b.port)])["connected"], "b");
    let c = Spec::new("c").more("[network.relay]\nenabled = true\n").top(&bootstrap(a.port)).start();
    until("both are kept", || named("b").is_some() && named("c").is_some());
    for (id, node) in [("b", &b), ("c", &c)] {
        let record = named(id).expect("kept");
        assert_eq!(record["addr"], format!("127.0.0.1:{}", node.port), "{record}");
        assert!(record["capabilities"].to_string().contains("relay"), "{record}");
    }
    // As long as they are connected they do not grow old.
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(4) {
        assert!(named("b").is_some() && named("c").is_some(), "{:?}", known());
        std::thread::park_timeout(Duration::from_millis(100));
    }
    drop(b);
    until("it is forgotten", || named("b").is_none());
    assert!(named("c").is_some());
}

#[test]
fn a_peer_store_that_cannot_be_read_is_set_aside_and_reported() {
    let spec = Spec::new("a").more("[network.persistence]\nenabled = true\n");
    let dir = spec.lay_out();
    fs::create_dir_all(dir.path().join("data")).expect("a directory");
    fs::write(dir.path().join("data/peers.json"), b"[{\"addr\": 7}]").expect("written");
    let mut node = spec.start_in(dir);
    let said = node.seen("peer_store_unreadable");
    assert!(said.contains("peers.json") && said.contains("set aside"), "{said}");
    assert!(node.dir.path().join("data/peers.json.unreadable").exists());
}

#[test]
fn a_node_does_not_talk_to_itself() {
    let spec = Spec::new("me");
    let port = thenodes_tests::upstream::free_port();
    let spec = spec.top(&format!("port = {port}")).top(&bootstrap(port));
    let mut node = spec.start();
    let said = node.seen("peer_reject_self_id");
    assert!(said.contains("it is this node itself"), "{said}");
    assert!(peers(&node).is_empty());
}

#[test]
fn names_and_both_kinds_of_addresses_are_dialed() {
    let Ok(_) = std::net::TcpListener::bind("[::1]:0") else {
        return thenodes_tests::skip(
            "names_and_both_kinds_of_addresses_are_dialed",
            "this machine has no IPv6 loopback",
        );
    };
    let six = Spec::new("six").top("bind_address = \"::1\"").start();
    let four = Spec::new("four").start();
    let nodes = format!("bootstrap_nodes = [\"[::1]:{}\", \"localhost:{}\"]", six.port, four.port);
    let node = Spec::new("both").top(&nodes).start();
    until("both are connected", || peers(&node) == ["four", "six"]);
}

#[test]
fn an_operator_connects_and_disconnects_and_a_disconnected_node_stays_out() {
    let (a, mut b) = (Spec::new("a").start(), Spec::new("b").start());
    let target = format!("127.0.0.1:{}", b.port);
    let connected = a.json(&["peers", "connect", &target]);
    assert_eq!(connected["connected"], "b", "{connected}");
    assert_eq!(peers(&a), ["b"]);
    let gone = a.json(&["peers", "disconnect", "b"]);
    assert_eq!(gone["disconnected"], "b", "{gone}");
    until("closed", || peers(&a).is_empty() && peers(&b).is_empty());
    // It comes of its own accord, and is not let in.
    let refused = b.json(&["peers", "connect", &format!("127.0.0.1:{}", a.port)]);
    assert_eq!(refused["error"]["code"], "NETWORK_ERROR", "{refused}");
    assert!(peers(&a).is_empty());
    // Until the operator wants it again.
    assert_eq!(a.json(&["peers", "connect", &target])["connected"], "b");
    assert_eq!(a.json(&["peers", "connect", "127.0.0.1:1"])["error"]["code"], "NETWORK_ERROR");
    assert_eq!(a.json(&["peers", "connect", "nonsense"])["error"]["code"], "INVALID_INPUT");
    assert_eq!(a.json(&["peers", "disconnect", "nobody"])["error"]["code"], "NOT_FOUND");
    b.expect("app_handshake_success");
}

/// What peers say may not move the operator's terminal.
#[test]
fn what_a_peer_says_is_shown_escaped() {
    let mut node = Spec::new("n").start();
    let mut peer = Peer::with_capabilities(&node, "p", "[\"kv\",\"\\u001b[31m\"]");
    peer.say(r#"{"from":"p","to":"n","msg_type":{"TEXT":"\u001b]0;owned\u0007\u202e"},"payload":null,"realm":null}"#);
    peer.settle();
    let line = node.seen("message_text");
    assert!(line.contains("owned") && !line.contains('\u{1b}') && !line.contains('\u{202e}'), "{line:?}");
    let listed = String::from_utf8_lossy(&node.command(&["peers"]).stdout).into_owned();
    assert!(listed.contains("kv") && !listed.contains('\u{1b}'), "{listed:?}");
}
