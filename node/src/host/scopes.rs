//! A plugin's grants as the services see them: whom it may connect to, which variables it may read. The services know no grants
//! and the grants no services; here they meet.

use crate::config::Permission;
use crate::plugins::grants::{Grants, Subject};
use crate::services::{env::EnvPolicy, net::NetPolicy, Scopes};
use std::net::SocketAddr;
use std::sync::Arc;

struct OfPlugin(Grants);

impl NetPolicy for OfPlugin {
    fn allows_name(&self, host: &str, port: u16) -> bool {
        self.0.allows(Permission::NetConnect, Subject::Host(host, port))
    }

    fn allows_addr(&self, addr: SocketAddr) -> bool {
        self.0.allows(Permission::NetConnect, Subject::Addr(addr))
    }
}

impl EnvPolicy for OfPlugin {
    fn allows(&self, name: &str) -> bool {
        self.0.allows(Permission::EnvRead, Subject::Env(name))
    }
}

/// What these grants reach.
pub fn of(grants: &Grants) -> Scopes {
    let policy = Arc::new(OfPlugin(grants.clone()));
    Scopes { net: policy.clone(), env: policy }
}
