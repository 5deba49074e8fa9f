//! One task per plugin: feeds [`lifecycle`](super::lifecycle) with what its processes tell and its operator orders, and carries out
//! what follows. It owns life and death; nothing else starts or ends a runner. It never waits for a process: each of them is a
//! task of its own (`process`), and of what they say only the link's checked form arrives here.

mod hear;
mod host;
mod left;
mod messages;
mod outside;
mod probe;
mod process;
mod register;
mod stop;
mod upgrade;

pub(crate) use self::upgrade::Answer;

use self::left::Kept;
use self::process::{begin, News, Order, Running, Shared};
use self::stop::Farewell;
use self::upgrade::Upgrade;
use super::handle::{Command, Handle, Status};
use super::image::Image;
use super::lifecycle::{Action, Cause, Desired, Event, Life, State, Then};
use super::link::Counters;
use super::logs::LogBook;
use super::queue::Queue;
use super::shelf::Shelf;
use super::spare::Spare;
use super::terms::Terms;
use super::version::Version;
use super::watchdog::Watchdog;
use super::way::Door;
use crate::config::{Required, Supervision, Transport};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Instant, SystemTime};
use thenodes::host::{Host, NodeInfo};
use thenodes_ipc::launch::ProcessLimits;
use thenodes_ipc::{Generation, PluginName};
use tokio::sync::{mpsc, watch};

/// Deaths that are kept for people.
const DEATHS_KEPT: usize = 8;

/// How plugins of this node are run.
#[derive(Debug, Clone)]
pub struct Policy {
    /// The runner program.
    pub runner: PathBuf,
    /// Limits that no plugin goes beyond; its own stand in its [`Terms`].
    pub limits: ProcessLimits,
    /// What looks at plugins from outside.
    pub watchdog: Watchdog,
    /// Lowest level.
    pub required: Required,
    /// First of the uids that a root node gives to its plugins.
    pub uid_base: u32,
    /// How frames travel.
    pub transport: Transport,
    /// Keeps a runner ready for the next start.
    pub spare: Option<Arc<Spare>>,
}

/// A change in a plugin's life, for the event log.
#[derive(Debug, Clone)]
pub struct Change {
    /// Which plugin.
    pub plugin: PluginName,
    /// A stable word: `ready`, `died`, `failed`, `degraded`, `upgraded`, ...
    pub action: &'static str,
    /// For people.
    pub detail: String,
    /// True if somebody should look.
    pub bad: bool,
}

/// Who hears about changes.
pub trait Observer: Send + Sync + 'static {
    /// Something changed.
    fn changed(&self, change: Change);
}

/// Makes the node as one process of a plugin sees it. What the process opens there (streams) is closed when its link ends
/// and this is dropped, so that nothing passes on to the next process.
pub type HostMaker = Arc<dyn Fn() -> Arc<dyn Host> + Send + Sync>;

/// How a plugin is watched over, and where its versions are kept. The default is what nobody configured, and nothing kept.
#[derive(Clone, Default)]
pub struct Keeping {
    /// The operator's numbers.
    pub supervision: Supervision,
    /// What the operator wanted when the node last ran.
    pub desired: Desired,
    /// Versions and wishes on disk.
    pub shelf: Option<Arc<Shelf>>,
    /// The text of the first version's manifest.
    pub manifest: Option<Arc<str>>,
}

/// What the supervisor waits for besides its own plugin.
pub struct Surroundings {
    /// How to run it.
    pub policy: Arc<Policy>,
    /// What this plugin is given and held to.
    pub terms: Arc<Terms>,
    /// Makes the node for each process, already wrapped in this plugin's grants.
    pub host: HostMaker,
    /// Who hears about changes.
    pub observer: Arc<dyn Observer>,
    /// What the plugin is told in `load`; known once the node has its identity.
    pub info: watch::Receiver<Option<Arc<NodeInfo>>>,
    /// A number among the plugins of this node, for the uid.
    pub slot: u32,
    /// How it is watched over.
    pub keeping: Keeping,
}

