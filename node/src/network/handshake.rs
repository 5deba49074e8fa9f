//! The checks of HELLO as pure functions, the same on both sides (upstream's dialer checks less, and can be fooled). A peer
//! exists for the rest of the node only after [`judge`] let it in.

use super::Local;
use crate::config::is_node_id;
use std::net::SocketAddr;
use thenodes::constants::{PROTOCOL_NAME, PROTOCOL_VERSION};
use thenodes::network::message::{Message, MessageType};
use thenodes::realms::RealmInfo;

/// Longest list of capabilities that is kept of a peer, and longest word in it.
const MAX_CAPABILITIES: usize = 64;
const MAX_WORD: usize = 64;

/// Who the other side is, after all checks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Greeted {
    /// Its id.
    pub node_id: String,
    /// Its type, if it told one.
    pub node_type: Option<String>,
    /// What it can do.
    pub capabilities: Vec<String>,
    /// Where it says it listens; not believed for anything but the record.
    pub listen_addr: Option<String>,
}

/// Why a stranger stays one. The words are upstream's event actions where it has them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No realm in HELLO.
    #[error("no realm in HELLO")]
    RealmMissing,
    /// Another network.
    #[error("realm {theirs}, ours is {ours}")]
    RealmMismatch {
        /// Its code and version.
        theirs: String,
        /// Ours.
        ours: String,
    },
    /// The first message was another one.
    #[error("the first message is {0}, not HELLO")]
    NotHello(&'static str),
    /// Not an id.
    #[error("node id {0:?} is none: 1 to 128 characters of A-Z, a-z, 0-9, '.', '_', '-'")]
    BadId(String),
    /// It is this very node.
    #[error("it is this node itself")]
    Myself,
    /// It has our id: a copy of our state directory, or ourselves.
    #[error("it has our own node id; if it is not this node, one of the two needs another [node] id")]
    SelfId,
    /// Its type is not let in.
    #[error("node type {0:?} is not in [realm_access] allowed_node_types")]
    NodeType(Option<String>),
    /// The id belongs to another key.
    #[error("node id {claimed} is not its own: {why}")]
    NotItsId {
        /// What it claims.
        claimed: String,
        /// Why not.
        why: String,
    },
    /// It was judged by rules that do not hold any more.
    #[error("the rules of trust have changed while it was greeted; it may come again")]
    RulesChanged,
    /// The operator disconnected it.
    #[error("node id {0} was disconnected by the operator; `thenodes peers connect` lets it in again")]
    HeldOff(String),
    /// A node with this id is connected already.
    #[error("node id {0} is connected already")]
    Duplicate(String),
}

impl Refusal {
    /// The event action.
    pub fn action(&self) -> &'static str {
        match self {
            Refusal::RealmMissing => "realm_missing",
            Refusal::RealmMismatch { .. } => "realm_mismatch",
            Refusal::NotHello(_) => "unexpected_message",
            Refusal::BadId(_) => "hello_bad_node_id",
            Refusal::Myself | Refusal::SelfId => "peer_reject_self_id",
            Refusal::NodeType(_) => "peer_reject_node_type",
            Refusal::NotItsId { .. } => "peer_reject_foreign_id",
            Refusal::RulesChanged => "trust_rules_changed_meanwhile",
            Refusal::HeldOff(_) => "peer_held_off",
            Refusal::Duplicate(_) => "peer_already_connected",
        }
    }
}

/// Our HELLO. `to` is what upstream writes there: the peer's socket address from the acceptor, the peer's `from` from the dialer.
pub fn hello(local: &Local, own: SocketAddr, to: &str) -> Message {
    let hello = MessageType::Hello {
        node_id: local.node_id.clone(),
        listen_addr: Some(SocketAddr::new(own.ip(), local.port).to_string()),
        protocol: Some(PROTOCOL_NAME.into()),
        version: Some(PROTOCOL_VERSION.into()),
        node_type: Some(local.node_type.clone()),
        capabilities: (!local.capabilities.is_empty()).then(|| local.capabilities.clone()),
        udp_listen_addr: None,
        udp_observed_addr: None,
        nonce: Some(local.nonce.clone()),
    };
    Message::new("TheNodes", to, hello, None, Some(local.realm.clone()))
}

