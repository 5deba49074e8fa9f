//! The outermost process: leaves the node's uid and namespaces, then watches and answers. It never maps the library, so what
//! it says about the plugin's refusals and end is true, and it ends the plugin when the node is gone, however the node ended.

use crate::broker::{Broker, Memory, Records, Then};
use crate::confine::namespaces::{self, Ahead};
use crate::confine::root::{Root, Sources};
use crate::confine::{landlock, privileges, Walls};
use crate::link::{Link, Received};
use crate::selftest;
use crate::stub::Term;
use crate::sys;
use nix::errno::Errno;
use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
use nix::sys::signal::{kill, Signal};
use nix::sys::socket::{
    recvmsg, socketpair, AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr,
};
use nix::unistd::{getppid, pipe2, read, write, ForkResult, Pid};
use std::fs::File;
use std::io::IoSliceMut;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use thenodes_ipc::launch::NodeHello;

/// So many questions, far more than a start has, make the warden as nice as its plugin: answering them costs the plugin then, and
/// not the node. Before that it is not, and the stub never is: the node waits for their word when the plugin dies.
const MANY_QUESTIONS: u32 = 256;

/// Who this process is after [`detach`].
pub(crate) enum Role {
    Warden(Box<Watch>),
    Stub(Leash),
}

/// What the warden holds.
pub(crate) struct Watch {
    node: OwnedFd,
    stub: Pid,
    /// Four bytes come out of it: the wait status of the runner, as the stub saw it.
    verdict: OwnedFd,
    /// Closing it, which the kernel does when the warden ends, tells the stub to end.
    _leash: OwnedFd,
    /// Where the runner hands over what the broker needs.
    confidence: OwnedFd,
    broker: Broker,
}

/// What stub and runner hold of their warden.
pub(crate) struct Leash {
    /// Hangs up when the warden is gone.
    pub(crate) hangup: OwnedFd,
    /// Tells that the node is gone, to whom the warden cannot: it may wait for a file system that does not answer.
    pub(crate) node: OwnedFd,
    /// Where the runner's wait status goes.
    pub(crate) verdict: OwnedFd,
    /// `/dev/null`, opened while there is a `/dev`.
    pub(crate) null: OwnedFd,
    /// The host's `/proc`, for the runner's view of itself; closed before anything of the plugin is opened.
    pub(crate) proc: OwnedFd,
    /// Where the runner hands over what the broker needs.
    pub(crate) confidence: OwnedFd,
    /// What the root will hold.
    pub(crate) sources: Sources,
}

/// Leaves uid and namespaces, and forks the stub into the new pid namespace.
pub(crate) fn detach(
    received: Received,
    ahead: Ahead,
    walls: &mut Walls,
) -> Result<(NodeHello, Role), String> {
    let Received { hello, report, files } = received;
    let parent = getppid();
    if parent.as_raw() != hello.node_pid {
        return Err("the node that asked for this runner has gone".into());
    }
    let node = sys::pidfd_open(parent).map_err(|e| format!("watching the node: pidfd_open: {e}"))?;
    if getppid() != parent {
        return Err("the node has gone meanwhile".into());
    }
    let null = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null");
    let null = OwnedFd::from(null.map_err(|e| format!("opening /dev/null: {e}"))?);
    let directory = nix::fcntl::OFlag::O_DIRECTORY | nix::fcntl::OFlag::O_PATH | nix::fcntl::OFlag::O_CLOEXEC;
    let proc = nix::fcntl::open("/proc", directory, nix::sys::stat::Mode::empty())
        .map_err(|e| format!("opening /proc: {e}"))?;
    // The node's descriptors share one position among all runners of this plugin; these have their own. Same sealed bytes.
    let own = |fd: OwnedFd| File::open(format!("/proc/self/fd/{}", fd.as_raw_fd()));
    let files = files.into_iter().map(own).collect::<Result<Vec<File>, _>>();
    let files = files.map_err(|e| format!("taking the library over: {e}"))?;
    let pair = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC);
    let (confidence, theirs) = pair.map_err(|e| format!("socketpair: {e}"))?;
    // Where memory ends for all, plugins go first. Raising the score needs no right; without it only the order differs.
    let _ = std::fs::write("/proc/self/oom_score_adj", "1000");
    if hello.run_as.is_some() && ahead.knows_itself() {
        return Err("told to become another uid, but this runner is not root".into());
    }
    if let Some(uid) = hello.run_as {
        namespaces::become_uid(uid).map_err(|e| format!("becoming uid {uid}: {e}"))?;
    }
    // Who has a user namespace already was asked before it had one.
    if !ahead.knows_itself() {
        selftest::outside(hello.run_as, walls)?;
    }
    namespaces::leave(&hello, ahead, walls);
    let sources = Sources::open(&hello)?;
    let (hangup, leash) = pipe2(nix::fcntl::OFlag::O_CLOEXEC).map_err(|e| format!("pipe: {e}"))?;
    let (verdict_out, verdict_in) = pipe2(nix::fcntl::OFlag::O_CLOEXEC).map_err(|e| format!("pipe: {e}"))?;
    match sys::fork().map_err(|e| format!("forking the stub: {e}"))? {
        ForkResult::Child => {
            let leash = Leash { hangup, node, verdict: verdict_in, null, proc, confidence: theirs, sources };
            Ok((hello, Role::Stub(leash)))
        }
        ForkResult::Parent { child } => {
            let broker = Broker::new(&hello, files, Records::new(report));
            let watch = Watch { node, stub: child, verdict: verdict_out, _leash: leash, confidence, broker };
            Ok((hello, Role::Warden(Box::new(watch))))
        }
    }
}

