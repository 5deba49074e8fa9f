//! The 41 defects of upstream, and what ours does in their place. Each test is named after its defect (`dN_..`). Where upstream's defect
//! was found by running it, and wherever else it can be had at will, the same attempt is made on a real 0.4.0 node, where it
//! succeeds: a test that passes on both shows nothing. The others stand on reading upstream's code, or on 0.2 alone (D8):
//!
//! | without an upstream half | why |
//! |--------|-------|
//! | D8 | only 0.2 has it |
//! | D11 | a race of upstream's, which comes now and then |
//! | D14 | its events show what peers say as `Debug` writes it; its prompt, which does not, is not in its library |
//! | D15, D17, D26 | of its programs, or of calls that its own plugins cannot make; its library is what runs here |
//! | D20, D22, D23 | its loader takes what it finds in an order that nobody chooses, and has no calls that could be refused |
//! | D28, D30, D38 | found by reading |
//!
//! Of D33's five panics two are had at will; the one at the end comes now and then: not in a hundred ends that were tried for this.
//!
//! Without a test: D31 is about what each message costs, and costs are in `docs/benchmarks.md` (its rows "growth" hold the cost of a peer, a
//! binding and a message against their number). Of D41, words without behaviour, one stays because the documents want it: the mode
//! `hybrid`, which lets everybody in and says so in each verdict. Types that nothing reads are not here, which no attempt can show.

mod network;
mod operating;
mod plugins;
mod relay;
mod trust;
mod wire;

use std::io::Write;
use std::process::Command;
use std::time::{Duration, Instant};
use thenodes_tests::peer::Peer;
use thenodes_tests::upstream::{free_port, lay_out, Upstream};
use thenodes_tests::{bin_dir, Spec, TestNode};

const RELAY: &str = "[network.relay]\nenabled = true\nstore_forward = true\n";
/// How long is long enough to say that something does not happen on a node of upstream's.
const LONG: Duration = Duration::from_secs(3);

fn ours() -> TestNode {
    Spec::new("node").more(RELAY).start()
}

fn theirs() -> (Upstream, u16) {
    let port = free_port();
    (Upstream::start(lay_out("node", port, &[], false, RELAY)), port)
}

fn text(from: &str, text: &str) -> String {
    format!(
        r#"{{"from":"{from}","to":"node","msg_type":{{"TEXT":"{text}"}},"payload":null,"realm":{{"name":"Test","version":"1.0"}}}}"#
    )
}

fn probe(from: &str) -> String {
    format!(
        r#"{{"from":"{from}","to":"node","msg_type":"HEARTBEAT","payload":{{"type":"Text","value":"liveness_probe_v1"}},"realm":null}}"#
    )
}

/// True if a peer's probe is answered within this time.
fn answers(peer: &mut Peer, patience: Duration) -> bool {
    let begun = Instant::now();
    let id = peer.id.clone();
    if peer.stream.get_mut().write_all((probe(&id) + "\n").as_bytes()).is_err() {
        return false;
    }
    peer.stream.get_ref().set_read_timeout(Some(patience)).expect("set");
    loop {
        let line = peer.line();
        if line.contains("liveness_response_v1") {
            return true;
        }
        if line.is_empty() || begun.elapsed() > patience {
            return false;
        }
    }
}

/// A configuration that ours refuses, with the exit code for that.
#[track_caller]
fn does_not_start(spec: &Spec) {
    let dir = spec.lay_out();
    let mut command = Command::new(bin_dir().join("thenodes"));
    let output = command.args(["--config", "config.toml"]).current_dir(dir.path()).output().expect("runs");
    assert_eq!(output.status.code(), Some(78), "{}", String::from_utf8_lossy(&output.stderr));
}
