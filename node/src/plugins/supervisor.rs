//! One task per plugin: feeds [`lifecycle`](super::lifecycle), carries out its actions, and moves messages from the plugin's
//! bounded queue to its process. It owns life and death; nothing else starts or ends a runner.

use super::cause::{self, Seen};
use super::cgroup::Leaf;
use super::denials::{self, DenialBook};
use super::handle::{Command, Handle, Status};
use super::image::Image;
use super::lifecycle::{Action, Cause, Event, Life, State};
use super::link::{Caller, Counters, Ended, Failed, Greeting, Link};
use super::logs::{follow, LogBook};
use super::process::{self, Order, Started};
use super::queue::{Overflow, Queue};
use super::rate::LinkRates;
use super::terms::Terms;
use super::watchdog::{Limits, Record, Subject, Ticket, Watchdog};
use crate::config::Required;
use crate::text::printable;
use std::future::Future;
use std::hash::{BuildHasher, RandomState};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::pin::pin;
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::{Duration, Instant};
use thenodes::host::{Host, HostError, LogLine, NodeInfo, Notice, Request, Response};
use thenodes_ipc::launch::{Confinement, Level, ProcessLimits, Registration};
use thenodes_ipc::{limits, pack, Generation, PluginName};
use tokio::net::unix::pipe::Receiver;
use tokio::process::Child;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

/// Events about refusals that one plugin may cause in a second; its log and its book have them all.
const DENIALS_SHOWN: u32 = 5;

/// How long a killed process may take to be gone before it is left to the kernel.
const KILL_PATIENCE: Duration = Duration::from_secs(2);

/// How often a plugin with open calls is looked at.
const LOOK: Duration = Duration::from_millis(500);

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
}

/// A change in a plugin's life, for the event log.
#[derive(Debug, Clone)]
pub struct Change {
    /// Which plugin.
    pub plugin: PluginName,
    /// A stable word: `ready`, `died`, `restarting`, `failed`, ...
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
}

/// Starts the task of one plugin. It runs until [`Handle::stop`] and all handles are gone.
pub fn supervise(image: Arc<Image>, around: Surroundings) -> Handle {
    let (commands_in, commands) = mpsc::channel(16);
    let (life, actions) = Life::begin();
    let (status_out, status) = watch::channel(Status {
        state: life.state.clone(),
        generation: Generation(1),
        pid: None,
        level: None,
        layers: Vec::new(),
        registration: None,
        last_death: None,
        last_recovery: None,
        last_start: None,
        starts: 1,
    });
    let (caller_out, caller) = watch::channel(None);
    let log_rate = u32::try_from(around.terms.budget.log_lines_per_s).unwrap_or(u32::MAX);
    let orders = commands_in.downgrade();
    let (logs, counters) = (Arc::new(LogBook::new(image.name.clone(), log_rate)), Arc::<Counters>::default());
    let queue = Arc::new(Queue::new(Overflow::default(), counters.clone(), logs.clone()));
    let handle = Handle {
        name: image.name.clone(),
        logs,
        counters,
        denials: Arc::default(),
        record: Arc::default(),
        image,
        terms: around.terms.clone(),
        queue: queue.clone(),
        commands: commands_in,
        status,
        caller,
    };
    let supervisor = Supervisor {
        name: handle.name.clone(),
        image: handle.image.clone(),
        logs: handle.logs.clone(),
        counters: handle.counters.clone(),
        denials: handle.denials.clone(),
        record: handle.record.clone(),
        orders,
        exceeded: None,
        around,
        life,
        status: status_out,
        caller: caller_out,
        queue,
        commands,
        commands_open: true,
        died_at: None,
    };
    tokio::spawn(supervisor.run(actions));
    handle
}

