//! When a plugin that died is started again, and when no more. Pure: time and chance are arguments.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Deaths within [`WINDOW`] that open the breaker.
pub const MAX_DEATHS: usize = 5;
/// The window of the breaker. Who lives longer than this is forgiven.
pub const WINDOW: Duration = Duration::from_secs(60);
/// Delay of the second restart; the first is at once.
pub const FIRST_DELAY: Duration = Duration::from_millis(100);
/// Longest delay between restarts, and how long an open breaker waits before it tries one start.
pub const MAX_DELAY: Duration = Duration::from_secs(30);

/// What follows a death.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// A start at this time.
    Restart(Instant),
    /// The breaker is open; one start is tried at this time.
    Open(Instant),
}

/// The deaths that still count.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Breaker {
    /// Within the window, oldest first; never more than [`MAX_DEATHS`].
    deaths: VecDeque<Instant>,
    /// Deaths in a row, each within a window of the one before: what the delay grows with.
    streak: u32,
    /// When the one start of an open breaker was tried; its death within a window opens the breaker again at once.
    probing: Option<Instant>,
}

impl Breaker {
    /// Deaths within the window that ends now.
    pub fn recent(&self, now: Instant) -> usize {
        self.deaths.iter().filter(|death| now.saturating_duration_since(**death) <= WINDOW).count()
    }

    /// True while one start is being tried.
    pub fn is_half_open(&self, now: Instant) -> bool {
        self.probing.is_some_and(|at| now.saturating_duration_since(at) <= WINDOW)
    }

    /// The wait of an open breaker is over, and one start is tried.
    pub fn probe(&mut self, now: Instant) {
        self.probing = Some(now);
    }

    /// It died. `jitter` is a random number in 0..1: what died together need not start together.
    pub fn died(&mut self, now: Instant, jitter: f64) -> Next {
        let half_open = self.is_half_open(now);
        if self.probing.take().is_some() && !half_open {
            *self = Breaker::default(); // the probe lived: closed
        }
        if self.deaths.back().is_none_or(|last| now.saturating_duration_since(*last) > WINDOW) {
            self.streak = 0;
        }
        while self.deaths.front().is_some_and(|death| now.saturating_duration_since(*death) > WINDOW) {
            self.deaths.pop_front();
        }
        self.deaths.push_back(now);
        while self.deaths.len() > MAX_DEATHS {
            self.deaths.pop_front();
        }
        self.streak = self.streak.saturating_add(1);
        if half_open || self.deaths.len() >= MAX_DEATHS {
            return Next::Open(now + MAX_DELAY);
        }
        if self.streak == 1 {
            return Next::Restart(now);
        }
        let doubled = FIRST_DELAY.saturating_mul(1 << (self.streak - 2).min(16)).min(MAX_DELAY);
        Next::Restart(now + doubled.mul_f64(1.0 + 0.2 * jitter.clamp(0.0, 1.0)))
    }

    /// An operator says that it starts with nothing held against it.
    pub fn reset(&mut self) {
        *self = Breaker::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wait(next: Next, now: Instant) -> (bool, u64) {
        match next {
            Next::Restart(at) => (true, (at - now).as_millis() as u64),
            Next::Open(at) => (false, (at - now).as_millis() as u64),
        }
    }

    #[test]
    fn the_first_restart_is_at_once_the_next_wait_longer_and_the_fifth_death_opens() {
        let (mut breaker, mut now, mut seen) = (Breaker::default(), Instant::now(), Vec::new());
        for _ in 0..5 {
            let next = wait(breaker.died(now, 0.0), now);
            seen.push(next);
            now += Duration::from_millis(next.1);
        }
        assert_eq!(seen, [(true, 0), (true, 100), (true, 200), (true, 400), (false, 30_000)]);
    }

    #[test]
    fn who_dies_slowly_again_and_again_waits_up_to_thirty_seconds_and_who_lived_a_minute_is_forgiven() {
        let (mut breaker, mut now, mut longest) = (Breaker::default(), Instant::now(), 0);
        for _ in 0..30 {
            now += Duration::from_secs(25);
            let (closed, waits) = wait(breaker.died(now, 0.0), now);
            assert!(closed, "three deaths a minute are not five");
            longest = waits;
        }
        assert_eq!(longest, 30_000);
        now += WINDOW + Duration::from_millis(1);
        assert_eq!(wait(breaker.died(now, 0.9), now), (true, 0));
    }

    #[test]
    fn a_probe_that_dies_opens_again_and_one_that_lives_closes() {
        let (mut breaker, now) = (Breaker::default(), Instant::now());
        for _ in 0..MAX_DEATHS {
            breaker.died(now, 0.0);
        }
        let probed = now + MAX_DELAY;
        breaker.probe(probed);
        let mut well = breaker.clone();
        // Long after the five have left the window, but within one of the probe.
        let late = probed + WINDOW;
        assert_eq!(breaker.died(late, 0.0), Next::Open(late + MAX_DELAY));
        let later = probed + WINDOW + Duration::from_millis(1);
        assert_eq!(well.died(later, 0.0), Next::Restart(later));
    }
}
