//! Who reads the link. Two threads share the work: the *leader* reads, and runs handlers on the spot, so that an ordinary call
//! costs no change of threads. The *follower* sleeps; it becomes the leader when a handler takes its time, so that answers,
//! cancellations and further calls always find a reader, and a handler may block for whatever it likes.
//!
//! One word says who leads and whether he is inside a handler; it changes only by compare-and-swap, so there are never two
//! leaders. An idle plugin has no thread that wakes; a busy one has one that looks every [`TICK`].

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread::Thread;
use std::time::Duration;

/// How often a follower looks at a busy leader; a handler that runs longer than this and less than twice this hands the
/// link over.
const TICK: Duration = Duration::from_millis(5);
/// Threads that may read in turn: one inside messages, one inside the first step of a call, one that reads.
const MOST: usize = 3;

/// The bit of the state that says: inside a handler.
const WORKING: u64 = 1;
/// Where the leader's number begins; below it are the bit and a count of handlers.
const LEADER: u32 = 56;

thread_local! {
    /// This thread's number, if it reads in turn.
    static NUMBER: Cell<Option<u64>> = const { Cell::new(None) };
    /// This thread is inside a handler that cannot be suspended.
    static BLOCKABLE: Cell<bool> = const { Cell::new(false) };
}

/// The roles of all readers of one plugin.
pub(super) struct Readers {
    state: AtomicU64,
    /// A follower looks every tick.
    watching: AtomicBool,
    /// The leader is about to block: do not wait for the tick.
    promote: AtomicBool,
    /// Followers that wait for something to do.
    spare: Mutex<Vec<Thread>>,
    threads: AtomicUsize,
}

/// Proof that this thread leads and is inside a handler.
pub(super) struct Working<'a> {
    readers: &'a Readers,
    state: u64,
}

impl Readers {
    pub(super) fn new() -> Self {
        Self {
            state: AtomicU64::new(0),
            watching: AtomicBool::new(false),
            promote: AtomicBool::new(false),
            spare: Mutex::default(),
            threads: AtomicUsize::new(0),
        }
    }

    /// Makes this thread one of the readers. The first one leads. `None` if there are enough.
    pub(super) fn join(&self) -> Option<u64> {
        let number = self
            .threads
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |count| (count < MOST).then_some(count + 1))
            .ok()? as u64;
        NUMBER.set(Some(number));
        Some(number)
    }

    /// True if another reader may be started.
    pub(super) fn may_grow(&self) -> bool {
        self.threads.load(Ordering::Acquire) < MOST && self.spare().is_empty()
    }

    fn spare(&self) -> std::sync::MutexGuard<'_, Vec<Thread>> {
        self.spare.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// True while this thread is the one to read.
    pub(super) fn leads(&self) -> bool {
        NUMBER.get() == Some(self.state.load(Ordering::Acquire) >> LEADER)
    }

    /// Begins to run handlers on this thread. `None` if it does not lead or is inside a handler already, or if nobody is there
    /// to read meanwhile.
    pub(super) fn work(&self) -> Option<Working<'_>> {
        let before = self.state.load(Ordering::Acquire);
        if NUMBER.get() != Some(before >> LEADER) || before & WORKING != 0 {
            return None;
        }
        // The count makes every handler different, so that a look after a tick can tell one long one from many short ones.
        let count = before.wrapping_add(2) & ((1 << LEADER) - 1);
        let state = (before >> LEADER) << LEADER | count | WORKING;
        // Only the leader leaves the reading state. First the state, then the look whether somebody watches; the follower goes
        // to sleep in the other order, so one of the two sees the other.
        self.state.store(state, Ordering::SeqCst);
        let working = Working { readers: self, state };
        if !self.watching.load(Ordering::SeqCst) {
            let spare = self.spare();
            let follower = spare.last()?; // none: back to reading
            self.watching.store(true, Ordering::SeqCst);
            follower.unpark();
        }
        Some(working)
    }

    /// Lets another thread read at once: this one is about to block in a handler. Does nothing elsewhere.
    pub(super) fn about_to_block(&self) {
        if BLOCKABLE.get() && self.leads() {
            self.promote.store(true, Ordering::Release);
            if let Some(follower) = self.spare().last() {
                follower.unpark();
            }
        }
    }

    /// Says that this thread can be woken to follow.
    pub(super) fn enlist(&self) {
        let this = std::thread::current();
        let mut spare = self.spare();
        if spare.iter().all(|thread| thread.id() != this.id()) {
            spare.push(this);
        }
    }

    /// Takes that back: this thread has something else to do.
    pub(super) fn delist(&self) {
        let this = std::thread::current().id();
        self.spare().retain(|thread| thread.id() != this);
    }

    /// Sleeps until this thread leads.
    pub(super) fn follow(&self) {
        let Some(me) = NUMBER.get() else { return };
        self.enlist();
        loop {
            // A look first: being woken may have ended some other sleep of this thread.
            while !self.watching.load(Ordering::SeqCst) {
                std::thread::park();
            }
            while self.watching.load(Ordering::Acquire) {
                let seen = self.state.load(Ordering::Acquire);
                // Whoever began to work and was about to block at once has woken us once for both.
                if !self.promote.load(Ordering::Acquire) {
                    std::thread::park_timeout(TICK);
                }
                let promoted = self.promote.swap(false, Ordering::AcqRel);
                let now = self.state.load(Ordering::Acquire);
                let stuck = now & WORKING != 0 && (promoted || now == seen);
                if stuck && self.take_over(me, now) {
                    return;
                }
                if now == seen && now & WORKING == 0 {
                    self.watching.store(false, Ordering::SeqCst);
                    // A leader that began just now may have seen that somebody watches.
                    if self.state.load(Ordering::SeqCst) != now {
                        self.watching.store(true, Ordering::SeqCst);
                    }
                }
            }
        }
    }

    fn take_over(&self, me: u64, stuck: u64) -> bool {
        let reading = me << LEADER | (stuck & ((1 << LEADER) - 1) & !WORKING);
        let taken = self.state.compare_exchange(stuck, reading, Ordering::AcqRel, Ordering::Acquire).is_ok();
        if taken {
            self.delist();
            // Whoever watches next is woken by the new leader's first handler.
            self.watching.store(false, Ordering::SeqCst);
        }
        taken
    }
}

