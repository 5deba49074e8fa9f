//! A real upstream node (`thenodes` 0.4.0 from crates.io) that tests can drive through pipes.
//!
//! Why it exists: the only proof that our node speaks upstream's protocol is a conversation with upstream's own code.
//! The stock binary cannot hold one: it has no command to send a message and shows only part of what it receives.
//! So this program embeds upstream as a library, wired like upstream's `main.rs`, adds one plugin that prints every
//! message dispatched to plugins, and takes commands on stdin.
//!
//! `upstream-peer --config FILE`, where FILE is an upstream configuration. As in the stock binary, paths inside it are
//! relative to the working directory and the listener binds `0.0.0.0`: run it in a network namespace, or on a port
//! nobody minds. It loads plugins from `plugins/` of the working directory, if there is one, as the stock binary does.
//!
//! Commands, one per line; a message is one line of JSON in upstream's wire form. It is parsed and written again by
//! upstream's `Message`, so that what goes out is what upstream itself would send:
//!
//! | command                     | answer                                                                 |
//! |-----------------------------|------------------------------------------------------------------------|
//! | `broadcast MESSAGE`         | `@@ {"done":"broadcast"}`                                              |
//! | `send NODE_ID MESSAGE`      | `@@ {"done":"send","error":null,"ok":true}`, or a text and `false`     |
//! | `deliver CLASS NODE_ID KEY MESSAGE` | `@@ {"done":"deliver","outcome":"AcknowledgedByPeer"}`; KEY is `-` for none |
//! | `peers`                     | `@@ {"peers":["node-b"]}`                                              |
//! | `quiet`, `counted`         | messages are counted and not printed any more; how many there were      |
//! | `quit`, or the end of stdin | none; exit code 0                                                      |
//! | anything else               | `@@ {"error":"..."}`, also for a broadcast that is no message          |
//!
//! A TEXT `block` makes the plugin hold its thread for two minutes.
//!
//! Unasked: `@@ {"node_id":"...","ready":true}` once the listener is bound, and `@@ {"got":"MESSAGE"}` for each message
//! dispatched. `done` means queued, not arrived, and a broadcast to nobody is done too: wait for `peers` on both sides
//! first. Upstream's console shares stdout, but only our lines start with `@@ `. Read stdout all the time, or the node
//! stalls on a full pipe. Without a configuration or a free port the exit code is 1.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::{io::Write, process::exit, sync::Arc, time::Duration};

use async_trait::async_trait;
use serde_json::{json, Value};
use thenodes::config::Config;
use thenodes::events::{dispatcher, init_default_events, init_events_from_config, LogEvent, LogSink};
use thenodes::network::{connect_to_bootstrap_nodes, start_listener, Message, PeerManager, PeerStore};
use thenodes::network::{DeliveryClass, DeliveryOptions, MessageType};
use thenodes::plugin_host::{Plugin, PluginContext, PluginLoader, PluginManager, PluginRegistrar};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::sync::{mpsc, Mutex};

/// How long the listener may take to bind before the program gives up.
const BIND_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the plugin holds its thread when it is told to.
const BLOCK: Duration = Duration::from_secs(120);
/// Upstream's own console output stays on, as in the stock binary without `--prompt`.
const CONSOLE: bool = true;

/// Prints one line of ours, whole and at once. A reader that went away ends the program: nobody is left to drive it.
fn say(line: &Value) {
    let mut out = std::io::stdout().lock();
    if writeln!(out, "@@ {line}").and_then(|()| out.flush()).is_err() {
        exit(1);
    }
}

/// Ends the program for a reason that is the caller's to mend.
fn give_up(reason: &str) -> ! {
    eprintln!("upstream-peer: {reason}");
    exit(1)
}

/// Messages that were dispatched to the plugin, and whether they are printed.
static COUNT: AtomicU64 = AtomicU64::new(0);
static QUIET: AtomicBool = AtomicBool::new(false);

