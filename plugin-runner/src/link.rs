//! The runner's end of the link: blocking reads and writes on one socket. The node on the other side is trusted, but may
//! be older, newer, or gone.

use crate::sys;
use nix::errno::Errno;
use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
use nix::sys::socket::{recvmsg, ControlMessageOwned, MsgFlags, UnixAddr};
use std::io::{self, IoSlice, IoSliceMut, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};
use thenodes_ipc::launch::NodeHello;
use thenodes_ipc::ring::{Consumer, Producer, Region, RingError, SLICE};
use thenodes_ipc::{limits, pack, Frame, FrameDecoder, FrameError};

/// Longest look for more before sleeping, whatever the node says.
const MAX_SPIN_US: u32 = 100;
/// Looks between two looks at the clock.
const SPINS: u32 = 64;
/// How often it lets the node go first, on one processor.
const YIELDS: u32 = 2;
/// Vain looks in a row after which it rests, and for how many sleeps.
const MOST_VAIN: u32 = 4;
const REST: u32 = 64;
/// How long to wait for room before looking whether the link is still there.
const ROOM_PATIENCE: Duration = Duration::from_secs(1);

/// Bytes read at once; more of a longer frame.
const READ: usize = 16 * 1024;

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
    ring: Option<Region>,
    spin: Duration,
}

