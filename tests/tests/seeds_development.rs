//! The development guide's code blocks compile against our SDK as they stand; `build.rs` puts the implied scaffolding around them.
#![allow(unsafe_code, unused, dead_code, clippy::all)]

include!(concat!(env!("OUT_DIR"), "/development.rs"));

/// Fields and accessor methods are the same things (spec table 2.4).
#[test]
fn context_has_fields_and_accessors() {
    fn both(ctx: &thenodes::plugin_host::PluginContext) {
        let _: &std::sync::Arc<thenodes::network::PeerManager> = &ctx.peer_manager;
        let _ = ctx.peer_manager();
        let _: &thenodes::network::PeerStore = &ctx.peer_store;
        let _ = ctx.peer_store().clone();
        let _ = (ctx.events.correlation_id(), ctx.events().session_id());
        let _: Option<&thenodes::realms::RealmInfo> = ctx.realm();
    }
    let _ = both;
}