impl Watch {
    /// Answers and waits until the plugin or the node has ended, and ends the same way as the plugin.
    pub(crate) fn until_the_end(mut self, link: &Link, hello: &NodeHello) -> ! {
        // Only the runner keeps link and log pipes: their end of file must mean the runner's end.
        for fd in [link.raw_fd(), 1, 2] {
            let _ = nix::unistd::close(fd);
        }
        let mut listener: Option<OwnedFd> = None;
        let mut confiding = true;
        let mut questions = 0;
        // Told to end, it passes that on; where it could not, the signal ends it, and everything with it.
        let term = Term::take();
        loop {
            let mut waiting = vec![
                PollFd::new(self.node.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.verdict.as_fd(), PollFlags::POLLIN),
            ];
            if let Some(listener) = &listener {
                waiting.push(PollFd::new(listener.as_fd(), PollFlags::POLLIN));
            }
            if confiding {
                waiting.push(PollFd::new(self.confidence.as_fd(), PollFlags::POLLIN));
            }
            let term_at = waiting.len();
            if let Some(term) = &term {
                waiting.push(PollFd::new(term.as_fd(), PollFlags::POLLIN));
            }
            let patience = if self.broker.owes() { PollTimeout::from(1000u16) } else { PollTimeout::NONE };
            match poll(&mut waiting, patience) {
                Ok(0) => {
                    self.broker.finish();
                    continue;
                }
                Ok(_) => {}
                Err(Errno::EINTR) => continue,
                // Without eyes the warden must not keep anything alive.
                Err(_) => self.end_all(),
            }
            let ready: Vec<bool> =
                waiting.iter().map(|fd| fd.revents().is_some_and(|e| !e.is_empty())).collect();
            let question =
                waiting.get(2).and_then(PollFd::revents).is_some_and(|e| e.contains(PollFlags::POLLIN));
            drop(waiting);
            let asked = listener.is_some() && question;
            if listener.is_some() && !question && ready.get(2) == Some(&true) {
                listener = None; // it hangs up when nobody is left who could ask
            }
            let confided = confiding && ready.get(term_at - 1) == Some(&true);
            if ready[0] {
                self.end_all();
            }
            if let (Some(term), Some(true)) = (&term, ready.get(term_at)) {
                term.pass_on(self.stub);
            }
            if let (true, Some(asking)) = (asked, &listener) {
                match sys::next_question(asking.as_fd()) {
                    Ok(Some(question)) => {
                        questions += 1;
                        if questions == MANY_QUESTIONS {
                            // Best effort: it changes who waits, not what may be done.
                            let _ = sys::be_nice();
                        }
                        if self.broker.serve(asking.as_fd(), &question) == Then::Kill {
                            self.kill();
                        }
                    }
                    Ok(None) => {}
                    Err(_) => listener = None, // the other descriptors tell what became of the plugin
                }
                continue; // questions first: the record of an end comes before the end
            }
            if confided {
                match self.take_confidence() {
                    Some(Confided::Memory(memory)) => {
                        // The runner exists, so the root is built: from now on this process may do no more than open what is
                        // granted. Where nothing holds it to that, it opens nothing.
                        if !confine_self(hello) {
                            self.broker.open_nothing();
                        }
                        self.broker.look_into(memory);
                    }
                    Some(Confided::Listener(fd)) => {
                        sys::answer_where_asked(fd.as_fd());
                        listener = Some(fd);
                        let _ = write(self.confidence.as_fd(), &[1]);
                    }
                    None => confiding = false,
                }
            }
            if ready[1] {
                break;
            }
        }
        let mut raw = [0; 4];
        let told = matches!(read(self.verdict.as_fd(), &mut raw), Ok(4));
        if told {
            let status = i32::from_ne_bytes(raw);
            if sys::is_death_by(status, Signal::SIGSYS) {
                self.broker.killed_unasked();
            }
            self.broker.ended(status);
        }
        // The stub's own end says why, if it could not say what became of the runner.
        let of_stub = sys::wait_any(true).ok().flatten().map_or(1 << 8, |(_, status)| status);
        let status = if told { i32::from_ne_bytes(raw) } else { of_stub };
        if !told && sys::is_death_by(status, Signal::SIGSYS) {
            self.broker.killed_unasked();
        }
        self.broker.finish();
        sys::die_as(status)
    }

