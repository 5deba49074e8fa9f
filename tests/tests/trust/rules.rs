//! What `[encryption]` says is read again while the node runs: by command and by signal, for whoever comes and for who is connected.

use super::{dialer, end, fingerprint, judge, laid_out, peers, Authority};
use nix::sys::signal::Signal;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{json, Value};
use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::time::Instant;
use tempfile::TempDir;
use thenodes_tests::{tls, Spec, TestNode, PATIENCE};

/// Writes another text in place of this one.
fn rewrite(node: &TestNode, old: &str, new: &str) {
    let path = node.dir.path().join("config.toml");
    let text = fs::read_to_string(&path).expect("a configuration");
    assert!(text.contains(old), "{text}");
    fs::write(&path, text.replacen(old, new, 1)).expect("written");
}

fn reloaded(node: &TestNode) -> Value {
    let answer = node.json(&["trust", "reload"]);
    assert_eq!(answer["error"], Value::Null, "{answer}");
    answer
}

/// Which keys say something else since the last time.
fn changed(node: &TestNode) -> Vec<String> {
    let answer = reloaded(node);
    let all = answer["changed"].as_array().expect("a list").iter();
    all.map(|change| change["key"].as_str().expect("a key").to_owned()).collect()
}

/// The same with another mode.
fn mode(node: &TestNode, old: &str, new: &str) {
    rewrite(node, old, new);
    assert_eq!(changed(node), ["trust_policy.mode"]);
}

/// Waits until exactly these ids belong to these keys.
#[track_caller]
fn remembered(node: &TestNode, pairs: &[(&str, &str)]) {
    let wanted: Vec<Value> =
        pairs.iter().map(|(id, key)| json!({ "node_id": id, "fingerprint": key })).collect();
    let begun = Instant::now();
    loop {
        let are = node.json(&["trust", "bindings"])["bindings"].clone();
        if are == json!(wanted) {
            return;
        }
        assert!(begun.elapsed() < PATIENCE, "{are}, not {wanted:?}");
        std::thread::park_timeout(std::time::Duration::from_millis(20));
    }
}

const OPEN: &str = "mode = \"open\"";
const ALLOWLIST: &str = "mode = \"allowlist\"";
const TOFU: &str = "mode = \"tofu\"";

/// A peer whose certificate names nobody, connected; with its directory's key.
fn connected(id: &str, node: &mut TestNode) -> (Spec, TestNode, String) {
    let (spec, dir, key) = laid_out(id, None, node);
    let peer = spec.start_in(dir);
    node.expect(&format!("node_id={id} direction="));
    (spec, peer, key)
}

#[test]
fn another_mode_holds_from_a_reload_on_for_who_is_connected_and_for_who_comes() {
    let mut node = judge("changing", "open").start();
    let (of_friend, friend, key) = connected("friend", &mut node);
    let (_, _stranger, stranger_key) = connected("a-stranger", &mut node);
    assert!(node.command(&["trust", "add", &key]).status.success());
    // The control: what is written holds only once it is asked for.
    assert_eq!(changed(&node), [""; 0]);
    rewrite(&node, OPEN, ALLOWLIST);
    assert_eq!(peers(&node), 2);
    let answer = reloaded(&node);
    assert_eq!(answer["changed"], json!([{ "key": "trust_policy.mode", "from": "open", "to": "allowlist" }]));
    assert_eq!(answer["peers_judged_again"], 2);
    let told = node.seen("action=trust_rules_changed");
    assert!(told.contains("trust_policy.mode") && told.contains("policy_checksum="), "{told}");
    let ended = node.seen("action=peer_disconnected");
    assert!(
        ended.contains("node_id=a-stranger") && ended.contains("not-in-allowlist (judged again)"),
        "{ended}"
    );
    // It comes again and again, and is kept out.
    let refused = node.seen("action=secure_channel_refused");
    assert!(refused.contains("not-in-allowlist"), "{refused}");
    // The friend's id, which nobody wrote down while everybody was welcome, is its own from now on; and it never went.
    remembered(&node, &[("friend", &key)]);
    assert!(!node.heard().contains("node_id=friend reason="), "{}", node.heard());
    assert_eq!(peers(&node), 1);
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
    mode(&node, ALLOWLIST, OPEN);
    node.expect("node_id=a-stranger direction=");
    assert_ne!(stranger_key, key);
}

