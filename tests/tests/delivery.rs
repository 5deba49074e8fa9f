//! Messages that are to arrive: acknowledged when they were taken and not before, taken once, in order where that was asked, and never
//! stalled by a restart. Real nodes with a real plugin; a peer made by hand where somebody lies.

use std::io::Write;
use std::process::Command;
use std::time::{Duration, Instant};
use thenodes_tests::peer::Peer;
use thenodes_tests::{bin_dir, Spec, TestNode, PATIENCE};

fn node(id: &str, bootstrap: Option<u16>) -> Spec {
    let nodes = bootstrap.map_or_else(String::new, |port| format!("\"127.0.0.1:{port}\""));
    Spec::new(id).with("courier").top(&format!("bootstrap_nodes = [{nodes}]"))
}

const PATIENT: &str = "[network.delivery]\nreliable_timeout_ms = 24000\nreliable_retry_budget = 60\nordered_reliable_timeout_ms = 24000\nordered_reliable_retry_budget = 60\nretry_interval_ms = 200\n";
const QUICK: &str =
    "[network.delivery]\nreliable_timeout_ms = 1000\nreliable_retry_budget = 1\nretry_interval_ms = 100\n";

#[track_caller]
fn has(node: &TestNode, id: &str) {
    let begun = Instant::now();
    while !node.json(&["peers"])["peers"]
        .as_array()
        .is_some_and(|list| list.iter().any(|peer| peer["node_id"] == id))
    {
        assert!(begun.elapsed() < PATIENCE, "{id} never came");
        std::thread::park_timeout(Duration::from_millis(20));
    }
}

fn book(node: &TestNode) -> Vec<String> {
    node.prompt("courier", "got").unwrap_or_default().lines().map(str::to_owned).collect()
}

/// Waits until so many lines are in the book.
#[track_caller]
fn books(node: &TestNode, lines: &[&str]) {
    let begun = Instant::now();
    while book(node) != lines {
        assert!(begun.elapsed() < PATIENCE, "not {lines:?} but {:?}", book(node));
        std::thread::park_timeout(Duration::from_millis(20));
    }
}

/// Sends in the background, by the command line.
fn sending(node: &TestNode, args: &[&str]) -> std::process::Child {
    let mut command = Command::new(bin_dir().join("thenodes"));
    command.args(["--config", "config.toml", "--json", "send"]).args(args).current_dir(node.dir.path());
    command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    command.spawn().expect("the command starts")
}

