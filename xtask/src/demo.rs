//! The product in a minute, on real input: two nodes with mutual TLS and allowlists, each with the key-value plugin in a
//! runner of its own; a put that arrives; a crash that the peers do not notice; five attacks that get nowhere.

use crate::{cargo, run as run_command, target};
use anyhow::{bail, ensure, Context, Result};
use nix::sys::signal::{kill, Signal};
use nix::unistd::Pid;
use serde_json::{json, Value};
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// How long anything may take before the demo gives up.
const PATIENCE: Duration = Duration::from_secs(30);
/// The attacks that are shown, and what they try.
const ATTACKS: [(&str, &str); 5] = [
    ("open", "read /etc/passwd"),
    ("socket", "open a TCP socket"),
    ("exec", "run /bin/true"),
    ("create", "write a file"),
    ("memory", "take memory without end"),
];

struct Node {
    name: &'static str,
    dir: TempDir,
    child: Option<Child>,
    binary: PathBuf,
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM);
            let _ = child.wait();
        }
    }
}

impl Node {
    fn new(name: &'static str, bin: &Path, plugins: &[&str]) -> Result<Node> {
        let dir = tempfile::Builder::new().prefix("thenodes-demo").tempdir()?;
        fs::create_dir(dir.path().join("plugins"))?;
        for plugin in plugins {
            let file = format!("lib{plugin}.so");
            fs::copy(bin.join(&file), dir.path().join("plugins").join(&file)).with_context(|| file)?;
        }
        Ok(Node { name, dir, child: None, binary: bin.join("thenodes") })
    }

    fn configure(&self, bootstrap: Option<u16>) -> Result<()> {
        let bootstrap =
            bootstrap.map_or_else(String::new, |port| format!("bootstrap_nodes = [\"127.0.0.1:{port}\"]\n"));
        // Under root, plugins of two nodes must not share a uid: a thousand for each node, by the letter in its name.
        let uids = 3_000_000 + 1000 * u32::from(self.name.bytes().last().unwrap_or_default());
        let text = format!(
            "port = 0\nbind_address = \"127.0.0.1\"\n{bootstrap}\n[realm]\nname = \"demo\"\nversion = \"1\"\n\n[node]\nid = \"{}\"\n\n[plugins.sandbox]\nuid_base = {uids}\n",
            self.name
        );
        Ok(fs::write(self.dir.path().join("config.toml"), text)?)
    }

    fn ask(&self, args: &[&str]) -> Result<Value> {
        let output = Command::new(&self.binary)
            .args(["--config", "config.toml", "--json"])
            .args(args)
            .current_dir(self.dir.path())
            .output()?;
        let text = if output.status.success() { &output.stdout } else { &output.stderr };
        serde_json::from_slice(text)
            .with_context(|| format!("{}: {args:?}: {}", self.name, String::from_utf8_lossy(text)))
    }

