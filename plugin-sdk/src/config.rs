//! The configuration as plugins know it: [`ConfigDefaults`], which a plugin may suggest before the node starts, and
//! [`Config`], the same sections for programs that embed a node.
//!
//! The operator always wins: a default is used only where the operator wrote nothing. Some defaults are never taken from
//! a plugin because they would give it power over the node (`docs/authoring.md`): anything under `encryption`, and paths.

use crate::realms::RealmInfo;
use serde::{Deserialize, Serialize};

/// `[encryption]` as a plugin may suggest it. The node does not accept it from sandboxed plugins.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct EncryptionConfig {
    /// TLS on or off.
    pub enabled: bool,
    /// Certificates on both sides.
    pub mtls: bool,
    /// `tls`.
    pub backend: Option<String>,
}

/// `[logging]`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LoggingConfig {
    /// File for JSON lines.
    pub json_path: Option<String>,
    /// Bytes before the file is rotated.
    pub json_max_bytes: Option<u64>,
    /// Rotated files kept.
    pub json_rotate: Option<u32>,
    /// No events on the console.
    pub disable_console: Option<bool>,
}

/// `[node]`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NodeConfig {
    /// Fixed node id.
    pub id: Option<String>,
    /// Directory of runtime state.
    pub state_dir: Option<String>,
    /// File name of the persisted id inside it.
    pub id_file: Option<String>,
    /// An id for this run only, if none can be persisted.
    pub allow_ephemeral: Option<bool>,
    /// Type announced to peers.
    pub node_type: Option<String>,
}

/// `[discovery]`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DiscoveryConfig {
    /// Ask peers for peers.
    pub enabled: bool,
    /// Seconds between requests.
    pub request_interval_secs: Option<u64>,
    /// Peers asked for.
    pub request_want: Option<u16>,
}

/// What a plugin suggests for keys that the operator left out.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ConfigDefaults {
    /// Listen port.
    pub port: Option<u16>,
    /// The whole realm.
    pub realm: Option<RealmInfo>,
    /// Name in banners.
    pub app_name: Option<String>,
    /// Not accepted from sandboxed plugins.
    pub encryption: Option<EncryptionConfig>,
    /// Nodes to dial.
    pub bootstrap_nodes: Option<Vec<String>>,
    /// Nodes to dial besides the operator's.
    pub bootstrap_nodes_extend: Option<Vec<String>>,
    /// Paths in it are not accepted from sandboxed plugins.
    pub logging: Option<LoggingConfig>,
    /// Only `node_type` is accepted from sandboxed plugins.
    pub node: Option<NodeConfig>,
    /// Discovery.
    pub discovery: Option<DiscoveryConfig>,
    /// Capabilities announced in HELLO, beside the node's own.
    pub capabilities: Option<Vec<String>>,
}

/// The sections of a configuration, for programs that build one in code.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Config {
    /// Listen port.
    pub port: u16,
    /// Nodes to dial.
    pub bootstrap_nodes: Option<Vec<String>>,
    /// Realm.
    pub realm: Option<RealmInfo>,
    /// Name in banners.
    pub app_name: Option<String>,
    /// Encryption.
    pub encryption: Option<EncryptionConfig>,
    /// Logging.
    pub logging: Option<LoggingConfig>,
    /// Identity.
    pub node: Option<NodeConfig>,
    /// Discovery.
    pub discovery: Option<DiscoveryConfig>,
}
