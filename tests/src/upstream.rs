//! Real nodes of upstream's, 0.2.0 and 0.4.0 from crates.io, driven through pipes by `tests/upstream-peer` and
//! `tests/upstream-peer-02`.

use crate::{bin_dir, PATIENCE};
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{channel, Receiver, RecvTimeoutError, Sender};
use std::time::Duration;

/// A running node of upstream's.
pub struct Upstream {
    child: Child,
    lines: Receiver<String>,
    /// What it said before it was ready; read first.
    early: std::collections::VecDeque<String>,
    /// Its directory.
    pub dir: tempfile::TempDir,
}

impl Drop for Upstream {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Reads lines in a thread of its own, so that who waits for one can stop waiting.
fn pass_on(pipe: impl Read + Send + 'static, to: Sender<String>) {
    std::thread::spawn(move || {
        BufReader::new(pipe).lines().map_while(Result::ok).try_for_each(|line| to.send(line))
    });
}

/// Upstream's own program, 0.4.0, as it is installed.
pub struct Stock {
    child: Child,
    lines: Receiver<String>,
    said: String,
}

impl Drop for Stock {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Stock {
    /// Starts it in this directory with this configuration, which may be missing.
    pub fn start(dir: &Path, config: &str) -> Self {
        let mut command = Command::new(bin_dir().join("upstream-stock"));
        command.args(["--config", config]).current_dir(dir).env("HOME", dir);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("it is built by `cargo xtask test`");
        let (sender, lines) = channel();
        pass_on(child.stdout.take().expect("piped"), sender.clone());
        pass_on(child.stderr.take().expect("piped"), sender);
        Self { child, lines, said: String::new() }
    }

    /// Waits until it has said all of this, and has `poke` done whenever it says nothing for 100 ms.
    #[track_caller]
    pub fn expect(&mut self, texts: &[&str], mut poke: impl FnMut()) {
        let begun = std::time::Instant::now();
        while !texts.iter().all(|text| self.said.contains(text)) {
            assert!(begun.elapsed() < PATIENCE, "upstream did not say {texts:?}; it said:\n{}", self.said);
            match self.lines.recv_timeout(Duration::from_millis(100)) {
                Ok(line) => self.said += &(line + "\n"),
                Err(RecvTimeoutError::Timeout) => poke(),
                Err(RecvTimeoutError::Disconnected) => {
                    panic!("upstream ended without {texts:?}; it said:\n{}", self.said)
                }
            }
        }
    }

    /// True if it has not ended.
    pub fn lives(&mut self) -> bool {
        self.child.try_wait().is_ok_and(|ended| ended.is_none())
    }
}

/// A port that is free now.
pub fn free_port() -> u16 {
    std::net::TcpListener::bind("0.0.0.0:0").expect("a port").local_addr().expect("an address").port()
}

/// Lays out a directory for an upstream node with this id. `more` is more configuration.
pub fn lay_out(id: &str, port: u16, bootstrap: &[u16], tls: bool, more: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a directory");
    let nodes: Vec<String> = bootstrap.iter().map(|port| format!("\"127.0.0.1:{port}\"")).collect();
    let bootstrap = match nodes.is_empty() {
        true => String::new(),
        false => format!("bootstrap_nodes = [{}]\n", nodes.join(", ")),
    };
    let mut text = format!(
        "port = {port}\n{bootstrap}[realm]\nname = \"Test\"\nversion = \"1.0\"\n[node]\nid = \"{id}\"\nstate_dir = \"data\"\n[logging]\njson_path = \"events.jsonl\"\ndisable_console = true\n[discovery]\nenabled = false\n{more}"
    );
    if tls {
        text += "[encryption]\nenabled = true\nmtls = true\nbackend = \"tls\"\n[encryption.paths]\nown_certificate = \"pki/own/cert.pem\"\nown_private_key = \"pki/own/key.pem\"\ntrusted_cert_dir = \"pki/trusted\"\n[encryption.trust_policy]\nmode = \"allowlist\"\naccept_self_signed = true\n";
        fs::create_dir_all(dir.path().join("pki/trusted")).expect("a directory");
        let made = Command::new(bin_dir().join("thenodes"))
            .args([
                "cert",
                "new",
                "--cn",
                "upstream",
                "--realm",
                "Test",
                "--out-cert",
                "pki/own/cert.pem",
                "--out-key",
                "pki/own/key.pem",
            ])
            .current_dir(dir.path())
            .status();
        assert!(made.is_ok_and(|status| status.success()), "a certificate for upstream");
    }
    fs::write(dir.path().join("config.toml"), text).expect("written");
    // Our own command reads ./config.toml too; upstream's keys are all ours.
    dir
}

impl Upstream {
    /// Starts one of 0.4.0.
    pub fn start(dir: tempfile::TempDir) -> Self {
        Self::start_release("upstream-peer", dir, None)
    }

