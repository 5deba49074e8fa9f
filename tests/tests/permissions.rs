//! What a plugin may do: nothing that its manifest did not ask for and the operator did not allow; and every refusal says which
//! line would change it.

use serde_json::Value;
use std::fs;
use thenodes_tests::{hostile, plugin, Spec, TestNode};

/// A manifest of this name; its first three lines are the same for all.
fn manifest(name: &str, rest: &str) -> Vec<u8> {
    format!("schema = 1\nname = \"{name}\"\nversion = \"1.0.0\"\n{rest}").into_bytes()
}

/// `[[permission]]` entries without scopes.
fn wishes(names: &[&str]) -> String {
    names.iter().map(|name| format!("[[permission]]\nname = \"{name}\"\n")).collect()
}

/// Starts a node with these files in its plugin directory.
fn start(spec: &Spec, files: &[(&str, Vec<u8>)]) -> TestNode {
    let dir = spec.lay_out();
    for (file, bytes) in files {
        let path = dir.path().join("plugins").join(file);
        fs::create_dir_all(path.parent().expect("a parent")).expect("a directory");
        fs::write(path, bytes).expect("a file");
    }
    spec.start_in(dir)
}

fn library(name: &str) -> Vec<u8> {
    fs::read(plugin(name)).expect("the plugin is built")
}

/// A node with one plugin in a directory of its own.
fn one(spec: &Spec, name: &str, library: Vec<u8>, rest: &str) -> TestNode {
    let files = [(format!("{name}/plugin.toml"), manifest(name, rest)), (format!("{name}/lib.so"), library)];
    start(spec, &files.each_ref().map(|(file, bytes)| (file.as_str(), bytes.clone())))
}

fn dialing(id: &str, node: &TestNode) -> Spec {
    Spec::new(id).top(&format!("bootstrap_nodes = [\"127.0.0.1:{}\"]", node.port))
}

fn permissions(node: &TestNode, name: &str) -> Value {
    node.json(&["plugin", "permissions", name])
}

#[test]
fn a_manifest_that_asks_for_nothing_gets_nothing_and_each_refusal_names_its_line() {
    let mut node = one(&Spec::new("nothing"), "hostile", hostile("defaults:all"), "");
    for word in ["config.defaults", "command.register"] {
        node.seen(&format!("permission={word}"));
        let line = format!("to allow it, add [[permission]] name = \\\"{word}\\\" to plugins/hostile/plugin.toml (after line 3)");
        node.seen(&line);
    }
    assert_eq!(node.status("hostile")["state"], "Ready", "it runs, it may just do nothing");
    let error = node.prompt("hostile", "good").expect_err("it has no prompt");
    assert!(error.starts_with("NOT_FOUND"), "{error}");
    assert_eq!(permissions(&node, "hostile")["permissions"].as_array().map(Vec::len), Some(0));
}

#[test]
fn each_permission_opens_its_own_door_and_no_other() {
    let doors = ["message.send", "message.receive", "peers.read", "events.emit", "events.subscribe"];
    for open in doors {
        let files = [
            ("hostile/plugin.toml", manifest("hostile", &wishes(&["command.register", open]))),
            ("hostile/lib.so", library("hostile")),
            ("libecho.so", library("echo")),
        ];
        let mut a = start(&Spec::new("door-a"), &files);
        let b = dialing("door-b", &a).with("hostile").start();
        a.seen("app_handshake_success");
        let closed = |a: &mut TestNode, door: &str, method: &str| {
            let denied = a.seen(&format!("permission={door} method={method}"));
            assert!(denied.contains("name=hostile action=permission_denied"), "{denied}");
            assert!(denied.contains("plugins/hostile/plugin.toml (after line 7)"), "{denied}");
        };
        // Send.
        let sent = a.prompt("hostile", "say hi");
        assert_eq!(sent.as_deref(), Ok(if open == "message.send" { "1" } else { "(unhandled)" }), "{open}");
        if open != "message.send" {
            closed(&mut a, "message.send", "peers.broadcast");
        }
        // Look at peers.
        let seen = a.prompt("hostile", "good");
        assert_eq!(seen.as_deref(), Ok(if open == "peers.read" { "42 1" } else { "42 0" }), "{open}");
        if open != "peers.read" {
            closed(&mut a, "peers.read", "peers.list");
        }
        let denied = if matches!(open, "message.send" | "peers.read") { 1 } else { 2 };
        assert_eq!(a.status("hostile")["counters"]["denied"], denied, "{open}");
        // Emit.
        assert_eq!(a.prompt("hostile", "emit").as_deref(), Ok("emitted"));
        if open == "events.emit" {
            a.seen("action=hostile_was_here");
        } else {
            closed(&mut a, "events.emit", "events.emit");
            assert!(!a.heard().contains("action=hostile_was_here"), "{open}");
        }
        // Listen.
        assert_eq!(a.prompt("hostile", "sink").as_deref(), Ok("registered"));
        if open != "events.subscribe" {
            closed(&mut a, "events.subscribe", "events.subscribe");
        }
        assert_eq!(a.json(&["plugin", "restart", "echo"])["plugin"]["state"], "Ready");
        // Receive. The neighbour, which may, answers the same message.
        assert_eq!(b.prompt("hostile", "say sin forge").as_deref(), Ok("1"));
        a.seen("door-b sin forge");
        for (door, text) in [("events.subscribe", "heard that echo is ready"), ("message.receive", "forged")]
        {
            if open == door {
                logged(&a, "hostile", text);
            }
        }
        let logs = a.logs("hostile").join("\n");
        assert_eq!(logs.contains("heard that"), open == "events.subscribe", "{open}: {logs}");
        assert_eq!(logs.contains("forged"), open == "message.receive", "{open}: {logs}");
    }
}