struct Supervisor {
    name: PluginName,
    image: Arc<Image>,
    logs: Arc<LogBook>,
    counters: Arc<Counters>,
    denials: Arc<DenialBook>,
    record: Arc<Record>,
    /// The own commands, for whoever watches the process.
    orders: mpsc::WeakSender<Command>,
    /// Why the watchdog wants this process to end.
    exceeded: Option<Cause>,
    around: Surroundings,
    life: Life,
    status: watch::Sender<Status>,
    caller: watch::Sender<Option<Caller>>,
    queue: Arc<Queue>,
    commands: mpsc::Receiver<Command>,
    commands_open: bool,
    died_at: Option<Instant>,
}

impl Supervisor {
    async fn run(mut self, mut actions: Vec<Action>) {
        loop {
            if actions.contains(&Action::Start) {
                let cause = self.one_process().await;
                actions = self.died(cause);
                continue;
            }
            // No process now: wait for a timer or an order.
            let timer = self.life.timer();
            let event = tokio::select! {
                () = sleep_until(timer) => Event::TimerFired,
                command = self.commands.recv(), if self.commands_open => match command {
                    Some(Command::Restart) => Event::Restart,
                    Some(Command::Stop) => Event::Stop,
                    Some(Command::Exceeded(..)) => continue, // it is dead already
                    None => return,
                },
            };
            if matches!(event, Event::Restart) {
                self.change("starting", "an operator asked".into(), false);
            }
            actions = self.step(event);
        }
    }

    fn step(&mut self, event: Event) -> Vec<Action> {
        let (life, actions) = self.life.clone().on(event, Instant::now());
        self.life = life;
        let (state, starts) = (self.life.state.clone(), self.life.starts);
        self.status.send_modify(|status| {
            status.state = state;
            status.starts = starts;
        });
        actions
    }

    fn died(&mut self, cause: Cause) -> Vec<Action> {
        self.caller.send_replace(None);
        let asked = self.life.state == State::Stopping;
        let cause = if asked { Cause::Asked } else { cause };
        let generation = self.status.borrow().generation;
        if asked {
            self.change("stopped", format!("generation {generation} ended"), false);
        } else {
            self.died_at = Some(Instant::now());
            self.logs.add_own(generation.0, "error", &format!("died: {cause}"));
        }
        self.status.send_modify(|status| {
            status.pid = None;
            if !asked {
                status.last_death = Some(cause.clone());
            }
        });
        // Chance only spreads restarts of many plugins; it needs no quality.
        let jitter = (RandomState::new().hash_one(0u8) % 1000) as f64 / 1000.0;
        let actions = self.step(Event::Died { cause: cause.clone(), jitter });
        if !asked {
            let next = match &self.life.state {
                State::Backoff { until } => {
                    format!("restart in {} ms", until.saturating_duration_since(Instant::now()).as_millis())
                }
                State::Failed { probe: Some(_) } => format!(
                    "{} deaths in {} s: given up for now, one try in {} s; `thenodes plugin restart {}` tries at once",
                    self.life.recent_deaths(),
                    super::lifecycle::WINDOW.as_secs(),
                    super::lifecycle::MAX_DELAY.as_secs(),
                    self.name
                ),
                _ if matches!(cause, Cause::Permissions(_)) => {
                    "not started; manifests and configuration are read when the node starts".into()
                }
                _ => format!("not restarted; mend it and `thenodes plugin restart {}`", self.name),
            };
            let action = if matches!(self.life.state, State::Failed { .. }) { "failed" } else { "died" };
            let detail = format!("generation={generation} cause={} {cause}; {next}", cause.word());
            self.change(action, detail, true);
        }
        actions
    }

    fn change(&self, action: &'static str, detail: String, bad: bool) {
        self.around.observer.changed(Change { plugin: self.name.clone(), action, detail, bad });
    }

