//! What a plugin's request does, once granted. Texts from plugins are hostile input like any other: a message is parsed, gets
//! this node's id as its sender, and is written anew, so that no plugin can put a second line on a peer's wire or speak in
//! another's name.

use crate::config::{is_node_id, Permission};
use crate::events::Emitter;
use crate::network::delivery;
use crate::network::peers::Sent;
use crate::network::relay::line::{opaque, read_opaque};
use crate::network::relay::Form;
use crate::network::wire::{self, MAX_LINE};
use crate::network::Network;
use crate::plugins::grants::{Grants, Subject, Witness};
use crate::plugins::Registry;
use crate::services::net::{Dialer, Streams};
use crate::services::{env, random, Scopes};
use crate::text::printable;
use bytes::Bytes;
use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};
use thenodes::events::model::{LogEvent, LogLevel};
use thenodes::events::LogSink;
use thenodes::host::{Host, HostError, NodeInfo, Notice, Request, Response, Text};
use thenodes::network::message::{DeliveryClass, Message, MessageType, Payload};
use thenodes::network::PeerSource;
use thenodes_ipc::{pack, Code, PluginName};

/// Events a second that one plugin may emit; more are dropped and reported once a second.
const EVENTS_PER_SECOND: u32 = 50;
/// Largest event of a plugin, bytes.
const MAX_EVENT: usize = 4096;
/// Longest key of an ordered stream, bytes.
const MAX_KEY: usize = 256;
/// Most addresses in one answer.
const MAX_SAMPLE: usize = 256;

/// The node as its plugins use it; one for each process of each plugin, see [`NodeHost::for_process`].
pub struct NodeHost {
    plugin: PluginName,
    /// Already judged by the wrapper around this; here only for what to advise.
    grants: Grants,
    network: Arc<OnceLock<Arc<Network>>>,
    events: Emitter,
    forwarder: Arc<Forwarder>,
    /// Of the plugin, not of the process: dying must not buy more events.
    rate: Arc<Mutex<Rate>>,
    scopes: Scopes,
    witness: Arc<dyn Witness>,
    dialer: Arc<Dialer>,
    streams: Streams,
}

#[derive(Default)]
struct Rate {
    second: Option<Instant>,
    count: u32,
}

impl NodeHost {
    /// A host for one plugin, with so many connections for each of its processes. The network is known later than the plugins.
    pub fn new(
        grants: Grants,
        network: Arc<OnceLock<Arc<Network>>>,
        events: Emitter,
        forwarder: Arc<Forwarder>,
        scopes: Scopes,
        witness: Arc<dyn Witness>,
        connections: usize,
    ) -> Self {
        let dialer = Arc::new(Dialer::new(scopes.net.clone(), connections));
        let streams = Streams::new(dialer.clone());
        let rate = Arc::default();
        let plugin = grants.plugin().clone();
        Self { plugin, grants, network, events, forwarder, rate, scopes, witness, dialer, streams }
    }

    /// The same for the next process of the plugin: what the plugin has used up stays used up, but no stream is open.
    pub fn for_process(&self) -> Self {
        Self {
            plugin: self.plugin.clone(),
            grants: self.grants.clone(),
            network: self.network.clone(),
            events: self.events.clone(),
            forwarder: self.forwarder.clone(),
            rate: self.rate.clone(),
            scopes: self.scopes.clone(),
            witness: self.witness.clone(),
            dialer: self.dialer.clone(),
            streams: Streams::new(self.dialer.clone()),
        }
    }

    /// What the node says of itself, asked at any time.
    fn info(&self, network: &Network) -> NodeInfo {
        NodeInfo {
            plugin: self.plugin.to_string(),
            node_id: network.local.node_id.clone(),
            realm: network.local.realm.clone(),
            node_type: network.local.node_type.clone(),
            session_id: self.events.meta(LogLevel::Info).session_id.unwrap_or_default(),
        }
    }

