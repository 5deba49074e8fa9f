//! Structured events: what happened, for people and for audit files. The model and its JSON are upstream's.

pub mod dispatcher;
pub mod model;
pub mod sink;

pub use dispatcher::{correlation_id, emit, handle, meta, EventBus, EventHandle};
pub use model::*;
pub use sink::LogSink;
