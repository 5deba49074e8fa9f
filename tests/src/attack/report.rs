//! What a run of the suite says: a table for people, one JSON object for machines, and whether anything got through.

use super::{Attempt, Phase, Verdict};
use hostile::probes::Probe;
use serde_json::{json, Value};
use std::collections::BTreeMap;

/// Why an attempt that did not get through has no record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoRecord {
    /// It made no call that anybody could refuse, or one that asks for what does not exist: it found nothing.
    NothingThere,
    /// A limit that the kernel holds by itself answered the call, and it tells nobody but the caller.
    KernelLimit,
}

impl NoRecord {
    /// For tables.
    pub fn words(self) -> &'static str {
        match self {
            NoRecord::NothingThere => "nothing there to refuse",
            NoRecord::KernelLimit => "refused by a limit of the kernel, which tells only the caller",
        }
    }
}

/// Probes whose attempts leave no record, why, and what each attempt must have been told for that to be true: any other
/// answer without a record is a failure, and so is a name here whose attempts have a record. Everything else must have one.
const NO_RECORD: [(&str, NoRecord, &str); 10] = [
    // There is no such process in the pid namespace.
    ("affinity-read-other", NoRecord::NothingThere, "No such process (os error 3)"),
    ("descriptors", NoRecord::NothingThere, "no inherited descriptor"),
    ("environment", NoRecord::NothingThere, "the environment is empty"),
    ("environment-stack", NoRecord::NothingThere, "no variable is there"),
    ("arguments", NoRecord::NothingThere, r#"none in ["thenodes-runner"]"#),
    // It was wiped.
    ("program-path", NoRecord::NothingThere, r#"it says """#),
    ("working-directory", NoRecord::NothingThere, "it is the root"),
    // RLIMIT_AS, RLIMIT_NOFILE, and the lowest address that may be mapped.
    ("address-space", NoRecord::KernelLimit, "Cannot allocate memory (os error 12)"),
    ("many-descriptors", NoRecord::KernelLimit, " at most"),
    ("zero-page", NoRecord::KernelLimit, "Operation not permitted (os error 1)"),
];

/// Why this attempt has no record, if that is as it must be.
fn no_record(attempt: &Attempt) -> Option<NoRecord> {
    let Verdict::Refused(told) = &attempt.verdict else { return None };
    let known =
        |(probe, _, answer): &&(&str, NoRecord, &str)| *probe == attempt.probe && told.ends_with(answer);
    NO_RECORD.iter().find(known).filter(|_| attempt.record.is_none()).map(|(_, why, _)| *why)
}

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
        failures.extend(
            self.wrongly_excused().map(|probe| format!("{probe}: leaves a record; take it off NO_RECORD")),
        );
        failures.extend(self.disturbances.iter().map(|what| format!("something came of an attempt: {what}")));
        failures
    }

    /// Refused attempts that left no record, by probe.
    pub fn without_record(&self) -> Vec<String> {
        self.attempts()
            .filter(|attempt| attempt.verdict.held() && attempt.record.is_none())
            .filter(|attempt| no_record(attempt).is_none())
            .map(|attempt| format!("{} in {}: {}", attempt.probe, attempt.phase.word(), attempt.verdict))
            .collect()
    }

    /// Names on the list of those without a record that do not belong there: whoever is named has none in any attempt.
    fn wrongly_excused(&self) -> impl Iterator<Item = &str> {
        let named = |row: &&Row| NO_RECORD.iter().any(|(probe, ..)| *probe == row.probe.name);
        let recorded = |row: &&Row| row.attempts.iter().any(|attempt| attempt.record.is_some());
        let all = |row: &&Row| row.attempts.iter().all(|attempt| attempt.record.is_some());
        self.rows.iter().filter(named).filter(recorded).filter(all).map(|row| row.probe.name)
    }

    /// How many attempts have no record for this reason.
    fn excused(&self, why: NoRecord) -> usize {
        self.attempts().filter(|attempt| no_record(attempt) == Some(why)).count()
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
            "nothing_there": self.excused(NoRecord::NothingThere),
            "kernel_limit": self.excused(NoRecord::KernelLimit),
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
                        let value = json!({ "verdict": attempt.verdict.word(), "detail": text, "record": attempt.record, "no_record": no_record(attempt).map(NoRecord::words) });
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
        for why in [NoRecord::NothingThere, NoRecord::KernelLimit] {
            let excused = |row: &&Row| row.attempts.iter().any(|attempt| no_record(attempt) == Some(why));
            let names: Vec<&str> = self.rows.iter().filter(excused).map(|row| row.probe.name).collect();
            println!("no record, {}: {} attempts of {}", why.words(), self.excused(why), names.join(", "));
        }
        println!("{}", self.summary());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(probe: &'static str, told: &str, record: Option<&str>) -> Report {
        let found: Vec<&'static Probe> = hostile::probes::find(probe).into_iter().collect();
        let attempt = |phase| Attempt {
            probe,
            phase,
            verdict: Verdict::Refused(told.into()),
            record: record.map(str::to_owned),
        };
        Report::new(&found, &BTreeMap::new(), Phase::ALL.map(attempt).into(), Vec::new())
    }

    #[test]
    fn every_name_without_a_record_is_a_probe_and_stands_once() {
        for (at, (name, ..)) in NO_RECORD.iter().enumerate() {
            assert!(hostile::probes::find(name).is_some(), "{name}");
            assert!(!NO_RECORD[..at].iter().any(|(other, ..)| other == name), "{name} stands twice");
        }
    }

    #[test]
    fn only_a_named_probe_with_the_answer_that_it_must_get_needs_no_record() {
        let good = report("environment", "environment variables: the environment is empty", None);
        assert_eq!(good.failures(), Vec::<String>::new());
        assert_eq!(
            (&good.summary()["nothing_there"], &good.summary()["kernel_limit"]),
            (&json!(4), &json!(0))
        );
        // Another answer, another probe with that answer, and an attempt that has a record.
        assert_eq!(report("environment", "x: Operation not permitted", None).failures().len(), 4);
        assert_eq!(report("open", "open: the environment is empty", None).failures().len(), 4);
        let stale =
            report("environment", "environment variables: the environment is empty", Some("a record"));
        assert_eq!(stale.failures(), ["environment: leaves a record; take it off NO_RECORD"]);
        assert_eq!(stale.summary()["nothing_there"], json!(0));
    }
}
