//! The queue between those who emit and those who write.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};
use thenodes::events::model::{LogEvent, LogLevel, SystemEvent};
use thenodes::events::{EventBus, EventHandle, LogSink};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// Events that may wait for the sinks.
const QUEUE: usize = 1024;
/// How often it is said that events were dropped.
const TELL_DROPPED: Duration = Duration::from_secs(60);
/// Network events a second.
const NETWORK_PER_SECOND: u32 = 500;

enum Item {
    Event(Box<LogEvent>),
    Flush(tokio::sync::oneshot::Sender<()>),
}

/// The event bus of a node.
pub struct Bus {
    queue: mpsc::Sender<Item>,
    sinks: Arc<RwLock<Vec<Arc<dyn LogSink>>>>,
    dropped: Arc<AtomicU64>,
    session: String,
    task: Mutex<Option<JoinHandle<()>>>,
    /// Begin of this second, and network events in it.
    rate: Mutex<(Instant, u32)>,
}

impl Bus {
    /// Starts the task that feeds the sinks.
    pub fn start(sinks: Vec<Arc<dyn LogSink>>) -> Arc<Self> {
        let (queue, receiver) = mpsc::channel(QUEUE);
        let sinks = Arc::new(RwLock::new(sinks));
        let dropped = Arc::new(AtomicU64::new(0));
        let task = tokio::spawn(feed(receiver, sinks.clone(), dropped.clone()));
        let session = uuid::Uuid::new_v4().to_string();
        Arc::new(Self {
            queue,
            sinks,
            dropped,
            session,
            task: Mutex::new(Some(task)),
            rate: Mutex::new((Instant::now(), 0)),
        })
    }

    /// True if there is room for one more event that peers caused; if not, it counts as dropped.
    pub(super) fn admits(&self) -> bool {
        let admits = self.queue.capacity() >= QUEUE / 4 && self.in_time();
        if !admits {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
        admits
    }

    /// Takes an event that was let in.
    pub(super) fn put(&self, event: LogEvent) {
        if self.queue.try_send(Item::Event(Box::new(event))).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn in_time(&self) -> bool {
        let mut rate = self.rate.lock().unwrap_or_else(PoisonError::into_inner);
        if rate.0.elapsed() >= Duration::from_secs(1) {
            *rate = (Instant::now(), 0);
        }
        rate.1 = rate.1.saturating_add(1);
        rate.1 <= NETWORK_PER_SECOND
    }

    /// A handle for emitting.
    pub fn handle(self: &Arc<Self>) -> EventHandle {
        EventHandle::new(self.clone())
    }

    /// Adds sinks that were not known at the start.
    pub fn add_sinks(&self, more: Vec<Arc<dyn LogSink>>) {
        self.sinks.write().unwrap_or_else(PoisonError::into_inner).extend(more);
    }

    /// Waits until everything emitted so far is written and flushed.
    pub async fn flush(&self) {
        let (done, flushed) = tokio::sync::oneshot::channel();
        if self.queue.send(Item::Flush(done)).await.is_ok() {
            let _ = flushed.await;
        }
    }

    /// Stops the task; nothing is written afterwards.
    pub async fn stop(&self) {
        self.flush().await;
        let task = self.task.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(task) = task {
            task.abort();
        }
    }
}

impl EventBus for Bus {
    fn emit(&self, event: LogEvent) {
        // What peers can cause at will must neither fill the queue nor push out what matters: a rate for network events, and
        // the last quarter of the queue for everything else.
        if !matches!(event, LogEvent::Network(_)) || self.admits() {
            self.put(event);
        }
    }

    fn register_sink(&self, sink: Arc<dyn LogSink>) {
        self.add_sinks(vec![sink]);
    }

    fn session_id(&self) -> Option<String> {
        Some(self.session.clone())
    }
}

async fn feed(
    mut queue: mpsc::Receiver<Item>,
    sinks: Arc<RwLock<Vec<Arc<dyn LogSink>>>>,
    dropped: Arc<AtomicU64>,
) {
    let mut told: Option<Instant> = None;
    while let Some(item) = queue.recv().await {
        let now = sinks.read().unwrap_or_else(PoisonError::into_inner).clone();
        let (done, session) = match item {
            Item::Event(event) => {
                for sink in &now {
                    sink.handle(&event).await;
                }
                (None, event.meta().session_id.clone())
            }
            Item::Flush(done) => (Some(done), None),
        };
        // Not more often: whoever causes events that are dropped must not fill the logs with that.
        if done.is_some() || told.is_none_or(|told| told.elapsed() >= TELL_DROPPED) {
            let lost = dropped.swap(0, Ordering::Relaxed);
            if lost > 0 {
                told = Some(Instant::now());
                let mut meta = thenodes::events::meta("events", LogLevel::Warn);
                meta.session_id = session;
                let detail =
                    Some(format!("{lost} events were dropped: more than the sinks take, or than their rate"));
                let event = LogEvent::System(SystemEvent { meta, action: "events_dropped".into(), detail });
                for sink in &now {
                    sink.handle(&event).await;
                }
            }
        }
        if let Some(done) = done {
            for sink in &now {
                sink.flush().await;
            }
            let _ = done.send(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::Emitter;

    #[derive(Default)]
    struct Heard(Mutex<Vec<LogEvent>>);

    #[async_trait::async_trait]
    impl LogSink for Heard {
        async fn handle(&self, event: &LogEvent) {
            self.0.lock().expect("no panic").push(event.clone());
        }
    }

    /// Whoever causes more events than their rate allows fills the logs neither with them nor with word of their loss.
    #[tokio::test]
    async fn a_flood_of_events_is_told_of_seldom_and_counted_whole() {
        const ALL: usize = 3000;
        let heard = Arc::new(Heard::default());
        let bus = Bus::start(vec![heard.clone()]);
        let events = Emitter::new(&bus, "test");
        for n in 0..ALL {
            events.network_with(LogLevel::Debug, || ("message_text", None, Some(n.to_string())));
            tokio::task::yield_now().await; // the sinks keep up
        }
        bus.stop().await;
        let heard = heard.0.lock().expect("no panic");
        let lost: Vec<usize> = heard
            .iter()
            .filter_map(|event| match event {
                LogEvent::System(event) => event.detail.as_ref()?.split(' ').next()?.parse().ok(),
                _ => None,
            })
            .collect();
        let come = heard.iter().filter(|event| matches!(event, LogEvent::Network(_))).count();
        assert!((1..=2).contains(&lost.len()), "{lost:?}");
        assert_eq!(come + lost.iter().sum::<usize>(), ALL);
        assert!(come < ALL / 2, "{come}");
    }
}
