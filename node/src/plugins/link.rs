//! Door 2: the bytes of one runner. A [`Greeting`] reads the start-up exchange step by step; [`Link`] carries calls both
//! ways afterwards. Everything read here is hostile: lengths, ids, codes and the order of frames are checked, one violation
//! ends the link, and everyone who waits hears the same reason.
//!
//! Bounds per plugin: one unfinished frame, [`OUT_QUEUE`] frames to be written, [`limits::MAX_CALLS_TO_PLUGIN`] open calls to it,
//! [`limits::MAX_CALLS_FROM_PLUGIN`] from it. A runner that does not read stops its own writer task and nobody else. One that
//! sends more than its [`rate`](super::rate) is read later, so that its own writes block.

use super::lifecycle::Cause;
use super::rate::{LinkRates, Meter};
use interprocess::os::unix::uds_local_socket::tokio::Stream;
use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
use std::collections::HashMap;
use std::io::IoSlice;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;
use thenodes::host::{Host, HostError, Notice, Request};
use thenodes_ipc::launch::{Confinement, Refusal, Registration, RunnerHello, Versions};
use thenodes_ipc::{limits, pack, CallId, Code, Frame, FrameDecoder, FrameError, Generation};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{mpsc, oneshot, watch, OwnedSemaphorePermit, Semaphore};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{timeout, timeout_at, Instant};

/// Frames waiting to be written to one runner.
pub const OUT_QUEUE: usize = 256;
/// Bytes waiting to be written to one runner: two of the largest frames.
pub const OUT_BYTES: usize = 2 * limits::MAX_FRAME + 2 * limits::MAX_HEADER;
/// A runner that takes no byte for so long does not read any more.
pub const WRITE_DEADLINE: Duration = Duration::from_secs(10);
/// Bytes read at once.
const READ: usize = 16 * 1024;

/// The start-up exchange of one runner.
pub struct Greeting {
    stream: Stream,
    decoder: FrameDecoder,
    deadline: Instant,
    step: &'static str,
}

impl Greeting {
    /// Begins with the runner's `hello`; walls must stand within [`limits::CONFINE_DEADLINE`].
    pub fn new(stream: Stream) -> Self {
        let deadline = Instant::now() + limits::CONFINE_DEADLINE;
        Self { stream, decoder: FrameDecoder::new(limits::MAX_FRAME), deadline, step: "putting up the walls" }
    }

    /// Reads the runner's versions and its report about the walls.
    pub async fn confined(&mut self) -> Result<Confinement, Ended> {
        let hello: RunnerHello = self.expect("hello").await?;
        if hello.versions.common(Versions::OURS).is_none() {
            return Err(Ended::Because(Cause::Violation(format!(
                "no link protocol version in common: the runner speaks {} to {}, this node {}; install runner and node of one release",
                hello.versions.min,
                hello.versions.max,
                Versions::OURS.max,
            ))));
        }
        self.decoder.set_cap(hello.max_frame as usize);
        self.expect("confined").await
    }

    /// Lets the runner open the library, and reads what the plugin says about itself.
    pub async fn registered(&mut self) -> Result<Registration, Ended> {
        self.deadline = Instant::now() + limits::REGISTER_DEADLINE;
        self.step = "constructors and register_plugin";
        let mut out = Vec::new();
        Frame::Launch { step: "proceed", body: &[] }
            .encode(&mut out, limits::MAX_FRAME)
            .map_err(|e| Ended::Because(Cause::Violation(e.to_string())))?;
        let written = timeout_at(self.deadline, (&self.stream).write_all(&out)).await;
        match written {
            Ok(Ok(())) => self.expect("registered").await,
            Ok(Err(_)) => Err(Ended::Closed),
            Err(_) => Err(Ended::Because(Cause::Deadline(self.step))),
        }
    }

