//! Looks at every plugin of the node from outside, now and then: one task for all, one wake-up per sample. What it sees is
//! judged by a pure function. Where the kernel holds a limit by itself the judgement only reports; where nothing else holds
//! the share of processor time, it is what ends a plugin that takes too much.

use super::cgroup::{Cgroups, Enforcement, Leaf};
use super::denials::DenialBook;
use super::handle::Command;
use super::lifecycle::{Cause, LimitKind};
use super::link::Counters;
use super::logs::LogBook;
use super::supervisor::{Change, Observer};
use super::usage::{self, Runner, Sample};
use crate::config::{Budget, OnViolation};
use serde_json::{json, Value};
use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};
use thenodes_ipc::launch::ProcessLimits;
use thenodes_ipc::{Generation, PluginName};
use tokio::sync::mpsc;

/// Violations kept per plugin, for people.
const KEPT: usize = 32;
/// Most samples of one plugin that are kept: a window of a minute at a sample a second, or a hundred violations.
const MAX_SAMPLES: usize = 128;

/// What a plugin is judged by.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Limits that the kernel was told.
    pub process: ProcessLimits,
    /// Limits from outside.
    pub budget: Budget,
}

/// A limit that a plugin was found at or beyond, between two samples.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Which limit.
    pub kind: LimitKind,
    /// When it was seen.
    pub at: Instant,
    /// What the kernel was to hold and did not: one is enough.
    pub critical: bool,
    /// For people.
    pub detail: String,
}

/// What the samples of the window show, oldest first. Rates are judged between two samples, states at one.
pub fn judge(samples: &[Sample], limits: &Limits, now: Instant) -> Vec<Violation> {
    let window = limits.budget.window();
    let mut found = Vec::new();
    let mut before: Option<&Sample> = None;
    for sample in samples.iter().filter(|sample| now.saturating_duration_since(sample.at) <= window) {
        let mut add =
            |kind, critical, detail| found.push(Violation { kind, at: sample.at, critical, detail });
        let process = &limits.process;
        if sample.memory >= process.memory / 10 * 9 {
            let detail = format!("memory {} of {} MiB", sample.memory >> 20, process.memory >> 20);
            add(LimitKind::Memory, sample.memory > process.data(), detail);
        }
        // One more than the plugin's own: the runner's first thread.
        let threads = process.threads.saturating_add(1);
        if sample.threads >= threads || before.is_some_and(|before| sample.refused > before.refused) {
            let detail = format!("threads {} of {threads}", sample.threads);
            add(LimitKind::Threads, sample.threads > process.tasks(), detail);
        }
        if let Some(fds) = sample.fds.filter(|fds| *fds >= process.descriptors) {
            let detail = format!("fds {fds} of {}", process.descriptors);
            add(LimitKind::Fds, fds > process.descriptors, detail);
        }
        if let Some(disk) = sample.disk.filter(|disk| *disk > limits.budget.disk) {
            let detail = match disk {
                u64::MAX => "more files than are counted where it may write".to_owned(),
                disk => {
                    format!("{} MiB of files where it may write, of {}", disk >> 20, limits.budget.disk >> 20)
                }
            };
            add(LimitKind::Disk, true, detail);
        }
        if let Some(before) = before {
            let took = sample.at.saturating_duration_since(before.at).as_millis().max(1);
            let share = sample.cpu.saturating_sub(before.cpu).as_millis() * 100 / took;
            let allowed = u128::from(limits.budget.cpu_percent);
            let throttled = sample.throttled.saturating_sub(before.throttled);
            // A tenth and two ticks of the kernel's clock are noise. A plugin that the kernel holds back gets no further than its
            // share: then being near it counts. A short burst that was held back is none.
            let beyond = share > allowed + allowed / 10 + 2;
            if beyond || (throttled > 0 && share >= allowed / 5 * 4) {
                let detail = format!("cpu {share} % of {allowed} %, held back in {throttled} periods");
                add(LimitKind::Cpu, false, detail);
            }
            let lines = sample.lines_dropped.saturating_sub(before.lines_dropped);
            if lines > 0 {
                let most = limits.budget.log_lines_per_s;
                add(LimitKind::LogRate, false, format!("{lines} log lines beyond {most} a second"));
            }
            let excess = sample.link_excess.saturating_sub(before.link_excess);
            if excess > 0 {
                let budget = &limits.budget;
                let (messages, mb) = (budget.link_messages_per_s, budget.link_bytes_per_s >> 20);
                let detail = format!(
                    "held back {excess} times at the link's rate ({messages} messages, {mb} MiB a second)"
                );
                add(LimitKind::LinkRate, false, detail);
            }
        }
        before = Some(sample);
    }
    found
}

