//! Bytes through memory that the node and one runner both see, for the hot path of the plugin link.
//!
//! One sealed memfd holds two rings, `down` (node to runner) and `up`. Each has one [`Producer`] and one [`Consumer`]. A ring
//! carries bytes and knows no frames: what comes out goes through the same [`FrameDecoder`](crate::FrameDecoder) as the socket's.
//!
//! Whom it does not trust: the other process. Every shared word may hold any value at any time. So each side
//! 1. keeps its own index in its own memory and only *publishes* it; what stands in the shared word is never read back,
//! 2. reads the other side's index once, takes it only if it did not go back and did not pass what is possible, and otherwise
//!    returns [`RingError::Index`],
//! 3. copies bytes out before anybody looks at them; what the other side changes later changes nothing that was read.
//!
//! No call does more work than [`PIECE`] bytes of copying when it writes, [`CAPACITY`] when it reads, and one system call. Only the `wait` calls block, and only the
//! runner calls them; [`Producer::look_for_room`] takes as long as its caller says. Whoever is told "there is something" makes progress by it or gets an error, so that a word which the
//! other side flips back and forth cannot keep this side in a loop.
//!
//! Sleeping: who wants to sleep says so in a shared word and then looks once more; who publishes then looks at that word.
//! Between the two steps both have a sequentially consistent fence, so at least one of them sees the other (see `bell.rs`).
//! Ways to wake: a futex ([`Consumer::wait`], [`Producer::wake_consumer`]), or whatever the caller has (a byte on the socket).
//! A wake-up without a reason can always come and means nothing.
//!
//! `cargo xtask model` runs the models in `model.rs` with loom.

mod bell;
#[cfg(all(target_arch = "x86_64", not(loom), not(miri)))]
mod bulk;
mod consumer;
mod hint;
mod layout;
mod mapping;
mod producer;

#[cfg(all(test, loom))]
mod model;
#[cfg(all(test, not(loom)))]
mod tests;

pub use consumer::Consumer;
pub use hint::soon;
pub use layout::{CAPACITY, PIECE, SLICE};
pub use mapping::Region;
pub use producer::Producer;

/// Why a ring cannot be used, or not any longer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RingError {
    /// The other side's index went back, or further than its ring allows.
    #[error("reading the {whose}'s index of the ring: it says {seen}, possible is {least} to {most}; the other process is broken or hostile, end the link")]
    Index {
        /// Who wrote it: `"consumer"` or `"producer"`.
        whose: &'static str,
        /// What it says.
        seen: u64,
        /// What it said before.
        least: u64,
        /// What it could be at most.
        most: u64,
    },
    /// The descriptor is of another size than this version's rings.
    #[error("opening the ring: the descriptor holds {found} bytes, not {expected}; node and runner are of different builds")]
    Size {
        /// Bytes it has.
        found: u64,
        /// Bytes of the two rings.
        expected: u64,
    },
    /// The descriptor could still change its size under the mapping, which would end this process with SIGBUS.
    #[error("opening the ring: the descriptor has seals {found:#x} and misses {missing:#x}; take only one from Region::create")]
    Seals {
        /// Seals it has.
        found: u32,
        /// Seals it lacks.
        missing: u32,
    },
    /// The kernel refused a step.
    #[error("opening the ring: {step}: {reason}")]
    System {
        /// What was attempted.
        step: &'static str,
        /// The kernel's error in words.
        reason: String,
    },
}

/// Takes the other side's index if it is possible: not before what it was, not after what it can be. Both are counts of bytes
/// since the beginning; 64 bits do not overflow in the life of a machine, but the arithmetic holds if they do.
fn checked(whose: &'static str, seen: u64, least: u64, most: u64) -> Result<u64, RingError> {
    if seen.wrapping_sub(least) <= most.wrapping_sub(least) {
        Ok(seen)
    } else {
        Err(RingError::Index { whose, seen, least, most })
    }
}
