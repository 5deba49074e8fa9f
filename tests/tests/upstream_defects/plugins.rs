//! What plugins may do, and what they may not do to others.

use super::{answers, text, LONG};
use std::fs;
use std::io::{BufRead, BufReader};
use std::net::TcpStream;
use std::os::unix::process::ExitStatusExt;
use std::time::Instant;
use thenodes_tests::peer::Peer;
use thenodes_tests::upstream::{free_port, lay_out, Upstream};
use thenodes_tests::{bin_dir, Spec, PATIENCE};

/// A node of upstream's with a plugin that its own loader opened.
fn theirs_with_a_plugin() -> (Upstream, u16) {
    let port = free_port();
    let dir = lay_out("node", port, &[], false, "");
    let plugins = dir.path().join("plugins");
    fs::create_dir(&plugins).expect("a directory");
    fs::copy(bin_dir().join("libupstream_plugin.so"), plugins.join("libupstream_plugin.so")).expect("copied");
    (Upstream::start(dir), port)
}

#[test]
fn d18_a_panic_of_a_plugin_is_the_plugins_and_not_the_nodes() {
    let node = Spec::new("node").with("hostile").start();
    let error = node.prompt("hostile", "panic").expect_err("a panic");
    assert!(error.contains("a panic on purpose"), "{error}");
    let mut peer = Peer::silent_at(node.port, "other", "null");
    assert!(answers(&mut peer, PATIENCE), "the node is as it was");
    let (mut upstream, port) = theirs_with_a_plugin();
    let mut peer = Peer::silent_at(port, "other", "null");
    assert!(answers(&mut peer, PATIENCE));
    peer.say(&text("other", "panic"));
    assert_eq!(upstream.ended().signal(), Some(nix::libc::SIGABRT), "upstream dies of a plugin's panic");
}