/// Waits for a line in a plugin's log.
fn logged(node: &TestNode, name: &str, text: &str) {
    let begun = std::time::Instant::now();
    while !node.logs(name).iter().any(|line| line.contains(text)) {
        assert!(begun.elapsed() < thenodes_tests::PATIENCE, "{name}: {:?}", node.logs(name));
    }
}

#[test]
fn a_prompt_and_suggestions_have_doors_of_their_own() {
    let mut node =
        one(&Spec::new("suggests"), "hostile", hostile("defaults:all"), &wishes(&["config.defaults"]));
    node.seen("plugin_config_defaults_applied");
    node.seen("permission=command.register");
    assert!(node.prompt("hostile", "good").is_err());
    let other = "[[permission]]\nname = \"command.register\"\nscope = [\"other\"]\n";
    let mut node = one(&Spec::new("prompts"), "hostile", hostile("defaults:all"), other);
    node.seen("add \\\"hostile\\\" to the scope of [[permission]] name = \\\"command.register\\\" in plugins/hostile/plugin.toml:5");
    node.seen("permission=config.defaults");
    assert!(!node.heard().contains("plugin_config_defaults_applied"));
    assert!(node.prompt("hostile", "good").is_err());
    let own = other.replace("other", "hostile");
    let node = one(&Spec::new("prompts"), "hostile", library("hostile"), &own);
    assert_eq!(node.prompt("hostile", "good").as_deref(), Ok("42 0"));
}

#[test]
fn only_a_plugin_that_may_receive_hears_the_peer_it_may_hear() {
    let files = [
        ("all/plugin.toml", manifest("all", &wishes(&["message.receive"]))),
        ("all/lib.so", library("kvstore")),
        ("deaf/plugin.toml", manifest("deaf", "")),
        ("deaf/lib.so", library("kvstore")),
        (
            "other/plugin.toml",
            manifest("other", "[[permission]]\nname = \"message.receive\"\nscope = [\"hear-c\"]\n"),
        ),
        ("other/lib.so", library("kvstore")),
        (
            "some/plugin.toml",
            manifest("some", "[[permission]]\nname = \"message.receive\"\nscope = [\"hear-b\"]\n"),
        ),
        ("some/lib.so", library("kvstore")),
    ];
    let mut a = start(&Spec::new("hear-a"), &files);
    let b = dialing("hear-b", &a).with("kvstore").start();
    a.seen("app_handshake_success");
    assert_eq!(b.prompt("kv", "put k v").as_deref(), Ok("ok (1 peers)"));
    // The plugins are served in the order of their names; `some` is the last.
    for name in ["all", "some"] {
        logged(&a, name, "k put by hear-b");
    }
    // Calls of other kinds go on meanwhile: health is asked for now and then.
    let messages = |name| a.metric(&format!("plugin_calls_total{{plugin=\"{name}\",method=\"message\"}}"));
    assert_eq!(b.prompt("kv", "put k w").as_deref(), Ok("ok (1 peers)"));
    for name in ["all", "some"] {
        let begun = std::time::Instant::now();
        while messages(name) != Some(2.0) {
            assert!(begun.elapsed() < thenodes_tests::PATIENCE, "{name} was asked {:?}", messages(name));
        }
    }
    for name in ["deaf", "other"] {
        assert!(!a.logs(name).iter().any(|line| line.contains("put by")), "{name}: {:?}", a.logs(name));
        assert_eq!(messages(name), None, "{name} was not even asked");
    }
}

