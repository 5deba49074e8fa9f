//! What an operator may write, what is refused and where the refusal points.

use super::*;
use thenodes::config::{EncryptionConfig, LoggingConfig, NodeConfig};

fn parse(text: &str) -> Result<Config, ConfigError> {
    Raw::parse(Path::new("c.toml"), text)?.validate()
}

#[test]
fn an_empty_file_is_safe() {
    let config = parse("").expect("valid");
    let encryption = config.encryption.expect("TLS is on");
    assert!(encryption.mtls);
    assert_eq!(encryption.policy.mode, TrustMode::Allowlist);
    assert!(encryption.policy.reject_expired);
    assert_eq!(config.plugins.required, Required::Full);
}

#[test]
fn only_a_written_false_turns_tls_off() {
    assert!(parse("[encryption]\nenabled = false").expect("valid").encryption.is_none());
    assert!(parse("[encryption]").expect("valid").encryption.is_some());
}

#[test]
fn errors_name_file_line_and_column() {
    let cases = [
        ("port = 99999", "c.toml:1:8"),
        ("port = \"x\"", "c.toml:1:8"),
        ("\nprot = 1", "c.toml:2:1"),
        ("[node]\nid = \"\"", "c.toml:2:6"),
        ("[node]\nid = \"a b\"", "c.toml:2:6"),
        ("[encryption.trust_policy]\nmode = \"alowlist\"", "c.toml:2:8"),
        ("[encryption]\nmtls = false", "c.toml:2:8"),
        ("[encryption]\nbackend = \"none\"", "c.toml:2:11"),
        ("[encryption.trust_policy]\nmode = \"ca\"\naccept_self_signed = true", "c.toml:3:22"),
        ("bootstrap_nodes = [\"a:1\", \"b\"]", "c.toml:1:27"),
        ("bind_address = \"everywhere\"", "c.toml:1:16"),
        ("[plugins.sandbox]\nrequired = \"none\"", "c.toml:2:12"),
        ("[plugins.limits]\nthreads = 0", "c.toml:2:11"),
        ("[plugins.defaults]\npermissions = [\"root\"]", "c.toml:2:16"),
        ("[plugins.policy]\npermissions = [\"random\", \"fs.read\"]", "c.toml:2:26"),
        ("[plugins.policy]\nwide = true", "c.toml:2:1"),
        ("[plugins.for.echo]\nallow = [\"fs.read:/proc/self\"]", "c.toml:2:10"),
        ("[plugins.for.echo]\ndeny = [\"kv.read\"]", "c.toml:2:9"),
        ("[plugins.for.\"no name\"]\ndeny = []", "c.toml:1:14"),
        ("[plugins.for.echo]\nlimits.threads = 1", "c.toml:2:18"),
        ("[realm]\nname = \"x\"", "c.toml:1:1"),
        ("[realm\n", "c.toml:1:7"),
    ];
    for (text, place) in cases {
        let error = parse(text).expect_err(text).to_string();
        assert!(error.starts_with(place), "{text:?}: {error}");
    }
}

#[test]
fn a_named_file_that_does_not_exist_is_an_error() {
    let error = Config::load(Path::new("/nonexistent/c.toml")).expect_err("no file");
    assert!(error.to_string().contains("/nonexistent/c.toml"), "{error}");
}

/// The configuration blocks of the documents that this project comes from, as they stand there.
#[test]
fn the_seeds_configurations_are_read() {
    let tls = "[encryption]\nenabled = true\nmtls = true                # require and present client certs\n\n  [encryption.paths]\n  own_certificate  = \"pki/own/cert.pem\"\n  own_private_key  = \"pki/own/key.pem\"\n  trusted_cert_dir = \"pki/trusted/certs\"   # used as root store for client cert verification\n\n  [encryption.trust_policy]\n  mode = \"allowlist\"       # open | observe | allowlist | tofu | hybrid (hybrid placeholder)\n  store_new_certs = \"observed\"  # (optional for tofu mode)\n\n  [encryption.trust_policy.paths]\n  observed_dir = \"pki/observed/certs\"\n";
    let logging = "[logging]\njson_path = \"logs/custom_audit.jsonl\"  # JSON lines audit file (rotated)\njson_max_bytes = 10485760               # 10 MB before rotation (default 5 MB)\njson_rotate = 5                         # keep 5 rotated files (default 3)\ndisable_console = false                 # set true to disable console sink\n";
    let node = "[node]\nstate_dir = \"data/nodeA\"   # directory where runtime state (node_id file) is stored\nid_file = \"node_id\"         # filename inside state_dir\n# id = \"my-static-node\"     # uncomment to force a fixed id\nallow_ephemeral = true       # if persistence fails, allow an in-memory id\n";
    let types = "[node]\nnode_type = \"daemon\" # optional; free-form string defined by your realm/protocol\n\n[realm_access]\nallowed_node_types = [\"daemon\", \"admin\"] # if set, only these remote types are accepted\n";
    let relay = "[network.relay]\nenabled = true\nstore_forward_enabled = true\nselection_enabled = true          # Enable deterministic relay selection\n";
    let persistence = "[network.persistence]\nenabled = true\npath = \"data/peers.json\"          # Override default path\nmax_entries = 1024                # Maximum stored peers\nttl_secs = 604800                 # 7 days (default)\nsave_interval_secs = 60           # Flush interval\n";
    let realm = "[realm]\nname = \"prod-messaging\"\nversion = \"1\"\n# capabilities = [\"kv\", \"metrics\"]  # optional / future\n";
    for text in [tls, logging, node, types, relay, persistence, realm] {
        if let Err(error) = parse(text) {
            panic!("{text}\n{error}");
        }
    }
    let seed = parse(relay).expect("valid");
    let relaying = &seed.networking.relay;
    assert!(relaying.enabled && relaying.store_forward && relaying.rendezvous, "what it says has its effect");
    let silent = parse("[network.udp]\nenabled = true\n").expect("valid").without_effect;
    assert_eq!(silent, ["network.udp: not in this release"], "an operator is told what has no effect");
}

