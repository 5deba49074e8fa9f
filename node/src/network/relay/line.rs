//! A RELAY_FWD line as it stands, read without copying it: a relay forwards what it got, byte for byte where it can, and needs only
//! to know for whom it is and from whom it says it is.

use super::Form;
use base64::prelude::{Engine, BASE64_STANDARD};
use memchr::memmem::Finder;
use serde::Deserialize;
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::sync::LazyLock;
use thenodes::network::message::{Message, MessageType, Payload};

/// What a forwarded frame is made of.
#[derive(Debug)]
pub struct Forward<'a> {
    /// Whom it is for.
    pub to: Cow<'a, str>,
    /// Who it says it is from.
    pub from: Cow<'a, str>,
    /// Its place among the frames of this pair.
    pub sequence: Option<u64>,
    /// The envelope's sender, which counts for nothing.
    pub outer_from: Cow<'a, str>,
    /// Its content.
    pub content: Content<'a>,
}

/// The content of a frame in one of its two forms.
#[derive(Debug)]
pub enum Content<'a> {
    /// Base64, as 0.4 has it.
    Opaque(Cow<'a, str>),
    /// The envelope's payload, as 0.2 and 0.3 have it.
    Payload(&'a RawValue),
    /// Nothing.
    Nothing,
}

#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(borrow)]
    from: Cow<'a, str>,
    #[serde(borrow)]
    msg_type: Kind<'a>,
    #[serde(borrow, default)]
    payload: Option<&'a RawValue>,
}

#[derive(Deserialize)]
enum Kind<'a> {
    #[serde(borrow, rename = "RELAY_FWD")]
    Forward(Fields<'a>),
}

#[derive(Deserialize)]
struct Fields<'a> {
    #[serde(borrow)]
    to: Cow<'a, str>,
    #[serde(borrow)]
    from: Cow<'a, str>,
    #[serde(default)]
    sequence: Option<u64>,
    #[serde(borrow, default)]
    opaque_payload_b64: Option<Cow<'a, str>>,
}

static TOKEN: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(b"\"RELAY_FWD\""));
/// The token stands behind `from` and `to`; a line that has it later is read the long way.
const WITHIN: usize = 1024;

/// True if a line may be a frame to forward.
pub fn may_be(line: &[u8]) -> bool {
    TOKEN.find(&line[..line.len().min(WITHIN)]).is_some()
}

/// Reads a line; `None` if it is no frame to forward, or none that this can read.
pub fn read(line: &[u8]) -> Option<Forward<'_>> {
    super::canonical::read(line).or_else(|| read_any(line))
}

/// Reads a line however it is written.
pub fn read_any(line: &[u8]) -> Option<Forward<'_>> {
    let text = std::str::from_utf8(line).ok()?;
    let Envelope { from: outer_from, msg_type: Kind::Forward(fields), payload } =
        serde_json::from_str(text).ok()?;
    let Fields { to, from, sequence, opaque_payload_b64 } = fields;
    let content = match (opaque_payload_b64, payload) {
        (Some(opaque), _) => Content::Opaque(opaque),
        (None, Some(payload)) => Content::Payload(payload),
        (None, None) => Content::Nothing,
    };
    Some(Forward { to, from, sequence, outer_from, content })
}

impl Forward<'_> {
    /// The form it has. A frame without content is the old form's.
    pub fn form(&self) -> Form {
        match self.content {
            Content::Opaque(_) => Form::Opaque,
            Content::Payload(_) | Content::Nothing => Form::Payload,
        }
    }

    /// What its content may take once it is parsed, bytes.
    pub fn content_weight(&self) -> usize {
        let weight = super::super::wire::weight;
        match &self.content {
            Content::Opaque(base64) => match BASE64_STANDARD.decode(base64.as_bytes()) {
                // As text, and as the message in it.
                Ok(bytes) => bytes.len() + weight(&bytes),
                Err(_) => base64.len(),
            },
            // A text in it may be a message again, with one escape for each quote.
            Content::Payload(raw) => raw.get().len() + weight(raw.get().as_bytes()),
            Content::Nothing => 256,
        }
    }

    /// Its content as a payload: text where it is text.
    pub fn payload(&self) -> Option<Payload> {
        match &self.content {
            Content::Opaque(base64) => {
                let bytes = BASE64_STANDARD.decode(base64.as_bytes()).ok()?;
                Some(match String::from_utf8(bytes) {
                    Ok(text) => Payload::Text(text),
                    Err(bytes) => Payload::Binary(bytes.into_bytes()),
                })
            }
            Content::Payload(raw) => serde_json::from_str(raw.get()).ok(),
            Content::Nothing => None,
        }
    }

    /// The message that the content is, if it is one.
    pub fn inner(&self) -> Option<Message> {
        let mut inner: Message = match self.payload()? {
            Payload::Text(text) => serde_json::from_str(&text).ok()?,
            Payload::Json(json) => serde_json::from_value(json).ok()?,
            Payload::Binary(_) => return None,
        };
        inner.via = None;
        inner.validate().is_ok().then_some(inner)
    }

    /// The line anew, with its newline, as the next hop wants it. `sender` stands in the envelope.
    pub fn rewritten(&self, sender: &str, form: Form, realm: &thenodes::realms::RealmInfo) -> Vec<u8> {
        let payload = self.payload();
        let (opaque, payload) = match form {
            Form::Opaque => (Some(opaque(payload.as_ref())), None),
            Form::Payload => (None, payload),
        };
        let forward = MessageType::RelayForward {
            to: self.to.to_string(),
            from: self.from.to_string(),
            sequence: self.sequence,
            opaque_payload_b64: opaque,
        };
        super::super::wire::encode(&Message::new(sender, &self.to, forward, payload, Some(realm.clone())))
    }
}