    async fn expect<T: serde::de::DeserializeOwned>(&mut self, wanted: &str) -> Result<T, Ended> {
        // Errors quote what they did not understand, which may be a megabyte.
        let violation = |what: String| Ended::Because(Cause::Violation(crate::text::printable(&what, 500)));
        let mut buffer = vec![0; READ];
        loop {
            match self.decoder.next().map_err(|e| violation(e.to_string()))? {
                Some(Frame::Launch { step, body }) if step == wanted => {
                    return pack::decode(body).map_err(|e| violation(format!("{wanted}: {e}")));
                }
                Some(Frame::Launch { step: "refused", body }) => {
                    let refusal: Refusal =
                        pack::decode(body).map_err(|e| violation(format!("refused: {e}")))?;
                    let reason = crate::text::printable(&refusal.reason, 2000);
                    return Err(Ended::Because(Cause::Refused(refusal.step, reason)));
                }
                Some(Frame::Ignored) => continue,
                Some(_) => return Err(violation(format!("another frame where {wanted} was due"))),
                None => {}
            }
            let read = timeout_at(self.deadline, (&self.stream).read(&mut buffer)).await;
            match read {
                Ok(Ok(0)) | Ok(Err(_)) => return Err(Ended::Closed),
                Ok(Ok(count)) => self.decoder.push(&buffer[..count]),
                Err(_) => return Err(Ended::Because(Cause::Deadline(self.step))),
            }
        }
    }

    /// Goes on with calls, read no faster than these rates.
    pub fn run(
        self,
        generation: Generation,
        host: Arc<dyn Host>,
        counters: Arc<Counters>,
        rates: LinkRates,
    ) -> Link {
        Link::start(self.stream, self.decoder, generation, host, counters, rates)
    }
}

/// How a link ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    /// The runner closed it: its process ended or is about to; the wait status tells why.
    Closed,
    /// The node knows better.
    Because(Cause),
}

/// What went over one plugin's links since the node began.
#[derive(Debug, Default)]
pub struct Counters {
    /// Calls to the plugin that were answered well.
    pub answered: AtomicU64,
    /// Calls to the plugin that failed.
    pub failed: AtomicU64,
    /// Calls in which the plugin panicked.
    pub panics: AtomicU64,
    /// Calls that met their deadline.
    pub timeouts: AtomicU64,
    /// Requests of the plugin.
    pub requests: AtomicU64,
    /// Requests that were refused for want of a grant.
    pub denied: AtomicU64,
    /// Frames, notices and fields that could be ignored and were.
    pub ignored: AtomicU64,
    /// Messages dropped because the plugin's queue was full.
    pub dropped: AtomicU64,
    /// How often the plugin had to wait because its link was beyond its rate.
    pub throttled: AtomicU64,
}

