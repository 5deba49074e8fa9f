//! Starts the janitor: the one process that outlives a killed node by a moment and removes its leaves. It is the runner program
//! with an argument, not this program: an embedder's program is not ours to start a second time.
//!
//! It is trusted as much as the runner program is before it opens a library. If there is none, leaves stay until the next
//! node's sweep, and that is all that is lost; so every failure is told and none stops a plugin.

use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use thenodes_ipc::janitor::{Cleanup, ARGUMENT, MAX_LIST};
use thenodes_ipc::pack;

/// How often one is started, should somebody end it.
const MAX_STARTS: u32 = 3;
/// It says that it watches within some milliseconds, or it has ended.
const PATIENCE_MS: u16 = 5000;

/// At most one janitor.
#[derive(Debug, Default)]
pub(super) struct Janitor(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    child: Option<Child>,
    starts: u32,
}

impl Janitor {
    /// Sees to it that there is one, and says what went wrong, each thing once. Blocks while one starts.
    pub(super) fn ensure(&self, runner: &Path, list: &Cleanup) -> Result<(), String> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let ended = match state.child.as_mut().map(Child::try_wait) {
            Some(Ok(None)) => return Ok(()),
            Some(Ok(Some(status))) => Some(status.to_string()),
            Some(Err(error)) => Some(error.to_string()),
            None => None,
        };
        state.child = None;
        if state.starts < MAX_STARTS {
            state.starts += 1;
            let child = start(runner, list)
                .map_err(|why| format!("starting the janitor, {} {ARGUMENT}: {why}", runner.display()))?;
            state.child = Some(child);
        }
        match ended {
            None => Ok(()),
            Some(how) if state.child.is_some() => {
                Err(format!("the janitor has ended ({how}); there is a new one"))
            }
            Some(how) => Err(format!("the janitor has ended again ({how}) and is not started any more")),
        }
    }
}

fn start(runner: &Path, list: &Cleanup) -> Result<Child, String> {
    let bytes = pack::encode(list).map_err(|e| e.to_string())?;
    if bytes.len() > MAX_LIST {
        return Err(format!("the names of the directories take more than {MAX_LIST} bytes"));
    }
    // Nothing of the node goes with it: no environment, no directory, no terminal, no log.
    let mut command = Command::new(runner);
    command.arg(ARGUMENT).env_clear().current_dir("/");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().map_err(|e| e.to_string())?;
    let done = tell(&mut child, &bytes);
    if done.is_err() {
        let _ = child.kill();
        let _ = child.wait();
    }
    done.map(|()| child)
}

/// Hands the list over and hears that the node is being watched.
fn tell(child: &mut Child, list: &[u8]) -> Result<(), String> {
    let pipes = child.stdin.take().zip(child.stdout.take());
    let (mut stdin, mut stdout) = pipes.ok_or("it has no pipes")?;
    stdin.write_all(list).map_err(|e| format!("writing the list: {e}"))?;
    drop(stdin); // the end of the list
    let ready = poll(&mut [PollFd::new(stdout.as_fd(), PollFlags::POLLIN)], PollTimeout::from(PATIENCE_MS));
    if ready.is_ok_and(|ready| ready > 0) && stdout.read_exact(&mut [0]).is_ok() {
        return Ok(());
    }
    let how =
        child.try_wait().ok().flatten().map_or("without an end".to_owned(), |status| status.to_string());
    Err(format!("it did not say that it watches this node ({how}); is it of this release?"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list() -> Cleanup {
        Cleanup { node_pid: 1, prefix: "thenodes-1-1-1.".into(), parents: Vec::new() }
    }

    #[test]
    fn what_is_no_janitor_is_told_and_not_tried_for_ever() {
        let janitor = Janitor::default();
        let nothing = janitor.ensure("/nowhere/runner".as_ref(), &list()).expect_err("no program");
        assert!(nothing.contains("/nowhere/runner --janitor"), "{nothing}");
        for _ in 1..MAX_STARTS {
            let other = janitor.ensure("/bin/true".as_ref(), &list()).expect_err("no janitor");
            assert!(other.contains("starting the janitor"), "{other}");
        }
        assert_eq!(janitor.ensure("/bin/true".as_ref(), &list()), Ok(()), "told often enough");
    }
}
