//! What a relay promises, and what becomes of it.

use super::{answers, ours, theirs, LONG, RELAY};
use std::time::{Duration, Instant};
use thenodes_tests::peer::{frame, Peer};
use thenodes_tests::upstream::{free_port, lay_out, Upstream};
use thenodes_tests::{Spec, PATIENCE};

#[test]
fn d9_only_its_owner_gives_a_route_up() {
    fn another_unbinds(port: u16) -> bool {
        let mut owner = Peer::silent_at(port, "owner", "null");
        assert!(owner.bind("target", false, "bulk", 7, "null").contains(r#""ok":true"#));
        let mut evil = Peer::silent_at(port, "evil", "null");
        evil.say(r#"{"from":"evil","to":"node","msg_type":{"RELAY_UNBIND":{"binding_id":"bind:owner:target:7"}},"payload":null,"realm":null}"#);
        assert!(answers(&mut evil, PATIENCE), "it has dealt with it");
        // If the route is still there, it is bound already.
        owner.bind("target", false, "bulk", 7, "null").contains(r#""ok":true"#)
    }
    assert!(!another_unbinds(ours().port));
    let (_upstream, port) = theirs();
    assert!(another_unbinds(port));
}

#[test]
fn d25_what_is_kept_for_a_peer_arrives_all_of_it() {
    const FRAMES: u64 = 200;
    // The frames that arrive when their target comes.
    fn arrive(port: u16) -> u64 {
        let mut sender = Peer::silent_at(port, "sender", "null");
        assert!(sender.bind("late", true, "reliable", 1, "null").contains(r#""ok":true"#));
        for n in 1..=FRAMES {
            sender.say(&frame("sender", "late", n, "aGk="));
        }
        assert!(answers(&mut sender, PATIENCE), "it has dealt with them");
        let mut late = Peer::silent_at(port, "late", "null");
        late.stream.get_ref().set_read_timeout(Some(LONG)).expect("set");
        let mut came = 0;
        while came < FRAMES {
            match late.line() {
                line if line.is_empty() => break,
                line => came += u64::from(line.contains("RELAY_FWD")),
            }
        }
        came
    }
    assert_eq!(arrive(ours().port), FRAMES);
    let (_upstream, port) = theirs();
    let came = arrive(port);
    assert!(came < FRAMES, "upstream loses all but {came}");
}

#[test]
fn d38_users_of_the_builders_do_not_share_one_route() {
    // Two sandboxed plugins of two nodes ask one relay for a route to the same target. Upstream's builder writes the relay's address as
    // who asks, so that the second is told that there is one already.
    let relay = Spec::new("relay").more(RELAY).start();
    let addr = format!("127.0.0.1:{}", relay.port);
    let asks = |id: &str| {
        let node = Spec::new(id).with("courier").top(&format!("bootstrap_nodes = [\"{addr}\"]")).start();
        let begun = Instant::now();
        while node.prompt("courier", &format!("bind {addr} target")).as_deref() != Ok("asked") {
            assert!(begun.elapsed() < PATIENCE, "{id} does not come to the relay");
            std::thread::park_timeout(Duration::from_millis(20));
        }
        loop {
            let book = node.prompt("courier", "got").expect("it lives");
            if let Some(answer) = book.lines().find(|line| line.contains("(bound)")) {
                return answer.to_owned();
            }
            assert!(begun.elapsed() < PATIENCE, "{id} has no answer");
            std::thread::park_timeout(Duration::from_millis(20));
        }
    };
    for id in ["one", "two"] {
        assert_eq!(asks(id), "relay: (bound) true None");
    }
    // And one that cannot be asked says so.
    let node = Spec::new("alone").with("courier").start();
    let failed = node.prompt("courier", "bind 127.0.0.1:1 target");
    assert!(failed.as_ref().is_ok_and(|text| text.starts_with("failed: ")), "{failed:?}");
}

#[test]
fn d39_a_reliable_frame_comes_once() {
    fn sends(port: u16) {
        let mut sender = Peer::silent_at(port, "sender", "null");
        assert!(sender.bind("target", true, "reliable", 1, "null").contains(r#""ok":true"#));
        sender.say(&frame("sender", "target", 1, "bm8gbWVzc2FnZQ=="));
        assert!(answers(&mut sender, PATIENCE));
    }
    let relay = ours();
    let target =
        Spec::new("target").with("courier").top(&format!("bootstrap_nodes = [\"127.0.0.1:{}\"]", relay.port));
    let target = target.start();
    let begun = Instant::now();
    while relay.json(&["peers"])["peers"][0]["node_id"] != "target" {
        assert!(begun.elapsed() < PATIENCE, "it does not come");
        std::thread::park_timeout(Duration::from_millis(20));
    }
    sends(relay.port);
    let book = || target.prompt("courier", "got").expect("it lives");
    while book().is_empty() {
        assert!(begun.elapsed() < PATIENCE, "it does not arrive");
        std::thread::park_timeout(Duration::from_millis(20));
    }
    // Longer than a relay would repeat it.
    let begun = Instant::now();
    while begun.elapsed() < LONG {
        assert_eq!(book().lines().count(), 1, "{}", book());
        std::thread::park_timeout(Duration::from_millis(100));
    }
    let (mut relay, port) = theirs();
    let mut target = Upstream::start(lay_out("target", free_port(), &[port], false, RELAY));
    relay.knows("target");
    sends(port);
    // A target of upstream's never acknowledges, and so hears everything again.
    (0..2).for_each(|_| drop(target.expect("bm8gbWVzc2FnZQ==")));
}

#[test]
fn d40_a_frame_for_the_node_itself_is_the_plugins_whatever_is_in_it() {
    // "no message", which is none.
    let line = frame("peer", "node", 1, "bm8gbWVzc2FnZQ==");
    let node = Spec::new("node").with("courier").more(RELAY).start();
    let mut peer = Peer::greeted(&node, "peer");
    peer.say(&line);
    assert_eq!(peer.heard(), Vec::<String>::new(), "no notice");
    let begun = Instant::now();
    while node.prompt("courier", "got").as_deref() != Ok("peer via peer: (frame) no message") {
        assert!(begun.elapsed() < PATIENCE, "{:?}", node.prompt("courier", "got"));
        std::thread::park_timeout(Duration::from_millis(20));
    }
    let (mut upstream, port) = theirs();
    let mut peer = Peer::silent_at(port, "peer", "null");
    peer.say(&line);
    // Its plugins get the frame, not what is in it; and it tries to forward it to itself.
    assert!(upstream.expect("RELAY_FWD").contains("bm8gbWVzc2FnZQ=="));
    peer.expect("RELAY_NOTIFY");
}
