//! One process of a plugin from spawn to reaped: a task that tells its supervisor what happens and hears what to do. The supervisor
//! may hold two of them, during an upgrade. Everything that the process says is hostile input and has been read by the link.

use super::host::PluginHost;
use super::left::{Phase, StateDesk};
use super::messages::messages;
use super::probe::{healthy, probe};
use super::register::check_registration;
use super::stop::{bury, end_process, say_goodbye, Farewell};
use super::{run_as, Change, Observer, Policy};
use crate::config::HealthPolicy;
use crate::plugins::cause::{self, Seen};
use crate::plugins::cgroup::Leaf;
use crate::plugins::denials::DenialBook;
use crate::plugins::handle::Command;
use crate::plugins::lifecycle::Cause;
use crate::plugins::link::{Counters, Ended, Failed, Greeting, Link};
use crate::plugins::logs::{follow, LogBook};
use crate::plugins::process::{Order as Spawn, Started};
use crate::plugins::queue::Queue;
use crate::plugins::rate::LinkRates;
use crate::plugins::spare::{Spare, Turn};
use crate::plugins::version::Version;
use crate::plugins::watchdog::Record;
use crate::plugins::way::Way;
use crate::text::printable;
use std::future::Future;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};
use thenodes::host::NodeInfo;
use thenodes_ipc::launch::{LayerReport, Level, Registration};
use thenodes_ipc::{limits, pack, Generation, PluginName};
use tokio::process::Child;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{JoinHandle, JoinSet};

/// What all processes of one plugin share.
pub(super) struct Shared {
    pub(super) name: PluginName,
    pub(super) logs: Arc<LogBook>,
    pub(super) counters: Arc<Counters>,
    pub(super) denials: Arc<DenialBook>,
    pub(super) record: Arc<Record>,
    pub(super) policy: Arc<Policy>,
    pub(super) observer: Arc<dyn Observer>,
    pub(super) info: watch::Receiver<Option<Arc<NodeInfo>>>,
    pub(super) slot: u32,
    pub(super) health: HealthPolicy,
    /// The plugin's own orders, for whoever watches a process.
    pub(super) orders: mpsc::WeakSender<Command>,
    /// Messages for whichever process has the lock.
    pub(super) queue: Arc<Queue>,
}

impl Shared {
    pub(super) fn change(&self, action: &'static str, detail: String, bad: bool) {
        self.observer.changed(Change { plugin: self.name.clone(), action, detail, bad });
    }
}

/// What a process tells its supervisor.
pub(super) enum News {
    /// It was spawned.
    Started(Option<u32>),
    /// Its walls as measured.
    Walls(Level, Vec<LayerReport>),
    /// What it says about itself.
    Registered(Registration),
    /// Its `on_load` asks for what was left.
    WantsState(oneshot::Sender<Option<Arc<[u8]>>>),
    /// It takes calls, this way.
    Loaded(Way),
    /// It says that it is well.
    Healthy,
    /// It does not, and why.
    Missed(String),
    /// Its `on_stop` is over, and what it left.
    Left(Option<Arc<[u8]>>),
    /// Its process has ended, and why; what is left of the tree is still being buried.
    Died(Cause),
    /// It is gone.
    Ended(Cause),
}

/// What a process is told.
pub(super) enum Order {
    /// Stop orderly.
    Stop(Farewell),
    /// End now, for this reason.
    Kill(Cause),
}

/// A process as its supervisor holds it. Dropping it ends the process.
pub(super) struct Running {
    pub(super) generation: Generation,
    pub(super) version: Arc<Version>,
    pub(super) begun: Instant,
    pub(super) pid: Option<u32>,
    pub(super) walls: Option<(Level, Vec<LayerReport>)>,
    pub(super) registration: Option<Registration>,
    orders: mpsc::Sender<Order>,
}

impl Running {
    /// Tells it; a process that has ended hears nothing, and its end is on the way.
    pub(super) fn tell(&self, order: Order) {
        // Room for more orders than a supervisor has reasons to give; a stop that is followed by a kill is two.
        let _ = self.orders.try_send(order);
    }

