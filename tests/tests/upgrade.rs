//! What callers meet at the door that everybody uses, `Handle::call`: upgrades under load, in which no call fails and none runs twice, and
//! handlers that never return. The plugins count on their side: echo says at its end how many lines it answered, kvstore's counter goes
//! from version to version as its state.

use std::collections::HashSet;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use thenodes::host::{Host, HostError, NodeInfo, Notice, Request, Response};
use thenodes::realms::RealmInfo;
use thenodes_ipc::{pack, Code, PluginName};
use thenodes_node::config::{Budget, Raw};
use thenodes_node::plugins::handle::Handle;
use thenodes_node::plugins::image::{libraries_of_program, Image};
use thenodes_node::plugins::lifecycle::State;
use thenodes_node::plugins::spare::Spare;
use thenodes_node::plugins::supervisor::{
    supervise, Change, HostMaker, Keeping, Observer, Policy, Surroundings,
};
use thenodes_node::plugins::terms::Terms;
use thenodes_node::plugins::version::Version;
use thenodes_node::plugins::watchdog::Watchdog;
use thenodes_tests::{another, bin_dir, plugin, PATIENCE};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Calls a second that are asked for, by so many callers.
const RATE: u64 = 5000;
const CALLERS: u64 = 50;
const UPGRADES: usize = 6;

struct Nothing;

#[async_trait::async_trait]
impl Host for Nothing {
    async fn call(&self, request: Request) -> Result<Response, HostError> {
        Err(HostError::new(Code::Unavailable, request.method()))
    }
    fn notify(&self, _: Notice) {}
}

#[derive(Default)]
struct Changes(Mutex<Vec<String>>);

impl Observer for Changes {
    fn changed(&self, change: Change) {
        self.0.lock().expect("no panic").push(format!("{} {}", change.action, change.detail));
    }
}

/// A plugin and two versions of it.
struct World {
    plugin: Handle,
    versions: [Arc<Version>; 2],
    changes: Arc<Changes>,
}

fn nobody() -> HostMaker {
    Arc::new(|| Arc::new(Nothing))
}

async fn world(name: &str) -> World {
    let plugins = Raw::default().validate().expect("an empty configuration is valid").plugins;
    let (runner, watchdog) = (bin_dir().join("thenodes-runner"), Watchdog::start(plugins.budget.sample));
    let spare = Some(Spare::keep(runner.clone(), watchdog.cgroups().clone()));
    let policy = Arc::new(Policy {
        runner,
        limits: plugins.limits,
        watchdog,
        required: plugins.required,
        uid_base: plugins.uid_base,
        transport: Default::default(),
        spare,
    });
    let provided = libraries_of_program(&policy.runner).expect("a runner");
    let name = PluginName::new(name).expect("a name");
    // What is tried here is no rate limit.
    let free = Budget { link_messages_per_s: 10_000_000, link_bytes_per_s: 1 << 40, ..plugins.budget };
    let terms = Arc::new(Terms::agree(name.clone(), None, &plugins.giving, plugins.limits, free));
    let dir = tempfile::tempdir().expect("a directory");
    let read = |path: &Path| Arc::new(Image::read_as(name.clone(), path, &provided).expect("a plugin"));
    let other = dir.path().join("other.so");
    std::fs::write(&other, another(name.as_str())).expect("written");
    let images = [read(&plugin(name.as_str())), read(&other)];
    let versions = images
        .clone()
        .map(|image| Arc::new(Version { image, terms: terms.clone(), manifest: None, host: nobody() }));
    let info = NodeInfo {
        plugin: String::new(),
        node_id: "node".into(),
        realm: RealmInfo::new("Test", "1"),
        node_type: "daemon".into(),
        session_id: String::new(),
    };
    let changes = Arc::new(Changes::default());
    let around = Surroundings {
        policy,
        terms,
        host: nobody(),
        observer: changes.clone(),
        info: watch::channel(Some(Arc::new(info))).1,
        slot: 0,
        keeping: Keeping::default(),
    };
    let plugin = supervise(images[0].clone(), around);
    let ready = plugin.wait(|status| status.state == State::Ready);
    tokio::time::timeout(PATIENCE, ready).await.expect("in time").expect("the plugin is Ready");
    World { plugin, versions, changes }
}

