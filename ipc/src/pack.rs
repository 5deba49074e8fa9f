//! MessagePack as the link uses it: structs as named maps, so that either side may add fields.

use rmp_serde::decode::Error as DecodeError;
use serde::de::{Deserialize, Deserializer, IgnoredAny, SeqAccess, Visitor};
use serde::Serialize;

/// Deepest nesting that a body may have. Peers' JSON is limited to 128 by its parser; the rest is room for our envelope.
const MAX_DEPTH: usize = 160;

/// A body that could not be read or written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct PackError(String);

/// Encodes a value as MessagePack with named fields.
pub fn encode<T: Serialize + ?Sized>(value: &T) -> Result<Vec<u8>, PackError> {
    rmp_serde::to_vec_named(value).map_err(|e| PackError(e.to_string()))
}

/// The same, behind what `out` has already. After an error `out` may hold a part of it.
pub fn append<T: Serialize + ?Sized>(value: &T, out: &mut Vec<u8>) -> Result<(), PackError> {
    let mut serializer = rmp_serde::Serializer::new(out).with_struct_map();
    value.serialize(&mut serializer).map_err(|e| PackError(e.to_string()))
}

/// Decodes exactly one value, borrowing from `bytes` where the type allows it. Trailing bytes are an error.
pub fn decode<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, PackError> {
    let mut decoder = rmp_serde::Deserializer::from_read_ref(bytes);
    decoder.set_max_depth(MAX_DEPTH);
    let value = T::deserialize(&mut decoder).map_err(|e| PackError(e.to_string()))?;
    // The only acceptable thing after the value is nothing: reading the next marker must meet the end.
    match IgnoredAny::deserialize(&mut decoder) {
        Err(DecodeError::InvalidMarkerRead(_)) => Ok(value),
        _ => Err(PackError("bytes after the value".into())),
    }
}

/// Bytes before the elements of what [`each`] reads.
pub const ARRAY_HEAD: usize = 3;

/// The head of an array, for elements that are encoded already and follow. At most 65 535.
pub fn array_head(count: usize) -> [u8; ARRAY_HEAD] {
    let [high, low] = u16::try_from(count).unwrap_or(u16::MAX).to_be_bytes();
    [0xdc, high, low]
}

/// Reads an array element by element: `take` has each as soon as it is read, with the number of all.
pub fn each<'a, T: Deserialize<'a>>(bytes: &'a [u8], take: impl FnMut(usize, T)) -> Result<(), PackError> {
    let mut decoder = rmp_serde::Deserializer::from_read_ref(bytes);
    decoder.set_max_depth(MAX_DEPTH);
    decoder
        .deserialize_seq(Each { take, element: std::marker::PhantomData })
        .map_err(|e| PackError(e.to_string()))
}

/// The elements of an array, as they stand; those before the first that is none. For arrays of which [`each`] could not read an element.
pub fn elements(bytes: &[u8]) -> Vec<&[u8]> {
    let Some((Kind::Array(count), mut rest)) = head(bytes) else { return Vec::new() };
    let mut elements = Vec::new();
    for _ in 0..count {
        let Some((element, after)) = split_value(rest) else { break };
        elements.push(element);
        rest = after;
    }
    elements
}

struct Each<F, T> {
    take: F,
    element: std::marker::PhantomData<T>,
}

impl<'a, F: FnMut(usize, T), T: Deserialize<'a>> Visitor<'a> for Each<F, T> {
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an array")
    }

    fn visit_seq<A: SeqAccess<'a>>(mut self, mut elements: A) -> Result<(), A::Error> {
        let count = elements.size_hint().unwrap_or_default();
        while let Some(element) = elements.next_element()? {
            (self.take)(count, element);
        }
        Ok(())
    }
}

