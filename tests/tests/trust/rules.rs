//! What `[encryption]` says is read again while the node runs: by command and by signal, for whoever comes and for who is connected.

use super::{dialer, end, fingerprint, judge, laid_out, peers};
use serde_json::{json, Value};
use std::fs;
use thenodes_tests::TestNode;

/// Writes another text in place of this one.
fn rewrite(node: &TestNode, old: &str, new: &str) {
    let path = node.dir.path().join("config.toml");
    let text = fs::read_to_string(&path).expect("a configuration");
    assert!(text.contains(old), "{text}");
    fs::write(&path, text.replacen(old, new, 1)).expect("written");
}

fn changed(node: &TestNode) -> Value {
    let answer = node.json(&["trust", "reload"]);
    assert_eq!(answer["error"], Value::Null, "{answer}");
    answer["changed"].clone()
}

const OPEN: &str = "mode = \"open\"";
const ALLOWLIST: &str = "mode = \"allowlist\"";

#[test]
fn another_mode_holds_from_a_reload_on_for_who_is_connected_and_for_who_comes() {
    let mut node = judge("changing", "open").start();
    let (of_friend, dir, key) = laid_out("friend", None, &node);
    assert!(node.command(&["trust", "add", &key]).status.success());
    let friend = of_friend.start_in(dir);
    node.seen("node_id=friend direction=inbound");
    let _stranger = dialer("stranger", &node).start();
    node.seen("node_id=stranger direction=inbound");
    // The control: what is written holds only once it is asked for.
    assert_eq!(changed(&node), json!([]));
    rewrite(&node, OPEN, ALLOWLIST);
    assert_eq!(peers(&node), 2);
    assert_eq!(changed(&node), json!(["trust_policy.mode"]));
    let told = node.seen("action=trust_rules_changed");
    assert!(told.contains("trust_policy.mode") && told.contains("policy_checksum="), "{told}");
    let ended = node.seen("action=peer_disconnected");
    assert!(
        ended.contains("node_id=stranger") && ended.contains("not-in-allowlist (judged again)"),
        "{ended}"
    );
    // It comes again and again, and is kept out; the friend never went.
    let refused = node.seen("action=secure_channel_refused");
    assert!(refused.contains("not-in-allowlist"), "{refused}");
    assert!(!node.heard().contains("node_id=friend reason="), "{}", node.heard());
    assert_eq!(peers(&node), 1);
    // Its id, which nobody wrote down while everybody was welcome, is its own from now on.
    let begun = std::time::Instant::now();
    while node.json(&["trust", "bindings"])["bindings"][0]["fingerprint"] != key.as_str() {
        assert!(begun.elapsed() < thenodes_tests::PATIENCE, "it is not written down");
        std::thread::park_timeout(std::time::Duration::from_millis(20));
    }
    let dir = end(friend);
    node.seen("node_id=friend reason=");
    let (of_evil, evil_dir, evil_key) = laid_out("friend", None, &node);
    assert!(node.command(&["trust", "add", &evil_key]).status.success());
    let evil = of_evil.start_in(evil_dir);
    node.seen("action=peer_reject_foreign_id");
    drop(evil);
    let _friend = of_friend.start_in(dir);
    node.expect("node_id=friend direction=");
    // And back.
    rewrite(&node, ALLOWLIST, OPEN);
    assert_eq!(changed(&node), json!(["trust_policy.mode"]));
    node.expect("node_id=stranger direction=");
}

#[test]
fn tofu_begins_with_those_who_are_connected() {
    let mut node = judge("changing", "open").start();
    let (of_b, dir, key) = laid_out("node-b", None, &node);
    let b = of_b.start_in(dir);
    node.seen("node_id=node-b direction=inbound");
    rewrite(&node, OPEN, "mode = \"tofu\"");
    assert_eq!(changed(&node), json!(["trust_policy.mode"]));
    assert_eq!(
        node.json(&["trust", "bindings"])["bindings"],
        json!([{ "node_id": "node-b", "fingerprint": key }])
    );
    assert_eq!(peers(&node), 1, "it was not sent away for that");
    let dir = end(b);
    node.seen("action=peer_disconnected");
    let impostor = dialer("node-b", &node).start();
    node.seen("reason=tofu-mismatch");
    drop(impostor);
    let _b = of_b.start_in(dir);
    node.seen("reason=seen-before");
}

