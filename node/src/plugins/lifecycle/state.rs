//! The words of a plugin's life: where it is, and where its operator wants it to be. Data only; who moves between them is
//! [`super::Life`].

use std::time::Instant;

/// What the operator wants; written down, so that it holds after the node's end too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Desired {
    /// It runs, and is started again when it dies.
    #[default]
    Enabled,
    /// It does not run.
    Disabled,
}

impl Desired {
    /// The word in lists and files.
    pub fn word(self) -> &'static str {
        match self {
            Desired::Enabled => "enabled",
            Desired::Disabled => "disabled",
        }
    }

    /// What this word says.
    pub fn parse(word: &str) -> Option<Desired> {
        [Desired::Enabled, Desired::Disabled].into_iter().find(|desired| desired.word() == word)
    }
}

/// What a stopping plugin stops for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Then {
    /// Nothing follows.
    Stop,
    /// It is started again.
    Restart,
    /// The next version waits for its state.
    HandOver,
    /// It is no longer trusted.
    Untrust,
}

/// Where a plugin is in its life.
#[derive(Debug, Clone, PartialEq)]
pub enum State {
    /// Nobody vouches for it; nothing of it runs.
    Untrusted,
    /// It could run, and nobody wants it to.
    Available,
    /// A runner was started; walls, library and registration are under way.
    Loading,
    /// `on_load` runs.
    Initializing,
    /// Takes calls.
    Ready,
    /// Takes calls, but does not say that it is well.
    Degraded,
    /// Asked to end; finishing.
    Stopping {
        /// What for.
        then: Then,
    },
    /// Ended because somebody wanted it.
    Stopped,
    /// Waits for its next start.
    Backoff {
        /// When.
        until: Instant,
    },
    /// Given up: for good, or until one more try.
    Failed {
        /// When one start will be tried; `None` waits for an operator.
        probe: Option<Instant>,
    },
}

impl State {
    /// The word in lists.
    pub fn word(&self) -> &'static str {
        match self {
            State::Untrusted => "Untrusted",
            State::Available => "Available",
            State::Loading => "Loading",
            State::Initializing => "Initializing",
            State::Ready => "Ready",
            State::Degraded => "Degraded",
            State::Stopping { .. } => "Stopping",
            State::Stopped => "Stopped",
            State::Backoff { .. } => "Backoff",
            State::Failed { .. } => "Failed",
        }
    }

    /// True while it takes calls.
    pub fn serves(&self) -> bool {
        matches!(self, State::Ready | State::Degraded)
    }

    /// True while a start is under way.
    pub fn starts(&self) -> bool {
        matches!(self, State::Loading | State::Initializing)
    }

    /// True while there is a process that the plugin's life depends on.
    pub fn has_process(&self) -> bool {
        match self {
            State::Loading
            | State::Initializing
            | State::Ready
            | State::Degraded
            | State::Stopping { .. } => true,
            State::Untrusted
            | State::Available
            | State::Stopped
            | State::Backoff { .. }
            | State::Failed { .. } => false,
        }
    }
}
