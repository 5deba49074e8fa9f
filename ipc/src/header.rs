//! The header of a frame, written and read by hand: it is on the path of every call, and its seven fields do not need a
//! general decoder. What is read comes from the other side of the link and is not trusted: every length is checked before
//! it is used, nothing is copied, unknown fields are passed over.
//!
//! The bytes are those of a MessagePack map with string keys, so any MessagePack library reads them; a test compares the
//! two.

use crate::pack::{head, split_value, Kind};

/// Absent numbers are zero, absent words are empty.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[cfg_attr(test, derive(serde::Serialize, serde::Deserialize))]
pub(crate) struct Header<'a> {
    pub(crate) kind: &'a str,
    #[cfg_attr(test, serde(default, skip_serializing_if = "tests::is_zero"))]
    pub(crate) id: u64,
    #[cfg_attr(test, serde(default, skip_serializing_if = "tests::is_zero"))]
    pub(crate) cause: u64,
    #[cfg_attr(test, serde(default, skip_serializing_if = "str::is_empty"))]
    pub(crate) method: &'a str,
    #[cfg_attr(test, serde(default, skip_serializing_if = "str::is_empty"))]
    pub(crate) code: &'a str,
    #[cfg_attr(test, serde(default, skip_serializing_if = "tests::is_zero32"))]
    pub(crate) deadline_ms: u32,
    #[cfg_attr(test, serde(default, skip_serializing_if = "std::ops::Not::not"))]
    pub(crate) optional: bool,
}

impl<'a> Header<'a> {
    /// Appends the map.
    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        let numbers = [self.id, self.cause, self.deadline_ms.into()].iter().filter(|n| **n != 0).count();
        let words = [self.method, self.code].iter().filter(|word| !word.is_empty()).count();
        // Seven at most: a short map.
        out.push(0x80 | (1 + numbers + words + usize::from(self.optional)) as u8);
        put_text(out, "kind");
        put_text(out, self.kind);
        for (key, number) in [("id", self.id), ("cause", self.cause)] {
            if number != 0 {
                put_text(out, key);
                put_number(out, number);
            }
        }
        for (key, word) in [("method", self.method), ("code", self.code)] {
            if !word.is_empty() {
                put_text(out, key);
                put_text(out, word);
            }
        }
        if self.deadline_ms != 0 {
            put_text(out, "deadline_ms");
            put_number(out, self.deadline_ms.into());
        }
        if self.optional {
            put_text(out, "optional");
            out.push(0xc3);
        }
    }

    /// Reads exactly one map. The error says what is wrong with it.
    pub(crate) fn read(bytes: &'a [u8]) -> Result<Self, &'static str> {
        const CUT: &str = "it is cut short";
        let (Kind::Map(count), mut rest) = head(bytes).ok_or(CUT)? else { return Err("it is no map") };
        let mut header = Header::default();
        let mut seen = 0u8;
        for _ in 0..count {
            let (key, after) = split_value(rest).ok_or(CUT)?;
            let (value, after) = split_value(after).ok_or(CUT)?;
            rest = after;
            let field = match word(key).ok_or("a key is no string")? {
                "kind" => {
                    header.kind = word(value).ok_or("kind is no string")?;
                    0
                }
                "id" => {
                    header.id = number(value).ok_or("id is no number")?;
                    1
                }
                "cause" => {
                    header.cause = number(value).ok_or("cause is no number")?;
                    2
                }
                "method" => {
                    header.method = word(value).ok_or("method is no string")?;
                    3
                }
                "code" => {
                    header.code = word(value).ok_or("code is no string")?;
                    4
                }
                "deadline_ms" => {
                    let number = number(value).and_then(|n| u32::try_from(n).ok());
                    header.deadline_ms = number.ok_or("deadline_ms is no number of 32 bits")?;
                    5
                }
                "optional" => {
                    header.optional = match value {
                        [0xc2] => false,
                        [0xc3] => true,
                        _ => return Err("optional is no truth value"),
                    };
                    6
                }
                _ => continue, // from a newer side
            };
            if seen & (1 << field) != 0 {
                return Err("a field stands there twice");
            }
            seen |= 1 << field;
        }
        match (rest, seen & 1) {
            ([], 1) => Ok(header),
            ([], _) => Err("it has no kind"),
            _ => Err("bytes follow it"),
        }
    }
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    match text.len() {
        n @ 0..=31 => out.push(0xa0 | n as u8),
        n @ 32..=255 => out.extend_from_slice(&[0xd9, n as u8]),
        n @ 256..=0xffff => {
            out.push(0xda);
            out.extend_from_slice(&(n as u16).to_be_bytes());
        }
        // Longer than any header may be: the frame is refused by its length.
        n => {
            out.push(0xdb);
            out.extend_from_slice(&u32::try_from(n).unwrap_or(u32::MAX).to_be_bytes());
        }
    }
    out.extend_from_slice(text.as_bytes());
}

