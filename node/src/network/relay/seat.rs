//! A peer's seat at the relay: what it bound, which of its frames were seen, how fast it may go on. It is the peer's connection's own
//! and ends with it, so that nothing of it outlives the peer and nobody else has a hand in it. It decides; the connection's reader acts.

use super::line::{self, Forward};
use super::window::Window;
use super::{notify, rendezvous, unix_now, Form, Frame, Qos, Wants};
use super::{with_newline, CAPABILITY, CAPABILITY_ACKNOWLEDGES, CAPABILITY_STORES};
use crate::config::is_node_id;
use crate::network::clock;
use crate::network::outbox::Outbox;
use crate::network::pace::Pace;
use crate::network::wire::MAX_LINE;
use crate::network::Network;
use crate::text::printable;
use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::time::Duration;
use thenodes::host::PeerInfo;
use thenodes::network::message::{MessageType, Reason};

/// Bindings of one peer, and pairs whose sequence numbers are watched.
const MAX_BINDINGS: usize = 1024;
/// Longest id of a binding that is read.
const MAX_BINDING_ID: usize = 512;
/// Frames a second that may fail before their sender is held up, and notices about them.
const FAILURES_PER_S: u32 = 1000;

/// A route that its owner asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Binding {
    id: String,
    wants: Wants,
    /// Seconds since 1970.
    expires: Option<u64>,
}

/// The way to the last target, as long as nobody came or went and nothing was bound.
#[derive(Debug)]
struct Way {
    target: Arc<str>,
    epoch: (u64, u64),
    outbox: Option<Arc<Outbox>>,
    acknowledges: bool,
    form: Option<Form>,
    wants: Wants,
    expires: Option<u64>,
}

/// The seat.
pub struct Seat {
    peer: Arc<PeerInfo>,
    /// Its id.
    pub origin: Arc<str>,
    bindings: HashMap<String, Binding>,
    windows: HashMap<Box<str>, Window>,
    way: Option<Way>,
    pace: Pace,
    failures: Pace,
}

/// What is to be done with a line.
#[derive(Debug)]
pub enum Judged<'a> {
    /// It is no frame to forward, or none that can be read so.
    NotAFrame,
    /// It is for this node.
    Ours(Forward<'a>),
    /// Hand it on.
    Send(Sending),
    /// It is dealt with; go on after this time.
    Done(Duration),
}

/// A frame on its way to a peer.
#[derive(Debug)]
pub struct Sending {
    /// Where to.
    pub outbox: Arc<Outbox>,
    /// What of it.
    pub what: What,
    /// The sender goes on after this time.
    pub pause: Duration,
}

/// What is written.
#[derive(Debug)]
pub enum What {
    /// The line as it came.
    Line,
    /// Another line, with its newline.
    Rewritten(Vec<u8>),
    /// A frame that must not be lost; whether the peer acknowledges it.
    Kept(Arc<Frame>, bool),
}

impl Seat {
    /// A seat for a peer that was let in.
    pub fn new(network: &Network, peer: &Arc<PeerInfo>) -> Self {
        Self {
            peer: peer.clone(),
            origin: peer.node_id.as_str().into(),
            bindings: HashMap::new(),
            windows: HashMap::new(),
            way: None,
            pace: Pace::new(network.relay.config.frames_per_s),
            failures: Pace::new(FAILURES_PER_S),
        }
    }

    fn way(&mut self, network: &Network, target: &str) -> &Way {
        let epoch = (network.peers.epoch(), network.relay.forms_epoch());
        let same = self.way.as_ref().is_some_and(|way| way.epoch == epoch && *way.target == *target);
        if !same {
            let found = network.peers.entry(target);
            let binding = self.bindings.get(target);
            self.way = Some(Way {
                target: target.into(),
                epoch,
                acknowledges: found.as_ref().is_some_and(|(info, _)| has(info, CAPABILITY_ACKNOWLEDGES)),
                outbox: found.map(|(_, outbox)| outbox),
                form: network.relay.form_of(target),
                wants: binding.map(|binding| binding.wants).unwrap_or_default(),
                expires: binding.and_then(|binding| binding.expires),
            });
        }
        let way = self.way.as_mut().expect("set above");
        if way.expires.is_some_and(|expires| expires <= unix_now()) {
            self.bindings.remove(target);
            (way.wants, way.expires) = (Wants::default(), None);
        }
        way
    }

