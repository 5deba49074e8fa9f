//! Builders for relay messages, as upstream has them: bind a route through a relay, forward an opaque frame.

use super::message::{Message, MessageType, Payload};
use super::peer_manager::PeerManager;
use crate::realms::RealmInfo;
use std::net::SocketAddr;
use std::time::{SystemTime, UNIX_EPOCH};

fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |t| t.as_secs())
}

/// Builds a RELAY_BIND.
#[derive(Debug, Clone)]
pub struct RelayBindBuilder {
    from: String,
    target: String,
    store_forward: bool,
    qos: Option<String>,
    ttl: Option<u64>,
}

impl RelayBindBuilder {
    /// A bind from this node (`from`) to `target`.
    pub fn new(from: &str, target: &str) -> Self {
        Self { from: from.into(), target: target.into(), store_forward: false, qos: None, ttl: None }
    }

    /// Let the relay keep messages while the target is away.
    pub fn store_forward(mut self, on: bool) -> Self {
        self.store_forward = on;
        self
    }

    /// `low_latency`, `high_throughput`, `bulk` or `reliable`.
    pub fn qos(mut self, qos: &str) -> Self {
        self.qos = Some(qos.into());
        self
    }

    /// Seconds the binding lives.
    pub fn ttl(mut self, seconds: u64) -> Self {
        self.ttl = Some(seconds);
        self
    }

    /// The message.
    pub fn build(self, relay: &SocketAddr, realm: Option<RealmInfo>) -> Message {
        let now = unix_now();
        let bind = MessageType::RelayBind {
            target: self.target,
            want_store_forward: self.store_forward,
            qos: self.qos,
            nonce: Some(now),
            expires_at: self.ttl.map(|ttl| now.saturating_add(ttl)),
        };
        Message::new(&self.from, &relay.to_string(), bind, None, realm)
    }

    /// Sends it to the relay. A failure is logged; [`RelayBindBuilder::try_send`] returns it. The relay's answer arrives as a
    /// `RelayBindAck` message.
    pub async fn send(self, peers: &PeerManager, relay: &SocketAddr, realm: Option<RealmInfo>) {
        if let Err(error) = self.try_send(peers, relay, realm).await {
            log::warn!("relay bind to {relay}: {error}");
        }
    }

    /// Sends it to the relay. An error says why it is not on its way: no such peer, its queue is full, or not allowed.
    pub async fn try_send(
        self,
        peers: &PeerManager,
        relay: &SocketAddr,
        realm: Option<RealmInfo>,
    ) -> Result<(), String> {
        let text = self.build(relay, realm).as_json();
        peers.send_to_addr(relay, text).await
    }
}

/// Builds a RELAY_FWD. Its content is the outer payload here; the node gives the frame the form that its relay reads.
#[derive(Debug, Clone)]
pub struct RelayForwardBuilder {
    from: String,
    to: String,
    sequence: Option<u64>,
    payload: Option<Payload>,
}

impl RelayForwardBuilder {
    /// A frame from this node (`from`) for `to`.
    pub fn new(from: &str, to: &str) -> Self {
        Self { from: from.into(), to: to.into(), sequence: None, payload: None }
    }

    /// Place in the order of frames to this target.
    pub fn sequence(mut self, sequence: u64) -> Self {
        self.sequence = Some(sequence);
        self
    }

    /// Text as content.
    pub fn payload_text(mut self, text: &str) -> Self {
        self.payload = Some(Payload::Text(text.into()));
        self
    }

    /// JSON as content.
    pub fn payload_json(mut self, json: serde_json::Value) -> Self {
        self.payload = Some(Payload::Json(json));
        self
    }

    /// Bytes as content.
    pub fn payload_binary(mut self, bytes: Vec<u8>) -> Self {
        self.payload = Some(Payload::Binary(bytes));
        self
    }

    /// The message.
    pub fn build(self, relay: &SocketAddr, realm: Option<RealmInfo>) -> Message {
        let forward = MessageType::RelayForward {
            to: self.to,
            from: self.from.clone(),
            sequence: self.sequence,
            opaque_payload_b64: None,
        };
        Message::new(&self.from, &relay.to_string(), forward, self.payload, realm)
    }

    /// Sends it to the relay. A failure is logged; [`RelayForwardBuilder::try_send`] returns it.
    pub async fn send(self, peers: &PeerManager, relay: &SocketAddr, realm: Option<RealmInfo>) {
        if let Err(error) = self.try_send(peers, relay, realm).await {
            log::warn!("relay forward to {relay}: {error}");
        }
    }

    /// Sends it to the relay. An error says why it is not on its way. What becomes of it behind the relay arrives as `RelayNotify`
    /// messages, if it does not arrive.
    pub async fn try_send(
        self,
        peers: &PeerManager,
        relay: &SocketAddr,
        realm: Option<RealmInfo>,
    ) -> Result<(), String> {
        let text = self.build(relay, realm).as_json();
        peers.send_to_addr(relay, text).await
    }
}
