//! Events as JSON lines in a file that is rotated by size. A write that fails is tried again with the next event: a full
//! disk costs events, which are counted, and not the log. Writes run on a blocking thread, off the runtime's workers. What an event of the
//! network says is written soon, with others of its kind, so that a peer that causes many does not cost the node two changes of threads for
//! each; every other event has been written, with all before it, when the next sink hears of it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use thenodes::events::model::{LogEvent, LogLevel};
use thenodes::events::LogSink;

/// Network events that come within this time after a write are written together, if there is a thread and the disk takes them.
const TOGETHER: Duration = Duration::from_millis(10);
/// Bytes that may wait for that, and be lost with a node that is killed; whoever brings more waits.
const GATHERED: usize = 256 * 1024;

/// The file.
pub struct JsonLines(Arc<Shared>);

struct Shared {
    writer: Mutex<Writer>,
    gathered: Mutex<Gathered>,
}

/// Lines that are not written yet.
#[derive(Default)]
struct Gathered {
    lines: Vec<u8>,
    /// A thread is there for them, or asked for.
    promised: bool,
}

struct Writer {
    path: PathBuf,
    max_bytes: u64,
    keep: u32,
    file: Option<(File, u64)>,
    lost: u64,
    written: Option<Instant>,
}

impl JsonLines {
    /// Opens the file and makes its directory. `keep` rotated files are kept as `<path>.1` (newest) and so on.
    pub fn open(path: &Path, max_bytes: u64, keep: u32) -> io::Result<Self> {
        let mut writer = Writer { path: path.into(), max_bytes, keep, file: None, lost: 0, written: None };
        writer.file()?;
        Ok(Self(Arc::new(Shared { writer: Mutex::new(writer), gathered: Mutex::default() })))
    }

    async fn work(&self, work: impl FnOnce(&Shared) + Send + 'static) {
        let shared = self.0.clone();
        let _ = tokio::task::spawn_blocking(move || work(&shared)).await;
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    /// Writes what was gathered.
    fn write(&self) {
        let mut writer = lock(&self.writer); // first: what is taken earlier is written earlier
        let lines = std::mem::take(&mut lock(&self.gathered).lines);
        lines.split_inclusive(|byte| *byte == b'\n').for_each(|line| writer.write(line));
        writer.written = Some(Instant::now());
    }

    /// The same, not sooner than [`TOGETHER`] after the last time.
    fn keep_promise(&self) {
        let written = lock(&self.writer).written;
        let rest = written.and_then(|written| TOGETHER.checked_sub(written.elapsed()));
        rest.into_iter().for_each(std::thread::sleep);
        lock(&self.gathered).promised = false; // before: what comes from now on is promised anew, also if writing panics
        self.write();
    }
}

impl Writer {
    fn file(&mut self) -> io::Result<&mut (File, u64)> {
        if self.file.is_none() {
            if let Some(dir) = self.path.parent().filter(|dir| !dir.as_os_str().is_empty()) {
                fs::create_dir_all(dir)?;
            }
            let file = OpenOptions::new().append(true).create(true).mode(0o640).open(&self.path)?;
            let size = file.metadata()?.len();
            self.file = Some((file, size));
        }
        self.file.as_mut().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn numbered(&self, number: u32) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push(format!(".{number}"));
        name.into()
    }

    fn rotate(&mut self) {
        self.file = None;
        for number in (1..self.keep).rev() {
            let _ = fs::rename(self.numbered(number), self.numbered(number + 1));
        }
        let moved = match self.keep {
            0 => fs::remove_file(&self.path),
            _ => fs::rename(&self.path, self.numbered(1)),
        };
        if let Err(error) = moved {
            // The file goes on growing; the next event tries again.
            tracing::warn!("rotating {}: {error}", self.path.display());
        }
    }

