//! Peers: trust, handshake, messages, and what strangers may not do.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};
use thenodes_tests::peer::Peer;
use thenodes_tests::{Spec, TestNode, PATIENCE};

fn bootstrap(node: &TestNode) -> String {
    format!("bootstrap_nodes = [\"127.0.0.1:{}\"]", node.port)
}

fn fingerprint(node: &TestNode) -> String {
    node.json(&["cert", "fingerprint"])["fingerprints"][0].as_str().expect("a fingerprint").to_owned()
}

const HELLO: &str =
    r#"{"from":"m","to":"x","msg_type":{"HELLO":{"node_id":"ID"}},"realm":{"name":"Test","version":"1.0"}}"#;

/// A hand-made peer in plaintext.
struct Stranger {
    stream: BufReader<TcpStream>,
}

impl Stranger {
    fn connect(node: &TestNode) -> Self {
        let stream = TcpStream::connect(("127.0.0.1", node.port)).expect("the node listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("set");
        let mut stranger = Self { stream: BufReader::new(stream) };
        assert!(stranger.line().contains("HELLO"), "the acceptor speaks first");
        stranger
    }

    fn greeted(node: &TestNode, id: &str) -> Self {
        let mut stranger = Self::connect(node);
        stranger.say(&HELLO.replace("ID", id));
        stranger
    }

    fn say(&mut self, text: &str) {
        self.stream.get_mut().write_all(format!("{text}\n").as_bytes()).expect("sent");
    }

    /// The next line, empty at the end.
    fn line(&mut self) -> String {
        let mut line = String::new();
        let _ = self.stream.read_line(&mut line);
        line
    }

    /// True if the node closes now.
    fn is_closed(&mut self) -> bool {
        let mut rest = Vec::new();
        self.stream.read_to_end(&mut rest).is_ok_and(|_| true)
            || self.stream.get_ref().take_error().is_ok_and(|e| e.is_none())
    }
}

#[test]
fn two_nodes_with_mutual_tls_replicate_a_put_and_survive_a_crash() {
    let mut a = Spec::encrypted("node-a").with("kvstore").start();
    let spec_b = Spec::encrypted("node-b").with("kvstore").with("hostile").top(&bootstrap(&a));
    // Not yet trusted: refused on both sides, and the refusal says what to do.
    let mut b = spec_b.start();
    let refused = b.expect("TRUST role=outbound decision=Reject reason=not-in-allowlist");
    let fp_a = fingerprint(&a);
    assert!(refused.contains(&format!("thenodes --config config.toml trust add {fp_a}")), "{refused}");
    // What the refusals say, done.
    assert!(b.command(&["trust", "add", &fp_a]).status.success());
    assert!(a.command(&["trust", "add", &fingerprint(&b)]).status.success());
    a.expect("TRUST role=inbound decision=Accept reason=present-in-allowlist");
    a.expect("action=app_handshake_success");
    b.expect("action=app_handshake_success");

    assert_eq!(b.prompt("kv", "put colour blue").as_deref(), Ok("ok (1 peers)"));
    a.expect("colour put by node-b");
    assert_eq!(a.prompt("kv", "get colour").as_deref(), Ok("blue"));

    // A plugin's death is not the peer's business.
    let _ = b.prompt("hostile", "segv");
    b.expect("name=hostile action=died");
    b.expect("name=hostile action=ready detail=Some(\"generation=2");
    assert_eq!(a.prompt("kv", "put size xl").as_deref(), Ok("ok (1 peers)"));
    b.expect("size put by node-a");
    let said = a.heard() + &b.heard();
    assert!(!said.contains("peer_disconnected"), "{said}");
    // The key that the first start made is private and names its node.
    let key = a.dir.path().join("pki/own/key.pem");
    use std::os::unix::fs::PermissionsExt;
    assert_eq!(fs::metadata(key).expect("a key").permissions().mode() & 0o777, 0o600);
}

#[test]
fn an_expired_certificate_is_refused_even_if_its_key_is_trusted() {
    let mut a = Spec::encrypted("node-a").start();
    let spec = Spec::encrypted("node-b").top(&bootstrap(&a));
    let dir = spec.lay_out();
    // A certificate of yesterday, with a key that node-a trusts.
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).expect("a key");
    let mut params = rcgen::CertificateParams::new(vec![]).expect("params");
    params.not_before = time::OffsetDateTime::now_utc() - time::Duration::days(3);
    params.not_after = time::OffsetDateTime::now_utc() - time::Duration::days(1);
    let certificate = params.self_signed(&key).expect("a certificate");
    fs::create_dir_all(dir.path().join("pki/own")).expect("a directory");
    fs::write(dir.path().join("pki/own/cert.pem"), certificate.pem()).expect("written");
    let key_path = dir.path().join("pki/own/key.pem");
    fs::write(&key_path, key.serialize_pem()).expect("written");
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(&key_path, fs::Permissions::from_mode(0o600)).expect("chmod");
    let mut b = spec.start_in(dir);
    assert!(a.command(&["trust", "add", &fingerprint(&b)]).status.success());
    assert!(b.command(&["trust", "add", &fingerprint(&a)]).status.success());
    let verdict = a.expect("decision=Reject reason=time-invalid");
    assert!(verdict.contains("time=Some(\"expired\")"), "{verdict}");
    a.expect("action=secure_channel_refused");
    assert!(a.json(&["peers"])["peers"].as_array().is_some_and(Vec::is_empty));
    b.heard();
}

