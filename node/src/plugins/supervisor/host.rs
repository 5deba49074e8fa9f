//! The node as one process of a plugin sees it over its link: what is about this very process stays here, everything else goes on to
//! the host behind its grants. Every request is hostile input; what is served here is bounded by the log book and the state desk.

use super::left::StateDesk;
use crate::plugins::logs::LogBook;
use std::sync::Arc;
use thenodes::host::{Host, HostError, LogLine, Notice, Request, Response};
use thenodes_ipc::Generation;

/// The node as the link shows it to one process: log lines and its state stay here, everything else goes to the granted host.
pub(super) struct PluginHost {
    pub(super) inner: Arc<dyn Host>,
    pub(super) logs: Arc<LogBook>,
    pub(super) generation: Generation,
    pub(super) desk: Arc<StateDesk>,
}

#[async_trait::async_trait]
impl Host for PluginHost {
    async fn call(&self, request: Request) -> Result<Response, HostError> {
        match request {
            Request::StateLeave { offset, bytes, last } => self.desk.leave(offset, &bytes.0, last),
            Request::StateLeft { offset } => self.desk.left(offset).await,
            request => self.inner.call(request).await,
        }
    }

    fn notify(&self, notice: Notice) {
        match notice {
            Notice::Log(LogLine { level, target, text }) => {
                // The plugin's own word for where it speaks must not look like one of ours, in no alphabet.
                self.logs.add(self.generation.0, &level, &format!("log {target}"), &text);
            }
            Notice::Emit(_) | Notice::SubscribeEvents | Notice::CloseStream(_) => self.inner.notify(notice),
        }
    }
}
