//! Calling a plugin: the only way in which the rest of the node speaks to one. Every call ends: with the plugin's answer, at
//! its deadline, or with the link, and then everyone hears the same reason.

use super::outbox::Put;
use super::pending::{Stalled, Waiter};
use super::{Answer, Counters, Ended, Shared};
use crate::plugins::metrics::Method;
use crate::plugins::process::spin_us;
use bytes::Bytes;
use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::time::Duration;
use thenodes::host::HostError;
use thenodes_ipc::{limits, CallId, Code, Frame, FrameError, Generation};
use tokio::sync::oneshot;
use tokio::time::{timeout_at, Instant};

/// Why a call to a plugin has no result.
pub type CallError = HostError;

/// Why a call has no result: what the plugin said, and what the node found out by itself, are never mixed up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failed {
    /// The plugin answered with an error.
    Answered(HostError),
    /// The plugin did not answer in time.
    Late,
    /// The link has ended, or could not take the call.
    Gone(HostError),
}

impl Failed {
    /// The same for callers who only pass it on.
    pub fn into_error(self, method: &str) -> CallError {
        match self {
            Failed::Answered(error) | Failed::Gone(error) => error,
            Failed::Late => HostError::new(
                Code::Timeout,
                format!("{method}: the plugin did not answer within the deadline"),
            ),
        }
    }
}

/// A handle for calling a plugin. Cheap to clone; outlives the link, and then every call fails at once.
#[derive(Clone)]
pub struct Caller {
    pub(super) shared: Arc<Shared>,
}

/// A call that was sent; its answer is still to come.
pub struct Sent {
    caller: Caller,
    id: CallId,
    answer: oneshot::Receiver<Answer>,
    /// The answer, if it came while we looked.
    early: Option<Answer>,
    kind: Method,
    /// What it counts as if no answer comes; `None` until it is on its way.
    without: Option<Code>,
}

impl Caller {
    /// Calls a method and waits for the answer, at most until `deadline` from now.
    pub async fn call(
        &self,
        method: &str,
        body: impl Into<Bytes>,
        deadline: Duration,
    ) -> Result<Bytes, Failed> {
        let until = Instant::now() + deadline.min(limits::MAX_DEADLINE);
        match timeout_at(until, self.send(method, body, deadline)).await {
            Ok(sent) => {
                let mut sent = sent.map_err(|error| {
                    self.shared.counters.calls.unanswered(Method::of(method), &error.code);
                    Failed::Gone(error)
                })?;
                sent.look();
                sent.answer(until).await
            }
            Err(_) => {
                Counters::count(&self.shared.counters.timeouts);
                self.shared.counters.calls.unanswered(Method::of(method), &Code::Timeout);
                Err(Failed::Late)
            }
        }
    }

    /// Sends a call; calls arrive in the order in which this is awaited. Waits while too many calls are open.
    pub async fn send(
        &self,
        method: &str,
        body: impl Into<Bytes>,
        deadline: Duration,
    ) -> Result<Sent, CallError> {
        let shared = &self.shared;
        let body = body.into();
        let permit = shared.open.acquire().await.map_err(|_| self.gone())?;
        permit.forget(); // given back when the call leaves `pending`
        let (tell, answer) = oneshot::channel();
        let id = shared.pending.enter(method, Waiter::Call(tell));
        let kind = Method::of(method);
        let mut sent = Sent { caller: self.clone(), id, answer, early: None, kind, without: None };
        // The link may have ended between the permit and the entry; then nobody would answer.
        if shared.ended.get().is_some() {
            return Err(self.gone());
        }
        shared.busy();
        let deadline_ms = u32::try_from(deadline.as_millis()).unwrap_or(u32::MAX);
        let frame = Frame::Call { id, cause: None, method, deadline_ms, body: &body };
        match shared.outbox.put_when_there_is_room(&shared.stream, &frame, &body).await {
            Ok(Put::Taken) => {
                sent.without = Some(Code::Cancelled);
                Ok(sent)
            }
            Ok(Put::Full | Put::Closed) => Err(self.gone()),
            Err(error) => Err(unsendable(&error)),
        }
    }

    /// Sends a message for which nobody waits in a task; the answer goes to the plugin's queue and to `ack`. Gives `ack` back
    /// if there is no room now.
    pub(in crate::plugins) fn try_message(
        &self,
        body: &Bytes,
        ack: Option<oneshot::Sender<Answer>>,
    ) -> Tried {
        let shared = &self.shared;
        let Ok(permit) = shared.open.try_acquire() else { return Tried::Full(ack) };
        permit.forget();
        let id = shared.pending.enter("message", Waiter::Message(ack));
        let deadline_ms = limits::CALL_DEADLINE.as_millis() as u32;
        let frame = Frame::Call { id, cause: None, method: "message", deadline_ms, body };
        let put = shared.outbox.put(&shared.stream, &frame, body);
        if put == Ok(Put::Taken) {
            shared.busy();
            return Tried::Sent;
        }
        // Nothing of it was written; so it may be taken back as if it had never been made.
        let back = match shared.leave(id) {
            Some(Waiter::Message(ack)) => ack,
            Some(Waiter::Call(_)) | None => None,
        };
        match put {
            Ok(_) => Tried::Full(back),
            Err(error) => Tried::Refused(back, unsendable(&error)),
        }
    }

