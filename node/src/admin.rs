//! The admin socket: one JSON object per line in, one out. Only local users whom the file's mode lets in reach it; what is
//! asked is checked all the same, and orders are recorded with the uid of whoever gave them.

use crate::events::Emitter;
use crate::network::Network;
use crate::plugins::handle::{Handle, Status};
use crate::plugins::lifecycle::{Desired, State};
use crate::plugins::logs::Line;
use crate::plugins::registry::Source;
use crate::plugins::terms::Terms;
use crate::plugins::watchdog::{describe, Limits};
use crate::plugins::why;
use crate::plugins::Registry;
use interprocess::local_socket::tokio::{prelude::*, Listener, Stream};
use interprocess::local_socket::{prelude::*, GenericFilePath, ListenerOptions, Stream as BlockingStream};
use interprocess::os::unix::local_socket::ListenerOptionsExt;
use serde::{Deserialize, Serialize};
use serde_json::{json, Value};
use std::io::{BufRead, BufReader as BlockingReader, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::time::Duration;
use thenodes::events::model::LogLevel;
use thenodes::host::HostError;
use thenodes_ipc::launch::Layer;
use thenodes_ipc::{limits, pack, Code};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::sync::Semaphore;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;

/// Longest question, bytes.
const MAX_QUESTION: u64 = 64 * 1024;
/// Connections at once.
const MAX_CLIENTS: usize = 16;
/// A client says something within this time or is hung up on.
const PATIENCE: Duration = Duration::from_secs(60);

/// What can be asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "cmd", rename_all = "kebab-case")]
pub enum Question {
    /// The node in a few numbers.
    Status,
    /// Connected peers.
    Peers,
    /// All plugins.
    PluginList,
    /// One plugin in detail.
    PluginStatus {
        /// Which.
        name: String,
    },
    /// The last lines of a plugin.
    PluginLogs {
        /// Which.
        name: String,
        /// How many.
        lines: usize,
    },
    /// Limits that a plugin was found at or beyond.
    PluginViolations {
        /// Which.
        name: String,
        /// Forget them after the answer.
        #[serde(default)]
        reset: bool,
    },
    /// What a plugin asked for, what it was given, and why not the rest.
    PluginPermissions {
        /// Which.
        name: String,
    },
    /// What the walls of a plugin refused.
    PluginDenials {
        /// Which.
        name: String,
    },
    /// What is particular about a plugin's sandbox, and its walls as measured.
    PluginSandbox {
        /// Which.
        name: String,
    },
    /// Start a plugin again, and wait until it is Ready or has failed.
    PluginRestart {
        /// Which.
        name: String,
    },
    /// Take what lies in the plugin directory now, while calls go on.
    PluginReload {
        /// Which.
        name: String,
        /// It may be given more than the one that runs.
        #[serde(default)]
        accept: bool,
    },
    /// Take this file, while calls go on.
    PluginUpgrade {
        /// Which.
        name: String,
        /// Absolute path of a library, or of a directory with one.
        file: PathBuf,
        /// It may be given more than the one that runs.
        #[serde(default)]
        accept: bool,
    },
    /// Take the version before this one, while calls go on.
    PluginRollback {
        /// Which.
        name: String,
    },
    /// It is wanted, now and after the node's next start.
    PluginEnable {
        /// Which.
        name: String,
    },
    /// It is not wanted, now and after the node's next start.
    PluginDisable {
        /// Which.
        name: String,
    },
    /// Forget its deaths, and start it if it was given up.
    PluginReset {
        /// Which.
        name: String,
    },
    /// Why it is in the state that it is in.
    PluginWhy {
        /// Which.
        name: String,
    },
    /// A line for a plugin's prompt.
    Prompt {
        /// Prefix of the prompt.
        prefix: String,
        /// The line.
        line: String,
    },
}

/// What answers questions: the admin socket's, and the prompt's.
#[derive(Clone)]
pub struct View {
    network: Arc<Network>,
    plugins: Arc<Registry>,
    events: Emitter,
}

impl View {
    /// A view of these parts.
    pub fn new(network: Arc<Network>, plugins: Arc<Registry>, events: Emitter) -> Self {
        Self { network, plugins, events }
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
                "peers": self.network.peers.list().len(),
                "plugins": self.plugins.all().count(),
                "rejected": self.plugins.rejected.len(),
            })),
            Question::Peers => Ok(json!({ "version": 1, "peers": self.network.peers.list() })),
            Question::PluginList => Ok(json!({
                "version": 1,
                "plugins": self.plugins.all().map(brief).collect::<Vec<_>>(),
                "rejected": self.plugins.rejected.iter()
                    .map(|r| json!({ "path": r.path, "reason": r.reason })).collect::<Vec<_>>(),
            })),
            Question::PluginStatus { name } => {
                Ok(json!({ "version": 1, "plugin": detailed(self.plugin(&name)?) }))
            }
            Question::PluginLogs { name, lines } => {
                let (lines, dropped): (Vec<Line>, u64) = self.plugin(&name)?.logs.last(lines);
                Ok(json!({ "version": 1, "name": name, "dropped": dropped, "lines": lines }))
            }
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