    fn fail(&mut self, network: &Network, why: Reason, detail: String) -> Judged<'static> {
        network.relay.figures.refused.fetch_add(1, Ordering::Relaxed);
        Judged::Done(self.tell_failure(network, why, detail))
    }

    /// Tells the peer, and says how long it is to wait.
    fn tell_failure(&mut self, network: &Network, why: Reason, detail: String) -> Duration {
        let wait = self.failures.take(1, clock());
        notify(network, &self.peer.node_id, why, None, detail);
        wait
    }

    /// True if this number of a pair was not seen before.
    fn is_new(&mut self, from: &str, to: &str, sequence: u64) -> bool {
        let own = from == &*self.origin;
        let foreign = if own { String::new() } else { format!("{from} {to}") };
        let pair: &str = if own { to } else { &foreign };
        if let Some(window) = self.windows.get_mut(pair) {
            return window.take(sequence);
        }
        if self.windows.len() >= MAX_BINDINGS {
            // Any: the pair is seen as new when it comes again.
            let any = self.windows.keys().next().cloned();
            any.map(|any| self.windows.remove(&any));
        }
        self.windows.insert(pair.into(), Window::beginning(sequence));
        true
    }

    /// Judges a line of this peer that may be a frame.
    pub fn judge<'a>(&mut self, network: &Network, bytes: &'a [u8]) -> Judged<'a> {
        let Some(forward) = line::read(bytes) else { return Judged::NotAFrame };
        if *forward.to == *network.local.node_id {
            return Judged::Ours(forward);
        }
        let target = || target_of(&forward);
        if !network.relay.config.enabled {
            return self.fail(
                network,
                Reason::PolicyDenied,
                format!("{} this node relays nothing", target()),
            );
        }
        let own = *forward.from == *self.origin;
        // A relay that the operator names may hand us what it got from its peer; nobody else speaks for others.
        if !own && !network.relay.config.relays.contains(&self.peer.node_id) {
            let from = printable(&forward.from, 128);
            return self.fail(
                network,
                Reason::PolicyDenied,
                format!("{} from={from} is another's name", target()),
            );
        }
        if *forward.to == *self.origin || !is_node_id(&forward.to) || !is_node_id(&forward.from) {
            return self.fail(network, Reason::UnknownTarget, target());
        }
        if let Some(sequence) = forward.sequence {
            if !self.is_new(&forward.from, &forward.to, sequence) {
                network.relay.figures.refused.fetch_add(1, Ordering::Relaxed);
                return Judged::Done(Duration::ZERO); // seen, and dealt with then
            }
        }
        let pause = match network.relay.config.frames_per_s {
            0 => Duration::ZERO,
            _ => self.pace.take(1, clock()),
        };
        let way = self.way(network, &forward.to);
        // What a relay hands on is treated as that relay bound it.
        let (wants, form) = (way.wants, way.form);
        let (acknowledges, target) = (way.acknowledges, way.target.clone());
        let outbox = way.outbox.clone();
        // What waits already goes first.
        let behind = wants.store && network.relay.has_stored(&target);
        let Some(outbox) = outbox.filter(|_| !behind) else {
            return self.absent(network, bytes, &forward, target, wants, behind, pause);
        };
        let form = form.filter(|form| *form != forward.form());
        let what = match form {
            None if own && forward.outer_from == forward.from => What::Line,
            None => What::Rewritten(forward.rewritten(&self.origin, forward.form(), &network.local.realm)),
            Some(other) => What::Rewritten(forward.rewritten(&self.origin, other, &network.local.realm)),
        };
        // In the other form it may be longer than any line may be, and would cost the target its connection.
        if matches!(&what, What::Rewritten(line) if line.len() > MAX_LINE) {
            self.give_back(&forward.from, &forward.to, forward.sequence);
            let detail = format!("{} too long in the form that it reads", target_of(&forward));
            return self.fail(network, Reason::Overload, detail);
        }
        let acknowledges = acknowledges && wants.qos == Qos::Reliable && forward.sequence.is_some();
        let what = match (wants.store || acknowledges, what) {
            (false, what) => what,
            (true, What::Line) => {
                What::Kept(self.frame(network, with_newline(bytes), &forward, &target, wants), acknowledges)
            }
            (true, What::Rewritten(line)) => {
                What::Kept(self.frame(network, line.into(), &forward, &target, wants), acknowledges)
            }
            (true, kept @ What::Kept(..)) => kept,
        };
        Judged::Send(Sending { outbox, what, pause })
    }

    fn frame(
        &self,
        network: &Network,
        line: Box<[u8]>,
        forward: &Forward<'_>,
        target: &Arc<str>,
        wants: Wants,
    ) -> Arc<Frame> {
        let bound = self.bindings.get(&**target).and_then(|binding| binding.expires);
        let latest = unix_now().saturating_add(network.relay.config.ttl.as_secs());
        let own = *forward.from == *self.origin;
        Arc::new(Frame {
            origin: self.origin.clone(),
            from: if own { self.origin.clone() } else { (*forward.from).into() },
            target: target.clone(),
            sequence: forward.sequence,
            line,
            expires: bound.map_or(latest, |expires| expires.min(latest)),
            wants,
        })
    }

    /// The line as it came, if its envelope names its sender; else with an envelope that does.
    fn line(&self, network: &Network, bytes: &[u8], forward: &Forward<'_>) -> Box<[u8]> {
        if *forward.outer_from == *self.origin {
            return with_newline(bytes);
        }
        forward.rewritten(&self.origin, forward.form(), &network.local.realm).into()
    }

    /// A frame was not accepted after all: its number may come again.
    fn give_back(&mut self, from: &str, to: &str, sequence: Option<u64>) {
        let pair = if *from == *self.origin { to.to_owned() } else { format!("{from} {to}") };
        if let (Some(sequence), Some(window)) = (sequence, self.windows.get_mut(&*pair)) {
            window.give_back(sequence);
        }
    }

    /// The target is not here, or others wait before this frame.
    #[allow(clippy::too_many_arguments)] // one call, above
    fn absent(
        &mut self,
        network: &Network,
        bytes: &[u8],
        forward: &Forward<'_>,
        target: Arc<str>,
        wants: Wants,
        behind: bool,
        pause: Duration,
    ) -> Judged<'static> {
        let own = *forward.from == *self.origin;
        // Never a second relay for a frame that came from one: two that select each other would play for ever.
        if network.relay.config.rendezvous && own && !behind {
            let with_store = network.relay.config.store_forward;
            let relays = network.peers.having(CAPABILITY);
            let others = relays
                .iter()
                .filter(|peer| !with_store || has(peer, CAPABILITY_STORES))
                .map(|peer| peer.node_id.as_str())
                .filter(|relay| *relay != &*self.origin);
            let chosen = rendezvous::choose(&target, others);
            if let Some(outbox) = chosen.and_then(|relay| network.peers.outbox(relay)) {
                let chosen = chosen.unwrap_or_default();
                let form = network.relay.form_of(chosen).unwrap_or(forward.form());
                let line = match form == forward.form() && forward.outer_from == forward.from {
                    true => None,
                    // The next relay asks the frame, not the envelope; upstream asks the envelope.
                    false => Some(forward.rewritten(&self.origin, form, &network.local.realm)),
                };
                // What was bound here is bound there, in this relay's name: it keeps the frame for the target then.
                let bind = match wants.store {
                    false => None,
                    true => outbox.with_client(|client| client.bind(&network.local, chosen, &target, wants)),
                };
                let what = match (bind, line) {
                    (None, None) => What::Line,
                    (None, Some(line)) => What::Rewritten(line),
                    (Some(bind), Some(line)) => What::Rewritten([bind, line].concat()),
                    (Some(bind), None) => What::Rewritten([&bind, &*with_newline(bytes)].concat()),
                };
                return Judged::Send(Sending { outbox, what, pause });
            }
        }
        let line = self.line(network, bytes, forward);
        let frame = self.frame(network, line, forward, &target, wants);
        Judged::Done(pause.max(self.keep_or_tell(network, frame, Reason::Timeout)))
    }

    /// Keeps a frame that cannot be handed on now, or says why it is lost.
    fn keep_or_tell(&mut self, network: &Network, frame: Arc<Frame>, why: Reason) -> Duration {
        let keeps =
            network.relay.config.store_forward && frame.wants.store && frame.wants.qos != Qos::LowLatency;
        let (from, target, sequence) = (frame.from.clone(), frame.target.clone(), frame.sequence);
        let pushed_out = if keeps { network.relay.keep(network, frame) } else { None };
        match pushed_out {
            Some(0) => return Duration::ZERO,
            // Pushing others out is work, and whoever causes it waits for it.
            Some(count) => return self.failures.take(u32::try_from(count).unwrap_or(u32::MAX), clock()),
            None => {}
        }
        network.relay.figures.dropped.fetch_add(1, Ordering::Relaxed);
        self.give_back(&from, &target, sequence); // it may be tried again
        let (why, detail) = match (keeps, why) {
            (true, _) | (_, Reason::Overload) => (Reason::Overload, format!("target={target}")),
            (false, why) => (why, format!("target={target} policy=store_forward_disabled_or_low_latency")),
        };
        self.tell_failure(network, why, detail)
    }

    /// A frame could not be handed on after all: its target takes nothing, or has gone. How long its sender is to wait.
    pub fn undeliverable(&mut self, network: &Network, bytes: &[u8], gone: bool) -> Duration {
        let Some(forward) = line::read(bytes) else { return Duration::ZERO };
        let way = self.way(network, &forward.to);
        let (wants, target) = (way.wants, way.target.clone());
        let line = self.line(network, bytes, &forward);
        let frame = self.frame(network, line, &forward, &target, wants);
        let why = if gone { Reason::Timeout } else { Reason::Overload };
        self.keep_or_tell(network, frame, why)
    }

    /// RELAY_BIND: the peer asks for a route of its own. The answer.
    pub fn bind(&mut self, network: &Network, ask: MessageType) -> Option<MessageType> {
        let MessageType::RelayBind { target, want_store_forward, qos, nonce, expires_at } = ask else {
            return None;
        };
        let config = &network.relay.config;
        if !config.enabled {
            return None; // as upstream: a node that is no relay does not answer for one
        }
        let now = unix_now();
        self.bindings.retain(|_, binding| binding.expires.is_none_or(|expires| expires > now));
        self.way = None;
        let id = format!("bind:{}:{target}:{}", self.origin, nonce.unwrap_or(0));
        let wants = Wants { qos: Qos::of(qos.as_deref()), store: want_store_forward };
        let binding = Binding { id: id.clone(), wants, expires: expires_at };
        let same = |old: &&Binding| old.wants == wants && old.expires == expires_at;
        let refusal = if !is_node_id(&target) || *target == *self.origin {
            Some(Reason::UnknownTarget)
        } else if want_store_forward && !config.store_forward {
            Some(Reason::PolicyDenied)
        } else if expires_at.is_some_and(|expires| expires <= now) {
            Some(Reason::Timeout)
        } else if self.bindings.get(&target).filter(same).is_some() {
            Some(Reason::AlreadyBound)
        } else if (want_store_forward && network.relay.is_full(&target))
            || (self.bindings.len() >= MAX_BINDINGS && !self.bindings.contains_key(&target))
        {
            Some(Reason::Overload)
        } else {
            None
        };
        let peer_present = network.peers.by_id(&target).is_some();
        let binding_id = match refusal {
            None => Some(id),
            Some(Reason::AlreadyBound) => self.bindings.get(&target).map(|old| old.id.clone()),
            Some(_) => None,
        };
        if refusal.is_none() {
            self.bindings.insert(target, binding);
        }
        let ok = refusal.is_none();
        Some(MessageType::RelayBindAck {
            ok,
            reason: refusal,
            binding_id,
            peer_present: Some(peer_present),
            nonce,
        })
    }

    /// RELAY_UNBIND: the peer gives a route up. Only its own; the answer if there was such a one.
    pub fn unbind(&mut self, id: &str) -> Option<MessageType> {
        if id.len() > MAX_BINDING_ID {
            return None;
        }
        let target =
            self.bindings.iter().find(|(_, binding)| binding.id == id).map(|(target, _)| target.clone())?;
        self.bindings.remove(&target);
        self.way = None;
        let binding_id = Some(id.to_owned());
        Some(MessageType::RelayNotify {
            notif_type: Reason::PeerLeft,
            binding_id,
            detail: Some(format!("target={target}")),
        })
    }
}

fn target_of(forward: &Forward<'_>) -> String {
    format!("target={}", printable(&forward.to, 128))
}

pub(crate) fn has(peer: &PeerInfo, capability: &str) -> bool {
    peer.capabilities.iter().any(|word| word == capability)
}
