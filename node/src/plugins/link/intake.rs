//! What one runner sends, sorted. Everything read here is hostile: lengths, ids, codes and the order of frames are checked,
//! and one violation ends the link. [`Intake::sort`] never waits, so that whoever waits for an answer may read the link
//! himself; what has to wait (a rate that is exceeded, room for a request) is said and done by the link's reader task.

use super::pending::Waiter;
use super::requests::Requests;
use super::{Answer, Counters, Failed, Shared, READ};
use crate::plugins::process::spin_us;
use crate::plugins::rate::{LinkRates, Meter};
use bytes::Bytes;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};
use thenodes::host::{Host, HostError, Notice};
use thenodes_ipc::ring::{Consumer, RingError, SLICE};
use thenodes_ipc::{CallId, Code, Frame, FrameDecoder};
use tokio::sync::OwnedSemaphorePermit;

/// Looks between two looks at the clock.
const SPINS: u32 = 64;
/// How often a caller lets others go first: the runner's reader, a thread that it wakes, and one more.
const YIELDS: u32 = 3;
/// An answer that took longer than this was not worth waiting for on the spot: others had the processor meanwhile.
const SLOW: Duration = Duration::from_micros(500);
/// Vain looks in a row after which callers do not look any more, and for how many calls.
const MOST_VAIN: u32 = 2;
const REST: u32 = 64;
/// How long to look where the last look was in vain: longer than it takes to wake a plugin that has a processor to itself.
const FIRST_LOOK: Duration = Duration::from_micros(100);

/// How a caller looks for his answer before he sleeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Look {
    /// The plugin has a processor of its own: look again and again, for so long.
    Spinning(Duration),
    /// There is one processor for both: let the plugin have it. That is a system call, but neither the runtime nor the plugin
    /// has to wake anybody afterwards.
    Yielding,
}

impl Look {
    /// The one that fits where this process may run; see [`spin_us`].
    pub(super) fn here() -> Self {
        match spin_us() {
            0 => Look::Yielding,
            most => Look::Spinning(Duration::from_micros(u64::from(most))),
        }
    }

    /// Between two looks, of which `vain` found nothing: false if that was enough.
    fn again(self, vain: u32, begun: Instant) -> bool {
        match self {
            Look::Spinning(most) => {
                if vain.is_multiple_of(SPINS) && begun.elapsed() >= most {
                    return false;
                }
                std::hint::spin_loop();
                true
            }
            Look::Yielding => {
                if vain >= YIELDS {
                    return false;
                }
                std::thread::yield_now();
                true
            }
        }
    }

    /// Time after which a look ends although something comes all the time.
    fn most(self) -> Duration {
        match self {
            Look::Spinning(most) => most,
            Look::Yielding => SLOW,
        }
    }
}

/// Why sorting came to a rest.
#[derive(Debug)]
pub(super) enum Rest {
    /// More bytes are needed.
    Hungry,
    /// The plugin is beyond its rate: nothing more is taken for so long.
    Beyond(Duration),
    /// A request, or the frame that has begun, needs room for so many bytes.
    NoRoom(usize),
    /// The runner has to take an answer before anything else is read from it.
    Unsaid(CallId, HostError),
    /// It broke the rules.
    Violation(String),
}

/// The reading side of a link. Behind one lock; whoever holds it reads.
pub(super) struct Intake {
    decoder: FrameDecoder,
    ring: Option<Consumer>,
    meter: Meter,
    since: Instant,
    /// When bytes were read last, counted from there.
    read_at: Duration,
    /// No more can come: what is left is read at once, so that a flood does not hide its author's death.
    hung_up: bool,
    requests: Option<Requests>,
    /// A request that waits for room: its number, method, deadline and arguments.
    waiting: Option<(CallId, String, u32, Vec<u8>)>,
    /// Length of the arguments of the call that was read last, which are still in the decoder.
    last_call: usize,
    /// What a caller who looked could not wait for.
    left: Option<Rest>,
    /// Looks in a row that found nothing, and calls to come that do not look.
    vain: u32,
    rest: u32,
    /// The last look found something: the plugin has not gone to sleep since.
    met: bool,
    /// Pieces that were taken: a runner of which something comes is not stuck, however late its answers are.
    pieces: u64,
    /// Room for the frame that has begun; it goes over to the request that the frame turns out to be.
    begun: Option<OwnedSemaphorePermit>,
}

