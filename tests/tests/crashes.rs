//! What callers may rely on when plugins crash, block, panic and are cancelled: every acknowledged message and every answered call had
//! its effect once, none has it twice unless its caller said that it may, no answer reaches another call, and no handler keeps the others
//! waiting. Real runners, real SDK; what a plugin did is what arrived at the node's side.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use thenodes_ipc::Code;
use thenodes_node::config::Transport;
use thenodes_node::plugins::handle::Handle;
use thenodes_node::plugins::lifecycle::State;
use thenodes_tests::inside::{ask, ask_again, back_after, how_many, tell, wait_for, Dice, Inside, COSTLY};
use thenodes_tests::{plugin, PATIENCE};
use tokio::task::JoinSet;

const BOTH: [Transport; 2] = [Transport::Ring, Transport::Socket];
/// Crashes in every run of the suite; `THENODES_CRASHES` asks for more.
const CRASHES: usize = 120;

fn hostile() -> PathBuf {
    plugin("hostile")
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Way {
    Call,
    Idempotent,
    Message,
}

/// What became of one id.
struct Outcome {
    id: String,
    way: Way,
    acknowledged: bool,
    error: String,
}

async fn one(plugin: Handle, id: String, way: Way, point: &'static str) -> Outcome {
    let words = format!("effect {id} {point}");
    let outcome = match way {
        Way::Call => ask(&plugin, &words, PATIENCE).await.map(drop),
        Way::Idempotent => ask_again(&plugin, &words, PATIENCE).await.map(drop),
        Way::Message => tell(&plugin, &words).await,
    };
    let (acknowledged, error) = (outcome.is_ok(), outcome.err().map(|e| e.to_string()).unwrap_or_default());
    Outcome { id, way, acknowledged, error }
}

/// So many crashes of one plugin, each in the middle of calls and messages.
async fn crash(plugin: Handle, crashes: usize, mut dice: Dice) -> Vec<Outcome> {
    let mut outcomes = Vec::new();
    for round in 0..crashes {
        plugin.reset().await; // deaths on purpose are not held against it
        let generation = plugin.status().generation.0;
        let (crasher, count) = (dice.below(8), 8);
        let mut open = JoinSet::new();
        for n in 0..count {
            let point = match n == crasher {
                true => ["before", "in", "after"][dice.below(3) as usize],
                false => "none",
            };
            // What is repeated with a crash in it would crash the next process too.
            let ways = if n == crasher { 2 } else { 3 };
            let way = [Way::Call, Way::Message, Way::Idempotent][dice.below(ways) as usize];
            let id = format!("{}-{round}-{n}", plugin.name);
            open.spawn(one(plugin.clone(), id, way, point));
        }
        outcomes.extend(open.join_all().await);
        back_after(&plugin, generation).await;
    }
    outcomes
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_acknowledged_happened_once_and_nothing_happens_twice_that_may_not() {
    const PLUGINS: usize = 4;
    let crashes = how_many("THENODES_CRASHES", CRASHES).div_ceil(2 * PLUGINS);
    for transport in BOTH {
        let world = Inside::new(transport);
        let begun = Instant::now();
        let mut runs = JoinSet::new();
        for n in 0..PLUGINS {
            let plugin = world.start(&format!("crash{n}"), &hostile()).await;
            runs.spawn(crash(plugin, crashes, Dice::new(n as u64)));
        }
        let outcomes: Vec<Outcome> = runs.join_all().await.into_iter().flatten().collect();
        let (mut kept, mut twice) = (0, 0);
        for Outcome { id, way, acknowledged, error } in &outcomes {
            let effects = world.effects.count(id);
            let most = if *way == Way::Idempotent { 2 } else { 1 };
            assert!(effects <= most, "{id} {way:?}: {effects} effects");
            assert!(effects >= 1 || !acknowledged, "{id} {way:?}: acknowledged and lost");
            // One that met a closed door was never sent, and heard so at once; every other is answered by the next process.
            let answered = *acknowledged || *way != Way::Idempotent;
            assert!(
                answered || (error.contains("UNAVAILABLE") && effects == 0),
                "{id}: {effects} effects: {error}"
            );
            kept += usize::from(*acknowledged);
            twice += usize::from(effects == 2);
        }
        eprintln!(
            "{transport:?}: {} crashes, {} ids, {kept} acknowledged, {twice} of those that may happen twice did; {:?}",
            crashes * PLUGINS,
            outcomes.len(),
            begun.elapsed()
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_a_call_that_may_be_made_twice_is_made_again_and_that_once() {
    let world = Inside::new(Transport::Ring);
    let plugin = world.start("again", &hostile()).await;
    let error = ask(&plugin, "effect plain after", PATIENCE).await.expect_err("it crashed");
    assert_eq!((error.code, world.effects.count("plain")), (Code::PluginCrashed, 1));
    back_after(&plugin, 1).await;
    // It crashes at the second try too, and there is no third.
    plugin.reset().await;
    let error = ask_again(&plugin, "effect twice after", PATIENCE).await.expect_err("it crashed twice");
    assert_eq!((error.code, world.effects.count("twice")), (Code::PluginCrashed, 2));
    wait_for(&plugin, "fourth process", |s| s.generation.0 == 4 && s.state == State::Ready).await;
    assert_eq!(world.effects.count("twice"), 2);
    // An error that the plugin answers is an answer.
    let error = ask_again(&plugin, "panic", PATIENCE).await.expect_err("it panics");
    assert!(error.message.contains("a panic on purpose"), "{error}");
    assert_eq!(plugin.status().generation.0, 4);
    // One death more: the restart after the next one comes 400 ms later, this caller waits for less, and there is no second try.
    let _ = ask(&plugin, "effect other after", PATIENCE).await;
    back_after(&plugin, 4).await;
    // A machine may be so slow that the time is over before the plugin begins; nothing has happened then.
    for _ in 0..20 {
        let hurried = ask_again(&plugin, "effect hurried after", Duration::from_millis(300)).await;
        assert!(hurried.is_err_and(|error| [Code::PluginCrashed, Code::Timeout].contains(&error.code)));
        if world.effects.count("hurried") > 0 {
            break;
        }
    }
    wait_for(&plugin, "sixth process", |s| s.generation.0 == 6 && s.state == State::Ready).await;
    assert_eq!(world.effects.count("hurried"), 1);
    // Where nobody comes in time, the caller hears of the first end at once.
    plugin.disable().await;
    wait_for(&plugin, "stop", |status| !status.state.has_process()).await;
    let begun = Instant::now();
    assert!(ask_again(&plugin, "good", PATIENCE).await.is_err_and(|e| e.code == Code::Unavailable));
    assert!(begun.elapsed() < PATIENCE / 2);
}

/// Calls that are taken back at any moment of their lives, in a lane, on the reading thread and on the runtime.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_answer_of_a_cancelled_call_reaches_no_other() {
    for transport in BOTH {
        let world = Inside::new(transport);
        let plugin = world.start("cancel", &hostile()).await;
        let mut callers = JoinSet::new();
        for caller in 0..8u64 {
            let plugin = plugin.clone();
            callers.spawn(async move {
                let mut dice = Dice::new(caller);
                let (mut answered, mut cancelled) = (0, 0);
                for n in 0..150 {
                    let deed =
                        ["after-timer 1", "after-timer 0", "after-host 0", "block-on 0", "block-yield 1"]
                            [dice.below(5) as usize];
                    let words = format!("{deed} {caller}-{n}");
                    // Some wait however busy the machine is: an answer that went astray would be missed by them.
                    let hurried = dice.below(8) > 0;
                    let patience = if hurried { Duration::from_micros(dice.below(4000)) } else { PATIENCE };
                    if dice.below(4) == 0 {
                        drop(tell(&plugin, &format!("block-sleep {}", dice.below(3))));
                        // before others in the lane
                    }
                    match tokio::time::timeout(patience, ask(&plugin, &words, PATIENCE)).await {
                        Ok(Ok(answer)) => {
                            assert_eq!(answer, words, "the answer of another call");
                            answered += 1;
                        }
                        Ok(Err(error)) => panic!("{words}: {error}"),
                        Err(_) => cancelled += 1,
                    }
                }
                (answered, cancelled)
            });
        }
        let counts = callers.join_all().await;
        let answered: u32 = counts.iter().map(|(answered, _)| answered).sum();
        let cancelled: u32 = counts.iter().map(|(_, cancelled)| cancelled).sum();
        eprintln!("{transport:?}: {answered} answered, {cancelled} taken back");
        assert!(answered > 0 && cancelled > 0, "both happened: {answered}, {cancelled}");
        assert_eq!(ask(&plugin, "good", PATIENCE).await.as_deref(), Ok("42 0"));
        assert_eq!(plugin.status().starts, 1);
    }
}

/// The plugin answers another call while this runs; the way of blocking is in the words.
async fn others_go_on(plugin: &Handle, blocked: impl Fn() -> tokio::task::JoinHandle<()>, what: &str) {
    let blocked = blocked();
    let begun = Instant::now();
    let mut beside = 0;
    for _ in 0..20 {
        assert_eq!(ask(plugin, "after-host 0", PATIENCE).await.as_deref(), Ok("after-host 0"), "{what}");
        assert_eq!(ask(plugin, "after-timer 1", PATIENCE).await.as_deref(), Ok("after-timer 1"), "{what}");
        beside += u32::from(!blocked.is_finished());
    }
    let took = begun.elapsed();
    tokio::time::timeout(PATIENCE, blocked).await.expect("it ends").expect("no panic");
    // A machine may be slow, but not so slow that nobody is answered within seconds.
    assert!(!what.contains("000") || beside > 0, "{what}: only {beside} of 20 came beside it, in {took:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handler_that_blocks_keeps_no_other_waiting() {
    for transport in BOTH {
        let world = Inside::new(transport);
        let plugin = world.start("block", &hostile()).await;
        for deed in
            ["block-mutex 1000", "block-sleep 3000", "block-spin 1000", "block-channel 0", "block-on 0"]
        {
            let in_prompt = || {
                let plugin = plugin.clone();
                tokio::spawn(async move {
                    assert_eq!(ask(&plugin, deed, PATIENCE).await.as_deref(), Ok(deed));
                })
            };
            others_go_on(&plugin, in_prompt, &format!("prompt {deed}")).await;
            let in_message = || {
                let told = tell(&plugin, deed);
                tokio::spawn(async move { told.await.expect("taken") })
            };
            others_go_on(&plugin, in_message, &format!("message {deed}")).await;
        }
        let status = plugin.status();
        assert_eq!(
            (status.starts, status.state),
            (1, State::Ready),
            "slow is not wedged: {:?}",
            status.missed
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handler_that_goes_on_by_itself_after_blocking_is_not_forgotten() {
    let world = Inside::new(Transport::Ring);
    let plugin = world.start("yield", &hostile()).await;
    for n in 0..20 {
        let begun = Instant::now();
        let words = format!("block-yield 25 {n}");
        // Nothing else is asked meanwhile, so nothing else wakes the reader. The node asks for a sign of life after a second.
        assert_eq!(ask(&plugin, &words, PATIENCE).await.as_deref(), Ok(words.as_str()));
        assert!(
            begun.elapsed() < Duration::from_millis(900),
            "it waited for somebody else: {:?}",
            begun.elapsed()
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_is_handed_over_while_all_calls_are_open() {
    let world = Inside::new(Transport::Ring);
    let plugin = world.start("full", &hostile()).await;
    let mut open = JoinSet::new();
    for _ in 0..64 {
        let plugin = plugin.clone();
        open.spawn(async move { ask(&plugin, "sleep", PATIENCE).await });
    }
    while plugin.counters.answered.load(std::sync::atomic::Ordering::Relaxed) < 1 {
        // The first message may come before the calls; one of them comes after.
        tell(&plugin, "block-on 0").await.expect("taken");
    }
    for _ in 0..100 {
        tokio::task::yield_now().await;
        tokio::time::timeout(PATIENCE / 4, tell(&plugin, "block-on 0"))
            .await
            .expect("in time")
            .expect("taken");
    }
    assert_eq!(open.try_join_next().map(|_| ()), None, "they are all open still");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_panic_in_any_step_is_its_own_calls_error() {
    let world = Inside::new(Transport::Ring);
    let plugin = world.start("panics", &hostile()).await;
    for _ in 0..20 {
        for words in ["panic", "panic-later 1", "panic-host 0"] {
            let error = ask(&plugin, words, PATIENCE).await.expect_err(words);
            assert!(
                error.code == Code::PluginCrashed && error.message.contains("a panic"),
                "{words}: {error}"
            );
        }
        // Its destructor panics where it is taken back.
        let taken_back =
            tokio::time::timeout(Duration::from_millis(3), ask(&plugin, "panic-drop 0", PATIENCE)).await;
        assert!(taken_back.is_err(), "it never ends by itself");
    }
    assert_eq!(ask(&plugin, "good", PATIENCE).await.as_deref(), Ok("42 0"));
    assert_eq!(plugin.status().starts, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_wakes_many_calls_and_no_more_threads_end_well() {
    for transport in BOTH {
        let world = Inside::new(transport);
        let plugin = world.start("many", &hostile()).await;
        assert_eq!(ask(&plugin, "wakes 100000", PATIENCE).await.as_deref(), Ok("wakes 100000"));
        let all = |plugin: &Handle| {
            let plugin = Arc::new(plugin.clone());
            let mut calls = JoinSet::new();
            for n in 0..64 {
                let plugin = plugin.clone();
                let deed = ["block-sleep 20", "after-timer 5", "block-on 0", "block-spin 10"][n % 4];
                calls.spawn(async move {
                    let words = format!("{deed} {n}");
                    let told = tell(&plugin, deed);
                    assert_eq!(ask(&plugin, &words, PATIENCE).await.as_deref(), Ok(words.as_str()));
                    told.await
                });
            }
            calls
        };
        all(&plugin).join_all().await;
        // From here on no thread can be started, and what is there has to do.
        let said = ask(&plugin, "threads", PATIENCE).await.expect("an answer");
        assert!(said.starts_with("denied"), "{said}");
        all(&plugin).join_all().await;
        assert_eq!(plugin.status().starts, 1);
    }
}

/// On two threads, two plugins that always have another question: what is answered where it is read may not keep a thread for good.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn plugins_that_ask_without_end_keep_no_thread_of_the_node() {
    for transport in BOTH {
        let world = Inside::new(transport);
        let mut asking = Vec::new(); // a plugin ends with its last handle
        for n in 0..2 {
            let plugin = world.start(&format!("asks{n}"), &hostile()).await;
            let words = format!("ask-forever {COSTLY}{n}");
            assert_eq!(ask(&plugin, &words, PATIENCE).await.as_deref(), Ok(words.as_str()));
            asking.push(plugin);
        }
        // Timers, tasks and other plugins go on; a runtime whose threads are taken would not even come here.
        let others = async {
            let quiet = world.start("quiet", &hostile()).await;
            for n in 0..20 {
                tokio::time::sleep(Duration::from_millis(1)).await;
                let words = format!("after-host {n}");
                assert_eq!(ask(&quiet, &words, PATIENCE).await.as_deref(), Ok(words.as_str()));
            }
        };
        tokio::time::timeout(PATIENCE, others).await.expect("the node has time for others");
        // And each of them is heard all the time.
        let begun = Instant::now();
        while (0..2).any(|n| world.effects.count(&format!("{COSTLY}{n}")) < 20) {
            assert!(begun.elapsed() < PATIENCE, "one of them is not served");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert!(asking.iter().all(|plugin| plugin.status().starts == 1), "none of them had to be replaced");
    }
}