    /// One process from start to end. When this returns its warden has ended, and the kernel is ending the rest with it.
    async fn one_process(&mut self) -> Cause {
        let begun = Instant::now();
        let generation = Generation(self.life.starts);
        self.status.send_modify(|status| {
            status.generation = generation;
            status.level = None;
            status.layers = Vec::new();
        });
        if let Some(why) = &self.around.terms.refusal {
            return Cause::Permissions(why.clone());
        }
        let policy = self.around.policy.clone();
        let order = Order {
            runner: &policy.runner,
            image: Some(&self.image),
            plugin: self.name.clone(),
            generation,
            limits: self.around.terms.process,
            run_as: run_as(policy.uid_base, self.around.slot),
            sandbox: self.around.terms.sandbox.clone(),
        };
        let leaf = self.leaf(&policy).await;
        let (Started { child, stream, stdout, stderr, report }, leaf) =
            match process::start(&order, leaf).await {
                Ok(started) => started,
                Err(error) => return Cause::Spawn(error.to_string()),
            };
        let leaf = Arc::new(leaf);
        let ticket = self.watch(child.id(), &leaf, generation);
        self.status.send_modify(|status| status.pid = child.id());
        let mut pipes = JoinSet::new();
        let logs = self.logs.clone();
        pipes.spawn(follow(stdout, logs, generation.0, "info", "stdout"));
        let logs = self.logs.clone();
        pipes.spawn(follow(stderr, logs, generation.0, "warn", "stderr"));
        pipes.spawn(self.follow_denials(report, generation));

        let greeting = Greeting::new(stream);
        let ended = match self.start_up(greeting, generation).await {
            Ok(link) => self.serve(link, generation, begun).await,
            Err(ended) => ended,
        };
        // The link is closed now; an honest runner ends by itself, and the kernel ends the others. Both take processor time.
        leaf.lift_cpu();
        let cause = end_process(child, ended).await;
        drop(ticket);
        let cause = self.exceeded.take().unwrap_or_else(|| {
            let seen = Seen::of(&leaf, &self.record);
            let (cause, note) = cause::refine(cause, &seen, &self.around.terms.process);
            note.into_iter().for_each(|note| self.logs.add_own(generation.0, "warn", &note));
            cause
        });
        // Pipes end with the last process of the tree; what was printed before the death is worth a moment.
        let _ = tokio::time::timeout(Duration::from_millis(200), async {
            while pipes.join_next().await.is_some() {}
        })
        .await;
        // Nobody else holds it any more; if somebody did, the last one would remove it.
        if let Some(leaf) = Arc::into_inner(leaf) {
            leaf.end().await;
        }
        match (cause, self.denials.kill_of(generation)) {
            (Cause::Signal(_), Some(kill)) => Cause::Denied(kill.to_string()),
            (cause, _) => cause,
        }
    }

