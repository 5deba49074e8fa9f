//! Records of refusals on their way to the node. A plugin that is refused a million times a second costs itself time and the
//! node a bounded number of records: what is beyond that is counted, and told at the latest a second later.

use nix::fcntl::{fcntl, FcntlArg, OFlag};
use nix::poll::{poll, PollFd, PollFlags};
use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};
use thenodes_ipc::report::{Denial, DENIAL, ENDED, MAX_RECORD, RECORDS_PER_SECOND};
use thenodes_ipc::{pack, Frame};

/// How long the last record may wait for a node that does not read, milliseconds.
const LAST_WAIT: u16 = 200;
/// Kinds that are counted one by one; there are fewer system calls.
const MAX_KINDS: usize = 1024;

/// The pipe, and what could not be told yet.
pub(crate) struct Records {
    pipe: OwnedFd,
    second: Instant,
    left: u32,
    /// By system call: how many were only counted, and the last that was told, which they are told like.
    kinds: BTreeMap<i64, (u64, Option<Denial>)>,
}

impl Records {
    /// Over this pipe.
    pub(crate) fn new(pipe: OwnedFd) -> Records {
        // A node that does not read must not stop us: a full pipe is a reason to count.
        let _ = fcntl(&pipe, FcntlArg::F_SETFL(OFlag::O_NONBLOCK));
        Records { pipe, second: Instant::now(), left: RECORDS_PER_SECOND, kinds: BTreeMap::new() }
    }

    /// True if a record of this kind would be sent now, or is the first of its kind, which is worth its words in any case.
    pub(crate) fn would_tell(&mut self, kind: i64) -> bool {
        if self.second.elapsed() >= Duration::from_secs(1) {
            self.second = Instant::now();
            self.left = RECORDS_PER_SECOND;
        }
        self.left > 0 || !self.kinds.contains_key(&kind)
    }

    /// Tells it, with those of its kind that were only counted, or counts it too.
    pub(crate) fn add(&mut self, kind: i64, denial: Denial) {
        let counted = self.kinds.get(&kind).map_or(0, |(count, _)| *count);
        let whole = Denial { count: counted + denial.count, ..denial };
        // The first of its kind is told even in a flood: there are fewer kinds than system calls.
        let told = (self.left > 0 || !self.kinds.contains_key(&kind)) && self.write(&whole);
        self.left = self.left.saturating_sub(1);
        if self.kinds.len() < MAX_KINDS || self.kinds.contains_key(&kind) {
            let count = if told { 0 } else { whole.count };
            self.kinds.insert(kind, (count, Some(Denial { count: 1, ..whole })));
        }
    }

    /// True while something was counted and not told.
    pub(crate) fn owes(&self) -> bool {
        self.kinds.values().any(|(count, _)| *count > 0)
    }

    /// Counts one more of a kind.
    pub(crate) fn count(&mut self, kind: i64) {
        if let Some((count, _)) = self.kinds.get_mut(&kind) {
            *count = count.saturating_add(1);
        }
    }

    /// Tells what was counted, as far as the pipe takes it.
    pub(crate) fn flush(&mut self) {
        let mut kinds = std::mem::take(&mut self.kinds);
        for (count, denial) in kinds.values_mut() {
            if let (true, Some(denial)) = (*count > 0, &denial) {
                if self.write(&Denial { count: *count, ..denial.clone() }) {
                    *count = 0;
                }
            }
        }
        self.kinds = kinds;
    }

    /// The record of an end: after everything else, and with some patience.
    pub(crate) fn last(&mut self, denial: Denial) {
        self.flush();
        if !self.write(&denial) {
            let _ = poll(&mut [PollFd::new(self.pipe.as_fd(), PollFlags::POLLOUT)], LAST_WAIT);
            self.write(&denial);
        }
    }

