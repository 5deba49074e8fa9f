//! Emitting events: a handle that anybody may hold, and one per process for the free functions that upstream has.

use super::model::{EventMeta, LogEvent, LogLevel};
use super::sink::LogSink;
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

/// Whoever distributes events: the node's own bus, or the link client inside a plugin.
pub trait EventBus: Send + Sync {
    /// Takes an event without waiting for sinks.
    fn emit(&self, event: LogEvent);
    /// Adds a sink.
    fn register_sink(&self, sink: Arc<dyn LogSink>);
    /// The run of the node, if known yet.
    fn session_id(&self) -> Option<String>;
}

/// Handle for emitting events. Cheap to clone.
#[derive(Clone)]
pub struct EventHandle {
    bus: Arc<dyn EventBus>,
}

impl fmt::Debug for EventHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EventHandle")
    }
}

impl EventHandle {
    /// A handle to this bus.
    pub fn new(bus: Arc<dyn EventBus>) -> Self {
        Self { bus }
    }

    /// Emits an event. Never waits for a sink.
    pub fn emit(&self, event: LogEvent) {
        self.bus.emit(event);
    }

    /// Adds a sink. In a plugin the sink runs in the plugin's process and gets the node's events from then on.
    pub fn register_sink(&self, sink: Arc<dyn LogSink>) {
        self.bus.register_sink(sink);
    }

    /// A fresh id that binds events together.
    pub fn correlation_id(&self) -> String {
        correlation_id()
    }

    /// The run of the node.
    pub fn session_id(&self) -> Option<String> {
        self.bus.session_id()
    }
}

static PROCESS: OnceLock<EventHandle> = OnceLock::new();

/// Names the bus of this process for the free functions; the first call counts.
pub fn set_process_handle(handle: EventHandle) {
    let _ = PROCESS.set(handle);
}

/// The process's handle. Before there is one, events go nowhere.
pub fn handle() -> EventHandle {
    struct Nowhere;
    impl EventBus for Nowhere {
        fn emit(&self, _: LogEvent) {}
        fn register_sink(&self, _: Arc<dyn LogSink>) {}
        fn session_id(&self) -> Option<String> {
            None
        }
    }
    PROCESS.get().cloned().unwrap_or_else(|| EventHandle::new(Arc::new(Nowhere)))
}

/// Emits through the process's handle.
pub fn emit(event: LogEvent) {
    handle().emit(event);
}

/// Eight hex digits, fresh each time.
pub fn correlation_id() -> String {
    format!("{:08x}", RandomState::new().hash_one(0u8) as u32)
}

/// The common part of a new event.
pub fn meta(component: &str, level: LogLevel) -> EventMeta {
    let ts = SystemTime::now();
    EventMeta {
        ts,
        timestamp: humantime::format_rfc3339_millis(ts).to_string(),
        level,
        corr_id: Some(correlation_id()),
        session_id: PROCESS.get().and_then(EventHandle::session_id),
        component: component.into(),
        policy_checksum: None,
        suppress_console: false,
    }
}
