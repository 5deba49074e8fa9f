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
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use thenodes::events::model::LogLevel;
use thenodes::host::PeerInfo;
use thenodes::network::message::{DeliveryClass, Message, MessageType, Reason};
use tokio::sync::OwnedSemaphorePermit;

/// Senders behind one relay whose frames are told apart.
const MAX_ORIGINS: usize = 1024;
/// Longest identity of a message.
const MAX_MESSAGE_ID: usize = 256;

/// What a message leads to.
pub(super) enum Taken {
    /// Nothing.
    Nothing,
    /// An answer to the peer.
    Answer(Message),
    /// It goes up; its sender may be owed something then.
    Up(Message, Option<Owed>),
}

/// One peer's messages.
pub(super) struct Desk {
    peer: Arc<PeerInfo>,
    outbox: Arc<Outbox>,
    /// Numbers of frames that came through this peer, by their sender.
    windows: HashMap<String, Window>,
    pace: Pace,
    lists: discovery::Lists,
}

impl Desk {
    pub(super) fn new(network: &Network, peer: &Arc<PeerInfo>, outbox: &Arc<Outbox>) -> Self {
        Self {
            peer: peer.clone(),
            outbox: outbox.clone(),
            windows: HashMap::new(),
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
                match self.lists.answer(network, &self.peer, *want, Instant::now()) {
                    Some(list) => Taken::Answer(list),
                    None => Taken::Nothing,
                }
            }
            MessageType::PeerList { peers } => {
                self.lists.learn(network, &self.peer, peers, Instant::now());
                Taken::Nothing
            }
            MessageType::DeliveryAck { message_id, .. } => {
                network.desk.acknowledged(&self.peer.node_id, message_id);
                Taken::Nothing
            }
            // The answer to a binding that this node made for its own messages is no plugin's.
            MessageType::RelayBindAck { ok, reason, nonce: Some(nonce), .. }
                if self.outbox.client().answered(*nonce, *ok || *reason == Some(Reason::AlreadyBound)) =>
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
                Taken::Up(message, owed)
            }
        }
    }

    /// A frame that the peer, as a relay, brings from another node.
    pub(super) fn frame(&mut self, network: &Network, forward: &Forward<'_>) -> Taken {
        if !is_node_id(&forward.from) || *forward.from == *network.local.node_id {
            return Taken::Nothing;
        }
        let origin = forward.from.to_string();
        let hop = forward.sequence.map(|sequence| {
            let ack = MessageType::Ack {
                to: network.local.node_id.clone(),
                from: origin.clone(),
                sequence,
                status: "ok".into(),
            };
            let realm = Some(network.local.realm.clone());
            wire::encode(&Message::new(&network.local.node_id, &self.peer.node_id, ack, None, realm))
        });
        if let Some(sequence) = forward.sequence {
            if !self.is_new(&origin, sequence) {
                // The relay did not hear that it arrived.
                if let Some(line) = &hop {
                    self.outbox.own(line);
                }
                return Taken::Nothing;
            }
        }
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
            let owed = Owed { from: origin.clone(), about: None, path: path(), hop };
            return Taken::Up(message, Some(owed));
        };
        match &message.msg_type {
            MessageType::DeliveryAck { message_id, .. } => {
                network.desk.acknowledged(&origin, message_id);
                self.hop(hop.as_deref());
                Taken::Nothing
            }
            // Only what is for plugins comes through a relay.
            MessageType::Text(_)
            | MessageType::Extension { .. }
            | MessageType::DataRequest
            | MessageType::DataResponse => {
                message.via = Some(self.peer.node_id.clone());
                // Remembered under both names: a relay cannot spoil what its origin says itself.
                let from = format!("{} {origin}", self.peer.node_id);
                let owed = owed(&message, &from, path(), hop.clone());
                Taken::Up(message, owed.or(Some(Owed { from, about: None, path: path(), hop })))
            }
            _ => {
                self.hop(hop.as_deref());
                Taken::Nothing
            }
        }
    }

    fn hop(&self, line: Option<&[u8]>) {
        if let Some(line) = line {
            self.outbox.own(line);
        }
    }

    fn is_new(&mut self, origin: &str, sequence: u64) -> bool {
        if let Some(window) = self.windows.get_mut(origin) {
            return window.take(sequence);
        }
        if self.windows.len() >= MAX_ORIGINS {
            let any = self.windows.keys().next().cloned();
            any.map(|any| self.windows.remove(&any));
        }
        self.windows.insert(origin.to_owned(), Window::beginning(sequence));
        true
    }
}

/// What is owed for a message that asks for an acknowledgement.
fn owed(message: &Message, from: &str, path: Path, hop: Option<Vec<u8>>) -> Option<Owed> {
    let about = message.delivery.clone().filter(|about| about.class != DeliveryClass::FireAndForget)?;
    Some(Owed { from: from.to_owned(), about: Some(about), path, hop })
}

/// Lets a message up, unless it was there before or waits for an earlier one.
pub(super) fn admit(
    network: &Network,
    peer: &Arc<PeerInfo>,
    message: Message,
    room: OwnedSemaphorePermit,
    owed: Option<Owed>,
) -> Option<Inbound> {
    let inbound = Inbound { peer: peer.clone(), message, room, owed: owed.clone() };
    let Some((owed, about)) = owed.as_ref().and_then(|owed| Some((owed, owed.about.as_ref()?))) else {
        return Some(inbound);
    };
    if about.message_id.is_empty() || about.message_id.len() > MAX_MESSAGE_ID {
        let detail = format!("node_id={} a message id of {} bytes", peer.node_id, about.message_id.len());
        network.events.network(LogLevel::Warn, "message_invalid", Some(peer.addr.to_string()), detail);
        return None;
    }
    let mut arrived = network.desk.arrived();
    // What its sender said itself, and said again through a relay.
    let direct =
        matches!(&owed.path, Path::Relayed { origin, .. } if arrived.knows(origin, &about.message_id));
    let admission = match direct {
        true => Admission::Duplicate,
        false => arrived.admit(&owed.from, about, inbound, Instant::now()),
    };
    drop(arrived);
    match admission {
        Admission::Take(inbound) => Some(inbound),
        Admission::Duplicate => {
            acknowledge(network, owed, "duplicate");
            None
        }
        Admission::InHand | Admission::Waits | Admission::Refused => None,
    }
}
