//! Why a plugin does not run, in words: for callers that find the door closed, for the event of a death, and for the page of
//! `thenodes plugin why`. Every text names the plugin, its version, what happened how often, and the command that helps. What a plugin
//! printed is shown printable and short, as its own words.

use super::handle::{Handle, Status};
use super::lifecycle::{Cause, Desired, State, MAX_DELAY, WINDOW};
use super::logs::{Line, LogBook};
use crate::text::printable;
use serde_json::{json, Value};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use thenodes_ipc::PluginName;

/// Log lines in an error.
const LINES: usize = 3;
/// Log lines on the page.
const PAGE_LINES: usize = 20;

fn millis(at: SystemTime) -> u64 {
    at.duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// What the plugin's last process said last; the node's own lines say what the text around says already.
fn last_words(logs: &LogBook) -> String {
    let (lines, _) = logs.last(64);
    let said: Vec<&Line> = lines.iter().filter(|line| line.source != "node").collect();
    let last = &said[said.len().saturating_sub(LINES)..];
    if last.is_empty() {
        return "it printed nothing".into();
    }
    let quoted: Vec<String> = last.iter().map(|line| format!("{:?}", printable(&line.text, 200))).collect();
    format!("it printed last {}", quoted.join(" "))
}

/// For a caller who finds nobody.
pub(super) fn unavailable(name: &PluginName, status: &Status, logs: &LogBook) -> String {
    // Between a death and what follows from it the state is still that of the living.
    let dead = status.deaths.back().is_some_and(|death| death.generation == status.generation);
    let is = match status.state.serves() && dead {
        true => "has just ended".to_owned(),
        false => format!("is {}", status.state.word()),
    };
    let mut text = format!("plugin {name} {} {is}", status.version.label());
    if let Some(cause) = &status.last_death {
        text.push_str(&format!("; last: {cause}; {}", last_words(logs)));
    }
    format!("{text}; {}", remedy(name, status, Instant::now()))
}

/// For a caller who was inside when it was decided that the process has to end.
pub(super) fn replaced(name: &PluginName, status: &Status, cause: &Cause, logs: &LogBook) -> String {
    // The supervisor may have heard of it by now, and then what comes next is known.
    let next = match status.state.serves() {
        true => format!("try again in a moment, `thenodes plugin why {name}` says more"),
        false => remedy(name, status, Instant::now()),
    };
    let (version, state) = (status.version.label(), status.state.word());
    format!(
        "plugin {name} {version} is {state}, and its process is replaced: {cause}; {}; {next}",
        last_words(logs)
    )
}

/// For the event of a death: what comes next.
pub(super) fn what_follows(name: &PluginName, status: &Status, logs: &LogBook, now: Instant) -> String {
    format!("{}; {}", remedy(name, status, now), last_words(logs))
}

/// What happens by itself, and what an operator can do.
fn remedy(name: &PluginName, status: &Status, now: Instant) -> String {
    let window = WINDOW.as_secs();
    let permissions = matches!(status.last_death, Some(Cause::Permissions(_)));
    match &status.state {
        State::Backoff { until } => format!(
            "restart in {} ms ({} deaths in {window} s); `thenodes plugin why {name}` says more",
            until.saturating_duration_since(now).as_millis(),
            status.recent_deaths
        ),
        State::Failed { probe: Some(at) } => format!(
            "{} deaths in {window} s: given up for now, one try in {} s and every {} s; `thenodes plugin reset {name}` tries at once, `thenodes plugin why {name}` says more",
            status.recent_deaths,
            at.saturating_duration_since(now).as_secs_f32().ceil(),
            MAX_DELAY.as_secs()
        ),
        State::Failed { probe: None } if permissions => format!(
            "not started; change the configuration and start the node again, or the manifest and `thenodes plugin reload {name}`"
        ),
        State::Failed { probe: None } => {
            format!("a restart would not mend it: replace the file and `thenodes plugin reload {name}`, or `thenodes plugin restart {name}`")
        }
        State::Available | State::Stopped if status.desired == Desired::Disabled => {
            format!("it is disabled; `thenodes plugin enable {name}` starts it")
        }
        State::Available | State::Stopped => format!("`thenodes plugin restart {name}` starts it"),
        State::Untrusted => "nobody vouches for it".into(),
        State::Loading | State::Initializing => "it is starting; try again in a moment".into(),
        State::Stopping { .. } => "it is finishing what it does".into(),
        State::Degraded => format!(
            "it missed its health probes ({}); it is replaced if that goes on; `thenodes plugin logs {name}`",
            status.missed.as_deref().unwrap_or("no reason was given")
        ),
        State::Ready => "nothing has to be done".into(),
    }
}

/// The page of `thenodes plugin why`, as data.
pub fn page(plugin: &Handle) -> Value {
    let (status, now) = (plugin.status(), Instant::now());
    let (lines, _) = plugin.logs.last(PAGE_LINES);
    let age = |at: SystemTime| at.elapsed().unwrap_or(Duration::ZERO);
    let in_window = status.deaths.iter().filter(|death| age(death.at) <= WINDOW).count();
    let deaths: Vec<Value> = status
        .deaths
        .iter()
        .map(|death| {
            json!({
                "at_ms": millis(death.at),
                "age_s": age(death.at).as_secs(),
                "generation": death.generation,
                "version": death.version,
                "cause": death.cause.word(),
                "text": death.cause.to_string(),
            })
        })
        .collect();
    json!({
        "version": 1,
        "name": plugin.name.as_str(),
        "state": status.state.word(),
        "since_ms": millis(status.since),
        "for_s": age(status.since).as_secs(),
        "desired": status.desired.word(),
        "plugin_version": status.version.label(),
        "generation": status.generation,
        "starts": status.starts,
        "missed": status.missed,
        "window_s": WINDOW.as_secs(),
        "deaths_in_window": in_window,
        "deaths": deaths,
        "lines": lines,
        "what_to_do": remedy(&plugin.name, &status, now),
    })
}

/// The page for people.
pub fn render(page: &Value) -> String {
    let text = |key: &str| printable(page[key].as_str().unwrap_or("-"), 4096);
    let mut out = format!(
        "{} {}: {} for {} s (wanted: {}), generation {}, {} starts\n",
        text("name"),
        text("plugin_version"),
        text("state"),
        page["for_s"],
        text("desired"),
        page["generation"],
        page["starts"]
    );
    if let Some(missed) = page["missed"].as_str() {
        out.push_str(&format!("last health probe missed: {}\n", printable(missed, 500)));
    }
    out.push_str(&format!("deaths: {} in the last {} s\n", page["deaths_in_window"], page["window_s"]));
    for death in page["deaths"].as_array().into_iter().flatten() {
        out.push_str(&format!(
            "  {} s ago, generation {}, version {}: {}: {}\n",
            death["age_s"],
            death["generation"],
            printable(death["version"].as_str().unwrap_or("-"), 200),
            death["cause"].as_str().unwrap_or("-"),
            printable(death["text"].as_str().unwrap_or("-"), 1000)
        ));
    }
    out.push_str("last lines:\n");
    for line in page["lines"].as_array().into_iter().flatten() {
        out.push_str(&format!(
            "  {:<5} {}: {}\n",
            line["level"].as_str().unwrap_or("-"),
            printable(line["source"].as_str().unwrap_or("-"), 128),
            printable(line["text"].as_str().unwrap_or("-"), 500)
        ));
    }
    out.push_str(&format!("what to do: {}", text("what_to_do")));
    out
}
