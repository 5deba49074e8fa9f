//! The harness: real nodes as child processes in directories of their own, real plugins patched to misbehave, and waiting
//! for what a node says instead of sleeping. Every wait ends after [`PATIENCE`] with everything the node said.

pub mod attack;
#[cfg(feature = "bench")]
pub mod bench;
pub mod fuse;
pub mod inside;
pub mod peer;
pub mod tls;
pub mod upstream;

use nix::sys::signal::{kill, Signal};
use nix::unistd::Pid;
use serde_json::Value;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{channel, Receiver, RecvTimeoutError};
use std::sync::Mutex;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// How long anything may take before a test fails. Long, because machines are slow and the bound is not the promise.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Where the built programs and plugins are: `THENODES_BIN_DIR`, or beside this test.
pub fn bin_dir() -> PathBuf {
    let dir = match std::env::var_os("THENODES_BIN_DIR") {
        Some(dir) => PathBuf::from(dir),
        None => {
            let exe = std::env::current_exe().expect("this test has a path");
            // A test lies in `deps`, one below the binaries; the suite's own programs lie beside them.
            let beside = exe.parent().expect("a program lies in a directory");
            let above = beside.parent().expect("target/PROFILE/deps");
            if beside.join("thenodes-runner").exists() { beside } else { above }.to_path_buf()
        }
    };
    assert!(
        dir.join("thenodes").exists() && dir.join("thenodes-runner").exists(),
        "{} holds no built node and runner; run the tests with `cargo xtask test`",
        dir.display()
    );
    dir
}

/// The library of an example plugin.
pub fn plugin(name: &str) -> PathBuf {
    bin_dir().join(format!("lib{name}.so"))
}

/// The value of a series on a page of metrics.
pub fn sample(page: &str, series: &str) -> Option<f64> {
    page.lines().find_map(|line| line.strip_prefix(series)?.trim().parse().ok())
}

/// Says loudly that a test did not run. `cargo xtask test` counts these lines.
pub fn skip(test: &str, why: &str) {
    let _ = writeln!(std::io::stderr(), "SKIPPED {test}: {why}");
}

/// True for root.
pub fn is_root() -> bool {
    nix::unistd::getuid().is_root()
}

/// A directory with a configuration and plugins, and the node that runs in it.
pub struct TestNode {
    /// Working directory of the node.
    pub dir: TempDir,
    child: Child,
    /// Behind a lock only so that tests may share a node between threads.
    lines: Mutex<Receiver<String>>,
    /// Everything the node said so far.
    pub said: Vec<String>,
    /// Lines of `said` that earlier waits have passed.
    read: usize,
    /// Port it listens on.
    pub port: u16,
}

/// How to start a node.
#[derive(Default)]
pub struct Spec {
    /// Node id.
    pub id: String,
    /// Plugin files by the name that they get in the plugin directory.
    pub plugins: Vec<(String, Vec<u8>)>,
    /// More configuration, after the top-level keys and `[node]`.
    pub config: String,
    /// More top-level keys.
    pub top: String,
    /// More arguments.
    pub args: Vec<String>,
}

impl Spec {
    /// A node with this id, in plaintext, in realm "Test" 1.0.
    pub fn new(id: &str) -> Self {
        Self {
            id: id.into(),
            config: "[encryption]\nenabled = false\n[realm]\nname = \"Test\"\nversion = \"1.0\"\n".into(),
            ..Default::default()
        }
    }

    /// A node with this id and mTLS with an allowlist.
    pub fn encrypted(id: &str) -> Self {
        Self { config: "[realm]\nname = \"Test\"\nversion = \"1.0\"\n".into(), ..Spec::new(id) }
    }

    /// With a plugin as it was built.
    pub fn with(mut self, name: &str) -> Self {
        let bytes = fs::read(plugin(name)).unwrap_or_else(|e| panic!("{}: {e}", plugin(name).display()));
        self.plugins.push((format!("lib{name}.so"), bytes));
        self
    }

    /// With a plugin file of these bytes.
    pub fn with_file(mut self, file: &str, bytes: Vec<u8>) -> Self {
        self.plugins.push((file.into(), bytes));
        self
    }

    /// With the hostile plugin, switched to a sin.
    pub fn with_hostile(self, name: &str, switch: &str) -> Self {
        self.with_file(&format!("lib{name}.so"), hostile(switch))
    }

    /// With more top-level configuration.
    pub fn top(mut self, text: &str) -> Self {
        self.top.push_str(text);
        self.top.push('\n');
        self
    }

    /// With frames going this way: `ring` or `socket`.
    pub fn transport(self, way: &str) -> Self {
        self.top(&format!("plugins.transport = {way:?}"))
    }

    /// With more configuration.
    pub fn more(mut self, text: &str) -> Self {
        self.config.push_str(text);
        self.config.push('\n');
        self
    }