/// The kind that calls for action: a critical violation, or one kind as often as the threshold says.
pub fn verdict(violations: &[Violation], threshold: u64) -> Option<&Violation> {
    let often =
        |v: &&Violation| violations.iter().filter(|other| other.kind == v.kind).count() as u64 >= threshold;
    violations.iter().rev().find(|v| v.critical).or_else(|| violations.iter().rev().find(often))
}

/// What is known of one plugin over all its processes: for status, and for `plugin violations`.
#[derive(Debug, Default)]
pub struct Record(Mutex<Book>);

#[derive(Debug, Default)]
struct Book {
    usage: Option<Sample>,
    enforcement: Enforcement,
    problems: Vec<String>,
    counts: [u64; LimitKind::ALL.len()],
    last: VecDeque<Violation>,
    /// Samples before the last reset do not count.
    since: Option<Instant>,
}

impl Record {
    fn book(&self) -> MutexGuard<'_, Book> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The last sample of the process that lives.
    pub fn usage(&self) -> Option<Sample> {
        self.book().usage.clone()
    }

    /// Which limits control groups hold for the process that lives, and what they could not do.
    pub fn enforcement(&self) -> (Enforcement, Vec<String>) {
        let book = self.book();
        (book.enforcement, book.problems.clone())
    }

    /// Counts per kind and the last violations, as JSON.
    pub fn violations(&self) -> Value {
        let book = self.book();
        let counts: serde_json::Map<String, Value> = LimitKind::ALL
            .iter()
            .map(|kind| (kind.word().to_owned(), json!(book.counts[*kind as usize])))
            .collect();
        let last: Vec<Value> = book
            .last
            .iter()
            .map(|v| json!({ "kind": v.kind.word(), "age_ms": v.at.elapsed().as_millis() as u64, "critical": v.critical, "detail": v.detail }))
            .collect();
        json!({ "counts": counts, "last": last })
    }

    /// Forgets all violations.
    pub fn reset(&self) {
        let mut book = self.book();
        book.counts = Default::default();
        book.last.clear();
        book.since = Some(Instant::now());
    }

    fn note(&self, violations: &[Violation]) {
        let mut book = self.book();
        for violation in violations {
            book.counts[violation.kind as usize] += 1;
            if book.last.len() >= KEPT {
                book.last.pop_front();
            }
            book.last.push_back(violation.clone());
        }
    }
}

/// What is watched of one process.
pub struct Subject {
    /// The plugin.
    pub plugin: PluginName,
    /// Which process of it.
    pub generation: Generation,
    /// Pid of its warden, which the supervisor has not reaped.
    pub warden: u32,
    /// Where it may write on the host.
    pub places: Vec<PathBuf>,
    /// What it is judged by.
    pub limits: Limits,
    /// Its group; shared, because both sides read it.
    pub leaf: Arc<Leaf>,
    /// Where findings go.
    pub record: Arc<Record>,
    /// Where a limit that the kernel holds by itself is told as a refusal.
    pub denials: Arc<DenialBook>,
    /// Its log.
    pub logs: Arc<LogBook>,
    /// Its counters.
    pub counters: Arc<Counters>,
    /// Who hears about warnings.
    pub observer: Arc<dyn Observer>,
    /// Its supervisor; weak, because a watched plugin must still end when nobody holds it.
    pub commands: mpsc::WeakSender<Command>,
}

