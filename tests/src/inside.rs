//! Plugins supervised in the test's own process: the node's real supervisor, links and runners, and a host that counts what reaches
//! it. So a test sees each answer and each effect with its own eyes, and not through a command line. Trusts no plugin: what one did
//! is what arrived here.

use crate::{bin_dir, PATIENCE};
use std::collections::HashMap;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use thenodes::host::{Host, HostError, NodeInfo, Notice, Request, Response};
use thenodes::network::message::{Message, MessageType};
use thenodes::realms::RealmInfo;
use thenodes_ipc::{pack, Code, PluginName};
use thenodes_node::config::{Budget, Raw, Required, Transport};
use thenodes_node::plugins::handle::{Handle, Status};
use thenodes_node::plugins::image::{libraries_of_program, Image};
use thenodes_node::plugins::lifecycle::State;
use thenodes_node::plugins::queue::Delivery;
use thenodes_node::plugins::spare::Spare;
use thenodes_node::plugins::supervisor::{supervise, Change, Keeping, Observer, Policy, Surroundings};
use thenodes_node::plugins::terms::Terms;
use thenodes_node::plugins::watchdog::Watchdog;
use tokio::sync::{oneshot, watch};

/// A host that knows no peers and counts the texts that plugins broadcast.
#[derive(Default)]
pub struct Counting(Mutex<HashMap<String, u32>>);

impl Counting {
    /// How often this text has come.
    pub fn count(&self, text: &str) -> u32 {
        self.0.lock().expect("no panic").get(text).copied().unwrap_or(0)
    }
}

/// A text that begins like this costs the host a fifth of a millisecond.
pub const COSTLY: &str = "costly";

struct Shown(Arc<Counting>);

#[async_trait::async_trait]
impl Host for Shown {
    async fn call(&self, request: Request) -> Result<Response, HostError> {
        match request {
            Request::Broadcast { text } => {
                let text = match Message::from_json(&text).map(|message| message.msg_type) {
                    Some(MessageType::Text(text)) => text,
                    _ => text,
                };
                if text.starts_with(COSTLY) {
                    let begun = std::time::Instant::now();
                    while begun.elapsed() < Duration::from_micros(200) {
                        std::hint::spin_loop();
                    }
                }
                *self.0 .0.lock().expect("no panic").entry(text).or_default() += 1;
                Ok(Response::Done(0))
            }
            Request::ListPeers {} => Ok(Response::Peers(Vec::new())),
            other => Err(HostError::new(Code::Unavailable, other.method())),
        }
    }
    fn notify(&self, _: Notice) {}
}

struct Quiet;

impl Observer for Quiet {
    fn changed(&self, _: Change) {}
}

/// What all plugins of one test share.
pub struct Inside {
    policy: Arc<Policy>,
    /// What their handlers did to the world.
    pub effects: Arc<Counting>,
    slots: AtomicU32,
}

impl Inside {
    /// With frames going this way, and the runner of this build.
    pub fn new(transport: Transport) -> Inside {
        Inside::with_runner(transport, bin_dir().join("thenodes-runner"))
    }

    /// With a runner of the test's own.
    pub fn with_runner(transport: Transport, runner: PathBuf) -> Inside {
        static WORLDS: AtomicU32 = AtomicU32::new(0);
        let plugins = Raw::default().validate().expect("an empty configuration is valid").plugins;
        let world = WORLDS.fetch_add(1, Ordering::Relaxed) % 100;
        let watchdog = Watchdog::start(plugins.budget.sample);
        let spare = Some(Spare::keep(runner.clone(), watchdog.cgroups().clone()));
        let policy = Arc::new(Policy {
            runner,
            limits: plugins.limits,
            watchdog,
            required: Required::default(),
            // Other tests run at the same time, and the kernel counts by uid.
            uid_base: 50_000_000 + ((std::process::id() % 5000) * 100 + world) * 64,
            transport,
            spare,
        });
        Inside { policy, effects: Arc::default(), slots: AtomicU32::new(0) }
    }

