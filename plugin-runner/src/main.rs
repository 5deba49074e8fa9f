//! The runner: one process tree per plugin, built from the outside in, each step in its own room.
//!
//! ```text
//! node ─ spawns ─> warden   leaves the node's network and, once it has `hello`, its uid and the rest; answers what the filter refuses
//!                    └ stub     pid 1 of the new pid namespace: builds the empty root, reaps, tells the true cause of death
//!                        └ runner  pid 2: puts up the remaining walls, measures them, reports; only then opens the library
//! ```
//!
//! Each is a fork of the one before, so what was learned on the way travels as plain memory. Every process is
//! single-threaded until the library is open: Landlock and most prctls bind only the calling thread.
//! Warden and stub never map the library. The runner counts as hostile from the moment it does, our code in it included.

// The runtime's start before `main` reads the list of mappings and sets signal handlers that a runner takes away again; `sys` has the
// entry of the program.
#![cfg_attr(not(test), no_main)]

mod broker;
mod confine;
mod explain;
mod janitor;
mod library;
mod link;
mod selftest;
mod serve;
mod stub;
mod sys;
mod warden;

use link::Link;
use std::process::ExitCode;
use thenodes_ipc::launch::{Confinement, Layer, Refusal, Registration, RunnerHello, Step, Versions};
use thenodes_ipc::limits;
use thenodes_ipc::report::Phase;
use thenodes_ipc::Generation;

/// Wrong use: the runner is started by the node, not by people.
const EXIT_USAGE: u8 = 64;
/// A step before the library failed; the reason went over the link.
const EXIT_REFUSED: u8 = 70;

#[cfg_attr(test, allow(dead_code))]
fn begin() -> ExitCode {
    match std::env::args().nth(1).as_deref() {
        Some("--version") => {
            println!("thenodes-runner {}", env!("CARGO_PKG_VERSION"));
            return ExitCode::SUCCESS;
        }
        Some("--explain") => {
            return explain::print(std::env::args().skip(2))
                .map_or_else(usage_because, |()| ExitCode::SUCCESS)
        }
        Some(thenodes_ipc::janitor::ARGUMENT) => return janitor::main(),
        Some(_) => return usage(),
        None => {}
    }
    let Ok(mut link) = Link::from_stdin() else { return usage() };
    // A signal for the node's terminal or process group is the node's to pass on, also while this one waits for a plugin.
    let _ = nix::unistd::setsid();
    let code = match run(&mut link) {
        Ok(Done::Code(code)) => code,
        Ok(Done::Serve(plugin, generation)) => serve::until_the_end(link, plugin, generation),
        Err(refusal) => {
            // The node may have gone; then nobody needs the reason.
            let _ = link.send_step("refused", &refusal);
            EXIT_REFUSED
        }
    };
    // At once: what the standard library does at the end of `main` needs calls that the filter does not know, and destructors
    // would be the plugin's.
    sys::exit_now(i32::from(code))
}

fn usage() -> ExitCode {
    usage_because("thenodes-runner is started by the node, which hands it a socket as standard input; see docs/protocol.md".into())
}

fn usage_because(why: String) -> ExitCode {
    eprintln!("{why}");
    ExitCode::from(EXIT_USAGE)
}

/// What is left to do when all walls stand.
enum Done {
    /// Nothing.
    Code(u8),
    /// Let the plugin work.
    Serve(library::Plugin, Generation),
}

/// The order of confinement, a line per step.
fn run(link: &mut Link) -> Result<Done, Refusal> {
    let (ahead, mut walls) = confine::namespaces::ahead();
    let received = link.receive_hello().map_err(|e| refusal(Step::Hello, e))?;
    let ours = RunnerHello {
        versions: Versions::OURS,
        max_frame: limits::MAX_FRAME as u32,
        build: format!("thenodes-runner {}", env!("CARGO_PKG_VERSION")),
    };
    link.send_step("hello", &ours).map_err(|e| refusal(Step::Hello, e))?;
    if received.hello.versions.common(Versions::OURS).is_none() {
        return Err(refusal(Step::Hello, "no link protocol version in common with this node"));
    }
    if received.hello.without.is_some() && !cfg!(feature = "without") {
        return Err(refusal(Step::Hello, "this runner leaves no wall out"));
    }
    link.set_cap(received.hello.max_frame as usize);

    let confining = |e: String| refusal(Step::Confine, e);
    let (hello, role) = warden::detach(received, ahead, &mut walls).map_err(confining)?;
    let mut leash = match role {
        warden::Role::Warden(watch) => {
            link.forget_ring();
            watch.until_the_end(link, &hello)
        }
        warden::Role::Stub(leash) => leash,
    };
    let root = warden::build_root(&hello, &mut leash, &mut walls);
    let leash = match stub::split(leash).map_err(confining)? {
        stub::Role::Stub(reaper) => {
            link.forget_ring();
            reaper.until_the_end(link)
        }
        stub::Role::Runner(leash) => leash,
    };

    warden::hand_over_memory(&leash).map_err(confining)?;
    confine::state::clean(link, leash, &mut walls).map_err(confining)?;
    let own_count = hello.run_as.is_some() || walls.whole_so_far(Layer::Namespaces);
    confine::rlimits::set(&hello.limits, own_count, &mut walls);
    confine::privileges::drop_all(&hello.plugin, &mut walls);
    confine::landlock::restrict(&hello, &root, &mut walls);
    selftest::before_the_filter(&hello, own_count, &mut walls);
    let filters = confine::filter(&hello, &mut walls).map_err(confining)?;
    selftest::behind_the_filter(&hello, &mut walls);
    let report = Confinement { layers: walls.report() };
    link.send_step("confined", &report).map_err(confining)?;
    link.wait_for("proceed").map_err(confining)?;
    if hello.library_size == 0 {
        return Ok(Done::Code(0)); // a probe: there is nothing to open
    }

    sys::mark(Phase::Constructor).map_err(|e| refusal(Step::Open, e))?;
    let opened = library::open(&hello.needed).map_err(|e| refusal(Step::Open, e))?;
    sys::mark(Phase::Register).map_err(|e| refusal(Step::Register, e))?;
    let plugin = opened.register().map_err(|e| refusal(Step::Register, e))?;
    filters.second().map_err(|e| refusal(Step::Register, e))?;
    sys::mark(Phase::Serve).map_err(|e| refusal(Step::Register, e))?;
    let registration: Registration = plugin.describe().map_err(|e| refusal(Step::Register, e))?;
    link.send_step("registered", &registration).map_err(|e| refusal(Step::Register, e))?;
    Ok(Done::Serve(plugin, hello.generation))
}

fn refusal(step: Step, reason: impl ToString) -> Refusal {
    Refusal { step, reason: reason.to_string() }
}
