//! What answers an operator: the view of network and plugins behind the admin socket and the prompt. Orders are recorded with
//! whoever gave them.

mod network;
mod question;
mod rules;
mod shown;
mod socket;

pub use question::{Question, LONGEST_POLL, MAX_BODY};
pub use socket::{ask, Asking, Server};

use crate::events::Emitter;
use crate::network::rules::Rules;
use crate::network::Network;
use crate::plugins::handle::{Handle, Status};
use crate::plugins::lifecycle::{Desired, State};
use crate::plugins::logs::Wanted;
use crate::plugins::metrics::{self, Figures, NodeFigures};
use crate::plugins::registry::Source;
use crate::plugins::why;
use crate::plugins::Registry;
use crate::text::{hex, unhex};
use serde::Serialize;
use serde_json::{json, Value};
use shown::{brief, detailed, permissions, sandbox, top};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use thenodes::events::model::LogLevel;
use thenodes::host::HostError;
use thenodes_ipc::{limits, pack, Code};
use tokio::time::timeout;

/// What the link puts before the name of a request.
const REQUEST: &str = "request.";

/// What answers questions: the admin socket's, and the prompt's.
#[derive(Clone)]
pub struct View {
    network: Arc<Network>,
    plugins: Arc<Registry>,
    events: Emitter,
    /// The configuration file, if there is one.
    file: Option<PathBuf>,
    /// Counters are compared by the time that passed between two looks.
    since: Instant,
}

impl View {
    /// A view of these parts.
    pub fn new(
        network: Arc<Network>,
        plugins: Arc<Registry>,
        events: Emitter,
        file: Option<PathBuf>,
    ) -> Self {
        Self { network, plugins, events, file, since: Instant::now() }
    }

    /// The rules of TLS as they are now.
    pub fn rules(&self) -> Option<Arc<Rules>> {
        self.network.rules()
    }

    fn plugin(&self, name: &str) -> Result<&Handle, HostError> {
        self.plugins.get(name).ok_or_else(|| {
            let known: Vec<_> = self.plugins.all().map(|plugin| plugin.name.as_str()).collect();
            HostError::new(Code::NotFound, format!("no plugin {name:?}; there are: {}", known.join(", ")))
        })
    }

    /// True if some plugin has this prompt.
    pub fn has_prompt(&self, prefix: &str) -> bool {
        self.plugins.by_prompt(prefix).is_some()
    }

    /// Prompt prefixes of all plugins.
    pub fn prompts(&self) -> Vec<String> {
        self.plugins.all().flat_map(Handle::prompts).collect()
    }

    /// Ids of connected peers.
    pub fn peer_ids(&self) -> Vec<String> {
        self.network.peers.list().into_iter().map(|peer| peer.node_id).collect()
    }