#[test]
fn pins_dates_and_authorities_are_read_again() {
    let mut node = judge("changing", "open").start();
    let b = dialer("node-b", &node).start();
    node.seen("node_id=node-b direction=inbound");
    let other = "0".repeat(64);
    for (key, rule, reason) in [
        ("trust_policy.pin_fingerprints", format!("pin_fingerprints = [\"{other}\"]"), "fp-pin-mismatch"),
        ("trust_policy.pin_subjects", "pin_subjects = [\"~Nobody\"]".into(), "subject-pin-mismatch"),
        // Its certificates were not kept when nobody asked for a path: it goes, and would be asked when it comes again.
        ("trust_policy.enforce_ca_chain", "enforce_ca_chain = true".into(), "chain-invalid"),
    ] {
        rewrite(&node, OPEN, &format!("{OPEN}\n{rule}"));
        assert_eq!(changed(&node), json!([key]));
        let ended = node.expect("action=peer_disconnected");
        assert!(ended.contains(&format!("{reason} (judged again)")), "{ended}");
        rewrite(&node, &format!("{OPEN}\n{rule}"), OPEN);
        assert_eq!(changed(&node), json!([key]));
        node.expect("node_id=node-b direction=");
    }
    // The control: a pin that it has.
    rewrite(&node, OPEN, &format!("{OPEN}\npin_fingerprints = [\"{}\"]", fingerprint(&b)));
    assert_eq!(changed(&node), json!(["trust_policy.pin_fingerprints"]));
    // Only a look at everybody anew could send it away: the next one that holds is behind it.
    rewrite(&node, OPEN, ALLOWLIST);
    assert_eq!(changed(&node), json!(["trust_policy.mode"]));
    let ended = node.expect("action=peer_disconnected");
    assert!(ended.contains("not-in-allowlist (judged again)"), "{ended}");
}

#[test]
fn the_own_certificate_is_read_again() {
    let node = judge("changing", "open").start();
    let old = fingerprint(&node);
    let own = node.dir.path().join("pki/own");
    let (cert, key) = (own.join("cert.pem"), own.join("key.pem"));
    fs::rename(&cert, own.join("old.pem")).expect("moved");
    // Half of a pair: what holds goes on to hold.
    let answer = node.json(&["trust", "reload"]);
    assert_eq!(answer["error"]["code"], "CONFIG_ERROR", "{answer}");
    let mut first = dialer("first", &node).start();
    first.seen(&format!("fp=Some(\"{old}\")"));
    fs::remove_file(&key).expect("removed");
    let made = node.json(&["cert", "new"]);
    let new = made["fingerprint"].as_str().expect("made").to_owned();
    assert_ne!(new, old);
    assert_eq!(changed(&node), json!(["own certificate"]));
    let mut second = dialer("second", &node).start();
    let shown = second.seen("role=outbound");
    assert!(!shown.contains(&old), "{shown}");
    assert!(shown.contains(&new), "{shown}");
}

#[test]
fn what_is_wrong_changes_nothing_and_says_where() {
    let mut node = judge("changing", "open").start();
    let _b = dialer("node-b", &node).start();
    node.seen("node_id=node-b direction=inbound");
    rewrite(&node, OPEN, "mode = \"alowlist\"");
    let output = node.command(&["trust", "reload"]);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(78), "{text}");
    assert!(text.contains("config.toml:") && text.contains("no such trust mode"), "{text}");
    node.signal(nix::sys::signal::Signal::SIGHUP);
    let told = node.seen("action=trust_rules_kept");
    assert!(told.contains("config.toml:") && told.contains("the rules stay as they are"), "{told}");
    // Encryption is not taken away from under its connections.
    rewrite(&node, "mode = \"alowlist\"", OPEN);
    let without = "[encryption]\nenabled = false\n";
    rewrite(&node, "[encryption.trust_policy]", &format!("{without}[encryption.trust_policy]"));
    let answer = node.json(&["trust", "reload"]);
    assert_eq!(answer["error"]["code"], "CONFLICT", "{answer}");
    assert_eq!(peers(&node), 1);
    let _late = dialer("late", &node).start();
    node.seen("node_id=late direction=inbound");
}

#[test]
fn a_daemon_reads_its_rules_again_when_it_is_told_to_by_signal() {
    let mut node = judge("changing", "open").start();
    let _b = dialer("node-b", &node).start();
    node.seen("node_id=node-b direction=inbound");
    rewrite(&node, OPEN, ALLOWLIST);
    node.signal(nix::sys::signal::Signal::SIGHUP);
    let told = node.seen("action=trust_rules_changed");
    assert!(told.contains("by SIGHUP"), "{told}");
    node.seen("not-in-allowlist (judged again)");
}
