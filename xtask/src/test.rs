//! Builds everything that tests need, runs every test, and, as root, runs the tests of built binaries once more as an
//! ordinary user at the same time. Counts what passed, failed and was skipped; a skipped test says why on a line of its own.

use crate::{attack, bounded, cargo, header, root, run as execute, target};
use anyhow::{bail, Context, Result};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The ordinary user: nobody, who owns nothing.
pub(crate) const NOBODY: &str = "65534";
/// How many tests of a program run at once, unless the environment says so: most of them wait most of the time, for deadlines and for
/// other processes, so that one for each processor leaves the processors idle.
const THREADS: &str = "RUST_TEST_THREADS";
const AT_ONCE: &str = "4";
/// What tests need beside their own program.
const NEEDED: [&str; 6] = [
    "thenodes",
    "thenodes-runner",
    "thenodes-runner-without",
    "faulty-runner",
    "vandal-runner",
    "hostile-control",
];

#[derive(Default)]
struct Counts {
    passed: u64,
    failed: u64,
    skipped: Vec<String>,
}

impl Counts {
    fn add(&mut self, other: Counts) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped.extend(other.skipped);
    }
}

/// What came of the pass as another user.
struct OtherUser {
    /// Its output, by line.
    said: Vec<String>,
    counts: Counts,
    good: bool,
}

pub(crate) fn run(filter: Option<&str>) -> Result<()> {
    header::check()?;
    build()?;
    let mut command = cargo();
    command.args(["test", "--workspace", "--no-fail-fast"]);
    if std::env::var_os(THREADS).is_none() {
        command.env(THREADS, AT_ONCE);
    }
    if let Some(filter) = filter {
        command.args(["--test", filter]);
    }
    // Both users at once: most of what tests do is wait. What the other one's say comes when this one's are through.
    let as_root = nix::unistd::getuid().is_root();
    let programs = if as_root { programs()? } else { Vec::new() };
    let mut counts = Counts::default();
    let (own, other) = std::thread::scope(|scope| {
        let other = as_root.then(|| scope.spawn(|| as_nobody(&programs, filter)));
        let own = counted(&mut command, &mut counts, |line| println!("{line}"));
        (own, other.map(std::thread::ScopedJoinHandle::join))
    });
    let mut broken = Vec::new();
    if !own? {
        broken.push("as this user");
    }
    if let Some(other) = other {
        let OtherUser { said, counts: theirs, good } =
            other.map_err(|_| anyhow::anyhow!("the pass as an ordinary user panicked"))??;
        println!("\nThe same built binaries as an ordinary user (uid {NOBODY}), at the same time:");
        said.iter().for_each(|line| println!("{line}"));
        counts.add(theirs);
        if !good {
            broken.push("as an ordinary user");
        }
    } else {
        counts.skipped.push("SKIPPED the pass as another user: only root can become one".into());
    }
    if filter.is_none() {
        let (value, held) = attack::suite()?;
        println!("{value}");
        // Each user's run counts as one test; its own numbers stand in the object above.
        let runs = value["runs"].as_array().map_or(1, Vec::len) as u64;
        if held {
            counts.passed += runs;
        } else {
            counts.failed += 1;
            broken.push("in the attack suite");
        }
    }
    println!();
    for line in &counts.skipped {
        println!("{line}");
    }
    println!("{} passed, {} failed, {} skipped", counts.passed, counts.failed, counts.skipped.len());
    if broken.is_empty() {
        Ok(())
    } else {
        bail!("tests failed {}", broken.join(" and "))
    }
}

/// Programs that are upstream nodes. Each is a world of its own; what they have in common is built once.
const UPSTREAM: [&str; 2] = ["upstream-peer", "upstream-peer-02"];

/// Upstream's own program, 0.4.0.
const STOCK: &str = "upstream-stock";