    /// The node is gone, or we are blind: everything ends. The stub is process 1 of the namespace: all in it dies with it.
    fn end_all(&mut self) -> ! {
        let _ = kill(self.stub, Signal::SIGKILL);
        let _ = sys::wait_any(true);
        sys::exit_now(0)
    }

    /// A call that nobody may make: the plugin ends before it returns.
    fn kill(&mut self) -> ! {
        let _ = kill(self.stub, Signal::SIGKILL);
        let _ = sys::wait_any(true);
        sys::die_as(Signal::SIGSYS as i32)
    }

    /// Reads what the runner hands over. It is still our own code then; later there is no such socket.
    fn take_confidence(&self) -> Option<Confided> {
        let mut byte = [0];
        let mut space = nix::cmsg_space!([RawFd; 2]);
        let mut parts = [IoSliceMut::new(&mut byte)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC | MsgFlags::MSG_DONTWAIT;
        let message =
            recvmsg::<UnixAddr>(self.confidence.as_raw_fd(), &mut parts, Some(&mut space), flags).ok()?;
        let mut files = Vec::new();
        for control in message.cmsgs().ok()? {
            if let ControlMessageOwned::ScmRights(fds) = control {
                files.extend(fds.into_iter().filter_map(sys::adopt));
            }
        }
        let mut files = files.into_iter();
        match (files.next(), files.next()) {
            (Some(bytes), Some(maps)) => Some(Confided::Memory(Memory::new(bytes.into(), maps.into()))),
            (Some(listener), None) => Some(Confided::Listener(listener)),
            (None, _) => None,
        }
    }
}

enum Confided {
    Memory(Memory),
    Listener(OwnedFd),
}

/// The warden reads what a plugin writes, so it gives up what it does not need. True if it can open nothing but what is granted.
fn confine_self(hello: &NodeHello) -> bool {
    let mut walls = Walls::default();
    privileges::drop_all(&hello.plugin, &mut walls);
    landlock::restrict_to_grants(hello)
}

/// Sends the runner's view of its own memory, while it may still be opened.
pub(crate) fn hand_over_memory(leash: &Leash) -> Result<(), String> {
    use nix::sys::socket::{sendmsg, ControlMessage};
    let flags = nix::fcntl::OFlag::O_RDONLY | nix::fcntl::OFlag::O_CLOEXEC;
    let open = |name: &str| {
        nix::fcntl::openat(leash.proc.as_fd(), name, flags, nix::sys::stat::Mode::empty())
            .map_err(|e| format!("opening /proc/{name}: {e}"))
    };
    let files = [open("self/mem")?, open("self/maps")?];
    let fds = files.each_ref().map(AsRawFd::as_raw_fd);
    let parts = [std::io::IoSlice::new(&[0])];
    let rights = [ControlMessage::ScmRights(&fds)];
    sendmsg::<UnixAddr>(leash.confidence.as_raw_fd(), &parts, &rights, MsgFlags::MSG_NOSIGNAL, None)
        .map_err(|e| format!("handing memory to the broker: {e}"))?;
    Ok(())
}

/// Used by the stub before it forks the runner.
pub(crate) fn build_root(hello: &NodeHello, leash: &mut Leash, walls: &mut Walls) -> Root {
    crate::confine::root::build(hello, std::mem::take(&mut leash.sources), walls)
}
