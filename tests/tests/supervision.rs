//! A plugin's life as its operator sees it: health, wedges, states that are left, versions, wishes that outlive the node.

use nix::sys::signal::{kill, Signal};
use nix::unistd::Pid;
use std::fs;
use std::time::Duration;
use thenodes_tests::{another, hostile, plugin, Spec, TestNode};

/// Sends a signal to the process in which a plugin's code runs.
fn signal_runner(node: &TestNode, name: &str, signal: Signal) {
    let warden = node.status(name)["pid"].as_u64().expect("a pid") as u32;
    let runner = *thenodes_tests::descendants(warden).last().expect("a runner");
    kill(Pid::from_raw(runner as i32), signal).expect("it lives");
}

/// Writes a file beside the node's plugins, and says where.
fn file(node: &TestNode, name: &str, bytes: &[u8]) -> String {
    let path = node.dir.path().join(name);
    fs::create_dir_all(path.parent().expect("a directory")).expect("a directory");
    fs::write(&path, bytes).expect("written");
    path.display().to_string()
}

const QUICK: &str = "[plugins.supervision]\nhealth_every_s = 1\ndegraded_after = 1\nrestart_after = 100\n";

#[test]
fn a_plugin_that_is_not_well_is_degraded_serves_on_and_recovers() {
    let mut node = Spec::new("sick").with("hostile").more(QUICK).start();
    assert_eq!(node.prompt("hostile", "sick").as_deref(), Ok("sick"));
    node.expect("name=hostile action=degraded");
    let status = node.status("hostile");
    assert_eq!((status["state"].as_str(), status["starts"].as_u64()), (Some("Degraded"), Some(1)));
    let page = String::from_utf8(node.command(&["plugin", "why", "hostile"]).stdout).expect("text");
    assert!(page.contains("Degraded") && page.contains("a fever on purpose"), "{page}");
    assert_eq!(node.prompt("hostile", "well").as_deref(), Ok("well"), "it takes calls");
    node.expect("name=hostile action=recovered");
    assert_eq!(node.status("hostile")["state"], "Ready");
}

#[test]
fn a_plugin_that_stays_unwell_is_replaced_and_its_cause_says_why() {
    let quick = "[plugins.supervision]\nhealth_every_s = 1\ndegraded_after = 1\nrestart_after = 2\n";
    let mut node = Spec::new("ill").with("hostile").with("echo").more(quick).start();
    assert_eq!(node.prompt("hostile", "sick").as_deref(), Ok("sick"));
    let died = node.expect("name=hostile action=died");
    assert!(died.contains("cause=health") && died.contains("a fever on purpose"), "{died}");
    node.expect("name=hostile action=ready detail=Some(\"generation=2");
    assert_eq!(node.prompt("hostile", "good").as_deref(), Ok("42 0"));
    assert_eq!(node.status("echo")["starts"], 1);
}

#[test]
fn a_stopped_runner_is_wedged_and_its_callers_hear_unavailable() {
    let mut node = Spec::new("wedge").with("hostile").start();
    signal_runner(&node, "hostile", Signal::SIGSTOP);
    let begun = std::time::Instant::now();
    let error = node.prompt("hostile", "good").expect_err("nobody answers");
    assert!(error.starts_with("UNAVAILABLE") && error.contains("wedged"), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(15), "long before the call's own deadline of 30 s");
    let died = node.seen("name=hostile action=died");
    assert!(died.contains("cause=wedged"), "{died}");
    node.expect("name=hostile action=ready detail=Some(\"generation=2");
    assert_eq!(node.prompt("hostile", "good").as_deref(), Ok("42 0"));
}

#[test]
fn a_stopped_runner_that_nobody_calls_is_found_by_its_health() {
    let quick = "[plugins.supervision]\nhealth_every_s = 1\nhealth_timeout_s = 1\n";
    let mut node = Spec::new("idle").with("echo").more(quick).start();
    signal_runner(&node, "echo", Signal::SIGSTOP);
    let died = node.expect("name=echo action=died");
    assert!(died.contains("cause=wedged"), "{died}");
    node.expect("name=echo action=ready detail=Some(\"generation=2");
}

#[test]
fn a_slow_handler_is_not_wedged() {
    let node = Spec::new("slow").with("hostile").start();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            // More of them than the plugin has threads for, each longer than the moment after which the node asks.
            scope.spawn(|| assert_eq!(node.prompt("hostile", "slow").as_deref(), Ok("slept")));
        }
    });
    assert_eq!(node.status("hostile")["starts"], 1);
}