    /// Notes what concerns only what it is.
    pub(super) fn note(&mut self, news: &News) {
        match news {
            News::Started(pid) => self.pid = *pid,
            News::Walls(level, layers) => self.walls = Some((level.clone(), layers.clone())),
            News::Registered(registration) => self.registration = Some(registration.clone()),
            News::WantsState(_)
            | News::Loaded(_)
            | News::Healthy
            | News::Missed(_)
            | News::Left(_)
            | News::Died(_)
            | News::Ended(_) => {}
        }
    }
}

/// Starts a process. `proving`: it has to say that it is well before it counts as loaded.
pub(super) fn begin(
    shared: Arc<Shared>,
    version: Arc<Version>,
    generation: Generation,
    proving: bool,
    news: mpsc::Sender<(Generation, News)>,
) -> Running {
    let (orders, heard) = mpsc::channel(8);
    let desk = Arc::new(StateDesk::new(generation, news.clone()));
    let life = ProcessLife {
        shared,
        version: version.clone(),
        generation,
        proving,
        news,
        orders: heard,
        desk,
        turn: None,
        loading: Arc::default(),
    };
    tokio::spawn(life.run());
    let begun = Instant::now();
    Running { generation, version, begun, pid: None, walls: None, registration: None, orders }
}

/// How long the last words of a process may take to arrive.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// What is left of a process that has ended.
struct Grave {
    /// The warden.
    child: Child,
    /// Reads what the warden has still to say.
    records: JoinHandle<()>,
    leaf: Arc<Leaf>,
}

impl Grave {
    /// Waits for the last record; for a moment, since a warden may be held up.
    async fn read_records(&mut self) {
        let _ = tokio::time::timeout(LAST_WORDS, &mut self.records).await;
    }

    /// When this returns nothing is left, or what is left is the kernel's alone.
    async fn fill(mut self) {
        bury(&mut self.child).await;
        if !self.records.is_finished() {
            self.read_records().await;
        }
        self.records.abort();
        // Nobody else holds it any more; if somebody did, the last one would remove it.
        if let Some(leaf) = Arc::into_inner(self.leaf) {
            leaf.end().await;
        }
    }
}

pub(super) struct ProcessLife {
    pub(super) shared: Arc<Shared>,
    pub(super) version: Arc<Version>,
    pub(super) generation: Generation,
    proving: bool,
    news: mpsc::Sender<(Generation, News)>,
    orders: mpsc::Receiver<Order>,
    desk: Arc<StateDesk>,
    /// Its start is under way.
    turn: Option<Turn>,
    /// `on_load` runs, for records of what was refused.
    pub(super) loading: Arc<AtomicBool>,
}

impl ProcessLife {
    async fn run(mut self) {
        let (cause, grave) = self.live().await;
        self.turn = None;
        if let Some(grave) = grave {
            // The cause is known before the rest is gone. The next process waits for that: two that are taken apart and put up
            // at the same time hold each other up in the kernel.
            self.tell(News::Died(cause.clone())).await;
            grave.fill().await;
        }
        self.tell(News::Ended(cause)).await;
    }

    async fn tell(&self, news: News) {
        // Without a supervisor nobody wants to know.
        let _ = self.news.send((self.generation, news)).await;
    }

