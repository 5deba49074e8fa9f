//! `cargo xtask bench net`: the node beside upstream's, beside a message broker and beside plain forwarders, in the same run, measured
//! from outside by the black-box tool that is given. Runs in a network namespace of its own, since upstream nodes bind every address.
//! And `cargo xtask interop`, which writes the matrix of what passed with real upstream nodes.

use crate::{cargo, root, run, target};
use anyhow::{bail, Context, Result};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

/// Measures. `tool` is the directory of the tool, built, with the baselines that it shall run beside.
pub(crate) fn bench(tool: &Path, rounds: usize, only: Option<&str>) -> Result<()> {
    let tool = tool.canonicalize().with_context(|| format!("the tool {}", tool.display()))?;
    if !tool.join("run.py").exists() {
        bail!("{} has no run.py: give the directory of the black-box tool", tool.display());
    }
    run(cargo().args(["build", "--release", "-p", "thenodes-node", "-p", "thenodes-plugin-runner"]))?;
    let dir = tempfile::tempdir()?;
    // The tool speaks from one address for thousands of peers; no plugins, so that the network alone is measured.
    let script = dir.path().join("node.sh");
    let node = target().join("release/thenodes");
    let text = format!(
        "#!/bin/sh\ncat >> \"$1\" <<END\n[network.limits]\nconnections = 100000\nconnections_per_address = 100000\nhandshakes_per_address = 4000\n[plugins]\ndir = \"/nonexistent\"\n[admin]\nsocket = \"$(dirname \"$1\")/admin.sock\"\nEND\nTHENODES_LOG=error exec {} --config \"$1\"\n",
        node.display()
    );
    fs::write(&script, text)?;
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
    let results = dir.path().join("results.jsonl");
    let subject = |name: &str| format!("{name}={} {{cfg}}", script.display());
    let mut command = Command::new("unshare");
    command.args(["--map-root-user", "--net", "python3", "run.py", "--rounds", &rounds.to_string(), "--out"]);
    command.arg(&results).args(["--new", &subject("new"), "--new-mtls", &subject("new-mtls")]);
    if let Some(only) = only {
        command.args(["--only", only]);
    }
    run(command.current_dir(&tool))?;
    println!("-- paired ratios");
    run(Command::new("python3").arg("ratios.py").arg(&results).current_dir(&tool))
}

/// Messages of a peer to one plugin, ours and upstream's.
pub(crate) fn inbound(rounds: usize) -> Result<()> {
    let features = ["--workspace", "--features", "thenodes-tests/bench"];
    run(cargo().args(["build", "--release"]).args(features))?;
    let upstream = target().join("upstream");
    run(cargo()
        .args([
            "build",
            "--release",
            "--locked",
            "--manifest-path",
            "tests/upstream-peer/Cargo.toml",
            "--target-dir",
        ])
        .arg(&upstream)
        .current_dir(root()))?;
    let bin = target().join("release");
    fs::copy(upstream.join("release/upstream-peer"), bin.join("upstream-peer")).context("upstream's node")?;
    run(Command::new(bin.join("bench"))
        .args(["--inbound", &rounds.to_string()])
        .env("THENODES_BIN_DIR", &bin))
}

/// Runs the tests with real upstream nodes and writes what passed to docs/interop.md.
pub(crate) fn interop() -> Result<()> {
    crate::test::build()?;
    // Real upstream nodes listen at every address.
    let mut command = if crate::test::own_network() {
        let mut command = Command::new("unshare");
        command.args(["--net", "sh", "-c", "ip link set lo up && exec \"$@\"", "sh"]).arg(env!("CARGO"));
        command.arg("--offline"); // all is built, and there is nobody to ask
        command
    } else {
        cargo()
    };
    let output = command
        .args([
            "test",
            "-p",
            "thenodes-tests",
            "--test",
            "interop",
            "--",
            "--nocapture",
            "--test-threads",
            "2",
        ])
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let mut rows: Vec<(&str, &str)> =
        text.lines().filter_map(|line| line.split("INTEROP ").nth(1)?.split_once('\t')).collect();
    rows.sort_unstable();
    rows.dedup();
    if !output.status.success() || rows.is_empty() {
        bail!("the tests with upstream nodes failed:\n{text}{}", String::from_utf8_lossy(&output.stderr));
    }
    let mut page = String::from(
        "# Interoperation\n\nWhat passed with real nodes of upstream's from crates.io, as separate processes. Written by `cargo xtask interop` from\n`tests/tests/interop.rs`, which is part of every run of the tests; a row stands here only if its test reached it.\n\nOne seat cannot be filled: a relay of 0.4 hands frames on in its own form, which 0.2 does not read. Between those two stands a relay that turns\nforms, as ours does.\n\n| what | with |\n|------|------|\n",
    );
    for (what, with) in &rows {
        page.push_str(&format!("| {what} | {with} |\n"));
    }
    let path = root().join("docs/interop.md");
    fs::write(&path, page).with_context(|| path.display().to_string())?;
    println!("{} rows in {}", rows.len(), path.display());
    Ok(())
}