#[test]
fn a_state_is_left_whole_across_a_restart_and_not_after_a_crash() {
    let mut node = Spec::new("state").with_hostile("leaver", "state:1048576").start();
    node.seen("was left nothing");
    node.seen("too early: true");
    assert_eq!(node.json(&["plugin", "restart", "leaver"])["plugin"]["state"], "Ready");
    node.expect("leaving 1048576 bytes: Ok(())");
    node.expect("was left 1048576 bytes, whole: true");
    let _ = node.prompt("hostile", "segv");
    node.expect("action=ready detail=Some(\"generation=3");
    assert_eq!(node.logs("leaver").iter().filter(|line| line.contains("was left nothing")).count(), 2);
}

#[test]
fn a_state_that_is_too_large_is_refused_and_one_that_kills_its_reader_is_dropped() {
    let mut node = Spec::new("deadly").with_hostile("large", "state:1048577").start();
    assert_eq!(node.json(&["plugin", "restart", "large"])["plugin"]["state"], "Ready");
    node.expect("ResourceExhausted");
    let mut node = Spec::new("deadly").with_hostile("deadly", "state:10 die").start();
    // The command waits until a process is Ready: the first that got the state died of it, the next did not get it.
    node.json(&["plugin", "restart", "deadly"]);
    let died = node.expect("name=deadly action=died");
    assert!(died.contains("generation=2"), "{died}");
    node.expect("name=deadly action=ready detail=Some(\"generation=3");
}

#[test]
fn what_a_disabled_plugin_is_outlives_the_node() {
    let spec = Spec::new("wish").with("echo").with("kvstore");
    let dir = spec.lay_out();
    let node = spec.start_in(dir);
    assert_eq!(node.json(&["plugin", "disable", "echo"])["plugin"]["state"], "Stopped");
    let error = node.json(&["plugin", "restart", "echo"]);
    assert_eq!(error["error"]["code"], "CONFLICT", "{error}");
    let node = node.again(&spec);
    let status = node.status("echo");
    assert_eq!((status["state"].as_str(), status["desired"].as_str()), (Some("Available"), Some("disabled")));
    assert_eq!(node.status("kvstore")["state"], "Ready");
    let page = node.json(&["plugin", "why", "echo"]);
    assert!(page["what_to_do"].as_str().is_some_and(|text| text.contains("plugin enable echo")), "{page}");
    assert_eq!(node.json(&["plugin", "enable", "echo"])["plugin"]["state"], "Ready");
    assert_eq!(node.again(&spec).status("echo")["state"], "Ready");
}

#[test]
fn a_version_is_upgraded_and_rolled_back_and_both_hold_after_the_nodes_next_start() {
    let spec = Spec::new("versions").with("echo");
    let dir = spec.lay_out();
    let node = spec.start_in(dir);
    let first = node.status("echo")["sha256"].clone();
    let error = node.json(&["plugin", "rollback", "echo"]);
    assert_eq!(error["error"]["code"], "NOT_FOUND", "{error}");
    let new = file(&node, "new/libecho.so", &another("echo"));
    let answer = node.json(&["plugin", "upgrade", "echo", &new]);
    let second = answer["plugin"]["sha256"].clone();
    assert!(answer["plugin"]["state"] == "Ready" && second != first, "{answer}");
    fs::remove_file(&new).expect("the node has its own copy");
    let node = node.again(&spec);
    assert_eq!(node.status("echo")["sha256"], second);
    assert_eq!(node.json(&["plugin", "rollback", "echo"])["plugin"]["sha256"], first);
    let node = node.again(&spec);
    assert_eq!(node.status("echo")["sha256"], first);
    assert_eq!(node.json(&["plugin", "rollback", "echo"])["plugin"]["sha256"], second);
    assert_eq!(node.prompt("echo", "x").as_deref(), Ok("x"));
    // Another file in the plugin directory is the operator's later word.
    let mut third = another("echo");
    third.push(3);
    fs::write(node.dir.path().join("plugins/libecho.so"), third).expect("written");
    let answer = node.json(&["plugin", "reload", "echo"]);
    let third = answer["plugin"]["sha256"].clone();
    assert!(third != first && third != second, "{answer}");
    assert_eq!(node.again(&spec).status("echo")["sha256"], third);
}

