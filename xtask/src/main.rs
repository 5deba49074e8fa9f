//! The one door for developers. `cargo xtask check` runs what CI runs; `cargo xtask demo` shows the product.

mod attack;
mod bounded;
mod demo;
mod header;
mod net;
mod test;

use anyhow::{bail, Context, Result};
use clap::{Parser, Subcommand};
use std::path::{Path, PathBuf};
use std::process::Command;

#[derive(Debug, Parser)]
#[command(name = "cargo xtask", about = "Developer commands")]
struct Cli {
    #[command(subcommand)]
    command: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Everything that CI runs: format, lints, documentation, tests.
    Check,
    /// Build all and run every test; as root, the tests of built binaries also as an ordinary user.
    Test {
        /// Only test programs whose name contains this.
        filter: Option<String>,
    },
    /// Two nodes, a replicated put, a crash, five attacks: the product in a minute.
    Demo {
        /// Print one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Try every attack in a real runner, in every phase, as root and as an ordinary user; fails if one gets through.
    Attack,
    /// Write the tables of docs/isolation.md anew, from runs of the suite, with walls taken away, and under bubblewrap.
    Isolation,
    /// Measure against baselines in the same run; one JSON object per row.
    Bench {
        #[command(subcommand)]
        what: Option<BenchWhat>,
        /// Rounds per row.
        #[arg(long, default_value_t = 7, global = true)]
        rounds: usize,
    },
    /// Write docs/interop.md anew, from tests with real upstream nodes.
    Interop,
    /// Fuzz a door (frame, launch, wire, hello, peer_list, relay, certificate, manifest) with a nightly compiler and cargo-fuzz.
    Fuzz {
        /// Which door.
        target: String,
        /// Seconds.
        #[arg(default_value_t = 60)]
        seconds: u64,
    },
    /// Try every order in which two threads may use the shared-memory ring (loom).
    Model,
    /// Write plugin-sdk/include/thenodes_plugin.h anew.
    Header,
}

#[derive(Debug, Subcommand)]
enum BenchWhat {
    /// The network, from outside, beside upstream's node and others, with the black-box tool.
    Net {
        /// Directory of the tool.
        #[arg(long, env = "THENODES_NETBENCH")]
        tool: PathBuf,
        /// Only these cases, separated by commas.
        #[arg(long)]
        only: Option<String>,
    },
    /// Messages of a peer to one plugin, beside upstream's node with a plugin in its own process.
    Inbound,
}

fn main() -> Result<()> {
    match Cli::parse().command {
        Task::Check => check(),
        Task::Test { filter } => test::run(filter.as_deref()),
        Task::Demo { json } => demo::run(json),
        Task::Attack => attack::run(),
        Task::Isolation => attack::isolation(),
        Task::Bench { what: Some(BenchWhat::Net { tool, only }), rounds } => {
            net::bench(&tool, rounds, only.as_deref())
        }
        Task::Bench { what: Some(BenchWhat::Inbound), rounds } => net::inbound(rounds),
        Task::Interop => net::interop(),
        Task::Bench { what: None, rounds } => {
            let features = ["--workspace", "--features", "thenodes-tests/bench"];
            run(cargo().args(["build", "--release"]).args(features))?;
            let bin = target().join("release");
            run(Command::new(bin.join("bench")).arg(rounds.to_string()).env("THENODES_BIN_DIR", bin))
        }
        Task::Fuzz { target, seconds } => {
            if !Command::new("cargo")
                .args(["fuzz", "--version"])
                .output()
                .is_ok_and(|output| output.status.success())
            {
                run(cargo().args(["install", "cargo-fuzz", "--locked"]))?;
            }
            let limit = format!("-max_total_time={seconds}");
            // The nightly compiler by its own name: `cargo +nightly` works only through rustup's proxies.
            let mut command = Command::new("cargo");
            command.env_remove("CARGO").env_remove("RUSTUP_TOOLCHAIN");
            run(command
                .args(["+nightly", "fuzz", "run", "--fuzz-dir", "tests/fuzz", &target, "--", &limit])
                .current_dir(root()))
        }
        Task::Model => {
            // In a directory of its own: the flag changes every crate, and nobody wants to build the house anew after this.
            run(cargo()
                .args(["test", "--release", "--package", "thenodes-ipc", "--lib", "ring::model"])
                .env("RUSTFLAGS", "--cfg loom")
                .env("CARGO_TARGET_DIR", target().join("model")))
        }
        Task::Header => header::write(),
    }
}

fn check() -> Result<()> {
    run(cargo().args(["fmt", "--all", "--check"]))?;
    run(cargo().args(["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]))?;
    run(cargo().args(["doc", "--workspace", "--no-deps"]).env("RUSTDOCFLAGS", "-D warnings"))?;
    test::run(None)
}

/// The workspace.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new(".")).to_path_buf()
}

/// Where cargo builds.
fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// Cargo, in the workspace.
fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

/// Runs a command and fails with its name.
fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("{:?}", command.get_program()))?;
    if !status.success() {
        bail!("{:?} {:?}: {status}", command.get_program(), command.get_args().collect::<Vec<_>>());
    }
    Ok(())
}
