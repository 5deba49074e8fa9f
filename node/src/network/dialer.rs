//! Dials the bootstrap nodes, one task each, and dials again with growing, jittered pauses. A connection that lasted
//! resets the pause; one that was refused does not, so a node of another realm is not dialed once a second for ever.

use super::greeting::{carry, GreetingError, Outcome};
use super::handshake::Refusal;
use super::peers::Direction;
use super::{Link, Network};
use crate::config::Connecting;
use crate::network::clock;
use crate::text::printable;
use std::collections::VecDeque;
use std::hash::{BuildHasher, RandomState};
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use thenodes::events::model::LogLevel;
use thenodes::network::PeerSource;
use tokio::time::timeout;

/// A name must have its addresses by then.
const RESOLVE_DEADLINE: Duration = Duration::from_secs(5);
/// Failures that are kept.
const MAX_ERRORS: usize = 5;
/// A connection that lasted so long was a good one.
pub(super) const LASTED: Duration = Duration::from_secs(10);

/// The pause after `failures` attempts in a row. `chance` is a random number in 0..1 and moves it by the configured part.
pub fn pause(config: &Connecting, failures: u32, chance: f64) -> Duration {
    let exponent = i32::try_from(failures.min(64)).unwrap_or(64);
    let grown = config.base.as_secs_f64() * config.multiplier.powi(exponent);
    let bounded = grown.min(config.max.as_secs_f64());
    Duration::from_secs_f64(bounded * (1.0 - config.jitter + 2.0 * config.jitter * chance.clamp(0.0, 1.0)))
}

/// A random number in 0..1, good enough to keep nodes out of step.
pub(super) fn chance() -> f64 {
    (RandomState::new().hash_one(0u8) % 1000) as f64 / 1000.0
}

/// Opens a connection, within its deadline.
pub(super) async fn connect(network: &Network, addr: SocketAddr) -> Result<Link, String> {
    if network.ending.load(Ordering::Acquire) {
        return Err("the node is shutting down".into());
    }
    let (open, most) = (network.peers.count().0, network.net.accepting.all);
    if open >= most {
        return Err(format!("{open} peers are connected, and no more may be ([network.limits] connections)"));
    }
    let deadline = network.net.connecting.connect;
    match timeout(deadline, network.dial.dial(addr)).await {
        Ok(Ok(link)) => Ok(link),
        Ok(Err(error)) => Err(format!("{addr}: {error}")),
        Err(_) => Err(format!("{addr}: no connection within {} ms", deadline.as_millis())),
    }
}

/// What went wrong last with bootstrap nodes that have not been reached since, for operators who ask: an entry for each.
#[derive(Debug, Default)]
pub struct Errors(Mutex<VecDeque<(String, String)>>);

impl Errors {
    fn add(&self, target: &str, error: &str) {
        self.clear(target);
        let error = error.strip_prefix(target).map_or(error, |rest| rest.trim_start_matches(": "));
        let mut errors = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        errors.truncate(MAX_ERRORS - 1);
        errors.push_front((target.to_owned(), printable(error, 300)));
    }

    fn clear(&self, target: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).retain(|(of, _)| of != target);
    }

    /// The newest first.
    pub fn list(&self) -> Vec<String> {
        let errors = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        errors.iter().map(|(target, error)| format!("{target}: {error}")).collect()
    }
}

/// Keeps one bootstrap node connected until the task is aborted.
pub async fn keep(network: Arc<Network>, target: String) {
    let mut failures: u32 = 0;
    loop {
        let begun = clock();
        let outcome = dial(&network, &target, PeerSource::Bootstrap).await;
        match outcome {
            Ok(Outcome::Ended { .. }) if clock().saturating_duration_since(begun) >= LASTED => {
                network.bootstrap_errors.clear(&target);
                failures = 0;
            }
            // It dialed us, or another address of it answered: it is connected, which is all we want.
            Ok(Outcome::Refused(GreetingError::Hello(Refusal::Duplicate(id)))) => {
                network.bootstrap_errors.clear(&target);
                network.peers.gone(&id).await;
                failures = 0;
            }
            Ok(Outcome::Ended { why, .. }) => {
                failures += 1;
                network.bootstrap_errors.add(&target, &why);
            }
            Ok(Outcome::Refused(error)) => {
                failures += 1;
                network.bootstrap_errors.add(&target, &error.to_string());
            }
            Ok(Outcome::NotReached(error)) | Err(error) => {
                failures += 1;
                network.bootstrap_errors.add(&target, &error);
                network.events.network(
                    LogLevel::Warn,
                    "bootstrap_connect_failed",
                    Some(target.clone()),
                    error,
                );
            }
        }
        let config = &network.net.connecting;
        tokio::time::sleep(pause(config, failures.saturating_sub(1), chance())).await;
    }
}

/// Dials a node by name or address, and carries the connection to its end.
pub async fn dial(network: &Network, target: &str, source: PeerSource) -> Result<Outcome, String> {
    network.events.network(LogLevel::Debug, "dial_start", Some(target.to_owned()), None);
    let resolved = timeout(RESOLVE_DEADLINE, tokio::net::lookup_host(target)).await;
    let addrs: Vec<SocketAddr> = match resolved {
        Ok(Ok(addrs)) => addrs.take(8).collect(),
        Ok(Err(error)) => return Err(format!("resolving: {error}")),
        Err(_) => return Err("resolving took too long".into()),
    };
    let mut last = "the name has no address".to_owned();
    for addr in addrs {
        network.store.insert(addr, source).await;
        match connect(network, addr).await {
            Ok(link) => {
                network.bootstrap_errors.clear(target); // if it is refused, that is the news
                return Ok(carry(network, link, addr, Direction::Outbound, ()).await);
            }
            Err(error) => last = error,
        }
        network.store.mark_failure(&addr).await;
    }
    Ok(Outcome::NotReached(last))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Strategy;

    #[test]
    fn the_last_failures_are_kept_one_for_each_node_until_it_is_reached() {
        let errors = Errors::default();
        for n in 0..2 * MAX_ERRORS {
            errors.add(&format!("node{n}:1"), "refused");
        }
        errors.add("node8:1", "node8:1: gone\u{1b}[2J");
        let list = errors.list();
        assert_eq!(list.len(), MAX_ERRORS);
        assert!(list[0].starts_with("node8:1: gone") && !list[0].contains('\u{1b}'), "{list:?}");
        assert_eq!(list[1], "node9:1: refused");
        errors.clear("node8:1");
        assert!(errors.list().iter().all(|error| !error.starts_with("node8:1")));
    }

    #[test]
    fn pauses_grow_to_their_ceiling_and_never_vanish() {
        let config = Connecting {
            strategy: Strategy::DirectOnly,
            connect: Duration::from_secs(1),
            probe: Duration::from_secs(1),
            silence: Duration::from_secs(1),
            idle: Duration::from_secs(1),
            base: Duration::from_secs(1),
            max: Duration::from_secs(60),
            multiplier: 2.0,
            attempts: 8,
            jitter: 0.2,
        };
        let seconds: Vec<u64> = (0..10).map(|n| pause(&config, n, 0.5).as_secs()).collect();
        assert_eq!(seconds, [1, 2, 4, 8, 16, 32, 60, 60, 60, 60]);
        assert!(pause(&config, u32::MAX, 1.0) <= config.max.mul_f64(1.21));
        assert!(pause(&config, 0, 0.0) >= config.base.mul_f64(0.79));
    }
}
