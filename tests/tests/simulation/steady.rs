//! Randomness that a seed decides, and a calendar that goes by the story's own time. Whatever in this program asks the system for random bytes (the keys of hash maps, the runtime's choice
//! among what is ready, identifiers) gets those of a generator of its own thread, so that a story can be told again step by step.
//!
//! Nodes also write down seconds of the calendar: which two of them fall into one may not depend on how busy the machine is.
//!
//! By being the `getrandom` and `clock_gettime` of this test program: the linker takes them before the C library's. Trusts its callers as C
//! functions do.

use std::cell::Cell;
use std::ffi::{c_int, c_uint, c_void};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::time::Instant;

static SEED: AtomicU64 = AtomicU64::new(0);
/// Bytes that were asked of it; a program in which nobody asks has another way to them.
static ASKED: AtomicU64 = AtomicU64::new(0);

thread_local! {
    static STATE: Cell<Option<u64>> = const { Cell::new(None) };
}

/// When the calendar begins: in 2026.
const BEGINNING: Duration = Duration::from_secs(1_780_000_000);

thread_local! {
    /// The story's time at the beginning, for the thread that tells it.
    static SINCE: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// From now on the calendar of this thread goes by the time of its runtime, which has to be paused.
pub fn calendar() {
    SINCE.set(Some(Instant::now()));
}

#[no_mangle]
#[allow(unsafe_code)] // one name of the C ABI, the one write that it promises, and the system call behind it
extern "C" fn clock_gettime(clock: libc::clockid_t, time: *mut libc::timespec) -> c_int {
    // Outside of a story, and for every other clock, the system's.
    let since = SINCE.try_with(Cell::get).ok().flatten().filter(|_| clock == libc::CLOCK_REALTIME);
    let Some(since) = since else {
        // SAFETY: the same call, with the arguments that the caller vouches for.
        return unsafe { libc::syscall(libc::SYS_clock_gettime, clock, time) } as c_int;
    };
    let now = BEGINNING + (Instant::now() - since);
    let now = libc::timespec { tv_sec: now.as_secs().cast_signed(), tv_nsec: now.subsec_nanos().into() };
    // SAFETY: as the C function's contract says, `time` is a place for one `timespec` that is the caller's.
    unsafe { time.write(now) };
    0
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
