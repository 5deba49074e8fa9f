//! Dials the bootstrap nodes, one task each, and dials again with growing, jittered pauses. A connection that lasted
//! resets the pause; one that was refused does not, so a node of another realm is not dialed once a second for ever.

use super::handshake::Refusal;
use super::peers::Direction;
use super::session::{carry, GreetingError, Outcome};
use super::{Network, CONNECT_DEADLINE};
use std::hash::{BuildHasher, RandomState};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use thenodes::events::model::LogLevel;
use thenodes::network::PeerSource;
use tokio::net::TcpStream;
use tokio::time::timeout;

/// First pause.
pub const BASE: Duration = Duration::from_secs(1);
/// Longest pause.
pub const MAX: Duration = Duration::from_secs(60);
/// A connection that lasted so long was a good one.
const LASTED: Duration = Duration::from_secs(10);

/// The pause after `failures` attempts in a row. `chance` is a random number in 0..1 and moves it by a fifth.
pub fn pause(failures: u32, chance: f64) -> Duration {
    let doubled = BASE.saturating_mul(1u32.checked_shl(failures.min(16)).unwrap_or(u32::MAX)).min(MAX);
    doubled.mul_f64(0.8 + 0.4 * chance.clamp(0.0, 1.0))
}

/// Keeps one bootstrap node connected until the task is aborted.
pub async fn keep(network: Arc<Network>, target: String) {
    let mut failures: u32 = 0;
    loop {
        let begun = Instant::now();
        let outcome = dial(&network, &target).await;
        match outcome {
            Ok(Outcome::Ended { .. }) if begun.elapsed() >= LASTED => failures = 0,
            // It dialed us, or another address of it answered: it is connected, which is all we want.
            Ok(Outcome::Refused(GreetingError::Hello(Refusal::Duplicate(id)))) => {
                network.peers.gone(&id).await;
                failures = 0;
            }
            Ok(Outcome::Ended { .. } | Outcome::Refused(_)) => failures += 1,
            Err(error) => {
                failures += 1;
                network.events.network(
                    LogLevel::Warn,
                    "bootstrap_connect_failed",
                    Some(target.clone()),
                    error,
                );
            }
        }
        let chance = (RandomState::new().hash_one(0u8) % 1000) as f64 / 1000.0;
        tokio::time::sleep(pause(failures.saturating_sub(1), chance)).await;
    }
}

async fn dial(network: &Network, target: &str) -> Result<Outcome, String> {
    network.events.network(LogLevel::Debug, "dial_start", Some(target.to_owned()), None);
    let resolved = timeout(CONNECT_DEADLINE, tokio::net::lookup_host(target)).await;
    let addrs: Vec<SocketAddr> = match resolved {
        Ok(Ok(addrs)) => addrs.take(8).collect(),
        Ok(Err(error)) => return Err(format!("resolving: {error}")),
        Err(_) => return Err("resolving took too long".into()),
    };
    let mut last = "the name has no address".to_owned();
    for addr in addrs {
        network.store.insert(addr, PeerSource::Bootstrap).await;
        match timeout(CONNECT_DEADLINE, TcpStream::connect(addr)).await {
            Ok(Ok(tcp)) => return Ok(carry(network, tcp, addr, Direction::Outbound, ()).await),
            Ok(Err(error)) => last = format!("{addr}: {error}"),
            Err(_) => last = format!("{addr}: no connection within {} s", CONNECT_DEADLINE.as_secs()),
        }
        network.store.mark_failure(&addr).await;
    }
    Err(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_their_ceiling_and_never_vanish() {
        let seconds: Vec<u64> = (0..10).map(|n| pause(n, 0.5).as_secs()).collect();
        assert_eq!(seconds, [1, 2, 4, 8, 16, 32, 60, 60, 60, 60]);
        assert!(pause(u32::MAX, 1.0) <= MAX.mul_f64(1.2));
        assert!(pause(0, 0.0) >= BASE.mul_f64(0.79));
    }
}