/// The plugin that shows what upstream hands to plugins.
struct Witness;

#[async_trait]
impl Plugin for Witness {
    fn plugin_id(&self) -> &'static str {
        "witness"
    }

    async fn on_message(&self, message: &Message, _ctx: &PluginContext) {
        COUNT.fetch_add(1, Ordering::Relaxed);
        if !QUIET.load(Ordering::Relaxed) {
            say(&json!({ "got": message.as_json() }));
        }
        // What any plugin may do: hold its thread for a while.
        if matches!(&message.msg_type, MessageType::Text(text) if text == "block") {
            std::thread::sleep(BLOCK);
        }
    }
}

/// Learns from upstream's events that the listener is bound: `start_listener` itself returns only on failure.
struct BindWatch(mpsc::Sender<Result<(), String>>);

#[async_trait]
impl LogSink for BindWatch {
    async fn handle(&self, event: &LogEvent) {
        if matches!(event, LogEvent::Network(event) if event.action == "listener_bind") {
            let _ = self.0.try_send(Ok(())); // a second report has no reader, and needs none
        }
    }
}

/// Reads the configuration. Unlike the stock binary, which then runs on defaults, a missing file is an error.
fn read_config() -> Config {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let path = match arguments.as_slice() {
        [option, path] if option == "--config" => path,
        _ => give_up("usage: upstream-peer --config FILE"),
    };
    let text = std::fs::read_to_string(path).unwrap_or_else(|error| give_up(&format!("{path}: {error}")));
    toml::from_str(&text).unwrap_or_else(|error| give_up(&format!("{path}: {error}")))
}

/// Starts the node in the order of upstream's `main.rs`; returns when the listener is bound.
async fn start(config: Config) -> (Arc<PeerManager>, PluginContext) {
    match &config.logging {
        Some(logging) => init_events_from_config(Some(logging)).await,
        None => init_default_events().await,
    }
    let (bound, mut binding) = mpsc::channel(2);
    dispatcher::handle().register_sink(Arc::new(BindWatch(bound.clone())));

    let node_id =
        config.node.as_ref().map_or_else(|| "unknown-node".to_owned(), |node| node.resolve_node_id());
    let realm = config.realm.clone().unwrap_or_default();
    let peers = Arc::new(PeerManager::new());
    let store = PeerStore::from_config(&config).await;
    let events = dispatcher::handle();
    let (all, known) = (peers.clone(), store.clone());
    let context = PluginContext::new(all, known, events, node_id.clone(), config.clone(), CONSOLE);
    let mut plugins = PluginManager::with_context(context.clone());
    plugins.register_handler(Box::new(Witness));
    if std::path::Path::new("plugins").exists() {
        let mut loader = PluginLoader::new();
        if let Err(error) = loader.load_plugins("plugins", &mut plugins) {
            give_up(&format!("plugins: {error}"));
        }
        std::mem::forget(loader); // a library must outlive its plugins, which live as long as the process
    }

    let network = config.network.as_ref();
    peers.set_delivery_config(network.and_then(|network| network.delivery.clone()));
    if let Some(relay) = network.and_then(|network| network.relay.as_ref()) {
        peers.set_relay_queue_caps(relay.queue_max_per_target, relay.queue_max_global);
    }

    // Without these two calls plugins cannot deliver, and the node neither probes its peers nor redials lost ones. The
    // clone of the context shares its cell with the one inside the manager.
    let plugins = Arc::new(plugins);
    context.set_plugin_manager(plugins.clone()).await;
    peers
        .configure_connection_lifecycle(config.clone(), node_id.clone(), &plugins, store.clone(), CONSOLE)
        .await;

    tokio::spawn({
        let (config, realm, peers) = (config.clone(), realm.clone(), (*peers).clone());
        let (plugins, node_id, store) = (plugins.clone(), node_id.clone(), store.clone());
        async move {
            let end =
                start_listener(config.port, realm, peers, plugins, &config, node_id, store, CONSOLE).await;
            let reason = end.err().map_or_else(|| "it ended".to_owned(), |error| error.to_string());
            let _ = bound.try_send(Err(reason)); // after `ready` nobody waits for this any more
        }
    });
    let (all, errors) = ((*peers).clone(), Arc::new(Mutex::new(Vec::new())));
    connect_to_bootstrap_nodes(&config, realm, all, plugins, errors, CONSOLE, node_id.clone(), store).await;

    match tokio::time::timeout(BIND_TIMEOUT, binding.recv()).await {
        Ok(Some(Ok(()))) => say(&json!({ "ready": true, "node_id": node_id })),
        Ok(Some(Err(reason))) => give_up(&format!("listener on port {}: {reason}", config.port)),
        Ok(None) | Err(_) => give_up(&format!("listener on port {}: not bound in time", config.port)),
    }
    (peers, context)
}