#[test]
fn a_scope_narrows_a_broadcast_to_its_peers_and_a_deny_narrows_it_further() {
    for (scope, deny, reached) in [
        ("", "", "ok (2 peers)"),
        ("scope = [\"scope-b\"]", "", "ok (1 peers)"),
        ("", "message.send:scope-c", "ok (1 peers)"),
        ("scope = [\"scope-b\"]", "message.send:scope-b", "PERMISSION_DENIED"),
        ("", "message.send", "PERMISSION_DENIED"),
    ] {
        let deny = if deny.is_empty() { String::new() } else { format!("{deny:?}") };
        let spec = Spec::new("scope-a").more(&format!("[plugins.for.kvstore]\ndeny = [{deny}]"));
        // Optional, so that it starts with whatever is left.
        let rest = wishes(&["command.register", "message.send"]) + scope + "\noptional = true\n";
        let files = [
            ("kvstore/plugin.toml", manifest("kvstore", &rest)),
            ("kvstore/lib.so", library("kvstore")),
            ("libhostile.so", library("hostile")),
        ];
        let mut a = start(&spec, &files);
        let mut b = dialing("scope-b", &a).start();
        let mut c = dialing("scope-c", &a).start();
        for node in [&mut b, &mut c] {
            node.seen("app_handshake_success");
        }
        a.seen("node_id=scope-b");
        a.seen("node_id=scope-c");
        let answer = a.prompt("kv", "put k v").expect("the plugin lives");
        assert!(answer.contains(reached), "{scope} {deny}: {answer}");
        if !answer.starts_with("ok") {
            let denied = a.seen("permission=message.send");
            assert!(denied.contains("[plugins.for.kvstore] deny"), "{denied}");
        }
        // What another plugin sends to both comes behind everything before it.
        assert_eq!(a.prompt("hostile", "say after").as_deref(), Ok("2"));
        for (node, hears) in [(&mut b, answer.starts_with("ok")), (&mut c, reached == "ok (2 peers)")] {
            node.seen("scope-a after");
            assert_eq!(node.heard().contains("kind=kvstore.put"), hears, "{scope} {deny}");
        }
    }
}

#[test]
fn a_required_permission_that_is_not_allowed_keeps_the_plugin_down_until_the_line_it_names_is_written() {
    let rest =
        wishes(&["command.register"]) + "[[permission]]\nname = \"fs.read\"\nscope = [\"/usr/share\"]\n";
    let mut node = one(&Spec::new("required"), "echo", library("echo"), &rest);
    let failed = node.seen("name=echo action=failed");
    assert!(
        failed.contains(
            "cause=permissions plugins/echo/plugin.toml:7: requires fs.read:/usr/share and was not given it"
        ),
        "{failed}"
    );
    let status = node.status("echo");
    assert_eq!(
        (status["state"].as_str(), status["last_death"]["cause"].as_str()),
        (Some("Failed"), Some("permissions"))
    );
    assert!(node.prompt("echo", "x").is_err());
    // An order to start again changes nothing: the configuration did not.
    assert_eq!(node.json(&["plugin", "restart", "echo"])["plugin"]["state"], "Failed");
    let value = permissions(&node, "echo");
    let why = value["permissions"][1]["why"].as_str().expect("a reason");
    let line = why.strip_prefix("to allow it, write ").expect("a line to write");
    let (table, line) = line.split_once(' ').expect("a table and a line");
    let spec = Spec::new("required").more(&format!("{table}\n{line}"));
    let node = one(&spec, "echo", library("echo"), &rest);
    assert_eq!(node.prompt("echo", "x").as_deref(), Ok("x"), "{table} {line}");
    assert_eq!(permissions(&node, "echo")["permissions"][1]["verdict"], "granted");
}

