//! Async handlers. Their first step runs on the thread that read the call: many handlers need no second one, and then a call
//! costs neither a task nor a change of threads. What has to wait goes on on that thread too as long as what it waits for
//! comes over the link; whatever wakes it from elsewhere (a timer, another task) moves it to the plugin's runtime for good.

use super::client::Client;
use super::library::panic_text;
use super::readers::Readers;
use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::pin::Pin;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Wake, Waker};
use thenodes_ipc::Code;
use tokio::task::AbortHandle;

/// An async handler at work; it answers its call itself.
pub(super) type Job = Pin<Box<dyn Work>>;

/// What a [`Job`] is.
pub(super) trait Work: Future<Output = ()> + Send {
    /// From now on it can be taken back.
    fn keep(self: Pin<&mut Self>);
}

/// Times that a job may wake itself on the reading thread before it goes to the runtime.
const STEPS: u32 = 8;

const IDLE: u8 = 0;
const READY: u8 = 1;
const RUNNING: u8 = 2;
const WOKEN: u8 = 3;
const GONE: u8 = 4;

enum Running {
    Here(Arc<Local>),
    Runtime(AbortHandle),
}

/// Cancellations of calls that were not at work, kept for those that are in their first step.
const EARLY: usize = 2 * thenodes_ipc::limits::MAX_CALLS_TO_PLUGIN;

/// Jobs by the number of their call.
#[derive(Default)]
struct Table {
    jobs: HashMap<u64, Running>,
    /// Taken back while nothing was found here: already answered, or in the first step. Numbers do not come again.
    early: VecDeque<u64>,
}

/// Calls with an async handler that are not answered yet.
pub(super) struct Calls {
    runtime: tokio::runtime::Handle,
    readers: Arc<Readers>,
    running: Mutex<Table>,
    /// Jobs that can go on on the reading thread.
    ready: Mutex<VecDeque<Arc<Local>>>,
}

/// A job that is driven by the reading thread.
struct Local {
    id: u64,
    calls: Weak<Calls>,
    state: AtomicU8,
    job: Mutex<Option<Job>>,
}

impl Wake for Local {
    fn wake(self: Arc<Self>) {
        loop {
            let (from, to) = match self.state.load(Ordering::Acquire) {
                IDLE => (IDLE, READY),
                RUNNING => (RUNNING, WOKEN),
                _ => return,
            };
            if self.state.compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire).is_ok() {
                if to == READY {
                    self.schedule();
                }
                return;
            }
        }
    }
}

impl Local {
    fn job(&self) -> MutexGuard<'_, Option<Job>> {
        self.job.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn schedule(self: Arc<Self>) {
        let Some(calls) = self.calls.upgrade() else { return };
        // Only who leads the reading looks at what became ready, before it reads on.
        if !calls.readers.leads() {
            return calls.to_runtime(&self);
        }
        calls.ready().push_back(self);
        // Who took the lead before the line above may have looked before it too.
        if !calls.readers.leads() {
            calls.leave();
        }
    }
}

impl Calls {
    pub(super) fn new(runtime: tokio::runtime::Handle, readers: Arc<Readers>) -> Arc<Self> {
        Arc::new(Self { runtime, readers, running: Mutex::default(), ready: Mutex::default() })
    }

