//! What is counted of every plugin, and the page of it that Prometheus reads. Counting is a few relaxed additions: no lock and no
//! allocation stands between an answer and whoever waits for it. Labels are words of our own and checked names; what a plugin
//! chooses (names of its requests, codes of its errors, causes of its death in words) never becomes one.

mod page;

pub use page::{render, Figures, NodeFigures};

use super::lifecycle::{Cause, LimitKind};
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
            "message" | "messages" => Method::Message,
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
    fn errors(&self, code: &Code, count: u64) {
        let word = code.as_str();
        let slot = CODES.iter().position(|known| *known == word).unwrap_or(CODES.len() - 1);
        add(&self.errors[slot], count);
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
    /// A call was answered, after so long; `failed`: by an error. One answer may be that to so many messages, each of which took so
    /// long, and of which only the last may have failed.
    pub fn answered(&self, method: Method, took: Duration, failed: Option<&Code>, count: u64) {
        let of = &self.0[method as usize];
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        add(&of.buckets[BOUNDS_NS.partition_point(|bound| *bound < nanos)], count);
        add(&of.sum_ns, nanos.saturating_mul(count));
        if let Some(code) = failed {
            of.errors(code, 1);
        }
    }

    /// A call ended without an answer: late, taken back, with the process, or before the plugin got it.
    pub fn unanswered(&self, method: Method, code: &Code) {
        self.unanswered_times(method, code, 1);
    }

    /// The same for so many messages in one call.
    pub fn unanswered_times(&self, method: Method, code: &Code, count: u64) {
        let of = &self.0[method as usize];
        add(&of.unanswered, count);
        of.errors(code, count);
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

#[cfg(test)]
mod tests;
