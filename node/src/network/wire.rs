//! Door 1: bytes from strangers become messages. One JSON object per line; the line is bounded before it is kept, must be
//! UTF-8, and must be a message. Sans-I/O, so that tests and the fuzzer use exactly this.

use std::ops::Range;
use thenodes::network::message::Message;

/// Longest line of an authenticated peer, bytes without the newline.
pub const MAX_LINE: usize = 1024 * 1024;
/// Longest line before HELLO: a stranger gets less.
pub const MAX_HELLO: usize = 16 * 1024;
/// From here on room is made for the longest line at once.
const LONG: usize = 128 * 1024;
/// From here on what is read of a line is read in small steps.
const SMALL_STEPS: usize = 32 * 1024;

/// Most that one line may weigh, see [`weight`]. Well below the room for all messages: whoever waits for more room than there
/// is waits for ever, and everybody else behind it.
pub const MAX_WEIGHT: usize = 64 * 1024 * 1024;

/// Why bytes are no message. The first two end the connection; the others only cost the line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// No newline within the bound.
    #[error("a line of more than {0} bytes")]
    TooLong(usize),
    /// Not UTF-8: the peer speaks something else.
    #[error("a line that is not UTF-8")]
    NotUtf8,
    /// Too much once parsed: it would need more room than one message may have.
    #[error("a line that may take {0} bytes once parsed; one message may take {MAX_WEIGHT}")]
    TooHeavy(usize),
    /// Not JSON, or no message.
    #[error("no message: {0}")]
    NotAMessage(String),
}

impl WireError {
    /// True if the connection cannot go on.
    pub fn is_fatal(&self) -> bool {
        match self {
            WireError::TooLong(_) | WireError::NotUtf8 => true,
            WireError::TooHeavy(_) | WireError::NotAMessage(_) => false,
        }
    }
}

/// Collects bytes and hands out lines. Holds at most one line and one read.
#[derive(Debug)]
pub struct LineDecoder {
    buffer: Vec<u8>,
    start: usize,
    /// Bytes of the unfinished line that are known to hold no newline.
    searched: usize,
    max: usize,
}

impl LineDecoder {
    /// A decoder that refuses lines longer than `max`.
    pub fn new(max: usize) -> Self {
        Self { buffer: Vec::new(), start: 0, searched: 0, max }
    }

    /// Changes the bound, once the peer is known.
    pub fn set_max(&mut self, max: usize) {
        self.max = max;
    }

    /// Adds bytes that were read. Call [`LineDecoder::next`] until it has no more before reading again.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.start > 0 {
            self.buffer.drain(..self.start); // what is left is less than a line
            self.start = 0;
        }
        let needed = self.buffer.len() + bytes.len();
        if needed > LONG && needed > self.buffer.capacity() {
            // Room for a line of any length, of which only what is used costs memory: a line that grows is not copied at every doubling.
            self.buffer.reserve_exact((self.max + bytes.len()).max(needed) - self.buffer.len());
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// The next message; `None` when more bytes are needed. Empty lines are passed over.
    #[allow(clippy::should_implement_trait)] // `Result<Option>` is the field's form for decoders
    pub fn next(&mut self) -> Result<Option<Message>, WireError> {
        self.next_line()?.map(decode).transpose()
    }

    /// The next line, undecoded, for a reader who first asks what it would weigh. Empty lines are passed over.
    pub fn next_line(&mut self) -> Result<Option<&[u8]>, WireError> {
        Ok(self.next_span()?.map(|span| &self.buffer[span]))
    }

    /// Bytes that were pushed and not dropped since; a span stays true until the next push.
    pub fn bytes(&self, span: Range<usize>) -> &[u8] {
        &self.buffer[span]
    }

    /// Bytes of a line that has no end yet.
    pub fn unfinished(&self) -> usize {
        self.buffer.len() - self.start
    }

    /// True within a line whose rest is to be read in small steps.
    pub fn is_long(&self) -> bool {
        self.unfinished() > SMALL_STEPS
    }

    /// Gives memory back while nothing waits.
    pub fn rest(&mut self) {
        if self.start == self.buffer.len() {
            self.buffer = Vec::new();
            self.start = 0;
        }
    }

    /// Where the next line stands; its newline stands right behind it. Empty lines are passed over.
    pub fn next_span(&mut self) -> Result<Option<Range<usize>>, WireError> {
        loop {
            let waiting = &self.buffer[self.start..];
            let end = memchr::memchr(b'\n', &waiting[self.searched..]);
            let Some(end) = end.map(|end| end + self.searched) else {
                self.searched = waiting.len();
                if waiting.len() > self.max {
                    return Err(WireError::TooLong(self.max));
                }
                return Ok(None);
            };
            let line = self.start..self.start + end;
            self.start += end + 1;
            self.searched = 0;
            if end > self.max {
                return Err(WireError::TooLong(self.max));
            }
            if !self.buffer[line.clone()].iter().all(u8::is_ascii_whitespace) {
                return Ok(Some(line));
            }
        }
    }
}

