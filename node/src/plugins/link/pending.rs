//! The open calls of one link: who waits for which answer, and since when. Ids come back from a hostile process, so an answer
//! is matched only to a call that was made, of this generation, and only once.

use super::{Answer, Outcome};
use crate::plugins::metrics::Method;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use thenodes_ipc::{CallId, Generation};
use tokio::sync::{oneshot, Notify};

/// Who waits for the answer to a call.
pub(super) enum Waiter {
    /// A task.
    Call(oneshot::Sender<Outcome>),
    /// A task of the node's own watch; it takes nobody's place.
    Own(oneshot::Sender<Outcome>),
    /// The plugin's queue, which goes on with the next message.
    Message(Option<oneshot::Sender<Answer>>),
    /// The same for several messages in one call, for which nobody else waits.
    Messages,
}

impl Waiter {
    fn is_queue(&self) -> bool {
        matches!(self, Waiter::Message(_) | Waiter::Messages)
    }
}

/// An open call.
pub(super) struct Open {
    id: CallId,
    /// Numbers from `id` on that are this call's, one for each message, and how many of them are answered.
    count: u32,
    done: u32,
    pub(super) waiter: Waiter,
    pub(super) since: Instant,
    pub(super) kind: Method,
    method: Word,
}

impl Open {
    /// What it has no answer to.
    pub(super) fn left(&self) -> u32 {
        self.count - self.done
    }
}

/// An answer that was waited for.
pub(super) struct Answered {
    /// Who waits for it. The waiter of several messages stays until the last of them is answered.
    pub(super) waiter: Waiter,
    /// Messages that it answers: those before its own went well.
    pub(super) count: u32,
    pub(super) took: Duration,
    pub(super) kind: Method,
}

/// The beginning of a method's name, without an allocation.
#[derive(Clone, Copy)]
struct Word {
    bytes: [u8; 23],
    length: u8,
}

impl Word {
    fn new(text: &str) -> Self {
        let mut word = Self { bytes: [0; 23], length: text.len().min(23) as u8 };
        let length = usize::from(word.length);
        word.bytes[..length].copy_from_slice(&text.as_bytes()[..length]);
        word
    }
}

impl std::fmt::Display for Word {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&String::from_utf8_lossy(&self.bytes[..usize::from(self.length)]))
    }
}

#[derive(Default)]
struct Table {
    next: u64,
    /// In no order; few enough ([`thenodes_ipc::limits::MAX_CALLS_TO_PLUGIN`] and a ping) that looking through them is the fastest way.
    open: Vec<Open>,
    /// Messages among them.
    messages: usize,
    /// When a message was answered last, or one was sent while none was open.
    progress: Option<Instant>,
}

impl Table {
    fn remove(&mut self, id: CallId) -> Option<Open> {
        let at = self.open.iter().position(|open| open.id == id)?;
        Some(self.remove_at(at))
    }

    fn remove_at(&mut self, at: usize) -> Open {
        let open = self.open.swap_remove(at);
        if open.waiter.is_queue() {
            self.messages = self.messages.saturating_sub(1);
        }
        open
    }
}

/// All calls to one process of a plugin that have no answer yet.
pub(super) struct Pending {
    generation: Generation,
    table: Mutex<Table>,
    /// The last open message was answered.
    without_messages: Notify,
}

