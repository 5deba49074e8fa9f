//! A handler's own copy of what came over the link: it may hold it while it waits, and the buffer is needed for the next frame. Runs on
//! the reading thread. Trusts nobody less than its caller does; it only moves bytes.
//!
//! Why not `to_vec`. The C library copies long runs by the processor's string instruction, and there are processors (AMD's Zen 3 and 4)
//! on which that takes ten to twenty times as long where the target lies up to some sixty bytes further in its page than the source:
//! 30 microseconds instead of 2 for 64 KiB. Two blocks of whole pages that are allocated one after the other lie exactly so, 16
//! bytes further each. So this copies in pieces for which the library uses registers, and leaves room behind such a block, so that what
//! the handler copies in turn (an answer, often) does not lie so either.

/// Pieces that glibc copies by registers: half of the least length for which it takes the instruction.
const PIECE: usize = 1024;
/// From here on it matters.
const LONG: usize = 4096;
/// How near to whole pages a length is bad, and how much room helps.
const PAGE: usize = 4096;
const NEAR: usize = 128;
const ROOM: usize = 512;

/// The copy. Its capacity is its length or a little more.
pub(super) fn owned(body: &[u8]) -> Vec<u8> {
    if body.len() < LONG {
        return body.to_vec();
    }
    let mut copy = Vec::with_capacity(body.len() + room_behind(body.len()));
    body.chunks(PIECE).for_each(|piece| copy.extend_from_slice(piece));
    copy
}

/// Bytes behind a block of this length, so that the next one does not begin at nearly the same place in its page.
fn room_behind(length: usize) -> usize {
    if (length + NEAR) % PAGE < 2 * NEAR {
        ROOM
    } else {
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_is_what_it_was_and_the_next_block_begins_elsewhere_in_its_page() {
        for length in [0, 1, 4095, 4096, 5000, 65_535, 65_536, 65_537, 1 << 20] {
            let body: Vec<u8> = (0..length).map(|at| (at % 251) as u8).collect();
            assert_eq!(owned(&body), body, "{length}");
        }
        for length in LONG..3 * PAGE {
            let next = (length + room_behind(length)) % PAGE;
            assert!((NEAR..PAGE - NEAR).contains(&next), "{length}: {next}");
        }
    }
}