impl View {
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

fn brief(plugin: &Handle) -> Value {
    let status = plugin.status();
    json!({
        "name": plugin.name,
        "state": status.state.word(),
        "desired": status.desired.word(),
        "plugin_version": status.version.label(),
        "level": status.level.as_ref().map(thenodes_ipc::launch::Level::word),
        "missing": status.level.as_ref().map(|level| level.missing().to_vec()).unwrap_or_default(),
        "pid": status.pid,
        "generation": status.generation,
        "starts": status.starts,
        "last_death": status.last_death.as_ref().map(|cause| json!({ "cause": cause.word(), "text": cause.to_string() })),
        "start_ms": status.last_start.map(|took| took.as_millis() as u64),
        "recovered_ms": status.last_recovery.map(|took| took.as_millis() as u64),
    })
}

fn sandbox(plugin: &Handle) -> Value {
    let (status, terms) = (plugin.status(), plugin.terms());
    let own = &terms.sandbox;
    json!({
        "version": 1,
        "name": plugin.name.as_str(),
        "level": status.level.as_ref().map(|level| level.word()),
        "layers": status.layers,
        "seccomp": own.seccomp.word(),
        "calls": own.calls,
        "paths": own.paths,
        "tmp_mb": own.temporary / (1024 * 1024),
    })
}

fn permissions(terms: &Terms) -> Value {
    json!({
        "version": 1,
        "name": terms.plugin,
        "manifest": terms.manifest.as_ref().map(|manifest| &manifest.path),
        "starts": terms.refusal.is_none(),
        "refusal": terms.refusal,
        "permissions": terms.outcomes,
        "notes": terms.notes.iter().map(|note| json!({ "action": note.action, "detail": note.detail })).collect::<Vec<_>>(),
    })
}

fn detailed(plugin: &Handle) -> Value {
    let mut value = brief(plugin);
    let status = plugin.status();
    let count = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
    let counters = &plugin.counters;
    let (image, terms) = (plugin.image(), plugin.terms());
    value["path"] = json!(image.path);
    value["sha256"] = json!(image.sha256);
    value["needed"] = json!(image.needed.iter().map(|(soname, _)| soname).collect::<Vec<_>>());
    value["limits"] = json!({
        "memory_mb": terms.process.memory / (1024 * 1024),
        "threads": terms.process.threads,
        "fds": terms.process.descriptors,
    });
    value["layers"] = json!(status.layers);
    value["denials"] = json!({ "total": plugin.denials.total(), "last": plugin.denials.all().last.last().map(ToString::to_string) });
    let rlimits = status.layers.iter().any(|layer| layer.layer == Layer::Rlimits && layer.in_force);
    let (held, problems) = plugin.record.enforcement();
    let limits = Limits { process: terms.process, budget: terms.budget };
    value["enforcement"] = describe(held, rlimits, &limits);
    value["enforcement_problems"] = json!(problems);
    value["usage"] = json!(plugin.record.usage().map(|sample| sample.to_json()));
    value["log_lines_dropped"] = json!(plugin.logs.dropped());
    value["id"] = json!(status.registration.as_ref().map(|r| r.id.clone()));
    value["sdk"] = json!(status.registration.as_ref().map(|r| r.sdk.clone()));
    value["prompts"] = json!(status.registration.as_ref().map(|r| r.prompts.clone()).unwrap_or_default());
    value["counters"] = json!({
        "answered": count(&counters.answered),
        "failed": count(&counters.failed),
        "panics": count(&counters.panics),
        "timeouts": count(&counters.timeouts),
        "requests": count(&counters.requests),
        "denied": count(&counters.denied),
        "ignored": count(&counters.ignored),
        "dropped": count(&counters.dropped),
        "throttled": count(&counters.throttled),
    });
    value
}

/// The listening side.
pub struct Server {
    task: JoinHandle<()>,
    path: PathBuf,
}

impl Server {
    /// Opens the socket, mode 0660. A socket that a dead node left is replaced; a living node's is not.
    pub async fn start(path: &Path, view: View) -> Result<Server, String> {
        let failed = |e: std::io::Error| format!("{}: {e}", path.display());
        if let Some(dir) = path.parent().filter(|dir| !dir.as_os_str().is_empty()) {
            std::fs::create_dir_all(dir).map_err(failed)?;
        }
        let name = path.to_fs_name::<GenericFilePath>().map_err(failed)?;
        if path.exists() {
            if Stream::connect(name.borrow()).await.is_ok() {
                return Err(format!(
                    "{}: another node answers there; give this one its own [node] state_dir",
                    path.display()
                ));
            }
            std::fs::remove_file(path).map_err(failed)?;
        }
        let listener = ListenerOptions::new().name(name).mode(0o660).create_tokio().map_err(failed)?;
        Ok(Server { task: tokio::spawn(serve(listener, view)), path: path.into() })
    }