    /// Passes an answer on, and reports it if a scope refused.
    fn judged(
        &self,
        permission: Permission,
        request: &Request,
        answer: Result<Response, HostError>,
    ) -> Result<Response, HostError> {
        if matches!(&answer, Err(error) if error.code == Code::PermissionDenied) {
            let remedy = self.grants.remedy_for(request);
            self.witness.denied(&self.plugin, permission, &request.wish(), &remedy);
        }
        answer
    }

    fn network(&self) -> Result<&Arc<Network>, HostError> {
        self.network.get().ok_or_else(|| HostError::new(Code::Unavailable, "the node is still starting"))
    }

    /// A message from a plugin's text. Its sender is this node, whatever it says.
    fn message(&self, network: &Network, text: &str) -> Result<Message, HostError> {
        let invalid = |what: String| HostError::new(Code::InvalidInput, what);
        if text.len() > MAX_LINE {
            return Err(invalid(format!("a message of {} bytes; at most {MAX_LINE}", text.len())));
        }
        let mut message: Message =
            serde_json::from_str(text).map_err(|e| invalid(format!("not a message: {e}")))?;
        message.validate().map_err(|what| invalid(what.into()))?;
        let own = &network.local.node_id;
        match &mut message.msg_type {
            MessageType::Text(_)
            | MessageType::Extension { .. }
            | MessageType::RelayBind { .. }
            | MessageType::RelayUnbind { .. }
            | MessageType::PeerRequest { .. }
            | MessageType::DataRequest
            | MessageType::DataResponse => {}
            MessageType::RelayForward { from, opaque_payload_b64, .. } => {
                from.clone_from(own);
                // What is inside speaks in this node's name too.
                let inside = match (&*opaque_payload_b64, &message.payload) {
                    (Some(opaque), _) => read_opaque(opaque),
                    (None, Some(Payload::Text(text))) => serde_json::from_str(text).ok(),
                    (None, Some(Payload::Json(json))) => serde_json::from_value(json.clone()).ok(),
                    (None, Some(Payload::Binary(bytes))) => serde_json::from_slice(bytes).ok(),
                    (None, None) => None,
                };
                let plain = |inside: &Message| {
                    inside.delivery.is_none()
                        && inside.from == *own
                        && matches!(inside.msg_type, MessageType::Text(_) | MessageType::Extension { .. })
                };
                if inside.as_ref().is_some_and(|inside| !plain(inside)) {
                    let what = "a message inside a frame: only TEXT and EXTENSION of this node, without delivery; use peers.deliver";
                    return Err(invalid(what.into()));
                }
            }
            // The words with which nodes speak to each other are not a plugin's.
            _ => return Err(invalid(format!("plugins do not send {}", message.msg_type.token()))),
        }
        message.from.clone_from(own);
        // What is to arrive is sent by `peers.deliver`, which listens for the answer.
        (message.via, message.delivery) = (None, None);
        // A plugin without node.info does not know the realm.
        if message.realm.as_ref().is_some_and(|realm| realm.name.is_empty()) {
            message.realm = Some(network.local.realm.clone());
        }
        Ok(message)
    }

