//! Door 2: bytes of a runner. Whatever comes, the decoder neither panics nor keeps more than one frame, and what it reads
//! writes back to a frame that reads the same. Bodies go through every decoder that the node uses on them.
#![no_main]

use libfuzzer_sys::fuzz_target;
use thenodes::host::{Notice, Request};
use thenodes_ipc::launch::{Confinement, Refusal, Registration, RunnerHello};
use thenodes_ipc::{limits, pack, Frame, FrameDecoder};

fuzz_target!(|data: &[u8]| {
    let mut decoder = FrameDecoder::new(limits::MAX_FRAME);
    for piece in data.chunks(97) {
        decoder.push(piece);
        loop {
            match decoder.next() {
                Ok(Some(frame)) => {
                    let mut bytes = Vec::new();
                    if frame.encode(&mut bytes, limits::MAX_FRAME).is_ok() {
                        let mut again = FrameDecoder::new(limits::MAX_FRAME);
                        again.push(&bytes);
                        assert_eq!(again.next(), Ok(Some(frame.clone())));
                    }
                    match frame {
                        Frame::Call { method, body, .. } => drop(Request::decode(method, body)),
                        Frame::Notify { method, body } => drop(Notice::decode(method, body)),
                        Frame::Launch { body, .. } => {
                            let _ = pack::decode::<RunnerHello>(body);
                            let _ = pack::decode::<Confinement>(body).map(|report| report.level());
                            let _ = pack::decode::<Registration>(body);
                            let _ = pack::decode::<Refusal>(body);
                        }
                        Frame::Reply { body, .. } => drop(pack::decode::<Option<String>>(body)),
                        Frame::Cancel { .. } | Frame::Ignored => {}
                    }
                }
                Ok(None) => break,
                Err(_) => return,
            }
        }
    }
});
