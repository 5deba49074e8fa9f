//! A message of a peer goes to every plugin that wants it, in the task of that peer. It is encoded once; each plugin has a bounded queue
//! of its own, so a slow one delays nobody.

use crate::config::Permission;
use crate::network::delivery::{acknowledge, finished, Owed};
use crate::network::plain::Batch;
use crate::network::taking::SHOWN;
use crate::network::{self, clock, Inbound, Network};
use crate::plugins::grants::Subject;
use crate::plugins::handle::{to_each, Handle};
use crate::plugins::link::Answer;
use crate::plugins::queue::Hold;
use crate::plugins::Registry;
use crate::text::printable;
use bytes::Bytes;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::task::Poll;
use std::time::Duration;
use thenodes::events::model::LogLevel;
use thenodes::network::message::MessageType;
use thenodes_ipc::launch::Registration;
use thenodes_ipc::pack;
use tokio::sync::oneshot;
use tokio::time::timeout;

/// A plugin has taken a message within this time, or it counts as not taken: its deadline for messages, and a moment.
const TAKING: Duration = Duration::from_secs(8);

/// True if this plugin wants messages of this kind; `None` is what has none.
pub fn wants(registration: Option<&Registration>, kind: Option<&str>) -> bool {
    match (kind, registration.and_then(|registration| registration.extension_kinds.as_ref())) {
        (Some(kind), Some(kinds)) => kinds.iter().any(|wanted| wanted == kind),
        // Not registered yet: it will be, and the queue keeps what it may want.
        (_, _) => true,
    }
}

/// True if this plugin may hear what this peer brings. Who brings a message in another's name must be one whom the plugin may hear, and
/// so must the other.
fn may(plugin: &Handle, peer: &str, other: Option<&str>) -> bool {
    let grants = &plugin.terms().grants;
    grants.allows(Permission::MessageReceive, Subject::Peer(peer))
        && other.is_none_or(|other| grants.allows(Permission::MessageReceive, Subject::Peer(other)))
}

/// The hall, as the network sees it.
pub struct Hall {
    network: Weak<Network>,
    plugins: Arc<Registry>,
}

impl Hall {
    /// For this network, which holds it.
    pub fn new(network: &Arc<Network>, plugins: Arc<Registry>) -> Self {
        Self { network: Arc::downgrade(network), plugins }
    }
}

impl network::Hall for Hall {
    fn take_plain(&self, mut batch: Batch) {
        // Several plugins may hold the peer; the last one to take a message lets it go.
        let hold: Hold = Arc::new(batch.room.take());
        let packed = Bytes::from(std::mem::take(&mut batch.packed));
        for plugin in self.plugins.all().filter(|plugin| may(plugin, &batch.peer.node_id, None)) {
            let wanted =
                plugin.with_status(|status| batch.of_kind(|kind| wants(status.registration.as_ref(), kind)));
            if !wanted.is_empty() {
                plugin.deliver_holding(wanted.into_iter().map(|span| packed.slice(span)), &hold);
            }
        }
    }

    fn take(&self, inbound: Inbound) {
        let Some(network) = self.network.upgrade() else { return };
        let events = &network.events;
        let Inbound { peer, message, room, owed, .. } = inbound;
        events.network_with(LogLevel::Debug, || {
            let (action, what) = match &message.msg_type {
                MessageType::Text(text) => ("message_text", printable(text, SHOWN)),
                MessageType::Extension { kind } => {
                    ("message_other", format!("kind={}", printable(kind, SHOWN)))
                }
                other => ("message_other", other.token().to_owned()),
            };
            let through = message.via.as_ref().map_or_else(String::new, |via| format!(" via={via}"));
            let detail = format!("node_id={}{through} {what}", message.from);
            (action, Some(peer.addr.to_string()), Some(detail))
        });
        let other = message.via.is_some().then_some(message.from.as_str());
        let kind = match &message.msg_type {
            MessageType::Extension { kind } => Some(kind.as_str()),
            _ => None,
        };
        let wanting: Vec<&Handle> = self
            .plugins
            .all()
            .filter(|plugin| may(plugin, &peer.node_id, other))
            .filter(|plugin| plugin.with_status(|status| wants(status.registration.as_ref(), kind)))
            .collect();
        if wanting.is_empty() {
            // The core has it, and nobody else wants it.
            drop(room);
            if let Some(owed) = owed {
                settle(&network, owed, true);
            }
            return;
        }
        let body: Bytes = match pack::encode(&message) {
            Ok(body) => body.into(),
            Err(error) => {
                let addr = Some(peer.addr.to_string());
                events.network(LogLevel::Error, "message_not_encoded", addr, error.to_string());
                if let Some(owed) = owed {
                    settle(&network, owed, false);
                }
                return;
            }
        };
        let Some(owed) = owed else {
            let hold: Hold = Arc::new(room);
            to_each(&wanting, |plugin| plugin.deliver_holding([body.clone()].into_iter(), &hold));
            return;
        };
        let given_up = Arc::new(AtomicBool::new(false));
        let mut answers = Vec::with_capacity(wanting.len());
        to_each(&wanting, |plugin| answers.push(plugin.deliver_acknowledged(body.clone(), given_up.clone())));
        // One task for each message that is owed an answer; each holds its room, and so they are bounded.
        tokio::spawn(async move {
            let taken = timeout(TAKING, first_taken(answers)).await.unwrap_or(false);
            // Its sender will send it again: the plugins must not have it twice.
            given_up.store(!taken, Ordering::Release);
            drop(room);
            finished(&network, &owed, taken);
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

/// Answers a sender at once; what waited for this message goes up in a task of its own, so that many that waited for each other do not
/// stand on each other's stack.
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
    tokio::spawn(async move { finished(&network, &owed, taken) });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plugin_gets_the_kinds_it_asked_for() {
        let mut registration = Registration {
            id: String::new(),
            sdk: String::new(),
            prompts: vec![],
            config_defaults: vec![],
            extension_kinds: None,
            messages: false,
        };
        assert!(wants(None, Some("x")) && wants(Some(&registration), Some("x")));
        registration.extension_kinds = Some(vec!["x".into()]);
        assert!(wants(Some(&registration), Some("x")) && !wants(Some(&registration), Some("y")));
        assert!(wants(Some(&registration), None), "a text has no kind");
    }
}
