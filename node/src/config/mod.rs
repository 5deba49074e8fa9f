//! Configuration: TOML files are read by `raw`, and become a [`Config`] whose values are possible. What an operator wrote
//! always wins over what plugins suggest; what nobody wrote has a default that is safe.

mod budget;
mod error;
mod giving;
mod limits;
mod network;
mod policy;
pub(crate) mod raw;
pub mod scope;
mod supervision;

pub use budget::{Budget, OnViolation, Overflow};
pub use error::ConfigError;
pub(crate) use error::Origin;
pub use limits::ManifestLimits;
pub(crate) use limits::RawLimits;
pub use network::{
    Accepting, Connecting, Deliveries, Discovery, Networking, Persistence, Relaying, Strategy,
};
pub use policy::{BadRule, Permission, Required, Rule};
pub(crate) use raw::is_node_id;
pub use raw::Raw;
pub use supervision::{HealthPolicy, Supervision};

use crate::security::chain::Authorities;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use thenodes::config::ConfigDefaults;
use thenodes::realms::RealmInfo;
use thenodes_ipc::launch::{ProcessLimits, SeccompMode};
use thenodes_ipc::PluginName;

/// Port of upstream.
pub const DEFAULT_PORT: u16 = 50000;
/// First uid of plugins under a root node: above the range that systemd and distributions give to users.
pub const DEFAULT_UID_BASE: u32 = 2_000_000;

/// How a peer's certificate is judged. Words and meanings are those of the documents of 0.1 and 0.2.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TrustMode {
    /// Any certificate that proves its key.
    Open,
    /// Only certificates whose key is in the trusted directory.
    Allowlist,
    /// As allowlist, and the certificates of others are kept to be looked at.
    Observe,
    /// Trust on first use: a node id belongs to the key that it came with first.
    Tofu,
    /// As open, under a name of its own in events.
    Hybrid,
    /// Certificates with a path to an authority of the operator's.
    Ca,
}

impl TrustMode {
    /// All of them.
    pub const ALL: [TrustMode; 6] = [
        TrustMode::Open,
        TrustMode::Allowlist,
        TrustMode::Observe,
        TrustMode::Tofu,
        TrustMode::Hybrid,
        TrustMode::Ca,
    ];

    /// Upstream's name of the mode in events.
    pub fn event_name(self) -> &'static str {
        match self {
            TrustMode::Open => "Open",
            TrustMode::Allowlist => "Allowlist",
            TrustMode::Observe => "Observe",
            TrustMode::Tofu => "Tofu",
            TrustMode::Hybrid => "HybridPlaceholder",
            TrustMode::Ca => "Ca",
        }
    }

    /// The word in a configuration.
    pub fn word(self) -> &'static str {
        match self {
            TrustMode::Open => "open",
            TrustMode::Allowlist => "allowlist",
            TrustMode::Observe => "observe",
            TrustMode::Tofu => "tofu",
            TrustMode::Hybrid => "hybrid",
            TrustMode::Ca => "ca",
        }
    }

    /// True if whoever shows no certificate is kept out.
    pub fn needs_certificates(self) -> bool {
        match self {
            TrustMode::Allowlist | TrustMode::Observe | TrustMode::Tofu | TrustMode::Ca => true,
            TrustMode::Open | TrustMode::Hybrid => false,
        }
    }

    /// True if certificates of strangers are kept: always in observe, never in allowlist, else where the operator says so.
    pub fn keeps_strangers(self, store_observed: bool) -> bool {
        match self {
            TrustMode::Observe => true,
            TrustMode::Allowlist => false,
            TrustMode::Open | TrustMode::Tofu | TrustMode::Hybrid | TrustMode::Ca => store_observed,
        }
    }
}

/// Rules for certificates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrustPolicy {
    /// Mode.
    pub mode: TrustMode,
    /// Refuse certificates after their validity. On unless the operator says otherwise.
    pub reject_expired: bool,
    /// Refuse certificates before their validity.
    pub reject_before_valid: bool,
    /// The realm's name must stand in the subject.
    pub realm_subject_binding: bool,
    /// One of these must match the subject: exact, or `~` and a part of it. Empty: no rule.
    pub pin_subjects: Vec<String>,
    /// The fingerprint must be one of these. Empty: no rule.
    pub pin_fingerprints: Vec<String>,
    /// Write certificates of unknown peers to the observed directory.
    pub store_observed: bool,
    /// A path to an authority is needed, whatever the mode.
    pub enforce_chain: bool,
}

impl TrustPolicy {
    /// Names these rules in records of decisions: the first 16 hex digits of the SHA-256 of all of them.
    pub fn checksum(&self) -> String {
        // Taken apart, so that no rule is left out.
        let Self {
            mode,
            reject_expired,
            reject_before_valid,
            realm_subject_binding,
            pin_subjects,
            pin_fingerprints,
            store_observed,
            enforce_chain,
        } = self;
        let mode = mode.event_name();
        let rules = format!("{mode} {reject_expired} {reject_before_valid} {realm_subject_binding} {pin_subjects:?} {pin_fingerprints:?} {store_observed} {enforce_chain}");
        crate::text::hex(&Sha256::digest(rules))[..16].to_owned()
    }

