//! `thenodes trust`: whom the operator trusts, who came, and with which key each id came first. Files only but for `reload`, so it works with and
//! without a running node, which reads them at each connection. Ids and names of strangers are made printable.

use super::{encryption, print, socket, Cli, Failure, EXIT_CONFIG};
use crate::admin::{ask, Question};
use crate::config::{is_node_id, Encryption, TrustMode};
use crate::security::bindings::{Binding, BindingError, Bindings};
use crate::security::directory::{self, Pair, Trusted, Trusting};
use crate::text::printable;
use clap::Subcommand;
use serde_json::{json, Value};
use std::path::PathBuf;
use std::process::ExitCode;
use thenodes_ipc::Code;

#[derive(Debug, Subcommand)]
pub(super) enum TrustCommand {
    /// Have the running node read [encryption] again: mode, pins, dates, directories, own certificate. All else takes a restart.
    Reload,
    #[command(flatten)]
    Files(FilesCommand),
}

#[derive(Debug, Subcommand)]
pub(super) enum FilesCommand {
    /// Trust a key: a fingerprint of 64 hex digits, or a PEM file. A certificate that names a node id is trusted under that id alone.
    Add {
        /// Fingerprint or file.
        what: String,
        /// Where its id is another key's: trust this one in its place.
        #[arg(long)]
        replace: bool,
    },
    /// Trust a key whose certificate was kept when it came (see `observed`).
    Promote {
        /// Fingerprint.
        fingerprint: String,
        /// Where its id is another key's: trust this one in its place.
        #[arg(long)]
        replace: bool,
    },
    /// List trusted fingerprints.
    List,
    /// List the certificates of strangers that were kept.
    Observed,
    /// List which node id came with which key first.
    Bindings,
    /// Give a node id to a key, before it came or in place of the key that it came with.
    Bind {
        /// Node id.
        node_id: String,
        /// Fingerprint of its key.
        fingerprint: String,
    },
    /// Forget with which key a node id came first: whoever comes with that id next is its first.
    Forget {
        /// Node id.
        node_id: String,
    },
}

impl From<BindingError> for Failure {
    fn from(error: BindingError) -> Self {
        Self { exit: 1, code: Code::Internal.to_string(), text: error.to_string() }
    }
}

fn not_found(text: String) -> Failure {
    Failure { exit: 1, code: Code::NotFound.to_string(), text }
}

/// Which of these keys are trusted under which id.
fn pairs<'a>(of: &Trusted, keys: impl Iterator<Item = &'a String>) -> Vec<Value> {
    let of_key =
        |key: &'a String| of.names_of(key).map(move |id| json!({ "node_id": id, "fingerprint": key }));
    keys.flat_map(of_key).collect()
}

/// What came of reading the rules again, for people.
pub(crate) fn reloaded(value: &Value) -> String {
    let word = |value: &Value| printable(value.as_str().unwrap_or_default(), 500);
    let list = |key: &str| value[key].as_array().into_iter().flatten();
    let file = word(&value["file"]);
    let mut lines: Vec<String> = list("changed")
        .map(|of| format!("{}: {} -> {}", word(&of["key"]), word(&of["from"]), word(&of["to"])))
        .collect();
    match lines.is_empty() {
        true => lines.push(format!("[encryption] of {file} says what it said before")),
        false => {
            let peers = &value["peers_judged_again"];
            lines.insert(0, format!("changed by [encryption] of {file}:"));
            lines.push(format!("connected peers that are judged again: {peers}"));
        }
    }
    lines.extend(list("without_effect").map(|key| format!("without effect: {}", word(key))));
    lines.join("\n")
}

/// Asks the running node to read its rules again.
fn reload(cli: &Cli) -> Result<ExitCode, Failure> {
    let value = ask(&socket(cli)?, &Question::TrustReload).map_err(|error| {
        let exit = (error.code == Code::ConfigError).then_some(EXIT_CONFIG);
        let failure = Failure::from(error);
        Failure { exit: exit.unwrap_or(failure.exit), ..failure }
    })?;
    print(cli.json, &value, || reloaded(&value));
    Ok(ExitCode::SUCCESS)
}

pub(super) fn run(cli: &Cli, command: &TrustCommand) -> Result<ExitCode, Failure> {
    match command {
        TrustCommand::Reload => reload(cli),
        TrustCommand::Files(command) => of_files(cli.json, &encryption(cli)?, command),
    }
}