/// Finds the value at a dotted path (`payload.value`) in a MessagePack body, without copying: the content of a string or
/// byte string, the encoded bytes of anything else. Numbers in the path index arrays.
pub fn field<'a>(body: &'a [u8], path: &str) -> Option<&'a [u8]> {
    let mut at = body;
    for key in path.split('.').filter(|key| !key.is_empty()) {
        let (kind, mut rest) = head(at)?;
        let mut found = None;
        match kind {
            Kind::Map(count) => {
                for _ in 0..count {
                    let (name, after) = split_value(rest)?;
                    if found.is_none() && content(name)? == key.as_bytes() {
                        found = Some(after);
                    }
                    rest = split_value(after)?.1;
                }
            }
            Kind::Array(count) => {
                let index: usize = key.parse().ok().filter(|index| *index < count)?;
                for _ in 0..index {
                    rest = split_value(rest)?.1;
                }
                found = Some(rest);
            }
            Kind::Bytes(_) | Kind::Scalar(_) => return None,
        }
        at = found?;
    }
    content(split_value(at)?.0)
}

/// What a MessagePack marker announces.
pub(crate) enum Kind {
    Map(usize),
    Array(usize),
    /// String, byte string or extension of so many bytes.
    Bytes(usize),
    /// A value of so many bytes after the marker.
    Scalar(usize),
}

/// Reads a marker and its length; the rest begins after both.
pub(crate) fn head(bytes: &[u8]) -> Option<(Kind, &[u8])> {
    let (&marker, rest) = bytes.split_first()?;
    let number = |width: usize| -> Option<(usize, &[u8])> {
        let (digits, rest) = rest.split_at_checked(width)?;
        Some((digits.iter().fold(0, |n, d| n << 8 | usize::from(*d)), rest))
    };
    Some(match marker {
        0x00..=0x7f | 0xc0 | 0xc2 | 0xc3 | 0xe0..=0xff => (Kind::Scalar(0), rest),
        0x80..=0x8f => (Kind::Map(usize::from(marker & 0x0f)), rest),
        0x90..=0x9f => (Kind::Array(usize::from(marker & 0x0f)), rest),
        0xa0..=0xbf => (Kind::Bytes(usize::from(marker & 0x1f)), rest),
        0xc4 | 0xd9 => number(1).map(|(n, rest)| (Kind::Bytes(n), rest))?,
        0xc5 | 0xda => number(2).map(|(n, rest)| (Kind::Bytes(n), rest))?,
        0xc6 | 0xdb => number(4).map(|(n, rest)| (Kind::Bytes(n), rest))?,
        0xc7 => number(1).map(|(n, rest)| (Kind::Bytes(n + 1), rest))?,
        0xc8 => number(2).map(|(n, rest)| (Kind::Bytes(n + 1), rest))?,
        0xc9 => number(4).map(|(n, rest)| (Kind::Bytes(n + 1), rest))?,
        0xcc | 0xd0 => (Kind::Scalar(1), rest),
        0xcd | 0xd1 => (Kind::Scalar(2), rest),
        0xca | 0xce | 0xd2 => (Kind::Scalar(4), rest),
        0xcb | 0xcf | 0xd3 => (Kind::Scalar(8), rest),
        0xd4..=0xd8 => (Kind::Bytes((1 << (marker - 0xd4)) + 1), rest),
        0xdc => number(2).map(|(n, rest)| (Kind::Array(n), rest))?,
        0xdd => number(4).map(|(n, rest)| (Kind::Array(n), rest))?,
        0xde => number(2).map(|(n, rest)| (Kind::Map(n), rest))?,
        0xdf => number(4).map(|(n, rest)| (Kind::Map(n), rest))?,
        0xc1 => return None,
    })
}

/// Splits off one whole value. Works through nested values with a counter, not with the stack.
pub(crate) fn split_value(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut rest = bytes;
    let mut waiting = 1usize;
    while waiting > 0 {
        waiting -= 1;
        let (kind, after) = head(rest)?;
        let skip = match kind {
            Kind::Bytes(n) | Kind::Scalar(n) => n,
            Kind::Map(n) => {
                waiting = waiting.checked_add(n.checked_mul(2)?)?;
                0
            }
            Kind::Array(n) => {
                waiting = waiting.checked_add(n)?;
                0
            }
        };
        rest = after.split_at_checked(skip)?.1;
    }
    bytes.split_at_checked(bytes.len() - rest.len())
}

