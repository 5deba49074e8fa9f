//! What the benchmark needs beside its subjects: rows, pinning, memory, and a gRPC peer to compare with; and the rows about
//! starts, memory, many plugins, and what must not grow.

pub mod abuse;
pub mod call;
pub mod floor;
pub mod growth;
pub mod grpc;
pub mod inbound;
pub mod start;

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

    /// True if nothing was measured.
    pub fn is_empty(&self) -> bool {
        self.ratios.is_empty()
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
    of_process(pid, "Private_")
}

/// Sum of all lines of a process's memory that begin like this, KiB.
pub fn of_process(pid: u32, line: &str) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    text.lines()
        .filter(|of| of.starts_with(line))
        .filter_map(|of| of.split_whitespace().nth(1)?.parse::<u64>().ok())
        .sum()
}

/// Processor time of a process so far, in ticks of the kernel's clock.
pub fn ticks(pid: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name in parentheses may hold anything; user and system time are the twelfth and thirteenth word after its end.
    let after = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    after.split_whitespace().skip(11).take(2).filter_map(|word| word.parse::<u64>().ok()).sum()
}

/// How many of them there are in a second.
pub fn ticks_per_second() -> f64 {
    nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK).ok().flatten().unwrap_or(100) as f64
}