    /// One line for the wire from a plugin's text. A frame to forward has the form that its relay reads, and a number of this node's;
    /// and whom it is for must be one to whom the plugin may send.
    fn line(&self, network: &Network, text: &str, to: Option<&str>) -> Result<Vec<u8>, HostError> {
        let mut message = self.message(network, text)?;
        let behind = match &message.msg_type {
            MessageType::RelayForward { to, .. } | MessageType::RelayBind { target: to, .. } => Some(to),
            _ => None,
        };
        if let Some(target) = behind {
            if !self.grants.allows(Permission::MessageSend, Subject::Peer(target)) {
                let request = Request::SendToNode { node_id: target.clone(), text: String::new() };
                let what = format!("message.send to {} behind a relay", printable(target, 128));
                let denied = Err(HostError::new(Code::PermissionDenied, what));
                return self.judged(Permission::MessageSend, &request, denied).map(|_| Vec::new());
            }
        }
        if let Some(outbox) = to.and_then(|to| network.peers.outbox(to)) {
            outbox.with_client(|client| match &mut message.msg_type {
                MessageType::RelayForward { sequence, .. } => *sequence = Some(client.number()),
                MessageType::RelayBind { target, .. } => client.forget(Some(target)),
                MessageType::RelayUnbind { .. } => client.forget(None),
                _ => {}
            });
        }
        let new = to.is_some_and(|to| network.relay.form_of(to) == Some(Form::Opaque));
        if let (MessageType::RelayForward { opaque_payload_b64, .. }, true) = (&mut message.msg_type, new) {
            let content = message.payload.take();
            opaque_payload_b64.get_or_insert_with(|| opaque(content.as_ref()));
        }
        let line = wire::encode(&message);
        if line.len() > MAX_LINE {
            let what = format!("a message of {} bytes; at most {MAX_LINE}", line.len());
            return Err(HostError::new(Code::InvalidInput, what));
        }
        Ok(line)
    }

    fn sent(sent: Sent, to: &str) -> Result<Response, HostError> {
        match sent {
            Sent::Queued => Ok(Response::Done(1)),
            Sent::Unknown => Err(HostError::new(Code::NotFound, format!("no connected peer {to}"))),
            Sent::Full => Err(HostError::new(
                Code::ResourceExhausted,
                format!("the queue of peer {to} is full; it reads too slowly"),
            )),
        }
    }

    fn emit(&self, mut event: LogEvent) {
        let refused = match &mut event {
            LogEvent::System(_) => None,
            LogEvent::Plugin(event) => {
                event.plugin = self.plugin.to_string();
                None
            }
            LogEvent::TrustDecision(_) | LogEvent::Promotion(_) | LogEvent::Network(_) => {
                Some("only system and plugin events may come from a plugin")
            }
        };
        let size = pack::encode(&event).map_or(usize::MAX, |bytes| bytes.len());
        let refused = refused.or((size > MAX_EVENT).then_some("an event of more than 4096 bytes"));
        {
            let mut rate = self.rate.lock().unwrap_or_else(PoisonError::into_inner);
            let now = Instant::now();
            if rate.second.is_none_or(|second| now.duration_since(second) >= Duration::from_secs(1)) {
                if rate.count > EVENTS_PER_SECOND {
                    let detail = format!("{} events dropped", rate.count - EVENTS_PER_SECOND);
                    self.events.plugin(LogLevel::Warn, self.plugin.as_str(), "events_dropped", detail);
                }
                *rate = Rate { second: Some(now), count: 0 };
            }
            rate.count = rate.count.saturating_add(1);
            if rate.count > EVENTS_PER_SECOND {
                return;
            }
        }
        if let Some(why) = refused {
            self.events.plugin(LogLevel::Warn, self.plugin.as_str(), "event_refused", why.to_owned());
            return;
        }
        let session = self.events.meta(LogLevel::Info).session_id;
        let meta = event.meta_mut();
        meta.component = format!("plugin.{}:{}", self.plugin, printable(&meta.component, 64));
        meta.session_id = session;
        self.events.emit(event);
    }
}