    /// Starts one of 0.4.0 whose runtime has so many threads, and not as many as there are processors.
    pub fn start_with_threads(dir: tempfile::TempDir, threads: usize) -> Self {
        Self::start_release("upstream-peer", dir, Some(threads))
    }

    /// Starts one of 0.2.0.
    pub fn start_02(dir: tempfile::TempDir) -> Self {
        Self::start_release("upstream-peer-02", dir, None)
    }

    fn start_release(program: &str, dir: tempfile::TempDir, threads: Option<usize>) -> Self {
        let mut command = Command::new(bin_dir().join(program));
        command.args(["--config", "config.toml"]).current_dir(dir.path()).env("HOME", dir.path());
        if let Some(threads) = threads {
            command.env("TOKIO_WORKER_THREADS", threads.to_string());
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().expect("the upstream peer starts; it is built by `cargo xtask test`");
        let stdout = child.stdout.take().expect("piped");
        let (sender, lines) = channel();
        pass_on(stdout, sender);
        let mut upstream = Self { child, lines, early: Default::default(), dir };
        let begun = std::time::Instant::now();
        let mut early = std::collections::VecDeque::new();
        loop {
            match upstream.lines.recv_timeout(PATIENCE.saturating_sub(begun.elapsed())) {
                Ok(line) if line.starts_with("@@ ") && line.contains("\"ready\":true") => break,
                Ok(line) => early.push_back(line),
                Err(_) => panic!("upstream did not start; it said:\n{early:?}"),
            }
        }
        upstream.early = early;
        upstream
    }

    /// Waits for a line of the driver with this text.
    #[track_caller]
    pub fn expect(&mut self, text: &str) -> String {
        let begun = std::time::Instant::now();
        let mut said = Vec::new();
        loop {
            let next = match self.early.pop_front() {
                Some(line) => Ok(line),
                None => self.lines.recv_timeout(PATIENCE.saturating_sub(begun.elapsed())),
            };
            match next {
                Ok(line) if line.starts_with("@@ ") && line.contains(text) => return line,
                Ok(line) => said.push(line),
                Err(_) => panic!("upstream did not say {text:?}; it said:\n{}", said.join("\n")),
            }
        }
    }

    /// Tells it to end, as a service manager does.
    pub fn terminate(&self) {
        let pid = nix::unistd::Pid::from_raw(self.child.id() as i32);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).expect("it lives");
    }

    /// Waits until it has ended by itself.
    #[track_caller]
    pub fn ended(&mut self) -> ExitStatus {
        let begun = std::time::Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("a child") {
                return status;
            }
            assert!(begun.elapsed() < PATIENCE, "upstream goes on");
            std::thread::park_timeout(std::time::Duration::from_millis(20));
        }
    }

    /// Waits until its log has this text, and returns the log.
    #[track_caller]
    pub fn logged(&self, text: &str) -> String {
        let begun = std::time::Instant::now();
        loop {
            let log = fs::read_to_string(self.dir.path().join("events.jsonl")).unwrap_or_default();
            if log.contains(text) {
                return log;
            }
            assert!(begun.elapsed() < PATIENCE, "upstream never logged {text:?}:\n{log}");
            std::thread::park_timeout(std::time::Duration::from_millis(20));
        }
    }

    /// Gives it this command again and again, in a thread of its own: one that freezes stops reading. It has no ears for others then.
    pub fn say_on(&mut self, line: String, times: usize) {
        let mut stdin = self.child.stdin.take().expect("piped");
        std::thread::spawn(move || (0..times).try_for_each(|_| writeln!(stdin, "{line}")));
    }

    /// Gives it a command.
    pub fn say(&mut self, line: &str) {
        let stdin = self.child.stdin.as_mut().expect("piped");
        writeln!(stdin, "{line}").and_then(|()| stdin.flush()).expect("upstream reads");
    }

    /// Waits until it knows this peer.
    #[track_caller]
    pub fn knows(&mut self, id: &str) {
        let begun = std::time::Instant::now();
        loop {
            self.say("peers");
            if self.expect("\"peers\"").contains(&format!("\"{id}\"")) {
                return;
            }
            assert!(begun.elapsed() < PATIENCE, "upstream never saw {id}");
            std::thread::park_timeout(std::time::Duration::from_millis(20));
        }
    }
}
