//! What the node does for plugins beside messages: TCP streams, the environment, random bytes. Ground floor: nothing here
//! knows plugins, links or permissions; the hall asks, after the grants have said that the plugin may ask at all.
//! What exactly it may reach is said by its scopes, which each service checks itself. Every argument is a plugin's and hostile.

pub mod address;
pub mod env;
pub mod net;
pub mod random;

use std::net::SocketAddr;
use std::sync::Arc;

/// What one plugin may reach through the services.
#[derive(Clone)]
pub struct Scopes {
    /// Over the network.
    pub net: Arc<dyn net::NetPolicy>,
    /// In the environment.
    pub env: Arc<dyn env::EnvPolicy>,
}

impl Scopes {
    /// Nothing.
    pub fn none() -> Self {
        Self { net: Arc::new(DenyAll), env: Arc::new(DenyAll) }
    }
}

/// The policy of whoever was given nothing.
#[derive(Debug, Clone, Copy)]
pub struct DenyAll;

impl net::NetPolicy for DenyAll {
    fn allows_name(&self, _host: &str, _port: u16) -> bool {
        false
    }

    fn allows_addr(&self, _addr: SocketAddr) -> bool {
        false
    }
}

impl env::EnvPolicy for DenyAll {
    fn allows(&self, _name: &str) -> bool {
        false
    }
}
