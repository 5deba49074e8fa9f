//! One peer: a read loop and a write loop (`writing`) in one task, until one of them ends. What is read goes one of three ways, see
//! `Reader`. Nothing is held for a peer that is silent but its place.

use super::channel::Bytes;
use super::outbox::{Outbox, Put};
use super::peers::Place;
use super::plain::{self, Batch};
use super::relay::seat::{Judged, Seat, Sending, What};
use super::relay::{line, Form};
use super::taking::{self, Taken};
use super::wire::{decode, encode, weight, LineDecoder, WireError, MAX_WEIGHT};
use super::writing::{heartbeat, write, ANSWER, PROBE};
use super::{Inbound, Network};
use crate::network::clock;
use crate::text::printable;
use std::cell::RefCell;
use std::future::Future;
use std::io;
use std::ops::Range;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};
use thenodes::events::model::LogLevel;
use thenodes::host::PeerInfo;
use thenodes::network::message::{Message, MessageType, Payload};
use tokio::io::{AsyncRead, ReadBuf};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{sleep, timeout, timeout_at};

/// Invalid lines after which a peer is taken for something else than a node.
const MAX_INVALID: u32 = 100;
/// Bytes read at once.
const READ: usize = 64 * 1024;
/// After so many bytes others have their turn, however much this peer still has to say.
const IN_A_ROW: usize = 2 * READ;
/// A peer that answers no probe within this time is taken for one of 0.2, until it answers one.
const OLD: Duration = Duration::from_secs(2);
/// What waits is written, and the peer told, within this time when a connection ends.
const GOODBYE: Duration = Duration::from_secs(1);
/// A question that could not be answered delays the next by so much.
const UNANSWERED: Duration = Duration::from_millis(2);
/// A target that is full but takes something holds its sender up so long; then it counts as one that takes nothing.
const HELD_UP: Duration = Duration::from_secs(5);

/// A line must have its end once it was waited for so long: one of the greatest length takes that at 17 KiB in a second.
const LINE_DEADLINE: Duration = Duration::from_secs(60);
const CLOSED_HERE: &str = "closed by this node";

thread_local! {
    /// Where bytes arrive: one buffer for each thread of the runtime instead of one for each connection.
    static ARRIVING: RefCell<Vec<u8>> = RefCell::new(vec![0; READ]);
}

/// Reads some bytes into the decoder; zero at the end. Holds no memory while it waits.
pub(super) async fn receive<R: AsyncRead + Unpin>(
    reader: &mut R,
    decoder: &mut LineDecoder,
    most: usize,
) -> io::Result<usize> {
    std::future::poll_fn(|cx| {
        ARRIVING.with_borrow_mut(|arriving| {
            let mut room = ReadBuf::new(&mut arriving[..most.min(READ)]);
            match Pin::new(&mut *reader).poll_read(cx, &mut room) {
                Poll::Ready(Ok(())) => {
                    decoder.push(room.filled());
                    Poll::Ready(Ok(room.filled().len()))
                }
                Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
                Poll::Pending => {
                    decoder.rest();
                    Poll::Pending
                }
            }
        })
    })
    .await
}

/// Reads and writes until the end, or until the peer is not welcome any more; says why it ended.
pub(super) fn run<'a>(
    network: &'a Network,
    stream: Box<dyn Bytes>,
    decoder: LineDecoder,
    place: Place,
    mut unwelcome: Pin<&'a mut (impl Future<Output = String> + Send)>,
) -> impl Future<Output = String> + Send + 'a {
    // Taken apart before it is first polled, and lent to what runs inside: a future keeps every argument beside what it was moved to.
    let (mut reader, writer) = tokio::io::split(stream);
    let mut reading = Reader::new(network, &place, decoder);
    async move {
        let outbox = place.outbox.clone();
        let hears = AtomicBool::new(true);
        let end = {
            let mut writing = std::pin::pin!(write(network, &place, writer, &hears));
            let end = {
                let mut read = std::pin::pin!(reading.run(&mut reader));
                let mut closing = std::pin::pin!(outbox.closing());
                let mut writes_first = true;
                std::future::poll_fn(|cx| {
                    // Every second time: what tokio lets a task do in one go may be used up by reading.
                    writes_first = !writes_first;
                    if writes_first && writing.as_mut().poll(cx).is_ready() {
                        return Poll::Ready(None);
                    }
                    outbox.attend();
                    if let Poll::Ready(end) = read.as_mut().poll(cx) {
                        return Poll::Ready(Some(end));
                    }
                    if let Poll::Ready(why) = unwelcome.as_mut().poll(cx) {
                        return Poll::Ready(Some(End::Because(why)));
                    }
                    // Nothing of the peer is heard any more, however long it takes to write to it.
                    if closing.as_mut().poll(cx).is_ready() {
                        return Poll::Ready(Some(End::Because(CLOSED_HERE.to_owned())));
                    }
                    writing.as_mut().poll(cx).map(|()| None)
                })
                .await
            };
            drop((reading, reader)); // what was read and not dealt with is nobody's any more
            if let Some(end) = &end {
                // The writer says goodbye: close_notify frees the id at a TLS peer at once.
                hears.store(!matches!(end, End::ByPeer), Ordering::Relaxed);
                outbox.close();
                let _ = timeout(GOODBYE, writing).await;
            }
            end
        };
        let why = match end {
            None => outbox.why().unwrap_or_else(|| CLOSED_HERE.into()),
            Some(End::ByPeer) => "the peer closed the connection".into(),
            Some(End::Because(why)) => why,
        };
        let (left, peer) = (outbox.end(), place.info.clone());
        drop(place); // before its frames are kept, so that no new one goes before them
        network.relay.give_back(network, &peer.node_id, left);
        why
    }
}