    /// Closes the socket and removes its file.
    pub async fn stop(self) {
        self.task.abort();
        let _ = self.task.await;
        let _ = std::fs::remove_file(&self.path);
    }
}

async fn serve(listener: Listener, view: View) {
    let places = Arc::new(Semaphore::new(MAX_CLIENTS));
    let mut clients = JoinSet::new();
    loop {
        while clients.try_join_next().is_some() {}
        let Ok(place) = places.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok(stream) => {
                let view = view.clone();
                clients.spawn(async move {
                    let _place = place;
                    client(stream, view).await;
                });
            }
            Err(error) => {
                tracing::error!("admin socket: {error}");
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
    }
}

async fn client(stream: Stream, view: View) {
    let who = match stream.peer_creds() {
        Ok(creds) => format!("uid {}", creds.euid().map_or_else(|| "?".into(), |uid| uid.to_string())),
        Err(_) => "uid ?".into(),
    };
    let mut reader = BufReader::new(&stream);
    loop {
        let mut line = Vec::new();
        let read = timeout(PATIENCE, (&mut reader).take(MAX_QUESTION).read_until(b'\n', &mut line)).await;
        if !matches!(read, Ok(Ok(1..))) {
            return;
        }
        let answer = match serde_json::from_slice::<Question>(&line) {
            Ok(question) => view.answer(question, &who).await,
            Err(error) => Err(HostError::new(Code::InvalidInput, format!("no question: {error}"))),
        };
        let value = answer.unwrap_or_else(|error| {
            json!({ "version": 1, "error": { "code": error.code.as_str(), "message": error.message } })
        });
        let mut text = value.to_string().into_bytes();
        text.push(b'\n');
        let mut writer = &stream;
        if !matches!(timeout(PATIENCE, writer.write_all(&text)).await, Ok(Ok(()))) {
            return;
        }
    }
}

/// Asks a running node; blocking, for the command line.
pub fn ask(socket: &Path, question: &Question) -> Result<Value, HostError> {
    let unavailable = |e: std::io::Error| {
        let text =
            format!("{}: {e}; is the node running, and is this its socket (--socket)?", socket.display());
        HostError::new(Code::Unavailable, text)
    };
    let name = socket.to_fs_name::<GenericFilePath>().map_err(unavailable)?;
    let stream = BlockingStream::connect(name).map_err(unavailable)?;
    stream.set_recv_timeout(Some(PATIENCE)).map_err(unavailable)?;
    let mut text = serde_json::to_vec(question).map_err(|e| HostError::new(Code::Internal, e.to_string()))?;
    text.push(b'\n');
    (&stream).write_all(&text).map_err(unavailable)?;
    let mut line = String::new();
    BlockingReader::new((&stream).take(64 * 1024 * 1024)).read_line(&mut line).map_err(unavailable)?;
    let value: Value = serde_json::from_str(&line)
        .map_err(|e| HostError::new(Code::Unavailable, format!("the node's answer: {e}")))?;
    match value.get("error") {
        None => Ok(value),
        Some(error) => Err(HostError::new(
            Code::parse(error["code"].as_str().unwrap_or("INTERNAL_ERROR")),
            error["message"].as_str().unwrap_or_default(),
        )),
    }
}
