//! The same probes under bubblewrap, for comparison. It gets the flags of its usual callers and, in further columns, the strictest
//! that are in common use; a caller who also hands it a filter of his own is not measured. It confines a whole program
//! that may fork and exec, so not all that gets through is a fault of its: `docs/isolation.md` says what is comparable.

use super::control::controls;
use super::report::Control;
use super::run::AT_ONCE;
use super::table::{Cell, Row, Table};
use super::Verdict;
use crate::bin_dir;
use hostile::control::{leave_descriptors_open, Targets};
use hostile::probes::{self, Probe, Target};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;
use tokio::process::Command;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

/// How long one attempt may take.
const PATIENCE: Duration = Duration::from_secs(20);
/// What the program says if it may not make the namespaces in which a probe would be tried. When a later step of it fails, as
/// root's own mapping does, nothing is known: an attacker may not need that step.
const NO_NAMESPACES: &str = "no fair attempt: namespaces for the control: ";
/// Where the program with the probes is inside.
const PROGRAM: &str = "/tmp/hostile-control";
/// A directory of the sandbox's own, for probes that first make namespaces and then need something to mount on.
const OWN_DIR: &str = "/tmp";
/// Where targets are made: not below `/tmp`, which every caller hides.
const TARGETS_BELOW: &str = "/var/tmp";

/// Names of the columns.
pub const COLUMNS: [&str; 3] =
    ["usual flags", "only /usr and libraries", "the same, no further user namespaces"];

/// Probes that say nothing about bubblewrap, and why. They are left out of both sides of the comparison.
pub const NOT_COMPARABLE: [(&str, &str); 9] = [
    ("arguments", "a program that is started by a path has that path as an argument"),
    ("program-path", "the same"),
    ("pass-descriptor-link", "there is no link to a node; a pair of its own stands for it"),
    ("peer-credentials", "the same"),
    ("peer-handle", "the same"),
    ("peer-name", "the same"),
    ("filter-rewrite", "there is no filter of a runner's; a program of its own stands for it"),
    ("filter-replace", "the same"),
    ("filter-unmap", "the same"),
];

/// True if it is part of the comparison.
pub fn comparable(probe: &Probe) -> bool {
    !NOT_COMPARABLE.iter().any(|(name, _)| *name == probe.name)
}

/// The flags of a column, without the program.
fn flags(column: usize) -> Vec<OsString> {
    let mut flags: Vec<OsString> =
        ["--unshare-all", "--die-with-parent", "--new-session", "--cap-drop", "ALL"]
            .map(OsString::from)
            .into();
    if column == 0 {
        flags.extend(["--ro-bind", "/", "/"].map(OsString::from));
    } else {
        flags.extend(["--clearenv", "--ro-bind", "/usr", "/usr"].map(OsString::from));
        let lib = |entry: &std::fs::DirEntry| entry.file_name().to_string_lossy().starts_with("lib");
        for entry in std::fs::read_dir("/").into_iter().flatten().flatten().filter(lib) {
            let path = OsString::from(entry.path());
            flags.extend(["--ro-bind".into(), path.clone(), path]);
        }
    }
    flags.extend(["--dev", "/dev", "--proc", "/proc", "--tmpfs", "/tmp"].map(OsString::from));
    flags.extend(["--ro-bind".into(), bin_dir().join("hostile-control").into(), PROGRAM.into()]);
    if column > 0 {
        flags.extend(["--chdir", "/"].map(OsString::from));
    }
    if column > 1 {
        flags.extend(["--unshare-user", "--disable-userns"].map(OsString::from));
    }
    flags
}

struct Bwrap {
    program: PathBuf,
    dir: PathBuf,
}

impl Bwrap {
    /// Runs the program inside with these words, and returns what it said and how it ended.
    async fn run(&self, column: usize, words: &[&str]) -> Result<(String, ExitStatus), String> {
        let mut command = Command::new(&self.program);
        command.args(flags(column)).arg("--").arg(PROGRAM).args(words).current_dir(&self.dir);
        command.stdin(Stdio::null()).kill_on_drop(true);
        let output = match tokio::time::timeout(PATIENCE, command.output()).await {
            Ok(output) => output.map_err(|e| format!("running {}: {e}", self.program.display()))?,
            Err(_) => return Err(format!("nothing within {PATIENCE:?}")),
        };
        let errors = String::from_utf8_lossy(&output.stderr);
        // Its own failure to start is no refusal.
        if let Some(line) = errors.lines().find(|line| line.starts_with("bwrap: ")) {
            return Err(line.to_owned());
        }
        Ok((String::from_utf8_lossy(&output.stdout).into_owned(), output.status))
    }

