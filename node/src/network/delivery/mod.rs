//! Messages that are to arrive: sent again until the other side says that it has them, and acknowledged by this side only when a
//! plugin, or the core where no plugin wants them, has taken them. An acknowledgement counts only from whom the message was for.

pub mod receiver;

use super::outbox::{Outbox, Put};
use super::relay::seat::has;
use super::relay::{rendezvous, Form, Wants, CAPABILITY, CAPABILITY_STORES};
use super::taking::Hop;
use super::{wire, Inbound, Network};
use crate::config::{Deliveries, Strategy};
use crate::network::clock;
use receiver::Receiver;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use thenodes::network::delivery::{DeliveryFailureReason, DeliveryOptions, DeliveryOutcome};
use thenodes::network::message::{DeliveryClass, DeliveryMetadata, Message, MessageType};
use tokio::sync::Notify;
use tokio::time::{sleep_until, timeout_at};

/// Messages that may wait for their acknowledgement at once.
const MAX_PENDING: usize = 4096;
/// Ordered streams of this node whose count is remembered.
const MAX_COUNTS: usize = 4096;
/// How often a way is looked for while there is none.
const LOOK: Duration = Duration::from_secs(1);
/// Longest patience that a sender may ask for.
pub const LONGEST: Duration = Duration::from_secs(25);

/// How an answer to a message finds its way.
#[derive(Debug, Clone)]
pub enum Path {
    /// On the connection it came on.
    Direct(Arc<Outbox>),
    /// Through the relay it came through.
    Relayed {
        /// The relay's connection.
        outbox: Arc<Outbox>,
        /// Its id.
        relay: String,
        /// Who sent the message, by the relay's word.
        origin: String,
    },
}

/// What is owed to the sender of a message once it is taken.
#[derive(Debug, Clone)]
pub struct Owed {
    /// The name under which the message is remembered.
    pub from: String,
    /// What the message says of its delivery.
    pub about: Option<DeliveryMetadata>,
    /// The way back.
    pub path: Path,
    /// What the relay hears that brought it.
    pub hop: Option<Hop>,
}

struct Pending {
    /// Who may acknowledge.
    to: String,
    done: Arc<Notify>,
}

/// What is under way, in both directions.
pub struct Desk {
    config: Deliveries,
    pending: Mutex<HashMap<String, Pending>>,
    counts: Mutex<HashMap<(String, String), u64>>,
    arrived: Mutex<Receiver<Inbound>>,
}

/// A pending message is forgotten with whoever waits for it.
struct Forget<'a>(&'a Desk, String);

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        locked(&self.0.pending).remove(&self.1);
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Desk {
    /// A desk with nothing on it.
    pub fn new(config: Deliveries) -> Self {
        Self {
            config,
            pending: Mutex::default(),
            counts: Mutex::default(),
            arrived: Mutex::new(Receiver::new(config)),
        }
    }

    /// What has arrived before.
    pub fn arrived(&self) -> MutexGuard<'_, Receiver<Inbound>> {
        locked(&self.arrived)
    }

    /// Somebody says that a message arrived. Counts only from whom it was for.
    pub fn acknowledged(&self, from: &str, message_id: &str) {
        let pending = locked(&self.pending);
        if let Some(waiting) = pending.get(message_id).filter(|waiting| waiting.to == from) {
            waiting.done.notify_one();
        }
    }

    fn next_of(&self, to: &str, key: &str) -> u64 {
        let mut counts = locked(&self.counts);
        let pair = (to.to_owned(), key.to_owned());
        if counts.len() >= MAX_COUNTS && !counts.contains_key(&pair) {
            // Its count begins anew, and the other side follows.
            let any = counts.keys().next().cloned();
            any.map(|any| counts.remove(&any));
        }
        let count = counts.entry(pair).or_default();
        *count += 1;
        *count
    }
}

/// One attempt to hand a message on.
enum Handed {
    Direct,
    Relay,
    NoRoute,
    Full(Arc<Outbox>),
}