impl Counters {
    /// Adds one.
    pub fn count(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

/// Why a call to a plugin has no result.
pub type CallError = HostError;

type Answer = Result<Vec<u8>, CallError>;

/// Bytes to be written: a head of their own and a body that many may share. Holds its part of [`OUT_BYTES`] until written.
struct Out {
    head: Vec<u8>,
    body: Arc<[u8]>,
    _room: OwnedSemaphorePermit,
}

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

/// Calls and their answers, shared by everybody who calls.
struct Shared {
    generation: Generation,
    counter: AtomicU64,
    pending: Mutex<HashMap<u64, oneshot::Sender<Answer>>>,
    out: mpsc::Sender<Out>,
    room: Arc<Semaphore>,
    open: Semaphore,
    counters: Arc<Counters>,
    /// Why the link ended, for whoever comes late.
    ended: OnceLock<Ended>,
}

/// A running link. Dropping it closes the socket, which ends the runner.
pub struct Link {
    caller: Caller,
    ended: watch::Receiver<Option<Ended>>,
    tasks: JoinSet<()>,
}

/// A handle for calling a plugin. Cheap to clone; outlives the link, and then every call fails at once.
#[derive(Clone)]
pub struct Caller {
    shared: Arc<Shared>,
}

/// A call that was sent; its answer is still to come.
pub struct Sent {
    caller: Caller,
    id: CallId,
    answer: oneshot::Receiver<Answer>,
}

impl Link {
    fn start(
        stream: Stream,
        decoder: FrameDecoder,
        generation: Generation,
        host: Arc<dyn Host>,
        counters: Arc<Counters>,
        rates: LinkRates,
    ) -> Self {
        let stream = Arc::new(stream);
        let (out, queue) = mpsc::channel(OUT_QUEUE);
        let shared = Arc::new(Shared {
            generation,
            counter: AtomicU64::new(1),
            pending: Mutex::default(),
            out,
            room: Arc::new(Semaphore::new(OUT_BYTES)),
            open: Semaphore::new(limits::MAX_CALLS_TO_PLUGIN),
            counters,
            ended: OnceLock::new(),
        });
        let caller = Caller { shared };
        let (tell, ended) = watch::channel(None);
        let mut tasks = JoinSet::new();
        let tell = Arc::new(tell);
        // Whichever direction ends first ends the link.
        let finish = |caller: Caller, tell: Arc<watch::Sender<Option<Ended>>>| {
            move |end: Ended| {
                caller.end(&end);
                tell.send_if_modified(|told| {
                    let first = told.is_none();
                    if first {
                        *told = Some(end);
                    }
                    first
                });
            }
        };
        let (writer, writer_ended) = (stream.clone(), finish(caller.clone(), tell.clone()));
        tasks.spawn(async move { writer_ended(write(&writer, queue).await) });
        let (reader, reader_ended) = (caller.clone(), finish(caller.clone(), tell));
        tasks.spawn(async move { reader_ended(read(&stream, decoder, &reader, host, rates).await) });
        Self { caller, ended, tasks }
    }

    /// A handle for calls.
    pub fn caller(&self) -> &Caller {
        &self.caller
    }

    /// Waits until the runner closed the link or broke its rules.
    pub async fn ended(&mut self) -> Ended {
        match self.ended.wait_for(Option::is_some).await {
            Ok(end) => end.clone().unwrap_or(Ended::Closed),
            Err(_) => Ended::Closed,
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.tasks.abort_all();
        self.caller.end(&Ended::Closed);
    }
}

impl Caller {
    /// Calls a method and waits for the answer, at most until `deadline` from now.
    pub async fn call(&self, method: &str, body: Arc<[u8]>, deadline: Duration) -> Result<Vec<u8>, Failed> {
        let until = Instant::now() + deadline.min(limits::MAX_DEADLINE);
        match timeout_at(until, self.send(method, body, deadline)).await {
            Ok(sent) => sent.map_err(Failed::Gone)?.answer(until).await,
            Err(_) => {
                Counters::count(&self.shared.counters.timeouts);
                Err(Failed::Late)
            }
        }
    }

    /// Sends a call; calls arrive in the order in which this is awaited. Waits while too many calls are open.
    pub async fn send(&self, method: &str, body: Arc<[u8]>, deadline: Duration) -> Result<Sent, CallError> {
        let shared = &self.shared;
        let permit = shared.open.acquire().await.map_err(|_| self.gone())?;
        permit.forget(); // given back when the call leaves `pending`, see `finish`
        let id = CallId::new(shared.generation, shared.counter.fetch_add(1, Ordering::Relaxed));
        let (tell, answer) = oneshot::channel();
        shared.pending.lock().unwrap_or_else(PoisonError::into_inner).insert(id.0, tell);
        let sent = Sent { caller: self.clone(), id, answer };
        // The link may have ended between the permit and the entry; then nobody would answer.
        if shared.ended.get().is_some() {
            return Err(self.gone());
        }
        let deadline_ms = u32::try_from(deadline.as_millis()).unwrap_or(u32::MAX);
        let frame = Frame::Call { id, cause: None, method, deadline_ms, body: &body };
        self.write(&frame, body.clone()).await?;
        Ok(sent)
    }

    /// Tells without waiting; false if the runner is too slow to be told.
    pub fn notify(&self, method: &str, body: Arc<[u8]>) -> bool {
        let mut head = Vec::with_capacity(64);
        let fits = Frame::Notify { method, body: &body }.encode_head(&mut head, limits::MAX_FRAME).is_ok();
        fits && self.try_queue(head, body)
    }

    /// Queues bytes if there is room now.
    fn try_queue(&self, head: Vec<u8>, body: Arc<[u8]>) -> bool {
        let size = u32::try_from(head.len() + body.len()).unwrap_or(u32::MAX);
        match self.shared.room.clone().try_acquire_many_owned(size) {
            Ok(room) => self.shared.out.try_send(Out { head, body, _room: room }).is_ok(),
            Err(_) => false,
        }
    }

    async fn write(&self, frame: &Frame<'_>, body: Arc<[u8]>) -> Result<(), CallError> {
        let mut head = Vec::with_capacity(96);
        frame.encode_head(&mut head, limits::MAX_FRAME).map_err(|e| match e {
            FrameError::TooLong { .. } => HostError::new(Code::ResourceExhausted, e.to_string()),
            other => HostError::new(Code::Internal, other.to_string()),
        })?;
        let size = u32::try_from(head.len() + body.len()).unwrap_or(u32::MAX);
        let room = self.shared.room.clone().acquire_many_owned(size).await.map_err(|_| self.gone())?;
        self.shared.out.send(Out { head, body, _room: room }).await.map_err(|_| self.gone())
    }

    async fn reply(&self, id: CallId, answer: Result<Vec<u8>, HostError>) {
        let (failed, body): (Option<Code>, Arc<[u8]>) = match answer {
            Ok(body) => (None, body.into()),
            Err(error) => (Some(error.code), error.message.into_bytes().into()),
        };
        let frame = Frame::Reply { id, failed, body: &body };
        if let Err(error) = self.write(&frame, body.clone()).await {
            if error.code == Code::ResourceExhausted {
                let text: Arc<[u8]> = Arc::from(error.message.as_bytes());
                let frame = Frame::Reply { id, failed: Some(Code::ResourceExhausted), body: &text };
                let _ = self.write(&frame, text.clone()).await;
            }
        }
    }

    /// Takes a call out of the open ones.
    fn finish(&self, id: CallId) -> Option<oneshot::Sender<Answer>> {
        let waiting = self.shared.pending.lock().unwrap_or_else(PoisonError::into_inner).remove(&id.0);
        if waiting.is_some() {
            self.shared.open.add_permits(1);
        }
        waiting
    }

    /// Ends every open call, and every later one, with the same reason.
    fn end(&self, end: &Ended) {
        let _ = self.shared.ended.set(end.clone());
        self.shared.open.close();
        self.shared.room.close();
        let waiting: Vec<_> =
            self.shared.pending.lock().unwrap_or_else(PoisonError::into_inner).drain().collect();
        for (_, tell) in waiting {
            let _ = tell.send(Err(self.died()));
        }
    }

    fn died(&self) -> CallError {
        let why = match self.shared.ended.get() {
            Some(Ended::Because(cause)) => format!("the plugin's process ended during the call: {cause}"),
            Some(Ended::Closed) | None => "the plugin's process ended during the call".into(),
        };
        HostError::new(Code::PluginCrashed, why)
    }

    fn gone(&self) -> CallError {
        HostError::new(Code::Unavailable, "the plugin is not running now")
    }
}

impl Sent {
    /// Waits for the answer. At `until` the call is cancelled and the answer, should it come, is ignored.
    pub async fn answer(mut self, until: Instant) -> Result<Vec<u8>, Failed> {
        let counters = self.caller.shared.counters.clone();
        let outcome = timeout_at(until, &mut self.answer).await;
        match outcome {
            Ok(Ok(Ok(body))) => {
                Counters::count(&counters.answered);
                Ok(body)
            }
            Ok(Ok(Err(error))) => {
                Counters::count(&counters.failed);
                // A panic is the answer of a living plugin; a dead one gives the same code to its callers, without a panic.
                if error.code == Code::PluginCrashed && error.message.starts_with("panicked") {
                    Counters::count(&counters.panics);
                }
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
                Err(Failed::Late)
            }
        }
    }
}

impl Drop for Sent {
    /// A call that nobody waits for any more is cancelled.
    fn drop(&mut self) {
        if self.caller.finish(self.id).is_some() {
            let mut head = Vec::new();
            if (Frame::Cancel { id: self.id }).encode_head(&mut head, limits::MAX_FRAME).is_ok() {
                // If even this does not fit, the runner has not read for a long time, and its deadline will find it.
                self.caller.try_queue(head, Arc::from([]));
            }
        }
    }
}

/// Writes what is queued, until the socket or the runner's patience with it ends.
async fn write(mut stream: &Stream, mut queue: mpsc::Receiver<Out>) -> Ended {
    while let Some(Out { head, body, _room }) = queue.recv().await {
        let (mut head, mut body): (&[u8], &[u8]) = (&head, &body);
        while !head.is_empty() || !body.is_empty() {
            let parts = [IoSlice::new(head), IoSlice::new(body)];
            match timeout(WRITE_DEADLINE, stream.write_vectored(&parts)).await {
                Err(_) => return Ended::Because(Cause::Hang("anything: it does not read its link".into())),
                Ok(Ok(0) | Err(_)) => return Ended::Closed,
                Ok(Ok(count)) => {
                    let of_head = count.min(head.len());
                    head = &head[of_head..];
                    body = &body[count - of_head..];
                }
            }
        }
    }
    Ended::Closed
}

/// Holds the reader of one link back while the plugin is beyond its rate.
struct Brake<'a> {
    stream: &'a Stream,
    counters: &'a Counters,
    meter: Meter,
    since: Instant,
    /// No more can come: what is left is read at once, so that a flood does not hide its author's death.
    hung_up: bool,
}

impl Brake<'_> {
    async fn message(&mut self) {
        let wait = self.meter.message(self.since.elapsed());
        self.hold(wait).await;
    }

    async fn bytes(&mut self, count: usize) {
        let wait = self.meter.bytes(count, self.since.elapsed());
        self.hold(wait).await;
    }

    async fn hold(&mut self, wait: Duration) {
        if wait.is_zero() || self.hung_up {
            return;
        }
        Counters::count(&self.counters.throttled);
        tokio::time::sleep(wait).await;
        let closed = PollFlags::POLLHUP | PollFlags::POLLERR;
        let mut asked = [PollFd::new(self.stream.as_fd(), closed)];
        // Asks only; does not wait.
        let answer = poll(&mut asked, PollTimeout::ZERO);
        self.hung_up = answer.is_ok() && asked[0].revents().is_some_and(|is| is.intersects(closed));
    }
}

/// Reads until the end or the first violation.
async fn read(
    stream: &Stream,
    mut decoder: FrameDecoder,
    caller: &Caller,
    host: Arc<dyn Host>,
    rates: LinkRates,
) -> Ended {
    let (counters, meter) = (&*caller.shared.counters, rates.meter(Duration::ZERO));
    let mut brake = Brake { stream, counters, meter, since: Instant::now(), hung_up: false };
    let mut requests = Requests { host, caller: caller.clone(), open: HashMap::new(), tasks: JoinSet::new() };
    let mut buffer = vec![0; READ];
    let mut stream = stream;
    loop {
        loop {
            match decoder.next() {
                Ok(None) => break,
                Ok(Some(frame)) => {
                    brake.message().await;
                    if let Err(what) = requests.take(frame).await {
                        return Ended::Because(Cause::Violation(crate::text::printable(&what, 500)));
                    }
                }
                Err(error) => return Ended::Because(Cause::Violation(error.to_string())),
            }
        }
        match stream.read(&mut buffer).await {
            Ok(0) | Err(_) if decoder.unfinished() > 0 => {
                return Ended::Because(Cause::Violation("the link ended inside a frame".into()));
            }
            Ok(0) | Err(_) => return Ended::Closed,
            Ok(count) => {
                brake.bytes(count).await;
                decoder.push(&buffer[..count]);
            }
        }
    }
}

/// Requests of the plugin that are being served. Dropping it takes them all back.
struct Requests {
    host: Arc<dyn Host>,
    caller: Caller,
    open: HashMap<u64, AbortHandle>,
    tasks: JoinSet<CallId>,
}

impl Requests {
    /// Serves one frame. An error is a violation.
    async fn take(&mut self, frame: Frame<'_>) -> Result<(), String> {
        while let Some(done) = self.tasks.try_join_next() {
            match done {
                Ok(id) => drop(self.open.remove(&id.0)),
                // Taken back, or a defect of ours: either way the call is no longer open.
                Err(error) => self.open.retain(|_, task| task.id() != error.id()),
            }
        }
        let generation = self.caller.shared.generation;
        match frame {
            Frame::Reply { id, failed, body } => {
                let last = self.caller.shared.counter.load(Ordering::Relaxed);
                if id.generation() != generation || id.counter() >= last || id.counter() == 0 {
                    return Err(format!("a reply to call {:#x}, which was never made", id.0));
                }
                let answer = match failed {
                    None => Ok(body.to_vec()),
                    Some(code) => {
                        let text = String::from_utf8_lossy(body);
                        Err(HostError::new(code, crate::text::printable(&text, 4000)))
                    }
                };
                match self.caller.finish(id) {
                    Some(waiting) => drop(waiting.send(answer)),
                    None => Counters::count(&self.caller.shared.counters.ignored), // late: the deadline was faster
                }
                Ok(())
            }
            Frame::Call { id, cause: _, method, deadline_ms, body } => {
                if id.generation() != generation {
                    return Err(format!("a call with id {:#x} of another generation", id.0));
                }
                if self.open.contains_key(&id.0) {
                    return Err(format!("two open calls with id {:#x}", id.0));
                }
                Counters::count(&self.caller.shared.counters.requests);
                // Tasks, not open ids: a cancelled one is there until it has ended.
                if self.tasks.len() >= limits::MAX_CALLS_FROM_PLUGIN {
                    let text = format!("more than {} open requests", limits::MAX_CALLS_FROM_PLUGIN);
                    // Awaiting holds up this runner's own reader only: it must read before it may ask for more.
                    self.caller.reply(id, Err(HostError::new(Code::ResourceExhausted, text))).await;
                    return Ok(());
                }
                match Request::decode(method, body) {
                    Ok(request) => {
                        let (host, caller) = (self.host.clone(), self.caller.clone());
                        let wanted = Duration::from_millis(u64::from(deadline_ms));
                        let deadline = if deadline_ms == 0 {
                            limits::REQUEST_DEADLINE
                        } else {
                            wanted.min(limits::REQUEST_DEADLINE)
                        };
                        let task = self.tasks.spawn(async move {
                            let served = timeout(deadline, host.call(request)).await;
                            let answer = match served {
                                Ok(answer) => answer,
                                Err(_) => {
                                    Err(HostError::new(Code::Timeout, "the node did not finish in time"))
                                }
                            };
                            let answer = answer.and_then(|response| {
                                pack::encode(&response)
                                    .map_err(|e| HostError::new(Code::Internal, e.to_string()))
                            });
                            if matches!(&answer, Err(error) if error.code == Code::PermissionDenied) {
                                Counters::count(&caller.shared.counters.denied);
                            }
                            caller.reply(id, answer).await;
                            id
                        });
                        self.open.insert(id.0, task);
                    }
                    Err(error) => self.caller.reply(id, Err(error)).await,
                }
                Ok(())
            }
            Frame::Notify { method, body } => {
                match Notice::decode(method, body) {
                    Ok(notice) => self.host.notify(notice),
                    Err(_) => Counters::count(&self.caller.shared.counters.ignored),
                }
                Ok(())
            }
            Frame::Cancel { id } => {
                if let Some(task) = self.open.get(&id.0) {
                    task.abort(); // its place is free when it has ended
                }
                Ok(())
            }
            Frame::Launch { step, .. } => Err(format!("{step} after the start")),
            Frame::Ignored => {
                Counters::count(&self.caller.shared.counters.ignored);
                Ok(())
            }
        }
    }
}