    async fn attempt(&self, probe: &'static Probe, column: usize, argument: &str) -> Verdict {
        let words: Vec<&str> = [probe.name, argument].into_iter().filter(|word| !word.is_empty()).collect();
        match self.run(column, &words).await {
            Err(error) => Verdict::Silent(error),
            Ok((said, _)) if said.contains("GOT THROUGH") => Verdict::Through(said.trim().to_owned()),
            // It needs namespaces of its own first, and those were refused.
            Ok((said, _)) if said.contains("denied: ") || said.contains(NO_NAMESPACES) => {
                Verdict::Refused(said.trim().to_owned())
            }
            Ok((_, status)) if !status.success() => Verdict::Ended(status.to_string()),
            Ok((said, _)) => Verdict::Silent(format!("nothing to the point: {}", said.trim())),
        }
    }
}

/// What a run came to.
pub enum Measured {
    /// The table.
    Table(Table),
    /// bubblewrap does not work here, and why.
    Skipped(String),
}

/// Tries every probe under this program, in both columns.
///
/// # Errors
/// If the runs cannot be made although bubblewrap works.
pub async fn measure(program: &Path, user: &str) -> Result<Measured, String> {
    let program = match program.canonicalize() {
        Ok(program) => program,
        Err(error) => return Ok(Measured::Skipped(format!("{}: {error}", program.display()))),
    };
    let version = Command::new(&program).arg("--version").output().await;
    let subject = match version {
        Ok(output) => String::from_utf8_lossy(&output.stdout).trim().to_owned(),
        Err(error) => return Ok(Measured::Skipped(format!("{}: {error}", program.display()))),
    };
    let controls = controls()?;
    let below = Path::new(TARGETS_BELOW);
    let mut targets = Targets::new(below).map_err(|e| format!("making targets in {TARGETS_BELOW}: {e}"))?;
    leave_descriptors_open(&targets).map_err(|e| format!("opening targets: {e}"))?;
    let bwrap = Arc::new(Bwrap { program, dir: targets.dir().to_owned() });
    for column in 0..COLUMNS.len() {
        match bwrap.run(column, &["--list"]).await {
            Ok((said, _)) if said.contains("probes") => {}
            Ok((said, status)) => return Ok(Measured::Skipped(format!("{status}: {}", said.trim()))),
            Err(error) => return Ok(Measured::Skipped(error)),
        }
    }
    let room = Arc::new(Semaphore::new(AT_ONCE));
    let mut attempts: JoinSet<(&'static str, usize, Verdict)> = JoinSet::new();
    for probe in probes::all() {
        for column in 0..COLUMNS.len() {
            let argument = match probe.target {
                Target::CanaryDir if probe.namespaced => OWN_DIR.to_owned(),
                target => targets.argument(target),
            };
            let (bwrap, room) = (bwrap.clone(), room.clone());
            attempts.spawn(async move {
                let _room = room.acquire_owned().await;
                (probe.name, column, bwrap.attempt(probe, column, &argument).await)
            });
        }
    }
    let attempts = attempts.join_all().await;
    let mut touched = targets.disturbances();
    touched.sort();
    touched.dedup();
    if touched.iter().any(|what| what.contains("victim")) {
        return Err(format!("later attempts on the victim prove nothing: {}", touched.join(", ")));
    }
    let row = |probe: &'static Probe| {
        let found = |column| {
            let verdict = attempts.iter().find(|(name, at, _)| *name == probe.name && *at == column);
            verdict.map_or(Cell::Unknown, |(_, _, verdict)| Cell::of(verdict))
        };
        let control = controls.get(probe.name).copied().unwrap_or(Control::None);
        Row { probe, control, cells: (0..COLUMNS.len()).map(found).collect() }
    };
    for (name, column, verdict) in
        attempts.iter().filter(|(name, ..)| probes::find(name).is_some_and(comparable))
    {
        if let Verdict::Silent(why) = verdict {
            println!("not known: {name} with {}: {why}", COLUMNS[*column]);
        }
    }
    let columns = COLUMNS.map(str::to_owned).into();
    let rows = probes::all().map(row).collect();
    Ok(Measured::Table(Table { user: user.into(), subject, columns, rows, touched }))
}
