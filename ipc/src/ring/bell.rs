//! One sleeper's word: 1 while its owner sleeps or is about to, 0 otherwise. Distrusts both values: a wrong 1 costs one needless
//! wake-up, a wrong 0 lets only the side that wrote it go unheard.
//!
//! Why no wake-up is lost. Sleeper: (a) store 1, (b) fence, (c) look for bytes. Publisher: (d) store the index, (e) fence,
//! (f) look at this word. The fences are sequentially consistent, hence in one order. If (b) is first, (f) sees the 1 and the
//! publisher wakes. If (e) is first, (c) sees the index and the sleeper stays awake. Acquire and release alone would allow
//! both to see the old values, because a processor may carry out a load before an earlier store.

#[cfg(loom)]
use loom::sync::atomic::{fence, AtomicU32, Ordering};
#[cfg(not(loom))]
use std::sync::atomic::{fence, AtomicU32, Ordering};
use std::time::Duration;

/// The word, alone on its cache lines because both sides write it.
#[repr(C, align(128))]
pub(crate) struct Bell {
    word: AtomicU32,
    /// loom knows no futex: this lock stands for the kernel's lock around comparing and queueing.
    #[cfg(loom)]
    kernel: (loom::sync::Mutex<()>, loom::sync::Condvar),
}

impl Bell {
    #[cfg(any(loom, miri))]
    pub(crate) fn new() -> Self {
        Self {
            word: AtomicU32::new(0),
            #[cfg(loom)]
            kernel: (loom::sync::Mutex::new(()), loom::sync::Condvar::new()),
        }
    }

    /// Steps (a) and (b): the caller looks once more after this and before it sleeps.
    pub(crate) fn announce(&self) {
        self.word.store(1, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// The owner does not sleep (any longer).
    pub(crate) fn take_back(&self) {
        self.word.store(0, Ordering::Relaxed);
    }

    /// Steps (e) and (f): true once per sleep. The load before the swap keeps the usual case, nobody sleeps, free of a
    /// write to a line that the other processor holds.
    pub(crate) fn sleeps(&self) -> bool {
        fence(Ordering::SeqCst);
        self.word.load(Ordering::Relaxed) != 0 && self.word.swap(0, Ordering::Relaxed) != 0
    }

    /// Wakes whoever waits by futex. One at most: an honest side has one sleeper, and a hostile one gets no more work out of us.
    #[cfg(not(loom))]
    pub(crate) fn wake(&self) {
        if cfg!(miri) {
            return; // It has its own idea of the arguments' types; nobody sleeps there, see `wait`.
        }
        // Without the private flag, since the sleeper is another process. An error could only mean a bad address; nobody to tell.
        let _ = rustix::thread::futex::wake(&self.word, rustix::thread::futex::Flags::empty(), 1);
    }

    /// Sleeps while the word is 1, at most this long. May return early, for no reason.
    #[cfg(not(loom))]
    pub(crate) fn wait(&self, most: Option<Duration>) {
        use rustix::thread::futex;
        if cfg!(miri) {
            return std::thread::yield_now();
        }
        // What does not fit is longer than this process lives.
        let most = most.and_then(|most| futex::Timespec::try_from(most).ok());
        // Every error (the word changed, a signal, time over) means the same: look again.
        let _ = futex::wait(&self.word, futex::Flags::empty(), 1, most.as_ref());
    }

    #[cfg(loom)]
    pub(crate) fn wake(&self) {
        let _kernel = self.kernel.0.lock().expect("no model panics with the lock");
        self.kernel.1.notify_one();
    }

    #[cfg(loom)]
    pub(crate) fn wait(&self, _never_in_a_model: Option<Duration>) {
        let kernel = self.kernel.0.lock().expect("no model panics with the lock");
        if self.word.load(Ordering::Relaxed) == 1 {
            drop(self.kernel.1.wait(kernel));
        }
    }

    /// Every word of this bell, for a test that writes garbage into it.
    #[cfg(all(test, not(loom)))]
    pub(crate) fn word(&self) -> &AtomicU32 {
        &self.word
    }
}
