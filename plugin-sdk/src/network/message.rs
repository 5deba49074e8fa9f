//! The message envelope of the peer wire (`docs/protocol.md`; measured on upstream 0.2.0 and 0.4.0).
//!
//! One JSON object per line on the wire, MessagePack on the link to a plugin: the same serde types. A message from a peer
//! is hostile input; what must hold beyond the shape is in [`Message::validate`].

use crate::realms::RealmInfo;
use serde::{Deserialize, Serialize};

/// Content of a message.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", content = "value")]
pub enum Payload {
    /// Text.
    Text(String),
    /// Any JSON value.
    Json(serde_json::Value),
    /// Bytes: an array of numbers in JSON, one byte string in MessagePack.
    Binary(#[serde(with = "binary")] Vec<u8>),
}

mod binary {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], s: S) -> Result<S::Ok, S::Error> {
        if s.is_human_readable() {
            bytes.serialize(s)
        } else {
            s.serialize_bytes(bytes)
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<u8>, D::Error> {
        if d.is_human_readable() {
            Vec::<u8>::deserialize(d)
        } else {
            Ok(serde_bytes::ByteBuf::deserialize(d)?.into_vec())
        }
    }
}

/// Why a relay or a rendezvous says no.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Reason {
    /// Policy forbids it.
    PolicyDenied,
    /// It took too long, or expired.
    Timeout,
    /// The pair is bound already.
    AlreadyBound,
    /// No such target.
    UnknownTarget,
    /// A queue is full.
    Overload,
    /// The other peer has gone.
    PeerLeft,
    /// The public address of a peer is not known.
    NoObservedAddr,
    /// The peer cannot do this.
    CapabilityMissing,
    /// The peer did not want to.
    Declined,
}

/// How a message wants to be delivered (0.3 and later).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeliveryMetadata {
    /// Identity of the message for acknowledgement and duplicates.
    pub message_id: String,
    /// Guarantee asked for.
    pub class: DeliveryClass,
    /// Stream within which order is kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ordering_key: Option<String>,
    /// Place in that stream, from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ordering_sequence: Option<u64>,
}

/// Guarantees a sender may ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeliveryClass {
    /// None.
    FireAndForget,
    /// Acknowledged, repeated until then.
    Reliable,
    /// Acknowledged and in order.
    OrderedReliable,
}

/// What a message is. The words on the wire are upstream's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[non_exhaustive]
#[allow(missing_docs)] // the fields are the wire's own words, described in docs/protocol.md
pub enum MessageType {
    /// First message of each side of a connection.
    Hello {
        node_id: String,
        #[serde(default)]
        listen_addr: Option<String>,
        #[serde(default)]
        protocol: Option<String>,
        #[serde(default)]
        version: Option<String>,
        #[serde(default)]
        node_type: Option<String>,
        #[serde(default)]
        capabilities: Option<Vec<String>>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        udp_listen_addr: Option<String>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        udp_observed_addr: Option<String>,
        /// Drawn once for each run: who sees its own has dialed itself.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        nonce: Option<String>,
    },
    /// Plain text.
    Text(String),
    /// Asks for peers.
    PeerRequest {
        want: u16,
    },
    /// Answers with peers.
    PeerList {
        peers: Vec<String>,
    },
    /// Asks a relay for a route.
    RelayBind {
        target: String,
        #[serde(default)]
        want_store_forward: bool,
        #[serde(default)]
        qos: Option<String>,
        #[serde(default)]
        nonce: Option<u64>,
        #[serde(default)]
        expires_at: Option<u64>,
    },
    /// A relay's answer.
    RelayBindAck {
        ok: bool,
        #[serde(default)]
        reason: Option<Reason>,
        #[serde(default)]
        binding_id: Option<String>,
        #[serde(default)]
        peer_present: Option<bool>,
        #[serde(default)]
        nonce: Option<u64>,
    },
    /// A frame for another node. 0.4 carries it in `opaque_payload_b64`, 0.2 and 0.3 in the outer payload.
    #[serde(rename = "RELAY_FWD")]
    RelayForward {
        to: String,
        from: String,
        #[serde(default)]
        sequence: Option<u64>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        opaque_payload_b64: Option<String>,
    },
    /// Gives a route up.
    RelayUnbind {
        binding_id: String,
    },
    /// A relay tells what became of something.
    RelayNotify {
        notif_type: Reason,
        #[serde(default)]
        binding_id: Option<String>,
        #[serde(default)]
        detail: Option<String>,
    },
    /// Acknowledges one hop of a relayed frame.
    Ack {
        to: String,
        from: String,
        sequence: u64,
        status: String,
    },
    /// Acknowledges a message end to end (0.3).
    DeliveryAck {
        message_id: String,
        status: String,
    },
    /// Hole punching (0.3).
    PunchCoordinate {
        attempt_id: String,
        target: String,
        timeout_ms: u64,
    },
    PunchInvite {
        attempt_id: String,
        from_node_id: String,
        timeout_ms: u64,
    },
    PunchReady {
        attempt_id: String,
        target: String,
        ok: bool,
    },
    PunchGo {
        attempt_id: String,
        initiator: String,
        responder: String,
        initiator_observed_addr: String,
        responder_observed_addr: String,
        start_at_ms: u64,
        timeout_ms: u64,
    },
    PunchAbort {
        attempt_id: String,
        target: String,
        reason: Reason,
    },
    /// Reserved words of upstream without behaviour.
    DataRequest,
    DataResponse,
    /// Liveness probe and answer.
    Heartbeat,
    /// The sender is about to close.
    Disconnect,
    /// A message of plugins: `kind` names it, the payload is theirs.
    Extension {
        kind: String,
    },
}

