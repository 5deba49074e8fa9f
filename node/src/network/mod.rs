//! The network wing: listens, dials, greets, and carries messages of peers. Everything from a socket is hostile input until
//! door 1 ([`wire`]) has read it and [`handshake`] has judged who sends it. This wing knows nothing above it: messages go up
//! through a bounded channel.

pub mod channel;
pub mod connector;
pub mod delivery;
pub mod dialer;
pub mod discovery;
pub mod greeting;
pub mod handshake;
pub mod listener;
pub mod outbox;
pub mod pace;
pub mod peerfile;
pub mod peers;
pub mod rejudge;
pub mod relay;
pub mod session;
mod taking;
pub mod wire;

use crate::config::{Encryption, Networking};
use crate::events::Emitter;
use crate::security::tls::Tls;
use peers::PeerTable;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use thenodes::host::PeerInfo;
use thenodes::network::message::Message;
use thenodes::network::PeerStore;
use thenodes::realms::RealmInfo;
use tokio::sync::{mpsc, watch, OwnedSemaphorePermit, Semaphore};

/// TCP, TLS and HELLO together must be done by then.
pub const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);
/// Messages on their way up to the hall.
pub const INBOUND_QUEUE: usize = 1024;
/// Weight of all messages on their way up, bytes once parsed: whoever brings more waits.
pub const INBOUND_WEIGHT: usize = 128 * 1024 * 1024;
// Whoever waits for more room than there is waits for ever.
const _: () = assert!(wire::MAX_WEIGHT <= INBOUND_WEIGHT / 2);
/// Keys that are remembered with the id they came with.
pub const MAX_REMEMBERED_KEYS: usize = 4096;
/// A write that takes longer ends the connection.
pub const WRITE_DEADLINE: Duration = Duration::from_secs(30);

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
    /// Drawn for this run: a node that sees its own has dialed itself.
    pub nonce: String,
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
    /// What its sender is owed once it is taken.
    pub owed: Option<delivery::Owed>,
}

/// Nodes that an operator may hold off.
const MAX_HELD_OFF: usize = 1024;

/// What every connection shares.
pub struct Network {
    /// The operator's wishes.
    pub net: Networking,
    /// Relaying for others.
    pub relay: relay::Relay,
    /// Messages that are to arrive.
    pub desk: delivery::Desk,
    /// Whom to dial.
    pub connector: connector::Connector,
    /// Nodes that the operator disconnected.
    pub held: Mutex<HashSet<String>>,
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

impl Network {
    /// A network without peers.
    pub fn new(
        local: Local,
        net: Networking,
        security: Option<(Tls, Encryption)>,
        events: Emitter,
        command: String,
        up: mpsc::Sender<Inbound>,
    ) -> Self {
        Self {
            peers: PeerTable::new(&local.node_id),
            store: PeerStore::with_capacity(net.persistence.max_entries),
            relay: relay::Relay::new(net.relay.clone()),
            desk: delivery::Desk::new(net.delivery),
            connector: connector::Connector::default(),
            held: Mutex::default(),
            local,
            net,
            security,
            events,
            command,
            up,
            room: Arc::new(Semaphore::new(INBOUND_WEIGHT)),
            trusted: watch::Sender::default(),
            keys: Mutex::default(),
        }
    }

    /// True if the operator disconnected this node.
    pub fn held_off(&self, node_id: &str) -> bool {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).contains(node_id)
    }

    /// Lets in again whoever is known at this address.
    pub fn release(&self, target: &str) {
        let at = target.parse().ok().and_then(|addr| self.store.node_id_of(&addr));
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        match at {
            Some(id) => drop(held.remove(&id)),
            // A name: nobody knows whom it meant before.
            None => held.clear(),
        }
    }

    /// Keeps a node off, or lets it in again.
    pub fn hold_off(&self, node_id: &str, hold: bool) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if !hold {
            held.remove(node_id);
        } else if held.len() < MAX_HELD_OFF {
            held.insert(node_id.to_owned());
        }
    }
}
