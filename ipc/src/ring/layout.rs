//! What lies where in the shared memory, and how bytes get in and out. Everything here is an atomic, so that another process
//! (or a test's thread) may write any of it at any time without this program's behaviour becoming undefined.
//!
//! Each word that one side writes lies on cache lines of its own: 128 bytes apart, because processors fetch lines in pairs.
//! Data are words of 8 bytes: relaxed loads and stores of whole words are as cheap as plain ones, only the two edges of a
//! run of bytes need care, and long runs go by [`super::bulk`]. Order comes from the indices alone: `head` is published (release) after the bytes it covers, and
//! `tail` after the bytes below it were copied out; who reads an index (acquire) then sees or may overwrite those bytes.
//!
//! Index `start` and those behind it lie at the beginning of the data. The producer moves `start` only while it knows that all is read,
//! and before it publishes a `head` behind it. The consumer reads `start` only when it has just seen a new `head`: that one came after
//! its `start`, and while bytes are unread there is no other. Whatever a hostile one says is a place within the data.

use super::bell::Bell;
#[cfg(loom)]
use loom::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::mem::MaybeUninit;
#[cfg(not(loom))]
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// Bytes each direction holds. Small enough to stay in a cache of the second level, large enough for the bodies that travel by
/// link (larger ones go by memfd). Models and interpreters get a small one, so that they come around its end.
pub const CAPACITY: usize = if cfg!(loom) {
    8
} else if cfg!(miri) {
    256
} else {
    256 * 1024
};

/// Most bytes that are published at once: whoever reads on another processor begins with them while the next are written.
pub const PIECE: usize = if cfg!(any(loom, miri)) { CAPACITY } else { 16 * 1024 };

/// Most bytes that whoever reads a long frame takes at once: the room behind them is free again before a writer has filled the rest.
pub const SLICE: usize = 64 * 1024;

/// After so many bytes the producer looks whether all of them were read, and begins at the first byte again if so: links are
/// mostly empty, and a ring that always goes on writes each time where no cache has been for a whole turn. A page holds a dozen
/// usual calls, so the look, which fetches the consumer's index from another processor, is rare.
pub(crate) const RESTART: u64 = if cfg!(any(loom, miri)) { 3 } else { 4096 };

const WORD: usize = size_of::<u64>();
const WORDS: usize = CAPACITY / WORD;
const _: () = assert!(CAPACITY.is_power_of_two() && CAPACITY >= WORD);

/// A value alone on its cache lines.
#[repr(C, align(128))]
pub(crate) struct Line<T>(pub(crate) T);

/// What the producer publishes: together, because who reads one reads the other.
#[repr(C)]
pub(crate) struct Head {
    /// Bytes ever published.
    pub(crate) index: AtomicU64,
    /// Index of the byte that lies first in the data.
    pub(crate) start: AtomicU64,
}

/// One direction.
#[repr(C)]
pub(crate) struct Ring {
    /// Written by the producer.
    pub(crate) head: Line<Head>,
    /// Bytes ever taken out. Written by the consumer.
    pub(crate) tail: Line<AtomicU64>,
    /// The consumer waits for bytes.
    pub(crate) consumer: Bell,
    /// The producer waits for room.
    pub(crate) producer: Bell,
    pub(crate) data: Data,
}

/// The whole region.
#[repr(C, align(4096))]
pub(crate) struct Shared {
    /// Either side ended the link.
    pub(crate) closed: Line<AtomicU32>,
    pub(crate) down: Ring,
    pub(crate) up: Ring,
}

/// The bytes of one direction.
#[repr(C)]
pub(crate) struct Data(pub(crate) [AtomicU64; WORDS]);

impl Data {
    /// Copies `bytes` in at the place of index `at` (counted from the start), around the end if need be. At most [`CAPACITY`] bytes.
    pub(crate) fn write(&self, at: u64, bytes: &[u8]) {
        let (first, offset) = place(at);
        let (edge, rest) = bytes.split_at(edge(offset, bytes.len()));
        if !edge.is_empty() {
            self.merge(first, offset, edge);
        }
        let next = (first + usize::from(!edge.is_empty())) % WORDS;
        let (whole, edge) = rest.split_at(rest.len() - rest.len() % WORD);
        let (to_end, around) = whole.split_at(whole.len().min((WORDS - next) * WORD));
        store(&self.0[next..], to_end);
        store(&self.0, around);
        if !edge.is_empty() {
            self.merge((next + whole.len() / WORD) % WORDS, 0, edge);
        }
    }

