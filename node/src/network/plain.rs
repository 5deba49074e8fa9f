//! A message as most are: TEXT or EXTENSION, with nothing or text or bytes in it, owed nothing. It needs no tree: it is read where it
//! stands, and packed as plugins get it, behind the others that came with it. Whatever else a line may be is for [`super::wire::decode`],
//! with which this agrees about every line that it reads.

use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;
use thenodes::host::PeerInfo;
use thenodes_ipc::pack::{self, PackError};
use tokio::sync::OwnedSemaphorePermit;

/// Messages that go up together.
const MAX_MESSAGES: usize = 256;
/// Bytes of them, unless one alone is longer.
const MAX_BYTES: usize = 64 * 1024;
/// What a message costs beside its bytes.
const OVERHEAD: usize = 128;

#[derive(Debug, Deserialize, Serialize)]
#[serde(transparent)]
struct Word<'a>(#[serde(borrow)] Cow<'a, str>);

#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
enum Kind<'a> {
    Text(#[serde(borrow)] Word<'a>),
    Extension {
        #[serde(borrow)]
        kind: Word<'a>,
    },
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(tag = "type", content = "value")]
enum Content<'a> {
    Text(#[serde(borrow)] Word<'a>),
    Binary(#[serde(serialize_with = "serde_bytes::serialize")] Vec<u8>),
}

#[derive(Debug, Deserialize, Serialize)]
struct Realm<'a> {
    #[serde(borrow)]
    name: Word<'a>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    code: Option<Word<'a>>,
    #[serde(borrow)]
    version: Word<'a>,
}

/// The message. Its fields are those of the SDK's `Message`.
#[derive(Debug, Deserialize, Serialize)]
pub struct Plain<'a> {
    #[serde(borrow)]
    from: Word<'a>,
    #[serde(borrow)]
    to: Word<'a>,
    #[serde(borrow)]
    msg_type: Kind<'a>,
    #[serde(borrow, default)]
    payload: Option<Content<'a>>,
    #[serde(borrow, default)]
    realm: Option<Realm<'a>>,
    #[serde(default, skip_serializing)]
    delivery: Option<IgnoredAny>,
    /// A word between node and plugin; of a peer it must be one, and is dropped.
    #[serde(rename = "via", default, skip_serializing)]
    _via: Option<String>,
}

/// Lines up to here are read without being weighed: what little they may hold of trees is gone before the next is read.
const UNWEIGHED: usize = 4096;

/// Reads a line, if it is such a message.
pub fn read(line: &[u8]) -> Option<Plain<'_>> {
    // A payload whose type stands behind its content is a tree for a moment.
    if line.len() > UNWEIGHED && super::wire::weight(line) > 2 * line.len() + UNWEIGHED {
        return None;
    }
    // All of it must be UTF-8, also what nobody reads.
    let plain: Plain<'_> = serde_json::from_str(std::str::from_utf8(line).ok()?).ok()?;
    plain.delivery.is_none().then_some(plain)
}

impl Plain<'_> {
    /// What an event says of it: a text, or a kind.
    pub(super) fn gist(&self) -> Result<&str, &str> {
        match &self.msg_type {
            Kind::Text(text) => Ok(&text.0),
            Kind::Extension { kind } => Err(&kind.0),
        }
    }

    /// The message as plugins get it, in the name that the connection proves.
    pub fn pack(mut self, from: &str, packed: &mut Vec<u8>) -> Result<(), PackError> {
        if self.from.0 != from {
            self.from = Word(Cow::Owned(from.to_owned()));
        }
        pack::append(&self, packed)
    }
}

/// Messages of one peer that came together, packed behind each other, in their order.
#[derive(Debug)]
pub struct Batch {
    /// Who sent them: proved by the connection.
    pub peer: Arc<PeerInfo>,
    /// The packed messages.
    pub packed: Vec<u8>,
    /// Their part of [`super::INBOUND_WEIGHT`].
    pub room: Option<OwnedSemaphorePermit>,
    ends: Vec<u32>,
    /// Kinds of EXTENSIONs, and how many messages of this kind follow each other; `None` is TEXT.
    runs: Vec<(Option<Box<str>>, usize)>,
}

impl Batch {
    /// None yet.
    pub(super) fn new(peer: &Arc<PeerInfo>) -> Self {
        Self { peer: peer.clone(), packed: Vec::new(), room: None, ends: Vec::new(), runs: Vec::new() }
    }

    /// True if there are none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// True if they should go up before another is added.
    pub(super) fn is_full(&self) -> bool {
        self.ends.len() >= MAX_MESSAGES || self.packed.len() >= MAX_BYTES
    }

    /// What they take.
    pub(super) fn weight(&self) -> usize {
        self.packed.len() + self.ends.len() * OVERHEAD
    }

    /// Adds a message. An error: it cannot be packed, and is not there.
    pub(super) fn add(&mut self, plain: Plain<'_>) -> Result<(), String> {
        let before = self.packed.len();
        if before == 0 {
            self.packed.reserve(1024);
        }
        let kind = plain.gist().err();
        let same = self.runs.last().is_some_and(|(last, _)| last.as_deref() == kind);
        let kind = if same { None } else { Some(kind.map(Box::from)) };
        if let Err(error) = plain.pack(&self.peer.node_id, &mut self.packed) {
            self.packed.truncate(before);
            return Err(error.to_string());
        }
        match (kind, self.runs.last_mut()) {
            (None, Some((_, count))) => *count += 1,
            (kind, _) => self.runs.push((kind.flatten(), 1)),
        }
        self.ends.push(u32::try_from(self.packed.len()).unwrap_or(u32::MAX));
        Ok(())
    }