    /// True if a path to an authority is needed.
    pub fn needs_chain(&self) -> bool {
        self.enforce_chain || self.mode == TrustMode::Ca
    }
}

/// TLS and whom to trust.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encryption {
    /// Certificates on both sides.
    pub mtls: bool,
    /// Own certificate.
    pub own_certificate: PathBuf,
    /// Own key.
    pub own_private_key: PathBuf,
    /// Certificates and fingerprints of peers to trust.
    pub trusted_dir: PathBuf,
    /// Certificates seen.
    pub observed_dir: PathBuf,
    /// Certificates of those who were refused, if they are to be kept.
    pub rejected_dir: Option<PathBuf>,
    /// Authorities and their revocation lists.
    pub authorities: Authorities,
    /// Rules.
    pub policy: TrustPolicy,
}

/// Where events go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Logging {
    /// File for JSON lines.
    pub json_path: PathBuf,
    /// Bytes before it is rotated.
    pub json_max_bytes: u64,
    /// Rotated files kept.
    pub json_rotate: u32,
    /// Events on the console.
    pub console: bool,
}

/// Who the node is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Fixed id.
    pub id: Option<String>,
    /// Directory of runtime state.
    pub state_dir: PathBuf,
    /// File of the persisted id in it.
    pub id_file: String,
    /// Go on with an id for this run only, if none can be persisted.
    pub allow_ephemeral: bool,
    /// Type announced to peers.
    pub node_type: String,
}

/// What an operator says about one plugin.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ForPlugin {
    /// Given if its manifest asks for it.
    pub allow: Vec<Rule>,
    /// Never given.
    pub deny: Vec<Rule>,
    /// Limits, tighter than those of all.
    pub limits: ManifestLimits,
    /// What happens when too many messages wait for it.
    pub queue: Overflow,
    /// Its own list of system calls, and calls beside it.
    pub seccomp: Option<(SeccompMode, Vec<String>)>,
}

/// What plugins are given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Giving {
    /// To plugins without a manifest.
    pub defaults: Vec<Rule>,
    /// To every plugin whose manifest asks for it.
    pub policy: Vec<Rule>,
    /// An `allow` counts even if the manifest does not ask for it.
    pub widen: bool,
    /// To single plugins.
    pub by_name: BTreeMap<PluginName, ForPlugin>,
    /// Limits of all that nobody goes beyond; what the process is held to stands in [`Plugins::limits`].
    pub limits: ManifestLimits,
    /// The list of system calls, and calls beside it, where nobody says otherwise.
    pub seccomp: (SeccompMode, Vec<String>),
}

/// How frames travel between node and runner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Transport {
    /// Through shared memory beside the socket.
    #[default]
    Ring,
    /// Through the socket alone.
    Socket,
}

/// Plugins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plugins {
    /// Directory of plugin libraries.
    pub dir: PathBuf,
    /// The runner program, if it is not beside the node's.
    pub runner: Option<PathBuf>,
    /// How frames travel between node and runners.
    pub transport: Transport,
    /// Whether a runner is kept ready for the next start.
    pub spare: bool,
    /// What they are given.
    pub giving: Giving,
    /// Limits of each process; a manifest or `[plugins.for.NAME]` only makes them tighter.
    pub limits: ProcessLimits,
    /// Limits of each that are held from outside.
    pub budget: Budget,
    /// Lowest sandbox level.
    pub required: Required,
    /// First uid under a root node.
    pub uid_base: u32,
    /// How they are watched over.
    pub supervision: Supervision,
}

/// A configuration whose values are possible.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// The file it came from, if any.
    pub file: Option<PathBuf>,
    /// Address to listen on.
    pub bind_address: IpAddr,
    /// Port to listen on; zero lets the kernel choose.
    pub port: u16,
    /// Name in banners.
    pub app_name: String,
    /// Nodes to dial, `host:port`.
    pub bootstrap_nodes: Vec<String>,
    /// Realm.
    pub realm: RealmInfo,
    /// Identity.
    pub node: Identity,
    /// Types of peers that are let in; `None` is all.
    pub allowed_node_types: Option<Vec<String>>,
    /// Capabilities announced.
    pub capabilities: Vec<String>,
    /// TLS; `None` only if the operator wrote `enabled = false`.
    pub encryption: Option<Encryption>,
    /// Events.
    pub logging: Logging,
    /// How the network is run.
    pub networking: Networking,
    /// Plugins.
    pub plugins: Plugins,
    /// Path of the admin socket.
    pub admin_socket: PathBuf,
    /// Keys that were written and have no effect in this release, with their reason.
    pub without_effect: Vec<String>,
}

