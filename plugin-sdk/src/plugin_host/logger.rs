//! `log` macros in a plugin become lines in the node's log, with level, module and the plugin's name.

use super::client::Client;
use crate::host::{Host, LogLine, Notice};
use std::sync::Arc;
use thenodes_ipc::limits;

struct Logger(Arc<Client>);

impl log::Log for Logger {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true // the node filters; `log::set_max_level` in the plugin still does too
    }

    fn log(&self, record: &log::Record<'_>) {
        let mut text = record.args().to_string();
        if text.len() > limits::MAX_LOG_LINE {
            let end = (0..=limits::MAX_LOG_LINE).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
            text.truncate(end);
        }
        self.0.notify(Notice::Log(LogLine {
            level: record.level().as_str().to_ascii_lowercase(),
            target: record.target().chars().take(128).collect(),
            text,
        }));
    }

    fn flush(&self) {}
}

/// Becomes the logger of this library, unless the author installed one in a constructor.
pub(super) fn install(client: Arc<Client>) {
    if log::set_boxed_logger(Box::new(Logger(client))).is_ok() {
        log::set_max_level(log::LevelFilter::Info);
    }
}
