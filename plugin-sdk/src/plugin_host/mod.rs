//! The trait an author implements and the context each call brings.

mod body;
mod calls;
mod client;
mod export;
mod library;
mod logger;
mod readers;

use crate::config::ConfigDefaults;
use crate::events::EventHandle;
use crate::host::{Host, HostError, NodeInfo};
use crate::net::Net;
use crate::network::delivery::{DeliveryOptions, DeliveryOutcome};
use crate::network::message::Message;
use crate::network::{PeerManager, PeerStore};
use crate::realms::RealmInfo;
use crate::services::Services;
use std::sync::Arc;

pub use export::PluginRegistrarApi;

/// Version of the table between host and plugin. Stays 1 while the table only grows.
pub const PLUGIN_ABI_VERSION: u32 = thenodes_ipc::abi::ABI_VERSION;

/// What a plugin does. Every method has a default; implement what you need.
///
/// All of it runs in the plugin's own process. `on_message` runs for one message after the other; async methods run beside
/// it, many at once. A small tokio runtime that the SDK brings is entered in all of them: its timers and `tokio::spawn` work
/// everywhere. Any method may block its thread; that delays nothing but what comes after it in the same order.
/// A panic in a method is that call's error, is counted by the node, and harms no other call.
#[async_trait::async_trait]
pub trait Plugin: Send + Sync + 'static {
    /// A message for this node arrived. Deadline 5 s; blocking here delays this plugin's next message and nobody else.
    fn on_message(&self, message: &Message, ctx: &PluginContext) {
        let _ = (message, ctx);
    }

    /// A line typed at the node's prompt for this plugin. Deadline 30 s. `None` means "not mine".
    async fn on_prompt(&self, input: &str, ctx: &PluginContext) -> Option<String> {
        let _ = (input, ctx);
        None
    }

    /// The word at the root prompt that enters this plugin's prompt.
    fn prompt_prefix(&self) -> Option<&str> {
        None
    }

    /// Defaults for keys the operator left out. Asked once, before the node opens its network.
    fn early_config_defaults(&self) -> Option<ConfigDefaults> {
        None
    }

    /// A name for lists and logs; the node knows the plugin by its file and shows this beside it.
    fn plugin_id(&self) -> &str {
        ""
    }

    /// Kinds of EXTENSION messages wanted; `None` is all. Other messages are not filtered.
    fn subscribed_extension_kinds(&self) -> Option<&[&str]> {
        None
    }

    /// A request of the node or of an operator (`thenodes plugin call`): a name and bytes in, bytes out, in any format the two
    /// agree on. Deadline 30 s. The error `UNHANDLED` says "not mine" and passes it on to the next handler of this library.
    async fn on_request(&self, name: &str, body: &[u8], ctx: &PluginContext) -> Result<Vec<u8>, HostError> {
        let _ = (body, ctx);
        Err(HostError::new(thenodes_ipc::Code::Unhandled, format!("no request {name:?}")))
    }

    /// Called once before the first message. An error stops the plugin with this text as the reason. Deadline 10 s.
    async fn on_load(&self, ctx: &PluginContext) -> Result<(), String> {
        let _ = ctx;
        Ok(())
    }

    /// Asked now and then (every 10 s unless the operator says otherwise): are you well? An error, or no answer within 5 s, is a
    /// miss; three in a row make the plugin Degraded, six have its process replaced. Runs beside messages.
    async fn on_health(&self, ctx: &PluginContext) -> Result<(), String> {
        let _ = ctx;
        Ok(())
    }

    /// Called before an orderly stop; may leave a state for the next process with [`PluginContext::leave_state`]. Deadline 2 s.
    async fn on_stop(&self, ctx: &PluginContext) {
        let _ = ctx;
    }
}

/// What a call brings: ways to the node. Cheap to clone and to move into tasks.
#[derive(Debug, Clone)]
pub struct PluginContext {
    /// The connected peers.
    pub peer_manager: Arc<PeerManager>,
    /// The known addresses.
    pub peer_store: PeerStore,
    /// Events.
    pub events: EventHandle,
    services: Services,
    info: Arc<NodeInfo>,
}

impl PluginContext {
    /// A context for this host; embedders make one for their own handlers.
    pub fn new(host: Arc<dyn Host>, events: EventHandle, info: Arc<NodeInfo>) -> Self {
        let peer_manager = Arc::new(PeerManager::new(host.clone()));
        let services = Services::new(host.clone());
        Self { peer_manager, peer_store: PeerStore::remote(host), events, services, info }
    }