    fn write(&mut self, line: &[u8]) {
        if self.file.as_ref().is_some_and(|(_, size)| *size > 0 && size + line.len() as u64 > self.max_bytes)
        {
            self.rotate();
        }
        let written = self.file().and_then(|(file, size)| {
            file.write_all(line)?;
            *size += line.len() as u64;
            Ok(())
        });
        match written {
            Ok(()) if self.lost > 0 => {
                tracing::warn!("{} events could not be written to {}", self.lost, self.path.display());
                self.lost = 0;
            }
            Ok(()) => {}
            Err(error) => {
                if self.lost == 0 {
                    tracing::error!("writing events to {}: {error}", self.path.display());
                }
                self.lost += 1;
                self.file = None; // opened anew with the next event
            }
        }
    }
}

#[async_trait::async_trait]
impl LogSink for JsonLines {
    async fn handle(&self, event: &LogEvent) {
        // The file is an audit: what happens per message, and could rotate everything else out, is for the console.
        if event.meta().level <= LogLevel::Debug {
            return;
        }
        let Ok(mut line) = serde_json::to_vec(event) else { return };
        line.push(b'\n');
        let soon = matches!(event, LogEvent::Network(_));
        let (asks, full) = {
            let mut gathered = lock(&self.0.gathered);
            gathered.lines.extend_from_slice(&line);
            let asks = soon && !gathered.promised;
            gathered.promised |= asks;
            (asks, gathered.lines.len() > GATHERED)
        };
        if asks {
            let shared = self.0.clone();
            tokio::task::spawn_blocking(move || shared.keep_promise());
        }
        if !soon || full {
            self.work(Shared::write).await;
        }
    }

    async fn flush(&self) {
        self.work(|shared| {
            shared.write();
            if let Some((file, _)) = &lock(&shared.writer).file {
                let _ = file.sync_data();
            }
        })
        .await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::Future;
    use std::task::{Context, Waker};
    use thenodes::events::model::{NetworkEvent, SystemEvent};

    #[tokio::test]
    async fn the_file_is_rotated_by_size_and_old_ones_leave() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("sub/a.log");
        let sink = JsonLines::open(&path, 2000, 2).expect("opens");
        for n in 0..50 {
            let meta = thenodes::events::meta("test", LogLevel::Info);
            sink.handle(&LogEvent::System(SystemEvent { meta, action: format!("n{n}"), detail: None })).await;
        }
        let mut names: Vec<_> =
            fs::read_dir(dir.path().join("sub")).expect("reads").flatten().map(|e| e.file_name()).collect();
        names.sort();
        assert_eq!(names, ["a.log", "a.log.1", "a.log.2"]);
        for name in names {
            let text = fs::read_to_string(dir.path().join("sub").join(name)).expect("reads");
            assert!(text.len() <= 2000);
            assert!(text.lines().all(|line| serde_json::from_str::<LogEvent>(line).is_ok()));
        }
    }

    fn network(n: usize) -> LogEvent {
        let meta = thenodes::events::meta("test", LogLevel::Info);
        LogEvent::Network(NetworkEvent { meta, action: format!("n{n}"), addr: None, detail: None })
    }

    /// Waits until so many lines are in the file, and they are these.
    async fn arrive(path: &Path, count: usize) {
        let all = async {
            loop {
                let text = fs::read_to_string(path).expect("reads");
                if text.ends_with('\n') && text.lines().count() >= count {
                    return text;
                }
                tokio::task::yield_now().await;
            }
        };
        let text = tokio::time::timeout(Duration::from_secs(10), all).await.expect("written by itself");
        let action = |line: &str| match serde_json::from_str(line) {
            Ok(LogEvent::Network(event)) => event.action,
            other => panic!("{other:?}"),
        };
        assert_eq!(text.lines().count(), count);
        assert!(text.lines().enumerate().all(|(n, line)| action(line) == format!("n{n}")));
    }

    #[tokio::test]
    async fn what_peers_cause_is_written_soon_and_in_order_and_whoever_brings_too_much_of_it_waits() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("a.log");
        let sink = JsonLines::open(&path, 100_000_000, 2).expect("opens");
        sink.handle(&network(0)).await;
        arrive(&path, 1).await;
        // A disk that takes nothing for a while.
        let held = lock(&sink.0.writer);
        let mut told = 1;
        loop {
            let event = network(told);
            let mut handled = std::pin::pin!(sink.handle(&event));
            told += 1;
            if handled.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending() {
                let waiting = lock(&sink.0.gathered).lines.len();
                assert!((GATHERED..GATHERED + 1000).contains(&waiting), "{waiting} bytes wait");
                drop(held);
                handled.await;
                break;
            }
        }
        assert!(told > 500, "{told}");
        arrive(&path, told).await;
    }

    #[tokio::test]
    async fn every_other_event_has_been_written_with_all_before_it_when_the_sink_returns() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("a.log");
        let sink = JsonLines::open(&path, 100_000_000, 2).expect("opens");
        for n in 0..20 {
            sink.handle(&network(n)).await;
        }
        let meta = thenodes::events::meta("test", LogLevel::Info);
        sink.handle(&LogEvent::System(SystemEvent { meta, action: "now".into(), detail: None })).await;
        let text = fs::read_to_string(&path).expect("reads");
        assert_eq!(text.lines().count(), 21);
        assert!(text.lines().last().is_some_and(|line| line.contains("now")));
    }
}
