//! What a plugin may ask for: a pure judgement per request, and the wrapper around the node's `Host` that carries it out.
//! Default deny: a request that no grant covers is refused by name, counted, reported, and told which line would allow it.

use crate::config::scope::{Scope, Scoping};
use crate::config::{Permission, Rule};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use thenodes::host::{Host, HostError, Notice, PeerInfo, Request, Response};
use thenodes_ipc::launch::PathGrant;
use thenodes_ipc::{Code, PluginName};

/// How far a permission reaches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reach {
    /// Everywhere.
    All,
    /// Into these scopes; into none if there are none.
    Scopes(Vec<Scope>),
}

/// What a request is about, for permissions with scopes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subject<'a> {
    /// The permission as a whole; for those without scopes, and for requests that touch everything at once.
    Whole,
    /// A peer by its proved node id.
    Peer(&'a str),
    /// A prefix at the prompt.
    Prompt(&'a str),
    /// A normal absolute path.
    Path(&'a Path),
    /// A variable.
    Env(&'a str),
    /// A host as the plugin wrote it; what it resolves to is judged as [`Subject::Addr`].
    Host(&'a str, u16),
    /// An address.
    Addr(SocketAddr),
    /// A stream that was opened before, and was judged then.
    Opened,
}

impl Default for Reach {
    fn default() -> Self {
        Reach::Scopes(Vec::new())
    }
}

impl Reach {
    /// Adds a scope, or everything.
    pub fn add(&mut self, scope: Option<Scope>) {
        match (&mut *self, scope) {
            (Reach::All, _) => {}
            (Reach::Scopes(_), None) => *self = Reach::All,
            (Reach::Scopes(scopes), Some(scope)) if scopes.contains(&scope) => {}
            (Reach::Scopes(scopes), Some(scope)) => scopes.push(scope),
        }
    }

    /// What both reach.
    #[must_use]
    pub fn meet(&self, other: &Reach) -> Reach {
        match (self, other) {
            (Reach::All, reach) | (reach, Reach::All) => reach.clone(),
            (Reach::Scopes(ours), Reach::Scopes(theirs)) => {
                let mut met = Reach::default();
                for scope in ours.iter().flat_map(|a| theirs.iter().filter_map(|b| a.meet(b))) {
                    met.add(Some(scope));
                }
                met
            }
        }
    }

    /// True if it reaches nothing.
    pub fn is_empty(&self) -> bool {
        *self == Reach::default()
    }

    /// True if all of `other` lies within.
    pub fn contains(&self, other: &Reach) -> bool {
        match (self, other) {
            (Reach::All, _) => true,
            (Reach::Scopes(_), Reach::All) => false,
            (Reach::Scopes(ours), Reach::Scopes(theirs)) => {
                theirs.iter().all(|scope| ours.iter().any(|own| own.contains(scope)))
            }
        }
    }

    /// True if this reaches the subject.
    fn covers(&self, subject: &Subject<'_>) -> bool {
        match self {
            Reach::All => true,
            Reach::Scopes(scopes) => scopes.iter().any(|scope| covers(scope, subject)),
        }
    }

    /// True if this takes the subject away. A name takes no address: it would take all of the internet.
    fn takes(&self, subject: &Subject<'_>) -> bool {
        match (self, subject) {
            (Reach::All, _) => true,
            // Everything at once is not everything any more.
            (Reach::Scopes(scopes), Subject::Whole) => !scopes.is_empty(),
            (Reach::Scopes(_), Subject::Opened) => false,
            (Reach::Scopes(scopes), subject) => scopes.iter().any(|scope| {
                let name =
                    matches!((scope, subject), (Scope::Net(net), Subject::Addr(_)) if !net.is_address());
                !name && covers(scope, subject)
            }),
        }
    }
}

fn covers(scope: &Scope, subject: &Subject<'_>) -> bool {
    match (scope, subject) {
        (Scope::Peer(own), Subject::Peer(id)) => own == id,
        (Scope::Prompt(own), Subject::Prompt(prefix)) => own == prefix,
        (Scope::Env(own), Subject::Env(name)) => own == name,
        (Scope::Path(own), Subject::Path(path)) => own.allows(path),
        (Scope::Net(own), Subject::Host(host, port)) => own.allows_name(host, *port),
        (Scope::Net(own), Subject::Addr(addr)) => own.allows_addr(*addr),
        (Scope::Net(_), Subject::Opened) => true,
        (Scope::Peer(_) | Scope::Prompt(_) | Scope::Env(_) | Scope::Path(_) | Scope::Net(_), _) => false,
    }
}

/// Reaches by permission.
pub(super) type Reaches = BTreeMap<Permission, Reach>;

/// Collects rules.
pub(super) fn reaches<'a>(rules: impl IntoIterator<Item = &'a Rule>) -> Reaches {
    let mut reaches = Reaches::new();
    for rule in rules {
        reaches.entry(rule.permission).or_default().add(rule.scope.clone());
    }
    reaches
}

/// Where a plugin asked, for the line that would allow more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Asking {
    /// Its manifest.
    pub(super) path: PathBuf,
    /// Lines of the manifest.
    pub(super) lines: usize,
    /// What it asks for, and in which line.
    pub(super) asked: BTreeMap<Permission, (Reach, usize)>,
    /// What the operator would give.
    pub(super) allowed: Reaches,
}

/// What one plugin was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grants {
    pub(super) plugin: PluginName,
    pub(super) given: Reaches,
    pub(super) denied: Reaches,
    pub(super) asking: Option<Asking>,
}

/// A judgement. A request is carried out only behind [`Verdict::Granted`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Verdict {
    /// Go on.
    Granted,
    /// No: this one is missing.
    Denied(Permission),
}