impl Intake {
    pub(super) fn new(
        decoder: FrameDecoder,
        ring: Option<Consumer>,
        host: Arc<dyn Host>,
        rates: LinkRates,
    ) -> Self {
        Self {
            decoder,
            ring,
            meter: rates.meter(Duration::ZERO),
            since: Instant::now(),
            read_at: Duration::ZERO,
            hung_up: false,
            requests: Some(Requests::new(host)),
            waiting: None,
            last_call: 0,
            left: None,
            vain: 0,
            rest: 0,
            met: false,
            pieces: 0,
            begun: None,
        }
    }

    /// Takes back all requests that are being served, and takes no more.
    pub(super) fn close(&mut self) {
        self.requests = None;
        self.waiting = None;
    }

    /// Nothing more can come; what is here is sorted without regard to rates.
    pub(super) fn hang_up(&mut self) {
        self.hung_up = true;
    }

    /// How many pieces have come so far.
    pub(super) fn pieces(&self) -> u64 {
        self.pieces
    }

    /// The buffer to read into.
    pub(super) fn room(&mut self) -> &mut Vec<u8> {
        self.decoder.room(READ)
    }

    /// So many bytes were read into the buffer. Says how long to wait before more are read.
    pub(super) fn bytes_came(&mut self, count: usize) -> Duration {
        self.pieces = self.pieces.wrapping_add(1);
        self.read_at = self.since.elapsed();
        let wait = self.meter.bytes(count, self.read_at);
        if self.hung_up {
            Duration::ZERO
        } else {
            wait
        }
    }

    /// The runner said "look": counts like a message, because to say it costs the runner little and hearing it costs us.
    pub(super) fn bell_rang(&mut self) -> Duration {
        let wait = self.meter.message(self.since.elapsed());
        if self.hung_up {
            Duration::ZERO
        } else {
            wait
        }
    }

    /// Takes what is in the ring; says how much, and how long to wait before more is taken.
    pub(super) fn take_from_ring(&mut self) -> Result<(usize, Duration), RingError> {
        let Some(ring) = &mut self.ring else { return Ok((0, Duration::ZERO)) };
        let most = READ.max(self.decoder.missing().unwrap_or(0)).min(SLICE);
        let count = ring.read(self.decoder.room(READ), most)?;
        if count == 0 {
            return Ok((0, Duration::ZERO));
        }
        if ring.producer_waits() {
            ring.wake_producer();
        }
        Ok((count, self.bytes_came(count)))
    }

    /// Looks for an answer for a moment, for a caller who would otherwise have to be woken. Everything that comes is sorted;
    /// `done` is asked after each piece. What must be waited for is left to the reader task: true if there is such a thing.
    /// Counted from `begun`, when the call was made.
    pub(super) fn look(
        &mut self,
        shared: &Arc<Shared>,
        how: Look,
        begun: Instant,
        mut done: impl FnMut() -> bool,
    ) -> bool {
        if self.left.is_some() || self.rest > 0 {
            self.rest = self.rest.saturating_sub(1);
            return false;
        }
        match &mut self.ring {
            Some(ring) => ring.awake(),
            // Each look into a socket is a system call: too dear to spin on.
            None if how == Look::Yielding => {}
            None => return false,
        }
        let mut vain = 0u32;
        let how = match how {
            // The plugin rests too. It has to be woken, and then sees that we look.
            Look::Spinning(_) if !self.met => Look::Spinning(FIRST_LOOK),
            how => how,
        };
        if how == Look::Yielding {
            how.again(vain, begun); // before that there can be nothing
        }
        let found = loop {
            match self.take_now(shared) {
                Ok((0, _)) => {
                    vain += 1;
                    if how.again(vain, begun) {
                        continue;
                    }
                    break false;
                }
                Ok((_, wait)) if wait.is_zero() => {}
                Ok((_, wait)) => self.left = Some(Rest::Beyond(wait)),
                Err(error) => self.left = Some(Rest::Violation(error.to_string())),
            }
            if self.left.is_none() {
                match self.sort_at(shared, self.read_at) {
                    Rest::Hungry => {}
                    rest => self.left = Some(rest),
                }
            }
            if self.left.is_some() {
                return true;
            }
            if done() {
                break how != Look::Yielding || begun.elapsed() < SLOW;
            }
            // A runner that always has a little more does not keep us here.
            if begun.elapsed() >= how.most() {
                break false;
            }
        };
        self.met = found;
        if found {
            self.vain = 0;
        } else {
            self.vain += 1;
            if self.vain >= MOST_VAIN {
                (self.vain, self.rest) = (0, REST);
            }
        }
        // As the reader task left it: it waits at the socket, and is told there.
        self.ring.as_mut().is_some_and(|ring| !ring.sleep_announced())
    }