struct Watched {
    id: u64,
    subject: Subject,
    runner: Option<Runner>,
    samples: VecDeque<Sample>,
    acted: Option<Instant>,
    /// True while it has as many descriptors as it may: told once, until there is room again.
    full: bool,
}

#[derive(Default)]
struct Room {
    next: u64,
    watched: Vec<Watched>,
}

/// The one task, and what it needs. Cheap to clone; it ends with the last clone.
#[derive(Clone)]
pub struct Watchdog {
    cgroups: Arc<Cgroups>,
    room: Arc<Mutex<Room>>,
}

impl std::fmt::Debug for Watchdog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watchdog").field("cgroups", &self.cgroups).finish_non_exhaustive()
    }
}

/// Ends the watching of one process when dropped.
pub struct Ticket {
    room: Arc<Mutex<Room>>,
    id: u64,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        lock(&self.room).watched.retain(|watched| watched.id != self.id);
    }
}

impl Watchdog {
    /// Finds out what control groups can do here, and starts the task.
    pub fn start(sample: Duration) -> Watchdog {
        let watchdog = Watchdog { cgroups: Cgroups::here(), room: Arc::default() };
        let (room, cgroups) = (Arc::downgrade(&watchdog.room), watchdog.cgroups.clone());
        tokio::spawn(async move {
            let mut beat = tokio::time::interval(sample);
            // After a pause of the whole machine one look is enough.
            beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            loop {
                beat.tick().await;
                let Some(room) = Weak::upgrade(&room) else { return };
                if !lock(&room).watched.is_empty() {
                    // Some tens of small reads per plugin; files of the kernel are no place to wait on a worker.
                    let cgroups = cgroups.clone();
                    let looking = move || {
                        look(&room);
                        cgroups.sweep();
                    };
                    let _ = tokio::task::spawn_blocking(looking).await;
                }
            }
        });
        watchdog
    }

    /// Control groups of this process.
    pub fn cgroups(&self) -> &Arc<Cgroups> {
        &self.cgroups
    }

    /// Watches a process until the ticket is dropped.
    pub fn watch(&self, subject: Subject) -> Ticket {
        {
            let mut book = subject.record.book();
            book.usage = None;
            book.enforcement = subject.leaf.enforcement();
            book.problems = subject.leaf.problems().to_vec();
        }
        let mut room = lock(&self.room);
        let id = room.next;
        room.next += 1;
        room.watched.push(Watched {
            id,
            subject,
            runner: None,
            samples: VecDeque::new(),
            acted: None,
            full: false,
        });
        Ticket { room: self.room.clone(), id }
    }
}

fn lock(room: &Mutex<Room>) -> MutexGuard<'_, Room> {
    room.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Looks at all, and lets go of the room between two: a supervisor may be waiting to end the watching of its process.
fn look(room: &Mutex<Room>) {
    let ids: Vec<u64> = lock(room).watched.iter().map(|watched| watched.id).collect();
    for id in ids {
        let places =
            lock(room).watched.iter().find(|watched| watched.id == id).map(|w| w.subject.places.clone());
        let disk = usage::disk(&places.unwrap_or_default()); // without the lock: this may take a while
        if let Some(watched) = lock(room).watched.iter_mut().find(|watched| watched.id == id) {
            watched.look(disk);
        }
    }
}