impl Link {
    /// The socket that the node placed as standard input.
    pub(crate) fn from_stdin() -> io::Result<Self> {
        let fd = sys::adopt(libc::STDIN_FILENO).ok_or(io::ErrorKind::NotFound)?;
        let stream = UnixStream::from(fd);
        stream.peer_addr()?; // fails for anything that is no Unix socket
        Ok(Self {
            stream,
            decoder: FrameDecoder::new(limits::MAX_FRAME),
            cap: limits::MAX_FRAME,
            ring: None,
            spin: Duration::ZERO,
        })
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

    /// For processes that only watch: the ring is the runner's.
    pub(crate) fn forget_ring(&mut self) {
        self.ring = None;
    }

    /// A reading and a writing end, after the start-up exchange.
    pub(crate) fn split(self) -> io::Result<(Reader, Writer)> {
        let bell = Bell(self.stream.try_clone()?);
        let (up, down) = self.ring.map(Region::runner_side).unzip();
        let met = Arc::new(AtomicBool::new(false));
        let writer = Writer {
            stream: self.stream.try_clone()?,
            ring: up,
            met: met.clone(),
            spin: self.spin,
            cap: self.cap,
            head: Vec::with_capacity(128),
        };
        let spin = Spin::new(self.spin, met);
        Ok((Reader { stream: self.stream, ring: down, bell, spin, decoder: self.decoder }, writer))
    }

    /// Until there are bytes, or the end.
    fn wait_until_something_comes(&self) -> Result<(), String> {
        let mut waiting = [PollFd::new(self.stream.as_fd(), PollFlags::POLLIN)];
        loop {
            match poll(&mut waiting, PollTimeout::NONE) {
                Ok(_) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(error) => return Err(format!("waiting for hello: {error}")),
            }
        }
    }

    /// Reads `hello` and its descriptors. Whether and when it begins is the node's affair (a spare waits for a plugin that may never
    /// come); the node's end is the end of that wait. Once begun, no five seconds may pass without a byte of it.
    pub(crate) fn receive_hello(&mut self) -> Result<Received, String> {
        self.wait_until_something_comes()?;
        self.stream.set_read_timeout(Some(limits::CONFINE_DEADLINE)).map_err(|e| e.to_string())?;
        let mut files = Vec::new();
        let mut buffer = vec![0; 16 * 1024];
        loop {
            let count = {
                let mut space = nix::cmsg_space!([RawFd; limits::MAX_NEEDED_LIBRARIES + 3]);
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
                    let library = match hello.library_size {
                        0 => 0,
                        _ => 1 + hello.needed.len(),
                    };
                    let expected = 1 + usize::from(hello.ring) + library;
                    if files.len() != expected {
                        return Err(format!(
                            "hello came with {} descriptors instead of {expected}",
                            files.len()
                        ));
                    }
                    self.stream.set_read_timeout(None).map_err(|e| e.to_string())?;
                    let mut files = files.into_iter();
                    let report = files.next().ok_or("hello came without the report pipe")?;
                    if hello.ring {
                        let ring = files.next().ok_or("hello came without the ring")?;
                        self.ring = Some(Region::open(&ring).map_err(|e| e.to_string())?);
                        // Bounded, whatever the node thinks of its processors.
                        self.spin = Duration::from_micros(u64::from(hello.spin_us.min(MAX_SPIN_US)));
                    }
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
    fn fill(&mut self) -> io::Result<bool> {
        fill(&self.stream, &mut self.decoder)
    }
}

/// Waits for bytes and reads them where they are decoded. False at the end of the link.
fn fill(stream: &UnixStream, decoder: &mut FrameDecoder) -> io::Result<bool> {
    loop {
        let buffer = decoder.room(READ);
        match rustix::io::read(stream, rustix::buffer::spare_capacity(buffer)) {
            Ok(count) => return Ok(count > 0),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Says "look" to the node, which waits at the socket and not at the ring.
struct Bell(UnixStream);

impl Bell {
    fn ring(&self) {
        Self::ring_at(&self.0);
    }

    /// The socket never fills: the node reads it whenever it is asked to look, and asks to be asked.
    fn ring_at(mut stream: &UnixStream) {
        // If it is gone, so is the node.
        let _ = stream.write(&[0]);
    }
}

/// Whether to look for more before going to sleep: as long as that has been worth it lately.
struct Spin {
    /// Zero: node and plugin share one processor. Then the node can only write while it has it.
    most: Duration,
    /// Looks in a row that found nothing.
    vain: u32,
    /// Sleeps to come before it is tried again.
    rest: u32,
    /// The node was awake when it was written to last: somebody there looks for our answer, and may well ask again.
    met: Arc<AtomicBool>,
}

impl Spin {
    fn new(most: Duration, met: Arc<AtomicBool>) -> Self {
        Self { most, vain: 0, rest: 0, met }
    }

    /// Looks for a while; false: nothing came.
    fn look(&mut self, mut found: impl FnMut() -> bool) -> bool {
        if self.met.swap(false, Ordering::Relaxed) {
            (self.vain, self.rest) = (0, 0);
        }
        if self.rest > 0 {
            self.rest -= 1;
            return false;
        }
        let came = if self.most.is_zero() { Self::yielding(&mut found) } else { self.spinning(&mut found) };
        if came {
            self.vain = 0;
            return true;
        }
        self.vain += 1;
        if self.vain >= MOST_VAIN {
            (self.vain, self.rest) = (0, REST);
        }
        false
    }

    fn spinning(&self, found: &mut impl FnMut() -> bool) -> bool {
        let begun = Instant::now();
        loop {
            for _ in 0..SPINS {
                if found() {
                    return true;
                }
                std::hint::spin_loop();
            }
            if begun.elapsed() >= self.most {
                return false;
            }
        }
    }

    fn yielding(found: &mut impl FnMut() -> bool) -> bool {
        for _ in 0..YIELDS {
            std::thread::yield_now();
            if found() {
                return true;
            }
        }
        false
    }
}

/// The reading end, once the plugin is there.
pub(crate) struct Reader {
    stream: UnixStream,
    ring: Option<Consumer>,
    bell: Bell,
    spin: Spin,
    decoder: FrameDecoder,
}

impl Reader {
    /// Waits until at least one whole frame has come; `None` at the end of the link.
    pub(crate) fn wait(&mut self) -> Result<Option<FrameDecoder>, String> {
        loop {
            if self.decoder.has_next() {
                return Ok(Some(self.decoder.split()));
            }
            // A length that is too large is found now and not when that much has come.
            self.decoder.check().map_err(|e| e.to_string())?;
            let more = match &mut self.ring {
                Some(ring) => {
                    take(ring, &mut self.decoder, &self.bell, &mut self.spin).map_err(|e| e.to_string())
                }
                None => fill(&self.stream, &mut self.decoder).map_err(|e| e.to_string()),
            };
            if !more? {
                return Ok(None);
            }
        }
    }

    /// Takes back a decoder whose frames have been handed over.
    pub(crate) fn give_back(&mut self, used: FrameDecoder) {
        self.decoder.reuse(used);
    }
}

/// Waits for bytes in the ring and takes them to where they are decoded. False when the node has closed it.
fn take(
    ring: &mut Consumer,
    decoder: &mut FrameDecoder,
    bell: &Bell,
    spin: &mut Spin,
) -> Result<bool, RingError> {
    loop {
        let missing = decoder.missing().unwrap_or(0);
        let most = READ.max(missing).min(SLICE);
        if ring.read(decoder.room(READ), most)? > 0 {
            if ring.producer_waits() {
                bell.ring();
            }
            return Ok(true);
        }
        if ring.closed() {
            return Ok(false);
        }
        // An impossible index is found by the next read.
        if !spin.look(|| ring.is_empty() != Ok(true)) {
            ring.wait(None);
        }
    }
}

/// The writing end; behind a lock, so that frames stay whole.
pub(crate) struct Writer {
    stream: UnixStream,
    ring: Option<Producer>,
    /// See [`Spin`].
    met: Arc<AtomicBool>,
    /// How long to look for room before sleeping.
    spin: Duration,
    cap: usize,
    head: Vec<u8>,
}

impl Writer {
    /// Writes a frame; waits while the way is full. The outer error is about the frame, the inner one about the link.
    pub(crate) fn put(&mut self, frame: &Frame<'_>, body: &[u8]) -> Result<io::Result<()>, FrameError> {
        self.head.clear();
        frame.encode_head(&mut self.head, self.cap)?;
        let Some(ring) = &mut self.ring else { return Ok(write_both(&self.stream, &self.head, body)) };
        let mut written = 0;
        let total = self.head.len() + body.len();
        while written < total {
            let head_left = self.head.get(written..).unwrap_or(&[]);
            let body_left = &body[written.saturating_sub(self.head.len())..];
            match ring.write(&[head_left, body_left]) {
                Err(error) => return Ok(Err(io::Error::other(error))),
                Ok(count) => written += count,
            }
            if ring.consumer_sleeps() {
                Bell::ring_at(&self.stream);
            } else {
                self.met.store(true, Ordering::Relaxed);
            }
            if ring.closed() {
                return Ok(Err(io::ErrorKind::BrokenPipe.into()));
            }
            if written < total && !ring.look_for_room(self.spin) {
                ring.wait_room(ROOM_PATIENCE);
            }
        }
        Ok(Ok(()))
    }
}

/// Writes header and body, in one system call if the socket takes them.
fn write_both(mut stream: &UnixStream, head: &[u8], body: &[u8]) -> io::Result<()> {
    let mut written = 0;
    let total = head.len() + body.len();
    while written < total {
        let head_left = head.get(written..).unwrap_or(&[]);
        let body_left = &body[written.saturating_sub(head.len())..];
        match stream.write_vectored(&[IoSlice::new(head_left), IoSlice::new(body_left)]) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => written += count,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
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
