//! One peer: greeting, then a read loop and a write loop until one of them ends. The id is held by the session and by
//! nothing else, so whatever ends a session frees the id.

use super::channel::{secure, Bytes, ChannelError, Pending, Secured};
use super::handshake::{hello, judge, Refusal};
use super::peers::{Direction, Place};
use super::rejudge::{until_unwelcome, Trusted};
use super::wire::{decode, encode, weight, LineDecoder, WireError, MAX_HELLO, MAX_LINE, MAX_WEIGHT};
use super::{
    Inbound, Network, HANDSHAKE_DEADLINE, MAX_REMEMBERED_KEYS, PROBE_INTERVAL, SILENCE, WRITE_DEADLINE,
};
use crate::config::is_node_id;
use crate::security::pki::CertificateFacts;
use crate::text::printable;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};
use thenodes::events::model::LogLevel;
use thenodes::host::PeerInfo;
use thenodes::network::message::{Message, MessageType, Payload};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio::time::{timeout, timeout_at, MissedTickBehavior};

/// Texts of HEARTBEAT messages, since 0.3.
const PROBE: &str = "liveness_probe_v1";
const ANSWER: &str = "liveness_response_v1";
/// Invalid lines after which a peer is taken for something else than a node.
const MAX_INVALID: u32 = 100;
/// Bytes read at once.
const READ: usize = 16 * 1024;

/// How a connection ended.
#[derive(Debug)]
pub enum Outcome {
    /// The peer was never greeted.
    Refused(GreetingError),
    /// It was, and the session ended.
    Ended {
        /// Who it was.
        peer: Arc<PeerInfo>,
        /// Why.
        why: String,
    },
}

