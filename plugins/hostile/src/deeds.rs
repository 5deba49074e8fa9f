//! What handlers do that is slow, blocked, crashing or woken from elsewhere, one word each, from `on_prompt` and from `on_message`.
//! Tests give the words and count what came of them; nothing here is trusted to be true but what the node saw of it.

use std::future::{poll_fn, Future};
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{mpsc, Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};
use thenodes::network::message::{Message, MessageType};
use thenodes::plugin_host::PluginContext;

/// Does what the words say; `None` if they say nothing that is done here.
pub async fn on_prompt(input: &str, ctx: &PluginContext) -> Option<String> {
    let mut words = input.split(' ');
    let (deed, arg) = (words.next()?, words.next().unwrap_or_default());
    let point = words.next().unwrap_or_default();
    let time = || Duration::from_millis(arg.parse().unwrap_or(10));
    match deed {
        "effect" => effect(arg, point, ctx).await,
        // Asks and asks, with many questions open at every moment.
        "ask-forever" => {
            let id: Arc<str> = arg.into();
            for _ in 0..60 {
                let (id, ctx) = (id.clone(), ctx.clone());
                tokio::spawn(async move {
                    loop {
                        effect(&id, "", &ctx).await;
                    }
                });
            }
        }
        "after-timer" => tokio::time::sleep(time()).await,
        "say-and-wait" => {
            println!("waits {arg}");
            tokio::time::sleep(time()).await;
        }
        "after-host" => drop(ctx.peer_manager.list_peers().await),
        "panic-later" => {
            tokio::time::sleep(time()).await;
            panic!("a panic after a timer");
        }
        "panic-host" => {
            ctx.peer_manager.list_peers().await;
            panic!("a panic after an answer");
        }
        // Taken back while it waits, its destructor panics.
        "panic-drop" => {
            struct Bomb;
            impl Drop for Bomb {
                fn drop(&mut self) {
                    panic!("a panic in a destructor");
                }
            }
            let _bomb = Bomb;
            std::future::pending::<()>().await;
        }
        "wakes" => woken(arg.parse().unwrap_or(1)).await,
        // Goes on at once when it has blocked: nothing but its own word wakes it.
        "block-yield" => {
            std::thread::sleep(time());
            tokio::task::yield_now().await;
        }
        _ => return blocking(deed, time(), ctx).then(|| input.to_owned()),
    }
    Some(input.to_owned())
}

/// The same from the handler of a message. True if it was done here.
pub fn on_message(text: &str, ctx: &PluginContext) -> bool {
    let mut words = text.split(' ');
    let (Some(deed), Some(arg)) = (words.next(), words.next()) else { return false };
    if deed == "effect" {
        tokio::runtime::Handle::current().block_on(effect(arg, words.next().unwrap_or_default(), ctx));
        return true;
    }
    blocking(deed, Duration::from_millis(arg.parse().unwrap_or(10)), ctx)
}

/// Blocks this thread in one of many ways. False if there is no such way.
fn blocking(deed: &str, time: Duration, ctx: &PluginContext) -> bool {
    match deed {
        "block-sleep" => std::thread::sleep(time),
        "block-spin" => {
            let begun = Instant::now();
            while begun.elapsed() < time {
                std::hint::spin_loop();
            }
        }
        "block-mutex" => {
            let lock = Arc::new(Mutex::new(()));
            let (held, is_held) = mpsc::channel();
            let other = lock.clone();
            std::thread::spawn(move || {
                let _held = other.lock().unwrap_or_else(PoisonError::into_inner);
                let _ = held.send(());
                std::thread::sleep(time);
            });
            let _ = is_held.recv();
            drop(lock.lock().unwrap_or_else(PoisonError::into_inner));
        }
        // A task of the runtime asks the node, and this thread waits for it.
        "block-channel" => {
            let (tell, told) = mpsc::channel();
            let peers = ctx.peer_manager.clone();
            tokio::spawn(async move { tell.send(peers.list_peers().await.len()) });
            let _ = told.recv();
        }
        // Waits on the spot for an answer that another thread has to read.
        "block-on" => drop(block_on(ctx.peer_manager.list_peers())),
        _ => return false,
    }
    true
}

/// Something that the node sees, with a crash before, in, or after it.
async fn effect(id: &str, point: &str, ctx: &PluginContext) {
    let crash_at = |here: &str| {
        if point == here {
            std::process::abort();
        }
    };
    crash_at("before");
    let text = MessageType::Text(id.to_owned());
    let message = Message::new(ctx.node_id(), "*", text, None, ctx.realm().cloned()).as_json();
    let mut asked = pin!(ctx.peer_manager.try_broadcast(&message));
    if point == "in" {
        // Asked, and not waited for.
        let _ = poll_fn(|context| Poll::Ready(asked.as_mut().poll(context).is_ready())).await;
        crash_at("in");
    }
    let _ = asked.await;
    crash_at("after");
}

/// Is woken so many times by another thread, each time as soon as it was polled.
async fn woken(times: u64) {
    let polls = Arc::new(AtomicU64::new(0));
    let latest: Arc<Mutex<Option<Waker>>> = Arc::default();
    let (seen, waker) = (polls.clone(), latest.clone());
    std::thread::spawn(move || {
        let mut last = 0;
        while last < times {
            let now = seen.load(Ordering::SeqCst);
            if now == last {
                std::thread::yield_now();
                continue;
            }
            last = now;
            if let Some(waker) = waker.lock().unwrap_or_else(PoisonError::into_inner).take() {
                waker.wake();
            }
        }
    });
    poll_fn(|context| {
        // First the waker, then the count by which the other thread knows of it.
        *latest.lock().unwrap_or_else(PoisonError::into_inner) = Some(context.waker().clone());
        match polls.fetch_add(1, Ordering::SeqCst) + 1 >= times {
            true => Poll::Ready(()),
            false => Poll::Pending,
        }
    })
    .await;
}

struct Unpark(std::thread::Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Waits for a future without any runtime, as plugins do that bring their own.
fn block_on<T>(future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    loop {
        if let Poll::Ready(done) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return done;
        }
        std::thread::park();
    }
}
