//! The plugin's own life inside its process: handlers, the runtime, and what each frame from the node leads to.
//!
//! Threads: the runner's link thread calls [`Library::receive`] and must not be held up, so it only sorts frames. One
//! `messages` thread runs `on_load`, `on_message` and `on_stop`, one after the other in order of arrival; async work runs
//! on a tokio runtime of two workers. An answer to a plugin's own request comes through the link thread, so a handler may
//! wait for one anywhere without a deadlock.

use super::client::{Client, CURRENT_CALL};
use super::export::Wire;
use super::{logger, Plugin, PluginContext};
use crate::config::ConfigDefaults;
use crate::events::model::LogEvent;
use crate::events::{dispatcher, EventHandle};
use crate::host::NodeInfo;
use crate::network::message::Message;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::future::Future;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::mpsc::{sync_channel, Receiver, SyncSender, TrySendError};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use thenodes_ipc::{limits, pack, Code};
use tokio::task::AbortHandle;

/// A frame from the node, sorted by kind.
pub(super) enum Incoming<'a> {
    Call { id: u64, method: &'a str, body: &'a [u8] },
    Notify { method: &'a str, body: &'a [u8] },
    Reply { id: u64, code: &'a str, body: &'a [u8] },
    Cancel { id: u64 },
}

/// What the library says about itself.
pub(super) struct About {
    pub(super) id: String,
    pub(super) prompts: Vec<String>,
    pub(super) config_defaults: Vec<u8>,
    pub(super) extension_kinds: Option<Vec<String>>,
}

/// Arguments of the `prompt` call.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct PromptArgs {
    pub(crate) prefix: String,
    pub(crate) input: String,
}

/// Work for the `messages` thread.
enum Work {
    Load { id: u64, body: Vec<u8> },
    Message { id: u64, body: Vec<u8> },
    Stop { id: u64 },
}

/// All handlers of one plugin file and what they share.
pub(super) struct Library {
    handlers: Mutex<Vec<Arc<dyn Plugin>>>,
    runtime: tokio::runtime::Runtime,
    work: SyncSender<Work>,
    client: OnceLock<Arc<Client>>,
    context: OnceLock<PluginContext>,
    running: Mutex<HashMap<u64, AbortHandle>>,
}

