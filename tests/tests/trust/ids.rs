//! Whose a node id is: now, after a restart, and when the operator says otherwise.

use super::{again, dialer, end, judge, laid_out, peers, with_certificate_of};
use std::fs;
use thenodes_tests::{Spec, TestNode};

#[test]
fn the_id_of_a_trusted_key_is_no_strangers_now_or_after_a_restart() {
    // Trusted by its certificate, which gives it its id, or by its fingerprint alone: then it has the id that it comes with.
    for (by_certificate, reason) in
        [(true, "the trusted directory gives that id to another key"), (false, "reason=tofu-mismatch")]
    {
        let spec = judge("memory", "tofu");
        let mut node = spec.start_in(spec.lay_out());
        let port = node.port;
        let (of_hub, hub_dir, key) = laid_out("hub", Some("hub"), &node);
        let certificate = hub_dir.path().join("pki/own/cert.pem").to_string_lossy().into_owned();
        let trusted = if by_certificate { certificate } else { key };
        assert!(node.command(&["trust", "add", &trusted]).status.success());
        let hub = of_hub.start_in(hub_dir);
        node.seen("reason=seen-before");
        node.seen("action=app_handshake_success");
        // A stranger with a certificate of that name, while the other is there and after it has gone.
        let spec_of_stranger = dialer("hub", &node);
        let stranger = spec_of_stranger.start_in(spec_of_stranger.lay_out());
        node.seen(reason);
        let hub_dir = end(hub);
        node.seen("action=peer_disconnected");
        let (own, stranger_dir) = (end(node), end(stranger));
        let mut node = again(&spec, own, port);
        let _stranger = spec_of_stranger.start_in(stranger_dir);
        node.seen(reason);
        assert_eq!(peers(&node), 0);
        // The control: the one whom it belongs to.
        let _hub = of_hub.start_in(hub_dir);
        node.seen("action=app_handshake_success");
    }
}

#[test]
fn a_trusted_peer_takes_no_name_that_another_came_with_now_or_after_a_restart() {
    // The certificates name no id, as those of upstream's tool; the keys are all trusted.
    let spec = Spec::encrypted("memory");
    let mut node = spec.start_in(spec.lay_out());
    let port = node.port;
    let trusted = |id: &str, node: &TestNode| {
        let (spec, dir, key) = laid_out(id, None, node);
        assert!(node.command(&["trust", "add", &key]).status.success());
        (spec, dir, key)
    };
    let (of_b, dir, key) = trusted("node-b", &node);
    let b = of_b.start_in(dir);
    node.seen("action=app_handshake_success");
    let dir = end(b);
    node.seen("action=peer_disconnected");
    let (of_evil, evil_dir, evil_key) = trusted("node-b", &node);
    let evil = of_evil.start_in(evil_dir);
    let refused = node.seen("action=peer_reject_foreign_id");
    assert!(
        refused.contains("it came with another key before") && refused.contains("trust forget -- node-b"),
        "{refused}"
    );
    // What it was refused for outlives the node, which is killed, whoever comes first then.
    let evil_dir = end(evil);
    let begun = std::time::Instant::now();
    while node.json(&["trust", "bindings"])["bindings"][0]["fingerprint"] != key.as_str() {
        assert!(begun.elapsed() < thenodes_tests::PATIENCE, "it is not written down");
        std::thread::park_timeout(std::time::Duration::from_millis(20));
    }
    node.signal(nix::sys::signal::Signal::SIGKILL);
    node.wait();
    let own = std::mem::replace(&mut node.dir, tempfile::tempdir().expect("a directory"));
    let mut node = again(&spec, own, port);
    let known = node.json(&["trust", "bindings"])["bindings"].clone();
    assert_eq!((&known[0]["fingerprint"], known.as_array().map(Vec::len)), (&key.as_str().into(), Some(1)));
    let evil = of_evil.start_in(evil_dir);
    node.seen("action=peer_reject_foreign_id");
    assert_eq!(peers(&node), 0);
    // Two controls: the one whom it belongs to, and what the operator says otherwise, which also ends the connection of the old one.
    let _b = of_b.start_in(dir);
    node.seen("action=app_handshake_success");
    assert!(node.command(&["trust", "bind", "node-b", &evil_key]).status.success());
    let ended = node.seen("(judged again)");
    assert!(ended.contains("node_id=node-b") && ended.contains("id-of-another"), "{ended}");
    node.expect("action=app_handshake_success");
    drop(evil);
    assert_eq!(node.json(&["trust", "bind", "../b", &evil_key])["error"]["code"], "INVALID_INPUT");
}

