//! Every limit hurts the plugin that meets it, and no other, and is reported as what it was. Real nodes, real plugins; the
//! same as root, where there may be control groups, and as an ordinary user, where there are none.

use serde_json::Value;
use std::fs;
use std::path::PathBuf;
use std::time::Instant;
use thenodes_tests::{skip, Spec, TestNode, PATIENCE};

/// Asks until the status of a plugin is as wanted, while another plugin answers.
#[track_caller]
fn until(node: &TestNode, name: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    let begun = Instant::now();
    loop {
        assert_eq!(node.prompt("echo", "meanwhile").as_deref(), Ok("meanwhile"));
        let status = node.status(name);
        if wanted(&status) {
            return status;
        }
        assert!(begun.elapsed() < PATIENCE, "{name}: {status}\n{}", node.logs(name).join("\n"));
    }
}

fn cause(status: &Value) -> &str {
    status["last_death"]["cause"].as_str().unwrap_or_default()
}

/// Configuration with a quick watchdog; each line goes to the table that knows its key.
fn limits(lines: &str) -> String {
    let (watchdog, limits): (Vec<&str>, Vec<&str>) = lines
        .lines()
        .partition(|line| ["violations", "on_violation"].iter().any(|key| line.starts_with(key)));
    format!(
        "[plugins.watchdog]\nsample_s = 1\n{}\n[plugins.limits]\n{}",
        watchdog.join("\n"),
        limits.join("\n")
    )
}

/// The control group of a process in the hierarchy of a controller; `None` if it is in none of the node's making.
fn leaf(pid: u64, controller: &str) -> Option<PathBuf> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    let line = text
        .lines()
        .find(|line| line.split(':').nth(1).is_some_and(|c| c.split(',').any(|c| c == controller)));
    let (mount, path) = match line {
        Some(line) => (format!("/sys/fs/cgroup/{controller}"), line.split(':').nth(2)?),
        None => ("/sys/fs/cgroup".into(), text.lines().find_map(|line| line.strip_prefix("0::"))?),
    };
    path.contains("/thenodes-").then(|| PathBuf::from(mount + path))
}

/// Since 6.2 the size of the directory is the number of descriptors.
fn descriptors_are_counted() -> bool {
    fs::metadata("/proc/self/fd").is_ok_and(|about| about.len() > 0)
}

#[test]
fn each_limit_ends_its_own_plugin_and_is_reported_as_what_it_was() {
    let mut sinners = vec![
        ("h-threads", "load:threads", "threads"),
        ("h-memory", "load:hold 122", "memory"),
        ("h-log", "thread:log-forever", "log_rate"),
    ];
    if descriptors_are_counted() {
        sinners.push(("h-fds", "load:fds", "fds"));
    } else {
        skip(
            "a limit on descriptors",
            "this kernel (before 6.2) does not say how many a process has; the rlimit holds",
        );
    }
    let spec = Spec::new("sinners")
        .with("echo")
        .more(&limits("violations = 2\non_violation = \"disable\"\nlog_lines_per_s = 20"));
    let spec = sinners.iter().fold(spec, |spec, (name, switch, _)| spec.with_hostile(name, switch));
    let node = spec.start();
    for (name, _, word) in &sinners {
        let status = until(&node, name, |status| status["state"] == "Failed");
        assert_eq!(cause(&status), *word, "{name}: {status}");
        let text = status["last_death"]["text"].as_str().unwrap_or_default().to_owned();
        assert!(text.contains("on_violation = \"disable\""), "{text}");
        let violations = node.json(&["plugin", "violations", name]);
        assert!(violations["counts"][*word].as_u64() >= Some(1), "{name}: {violations}");
    }
    if descriptors_are_counted() {
        // The kernel tells only the plugin that there is no descriptor left; the watchdog tells everybody else.
        let told = node.json(&["plugin", "denials", "h-fds"]);
        let first = &told["first"][0];
        assert_eq!((&first["syscall"], &first["layer"]), (&"fds".into(), &"rlimits".into()), "{told}");
        assert_eq!(told["by_syscall"]["fds"], 1, "once for as long as there is no room: {told}");
    }
    assert!(node.logs("h-log").iter().any(|line| line.contains("log lines dropped: more than 20 a second")));
    let echo = node.status("echo");
    assert_eq!((&echo["state"], echo["starts"].as_u64()), (&Value::from("Ready"), Some(1)), "{echo}");
    for kind in ["threads", "fds", "memory", "log_rate"] {
        assert_eq!(node.json(&["plugin", "violations", "echo"])["counts"][kind], 0, "{kind}");
    }
}

