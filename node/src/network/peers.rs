//! Who is connected. Taking an id and giving it back is one step under one short lock, which nobody holds across a wait.

use super::outbox::{Outbox, Put};
use crate::network::clock;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use thenodes::host::PeerInfo;
use tokio::sync::watch;

/// Who made a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// The peer dialed us.
    Inbound,
    /// We dialed the peer.
    Outbound,
}

impl Direction {
    /// The word in events.
    pub fn word(self) -> &'static str {
        match self {
            Direction::Inbound => "inbound",
            Direction::Outbound => "outbound",
        }
    }
}

/// Two nodes that dial each other make two connections within such a time; older ones are no coincidence.
const CROSSING: Duration = Duration::from_secs(5);

struct Entry {
    info: Arc<PeerInfo>,
    serial: u64,
    direction: Direction,
    since: Instant,
    outbox: Arc<Outbox>,
}

#[derive(Default)]
struct Inner {
    by_id: HashMap<String, Entry>,
    by_addr: HashMap<SocketAddr, String>,
    serial: u64,
}

/// The connected peers.
#[derive(Clone)]
pub struct PeerTable {
    local_id: String,
    inner: Arc<Mutex<Inner>>,
    /// Counts whoever comes and goes.
    epoch: Arc<AtomicU64>,
    changed: Arc<watch::Sender<u64>>,
}

/// A place in the table; given back when dropped.
#[derive(Debug)]
pub struct Place {
    table: PeerTable,
    /// Who has it.
    pub info: Arc<PeerInfo>,
    serial: u64,
    /// What is to be written to the peer.
    pub outbox: Arc<Outbox>,
}

impl std::fmt::Debug for PeerTable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PeerTable of {}", self.local_id)
    }
}

/// What became of a line for one peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sent {
    /// In its queue.
    Queued,
    /// Its queue is full.
    Full,
    /// There is no such peer.
    Unknown,
}

impl PeerTable {
    /// An empty table of the node with this id.
    pub fn new(local_id: &str) -> Self {
        Self {
            local_id: local_id.into(),
            inner: Arc::default(),
            epoch: Arc::default(),
            changed: Arc::new(watch::Sender::new(0)),
        }
    }

