//! What a run of the suite says: a table for people, one JSON object for machines, and whether anything got through.

use super::{Attempt, Phase, Verdict};
use hostile::probes::Probe;
use serde_json::{json, Value};
use std::collections::BTreeMap;

/// Probes that are refused nothing, because there is nothing to refuse: they look for what a careless host leaves behind, and it is
/// not there. Beside each: why, and what each attempt must have been told for that to be true. Any other answer without a record is
/// a failure, and so is a name here whose attempts have a record. Whatever is refused leaves one.
const NO_REFUSAL: [(&str, &str, &str); 7] = [
    (
        "affinity-read-other",
        "no process of the host has a number in the plugin's pid namespace",
        "No such process (os error 3)",
    ),
    (
        "descriptors",
        "it reads the numbers above its own, and none was passed on to it",
        "no inherited descriptor",
    ),
    ("environment", "it reads its own memory, where the kernel put no variable", "the environment is empty"),
    ("environment-stack", "the same, where the kernel put the list", "no variable is there"),
    (
        "arguments",
        "it reads its own memory, where there is the runner's name and nothing else",
        r#"none in ["thenodes-runner"]"#,
    ),
    ("program-path", "it reads its own memory, where the path was wiped", r#"it says """#),
    ("working-directory", "it may ask, and the answer is the root", "it is the root"),
];

/// Why this attempt was refused nothing, if that is as it must be.
fn no_refusal(attempt: &Attempt) -> Option<&'static str> {
    let Verdict::Refused(told) = &attempt.verdict else { return None };
    let known = |(probe, _, answer): &&(&str, &str, &str)| *probe == attempt.probe && told.ends_with(answer);
    NO_REFUSAL.iter().find(known).filter(|_| attempt.record.is_none()).map(|(_, why, _)| *why)
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
            self.wrongly_excused().map(|probe| format!("{probe}: leaves a record; take it off NO_REFUSAL")),
        );
        failures.extend(self.disturbances.iter().map(|what| format!("something came of an attempt: {what}")));
        failures
    }

    /// Refused attempts that left no record, by probe.
    pub fn without_record(&self) -> Vec<String> {
        self.attempts()
            .filter(|attempt| attempt.verdict.held() && attempt.record.is_none())
            .filter(|attempt| no_refusal(attempt).is_none())
            .map(|attempt| format!("{} in {}: {}", attempt.probe, attempt.phase.word(), attempt.verdict))
            .collect()
    }

    /// Names on the list of those that are refused nothing that do not belong there: whoever is named has none in any attempt.
    fn wrongly_excused(&self) -> impl Iterator<Item = &str> {
        let named = |row: &&Row| NO_REFUSAL.iter().any(|(probe, ..)| *probe == row.probe.name);
        let recorded = |row: &&Row| row.attempts.iter().any(|attempt| attempt.record.is_some());
        let all = |row: &&Row| row.attempts.iter().all(|attempt| attempt.record.is_some());
        self.rows.iter().filter(named).filter(recorded).filter(all).map(|row| row.probe.name)
    }

    /// How many attempts were refused nothing, because there was nothing.
    fn found_nothing(&self) -> usize {
        self.attempts().filter(|attempt| no_refusal(attempt).is_some()).count()
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
            "no_refusal": self.found_nothing(),
            "without_record": self.without_record().len(),
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
                        let value = json!({ "verdict": attempt.verdict.word(), "detail": text, "record": attempt.record, "no_refusal": no_refusal(attempt) });
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
        println!("{} attempts were refused nothing, because there was nothing:", self.found_nothing());
        for row in &self.rows {
            let why = row.attempts.iter().filter_map(no_refusal);
            if let Some((why, count)) = why.clone().next().map(|first| (first, why.count())) {
                println!("  {:<24} {count}  {why}", row.probe.name);
            }
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
    fn the_list_of_those_that_are_refused_nothing_is_closed_and_each_of_them_says_why() {
        let names = NO_REFUSAL.map(|(name, ..)| name);
        let closed = [
            "affinity-read-other",
            "descriptors",
            "environment",
            "environment-stack",
            "arguments",
            "program-path",
            "working-directory",
        ];
        assert_eq!(names, closed, "what is refused must leave a record; a name here is a decision");
        for (name, why, answer) in NO_REFUSAL {
            assert!(hostile::probes::find(name).is_some(), "{name} is no probe");
            assert!(why.len() > 10 && !answer.is_empty(), "{name}");
            // The kernel's word for a limit or for want of a right is a refusal.
            assert!(
                !["os error 1)", "os error 11)", "os error 12)", "os error 13)", "os error 24)"]
                    .iter()
                    .any(|refusal| answer.contains(refusal)),
                "{name}: {answer}"
            );
        }
    }

    #[test]
    fn only_a_named_probe_with_the_answer_that_it_must_get_needs_no_record() {
        let good = report("environment", "environment variables: the environment is empty", None);
        assert_eq!(good.failures(), Vec::<String>::new());
        assert_eq!(
            (&good.summary()["no_refusal"], &good.summary()["without_record"]),
            (&json!(4), &json!(0))
        );
        let limit = report("address-space", "x: Cannot allocate memory (os error 12)", None);
        assert_eq!(limit.summary()["without_record"], json!(4), "a limit's refusal is one");
        // Another answer, another probe with that answer, and an attempt that has a record.
        assert_eq!(report("environment", "x: Operation not permitted", None).failures().len(), 4);
        assert_eq!(report("open", "open: the environment is empty", None).failures().len(), 4);
        let stale =
            report("environment", "environment variables: the environment is empty", Some("a record"));
        assert_eq!(stale.failures(), ["environment: leaves a record; take it off NO_REFUSAL"]);
        assert_eq!(stale.summary()["no_refusal"], json!(0));
    }
}