#[test]
fn a_plugin_that_floods_its_link_is_held_back_and_nobody_else_is() {
    const COUNT: u64 = 20_000;
    const RATE: u64 = 4000;
    // The same flood twice. The answer comes behind it, so that it comes when all of the flood was read.
    let flooded = |node: &TestNode| {
        let begun = Instant::now();
        let answer = node.prompt("hostile", &format!("notice-flood {COUNT}"));
        assert!(answer.as_ref().is_ok_and(|text| text.starts_with("flooded")), "{answer:?}");
        begun.elapsed()
    };
    let spec = |id, rate| {
        Spec::new(id)
            .with("echo")
            .with("hostile")
            .more(&limits(&format!("violations = 2\nlink_messages_per_s = {rate}")))
    };
    let control = spec("link-free", 10_000_000).start();
    let free = flooded(&control);
    assert_eq!(control.json(&["plugin", "violations", "hostile"])["counts"]["link_rate"], 0);
    drop(control);

    let mut node = spec("link-held", RATE).start();
    let (held, echoes) = std::thread::scope(|scope| {
        let flood = scope.spawn(|| flooded(&node));
        let mut echoes = Vec::new();
        while !flood.is_finished() {
            let begun = Instant::now();
            assert_eq!(node.prompt("echo", "meanwhile").as_deref(), Ok("meanwhile"));
            echoes.push(begun.elapsed());
        }
        (flood.join().expect("no panic"), echoes)
    });
    // The first second's share passes at once.
    let least = std::time::Duration::from_secs((COUNT - RATE) / RATE);
    eprintln!("free {free:?}, held {held:?}, {} echoes, the slowest {:?}", echoes.len(), echoes.iter().max());
    assert!(held >= least, "{held:?}: faster than its rate");
    assert!(held > 2 * free, "held back {held:?}, free {free:?}");
    assert!(echoes.len() >= 3 && echoes.iter().all(|echo| *echo < held / 2), "{echoes:?}");
    let line = node.seen("name=hostile action=violation");
    assert!(line.contains("limit=link_rate"), "{line}");
    let violations = node.json(&["plugin", "violations", "hostile"]);
    assert!(violations["counts"]["link_rate"].as_u64() >= Some(2), "{violations}");
    assert_eq!(node.json(&["plugin", "violations", "echo"])["counts"]["link_rate"], 0);
    let status = node.status("hostile");
    assert_eq!((&status["state"], status["starts"].as_u64()), (&Value::from("Ready"), Some(1)), "{status}");
    assert_eq!(status["enforcement"]["link_rate"], "node");
}

#[test]
fn connections_are_limited_for_each_plugin_as_its_operator_says() {
    let server = std::net::TcpListener::bind("127.0.0.1:0").expect("binds"); // its backlog takes them
    let addr = server.local_addr().expect("bound");
    for (most, lines) in [(3, "connections = 3"), (10, "")] {
        let node = Spec::new("connections")
            .with("fetch")
            .more(&format!(
                "[plugins.defaults]\npermissions = [\"command.register\", \"net.connect:{addr}\"]"
            ))
            .more(&format!("[plugins.for.fetch.limits]\n{lines}"))
            .start();
        let answer = node.prompt("fetch", &format!("hold {addr} 12")).expect("the plugin lives");
        assert!(answer.starts_with(&format!("{most} held")), "{answer}");
        assert!(answer.contains("RESOURCE_EXHAUSTED") && answer.contains("limits.connections"), "{answer}");
        let events =
            fs::read_to_string(node.dir.path().join("logs/trust_audit.jsonl")).expect("an event log");
        assert!(!events.contains("config_key_without_effect"), "{events}");
    }
}

#[test]
fn a_flood_does_not_hide_the_death_of_its_author() {
    // At this rate the bytes in the socket would be read for minutes.
    let node = Spec::new("link-death")
        .with("echo")
        .with_hostile("flooder", "none:none")
        .more(&limits("violations = 100\nlink_messages_per_s = 20"))
        .start();
    std::thread::scope(|scope| {
        // Told to when it is loaded: its word that it is would have to wait behind its own flood.
        let told = scope.spawn(|| node.prompt("hostile", "notice-flood 10000000"));
        let held = |status: &Value| status["counters"]["throttled"].as_u64() > Some(20);
        let status = until(&node, "flooder", held);
        assert_eq!((&status["generation"], &status["last_death"]), (&1.into(), &Value::Null), "{status}");
        let warden = status["pid"].as_u64().expect("a pid") as u32;
        let runner = *thenodes_tests::descendants(warden).last().expect("a runner");
        let begun = Instant::now();
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(runner as i32), nix::sys::signal::Signal::SIGKILL)
            .expect("killed");
        let status = until(&node, "flooder", |status| !cause(status).is_empty());
        assert_eq!(cause(&status), "signal", "{status}");
        assert!(begun.elapsed().as_secs() < 10, "{:?}", begun.elapsed());
        let answer = told.join().expect("no panic").expect_err("nobody is left to answer");
        assert!(answer.contains("UNAVAILABLE") || answer.contains("PLUGIN_CRASHED"), "{answer}");
    });
}

