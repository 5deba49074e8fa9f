//! Whom each trust mode lets in, and what it remembers: real nodes with real certificates, restarted and impersonated.

use serde_json::Value;
use std::fs;
use tempfile::TempDir;
use thenodes_tests::{Spec, TestNode};

/// A node that judges in this mode.
fn judge(id: &str, mode: &str) -> Spec {
    Spec::encrypted(id).more(&format!("[encryption.trust_policy]\nmode = \"{mode}\""))
}

/// A node that trusts everybody and dials this one.
fn dialer(id: &str, node: &TestNode) -> Spec {
    judge(id, "open").top(&format!("bootstrap_nodes = [\"127.0.0.1:{}\"]", node.port))
}

fn fingerprint(node: &TestNode) -> String {
    let value = node.json(&["cert", "fingerprint"]);
    value["fingerprints"][0].as_str().expect("one").to_owned()
}

fn peers(node: &TestNode) -> usize {
    node.json(&["peers"])["peers"].as_array().map_or(0, Vec::len)
}

/// Ends a node and keeps its directory, with its key and all it remembers.
fn end(mut node: TestNode) -> TempDir {
    node.signal(nix::sys::signal::Signal::SIGTERM);
    assert!(node.wait().success());
    std::mem::replace(&mut node.dir, tempfile::tempdir().expect("a directory"))
}

/// Starts it there again, at the same port.
fn again(spec: &Spec, dir: TempDir, port: u16) -> TestNode {
    let path = dir.path().join("config.toml");
    let text = fs::read_to_string(&path).expect("laid out");
    fs::write(&path, text.replacen("port = 0", &format!("port = {port}"), 1)).expect("written");
    spec.start_in(dir)
}

#[test]
fn tofu_gives_an_id_to_its_first_key_and_remembers_it_across_a_restart() {
    let spec = judge("memory", "tofu");
    let mut node = spec.start_in(spec.lay_out());
    let (port, of_b) = (node.port, dialer("node-b", &node));
    let mut b = of_b.start_in(of_b.lay_out());
    let first = node.seen("reason=new-tofu");
    assert!(first.contains("decision=Accept") && first.contains(&fingerprint(&b)), "{first}");
    b.seen("action=app_handshake_success");
    let known = node.json(&["trust", "bindings"])["bindings"].clone();
    assert_eq!(
        (known[0]["node_id"].as_str(), known[0]["fingerprint"].as_str(), known[1].clone()),
        (Some("node-b"), Some(fingerprint(&b).as_str()), Value::Null)
    );
    // Both start again: the memory is on disk.
    let (own, of_peer) = (end(node), end(b));
    let mut node = again(&spec, own, port);
    // Somebody else comes first this time, under the same id and with a certificate that names it.
    let impostor = dialer("node-b", &node);
    let impostor = impostor.start_in(impostor.lay_out());
    let refused = node.seen("reason=tofu-mismatch");
    assert!(refused.contains("decision=Reject") && refused.contains(&fingerprint(&impostor)), "{refused}");
    assert!(refused.contains("trust forget -- node-b"), "{refused}");
    assert_eq!(peers(&node), 0);
    let b = of_b.start_in(of_peer);
    node.seen("reason=seen-before");
    node.seen("action=app_handshake_success");
    drop(b);
    // The operator's word changes it, without a restart.
    assert_eq!(node.json(&["trust", "forget", "node-b"])["forgotten"], "node-b");
    node.seen("reason=new-tofu");
    assert_eq!(
        node.json(&["trust", "bindings"])["bindings"][0]["fingerprint"],
        fingerprint(&impostor).as_str()
    );
    assert_eq!(node.json(&["trust", "forget", "nobody"])["error"]["code"], "NOT_FOUND");
}

#[test]
fn without_a_memory_whoever_comes_first_has_the_id() {
    // The control: where nothing is remembered, the same impostor is let in after the same restart.
    let spec = judge("forgetful", "open");
    let mut node = spec.start_in(spec.lay_out());
    let (port, of_b) = (node.port, dialer("node-b", &node));
    let b = of_b.start_in(of_b.lay_out());
    node.seen("action=app_handshake_success");
    drop(b);
    let mut node = again(&spec, end(node), port);
    let _impostor = dialer("node-b", &node).start();
    node.seen("action=app_handshake_success");
}

