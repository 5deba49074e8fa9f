//! The command line: exit codes, JSON, errors that point, the prompt, and signals.

use nix::sys::signal::Signal;
use std::fs;
use std::process::Command;
use thenodes_tests::{bin_dir, Spec};

fn run(dir: &std::path::Path, args: &[&str]) -> (Option<i32>, String, String) {
    let output = Command::new(bin_dir().join("thenodes")).args(args).current_dir(dir).output().expect("runs");
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[test]
fn a_wrong_configuration_names_file_line_and_column_and_exits_78() {
    let dir = tempfile::tempdir().expect("a directory");
    fs::write(dir.path().join("c.toml"), "port = 1\nprot = 2\n").expect("written");
    let (code, _, error) = run(dir.path(), &["--config", "c.toml"]);
    assert_eq!(code, Some(78));
    assert!(error.contains("c.toml:2:1") && error.contains("prot"), "{error}");
    let (code, _, error) = run(dir.path(), &["--config", "missing.toml"]);
    assert_eq!(code, Some(78));
    assert!(error.contains("missing.toml"), "{error}");
    let (code, _, error) = run(dir.path(), &["--config", "c.toml", "doctor", "--json"]);
    assert_eq!(code, Some(78));
    let value: serde_json::Value = serde_json::from_str(&error).expect("JSON");
    assert_eq!(value["error"]["code"], "CONFIG_ERROR");
}

#[test]
fn without_a_running_node_commands_say_so_and_exit_69() {
    let dir = tempfile::tempdir().expect("a directory");
    let (code, _, error) = run(dir.path(), &["plugin", "list", "--socket", "none.sock"]);
    assert_eq!(code, Some(69), "{error}");
    assert!(error.contains("UNAVAILABLE") && error.contains("none.sock"), "{error}");
    assert_eq!(run(dir.path(), &["no-such-command"]).0, Some(2));
}

#[test]
fn what_an_operator_wrote_wrongly_is_refused_where_it_stands() {
    let dir = tempfile::tempdir().expect("a directory");
    fs::write(dir.path().join("c.toml"), "[plugins.for.echo]\nqueue = \"drop-all\"\n").expect("written");
    let (code, _, error) = run(dir.path(), &["--config", "c.toml"]);
    assert_eq!(code, Some(78));
    assert!(error.contains("c.toml:2:9") && error.contains("drop-oldest"), "{error}");
    for usage in [
        &["plugin", "logs", "echo", "--level", "loud"][..],
        &["plugin", "logs", "echo", "--since", "yesterday"],
        &["plugin", "call", "echo"],
    ] {
        let (code, _, error) = run(dir.path(), usage);
        assert_eq!(code, Some(2), "{usage:?}: {error}");
    }
}

#[test]
fn certificates_are_made_once_and_read_back() {
    let dir = tempfile::tempdir().expect("a directory");
    let (code, made, error) = run(dir.path(), &["cert", "new", "--cn", "n", "--realm", "R", "--json"]);
    assert_eq!(code, Some(0), "{error}");
    let made: serde_json::Value = serde_json::from_str(&made).expect("JSON");
    let (_, read, _) = run(dir.path(), &["cert", "fingerprint", "--json"]);
    let read: serde_json::Value = serde_json::from_str(&read).expect("JSON");
    assert_eq!(read["fingerprints"][0], made["fingerprint"]);
    assert_eq!(run(dir.path(), &["cert", "new"]).0, Some(1), "never over an existing key");
    assert_eq!(run(dir.path(), &["cert", "new", "--force"]).0, Some(0));
    // And trusted, if that is asked for.
    assert_eq!(run(dir.path(), &["trust", "list"]).1.trim(), "");
    let (code, _, error) = run(dir.path(), &["cert", "new", "--cn", "n", "--force", "--copy-to-trusted"]);
    assert_eq!(code, Some(0), "{error}");
    let (_, own, _) = run(dir.path(), &["cert", "fingerprint", "--json"]);
    let own: serde_json::Value = serde_json::from_str(&own).expect("JSON");
    let own = own["fingerprints"][0].as_str().expect("one");
    assert_eq!(run(dir.path(), &["trust", "list"]).1.trim(), format!("{own} as n"));
    let (code, _, error) = run(dir.path(), &["trust", "add", "../../etc"]);
    assert_ne!(code, Some(0), "{error}");
}

#[test]
fn two_nodes_do_not_share_a_state_directory_and_a_taken_port_is_named() {
    let node = Spec::new("first").start();
    let (code, _, error) = run(node.dir.path(), &["--config", "config.toml"]);
    assert_eq!(code, Some(1));
    assert!(error.contains("another node answers there"), "{error}");
    let dir = Spec::new("second").top(&format!("port = {}", node.port)).lay_out();
    let (code, _, error) = run(dir.path(), &["--config", "config.toml"]);
    assert_eq!(code, Some(1));
    assert!(error.contains(&format!("127.0.0.1:{}", node.port)), "{error}");
}

#[test]
fn the_prompt_works_with_piped_input() {
    let mut spec = Spec::new("prompt").with("kvstore").with("echo");
    spec.args.push("--prompt".into());
    let mut node = spec.start();
    for line in [
        "version",
        "peers",
        "kv",
        "put a 1",
        "get a",
        "what",
        "exit",
        "echo hello there",
        "nonsense",
        "help",
        "status",
        "node",
        "relay",
        "connect 127.0.0.1:1",
        "disconnect nobody",
        "send nobody hello",
        "trust promote nothing",
        "exit",
        "y",
    ] {
        node.type_line(line);
    }
    for answer in [
        "protocol=1",
        "No connected peers.",
        "ok (0 peers)",
        "1",
        "Unhandled input",
        "hello there",
        "Unknown command or plugin: nonsense",
        "send reliable NODE TEXT",
        "--- Connection Status ---",
        "node prompt on port",
        "node prompt realm Test port",
        "forwarded",
        "127.0.0.1:1",
        "nobody",
        "nobody",
        "encryption is off",
        "Exiting.",
    ] {
        node.expect(answer);
    }
    assert!(node.wait().success());
}

#[test]
fn the_prompt_promotes_only_what_was_kept_and_adds_whatever_it_is_told() {
    let mut spec = Spec::encrypted("prompt");
    spec.args.push("--prompt".into());
    let mut node = spec.start();
    let key = "ab".repeat(32);
    node.type_line(&format!("trust promote {key}"));
    node.expect("no certificate with this fingerprint was kept");
    node.type_line(&format!("trust add {key}"));
    node.expect("is trusted from the next connection on");
    node.type_line(&format!("trust add {key}"));
    node.expect("Nothing to do");
    node.type_line("trust trusted list");
    node.expect(&key);
}

#[test]
fn the_prompt_commands_a_live_network_and_promotes_who_came() {
    let observe = "[encryption.trust_policy]\nmode = \"observe\"";
    let mut spec = Spec::encrypted("prompt").with("echo").more(observe);
    spec.args.push("--prompt".into());
    let mut node = spec.start();
    let own = node.json(&["cert", "fingerprint"])["fingerprints"][0].as_str().expect("one").to_owned();
    let dial = format!("bootstrap_nodes = [\"127.0.0.1:{}\"]", node.port);
    let mut peer = Spec::encrypted("node-b").with("courier").more(observe).top(&dial).start();
    let key = peer.json(&["cert", "fingerprint"])["fingerprints"][0].as_str().expect("one").to_owned();
    assert!(peer.command(&["trust", "add", &own]).status.success());
    // It came, was kept out, and is let in by its fingerprint, under the name in its certificate.
    node.expect("reason=observe-only");
    for (line, answer) in [
        ("trust own list", own.clone()),
        ("trust observed list", format!("{key} as node-b")),
        (
            &*format!("trust promote {key}"),
            format!("✅ {key} as node-b is trusted from the next connection on"),
        ),
    ] {
        node.type_line(line);
        node.expect(&answer);
    }
    node.expect("action=app_handshake_success");
    node.type_line("peers");
    node.expect("node-b");
    node.type_line("send reliable node-b good morning");
    node.expect("✅ acknowledged_by_peer");
    assert_eq!(peer.prompt("courier", "got").as_deref(), Ok("prompt: good morning"));
    node.type_line("plugins");
    node.expect("echo");
    node.type_line("disconnect node-b");
    node.expect("✅ Disconnected from node-b; held off until `connect`");
    peer.seen("action=peer_disconnected");
    node.seen("action=peer_disconnected"); // it is out of the table
    node.type_line("peers");
    node.expect("No connected peers.");
    node.type_line(&format!("connect 127.0.0.1:{}", peer.port));
    // It dials too, and may be faster once it is let in again.
    node.expect_where("that it is connected", |line| {
        line.contains("✅ Connected to node-b") || line.contains("node-b is connected already")
    });
    node.type_line("peers known");
    node.expect(&format!("127.0.0.1:{} node-b", peer.port));
}

#[test]
fn lines_of_the_prompt_are_there_again_the_next_time() {
    let mut spec = Spec::new("history");
    spec.args.push("--prompt".into());
    let dir = spec.lay_out();
    let home = tempfile::tempdir().expect("a directory");
    let run = |lines: &[&str]| {
        let mut command = Command::new(bin_dir().join("thenodes"));
        command
            .args(["--config", "config.toml", "--prompt"])
            .current_dir(dir.path())
            .env("HOME", home.path());
        let mut child = command
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .expect("it starts");
        let mut stdin = child.stdin.take().expect("piped");
        lines
            .iter()
            .for_each(|line| std::io::Write::write_all(&mut stdin, line.as_bytes()).expect("it reads"));
        drop(stdin);
        assert!(child.wait().expect("it ends").success());
        std::fs::read_to_string(home.path().join(".thenodes_history")).expect("a history")
    };
    let first = run(&["status\n", "send nobody once\n"]);
    assert!(first.contains("status") && first.contains("send nobody once"), "{first}");
    let second = run(&["peers\n"]);
    assert!(second.starts_with(&first) && second.trim_end().ends_with("peers"), "{second}");
}

#[test]
fn the_end_of_the_input_ends_a_node_with_a_prompt() {
    let mut spec = Spec::new("eof");
    spec.args.push("--prompt".into());
    let mut node = spec.start();
    assert!(node.wait().success());
}

#[test]
fn sigterm_and_sigint_end_a_node_in_order() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let mut node = Spec::new("signals").with("kvstore").start();
        node.signal(signal);
        let status = node.wait();
        assert_eq!(status.code(), Some(0), "{signal}: {}", node.said.join("\n"));
        assert!(!node.dir.path().join("data/admin.sock").exists());
    }
}

