//! The allow-list is held against reality: every entry is needed by an honest library, and no other number answers. Both need a
//! runner that can leave something out, which is built for tests alone.

use serde_json::Value;
use std::collections::BTreeSet;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;
use thenodes_ipc::launch::{Layer, Without};
use thenodes_tests::attack::run::World;
use thenodes_tests::attack::{Phase, Verdict};
use thenodes_tests::{bin_dir, plugin, skip};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

fn explained(mode: &str) -> Value {
    let output = Command::new(bin_dir().join("thenodes-runner")).args(["--explain", mode, "--json"]).output();
    serde_json::from_slice(&output.expect("the runner runs").stdout).expect("a list")
}

fn names(list: &Value, key: &str) -> BTreeSet<String> {
    let entries = list[key].as_array().expect("a list");
    entries.iter().filter_map(|entry| entry["call"].as_str()).map(str::to_owned).collect()
}

fn world(without: Without) -> World {
    let runner = bin_dir().join("thenodes-runner-without");
    assert!(runner.exists(), "{} is not built; run the tests with `cargo xtask test`", runner.display());
    World::new(runner, &plugin("hostile"), Some(without)).expect("a world")
}

/// What the kernel itself calls on a process's behalf, at moments that no program chooses.
const BY_THE_KERNEL: [&str; 1] = ["restart_syscall"];
/// What only the runner calls, before the plugin; without it there is no run at all.
const BY_THE_RUNNER: [&str; 3] = ["sendmsg", "seccomp", "exit_group"];
/// Runs at the same time; most of those that miss something wait for it until somebody loses patience.
const AT_ONCE: usize = 8;

#[tokio::test(flavor = "multi_thread")]
async fn every_entry_of_the_strict_list_is_needed_by_an_honest_library() {
    let whole = world(Without { gentle: true, ..Without::default() });
    let (verdict, denials) = whole.sin("honest", Phase::Message).await;
    assert!(
        matches!(&verdict, Verdict::Ended(how) if how.contains("SIGABRT")),
        "with the whole list: {verdict} {denials:?}"
    );
    let mut idle = Vec::new();
    let room = Arc::new(Semaphore::new(AT_ONCE));
    let mut runs = JoinSet::new();
    let exempt = |call: &str| BY_THE_KERNEL.contains(&call) || BY_THE_RUNNER.contains(&call);
    for call in names(&explained("strict"), "allowed").into_iter().filter(|call| !exempt(call)) {
        let room = room.clone();
        runs.spawn(async move {
            let _room = room.acquire_owned().await;
            let without = Without { calls: vec![call.clone()], gentle: true, ..Without::default() };
            let world = world(without).impatient(Duration::from_secs(6));
            let (verdict, denials) = world.sin("honest", Phase::Message).await;
            let missed = denials.by_syscall.contains_key(&call);
            // Some are needed before anything can be recorded: the run then ends early, and differently.
            let broke = !matches!(&verdict, Verdict::Ended(how) if how.contains("SIGABRT"));
            (call, missed || broke)
        });
    }
    while let Some(run) = runs.join_next().await {
        match run.expect("no panic") {
            (_, true) => {}
            (call, false) => idle.push(call),
        }
    }
    assert!(idle.is_empty(), "on the list, and nothing honest needs them: {idle:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_number_answers_that_is_not_on_the_list() {
    let gentle = world(Without { gentle: true, ..Without::default() });
    let (verdict, _) = gentle.sin("every-number", Phase::Message).await;
    let Verdict::Refused(said) = verdict else { panic!("{verdict}") };
    let list = explained("strict");
    let known = &(&(&names(&list, "allowed") | &names(&list, "failing")) | &names(&list, "made"));
    let answered = said.rsplit(": ").next().unwrap_or_default();
    let mut count = 0;
    for entry in answered.split_whitespace() {
        let number: usize = entry.split(':').next().and_then(|number| number.parse().ok()).expect("a number");
        let name = syscalls::Sysno::new(number).map(|call| call.name().to_owned());
        assert!(name.as_ref().is_some_and(|name| known.contains(name)), "{entry} ({name:?}) answered");
        count += 1;
    }
    assert!(count > 30, "the allowed ones do answer: {said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_shipped_runner_leaves_no_wall_out() {
    let runner = bin_dir().join("thenodes-runner");
    let wanted = Without { gentle: true, ..Without::default() };
    let world = World::new(runner, &plugin("hostile"), Some(wanted)).expect("a world");
    let (verdict, _) = world.sin("honest", Phase::Message).await;
    assert!(matches!(&verdict, Verdict::Ended(how) if how.contains("leaves no wall out")), "{verdict}");
}

/// Linux 6.10 has `mseal`.
fn has_seals() -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers = release.split(['.', '-']).map_while(|word| word.trim().parse::<u32>().ok());
    (numbers.next(), numbers.next()) >= (Some(6), Some(10))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_filters_programs_are_sealed_against_whoever_finds_them_without_any_filter() {
    let name = "the_filters_programs_are_sealed_against_whoever_finds_them_without_any_filter";
    if !has_seals() {
        return skip(name, "mseal needs Linux 6.10; the first filter refuses it alone");
    }
    // With the filter in force the broker refuses and tells it; the suite shows that. Here the kernel's seal stands by itself.
    let open = world(Without { layers: vec![Layer::Seccomp], ..Without::default() });
    for probe in ["filter-rewrite", "filter-replace", "filter-unmap"] {
        let control = Command::new(bin_dir().join("hostile-control")).arg(probe).output().expect("it runs");
        let control = String::from_utf8_lossy(&control.stdout).into_owned();
        assert!(control.contains("GOT THROUGH"), "the control, memory that is not sealed: {control}");
        let (verdict, denials) = open.sin(probe, Phase::Constructor).await;
        let Verdict::Refused(said) = verdict else { panic!("{probe}: {verdict}") };
        assert!(said.ends_with("Operation not permitted (os error 1)"), "{probe}: {said}");
        assert_eq!(denials.total, 0, "{probe}: it was not the broker: {denials:?}");
    }
}