/// Starts the task of one plugin. It runs until [`Handle::stop`] and all handles are gone.
pub fn supervise(image: Arc<Image>, around: Surroundings) -> Handle {
    let Surroundings { policy, terms, host, observer, info, slot, keeping } = around;
    let (commands_in, commands) = mpsc::channel(16);
    let (life, actions) = Life::begin(keeping.desired, keeping.supervision.health);
    let name = image.name.clone();
    let log_rate = u32::try_from(terms.budget.log_lines_per_s).unwrap_or(u32::MAX);
    let overflow = terms.queue;
    let version = Arc::new(Version { image, terms, manifest: keeping.manifest.clone(), host });
    let (status_out, status) = watch::channel(Status::new(&life, version.clone()));
    let (door_out, door) = watch::channel(Door::Closed);
    let (logs, counters) = (Arc::new(LogBook::new(name.clone(), log_rate)), Arc::<Counters>::default());
    let queue = Arc::new(Queue::new(overflow, counters.clone(), logs.clone()));
    let shared = Arc::new(Shared {
        name: name.clone(),
        logs,
        counters,
        denials: Arc::default(),
        record: Arc::default(),
        policy,
        observer,
        info,
        slot,
        health: keeping.supervision.health,
        orders: commands_in.downgrade(),
        queue,
    });
    let handle = Handle {
        name,
        logs: shared.logs.clone(),
        counters: shared.counters.clone(),
        denials: shared.denials.clone(),
        record: shared.record.clone(),
        queue: shared.queue.clone(),
        commands: commands_in,
        status,
        door,
    };
    // Room for what a process can tell between two looks; its task waits when this is full, and nobody else.
    let (news_in, news) = mpsc::channel(64);
    let supervisor = Supervisor {
        shared,
        keeping,
        life,
        version,
        previous: None,
        probation_ends: None,
        current: None,
        upgrade: None,
        leaving: Vec::new(),
        kept: Kept::default(),
        generation: 0,
        died_at: None,
        named: None,
        status: status_out,
        door: door_out,
        news_in,
        news,
        commands,
        commands_open: true,
    };
    tokio::spawn(supervisor.run(actions));
    handle
}

struct Supervisor {
    shared: Arc<Shared>,
    keeping: Keeping,
    life: Life,
    /// What is started next.
    version: Arc<Version>,
    /// What a death within the probation brings back.
    previous: Option<Arc<Version>>,
    probation_ends: Option<Instant>,
    /// The process that the life is about.
    current: Option<Running>,
    /// A new version on its way.
    upgrade: Option<Upgrade>,
    /// Processes whose place was taken, finishing.
    leaving: Vec<Running>,
    kept: Kept,
    generation: u32,
    died_at: Option<Instant>,
    /// The last process whose death was named.
    named: Option<Generation>,
    status: watch::Sender<Status>,
    door: watch::Sender<Door>,
    news_in: mpsc::Sender<(Generation, News)>,
    news: mpsc::Receiver<(Generation, News)>,
    commands: mpsc::Receiver<Command>,
    commands_open: bool,
}

impl Supervisor {
    async fn run(mut self, actions: Vec<Action>) {
        self.carry_out(&actions);
        while self.commands_open || self.lives() {
            let (timer, probation) = (self.life.timer(), self.probation_ends);
            tokio::select! {
                Some((generation, news)) = self.news.recv() => self.hear(generation, news).await,
                command = self.commands.recv(), if self.commands_open => self.obey(command).await,
                () = sleep_until(timer) => self.step(Event::TimerFired),
                () = sleep_until(probation) => (self.previous, self.probation_ends) = (None, None),
            }
        }
    }

    fn lives(&self) -> bool {
        self.current.is_some() || self.upgrade.is_some() || !self.leaving.is_empty()
    }

