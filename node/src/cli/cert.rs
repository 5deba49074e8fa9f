//! `thenodes cert`: makes certificates and looks at them. A file to look at may come from anybody, so what stands in it is made
//! printable.

use super::{config, encryption, print, Cli, Failure, EXIT_CONFIG};
use crate::node::StartError;
use crate::security::bindings::Bindings;
use crate::security::directory::Trusting;
use crate::security::pki::{self, Description, KeyType};
use crate::text::printable;
use clap::{Args, Subcommand, ValueEnum};
use serde_json::{json, Value};
use std::path::PathBuf;
use std::process::ExitCode;
use thenodes::realms::RealmInfo;
use thenodes_ipc::Code;

#[derive(Debug, Subcommand)]
pub(super) enum CertCommand {
    /// Make a self-signed certificate and its key.
    New(CertNew),
    /// Show what stands in the certificates of a PEM file (default: the node's own).
    Show {
        /// The file.
        file: Option<PathBuf>,
    },
    /// Print the fingerprints of a PEM file (default: the node's own certificate).
    Fingerprint {
        /// The file.
        file: Option<PathBuf>,
    },
}

#[derive(Debug, Args)]
pub(super) struct CertNew {
    /// Node id in the subject (default: the node's own).
    #[arg(long)]
    cn: Option<String>,
    /// Realm in the subject (default: the configuration's).
    #[arg(long)]
    realm: Option<String>,
    /// Days of validity.
    #[arg(long, default_value_t = pki::DEFAULT_DAYS)]
    days: u32,
    /// Kind of key.
    #[arg(long, value_enum, default_value_t = Kind::P256)]
    key_type: Kind,
    /// Where to write the certificate (default: the configuration's).
    #[arg(long)]
    out_cert: Option<PathBuf>,
    /// Where to write the key (default: the configuration's).
    #[arg(long)]
    out_key: Option<PathBuf>,
    /// Trust it as well: nodes that share a directory of trusted certificates trust each other.
    #[arg(long)]
    copy_to_trusted: bool,
    /// Replace files that exist.
    #[arg(long)]
    force: bool,
}

/// Words for [`KeyType`].
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Kind {
    /// ECDSA on P-256, which every node reads.
    P256,
    /// ECDSA on P-384.
    P384,
    /// Ed25519.
    Ed25519,
}

impl From<Kind> for KeyType {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::P256 => KeyType::P256,
            Kind::P384 => KeyType::P384,
            Kind::Ed25519 => KeyType::Ed25519,
        }
    }
}

pub(super) fn run(cli: &Cli, command: &CertCommand) -> Result<ExitCode, Failure> {
    let own = |file: &Option<PathBuf>| match file {
        Some(file) => Ok(file.clone()),
        None => Ok::<_, Failure>(encryption(cli)?.own_certificate),
    };
    match command {
        CertCommand::New(new) => return cert_new(cli, new),
        CertCommand::Show { file } => {
            let file = own(file)?;
            let list = pki::describe(&file)?;
            let values: Vec<Value> = list.iter().map(value).collect();
            print(cli.json, &json!({ "version": 1, "certificates": values, "source": file }), || {
                list.iter().map(people).collect::<Vec<_>>().join("\n\n")
            });
        }
        CertCommand::Fingerprint { file } => {
            let file = own(file)?;
            let list = pki::fingerprints(&file)?;
            print(cli.json, &json!({ "version": 1, "fingerprints": list, "source": file }), || {
                list.iter()
                    .map(|f| format!("Fingerprint (spki_sha256): {f}\nSource: {}", file.display()))
                    .collect::<Vec<_>>()
                    .join("\n")
            });
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn value(of: &Description) -> Value {
    json!({
        "fingerprint": of.fingerprint,
        "subject": of.subject,
        "issuer": of.issuer,
        "not_before": of.not_before,
        "not_after": of.not_after,
        "key": of.key,
        "names": of.names,
        "uses": of.uses,
        "self_signed": of.self_signed,
    })
}

fn people(of: &Description) -> String {
    let line = |key: &str, text: &str| format!("{key:<12} {}", printable(text, 500));
    [
        line("fingerprint", &of.fingerprint),
        line("subject", &of.subject),
        line("issuer", if of.self_signed { "itself" } else { &of.issuer }),
        line("valid", &format!("{} to {}", of.not_before, of.not_after)),
        line("key", &of.key),
        line("names", &of.names.join(", ")),
        line("uses", &of.uses.join(", ")),
    ]
    .join("\n")
}

fn cert_new(cli: &Cli, new: &CertNew) -> Result<ExitCode, Failure> {
    let config = config(cli)?;
    let dirs = config
        .encryption
        .as_ref()
        .map(|encryption| (encryption.trusted_dir.clone(), Bindings::below(&encryption.observed_dir)));
    if new.copy_to_trusted && dirs.is_none() {
        let text =
            "encryption is off in this configuration: there is no directory of trusted certificates".into();
        return Err(Failure { exit: EXIT_CONFIG, code: Code::ConfigError.to_string(), text });
    }
    let paths = match (&new.out_cert, &new.out_key, config.encryption) {
        (Some(cert), Some(key), _) => (cert.clone(), key.clone()),
        (cert, key, Some(encryption)) => (
            cert.clone().unwrap_or(encryption.own_certificate),
            key.clone().unwrap_or(encryption.own_private_key),
        ),
        (_, _, None) => {
            let text = "encryption is off in this configuration: name --out-cert and --out-key".into();
            return Err(Failure { exit: EXIT_CONFIG, code: Code::ConfigError.to_string(), text });
        }
    };
    let realm = new.realm.as_ref().map_or(config.realm, |name| RealmInfo::new(name, "1"));
    let cn = match &new.cn {
        Some(cn) => cn.clone(),
        None => crate::identity::resolve(&config.node).map_err(StartError::from)?.0,
    };
    let kind = new.key_type.into();
    let fingerprint = pki::make(&paths.0, &paths.1, &cn, &realm, kind, new.days, new.force)?;
    let trusted = dirs.filter(|_| new.copy_to_trusted);
    if let Some((dir, bindings)) = &trusted {
        // A new key in place of the old one, if that is what is forced.
        Trusting { dir, bindings: bindings.clone(), replace: new.force }.file(&paths.0)?;
    }
    let value = json!({
        "version": 1, "fingerprint": fingerprint, "certificate": paths.0, "key": paths.1, "trusted": trusted.is_some(),
    });
    print(cli.json, &value, || {
        format!("certificate: {}\nkey: {}\nspki_sha256: {fingerprint}", paths.0.display(), paths.1.display())
    });
    Ok(ExitCode::SUCCESS)
}
