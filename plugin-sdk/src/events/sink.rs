//! Where events go.

use super::model::LogEvent;

/// A receiver of events. Called for one event after the other; a slow sink loses events, which are counted.
#[async_trait::async_trait]
pub trait LogSink: Send + Sync {
    /// Takes one event.
    async fn handle(&self, event: &LogEvent);

    /// Writes out what is held back. Called before the process ends.
    async fn flush(&self) {}
}