#[test]
fn an_id_that_is_forgotten_while_its_peer_is_there_is_nobody_elses_for_that() {
    let mut node = Spec::encrypted("node").start();
    let trusted = |id: &str, node: &TestNode| {
        let (spec, dir, key) = laid_out(id, None, node);
        assert!(node.command(&["trust", "add", &key]).status.success());
        (spec, dir, key)
    };
    let bindings = |node: &TestNode| node.json(&["trust", "bindings"])["bindings"].clone();
    let (of_b, dir, key) = trusted("node-b", &node);
    let b = of_b.start_in(dir);
    node.seen("action=app_handshake_success");
    let begun = std::time::Instant::now();
    while bindings(&node)[0]["fingerprint"] != key.as_str() {
        assert!(begun.elapsed() < thenodes_tests::PATIENCE, "it is not written down");
        std::thread::park_timeout(std::time::Duration::from_millis(20));
    }
    assert_eq!(node.json(&["trust", "forget", "node-b"])["forgotten"], "node-b");
    let (of_evil, evil_dir, _) = trusted("node-b", &node);
    let mut evil = of_evil.start_in(evil_dir);
    // Refused, and refused again after the table has looked at what was forgotten: neither takes the id.
    for _ in 0..4 {
        evil.expect("action=dial_start");
    }
    assert_eq!(peers(&node), 1);
    assert!(!node.heard().contains("(judged again)"));
    assert_eq!(bindings(&node).as_array().map(Vec::len), Some(0));
    // The control: when it is gone, it is.
    drop(b);
    evil.seen("action=app_handshake_success");
}

#[test]
fn the_new_key_of_a_node_has_its_id_when_the_old_one_is_not_trusted_any_more() {
    let mut node = Spec::encrypted("node").start();
    let (of_old, old_dir, old) = laid_out("node-b", None, &node);
    assert!(node.command(&["trust", "add", &old]).status.success());
    let before = of_old.start_in(old_dir);
    node.seen("action=app_handshake_success");
    drop(before);
    let (of_new, new_dir, new) = laid_out("node-b", None, &node);
    assert!(node.command(&["trust", "add", &new]).status.success());
    let _after = of_new.start_in(new_dir);
    node.seen("it came with another key before");
    let file = node.dir.path().join("pki/trusted/certs").join(format!("{old}.spki"));
    fs::remove_file(file).expect("it was trusted by its fingerprint");
    node.expect("action=app_handshake_success");
}

#[test]
fn who_signed_his_own_certificate_is_no_authority_for_its_name() {
    // A chain is asked for, and one that ends at the certificate itself is as good: that is for keys that are trusted one by one.
    let mut node = Spec::encrypted("node")
        .more("[encryption.trust_policy]\nmode = \"allowlist\"\nenforce_ca_chain = true\naccept_self_signed = true")
        .start();
    let (of_b, dir, _) = laid_out("node-b", Some("node-b"), &node);
    let certificate = dir.path().join("pki/own/cert.pem");
    assert!(node.command(&["trust", "add", &certificate.to_string_lossy()]).status.success());
    let (of_evil, evil_dir, evil_key) = laid_out("node-b", Some("node-b"), &node);
    assert!(node.command(&["trust", "add", &evil_key]).status.success());
    let evil = of_evil.start_in(evil_dir);
    node.seen("gives that id to another key");
    drop(evil);
    let _b = of_b.start_in(dir);
    node.seen("node_id=node-b direction");
}

#[test]
fn a_certificate_that_the_operator_trusts_ends_the_connection_of_whoever_had_its_name() {
    let mut node = judge("memory", "tofu").start();
    let impostor = dialer("hub", &node);
    let impostor = impostor.start_in(impostor.lay_out());
    node.seen("reason=new-tofu");
    node.seen("action=app_handshake_success");
    let (of_hub, hub_dir, key) = laid_out("hub", Some("hub"), &node);
    let certificate = hub_dir.path().join("pki/own/cert.pem").to_string_lossy().into_owned();
    // It came with another key first: that takes a word of the operator's.
    let refused = node.json(&["trust", "add", &certificate]);
    assert!(refused["error"]["message"].as_str().is_some_and(|text| text.contains("--replace")), "{refused}");
    assert_eq!(node.json(&["trust", "add", &certificate, "--replace"])["trusted"][0], key.as_str());
    let ended = node.seen("(judged again)");
    assert!(ended.contains("node_id=hub") && ended.contains("id-of-another"), "{ended}");
    let _hub = of_hub.start_in(hub_dir);
    node.expect("action=app_handshake_success");
    drop(impostor);
    assert!(node.seen("decision=Reject reason=id-of-another").contains("decision=Reject"));
    // What the operator said is remembered also without the certificate.
    assert_eq!(node.json(&["trust", "bindings"])["bindings"][0]["fingerprint"], key.as_str());
}

