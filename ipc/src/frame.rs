//! One frame of the link, sans-I/O: bytes in, typed [`Frame`]s out. Door 2 of the node uses it against runners, which are
//! hostile from the moment their library is opened; so lengths are checked before anything is kept.
//!
//! ```text
//! u32 big-endian  length of everything after it (header length + header + body), at most the frame cap
//! u16 big-endian  length of the header, at most MAX_HEADER
//! header          MessagePack map: kind, and by kind: id, cause, method, code, deadline_ms, optional
//! body            raw bytes, meaning given by kind and method
//! ```

use crate::header::Header;
use crate::{code::Code, id::CallId, limits};

/// Bodies from this size on are moved out of the decoder and not copied.
const MOVED: usize = 8 * 1024;

/// Buffers up to this size are used again.
const REUSED: usize = 256 * 1024;

/// What stands before the header of each frame.
pub const PREFIX: usize = 6;

/// A frame that ends the conversation. One violation ends the link; there is no resynchronising.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The length is above the cap that both sides agreed on.
    #[error("a frame of {length} bytes; the cap is {cap}")]
    TooLong {
        /// Announced length.
        length: usize,
        /// Cap in force.
        cap: usize,
    },
    /// The length leaves no room for its own header.
    #[error("a frame of {length} bytes with a header of {header} bytes")]
    BadHeaderLength {
        /// Announced length of the frame.
        length: usize,
        /// Announced length of the header.
        header: usize,
    },
    /// The header is not a MessagePack map with the fields its kind needs.
    #[error("malformed header: {0}")]
    BadHeader(String),
    /// A kind this side does not know and the sender did not mark as optional.
    #[error("unknown frame kind {0:?}, not marked optional")]
    UnknownKind(String),
}

/// A frame, its body still undecoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame<'a> {
    /// A step of the start-up exchange; see [`crate::launch`] for names and bodies.
    Launch {
        /// `hello`, `confined`, `proceed`, `registered`, `refused`.
        step: &'a str,
        /// The step's struct.
        body: &'a [u8],
    },
    /// A call that will be answered by a [`Frame::Reply`] with the same id.
    Call {
        /// The caller's number for it.
        id: CallId,
        /// The call of the other side that caused this one, if any: it lets a call inside a call pass full queues.
        cause: Option<CallId>,
        /// What is to be done.
        method: &'a str,
        /// Milliseconds the callee has left; zero means the default of the method.
        deadline_ms: u32,
        /// Arguments.
        body: &'a [u8],
    },
    /// A call that nobody answers: log lines, events, peer notices.
    Notify {
        /// What is said.
        method: &'a str,
        /// Arguments.
        body: &'a [u8],
    },
    /// The answer to a call.
    Reply {
        /// The call's number.
        id: CallId,
        /// `None`: it went well and the body is the result. `Some`: it failed and the body is a UTF-8 message.
        failed: Option<Code>,
        /// Result or message.
        body: &'a [u8],
    },
    /// The caller no longer waits for this call.
    Cancel {
        /// The call's number.
        id: CallId,
    },
    /// A kind from a newer peer that may be ignored; counted by the receiver.
    Ignored,
}

const LAUNCH_STEPS: [&str; 7] =
    ["hello", "confined", "proceed", "registered", "refused", crate::report::DENIAL, crate::report::ENDED];

