//! Moves messages from the plugin's bounded queue to one of its processes, and finds a process that no longer answers them. Only
//! one process takes from the queue at a time, also while two of them live.

use super::process::Shared;
use crate::plugins::handle::Delivery;
use crate::plugins::lifecycle::Cause;
use crate::plugins::link::{Counters, Ended, Failed, Link, Sent};
use crate::plugins::logs::LogBook;
use crate::plugins::way::{Inside, Way};
use std::future::{pending, Future};
use std::pin::Pin;
use std::sync::Arc;
use thenodes::host::HostError;
use thenodes_ipc::{limits, Generation};
use tokio::sync::{mpsc, watch, OwnedMutexGuard};
use tokio::task::JoinSet;
use tokio::time::error::Elapsed;

/// A message on its way into the link.
type Sending = Pin<Box<dyn Future<Output = Result<Result<(Sent, Inside), HostError>, Elapsed>> + Send>>;

/// Moves messages in order, with many answers outstanding, until the link ends. `None`: told to leave the queue to others, and the
/// last message is answered.
pub(super) async fn messages(
    link: &mut Link,
    way: &Way,
    shared: &Shared,
    generation: Generation,
    mut leaving: watch::Receiver<bool>,
) -> Option<Ended> {
    let mut answers: JoinSet<()> = JoinSet::new();
    // Handlers run one after the other, so a message may wait for those before it: what counts is that some answer comes.
    let patience = limits::CALL_DEADLINE + limits::CANCEL_GRACE;
    let mut progress = tokio::time::Instant::now();
    // Half of the open calls: prompts and requests keep room beside messages.
    let most = limits::MAX_CALLS_TO_PLUGIN / 2;
    // The message on its way into the link. It may have to wait there, and orders must be heard meanwhile.
    let mut sending: Option<Sending> = None;
    let mut queue: Option<OwnedMutexGuard<mpsc::Receiver<Delivery>>> = None;
    let hang = || Some(Ended::Because(Cause::Hang("on_message".into())));
    loop {
        let left = *leaving.borrow_and_update();
        if left {
            queue = None;
            if sending.is_none() && answers.is_empty() {
                return None;
            }
        }
        tokio::select! {
            ended = link.ended() => return Some(ended),
            _ = leaving.changed(), if !left => {}
            taken = shared.queue.clone().lock_owned(), if queue.is_none() && !left => queue = Some(taken),
            sent = async { match sending.as_mut() { Some(send) => send.await, None => pending().await } } => {
                sending = None;
                match sent {
                    Ok(Ok((sent, inside))) => {
                        if answers.is_empty() {
                            progress = tokio::time::Instant::now();
                        }
                        answers.spawn(answered(sent, inside, shared.logs.clone(), generation));
                    }
                    Ok(Err(_)) => Counters::count(&shared.counters.dropped),
                    Err(_) => return hang(),
                }
            }
            Some(_) = answers.join_next() => progress = tokio::time::Instant::now(),
            () = tokio::time::sleep_until(progress + patience), if !answers.is_empty() => return hang(),
            Some(message) = async { match queue.as_mut() { Some(queue) => queue.recv().await, None => pending().await } },
                if sending.is_none() && answers.len() < most =>
            {
                let inside = way.enter("on_message");
                let send = async move {
                    let body = message.body.clone();
                    let sent = inside.caller().send("message", body, limits::CALL_DEADLINE).await;
                    drop(message); // its room in the queue is free once the link has it
                    sent.map(|sent| (sent, inside))
                };
                sending = Some(Box::pin(tokio::time::timeout(patience, send)));
            }
        }
    }
}

/// Waits for the answer to a message and logs what went wrong in the handler.
async fn answered(sent: Sent, _inside: Inside, logs: Arc<LogBook>, generation: Generation) {
    let until = tokio::time::Instant::now() + limits::MAX_DEADLINE;
    match sent.answer(until).await {
        Ok(_) | Err(Failed::Gone(_) | Failed::Late) => {}
        Err(Failed::Answered(error)) => logs.add(generation.0, "error", "on_message", &error.to_string()),
    }
}
