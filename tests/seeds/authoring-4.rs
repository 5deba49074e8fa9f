use thenodes::network::relay::{RelayBindBuilder, RelayForwardBuilder};

async fn bind_via_relay(ctx: &PluginContext, relay_addr: &SocketAddr, target: &str) {
    let pm = ctx.peer_manager();
    
    // Request a relay binding to a target peer
    RelayBindBuilder::new("my-node", target)
        .store_forward(true)      // Enable store-and-forward if target offline
        .qos("reliable")          // QoS: low_latency | high_throughput | bulk | reliable
        .ttl(3600)                // Binding TTL in seconds
        .send(&pm, relay_addr, ctx.realm().cloned())
        .await;
}

async fn send_via_relay(ctx: &PluginContext, relay_addr: &SocketAddr, to: &str) {
    let pm = ctx.peer_manager();
    
    // Send an opaque forwarding frame through the relay
    RelayForwardBuilder::new("my-node", to)
        .sequence(42)                          // Optional sequence number for ordering
        .payload_text("hello via relay")       // Or .payload_json() / .payload_binary()
        .send(&pm, relay_addr, ctx.realm().cloned())
        .await;
}
