//! Twenty nodes under a simulated network: partitions, delays, messages cut into pieces, crashes and restarts, in virtual time. The
//! nodes are the real ones from the first byte of a connection on: greeting, sessions, relay, delivery, discovery, the connector.
//! What is not simulated is TCP itself, TLS, and plugins; in their place a recorder takes each message and says so.
//!
//! A seed gives everything (`THENODES_SEED`, `THENODES_SEEDS` for more of them): the faults, the messages, and what chance decides inside the
//! nodes and the runtime ([`steady`]); a failure names its seed, and the same program replays it step by step. Each story is told in a
//! process of its own, because some of what counts steps is a process's.

mod steady;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::{Hash, Hasher};
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;
use thenodes::network::message::{DeliveryClass, Message, MessageType};
use thenodes::network::{DeliveryOptions, DeliveryOutcome};
use thenodes::realms::RealmInfo;
use thenodes_ipc::pack;
use thenodes_node::config::Raw;
use thenodes_node::events::{Bus, Emitter};
use thenodes_node::network::peers::Direction;
use thenodes_node::network::plain::Batch;
use thenodes_node::network::{
    connector, delivery, dialer, greeting, relay, Dial, Hall, Inbound, Link, Local, Network,
};
use thenodes_tests::inside::Dice;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{sleep, Instant};

const NODES: usize = 20;
/// Nodes that relay; all others reach absent ones through them.
const RELAYS: usize = 3;
/// Bounds that are met in the time of trouble.
const KEEPS: &str =
    "[network.relay]\nenabled = true\nstore_forward = true\nqueue_max_per_target = 3\nqueue_max_global = 8\n";
/// The time of trouble, and the quiet after it.
const TROUBLE: Duration = Duration::from_secs(120);
const QUIET: Duration = Duration::from_secs(90);

/// Ordered streams in the time of trouble, to whom each goes, and the number at which all go on after it.
const STREAMS: usize = 12;
const AFTER: u64 = 1_000_000;

fn stream_to(from: usize) -> usize {
    (from + 7) % NODES
}

fn addr(node: usize) -> SocketAddr {
    SocketAddr::from(([10, u8::try_from(node).expect("few nodes"), 0, 1], 7000))
    // each in a network of its own
}

/// A message that was taken: its text, through which relay it came if through one, and in which of the receiver's lives.
struct Taken {
    text: String,
    via: Option<String>,
    life: u32,
    /// When, by the clock of the simulation.
    at: Instant,
}

/// What all nodes did, outside of all of them: it survives their crashes.
#[derive(Default)]
struct Record {
    /// By receiver: what was taken, in that order.
    taken: HashMap<usize, Vec<Taken>>,
    /// Sender, receiver and text of what was acknowledged.
    acknowledged: Vec<(usize, usize, String)>,
    failed: usize,
}

struct Running {
    network: Arc<Network>,
    /// Everything that runs for the node; a crash ends all of it between two steps.
    tasks: JoinSet<()>,
    /// Connections that others made to it.
    accepted: mpsc::UnboundedSender<(DuplexStream, SocketAddr)>,
}

/// The network between the nodes.
struct Fabric {
    running: Mutex<HashMap<usize, Running>>,
    /// Groups that cannot reach each other; a node without one is in group 0.
    groups: Mutex<HashMap<usize, u8>>,
    dice: Mutex<Dice>,
    record: Mutex<Record>,
    /// How often each node was started.
    lives: Mutex<HashMap<usize, u32>>,
    ephemeral: Mutex<u16>,
}

impl Fabric {
    fn below(&self, most: u64) -> u64 {
        self.dice.lock().expect("no panic").below(most)
    }

    fn life(&self, node: usize) -> u32 {
        self.lives.lock().expect("no panic").get(&node).copied().unwrap_or(0)
    }

    fn cut(&self, a: usize, b: usize) -> bool {
        let groups = self.groups.lock().expect("no panic");
        groups.get(&a).unwrap_or(&0) != groups.get(&b).unwrap_or(&0)
    }