/// The content of a string or byte string, the encoded bytes of anything else.
fn content(value: &[u8]) -> Option<&[u8]> {
    match head(value)? {
        (Kind::Bytes(_), content) => Some(content),
        _ => Some(value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_that_were_packed_before_are_read_together_or_one_by_one() {
        let mut body = array_head(3).to_vec();
        for word in ["a", "bc", ""] {
            append(word, &mut body).expect("packs");
        }
        let mut read = Vec::new();
        each(&body, |count, word: String| read.push((count, word))).expect("an array");
        assert_eq!(read, [(3, "a".into()), (3, "bc".into()), (3, String::new())]);
        let one_by_one: Vec<_> = elements(&body).into_iter().map(decode::<String>).collect();
        assert_eq!(one_by_one, [Ok("a".into()), Ok("bc".into()), Ok(String::new())]);
        // One that is something else costs those behind it nothing.
        let mut mixed = array_head(3).to_vec();
        append("a", &mut mixed)
            .and_then(|()| append(&5, &mut mixed))
            .and_then(|()| append("b", &mut mixed))
            .expect("packs");
        let mut read = 0;
        assert!(each(&mixed, |_, _: String| read += 1).is_err() && read == 1);
        assert_eq!(decode::<String>(elements(&mixed)[2]), Ok("b".into()));
        assert_eq!(elements(&mixed[..5]).len(), 1, "cut");
        assert!(elements(&[5]).is_empty() && elements(&[0xdd, 0xff, 0xff, 0xff, 0xff]).is_empty());
    }

    #[test]
    fn trailing_bytes_are_refused() {
        let mut bytes = encode(&("a", 1u8)).expect("a tuple encodes");
        assert_eq!(decode::<(&str, u8)>(&bytes), Ok(("a", 1)));
        bytes.push(0xc0);
        assert!(decode::<(&str, u8)>(&bytes).is_err());
    }

    #[test]
    fn deep_nesting_is_refused_without_using_the_stack_up() {
        let mut bytes = vec![0x91; 100_000];
        bytes.push(0xc0);
        assert!(decode::<IgnoredAny>(&bytes).is_err());
    }

    #[test]
    fn a_declared_length_of_four_gigabytes_allocates_nothing() {
        assert!(decode::<String>(&[0xdb, 0xff, 0xff, 0xff, 0xff, b'x']).is_err());
        assert!(decode::<Vec<u64>>(&[0xdd, 0xff, 0xff, 0xff, 0xff, 1]).is_err());
    }

    #[test]
    fn a_field_is_found_by_its_path_and_nothing_else_is() {
        let nested = std::collections::BTreeMap::from([("inner", vec!["a", "b"])]);
        let bytes = encode(&std::collections::BTreeMap::from([("outer", nested)])).expect("encodes");
        assert_eq!(field(&bytes, "outer.inner.1"), Some(&b"b"[..]));
        assert_eq!(field(&bytes, "outer.inner.2"), None);
        assert_eq!(field(&bytes, "outer.nothing"), None);
        assert_eq!(field(&bytes, "outer.inner.1.x"), None);
        assert_eq!(field(&[0x81, 0xa1, b'n', 0xcd, 1, 2], "n"), Some(&[0xcd, 1, 2][..]));
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_a_field_lookup_panic(bytes: Vec<u8>, path in "[a-c0-9.]{0,8}") {
            let _ = field(&bytes, &path);
        }

        #[test]
        fn a_field_lookup_agrees_with_the_decoder(key in "[a-z]{1,40}", value: Vec<u8>, number: i64) {
            let map = std::collections::BTreeMap::from([("zz", number)]);
            let bytes = encode(&(map, [(key.clone(), String::from_utf8_lossy(&value))])).expect("encodes");
            proptest::prop_assert_eq!(field(&bytes, "0.zz").and_then(|b| decode::<i64>(b).ok()), Some(number));
            let text = String::from_utf8_lossy(&value);
            proptest::prop_assert_eq!(field(&bytes, "1.0.1"), Some(text.as_bytes()));
        }
    }
}
