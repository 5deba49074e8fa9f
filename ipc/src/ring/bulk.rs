//! Long runs of bytes in and out of memory that another process may write at the same time. Distrusts that process: whatever it
//! does meanwhile, the bytes that come out are some bytes, and nothing else of this program changes.
//!
//! Word by word ([`super::layout`]) a processor moves 8 bytes a step, here it moves a cache line. A compiler may not be told to
//! copy such memory by ordinary means, since it may assume that nobody else writes there. It assumes nothing about what an
//! assembly block does to memory that it was given: for the language the block below is so many relaxed loads and stores of
//! single bytes, which is what the atomics beside it are, in any order.
//!
//! Not by the string instruction: some processors (AMD's Zen 3 and 4) take twenty times as long with it, and with the C library's
//! `memcpy` that uses it, where the target lies a few bytes further in its page than the source does in its own.

use std::mem::MaybeUninit;
use std::sync::atomic::AtomicU64;

/// Runs from this length on are copied so; at least one step's worth.
pub(super) const LONG: usize = 512;
/// Bytes of a step: four of the registers that every x86-64 processor has.
const STEP: usize = 64;
const _: () = assert!(LONG >= STEP);

/// Copies `bytes` over as many bytes of `words`, from the first on; the rest stays.
pub(super) fn store(words: &[AtomicU64], bytes: &[u8]) {
    assert!((STEP..=size_of_val(words)).contains(&bytes.len()), "a long run of whole words");
    // SAFETY: both are valid for the length, which was checked; they cannot overlap, since `bytes` is borrowed and shared memory
    // is never lent as bytes. The words are atomics, so they may be written through a shared reference.
    #[allow(unsafe_code)]
    unsafe {
        copy(bytes.as_ptr(), words.as_ptr().cast_mut().cast(), bytes.len());
    }
}

/// Fills `bytes` from as many bytes of `words`.
pub(super) fn load(words: &[AtomicU64], bytes: &mut [MaybeUninit<u8>]) {
    assert!((STEP..=size_of_val(words)).contains(&bytes.len()), "a long run of whole words");
    // SAFETY: as above, in the other direction; `bytes` may be uninitialised because it is only written.
    #[allow(unsafe_code)]
    unsafe {
        copy(words.as_ptr().cast(), bytes.as_mut_ptr().cast(), bytes.len());
    }
}

/// # Safety
/// `from` can be read and `to` written for `count` bytes, at least [`STEP`], and they do not overlap. Another process may write either.
#[allow(unsafe_code)]
unsafe fn copy(from: *const u8, to: *mut u8, count: usize) {
    debug_assert!(count >= STEP);
    // Where the last step begins; it may copy again what the one before it did.
    let last = count - STEP;
    // SAFETY: `at` runs over multiples of STEP below `last` and then is `last`, so each step reads and writes within the first
    // `last + STEP` = `count` bytes. The instructions ask for no alignment.
    unsafe {
        std::arch::asm!(
            "2:",
            "movups {a}, [{from} + {at}]",
            "movups {b}, [{from} + {at} + 16]",
            "movups {c}, [{from} + {at} + 32]",
            "movups {d}, [{from} + {at} + 48]",
            "movups [{to} + {at}], {a}",
            "movups [{to} + {at} + 16], {b}",
            "movups [{to} + {at} + 32], {c}",
            "movups [{to} + {at} + 48], {d}",
            "cmp {at}, {last}",
            "je 3f",
            "add {at}, 64",
            "cmp {at}, {last}",
            "cmova {at}, {last}",
            "jmp 2b",
            "3:",
            from = in(reg) from,
            to = in(reg) to,
            last = in(reg) last,
            at = inout(reg) 0_usize => _,
            a = out(xmm_reg) _,
            b = out(xmm_reg) _,
            c = out(xmm_reg) _,
            d = out(xmm_reg) _,
            options(nostack),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_length_at_every_offset_arrives_and_nothing_beside_it_changes() {
        let source: Vec<u8> = (0..LONG as u32 + 400).map(|n| (n * 7 + n / 251) as u8).collect();
        for count in LONG..LONG + 3 * STEP + 2 {
            for offset in [0, 1, 7, 8, 15, 16, 63] {
                let words: Vec<AtomicU64> =
                    (0..count.div_ceil(8) + 1).map(|_| AtomicU64::new(u64::MAX)).collect();
                store(&words, &source[offset..offset + count]);
                let mut out = vec![MaybeUninit::new(0xee_u8); offset + count + STEP];
                load(&words, &mut out[offset..offset + count]);
                // SAFETY: every element was made with a value.
                #[allow(unsafe_code)]
                let out: Vec<u8> = out.iter().map(|byte| unsafe { byte.assume_init() }).collect();
                assert_eq!(
                    out[offset..offset + count],
                    source[offset..offset + count],
                    "{count} at {offset}"
                );
                assert!(
                    out[..offset].iter().chain(&out[offset + count..]).all(|byte| *byte == 0xee),
                    "{count} at {offset}"
                );
                let bytes: Vec<u8> = words
                    .iter()
                    .flat_map(|word| word.load(std::sync::atomic::Ordering::Relaxed).to_le_bytes())
                    .collect();
                assert!(bytes[count..].iter().all(|byte| *byte == 0xff), "{count} at {offset}");
            }
        }
    }
}