    /// From start to end. When this returns the plugin's own process has ended, and the kernel is ending the rest.
    async fn live(&mut self) -> (Cause, Option<Grave>) {
        if let Some(why) = &self.version.terms.refusal {
            return (Cause::Permissions(why.clone()), None);
        }
        let (shared, version, generation) = (self.shared.clone(), self.version.clone(), self.generation);
        let order = Spawn {
            runner: &shared.policy.runner,
            image: Some(&version.image),
            plugin: shared.name.clone(),
            generation,
            limits: version.terms.process,
            run_as: run_as(shared.policy.uid_base, shared.slot),
            sandbox: version.terms.sandbox.clone(),
            transport: shared.policy.transport,
        };
        self.turn = shared.policy.spare.as_ref().map(Spare::turn);
        let (Started { mut child, stream, ring, stdout, stderr, report }, leaf) =
            match self.start(&order).await {
                Ok(started) => started,
                Err(error) => return (Cause::Spawn(error.to_string()), None),
            };
        let leaf = Arc::new(leaf);
        let ticket = self.watch(child.id(), &leaf);
        self.tell(News::Started(child.id())).await;
        let mut prints = JoinSet::new();
        prints.spawn(follow(stdout, shared.logs.clone(), generation.0, "info", "stdout"));
        prints.spawn(follow(stderr, shared.logs.clone(), generation.0, "warn", "stderr"));
        let (told, verdict) = oneshot::channel();
        let records = tokio::spawn(self.follow_denials(report, told));

        let ended = match self.start_up(Greeting::new(stream, ring)).await {
            Ok(link) => self.serve(link).await,
            Err(ended) => ended,
        };
        // The link is closed now; an honest runner ends by itself, and the kernel ends the others. Both take processor time.
        leaf.lift_cpu();
        let cause = end_process(&mut child, ended, verdict).await;
        drop(ticket);
        // Pipes end with the plugin's process; what was printed before the death is worth a moment.
        let _ = tokio::time::timeout(LAST_WORDS, async { while prints.join_next().await.is_some() {} }).await;
        let seen = Seen::of(&leaf, &shared.record);
        let (cause, note) = cause::refine(cause, &seen, &version.terms.process);
        note.into_iter().for_each(|note| shared.logs.add_own(generation.0, "warn", &note));
        let mut grave = Grave { child, records, leaf };
        if grave.child.id().is_none() {
            // The warden has ended too; what it said last is in the pipe. Before a verdict in the pipe all records were read.
            grave.read_records().await;
        }
        let cause = match (cause, shared.denials.kill_of(generation)) {
            (Cause::Signal(_), Some(kill)) => Cause::Denied(kill.to_string()),
            (cause, _) => cause,
        };
        (cause, Some(grave))
    }

    /// From `hello` to a registered plugin.
    async fn start_up(&mut self, mut greeting: Greeting) -> Result<Link, Ended> {
        let confinement = self.or_order(greeting.confined()).await?;
        let level = confinement.level();
        let mut layers = confinement.layers;
        for layer in &mut layers {
            layer.detail = printable(&layer.detail, 500);
        }
        self.tell(News::Walls(level.clone(), layers)).await;
        let required = self.shared.policy.required;
        if !required.accepts(&level) {
            return Err(Ended::Because(Cause::Level { level, required: required.word().into() }));
        }
        let registration = check_registration(self.or_order(greeting.registered()).await?)
            .map_err(|what| Ended::Because(Cause::Violation(what)))?;
        self.tell(News::Registered(registration)).await;
        let host = Arc::new(PluginHost {
            inner: (self.version.host)(),
            logs: self.shared.logs.clone(),
            generation: self.generation,
            desk: self.desk.clone(),
        });
        let rates = LinkRates::from(&self.version.terms.budget);
        Ok(greeting.run(self.generation, host, self.shared.counters.clone(), rates))
    }

