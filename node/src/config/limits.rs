//! Limits of a plugin as numbers: one table with the same keys in a manifest, in `[plugins.for.NAME]` and in `[plugins.limits]`.
//! Whoever writes one may only make it tighter: the smallest number of the three holds.

use super::error::{ConfigError, Origin};
use super::Budget;
use serde::Deserialize;
use serde_spanned::Spanned;
use std::time::Duration;
use thenodes_ipc::launch::ProcessLimits;

macro_rules! limits {
    ($($(#[$doc:meta])* $name:ident: $least:literal to $most:literal,)*) => {
        /// The table as it is written.
        #[derive(Debug, Clone, Default, Deserialize)]
        #[serde(deny_unknown_fields)]
        pub(crate) struct RawLimits {
            $($name: Option<Spanned<u64>>,)*
        }

        /// Limits that somebody wrote; `None` is no wish.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
        pub struct ManifestLimits {
            $($(#[$doc])* pub $name: Option<u64>,)*
        }

        impl RawLimits {
            /// Checks each number.
            pub(crate) fn check(&self, origin: &Origin) -> Result<ManifestLimits, ConfigError> {
                Ok(ManifestLimits { $($name: within(origin, &self.$name, $least, $most)?,)* })
            }
        }

        impl ManifestLimits {
            /// The smaller number of each.
            #[must_use]
            pub fn tighter(&self, other: &ManifestLimits) -> ManifestLimits {
                ManifestLimits { $($name: smaller(self.$name, other.$name),)* }
            }

            /// Every key with its number and the range that it may have.
            pub fn each(&self) -> impl Iterator<Item = (&'static str, Option<u64>, std::ops::RangeInclusive<u64>)> {
                [$((stringify!($name), self.$name, $least..=$most),)*].into_iter()
            }
        }
    };
}

limits! {
    /// Memory, MiB.
    memory_mb: 16 to 65_536,
    /// Deadline of a call, seconds.
    call_timeout_s: 1 to 300,
    /// Share of one processor, per cent.
    cpu_percent: 10 to 6400,
    /// Processor time in all, seconds.
    cpu_seconds: 1 to 31_536_000,
    /// Threads.
    threads: 4 to 4096,
    /// Open descriptors.
    fds: 16 to 65_536,
    /// Open connections through the node.
    connections: 0 to 1024,
    /// Largest file, MiB.
    file_mb: 0 to 65_536,
    /// All files together where it may write, MiB.
    disk_mb: 0 to 1_048_576,
    /// Temporary storage, MiB.
    tmp_mb: 0 to 65_536,
    /// Log lines a second.
    log_lines_per_s: 1 to 100_000,
    /// Messages a second over the link.
    link_messages_per_s: 1 to 10_000_000,
    /// MiB a second over the link.
    link_mb_per_s: 1 to 65_536,
    /// Timers.
    timers: 0 to 16,
    /// Subscriptions.
    subscriptions: 0 to 16,
}

/// Keys that nothing enforces yet; whoever writes one is told so.
const NOT_ENFORCED: [&str; 2] = ["timers", "subscriptions"];

impl ManifestLimits {
    /// Keys that were written and that this release does not enforce.
    pub fn without_effect(&self) -> impl Iterator<Item = &'static str> {
        self.each()
            .filter(|(name, value, _)| value.is_some() && NOT_ENFORCED.contains(name))
            .map(|(name, _, _)| name)
    }

    /// What the kernel holds the process to, where these do not ask for more than `most`.
    pub fn process(&self, most: ProcessLimits) -> ProcessLimits {
        let mb = |mb: u64| mb.saturating_mul(1024 * 1024);
        ProcessLimits {
            memory: self.memory_mb.map_or(most.memory, |own| mb(own).min(most.memory)),
            threads: self.threads.map_or(most.threads, |own| own.min(most.threads)),
            descriptors: self.fds.map_or(most.descriptors, |own| own.min(most.descriptors)),
            cpu_seconds: smaller(self.cpu_seconds, most.cpu_seconds),
            file_size: self.file_mb.map_or(most.file_size, |own| mb(own).min(most.file_size)),
        }
    }
}

impl ManifestLimits {
    /// What the operator wrote for all plugins, over what nobody wrote.
    pub fn budget_of_all(&self, base: Budget) -> Budget {
        let mb = |mb: u64| mb.saturating_mul(1024 * 1024);
        Budget {
            cpu_percent: self.cpu_percent.unwrap_or(base.cpu_percent),
            disk: self.disk_mb.map_or(base.disk, mb),
            tmp: self.tmp_mb.map_or(base.tmp, mb),
            log_lines_per_s: self.log_lines_per_s.unwrap_or(base.log_lines_per_s),
            link_messages_per_s: self.link_messages_per_s.unwrap_or(base.link_messages_per_s),
            link_bytes_per_s: self.link_mb_per_s.map_or(base.link_bytes_per_s, mb),
            connections: self.connections.unwrap_or(base.connections),
            call_timeout: self.call_timeout_s.map_or(base.call_timeout, Duration::from_secs),
            ..base
        }
    }

    /// What the node holds it to from outside, where these do not ask for more than `most`.
    pub fn budget(&self, most: Budget) -> Budget {
        let mb = |mb: u64| mb.saturating_mul(1024 * 1024);
        Budget {
            cpu_percent: self.cpu_percent.map_or(most.cpu_percent, |own| own.min(most.cpu_percent)),
            disk: self.disk_mb.map_or(most.disk, |own| mb(own).min(most.disk)),
            tmp: self.tmp_mb.map_or(most.tmp, |own| mb(own).min(most.tmp)),
            log_lines_per_s: self
                .log_lines_per_s
                .map_or(most.log_lines_per_s, |own| own.min(most.log_lines_per_s)),
            link_messages_per_s: self
                .link_messages_per_s
                .map_or(most.link_messages_per_s, |own| own.min(most.link_messages_per_s)),
            link_bytes_per_s: self
                .link_mb_per_s
                .map_or(most.link_bytes_per_s, |own| mb(own).min(most.link_bytes_per_s)),
            connections: self.connections.map_or(most.connections, |own| own.min(most.connections)),
            call_timeout: self
                .call_timeout_s
                .map_or(most.call_timeout, |own| Duration::from_secs(own).min(most.call_timeout)),
            ..most
        }
    }
}

fn within(
    origin: &Origin,
    value: &Option<Spanned<u64>>,
    least: u64,
    most: u64,
) -> Result<Option<u64>, ConfigError> {
    match value {
        None => Ok(None),
        Some(value) if (least..=most).contains(value.get_ref()) => Ok(Some(*value.get_ref())),
        Some(value) => {
            Err(origin.error(value.span(), "out of range", Some(&format!("from {least} to {most}"))))
        }
    }
}

fn smaller(a: Option<u64>, b: Option<u64>) -> Option<u64> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (one, other) => one.or(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn nobody_widens_a_limit(a in proptest::option::of(16u64..1000), b in proptest::option::of(16u64..1000), most in 16u64..1000) {
            let limits = |n| ManifestLimits { memory_mb: n, threads: n, fds: n, ..Default::default() };
            let most = ProcessLimits {
                memory: most * 1024 * 1024,
                threads: most,
                descriptors: most,
                cpu_seconds: None,
                file_size: 0,
            };
            let met = limits(a).tighter(&limits(b)).process(most);
            for one in [limits(a).process(most), limits(b).process(most), most] {
                proptest::prop_assert!(met.memory <= one.memory && met.threads <= one.threads && met.descriptors <= one.descriptors);
            }
        }
    }
}
