//! What waits to be written to one peer: bytes of whole lines, in one buffer, so that whatever has gathered goes out in one write.
//! Nobody who adds to it waits inside; a peer that reads slowly is told to the adder as "full", and only those who relay for another
//! peer wait for room, each on its own connection.
//!
//! Frames that must not be lost are remembered until they are written, or acknowledged where the peer acknowledges; what is left when
//! the connection ends goes back to whoever keeps it.

use super::relay::client::Client;
use super::relay::Frame;
use crate::network::clock;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// Lines of this node and its plugins are taken until so many bytes wait.
pub const OWN_BYTES: usize = 512 * 1024;
/// Relayed lines are taken until so many bytes wait; whoever brings more is held up.
pub const RELAYED_BYTES: usize = 256 * 1024;
/// Room is announced when no more than so many bytes wait.
const LOW: usize = RELAYED_BYTES / 2;
/// A peer that takes nothing for so long, with a full outbox, holds nobody up any more.
pub const STALLED: Duration = Duration::from_millis(250);
/// Frames that wait for an acknowledgement of the peer, and their bytes.
pub const MAX_KEPT: usize = 1024;
const KEPT_BYTES: usize = 1024 * 1024;
/// A frame without acknowledgement is sent again after so long.
const RESEND: Duration = Duration::from_millis(500);
/// So often.
const RESENDS: u32 = 3;
/// A buffer of more than this is given back when it is empty.
const SPARE: usize = 16 * 1024;

/// What became of lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Put {
    /// They wait to be written.
    Queued,
    /// There is no room, but there will be.
    Full,
    /// There is no room, and the peer takes nothing.
    Stalled,
    /// The connection has ended.
    Gone,
}

/// A frame that must not be lost.
#[derive(Debug)]
struct Kept {
    /// Written when so many bytes of this connection are.
    end: u64,
    frame: Arc<Frame>,
    /// Forgotten only when the peer acknowledges it.
    acknowledged: bool,
    resends: u32,
    sent: Instant,
}

/// Frames of one peer behind each other.
#[derive(Debug)]
struct Run {
    origin: Arc<str>,
    end: u64,
}

/// What was not handed over when a connection ended.
#[derive(Debug, Default)]
pub struct Left {
    /// Frames that must not be lost, in order.
    pub kept: Vec<Arc<Frame>>,
    /// Whose frames are lost.
    pub origins: Vec<Arc<str>>,
}

#[derive(Debug)]
struct State {
    lines: Vec<u8>,
    /// Bytes that the writer has.
    writing: usize,
    /// Bytes added, and written, since the connection began.
    added: u64,
    written: u64,
    kept: VecDeque<Kept>,
    kept_bytes: usize,
    /// Whose frames are among the lines, and up to where: they hear of it if the connection ends before.
    runs: VecDeque<Run>,
    waker: Option<Waker>,
    /// When the peer took something last, or when the outbox was empty last.
    progress: Instant,
    closing: bool,
    look: bool,
    gone: bool,
}

/// What waits for one peer.
#[derive(Debug)]
pub struct Outbox {
    state: Mutex<State>,
    room: Notify,
    /// Told when the connection is to be closed; not `room`, which is told with every write.
    closing: Notify,
    client: Mutex<Option<Box<Client>>>,
    why: OnceLock<String>,
}

/// What the writer gets.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// Write these.
    Lines(Vec<u8>),
    /// Look whether frames are kept for the peer.
    Look,
    /// Say goodbye.
    Close,
}