#[test]
fn a_version_that_does_not_come_up_changes_nothing() {
    let spec = Spec::new("bad").with("echo");
    let dir = spec.lay_out();
    let mut node = spec.start_in(dir);
    let before = node.status("echo");
    for (switch, why) in [
        ("load:abort", "SIGABRT"),
        ("constructor:exit0", "exit code 0"),
        ("refuse:not today", "not today"),
        ("abi:silent", "register"),
    ] {
        let new = file(&node, "new/libecho.so", &hostile(switch));
        let answer = node.json(&["plugin", "upgrade", "echo", &new]);
        let text = answer["error"]["message"].as_str().unwrap_or_default();
        assert!(text.contains(why) && text.contains("goes on"), "{switch}: {answer}");
        assert_eq!(node.prompt("echo", switch).as_deref(), Ok(switch));
    }
    node.expect("action=upgrade_failed");
    let after = node.status("echo");
    assert_eq!(
        (&after["pid"], &after["sha256"], &after["starts"]),
        (&before["pid"], &before["sha256"], &before["starts"])
    );
    assert_eq!(
        node.json(&["plugin", "rollback", "echo"])["error"]["code"],
        "NOT_FOUND",
        "none of them was kept"
    );
}

#[test]
fn a_version_that_dies_within_its_probation_is_rolled_back_and_so_is_what_the_node_remembers() {
    let spec = Spec::new("probation").with("echo");
    let dir = spec.lay_out();
    let mut node = spec.start_in(dir);
    let first = node.status("echo")["sha256"].clone();
    let new = file(&node, "new/libecho.so", &hostile("none:none"));
    assert_eq!(node.json(&["plugin", "upgrade", "echo", &new])["plugin"]["state"], "Ready");
    let _ = node.prompt("hostile", "segv");
    let back = node.expect("name=echo action=rolled_back");
    assert!(back.contains("within its probation"), "{back}");
    node.expect("name=echo action=ready");
    assert_eq!(node.status("echo")["sha256"], first);
    assert_eq!(node.prompt("echo", "x").as_deref(), Ok("x"));
    assert_eq!(node.again(&spec).status("echo")["sha256"], first);
}

#[test]
fn a_new_version_that_dies_of_the_state_gives_it_back_to_the_old_one() {
    let mut node = Spec::new("handback").with_hostile("keeper", "state:300000").start();
    let first = node.status("keeper")["sha256"].clone();
    let new = file(&node, "new/libkeeper.so", &hostile("state:1 die"));
    let answer = node.json(&["plugin", "upgrade", "keeper", &new]);
    assert_eq!(answer["error"]["code"], "PLUGIN_CRASHED", "{answer}");
    // A pipe and an event have no order.
    node.seen("was left 300000 bytes, whole: true");
    node.seen("name=keeper action=ready detail=Some(\"generation=3");
    assert_eq!(node.status("keeper")["sha256"], first);
    assert_eq!(node.prompt("hostile", "good").as_deref(), Ok("42 0"));
}

#[test]
fn rights_that_grow_need_a_word_and_the_difference_is_printed() {
    let manifest = |permissions: &str| {
        format!("schema = 1\nname = \"echo\"\nversion = \"1.0.0\"\n{permissions}[[permission]]\nname = \"command.register\"\n")
    };
    let node =
        Spec::new("growth").with("echo").with_file("libecho.plugin.toml", manifest("").into_bytes()).start();
    let new = file(&node, "new/libecho.so", &another("echo"));
    file(&node, "new/libecho.plugin.toml", manifest("[[permission]]\nname = \"random\"\n").as_bytes());
    let answer = node.json(&["plugin", "upgrade", "echo", &new]);
    assert_eq!(answer["error"]["code"], "PERMISSION_DENIED", "{answer}");
    let text = answer["error"]["message"].as_str().unwrap_or_default();
    assert!(text.contains("+ random") && text.contains("--accept-permissions"), "{text}");
    let answer = node.json(&["plugin", "upgrade", "echo", &new, "--accept-permissions"]);
    assert_eq!(answer["plugin"]["state"], "Ready", "{answer}");
    // The same file again asks for no more than it has.
    assert_eq!(node.json(&["plugin", "upgrade", "echo", &new])["plugin"]["state"], "Ready");
    let other = file(&node, "other/libkvstore.so", &fs::read(plugin("kvstore")).expect("built"));
    file(&node, "other/libkvstore.plugin.toml", manifest("").replace("echo", "kvstore").as_bytes());
    assert_eq!(node.json(&["plugin", "upgrade", "echo", &other])["error"]["code"], "INVALID_INPUT");
}