    /// Writes directory and configuration.
    pub fn lay_out(&self) -> TempDir {
        let dir = tempfile::Builder::new().prefix("thenodes-test").tempdir().expect("a directory");
        fs::create_dir(dir.path().join("plugins")).expect("a directory");
        for (file, bytes) in &self.plugins {
            fs::write(dir.path().join("plugins").join(file), bytes).expect("a plugin file");
        }
        // A line of its own: `plugins.transport =` says nothing of it.
        let says = self.top.lines().any(|line| line.starts_with("port ="));
        let port = if says { "" } else { "port = 0\n" };
        let bind = if self.top.contains("bind_address") { "" } else { "bind_address = \"127.0.0.1\"\n" };
        let text = format!("{port}{bind}{}[node]\nid = \"{}\"\n{}", self.top, self.id, self.config);
        fs::write(dir.path().join("config.toml"), with_uids(text)).expect("a configuration");
        dir
    }

    /// Starts the node and waits until it runs.
    pub fn start(self) -> TestNode {
        let dir = self.lay_out();
        self.start_in(dir)
    }

    /// Starts the node in a directory that was laid out before.
    pub fn start_in(&self, dir: TempDir) -> TestNode {
        let mut node = self.spawn(dir);
        let line = node.expect("is running.");
        let listens = line.split("listens on ").nth(1).and_then(|rest| rest.split(',').next());
        node.read = 0; // what was said before the banner may be waited for too
        node.port =
            listens.and_then(|addr| addr.rsplit(':').next()?.parse().ok()).expect("a port in the banner");
        node
    }

    /// Starts the node on a port that it will have again after a restart.
    pub fn start_on_a_port(&self) -> TestNode {
        let spec = Spec {
            id: self.id.clone(),
            top: format!("port = {}\n{}", upstream::free_port(), self.top),
            config: self.config.clone(),
            args: self.args.clone(),
            plugins: self.plugins.clone(),
        };
        let dir = spec.lay_out();
        spec.start_in(dir)
    }

    /// Starts the node and does not wait.
    pub fn spawn(&self, dir: TempDir) -> TestNode {
        let mut command = Command::new(bin_dir().join("thenodes"));
        command.args(["--config", "config.toml"]).args(&self.args).current_dir(dir.path());
        self.spawn_as(command, dir)
    }

    /// Starts the node by a command of the test's own.
    pub fn spawn_as(&self, mut command: Command, dir: TempDir) -> TestNode {
        let mut child = command
            .env("THENODES_LOG", "info")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the node starts");
        let (sender, lines) = channel();
        let pipes: [Box<dyn std::io::Read + Send>; 2] =
            [Box::new(child.stdout.take().expect("piped")), Box::new(child.stderr.take().expect("piped"))];
        for pipe in pipes {
            let sender = sender.clone();
            std::thread::spawn(move || {
                for line in BufReader::new(pipe).lines().map_while(Result::ok) {
                    if sender.send(line).is_err() {
                        return;
                    }
                }
            });
        }
        TestNode { dir, child, lines: Mutex::new(lines), said: Vec::new(), read: 0, port: 0 }
    }
}

/// With a range of uids of its own where nodes have one: tests run many root nodes at a time.
fn with_uids(mut text: String) -> String {
    const TABLE: &str = "[plugins.sandbox]\n";
    static NODES: AtomicU32 = AtomicU32::new(0);
    if !is_root() || text.contains("uid_base") {
        return text;
    }
    // Far above the default, 64 uids each; pids come again after some time, and so may these.
    let node = NODES.fetch_add(1, Ordering::Relaxed) % 1000;
    let base = 100_000_000 + ((std::process::id() % 50_000) * 1000 + node) * 64;
    let line = format!("uid_base = {base}\n");
    match text.find(TABLE) {
        Some(at) => text.insert_str(at + TABLE.len(), &line),
        None => text.push_str(&format!("\n{TABLE}{line}")),
    }
    text
}

/// The hostile plugin with its switch set: `PHASE:SIN`.
pub fn hostile(switch: &str) -> Vec<u8> {
    let mut bytes = fs::read(plugin("hostile")).expect("the hostile plugin is built");
    // As long as `hostile::SWITCH`: room for a path behind the sin.
    let marker = format!("{:<256}", "hostile-switch=none:none").into_bytes();
    let at = bytes.windows(marker.len()).position(|w| w == marker).expect("the marker is in the library");
    let text = format!("{:<256}", format!("hostile-switch={switch}")).into_bytes();
    assert_eq!(text.len(), marker.len(), "a switch of at most 241 bytes: {switch}");
    bytes[at..at + marker.len()].copy_from_slice(&text);
    bytes
}