    /// Carries bytes one way, late and in pieces; a partition holds them back, and a long one ends the connection.
    async fn carry(
        self: Arc<Self>,
        from: usize,
        to: usize,
        mut source: impl AsyncReadExt + Unpin,
        mut sink: impl AsyncWriteExt + Unpin,
    ) {
        let mut buffer = vec![0; 2048];
        loop {
            let most = 1 + self.below(2048) as usize;
            let Ok(count @ 1..) = source.read(&mut buffer[..most]).await else { return };
            sleep(Duration::from_millis(1 + self.below(20))).await;
            let mut waited = 0;
            while self.cut(from, to) {
                sleep(Duration::from_millis(100)).await;
                waited += 1;
                if waited > 80 {
                    return; // as TCP gives up in the end
                }
            }
            if sink.write_all(&buffer[..count]).await.is_err() {
                return;
            }
        }
    }
}

/// One node's way out.
struct Out {
    fabric: Weak<Fabric>,
    node: usize,
}

#[async_trait::async_trait]
impl Dial for Out {
    async fn dial(&self, to: SocketAddr) -> io::Result<Link> {
        let fabric = self.fabric.upgrade().ok_or_else(|| io::Error::other("the simulation is over"))?;
        let target = (0..NODES).find(|node| addr(*node) == to);
        let delay = 1 + fabric.below(50);
        sleep(Duration::from_millis(delay)).await;
        let target = target.ok_or(io::ErrorKind::HostUnreachable)?;
        if fabric.cut(self.node, target) {
            sleep(Duration::from_secs(5)).await;
            return Err(io::ErrorKind::TimedOut.into());
        }
        let port = {
            let mut next = fabric.ephemeral.lock().expect("no panic");
            *next = next.checked_add(1).unwrap_or(30_000);
            *next
        };
        let from = SocketAddr::new(addr(self.node).ip(), port);
        let (own, near) = tokio::io::duplex(16 * 1024);
        let (far, theirs) = tokio::io::duplex(16 * 1024);
        let accepted =
            fabric.running.lock().expect("no panic").get(&target).map(|running| running.accepted.clone());
        let accepted = accepted.ok_or(io::ErrorKind::ConnectionRefused)?;
        accepted.send((theirs, from)).map_err(|_| io::ErrorKind::ConnectionRefused)?;
        let ((near_in, near_out), (far_in, far_out)) = (tokio::io::split(near), tokio::io::split(far));
        let node = self.node;
        // When one way has ended both have.
        let (there, back) = (
            fabric.clone().carry(node, target, near_in, far_out),
            fabric.carry(target, node, far_in, near_out),
        );
        tokio::spawn(async move {
            tokio::select! { () = there => {} () = back => {} }
        });
        Ok(Link::Bytes(Box::new(own), from))
    }
}

fn id(node: usize) -> String {
    format!("n{node}")
}

/// In the place of plugins. It takes each message after a moment.
struct Recorder {
    fabric: Arc<Fabric>,
    network: Weak<Network>,
    node: usize,
    life: u32,
}

impl Recorder {
    fn note(&self, message: &Message) {
        if let MessageType::Text(text) = &message.msg_type {
            let mut record = self.fabric.record.lock().expect("no panic");
            record.taken.entry(self.node).or_default().push(Taken {
                text: text.clone(),
                via: message.via.clone(),
                life: self.life,
                at: Instant::now(),
            });
        }
    }
}

impl Hall for Recorder {
    fn take(&self, Inbound { message, owed, .. }: Inbound) {
        self.note(&message);
        if let (Some(owed), Some(network)) = (owed, self.network.upgrade()) {
            tokio::spawn(async move { delivery::finished(&network, &owed, true) });
        }
    }