pub(crate) fn build() -> Result<()> {
    let debug = target().join("debug");
    // A runner that can leave walls out, for tests of the others; then the real one takes its place again.
    // Of the whole workspace, so that what it depends on is built only once.
    let without = ["--features", "thenodes-plugin-runner/without", "--bin", "thenodes-runner"];
    execute(cargo().args(["build", "--workspace"]).args(without))?;
    fs::copy(debug.join("thenodes-runner"), debug.join("thenodes-runner-without"))
        .context("the runner for tests")?;
    execute(cargo().args(["build", "--workspace", "--all-targets"]))?;
    // A plugin of another profile: other optimisation, other panic strategy, other dependency features.
    execute(cargo().args(["build", "--profile", "other", "-p", "thenodes-plugin-echo"]))?;
    fs::copy(target().join("other/libecho.so"), debug.join("libother.so"))
        .context("the plugin of another profile")?;
    // A plugin in C, against the generated header.
    let cc = std::env::var_os("CC").unwrap_or_else(|| "cc".into());
    let mut compile = Command::new(cc);
    compile.args(["-std=c11", "-Wall", "-Wextra", "-Werror", "-O2", "-shared", "-fPIC"]);
    compile.arg("-I").arg(root().join("plugin-sdk/include")).arg(root().join("plugins/hello-c/hello.c"));
    execute(compile.arg("-o").arg(debug.join("libhello.so")))?;
    // Real upstream nodes, from crates.io. Nobody debugs them here.
    let upstream = target().join("upstream");
    let without_debug = |command: &mut Command| {
        execute(command.arg("--target-dir").arg(&upstream).env("CARGO_PROFILE_DEV_DEBUG", "false"))
    };
    for peer in UPSTREAM {
        let manifest = format!("tests/{peer}/Cargo.toml");
        let args = ["build", "--locked", "--bins", "--examples", "--manifest-path", &manifest];
        without_debug(cargo().args(args))?;
        fs::copy(upstream.join("debug").join(peer), debug.join(peer))
            .with_context(|| format!("the upstream peer {peer}"))?;
    }
    // The first of them as it is installed, for what its own program does.
    let stock = upstream.join("stock");
    if !stock.join("bin/thenodes").is_file() {
        let install = ["install", "thenodes@0.4.0", "--locked", "--debug", "--bin", "thenodes", "--root"];
        without_debug(cargo().args(install).arg(&stock))?;
    }
    fs::copy(stock.join("bin/thenodes"), debug.join(STOCK)).context("upstream's own program")?;
    // And a plugin for the first of them, as its loader opens them.
    let plugin = "libupstream_plugin.so";
    fs::copy(upstream.join("debug/examples").join(plugin), debug.join(plugin))
        .context("the plugin for upstream's loader")?;
    if nix::unistd::getuid().is_root() {
        let script = root().join("tests/systemd/rootfs.sh");
        let made = Command::new("bash").arg(script).arg(target().join("systemd-rootfs")).status();
        if !made.is_ok_and(|status| status.success()) {
            println!("no root file system for the systemd test: that test will be skipped");
        }
    }
    Ok(())
}

/// Runs a test command, passing its lines on and counting them. False if something failed, or hung.
fn counted(command: &mut Command, counts: &mut Counts, mut say: impl FnMut(&str)) -> Result<bool> {
    let ended = bounded::lines(command, bounded::TESTS, |line| {
        say(line);
        if let Some(result) = line.strip_prefix("test result: ") {
            let number = |word: &str| {
                let before = result
                    .split(word)
                    .next()
                    .and_then(|text| text.trim().rsplit([' ', ';', '.']).next()?.parse().ok());
                before.unwrap_or(0)
            };
            counts.passed += number(" passed");
            counts.failed += number(" failed");
        }
        if line.starts_with("SKIPPED ") {
            counts.skipped.push(line.to_owned());
        }
    });
    match ended {
        Ok(status) => Ok(status.success()),
        // What hung is a failure like any other: the other programs are still worth running.
        Err(why) => {
            say(&format!("HUNG {why}"));
            counts.failed += 1;
            Ok(false)
        }
    }
}

