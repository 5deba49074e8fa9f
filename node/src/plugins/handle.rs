//! What the rest of the node may do with a plugin: give it messages, call it, look at it, order it to start or stop. None of it
//! waits for the plugin unless it says so, and all of it works while the plugin is dead.

use super::denials::DenialBook;
use super::grants::Subject;
use super::image::Image;
use super::lifecycle::{Cause, Desired, Life, State, Then};
use super::link::{self, Counters, Failed};
use super::logs::LogBook;
use super::metrics::{Figures, Method};
use super::queue::{Delivery, Hold, Overflow, Queue};
use super::supervisor::Answer;
use super::terms::Terms;
use super::usage::Runner;
use super::version::Version;
use super::watchdog::Record;
use super::way::{Door, Inside};
use super::why;
use crate::config::Permission;
use bytes::Bytes;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use thenodes::host::HostError;
use thenodes_ipc::launch::{LayerReport, Level, Registration};
use thenodes_ipc::{Code, Generation, PluginName};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{timeout_at, Instant};

/// A death, for people.
#[derive(Debug, Clone)]
pub struct Death {
    /// When.
    pub at: SystemTime,
    /// Which process.
    pub generation: Generation,
    /// Of which version.
    pub version: String,
    /// Why.
    pub cause: Cause,
}

/// What a plugin is doing, for status lists.
#[derive(Clone)]
pub struct Status {
    /// State.
    pub state: State,
    /// Since when.
    pub since: SystemTime,
    /// What the operator wants.
    pub desired: Desired,
    /// What runs, or will be started.
    pub version: Arc<Version>,
    /// Which process.
    pub generation: Generation,
    /// Pid of the runner's process tree in the node's namespace.
    pub pid: Option<u32>,
    /// The walls as measured.
    pub level: Option<Level>,
    /// The walls one by one.
    pub layers: Vec<LayerReport>,
    /// What the plugin said about itself.
    pub registration: Option<Registration>,
    /// Why the last process ended.
    pub last_death: Option<Cause>,
    /// The last deaths, oldest first.
    pub deaths: VecDeque<Death>,
    /// Deaths that counted in the breaker's window at the last change.
    pub recent_deaths: usize,
    /// Why it missed its last health probe, if it did.
    pub missed: Option<String>,
    /// Milliseconds from the last death being seen to Ready again.
    pub last_recovery: Option<Duration>,
    /// Milliseconds from start to Ready.
    pub last_start: Option<Duration>,
    /// Starts so far.
    pub starts: u32,
}

impl Status {
    pub(super) fn new(life: &Life, version: Arc<Version>) -> Status {
        Status {
            state: life.state.clone(),
            since: SystemTime::now(),
            desired: life.desired,
            version,
            generation: Generation(1),
            pid: None,
            level: None,
            layers: Vec::new(),
            registration: None,
            last_death: None,
            deaths: VecDeque::new(),
            recent_deaths: 0,
            missed: None,
            last_recovery: None,
            last_start: None,
            starts: life.starts,
        }
    }
}

/// What others may do with a plugin. Cheap to clone.
#[derive(Clone)]
pub struct Handle {
    /// Name.
    pub name: PluginName,
    /// Its log.
    pub logs: Arc<LogBook>,
    /// Its counters.
    pub counters: Arc<Counters>,
    /// What its walls refused.
    pub denials: Arc<DenialBook>,
    /// What the watchdog saw.
    pub record: Arc<Record>,
    /// Messages that wait for it.
    pub queue: Arc<Queue>,
    pub(super) commands: mpsc::Sender<Command>,
    pub(super) status: watch::Receiver<Status>,
    pub(super) door: watch::Receiver<Door>,
}

/// An order to the supervisor.
pub enum Command {
    /// Start it again.
    Restart,
    /// End it: the node ends.
    Stop,
    /// It is wanted from now on.
    Enable,
    /// It is not wanted any more.
    Disable,
    /// Forget its deaths, and start it if it was given up.
    Reset,
    /// Put this version in the place of the one that runs.
    Replace(Arc<Version>, Answer),
    /// This process went beyond its limits: end it for that reason.
    Exceeded(Generation, Cause),
}

/// Gives each of these plugins something, in this order. What the next one needs is fetched into the processor's caches while this one is
/// served: after a pause most of the time would be waiting for that.
pub fn to_each<'a>(plugins: &[&'a Handle], mut give: impl FnMut(&'a Handle)) {
    for (at, plugin) in plugins.iter().enumerate() {
        if let Some(next) = plugins.get(at + 1) {
            next.queue.soon();
        }
        give(plugin);
    }
}

impl Handle {
    /// Gives it a message, or keeps it. Never waits; what happens when too many wait is the queue's
    /// [`Overflow`].
    pub fn deliver(&self, message: Bytes) {
        self.queue.deliver(Delivery { body: message, ack: None, hold: None, given_up: None });
    }

