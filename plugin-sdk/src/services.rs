//! What a plugin may ask of its node beside messages: variables of its environment, random bytes, what it says of itself.
//! Each question goes to the node and is judged there by this plugin's permissions; nothing here opens anything by itself.

use crate::host::{Bytes, Host, HostError, NodeInfo, Request, Response};
use crate::net::Net;
use crate::network::peer_manager::unexpected;
use std::fmt;
use std::sync::Arc;
use thenodes_ipc::limits;

/// The node's services. Cheap to clone; [`crate::plugin_host::PluginContext`] has a method for each.
#[derive(Clone)]
pub struct Services {
    host: Arc<dyn Host>,
    net: Net,
}

impl fmt::Debug for Services {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Services")
    }
}

impl Services {
    /// Services of this host.
    pub fn new(host: Arc<dyn Host>) -> Self {
        Self { net: Net::new(host.clone()), host }
    }

    /// TCP connections, which the node opens.
    pub fn net(&self) -> &Net {
        &self.net
    }

    /// A variable of the node's environment; `None` if there is no such variable.
    pub async fn env(&self, name: &str) -> Result<Option<String>, HostError> {
        match self.host.call(Request::EnvRead { name: name.into() }).await? {
            Response::Text(value) => Ok(value),
            other => Err(unexpected(&other)),
        }
    }

    /// Random bytes of the node's operating system. An answer of another length is an error, not a short answer.
    pub async fn random(&self, count: usize) -> Result<Vec<u8>, HostError> {
        // More than the node gives at once is the node's to refuse; it knows its bound better than an older SDK.
        let asked = u32::try_from(count).unwrap_or(u32::MAX);
        match self.host.call(Request::Random { count: asked }).await? {
            Response::Bytes(Bytes(bytes)) if bytes.len() == count => Ok(bytes),
            other => Err(unexpected(&other)),
        }
    }

    /// Leaves a state for the next process, piece by piece: one whole would not fit a frame. The last piece makes it count.
    pub async fn leave_state(&self, bytes: &[u8]) -> Result<(), HostError> {
        let mut offset = 0;
        loop {
            let end = bytes.len().min(offset + limits::MAX_STATE_CHUNK);
            let last = end == bytes.len();
            let piece = Bytes(bytes[offset..end].to_vec());
            match self.host.call(Request::StateLeave { offset: offset as u64, bytes: piece, last }).await? {
                Response::Done(_) if last => return Ok(()),
                Response::Done(_) => offset = end,
                other => return Err(unexpected(&other)),
            }
        }
    }

    /// Fetches what the process before left, piece by piece until one is empty.
    pub async fn left_state(&self) -> Result<Option<Vec<u8>>, HostError> {
        let mut state = Vec::new();
        loop {
            match self.host.call(Request::StateLeft { offset: state.len() as u64 }).await? {
                Response::Bytes(Bytes(piece)) if piece.is_empty() => break,
                Response::Bytes(Bytes(piece)) if state.len() + piece.len() <= limits::MAX_STATE => {
                    state.extend(piece);
                }
                other => return Err(unexpected(&other)),
            }
        }
        Ok((!state.is_empty()).then_some(state))
    }

    /// What the node says of itself now.
    pub async fn node_info(&self) -> Result<NodeInfo, HostError> {
        match self.host.call(Request::NodeInfo {}).await? {
            Response::Node(info) => Ok(*info),
            other => Err(unexpected(&other)),
        }
    }
}
