//! What the node holds a plugin to from outside, beside the limits that the kernel holds inside the plugin's process.

use std::time::Duration;

/// What happens to a plugin that goes beyond its limits again and again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnViolation {
    /// An event for the operator.
    #[default]
    Warn,
    /// The process is ended and started again, as after any death.
    Restart,
    /// The process is ended and waits for an operator.
    Disable,
}

impl OnViolation {
    /// The word in the configuration.
    pub fn word(self) -> &'static str {
        match self {
            OnViolation::Warn => "warn",
            OnViolation::Restart => "restart",
            OnViolation::Disable => "disable",
        }
    }

    /// The action of this word.
    pub fn parse(word: &str) -> Option<OnViolation> {
        [OnViolation::Warn, OnViolation::Restart, OnViolation::Disable].into_iter().find(|a| a.word() == word)
    }
}

/// What happens to a message when the queue is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Overflow {
    /// It is dropped.
    #[default]
    DropNewest,
    /// The one that has waited longest is dropped.
    DropOldest,
    /// Nothing is dropped: the message keeps its part of the room that all messages of peers have together, so that the peer
    /// that sends is read later.
    BlockPeer,
}

impl Overflow {
    /// The word in configuration.
    pub fn word(self) -> &'static str {
        match self {
            Overflow::DropNewest => "drop-newest",
            Overflow::DropOldest => "drop-oldest",
            Overflow::BlockPeer => "block-peer",
        }
    }

    /// The policy of this word.
    pub fn parse(word: &str) -> Option<Overflow> {
        [Overflow::DropNewest, Overflow::DropOldest, Overflow::BlockPeer]
            .into_iter()
            .find(|o| o.word() == word)
    }
}

/// Limits of each plugin that its own process cannot be trusted with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// Processor time, percent of one core.
    pub cpu_percent: u64,
    /// All files together in the granted directories where it may write, bytes.
    pub disk: u64,
    /// Temporary files, bytes.
    pub tmp: u64,
    /// Log lines a second; more are dropped and counted.
    pub log_lines_per_s: u64,
    /// Messages a second over the link.
    pub link_messages_per_s: u64,
    /// Bytes a second over the link.
    pub link_bytes_per_s: u64,
    /// Connections that the node keeps open for one process of it.
    pub connections: u64,
    /// How long a call to it may take at most, whatever its caller would wait.
    pub call_timeout: Duration,
    /// Time between two looks at a plugin.
    pub sample: Duration,
    /// Violations of one kind within [`Budget::window`] that lead to `on_violation`.
    pub violations: u64,
    /// What follows.
    pub on_violation: OnViolation,
}

impl Budget {
    /// How far back violations count: a minute, or as long as that many samples take if they are rare.
    pub fn window(&self) -> Duration {
        let needed = self.sample.saturating_mul(u32::try_from(self.violations).unwrap_or(u32::MAX));
        needed.max(Duration::from_secs(60))
    }
}

impl Default for Budget {
    fn default() -> Self {
        Self {
            cpu_percent: 100,
            disk: 256 * 1024 * 1024,
            tmp: 0,
            log_lines_per_s: 200,
            link_messages_per_s: 20_000,
            link_bytes_per_s: 64 * 1024 * 1024,
            connections: 10,
            call_timeout: thenodes_ipc::limits::MAX_DEADLINE,
            sample: Duration::from_secs(10),
            violations: 10,
            on_violation: OnViolation::Warn,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(lines: &str) -> Result<crate::Config, crate::config::ConfigError> {
        let watchdog = ["sample_s", "violations", "on_violation"].iter().any(|key| lines.starts_with(key));
        let table = if watchdog { "watchdog" } else { "limits" };
        let text = format!("[plugins.{table}]\n{lines}\n");
        crate::config::Raw::parse(std::path::Path::new("c.toml"), &text)?.validate()
    }

    #[test]
    fn what_nobody_wrote_is_the_default_and_what_was_written_counts() {
        let config = limits("").expect("valid");
        assert_eq!(config.plugins.budget, Budget::default());
        assert_eq!((config.plugins.limits.cpu_seconds, config.plugins.limits.file_size), (None, 0));
        let written = "connections = 3\ncpu_percent = 250\ncpu_seconds = 7\nfile_mb = 2\nlog_lines_per_s = 5\n[plugins.watchdog]\nsample_s = 1\nviolations = 3\non_violation = \"disable\"";
        let plugins = limits(written).expect("valid").plugins;
        assert_eq!((plugins.limits.cpu_seconds, plugins.limits.file_size), (Some(7), 2 << 20));
        let budget = plugins.budget;
        assert_eq!((budget.cpu_percent, budget.log_lines_per_s, budget.violations), (250, 5, 3));
        assert_eq!(budget.connections, 3);
        assert_eq!((budget.sample, budget.on_violation), (Duration::from_secs(1), OnViolation::Disable));
    }

    #[test]
    fn an_impossible_limit_is_an_error_with_its_place() {
        for line in [
            "cpu_percent = 0",
            "cpu_seconds = 0",
            "sample_s = 0",
            "violations = 0",
            "on_violation = \"kill\"",
        ] {
            let error = limits(line).expect_err(line).to_string();
            assert!(error.contains("c.toml:2:"), "{line}: {error}");
        }
        assert_eq!(limits("tmp_mb = 1").expect("valid").plugins.budget.tmp, 1 << 20);
    }

    #[test]
    fn one_kind_of_violation_can_always_reach_its_threshold_within_the_window() {
        for (sample, violations) in [(1, 1), (1, 100), (10, 10), (3600, 100)] {
            let budget = Budget { sample: Duration::from_secs(sample), violations, ..Budget::default() };
            assert!(budget.window() >= budget.sample * violations as u32);
            assert!(budget.window() >= Duration::from_secs(60));
        }
    }
}
