//! The connected peers, as a plugin reaches them. Every method is a request to the node (process: the plugin's; the work
//! happens in the node). Message texts are JSON without a newline; the node checks them and sets `from` to its own id.

use super::delivery::{DeliveryOptions, DeliveryOutcome};
use super::message::Message;
use crate::host::{Host, HostError, PeerInfo, Request, Response, Text};
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use thenodes_ipc::Code;

/// Handle to the peers of the node. Cheap to clone.
#[derive(Clone)]
pub struct PeerManager {
    host: Arc<dyn Host>,
}

impl fmt::Debug for PeerManager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PeerManager")
    }
}

/// What is said when the node answers with a shape that the request does not have.
pub(crate) fn unexpected(response: &Response) -> HostError {
    HostError::new(Code::Internal, format!("unexpected answer {response:?}"))
}

impl PeerManager {
    /// Peers of this host.
    pub fn new(host: Arc<dyn Host>) -> Self {
        Self { host }
    }

    /// Sends to every connected peer. Failures are logged; use [`PeerManager::try_broadcast`] to see them.
    pub async fn broadcast(&self, text: &str) {
        if let Err(error) = self.try_broadcast(text).await {
            log::warn!("broadcast: {error}");
        }
    }

    /// Sends to every connected peer; the number of peers whose queue took it.
    ///
    /// Errors: `INVALID_INPUT` if the text is no message, `PERMISSION_DENIED` without the grant `message.send`.
    pub async fn try_broadcast(&self, text: &str) -> Result<u64, HostError> {
        self.done(Request::Broadcast { text: text.into() }).await
    }

    /// Sends to the peer with this address.
    pub async fn send_to_addr(&self, addr: &SocketAddr, text: String) -> Result<(), String> {
        self.done(Request::SendToAddr { addr: Text(*addr), text }).await.map(drop).map_err(|e| e.to_string())
    }

    /// Sends to the peer with this node id.
    pub async fn send_to_node_id(&self, node_id: &str, text: String) -> Result<(), String> {
        let request = Request::SendToNode { node_id: node_id.into(), text };
        self.done(request).await.map(drop).map_err(|e| e.to_string())
    }

    /// Sends to a node, connected or not, as the options ask, and waits until it is known what became of the message: at most the
    /// options' patience, 25 s. `to` of the message is set to that node.
    ///
    /// Errors: `INVALID_INPUT` if it is no message that a plugin may send or is longer than 512 KiB, `PERMISSION_DENIED` without
    /// the grant `message.send` for that node.
    pub async fn deliver(
        &self,
        node_id: &str,
        message: &Message,
        options: DeliveryOptions,
    ) -> Result<DeliveryOutcome, HostError> {
        let request = Request::Deliver { node_id: node_id.into(), text: message.as_json(), options };
        match self.host.call(request).await? {
            Response::Outcome(outcome) => Ok(outcome),
            other => Err(unexpected(&other)),
        }
    }

    /// All connected peers.
    pub async fn peers(&self) -> Result<Vec<PeerInfo>, HostError> {
        match self.host.call(Request::ListPeers {}).await? {
            Response::Peers(peers) => Ok(peers),
            other => Err(unexpected(&other)),
        }
    }

    /// Addresses of all connected peers; empty if the node does not say.
    pub async fn list_peers(&self) -> Vec<SocketAddr> {
        self.peers().await.unwrap_or_default().into_iter().map(|p| p.addr).collect()
    }

    /// Node ids of all connected peers; empty if the node does not say.
    pub async fn list_node_ids(&self) -> Vec<String> {
        self.peers().await.unwrap_or_default().into_iter().map(|p| p.node_id).collect()
    }

    /// True if a peer with this id is connected.
    pub async fn has_node_id(&self, node_id: &str) -> bool {
        self.find(Some(node_id), None).await.is_some()
    }

    /// True if a peer with this address is connected.
    pub async fn has_addr(&self, addr: &SocketAddr) -> bool {
        self.find(None, Some(*addr)).await.is_some()
    }

    /// True if the peer is connected and announced the capability.
    pub async fn peer_has_capability(&self, node_id: &str, capability: &str) -> bool {
        self.find(Some(node_id), None).await.is_some_and(|p| p.capabilities.iter().any(|c| c == capability))
    }

    /// Messages waiting in relay queues, and messages relayed. Waits for the node; zeros if it does not say.
    pub fn relay_stats(&self) -> (u64, u64) {
        self.pair(Request::RelayStats {})
    }

    /// Bounds of the relay queues: per target, in all. Waits for the node; zeros if it does not say.
    pub fn relay_queue_caps(&self) -> (u64, u64) {
        self.pair(Request::RelayQueueCaps {})
    }

    fn pair(&self, request: Request) -> (u64, u64) {
        match block_on(self.host.call(request)) {
            Ok(Response::Pair(a, b)) => (a, b),
            _ => (0, 0),
        }
    }

    async fn find(&self, node_id: Option<&str>, addr: Option<SocketAddr>) -> Option<PeerInfo> {
        match self
            .host
            .call(Request::FindPeer { node_id: node_id.map(Into::into), addr: addr.map(Text) })
            .await
        {
            Ok(Response::Peer(peer)) => peer,
            _ => None,
        }
    }

    async fn done(&self, request: Request) -> Result<u64, HostError> {
        match self.host.call(request).await? {
            Response::Done(count) => Ok(count),
            other => Err(unexpected(&other)),
        }
    }
}

/// Waits on this thread, with or without a runtime. The answer comes from the link's own thread, so no runtime is needed
/// to make progress.
pub(crate) fn block_on<F: std::future::Future>(future: F) -> F::Output {
    struct Unpark(std::thread::Thread);
    impl std::task::Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = std::task::Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut context = std::task::Context::from_waker(&waker);
    let mut future = std::pin::pin!(future);
    loop {
        match future.as_mut().poll(&mut context) {
            std::task::Poll::Ready(output) => return output,
            std::task::Poll::Pending => std::thread::park(),
        }
    }
}