    /// Tells without waiting; false if the runner is too slow to be told.
    pub fn notify(&self, method: &str, body: impl Into<Bytes>) -> bool {
        let body = body.into();
        let frame = Frame::Notify { method, body: &body };
        self.shared.outbox.put(&self.shared.stream, &frame, &body) == Ok(Put::Taken)
    }

    /// How long the plugin has not answered anything, and how old its oldest open call is; `None` while nothing is open.
    pub fn stalled(&self) -> Option<Stalled> {
        self.shared.pending.stalled(std::time::Instant::now())
    }

    /// Waits until a call is made after [`Caller::rests`] said that nothing was open. So a supervisor watches a busy plugin without
    /// waking for an idle one.
    pub async fn stirred(&self) {
        self.shared.work.notified().await;
    }

    /// True if nothing is open, and from now on the next call wakes whoever waits in [`Caller::stirred`].
    pub fn rests(&self) -> bool {
        self.shared.watched.store(false, Ordering::SeqCst);
        // A call may have come before the line above and not have woken anybody.
        self.stalled().is_none() || self.shared.watched.swap(true, Ordering::SeqCst)
    }

    /// Waits until no message is open.
    pub(in crate::plugins) async fn without_messages(&self) {
        self.shared.pending.without_messages().await;
    }

    /// Which process it calls.
    pub fn generation(&self) -> Generation {
        self.shared.generation
    }

    fn gone(&self) -> CallError {
        HostError::new(Code::Unavailable, "the plugin is not running now")
    }
}

/// What became of a message.
pub(in crate::plugins) enum Tried {
    /// It is on its way.
    Sent,
    /// Not now.
    Full(Option<oneshot::Sender<Answer>>),
    /// Never.
    Refused(Option<oneshot::Sender<Answer>>, CallError),
}

fn unsendable(error: &FrameError) -> CallError {
    let code = match error {
        FrameError::TooLong { .. } => Code::ResourceExhausted,
        FrameError::BadHeaderLength { .. } | FrameError::BadHeader(_) | FrameError::UnknownKind(_) => {
            Code::Internal
        }
    };
    HostError::new(code, error.to_string())
}

impl Sent {
    /// Looks for the answer for a moment on the spot, where there is a processor for the plugin beside ours. A busy plugin
    /// answers within it, and then nobody has to be put to sleep and woken. Bounded by [`spin_us`].
    fn look(&mut self) {
        let most = Duration::from_micros(u64::from(spin_us()));
        if most.is_zero() {
            return;
        }
        let shared = self.caller.shared.clone();
        // Whoever holds it reads already.
        let Ok(mut intake) = shared.intake.try_lock() else { return };
        let answer = &mut self.answer;
        let early = &mut self.early;
        let left = intake.look(&shared, most, || match answer.try_recv() {
            Ok(found) => {
                *early = Some(found);
                true
            }
            Err(oneshot::error::TryRecvError::Empty) => false,
            Err(oneshot::error::TryRecvError::Closed) => true,
        });
        drop(intake);
        if left {
            shared.left.notify_one();
        }
    }

    /// Waits for the answer. At `until` the call is cancelled and the answer, should it come, is ignored.
    pub async fn answer(mut self, until: Instant) -> Result<Bytes, Failed> {
        let counters = self.caller.shared.counters.clone();
        let outcome = match self.early.take() {
            Some(answer) => Ok(Ok(answer)),
            None => timeout_at(until, &mut self.answer).await,
        };
        match outcome {
            Ok(Ok(Ok(body))) => {
                Counters::count(&counters.answered);
                Ok(body)
            }
            Ok(Ok(Err(error))) => {
                counters.failure(&error);
                // An entry that the end of the link took away was answered by us, not by the plugin.
                Err(if self.caller.shared.ended.get().is_some() {
                    Failed::Gone(error)
                } else {
                    Failed::Answered(error)
                })
            }
            Ok(Err(_)) => Err(Failed::Gone(self.caller.gone())),
            Err(_) => {
                Counters::count(&counters.timeouts);
                self.without = Some(Code::Timeout);
                Err(Failed::Late)
            }
        }
    }
}

impl Drop for Sent {
    /// A call that nobody waits for any more is cancelled.
    fn drop(&mut self) {
        let shared = &self.caller.shared;
        if shared.leave(self.id).is_some() {
            if let Some(code) = &self.without {
                shared.counters.calls.unanswered(self.kind, code);
            }
            // If even this does not fit, the runner has not read for a long time, and its deadline will find it.
            let _ = shared.outbox.put(&shared.stream, &Frame::Cancel { id: self.id }, &Bytes::new());
        }
    }
}

/// Ends every open call, and every later one, with the same reason.
pub(super) fn end_all(shared: &Shared, end: &Ended) {
    let _ = shared.ended.set(end.clone());
    shared.open.close();
    shared.outbox.close();
    let why = match shared.ended.get() {
        Some(Ended::Because(cause)) => format!("the plugin's process ended during the call: {cause}"),
        Some(Ended::Closed) | None => "the plugin's process ended during the call".into(),
    };
    for open in shared.pending.drain() {
        shared.counters.calls.unanswered(open.kind, &Code::PluginCrashed);
        let error = Err(HostError::new(Code::PluginCrashed, why.clone()));
        match open.waiter {
            Waiter::Call(tell) | Waiter::Message(Some(tell)) => drop(tell.send(error)),
            Waiter::Message(None) => Counters::count(&shared.counters.lost),
        }
    }
    shared.intake.lock().unwrap_or_else(std::sync::PoisonError::into_inner).close();
}