/// How reading ended.
enum End {
    /// The peer has closed: nothing is said to it any more but what waits.
    ByPeer,
    /// For this reason.
    Because(String),
}

/// Frames of one peer for one other, as they stand behind each other in the decoder.
struct Run {
    outbox: Arc<Outbox>,
    span: Range<usize>,
    count: u64,
}

/// What became of a line.
enum Gathered {
    /// It is no plain message.
    No,
    /// It goes up with those that come now.
    Stays,
    /// Enough for one time.
    Goes,
    /// Its sender is too fast.
    Waits(Duration),
}

/// The read loop. A line is a frame for another peer, and goes there as it is; or a word between nodes, and is dealt with here; or a
/// message for this node, and goes up.
struct Reader<'a> {
    network: &'a Network,
    peer: Arc<PeerInfo>,
    outbox: Arc<Outbox>,
    decoder: LineDecoder,
    seat: Seat,
    taking: taking::Desk,
    /// Messages that go up together.
    batch: Option<Box<Batch>>,
    invalid: u32,
    answers_probes: bool,
    /// It was beyond its rate once, and that was said.
    held_up: bool,
}

impl<'a> Reader<'a> {
    fn new(network: &'a Network, place: &Place, decoder: LineDecoder) -> Self {
        let peer = place.info.clone();
        Self {
            network,
            seat: Seat::new(network, &peer),
            taking: taking::Desk::new(network, &peer, &place.outbox),
            peer,
            outbox: place.outbox.clone(),
            decoder,
            batch: None,
            invalid: 0,
            answers_probes: false,
            held_up: false,
        }
    }

