//! What the walls of one plugin refused, as its wardens told it, and the one limit that the watchdog sees reached. Wardens are ours, but texts in a record may be the plugin's
//! (a path it asked for), so they are escaped and cut like every other text of a plugin, and everything here is bounded.

use super::usage::Sample;
use crate::text::printable;
use nix::errno::Errno;
use serde::Serialize;
use std::collections::{BTreeMap, VecDeque};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::sync::{Mutex, PoisonError};
use thenodes_ipc::launch::ProcessLimits;
use thenodes_ipc::report::{self, Denial, Phase, Verdict, MAX_ARGUMENTS, MAX_RECORD};
use thenodes_ipc::{pack, Frame, FrameDecoder, Generation};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe::Receiver;

/// Records kept of each plugin; older ones are only counted.
const KEPT: usize = 128;
/// Of these, the first of each system call that stay.
const KEPT_OF_EACH: usize = 4;
/// System calls counted by name, of each plugin; there are fewer.
const MAX_NAMES: usize = 600;
/// Bytes read at once.
const READ: usize = 4096;

/// A record with its place in the plugin's life.
#[derive(Debug, Clone, Serialize)]
pub struct Entry {
    /// Which process.
    pub generation: u32,
    /// `constructor`, `register`, `load`, `serve`; `outside` for what the watchdog saw, who does not know.
    pub phase: String,
    /// `seccomp`, `root`, `grant`, `rlimits`, `second-filter`.
    pub layer: String,
    /// The call.
    pub syscall: String,
    /// Its arguments, decoded.
    pub arguments: String,
    /// Library and offset of the instruction.
    pub at: String,
    /// Thread, as the kernel numbers it on this host.
    pub thread: u32,
    /// True if it ended the process.
    pub killed: bool,
    /// Error number that the plugin saw, if it went on.
    pub errno: Option<i32>,
    /// How many like this one.
    pub count: u64,
}

impl std::fmt::Display for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}({}) in phase {}", self.syscall, self.arguments, self.phase)?;
        if !self.at.is_empty() {
            write!(f, " at {}", self.at)?;
        }
        match self.errno {
            Some(number) => write!(f, ": refused by {} with error {number}", self.layer)?,
            None => write!(f, ": ended by {}", self.layer)?,
        }
        if self.count > 1 {
            write!(f, ", {} times", self.count)?;
        }
        Ok(())
    }
}

#[derive(Default)]
struct Book {
    first: Vec<Entry>,
    last: VecDeque<Entry>,
    by_name: BTreeMap<String, u64>,
    total: u64,
    killed: u64,
    /// The record that ended the process of this generation.
    kill: Option<Entry>,
}

/// The records of one plugin since the node began.
#[derive(Default)]
pub struct DenialBook {
    book: Mutex<Book>,
}

/// The book as operators see it.
#[derive(Debug, Clone, Serialize)]
pub struct Denials {
    /// All refusals, with those that were only counted.
    pub total: u64,
    /// Those that ended a process.
    pub killed: u64,
    /// By system call.
    pub by_syscall: BTreeMap<String, u64>,
    /// The first of each system call, in the order of their time.
    pub first: Vec<Entry>,
    /// The last ones, oldest first.
    pub last: Vec<Entry>,
}

impl DenialBook {
    fn add(&self, entry: Entry) {
        let mut book = self.book.lock().unwrap_or_else(PoisonError::into_inner);
        book.total = book.total.saturating_add(entry.count);
        if book.by_name.len() < MAX_NAMES || book.by_name.contains_key(&entry.syscall) {
            *book.by_name.entry(entry.syscall.clone()).or_default() += entry.count;
        }
        if entry.killed {
            book.killed += 1;
            book.kill = Some(entry.clone());
        }
        // A flood of dull refusals must not push the interesting one out: the first of each call stay.
        let known = book.first.iter().filter(|first| first.syscall == entry.syscall).count();
        if known < KEPT_OF_EACH && book.first.len() < KEPT {
            book.first.push(entry.clone());
        }
        if book.last.len() >= KEPT {
            book.last.pop_front();
        }
        book.last.push_back(entry);
    }

    /// Notes that a plugin has as many descriptors as it may. Whatever would give it another one fails then, by a limit that the
    /// kernel holds and of which it tells only the caller: so it is noted from outside. False if there is room.
    pub fn note_full_table(&self, generation: Generation, sample: &Sample, limits: &ProcessLimits) -> bool {
        let Some(fds) = sample.fds.filter(|fds| *fds >= limits.descriptors) else { return false };
        self.add(Entry {
            generation: generation.0,
            phase: "outside".into(),
            layer: "rlimits".into(),
            syscall: "fds".into(),
            arguments: format!("{fds} of {} open", limits.descriptors),
            at: String::new(),
            thread: 0,
            killed: false,
            errno: Some(Errno::EMFILE as i32),
            count: 1,
        });
        true
    }

