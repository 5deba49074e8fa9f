//! Accepts connections, within bounds: so many in all, so many strangers from one address.

use super::connector::subnet;
use super::discovery::{reach, Reach};
use super::greeting::carry;
use super::peers::Direction;
use super::{Link, Network};
use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use thenodes::events::model::LogLevel;
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinSet;

/// Connections that may wait to be accepted; the kernel has a bound of its own. One that finds no room comes again a second later.
const BACKLOG: u32 = 4096;

/// Opens the listening socket; a failure is the caller's, not a node that runs on deaf.
pub async fn bind(addr: SocketAddr) -> io::Result<TcpListener> {
    let socket = if addr.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?; // as the standard library does: a restart need not wait for old connections to time out
    socket.bind(addr)?;
    socket.listen(BACKLOG)
}

/// Connections, counted by where they come from.
struct Counts<K>(Mutex<HashMap<K, usize>>);

impl<K> Default for Counts<K> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

/// One connection; counted until dropped.
struct Counted<K: Eq + Hash + Copy>(Arc<Counts<K>>, K);

impl<K: Eq + Hash + Copy> Counts<K> {
    fn admit(self: &Arc<Self>, key: K, most: usize) -> Option<Counted<K>> {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(key).or_default();
        if *count >= most {
            return None;
        }
        *count += 1;
        Some(Counted(self.clone(), key))
    }
}

impl<K: Eq + Hash + Copy> Drop for Counted<K> {
    fn drop(&mut self) {
        let mut counts = self.0 .0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.1) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.1);
            }
        }
    }
}

/// Connections without a handshake yet, of each address, oldest first.
#[derive(Default)]
struct Strangers(Mutex<HashMap<IpAddr, VecDeque<Arc<Notify>>>>);

/// One of them, until its handshake is over. Told when a newer one needs its place.
struct Stranger(Arc<Strangers>, IpAddr, Arc<Notify>);

impl Strangers {
    /// Lets one in; the oldest of its address has to go if there are too many.
    fn admit(self: &Arc<Self>, ip: IpAddr, most: usize) -> Stranger {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let waiting = all.entry(ip).or_default();
        if waiting.len() >= most {
            if let Some(oldest) = waiting.pop_front() {
                oldest.notify_one();
            }
        }
        let told = Arc::new(Notify::new());
        waiting.push_back(told.clone());
        Stranger(self.clone(), ip, told)
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        let mut all = self.0 .0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(waiting) = all.get_mut(&self.1) {
            waiting.retain(|told| !Arc::ptr_eq(told, &self.2));
            if waiting.is_empty() {
                all.remove(&self.1);
            }
        }
    }
}

/// Accepts until the task is aborted.
pub async fn listen(network: Arc<Network>, listener: TcpListener) {
    let bounds = network.net.accepting;
    let places = Arc::new(Semaphore::new(bounds.all));
    let (addresses, subnets) = (Arc::new(Counts::default()), Arc::new(Counts::default()));
    let strangers = Arc::new(Strangers::default());
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let (tcp, addr) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors, usually: waiting is all that helps, and not waiting would spin.
                network.events.network(LogLevel::Error, "accept_failed", None, error.to_string());
                tokio::time::sleep(Duration::from_millis(200)).await;
                continue;
            }
        };
        if network.ending.load(Ordering::Acquire) {
            continue;
        }
        let ip = addr.ip().to_canonical();
        let full = |what: String| {
            network.events.network(LogLevel::Warn, "too_many_connections", Some(addr.to_string()), what);
        };
        let Ok(place) = places.clone().try_acquire_owned() else {
            full(format!("{} connections are open", bounds.all));
            continue;
        };
        let Some(of_address) = addresses.admit(ip, bounds.per_address) else {
            full(format!("{} connections from this address are open", bounds.per_address));
            continue;
        };
        let most = if reach(ip) == Reach::Host { usize::MAX } else { bounds.per_subnet };
        let Some(of_subnet) = subnets.admit(subnet(ip), most) else {
            full(format!("{} connections from this network are open", bounds.per_subnet));
            continue;
        };
        let stranger = strangers.admit(ip, bounds.strangers);
        let network = network.clone();
        connections.spawn(async move {
            let _counted = (place, of_address, of_subnet);
            network.events.network(LogLevel::Debug, "incoming_connection", Some(addr.to_string()), None);
            let told = stranger.2.clone();
            tokio::select! {
                biased;
                () = told.notified() => network.events.network(
                    LogLevel::Warn,
                    "too_many_handshakes",
                    Some(addr.to_string()),
                    format!("closed for a newer one: {} from this address wait for theirs", bounds.strangers),
                ),
                _ = carry(&network, Link::Tcp(tcp), addr, Direction::Inbound, stranger) => {}
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_oldest_stranger_of_an_address_makes_room_for_a_newer_one() {
        let strangers = Arc::new(Strangers::default());
        let (here, there) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
        let first = strangers.admit(here, 2);
        let second = strangers.admit(here, 2);
        let elsewhere = strangers.admit(there, 2);
        let third = strangers.admit(here, 2);
        first.2.notified().await;
        drop(second); // its handshake is over: nobody has to go for the next
        let fourth = strangers.admit(here, 2);
        drop((first, third, fourth, elsewhere));
        assert!(strangers.0.lock().expect("no panic").is_empty());
    }
}
