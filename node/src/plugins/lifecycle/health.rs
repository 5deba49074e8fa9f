//! How often a plugin may miss a health probe before its state changes. Pure.

use crate::config::HealthPolicy;

/// What a miss leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Missed {
    /// Nothing yet, or nothing new.
    Wait,
    /// It does not seem to be well.
    Degraded,
    /// It is to be replaced.
    Replace,
}

/// Misses in a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Misses(u32);

impl Misses {
    /// One more.
    pub fn miss(&mut self, policy: &HealthPolicy) -> Missed {
        self.0 = self.0.saturating_add(1);
        if self.0 >= policy.restart_after {
            Missed::Replace
        } else if self.0 >= policy.degraded_after {
            Missed::Degraded
        } else {
            Missed::Wait
        }
    }

    /// It is well, or another process.
    pub fn forget(&mut self) {
        self.0 = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_misses_degrade_six_replace_and_one_good_answer_forgives() {
        let (policy, mut misses) = (HealthPolicy::default(), Misses::default());
        let seen: Vec<Missed> = (0..6).map(|_| misses.miss(&policy)).collect();
        assert_eq!(seen[..2], [Missed::Wait; 2]);
        assert_eq!(seen[2..5], [Missed::Degraded; 3]);
        assert_eq!(seen[5], Missed::Replace);
        misses.forget();
        assert_eq!(misses.miss(&policy), Missed::Wait);
    }
}