    /// Carries the warden's records into the book, the log and, not too often, the events.
    fn follow_denials(&self, report: Receiver, generation: Generation) -> impl Future<Output = ()> + 'static {
        let (book, logs, status) = (self.denials.clone(), self.logs.clone(), self.status.subscribe());
        let (observer, plugin) = (self.around.observer.clone(), self.name.clone());
        async move {
            let mut shown = Throttle { most: DENIALS_SHOWN, since: None, count: 0 };
            let loading = || matches!(status.borrow().state, State::Initializing);
            let tell = |entry: &denials::Entry| {
                logs.add_own(generation.0, "warn", &format!("denied: {entry}"));
                // The record of an end is told with the end.
                if !entry.killed && shown.may() {
                    let detail = format!("generation={generation} {entry}");
                    observer.changed(Change { plugin: plugin.clone(), action: "denied", detail, bad: false });
                }
            };
            denials::follow(report, generation, &book, loading, tell).await;
        }
    }

    /// A control group for the next process, as far as there are any.
    async fn leaf(&self, policy: &Policy) -> Leaf {
        let (cgroups, runner) = (policy.watchdog.cgroups().clone(), policy.runner.clone());
        let kept = tokio::task::spawn_blocking(move || cgroups.keep_clean(&runner)).await;
        if let Ok(Err(why)) = kept {
            let detail = format!("{why}; control groups of a killed node stay until the next node starts");
            self.change("no_janitor", detail, true);
        }
        let needed = self.image.needed.iter().map(|(_, file)| file.size).sum::<u64>();
        let files = self.image.library.size + needed;
        let terms = &self.around.terms;
        policy.watchdog.cgroups().leaf(&self.name, &terms.process, terms.budget.cpu_percent, files)
    }

    /// Has the process looked at until the ticket is dropped.
    fn watch(&self, warden: Option<u32>, leaf: &Arc<Leaf>, generation: Generation) -> Option<Ticket> {
        for problem in leaf.problems() {
            let text = format!("control group: {problem}; rlimits and the watchdog hold that limit");
            self.logs.add_own(generation.0, "warn", &text);
        }
        let (policy, terms) = (&self.around.policy, &self.around.terms);
        Some(
            policy.watchdog.watch(Subject {
                plugin: self.name.clone(),
                generation,
                warden: warden?,
                places: terms
                    .sandbox
                    .paths
                    .iter()
                    .filter(|path| path.write)
                    .map(|path| path.path.clone().into())
                    .collect(),
                limits: Limits { process: terms.process, budget: terms.budget },
                leaf: leaf.clone(),
                record: self.record.clone(),
                denials: self.denials.clone(),
                logs: self.logs.clone(),
                counters: self.counters.clone(),
                observer: self.around.observer.clone(),
                commands: self.orders.clone(),
            }),
        )
    }

    /// From `hello` to a registered plugin, while orders to stop are heard.
    async fn start_up(&mut self, mut greeting: Greeting, generation: Generation) -> Result<Link, Ended> {
        let confinement = self.or_stop(greeting.confined()).await?;
        let level = self.note_walls(&confinement);
        let required = self.around.policy.required;
        if !required.accepts(&level) {
            return Err(Ended::Because(Cause::Level { level, required: required.word().into() }));
        }
        let registration = check_registration(self.or_stop(greeting.registered()).await?)
            .map_err(|what| Ended::Because(Cause::Violation(what)))?;
        self.status.send_modify(|status| status.registration = Some(registration));
        self.step(Event::Registered);
        let host = Arc::new(PluginHost { inner: (self.around.host)(), logs: self.logs.clone(), generation });
        let rates = LinkRates::from(&self.around.terms.budget);
        Ok(greeting.run(generation, host, self.counters.clone(), rates))
    }

    /// Waits for a step of the start, or ends it when an operator says so.
    async fn or_stop<T>(
        &mut self,
        step: impl std::future::Future<Output = Result<T, Ended>>,
    ) -> Result<T, Ended> {
        let mut step = pin!(step);
        loop {
            tokio::select! {
                done = &mut step => return done,
                command = self.commands.recv(), if self.commands_open => {
                    if self.take_order(command) {
                        return Err(Ended::Because(Cause::Asked));
                    }
                }
            }
        }
    }

    /// Hears an order while a process lives; true if it has to end now.
    fn take_order(&mut self, command: Option<Command>) -> bool {
        let event = match command {
            Some(Command::Restart) => Event::Restart,
            Some(Command::Stop) => Event::Stop,
            Some(Command::Exceeded(generation, cause)) => {
                // About a process that has been replaced meanwhile it is no news.
                if generation == self.status.borrow().generation {
                    self.exceeded = Some(cause);
                }
                return self.exceeded.is_some();
            }
            None => {
                self.commands_open = false;
                Event::Stop
            }
        };
        self.step(event).contains(&Action::Stop)
    }

    fn note_walls(&self, confinement: &Confinement) -> Level {
        let level = confinement.level();
        self.status.send_modify(|status| {
            status.level = Some(level.clone());
            status.layers = confinement.layers.clone();
            for layer in &mut status.layers {
                layer.detail = printable(&layer.detail, 500);
            }
        });
        level
    }

    /// `load`, then messages until the link ends or somebody wants it to.
    async fn serve(&mut self, mut link: Link, generation: Generation, begun: Instant) -> Ended {
        let caller = link.caller().clone();
        // The node may still be finding out who it is; that wait is bounded by the node's own start.
        let mut info = self.around.info.clone();
        let known = async {
            match info.wait_for(Option::is_some).await {
                Ok(info) => info.clone(),
                Err(_) => None,
            }
        };
        let mut known = pin!(known);
        let info = loop {
            tokio::select! {
                info = &mut known => break info,
                ended = link.ended() => return ended,
                command = self.commands.recv(), if self.commands_open => {
                    if self.take_order(command) {
                        return Ended::Because(Cause::Asked);
                    }
                }
            }
        };
        let Some(info) = info else { return Ended::Because(Cause::Asked) };
        let mine = self.around.terms.info(&info);
        let body = pack::encode(&mine).unwrap_or_default();
        let mut load = pin!(caller.call("load", body, limits::LOAD_DEADLINE));
        let loaded = loop {
            tokio::select! {
                loaded = &mut load => break loaded,
                ended = link.ended() => return ended,
                command = self.commands.recv(), if self.commands_open => {
                    if self.take_order(command) {
                        return Ended::Because(Cause::Asked);
                    }
                }
            }
        };
        match loaded {
            Ok(_) => {}
            Err(Failed::Late) => return Ended::Because(Cause::Hang("on_load".into())),
            Err(Failed::Answered(error)) => {
                return Ended::Because(Cause::Load(printable(&error.message, 500)))
            }
            Err(Failed::Gone(_)) => return link.ended().await,
        }
        // First the way in, then the word that it is open: whoever sees Ready may call.
        self.caller.send_replace(Some(caller.clone()));
        self.step(Event::Loaded);
        let (took, recovered) = (begun.elapsed(), self.died_at.take().map(|at| at.elapsed()));
        self.status.send_modify(|status| {
            status.last_start = Some(took);
            if recovered.is_some() {
                status.last_recovery = recovered;
            }
        });
        let level = self.status.borrow().level.clone();
        let level = level.map_or_else(String::new, |level| level.to_string());
        let mut detail = format!("generation={generation} level={level} start_ms={}", took.as_millis());
        if let Some(recovered) = recovered {
            detail.push_str(&format!(" recovered_ms={}", recovered.as_millis()));
        }
        self.change("ready", detail, false);
        self.messages(&mut link, &caller).await
    }

    /// Has the queue fed to the plugin until the link ends or somebody wants it to, and finds a plugin that no longer answers.
    async fn messages(&mut self, link: &mut Link, caller: &Caller) -> Ended {
        link.feed(&self.queue);
        // Handlers run one after the other, so a message may wait for those before it: what counts is that some answer comes.
        let patience = limits::CALL_DEADLINE + limits::CANCEL_GRACE;
        loop {
            // An idle plugin is not looked at; a busy one is now and then.
            let look = async {
                caller.becomes_busy().await;
                tokio::time::sleep(LOOK).await;
            };
            tokio::select! {
                ended = link.ended() => return ended,
                command = self.commands.recv(), if self.commands_open => {
                    if self.take_order(command) {
                        self.caller.send_replace(None);
                        let stop = caller.call("stop", Vec::new(), limits::STOP_DEADLINE);
                        tokio::select! {
                            _ = stop => {}
                            _ = link.ended() => {}
                        }
                        return Ended::Because(Cause::Asked);
                    }
                }
                () = look => {
                    if caller.stalled().is_some_and(|stalled| stalled.messages >= patience) {
                        return Ended::Because(Cause::Hang("on_message".into()));
                    }
                }
            }
        }
    }
}

