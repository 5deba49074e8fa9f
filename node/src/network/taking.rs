//! What a message of an authenticated peer is to this node: a word between nodes, or something for plugins. The sender that plugins
//! see is the one that the connection proves; what came through a relay says so.

use super::delivery::receiver::Admission;
use super::delivery::{acknowledge, Owed, Path};
use super::outbox::Outbox;
use super::pace::Pace;
use super::relay::line::Forward;
use super::relay::window::Window;
use super::{discovery, wire, Inbound, Network};
use crate::config::is_node_id;
use crate::network::clock;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};
use thenodes::events::model::LogLevel;
use thenodes::host::PeerInfo;
use thenodes::network::message::{DeliveryClass, Message, MessageType, Reason};

/// Senders behind one relay whose frames are told apart.
const MAX_ORIGINS: usize = 1024;
/// Longest identity of a message.
const MAX_MESSAGE_ID: usize = 256;

/// Bytes of a peer's word that an event shows.
pub const SHOWN: usize = 256;

/// What a message leads to.
pub(super) enum Taken {
    /// Nothing.
    Nothing,
    /// An answer to the peer.
    Answer(Box<Message>),
    /// It goes up; its sender may be owed something then.
    Up(Box<(Message, Option<Owed>)>),
}

/// One peer's messages.
pub(super) struct Desk {
    peer: Arc<PeerInfo>,
    outbox: Arc<Outbox>,
    /// Frames that came through this peer.
    hops: OnceLock<Arc<Mutex<Hops>>>,
    pace: Pace,
    lists: discovery::Lists,
}

impl Desk {
    pub(super) fn new(network: &Network, peer: &Arc<PeerInfo>, outbox: &Arc<Outbox>) -> Self {
        Self {
            peer: peer.clone(),
            outbox: outbox.clone(),
            hops: OnceLock::new(),
            pace: Pace::new(network.net.accepting.messages_per_s),
            lists: discovery::Lists::default(),
        }
    }

    /// How long the peer has to wait before its next message.
    pub(super) fn pace(&mut self, now: Instant) -> Duration {
        self.pace.take(1, now)
    }

    /// A message that the peer sent itself.
    pub(super) fn message(&mut self, network: &Network, mut message: Message) -> Taken {
        match &message.msg_type {
            MessageType::PeerRequest { want } => {
                match self.lists.answer(network, &self.peer, *want, clock()) {
                    Some(list) => Taken::Answer(Box::new(list)),
                    None => Taken::Nothing,
                }
            }
            MessageType::PeerList { peers } => {
                self.lists.learn(network, &self.peer, peers, clock());
                Taken::Nothing
            }
            MessageType::DeliveryAck { message_id, .. } => {
                network.desk.acknowledged(&self.peer.node_id, message_id);
                Taken::Nothing
            }
            // The answer to a binding that this node made for its own messages is no plugin's.
            MessageType::RelayBindAck { ok, reason, nonce: Some(nonce), .. }
                if self.outbox.with_client(|client| {
                    client.answered(*nonce, *ok || *reason == Some(Reason::AlreadyBound))
                }) =>
            {
                Taken::Nothing
            }
            // Words between nodes of later releases, which this one does not act on, and no plugin's business.
            MessageType::PunchCoordinate { .. }
            | MessageType::PunchInvite { .. }
            | MessageType::PunchReady { .. }
            | MessageType::PunchGo { .. }
            | MessageType::PunchAbort { .. } => Taken::Nothing,
            _ => {
                // The envelope's `from` is a claim; the connection is a proof.
                message.from.clone_from(&self.peer.node_id);
                let owed = owed(&message, &self.peer.node_id, Path::Direct(self.outbox.clone()), None);
                Taken::Up(Box::new((message, owed)))
            }
        }
    }

    /// A frame that the peer, as a relay, brings from another node.
    pub(super) fn frame(&mut self, network: &Network, forward: &Forward<'_>) -> Taken {
        if !is_node_id(&forward.from) || *forward.from == *network.local.node_id {
            return Taken::Nothing;
        }
        let origin = forward.from.to_string();
        let hop = match forward.sequence {
            None => None,
            Some(sequence) => {
                let ack = MessageType::Ack {
                    to: network.local.node_id.clone(),
                    from: origin.clone(),
                    sequence,
                    status: "ok".into(),
                };
                let realm = Some(network.local.realm.clone());
                let ack = Message::new(&network.local.node_id, &self.peer.node_id, ack, None, realm);
                let hop = Hop {
                    line: wire::encode(&ack),
                    hops: self.hops().clone(),
                    origin: origin.clone(),
                    sequence,
                };
                match lock(self.hops()).seen(&origin, sequence) {
                    Seen::New => Some(hop),
                    // The relay did not hear that it arrived.
                    Seen::Taken => {
                        self.outbox.own(&hop.line);
                        return Taken::Nothing;
                    }
                    Seen::InHand => return Taken::Nothing,
                }
            }
        };
        let inner = forward.inner().filter(|inner| {
            inner.from == origin
                && inner.realm.as_ref().is_none_or(|realm| realm.matches(&network.local.realm))
        });
        let path = || Path::Relayed {
            outbox: self.outbox.clone(),
            relay: self.peer.node_id.clone(),
            origin: origin.clone(),
        };
        let Some(mut message) = inner else {
            // No message inside: the frame itself is the message, and its content the payload.
            let msg_type = MessageType::RelayForward {
                to: network.local.node_id.clone(),
                from: origin.clone(),
                sequence: forward.sequence,
                opaque_payload_b64: None,
            };
            let mut message =
                Message::new(&origin, &network.local.node_id, msg_type, forward.payload(), None);
            message.via = Some(self.peer.node_id.clone());
            let owed =
                hop.map(|hop| Owed { from: origin.clone(), about: None, path: path(), hop: Some(hop) });
            return Taken::Up(Box::new((message, owed)));
        };
        match &message.msg_type {
            MessageType::DeliveryAck { message_id, .. } => {
                network.desk.acknowledged(&origin, message_id);
                self.settle(hop);
                Taken::Nothing
            }
            // Only what is for plugins comes through a relay.
            MessageType::Text(_)
            | MessageType::Extension { .. }
            | MessageType::DataRequest
            | MessageType::DataResponse => {
                message.via = Some(self.peer.node_id.clone());
                // Remembered under a name of its own: relays cannot spoil what the origin says itself. Under one name whichever
                // relay it comes through, since a sender tries one after the other.
                let from = format!("relayed {origin}");
                let owed = owed(&message, &from, path(), hop.clone());
                let of_relay = hop.map(|hop| Owed { from, about: None, path: path(), hop: Some(hop) });
                Taken::Up(Box::new((message, owed.or(of_relay))))
            }
            _ => {
                self.settle(hop);
                Taken::Nothing
            }
        }
    }

