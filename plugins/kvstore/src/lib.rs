//! The key-value plugin of the authoring guide: `put KEY VALUE`, `get KEY`, `incr KEY` and `list` at the prompt `kv`.
//!
//! A put is kept and broadcast to every peer as EXTENSION `kvstore.put`; a put that arrives is kept too. The last writer
//! wins; there is no history and nothing is on disk: what is kept is left to the next process at an orderly stop, as far as it fits
//! into a state. Keys and values come from peers and are hostile input: sizes and the number of keys are bounded.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use thenodes::network::message::{Message, MessageType, Payload};
use thenodes::plugin_host::{Plugin, PluginContext, PluginRegistrarApi};

const KIND: &str = "kvstore.put";
/// Bytes of a key, bytes of a value, number of keys.
const MAX_KEY: usize = 256;
const MAX_VALUE: usize = 64 * 1024;
const MAX_KEYS: usize = 10_000;

/// The store.
#[derive(Default)]
pub struct KvStore {
    entries: Mutex<BTreeMap<String, String>>,
}

impl KvStore {
    /// Keeps a value, or says why not.
    fn put(&self, key: &str, value: &str) -> Result<(), String> {
        if key.is_empty() || key.len() > MAX_KEY {
            return Err(format!("a key has 1 to {MAX_KEY} bytes"));
        }
        if value.len() > MAX_VALUE {
            return Err(format!("a value has at most {MAX_VALUE} bytes"));
        }
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        if entries.len() >= MAX_KEYS && !entries.contains_key(key) {
            return Err(format!("the store is full ({MAX_KEYS} keys)"));
        }
        entries.insert(key.into(), value.into());
        Ok(())
    }

    /// Adds one to a number, which begins at zero.
    fn incr(&self, key: &str) -> Result<u64, String> {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        if key.len() > MAX_KEY || (entries.len() >= MAX_KEYS && !entries.contains_key(key)) {
            return Err("the key is too long, or the store is full".into());
        }
        let value = entries.entry(key.into()).or_insert_with(|| "0".into());
        let next = value.parse::<u64>().map_err(|_| format!("{key} is no number"))?.saturating_add(1);
        *value = next.to_string();
        Ok(next)
    }

    fn get(&self, key: &str) -> Option<String> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner).get(key).cloned()
    }

    fn keys(&self) -> Vec<String> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner).keys().cloned().collect()
    }
}

#[async_trait::async_trait]
impl Plugin for KvStore {
    async fn on_load(&self, ctx: &PluginContext) -> Result<(), String> {
        let Some(state) = ctx.left_state().await.map_err(|error| error.to_string())? else { return Ok(()) };
        let entries =
            serde_json::from_slice(&state).map_err(|error| format!("the state that was left: {error}"))?;
        *self.entries.lock().unwrap_or_else(PoisonError::into_inner) = entries;
        Ok(())
    }

    async fn on_stop(&self, ctx: &PluginContext) {
        let state = {
            let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
            if entries.is_empty() {
                return;
            }
            serde_json::to_vec(&*entries).unwrap_or_default()
        };
        if let Err(error) = ctx.leave_state(&state).await {
            log::warn!("{} bytes are not left to the next process: {error}", state.len());
        }
    }

    fn on_message(&self, message: &Message, _ctx: &PluginContext) {
        let MessageType::Extension { kind } = &message.msg_type else { return };
        let Some(Payload::Json(body)) = &message.payload else { return };
        if kind != KIND {
            return;
        }
        let (Some(key), Some(value)) = (body["key"].as_str(), body["value"].as_str()) else {
            log::warn!("a {KIND} from {} without key and value", message.from);
            return;
        };
        match self.put(key, value) {
            Ok(()) => log::info!("{key} put by {}", message.from),
            Err(why) => log::warn!("{key} put by {}: {why}", message.from),
        }
    }

    async fn on_prompt(&self, input: &str, ctx: &PluginContext) -> Option<String> {
        let mut words = input.trim().splitn(3, ' ');
        match (words.next()?, words.next(), words.next()) {
            ("put", Some(key), Some(value)) => {
                if let Err(why) = self.put(key, value) {
                    return Some(why);
                }
                let message = Message::new(
                    ctx.node_id(),
                    "*",
                    MessageType::Extension { kind: KIND.into() },
                    Some(Payload::Json(serde_json::json!({ "key": key, "value": value }))),
                    ctx.realm().cloned(),
                );
                match ctx.peer_manager.try_broadcast(&message.as_json()).await {
                    Ok(peers) => Some(format!("ok ({peers} peers)")),
                    Err(error) => Some(format!("kept here, not sent: {error}")),
                }
            }
            ("get", Some(key), None) => Some(self.get(key).unwrap_or_else(|| "(no such key)".into())),
            ("incr", Some(key), None) => Some(self.incr(key).map_or_else(|why| why, |next| next.to_string())),
            ("list", None, None) => Some(self.keys().join("\n")),
            ("help", ..) => Some("put KEY VALUE | get KEY | incr KEY | list".into()),
            _ => None,
        }
    }

    fn prompt_prefix(&self) -> Option<&str> {
        Some("kv")
    }

    fn plugin_id(&self) -> &str {
        "kvstore"
    }

    fn subscribed_extension_kinds(&self) -> Option<&[&str]> {
        Some(&[KIND])
    }
}

/// Entry point; see `thenodes::plugin_host`.
///
/// # Safety
/// Called by the runner with a registrar that lives for the call.
#[no_mangle]
pub unsafe extern "C" fn register_plugin(api: *const PluginRegistrarApi) {
    let registered =
        PluginRegistrarApi::from_raw(api).and_then(|api| api.register_plugin(Box::new(KvStore::default())));
    if let Err(error) = registered {
        eprintln!("kvstore: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_store_refuses_what_is_too_large_and_keeps_the_rest() {
        let store = KvStore::default();
        assert!(store.put("", "x").is_err());
        assert!(store.put(&"k".repeat(MAX_KEY + 1), "x").is_err());
        assert!(store.put("k", &"v".repeat(MAX_VALUE + 1)).is_err());
        assert_eq!(store.put("k", "v"), Ok(()));
        assert_eq!(store.get("k").as_deref(), Some("v"));
    }
}
