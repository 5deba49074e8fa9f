//! How far a permission reaches: paths, hosts and addresses, variables, peers, prompts. Pure and ground floor, because both the
//! operator's configuration and an author's manifest speak in scopes. A manifest's author is not trusted: every scope is read
//! strictly, compared by meaning and never as text, and what two sides have in common is never more than either of them.

mod net;

pub use net::NetScope;

use super::policy::Permission;
use std::fmt;
use std::path::Path;

/// Longest scope, bytes.
pub const MAX_SCOPE: usize = 1024;

/// What a permission's scopes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Node ids of peers.
    Peer,
    /// Prefixes at the prompt.
    Prompt,
    /// Absolute paths.
    Path,
    /// Hosts or addresses with a port.
    Net,
    /// Names of environment variables.
    Env,
}

/// Whether a permission has scopes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scoping {
    /// It has none.
    None,
    /// It may have some; without one it reaches everything.
    Optional(Kind),
    /// It does not exist without one.
    Mandatory(Kind),
}

/// One scope.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Scope {
    /// One peer.
    Peer(String),
    /// One prompt.
    Prompt(String),
    /// A file, or a directory and everything below it.
    Path(PathScope),
    /// A destination.
    Net(NetScope),
    /// One variable.
    Env(String),
}

/// Why a text is no scope, and what to write.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what}; {help}")]
pub struct BadScope {
    /// What is wrong.
    pub what: String,
    /// What to write instead.
    pub help: &'static str,
}

fn bad<T>(what: impl Into<String>, help: &'static str) -> Result<T, BadScope> {
    Err(BadScope { what: what.into(), help })
}

impl Permission {
    /// Whether this permission has scopes, and of which kind.
    pub fn scoping(self) -> Scoping {
        match self {
            Permission::MessageReceive | Permission::MessageSend => Scoping::Optional(Kind::Peer),
            Permission::CommandRegister => Scoping::Optional(Kind::Prompt),
            Permission::FsRead | Permission::FsWrite | Permission::FsCreate => Scoping::Mandatory(Kind::Path),
            Permission::NetConnect => Scoping::Mandatory(Kind::Net),
            Permission::EnvRead => Scoping::Mandatory(Kind::Env),
            Permission::PeersRead
            | Permission::PeersWrite
            | Permission::EventsEmit
            | Permission::EventsSubscribe
            | Permission::ConfigDefaults
            | Permission::NodeInfo
            | Permission::Random => Scoping::None,
        }
    }
}

impl Scope {
    /// Reads a scope of a permission.
    pub fn parse(permission: Permission, text: &str) -> Result<Scope, BadScope> {
        let kind = match permission.scoping() {
            Scoping::None => {
                return bad(format!("{permission} has no scopes"), "write the permission without a scope")
            }
            Scoping::Optional(kind) | Scoping::Mandatory(kind) => kind,
        };
        if text.is_empty() || text.len() > MAX_SCOPE || text.chars().any(char::is_control) {
            return bad(
                "an empty scope, one of more than 1024 bytes, or one with control characters",
                "write one scope per string",
            );
        }
        let plain = |most: usize, more: &[u8]| {
            text.len() <= most && text.bytes().all(|b| b.is_ascii_alphanumeric() || more.contains(&b))
        };
        match kind {
            Kind::Peer if plain(128, b"._-") => Ok(Scope::Peer(text.into())),
            Kind::Peer => bad("not a node id", "use 1 to 128 characters of A-Z, a-z, 0-9, '.', '_' and '-'"),
            Kind::Prompt if text.len() <= 64 && text.bytes().all(|b| b.is_ascii_graphic()) => {
                Ok(Scope::Prompt(text.into()))
            }
            Kind::Prompt => bad("not a prompt prefix", "use 1 to 64 printable characters without a space"),
            Kind::Path => PathScope::parse(text).map(Scope::Path),
            Kind::Net => NetScope::parse(text).map(Scope::Net),
            Kind::Env if plain(128, b"_") && !text.as_bytes()[0].is_ascii_digit() => {
                Ok(Scope::Env(text.into()))
            }
            Kind::Env => bad(
                "not the name of a variable",
                "use 1 to 128 characters of A-Z, a-z, 0-9 and '_', no digit first; there are no patterns",
            ),
        }
    }

    /// What both allow; `None` if that is nothing.
    pub fn meet(&self, other: &Scope) -> Option<Scope> {
        match (self, other) {
            (Scope::Peer(_), Scope::Peer(_))
            | (Scope::Prompt(_), Scope::Prompt(_))
            | (Scope::Env(_), Scope::Env(_)) => (self == other).then(|| self.clone()),
            (Scope::Path(a), Scope::Path(b)) => a.meet(b).map(Scope::Path),
            (Scope::Net(a), Scope::Net(b)) => a.meet(b).map(Scope::Net),
            (Scope::Peer(_) | Scope::Prompt(_) | Scope::Env(_) | Scope::Path(_) | Scope::Net(_), _) => None,
        }
    }

    /// True if everything that `other` allows is allowed by this one.
    pub fn contains(&self, other: &Scope) -> bool {
        self.meet(other).as_ref() == Some(other)
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Scope::Peer(text) | Scope::Prompt(text) | Scope::Env(text) => f.write_str(text),
            Scope::Path(path) => f.write_str(&path.0),
            Scope::Net(net) => net.fmt(f),
        }
    }
}

/// An absolute path without `.`, `..` and doubled slashes: that file, or that directory and everything below it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PathScope(String);

/// Trees that show or change the machine itself; no scope reaches into them.
const NO_TREES: [&str; 3] = ["/proc", "/sys", "/dev"];

impl PathScope {
    fn parse(text: &str) -> Result<PathScope, BadScope> {
        let Some(rest) = text.strip_prefix('/') else {
            return bad("not an absolute path", "begin it with '/'");
        };
        if rest.is_empty() {
            return bad("'/' is everything", "name the directories that are needed");
        }
        if rest.split('/').any(|part| matches!(part, "" | "." | "..")) {
            return bad("a path with '.', '..', '//' or a slash at its end", "write it without them");
        }
        let path = PathScope(text.into());
        if NO_TREES.into_iter().any(|tree| PathScope(tree.into()).covers(text)) {
            return bad("a path in /proc, /sys or /dev", "these are never given to a plugin");
        }
        Ok(path)
    }

    /// The path.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// True if the path is this one or lies below it, by whole components. The path must be normal: absolute, without `.` and
    /// `..`; any other lies nowhere. Links are the business of whoever opens it.
    pub fn allows(&self, path: &Path) -> bool {
        path.to_str().is_some_and(|text| PathScope::parse(text).is_ok() && self.covers(text))
    }

    /// The path.
    pub fn path(&self) -> &Path {
        Path::new(&self.0)
    }

    fn covers(&self, text: &str) -> bool {
        text.strip_prefix(self.0.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }

    fn meet(&self, other: &PathScope) -> Option<PathScope> {
        if self.covers(&other.0) {
            Some(other.clone())
        } else {
            other.covers(&self.0).then(|| self.clone())
        }
    }
}

#[cfg(test)]
mod tests;
