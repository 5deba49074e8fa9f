//! Door 2: the bytes of one runner. A [`Greeting`] reads the start-up exchange step by step; [`Link`] carries calls both
//! ways afterwards. Everything read here is hostile; one violation ends the link, and everyone who waits hears the same
//! reason.
//!
//! ```text
//! call:    Caller ── pending, outbox ──> socket            (in the caller's task; the writer task only has the backlog)
//! answer:  socket ── reader task ──> intake ── pending ──> whoever waits, or the plugin's queue
//! request: socket ── reader task ──> intake ── requests ──> host ──> outbox
//! ```
//!
//! Bounds per plugin: [`IN_BYTES`] of frames and requests, [`OUT_BYTES`] in at most [`OUT_QUEUE`] frames to be written,
//! [`limits::MAX_CALLS_TO_PLUGIN`] open calls and [`limits::MAX_MESSAGES_TO_PLUGIN`] messages to it,
//! [`limits::MAX_CALLS_FROM_PLUGIN`] from it. A runner that does not read
//! stops its own writer task and nobody else. One that sends more than its [`rate`](super::rate) is read later, so that its
//! own writes block.

mod caller;
mod greeting;
mod intake;
mod outbox;
mod pending;
mod requests;

use caller::Crowd;
pub(super) use caller::Tried;
pub use caller::{CallError, Caller, Failed, Sent};
pub use greeting::Greeting;
pub use pending::Stalled;

use super::lifecycle::Cause;
use super::metrics::{Calls, Deaths};
use super::queue::Queue;
use super::rate::LinkRates;
use bytes::Bytes;
use intake::{Intake, Rest};
use interprocess::os::unix::uds_local_socket::tokio::Stream;
use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
use outbox::{Outbox, Way};
use pending::{Answered, Pending, Waiter};
use std::io::ErrorKind;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;
use thenodes::host::{Host, HostError};
use thenodes_ipc::ring::Region;
use thenodes_ipc::{limits, CallId, Code, FrameDecoder, Generation};
use tokio::io::Interest;
use tokio::sync::{oneshot, watch, Notify, Semaphore};
use tokio::task::JoinSet;

/// Frames waiting to be written to one runner.
pub const OUT_QUEUE: usize = 256;
/// Bytes waiting to be written to one runner: one of the largest frames.
pub const OUT_BYTES: usize = limits::MAX_FRAME + limits::MAX_HEADER;
/// Bytes of requests being served for one runner, and of the frame that is being read from it: one of the largest frames.
pub const IN_BYTES: usize = limits::MAX_FRAME + limits::MAX_HEADER;
/// A runner that takes no byte for so long does not read any more.
pub const WRITE_DEADLINE: Duration = Duration::from_secs(10);
/// Words "look" read at once.
const BELLS: usize = 64;
/// Bytes read at once; more of a longer frame, once there is room for it.
const READ: usize = 16 * 1024;

/// How a link ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    /// The runner closed it: its process ended or is about to; the wait status tells why.
    Closed,
    /// It closed it inside a frame: it was killed there, or it broke the protocol; the wait status tells which.
    Cut,
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
    /// Messages that were with the plugin when its process ended, and that nobody asked to hear about.
    pub lost: AtomicU64,
    /// How often the plugin had to wait because its link was beyond its rate.
    pub throttled: AtomicU64,
    /// Calls to the plugin by method, with their latencies and errors.
    pub calls: Calls,
    /// Deaths by cause.
    pub deaths: Deaths,
}

impl Counters {
    /// Adds one.
    pub fn count(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a call that has an error for an answer.
    fn failure(&self, error: &HostError) {
        Self::count(&self.failed);
        // A panic is the answer of a living plugin; a dead one gives the same code to its callers, without a panic.
        if error.code == Code::PluginCrashed && error.message.starts_with("panicked") {
            Self::count(&self.panics);
        }
    }
}

/// What a plugin answered.
pub(crate) type Answer = Result<Bytes, CallError>;
/// What became of a call: the plugin's answer, or what the node found out instead.
type Outcome = Result<Bytes, Failed>;

/// What callers, reader and writer of one link share.
struct Shared {
    generation: Generation,
    stream: Stream,
    pending: Pending,
    outbox: Outbox,
    intake: Mutex<Intake>,
    open: Semaphore,
    crowd: Crowd,
    counters: Arc<Counters>,
    /// The plugin takes several messages in one call.
    takes_many: bool,
    /// Why the link ended, for whoever comes late.
    ended: OnceLock<Ended>,
    /// Gets word when a message was answered or there is room for more.
    queue: OnceLock<Arc<Queue>>,
    /// Somebody looks at the open calls now and then, or was told to.
    watched: AtomicBool,
    work: Notify,
    /// There is something for the reader task.
    left: Notify,
}

impl Shared {
    /// Takes a call out of the open ones.
    fn leave(&self, id: CallId) -> Option<Waiter> {
        let waiter = self.pending.leave(id);
        self.give_back(waiter.as_ref());
        waiter
    }

