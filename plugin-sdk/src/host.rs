//! Everything a plugin may ask of its node, as data, and the one trait that answers it.
//!
//! A sandboxed plugin reaches [`Host`] through the link client of this crate; the node implements it; the node's grants
//! are a wrapper around it. So a request is judged and served by the same code whoever asks. Requests that come over a
//! link are hostile input: [`Request::decode`] is where their shape is checked, the node checks their meaning.

use crate::events::model::LogEvent;
use crate::network::delivery::{DeliveryOptions, DeliveryOutcome};
use crate::network::peer_store::{PeerRecord, PeerSource};
use crate::realms::RealmInfo;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;
use thenodes_ipc::pack;
/// What kind of error it is; a plugin's own errors have one too.
pub use thenodes_ipc::Code;

/// A value that travels as text: on the link as in JSON an address is `"127.0.0.1:50000"`, for readers in any language.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Text<T>(pub T);

impl<T: fmt::Display> Serialize for Text<T> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

impl<'de, T: FromStr<Err: fmt::Display>> Deserialize<'de> for Text<T> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map(Text).map_err(serde::de::Error::custom)
    }
}

/// For fields that keep their own type: `#[serde(with = "as_text")]`.
pub(crate) mod as_text {
    use super::{fmt, Deserialize, FromStr, Serialize, Text};

    pub(crate) fn serialize<T: fmt::Display, S: serde::Serializer>(
        value: &T,
        s: S,
    ) -> Result<S::Ok, S::Error> {
        Text(value).serialize(s)
    }

    pub(crate) fn deserialize<'de, T: FromStr<Err: fmt::Display>, D: serde::Deserializer<'de>>(
        d: D,
    ) -> Result<T, D::Error> {
        Text::deserialize(d).map(|text| text.0)
    }
}

/// Bytes that travel as one MessagePack byte string, never as an array of numbers. Printed as their length only: error
/// messages and logs are no place for what a stream carries.
#[derive(Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Bytes(#[serde(with = "serde_bytes")] pub Vec<u8>);

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

/// A connected peer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerInfo {
    /// Its node id, proved unique among our connections.
    pub node_id: String,
    /// Its socket address.
    #[serde(with = "as_text")]
    pub addr: SocketAddr,
    /// What it announced.
    pub capabilities: Vec<String>,
}

/// What a plugin is told about its node when it is loaded; it does not change while the node lives.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeInfo {
    /// Name the node gave the plugin.
    pub plugin: String,
    /// Id of the node.
    pub node_id: String,
    /// Realm of the node.
    pub realm: RealmInfo,
    /// Type the node announces.
    pub node_type: String,
    /// Session of the node's event log.
    pub session_id: String,
}

/// Why the node said no.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {message}")]
pub struct HostError {
    /// Stable code.
    pub code: Code,
    /// What was attempted, on what, and what to do.
    pub message: String,
}