#[test]
fn tofu_begins_with_those_who_are_connected_and_goes_on_elsewhere_with_them() {
    let mut node = judge("changing", "open").start();
    let (of_b, b, key) = connected("node-b", &mut node);
    mode(&node, OPEN, TOFU);
    remembered(&node, &[("node-b", &key)]);
    // In another place, and in another mode: an id goes along with its peer.
    rewrite(&node, TOFU, &format!("{TOFU}\n[encryption.trust_policy.paths]\nobserved_dir = \"elsewhere\""));
    assert_eq!(changed(&node), ["trust_policy.paths.observed_dir"]);
    remembered(&node, &[("node-b", &key)]);
    assert!(!node.heard().contains("(judged again)"), "it was not sent away for that: {}", node.heard());
    let dir = end(b);
    node.seen("action=peer_disconnected");
    let impostor = dialer("node-b", &node).start();
    node.seen("reason=tofu-mismatch");
    drop(impostor);
    let _b = of_b.start_in(dir);
    node.seen("reason=seen-before");
    node.expect("node_id=node-b direction=");
    assert!(node.command(&["trust", "add", &key]).status.success());
    fs::remove_dir_all(node.dir.path().join("elsewhere/bindings")).expect("removed");
    mode(&node, TOFU, "mode = \"observe\"");
    remembered(&node, &[("node-b", &key)]);
}

#[test]
fn who_is_sent_away_by_new_rules_has_no_id_by_them() {
    let mut node = judge("changing", "open").start();
    let (_, squatter, _) = connected("node-b", &mut node);
    let (_, _c, key) = connected("node-c", &mut node);
    rewrite(&node, OPEN, &format!("{TOFU}\npin_fingerprints = [\"{key}\"]"));
    assert_eq!(changed(&node), ["trust_policy.mode", "trust_policy.pin_fingerprints"]);
    let ended = node.seen("action=peer_disconnected");
    assert!(ended.contains("node_id=node-b") && ended.contains("fp-pin-mismatch (judged again)"), "{ended}");
    remembered(&node, &[("node-c", &key)]);
    drop(squatter);
    // The one whose id it is was away.
    let (of_b, dir, real) = laid_out("node-b", None, &node);
    rewrite(&node, &format!("[\"{key}\"]"), &format!("[\"{key}\", \"{real}\"]"));
    assert_eq!(changed(&node), ["trust_policy.pin_fingerprints"]);
    let _b = of_b.start_in(dir);
    node.seen("reason=new-tofu");
    remembered(&node, &[("node-b", &real), ("node-c", &key)]);
}

/// Certificate and key of a node that was laid out.
fn identity(dir: &TempDir) -> tls::Identity {
    let pem = |name: &str| fs::read(dir.path().join("pki/own").join(name)).expect("read");
    let chain = CertificateDer::pem_slice_iter(&pem("cert.pem")).map(|one| one.expect("PEM")).collect();
    (chain, PrivateKeyDer::from_pem_slice(&pem("key.pem")).expect("a key"))
}