    /// Takes what is there now, from wherever frames come; see [`Intake::take_from_ring`].
    fn take_now(&mut self, shared: &Shared) -> Result<(usize, Duration), RingError> {
        if let Some(ring) = &mut self.ring {
            // An impossible index is found by whoever reads.
            if ring.is_empty() == Ok(true) {
                return Ok((0, Duration::ZERO));
            }
            return self.take_from_ring();
        }
        let buffer = self.decoder.room(READ);
        // Past the runtime, which may not know yet that there is something. It will wake the reader task for it, which then
        // finds nothing. The end, and errors, are its to find too.
        match rustix::io::read(shared.stream.as_fd(), rustix::buffer::spare_capacity(buffer)) {
            Ok(0) | Err(_) => Ok((0, Duration::ZERO)),
            Ok(count) => Ok((count, self.bytes_came(count))),
        }
    }

    /// What a caller left to the reader task.
    pub(super) fn left(&mut self) -> Option<Rest> {
        self.left.take()
    }

    /// The ring, if frames come through one.
    pub(super) fn ring(&mut self) -> Option<&mut Consumer> {
        self.ring.as_mut()
    }

    /// True if the stream was cut inside a frame.
    pub(super) fn is_cut(&self) -> bool {
        self.decoder.unfinished() > 0
    }

    /// True if requests were served where they were read, by whoever sorted last: others of the runtime may have waited for that.
    pub(super) fn served_on_the_spot(&mut self) -> bool {
        self.requests.as_mut().is_some_and(Requests::take_served)
    }

    /// Gives the room that [`Rest::NoRoom`] asked for.
    pub(super) fn give_room(&mut self, room: OwnedSemaphorePermit) {
        self.begun = Some(room);
        // A caller who looked meanwhile met the same want of room; it is met now.
        self.left.take_if(|left| matches!(left, Rest::NoRoom(_)));
    }

    /// Requests that wait for room hold the reader back; this is what they wait for.
    pub(super) fn room_of_requests(&self) -> Option<Arc<tokio::sync::Semaphore>> {
        self.requests.as_ref().map(Requests::room)
    }

    /// Serves whole frames until something has to be waited for.
    pub(super) fn sort(&mut self, shared: &Arc<Shared>) -> Rest {
        let now = self.since.elapsed();
        self.sort_at(shared, now)
    }

    /// The same for whoever has just looked at the clock.
    fn sort_at(&mut self, shared: &Arc<Shared>, now: Duration) -> Rest {
        if let Some(requests) = &mut self.requests {
            requests.take_served(); // each piece has its own number
        }
        loop {
            if let Some((id, method, deadline_ms, body)) = self.waiting.take() {
                let room = self.begun.take();
                if let Some(rest) = self.request(shared, id, method, deadline_ms, Some(body), room) {
                    return rest;
                }
            }
            let (frame, length) = match self.decoder.next() {
                Ok(Some(frame)) => (Sorted::from(&frame), frame.body().len()),
                Ok(None) => {
                    let announced = self.decoder.announced();
                    // A long frame is not even read until there is room for it.
                    if announced > READ && self.begun.is_none() {
                        let Some(requests) = &self.requests else { return Rest::Hungry };
                        match requests.try_room(announced) {
                            Some(room) => self.begun = Some(room),
                            None => return Rest::NoRoom(announced),
                        }
                    }
                    return Rest::Hungry;
                }
                Err(error) => return Rest::Violation(error.to_string()),
            };
            let served = match frame {
                Sorted::Reply { id, failed } => self.reply(shared, id, failed, length),
                Sorted::Call { id, method, deadline_ms } => {
                    let room = self.begun.take();
                    self.last_call = length;
                    Ok(self.request(shared, id, method, deadline_ms, None, room))
                }
                Sorted::Notify { method } => {
                    self.begun = None;
                    match (Notice::decode(&method, self.decoder.last_body(length)), &self.requests) {
                        (Ok(notice), Some(requests)) => requests.host().notify(notice),
                        (Ok(_), None) => {}
                        (Err(_), _) => Counters::count(&shared.counters.ignored),
                    }
                    Ok(None)
                }
                Sorted::Cancel { id } => {
                    if let Some(requests) = &self.requests {
                        requests.cancel(id);
                    }
                    Ok(None)
                }
                Sorted::Ignored => {
                    Counters::count(&shared.counters.ignored);
                    Ok(None)
                }
                Sorted::Launch(step) => Err(format!("{step} after the start")),
            };
            match served {
                Ok(None) => {}
                Ok(Some(rest)) => return rest,
                Err(what) => return Rest::Violation(crate::text::printable(&what, 500)),
            }
            let wait = self.meter.message(now);
            if !wait.is_zero() && !self.hung_up {
                return Rest::Beyond(wait);
            }
        }
    }