/// A suggestion of a plugin, and what became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Applied {
    /// Keys that took the plugin's value.
    pub taken: Vec<&'static str>,
    /// Keys that did not, with the reason.
    pub refused: Vec<(&'static str, &'static str)>,
}

impl Raw {
    /// Fills keys that the operator left out from a plugin's suggestion. Earlier plugins win over later ones, and the
    /// operator over all. What would give a plugin power over the node is never taken.
    pub fn suggest(&mut self, defaults: ConfigDefaults) -> Applied {
        let mut applied = Applied { taken: Vec::new(), refused: Vec::new() };
        let ConfigDefaults {
            port,
            realm,
            app_name,
            encryption,
            bootstrap_nodes,
            bootstrap_nodes_extend,
            logging,
            node,
            discovery,
            capabilities,
        } = defaults;
        const OPERATOR: &str = "the operator has set it";
        let mut fill = |name: &'static str, wanted: bool, free: bool| {
            match (wanted, free) {
                (true, true) => applied.taken.push(name),
                (true, false) => applied.refused.push((name, OPERATOR)),
                (false, _) => {}
            }
            wanted && free
        };
        // Privileged ports are an operator's decision.
        let port = port.filter(|port| *port >= 1024);
        if fill("port", port.is_some(), self.port.is_none()) {
            self.port = port.map(raw::unspanned);
        }
        if fill("realm", realm.is_some(), self.realm.is_none()) {
            self.realm = realm.map(raw::RawRealm::from);
        }
        if fill("app_name", app_name.is_some(), self.app_name.is_none()) {
            self.app_name = app_name.map(|name| name.chars().filter(|c| !c.is_control()).take(64).collect());
        }
        if fill("bootstrap_nodes", bootstrap_nodes.is_some(), self.bootstrap_nodes.is_none()) {
            self.bootstrap_nodes = bootstrap_nodes.map(raw::host_ports);
        }
        if let Some(asks) = discovery {
            if fill("discovery", true, self.discovery.is_none()) {
                let wanted = network::RawDiscovery::suggested;
                self.discovery = Some(wanted(asks.enabled, asks.request_interval_secs, asks.request_want));
            }
        }
        if let Some(more) = bootstrap_nodes_extend {
            let nodes = self.bootstrap_nodes.get_or_insert_default();
            for node in raw::host_ports(more) {
                if nodes.len() < raw::MAX_BOOTSTRAP
                    && !nodes.iter().any(|known| known.get_ref() == node.get_ref())
                {
                    nodes.push(node);
                }
            }
            applied.taken.push("bootstrap_nodes_extend");
        }
        if let Some(words) = capabilities {
            for word in words {
                let plain = (1..=64).contains(&word.len()) && word.bytes().all(|b| b.is_ascii_graphic());
                if plain && self.capabilities.len() < 32 && !self.capabilities.contains(&word) {
                    self.capabilities.push(word);
                }
            }
            applied.taken.push("capabilities");
        }
        if let Some(node) = node {
            let table = self.node.get_or_insert_default();
            match node.node_type {
                Some(kind) if table.node_type.is_none() => {
                    table.node_type = Some(raw::unspanned(kind));
                    applied.taken.push("node.node_type");
                }
                Some(_) => applied.refused.push(("node.node_type", OPERATOR)),
                None => {}
            }
            if node.id.is_some() || node.state_dir.is_some() || node.id_file.is_some() {
                applied.refused.push(("node", "identity and paths are the operator's alone"));
            }
        }
        if encryption.is_some() {
            applied.refused.push(("encryption", "security is the operator's alone"));
        }
        if logging.is_some() {
            applied.refused.push(("logging", "paths are the operator's alone"));
        }
        applied
    }
}

impl Config {
    /// Reads and checks a file. A file that was named and does not exist is an error.
    pub fn load(path: &Path) -> Result<Config, ConfigError> {
        Raw::load(path)?.validate()
    }

    /// The permissions of plugins without a manifest, unless the operator names others: what TheNodes' plugins always had.
    pub fn default_permissions() -> Vec<Permission> {
        vec![
            Permission::MessageReceive,
            Permission::MessageSend,
            Permission::CommandRegister,
            Permission::PeersRead,
            Permission::PeersWrite,
            Permission::EventsEmit,
            Permission::EventsSubscribe,
            Permission::ConfigDefaults,
            Permission::NodeInfo,
            Permission::Random,
        ]
    }

    /// What every plugin is given if its manifest asks for it, unless the operator says otherwise: nothing that reaches files,
    /// variables or hosts, and nothing that changes what the node knows.
    pub fn default_policy() -> Vec<Permission> {
        vec![
            Permission::MessageReceive,
            Permission::MessageSend,
            Permission::CommandRegister,
            Permission::PeersRead,
            Permission::EventsEmit,
            Permission::EventsSubscribe,
            Permission::ConfigDefaults,
            Permission::NodeInfo,
            Permission::Random,
        ]
    }
}

#[cfg(test)]
mod tests;