impl Working<'_> {
    /// Runs something that may block this thread for as long as it likes.
    pub(super) fn blocking<T>(&self, run: impl FnOnce() -> T) -> T {
        /// Also when the handler panics.
        struct Reset;
        impl Drop for Reset {
            fn drop(&mut self) {
                BLOCKABLE.set(false);
            }
        }
        BLOCKABLE.set(true);
        let _reset = Reset;
        run()
    }

    /// True if another thread leads now.
    pub(super) fn was_replaced(&self) -> bool {
        self.readers.state.load(Ordering::Acquire) != self.state
    }
}

impl Drop for Working<'_> {
    /// Back to reading, unless somebody else does that now.
    fn drop(&mut self) {
        let reading = self.state & !WORKING;
        let _ = self.readers.state.compare_exchange(self.state, reading, Ordering::AcqRel, Ordering::Acquire);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{mpsc, Arc};
    use std::time::Instant;

    /// A follower that says when it leads.
    fn follower(readers: &Arc<Readers>) -> mpsc::Receiver<u64> {
        let (tell, leads) = mpsc::channel();
        let (readers, joined) = (readers.clone(), mpsc::channel());
        std::thread::spawn(move || {
            let number = readers.join().expect("there is room");
            joined.0.send(()).expect("heard");
            readers.follow();
            let _ = tell.send(number); // of a try that is over nobody wants to know
        });
        joined.1.recv().expect("it joined");
        leads
    }

    fn wait_for_spare(readers: &Readers) {
        while readers.spare().is_empty() {
            std::thread::yield_now();
        }
    }

    /// Many short handlers. Says what the longest of them took when somebody else led all the same.
    fn many_short_handlers(readers: &Readers) -> Result<(), Duration> {
        let mut longest = Duration::ZERO;
        for _ in 0..100_000 {
            let begun = Instant::now();
            let Some(working) = readers.work() else { return Err(longest) };
            assert!(readers.work().is_none(), "already inside");
            drop(working);
            longest = longest.max(begun.elapsed());
        }
        readers.leads().then_some(()).ok_or(longest)
    }

    #[test]
    fn a_leader_that_stays_in_a_handler_is_replaced_and_one_that_does_not_is_not() {
        // A machine with much to do may keep this thread in a handler for as long as one that stays; then it is tried again.
        let mut tries = 0;
        let (readers, leads) = loop {
            let readers = Arc::new(Readers::new());
            assert_eq!(readers.join(), Some(0));
            assert!(readers.work().is_none(), "nobody would read meanwhile");
            let leads = follower(&readers);
            wait_for_spare(&readers);
            match many_short_handlers(&readers) {
                Ok(()) => break (readers, leads),
                Err(longest) => assert!(longest >= TICK && tries < 100, "after {longest:?}, try {tries}"),
            }
            tries += 1;
        };
        assert!(readers.leads() && leads.try_recv().is_err());
        let working = readers.work().expect("it leads");
        assert_eq!(leads.recv_timeout(Duration::from_secs(10)), Ok(1));
        assert!(working.was_replaced() && !readers.leads());
        drop(working);
        assert!(!readers.leads() && readers.work().is_none());
    }

    #[test]
    fn a_leader_that_is_about_to_block_is_replaced_at_once() {
        let readers = Arc::new(Readers::new());
        readers.join();
        let leads = follower(&readers);
        wait_for_spare(&readers);
        readers.about_to_block();
        let working = readers.work().expect("it leads");
        readers.about_to_block(); // not inside anything that blocks
        working.blocking(|| {
            readers.about_to_block();
            assert_eq!(leads.recv_timeout(Duration::from_secs(10)), Ok(1));
        });
    }

    /// Both words for the follower come before it sleeps, and wake it once. A machine may be slow, so the fastest of many counts; one that
    /// waited for its tick would take so long every time.
    #[test]
    fn a_follower_that_was_called_before_it_slept_does_not_wait_for_its_tick() {
        let fastest = (0..20).map(|_| {
            let readers = Arc::new(Readers::new());
            readers.join();
            let (go, may_go) = mpsc::channel();
            let (tell, leads) = mpsc::channel();
            let follower = readers.clone();
            std::thread::spawn(move || {
                follower.join().expect("there is room");
                follower.enlist();
                may_go.recv().expect("told");
                follower.follow();
                tell.send(()).expect("heard");
            });
            wait_for_spare(&readers);
            let working = readers.work().expect("it leads");
            working.blocking(|| {
                readers.about_to_block();
                go.send(()).expect("heard");
                let begun = Instant::now();
                leads.recv_timeout(Duration::from_secs(10)).expect("it leads");
                begun.elapsed()
            })
        });
        assert!(fastest.min() < Some(TICK));
    }
}