/// Another version of a plugin: the same code, another content.
pub fn another(name: &str) -> Vec<u8> {
    let mut bytes = fs::read(plugin(name)).unwrap_or_else(|e| panic!("{}: {e}", plugin(name).display()));
    bytes.extend_from_slice(b"another version"); // behind all that an ELF file speaks of
    bytes
}

impl TestNode {
    /// Ends the node orderly and starts another one in its directory.
    #[track_caller]
    pub fn again(mut self, spec: &Spec) -> TestNode {
        self.signal(Signal::SIGTERM);
        assert!(self.wait().success());
        let elsewhere = tempfile::tempdir().expect("a directory");
        let dir = std::mem::replace(&mut self.dir, elsewhere);
        spec.start_in(dir)
    }

    /// Starts another node in the directory of one that has ended.
    #[track_caller]
    pub fn restarted(mut self, spec: &Spec) -> TestNode {
        let elsewhere = tempfile::tempdir().expect("a directory");
        let dir = std::mem::replace(&mut self.dir, elsewhere);
        spec.start_in(dir)
    }

    /// Pid of the node.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for the next line with this text in it.
    #[track_caller]
    pub fn expect(&mut self, text: &str) -> String {
        self.expect_where(&format!("a line with {text:?}"), |line| line.contains(text))
    }

    /// Finds a line with this text, said already or still to come.
    #[track_caller]
    pub fn seen(&mut self, text: &str) -> String {
        self.read = 0;
        self.expect(text)
    }

    /// Finds a line that satisfies a condition, said already or still to come.
    #[track_caller]
    pub fn seen_where(&mut self, condition: impl Fn(&str) -> bool) -> String {
        self.read = 0;
        self.expect_where("such a line", condition)
    }

    /// Waits for the next line that satisfies a condition.
    #[track_caller]
    pub fn expect_where(&mut self, what: &str, condition: impl Fn(&str) -> bool) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            while self.read < self.said.len() {
                self.read += 1;
                if condition(&self.said[self.read - 1]) {
                    return self.said[self.read - 1].clone();
                }
            }
            match self
                .lines
                .get_mut()
                .expect("no panic")
                .recv_timeout(deadline.saturating_duration_since(Instant::now()))
            {
                Ok(line) => self.said.push(line),
                Err(RecvTimeoutError::Timeout) => {
                    panic!("no {what} within {PATIENCE:?}; the node said:\n{}", self.said.join("\n"))
                }
                Err(RecvTimeoutError::Disconnected) => {
                    panic!("no {what}, and the node has ended; it said:\n{}", self.said.join("\n"))
                }
            }
        }
    }

    /// Takes all waiting lines in without waiting, and returns everything said so far.
    pub fn heard(&mut self) -> String {
        while let Ok(line) = self.lines.get_mut().expect("no panic").try_recv() {
            self.said.push(line);
        }
        self.said.join("\n")
    }

    /// Runs a command against this node.
    pub fn command(&self, args: &[&str]) -> Output {
        Command::new(bin_dir().join("thenodes"))
            .args(["--config", "config.toml"])
            .args(args)
            .current_dir(self.dir.path())
            .output()
            .expect("the command runs")
    }

    /// Runs a command and reads its JSON; errors come as the object on standard error.
    #[track_caller]
    pub fn json(&self, args: &[&str]) -> Value {
        let output = self.command(&[args, &["--json"]].concat());
        let text = if output.status.success() { output.stdout } else { output.stderr };
        serde_json::from_slice(&text)
            .unwrap_or_else(|e| panic!("{args:?}: {e}: {}", String::from_utf8_lossy(&text)))
    }

    /// What a plugin answers at its prompt: `Ok(text)`, or `Err(code)`.
    #[track_caller]
    pub fn prompt(&self, prefix: &str, line: &str) -> Result<String, String> {
        let value = self.json(&["plugin", "prompt", prefix, line]);
        match value["error"]["code"].as_str() {
            Some(code) => Err(format!("{code}: {}", value["error"]["message"].as_str().unwrap_or_default())),
            None => Ok(value["output"].as_str().unwrap_or("(unhandled)").to_owned()),
        }
    }

    /// Status of one plugin.
    #[track_caller]
    pub fn status(&self, name: &str) -> Value {
        self.json(&["plugin", "status", name])["plugin"].clone()
    }

    /// Log lines of one plugin, as `level source: text`.
    #[track_caller]
    pub fn logs(&self, name: &str) -> Vec<String> {
        let value = self.json(&["plugin", "logs", name, "-n", "256"]);
        let line = |line: &Value| {
            let word = |key: &str| line[key].as_str().unwrap_or_default().to_owned();
            format!("{} {}: {}", word("level"), word("source"), word("text"))
        };
        value["lines"].as_array().map(|lines| lines.iter().map(line).collect()).unwrap_or_default()
    }

    /// The value of one series of the metrics, without the prefix that all have; `None` if it has no sample yet.
    pub fn metric(&self, series: &str) -> Option<f64> {
        let page = String::from_utf8_lossy(&self.command(&["metrics"]).stdout).into_owned();
        sample(&page, &format!("thenodes_{series}"))
    }

    /// Resident memory of the node, bytes.
    pub fn memory(&self) -> u64 {
        self.status_of("VmRSS:")
    }

    /// The same without pages of its files, such as code that ran for the first time.
    pub fn own_memory(&self) -> u64 {
        self.status_of("RssAnon:")
    }

    fn status_of(&self, key: &str) -> u64 {
        let text = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap_or_default();
        let line = text.lines().find(|line| line.starts_with(key)).unwrap_or("x 0 kB");
        line.split_whitespace().nth(1).and_then(|n| n.parse::<u64>().ok()).unwrap_or(0) * 1024
    }

    /// Pids below the node: wardens, stubs, runners.
    pub fn descendants(&self) -> Vec<u32> {
        descendants(self.pid())
    }

    /// Runners of the node that wait for a plugin: no child of theirs exists yet, and no plugin's name is theirs.
    pub fn spares(&self) -> Vec<u32> {
        let waits = |pid: &u32| {
            let of = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
            of("cmdline") == "thenodes-runner\0"
                && of("comm") == "thenodes-runner\n"
                && descendants(*pid).is_empty()
        };
        self.descendants().into_iter().filter(waits).collect()
    }

    /// Writes a line to the node's standard input.
    pub fn type_line(&mut self, line: &str) {
        let stdin = self.child.stdin.as_mut().expect("piped");
        writeln!(stdin, "{line}").and_then(|()| stdin.flush()).expect("the node reads");
    }

    /// Sends a signal to the node.
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid() as i32), signal).expect("the node lives");
    }

    /// Waits for the node's end.
    #[track_caller]
    pub fn wait(&mut self) -> ExitStatus {
        drop(self.child.stdin.take());
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self
                .lines
                .get_mut()
                .expect("no panic")
                .recv_timeout(deadline.saturating_duration_since(Instant::now()))
            {
                Ok(line) => self.said.push(line),
                Err(RecvTimeoutError::Disconnected) => return self.child.wait().expect("a child"),
                Err(RecvTimeoutError::Timeout) => {
                    panic!("the node did not end; it said:\n{}", self.said.join("\n"))
                }
            }
        }
    }
}