/// Judges the first message of a connection. Order as in upstream: realm, HELLO, id, own id, type; whether the id is free is
/// decided when the peer is registered, in one step with taking it.
pub fn judge(local: &Local, message: &Message) -> Result<Greeted, Refusal> {
    let realm = message.realm.as_ref().ok_or(Refusal::RealmMissing)?;
    if !realm.matches(&local.realm) {
        let words = |realm: &RealmInfo| format!("{} version {}", realm.canonical_code(), realm.version);
        return Err(Refusal::RealmMismatch { theirs: words(realm), ours: words(&local.realm) });
    }
    let MessageType::Hello { node_id, node_type, capabilities, listen_addr, nonce, .. } = &message.msg_type
    else {
        return Err(Refusal::NotHello(message.msg_type.token()));
    };
    if !is_node_id(node_id) {
        return Err(Refusal::BadId(node_id.chars().take(128).collect()));
    }
    if nonce.as_deref() == Some(&*local.nonce) {
        return Err(Refusal::Myself);
    }
    if *node_id == local.node_id {
        return Err(Refusal::SelfId);
    }
    if let Some(allowed) = &local.allowed_node_types {
        if !node_type.as_ref().is_some_and(|kind| allowed.contains(kind)) {
            return Err(Refusal::NodeType(node_type.clone()));
        }
    }
    let word =
        |text: &String| (1..=MAX_WORD).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic());
    Ok(Greeted {
        node_id: node_id.clone(),
        node_type: node_type.clone(),
        capabilities: capabilities
            .iter()
            .flatten()
            .filter(|c| word(c))
            .take(MAX_CAPABILITIES)
            .cloned()
            .collect(),
        listen_addr: listen_addr.clone(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn local() -> Local {
        Local {
            node_id: "me".into(),
            realm: RealmInfo { name: "Interop Test".into(), code: None, version: "1.0".into() },
            node_type: "daemon".into(),
            capabilities: vec![],
            nonce: "n".into(),
            port: 47001,
            allowed_node_types: None,
        }
    }

    fn from(id: &str) -> Message {
        hello(
            &Local { node_id: id.into(), nonce: id.into(), ..local() },
            "127.0.0.1:9".parse().expect("an address"),
            "x",
        )
    }

    /// But for the nonce behind it, which upstream passes over.
    #[test]
    fn our_hello_is_upstreams_byte_for_byte() {
        let hello = hello(&local(), "127.0.0.1:9".parse().expect("an address"), "127.0.0.1:60862").as_json();
        let expected = r#"{"from":"TheNodes","to":"127.0.0.1:60862","msg_type":{"HELLO":{"node_id":"me","listen_addr":"127.0.0.1:47001","protocol":"TheNodes","version":"1","node_type":"daemon","capabilities":null,"nonce":"n"}},"payload":null,"realm":{"name":"Interop Test","version":"1.0"}}"#;
        assert_eq!(hello, expected);
    }

    #[test]
    fn a_good_hello_is_greeted() {
        assert_eq!(judge(&local(), &from("peer")).map(|peer| peer.node_id), Ok("peer".into()));
    }

    #[test]
    fn each_check_has_its_own_refusal() {
        let realm = |realm| Message { realm, ..from("peer") };
        assert_eq!(judge(&local(), &realm(None)), Err(Refusal::RealmMissing));
        let other = RealmInfo { name: "Other".into(), code: None, version: "1.0".into() };
        assert_eq!(judge(&local(), &realm(Some(other))).expect_err("refused").action(), "realm_mismatch");
        let text = Message { msg_type: MessageType::Text("hi".into()), ..from("peer") };
        assert_eq!(judge(&local(), &text), Err(Refusal::NotHello("TEXT")));
        assert_eq!(judge(&local(), &from("me")), Err(Refusal::SelfId));
        let own = hello(&Local { node_id: "other".into(), ..local() }, ([127, 0, 0, 1], 9).into(), "x");
        assert_eq!(judge(&local(), &own), Err(Refusal::Myself), "by the nonce, whatever the id");
        for bad in ["", "a b", "a\n", &"x".repeat(129)] {
            assert!(matches!(judge(&local(), &from(bad)), Err(Refusal::BadId(_))), "{bad:?}");
        }
        let picky = Local { allowed_node_types: Some(vec!["admin".into()]), ..local() };
        assert_eq!(judge(&picky, &from("peer")), Err(Refusal::NodeType(Some("daemon".into()))));
    }
}
