//! The words in which an operator says what plugins may do and how well they must be held.

use std::fmt;
use thenodes_ipc::launch::Level;

/// A permission by its name in configuration and manifests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Permission {
    /// Messages from peers reach the plugin.
    MessageReceive,
    /// The plugin sends messages to peers.
    MessageSend,
    /// The plugin has a prompt.
    CommandRegister,
    /// The plugin sees connected peers and known addresses.
    PeersRead,
    /// The plugin adds to the known addresses.
    PeersWrite,
    /// The plugin's events reach the node's sinks.
    EventsEmit,
    /// The plugin receives the node's events.
    EventsSubscribe,
    /// The plugin suggests configuration defaults.
    ConfigDefaults,
    /// The plugin may ask what the node says of itself.
    NodeInfo,
    /// The node draws random bytes for the plugin.
    Random,
    /// The plugin reads variables of the node's environment; which ones, a scope says.
    EnvRead,
    /// The node opens TCP connections for the plugin; where to, a scope says.
    NetConnect,
}

impl Permission {
    /// All of them.
    pub const ALL: [Permission; 12] = [
        Permission::MessageReceive,
        Permission::MessageSend,
        Permission::CommandRegister,
        Permission::PeersRead,
        Permission::PeersWrite,
        Permission::EventsEmit,
        Permission::EventsSubscribe,
        Permission::ConfigDefaults,
        Permission::NodeInfo,
        Permission::Random,
        Permission::EnvRead,
        Permission::NetConnect,
    ];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Permission::MessageReceive => "message.receive",
            Permission::MessageSend => "message.send",
            Permission::CommandRegister => "command.register",
            Permission::PeersRead => "peers.read",
            Permission::PeersWrite => "peers.write",
            Permission::EventsEmit => "events.emit",
            Permission::EventsSubscribe => "events.subscribe",
            Permission::ConfigDefaults => "config.defaults",
            Permission::NodeInfo => "node.info",
            Permission::Random => "random",
            Permission::EnvRead => "env.read",
            Permission::NetConnect => "net.connect",
        }
    }

    /// True if the word alone opens nothing: it needs to say what it is for, and is never given by default.
    pub fn needs_scope(self) -> bool {
        matches!(self, Permission::EnvRead | Permission::NetConnect)
    }

    /// The permission of this name.
    pub fn parse(name: &str) -> Option<Permission> {
        Permission::ALL.into_iter().find(|permission| permission.name() == name)
    }
}

impl fmt::Display for Permission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Lowest level at which a plugin may run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Required {
    /// Every wall.
    #[default]
    Full,
    /// Whatever the runner does not refuse by itself.
    Reduced,
}

impl Required {
    /// The word in the configuration.
    pub fn word(self) -> &'static str {
        match self {
            Required::Full => "full",
            Required::Reduced => "reduced",
        }
    }

    /// True if this level is enough.
    pub fn accepts(self, level: &Level) -> bool {
        match (self, level) {
            (_, Level::Full) | (Required::Reduced, Level::Reduced(_)) => true,
            (Required::Full, Level::Reduced(_)) | (_, Level::Refused(_)) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_permission_is_found_by_its_name() {
        for permission in Permission::ALL {
            assert_eq!(Permission::parse(permission.name()), Some(permission));
        }
        assert_eq!(Permission::parse("root"), None);
    }
}