#[async_trait::async_trait]
impl Host for NodeHost {
    async fn call(&self, request: Request) -> Result<Response, HostError> {
        let network = self.network()?;
        match request {
            Request::Broadcast { text } => {
                let line = self.line(network, &text, None)?;
                let (took, full) = network.peers.broadcast(&line);
                if full > 0 {
                    let detail = format!("broadcast: the queues of {full} peers are full");
                    self.events.plugin(LogLevel::Warn, self.plugin.as_str(), "message_dropped", detail);
                }
                Ok(Response::Done(took))
            }
            Request::SendToNode { node_id, text } => {
                let line = self.line(network, &text, Some(&node_id))?;
                Self::sent(network.peers.send_to_id(&node_id, &line), &printable(&node_id, 128))
            }
            Request::SendToAddr { addr: Text(addr), text } => {
                let relay = network.peers.by_addr(&addr).map(|peer| peer.node_id);
                let line = self.line(network, &text, relay.as_deref())?;
                Self::sent(network.peers.send_to_addr(&addr, &line), &addr.to_string())
            }
            Request::Deliver { node_id, text, options } => {
                if !is_node_id(&node_id) {
                    return Err(HostError::new(Code::InvalidInput, "peers.deliver needs a node id"));
                }
                let mut message = self.message(network, &text)?;
                if matches!(
                    message.msg_type,
                    MessageType::RelayForward { .. }
                        | MessageType::RelayBind { .. }
                        | MessageType::RelayUnbind { .. }
                        | MessageType::PeerRequest { .. }
                ) {
                    let what =
                        format!("{} is sent to a connected peer, not delivered", message.msg_type.token());
                    return Err(HostError::new(Code::InvalidInput, what));
                }
                let ordered = options.class == DeliveryClass::OrderedReliable;
                let key = options.ordering_key.as_deref();
                if ordered != key.is_some_and(|key| !key.trim().is_empty() && key.len() <= MAX_KEY) {
                    let what = format!(
                        "ordered_reliable, and nothing else, has an ordering key of 1 to {MAX_KEY} bytes"
                    );
                    return Err(HostError::new(Code::InvalidInput, what));
                }
                message.to = node_id;
                if wire::encode(&message).len() > MAX_LINE / 2 {
                    // Through a relay it is wrapped in base64.
                    let what = format!("a message of more than {} bytes", MAX_LINE / 2);
                    return Err(HostError::new(Code::InvalidInput, what));
                }
                Ok(Response::Outcome(delivery::deliver(network, message, &options).await))
            }
            Request::ListPeers {} => Ok(Response::Peers(network.peers.list())),
            Request::FindPeer { node_id: Some(id), addr } => Ok(Response::Peer(
                network.peers.by_id(&id).filter(|peer| addr.is_none_or(|addr| peer.addr == addr.0)),
            )),
            Request::FindPeer { node_id: None, addr: Some(Text(addr)) } => {
                Ok(Response::Peer(network.peers.by_addr(&addr)))
            }
            Request::FindPeer { node_id: None, addr: None } => {
                Err(HostError::new(Code::InvalidInput, "peers.find needs node_id or addr"))
            }
            Request::RelayStats {} => {
                let (stored, forwarded) = network.relay.stats();
                Ok(Response::Pair(stored, forwarded))
            }
            Request::RelayQueueCaps {} => {
                let caps = &network.relay.config;
                Ok(Response::Pair(caps.per_target as u64, caps.global as u64))
            }
            // A plugin does not say where its knowledge comes from.
            Request::StoreInsert { addr: Text(addr), source: _ } => {
                network.store.insert(addr, PeerSource::Manual).await;
                Ok(Response::Done(1))
            }
            Request::StoreSuccess { addr: Text(addr), node_id, capabilities } => {
                let short = |text: &String| text.len() <= 128;
                let node_id = node_id.filter(short);
                let capabilities = capabilities.filter(|list| list.len() <= 64 && list.iter().all(short));
                network.store.mark_success_with_meta(&addr, node_id, capabilities).await;
                Ok(Response::Done(1))
            }
            Request::StoreFailure { addr: Text(addr) } => {
                network.store.mark_failure(&addr).await;
                Ok(Response::Done(1))
            }
            Request::StoreSample { count, exclude } => {
                let exclude: HashSet<SocketAddr> =
                    exclude.into_iter().take(4096).map(|addr| addr.0).collect();
                let count = usize::try_from(count).unwrap_or(usize::MAX).min(MAX_SAMPLE);
                let sample = network.store.sample(count, &exclude).await;
                Ok(Response::Addrs(sample.into_iter().map(Text).collect()))
            }
            Request::StoreRecords {} => Ok(Response::Records(network.store.records().await)),
            Request::NodeInfo {} => Ok(Response::Node(Box::new(self.info(network)))),
            Request::EnvRead { ref name } => {
                let answer = env::read(&*self.scopes.env, name);
                self.judged(Permission::EnvRead, &request, answer)
            }
            Request::Random { count } => random::bytes(count),
            Request::NetConnect { ref host, port } => {
                let answer = self.streams.connect(host, port).await;
                self.judged(Permission::NetConnect, &request, answer)
            }
            Request::NetWrite { stream, bytes } => self.streams.write(stream, &bytes.0).await,
            Request::NetRead { stream, max } => self.streams.read(stream, max).await,
            Request::NetShutdown { stream } => self.streams.shut_down(stream),
            Request::NetClose { stream } => self.streams.close(stream),
            // Served where the process is known, see `plugins::supervisor::left`; an in-process handler has no next process.
            Request::StateLeave { .. } | Request::StateLeft { .. } => Err(HostError::new(
                Code::NotImplemented,
                "only a plugin with a process of its own leaves a state",
            )),
        }
    }

