//! What plugins print. Lines come through a pipe from a process that may print anything at any rate: each is cut, made safe
//! for a terminal, rate-limited per plugin, and kept in a bounded book for `thenodes plugin logs`.

use crate::text::printable;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use thenodes_ipc::{limits, PluginName};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::Notify;

/// Lines kept per plugin.
pub const KEPT: usize = 256;

/// Pause between two reads of a pipe that is flooded: 16 KiB each are eight megabytes a second, at next to no cost.
const DRAIN_PAUSE: Duration = Duration::from_millis(2);

/// How much somebody should look at a line; the first is the gravest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)] // the words say it
pub enum Severity {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

impl Severity {
    /// The level of this word.
    pub fn parse(word: &str) -> Option<Severity> {
        match word {
            "error" => Some(Severity::Error),
            "warn" => Some(Severity::Warn),
            "info" => Some(Severity::Info),
            "debug" => Some(Severity::Debug),
            "trace" => Some(Severity::Trace),
            _ => None,
        }
    }
}

/// Which lines somebody wants.
#[derive(Debug, Clone, Copy, Default)]
pub struct Wanted {
    /// How many at most.
    pub count: usize,
    /// Only those since then, milliseconds since 1970.
    pub since_ms: Option<u64>,
    /// Only those at this level or a graver one.
    pub level: Option<Severity>,
    /// Only those after the one with this number, the oldest first; without it the newest.
    pub after: Option<u64>,
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Found {
    /// The lines, oldest first.
    pub lines: Vec<Line>,
    /// Ask for what comes after this number next.
    pub next: u64,
    /// Lines after the wanted number that the book does not have any more.
    pub missed: u64,
    /// Lines dropped since the start, because they were too many a second.
    pub dropped: u64,
}

/// One line of a plugin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// Its number among all lines of the plugin, over all its processes.
    pub number: u64,
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
    /// Number of the last line.
    last: u64,
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
    came: Notify,
}

impl LogBook {
    /// An empty book that takes this many lines a second.
    pub fn new(plugin: PluginName, per_second: u32) -> Self {
        Self { plugin, per_second, book: Mutex::default(), came: Notify::new() }
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
        let mut line = Line {
            number: 0, // its place in the book, below
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
            book.last += 1;
            line.number = book.last;
            book.lines.push_back(line.clone());
        }
        self.came.notify_waiters();
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

impl LogBook {
    /// The lines that somebody wants, as far as they are still here.
    pub fn find(&self, wanted: &Wanted) -> Found {
        let book = self.book.lock().unwrap_or_else(PoisonError::into_inner);
        let fits = |line: &&Line| {
            wanted.after.is_none_or(|after| line.number > after)
                && wanted.since_ms.is_none_or(|since| line.at_ms >= since)
                && wanted
                    .level
                    .is_none_or(|level| Severity::parse(&line.level).unwrap_or(Severity::Info) <= level)
        };
        let (mut next, first) = (book.last, book.lines.front().map_or(book.last, |line| line.number));
        let lines: Vec<Line> = if wanted.after.is_some() {
            let mut fitting = book.lines.iter().filter(fits);
            let lines: Vec<Line> = fitting.by_ref().take(wanted.count).cloned().collect();
            if let (Some(last), Some(_)) = (lines.last(), fitting.next()) {
                next = last.number;
            }
            lines
        } else {
            let fitting = book.lines.iter().filter(fits).count();
            book.lines.iter().filter(fits).skip(fitting.saturating_sub(wanted.count)).cloned().collect()
        };
        let missed = wanted.after.map_or(0, |after| first.saturating_sub(1).saturating_sub(after));
        Found { lines, next, missed, dropped: book.dropped }
    }

    /// Waits until there is such a line. Dropping this ends the waiting; a restart of the plugin does not.
    pub async fn wait_for(&self, wanted: &Wanted) -> Found {
        loop {
            let mut came = std::pin::pin!(self.came.notified());
            came.as_mut().enable(); // before looking: a line in between is not missed
            let found = self.find(wanted);
            if !found.lines.is_empty() || wanted.count == 0 {
                return found;
            }
            came.await;
        }
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

    #[test]
    fn lines_are_found_by_level_time_and_number_and_who_is_late_hears_what_is_gone() {
        let book = LogBook::new(PluginName::new("x").expect("a name"), 10_000);
        for (level, text) in [("error", "a"), ("info", "b"), ("warn", "c"), ("debug", "d")] {
            book.add(1, level, "log", text);
        }
        let texts = |wanted: Wanted| -> Vec<String> {
            book.find(&wanted).lines.into_iter().map(|line| line.text).collect()
        };
        let all = Wanted { count: KEPT, ..Wanted::default() };
        assert_eq!(texts(all), ["a", "b", "c", "d"]);
        assert_eq!(texts(Wanted { level: Some(Severity::Warn), ..all }), ["a", "c"]);
        assert_eq!(texts(Wanted { count: 1, level: Some(Severity::Warn), ..all }), ["c"], "the newest");
        assert_eq!(texts(Wanted { count: 1, after: Some(1), ..all }), ["b"], "the oldest after it");
        assert_eq!(
            book.find(&Wanted { count: 1, after: Some(1), ..all }).next,
            2,
            "the rest is still to come"
        );
        assert_eq!(book.find(&Wanted { after: Some(4), ..all }).next, 4);
        assert!(texts(Wanted { since_ms: Some(u64::MAX), ..all }).is_empty());
        for n in 0..KEPT {
            book.add(2, "info", "log", &n.to_string());
        }
        let late = book.find(&Wanted { after: Some(1), ..all });
        assert_eq!((late.missed, late.lines.len(), late.next), (3, KEPT, 4 + KEPT as u64));
    }

    #[tokio::test]
    async fn who_follows_hears_of_the_next_line_that_fits_and_of_no_other() {
        let book = Arc::new(LogBook::new(PluginName::new("x").expect("a name"), PER_SECOND));
        book.add(1, "info", "stdout", "before");
        let wanted = Wanted { count: 9, level: Some(Severity::Warn), after: Some(1), since_ms: None };
        let of = book.clone();
        let following = tokio::spawn(async move { of.wait_for(&wanted).await });
        tokio::task::yield_now().await; // it waits
        book.add(1, "info", "stdout", "not this");
        book.add(2, "warn", "stderr", "this, of the next process");
        let found = following.await.expect("no panic");
        assert_eq!(found.lines.iter().map(|line| line.generation).collect::<Vec<_>>(), [2]);
        assert_eq!(found.next, 3);
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
