//! Rows about what must not grow: the cost of a call beside many plugins, of a message beside many peers, of both after many messages, and
//! of a peer, a binding and a kept frame among many others. Each is a ratio against the same figure with one, or with none, taken in the same process a moment before.

use super::call::{self, Node};
use super::{of_process, pin, Row};
use crate::{peer, Spec, TestNode};
use bytes::Bytes;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};
use thenodes_node::config::Transport;
use thenodes_node::plugins::handle::Handle;
use tokio::net::TcpSocket;
use tokio::runtime::Runtime;

/// Plugins of a large node, peers of a large node, and messages of a long day.
const PLUGINS: u32 = 500;
const PEERS: usize = 200;
const BURSTS: usize = 5000;
/// A node takes no more connections than 64 from one address.
const PEERS_OF_ONE_ADDRESS: usize = 50;
const CALLS: usize = 2000;

/// Measures and prints.
pub fn run(rounds: usize) {
    pin(0).expect("one core of this machine is ours");
    thenodes_node::plugins::process::make_room().expect("room for descriptors");
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    let _inside = runtime.enter();
    let rows = among_plugins(&runtime, rounds).into_iter().chain(beside_peers(&runtime, rounds));
    for row in rows.chain(among_others(rounds)) {
        println!("{}", row.json());
    }
}

fn p50(runtime: &Runtime, plugin: &Handle) -> f64 {
    let body = Bytes::from(vec![b'x'; call::PAYLOAD]);
    call::p50(&call::calls(runtime, plugin, "request.echo", &body, CALLS))
}

fn among_plugins(runtime: &Runtime, rounds: usize) -> Vec<Row> {
    let mut among = Row::new("call_to_one_of_500", "ratio", "the same call while it is the only plugin");
    let mut after = Row::new("call_after_a_million_messages", "ratio", "the same call before them");
    let mut grown = Row::new("node_memory_grown_by_a_million_messages", "KiB", "1 MiB");
    let node = Node::new();
    let plugin = runtime.block_on(node.start(Transport::Ring, 0));
    p50(runtime, &plugin); // warm-up
    let memory = || of_process(std::process::id(), "Pss_Anon:");
    call::stream(runtime, &plugin, &call::message(), 50);
    let fresh: Vec<f64> = (0..rounds).map(|_| p50(runtime, &plugin)).collect();
    let before = memory();
    call::stream(runtime, &plugin, &call::message(), BURSTS);
    let more = memory().saturating_sub(before);
    grown.add(more as f64 / 1024.0);
    grown.value(more as f64);
    let alone: Vec<f64> = (0..rounds).map(|_| p50(runtime, &plugin)).collect();
    alone.iter().zip(&fresh).for_each(|(now, before)| after.add(now / before));
    let others = runtime.block_on(async {
        let mut list = Vec::new();
        for slot in 1..PLUGINS {
            list.push(node.start(Transport::Ring, slot).await);
        }
        list
    });
    for before in alone {
        among.add(p50(runtime, &plugin) / before);
    }
    runtime.block_on(async {
        for plugin in others.into_iter().chain([plugin]) {
            call::stop(plugin).await;
        }
    });
    vec![among, after, grown]
}

/// A peer in plaintext that answers nothing by itself.
struct Peer {
    socket: TcpStream,
    lines: BufReader<TcpStream>,
}

impl Peer {
    /// From an address of its own, since a node counts by address.
    fn connect(runtime: &Runtime, port: u16, number: usize) -> Self {
        let from = SocketAddr::from(([127, 0, 1, (1 + number / PEERS_OF_ONE_ADDRESS) as u8], 0));
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.bind(from).expect("an address of this machine");
        let connecting = socket.connect(SocketAddr::from(([127, 0, 0, 1], port)));
        let mut socket =
            runtime.block_on(connecting).expect("the node listens").into_std().expect("it is ours");
        socket.set_nonblocking(false).expect("set");
        socket.set_nodelay(true).expect("set");
        socket.set_read_timeout(Some(Duration::from_secs(30))).expect("set");
        let mut lines = BufReader::new(socket.try_clone().expect("a copy"));
        let mut hello = String::new();
        lines.read_line(&mut hello).expect("the acceptor speaks first");
        writeln!(
            socket,
            r#"{{"from":"peer{number}","to":"x","msg_type":{{"HELLO":{{"node_id":"peer{number}"}}}},"realm":{{"name":"Test","version":"1.0"}}}}"#
        )
        .expect("sent");
        Self { socket, lines }
    }

    /// Nanoseconds from a message to the plugin's answer.
    fn ask(&mut self) -> u64 {
        let begun = Instant::now();
        let text = "x".repeat(call::PAYLOAD);
        writeln!(
            self.socket,
            r#"{{"from":"p","to":"n","msg_type":{{"TEXT":"{text}"}},"payload":null,"realm":{{"name":"Test","version":"1.0"}}}}"#
        )
        .expect("sent");
        let mut line = String::new();
        while !line.contains("\"kind\":\"echo\"") {
            line.clear();
            assert!(self.lines.read_line(&mut line).expect("an answer") > 0, "the node hung up");
        }
        call::nanos(begun)
    }
}

