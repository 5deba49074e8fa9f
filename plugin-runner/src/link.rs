//! The runner's end of the link: blocking reads and writes on one socket. The node on the other side is trusted, but may
//! be older, newer, or gone.

use crate::sys;
use nix::sys::socket::{recvmsg, ControlMessageOwned, MsgFlags, UnixAddr};
use std::io::{self, IoSliceMut, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use thenodes_ipc::launch::NodeHello;
use thenodes_ipc::{limits, pack, Frame, FrameDecoder};

/// The first frame and what came with it.
pub(crate) struct Received {
    pub(crate) hello: NodeHello,
    /// Where the warden tells the node what was refused.
    pub(crate) report: OwnedFd,
    /// The library and then what it needs, in the order of `hello.needed`; empty for a probe.
    pub(crate) files: Vec<OwnedFd>,
}

pub(crate) struct Link {
    stream: UnixStream,
    decoder: FrameDecoder,
    cap: usize,
}

impl Link {
    /// The socket that the node placed as standard input.
    pub(crate) fn from_stdin() -> io::Result<Self> {
        let fd = sys::adopt(libc::STDIN_FILENO).ok_or(io::ErrorKind::NotFound)?;
        let stream = UnixStream::from(fd);
        stream.peer_addr()?; // fails for anything that is no Unix socket
        Ok(Self { stream, decoder: FrameDecoder::new(limits::MAX_FRAME), cap: limits::MAX_FRAME })
    }

    pub(crate) fn raw_fd(&self) -> RawFd {
        self.stream.as_raw_fd()
    }

    /// Goes on with another descriptor of the same socket; the old one is closed by whoever laid the new one out.
    pub(crate) fn replace(&mut self, fd: OwnedFd) {
        std::mem::forget(std::mem::replace(&mut self.stream, UnixStream::from(fd)));
    }

    pub(crate) fn set_cap(&mut self, cap: usize) {
        self.cap = cap.min(limits::MAX_FRAME);
        self.decoder.set_cap(cap);
    }

    pub(crate) fn cap(&self) -> usize {
        self.cap
    }

    /// A second handle for writing, while this one reads.
    pub(crate) fn writer(&self) -> io::Result<UnixStream> {
        self.stream.try_clone()
    }

    /// Reads `hello` and its descriptors. Fails after five seconds without them.
    pub(crate) fn receive_hello(&mut self) -> Result<Received, String> {
        self.stream.set_read_timeout(Some(limits::CONFINE_DEADLINE)).map_err(|e| e.to_string())?;
        let mut files = Vec::new();
        let mut buffer = vec![0; 16 * 1024];
        loop {
            let count = {
                let mut space = nix::cmsg_space!([RawFd; limits::MAX_NEEDED_LIBRARIES + 2]);
                let mut parts = [IoSliceMut::new(&mut buffer)];
                let flags = MsgFlags::MSG_CMSG_CLOEXEC;
                let message =
                    recvmsg::<UnixAddr>(self.stream.as_raw_fd(), &mut parts, Some(&mut space), flags)
                        .map_err(|e| format!("reading hello: {e}"))?;
                for control in message.cmsgs().map_err(|e| format!("reading hello: {e}"))? {
                    if let ControlMessageOwned::ScmRights(fds) = control {
                        files.extend(fds.into_iter().filter_map(sys::adopt));
                    }
                }
                message.bytes
            };
            if count == 0 {
                return Err("the node closed the link before hello".into());
            }
            self.decoder.push(&buffer[..count]);
            match self.decoder.next().map_err(|e| e.to_string())? {
                None => {}
                Some(Frame::Launch { step: "hello", body }) => {
                    let hello: NodeHello = pack::decode(body).map_err(|e| format!("hello: {e}"))?;
                    let expected = match hello.library_size {
                        0 => 1,
                        _ => 2 + hello.needed.len(),
                    };
                    if files.len() != expected {
                        return Err(format!(
                            "hello came with {} descriptors instead of {expected}",
                            files.len()
                        ));
                    }
                    self.stream.set_read_timeout(None).map_err(|e| e.to_string())?;
                    let mut files = files.into_iter();
                    let report = files.next().ok_or("hello came without the report pipe")?;
                    return Ok(Received { hello, report, files: files.collect() });
                }
                Some(_) => return Err("the first frame is not hello".into()),
            }
        }
    }

    /// Sends a step of the start-up exchange.
    pub(crate) fn send_step<T: serde_like::Body>(&mut self, step: &str, body: &T) -> Result<(), String> {
        let body = body.packed()?;
        let mut out = Vec::new();
        Frame::Launch { step, body: &body }.encode(&mut out, self.cap).map_err(|e| e.to_string())?;
        self.stream.write_all(&out).map_err(|e| format!("sending {step}: {e}"))
    }

    /// Waits for a step that has no body.
    pub(crate) fn wait_for(&mut self, step: &str) -> Result<(), String> {
        loop {
            match self.decoder.next().map_err(|e| e.to_string())? {
                Some(Frame::Launch { step: got, .. }) if got == step => return Ok(()),
                Some(_) => return Err(format!("a frame came before {step}")),
                None => {}
            }
            if !self.fill().map_err(|e| e.to_string())? {
                return Err(format!("the node closed the link before {step}"));
            }
        }
    }

    /// Waits for bytes. False at the end of the link.
    pub(crate) fn fill(&mut self) -> io::Result<bool> {
        let mut buffer = [0; 16 * 1024];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => return Ok(false),
                Ok(count) => {
                    self.decoder.push(&buffer[..count]);
                    return Ok(true);
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }

    /// Hands each whole frame that has arrived to `take`.
    pub(crate) fn drain(&mut self, mut take: impl FnMut(Frame<'_>)) -> Result<(), thenodes_ipc::FrameError> {
        while let Some(frame) = self.decoder.next()? {
            take(frame);
        }
        Ok(())
    }
}

/// The bodies that a runner sends during start-up.
pub(crate) mod serde_like {
    use thenodes_ipc::launch::{Confinement, Refusal, Registration, RunnerHello};
    use thenodes_ipc::pack;

    /// A body of a start-up step.
    pub(crate) trait Body {
        fn packed(&self) -> Result<Vec<u8>, String>;
    }

    macro_rules! bodies {
        ($($name:ty),*) => {$(
            impl Body for $name {
                fn packed(&self) -> Result<Vec<u8>, String> {
                    pack::encode(self).map_err(|e| e.to_string())
                }
            }
        )*};
    }
    bodies!(Confinement, Refusal, Registration, RunnerHello);
}