fn put_number(out: &mut Vec<u8>, number: u64) {
    match number {
        n @ 0..=0x7f => out.push(n as u8),
        n @ 0x80..=0xff => out.extend_from_slice(&[0xcc, n as u8]),
        n @ 0x100..=0xffff => {
            out.push(0xcd);
            out.extend_from_slice(&(n as u16).to_be_bytes());
        }
        n @ 0x1_0000..=0xffff_ffff => {
            out.push(0xce);
            out.extend_from_slice(&(n as u32).to_be_bytes());
        }
        n => {
            out.push(0xcf);
            out.extend_from_slice(&n.to_be_bytes());
        }
    }
}

/// The content of a string.
fn word(value: &[u8]) -> Option<&str> {
    match value.first()? {
        0xa0..=0xbf | 0xd9..=0xdb => match head(value)? {
            (Kind::Bytes(_), content) => std::str::from_utf8(content).ok(),
            _ => None,
        },
        _ => None,
    }
}

/// A number that is not negative, of any width.
fn number(value: &[u8]) -> Option<u64> {
    let (marker, digits) = value.split_first()?;
    let number = digits.iter().fold(0u64, |n, digit| n << 8 | u64::from(*digit));
    match (marker, digits.len()) {
        (0x00..=0x7f, 0) => Some(u64::from(*marker)),
        (0xcc, 1) | (0xcd, 2) | (0xce, 4) | (0xcf, 8) => Some(number),
        // Signed ones as well, as long as the sign is plus.
        (0xd0, 1) | (0xd1, 2) | (0xd2, 4) | (0xd3, 8) if digits[0] < 0x80 => Some(number),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pack;
    use proptest::prelude::*;

    #[allow(clippy::trivially_copy_pass_by_ref)] // serde's signature
    pub(super) fn is_zero(n: &u64) -> bool {
        *n == 0
    }
    #[allow(clippy::trivially_copy_pass_by_ref)]
    pub(super) fn is_zero32(n: &u32) -> bool {
        *n == 0
    }

    #[test]
    fn what_is_no_header_is_refused_and_says_why() {
        for (bytes, why) in [
            (&b""[..], "cut"),
            (b"\x81", "cut"),
            (b"\xc0", "no map"),
            (b"\x80", "no kind"),
            (b"\x81\x01\x01", "key"),
            (b"\x81\xa4kind\x01", "kind"),
            (b"\x81\xa4kind\xa1a\xc0", "follow"),
            (b"\x82\xa4kind\xa1a\xa4kind\xa1b", "twice"),
            (b"\x82\xa4kind\xa1a\xa2id\xd0\xff", "id"),
            (b"\x82\xa4kind\xa1a\xabdeadline_ms\xcf\0\0\0\x01\0\0\0\0", "32 bits"),
            (b"\x82\xa4kind\xa1a\xa8optional\xc0", "truth"),
            (b"\x81\xa4kind\xa2\xff\xff", "kind"),
        ] {
            let error = Header::read(bytes).expect_err("no header");
            assert!(error.contains(why), "{bytes:x?}: {error}");
        }
        // A field of a newer side is passed over, whatever it holds.
        let newer = b"\x82\xa4kind\xa1a\xa3new\x81\x01\x92\x01\xc0";
        assert_eq!(Header::read(newer), Ok(Header { kind: "a", ..Header::default() }));
    }

    proptest! {
        #[test]
        fn it_is_what_any_messagepack_library_writes_and_reads(
            kind in "[a-z]{1,40}", id: u64, cause: u64, method in "[a-z.]{0,300}", code in "[A-Z_]{0,64}", deadline_ms: u32, optional: bool,
        ) {
            let header = Header { kind: &kind, id, cause, method: &method, code: &code, deadline_ms, optional };
            let mut ours = Vec::new();
            header.write(&mut ours);
            prop_assert_eq!(&ours, &pack::encode(&header).expect("encodes"));
            prop_assert_eq!(Header::read(&ours), Ok(header));
        }

        #[test]
        fn no_bytes_panic_it_and_what_it_takes_the_library_takes_too(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(header) = Header::read(&bytes) {
                prop_assert_eq!(pack::decode::<Header<'_>>(&bytes).ok(), Some(header));
            }
        }
    }
}