    /// What ended the process of this generation, if a wall did.
    pub fn kill_of(&self, generation: Generation) -> Option<Entry> {
        let book = self.book.lock().unwrap_or_else(PoisonError::into_inner);
        book.kill.clone().filter(|kill| kill.generation == generation.0)
    }

    /// Everything.
    pub fn all(&self) -> Denials {
        let book = self.book.lock().unwrap_or_else(PoisonError::into_inner);
        Denials {
            total: book.total,
            killed: book.killed,
            by_syscall: book.by_name.clone(),
            first: book.first.clone(),
            last: book.last.iter().cloned().collect(),
        }
    }

    /// All refusals so far.
    pub fn total(&self) -> u64 {
        self.book.lock().unwrap_or_else(PoisonError::into_inner).total
    }
}

/// Reads records until the warden has ended. `loading` tells whether the plugin is in `on_load`, which its process does not know
/// by name; `tell` hears each record.
pub async fn follow(
    mut pipe: Receiver,
    generation: Generation,
    book: &DenialBook,
    loading: impl Fn() -> bool,
    mut tell: impl FnMut(&Entry),
    mut ended: impl FnMut(ExitStatus),
) {
    let mut decoder = FrameDecoder::new(MAX_RECORD);
    let mut buffer = [0; READ];
    loop {
        match decoder.next() {
            Ok(Some(Frame::Launch { step: report::ENDED, body })) => {
                if let Ok(status) = pack::decode::<i32>(body) {
                    let status = ExitStatus::from_raw(status);
                    // A wait status has more forms than ends of a process.
                    if status.code().is_some() || status.signal().is_some() {
                        ended(status);
                    }
                }
                continue;
            }
            Ok(Some(Frame::Launch { step: report::DENIAL, body })) => {
                if let Ok(denial) = pack::decode::<Denial>(body) {
                    let entry = entry(denial, generation, loading());
                    tell(&entry);
                    book.add(entry);
                }
                continue;
            }
            Ok(Some(_)) => continue, // a newer warden's news
            Ok(None) => {}
            Err(_) => return,
        }
        match pipe.read(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(count) => decoder.push(&buffer[..count]),
        }
    }
}

fn entry(denial: Denial, generation: Generation, loading: bool) -> Entry {
    let phase = if denial.phase == Phase::Serve && loading { "load" } else { denial.phase.word() };
    let (killed, errno) = match denial.verdict {
        Verdict::Killed => (true, None),
        Verdict::Failed(number) => (false, Some(number)),
    };
    Entry {
        generation: generation.0,
        phase: phase.into(),
        layer: printable(&denial.layer, 32),
        syscall: printable(&denial.syscall, 64),
        arguments: printable(&denial.arguments, MAX_ARGUMENTS),
        at: printable(&denial.at, 128),
        thread: denial.thread,
        killed,
        errno,
        count: denial.count.max(1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some(count: u64, killed: bool) -> Entry {
        let verdict = if killed { Verdict::Killed } else { Verdict::Failed(2) };
        let denial = Denial {
            verdict,
            phase: Phase::Serve,
            layer: "seccomp".into(),
            syscall: "socket".into(),
            arguments: "AF_INET\u{1b}[31m".into(),
            at: String::new(),
            thread: 3,
            count,
        };
        entry(denial, Generation(2), true)
    }

    #[test]
    fn a_book_is_bounded_and_counts_what_it_forgets() {
        let book = DenialBook::default();
        for _ in 0..1000 {
            book.add(some(3, false));
        }
        book.add(some(1, true));
        let all = book.all();
        assert_eq!((all.total, all.killed, all.last.len()), (3001, 1, KEPT));
        assert_eq!(all.by_syscall["socket"], 3001);
        assert!(book.kill_of(Generation(2)).is_some() && book.kill_of(Generation(3)).is_none());
        assert_eq!(all.last[0].phase, "load");
        assert!(!all.last[0].arguments.contains('\u{1b}'));
    }

    #[test]
    fn a_full_table_of_descriptors_is_a_record_and_one_with_room_is_none() {
        let limits =
            ProcessLimits { memory: 1 << 20, threads: 1, descriptors: 64, cpu_seconds: None, file_size: 0 };
        let sample = |fds| Sample {
            at: std::time::Instant::now(),
            memory: 0,
            cpu: std::time::Duration::ZERO,
            threads: 1,
            fds,
            throttled: 0,
            refused: 0,
            lines_dropped: 0,
            link_excess: 0,
            disk: None,
        };
        let book = DenialBook::default();
        assert!(!book.note_full_table(Generation(1), &sample(Some(63)), &limits));
        assert!(!book.note_full_table(Generation(1), &sample(None), &limits), "older kernels do not say");
        assert_eq!(book.total(), 0);
        assert!(book.note_full_table(Generation(1), &sample(Some(64)), &limits));
        let told = book.all().last.last().map(ToString::to_string).unwrap_or_default();
        assert_eq!(told, "fds(64 of 64 open) in phase outside: refused by rlimits with error 24");
    }
}