#[test]
fn a_certificate_in_the_trusted_directory_is_trusted_under_its_own_name_alone() {
    let spec = Spec::encrypted("pairs");
    let mut node = spec.start_in(spec.lay_out());
    // Their keys are trusted. What a certificate says of itself is worth nothing: whoever has a key can write another one.
    let (of_b, dir, key) = laid_out("node-b", Some("node-b"), &node);
    let certificate = dir.path().join("pki/own/cert.pem");
    let added = node.json(&["trust", "add", &certificate.to_string_lossy()]);
    assert_eq!(added["pairs"][0], serde_json::json!({ "node_id": "node-b", "fingerprint": key }));
    let (of_evil, evil_dir, evil_key) = laid_out("node-b", Some("node-b"), &node);
    assert!(node.command(&["trust", "add", &evil_key]).status.success());
    let evil = of_evil.start_in(evil_dir);
    let refused = node.seen("action=peer_reject_foreign_id");
    assert!(refused.contains("the trusted directory gives that id to another key"), "{refused}");
    drop(evil);
    // The other way round: the key of node-b with a certificate that names nobody, as another node.
    let private = fs::read(dir.path().join("pki/own/key.pem")).expect("read");
    let pair = rcgen::KeyPair::from_pem(&String::from_utf8(private.clone()).expect("PEM")).expect("a key");
    let of_other = dialer("node-c", &node);
    let other_dir = of_other.lay_out();
    with_certificate_of(&other_dir, None);
    let nameless = rcgen::CertificateParams::new(vec![]).and_then(|p| p.self_signed(&pair)).expect("made");
    fs::write(other_dir.path().join("pki/own/cert.pem"), nameless.pem()).expect("written");
    fs::write(other_dir.path().join("pki/own/key.pem"), private).expect("written");
    let other = of_other.start_in(other_dir);
    let refused = node.seen("gives its key the id node-b");
    assert!(refused.contains("node id node-c is not its own"), "{refused}");
    drop(other);
    assert_eq!(peers(&node), 0);
    // The control.
    let _b = of_b.start_in(dir);
    node.seen("node_id=node-b direction");
    // A pair that comes later ends a connection that it speaks against.
    let (of_d, d_dir, d_key) = laid_out("node-d", None, &node);
    assert!(node.command(&["trust", "add", &d_key]).status.success());
    let _d = of_d.start_in(d_dir);
    node.seen("node_id=node-d");
    let (_, true_d, _) = laid_out("node-d", Some("node-d"), &node);
    let certificate = true_d.path().join("pki/own/cert.pem");
    assert!(node.command(&["trust", "add", "--replace", &certificate.to_string_lossy()]).status.success());
    let ended = node.seen("(judged again)");
    assert!(ended.contains("node_id=node-d") && ended.contains("id-of-another"), "{ended}");
}

#[test]
fn what_is_remembered_of_ids_lets_in_nobody_new_where_it_cannot_be_understood() {
    let spec = Spec::encrypted("broken");
    let dir = spec.lay_out();
    let bindings = dir.path().join("pki/observed/certs");
    fs::create_dir_all(dir.path().join("pki/observed")).expect("a directory");
    // A file where a directory should be, which not even root can write below.
    fs::write(&bindings, "").expect("written");
    let mut node = spec.start_in(dir);
    node.seen("action=id_memory_unreadable");
    let (of_b, b_dir, key) = laid_out("node-b", None, &node);
    assert!(node.command(&["trust", "add", &key]).status.success());
    let mut b = of_b.start_in(b_dir);
    let refused = node.seen("action=peer_reject_foreign_id");
    assert!(refused.contains("cannot be read"), "{refused}");
    b.seen("action=dial_start");
    // Whom the operator paired needs no memory.
    let (of_c, c_dir, _) = laid_out("node-c", Some("node-c"), &node);
    let certificate = c_dir.path().join("pki/own/cert.pem");
    assert!(node.command(&["trust", "add", &certificate.to_string_lossy()]).status.success());
    let _c = of_c.start_in(c_dir);
    node.seen("node_id=node-c direction");
    // And the other one is let in as soon as there is a place for its name.
    let bindings = node.dir.path().join("pki/observed/certs");
    fs::remove_file(&bindings).expect("removed");
    fs::create_dir_all(bindings.join("bindings")).expect("made");
    node.seen("node_id=node-b direction");
}

#[test]
fn an_id_that_gets_another_key_by_hand_ends_the_connection_of_the_old_one() {
    let mut node = judge("memory", "tofu").start();
    let mut b = dialer("node-b", &node).start();
    node.seen("reason=new-tofu");
    b.seen("action=app_handshake_success");
    let dir = node.dir.path().join("pki/observed/certs/bindings");
    let file = fs::read_dir(dir).expect("it is there").flatten().next().expect("one").path();
    fs::write(&file, format!("fingerprint={}\nidentity=node:node-b\n", "0".repeat(64))).expect("written");
    let ended = node.seen("(judged again)");
    assert!(ended.contains("node_id=node-b") && ended.contains("tofu-mismatch"), "{ended}");
    // Forgotten while it is away: it is the first again.
    assert_eq!(node.json(&["trust", "forget", "node-b"])["forgotten"], "node-b");
    node.seen("reason=new-tofu");
}
