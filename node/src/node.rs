//! A node from start to end: the only file that knows every part. Start and shutdown are written once, in order.

use crate::admin;
use crate::config::{Config, ConfigError, Permission, Raw};
use crate::events::{Bus, Console, Emitter, JsonLines};
use crate::host::api::{DenialReporter, Forwarder, NodeHost};
use crate::host::inbound;
use crate::host::scopes;
use crate::identity;
use crate::network::relay::{self, journal, Relay};
use crate::network::{connector, delivery, dialer, listener, ownership, peerfile, rejudge, rules};
use crate::network::{Local, Network};
use crate::plugins::grants::{Granted, Subject};
use crate::plugins::process::find_runner;
use crate::plugins::registry::Hosts;
use crate::plugins::shelf::Shelf;
use crate::plugins::spare::Spare;
use crate::plugins::supervisor::{Change, Observer, Policy, Surroundings};
use crate::plugins::terms::Terms;
use crate::plugins::uids::{Claims, Uids, CLAIMS};
use crate::plugins::watchdog::Watchdog;
use crate::plugins::Registry;
use crate::security::pki;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use thenodes::config::ConfigDefaults;
use thenodes::events::model::LogLevel;
use thenodes::events::LogSink;
use thenodes::host::NodeInfo;
use thenodes_ipc::pack;
use tokio::sync::watch;
use tokio::task::JoinSet;

/// How long the start waits for plugins to register, and then to be Ready, before it goes on without the slow ones.
const PLUGIN_PATIENCE: Duration = Duration::from_secs(15);
/// How long a shutdown waits for plugins.
const STOP_PATIENCE: Duration = Duration::from_secs(8);