    async fn run(&mut self, reader: &mut (impl AsyncRead + Unpin)) -> End {
        let since = clock();
        // Bytes that came last, and how long the end of the line that they belong to was waited for.
        let (mut in_a_row, mut came, mut waited_us) = (0_usize, 0_usize, 0_u32);
        loop {
            // On the heap: most of the time a connection only waits, and what it waits with is all that it costs.
            if let Err(why) = Box::pin(self.lines()).await {
                return End::Because(why);
            }
            let is_long = self.decoder.is_long();
            if in_a_row >= IN_A_ROW || is_long {
                in_a_row = 0;
                if is_long {
                    // The node's other threads may be on this processor, behind this one, with what is more urgent.
                    std::thread::yield_now();
                }
                tokio::task::yield_now().await;
            }
            let most = if is_long { READ / 4 } else { READ };
            let connecting = &self.network.net.connecting;
            let patience = if self.answers_probes { connecting.silence } else { connecting.idle };
            let unfinished = self.decoder.unfinished();
            if unfinished <= came {
                waited_us = 0; // it has begun only now
            }
            let left = LINE_DEADLINE.saturating_sub(Duration::from_micros(waited_us.into()));
            let slow = unfinished > 0 && left < patience;
            let received = receive(reader, &mut self.decoder, most);
            let begun = tokio::time::Instant::now();
            let until = begun + if slow { left } else { patience };
            let received = timeout_at(until, received).await;
            waited_us = waited_us.saturating_add(begun.elapsed().as_micros().try_into().unwrap_or(u32::MAX));
            match received {
                Ok(Ok(0)) => return End::ByPeer,
                // An end without close_notify is how upstream ends; the operating system's word is enough.
                Ok(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => return End::ByPeer,
                Ok(Err(error)) => return End::Because(format!("reading: {error}")),
                Ok(Ok(count)) => (in_a_row, came) = (in_a_row + count, count),
                Err(_) if slow => {
                    let seconds = LINE_DEADLINE.as_secs();
                    let detail = format!("node_id={} bytes={unfinished}", self.peer.node_id);
                    self.tell(LogLevel::Warn, "line_unfinished", detail);
                    return End::Because(format!("a line had no end within {seconds} s"));
                }
                Err(_) => {
                    let detail = format!("node_id={}", self.peer.node_id);
                    self.tell(LogLevel::Warn, "peer_unresponsive", detail);
                    return End::Because(format!("silent for {} s", patience.as_secs()));
                }
            }
            if !self.answers_probes
                && clock().saturating_duration_since(since) > OLD
                && self.network.relay.form_of(&self.peer.node_id).is_none()
            {
                self.network.relay.set_form(&self.peer.node_id, Form::Payload);
            }
        }
    }

    fn tell(&self, level: LogLevel, action: &'static str, detail: impl Into<Option<String>>) {
        self.network.events.network(level, action, Some(self.peer.addr.to_string()), detail);
    }

    /// Deals with all whole lines. An error ends the connection.
    async fn lines(&mut self) -> Result<(), String> {
        let mut run: Option<Run> = None;
        let mut now = clock();
        loop {
            let span = match self.decoder.next_span() {
                Ok(Some(span)) => span,
                Ok(None) => break,
                Err(error) => {
                    self.go_up().await?;
                    self.hand_on(run.take()).await;
                    self.is_invalid(&error)?;
                    continue;
                }
            };
            if line::may_be(self.decoder.bytes(span.clone())) {
                // Nothing is held here while something is waited for.
                if self.batch.is_some() {
                    self.go_up().await?;
                }
                let bytes = self.decoder.bytes(span.clone());
                match self.seat.judge(self.network, bytes) {
                    Judged::NotAFrame => {}
                    Judged::Send(Sending { outbox, what: What::Line, pause }) if pause.is_zero() => {
                        match &mut run {
                            Some(run) if run.span.end == span.start && Arc::ptr_eq(&run.outbox, &outbox) => {
                                run.span.end = span.end + 1;
                                run.count += 1;
                            }
                            _ => {
                                self.hand_on(run.take()).await;
                                run = Some(Run { outbox, span: span.start..span.end + 1, count: 1 });
                            }
                        }
                        continue;
                    }
                    Judged::Send(sending) => {
                        self.hand_on(run.take()).await;
                        self.send(sending, span).await;
                        continue;
                    }
                    Judged::Done(pause) => {
                        if !pause.is_zero() {
                            self.hand_on(run.take()).await;
                            sleep(pause).await;
                        }
                        continue;
                    }
                    Judged::Ours(_) => {
                        self.hand_on(run.take()).await;
                        self.ours(span).await?;
                        continue;
                    }
                }
            }
            if run.is_some() {
                self.go_up().await?;
                self.hand_on(run.take()).await;
            }
            match self.gather(span.clone(), now) {
                Gathered::No => {
                    self.go_up().await?;
                    self.message(span).await?;
                    now = clock();
                }
                Gathered::Goes => {
                    self.go_up().await?;
                    // Nothing was waited for: who brings much does not keep this thread from others.
                    tokio::task::yield_now().await;
                    now = clock();
                }
                Gathered::Waits(pause) => {
                    self.go_up().await?;
                    self.hold_up(pause).await;
                    now = clock();
                }
                Gathered::Stays => {}
            }
        }
        self.go_up().await?;
        self.hand_on(run).await;
        Ok(())
    }

    /// Takes a line that is a plain message to those that go up together.
    fn gather(&mut self, span: Range<usize>, now: Instant) -> Gathered {
        let Some(plain) = plain::read(self.decoder.bytes(span)) else { return Gathered::No };
        self.network.events.network_with(LogLevel::Debug, || {
            let (action, what) = match plain.gist() {
                Ok(text) => ("message_text", printable(text, taking::SHOWN)),
                Err(kind) => ("message_other", format!("kind={}", printable(kind, taking::SHOWN))),
            };
            let detail = format!("node_id={} {what}", self.peer.node_id);
            (action, Some(self.peer.addr.to_string()), Some(detail))
        });
        let batch = self.batch.get_or_insert_with(|| Box::new(Batch::new(&self.peer)));
        let added = batch.add(plain);
        let full = batch.is_full();
        if let Err(error) = added {
            self.tell(LogLevel::Error, "message_not_encoded", error);
        }
        match self.taking.pace(now) {
            Duration::ZERO if full => Gathered::Goes,
            Duration::ZERO => Gathered::Stays,
            pause => Gathered::Waits(pause),
        }
    }

    /// Has a peer that is beyond its rate wait, and says so once.
    async fn hold_up(&mut self, pause: Duration) {
        if pause.is_zero() {
            return;
        }
        if !self.held_up {
            self.held_up = true;
            let rate = self.network.net.accepting.messages_per_s;
            let detail = format!("node_id={} messages_per_s={rate}", self.peer.node_id);
            self.tell(LogLevel::Warn, "peer_held_up", detail);
        }
        sleep(pause).await;
    }

    /// What was gathered goes up, as soon as there is room.
    async fn go_up(&mut self) -> Result<(), String> {
        let Some(mut batch) = self.batch.take() else { return Ok(()) };
        batch.room = self.room(batch.weight()).await?;
        if let Some(hall) = self.network.hall.get() {
            hall.take_plain(*batch);
        }
        Ok(())
    }

    /// Hands frames on as they are. Waits while their target is full, so that nothing is lost and only this peer is held up.
    async fn hand_on(&mut self, run: Option<Run>) {
        let Some(Run { outbox, span, count }) = run else { return };
        let until = clock() + HELD_UP;
        loop {
            match outbox.relayed(&self.seat.origin, self.decoder.bytes(span.clone())) {
                Put::Queued => {
                    self.network.relay.figures.forwarded.fetch_add(count, Ordering::Relaxed);
                    return;
                }
                Put::Full if clock() < until => outbox.wait_for_room(HELD_UP).await,
                no @ (Put::Full | Put::Stalled | Put::Gone) => {
                    let mut pause = Duration::ZERO;
                    let lines = self.decoder.bytes(span.clone());
                    for line in lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
                        pause = pause.max(self.seat.undeliverable(self.network, line, no == Put::Gone));
                    }
                    if !pause.is_zero() {
                        sleep(pause).await;
                    }
                    return;
                }
            }
        }
    }

