//! The command line. Results go to standard output, everything else to standard error; `--json` prints one object with a
//! `version`. Exit codes: 0 done, 1 failed, 2 wrong usage, 69 no node answers, 78 wrong configuration; `plugin call` has more (docs/operating.md).

mod call;
mod cert;
mod logs;
mod peers;
mod plugin;
mod show;
mod top;
mod trust;

pub(crate) use peers::listed as peers_listed;
pub(crate) use show::{pairs, status_lines, table};
pub(crate) use trust::reloaded;

use crate::admin::{ask, Question, View};
use crate::config::{Config, ConfigError, Raw};
use crate::node::{Node, StartError};
use crate::security::pki;
use crate::text::printable;
use crate::{doctor, prompt};
use clap::{Parser, Subcommand};
use sd_notify::NotifyState;
use serde_json::{json, Value};
use show::{enforcement, layers, text};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;
use thenodes::host::HostError;
use thenodes_ipc::Code;
use tokio::signal::unix::{signal, Signal, SignalKind};

/// Nobody answers on the admin socket.
const EXIT_UNAVAILABLE: u8 = 69;
/// The configuration is wrong; a service manager need not try again.
const EXIT_CONFIG: u8 = 78;
/// Steps of tasks after which a busy thread looks for what came from outside. A peer behind a flood of connections waits for several such
/// looks; with the runtime's own 61 each took a millisecond.
const EVENT_INTERVAL: u32 = 13;

/// A peer-to-peer node that runs plugins it does not trust.
#[derive(Debug, Parser)]
#[command(name = "thenodes", version = crate::VERSION, about)]
pub struct Cli {
    /// Configuration file. A file that is named must exist; without this option ./config.toml is read if it exists.
    #[arg(short, long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Admin socket of the running node, if not the configuration's.
    #[arg(long, global = true, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Print one JSON object instead of text.
    #[arg(long, global = true)]
    json: bool,
    /// Run the node with an interactive prompt on standard input.
    #[arg(long)]
    prompt: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the node (what happens without a command).
    Run,
    /// Ask the running node about itself.
    Status,
    /// List connected peers of the running node; connect, disconnect.
    Peers {
        #[command(subcommand)]
        command: Option<peers::PeersCommand>,
    },
    /// Send a text to a node, connected or behind a relay.
    Send(peers::SendArgs),
    /// What the running node, as a relay, keeps for others and did for them.
    Relay,
    /// Counters and gauges of the running node and its plugins, as Prometheus text.
    Metrics,
    /// Look at plugins of the running node; start, stop, upgrade them.
    #[command(subcommand)]
    Plugin(plugin::PluginCommand),
    /// Make and look at certificates.
    #[command(subcommand)]
    Cert(cert::CertCommand),
    /// Say whom to trust.
    #[command(subcommand)]
    Trust(trust::TrustCommand),
    /// Find out what this kernel can enforce, by doing it.
    Doctor,
}

/// Why a command failed: exit code, stable code, text.
struct Failure {
    exit: u8,
    code: String,
    text: String,
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self { exit: EXIT_CONFIG, code: Code::ConfigError.to_string(), text: render(error) }
    }
}

impl From<pki::PkiError> for Failure {
    fn from(error: pki::PkiError) -> Self {
        Self { exit: 1, code: Code::ConfigError.to_string(), text: error.to_string() }
    }
}

impl From<HostError> for Failure {
    fn from(error: HostError) -> Self {
        let exit = if error.code == Code::Unavailable { EXIT_UNAVAILABLE } else { 1 };
        Self { exit, code: error.code.to_string(), text: error.message }
    }
}

impl From<StartError> for Failure {
    fn from(error: StartError) -> Self {
        match error {
            StartError::Config(error) => error.into(),
            StartError::Pki(_) | StartError::Rules(_) | StartError::Identity(_) => {
                Self { exit: EXIT_CONFIG, code: Code::ConfigError.to_string(), text: error.to_string() }
            }
            other => Self { exit: 1, code: Code::Unavailable.to_string(), text: other.to_string() },
        }
    }
}

