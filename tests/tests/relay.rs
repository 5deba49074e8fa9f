//! The relay: what is sent through it arrives, whole and in order, or its sender hears why not; and nobody gets a hand in what is
//! another's. Peers made by hand against a real node; several real nodes where relays meet.

use std::io::{Read, Write};
use std::time::{Duration, Instant};
use thenodes_tests::peer::{frame, Peer};
use thenodes_tests::{Spec, TestNode, PATIENCE};

const RELAY: &str = "[network.relay]\nenabled = true\nstore_forward = true\n";

fn relay() -> TestNode {
    relay_with("")
}

fn relay_with(more: &str) -> TestNode {
    Spec::new("relay").more(&format!("{RELAY}{more}")).start()
}

/// The sequence numbers of frames among lines.
fn numbers(lines: &[String]) -> Vec<u64> {
    let number = |line: &String| line.split("\"sequence\":").nth(1)?.split([',', '}']).next()?.parse().ok();
    lines.iter().filter(|line| line.contains("RELAY_FWD")).filter_map(number).collect()
}

/// The numbers of the next frames, as they come: what was kept for a peer is written beside the answers to what it asks.
#[track_caller]
fn frames(peer: &mut Peer, count: usize) -> Vec<u64> {
    let mut got = Vec::new();
    while got.len() < count {
        let line = peer.line();
        assert!(!line.is_empty(), "the node closed after {got:?}");
        got.extend(numbers(&[line]));
    }
    got
}