/// The message in what 0.4 packs, if there is one.
pub fn read_opaque(base64: &str) -> Option<Message> {
    serde_json::from_slice(&BASE64_STANDARD.decode(base64).ok()?).ok()
}

/// A payload as 0.4 packs it: base64 of the text, of the JSON text, or of the bytes.
pub fn opaque(payload: Option<&Payload>) -> String {
    match payload {
        None => String::new(),
        Some(Payload::Text(text)) => BASE64_STANDARD.encode(text),
        Some(Payload::Json(json)) => BASE64_STANDARD.encode(json.to_string()),
        Some(Payload::Binary(bytes)) => BASE64_STANDARD.encode(bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NEW: &str = r#"{"from":"relA","to":"node-a","msg_type":{"RELAY_FWD":{"to":"relB","from":"relA","sequence":1,"opaque_payload_b64":"aGk="}},"payload":null,"realm":{"name":"Interop Test","version":"1.0"}}"#;
    const OLD: &str = r#"{"from":"relA","to":"node-a","msg_type":{"RELAY_FWD":{"to":"relB","from":"relA","sequence":2}},"payload":{"type":"Text","value":"old"},"realm":null}"#;

    #[test]
    fn both_forms_of_real_nodes_are_read_and_each_becomes_the_other() {
        let realm = thenodes::realms::RealmInfo { name: "R".into(), code: None, version: "1".into() };
        for (line, form, text) in [(NEW, Form::Opaque, "hi"), (OLD, Form::Payload, "old")] {
            assert!(may_be(line.as_bytes()));
            let forward = read(line.as_bytes()).expect("a frame");
            assert_eq!((&*forward.to, &*forward.from, forward.form()), ("relB", "relA", form));
            assert_eq!(forward.payload(), Some(Payload::Text(text.into())));
            for other in [Form::Opaque, Form::Payload] {
                let again = forward.rewritten("x", other, &realm);
                let again = read(again.trim_ascii_end()).expect("a frame");
                assert_eq!((again.form(), again.payload()), (other, forward.payload()));
                assert_eq!((&*again.outer_from, again.sequence), ("x", forward.sequence));
            }
        }
    }

    #[test]
    fn a_message_inside_is_found_and_a_text_that_is_none_is_not() {
        let inner = Message::new("relA", "relB", MessageType::Text("t".into()), None, None);
        let line = |content: &str| {
            let opaque = opaque(Some(&Payload::Text(content.into())));
            NEW.replace("aGk=", &opaque)
        };
        let with = line(&inner.as_json());
        assert_eq!(read(with.as_bytes()).and_then(|forward| forward.inner()), Some(inner));
        assert_eq!(read(line("{}").as_bytes()).and_then(|forward| forward.inner()), None);
        assert_eq!(read(NEW.replace("aGk=", "!!").as_bytes()).and_then(|forward| forward.payload()), None);
    }

    proptest! {
        #[test]
        fn no_line_makes_the_reader_panic(bytes: Vec<u8>, at in 0usize..200, cut in 0usize..200) {
            let mut line = NEW.as_bytes().to_vec();
            line.splice(at.min(line.len())..(at + cut).min(line.len()), bytes);
            if let Some(forward) = read(&line) {
                let _ = (forward.payload(), forward.inner(), forward.form());
            }
        }
    }
}