    fn hops(&self) -> &Arc<Mutex<Hops>> {
        self.hops.get_or_init(Arc::default)
    }

    /// A frame that is dealt with here.
    fn settle(&self, hop: Option<Hop>) {
        if let Some(hop) = hop {
            hop.taken(&self.outbox);
        }
    }
}

fn lock(hops: &Mutex<Hops>) -> MutexGuard<'_, Hops> {
    hops.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Numbers of frames that came through one relay, by their sender: those that came, and those that were taken.
#[derive(Debug, Default)]
pub struct Hops(HashMap<String, (Window, Window)>);

enum Seen {
    New,
    InHand,
    Taken,
}

impl Hops {
    fn seen(&mut self, origin: &str, sequence: u64) -> Seen {
        if let Some((came, taken)) = self.0.get_mut(origin) {
            return match came.take_or_begin(sequence) {
                true => Seen::New,
                false if taken.has(sequence) => Seen::Taken,
                false => Seen::InHand,
            };
        }
        if self.0.len() >= MAX_ORIGINS {
            let any = self.0.keys().next().cloned();
            any.map(|any| self.0.remove(&any));
        }
        let mut taken = Window::beginning(sequence);
        taken.give_back(sequence);
        self.0.insert(origin.to_owned(), (Window::beginning(sequence), taken));
        Seen::New
    }
}

/// What the relay is owed that brought a frame.
#[derive(Debug, Clone)]
pub struct Hop {
    line: Vec<u8>,
    hops: Arc<Mutex<Hops>>,
    origin: String,
    sequence: u64,
}

impl Hop {
    /// The frame was taken: the relay hears so, now and when it asks again.
    pub(super) fn taken(&self, outbox: &Outbox) {
        if let Some((_, taken)) = lock(&self.hops).0.get_mut(&self.origin) {
            taken.take_or_begin(self.sequence);
        }
        outbox.own(&self.line);
    }

    /// It was not: it may come again.
    pub(super) fn not_taken(&self) {
        if let Some((came, _)) = lock(&self.hops).0.get_mut(&self.origin) {
            came.give_back(self.sequence);
        }
    }
}

/// What is owed for a message that asks for an acknowledgement.
fn owed(message: &Message, from: &str, path: Path, hop: Option<Hop>) -> Option<Owed> {
    let about = message.delivery.clone().filter(|about| about.class != DeliveryClass::FireAndForget)?;
    Some(Owed { from: from.to_owned(), about: Some(about), path, hop })
}

/// Lets a message up, unless it was there before or waits for an earlier one.
pub(super) fn admit(network: &Network, inbound: Inbound) -> Option<Inbound> {
    let Some(owed) = inbound.owed.clone() else { return Some(inbound) };
    let Some(about) = &owed.about else { return Some(inbound) };
    if about.message_id.is_empty() || about.message_id.len() > MAX_MESSAGE_ID {
        let (id, addr) = (&inbound.peer.node_id, inbound.peer.addr.to_string());
        let detail = format!("node_id={id} a message id of {} bytes", about.message_id.len());
        network.events.network(LogLevel::Warn, "message_invalid", Some(addr), detail);
        return None;
    }
    let mut arrived = network.desk.arrived();
    // What its sender said itself, and said again through a relay.
    let direct =
        matches!(&owed.path, Path::Relayed { origin, .. } if arrived.knows(origin, &about.message_id));
    let admission = match direct {
        true => Admission::Duplicate,
        false => arrived.admit(&owed.from, about, inbound, clock()),
    };
    drop(arrived);
    match admission {
        Admission::Take(inbound) => return Some(inbound),
        Admission::Duplicate => acknowledge(network, &owed, "duplicate"),
        Admission::Waits => {}
        // The relay may bring it again, when more is known.
        Admission::InHand | Admission::Refused => {
            if let Some(hop) = &owed.hop {
                hop.not_taken();
            }
        }
    }
    None
}