impl<'a> Frame<'a> {
    /// Writes prefix and header of this frame; the body follows on the wire as it is, so that one body can be sent to many.
    pub fn encode_head(&self, out: &mut Vec<u8>, cap: usize) -> Result<(), FrameError> {
        let mut header = Header::default();
        let mut body: &[u8] = &[];
        match self {
            Frame::Launch { step, body: b } => {
                header.kind = step;
                body = b;
            }
            Frame::Call { id, cause, method, deadline_ms, body: b } => {
                header.kind = "call";
                header.id = id.0;
                header.cause = cause.map_or(0, |c| c.0);
                header.method = method;
                header.deadline_ms = *deadline_ms;
                body = b;
            }
            Frame::Notify { method, body: b } => {
                header.kind = "notify";
                header.method = method;
                body = b;
            }
            Frame::Reply { id, failed, body: b } => {
                header.kind = "reply";
                header.id = id.0;
                header.code = failed.as_ref().map_or("", Code::as_str);
                body = b;
            }
            Frame::Cancel { id } => {
                header.kind = "cancel";
                header.id = id.0;
            }
            Frame::Ignored => {
                header.kind = "ignored";
                header.optional = true;
            }
        }
        let start = out.len();
        out.extend_from_slice(&[0; PREFIX]);
        header.write(out);
        let header_len = out.len() - start - PREFIX;
        let length = 2 + header_len + body.len();
        if length > cap {
            out.truncate(start);
            return Err(FrameError::TooLong { length, cap });
        }
        if header_len > limits::MAX_HEADER {
            out.truncate(start);
            return Err(FrameError::BadHeaderLength { length, header: header_len });
        }
        // Both fit: cap is at most 1 MiB and the header at most 4 KiB.
        out[start..start + 4].copy_from_slice(&(length as u32).to_be_bytes());
        out[start + 4..start + 6].copy_from_slice(&(header_len as u16).to_be_bytes());
        Ok(())
    }

    /// Writes the whole frame.
    pub fn encode(&self, out: &mut Vec<u8>, cap: usize) -> Result<(), FrameError> {
        self.encode_head(out, cap)?;
        out.extend_from_slice(self.body());
        Ok(())
    }

    /// The body, empty where the kind has none.
    pub fn body(&self) -> &'a [u8] {
        match self {
            Frame::Launch { body, .. }
            | Frame::Call { body, .. }
            | Frame::Notify { body, .. }
            | Frame::Reply { body, .. } => body,
            Frame::Cancel { .. } | Frame::Ignored => &[],
        }
    }

    /// Reads what stands after the length: header length, header, body.
    fn decode(bytes: &'a [u8]) -> Result<Self, FrameError> {
        let length = bytes.len();
        let header_len = match bytes {
            [a, b, ..] => usize::from(u16::from_be_bytes([*a, *b])),
            _ => return Err(FrameError::BadHeaderLength { length, header: 0 }),
        };
        if header_len > limits::MAX_HEADER || 2 + header_len > length {
            return Err(FrameError::BadHeaderLength { length, header: header_len });
        }
        let (head, body) = bytes[2..].split_at(header_len);
        let header = Header::read(head).map_err(|why| FrameError::BadHeader(why.into()))?;
        let missing = |what: &str| FrameError::BadHeader(format!("{} without {what}", header.kind));
        let id = || Some(CallId(header.id)).filter(|id| id.0 != 0).ok_or_else(|| missing("id"));
        let method = || {
            let fits = !header.method.is_empty() && header.method.len() <= limits::MAX_METHOD;
            fits.then_some(header.method).ok_or_else(|| missing("a method of 1 to 64 bytes"))
        };
        Ok(match header.kind {
            "call" => Frame::Call {
                id: id()?,
                cause: Some(CallId(header.cause)).filter(|id| id.0 != 0),
                method: method()?,
                deadline_ms: header.deadline_ms,
                body,
            },
            "notify" => Frame::Notify { method: method()?, body },
            "reply" => Frame::Reply {
                id: id()?,
                failed: (!header.code.is_empty()).then(|| Code::parse(header.code)),
                body,
            },
            "cancel" => Frame::Cancel { id: id()? },
            step if LAUNCH_STEPS.contains(&step) => Frame::Launch { step, body },
            _ if header.optional => Frame::Ignored,
            other => return Err(FrameError::UnknownKind(other.chars().take(32).collect())),
        })
    }
}