    fn reply(
        &mut self,
        shared: &Arc<Shared>,
        id: CallId,
        failed: Option<Code>,
        length: usize,
    ) -> Result<Option<Rest>, String> {
        self.begun = None;
        let answered = shared.answered(id, failed.as_ref())?;
        let (body, at) = self.decoder.take_body(length);
        let answer: Answer = match failed {
            None => Ok(Bytes::from(body).slice(at..)),
            Some(code) => {
                let text = String::from_utf8_lossy(&body[at..]);
                Err(HostError::new(code, crate::text::printable(&text, 4000)))
            }
        };
        let (count, took) = answered.as_ref().map_or_else(Default::default, |a| (a.count, a.took));
        match answered.map(|answered| answered.waiter) {
            Some(Waiter::Call(tell) | Waiter::Own(tell)) => drop(tell.send(answer.map_err(Failed::Answered))),
            Some(Waiter::Message(ack)) => shared.messages_done(count, took, ack, answer),
            Some(Waiter::Messages) => shared.messages_done(count, took, None, answer),
            None => Counters::count(&shared.counters.ignored), // late: the deadline was faster
        }
        Ok(None)
    }

    /// Begins to serve a request, or says what it has to wait for. `kept`: its arguments, if they have left the decoder.
    fn request(
        &mut self,
        shared: &Arc<Shared>,
        id: CallId,
        method: String,
        deadline_ms: u32,
        kept: Option<Vec<u8>>,
        room: Option<OwnedSemaphorePermit>,
    ) -> Option<Rest> {
        let requests = self.requests.as_mut()?;
        let body = kept.as_deref().unwrap_or_else(|| self.decoder.last_body(self.last_call));
        let Some(room) = room.or_else(|| requests.try_room(body.len())) else {
            let length = body.len();
            let body = kept.unwrap_or_else(|| self.decoder.last_body(self.last_call).to_vec());
            self.waiting = Some((id, method, deadline_ms, body));
            return Some(Rest::NoRoom(length));
        };
        match requests.serve(shared, id, &method, deadline_ms, body, room) {
            Ok(()) => None,
            Err(super::requests::Unserved::Answer(error)) => Some(Rest::Unsaid(id, error)),
            Err(super::requests::Unserved::Violation(what)) => Some(Rest::Violation(what)),
        }
    }
}

/// A frame without its body, which stays in the decoder.
enum Sorted {
    Reply { id: CallId, failed: Option<Code> },
    Call { id: CallId, method: String, deadline_ms: u32 },
    Notify { method: String },
    Cancel { id: CallId },
    Launch(String),
    Ignored,
}

impl From<&Frame<'_>> for Sorted {
    fn from(frame: &Frame<'_>) -> Self {
        match frame {
            Frame::Reply { id, failed, .. } => Sorted::Reply { id: *id, failed: failed.clone() },
            Frame::Call { id, method, deadline_ms, .. } => {
                Sorted::Call { id: *id, method: (*method).to_owned(), deadline_ms: *deadline_ms }
            }
            Frame::Notify { method, .. } => Sorted::Notify { method: (*method).to_owned() },
            Frame::Cancel { id } => Sorted::Cancel { id: *id },
            Frame::Launch { step, .. } => Sorted::Launch((*step).to_owned()),
            Frame::Ignored => Sorted::Ignored,
        }
    }
}
