use thenodes::plugin_host::{Plugin, PluginContext};
use thenodes::network::message::Message;

pub struct MyPlugin;

#[async_trait::async_trait]
impl Plugin for MyPlugin {
    fn on_message(&self, message: &Message, ctx: &PluginContext) {
        // handle inbound messages
    }

    async fn on_prompt(&self, input: &str, ctx: &PluginContext) -> Option<String> {
        // optional prompt handling when host runs with --prompt
        None
    }

    fn prompt_prefix(&self) -> Option<&str> {
        Some("my") // type `my` at the root prompt to enter the plugin shell
    }

    fn early_config_defaults(&self) -> Option<thenodes::config::ConfigDefaults> {
        None
    }
}