impl MessageType {
    /// The word on the wire.
    pub fn token(&self) -> &'static str {
        match self {
            MessageType::Hello { .. } => "HELLO",
            MessageType::Text(_) => "TEXT",
            MessageType::PeerRequest { .. } => "PEER_REQUEST",
            MessageType::PeerList { .. } => "PEER_LIST",
            MessageType::RelayBind { .. } => "RELAY_BIND",
            MessageType::RelayBindAck { .. } => "RELAY_BIND_ACK",
            MessageType::RelayForward { .. } => "RELAY_FWD",
            MessageType::RelayUnbind { .. } => "RELAY_UNBIND",
            MessageType::RelayNotify { .. } => "RELAY_NOTIFY",
            MessageType::Ack { .. } => "ACK",
            MessageType::DeliveryAck { .. } => "DELIVERY_ACK",
            MessageType::PunchCoordinate { .. } => "PUNCH_COORDINATE",
            MessageType::PunchInvite { .. } => "PUNCH_INVITE",
            MessageType::PunchReady { .. } => "PUNCH_READY",
            MessageType::PunchGo { .. } => "PUNCH_GO",
            MessageType::PunchAbort { .. } => "PUNCH_ABORT",
            MessageType::DataRequest => "DATA_REQUEST",
            MessageType::DataResponse => "DATA_RESPONSE",
            MessageType::Heartbeat => "HEARTBEAT",
            MessageType::Disconnect => "DISCONNECT",
            MessageType::Extension { .. } => "EXTENSION",
        }
    }
}

/// The envelope. Field order is upstream's, byte for byte.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Message {
    /// Who says it sent this. Not proved by the wire.
    pub from: String,
    /// Node id, `*`, or an address.
    pub to: String,
    /// What it is.
    pub msg_type: MessageType,
    /// Content.
    #[serde(default)]
    pub payload: Option<Payload>,
    /// Realm it belongs to.
    #[serde(default)]
    pub realm: Option<RealmInfo>,
    /// Delivery wishes (0.3).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delivery: Option<DeliveryMetadata>,
    /// Between node and plugin only: the peer through which this came, if `from` did not send it on its own connection. Then `from` is
    /// that peer's word. Never on the wire of peers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub via: Option<String>,
}

impl Message {
    /// A message without delivery wishes.
    pub fn new(
        from: &str,
        to: &str,
        msg_type: MessageType,
        payload: Option<Payload>,
        realm: Option<RealmInfo>,
    ) -> Self {
        Self { from: from.into(), to: to.into(), msg_type, payload, realm, delivery: None, via: None }
    }

    /// The message as one line of JSON without a newline; `{}` if it cannot be written (a map key that is no string).
    pub fn as_json(&self) -> String {
        serde_json::to_string(self).unwrap_or_else(|_| "{}".into())
    }

    /// Reads one JSON object. `None` if it is none, or breaks a rule of [`Message::validate`].
    pub fn from_json(text: &str) -> Option<Self> {
        let message: Message = serde_json::from_str(text).ok()?;
        message.validate().ok()?;
        Some(message)
    }