/// Why a node does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Identity.
    #[error(transparent)]
    Identity(#[from] identity::IdentityError),
    /// Keys and certificates.
    #[error(transparent)]
    Pki(#[from] pki::PkiError),
    /// What `[encryption]` names.
    #[error(transparent)]
    Rules(#[from] rules::RulesError),
    /// Plugins as a whole.
    #[error("plugins: {0}")]
    Plugins(String),
    /// The listening socket.
    #[error("listening on {addr}: {source}; is another node running, or [port] taken?")]
    Listen {
        /// Address and port.
        addr: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// The event file.
    #[error("event log {path}: {source}")]
    EventLog {
        /// The file.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// The admin socket.
    #[error("admin socket: {0}")]
    Admin(String),
}

/// A running node.
pub struct Node {
    /// The configuration in force, plugin defaults included.
    pub config: Config,
    /// Network.
    pub network: Arc<Network>,
    /// Plugins.
    pub plugins: Arc<Registry>,
    /// How plugins are run.
    pub policy: Arc<Policy>,
    /// Address that it listens on.
    pub listening: SocketAddr,
    bus: Arc<Bus>,
    events: Emitter,
    network_tasks: JoinSet<()>,
    admin: Option<admin::Server>,
}

impl Node {
    /// Starts a node.
    pub async fn start(mut raw: Raw) -> Result<Node, StartError> {
        // 1. What plugins cannot change: where events go, and how plugins are run.
        let early = raw.clone().validate()?;
        let log = &early.logging;
        let json = JsonLines::open(&log.json_path, log.json_max_bytes, log.json_rotate)
            .map_err(|source| StartError::EventLog { path: log.json_path.display().to_string(), source })?;
        let mut sinks: Vec<Arc<dyn LogSink>> = vec![Arc::new(json)];
        if log.console {
            sinks.push(Arc::new(Console));
        }
        let bus = Bus::start(sinks);
        let events = Emitter::new(&bus, "node");
        for what in &early.without_effect {
            events.system(LogLevel::Warn, "config_key_without_effect", what.clone());
        }

        // 2. Plugins come first: they may suggest configuration that the network needs.
        let runner = find_runner(early.plugins.runner.as_deref()).map_err(StartError::Plugins)?;
        let watchdog = Watchdog::start(early.plugins.budget.sample);
        let spare = early.plugins.spare.then(|| Spare::keep(runner.clone(), watchdog.cgroups().clone()));
        let policy = Arc::new(Policy {
            runner,
            limits: early.plugins.limits,
            watchdog,
            required: early.plugins.required,
            uid_base: early.plugins.uid_base,
            transport: early.plugins.transport,
            spare,
        });
        let network_later: Arc<OnceLock<Arc<Network>>> = Arc::default();
        let (info_out, info) = watch::channel(None);
        let forwarder = Arc::new(Forwarder::default());
        let witness = Arc::new(DenialReporter::new(events.clone()));
        let observer: Arc<dyn Observer> = Arc::new(PluginEvents(events.clone(), forwarder.clone()));
        let mut uids = if nix::unistd::getuid().is_root() {
            let claims = Claims::new(CLAIMS.as_ref(), early.plugins.uid_base);
            Uids::open(&early.node.state_dir.join("plugin-uids"), claims)
                .map_err(|e| StartError::Plugins(e.to_string()))?
        } else {
            Uids::for_this_run()
        };
        let (network, to, sinks) = (network_later.clone(), events.clone(), forwarder.clone());
        let hosts: Hosts = Arc::new(move |terms: &Arc<Terms>| {
            let (network, emitter, forwarder) = (network.clone(), to.clone(), sinks.clone());
            report_terms(terms, &emitter);
            let scopes = scopes::of(&terms.grants);
            let (grants, witness) = (terms.grants.clone(), witness.clone());
            let connections = usize::try_from(terms.budget.connections).unwrap_or(usize::MAX);
            let told = witness.clone();
            let host = NodeHost::new(grants.clone(), network, emitter, forwarder, scopes, told, connections);
            Arc::new(move || {
                let own = Arc::new(host.for_process());
                Arc::new(Granted::new(grants.clone(), own, witness.clone()))
            })
        });
        let shelf = Arc::new(Shelf::new(&early.node.state_dir));
        let plugins = Registry::start(
            &early.plugins,
            &policy,
            &mut uids,
            shelf,
            hosts,
            |terms, host, slot, keeping| {
                let (policy, observer, info) = (policy.clone(), observer.clone(), info.clone());
                Surroundings { policy, terms, host, observer, info, slot, keeping }
            },
        );
        let plugins =
            plugins.map_err(|e| StartError::Plugins(format!("{}: {e}", early.plugins.dir.display())))?;
        let plugins = Arc::new(plugins);
        for rejected in &plugins.rejected {
            let name = rejected.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            events.plugin(LogLevel::Error, &name, "rejected", rejected.reason.clone());
        }
        for name in early.plugins.giving.by_name.keys().filter(|name| plugins.get(name.as_str()).is_none()) {
            let detail = format!("plugins.for.{name}: there is no such plugin");
            events.system(LogLevel::Warn, "config_key_without_effect", detail);
        }
        forwarder.set_plugins(plugins.clone());
        bus.add_sinks(vec![forwarder]);
        plugins.wait_registered(PLUGIN_PATIENCE).await;
        take_suggestions(&mut raw, &plugins, &events);
        report_prompts(&plugins, &events);

        // 3. Who we are, and whom we trust.
        let config = raw.validate()?;
        let (node_id, source) = identity::resolve(&config.node)?;
        events.system(LogLevel::Info, "identity_resolved", format!("node_id={node_id} source={source:?}"));
        let security = match &config.encryption {
            None => {
                let text = "[encryption] enabled = false: everything on the wire is readable and nobody is authenticated";
                events.system(LogLevel::Warn, "plaintext", text.to_owned());
                None
            }
            Some(encryption) => {
                if pki::ensure(encryption, &node_id, &config.realm)? {
                    let path = encryption.own_certificate.display();
                    events.system(
                        LogLevel::Info,
                        "certificate_created",
                        format!("{path} for node {node_id}"),
                    );
                }
                let rules = rules::Rules::load(encryption)?;
                events.system(LogLevel::Info, "certificate_loaded", format!("fingerprint={}", rules.own));
                Some(rules)
            }
        };

        // 4. The network, listening before anybody is dialed.
        let addr = SocketAddr::new(config.bind_address, config.port);
        let socket = match listener::bind(addr).await {
            Ok(socket) => socket,
            // A port that a plugin suggested must not keep the node from starting.
            Err(error) if config.port != early.port => {
                let fallback = SocketAddr::new(config.bind_address, early.port);
                events.network(
                    LogLevel::Warn,
                    "suggested_port_taken",
                    Some(addr.to_string()),
                    format!("{error}; using {fallback}"),
                );
                listener::bind(fallback)
                    .await
                    .map_err(|source| StartError::Listen { addr: fallback, source })?
            }
            Err(source) => return Err(StartError::Listen { addr, source }),
        };
        let listening = socket.local_addr().map_err(|source| StartError::Listen { addr, source })?;
        let config_flag =
            config.file.as_ref().map_or_else(String::new, |file| format!("--config {} ", file.display()));
        let local = Local {
            node_id: node_id.clone(),
            realm: config.realm.clone(),
            node_type: config.node.node_type.clone(),
            capabilities: capabilities(&config),
            nonce: uuid::Uuid::new_v4().simple().to_string(),
            port: listening.port(),
            allowed_node_types: config.allowed_node_types.clone(),
        };
        let emitter = Emitter::new(&bus, "network");
        let command = format!("thenodes {config_flag}");
        let network = Arc::new(Network::new(local, config.networking.clone(), security, emitter, command));
        let _ = network.hall.set(Box::new(inbound::Hall::new(&network, plugins.clone())));
        let _ = network_later.set(network.clone());
        events.network(LogLevel::Info, "listener_bind", Some(listening.to_string()), None);
        let mut network_tasks = JoinSet::new();
        // What an earlier run knew and kept, before anybody can add to it.
        peerfile::restore(&network).await;
        journal::restore(&network).await;
        ownership::restore(&network).await;
        if let Some(rules) = network.rules() {
            // Without it nobody is let in on first use, and each refusal says so; a node of trusted keys goes on.
            if let Err(error) = rules::prepare_first_use(&network, &rules.encryption).await {
                events.system(LogLevel::Error, "tofu_memory_missing", error.to_string());
            }
        }
        network_tasks.spawn(listener::listen(network.clone(), socket));
        network_tasks.spawn(rejudge::look(network.clone()));
        network_tasks.spawn(peerfile::keep(network.clone()));
        network_tasks.spawn(ownership::keep(network.clone()));
        network_tasks.spawn(relay::sweep(network.clone()));
        network_tasks.spawn(delivery::sweep(network.clone()));
        network_tasks.spawn(connector::run(network.clone()));
        for target in &config.bootstrap_nodes {
            network_tasks.spawn(dialer::keep(network.clone(), target.clone()));
        }

        // 5. Plugins may now be told who the node is, and begin.
        let info = NodeInfo {
            plugin: String::new(),
            node_id,
            realm: config.realm.clone(),
            node_type: config.node.node_type.clone(),
            session_id: bus.handle().session_id().unwrap_or_default(),
        };
        info_out.send_replace(Some(Arc::new(info)));

        // 6. Operators, who may want to look at a plugin that takes its time.
        let view = admin::View::new(network.clone(), plugins.clone(), events.clone(), config.file.clone());
        let admin = admin::Server::start(&config.admin_socket, view).await.map_err(StartError::Admin)?;
        plugins.wait_settled(PLUGIN_PATIENCE).await;
        Ok(Node {
            config,
            network,
            plugins,
            policy,
            listening,
            bus,
            events,
            network_tasks,
            admin: Some(admin),
        })
    }

    /// One line about what is up, for the service manager and for people.
    pub fn summary(&self) -> String {
        let ready = self.plugins.all().filter(|p| p.with_status(|s| s.state.serves())).count();
        let all = self.plugins.all().count();
        format!(
            "node {} listens on {}, {ready} of {all} plugins ready, {} files rejected",
            self.network.local.node_id,
            self.listening,
            self.plugins.rejected.len()
        )
    }

    /// What the admin socket serves, for the prompt.
    pub fn view(&self) -> admin::View {
        admin::View::new(
            self.network.clone(),
            self.plugins.clone(),
            self.events.clone(),
            self.config.file.clone(),
        )
    }

    /// Ends everything, in order.
    pub async fn shut_down(mut self) {
        self.events.system(LogLevel::Info, "shutting_down", None);
        // No new orders and no new peers.
        if let Some(admin) = self.admin.take() {
            admin.stop().await;
        }
        // Plugins first: what they still want to say needs the peers.
        self.plugins.stop(STOP_PATIENCE).await;
        if let Some(spare) = &self.policy.spare {
            spare.end().await;
        }
        // Every peer hears DISCONNECT; sessions end by themselves.
        self.network.end(Duration::from_secs(2)).await;
        self.network_tasks.shutdown().await;
        peerfile::write(&self.network).await;
        ownership::write(&self.network).await;
        journal::write(&self.network).await;
        // Last of all the log, so that it tells about all of the above.
        self.events.system(LogLevel::Info, "stopped", None);
        self.bus.stop().await;
    }
}

/// What this node announces: what it does, and what its plugins say that they can do.
fn capabilities(config: &Config) -> Vec<String> {
    let mut words = Relay::capabilities(&config.networking.relay);
    // That this node relays is not a plugin's to say.
    let reserved = [relay::CAPABILITY, relay::CAPABILITY_STORES, relay::CAPABILITY_ACKNOWLEDGES];
    words.extend(config.capabilities.iter().filter(|word| !reserved.contains(&word.as_str())).cloned());
    words
}

/// Takes what plugins suggest, in the order of their names, and reports what became of it.
fn take_suggestions(raw: &mut Raw, plugins: &Registry, events: &Emitter) {
    for plugin in plugins.all() {
        let Some(registration) = plugin.status().registration else { continue };
        if registration.config_defaults.is_empty() {
            continue;
        }
        let name = plugin.name.as_str();
        let terms = plugin.terms();
        let grants = &terms.grants;
        if !grants.allows(Permission::ConfigDefaults, Subject::Whole) {
            let remedy = grants.remedy(Permission::ConfigDefaults, Subject::Whole);
            let detail = format!("permission=config.defaults; to allow it, {remedy}");
            events.plugin(LogLevel::Warn, name, "permission_denied", detail);
            continue;
        }
        let list: Vec<ConfigDefaults> = match pack::decode(&registration.config_defaults) {
            Ok(list) => list,
            Err(error) => {
                events.plugin(LogLevel::Warn, name, "config_defaults_invalid", error.to_string());
                continue;
            }
        };
        // A library has few handlers; each suggestion costs a validation.
        for defaults in list.into_iter().take(16) {
            let before = raw.clone();
            let applied = raw.suggest(defaults);
            // A suggestion that makes the configuration impossible must not keep the node from starting.
            if let Err(error) = raw.clone().validate() {
                *raw = before;
                events.plugin(LogLevel::Warn, name, "config_defaults_invalid", error.to_string());
                continue;
            }
            if !applied.taken.is_empty() {
                let detail = format!("plugin={name} {}", applied.taken.join(","));
                events.system(LogLevel::Info, "plugin_config_defaults_applied", detail);
            }
            for (key, why) in applied.refused {
                events.plugin(LogLevel::Info, name, "config_default_refused", format!("{key}: {why}"));
            }
        }
    }
}

/// Tells the operator on which terms a plugin runs, as far as somebody might have expected others.
fn report_terms(terms: &Terms, events: &Emitter) {
    for note in &terms.notes {
        events.plugin(LogLevel::Warn, terms.plugin.as_str(), note.action, note.detail.clone());
    }
}

/// Names plugins that claim a prompt which they may not have, or which another one has.
fn report_prompts(plugins: &Registry, events: &Emitter) {
    let mut owners: HashMap<String, String> = HashMap::new();
    for plugin in plugins.all() {
        let name = plugin.name.to_string();
        for prompt in plugin.refused_prompts() {
            let remedy = plugin.terms().grants.remedy(Permission::CommandRegister, Subject::Prompt(&prompt));
            let detail = format!("permission=command.register prompt={prompt:?}; to allow it, {remedy}");
            events.plugin(LogLevel::Warn, &name, "permission_denied", detail);
        }
        for prompt in plugin.prompts() {
            let name = name.clone();
            if let Some(owner) = owners.get(&prompt) {
                let detail = format!("{prompt:?} is plugin {owner}'s, the first by name; `thenodes plugin prompt` and the prompt reach only that one");
                events.plugin(LogLevel::Warn, &name, "prompt_conflict", detail);
            } else {
                owners.insert(prompt, name);
            }
        }
    }
}

/// Turns changes of plugins into events.
struct PluginEvents(Emitter, Arc<Forwarder>);

impl Observer for PluginEvents {
    fn changed(&self, change: Change) {
        if matches!(change.action, "died" | "failed" | "stopped") {
            self.1.unsubscribe(&change.plugin); // the next process asks anew, if it wants events
        }
        let level = if change.bad { LogLevel::Error } else { LogLevel::Info };
        self.0.plugin(level, change.plugin.as_str(), change.action, change.detail);
    }
}