async fn prompt(plugin: &Handle, prefix: &str, input: &str) -> Result<String, HostError> {
    #[derive(serde::Serialize)]
    struct Args<'a> {
        prefix: &'a str,
        input: &'a str,
    }
    let body = pack::encode(&Args { prefix, input }).expect("packs");
    let answer = plugin.call("prompt", body, Duration::from_secs(30)).await?;
    Ok(pack::decode::<Option<String>>(&answer).expect("a text").expect("an answer"))
}

/// Calls as fast as was asked for while versions come and go. Returns what came back, and the rate that was reached.
async fn under_load(
    world: &World,
    rate: u64,
    prefix: &'static str,
    line: fn(u64) -> String,
) -> (Vec<(u64, String)>, f64) {
    let (stop, next) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let mut callers = JoinSet::new();
    let begun = Instant::now();
    for n in 0..CALLERS {
        let (plugin, stop, next) = (world.plugin.clone(), stop.clone(), next.clone());
        callers.spawn(async move {
            let mut answers = Vec::new();
            // One after the other, so that some call is open at any moment. An interval that was missed is made up for: the rate
            // is an average.
            let period = Duration::from_millis(1000 * CALLERS / rate);
            let first = tokio::time::Instant::now() + period * n as u32 / CALLERS as u32;
            let mut beat = tokio::time::interval_at(first, period);
            while !stop.load(Ordering::Relaxed) {
                beat.tick().await;
                let id = next.fetch_add(1, Ordering::Relaxed);
                let answer = prompt(&plugin, prefix, &line(id))
                    .await
                    .unwrap_or_else(|error| panic!("call {id}: {error}"));
                answers.push((id, answer));
            }
            answers
        });
    }
    for n in 1..=UPGRADES + 1 {
        // Each version serves for a while: as many calls as a tenth of a second has.
        let at = next.load(Ordering::Relaxed) + rate / 10;
        while next.load(Ordering::Relaxed) < at {
            tokio::task::yield_now().await;
            assert!(callers.try_join_next().is_none(), "a caller ended");
        }
        if n <= UPGRADES {
            let version = world.versions[n % 2].clone();
            let running = world.plugin.replace(version.clone()).await.expect("it comes up");
            assert_eq!(running, version.label());
        }
    }
    stop.store(true, Ordering::Relaxed);
    let answers: Vec<_> = callers.join_all().await.into_iter().flatten().collect();
    let rate = answers.len() as f64 / begun.elapsed().as_secs_f64();
    (answers, rate)
}

