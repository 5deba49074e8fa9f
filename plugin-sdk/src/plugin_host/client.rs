//! The plugin's end of the link: turns requests into calls, matches answers to them, and sends notices.

use super::body::owned;
use super::export::Wire;
use super::readers::Readers;
use crate::events::model::LogEvent;
use crate::events::{EventBus, LogSink};
use crate::host::{Host, HostError, Notice, Request, Response};
use serde::Serialize;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};
use thenodes_ipc::{abi, pack, Code};
use tokio::sync::{mpsc, oneshot};

tokio::task_local! {
    /// The node's call that this code runs for; requests made meanwhile name it as their cause.
    pub(super) static CURRENT_CALL: u64;
}

/// Events that may wait for this plugin's sinks before new ones are dropped.
const EVENT_QUEUE: usize = 256;

type Answer = Result<Vec<u8>, HostError>;

/// Requests of this plugin and their answers.
pub(super) struct Client {
    wire: Wire,
    runtime: tokio::runtime::Handle,
    readers: Arc<Readers>,
    pending: Mutex<HashMap<u64, oneshot::Sender<Answer>>>,
    sinks: Arc<RwLock<Vec<Arc<dyn LogSink>>>>,
    events: OnceLock<mpsc::Sender<LogEvent>>,
    session: OnceLock<String>,
}

impl Client {
    pub(super) fn new(wire: Wire, runtime: tokio::runtime::Handle, readers: Arc<Readers>) -> Self {
        Self {
            wire,
            runtime,
            readers,
            pending: Mutex::default(),
            sinks: Arc::default(),
            events: OnceLock::new(),
            session: OnceLock::new(),
        }
    }

    pub(super) fn set_session(&self, session: &str) {
        let _ = self.session.set(session.to_owned());
    }

    /// Reads the link once and hands over what came. False when the link has ended.
    pub(super) fn pump(&self) -> bool {
        self.wire.pump()
    }

    /// Answers a call of the node with a result.
    pub(super) fn succeed<T: Serialize>(&self, id: u64, result: &T) {
        match pack::encode(result) {
            Ok(body) => self.succeed_with(id, &body),
            Err(error) => self.fail(id, &Code::Internal, &error.to_string()),
        }
    }

    /// Answers a call of the node with bytes as they are.
    pub(super) fn succeed_with(&self, id: u64, body: &[u8]) {
        // Any other failure is a link that has ended, which leaves nobody to tell.
        if self.wire.send(abi::KIND_REPLY, id, 0, ["", ""], body) == Err(abi::TOO_LONG) {
            self.fail(id, &Code::ResourceExhausted, "the answer is longer than the frame cap");
        }
    }

    /// Answers a call of the node with an error.
    pub(super) fn fail(&self, id: u64, code: &Code, text: &str) {
        let end = text.char_indices().map(|(at, _)| at).find(|at| *at >= 4000).unwrap_or(text.len());
        let _ = self.wire.send(abi::KIND_REPLY, id, 0, ["", code.as_str()], &text.as_bytes()[..end]);
    }

    /// An answer of the node. Called on the link thread.
    pub(super) fn answered(&self, id: u64, code: &str, body: &[u8]) {
        let waiting = self.pending.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
        let answer = match code {
            "" => Ok(owned(body)),
            code => Err(HostError::new(Code::parse(code), String::from_utf8_lossy(body))),
        };
        if let Some(waiting) = waiting {
            // Whoever asked may have gone meanwhile.
            let _ = waiting.send(answer);
        }
    }

    /// An event of the node for our sinks. Called on the link thread; drops the event when the sinks are slow.
    pub(super) fn event_arrived(&self, event: LogEvent) {
        if let Some(queue) = self.events.get() {
            let _ = queue.try_send(event);
        }
    }
}

/// Forgets a request whose asker has gone, and tells the node.
struct Forget<'a>(&'a Client, u64);

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        if self.0.pending.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.1).is_some() {
            let _ = self.0.wire.send(abi::KIND_CANCEL, self.1, 0, ["", ""], &[]);
        }
    }
}

#[async_trait::async_trait]
impl Host for Client {
    async fn call(&self, request: Request) -> Result<Response, HostError> {
        let body = request.encode()?;
        let id = self.wire.next_id();
        let cause = CURRENT_CALL.try_with(|id| *id).unwrap_or(0);
        let (sender, receiver) = oneshot::channel();
        self.pending.lock().unwrap_or_else(PoisonError::into_inner).insert(id, sender);
        let _forget = Forget(self, id);
        self.wire.send(abi::KIND_CALL, id, cause, [request.method(), ""], &body).map_err(|status| {
            self.pending.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
            match status {
                abi::TOO_LONG => HostError::new(Code::ResourceExhausted, "longer than the frame cap"),
                _ => HostError::new(Code::Unavailable, "the link to the node has ended"),
            }
        })?;
        let gone = || HostError::new(Code::Unavailable, "the link to the node has ended");
        self.readers.about_to_block();
        let body = receiver.await.map_err(|_| gone())??;
        pack::decode(&body).map_err(|e| HostError::new(Code::Internal, e.to_string()))
    }

    fn notify(&self, notice: Notice) {
        if let Ok((method, body)) = notice.encode() {
            // Nothing can be done about a notice that does not fit or finds no link: logging it would be another one.
            let _ = self.wire.send(abi::KIND_NOTIFY, 0, 0, [method, ""], &body);
        }
    }
}

impl EventBus for Client {
    fn emit(&self, event: LogEvent) {
        self.notify(Notice::Emit(Box::new(event)));
    }

    fn register_sink(&self, sink: Arc<dyn LogSink>) {
        self.sinks.write().unwrap_or_else(PoisonError::into_inner).push(sink);
        let mut first = None;
        self.events.get_or_init(|| {
            let (sender, receiver) = mpsc::channel(EVENT_QUEUE);
            first = Some(receiver);
            sender
        });
        if let Some(mut receiver) = first {
            let sinks = self.sinks.clone();
            self.runtime.spawn(async move {
                while let Some(event) = receiver.recv().await {
                    let now = sinks.read().unwrap_or_else(PoisonError::into_inner).clone();
                    for sink in now {
                        sink.handle(&event).await;
                    }
                }
            });
            self.notify(Notice::SubscribeEvents);
        }
    }

    fn session_id(&self) -> Option<String> {
        self.session.get().cloned()
    }
}