    /// Where the messages stand whose kind is wanted; `None` is a TEXT's.
    pub fn of_kind(&self, mut wanted: impl FnMut(Option<&str>) -> bool) -> Vec<Range<usize>> {
        let (mut spans, mut at, mut start) = (Vec::with_capacity(self.ends.len()), 0, 0);
        for (kind, count) in &self.runs {
            let wanted = wanted(kind.as_deref());
            for end in &self.ends[at..at + count] {
                let end = *end as usize;
                if wanted {
                    spans.push(start..end);
                }
                start = end;
            }
            at += count;
        }
        spans
    }
}

#[cfg(test)]
mod tests {
    use super::super::wire;
    use super::*;
    use proptest::prelude::*;
    use thenodes::network::message::{Message, MessageType, Payload};
    use thenodes::realms::RealmInfo;

    /// What is read here is read there, and packed the same.
    fn agrees(line: &[u8]) -> bool {
        let Some(plain) = read(line) else { return false };
        let mut message = wire::decode(line).expect("whoever reads everything reads this");
        message.from = "peer".into();
        let mut packed = Vec::new();
        plain.pack("peer", &mut packed).expect("packs");
        assert_eq!(packed, pack::encode(&message).expect("packs"), "{message:?}");
        true
    }

    #[test]
    fn what_is_not_plain_is_for_others() {
        let rest = r#""from":"a","to":"b","payload":null,"realm":{"name":"R","version":"1"}"#;
        for (more, plain) in [
            (r#""msg_type":{"TEXT":"x"}"#, true),
            (r#""msg_type":{"TEXT":"\u00e9\n"},"later":[{}]"#, true),
            (r#""msg_type":{"EXTENSION":{"kind":"k","later":1}},"delivery":null"#, true),
            (r#""msg_type":{"TEXT":"x"},"via":"someone""#, true),
            (r#""msg_type":{"TEXT":"x"},"via":5"#, false),
            (r#""msg_type":{"TEXT":"x"},"delivery":{"message_id":"m","class":"reliable"}"#, false),
            (r#""msg_type":"HEARTBEAT""#, false),
            (r#""msg_type":{"PEER_REQUEST":{"want":3}}"#, false),
        ] {
            assert_eq!(agrees(format!("{{{rest},{more}}}").as_bytes()), plain, "{more}");
        }
        let json = r#"{"from":"a","to":"b","msg_type":{"TEXT":"x"},"payload":{"type":"Json","value":{}}}"#;
        assert!(!agrees(json.as_bytes()), "a tree is weighed first");
        let behind = |count| {
            let tree = r#"{"":0},"#.repeat(count);
            format!(
                r#"{{"from":"a","to":"b","msg_type":{{"TEXT":"x"}},"payload":{{"value":[{tree}0],"type":"Text"}}}}"#
            )
        };
        assert!(!agrees(behind(1).as_bytes()) && read(behind(100_000).as_bytes()).is_none());
        let long = format!(r#"{{"from":"a","to":"b","msg_type":{{"TEXT":"{}"}}}}"#, "x".repeat(100_000));
        assert!(agrees(long.as_bytes()));
    }

    #[test]
    fn messages_of_each_kind_are_found_again() {
        let peer =
            PeerInfo { node_id: "p".into(), addr: ([127, 0, 0, 1], 1).into(), capabilities: Vec::new() };
        let mut batch = Batch::new(&Arc::new(peer));
        let extension = |kind: &str| MessageType::Extension { kind: kind.into() };
        let all =
            [extension("a"), extension("a"), MessageType::Text("t".into()), extension("b"), extension("a")];
        for message in &all {
            let line = Message::new("x", "*", message.clone(), None, None).as_json();
            batch.add(read(line.as_bytes()).expect("plain")).expect("packs");
        }
        let types = |spans: Vec<Range<usize>>| -> Vec<MessageType> {
            let message = |span| pack::decode::<Message>(&batch.packed[span]).expect("a message");
            spans.into_iter().map(|span| message(span).msg_type).collect()
        };
        assert_eq!(types(batch.of_kind(|_| true)), all);
        assert_eq!(types(batch.of_kind(|kind| kind.is_none())), all[2..3]);
        assert_eq!(
            types(batch.of_kind(|kind| kind == Some("a"))),
            [extension("a"), extension("a"), extension("a")]
        );
    }

    proptest! {
        #[test]
        fn every_plain_message_is_packed_as_the_others_are(
            text in ".{0,50}", kind in proptest::option::of(".{0,20}"), payload in proptest::option::of(".{0,200}"),
            bytes in proptest::option::of(proptest::collection::vec(any::<u8>(), 0..100)), code in any::<bool>(),
        ) {
            let what = kind.map_or(MessageType::Text(text.clone()), |kind| MessageType::Extension { kind });
            let payload = bytes.map(Payload::Binary).or(payload.map(Payload::Text));
            let realm = RealmInfo { code: code.then(|| text.clone()), ..RealmInfo::new("Realm \"x\"", "1") };
            let message = Message::new(&text, "*", what, payload, Some(realm));
            prop_assert!(agrees(message.as_json().as_bytes()));
        }
    }
}
