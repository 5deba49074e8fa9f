//! What is counted of every plugin, and the page of it that Prometheus reads. Counting is a few relaxed additions: no lock and no
//! allocation stands between an answer and whoever waits for it. Labels are words of our own and checked names; what a plugin
//! chooses (names of its requests, codes of its errors, causes of its death in words) never becomes one.

use super::lifecycle::{Cause, LimitKind};
use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use thenodes_ipc::Code;

/// Upper ends of the buckets of a latency, nanoseconds: 10 us to 30 s; one more bucket has all that is longer.
pub const BOUNDS_NS: [u64; 20] = [
    10_000,
    25_000,
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    25_000_000,
    50_000_000,
    100_000_000,
    250_000_000,
    500_000_000,
    1_000_000_000,
    2_500_000_000,
    5_000_000_000,
    10_000_000_000,
    30_000_000_000,
];
/// Buckets, with the one for all that is longer.
pub const BUCKETS: usize = BOUNDS_NS.len() + 1;

/// The methods that are told apart; every request is one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// `on_load`.
    Load,
    /// A message of a peer.
    Message,
    /// A prompt line.
    Prompt,
    /// `on_request`, by whatever name.
    Request,
    /// A health probe.
    Health,
    /// `on_stop`.
    Stop,
    /// All others: signs of life.
    Other,
}

impl Method {
    /// All of them, in the order of their declaration.
    pub const ALL: [Method; 7] = [
        Method::Load,
        Method::Message,
        Method::Prompt,
        Method::Request,
        Method::Health,
        Method::Stop,
        Method::Other,
    ];

    /// Which one this method of the link is.
    pub fn of(method: &str) -> Method {
        match method {
            "message" => Method::Message,
            "prompt" => Method::Prompt,
            "load" => Method::Load,
            "health" => Method::Health,
            "stop" => Method::Stop,
            method if method.starts_with("request.") => Method::Request,
            _ => Method::Other,
        }
    }

    /// The label.
    pub fn word(self) -> &'static str {
        match self {
            Method::Load => "load",
            Method::Message => "message",
            Method::Prompt => "prompt",
            Method::Request => "request",
            Method::Health => "health",
            Method::Stop => "stop",
            Method::Other => "other",
        }
    }

    /// True for what others want of the plugin, and not its supervisor.
    fn is_work(self) -> bool {
        matches!(self, Method::Message | Method::Prompt | Method::Request)
    }
}

/// Codes that are told apart; the last one is for those that a plugin makes up.
const CODES: [&str; 17] = [
    "INVALID_INPUT",
    "PERMISSION_DENIED",
    "NOT_FOUND",
    "CONFLICT",
    "UNHANDLED",
    "UNAVAILABLE",
    "TIMEOUT",
    "CANCELLED",
    "RESOURCE_EXHAUSTED",
    "NOT_IMPLEMENTED",
    "NETWORK_ERROR",
    "CONFIG_ERROR",
    "INCOMPATIBLE",
    "PLUGIN_CRASHED",
    "SANDBOX_FAILED",
    "INTERNAL_ERROR",
    "OTHER",
];

#[derive(Debug, Default)]
struct OfMethod {
    buckets: [AtomicU64; BUCKETS],
    sum_ns: AtomicU64,
    /// Calls that ended without an answer.
    unanswered: AtomicU64,
    errors: [AtomicU64; CODES.len()],
}

impl OfMethod {
    fn error(&self, code: &Code) {
        let word = code.as_str();
        let slot = CODES.iter().position(|known| *known == word).unwrap_or(CODES.len() - 1);
        add(&self.errors[slot], 1);
    }
}

fn add(counter: &AtomicU64, count: u64) {
    counter.fetch_add(count, Ordering::Relaxed);
}