#[test]
fn d19_what_a_plugin_emits_is_among_the_nodes_events() {
    let mut node = Spec::new("node").with("hostile").start();
    assert_eq!(node.prompt("hostile", "emit").as_deref(), Ok("emitted"));
    node.expect("action=hostile_was_here");
    let (mut upstream, port) = theirs_with_a_plugin();
    let mut peer = Peer::silent_at(port, "other", "null");
    peer.say(&text("other", "emit"));
    upstream.expect("emitted");
    // Events are written in their order: what comes after it is there, and it is not.
    peer.say(&text("other", "the next one"));
    let log = upstream.logged("the next one");
    assert!(log.contains("message_text") && !log.contains("plugin_was_here"), "{log}");
    // Nor is it left out for being a system event: the node's own are there. The one of the network with the same action comes before it.
    drop(peer);
    let log = upstream.logged(r#""type":"system""#);
    assert!(log.contains("peer_disconnected") && !log.contains("plugin_was_here"), "{log}");
}

#[test]
fn d21_a_plugin_that_blocks_stops_no_greeting() {
    fn blocks(peers: &mut [Peer]) {
        for peer in peers.iter_mut() {
            let id = peer.id.clone();
            peer.say(&text(&id, "block"));
        }
    }
    fn greets(port: u16) -> bool {
        let begun = Instant::now();
        // With all of its threads held, a runtime accepts and greets nobody.
        let stream = TcpStream::connect(("127.0.0.1", port)).expect("the kernel accepts");
        stream.set_read_timeout(Some(LONG)).expect("set");
        let mut line = String::new();
        let greeted = BufReader::new(stream).read_line(&mut line).is_ok_and(|count| count > 0);
        greeted && begun.elapsed() < LONG
    }
    let many = |port| (0..8).map(|n| Peer::silent_at(port, &format!("p{n}"), "null")).collect::<Vec<_>>();
    let node = Spec::new("node").with_hostile("hostile", "message:hang").start();
    let mut peers = many(node.port);
    peers.iter_mut().for_each(|peer| assert!(answers(peer, PATIENCE)));
    blocks(&mut peers);
    assert!(greets(node.port));
    // A runtime with one thread, which one message holds for longer than anybody here waits; one with more takes more of them.
    let port = free_port();
    let mut upstream = Upstream::start_with_threads(lay_out("node", port, &[], false, ""), 1);
    let mut peers = many(port);
    peers.iter_mut().for_each(|peer| assert!(answers(peer, PATIENCE)));
    blocks(&mut peers);
    upstream.expect(r#"TEXT\":\"block"#);
    assert!(!greets(port));
}

#[test]
fn d18_what_a_plugin_does_with_the_runtime_is_its_own_affair() {
    // The SDK's runtime is the plugin's own; `spawn` and timers work, which a plugin that speaks by itself shows, and so do files.
    let node = Spec::new("node").with_hostile("talker", "say:from a task").with("hostile").start();
    let mut peer = Peer::silent_at(node.port, "other", "null");
    peer.expect("from a task");
    drop(peer);
    for word in ["spawn", "sleep", "file"] {
        let (mut upstream, port) = theirs_with_a_plugin();
        let mut peer = Peer::silent_at(port, "other", "null");
        assert!(answers(&mut peer, PATIENCE));
        peer.say(&text("other", word));
        let status = upstream.ended();
        assert_eq!(status.signal(), Some(nix::libc::SIGABRT), "{word}: upstream dies of it: {status}");
    }
}

#[test]
fn d20_a_plugin_of_another_abi_is_refused_by_the_host_and_not_by_itself() {
    let elf = fs::read(thenodes_tests::plugin("echo")).expect("built");
    let node = Spec::new("node")
        .with("echo")
        .with_hostile("later", "abi:version")
        .with_hostile("smaller", "abi:small")
        .with_file("libcut.so", elf[..elf.len() / 2].to_vec())
        .start();
    for (name, reason) in [("later", "ABI version 99"), ("smaller", "a plugin table of 16 bytes")] {
        let status = node.status(name);
        let text = status["last_death"]["text"].as_str().unwrap_or_default();
        assert!(status["state"] == "Failed" && text.contains(reason), "{status}");
    }
    assert!(node.json(&["plugin", "list"])["rejected"].to_string().contains("libcut.so"));
    assert_eq!(node.prompt("echo", "the control").as_deref(), Ok("the control"));
}

#[test]
fn d22_a_bad_file_or_a_taken_prompt_stops_no_other_plugin() {
    let mut node = Spec::new("node")
        .with_file("liba.so", b"no library".to_vec())
        .with("echo")
        .with_hostile("first", "none:none")
        .with_hostile("second", "none:none")
        .start();
    assert_eq!(node.prompt("echo", "hi").as_deref(), Ok("hi"));
    assert!(node.json(&["plugin", "list"])["rejected"].to_string().contains("liba.so"));
    // Both want the prompt `hostile`: one has it, and everybody is told.
    let told = node.seen("action=prompt_conflict");
    assert!(told.contains("name=second") && told.contains("plugin first's"), "{told}");
    assert!(node.prompt("hostile", "hold 1").is_ok());
    // A directory that is missing is one without plugins.
    let spec = Spec::new("bare");
    let dir = spec.lay_out();
    fs::remove_dir(dir.path().join("plugins")).expect("empty");
    let bare = spec.start_in(dir);
    assert_eq!(bare.json(&["plugin", "list"])["plugins"].as_array().map(Vec::len), Some(0));
}

#[test]
fn d23_a_plugin_speaks_unasked_and_hears_what_is_for_it_alone() {
    let node =
        Spec::new("node").with_hostile("talker", "say:unasked").with("courier").more(super::RELAY).start();
    let mut a = Peer::greeted(&node, "a");
    let mut b = Peer::greeted(&node, "b");
    a.expect("unasked");
    // A question for peers, a probe, and a frame that only passes through.
    a.say(r#"{"from":"a","to":"node","msg_type":{"PEER_REQUEST":{"want":4}},"payload":null,"realm":null}"#);
    a.say(&thenodes_tests::peer::frame("a", "b", 1, "aGk="));
    b.expect("RELAY_FWD");
    a.say(&text("a", "for the plugins"));
    let begun = std::time::Instant::now();
    loop {
        let book = node.prompt("courier", "got").expect("it lives");
        if book.contains("for the plugins") {
            return assert_eq!(book, "a: for the plugins", "and nothing else");
        }
        assert!(begun.elapsed() < PATIENCE, "{book}");
        std::thread::park_timeout(std::time::Duration::from_millis(20));
    }
}