/// The error with file, line and the line itself.
fn render(error: ConfigError) -> String {
    let first = error.to_string();
    let report = format!("{:?}", miette::Report::new(error));
    format!("{first}\n{report}")
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let json = cli.json;
    match dispatch(cli) {
        Ok(code) => code,
        Err(failure) => {
            if json {
                let error =
                    json!({ "version": 1, "error": { "code": failure.code, "message": failure.text } });
                eprintln!("{error}");
            } else {
                eprintln!("thenodes: {}: {}", failure.code, failure.text);
            }
            ExitCode::from(failure.exit)
        }
    }
}

fn dispatch(cli: Cli) -> Result<ExitCode, Failure> {
    let json = cli.json;
    match &cli.command {
        None | Some(Command::Run) => run(&cli),
        Some(Command::Status) => show(&cli, &Question::Status, status_lines),
        Some(Command::Peers { command }) => peers::run(&cli, command.as_ref()),
        Some(Command::Send(args)) => peers::send(&cli, args),
        Some(Command::Relay) => show(&cli, &Question::Relay, |value| show::pairs(&value["relay"])),
        Some(Command::Metrics) => show(&cli, &Question::Metrics { name: None }, |value| {
            value["text"].as_str().unwrap_or_default().to_owned()
        }),
        Some(Command::Plugin(command)) => plugin::run(&cli, command),
        Some(Command::Cert(command)) => cert::run(&cli, command),
        Some(Command::Trust(command)) => trust::run(&cli, command),
        Some(Command::Doctor) => {
            let config = config(&cli)?;
            let (value, good) = runtime()?.block_on(doctor::examine(&config));
            print(json, &value, || {
                let mut out = format!(
                    "sandbox level: {} (required: {})\n",
                    text(&value["level"]),
                    text(&value["required"])
                );
                if let Some(error) = value["error"].as_str() {
                    out.push_str(error);
                    out.push('\n');
                }
                out.push_str(&layers(&value["layers"]));
                out.push_str(&format!("\nlimits enforced by\n{}", enforcement(&value["enforcement"])));
                out
            });
            Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
    }
}

/// The file in force: the one that was named, or ./config.toml if there is one.
fn raw(cli: &Cli) -> Result<Raw, ConfigError> {
    match &cli.config {
        Some(path) => Raw::load(path),
        None if PathBuf::from("config.toml").exists() => Raw::load("config.toml".as_ref()),
        None => Ok(Raw::default()),
    }
}

fn config(cli: &Cli) -> Result<Config, Failure> {
    Ok(raw(cli)?.validate()?)
}

fn encryption(cli: &Cli) -> Result<crate::config::Encryption, Failure> {
    config(cli)?.encryption.ok_or_else(|| Failure {
        exit: EXIT_CONFIG,
        code: Code::ConfigError.to_string(),
        text: "encryption is off in this configuration".into(),
    })
}

fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    tokio::runtime::Builder::new_multi_thread().enable_all().event_interval(EVENT_INTERVAL).build().map_err(
        |e| Failure { exit: 1, code: Code::Internal.to_string(), text: format!("starting the runtime: {e}") },
    )
}

