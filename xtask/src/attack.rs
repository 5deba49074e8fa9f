//! The attack suite, as root and as an ordinary user: every probe without walls, then in a real runner in every phase. Prints
//! both tables, then one JSON object with the numbers of both, and fails if anything got through.

use crate::{bounded, cargo, root, run as execute, target, test};
use anyhow::{bail, Context, Result};
use serde_json::{json, Value};
use std::fs;
use std::path::Path;
use std::process::Command;

/// What the suite needs beside its own program.
const NEEDED: [&str; 5] = ["attack", "thenodes", "thenodes-runner", "hostile-control", "libhostile.so"];

/// Builds what the suite needs and runs it.
pub(crate) fn run() -> Result<()> {
    execute(cargo().args([
        "build",
        "-p",
        "thenodes-plugin-runner",
        "-p",
        "thenodes-plugin-hostile",
        "-p",
        "thenodes-tests",
    ]))?;
    let (value, held) = suite()?;
    println!("{value}");
    if held {
        Ok(())
    } else {
        bail!("something got through, or left no record; see FAILURE above")
    }
}

/// Runs the built suite as every user that this one can be. True if everything held.
pub(crate) fn suite() -> Result<(Value, bool)> {
    let debug = target().join("debug");
    let mut runs = Vec::new();
    let mut held = true;
    let own = debug.join("attack-own.json");
    let as_root = nix::unistd::getuid().is_root();
    println!("\nThe attack suite as {}:", if as_root { "root" } else { "this user" });
    held &= passed(Command::new(debug.join("attack")).arg("--json").arg(&own))?;
    runs.push(summary(&own)?);
    if as_root {
        let dir = tempfile::Builder::new().prefix("thenodes-attack").tempdir()?;
        for name in NEEDED {
            test::publish(&debug.join(name), dir.path())?;
        }
        let report = for_nobody(dir.path())?.join("report.json");
        println!("\nThe attack suite as an ordinary user (uid {}):", test::NOBODY);
        let mut command = Command::new("setpriv");
        command.args(["--reuid", test::NOBODY, "--regid", test::NOBODY, "--clear-groups", "--inh-caps=-all"]);
        command.arg(dir.path().join("attack")).arg("--json").arg(&report).current_dir("/");
        held &= passed(&mut command)?;
        runs.push(summary(&report)?);
        fs::copy(&report, debug.join("attack-user.json"))?;
    }
    Ok((json!({ "version": 1, "held": held, "runs": runs }), held))
}

/// Runs the suite, the matrix with walls taken away, and the same probes under bubblewrap, and writes the tables of
/// `docs/isolation.md` anew. Needs root, to be both users.
pub(crate) fn isolation() -> Result<()> {
    test::build()?;
    let debug = target().join("debug");
    let bubblewrap = target().join("bubblewrap");
    let got = Command::new("bash").arg(root().join("tests/attack/bwrap.sh")).arg(&bubblewrap).status()?;
    if !got.success() {
        bail!("bubblewrap cannot be had here; docs/isolation.md is left as it is");
    }
    let bwrap = bubblewrap.join("usr/bin/bwrap");
    let dir = tempfile::Builder::new().prefix("thenodes-isolation").tempdir()?;
    for name in NEEDED.iter().copied().chain(["thenodes-runner-without"]) {
        test::publish(&debug.join(name), dir.path())?;
    }
    test::publish(&bwrap, dir.path())?;
    let results = for_nobody(dir.path())?;
    let at = |name: &str| dir.path().join(name);
    for (user, as_nobody) in [("root", false), ("user", true)] {
        let run = |arguments: &[&std::ffi::OsStr]| -> Result<()> {
            let mut command = if as_nobody {
                let mut command = Command::new("setpriv");
                command.args([
                    "--reuid",
                    test::NOBODY,
                    "--regid",
                    test::NOBODY,
                    "--clear-groups",
                    "--inh-caps=-all",
                ]);
                command.arg(at("attack"));
                command
            } else {
                Command::new(at("attack"))
            };
            if passed(command.args(arguments).current_dir("/"))? {
                Ok(())
            } else {
                bail!("{:?} {arguments:?} failed", command.get_program())
            }
        };
        let file = |what: &str| results.join(format!("{what}-{user}.json"));
        run(&["--json".as_ref(), file("suite").as_os_str()])?;
        run(&["--matrix".as_ref(), "--json".as_ref(), file("matrix").as_os_str()])?;
        if as_nobody {
            run(&[
                "--bwrap".as_ref(),
                at("bwrap").as_os_str(),
                "--json".as_ref(),
                file("bwrap").as_os_str(),
            ])?;
        }
    }
    let mut write = Command::new(debug.join("attack"));
    execute(write.arg("--isolation-md").arg(root().join("docs/isolation.md")).arg("--results").arg(&results))
}

/// Lets everybody read a directory, and makes one in it that is nobody's to write to.
fn for_nobody(dir: &Path) -> Result<std::path::PathBuf> {
    let results = dir.join("results");
    fs::create_dir(&results)?;
    let nobody: u32 = test::NOBODY.parse()?;
    std::os::unix::fs::chown(&results, Some(nobody), Some(nobody))?;
    fs::set_permissions(dir, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    Ok(results)
}

fn passed(command: &mut Command) -> Result<bool> {
    // Its attempts end by themselves and its table comes last, so that a run without end has no more to say.
    Ok(bounded::status(command, bounded::SUITE, "the attack suite")?.success())
}

fn summary(path: &Path) -> Result<Value> {
    let text = fs::read_to_string(path).with_context(|| format!("{}", path.display()))?;
    let value: Value = serde_json::from_str(&text)?;
    Ok(json!({ "user": value["user"], "summary": value["summary"], "failures": value["failures"] }))
}