/// `attempt` counts from zero: each goes through another relay, if there are several, since one may take and not hand on.
fn hand_on(network: &Network, to: &str, message: &Message, reliable: bool, attempt: usize) -> Handed {
    let strategy = network.net.connecting.strategy;
    if strategy != Strategy::RelayOnly {
        if let Some(outbox) = network.peers.outbox(to) {
            return match outbox.own(&wire::encode(message)) {
                Put::Queued => Handed::Direct,
                Put::Full | Put::Stalled => Handed::Full(outbox),
                Put::Gone => Handed::NoRoute,
            };
        }
    }
    if strategy != Strategy::RelayOnly && !network.held_off(to) {
        // Its own connection is the better way; it is made while a relay, if there is one, carries the message.
        if let Some(addr) = network.store.addr_of(to) {
            network.connector.want(addr);
        }
    }
    if strategy == Strategy::DirectOnly {
        return Handed::NoRoute;
    }
    let mut relays = network.peers.having(CAPABILITY);
    relays.retain(|peer| peer.node_id != to);
    // One that keeps what cannot be handed on is better than one that does not.
    if reliable && relays.iter().any(|peer| has(peer, CAPABILITY_STORES)) {
        relays.retain(|peer| has(peer, CAPABILITY_STORES));
    }
    relays
        .sort_by_key(|peer| (std::cmp::Reverse(rendezvous::weight(to, &peer.node_id)), peer.node_id.clone()));
    let Some(relay) = relays.get(attempt % relays.len().max(1)).map(|peer| peer.node_id.as_str()) else {
        return Handed::NoRoute;
    };
    let Some((info, outbox)) = network.peers.entry(relay) else { return Handed::NoRoute };
    let store = reliable && has(&info, CAPABILITY_STORES);
    match through(network, &outbox, relay, to, store, message) {
        Put::Queued => Handed::Relay,
        Put::Full | Put::Stalled => Handed::Full(outbox),
        Put::Gone => Handed::NoRoute,
    }
}

/// Sends a message through a relay.
fn through(network: &Network, outbox: &Outbox, relay: &str, to: &str, store: bool, message: &Message) -> Put {
    let form = network.relay.form_of(relay).unwrap_or(Form::Opaque);
    let wants = Wants { store, ..Wants::default() };
    outbox.with_client(|client| {
        let (lines, sequence) = client.lines(&network.local, relay, to, wants, form, message);
        let put = outbox.own(&lines);
        if put == Put::Queued {
            client.sent(to, wants, sequence);
        }
        put
    })
}