    /// Hands one frame on that is not to be passed as it is, or not so fast.
    async fn send(&mut self, sending: Sending, span: Range<usize>) {
        let Sending { outbox, what, pause } = sending;
        let until = clock() + HELD_UP;
        let gone = loop {
            let put = match &what {
                What::Line => outbox.relayed(&self.seat.origin, self.decoder.bytes(span.start..span.end + 1)),
                What::Rewritten(line) => outbox.relayed(&self.seat.origin, line),
                What::Kept(frame, acknowledges) => outbox.keep(frame, *acknowledges, clock()),
            };
            match put {
                Put::Queued => {
                    self.network.relay.figures.forwarded.fetch_add(1, Ordering::Relaxed);
                    break None;
                }
                Put::Full if clock() < until => outbox.wait_for_room(HELD_UP).await,
                no @ (Put::Full | Put::Stalled | Put::Gone) => break Some(no == Put::Gone),
            }
        };
        let failed = gone.map(|gone| self.seat.undeliverable(self.network, self.decoder.bytes(span), gone));
        let pause = pause.max(failed.unwrap_or_default());
        if !pause.is_zero() {
            sleep(pause).await;
        }
    }

    /// A frame whose target is this node.
    async fn ours(&mut self, span: Range<usize>) -> Result<(), String> {
        let pause = self.taking.pace(clock());
        self.hold_up(pause).await;
        // Room first, as for any line: what is inside may be a large tree.
        let weight = {
            let Some(forward) = line::read(self.decoder.bytes(span.clone())) else { return Ok(()) };
            forward.content_weight()
        };
        let Some(room) = self.room(weight).await? else {
            return self.is_invalid(&WireError::TooHeavy(weight));
        };
        let taken = match line::read(self.decoder.bytes(span)) {
            None => return Ok(()),
            Some(forward) => self.taking.frame(self.network, &forward),
        };
        self.take(taken, room, weight).await
    }

    /// Room for a message of this weight; `None` if no message may weigh so much.
    async fn room(&self, weight: usize) -> Result<Option<OwnedSemaphorePermit>, String> {
        match u32::try_from(weight) {
            Ok(size) if weight <= MAX_WEIGHT => {
                match self.network.room.clone().acquire_many_owned(size).await {
                    Ok(room) => Ok(Some(room)),
                    Err(_) => Err("the node is shutting down".into()),
                }
            }
            _ => Ok(None),
        }
    }