    /// Rules beyond the shape: ordering belongs to `ordered_reliable`, has a key, and counts from 1.
    pub fn validate(&self) -> Result<(), &'static str> {
        let Some(delivery) = &self.delivery else { return Ok(()) };
        match delivery.class {
            DeliveryClass::OrderedReliable => match (&delivery.ordering_key, delivery.ordering_sequence) {
                (Some(key), _) if key.trim().is_empty() => Err("ordered delivery with a blank key"),
                (None, _) => Err("ordered delivery without a key"),
                (_, Some(0)) => Err("ordering sequences count from 1"),
                _ => Ok(()),
            },
            DeliveryClass::FireAndForget | DeliveryClass::Reliable => {
                if delivery.ordering_key.is_some() || delivery.ordering_sequence.is_some() {
                    Err("an ordering key or sequence without ordered delivery")
                } else {
                    Ok(())
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Lines captured from real nodes (spec section 1.5): they must read, and write back byte for byte.
    const CAPTURED: [&str; 9] = [
        r#"{"from":"TheNodes","to":"127.0.0.1:60862","msg_type":{"HELLO":{"node_id":"node-a","listen_addr":"127.0.0.1:47001","protocol":"TheNodes","version":"1","node_type":"daemon","capabilities":null}},"payload":null,"realm":{"name":"Interop Test","version":"1.0"}}"#,
        r#"{"from":"node-a","to":"*","msg_type":{"TEXT":"hello from a"},"payload":null,"realm":{"name":"Interop Test","version":"1.0"}}"#,
        r#"{"from":"node-a","to":"*","msg_type":{"EXTENSION":{"kind":"demo.kind"}},"payload":{"type":"Json","value":{"k":1}},"realm":null}"#,
        r#"{"from":"node-a","to":"node-b","msg_type":"HEARTBEAT","payload":{"type":"Text","value":"liveness_probe_v1"},"realm":{"name":"Interop Test","version":"1.0"}}"#,
        r#"{"from":"relA","to":"node-a","msg_type":{"RELAY_BIND":{"target":"relB","want_store_forward":true,"qos":"reliable","nonce":5,"expires_at":null}},"payload":null,"realm":{"name":"Interop Test","version":"1.0"}}"#,
        r#"{"from":"relA","to":"node-a","msg_type":{"RELAY_FWD":{"to":"relB","from":"relA","sequence":1,"opaque_payload_b64":"aGk="}},"payload":null,"realm":{"name":"Interop Test","version":"1.0"}}"#,
        r#"{"from":"127.0.0.1:34704","to":"127.0.0.1:34704","msg_type":{"RELAY_NOTIFY":{"notif_type":"timeout","binding_id":null,"detail":"target=offl policy=store_forward_disabled_or_low_latency"}},"payload":null,"realm":{"name":"Interop Test","version":"1.0"}}"#,
        r#"{"from":"a","to":"b","msg_type":"DISCONNECT","payload":null,"realm":null}"#,
        r#"{"from":"node-b","to":"node-a","msg_type":{"TEXT":"ordered-hi"},"payload":null,"realm":{"name":"Interop Test","version":"1.0"},"delivery":{"message_id":"01a1f8e4-489f-71d3-b622-90297ec01e0d","class":"ordered_reliable","ordering_key":"k1","ordering_sequence":1}}"#,
    ];

    #[test]
    fn captured_lines_read_and_write_back_byte_for_byte() {
        for line in CAPTURED {
            let message = Message::from_json(line).unwrap_or_else(|| panic!("{line}"));
            assert_eq!(message.as_json(), line);
        }
    }

    #[test]
    fn the_smallest_hello_and_fields_from_the_future_are_read() {
        let smallest = r#"{"from":"m","to":"x","msg_type":{"HELLO":{"node_id":"min1","later":1}},"realm":{"name":"I","version":"1.0"},"new":[]}"#;
        assert!(Message::from_json(smallest).is_some());
        assert!(Message::from_json(r#"{"from":"m","to":"x","msg_type":"NEWS"}"#).is_none());
    }

    #[test]
    fn binary_is_an_array_of_numbers_in_json_and_one_byte_string_in_messagepack() {
        let line = r#"{"from":"a","to":"b","msg_type":{"EXTENSION":{"kind":"k"}},"payload":{"type":"Binary","value":[0,255]},"realm":null}"#;
        let message = Message::from_json(line).expect("reads");
        assert_eq!(message.as_json(), line);
        let packed = thenodes_ipc::pack::encode(&message).expect("packs");
        assert!(packed.windows(4).any(|w| w == [0xc4, 2, 0, 255]));
        assert_eq!(thenodes_ipc::pack::decode::<Message>(&packed), Ok(message));
        assert!(Message::from_json(&line.replace("[0,255]", "\"AP8=\"")).is_none());
    }

    #[test]
    fn delivery_rules_are_checked() {
        let with = |delivery: &str| {
            Message::from_json(&format!(
                r#"{{"from":"a","to":"b","msg_type":"HEARTBEAT","delivery":{delivery}}}"#
            ))
        };
        assert!(with(r#"{"message_id":"m","class":"reliable"}"#).is_some());
        assert!(with(r#"{"message_id":"m","class":"reliable","ordering_sequence":1}"#).is_none());
        assert!(with(
            r#"{"message_id":"m","class":"ordered_reliable","ordering_key":" ","ordering_sequence":1}"#
        )
        .is_none());
        assert!(with(
            r#"{"message_id":"m","class":"ordered_reliable","ordering_key":"k","ordering_sequence":0}"#
        )
        .is_none());
    }

    proptest! {
        #[test]
        fn a_message_is_the_same_after_json_and_after_messagepack(from in ".{0,20}", text in ".{0,200}", bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let message = Message::new(&from, "*", MessageType::Text(text), Some(Payload::Binary(bytes)), None);
            prop_assert_eq!(Message::from_json(&message.as_json()), Some(message.clone()));
            let packed = thenodes_ipc::pack::encode(&message).expect("packs");
            prop_assert_eq!(thenodes_ipc::pack::decode::<Message>(&packed), Ok(message));
        }
    }
}