    fn locked(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the peer's id, or says that it is taken. When two nodes dial each other at the same time both ends keep the
    /// connection that the smaller id dialed.
    pub fn take(&self, info: PeerInfo, direction: Direction, now: Instant) -> Result<Place, PeerInfo> {
        let mut inner = self.locked();
        if let Some(old) = inner.by_id.get(&info.node_id) {
            let ours = if self.local_id < info.node_id { Direction::Outbound } else { Direction::Inbound };
            let crossing = old.direction != direction && now.saturating_duration_since(old.since) < CROSSING;
            if !crossing || direction != ours {
                return Err(info);
            }
            old.outbox.close();
            let (id, addr) = (old.info.node_id.clone(), old.info.addr);
            inner.by_id.remove(&id);
            inner.by_addr.remove(&addr);
        }
        inner.serial += 1;
        let serial = inner.serial;
        let outbox = Arc::new(Outbox::new(now));
        let info = Arc::new(info);
        inner.by_addr.insert(info.addr, info.node_id.clone());
        let entry = Entry { info: info.clone(), serial, direction, since: now, outbox: outbox.clone() };
        inner.by_id.insert(info.node_id.clone(), entry);
        drop(inner);
        self.tell_change();
        Ok(Place { table: self.clone(), info, serial, outbox })
    }

    fn tell_change(&self) {
        self.epoch.fetch_add(1, Ordering::Release);
        self.changed.send_modify(|n| *n += 1);
    }

    /// A number that changes whenever somebody comes or goes, to be looked at without a lock.
    pub fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    /// A peer and what waits for it.
    pub fn entry(&self, node_id: &str) -> Option<(Arc<PeerInfo>, Arc<Outbox>)> {
        self.locked().by_id.get(node_id).map(|entry| (entry.info.clone(), entry.outbox.clone()))
    }

    /// What waits for a peer.
    pub fn outbox(&self, node_id: &str) -> Option<Arc<Outbox>> {
        self.locked().by_id.get(node_id).map(|entry| entry.outbox.clone())
    }

    /// All peers and what waits for them.
    pub fn all(&self) -> Vec<(Arc<PeerInfo>, Arc<Outbox>)> {
        self.locked().by_id.values().map(|entry| (entry.info.clone(), entry.outbox.clone())).collect()
    }

    /// What waits for all.
    pub fn outboxes(&self) -> Vec<Arc<Outbox>> {
        self.locked().by_id.values().map(|entry| entry.outbox.clone()).collect()
    }

    /// The peers that announced a capability.
    pub fn having(&self, capability: &str) -> Vec<Arc<PeerInfo>> {
        let inner = self.locked();
        let with = |entry: &&Entry| entry.info.capabilities.iter().any(|word| word == capability);
        inner.by_id.values().filter(with).map(|entry| entry.info.clone()).collect()
    }

    /// How many are connected, and how many of those this node dialed.
    pub fn count(&self) -> (usize, usize) {
        let inner = self.locked();
        let dialed = inner.by_id.values().filter(|entry| entry.direction == Direction::Outbound).count();
        (inner.by_id.len(), dialed)
    }

    /// Asks one connection to close; false if there is none.
    pub fn close(&self, node_id: &str) -> bool {
        self.outbox(node_id).map(|outbox| outbox.close()).is_some()
    }

    /// Adds a line, with its newline, to what waits for one peer.
    pub fn send_to_id(&self, node_id: &str, line: &[u8]) -> Sent {
        match self.outbox(node_id).map(|outbox| outbox.own(line)) {
            None | Some(Put::Gone) => Sent::Unknown,
            Some(Put::Queued) => Sent::Queued,
            Some(Put::Full | Put::Stalled) => Sent::Full,
        }
    }

    /// The same for the peer with this address.
    pub fn send_to_addr(&self, addr: &SocketAddr, line: &[u8]) -> Sent {
        let id = self.locked().by_addr.get(addr).cloned();
        id.map_or(Sent::Unknown, |id| self.send_to_id(&id, line))
    }

    /// Adds a line to what waits for every peer; how many took it, and how many were full.
    pub fn broadcast(&self, line: &[u8]) -> (u64, u64) {
        let inner = self.locked();
        inner.by_id.values().fold((0, 0), |(took, full), entry| match entry.outbox.own(line) {
            Put::Queued => (took + 1, full),
            Put::Full | Put::Stalled => (took, full + 1),
            Put::Gone => (took, full),
        })
    }

    /// All peers, by id.
    pub fn list(&self) -> Vec<PeerInfo> {
        let mut list: Vec<PeerInfo> =
            self.locked().by_id.values().map(|entry| (*entry.info).clone()).collect();
        list.sort_by(|a, b| a.node_id.cmp(&b.node_id));
        list
    }

    /// All peers with what an operator wants to see of their connections, by id.
    pub fn listed(&self) -> Vec<serde_json::Value> {
        let mut list: Vec<(Arc<PeerInfo>, &'static str, u64, usize)> = {
            let inner = self.locked();
            let of = |entry: &Entry| {
                let since = clock().saturating_duration_since(entry.since).as_secs();
                (entry.info.clone(), entry.direction.word(), since, entry.outbox.waiting())
            };
            inner.by_id.values().map(of).collect()
        };
        list.sort_by(|a, b| a.0.node_id.cmp(&b.0.node_id));
        let shown = |(info, direction, since, waiting): (Arc<PeerInfo>, &str, u64, usize)| {
            serde_json::json!({
                "node_id": info.node_id,
                "addr": info.addr.to_string(),
                "capabilities": info.capabilities,
                "direction": direction,
                "connected_s": since,
                "waiting_bytes": waiting,
            })
        };
        list.into_iter().map(shown).collect()
    }

    /// The peer with this id.
    pub fn by_id(&self, node_id: &str) -> Option<PeerInfo> {
        self.locked().by_id.get(node_id).map(|entry| (*entry.info).clone())
    }

    /// The peer with this address.
    pub fn by_addr(&self, addr: &SocketAddr) -> Option<PeerInfo> {
        let inner = self.locked();
        inner.by_addr.get(addr).and_then(|id| inner.by_id.get(id)).map(|entry| (*entry.info).clone())
    }

    /// Changes whenever somebody comes or goes.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Waits until nobody has this id.
    pub async fn gone(&self, node_id: &str) {
        let mut changes = self.changes();
        while self.by_id(node_id).is_some() {
            if changes.changed().await.is_err() {
                return;
            }
        }
    }

    /// Asks every connection to close.
    pub fn close_all(&self) {
        for entry in self.locked().by_id.values() {
            entry.outbox.close();
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut inner = self.table.locked();
        // A newer connection may have the id by now.
        if inner.by_id.get(&self.info.node_id).is_some_and(|entry| entry.serial == self.serial) {
            inner.by_id.remove(&self.info.node_id);
            inner.by_addr.remove(&self.info.addr);
        }
        drop(inner);
        self.table.tell_change();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(id: &str, port: u16) -> PeerInfo {
        PeerInfo { node_id: id.into(), addr: ([127, 0, 0, 1], port).into(), capabilities: vec![] }
    }

    #[test]
    fn an_id_is_taken_once_and_given_back() {
        let (table, now) = (PeerTable::new("m"), Instant::now());
        let place = table.take(info("a", 1), Direction::Inbound, now).expect("free");
        assert!(table.take(info("a", 2), Direction::Inbound, now).is_err());
        drop(place);
        assert!(table.by_addr(&([127, 0, 0, 1], 1).into()).is_none());
        assert!(table.take(info("a", 2), Direction::Inbound, now).is_ok());
    }

    /// Both ends see the two connections in either order and keep the same one.
    #[test]
    fn crossing_dials_leave_one_connection_and_the_same_on_both_ends() {
        let now = Instant::now();
        for dialer_of_first in ["a", "z"] {
            let mut kept = Vec::new();
            for (me, other) in [("a", "z"), ("z", "a")] {
                for order in [[0, 1], [1, 0]] {
                    let table = PeerTable::new(me);
                    // Connection 0 was dialed by `dialer_of_first`, connection 1 by the other one.
                    let dialers = if dialer_of_first == "a" { ["a", "z"] } else { ["z", "a"] };
                    let mut places = Vec::new();
                    for connection in order {
                        let direction =
                            if dialers[connection] == me { Direction::Outbound } else { Direction::Inbound };
                        places.push(table.take(info(other, connection as u16 + 1), direction, now));
                    }
                    let port = table.by_id(other).expect("one is left").addr.port();
                    kept.push(dialers[usize::from(port) - 1]);
                    drop(places);
                }
            }
            assert_eq!(kept, ["a"; 4]);
        }
    }

    #[test]
    fn an_old_connection_is_not_replaced_by_a_newcomer() {
        let (table, now) = (PeerTable::new("m"), Instant::now());
        let _old = table.take(info("z", 1), Direction::Inbound, now).expect("free");
        assert!(table.take(info("z", 2), Direction::Outbound, now + CROSSING).is_err());
    }

    #[test]
    fn a_peer_that_does_not_read_fills_its_own_outbox_and_nobody_elses() {
        let (table, now) = (PeerTable::new("m"), Instant::now());
        let _deaf = table.take(info("deaf", 1), Direction::Inbound, now);
        let well = table.take(info("well", 2), Direction::Inbound, now).expect("free");
        let line = vec![b'x'; 1024];
        let most = super::super::outbox::OWN_BYTES / line.len();
        for n in 0..most * 2 {
            let (took, full) = table.broadcast(&line);
            well.outbox.wrote_all();
            assert_eq!((took, full), if n < most { (2, 0) } else { (1, 1) });
        }
        assert_eq!(table.send_to_id("nobody", b"x\n"), Sent::Unknown);
    }
}
