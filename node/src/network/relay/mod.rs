//! Relaying for peers that cannot reach each other. What a peer may do here follows from its connection: its bindings and sequence
//! windows live in its own [`seat`] and end with it, and nobody speaks for another. What all share, the frames that wait for peers
//! that are away, is [`store`], bounded; it is told to their origins when they have to go.

mod canonical;
pub mod client;
pub mod journal;
pub mod line;
pub mod rendezvous;
pub mod seat;
pub mod store;
pub mod window;

use super::outbox::Left;
use super::Network;
use crate::config::Relaying;
use crate::network::clock;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use store::{Bounds, Kept, Store};
use thenodes::network::message::{Message, MessageType, Reason};
use thenodes::realms::RealmInfo;

/// What a node announces that relays for others.
pub const CAPABILITY: &str = "relay";
/// And one that keeps frames for peers that are away.
pub const CAPABILITY_STORES: &str = "relay_store_forward";
/// And one that acknowledges relayed frames when it has taken them. Upstream never does, and gets nothing twice for it.
pub const CAPABILITY_ACKNOWLEDGES: &str = "relay_ack";
/// Nodes whose form is remembered.
const MAX_FORMS: usize = 4096;
/// Frames handed to a peer at once when it comes back, bytes.
const DRAIN: usize = super::outbox::RELAYED_BYTES;
/// How often frames are looked at that are too old, or wait for an acknowledgement.
const SWEEP: Duration = Duration::from_millis(250);

/// How a frame carries its content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// `opaque_payload_b64`: 0.4.
    Opaque,
    /// The envelope's payload: 0.2 and 0.3.
    Payload,
}

/// How frames of a binding want to be treated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Qos {
    /// No wish.
    #[default]
    Plain,
    /// Now or not at all.
    LowLatency,
    /// Before others that wait.
    HighThroughput,
    /// Behind others, and dropped rather than pushing one out.
    Bulk,
    /// Acknowledged by the target, and sent again until then.
    Reliable,
}

impl Qos {
    /// The wish that a word stands for; an unknown word is none.
    pub fn of(word: Option<&str>) -> Self {
        match word {
            Some("low_latency") => Qos::LowLatency,
            Some("high_throughput") => Qos::HighThroughput,
            Some("bulk") => Qos::Bulk,
            Some("reliable") => Qos::Reliable,
            Some(_) | None => Qos::Plain,
        }
    }
}

/// What a binding asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Wants {
    /// Treatment.
    pub qos: Qos,
    /// Keep frames while the target is away.
    pub store: bool,
}

/// A frame that is kept, for a moment or until its target comes.
#[derive(Debug, PartialEq, Eq)]
pub struct Frame {
    /// The peer that brought it, and hears what becomes of it.
    pub origin: Arc<str>,
    /// Whose it is: that peer, or one behind it. Its target acknowledges it by this name.
    pub from: Arc<str>,
    /// Whom it is for.
    pub target: Arc<str>,
    /// Its number.
    pub sequence: Option<u64>,
    /// The line, with its newline.
    pub line: Box<[u8]>,
    /// Seconds since 1970 after which nobody wants it.
    pub expires: u64,
    /// How it is treated.
    pub wants: Wants,
}

/// Counters.
#[derive(Debug, Default)]
pub struct Figures {
    /// Frames that were handed on.
    pub forwarded: AtomicU64,
    /// Frames that were kept for later.
    pub stored: AtomicU64,
    /// Frames that were dropped, and said so.
    pub dropped: AtomicU64,
    /// Frames that were refused: not the sender's to send, seen before, or no frame.
    pub refused: AtomicU64,
}

/// What all connections share.
#[derive(Debug)]
pub struct Relay {
    /// The operator's wishes.
    pub config: Relaying,
    store: Mutex<Store>,
    /// How many frames are in it, to be looked at without its lock.
    stored: AtomicUsize,
    changed: AtomicBool,
    forms: Mutex<HashMap<String, Form>>,
    /// Changes with them.
    forms_epoch: AtomicU64,
    /// Counters.
    pub figures: Figures,
}

/// Seconds since 1970.
pub fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |t| t.as_secs())
}

impl Relay {
    /// A relay with nothing in it.
    pub fn new(config: Relaying) -> Self {
        let bounds = Bounds { per_target: config.per_target, global: config.global, bytes: config.bytes };
        Self {
            config,
            store: Mutex::new(Store::new(bounds)),
            stored: AtomicUsize::new(0),
            changed: AtomicBool::new(false),
            forms: Mutex::default(),
            forms_epoch: AtomicU64::new(0),
            figures: Figures::default(),
        }
    }