#[test]
fn a_frame_arrives_byte_for_byte() {
    let node = relay();
    let (mut a, mut b) = (Peer::greeted(&node, "a"), Peer::greeted(&node, "b"));
    let ack = a.bind("b", false, "low_latency", 7, "null");
    assert!(ack.contains(r#""ok":true"#) && ack.contains(r#""binding_id":"bind:a:b:7""#), "{ack}");
    assert!(ack.contains(r#""peer_present":true"#), "{ack}");
    let line = frame("a", "b", 1, "aGVsbG8=");
    a.say(&line);
    assert_eq!(b.expect("RELAY_FWD").trim_end(), line);
}

/// The sender is held up; nothing is lost, however much more it sends than anybody could keep.
#[test]
fn a_slow_target_holds_its_sender_up_and_loses_nothing() {
    const FRAMES: u64 = 40_000;
    let node = relay();
    let (mut a, mut b) = (Peer::greeted(&node, "a"), Peer::greeted(&node, "b"));
    let before = node.memory();
    let sending = std::thread::spawn(move || {
        let content = "QUFB".repeat(100);
        for n in 1..=FRAMES {
            a.say(&frame("a", "b", n, &content));
        }
        a
    });
    let (mut got, begun) = (Vec::new(), Instant::now());
    while got.len() < FRAMES as usize && begun.elapsed() < PATIENCE {
        got.extend(numbers(&[b.line()]));
        if got.len() % 4000 == 1 {
            std::thread::park_timeout(Duration::from_millis(20)); // slow is what this peer is
        }
    }
    assert!(got.iter().copied().eq(1..=FRAMES), "{} frames, in order", got.len());
    drop(sending.join().expect("sent"));
    let grown = node.memory().saturating_sub(before);
    assert!(grown < 8 << 20, "{FRAMES} frames of 600 bytes grew the node by {grown} bytes");
}

#[test]
fn a_target_that_takes_nothing_stalls_nobody_elses_frames_not_even_of_the_same_sender() {
    let node = relay();
    let (mut a, mut b) = (Peer::greeted(&node, "a"), Peer::greeted(&node, "b"));
    let mute = Peer::greeted(&node, "mute");
    let before = node.memory();
    let content = "QUFB".repeat(2000);
    // More than all buffers between here and there hold.
    let mut flood = Peer::greeted(&node, "flood");
    let stream = flood.stream.get_ref().try_clone().expect("cloned");
    let flooding = std::thread::spawn(move || {
        stream.set_write_timeout(Some(Duration::from_millis(200))).expect("set");
        for n in 1..4000 {
            let line = frame("flood", "mute", n, &content) + "\n";
            if (&stream).write_all(line.as_bytes()).is_err() {
                break;
            }
        }
    });
    // The flood is told that its frames go nowhere.
    assert!(flood.expect("RELAY_NOTIFY").contains("overload"));
    for n in 1..=50 {
        a.say(&frame("a", "mute", n, "bXV0ZQ=="));
        a.say(&frame("a", "b", n, "aGk="));
        assert!(b.expect("RELAY_FWD").contains(&format!("\"sequence\":{n},")));
    }
    drop(flood);
    flooding.join().expect("ended");
    assert!(node.memory().saturating_sub(before) < 8 << 20);
    drop(mute);
}

#[test]
fn frames_for_a_peer_that_is_away_arrive_all_and_in_order_when_it_comes() {
    const FRAMES: u64 = 1000;
    let node = relay();
    let mut a = Peer::greeted(&node, "a");
    assert!(a.bind("b", true, "reliable", 1, "null").contains(r#""peer_present":false"#));
    let content = "QUFB".repeat(100);
    for n in 1..=FRAMES {
        a.say(&frame("a", "b", n, &content));
    }
    a.settle();
    let mut b = Peer::silent(&node, "b", "null");
    let mut got = Vec::new();
    while got.last() != Some(&FRAMES) {
        got.extend(numbers(&[b.line()]));
    }
    assert!(got.into_iter().eq(1..=FRAMES));
}

/// What was written to a peer that dies may not have arrived; one that acknowledges gets all that it did not acknowledge.
#[test]
fn frames_that_a_dying_peer_did_not_acknowledge_arrive_when_it_comes_again() {
    const FRAMES: u64 = 500;
    let node = relay();
    let mut a = Peer::greeted(&node, "a");
    a.bind("b", true, "reliable", 1, "null");
    for n in 1..=FRAMES {
        a.say(&frame("a", "b", n, "aGk="));
    }
    a.settle();
    let mut b = Peer::silent(&node, "b", r#"["relay_ack"]"#);
    let mut first = Vec::new();
    while first.len() < 10 {
        first.extend(numbers(&[b.line()]));
    }
    for n in &first {
        b.say(&format!(r#"{{"from":"b","to":"relay","msg_type":{{"ACK":{{"to":"b","from":"a","sequence":{n},"status":"ok"}}}},"payload":null,"realm":null}}"#));
    }
    b.settle();
    drop(b);
    let mut b = Peer::again(&node, "b");
    let mut rest = Vec::new();
    while rest.last() != Some(&FRAMES) {
        rest.extend(numbers(&[b.line()]));
    }
    assert!(rest.iter().copied().eq(11..=FRAMES), "{rest:?}");
}

#[test]
fn without_a_binding_or_with_low_latency_nothing_is_kept_and_the_sender_hears_so() {
    let node = relay();
    let mut a = Peer::greeted(&node, "a");
    for qos in [None, Some("low_latency")] {
        if let Some(qos) = qos {
            a.bind("b", true, qos, 2, "null");
        }
        a.say(&frame("a", "b", if qos.is_some() { 2 } else { 1 }, "aGk="));
        let notice = a.expect("RELAY_NOTIFY");
        assert!(notice.contains(r#""notif_type":"timeout""#), "{notice}");
        assert!(notice.contains("target=b policy=store_forward_disabled_or_low_latency"), "{notice}");
        assert!(
            notice.contains(r#""to":"a""#) && notice.contains(r#""from":"relay""#),
            "to the right node: {notice}"
        );
    }
    let mut b = Peer::greeted(&node, "b");
    assert_eq!(numbers(&b.heard()), [0; 0]);
}

#[test]
fn bounds_of_what_is_kept_hold_and_who_loses_a_frame_hears_of_it() {
    let node = relay_with("queue_max_per_target = 10\n");
    let (mut a, mut c) = (Peer::greeted(&node, "a"), Peer::greeted(&node, "c"));
    a.bind("away", true, "reliable", 1, "null");
    c.bind("away", true, "reliable", 1, "null");
    c.say(&frame("c", "away", 1, "aGk="));
    c.settle();
    for n in 1..=30 {
        a.say(&frame("a", "away", n, "aGk="));
    }
    let lost =
        a.heard().iter().filter(|line| line.contains("overload") && line.contains("target=away")).count();
    assert_eq!(lost, 21);
    assert!(a.bind("away", true, "bulk", 2, "null").contains("overload"));
    let mut away = Peer::silent(&node, "away", "null");
    let kept = frames(&mut away, 10);
    assert_eq!(kept, [1, 22, 23, 24, 25, 26, 27, 28, 29, 30], "the flood pushed out its own, not c's");
    assert_eq!(numbers(&away.heard()), [0; 0]);
}

#[test]
fn what_is_kept_too_long_is_dropped_and_its_sender_hears_so() {
    let node = relay_with("ttl_secs = 1\n");
    let mut a = Peer::greeted(&node, "a");
    a.bind("away", true, "reliable", 1, "null");
    a.say(&frame("a", "away", 1, "aGk="));
    let notice = a.expect("RELAY_NOTIFY");
    assert!(notice.contains(r#""notif_type":"timeout""#) && notice.contains("target=away"), "{notice}");
    let mut away = Peer::greeted(&node, "away");
    assert_eq!(numbers(&away.heard()), [0; 0]);
}

#[test]
fn a_binding_that_cannot_be_is_refused_with_its_reason_and_an_expired_one_is_none() {
    let node = Spec::new("relay").more("[network.relay]\nenabled = true\n").start();
    let mut a = Peer::greeted(&node, "a");
    assert!(a.bind("b", true, "reliable", 1, "null").contains(r#""reason":"policy_denied""#));
    assert!(a.bind("b", false, "reliable", 1, "1").contains(r#""reason":"timeout""#));
    assert!(a.bind("a", false, "bulk", 1, "null").contains(r#""reason":"unknown_target""#));
    assert!(a.bind(" ", false, "bulk", 1, "null").contains(r#""reason":"unknown_target""#));
    assert!(a.bind("b", false, "bulk", 1, "null").contains(r#""ok":true"#));
    assert!(a.bind("b", false, "bulk", 2, "null").contains(r#""reason":"already_bound""#));
    // Upstream never forgets an expired binding, and refuses its renewal for ever.
    let soon =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("a clock").as_secs() + 1;
    assert!(a.bind("c", false, "bulk", 1, &soon.to_string()).contains(r#""ok":true"#));
    let begun = Instant::now();
    while a.bind("c", false, "bulk", 3, &soon.to_string()).contains("already_bound") {
        assert!(begun.elapsed() < PATIENCE);
        std::thread::park_timeout(Duration::from_millis(50));
    }
    assert!(a.bind("c", false, "bulk", 4, "null").contains(r#""ok":true"#));
}

#[test]
fn nobody_speaks_for_another_and_nobody_unbinds_anothers_route() {
    let node = relay();
    let (mut a, mut b) = (Peer::greeted(&node, "a"), Peer::greeted(&node, "b"));
    let mut evil = Peer::greeted(&node, "evil");
    a.bind("b", true, "reliable", 7, "null");
    // In a's name, in the frame and in the envelope.
    evil.say(&frame("a", "b", 1, "ZmFrZQ=="));
    let notice = evil.expect("RELAY_NOTIFY");
    assert!(notice.contains("policy_denied") && notice.contains("another's name"), "{notice}");
    evil.say(&frame("evil", "b", 1, "ZXZpbA==").replacen(r#""from":"evil""#, r#""from":"a""#, 1));
    let got = b.expect("RELAY_FWD");
    assert!(got.starts_with(r#"{"from":"evil""#), "the envelope's sender is the connection's: {got}");
    // The id of a's binding is no secret.
    evil.say(r#"{"from":"a","to":"x","msg_type":{"RELAY_UNBIND":{"binding_id":"bind:a:b:7"}},"payload":null,"realm":null}"#);
    assert!(evil.heard().iter().all(|line| !line.contains("RELAY_NOTIFY")));
    assert!(a.bind("b", true, "reliable", 7, "null").contains("already_bound"), "a's route is still there");
    // The control: its owner.
    a.say(r#"{"from":"a","to":"x","msg_type":{"RELAY_UNBIND":{"binding_id":"bind:a:b:7"}},"payload":null,"realm":null}"#);
    let notice = a.expect("RELAY_NOTIFY");
    assert!(notice.contains("peer_left") && notice.contains("bind:a:b:7"), "{notice}");
    assert!(a.bind("b", true, "reliable", 7, "null").contains(r#""ok":true"#));
}

#[test]
fn a_number_counts_once_and_the_highest_of_all_silences_nobody() {
    let node = relay();
    let (mut a, mut b) = (Peer::greeted(&node, "a"), Peer::greeted(&node, "b"));
    for n in [1, 2, 2, 1, 4, 3, u64::MAX, 4] {
        a.say(&frame("a", "b", n, "aGk="));
    }
    a.settle();
    assert_eq!(numbers(&b.heard()), [1, 2, 4, 3, u64::MAX]);
    // It begins anew.
    drop(a);
    let mut a = Peer::again(&node, "a");
    a.say(&frame("a", "b", 1, "aGk="));
    a.settle();
    assert_eq!(numbers(&b.heard()), [1]);
}

#[test]
fn a_reliable_frame_is_sent_again_until_its_target_acknowledges_and_only_to_one_that_does() {
    let node = relay();
    let mut a = Peer::greeted(&node, "a");
    let mut deaf = Peer::greeted(&node, "deaf"); // as upstream: never acknowledges, and never said that it would
    let mut b = Peer::with_capabilities(&node, "b", r#"["relay_ack"]"#);
    a.bind("deaf", true, "reliable", 1, "null");
    a.bind("b", true, "reliable", 1, "null");
    a.say(&frame("a", "deaf", 1, "aGk="));
    a.say(&frame("a", "b", 1, "aGk="));
    b.expect("RELAY_FWD");
    b.expect("RELAY_FWD"); // it did not say that it has it
    b.say(r#"{"from":"b","to":"relay","msg_type":{"ACK":{"to":"b","from":"a","sequence":1,"status":"ok"}},"payload":null,"realm":null}"#);
    b.settle();
    a.say(&frame("a", "b", 2, "aGk="));
    let again = b.expect("RELAY_FWD");
    assert!(again.contains("\"sequence\":2"), "the first is settled: {again}");
    // Nobody acknowledges the second: a hears so in the end.
    let notice = a.expect("RELAY_NOTIFY");
    assert!(notice.contains("timeout") && notice.contains("target=b"), "{notice}");
    assert_eq!(numbers(&deaf.heard()), [1], "nothing is repeated to one that never acknowledges");
}

#[test]
fn each_target_gets_the_form_that_it_reads() {
    let node = relay();
    let mut a = Peer::greeted(&node, "a");
    let mut new = Peer::greeted(&node, "new");
    let mut old = Peer::silent(&node, "old", "null");
    let old_form = r#"{"from":"a","to":"x","msg_type":{"RELAY_FWD":{"to":"new","from":"a","sequence":1}},"payload":{"type":"Text","value":"hi"},"realm":null}"#;
    a.say(old_form);
    let got = new.expect("RELAY_FWD");
    assert!(got.contains(r#""opaque_payload_b64":"aGk=""#) && got.contains(r#""payload":null"#), "{got}");
    // One that answers no probe within two seconds is of 0.2; any line of it makes the node look.
    let (begun, mut n) = (Instant::now(), 1);
    loop {
        old.say(r#"{"from":"old","to":"*","msg_type":{"TEXT":"x"},"payload":null,"realm":null}"#);
        a.say(&frame("a", "old", n, "aGk="));
        let got = old.expect("RELAY_FWD");
        if got.contains(r#""payload":{"type":"Text","value":"hi"}"#) && !got.contains("opaque") {
            break;
        }
        assert!(begun.elapsed() < PATIENCE, "{got}");
        std::thread::park_timeout(Duration::from_millis(50));
        n += 1;
    }
}

#[test]
fn what_is_kept_survives_a_restart_if_the_operator_wants_it() {
    let spec = Spec::new("relay").more(&format!("{RELAY}durable = true\n"));
    let node = spec.start();
    let mut a = Peer::greeted(&node, "a");
    a.bind("away", true, "reliable", 1, "null");
    for n in 1..=5 {
        a.say(&frame("a", "away", n, "aGk="));
    }
    a.settle();
    let mut node = node.again(&Spec::new("relay").more(&format!("{RELAY}durable = true\n")));
    node.seen("relay_queue_restored");
    let mut away = Peer::silent(&node, "away", "null");
    let mut got = Vec::new();
    while got.len() < 5 {
        got.extend(numbers(&[away.line()]));
    }
    assert_eq!(got, [1, 2, 3, 4, 5]);
}

/// Written down within a second or so, and there after a node that had no time to say goodbye.
#[test]
fn what_is_kept_survives_a_node_that_is_killed() {
    let spec = Spec::new("relay").more(&format!("{RELAY}durable = true\n"));
    let mut node = spec.start_on_a_port();
    let mut a = Peer::greeted(&node, "a");
    a.bind("away", true, "reliable", 1, "null");
    for n in 1..=5 {
        a.say(&frame("a", "away", n, "aGk="));
    }
    a.settle();
    let written = || {
        let file = std::fs::read(node.dir.path().join("data/relay-queue.bin")).unwrap_or_default();
        file.windows(13).any(|part| part == b"\"sequence\":5,")
    };
    let begun = Instant::now();
    while !written() {
        assert!(begun.elapsed() < PATIENCE, "it is never written down");
        std::thread::park_timeout(Duration::from_millis(50));
    }
    node.signal(nix::sys::signal::Signal::SIGKILL);
    node.wait();
    let mut node = node.restarted(&spec);
    node.seen("relay_queue_restored");
    let mut away = Peer::silent(&node, "away", "null");
    assert_eq!(frames(&mut away, 5), [1, 2, 3, 4, 5]);
}

#[test]
fn a_route_ends_with_the_connection_of_whoever_asked_for_it() {
    let node = relay();
    let mut a = Peer::greeted(&node, "a");
    assert!(a.bind("b", false, "bulk", 1, "null").contains(r#""ok":true"#));
    assert!(a.bind("b", false, "bulk", 2, "null").contains("already_bound"));
    drop(a);
    let mut a = Peer::again(&node, "a");
    assert!(a.bind("b", false, "bulk", 3, "null").contains(r#""ok":true"#));
}

#[test]
fn a_flood_of_frames_is_held_to_its_pace_and_loses_nothing() {
    let node = relay_with("frames_per_s = 200\n");
    let (mut a, mut b) = (Peer::greeted(&node, "a"), Peer::greeted(&node, "b"));
    let begun = Instant::now();
    for n in 1..=150 {
        a.say(&frame("a", "b", n, "aGk="));
    }
    let mut got = Vec::new();
    while got.len() < 150 {
        got.extend(numbers(&[b.line()]));
    }
    assert!(got.into_iter().eq(1..=150));
    // 50 at once, then 200 a second: a lower bound, whatever the machine does.
    assert!(begun.elapsed() >= Duration::from_millis(450), "{:?}", begun.elapsed());
}

/// Two relays that select each other: a frame goes on to the one that the target's name selects, and never in a circle.
#[test]
fn relays_hand_frames_on_to_the_one_that_the_target_selects_and_never_in_a_circle() {
    let more = format!("{RELAY}selection = \"rendezvous\"\n");
    let mut second = Spec::new("second").more(&format!("{more}relays = [\"first\"]\n")).start();
    let first = Spec::new("first")
        .top(&format!("bootstrap_nodes = [\"127.0.0.1:{}\"]", second.port))
        .more(&more)
        .start();
    second.seen("app_handshake_success");
    let mut a = Peer::greeted(&first, "a");
    let mut b = Peer::greeted(&second, "b");
    let line = frame("a", "b", 1, "aGk=");
    a.say(&line);
    assert_eq!(
        b.expect("RELAY_FWD").trim_end(),
        line.replacen(r#""from":"a""#, r#""from":"first""#, 1).replacen(r#""to":"x""#, r#""to":"b""#, 1)
    );
    // Bound here, it is kept there for one that is away.
    a.bind("late", true, "reliable", 1, "null");
    a.say(&frame("a", "late", 5, "aGk="));
    a.settle();
    b.settle();
    let mut late = Peer::silent(&second, "late", r#"["relay_ack"]"#);
    assert!(late.expect("RELAY_FWD").contains("\"sequence\":5"));
    // It acknowledges whose frame it is, not whoever brought it.
    late.say(r#"{"from":"late","to":"second","msg_type":{"ACK":{"to":"late","from":"a","sequence":5,"status":"ok"}},"payload":null,"realm":null}"#);
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(1500) {
        assert_eq!(numbers(&late.heard()), [0; 0], "what is acknowledged is not sent again");
        std::thread::park_timeout(Duration::from_millis(100)); // longer than two repetitions would take
    }
    // For nobody: the second does not send it back.
    a.say(&frame("a", "nobody", 2, "aGk="));
    a.settle();
    b.settle();
    let relayed = |node: &TestNode| node.json(&["relay"])["relay"]["forwarded"].as_u64().expect("a number");
    let begun = Instant::now();
    while relayed(&first) < 3 {
        assert!(begun.elapsed() < PATIENCE);
        std::thread::park_timeout(Duration::from_millis(10));
    }
    assert_eq!((relayed(&first), relayed(&second)), (3, 2));
}

/// In the other form a frame is longer; one that no line can carry is told to its sender, and costs its target nothing.
#[test]
fn a_frame_that_is_too_long_in_the_targets_form_costs_nobody_a_connection() {
    let node = relay();
    let (mut a, mut b) = (Peer::greeted(&node, "a"), Peer::greeted(&node, "b"));
    let old = |n: u64, text: &str| {
        format!(
            r#"{{"from":"a","to":"x","msg_type":{{"RELAY_FWD":{{"to":"b","from":"a","sequence":{n}}}}},"payload":{{"type":"Text","value":"{text}"}},"realm":null}}"#
        )
    };
    a.say(&old(1, &"x".repeat(900 * 1024)));
    let notice = a.expect("RELAY_NOTIFY");
    assert!(notice.contains("overload") && notice.contains("too long"), "{notice}");
    // Kept for one that is away, it is not handed over to it either.
    a.bind("c", true, "reliable", 1, "null");
    a.say(&old(2, &"x".repeat(900 * 1024)).replace(r#""to":"b""#, r#""to":"c""#));
    a.settle();
    let mut c = Peer::greeted(&node, "c");
    a.say(&old(3, "short"));
    assert!(b.expect("RELAY_FWD").contains("\"sequence\":3"));
    c.settle();
    drop(c);
    let mut c = Peer::again(&node, "c");
    c.settle();
}

#[test]
fn frames_without_numbers_arrive_once_from_the_store() {
    let node = relay();
    let mut a = Peer::greeted(&node, "a");
    a.bind("b", true, "reliable", 1, "null");
    for _ in 0..3 {
        a.say(r#"{"from":"a","to":"x","msg_type":{"RELAY_FWD":{"to":"b","from":"a","opaque_payload_b64":"aGk="}},"payload":null,"realm":null}"#);
    }
    a.settle();
    let mut b = Peer::silent(&node, "b", r#"["relay_ack"]"#);
    let begun = Instant::now();
    let mut frames = 0;
    while frames < 3 {
        frames += usize::from(b.line().contains("RELAY_FWD"));
    }
    while begun.elapsed() < Duration::from_secs(3) {
        frames += b.heard().iter().filter(|line| line.contains("RELAY_FWD")).count();
        std::thread::park_timeout(Duration::from_millis(100)); // longer than all repetitions would take
    }
    assert_eq!(frames, 3, "nothing is repeated that cannot be acknowledged");
    assert!(a.heard().iter().all(|line| !line.contains("RELAY_NOTIFY")), "and nothing is reported lost");
}

#[test]
fn whose_frames_were_lost_with_a_connection_hears_of_it() {
    let node = relay();
    let mut a = Peer::greeted(&node, "a");
    let b = Peer::greeted(&node, "b");
    let content = "QUFB".repeat(2000);
    // More than the kernel takes for a peer that does not read; then that peer goes.
    let stream = a.stream.get_ref().try_clone().expect("cloned");
    let sending = std::thread::spawn(move || {
        stream.set_write_timeout(Some(Duration::from_millis(100))).expect("set");
        for n in 1..3000 {
            if (&stream).write_all((frame("a", "b", n, &content) + "\n").as_bytes()).is_err() {
                break;
            }
        }
    });
    a.expect("overload");
    drop(b);
    a.expect("peer_left");
    drop(a);
    sending.join().expect("ended");
}

/// A frame for this very node, of a few bytes that become a tree of many: weighed before it is parsed.
#[test]
fn a_frame_for_the_node_itself_is_weighed_before_it_is_parsed() {
    let node = Spec::new("node").start();
    let mut evil = Peer::greeted(&node, "evil");
    let before = node.memory();
    let tree = "[".to_owned() + &r#"{"":0},"#.repeat(120_000) + "0]";
    for n in 1..=3 {
        evil.say(&format!(r#"{{"from":"evil","to":"x","msg_type":{{"RELAY_FWD":{{"to":"node","from":"other","sequence":{n}}}}},"payload":{{"type":"Json","value":{tree}}},"realm":null}}"#));
    }
    evil.settle();
    assert!(node.memory().saturating_sub(before) < 16 << 20);
}

#[test]
fn a_node_that_is_no_relay_forwards_nothing_and_says_so() {
    let node = Spec::new("plain").start();
    let (mut a, mut b) = (Peer::greeted(&node, "a"), Peer::greeted(&node, "b"));
    a.say(&frame("a", "b", 1, "aGk="));
    assert!(a.expect("RELAY_NOTIFY").contains("policy_denied"));
    assert_eq!(numbers(&b.heard()), [0; 0]);
    let mut rest = [0; 1];
    b.stream.get_ref().set_nonblocking(true).expect("set");
    assert!(b.stream.get_mut().read(&mut rest).is_err(), "nothing more is on its way");
}