fn run(cli: &Cli) -> Result<ExitCode, Failure> {
    let filter = tracing_subscriber::EnvFilter::try_from_env("THENODES_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    // What cannot be said because nobody takes it is not said elsewhere, where saying it would panic.
    let lines = tracing_subscriber::fmt().log_internal_errors(false);
    lines.with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).init();
    let raw = raw(cli)?;
    // Best effort: a node of few plugins needs no more than it has.
    let _ = crate::plugins::process::make_room();
    runtime()?.block_on(async {
        // From the first moment on: a signal during the start must not be lost.
        let signals = || {
            Ok((
                signal(SignalKind::terminate())?,
                signal(SignalKind::interrupt())?,
                signal(SignalKind::hangup())?,
            ))
        };
        let (mut term, mut interrupt, mut hangup) = signals().map_err(|e: std::io::Error| Failure {
            exit: 1,
            code: Code::Internal.to_string(),
            text: format!("listening for signals: {e}"),
        })?;
        let node = tokio::select! {
            node = Node::start(raw) => node?,
            _ = term.recv() => return Ok(ExitCode::SUCCESS),
            _ = interrupt.recv() => return Ok(ExitCode::SUCCESS),
        };
        say(&format!("🟢 {} is running. {}", printable(&node.config.app_name, 64), node.summary()));
        for plugin in node.plugins.all() {
            say(&format!("🔌 Loaded plugin: {}", plugin.image().path.display()));
        }
        tell_manager(&[NotifyState::Ready, NotifyState::Status(&node.summary())]);
        let watchdog = tokio::spawn(watchdog());
        // Whoever sits before it and closes the terminal wants it to end; a daemon is told to look at its rules.
        use std::io::IsTerminal;
        let attended = std::io::stdin().is_terminal()
            || std::io::stdout().is_terminal()
            || std::io::stderr().is_terminal();
        let hung_up = async {
            if attended {
                hangup.recv().await;
            } else {
                reloads(&mut hangup, node.view()).await;
            }
        };
        let prompting = async {
            if cli.prompt {
                prompt::run(node.view()).await;
            } else {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            _ = term.recv() => {}
            _ = interrupt.recv() => {}
            () = hung_up => {}
            () = prompting => {}
        }
        tell_manager(&[NotifyState::Stopping]);
        say("🛑 shutting down");
        tokio::select! {
            () = node.shut_down() => {}
            // Asked twice: now.
            _ = term.recv() => {}
            _ = interrupt.recv() => {}
        }
        watchdog.abort();
        Ok(ExitCode::SUCCESS)
    })
    // The prompt's thread may still wait for a line; leaving main ends it.
}

/// Reads the rules again at each SIGHUP. What came of it stands in the log.
async fn reloads(hangup: &mut Signal, view: View) {
    while hangup.recv().await.is_some() {
        let _ = view.answer(Question::TrustReload, "SIGHUP").await;
    }
}

fn tell_manager(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!("telling the service manager: {error}");
    }
}

/// Tells systemd that the runtime still runs tasks, three times per its deadline.
async fn watchdog() {
    let Some(deadline) = sd_notify::watchdog_enabled() else { return };
    let mut beat = tokio::time::interval((deadline / 3).max(Duration::from_millis(10)));
    loop {
        beat.tick().await;
        // Through the pool and back: a runtime whose workers are stuck does not get here.
        if tokio::spawn(async {}).await.is_ok() {
            tell_manager(&[NotifyState::Watchdog]);
        }
    }
}

fn show(cli: &Cli, question: &Question, people: impl FnOnce(&Value) -> String) -> Result<ExitCode, Failure> {
    let value = ask_node(cli, question)?;
    print(cli.json, &value, || people(&value));
    Ok(ExitCode::SUCCESS)
}

fn ask_node(cli: &Cli, question: &Question) -> Result<Value, Failure> {
    Ok(ask(&socket(cli)?, question)?)
}

/// Where the running node listens.
fn socket(cli: &Cli) -> Result<PathBuf, Failure> {
    Ok(match &cli.socket {
        Some(socket) => socket.clone(),
        None => {
            let config = config(cli)?;
            // An operator's shell has no RUNTIME_DIRECTORY; the packaged service has its socket here.
            let packaged = PathBuf::from("/run/thenodes/admin.sock");
            if !config.admin_socket.exists() && packaged.exists() {
                packaged
            } else {
                config.admin_socket
            }
        }
    })
}

/// A line for whoever asked; false if nobody reads any more.
fn told(line: &str) -> bool {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}").and_then(|()| out.flush()).is_ok()
}

/// A line for whoever watches. A standard output that is closed must not end a node.
fn say(line: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stdout().lock(), "{line}");
}

fn print(json: bool, value: &Value, people: impl FnOnce() -> String) {
    let text = if json { value.to_string() } else { people() };
    say(text.trim_end());
}
