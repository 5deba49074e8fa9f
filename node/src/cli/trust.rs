//! `thenodes trust`: whom the operator trusts, who came, and with which key each id came first. Files only, so it works with and
//! without a running node, which reads them at each connection. Ids and names of strangers are made printable.

use super::{print, Failure};
use crate::config::Encryption;
use crate::security::bindings::{BindingError, Bindings};
use crate::security::pki;
use crate::text::printable;
use clap::Subcommand;
use serde_json::{json, Value};
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::ExitCode;
use thenodes_ipc::Code;

#[derive(Debug, Subcommand)]
pub(super) enum TrustCommand {
    /// Trust a key: a fingerprint of 64 hex digits, or a PEM file.
    Add {
        /// Fingerprint or file.
        what: String,
    },
    /// Trust a key whose certificate was kept when it came (see `observed`).
    Promote {
        /// Fingerprint.
        fingerprint: String,
    },
    /// List trusted fingerprints.
    List,
    /// List the certificates of strangers that were kept.
    Observed,
    /// List which node id came with which key first, as `tofu` remembers it.
    Bindings,
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

pub(super) fn run(json: bool, of: &Encryption, command: &TrustCommand) -> Result<ExitCode, Failure> {
    let dir = &of.trusted_dir;
    let added = |added: &[String]| {
        print(json, &json!({ "version": 1, "trusted": added, "dir": dir }), || {
            format!("trusted from the next connection on:\n{}", added.join("\n"))
        });
    };
    let set = |key: &str, set: &BTreeSet<String>| {
        print(json, &json!({ "version": 1, key: set }), || {
            set.iter().cloned().collect::<Vec<_>>().join("\n")
        });
    };
    match command {
        TrustCommand::Add { what } if PathBuf::from(what).is_file() => {
            added(&pki::trust_file(dir, what.as_ref())?);
        }
        TrustCommand::Add { what } => {
            pki::trust_fingerprint(dir, what)?;
            added(&[what.trim().to_ascii_lowercase()]);
        }
        TrustCommand::Promote { fingerprint } => {
            let fingerprint = fingerprint.trim().to_ascii_lowercase();
            if pki::promote(&of.observed_dir, dir, &fingerprint)?.is_none() {
                return Err(not_found(format!(
                    "{}: no certificate with this fingerprint was kept in {}; `thenodes trust observed` lists them",
                    printable(&fingerprint, 80),
                    of.observed_dir.display()
                )));
            }
            added(&[fingerprint]);
        }
        TrustCommand::List => set("trusted", &pki::trusted(dir)?),
        TrustCommand::Observed => set("observed", &pki::trusted(&of.observed_dir)?),
        TrustCommand::Bindings => {
            let list = Bindings::below(&of.observed_dir).list()?;
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
        TrustCommand::Forget { node_id } => {
            if !Bindings::below(&of.observed_dir).forget(node_id)? {
                return Err(not_found(format!("{}: no such id has come yet", printable(node_id, 128))));
            }
            print(json, &json!({ "version": 1, "forgotten": node_id }), || {
                format!("forgotten: whoever comes as {} next is its first", printable(node_id, 128))
            });
        }
    }
    Ok(ExitCode::SUCCESS)
}