fn of_files(json: bool, of: &Encryption, command: &FilesCommand) -> Result<ExitCode, Failure> {
    let dir = &of.trusted_dir;
    let added = |added: &[String]| {
        let now = directory::trusted(dir)?;
        let pairs = pairs(&now, added.iter());
        print(json, &json!({ "version": 1, "trusted": added, "pairs": pairs, "dir": dir }), || {
            let lines: Vec<String> = added.iter().map(|key| now.shown(key)).collect();
            format!("trusted from the next connection on:\n{}", lines.join("\n"))
        });
        Ok::<(), Failure>(())
    };
    let list = |word: &str, of: &Trusted| {
        let pairs = pairs(of, of.keys.iter());
        print(json, &json!({ "version": 1, word: of.keys, "pairs": pairs }), || {
            of.keys.iter().map(|key| of.shown(key)).collect::<Vec<_>>().join("\n")
        });
    };
    let bindings = Bindings::below(&of.observed_dir);
    let trusting = |replace| Trusting { dir, bindings: bindings.clone(), replace };
    match command {
        FilesCommand::Add { what, replace } if PathBuf::from(what).is_file() => {
            added(&trusting(*replace).file(what.as_ref())?)?;
        }
        FilesCommand::Add { what, .. } => {
            directory::trust_fingerprint(dir, what)?;
            added(&[what.trim().to_ascii_lowercase()])?;
        }
        FilesCommand::Promote { fingerprint, replace } => {
            let fingerprint = fingerprint.trim().to_ascii_lowercase();
            if trusting(*replace).promote(&of.observed_dir, &fingerprint)?.is_none() {
                return Err(not_found(format!(
                    "{}: no certificate with this fingerprint was kept in {}; `thenodes trust observed` lists them",
                    printable(&fingerprint, 80),
                    of.observed_dir.display()
                )));
            }
            added(&[fingerprint])?;
        }
        FilesCommand::List => list("trusted", &directory::trusted(dir)?),
        FilesCommand::Observed => list("observed", &directory::trusted(&of.observed_dir)?),
        FilesCommand::Bindings => {
            let list = bindings.list()?;
            let values: Vec<Value> = list
                .iter()
                .map(|binding| json!({ "node_id": binding.node_id, "fingerprint": binding.fingerprint }))
                .collect();
            print(json, &json!({ "version": 1, "bindings": values }), || {
                list.iter()
                    .map(|binding| format!("{} {}", binding.fingerprint, printable(&binding.node_id, 128)))
                    .collect::<Vec<_>>()
                    .join("\n")
            });
        }
        FilesCommand::Bind { node_id, fingerprint } => {
            let fingerprint = fingerprint.trim().to_ascii_lowercase();
            if !is_node_id(node_id) || !directory::is_fingerprint(&fingerprint) {
                let text = format!(
                    "{} {}: a node id of 1 to 128 characters of A-Z, a-z, 0-9, '.', '_', '-' and a fingerprint of 64 hex digits are wanted",
                    printable(node_id, 128),
                    printable(&fingerprint, 80)
                );
                return Err(Failure { exit: 1, code: Code::InvalidInput.to_string(), text });
            }
            let mode = of.policy.mode;
            if !matches!(mode, TrustMode::Allowlist | TrustMode::Observe | TrustMode::Tofu) {
                let text = format!(
                    "trust mode {} remembers no ids on disk; allowlist, observe and tofu do",
                    mode.event_name()
                );
                return Err(Failure { exit: 1, code: Code::Conflict.to_string(), text });
            }
            if bindings.prepare()? {
                eprintln!(
                    "there was no memory of ids at {}: it begins with this one",
                    bindings.dir().display()
                );
            }
            bindings.give(&Binding { node_id: node_id.clone(), fingerprint: fingerprint.clone() })?;
            let value = json!({ "version": 1, "node_id": node_id, "fingerprint": fingerprint });
            let pair = directory::trusted(dir)?.pair(node_id, &fingerprint);
            print(json, &value, || {
                match pair {
                Pair::OfAnother | Pair::Elsewhere { .. } => format!(
                    "{node_id} belongs to {fingerprint}, but a certificate in {} says otherwise and is asked first",
                    dir.display()
                ),
                Pair::Listed | Pair::Unsaid => {
                    format!("{node_id} belongs to {fingerprint}; whether that key is trusted is another question")
                }
            }
            });
        }
        FilesCommand::Forget { node_id } => {
            if !bindings.forget(node_id)? {
                return Err(not_found(format!("{}: no such id has come yet", printable(node_id, 128))));
            }
            print(json, &json!({ "version": 1, "forgotten": node_id }), || {
                format!("forgotten: whoever comes as {} next is its first", printable(node_id, 128))
            });
        }
    }
    Ok(ExitCode::SUCCESS)
}
