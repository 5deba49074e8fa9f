//! The start-up exchange of a runner and the records of its warden: bodies of every step, decoded as the node decodes them. A
//! runner counts as hostile from `proceed` on, and a record quotes the plugin's memory.
#![no_main]

use libfuzzer_sys::fuzz_target;
use thenodes_ipc::launch::{Confinement, Level, NodeHello, Refusal, Registration, RunnerHello};
use thenodes_ipc::report::Denial;
use thenodes_ipc::{pack, Frame, FrameDecoder};

fuzz_target!(|data: &[u8]| {
    let mut decoder = FrameDecoder::new(64 * 1024);
    decoder.push(data);
    while let Ok(Some(frame)) = decoder.next() {
        let Frame::Launch { step, body } = frame else { continue };
        match step {
            "hello" => {
                let _ = pack::decode::<RunnerHello>(body);
                if let Ok(hello) = pack::decode::<NodeHello>(body) {
                    let again = pack::encode(&hello).expect("what was read can be written");
                    assert_eq!(pack::decode::<NodeHello>(&again).expect("and read again"), hello);
                }
            }
            "confined" => {
                if let Ok(report) = pack::decode::<Confinement>(body) {
                    // Full only if every wall was reported once, and good.
                    let good = |layer| report.layers.iter().filter(|r| r.layer == layer && r.in_force).count() == 1;
                    let full = thenodes_ipc::launch::Layer::ALL.into_iter().all(good);
                    assert!(full || report.level() != Level::Full);
                }
            }
            "registered" => {
                let _ = pack::decode::<Registration>(body);
            }
            "refused" => {
                let _ = pack::decode::<Refusal>(body);
            }
            "denial" => {
                if let Ok(denial) = pack::decode::<Denial>(body) {
                    let _ = denial.to_string();
                }
            }
            _ => {}
        }
    }
});