impl TestNode {
    /// Removes this node's control groups; true if none is left.
    fn sweep(&self) -> bool {
        let left = leaves(self.pid());
        left.iter().filter(|dir| fs::remove_dir(dir).is_err()).count() == 0
    }
}

impl Drop for TestNode {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        // A killed node leaves empty control groups to the next one; after the last test there is none.
        let begun = Instant::now();
        while !self.sweep() && begun.elapsed() < Duration::from_secs(1) {
            std::thread::park_timeout(Duration::from_millis(5));
        }
    }
}

/// Directories of control groups that the node with this pid made, wherever they are.
pub fn leaves(pid: u32) -> Vec<PathBuf> {
    fn walk(dir: &Path, depth: usize, wanted: &str, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with("thenodes-") && name.contains(wanted) {
                found.push(entry.path());
            } else if depth > 0 && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                walk(&entry.path(), depth - 1, wanted, found);
            }
        }
    }
    let mut found = Vec::new();
    walk(Path::new("/sys/fs/cgroup"), 6, &format!("-{pid}-"), &mut found);
    found
}

/// Pids below a process.
pub fn descendants(root: u32) -> Vec<u32> {
    let mut parents = Vec::new();
    for entry in fs::read_dir("/proc").expect("a /proc").flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        // The name in parentheses may hold anything; the parent's pid is the second word after its end.
        let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        let after = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
        if let Some(parent) = after.split_whitespace().nth(1).and_then(|p| p.parse::<u32>().ok()) {
            parents.push((pid, parent));
        }
    }
    let mut found = vec![root];
    let mut at = 0;
    while at < found.len() {
        let parent = found[at];
        found.extend(parents.iter().filter(|(_, of)| *of == parent).map(|(pid, _)| *pid));
        at += 1;
    }
    found.remove(0);
    found
}

/// Waits until none of these processes exists (or only as an unreaped body); false after the patience is over.
pub fn all_gone(pids: &[u32], patience: Duration) -> bool {
    let deadline = Instant::now() + patience;
    loop {
        let alive = |pid: &u32| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            let state =
                stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().next().map(str::to_owned));
            state.is_some_and(|state| state != "Z" && state != "X")
        };
        if !pids.iter().any(alive) {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::park_timeout(Duration::from_millis(5)); // processes of others cannot be waited for
    }
}
