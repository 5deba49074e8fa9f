//! Answers what it is told: a prompt line and the request `echo` come back, a TEXT message is answered to its sender as EXTENSION `echo`. Its last
//! line says how many prompt lines it answered.

use std::sync::atomic::{AtomicU64, Ordering};
use thenodes::host::{Code, HostError};
use thenodes::network::message::{Message, MessageType, Payload};
use thenodes::plugin_host::{Plugin, PluginContext, PluginRegistrarApi};

/// The plugin.
#[derive(Default)]
pub struct Echo {
    answered: AtomicU64,
}

#[async_trait::async_trait]
impl Plugin for Echo {
    fn on_message(&self, message: &Message, ctx: &PluginContext) {
        let MessageType::Text(text) = &message.msg_type else { return };
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

    async fn on_request(&self, name: &str, body: &[u8], _ctx: &PluginContext) -> Result<Vec<u8>, HostError> {
        match name {
            "echo" => Ok(body.to_vec()),
            _ => Err(HostError::new(Code::Unhandled, format!("no request {name:?}"))),
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