/// Ends the plugin, and waits until every process of it is gone.
async fn end(world: World) -> Handle {
    let World { plugin, changes, .. } = world;
    plugin.stop().await;
    tokio::time::timeout(PATIENCE, plugin.wait(|status| status.state == State::Stopped))
        .await
        .expect("in time");
    let begun = Instant::now();
    let left =
        || changes.0.lock().expect("no panic").iter().filter(|change| change.starts_with("left ")).count();
    while left() < UPGRADES {
        assert!(begun.elapsed() < PATIENCE, "{:?}", changes.0.lock().expect("no panic"));
        tokio::task::yield_now().await;
    }
    plugin
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn upgrades_under_load_fail_no_call_and_run_none_twice() {
    let world = world("echo").await;
    let (answers, rate) = under_load(&world, RATE, "echo", |id| id.to_string()).await;
    eprintln!("echo: {} calls at {rate:.0}/s during {UPGRADES} upgrades", answers.len());
    // What is not optimised may be too slow for it, and what is promised is about what is.
    assert!(cfg!(debug_assertions) || rate > RATE as f64 * 0.95, "{rate}");
    for (id, answer) in &answers {
        assert_eq!(*answer, id.to_string());
    }
    let plugin = end(world).await;
    let said = plugin.logs.last(256).0;
    let counts: Vec<u64> =
        said.iter().filter_map(|line| line.text.strip_prefix("answered ")?.parse().ok()).collect();
    assert_eq!(counts.len(), UPGRADES + 1, "each process says goodbye: {said:?}");
    assert_eq!(counts.iter().sum::<u64>(), answers.len() as u64, "{counts:?}");
    assert!(counts.iter().all(|count| *count > 0), "every version served: {counts:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_that_take_a_while_are_not_cut_off_by_an_upgrade() {
    let world = world("hostile").await;
    // Each call sleeps in the plugin for longer than a stop takes that does not wait for it.
    let (answers, _) = under_load(&world, RATE / 5, "hostile", |_| "good".into()).await;
    assert!(answers.iter().all(|(_, answer)| answer.starts_with("42 ")));
    end(world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn upgrades_with_a_state_fail_no_call_and_lose_or_repeat_none() {
    let world = world("kvstore").await;
    let (answers, rate) = under_load(&world, RATE, "kv", |_| "incr calls".into()).await;
    eprintln!(
        "kvstore: {} calls at {rate:.0}/s during {UPGRADES} upgrades that hand a state over",
        answers.len()
    );
    assert!(cfg!(debug_assertions) || rate > RATE as f64 * 0.95, "{rate}");
    let numbers: HashSet<u64> =
        answers.iter().map(|(_, answer)| answer.parse().unwrap_or_else(|_| panic!("{answer}"))).collect();
    assert_eq!(numbers.len(), answers.len(), "no number was given twice");
    assert_eq!(numbers.iter().max(), Some(&(answers.len() as u64)), "and none was left out");
    assert_eq!(prompt(&world.plugin, "kv", "get calls").await.expect("it lives"), answers.len().to_string());
    end(world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_is_open_during_an_upgrade_ends_where_it_began() {
    let world = world("echo").await;
    let (before, plugin) = (world.plugin.status().generation, world.plugin.clone());
    let calls: Vec<_> = (0..20)
        .map(|n| {
            let plugin = plugin.clone();
            tokio::spawn(async move { prompt(&plugin, "echo", &n.to_string()).await })
        })
        .collect();
    let running = world.plugin.replace(world.versions[1].clone()).await.expect("it comes up");
    assert_eq!(running, world.versions[1].label());
    for (n, call) in calls.into_iter().enumerate() {
        assert_eq!(call.await.expect("no panic").expect("an answer"), n.to_string());
    }
    let status = world.plugin.status();
    assert!(status.generation > before && status.starts == 2);
    // Another one while the first is under way is refused, not queued.
    let (one, two) = tokio::join!(
        world.plugin.replace(world.versions[0].clone()),
        world.plugin.replace(world.versions[1].clone())
    );
    let refused =
        [&one, &two].into_iter().filter(|r| r.as_ref().is_err_and(|e| e.code == Code::Conflict)).count();
    assert_eq!(refused, 1, "{one:?} {two:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn handlers_that_never_return_are_hung_when_nothing_else_answers_either() {
    let world = world("hostile").await;
    let hang = |n: u64| {
        let plugin = world.plugin.clone();
        async move {
            #[derive(serde::Serialize)]
            struct Args<'a> {
                prefix: &'a str,
                input: &'a str,
            }
            let body = pack::encode(&Args { prefix: "hostile", input: "hang" }).expect("packs");
            plugin.call("prompt", body, Duration::from_millis(300 + n)).await
        }
    };
    // Readers and runtime have four threads for it. As long as one is left the plugin answers on it, and is not touched.
    for n in 0..4 {
        let good = prompt(&world.plugin, "hostile", "good").await.expect("another thread");
        assert_eq!(good.split(' ').next(), Some("42"), "{n} hang");
        assert_eq!(hang(n).await.expect_err("late").code, Code::Timeout);
    }
    let died = world.plugin.wait(|status| status.last_death.is_some());
    let status = tokio::time::timeout(PATIENCE, died).await.expect("in time").expect("it lives");
    assert_eq!(status.last_death.map(|cause| cause.word()), Some("hang"));
    let again = world.plugin.wait(|status| status.state == State::Ready && status.starts == 2);
    tokio::time::timeout(PATIENCE, again).await.expect("in time").expect("it is back");
    let error = {
        world.plugin.disable().await;
        let stopped = world.plugin.wait(|status| status.state == State::Stopped);
        tokio::time::timeout(PATIENCE, stopped).await.expect("in time").expect("it ends");
        prompt(&world.plugin, "hostile", "good").await.expect_err("it does not run")
    };
    assert_eq!(error.code, Code::Unavailable);
    for text in ["plugin hostile (", "is Stopped", "did not answer prompt", "thenodes plugin enable hostile"]
    {
        assert!(error.message.contains(text), "{text}: {error}");
    }
}
