//! What one plugin's sandbox allows, in words: its own part from the running node, and the list of system calls from the runner
//! program, which prints the very list that it builds its filter from.

use crate::plugins::process::find_runner;
use crate::text::printable;
use crate::Config;
use serde_json::Value;
use std::process::Command;

/// The runner's list for this sandbox, as JSON or as a table.
///
/// # Errors
/// If the runner cannot be found or says no.
pub fn calls(config: &Config, sandbox: &Value, json: bool) -> Result<String, String> {
    let runner = find_runner(config.plugins.runner.as_deref())?;
    let mut command = Command::new(&runner);
    command.arg("--explain").arg(sandbox["seccomp"].as_str().unwrap_or("strict"));
    if json {
        command.arg("--json");
    }
    let paths = sandbox["paths"].as_array().map(Vec::as_slice).unwrap_or_default();
    let temporary = sandbox["tmp_mb"].as_u64() > Some(0);
    if !paths.is_empty() || temporary {
        command.arg("--read");
    }
    if temporary || paths.iter().any(|path| path["write"] == true || path["create"] == true) {
        command.arg("--write");
    }
    command.args(sandbox["calls"].as_array().into_iter().flatten().filter_map(Value::as_str));
    let output = command.output().map_err(|e| format!("{}: {e}", runner.display()))?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(format!("{}: {}", runner.display(), String::from_utf8_lossy(&output.stderr).trim()))
    }
}

/// The sandbox of one plugin for people.
pub fn sandbox(value: &Value) -> String {
    let text = |value: &Value| printable(value.as_str().unwrap_or("-"), 1000);
    let mut lines = vec![format!(
        "plugin {}: level {}, seccomp {}",
        text(&value["name"]),
        text(&value["level"]),
        text(&value["seccomp"])
    )];
    for call in value["calls"].as_array().into_iter().flatten() {
        lines.push(format!("  call {} (the operator named it)", text(call)));
    }
    for path in value["paths"].as_array().into_iter().flatten() {
        let may = match (path["write"] == true, path["create"] == true) {
            (_, true) => "read, write, make and remove",
            (true, false) => "read and write",
            (false, false) => "read",
        };
        lines.push(format!("  path {} ({may})", text(&path["path"])));
    }
    if let Some(size) = value["tmp_mb"].as_u64().filter(|size| *size > 0) {
        lines.push(format!("  /tmp of its own, {size} MiB, gone with the process"));
    }
    for layer in value["layers"].as_array().into_iter().flatten() {
        let stands = if layer["in_force"] == true { "in force" } else { "MISSING" };
        lines.push(format!("  {:<18} {stands:<9} {}", text(&layer["layer"]), text(&layer["detail"])));
    }
    lines.join("\n")
}
