//! The events and their JSON form (`type` beside `meta` and the fields), as upstream writes them, plus `meta.timestamp`.
//! Strings in an event may come from peers or plugins; whoever prints them makes control characters visible first.

use serde::{Deserialize, Serialize};
use std::time::SystemTime;

/// How much an event matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)] // the usual words
pub enum LogLevel {
    Trace,
    Debug,
    Info,
    Warn,
    Error,
}

/// What every event carries.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EventMeta {
    /// When.
    pub ts: SystemTime,
    /// The same as RFC 3339 text, UTC.
    #[serde(default)]
    pub timestamp: String,
    /// Level.
    pub level: LogLevel,
    /// Binds events of one cause together.
    #[serde(default)]
    pub corr_id: Option<String>,
    /// The run of the node.
    #[serde(default)]
    pub session_id: Option<String>,
    /// Who says it. Events of plugins begin with `plugin.NAME`.
    pub component: String,
    /// Reserved by upstream.
    #[serde(default)]
    pub policy_checksum: Option<String>,
    /// Not for the console.
    #[serde(default)]
    pub suppress_console: bool,
}

/// A decision about a peer's certificate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrustDecisionEvent {
    /// Common part.
    pub meta: EventMeta,
    /// `inbound` or `outbound`.
    pub role: String,
    /// `Accept` or `Reject`.
    pub decision: String,
    /// Why: a stable word.
    pub reason: String,
    /// Trust mode.
    pub mode: String,
    /// SPKI SHA-256 of the peer's certificate, lower-case hex.
    #[serde(default)]
    pub fingerprint: Option<String>,
    /// Result of fingerprint pins, if there are any.
    #[serde(default)]
    pub pinned_fingerprint_match: Option<bool>,
    /// Result of subject pins, if there are any.
    #[serde(default)]
    pub pinned_subject_match: Option<bool>,
    /// `passed`, `failed` or `notapplied`.
    pub realm_binding: String,
    /// Result of the chain, if it was checked.
    #[serde(default)]
    pub chain_valid: Option<bool>,
    /// Why.
    #[serde(default)]
    pub chain_reason: Option<String>,
    /// True inside the certificate's validity.
    #[serde(default)]
    pub time_valid: Option<bool>,
    /// Why.
    #[serde(default)]
    pub time_reason: Option<String>,
    /// `"true"` or `"false"`: the certificate was written down.
    pub stored: String,
    /// The peer's socket address.
    #[serde(default)]
    pub peer_addr: Option<String>,
    /// Canonical code of the node's realm.
    #[serde(default)]
    pub realm: Option<String>,
    /// Reserved by upstream.
    #[serde(default)]
    pub dry_run: bool,
    /// What an operator can do about a refusal.
    #[serde(default)]
    pub override_action: Option<String>,
}

/// An observed certificate became trusted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PromotionEvent {
    /// Common part.
    pub meta: EventMeta,
    /// SPKI SHA-256, lower-case hex.
    pub fingerprint: String,
    /// From here.
    pub from_store: String,
    /// To there.
    pub to_store: String,
    /// On whose word.
    pub operator: String,
    /// Whether it worked.
    pub success: bool,
}

/// Something on the network.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NetworkEvent {
    /// Common part.
    pub meta: EventMeta,
    /// A stable word.
    pub action: String,
    /// The peer's address.
    #[serde(default)]
    pub addr: Option<String>,
    /// For people.
    #[serde(default)]
    pub detail: Option<String>,
}

/// Something in the life of a plugin.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PluginEvent {
    /// Common part.
    pub meta: EventMeta,
    /// Which plugin.
    pub plugin: String,
    /// A stable word.
    pub action: String,
    /// For people.
    #[serde(default)]
    pub detail: Option<String>,
}

/// Anything else.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SystemEvent {
    /// Common part.
    pub meta: EventMeta,
    /// A stable word.
    pub action: String,
    /// For people.
    #[serde(default)]
    pub detail: Option<String>,
}

/// An event.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum LogEvent {
    /// A decision about a certificate.
    TrustDecision(TrustDecisionEvent),
    /// A certificate became trusted.
    Promotion(PromotionEvent),
    /// Network.
    Network(NetworkEvent),
    /// Plugin.
    Plugin(PluginEvent),
    /// Anything else.
    System(SystemEvent),
}

impl LogEvent {
    /// The common part.
    pub fn meta(&self) -> &EventMeta {
        match self {
            LogEvent::TrustDecision(e) => &e.meta,
            LogEvent::Promotion(e) => &e.meta,
            LogEvent::Network(e) => &e.meta,
            LogEvent::Plugin(e) => &e.meta,
            LogEvent::System(e) => &e.meta,
        }
    }

    /// The common part, to be stamped.
    pub fn meta_mut(&mut self) -> &mut EventMeta {
        match self {
            LogEvent::TrustDecision(e) => &mut e.meta,
            LogEvent::Promotion(e) => &mut e.meta,
            LogEvent::Network(e) => &mut e.meta,
            LogEvent::Plugin(e) => &mut e.meta,
            LogEvent::System(e) => &mut e.meta,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_of_upstream_is_read_and_ours_has_all_its_keys() {
        let upstream = r#"{"type":"network","meta":{"ts":{"secs_since_epoch":1795177375,"nanos_since_epoch":951536292},"level":"info","corr_id":"5268ec9b","session_id":"50f8131a","component":"bootstrap","policy_checksum":null,"suppress_console":false},"action":"bootstrap_nodes_missing","addr":null,"detail":"source=config"}"#;
        let event: LogEvent = serde_json::from_str(upstream).expect("reads");
        let ours = serde_json::to_value(&event).expect("writes");
        let theirs: serde_json::Value = serde_json::from_str(upstream).expect("reads");
        for (key, value) in theirs.as_object().expect("an object") {
            if key != "meta" {
                assert_eq!(&ours[key], value);
            }
        }
        for (key, value) in theirs["meta"].as_object().expect("an object") {
            assert_eq!(&ours["meta"][key], value);
        }
    }

    #[test]
    fn an_event_survives_the_link() {
        let event = LogEvent::Plugin(PluginEvent {
            meta: crate::events::meta("x", LogLevel::Warn),
            plugin: "p".into(),
            action: "a".into(),
            detail: None,
        });
        let packed = thenodes_ipc::pack::encode(&event).expect("packs");
        assert_eq!(thenodes_ipc::pack::decode::<LogEvent>(&packed), Ok(event));
    }
}