#[test]
fn who_was_judged_by_the_old_rules_is_not_let_in_by_them() {
    let mut node = judge("changing", "open").start();
    let (_, dir, _) = laid_out("slow", None, &node);
    let hello = b"{\"from\":\"slow\",\"to\":\"x\",\"msg_type\":{\"HELLO\":{\"node_id\":\"slow\"}},\"realm\":{\"name\":\"Test\",\"version\":\"1.0\"}}\n";
    let greet = |node: &mut TestNode, meanwhile: &dyn Fn(&TestNode)| {
        let mut stream = tls::connect(node.port, Some(identity(&dir))).expect("a channel");
        meanwhile(node);
        stream.write_all(hello).expect("sent");
        stream
    };
    // The control: whoever says hello late is let in as long as the rules are the same.
    let stream = greet(&mut node, &|node| assert_eq!(changed(node), [""; 0]));
    node.expect("node_id=slow direction=inbound");
    drop(stream);
    node.expect("action=peer_disconnected");
    let mut stream = greet(&mut node, &|node| mode(node, OPEN, TOFU));
    let refused = node.expect("action=trust_rules_changed_meanwhile");
    assert!(refused.contains("it may come again"), "{refused}");
    let end = stream.read_to_end(&mut Vec::new()).map_err(|error| error.kind());
    assert!(!matches!(end, Err(ErrorKind::WouldBlock | ErrorKind::TimedOut)), "it is closed: {end:?}");
    remembered(&node, &[]);
    // Nor has it an id by them, where ids are remembered at once.
    let pin = format!("pin_fingerprints = [\"{}\"]", "0".repeat(64));
    let _stream = greet(&mut node, &|node| {
        rewrite(node, TOFU, &format!("{TOFU}\n{pin}"));
        assert_eq!(changed(node), ["trust_policy.pin_fingerprints"]);
    });
    node.expect("reason=trust-rules-changed");
    remembered(&node, &[]);
    rewrite(&node, &format!("{TOFU}\n{pin}"), TOFU);
    assert_eq!(changed(&node), ["trust_policy.pin_fingerprints"]);
    let _stream = greet(&mut node, &|_| {});
    node.expect("reason=new-tofu");
    node.expect("node_id=slow direction=inbound");
}

#[test]
fn pins_and_authorities_are_read_again() {
    let mut node = judge("changing", "open").start();
    let of_b = dialer("node-b", &node);
    let b = of_b.start_in(of_b.lay_out());
    node.seen("node_id=node-b direction=");
    let authority = Authority::new();
    authority.trusted_by(&node.dir);
    let other = "0".repeat(64);
    for (key, rule, reason) in [
        ("trust_policy.pin_fingerprints", format!("pin_fingerprints = [\"{other}\"]"), "fp-pin-mismatch"),
        ("trust_policy.pin_subjects", "pin_subjects = [\"~Nobody\"]".into(), "subject-pin-mismatch"),
        // Its certificates were not kept when nobody asked for a path: it goes, and is asked when it comes again.
        ("trust_policy.enforce_ca_chain", "enforce_ca_chain = true".into(), "chain-invalid"),
    ] {
        rewrite(&node, OPEN, &format!("{OPEN}\n{rule}"));
        assert_eq!(changed(&node), [key]);
        let ended = node.expect("action=peer_disconnected");
        assert!(ended.contains(&format!("{reason} (judged again)")), "{ended}");
        rewrite(&node, &format!("{OPEN}\n{rule}"), OPEN);
        assert_eq!(changed(&node), [key]);
        node.expect("node_id=node-b direction=");
    }
    // The controls: a pin that it has, and a path that it has.
    let pin = format!("pin_fingerprints = [\"{}\"]", fingerprint(&b));
    rewrite(&node, OPEN, &format!("{OPEN}\n{pin}"));
    assert_eq!(changed(&node), ["trust_policy.pin_fingerprints"]);
    let dir = end(b);
    node.expect("action=peer_disconnected");
    let b = of_b.start_in(dir);
    node.expect("node_id=node-b direction=");
    mode(&node, OPEN, ALLOWLIST);
    let ended = node.expect("action=peer_disconnected");
    assert!(ended.contains("not-in-allowlist (judged again)"), "{ended}");
    rewrite(&node, &format!("{ALLOWLIST}\n{pin}"), "mode = \"ca\"");
    assert_eq!(changed(&node), ["trust_policy.mode", "trust_policy.pin_fingerprints"]);
    drop(b);
    let dir = of_b.lay_out();
    authority.vouch(&dir, "node-b", 1);
    let _b = of_b.start_in(dir);
    node.expect("reason=ca-chain-valid");
    node.expect("node_id=node-b direction=");
}

