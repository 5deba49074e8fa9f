//! This node as a relay's customer: what it says to one relay to reach a node behind it. Lives as long as the connection to the relay.

use super::line::opaque;
use super::{Form, Wants};
use crate::network::wire::encode;
use crate::network::Local;
use std::collections::HashMap;
use std::time::{SystemTime, UNIX_EPOCH};
use thenodes::network::message::{Message, MessageType, Payload};

/// Targets whose binding is remembered; a forgotten one is bound again.
const MAX_BOUND: usize = 1024;

/// What was bound at one relay.
#[derive(Debug)]
pub struct Client {
    bound: HashMap<String, Wants>,
    /// Bindings that the relay has not answered yet, by their nonce.
    asked: HashMap<u64, String>,
    next: u64,
}

impl Default for Client {
    /// Numbers go on from the clock, not from 1: a relay of upstream's remembers the highest of a pair for ever, and drops what is below.
    fn default() -> Self {
        let micros = SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |t| t.as_micros());
        Self { bound: HashMap::new(), asked: HashMap::new(), next: u64::try_from(micros).unwrap_or(1) }
    }
}

impl Client {
    /// The relay answers a binding. False if it is none of this node's own; a refused one is asked for again with the next frame,
    /// unless it was there already.
    pub fn answered(&mut self, nonce: u64, bound: bool) -> bool {
        let Some(target) = self.asked.remove(&nonce) else { return false };
        if !bound {
            self.bound.remove(&target);
        }
        true
    }

    /// The next number for a frame through this relay.
    pub fn number(&mut self) -> u64 {
        self.next += 1;
        self.next - 1
    }

    /// Somebody else has bound or given up a target in this node's name: what was bound is not known any more.
    pub fn forget(&mut self, target: Option<&str>) {
        match target {
            Some(target) => drop(self.bound.remove(target)),
            None => self.bound.clear(),
        }
    }

    /// The lines are on their way.
    pub fn sent(&mut self, target: &str, wants: Wants, sequence: u64) {
        if self.bound.get(target) == Some(&wants) {
            return;
        }
        if self.bound.len() >= MAX_BOUND {
            self.bound.clear();
        }
        if self.asked.len() >= MAX_BOUND {
            self.asked.clear();
        }
        self.bound.insert(target.to_owned(), wants);
        self.asked.insert(sequence, target.to_owned());
    }

    /// The line that binds a target at the relay, if it is not bound so already. It counts as sent.
    pub fn bind(&mut self, local: &Local, relay: &str, target: &str, wants: Wants) -> Option<Vec<u8>> {
        if self.bound.get(target) == Some(&wants) {
            return None;
        }
        let nonce = self.number();
        self.sent(target, wants, nonce);
        Some(bind_line(local, relay, target, wants, nonce))
    }

    /// The lines that send a message to a node behind the relay: the binding, if it is not bound so already, and the frame; and the
    /// frame's number. Nothing is remembered until they are [`sent`](Client::sent).
    pub fn lines(
        &mut self,
        local: &Local,
        relay: &str,
        target: &str,
        wants: Wants,
        form: Form,
        inner: &Message,
    ) -> (Vec<u8>, u64) {
        let mut lines = Vec::new();
        let realm = Some(local.realm.clone());
        let sequence = self.number();
        if self.bound.get(target) != Some(&wants) {
            lines = bind_line(local, relay, target, wants, sequence);
        }
        let content = Payload::Text(inner.as_json());
        let (opaque_payload_b64, payload) = match form {
            Form::Opaque => (Some(opaque(Some(&content))), None),
            Form::Payload => (None, Some(content)),
        };
        let forward = MessageType::RelayForward {
            to: target.to_owned(),
            from: local.node_id.clone(),
            sequence: Some(sequence),
            opaque_payload_b64,
        };
        lines.extend(encode(&Message::new(&local.node_id, relay, forward, payload, realm)));
        (lines, sequence)
    }
}

fn bind_line(local: &Local, relay: &str, target: &str, wants: Wants, nonce: u64) -> Vec<u8> {
    let bind = MessageType::RelayBind {
        target: target.to_owned(),
        want_store_forward: wants.store,
        qos: Some(if wants.store { "reliable" } else { "low_latency" }.into()),
        nonce: Some(nonce),
        expires_at: None,
    };
    encode(&Message::new(&local.node_id, relay, bind, None, Some(local.realm.clone())))
}