    /// The same for several messages, with a hold on whoever sent them for as long as one of them waits; only where the queue's policy
    /// asks for one, and not for a plugin that may never take them.
    pub fn deliver_holding(&self, messages: impl Iterator<Item = Bytes>, hold: &Hold) {
        let holds = self.queue.overflow() == Overflow::BlockPeer
            && self.with_status(|status| {
                status.state.has_process() || matches!(status.state, State::Backoff { .. })
            });
        let hold = holds.then_some(hold);
        let delivery = |body| Delivery { body, ack: None, hold: hold.cloned(), given_up: None };
        self.queue.deliver_all(messages.map(delivery).collect());
    }

    /// The same, for a sender who wants to know that the plugin took it: the answer says so. Never waits itself.
    /// `given_up` takes it out of the queue again, as long as the plugin does not have it.
    pub fn deliver_acknowledged(
        &self,
        message: Bytes,
        given_up: Arc<AtomicBool>,
    ) -> oneshot::Receiver<link::Answer> {
        let (ack, answer) = oneshot::channel();
        let given_up = Some(given_up);
        self.queue.deliver(Delivery { body: message, ack: Some(ack), hold: None, given_up });
        answer
    }

    /// Tells the plugin something without waiting.
    pub fn notify(&self, method: &str, body: Bytes) {
        if let Door::Open(way) = &*self.door.borrow() {
            if !way.caller().notify(method, body) {
                Counters::count(&self.counters.dropped);
            }
        }
    }

    /// Calls the plugin. `UNAVAILABLE` with the state if it takes no calls.
    pub async fn call(
        &self,
        method: &str,
        body: impl Into<Bytes>,
        deadline: Duration,
    ) -> Result<Bytes, HostError> {
        let now = Instant::now();
        let until = now + deadline;
        // Who had to wait at the door looks at the clock again.
        let (inside, now) = match self.enter_now() {
            Some(inside) => (Some(inside), now),
            None => (self.enter(until).await, Instant::now()),
        };
        let Some(inside) = inside else {
            self.counters.calls.unanswered(Method::of(method), &Code::Unavailable);
            return Err(self.unavailable());
        };
        self.call_inside(&inside, method, body.into(), until, now).await.map_err(|(error, _)| error)
    }

    /// Calls a method that does no harm when it runs twice: if the process ends before it has answered, the call is made once more, at
    /// the next process, if there is one within the deadline. Nobody but the caller can know that of a method, and every
    /// other call is made once.
    pub async fn call_idempotent(
        &self,
        method: &str,
        body: impl Into<Bytes>,
        deadline: Duration,
    ) -> Result<Bytes, HostError> {
        let until = Instant::now() + deadline;
        let body = body.into();
        let Some(inside) = self.enter(until).await else {
            return Err(self.unavailable());
        };
        let first = self.call_inside(&inside, method, body.clone(), until, Instant::now()).await;
        let (error, gone) = match first {
            Ok(answer) => return Ok(answer),
            Err(failed) => failed,
        };
        let ended = inside.caller().generation();
        drop(inside); // nobody waits for us there
        if !gone {
            return Err(error);
        }
        let Some(inside) = self.enter_next(ended, until).await else { return Err(error) };
        self.call_inside(&inside, method, body, until, Instant::now()).await.map_err(|(error, _)| error)
    }

    /// One call. With the error: true if the process ended without an answer.
    async fn call_inside(
        &self,
        inside: &Inside,
        method: &str,
        body: Bytes,
        until: Instant,
        now: Instant,
    ) -> Result<Bytes, (HostError, bool)> {
        let left = until.saturating_duration_since(now).min(inside.call_timeout());
        let failed = match inside.caller().call_at(method, body, left, now).await {
            Ok(answer) => return Ok(answer),
            Err(failed) => failed,
        };
        match (&failed, inside.verdict()) {
            (Failed::Late, _) => inside.was_late(method),
            (Failed::Gone(_), Some(cause)) => {
                let text = why::replaced(&self.name, &self.status(), cause, &self.logs);
                return Err((HostError::new(Code::Unavailable, format!("{method}: {text}")), true));
            }
            (Failed::Gone(_) | Failed::Answered(_) | Failed::Unsendable(_), _) => {}
        }
        let gone = matches!(failed, Failed::Gone(_));
        Err((failed.into_error(method), gone))
    }

    /// Waits for the process after this one; `None` if it cannot come in time.
    async fn enter_next(&self, ended: Generation, until: Instant) -> Option<Inside> {
        let mut door = self.door.clone();
        let mut status = self.status.clone();
        let next =
            door.wait_for(|door| matches!(door, Door::Open(way) if way.caller().generation() != ended));
        // The status may still be that of the process that has ended, whose death is on its way to the supervisor.
        let hopeless = status.wait_for(|status| match &status.state {
            State::Untrusted | State::Available | State::Stopped => true,
            State::Backoff { until: start } => *start >= until.into_std(),
            State::Failed { probe } => probe.is_none_or(|probe| probe >= until.into_std()),
            State::Stopping { then } => matches!(then, Then::Stop | Then::Untrust),
            State::Loading | State::Initializing | State::Ready | State::Degraded => false,
        });
        tokio::select! {
            biased;
            door = timeout_at(until, next) => match &*door.ok()?.ok()? {
                Door::Open(way) => Some(way.enter()),
                Door::Closed | Door::Held => None,
            },
            _ = hopeless => None,
        }
    }