    /// Passes a line to a plugin's prompt. `None`: the plugin does not know what to do with it.
    pub async fn prompt(&self, prefix: &str, line: &str) -> Result<Option<String>, HostError> {
        let plugin = self
            .plugins
            .by_prompt(prefix)
            .ok_or_else(|| HostError::new(Code::NotFound, format!("no plugin has the prompt {prefix:?}")))?;
        #[derive(Serialize)]
        struct Args<'a> {
            prefix: &'a str,
            input: &'a str,
        }
        let body = pack::encode(&Args { prefix, input: line })
            .map_err(|e| HostError::new(Code::InvalidInput, e.to_string()))?;
        let answer = plugin.call("prompt", body, limits::REQUEST_DEADLINE).await?;
        pack::decode(&answer).map_err(|e| HostError::new(Code::Internal, format!("the plugin's answer: {e}")))
    }

    /// Answers a question. `who` is recorded with orders.
    pub async fn answer(&self, question: Question, who: &str) -> Result<Value, HostError> {
        match question {
            Question::Status => Ok(json!({
                "version": 1,
                "node_id": self.network.local.node_id,
                "realm": self.network.local.realm,
                "port": self.network.local.port,
                "encrypted": self.network.security.is_some(),
                "peers": self.network.peers.count().0,
                "plugins": self.plugins.all().count(),
                "rejected": self.plugins.rejected.len(),
                "bootstrap_errors": self.network.bootstrap_errors.list(),
            })),
            Question::Peers => Ok(self.peers()),
            Question::PeersKnown => Ok(self.known().await),
            Question::PeerConnect { target } => self.connect(&target, who).await,
            Question::PeerDisconnect { node_id } => self.disconnect(&node_id, who),
            Question::Send { node_id, text, class, key } => self.send(&node_id, text, class, key).await,
            Question::Relay => Ok(self.relay()),
            Question::TrustReload => self.reload_trust(who).await,
            Question::PluginList => Ok(json!({
                "version": 1,
                "plugins": self.plugins.all().map(brief).collect::<Vec<_>>(),
                "rejected": self.plugins.rejected.iter()
                    .map(|r| json!({ "path": r.path, "reason": r.reason })).collect::<Vec<_>>(),
            })),
            Question::PluginStatus { name } => {
                Ok(json!({ "version": 1, "plugin": detailed(self.plugin(&name)?) }))
            }
            Question::PluginLogs { name, lines: count, since_ms, level, after, wait_ms } => {
                let (logs, wanted) = (&self.plugin(&name)?.logs, Wanted { count, since_ms, level, after });
                let wait = Duration::from_millis(wait_ms).min(LONGEST_POLL);
                let found = match wait.is_zero() {
                    true => logs.find(&wanted),
                    false => {
                        timeout(wait, logs.wait_for(&wanted)).await.unwrap_or_else(|_| logs.find(&wanted))
                    }
                };
                let mut value = json!(found);
                value["version"] = json!(1);
                value["name"] = json!(name);
                Ok(value)
            }
            Question::Metrics { name } => {
                let plugins = match &name {
                    Some(name) => vec![self.plugin(name)?.clone()],
                    None => self.plugins.all().cloned().collect(),
                };
                let figures = look(plugins).await?;
                let node = NodeFigures {
                    peers: self.network.peers.count().0 as u64,
                    rejected: self.plugins.rejected.len() as u64,
                };
                let of_node = name.is_none().then_some(&node);
                let figures: Vec<Figures> = figures.into_iter().map(|(figures, _)| figures).collect();
                Ok(json!({ "version": 1, "text": metrics::render(of_node, &figures) }))
            }
            Question::PluginTop => {
                let at = u64::try_from(self.since.elapsed().as_micros()).unwrap_or(u64::MAX);
                let figures = look(self.plugins.all().cloned().collect()).await?;
                let plugins: Vec<Value> =
                    figures.iter().map(|(figures, generation)| top(figures, *generation)).collect();
                Ok(json!({ "version": 1, "at_us": at, "plugins": plugins }))
            }
            Question::PluginCall { name, request, body } => self.call(&name, &request, &body).await,
            Question::PluginViolations { name, reset } => {
                let plugin = self.plugin(&name)?;
                let mut value = plugin.record.violations();
                value["version"] = json!(1);
                value["name"] = json!(name);
                if reset {
                    plugin.record.reset();
                    self.events.plugin(LogLevel::Info, &name, "violations_reset", format!("by {who}"));
                }
                Ok(value)
            }
            Question::PluginDenials { name } => {
                let mut value = json!(self.plugin(&name)?.denials.all());
                value["version"] = json!(1);
                value["name"] = json!(name);
                Ok(value)
            }
            Question::PluginSandbox { name } => Ok(sandbox(self.plugin(&name)?)),
            Question::PluginPermissions { name } => Ok(permissions(&self.plugin(&name)?.terms())),
            Question::PluginRestart { name } => {
                let plugin = self.plugin(&name)?;
                let before = plugin.with_status(|status| status.starts);
                if plugin.with_status(|status| status.desired == Desired::Disabled) {
                    let text =
                        format!("plugin {name} is disabled; `thenodes plugin enable {name}` starts it");
                    return Err(HostError::new(Code::Conflict, text));
                }
                self.events.plugin(LogLevel::Info, &name, "restart_asked", format!("by {who}"));
                plugin.restart().await;
                self.settled(plugin, |status| status.starts > before).await
            }
            Question::PluginReload { name, accept } => {
                self.bring(&name, Source::Directory, accept, "reload_asked", who).await
            }
            Question::PluginUpgrade { name, file, accept } => {
                if !file.is_absolute() {
                    let text = format!("{}: name the file with an absolute path", file.display());
                    return Err(HostError::new(Code::InvalidInput, text));
                }
                self.bring(&name, Source::File(file), accept, "upgrade_asked", who).await
            }
            Question::PluginRollback { name } => {
                self.bring(&name, Source::Before, false, "rollback_asked", who).await
            }
            Question::PluginEnable { name } => {
                let plugin = self.plugin(&name)?;
                self.events.plugin(LogLevel::Info, &name, "enable_asked", format!("by {who}"));
                self.plugins.want(&name, Desired::Enabled).await?;
                self.settled(plugin, |status| status.desired == Desired::Enabled).await
            }
            Question::PluginDisable { name } => {
                let plugin = self.plugin(&name)?;
                self.events.plugin(LogLevel::Info, &name, "disable_asked", format!("by {who}"));
                self.plugins.want(&name, Desired::Disabled).await?;
                self.settled(plugin, |status| status.desired == Desired::Disabled).await
            }
            Question::PluginReset { name } => {
                let plugin = self.plugin(&name)?;
                let before = plugin.status();
                self.events.plugin(LogLevel::Info, &name, "reset_asked", format!("by {who}"));
                plugin.reset().await;
                let starts = matches!(before.state, State::Backoff { .. } | State::Failed { .. })
                    && before.desired == Desired::Enabled;
                self.settled(plugin, |status| !starts || status.starts > before.starts).await
            }
            Question::PluginWhy { name } => Ok(why::page(self.plugin(&name)?)),
            Question::Prompt { prefix, line } => {
                Ok(json!({ "version": 1, "output": self.prompt(&prefix, &line).await? }))
            }
        }
    }
}

