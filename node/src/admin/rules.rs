//! Reading `[encryption]` again while the node runs. What is wrong with the file changes nothing, and is told to whoever asked and to the log.

use super::View;
use crate::config::{Config, ConfigError};
use crate::network::rules::{self, RulesError};
use serde_json::{json, Value};
use thenodes::events::model::LogLevel;
use thenodes::host::HostError;
use thenodes_ipc::Code;

impl View {
    /// Has what `[encryption]` says now hold from now on.
    pub(super) async fn reload_trust(&self, who: &str) -> Result<Value, HostError> {
        let reloaded = self.reloaded_trust(who).await;
        if let Err(error) = &reloaded {
            let text = format!("by {who}: {}; the rules stay as they are", error.message);
            self.events.system(LogLevel::Error, "trust_rules_kept", text);
        }
        reloaded
    }

    async fn reloaded_trust(&self, who: &str) -> Result<Value, HostError> {
        let Some(file) = self.file.clone() else {
            let text = "this node was started without a configuration file: there is nothing to read again";
            return Err(HostError::new(Code::Conflict, text));
        };
        let path = file.clone();
        let read = tokio::task::spawn_blocking(move || Config::load(&path)).await;
        let read = read.map_err(|e| HostError::new(Code::Internal, format!("{}: {e}", file.display())))?;
        let config = read.map_err(|e: ConfigError| HostError::new(Code::ConfigError, e.to_string()))?;
        let Some(encryption) = config.encryption else {
            let text = format!("{}: [encryption] enabled = false takes a restart", file.display());
            return Err(HostError::new(Code::Conflict, text));
        };
        let idle = config.without_effect.into_iter().filter(|key| key.starts_with("encryption."));
        let idle: Vec<String> = idle.collect();
        let checksum = encryption.policy.checksum();
        let adopted = rules::adopt(&self.network, encryption).await;
        let changed = adopted.map_err(|error| {
            let code = match error {
                RulesError::Pki(_) | RulesError::Tls(_) => Code::ConfigError,
                RulesError::NotEncrypted => Code::Conflict,
                RulesError::Ending(_) => Code::Unavailable,
            };
            HostError::new(code, error.to_string())
        })?;
        let peers = if changed.is_empty() { 0 } else { self.network.peers.count().0 };
        if !changed.is_empty() {
            let text = format!("by {who}: {}; policy_checksum={checksum}", changed.join(", "));
            self.events.system(LogLevel::Info, "trust_rules_changed", text);
        }
        for key in &idle {
            self.events.system(LogLevel::Warn, "config_key_without_effect", key.clone());
        }
        Ok(json!({
            "version": 1,
            "file": file,
            "changed": changed,
            "without_effect": idle,
            "policy_checksum": checksum,
            "peers_judged_again": peers,
        }))
    }
}
