//! Randomness that a seed decides. Whatever in this program asks the system for random bytes (the keys of hash maps, the runtime's choice
//! among what is ready, identifiers) gets those of a generator of its own thread, so that a story can be told again step by step.
//!
//! By being the `getrandom` of this test program: the linker takes it before the C library's. Trusts its callers as C functions do.

use std::cell::Cell;
use std::ffi::{c_uint, c_void};
use std::sync::atomic::{AtomicU64, Ordering};

static SEED: AtomicU64 = AtomicU64::new(0);
/// Bytes that were asked of it; a program in which nobody asks has another way to them.
static ASKED: AtomicU64 = AtomicU64::new(0);

thread_local! {
    static STATE: Cell<Option<u64>> = const { Cell::new(None) };
}

/// Has threads that have not asked yet begin with this seed.
pub fn begin(seed: u64) {
    SEED.store(seed, Ordering::SeqCst);
}

/// How many bytes were asked of it.
pub fn asked() -> u64 {
    ASKED.load(Ordering::SeqCst)
}

/// The next eight bytes of this thread's (SplitMix64).
fn next() -> u64 {
    let state =
        STATE.get().unwrap_or_else(|| SEED.load(Ordering::SeqCst)).wrapping_add(0x9e37_79b9_7f4a_7c15);
    STATE.set(Some(state));
    let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

#[no_mangle]
#[allow(unsafe_code)] // one name of the C ABI, and the one write that it promises
extern "C" fn getrandom(buffer: *mut c_void, length: usize, _flags: c_uint) -> isize {
    ASKED.fetch_add(length as u64, Ordering::SeqCst);
    let mut done = 0;
    while done < length {
        let bytes = next().to_ne_bytes();
        let count = bytes.len().min(length - done);
        // SAFETY: as the C function's contract says, `buffer` has room for `length` bytes that are the caller's; `done + count` does not
        // pass `length`, and a local array overlaps with nothing of his.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), buffer.cast::<u8>().add(done), count) };
        done += count;
    }
    length as isize
}
