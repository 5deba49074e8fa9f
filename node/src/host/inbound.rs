//! A message of a peer goes to every plugin that wants it. It is encoded once; each plugin has a bounded queue of its own, so
//! a slow one delays nobody.

use crate::config::Permission;
use crate::events::Emitter;
use crate::network::Inbound;
use crate::plugins::grants::Subject;
use crate::plugins::handle::Handle;
use crate::plugins::Registry;
use crate::text::printable;
use bytes::Bytes;
use std::sync::Arc;
use thenodes::events::model::LogLevel;
use thenodes::network::message::{Message, MessageType};
use thenodes_ipc::launch::Registration;
use thenodes_ipc::pack;
use tokio::sync::mpsc;

/// Bytes of a TEXT that an event shows.
const SHOWN: usize = 256;

/// True if this plugin wants this message.
pub fn wants(registration: Option<&Registration>, message: &Message) -> bool {
    match (&message.msg_type, registration.and_then(|registration| registration.extension_kinds.as_ref())) {
        (MessageType::Extension { kind }, Some(kinds)) => kinds.contains(kind),
        // Not registered yet: it will be, and the queue keeps what it may want.
        (_, _) => true,
    }
}

/// Distributes until the network is gone.
pub async fn distribute(mut inbound: mpsc::Receiver<Inbound>, plugins: Arc<Registry>, events: Emitter) {
    while let Some(Inbound { peer, message, room }) = inbound.recv().await {
        let (action, detail) = match &message.msg_type {
            MessageType::Text(text) => ("message_text", printable(text, SHOWN)),
            MessageType::Extension { kind } => ("message_other", format!("kind={}", printable(kind, SHOWN))),
            other => ("message_other", other.token().to_owned()),
        };
        let detail = format!("node_id={} {detail}", peer.node_id);
        events.network(LogLevel::Debug, action, Some(peer.addr.to_string()), detail);
        let may = |plugin: &&Handle| {
            plugin.terms().grants.allows(Permission::MessageReceive, Subject::Peer(&peer.node_id))
        };
        let mut wanting = plugins
            .all()
            .filter(may)
            .filter(|plugin| plugin.with_status(|status| wants(status.registration.as_ref(), &message)))
            .peekable();
        if wanting.peek().is_none() {
            continue;
        }
        let body: Bytes = match pack::encode(&message) {
            Ok(body) => body.into(),
            Err(error) => {
                events.network(
                    LogLevel::Error,
                    "message_not_encoded",
                    Some(peer.addr.to_string()),
                    error.to_string(),
                );
                continue;
            }
        };
        // Several plugins may hold the peer; the last one to take the message lets it go.
        let room = Arc::new(room);
        for plugin in wanting {
            plugin.deliver_holding(body.clone(), || Box::new(room.clone()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plugin_gets_the_kinds_it_asked_for() {
        let of_kind =
            |kind: &str| Message::new("a", "*", MessageType::Extension { kind: kind.into() }, None, None);
        let mut registration = Registration {
            id: String::new(),
            sdk: String::new(),
            prompts: vec![],
            config_defaults: vec![],
            extension_kinds: None,
        };
        assert!(wants(None, &of_kind("x")) && wants(Some(&registration), &of_kind("x")));
        registration.extension_kinds = Some(vec!["x".into()]);
        assert!(wants(Some(&registration), &of_kind("x")) && !wants(Some(&registration), &of_kind("y")));
        let text = Message::new("a", "*", MessageType::Text("t".into()), None, None);
        assert!(wants(Some(&registration), &text));
    }
}