/// Collects bytes and hands out whole frames. Holds at most one frame cap plus one read.
#[derive(Debug)]
pub struct FrameDecoder {
    buffer: Vec<u8>,
    /// Start of what was not handed out yet.
    start: usize,
    cap: usize,
}

impl FrameDecoder {
    /// A decoder that refuses frames longer than `cap` bytes after their length.
    pub fn new(cap: usize) -> Self {
        Self { buffer: Vec::new(), start: 0, cap: cap.min(limits::MAX_FRAME) }
    }

    /// Lowers the cap once the two sides agreed on one.
    pub fn set_cap(&mut self, cap: usize) {
        self.cap = cap.min(limits::MAX_FRAME);
    }

    /// Adds bytes that were read. Call [`FrameDecoder::next`] until it has no more before reading again; then the buffer
    /// never holds more than one unfinished frame.
    pub fn push(&mut self, bytes: &[u8]) {
        self.room(bytes.len()).extend_from_slice(bytes);
    }

    /// The buffer, with room for `count` more bytes or for the rest of the frame that has begun, if that is more: for
    /// readers that append to it without a copy between. Only append.
    pub fn room(&mut self, count: usize) -> &mut Vec<u8> {
        let rest = self.missing().unwrap_or(0);
        if self.start == self.buffer.len() {
            self.buffer.clear();
            if self.buffer.capacity() > REUSED {
                self.buffer = Vec::new();
            }
        } else if self.start > 0 {
            self.buffer.drain(..self.start);
        }
        self.start = 0;
        // Exactly: the rest of a large frame must not double the buffer.
        self.buffer.reserve_exact(count.max(rest));
        &mut self.buffer
    }

    /// Bytes that the frame that has begun still lacks; `None` if none has begun or its length is not known.
    pub fn missing(&self) -> Option<usize> {
        let prefix = self.buffer[self.start..].first_chunk::<4>()?;
        let whole = (u32::from_be_bytes(*prefix) as usize).min(self.cap) + 4;
        Some(whole.saturating_sub(self.unfinished()))
    }

    /// The last `length` bytes of the frame that was handed out last, which are its body.
    pub fn last_body(&self, length: usize) -> &[u8] {
        &self.buffer[self.start.saturating_sub(length)..self.start]
    }

    /// The last `length` bytes of the frame that was handed out last, which are its body, as bytes of their own: from the
    /// returned index on. Without a copy where the frame is large and nothing follows it.
    pub fn take_body(&mut self, length: usize) -> (Vec<u8>, usize) {
        let from = self.start.saturating_sub(length);
        if length >= MOVED && self.start == self.buffer.len() {
            self.start = 0;
            (std::mem::take(&mut self.buffer), from)
        } else {
            (self.buffer[from..self.start].to_vec(), 0)
        }
    }