/// So many a second, and no more.
struct Throttle {
    most: u32,
    since: Option<Instant>,
    count: u32,
}

impl Throttle {
    fn may(&mut self) -> bool {
        if self.since.is_none_or(|since| since.elapsed() >= Duration::from_secs(1)) {
            (self.since, self.count) = (Some(Instant::now()), 0);
        }
        self.count = self.count.saturating_add(1);
        self.count <= self.most
    }
}

/// The node as the link shows it to one process: log lines stay here, everything else goes to the granted host.
struct PluginHost {
    inner: Arc<dyn Host>,
    logs: Arc<LogBook>,
    generation: Generation,
}

#[async_trait::async_trait]
impl Host for PluginHost {
    async fn call(&self, request: Request) -> Result<Response, HostError> {
        self.inner.call(request).await
    }

    fn notify(&self, notice: Notice) {
        match notice {
            Notice::Log(LogLine { level, target, text }) => {
                // The plugin's own word for where it speaks must not look like one of ours, in no alphabet.
                self.logs.add(self.generation.0, &level, &format!("log {target}"), &text);
            }
            Notice::Emit(_) | Notice::SubscribeEvents | Notice::CloseStream(_) => self.inner.notify(notice),
        }
    }
}

/// Uid of a plugin when the node is root: one per plugin, far from real users.
pub fn run_as(base: u32, slot: u32) -> Option<u32> {
    nix::unistd::getuid().is_root().then(|| base.saturating_add(slot))
}

