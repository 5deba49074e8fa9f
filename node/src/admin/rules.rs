//! Reading `[encryption]` again while the node runs. What is wrong with the file changes nothing, and is told to whoever asked and to the log.

use super::View;
use crate::config::{Config, ConfigError};
use crate::network::rules::{self, Adopted, Difference, RulesError};
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
        let read = move || {
            let config = Config::load(&path)
                .map_err(|error: ConfigError| HostError::new(Code::ConfigError, error.to_string()))?;
            let Some(encryption) = config.encryption else {
                let text = format!("{}: [encryption] enabled = false takes a restart", path.display());
                return Err(HostError::new(Code::Conflict, text));
            };
            let idle = config.without_effect.into_iter().filter(|key| key.starts_with("encryption."));
            Ok((encryption, idle.collect()))
        };
        let Adopted { changed, without_effect, peers } = rules::adopt(&self.network, read).await?;
        let rules = self.network.rules();
        let checksum = rules.as_ref().map(|rules| rules.encryption.policy.checksum());
        if !changed.is_empty() {
            let changes: Vec<String> = changed.iter().map(told).collect();
            let checksum = checksum.as_deref().unwrap_or_default();
            let text = format!("by {who}: {}; policy_checksum={checksum}", changes.join(", "));
            self.events.system(LogLevel::Warn, "trust_rules_changed", text);
        }
        for key in &without_effect {
            self.events.system(LogLevel::Warn, "config_key_without_effect", key.clone());
        }
        let changed: Vec<Value> = changed
            .iter()
            .map(|Difference { key, from, to }| json!({ "key": key, "from": from, "to": to }))
            .collect();
        Ok(json!({
            "version": 1,
            "file": file,
            "changed": changed,
            "without_effect": without_effect,
            "policy_checksum": checksum,
            "peers_judged_again": peers,
        }))
    }
}

fn told(Difference { key, from, to }: &Difference) -> String {
    format!("{key} {from} -> {to}")
}

impl From<RulesError> for HostError {
    fn from(error: RulesError) -> Self {
        let code = match error {
            RulesError::Pki(_) | RulesError::Tls(_) | RulesError::Authorities(_) | RulesError::Memory(_) => {
                Code::ConfigError
            }
            RulesError::NotEncrypted => Code::Conflict,
            RulesError::Unread(_) => Code::Internal,
        };
        HostError::new(code, error.to_string())
    }
}