/// Gives a node that was laid out a key, and a certificate that names this or nothing.
fn with_certificate_of(dir: &TempDir, name: Option<&str>) {
    use std::os::unix::fs::PermissionsExt;
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).expect("a key");
    let mut params = rcgen::CertificateParams::new(vec![]).expect("parameters");
    if let Some(name) = name {
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
    }
    let certificate = params.self_signed(&key).expect("made");
    fs::create_dir_all(dir.path().join("pki/own")).expect("a directory");
    fs::write(dir.path().join("pki/own/cert.pem"), certificate.pem()).expect("written");
    let key_path = dir.path().join("pki/own/key.pem");
    fs::write(&key_path, key.serialize_pem()).expect("written");
    fs::set_permissions(&key_path, fs::Permissions::from_mode(0o600)).expect("chmod");
}

/// Lays out a dialer under this id whose certificate names this or nothing; its fingerprint with it.
fn laid_out(id: &str, named: Option<&str>, node: &TestNode) -> (Spec, TempDir, String) {
    let spec = dialer(id, node);
    let dir = spec.lay_out();
    with_certificate_of(&dir, named);
    let certificate = dir.path().join("pki/own/cert.pem");
    let added = node.json(&["cert", "fingerprint", &certificate.to_string_lossy()]);
    (spec, dir, added["fingerprints"][0].as_str().expect("one").to_owned())
}

#[test]
fn many_keys_with_one_subject_are_many_peers_for_tofu() {
    // Upstream remembers by subject, and its tool gives every certificate the same one.
    let mut node = judge("subjects", "tofu").start();
    for id in ["node-b", "node-c"] {
        let spec = dialer(id, &node);
        let dir = spec.lay_out();
        with_certificate_of(&dir, None);
        let mut peer = spec.start_in(dir);
        peer.seen("action=app_handshake_success");
        node.seen(&format!("node_id={id}"));
    }
    assert_eq!(node.json(&["trust", "bindings"])["bindings"].as_array().map(Vec::len), Some(2));
}

#[test]
fn a_memory_that_cannot_be_read_or_written_lets_nobody_in() {
    let spec = judge("broken", "tofu");
    let dir = spec.lay_out();
    fs::create_dir_all(dir.path().join("pki/observed")).expect("a directory");
    // A file where a directory should be, which not even root can write below.
    fs::write(dir.path().join("pki/observed/certs"), "").expect("written");
    let mut node = spec.start_in(dir);
    let mut b = dialer("node-b", &node).start();
    let refused = node.seen("reason=tofu-storage-un");
    assert!(refused.contains("decision=Reject"), "{refused}");
    b.seen("action=dial_start");
    assert_eq!(peers(&node), 0);
    // The same peer is welcome as soon as there is a place for its name.
    fs::remove_file(node.dir.path().join("pki/observed/certs")).expect("removed");
    fs::create_dir_all(node.dir.path().join("pki/observed/certs/bindings")).expect("made");
    node.seen("reason=new-tofu");
}

#[test]
fn observe_keeps_strangers_out_and_their_certificates_in_until_one_is_promoted() {
    let mut node = judge("watcher", "observe").start();
    let mut b = dialer("node-b", &node).start();
    let refused = node.seen("reason=observe-only");
    assert!(refused.contains("decision=Reject"), "{refused}");
    assert_eq!(peers(&node), 0);
    let key = fingerprint(&b);
    assert_eq!(node.json(&["trust", "observed"])["observed"][0], key.as_str());
    for wrong in ["../../../etc/passwd", &"0".repeat(64)] {
        assert_eq!(node.json(&["trust", "promote", wrong])["error"]["code"], "NOT_FOUND", "{wrong}");
    }
    assert_eq!(node.json(&["trust", "promote", &key])["trusted"][0], key.as_str());
    let promoted = node.seen("PROMOTE");
    assert!(promoted.contains(&key) && promoted.contains("observed"), "{promoted}");
    node.seen("reason=present-in-allowlist");
    b.seen("action=app_handshake_success");
}

