//! What an operator sees of plugins: logs that are followed, metrics, top, calls, queues. Plugins here are hostile, and so is what
//! they say; the node is a real one, and so are its clients.

use serde_json::{json, Value};
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{channel, Receiver};
use std::time::Instant;
use thenodes_tests::{bin_dir, sample, Spec, TestNode, PATIENCE};

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A command that goes on; ended when dropped.
struct Running {
    child: Child,
    lines: Receiver<String>,
}

impl Running {
    fn start(node: &TestNode, args: &[&str]) -> Running {
        let mut child = Command::new(bin_dir().join("thenodes"))
            .args(["--config", "config.toml"])
            .args(args)
            .current_dir(node.dir.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("the command runs");
        let out = BufReader::new(child.stdout.take().expect("piped"));
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in out.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Running { child, lines }
    }

    /// The next line with this text.
    #[track_caller]
    fn expect(&mut self, wanted: &str) -> String {
        let mut said = String::new();
        loop {
            match self.lines.recv_timeout(PATIENCE) {
                Ok(line) if line.contains(wanted) => return line,
                Ok(line) => said.push_str(&(line + "\n")),
                Err(error) => panic!("no {wanted:?}: {error}; the command said:\n{said}"),
            }
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A hand-made client of the admin socket.
struct Client(BufReader<UnixStream>);

impl Client {
    fn connect(node: &TestNode) -> Client {
        let stream = UnixStream::connect(node.dir.path().join("data/admin.sock")).expect("the node listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("set");
        Client(BufReader::new(stream))
    }

    fn say(&mut self, question: &Value) {
        self.0.get_mut().write_all(format!("{question}\n").as_bytes()).expect("sent");
    }

    fn hear(&mut self) -> Value {
        let mut line = String::new();
        self.0.read_line(&mut line).expect("an answer");
        serde_json::from_str(&line).unwrap_or_else(|e| panic!("{e}: {line}"))
    }

    fn ask(&mut self, question: &Value) -> Value {
        self.say(question);
        self.hear()
    }
}

fn logs(wait_ms: u64, after: Option<u64>) -> Value {
    json!({ "cmd": "plugin-logs", "name": "hostile", "lines": 256, "after": after, "wait_ms": wait_ms })
}

#[test]
fn logs_are_chosen_by_level_time_and_number_and_no_line_poses_as_another() {
    let node = Spec::new("logs").with("hostile").start();
    assert_eq!(node.prompt("hostile", "good").as_deref(), Ok("42 0"));
    assert_eq!(node.prompt("hostile", "log-nasty").as_deref(), Ok("said"));
    assert_eq!(node.prompt("hostile", "forge").as_deref(), Ok("forged"));
    // Pipes of a process are read beside its answers: wait for the last line of each.
    let mut client = Client::connect(&node);
    let (mut after, mut seen) = (0, String::new());
    while !["a line on stdout", "a line on stderr", "very long line"]
        .iter()
        .all(|wanted| seen.contains(wanted))
    {
        let answer = client.ask(&logs(25_000, Some(after)));
        after = answer["next"].as_u64().expect("a number");
        seen.push_str(&answer["lines"].to_string());
    }
    let all = text(&node.command(&["plugin", "logs", "hostile", "-n", "256"]));
    assert!(!all.contains('\u{1b}') && !all.contains('\u{7}'), "{all}");
    let kept = node.logs("hostile").len();
    assert_eq!(all.lines().count(), kept, "a line is a line: {all}");
    assert!(all.lines().all(|line| line.contains("Z #1 [")), "each has time, process and level: {all}");
    let grave = text(&node.command(&["plugin", "logs", "hostile", "--level", "warn"]));
    assert!(grave.contains("a line on stderr") && !grave.contains("a line on stdout"), "{grave}");
    let forged = grave.lines().find(|line| line.contains("by root")).expect("it was said").to_owned();
    assert!(forged.contains("[error] log node:"), "who spoke stands before what was said: {forged}");
    let one = node.json(&["plugin", "logs", "hostile", "-n", "1", "--since", "1h"]);
    assert_eq!(one["lines"].as_array().map(Vec::len), Some(1));
    assert_eq!(one["lines"][0]["number"], one["next"], "the newest");
    let none = text(&node.command(&["plugin", "logs", "hostile", "--since", "2100-01-01T00:00:00Z"]));
    assert_eq!(none.trim(), "(nothing)");
}

#[test]
fn who_follows_a_log_hears_the_next_process_too() {
    let mut node = Spec::new("follow").with("hostile").start();
    let mut follower =
        Running::start(&node, &["plugin", "logs", "hostile", "-f", "--json", "--level", "info"]);
    assert_eq!(node.prompt("hostile", "good").as_deref(), Ok("42 0"));
    let line: Value = serde_json::from_str(&follower.expect("a line on stdout")).expect("an object a line");
    assert_eq!((line["generation"].as_u64(), line["source"].as_str()), (Some(1), Some("stdout")));
    let _ = node.prompt("hostile", "segv");
    follower.expect("died: ");
    node.expect("name=hostile action=ready detail=Some(\"generation=2");
    assert_eq!(node.prompt("hostile", "good").as_deref(), Ok("42 0"));
    let line: Value = serde_json::from_str(&follower.expect("a line on stdout")).expect("an object a line");
    assert_eq!(line["generation"].as_u64(), Some(2));
    // A flood is cut, and the follower is told.
    assert_eq!(node.prompt("hostile", "log-flood").as_deref(), Ok("flooded"));
    let _ = node.prompt("hostile", "segv"); // at its end at the latest
    follower.expect("log lines dropped: more than");
    assert!(node.json(&["plugin", "logs", "hostile"])["dropped"].as_u64() > Some(0));
}

#[test]
fn followers_are_bounded_hold_up_no_orders_and_their_places_are_free_when_they_are_gone() {
    let node = Spec::new("followers").with("hostile").start();
    let last = node.json(&["plugin", "logs", "hostile"])["next"].as_u64();
    let wait = logs(25_000, Some(last.unwrap_or(0) + 1_000_000));
    let mut full = Vec::new();
    let refused = loop {
        assert!(full.len() < 64, "they are bounded");
        let mut client = Client::connect(&node);
        client.say(&wait);
        // Those that wait say nothing; the first that may not says so at once, and before it every other was taken.
        client.0.get_ref().set_read_timeout(Some(std::time::Duration::from_millis(300))).expect("set");
        let mut line = String::new();
        match client.0.read_line(&mut line) {
            Ok(_) => break line,
            Err(_) => full.push(client),
        }
    };
    assert_eq!(full.len(), 8);
    assert!(refused.contains("RESOURCE_EXHAUSTED"), "{refused}");
    assert_eq!(node.prompt("hostile", "good").as_deref(), Ok("42 0"), "orders and questions go on");
    drop(full);
    let begun = Instant::now();
    loop {
        // A question that waits for nothing long, but needs a place.
        let answer = Client::connect(&node).ask(&logs(1, Some(u64::MAX)));
        if answer["error"].is_null() {
            break;
        }
        assert!(begun.elapsed() < PATIENCE, "{answer}");
    }
}

#[test]
fn metrics_count_what_happens_to_a_real_plugin() {
    let mut node = Spec::new("metrics").with("hostile").with("echo").start();
    let before = text(&node.command(&["metrics"]));
    assert_eq!(sample(&before, "thenodes_plugin_calls_total{plugin=\"echo\",method=\"prompt\"}"), None);
    for _ in 0..3 {
        assert_eq!(node.prompt("echo", "x").as_deref(), Ok("x"));
    }
    assert!(node.command(&["plugin", "call", "echo", "echo", "y"]).status.success());
    assert!(!node.command(&["plugin", "call", "echo", "nobody-knows", "y"]).status.success());
    let _ = node.prompt("hostile", "panic");
    let _ = node.prompt("hostile", "segv");
    node.expect("name=hostile action=ready detail=Some(\"generation=2");
    let page = text(&node.command(&["metrics"]));
    for (series, value) in [
        ("calls_total{plugin=\"echo\",method=\"prompt\"}", 3.0),
        ("calls_total{plugin=\"echo\",method=\"request\"}", 2.0),
        ("calls_total{plugin=\"echo\",method=\"load\"}", 1.0),
        ("call_errors_total{plugin=\"echo\",method=\"request\",code=\"UNHANDLED\"}", 1.0),
        ("call_seconds_bucket{plugin=\"echo\",method=\"prompt\",le=\"30\"}", 3.0),
        ("call_seconds_count{plugin=\"echo\",method=\"prompt\"}", 3.0),
        ("state{plugin=\"echo\",state=\"Ready\"}", 1.0),
        ("restarts_total{plugin=\"echo\"}", 0.0),
        ("restarts_total{plugin=\"hostile\"}", 1.0),
        ("deaths_total{plugin=\"hostile\",cause=\"signal\"}", 1.0),
        ("panics_total{plugin=\"hostile\"}", 1.0),
        ("calls_total{plugin=\"hostile\",method=\"prompt\"}", 2.0),
        // One by the panic, one by the death.
        ("call_errors_total{plugin=\"hostile\",method=\"prompt\",code=\"PLUGIN_CRASHED\"}", 2.0),
        ("queue_length{plugin=\"echo\"}", 0.0),
    ] {
        assert_eq!(sample(&page, &format!("thenodes_plugin_{series}")), Some(value), "{series}\n{page}");
    }
    let sum = sample(&page, "thenodes_plugin_call_seconds_sum{plugin=\"echo\",method=\"prompt\"}");
    assert!(sum > Some(0.0) && sum < Some(60.0), "{sum:?}");
    assert!(sample(&page, "thenodes_plugin_memory_bytes{plugin=\"echo\"}") > Some(100_000.0), "{page}");
    assert!(!page.contains("nobody-knows"), "names of requests are no labels");
    let one = text(&node.command(&["plugin", "metrics", "echo"]));
    assert!(
        one.contains("plugin=\"echo\"") && !one.contains("hostile") && !one.contains("thenodes_peers"),
        "{one}"
    );
    assert_eq!(
        node.json(&["metrics"])["text"].as_str().map(|text| text.contains("thenodes_peers 0")),
        Some(true)
    );
    assert_eq!(node.json(&["plugin", "metrics", "x"])["error"]["code"], "NOT_FOUND");
}

#[test]
fn top_shows_who_works_now() {
    let node = Spec::new("top").with("kvstore").with("echo").start();
    let (done, node) = (AtomicBool::new(false), &node);
    let rows = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                let _ = node.prompt("echo", "x");
            }
        });
        let rows = node.json(&["plugin", "top", "--once"]);
        done.store(true, Ordering::Relaxed);
        rows
    });
    let row = |name: &str| {
        let all = rows["plugins"].as_array().expect("rows");
        all.iter().find(|row| row["name"] == name).cloned().expect("a row")
    };
    let (echo, idle) = (row("echo"), row("kvstore"));
    assert!(
        echo["calls_per_s"].as_f64() > Some(0.0) && echo["p99_us"].as_u64() >= echo["p50_us"].as_u64(),
        "{rows}"
    );
    assert_eq!((idle["calls_per_s"].as_f64(), idle["p50_us"].is_null()), (Some(0.0), true), "{rows}");
    assert!(echo["memory"].as_u64() > Some(100_000) && idle["cpu_percent"].is_f64(), "{rows}");
    let table = text(&node.command(&["plugin", "top"]));
    assert!(table.starts_with("NAME") && table.contains("kvstore"), "no terminal, so once: {table}");
}