/// Sends a message, as the class asks, and says what became of it. Runs in the task of whoever asks, and ends within the patience.
pub async fn deliver(network: &Network, mut message: Message, options: &DeliveryOptions) -> DeliveryOutcome {
    let (desk, config) = (&network.desk, &network.desk.config);
    let to = message.to.clone();
    if to == network.local.node_id {
        return DeliveryOutcome::DeliveryFailed { reason: DeliveryFailureReason::NoRoute };
    }
    let (patience, retries) = match options.class {
        DeliveryClass::FireAndForget => (config.plain, 0),
        DeliveryClass::Reliable => (config.reliable, config.reliable_retries),
        DeliveryClass::OrderedReliable => (config.ordered, config.ordered_retries),
    };
    let patience = options.timeout_ms.map_or(patience, Duration::from_millis).min(LONGEST);
    let mut retries = options.retry_budget.unwrap_or(retries).min(100);
    let until = tokio::time::Instant::now() + patience;
    let reliable = options.class != DeliveryClass::FireAndForget;
    if reliable {
        let ordering =
            options.ordering_key.as_ref().filter(|_| options.class == DeliveryClass::OrderedReliable);
        message.delivery = Some(DeliveryMetadata {
            message_id: uuid::Uuid::now_v7().to_string(),
            class: options.class,
            ordering_key: ordering.cloned(),
            ordering_sequence: ordering.map(|key| desk.next_of(&to, key)),
        });
    }
    let done = Arc::new(Notify::new());
    let id = message.delivery.as_ref().map(|delivery| delivery.message_id.clone());
    let _forget = match id {
        None => None,
        Some(id) => {
            let mut pending = locked(&desk.pending);
            if pending.len() >= MAX_PENDING {
                return DeliveryOutcome::DeliveryFailed { reason: DeliveryFailureReason::PolicyDenied };
            }
            pending.insert(id.clone(), Pending { to: to.clone(), done: done.clone() });
            drop(pending);
            Some(Forget(desk, id))
        }
    };
    let (mut changes, mut handed, mut attempt) = (network.peers.changes(), false, 0);
    loop {
        match hand_on(network, &to, &message, reliable, attempt) {
            Handed::Direct | Handed::Relay if !reliable => return DeliveryOutcome::ForwardedToTransport,
            Handed::Direct | Handed::Relay => {
                handed = true;
                attempt += 1;
                let again = (tokio::time::Instant::now() + config.retry).min(until);
                if timeout_at(again, done.notified()).await.is_ok() {
                    return DeliveryOutcome::AcknowledgedByPeer;
                }
                if tokio::time::Instant::now() >= until {
                    return DeliveryOutcome::Expired;
                }
                if retries == 0 {
                    // The last attempt gets the rest of the patience.
                    return match timeout_at(until, done.notified()).await {
                        Ok(()) => DeliveryOutcome::AcknowledgedByPeer,
                        Err(_) => DeliveryOutcome::DeliveryFailed {
                            reason: DeliveryFailureReason::RetryBudgetExhausted,
                        },
                    };
                }
                retries -= 1;
            }
            Handed::Full(outbox) => {
                let left = until.saturating_duration_since(tokio::time::Instant::now());
                if left.is_zero() {
                    return DeliveryOutcome::Expired;
                }
                tokio::select! {
                    () = outbox.wait_for_room(left) => {}
                    () = done.notified() => return DeliveryOutcome::AcknowledgedByPeer,
                }
                // A stalled peer is asked again, not all the time.
                sleep_until((tokio::time::Instant::now() + Duration::from_millis(20)).min(until)).await;
            }
            // Without a guarantee nothing is waited for.
            Handed::NoRoute if !reliable => {
                return DeliveryOutcome::DeliveryFailed { reason: DeliveryFailureReason::NoRoute };
            }
            // Somebody may come, and an address may be dialed again after its pause.
            Handed::NoRoute => {
                let look = (tokio::time::Instant::now() + LOOK).min(until);
                tokio::select! {
                    () = done.notified() => return DeliveryOutcome::AcknowledgedByPeer,
                    _ = timeout_at(look, changes.changed()) => {}
                }
                if tokio::time::Instant::now() >= until {
                    let lost = DeliveryFailureReason::PathLostDuringDelivery;
                    let reason = if handed { lost } else { DeliveryFailureReason::NoRoute };
                    return DeliveryOutcome::DeliveryFailed { reason };
                }
            }
        }
    }
}

/// Answers the sender of a message that was taken, now or before.
pub fn acknowledge(network: &Network, owed: &Owed, status: &str) {
    if let Some(about) = &owed.about {
        let ack = MessageType::DeliveryAck { message_id: about.message_id.clone(), status: status.into() };
        let realm = Some(network.local.realm.clone());
        match &owed.path {
            Path::Direct(outbox) => {
                let message = Message::new(&network.local.node_id, &owed.from, ack, None, realm);
                outbox.own(&wire::encode(&message));
            }
            Path::Relayed { outbox, relay, origin } => {
                let message = Message::new(&network.local.node_id, origin, ack, None, realm);
                through(network, outbox, relay, origin, false, &message);
            }
        }
    }
    if let (Some(hop), Path::Relayed { outbox, .. } | Path::Direct(outbox)) = (&owed.hop, &owed.path) {
        hop.taken(outbox);
    }
}

/// A message that was to be taken was taken, or not: answers, and sends on what waited for it.
pub fn finished(network: &Network, owed: &Owed, taken: bool) {
    if taken {
        acknowledge(network, owed, "ok");
    } else if let Some(hop) = &owed.hop {
        hop.not_taken();
    }
    let Some(about) = &owed.about else { return };
    let next = network.desk.arrived().finished(&owed.from, about, taken, clock());
    if let Some(next) = next {
        network.up(next);
    }
}

/// Sends on what waited for a message that cannot come any more, until the network ends.
pub async fn sweep(network: Arc<Network>) {
    let mut ticks = tokio::time::interval(Duration::from_millis(500));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let ready = network.desk.arrived().sweep(clock());
        for message in ready {
            network.up(message);
        }
    }
}
