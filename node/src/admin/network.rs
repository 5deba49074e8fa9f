//! What an operator asks of the network: who is connected, connect to one, hold one off, send a message, what the relay did.

use super::View;
use crate::network::delivery;
use crate::network::dialer;
use crate::network::greeting::{GreetingError, Outcome};
use crate::network::handshake::Refusal;
use crate::network::wire::{encode, MAX_LINE};
use crate::text::printable;
use serde_json::{json, Value};
use std::time::Duration;
use thenodes::events::model::LogLevel;
use thenodes::host::HostError;
use thenodes::network::message::{Message, MessageType};
use thenodes::network::{DeliveryClass, DeliveryOptions, PeerSource};
use thenodes_ipc::Code;
use tokio::time::timeout;

/// A peer that does not let us in hangs up by then.
const HUNG_UP: Duration = Duration::from_millis(500);
/// An order to connect is answered by then.
const CONNECTED_BY: Duration = Duration::from_secs(20);

impl View {
    pub(super) fn peers(&self) -> Value {
        json!({ "version": 1, "peers": self.network.peers.listed() })
    }

    pub(super) async fn known(&self) -> Value {
        json!({ "version": 1, "known": self.network.store.records().await })
    }

    pub(super) fn relay(&self) -> Value {
        let (relay, count) = (&self.network.relay, std::sync::atomic::Ordering::Relaxed);
        let (waiting, bytes) = relay.kept();
        json!({
            "version": 1,
            "relay": {
                "enabled": relay.config.enabled,
                "store_forward": relay.config.store_forward,
                "selection": if relay.config.rendezvous { "rendezvous" } else { "none" },
                "waiting": waiting,
                "waiting_bytes": bytes,
                "forwarded": relay.figures.forwarded.load(count),
                "stored": relay.figures.stored.load(count),
                "dropped": relay.figures.dropped.load(count),
                "refused": relay.figures.refused.load(count),
            }
        })
    }

    /// Dials a node, and waits until it is let in or is known not to be.
    pub(super) async fn connect(&self, target: &str, who: &str) -> Result<Value, HostError> {
        match self.dial(target, who).await {
            // An operator who asks for a node wants it, even if it was disconnected before; its id is known only now.
            Err((_, Some(held))) => {
                self.network.hold_off(&held, false);
                self.dial(target, who).await.map_err(|(error, _)| error)
            }
            dialed => dialed.map_err(|(error, _)| error),
        }
    }

    /// One attempt. The error names the node if it was held off.
    async fn dial(&self, target: &str, who: &str) -> Result<Value, (HostError, Option<String>)> {
        let mut held = None;
        let dialed = self.dial_once(target, who, &mut held).await;
        dialed.map_err(|error| (error, held))
    }

