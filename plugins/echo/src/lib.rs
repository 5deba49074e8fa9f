//! Answers what it is told: a prompt line or a request `echo` comes back, a TEXT message is answered to its sender as EXTENSION
//! `echo`, EXTENSION `count` and a TEXT that begins with `count ` are counted. Its last line says how many prompt lines it answered.

use std::sync::atomic::{AtomicU64, Ordering};
use thenodes::host::{Code, HostError};
use thenodes::network::message::{Message, MessageType, Payload};
use thenodes::plugin_host::{Plugin, PluginContext, PluginRegistrarApi};

/// The plugin.
#[derive(Default)]
pub struct Echo {
    answered: AtomicU64,
    counted: AtomicU64,
}

#[async_trait::async_trait]
impl Plugin for Echo {
    fn on_message(&self, message: &Message, ctx: &PluginContext) {
        let text = match &message.msg_type {
            MessageType::Text(text) if !text.starts_with("count ") => text,
            MessageType::Extension { kind } if kind != "count" => return,
            MessageType::Text(_) | MessageType::Extension { .. } => {
                self.counted.fetch_add(1, Ordering::Relaxed);
                return;
            }
            _ => return,
        };
        let answer = Message::new(
            ctx.node_id(),
            &message.from,
            MessageType::Extension { kind: "echo".into() },
            Some(Payload::Text(text.clone())),
            ctx.realm().cloned(),
        );
        let (peers, to) = (ctx.peer_manager.clone(), message.from.clone());
        // Sending waits for the node; a task waits for it without holding up the next message.
        tokio::spawn(async move {
            if let Err(why) = peers.send_to_node_id(&to, answer.as_json()).await {
                eprintln!("echo to {to}: {why}");
            }
        });
    }

    async fn on_prompt(&self, input: &str, _ctx: &PluginContext) -> Option<String> {
        self.answered.fetch_add(1, Ordering::Relaxed);
        Some(input.to_owned())
    }

    async fn on_request(&self, name: &str, body: &[u8], ctx: &PluginContext) -> Result<Vec<u8>, HostError> {
        match name {
            "echo" => Ok(body.to_vec()),
            // Asks the node before it answers.
            "ask" => ctx.peer_manager.peers().await.map(|_| body.to_vec()),
            "counted" => Ok(self.counted.load(Ordering::Relaxed).to_le_bytes().to_vec()),
            _ => Err(HostError::new(Code::Unhandled, format!("echo has no request {name:?}"))),
        }
    }

    async fn on_stop(&self, _ctx: &PluginContext) {
        println!("answered {}", self.answered.load(Ordering::Relaxed));
    }

    fn prompt_prefix(&self) -> Option<&str> {
        Some("echo")
    }

    fn plugin_id(&self) -> &str {
        "echo"
    }
}

/// Entry point; see `thenodes::plugin_host`.
///
/// # Safety
/// Called by the runner with a registrar that lives for the call.
#[no_mangle]
pub unsafe extern "C" fn register_plugin(api: *const PluginRegistrarApi) {
    let registered =
        PluginRegistrarApi::from_raw(api).and_then(|api| api.register_plugin(Box::new(Echo::default())));
    if let Err(error) = registered {
        eprintln!("echo: {error}");
    }
}
