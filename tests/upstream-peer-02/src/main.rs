//! A real upstream node of 0.2.0 from crates.io that tests can drive through pipes: the release of the seeds, which has no heartbeat,
//! no delivery classes, and the old form of relayed frames. Commands and answers are those of `tests/upstream-peer`, without
//! `deliver`. `upstream-peer-02 --config FILE`.

use async_trait::async_trait;
use serde_json::{json, Value};
use std::{io::Write, process::exit, sync::Arc, time::Duration};
use thenodes::config::Config;
use thenodes::events::{dispatcher, init_default_events, init_events_from_config, LogEvent, LogSink};
use thenodes::network::{connect_to_bootstrap_nodes, start_listener, Message, PeerManager, PeerStore};
use thenodes::plugin_host::{Plugin, PluginContext, PluginManager, PluginRegistrar};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::sync::{mpsc, Mutex};

/// How long the listener may take to bind before the program gives up.
const BIND_TIMEOUT: Duration = Duration::from_secs(10);

/// Prints one line of ours, whole and at once.
fn say(line: &Value) {
    let mut out = std::io::stdout().lock();
    if writeln!(out, "@@ {line}").and_then(|()| out.flush()).is_err() {
        exit(1);
    }
}

/// Ends the program for a reason that is the caller's to mend.
fn give_up(reason: &str) -> ! {
    eprintln!("upstream-peer-02: {reason}");
    exit(1)
}

/// The plugin that shows what upstream hands to plugins.
struct Witness;

#[async_trait]
impl Plugin for Witness {
    fn on_message(&self, message: &Message, _ctx: &PluginContext) {
        say(&json!({ "got": message.as_json() }));
    }
}

/// Learns from upstream's events that the listener is bound.
struct BindWatch(mpsc::Sender<Result<(), String>>);

#[async_trait]
impl LogSink for BindWatch {
    async fn handle(&self, event: &LogEvent) {
        if matches!(event, LogEvent::Network(event) if event.action == "listener_bind") {
            let _ = self.0.try_send(Ok(()));
        }
    }

    async fn flush(&self) {}
}

fn read_config() -> Config {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let path = match arguments.as_slice() {
        [option, path] if option == "--config" => path,
        _ => give_up("usage: upstream-peer-02 --config FILE"),
    };
    let text = std::fs::read_to_string(path).unwrap_or_else(|error| give_up(&format!("{path}: {error}")));
    toml::from_str(&text).unwrap_or_else(|error| give_up(&format!("{path}: {error}")))
}

/// Starts the node in the order of upstream's `main.rs`; returns when the listener is bound.
async fn start(config: Config) -> Arc<PeerManager> {
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
    let context = PluginContext {
        peer_manager: peers.clone(),
        peer_store: store.clone(),
        events: dispatcher::handle(),
    };
    let mut plugins = PluginManager::with_context(context);
    plugins.register_handler(Box::new(Witness));
    if let Some(relay) = config.network.as_ref().and_then(|network| network.relay.as_ref()) {
        peers.set_relay_queue_caps(relay.queue_max_per_target, relay.queue_max_global);
    }
    let plugins = Arc::new(plugins);
    tokio::spawn({
        let (config, realm, peers) = (config.clone(), realm.clone(), (*peers).clone());
        let (plugins, node_id, store) = (plugins.clone(), node_id.clone(), store.clone());
        async move {
            let end = start_listener(config.port, realm, peers, plugins, &config, node_id, store, true).await;
            let reason = end.err().map_or_else(|| "it ended".to_owned(), |error| error.to_string());
            let _ = bound.try_send(Err(reason));
        }
    });
    let (all, errors) = ((*peers).clone(), Arc::new(Mutex::new(Vec::new())));
    connect_to_bootstrap_nodes(&config, realm, all, plugins, errors, true, node_id.clone(), store).await;
    match tokio::time::timeout(BIND_TIMEOUT, binding.recv()).await {
        Ok(Some(Ok(()))) => say(&json!({ "ready": true, "node_id": node_id })),
        Ok(Some(Err(reason))) => give_up(&format!("listener on port {}: {reason}", config.port)),
        Ok(None) | Err(_) => give_up(&format!("listener on port {}: not bound in time", config.port)),
    }
    peers
}

fn wire_form(text: &str) -> Result<String, String> {
    Message::from_json(text).map(|message| message.as_json()).ok_or_else(|| format!("no message: {text}"))
}

async fn obey(line: &str, peers: &PeerManager) -> Option<Value> {
    let (command, rest) = line.split_once(' ').unwrap_or((line, ""));
    let answer = match command {
        "quit" => return None,
        "peers" => Ok(json!({ "peers": peers.list_node_ids().await })),
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
    let peers = start(read_config()).await;
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    loop {
        match lines.next_line().await {
            Ok(Some(line)) => match obey(line.trim(), &peers).await {
                Some(answer) => say(&answer),
                None => break,
            },
            Ok(None) => break,
            Err(error) => give_up(&format!("stdin: {error}")),
        }
    }
    exit(0);
}