#[test]
fn hybrid_is_open_under_its_own_name_and_an_allowlist_keeps_nothing() {
    let keeps = "store_new_certs = \"observed\"";
    let mut node = judge("mixed", "hybrid").more(keeps).start();
    let _b = dialer("node-b", &node).start();
    let accepted = node.seen("reason=hybrid-placeholder-open");
    assert!(accepted.contains("mode=HybridPlaceholder"), "{accepted}");
    assert_eq!(node.json(&["trust", "observed"])["observed"].as_array().map(Vec::len), Some(1));
    let mut node = judge("strict", "allowlist").more(keeps).start();
    let _b = dialer("node-b", &node).start();
    node.seen("reason=not-in-allowlist");
    assert_eq!(node.json(&["trust", "observed"])["observed"].as_array().map(Vec::len), Some(0));
}

#[test]
fn nodes_with_keys_of_every_kind_trust_each_other_and_the_certificate_says_what_was_asked_for() {
    let made = |spec: &Spec, kind: &str| {
        let dir = spec.lay_out();
        let done = std::process::Command::new(thenodes_tests::bin_dir().join("thenodes"))
            .args([
                "--config",
                "config.toml",
                "cert",
                "new",
                "--key-type",
                kind,
                "--days",
                "9",
                "--realm",
                "Elsewhere",
            ])
            .current_dir(dir.path())
            .status();
        assert!(done.is_ok_and(|status| status.success()), "{kind}");
        spec.start_in(dir)
    };
    let mut node = made(&Spec::encrypted("node-a"), "p384");
    let shown = node.json(&["cert", "show"])["certificates"][0].clone();
    assert_eq!(
        (shown["key"].as_str(), shown["self_signed"].as_bool()),
        (Some("ECDSA, 384 bits"), Some(true))
    );
    let subject = shown["subject"].as_str().expect("a text");
    assert!(subject.contains("CN=node-a") && subject.contains("O=Elsewhere"), "{subject}");
    for (id, kind) in [("node-b", "ed25519"), ("node-c", "p256")] {
        let dial = format!("bootstrap_nodes = [\"127.0.0.1:{}\"]", node.port);
        let mut peer = made(&Spec::encrypted(id).top(&dial), kind);
        assert!(node.command(&["trust", "add", &fingerprint(&peer)]).status.success());
        assert!(peer.command(&["trust", "add", &fingerprint(&node)]).status.success());
        peer.seen("action=app_handshake_success");
        node.seen(&format!("node_id={id}"));
    }
}

