//! The words in which an operator says what plugins may do and how well they must be held.

use super::scope::{Scope, Scoping};
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
    /// The plugin is told the node's id, realm and session.
    NodeInfo,
    /// The plugin gets random bytes.
    Random,
    /// The plugin reads variables of the node's environment.
    EnvRead,
    /// The plugin reads files.
    FsRead,
    /// The plugin writes to files that exist.
    FsWrite,
    /// The plugin makes and removes files.
    FsCreate,
    /// The plugin connects to others through the node.
    NetConnect,
}

impl Permission {
    /// All of them.
    pub const ALL: [Permission; 15] = [
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
        Permission::FsRead,
        Permission::FsWrite,
        Permission::FsCreate,
        Permission::NetConnect,
    ];

    /// Words of the vocabulary that this release does not serve; nobody can be given them.
    pub const NOT_SERVED: [&str; 15] = [
        "kv.read",
        "kv.write",
        "blob.read",
        "blob.write",
        "sql.query",
        "context.read",
        "context.write",
        "sign",
        "timers",
        "hooks.subscribe",
        "hooks.intercept",
        "hooks.emit",
        "metrics",
        "learning",
        "plugin.call",
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
            Permission::FsRead => "fs.read",
            Permission::FsWrite => "fs.write",
            Permission::FsCreate => "fs.create",
            Permission::NetConnect => "net.connect",
        }
    }

    /// The permission of this name.
    pub fn parse(name: &str) -> Option<Permission> {
        Permission::ALL.into_iter().find(|permission| permission.name() == name)
    }

    /// The word of the vocabulary that somebody may have meant.
    pub fn nearest(word: &str) -> Option<&'static str> {
        // Longer texts are no typing errors, and the comparison costs the product of both lengths.
        if word.len() > 64 {
            return None;
        }
        let word = word.to_ascii_lowercase().replace(['_', ':', '-', '/'], ".");
        let all = Permission::ALL.map(Permission::name).into_iter().chain(Permission::NOT_SERVED);
        all.map(|known| (distance(&word, known), known))
            .min()
            .filter(|(d, _)| *d <= 3)
            .map(|(_, known)| known)
    }
}

/// How many letters have to be added, removed or replaced to make one word the other.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.chars().count()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut corner = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.chars().enumerate() {
            let replaced = corner + usize::from(x != y);
            corner = row[j + 1];
            row[j + 1] = replaced.min(corner + 1).min(row[j] + 1);
        }
    }
    row[b.chars().count()]
}

impl fmt::Display for Permission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A permission as an operator writes it: `name`, or `name:scope`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Rule {
    /// Which.
    pub permission: Permission,
    /// How far; `None` is everything.
    pub scope: Option<Scope>,
}

/// Why a text is no rule, and what to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadRule {
    /// What is wrong.
    pub what: String,
    /// What to write instead.
    pub help: String,
}

impl Rule {
    /// Reads a rule that gives: a permission that does not exist without a scope must have one.
    pub fn giving(text: &str) -> Result<Rule, BadRule> {
        let rule = Rule::taking(text)?;
        match (rule.permission.scoping(), &rule.scope) {
            (Scoping::Mandatory(_), None) => Err(BadRule {
                what: format!("{} without a scope", rule.permission),
                help: format!("write \"{}:..\" with what is needed and no more", rule.permission),
            }),
            _ => Ok(rule),
        }
    }

    /// Reads a rule that takes away: without a scope it takes everything.
    pub fn taking(text: &str) -> Result<Rule, BadRule> {
        let (name, scope) = text.split_once(':').map_or((text, None), |(name, scope)| (name, Some(scope)));
        let Some(permission) = Permission::parse(name) else {
            let what = if Permission::NOT_SERVED.contains(&name) {
                "a permission that this release does not serve"
            } else {
                "no such permission"
            };
            let help = match Permission::nearest(name).and_then(Permission::parse) {
                Some(near) => format!("did you mean \"{near}\"?"),
                None => format!("there are {}", Permission::ALL.map(Permission::name).join(", ")),
            };
            return Err(BadRule { what: what.into(), help });
        };
        match scope.map(|scope| Scope::parse(permission, scope)).transpose() {
            Ok(scope) => Ok(Rule { permission, scope }),
            Err(bad) => Err(BadRule { what: bad.what, help: bad.help.into() }),
        }
    }
}

impl From<Permission> for Rule {
    fn from(permission: Permission) -> Rule {
        Rule { permission, scope: None }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.scope {
            None => self.permission.fmt(f),
            Some(scope) => write!(f, "{}:{scope}", self.permission),
        }
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

    #[test]
    fn a_mistyped_word_finds_its_neighbour_and_nonsense_finds_none() {
        for (typed, meant) in [
            ("message_send", "message.send"),
            ("fs.raed", "fs.read"),
            ("net:connect", "net.connect"),
            ("KV.get", "kv.read"),
        ] {
            assert_eq!(Permission::nearest(typed), Some(meant), "{typed}");
        }
        assert_eq!(Permission::nearest("everything"), None);
        assert_eq!(Permission::nearest(&"x".repeat(10_000)), None);
    }
}
