//! `thenodes plugin top`: who does how much now. Two looks at the node's counters and what lies between them; the node itself keeps
//! no rates. Names were checked by the node; they are made printable all the same.

use super::{print, socket, told, Cli, Failure};
use crate::admin::{Asking, Question};
use crate::plugins::metrics::{quantile, BOUNDS_NS};
use crate::text::printable;
use serde_json::{json, Value};
use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Time between two looks.
const INTERVAL: Duration = Duration::from_secs(1);

pub(super) fn run(cli: &Cli, once: bool) -> Result<ExitCode, Failure> {
    let mut asking = Asking::connect(&socket(cli)?)?;
    let mut before = asking.ask(&Question::PluginTop)?;
    let mut at = Instant::now();
    let again = !once && !cli.json && std::io::stdout().is_terminal();
    loop {
        std::thread::sleep(INTERVAL.saturating_sub(at.elapsed()));
        let now = asking.ask(&Question::PluginTop)?;
        at = Instant::now();
        let rows = between(&before, &now);
        before = now;
        if !again {
            print(cli.json, &json!({ "version": 1, "plugins": rows }), || table(&rows));
            return Ok(ExitCode::SUCCESS);
        }
        // Home, and the rest of the screen cleared.
        if !told(&format!("\u{1b}[H\u{1b}[J{}", table(&rows))) {
            return Ok(ExitCode::SUCCESS);
        }
    }
}

/// What happened between two looks, plugin by plugin. A counter that went back belongs to another process.
fn between(before: &Value, now: &Value) -> Vec<Value> {
    let micros = |value: &Value| value["at_us"].as_u64().unwrap_or(0);
    let took = Duration::from_micros(micros(now).saturating_sub(micros(before))).as_secs_f64();
    let buckets = |plugin: &Value| -> Vec<u64> {
        let list = plugin["buckets"].as_array().into_iter().flatten();
        list.map(|count| count.as_u64().unwrap_or(0)).take(BOUNDS_NS.len() + 1).collect()
    };
    let rows = now["plugins"].as_array().into_iter().flatten().map(|plugin| {
        let all = before["plugins"].as_array();
        let old = all.and_then(|all| all.iter().find(|old| old["name"] == plugin["name"]));
        let since = |key: &str| {
            let count = |of: &Value| of[key].as_u64().unwrap_or(0);
            old.map_or(0, |old| count(plugin).saturating_sub(count(old)))
        };
        let new = buckets(plugin);
        let gone = old.map_or_else(|| new.clone(), buckets);
        let answered: Vec<u64> = new
            .iter()
            .zip(gone.iter().chain(std::iter::repeat(&0)))
            .map(|(new, old)| new.saturating_sub(*old))
            .collect();
        let same = old.is_some_and(|old| old["generation"] == plugin["generation"]);
        let rate = |count: u64| if took > 0.0 { count as f64 / took } else { 0.0 };
        let cpu = (same && plugin["cpu_ms"].is_u64()).then(|| rate(since("cpu_ms")) / 10.0);
        json!({
            "name": plugin["name"],
            "state": plugin["state"],
            "calls_per_s": rate(since("calls")),
            "p50_us": quantile(&answered, 0.5).map(|time| time.as_micros() as u64),
            "p99_us": quantile(&answered, 0.99).map(|time| time.as_micros() as u64),
            "cpu_percent": cpu,
            "memory": plugin["memory"],
            "queue": plugin["queue"],
            "restarts": plugin["restarts"],
        })
    });
    rows.collect()
}

fn table(rows: &[Value]) -> String {
    let mut out = format!(
        "{:<24} {:<12} {:>10} {:>9} {:>9} {:>7} {:>9} {:>7} {:>8}",
        "NAME", "STATE", "CALLS/S", "P50", "P99", "CPU %", "MEMORY", "QUEUE", "RESTARTS"
    );
    for row in rows {
        let text = |key: &str| printable(row[key].as_str().unwrap_or("-"), 64);
        let number = |key: &str, show: fn(f64) -> String| row[key].as_f64().map_or_else(|| "-".into(), show);
        let whole = |value: f64| format!("{value:.0}");
        out.push_str(&format!(
            "\n{:<24} {:<12} {:>10} {:>9} {:>9} {:>7} {:>9} {:>7} {:>8}",
            text("name"),
            text("state"),
            number("calls_per_s", |value| format!("{value:.1}")),
            number("p50_us", time),
            number("p99_us", time),
            number("cpu_percent", |value| format!("{value:.1}")),
            number("memory", |bytes| format!("{:.1} MiB", bytes / 1_048_576.0)),
            number("queue", whole),
            number("restarts", whole),
        ));
    }
    out
}

/// Microseconds, in the unit that fits.
fn time(micros: f64) -> String {
    match micros {
        ..1000.0 => format!("{micros:.0} us"),
        ..1_000_000.0 => format!("{:.1} ms", micros / 1000.0),
        _ => format!("{:.1} s", micros / 1_000_000.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_what_lies_between_two_looks_and_another_process_begins_anew() {
        let look = |at_us: u64, generation: u32, calls: u64, slow: u64, cpu_ms: u64| {
            let mut buckets = vec![0; BOUNDS_NS.len() + 1];
            (buckets[2], buckets[10]) = (calls - slow, slow);
            json!({ "at_us": at_us, "plugins": [{ "name": "x", "state": "Ready", "generation": generation, "calls": calls,
                "buckets": buckets, "cpu_ms": cpu_ms, "memory": 3 << 20, "queue": 0, "restarts": generation - 1 }] })
        };
        let rows = between(&look(0, 1, 100, 50, 1000), &look(2_000_000, 1, 300, 53, 2000));
        let row = &rows[0];
        assert_eq!((row["calls_per_s"].as_f64(), row["cpu_percent"].as_f64()), (Some(100.0), Some(50.0)));
        assert!(row["p50_us"].as_u64() <= Some(100), "the slow half came before: {row}");
        assert!(row["p99_us"].as_u64() > Some(50), "{row}");
        let rows = between(&look(0, 1, 100, 0, 9000), &look(1_000_000, 2, 100, 0, 10));
        assert!(rows[0]["cpu_percent"].is_null() && rows[0]["p50_us"].is_null(), "{}", rows[0]);
        let text = table(&rows);
        assert!(text.lines().count() == 2 && text.contains("3.0 MiB"), "{text}");
    }
}