#[test]
fn a_connected_peer_is_judged_again_when_trust_changes_and_only_it() {
    let mut node = Spec::encrypted("node-a").start();
    let dial = format!("bootstrap_nodes = [\"127.0.0.1:{}\"]", node.port);
    let connected = |id: &str, node: &mut TestNode| {
        let mut peer = Spec::encrypted(id).top(&dial).start();
        assert!(node.command(&["trust", "add", &fingerprint(&peer)]).status.success());
        assert!(peer.command(&["trust", "add", &fingerprint(node)]).status.success());
        peer.seen("action=app_handshake_success");
        node.seen(&format!("node_id={id}"));
        peer
    };
    let mut b = connected("node-b", &mut node);
    let _c = connected("node-c", &mut node);
    assert_eq!(peers(&node), 2);
    // Trust in one of them is taken back.
    let file = node.dir.path().join("pki/trusted/certs").join(format!("{}.spki", fingerprint(&b)));
    fs::remove_file(&file).expect("it was trusted by its fingerprint");
    let ended = node.seen("(judged again)");
    assert!(ended.contains("node_id=node-b") && ended.contains("not-in-allowlist"), "{ended}");
    b.seen("action=peer_disconnected");
    // The other one was judged again too, and stays without having had to come again.
    assert_eq!(node.json(&["peers"])["peers"][0]["node_id"], "node-c");
    assert_eq!(node.heard().matches("node_id=node-c direction").count(), 1);
    // And back, without a restart.
    fs::write(&file, "").expect("written");
    b.seen("action=app_handshake_success");
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
fn a_stranger_who_never_says_who_he_is_is_on_record_and_takes_no_id() {
    let mut node = judge("memory", "tofu").start();
    // In another realm: its HELLO is refused whoever it is.
    let other = dialer("lost", &node).more("");
    let config = other.config.replace("name = \"Test\"", "name = \"Elsewhere\"");
    let mut lost = Spec { config, ..other }.start();
    let refused = node.seen("reason=no-valid-hello");
    assert!(refused.contains("decision=Reject"), "{refused}");
    lost.seen("action=realm_mismatch");
    assert_eq!(node.json(&["trust", "bindings"])["bindings"].as_array().map(Vec::len), Some(0));
}

/// An authority, made for a test.
struct Authority {
    params: rcgen::CertificateParams,
    key: rcgen::KeyPair,
}

impl Authority {
    fn new() -> Self {
        let key = rcgen::KeyPair::generate().expect("a key");
        let mut params = rcgen::CertificateParams::new(vec![]).expect("parameters");
        params.distinguished_name.push(rcgen::DnType::CommonName, "The Authority");
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign, rcgen::KeyUsagePurpose::CrlSign];
        Self { params, key }
    }

    /// Gives a node a certificate that names this id.
    fn vouch(&self, dir: &TempDir, id: &str, serial: u64) {
        let key = rcgen::KeyPair::generate().expect("a key");
        let mut params = rcgen::CertificateParams::new(vec![]).expect("parameters");
        params.distinguished_name.push(rcgen::DnType::CommonName, id);
        params.serial_number = Some(rcgen::SerialNumber::from(serial));
        params.extended_key_usages =
            vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth, rcgen::ExtendedKeyUsagePurpose::ClientAuth];
        let signed =
            params.signed_by(&key, &rcgen::Issuer::from_params(&self.params, &self.key)).expect("signed");
        let own = dir.path().join("pki/own");
        fs::create_dir_all(&own).expect("a directory");
        fs::write(own.join("cert.pem"), signed.pem()).expect("written");
        fs::write(own.join("key.pem"), key.serialize_pem()).expect("written");
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(own.join("key.pem"), fs::Permissions::from_mode(0o600)).expect("chmod");
    }

    fn trusted_by(&self, dir: &TempDir) {
        let issuers = dir.path().join("pki/issuers/certs");
        fs::create_dir_all(&issuers).expect("a directory");
        let pem = self.params.self_signed(&self.key).expect("signed").pem();
        fs::write(issuers.join("authority.pem"), pem).expect("written");
    }

    fn revokes(&self, dir: &TempDir, serial: u64) {
        let now = time::OffsetDateTime::now_utc();
        let list = rcgen::CertificateRevocationListParams {
            this_update: now - time::Duration::hours(1),
            next_update: now + time::Duration::hours(1),
            crl_number: rcgen::SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: vec![rcgen::RevokedCertParams {
                serial_number: rcgen::SerialNumber::from(serial),
                revocation_time: now - time::Duration::minutes(1),
                reason_code: None,
                invalidity_date: None,
            }],
            key_identifier_method: rcgen::KeyIdMethod::Sha256,
        };
        let signed = list.signed_by(&rcgen::Issuer::from_params(&self.params, &self.key)).expect("signed");
        let lists = dir.path().join("pki/crl");
        fs::create_dir_all(&lists).expect("a directory");
        fs::write(lists.join("authority.crl"), signed.pem().expect("PEM")).expect("written");
    }
}