fn read(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

/// Calls to one plugin since the node began.
#[derive(Debug, Default)]
pub struct Calls([OfMethod; Method::ALL.len()]);

impl Calls {
    /// A call was answered, after so long; `failed`: by an error.
    pub fn answered(&self, method: Method, took: Duration, failed: Option<&Code>) {
        let of = &self.0[method as usize];
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        add(&of.buckets[BOUNDS_NS.partition_point(|bound| *bound < nanos)], 1);
        add(&of.sum_ns, nanos);
        if let Some(code) = failed {
            of.error(code);
        }
    }

    /// A call ended without an answer: late, taken back, with the process, or before the plugin got it.
    pub fn unanswered(&self, method: Method, code: &Code) {
        let of = &self.0[method as usize];
        add(&of.unanswered, 1);
        of.error(code);
    }

    /// What was counted, method by method.
    pub fn figures(&self) -> Vec<MethodFigures> {
        let of = |method: Method| {
            let of = &self.0[method as usize];
            MethodFigures {
                method,
                buckets: std::array::from_fn(|at| read(&of.buckets[at])),
                sum: Duration::from_nanos(read(&of.sum_ns)),
                unanswered: read(&of.unanswered),
                errors: std::array::from_fn(|at| read(&of.errors[at])),
            }
        };
        Method::ALL.map(of).to_vec()
    }
}

/// Causes of deaths beside those of [`LimitKind`].
const CAUSES: [&str; 14] = [
    "denied_syscall",
    "signal",
    "exit",
    "protocol_violation",
    "hang",
    "wedged",
    "health",
    "start_deadline",
    "refused",
    "sandbox_level",
    "on_load",
    "permissions",
    "spawn",
    "asked",
];

/// Deaths of one plugin by cause, since the node began.
#[derive(Debug, Default)]
pub struct Deaths {
    causes: [AtomicU64; CAUSES.len()],
    limits: [AtomicU64; LimitKind::ALL.len()],
}

impl Deaths {
    /// A process of it died.
    pub fn count(&self, cause: &Cause) {
        if let Cause::Limit { kind, .. } = cause {
            add(&self.limits[*kind as usize], 1);
        } else if let Some(slot) = CAUSES.iter().position(|word| *word == cause.word()) {
            add(&self.causes[slot], 1);
        }
    }

    /// Causes that were counted.
    pub fn figures(&self) -> Vec<(&'static str, u64)> {
        let limits = LimitKind::ALL.iter().map(|kind| kind.word()).zip(&self.limits);
        let all = CAUSES.into_iter().zip(&self.causes).chain(limits);
        all.map(|(word, count)| (word, read(count))).filter(|(_, count)| *count > 0).collect()
    }
}

/// Calls of one method as they were counted at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MethodFigures {
    /// Which.
    pub method: Method,
    /// Answers by how long they took, each bucket by itself.
    pub buckets: [u64; BUCKETS],
    /// Time of all answers together.
    pub sum: Duration,
    /// Calls without an answer.
    pub unanswered: u64,
    errors: [u64; CODES.len()],
}

impl MethodFigures {
    /// Calls that have ended.
    pub fn calls(&self) -> u64 {
        self.buckets.iter().sum::<u64>() + self.unanswered
    }

    fn is_empty(&self) -> bool {
        self.calls() == 0
    }
}

/// The calls that others made, and their buckets together.
pub fn work(methods: &[MethodFigures]) -> (u64, [u64; BUCKETS]) {
    let (mut calls, mut buckets) = (0, [0; BUCKETS]);
    for of in methods.iter().filter(|of| of.method.is_work()) {
        calls += of.calls();
        for (sum, count) in buckets.iter_mut().zip(of.buckets) {
            *sum += count;
        }
    }
    (calls, buckets)
}

/// The time within which this part of the answers came, as far as buckets tell; `None` without answers.
pub fn quantile(buckets: &[u64], part: f64) -> Option<Duration> {
    let total: u64 = buckets.iter().sum();
    let wanted = total as f64 * part;
    let mut below = 0;
    for (at, count) in buckets.iter().enumerate().filter(|(_, count)| **count > 0) {
        if (below + count) as f64 >= wanted {
            let from = at.checked_sub(1).and_then(|before| BOUNDS_NS.get(before)).copied().unwrap_or(0);
            // Beyond the last bound nothing more is known.
            let to = BOUNDS_NS.get(at).copied().unwrap_or(from);
            let within = ((wanted - below as f64) / *count as f64).clamp(0.0, 1.0);
            return Some(Duration::from_nanos(from + ((to - from) as f64 * within) as u64));
        }
        below += count;
    }
    None
}

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

#[cfg(test)]
mod tests;
