//! What a warden tells the node about its plugin: one record for each thing that a wall refused. It travels over a pipe
//! of its own, from processes that never map the plugin's library, so the plugin cannot write it; but texts in it may come
//! from the plugin's memory, and the node treats them as such.
//!
//! On the pipe a record is a [`Frame::Launch`](crate::Frame) with step [`DENIAL`] and a [`Denial`] as body. When the plugin's
//! process has ended, one with step [`ENDED`] and its wait status (an integer, as `wait` gives it) comes before the rest of the
//! tree is buried, which takes the kernel longer than dying took the plugin.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Step of a record.
pub const DENIAL: &str = "denial";
/// Step of the wait status. Records that a full pipe did not take before may follow it.
pub const ENDED: &str = "ended";
/// Most records a warden sends in a second; more are counted and told with the next one.
pub const RECORDS_PER_SECOND: u32 = 50;
/// Longest text of decoded arguments, bytes.
pub const MAX_ARGUMENTS: usize = 512;
/// Largest record on the pipe, bytes.
pub const MAX_RECORD: usize = 4096;

/// What was done about an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// The call failed with this error number; the plugin goes on.
    Failed(i32),
    /// The process was ended.
    Killed,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Verdict::Failed(number) => write!(f, "failed with error {number}"),
            Verdict::Killed => f.write_str("killed"),
        }
    }
}

/// How far a runner says it has come. From `constructor` on it is the plugin's own word: a hostile library may claim a later
/// phase than the one it is in, and gains nothing by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Our own code, putting up walls and trying them.
    Confine,
    /// The library is being opened: its constructors run.
    Constructor,
    /// `register_plugin` runs.
    Register,
    /// The second filter is in force; calls are served.
    Serve,
}

impl Phase {
    /// All, in order; the place in this list is the number by which a runner names a phase.
    pub const ALL: [Phase; 4] = [Phase::Confine, Phase::Constructor, Phase::Register, Phase::Serve];

    /// The word.
    pub fn word(self) -> &'static str {
        match self {
            Phase::Confine => "confine",
            Phase::Constructor => "constructor",
            Phase::Register => "register",
            Phase::Serve => "serve",
        }
    }
}

/// One attempt that a wall refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Denial {
    /// What was done about it.
    pub verdict: Verdict,
    /// When.
    pub phase: Phase,
    /// `seccomp`, `root` (a path that does not exist inside), `grant` (a path under a grant that does not allow this).
    pub layer: String,
    /// Name of the system call, or its number in words.
    pub syscall: String,
    /// Arguments, decoded as far as they are known; text from the plugin's memory is escaped.
    pub arguments: String,
    /// Library and offset of the instruction that made the call, `plugin.so+0x1f3a`; empty if the kernel did not say.
    pub at: String,
    /// Thread within the plugin's pid namespace is not known outside; this is the kernel's number on the host.
    pub thread: u32,
    /// Like this one, since the last record of its kind: 1 for the first.
    pub count: u64,
}

impl fmt::Display for Denial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}({}) in phase {}", self.syscall, self.arguments, self.phase.word())?;
        if !self.at.is_empty() {
            write!(f, " at {}", self.at)?;
        }
        write!(f, ": {} by {}", self.verdict, self.layer)?;
        if self.count > 1 {
            write!(f, " ({} times)", self.count)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pack;

    #[test]
    fn a_record_survives_the_pipe_and_reads_as_a_sentence() {
        let denial = Denial {
            verdict: Verdict::Killed,
            phase: Phase::Constructor,
            layer: "seccomp".into(),
            syscall: "socket".into(),
            arguments: "AF_INET, 1, 0".into(),
            at: "plugin.so+0x10".into(),
            thread: 7,
            count: 1,
        };
        let packed = pack::encode(&denial).expect("encodes");
        assert_eq!(pack::decode::<Denial>(&packed).as_ref(), Ok(&denial));
        let text = denial.to_string();
        assert_eq!(text, "socket(AF_INET, 1, 0) in phase constructor at plugin.so+0x10: killed by seccomp");
        let failed = Denial { verdict: Verdict::Failed(13), ..denial };
        assert_eq!(pack::decode::<Denial>(&pack::encode(&failed).expect("encodes")), Ok(failed));
    }
}