#[test]
fn a_plugin_that_burns_processor_time_is_restarted_whoever_holds_the_limit() {
    let mut node = Spec::new("burner")
        .with("echo")
        .with_hostile("burner", "thread:spin")
        .more(&limits("violations = 2\non_violation = \"restart\"\ncpu_percent = 10"))
        .start();
    let status = until(&node, "burner", |status| !cause(status).is_empty());
    assert_eq!(cause(&status), "cpu", "{status}");
    node.seen("name=burner action=died");
    until(&node, "burner", |status| status["starts"].as_u64() >= Some(2) && status["state"] == "Ready");
    let echo = node.status("echo");
    assert_eq!((echo["starts"].as_u64(), &echo["last_death"]), (Some(1), &Value::Null), "{echo}");
}

#[test]
fn a_warning_warns_and_the_plugin_goes_on_until_an_operator_looks() {
    let mut node = Spec::new("warned")
        .with("echo")
        .with_hostile("h-threads", "load:threads")
        .more(&limits("violations = 1"))
        .start();
    let line = node.seen("name=h-threads action=violation");
    assert!(line.contains("limit=threads") && line.contains("on_violation = \\\"warn\\\""), "{line}");
    let status = node.status("h-threads");
    assert_eq!((&status["state"], status["starts"].as_u64()), (&Value::from("Ready"), Some(1)), "{status}");
    assert!(status["usage"]["threads"].as_u64() >= Some(16), "{status}");
    let reset = Instant::now();
    let before = node.json(&["plugin", "violations", "h-threads", "--reset"]);
    assert!(before["counts"]["threads"].as_u64() >= Some(1), "{before}");
    assert!(
        before["last"][0]["detail"].as_str().is_some_and(|text| text.starts_with("threads ")),
        "{before}"
    );
    // It still holds all its threads and is seen again, but what was seen before is forgotten.
    let after = node.json(&["plugin", "violations", "h-threads"]);
    let ages =
        after["last"].as_array().expect("a list").iter().map(|v| v["age_ms"].as_u64().expect("an age"));
    assert!(ages.max().unwrap_or(0) <= reset.elapsed().as_millis() as u64, "{after}");
    assert_eq!(node.json(&["plugin", "violations", "nobody"])["error"]["code"], "NOT_FOUND");
}

#[test]
fn processor_time_of_one_life_ends_with_the_signal_that_says_so() {
    let node = Spec::new("seconds")
        .with("echo")
        .with_hostile("spinner", "thread:spin")
        .with_hostile("deaf", "thread:deaf-spin")
        .more(&limits("cpu_seconds = 1"))
        .start();
    let status = until(&node, "spinner", |status| !cause(status).is_empty());
    assert_eq!(cause(&status), "cpu", "{status}");
    assert!(status["last_death"]["text"].as_str().is_some_and(|text| text.contains("SIGXCPU")), "{status}");
    assert_eq!(status["enforcement"]["cpu_seconds"], "rlimit");
    // Whoever does not hear the first signal cannot miss the second. That it was this limit is known only if it was seen.
    let status = until(&node, "deaf", |status| !cause(status).is_empty());
    assert!(matches!(cause(&status), "cpu" | "signal"), "{status}");
    assert_eq!(node.status("echo")["starts"], 1);
}

