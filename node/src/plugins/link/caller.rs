//! Calling a plugin: the only way in which the rest of the node speaks to one. Every call ends: with the plugin's answer, at
//! its deadline, or with the link, and then everyone hears the same reason.

use super::intake::Look;
use super::outbox::Put;
use super::pending::{Stalled, Waiter};
use super::{Answer, Counters, Ended, Outcome, Shared};
use crate::plugins::metrics::Method;
use bytes::Bytes;
use std::future::poll_fn;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;
use thenodes::host::HostError;
use thenodes_ipc::ring::soon;
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
    /// The link has ended: before the call went out, or while it was open.
    Gone(HostError),
    /// No link would take it: it is too long.
    Unsendable(HostError),
}

impl Failed {
    fn code(&self) -> &Code {
        match self {
            Failed::Answered(error) | Failed::Gone(error) | Failed::Unsendable(error) => &error.code,
            Failed::Late => &Code::Timeout,
        }
    }

    /// The same for callers who only pass it on.
    pub fn into_error(self, method: &str) -> CallError {
        match self {
            Failed::Answered(error) | Failed::Gone(error) | Failed::Unsendable(error) => error,
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
    answer: oneshot::Receiver<Outcome>,
    /// The answer, if it came while we looked.
    early: Option<Outcome>,
    kind: Method,
    /// What it counts as if no answer comes.
    without: Option<Code>,
    /// It is on its way: the plugin is told if nobody waits any more.
    out: bool,
}

impl Caller {
    /// Calls a method and waits for the answer, at most until `deadline` from now.
    pub async fn call(
        &self,
        method: &str,
        body: impl Into<Bytes>,
        deadline: Duration,
    ) -> Result<Bytes, Failed> {
        self.call_at(method, body.into(), deadline, Instant::now()).await
    }

    /// The same for a caller who has just looked at the clock.
    pub(in crate::plugins) async fn call_at(
        &self,
        method: &str,
        body: Bytes,
        deadline: Duration,
        now: Instant,
    ) -> Result<Bytes, Failed> {
        let until = now + deadline.min(limits::MAX_DEADLINE);
        let (sent, begun) = match self.send_now(method, &body, deadline, now) {
            Some(sent) => (sent, now),
            // Whoever had to wait begins to look when he is through.
            None => (self.send_until(method, body, deadline, until).await, Instant::now()),
        };
        let mut sent = sent?;
        sent.look(begun).await;
        sent.answer(until).await
    }

    /// Sends a call if nothing has to be waited for, which is how most go out.
    fn send_now(
        &self,
        method: &str,
        body: &Bytes,
        deadline: Duration,
        now: Instant,
    ) -> Option<Result<Sent, Failed>> {
        let shared = &self.shared;
        shared.open.try_acquire().ok()?.forget(); // given back when the call leaves `pending`
        let mut sent = self.enter(method, Waiter::Call, now);
        if self.has_ended() {
            return Some(Err(sent.fails(self.gone())));
        }
        shared.busy();
        let frame = Frame::Call { id: sent.id, cause: None, method, deadline_ms: millis(deadline), body };
        match shared.outbox.put(&shared.stream, &frame, body) {
            Ok(Put::Taken) => {
                sent.went_out();
                Some(Ok(sent))
            }
            Ok(Put::Full) => {
                // Nothing of it was written: as if it had never been made, unless the link ended meanwhile and counted it.
                match shared.leave(sent.id) {
                    Some(_) => None,
                    None => Some(Err(self.gone())),
                }
            }
            Ok(Put::Closed) => Some(Err(sent.fails(self.gone()))),
            Err(error) => Some(Err(sent.fails(Failed::Unsendable(unsendable(&error))))),
        }
    }

    /// Sends a call; calls arrive in the order in which this is awaited. Waits while too many calls are open;
    /// for how long is the caller's to say, who drops this.
    pub async fn send(
        &self,
        method: &str,
        body: impl Into<Bytes>,
        deadline: Duration,
    ) -> Result<Sent, Failed> {
        self.send_until(method, body.into(), deadline, Instant::now() + limits::MAX_DEADLINE).await
    }

    async fn send_until(
        &self,
        method: &str,
        body: Bytes,
        deadline: Duration,
        until: Instant,
    ) -> Result<Sent, Failed> {
        let shared = &self.shared;
        let failed = match timeout_at(until, shared.open.acquire()).await {
            Ok(Ok(permit)) => {
                permit.forget(); // given back when the call leaves `pending`
                None
            }
            Ok(Err(_)) => Some(self.gone()),
            Err(_) => Some(self.late()),
        };
        if let Some(failed) = failed {
            shared.counters.calls.unanswered(Method::of(method), failed.code());
            return Err(failed);
        }
        let mut sent = self.enter(method, Waiter::Call, Instant::now());
        if self.has_ended() {
            return Err(sent.fails(self.gone()));
        }
        sent.without = Some(Code::Cancelled); // should nobody wait any more for room
        shared.busy();
        let deadline_ms = millis(deadline);
        let frame = Frame::Call { id: sent.id, cause: None, method, deadline_ms, body: &body };
        let put =
            timeout_at(until, shared.outbox.put_when_there_is_room(&shared.stream, &frame, &body)).await;
        match put {
            Ok(Ok(Put::Taken)) => {
                sent.went_out();
                Ok(sent)
            }
            Ok(Ok(Put::Full | Put::Closed)) => Err(sent.fails(self.gone())),
            Ok(Err(error)) => Err(sent.fails(Failed::Unsendable(unsendable(&error)))),
            Err(_) => Err(sent.fails(self.late())),
        }
    }

    /// Enters a call among those that wait for an answer. The link may have ended before; then nobody will answer, and the caller asks
    /// [`Caller::has_ended`].
    fn enter(
        &self,
        method: &str,
        waiter: impl FnOnce(oneshot::Sender<Outcome>) -> Waiter,
        now: Instant,
    ) -> Sent {
        let (tell, answer) = oneshot::channel();
        let id = self.shared.pending.enter(method, waiter(tell), now.into_std());
        let kind = Method::of(method);
        Sent { caller: self.clone(), id, answer, early: None, kind, without: None, out: false }
    }

    fn has_ended(&self) -> bool {
        self.shared.ended.get().is_some()
    }

    /// True if the runner reads its link: it answered, or anything else came from it. Waits neither for a place among the open calls
    /// nor for room before it: a runner that reads nothing has neither.
    pub async fn reads(&self, patience: Duration) -> bool {
        let pieces = || self.shared.intake().pieces();
        let before = pieces();
        let mut sent = self.enter("link.ping", Waiter::Own, Instant::now());
        if self.has_ended() {
            return true;
        }
        let deadline_ms = millis(patience);
        let frame = Frame::Call { id: sent.id, cause: None, method: "link.ping", deadline_ms, body: &[] };
        let put = self.shared.outbox.put_beyond(&self.shared.stream, &frame, &Bytes::new());
        if put != Ok(Put::Taken) {
            return true; // the end of the link is told by the link
        }
        sent.out = true;
        // What answers late because it is read late, having sent too much, reads all the same.
        !matches!(sent.answer(Instant::now() + patience).await, Err(Failed::Late)) || pieces() != before
    }

    /// Sends a message for which nobody waits in a task; the answer goes to the plugin's queue and to `ack`. Gives `ack` back
    /// if there is no room now. How many may be open is the queue's to say: they take no place of a call, so that neither
    /// calls keep messages waiting nor messages calls.
    pub(in crate::plugins) fn try_message(
        &self,
        body: &Bytes,
        ack: Option<oneshot::Sender<Answer>>,
    ) -> Tried {
        self.try_numbered("message", Waiter::Message(ack), body, 1)
    }

    /// A message for it is about to come.
    pub(in crate::plugins) fn soon(&self) {
        soon(&self.shared.pending);
        soon(&self.shared.outbox);
    }

    /// True if the plugin takes several messages in one call.
    pub(in crate::plugins) fn takes_many(&self) -> bool {
        self.shared.takes_many
    }

    /// As [`Caller::try_message`] for so many messages at once, packed as an array, for which nobody waits.
    pub(in crate::plugins) fn try_messages(&self, body: &Bytes, count: usize) -> Tried {
        self.try_numbered("messages", Waiter::Messages, body, u32::try_from(count).unwrap_or(u32::MAX))
    }

    fn try_numbered(&self, method: &str, waiter: Waiter, body: &Bytes, numbers: u32) -> Tried {
        let shared = &self.shared;
        let id = shared.pending.enter_many(method, waiter, std::time::Instant::now(), numbers);
        let deadline_ms = limits::CALL_DEADLINE.as_millis() as u32;
        let frame = Frame::Call { id, cause: None, method, deadline_ms, body };
        let put = shared.outbox.put(&shared.stream, &frame, body);
        if put == Ok(Put::Taken) {
            shared.busy();
            return Tried::Sent;
        }
        // Nothing of it was written; so it may be taken back as if it had never been made. But if the link ended meanwhile, whoever
        // asked has heard that it is lost, and then it is.
        let Some(waiter) = shared.leave(id) else { return Tried::Sent };
        let back = match waiter {
            Waiter::Message(back) => back,
            Waiter::Messages | Waiter::Call(_) | Waiter::Own(_) => None,
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

    fn late(&self) -> Failed {
        Counters::count(&self.shared.counters.timeouts);
        Failed::Late
    }

    fn gone(&self) -> Failed {
        Failed::Gone(HostError::new(Code::Unavailable, "the plugin is not running now"))
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

fn millis(time: Duration) -> u32 {
    u32::try_from(time.as_millis()).unwrap_or(u32::MAX)
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
    /// Looks for the answer for a moment on the spot, for as long or as often as [`Look`] says: a busy plugin answers within it,
    /// and then nobody has to be put to sleep and woken.
    ///
    /// On one processor the node's other tasks go first: if they call the same plugin too, it is better to give it all the
    /// calls, then the processor, and to be woken once for all the answers. With a processor for each they go first where there have been
    /// others lately: the plugin then works on the first calls while the node makes the others.
    async fn look(&mut self, mut begun: Instant) {
        let how = Look::here();
        let first = match how {
            Look::Yielding => true,
            Look::Spinning(_) => self.caller.shared.crowd.asks(self.id),
        };
        if first {
            let mut others_went = false;
            poll_fn(|context| {
                if std::mem::replace(&mut others_went, true) {
                    return Poll::Ready(());
                }
                context.waker().wake_by_ref();
                Poll::Pending
            })
            .await;
            let pending = &self.caller.shared.pending;
            match how {
                Look::Yielding if !pending.is_alone(self.id) => return,
                Look::Yielding => {}
                Look::Spinning(_) => {
                    self.caller.shared.crowd.saw(pending.has_another_call(self.id));
                    // The others took their time, and whoever of them looked may have found this answer.
                    begun = Instant::now();
                    if let Ok(found) = self.answer.try_recv() {
                        self.early = Some(found);
                        return;
                    }
                }
            }
        }
        let Sent { caller: Caller { shared }, answer, early, .. } = self;
        // Whoever holds it reads already.
        let Ok(mut intake) = shared.intake.try_lock() else { return };
        let left = intake.look(shared, how, begun.into_std(), || match answer.try_recv() {
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
            Ok(Ok(Err(failed))) => {
                if let Failed::Answered(error) | Failed::Gone(error) = &failed {
                    counters.failure(error);
                }
                Err(failed)
            }
            Ok(Err(_)) => Err(self.caller.gone()),
            Err(_) => {
                Counters::count(&counters.timeouts);
                self.without = Some(Code::Timeout);
                Err(Failed::Late)
            }
        }
    }
}

impl Sent {
    /// Nobody waits for its answer any more if it is dropped now.
    fn went_out(&mut self) {
        (self.out, self.without) = (true, Some(Code::Cancelled));
    }

    /// It did not go out, for this reason.
    fn fails(mut self, failed: Failed) -> Failed {
        self.without = Some(failed.code().clone());
        failed
    }
}

impl Drop for Sent {
    /// A call that nobody waits for any more is cancelled.
    fn drop(&mut self) {
        let shared = &self.caller.shared;
        // Whoever takes it out of the table counts it: this, or the end of the link.
        if let Some(waiter) = shared.leave(self.id) {
            let counts = !matches!(waiter, Waiter::Own(_));
            if let (Some(code), true) = (&self.without, counts) {
                shared.counters.calls.unanswered(self.kind, code);
            }
            if !self.out {
                return;
            }
            // If even this does not fit, the runner has not read for a long time, and its deadline will find it.
            let _ = shared.outbox.put(&shared.stream, &Frame::Cancel { id: self.id }, &Bytes::new());
        }
    }
}

/// Whether several tasks have been calling one plugin at the same time lately. A task that is ready to call cannot be seen from here; only by
/// letting others go first does one find out, which costs a caller who is alone something. So that is tried now and then.
#[derive(Default)]
pub(super) struct Crowd(AtomicU32);

/// A caller who believes to be alone lets others go first once in so many calls; one who was not does so for as many.
const CROWD: u32 = 64;

impl Crowd {
    /// True if the caller of this call lets others go first.
    fn asks(&self, id: CallId) -> bool {
        self.0.load(Ordering::Relaxed) > 0 || id.counter().is_multiple_of(u64::from(CROWD))
    }

    /// Others were, or were not, calling too. Who writes last is right: it is a guess.
    fn saw(&self, others: bool) {
        let next = if others { CROWD } else { self.0.load(Ordering::Relaxed).saturating_sub(1) };
        self.0.store(next, Ordering::Relaxed);
    }
}

/// Ends every open call, and every later one, with the same reason.
pub(super) fn end_all(shared: &Shared, end: &Ended) {
    let _ = shared.ended.set(end.clone());
    shared.open.close();
    shared.outbox.close();
    let why = match shared.ended.get() {
        Some(Ended::Because(cause)) => format!("the plugin's process ended during the call: {cause}"),
        Some(Ended::Closed | Ended::Cut) | None => "the plugin's process ended during the call".into(),
    };
    for open in shared.pending.drain() {
        let error = HostError::new(Code::PluginCrashed, why.clone());
        let left = u64::from(open.left());
        if !matches!(open.waiter, Waiter::Own(_)) {
            shared.counters.calls.unanswered_times(open.kind, &Code::PluginCrashed, left);
        }
        match open.waiter {
            Waiter::Call(tell) | Waiter::Own(tell) => drop(tell.send(Err(Failed::Gone(error)))),
            Waiter::Message(Some(tell)) => drop(tell.send(Err(error))),
            Waiter::Message(None) | Waiter::Messages => {
                shared.counters.lost.fetch_add(left, Ordering::Relaxed);
            }
        }
    }
    shared.intake.lock().unwrap_or_else(std::sync::PoisonError::into_inner).close();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Budget;
    use crate::plugins::link::Greeting;
    use crate::plugins::metrics::MethodFigures;
    use crate::plugins::rate::LinkRates;
    use interprocess::os::unix::uds_local_socket::tokio::Stream;
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;
    use thenodes::host::{Host, Notice, Request, Response};
    use tokio::task::JoinSet;

    #[test]
    fn whoever_was_in_a_crowd_lets_others_go_first_for_a_while_and_then_only_now_and_then() {
        let crowd = Crowd::default();
        let asks = |crowd: &Crowd, count| crowd.asks(CallId::new(Generation(1), count));
        assert!(!asks(&crowd, 1) && asks(&crowd, u64::from(CROWD)), "once in so many calls");
        crowd.saw(true);
        for _ in 0..CROWD {
            assert!(asks(&crowd, 1));
            crowd.saw(false);
        }
        assert!(!asks(&crowd, 1), "it was alone for long");
    }

    struct Nobody;

    #[async_trait::async_trait]
    impl Host for Nobody {
        async fn call(&self, _: Request) -> Result<Response, HostError> {
            Err(HostError::new(Code::Unavailable, "a test"))
        }
        fn notify(&self, _: Notice) {}
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_call_that_meets_the_end_of_the_link_is_counted_once() {
        const CALLS: usize = 8;
        let mut before = 0;
        for round in 0..300 {
            let (ours, theirs) = UnixStream::pair().expect("a pair");
            ours.set_nonblocking(true).expect("set");
            let stream = Stream::try_from(OwnedFd::from(ours)).expect("a stream");
            let (counters, rates) = (Arc::<Counters>::default(), LinkRates::from(&Budget::default()));
            let mut link =
                Greeting::new(stream, None).run(Generation(1), Arc::new(Nobody), counters.clone(), rates);
            let mut calls = JoinSet::new();
            for _ in 0..CALLS {
                let caller = link.caller().clone();
                calls.spawn(async move {
                    caller.call("request.x", vec![b'x'; 100], Duration::from_secs(60)).await
                });
            }
            for _ in 0..round % 5 {
                tokio::task::yield_now().await;
            }
            drop(theirs);
            let results = calls.join_all().await;
            assert!(results.iter().all(|result| matches!(result, Err(Failed::Gone(_)))), "{results:?}");
            before += results
                .iter()
                .filter(
                    |result| matches!(result, Err(Failed::Gone(error)) if error.code == Code::Unavailable),
                )
                .count();
            link.ended().await;
            let counted: u64 = counters.calls.figures().iter().map(MethodFigures::calls).sum();
            assert_eq!(counted, CALLS as u64, "round {round}: {results:?}");
        }
        eprintln!("{before} of {} found the link ended already", 300 * CALLS);
    }
}
