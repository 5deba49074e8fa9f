//! Whom each trust mode lets in, and what it remembers: real nodes with real certificates, restarted and impersonated.

mod ids;
mod rules;

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
        fs::write(issuers.join("authority.pem"), self.pem()).expect("written");
    }

    /// Its own certificate.
    fn pem(&self) -> String {
        self.params.self_signed(&self.key).expect("signed").pem()
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
