//! Who is connected to whom, who is dialed, and which messages arrive.

use super::{answers, ours, probe, text, theirs, LONG};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use thenodes_tests::peer::{accept, Peer};
use thenodes_tests::upstream::{free_port, lay_out, Upstream};
use thenodes_tests::{bin_dir, Spec, PATIENCE};

#[test]
fn d27_a_port_that_a_peer_dials_from_is_no_address_to_dial() {
    // Whether the address that a peer came from is told to the next one.
    fn tells(port: u16) -> bool {
        let mut first = Peer::silent_at(port, "first", "null");
        assert!(answers(&mut first, PATIENCE));
        let from = first.stream.get_ref().local_addr().expect("an address").to_string();
        drop(first);
        let mut asker = Peer::silent_at(port, "asker", "null");
        let begun = Instant::now();
        while begun.elapsed() < 3 * LONG {
            asker.say(r#"{"from":"asker","to":"node","msg_type":{"PEER_REQUEST":{"want":64}},"payload":null,"realm":null}"#);
            asker.say(&probe("asker"));
            loop {
                let line = asker.line();
                if line.contains("PEER_LIST") && line.contains(&from) {
                    return true;
                }
                if line.is_empty() || line.contains("liveness_response_v1") {
                    break;
                }
            }
            std::thread::park_timeout(Duration::from_millis(100));
        }
        false
    }
    assert!(!tells(Spec::new("node").more("[discovery]\nenabled = true\n").start().port));
    let port = free_port();
    let dir = lay_out("node", port, &[], false, "");
    let path = dir.path().join("config.toml");
    let asks = fs::read_to_string(&path).expect("read").replace("enabled = false", "enabled = true");
    fs::write(&path, asks).expect("written");
    let _upstream = Upstream::start(dir);
    assert!(tells(port));
}

#[test]
fn d28_a_bootstrap_node_that_was_gone_is_dialed_again() {
    let spec = Spec::new("boot");
    let mut boot = spec.start_on_a_port();
    let mut node = Spec::new("node").top(&format!("bootstrap_nodes = [\"127.0.0.1:{}\"]", boot.port)).start();
    node.expect("app_handshake_success");
    for _ in 0..2 {
        boot.signal(nix::sys::signal::Signal::SIGKILL);
        boot.wait();
        node.expect("peer_disconnected");
        boot = boot.restarted(&spec);
        node.expect("app_handshake_success");
    }
}

#[test]
fn d10_nobody_acknowledges_what_was_for_another() {
    fn ack(from: &str, line: &str) -> String {
        let id = line.split(r#""message_id":""#).nth(1).and_then(|rest| rest.split('"').next());
        let id = id.expect("a message that asks for an acknowledgement");
        format!(
            r#"{{"from":"{from}","to":"node","msg_type":{{"DELIVERY_ACK":{{"message_id":"{id}","status":"ok"}}}},"payload":null,"realm":null}}"#
        )
    }
    let quick = "[network.delivery]\nreliable_timeout_ms = 1000\nreliable_retry_budget = 1\nretry_interval_ms = 100\n";
    let node = Spec::new("node").more(quick).start();
    let (mut b, mut evil) = (Peer::greeted(&node, "b"), Peer::greeted(&node, "evil"));
    let mut command = Command::new(bin_dir().join("thenodes"));
    command.args(["--config", "config.toml", "--json", "send", "b", "secret", "--class", "reliable"]);
    command.current_dir(node.dir.path()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let sending = command.spawn().expect("the command starts");
    let line = b.expect("secret");
    evil.say(&ack("evil", &line));
    evil.say(&ack("b", &line));
    evil.settle();
    let output = sending.wait_with_output().expect("it ends");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && error.contains("RetryBudgetExhausted"), "{error}");
    let (mut upstream, port) = theirs();
    let (mut b, mut evil) = (Peer::silent_at(port, "b", "null"), Peer::silent_at(port, "evil", "null"));
    upstream.knows("b");
    upstream.knows("evil");
    upstream.say(&format!("deliver reliable b - {}", text("node", "secret")));
    let line = b.expect("secret");
    evil.say(&ack("evil", &line));
    assert!(upstream.expect("\"deliver\"").contains("AcknowledgedByPeer"), "upstream believes anybody");
}

#[test]
fn d11_of_many_connections_with_one_id_one_is_let_in() {
    let node = ours();
    let port = node.port;
    const TWINS: usize = 8;
    let start = &std::sync::Barrier::new(TWINS);
    let strangers: Vec<Peer> = (0..TWINS).map(|_| Peer::connect(port)).collect();
    let let_in: Vec<Peer> = std::thread::scope(|scope| {
        let greets = |mut peer: Peer| {
            peer.id = "twin".into();
            start.wait();
            let hello = r#"{"from":"twin","to":"x","msg_type":{"HELLO":{"node_id":"twin"}},"realm":{"name":"Test","version":"1.0"}}"#;
            peer.say(hello);
            answers(&mut peer, PATIENCE).then_some(peer)
        };
        let all: Vec<_> = strangers.into_iter().map(|peer| scope.spawn(move || greets(peer))).collect();
        all.into_iter().filter_map(|one| one.join().expect("no panic")).collect()
    });
    assert_eq!(let_in.len(), 1);
    assert_eq!(node.json(&["peers"])["peers"].as_array().map(Vec::len), Some(1));
}

#[test]
fn d17_a_port_that_is_taken_ends_the_start_and_the_address_is_the_operators() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("an address").port();
    let dir = Spec::new("node").top(&format!("port = {port}")).lay_out();
    let mut command = Command::new(bin_dir().join("thenodes"));
    let output = command.args(["--config", "config.toml"]).current_dir(dir.path()).output().expect("runs");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(1) && error.contains(&format!("127.0.0.1:{port}")), "{error}");
    // The other kind of addresses, and this one alone.
    let node = Spec::new("six").top("bind_address = \"::1\"").start();
    assert!(TcpStream::connect(("::1", node.port)).is_ok());
    assert!(TcpStream::connect(("127.0.0.1", node.port)).is_err());
}

