//! What plugins print. Lines come through a pipe from a process that may print anything at any rate: each is cut, made safe
//! for a terminal, rate-limited per plugin, and kept in a bounded book for `thenodes plugin logs`.

use crate::text::printable;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use thenodes_ipc::{limits, PluginName};
use tokio::io::{AsyncRead, AsyncReadExt};

/// Lines kept per plugin.
pub const KEPT: usize = 256;

/// Pause between two reads of a pipe that is flooded: 16 KiB each are eight megabytes a second, at next to no cost.
const DRAIN_PAUSE: Duration = Duration::from_millis(2);

/// One line of a plugin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// Milliseconds since 1970.
    pub at_ms: u64,
    /// Which process of the plugin.
    pub generation: u32,
    /// `error` to `trace`; stdout is `info`, stderr is `warn`.
    pub level: String,
    /// `stdout`, `stderr`, `node`, or `log` and the module of a `log` macro.
    pub source: String,
    /// The text, printable.
    pub text: String,
}

#[derive(Debug, Default)]
struct Book {
    lines: VecDeque<Line>,
    dropped: u64,
    /// How many of the dropped were reported in a line.
    reported: u64,
    second: Option<Instant>,
    in_second: u32,
}

impl Book {
    /// Lines that may still be taken in this second; takes `lines` of them, or counts them as dropped. At most once a second
    /// there is a number to report: lines that were dropped in seconds before.
    fn admit(&mut self, per_second: u32, lines: u32) -> (u32, Option<u64>) {
        let now = Instant::now();
        let mut report = None;
        if self.second.is_none_or(|second| now.duration_since(second) >= Duration::from_secs(1)) {
            self.second = Some(now);
            self.in_second = 0;
            report = self.unreported();
        }
        let left = per_second.saturating_sub(self.in_second);
        self.in_second = self.in_second.saturating_add(lines);
        if left < lines {
            self.dropped += u64::from(lines);
        }
        (left, report)
    }

    fn unreported(&mut self) -> Option<u64> {
        let new = self.dropped - self.reported;
        self.reported = self.dropped;
        (new > 0).then_some(new)
    }
}

/// The book of one plugin.
#[derive(Debug)]
pub struct LogBook {
    plugin: PluginName,
    /// Lines a second; more are dropped and counted.
    per_second: u32,
    book: Mutex<Book>,
}

impl LogBook {
    /// An empty book that takes this many lines a second.
    pub fn new(plugin: PluginName, per_second: u32) -> Self {
        Self { plugin, per_second, book: Mutex::default() }
    }

    fn admit(&self, generation: u32, lines: u32) -> u32 {
        let (left, report) =
            self.book.lock().unwrap_or_else(PoisonError::into_inner).admit(self.per_second, lines);
        self.report(generation, report);
        left
    }

    fn report(&self, generation: u32, dropped: Option<u64>) {
        if let Some(dropped) = dropped {
            let text = format!("{dropped} log lines dropped: more than {} a second", self.per_second);
            self.add_own(generation, "warn", &text);
        }
    }

    /// Reports what was dropped and not reported yet; for the end of a process.
    pub fn settle(&self, generation: u32) {
        let report = self.book.lock().unwrap_or_else(PoisonError::into_inner).unreported();
        self.report(generation, report);
    }

    /// Lines dropped since the start.
    pub fn dropped(&self) -> u64 {
        self.book.lock().unwrap_or_else(PoisonError::into_inner).dropped
    }

    /// Takes one line of the plugin, unless it talks too fast.
    pub fn add(&self, generation: u32, level: &str, source: &str, text: &str) {
        // The rate comes before any work on the text: a dropped line must cost next to nothing.
        if self.admit(generation, 1) > 0 {
            self.keep(generation, level, source, text);
        }
    }

    /// Takes a line of the node itself; they are few, say why a plugin died, and always fit.
    pub fn add_own(&self, generation: u32, level: &str, text: &str) {
        self.keep(generation, level, "node", text);
    }

    /// True if lines would be dropped now; then `lines` are counted as dropped.
    fn drops(&self, generation: u32, lines: u64) -> bool {
        if self.admit(generation, 0) > 0 {
            return false;
        }
        self.book.lock().unwrap_or_else(PoisonError::into_inner).dropped += lines;
        true
    }

