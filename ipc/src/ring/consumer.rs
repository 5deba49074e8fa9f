//! The reading end of a ring. Does not trust the producer's index nor that bytes stay what they are: it copies them out, once.

use super::mapping::Handle;
use super::producer::Deadline;
use super::{checked, RingError, CAPACITY};
#[cfg(loom)]
use loom::sync::atomic::Ordering;
#[cfg(not(loom))]
use std::sync::atomic::Ordering;
use std::time::Duration;

/// The reading end.
pub struct Consumer {
    ring: Handle,
    /// Bytes ever taken out: the truth, of which the shared word is a copy for the other side.
    tail: u64,
    /// The producer's index when it was last looked at; we look again only when all below it is read.
    head: u64,
    /// The index that lies first in the data, as of that look.
    start: u64,
}

impl Consumer {
    pub(crate) fn new(ring: Handle) -> Self {
        Self { ring, tail: 0, head: 0, start: 0 }
    }

    /// Appends at most `most` bytes and returns how many; 0 only if there are none (or `most` is 0). May be less than what is
    /// there by now: call until 0.
    pub fn read(&mut self, into: &mut Vec<u8>, most: usize) -> Result<usize, RingError> {
        if self.is_empty()? {
            return Ok(0);
        }
        // Not more than the capacity: `head` was checked.
        let count = most.min(self.head.wrapping_sub(self.tail) as usize);
        let start = into.len();
        into.reserve(count);
        self.ring
            .ring()
            .data
            .read(self.tail.wrapping_sub(self.start), &mut into.spare_capacity_mut()[..count]);
        // SAFETY: there was room for so many bytes, and every one of them has been written.
        #[allow(unsafe_code)]
        unsafe {
            into.set_len(start + count);
        }
        self.tail = self.tail.wrapping_add(count as u64);
        // Release: the copy is done before the producer may write there again.
        self.ring.ring().tail.0.store(self.tail, Ordering::Release);
        Ok(count)
    }

    /// True if there is nothing to read. Cheap, for spinning: the line stays in our cache until the producer writes it. After
    /// "false" the next read returns bytes, whatever the producer does to its index meanwhile.
    pub fn is_empty(&mut self) -> Result<bool, RingError> {
        if self.head == self.tail {
            // Acquire: with the index come the bytes below it.
            let published = &self.ring.ring().head.0;
            let seen = published.index.load(Ordering::Acquire);
            if seen != self.head {
                self.head = checked("producer", seen, self.head, self.tail.wrapping_add(CAPACITY as u64))?;
                self.start = published.start.load(Ordering::Relaxed);
            }
        }
        Ok(self.head == self.tail)
    }

    /// Announces that this side sleeps. False if there are bytes after all: then nothing is announced, and the next read returns
    /// some or names an error. Closing is not its business: whoever sleeps by other means than [`Consumer::wait`] hears of
    /// the end by those means.
    pub fn sleep_announced(&mut self) -> bool {
        if self.something() {
            return false;
        }
        self.ring.ring().consumer.announce();
        if self.something() {
            self.awake();
            return false;
        }
        true
    }

    /// Takes the announcement back.
    pub fn awake(&mut self) {
        self.ring.ring().consumer.take_back();
    }

    /// True if a read would tell something. An impossible index does, for the read to report it.
    fn something(&mut self) -> bool {
        self.is_empty().map_or(true, |empty| !empty)
    }

    /// Announces and sleeps by futex. True when the next read returns bytes or names an error; false when the time is over or the
    /// link is closed. For the runner: the node never blocks on a word that a runner can write. No time means until bytes
    /// or the end, which for a runner is at the latest the node's.
    pub fn wait(&mut self, timeout: Option<Duration>) -> bool {
        let deadline = Deadline::after(timeout);
        loop {
            if !self.sleep_announced() {
                return true;
            }
            let left = deadline.left();
            if self.closed() || left == Some(Duration::ZERO) {
                self.awake();
                return false;
            }
            self.ring.ring().consumer.wait(left);
        }
    }

    /// After a read: true if the producer sleeps for want of room, once per sleep. The caller then wakes it.
    pub fn producer_waits(&self) -> bool {
        self.ring.ring().producer.sleeps()
    }

    /// Wakes a producer that waits by futex. One system call; it never blocks.
    pub fn wake_producer(&self) {
        self.ring.ring().producer.wake();
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
