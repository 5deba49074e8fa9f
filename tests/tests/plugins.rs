//! The life of plugins: what loads, what is refused and why, what a death costs, and what the node says about it.

use std::fs;
use std::time::Duration;
use thenodes_tests::{all_gone, plugin, Spec, TestNode};

#[test]
fn what_a_plugin_does_works_and_ends_where_it_belongs() {
    let node = Spec::new("good").with("hostile").start();
    // Inside: a task, a timer, and a request to the node in the middle of a call.
    assert_eq!(node.prompt("hostile", "good").as_deref(), Ok("42 0"));
    let logs = node.logs("hostile").join("\n");
    for line in [
        "info stdout: a line on stdout",
        "warn stderr: a line on stderr",
        "info log hostile: a line from the log macros",
    ] {
        assert!(logs.contains(line), "{line:?} is missing in:\n{logs}");
    }
}

#[test]
fn bad_files_are_named_each_with_its_reason_and_the_others_start() {
    let elf = fs::read(plugin("echo")).expect("built");
    let mut other_machine = elf.clone();
    other_machine[18] = 0xf3; // RISC-V
    let mut no_symbol = elf.clone();
    let entry = b"register_plugin\0";
    while let Some(at) = no_symbol.windows(entry.len()).position(|w| w == entry) {
        no_symbol[at] = b'X';
    }
    let mut node = Spec::new("files")
        .with("echo")
        .with_file("libtext.so", b"#!/bin/sh\n".to_vec())
        .with_file("libriscv.so", other_machine)
        .with_file("libnosymbol.so", no_symbol)
        .with_file("libcut.so", elf[..elf.len() / 2].to_vec())
        .with_file("lib bad name.so", elf.clone())
        .with_hostile("abi-version", "abi:version")
        .with_hostile("abi-small", "abi:small")
        .with_hostile("abi-null", "abi:null")
        .with_hostile("abi-silent", "abi:silent")
        .with_hostile("unwilling", "refuse:not today")
        .start();
    assert_eq!(node.prompt("echo", "hi").as_deref(), Ok("hi"), "a bad neighbour stops nobody");
    let list = node.json(&["plugin", "list"]);
    let rejected = list["rejected"].to_string();
    for reason in [
        "libtext.so: not an ELF file",
        "RISC-V",
        "no symbol register_plugin",
        "libcut.so",
        "makes no plugin name",
    ] {
        assert!(rejected.contains(reason), "{reason:?} is missing in {rejected}");
    }
    for (name, reason) in [
        ("abi-version", "plugin ABI version 99; this runner speaks 1"),
        ("abi-small", "a plugin table of 16 bytes"),
        ("abi-null", "a null plugin table"),
        ("abi-silent", "without registering a plugin"),
        ("unwilling", "not today"),
    ] {
        let status = node.status(name);
        assert_eq!(status["state"], "Failed", "{status}");
        let text = status["last_death"]["text"].as_str().unwrap_or_default();
        assert!(text.contains(reason), "{name}: {reason:?} is missing in {text:?}");
    }
    assert!(node.heard().contains("action=rejected"));
}

#[test]
fn a_panic_is_its_own_calls_error_and_is_counted() {
    let node = Spec::new("panic").with("hostile").start();
    let error = node.prompt("hostile", "panic").expect_err("a panic");
    assert!(error.starts_with("PLUGIN_CRASHED") && error.contains("a panic on purpose"), "{error}");
    let status = node.status("hostile");
    assert_eq!(
        (status["state"].as_str(), status["starts"].as_u64()),
        (Some("Ready"), Some(1)),
        "no restart: {status}"
    );
    assert_eq!(status["counters"]["panics"], 1);
    assert_eq!(node.prompt("hostile", "good").as_deref(), Ok("42 0"));
}

