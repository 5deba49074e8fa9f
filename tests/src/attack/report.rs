//! What a run of the suite says: a table for people, one JSON object for machines, and whether anything got through.

use super::{Attempt, Phase, Verdict};
use hostile::probes::Probe;
use serde_json::{json, Value};
use std::collections::BTreeMap;

/// Attempts that leave no record, because no wall was asked: there is nothing there to take, or a limit of the kernel's own
/// answered. Everything else that is refused must have one.
pub const NO_RECORD: [(&str, &str); 10] = [
    ("affinity-read-other", "there is no such process in the pid namespace"),
    ("descriptors", "no descriptor was inherited"),
    ("environment", "there are no variables"),
    ("environment-stack", "there are no variables"),
    ("arguments", "there are no arguments"),
    ("program-path", "the path was wiped"),
    ("working-directory", "it is the empty root"),
    ("address-space", "RLIMIT_AS answers"),
    ("many-descriptors", "RLIMIT_NOFILE answers"),
    ("zero-page", "the kernel's lowest address answers"),
];

/// What the same probe did without walls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Control {
    /// It worked, as it must.
    Through,
    /// It failed: then its refusal in a runner proves nothing, and the probe is broken.
    Failed,
    /// It cannot work on this machine or for this user; the probe says why.
    None,
}

impl Control {
    /// The one of this word.
    pub fn parse(word: &str) -> Option<Control> {
        [Control::Through, Control::Failed, Control::None].into_iter().find(|control| control.word() == word)
    }

    /// One word for tables.
    pub fn word(self) -> &'static str {
        match self {
            Control::Through => "through",
            Control::Failed => "FAILED",
            Control::None => "-",
        }
    }
}

/// One probe with all its attempts.
pub struct Row {
    /// The probe.
    pub probe: &'static Probe,
    /// Without walls.
    pub control: Control,
    /// In a runner.
    pub attempts: Vec<Attempt>,
}

/// A whole run.
pub struct Report {
    /// By probe, in the order of the list.
    pub rows: Vec<Row>,
    /// What happened to the targets although every attempt was to fail.
    pub disturbances: Vec<String>,
}

impl Report {
    /// From attempts in any order.
    pub fn new(
        probes: &[&'static Probe],
        controls: &BTreeMap<String, Control>,
        attempts: Vec<Attempt>,
        disturbances: Vec<String>,
    ) -> Report {
        let mut by_probe: BTreeMap<&str, Vec<Attempt>> = BTreeMap::new();
        for attempt in attempts {
            by_probe.entry(attempt.probe).or_default().push(attempt);
        }
        let row = |probe: &&'static Probe| {
            let mut attempts = by_probe.remove(probe.name).unwrap_or_default();
            attempts.sort_by_key(|attempt| attempt.phase);
            Row { probe, control: controls.get(probe.name).copied().unwrap_or(Control::None), attempts }
        };
        Report { rows: probes.iter().map(row).collect(), disturbances }
    }

    fn attempts(&self) -> impl Iterator<Item = &Attempt> {
        self.rows.iter().flat_map(|row| &row.attempts)
    }

    /// Attempts that got through, or of which nothing is known, and broken probes: each is a reason to fail.
    pub fn failures(&self) -> Vec<String> {
        let mut failures: Vec<String> = self
            .attempts()
            .filter(|attempt| !attempt.verdict.held())
            .map(|attempt| format!("{} in {}: {}", attempt.probe, attempt.phase.word(), attempt.verdict))
            .collect();
        let broken = self.rows.iter().filter(|row| row.control == Control::Failed);
        failures.extend(broken.map(|row| format!("{}: does not work without walls either", row.probe.name)));
        failures.extend(self.without_record().into_iter().map(|what| format!("no record: {what}")));
        failures.extend(self.disturbances.iter().map(|what| format!("something came of an attempt: {what}")));
        failures
    }

    /// Refused attempts that left no record, by probe.
    pub fn without_record(&self) -> Vec<String> {
        self.attempts()
            .filter(|attempt| attempt.verdict.held() && attempt.record.is_none())
            .filter(|attempt| !NO_RECORD.iter().any(|(probe, _)| *probe == attempt.probe))
            .map(|attempt| format!("{} in {}: {}", attempt.probe, attempt.phase.word(), attempt.verdict))
            .collect()
    }

    /// Numbers of the run.
    pub fn summary(&self) -> Value {
        let count = |of: fn(&Verdict) -> bool| self.attempts().filter(|a| of(&a.verdict)).count();
        let controls = |of: Control| self.rows.iter().filter(|row| row.control == of).count();
        json!({
            "probes": self.rows.len(),
            "controls_through": controls(Control::Through),
            "controls_failed": controls(Control::Failed),
            "without_control": controls(Control::None),
            "attempts": self.attempts().count(),
            "killed": count(|v| matches!(v, Verdict::Killed)),
            "refused": count(|v| matches!(v, Verdict::Refused(_))),
            "ended": count(|v| matches!(v, Verdict::Ended(_))),
            "through": count(|v| matches!(v, Verdict::Through(_))),
            "silent": count(|v| matches!(v, Verdict::Silent(_))),
            "recorded": self.attempts().filter(|a| a.record.is_some()).count(),
            "disturbances": self.disturbances.len(),
        })
    }

    /// One object with everything.
    pub fn json(&self, user: &str) -> Value {
        let rows: Vec<Value> = self
            .rows
            .iter()
            .map(|row| {
                let phases: BTreeMap<&str, Value> = row
                    .attempts
                    .iter()
                    .map(|attempt| {
                        let text = attempt.verdict.to_string();
                        let value = json!({ "verdict": attempt.verdict.word(), "detail": text, "record": attempt.record });
                        (attempt.phase.word(), value)
                    })
                    .collect();
                json!({
                    "probe": row.probe.name,
                    "group": row.probe.group,
                    "what": row.probe.what,
                    "control": row.control.word(),
                    "phases": phases,
                })
            })
            .collect();
        json!({ "version": 1, "user": user, "summary": self.summary(), "failures": self.failures(), "without_record": self.without_record(), "probes": rows })
    }

    /// A line per probe.
    pub fn print(&self, phases: &[Phase]) {
        let words: Vec<&str> = phases.iter().map(|phase| phase.word()).collect();
        println!("{:<12} {:<26} {:<8} {}", "group", "probe", "control", words.join("  "));
        for row in &self.rows {
            let cells: Vec<String> = phases
                .iter()
                .map(|phase| {
                    let attempt = row.attempts.iter().find(|attempt| attempt.phase == *phase);
                    let word = attempt.map_or("", |attempt| attempt.verdict.word());
                    format!("{word:<width$}", width = phase.word().len())
                })
                .collect();
            println!(
                "{:<12} {:<26} {:<8} {}",
                row.probe.group,
                row.probe.name,
                row.control.word(),
                cells.join("  ")
            );
        }
        println!("{}", self.summary());
    }
}