    /// One event for the pure function, what follows from it, and the news for everybody.
    fn step(&mut self, event: Event) {
        let (life, actions) = self.life.clone().on(event, Instant::now());
        let before = std::mem::replace(&mut self.life, life).state;
        self.carry_out(&actions);
        let state = &self.life.state;
        // Whoever waits at the door waits for a start; where none follows, there is nothing to wait for.
        let hopeless =
            !state.has_process() || matches!(state, State::Stopping { then: Then::Stop | Then::Untrust });
        if hopeless {
            self.door.send_if_modified(|door| {
                let held = matches!(door, Door::Held);
                if held {
                    *door = Door::Closed;
                }
                held
            });
        }
        if matches!(state, State::Untrusted | State::Available | State::Stopped | State::Failed { .. }) {
            self.shared.queue.let_go();
        }
        match (&before, &self.life.state) {
            (State::Ready, State::Degraded) => {
                let detail = "it missed its health probes; it is replaced if this goes on".to_owned();
                self.shared.change("degraded", detail, true);
            }
            (State::Degraded, State::Ready) => {
                self.shared.change("recovered", "it is well again".into(), false)
            }
            _ => {}
        }
        let changed = before.word() != self.life.state.word();
        let (life, version, now) = (self.life.clone(), self.version.clone(), Instant::now());
        self.status.send_modify(|status| {
            if changed {
                status.since = SystemTime::now();
            }
            status.state = life.state.clone();
            status.desired = life.desired;
            status.starts = life.starts;
            status.recent_deaths = life.recent_deaths(now);
            status.version = version;
        });
    }

    fn carry_out(&mut self, actions: &[Action]) {
        for action in actions {
            match action {
                Action::RollBack => self.roll_back(),
                Action::Start => {
                    let running = self.begin(self.version.clone(), false);
                    self.current = Some(running);
                    self.show_process();
                }
                Action::Stop => {
                    let hand_over = self.life.state == State::Stopping { then: Then::HandOver };
                    self.door.send_replace(if hand_over { Door::Held } else { Door::Closed });
                    if let Some(current) = &self.current {
                        let farewell = if hand_over { Farewell::HAND_OVER } else { Farewell::STOP };
                        current.tell(Order::Stop(farewell));
                    }
                }
                Action::Replace => {
                    let why = self.status.borrow().missed.clone().unwrap_or_default();
                    if let Some(current) = &self.current {
                        current.tell(Order::Kill(Cause::Health(why)));
                    }
                }
            }
        }
    }

    fn begin(&mut self, version: Arc<Version>, proving: bool) -> Running {
        self.generation = self.generation.saturating_add(1);
        begin(self.shared.clone(), version, Generation(self.generation), proving, self.news_in.clone())
    }

    /// Shows what is known of the current process.
    fn show_process(&mut self) {
        let Some(current) = &self.current else { return };
        self.status.send_modify(|status| {
            status.generation = current.generation;
            status.pid = current.pid;
            status.level = current.walls.as_ref().map(|(level, _)| level.clone());
            status.layers = current.walls.as_ref().map(|(_, layers)| layers.clone()).unwrap_or_default();
            // What the last one said holds until the next one has said something.
            if current.registration.is_some() {
                status.registration = current.registration.clone();
            }
        });
    }

    async fn obey(&mut self, command: Option<Command>) {
        match command {
            Some(Command::Restart) => {
                if !self.life.state.has_process() && self.life.desired == Desired::Enabled {
                    self.shared.change("starting", "an operator asked".into(), false);
                }
                self.step(Event::Restart);
            }
            Some(Command::Stop) => {
                self.give_up_upgrade("the node ends");
                self.step(Event::Stop);
            }
            Some(Command::Enable) => self.step(Event::Enable),
            Some(Command::Disable) => {
                self.give_up_upgrade("it was disabled");
                self.step(Event::Disable);
            }
            Some(Command::Reset) => self.step(Event::Reset),
            Some(Command::Replace(version, answer)) => self.replace(version, answer).await,
            Some(Command::Exceeded(generation, cause)) => {
                let upgrade = self.upgrade.iter().filter_map(|upgrade| upgrade.candidate.as_ref());
                let all = self.current.iter().chain(upgrade).chain(&self.leaving);
                // About a process that is gone it is no news.
                for running in all.filter(|running| running.generation == generation) {
                    running.tell(Order::Kill(cause.clone()));
                }
            }
            None => {
                self.commands_open = false;
                self.give_up_upgrade("nobody holds it any more");
                self.step(Event::Stop);
            }
        }
    }
}

/// Uid of a plugin when the node is root: one per plugin, far from real users.
pub fn run_as(base: u32, slot: u32) -> Option<u32> {
    nix::unistd::getuid().is_root().then(|| base.saturating_add(slot))
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) if at <= Instant::now() => {} // "at once" is not the runtime's next millisecond
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}