#[test]
fn d26_connecting_says_so_when_there_is_a_connection_and_not_when_it_ends() {
    let (a, b) = (Spec::new("a").start(), Spec::new("b").with("courier").start());
    let target = format!("127.0.0.1:{}", b.port);
    assert_eq!(a.json(&["peers", "connect", &target])["connected"], "b");
    assert_eq!(a.json(&["peers"])["peers"][0]["node_id"], "b", "it lives");
    let sent = a.json(&["send", "b", "at once", "--class", "reliable"]);
    assert_eq!(sent["outcome"], "acknowledged_by_peer", "{sent}");
}

/// An acceptor that is asked for peers, and tells of one; the connection with it.
fn tells_of(listener: &TcpListener, addr: &str) -> BufReader<TcpStream> {
    let mut stream = BufReader::new(accept(listener));
    let mut say = |line: String| stream.get_mut().write_all((line + "\n").as_bytes()).expect("sent");
    say(r#"{"from":"TheNodes","to":"x","msg_type":{"HELLO":{"node_id":"teller"}},"payload":null,"realm":{"name":"Test","version":"1.0"}}"#.into());
    let mut line = String::new();
    while !line.contains("PEER_REQUEST") {
        line.clear();
        assert!(stream.read_line(&mut line).is_ok_and(|count| count > 0), "it is not asked");
    }
    let list = format!(
        r#"{{"from":"teller","to":"node","msg_type":{{"PEER_LIST":{{"peers":["{addr}"]}}}},"payload":null,"realm":null}}"#
    );
    stream.get_mut().write_all((list + "\n").as_bytes()).expect("sent");
    stream
}

#[test]
fn d29_what_peers_tell_of_leads_to_connections() {
    fn is_dialed(listener: TcpListener, patience: Duration) -> bool {
        listener.set_nonblocking(true).expect("set");
        let begun = Instant::now();
        while begun.elapsed() < patience {
            if listener.accept().is_ok() {
                return true;
            }
            std::thread::park_timeout(Duration::from_millis(20));
        }
        false
    }
    let listen = || {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let addr = listener.local_addr().expect("an address");
        (listener, addr)
    };
    let ((teller, at), (told_of, addr)) = (listen(), listen());
    let _node = Spec::new("node")
        .top(&format!("bootstrap_nodes = [\"{at}\"]"))
        .more("[discovery]\nenabled = true\ntarget_peers = 4\n")
        .start();
    let _connection = tells_of(&teller, &addr.to_string());
    assert!(is_dialed(told_of, PATIENCE));
    let ((teller, at), (told_of, addr)) = (listen(), listen());
    let dir = lay_out("node", free_port(), &[at.port()], false, "");
    let path = dir.path().join("config.toml");
    let asks = fs::read_to_string(&path)
        .expect("read")
        .replace("enabled = false", "enabled = true\nrequest_interval_secs = 1");
    fs::write(&path, asks).expect("written");
    let starting = std::thread::spawn(move || Upstream::start(dir));
    let _connection = tells_of(&teller, &addr.to_string());
    assert!(!is_dialed(told_of, 2 * LONG), "upstream only keeps a list");
    drop(starting.join());
}

#[test]
fn d30_who_comes_again_is_asked_for_peers_once_at_a_time() {
    // Three connections that end as soon as they are asked, and a fourth: if questions outlived their connection, it would have four.
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let at = listener.local_addr().expect("an address");
    let _node = Spec::new("node")
        .top(&format!("bootstrap_nodes = [\"{at}\"]"))
        .more("[discovery]\nenabled = true\nrequest_interval_secs = 1\n")
        .start();
    (0..3).for_each(|_| drop(tells_of(&listener, "127.0.0.1:9")));
    let mut last = tells_of(&listener, "127.0.0.1:9");
    let begun = Instant::now();
    let mut asked = 0;
    while asked < 4 {
        let mut line = String::new();
        assert!(last.read_line(&mut line).is_ok_and(|count| count > 0), "it goes on asking");
        asked += u32::from(line.contains("PEER_REQUEST"));
    }
    // Four more questions take four intervals, less what each may come early; of four askers they would take one.
    assert!(begun.elapsed() > Duration::from_secs(2), "{:?}", begun.elapsed());
}

#[test]
fn d32_a_sender_that_begins_anew_is_heard() {
    fn ordered(n: u64, run: u32) -> String {
        format!(
            r#"{{"from":"peer","to":"node","msg_type":{{"TEXT":"{n} of run {run}"}},"payload":null,"realm":{{"name":"Test","version":"1.0"}},"delivery":{{"message_id":"m{run}-{n}","class":"ordered_reliable","ordering_key":"k","ordering_sequence":{n}}}}}"#
        )
    }
    /// The first run, and the beginning of the second.
    fn runs(port: u16) -> Peer {
        let mut peer = Peer::silent_at(port, "peer", "null");
        for n in 1..=3 {
            peer.say(&ordered(n, 1));
            peer.expect("DELIVERY_ACK");
        }
        drop(peer);
        let begun = Instant::now();
        loop {
            let mut peer = Peer::silent_at(port, "peer", "null");
            if answers(&mut peer, PATIENCE) {
                peer.say(&ordered(1, 2));
                return peer;
            }
            assert!(begun.elapsed() < PATIENCE, "it is not let in again");
        }
    }
    let node = Spec::new("node").with("courier").start();
    let mut peer = runs(node.port);
    assert!(peer.expect("m2-1").contains(r#""status":"ok""#));
    let book = node.prompt("courier", "got").expect("it lives");
    assert_eq!(
        book.lines().collect::<Vec<_>>(),
        ["peer: 1 of run 1", "peer: 2 of run 1", "peer: 3 of run 1", "peer: 1 of run 2"]
    );
    let (mut upstream, port) = theirs();
    let mut peer = runs(port);
    peer.say(&text("peer", "the next one"));
    (1..=3).for_each(|n| drop(upstream.expect(&format!("{n} of run 1"))));
    let next = upstream.expect("\"got\"");
    assert!(next.contains("the next one"), "upstream does not hear it: {next}");
}

#[test]
fn d32_what_no_plugin_took_is_not_acknowledged() {
    let node = Spec::new("node").with("courier").start();
    let mut peer = Peer::greeted(&node, "peer");
    let line = r#"{"from":"peer","to":"node","msg_type":{"TEXT":"x"},"payload":null,"realm":null,"delivery":{"message_id":"m1","class":"reliable"}}"#;
    assert!(node.command(&["plugin", "disable", "courier"]).status.success());
    peer.say(line);
    assert_eq!(peer.heard().iter().filter(|line| line.contains("DELIVERY_ACK")).count(), 0);
    // The control: repeated when there is somebody to take it.
    assert!(node.command(&["plugin", "enable", "courier"]).status.success());
    let begun = Instant::now();
    while node.status("courier")["state"] != "Ready" {
        assert!(begun.elapsed() < PATIENCE, "it does not come back");
        std::thread::park_timeout(Duration::from_millis(20));
    }
    peer.say(line);
    peer.expect("DELIVERY_ACK");
}