#[test]
fn each_wrong_hello_is_refused_by_name() {
    let mut node = Spec::new("door").more("[realm_access]\nallowed_node_types = [\"daemon\"]").start();
    let hello = |id: &str, kind: &str, realm: &str| {
        format!(
            r#"{{"from":"m","to":"x","msg_type":{{"HELLO":{{"node_id":"{id}","node_type":"{kind}"}}}},"realm":{realm}}}"#
        )
    };
    let test = r#"{"name":"Test","version":"1.0"}"#;
    let cases = [
        (hello("x", "daemon", "null"), "realm_missing"),
        (hello("x", "daemon", r#"{"name":"Other","version":"1.0"}"#), "realm_mismatch"),
        (hello("x", "daemon", r#"{"name":"Test","version":"2.0"}"#), "realm_mismatch"),
        (hello("x", "admin", test), "peer_reject_node_type"),
        (hello("door", "daemon", test), "peer_reject_self_id"),
        (hello("", "daemon", test), "hello_bad_node_id"),
        (hello("a b", "daemon", test), "hello_bad_node_id"),
        (
            format!(r#"{{"from":"m","to":"x","msg_type":{{"TEXT":"hi"}},"realm":{test}}}"#),
            "unexpected_message",
        ),
        ("hello?".into(), "message_invalid"),
        ("x".repeat(20_000), "message_invalid"),
    ];
    for (line, action) in cases {
        let mut stranger = Stranger::connect(&node);
        stranger.say(&line);
        node.expect(&format!("action={action}"));
        assert!(stranger.is_closed(), "{action}");
    }
    // The control: the same with nothing wrong is let in, once.
    let mut first = Stranger::connect(&node);
    first.say(&hello("peer", "daemon", test));
    node.expect("action=app_handshake_success");
    let mut second = Stranger::connect(&node);
    second.say(&hello("peer", "daemon", test));
    assert!(second.is_closed(), "the id is taken");
    assert_eq!(node.json(&["peers"])["peers"][0]["node_id"], "peer");
    drop(first);
    node.expect("action=peer_disconnected");
    let mut third = Stranger::connect(&node);
    third.say(&hello("peer", "daemon", test));
    node.expect("action=app_handshake_success");
}

#[test]
fn a_stranger_that_says_nothing_is_hung_up_on() {
    let mut node = Spec::new("silent").start();
    let mut stranger = Stranger::connect(&node);
    node.expect("action=handshake_timeout");
    assert!(stranger.is_closed());
}

#[test]
fn garbage_from_a_peer_costs_its_line_and_floods_cost_its_connection() {
    let mut node = Spec::new("garbage").with("hostile").start();
    let mut peer = Stranger::greeted(&node, "peer");
    node.expect("action=app_handshake_success");
    peer.say("this is no message");
    node.expect("action=message_invalid");
    peer.say(r#"{"from":"liar","to":"*","msg_type":{"TEXT":"still \u001b[31m here"},"realm":null}"#);
    let seen = node.expect("action=message_text");
    assert!(seen.contains("node_id=peer") && !seen.contains('\u{1b}'), "{seen}");
    // Two hundred megabytes without an end.
    let before = node.memory();
    let block = vec![b'x'; 1 << 20];
    let mut sent = 0;
    while sent < 200 && peer.stream.get_mut().write_all(&block).is_ok() {
        sent += 1;
    }
    let gone = node.expect("action=peer_disconnected");
    assert!(gone.contains("a line of more than 1048576 bytes"), "{gone}");
    let grown = node.memory().saturating_sub(before);
    assert!(grown < 16 << 20, "the node grew by {grown} bytes");
    // And with bytes that are no text.
    let mut peer = Stranger::greeted(&node, "peer");
    node.expect("action=app_handshake_success");
    peer.stream.get_mut().write_all(b"\xff\xfe\xfd\n").expect("sent");
    let gone = node.expect("action=peer_disconnected");
    assert!(gone.contains("not UTF-8"), "{gone}");
}

#[test]
fn what_peers_that_left_had_is_given_back() {
    const CROWD: usize = 900; // a process may have 1024 descriptors
    let limits = "[network.limits]\nconnections_per_address = 1000\nhandshakes_per_address = 1000\n";
    let node = Spec::new("crowd").more(limits).start();
    let count = || node.json(&["peers"])["peers"].as_array().map_or(0, Vec::len);
    let until = |what: &str, holds: &dyn Fn() -> bool| {
        let begun = Instant::now();
        while !holds() {
            assert!(begun.elapsed() < PATIENCE, "{what}: {} peers, {} bytes", count(), node.own_memory());
            std::thread::park_timeout(Duration::from_millis(50));
        }
    };
    let before = node.own_memory();
    let mut most = u64::MAX;
    for _ in 0..2 {
        let peers: Vec<_> = (0..CROWD).map(|n| Peer::silent(&node, &format!("p{n}"), "null")).collect();
        until("they are there", &|| count() == CROWD);
        let held = node.own_memory() - before;
        assert!(held > 1 << 20, "{held} bytes for all of them: nothing to give back");
        assert!(held <= most, "the second crowd takes {held} bytes, the first took {}", most / 3 * 2);
        most = held / 2 * 3; // the allocator's pages are seldom all as full as they were
        drop(peers);
        until("they are gone", &|| count() == 0);
        // Not all of it: some is caches of the allocator and of threads, which the first crowd filled once for all.
        until("their memory is given back", &|| node.own_memory().saturating_sub(before) < held / 10 * 7);
    }
}

#[test]
fn a_peer_that_does_not_read_holds_nobody_up() {
    let mut node = Spec::new("hub").with("kvstore").start();
    let _deaf = Stranger::greeted(&node, "deaf");
    node.expect("app_handshake_success");
    let mut well = Stranger::greeted(&node, "well");
    node.expect("app_handshake_success");
    let value = "v".repeat(60_000);
    for n in 0..400 {
        let answer = node.prompt("kv", &format!("put k{n} {value}")).expect("answers");
        assert!(answer.starts_with("ok"), "{answer}");
        loop {
            let line = well.line();
            assert!(!line.is_empty(), "the reading peer is still served");
            if line.contains(&format!("\"k{n}\"")) {
                break;
            }
        }
    }
    assert!(node.memory() < 200 << 20);
}

#[test]
fn heartbeats_are_answered_and_disconnect_is_understood() {
    let mut node = Spec::new("heart").start();
    let mut peer = Stranger::greeted(&node, "peer");
    let probe = peer.line();
    assert!(probe.contains("liveness_probe_v1") && probe.contains("\"from\":\"heart\""), "{probe}");
    peer.say(r#"{"from":"peer","to":"heart","msg_type":"HEARTBEAT","payload":{"type":"Text","value":"liveness_probe_v1"},"realm":null}"#);
    let answer = peer.line();
    assert!(answer.contains("liveness_response_v1") && answer.contains("\"to\":\"peer\""), "{answer}");
    peer.say(r#"{"from":"peer","to":"heart","msg_type":"DISCONNECT","payload":null,"realm":null}"#);
    let gone = node.expect("action=peer_disconnected");
    assert!(gone.contains("DISCONNECT"), "{gone}");
}

#[test]
fn a_peer_that_closed_gets_its_answers_and_no_goodbye() {
    let node = Spec::new("heart").start();
    let probe = r#"{"from":"ID","to":"heart","msg_type":"HEARTBEAT","payload":{"type":"Text","value":"liveness_probe_v1"},"realm":null}"#;
    let rest = |peer: &mut Stranger| {
        let mut rest = String::new();
        peer.stream.read_to_string(&mut rest).expect("the node closes, and takes nothing back");
        rest
    };
    let mut closes = Stranger::greeted(&node, "closes");
    closes.say(&probe.replace("ID", "closes"));
    closes.stream.get_ref().shutdown(Shutdown::Write).expect("shut");
    let heard = rest(&mut closes);
    assert!(heard.contains("liveness_response_v1") && !heard.contains("DISCONNECT"), "{heard}");
    // One that is sent away is told.
    let mut stays = Stranger::greeted(&node, "stays");
    stays.line();
    assert_eq!(node.json(&["peers", "disconnect", "stays"])["disconnected"], "stays");
    let heard = rest(&mut stays);
    assert!(heard.ends_with("\n") && heard.contains("DISCONNECT"), "{heard}");
}

/// A node that asks for TLS dials one that speaks none: nothing is told to it, least of all in plaintext.
#[test]
fn who_speaks_no_tls_where_it_is_asked_for_is_refused_by_that_reason() {
    let plain = Spec::new("plain").start();
    let mut node = Spec::encrypted("node").top(&bootstrap(&plain)).start();
    node.expect("role=outbound decision=Reject reason=not-tls");
    node.expect("action=secure_channel_failed");
    // An operator who asks hears of it too.
    let begun = Instant::now();
    while node.json(&["status"])["bootstrap_errors"][0].as_str().is_none_or(|error| !error.contains("TLS")) {
        assert!(begun.elapsed() < PATIENCE);
        std::thread::park_timeout(Duration::from_millis(50));
    }
    assert!(plain.json(&["peers"])["peers"].as_array().is_some_and(Vec::is_empty));
    let mut stream = TcpStream::connect(("127.0.0.1", node.port)).expect("it listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("set");
    stream.write_all(HELLO.replace("ID", "plain").as_bytes()).expect("sent");
    node.expect("role=inbound decision=Reject reason=not-tls");
}

/// A flood that is no more than its author's own wait: nothing is lost, and it is said once.
#[test]
fn a_peer_beyond_its_rate_is_held_up_and_told_of_once() {
    let mut node = Spec::new("node").with("courier").more("[network.limits]\nmessages_per_s = 200\n").start();
    let mut flood = Stranger::greeted(&node, "flood");
    let begun = Instant::now();
    for n in 0..450 {
        flood.say(&format!(
            r#"{{"from":"flood","to":"node","msg_type":{{"TEXT":"{n}"}},"payload":null,"realm":null}}"#
        ));
    }
    let taken = || node.prompt("courier", "got").expect("it lives").lines().count();
    let before = node.memory();
    while taken() < 450 {
        assert!(begun.elapsed() < PATIENCE, "{} arrived", taken());
    }
    // The first 50 come at once.
    assert!(begun.elapsed() >= Duration::from_millis(1990), "{:?}", begun.elapsed());
    assert!(node.memory().saturating_sub(before) < 8 << 20);
    let told = node.seen("action=peer_held_up");
    assert!(told.contains("node_id=flood messages_per_s=200"), "{told}");
    assert_eq!(node.heard().matches("peer_held_up").count(), 1);
}

/// A few bytes of anybody are enough for a refusal: there is a record of some, and of how many there is none.
#[test]
fn junk_at_a_tls_port_is_on_record_up_to_a_rate() {
    const JUNK: usize = 4000;
    let mut node = Spec::encrypted("node").more("[logging]\ndisable_console = true\n").start();
    let begun = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..JUNK / 4 {
                    let Ok(mut stream) = TcpStream::connect(("127.0.0.1", node.port)) else { continue };
                    let _ = stream.set_read_timeout(Some(PATIENCE));
                    let _ = stream.write_all(b"GET / HTTP/1.1\r\n\r\n");
                    let _ = stream.read_to_end(&mut Vec::new()); // until it is hung up on
                }
            });
        }
    });
    let seconds = begun.elapsed().as_secs() as usize;
    assert_eq!(node.json(&["status"])["node_id"], "node", "it goes on");
    node.signal(nix::sys::signal::Signal::SIGTERM);
    assert!(node.wait().success());
    let log = fs::read_to_string(node.dir.path().join("logs/trust_audit.jsonl")).expect("a log");
    let told = log.lines().filter(|line| line.contains("\"not-tls\"")).count();
    // 500 events of the network a second, of which the refusals are a part.
    assert!(told >= 1 && told <= 500 * (seconds + 2), "{told} in {seconds} s");
    if seconds < 4 {
        assert!(told < JUNK && log.contains("events_dropped"), "{told} in {seconds} s");
    }
}

#[test]
fn a_peer_that_answered_probes_and_then_does_not_is_dropped_and_one_that_never_did_is_not() {
    let lively = "[network.connection_policy]\nheartbeat_interval_ms = 100\nheartbeat_timeout_ms = 700\n";
    let mut node = Spec::new("node").more(lively).start();
    let mut old = Peer::silent(&node, "old", "null"); // like one of 0.2, which answers none
    let mut new = Peer::greeted(&node, "new");
    let gone = node.expect("action=peer_unresponsive");
    assert!(gone.contains("node_id=new"), "{gone}");
    assert!(new.is_closed());
    old.settle();
}

#[test]
fn a_peer_that_says_only_what_is_no_message_is_let_go_in_the_end() {
    let mut node = Spec::new("node").start();
    let mut peer = Peer::greeted(&node, "peer");
    (0..99).for_each(|_| peer.say("{}"));
    peer.settle();
    peer.say("{}");
    assert!(peer.is_closed());
    node.expect("action=message_invalid");
    let gone = node.expect("action=peer_disconnected");
    assert!(gone.contains("100 invalid lines"), "{gone}");
}

#[test]
fn more_connections_than_an_address_may_have_are_closed_by_that_name_and_others_get_their_places() {
    for (limit, what) in [("connections = 3", "of all"), ("connections_per_address = 3", "from this address")]
    {
        let mut node = Spec::new("node").more(&format!("[network.limits]\n{limit}\n")).start();
        let mut peers: Vec<Peer> = (0..3).map(|n| Peer::greeted(&node, &format!("p{n}"))).collect();
        let mut more = TcpStream::connect(("127.0.0.1", node.port)).expect("the kernel accepts");
        more.set_read_timeout(Some(PATIENCE)).expect("set");
        let read = more.read(&mut [0; 100]).map_err(|error| error.kind());
        assert!(
            matches!(read, Ok(0) | Err(std::io::ErrorKind::ConnectionReset)),
            "not even a HELLO: {read:?}"
        );
        let said = node.expect("action=too_many_connections");
        assert!(said.contains(&format!("3 connections {what} are open")), "{said}");
        peers.iter_mut().for_each(Peer::settle);
        drop(peers.pop());
        node.expect("action=peer_disconnected");
        let begun = Instant::now();
        loop {
            // Its place is free a moment after the word of it.
            let mut stream = TcpStream::connect(("127.0.0.1", node.port)).expect("the kernel accepts");
            stream.set_read_timeout(Some(PATIENCE)).expect("set");
            if matches!(stream.read(&mut [0; 100]), Ok(1..)) {
                break;
            }
            assert!(begun.elapsed() < PATIENCE);
        }
    }
}

#[test]
fn a_plugin_hears_in_whose_connection_a_message_came_whatever_it_says() {
    let mut node = Spec::new("node").with("kvstore").start();
    let mut liar = Peer::greeted(&node, "liar");
    liar.say(r#"{"from":"king","to":"node","msg_type":{"EXTENSION":{"kind":"kvstore.put"}},"payload":{"type":"Json","value":{"key":"crown","value":"mine"}},"realm":{"name":"Test","version":"1.0"}}"#);
    let said = node.expect("crown put by ");
    assert!(said.contains("crown put by liar"), "{said}");
}

#[test]
fn a_node_that_is_told_to_end_says_goodbye_to_its_peers() {
    let mut node = Spec::new("node").start();
    let mut peer = Peer::greeted(&node, "peer");
    node.signal(nix::sys::signal::Signal::SIGTERM);
    peer.expect("DISCONNECT");
    assert_eq!(peer.line(), "");
    assert!(node.wait().success());
}

#[test]
fn a_lost_bootstrap_node_is_dialed_again() {
    let a = Spec::new("node-a").with("kvstore").start();
    let port = a.port;
    let mut b = Spec::new("node-b").with("kvstore").top(&bootstrap(&a)).start();
    b.expect("app_handshake_success");
    drop(a); // SIGKILL
    b.expect("action=peer_disconnected");
    b.expect("action=bootstrap_connect_failed");
    let mut a = Spec::new("node-a").with("kvstore").top(&format!("port = {port}")).start();
    a.expect("app_handshake_success");
    b.expect("app_handshake_success");
    assert_eq!(a.prompt("kv", "put x y").as_deref(), Ok("ok (1 peers)"));
    b.expect("x put by node-a");
}

#[test]
fn nodes_that_dial_each_other_keep_one_connection() {
    let reserve = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = reserve.local_addr().expect("an address").port();
    let mut a = Spec::new("node-a").top(&format!("bootstrap_nodes = [\"127.0.0.1:{port}\"]")).start();
    drop(reserve);
    let mut b = Spec::new("node-b").top(&format!("port = {port}\n{}", bootstrap(&a))).start();
    a.expect("app_handshake_success");
    b.expect("app_handshake_success");
    for node in [&a, &b] {
        assert_eq!(node.json(&["peers"])["peers"].as_array().map(Vec::len), Some(1));
    }
}

#[test]
fn many_strangers_from_one_address_do_not_shut_the_others_out() {
    let mut node = Spec::new("crowd").start();
    let peer = Stranger::greeted(&node, "early");
    node.expect("app_handshake_success");
    let crowd: Vec<TcpStream> =
        (0..40).filter_map(|_| TcpStream::connect(("127.0.0.1", node.port)).ok()).collect();
    node.expect("action=too_many_handshakes");
    assert_eq!(node.json(&["peers"])["peers"].as_array().map(Vec::len), Some(1), "the early peer stays");
    drop(crowd);
    let _ = peer.stream.get_ref().set_read_timeout(Some(Duration::from_millis(1)));
}

#[test]
fn five_thousand_silent_connections_are_closed_and_cost_the_node_next_to_nothing() {
    let mut node = Spec::new("crowd").start();
    let _early = Stranger::greeted(&node, "early");
    node.expect("app_handshake_success");
    let before = node.memory();
    // Five hundred at a time, since this process may not have more descriptors.
    let mut last = Vec::new();
    for _ in 0..10 {
        last = (0..500).filter_map(|_| TcpStream::connect(("127.0.0.1", node.port)).ok()).collect();
    }
    assert_eq!(last.len(), 500);
    node.expect("action=too_many_handshakes");
    let _late = Peer::greeted(&node, "late");
    assert_eq!(node.json(&["peers"])["peers"].as_array().map(Vec::len), Some(2));
    let grown = node.memory().saturating_sub(before);
    assert!(grown < 8 << 20, "the node grew by {grown} bytes");
}

#[test]
fn who_sends_his_greeting_byte_by_byte_is_hung_up_on_at_the_deadline() {
    let mut node = Spec::new("slow").start();
    let mut slow = Stranger::connect(&node);
    let begun = Instant::now();
    // As slowly as it likes, but never silent.
    while slow.stream.get_mut().write_all(b"{").is_ok() {
        assert!(begun.elapsed() < PATIENCE, "still open");
        std::thread::park_timeout(Duration::from_millis(50));
    }
    node.expect("action=handshake_timeout");
    assert!(begun.elapsed() > Duration::from_secs(5), "for the deadline, and for nothing else");
}

#[test]
fn a_trusted_key_cannot_take_an_id_that_its_certificate_does_not_name() {
    let mut a = Spec::encrypted("node-a").start();
    let spec = Spec::encrypted("victim").top(&bootstrap(&a));
    let dir = spec.lay_out();
    let made = std::process::Command::new(thenodes_tests::bin_dir().join("thenodes"))
        .args(["--config", "config.toml", "cert", "new", "--cn", "mallory"])
        .current_dir(dir.path())
        .status();
    assert!(made.is_ok_and(|status| status.success()));
    let b = spec.start_in(dir);
    assert!(a.command(&["trust", "add", &fingerprint(&b)]).status.success());
    assert!(b.command(&["trust", "add", &fingerprint(&a)]).status.success());
    let refused = a.expect("action=peer_reject_foreign_id");
    assert!(refused.contains("victim") && refused.contains("mallory"), "{refused}");
    assert!(a.json(&["peers"])["peers"].as_array().is_some_and(Vec::is_empty));
    // The control: the same key under the name that its certificate has.
    drop(b);
    let mut b = Spec::encrypted("victim").top(&bootstrap(&a)).start();
    assert!(a.command(&["trust", "add", &fingerprint(&b)]).status.success());
    assert!(b.command(&["trust", "add", &fingerprint(&a)]).status.success());
    b.expect("action=app_handshake_success");
}

#[test]
fn messages_that_grow_when_they_are_parsed_do_not_grow_the_node() {
    let mut node = Spec::new("weights").with_hostile("deaf", "message:hang").start();
    let before = node.memory();
    let tree = format!("[{}]", vec!["{\"\":0}"; 60_000].join(","));
    let line = format!(
        r#"{{"from":"p","to":"*","msg_type":{{"EXTENSION":{{"kind":"k"}}}},"payload":{{"type":"Json","value":{tree}}},"realm":null}}"#
    );
    assert!(line.len() < 1 << 20);
    let mut highest = 0;
    let mut peers: Vec<Stranger> = (0..6).map(|n| Stranger::greeted(&node, &format!("p{n}"))).collect();
    for _ in 0..6 {
        node.expect("app_handshake_success");
    }
    for peer in &mut peers {
        let _ = peer.stream.get_mut().set_write_timeout(Some(Duration::from_millis(500)));
        for _ in 0..15 {
            // A peer that brings too much is held up, which is the point.
            if peer.stream.get_mut().write_all(format!("{line}\n").as_bytes()).is_err() {
                break;
            }
            highest = highest.max(node.memory().saturating_sub(before));
        }
    }
    assert!(highest < 512 << 20, "the node grew by {highest} bytes");
    assert!(node.json(&["status"])["node_id"] == "weights", "and still answers");
}

#[test]
fn a_peer_cannot_push_the_audit_log_out() {
    let mut node = Spec::new("audit").more("[logging]\njson_max_bytes = 8192\njson_rotate = 1").start();
    let mut peer = Stranger::greeted(&node, "peer");
    node.expect("app_handshake_success");
    for n in 0..2000 {
        peer.say(&format!(
            r#"{{"from":"peer","to":"*","msg_type":{{"TEXT":"{n}"}},"payload":null,"realm":null}}"#
        ));
    }
    node.expect("action=message_text");
    node.signal(nix::sys::signal::Signal::SIGTERM);
    assert!(node.wait().success());
    let log = fs::read_to_string(node.dir.path().join("logs/trust_audit.jsonl")).expect("a log");
    assert!(log.contains("identity_resolved") && log.contains("app_handshake_success"), "{log}");
}

#[test]
fn in_open_mode_any_key_is_let_in_with_or_without_client_certificates() {
    for mtls in ["", "mtls = false\n"] {
        let open = format!("[encryption]\n{mtls}[encryption.trust_policy]\nmode = \"open\"");
        let mut a = Spec::encrypted("node-a").with("kvstore").more(&open).start();
        let mut b = Spec::encrypted("node-b").with("kvstore").more(&open).top(&bootstrap(&a)).start();
        a.expect("decision=Accept reason=open-policy mode=Open");
        b.expect("decision=Accept reason=open-policy mode=Open");
        a.expect("app_handshake_success");
        b.expect("app_handshake_success");
        assert_eq!(b.prompt("kv", "put x y").as_deref(), Ok("ok (1 peers)"));
        a.expect("x put by node-b");
    }
}

#[test]
fn without_a_certificate_nobody_passes_an_allowlist() {
    let mut a = Spec::encrypted("node-a").start();
    // It encrypts, but shows no certificate of its own; it would trust anybody.
    let open = "[encryption]\nmtls = false\n[encryption.trust_policy]\nmode = \"open\"";
    let _b = Spec::encrypted("node-b").more(open).top(&bootstrap(&a)).start();
    a.expect("decision=Reject reason=client-certificate-missing");
    a.expect("action=secure_channel_failed");
    assert!(a.json(&["peers"])["peers"].as_array().is_some_and(Vec::is_empty));
}

#[test]
fn a_line_heavier_than_all_room_costs_only_itself() {
    let mut node = Spec::new("heavy").start();
    let mut peer = Stranger::greeted(&node, "peer");
    let mut other = Stranger::greeted(&node, "other");
    for _ in 0..2 {
        node.expect("app_handshake_success");
    }
    peer.say(&"{".repeat(1_000_000));
    let refused = node.expect("action=message_invalid");
    assert!(refused.contains("once parsed"), "{refused}");
    for (stranger, id) in [(&mut peer, "peer"), (&mut other, "other")] {
        stranger.say(r#"{"from":"x","to":"*","msg_type":{"TEXT":"still here"},"payload":null,"realm":null}"#);
        let seen = node.expect("action=message_text");
        assert!(seen.contains(id), "{seen}");
    }
}