/// Sends a message by upstream's own delivery.
async fn deliver(rest: &str, context: &PluginContext) -> Result<Value, String> {
    let words: Vec<&str> = rest.splitn(4, ' ').collect();
    let [class, node_id, key, text] = words[..] else { return Err("deliver CLASS NODE_ID KEY MESSAGE".into()) };
    let class = match class {
        "fire_and_forget" => DeliveryClass::FireAndForget,
        "reliable" => DeliveryClass::Reliable,
        "ordered_reliable" => DeliveryClass::OrderedReliable,
        other => return Err(format!("no class {other}")),
    };
    let message = Message::from_json(text).ok_or_else(|| format!("no message: {text}"))?;
    let mut options = DeliveryOptions::new(class);
    if key != "-" {
        options = options.with_ordering_key(key);
    }
    let outcome = context.send_message(node_id, message, options).await;
    Ok(json!({ "done": "deliver", "outcome": format!("{outcome:?}") }))
}

/// Turns the rest of a command line into the line upstream would put on the wire.
fn wire_form(text: &str) -> Result<String, String> {
    Message::from_json(text).map(|message| message.as_json()).ok_or_else(|| format!("no message: {text}"))
}

/// Carries out one command; `None` is the wish to stop.
async fn obey(line: &str, peers: &PeerManager, context: &PluginContext) -> Option<Value> {
    let (command, rest) = line.split_once(' ').unwrap_or((line, ""));
    let answer = match command {
        "quit" => return None,
        "peers" => Ok(json!({ "peers": peers.list_node_ids().await })),
        "quiet" => {
            QUIET.store(true, Ordering::Relaxed);
            Ok(json!({ "done": "quiet" }))
        }
        "counted" => Ok(json!({ "counted": COUNT.load(Ordering::Relaxed) })),
        "deliver" => deliver(rest, context).await,
        "broadcast" => match wire_form(rest) {
            Ok(wire) => {
                peers.broadcast(&wire).await;
                Ok(json!({ "done": "broadcast" }))
            }
            Err(error) => Err(error),
        },
        "send" => {
            let (node_id, text) = rest.split_once(' ').unwrap_or((rest, ""));
            let sent = match wire_form(text) {
                Ok(wire) => peers.send_to_node_id(node_id, wire).await,
                Err(error) => Err(error),
            };
            Ok(json!({ "done": "send", "ok": sent.is_ok(), "error": sent.err() }))
        }
        _ => Err(format!("unknown command: {line}")),
    };
    Some(answer.unwrap_or_else(|error| json!({ "error": error })))
}

#[tokio::main]
async fn main() {
    let (peers, context) = start(read_config()).await;
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    loop {
        match lines.next_line().await {
            Ok(Some(line)) => match obey(line.trim(), &peers, &context).await {
                Some(answer) => say(&answer),
                None => break,
            },
            Ok(None) => break,
            Err(error) => give_up(&format!("stdin: {error}")),
        }
    }
    exit(0); // not `return`: the runtime would wait for the thread that still reads stdin
}
