//! Messages of a peer to one plugin: ours in its sandbox, upstream's in its node's own process, one after the other in each round. The
//! same peer says the same lines to both, as fast as they are taken, and waits until the plugin has counted them all.

use super::Row;
use crate::peer::Peer;
use crate::upstream::{free_port, lay_out, Upstream};
use crate::Spec;
use std::io::Write;
use std::time::{Duration, Instant};

/// Messages in a round.
const MESSAGES: u64 = 500_000;
/// Messages in one write.
const TOGETHER: usize = 100;
/// A round that takes longer has lost messages.
const PATIENCE: Duration = Duration::from_secs(120);

/// What the peer says.
#[derive(Clone, Copy)]
enum Kind {
    Text,
    Extension,
}

impl Kind {
    fn line(self) -> String {
        let filler = "x".repeat(200);
        let (kind, payload) = match self {
            Kind::Text => (serde_json::json!({ "TEXT": format!("count {filler}") }), serde_json::Value::Null),
            Kind::Extension => (
                serde_json::json!({ "EXTENSION": { "kind": "count" } }),
                serde_json::json!({ "type": "Text", "value": filler }),
            ),
        };
        let realm = serde_json::json!({ "name": "Test", "version": "1.0" });
        let line = serde_json::json!({ "from": "p", "to": "*", "msg_type": kind, "payload": payload, "realm": realm });
        format!("{line}\n")
    }
}

/// Says them all; messages a second until `counted` has them.
fn blast(kind: Kind, mut peer: Peer, mut counted: impl FnMut() -> u64) -> f64 {
    let line = kind.line();
    let chunk = line.repeat(TOGETHER);
    let begun = Instant::now();
    for _ in 0..MESSAGES / TOGETHER as u64 {
        peer.stream.get_mut().write_all(chunk.as_bytes()).expect("the node takes them");
    }
    while counted() < MESSAGES {
        assert!(begun.elapsed() < PATIENCE, "messages were lost");
        std::thread::sleep(Duration::from_millis(2));
    }
    MESSAGES as f64 / begun.elapsed().as_secs_f64()
}

fn ours(kind: Kind) -> f64 {
    let node = Spec::new("inbound").with("echo").more("[plugins.for.echo]\nqueue = \"block-peer\"\n").start();
    let counted = || {
        let answer = node.json(&["plugin", "call", "echo", "counted"]);
        let body = answer["body"].as_str().unwrap_or_default();
        let byte = |at: usize| body.get(2 * at..2 * at + 2).and_then(|hex| u64::from_str_radix(hex, 16).ok());
        (0..8).rev().map(|at| byte(at).expect("eight bytes")).fold(0, |sum, byte| sum << 8 | byte)
    };
    blast(kind, Peer::silent(&node, "p", "null"), counted)
}

fn upstream(kind: Kind) -> f64 {
    let port = free_port();
    let mut node = Upstream::start(lay_out("inbound", port, &[], false, ""));
    node.say("quiet");
    node.expect("quiet");
    let counted = || {
        node.say("counted");
        let line = node.expect("\"counted\"");
        line.split_once("\"counted\":")
            .and_then(|(_, n)| n.trim_end_matches('}').parse().ok())
            .expect("a number")
    };
    blast(kind, Peer::silent_at(port, "p", "null"), counted)
}

/// The rows.
pub fn run(rounds: usize) {
    for (kind, name) in
        [(Kind::Text, "texts_of_a_peer_to_one_plugin"), (Kind::Extension, "messages_of_a_peer_to_one_plugin")]
    {
        let mut row = Row::new(name, "ratio", "upstream's plugin in its node's process");
        for _ in 0..rounds {
            row.add(ours(kind) / upstream(kind));
        }
        println!("{}", row.json());
    }
}
