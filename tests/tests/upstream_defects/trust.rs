//! Whom a node believes, and what it does with keys and certificates.

use super::{does_not_start, ours, probe, text, theirs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use thenodes_tests::peer::Peer;
use thenodes_tests::tls::{self, handshake};
use thenodes_tests::upstream::{free_port, lay_out, Stock, Upstream};
use thenodes_tests::{bin_dir, Spec, PATIENCE};

/// A certificate with the subject that upstream's tool gives to all.
fn identity() -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
    let key = rcgen::KeyPair::generate().expect("a key");
    let certificate = rcgen::CertificateParams::new(vec![]).and_then(|p| p.self_signed(&key)).expect("made");
    let private = PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes()).expect("a key");
    (vec![certificate.der().clone()], private)
}

/// Greets over TLS and asks whether the other side lives; true if it lets us in.
fn greets(stream: &mut rustls::StreamOwned<rustls::ClientConnection, TcpStream>, id: &str) -> bool {
    let hello = format!(
        r#"{{"from":"{id}","to":"x","msg_type":{{"HELLO":{{"node_id":"{id}"}}}},"realm":{{"name":"Test","version":"1.0"}}}}"#
    );
    if stream.write_all(format!("{hello}\n{}\n", probe(id)).as_bytes()).is_err() {
        return false;
    }
    let mut said = String::new();
    let mut buffer = [0; 4096];
    while let Ok(count @ 1..) = stream.read(&mut buffer) {
        said.push_str(&String::from_utf8_lossy(&buffer[..count]));
        if said.contains("liveness_response_v1") {
            return true;
        }
    }
    false
}

#[test]
fn d5_a_verdict_is_enforced_whatever_else_is_configured() {
    // One-way TLS where certificates decide would promise what it cannot keep: ours says so and does not start.
    for mode in ["allowlist", "observe", "tofu", "ca"] {
        let policy = format!("[encryption]\nmtls = false\n[encryption.trust_policy]\nmode = \"{mode}\"");
        does_not_start(&Spec::encrypted("node").more(&policy));
    }
    let port = free_port();
    let dir = lay_out("node", port, &[], true, "");
    let path = dir.path().join("config.toml");
    fs::write(&path, fs::read_to_string(&path).expect("read").replace("mtls = true", "mtls = false"))
        .expect("written");
    let mut upstream = Upstream::start(dir);
    let mut stream = tls::connect(port, None).expect("a channel");
    assert!(greets(&mut stream, "anonymous"));
    stream.write_all((text("anonymous", "no certificate") + "\n").as_bytes()).expect("sent");
    upstream.expect("no certificate");
}

