//! What is written to one runner, through its ring or its socket. Whoever has something to say writes it at once, in its own task, if nothing waits before
//! it; only what the way does not take is kept, bounded in frames and bytes, and written by the link's writer task. A
//! runner that does not read stops its own writer and nobody else.

use super::{Ended, OUT_BYTES, OUT_QUEUE, WRITE_DEADLINE};
use crate::plugins::lifecycle::Cause;
use crate::plugins::process::spin_us;
use bytes::Bytes;
use interprocess::os::unix::uds_local_socket::tokio::Stream;
use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use thenodes_ipc::ring::{Producer, PIECE};
use thenodes_ipc::{limits, Frame, FrameError};
use tokio::sync::Notify;
use tokio::time::{timeout_at, Instant};

/// What became of a frame.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Put {
    /// It is written, or will be.
    Taken,
    /// There is no room for it now.
    Full,
    /// The link has ended.
    Closed,
}

/// A frame of which a part is not written yet.
struct Rest {
    head: Vec<u8>,
    body: Bytes,
    done: usize,
}

/// How frames go to the runner.
pub(super) enum Way {
    /// Through the socket.
    Socket,
    /// Through shared memory; the socket is not written.
    Ring(Producer),
}

/// From the first time that a frame found no room, how long whoever writes it goes on looking; then it waits like any other.
const ROOM_PATIENCE: Duration = Duration::from_micros(200);
/// Bytes of a usual head.
const HEAD: usize = 64;

struct State {
    way: Way,
    /// Heads are encoded here, so that the usual frame allocates nothing.
    scratch: Vec<u8>,
    backlog: VecDeque<Rest>,
    bytes: usize,
    closed: bool,
}

/// The writing side of a link.
pub(super) struct Outbox {
    state: Mutex<State>,
    /// There is a backlog to be written.
    more: Notify,
    /// There is room again.
    room: Notify,
}

