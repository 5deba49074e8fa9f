//! The network wing: listens, dials, greets, and carries messages of peers. Everything from a socket is hostile input until
//! door 1 ([`wire`]) has read it and [`handshake`] has judged who sends it. This wing knows nothing above it: messages go up
//! through a bounded channel.

pub mod channel;
pub mod dialer;
pub mod handshake;
pub mod listener;
pub mod peers;
pub mod rejudge;
pub mod session;
pub mod wire;

use crate::config::Encryption;
use crate::events::Emitter;
use crate::security::tls::Tls;
use peers::PeerTable;
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use thenodes::host::PeerInfo;
use thenodes::network::message::Message;
use thenodes::network::PeerStore;
use thenodes::realms::RealmInfo;
use tokio::sync::{mpsc, watch, OwnedSemaphorePermit, Semaphore};

/// TCP, TLS and HELLO together must be done by then.
pub const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);
/// A TCP connection must be there by then.
pub const CONNECT_DEADLINE: Duration = Duration::from_secs(5);
/// Connections at once, greeted or not.
pub const MAX_CONNECTIONS: usize = 512;
/// Connections at once from one address that have not been greeted yet.
pub const MAX_GREETINGS_PER_IP: usize = 16;
/// Messages on their way up to the hall.
pub const INBOUND_QUEUE: usize = 1024;
/// Weight of all messages on their way up, bytes once parsed: whoever brings more waits.
pub const INBOUND_WEIGHT: usize = 128 * 1024 * 1024;
// Whoever waits for more room than there is waits for ever.
const _: () = assert!(wire::MAX_WEIGHT <= INBOUND_WEIGHT / 2);
/// Messages that may wait for one peer.
pub const PEER_QUEUE: usize = 256;
/// Bytes that may wait for one peer.
pub const PEER_QUEUE_BYTES: usize = 8 * 1024 * 1024;
/// Connections from one address, greeted or not.
pub const MAX_CONNECTIONS_PER_IP: usize = 64;
/// Keys that are remembered with the id they came with.
pub const MAX_REMEMBERED_KEYS: usize = 4096;
/// A write that takes longer ends the connection.
pub const WRITE_DEADLINE: Duration = Duration::from_secs(30);
/// A silent peer is asked whether it lives.
pub const PROBE_INTERVAL: Duration = Duration::from_secs(30);
/// A peer of 0.3 or later that says nothing for so long is gone. (0.2 answers no probes and is never dropped for silence.)
pub const SILENCE: Duration = Duration::from_secs(90);

/// What this node says of itself in HELLO, and what it asks of others.
#[derive(Debug, Clone)]
pub struct Local {
    /// Own id.
    pub node_id: String,
    /// Own realm.
    pub realm: RealmInfo,
    /// Own type.
    pub node_type: String,
    /// Own capabilities.
    pub capabilities: Vec<String>,
    /// Port we listen on.
    pub port: u16,
    /// Types that are let in.
    pub allowed_node_types: Option<Vec<String>>,
}

/// A message of an authenticated peer.
#[derive(Debug)]
pub struct Inbound {
    /// Who sent it: proved by the connection, not by the message.
    pub peer: Arc<PeerInfo>,
    /// The message; its `from` is the peer's id.
    pub message: Message,
    /// Its part of [`INBOUND_WEIGHT`], held until it is distributed.
    pub room: OwnedSemaphorePermit,
}

/// What every connection shares.
pub struct Network {
    /// Who we are.
    pub local: Local,
    /// Who is connected.
    pub peers: PeerTable,
    /// Known addresses.
    pub store: PeerStore,
    /// TLS and its rules; `None` is plaintext.
    pub security: Option<(Tls, Encryption)>,
    /// Events.
    pub events: Emitter,
    /// How an operator's command for this node begins, up to and with a blank.
    pub command: String,
    /// The way up.
    pub up: mpsc::Sender<Inbound>,
    /// Room on the way up, see [`INBOUND_WEIGHT`].
    pub room: Arc<Semaphore>,
    /// The keys that are trusted, told anew when peers are to be judged again.
    pub trusted: watch::Sender<rejudge::Trusted>,
    /// Which key each id came with first: nobody else may use that id while this node runs.
    pub keys: Mutex<HashMap<String, String>>,
}
