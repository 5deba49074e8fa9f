//! The attack suite: every probe of the hostile plugin against a real runner, in each phase of its life, beside the same probe
//! without walls. [`run`] makes one attempt, [`report`] turns attempts into a table, a JSON object and a verdict. [`matrix`] does it
//! again with walls taken away, [`bwrap`] under another sandbox, and [`page`] writes down what came of it.

pub mod bwrap;
pub mod control;
pub mod matrix;
pub mod page;
pub mod report;
pub mod run;
pub mod table;

use std::fmt;

/// When a probe is tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Phase {
    /// The library's constructor: before any of our code has seen the plugin.
    Constructor,
    /// `register_plugin`.
    Register,
    /// `on_message`, behind the second filter.
    Message,
    /// A thread that `on_load` started.
    Thread,
}

impl Phase {
    /// All of them.
    pub const ALL: [Phase; 4] = [Phase::Constructor, Phase::Register, Phase::Message, Phase::Thread];

    /// The word in the hostile plugin's switch.
    pub fn word(self) -> &'static str {
        match self {
            Phase::Constructor => "constructor",
            Phase::Register => "register",
            Phase::Message => "message",
            Phase::Thread => "thread",
        }
    }
}

/// What became of an attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It worked: a hole.
    Through(String),
    /// The plugin was told no, and lived.
    Refused(String),
    /// A wall ended the process.
    Killed,
    /// It ended in another way, without having got through.
    Ended(String),
    /// Nothing was heard in time: the attempt proves nothing.
    Silent(String),
}

impl Verdict {
    /// True if nothing got through, and that is known.
    pub fn held(&self) -> bool {
        matches!(self, Verdict::Refused(_) | Verdict::Killed | Verdict::Ended(_))
    }

    /// One word for tables.
    pub fn word(&self) -> &'static str {
        match self {
            Verdict::Through(_) => "THROUGH",
            Verdict::Refused(_) => "refused",
            Verdict::Killed => "killed",
            Verdict::Ended(_) => "ended",
            Verdict::Silent(_) => "SILENT",
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Verdict::Killed => f.write_str("killed"),
            Verdict::Through(text)
            | Verdict::Refused(text)
            | Verdict::Ended(text)
            | Verdict::Silent(text) => {
                write!(f, "{}: {text}", self.word())
            }
        }
    }
}

/// An attempt and what it left.
#[derive(Debug, Clone)]
pub struct Attempt {
    /// Name of the probe.
    pub probe: &'static str,
    /// When.
    pub phase: Phase,
    /// What became of it.
    pub verdict: Verdict,
    /// The first record of a refusal that the node received, if any.
    pub record: Option<String>,
}
