//! The network wing: listens, dials, greets, and carries messages of peers. Everything from a socket is hostile input until
//! door 1 ([`wire`]) has read it and [`handshake`] has judged who sends it. This wing knows nothing above it but that there is a
//! [`Hall`], which takes messages without ever waiting.

pub mod channel;
pub mod connector;
pub mod delivery;
pub mod dialer;
pub mod discovery;
pub mod greeting;
pub mod handshake;
pub mod listener;
pub mod outbox;
pub mod ownership;
pub mod pace;
pub mod peerfile;
pub mod peers;
pub mod plain;
pub mod rejudge;
pub mod relay;
pub mod rules;
pub mod session;
mod socket;
pub mod taking;
pub mod wire;
mod writing;

use crate::config::Networking;
use crate::events::Emitter;
use crate::security::owners::Owners;
use peers::PeerTable;
use std::collections::HashSet;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;
use thenodes::host::PeerInfo;
use thenodes::network::message::Message;
use thenodes::network::PeerStore;
use thenodes::realms::RealmInfo;
use tokio::net::TcpStream;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

/// TCP, TLS and HELLO together must be done by then.
pub const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);
/// Weight of all messages on their way up, bytes once parsed: whoever brings more waits.
pub const INBOUND_WEIGHT: usize = 128 * 1024 * 1024;
// Whoever waits for more room than there is waits for ever.
const _: () = assert!(wire::MAX_WEIGHT <= INBOUND_WEIGHT / 2);
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
    /// Its part of [`INBOUND_WEIGHT`], held until it is distributed; what had to wait for an earlier message gave it back.
    pub room: Option<OwnedSemaphorePermit>,
    /// What it may take once parsed, bytes.
    pub weight: usize,
    /// What its sender is owed once it is taken.
    pub owed: Option<delivery::Owed>,
}

impl delivery::receiver::Parks for Inbound {
    fn weight(&self) -> usize {
        // What was parked has no permit any more; its weight is what its line may be.
        self.weight
    }

    fn park(&mut self) {
        self.room = None;
    }
}

/// What takes messages above this wing. Called in the task of the peer that sent them, and so it never waits: what cannot be handed on at
/// once is kept within the bounds of whoever it is for, or dropped there. It holds the room of a message for as long as it keeps it, and
/// whoever sends more waits for that room.
pub trait Hall: Send + Sync {
    /// A message.
    fn take(&self, inbound: Inbound);
    /// Messages that are owed nothing.
    fn take_plain(&self, batch: plain::Batch);
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
    /// The node ends: nobody is let in and nobody dialed any more.
    pub ending: AtomicBool,
    /// How connections are made.
    pub dial: Box<dyn Dial>,
    /// Nodes that the operator disconnected.
    pub held: Mutex<HashSet<String>>,
    /// Who we are.
    pub local: Local,
    /// Who is connected.
    pub peers: PeerTable,
    /// Known addresses.
    pub store: PeerStore,
    /// What became of dialing bootstrap nodes, where it failed.
    pub bootstrap_errors: dialer::Errors,
    /// TLS and its rules; `None` is plaintext.
    pub security: Option<rules::Security>,
    /// Events.
    pub events: Emitter,
    /// How an operator's command for this node begins, up to and with a blank.
    pub command: String,
    /// The way up, which is there before anybody is let in.
    pub hall: OnceLock<Box<dyn Hall>>,
    /// Room on the way up, see [`INBOUND_WEIGHT`].
    pub room: Arc<Semaphore>,
    /// Which key each id came with first.
    pub owners: Mutex<Owners>,
    /// An id came with a key.
    pub met: Notify,
}

/// The time by the runtime's clock: the system's, or a simulation's.
pub fn clock() -> std::time::Instant {
    tokio::time::Instant::now().into_std()
}

/// A connection that carries bytes, before anything is known of the other side.
pub enum Link {
    /// TCP, on which TLS may be spoken.
    Tcp(TcpStream),
    /// Anything else, for nodes without TLS: an embedder's own transport, a simulation. With the own address.
    Bytes(Box<dyn channel::Bytes>, SocketAddr),
}