/// Words of the root prompt.
const RESERVED_PROMPTS: [&str; 10] =
    ["version", "about", "help", "peers", "status", "plugins", "trust", "shell", "exit", "quit"];

/// Checks what a plugin says about itself.
fn check_registration(mut registration: Registration) -> Result<Registration, String> {
    if registration.prompts.len() > 16
        || registration.extension_kinds.as_ref().is_some_and(|kinds| kinds.len() > 64)
    {
        return Err("a registration with too many prompts or kinds".into());
    }
    let plain = |text: &str| (1..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic());
    // The node's own words at the prompt are not a plugin's to take.
    registration.prompts.retain(|prompt| !RESERVED_PROMPTS.contains(&prompt.trim_start_matches('/')));
    if let Some(prompt) = registration.prompts.iter().find(|prompt| !plain(prompt)) {
        return Err(format!(
            "a prompt prefix {:?}; it has 1 to 64 printable characters and no space",
            printable(prompt, 64)
        ));
    }
    if registration.config_defaults.len() > 64 * 1024 {
        return Err("configuration defaults of more than 64 KiB".into());
    }
    registration.id = printable(&registration.id, 128);
    registration.sdk = printable(&registration.sdk, 128);
    Ok(registration)
}

/// Waits for the end of the process tree, or makes it, and finds the true cause.
async fn end_process(mut child: Child, ended: Ended) -> Cause {
    let grace = match ended {
        Ended::Closed => Duration::from_secs(1), // the wait status follows the closed link at once
        Ended::Because(Cause::Asked) => Duration::from_millis(500),
        Ended::Because(_) => Duration::ZERO,
    };
    let status = match tokio::time::timeout(grace, child.wait()).await {
        Ok(status) => status.ok(),
        Err(_) => {
            // The warden dies, the kernel kills the stub with it, and the namespace with the stub. One that the kernel cannot end
            // now (it waits for a device) is left to it: the supervisor does not wait with it.
            let _ = child.start_kill();
            let _ = tokio::time::timeout(KILL_PATIENCE, child.wait()).await;
            None
        }
    };
    match (ended, status) {
        (Ended::Because(cause), _) => cause,
        (Ended::Closed, Some(status)) => cause_of(status),
        (Ended::Closed, None) => Cause::Violation("closed the link and went on".into()),
    }
}

fn cause_of(status: ExitStatus) -> Cause {
    match (status.signal(), status.code()) {
        (Some(signal), _) => Cause::Signal(signal),
        (None, Some(code)) => Cause::Exit(code),
        (None, None) => Cause::Exit(-1),
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}
