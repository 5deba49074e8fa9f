//! `cargo xtask attack` runs this as root and as an ordinary user: every probe without walls, then in a runner in every phase.
//! It ends with 1 if one got through, if one is broken, or if the targets were touched. Its other modes measure the same probes
//! with walls taken away and under another sandbox, and write down what was measured.

use hostile::control::{leave_descriptors_open, Targets};
use hostile::probes::{self, Probe};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use thenodes_ipc::launch::{Layer, Without};
use thenodes_tests::attack::bwrap::{self, Measured};
use thenodes_tests::attack::control::controls;
use thenodes_tests::attack::matrix;
use thenodes_tests::attack::page;
use thenodes_tests::attack::report::Report;
use thenodes_tests::attack::run::World;
use thenodes_tests::attack::table::Row;
use thenodes_tests::attack::Phase;
use thenodes_tests::{bin_dir, is_root, plugin};

const USAGE: &str = "\
usage: attack [--only TEXT] [--phase PHASE]... [--without LAYER]... [--runner PATH] [--json FILE]
       attack --matrix [--runner PATH] [--json FILE]         every probe with walls taken away
       attack --bwrap PATH [--json FILE]                     every probe under bubblewrap
       attack --two-layers FILE [--results DIR]              adds to the list of what two walls cover
       attack --isolation-md FILE [--results DIR]            writes the measured parts of the page
DIR holds suite-, matrix- and bwrap-, each with root.json and user.json, from runs with --json; default target/attack";

#[derive(Default)]
struct Options {
    only: Option<String>,
    phases: Vec<Phase>,
    without: Vec<Layer>,
    runner: Option<PathBuf>,
    json: Option<PathBuf>,
    matrix: bool,
    bwrap: Option<PathBuf>,
    two_layers: Option<PathBuf>,
    page: Option<PathBuf>,
    results: Option<PathBuf>,
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
            "--matrix" => options.matrix = true,
            "--bwrap" => options.bwrap = Some(value()?.into()),
            "--two-layers" => options.two_layers = Some(value()?.into()),
            "--isolation-md" => options.page = Some(value()?.into()),
            "--results" => options.results = Some(value()?.into()),
            "--json" => options.json = Some(value()?.into()),
            _ => return Err(format!("{word}?\n{USAGE}")),
        }
    }
    if options.phases.is_empty() {
        options.phases = Phase::ALL.to_vec();
    }
    Ok(options)
}

fn save(path: Option<&Path>, value: &Value) -> Result<(), String> {
    let Some(path) = path else { return Ok(()) };
    let text = serde_json::to_string_pretty(value).map_err(|e| e.to_string())?;
    std::fs::write(path, text + "\n").map_err(|e| format!("{}: {e}", path.display()))
}

fn user() -> &'static str {
    if is_root() {
        "root"
    } else {
        "user"
    }
}

async fn run() -> Result<bool, String> {
    let options = options()?;
    let results = options.results.clone().unwrap_or_else(|| "target/attack".into());
    if let Some(file) = &options.two_layers {
        let list = matrix::list(&page::tables(&results, "matrix")?);
        return std::fs::write(file, list).map(|()| true).map_err(|e| format!("{}: {e}", file.display()));
    }
    if let Some(file) = &options.page {
        for what in page::write(file, &results)? {
            println!("SKIPPED {what}; it stands as it was");
        }
        return Ok(true);
    }
    match &options.bwrap {
        Some(program) => under_bwrap(program, options.json.as_deref()).await,
        None if options.matrix => with_walls_taken_away(&options).await,
        None => suite(options).await,
    }
}

async fn under_bwrap(program: &Path, json: Option<&Path>) -> Result<bool, String> {
    match bwrap::measure(program, user()).await? {
        Measured::Skipped(why) => println!("SKIPPED the comparison with bubblewrap: {why}"),
        Measured::Table(table) => {
            let columns: Vec<(usize, &str)> = bwrap::COLUMNS.into_iter().enumerate().collect();
            println!(
                "{}",
                table.by_group(&columns, &|row| row.has_control() && bwrap::comparable(row.probe))
            );
            save(json, &table.json())?;
        }
    }
    Ok(true)
}

async fn with_walls_taken_away(options: &Options) -> Result<bool, String> {
    let runner = options.runner.clone().unwrap_or_else(|| bin_dir().join("thenodes-runner-without"));
    let table = matrix::measure(&runner, &plugin("hostile"), user()).await?;
    let columns: Vec<(usize, &str)> = table.columns.iter().map(String::as_str).enumerate().collect();
    println!("{}", table.by_group(&columns, &Row::has_control));
    for (at, column) in columns.iter().skip(1) {
        println!("\nthrough with {column}:\n{}", table.through(*at, &|_| true));
    }
    save(options.json.as_deref(), &table.json())?;
    let failures = matrix::failures(&table);
    for failure in &failures {
        println!("FAILURE: {failure}");
    }
    Ok(failures.is_empty())
}

async fn suite(options: Options) -> Result<bool, String> {
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
    let attempts = world.attempts(&probes, &options.phases, &targets).await;
    let report = Report::new(&probes, &controls, attempts, targets.disturbances());
    report.print(&options.phases);
    save(options.json.as_deref(), &report.json(user()))?;
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