    /// The place of a call is free again.
    fn give_back(&self, left: Option<&Waiter>) {
        if matches!(left, Some(Waiter::Call(_))) {
            self.open.add_permits(1);
        }
    }

    /// Takes a call out because its answer has come; `failed`: with an error. An error of ours is a violation.
    fn answered(&self, id: CallId, failed: Option<&Code>) -> Result<Option<Answered>, String> {
        let Some(answered) = self.pending.answered(id)? else { return Ok(None) };
        self.give_back(Some(&answered.waiter));
        if !matches!(answered.waiter, Waiter::Own(_)) {
            self.counters.calls.answered(answered.kind, answered.took, failed, u64::from(answered.count));
        }
        Ok(Some(answered))
    }

    /// Messages were handled, the last of them perhaps with an error.
    fn messages_done(&self, count: u32, age: Duration, ack: Option<oneshot::Sender<Answer>>, answer: Answer) {
        let well = u64::from(count) - u64::from(answer.is_err());
        self.counters.answered.fetch_add(well, Ordering::Relaxed);
        if let Err(error) = &answer {
            self.counters.failure(error);
        }
        if let Some(queue) = self.queue.get() {
            queue.messages_done(self.generation, count as usize, age, answer.as_ref().err());
        }
        if let Some(ack) = ack {
            let _ = ack.send(answer);
        }
    }

    /// A call was made: wakes the supervisor if it is not looking already.
    fn busy(&self) {
        if !self.watched.load(Ordering::SeqCst) && !self.watched.swap(true, Ordering::SeqCst) {
            self.work.notify_one();
        }
    }

    fn intake(&self) -> std::sync::MutexGuard<'_, Intake> {
        self.intake.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A running link. Dropping it closes the socket, which ends the runner.
pub struct Link {
    caller: Caller,
    ended: watch::Receiver<Option<Ended>>,
    tasks: JoinSet<()>,
}

impl Link {
    #[allow(clippy::too_many_arguments)] // one call, in `greeting`
    fn start(
        stream: Stream,
        decoder: FrameDecoder,
        ring: Option<Region>,
        generation: Generation,
        host: Arc<dyn Host>,
        counters: Arc<Counters>,
        rates: LinkRates,
        takes_many: bool,
    ) -> Self {
        let (way, ring) = match ring.map(Region::node_side) {
            Some((down, up)) => (Way::Ring(down), Some(up)),
            None => (Way::Socket, None),
        };
        let shared = Arc::new(Shared {
            generation,
            stream,
            pending: Pending::new(generation),
            outbox: Outbox::new(way),
            intake: Mutex::new(Intake::new(decoder, ring, host, rates)),
            open: Semaphore::new(limits::MAX_CALLS_TO_PLUGIN),
            crowd: Crowd::default(),
            counters,
            takes_many,
            ended: OnceLock::new(),
            queue: OnceLock::new(),
            watched: AtomicBool::new(false),
            work: Notify::new(),
            left: Notify::new(),
        });
        let (tell, ended) = watch::channel(None);
        let mut tasks = JoinSet::new();
        let tell = Arc::new(tell);
        // Whichever direction ends first ends the link.
        let finish = |shared: Arc<Shared>, tell: Arc<watch::Sender<Option<Ended>>>| {
            move |end: Ended| {
                caller::end_all(&shared, &end);
                // The first reason counts, also where the other direction ends because of it and is faster to say so.
                let first = shared.ended.get().cloned();
                tell.send_if_modified(|told| {
                    let untold = told.is_none();
                    if untold {
                        *told = first;
                    }
                    untold
                });
            }
        };
        let (writer, writer_ended) = (shared.clone(), finish(shared.clone(), tell.clone()));
        tasks.spawn(async move {
            let room = || {
                if let Some(queue) = writer.queue.get() {
                    queue.room_came();
                }
            };
            writer_ended(writer.outbox.write_backlog(&writer.stream, room).await);
        });
        let (reader, reader_ended) = (shared.clone(), finish(shared.clone(), tell));
        tasks.spawn(async move { reader_ended(read(&reader).await) });
        Self { caller: Caller { shared }, ended, tasks }
    }

    /// A handle for calls.
    pub fn caller(&self) -> &Caller {
        &self.caller
    }