impl HostError {
    /// An error with a message for people.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}

/// For `?` in code that speaks of `std::io::Error`; the code survives as far as `io::ErrorKind` has a word for it.
impl From<HostError> for std::io::Error {
    fn from(error: HostError) -> Self {
        use std::io::ErrorKind;
        let kind = match &error.code {
            Code::InvalidInput => ErrorKind::InvalidInput,
            Code::PermissionDenied => ErrorKind::PermissionDenied,
            Code::NotFound | Code::Unavailable => ErrorKind::NotConnected,
            Code::Timeout => ErrorKind::TimedOut,
            Code::NotImplemented => ErrorKind::Unsupported,
            Code::NetworkError => ErrorKind::ConnectionAborted,
            _ => ErrorKind::Other,
        };
        std::io::Error::new(kind, error)
    }
}

macro_rules! requests {
    ($($(#[$doc:meta])* $name:ident($method:literal) { $($field:ident: $ty:ty),* $(,)? },)*) => {
        /// A question or a wish of a plugin. Each has an answer.
        #[derive(Debug, Clone, PartialEq)]
        #[allow(missing_docs)] // the fields are described by their names and by docs/protocol.md
        pub enum Request {
            $($(#[$doc])* $name { $($field: $ty),* },)*
        }

        impl Request {
            /// Every method name, for documentation and tests.
            pub const METHODS: &'static [&'static str] = &[$($method),*];

            /// The word on the link.
            pub fn method(&self) -> &'static str {
                match self { $(Request::$name { .. } => $method,)* }
            }

            /// The arguments as they travel.
            pub fn encode(&self) -> Result<Vec<u8>, HostError> {
                match self {
                    $(Request::$name { $($field),* } => {
                        #[derive(Serialize)]
                        struct Args<'a> { $($field: &'a $ty,)* #[serde(skip)] _lifetime: std::marker::PhantomData<&'a ()> }
                        pack::encode(&Args { $($field,)* _lifetime: std::marker::PhantomData })
                            .map_err(|e| HostError::new(Code::InvalidInput, format!("{}: {e}", $method)))
                    })*
                }
            }

            /// Reads a request from the link. An unknown method is `UNHANDLED`, a wrong shape is `INVALID_INPUT`.
            pub fn decode(method: &str, body: &[u8]) -> Result<Request, HostError> {
                match method {
                    $($method => {
                        #[derive(Deserialize)]
                        struct Args { $($field: $ty,)* }
                        let Args { $($field),* } = pack::decode(body)
                            .map_err(|e| HostError::new(Code::InvalidInput, format!("{}: {e}", $method)))?;
                        Ok(Request::$name { $($field),* })
                    })*
                    other => Err(HostError::new(Code::Unhandled, format!("the node has no method {other:?}"))),
                }
            }
        }
    };
}

requests! {
    /// Send a message (JSON text) to every connected peer.
    Broadcast("peers.broadcast") { text: String },
    /// Send a message (JSON text) to one peer by node id.
    SendToNode("peers.send_to_node") { node_id: String, text: String },
    /// Send a message (JSON text) to one peer by address.
    SendToAddr("peers.send_to_addr") { addr: Text<SocketAddr>, text: String },
    /// Send a message (JSON text) to a node, connected or not, and wait until it is known what became of it.
    Deliver("peers.deliver") { node_id: String, text: String, options: DeliveryOptions },
    /// The connected peers.
    ListPeers("peers.list") {},
    /// One connected peer, by id or by address.
    FindPeer("peers.find") { node_id: Option<String>, addr: Option<Text<SocketAddr>> },
    /// Messages waiting in relay queues and messages relayed so far.
    RelayStats("relay.stats") {},
    /// Bounds of the relay queues: per target, in all.
    RelayQueueCaps("relay.queue_caps") {},
    /// Remember an address.
    StoreInsert("store.insert") { addr: Text<SocketAddr>, source: PeerSource },
    /// Note that an address answered, and what it said of itself.
    StoreSuccess("store.success") { addr: Text<SocketAddr>, node_id: Option<String>, capabilities: Option<Vec<String>> },
    /// Note that an address did not answer.
    StoreFailure("store.failure") { addr: Text<SocketAddr> },
    /// Some random addresses besides these.
    StoreSample("store.sample") { count: u32, exclude: Vec<Text<SocketAddr>> },
    /// All that is known.
    StoreRecords("store.records") {},
    /// What the node says of itself.
    NodeInfo("node.info") {},
    /// A variable of the node's environment.
    EnvRead("env.read") { name: String },
    /// Random bytes, at most [`thenodes_ipc::limits::MAX_RANDOM`].
    Random("random") { count: u32 },
    /// Open a TCP connection to a host by name or address. The socket stays with the node.
    NetConnect("net.connect") { host: String, port: u16 },
    /// Send bytes on a stream, at most [`thenodes_ipc::limits::MAX_STREAM_CHUNK`].
    NetWrite("net.write") { stream: u64, bytes: Bytes },
    /// Wait for bytes of a stream. None at all is the end of the stream.
    NetRead("net.read") { stream: u64, max: u32 },
    /// Tell the other side that no more bytes will be sent on a stream.
    NetShutdown("net.shutdown") { stream: u64 },
    /// Close a stream.
    NetClose("net.close") { stream: u64 },
    /// In `on_stop`: a piece of what the next process shall have. Pieces come in order, each at most
    /// [`thenodes_ipc::limits::MAX_STATE_CHUNK`]; the last makes the whole count.
    StateLeave("state.leave") { offset: u64, bytes: Bytes, last: bool },
    /// In `on_load`: what the process before left, from there on, at most [`thenodes_ipc::limits::MAX_STATE_CHUNK`]. None at all is the end.
    StateLeft("state.left") { offset: u64 },
}

impl Request {
    /// What is wanted, for messages about refusals: the method and, where there is one, the thing it is to reach.
    pub fn wish(&self) -> String {
        // Names come from plugins and may be long; what is longer than a host name may be says nothing more.
        let short = |name: &str| name.chars().take(253).collect::<String>();
        match self {
            Request::NetConnect { host, port } => format!("{} {}:{port}", self.method(), short(host)),
            Request::EnvRead { name } => format!("{} {}", self.method(), short(name)),
            _ => self.method().into(),
        }
    }
}

/// The answer to a [`Request`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Response {
    /// It is done; the number counts what it was done to (peers reached, entries made).
    Done(u64),
    /// Peers.
    Peers(Vec<PeerInfo>),
    /// One peer, if there is such a one.
    Peer(Option<PeerInfo>),
    /// Addresses.
    Addrs(Vec<Text<SocketAddr>>),
    /// Records of the peer store.
    Records(Vec<PeerRecord>),
    /// Two numbers.
    Pair(u64, u64),
    /// The node.
    Node(Box<NodeInfo>),
    /// A text, if there is one.
    Text(Option<String>),
    /// Bytes.
    Bytes(Bytes),
    /// What became of a message.
    Outcome(DeliveryOutcome),
    /// The number of a stream, for this process of the plugin only.
    Stream(u64),
}

/// Something a plugin tells its node without waiting.
#[derive(Debug, Clone, PartialEq)]
pub enum Notice {
    /// A line from a `log` macro.
    Log(LogLine),
    /// An event for the node's sinks.
    Emit(Box<LogEvent>),
    /// Send me the node's events from now on.
    SubscribeEvents,
    /// I am done with this stream. What [`Request::NetClose`] does, for code that cannot wait, such as `Drop`.
    CloseStream(u64),
}

/// A line of a plugin's log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLine {
    /// `error`, `warn`, `info`, `debug` or `trace`.
    pub level: String,
    /// Module that said it.
    pub target: String,
    /// The text.
    pub text: String,
}

