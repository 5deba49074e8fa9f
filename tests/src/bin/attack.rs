//! `cargo xtask attack` runs this as root and as an ordinary user: every probe without walls, then in a runner in every phase.
//! It ends with 1 if one got through, if one is broken, or if the targets were touched.

use hostile::control::{leave_descriptors_open, Targets};
use hostile::probes::{self, Probe};
use std::collections::BTreeMap;
use std::process::{Command, ExitCode};
use std::sync::Arc;
use thenodes_ipc::launch::{Layer, Without};
use thenodes_tests::attack::report::{Control, Report};
use thenodes_tests::attack::run::World;
use thenodes_tests::attack::{Attempt, Phase};
use thenodes_tests::{bin_dir, is_root, plugin};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

/// Attempts at the same time: they wait more than they work.
const AT_ONCE: usize = 4;
const USAGE: &str =
    "usage: attack [--only TEXT] [--phase PHASE]... [--without LAYER]... [--runner PATH] [--json FILE]";

#[derive(Default)]
struct Options {
    only: Option<String>,
    phases: Vec<Phase>,
    without: Vec<Layer>,
    runner: Option<std::path::PathBuf>,
    json: Option<std::path::PathBuf>,
}

fn options() -> Result<Options, String> {
    let mut options = Options::default();
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or(format!("{word} needs a value\n{USAGE}"));
        match word.as_str() {
            "--only" => options.only = Some(value()?),
            "--phase" => {
                let wanted = value()?;
                let phase = Phase::ALL.into_iter().find(|phase| phase.word() == wanted);
                options.phases.push(phase.ok_or(format!("no phase {wanted}"))?);
            }
            "--without" => {
                let wanted = value()?;
                let layer = Layer::ALL.into_iter().find(|layer| layer.to_string() == wanted);
                options.without.push(layer.ok_or(format!("no layer {wanted}"))?);
            }
            "--runner" => options.runner = Some(value()?.into()),
            "--json" => options.json = Some(value()?.into()),
            _ => return Err(format!("{word}?\n{USAGE}")),
        }
    }
    if options.phases.is_empty() {
        options.phases = Phase::ALL.to_vec();
    }
    Ok(options)
}

/// Every probe without walls, by the program that exists for it.
fn controls() -> Result<BTreeMap<String, Control>, String> {
    let output = Command::new(bin_dir().join("hostile-control"))
        .arg("--all")
        .output()
        .map_err(|e| format!("hostile-control: {e}"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut found = BTreeMap::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let control = match words.next() {
            Some("through") => Control::Through,
            Some("FAILED") => Control::Failed,
            Some("-") => Control::None,
            _ => continue,
        };
        if let Some(name) = words.nth(1) {
            found.insert(name.to_owned(), control);
        }
    }
    if found.is_empty() {
        return Err(format!("hostile-control said nothing to the point: {text}"));
    }
    Ok(found)
}

async fn run() -> Result<bool, String> {
    let options = options()?;
    let wanted =
        |probe: &&'static Probe| options.only.as_ref().is_none_or(|only| probe.name.contains(only.as_str()));
    let probes: Vec<&'static Probe> = probes::all().filter(wanted).collect();
    let controls = controls()?;
    let mut targets = Targets::new(&std::env::temp_dir()).map_err(|e| e.to_string())?;
    // What a careless host would leave open; a runner must not have it.
    leave_descriptors_open(&targets).map_err(|e| e.to_string())?;
    let runner = options.runner.clone().unwrap_or_else(|| bin_dir().join("thenodes-runner"));
    let without = (!options.without.is_empty())
        .then(|| Without { layers: options.without.clone(), ..Without::default() });
    let world = Arc::new(World::new(runner, &plugin("hostile"), without)?);
    let room = Arc::new(Semaphore::new(AT_ONCE));
    let mut attempts: JoinSet<Attempt> = JoinSet::new();
    for probe in &probes {
        for phase in &options.phases {
            let (world, room, probe, phase) = (world.clone(), room.clone(), *probe, *phase);
            let argument = targets.argument(probe.target);
            attempts.spawn(async move {
                let _room = room.acquire_owned().await;
                world.attempt(probe, &argument, phase).await
            });
        }
    }
    let attempts = attempts.join_all().await;
    let report = Report::new(&probes, &controls, attempts, targets.disturbances());
    report.print(&options.phases);
    let user = if is_root() { "root" } else { "user" };
    if let Some(path) = &options.json {
        let text = serde_json::to_string_pretty(&report.json(user)).map_err(|e| e.to_string())?;
        std::fs::write(path, text + "\n").map_err(|e| format!("{}: {e}", path.display()))?;
    }
    let failures = report.failures();
    for failure in &failures {
        println!("FAILURE: {failure}");
    }
    // With a wall taken away things may get through; the matrix says which.
    Ok(failures.is_empty() || !options.without.is_empty())
}

fn main() -> ExitCode {
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("attack: no runtime: {error}");
            return ExitCode::from(70);
        }
    };
    match runtime.block_on(run()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("attack: {error}");
            ExitCode::from(64)
        }
    }
}