/// What a request needs; `None` is nothing.
fn needs(request: &Request) -> Option<(Permission, Subject<'_>)> {
    Some(match request {
        // A plugin's own state; its supervisor serves it, before the node is asked.
        Request::StateLeave { .. } | Request::StateLeft { .. } => return None,
        Request::Broadcast { .. } | Request::SendToAddr { .. } => (Permission::MessageSend, Subject::Whole),
        Request::SendToNode { node_id, .. } | Request::Deliver { node_id, .. } => {
            (Permission::MessageSend, Subject::Peer(node_id))
        }
        Request::ListPeers {}
        | Request::FindPeer { .. }
        | Request::RelayStats {}
        | Request::RelayQueueCaps {}
        | Request::StoreSample { .. }
        | Request::StoreRecords {} => (Permission::PeersRead, Subject::Whole),
        Request::StoreInsert { .. } | Request::StoreSuccess { .. } | Request::StoreFailure { .. } => {
            (Permission::PeersWrite, Subject::Whole)
        }
        Request::NodeInfo {} => (Permission::NodeInfo, Subject::Whole),
        Request::Random { .. } => (Permission::Random, Subject::Whole),
        Request::EnvRead { name } => (Permission::EnvRead, Subject::Env(name)),
        Request::NetConnect { host, port } => (Permission::NetConnect, Subject::Host(host, *port)),
        Request::NetWrite { .. }
        | Request::NetRead { .. }
        | Request::NetShutdown { .. }
        | Request::NetClose { .. } => (Permission::NetConnect, Subject::Opened),
    })
}

/// What a notice needs. A log line needs nothing.
fn notice_needs(notice: &Notice) -> Option<(Permission, &'static str)> {
    match notice {
        // Closing gives something up; whoever may not connect has nothing to close.
        Notice::Log(_) | Notice::CloseStream(_) => None,
        Notice::Emit(_) => Some((Permission::EventsEmit, "events.emit")),
        Notice::SubscribeEvents => Some((Permission::EventsSubscribe, "events.subscribe")),
    }
}

impl Grants {
    /// These permissions and no others, without a manifest.
    pub fn new(plugin: PluginName, given: impl IntoIterator<Item = Permission>) -> Self {
        let rules: Vec<Rule> = given.into_iter().map(Rule::from).collect();
        Self { plugin, given: reaches(&rules), denied: Reaches::new(), asking: None }
    }

    /// Judges one permission.
    pub fn holds(&self, permission: Permission, subject: Subject<'_>) -> Verdict {
        let given = self.given.get(&permission).is_some_and(|reach| reach.covers(&subject));
        let taken = self.denied.get(&permission).is_some_and(|reach| reach.takes(&subject));
        if given && !taken {
            Verdict::Granted
        } else {
            Verdict::Denied(permission)
        }
    }

    /// True if the permission is granted for this.
    pub fn allows(&self, permission: Permission, subject: Subject<'_>) -> bool {
        matches!(self.holds(permission, subject), Verdict::Granted)
    }

    /// Judges a request.
    pub fn judge(&self, request: &Request) -> Verdict {
        needs(request).map_or(Verdict::Granted, |(permission, subject)| self.holds(permission, subject))
    }

    /// Judges a notice.
    pub fn judge_notice(&self, notice: &Notice) -> Verdict {
        notice_needs(notice)
            .map_or(Verdict::Granted, |(permission, _)| self.holds(permission, Subject::Whole))
    }

