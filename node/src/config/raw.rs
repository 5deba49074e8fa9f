//! The file as it is written: every key optional, unknown keys refused, places remembered. [`Raw::validate`] turns it into
//! a configuration whose values are possible.

mod encryption;

use super::error::Origin;
use super::giving::{Calls, RawForPlugin, RawPluginPolicy};
use super::limits::RawLimits;
use super::network::{self, RawDiscovery, RawNetwork};
use super::supervision::RawSupervision;
use super::Transport;
use super::{
    Budget, Config, ConfigError, Identity, Logging, ManifestLimits, OnViolation, Plugins, Required,
    DEFAULT_PORT, DEFAULT_UID_BASE,
};
use serde::Deserialize;
use serde_spanned::Spanned;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;
use thenodes::realms::RealmInfo;
use thenodes_ipc::launch::ProcessLimits;

/// Largest configuration file, bytes.
const MAX_FILE: u64 = 1024 * 1024;
/// Most nodes to dial.
pub(super) const MAX_BOOTSTRAP: usize = 256;

/// The top level of the file.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)] // the keys are described in docs/operating.md
pub struct Raw {
    #[serde(skip)]
    pub(super) origin: Origin,
    #[serde(skip)]
    pub(super) capabilities: Vec<String>,
    pub(super) port: Option<Spanned<u16>>,
    bind_address: Option<Spanned<String>>,
    pub(super) bootstrap_nodes: Option<Vec<Spanned<String>>>,
    pub(super) app_name: Option<String>,
    pub(super) realm: Option<RawRealm>,
    pub(super) node: Option<RawNode>,
    realm_access: Option<RawRealmAccess>,
    pub(super) discovery: Option<RawDiscovery>,
    logging: Option<RawLogging>,
    encryption: Option<Spanned<RawEncryption>>,
    network: Option<RawNetwork>,
    pub(super) plugins: Option<RawPlugins>,
    admin: Option<RawAdmin>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawRealm {
    name: Spanned<String>,
    version: Spanned<String>,
    code: Option<Spanned<String>>,
    #[serde(default)]
    capabilities: Vec<String>,
}

impl From<RealmInfo> for RawRealm {
    fn from(realm: RealmInfo) -> Self {
        Self {
            name: unspanned(realm.name),
            version: unspanned(realm.version),
            code: realm.code.map(unspanned),
            capabilities: Vec::new(),
        }
    }
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawNode {
    id: Option<Spanned<String>>,
    state_dir: Option<PathBuf>,
    id_file: Option<Spanned<String>>,
    allow_ephemeral: Option<bool>,
    pub(super) node_type: Option<Spanned<String>>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRealmAccess {
    allowed_node_types: Option<Vec<String>>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawLogging {
    json_path: Option<PathBuf>,
    json_max_bytes: Option<Spanned<u64>>,
    json_rotate: Option<Spanned<u32>>,
    disable_console: Option<bool>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawEncryption {
    enabled: Option<bool>,
    backend: Option<Spanned<String>>,
    mtls: Option<Spanned<bool>>,
    accept_self_signed: Option<bool>,
    paths: Option<RawPaths>,
    trust_policy: Option<RawTrust>,
    noise: Option<Spanned<toml::Table>>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawPaths {
    own_certificate: Option<PathBuf>,
    own_private_key: Option<PathBuf>,
    trusted_cert_dir: Option<PathBuf>,
    issuer_cert_dir: Option<PathBuf>,
    trusted_crl_dir: Option<PathBuf>,
    rejected_dir: Option<PathBuf>,
    issuer_crl_dir: Option<PathBuf>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTrust {
    mode: Option<Spanned<String>>,
    accept_self_signed: Option<Spanned<bool>>,
    store_new_certs: Option<Spanned<String>>,
    reject_expired: Option<bool>,
    reject_before_valid: Option<bool>,
    enforce_ca_chain: Option<bool>,
    realm_subject_binding: Option<bool>,
    #[serde(default)]
    pin_subjects: Vec<String>,
    #[serde(default)]
    pin_fingerprints: Vec<Spanned<String>>,
    pin_fp_algo: Option<Spanned<String>>,
    paths: Option<RawTrustPaths>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTrustPaths {
    observed_dir: Option<PathBuf>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawPlugins {
    dir: Option<PathBuf>,
    runner: Option<PathBuf>,
    transport: Option<Spanned<String>>,
    spare_runner: Option<bool>,
    pub(super) defaults: Option<RawPluginDefaults>,
    pub(super) policy: Option<RawPluginPolicy>,
    #[serde(default, rename = "for")]
    pub(super) by_name: BTreeMap<Spanned<String>, RawForPlugin>,
    pub(super) limits: Option<RawLimits>,
    watchdog: Option<RawWatchdog>,
    sandbox: Option<RawSandbox>,
    supervision: Option<RawSupervision>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawWatchdog {
    sample_s: Option<Spanned<u64>>,
    violations: Option<Spanned<u64>>,
    on_violation: Option<Spanned<String>>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawPluginDefaults {
    pub(super) permissions: Option<Vec<Spanned<String>>>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawSandbox {
    required: Option<Spanned<String>>,
    seccomp: Option<Spanned<String>>,
    calls: Option<Vec<Spanned<String>>>,
    calls_file: Option<Spanned<PathBuf>>,
    uid_base: Option<Spanned<u32>>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawAdmin {
    socket: Option<PathBuf>,
}

/// A value that stands in no file.
pub(super) fn unspanned<T>(value: T) -> Spanned<T> {
    Spanned::new(0..0, value)
}

/// Suggested nodes, as far as they are `host:port`.
pub(super) fn host_ports(nodes: Vec<String>) -> Vec<Spanned<String>> {
    nodes.into_iter().filter(|node| is_host_port(node)).take(MAX_BOOTSTRAP).map(unspanned).collect()
}

/// A name or an address, and a port.
pub(crate) fn is_host_port(node: &str) -> bool {
    let Some((host, port)) = node.rsplit_once(':') else { return false };
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._:[]%".contains(&b);
    !host.is_empty()
        && host.len() <= 255
        && host.bytes().all(plain)
        && port.parse::<u16>().is_ok_and(|p| p > 0)
}

/// A node id: 1 to 128 characters of `[A-Za-z0-9._-]`.
pub(crate) fn is_node_id(id: &str) -> bool {
    (1..=128).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
}

impl RawPlugins {
    pub(super) fn calls(&self) -> Calls<'_> {
        let sandbox = self.sandbox.as_ref();
        Calls {
            mode: sandbox.and_then(|sandbox| sandbox.seccomp.as_ref()),
            names: sandbox.and_then(|sandbox| sandbox.calls.as_deref()),
            file: sandbox.and_then(|sandbox| sandbox.calls_file.as_ref()),
        }
    }
}

impl Raw {
    /// Reads a file.
    pub fn load(path: &Path) -> Result<Raw, ConfigError> {
        let failed = |source| ConfigError::Read { path: path.into(), source };
        let size = std::fs::metadata(path).map_err(failed)?.len();
        if size > MAX_FILE {
            return Err(failed(std::io::Error::other(format!("{size} bytes; at most {MAX_FILE} are read"))));
        }
        Raw::parse(path, &std::fs::read_to_string(path).map_err(failed)?)
    }

    /// Reads a text. `path` is for errors.
    pub fn parse(path: &Path, text: &str) -> Result<Raw, ConfigError> {
        let origin = Origin::new(path, text);
        let mut raw: Raw =
            toml::from_str(text).map_err(|e| origin.error(e.span().unwrap_or(0..0), e.message(), None))?;
        raw.origin = origin;
        Ok(raw)
    }

    pub(super) fn wrong<T, V>(
        &self,
        value: &Spanned<V>,
        what: impl Into<String>,
        help: &str,
    ) -> Result<T, ConfigError> {
        Err(self.origin.error(value.span(), what, Some(help)))
    }

    /// Checks every value and fills in defaults.
    pub fn validate(self) -> Result<Config, ConfigError> {
        let identity = self.identity()?;
        let runtime = std::env::var_os("RUNTIME_DIRECTORY").map(PathBuf::from);
        let socket = self.admin.as_ref().and_then(|admin| admin.socket.clone());
        let admin_socket = socket
            .unwrap_or_else(|| runtime.unwrap_or_else(|| identity.state_dir.clone()).join("admin.sock"));
        let mut without_effect = Vec::new();
        let (discovery, state_dir) = (self.discovery.as_ref(), &identity.state_dir);
        let networking =
            network::check(&self.origin, self.network.as_ref(), discovery, state_dir, &mut without_effect)?;
        without_effect.extend(self.limit_keys());
        if self.realm.as_ref().is_some_and(|realm| !realm.capabilities.is_empty()) {
            without_effect.push("realm.capabilities: reserved, as in upstream".into());
        }
        let encryption = self.encryption(&mut without_effect)?;
        Ok(Config {
            bind_address: self.bind_address()?,
            port: self.port.as_ref().map_or(DEFAULT_PORT, |port| *port.get_ref()),
            app_name: self.app_name.clone().unwrap_or_else(|| thenodes::constants::DEFAULT_APP_NAME.into()),
            bootstrap_nodes: self.bootstrap()?,
            realm: self.realm()?,
            node: identity,
            allowed_node_types: self
                .realm_access
                .as_ref()
                .and_then(|access| access.allowed_node_types.clone()),
            capabilities: self.capabilities.clone(),
            encryption,
            logging: self.logging()?,
            networking,
            plugins: self.plugins()?,
            admin_socket,
            without_effect,
            file: (!self.origin.path.as_os_str().is_empty()).then(|| self.origin.path.clone()),
        })
    }

    fn bind_address(&self) -> Result<IpAddr, ConfigError> {
        match &self.bind_address {
            None => Ok(IpAddr::from([0, 0, 0, 0])),
            Some(text) => match text.get_ref().parse() {
                Ok(address) => Ok(address),
                Err(_) => self.wrong(
                    text,
                    "not an IP address",
                    "write one like \"127.0.0.1\", \"0.0.0.0\" or \"::\"",
                ),
            },
        }
    }

    fn bootstrap(&self) -> Result<Vec<String>, ConfigError> {
        let nodes = self.bootstrap_nodes.as_deref().unwrap_or_default();
        for (at, node) in nodes.iter().enumerate() {
            if !is_host_port(node.get_ref()) {
                return self.wrong(
                    node,
                    "not host:port",
                    "write a name or address and a port from 1 to 65535",
                );
            }
            if at >= MAX_BOOTSTRAP {
                return self.wrong(
                    node,
                    format!("more than {MAX_BOOTSTRAP} bootstrap nodes"),
                    "keep the most stable ones",
                );
            }
        }
        Ok(nodes.iter().map(|node| node.get_ref().clone()).collect())
    }

    fn realm(&self) -> Result<RealmInfo, ConfigError> {
        let Some(realm) = &self.realm else { return Ok(RealmInfo::default()) };
        for value in [Some(&realm.name), Some(&realm.version), realm.code.as_ref()].into_iter().flatten() {
            let text = value.get_ref();
            if text.trim().is_empty() || text.len() > 256 || text.chars().any(char::is_control) {
                return self.wrong(
                    value,
                    "empty, too long, or with control characters",
                    "use 1 to 256 printable characters",
                );
            }
        }
        Ok(RealmInfo {
            name: realm.name.get_ref().clone(),
            code: realm.code.as_ref().map(|code| code.get_ref().clone()),
            version: realm.version.get_ref().clone(),
        })
    }

    fn identity(&self) -> Result<Identity, ConfigError> {
        let none = RawNode::default();
        let node = self.node.as_ref().unwrap_or(&none);
        if let Some(id) = node.id.as_ref().filter(|id| !is_node_id(id.get_ref())) {
            return self.wrong(
                id,
                "not a node id",
                "use 1 to 128 characters of A-Z, a-z, 0-9, '.', '_' and '-'",
            );
        }
        if let Some(file) =
            node.id_file.as_ref().filter(|file| !is_node_id(file.get_ref()) || file.get_ref() == "..")
        {
            return self.wrong(
                file,
                "not a plain file name",
                "the file lies in state_dir; name it without a path",
            );
        }
        if let Some(kind) = node.node_type.as_ref().filter(|kind| !is_node_id(kind.get_ref())) {
            return self.wrong(
                kind,
                "not a node type",
                "use 1 to 128 characters of A-Z, a-z, 0-9, '.', '_' and '-'",
            );
        }
        let state = std::env::var_os("STATE_DIRECTORY").map(PathBuf::from);
        Ok(Identity {
            id: node.id.as_ref().map(|id| id.get_ref().clone()),
            state_dir: node.state_dir.clone().or(state).unwrap_or_else(|| "data".into()),
            id_file: node.id_file.as_ref().map_or_else(|| "node_id".into(), |file| file.get_ref().clone()),
            allow_ephemeral: node.allow_ephemeral.unwrap_or(true),
            node_type: node.node_type.as_ref().map_or_else(|| "daemon".into(), |kind| kind.get_ref().clone()),
        })
    }

    fn logging(&self) -> Result<Logging, ConfigError> {
        let none = RawLogging::default();
        let logging = self.logging.as_ref().unwrap_or(&none);
        if let Some(bytes) = logging.json_max_bytes.as_ref().filter(|bytes| *bytes.get_ref() < 4096) {
            return self.wrong(
                bytes,
                "less than 4096 bytes",
                "an event has up to 4096 bytes; the default is 5242880",
            );
        }
        if let Some(count) = logging.json_rotate.as_ref().filter(|count| *count.get_ref() > 1000) {
            return self.wrong(count, "more than 1000 files", "the default is 3");
        }
        Ok(Logging {
            json_path: logging.json_path.clone().unwrap_or_else(|| "logs/trust_audit.jsonl".into()),
            json_max_bytes: logging.json_max_bytes.as_ref().map_or(5 * 1024 * 1024, |bytes| *bytes.get_ref()),
            json_rotate: logging.json_rotate.as_ref().map_or(3, |count| *count.get_ref()),
            console: !logging.disable_console.unwrap_or(false),
        })
    }

    fn plugins(&self) -> Result<Plugins, ConfigError> {
        let none = RawPlugins::default();
        let plugins = self.plugins.as_ref().unwrap_or(&none);
        let maxima = self.limits(plugins.limits.as_ref())?;
        let no_sandbox = RawSandbox::default();
        let sandbox = plugins.sandbox.as_ref().unwrap_or(&no_sandbox);
        let transport = match plugins.transport.as_ref().map(|word| (word, word.get_ref().as_str())) {
            None | Some((_, "ring")) => Transport::Ring,
            Some((_, "socket")) => Transport::Socket,
            Some((word, _)) => {
                return self.wrong(word, "no such way for frames", "use \"ring\" or \"socket\"")
            }
        };
        let required = match sandbox.required.as_ref().map(|required| (required, required.get_ref().as_str()))
        {
            None | Some((_, "full")) => Required::Full,
            Some((_, "reduced")) => Required::Reduced,
            Some((required, _)) => {
                return self.wrong(required, "no such level", "use \"full\" or \"reduced\"")
            }
        };
        let uid_base = match &sandbox.uid_base {
            None => DEFAULT_UID_BASE,
            Some(base) if (1000..4_000_000_000).contains(base.get_ref()) => *base.get_ref(),
            Some(base) => {
                return self.wrong(base, "out of range", "use a range of uids that no user has, from 1000 up")
            }
        };
        Ok(Plugins {
            dir: plugins.dir.clone().unwrap_or_else(|| "plugins".into()),
            runner: plugins.runner.clone(),
            transport,
            spare: plugins.spare_runner.unwrap_or(true),
            limits: ProcessLimits {
                memory: maxima.memory_mb.unwrap_or(128) * 1024 * 1024,
                threads: maxima.threads.unwrap_or(16),
                descriptors: maxima.fds.unwrap_or(64),
                cpu_seconds: maxima.cpu_seconds,
                file_size: maxima.file_mb.unwrap_or(0) * 1024 * 1024,
            },
            budget: maxima.budget_of_all(self.watchdog(plugins.watchdog.as_ref())?),
            giving: self.giving(plugins, maxima)?,
            required,
            uid_base,
            supervision: plugins.supervision.clone().unwrap_or_default().check(&self.origin)?,
        })
    }

    /// What the watchdog does, for all plugins alike.
    fn watchdog(&self, table: Option<&RawWatchdog>) -> Result<Budget, ConfigError> {
        let mut budget = Budget::default();
        let Some(table) = table else { return Ok(budget) };
        let within = |value: &Option<Spanned<u64>>, default: u64, most: u64| match value {
            None => Ok(default),
            Some(value) if (1..=most).contains(value.get_ref()) => Ok(*value.get_ref()),
            Some(value) => {
                self.wrong(value, "out of range", &format!("from 1 to {most}; the default is {default}"))
            }
        };
        budget.sample = Duration::from_secs(within(&table.sample_s, 10, 3600)?);
        budget.violations = within(&table.violations, 10, 100)?;
        if let Some(word) = &table.on_violation {
            budget.on_violation = match OnViolation::parse(word.get_ref()) {
                Some(action) => action,
                None => {
                    return self.wrong(word, "no such action", "use \"warn\", \"restart\" or \"disable\"")
                }
            };
        }
        Ok(budget)
    }

    pub(super) fn limits(&self, table: Option<&RawLimits>) -> Result<ManifestLimits, ConfigError> {
        table.map_or(Ok(ManifestLimits::default()), |table| table.check(&self.origin))
    }
}