#[test]
fn each_death_is_named_and_the_plugin_is_back() {
    for (sin, cause, text) in [
        ("segv", "signal", "SIGSEGV"),
        ("abort", "signal", "SIGABRT"),
        ("exit0", "exit", "exit code 0"),
        ("_exit0", "exit", "exit code 0"),
        ("stack", "signal", "SIGSEGV"),
        ("socket", "denied_syscall", "socket(AF_INET"),
        ("rt-signal", "signal", "signal 40"),
        ("link-deaf", "exit", "exit code 0"),
        ("frame-garbage", "protocol_violation", "cap is"),
        ("frame-oversized", "protocol_violation", "a frame of 2097152 bytes"),
        ("frame-empty", "protocol_violation", "a frame of 0 bytes"),
        ("frame-truncated", "protocol_violation", "inside a frame"),
        ("frame-unknown-reply", "protocol_violation", "never made"),
        ("frame-again-registered", "protocol_violation", "registered after the start"),
        ("call-flood", "protocol_violation", "of another generation"),
    ] {
        // Frames by hand go through the socket; shared memory has its own vandals.
        let by_hand = ["frame-", "link-", "call-"].iter().any(|kind| sin.starts_with(kind));
        let transport = if by_hand { "socket" } else { "ring" };
        let mut node = Spec::new("deaths").with("echo").with("hostile").transport(transport).start();
        let _ = node.prompt("hostile", sin);
        let died =
            node.expect_where(&format!("death by {sin}"), |line| line.contains("name=hostile action=died"));
        assert!(died.contains(&format!("cause={cause}")) && died.contains(text), "{sin}: {died}");
        node.expect("name=hostile action=ready detail=Some(\"generation=2");
        assert_eq!(node.prompt("hostile", "good").as_deref(), Ok("42 0"), "{sin}");
        let echo = node.status("echo");
        assert_eq!(echo["starts"], 1, "{sin}: the neighbour was never touched");
    }
}

#[test]
fn five_deaths_open_the_breaker_and_an_operator_can_close_it() {
    let mut node = Spec::new("breaker").with("hostile").start();
    for generation in 1..=4 {
        let _ = node.prompt("hostile", "segv");
        node.expect(&format!("name=hostile action=died detail=Some(\"generation={generation} "));
        node.expect(&format!("name=hostile action=ready detail=Some(\"generation={} ", generation + 1));
    }
    assert_eq!(node.prompt("hostile", "good").as_deref(), Ok("42 0"), "it prints a line to each stream");
    let _ = node.prompt("hostile", "segv");
    let failed = node.expect("name=hostile action=failed");
    // Plugin, version, count, window, cause, last lines, and the command that helps.
    for text in ["hostile", "5 deaths in 60 s", "it printed last", "thenodes plugin reset hostile"] {
        assert!(failed.contains(text), "{text}: {failed}");
    }
    let error = node.prompt("hostile", "good").expect_err("it is down");
    for text in [
        "UNAVAILABLE",
        "plugin hostile (",
        "is Failed",
        "SIGSEGV",
        "it printed last",
        "a line on std",
        "5 deaths in 60 s",
        "thenodes plugin reset hostile",
    ] {
        assert!(error.contains(text), "{text}: {error}");
    }
    node.json(&["plugin", "reset", "hostile"]);
    node.expect("name=hostile action=ready detail=Some(\"generation=6 ");
    assert_eq!(node.prompt("hostile", "good").as_deref(), Ok("42 0"));
}

#[test]
fn a_constructor_that_spins_is_stopped_at_its_deadline_and_delays_nobody() {
    let mut node = Spec::new("spin").with("echo").with_hostile("spinner", "constructor:spin").start();
    let died = node.seen("name=spinner action=died");
    assert!(died.contains("start_deadline") && died.contains("constructors and register_plugin"), "{died}");
    assert_eq!(node.prompt("echo", "x").as_deref(), Ok("x"));
}

#[test]
fn a_prompt_that_never_answers_ends_at_its_deadline_and_others_do_not_wait() {
    let node = std::sync::Arc::new(Spec::new("slow").with("echo").with("hostile").start());
    let sleeper = {
        let node = node.clone();
        std::thread::spawn(move || node.prompt("hostile", "sleep"))
    };
    // Both go through the same plugin while one call hangs.
    assert_eq!(node.prompt("hostile", "good").as_deref(), Ok("42 0"));
    assert_eq!(node.prompt("echo", "x").as_deref(), Ok("x"));
    let error = sleeper.join().expect("no panic").expect_err("it never answers");
    assert!(error.starts_with("TIMEOUT"), "{error}");
    assert_eq!(node.prompt("hostile", "good").as_deref(), Ok("42 0"), "the cancelled call hit no later one");
    assert_eq!(node.status("hostile")["starts"], 1);
}