    /// Goes in by a door that is open.
    fn enter_now(&self) -> Option<Inside> {
        // While the door is borrowed nobody closes it: who is inside was counted before.
        match &*self.door.borrow() {
            Door::Open(way) => Some(way.enter()),
            Door::Closed | Door::Held => None,
        }
    }

    /// Goes in by the door as it stands; waits at one that is held.
    async fn enter(&self, until: Instant) -> Option<Inside> {
        // While the door is borrowed nobody closes it: who is inside was counted before.
        let now = |door: &Door| match door {
            Door::Open(way) => Some(Some(way.enter())),
            Door::Closed => Some(None),
            Door::Held => None,
        };
        if let Some(found) = now(&self.door.borrow()) {
            return found;
        }
        let mut door = self.door.clone();
        loop {
            let changed = timeout_at(until, door.wait_for(|door| !matches!(door, Door::Held))).await;
            match changed {
                Ok(Ok(door)) => {
                    if let Some(found) = now(&door) {
                        return found;
                    }
                }
                Ok(Err(_)) | Err(_) => return None,
            }
        }
    }

    fn unavailable(&self) -> HostError {
        let status = self.status.borrow();
        HostError::new(Code::Unavailable, why::unavailable(&self.name, &status, &self.logs))
    }

    /// Everything that is counted of it, with a look at its process. Blocks for some small reads of the kernel's.
    pub fn figures(&self) -> Figures {
        let (state, starts, pid) =
            self.with_status(|status| (status.state.word(), status.starts, status.pid));
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let counters = &self.counters;
        let (length, bytes) = self.queue.waiting();
        Figures {
            plugin: self.name.to_string(),
            state,
            restarts: u64::from(starts.saturating_sub(1)),
            deaths: counters.deaths.figures(),
            methods: counters.calls.figures(),
            panics: count(&counters.panics),
            requests: count(&counters.requests),
            denied: count(&counters.denied),
            refused: self.denials.total(),
            queue: (length as u64, bytes as u64),
            dropped: count(&counters.dropped),
            lost: count(&counters.lost),
            throttled: count(&counters.throttled),
            lines_dropped: self.logs.dropped(),
            usage: pid
                .and_then(Runner::below)
                .and_then(Runner::measure)
                .map(|sample| (sample.memory, sample.cpu)),
        }
    }

    /// The checked file of the version that runs.
    pub fn image(&self) -> Arc<Image> {
        self.status.borrow().version.image.clone()
    }

    /// What the version that runs is given and held to.
    pub fn terms(&self) -> Arc<Terms> {
        self.status.borrow().version.terms.clone()
    }

    /// What it is doing.
    pub fn status(&self) -> Status {
        self.status.borrow().clone()
    }

    /// The prompts that it registered and may have.
    pub fn prompts(&self) -> Vec<String> {
        self.split_prompts().0
    }

    /// The prompts that it registered and may not have.
    pub fn refused_prompts(&self) -> Vec<String> {
        self.split_prompts().1
    }

    fn split_prompts(&self) -> (Vec<String>, Vec<String>) {
        let terms = self.terms();
        let registered = self.with_status(|status| status.registration.as_ref().map(|r| r.prompts.clone()));
        let may = |prompt: &String| {
            terms.grants.allows(Permission::CommandRegister, Subject::Prompt(prompt.as_str()))
        };
        registered.unwrap_or_default().into_iter().partition(may)
    }

    /// Looks at what it is doing, without a copy.
    pub fn with_status<T>(&self, look: impl FnOnce(&Status) -> T) -> T {
        look(&self.status.borrow())
    }

    /// Waits until the status satisfies a condition; `None` when the plugin's task has ended.
    pub async fn wait(&self, condition: impl FnMut(&Status) -> bool) -> Option<Status> {
        let mut status = self.status.clone();
        let found = status.wait_for(condition).await.ok()?.clone();
        Some(found)
    }

    /// Starts it again.
    pub async fn restart(&self) {
        let _ = self.commands.send(Command::Restart).await;
    }

    /// Ends it, orderly if it can.
    pub async fn stop(&self) {
        let _ = self.commands.send(Command::Stop).await;
    }

    /// It is wanted, and starts if it does not run.
    pub async fn enable(&self) {
        let _ = self.commands.send(Command::Enable).await;
    }

    /// It is not wanted, and ends orderly.
    pub async fn disable(&self) {
        let _ = self.commands.send(Command::Disable).await;
    }

    /// Forgets its deaths, and starts it if it was given up.
    pub async fn reset(&self) {
        let _ = self.commands.send(Command::Reset).await;
    }

    /// Puts a version in the place of the one that runs, while calls go on. Says which version runs then.
    ///
    /// # Errors
    /// If the new version did not come up, in which case the old one goes on; or if something else is under way.
    pub async fn replace(&self, version: Arc<Version>) -> Result<String, HostError> {
        let (answer, answered) = oneshot::channel();
        let _ = self.commands.send(Command::Replace(version, answer)).await;
        answered.await.unwrap_or_else(|_| Err(self.unavailable()))
    }
}
