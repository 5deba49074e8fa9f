//! The way into one process, and who is inside: every call to a plugin enters here and is counted until it ends. So a process can be
//! left alone when its last call has ended, and no call slips into one that is being left. How old open calls are is the link's to say.
//! The plugin is not trusted to say any of this; it is counted on the node's side.

use super::lifecycle::Cause;
use super::link::Caller;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;
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
    book: Arc<Book>,
}

struct Book {
    caller: Caller,
    /// How long a call may take at most.
    call_timeout: Duration,
    inside: AtomicUsize,
    ended: Notify,
    /// A call that met its deadline.
    late: Mutex<Option<String>>,
    /// Why the node ends the process, if callers are to hear it.
    verdict: OnceLock<Cause>,
}

impl Way {
    pub(super) fn new(caller: Caller, call_timeout: Duration) -> Self {
        let book = Book {
            caller,
            call_timeout,
            inside: AtomicUsize::new(0),
            ended: Notify::new(),
            late: Mutex::default(),
            verdict: OnceLock::new(),
        };
        Self { book: Arc::new(book) }
    }

    /// Goes in, for one call. Entering through a [`Door`] while it is borrowed from its channel makes sure that nobody enters after
    /// the door was closed.
    pub(super) fn enter(&self) -> Inside {
        self.book.inside.fetch_add(1, Ordering::SeqCst);
        Inside { way: self.clone() }
    }

    /// For the node's own questions, which are not counted.
    pub(super) fn caller(&self) -> &Caller {
        &self.book.caller
    }

    /// Waits until nobody is inside and no message is open.
    pub(super) async fn drained(&self) {
        loop {
            let ended = self.book.ended.notified();
            let mut ended = std::pin::pin!(ended);
            ended.as_mut().enable(); // before looking: an end in between is not missed
            if self.book.inside.load(Ordering::SeqCst) == 0 {
                break;
            }
            ended.await;
        }
        self.book.caller.without_messages().await;
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
}

impl Inside {
    pub(super) fn caller(&self) -> &Caller {
        &self.way.book.caller
    }

    /// How long a call may take at most, whatever its caller would wait.
    pub(super) fn call_timeout(&self) -> Duration {
        self.way.book.call_timeout
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
        if self.way.book.inside.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.way.book.ended.notify_waiters();
        }
    }
}