    /// The capabilities that follow from the configuration.
    pub fn capabilities(config: &Relaying) -> Vec<String> {
        let mut words = Vec::new();
        if config.enabled {
            words.push(CAPABILITY.to_owned());
            if config.store_forward {
                words.push(CAPABILITY_STORES.to_owned());
            }
        }
        words.push(CAPABILITY_ACKNOWLEDGES.to_owned());
        words
    }

    fn change<T>(&self, change: impl FnOnce(&mut Store) -> T) -> T {
        let mut store: MutexGuard<'_, Store> = self.store.lock().unwrap_or_else(PoisonError::into_inner);
        let result = change(&mut store);
        self.stored.store(store.len(), Ordering::Release);
        self.changed.store(true, Ordering::Release);
        result
    }

    /// Frames kept now, and frames handed on since the start.
    pub fn stats(&self) -> (u64, u64) {
        (self.stored.load(Ordering::Acquire) as u64, self.figures.forwarded.load(Ordering::Relaxed))
    }

    /// Frames that are kept now, and their bytes.
    pub fn kept(&self) -> (usize, usize) {
        let store = self.store.lock().unwrap_or_else(PoisonError::into_inner);
        (store.len(), store.bytes())
    }

    /// Frames that are kept now for this peer.
    pub fn kept_for(&self, target: &str) -> usize {
        self.store.lock().unwrap_or_else(PoisonError::into_inner).count(target)
    }

    /// True if frames wait for this peer.
    pub fn has_stored(&self, target: &str) -> bool {
        self.stored.load(Ordering::Acquire) > 0
            && self.store.lock().unwrap_or_else(PoisonError::into_inner).has(target)
    }

    /// True if a frame for this target would push another out.
    pub fn is_full(&self, target: &str) -> bool {
        self.store.lock().unwrap_or_else(PoisonError::into_inner).is_full(target)
    }

    /// The form in which a node wants its frames, if that is known.
    pub fn form_of(&self, node_id: &str) -> Option<Form> {
        self.forms.lock().unwrap_or_else(PoisonError::into_inner).get(node_id).copied()
    }

    /// A number that changes when a form becomes known, to be looked at without a lock.
    pub fn forms_epoch(&self) -> u64 {
        self.forms_epoch.load(Ordering::Acquire)
    }

    /// Remembers how a node wants its frames: one that answers probes is 0.3 or later and takes the new form.
    pub fn set_form(&self, node_id: &str, form: Form) {
        let mut forms = self.forms.lock().unwrap_or_else(PoisonError::into_inner);
        if forms.len() >= MAX_FORMS && !forms.contains_key(node_id) {
            // Any: what is not known is asked for again by the next probe.
            let any = forms.keys().next().cloned();
            any.map(|any| forms.remove(&any));
        }
        if forms.insert(node_id.to_owned(), form) != Some(form) {
            self.forms_epoch.fetch_add(1, Ordering::Release);
        }
    }

    /// Keeps a frame for a target that is away; tells the origins of those that had to go, and says how many they were. `None` if it is not kept.
    pub fn keep(&self, network: &Network, frame: Arc<Frame>) -> Option<usize> {
        let target = frame.target.clone();
        match self.change(|store| store.keep(frame)) {
            Kept::Yes(out) => {
                let pushed_out = out.len();
                self.figures.stored.fetch_add(1, Ordering::Relaxed);
                self.dropped(network, out, Reason::Overload);
                // It may have come while the frame was on its way here.
                if let Some(outbox) = network.peers.outbox(&target) {
                    outbox.nudge();
                }
                Some(pushed_out)
            }
            Kept::No => None,
        }
    }

    /// A connection to this peer ended: frames that are to be kept go back, and the origins of all others hear that they are lost.
    pub fn give_back(&self, network: &Network, target: &str, left: Left) {
        for origin in left.origins {
            notify(network, &origin, Reason::PeerLeft, None, format!("target={target}"));
        }
        if left.kept.is_empty() {
            return;
        }
        let keeps = |frame: &Arc<Frame>| frame.wants.store && self.config.store_forward;
        let (keep, lost): (Vec<_>, Vec<_>) = left.kept.into_iter().partition(keeps);
        let out = self.change(|store| store.put_back(keep));
        self.dropped(network, out, Reason::Overload);
        self.dropped(network, lost, Reason::PeerLeft);
        // It may have another connection by now.
        if let Some(outbox) = network.peers.outbox(target) {
            outbox.nudge();
        }
    }