#[test]
fn what_is_said_about_enforcement_is_what_the_kernel_says() {
    let node = Spec::new("honest").with("echo").start();
    let status = node.status("echo");
    let said = &status["enforcement"];
    assert_eq!(status["enforcement_problems"].as_array().map(Vec::len), Some(0), "{status}");
    assert_eq!(
        node.json(&["doctor"])["enforcement"],
        *said,
        "the same for doctor, which started where the node did"
    );
    let pid = status["pid"].as_u64().expect("a pid");
    for (limit, controller, file) in
        [("memory", "memory", ["memory.limit_in_bytes", "memory.max"]), ("threads", "pids", ["pids.max"; 2])]
    {
        let claimed = said[limit].as_str().unwrap_or_default();
        assert!(claimed.contains("rlimit"), "{limit}: {claimed}");
        let held = leaf(pid, controller)
            .is_some_and(|dir| file.iter().any(|file| number(&dir.join(file)).is_some()));
        assert_eq!(claimed.contains("cgroup"), held, "{limit}: {claimed}");
    }
    let share = leaf(pid, "cpu").is_some();
    assert_eq!(said["cpu"].as_str().map(|text| text.contains("cgroup")), Some(share), "{said}");
    if !share {
        assert_eq!(said["cpu"], "watchdog (warns)", "nothing else holds it");
    }
}

fn number(path: &std::path::Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

#[test]
fn the_kernel_holds_back_only_the_plugin_that_takes_too_much() {
    let name = "the_kernel_holds_back_only_the_plugin_that_takes_too_much";
    let node = Spec::new("quota")
        .with("echo")
        .with_hostile("spinner", "thread:spin")
        .more(&limits("cpu_percent = 10"))
        .start();
    let status = node.status("spinner");
    if leaf(status["pid"].as_u64().expect("a pid"), "cpu").is_none() {
        return skip(
            name,
            "no control group for processor time here; the watchdog holds it, which another test shows",
        );
    }
    let seen = |status: &Value| status["usage"]["throttled"].as_u64().unwrap_or(0) > 0;
    until(&node, "spinner", seen);
    // From the outside, over a time of the test's own: a ratio, which load can only make smaller.
    let used = || node.status("spinner")["usage"]["cpu_ms"].as_u64().unwrap_or(0);
    let (begun, before) = (Instant::now(), used());
    until(&node, "spinner", |_| used() > before + 200);
    let share = (used() - before) as f64 / (begun.elapsed().as_millis() as f64 + 1000.0);
    assert!(share < 0.2, "a tenth is allowed, {share} was taken");
    let violations = node.json(&["plugin", "violations", "spinner"]);
    assert!(violations["counts"]["cpu"].as_u64() >= Some(1), "{violations}");
    let echo = node.status("echo");
    assert_eq!(echo["starts"], 1, "{echo}");
}

#[test]
fn a_plugin_that_the_kernel_kills_for_memory_is_said_to_have_been() {
    let name = "a_plugin_that_the_kernel_kills_for_memory_is_said_to_have_been";
    let node = Spec::new("oom").with("echo").with("hostile").start();
    let status = node.status("hostile");
    let Some(dir) = leaf(status["pid"].as_u64().expect("a pid"), "memory") else {
        return skip(
            name,
            "no control group for memory here; rlimits refuse instead, which another test shows",
        );
    };
    // The plugin meets RLIMIT_DATA first, on purpose; so the test takes the room away that the rlimit still allows.
    let (v1, v2) = (dir.join("memory.limit_in_bytes"), dir.join("memory.max"));
    let file = if v1.exists() { v1 } else { v2 };
    fs::write(file, (40u64 << 20).to_string()).expect("a smaller limit");
    assert!(node.prompt("hostile", "hold 100").is_err(), "nobody is left to answer");
    let status = until(&node, "hostile", |status| !cause(status).is_empty());
    assert_eq!(cause(&status), "oom", "{status}");
    let status = until(&node, "hostile", |status| status["state"] == "Ready");
    assert_eq!(status["starts"], 2, "{status}");
    assert_eq!(node.status("echo")["starts"], 1);
}

#[test]
fn a_call_ends_at_the_plugins_own_deadline_and_the_plugin_goes_on() {
    // Half a second longer than the limit, and far from any other deadline.
    let slow = |node: &TestNode| node.prompt("hostile", "after-timer 1500");
    let free = Spec::new("patient").with("hostile").start();
    assert_eq!(slow(&free).as_deref(), Ok("after-timer 1500"), "without the limit it is waited for");
    let held = Spec::new("held").with("hostile").more("[plugins.limits]\ncall_timeout_s = 1").start();
    let error = slow(&held).expect_err("it takes longer than it may");
    assert!(error.starts_with("TIMEOUT"), "{error}");
    assert_eq!(held.prompt("hostile", "good").as_deref(), Ok("42 0"), "late is not dead");
    let status = held.status("hostile");
    assert_eq!((status["starts"].as_u64(), status["counters"]["timeouts"].as_u64()), (Some(1), Some(1)));
}