#[test]
fn the_operator_always_wins_and_a_plugin_never_gets_power_over_the_node() {
    let mut raw =
        Raw::parse(Path::new("c.toml"), "port = 50000\nbootstrap_nodes = [\"a:1\"]").expect("valid");
    let applied = raw.suggest(ConfigDefaults {
        port: Some(4711),
        app_name: Some("x\u{1b}y".into()),
        realm: Some(RealmInfo::new("r", "1")),
        bootstrap_nodes: Some(vec!["evil:1".into()]),
        bootstrap_nodes_extend: Some(vec!["a:1".into(), "b:2".into(), "no port".into()]),
        encryption: Some(EncryptionConfig::default()),
        logging: Some(LoggingConfig { json_path: Some("/etc/x".into()), ..Default::default() }),
        node: Some(NodeConfig {
            id: Some("me".into()),
            node_type: Some("admin".into()),
            ..Default::default()
        }),
        capabilities: Some(vec!["relay".into(), "two words".into()]),
        discovery: None,
    });
    let config = raw.validate().expect("valid");
    assert_eq!(config.port, 50000, "an explicit default is still the operator's");
    assert_eq!(config.bootstrap_nodes, ["a:1", "b:2"]);
    assert_eq!((config.app_name.as_str(), config.realm.name.as_str()), ("xy", "r"));
    assert_eq!((config.node.id, config.node.node_type.as_str()), (None, "admin"));
    assert!(config.encryption.is_some());
    assert_eq!(config.logging.json_path, Path::new("logs/trust_audit.jsonl"));
    assert_eq!(config.capabilities, ["relay"]);
    let refused: Vec<_> = applied.refused.iter().map(|(key, _)| *key).collect();
    assert_eq!(refused, ["port", "bootstrap_nodes", "node", "encryption", "logging"]);
}

#[test]
fn what_plugins_are_given_is_read_with_scopes() {
    let giving = parse(
        "[plugins.policy]\npermissions = [\"random\", \"env.read:LANG\"]\nwiden = true\n[plugins.for.echo]\nallow = [\"net.connect:api.example.com:443\", \"fs.read:/srv/data\"]\ndeny = [\"fs.read\", \"message.send:node-b\"]\n[plugins.for.echo.limits]\nmemory_mb = 32\ntimers = 5",
    )
    .expect("valid");
    assert_eq!(giving.without_effect, ["plugins.for.echo.limits.timers: not enforced in this release"]);
    let giving = giving.plugins.giving;
    let texts = |rules: &[Rule]| rules.iter().map(Rule::to_string).collect::<Vec<_>>();
    assert_eq!((texts(&giving.policy), giving.widen), (vec!["random".into(), "env.read:LANG".into()], true));
    let echo = &giving.by_name[&thenodes_ipc::PluginName::new("echo").expect("a name")];
    assert_eq!(texts(&echo.allow), ["net.connect:api.example.com:443", "fs.read:/srv/data"]);
    assert_eq!(texts(&echo.deny), ["fs.read", "message.send:node-b"]);
    assert_eq!(echo.limits.memory_mb, Some(32));
}

#[test]
fn nothing_written_gives_a_manifest_no_files_no_hosts_no_variables() {
    let giving = parse("").expect("valid").plugins.giving;
    assert!(!giving.widen && giving.by_name.is_empty());
    let power = |rule: &&Rule| {
        !matches!(rule.permission.scoping(), scope::Scoping::None | scope::Scoping::Optional(_))
    };
    assert_eq!(giving.policy.iter().chain(&giving.defaults).find(power), None);
    assert!(!giving.policy.contains(&Permission::PeersWrite.into()));
}

proptest::proptest! {
    #[test]
    fn no_text_panics_the_reader(text in "[a-z\\[\\]=\"\\.\n0-9 ]{0,120}") {
        let _ = parse(&text);
    }
}

#[test]
fn system_calls_come_from_the_configuration_or_a_file_and_only_beside_their_mode() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("calls");
    std::fs::write(&file, "# clocks\ntimes\n\nuname # and names\n").expect("written");
    let table = |lines: &str| {
        parse(&format!("[plugins.sandbox]\n{lines}")).map(|config| config.plugins.giving.seccomp)
    };
    let text = format!("seccomp = \"custom\"\ncalls = [\"pipe2\"]\ncalls_file = {file:?}");
    let (mode, calls) = table(&text).expect("valid");
    assert_eq!((mode.word(), calls), ("custom", vec!["pipe2".to_owned(), "times".into(), "uname".into()]));
    assert_eq!(table("").expect("valid").0.word(), "strict");
    for (wrong, why) in [
        ("seccomp = \"none\"", "no such mode"),
        ("calls = [\"uname\"]", "without seccomp"),
        ("seccomp = \"custom\"\ncalls = [\"../x\"]", "not the name"),
        ("seccomp = \"custom\"\ncalls_file = \"/nonexistent\"", "cannot be read"),
    ] {
        let error = table(wrong).expect_err(wrong).to_string();
        assert!(error.contains(why), "{wrong}: {error}");
    }
}