impl Notice {
    /// The word on the link and the arguments.
    pub fn encode(&self) -> Result<(&'static str, Vec<u8>), HostError> {
        let bad = |e| HostError::new(Code::InvalidInput, format!("notice: {e}"));
        Ok(match self {
            Notice::Log(line) => ("log", pack::encode(line).map_err(bad)?),
            Notice::Emit(event) => ("events.emit", pack::encode(event).map_err(bad)?),
            Notice::SubscribeEvents => ("events.subscribe", Vec::new()),
            Notice::CloseStream(stream) => ("net.close", pack::encode(stream).map_err(bad)?),
        })
    }

    /// Reads a notice from the link.
    pub fn decode(method: &str, body: &[u8]) -> Result<Notice, HostError> {
        let bad = |e| HostError::new(Code::InvalidInput, format!("{method}: {e}"));
        match method {
            "log" => Ok(Notice::Log(pack::decode(body).map_err(bad)?)),
            "events.emit" => Ok(Notice::Emit(pack::decode(body).map_err(bad)?)),
            "events.subscribe" => Ok(Notice::SubscribeEvents),
            "net.close" => Ok(Notice::CloseStream(pack::decode(body).map_err(bad)?)),
            other => Err(HostError::new(Code::Unhandled, format!("the node has no notice {other:?}"))),
        }
    }
}

