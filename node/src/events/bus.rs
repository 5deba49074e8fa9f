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

    fn admit(&self) -> bool {
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
        let of_peers = matches!(event, LogEvent::Network(_));
        let refused = of_peers && (self.queue.capacity() < QUEUE / 4 || !self.admit());
        if refused || self.queue.try_send(Item::Event(Box::new(event))).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
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
    while let Some(item) = queue.recv().await {
        let now = sinks.read().unwrap_or_else(PoisonError::into_inner).clone();
        match item {
            Item::Event(event) => {
                for sink in &now {
                    sink.handle(&event).await;
                }
                let lost = dropped.swap(0, Ordering::Relaxed);
                if lost > 0 {
                    let mut meta = thenodes::events::meta("events", LogLevel::Warn);
                    meta.session_id = event.meta().session_id.clone();
                    let detail = Some(format!("{lost} events were dropped: the sinks were too slow"));
                    let event =
                        LogEvent::System(SystemEvent { meta, action: "events_dropped".into(), detail });
                    for sink in &now {
                        sink.handle(&event).await;
                    }
                }
            }
            Item::Flush(done) => {
                for sink in &now {
                    sink.flush().await;
                }
                let _ = done.send(());
            }
        }
    }
}
