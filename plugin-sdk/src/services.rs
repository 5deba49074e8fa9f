//! What a plugin may ask of its node beside messages: variables of its environment, random bytes, what it says of itself.
//! Each question goes to the node and is judged there by this plugin's permissions; nothing here opens anything by itself.

use crate::host::{Bytes, Host, HostError, NodeInfo, Request, Response};
use crate::net::Net;
use crate::network::peer_manager::unexpected;
use std::fmt;
use std::sync::Arc;

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

    /// What the node says of itself now.
    pub async fn node_info(&self) -> Result<NodeInfo, HostError> {
        match self.host.call(Request::NodeInfo {}).await? {
            Response::Node(info) => Ok(*info),
            other => Err(unexpected(&other)),
        }
    }
}
