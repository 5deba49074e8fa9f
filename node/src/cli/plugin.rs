//! `thenodes plugin ..`: what can be asked and ordered about plugins of a running node. What comes back holds texts of plugins, which
//! nobody trusts: the node made them printable, and what is printed here is made so again.

use super::show::{brought, denials, details, lines_of, permissions, table, violations};
use super::{ask_node, call, config, logs, print, show, top, Cli, Failure, EXIT_CONFIG};
use crate::admin::Question;
use clap::Subcommand;
use std::path::PathBuf;
use std::process::ExitCode;
use thenodes_ipc::Code;

#[derive(Debug, Subcommand)]
pub(super) enum PluginCommand {
    /// All plugins, their state and sandbox level.
    List,
    /// One plugin: every wall, counters, last death.
    Status {
        /// Name of the plugin.
        name: String,
    },
    /// The last lines that a plugin printed, and what the node said about it.
    Logs(logs::Wish),
    /// Calls, errors, latencies and resources of one plugin, as Prometheus text.
    Metrics {
        /// Name of the plugin.
        name: String,
    },
    /// All plugins by what they do now: calls a second, latency, processor time, memory. On a terminal again every second.
    Top {
        /// Once, over one second.
        #[arg(long)]
        once: bool,
    },
    /// Send a request to a plugin and print the bytes that it answers.
    Call(call::Wish),
    /// How often a plugin was found at or beyond each limit, and the last times.
    Violations {
        /// Name of the plugin.
        name: String,
        /// Forget them.
        #[arg(long)]
        reset: bool,
    },
    /// What a plugin asked for, what it was given, and the line that would give it the rest.
    Permissions {
        /// Name of the plugin.
        name: String,
    },
    /// What the walls of a plugin refused: every record, and how many of each call.
    Denials {
        /// Name of the plugin.
        name: String,
    },
    /// The walls around a plugin, and what is particular about them.
    Sandbox {
        /// Name of the plugin.
        name: String,
        /// And every system call that it may make, under which arguments, and why.
        #[arg(long)]
        explain: bool,
    },
    /// Start a plugin again and wait until it is up. Nothing else of the node is touched.
    Restart {
        /// Name of the plugin.
        name: String,
    },
    /// Take what lies in the plugin directory now, library and manifest, while calls go on. The old one goes on if the new one does not
    /// come up.
    Reload {
        /// Name of the plugin.
        name: String,
        /// Agree if it may do more than the one that runs.
        #[arg(long)]
        accept_permissions: bool,
    },
    /// Put another version in a plugin's place while calls go on; it is kept, and holds after the node's next start.
    Upgrade {
        /// Name of the plugin.
        name: String,
        /// The library, with its manifest beside it if it has one; or a directory with both.
        file: PathBuf,
        /// Agree if it may do more than the one that runs.
        #[arg(long)]
        accept_permissions: bool,
    },
    /// Go back to the version before the one that runs, while calls go on.
    Rollback {
        /// Name of the plugin.
        name: String,
    },
    /// Let a plugin run, now and after the node's next start.
    Enable {
        /// Name of the plugin.
        name: String,
    },
    /// Stop a plugin, and keep it stopped after the node's next start.
    Disable {
        /// Name of the plugin.
        name: String,
    },
    /// Forget a plugin's deaths, and start it if it was given up.
    Reset {
        /// Name of the plugin.
        name: String,
    },
    /// One page: state and since when, what was wanted, the last deaths with their causes, the last lines, what to do.
    Why {
        /// Name of the plugin.
        name: String,
    },
    /// Pass one line to a plugin's prompt.
    Prompt {
        /// Prefix of the prompt.
        prefix: String,
        /// The line.
        line: Vec<String>,
    },
}

fn sandbox(cli: &Cli, name: &str, explain: bool) -> Result<ExitCode, Failure> {
    let mut value = ask_node(cli, &Question::PluginSandbox { name: name.to_owned() })?;
    let mut calls = String::new();
    if explain {
        calls = crate::explain::calls(&config(cli)?, &value, cli.json).map_err(|text| Failure {
            exit: EXIT_CONFIG,
            code: Code::ConfigError.to_string(),
            text,
        })?;
        if cli.json {
            value["explained"] = serde_json::from_str(&calls).unwrap_or_default();
        }
    }
    print(cli.json, &value, || format!("{}\n{calls}", crate::explain::sandbox(&value)));
    Ok(ExitCode::SUCCESS)
}

/// Carries a command out.
pub(super) fn run(cli: &Cli, command: &PluginCommand) -> Result<ExitCode, Failure> {
    match command {
        PluginCommand::List => show(cli, &Question::PluginList, table),
        PluginCommand::Status { name } => {
            show(cli, &Question::PluginStatus { name: name.clone() }, |value| details(&value["plugin"]))
        }
        PluginCommand::Logs(wish) => logs::run(cli, wish),
        PluginCommand::Metrics { name } => {
            let question = Question::Metrics { name: Some(name.clone()) };
            show(cli, &question, |value| value["text"].as_str().unwrap_or_default().to_owned())
        }
        PluginCommand::Top { once } => top::run(cli, *once),
        PluginCommand::Call(wish) => call::run(cli, wish),
        PluginCommand::Violations { name, reset } => {
            show(cli, &Question::PluginViolations { name: name.clone(), reset: *reset }, violations)
        }
        PluginCommand::Permissions { name } => {
            show(cli, &Question::PluginPermissions { name: name.clone() }, permissions)
        }
        PluginCommand::Denials { name } => {
            show(cli, &Question::PluginDenials { name: name.clone() }, denials)
        }
        PluginCommand::Sandbox { name, explain } => sandbox(cli, name, *explain),
        PluginCommand::Restart { name } => {
            show(cli, &Question::PluginRestart { name: name.clone() }, |value| details(&value["plugin"]))
        }
        PluginCommand::Reload { name, accept_permissions: accept } => {
            let question = Question::PluginReload { name: name.clone(), accept: *accept };
            show(cli, &question, brought)
        }
        PluginCommand::Upgrade { name, file, accept_permissions: accept } => {
            // The node has another working directory.
            let file = std::path::absolute(file).unwrap_or_else(|_| file.clone());
            let question = Question::PluginUpgrade { name: name.clone(), file, accept: *accept };
            show(cli, &question, brought)
        }
        PluginCommand::Rollback { name } => {
            show(cli, &Question::PluginRollback { name: name.clone() }, brought)
        }
        PluginCommand::Enable { name } => {
            show(cli, &Question::PluginEnable { name: name.clone() }, |value| details(&value["plugin"]))
        }
        PluginCommand::Disable { name } => {
            show(cli, &Question::PluginDisable { name: name.clone() }, |value| details(&value["plugin"]))
        }
        PluginCommand::Reset { name } => {
            show(cli, &Question::PluginReset { name: name.clone() }, |value| details(&value["plugin"]))
        }
        PluginCommand::Why { name } => {
            show(cli, &Question::PluginWhy { name: name.clone() }, crate::plugins::why::render)
        }
        PluginCommand::Prompt { prefix, line } => {
            let question = Question::Prompt { prefix: prefix.clone(), line: line.join(" ") };
            show(cli, &question, |value| match value["output"].as_str() {
                Some(output) => lines_of(output),
                None => "(unhandled)".into(),
            })
        }
    }
}