#[track_caller]
fn outcome(child: std::process::Child) -> String {
    let output = child.wait_with_output().expect("it ends");
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[test]
fn a_message_is_acknowledged_when_a_plugin_took_it_and_not_before() {
    let b = node("b", None).start();
    let a = node("a", Some(b.port)).more(PATIENT).start();
    has(&a, "b");
    assert!(b.command(&["plugin", "disable", "courier"]).status.success());
    let waiting = sending(&a, &["b", "hello", "--class", "reliable"]);
    // Without its plugin it was not taken, however long one waits; a second sender with less patience shows that.
    let c = node("c", Some(b.port)).more(QUICK).start();
    has(&c, "b");
    let refused = outcome(sending(&c, &["b", "impatient", "--class", "reliable"]));
    assert!(refused.contains("NETWORK_ERROR") && refused.contains("RetryBudgetExhausted"), "{refused}");
    assert!(b.command(&["plugin", "enable", "courier"]).status.success());
    let taken = outcome(waiting);
    assert!(taken.contains("acknowledged_by_peer"), "{taken}");
    assert!(book(&b).contains(&"a: hello".to_owned()), "{:?}", book(&b));
    assert_eq!(book(&b).iter().filter(|line| line.contains("hello")).count(), 1, "once");
}

/// The control: where no plugin wants messages, the node itself has taken it.
#[test]
fn a_node_without_plugins_acknowledges_for_itself() {
    let b = Spec::new("b").start();
    let a = node("a", Some(b.port)).start();
    has(&a, "b");
    assert!(outcome(sending(&a, &["b", "x", "--class", "reliable"])).contains("acknowledged_by_peer"));
}

#[test]
fn a_message_for_a_node_that_is_killed_arrives_when_it_comes_back() {
    let spec = node("b", None);
    let mut b = spec.start_on_a_port();
    let a = node("a", Some(b.port)).more(PATIENT).start();
    has(&a, "b");
    b.signal(nix::sys::signal::Signal::SIGKILL);
    b.wait();
    let waiting = sending(&a, &["b", "after the crash", "--class", "reliable"]);
    let b = b.restarted(&node("b", None));
    let taken = outcome(waiting);
    assert!(taken.contains("acknowledged_by_peer"), "{taken}");
    books(&b, &["a: after the crash"]);
}

#[test]
fn an_ordered_stream_goes_on_over_restarts_of_either_side() {
    let mut b = node("b", None).start_on_a_port();
    let a_spec = || node("a", None).more(PATIENT);
    let a = a_spec().top("").start();
    let target = format!("127.0.0.1:{}", b.port);
    let connect = |a: &TestNode| assert!(a.command(&["peers", "connect", &target]).status.success());
    connect(&a);
    let ordered = |a: &TestNode, text: &str| {
        let said = a.prompt("courier", &format!("ordered b k {text}"));
        assert_eq!(said.as_deref(), Ok("AcknowledgedByPeer"), "{text}");
    };
    for text in ["1", "2", "3"] {
        ordered(&a, text);
    }
    books(&b, &["a: 1", "a: 2", "a: 3"]);
    // The receiver begins anew, in the middle of the stream.
    b.signal(nix::sys::signal::Signal::SIGKILL);
    b.wait();
    let b = b.restarted(&node("b", None));
    connect(&a);
    ordered(&a, "4");
    ordered(&a, "5");
    // The sender begins anew, and counts from one.
    let a = a.again(&a_spec());
    connect(&a);
    ordered(&a, "6");
    ordered(&a, "7");
    books(&b, &["a: 4", "a: 5", "a: 6", "a: 7"]);
}

fn told(id: &str, text: &str, delivery: &str) -> String {
    format!(
        r#"{{"from":"{id}","to":"b","msg_type":{{"TEXT":"{text}"}},"payload":null,"realm":null,"delivery":{delivery}}}"#
    )
}

fn ordered(n: u64) -> String {
    let delivery = format!(
        r#"{{"message_id":"m{n}","class":"ordered_reliable","ordering_key":"k","ordering_sequence":{n}}}"#
    );
    told("peer", &n.to_string(), &delivery)
}

#[test]
fn a_message_that_comes_twice_is_taken_once_and_acknowledged_twice() {
    let b = node("b", None).start();
    let mut peer = Peer::greeted(&b, "peer");
    let line = told("peer", "once", r#"{"message_id":"m1","class":"reliable"}"#);
    peer.say(&line);
    assert!(peer.expect("DELIVERY_ACK").contains(r#""status":"ok""#));
    peer.say(&line);
    assert!(peer.expect("DELIVERY_ACK").contains(r#""status":"duplicate""#));
    // The id is the peer's own: another one's message with it is another message.
    let mut other = Peer::greeted(&b, "other");
    other.say(&told("other", "mine", r#"{"message_id":"m1","class":"reliable"}"#));
    assert!(other.expect("DELIVERY_ACK").contains(r#""status":"ok""#));
    books(&b, &["peer: once", "other: mine"]);
}

#[test]
fn ordered_messages_are_taken_in_order_however_they_come() {
    let b = node("b", None).start();
    let mut peer = Peer::greeted(&b, "peer");
    for n in [3, 2, 1, 5, 4, 2] {
        peer.say(&ordered(n));
    }
    // The second 2 is in hand or was taken when it comes: it has no "ok" of its own.
    for n in 1..=5 {
        let ack = peer.expect(r#""status":"ok""#);
        assert!(ack.contains(&format!("\"m{n}\"")), "{n}: {ack}");
    }
    books(&b, &["peer: 1", "peer: 2", "peer: 3", "peer: 4", "peer: 5"]);
}

#[test]
fn a_message_that_never_comes_stalls_its_stream_only_as_long_as_it_may_still_come() {
    let b = node("b", None)
        .more("[network.delivery]\nretry_interval_ms = 100\nordered_reliable_retry_budget = 3\n")
        .start();
    let mut peer = Peer::greeted(&b, "peer");
    for n in [1, 3] {
        peer.say(&ordered(n));
    }
    peer.expect("\"m1\"");
    peer.expect("\"m3\"");
    books(&b, &["peer: 1", "peer: 3"]);
}

#[test]
fn an_acknowledgement_counts_only_from_whom_the_message_was_for() {
    let a = node("a", None).more(QUICK).start();
    let (mut b, mut evil) = (Peer::greeted(&a, "b"), Peer::greeted(&a, "evil"));
    let id_of = |line: &str| {
        line.split("\"message_id\":\"").nth(1).and_then(|rest| rest.split('"').next()).map(str::to_owned)
    };
    let ack = |from: &str, id: &str| {
        format!(
            r#"{{"from":"{from}","to":"a","msg_type":{{"DELIVERY_ACK":{{"message_id":"{id}","status":"ok"}}}},"payload":null,"realm":null}}"#
        )
    };
    let waiting = sending(&a, &["b", "secret", "--class", "reliable"]);
    let id = id_of(&b.expect("secret")).expect("an id");
    evil.say(&ack("evil", &id));
    evil.say(&ack("b", &id)); // and in b's name
    evil.settle();
    let failed = outcome(waiting);
    assert!(failed.contains("RetryBudgetExhausted"), "{failed}");
    // The control.
    let waiting = sending(&a, &["b", "again", "--class", "reliable"]);
    let id = id_of(&b.expect("again")).expect("an id");
    b.say(&ack("b", &id));
    assert!(outcome(waiting).contains("acknowledged_by_peer"));
}

#[test]
fn a_message_to_nobody_says_so_at_once_and_one_that_waits_in_the_end() {
    let a = node("a", None).more(QUICK).start();
    let failed = outcome(sending(&a, &["nobody", "x"]));
    assert!(failed.contains("NoRoute"), "{failed}");
    let failed = outcome(sending(&a, &["nobody", "x", "--class", "reliable"]));
    assert!(failed.contains("NoRoute"), "{failed}");
    let failed = outcome(sending(&a, &["nobody", "x", "--class", "ordered"]));
    assert!(failed.contains("INVALID_INPUT") && failed.contains("key"), "{failed}");
}

/// A relay between two that cannot reach each other, killed and back: what was not acknowledged is sent again.
#[test]
fn a_message_through_a_relay_survives_the_relays_crash() {
    let relay_spec = || Spec::new("relay").more("[network.relay]\nenabled = true\nstore_forward = true\n");
    let mut relay = relay_spec().start_on_a_port();
    let a = node("a", Some(relay.port)).more(PATIENT).start();
    let b = node("b", Some(relay.port)).start();
    has(&relay, "a");
    has(&relay, "b");
    assert_eq!(a.prompt("courier", "reliable b before").as_deref(), Ok("AcknowledgedByPeer"));
    relay.signal(nix::sys::signal::Signal::SIGKILL);
    relay.wait();
    let waiting = sending(&a, &["b", "after", "--class", "reliable"]);
    let _relay = relay.restarted(&relay_spec());
    let taken = outcome(waiting);
    assert!(taken.contains("acknowledged_by_peer"), "{taken}");
    books(&b, &["a via relay: before", "a via relay: after"]);
}

/// Braces in a text weigh as if they were a tree; few of them fill the room that all share.
fn heavy(id: &str, delivery: &str) -> String {
    let text = "{".repeat(87_000);
    format!(
        r#"{{"from":"{id}","to":"b","msg_type":{{"TEXT":"{text}"}},"payload":null,"realm":null,"delivery":{delivery}}}"#
    )
}

#[test]
fn messages_that_wait_for_earlier_ones_take_nobody_elses_room() {
    let b = node("b", None).start();
    let mut evil = Peer::greeted(&b, "evil");
    for n in 1..8 {
        let delivery = format!(
            r#"{{"message_id":"e{n}","class":"ordered_reliable","ordering_key":"k","ordering_sequence":{}}}"#,
            2 * n
        );
        evil.say(&heavy("evil", &delivery));
    }
    evil.settle();
    // Twice the weight of one of them would not fit into the room beside them.
    let mut peer = Peer::greeted(&b, "peer");
    for n in 1..=3 {
        peer.say(&heavy("peer", &format!(r#"{{"message_id":"p{n}","class":"reliable"}}"#)));
        peer.expect(&format!("\"p{n}\""));
    }
}

#[test]
fn one_that_reads_no_answers_takes_nobody_elses_room() {
    let b = node("b", None).start();
    let mut peer = Peer::greeted(&b, "peer");
    let before = b.memory();
    let mut mutes: Vec<Peer> = (0..4).map(|n| Peer::greeted(&b, &format!("mute{n}"))).collect();
    for mute in &mut mutes {
        // More answers than it gets buffers for, and then a question with a heavy field.
        let id = mute.id.clone();
        let probe = format!(
            r#"{{"from":"{id}","to":"b","msg_type":"HEARTBEAT","payload":{{"type":"Text","value":"liveness_probe_v1"}},"realm":null}}"#
        );
        let heavy = probe.replacen('{', &format!(r#"{{"x":"{}","#, "{".repeat(80_000)), 1);
        let stream = mute.stream.get_ref();
        stream.set_write_timeout(Some(Duration::from_secs(2))).expect("set");
        for _ in 0..150 {
            if { stream }.write_all(((probe.clone() + "\n").repeat(100) + &heavy + "\n").as_bytes()).is_err()
            {
                break;
            }
        }
    }
    for n in 1..=3 {
        peer.say(&heavy("peer", &format!(r#"{{"message_id":"p{n}","class":"reliable"}}"#)));
        peer.expect(&format!("\"p{n}\""));
    }
    assert!(b.memory().saturating_sub(before) < 64 << 20);
}

#[test]
fn a_plugin_that_is_away_delays_no_acknowledgement_of_one_that_is_there() {
    let b = Spec::new("b").with("courier").with("echo").start();
    assert!(b.command(&["plugin", "disable", "echo"]).status.success());
    let mut peer = Peer::greeted(&b, "peer");
    let begun = Instant::now();
    peer.say(&told("peer", "quick", r#"{"message_id":"q","class":"reliable"}"#));
    peer.expect("DELIVERY_ACK");
    assert!(
        begun.elapsed() < Duration::from_secs(4),
        "{:?}: half of what a plugin may take",
        begun.elapsed()
    );
}

/// A frame whose message no plugin took: the relay does not hear that it arrived, and brings it again.
#[test]
fn a_relay_hears_that_a_frame_arrived_only_when_it_was_taken() {
    let b = node("b", None).start();
    assert!(b.command(&["plugin", "disable", "courier"]).status.success());
    let mut relay = Peer::greeted(&b, "relay");
    let inner = r#"{"from":"a","to":"b","msg_type":{"TEXT":"through"},"payload":null,"realm":null}"#;
    let frame = format!(
        r#"{{"from":"relay","to":"b","msg_type":{{"RELAY_FWD":{{"to":"b","from":"a","sequence":1}}}},"payload":{{"type":"Text","value":{}}},"realm":null}}"#,
        serde_json::to_string(inner).expect("JSON")
    );
    for _ in 0..3 {
        relay.say(&frame);
    }
    let early = relay.heard();
    assert!(early.iter().all(|line| !line.contains("\"ACK\"")), "{early:?}");
    assert!(b.command(&["plugin", "enable", "courier"]).status.success());
    // It brings it until it hears of it, as relays do.
    let begun = Instant::now();
    loop {
        relay.say(&frame);
        if relay.heard().iter().any(|line| line.contains("\"ACK\"") && line.contains("\"sequence\":1")) {
            break;
        }
        assert!(begun.elapsed() < PATIENCE);
        std::thread::park_timeout(Duration::from_millis(100));
    }
    books(&b, &["a via relay: through"]);
}
