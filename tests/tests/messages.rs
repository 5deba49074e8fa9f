//! Messages of a peer on their way to a sandboxed plugin, many in one piece: each arrives once and in its place, whatever happens to one of
//! them, and those that a crash takes are counted.

use thenodes_tests::peer::Peer;
use thenodes_tests::Spec;

fn text(text: &str) -> String {
    format!(r#"{{"from":"p","to":"*","msg_type":{{"TEXT":"{text}"}},"payload":null,"realm":null}}"#)
}

/// Says all of it in one write, so that it is read together.
fn say(peer: &mut Peer, texts: impl IntoIterator<Item = String>) {
    let lines: Vec<String> = texts.into_iter().map(|word| text(&word)).collect();
    peer.say(&lines.join("\n"));
}

/// The texts that the plugin says, up to and without this one.
#[track_caller]
fn heard_until(peer: &mut Peer, last: &str) -> Vec<String> {
    let mut heard = Vec::new();
    loop {
        let line = peer.line();
        assert!(!line.is_empty(), "the node closed after {heard:?}");
        let Some((_, rest)) = line.split_once(r#"{"TEXT":""#) else { continue };
        let word = rest.split('"').next().unwrap_or_default().to_owned();
        if word == last {
            return heard;
        }
        heard.push(word);
    }
}

#[test]
fn messages_that_come_in_one_piece_arrive_in_order_and_a_panic_costs_only_its_own() {
    let node = Spec::new("piece").with("hostile").start();
    let mut peer = Peer::greeted(&node, "p");
    let effects = |range: std::ops::Range<u32>| range.map(|n| format!("effect {n}"));
    say(
        &mut peer,
        effects(0..100).chain(["sin panic".into()]).chain(effects(100..200)).chain(["effect end".into()]),
    );
    assert!(heard_until(&mut peer, "end").into_iter().eq((0..200).map(|n: u32| n.to_string())));
    peer.settle();
    let status = node.status("hostile");
    let count = |of: &str, key: &str| status[of][key].as_u64();
    let counts = [count("counters", "panics"), count("queue", "lost"), count("queue", "dropped")];
    assert_eq!(counts, [Some(1), Some(0), Some(0)], "{status}");
    let said = node.logs("hostile").join("\n");
    assert!(said.contains("panicked: a panic on purpose"), "{said}");
}

/// One answer for many would come too late: the node hears of each that took its time.
#[test]
fn a_plugin_that_is_slow_with_messages_that_came_together_is_not_taken_for_a_hung_one() {
    let node = Spec::new("slow").with("hostile").start();
    let mut peer = Peer::greeted(&node, "p");
    // Together longer than any one may take.
    say(&mut peer, (0..11).map(|_| "block-sleep 1000".into()).chain(["effect end".into()]));
    assert_eq!(heard_until(&mut peer, "end"), [""; 0]);
    assert_eq!(node.status("hostile")["starts"], 1);
}

#[test]
fn what_a_crash_takes_of_many_messages_is_counted_and_the_others_arrive() {
    const ALL: u64 = 300;
    let mut node = Spec::new("crash").with("hostile").start();
    let mut peer = Peer::greeted(&node, "p");
    let effect = |n| if n == 50 { "effect 50 before".into() } else { format!("effect {n}") };
    say(&mut peer, (0..ALL).map(effect));
    node.expect("name=hostile action=ready detail=Some(\"generation=2");
    say(&mut peer, ["effect end".into()]);
    let heard: Vec<u64> =
        heard_until(&mut peer, "end").iter().map(|n| n.parse().expect("a number")).collect();
    assert!(
        heard.is_sorted_by(|a, b| a < b) && heard.starts_with(&[0, 1]) && !heard.contains(&50),
        "{heard:?}"
    );
    let queue = node.status("hostile")["queue"].clone();
    let count = |key: &str| queue[key].as_u64().expect("a number");
    // Some of those that were lost with the process may have done their work before.
    let (lost, heard) = (count("lost"), heard.len() as u64);
    assert!((1..=64).contains(&lost), "no more than keeps a plugin busy: {queue}");
    assert!((ALL..=ALL + lost).contains(&(heard + lost + count("dropped"))), "{heard} {queue}");
}
