//! A word to the processor about memory that will be needed in a moment, so that it fetches many cache lines at once instead of one after
//! the other. What is said to a plugin after a pause lies in no cache near by: a dozen lines, each some tens of nanoseconds away. A hint
//! reads nothing as far as the language is concerned, so it may be about memory that somebody else writes.

/// Bytes that a processor fetches together.
const LINE: usize = 64;
/// Lines of one value that are asked for; more than that would push others out.
const MOST: usize = 16;

/// All lines of this value are about to be used.
pub fn soon<T: ?Sized>(value: &T) {
    let address = std::ptr::from_ref(value).cast::<u8>();
    // The value may begin anywhere in its first line.
    let lines = (address.addr() % LINE + size_of_val(value)).div_ceil(LINE).min(MOST);
    for line in 0..lines {
        fetch(address.wrapping_add(line * LINE));
    }
}

#[cfg(all(target_arch = "x86_64", not(loom), not(miri)))]
fn fetch(address: *const u8) {
    use std::arch::x86_64::{_mm_prefetch, _MM_HINT_T0};
    // SAFETY: a hint about an address; it reads nothing that the program could see, and no address makes it fault.
    #[allow(unsafe_code)]
    unsafe {
        _mm_prefetch::<_MM_HINT_T0>(address.cast());
    }
}

/// Elsewhere the processor finds out by itself.
#[cfg(not(all(target_arch = "x86_64", not(loom), not(miri))))]
fn fetch(_: *const u8) {}
