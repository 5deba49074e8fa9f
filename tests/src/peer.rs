//! A peer made by hand, in plaintext: says exactly what a test wants it to say, and shows every line that it hears.

use crate::{TestNode, PATIENCE};
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

/// The connection.
pub struct Peer {
    /// What comes from the node.
    pub stream: BufReader<TcpStream>,
    /// Its id.
    pub id: String,
    /// A line that was read already.
    ahead: Option<String>,
}

/// A frame to forward, in the form of 0.4.
pub fn frame(from: &str, to: &str, sequence: u64, base64: &str) -> String {
    format!(
        r#"{{"from":"{from}","to":"x","msg_type":{{"RELAY_FWD":{{"to":"{to}","from":"{from}","sequence":{sequence},"opaque_payload_b64":"{base64}"}}}},"payload":null,"realm":{{"name":"Test","version":"1.0"}}}}"#
    )
}

/// The next one who dials this listener. Neither that nor what is read and written then is waited for without an end.
#[track_caller]
pub fn accept(listener: &TcpListener) -> TcpStream {
    listener.set_nonblocking(true).expect("set");
    let begun = Instant::now();
    let stream = loop {
        match listener.accept() {
            Ok((stream, _)) => break stream,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                assert!(begun.elapsed() < PATIENCE, "nobody dials");
                std::thread::park_timeout(Duration::from_millis(5));
            }
            Err(error) => panic!("accepting: {error}"),
        }
    };
    stream.set_nonblocking(false).expect("set");
    stream.set_read_timeout(Some(PATIENCE)).expect("set");
    stream.set_write_timeout(Some(PATIENCE)).expect("set");
    stream
}

impl Peer {
    /// Connects and hears the node's HELLO; says nothing yet.
    #[track_caller]
    pub fn connect(port: u16) -> Self {
        let stream = TcpStream::connect(("127.0.0.1", port)).expect("the node listens");
        stream.set_nodelay(true).expect("set");
        stream.set_read_timeout(Some(PATIENCE)).expect("set");
        stream.set_write_timeout(Some(PATIENCE)).expect("set");
        let mut peer = Self { stream: BufReader::new(stream), id: String::new(), ahead: None };
        assert!(peer.line().contains("HELLO"), "the acceptor speaks first");
        peer
    }

    /// A peer with this id and these capabilities that answers no probes.
    #[track_caller]
    pub fn silent(node: &TestNode, id: &str, capabilities: &str) -> Self {
        Self::silent_at(node.port, id, capabilities)
    }

    /// The same, at whatever listens there.
    #[track_caller]
    pub fn silent_at(port: u16, id: &str, capabilities: &str) -> Self {
        let mut peer = Self::connect(port);
        peer.id = id.to_owned();
        peer.say(&format!(
            r#"{{"from":"{id}","to":"x","msg_type":{{"HELLO":{{"node_id":"{id}","capabilities":{capabilities}}}}},"realm":{{"name":"Test","version":"1.0"}}}}"#
        ));
        peer
    }

    /// A peer that is let in, and has answered the node's first probe: one of 0.3 or later.
    #[track_caller]
    pub fn greeted(node: &TestNode, id: &str) -> Self {
        Self::with_capabilities(node, id, "null")
    }

    /// The same with capabilities, as JSON.
    #[track_caller]
    pub fn with_capabilities(node: &TestNode, id: &str, capabilities: &str) -> Self {
        let mut peer = Self::silent(node, id, capabilities);
        peer.expect("liveness_probe_v1");
        peer.heartbeat("liveness_response_v1");
        peer.settle();
        peer
    }

    fn heartbeat(&mut self, text: &str) {
        let id = self.id.clone();
        self.say(&format!(
            r#"{{"from":"{id}","to":"x","msg_type":"HEARTBEAT","payload":{{"type":"Text","value":"{text}"}},"realm":null}}"#
        ));
    }

    /// Waits until the node has dealt with all that was said.
    #[track_caller]
    pub fn settle(&mut self) {
        self.heartbeat("liveness_probe_v1");
        self.expect("liveness_response_v1");
    }

    /// All lines that came before the node had dealt with what was said.
    #[track_caller]
    pub fn heard(&mut self) -> Vec<String> {
        self.heartbeat("liveness_probe_v1");
        let mut lines = Vec::new();
        loop {
            let line = self.line();
            assert!(!line.is_empty(), "the node closed; it said {lines:?}");
            if line.contains("liveness_response_v1") {
                return lines;
            }
            lines.push(line);
        }
    }

    /// Sends a line.
    #[track_caller]
    pub fn say(&mut self, text: &str) {
        self.stream.get_mut().write_all(format!("{text}\n").as_bytes()).expect("sent");
    }

    /// Asks the relay for a route. Its answer.
    #[track_caller]
    pub fn bind(&mut self, target: &str, store: bool, qos: &str, nonce: u64, expires: &str) -> String {
        let id = self.id.clone();
        self.say(&format!(
            r#"{{"from":"{id}","to":"x","msg_type":{{"RELAY_BIND":{{"target":"{target}","want_store_forward":{store},"qos":"{qos}","nonce":{nonce},"expires_at":{expires}}}}},"payload":null,"realm":null}}"#
        ));
        self.expect("RELAY_BIND_ACK")
    }

    /// A peer whose connection before has just ended: comes again until the node has seen that. Answers no probes.
    #[track_caller]
    pub fn again(node: &TestNode, id: &str) -> Self {
        let begun = Instant::now();
        loop {
            let mut peer = Self::silent(node, id, "null");
            let line = peer.line();
            if !line.is_empty() {
                peer.ahead = Some(line);
                return peer;
            }
            assert!(begun.elapsed() < PATIENCE, "{id} is not let in again");
        }
    }

    /// The next line, empty at the end.
    pub fn line(&mut self) -> String {
        if let Some(line) = self.ahead.take() {
            return line;
        }
        let mut line = String::new();
        let _ = self.stream.read_line(&mut line);
        line
    }

    /// The next line with this text in it.
    #[track_caller]
    pub fn expect(&mut self, text: &str) -> String {
        let (begun, mut said) = (Instant::now(), Vec::new());
        loop {
            let line = self.line();
            assert!(!line.is_empty() && begun.elapsed() < PATIENCE, "no {text:?}; it said {said:?}");
            if line.contains(text) {
                return line;
            }
            said.push(line);
        }
    }

    /// True if the node closes now.
    pub fn is_closed(&mut self) -> bool {
        let mut rest = Vec::new();
        self.stream.read_to_end(&mut rest).is_ok()
    }
}