/// Whoever serves a plugin: the link client inside a sandboxed plugin, the node itself for an embedder's handler.
#[async_trait::async_trait]
pub trait Host: Send + Sync + 'static {
    /// Asks and waits. Ends with the node's answer, or with `UNAVAILABLE` when there is no node any more.
    async fn call(&self, request: Request) -> Result<Response, HostError>;

    /// Tells without waiting. May block for a moment while the link is full; is lost when the link has ended.
    fn notify(&self, notice: Notice);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_request_survives_the_link() {
        let addr = Text("10.0.0.1:9".parse().expect("an address"));
        for request in [
            Request::Broadcast { text: "{}".into() },
            Request::SendToNode { node_id: "n".into(), text: "{}".into() },
            Request::SendToAddr { addr, text: "{}".into() },
            Request::Deliver {
                node_id: "n".into(),
                text: "{}".into(),
                options: DeliveryOptions::new(crate::network::DeliveryClass::Reliable),
            },
            Request::ListPeers {},
            Request::FindPeer { node_id: None, addr: Some(addr) },
            Request::RelayStats {},
            Request::RelayQueueCaps {},
            Request::StoreInsert { addr, source: PeerSource::Manual },
            Request::StoreSuccess { addr, node_id: Some("n".into()), capabilities: None },
            Request::StoreFailure { addr },
            Request::StoreSample { count: 3, exclude: vec![addr] },
            Request::StoreRecords {},
            Request::NodeInfo {},
            Request::EnvRead { name: "HOME".into() },
            Request::Random { count: 32 },
            Request::NetConnect { host: "example.com".into(), port: 443 },
            Request::NetWrite { stream: 1, bytes: Bytes(vec![0, 255]) },
            Request::NetRead { stream: 1, max: 65_536 },
            Request::NetShutdown { stream: 1 },
            Request::NetClose { stream: u64::MAX },
            Request::StateLeave { offset: 7, bytes: Bytes(vec![1]), last: true },
            Request::StateLeft { offset: 0 },
        ] {
            let body = request.encode().expect("encodes");
            assert_eq!(Request::decode(request.method(), &body), Ok(request));
        }
        assert_eq!(Request::METHODS.len(), 23);
    }

    #[test]
    fn bytes_travel_as_one_byte_string() {
        let bytes = Bytes(vec![200; 1000]);
        let body = Request::NetWrite { stream: 7, bytes: bytes.clone() }.encode().expect("encodes");
        // bin16 and its length; as an array of numbers each byte would take two.
        assert!(
            body.len() < 1030 && body.windows(3).any(|w| w == [0xc5, 0x03, 0xe8]),
            "{} bytes",
            body.len()
        );
        let answer = pack::encode(&Response::Bytes(bytes.clone())).expect("encodes");
        assert!(answer.len() < 1020);
        assert_eq!(pack::decode(&answer), Ok(Response::Bytes(bytes.clone())));
        assert_eq!(format!("{bytes:?}"), "1000 bytes");
    }

    #[test]
    fn a_refusal_can_name_what_was_to_be_reached() {
        let connect = Request::NetConnect { host: "h".repeat(1000), port: 80 };
        assert_eq!(connect.wish(), format!("net.connect {}:80", "h".repeat(253)));
        assert_eq!(Request::EnvRead { name: "HOME".into() }.wish(), "env.read HOME");
        assert_eq!(Request::ListPeers {}.wish(), "peers.list");
    }

    proptest::proptest! {
        #[test]
        fn requests_and_answers_of_services_survive_the_link(
            host: String, port: u16, stream: u64, bytes: Vec<u8>, count: u32, text: Option<String>,
        ) {
            for request in [
                Request::EnvRead { name: host.clone() },
                Request::Random { count },
                Request::NetConnect { host, port },
                Request::NetWrite { stream, bytes: Bytes(bytes.clone()) },
                Request::NetRead { stream, max: count },
                Request::NetShutdown { stream },
                Request::NetClose { stream },
            ] {
                let body = request.encode().expect("encodes");
                proptest::prop_assert_eq!(Request::decode(request.method(), &body), Ok(request));
            }
            for answer in [Response::Bytes(Bytes(bytes)), Response::Text(text), Response::Stream(stream)] {
                let body = pack::encode(&answer).expect("encodes");
                proptest::prop_assert_eq!(pack::decode(&body), Ok(answer));
            }
            let (method, body) = Notice::CloseStream(stream).encode().expect("encodes");
            proptest::prop_assert_eq!(Notice::decode(method, &body), Ok(Notice::CloseStream(stream)));
        }

        #[test]
        fn no_bytes_make_the_decoder_of_services_panic(body: Vec<u8>) {
            for method in Request::METHODS {
                let _ = Request::decode(method, &body);
            }
            let _ = Notice::decode("net.close", &body);
        }
    }

    #[test]
    fn addresses_are_text_on_the_link() {
        let addr = "[::1]:9".parse().expect("an address");
        let body = Request::StoreFailure { addr: Text(addr) }.encode().expect("encodes");
        assert!(body.windows(7).any(|w| w == b"[::1]:9"));
        let peer = PeerInfo { node_id: "n".into(), addr, capabilities: vec![] };
        assert!(pack::encode(&peer).expect("encodes").windows(7).any(|w| w == b"[::1]:9"));
    }

    #[test]
    fn a_wrong_method_and_a_wrong_shape_have_their_own_codes() {
        assert_eq!(Request::decode("root.please", &[]).map_err(|e| e.code), Err(Code::Unhandled));
        assert_eq!(Request::decode("peers.broadcast", b"\x80").map_err(|e| e.code), Err(Code::InvalidInput));
        assert_eq!(Notice::decode("log", &[0xc0]).map_err(|e| e.code), Err(Code::InvalidInput));
    }
}
