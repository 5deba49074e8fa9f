//! The plugin author's side of TheNodes.
//!
//! A plugin is an ordinary `cdylib` that implements [`plugin_host::Plugin`] and exports `register_plugin`. The node runs it
//! in a sandboxed process of its own; this crate carries every call across that border, so the author's source is the
//! same as for a plugin inside the node:
//!
//! ```
//! use thenodes::network::message::Message;
//! use thenodes::plugin_host::{Plugin, PluginContext, PluginRegistrarApi};
//!
//! struct Greeter;
//!
//! #[async_trait::async_trait]
//! impl Plugin for Greeter {
//!     fn on_message(&self, message: &Message, _ctx: &PluginContext) {
//!         println!("{} says {:?}", message.from, message.msg_type);
//!     }
//!     async fn on_prompt(&self, input: &str, _ctx: &PluginContext) -> Option<String> {
//!         Some(format!("hello {input}"))
//!     }
//!     fn prompt_prefix(&self) -> Option<&str> {
//!         Some("greet")
//!     }
//! }
//!
//! #[no_mangle]
//! pub unsafe extern "C" fn register_plugin(api: *const PluginRegistrarApi) {
//!     let api = match PluginRegistrarApi::from_raw(api) {
//!         Ok(api) => api,
//!         Err(err) => return eprintln!("invalid registrar: {err}"),
//!     };
//!     if let Err(err) = api.register_plugin(Box::new(Greeter)) {
//!         eprintln!("failed to register: {err}");
//!     }
//! }
//! ```
//!
//! The node uses this crate too, for the domain types and for [`host::Host`], the one trait for everything a plugin may
//! ask of its node: an embedder's own handlers and a sandboxed plugin meet the same code behind it.

pub mod config;
pub mod constants;
pub mod events;
pub mod host;
pub mod net;
pub mod network;
pub mod plugin_host;
pub mod prelude;
pub mod realms;
pub mod services;
pub mod utils;
