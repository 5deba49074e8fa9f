//! What a plugin may ask for: a pure judgement per request, and the wrapper around the node's `Host` that carries it out.
//! Default deny: a request that no grant covers is refused by name, counted, and reported.

use crate::config::Permission;
use std::collections::BTreeSet;
use std::sync::Arc;
use thenodes::host::{Host, HostError, Notice, Request, Response};
use thenodes_ipc::{Code, PluginName};

/// What one plugin was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grants {
    given: BTreeSet<Permission>,
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

impl Grants {
    /// These permissions and no others.
    pub fn new(given: impl IntoIterator<Item = Permission>) -> Self {
        Self { given: given.into_iter().collect() }
    }

    /// Judges one permission.
    pub fn holds(&self, permission: Permission) -> Verdict {
        if self.given.contains(&permission) {
            Verdict::Granted
        } else {
            Verdict::Denied(permission)
        }
    }

    /// Judges a request.
    pub fn judge(&self, request: &Request) -> Verdict {
        self.holds(match request {
            Request::Broadcast { .. } | Request::SendToNode { .. } | Request::SendToAddr { .. } => {
                Permission::MessageSend
            }
            Request::ListPeers {}
            | Request::FindPeer { .. }
            | Request::RelayStats {}
            | Request::RelayQueueCaps {}
            | Request::StoreSample { .. }
            | Request::StoreRecords {} => Permission::PeersRead,
            Request::StoreInsert { .. } | Request::StoreSuccess { .. } | Request::StoreFailure { .. } => {
                Permission::PeersWrite
            }
            Request::NodeInfo {} => Permission::NodeInfo,
            Request::EnvRead { .. } => Permission::EnvRead,
            Request::Random { .. } => Permission::Random,
            Request::NetConnect { .. }
            | Request::NetWrite { .. }
            | Request::NetRead { .. }
            | Request::NetShutdown { .. }
            | Request::NetClose { .. } => Permission::NetConnect,
        })
    }

    /// Judges a notice. A log line needs no grant.
    pub fn judge_notice(&self, notice: &Notice) -> Verdict {
        match notice {
            // Closing gives something up; whoever may not connect has nothing to close.
            Notice::Log(_) | Notice::CloseStream(_) => Verdict::Granted,
            Notice::Emit(_) => self.holds(Permission::EventsEmit),
            Notice::SubscribeEvents => self.holds(Permission::EventsSubscribe),
        }
    }
}

/// Whoever hears about refusals.
pub trait Witness: Send + Sync {
    /// A plugin was refused.
    fn denied(&self, plugin: &PluginName, permission: Permission, method: &str);
}

/// The node as one plugin may use it.
pub struct Granted {
    plugin: PluginName,
    grants: Grants,
    inner: Arc<dyn Host>,
    witness: Arc<dyn Witness>,
}

impl Granted {
    /// Puts the judgement in front of a host.
    pub fn new(plugin: PluginName, grants: Grants, inner: Arc<dyn Host>, witness: Arc<dyn Witness>) -> Self {
        Self { plugin, grants, inner, witness }
    }

    fn denied(&self, permission: Permission, method: &str) -> HostError {
        self.witness.denied(&self.plugin, permission, method);
        HostError::new(
            Code::PermissionDenied,
            format!(
                "plugin {} has no permission {permission} for {method}; add \"{permission}\" to [plugins.defaults] permissions to allow it",
                self.plugin
            ),
        )
    }
}

#[async_trait::async_trait]
impl Host for Granted {
    async fn call(&self, request: Request) -> Result<Response, HostError> {
        match self.grants.judge(&request) {
            Verdict::Granted => self.inner.call(request).await,
            Verdict::Denied(permission) => Err(self.denied(permission, &request.wish())),
        }
    }

    fn notify(&self, notice: Notice) {
        match self.grants.judge_notice(&notice) {
            Verdict::Granted => self.inner.notify(notice),
            Verdict::Denied(permission) => {
                let _ = self.denied(permission, "a notice");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_grant_nothing_passes_and_each_grant_opens_only_its_own_door() {
        let send = Request::Broadcast { text: "{}".into() };
        assert_eq!(Grants::new([]).judge(&send), Verdict::Denied(Permission::MessageSend));
        assert_eq!(Grants::new([Permission::MessageSend]).judge(&send), Verdict::Granted);
        let reader = Grants::new([Permission::PeersRead]);
        assert_eq!(reader.judge(&send), Verdict::Denied(Permission::MessageSend));
        assert_eq!(reader.judge(&Request::ListPeers {}), Verdict::Granted);
        assert_eq!(
            reader.judge_notice(&Notice::SubscribeEvents),
            Verdict::Denied(Permission::EventsSubscribe)
        );
    }
}