/// Why a connection has no peer.
#[derive(Debug, thiserror::Error)]
pub enum GreetingError {
    /// No channel.
    #[error(transparent)]
    Channel(#[from] ChannelError),
    /// A check of HELLO.
    #[error(transparent)]
    Hello(#[from] Refusal),
    /// The first line was no message.
    #[error("before HELLO: {0}")]
    Wire(#[from] WireError),
    /// It closed.
    #[error("the peer closed the connection before HELLO: {0}")]
    Closed(String),
    /// It took too long.
    #[error("no HELLO within {} s", HANDSHAKE_DEADLINE.as_secs())]
    Deadline,
}

impl GreetingError {
    fn action(&self) -> &'static str {
        match self {
            GreetingError::Channel(ChannelError::Tls(_)) => "secure_channel_failed",
            GreetingError::Channel(ChannelError::Untrusted { .. }) => "secure_channel_refused",
            GreetingError::Hello(refusal) => refusal.action(),
            GreetingError::Wire(_) => "message_invalid",
            GreetingError::Closed(_) => "peer_closed_connection",
            GreetingError::Deadline => "handshake_timeout",
        }
    }
}

/// Carries one connection from TCP to its end. `stranger` is dropped when the peer is known, or refused.
pub async fn carry<S>(
    network: &Network,
    tcp: TcpStream,
    addr: SocketAddr,
    direction: Direction,
    stranger: S,
) -> Outcome {
    let greeted = match timeout(HANDSHAKE_DEADLINE, greet(network, tcp, addr, direction)).await {
        Ok(greeted) => greeted,
        Err(_) => Err(GreetingError::Deadline),
    };
    drop(stranger);
    let Greeted { stream, decoder, place, certificate, trusted } = match greeted {
        Ok(greeted) => greeted,
        Err(error) => {
            let detail = printable(&error.to_string(), 500);
            let level = match error {
                GreetingError::Hello(Refusal::Duplicate(_)) => LogLevel::Debug,
                _ => LogLevel::Warn,
            };
            let role = direction.word();
            network.events.network(
                level,
                error.action(),
                Some(addr.to_string()),
                format!("{role}: {detail}"),
            );
            return Outcome::Refused(error);
        }
    };
    let peer = place.info.clone();
    let connected = format!("node_id={} direction={}", peer.node_id, direction.word());
    network.events.network(LogLevel::Info, "app_handshake_success", Some(addr.to_string()), connected);
    let unwelcome = until_unwelcome(network, &peer, direction, certificate.as_ref(), trusted);
    let why = run(network, stream, decoder, place, unwelcome).await;
    let detail = format!("node_id={} reason={}", peer.node_id, printable(&why, 300));
    network.events.network(LogLevel::Info, "peer_disconnected", Some(addr.to_string()), detail);
    Outcome::Ended { peer, why }
}

/// A certificate that names an id may come with no other.
fn names_it(node_id: &str, facts: &CertificateFacts) -> Result<(), Refusal> {
    match facts.common_name.as_ref().filter(|name| is_node_id(name)) {
        Some(named) if named != node_id => {
            Err(Refusal::NotItsId { claimed: node_id.into(), why: format!("its certificate names {named}") })
        }
        Some(_) | None => Ok(()),
    }
}

/// An id that a trusted key came with while this node runs is no stranger's.
fn not_of_another(network: &Network, node_id: &str, facts: &CertificateFacts) -> Result<(), Refusal> {
    let keys = network.keys.lock().unwrap_or_else(PoisonError::into_inner);
    match keys.get(node_id) {
        Some(fingerprint) if *fingerprint != facts.fingerprint => Err(Refusal::NotItsId {
            claimed: node_id.into(),
            why: "a trusted key came with it before".into(),
        }),
        Some(_) | None => Ok(()),
    }
}

/// An id belongs to the first key that came with it while this node runs.
fn first_key(network: &Network, node_id: &str, facts: &CertificateFacts) -> Result<(), Refusal> {
    let mut keys = network.keys.lock().unwrap_or_else(PoisonError::into_inner);
    match keys.get(node_id) {
        Some(fingerprint) if *fingerprint != facts.fingerprint => {
            Err(Refusal::NotItsId { claimed: node_id.into(), why: "it came with another key before".into() })
        }
        Some(_) => Ok(()),
        None if keys.len() >= MAX_REMEMBERED_KEYS => Ok(()),
        None => {
            keys.insert(node_id.into(), facts.fingerprint.clone());
            Ok(())
        }
    }
}

/// A peer that was let in.
struct Greeted {
    stream: Box<dyn Bytes>,
    decoder: LineDecoder,
    place: Place,
    certificate: Option<CertificateFacts>,
    /// Changes from before the verdict on.
    trusted: watch::Receiver<Trusted>,
}

async fn greet(
    network: &Network,
    tcp: TcpStream,
    addr: SocketAddr,
    direction: Direction,
) -> Result<Greeted, GreetingError> {
    let closed = |e: std::io::Error| GreetingError::Closed(e.to_string());
    let own = tcp.local_addr().map_err(closed)?;
    // Before the verdict: what changes meanwhile is a reason for another one.
    let trusted = network.trusted.subscribe();
    let Secured { mut stream, certificate, pending } = secure(network, tcp, addr, direction).await?;
    // The acceptor speaks first.
    if direction == Direction::Inbound {
        stream.write_all(&encode(&hello(&network.local, own, &addr.to_string()))).await.map_err(closed)?;
        stream.flush().await.map_err(closed)?;
    }
    let mut decoder = LineDecoder::new(MAX_HELLO);
    let mut buffer = vec![0; 4096];
    let first = loop {
        if let Some(message) = decoder.next()? {
            break message;
        }
        match stream.read(&mut buffer).await {
            Ok(0) => return Err(GreetingError::Closed("end of stream".into())),
            Ok(count) => decoder.push(&buffer[..count]),
            Err(error) => return Err(closed(error)),
        }
    };
    let greeted = judge(&network.local, &first)?;
    // In this order: a key that may not have the id must not become the first that came with it.
    if let Some(facts) = &certificate {
        names_it(&greeted.node_id, facts)?;
    }
    let remembered = pending.as_ref().is_some_and(Pending::is_strangers);
    if let Some(pending) = pending {
        if let (Some(facts), true) = (&certificate, remembered) {
            not_of_another(network, &greeted.node_id, facts)?;
        }
        let connected = network.peers.by_id(&greeted.node_id).is_some();
        if let Err(refused) = pending.decide(&greeted.node_id, connected).await {
            let _ = stream.shutdown().await; // it was meant
            return Err(refused.into());
        }
    }
    // What is remembered on disk holds longer than this node runs, and the operator can change it meanwhile.
    if let (Some(facts), false) = (&certificate, remembered) {
        first_key(network, &greeted.node_id, facts)?;
    }
    if direction == Direction::Outbound {
        stream.write_all(&encode(&hello(&network.local, own, &first.from))).await.map_err(closed)?;
        stream.flush().await.map_err(closed)?;
    }
    let info = PeerInfo { node_id: greeted.node_id, addr, capabilities: greeted.capabilities };
    let place = network
        .peers
        .take(info, direction, Instant::now())
        .map_err(|info| GreetingError::Hello(Refusal::Duplicate(info.node_id)))?;
    decoder.set_max(MAX_LINE);
    if direction == Direction::Outbound {
        let (id, capabilities) = (place.info.node_id.clone(), place.info.capabilities.clone());
        network.store.mark_success_with_meta(&addr, Some(id), Some(capabilities)).await;
    } else if let Some(listens) = greeted.listen_addr.and_then(|text| text.parse::<SocketAddr>().ok()) {
        // Where it listens is its own word: kept only if it speaks of the address it really has.
        if listens.ip() == addr.ip() && listens.port() != 0 {
            let (id, capabilities) = (place.info.node_id.clone(), place.info.capabilities.clone());
            network.store.mark_success_with_meta(&listens, Some(id), Some(capabilities)).await;
        }
    }
    Ok(Greeted { stream, decoder, place, certificate, trusted })
}

/// Reads and writes until the end, or until the peer is not welcome any more; says why it ended.
async fn run(
    network: &Network,
    stream: Box<dyn Bytes>,
    decoder: LineDecoder,
    place: Place,
    unwelcome: impl Future<Output = String>,
) -> String {
    let (reader, writer) = tokio::io::split(stream);
    let (heartbeat_in, heartbeats) = mpsc::channel(4);
    let peer = place.info.clone();
    let mut writing = std::pin::pin!(write(network, place, writer, heartbeats));
    let reading = read(network, &peer, reader, decoder, heartbeat_in);
    let why = tokio::select! {
        why = reading => why,
        why = unwelcome => why,
        why = &mut writing => return why,
    };
    // The writer sees the heartbeat channel close and says goodbye: close_notify frees the id at a TLS peer at once.
    let _ = timeout(Duration::from_millis(500), &mut writing).await;
    why
}

async fn read(
    network: &Network,
    peer: &Arc<PeerInfo>,
    mut reader: impl AsyncRead + Unpin,
    mut decoder: LineDecoder,
    answer: mpsc::Sender<Message>,
) -> String {
    let mut buffer = vec![0; READ];
    let mut invalid = 0;
    let mut answers_probes = false;
    let mut heard = tokio::time::Instant::now();
    let addr = || Some(peer.addr.to_string());
    loop {
        loop {
            // Room first, then parsing: a short line may be a large tree.
            let next = match decoder.next_line() {
                Ok(None) => break,
                Ok(Some(line)) => {
                    let weight = weight(line);
                    match u32::try_from(weight) {
                        Ok(size) if weight <= MAX_WEIGHT => {
                            match network.room.clone().acquire_many_owned(size).await {
                                Ok(room) => decode(line).map(|message| (message, room)),
                                Err(_) => return "the node is shutting down".into(),
                            }
                        }
                        _ => Err(WireError::TooHeavy(weight)),
                    }
                }
                Err(error) => Err(error),
            };
            match next {
                Ok((message, room)) => match sort(message, peer, network) {
                    Sorted::Probe(reply) => drop(answer.try_send(reply)),
                    Sorted::Alive => answers_probes = true,
                    Sorted::Goodbye => return "the peer said DISCONNECT".into(),
                    Sorted::Nothing => {}
                    Sorted::Up(message) => {
                        let inbound = Inbound { peer: peer.clone(), message, room };
                        // Waiting here holds up this peer only.
                        if network.up.send(inbound).await.is_err() {
                            return "the node is shutting down".into();
                        }
                    }
                },
                Err(error) => {
                    let detail = printable(&error.to_string(), 300);
                    network.events.network(LogLevel::Warn, "message_invalid", addr(), detail.clone());
                    invalid += 1;
                    if error.is_fatal() {
                        return detail;
                    }
                    if invalid >= MAX_INVALID {
                        return format!("{invalid} invalid lines");
                    }
                }
            }
        }
        let patience = if answers_probes {
            heard + SILENCE
        } else {
            tokio::time::Instant::now() + Duration::from_secs(86_400)
        };
        match timeout_at(patience, reader.read(&mut buffer)).await {
            Ok(Ok(0)) => return "the peer closed the connection".into(),
            // An end without close_notify is how upstream ends; the operating system's word is enough.
            Ok(Err(error)) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
                return "the peer closed the connection".into();
            }
            Ok(Err(error)) => return format!("reading: {error}"),
            Ok(Ok(count)) => {
                heard = tokio::time::Instant::now();
                decoder.push(&buffer[..count]);
            }
            Err(_) => {
                network.events.network(
                    LogLevel::Warn,
                    "peer_unresponsive",
                    addr(),
                    format!("node_id={}", peer.node_id),
                );
                return format!("silent for {} s", SILENCE.as_secs());
            }
        }
    }
}

/// What a message of a greeted peer leads to.
enum Sorted {
    /// Answer with this.
    Probe(Message),
    /// It answered our probe, so its silence would mean something.
    Alive,
    /// It closes.
    Goodbye,
    /// Nothing for anybody.
    Nothing,
    /// For plugins.
    Up(Message),
}

fn sort(mut message: Message, peer: &PeerInfo, network: &Network) -> Sorted {
    match &message.msg_type {
        MessageType::Heartbeat => match &message.payload {
            // Only the peer itself is answered: a probe in another name would keep a dead id alive.
            Some(Payload::Text(text)) if text == PROBE && message.from == peer.node_id => {
                Sorted::Probe(heartbeat(network, &peer.node_id, ANSWER))
            }
            Some(Payload::Text(text)) if text == ANSWER && message.from == peer.node_id => Sorted::Alive,
            Some(Payload::Text(text)) if text == PROBE || text == ANSWER => Sorted::Nothing,
            _ => {
                message.from.clone_from(&peer.node_id);
                Sorted::Up(message)
            }
        },
        MessageType::Hello { .. } => {
            network.events.network(
                LogLevel::Debug,
                "duplicate_hello_ignored",
                Some(peer.addr.to_string()),
                None,
            );
            Sorted::Nothing
        }
        MessageType::Disconnect => Sorted::Goodbye,
        _ => {
            // The envelope's `from` is a claim; the connection is a proof.
            message.from.clone_from(&peer.node_id);
            Sorted::Up(message)
        }
    }
}

fn heartbeat(network: &Network, to: &str, text: &str) -> Message {
    let payload = Some(Payload::Text(text.into()));
    Message::new(
        &network.local.node_id,
        to,
        MessageType::Heartbeat,
        payload,
        Some(network.local.realm.clone()),
    )
}

async fn write(
    network: &Network,
    mut place: Place,
    mut writer: impl AsyncWrite + Unpin,
    mut heartbeats: mpsc::Receiver<Message>,
) -> String {
    let peer = place.info.clone();
    // The first probe goes out at once: whoever answers it can be expected to answer the next ones.
    let mut probes = tokio::time::interval(PROBE_INTERVAL);
    probes.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let why = loop {
        let line: super::peers::Line = tokio::select! {
            biased;
            asked = place.closing.wait_for(|close| *close) => match asked {
                Ok(_) => break "closed by this node".to_owned(),
                Err(_) => break "replaced by another connection".to_owned(),
            },
            reply = heartbeats.recv() => match reply {
                Some(reply) => encode(&reply).into(),
                None => break "the peer has gone".to_owned(),
            },
            _ = probes.tick() => encode(&heartbeat(network, &peer.node_id, PROBE)).into(),
            line = place.queue.recv() => match line {
                Some(queued) => queued.line,
                None => break "closed by this node".to_owned(),
            },
        };
        let write = async {
            writer.write_all(&line).await?;
            writer.flush().await
        };
        match timeout(WRITE_DEADLINE, write).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => break format!("writing: {error}"),
            Err(_) => break format!("the peer took no data for {} s", WRITE_DEADLINE.as_secs()),
        }
    };
    let goodbye = async {
        let realm = Some(network.local.realm.clone());
        let message =
            Message::new(&network.local.node_id, &peer.node_id, MessageType::Disconnect, None, realm);
        writer.write_all(&encode(&message)).await?;
        writer.shutdown().await
    };
    let _ = timeout(Duration::from_secs(1), goodbye).await;
    why
}
