//! The handshake: the first line of a stranger, judged. Whoever is let in has a valid id that is not ours and our realm.
#![no_main]

use libfuzzer_sys::fuzz_target;
use thenodes::realms::RealmInfo;
use thenodes_node::network::handshake::judge;
use thenodes_node::network::{wire, Local};

fuzz_target!(|data: &[u8]| {
    let local = Local {
        node_id: "me".into(),
        realm: RealmInfo { name: "Interop Test".into(), code: None, version: "1.0".into() },
        node_type: "daemon".into(),
        capabilities: vec![],
        nonce: "n".into(),
        port: 1,
        allowed_node_types: Some(vec!["daemon".into()]),
    };
    let Ok(message) = wire::decode(data) else { return };
    if let Ok(peer) = judge(&local, &message) {
        assert!(peer.node_id != "me" && !peer.node_id.is_empty() && peer.node_id.len() <= 128);
        assert!(message.realm.is_some_and(|realm| realm.matches(&local.realm)));
        assert_eq!(peer.node_type.as_deref(), Some("daemon"));
        assert!(peer.capabilities.len() <= 64);
    }
});