    /// The connected peers.
    pub fn peer_manager(&self) -> &Arc<PeerManager> {
        &self.peer_manager
    }

    /// The known addresses.
    pub fn peer_store(&self) -> &PeerStore {
        &self.peer_store
    }

    /// Events.
    pub fn events(&self) -> &EventHandle {
        &self.events
    }

    /// Realm of the node.
    pub fn realm(&self) -> Option<&RealmInfo> {
        Some(&self.info.realm)
    }

    /// Id of the node.
    pub fn node_id(&self) -> &str {
        &self.info.node_id
    }

    /// Everything the node said of itself when it loaded this plugin.
    pub fn node_info(&self) -> &NodeInfo {
        &self.info
    }

    /// Sends a message to the node that it names in `to`; see [`PeerManager::deliver`].
    pub async fn deliver_message(
        &self,
        message: Message,
        options: DeliveryOptions,
    ) -> Result<DeliveryOutcome, HostError> {
        self.peer_manager.deliver(&message.to, &message, options).await
    }

    /// Sends a message to a node; see [`PeerManager::deliver`].
    pub async fn send_message(
        &self,
        node_id: &str,
        message: Message,
        options: DeliveryOptions,
    ) -> Result<DeliveryOutcome, HostError> {
        self.peer_manager.deliver(node_id, &message, options).await
    }

    /// What the node says of itself when asked now. Needs the permission `node.info`.
    pub async fn ask_node_info(&self) -> Result<NodeInfo, HostError> {
        self.services.node_info().await
    }

    /// TCP connections, which the node opens and keeps for this plugin. Needs the permission `net.connect`.
    pub fn net(&self) -> &Net {
        self.services.net()
    }

    /// A variable of the node's environment; `None` if there is no such variable. Needs the permission `env.read`.
    pub async fn env(&self, name: &str) -> Result<Option<String>, HostError> {
        self.services.env(name).await
    }

    /// Leaves bytes for the next process's `on_load`, also across an upgrade. Only in `on_stop`, once, at most 1 MiB.
    ///
    /// # Errors
    /// `CONFLICT` outside `on_stop` or the second time, `RESOURCE_EXHAUSTED` if it is longer.
    pub async fn leave_state(&self, bytes: &[u8]) -> Result<(), HostError> {
        self.services.leave_state(bytes).await
    }

    /// What the process before this one left in its `on_stop`; `None` if it left nothing, or crashed. Only in `on_load`. In an
    /// upgrade the question is what stops the old process, so that nothing changes there any more; callers wait meanwhile.
    ///
    /// # Errors
    /// `CONFLICT` outside `on_load`.
    pub async fn left_state(&self) -> Result<Option<Vec<u8>>, HostError> {
        self.services.left_state().await
    }

    /// Random bytes, at most 64 KiB at once. Needs the permission `random`.
    pub async fn random(&self, count: usize) -> Result<Vec<u8>, HostError> {
        self.services.random(count).await
    }
}

/// Whoever collects plugins.
pub trait PluginRegistrar {
    /// Takes a plugin.
    fn register_handler(&mut self, plugin: Box<dyn Plugin>);
}

/// Why a registration failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PluginApiError {
    /// The host passed a null pointer.
    #[error("the host passed a null registrar pointer")]
    NullApi,
    /// Host and plugin were built for different tables.
    #[error(
        "plugin ABI version {expected}, but the host has {received}; rebuild the plugin with the host's SDK"
    )]
    VersionMismatch {
        /// The plugin's.
        expected: u32,
        /// The host's.
        received: u32,
    },
    /// The host offers no way to register.
    #[error("the host's registrar has no handler function")]
    MissingHandler,
    /// The host passed a null context.
    #[error("the host's registrar has a null context")]
    NullContext,
    /// The host did not take the plugin.
    #[error("the host refused the plugin (status {status})")]
    Refused {
        /// Its status; see `thenodes_plugin.h`.
        status: i32,
    },
    /// The runtime inside the plugin could not be started.
    #[error("the plugin's runtime could not start: {0}")]
    Runtime(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_context_can_be_cloned_and_moved_anywhere() {
        fn anywhere<T: Clone + Send + Sync + 'static>() {}
        anywhere::<PluginContext>();
        assert_eq!(PLUGIN_ABI_VERSION, 1);
    }
}
