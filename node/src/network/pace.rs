//! How fast somebody may go on: a bucket of tokens. Who has none left waits; nothing is lost. Time is an argument.

use std::time::{Duration, Instant};

/// A bucket that fills at a steady rate and holds at most what a quarter of a second brings, but one at least.
#[derive(Debug)]
pub struct Pace {
    rate: f64,
    tokens: f64,
    last: Option<Instant>,
}

impl Pace {
    /// So many a second; zero is without limit.
    pub fn new(per_second: u32) -> Self {
        Self { rate: per_second.into(), tokens: Self::most(per_second.into()), last: None }
    }

    fn most(rate: f64) -> f64 {
        (rate / 4.0).max(1.0)
    }

    /// Takes so many, and says how long to wait before going on.
    pub fn take(&mut self, count: u32, now: Instant) -> Duration {
        if self.rate == 0.0 {
            return Duration::ZERO;
        }
        // A clock that was read before the last look must not be credited for that time again.
        let now = self.last.map_or(now, |last| now.max(last));
        let passed = self.last.map_or(Duration::ZERO, |last| now.saturating_duration_since(last));
        self.last = Some(now);
        self.tokens = (self.tokens + passed.as_secs_f64() * self.rate).min(Self::most(self.rate));
        self.tokens -= f64::from(count);
        if self.tokens >= 0.0 {
            Duration::ZERO
        } else {
            Duration::from_secs_f64(-self.tokens / self.rate)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_too_fast_waits_as_long_as_it_takes_and_who_is_not_waits_never() {
        let (mut pace, mut now) = (Pace::new(100), Instant::now());
        let mut waited = Duration::ZERO;
        for _ in 0..500 {
            let wait = pace.take(1, now);
            waited += wait;
            now += wait;
        }
        assert!(
            (4.5..5.0).contains(&waited.as_secs_f64()),
            "{waited:?}: 500 at 100 a second, 25 of them at once"
        );
        now += Duration::from_secs(3600);
        assert_eq!(pace.take(25, now), Duration::ZERO);
        assert!(pace.take(1, now) > Duration::ZERO, "an idle hour buys a quarter of a second");
        let (mut pace, old) = (Pace::new(100), now);
        let waits =
            (0..200).map(|n| pace.take(1, if n % 2 == 0 { now + Duration::from_secs(1) } else { old }));
        assert!(waits.last() > Some(Duration::from_secs(1)), "an old look at the clock earns nothing");
        assert_eq!(Pace::new(0).take(u32::MAX, now), Duration::ZERO);
    }
}
