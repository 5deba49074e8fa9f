//! The page that Prometheus reads, from figures to text. Names of plugins are checked before they come here, and quoted all the same.

use super::{MethodFigures, BOUNDS_NS, CODES};
use std::fmt::Write as _;
use std::time::Duration;

/// Everything that is shown of one plugin.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Figures {
    /// Its name.
    pub plugin: String,
    /// Its state.
    pub state: &'static str,
    /// Starts after the first.
    pub restarts: u64,
    /// Deaths by cause.
    pub deaths: Vec<(&'static str, u64)>,
    /// Calls to it.
    pub methods: Vec<MethodFigures>,
    /// Calls in which it panicked.
    pub panics: u64,
    /// What it asked of the node.
    pub requests: u64,
    /// Requests refused for want of a grant.
    pub denied: u64,
    /// System calls that its walls refused.
    pub refused: u64,
    /// Messages that wait, and their bytes.
    pub queue: (u64, u64),
    /// Messages dropped because too many waited.
    pub dropped: u64,
    /// Messages lost with a process.
    pub lost: u64,
    /// How often its link was held back.
    pub throttled: u64,
    /// Log lines dropped.
    pub lines_dropped: u64,
    /// Memory and processor time of its process, if it has one.
    pub usage: Option<(u64, Duration)>,
}

/// What is shown of the node itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeFigures {
    /// Connected peers.
    pub peers: u64,
    /// Files in the plugin directory that are no plugins.
    pub rejected: u64,
}

/// States in the order of a life.
const STATES: [&str; 10] = [
    "Untrusted",
    "Available",
    "Loading",
    "Initializing",
    "Ready",
    "Degraded",
    "Stopping",
    "Stopped",
    "Backoff",
    "Failed",
];

/// A text in quotes as the format wants it.
fn quoted(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

struct Page(String);

impl Page {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP thenodes_{name} {help}\n# TYPE thenodes_{name} {kind}");
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl std::fmt::Display) {
        let labels: Vec<String> =
            labels.iter().map(|(label, text)| format!("{label}=\"{}\"", quoted(text))).collect();
        let braces = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
        let _ = writeln!(self.0, "thenodes_{name}{braces} {value}");
    }

    /// One number of each plugin.
    fn numbers(
        &mut self,
        name: &str,
        kind: &str,
        help: &str,
        plugins: &[Figures],
        number: impl Fn(&Figures) -> Option<f64>,
    ) {
        self.family(name, kind, help);
        for of in plugins {
            if let Some(number) = number(of) {
                self.sample(name, &[("plugin", &of.plugin)], number);
            }
        }
    }
}