    async fn dial_once(
        &self,
        target: &str,
        who: &str,
        held: &mut Option<String>,
    ) -> Result<Value, HostError> {
        if !crate::config::raw::is_host_port(target) {
            return Err(HostError::new(Code::InvalidInput, "write host:port"));
        }
        self.events.network(LogLevel::Info, "connect_asked", Some(target.to_owned()), format!("by {who}"));
        let (network, to) = (self.network.clone(), target.to_owned());
        let mut changes = self.network.peers.changes();
        let before: Vec<String> = self.network.peers.list().into_iter().map(|peer| peer.node_id).collect();
        // The connection outlives the order.
        let mut dialing = tokio::spawn(async move { dialer::dial(&network, &to, PeerSource::Manual).await });
        let connected = async {
            loop {
                tokio::select! {
                    ended = &mut dialing => return match ended {
                        Ok(Ok(Outcome::Ended { peer, why })) => {
                            Err(format!("{} hung up at once: {why}", peer.node_id))
                        }
                        Ok(Ok(Outcome::Refused(error))) => {
                            if let GreetingError::Hello(Refusal::HeldOff(id)) = &error {
                                *held = Some(id.clone());
                            }
                            Err(error.to_string())
                        }
                        Ok(Ok(Outcome::NotReached(error)) | Err(error)) => Err(error),
                        Err(error) => Err(error.to_string()),
                    },
                    changed = changes.changed() => {
                        if changed.is_err() {
                            return Err("the node is shutting down".to_owned());
                        }
                        let addrs: Vec<_> = tokio::net::lookup_host(target).await.into_iter().flatten().collect();
                        let new = self.network.peers.list().into_iter().find(|peer| {
                            addrs.contains(&peer.addr) && !before.contains(&peer.node_id)
                        });
                        let Some(peer) = new else { continue };
                        // The protocol has no word for "you are in": one who is not is hung up on at once.
                        return match timeout(HUNG_UP, &mut dialing).await {
                            Err(_) => Ok(peer.node_id),
                            Ok(Ok(Ok(Outcome::Ended { peer, why }))) => {
                                Err(format!("{} hung up at once: {why}", peer.node_id))
                            }
                            Ok(_) => Err("it hung up at once".to_owned()),
                        };
                    }
                }
            }
        };
        match timeout(CONNECTED_BY, connected).await {
            Ok(Ok(node_id)) => Ok(json!({ "version": 1, "connected": node_id, "target": target })),
            Ok(Err(why)) => {
                Err(HostError::new(Code::NetworkError, format!("{target}: {}", printable(&why, 500))))
            }
            Err(_) => Err(HostError::new(Code::Timeout, format!("{target}: no answer within 20 s"))),
        }
    }

    /// Closes a connection and lets this node in no more, until an order to connect.
    pub(super) fn disconnect(&self, node_id: &str, who: &str) -> Result<Value, HostError> {
        let Some(peer) = self.network.peers.by_id(node_id) else {
            let known: Vec<_> =
                self.network.peers.list().into_iter().map(|peer| peer.node_id).take(20).collect();
            let text =
                format!("no connected peer {:?}; there are: {}", printable(node_id, 128), known.join(", "));
            return Err(HostError::new(Code::NotFound, text));
        };
        if !self.network.hold_off(node_id, true) {
            let text = "too many nodes are held off already; a restart lets them all in again";
            return Err(HostError::new(Code::ResourceExhausted, text));
        }
        self.network.peers.close(node_id);
        let detail = format!("node_id={node_id} by {who}");
        self.events.network(LogLevel::Info, "disconnect_asked", Some(peer.addr.to_string()), detail);
        Ok(json!({ "version": 1, "disconnected": node_id }))
    }

    /// Sends a text, and says what became of it.
    pub(super) async fn send(
        &self,
        node_id: &str,
        message: String,
        class: DeliveryClass,
        key: Option<String>,
    ) -> Result<Value, HostError> {
        if (class == DeliveryClass::OrderedReliable) != key.as_ref().is_some_and(|key| !key.trim().is_empty())
        {
            let text = "ordered_reliable, and nothing else, has an ordering key";
            return Err(HostError::new(Code::InvalidInput, text));
        }
        let local = &self.network.local;
        let realm = Some(local.realm.clone());
        let message = Message::new(&local.node_id, node_id, MessageType::Text(message), None, realm);
        // Through a relay it is wrapped in base64.
        if encode(&message).len() > MAX_LINE / 2 {
            let text = format!("a message of more than {} bytes", MAX_LINE / 2);
            return Err(HostError::new(Code::InvalidInput, text));
        }
        let mut options = DeliveryOptions::new(class);
        options.ordering_key = key;
        let outcome = delivery::deliver(&self.network, message, &options).await;
        if outcome.is_success() {
            return Ok(json!({ "version": 1, "to": node_id, "outcome": outcome }));
        }
        let text =
            format!("to {}: {outcome:?}; `thenodes peers` shows who is connected", printable(node_id, 128));
        Err(HostError::new(Code::NetworkError, text))
    }
}