    /// True if the permission is given to some part of its scopes.
    pub fn allows_some(&self, permission: Permission) -> bool {
        let given = self.given.get(&permission).is_some_and(|reach| !reach.is_empty());
        given && self.denied.get(&permission) != Some(&Reach::All)
    }

    /// The paths of the host that it may use, for its sandbox. `fs.create` includes writing to what was made, and nothing includes
    /// reading. A denied path is taken away with every permission that would give it by the way; where only a part of a path is
    /// denied all of it is, because a mount cannot have a hole.
    pub fn paths(&self) -> Vec<PathGrant> {
        let mut paths: BTreeMap<String, PathGrant> = BTreeMap::new();
        for (permission, taken_by) in [
            (Permission::FsRead, &[Permission::FsRead][..]),
            (Permission::FsWrite, &[Permission::FsWrite]),
            (Permission::FsCreate, &[Permission::FsCreate, Permission::FsWrite]),
        ] {
            let Some(Reach::Scopes(scopes)) = self.given.get(&permission) else { continue };
            for scope in scopes {
                let Scope::Path(path) = scope else { continue };
                let taken = taken_by.iter().filter_map(|by| self.denied.get(by)).any(|denied| match denied {
                    Reach::All => true,
                    Reach::Scopes(denied) => {
                        denied.iter().any(|one| one.contains(scope) || scope.contains(one))
                    }
                });
                if taken {
                    continue;
                }
                let path = path.as_str().to_owned();
                let none = PathGrant { path: path.clone(), read: false, write: false, create: false };
                let grant = paths.entry(path).or_insert(none);
                match permission {
                    Permission::FsRead => grant.read = true,
                    Permission::FsWrite => grant.write = true,
                    _ => (grant.write, grant.create) = (true, true),
                }
            }
        }
        paths.into_values().collect()
    }

    /// What these give and the others do not, a line for each permission.
    pub fn beyond(&self, other: &Grants) -> Vec<String> {
        let nothing = Reach::default();
        let mut more = Vec::new();
        for (permission, reach) in &self.given {
            // What is denied is the operator's, and the same for both; it only takes away.
            let had = other.given.get(permission).unwrap_or(&nothing);
            if had.contains(reach) {
                continue;
            }
            let new: Vec<String> = match reach {
                Reach::All => vec!["everything".into()],
                Reach::Scopes(scopes) => scopes
                    .iter()
                    .filter(|scope| !had.contains(&Reach::Scopes(vec![(*scope).clone()])))
                    .map(ToString::to_string)
                    .collect(),
            };
            more.push(format!("+ {permission}: {}", new.join(" ")));
        }
        more
    }

    /// Whose they are.
    pub fn plugin(&self) -> &PluginName {
        &self.plugin
    }

    /// The line that would allow this request.
    pub fn remedy_for(&self, request: &Request) -> String {
        needs(request).map_or_else(String::new, |(permission, subject)| self.remedy(permission, subject))
    }

    /// The line that would allow it.
    pub fn remedy(&self, permission: Permission, subject: Subject<'_>) -> String {
        let plugin = &self.plugin;
        let scope = match subject {
            Subject::Whole | Subject::Opened => None,
            Subject::Peer(text) | Subject::Prompt(text) | Subject::Env(text) => Some(text.to_owned()),
            Subject::Path(path) => Some(path.display().to_string()),
            Subject::Host(host, port) => Some(format!("{host}:{port}")),
            Subject::Addr(addr) => Some(addr.to_string()),
        }
        .map(|text| crate::text::printable(&text, 256));
        let rule =
            scope.as_ref().map_or_else(|| permission.to_string(), |scope| format!("{permission}:{scope}"));
        if self.denied.get(&permission).is_some_and(|reach| reach.takes(&subject)) {
            return format!("the operator denies it: change \"{permission}\" in [plugins.for.{plugin}] deny");
        }
        let Some(Asking { path, lines, asked, allowed }) = &self.asking else {
            return format!(
                "add \"{rule}\" to [plugins.defaults] permissions, or give the plugin a plugin.toml that asks for it"
            );
        };
        let path = path.display();
        let mut lines_to_write = Vec::new();
        match asked.get(&permission) {
            Some((reach, _)) if reach.covers(&subject) => {}
            Some((_, line)) => lines_to_write.push(match scope {
                Some(scope) => format!(
                    "add \"{scope}\" to the scope of [[permission]] name = \"{permission}\" in {path}:{line}"
                ),
                None => {
                    format!("ask without a scope in [[permission]] name = \"{permission}\" in {path}:{line}")
                }
            }),
            None => {
                let scope = match (permission.scoping(), scope) {
                    (Scoping::Mandatory(_), Some(scope)) => format!(" scope = [\"{scope}\"]"),
                    (Scoping::Mandatory(_), None) => " scope = [\"..\"]".into(),
                    (Scoping::Optional(_) | Scoping::None, _) => String::new(),
                };
                lines_to_write.push(format!(
                    "add [[permission]] name = \"{permission}\"{scope} to {path} (after line {lines})"
                ));
            }
        }
        if !allowed.get(&permission).is_some_and(|reach| reach.covers(&subject)) {
            lines_to_write
                .push(format!("add \"{rule}\" to [plugins.for.{plugin}] allow in the configuration"));
        }
        lines_to_write.join(", and ")
    }
}