/// The page. A method, code or cause appears with its first time.
pub fn render(node: Option<&NodeFigures>, plugins: &[Figures]) -> String {
    let mut page = Page(String::new());
    if let Some(node) = node {
        page.family("info", "gauge", "The version of the node.");
        page.sample("info", &[("version", env!("CARGO_PKG_VERSION"))], 1);
        page.family("peers", "gauge", "Connected peers.");
        page.sample("peers", &[], node.peers);
        page.family("plugins_rejected", "gauge", "Files in the plugin directory that were not taken.");
        page.sample("plugins_rejected", &[], node.rejected);
    }
    page.family("plugin_state", "gauge", "1 for the state that the plugin is in.");
    for of in plugins {
        for state in STATES {
            page.sample(
                "plugin_state",
                &[("plugin", &of.plugin), ("state", state)],
                u8::from(state == of.state),
            );
        }
    }
    let count = |number: u64| Some(number as f64);
    page.numbers("plugin_restarts_total", "counter", "Starts after the first.", plugins, |of| {
        count(of.restarts)
    });
    page.family(
        "plugin_deaths_total",
        "counter",
        "Processes that ended without having been asked to, by cause.",
    );
    for of in plugins {
        for (cause, count) in &of.deaths {
            page.sample("plugin_deaths_total", &[("plugin", &of.plugin), ("cause", cause)], count);
        }
    }
    calls(&mut page, plugins);
    page.numbers("plugin_panics_total", "counter", "Calls in which the plugin panicked.", plugins, |of| {
        count(of.panics)
    });
    page.numbers("plugin_requests_total", "counter", "Requests of the plugin to the node.", plugins, |of| {
        count(of.requests)
    });
    page.family(
        "plugin_denials_total",
        "counter",
        "What was refused: by grants of the node, or by walls of the sandbox.",
    );
    for of in plugins {
        for (by, count) in [("grants", of.denied), ("sandbox", of.refused)] {
            page.sample("plugin_denials_total", &[("plugin", &of.plugin), ("by", by)], count);
        }
    }
    page.numbers("plugin_queue_length", "gauge", "Messages that wait for the plugin.", plugins, |of| {
        count(of.queue.0)
    });
    page.numbers(
        "plugin_queue_bytes",
        "gauge",
        "Bytes of messages that wait for the plugin.",
        plugins,
        |of| count(of.queue.1),
    );
    let help = "Messages dropped because too many waited.";
    page.numbers("plugin_queue_dropped_total", "counter", help, plugins, |of| count(of.dropped));
    let help = "Messages that were with the plugin when its process ended.";
    page.numbers("plugin_messages_lost_total", "counter", help, plugins, |of| count(of.lost));
    let help = "How often the plugin's link was held back at its rate.";
    page.numbers("plugin_link_throttled_total", "counter", help, plugins, |of| count(of.throttled));
    let help = "Log lines dropped because they were too many a second.";
    page.numbers("plugin_log_lines_dropped_total", "counter", help, plugins, |of| count(of.lines_dropped));
    let help = "Memory of the plugin's process, without what it shares with files.";
    page.numbers("plugin_memory_bytes", "gauge", help, plugins, |of| {
        of.usage.map(|(memory, _)| memory as f64)
    });
    let help = "Processor time of the plugin's process; begins anew with each process.";
    page.numbers("plugin_cpu_seconds_total", "counter", help, plugins, |of| {
        of.usage.map(|(_, cpu)| cpu.as_secs_f64())
    });
    page.0
}

fn calls(page: &mut Page, plugins: &[Figures]) {
    let each = || {
        plugins.iter().flat_map(|of| {
            let called = of.methods.iter().filter(|method| !method.is_empty());
            called.map(|method| (of.plugin.as_str(), method.method.word(), method))
        })
    };
    page.family("plugin_calls_total", "counter", "Calls to the plugin that have ended.");
    for (plugin, method, of) in each() {
        page.sample("plugin_calls_total", &[("plugin", plugin), ("method", method)], of.calls());
    }
    page.family(
        "plugin_call_errors_total",
        "counter",
        "Calls to the plugin that ended with an error, by code.",
    );
    for (plugin, method, of) in each() {
        for (code, count) in CODES.iter().zip(of.errors).filter(|(_, count)| *count > 0) {
            let labels = [("plugin", plugin), ("method", method), ("code", code)];
            page.sample("plugin_call_errors_total", &labels, count);
        }
    }
    page.family("plugin_call_seconds", "histogram", "From the call to its answer.");
    for (plugin, method, of) in each() {
        let own = [("plugin", plugin), ("method", method)];
        let mut sum = 0;
        for (at, count) in of.buckets.iter().enumerate() {
            sum += count;
            let bound = BOUNDS_NS.get(at).map_or_else(|| "+Inf".into(), |ns| (*ns as f64 / 1e9).to_string());
            page.sample("plugin_call_seconds_bucket", &[own[0], own[1], ("le", &bound)], sum);
        }
        page.sample("plugin_call_seconds_sum", &own, of.sum.as_secs_f64());
        page.sample("plugin_call_seconds_count", &own, sum);
    }
}