/// How many bytes a line may take once it is parsed, at most: a JSON object of a few bytes becomes a tree of hundreds.
pub fn weight(line: &[u8]) -> usize {
    line.iter().fold(line.len() + 256, |weight, byte| {
        weight
            + match byte {
                b'{' => 768, // a map and its first node
                b'[' | b',' => 40,
                _ => 0,
            }
    })
}

/// Reads one line.
pub fn decode(line: &[u8]) -> Result<Message, WireError> {
    let text = std::str::from_utf8(line).map_err(|_| WireError::NotUtf8)?;
    let mut message: Message =
        serde_json::from_str(text).map_err(|e| WireError::NotAMessage(e.to_string()))?;
    message.validate().map_err(|what| WireError::NotAMessage(what.into()))?;
    message.via = None; // a word between node and plugin
    Ok(message)
}

/// Writes one line, newline included: one buffer, one write, one segment.
pub fn encode(message: &Message) -> Vec<u8> {
    let mut line = message.as_json().into_bytes();
    line.push(b'\n');
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use thenodes::network::message::MessageType;

    fn text(text: &str) -> Message {
        Message::new("a", "b", MessageType::Text(text.into()), None, None)
    }

    fn all(decoder: &mut LineDecoder) -> Result<Vec<Message>, WireError> {
        let mut list = Vec::new();
        while let Some(message) = decoder.next()? {
            list.push(message);
        }
        Ok(list)
    }

    #[test]
    fn a_line_without_end_is_refused_at_its_bound_and_not_kept_further() {
        let mut decoder = LineDecoder::new(1000);
        for _ in 0..10 {
            decoder.push(&[b'x'; 100]);
            assert_eq!(decoder.next(), Ok(None));
        }
        decoder.push(b"x");
        assert_eq!(decoder.next(), Err(WireError::TooLong(1000)));
    }

    #[test]
    fn what_grows_when_it_is_parsed_weighs_more() {
        let flat = encode(&text(&"x".repeat(10_000)));
        assert!(weight(&flat) < 15_000);
        let nested = "{\"\":0},".repeat(10_000);
        assert!(weight(nested.as_bytes()) > 7_000_000);
    }

    #[test]
    fn garbage_costs_its_line_and_wrong_encoding_the_connection() {
        let mut decoder = LineDecoder::new(1000);
        decoder.push(b"hello?\n\r\n  \n");
        decoder.push(&encode(&text("after")));
        let error = decoder.next().expect_err("no message");
        assert!(!error.is_fatal());
        assert_eq!(decoder.next(), Ok(Some(text("after"))));
        decoder.push(b"\xff\xfe\n");
        assert!(decoder.next().expect_err("not UTF-8").is_fatal());
    }

    #[test]
    fn windows_line_ends_and_deep_nesting_are_survived() {
        let line = text("x").as_json() + "\r\n";
        assert_eq!(
            all(&mut {
                let mut d = LineDecoder::new(1000);
                d.push(line.as_bytes());
                d
            }),
            Ok(vec![text("x")])
        );
        let deep = format!(
            r#"{{"from":"a","to":"b","msg_type":"HEARTBEAT","payload":{{"type":"Json","value":{}"#,
            "[".repeat(100_000)
        );
        assert!(decode(deep.as_bytes()).is_err());
    }

    proptest! {
        #[test]
        fn messages_come_back_however_they_are_cut(texts in proptest::collection::vec(".{0,100}", 1..8), step in 1usize..200) {
            let messages: Vec<Message> = texts.iter().map(|t| text(t)).collect();
            let bytes: Vec<u8> = messages.iter().flat_map(encode).collect();
            let mut decoder = LineDecoder::new(MAX_LINE);
            let mut seen = Vec::new();
            for piece in bytes.chunks(step) {
                decoder.push(piece);
                seen.extend(all(&mut decoder).expect("valid"));
            }
            prop_assert_eq!(seen, messages);
        }

        #[test]
        fn no_bytes_panic_the_door_or_make_it_keep_more_than_its_bound(pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..300), 0..20)) {
            let mut decoder = LineDecoder::new(500);
            for piece in pieces {
                decoder.push(&piece);
                loop {
                    match decoder.next() {
                        Ok(Some(_)) | Err(WireError::NotAMessage(_)) => {}
                        Ok(None) => break,
                        Err(_) => return Ok(()),
                    }
                }
                prop_assert!(decoder.buffer.len() - decoder.start <= 500);
            }
        }
    }
}
