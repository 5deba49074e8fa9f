//! The life of a plugin as one pure function: state and event in, state and actions out. Time and chance are arguments.
//!
//! ```text
//! Untrusted ─> Available ─> Loading ─> Initializing ─> Ready <─> Degraded ─> Stopping ─> Stopped
//!                              └────────────┴───────────┴── died ──┴──> Backoff ─> Loading   at once, then 100 ms doubling to 30 s
//!                                                                 └───> Failed              5 deaths in 60 s, or nothing a restart mends
//! ```
//!
//! Here lives one process at a time. A new version starts beside it, outside of this; [`Event::Promoted`] and [`Event::HandedOver`]
//! say when it took the place. Dying within its probation, it is what rolls back.

mod breaker;
mod cause;
mod health;
mod state;

pub use breaker::{Breaker, Next, FIRST_DELAY, MAX_DEATHS, MAX_DELAY, WINDOW};
pub use cause::{Cause, LimitKind};
pub use health::{Missed, Misses};
pub use state::{Desired, State, Then};

use crate::config::HealthPolicy;
use std::time::Instant;

/// What happens to a plugin.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// The library registered.
    Registered,
    /// `on_load` returned.
    Loaded,
    /// It said that it is well.
    Healthy,
    /// It did not.
    Missed,
    /// The process has ended. `jitter` is a random number in 0..1.
    Died {
        /// Why.
        cause: Cause,
        /// Chance for the delay.
        jitter: f64,
    },
    /// The delay of a Backoff, or the wait of an open breaker, is over.
    TimerFired,
    /// An operator wants it to run again, from anew.
    Restart,
    /// An operator wants it to run.
    Enable,
    /// An operator does not want it to run.
    Disable,
    /// An operator holds nothing against it any more.
    Reset,
    /// The node ends.
    Stop,
    /// Somebody vouches for it now.
    Trust,
    /// Nobody does any more.
    Revoke,
    /// A new version runs and is well; it takes the place of this one. Until then its death rolls back.
    Promoted {
        /// End of its probation, if there is something to go back to.
        probation: Option<Instant>,
    },
    /// A new version asks for what this one leaves: this one has to stop first.
    HandOver,
    /// This one has stopped and left its state, and the new one goes on with its start in this one's place.
    HandedOver {
        /// End of its probation.
        probation: Option<Instant>,
    },
    /// The new version died before it got the state.
    HandOverFailed,
}

/// What the supervisor has to do, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Take the version before this one.
    RollBack,
    /// Start a runner.
    Start,
    /// Let it finish, then end it.
    Stop,
    /// End it: it is not healthy.
    Replace,
}

/// State and what it takes to decide the next one.
#[derive(Debug, Clone, PartialEq)]
pub struct Life {
    /// Now.
    pub state: State,
    /// What the operator wants.
    pub desired: Desired,
    /// Starts since the node began.
    pub starts: u32,
    breaker: Breaker,
    policy: HealthPolicy,
    misses: Misses,
    /// Until when a death rolls back.
    probation: Option<Instant>,
}

impl Life {
    /// A plugin at the start of the node.
    pub fn begin(desired: Desired, policy: HealthPolicy) -> (Life, Vec<Action>) {
        let mut life = Life {
            state: State::Available,
            desired,
            starts: 0,
            breaker: Breaker::default(),
            policy,
            misses: Misses::default(),
            probation: None,
        };
        match desired {
            Desired::Disabled => (life, Vec::new()),
            Desired::Enabled => {
                let (state, actions) = life.start();
                (Life { state, ..life }, actions)
            }
        }
    }

    /// Deaths within the window.
    pub fn recent_deaths(&self, now: Instant) -> usize {
        self.breaker.recent(now)
    }

    /// True while a death would bring the version before this one back.
    pub fn in_probation(&self, now: Instant) -> bool {
        self.probation.is_some_and(|until| now < until)
    }

    /// When [`Event::TimerFired`] is due.
    pub fn timer(&self) -> Option<Instant> {
        match self.state {
            State::Backoff { until } => Some(until),
            State::Failed { probe } => probe,
            State::Untrusted
            | State::Available
            | State::Loading
            | State::Initializing
            | State::Ready
            | State::Degraded
            | State::Stopping { .. }
            | State::Stopped => None,
        }
    }

