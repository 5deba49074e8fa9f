//! A plugin's life as its operator sees it: health, wedges, states that are left, versions, wishes that outlive the node.

use nix::sys::signal::{kill, Signal};
use nix::unistd::Pid;
use std::fs;
use std::time::{Duration, Instant};
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
    let fastest = found_in_time(|generation| {
        signal_runner(&node, "hostile", Signal::SIGSTOP);
        let begun = Instant::now();
        let error = node.prompt("hostile", "good").expect_err("nobody answers");
        let found = begun.elapsed();
        // The plugin, its version, its state, why, and what helps.
        let texts = [
            "UNAVAILABLE",
            "plugin hostile (",
            ") is ",
            "is replaced: wedged",
            "`thenodes plugin why hostile`",
        ];
        for text in texts {
            assert!(error.contains(text), "{text}: {error}");
        }
        assert!(!error.contains("nothing has to be done"), "{error}");
        let died = node.seen(&format!("name=hostile action=died detail=Some(\"generation={generation} "));
        assert!(died.contains("cause=wedged"), "{died}");
        node.expect(&format!("name=hostile action=ready detail=Some(\"generation={} ", generation + 1));
        assert_eq!(node.prompt("hostile", "good").as_deref(), Ok("42 0"));
        found
    });
    assert!(fastest < WEDGED_WITHIN, "{fastest:?}");
}

/// A second until the node asks for a sign of life, two for the answer, and one for the machine.
const WEDGED_WITHIN: Duration = Duration::from_secs(4);

/// The shortest of three times, or the first that is short enough: a machine may be busy, and a rule that waits longer does so each time.
fn found_in_time(mut find: impl FnMut(u64) -> Duration) -> Duration {
    let mut fastest = Duration::MAX;
    for generation in 1..=3 {
        fastest = fastest.min(find(generation));
        if fastest < WEDGED_WITHIN {
            break;
        }
    }
    fastest
}

#[test]
fn a_plugin_that_spins_in_every_thread_is_wedged_and_one_that_spins_in_one_is_served_by_the_others() {
    let mut node = Spec::new("spins").with("hostile").start();
    let spin = |node: &TestNode| node.prompt("hostile", "spin").expect_err("it never answers");
    let fastest = found_in_time(|generation| {
        let shared = &node;
        let found = std::thread::scope(|scope| {
            let first = scope.spawn(move || spin(shared));
            // The control: the node asks about the first call while other threads answer; nothing is wedged.
            let begun = Instant::now();
            while begun.elapsed() < Duration::from_secs(2) {
                assert_eq!(shared.prompt("hostile", "good").as_deref(), Ok("42 0"));
            }
            assert_eq!(shared.status("hostile")["starts"].as_u64(), Some(generation));
            let begun = Instant::now();
            let all = shared.prompt("hostile", "spin-everywhere").expect_err("nobody answers");
            let found = begun.elapsed();
            for error in [all, first.join().expect("no panic")] {
                assert!(error.contains("UNAVAILABLE") && error.contains("wedged"), "{error}");
            }
            found
        });
        let died = node.seen(&format!("name=hostile action=died detail=Some(\"generation={generation} "));
        assert!(died.contains("cause=wedged"), "{died}");
        node.expect(&format!("name=hostile action=ready detail=Some(\"generation={} ", generation + 1));
        found
    });
    assert!(fastest < WEDGED_WITHIN, "{fastest:?}");
}

#[test]
fn a_step_of_a_life_that_never_ends_is_ended_at_its_deadline() {
    let begun = Instant::now();
    let mut node =
        Spec::new("steps").with_hostile("loader", "load:hang").with_hostile("stopper", "stop:hang").start();
    // `on_stop`: two seconds, then half a one to end by itself and half a one after TERM.
    let asked = Instant::now();
    assert_eq!(node.json(&["plugin", "disable", "stopper"])["plugin"]["state"], "Stopped");
    let took = asked.elapsed();
    assert!(took >= Duration::from_secs(2) && took < Duration::from_secs(9), "{took:?}");
    // `on_load`: ten seconds.
    let died = node.seen("name=loader action=died");
    assert!(died.contains("cause=hang") && died.contains("on_load"), "{died}");
    assert!(begun.elapsed() >= Duration::from_secs(10), "{:?}", begun.elapsed());
}

