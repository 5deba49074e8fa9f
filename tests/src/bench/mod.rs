//! What the benchmark needs beside its subjects: rows, pinning, memory, and a gRPC peer to compare with.

pub mod grpc;

use serde_json::{json, Value};
use std::fs;

/// One line of the result: ratios of rounds against a baseline.
#[derive(Debug)]
pub struct Row {
    name: &'static str,
    unit: &'static str,
    baseline: &'static str,
    ratios: Vec<f64>,
    values: Vec<f64>,
}

impl Row {
    /// An empty row.
    pub fn new(name: &'static str, unit: &'static str, baseline: &'static str) -> Self {
        Self { name, unit, baseline, ratios: Vec::new(), values: Vec::new() }
    }

    /// Adds the ratio of one round.
    pub fn add(&mut self, ratio: f64) {
        self.ratios.push(ratio);
    }

    /// Adds an absolute value, for the few rows where one means something.
    pub fn value(&mut self, value: f64) {
        self.values.push(value);
    }

    /// The row as it is printed.
    pub fn json(mut self) -> Value {
        let rounded = |value: f64| (value * 10_000.0).round() / 10_000.0;
        let middle = |list: &mut Vec<f64>| {
            list.sort_by(f64::total_cmp);
            list.get(list.len() / 2).copied().unwrap_or(f64::NAN)
        };
        let median = middle(&mut self.ratios);
        let mut row = json!({
            "name": self.name,
            "unit": self.unit,
            "baseline": self.baseline,
            "ratio_median": rounded(median),
            "ratio_min": rounded(self.ratios.first().copied().unwrap_or(f64::NAN)),
            "ratio_max": rounded(self.ratios.last().copied().unwrap_or(f64::NAN)),
            "rounds": self.ratios.len(),
        });
        if !self.values.is_empty() {
            row["value_median"] = json!(rounded(middle(&mut self.values)));
        }
        row
    }
}

/// Pins this process, and every process it starts, to one core.
pub fn pin(core: usize) -> nix::Result<()> {
    let mut set = nix::sched::CpuSet::new();
    set.set(core)?;
    nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &set)
}

/// Private memory of a process, KiB: what would be free without it.
pub fn private_kib(pid: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    text.lines()
        .filter(|line| line.starts_with("Private_"))
        .filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok())
        .sum()
}