    fn notify(&self, notice: Notice) {
        match notice {
            Notice::Emit(event) => self.emit(*event),
            Notice::SubscribeEvents => self.forwarder.subscribe(&self.plugin),
            // Closed already, by a timer or by an error, is closed.
            Notice::CloseStream(stream) => drop(self.streams.close(stream)),
            Notice::Log(_) => {} // stays with the plugin's log book, see `plugins::supervisor`
        }
    }
}

/// A sink that passes the node's events on to the plugins that asked for them.
#[derive(Default)]
pub struct Forwarder {
    subscribers: Mutex<HashSet<PluginName>>,
    plugins: OnceLock<Arc<Registry>>,
}

impl Forwarder {
    /// Names the plugins, once they exist.
    pub fn set_plugins(&self, plugins: Arc<Registry>) {
        let _ = self.plugins.set(plugins);
    }

    /// Forgets that a plugin asked.
    pub fn unsubscribe(&self, plugin: &PluginName) {
        self.subscribers.lock().unwrap_or_else(PoisonError::into_inner).remove(plugin);
    }

    fn subscribe(&self, plugin: &PluginName) {
        self.subscribers.lock().unwrap_or_else(PoisonError::into_inner).insert(plugin.clone());
    }
}

#[async_trait::async_trait]
impl LogSink for Forwarder {
    async fn handle(&self, event: &LogEvent) {
        let Some(plugins) = self.plugins.get() else { return };
        let subscribers = self.subscribers.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if subscribers.is_empty() {
            return;
        }
        let Ok(body) = pack::encode(event) else { return };
        let body = Bytes::from(body);
        for plugin in plugins.all().filter(|plugin| subscribers.contains(&plugin.name)) {
            // Its own events do not come back: a plugin that logs what it hears would never stop.
            if !event.meta().component.starts_with(&format!("plugin.{}:", plugin.name)) {
                plugin.notify("event", body.clone());
            }
        }
    }
}

/// Reports refusals, at most one a second for each plugin and permission.
pub struct DenialReporter {
    events: Emitter,
    last: Mutex<HashMap<(PluginName, Permission), (Instant, u64)>>,
}

impl DenialReporter {
    /// A reporter to these events.
    pub fn new(events: Emitter) -> Self {
        Self { events, last: Mutex::default() }
    }
}

impl Witness for DenialReporter {
    fn denied(&self, plugin: &PluginName, permission: Permission, method: &str, remedy: &str) {
        let now = Instant::now();
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        // Bounded: there are as many entries as plugins times permissions.
        let entry = last.entry((plugin.clone(), permission)).or_insert((now - Duration::from_secs(1), 0));
        entry.1 += 1;
        if now.duration_since(entry.0) >= Duration::from_secs(1) {
            let detail = format!(
                "permission={permission} method={} count={}; to allow it, {remedy}",
                printable(method, 300),
                entry.1
            );
            *entry = (now, 0);
            self.events.plugin(LogLevel::Warn, plugin.as_str(), "permission_denied", detail);
        }
    }
}