    /// The next whole frame, `None` when more bytes are needed.
    #[allow(clippy::should_implement_trait)] // it lends, which an iterator cannot
    pub fn next(&mut self) -> Result<Option<Frame<'_>>, FrameError> {
        let waiting = &self.buffer[self.start..];
        let Some(prefix) = waiting.first_chunk::<4>() else { return Ok(None) };
        let length = u32::from_be_bytes(*prefix) as usize;
        if length > self.cap {
            return Err(FrameError::TooLong { length, cap: self.cap });
        }
        if waiting.len() < 4 + length {
            return Ok(None);
        }
        let from = self.start + 4;
        self.start = from + length;
        Frame::decode(&self.buffer[from..from + length]).map(Some)
    }

    /// True if [`FrameDecoder::next`] has a whole frame, good or bad.
    pub fn has_next(&self) -> bool {
        self.missing() == Some(0)
    }

    /// An error if the frame that has begun is longer than the cap.
    pub fn check(&self) -> Result<(), FrameError> {
        match self.buffer[self.start..].first_chunk::<4>().map(|prefix| u32::from_be_bytes(*prefix) as usize)
        {
            Some(length) if length > self.cap => Err(FrameError::TooLong { length, cap: self.cap }),
            _ => Ok(()),
        }
    }

    /// Splits off the whole frames that have come: a decoder of their own, which gets no more bytes.
    pub fn split(&mut self) -> FrameDecoder {
        let mut whole = FrameDecoder::new(self.cap);
        let mut end = self.start;
        while let Some(prefix) = self.buffer[end..].first_chunk::<4>() {
            match end.checked_add(4 + u32::from_be_bytes(*prefix) as usize) {
                Some(next) if next <= self.buffer.len() => end = next,
                _ => break,
            }
        }
        let rest = self.buffer[end..].to_vec();
        whole.start = std::mem::take(&mut self.start);
        whole.buffer = std::mem::replace(&mut self.buffer, rest);
        whole.buffer.truncate(end);
        whole
    }

    /// Goes on with the buffer of a decoder that is done, if this one has nothing yet and the buffer is of an ordinary size.
    pub fn reuse(&mut self, used: FrameDecoder) {
        if self.buffer.capacity() == 0 && used.buffer.capacity() <= REUSED {
            self.buffer = used.buffer;
            self.buffer.clear();
            self.start = 0;
        }
    }

    /// Length of the frame that has begun and is not whole yet; zero if none has, or its length is not known. At most the cap: a
    /// longer one is an error of [`FrameDecoder::next`], which must be asked first.
    pub fn announced(&self) -> usize {
        let prefix = self.buffer[self.start..].first_chunk::<4>();
        prefix.map_or(0, |prefix| u32::from_be_bytes(*prefix) as usize).min(self.cap)
    }

    /// Bytes held that belong to no whole frame yet; not zero at the end of a stream means it was cut.
    pub fn unfinished(&self) -> usize {
        self.buffer.len() - self.start
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::Generation;
    use proptest::prelude::*;

    fn bytes_of(frame: &Frame<'_>) -> Vec<u8> {
        let mut out = Vec::new();
        frame.encode(&mut out, limits::MAX_FRAME).expect("it fits");
        out
    }

    /// The bytes on the wire are a promise to runners that were built before this commit.
    #[test]
    fn the_bytes_of_each_kind_do_not_change() {
        let id = CallId::new(Generation(3), 9);
        let hex = |frame: &Frame<'_>| bytes_of(frame).iter().map(|b| format!("{b:02x}")).collect::<String>();
        assert_eq!(
            hex(&Frame::Call { id, cause: None, method: "prompt", deadline_ms: 500, body: b"hi" }),
            "00000038003484a46b696e64a463616c6ca26964cf0000030000000009a66d6574686f64a670726f6d7074ab646561646c\
             696e655f6d73cd01f46869"
                .replace(' ', "")
        );
        assert_eq!(
            hex(&Frame::Reply { id, failed: Some(Code::Timeout), body: b"late" }),
            "0000002b002583a46b696e64a57265706c79a26964cf0000030000000009a4636f6465a754494d454f55546c617465"
        );
        assert_eq!(
            hex(&Frame::Cancel { id }),
            "0000001b001982a46b696e64a663616e63656ca26964cf0000030000000009"
        );
        assert_eq!(
            hex(&Frame::Notify { method: "log", body: b"" }),
            "0000001a001882a46b696e64a66e6f74696679a66d6574686f64a36c6f67"
        );
        assert_eq!(
            hex(&Frame::Launch { step: "hello", body: b"\x80" }),
            "0000000f000c81a46b696e64a568656c6c6f80"
        );
    }

    #[test]
    fn a_length_above_the_cap_is_refused_from_its_four_bytes_alone() {
        let mut decoder = FrameDecoder::new(1000);
        decoder.push(&1001u32.to_be_bytes());
        assert_eq!(decoder.next(), Err(FrameError::TooLong { length: 1001, cap: 1000 }));
        let mut decoder = FrameDecoder::new(limits::MAX_FRAME);
        decoder.push(&u32::MAX.to_be_bytes());
        assert!(matches!(decoder.next(), Err(FrameError::TooLong { .. })));
    }

    #[test]
    fn a_frame_too_small_for_its_header_is_refused() {
        for bytes in [&[0, 0, 0, 0][..], &[0, 0, 0, 1, 0], &[0, 0, 0, 2, 0, 9], &[0, 0, 0, 3, 0, 1, 0xc1]] {
            let mut decoder = FrameDecoder::new(1000);
            decoder.push(bytes);
            assert!(decoder.next().is_err(), "{bytes:?}");
        }
    }

    #[test]
    fn an_unknown_kind_is_ignored_only_if_it_says_it_may_be() {
        let mut bytes = bytes_of(&Frame::Ignored);
        let mut decoder = FrameDecoder::new(1000);
        decoder.push(&bytes);
        assert_eq!(decoder.next(), Ok(Some(Frame::Ignored)));
        let at = bytes.windows(8).position(|w| w == b"optional").expect("the key is there");
        bytes[at] = b'0';
        let mut decoder = FrameDecoder::new(1000);
        decoder.push(&bytes);
        assert_eq!(decoder.next(), Err(FrameError::UnknownKind("ignored".into())));
    }

    #[test]
    fn a_sender_cannot_make_a_frame_that_the_reader_would_refuse() {
        let body = vec![0; limits::MAX_FRAME];
        let mut out = vec![7];
        let frame = Frame::Notify { method: "log", body: &body };
        assert!(matches!(frame.encode(&mut out, limits::MAX_FRAME), Err(FrameError::TooLong { .. })));
        assert_eq!(out, [7]);
    }

    fn any_frame() -> impl Strategy<Value = (u8, u64, u64, String, u32, Vec<u8>)> {
        (
            0u8..4,
            1u64..,
            any::<u64>(),
            "[a-z.]{1,64}",
            any::<u32>(),
            proptest::collection::vec(any::<u8>(), 0..3000),
        )
    }

    proptest! {
        #[test]
        fn every_frame_comes_back_however_it_is_cut(list in proptest::collection::vec(any_frame(), 1..6), step in 1usize..700) {
            let frames: Vec<Frame<'_>> = list.iter().map(|(kind, id, cause, method, deadline_ms, body)| match kind {
                0 => Frame::Call { id: CallId(*id), cause: Some(CallId(*cause)).filter(|c| c.0 != 0), method, deadline_ms: *deadline_ms, body },
                1 => Frame::Notify { method, body },
                2 => Frame::Reply { id: CallId(*id), failed: (cause % 2 == 0).then_some(Code::Conflict), body },
                _ => Frame::Cancel { id: CallId(*id) },
            }).collect();
            let bytes: Vec<u8> = frames.iter().flat_map(bytes_of).collect();
            let mut decoder = FrameDecoder::new(limits::MAX_FRAME);
            let mut seen = 0;
            for piece in bytes.chunks(step) {
                decoder.push(piece);
                while let Some(frame) = decoder.next().expect("valid bytes") {
                    prop_assert_eq!(&frame, &frames[seen]);
                    seen += 1;
                }
            }
            prop_assert_eq!(seen, frames.len());
            prop_assert_eq!(decoder.unfinished(), 0);
        }

        #[test]
        fn no_bytes_panic_the_decoder_or_make_it_keep_more_than_it_was_given(bytes in proptest::collection::vec(any::<u8>(), 0..4096)) {
            let mut decoder = FrameDecoder::new(2048);
            decoder.push(&bytes);
            while let Ok(Some(_)) = decoder.next() {}
            prop_assert!(decoder.buffer.capacity() <= bytes.len().max(64) * 2);
        }
    }
}