    fn take_plain(&self, batch: Batch) {
        for span in batch.of_kind(|_| true) {
            self.note(&pack::decode(&batch.packed[span]).expect("a message"));
        }
    }
}

/// Starts a node, or starts it again with nothing but its id.
async fn start(fabric: &Arc<Fabric>, node: usize) {
    let relays = if node < RELAYS { KEEPS } else { "" };
    let text = format!("{relays}[discovery]\nenabled = true\nrequest_interval_secs = 5\ntarget_peers = 6\n[network.connection_policy]\nheartbeat_interval_ms = 2000\nheartbeat_timeout_ms = 8000\nreconnect_max_delay_ms = 5000\nreconnect_max_attempts = 1000\n[network.delivery]\nretry_interval_ms = 500\nreliable_retry_budget = 100\nordered_reliable_retry_budget = 5\nreliable_timeout_ms = 24000\nordered_reliable_timeout_ms = 24000\n");
    let net = Raw::parse("sim.toml".as_ref(), &text).and_then(Raw::validate).expect("valid").networking;
    let events = Emitter::new(&Bus::start(Vec::new()), "sim");
    let local = Local {
        node_id: id(node),
        realm: RealmInfo::new("Sim", "1"),
        node_type: "daemon".into(),
        capabilities: relay::Relay::capabilities(&net.relay),
        nonce: format!("{node}-{}", fabric.below(u64::MAX)),
        port: 7000,
        allowed_node_types: None,
    };
    let mut network = Network::new(local, net, None, events, String::new());
    network.dial = Box::new(Out { fabric: Arc::downgrade(fabric), node });
    let network = Arc::new(network);
    let mut tasks = JoinSet::new();
    // Everybody dials the relays; the rest is gossip's.
    for relay in (0..RELAYS).filter(|relay| *relay != node) {
        tasks.spawn(dialer::keep(network.clone(), addr(relay).to_string()));
    }
    tasks.spawn(connector::run(network.clone()));
    tasks.spawn(relay::sweep(network.clone()));
    tasks.spawn(delivery::sweep(network.clone()));
    let life = {
        let mut lives = fabric.lives.lock().expect("no panic");
        *lives.entry(node).and_modify(|life| *life += 1).or_default()
    };
    let recorder = Recorder { fabric: fabric.clone(), network: Arc::downgrade(&network), node, life };
    let _ = network.hall.set(Box::new(recorder));
    let (accepted, mut coming) = mpsc::unbounded_channel::<(DuplexStream, SocketAddr)>();
    let host = network.clone();
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        while let Some((stream, from)) = coming.recv().await {
            let network = host.clone();
            connections.spawn(async move {
                let link = Link::Bytes(Box::new(stream), addr(node));
                greeting::carry(&network, link, from, Direction::Inbound, ()).await;
            });
            while connections.try_join_next().is_some() {}
        }
    });
    fabric.running.lock().expect("no panic").insert(node, Running { network, tasks, accepted });
}

fn network_of(fabric: &Fabric, node: usize) -> Option<Arc<Network>> {
    fabric.running.lock().expect("no panic").get(&node).map(|running| running.network.clone())
}

/// Sends one message and writes down what became of it, if its sender lives to know.
async fn send(fabric: Arc<Fabric>, from: usize, to: usize, text: String, key: Option<String>) -> bool {
    let Some(network) = network_of(&fabric, from) else { return false };
    let message = Message::new(&id(from), &id(to), MessageType::Text(text.clone()), None, None);
    let class = if key.is_some() { DeliveryClass::OrderedReliable } else { DeliveryClass::Reliable };
    let mut options = DeliveryOptions::new(class);
    options.ordering_key = key;
    let outcome = delivery::deliver(&network, message, &options).await;
    let alive = network_of(&fabric, from).is_some_and(|now| Arc::ptr_eq(&now, &network));
    let mut record = fabric.record.lock().expect("no panic");
    match outcome {
        DeliveryOutcome::AcknowledgedByPeer if alive => {
            record.acknowledged.push((from, to, text));
            true
        }
        _ => {
            record.failed += 1;
            false
        }
    }
}