    /// `load`, then messages until the link ends or somebody wants it to.
    async fn serve(&mut self, mut link: Link) -> Ended {
        match self.load(&mut link).await {
            Ok(()) => {}
            Err(ended) => return ended,
        }
        self.desk.enter(Phase::Serving);
        let way = Way::new(link.caller().clone(), self.version.terms.budget.call_timeout);
        self.tell(News::Loaded(way.clone())).await;
        self.turn = None;
        let (shared, generation) = (self.shared.clone(), self.generation);
        let (leave, leaving) = watch::channel(false);
        let farewell = {
            let mut messages = Box::pin(messages(&mut link, &shared.queue, leaving));
            let farewell = {
                let mut probing = pin!(probe(&way, shared.health, generation, &self.news));
                tokio::select! {
                    Some(ended) = &mut messages => return ended,
                    ended = &mut probing => return ended,
                    order = self.orders.recv() => match order {
                        Some(Order::Stop(farewell)) => farewell,
                        Some(Order::Kill(cause)) => return Ended::Because(cause),
                        None => Farewell::STOP,
                    },
                }
            };
            leave.send_replace(true);
            let drained = async {
                match messages.as_mut().await {
                    Some(ended) => Err(ended),
                    None => {
                        way.drained().await;
                        Ok(())
                    }
                }
            };
            let drained = tokio::time::timeout(farewell.drain, drained);
            match self.or_kill(drained).await {
                Ok(Ok(Err(ended))) | Err(ended) => return ended,
                // All have ended, or had their time.
                Ok(Ok(Ok(())) | Err(_)) => {}
            }
            farewell
        };
        let (desk, news) = (self.desk.clone(), self.news.clone());
        let goodbye = say_goodbye(&mut link, &way, &desk, farewell.linger, (generation, &news));
        self.or_kill(goodbye).await.unwrap_or_else(|ended| ended)
    }

    /// Tells it who the node is, and waits until it is ready to serve.
    async fn load(&mut self, link: &mut Link) -> Result<(), Ended> {
        let caller = link.caller().clone();
        // The node may still be finding out who it is; that wait is bounded by the node's own start.
        let mut info = self.shared.info.clone();
        let known = async {
            tokio::select! {
                info = info.wait_for(Option::is_some) => Ok(info.ok().and_then(|info| info.clone())),
                ended = link.ended() => Err(ended),
            }
        };
        let Some(info) = self.or_order(known).await? else { return Err(Ended::Because(Cause::Asked)) };
        let body = pack::encode(&self.version.terms.info(&info)).unwrap_or_default();
        self.loading.store(true, Ordering::Relaxed);
        let loading = async {
            tokio::select! {
                loaded = caller.call("load", body, limits::LOAD_DEADLINE) => Ok(loaded),
                ended = link.ended() => Err(ended),
            }
        };
        let loaded = self.or_order(loading).await;
        self.loading.store(false, Ordering::Relaxed);
        match loaded? {
            Ok(_) => {}
            Err(Failed::Late) => return Err(Ended::Because(Cause::Hang("on_load".into()))),
            Err(Failed::Answered(error)) => {
                return Err(Ended::Because(Cause::Load(printable(&error.message, 500))))
            }
            Err(Failed::Unsendable(error)) => return Err(Ended::Because(Cause::Load(error.to_string()))),
            Err(Failed::Gone(_)) => return Err(link.ended().await),
        }
        if self.proving {
            let patience = self.shared.health.timeout;
            let well = async {
                tokio::select! {
                    well = healthy(&caller, patience) => well.map_err(|why| Ended::Because(Cause::Health(why))),
                    ended = link.ended() => Err(ended),
                }
            };
            self.or_order(well).await?;
        }
        Ok(())
    }

    /// Waits for a step of the start, or ends it when somebody says so.
    async fn or_order<T>(&mut self, step: impl Future<Output = Result<T, Ended>>) -> Result<T, Ended> {
        tokio::select! {
            done = step => done,
            order = self.orders.recv() => Err(Ended::Because(match order {
                Some(Order::Kill(cause)) => cause,
                Some(Order::Stop(_)) | None => Cause::Asked,
            })),
        }
    }

    /// Waits for a step of the stop, unless there is a reason to end now.
    async fn or_kill<T>(&mut self, step: impl Future<Output = T>) -> Result<T, Ended> {
        let mut step = pin!(step);
        loop {
            tokio::select! {
                done = &mut step => return Ok(done),
                Some(order) = self.orders.recv() => match order {
                    Order::Kill(cause) => return Err(Ended::Because(cause)),
                    Order::Stop(_) => {}
                },
            }
        }
    }
}
