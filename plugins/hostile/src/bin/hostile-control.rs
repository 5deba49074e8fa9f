//! The same attacks without any wall around them. If one does not get through here, its refusal in a runner proves nothing.
//!
//! `hostile-control NAME [ARG]` tries one and prints what came of it. `--list [--json]` prints every probe. `--all` makes
//! targets of its own, tries every probe in a process of its own, and fails if one with a control does not get through.

use hostile::control::{leave_descriptors_open, prepare, Targets};
use hostile::probes::{self, Probe};
use hostile::sins;
use std::io::Read;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

/// How long one attempt may take.
const PATIENCE: Duration = Duration::from_secs(10);

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.first().map(String::as_str) {
        None => {
            eprintln!("usage: hostile-control NAME [ARG] | --list [--json] | --all");
            ExitCode::from(64)
        }
        Some("--list") => {
            list(args.iter().any(|arg| arg == "--json"));
            ExitCode::SUCCESS
        }
        Some("--all") => all(),
        Some(name) => {
            let arg = args[1..].join(" ");
            let prepared = probes::find(name).map_or(Ok(()), |probe| prepare(probe, &arg));
            match prepared {
                Ok(()) => println!("{}", sins::commit(&args.join(" "))),
                Err(error) => println!("no fair attempt: {error}"),
            }
            ExitCode::SUCCESS
        }
    }
}

/// A table, or one JSON array. The words are our own and hold nothing that JSON would have to escape but quotes.
fn list(json: bool) {
    let rows: Vec<String> = probes::all()
        .map(|probe| {
            let Probe { name, group, what, target, root_only, control, reason, namespaced, .. } = *probe;
            let target = target.word();
            if json {
                let (what, reason) = (what.replace('"', "\\\""), reason.replace('"', "\\\""));
                format!(
                    "{{\"name\":\"{name}\",\"group\":\"{group}\",\"what\":\"{what}\",\"target\":\"{target}\",\
                     \"root_only\":{root_only},\"namespaced\":{namespaced},\"control\":{control},\"reason\":\"{reason}\"}}"
                )
            } else {
                let note = match (root_only, control) {
                    (_, false) => format!(" (no control: {reason})"),
                    (true, true) => format!(" (root only: {reason})"),
                    (false, true) => String::new(),
                };
                format!("{group:<12} {name:<24} {target:<14} {what}{note}")
            }
        })
        .collect();
    if json {
        println!("[{}]", rows.join(",\n"));
    } else {
        println!("{}", rows.join("\n"));
        println!("{} probes", rows.len());
    }
}

fn all() -> ExitCode {
    let targets = Targets::new(&std::env::temp_dir());
    let targets = match targets.and_then(|targets| leave_descriptors_open(&targets).map(|()| targets)) {
        Ok(targets) => targets,
        Err(error) => {
            eprintln!("hostile-control: {error}");
            return ExitCode::from(70);
        }
    };
    // SAFETY: a number.
    let root = unsafe { libc::geteuid() } == 0;
    let (mut through, mut failed, mut not_counted) = (0, Vec::new(), 0);
    for probe in probes::all() {
        let answer = attempt(probe, &targets);
        let counted = probe.control && (root || !probe.root_only);
        let got_through = answer.contains("GOT THROUGH");
        let verdict = match (got_through, counted) {
            (true, _) => "through",
            (false, true) => "FAILED",
            (false, false) => "-",
        };
        println!("{verdict:<8} {:<12} {:<24} {}", probe.group, probe.name, answer.trim());
        match (got_through, counted) {
            (true, _) => through += 1,
            (false, true) => failed.push(probe.name),
            (false, false) => not_counted += 1,
        }
    }
    println!("{through} got through, {} failed, {not_counted} without a control for this user", failed.len());
    if failed.is_empty() {
        return ExitCode::SUCCESS;
    }
    println!("failed: {}", failed.join(" "));
    ExitCode::FAILURE
}

/// One attempt in a process of its own, and what it said.
fn attempt(probe: &Probe, targets: &Targets) -> String {
    let argument = targets.argument(probe.target);
    let program = match std::env::current_exe() {
        Ok(program) => program,
        Err(error) => return format!("no path of this program: {error}"),
    };
    let mut command = Command::new(program);
    command.arg(probe.name).current_dir(targets.dir()).stdin(Stdio::null());
    if !argument.is_empty() {
        command.arg(argument);
    }
    let child = command.env("HOSTILE_CONTROL", "1").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = match child {
        Ok(child) => child,
        Err(error) => return format!("it did not start: {error}"),
    };
    let deadline = Instant::now() + PATIENCE;
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status.to_string(),
            Ok(None) if Instant::now() < deadline => std::thread::park_timeout(Duration::from_millis(2)),
            Ok(None) => {
                let _ = child.kill();
                let _ = child.wait();
                break format!("no end within {PATIENCE:?}");
            }
            Err(error) => break format!("waiting: {error}"),
        }
    };
    // The process has ended and said less than a pipe holds; what it left behind does not hold the pipe for long.
    let mut said = String::new();
    if let Some(mut pipe) = child.stdout.take() {
        let _ = pipe.read_to_string(&mut said);
    }
    if said.trim().is_empty() {
        if let Some(mut pipe) = child.stderr.take() {
            let _ = pipe.read_to_string(&mut said);
        }
        return format!("said nothing to the point; {status}: {}", said.trim());
    }
    said
}
