//! Frames to forward, read without copying: no panic, the same fields as the long way reads, and a frame that is written anew for the
//! next hop is the same frame.
#![no_main]

use libfuzzer_sys::fuzz_target;
use thenodes::network::message::{Message, MessageType};
use thenodes::realms::RealmInfo;
use thenodes_node::network::relay::{line, Form};

fuzz_target!(|data: &[u8]| {
    let Some(forward) = line::read(data) else { return };
    // Read in one pass or the long way: the same frame, content and all.
    let long = line::read_any(data).expect("a frame the long way too");
    assert_eq!(format!("{forward:?}"), format!("{long:?}"));
    let (_, _) = (forward.content_weight(), forward.inner());
    // What the long way reads has the same addresses.
    if let Ok(message) = serde_json_message(data) {
        if let MessageType::RelayForward { to, from, sequence, .. } = message.msg_type {
            assert_eq!((to.as_str(), from.as_str(), sequence), (&*forward.to, &*forward.from, forward.sequence));
        }
    }
    let realm = RealmInfo { name: "R".into(), code: None, version: "1".into() };
    for form in [Form::Opaque, Form::Payload] {
        let again = forward.rewritten("sender", form, &realm);
        assert_eq!(again.last(), Some(&b'\n'));
        assert!(!again[..again.len() - 1].contains(&b'\n'), "one line");
        let again = line::read(&again[..again.len() - 1]).expect("what we write we read");
        assert_eq!((&*again.to, &*again.from, again.sequence), (&*forward.to, &*forward.from, forward.sequence));
        assert_eq!(&*again.outer_from, "sender");
    }
});

fn serde_json_message(data: &[u8]) -> Result<Message, ()> {
    std::str::from_utf8(data).ok().and_then(Message::from_json).ok_or(())
}