#[test]
fn another_directory_of_trusted_keys_holds_and_nobody_in_it_was_promoted() {
    let mut node = judge("changing", "allowlist").start();
    let (of_friend, friend_dir, friend_key) = laid_out("friend", None, &node);
    let (of_other, other_dir, other_key) = laid_out("other", None, &node);
    for key in [&friend_key, &other_key] {
        assert!(node.command(&["trust", "add", key]).status.success());
    }
    let _friend = of_friend.start_in(friend_dir);
    node.seen("node_id=friend direction=");
    let _other = of_other.start_in(other_dir);
    node.seen("node_id=other direction=");
    let dir = node.dir.path().join("others");
    fs::create_dir(&dir).expect("a directory");
    fs::write(dir.join(format!("{friend_key}.spki")), "").expect("written");
    fs::write(dir.join(format!("{}.spki", "0".repeat(64))), "").expect("written");
    rewrite(
        &node,
        "[encryption.trust_policy]",
        "[encryption.paths]\ntrusted_cert_dir = \"others\"\n[encryption.trust_policy]",
    );
    assert_eq!(changed(&node), ["paths.trusted_cert_dir"]);
    let ended = node.seen("action=peer_disconnected");
    assert!(ended.contains("node_id=other") && ended.contains("not-in-allowlist (judged again)"), "{ended}");
    // A key that is put there now is one. What the look before it had to say was said.
    fs::write(dir.join(format!("{}.spki", "1".repeat(64))), "").expect("written");
    let promoted = node.seen_where(|line| line.contains(&"1".repeat(64)));
    assert!(!node.heard().contains(&"0".repeat(64)), "{promoted}: {}", node.heard());
    assert!(!node.heard().contains("node_id=friend reason="), "{}", node.heard());
}

#[test]
fn certificates_of_both_sides_can_be_asked_for_later() {
    let spec = Spec::encrypted("changing")
        .more("[encryption]\nmtls = false\n[encryption.trust_policy]\nmode = \"open\"");
    let mut node = spec.start();
    let open = Spec::encrypted("bare")
        .more("[encryption]\nmtls = false\n[encryption.trust_policy]\nmode = \"open\"")
        .top(&format!("bootstrap_nodes = [\"127.0.0.1:{}\"]", node.port));
    let _bare = open.start();
    node.seen("node_id=bare direction=inbound");
    rewrite(&node, "mtls = false", "mtls = true");
    assert_eq!(changed(&node), ["mtls"]);
    let ended = node.seen("action=peer_disconnected");
    assert!(ended.contains("client-certificate-missing (judged again)"), "{ended}");
}

#[test]
fn the_own_certificate_is_read_again() {
    let node = judge("changing", "open").start();
    let old = fingerprint(&node);
    let own = node.dir.path().join("pki/own");
    let (cert, key) = (own.join("cert.pem"), own.join("key.pem"));
    fs::rename(&cert, own.join("old.pem")).expect("moved");
    // Half of a pair: what holds goes on to hold. That is the node's own word.
    let output = node.command(&["trust", "reload"]);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(78), "{text}");
    assert!(text.contains("CONFIG_ERROR") && text.contains("pki/own/cert.pem"), "{text}");
    let mut first = dialer("first", &node).start();
    first.seen(&format!("fp=Some(\"{old}\")"));
    fs::remove_file(&key).expect("removed");
    let made = node.json(&["cert", "new"]);
    let new = made["fingerprint"].as_str().expect("made").to_owned();
    assert_ne!(new, old);
    assert_eq!(changed(&node), ["own certificate"]);
    let mut second = dialer("second", &node).start();
    let shown = second.seen("role=outbound");
    assert!(!shown.contains(&old) && shown.contains(&new), "{shown}");
    // What it is shown with counts too: nobody may be left without an intermediate.
    let pem = fs::read_to_string(&cert).expect("read");
    fs::write(&cert, format!("{pem}{}", Authority::new().pem())).expect("written");
    assert_eq!(changed(&node), ["own certificate"]);
}

