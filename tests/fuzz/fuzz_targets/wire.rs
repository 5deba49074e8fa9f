//! Door 1: bytes of a peer. No panic, no more kept than one line, and a message that was read is the same after JSON and after
//! MessagePack.
#![no_main]

use libfuzzer_sys::fuzz_target;
use thenodes::network::message::Message;
use thenodes_ipc::pack;
use thenodes_node::network::wire::{LineDecoder, MAX_HELLO};

fuzz_target!(|data: &[u8]| {
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
