//! Has the plugin's queue of messages fed to one of its processes. Only one process is fed at a time, also while two of them live.

use crate::plugins::link::{Ended, Link};
use crate::plugins::queue::Queue;
use std::sync::Arc;
use tokio::sync::watch;

/// Feeds the process, once nobody else is fed, until the link ends. `None`: told to leave the queue to others, and the last
/// message is answered.
pub(super) async fn messages(
    link: &mut Link,
    queue: &Arc<Queue>,
    mut leaving: watch::Receiver<bool>,
) -> Option<Ended> {
    link.feed(queue);
    tokio::select! {
        ended = link.ended() => return Some(ended),
        // An error: nobody can tell any more, which means the same.
        _ = leaving.wait_for(|left| *left) => {}
    }
    let caller = link.caller().clone();
    queue.detach(caller.generation());
    tokio::select! {
        ended = link.ended() => Some(ended),
        () = caller.without_messages() => None,
    }
}
