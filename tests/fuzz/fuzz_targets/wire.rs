//! Door 1: bytes of a peer. No panic, no more kept than one line, a message that was read is the same after JSON and after
//! MessagePack, and both ways of reading a plain message say the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use thenodes::network::message::Message;
use thenodes_ipc::pack;
use thenodes_node::network::plain;
use thenodes_node::network::wire::{decode, LineDecoder, MAX_HELLO};

fuzz_target!(|data: &[u8]| {
    for line in data.split(|byte| *byte == b'\n') {
        // Whoever reads only plain messages agrees with whoever reads all.
        if let Some(plain) = plain::read(line) {
            let mut message = decode(line).expect("a message");
            message.from = "peer".into();
            let mut packed = Vec::new();
            plain.pack("peer", &mut packed).expect("packs");
            assert_eq!(packed, pack::encode(&message).expect("packs"));
        }
    }
    let mut decoder = LineDecoder::new(MAX_HELLO);
    for piece in data.chunks(61) {
        decoder.push(piece);
        loop {
            match decoder.next() {
                Ok(Some(message)) => {
                    let again = Message::from_json(&message.as_json());
                    assert_eq!(again.as_ref(), Some(&message));
                    if let Ok(packed) = pack::encode(&message) {
                        assert_eq!(pack::decode::<Message>(&packed).ok().as_ref(), Some(&message));
                    }
                }
                Ok(None) => break,
                Err(error) if error.is_fatal() => return,
                Err(_) => {}
            }
        }
    }
});
