//! What the rest of the node may do with a plugin: give it messages, call it, look at it, order it to start or stop. None of it
//! waits for the plugin unless it says so, and all of it works while the plugin is dead.

use super::denials::DenialBook;
use super::grants::Subject;
use super::image::Image;
use super::lifecycle::{Cause, State};
use super::link::{Caller, Counters};
use super::logs::LogBook;
use super::queue::{Delivery, Queue};
use super::terms::Terms;
use super::watchdog::Record;
use crate::config::Permission;
use bytes::Bytes;
use std::sync::Arc;
use std::time::Duration;
use thenodes::host::HostError;
use thenodes_ipc::launch::{LayerReport, Level, Registration};
use thenodes_ipc::{Code, Generation, PluginName};
use tokio::sync::{mpsc, watch};

/// What a plugin is doing, for status lists.
#[derive(Debug, Clone)]
pub struct Status {
    /// State.
    pub state: State,
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
    /// Milliseconds from the last death being seen to Ready again.
    pub last_recovery: Option<Duration>,
    /// Milliseconds from start to Ready.
    pub last_start: Option<Duration>,
    /// Starts so far.
    pub starts: u32,
}

/// What others may do with a plugin. Cheap to clone.
#[derive(Clone)]
pub struct Handle {
    /// Name.
    pub name: PluginName,
    /// The checked file.
    pub image: Arc<Image>,
    /// What it is given and held to.
    pub terms: Arc<Terms>,
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
    pub(super) caller: watch::Receiver<Option<Caller>>,
}

/// An order to the supervisor.
pub enum Command {
    /// Start it again.
    Restart,
    /// End it.
    Stop,
    /// This process went beyond its limits: end it for that reason.
    Exceeded(Generation, Cause),
}

impl Handle {
    /// Gives it a message, or keeps it. Never waits; what happens when too many wait is the queue's
    /// [`Overflow`](super::queue::Overflow).
    pub fn deliver(&self, message: Bytes) {
        self.queue.deliver(Delivery { body: message, ack: None, hold: None });
    }

    /// Tells the plugin something without waiting.
    pub fn notify(&self, method: &str, body: Bytes) {
        if let Some(caller) = self.caller.borrow().as_ref() {
            if !caller.notify(method, body) {
                Counters::count(&self.counters.dropped);
            }
        }
    }

    /// Calls the plugin. `UNAVAILABLE` with the state if it is not Ready.
    pub async fn call(
        &self,
        method: &str,
        body: impl Into<Bytes>,
        deadline: Duration,
    ) -> Result<Bytes, HostError> {
        let caller = self.caller.borrow().clone();
        match caller {
            Some(caller) => {
                caller.call(method, body, deadline).await.map_err(|failed| failed.into_error(method))
            }
            None => {
                let status = self.status.borrow();
                let mut text = format!("plugin {} is {}", self.name, status.state.word());
                if let Some(cause) = &status.last_death {
                    text.push_str(&format!("; last: {cause}"));
                }
                Err(HostError::new(Code::Unavailable, text))
            }
        }
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
        let registered = self.with_status(|status| status.registration.as_ref().map(|r| r.prompts.clone()));
        let may = |prompt: &String| {
            self.terms.grants.allows(Permission::CommandRegister, Subject::Prompt(prompt.as_str()))
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
}