#[test]
fn what_is_wrong_changes_nothing_and_says_where() {
    let mut node = judge("changing", "open").start();
    let _b = dialer("node-b", &node).start();
    node.seen("node_id=node-b direction=");
    let socket = node.dir.path().join("data/admin.sock");
    // By the socket alone the node itself finds out.
    let ask = |node: &TestNode| {
        let output = node.command(&["--socket", &socket.to_string_lossy(), "trust", "reload"]);
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    rewrite(&node, OPEN, "mode = \"alowlist\"");
    let (code, text) = ask(&node);
    assert_eq!(code, Some(78), "{text}");
    assert!(text.contains("config.toml:") && text.contains("no such trust mode"), "{text}");
    let told = node.seen("action=trust_rules_kept");
    assert!(told.contains("config.toml:") && told.contains("the rules stay as they are"), "{told}");
    // An authority that is not there would let in nobody.
    rewrite(&node, "mode = \"alowlist\"", "mode = \"ca\"");
    let (code, text) = ask(&node);
    assert_eq!(code, Some(78), "{text}");
    assert!(text.contains("pki/issuers/certs: no certificate of an authority"), "{text}");
    // Encryption is not taken away from under its connections.
    rewrite(&node, "mode = \"ca\"", OPEN);
    let without = "[encryption]\nenabled = false\n";
    rewrite(&node, "[encryption.trust_policy]", &format!("{without}[encryption.trust_policy]"));
    let (code, text) = ask(&node);
    assert!(code == Some(1) && text.contains("CONFLICT"), "{text}");
    assert_eq!(peers(&node), 1);
    let _late = dialer("late", &node).start();
    node.seen("node_id=late direction=");
    assert!(!node.heard().contains("(judged again)"), "{}", node.heard());
}

#[test]
fn what_was_forgotten_stays_so_when_other_rules_come() {
    let mut node = judge("changing", "tofu").start();
    let (_, b, key) = connected("node-b", &mut node);
    let (_, _c, other) = connected("node-c", &mut node);
    remembered(&node, &[("node-b", &key), ("node-c", &other)]);
    assert_eq!(node.json(&["trust", "forget", "node-b"])["forgotten"], "node-b");
    rewrite(&node, TOFU, &format!("{TOFU}\npin_fingerprints = [\"{key}\"]"));
    assert_eq!(changed(&node), ["trust_policy.pin_fingerprints"]);
    node.expect("fp-pin-mismatch (judged again)");
    end(b);
    node.expect("node_id=node-b reason=");
    remembered(&node, &[("node-c", &other)]);
}

#[test]
fn the_id_of_a_key_that_is_not_trusted_sends_nobody_away() {
    let mut node = judge("changing", "tofu").start();
    let (_, old, old_key) = connected("node-b", &mut node);
    drop(old);
    node.expect("action=peer_disconnected");
    mode(&node, TOFU, OPEN);
    let (_, _new, key) = connected("node-b", &mut node);
    assert!(node.command(&["trust", "add", &key]).status.success());
    remembered(&node, &[("node-b", &old_key)]);
    mode(&node, OPEN, ALLOWLIST);
    remembered(&node, &[("node-b", &key)]);
    assert!(!node.heard().contains("(judged again)"), "{}", node.heard());
}

#[test]
fn a_reload_makes_no_memory_where_one_is_missing() {
    let mut node = judge("changing", "tofu").start();
    let memory = node.dir.path().join("pki/observed/certs/bindings");
    fs::remove_dir_all(&memory).expect("it was made");
    rewrite(&node, TOFU, &format!("{TOFU}\nreject_expired = false"));
    assert_eq!(changed(&node), ["trust_policy.reject_expired"]);
    let _b = dialer("node-b", &node).start();
    node.seen("reason=tofu-storage-unreadable");
    assert!(!memory.exists());
}

#[test]
fn a_daemon_reads_its_rules_again_when_it_is_told_to_by_signal() {
    let mut node = judge("changing", "open").start();
    let _b = dialer("node-b", &node).start();
    node.seen("node_id=node-b direction=");
    rewrite(&node, OPEN, ALLOWLIST);
    node.signal(Signal::SIGHUP);
    let told = node.seen("action=trust_rules_changed");
    assert!(told.contains("by SIGHUP") && told.contains("open -> allowlist"), "{told}");
    node.seen("not-in-allowlist (judged again)");
}
