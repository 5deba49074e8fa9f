//! The messages that wait for one plugin. Bounded in number and bytes, with a stated answer to "full"; it outlives the
//! plugin's processes, so that a restart loses nothing that was not handed over yet. Nobody who delivers waits here: a
//! message is written to the plugin at once if it can be, and kept otherwise.
//!
//! Messages are handed over in order, with many answers outstanding. One that was handed over when the process ended is
//! not handed over again: the plugin may have acted on it. Whoever asked for an acknowledgement hears so.

pub use crate::config::Overflow;

use super::link::{Answer, Caller, Counters, Tried};
use super::logs::LogBook;
use bytes::Bytes;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use thenodes::host::HostError;
use thenodes_ipc::ring::soon;
use thenodes_ipc::{limits, pack, Code, Generation};
use tokio::sync::oneshot;

/// What a message keeps from being used by others until the plugin has taken it; dropped then.
pub type Hold = Arc<dyn std::any::Any + Send + Sync>;

/// A message that is shorter may be a small part of what came with it, and is copied before it is kept, so that it keeps only itself.
const PART: usize = 32 * 1024;

/// A message on its way to a plugin.
pub struct Delivery {
    /// The message, packed.
    pub body: Bytes,
    /// Who wants to know that the plugin took it.
    pub ack: Option<oneshot::Sender<Answer>>,
    /// See [`Overflow::BlockPeer`].
    pub hold: Option<Hold>,
    /// Becomes true when its sender has given it up; whoever sends it again must not meet it here.
    pub given_up: Option<Arc<AtomicBool>>,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Delivery>,
    bytes: usize,
    /// The process that is fed now.
    fed: Option<(Caller, Generation)>,
    /// The one that is fed when that one leaves.
    next: Option<(Caller, Generation)>,
    /// Messages that are with it, and how many may be.
    with_plugin: usize,
    window: usize,
    /// It is given up: nothing is held for it until there is a process again.
    given_up: bool,
}

impl State {
    /// How many more may be with the plugin, of which this is the first.
    fn room_for(&self, first: &Delivery) -> usize {
        // One that is waited for does not stand behind many: whoever sent it gives it up in the end, and sends it again.
        let window = if first.ack.is_some() { limits::MAX_MESSAGES_TO_PLUGIN } else { self.window };
        window.saturating_sub(self.with_plugin)
    }
}

/// The queue of one plugin.
pub struct Queue {
    state: Mutex<State>,
    overflow: Overflow,
    counters: Arc<Counters>,
    logs: Arc<LogBook>,
}