/// The daemon itself, as an operator runs it.
fn beside_peers(runtime: &Runtime, rounds: usize) -> Vec<Row> {
    let mut beside = Row::new("message_to_a_plugin_and_back_beside_200_peers", "ratio", "the only peer");
    let mut memory = Row::new("node_memory_per_idle_peer", "KiB", "6 KiB");
    let node = Spec::new("growth").with("echo").start();
    let mut peer = Peer::connect(runtime, node.port, 0);
    let asked = |peer: &mut Peer| {
        let mut times: Vec<u64> = (0..CALLS / 2).map(|_| peer.ask()).collect();
        times.sort_unstable();
        call::p50(&times)
    };
    asked(&mut peer);
    let alone: Vec<f64> = (0..rounds).map(|_| asked(&mut peer)).collect();
    let before = node.memory();
    let others: Vec<Peer> = (1..=PEERS).map(|number| Peer::connect(runtime, node.port, number)).collect();
    // Once it answers the last of them it has greeted all.
    let mut last = Peer::connect(runtime, node.port, PEERS + 1);
    last.ask();
    let each = node.memory().saturating_sub(before) as f64 / 1024.0 / PEERS as f64;
    memory.add(each / 6.0);
    memory.value(each);
    for before in alone {
        beside.add(asked(&mut peer) / before);
    }
    drop(others);
    vec![beside, memory]
}

/// Peers of one half, bindings of each, and frames that each has kept for absent nodes; all of them stay below a relay's bounds.
const HALF: usize = 200;
const SENDERS: usize = 10;
const BINDINGS: u64 = 900;
const FRAMES: u64 = 400;

/// Time and memory of the second half, by those of the first.
fn halves(time: &mut Row, memory: &mut Row, node: &TestNode, mut half: impl FnMut(usize)) {
    let mut figures = [0, 1].map(|which| {
        let (before, begun) = (node.memory(), Instant::now());
        half(which);
        (begun.elapsed().as_secs_f64(), node.memory().saturating_sub(before) as f64)
    });
    // What was freed before and is used again is no growth.
    figures.iter_mut().for_each(|(_, bytes)| *bytes = bytes.max(4096.0));
    time.add(figures[1].0 / figures[0].0);
    memory.add(figures[1].1 / figures[0].1);
}

/// Peers, bindings and kept frames, the second as many as the first, at a relay without plugins.
fn among_others(rounds: usize) -> Vec<Row> {
    let row = |name, baseline| Row::new(name, "ratio", baseline);
    let mut peers = [
        row("time_of_200_peers_beside_200", "the first 200"),
        row("memory_of_200_peers_beside_200", "the first 200"),
    ];
    let mut bindings = [
        row("time_of_9000_bindings_beside_9000", "the first 9000"),
        row("memory_of_9000_bindings_beside_9000", "the first 9000"),
    ];
    let mut frames = [
        row("time_of_4000_kept_frames_behind_4000", "the first 4000"),
        row("memory_of_4000_kept_frames_behind_4000", "the first 4000"),
    ];
    for _ in 0..rounds {
        let node = Spec::new("relay")
            .more("[network.relay]\nenabled = true\nstore_forward = true\n[network.limits]\nconnections_per_address = 4000\nhandshakes_per_address = 4000\n")
            .start();
        let mut all: Vec<peer::Peer> =
            (0..20).map(|n| peer::Peer::greeted(&node, &format!("warm{n}"))).collect();
        let [time, memory] = &mut peers;
        halves(time, memory, &node, |half| {
            all.extend((0..HALF).map(|n| peer::Peer::silent(&node, &format!("p{half}-{n}"), "null")));
            all.last_mut().expect("it was added").settle();
        });
        let [time, memory] = &mut bindings;
        halves(time, memory, &node, |half| {
            for sender in &mut all[half * SENDERS..][..SENDERS] {
                for n in 0..BINDINGS {
                    let answer = sender.bind(&format!("away{n}"), true, "reliable", n, "null");
                    assert!(answer.contains("\"ok\":true"), "{answer}");
                }
            }
        });
        let content = "QUFB".repeat(64);
        let [time, memory] = &mut frames;
        halves(time, memory, &node, |half| {
            for (sender, number) in all[half * SENDERS..][..SENDERS].iter_mut().zip(half * SENDERS..) {
                for n in 0..FRAMES {
                    // Few for each target: the bound of one is another matter.
                    let target = format!("away{}", (n + number as u64) % BINDINGS);
                    sender.say(&peer::frame(&sender.id.clone(), &target, n + 1, &content));
                }
                sender.settle();
            }
        });
        let kept = node.json(&["relay"])["relay"]["waiting"].as_u64();
        assert_eq!(kept, Some(2 * SENDERS as u64 * FRAMES), "{}", node.json(&["relay"]));
    }
    peers.into_iter().chain(bindings).chain(frames).collect()
}
