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
use std::sync::atomic::{AtomicBool, Ordering};
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
const IN_A_ROW: usize = 64;
/// Connections too many of their kind that are accepted before this thread lets others go on.
const CROWD: usize = 2;
/// Every so many greetings the oldest has its turn, so that newer ones do not keep it waiting for ever.
const OLDEST: usize = 8;
/// How long nothing is accepted after accepting failed.
const AFTER_FAILURE: Duration = Duration::from_millis(200);

/// Opens the listening socket; a failure is the caller's, not a node that runs on deaf.
pub async fn bind(addr: SocketAddr) -> io::Result<TcpListener> {
    let socket = if addr.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?; // as the standard library does: a restart need not wait for old connections to time out
    socket.set_nodelay(true)?; // taken over by every connection: messages are small, and each is one write
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

/// Word for a stranger that a newer one needs its place.
#[derive(Default)]
struct Word {
    told: AtomicBool,
    notify: Notify,
}

impl Word {
    fn tell(&self) {
        self.told.store(true, Ordering::Release);
        self.notify.notify_one();
    }

    fn is_told(&self) -> bool {
        self.told.load(Ordering::Acquire)
    }
}

/// Connections without a handshake yet, of each address, oldest first.
#[derive(Default)]
struct Strangers(Mutex<HashMap<IpAddr, VecDeque<Arc<Word>>>>);

/// One of them, until its handshake is over. Told when a newer one needs its place.
struct Stranger(Arc<Strangers>, IpAddr, Arc<Word>);

impl Strangers {
    /// Lets one in; the oldest of its address has to go if there are too many, and then this is true.
    fn admit(self: &Arc<Self>, ip: IpAddr, most: usize) -> (Stranger, bool) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let waiting = all.entry(ip).or_default();
        let crowds = waiting.len() >= most;
        if crowds {
            if let Some(oldest) = waiting.pop_front() {
                oldest.tell();
            }
        }
        let told = Arc::<Word>::default();
        waiting.push_back(told.clone());
        (Stranger(self.clone(), ip, told), crowds)
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

impl Accepted {
    /// A newer one of its address needs its place, or it waited too long.
    fn is_over(&self) -> bool {
        self.stranger.2.is_told() || clock().saturating_duration_since(self.at) > HANDSHAKE_DEADLINE
    }
}

/// What is counted.
struct Bounds {
    places: Arc<Semaphore>,
    addresses: Arc<Counts<IpAddr>>,
    subnets: Arc<Counts<[u8; 6]>>,
    strangers: Arc<Strangers>,
}

impl Bounds {
    fn of(network: &Network) -> Self {
        Self {
            places: Arc::new(Semaphore::new(network.net.accepting.all)),
            addresses: Arc::default(),
            subnets: Arc::default(),
            strangers: Arc::default(),
        }
    }

    /// Counts a connection, or closes it. True beside it if there are too many of its kind.
    fn admit(&self, network: &Network, tcp: TcpStream, addr: SocketAddr) -> (Option<Accepted>, bool) {
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
            return (None, true);
        };
        let Some(of_address) = self.addresses.admit(ip, bounds.per_address) else {
            full(bounds.per_address, "from this address");
            return (None, true);
        };
        let most = if reach(ip) == Reach::Host { usize::MAX } else { bounds.per_subnet };
        let Some(of_subnet) = self.subnets.admit(subnet(ip), most) else {
            full(bounds.per_subnet, "from this network");
            return (None, true);
        };
        let (stranger, crowds) = self.strangers.admit(ip, bounds.strangers);
        let counted = (place, of_address, of_subnet);
        (Some(Accepted { tcp, addr, stranger, at: clock(), counted }), crowds)
    }
}

/// Accepts until the task is aborted. What is there is accepted first, which costs little, and then greeted, the newest first: whoever comes
/// behind a flood waits for a moment, and what waits too long behind newer ones is closed.
pub async fn listen(network: Arc<Network>, listener: TcpListener) {
    accept_all(network, listener, &mut JoinSet::new()).await;
}

/// The same, with the set of those that are connected. One that ended is not in it any more, whether or not others come.
async fn accept_all(network: Arc<Network>, listener: TcpListener, connections: &mut JoinSet<()>) {
    let bounds = Bounds::of(&network);
    let turns = Arc::new(Semaphore::new(TURNS));
    let mut waiting: VecDeque<Accepted> = VecDeque::new(); // no more than there are places
    let (mut accepted_in_a_row, mut greeted, mut crowding) = (0, 0_usize, 0);
    let mut not_before: Option<tokio::time::Instant> = None;
    loop {
        while connections.try_join_next().is_some() {} // a flood leaves the last branch below no turn
        let accepts = waiting.is_empty() || accepted_in_a_row < IN_A_ROW;
        let accept = async {
            if let Some(at) = not_before {
                tokio::time::sleep_until(at).await;
            }
            listener.accept().await
        };
        tokio::select! {
            biased;
            accepted = accept, if accepts => {
                not_before = None;
                accepted_in_a_row += 1;
                match accepted {
                    Ok(_) if network.ending.load(Ordering::Acquire) => {}
                    Ok((tcp, addr)) => {
                        let (accepted, crowds) = bounds.admit(&network, tcp, addr);
                        waiting.extend(accepted);
                        crowding += usize::from(crowds);
                        if crowding >= CROWD {
                            crowding = 0;
                            // The node's other threads may be on this processor too, behind this one, with what is more urgent.
                            std::thread::yield_now();
                            tokio::task::yield_now().await;
                        }
                    }
                    Err(error) => {
                        // Out of descriptors, usually: waiting is all that helps, and not waiting would spin. Those that are here go on.
                        network.events.network(LogLevel::Error, "accept_failed", None, error.to_string());
                        not_before = Some(tokio::time::Instant::now() + AFTER_FAILURE);
                    }
                }
            }
            Ok(turn) = turns.clone().acquire_owned(), if !waiting.is_empty() => {
                accepted_in_a_row = 0;
                greeted += 1;
                // Nobody is let in any more while the node ends.
                let ending = network.ending.load(Ordering::Acquire);
                if let Some(next) = next_of(&mut waiting, greeted).filter(|_| !ending) {
                    connections.spawn(greet(network.clone(), next, turn));
                }
                if waiting.is_empty() {
                    waiting = VecDeque::new(); // what a flood took is given back
                }
            }
            // One that ended keeps its memory until it is taken from here, also when nobody comes any more.
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
        }
        while let Some(oldest) = waiting.front().filter(|oldest| oldest.is_over()) {
            network.events.network_with(LogLevel::Warn, || {
                let why = "closed before its greeting: newer ones came";
                ("too_many_handshakes", Some(oldest.addr.to_string()), Some(why.into()))
            });
            waiting.pop_front();
        }
    }
}

/// Who is greeted next, as the so-many-th: the newest, now and then the oldest.
fn next_of<T>(waiting: &mut VecDeque<T>, greeting: usize) -> Option<T> {
    if greeting.is_multiple_of(OLDEST) {
        waiting.pop_front()
    } else {
        waiting.pop_back()
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
            () = told.notify.notified() => events.network(
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
    use super::super::for_tests::a_network;
    use super::*;
    use tokio::io::AsyncReadExt;

    #[tokio::test]
    async fn accepted_connections_do_not_wait_to_fill_a_segment() {
        let listener = bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.expect("a port");
        let connected = TcpStream::connect(listener.local_addr().expect("an address"));
        let (other, accepted) = tokio::join!(connected, listener.accept());
        assert!(!other.expect("connected").nodelay().expect("it says"), "nobody asked for it here");
        assert!(accepted.expect("accepted").0.nodelay().expect("it says"));
    }

    /// A task that ended keeps its memory until it is taken from its set: nobody else has to come for that.
    #[tokio::test]
    async fn connections_that_ended_are_let_go_though_nobody_comes_any_more() {
        let network = Arc::new(a_network());
        let listener = bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.expect("a port");
        let addr = listener.local_addr().expect("an address");
        let mut connections = JoinSet::new();
        let peers = network.net.accepting.strangers.min(10);
        let alive = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
        let before = alive();
        let come_and_gone = async {
            let mut open = Vec::new();
            for _ in 0..peers {
                let mut tcp = TcpStream::connect(addr).await.expect("connected");
                assert_ne!(tcp.read(&mut [0; 1000]).await.expect("it lives"), 0, "the node says HELLO first");
                open.push(tcp);
            }
            drop(open);
            let ended = async {
                while alive() > before {
                    tokio::task::yield_now().await;
                }
            };
            tokio::time::timeout(Duration::from_secs(10), ended).await.expect("they end");
            tokio::task::yield_now().await; // whoever waits for their end has been told
        };
        tokio::select! {
            () = accept_all(network.clone(), listener, &mut connections) => {}
            () = come_and_gone => {}
        }
        assert!(connections.is_empty(), "{} of {peers} are still held", connections.len());
    }

    #[tokio::test]
    async fn no_network_has_more_than_its_places_and_this_machine_is_none() {
        let most = 20; // each takes a descriptor here, and there may be few
        let mut network = a_network();
        network.net.accepting.per_subnet = most;
        let bounds = Bounds::of(&network);
        let listener = bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.expect("a port");
        let addr = listener.local_addr().expect("an address");
        let connected = || async { TcpStream::connect(addr).await.expect("connected") };
        let mut inside = Vec::new();
        for n in 0..=most {
            let from = SocketAddr::from(([9, 9, 9, (n % 250) as u8], 1));
            inside.extend(bounds.admit(&network, connected().await, from).0);
        }
        assert_eq!(inside.len(), most);
        for n in 0..=most {
            let from = SocketAddr::from(([127, 0, (n / 250) as u8, (n % 250) as u8], 1));
            inside.extend(bounds.admit(&network, connected().await, from).0);
        }
        assert_eq!(inside.len(), 2 * most + 1, "this machine");
        inside.truncate(most);
        let elsewhere = SocketAddr::from(([9, 9, 8, 1], 1));
        assert!(bounds.admit(&network, connected().await, elsewhere).0.is_some());
        inside.pop();
        let again = SocketAddr::from(([9, 9, 9, 251], 1));
        let again = bounds.admit(&network, connected().await, again).0;
        assert!(again.is_some(), "a place is free");
        assert!(bounds.admit(&network, connected().await, SocketAddr::from(([9, 9, 9, 252], 1))).0.is_none());
    }

    #[tokio::test]
    async fn the_oldest_stranger_of_an_address_makes_room_for_a_newer_one() {
        let strangers = Arc::new(Strangers::default());
        let (here, there) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
        let first = strangers.admit(here, 2).0;
        let second = strangers.admit(here, 2).0;
        let elsewhere = strangers.admit(there, 2).0;
        let third = strangers.admit(here, 2).0;
        first.2.notify.notified().await;
        assert!(first.2.is_told() && !second.2.is_told());
        drop(second); // its handshake is over: nobody has to go for the next
        let fourth = strangers.admit(here, 2).0;
        drop((first, third, fourth, elsewhere));
        assert!(strangers.0.lock().expect("no panic").is_empty());
    }

    #[test]
    fn the_newest_is_greeted_first_and_now_and_then_the_oldest() {
        let mut waiting: VecDeque<usize> = (0..20).collect();
        let order: Vec<usize> = (1..).map_while(|greeting| next_of(&mut waiting, greeting)).collect();
        assert_eq!(order[..9], [19, 18, 17, 16, 15, 14, 13, 0, 12]);
        assert_eq!((order.len(), order[15]), (20, 1));
    }
}
