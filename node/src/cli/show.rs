//! Answers of a node as text for people. Much in them was said by plugins and peers: every text is made printable here, whatever the
//! node did with it before.

use crate::text::printable;
use serde_json::Value;

pub(super) fn text(value: &Value) -> String {
    match value {
        Value::String(text) => printable(text, 4096),
        Value::Null => "-".into(),
        other => other.to_string(),
    }
}

pub(super) fn lines(list: Option<&Vec<Value>>, line: impl Fn(&Value) -> String, none: &str) -> String {
    match list {
        Some(list) if !list.is_empty() => list.iter().map(line).collect::<Vec<_>>().join("\n"),
        _ => none.into(),
    }
}

/// What a node is, and what last went wrong when it dialed those it is told to dial.
pub(crate) fn status_lines(value: &Value) -> String {
    let mut out = format!(
        "node {} on port {}, {} peers, {} plugins",
        text(&value["node_id"]),
        value["port"],
        value["peers"],
        value["plugins"]
    );
    for error in value["bootstrap_errors"].as_array().into_iter().flatten() {
        out.push_str(&format!("\nbootstrap: {}", text(error)));
    }
    out
}

/// The plugin list for people.
pub(crate) fn table(value: &Value) -> String {
    let line = |p: &Value| {
        let mut line = format!(
            "{:<20} {:<13} level={:<8} pid={:<8} starts={}",
            text(&p["name"]),
            text(&p["state"]),
            text(&p["level"]),
            text(&p["pid"]),
            p["starts"]
        );
        if let Some(why) = p["last_death"]["text"].as_str() {
            line.push_str(&format!("  last death: {}", printable(why, 300)));
        }
        line
    };
    let mut out = lines(value["plugins"].as_array(), line, "no plugins");
    for rejected in value["rejected"].as_array().into_iter().flatten() {
        out.push_str(&format!("\nrejected: {}", text(&rejected["reason"])));
    }
    out
}

pub(super) fn layers(value: &Value) -> String {
    let line = |layer: &Value| {
        let mark = if layer["in_force"] == true { "in force" } else { "MISSING " };
        format!("  {:<18} {mark}  {}", text(&layer["layer"]), text(&layer["detail"]))
    };
    lines(value.as_array(), line, "  (no report)")
}

pub(super) fn enforcement(value: &Value) -> String {
    let line = |(limit, by): (&String, &Value)| format!("  {limit:<18} {}", text(by));
    value.as_object().map(|all| all.iter().map(line).collect::<Vec<_>>().join("\n")).unwrap_or_default()
}

pub(super) fn details(plugin: &Value) -> String {
    let mut out = format!(
        "{}: {}\n  file      {}\n  sha256    {}\n  built by  {}\n  pid       {}   generation {}   starts {}\n  last death {}\nsandbox level {}\n",
        text(&plugin["name"]),
        text(&plugin["state"]),
        text(&plugin["path"]),
        text(&plugin["sha256"]),
        text(&plugin["sdk"]),
        text(&plugin["pid"]),
        plugin["generation"],
        plugin["starts"],
        text(&plugin["last_death"]["text"]),
        text(&plugin["level"]),
    );
    out.push_str(&layers(&plugin["layers"]));
    out.push_str(&format!(
        "\nlimits enforced by\n{}\nqueue    {}\nusage    {}\ncounters {}",
        enforcement(&plugin["enforcement"]),
        pairs(&plugin["queue"]),
        pairs(&plugin["usage"]),
        pairs(&plugin["counters"])
    ));
    out
}

/// A line per wish, with what its author and its operator say.
pub(super) fn permissions(value: &Value) -> String {
    let manifest = value["manifest"].as_str().unwrap_or("no manifest, so [plugins.defaults] hold");
    let mut out = format!("{}: {}", text(&value["name"]), printable(manifest, 4096));
    if let Some(refusal) = value["refusal"].as_str() {
        out.push_str(&format!("\ndoes not start: {}", printable(refusal, 4096)));
    }
    for wish in value["permissions"].as_array().into_iter().flatten() {
        let list = |key: &str| {
            let words = wish[key].as_array().into_iter().flatten().map(text).collect::<Vec<_>>();
            if words.is_empty() {
                "everything".to_owned()
            } else {
                words.join(" ")
            }
        };
        let optional = if wish["optional"] == true { ", optional" } else { "" };
        out.push_str(&format!(
            "\n{:<9} {}: asked {}{optional}",
            text(&wish["verdict"]),
            text(&wish["permission"]),
            list("asked")
        ));
        if wish["verdict"] == "narrowed" {
            out.push_str(&format!("; granted {}", list("granted")));
        }
        out.push_str(&format!(" ({})", text(&wish["place"])));
        for (key, word) in [("reason", "reason"), ("why", "why not")] {
            if let Some(said) = wish[key].as_str() {
                out.push_str(&format!("\n          {word}: {}", printable(said, 4096)));
            }
        }
    }
    out
}

/// What an upgrade came to.
pub(super) fn brought(value: &Value) -> String {
    format!("from {} to {}\n{}", text(&value["from"]), text(&value["running"]), details(&value["plugin"]))
}

pub(super) fn denials(value: &Value) -> String {
    let line = |entry: &Value| {
        let outcome =
            entry["errno"].as_i64().map_or_else(|| "ended".into(), |number| format!("error {number}"));
        format!(
            "generation {:<4} {:<12} {:<9} {}({}) by {} at {} x{}",
            entry["generation"],
            text(&entry["phase"]),
            outcome,
            text(&entry["syscall"]),
            text(&entry["arguments"]),
            text(&entry["layer"]),
            text(&entry["at"]),
            entry["count"]
        )
    };
    let last = lines(value["last"].as_array(), line, "(none)");
    format!("{} refusals, {} of them ended a process\n{last}", value["total"], value["killed"])
}

/// A flat object in one line.
pub(crate) fn pairs(value: &Value) -> String {
    let pair = |(key, value): (&String, &Value)| format!("{} {}", printable(key, 64), text(value));
    match value.as_object() {
        Some(all) => all.iter().map(pair).collect::<Vec<_>>().join(", "),
        None => "-".into(),
    }
}

/// A text of several lines, each of them printable.
pub(super) fn lines_of(output: &str) -> String {
    output.lines().map(|line| printable(line, 65_536)).collect::<Vec<_>>().join("\n")
}

/// How often each limit was met, and the last times, as a table.
pub(super) fn violations(value: &Value) -> String {
    let last = value["last"].as_array();
    let mut out = format!("{:<12} {:>8}  LAST", "LIMIT", "COUNT");
    for (kind, count) in value["counts"].as_object().into_iter().flatten() {
        let of_kind = |v: &&Value| v["kind"].as_str() == Some(kind.as_str());
        let seen = last.and_then(|last| last.iter().rev().find(of_kind));
        let seen = seen
            .map_or_else(|| "-".into(), |v| format!("{} s ago", v["age_ms"].as_u64().unwrap_or(0) / 1000));
        out.push_str(&format!("\n{:<12} {count:>8}  {seen}", printable(kind, 64)));
    }
    let line = |v: &Value| {
        let critical = if v["critical"] == true { "critical" } else { "" };
        let age = v["age_ms"].as_u64().unwrap_or(0) / 1000;
        format!("{age:>8} s ago  {:<10} {critical:<8} {}", text(&v["kind"]), text(&v["detail"]))
    };
    format!("{out}\n\n{}", lines(last, line, "(none)"))
}