    fn running(&self) -> MutexGuard<'_, Table> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ready(&self) -> MutexGuard<'_, VecDeque<Arc<Local>>> {
        self.ready.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// In a function of its own, so that the lock is not held while the job goes on.
    fn next_ready(&self) -> Option<Arc<Local>> {
        self.ready().pop_front()
    }

    /// Runs the first step of a job here, and keeps it if it is not done.
    pub(super) fn begin(self: &Arc<Self>, id: u64, mut job: Job) {
        let local = Arc::new(Local {
            id,
            calls: Arc::downgrade(self),
            state: AtomicU8::new(RUNNING),
            job: Mutex::default(),
        });
        let waker = Waker::from(local.clone());
        if job.as_mut().poll(&mut Context::from_waker(&waker)).is_ready() {
            local.state.store(GONE, Ordering::Release);
            return;
        }
        let mut running = self.running();
        if running.early.contains(&id) {
            drop(running);
            local.state.store(GONE, Ordering::Release);
            return discard(job); // taken back during its first step
        }
        *local.job() = Some(job);
        running.jobs.insert(id, Running::Here(local.clone()));
        drop(running);
        self.after_step(&local);
    }

    /// Gives a job to the runtime from the beginning.
    pub(super) fn spawn(self: &Arc<Self>, id: u64, mut job: Job) {
        job.as_mut().keep();
        // Entered before it can end, so that its end always finds the entry.
        let mut running = self.running();
        if running.early.contains(&id) {
            drop(running);
            return discard(job);
        }
        let task = self.runtime.spawn(job);
        running.jobs.insert(id, Running::Runtime(task.abort_handle()));
    }

    /// A step has ended without an end: sleeps, or goes on at once if it was woken meanwhile.
    fn after_step(self: &Arc<Self>, local: &Arc<Local>) {
        let slept = local.state.compare_exchange(RUNNING, IDLE, Ordering::AcqRel, Ordering::Acquire);
        if slept == Err(WOKEN)
            && local.state.compare_exchange(WOKEN, READY, Ordering::AcqRel, Ordering::Acquire).is_ok()
        {
            local.clone().schedule();
        }
    }

    /// Goes on with what became ready.
    pub(super) fn go_on(self: &Arc<Self>) {
        let mut steps = 0;
        loop {
            let Some(local) = self.next_ready() else { return };
            steps += 1;
            if steps > STEPS {
                self.to_runtime(&local);
                continue;
            }
            let Some(mut job) = local.job().take() else { continue };
            local.state.store(RUNNING, Ordering::Release);
            let waker = Waker::from(local.clone());
            if job.as_mut().poll(&mut Context::from_waker(&waker)).is_ready() {
                local.state.store(GONE, Ordering::Release);
                continue;
            }
            let running = self.running();
            if running.jobs.contains_key(&local.id) {
                *local.job() = Some(job);
                drop(running);
                self.after_step(&local);
            } else {
                drop(running);
                discard(job); // taken back while it ran
            }
        }
    }

    /// Nobody goes on here: what became ready goes to the runtime.
    pub(super) fn leave(&self) {
        while let Some(local) = self.next_ready() {
            self.to_runtime(&local);
        }
    }

    /// True if something became ready.
    pub(super) fn has_ready(&self) -> bool {
        !self.ready().is_empty()
    }

    fn to_runtime(&self, local: &Local) {
        let Some(job) = local.job().take() else { return };
        local.state.store(GONE, Ordering::Release);
        let mut running = self.running();
        if let Some(entry) = running.jobs.get_mut(&local.id) {
            *entry = Running::Runtime(self.runtime.spawn(job).abort_handle());
        } else {
            drop(running);
            discard(job);
        }
    }

    /// Takes a call back. True if it was still at work; then nobody else answers it.
    pub(super) fn cancel(&self, id: u64) -> bool {
        let mut running = self.running();
        let removed = running.jobs.remove(&id);
        if removed.is_none() {
            running.early.push_back(id);
            if running.early.len() > EARLY {
                running.early.pop_front();
            }
        }
        drop(running);
        match removed {
            None => false,
            Some(Running::Runtime(task)) => {
                task.abort();
                true
            }
            Some(Running::Here(local)) => {
                local.state.store(GONE, Ordering::Release);
                let job = local.job().take();
                job.into_iter().for_each(discard);
                true
            }
        }
    }

    /// The end of a job that had to wait: true if it was not taken back before.
    fn ended(&self, id: u64) -> bool {
        self.running().jobs.remove(&id).is_some()
    }
}

/// Drops a job, outside of all locks: destructors are the plugin's, and may panic.
fn discard(job: Job) {
    let _ = catch_unwind(AssertUnwindSafe(|| drop(job)));
}

/// A handler's future as a [`Job`]: answers the call with what it returns, with its panic, or not at all if it was taken back.
pub(super) struct Answering<F, A> {
    handler: Option<Pin<Box<F>>>,
    answer: Option<A>,
    id: u64,
    client: Arc<Client>,
    calls: Arc<Calls>,
    /// It had to wait, so it can be taken back.
    kept: bool,
}

impl<F, A> Answering<F, A>
where
    F: Future + Send + 'static,
    A: FnOnce(&Client, u64, F::Output) + Send + Unpin + 'static,
{
    pub(super) fn job(calls: &Arc<Calls>, client: &Arc<Client>, id: u64, handler: F, answer: A) -> Job {
        Box::pin(Self {
            handler: Some(Box::pin(handler)),
            answer: Some(answer),
            id,
            client: client.clone(),
            calls: calls.clone(),
            kept: false,
        })
    }
}

impl<F, A> Work for Answering<F, A>
where
    F: Future + Send + 'static,
    A: FnOnce(&Client, u64, F::Output) + Send + Unpin + 'static,
{
    fn keep(mut self: Pin<&mut Self>) {
        self.kept = true;
    }
}

impl<F, A> Future for Answering<F, A>
where
    F: Future + Send + 'static,
    A: FnOnce(&Client, u64, F::Output) + Send + Unpin + 'static,
{
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        let Some(handler) = this.handler.as_mut() else { return Poll::Ready(()) };
        let step = catch_unwind(AssertUnwindSafe(|| handler.as_mut().poll(context)));
        if matches!(step, Ok(Poll::Pending)) {
            this.kept = true;
            return Poll::Pending;
        }
        let handler = this.handler.take();
        let dropped = catch_unwind(AssertUnwindSafe(|| drop(handler)));
        if this.kept && !this.calls.ended(this.id) {
            return Poll::Ready(()); // taken back: already answered
        }
        match (step.and_then(|step| dropped.map(|()| step)), this.answer.take()) {
            (Ok(Poll::Ready(output)), Some(answer)) => answer(&this.client, this.id, output),
            (Err(panic), _) => this.client.fail(this.id, &Code::PluginCrashed, &panic_text(panic)),
            (Ok(_), _) => {}
        }
        Poll::Ready(())
    }
}
