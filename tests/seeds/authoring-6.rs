use thenodes::network::message::{Message, MessageType, Reason};

impl Plugin for MyPlugin {
    fn on_message(&self, message: &Message, ctx: &PluginContext) {
        if let MessageType::RelayNotify { notif_type, binding_id, detail } = &message.msg_type {
            match notif_type {
                Reason::Overload => {
                    // Relay queue is full; consider backing off
                }
                Reason::Timeout => {
                    // Message TTL expired before delivery
                }
                Reason::PeerLeft => {
                    // Target peer disconnected from relay
                }
                _ => {}
            }
        }
    }
}
