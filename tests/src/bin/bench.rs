//! Measures against baselines in the same run: rounds in which baseline and subject alternate, everything pinned to one core,
//! medians of per-round ratios with their spread. One JSON object per row. Run by `cargo xtask bench`; the method is that of
//! `docs/benchmarks.md`. Absolute numbers of a shared machine mean nothing and are not printed, but for memory.

use std::hint::black_box;
use std::path::Path;
use std::process::Command;
use std::time::Instant;
use thenodes_tests::bench::call::{self, Cores};
use thenodes_tests::bench::{abuse, floor, growth, grpc, inbound, pin, start, Row};

/// Bytes of the payload that is echoed.
const PAYLOAD: usize = 256;

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let number = |text: &str| text.parse().expect("a number");
    match args.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        [_, "--raw-echo", there, back, core] => call::raw_echo(number(there), number(back), number(core)),
        [_, "--raw-ring", there, back, cores] => {
            floor::raw_ring(number(there), number(back), *cores == "two");
        }
        [_, "--grpc-echo", path] => grpc::serve(Path::new(path)),
        [_, "--only", what, cores, seconds] => call::only(what, *cores == "1", number(seconds)),
        [_, "--start", rounds] => start_only(number(rounds)),
        [_, "--one-core", rounds] => call::run(number(rounds), Cores::One),
        [_, "--two-cores", rounds] => call::run(number(rounds), Cores::Two),
        [_, "--inbound", rounds] => inbound::run(number(rounds)),
        [_, "--bare-server"] => abuse::bare(),
        [_, "--vandal", name, port] => abuse::vandal(name, number(port) as u16),
        [_, "--abuse", rounds] => abuse::run(number(rounds), "", false),
        [_, "--abuse", rounds, only] => abuse::run(number(rounds), only, false),
        [_, "--abuse", rounds, only, "equal"] => abuse::run(number(rounds), only, true),
        [_, "--growth", rounds] => growth::run(number(rounds)),
        [_, "--others", rounds] => others(number(rounds)),
        // Each part in a process of its own: where a process may run is decided once.
        [_, rounds] => {
            for part in ["--one-core", "--two-cores", "--others", "--growth", "--abuse", "--start"] {
                let program = std::env::current_exe().expect("a path");
                let done = Command::new(program).args([part, rounds]).status().expect("it starts");
                assert!(done.success(), "{part}: {done}");
            }
        }
        _ => eprintln!("run by `cargo xtask bench`"),
    }
}

/// Only the rows about starts and memory.
fn start_only(rounds: usize) {
    pin(0).expect("one core of this machine is ours");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    start::run(&runtime.expect("a runtime"), rounds);
}

/// What a call in process costs: one function through a C table, bytes in and out.
struct Table {
    echo: extern "C" fn(&[u8; PAYLOAD], &mut [u8; PAYLOAD]) -> i32,
}

extern "C" fn echo(input: &[u8; PAYLOAD], output: &mut [u8; PAYLOAD]) -> i32 {
    output.copy_from_slice(input);
    0
}

/// Other ways to call something, against our own in the same rounds.
fn others(rounds: usize) {
    pin(0).expect("one core of this machine is ours");
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    let _inside = runtime.enter();
    let dir = tempfile::tempdir().expect("a directory");
    let ours = call::Subject::start(&runtime);
    let mut client = runtime.block_on(grpc::Client::start(&dir.path().join("grpc.sock")));
    let table = black_box(Table { echo });
    let mut tonic = Row::new("call_256B_ring_p50_against_tonic", "ratio", "unary gRPC over a Unix socket");
    let mut in_process = Row::new("in_process_c_table_call_256B", "ratio", "our call, p50");
    for round in 0..=rounds {
        let call = ours.p50(&runtime, 2000);
        let mut rpc = runtime.block_on(client.calls(&[b'x'; PAYLOAD], 500));
        rpc.sort_unstable();
        let (bytes_in, mut bytes_out) = ([1; PAYLOAD], [0; PAYLOAD]);
        let begun = Instant::now();
        for _ in 0..100_000 {
            black_box((table.echo)(black_box(&bytes_in), &mut bytes_out));
        }
        let in_table = begun.elapsed().as_nanos() as f64 / 100_000.0;
        if round > 0 {
            tonic.add(call / rpc[rpc.len() / 2] as f64);
            in_process.add(in_table / call);
        }
    }
    ours.stop(&runtime);
    println!("{}\n{}", tonic.json(), in_process.json());
}
