//! The way into one process, and who is inside: every call to a plugin enters here and is counted until it ends. So a process can be
//! left alone when its last call has ended, no call slips into one that is being left, and one that is open for long is noticed.
//! The plugin is not trusted to say any of this; it is counted on the node's side.

use super::lifecycle::Cause;
use super::link::Caller;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;
use tokio::sync::Notify;

/// What callers find where a plugin should be.
#[derive(Clone, Default)]
pub(super) enum Door {
    /// Nobody takes calls now.
    #[default]
    Closed,
    /// In a moment somebody will: callers wait, as long as their deadline lets them.
    Held,
    /// This way.
    Open(Way),
}

/// A way in. Cheap to clone.
#[derive(Clone)]
pub(super) struct Way {
    caller: Caller,
    book: Arc<Book>,
}

#[derive(Default)]
struct Book {
    next: AtomicU64,
    /// Oldest first.
    open: Mutex<BTreeMap<u64, (Instant, String)>>,
    /// Somebody looks at the open calls now and then; if nobody does, the next call wakes him.
    watched: AtomicBool,
    stirred: Notify,
    ended: Notify,
    /// A call that met its deadline.
    late: Mutex<Option<String>>,
    /// Why the node ends the process, if callers are to hear it.
    verdict: OnceLock<Cause>,
}

impl Book {
    fn open(&self) -> MutexGuard<'_, BTreeMap<u64, (Instant, String)>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Way {
    pub(super) fn new(caller: Caller) -> Self {
        Self { caller, book: Arc::default() }
    }

    /// Goes in, for one call. Entering through a [`Door`] while it is borrowed from its channel makes sure that nobody enters after
    /// the door was closed.
    pub(super) fn enter(&self, method: &str) -> Inside {
        let id = self.book.next.fetch_add(1, Ordering::Relaxed);
        self.book.open().insert(id, (Instant::now(), method.to_owned()));
        // One load for each call but the first after a pause.
        if !self.book.watched.load(Ordering::SeqCst) && !self.book.watched.swap(true, Ordering::SeqCst) {
            self.book.stirred.notify_one();
        }
        Inside { way: self.clone(), id }
    }

    /// For the node's own questions, which are not counted.
    pub(super) fn caller(&self) -> &Caller {
        &self.caller
    }

    /// The oldest open call.
    pub(super) fn oldest(&self) -> Option<(Instant, String)> {
        self.book.open().first_key_value().map(|(_, open)| open.clone())
    }

    /// Waits until there is something to look at.
    pub(super) async fn stirred(&self) {
        self.book.stirred.notified().await;
    }

    /// True if nothing is open, and from now on the next call wakes whoever waits in [`Way::stirred`].
    pub(super) fn rests(&self) -> bool {
        self.book.watched.store(false, Ordering::SeqCst);
        // A call may have come before the line above and not have woken anybody.
        self.book.open().is_empty() || self.book.watched.swap(true, Ordering::SeqCst)
    }

    /// Waits until nobody is inside.
    pub(super) async fn drained(&self) {
        loop {
            let ended = self.book.ended.notified();
            let mut ended = std::pin::pin!(ended);
            ended.as_mut().enable(); // before looking: an end in between is not missed
            if self.book.open().is_empty() {
                return;
            }
            ended.await;
        }
    }

    /// A call that met its deadline since the last time this was asked.
    pub(super) fn take_late(&self) -> Option<String> {
        self.book.late.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// What callers hear when the link ends now.
    pub(super) fn condemn(&self, cause: Cause) {
        let _ = self.book.verdict.set(cause);
    }
}

/// Somebody is inside, until this is dropped.
pub(super) struct Inside {
    way: Way,
    id: u64,
}

impl Inside {
    pub(super) fn caller(&self) -> &Caller {
        &self.way.caller
    }

    /// The call met its deadline: whether the plugin still answers anything is to be found out.
    pub(super) fn was_late(&self, method: &str) {
        *self.way.book.late.lock().unwrap_or_else(PoisonError::into_inner) = Some(method.to_owned());
    }

    /// Why the node ended the process, if it said so.
    pub(super) fn verdict(&self) -> Option<&Cause> {
        self.way.book.verdict.get()
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        let empty = {
            let mut open = self.way.book.open();
            open.remove(&self.id);
            open.is_empty()
        };
        if empty {
            self.way.book.ended.notify_waiters();
        }
    }
}