async fn story(seed: u64) {
    let fabric = Arc::new(Fabric {
        running: Mutex::default(),
        groups: Mutex::default(),
        dice: Mutex::new(Dice::seeded(seed)),
        record: Mutex::default(),
        lives: Mutex::default(),
        ephemeral: Mutex::new(30_000),
    });
    for node in 0..NODES {
        start(&fabric, node).await;
    }
    let begun = Instant::now();
    let mut sending = JoinSet::new();
    let (mut count, mut crashes, mut partitions) = (0u64, 0, 0);
    let (mut most_kept, mut full) = (0, 0);
    // Streams that go on through all of it: what fails is not sent again, and what comes after it must arrive all the same.
    for from in 0..STREAMS {
        let fabric = fabric.clone();
        sending.spawn(async move {
            let mut n = 0;
            while begun.elapsed() < TROUBLE {
                // Three at a time, which may overtake each other on their way.
                let next = |n: u64| {
                    let text = format!("o{from}-{}-{n}", fabric.life(from));
                    send(fabric.clone(), from, stream_to(from), text, Some("k".into()))
                };
                tokio::join!(biased; next(n + 1), next(n + 2), next(n + 3));
                n += 3;
                sleep(Duration::from_millis(500)).await;
            }
            true
        });
    }
    while begun.elapsed() < TROUBLE {
        sleep(Duration::from_millis(100 + fabric.below(200))).await;
        for _ in 0..2 {
            let (from, to) = (fabric.below(NODES as u64) as usize, fabric.below(NODES as u64) as usize);
            if from != to {
                count += 1;
                sending.spawn(send(fabric.clone(), from, to, format!("m{count}"), None));
            }
        }
        match fabric.below(60) {
            0 => {
                partitions += 1;
                let mut groups = fabric.groups.lock().expect("no panic");
                groups.clear();
                let mut dice = fabric.dice.lock().expect("no panic");
                for node in 0..NODES {
                    groups.insert(node, dice.below(2) as u8);
                }
            }
            1..=4 => fabric.groups.lock().expect("no panic").clear(),
            5 => {
                crashes += 1;
                let node = fabric.below(NODES as u64) as usize;
                let gone = fabric.running.lock().expect("no panic").remove(&node);
                if let Some(mut running) = gone {
                    running.tasks.abort_all();
                }
                let again = fabric.clone();
                let pause = Duration::from_millis(200 + fabric.below(5000));
                sending.spawn(async move {
                    sleep(pause).await;
                    start(&again, node).await;
                    true
                });
            }
            _ => {}
        }
        for node in 0..RELAYS {
            if let Some(network) = network_of(&fabric, node) {
                let (frames, bytes) = network.relay.kept();
                let bounds = &network.relay.config;
                assert!(
                    frames <= bounds.global && bytes <= bounds.bytes,
                    "seed {seed}: {frames} frames kept"
                );
                let most = (0..NODES).map(|target| network.relay.kept_for(&id(target))).max().unwrap_or(0);
                assert!(most <= bounds.per_target, "seed {seed}: {most} frames kept for one");
                full += u32::from((0..NODES).any(|target| network.relay.is_full(&id(target))));
                most_kept = most_kept.max(frames);
            }
        }
    }
    fabric.groups.lock().expect("no panic").clear();
    while sending.join_next().await.is_some() {}
    sleep(QUIET).await;
    let in_trouble = {
        let record = fabric.record.lock().expect("no panic");
        record.acknowledged.iter().filter(|(_, _, text)| text.starts_with('o')).count()
    };
    assert!(in_trouble > 10 * STREAMS, "seed {seed}: only {in_trouble} of streams arrived in trouble");
    // Whatever happened, streams flow again, in order, between nodes that never spoke before and those that did.
    let mut streams = JoinSet::new();
    for from in 0..NODES {
        let (fabric, to) = (fabric.clone(), stream_to(from));
        streams.spawn(async move {
            for n in AFTER..AFTER + 5 {
                let text = format!("o{from}-{}-{n}", fabric.life(from));
                let sent = send(fabric.clone(), from, to, text, Some("k".into())).await;
                let seen = |node: usize| {
                    network_of(&fabric, node)
                        .map(|n| n.peers.list().into_iter().map(|p| p.node_id).collect::<Vec<_>>())
                };
                assert!(
                    sent,
                    "seed {seed}: {from} to {to}: ordered message {n} stalled; they have {:?} and {:?}",
                    seen(from),
                    seen(to)
                );
            }
        });
    }
    while let Some(stream) = streams.join_next().await {
        stream.expect("no panic");
    }
    let record = fabric.record.lock().expect("no panic");
    // No acknowledged message was lost.
    let mut taken: HashSet<(usize, &str)> = HashSet::new();
    let mut times: BTreeMap<(usize, &str), usize> = BTreeMap::new();
    for (node, messages) in &record.taken {
        for Taken { text, .. } in messages {
            taken.insert((*node, text));
            *times.entry((*node, text)).or_default() += 1;
        }
    }
    for (from, to, text) in &record.acknowledged {
        assert!(
            taken.contains(&(*to, text.as_str())),
            "seed {seed}: {text} from {from} to {to} was acknowledged and lost"
        );
    }
    // Ordered ones came in order, in each life of either side (whoever starts again remembers nothing of before) and by each way (what
    // a relay says of a sender is never taken for the sender's own word).
    for (node, messages) in &record.taken {
        let mut last: HashMap<(u32, &Option<String>, &str), u64> = HashMap::new();
        for Taken { text, via, life, .. } in messages.iter().filter(|taken| taken.text.starts_with('o')) {
            let (sender, n) = text.rsplit_once('-').expect("a number");
            let n: u64 = n.parse().expect("a number");
            let before = last.insert((*life, via, sender), n);
            assert!(
                before.is_none_or(|before| before < n),
                "seed {seed}: {sender} to {node} in its life {life}, via {via:?}: {n} after {before:?}"
            );
        }
    }
    // What goes different ways may come in another order, and is sorted for nobody across ways.
    let mut overtaken = 0;
    for messages in record.taken.values() {
        let mut highest: HashMap<&str, u64> = HashMap::new();
        for Taken { text, .. } in messages {
            let Some((sender, n)) =
                text.rsplit_once('-').and_then(|(s, n)| Some((s, n.parse::<u64>().ok()?)))
            else {
                continue;
            };
            let before = highest.entry(sender).or_default();
            overtaken += u32::from(n < *before);
            *before = n.max(*before);
        }
    }
    // Gossip has led to connections: everybody has as many as it wants, and all hang together.
    let running = fabric.running.lock().expect("no panic");
    assert_eq!(running.len(), NODES, "seed {seed}: all are back");
    let peers: Vec<Vec<String>> = (0..NODES)
        .map(|node| running[&node].network.peers.list().into_iter().map(|peer| peer.node_id).collect())
        .collect();
    for (node, list) in peers.iter().enumerate() {
        assert!(list.len() >= 6, "seed {seed}: {node} has only {list:?}");
    }
    let mut reached = HashSet::from([0usize]);
    let mut edge = vec![0usize];
    while let Some(node) = edge.pop() {
        for next in peers[node].iter().filter_map(|id| id[1..].parse::<usize>().ok()) {
            if reached.insert(next) {
                edge.push(next);
            }
        }
    }
    assert_eq!(reached.len(), NODES, "seed {seed}");
    let twice = times.values().filter(|count| **count > 1).count();
    println!(
        "seed {seed}: {count} messages, {} acknowledged, {} not; {crashes} crashes, {partitions} partitions; {in_trouble} acknowledged of {STREAMS} ordered streams meanwhile; {twice} taken again after a crash or by another way; at most {most_kept} frames kept, {full} times no more for somebody, {overtaken} overtaken",
        record.acknowledged.len(),
        record.failed
    );
    // Each message that was taken, in its order and at its time, and each that was acknowledged.
    let mut digest = std::hash::DefaultHasher::new();
    for node in 0..NODES {
        for Taken { text, via, life, at } in record.taken.get(&node).into_iter().flatten() {
            (node, text, via, life, at.duration_since(begun)).hash(&mut digest);
        }
    }
    (&record.acknowledged, record.failed).hash(&mut digest);
    println!("seed {seed}: digest {:016x}", digest.finish());
    assert!(full > 0, "seed {seed}: the bounds of relays were never met");
    let plain = record.acknowledged.iter().filter(|(_, _, text)| text.starts_with('m')).count();
    assert!(plain as u64 > count / 2, "seed {seed}: the trouble was too much for a test to mean anything");
}

