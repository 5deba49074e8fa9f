//! Looks at one process that serves: asks for its health now and then, and asks its runner for a sign of life when a call is open for
//! long. An answer of any kind is a sign of life; what the plugin says about its health is its own word and only ever counts against it.
//! While no call is open this sleeps until the next health probe.

use super::process::News;
use crate::config::HealthPolicy;
use crate::plugins::lifecycle::Cause;
use crate::plugins::link::{Caller, Ended, Failed};
use crate::plugins::way::Way;
use crate::text::printable;
use std::future::{pending, Future};
use std::hash::{BuildHasher, RandomState};
use std::pin::Pin;
use std::time::Duration;
use thenodes_ipc::{limits, Code, Generation};
use tokio::sync::mpsc;
use tokio::time::{sleep_until, timeout, Instant};

/// What became of a question.
enum Asked {
    Answered(Result<bytes::Bytes, thenodes::host::HostError>),
    /// It went out, and nothing came back.
    Silent,
    /// It did not go out: too many calls are open. That says nothing.
    Unsent,
    /// The link has ended.
    Gone,
}

async fn ask(caller: &Caller, method: &str, patience: Duration) -> Asked {
    let until = Instant::now() + patience;
    match timeout(patience, caller.send(method, Vec::new(), patience)).await {
        Err(_) | Ok(Err(Failed::Late)) => Asked::Unsent,
        Ok(Err(_)) => Asked::Gone,
        Ok(Ok(sent)) => match sent.answer(until).await {
            Ok(body) => Asked::Answered(Ok(body)),
            Err(Failed::Answered(error)) => Asked::Answered(Err(error)),
            Err(Failed::Late) => Asked::Silent,
            Err(Failed::Gone(_) | Failed::Unsendable(_)) => Asked::Gone,
        },
    }
}

/// Chance only spreads what many plugins do; it needs no quality.
pub(super) fn chance() -> f64 {
    (RandomState::new().hash_one(0u8) % 1000) as f64 / 1000.0
}

/// Asks once; `Err` is a miss. Who has no such method, as a plugin in C may, is well as long as it answers. While too many calls
/// are open to ask at all, nothing is known.
pub(super) async fn healthy(caller: &Caller, patience: Duration) -> Result<(), String> {
    loop {
        return match ask(caller, "health", patience).await {
            Asked::Answered(Ok(_)) => Ok(()),
            Asked::Answered(Err(error)) if error.code == Code::Unhandled => Ok(()),
            Asked::Answered(Err(error)) => Err(printable(&error.message, 300)),
            Asked::Silent => Err(format!("no answer within {} s", patience.as_secs_f32())),
            Asked::Unsent => continue,
            // The end of the link is told by the link.
            Asked::Gone => pending().await,
        };
    }
}

/// A question that is out.
type Asking<'a> = Pin<Box<dyn Future<Output = Result<(), String>> + Send + 'a>>;

/// Looks until there is a reason to end the process.
pub(super) async fn probe(
    way: &Way,
    policy: HealthPolicy,
    generation: Generation,
    news: &mpsc::Sender<(Generation, News)>,
) -> Ended {
    let mut asking: Option<Asking<'_>> = None;
    let mut due = Instant::now() + policy.wait(true, chance());
    // When to look at open calls; `None` while there are none.
    let mut look: Option<Instant> = None;
    loop {
        tokio::select! {
            () = sleep_until(due), if !policy.every.is_zero() && asking.is_none() => {
                asking = Some(Box::pin(healthy(way.caller(), policy.timeout)));
            }
            answer = async { match asking.as_mut() { Some(asking) => asking.await, None => pending().await } } => {
                asking = None;
                due = Instant::now() + policy.wait(false, chance());
                // A plugin that is idle has no open call to be found by.
                if answer.is_err() && is_wedged(way).await {
                    return condemned(way, Cause::Wedged("health".into()));
                }
                let told = answer.map_or_else(News::Missed, |()| News::Healthy);
                let _ = news.send((generation, told)).await;
            }
            () = way.caller().stirred(), if look.is_none() => look = Some(Instant::now() + limits::SLOW_CALL),
            () = async { match look { Some(at) => sleep_until(at).await, None => pending().await } } => {
                match signs_of_life(way).await {
                    Ok(next) => look = next,
                    Err(cause) => return condemned(way, cause),
                }
            }
        }
    }
}

/// Asks the runner whether it still reads. Whatever comes from it says so.
async fn is_wedged(way: &Way) -> bool {
    !way.caller().reads(limits::PING_DEADLINE).await
}

/// The process has to end, and whoever is inside hears why.
fn condemned(way: &Way, cause: Cause) -> Ended {
    way.condemn(cause.clone());
    Ended::Because(cause)
}

/// Looks at the open calls once, and says when to look again; an error is why the process has to end.
async fn signs_of_life(way: &Way) -> Result<Option<Instant>, Cause> {
    let soon = Instant::now() + limits::SLOW_CALL;
    if let Some(method) = way.take_late() {
        // It was told that nobody waits any more. Whoever answers something within the grace is not hung.
        if let Asked::Silent = ask(way.caller(), "health", limits::CANCEL_GRACE).await {
            return Err(match is_wedged(way).await {
                true => Cause::Wedged(method),
                false => Cause::Hang(method),
            });
        }
    }
    let Some(stalled) = way.caller().stalled() else {
        return Ok(if way.caller().rests() { None } else { Some(soon) });
    };
    // Handlers run one after the other, so a message may wait for those before it: what counts is that some answer comes.
    if stalled.messages >= limits::CALL_DEADLINE + limits::CANCEL_GRACE {
        return Err(Cause::Hang("on_message".into()));
    }
    match limits::SLOW_CALL.checked_sub(stalled.oldest) {
        Some(left) if !left.is_zero() => Ok(Some(Instant::now() + left)),
        // Slow is not wedged: its own deadline counts then, and nothing else.
        Some(_) | None => match is_wedged(way).await {
            true => Err(Cause::Wedged(printable(&stalled.method, 64))),
            false => Ok(Some(soon)),
        },
    }
}