#[test]
fn an_optional_permission_may_be_missing_and_the_operator_hears_of_it() {
    let rest = wishes(&["command.register"])
        + "[[permission]]\nname = \"fs.read\"\nscope = [\"/srv/data\"]\nreason = \"imports\"\noptional = true\n"
        + "[[permission]]\nname = \"kv.read\"\noptional = true\n";
    let mut node = one(&Spec::new("optional"), "echo", library("echo"), &rest);
    assert_eq!(node.prompt("echo", "x").as_deref(), Ok("x"));
    let event = node.seen("name=echo action=permission_not_granted");
    assert!(
        event.contains("fs.read:/srv/data (plugins/echo/plugin.toml:7) is optional: starts without it")
            && event.contains("[plugins.for.echo] allow"),
        "{event}"
    );
    node.seen("name=echo action=manifest_key_without_effect");
    let value = permissions(&node, "echo");
    assert_eq!(
        (value["starts"].as_bool(), value["manifest"].as_str()),
        (Some(true), Some("plugins/echo/plugin.toml"))
    );
    let verdicts: Vec<_> = value["permissions"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|wish| wish["verdict"].as_str())
        .collect();
    assert_eq!(verdicts, [Some("granted"), Some("denied"), Some("denied")]);
    let text = String::from_utf8_lossy(&node.command(&["plugin", "permissions", "echo"]).stdout).into_owned();
    assert!(
        text.contains("denied    fs.read: asked /srv/data, optional (plugins/echo/plugin.toml:7)"),
        "{text}"
    );
    assert!(text.contains("reason: imports") && text.contains("this release does not serve it"), "{text}");
}

#[test]
fn an_operator_gives_more_than_was_asked_for_only_on_purpose() {
    let allow = "[plugins.for.kvstore]\nallow = [\"message.send\"]\n";
    let rest = wishes(&["command.register"]);
    let mut node = one(&Spec::new("narrow").more(allow), "kvstore", library("kvstore"), &rest);
    node.seen("action=allow_without_effect");
    let answer = node.prompt("kv", "put a 1").expect("the plugin lives");
    assert!(answer.contains("PERMISSION_DENIED") && answer.contains("(after line 5)"), "{answer}");
    assert_eq!(node.status("kvstore")["counters"]["denied"], 1);
    let spec = Spec::new("wide").more(&format!("{allow}[plugins.policy]\nwiden = true"));
    let mut node = one(&spec, "kvstore", library("kvstore"), &rest);
    node.seen("action=permission_widened");
    assert_eq!(node.prompt("kv", "put a 1").as_deref(), Ok("ok (0 peers)"));
}

#[test]
fn a_policy_holds_for_every_manifest_and_the_defaults_only_without_one() {
    let spec = Spec::new("policy")
        .more("[plugins.policy]\npermissions = [\"command.register\"]\n[plugins.defaults]\npermissions = [\"message.send\"]\n[plugins.for.nobody]\ndeny = [\"random\"]");
    let rest = wishes(&["command.register", "message.send"]) + "optional = true\n";
    let files = [
        ("kvstore/plugin.toml", manifest("kvstore", &rest)),
        ("kvstore/lib.so", library("kvstore")),
        ("libecho.so", library("echo")),
    ];
    let mut node = start(&spec, &files);
    let answer = node.prompt("kv", "put a 1").expect("the plugin lives");
    assert!(
        answer.contains("add \"message.send\" to [plugins.for.kvstore] allow in the configuration"),
        "{answer}"
    );
    let denied = node.seen("permission=command.register prompt=\\\"echo\\\"");
    assert!(
        denied.contains("add \\\"command.register:echo\\\" to [plugins.defaults] permissions"),
        "{denied}"
    );
    assert!(node.prompt("echo", "x").is_err());
    node.seen("plugins.for.nobody: there is no such plugin");
}