/// The test programs that are no part of a crate, with their names.
fn programs() -> Result<Vec<(String, PathBuf)>> {
    let list = cargo()
        // The whole workspace, as above: asked for one package, cargo would build every program a second time, with other features.
        .args(["test", "--workspace", "--no-run", "--message-format=json"])
        .stderr(Stdio::null())
        .output()
        .context("listing test programs")?;
    if !list.status.success() {
        bail!("the test programs cannot be built; `cargo test --workspace --no-run` says why");
    }
    let mut programs = Vec::new();
    for line in String::from_utf8_lossy(&list.stdout).lines() {
        let Ok(message) = serde_json::from_str::<serde_json::Value>(line) else { continue };
        let kind = message["target"]["kind"][0].as_str().unwrap_or_default();
        if let (Some(path), "test") = (message["executable"].as_str(), kind) {
            programs.push((
                message["target"]["name"].as_str().unwrap_or_default().to_owned(),
                PathBuf::from(path),
            ));
        }
    }
    if programs.is_empty() {
        bail!("cargo named no test program to run as an ordinary user");
    }
    Ok(programs)
}

/// Copies what the tests of binaries need to a place that anybody may read, and runs them there as nobody.
fn as_nobody(programs: &[(String, PathBuf)], filter: Option<&str>) -> Result<OtherUser> {
    let dir = tempfile::Builder::new().prefix("thenodes-nobody").tempdir()?;
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755))?;
    let debug = target().join("debug");
    for name in NEEDED {
        publish(&debug.join(name), dir.path())?;
    }
    for entry in fs::read_dir(&debug)?.flatten() {
        if entry.path().extension().is_some_and(|extension| extension == "so") {
            publish(&entry.path(), dir.path())?;
        }
    }
    for peer in UPSTREAM.into_iter().chain([STOCK]) {
        publish(&debug.join(peer), dir.path())?;
    }
    let own_network = own_network();
    let (mut said, mut counts, mut good) = (Vec::new(), Counts::default(), true);
    if !own_network {
        said.push("no network of their own for tests with upstream nodes (`unshare --net ip link set lo up` fails): they run in this one".to_owned());
    }
    for (name, path) in programs {
        // The shape of the source needs the source, and systemd needs root; both ran above.
        if matches!(name.as_str(), "house" | "systemd") || filter.is_some_and(|filter| filter != name) {
            continue;
        }
        said.push(format!("     Running {name} as uid {NOBODY}"));
        publish(path, dir.path())?;
        let program = dir.path().join(path.file_name().unwrap_or_default());
        // Real upstream nodes listen at every address.
        let mut command = if own_network && (name == "interop" || name.starts_with("upstream")) {
            let mut command = Command::new("unshare");
            command.args(["--net", "sh", "-c", "ip link set lo up && exec \"$@\"", "sh", "setpriv"]);
            command
        } else {
            Command::new("setpriv")
        };
        command
            .args(["--reuid", NOBODY, "--regid", NOBODY, "--clear-groups", "--inh-caps=-all"])
            .arg(&program)
            .env("THENODES_BIN_DIR", dir.path())
            .env("HOME", "/nonexistent")
            .current_dir("/");
        if std::env::var_os(THREADS).is_none() {
            command.env(THREADS, if name == "upstream_defects" { "8" } else { AT_ONCE });
        }
        good &= counted(&mut command, &mut counts, |line| said.push(line.to_owned()))?;
    }
    Ok(OtherUser { said, counts, good })
}

/// True if tests can have a network of their own.
pub(crate) fn own_network() -> bool {
    let made = Command::new("unshare").args(["--net", "ip", "link", "set", "lo", "up"]).status();
    made.is_ok_and(|status| status.success())
}

pub(crate) fn publish(file: &Path, dir: &Path) -> Result<()> {
    let to = dir.join(file.file_name().unwrap_or_default());
    fs::copy(file, &to).with_context(|| format!("copying {}", file.display()))?;
    fs::set_permissions(&to, fs::Permissions::from_mode(0o755))?;
    Ok(())
}