    /// Supervises a plugin, and does not wait for it.
    pub fn begin(&self, name: &str, library: &Path) -> Handle {
        let plugins = Raw::default().validate().expect("an empty configuration is valid").plugins;
        let provided = libraries_of_program(&bin_dir().join("thenodes-runner")).expect("a runner");
        let name = PluginName::new(name).expect("a name");
        let image = Image::read_as(name.clone(), library, &provided).expect("a plugin");
        let free = Budget { link_messages_per_s: 10_000_000, link_bytes_per_s: 1 << 40, ..plugins.budget };
        let terms = Terms::agree(name, None, &plugins.giving, plugins.limits, free);
        let info = NodeInfo {
            plugin: String::new(),
            node_id: "node".into(),
            realm: RealmInfo::new("Test", "1"),
            node_type: "daemon".into(),
            session_id: String::new(),
        };
        let effects = self.effects.clone();
        let around = Surroundings {
            policy: self.policy.clone(),
            terms: Arc::new(terms),
            host: Arc::new(move || Arc::new(Shown(effects.clone()))),
            observer: Arc::new(Quiet),
            info: watch::channel(Some(Arc::new(info))).1,
            slot: self.slots.fetch_add(1, Ordering::Relaxed) % 64,
            keeping: Keeping::default(),
        };
        supervise(Arc::new(image), around)
    }

    /// Supervises a plugin, and waits until it takes calls.
    pub async fn start(&self, name: &str, library: &Path) -> Handle {
        let plugin = self.begin(name, library);
        wait_for(&plugin, "Ready", |status| status.state == State::Ready).await;
        plugin
    }
}

/// Waits until the status satisfies a condition.
pub async fn wait_for(plugin: &Handle, what: &str, condition: impl FnMut(&Status) -> bool) -> Status {
    match tokio::time::timeout(PATIENCE, plugin.wait(condition)).await {
        Ok(Some(status)) => status,
        _ => {
            let status = plugin.status();
            panic!("{}: no {what}; it is {:?}, last {:?}", plugin.name, status.state, status.last_death)
        }
    }
}

/// Waits until it serves with a process after this one.
pub async fn back_after(plugin: &Handle, generation: u32) {
    wait_for(plugin, "next process", |status| {
        status.generation.0 > generation && status.state == State::Ready
    })
    .await;
}

/// The arguments of a prompt line, packed.
pub fn line(prefix: &str, input: &str) -> Vec<u8> {
    #[derive(serde::Serialize)]
    struct Args<'a> {
        prefix: &'a str,
        input: &'a str,
    }
    pack::encode(&Args { prefix, input }).expect("packs")
}

/// What came back for one.
fn text(answer: Result<bytes::Bytes, HostError>) -> Result<String, HostError> {
    Ok(pack::decode::<Option<String>>(&answer?).expect("a text").expect("an answer"))
}

/// Asks the hostile plugin something.
pub async fn ask(plugin: &Handle, input: &str, deadline: Duration) -> Result<String, HostError> {
    text(plugin.call("prompt", line("hostile", input), deadline).await)
}

/// The same by a call that may be made twice.
pub async fn ask_again(plugin: &Handle, input: &str, deadline: Duration) -> Result<String, HostError> {
    text(plugin.call_idempotent("prompt", line("hostile", input), deadline).await)
}

/// Gives a plugin a message; the future ends when it was taken, or was not.
pub fn tell(plugin: &Handle, words: &str) -> impl Future<Output = Result<(), HostError>> + 'static {
    let message = Message::new("peer", "*", MessageType::Text(words.into()), None, None);
    let (ack, acked) = oneshot::channel();
    let body = pack::encode(&message).expect("packs").into();
    plugin.queue.deliver(Delivery { body, ack: Some(ack), hold: None, given_up: None });
    async move { acked.await.expect("every message is answered for").map(drop) }
}

/// A number for a long run from the environment, or the one for every day.
pub fn how_many(variable: &str, every_day: usize) -> usize {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(every_day)
}

/// Small random numbers that come again with the same seed, which is printed when a test fails.
pub struct Dice(u64);

impl Dice {
    /// From a seed of the environment, or from the clock.
    pub fn new(salt: u64) -> Dice {
        let seed = how_many("THENODES_SEED", 0) as u64;
        let clock = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let seed = if seed > 0 { seed } else { clock.map_or(1, |since| since.as_nanos() as u64) };
        eprintln!("THENODES_SEED={seed}");
        Dice(seed ^ salt.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// From this seed and nothing else.
    pub fn seeded(seed: u64) -> Dice {
        Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// A number below this.
    pub fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % end.max(1)
    }
}