#[test]
fn a_bad_manifest_is_named_with_line_and_column_and_keeps_nobody_else_down() {
    let files = [
        ("a/plugin.toml", manifest("a", "[[permission]]\nname = \"random\"\nresaon = \"typing error\"\n")),
        ("a/lib.so", library("echo")),
        ("b/plugin.toml", manifest("b", "[[permission]]\nname = \"kv.write\"\n")),
        ("b/lib.so", library("echo")),
        ("c/plugin.toml", manifest("c", "min_host = \"99.0.0\"\n")),
        ("c/lib.so", library("echo")),
        ("d/plugin.toml", b"\xff\xfe".to_vec()),
        ("d/lib.so", library("echo")),
        ("e/plugin.toml", vec![b'#'; 300 * 1024]),
        ("e/lib.so", library("echo")),
        ("libecho.so", library("echo")),
        ("libmk.so", library("kvstore")),
        ("twice/plugin.toml", manifest("mk", "")),
        ("twice/lib.so", library("echo")),
    ];
    let mut node = start(&Spec::new("bad"), &files);
    for expected in [
        "CONFIG_ERROR: plugins/a/plugin.toml:6:1: unknown field `resaon`",
        "CONFIG_ERROR: plugins/b/plugin.toml:5:8: this release does not serve kv.write; write optional = true",
        "INCOMPATIBLE: plugins/c/plugin.toml:4: needs a node of version 99.0.0 or later",
        "CONFIG_ERROR: plugins/d/plugin.toml: cannot be read",
        "CONFIG_ERROR: plugins/e/plugin.toml: 307200 bytes; a manifest has at most 262144",
        // Neither gets what the operator gives to that name.
        "plugins/twice/lib.so: another plugin is named mk too: plugins/libmk.so",
        "plugins/libmk.so: another plugin is named mk too: plugins/twice/lib.so",
    ] {
        let line = node.seen(expected);
        assert!(line.contains("action=rejected"), "{line}");
    }
    assert_eq!(node.prompt("echo", "x").as_deref(), Ok("x"));
    let list = node.json(&["plugin", "list"]);
    assert_eq!(
        (list["plugins"].as_array().map(Vec::len), list["rejected"].as_array().map(Vec::len)),
        (Some(1), Some(7))
    );
}

#[test]
fn a_manifest_lies_beside_its_library_in_three_ways() {
    let prompt = wishes(&["command.register"]);
    let files = [
        ("anything/plugin.toml", manifest("first", &prompt)),
        ("anything/libwhatever.so", library("echo")),
        ("libkvstore.so", library("kvstore")),
        ("libkvstore.plugin.toml", manifest("second", &prompt)),
        ("libhostile.so", library("hostile")),
        ("plugin.toml", manifest("nobody", "")),
    ];
    let mut node = start(&Spec::new("lying"), &files);
    assert_eq!(permissions(&node, "first")["manifest"], "plugins/anything/plugin.toml");
    assert_eq!(permissions(&node, "second")["manifest"], "plugins/libkvstore.plugin.toml");
    assert_eq!(permissions(&node, "hostile")["manifest"], Value::Null);
    node.seen("plugins/plugin.toml: it could belong to any library here");
    assert_eq!(node.prompt("echo", "x").as_deref(), Ok("x"));
    let node = start(
        &Spec::new("single"),
        &[("plugin.toml", manifest("only", &prompt)), ("libecho.so", library("echo"))],
    );
    assert_eq!(node.status("only")["state"], "Ready");
    assert_eq!(node.prompt("echo", "x").as_deref(), Ok("x"));
}

#[test]
fn the_tightest_limit_holds_for_one_plugin_and_not_for_its_neighbour() {
    let spec =
        Spec::new("limits").more("[plugins.limits]\nmemory_mb = 96\n[plugins.for.tight.limits]\nfds = 32");
    let files = [
        ("tight/plugin.toml", manifest("tight", "[limits]\nmemory_mb = 64\nthreads = 64\n")),
        ("tight/lib.so", library("echo")),
        ("libecho.so", library("echo")),
    ];
    let node = start(&spec, &files);
    let tight = node.status("tight");
    assert_eq!(tight["limits"], serde_json::json!({ "memory_mb": 64, "threads": 16, "fds": 32 }));
    assert_eq!(
        node.status("echo")["limits"],
        serde_json::json!({ "memory_mb": 96, "threads": 16, "fds": 64 })
    );
    // And the kernel knows: the runner is the last of its processes.
    let pid = tight["pid"].as_u64().expect("a pid") as u32;
    let runner = *thenodes_tests::descendants(pid).last().expect("a runner");
    let limits = fs::read_to_string(format!("/proc/{runner}/limits")).expect("its limits");
    let files = limits.lines().find(|line| line.starts_with("Max open files")).expect("a line");
    assert_eq!(files.split_whitespace().nth(3), Some("32"), "{files}");
}
