//! What one process leaves to the next: bytes that the node keeps in memory and does not look at. Bounded, given only to the same
//! plugin, and only to a process that starts; a state that killed its reader is not given to that version again.

use super::process::News;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use thenodes::host::{Bytes, HostError, Response};
use thenodes_ipc::{limits, Code, Generation};
use tokio::sync::{mpsc, oneshot, OnceCell};

/// Where a process is, as far as states go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// `on_load` may ask.
    Starting,
    /// Neither.
    Serving,
    /// `on_stop` may leave.
    Stopping,
}

struct Pieces {
    phase: Phase,
    bytes: Vec<u8>,
    whole: bool,
}

/// The state at one process: what it reads and what it writes.
pub(super) struct StateDesk {
    pieces: Mutex<Pieces>,
    read: OnceCell<Option<Arc<[u8]>>>,
    supervisor: mpsc::Sender<(Generation, News)>,
    generation: Generation,
}

fn refused(code: Code, text: impl Into<String>) -> HostError {
    HostError::new(code, text)
}

impl StateDesk {
    pub(super) fn new(generation: Generation, supervisor: mpsc::Sender<(Generation, News)>) -> Self {
        let pieces = Pieces { phase: Phase::Starting, bytes: Vec::new(), whole: false };
        Self { pieces: Mutex::new(pieces), read: OnceCell::new(), supervisor, generation }
    }

    fn pieces(&self) -> MutexGuard<'_, Pieces> {
        self.pieces.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn enter(&self, phase: Phase) {
        self.pieces().phase = phase;
    }

    /// Takes a piece.
    pub(super) fn leave(&self, offset: u64, bytes: &[u8], last: bool) -> Result<Response, HostError> {
        let mut pieces = self.pieces();
        if pieces.phase != Phase::Stopping || pieces.whole {
            return Err(refused(Code::Conflict, "a state is left once, in on_stop"));
        }
        if bytes.len() > limits::MAX_STATE_CHUNK {
            let text = format!("a piece of {} bytes; at most {}", bytes.len(), limits::MAX_STATE_CHUNK);
            return Err(refused(Code::InvalidInput, text));
        }
        let at = u64::try_from(pieces.bytes.len()).unwrap_or(u64::MAX);
        if offset != at {
            let text = format!("a piece at {offset}, but {at} bytes have come; pieces come in order");
            return Err(refused(Code::InvalidInput, text));
        }
        if pieces.bytes.len() + bytes.len() > limits::MAX_STATE {
            let text =
                format!("a state of more than {} bytes; keep what is large in files", limits::MAX_STATE);
            return Err(refused(Code::ResourceExhausted, text));
        }
        pieces.bytes.extend_from_slice(bytes);
        pieces.whole = last;
        Ok(Response::Done(pieces.bytes.len() as u64))
    }

    /// What was left, if it is whole: half a state is none.
    pub(super) fn take(&self) -> Option<Arc<[u8]>> {
        let mut pieces = self.pieces();
        let bytes = std::mem::take(&mut pieces.bytes);
        (pieces.whole && !bytes.is_empty()).then(|| bytes.into())
    }

    /// Gives a piece of what the process before left. The first question may take a while: the process before may have to stop.
    pub(super) async fn left(&self, offset: u64) -> Result<Response, HostError> {
        if self.pieces().phase != Phase::Starting {
            return Err(refused(Code::Conflict, "what was left can be had in on_load only"));
        }
        let state = self
            .read
            .get_or_init(|| async {
                let (give, given) = oneshot::channel();
                let _ = self.supervisor.send((self.generation, News::WantsState(give))).await;
                given.await.ok().flatten()
            })
            .await;
        let Some(state) = state else { return Ok(Response::Bytes(Bytes(Vec::new()))) };
        let from = usize::try_from(offset).unwrap_or(usize::MAX).min(state.len());
        let to = state.len().min(from.saturating_add(limits::MAX_STATE_CHUNK));
        Ok(Response::Bytes(Bytes(state[from..to].to_vec())))
    }
}

/// What the node keeps between two processes of a plugin.
#[derive(Default)]
pub(super) struct Kept {
    bytes: Option<Arc<[u8]>>,
    /// Who has asked for it and is not Ready yet: process and content of its version.
    reader: Option<(Generation, String)>,
    /// Versions that died with it.
    deadly_for: Vec<String>,
}

impl Kept {
    /// A process left this, or nothing.
    pub(super) fn put(&mut self, bytes: Option<Arc<[u8]>>) {
        *self = Kept { bytes, ..Kept::default() };
    }

    /// For a process that starts.
    pub(super) fn give(&mut self, generation: Generation, sha256: &str) -> Option<Arc<[u8]>> {
        if self.deadly_for.iter().any(|version| version == sha256) {
            return None;
        }
        self.reader = Some((generation, sha256.to_owned()));
        self.bytes.clone()
    }

    /// A process is Ready: what was left before is taken over, or nobody wanted it.
    pub(super) fn taken(&mut self) {
        *self = Kept::default();
    }

    /// A process died before it was Ready.
    pub(super) fn died(&mut self, generation: Generation) {
        if self.reader.as_ref().is_some_and(|(reader, _)| *reader == generation) {
            // At most two versions start after each other between two that are Ready.
            self.deadly_for.extend(self.reader.take().map(|(_, version)| version));
            self.deadly_for.truncate(8);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn desk() -> StateDesk {
        StateDesk::new(Generation(1), mpsc::channel(1).0)
    }

    fn code(result: Result<Response, HostError>) -> Option<Code> {
        result.err().map(|error| error.code)
    }

    #[test]
    fn a_state_comes_in_order_in_bounded_pieces_and_only_while_stopping() {
        let desk = desk();
        assert_eq!(code(desk.leave(0, b"x", true)), Some(Code::Conflict));
        desk.enter(Phase::Stopping);
        let piece = vec![1; limits::MAX_STATE_CHUNK];
        assert_eq!(code(desk.leave(0, &[&piece[..], b"x"].concat(), false)), Some(Code::InvalidInput));
        for n in 0..4 {
            assert_eq!(code(desk.leave(n * piece.len() as u64, &piece, false)), None);
        }
        assert_eq!(code(desk.leave(limits::MAX_STATE as u64, b"x", true)), Some(Code::ResourceExhausted));
        assert_eq!(code(desk.leave(5, b"", true)), Some(Code::InvalidInput));
        assert_eq!(code(desk.leave(limits::MAX_STATE as u64, b"", true)), None);
        assert_eq!(code(desk.leave(limits::MAX_STATE as u64, b"", true)), Some(Code::Conflict));
        assert_eq!(desk.take().map(|state| state.len()), Some(limits::MAX_STATE));
    }

    #[test]
    fn half_a_state_is_none() {
        let desk = desk();
        desk.enter(Phase::Stopping);
        assert_eq!(code(desk.leave(0, b"half", false)), None);
        assert_eq!(desk.take(), None);
    }

    #[test]
    fn a_state_that_killed_its_reader_is_not_given_to_it_again_but_to_the_one_it_rolls_back_to() {
        let mut kept = Kept::default();
        kept.put(Some(Arc::from(*b"state")));
        assert!(kept.give(Generation(2), "new").is_some());
        kept.died(Generation(2));
        assert!(kept.give(Generation(3), "new").is_none());
        assert!(kept.give(Generation(4), "old").is_some());
        kept.taken();
        assert!(kept.give(Generation(5), "old").is_none(), "it is given over once");
    }
}