/// Looks at plugins from outside, with the numbers of their processes.
async fn look(plugins: Vec<Handle>) -> Result<Vec<(Figures, u32)>, HostError> {
    let one = |plugin: &Handle| (plugin.figures(), plugin.with_status(|status| status.generation.0));
    // Small reads of the kernel's, but not for a worker.
    tokio::task::spawn_blocking(move || plugins.iter().map(one).collect())
        .await
        .map_err(|e| HostError::new(Code::Internal, format!("looking at the plugins: {e}")))
}

impl View {
    /// Sends a request to a plugin. Its answer is passed on as it is.
    async fn call(&self, name: &str, request: &str, body: &str) -> Result<Value, HostError> {
        let plugin = self.plugin(name)?;
        let longest = limits::MAX_METHOD - REQUEST.len();
        if !(1..=longest).contains(&request.len()) || !request.bytes().all(|byte| byte.is_ascii_graphic()) {
            let text = format!("a request has a name of 1 to {longest} letters, digits and signs, no blanks");
            return Err(HostError::new(Code::InvalidInput, text));
        }
        let Some(body) = unhex(body).filter(|body| body.len() <= MAX_BODY) else {
            let text = format!("the body is hex digits of at most {MAX_BODY} bytes");
            return Err(HostError::new(Code::InvalidInput, text));
        };
        let answer = plugin.call(&format!("{REQUEST}{request}"), body, limits::REQUEST_DEADLINE).await?;
        let text = std::str::from_utf8(&answer).ok();
        Ok(json!({ "version": 1, "name": name, "request": request, "text": text, "body": hex(&answer) }))
    }

    /// Waits until an order has had its effect, and shows the plugin.
    async fn settled(
        &self,
        plugin: &Handle,
        mut done: impl FnMut(&Status) -> bool,
    ) -> Result<Value, HostError> {
        let settled = |status: &Status| {
            done(status) && !status.state.starts() && !matches!(status.state, State::Stopping { .. })
        };
        if timeout(Duration::from_secs(30), plugin.wait(settled)).await.is_err() {
            let name = &plugin.name;
            let text = format!("plugin {name} did not settle within 30 s; `thenodes plugin why {name}`");
            return Err(HostError::new(Code::Timeout, text));
        }
        Ok(json!({ "version": 1, "plugin": detailed(plugin) }))
    }

    async fn bring(
        &self,
        name: &str,
        source: Source,
        accept: bool,
        asked: &str,
        who: &str,
    ) -> Result<Value, HostError> {
        let plugin = self.plugin(name)?;
        let from = plugin.with_status(|status| status.version.label());
        self.events.plugin(LogLevel::Info, name, asked, format!("by {who}"));
        let running = self.plugins.bring(name, source, accept).await?;
        Ok(json!({ "version": 1, "from": from, "running": running, "plugin": detailed(plugin) }))
    }
}