    /// The next state.
    #[must_use]
    pub fn on(mut self, event: Event, now: Instant) -> (Life, Vec<Action>) {
        let before = self.state.clone();
        let (state, actions) = match event {
            Event::Registered => match before {
                State::Loading => (State::Initializing, vec![]),
                other => (other, vec![]),
            },
            Event::Loaded => match before {
                State::Initializing => (State::Ready, vec![]),
                other => (other, vec![]),
            },
            Event::Healthy => {
                self.misses.forget();
                match before {
                    State::Degraded => (State::Ready, vec![]),
                    other => (other, vec![]),
                }
            }
            Event::Missed if before.serves() => match self.misses.miss(&self.policy) {
                Missed::Wait => (before, vec![]),
                Missed::Degraded => (State::Degraded, vec![]),
                Missed::Replace => (State::Degraded, vec![Action::Replace]),
            },
            Event::Missed => (before, vec![]),
            Event::Died { cause, jitter } => self.died(before, &cause, jitter, now),
            Event::TimerFired => match before {
                State::Backoff { .. } => self.start(),
                State::Failed { probe: Some(_) } => {
                    self.breaker.probe(now);
                    self.start()
                }
                other => (other, vec![]),
            },
            Event::Enable => {
                self.desired = Desired::Enabled;
                self.wanted(before)
            }
            Event::Restart | Event::Reset if self.desired == Desired::Disabled => (before, vec![]),
            Event::Restart => match before {
                State::Loading | State::Initializing | State::Ready | State::Degraded => {
                    (State::Stopping { then: Then::Restart }, vec![Action::Stop])
                }
                other => self.wanted(other),
            },
            Event::Reset => {
                self.breaker.reset();
                match before {
                    State::Backoff { .. } | State::Failed { .. } => self.start(),
                    other => (other, vec![]),
                }
            }
            Event::Disable => {
                self.desired = Desired::Disabled;
                stopped(before, Then::Stop)
            }
            Event::Stop => stopped(before, Then::Stop),
            Event::Revoke => stopped(before, Then::Untrust),
            Event::Trust => match (before, self.desired) {
                (State::Untrusted, Desired::Enabled) => self.start(),
                (State::Untrusted, Desired::Disabled) => (State::Available, vec![]),
                (other, _) => (other, vec![]),
            },
            Event::Promoted { probation } => match before {
                State::Loading
                | State::Initializing
                | State::Ready
                | State::Degraded
                | State::Backoff { .. }
                | State::Failed { .. } => {
                    self.took_over(probation);
                    (State::Ready, vec![])
                }
                State::Untrusted | State::Available | State::Stopping { .. } | State::Stopped => {
                    (before, vec![])
                }
            },
            Event::HandOver => match before {
                State::Ready | State::Degraded => {
                    (State::Stopping { then: Then::HandOver }, vec![Action::Stop])
                }
                other => (other, vec![]),
            },
            Event::HandedOver { probation } => match before {
                State::Stopping { then: Then::HandOver } => {
                    self.took_over(probation);
                    (State::Initializing, vec![])
                }
                other => (other, vec![]),
            },
            Event::HandOverFailed => match before {
                State::Stopping { then: Then::HandOver } => (State::Stopping { then: Then::Restart }, vec![]),
                other => (other, vec![]),
            },
        };
        self.state = state;
        (self, actions)
    }

    /// An operator wants it to run, now.
    fn wanted(&mut self, state: State) -> (State, Vec<Action>) {
        match state {
            State::Available | State::Stopped | State::Backoff { .. } | State::Failed { .. } => {
                self.breaker.reset();
                self.start()
            }
            State::Stopping { then: Then::Stop | Then::Restart } => {
                (State::Stopping { then: Then::Restart }, vec![])
            }
            // The next process is on its way already; or nobody vouches for it.
            other @ (State::Loading
            | State::Initializing
            | State::Ready
            | State::Degraded
            | State::Stopping { then: Then::HandOver | Then::Untrust }
            | State::Untrusted) => (other, vec![]),
        }
    }

    fn start(&mut self) -> (State, Vec<Action>) {
        self.misses.forget();
        self.starts = self.starts.saturating_add(1);
        (State::Loading, vec![Action::Start])
    }

    fn took_over(&mut self, probation: Option<Instant>) {
        self.misses.forget();
        self.breaker.reset();
        self.probation = probation;
        self.starts = self.starts.saturating_add(1);
    }

    fn died(&mut self, state: State, cause: &Cause, jitter: f64, now: Instant) -> (State, Vec<Action>) {
        match state {
            State::Stopping { then: Then::Stop } => (State::Stopped, vec![]),
            State::Stopping { then: Then::Untrust } => (State::Untrusted, vec![]),
            // Before it could leave its state: the new version was told that there is none, or has died too.
            State::Stopping { then: Then::Restart | Then::HandOver } => self.start(),
            State::Loading | State::Initializing | State::Ready | State::Degraded => {
                if self.probation.take().is_some_and(|until| now < until) {
                    self.breaker.reset();
                    let (state, _) = self.start();
                    return (state, vec![Action::RollBack, Action::Start]);
                }
                if cause.is_final() {
                    return (State::Failed { probe: None }, vec![]);
                }
                match self.breaker.died(now, jitter) {
                    Next::Restart(until) => (State::Backoff { until }, vec![]),
                    Next::Open(probe) => (State::Failed { probe: Some(probe) }, vec![]),
                }
            }
            // Late news of a process that is gone: nothing changes.
            other @ (State::Untrusted
            | State::Available
            | State::Stopped
            | State::Backoff { .. }
            | State::Failed { .. }) => (other, vec![]),
        }
    }
}

/// It has to end, whatever it was doing.
fn stopped(state: State, then: Then) -> (State, Vec<Action>) {
    let rest = match then {
        Then::Untrust => State::Untrusted,
        Then::Stop | Then::Restart | Then::HandOver => State::Stopped,
    };
    match state {
        State::Loading | State::Initializing | State::Ready | State::Degraded => {
            (State::Stopping { then }, vec![Action::Stop])
        }
        State::Stopping { then: Then::Untrust } => (State::Stopping { then: Then::Untrust }, vec![]),
        State::Stopping { .. } => (State::Stopping { then }, vec![]),
        State::Untrusted => (State::Untrusted, vec![]),
        State::Available if then != Then::Untrust => (State::Available, vec![]),
        State::Available | State::Stopped | State::Backoff { .. } | State::Failed { .. } => (rest, vec![]),
    }
}

#[cfg(test)]
mod tests;
