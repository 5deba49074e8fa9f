//! A message of a peer goes to every plugin that wants it. It is encoded once; each plugin has a bounded queue of its own, so
//! a slow one delays nobody.

use crate::config::Permission;
use crate::network::delivery::{acknowledge, finished, Owed};
use crate::network::{clock, Inbound, Network};
use crate::plugins::grants::Subject;
use crate::plugins::handle::Handle;
use crate::plugins::link::Answer;
use crate::plugins::Registry;
use crate::text::printable;
use bytes::Bytes;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;
use thenodes::events::model::LogLevel;
use thenodes::network::message::{Message, MessageType};
use thenodes_ipc::launch::Registration;
use thenodes_ipc::pack;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

/// A plugin has taken a message within this time, or it counts as not taken: its deadline for messages, and a moment.
const TAKING: Duration = Duration::from_secs(8);
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
pub async fn distribute(mut inbound: mpsc::Receiver<Inbound>, network: Arc<Network>, plugins: Arc<Registry>) {
    let events = &network.events;
    while let Some(Inbound { peer, message, room, owed, .. }) = inbound.recv().await {
        let (action, detail) = match &message.msg_type {
            MessageType::Text(text) => ("message_text", printable(text, SHOWN)),
            MessageType::Extension { kind } => ("message_other", format!("kind={}", printable(kind, SHOWN))),
            other => ("message_other", other.token().to_owned()),
        };
        let through = message.via.as_ref().map_or_else(String::new, |via| format!(" via={via}"));
        let detail = format!("node_id={}{through} {detail}", message.from);
        events.network(LogLevel::Debug, action, Some(peer.addr.to_string()), detail);
        // Who brings a message in another's name must be one whom the plugin may hear, and so must the other.
        let may = |plugin: &&Handle| {
            let grants = &plugin.terms().grants;
            grants.allows(Permission::MessageReceive, Subject::Peer(&peer.node_id))
                && (message.via.is_none()
                    || grants.allows(Permission::MessageReceive, Subject::Peer(&message.from)))
        };
        let wanting: Vec<&Handle> = plugins
            .all()
            .filter(may)
            .filter(|plugin| plugin.with_status(|status| wants(status.registration.as_ref(), &message)))
            .collect();
        if wanting.is_empty() {
            // The core has it, and nobody else wants it.
            drop(room);
            if let Some(owed) = owed {
                settle(&network, owed, true);
            }
            continue;
        }
        let body: Bytes = match pack::encode(&message) {
            Ok(body) => body.into(),
            Err(error) => {
                let addr = Some(peer.addr.to_string());
                events.network(LogLevel::Error, "message_not_encoded", addr, error.to_string());
                if let Some(owed) = owed {
                    settle(&network, owed, false);
                }
                continue;
            }
        };
        // Several plugins may hold the peer; the last one to take the message lets it go.
        let room = Arc::new(room);
        let Some(owed) = owed else {
            for plugin in wanting {
                plugin.deliver_holding(body.clone(), || Box::new(room.clone()));
            }
            continue;
        };
        let given_up = Arc::new(AtomicBool::new(false));
        let answers: Vec<_> = wanting
            .iter()
            .map(|plugin| plugin.deliver_acknowledged(body.clone(), given_up.clone()))
            .collect();
        let network = network.clone();
        // One task for each message that is owed an answer; each holds its room, and so they are bounded.
        tokio::spawn(async move {
            let taken = timeout(TAKING, first_taken(answers)).await.unwrap_or(false);
            // Its sender will send it again: the plugins must not have it twice.
            given_up.store(!taken, Ordering::Release);
            drop(room);
            finished(&network, &owed, taken).await;
        });
    }
}

/// True as soon as one plugin has taken the message; false when none has, and none can any more.
async fn first_taken(mut open: Vec<oneshot::Receiver<Answer>>) -> bool {
    std::future::poll_fn(move |cx| {
        let mut at = 0;
        while at < open.len() {
            match Pin::new(&mut open[at]).poll(cx) {
                Poll::Ready(Ok(Ok(_))) => return Poll::Ready(true),
                Poll::Ready(Ok(Err(_)) | Err(_)) => drop(open.swap_remove(at)),
                Poll::Pending => at += 1,
            }
        }
        if open.is_empty() {
            Poll::Ready(false)
        } else {
            Poll::Pending
        }
    })
    .await
}

/// Answers a sender at once; what waited for this message goes up in a task of its own, since this one empties that queue.
fn settle(network: &Arc<Network>, owed: Owed, taken: bool) {
    let ordered = owed.about.as_ref().is_some_and(|about| about.ordering_key.is_some());
    if !ordered {
        if taken {
            acknowledge(network, &owed, "ok");
        }
        if let Some(about) = &owed.about {
            let _ = network.desk.arrived().finished(&owed.from, about, taken, clock());
        }
        return;
    }
    let network = network.clone();
    tokio::spawn(async move { finished(&network, &owed, taken).await });
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
