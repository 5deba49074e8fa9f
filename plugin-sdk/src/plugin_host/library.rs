//! The plugin's own life inside its process: handlers, the runtime, and what each frame from the node leads to.
//!
//! Threads: two [`Readers`] take turns. The one that leads reads the link, sorts what came, and runs handlers on the spot;
//! when one of them takes its time, the other reads on. `on_load`, `on_message` and `on_stop` run one after the other in order
//! of arrival, whichever thread it is; async handlers begin on the reading thread and go on there or on a tokio runtime of
//! two workers ([`Calls`]). So a handler may wait for an answer of the node anywhere without a deadlock.
//!
//! The node is trusted; the runner below may be older and then reads itself, on one thread, through [`Library::receive`].

use super::body::owned;
use super::calls::{Answering, Calls, Job};
use super::client::{Client, CURRENT_CALL};
use super::export::Wire;
use super::readers::{Readers, Working};
use super::{logger, Plugin, PluginContext};
use crate::config::ConfigDefaults;
use crate::events::model::LogEvent;
use crate::events::{dispatcher, EventHandle};
use crate::host::{HostError, NodeInfo};
use crate::network::message::Message;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::collections::VecDeque;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};
use std::time::{Duration, Instant};
use thenodes_ipc::{limits, pack, Code};

/// Of several messages in one call the node hears at least so often, if one of them was handled.
const TELL: Duration = Duration::from_millis(20);

/// What stands before the name of a request on the link.
const REQUEST: &str = "request.";

/// A frame from the node, sorted by kind.
pub(super) enum Incoming<'a> {
    Call { id: u64, method: &'a str, body: &'a [u8] },
    Notify { method: &'a str, body: &'a [u8] },
    Reply { id: u64, code: &'a str, body: &'a [u8] },
    Cancel { id: u64 },
}

/// What the library says about itself.
pub(super) struct About {
    pub(super) id: String,
    pub(super) prompts: Vec<String>,
    pub(super) config_defaults: Vec<u8>,
    pub(super) extension_kinds: Option<Vec<String>>,
}

/// Arguments of the `prompt` call.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct PromptArgs {
    pub(crate) prefix: String,
    pub(crate) input: String,
}

/// What runs one after the other, in order of arrival.
enum Work<'a> {
    Load {
        id: u64,
        body: Cow<'a, [u8]>,
    },
    Message {
        id: u64,
        body: Cow<'a, [u8]>,
    },
    /// Several messages; their numbers begin with this one.
    Messages {
        id: u64,
        body: Cow<'a, [u8]>,
    },
    Stop {
        id: u64,
    },
}

impl Work<'_> {
    fn id(&self) -> u64 {
        match self {
            Work::Load { id, .. }
            | Work::Message { id, .. }
            | Work::Messages { id, .. }
            | Work::Stop { id } => *id,
        }
    }

    /// For later: with bytes of its own.
    fn keep(self) -> Work<'static> {
        match self {
            Work::Load { id, body } => Work::Load { id, body: body.into_owned().into() },
            Work::Message { id, body } => Work::Message { id, body: body.into_owned().into() },
            Work::Messages { id, body } => Work::Messages { id, body: body.into_owned().into() },
            Work::Stop { id } => Work::Stop { id },
        }
    }
}

/// The work of the lane, and whether somebody is at it.
#[derive(Default)]
struct Lane {
    waiting: VecDeque<Work<'static>>,
    taken: bool,
}

/// All handlers of one plugin file and what they share.
pub(super) struct Library {
    handlers: RwLock<Arc<[Arc<dyn Plugin>]>>,
    runtime: tokio::runtime::Runtime,
    readers: Arc<Readers>,
    lane: Mutex<Lane>,
    /// For the thread that serves the lane under a runner that reads by itself.
    lane_came: Condvar,
    calls: Arc<Calls>,
    /// Async handlers that were asked for and did not begin yet.
    asked: Mutex<VecDeque<(u64, Job)>>,
    client: OnceLock<Arc<Client>>,
    context: OnceLock<PluginContext>,
    /// We read the link ourselves.
    reads: AtomicBool,
}

