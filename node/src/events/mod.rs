//! The node's event bus and its sinks. Emitting never waits: one bounded queue, one task, and what does not fit is counted
//! and reported as soon as there is room.

mod bus;
mod console;
mod jsonl;

pub use bus::Bus;
pub use console::Console;
pub use jsonl::JsonLines;

use std::sync::Arc;
use thenodes::events::model::{EventMeta, LogEvent, LogLevel, NetworkEvent, PluginEvent, SystemEvent};
use thenodes::events::EventBus;

/// Emits events of one component.
#[derive(Clone)]
pub struct Emitter {
    bus: Arc<Bus>,
    component: &'static str,
}

impl Emitter {
    /// An emitter for a component.
    pub fn new(bus: &Arc<Bus>, component: &'static str) -> Self {
        Self { bus: bus.clone(), component }
    }

    /// The common part of an event.
    pub fn meta(&self, level: LogLevel) -> EventMeta {
        let mut meta = thenodes::events::meta(self.component, level);
        meta.session_id = self.bus.session_id();
        meta
    }

    /// Emits anything.
    pub fn emit(&self, event: LogEvent) {
        self.bus.emit(event);
    }

    /// Emits what strangers cause at will, within the bounds of what they may cause.
    pub fn emit_of_strangers(&self, event: LogEvent) {
        if self.bus.admits() {
            self.bus.put(event);
        }
    }

    /// Something on the network.
    pub fn network(
        &self,
        level: LogLevel,
        action: &str,
        addr: Option<String>,
        detail: impl Into<Option<String>>,
    ) {
        if self.bus.admits() {
            let (meta, action, detail) = (self.meta(level), action.to_owned(), detail.into());
            self.bus.put(LogEvent::Network(NetworkEvent { meta, action, addr, detail }));
        }
    }

    /// Something on the network that peers cause at will: made only if it will be heard. An action, an address, and a detail.
    pub fn network_with(
        &self,
        level: LogLevel,
        make: impl FnOnce() -> (&'static str, Option<String>, Option<String>),
    ) {
        if self.bus.admits() {
            let (action, addr, detail) = make();
            let (meta, action) = (self.meta(level), action.to_owned());
            self.bus.put(LogEvent::Network(NetworkEvent { meta, action, addr, detail }));
        }
    }

    /// Something about a plugin.
    pub fn plugin(&self, level: LogLevel, plugin: &str, action: &str, detail: impl Into<Option<String>>) {
        let (plugin, action, detail) = (plugin.to_owned(), action.to_owned(), detail.into());
        self.emit(LogEvent::Plugin(PluginEvent { meta: self.meta(level), plugin, action, detail }));
    }

    /// Anything else.
    pub fn system(&self, level: LogLevel, action: &str, detail: impl Into<Option<String>>) {
        let (action, detail) = (action.to_owned(), detail.into());
        self.emit(LogEvent::System(SystemEvent { meta: self.meta(level), action, detail }));
    }
}