#[test]
fn an_authority_lets_in_whom_it_vouches_for_under_that_name_alone_until_it_revokes() {
    let authority = Authority::new();
    let spec = Spec::encrypted("judge").more(
        "[encryption.paths]\nissuer_crl_dir = \"pki/crl\"\nrejected_dir = \"pki/rejected\"\n[encryption.trust_policy]\nmode = \"ca\"",
    );
    let dir = spec.lay_out();
    authority.vouch(&dir, "judge", 1);
    authority.trusted_by(&dir);
    let mut node = spec.start_in(dir);
    // One that it vouches for.
    let good = dialer("node-b", &node);
    let dir = good.lay_out();
    authority.vouch(&dir, "node-b", 2);
    let mut b = good.start_in(dir);
    let accepted = node.seen("reason=ca-chain-valid");
    assert!(accepted.contains("decision=Accept") && accepted.contains("mode=Ca"), "{accepted}");
    b.seen("action=app_handshake_success");
    assert_eq!(peers(&node), 1);
    // One that it vouches for, under another's name.
    let thief = dialer("node-d", &node);
    let dir = thief.lay_out();
    authority.vouch(&dir, "node-c", 3);
    let _thief = thief.start_in(dir);
    let refused = node.seen("peer_reject_foreign_id");
    assert!(refused.contains("vouches for node-c"), "{refused}");
    // One that vouches for itself.
    let own = dialer("node-e", &node).start();
    let refused = node.seen("reason=chain-invalid");
    assert!(refused.contains("decision=Reject") && refused.contains(&fingerprint(&own)), "{refused}");
    let log = fs::read_to_string(node.dir.path().join("logs/trust_audit.jsonl")).expect("a log");
    assert!(
        log.contains("\"chain_reason\":\"self-signed\"") && log.contains("\"chain_valid\":true"),
        "{log}"
    );
    let kept = node.dir.path().join("pki/rejected").join(format!("{}.pem", fingerprint(&own)));
    assert!(kept.exists(), "its certificate is kept to be looked at");
    assert_eq!(peers(&node), 1);
    // It takes its word back; the one inside has to go.
    authority.revokes(&node.dir, 2);
    let gone = node.expect("reason=certificate refused: chain-invalid (judged again)");
    assert!(gone.contains("node-b"), "{gone}");
    let log = fs::read_to_string(node.dir.path().join("logs/trust_audit.jsonl")).expect("a log");
    assert!(log.contains("\"chain_reason\":\"revoked\""), "{log}");
    assert_eq!(peers(&node), 0);
}

/// A certificate of a peer that is wrong in one way each, and one that is not there at all because nobody speaks TLS.
#[test]
fn each_wrong_certificate_is_refused_by_its_reason_and_plain_talk_is_none_at_all() {
    let mut node =
        judge("strict", "open").more("realm_subject_binding = true\nreject_before_valid = true").start();
    let with = |id: &str, change: &dyn Fn(&mut rcgen::CertificateParams)| {
        let spec = dialer(id, &node);
        let dir = spec.lay_out();
        let key = rcgen::KeyPair::generate().expect("a key");
        let mut params = rcgen::CertificateParams::new(vec![]).expect("parameters");
        params.distinguished_name.push(rcgen::DnType::CommonName, id);
        params.distinguished_name.push(rcgen::DnType::OrganizationName, "Test");
        change(&mut params);
        let own = dir.path().join("pki/own");
        fs::create_dir_all(&own).expect("a directory");
        fs::write(own.join("cert.pem"), params.self_signed(&key).expect("signed").pem()).expect("written");
        fs::write(own.join("key.pem"), key.serialize_pem()).expect("written");
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(own.join("key.pem"), fs::Permissions::from_mode(0o600)).expect("chmod");
        spec.start_in(dir)
    };
    let day = time::Duration::days(1);
    let good = with("good", &|_| {});
    let early = with("early", &|params| params.not_before = time::OffsetDateTime::now_utc() + day);
    let late = with("late", &|params| params.not_after = time::OffsetDateTime::now_utc() - day);
    let elsewhere = with("elsewhere", &|params| {
        params.distinguished_name.push(rcgen::DnType::OrganizationName, "Another Realm");
    });
    for (peer, reason) in
        [(&early, "time-invalid"), (&late, "time-invalid"), (&elsewhere, "realm-subject-mismatch")]
    {
        let why = [(&early, "not-yet-valid"), (&late, "expired")]
            .into_iter()
            .find(|(of, _)| of.pid() == peer.pid());
        let key = fingerprint(peer);
        let line = node.seen_where(|line| line.contains("decision=Reject") && line.contains(&key));
        assert!(line.contains(reason), "{line}");
        assert!(why.is_none_or(|(_, why)| line.contains(&format!("time=Some({why:?})"))), "{line}");
    }
    // The control, and the only one inside.
    node.seen("decision=Accept");
    assert_eq!(node.json(&["peers"])["peers"][0]["node_id"], "good");
    assert_eq!(peers(&node), 1);
    drop(good);
    // Without TLS: not even the node's HELLO is heard.
    let mut plain = std::net::TcpStream::connect(("127.0.0.1", node.port)).expect("it listens");
    use std::io::{Read, Write};
    plain
        .write_all(b"{\"from\":\"x\",\"to\":\"y\",\"msg_type\":{\"HELLO\":{\"node_id\":\"x\"}}}\n")
        .expect("sent");
    let mut said = Vec::new();
    plain.set_read_timeout(Some(thenodes_tests::PATIENCE)).expect("set");
    let _ = plain.read_to_end(&mut said);
    assert!(!String::from_utf8_lossy(&said).contains("HELLO"));
    node.seen("decision=Reject reason=not-tls");
    node.seen("secure_channel_failed");
}