impl Link {
    fn own_addr(&self) -> io::Result<SocketAddr> {
        match self {
            Link::Tcp(tcp) => tcp.local_addr(),
            Link::Bytes(_, own) => Ok(*own),
        }
    }
}

/// How connections are made.
#[async_trait::async_trait]
pub trait Dial: Send + Sync {
    /// Connects; the caller holds it to its deadline.
    async fn dial(&self, addr: SocketAddr) -> io::Result<Link>;
}

/// By TCP.
struct Tcp;

#[async_trait::async_trait]
impl Dial for Tcp {
    async fn dial(&self, addr: SocketAddr) -> io::Result<Link> {
        TcpStream::connect(addr).await.map(Link::Tcp)
    }
}

impl Network {
    /// A network without peers.
    pub fn new(
        local: Local,
        net: Networking,
        security: Option<rules::Rules>,
        events: Emitter,
        command: String,
    ) -> Self {
        let owners = ownership::table(security.as_ref().map(|rules| &rules.encryption));
        Self {
            peers: PeerTable::new(&local.node_id),
            store: PeerStore::with_capacity(net.persistence.max_entries),
            bootstrap_errors: dialer::Errors::default(),
            relay: relay::Relay::new(net.relay.clone()),
            desk: delivery::Desk::new(net.delivery),
            connector: connector::Connector::default(),
            ending: AtomicBool::new(false),
            dial: Box::new(Tcp),
            held: Mutex::default(),
            local,
            net,
            security: security.map(rules::Security::new),
            events,
            command,
            hall: OnceLock::new(),
            room: Arc::new(Semaphore::new(INBOUND_WEIGHT)),
            owners: Mutex::new(owners),
            met: Notify::new(),
        }
    }

    /// The rules of TLS as they are now; `None` is plaintext.
    pub fn rules(&self) -> Option<Arc<rules::Rules>> {
        self.security.as_ref().map(rules::Security::rules)
    }

    /// A message goes up.
    pub fn up(&self, inbound: Inbound) {
        if let Some(hall) = self.hall.get() {
            hall.take(inbound);
        }
    }

    /// Says goodbye to everybody, waits for so long until they are gone, and takes back what must not be lost.
    pub async fn end(&self, patience: Duration) {
        self.ending.store(true, Ordering::Release);
        self.peers.close_all();
        let mut changes = self.peers.changes();
        let gone = async {
            while self.peers.count().0 > 0 {
                if changes.changed().await.is_err() {
                    return;
                }
            }
        };
        let _ = tokio::time::timeout(patience, gone).await;
        for (peer, outbox) in self.peers.all() {
            self.relay.give_back(self, &peer.node_id, outbox.end());
        }
    }

    /// True if the operator disconnected this node.
    pub fn held_off(&self, node_id: &str) -> bool {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).contains(node_id)
    }

    /// Keeps a node off, or lets it in again. False if too many are held off already.
    pub fn hold_off(&self, node_id: &str, hold: bool) -> bool {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if !hold {
            held.remove(node_id);
            return true;
        }
        if held.len() >= MAX_HELD_OFF && !held.contains(node_id) {
            return false;
        }
        held.insert(node_id.to_owned());
        true
    }
}

#[cfg(test)]
mod for_tests {
    use super::*;

    /// A network without peers, with the default limits. Needs a runtime.
    pub(super) fn a_network() -> Network {
        let events = Emitter::new(&crate::events::Bus::start(Vec::new()), "test");
        let local = Local {
            node_id: "n".into(),
            realm: thenodes::realms::RealmInfo::new("T", "1"),
            node_type: "d".into(),
            capabilities: vec![],
            nonce: "n".into(),
            port: 0,
            allowed_node_types: None,
        };
        let net = crate::config::Raw::default().validate().expect("nothing written is valid").networking;
        Network::new(local, net, None, events, String::new())
    }
}