impl Outbox {
    pub(super) fn new(way: Way) -> Self {
        let state = State { way, scratch: Vec::new(), backlog: VecDeque::new(), bytes: 0, closed: false };
        Self { state: Mutex::new(state), more: Notify::new(), room: Notify::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes a frame whose body is `body`, or keeps it. An error is about the frame itself, which no link would take.
    pub(super) fn put(&self, socket: &Stream, frame: &Frame<'_>, body: &Bytes) -> Result<Put, FrameError> {
        self.put_within(OUT_QUEUE, OUT_BYTES, socket, frame, body)
    }

    /// As [`Outbox::put`], for the node's own small questions, one at a time: they are kept even where there is no room.
    pub(super) fn put_beyond(
        &self,
        socket: &Stream,
        frame: &Frame<'_>,
        body: &Bytes,
    ) -> Result<Put, FrameError> {
        self.put_within(usize::MAX, usize::MAX, socket, frame, body)
    }

    fn put_within(
        &self,
        frames: usize,
        bytes: usize,
        socket: &Stream,
        frame: &Frame<'_>,
        body: &Bytes,
    ) -> Result<Put, FrameError> {
        let mut state = self.lock();
        if state.closed {
            return Ok(Put::Closed);
        }
        if let Way::Ring(ring) = &state.way {
            ring.soon(body.len() + HEAD); // while the head is encoded
        }
        state.scratch.clear();
        frame.encode_head(&mut state.scratch, limits::MAX_FRAME)?;
        let total = state.scratch.len() + body.len();
        let mut done = 0;
        if state.backlog.is_empty() {
            let State { way, scratch, .. } = &mut *state;
            done = match way.write(socket, scratch, body, ROOM_PATIENCE) {
                Ok(count) => count,
                // The reader meets the end of a socket too, and knows what to say about it. A ring that cannot be written is only seen here.
                Err(_) => {
                    if matches!(way, Way::Ring(_)) {
                        state.closed = true;
                        drop(state);
                        self.more.notify_one();
                    }
                    return Ok(Put::Closed);
                }
            };
            if done == total {
                return Ok(Put::Taken);
            }
        } else if state.backlog.len() >= frames || state.bytes.saturating_add(total) > bytes {
            return Ok(Put::Full);
        }
        let head = state.scratch.clone();
        state.bytes += total;
        state.backlog.push_back(Rest { head, body: body.clone(), done });
        drop(state);
        self.more.notify_one();
        Ok(Put::Taken)
    }

    /// As [`Outbox::put`], and waits while there is no room. Ends with the link at the latest.
    pub(super) async fn put_when_there_is_room(
        &self,
        socket: &Stream,
        frame: &Frame<'_>,
        body: &Bytes,
    ) -> Result<Put, FrameError> {
        loop {
            let mut room = std::pin::pin!(self.room.notified());
            // From here on no word of room is missed.
            room.as_mut().enable();
            match self.put(socket, frame, body)? {
                Put::Full => room.await,
                done => return Ok(done),
            }
        }
    }

    /// Takes nothing any more.
    pub(super) fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        state.backlog.clear();
        if let Way::Ring(ring) = &state.way {
            ring.close();
            ring.wake_consumer();
        }
        drop(state);
        self.room.notify_waiters();
        self.more.notify_one();
    }

    /// Writes what is kept, until the link or the patience with a runner that does not read ends. `written` is called when
    /// the backlog is empty again.
    pub(super) async fn write_backlog(&self, socket: &Stream, written: impl Fn()) -> Ended {
        loop {
            self.more.notified().await;
            // Counted from the last byte that went: being called, by a new frame or by the runner itself, is no progress.
            let mut until = Instant::now() + WRITE_DEADLINE;
            loop {
                match self.some_of_the_backlog(socket) {
                    Step::Empty => break,
                    Step::Closed => return Ended::Closed,
                    Step::Again => {}
                    Step::Progress => {
                        until = Instant::now() + WRITE_DEADLINE;
                        self.room.notify_waiters();
                        tokio::task::yield_now().await; // a runner that makes room byte by byte does not keep this thread
                    }
                    Step::Blocked => {
                        let through_ring = matches!(self.lock().way, Way::Ring(_));
                        let room = async {
                            if through_ring {
                                self.more.notified().await;
                                Ok(())
                            } else {
                                socket.inner().writable().await
                            }
                        };
                        match timeout_at(until, room).await {
                            Ok(Ok(())) => {}
                            Ok(Err(_)) => return Ended::Closed,
                            Err(_) => {
                                return Ended::Because(Cause::Wedged("a write".into()));
                            }
                        }
                    }
                }
            }
            self.room.notify_waiters();
            written();
        }
    }

    /// The runner says that there may be room in the ring.
    pub(super) fn look_again(&self) {
        if !self.lock().backlog.is_empty() {
            self.more.notify_one();
        }
    }

    fn some_of_the_backlog(&self, socket: &Stream) -> Step {
        let mut state = self.lock();
        if state.closed {
            return Step::Closed;
        }
        let State { way, backlog, .. } = &mut *state;
        let Some(rest) = backlog.front_mut() else { return Step::Empty };
        let head = rest.head.get(rest.done..).unwrap_or(&[]);
        let body = &rest.body[rest.done.saturating_sub(rest.head.len())..];
        let total = rest.head.len() + rest.body.len();
        // Without a look for room: the runner itself says when this is called again.
        match way.write(socket, head, body, Duration::ZERO) {
            Ok(0) => match way {
                Way::Ring(ring) => {
                    if ring.want_room() {
                        Step::Blocked
                    } else {
                        Step::Again
                    }
                }
                Way::Socket => Step::Blocked,
            },
            Ok(count) => {
                rest.done += count;
                if rest.done == total {
                    state.bytes = state.bytes.saturating_sub(total);
                    state.backlog.pop_front();
                }
                Step::Progress
            }
            Err(_) => Step::Closed,
        }
    }
}

enum Step {
    Empty,
    /// There is room after all, or the next write says what is wrong.
    Again,
    Progress,
    Blocked,
    Closed,
}

/// How long one look for room is: as long as a caller's for his answer.
fn look() -> Duration {
    Duration::from_micros(spin_us().into())
}

impl Way {
    /// Writes what the way takes now; zero if it takes nothing. `patience`: how long it may go on looking for room in a ring whose runner
    /// reads at the same time.
    fn write(&mut self, socket: &Stream, head: &[u8], body: &[u8], patience: Duration) -> io::Result<usize> {
        match self {
            // Through the runtime, so that it learns when the socket is full and `writable` waits.
            Way::Socket => match socket.inner().try_write_vectored(&[IoSlice::new(head), IoSlice::new(body)])
            {
                Ok(0) => Err(io::ErrorKind::WriteZero.into()),
                Err(error)
                    if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) =>
                {
                    Ok(0)
                }
                done => done,
            },
            // Piece by piece, and the runner is woken for the first: it reads while the others are written. As many pieces as the frame
            // has, and after a short one only until the patience is over, however fast the runner makes a little room.
            Way::Ring(ring) => {
                let (total, mut done) = (head.len() + body.len(), 0);
                let mut until = None;
                while done < total {
                    let (head, body) =
                        (head.get(done..).unwrap_or(&[]), &body[done.saturating_sub(head.len())..]);
                    let whole = PIECE.min(total - done);
                    let count = ring.write(&[head, body]).map_err(io::Error::other)?;
                    done += count;
                    if count > 0 && ring.consumer_sleeps() {
                        ring.wake_consumer();
                    }
                    if count == whole {
                        continue;
                    }
                    // A runner that is reading this very frame has made room before a task could be woken for it.
                    if done == 0 || patience.is_zero() {
                        break;
                    }
                    let now = Instant::now();
                    if now >= *until.get_or_insert(now + patience) || !ring.look_for_room(look()) {
                        break;
                    }
                }
                Ok(done)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;
    use std::sync::atomic::{AtomicBool, Ordering};
    use thenodes_ipc::ring::Region;

    #[tokio::test]
    async fn a_runner_that_makes_room_byte_by_byte_holds_no_writer_for_the_length_of_a_frame() {
        const LONG: usize = 1 << 20;
        let (ours, _theirs) = UnixStream::pair().expect("a pair");
        ours.set_nonblocking(true).expect("set");
        let socket = Stream::try_from(OwnedFd::from(ours)).expect("a stream");
        let (region, fd) = Region::create().expect("a region");
        let mut consumer = Region::open(&fd).expect("the same").runner_side().1;
        let mut way = Way::Ring(region.node_side().0);
        let (body, done) = (vec![1; LONG], AtomicBool::new(false));
        std::thread::scope(|scope| {
            let sipping = scope.spawn(|| {
                let mut byte = Vec::new();
                while !done.load(Ordering::Relaxed) {
                    byte.clear();
                    let _ = consumer.read(&mut byte, 1);
                }
                consumer
            });
            let written = way.write(&socket, &[], &body, ROOM_PATIENCE).expect("an honest consumer");
            done.store(true, Ordering::Relaxed);
            assert!((1..LONG).contains(&written), "{written}");
            // The control: one who reads as fast as he can gets much more, and all of it in the end.
            let mut consumer = sipping.join().expect("it sips");
            let reading = scope.spawn(move || {
                let mut all = Vec::new();
                while all.len() < LONG {
                    consumer.read(&mut all, LONG).expect("an honest producer");
                }
            });
            let mut at = written;
            while at < LONG {
                at += way.write(&socket, &[], &body[at..], ROOM_PATIENCE).expect("an honest consumer");
            }
            let mut rest = LONG;
            while rest > 0 && !reading.is_finished() {
                rest -= way.write(&socket, &[], &body[..rest], Duration::ZERO).expect("an honest consumer");
            }
        });
    }
}
