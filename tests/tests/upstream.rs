//! A real upstream node, thenodes 0.4.0 from crates.io, driven by `tests/upstream-peer`: it dials us and we dial it, in
//! plaintext and with mutual TLS, and TEXT and EXTENSION pass both ways.

use std::fs;
use std::path::Path;
use thenodes_tests::upstream::{free_port, lay_out, Upstream};
use thenodes_tests::{Spec, TestNode};

/// TEXT and EXTENSION, both ways. Our echo answers a TEXT with an EXTENSION; kvstore sends and takes `kvstore.put`.
fn converse(node: &mut TestNode, upstream: &mut Upstream) {
    node.expect("app_handshake_success");
    // The acceptor of the two may know the other a moment later than the dialer.
    upstream.knows("ours");
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
    let mut upstream = Upstream::start(lay_out("upstream", free_port(), &[node.port], false, ""));
    converse(&mut node, &mut upstream);
}

#[test]
fn we_dial_a_real_upstream_node_and_talk_in_plaintext() {
    let port = free_port();
    let mut upstream = Upstream::start(lay_out("upstream", port, &[], false, ""));
    let mut node = ours(Spec::new("ours")).top(&format!("bootstrap_nodes = [\"127.0.0.1:{port}\"]")).start();
    converse(&mut node, &mut upstream);
}

#[test]
fn a_real_upstream_node_and_we_trust_each_other_by_key() {
    let mut node = ours(Spec::encrypted("ours")).start();
    let dir = lay_out("upstream", free_port(), &[node.port], true, "");
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
    let dir = lay_out("upstream", port, &[], false, "");
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