impl Pending {
    pub(super) fn new(generation: Generation) -> Self {
        Self { generation, table: Mutex::default(), without_messages: Notify::new() }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Enters a call that is made now and gives it a number.
    pub(super) fn enter(&self, method: &str, waiter: Waiter, now: Instant) -> CallId {
        self.enter_many(method, waiter, now, 1)
    }

    /// Enters a call with so many messages, each of which has a number; returns the first.
    pub(super) fn enter_many(&self, method: &str, waiter: Waiter, now: Instant, count: u32) -> CallId {
        let mut table = self.lock();
        let id = CallId::new(self.generation, table.next + 1);
        table.next += u64::from(count);
        if waiter.is_queue() {
            if table.messages == 0 {
                table.progress = Some(now);
            }
            table.messages += 1;
        }
        let kind = Method::of(method);
        let method = Word::new(method);
        table.open.push(Open { id, count, done: 0, waiter, since: now, kind, method });
        id
    }

    /// Takes a call out.
    pub(super) fn leave(&self, id: CallId) -> Option<Waiter> {
        self.lock().remove(id).map(|open| open.waiter)
    }

    /// Takes a call out because its answer has come. An error: no such call was ever made.
    pub(super) fn answered(&self, id: CallId) -> Result<Option<Answered>, String> {
        let mut table = self.lock();
        if id.generation() != self.generation || id.counter() > table.next || id.counter() == 0 {
            return Err(format!("a reply to call {:#x}, which was never made", id.0));
        }
        let place = |open: &Open| id.0.wrapping_sub(open.id.0);
        let Some(at) = table.open.iter().position(|open| place(open) < u64::from(open.count)) else {
            return Ok(None);
        };
        let open = &mut table.open[at];
        let through = place(open) as u32 + 1; // below `count`
        if through <= open.done {
            return Ok(None);
        }
        let now = Instant::now();
        let (count, took, kind) = (through - open.done, now.saturating_duration_since(open.since), open.kind);
        open.done = through;
        let waiter = if through == open.count { table.remove_at(at).waiter } else { Waiter::Messages };
        if waiter.is_queue() {
            table.progress = Some(now);
            if table.messages == 0 {
                self.without_messages.notify_waiters();
            }
        }
        Ok(Some(Answered { waiter, count, took, kind }))
    }

    /// True if this call is open and no other is.
    pub(super) fn is_alone(&self, id: CallId) -> bool {
        matches!(self.lock().open.as_slice(), [only] if only.id == id)
    }

    /// True if somebody else waits for an answer to a call.
    pub(super) fn has_another_call(&self, id: CallId) -> bool {
        self.lock().open.iter().any(|open| open.id != id && matches!(open.waiter, Waiter::Call(_)))
    }

    /// Waits until no message is open.
    pub(super) async fn without_messages(&self) {
        loop {
            let mut last = std::pin::pin!(self.without_messages.notified());
            last.as_mut().enable(); // before looking: an end in between is not missed
            if self.lock().messages == 0 {
                return;
            }
            last.await;
        }
    }

    /// Takes all out, in no order.
    pub(super) fn drain(&self) -> Vec<Open> {
        let mut table = self.lock();
        table.messages = 0;
        self.without_messages.notify_waiters();
        table.open.drain(..).collect()
    }

    /// What is open and how long; `None` if nothing is.
    pub(super) fn stalled(&self, now: Instant) -> Option<Stalled> {
        let table = self.lock();
        let first = table.open.iter().min_by_key(|open| open.since)?;
        let oldest = first.since;
        let progress = table.progress.filter(|_| table.messages > 0).unwrap_or(now);
        Some(Stalled {
            messages: now.saturating_duration_since(progress),
            oldest: now.saturating_duration_since(oldest),
            method: first.method.to_string(),
        })
    }
}

/// What is open and how long.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stalled {
    /// Time since a message was answered, if one is open; zero if none is. Messages are handled one after the other, so one may
    /// be old without anything being wrong; that none is answered is.
    pub messages: Duration,
    /// Age of the oldest open call.
    pub oldest: Duration,
    /// Its method, or the beginning of it.
    pub method: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_finds_its_call_once_and_a_call_that_was_never_made_is_a_violation() {
        let pending = Pending::new(Generation(3));
        let id = pending.enter("message", Waiter::Message(None), Instant::now());
        assert!(matches!(pending.answered(id), Ok(Some(Answered { waiter: Waiter::Message(None), .. }))));
        assert!(matches!(pending.answered(id), Ok(None)), "late or double: ignored");
        for wrong in
            [CallId::new(Generation(2), 1), CallId::new(Generation(3), 2), CallId::new(Generation(3), 0)]
        {
            assert!(pending.answered(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn one_answer_counts_for_all_messages_before_it_and_none_counts_twice() {
        let pending = Pending::new(Generation(3));
        let now = Instant::now();
        let before = pending.enter("message", Waiter::Message(None), now);
        let first = pending.enter_many("messages", Waiter::Messages, now, 10);
        let after = pending.enter("message", Waiter::Message(None), now);
        let number = |place: u64| CallId(first.0 + place);
        let mut count = |place| match pending.answered(number(place)).expect("it was made") {
            Some(Answered { waiter: Waiter::Messages, count, .. }) => count,
            Some(_) => panic!("another's"),
            None => 0,
        };
        assert_eq!([3, 3, 1, 4, 9, 9, 0].map(&mut count), [4, 0, 0, 1, 5, 0, 0]);
        assert!(matches!(pending.answered(before), Ok(Some(Answered { count: 1, .. }))));
        assert!(matches!(pending.answered(after), Ok(Some(Answered { count: 1, .. }))));
        let half = pending.enter_many("messages", Waiter::Messages, now, 10);
        assert!(matches!(pending.answered(CallId(half.0 + 6)), Ok(Some(Answered { count: 7, .. }))));
        assert!(pending.answered(CallId(half.0 + 10)).is_err(), "never made");
        assert_eq!(pending.drain().iter().map(Open::left).collect::<Vec<_>>(), [3]);
    }

    #[test]
    fn others_who_call_are_told_from_messages_and_from_oneself() {
        let (pending, now) = (Pending::new(Generation(1)), Instant::now());
        let call = || Waiter::Call(oneshot::channel().0);
        let own = pending.enter("request.x", call(), now);
        pending.enter("message", Waiter::Message(None), now);
        assert!(!pending.has_another_call(own));
        let other = pending.enter("request.x", call(), now);
        assert!(pending.has_another_call(own) && pending.has_another_call(other));
        pending.leave(own);
        assert!(!pending.has_another_call(other));
    }

    #[test]
    fn silence_about_messages_is_counted_from_the_last_answer_and_only_while_one_is_open() {
        let pending = Pending::new(Generation(1));
        assert_eq!(pending.stalled(Instant::now()), None);
        let first = pending.enter("message", Waiter::Message(None), Instant::now());
        let second = pending.enter("message", Waiter::Message(None), Instant::now());
        let late = Instant::now() + Duration::from_secs(60);
        let stalled = pending.stalled(late).expect("two are open");
        assert!(stalled.messages.as_secs() >= 59 && stalled.oldest.as_secs() >= 59);
        pending.answered(first).expect("it was made");
        assert!(pending.stalled(late).is_some_and(|stalled| stalled.messages <= stalled.oldest));
        pending.answered(second).expect("it was made");
        let (tell, _answer) = oneshot::channel();
        pending.enter("message", Waiter::Call(tell), Instant::now());
        let stalled = pending.stalled(late).expect("a call is open");
        assert!(stalled.messages.is_zero() && stalled.oldest.as_secs() >= 59);
    }
}
