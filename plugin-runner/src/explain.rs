//! Prints what a seccomp mode allows, out of the very lists that the filters are built from. Runs without a plugin, for an
//! operator's eyes: `thenodes-runner --explain MODE [--json] [--read] [--write] [CALL...]`.

use crate::broker::rule_text;
use crate::confine::syscalls::{added, entries, name_of, FAILING, MADE, NEVER};
use serde_json::json;
use std::io::Write;
use thenodes_ipc::launch::{PathGrant, SeccompMode};

/// Prints the list for these arguments.
pub(crate) fn print(arguments: impl Iterator<Item = String>) -> Result<(), String> {
    let mut mode = SeccompMode::Strict;
    let (mut as_json, mut read, mut write) = (false, false, false);
    let mut calls = Vec::new();
    for argument in arguments {
        match argument.as_str() {
            "--json" => as_json = true,
            "--read" => read = true,
            "--write" => write = true,
            word => match SeccompMode::parse(word) {
                Some(found) => mode = found,
                None => calls.push(word.to_owned()),
            },
        }
    }
    let paths: Vec<PathGrant> = (read || write)
        .then(|| PathGrant { path: "/".into(), read: true, write, create: write })
        .into_iter()
        .collect();
    added(&calls)?;
    let allowed: Vec<_> = entries(mode, &paths)
        .iter()
        .map(|entry| (entry.name(), rule_text(entry.args), entry.from.word(), entry.why))
        .chain(
            calls
                .iter()
                .map(|call| (call.as_str(), "any arguments".into(), "custom", "the operator named it")),
        )
        .collect();
    let failing: Vec<_> =
        FAILING.iter().map(|(number, error, why)| (name_of(*number).unwrap_or("?"), *error, *why)).collect();
    let made: Vec<_> = MADE.iter().map(|(number, why)| (name_of(*number).unwrap_or("?"), *why)).collect();
    let never: Vec<_> = NEVER.iter().filter_map(|number| name_of(*number)).collect();
    let mut out = std::io::stdout().lock();
    let written = if as_json {
        let value = json!({
            "version": 1,
            "mode": mode.word(),
            "allowed": allowed.iter().map(|(name, rule, from, why)| json!({ "call": name, "arguments": rule, "from": from, "why": why })).collect::<Vec<_>>(),
            "made": made.iter().map(|(name, why)| json!({ "call": name, "why": why })).collect::<Vec<_>>(),
            "failing": failing.iter().map(|(name, error, why)| json!({ "call": name, "errno": error, "why": why })).collect::<Vec<_>>(),
            "never": never,
            "default": "the process is ended and a record is written",
        });
        writeln!(out, "{value}")
    } else {
        print_table(&mut out, mode, &allowed, &made, &failing, &never)
    };
    written.map_err(|e| format!("writing the list: {e}"))
}

type AllowedLine<'a> = (&'a str, String, &'a str, &'a str);

fn print_table(
    out: &mut impl Write,
    mode: SeccompMode,
    allowed: &[AllowedLine<'_>],
    made: &[(&str, &str)],
    failing: &[(&str, i32, &str)],
    never: &[&str],
) -> std::io::Result<()> {
    writeln!(out, "seccomp mode {}: {} system calls may be made", mode.word(), allowed.len())?;
    for (name, rule, from, why) in allowed {
        writeln!(out, "  {name:<20} {from:<11} {rule}: {why}")?;
    }
    writeln!(out, "\n{} are made by the broker in the plugin's place:", made.len())?;
    for (name, why) in made {
        writeln!(out, "  {name:<20} {why}")?;
    }
    writeln!(out, "\n{} fail with an error, each with a record:", failing.len())?;
    for (name, error, why) in failing {
        writeln!(out, "  {name:<20} error {error:<5} {why}")?;
    }
    writeln!(out, "\nEverything else ends the process, with a record. No mode and no list can allow these with any arguments:")?;
    for line in never.chunks(8) {
        writeln!(out, "  {}", line.join(", "))?;
    }
    Ok(())
}
