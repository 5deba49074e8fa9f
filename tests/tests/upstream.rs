//! A real upstream node, thenodes 0.4.0 from crates.io, driven by `tests/upstream-peer`: it dials us and we dial it, in
//! plaintext and with mutual TLS, and TEXT and EXTENSION pass both ways.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{channel, Receiver};
use thenodes_tests::{bin_dir, Spec, TestNode, PATIENCE};

struct Upstream {
    child: Child,
    lines: Receiver<String>,
    dir: tempfile::TempDir,
}

impl Drop for Upstream {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("0.0.0.0:0").expect("a port").local_addr().expect("an address").port()
}

/// Lays out a directory for an upstream node.
fn lay_out(port: u16, bootstrap: Option<u16>, tls: bool) -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a directory");
    let bootstrap =
        bootstrap.map_or_else(String::new, |port| format!("bootstrap_nodes = [\"127.0.0.1:{port}\"]\n"));
    let mut text = format!(
        "port = {port}\n{bootstrap}[realm]\nname = \"Test\"\nversion = \"1.0\"\n[node]\nid = \"upstream\"\nstate_dir = \"data\"\n[logging]\njson_path = \"events.jsonl\"\ndisable_console = true\n[discovery]\nenabled = false\n"
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
    fn start(dir: tempfile::TempDir) -> Self {
        let mut child = Command::new(bin_dir().join("upstream-peer"))
            .args(["--config", "config.toml"])
            .current_dir(dir.path())
            .env("HOME", dir.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("the upstream peer starts; it is built by `cargo xtask test`");
        let stdout = child.stdout.take().expect("piped");
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            BufReader::new(stdout).lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
        });
        let mut upstream = Self { child, lines, dir };
        upstream.expect("\"ready\":true");
        upstream
    }

    #[track_caller]
    fn expect(&mut self, text: &str) -> String {
        let begun = std::time::Instant::now();
        let mut said = Vec::new();
        loop {
            match self.lines.recv_timeout(PATIENCE.saturating_sub(begun.elapsed())) {
                Ok(line) if line.starts_with("@@ ") && line.contains(text) => return line,
                Ok(line) => said.push(line),
                Err(_) => panic!("upstream did not say {text:?}; it said:\n{}", said.join("\n")),
            }
        }
    }

    fn say(&mut self, line: &str) {
        let stdin = self.child.stdin.as_mut().expect("piped");
        writeln!(stdin, "{line}").and_then(|()| stdin.flush()).expect("upstream reads");
    }
}

/// TEXT and EXTENSION, both ways. Our echo answers a TEXT with an EXTENSION; kvstore sends and takes `kvstore.put`.
fn converse(node: &mut TestNode, upstream: &mut Upstream) {
    node.expect("app_handshake_success");
    // The acceptor of the two may know the other a moment later than the dialer.
    let connected = |upstream: &mut Upstream| {
        upstream.say("peers");
        upstream.expect("\"peers\"").contains("ours")
    };
    let begun = std::time::Instant::now();
    while !connected(upstream) {
        assert!(begun.elapsed() < PATIENCE, "upstream never saw us");
    }
    upstream.say(r#"send ours {"from":"upstream","to":"ours","msg_type":{"TEXT":"hello from upstream"},"payload":null,"realm":null}"#);
    node.expect("action=message_text");
    let got = upstream.expect("echo");
    assert!(got.contains("hello from upstream") && got.contains("EXTENSION"), "{got}");
    upstream.say(r#"broadcast {"from":"upstream","to":"*","msg_type":{"EXTENSION":{"kind":"kvstore.put"}},"payload":{"type":"Json","value":{"key":"theirs","value":"1"}},"realm":null}"#);
    node.expect("theirs put by upstream");
    assert_eq!(node.prompt("kv", "get theirs").as_deref(), Ok("1"));
    assert_eq!(node.prompt("kv", "put ours 2").as_deref(), Ok("ok (1 peers)"));
    let got = upstream.expect("kvstore.put");
    assert!(got.contains(r#"\"key\":\"ours\""#), "{got}");
    // And TEXT from us, as a plugin sends it.
    assert_eq!(node.prompt("hostile", "say hello from ours").as_deref(), Ok("1"));
    let got = upstream.expect("hello from ours");
    assert!(got.contains("TEXT"), "{got}");
}

fn ours(spec: Spec) -> Spec {
    spec.with("kvstore").with("echo").with("hostile")
}

#[test]
fn a_real_upstream_node_dials_us_and_talks_in_plaintext() {
    let mut node = ours(Spec::new("ours")).start();
    let mut upstream = Upstream::start(lay_out(free_port(), Some(node.port), false));
    converse(&mut node, &mut upstream);
}

#[test]
fn we_dial_a_real_upstream_node_and_talk_in_plaintext() {
    let port = free_port();
    let mut upstream = Upstream::start(lay_out(port, None, false));
    let mut node = ours(Spec::new("ours")).top(&format!("bootstrap_nodes = [\"127.0.0.1:{port}\"]")).start();
    converse(&mut node, &mut upstream);
}

#[test]
fn a_real_upstream_node_and_we_trust_each_other_by_key() {
    let mut node = ours(Spec::encrypted("ours")).start();
    let dir = lay_out(free_port(), Some(node.port), true);
    let copy = |from: &Path, to: &Path| fs::copy(from, to).expect("copied");
    copy(&node.dir.path().join("pki/own/cert.pem"), &dir.path().join("pki/trusted/ours.pem"));
    fs::create_dir_all(node.dir.path().join("pki/trusted/certs")).expect("a directory");
    copy(&dir.path().join("pki/own/cert.pem"), &node.dir.path().join("pki/trusted/certs/upstream.pem"));
    let mut upstream = Upstream::start(dir);
    node.expect("TRUST role=inbound decision=Accept reason=present-in-allowlist");
    converse(&mut node, &mut upstream);
}

#[test]
fn an_upstream_node_of_another_realm_stays_out_whoever_dials() {
    let port = free_port();
    let dir = lay_out(port, None, false);
    let path = dir.path().join("config.toml");
    let text = fs::read_to_string(&path).expect("reads").replace("name = \"Test\"", "name = \"Elsewhere\"");
    fs::write(&path, text).expect("written");
    let upstream = Upstream::start(dir);
    let mut node = Spec::new("ours").top(&format!("bootstrap_nodes = [\"127.0.0.1:{port}\"]")).start();
    // Upstream's own dialer does not check this; ours does.
    let refused = node.expect("action=realm_mismatch");
    assert!(refused.contains("elsewhere") && refused.contains("outbound"), "{refused}");
    assert!(node.json(&["peers"])["peers"].as_array().is_some_and(Vec::is_empty));
    assert!(upstream.dir.path().exists());
}