#[test]
fn a_plugin_may_suggest_configuration_and_the_operator_sees_it() {
    let node = Spec::new("status").with("echo").start();
    let status = node.json(&["status"]);
    assert_eq!((status["node_id"].as_str(), status["plugins"].as_u64()), (Some("status"), Some(1)));
    let text = String::from_utf8_lossy(&node.command(&["plugin", "list"]).stdout).into_owned();
    assert!(text.contains("echo") && text.contains("Ready") && text.contains("level=full"), "{text}");
}

/// A process that does not outlive its test.
struct Ended(std::process::Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs a node on this standard input, and sends it SIGHUP once it runs; its standard output until it has ended, if it does.
fn hung_up(stdin: std::process::Stdio) -> (Ended, std::sync::mpsc::Receiver<String>) {
    use std::io::BufRead;
    let spec = Spec::new("hung-up");
    let dir = spec.lay_out();
    let child = Command::new(bin_dir().join("thenodes"))
        .args(["--config", "config.toml"])
        .current_dir(dir.path())
        .stdin(stdin)
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::null())
        .spawn();
    let mut child = Ended(child.expect("the node starts"));
    let (tell, lines) = std::sync::mpsc::channel();
    let stdout = std::io::BufReader::new(child.0.stdout.take().expect("piped"));
    std::thread::spawn(move || {
        let _dir = dir;
        stdout.lines().map_while(Result::ok).all(|line| tell.send(line).is_ok())
    });
    let until = |text: &str| {
        while !lines.recv_timeout(thenodes_tests::PATIENCE).expect("it says so").contains(text) {}
    };
    until("is running");
    let pid = nix::unistd::Pid::from_raw(i32::try_from(child.0.id()).expect("a pid"));
    nix::sys::signal::kill(pid, Signal::SIGHUP).expect("it lives");
    (child, lines)
}

#[test]
fn a_node_on_a_terminal_ends_with_it_and_a_daemon_goes_on() {
    let terminal = nix::pty::openpty(None, None).expect("a terminal");
    let (mut child, lines) = hung_up(terminal.slave.into());
    while lines.recv_timeout(thenodes_tests::PATIENCE).is_ok() {} // closed by its end, or not at all
    let begun = std::time::Instant::now();
    let status = loop {
        match child.0.try_wait().expect("ours") {
            Some(status) => break status,
            None => assert!(begun.elapsed() < thenodes_tests::PATIENCE, "it goes on"),
        }
        std::thread::park_timeout(std::time::Duration::from_millis(10));
    };
    assert!(status.success(), "in order: {status}");
    // Without one: it looks at its rules, of which a node in plaintext has none.
    let (mut child, lines) = hung_up(std::process::Stdio::null());
    while !lines.recv_timeout(thenodes_tests::PATIENCE).expect("it says so").contains("trust_rules_kept") {}
    assert_eq!(child.0.try_wait().expect("ours"), None);
}