impl Outbox {
    /// An empty one.
    pub fn new(now: Instant) -> Self {
        let state = State {
            lines: Vec::new(),
            writing: 0,
            added: 0,
            written: 0,
            kept: VecDeque::new(),
            kept_bytes: 0,
            runs: VecDeque::new(),
            waker: None,
            progress: now,
            closing: false,
            look: false,
            gone: false,
        };
        Self {
            state: Mutex::new(state),
            room: Notify::new(),
            closing: Notify::new(),
            client: Mutex::default(),
            why: OnceLock::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What this node said to the peer as to its relay. Most peers are none, and cost nothing for it.
    pub fn with_client<T>(&self, use_it: impl FnOnce(&mut Client) -> T) -> T {
        let mut client = self.client.lock().unwrap_or_else(PoisonError::into_inner);
        use_it(client.get_or_insert_default())
    }

    /// Why nothing is written any more.
    pub fn why(&self) -> Option<String> {
        self.why.get().cloned()
    }

    /// Says why nothing is written any more; the first word counts.
    pub fn set_why(&self, why: String) {
        let _ = self.why.set(why);
    }

    /// Bytes that wait.
    pub fn waiting(&self) -> usize {
        self.lock().waiting()
    }

    /// Adds lines of this node, each with its newline.
    pub fn own(&self, lines: &[u8]) -> Put {
        self.put(lines, OWN_BYTES)
    }

    /// Adds lines that another peer sent, each with its newline.
    pub fn relayed(&self, origin: &Arc<str>, lines: &[u8]) -> Put {
        let mut state = self.lock();
        if let Some(no) = state.refuses(RELAYED_BYTES) {
            return no;
        }
        let waker = state.add(lines);
        let end = state.added;
        match state.runs.back_mut() {
            Some(run) if Arc::ptr_eq(&run.origin, origin) => run.end = end,
            _ => state.runs.push_back(Run { origin: origin.clone(), end }),
        }
        drop(state);
        wake(waker);
        Put::Queued
    }

    fn put(&self, lines: &[u8], most: usize) -> Put {
        let mut state = self.lock();
        if let Some(no) = state.refuses(most) {
            return no;
        }
        let waker = state.add(lines);
        drop(state);
        wake(waker);
        Put::Queued
    }

    /// Adds a frame that must not be lost. `acknowledges`: the peer will say that it has it.
    pub fn keep(&self, frame: &Arc<Frame>, acknowledges: bool, now: Instant) -> Put {
        let mut state = self.lock();
        if let Some(no) = state.refuses(RELAYED_BYTES) {
            return no;
        }
        if state.kept_full() {
            return if state.stalled_kept(now) { Put::Stalled } else { Put::Full };
        }
        let waker = state.add_kept(frame.clone(), acknowledges, now);
        drop(state);
        wake(waker);
        Put::Queued
    }

    /// Begins with these frames, whatever room there is: they were kept in memory before.
    pub fn begin(&self, frames: Vec<Arc<Frame>>, acknowledges: bool, now: Instant) {
        let mut state = self.lock();
        let mut wakers = Vec::new();
        for frame in frames {
            // One without a number cannot be acknowledged.
            let acknowledges = acknowledges && frame.sequence.is_some();
            wakers.extend(state.add_kept(frame, acknowledges, now));
        }
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
    }

    /// The peer says that it has a frame. False if no such frame waits for that.
    pub fn acknowledged(&self, from: &str, sequence: u64) -> bool {
        let mut state = self.lock();
        let of = |kept: &Kept| kept.frame.sequence == Some(sequence) && *kept.frame.from == *from;
        let Some(at) = state.kept.iter().position(of) else { return false };
        if let Some(kept) = state.kept.remove(at) {
            state.kept_bytes -= kept.frame.line.len();
        }
        drop(state);
        self.room.notify_waiters();
        true
    }

    /// Sends again what was not acknowledged in time; gives back what was not acknowledged at all.
    pub fn resend(&self, now: Instant) -> Vec<Arc<Frame>> {
        let mut state = self.lock();
        if state.kept.is_empty() || state.gone {
            return Vec::new();
        }
        let (mut lost, mut waker) = (Vec::new(), None);
        let mut kept = std::mem::take(&mut state.kept);
        kept.retain_mut(|kept| {
            let due = kept.acknowledged
                && kept.end <= state.written
                && now.saturating_duration_since(kept.sent) >= RESEND;
            if !due {
                return true;
            }
            if kept.resends >= RESENDS {
                state.kept_bytes -= kept.frame.line.len();
                lost.push(kept.frame.clone());
                return false;
            }
            // A peer that takes nothing gets nothing twice.
            if state.waiting() < RELAYED_BYTES {
                waker = state.add(&kept.frame.line).or(waker.take());
                (kept.resends, kept.sent, kept.end) = (kept.resends + 1, now, state.added);
            }
            true
        });
        state.kept = kept;
        let wakers = waker;
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
        if !lost.is_empty() {
            self.room.notify_waiters();
        }
        lost
    }

    /// Waits until there is room for relayed lines again, the peer has stalled, or the connection has ended. Ends after `patience`
    /// in any case.
    pub async fn wait_for_room(&self, patience: Duration) {
        let until = tokio::time::Instant::now() + patience;
        loop {
            let mut announced = std::pin::pin!(self.room.notified());
            announced.as_mut().enable();
            let look_again = {
                let state = self.lock();
                let now = clock();
                if state.gone || state.closing {
                    return;
                }
                let mut left = STALLED;
                if state.waiting() >= RELAYED_BYTES {
                    left = left.min(STALLED.saturating_sub(now.saturating_duration_since(state.progress)));
                } else if state.kept_full() {
                    left = left.min(STALLED.saturating_sub(state.oldest_kept(now)));
                } else {
                    return;
                }
                if left.is_zero() {
                    return;
                }
                left
            };
            let until_look = (tokio::time::Instant::now() + look_again).min(until);
            if tokio::time::timeout_at(until_look, announced).await.is_err()
                && tokio::time::Instant::now() >= until
            {
                return;
            }
        }
    }

    /// Asks the writer to say goodbye.
    pub fn close(&self) {
        let mut state = self.lock();
        state.closing = true;
        let waker = state.waker.take();
        drop(state);
        wake(waker);
        self.room.notify_waiters();
        self.closing.notify_waiters();
    }

    /// True once the connection is to be closed.
    pub fn is_closing(&self) -> bool {
        self.lock().closing
    }

    /// Asks the writer to look whether frames are kept for the peer.
    pub fn nudge(&self) {
        let mut state = self.lock();
        state.look = true;
        let waker = state.waker.take();
        drop(state);
        wake(waker);
    }

    /// The writer's task is at work and looks here before it rests: it need not be woken, which would wake another thread for it.
    pub fn attend(&self) {
        self.lock().waker = None;
    }

    /// The writer's next work. `spare` is an empty buffer to be used again.
    pub fn poll_next(&self, cx: &mut Context<'_>, spare: &mut Vec<u8>) -> Poll<Next> {
        let mut state = self.lock();
        // What was said before the goodbye is said before it.
        if state.closing && state.lines.is_empty() {
            return Poll::Ready(Next::Close);
        }
        if std::mem::take(&mut state.look) {
            return Poll::Ready(Next::Look);
        }
        if state.lines.is_empty() {
            if spare.capacity() > SPARE {
                *spare = Vec::new();
            }
            if state.waker.as_ref().is_none_or(|waker| !waker.will_wake(cx.waker())) {
                state.waker = Some(cx.waker().clone());
            }
            return Poll::Pending;
        }
        spare.clear();
        let lines = std::mem::replace(&mut state.lines, std::mem::take(spare));
        state.writing = lines.len();
        Poll::Ready(Next::Lines(lines))
    }

    /// So many bytes of what the writer has are with the peer.
    pub fn wrote(&self, bytes: usize, now: Instant) {
        let mut state = self.lock();
        state.writing = state.writing.saturating_sub(bytes);
        state.written += bytes as u64;
        state.progress = now;
        let written = state.written;
        while state.runs.front().is_some_and(|run| run.end <= written) {
            state.runs.pop_front();
        }
        if state.kept.iter().any(|kept| !kept.acknowledged && kept.end <= written) {
            let before = state.kept.len();
            let mut freed = 0;
            state.kept.retain(|kept| {
                let stays = kept.acknowledged || kept.end > written;
                freed += if stays { 0 } else { kept.frame.line.len() };
                stays
            });
            debug_assert!(state.kept.len() < before);
            state.kept_bytes -= freed;
        }
        let room = state.waiting() <= LOW;
        drop(state);
        if room {
            self.room.notify_waiters();
        }
    }

    #[cfg(test)]
    pub(super) fn wrote_all(&self) {
        let next = self.poll_next(&mut Context::from_waker(Waker::noop()), &mut Vec::new());
        if let Poll::Ready(Next::Lines(lines)) = next {
            self.wrote(lines.len(), clock());
        }
    }

    /// Ends when the connection is to be closed.
    pub async fn closing(&self) {
        loop {
            let mut announced = std::pin::pin!(self.closing.notified());
            announced.as_mut().enable();
            if self.lock().closing {
                return;
            }
            announced.await;
        }
    }

    /// The connection has ended: what was not handed over. What was written but not acknowledged counts as not handed over.
    pub fn end(&self) -> Left {
        let mut state = self.lock();
        state.gone = true;
        state.lines = Vec::new();
        state.kept_bytes = 0;
        let kept = std::mem::take(&mut state.kept);
        let runs = std::mem::take(&mut state.runs);
        drop(state);
        self.room.notify_waiters();
        let kept = kept.into_iter().map(|kept| kept.frame).collect();
        Left { kept, origins: runs.into_iter().map(|run| run.origin).collect() }
    }
}

/// Wakes the writer, if it waits; not under the lock that it would wait for.
fn wake(waker: Option<Waker>) {
    if let Some(waker) = waker {
        waker.wake();
    }
}

impl State {
    fn waiting(&self) -> usize {
        self.lines.len() + self.writing
    }

    fn kept_full(&self) -> bool {
        self.kept.len() >= MAX_KEPT || self.kept_bytes >= KEPT_BYTES
    }

    fn oldest_kept(&self, now: Instant) -> Duration {
        self.kept.front().map_or(Duration::ZERO, |kept| now.saturating_duration_since(kept.sent))
    }

    fn stalled_kept(&self, now: Instant) -> bool {
        self.oldest_kept(now) >= STALLED
    }

    fn refuses(&mut self, most: usize) -> Option<Put> {
        if self.gone || self.closing {
            return Some(Put::Gone);
        }
        if self.waiting() < most {
            return None;
        }
        Some(if clock().saturating_duration_since(self.progress) >= STALLED {
            Put::Stalled
        } else {
            Put::Full
        })
    }

    fn add(&mut self, lines: &[u8]) -> Option<Waker> {
        if self.waiting() == 0 {
            self.progress = clock();
        }
        self.lines.extend_from_slice(lines);
        self.added += lines.len() as u64;
        self.waker.take()
    }

    fn add_kept(&mut self, frame: Arc<Frame>, acknowledged: bool, now: Instant) -> Option<Waker> {
        let waker = self.add(&frame.line);
        let end = self.added;
        self.kept_bytes += frame.line.len();
        self.kept.push_back(Kept { end, frame, acknowledged, resends: 0, sent: now });
        waker
    }
}

#[cfg(test)]
mod tests;
