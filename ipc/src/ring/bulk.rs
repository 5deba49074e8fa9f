//! Long runs of bytes in and out of memory that another process may write at the same time. Distrusts that process: whatever it
//! does meanwhile, the bytes that come out are some bytes, and nothing else of this program changes.
//!
//! Word by word ([`super::layout`]) a processor moves 8 bytes a step; its string instruction moves a cache line. A compiler may
//! not be told to copy such memory by ordinary means, since it may assume that nobody else writes there. It assumes nothing
//! about what an assembly block does to memory that it was given: for the language the block below is so many relaxed loads and
//! stores of single bytes, which is what the atomics beside it are, in any order.

use std::mem::MaybeUninit;
use std::sync::atomic::AtomicU64;

/// Runs from this length on are worth the instruction's start.
pub(super) const LONG: usize = 512;

/// Copies `bytes` over as many bytes of `words`, from the first on; the rest stays.
pub(super) fn store(words: &[AtomicU64], bytes: &[u8]) {
    assert!(bytes.len() <= size_of_val(words), "a run of whole words");
    // SAFETY: both are valid for the length, which was checked; they cannot overlap, since `bytes` is borrowed and shared memory
    // is never lent as bytes. The words are atomics, so they may be written through a shared reference.
    #[allow(unsafe_code)]
    unsafe {
        copy(bytes.as_ptr(), words.as_ptr().cast_mut().cast(), bytes.len());
    }
}

/// Fills `bytes` from as many bytes of `words`.
pub(super) fn load(words: &[AtomicU64], bytes: &mut [MaybeUninit<u8>]) {
    assert!(bytes.len() <= size_of_val(words), "a run of whole words");
    // SAFETY: as above, in the other direction; `bytes` may be uninitialised because it is only written.
    #[allow(unsafe_code)]
    unsafe {
        copy(words.as_ptr().cast(), bytes.as_mut_ptr().cast(), bytes.len());
    }
}

/// # Safety
/// `from` can be read and `to` written for `count` bytes, and they do not overlap. Another process may write either.
#[allow(unsafe_code)]
unsafe fn copy(from: *const u8, to: *mut u8, count: usize) {
    // SAFETY: the instruction reads and writes exactly these bytes; the direction flag is clear, as the calling convention says.
    unsafe {
        std::arch::asm!(
            "rep movsb",
            inout("rcx") count => _,
            inout("rsi") from => _,
            inout("rdi") to => _,
            options(nostack, preserves_flags),
        );
    }
}