    /// Hands waiting frames to a peer, as many as it has room for.
    pub fn drain(&self, network: &Network, target: &str, outbox: &super::outbox::Outbox, acknowledges: bool) {
        while self.has_stored(target) && outbox.waiting() < DRAIN / 2 {
            let frames = self.change(|store| store.take(target, DRAIN / 2));
            self.figures.forwarded.fetch_add(frames.len() as u64, Ordering::Relaxed);
            let wanted = self.form_of(target);
            let (mut fitting, mut large) = (Vec::with_capacity(frames.len()), Vec::new());
            for frame in frames {
                match in_form(&frame, wanted, &network.local.realm) {
                    Some(frame) => fitting.push(frame),
                    None => large.push(frame),
                }
            }
            outbox.begin(fitting, acknowledges, clock());
            self.dropped(network, large, Reason::Overload);
        }
    }

    /// Tells the origins that their frames are gone.
    fn dropped(&self, network: &Network, frames: Vec<Arc<Frame>>, why: Reason) {
        for frame in frames {
            self.figures.dropped.fetch_add(1, Ordering::Relaxed);
            notify(network, &frame.origin, why, None, format!("target={}", frame.target));
        }
    }

    /// The frames that are kept, for the journal; `None` if nothing changed since the last time.
    pub fn changed_frames(&self) -> Option<Vec<Arc<Frame>>> {
        self.changed
            .swap(false, Ordering::AcqRel)
            .then(|| self.store.lock().unwrap_or_else(PoisonError::into_inner).all())
    }

    /// Takes frames of an earlier run.
    pub fn restore(&self, frames: Vec<Frame>) {
        self.change(|store| {
            for frame in frames {
                let _ = store.keep(Arc::new(frame)); // what has no room any more has none
            }
        });
    }
}

/// A frame in the form that its target wants; `None` if it is too long for any line in that form.
fn in_form(frame: &Arc<Frame>, wanted: Option<Form>, realm: &RealmInfo) -> Option<Arc<Frame>> {
    let Some(wanted) = wanted else { return Some(frame.clone()) };
    let Some(forward) = line::read(frame.line.trim_ascii_end()) else { return Some(frame.clone()) };
    if forward.form() == wanted {
        return Some(frame.clone());
    }
    let line = forward.rewritten(&frame.origin, wanted, realm);
    if line.len() > super::wire::MAX_LINE {
        return None;
    }
    Some(Arc::new(Frame {
        origin: frame.origin.clone(),
        from: frame.from.clone(),
        target: frame.target.clone(),
        sequence: frame.sequence,
        line: line.into_boxed_slice(),
        expires: frame.expires,
        wants: frame.wants,
    }))
}

/// Tells a peer what became of something, if it is connected and has room.
pub fn notify(network: &Network, to: &str, why: Reason, binding_id: Option<String>, detail: String) {
    let Some(outbox) = network.peers.outbox(to) else { return };
    let notice = MessageType::RelayNotify { notif_type: why, binding_id, detail: Some(detail) };
    let message = Message::new(&network.local.node_id, to, notice, None, Some(network.local.realm.clone()));
    outbox.own(&super::wire::encode(&message));
}

/// Looks after what waits, until the network ends: what is too old goes, what is not acknowledged is sent again, and what is kept is
/// written down if it shall survive a restart.
pub async fn sweep(network: Arc<Network>) {
    let relay = &network.relay;
    if !relay.config.enabled {
        return;
    }
    let mut ticks = tokio::time::interval(SWEEP);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut rounds = 0u64;
    loop {
        ticks.tick().await;
        rounds += 1;
        if relay.stored.load(Ordering::Acquire) > 0 {
            let old = relay.change(|store| store.expire(unix_now(), 1024));
            relay.dropped(&network, old, Reason::Timeout);
        }
        let now = clock();
        for outbox in network.peers.outboxes() {
            let lost = outbox.resend(now);
            relay.dropped(&network, lost, Reason::Timeout);
        }
        if rounds.is_multiple_of(4) {
            journal::write(&network).await;
        }
    }
}

/// The frame's line with its newline, for the store.
pub(super) fn with_newline(line: &[u8]) -> Box<[u8]> {
    let mut owned = Vec::with_capacity(line.len() + 1);
    owned.extend_from_slice(line);
    owned.push(b'\n');
    owned.into_boxed_slice()
}