    /// Fills `into` from the place of index `at`; the mirror of [`Data::write`].
    pub(crate) fn read(&self, at: u64, into: &mut [MaybeUninit<u8>]) {
        let (first, offset) = place(at);
        let (edge, rest) = into.split_at_mut(edge(offset, into.len()));
        if !edge.is_empty() {
            fill(edge, &self.word(first)[offset..]);
        }
        let next = (first + usize::from(!edge.is_empty())) % WORDS;
        let (whole, edge) = rest.split_at_mut(rest.len() - rest.len() % WORD);
        let count = whole.len() / WORD;
        let (to_end, around) = whole.split_at_mut(whole.len().min((WORDS - next) * WORD));
        load(&self.0[next..], to_end);
        load(&self.0, around);
        if !edge.is_empty() {
            fill(edge, &self.word((next + count) % WORDS));
        }
    }

    /// The place of index `at` and a little behind it is about to be written.
    pub(crate) fn soon(&self, at: u64, length: usize) {
        let (first, _) = place(at);
        super::soon(&self.0[first..WORDS.min(first + length / WORD + 1)]);
    }

    fn word(&self, word: usize) -> [u8; WORD] {
        self.0[word].load(Ordering::Relaxed).to_ne_bytes()
    }

    /// Part of a word. Its other bytes may be published and unread, and are written again as they are: only the producer
    /// writes data, so nothing can come between the load and the store except from a hostile side, to its own harm.
    fn merge(&self, word: usize, offset: usize, bytes: &[u8]) {
        let mut whole = self.word(word);
        whole[offset..offset + bytes.len()].copy_from_slice(bytes);
        self.0[word].store(u64::from_ne_bytes(whole), Ordering::Relaxed);
    }
}

/// Whole words in. [`super::bulk`] has the long runs where there is a way for them.
fn store(words: &[AtomicU64], bytes: &[u8]) {
    #[cfg(all(target_arch = "x86_64", not(loom), not(miri)))]
    if bytes.len() >= super::bulk::LONG {
        return super::bulk::store(words, bytes);
    }
    for (word, bytes) in words.iter().zip(bytes.as_chunks().0) {
        word.store(u64::from_ne_bytes(*bytes), Ordering::Relaxed);
    }
}

/// Whole words out.
fn load(words: &[AtomicU64], bytes: &mut [MaybeUninit<u8>]) {
    #[cfg(all(target_arch = "x86_64", not(loom), not(miri)))]
    if bytes.len() >= super::bulk::LONG {
        return super::bulk::load(words, bytes);
    }
    for (word, bytes) in words.iter().zip(bytes.as_chunks_mut::<WORD>().0) {
        *bytes = word.load(Ordering::Relaxed).to_ne_bytes().map(MaybeUninit::new);
    }
}

/// Fills an edge from the word that it is a part of.
fn fill(edge: &mut [MaybeUninit<u8>], word: &[u8]) {
    for (to, from) in edge.iter_mut().zip(word) {
        to.write(*from);
    }
}

/// Word and byte in it where index `at` lies.
fn place(at: u64) -> (usize, usize) {
    // The remainder is below CAPACITY, whatever `at` is.
    let byte = (at % CAPACITY as u64) as usize;
    (byte / WORD, byte % WORD)
}

/// How many of `len` bytes from `offset` on belong to a word that is not filled from its beginning.
fn edge(offset: usize, len: usize) -> usize {
    if offset == 0 {
        0
    } else {
        len.min(WORD - offset)
    }
}

#[cfg(any(loom, miri))]
impl Shared {
    pub(crate) fn new() -> Self {
        let ring = || Ring {
            head: Line(Head { index: AtomicU64::new(0), start: AtomicU64::new(0) }),
            tail: Line(AtomicU64::new(0)),
            consumer: Bell::new(),
            producer: Bell::new(),
            data: Data(std::array::from_fn(|_| AtomicU64::new(0))),
        };
        Self { closed: Line(AtomicU32::new(0)), down: ring(), up: ring() }
    }
}