    fn keep(&self, generation: u32, level: &str, source: &str, text: &str) {
        let level = match level {
            "error" | "warn" | "info" | "debug" | "trace" => level,
            _ => "info",
        };
        let line = Line {
            at_ms: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |t| t.as_millis() as u64),
            generation,
            level: level.into(),
            source: printable(source, 128),
            text: printable(text, limits::MAX_LOG_LINE),
        };
        {
            let mut book = self.book.lock().unwrap_or_else(PoisonError::into_inner);
            if book.lines.len() >= KEPT {
                book.lines.pop_front();
            }
            book.lines.push_back(line.clone());
        }
        // Who speaks comes first: what stands behind the text could be part of it.
        let (plugin, source, text) = (self.plugin.as_str(), &line.source, &line.text);
        match level {
            "error" => tracing::error!(target: "plugin", "{plugin} {source}: {text}"),
            "warn" => tracing::warn!(target: "plugin", "{plugin} {source}: {text}"),
            "info" => tracing::info!(target: "plugin", "{plugin} {source}: {text}"),
            _ => tracing::debug!(target: "plugin", "{plugin} {source}: {text}"),
        }
    }

    /// The last `count` lines, oldest first, and how many were dropped since the start.
    pub fn last(&self, count: usize) -> (Vec<Line>, u64) {
        let book = self.book.lock().unwrap_or_else(PoisonError::into_inner);
        let skip = book.lines.len().saturating_sub(count);
        (book.lines.iter().skip(skip).cloned().collect(), book.dropped)
    }
}

/// Reads a log pipe to its end, line by line, holding at most one line of [`limits::MAX_LOG_LINE`] bytes.
///
/// While the plugin talks too fast, lines are only counted, and the pipe is emptied slowly: the rest of the flood waits in
/// the plugin, whose writes then block.
pub async fn follow(
    mut pipe: impl AsyncRead + Unpin,
    book: Arc<LogBook>,
    generation: u32,
    level: &'static str,
    source: &'static str,
) {
    let mut line: Vec<u8> = Vec::new();
    let mut buffer = vec![0; 16 * 1024];
    while let Ok(count @ 1..) = pipe.read(&mut buffer).await {
        let ends = buffer[..count].iter().filter(|byte| **byte == b'\n').count() as u64;
        if ends > 0 && book.drops(generation, ends) {
            line.clear();
            tokio::time::sleep(DRAIN_PAUSE).await;
            continue;
        }
        for piece in buffer[..count].split_inclusive(|byte| *byte == b'\n') {
            let (text, ends) = match piece.split_last() {
                Some((b'\n', text)) => (text, true),
                _ => (piece, false),
            };
            // One byte more than fits tells `printable` that there was more.
            let room = (limits::MAX_LOG_LINE + 1).saturating_sub(line.len());
            line.extend_from_slice(&text[..text.len().min(room)]);
            if ends {
                book.add(generation, level, source, &String::from_utf8_lossy(&line));
                line.clear();
            }
        }
        // One plugin's output must not keep a worker from the others.
        tokio::task::yield_now().await;
    }
    if !line.is_empty() {
        book.add(generation, level, source, &String::from_utf8_lossy(&line));
    }
    book.settle(generation);
}

#[cfg(test)]
mod tests {
    use super::*;

    const PER_SECOND: u32 = 100;

    #[test]
    fn a_flood_is_counted_and_the_nodes_own_line_still_fits() {
        let book = LogBook::new(PluginName::new("x").expect("a name"), PER_SECOND);
        for n in 0..1000 {
            book.add(1, "info", "stdout", &format!("{n}"));
        }
        book.add_own(1, "error", "why it died");
        let (lines, dropped) = book.last(1000);
        assert!(lines.len() <= KEPT && dropped >= 1000 - 2 * u64::from(PER_SECOND), "{dropped}");
        assert_eq!(lines.last().map(|line| line.text.as_str()), Some("why it died"));
        book.settle(1);
        let report = book.last(1).0.pop().expect("a line");
        assert!(report.text.ends_with("log lines dropped: more than 100 a second"), "{report:?}");
        book.settle(1);
        assert_eq!(book.last(1).0.pop(), Some(report), "said once");
    }

    #[tokio::test]
    async fn a_line_without_end_is_cut_and_holds_no_more_than_its_limit() {
        let lines = |book: &LogBook| book.last(KEPT).0.into_iter().map(|line| line.text).collect::<Vec<_>>();
        let book = Arc::new(LogBook::new(PluginName::new("x").expect("a name"), PER_SECOND));
        let endless = vec![b'x'; 1 << 20];
        follow(&endless[..], book.clone(), 1, "info", "stdout").await;
        assert!(lines(&book)[0].ends_with("x… (cut)") && lines(&book)[0].len() < limits::MAX_LOG_LINE + 20);
        let book = Arc::new(LogBook::new(PluginName::new("x").expect("a name"), PER_SECOND));
        follow(&b"one\ntwo\n\nthree"[..], book.clone(), 1, "info", "stdout").await;
        assert_eq!(lines(&book), ["one", "two", "", "three"]);
    }
}
