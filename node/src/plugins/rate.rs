//! How much a plugin may send in a second, as a pure calculation: time comes in, a waiting time goes out. It trusts neither
//! the plugin, which sends what it likes, nor the clock, which may stand still or jump.
//!
//! A bucket holds at most the share of one second, so an honest burst passes at once. Whoever takes more owes it, and waits
//! until the debt is paid; nothing is dropped. Counted in whole units per nanosecond of rate: no rounding adds up.

use crate::config::Budget;
use std::time::Duration;

/// Nanoseconds in a second.
const SECOND: i128 = 1_000_000_000;

/// So many of something a second.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bucket {
    rate: i128,
    /// What may be taken without waiting, times [`SECOND`]; negative is what is owed.
    level: i128,
    /// Until when the level is right.
    at: Duration,
}

impl Bucket {
    /// A full one. `now` counts from any moment, always the same.
    pub fn new(rate: u64, now: Duration) -> Self {
        let rate = i128::from(rate.max(1));
        Self { rate, level: rate * SECOND, at: now }
    }

    /// Takes an amount and says how long to wait before it is used. Never longer than a second for whoever waits as told and
    /// takes no more than a second's share at once.
    #[must_use]
    pub fn take(&mut self, amount: u64, now: Duration) -> Duration {
        let passed = now.saturating_sub(self.at);
        self.at = self.at.max(now);
        let passed = i128::try_from(passed.as_nanos()).unwrap_or(i128::MAX);
        let full = self.rate * SECOND;
        self.level = self.level.saturating_add(passed.saturating_mul(self.rate)).min(full);
        self.level = self.level.saturating_sub(i128::from(amount) * SECOND);
        if self.level >= 0 {
            return Duration::ZERO;
        }
        // Rounded up: a nanosecond too early would be a little too much, again and again.
        let owed = (self.level.saturating_neg() + self.rate - 1) / self.rate;
        u64::try_from(owed).map_or(Duration::MAX, Duration::from_nanos)
    }
}

/// What one plugin's link may carry in a second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinkRates {
    /// Messages.
    pub messages_per_s: u64,
    /// Bytes.
    pub bytes_per_s: u64,
}

impl From<&Budget> for LinkRates {
    fn from(budget: &Budget) -> Self {
        Self { messages_per_s: budget.link_messages_per_s, bytes_per_s: budget.link_bytes_per_s }
    }
}

impl LinkRates {
    /// Both meters, full.
    pub fn meter(self, now: Duration) -> Meter {
        Meter { messages: Bucket::new(self.messages_per_s, now), bytes: Bucket::new(self.bytes_per_s, now) }
    }
}

/// What one link has used of its rates.
#[derive(Debug, Clone)]
pub struct Meter {
    messages: Bucket,
    bytes: Bucket,
}

impl Meter {
    /// One message was found in what was read.
    #[must_use]
    pub fn message(&mut self, now: Duration) -> Duration {
        self.messages.take(1, now)
    }

    /// So many bytes were read.
    #[must_use]
    pub fn bytes(&mut self, count: usize, now: Duration) -> Duration {
        self.bytes.take(u64::try_from(count).unwrap_or(u64::MAX), now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const START: Duration = Duration::from_secs(1000);

    #[test]
    fn a_seconds_share_passes_at_once_and_the_rest_in_its_time() {
        let mut bucket = Bucket::new(4, START);
        let waits: Vec<u128> = (0..6).map(|_| bucket.take(1, START).as_millis()).collect();
        assert_eq!(waits, [0, 0, 0, 0, 250, 500]);
        // Paid after half a second, and full again a second later, but never fuller.
        assert_eq!(bucket.take(4, START + Duration::from_millis(1500)), Duration::ZERO);
        let late = START + Duration::from_secs(1_000_000);
        assert_eq!(bucket.take(4, late), Duration::ZERO);
        assert_eq!(bucket.take(4, late), Duration::from_secs(1));
    }

    #[test]
    fn each_meter_has_a_bucket_of_its_own() {
        let mut meter = LinkRates { messages_per_s: 1, bytes_per_s: 100 }.meter(START);
        assert_eq!((meter.message(START), meter.bytes(100, START)), (Duration::ZERO, Duration::ZERO));
        assert_eq!(meter.message(START), Duration::from_secs(1));
        assert_eq!(meter.bytes(50, START), Duration::from_millis(500));
    }

    #[test]
    fn no_number_and_no_clock_makes_it_panic() {
        for rate in [0, 1, 3, u64::MAX] {
            for now in [Duration::ZERO, START, Duration::MAX] {
                let mut bucket = Bucket::new(rate, START);
                for amount in [u64::MAX, 0, 1, u64::MAX] {
                    let _ = bucket.take(amount, now);
                    let _ = bucket.take(amount, Duration::ZERO);
                }
            }
        }
    }

    #[test]
    fn a_thousand_seconds_at_a_rate_that_divides_nothing_do_not_drift() {
        for rate in [3, 7, 999, 20_001] {
            let mut bucket = Bucket::new(rate, START);
            let mut now = START;
            let count = rate.min(1000) * 1000;
            for _ in 0..count {
                now += bucket.take(1, now);
            }
            let exact = Duration::from_nanos(((count - rate.min(count)) * 1_000_000_000).div_ceil(rate));
            let took = now - START;
            assert!(
                took >= exact && took <= exact + Duration::from_nanos(1),
                "{rate}: {took:?}, not {exact:?}"
            );
        }
    }

    proptest! {
        #[test]
        fn never_more_than_the_rate_and_one_burst_and_never_longer_than_a_second(
            rate in 1u64..100_000,
            steps in prop::collection::vec((0u64..2_000_000, 1u64..=100, 0u64..3_000_000), 1..200),
        ) {
            let mut bucket = Bucket::new(rate, START);
            let mut now = START;
            // When each amount was used.
            let mut used: Vec<(Duration, u64)> = vec![(START, 0)];
            for (pause, share, late) in steps {
                now += Duration::from_micros(pause);
                let amount = (rate * share / 100).max(1);
                let wait = bucket.take(amount, now);
                prop_assert!(wait <= Duration::from_secs(1), "{wait:?}");
                // Timers are late, never early.
                now += wait + Duration::from_nanos(if wait.is_zero() { 0 } else { late });
                used.push((now, amount));
            }
            for first in 0..used.len() {
                let mut sum = 0u128;
                for (at, amount) in &used[first + 1..] {
                    sum += u128::from(*amount);
                    let span = (*at - used[first].0).as_nanos();
                    // One burst, and what the time since allows; exact to the last nanosecond.
                    prop_assert!(
                        sum * 1_000_000_000 <= u128::from(rate) * (1_000_000_000 + span),
                        "{sum} in {span} ns at {rate}"
                    );
                }
            }
        }

        #[test]
        fn whoever_stays_below_the_rate_never_waits(rate in 1u64..100_000, count in 1usize..2000) {
            let mut bucket = Bucket::new(rate, START);
            let pause = Duration::from_nanos(1_000_000_000u64.div_ceil(rate));
            for n in 0..count {
                prop_assert_eq!(bucket.take(1, START + pause * n as u32), Duration::ZERO);
            }
        }
    }
}