impl Library {
    /// Starts the runtime.
    pub(super) fn start() -> std::io::Result<Arc<Library>> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .max_blocking_threads(8) // the plugin's thread limit is shared with whatever it starts itself
            .thread_name("plugin-async")
            // Timers only: there are no sockets in a sandbox, and an I/O driver would cost descriptors and memory.
            .enable_time()
            .build()?;
        let readers = Arc::new(Readers::new());
        Ok(Arc::new(Library {
            handlers: RwLock::new(Arc::from([])),
            calls: Calls::new(runtime.handle().clone(), readers.clone()),
            runtime,
            readers,
            lane: Mutex::default(),
            lane_came: Condvar::new(),
            asked: Mutex::default(),
            client: OnceLock::new(),
            context: OnceLock::new(),
            reads: AtomicBool::new(false),
        }))
    }

    pub(super) fn add(&self, plugin: Box<dyn Plugin>) {
        let mut handlers = self.handlers.write().unwrap_or_else(PoisonError::into_inner);
        *handlers = handlers.iter().cloned().chain([Arc::from(plugin)]).collect();
    }

    fn handlers(&self) -> Arc<[Arc<dyn Plugin>]> {
        self.handlers.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn describe(&self) -> About {
        let handlers = self.handlers();
        let ids: Vec<&str> = handlers.iter().map(|h| h.plugin_id()).filter(|id| !id.is_empty()).collect();
        let defaults: Vec<ConfigDefaults> =
            handlers.iter().filter_map(|h| h.early_config_defaults()).collect();
        let kinds: Option<Vec<Vec<String>>> = handlers
            .iter()
            .map(|h| Some(h.subscribed_extension_kinds()?.iter().map(ToString::to_string).collect()))
            .collect();
        About {
            id: ids.join("+"),
            prompts: handlers.iter().filter_map(|h| h.prompt_prefix().map(str::to_owned)).collect(),
            config_defaults: match defaults.is_empty() {
                true => Vec::new(),
                false => pack::encode(&defaults).unwrap_or_default(),
            },
            extension_kinds: kinds.map(|lists| lists.concat()),
        }
    }

    /// Takes the runner's side of the link. False if that was done before.
    pub(super) fn connect(&self, wire: Wire) -> bool {
        let client = Arc::new(Client::new(wire, self.runtime.handle().clone(), self.readers.clone()));
        logger::install(client.clone());
        dispatcher::set_process_handle(EventHandle::new(client.clone()));
        self.client.set(client).is_ok()
    }

    /// Reads the link, on this thread and one more, until it ends. Fails at once if there can be no second thread.
    pub(super) fn read_to_the_end(self: &Arc<Self>) -> Result<(), String> {
        if self.readers.join().is_none() || self.reads.swap(true, Ordering::AcqRel) {
            return Err("the link is read already".into());
        }
        self.grow().map_err(|e| format!("starting the second reader: {e}"))?;
        self.read_in_turn();
        Ok(())
    }

    /// Starts one more reader, and waits until it can follow.
    fn grow(self: &Arc<Self>) -> std::io::Result<()> {
        let (ready, is_ready) = std::sync::mpsc::sync_channel(1);
        let library = self.clone();
        std::thread::Builder::new().name("plugin-link".into()).spawn(move || {
            if library.readers.join().is_none() {
                return; // enough of them meanwhile
            }
            library.readers.enlist();
            let _ = ready.send(());
            library.readers.follow();
            library.read_in_turn();
        })?;
        let _ = is_ready.recv();
        Ok(())
    }

    fn read_in_turn(self: &Arc<Self>) {
        let Some(client) = self.client.get() else { return };
        let _inside = self.runtime.enter();
        loop {
            // What the leader before us left.
            self.run_what_came();
            while self.readers.leads() {
                if !client.pump() {
                    return;
                }
                self.run_what_came();
            }
            // Somebody else reads now; what is in order goes on here. A message that came just before the other could know that
            // we are free again was left for us.
            loop {
                self.run_lane();
                self.readers.enlist();
                if !self.lane_waits() {
                    break;
                }
                self.readers.delist();
            }
            self.readers.follow();
        }
    }

    /// Sorts one frame. `last`: no other whole frame has arrived, so whoever reads may run a handler on the spot, with the bytes
    /// where they are. Called on a reading thread only, before which `connect` was called.
    pub(super) fn receive(self: &Arc<Self>, frame: Incoming<'_>, last: bool) {
        let Some(client) = self.client.get() else { return };
        match frame {
            Incoming::Reply { id, code, body } => client.answered(id, code, body),
            Incoming::Cancel { id } => self.cancel(client, id),
            Incoming::Notify { method: "event", body } => {
                if let Ok(event) = pack::decode::<LogEvent>(body) {
                    client.event_arrived(event);
                }
            }
            Incoming::Notify { .. } => {} // from a newer node; notices may be ignored
            Incoming::Call { id, method, body } => match method {
                "message" => self.in_order(client, Work::Message { id, body: body.into() }, last),
                "messages" => self.in_order(client, Work::Messages { id, body: body.into() }, last),
                "load" => self.in_order(client, Work::Load { id, body: body.into() }, last),
                "stop" => self.in_order(client, Work::Stop { id }, last),
                "prompt" => self.prompt(client, id, body, last),
                "health" => self.health(client, id, last),
                other => match other.strip_prefix(REQUEST) {
                    Some(name) => self.request(client, id, name, body, last),
                    None => {
                        client.fail(id, &Code::Unhandled, &format!("this plugin has no method {other:?}"))
                    }
                },
            },
        }
    }

    fn cancel(&self, client: &Client, id: u64) {
        let mut lane = self.lane();
        let before = lane.waiting.len();
        lane.waiting.retain(|work| work.id() != id);
        let waited = lane.waiting.len() != before;
        drop(lane);
        let mut asked = self.asked();
        let not_begun = asked.iter().position(|(asked, _)| *asked == id).and_then(|at| asked.remove(at));
        drop(asked);
        if waited || not_begun.is_some() || self.calls.cancel(id) {
            client.fail(id, &Code::Cancelled, "the node took the call back");
        }
    }

    fn lane(&self) -> MutexGuard<'_, Lane> {
        self.lane.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn asked(&self) -> MutexGuard<'_, VecDeque<(u64, Job)>> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// In a function of its own, so that the lock is not held while the job runs.
    fn next_asked(&self) -> Option<(u64, Job)> {
        self.asked().pop_front()
    }

    /// Runs work of the lane now, or keeps it for its turn.
    fn in_order(self: &Arc<Self>, client: &Arc<Client>, work: Work<'_>, last: bool) {
        let mut lane = self.lane();
        if last && !lane.taken && lane.waiting.is_empty() {
            if let Some(working) = self.readers.work() {
                lane.taken = true;
                drop(lane);
                working.blocking(|| self.run(client, work));
                self.run_rest_of_lane(client, Some(&working));
                return;
            }
        }
        // The node keeps no more open, so the lane cannot fill unless the node misbehaves.
        if lane.waiting.len() >= limits::MAX_CALLS_TO_PLUGIN * 2 + limits::MAX_MESSAGES_AT_ONCE {
            return client.fail(work.id(), &Code::ResourceExhausted, "too many calls wait in the plugin");
        }
        lane.waiting.push_back(work.keep());
        drop(lane);
        if !self.reads.load(Ordering::Acquire) {
            self.lane_thread();
        }
    }

    /// After frames were sorted: runs what they ask for.
    fn run_what_came(self: &Arc<Self>) {
        let Some(client) = self.client.get() else { return };
        loop {
            let (asked, ready) = (!self.asked().is_empty(), self.calls.has_ready());
            let lane = self.lane();
            let in_order = !lane.taken && !lane.waiting.is_empty();
            drop(lane);
            if !asked && !ready && !in_order {
                return;
            }
            if self.readers.may_grow() {
                // Both are busy. If there can be no third, whoever comes out first goes on.
                let _ = self.grow();
            }
            let Some(working) = self.readers.work() else {
                // Nobody would read while we run a handler: what can go elsewhere does.
                while let Some((id, job)) = self.next_asked() {
                    self.calls.spawn(id, job);
                }
                self.calls.leave();
                if in_order {
                    self.run_lane_elsewhere();
                }
                return;
            };
            while let Some((id, job)) = self.next_asked() {
                self.calls.begin(id, job);
                if working.was_replaced() {
                    return;
                }
            }
            self.calls.go_on();
            if in_order && !working.was_replaced() {
                let mut lane = self.lane();
                if !lane.taken {
                    lane.taken = true;
                    drop(lane);
                    self.run_rest_of_lane(client, Some(&working));
                }
            }
        }
    }

    /// True if work of the lane waits and nobody is at it.
    fn lane_waits(&self) -> bool {
        let lane = self.lane();
        !lane.taken && !lane.waiting.is_empty()
    }

    /// Has the lane run by another thread than the readers: one of them may be on its way to sleep, having found nothing in it.
    fn run_lane_elsewhere(self: &Arc<Self>) {
        let library = self.clone();
        // Without a thread for it, which is a panic of the runtime, the reader that comes out of its handler first runs it.
        let _ = catch_unwind(AssertUnwindSafe(|| self.runtime.spawn_blocking(move || library.run_lane())));
    }

    /// Runs the lane if nobody is at it.
    fn run_lane(&self) {
        let Some(client) = self.client.get() else { return };
        let mut lane = self.lane();
        if !lane.taken && !lane.waiting.is_empty() {
            lane.taken = true;
            drop(lane);
            self.run_rest_of_lane(client, None);
        }
    }

    /// Runs what waits in the lane, which is taken, until nothing does.
    fn run_rest_of_lane(&self, client: &Arc<Client>, working: Option<&Working<'_>>) {
        loop {
            let mut lane = self.lane();
            let Some(work) = lane.waiting.pop_front() else {
                lane.taken = false;
                return;
            };
            drop(lane);
            match working {
                Some(working) => working.blocking(|| self.run(client, work)),
                None => self.run(client, work),
            }
        }
    }

    /// Under a runner that reads by itself there is a thread for the lane.
    fn lane_thread(self: &Arc<Self>) {
        self.lane_came.notify_one();
        let mut lane = self.lane();
        if lane.taken {
            return;
        }
        lane.taken = true;
        drop(lane);
        let library = self.clone();
        let thread = std::thread::Builder::new().name("plugin-messages".into()).spawn(move || {
            let Some(client) = library.client.get() else { return };
            let _inside = library.runtime.enter();
            loop {
                let mut lane = library.lane();
                let work = loop {
                    match lane.waiting.pop_front() {
                        Some(work) => break work,
                        None => lane = library.lane_came.wait(lane).unwrap_or_else(PoisonError::into_inner),
                    }
                };
                drop(lane);
                library.run(client, work);
            }
        });
        if thread.is_err() {
            self.lane().taken = false; // the next message tries again
        }
    }

    /// Begins an async handler here and now, or keeps it until the frames that came with it are sorted.
    fn job(self: &Arc<Self>, id: u64, last: bool, job: Job) {
        if !self.reads.load(Ordering::Acquire) {
            return self.calls.spawn(id, job);
        }
        if last {
            if let Some(_working) = self.readers.work() {
                return self.calls.begin(id, job);
            }
        }
        self.asked().push_back((id, job));
    }

    fn prompt(self: &Arc<Self>, client: &Arc<Client>, id: u64, body: &[u8], last: bool) {
        let args: PromptArgs = match pack::decode(body) {
            Ok(args) => args,
            Err(error) => return client.fail(id, &Code::InvalidInput, &error.to_string()),
        };
        let handlers = self.handlers();
        let handler = handlers.iter().find(|h| h.prompt_prefix() == Some(args.prefix.as_str())).cloned();
        let (Some(handler), Some(context)) = (handler, self.context.get().cloned()) else {
            return client.fail(id, &Code::NotFound, &format!("no handler has the prompt {:?}", args.prefix));
        };
        let work = CURRENT_CALL.scope(id, async move { handler.on_prompt(&args.input, &context).await });
        let answer = |client: &Client, id, output: Option<String>| client.succeed(id, &output);
        self.job(id, last, Answering::job(&self.calls, client, id, work, answer));
    }

    fn request(self: &Arc<Self>, client: &Arc<Client>, id: u64, name: &str, body: &[u8], last: bool) {
        let Some(context) = self.context.get().cloned() else {
            return client.fail(id, &Code::Conflict, "a request before load");
        };
        let (handlers, name, body) = (self.handlers(), name.to_owned(), owned(body));
        let work = CURRENT_CALL.scope(id, async move {
            for handler in handlers.iter() {
                match handler.on_request(&name, &body, &context).await {
                    Err(error) if error.code == Code::Unhandled => {}
                    answer => return answer,
                }
            }
            Err(HostError::new(Code::Unhandled, format!("this plugin has no request {name:?}")))
        });
        let answer = |client: &Client, id, answer: Result<Vec<u8>, HostError>| match answer {
            Ok(body) => client.succeed_with(id, &body),
            Err(error) => client.fail(id, &error.code, &error.message),
        };
        self.job(id, last, Answering::job(&self.calls, client, id, work, answer));
    }

    fn health(self: &Arc<Self>, client: &Arc<Client>, id: u64, last: bool) {
        let Some(context) = self.context.get().cloned() else {
            return client.fail(id, &Code::Conflict, "a health probe before load");
        };
        let handlers = self.handlers();
        let work = CURRENT_CALL.scope(id, async move {
            for handler in handlers.iter() {
                handler.on_health(&context).await?;
            }
            Ok(())
        });
        let answer = |client: &Client, id, health: Result<(), String>| match health {
            Ok(()) => client.succeed(id, &()),
            Err(text) => client.fail(id, &Code::Unavailable, &text),
        };
        self.job(id, last, Answering::job(&self.calls, client, id, work, answer));
    }

    fn run(&self, client: &Arc<Client>, work: Work<'_>) {
        let id = work.id();
        let outcome = match work {
            Work::Load { body, .. } => self.load(client, &body),
            Work::Message { body, .. } => match pack::decode(&body) {
                Ok(message) => self.message(id, &message),
                Err(error) => Err((Code::InvalidInput, error.to_string())),
            },
            Work::Messages { body, .. } => return self.messages(client, id, &body),
            Work::Stop { .. } => self.each_handler(|handler| {
                if let Some(context) = self.context.get() {
                    self.runtime.block_on(handler.on_stop(context));
                }
                Ok(())
            }),
        };
        match outcome {
            Ok(()) => client.succeed(id, &()),
            Err((code, text)) => client.fail(id, &code, &text),
        }
    }

    fn load(&self, client: &Arc<Client>, body: &[u8]) -> Result<(), (Code, String)> {
        let info: NodeInfo = pack::decode(body).map_err(|e| (Code::InvalidInput, e.to_string()))?;
        client.set_session(&info.session_id);
        let events = EventHandle::new(client.clone());
        let context = PluginContext::new(client.clone(), events, Arc::new(info));
        let context = self.context.get_or_init(|| context);
        self.each_handler(|handler| {
            self.runtime.block_on(handler.on_load(context)).map_err(|text| (Code::Unavailable, text))
        })
    }

    /// Several messages, one after the other. One answer is enough for all that went well; while they take their time the node hears
    /// of each, and so knows that this goes on.
    fn messages(&self, client: &Client, id: u64, body: &[u8]) {
        let (mut done, mut told) = (0, Instant::now());
        let mut handle = |count: usize, message: Result<Message, String>| {
            let number = id + done as u64;
            done += 1;
            let outcome = match message {
                Ok(message) => self.message(number, &message),
                Err(error) => Err((Code::InvalidInput, error)),
            };
            match outcome {
                Ok(()) if done < count && told.elapsed() < TELL => return,
                Ok(()) => client.succeed(number, &()),
                Err((code, text)) => client.fail(number, &code, &text),
            }
            told = Instant::now();
        };
        let (mut read, mut all) = (0, 0);
        let failed = pack::each(body, |count, message| {
            (read, all) = (read + 1, count);
            handle(count, Ok(message));
        });
        if let Err(error) = failed {
            // One that this SDK does not know, from a newer node, costs only itself.
            let elements = pack::elements(body);
            let count = elements.len().max(all).max(1);
            for place in read..count {
                let message = elements.get(place).map(|element| pack::decode(element));
                let message = message.unwrap_or_else(|| Err(error.clone()));
                handle(count, message.map_err(|e| e.to_string()));
            }
        }
    }

    fn message(&self, id: u64, message: &Message) -> Result<(), (Code, String)> {
        let Some(context) = self.context.get() else {
            return Err((Code::Conflict, "a message before load".into()));
        };
        CURRENT_CALL.sync_scope(id, || {
            self.each_handler(|handler| {
                handler.on_message(message, context);
                Ok(())
            })
        })
    }

    /// Runs something for each handler; a panic in one does not spare the others, and the first failure is the answer.
    fn each_handler(
        &self,
        mut run: impl FnMut(&Arc<dyn Plugin>) -> Result<(), (Code, String)>,
    ) -> Result<(), (Code, String)> {
        let mut first_failure = Ok(());
        for handler in self.handlers().iter() {
            let outcome = catch_unwind(AssertUnwindSafe(|| run(handler)))
                .unwrap_or_else(|panic| Err((Code::PluginCrashed, panic_text(panic))));
            first_failure = first_failure.and(outcome);
        }
        first_failure
    }
}

/// What a panic said.
pub(super) fn panic_text(panic: Box<dyn std::any::Any + Send>) -> String {
    let text = match panic.downcast::<String>() {
        Ok(text) => *text,
        Err(panic) => panic.downcast_ref::<&str>().map_or("a panic without a text", |text| text).to_owned(),
    };
    format!("panicked: {text}")
}