#[test]
fn a_stop_waits_for_open_calls_and_not_for_ever() {
    let node = Spec::new("drain").with("hostile").start();
    let open = |time: u32| {
        let node = &node;
        std::thread::scope(|scope| {
            let answer = scope.spawn(move || node.prompt("hostile", &format!("say-and-wait {time}")));
            let (begun, said) = (Instant::now(), format!("waits {time}"));
            while !node.logs("hostile").iter().any(|line| line.contains(&said)) {
                assert!(begun.elapsed() < thenodes_tests::PATIENCE, "the call does not begin");
            }
            let asked = Instant::now();
            assert_eq!(node.json(&["plugin", "disable", "hostile"])["plugin"]["state"], "Stopped");
            let took = asked.elapsed();
            assert_eq!(node.json(&["plugin", "enable", "hostile"])["plugin"]["state"], "Ready");
            (answer.join().expect("no panic"), took)
        })
    };
    assert_eq!(open(1000).0.as_deref(), Ok("say-and-wait 1000"));
    let (cut_off, took) = open(600_000);
    let error = cut_off.expect_err("ten minutes");
    assert!(error.starts_with("UNAVAILABLE") || error.starts_with("PLUGIN_CRASHED"), "{error}");
    // Two seconds for what is open; the rest is what a stop takes anyhow.
    assert!(took >= Duration::from_secs(2) && took < Duration::from_secs(9), "{took:?}");
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
        ("health:sick", "a fever on purpose"),
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
fn a_version_that_falls_ill_within_its_probation_is_rolled_back() {
    let quick = "[plugins.supervision]\nhealth_every_s = 1\ndegraded_after = 1\nrestart_after = 2\n";
    let mut node = Spec::new("relapse").with("echo").more(quick).start();
    let first = node.status("echo")["sha256"].clone();
    let new = file(&node, "new/libecho.so", &hostile("none:none"));
    assert_eq!(node.json(&["plugin", "upgrade", "echo", &new])["plugin"]["state"], "Ready");
    assert_eq!(node.prompt("hostile", "sick").as_deref(), Ok("sick"));
    let died = node.seen("name=echo action=died");
    assert!(died.contains("cause=health") && died.contains("a fever on purpose"), "{died}");
    let back = node.seen("name=echo action=rolled_back");
    assert!(back.contains("within its probation"), "{back}");
    node.expect("name=echo action=ready");
    assert_eq!(node.status("echo")["sha256"], first);
    assert_eq!(node.prompt("echo", "x").as_deref(), Ok("x"));
}

#[test]
fn the_last_three_versions_are_kept_by_their_hash() {
    let node = Spec::new("shelf").with("echo").start();
    let mut used = vec![node.status("echo")["sha256"].as_str().expect("a hash").to_owned()];
    let shelf = || {
        let versions = node.dir.path().join("data/plugins/echo/versions");
        let mut names: Vec<String> = fs::read_dir(versions)
            .expect("readable")
            .map(|entry| entry.expect("readable").file_name().into_string().expect("a hash"))
            .collect();
        names.sort_unstable();
        names
    };
    for n in 1..=4 {
        let mut bytes = another("echo");
        bytes.push(n);
        let new = file(&node, "new/libecho.so", &bytes);
        let answer = node.json(&["plugin", "upgrade", "echo", &new]);
        assert_eq!(answer["plugin"]["state"], "Ready", "{answer}");
        used.push(answer["plugin"]["sha256"].as_str().expect("a hash").to_owned());
        let mut last = used[used.len().saturating_sub(3)..].to_vec();
        last.sort_unstable();
        assert_eq!(shelf(), last, "after {n}");
    }
    assert_eq!(node.json(&["plugin", "rollback", "echo"])["plugin"]["sha256"], used[3].as_str());
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