/// Whoever hears about refusals.
pub trait Witness: Send + Sync {
    /// A plugin was refused; `remedy` is what would allow it.
    fn denied(&self, plugin: &PluginName, permission: Permission, method: &str, remedy: &str);
}

/// The node as one plugin may use it.
pub struct Granted {
    grants: Grants,
    inner: Arc<dyn Host>,
    witness: Arc<dyn Witness>,
}

impl Granted {
    /// Puts the judgement in front of a host.
    pub fn new(grants: Grants, inner: Arc<dyn Host>, witness: Arc<dyn Witness>) -> Self {
        Self { grants, inner, witness }
    }

    fn denied(&self, permission: Permission, subject: Subject<'_>, method: &str) -> HostError {
        let plugin = &self.grants.plugin;
        let remedy = self.grants.remedy(permission, subject);
        self.witness.denied(plugin, permission, method, &remedy);
        let text =
            format!("plugin {plugin} has no permission {permission} for {method}; to allow it, {remedy}");
        HostError::new(Code::PermissionDenied, text)
    }

    /// A message to every connected peer that the plugin may send to.
    async fn broadcast(&self, text: String) -> Result<Response, HostError> {
        let peers = match self.inner.call(Request::ListPeers {}).await? {
            Response::Peers(peers) => peers,
            other => return Err(HostError::new(Code::Internal, format!("peers.list answered {other:?}"))),
        };
        let mut reached = 0;
        let allowed =
            |peer: &PeerInfo| self.grants.allows(Permission::MessageSend, Subject::Peer(&peer.node_id));
        for peer in peers.into_iter().filter(allowed) {
            match self.inner.call(Request::SendToNode { node_id: peer.node_id, text: text.clone() }).await {
                Ok(_) => reached += 1,
                // As in any broadcast: who has just gone or does not read is not reached.
                Err(error) if matches!(error.code, Code::NotFound | Code::ResourceExhausted) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Response::Done(reached))
    }

    /// The peer behind a request that names an address. Asked by id from here on, because what is behind an address changes.
    async fn by_id(&self, request: Request) -> Result<Request, HostError> {
        match request {
            Request::SendToAddr { addr, text } => {
                match self.inner.call(Request::FindPeer { node_id: None, addr: Some(addr) }).await? {
                    Response::Peer(Some(peer)) => Ok(Request::SendToNode { node_id: peer.node_id, text }),
                    // Refused like a stranger: an answer of its own would say who is connected.
                    _ => Ok(Request::SendToAddr { addr, text }),
                }
            }
            other => Ok(other),
        }
    }
}

#[async_trait::async_trait]
impl Host for Granted {
    async fn call(&self, request: Request) -> Result<Response, HostError> {
        if let Verdict::Granted = self.grants.judge(&request) {
            return self.inner.call(request).await;
        }
        let wish = request.wish();
        let request = match request {
            // Some peers, but not all.
            Request::Broadcast { text } if self.grants.allows_some(Permission::MessageSend) => {
                return self.broadcast(text).await
            }
            request if self.grants.allows_some(Permission::MessageSend) => self.by_id(request).await?,
            request => request,
        };
        match self.grants.judge(&request) {
            Verdict::Granted => self.inner.call(request).await,
            Verdict::Denied(permission) => {
                let subject = needs(&request).map_or(Subject::Whole, |(_, subject)| subject);
                Err(self.denied(permission, subject, &wish))
            }
        }
    }

    fn notify(&self, notice: Notice) {
        match (self.grants.judge_notice(&notice), notice_needs(&notice)) {
            (Verdict::Granted, _) => self.inner.notify(notice),
            (Verdict::Denied(permission), needed) => {
                let method = needed.map_or("a notice", |(_, method)| method);
                let _ = self.denied(permission, Subject::Whole, method);
            }
        }
    }
}

#[cfg(test)]
mod tests;
