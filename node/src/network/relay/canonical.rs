//! A RELAY_FWD line as upstream's and our own encoder write it, read in one pass. Most frames come so, and finding out for whom one is
//! must not cost more than handing it on. It trusts nobody: what is not to the letter as expected is nothing to it, and is read the long
//! way ([`line::read_any`](super::line::read_any)), which alone decides what is a frame. Whatever this reads, that reads as the same.

use super::line::{Content, Forward};
use memchr::memchr2;
use std::borrow::Cow;

/// What is left of a line.
struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    fn literal(&mut self, expected: &[u8]) -> Option<()> {
        self.0 = self.0.strip_prefix(expected)?;
        Some(())
    }

    /// A text up to its closing quote, which is passed: without escapes, so that it is what it says.
    fn text(&mut self) -> Option<&'a str> {
        let end = memchr2(b'"', b'\\', self.0)?;
        let (text, rest) = self.0.split_at(end);
        self.0 = rest.strip_prefix(b"\"")?;
        // All of it, and not up to the first that is one: so sixteen are looked at together.
        let least = text.iter().fold(u8::MAX, |least, byte| least.min(*byte));
        if least < b' ' {
            return None;
        }
        std::str::from_utf8(text).ok()
    }

    fn number(&mut self) -> Option<u64> {
        let end = self.0.iter().position(|byte| !byte.is_ascii_digit())?;
        let (digits, rest) = self.0.split_at(end);
        if digits.len() > 1 && digits[0] == b'0' {
            return None;
        }
        self.0 = rest;
        let mut digits = digits.iter();
        let first = u64::from(digits.next()? - b'0');
        digits.try_fold(first, |number, digit| number.checked_mul(10)?.checked_add(u64::from(digit - b'0')))
    }

    /// An object of texts, after its opening brace.
    fn texts(&mut self) -> Option<()> {
        loop {
            self.literal(b"\"")?;
            self.text()?;
            self.literal(b":\"")?;
            self.text()?;
            match self.0.split_first()? {
                (b',', rest) => self.0 = rest,
                (b'}', rest) => {
                    self.0 = rest;
                    return Some(());
                }
                _ => return None,
            }
        }
    }
}

/// Reads a line; `None` if it is written otherwise.
pub(super) fn read(line: &[u8]) -> Option<Forward<'_>> {
    let mut rest = Rest(line);
    rest.literal(b"{\"from\":\"")?;
    let outer_from = rest.text()?;
    rest.literal(b",\"to\":\"")?;
    rest.text()?;
    rest.literal(b",\"msg_type\":{\"RELAY_FWD\":{\"to\":\"")?;
    let to = rest.text()?;
    rest.literal(b",\"from\":\"")?;
    let from = rest.text()?;
    rest.literal(b",\"sequence\":")?;
    let sequence = match rest.literal(b"null") {
        Some(()) => None,
        None => Some(rest.number()?),
    };
    rest.literal(b",\"opaque_payload_b64\":\"")?;
    let opaque = rest.text()?;
    rest.literal(b"}},\"payload\":null,\"realm\":")?;
    if rest.literal(b"null").is_none() {
        rest.literal(b"{")?;
        rest.texts()?;
    }
    rest.literal(b"}")?;
    rest.0.is_empty().then_some(Forward {
        to: Cow::Borrowed(to),
        from: Cow::Borrowed(from),
        sequence,
        outer_from: Cow::Borrowed(outer_from),
        content: Content::Opaque(Cow::Borrowed(opaque)),
    })
}

#[cfg(test)]
mod tests {
    use super::super::line;
    use super::*;
    use proptest::prelude::*;
    use thenodes::network::message::{Message, MessageType};
    use thenodes::realms::RealmInfo;

    /// As the encoder writes it.
    fn written(
        from: &str,
        to: &str,
        sequence: Option<u64>,
        opaque: &str,
        realm: Option<RealmInfo>,
    ) -> Vec<u8> {
        let forward = MessageType::RelayForward {
            to: to.into(),
            from: from.into(),
            sequence,
            opaque_payload_b64: Some(opaque.into()),
        };
        let mut line = crate::network::wire::encode(&Message::new(from, to, forward, None, realm));
        assert_eq!(line.pop(), Some(b'\n'));
        line
    }

    fn same(here: &Forward<'_>, there: &Forward<'_>) {
        let contents = match (&here.content, &there.content) {
            (Content::Opaque(here), Content::Opaque(there)) => here == there,
            _ => false,
        };
        assert!(contents && here.to == there.to && here.from == there.from, "{here:?} {there:?}");
        assert!(here.sequence == there.sequence && here.outer_from == there.outer_from, "{here:?} {there:?}");
    }

    #[test]
    fn what_the_encoder_writes_is_read() {
        let realm = RealmInfo { name: "Interop Test".into(), code: Some("X".into()), version: "1.0".into() };
        for realm in [None, Some(realm), Some(RealmInfo::new("T", "1"))] {
            for sequence in [None, Some(0), Some(u64::MAX)] {
                let line = written("node-a", "node-b", sequence, "aGk=", realm.clone());
                same(&read(&line).expect("canonical"), &line::read_any(&line).expect("a frame"));
            }
        }
        // Real bytes of 0.4.0, from the specification.
        let captured = br#"{"from":"node-a","to":"relay-r","msg_type":{"RELAY_FWD":{"to":"node-b","from":"node-a","sequence":1,"opaque_payload_b64":"eyJm"}},"payload":null,"realm":{"name":"Interop Test","version":"1.0"}}"#;
        assert!(read(captured).is_some());
    }

    #[test]
    fn what_is_written_otherwise_is_left_to_the_long_way() {
        let line = String::from_utf8(written("a", "b", Some(7), "aGk=", None)).expect("text");
        assert!(read(line.as_bytes()).is_some());
        for (from, to) in [
            (":7,", ":07,"),
            (":7,", ":-1,"),
            (":7,", ":18446744073709551616,"),
            (":7,", ":7.0,"),
            (":7,", ": 7,"),
            ("aGk=", "a\\u0047k="),
            ("aGk=", "a\u{1}k="),
            ("null}", "{}}"),
            ("null}", "null,\"delivery\":null}"),
            ("null}", "null}\r"),
            ("{\"from\"", "\u{feff}{\"from\""),
        ] {
            let other = line.replacen(from, to, 1);
            assert!(other != line && read(other.as_bytes()).is_none(), "{other}");
        }
    }

    proptest! {
        #[test]
        fn whatever_is_read_here_is_read_the_long_way_as_the_same(
            from in ".{0,12}", to in ".{0,12}", opaque in ".{0,40}", sequence: Option<u64>,
            bytes: Vec<u8>, at in 0usize..260, cut in 0usize..20, patch: bool,
        ) {
            let mut line = written(&from, &to, sequence, &opaque, Some(RealmInfo::new("T", "1")));
            if patch {
                line.splice(at.min(line.len())..(at + cut).min(line.len()), bytes);
            }
            if let Some(forward) = read(&line) {
                same(&forward, &line::read_any(&line).expect("a frame the long way too"));
            }
        }

        #[test]
        fn one_changed_byte_is_no_difference_either(at in 0usize..220, byte: u8) {
            let mut line = written("node-a", "node-b", Some(7), "aGk=", Some(RealmInfo::new("T", "1")));
            let at = at % line.len();
            line[at] = byte;
            if let Some(forward) = read(&line) {
                same(&forward, &line::read_any(&line).expect("a frame the long way too"));
            }
        }
    }
}