#[test]
fn each_pin_and_the_realm_must_hold_whatever_the_mode() {
    // One peer, and nodes that let it in but for one rule each.
    let dir = Spec::encrypted("node-b").lay_out();
    with_certificate_of(&dir, Some("node-b"));
    let certificate = dir.path().join("pki/own/cert.pem").to_string_lossy().into_owned();
    let rules = [
        ("pin_fingerprints = [\"KEY\"]", None),
        (
            "pin_fingerprints = [\"0000000000000000000000000000000000000000000000000000000000000000\"]",
            Some("fp-pin-mismatch"),
        ),
        ("pin_subjects = [\"~node-b\"]", None),
        ("pin_subjects = [\"CN=node-c\"]", Some("subject-pin-mismatch")),
        ("realm_subject_binding = true", Some("realm-subject-mismatch")),
        ("enforce_ca_chain = true\naccept_self_signed = true", None),
        ("enforce_ca_chain = true", Some("chain-invalid")),
    ];
    for mode in ["open", "allowlist", "tofu"] {
        for (rule, reason) in rules {
            let own = Spec::encrypted("judge").lay_out();
            let known = Spec::encrypted("judge");
            let key = {
                let output = std::process::Command::new(thenodes_tests::bin_dir().join("thenodes"))
                    .args(["--config", "config.toml", "--json", "cert", "fingerprint", &certificate])
                    .current_dir(own.path())
                    .output()
                    .expect("it runs");
                let value: Value = serde_json::from_slice(&output.stdout).expect("JSON");
                value["fingerprints"][0].as_str().expect("one").to_owned()
            };
            let rule = rule.replace("KEY", &key);
            let mut node =
                known.more(&format!("[encryption.trust_policy]\nmode = \"{mode}\"\n{rule}")).start();
            if mode == "allowlist" {
                assert!(node.command(&["trust", "add", &certificate]).status.success());
            }
            let spec = dialer("node-b", &node);
            let peer = spec.lay_out();
            fs::create_dir_all(peer.path().join("pki/own")).expect("a directory");
            for file in ["cert.pem", "key.pem"] {
                fs::copy(dir.path().join("pki/own").join(file), peer.path().join("pki/own").join(file))
                    .expect("copied");
            }
            let _peer = spec.start_in(peer);
            match reason {
                None => drop(node.seen("action=app_handshake_success")),
                Some(reason) => {
                    let line = node.seen_where(|line| line.contains("decision=") && line.contains(&key));
                    assert!(
                        line.contains(&format!("decision=Reject reason={reason}")),
                        "{mode}, {rule}: {line}"
                    );
                }
            }
        }
    }
}