impl Queue {
    pub(super) fn new(overflow: Overflow, counters: Arc<Counters>, logs: Arc<LogBook>) -> Self {
        Self { state: Mutex::default(), overflow, counters, logs }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Messages that wait, and their bytes.
    pub fn waiting(&self) -> (usize, usize) {
        let state = self.lock();
        (state.waiting.len(), state.bytes)
    }

    /// What happens when it is full.
    pub fn overflow(&self) -> Overflow {
        self.overflow
    }

    /// The plugin takes nothing for long, and perhaps never again: nobody is held for it any more. What is beyond the ordinary bounds
    /// is dropped.
    pub(super) fn let_go(&self) {
        let mut state = self.lock();
        state.given_up = true;
        for waiting in &mut state.waiting {
            waiting.hold = None;
        }
        while state.waiting.len() > limits::PLUGIN_QUEUE || state.bytes > limits::PLUGIN_QUEUE_BYTES {
            let Some(newest) = state.waiting.pop_back() else { break };
            state.bytes -= newest.body.len();
            self.dropped(newest);
        }
    }

    /// A message is about to come.
    pub(super) fn soon(&self) {
        soon(&self.state);
    }

    /// Takes a message. Never waits.
    pub fn deliver(&self, delivery: Delivery) {
        let mut state = self.lock();
        let left = match state.waiting.is_empty() {
            true => self.hand_over_one(&mut state, delivery).err(),
            false => Some(delivery),
        };
        if let Some(delivery) = left {
            self.keep(&mut state, delivery);
        }
    }

    /// Takes messages, in this order. Never waits.
    pub fn deliver_all(&self, mut deliveries: VecDeque<Delivery>) {
        let mut state = self.lock();
        if state.waiting.is_empty() {
            self.hand_over(&mut state, &mut deliveries);
        }
        for delivery in deliveries {
            self.keep(&mut state, delivery);
        }
    }

    fn keep(&self, state: &mut State, mut delivery: Delivery) {
        if state.given_up {
            delivery.hold = None;
        }
        if delivery.body.len() < PART {
            delivery.body = Bytes::copy_from_slice(&delivery.body);
        }
        let full = |state: &State| {
            state.waiting.len() >= limits::PLUGIN_QUEUE
                || state.bytes + delivery.body.len() > limits::PLUGIN_QUEUE_BYTES
        };
        match self.overflow {
            Overflow::DropNewest if full(state) => return self.dropped(delivery),
            Overflow::DropOldest => {
                while full(state) {
                    let Some(oldest) = state.waiting.pop_front() else { break };
                    state.bytes -= oldest.body.len();
                    self.dropped(oldest);
                }
            }
            // What has no hold on a peer is not bounded by one.
            Overflow::BlockPeer if full(state) && delivery.hold.is_none() => return self.dropped(delivery),
            Overflow::DropNewest | Overflow::BlockPeer => {}
        }
        state.bytes += delivery.body.len();
        state.waiting.push_back(delivery);
    }

    /// Gives messages to the plugin, as many of the first as it takes now; returns their bytes.
    fn hand_over(&self, state: &mut State, from: &mut VecDeque<Delivery>) -> usize {
        let mut handed = 0;
        while let (Some(first), Some((caller, _))) = (from.front(), &state.fed) {
            let together = if caller.takes_many() { run_of(from, state.room_for(first)) } else { 1 };
            if together > 1 {
                match caller.try_messages(&array_of(from.iter().take(together)), together) {
                    Tried::Sent => {
                        state.with_plugin += together;
                        handed += from.drain(..together).map(|delivery| delivery.body.len()).sum::<usize>();
                        continue;
                    }
                    Tried::Full(_) => break,
                    Tried::Refused(..) => {} // none is too long, and each by itself says what is wrong
                }
            }
            let Some(first) = from.pop_front() else { break };
            match self.hand_over_one(state, first) {
                Ok(bytes) => handed += bytes,
                Err(first) => {
                    from.push_front(first);
                    break;
                }
            }
        }
        handed
    }

    /// Gives one message to the plugin; returns its bytes, or gives it back if it is not taken now.
    fn hand_over_one(&self, state: &mut State, delivery: Delivery) -> Result<usize, Delivery> {
        let Some((caller, _)) = &state.fed else { return Err(delivery) };
        caller.soon();
        if state.room_for(&delivery) == 0 {
            return Err(delivery);
        }
        let bytes = delivery.body.len();
        if delivery.given_up.as_ref().is_some_and(|given_up| given_up.load(Ordering::Acquire)) {
            return Ok(bytes);
        }
        let Delivery { body, ack, hold, given_up } = delivery;
        match caller.try_message(&body, ack) {
            Tried::Sent => state.with_plugin += 1,
            Tried::Full(ack) => return Err(Delivery { body, ack, hold, given_up }),
            Tried::Refused(ack, error) => {
                Counters::count(&self.counters.dropped);
                if let Some(ack) = ack {
                    let _ = ack.send(Err(error));
                }
            }
        }
        Ok(bytes)
    }

    fn dropped(&self, delivery: Delivery) {
        Counters::count(&self.counters.dropped);
        if let Some(ack) = delivery.ack {
            let text = "the plugin's queue of messages is full";
            let _ = ack.send(Err(HostError::new(Code::ResourceExhausted, text)));
        }
    }

    /// Hands over as much as the plugin takes of what waits.
    fn feed(&self, state: &mut State) {
        let mut waiting = std::mem::take(&mut state.waiting);
        let handed = self.hand_over(state, &mut waiting);
        state.waiting = waiting;
        state.bytes = state.bytes.saturating_sub(handed);
    }

    /// A process takes messages from now on, or as soon as the one that does now has left.
    pub(super) fn attach(&self, caller: Caller) {
        let mut state = self.lock();
        let generation = caller.generation();
        state.given_up = false;
        state.next = Some((caller, generation));
        self.take_turns(&mut state);
    }

    /// This process takes none any more.
    pub(super) fn detach(&self, generation: Generation) {
        let mut state = self.lock();
        let is = |one: &Option<(Caller, Generation)>| one.as_ref().is_some_and(|(_, of)| *of == generation);
        if is(&state.next) {
            state.next = None;
        }
        if is(&state.fed) {
            state.fed = None;
            self.take_turns(&mut state);
        }
    }

    fn take_turns(&self, state: &mut State) {
        if state.fed.is_none() && state.next.is_some() {
            state.fed = state.next.take();
            (state.with_plugin, state.window) = (0, limits::MAX_MESSAGES_TO_PLUGIN);
            self.feed(state);
        }
    }

    /// So many messages were answered, so long after they were handed over, the last of them perhaps with an error.
    pub(super) fn messages_done(
        &self,
        generation: Generation,
        count: usize,
        age: Duration,
        error: Option<&HostError>,
    ) {
        if let Some(error) = error {
            self.logs.add(generation.0, "error", "on_message", &error.to_string());
        }
        let mut state = self.lock();
        let fed = state.fed.as_ref().filter(|(_, fed)| *fed == generation);
        if let Some(takes_many) = fed.map(|(caller, _)| caller.takes_many()) {
            state.window = window(state.window, takes_many, age);
            state.with_plugin = state.with_plugin.saturating_sub(count);
            self.feed(&mut state);
        }
    }

    /// The link takes more again.
    pub(super) fn room_came(&self) {
        self.feed(&mut self.lock());
    }
}

/// How many messages may be with a plugin after one was answered that was with it for so long.
fn window(now: usize, takes_many: bool, age: Duration) -> usize {
    let next = match () {
        () if !takes_many => limits::MAX_MESSAGES_TO_PLUGIN,
        () if age <= limits::SOON => now * 2,
        () if age > 2 * limits::SOON => now / 2,
        () => now,
    };
    next.clamp(limits::MAX_MESSAGES_TO_PLUGIN, limits::MAX_MESSAGES_AT_ONCE)
}

/// How many of the first messages may go in one call: those that nobody wants to hear about, within the bounds of one.
fn run_of(from: &VecDeque<Delivery>, most: usize) -> usize {
    let mut bytes = 0;
    let fits = |delivery: &&Delivery| {
        bytes += delivery.body.len();
        delivery.ack.is_none() && delivery.given_up.is_none() && bytes <= limits::MAX_MESSAGES_BYTES
    };
    from.iter().take(most).take_while(fits).count()
}

/// Messages as the body of one call.
fn array_of<'a>(deliveries: impl Iterator<Item = &'a Delivery> + Clone) -> Bytes {
    let bytes: usize = deliveries.clone().map(|delivery| delivery.body.len()).sum();
    let mut body = Vec::with_capacity(pack::ARRAY_HEAD + bytes);
    body.extend_from_slice(&pack::array_head(deliveries.clone().count()));
    for delivery in deliveries {
        body.extend_from_slice(&delivery.body);
    }
    body.into()
}

#[cfg(test)]
mod tests;
