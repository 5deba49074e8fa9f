//! A plugin as upstream means them: a library of the same release, compiler and lock file, opened by upstream's own loader inside the
//! node. Why it exists: what its plugins can do to their host (defects D18 and D19) is shown only by one. It is no plugin of ours and
//! nobody's but the tests'.
//!
//! A TEXT `panic` makes it panic; `spawn`, `sleep` and `file` make it use the runtime as any plugin would; `emit` makes it emit the system event `plugin_was_here` and say so on stdout.

#![allow(unsafe_code)] // the exported name: upstream's loader looks for it, and a second one in a process would be a mistake

use async_trait::async_trait;
use std::io::Write;
use thenodes::events::model::{EventMeta, LogEvent, LogLevel, SystemEvent};
use thenodes::network::{Message, MessageType};
use thenodes::plugin_host::{Plugin, PluginContext, PluginRegistrarApi};

struct Guest;

#[async_trait]
impl Plugin for Guest {
    fn plugin_id(&self) -> &'static str {
        "guest"
    }

    async fn on_message(&self, message: &Message, ctx: &PluginContext) {
        let MessageType::Text(text) = &message.msg_type else { return };
        match text.as_str() {
            "panic" => panic!("on purpose"),
            "spawn" => drop(tokio::spawn(async {})),
            "sleep" => tokio::time::sleep(std::time::Duration::from_millis(1)).await,
            "file" => drop(tokio::fs::metadata("/").await),
            "emit" => {
                let meta = EventMeta {
                    ts: std::time::SystemTime::now(),
                    level: LogLevel::Info,
                    corr_id: None,
                    session_id: "guest".into(),
                    component: "guest",
                    policy_checksum: None,
                    suppress_console: false,
                };
                let (action, detail) = ("plugin_was_here".into(), None);
                ctx.events.emit(LogEvent::System(SystemEvent { meta, action, detail }));
                let mut out = std::io::stdout().lock();
                let _ = writeln!(out, "@@ {{\"guest\":\"emitted\"}}").and_then(|()| out.flush());
            }
            _ => {}
        }
    }
}

/// Called once by upstream's loader, with a table that lives as long as the call.
#[no_mangle]
pub extern "C" fn register_plugin(api: &PluginRegistrarApi) {
    if let Err(error) = api.register_plugin(Box::new(Guest)) {
        eprintln!("upstream-plugin: {error}");
    }
}