    fn start(&mut self) -> Result<u16> {
        let log = fs::File::create(self.dir.path().join("stderr.log"))?;
        let mut child = Command::new(&self.binary)
            .args(["--config", "config.toml"])
            .current_dir(self.dir.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()?;
        let stdout = child.stdout.take().context("piped")?;
        self.child = Some(child);
        let mut lines = BufReader::new(stdout).lines();
        for line in lines.by_ref().map_while(Result::ok) {
            if let Some(rest) = line.split("listens on ").nth(1) {
                let port =
                    rest.split([',', ' ']).next().and_then(|addr| addr.rsplit(':').next()?.parse().ok());
                std::thread::spawn(move || lines.for_each(drop)); // keeps the pipe empty
                return port.context("a port");
            }
        }
        bail!("{} did not start: {}", self.name, fs::read_to_string(self.dir.path().join("stderr.log"))?)
    }

    fn until(&self, what: &str, args: &[&str], good: impl Fn(&Value) -> bool) -> Result<Value> {
        let begun = Instant::now();
        loop {
            let value = self.ask(args)?;
            if good(&value) {
                return Ok(value);
            }
            ensure!(begun.elapsed() < PATIENCE, "{}: no {what} within {PATIENCE:?}: {value}", self.name);
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn events(&self) -> String {
        fs::read_to_string(self.dir.path().join("logs/trust_audit.jsonl")).unwrap_or_default()
    }
}

/// The process that holds the library: the innermost of warden, stub and runner.
fn runner_below(warden: u64) -> Result<i32> {
    let child_of = |pid: u64| -> Option<u64> {
        let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
        text.split_whitespace().next()?.parse().ok()
    };
    let runner = child_of(warden).and_then(child_of).context("the runner below its warden")?;
    Ok(i32::try_from(runner)?)
}

pub(crate) fn run(json_only: bool) -> Result<()> {
    let say = |text: String| {
        if !json_only {
            println!("{text}");
        }
    };
    say("Building node, runner and plugins ...".into());
    run_command(cargo().args(["build", "--quiet", "--workspace"]))?;
    let bin = target().join("debug");

    say("\n1. Two nodes, a certificate each, each trusting the other's key and nobody else's".into());
    let mut a = Node::new("node-a", &bin, &["kvstore"])?;
    let mut b = Node::new("node-b", &bin, &["kvstore", "hostile"])?;
    a.configure(None)?;
    b.configure(None)?;
    let print_of = |node: &Node| -> Result<String> {
        let made = node.ask(&["cert", "new"])?;
        Ok(made["fingerprint"].as_str().context("a fingerprint")?.to_owned())
    };
    let (print_a, print_b) = (print_of(&a)?, print_of(&b)?);
    a.ask(&["trust", "add", &print_b])?;
    b.ask(&["trust", "add", &print_a])?;
    let port = a.start()?;
    b.configure(Some(port))?;
    b.start()?;
    for node in [&a, &b] {
        node.until("peer", &["peers"], |value| {
            value["peers"].as_array().is_some_and(|peers| peers.len() == 1)
        })?;
        say(format!("   {} is up and has its peer over mutual TLS", node.name));
    }

    say("\n2. A put on one node, a get on the other".into());
    let put = b.ask(&["plugin", "prompt", "kv", "put", "colour", "blue"])?;
    say(format!("   node-b> kv put colour blue   {}", put["output"].as_str().unwrap_or("?")));
    let got =
        a.until("value", &["plugin", "prompt", "kv", "get", "colour"], |value| value["output"] == "blue")?;
    say(format!("   node-a> kv get colour        {}", got["output"].as_str().unwrap_or("?")));

    say("\n3. What holds each plugin, as measured from inside before its library was opened".into());
    let mut sandboxes = Vec::new();
    for (node, plugin) in [(&a, "kvstore"), (&b, "kvstore"), (&b, "hostile")] {
        let status = node.ask(&["plugin", "status", plugin])?["plugin"].clone();
        say(format!(
            "   {} {plugin:<8} pid {}  level {}",
            node.name,
            status["pid"],
            status["level"].as_str().unwrap_or("?")
        ));
        for layer in status["layers"].as_array().into_iter().flatten() {
            let mark = if layer["in_force"] == true { "holds" } else { "MISSING" };
            say(format!("      {:<18} {mark}", layer["layer"].as_str().unwrap_or("?")));
        }
        ensure!(status["level"] == "full", "{plugin} on {} is not fully confined: {status}", node.name);
        sandboxes.push(json!({ "node": node.name, "plugin": plugin, "pid": status["pid"], "level": status["level"], "layers": status["layers"] }));
    }

    say("\n4. A plugin dies of SIGSEGV".into());
    let before = b.ask(&["plugin", "status", "kvstore"])?["plugin"].clone();
    kill(Pid::from_raw(runner_below(before["pid"].as_u64().context("a pid")?)?), Signal::SIGSEGV)?;
    let after = b.until("restart", &["plugin", "status", "kvstore"], |value| {
        value["plugin"]["state"] == "Ready" && value["plugin"]["starts"] == 2
    })?["plugin"]
        .clone();
    let dropped = a.events().contains("peer_disconnected") || b.events().contains("peer_disconnected");
    say(format!("   cause    {}", after["last_death"]["text"].as_str().unwrap_or("?")));
    say(format!("   back     after {} ms, pid {} -> {}", after["recovered_ms"], before["pid"], after["pid"]));
    say(format!("   peers    {}", if dropped { "DROPPED" } else { "the connection never dropped" }));
    ensure!(!dropped, "the peer connection dropped");
    let put = a.ask(&["plugin", "prompt", "kv", "put", "size", "xl"])?;
    ensure!(put["output"] == "ok (1 peers)", "a put after the crash: {put}");
    b.until("value after the crash", &["plugin", "prompt", "kv", "get", "size"], |value| {
        value["output"] == "xl"
    })?;
    say("   and the restarted plugin gets the next put".into());

    say("\n5. The hostile plugin tries".into());
    let mut attacks = Vec::new();
    for (sin, what) in ATTACKS {
        let ready = b.until("hostile plugin", &["plugin", "status", "hostile"], |value| {
            value["plugin"]["state"] == "Ready"
        })?;
        let starts = ready["plugin"]["starts"].clone();
        let answer = b.ask(&["plugin", "prompt", "hostile", sin])?;
        let outcome = match answer["output"].as_str() {
            Some(output) => output.to_owned(),
            None => {
                // The death is recorded when its cause is known, a moment after the call failed.
                let dead = b.until("death", &["plugin", "status", "hostile"], |value| {
                    let again = value["plugin"]["state"] != "Ready" || value["plugin"]["starts"] != starts;
                    again && value["plugin"]["last_death"]["cause"] == "denied_syscall"
                })?;
                format!("stopped: {}", dead["plugin"]["last_death"]["text"].as_str().unwrap_or("?"))
            }
        };
        let held = outcome.starts_with("denied") || outcome.starts_with("stopped");
        say(format!("   {what:<26} {outcome}"));
        ensure!(held, "the attack {sin} got through: {outcome}");
        attacks.push(json!({ "attack": sin, "what": what, "outcome": outcome, "stopped": held }));
    }
    let peers = a.ask(&["peers"])?["peers"].as_array().map_or(0, Vec::len);
    ensure!(peers == 1, "node-a has {peers} peers");

    let summary = format!(
        "2 nodes, {} sandboxes at level full, 1 crash survived in {} ms, {} attacks stopped, the peers never noticed",
        sandboxes.len(),
        after["recovered_ms"],
        attacks.len()
    );
    say(format!("\n{summary}"));
    if json_only {
        let value = json!({
            "version": 1,
            "sandboxes": sandboxes,
            "replicated": { "key": "colour", "value": got["output"] },
            "crash": {
                "cause": after["last_death"],
                "recovered_ms": after["recovered_ms"],
                "peer_connection_dropped": dropped,
            },
            "attacks": attacks,
            "summary": summary,
        });
        println!("{value}");
    }
    Ok(())
}