fn call(node: &TestNode, args: &[&str], input: &[u8]) -> (Option<i32>, Vec<u8>, String) {
    let mut child = Command::new(bin_dir().join("thenodes"))
        .args(["--config", "config.toml", "plugin", "call"])
        .args(args)
        .current_dir(node.dir.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the command runs");
    // A command that reads none of it may be gone already.
    let _ = child.stdin.take().expect("piped").write_all(input);
    let output = child.wait_with_output().expect("it ends");
    (output.status.code(), output.stdout, String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn a_call_passes_bytes_both_ways_and_its_exit_code_says_what_went_wrong() {
    let node = Spec::new("call").with("echo").with("hostile").start();
    assert_eq!(call(&node, &["echo", "echo", "hello"], b""), (Some(0), b"hello".to_vec(), String::new()));
    let bytes: Vec<u8> = (0..=255).cycle().take(500_000).collect();
    assert_eq!(call(&node, &["echo", "echo", "-"], &bytes).1, bytes, "byte for byte");
    assert_eq!(call(&node, &["echo", "echo", "-", "--hex"], &[0, 255]).1, b"00ff\n");
    let value: Value =
        serde_json::from_slice(&call(&node, &["echo", "echo", "a", "--json"], b"").1).expect("JSON");
    assert_eq!((value["text"].as_str(), value["body"].as_str()), (Some("a"), Some("61")));
    for (code, exit) in [
        ("INVALID_INPUT", 65),
        ("NOT_FOUND", 66),
        ("UNAVAILABLE", 69),
        ("INTERNAL_ERROR", 70),
        ("TIMEOUT", 75),
        ("RESOURCE_EXHAUSTED", 75),
        ("PERMISSION_DENIED", 77),
        ("CONFLICT", 1),
        ("MY_OWN", 1),
    ] {
        let (status, out, error) = call(&node, &["hostile", "fail", code], b"");
        assert_eq!((status, out.len()), (Some(exit), 0), "{code}: {error}");
        assert!(
            error.contains(code) && !error.contains('\u{1b}') && error.trim().lines().count() == 1,
            "{error}"
        );
    }
    assert_eq!(call(&node, &["echo", "what"], b"").0, Some(76), "UNHANDLED");
    assert_eq!(call(&node, &["nobody", "what"], b"").0, Some(66));
    assert_eq!(call(&node, &["echo", "two words"], b"").0, Some(65));
    assert_eq!(
        call(&node, &["echo", "echo", "-"], &vec![b'x'; 2 << 20]).0,
        Some(75),
        "more than a frame has"
    );
    assert_eq!(call(&node, &["hostile", "sin", "abort"], b"").0, Some(70), "it died of it");
    assert!(node.command(&["plugin", "disable", "echo"]).status.success());
    let (status, _, error) = call(&node, &["echo", "echo", "a"], b"");
    assert_eq!(status, Some(69));
    assert!(error.contains("thenodes plugin enable echo"), "{error}");
}

#[test]
fn violations_are_a_table_for_people() {
    let node = Spec::new("violations").with("echo").start();
    let table = text(&node.command(&["plugin", "violations", "echo"]));
    let rows: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows[0], ["LIMIT", "COUNT", "LAST"]);
    assert!(rows.contains(&vec!["memory", "0", "-"]) && table.ends_with("(none)\n"), "{table}");
    assert!(!table.contains('{'), "{table}");
}

/// More than a queue of 256 and the 32 messages that may be with a plugin that takes its time.
const MANY: usize = 320;

#[test]
fn each_queue_policy_holds_at_a_plugin_that_takes_nothing_and_nobody_else_waits_for_it() {
    let mut spec = Spec::new("queues").with("echo").with_hostile("default", "message:hang");
    for policy in ["drop-newest", "drop-oldest", "block-peer"] {
        spec = spec
            .with_hostile(policy, "message:hang")
            .more(&format!("[plugins.for.{policy}]\nqueue = \"{policy}\""));
    }
    let node = spec.start();
    let stream = TcpStream::connect(("127.0.0.1", node.port)).expect("the node listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("set");
    let mut peer = BufReader::new(stream);
    let say = |peer: &mut BufReader<TcpStream>, kind: &str| {
        let line = format!("{{\"from\":\"m\",\"to\":\"queues\",\"msg_type\":{kind},\"realm\":{{\"name\":\"Test\",\"version\":\"1.0\"}}}}\n");
        peer.get_mut().write_all(line.as_bytes()).expect("sent");
    };
    say(&mut peer, "{\"HELLO\":{\"node_id\":\"m\"}}");
    // A few at a time, so that the plugin that answers never has a full queue itself.
    for _ in 0..MANY / 16 {
        for _ in 0..16 {
            say(&mut peer, "{\"TEXT\":\"x\"}");
        }
        let mut answers = 0;
        while answers < 16 {
            let mut line = String::new();
            assert!(peer.read_line(&mut line).expect("an answer") > 0, "the node hung up");
            answers += usize::from(line.contains("\"echo\""));
        }
    }
    let queue = |name: &str| node.status(name)["queue"].clone();
    let number = |queue: &Value, key: &str| queue[key].as_u64().expect("a number");
    for (name, policy) in
        [("default", "drop-newest"), ("drop-newest", "drop-newest"), ("drop-oldest", "drop-oldest")]
    {
        let queue = queue(name);
        assert_eq!(queue["policy"], policy);
        assert!(number(&queue, "dropped") > 0 && number(&queue, "length") <= 256, "{name}: {queue}");
    }
    let blocked = queue("block-peer");
    assert_eq!(
        (blocked["policy"].as_str(), number(&blocked, "dropped")),
        (Some("block-peer"), 0),
        "{blocked}"
    );
    assert!(
        number(&blocked, "length") + number(&blocked, "lost") > 256 && number(&blocked, "bytes") > 0,
        "{blocked}"
    );
    assert_eq!(number(&queue("echo"), "length"), 0);
    let shown = text(&node.command(&["plugin", "status", "block-peer"]));
    assert!(shown.contains("policy block-peer"), "{shown}");
    // Whoever is given up holds up nobody.
    assert!(node.command(&["plugin", "disable", "block-peer"]).status.success());
    assert!(number(&queue("block-peer"), "length") <= 256);
    say(&mut peer, "{\"TEXT\":\"y\"}");
    let mut rest = String::new();
    while !rest.contains("\"y\"") {
        assert!(peer.read_line(&mut rest).expect("an answer") > 0, "the node hung up: {rest}");
    }
}