#[test]
fn d6_a_message_comes_from_whose_connection_it_comes() {
    let mut node = ours();
    let mut evil = Peer::greeted(&node, "evil");
    evil.say(&text("victim", "spoofed"));
    evil.settle();
    let seen = node.seen("spoofed");
    assert!(seen.contains("node_id=evil") && !seen.contains("victim"), "{seen}");
    let (mut upstream, port) = theirs();
    let mut evil = Peer::silent_at(port, "evil", "null");
    evil.say(&text("victim", "spoofed"));
    assert!(upstream.expect("spoofed").contains(r#"\"from\":\"victim\""#));
}

#[test]
fn d7_two_keys_with_one_subject_are_two_peers() {
    let tofu = "[encryption.trust_policy]\nmode = \"tofu\"\n[encryption.trust_policy.paths]\nobserved_dir = \"pki/observed\"\n";
    let lets_in = |port: u16, id: &str| {
        tls::connect(port, Some(identity())).is_some_and(|mut stream| greets(&mut stream, id))
    };
    let node = Spec::encrypted("node").more(tofu).start();
    assert!(lets_in(node.port, "one") && lets_in(node.port, "two"));
    let port = free_port();
    let dir = lay_out("node", port, &[], true, "");
    let path = dir.path().join("config.toml");
    let text = fs::read_to_string(&path).expect("read").replace("mode = \"allowlist\"", "mode = \"tofu\"");
    fs::write(&path, text + "[encryption.trust_policy.paths]\nobserved_dir = \"pki/observed\"\n")
        .expect("written");
    let _upstream = Upstream::start(dir);
    assert!(lets_in(port, "one"));
    assert!(!lets_in(port, "two"), "upstream takes the second for the first");
}

#[test]
fn d8_a_copied_certificate_is_no_key() {
    #[derive(Debug)]
    struct Copied(Arc<rustls::sign::CertifiedKey>);
    impl rustls::client::ResolvesClientCert for Copied {
        fn resolve(
            &self,
            _: &[&[u8]],
            _: &[rustls::SignatureScheme],
        ) -> Option<Arc<rustls::sign::CertifiedKey>> {
            Some(self.0.clone())
        }
        fn has_certs(&self) -> bool {
            true
        }
    }
    let mut node = Spec::encrypted("node").more("[encryption.trust_policy]\nmode = \"open\"").start();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let attempt = |chain: Vec<CertificateDer<'static>>, key: PrivateKeyDer<'static>| {
        let key = provider.key_provider.load_private_key(key).expect("a key");
        let copied = Copied(Arc::new(rustls::sign::CertifiedKey::new(chain, key)));
        let config = rustls::ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .expect("versions")
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(tls::Credulous(provider.clone())))
            .with_client_cert_resolver(Arc::new(copied));
        handshake(node.port, config).is_some_and(|mut stream| greets(&mut stream, "peer"))
    };
    let ((chain, key), (_, other)) = (identity(), identity());
    assert!(!attempt(chain.clone(), other), "another's certificate without its key");
    assert!(attempt(chain, key), "the control: with its key");
    node.seen("decision=Reject reason=certificate-without-its-key");
}

#[test]
fn d13_a_mistyped_trust_mode_opens_no_door() {
    let spec = Spec::encrypted("node").more("[encryption.trust_policy]\nmode = \"alowlist\"");
    does_not_start(&spec);
    let port = free_port();
    let dir = lay_out("node", port, &[], true, "");
    let path = dir.path().join("config.toml");
    fs::write(&path, fs::read_to_string(&path).expect("read").replace("\"allowlist\"", "\"alowlist\""))
        .expect("written");
    let _upstream = Upstream::start(dir);
    let mut stranger = tls::connect(port, Some(identity())).expect("a channel");
    assert!(greets(&mut stranger, "stranger"), "upstream takes the mistyped mode for open");
}

#[test]
fn d13_a_configuration_that_is_missing_opens_no_door() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut command = Command::new(bin_dir().join("thenodes"));
    let output = command.args(["--config", "missing.toml"]).current_dir(dir.path()).output().expect("runs");
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(78), "{error}");
    assert!(error.contains("missing.toml"), "{error}");
    // Upstream's own program listens for everybody, in plaintext, at its default port.
    let mut upstream = Stock::start(dir.path(), "missing.toml");
    upstream.expect(&["listener_bind"], || ());
    let mut hello = String::new();
    let stream = TcpStream::connect(("127.0.0.1", 50000)).expect("it listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("set");
    BufReader::new(stream).read_line(&mut hello).expect("it greets");
    assert!(hello.contains(r#""realm":{"name":"default""#), "{hello}");
}

#[test]
fn d15_no_path_is_made_of_a_fingerprint() {
    let spec = Spec::encrypted("node").more("[encryption.trust_policy]\nmode = \"observe\"");
    let mut node = spec.start();
    let attempt = |word: &str| node.json(&["trust", "promote", word]);
    // Something to find, should anybody look for it there.
    let observed = node.dir.path().join("pki/observed/certs");
    fs::write(node.dir.path().join("secret.pem"), "x").expect("written");
    for word in ["../../../secret", "../secret", "/etc/passwd", "......", ""] {
        assert_eq!(attempt(word)["error"]["code"], "NOT_FOUND", "{word}");
    }
    assert!(!node.dir.path().join("pki/trusted").exists(), "nothing is trusted, and nothing written");
    // The control: one that was kept.
    drop(tls::connect(node.port, Some(identity())));
    node.seen("reason=observe-only");
    let kept = fs::read_dir(observed).expect("there").flatten().map(|file| file.path());
    let kept = kept.filter(|path| path.extension().is_some_and(|end| end == "pem")).collect::<Vec<_>>();
    let fingerprint = kept[0].file_stem().expect("a name").to_string_lossy().into_owned();
    assert_eq!(node.json(&["trust", "promote", &fingerprint])["trusted"][0], fingerprint.as_str());
}

#[test]
fn d16_what_is_configured_has_its_effect_or_is_reported() {
    const REJECTED: &str = "pki/rejected";
    let kept = |dir: &Path| fs::read_dir(dir.join(REJECTED)).map_or(0, Iterator::count);
    let more = format!("[encryption.paths]\nrejected_dir = \"{REJECTED}\"\n[network.udp]\nenabled = true\n");
    let mut node = Spec::encrypted("node").more(&more).start();
    let reported = node.seen("config_key_without_effect");
    assert!(reported.contains("network.udp"), "{reported}");
    assert!(
        tls::connect(node.port, Some(identity())).is_none_or(|mut stream| !greets(&mut stream, "stranger"))
    );
    node.seen("reason=not-in-allowlist");
    assert_eq!(kept(node.dir.path()), 1);
    let port = free_port();
    let dir = lay_out("node", port, &[], true, "");
    let path = dir.path().join("config.toml");
    let text = fs::read_to_string(&path).expect("read");
    let paths = format!("[encryption.paths]\nrejected_dir = \"{REJECTED}\"");
    fs::write(&path, text.replace("[encryption.paths]", &paths)).expect("written");
    let upstream = Upstream::start(dir);
    assert!(tls::connect(port, Some(identity())).is_none_or(|mut stream| !greets(&mut stream, "stranger")));
    upstream.logged("not-in-allowlist");
    assert_eq!(kept(upstream.dir.path()), 0, "upstream keeps nothing there");
}

#[test]
fn d34_keys_are_not_read_again_for_each_connection() {
    // Whether somebody new is greeted when the files are away.
    fn greets_without_files(dir: &Path, port: u16) -> bool {
        assert!(tls::connect(port, Some(identity())).is_some_and(|mut stream| greets(&mut stream, "before")));
        fs::remove_dir_all(dir.join("pki/own")).expect("removed");
        let stream = std::panic::catch_unwind(|| tls::connect(port, Some(identity())));
        stream.ok().flatten().is_some_and(|mut stream| greets(&mut stream, "after"))
    }
    let node = Spec::encrypted("node").more("[encryption.trust_policy]\nmode = \"open\"").start();
    assert!(greets_without_files(node.dir.path(), node.port));
    let port = free_port();
    let dir = lay_out("node", port, &[], true, "");
    let path = dir.path().join("config.toml");
    fs::write(&path, fs::read_to_string(&path).expect("read").replace("\"allowlist\"", "\"open\""))
        .expect("written");
    let upstream = Upstream::start(dir);
    assert!(!greets_without_files(upstream.dir.path(), port));
}