    /// Has this queue fed to the plugin from now on. Once per link.
    pub(super) fn feed(&self, queue: &Arc<Queue>) {
        if self.caller.shared.queue.set(queue.clone()).is_ok() {
            queue.attach(self.caller.clone());
        }
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
        if let Some(queue) = self.caller.shared.queue.get() {
            queue.detach(self.caller.shared.generation);
        }
        caller::end_all(&self.caller.shared, &Ended::Closed);
        // The tasks hold the socket until they are gone; the runner is to see the end now.
        let _ = nix::sys::socket::shutdown(
            self.caller.shared.stream.as_fd().as_raw_fd(),
            nix::sys::socket::Shutdown::Both,
        );
    }
}

/// Reads until the end or the first violation.
async fn read(shared: &Arc<Shared>) -> Ended {
    let violation = |what: String| Ended::Because(Cause::Violation(what));
    loop {
        let (rest, served) = {
            let mut intake = shared.intake();
            let left = intake.left();
            let rest = left.unwrap_or_else(|| intake.sort(shared));
            (rest, intake.served_on_the_spot())
        };
        if served {
            tokio::task::yield_now().await; // a plugin that asks without end does not keep this thread
        }
        match rest {
            Rest::Hungry => {}
            Rest::Beyond(wait) => {
                hold(shared, wait).await;
                continue;
            }
            Rest::NoRoom(bytes) => {
                // Until requests that are being served have ended; each has its deadline.
                let bytes = u32::try_from(bytes.min(IN_BYTES)).unwrap_or(u32::MAX);
                let Some(room) = shared.intake().room_of_requests() else { return Ended::Closed };
                let Ok(room) = room.acquire_many_owned(bytes).await else { return Ended::Closed };
                shared.intake().give_room(room);
                continue;
            }
            Rest::Unsaid(id, error) => {
                // Awaiting holds up this runner's own reader only: it must read before it may ask for more.
                requests::reply(shared, id, Err(error)).await;
                continue;
            }
            Rest::Violation(what) => return violation(what),
        }
        match more(shared).await {
            More::Now => {}
            More::After(wait) => hold(shared, wait).await,
            More::Ended => {
                // What came before the end counts, whatever the rate.
                let mut intake = shared.intake();
                intake.hang_up();
                loop {
                    match (intake.sort(shared), intake.take_from_ring()) {
                        (Rest::Violation(what), _) => return violation(what),
                        (_, Err(error)) => return violation(error.to_string()),
                        (Rest::Hungry, Ok((1.., _))) => {}
                        (_, Ok(_)) => break,
                    }
                }
                return if intake.is_cut() { Ended::Cut } else { Ended::Closed };
            }
            More::Violation(what) => return violation(what),
        }
    }
}

/// What came of waiting for bytes.
enum More {
    Now,
    After(Duration),
    Ended,
    Violation(String),
}

/// Waits for bytes, and takes them.
async fn more(shared: &Shared) -> More {
    let taken = {
        let mut intake = shared.intake();
        if intake.ring().is_some() {
            match intake.take_from_ring() {
                Err(error) => return More::Violation(error.to_string()),
                // Told that we wait, the runner says so at the socket when there is more.
                Ok((0, _)) => {
                    intake.ring().is_some_and(|ring| !ring.sleep_announced()).then_some(Duration::ZERO)
                }
                Ok((_, wait)) => Some(wait),
            }
        } else {
            None
        }
    };
    match taken {
        Some(wait) if wait.is_zero() => return More::Now,
        Some(wait) => return More::After(wait),
        None => {}
    }
    let readable = tokio::select! {
        readable = shared.stream.inner().readable() => readable,
        // A caller who looked for his answer found more than that.
        () = shared.left.notified() => return More::Now,
    };
    if readable.is_err() {
        return More::Ended;
    }
    let mut intake = shared.intake();
    let rings = intake.ring().map(thenodes_ipc::ring::Consumer::awake).is_some();
    let got = if rings {
        let mut bells = Vec::with_capacity(BELLS);
        read_some(&shared.stream, &mut bells)
    } else {
        read_some(&shared.stream, intake.room())
    };
    let wait = match got {
        Ok(0) => return More::Ended,
        Ok(_) if rings => {
            shared.outbox.look_again();
            intake.bell_rang()
        }
        Ok(count) => intake.bytes_came(count),
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
            Duration::ZERO
        }
        Err(_) => return More::Ended,
    };
    if wait.is_zero() {
        More::Now
    } else {
        More::After(wait)
    }
}

/// Reads what is there. When that was all, the runtime is told so in the same step: the next wait then needs no read that
/// fails. It must be the same step, or word of bytes that come between would be lost.
fn read_some(stream: &Stream, buffer: &mut Vec<u8>) -> std::io::Result<usize> {
    let mut short = None;
    let read = stream.inner().try_io(Interest::READABLE, || {
        let space = buffer.capacity() - buffer.len();
        let count = rustix::io::read(stream.as_fd(), rustix::buffer::spare_capacity(buffer))?;
        if count > 0 && count < space {
            short = Some(count);
            return Err(ErrorKind::WouldBlock.into());
        }
        Ok(count)
    });
    match (read, short) {
        (Err(_), Some(count)) => Ok(count),
        (read, _) => read,
    }
}

/// Holds the reader of one link back while the plugin is beyond its rate.
async fn hold(shared: &Shared, wait: Duration) {
    Counters::count(&shared.counters.throttled);
    tokio::time::sleep(wait).await;
    let closed = PollFlags::POLLHUP | PollFlags::POLLERR;
    let mut asked = [PollFd::new(shared.stream.as_fd(), closed)];
    // Asks only; does not wait.
    let answer = poll(&mut asked, PollTimeout::ZERO);
    if answer.is_ok() && asked[0].revents().is_some_and(|is| is.intersects(closed)) {
        shared.intake().hang_up();
    }
}
