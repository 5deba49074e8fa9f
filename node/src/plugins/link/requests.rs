//! What a plugin asks of its node, while it is being served. A request is data from a hostile process: its shape is checked
//! by [`Request::decode`], its meaning by the granted host. Bounded in number and in bytes; taken back when the plugin says
//! so or its link ends.

use super::outbox::Put;
use super::{Counters, Shared, IN_BYTES};
use bytes::Bytes;
use std::collections::HashMap;
use std::future::Future;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use thenodes::host::{Host, HostError, Request, Response};
use thenodes_ipc::{limits, pack, CallId, Code, Frame};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::AbortHandle;
use tokio::time::timeout;

/// Requests with arguments up to this many bytes begin where they are read. What a longer one costs to look at is for a task of
/// its own: others wait for the same reader.
const ON_THE_SPOT: usize = 1024;
/// And of what was read at once no more than so many: what they cost is the reader's time, and a runtime has few threads.
pub(super) const MOST_ON_THE_SPOT: u32 = 16;

/// Why a request is not being served.
pub(super) enum Unserved {
    /// This is the answer, and it has to reach the plugin before it may ask for more.
    Answer(HostError),
    /// It broke the rules.
    Violation(String),
}

/// Requests that are being served, by number. An entry leaves when its task has ended, not when it was taken back.
type Open = Arc<Mutex<HashMap<u64, Option<AbortHandle>>>>;

/// Requests of one process of a plugin. Dropping it takes them all back.
pub(super) struct Requests {
    host: Arc<dyn Host>,
    open: Open,
    room: Arc<Semaphore>,
    /// Requests that were begun on the spot since [`Requests::take_served`].
    on_the_spot: u32,
}

impl Drop for Requests {
    fn drop(&mut self) {
        for (_, task) in self.open.lock().unwrap_or_else(PoisonError::into_inner).drain() {
            task.iter().for_each(AbortHandle::abort);
        }
    }
}

/// Takes an entry out when the task that serves it has ended, however it ended.
struct Served(Open, CallId);

impl Drop for Served {
    fn drop(&mut self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.1 .0);
    }
}

impl Requests {
    pub(super) fn new(host: Arc<dyn Host>) -> Self {
        Self { host, open: Arc::default(), room: Arc::new(Semaphore::new(IN_BYTES)), on_the_spot: 0 }
    }

    pub(super) fn host(&self) -> &Arc<dyn Host> {
        &self.host
    }

    pub(super) fn room(&self) -> Arc<Semaphore> {
        self.room.clone()
    }

    /// True if requests were served on the spot since this was asked last; counts anew from here.
    pub(super) fn take_served(&mut self) -> bool {
        std::mem::take(&mut self.on_the_spot) > 0
    }

    /// Room for so many bytes of requests, if there is some now.
    pub(super) fn try_room(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let bytes = u32::try_from(bytes.min(IN_BYTES)).unwrap_or(u32::MAX);
        self.room.clone().try_acquire_many_owned(bytes).ok()
    }

    /// Takes one back, if it is still being served.
    pub(super) fn cancel(&self, id: CallId) {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(Some(task)) = open.get(&id.0) {
            task.abort(); // its place is free when it has ended
        }
    }

    /// Begins to serve a request.
    pub(super) fn serve(
        &mut self,
        shared: &Arc<Shared>,
        id: CallId,
        method: &str,
        deadline_ms: u32,
        body: &[u8],
        room: OwnedSemaphorePermit,
    ) -> Result<(), Unserved> {
        if id.generation() != shared.generation {
            return Err(Unserved::Violation(format!("a call with id {:#x} of another generation", id.0)));
        }
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if open.contains_key(&id.0) {
            return Err(Unserved::Violation(format!("two open calls with id {:#x}", id.0)));
        }
        Counters::count(&shared.counters.requests);
        if open.len() >= limits::MAX_CALLS_FROM_PLUGIN {
            let text = format!("more than {} open requests", limits::MAX_CALLS_FROM_PLUGIN);
            return Err(Unserved::Answer(HostError::new(Code::ResourceExhausted, text)));
        }
        let request = Request::decode(method, body).map_err(Unserved::Answer)?;
        open.insert(id.0, None);
        drop(open);
        let served = Served(self.open.clone(), id);
        let wanted = Duration::from_millis(u64::from(deadline_ms));
        let deadline = match deadline_ms {
            0 => limits::REQUEST_DEADLINE,
            _ => wanted.min(limits::REQUEST_DEADLINE),
        };
        let (host, link) = (self.host.clone(), shared.clone());
        let small = body.len() <= ON_THE_SPOT && self.on_the_spot < MOST_ON_THE_SPOT;
        let mut serving = Box::pin(async move {
            let _served = served;
            let answer = match timeout(deadline, host.call(request)).await {
                Ok(answer) => answer,
                Err(_) => Err(HostError::new(Code::Timeout, "the node did not finish in time")),
            };
            answer_with(&link, id, answer).await;
            drop(room); // the answer is on its way
        });
        // Many answers are there at once; then there is no task to be made, and no turn to be waited for.
        if small {
            self.on_the_spot += 1;
            let mut first = || serving.as_mut().poll(&mut Context::from_waker(Waker::noop()));
            // A defect of the node's in there must end this request, as it would end its task, and not the reader.
            match catch_unwind(AssertUnwindSafe(&mut first)) {
                Ok(Poll::Ready(())) => return Ok(()),
                Ok(Poll::Pending) => {}
                Err(_) => {
                    let text = "the node failed at this request; its log says more";
                    return Err(Unserved::Answer(HostError::new(Code::Internal, text)));
                }
            }
        }
        let task = tokio::spawn(serving);
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        // It may have ended already, on another thread.
        if let Some(entry) = open.get_mut(&id.0) {
            *entry = Some(task.abort_handle());
        }
        Ok(())
    }
}

async fn answer_with(link: &Shared, id: CallId, answer: Result<Response, HostError>) {
    let answer = answer.and_then(|response| {
        pack::encode(&response).map_err(|e| HostError::new(Code::Internal, e.to_string()))
    });
    if matches!(&answer, Err(error) if error.code == Code::PermissionDenied) {
        Counters::count(&link.counters.denied);
    }
    reply(link, id, answer).await;
}

/// Answers a request, and waits while the runner does not read.
pub(super) async fn reply(link: &Shared, id: CallId, answer: Result<Vec<u8>, HostError>) {
    let (failed, body) = match answer {
        Ok(body) => (None, Bytes::from(body)),
        Err(error) => (Some(error.code), Bytes::from(error.message.into_bytes())),
    };
    let frame = Frame::Reply { id, failed, body: &body };
    match link.outbox.put_when_there_is_room(&link.stream, &frame, &body).await {
        Ok(Put::Taken | Put::Full | Put::Closed) => {}
        Err(error) => {
            let text = Bytes::from(error.to_string());
            let frame = Frame::Reply { id, failed: Some(Code::ResourceExhausted), body: &text };
            let _ = link.outbox.put_when_there_is_room(&link.stream, &frame, &text).await;
        }
    }
}