#[test]
fn a_flood_of_output_is_bounded_counted_and_harmless() {
    let node = Spec::new("flood").with("echo").with("hostile").start();
    let before = node.memory();
    assert_eq!(node.prompt("hostile", "log-flood").as_deref(), Ok("flooded"));
    assert_eq!(node.prompt("hostile", "log-nasty").as_deref(), Ok("said"));
    assert_eq!(node.prompt("echo", "x").as_deref(), Ok("x"));
    let grown = node.memory().saturating_sub(before);
    assert!(grown < 32 * 1024 * 1024, "the node grew by {grown} bytes");
    let value = node.json(&["plugin", "logs", "hostile"]);
    assert!(value["dropped"].as_u64().is_some_and(|dropped| dropped > 100_000), "{}", value["dropped"]);
    assert!(!value.to_string().contains('\u{1b}'), "no escape sequence reaches a terminal");
}

#[test]
fn a_runner_that_reads_nothing_is_replaced_and_does_not_hold_the_nodes_end_up() {
    use nix::sys::signal::{kill, Signal};
    use nix::unistd::Pid;
    let mut a = Spec::new("stopped-a").with("echo").start();
    let b = Spec::new("stopped-b")
        .with("hostile")
        .top(&format!("bootstrap_nodes = [\"127.0.0.1:{}\"]", a.port))
        .start();
    a.expect("app_handshake_success");
    let stop_runner = |node: &thenodes_tests::TestNode| {
        let warden = node.status("echo")["pid"].as_u64().expect("a pid") as u32;
        let runner = *thenodes_tests::descendants(warden).last().expect("a runner");
        kill(Pid::from_raw(runner as i32), Signal::SIGSTOP).expect("stopped");
    };
    stop_runner(&a);
    assert_eq!(b.prompt("hostile", "say hello").as_deref(), Ok("1"));
    let died = a.expect("name=echo action=died");
    assert!(died.contains("cause=wedged"), "{died}");
    a.expect("name=echo action=ready detail=Some(\"generation=2");
    stop_runner(&a);
    let pids = a.descendants();
    a.signal(Signal::SIGTERM);
    assert!(a.wait().success());
    assert!(all_gone(&pids, Duration::from_secs(1)), "nothing is left of a stopped runner");
}

#[test]
fn a_slow_plugin_is_not_taken_for_a_hung_one_and_loses_nothing() {
    let mut a = Spec::new("slow-a").with("hostile").start();
    let b = Spec::new("slow-b")
        .with("hostile")
        .top(&format!("bootstrap_nodes = [\"127.0.0.1:{}\"]", a.port))
        .start();
    a.expect("app_handshake_success");
    // Together they take longer than any one message may.
    for _ in 0..11 {
        assert_eq!(b.prompt("hostile", "say sin slow").as_deref(), Ok("1"));
    }
    for _ in 0..11 {
        a.expect("slept");
    }
    let status = a.status("hostile");
    assert_eq!(
        (status["starts"].as_u64(), status["counters"]["dropped"].as_u64()),
        (Some(1), Some(0)),
        "{status}"
    );
}

