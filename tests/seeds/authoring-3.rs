use thenodes::network::{PeerStore, PeerSource};

fn example(ctx: &PluginContext) {
    let store = ctx.peer_store();
    
    // Sample random peers (excluding already-connected)
    let exclude = std::collections::HashSet::new();
    let candidates = store.sample(10, &exclude).await;
    
    // Insert a manually discovered peer
    store.insert("192.168.1.50:7447".parse().unwrap(), PeerSource::Manual).await;
    
    // Query all known peers
    let all = store.all().await;
}