impl Library {
    /// Starts the runtime and the `messages` thread.
    pub(super) fn start() -> std::io::Result<Arc<Library>> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .max_blocking_threads(8) // the plugin's thread limit is shared with whatever it starts itself
            .thread_name("plugin-async")
            // Timers only: there are no sockets in a sandbox, and an I/O driver would cost descriptors and memory.
            .enable_time()
            .build()?;
        // The node keeps at most MAX_CALLS_TO_PLUGIN calls open, so this queue cannot fill unless the node misbehaves.
        let (work, queue) = sync_channel(limits::MAX_CALLS_TO_PLUGIN * 2);
        let library = Arc::new(Library {
            handlers: Mutex::default(),
            runtime,
            work,
            client: OnceLock::new(),
            context: OnceLock::new(),
            running: Mutex::default(),
        });
        let worker = library.clone();
        std::thread::Builder::new()
            .name("plugin-messages".into())
            .spawn(move || worker.run_messages(&queue))?;
        Ok(library)
    }

    pub(super) fn add(&self, plugin: Box<dyn Plugin>) {
        self.handlers.lock().unwrap_or_else(PoisonError::into_inner).push(plugin.into());
    }

    fn handlers(&self) -> Vec<Arc<dyn Plugin>> {
        self.handlers.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn describe(&self) -> About {
        let handlers = self.handlers();
        let ids: Vec<&str> = handlers.iter().map(|h| h.plugin_id()).filter(|id| !id.is_empty()).collect();
        let defaults: Vec<ConfigDefaults> =
            handlers.iter().filter_map(|h| h.early_config_defaults()).collect();
        let kinds: Option<Vec<Vec<String>>> = handlers
            .iter()
            .map(|h| Some(h.subscribed_extension_kinds()?.iter().map(ToString::to_string).collect()))
            .collect();
        About {
            id: ids.join("+"),
            prompts: handlers.iter().filter_map(|h| h.prompt_prefix().map(str::to_owned)).collect(),
            config_defaults: match defaults.is_empty() {
                true => Vec::new(),
                false => pack::encode(&defaults).unwrap_or_default(),
            },
            extension_kinds: kinds.map(|lists| lists.concat()),
        }
    }

    /// Takes the runner's side of the link. False if that was done before.
    pub(super) fn connect(&self, wire: Wire) -> bool {
        let client = Arc::new(Client::new(wire, self.runtime.handle().clone()));
        logger::install(client.clone());
        dispatcher::set_process_handle(EventHandle::new(client.clone()));
        self.client.set(client).is_ok()
    }

    /// Sorts one frame. Called on the link thread only, before which `connect` was called.
    pub(super) fn receive(self: &Arc<Self>, frame: Incoming<'_>) {
        let Some(client) = self.client.get() else { return };
        match frame {
            Incoming::Reply { id, code, body } => client.answered(id, code, body),
            Incoming::Cancel { id } => {
                let task = self.running.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
                if let Some(task) = task {
                    task.abort();
                    client.fail(id, &Code::Cancelled, "the node took the call back");
                }
            }
            Incoming::Notify { method: "event", body } => {
                if let Ok(event) = pack::decode::<LogEvent>(body) {
                    client.event_arrived(event);
                }
            }
            Incoming::Notify { .. } => {} // from a newer node; notices may be ignored
            Incoming::Call { id, method: "prompt", body } => self.prompt(client, id, body),
            Incoming::Call { id, method: "health", .. } => self.health(client, id),
            Incoming::Call { id, method, body } => {
                let body = body.to_vec();
                let work = match method {
                    "message" => Work::Message { id, body },
                    "load" => Work::Load { id, body },
                    "stop" => Work::Stop { id },
                    other => {
                        return client.fail(
                            id,
                            &Code::Unhandled,
                            &format!("this plugin has no method {other:?}"),
                        )
                    }
                };
                match self.work.try_send(work) {
                    Ok(()) => {}
                    Err(TrySendError::Full(_)) => {
                        client.fail(id, &Code::ResourceExhausted, "too many calls wait in the plugin");
                    }
                    Err(TrySendError::Disconnected(_)) => {
                        client.fail(id, &Code::Unavailable, "the plugin has stopped");
                    }
                }
            }
        }
    }

    /// Runs an `on_prompt` on the runtime, so that prompts do not wait for messages.
    fn prompt(self: &Arc<Self>, client: &Arc<Client>, id: u64, body: &[u8]) {
        let args: PromptArgs = match pack::decode(body) {
            Ok(args) => args,
            Err(error) => return client.fail(id, &Code::InvalidInput, &error.to_string()),
        };
        let handlers = self.handlers();
        let handler = handlers.into_iter().find(|h| h.prompt_prefix() == Some(args.prefix.as_str()));
        let (Some(handler), Some(context)) = (handler, self.context.get().cloned()) else {
            return client.fail(id, &Code::NotFound, &format!("no handler has the prompt {:?}", args.prefix));
        };
        self.answer_later(client, id, async move { Ok(handler.on_prompt(&args.input, &context).await) });
    }

    /// Asks every handler on the runtime, beside messages; the first that is not well is the answer.
    fn health(self: &Arc<Self>, client: &Arc<Client>, id: u64) {
        let Some(context) = self.context.get().cloned() else {
            return client.fail(id, &Code::Conflict, "asked for health before load");
        };
        let handlers = self.handlers();
        self.answer_later(client, id, async move {
            for handler in handlers {
                handler.on_health(&context).await?;
            }
            Ok(())
        });
    }

    /// Runs async work for a call; the call's end, or the node's cancel, is the work's.
    fn answer_later<T: Serialize + Send + 'static>(
        self: &Arc<Self>,
        client: &Arc<Client>,
        id: u64,
        work: impl Future<Output = Result<T, String>> + Send + 'static,
    ) {
        let work = CURRENT_CALL.scope(id, work);
        // The task is entered before it can end, so that its end always finds the entry.
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let task = self.runtime.spawn(work);
        running.insert(id, task.abort_handle());
        drop(running);
        let (client, library) = (client.clone(), self.clone());
        self.runtime.spawn(async move {
            let outcome = task.await;
            if library.running.lock().unwrap_or_else(PoisonError::into_inner).remove(&id).is_none() {
                return; // cancelled: already answered
            }
            match outcome {
                Ok(Ok(output)) => client.succeed(id, &output),
                Ok(Err(why)) => client.fail(id, &Code::Unavailable, &why),
                Err(error) => client.fail(id, &Code::PluginCrashed, &panic_text(error.into_panic())),
            }
        });
    }

    fn run_messages(&self, queue: &Receiver<Work>) {
        let _inside = self.runtime.enter();
        while let Ok(work) = queue.recv() {
            let Some(client) = self.client.get() else { return };
            let (id, outcome) = match work {
                Work::Load { id, body } => (id, self.load(client, &body)),
                Work::Message { id, body } => (id, self.message(id, &body)),
                Work::Stop { id } => {
                    let stop = |handler: &Arc<dyn Plugin>| {
                        if let Some(context) = self.context.get() {
                            self.runtime.block_on(handler.on_stop(context));
                        }
                        Ok(())
                    };
                    (id, self.each_handler(stop))
                }
            };
            match outcome {
                Ok(()) => client.succeed(id, &()),
                Err((code, text)) => client.fail(id, &code, &text),
            }
        }
    }

    fn load(&self, client: &Arc<Client>, body: &[u8]) -> Result<(), (Code, String)> {
        let info: NodeInfo = pack::decode(body).map_err(|e| (Code::InvalidInput, e.to_string()))?;
        client.set_session(&info.session_id);
        let events = EventHandle::new(client.clone());
        let context = PluginContext::new(client.clone(), events, Arc::new(info));
        let context = self.context.get_or_init(|| context);
        self.each_handler(|handler| {
            self.runtime.block_on(handler.on_load(context)).map_err(|text| (Code::Unavailable, text))
        })
    }

    fn message(&self, id: u64, body: &[u8]) -> Result<(), (Code, String)> {
        let message: Message = pack::decode(body).map_err(|e| (Code::InvalidInput, e.to_string()))?;
        let Some(context) = self.context.get() else {
            return Err((Code::Conflict, "a message before load".into()));
        };
        CURRENT_CALL.sync_scope(id, || {
            self.each_handler(|handler| {
                handler.on_message(&message, context);
                Ok(())
            })
        })
    }

    /// Runs something for each handler; a panic in one does not spare the others, and the first failure is the answer.
    fn each_handler(
        &self,
        mut run: impl FnMut(&Arc<dyn Plugin>) -> Result<(), (Code, String)>,
    ) -> Result<(), (Code, String)> {
        let mut first_failure = Ok(());
        for handler in self.handlers() {
            let outcome = catch_unwind(AssertUnwindSafe(|| run(&handler)))
                .unwrap_or_else(|panic| Err((Code::PluginCrashed, panic_text(panic))));
            first_failure = first_failure.and(outcome);
        }
        first_failure
    }
}

/// What a panic said.
fn panic_text(panic: Box<dyn std::any::Any + Send>) -> String {
    let text = match panic.downcast::<String>() {
        Ok(text) => *text,
        Err(panic) => panic.downcast_ref::<&str>().map_or("a panic without a text", |text| text).to_owned(),
    };
    format!("panicked: {text}")
}
