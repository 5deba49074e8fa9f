//! How an operator has plugins watched over: health probes, and the probation of new versions.

use super::error::{ConfigError, Origin};
use serde::Deserialize;
use serde_spanned::Spanned;
use std::time::Duration;

/// When a plugin is asked for its health, and what follows if it does not say that it is well. The operator's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HealthPolicy {
    /// Time between two probes; zero asks never.
    pub every: Duration,
    /// How long an answer may take.
    pub timeout: Duration,
    /// Misses in a row that make it Degraded.
    pub degraded_after: u32,
    /// Misses in a row that have its process replaced.
    pub restart_after: u32,
}

impl Default for HealthPolicy {
    fn default() -> Self {
        Self {
            every: Duration::from_secs(10),
            timeout: Duration::from_secs(5),
            degraded_after: 3,
            restart_after: 6,
        }
    }
}

impl HealthPolicy {
    /// The wait before the next probe: around `every`, so that many plugins do not answer in step. `chance` is in 0..1; the first
    /// wait of a process is anywhere in one period.
    pub fn wait(&self, first: bool, chance: f64) -> Duration {
        let chance = chance.clamp(0.0, 1.0);
        self.every.mul_f64(if first { chance } else { 0.9 + 0.2 * chance })
    }
}

/// How all plugins are watched over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Supervision {
    /// Health probes.
    pub health: HealthPolicy,
    /// How long after an upgrade a death brings the old version back.
    pub probation: Duration,
}

impl Default for Supervision {
    fn default() -> Self {
        Self { health: HealthPolicy::default(), probation: Duration::from_secs(60) }
    }
}

/// The table as it is written.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawSupervision {
    health_every_s: Option<Spanned<u64>>,
    health_timeout_s: Option<Spanned<u64>>,
    degraded_after: Option<Spanned<u64>>,
    restart_after: Option<Spanned<u64>>,
    probation_s: Option<Spanned<u64>>,
}

impl RawSupervision {
    /// Checks every value and fills in defaults.
    pub(super) fn check(&self, origin: &Origin) -> Result<Supervision, ConfigError> {
        let within = |value: &Option<Spanned<u64>>, default: u64, least: u64, most: u64| match value {
            None => Ok(default),
            Some(value) if (least..=most).contains(value.get_ref()) => Ok(*value.get_ref()),
            Some(value) => {
                let help = format!("from {least} to {most}; the default is {default}");
                Err(origin.error(value.span(), "out of range", Some(&help)))
            }
        };
        let default = Supervision::default();
        let of = default.health;
        let count = |value| u32::try_from(value).unwrap_or(u32::MAX);
        let health = HealthPolicy {
            every: Duration::from_secs(within(&self.health_every_s, of.every.as_secs(), 0, 3600)?),
            timeout: Duration::from_secs(within(&self.health_timeout_s, of.timeout.as_secs(), 1, 60)?),
            degraded_after: count(within(&self.degraded_after, of.degraded_after.into(), 1, 1000)?),
            restart_after: count(within(&self.restart_after, of.restart_after.into(), 1, 1000)?),
        };
        if let Some(value) =
            self.restart_after.as_ref().filter(|_| health.restart_after < health.degraded_after)
        {
            let help = format!("it counts the same misses; write {} or more", health.degraded_after);
            return Err(origin.error(value.span(), "less than degraded_after", Some(&help)));
        }
        let probation =
            Duration::from_secs(within(&self.probation_s, default.probation.as_secs(), 0, 86_400)?);
        Ok(Supervision { health, probation })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(lines: &str) -> Result<Supervision, String> {
        let text = format!("[plugins.supervision]\n{lines}\n");
        let config = crate::config::Raw::parse(std::path::Path::new("c.toml"), &text)
            .and_then(crate::config::Raw::validate);
        config.map(|config| config.plugins.supervision).map_err(|error| error.to_string())
    }

    #[test]
    fn what_is_written_counts_and_what_cannot_be_is_an_error_with_its_place() {
        assert_eq!(written(""), Ok(Supervision::default()));
        let some = written("health_every_s = 1\nrestart_after = 3\nprobation_s = 5").expect("valid");
        assert_eq!((some.health.every.as_secs(), some.health.restart_after), (1, 3));
        assert_eq!(some.probation, Duration::from_secs(5));
        for wrong in
            ["health_timeout_s = 0", "degraded_after = 0", "restart_after = 2", "probation_s = 90000"]
        {
            let error = written(wrong).expect_err(wrong);
            assert!(error.contains("c.toml:2:"), "{wrong}: {error}");
        }
    }

    #[test]
    fn probes_of_many_plugins_spread_over_the_whole_period() {
        let policy = HealthPolicy::default();
        assert_eq!((policy.wait(true, 0.0), policy.wait(true, 1.0)), (Duration::ZERO, policy.every));
        assert_eq!(policy.wait(false, 0.0), Duration::from_secs(9));
        assert_eq!(policy.wait(false, 1.0), Duration::from_secs(11));
    }
}