/// In the process that tells a story: which.
const STORY: &str = "THENODES_STORY";

/// Tells the story of a seed in a process of its own; what it said, or what it said and failed.
fn told(seed: u64) -> Result<String, String> {
    let program = std::env::current_exe().expect("a program");
    let output = std::process::Command::new(program)
        .args(["--exact", "a_story", "--ignored", "--nocapture", "--test-threads=1"])
        .env(STORY, seed.to_string())
        .output()
        .expect("it starts");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    match output.status.success() && said.contains("digest") {
        true => Ok(said),
        false => Err(format!("seed {seed}: {said}{}", String::from_utf8_lossy(&output.stderr))),
    }
}

/// All of it at the same time, as far as there are processors.
fn all_told(seeds: impl Iterator<Item = u64>) -> Vec<Result<String, String>> {
    let seeds: Vec<u64> = seeds.collect();
    let width = std::thread::available_parallelism().map_or(1, usize::from);
    let mut stories = Vec::new();
    for some in seeds.chunks(width) {
        std::thread::scope(|scope| {
            let all: Vec<_> = some.iter().map(|seed| scope.spawn(|| told(*seed))).collect();
            stories.extend(all.into_iter().map(|one| one.join().expect("no panic")));
        });
    }
    stories
}

/// Told to a process of its own by the tests below.
#[test]
#[ignore = "one story, for the tests that tell stories"]
fn a_story() {
    let Ok(seed) = std::env::var(STORY).map(|seed| seed.parse().expect("a number")) else { return };
    steady::begin(seed);
    let teller = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .expect("a runtime");
        runtime.block_on(async {
            steady::calendar();
            story(seed).await
        });
    });
    teller.join().expect("the story ended well");
    assert!(steady::asked() > 0, "the system's randomness was not ours");
}

#[test]
fn twenty_nodes_in_trouble_lose_nothing_that_was_acknowledged_and_find_together_again() {
    let number =
        |name: &str, default: u64| std::env::var(name).ok().and_then(|n| n.parse().ok()).unwrap_or(default);
    let first = number("THENODES_SEED", 1);
    for story in all_told(first..first + number("THENODES_SEEDS", 2)) {
        let said = story.unwrap_or_else(|failed| panic!("{failed}"));
        let facts = said.lines().filter_map(|line| line.find("seed").map(|at| &line[at..]));
        facts.for_each(|line| println!("{line}"));
    }
}

#[test]
fn a_seed_replays_each_step() {
    let digests: Vec<String> = all_told([7, 7, 8].into_iter())
        .into_iter()
        .map(|story| {
            let said = story.unwrap_or_else(|failed| panic!("{failed}"));
            let digest = said.split("digest ").nth(1).and_then(|rest| rest.split_whitespace().next());
            digest.expect("a digest").to_owned()
        })
        .collect();
    assert_eq!(digests[0], digests[1], "the same seed");
    assert_ne!(digests[0], digests[2], "the control: another seed");
}
