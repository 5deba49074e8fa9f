//! Accepts connections, within bounds: so many in all, so many strangers from one address.

use super::connector::subnet;
use super::discovery::{reach, Reach};
use super::greeting::carry;
use super::peers::Direction;
use super::{clock, Link, Network, HANDSHAKE_DEADLINE};
use std::collections::{HashMap, VecDeque};
use std::future::{poll_fn, Future};
use std::hash::Hash;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use thenodes::events::model::LogLevel;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;

/// Connections that may wait to be accepted; the kernel has a bound of its own. One that finds no room comes again a second later.
const BACKLOG: u32 = 4096;

/// Connections that are greeted at the same time, until they have been.
const TURNS: usize = 4;
/// Connections that are accepted before one is greeted, however many more there are.
const IN_A_ROW: usize = 256;

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

/// A connection that was accepted, and where it counts.
struct Accepted {
    tcp: TcpStream,
    addr: SocketAddr,
    stranger: Stranger,
    at: Instant,
    counted: (OwnedSemaphorePermit, Counted<IpAddr>, Counted<[u8; 6]>),
}

/// What is counted.
struct Bounds {
    places: Arc<Semaphore>,
    addresses: Arc<Counts<IpAddr>>,
    subnets: Arc<Counts<[u8; 6]>>,
    strangers: Arc<Strangers>,
}

impl Bounds {
    /// Counts a connection, or closes it.
    fn admit(&self, network: &Network, tcp: TcpStream, addr: SocketAddr) -> Option<Accepted> {
        let bounds = network.net.accepting;
        let ip = addr.ip().to_canonical();
        let full = |most: usize, what: &str| {
            network.events.network_with(LogLevel::Warn, || {
                (
                    "too_many_connections",
                    Some(addr.to_string()),
                    Some(format!("{most} connections {what} are open")),
                )
            });
        };
        let Ok(place) = self.places.clone().try_acquire_owned() else {
            full(bounds.all, "of all");
            return None;
        };
        let Some(of_address) = self.addresses.admit(ip, bounds.per_address) else {
            full(bounds.per_address, "from this address");
            return None;
        };
        let most = if reach(ip) == Reach::Host { usize::MAX } else { bounds.per_subnet };
        let Some(of_subnet) = self.subnets.admit(subnet(ip), most) else {
            full(bounds.per_subnet, "from this network");
            return None;
        };
        let stranger = self.strangers.admit(ip, bounds.strangers);
        Some(Accepted { tcp, addr, stranger, at: clock(), counted: (place, of_address, of_subnet) })
    }
}

/// Accepts until the task is aborted. What is there is accepted first, which costs little, and then greeted, the newest first: whoever comes
/// behind a flood waits for a moment, and what waits too long behind newer ones is closed.
pub async fn listen(network: Arc<Network>, listener: TcpListener) {
    let bounds = Bounds {
        places: Arc::new(Semaphore::new(network.net.accepting.all)),
        addresses: Arc::default(),
        subnets: Arc::default(),
        strangers: Arc::default(),
    };
    let turns = Arc::new(Semaphore::new(TURNS));
    let mut waiting: VecDeque<Accepted> = VecDeque::new(); // no more than there are places
    let mut connections = JoinSet::new();
    let mut accepted_in_a_row = 0;
    loop {
        while connections.try_join_next().is_some() {}
        let accepts = waiting.is_empty() || accepted_in_a_row < IN_A_ROW;
        tokio::select! {
            biased;
            accepted = listener.accept(), if accepts => {
                accepted_in_a_row += 1;
                match accepted {
                    Ok(_) if network.ending.load(Ordering::Acquire) => {}
                    Ok((tcp, addr)) => waiting.extend(bounds.admit(&network, tcp, addr)),
                    Err(error) => {
                        // Out of descriptors, usually: waiting is all that helps, and not waiting would spin.
                        network.events.network(LogLevel::Error, "accept_failed", None, error.to_string());
                        tokio::time::sleep(Duration::from_millis(200)).await;
                    }
                }
            }
            Ok(turn) = turns.clone().acquire_owned(), if !waiting.is_empty() => {
                accepted_in_a_row = 0;
                if let Some(newest) = waiting.pop_back() {
                    connections.spawn(greet(network.clone(), newest, turn));
                }
                while waiting.front().is_some_and(|oldest| clock().saturating_duration_since(oldest.at) > HANDSHAKE_DEADLINE) {
                    waiting.pop_front();
                }
                if waiting.is_empty() {
                    waiting = VecDeque::new(); // what a flood took is given back
                }
            }
        }
    }
}

/// Carries a connection. Others are greeted once this one has been.
fn greet(
    network: Arc<Network>,
    accepted: Accepted,
    turn: OwnedSemaphorePermit,
) -> impl Future<Output = ()> + Send {
    let Accepted { tcp, addr, stranger, at: _, counted } = accepted;
    let (told, mut turn) = (stranger.2.clone(), Some(turn));
    // Taken apart before: what a connection waits with is all that it costs.
    async move {
        let _counted = counted;
        let events = &network.events;
        events.network_with(LogLevel::Debug, || ("incoming_connection", Some(addr.to_string()), None));
        let mut carried = std::pin::pin!(carry(&network, Link::Tcp(tcp), addr, Direction::Inbound, stranger));
        // Its first step says HELLO, or begins TLS; everything after that waits for the other side.
        let carried = poll_fn(|context| {
            let step = carried.as_mut().poll(context);
            turn = None;
            step
        });
        tokio::select! {
            biased;
            () = told.notified() => events.network(
                LogLevel::Warn,
                "too_many_handshakes",
                Some(addr.to_string()),
                format!("closed for a newer one: {} from this address wait for theirs", network.net.accepting.strangers),
            ),
            _ = carried => {}
        }
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