#[test]
fn a_plugins_events_reach_the_log_under_its_name_and_its_sinks_hear_the_nodes() {
    let mut node = Spec::new("events").with("echo").with("hostile").start();
    assert_eq!(node.prompt("hostile", "emit").as_deref(), Ok("emitted"));
    let shown = node.expect("action=hostile_was_here");
    assert!(shown.contains("(plugin.hostile:example) SYS"), "a plugin's event says whose it is: {shown}");
    assert_eq!(node.prompt("hostile", "sink").as_deref(), Ok("registered"));
    assert_eq!(node.json(&["plugin", "restart", "echo"])["plugin"]["state"], "Ready");
    node.expect("heard that echo is ready");
    node.signal(nix::sys::signal::Signal::SIGTERM);
    assert!(node.wait().success());
    let log = fs::read_to_string(node.dir.path().join("logs/trust_audit.jsonl")).expect("a log");
    let line = log.lines().find(|line| line.contains("hostile_was_here")).expect("the event is in the file");
    assert!(line.contains(r#""component":"plugin.hostile:example""#) && line.contains("timestamp"), "{line}");
}

#[test]
fn a_plugin_cannot_speak_in_the_nodes_voice() {
    let mut node = Spec::new("forge").with("hostile").start();
    assert_eq!(node.prompt("hostile", "forge").as_deref(), Ok("forged"));
    node.seen("ERROR plugin: hostile log node: died: SIGKILL: by root");
    let logs = node.logs("hostile");
    assert!(logs.iter().any(|line| line == "error log node: died: SIGKILL: by root"), "{logs:?}");
    assert!(!logs.iter().any(|line| line.starts_with("error node:")), "{logs:?}");
    // A line that is a record of the node to the letter still has its own source in front, on the terminal and in the book.
    assert_eq!(node.prompt("hostile", "say-record").as_deref(), Ok("said"));
    let shown = node.seen("denied: open");
    assert!(shown.contains("plugin: hostile stdout: denied: open"), "{shown}");
    let logs = node.logs("hostile");
    assert!(
        logs.iter().any(|line| line == "info stdout: denied: open /etc/passwd no\\u{200b}de"),
        "{logs:?}"
    );
}

#[test]
fn millions_of_empty_lines_delay_nobody() {
    let node = Spec::new("newlines").with("echo").with("hostile").start();
    std::thread::scope(|scope| {
        let flood = scope.spawn(|| node.prompt("hostile", "newlines"));
        // Every answer of the neighbour comes while the flood is on, or the flood is over.
        for n in 0..20 {
            assert_eq!(node.prompt("echo", &n.to_string()), Ok(n.to_string()));
        }
        assert_eq!(flood.join().expect("no panic").as_deref(), Ok("written"));
    });
    assert_eq!(node.status("echo")["starts"], 1);
}

#[test]
fn a_restart_on_request_touches_only_its_plugin() {
    let node = Spec::new("restart").with("echo").with("kvstore").start();
    let before = node.status("echo")["pid"].clone();
    let answer = node.json(&["plugin", "restart", "echo"]);
    assert_eq!(
        (answer["plugin"]["state"].as_str(), answer["plugin"]["starts"].as_u64()),
        (Some("Ready"), Some(2))
    );
    assert_ne!(node.status("echo")["pid"], before);
    assert_eq!(node.status("kvstore")["starts"], 1);
    assert_eq!(node.json(&["plugin", "restart", "nobody"])["error"]["code"], "NOT_FOUND");
}

#[test]
fn an_operator_can_take_permissions_away() {
    let mut node = Spec::new("grants")
        .with("kvstore")
        .with("hostile")
        .more("[plugins.defaults]\npermissions = [\"command.register\", \"message.receive\"]")
        .start();
    let answer = node.prompt("kv", "put a 1").expect("the plugin lives");
    assert!(answer.contains("PERMISSION_DENIED") && answer.contains("message.send"), "{answer}");
    let denied = node.expect("action=permission_denied");
    assert!(denied.contains("message.send"), "{denied}");
    assert_eq!(node.status("kvstore")["counters"]["denied"], 1);
}

#[test]
fn a_stopping_node_leaves_no_process_behind() {
    let mut node =
        Spec::new("stop").with("echo").with("kvstore").with_hostile("stubborn", "thread:spin").start();
    let pids = node.descendants();
    node.signal(nix::sys::signal::Signal::SIGTERM);
    let status = node.wait();
    assert!(status.success(), "{status}: {}", node.said.join("\n"));
    assert!(all_gone(&pids, Duration::from_secs(1)));
    let events = fs::read_to_string(node.dir.path().join("logs/trust_audit.jsonl")).expect("an event log");
    assert!(
        events.lines().last().is_some_and(|line| line.contains("\"stopped\"")),
        "the log ends with the end"
    );
}

#[test]
fn a_plugin_that_never_takes_a_message_delays_nobody_and_is_replaced() {
    let mut a = Spec::new("deaf-a").with("echo").with_hostile("deaf", "message:hang").start();
    let b = Spec::new("deaf-b")
        .with("kvstore")
        .top(&format!("bootstrap_nodes = [\"127.0.0.1:{}\"]", a.port))
        .start();
    a.expect("app_handshake_success");
    assert!(b.prompt("kv", "put k v").expect("answers").starts_with("ok"));
    a.expect("message_other");
    assert_eq!(a.prompt("echo", "x").as_deref(), Ok("x"), "the other plugin does not wait");
    let died = a.expect("name=deaf action=died");
    assert!(died.contains("cause=hang") && died.contains("on_message"), "{died}");
    a.expect("name=deaf action=ready detail=Some(\"generation=2");
    assert_eq!(b.json(&["peers"])["peers"].as_array().map(Vec::len), Some(1), "the connection never dropped");
}

#[test]
fn a_plugin_that_asks_the_node_inside_on_message_does_not_deadlock() {
    let a = Spec::new("ask-a").with("hostile").start();
    let mut b = Spec::new("ask-b")
        .with("hostile")
        .top(&format!("bootstrap_nodes = [\"127.0.0.1:{}\"]", a.port))
        .start();
    b.expect("app_handshake_success");
    for _ in 0..20 {
        assert_eq!(b.prompt("hostile", "say call back").as_deref(), Ok("1"));
    }
    let begun = std::time::Instant::now();
    while a.logs("hostile").iter().filter(|line| line.contains("called back: [\"ask-b\"]")).count() < 20 {
        assert!(begun.elapsed() < thenodes_tests::PATIENCE, "{}", a.logs("hostile").join("\n"));
    }
    assert_eq!(a.status("hostile")["counters"]["requests"], 20);
}

#[test]
fn a_plugin_in_c_and_one_of_another_build_load_and_work() {
    for name in ["hello", "other"] {
        if !plugin(name).exists() {
            return thenodes_tests::skip(
                "a_plugin_in_c_and_one_of_another_build",
                "built by `cargo xtask test` only",
            );
        }
    }
    let mut a = Spec::new("c-a").with("hello").with("other").start();
    assert_eq!(a.prompt("hello", "world").as_deref(), Ok("hello world, this is C"));
    assert_eq!(a.prompt("echo", "other panic strategy").as_deref(), Ok("other panic strategy"));
    assert_eq!(a.status("hello")["sdk"], "C, by hand");
    // Messages reach it, and it asks the node for something.
    let mut b = Spec::new("c-b")
        .with("hostile")
        .top(&format!("bootstrap_nodes = [\"127.0.0.1:{}\"]", a.port))
        .start();
    b.expect("app_handshake_success");
    assert_eq!(b.prompt("hostile", "say hi").as_deref(), Ok("1"));
    a.expect("c-b said hi");
    let heard = b.expect("kind=hello.c");
    assert!(heard.contains("node_id=c-a"), "{heard}");
}

#[test]
fn a_plugin_with_the_larger_table_of_a_later_sdk_loads() {
    let node = Spec::new("later").with_hostile("later", "abi:later").start();
    assert_eq!(node.prompt("hostile", "good").as_deref(), Ok("42 0"));
    let logs = node.logs("later").join("\n");
    assert!(logs.contains("registered like a later SDK: Ok(())"), "{logs}");
}

#[test]
fn a_plugin_may_suggest_what_the_operator_left_open() {
    let mut node = Spec::new("suggest").with_hostile("suggesting", "defaults:all").start();
    let applied = node.seen("plugin_config_defaults_applied");
    assert!(applied.contains("app_name") && applied.contains("capabilities"), "{applied}");
    node.seen("Suggested is running.");
    // What it says that it can do, peers hear; what only the node can do is not a plugin's to say.
    let mut stream =
        std::io::BufReader::new(std::net::TcpStream::connect(("127.0.0.1", node.port)).expect("it listens"));
    let mut hello = String::new();
    std::io::BufRead::read_line(&mut stream, &mut hello).expect("it speaks first");
    let announced = hello.split("\"capabilities\":").nth(1).unwrap_or_default();
    assert!(announced.starts_with("[\"relay_ack\",\""), "{hello}");
    for refused in [
        "port: the operator has set it",
        "realm: the operator has set it",
        "encryption: security is the operator's alone",
        "logging: paths are the operator's alone",
    ] {
        node.seen(refused);
    }
}

/// Memory of a process, KiB.
fn resident(node: &TestNode) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{}/status", node.pid())).expect("the node lives");
    let line = text.lines().find(|line| line.starts_with("VmRSS:")).expect("its memory");
    line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).expect("a number")
}

#[test]
fn what_runners_write_and_do_not_read_grows_the_node_by_two_frames_each_at_most() {
    const RUNNERS: u64 = 8;
    // Five seconds of a runner that reads nothing are not yet a hang; the log tells when its flood has been taken.
    let mut spec = Spec::new("large").with("echo");
    for n in 0..RUNNERS {
        spec = spec.with_hostile(&format!("flood{n}"), "thread:large-calls");
    }
    let dir = spec.lay_out();
    let node = spec.start_in(dir);
    assert_eq!(node.prompt("echo", "warm").as_deref(), Ok("warm"));
    let before = resident(&Spec::new("idle").with("echo").start());
    let mut most = 0;
    let begun = std::time::Instant::now();
    while begun.elapsed() < std::time::Duration::from_secs(4) {
        most = most.max(resident(&node));
        assert_eq!(node.prompt("echo", "x").as_deref(), Ok("x"), "the neighbour answers meanwhile");
    }
    // Two frames each, and what nine supervised plugins and an allocator take besides.
    let allowed = RUNNERS * 2 * 1024 + 16 * 1024;
    assert!(
        most.saturating_sub(before) < allowed,
        "from {before} to {most} KiB; {allowed} more were allowed"
    );
}
