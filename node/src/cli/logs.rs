//! `thenodes plugin logs`: what a plugin printed, since when and at which level, and on as it comes. A line of a plugin can be
//! anything; it was made one printable line where it was taken, and is made so again here.

use super::{ask_node, print, socket, told, Cli, Failure};
use crate::admin::{Asking, Question, LONGEST_POLL};
use crate::plugins::logs::{Severity, KEPT};
use crate::text::printable;
use clap::Args;
use serde_json::Value;
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use time::format_description::well_known::Rfc3339;
use time::OffsetDateTime;

/// Which lines.
#[derive(Debug, Args)]
pub(super) struct Wish {
    /// Name of the plugin.
    name: String,
    /// How many lines at most (the node keeps 256 of each plugin).
    #[arg(short = 'n', long, default_value_t = 50)]
    lines: usize,
    /// Go on with lines as they come, over restarts of the plugin; with --json an object a line.
    #[arg(short, long)]
    follow: bool,
    /// Only lines since then: a duration (90s, 5m, 2h, 1d) or a time (2026-01-31T12:00:00Z).
    #[arg(long, value_name = "DURATION|TIME", value_parser = since)]
    since: Option<u64>,
    /// Only lines at this level or above it: error, warn, info, debug, trace.
    #[arg(long, value_name = "LEVEL", value_parser = level)]
    level: Option<Severity>,
}

fn level(word: &str) -> Result<Severity, String> {
    Severity::parse(word).ok_or_else(|| "the levels are error, warn, info, debug, trace".into())
}

/// Milliseconds since 1970.
fn since(text: &str) -> Result<u64, String> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    since_at(text, now)
}

fn since_at(text: &str, now: Duration) -> Result<u64, String> {
    let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    if let Ok(time) = OffsetDateTime::parse(text, &Rfc3339) {
        return Ok(u64::try_from(time.unix_timestamp_nanos() / 1_000_000).unwrap_or(0));
    }
    let wrong = || "write a duration like 90s, 5m, 2h, 1d, or a time like 2026-01-31T12:00:00Z".to_owned();
    let unit = match text.chars().last() {
        Some('s') => 1,
        Some('m') => 60,
        Some('h') => 3600,
        Some('d') => 86_400,
        _ => return Err(wrong()),
    };
    let number: u64 = text[..text.len() - 1].parse().map_err(|_| wrong())?;
    Ok(millis(now.saturating_sub(Duration::from_secs(number.saturating_mul(unit)))))
}

/// A time of a plugin's life, for people.
fn clock(millis: u64) -> String {
    let time = OffsetDateTime::from_unix_timestamp_nanos(i128::from(millis) * 1_000_000);
    time.ok().and_then(|time| time.format(&Rfc3339).ok()).unwrap_or_else(|| millis.to_string())
}

fn line(line: &Value) -> String {
    let text = |key: &str| printable(line[key].as_str().unwrap_or("-"), 8192);
    let at = clock(line["at_ms"].as_u64().unwrap_or(0));
    format!("{at} #{} [{}] {}: {}", line["generation"], text("level"), text("source"), text("text"))
}

pub(super) fn run(cli: &Cli, wish: &Wish) -> Result<ExitCode, Failure> {
    let question = |after: Option<u64>| Question::PluginLogs {
        name: wish.name.clone(),
        lines: if after.is_some() { KEPT } else { wish.lines },
        since_ms: wish.since,
        level: wish.level,
        after,
        wait_ms: after.map_or(0, |_| LONGEST_POLL.as_millis() as u64),
    };
    if !wish.follow {
        let value = ask_node(cli, &question(None))?;
        print(cli.json, &value, || {
            let all = value["lines"].as_array().into_iter().flatten();
            let mut out = all.map(line).collect::<Vec<_>>().join("\n");
            if out.is_empty() {
                out.push_str("(nothing)");
            }
            if value["dropped"].as_u64().unwrap_or(0) > 0 {
                out.push_str(&format!("\n({} lines dropped: too many a second)", value["dropped"]));
            }
            out
        });
        return Ok(ExitCode::SUCCESS);
    }
    let mut asking = Asking::connect(&socket(cli)?)?;
    let (mut after, mut dropped) = (None, 0);
    loop {
        let value = asking.ask(&question(after))?;
        for entry in value["lines"].as_array().into_iter().flatten() {
            let shown = if cli.json { entry.to_string() } else { line(entry) };
            if !told(&shown) {
                return Ok(ExitCode::SUCCESS);
            }
        }
        let number = |key: &str| value[key].as_u64().unwrap_or(0);
        let mut notes = Vec::new();
        if after.is_some() && number("missed") > 0 {
            notes.push(format!("{} lines were gone before they could be read", number("missed")));
        }
        if number("dropped") > dropped {
            notes.push(format!("{} lines dropped: too many a second", number("dropped") - dropped));
            dropped = number("dropped");
        }
        for note in notes {
            // Not among the objects of --json.
            eprintln!("({note})");
        }
        after = Some(number("next"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn since_is_a_duration_or_a_time_and_nothing_else() {
        let now = Duration::from_secs(1_000_000);
        assert_eq!(since_at("90s", now), Ok(999_910_000));
        assert_eq!(since_at("2h", now), Ok(992_800_000));
        assert_eq!(since_at("1970-01-02T00:00:00Z", now), Ok(86_400_000));
        assert_eq!(since_at("99999999999999999d", now), Ok(0), "before everything");
        for wrong in ["", "5", "m", "-5m", "1.5h", "yesterday", "5µ"] {
            assert!(since_at(wrong, now).is_err(), "{wrong}");
        }
        assert_eq!(clock(86_400_000), "1970-01-02T00:00:00Z");
    }

    #[test]
    fn a_line_of_a_plugin_stays_one_line() {
        let value = serde_json::json!({ "at_ms": 0, "generation": 1, "level": "info", "source": "stdout\nnode", "text": "a\r\nb\u{1b}[2J" });
        assert_eq!(line(&value), "1970-01-01T00:00:00Z #1 [info] stdout\\nnode: a\\r\\nb\\u{1b}[2J");
    }
}