    /// The wait status of the plugin's process, behind all records that the pipe takes. A node that does not read learns it from ours.
    pub(crate) fn ended(&mut self, status: i32) {
        self.flush();
        if let Ok(body) = pack::encode(&status) {
            self.put(ENDED, &body);
        }
    }

    fn write(&self, denial: &Denial) -> bool {
        pack::encode(denial).is_ok_and(|body| self.put(DENIAL, &body))
    }

    /// Writes all of it or nothing: a record is smaller than what a pipe takes at once.
    fn put(&self, step: &str, body: &[u8]) -> bool {
        const { assert!(MAX_RECORD <= 4096, "POSIX: larger writes may be cut") };
        let mut frame = Vec::new();
        Frame::Launch { step, body }.encode(&mut frame, MAX_RECORD).is_ok()
            && frame.len() <= MAX_RECORD
            && nix::unistd::write(&self.pipe, &frame) == Ok(frame.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use thenodes_ipc::report::{Phase, Verdict};

    fn denial() -> Denial {
        Denial {
            verdict: Verdict::Failed(2),
            phase: Phase::Serve,
            layer: "root".into(),
            syscall: "openat".into(),
            arguments: "x".repeat(500),
            at: String::new(),
            thread: 1,
            count: 1,
        }
    }

    #[test]
    fn a_flood_of_refusals_is_counted_and_loses_nothing() {
        let (out, into) = nix::unistd::pipe().expect("a pipe");
        let mut records = Records::new(into);
        for _ in 0..100_000 {
            if records.would_tell(257) {
                records.add(257, denial());
            } else {
                records.count(257);
            }
        }
        records.last(Denial { verdict: Verdict::Killed, ..denial() });
        drop(records);
        let mut decoder = thenodes_ipc::FrameDecoder::new(MAX_RECORD);
        let mut bytes = Vec::new();
        std::io::Read::read_to_end(&mut std::fs::File::from(out), &mut bytes).expect("read");
        assert!(bytes.len() < 128 * 1024, "{} bytes", bytes.len());
        decoder.push(&bytes);
        let (mut told, mut counted) = (0, 0);
        let mut last = None;
        while let Some(Frame::Launch { body, .. }) = decoder.next().expect("whole frames") {
            let denial: Denial = pack::decode(body).expect("a record");
            told += 1;
            counted += denial.count;
            last = Some(denial);
        }
        assert_eq!(counted, 100_001);
        // The machine may have been slow: a new second allows as many again.
        assert!(told <= 10 * RECORDS_PER_SECOND, "{told} records");
        assert_eq!(last.map(|last| last.verdict), Some(Verdict::Killed));
    }

    #[test]
    fn what_a_full_pipe_did_not_take_is_owed_and_told_with_its_number_once_it_does() {
        let (out, into) = nix::unistd::pipe().expect("a pipe");
        let mut records = Records::new(into);
        // The node does not read: more kinds than the pipe takes, so that some firsts are not told either.
        let full = (0..600).find(|kind| {
            records.add(*kind, denial());
            records.owes()
        });
        let owed = full.expect("a pipe is full at some point");
        for _ in 0..41 {
            records.count(owed);
        }
        records.flush();
        assert!(records.owes(), "nobody has read yet, so nothing may be forgotten");
        let mut decoder = thenodes_ipc::FrameDecoder::new(MAX_RECORD);
        let mut counted = 0;
        let mut read = |decoder: &mut thenodes_ipc::FrameDecoder| {
            let mut bytes = [0; 65_536];
            let got = nix::unistd::read(&out, &mut bytes).expect("there is something");
            decoder.push(&bytes[..got]);
            while let Some(Frame::Launch { body, .. }) = decoder.next().expect("whole frames") {
                counted += pack::decode::<Denial>(body).expect("a record").count;
            }
        };
        read(&mut decoder);
        records.flush();
        assert!(!records.owes());
        read(&mut decoder);
        assert_eq!(counted, u64::try_from(owed).expect("small") + 1 + 41);
    }
}