    /// Any other line.
    async fn message(&mut self, span: Range<usize>) -> Result<(), String> {
        // Who is too fast waits before it has anything that others need.
        let pause = self.taking.pace(clock());
        self.hold_up(pause).await;
        // Room first, then parsing: a short line may be a large tree.
        let weight = weight(self.decoder.bytes(span.clone()));
        let Some(room) = self.room(weight).await? else {
            return self.is_invalid(&WireError::TooHeavy(weight));
        };
        let message = match decode(self.decoder.bytes(span)) {
            Ok(message) => message,
            Err(error) => return self.is_invalid(&error),
        };
        if let MessageType::Heartbeat = &message.msg_type {
            let from_itself = message.from == self.peer.node_id;
            match &message.payload {
                // Only the peer itself is answered: a probe in another name would keep a dead id alive.
                Some(Payload::Text(text)) if text == PROBE => {
                    if from_itself {
                        drop(room);
                        let answer = encode(&heartbeat(self.network, &self.peer.node_id, ANSWER));
                        return self.answer(&answer).await;
                    }
                    return Ok(());
                }
                Some(Payload::Text(text)) if text == ANSWER => {
                    if from_itself && !self.answers_probes {
                        self.answers_probes = true;
                        self.network.relay.set_form(&self.peer.node_id, Form::Opaque);
                    }
                    return Ok(());
                }
                _ => {}
            }
        }
        let taken = match message.msg_type {
            MessageType::Disconnect => return Err("the peer said DISCONNECT".into()),
            MessageType::Hello { .. } => {
                self.tell(LogLevel::Debug, "duplicate_hello_ignored", None);
                return Ok(());
            }
            MessageType::RelayBind { .. } => match self.seat.bind(self.network, message.msg_type) {
                Some(answer) => Taken::Answer(Box::new(self.reply(answer))),
                None => Taken::Nothing,
            },
            MessageType::RelayUnbind { ref binding_id } => match self.seat.unbind(binding_id) {
                Some(answer) => Taken::Answer(Box::new(self.reply(answer))),
                None => Taken::Nothing,
            },
            // A peer acknowledges what it was sent itself.
            MessageType::Ack { ref from, sequence, .. } => {
                self.outbox.acknowledged(from, sequence);
                Taken::Nothing
            }
            // One that the seat could not read: its token is written otherwise, or stands too far behind.
            MessageType::RelayForward { .. } => {
                drop(room);
                let what = "a frame to forward whose token does not stand where it should";
                return self.is_invalid(&WireError::NotAMessage(what.into()));
            }
            _ => self.taking.message(self.network, message),
        };
        self.take(taken, room, weight).await
    }

    fn reply(&self, answer: MessageType) -> Message {
        let local = &self.network.local;
        Message::new(&local.node_id, &self.peer.node_id, answer, None, Some(local.realm.clone()))
    }

    /// Does what is to be done with a message.
    async fn take(&mut self, taken: Taken, room: OwnedSemaphorePermit, weight: usize) -> Result<(), String> {
        match taken {
            Taken::Nothing => Ok(()),
            Taken::Answer(answer) => {
                drop(room);
                self.answer(&encode(&answer)).await
            }
            Taken::Up(up) => {
                let (message, owed) = *up;
                let inbound = Inbound { peer: self.peer.clone(), message, room: Some(room), weight, owed };
                if let Some(inbound) = taking::admit(self.network, inbound) {
                    self.network.up(inbound);
                }
                Ok(())
            }
        }
    }

    /// Answers the peer. One that does not read what it asked for gets no answer, and its questions are read slowly: it costs neither
    /// memory nor time, and its connection goes on.
    async fn answer(&mut self, line: &[u8]) -> Result<(), String> {
        match self.outbox.own(line) {
            Put::Queued => Ok(()),
            Put::Gone => Err("closed by this node".into()),
            Put::Full | Put::Stalled => {
                sleep(UNANSWERED).await;
                Ok(())
            }
        }
    }

    /// Counts an invalid line; an error if the connection cannot go on.
    fn is_invalid(&mut self, error: &WireError) -> Result<(), String> {
        let detail = printable(&error.to_string(), 300);
        self.tell(LogLevel::Warn, "message_invalid", detail.clone());
        self.invalid += 1;
        if error.is_fatal() {
            return Err(detail);
        }
        if self.invalid >= MAX_INVALID {
            return Err(format!("{} invalid lines", self.invalid));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