impl Watched {
    fn look(&mut self, disk: Option<u64>) {
        let Subject { warden, leaf, record, denials, generation, logs, counters, limits, .. } = &self.subject;
        self.runner = self.runner.or_else(|| Runner::below(*warden));
        let Some(mut sample) = self.runner.and_then(Runner::measure) else { return };
        sample.disk = disk;
        sample.throttled = leaf.throttled();
        sample.refused = leaf.threads_refused();
        sample.lines_dropped = logs.dropped();
        sample.link_excess = counters.throttled.load(Ordering::Relaxed);
        let now = sample.at;
        let full = sample.fds.is_some_and(|fds| fds >= limits.process.descriptors);
        if full && !self.full {
            denials.note_full_table(*generation, &sample, &limits.process);
        }
        self.full = full;
        record.book().usage = Some(sample.clone());
        let since = record.book().since;
        self.samples.push_back(sample);
        let window = limits.budget.window();
        let old = |s: &Sample| {
            now.saturating_duration_since(s.at) > window || since.is_some_and(|since| s.at < since)
        };
        while self.samples.len() > MAX_SAMPLES || self.samples.front().is_some_and(old) {
            self.samples.pop_front();
        }
        let violations = judge(self.samples.make_contiguous(), limits, now);
        let fresh: Vec<Violation> = violations.iter().filter(|v| v.at == now).cloned().collect();
        record.note(&fresh);
        if let Some(violation) = verdict(&violations, limits.budget.violations) {
            self.act(violation, now);
        }
    }

    /// Does what the operator wants, at most once per window.
    fn act(&mut self, violation: &Violation, now: Instant) {
        let budget = &self.subject.limits.budget;
        if self.acted.is_some_and(|at| now.saturating_duration_since(at) < budget.window()) {
            return;
        }
        let detail = format!(
            "{}; seen {} times within {} s, or critical; [plugins.limits] on_violation = \"{}\"",
            violation.detail,
            budget.violations,
            budget.window().as_secs(),
            budget.on_violation.word()
        );
        let plugin = self.subject.plugin.clone();
        let (kind, generation) = (violation.kind, self.subject.generation);
        // What fills the operator's disk is ended whatever happens for other kinds: a warning would not stop it.
        let action = match (budget.on_violation, kind) {
            (OnViolation::Warn, LimitKind::Disk) => OnViolation::Restart,
            (action, _) => action,
        };
        match action {
            OnViolation::Warn => {
                let detail = format!("limit={} {detail}", kind.word());
                self.subject.observer.changed(Change { plugin, action: "violation", detail, bad: true });
            }
            action @ (OnViolation::Restart | OnViolation::Disable) => {
                let cause = Cause::Limit { kind, detail, give_up: action == OnViolation::Disable };
                // A full queue of orders means that somebody else is ending it; the next sample tries again.
                let sent = self
                    .subject
                    .commands
                    .upgrade()
                    .map(|c| c.try_send(Command::Exceeded(generation, cause)).is_ok());
                if sent != Some(true) {
                    return;
                }
            }
        }
        self.acted = Some(now);
    }
}

/// Which mechanism holds each limit, in words, for status and `doctor`. `rlimits`: the runner measured that wall as standing.
pub fn describe(enforcement: Enforcement, rlimits: bool, limits: &Limits) -> Value {
    let with = |version: Option<super::cgroup::Version>, other: &str| match (version, rlimits) {
        (Some(version), true) => format!("{version} + {other}"),
        (Some(version), false) => version.to_string(),
        (None, true) => other.to_owned(),
        (None, false) => format!("{other}, as far as that wall stands"),
    };
    let action = match limits.budget.on_violation {
        OnViolation::Warn => "warns",
        OnViolation::Restart => "restarts it",
        OnViolation::Disable => "disables it",
    };
    json!({
        "memory": with(enforcement.memory, "rlimit"),
        "threads": with(enforcement.threads, "rlimit"),
        "cpu": enforcement.cpu.map_or_else(|| format!("watchdog ({action})"), |version| version.to_string()),
        "cpu_seconds": limits.process.cpu_seconds.map_or("not limited", |_| "rlimit"),
        "fds": with(None, "rlimit"),
        "file": with(None, "rlimit"),
        "log_rate": "node",
        "link_rate": "node",
        "kill": if enforcement.kill { "cgroup v2 + pid namespace" } else { "pid namespace" },
    })
}

#[cfg(test)]
mod tests;
