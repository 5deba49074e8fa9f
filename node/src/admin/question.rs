//! What can be asked of a running node, as it stands on the admin socket: one JSON object in a line. Only local users whom the file's
//! mode lets in can ask, and what they ask is checked all the same.

use crate::plugins::logs::Severity;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::time::Duration;
use thenodes::network::DeliveryClass;
use thenodes_ipc::limits;

/// Longest body of a request to a plugin, bytes: a frame has it and its header.
pub const MAX_BODY: usize = limits::MAX_FRAME - limits::MAX_HEADER;
/// Longest question, bytes: a body in hex digits, and what stands around it.
pub(super) const MAX_QUESTION: u64 = 2 * MAX_BODY as u64 + 64 * 1024;
/// Longest wait for a line of a log before the answer says that there is none; less than a client's patience.
pub const LONGEST_POLL: Duration = Duration::from_secs(25);

/// What can be asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "cmd", rename_all = "kebab-case")]
pub enum Question {
    /// The node in a few numbers.
    Status,
    /// Connected peers.
    Peers,
    /// Known addresses.
    PeersKnown,
    /// Dial a node.
    PeerConnect {
        /// `host:port`.
        target: String,
    },
    /// Close the connection to a node and hold it off.
    PeerDisconnect {
        /// Its id.
        node_id: String,
    },
    /// Send a text to a node.
    Send {
        /// Its id.
        node_id: String,
        /// The text.
        text: String,
        /// How it is delivered.
        class: DeliveryClass,
        /// Stream of an ordered one.
        #[serde(default)]
        key: Option<String>,
    },
    /// What the relay keeps and did.
    Relay,
    /// Read `[encryption]` again.
    TrustReload,
    /// All plugins.
    PluginList,
    /// One plugin in detail.
    PluginStatus {
        /// Which.
        name: String,
    },
    /// Lines of a plugin.
    PluginLogs {
        /// Which.
        name: String,
        /// How many at most.
        lines: usize,
        /// Only those since then, milliseconds since 1970.
        #[serde(default)]
        since_ms: Option<u64>,
        /// Only those at this level or a graver one.
        #[serde(default)]
        level: Option<Severity>,
        /// Only those after the one with this number, the oldest first; without it the newest.
        #[serde(default)]
        after: Option<u64>,
        /// If there is none, wait for one so long, at most [`LONGEST_POLL`].
        #[serde(default)]
        wait_ms: u64,
    },
    /// Counters and gauges as Prometheus text.
    Metrics {
        /// Of this plugin alone.
        #[serde(default)]
        name: Option<String>,
    },
    /// What `plugin top` shows, as counters.
    PluginTop,
    /// A request to a plugin.
    PluginCall {
        /// Which.
        name: String,
        /// What the plugin calls it.
        request: String,
        /// What to send, as hex digits.
        #[serde(default)]
        body: String,
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

impl Question {
    /// True if its answer may have to wait for what a plugin says next.
    pub(super) fn waits(&self) -> bool {
        matches!(self, Question::PluginLogs { wait_ms: 1.., .. })
    }
}
