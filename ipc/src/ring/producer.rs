//! The writing end of a ring. Does not trust the consumer's index; its own it keeps for itself and only publishes.

use super::layout::{PIECE, RESTART};
use super::mapping::Handle;
use super::{checked, RingError, CAPACITY};
#[cfg(loom)]
use loom::sync::atomic::Ordering;
#[cfg(not(loom))]
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Looks between two looks at the clock.
const SPINS: u32 = 64;

/// The writing end.
pub struct Producer {
    ring: Handle,
    /// Bytes ever written: the truth, of which the shared word is a copy for the other side.
    head: u64,
    /// The consumer's index when it was last looked at. Looking costs a cache line's way between processors.
    tail: u64,
    /// The index that lies first in the data; see `layout.rs`.
    start: u64,
    /// Where to look next whether there is nothing unread.
    look_at: u64,
}

impl Producer {
    pub(crate) fn new(ring: Handle) -> Self {
        Self { ring, head: 0, tail: 0, start: 0, look_at: RESTART }
    }

    /// Copies in what fits, and no more than [`PIECE`](super::PIECE): a prefix of all parts after each other, published at once. Returns its
    /// length, 0 only if there is none or the ring is full. Whoever has more sees to a sleeping consumer and calls again.
    pub fn write(&mut self, parts: &[&[u8]]) -> Result<usize, RingError> {
        if self.head.wrapping_sub(self.look_at) < CAPACITY as u64 {
            self.restart_if_empty()?;
        }
        let wanted = parts.iter().fold(0_usize, |sum, part| sum.saturating_add(part.len())).min(PIECE);
        let free = match self.known_free() {
            known if known >= wanted => known,
            _ => self.free()?,
        };
        let count = wanted.min(free);
        let mut left = count;
        for part in parts {
            let part = &part[..part.len().min(left)];
            self.ring.ring().data.write(self.head.wrapping_sub(self.start), part);
            self.head = self.head.wrapping_add(part.len() as u64);
            left -= part.len();
        }
        if count > 0 {
            // Release: whoever sees this index sees the bytes below it.
            self.ring.ring().head.0.index.store(self.head, Ordering::Release);
        }
        Ok(count)
    }

    /// So many bytes are about to be written.
    pub fn soon(&self, length: usize) {
        let ring = self.ring.ring();
        super::soon(&ring.head);
        super::soon(&ring.consumer);
        ring.data.soon(self.head.wrapping_sub(self.start), length);
    }

    /// Lets the next byte lie first in the data, if the consumer has read all before it.
    fn restart_if_empty(&mut self) -> Result<(), RingError> {
        self.free()?;
        if self.tail == self.head {
            self.start = self.head;
            // Published with the next index.
            self.ring.ring().head.0.start.store(self.start, Ordering::Relaxed);
        }
        self.look_at = self.head.wrapping_add(RESTART);
        Ok(())
    }

    /// Bytes that fit now.
    pub fn free(&mut self) -> Result<usize, RingError> {
        // Acquire: the consumer has copied out what lies below this index before we write over it.
        let seen = self.ring.ring().tail.0.load(Ordering::Acquire);
        self.tail = checked("consumer", seen, self.tail, self.head)?;
        Ok(self.known_free())
    }

    /// Room as of the last look; `head` is never more than the capacity ahead of a checked `tail`.
    fn known_free(&self) -> usize {
        CAPACITY - self.head.wrapping_sub(self.tail) as usize
    }

    /// After a write: true if the consumer sleeps, once per sleep. The caller then wakes it.
    pub fn consumer_sleeps(&self) -> bool {
        self.ring.ring().consumer.sleeps()
    }

    /// Wakes a consumer that waits by futex. One system call; it never blocks.
    pub fn wake_consumer(&self) {
        self.ring.ring().consumer.wake();
    }

    /// Looks for room again and again, at most so long, for a consumer that reads at the same time on another processor. False: there was
    /// none. True as with [`Producer::wait_room`].
    pub fn look_for_room(&mut self, most: Duration) -> bool {
        if most.is_zero() {
            return self.room();
        }
        let deadline = Deadline::after(Some(most));
        loop {
            for _ in 0..SPINS {
                if self.room() {
                    return true;
                }
                std::hint::spin_loop();
            }
            if deadline.left().is_none_or(|left| left.is_zero()) {
                return false;
            }
        }
    }

    /// Announces that this side sleeps until there is room. False if there is some after all: then nothing is announced, and the
    /// next write takes at least one byte or names an error. Closing is not its business: whoever sleeps by other means than
    /// [`Producer::wait_room`] hears of the end by those means.
    pub fn want_room(&mut self) -> bool {
        if self.room() {
            return false;
        }
        self.ring.ring().producer.announce();
        if self.room() {
            self.had_room();
            return false;
        }
        true
    }

    /// Takes the announcement back.
    pub fn had_room(&mut self) {
        self.ring.ring().producer.take_back();
    }

    /// True if a write would take something. An impossible index counts as room, for the write to report it.
    fn room(&mut self) -> bool {
        self.known_free() > 0 || self.free().map_or(true, |free| free > 0)
    }

    /// Announces and sleeps by futex. True when the next write takes bytes or names an error; false when the time is over or the
    /// link is closed. For the runner: the node never blocks on a word that a runner can write.
    pub fn wait_room(&mut self, timeout: Duration) -> bool {
        let deadline = Deadline::after(Some(timeout));
        loop {
            if !self.want_room() {
                return true;
            }
            let left = deadline.left();
            if self.closed() || left == Some(Duration::ZERO) {
                self.had_room();
                return false;
            }
            self.ring.ring().producer.wait(left);
        }
    }

    /// Ends the link, both directions, for both sides; wakes whoever waits by futex.
    pub fn close(&self) {
        self.ring.mapping.close();
    }

    /// True if either side closed. Bytes that were published before can still be read.
    pub fn closed(&self) -> bool {
        self.ring.mapping.closed()
    }
}

/// When a wait ends. A time too far away for the clock is none.
pub(crate) struct Deadline(Option<Instant>);

impl Deadline {
    pub(crate) fn after(timeout: Option<Duration>) -> Self {
        // A model has no clock: it waits for events only.
        Self(timeout.filter(|_| !cfg!(loom)).and_then(|timeout| Instant::now().checked_add(timeout)))
    }

    pub(crate) fn left(&self) -> Option<Duration> {
        self.0.map(|end| end.saturating_duration_since(Instant::now()))
    }
}
