//! Known addresses. In the node this is the store itself, bounded at all times; in a plugin the same type asks the node.

use crate::config::Config;
use crate::host::{Host, Request, Response, Text};
use serde::{Deserialize, Serialize};
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

/// Entries kept unless the configuration says otherwise. The entry that succeeded longest ago leaves first.
pub const DEFAULT_MAX_ENTRIES: usize = 1024;

/// Where an address comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum PeerSource {
    /// Configuration.
    Bootstrap,
    /// A handshake with that node.
    Handshake,
    /// Another peer's list.
    Gossip,
    /// A person or a plugin.
    Manual,
}

/// What is known of an address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerRecord {
    /// The address.
    #[serde(with = "crate::host::as_text")]
    pub addr: SocketAddr,
    /// Where it comes from.
    pub source: PeerSource,
    /// Attempts that failed since the last success.
    pub failures: u32,
    /// Last success, seconds since 1970.
    pub last_success_epoch: Option<u64>,
    /// Node id it gave.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_id: Option<String>,
    /// Capabilities it announced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capabilities: Option<Vec<String>>,
}

/// Handle to the known addresses. Cheap to clone; all clones see the same store.
#[derive(Clone)]
pub struct PeerStore {
    inner: Inner,
}

#[derive(Clone)]
enum Inner {
    Local { records: Arc<Mutex<HashMap<SocketAddr, PeerRecord>>>, max_entries: usize },
    Remote(Arc<dyn Host>),
}

impl fmt::Debug for PeerStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PeerStore")
    }
}

impl Default for PeerStore {
    fn default() -> Self {
        Self::new()
    }
}

impl PeerStore {
    /// An empty store in this process.
    pub fn new() -> Self {
        Self::with_capacity(DEFAULT_MAX_ENTRIES)
    }

    /// An empty store in this process that never holds more than `max_entries`.
    pub fn with_capacity(max_entries: usize) -> Self {
        Self { inner: Inner::Local { records: Arc::default(), max_entries: max_entries.max(1) } }
    }

    /// The store of another process.
    pub fn remote(host: Arc<dyn Host>) -> Self {
        Self { inner: Inner::Remote(host) }
    }

    /// A store in this process that knows the bootstrap nodes of the configuration that are plain addresses.
    pub async fn from_config(config: &Config) -> Self {
        let store = Self::new();
        for addr in config.bootstrap_nodes.iter().flatten().filter_map(|node| node.parse().ok()) {
            store.insert(addr, PeerSource::Bootstrap).await;
        }
        store
    }

    /// Remembers an address; what is known of it stays.
    pub async fn insert(&self, addr: SocketAddr, source: PeerSource) {
        match &self.inner {
            // What the operator wrote is the strongest word.
            Inner::Local { .. } => self.update(addr, source, |record| {
                if source == PeerSource::Bootstrap {
                    record.source = source;
                }
            }),
            Inner::Remote(host) => tell(host, Request::StoreInsert { addr: Text(addr), source }).await,
        }
    }

    /// Remembers many.
    pub async fn bulk_insert(&self, addrs: impl IntoIterator<Item = SocketAddr>, source: PeerSource) {
        for addr in addrs {
            self.insert(addr, source).await;
        }
    }

    /// Notes that this address answered.
    pub async fn mark_success(&self, addr: &SocketAddr) {
        self.mark_success_with_meta(addr, None, None).await;
    }

    /// Notes that this address answered, and what it said of itself.
    pub async fn mark_success_with_meta(
        &self,
        addr: &SocketAddr,
        node_id: Option<String>,
        capabilities: Option<Vec<String>>,
    ) {
        match &self.inner {
            Inner::Local { .. } => self.update(*addr, PeerSource::Handshake, |record| {
                record.failures = 0;
                record.last_success_epoch =
                    SystemTime::now().duration_since(UNIX_EPOCH).ok().map(|t| t.as_secs());
                record.node_id = node_id.or(record.node_id.take());
                record.capabilities = capabilities.or(record.capabilities.take());
            }),
            Inner::Remote(host) => {
                tell(host, Request::StoreSuccess { addr: Text(*addr), node_id, capabilities }).await;
            }
        }
    }

    /// Notes that this address did not answer.
    pub async fn mark_failure(&self, addr: &SocketAddr) {
        match &self.inner {
            Inner::Local { .. } => self.update(*addr, PeerSource::Manual, |record| {
                record.failures = record.failures.saturating_add(1);
            }),
            Inner::Remote(host) => tell(host, Request::StoreFailure { addr: Text(*addr) }).await,
        }
    }

    /// Up to `count` random addresses that are not in `exclude`.
    pub async fn sample(&self, count: usize, exclude: &HashSet<SocketAddr>) -> Vec<SocketAddr> {
        match &self.inner {
            Inner::Local { records, .. } => {
                let records = records.lock().unwrap_or_else(PoisonError::into_inner);
                let mut addrs: Vec<_> = records.keys().filter(|a| !exclude.contains(a)).copied().collect();
                // A fresh hasher is a fresh random order, which is all a sample needs.
                let order = RandomState::new();
                addrs.sort_by_cached_key(|addr| order.hash_one(addr));
                addrs.truncate(count);
                addrs
            }
            Inner::Remote(host) => {
                let count = u32::try_from(count).unwrap_or(u32::MAX);
                let request =
                    Request::StoreSample { count, exclude: exclude.iter().copied().map(Text).collect() };
                match host.call(request).await {
                    Ok(Response::Addrs(addrs)) => addrs.into_iter().map(|addr| addr.0).collect(),
                    _ => Vec::new(),
                }
            }
        }
    }

    /// Up to `count` random addresses of a store in this process whose records satisfy a condition.
    pub fn sample_where(&self, count: usize, mut wanted: impl FnMut(&PeerRecord) -> bool) -> Vec<SocketAddr> {
        let Inner::Local { records, .. } = &self.inner else { return Vec::new() };
        let records = records.lock().unwrap_or_else(PoisonError::into_inner);
        let mut addrs: Vec<_> = records.values().filter(|record| wanted(record)).map(|r| r.addr).collect();
        let order = RandomState::new();
        addrs.sort_by_cached_key(|addr| order.hash_one(addr));
        addrs.truncate(count);
        addrs
    }

    /// Remembers addresses by hearsay, in a store in this process: what ever answered makes no room for them. How many are new.
    pub fn learn(&self, addrs: &[SocketAddr], source: PeerSource) -> usize {
        let Inner::Local { records, max_entries } = &self.inner else { return 0 };
        let mut new = 0;
        for addr in addrs {
            let room = {
                let records = records.lock().unwrap_or_else(PoisonError::into_inner);
                !records.contains_key(addr)
                    && (records.len() < *max_entries
                        || records.values().any(|record| record.last_success_epoch.is_none()))
            };
            if room {
                self.update(*addr, source, |_| {});
                new += 1;
            }
        }
        new
    }

    /// Notes where a peer that dialed us says that it listens, in a store in this process: one address for each node id, and a
    /// bounded number for each IP address. False if it is not noted.
    pub fn note_listener(&self, addr: &SocketAddr, node_id: String, capabilities: Vec<String>) -> bool {
        /// Nodes behind one address that are believed to listen.
        const MOST: usize = 64;
        let Inner::Local { records, .. } = &self.inner else { return false };
        {
            let mut records = records.lock().unwrap_or_else(PoisonError::into_inner);
            records.retain(|at, record| {
                at == addr
                    || record.source != PeerSource::Handshake
                    || record.node_id.as_deref() != Some(&*node_id)
            });
            let here = records.values().filter(|record| record.addr.ip() == addr.ip()).count();
            if here >= MOST && !records.contains_key(addr) {
                return false;
            }
        }
        self.update(*addr, PeerSource::Handshake, |record| {
            record.failures = 0;
            record.last_success_epoch =
                SystemTime::now().duration_since(UNIX_EPOCH).ok().map(|t| t.as_secs());
            record.node_id = Some(node_id);
            record.capabilities = Some(capabilities);
        });
        true
    }

    /// Takes records of an earlier run into a store in this process, the first ones first.
    pub fn restore(&self, saved: impl IntoIterator<Item = PeerRecord>) {
        let Inner::Local { records, max_entries } = &self.inner else { return };
        let mut records = records.lock().unwrap_or_else(PoisonError::into_inner);
        for record in saved {
            if records.len() >= *max_entries {
                break;
            }
            records.entry(record.addr).or_insert(record);
        }
    }

    /// The node id that an address gave, in a store in this process.
    pub fn node_id_of(&self, addr: &SocketAddr) -> Option<String> {
        let Inner::Local { records, .. } = &self.inner else { return None };
        records.lock().unwrap_or_else(PoisonError::into_inner).get(addr)?.node_id.clone()
    }

    /// The address at which a node with this id answered, in a store in this process; the one that did last.
    pub fn addr_of(&self, node_id: &str) -> Option<SocketAddr> {
        let Inner::Local { records, .. } = &self.inner else { return None };
        let records = records.lock().unwrap_or_else(PoisonError::into_inner);
        let of = records.values().filter(|record| record.node_id.as_deref() == Some(node_id));
        of.max_by_key(|record| (record.last_success_epoch, record.addr)).map(|record| record.addr)
    }

    /// Forgets addresses whose last success is older than `ttl` seconds at `now` (seconds since 1970), in a store in this process. A node
    /// that is connected succeeds all the time. An address that never answered has no age: the bound of the store, and failures, are for
    /// those.
    pub fn expire(&self, now: u64, ttl: u64, connected: &HashSet<String>) {
        let Inner::Local { records, .. } = &self.inner else { return };
        records.lock().unwrap_or_else(PoisonError::into_inner).retain(|_, record| {
            let Some(last) = &mut record.last_success_epoch else { return true };
            if record.node_id.as_ref().is_some_and(|id| connected.contains(id)) {
                *last = now;
            }
            *last >= now.saturating_sub(ttl)
        });
    }

    /// Forgets an address, in a store in this process.
    pub fn forget(&self, addr: &SocketAddr) {
        if let Inner::Local { records, .. } = &self.inner {
            records.lock().unwrap_or_else(PoisonError::into_inner).remove(addr);
        }
    }

    /// All known addresses.
    pub async fn all(&self) -> Vec<SocketAddr> {
        self.records().await.into_iter().map(|record| record.addr).collect()
    }

    /// All that is known, most recent success first.
    pub async fn records(&self) -> Vec<PeerRecord> {
        match &self.inner {
            Inner::Local { records, .. } => {
                let records = records.lock().unwrap_or_else(PoisonError::into_inner);
                let mut list: Vec<_> = records.values().cloned().collect();
                list.sort_by_key(|r| (std::cmp::Reverse(r.last_success_epoch), r.addr));
                list
            }
            Inner::Remote(host) => match host.call(Request::StoreRecords {}).await {
                Ok(Response::Records(records)) => records,
                _ => Vec::new(),
            },
        }
    }

    /// Changes or makes one entry of a local store, dropping the stalest entry when a new one would pass the bound.
    fn update(&self, addr: SocketAddr, source: PeerSource, change: impl FnOnce(&mut PeerRecord)) {
        let Inner::Local { records, max_entries } = &self.inner else { return };
        let mut records = records.lock().unwrap_or_else(PoisonError::into_inner);
        if !records.contains_key(&addr) && records.len() >= *max_entries {
            let stalest = records.values().min_by_key(|r| (r.last_success_epoch, r.addr)).map(|r| r.addr);
            stalest.map(|addr| records.remove(&addr));
        }
        change(records.entry(addr).or_insert(PeerRecord {
            addr,
            source,
            failures: 0,
            last_success_epoch: None,
            node_id: None,
            capabilities: None,
        }));
    }
}

async fn tell(host: &Arc<dyn Host>, request: Request) {
    if let Err(error) = host.call(request).await {
        log::warn!("peer store: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn hearsay_pushes_out_hearsay_and_nothing_that_answered() {
        let store = PeerStore::with_capacity(3);
        let addr = |n: u16| SocketAddr::from(([10, 0, 0, 1], n));
        store.mark_success(&addr(1)).await;
        store.mark_success(&addr(2)).await;
        assert_eq!(store.learn(&[addr(1), addr(3), addr(4)], PeerSource::Gossip), 2);
        store.mark_success(&addr(4)).await;
        assert_eq!(store.learn(&[addr(9)], PeerSource::Gossip), 0);
        let mut left = store.all().await;
        left.sort();
        assert_eq!(left, [addr(1), addr(2), addr(4)]);
        assert_eq!(store.sample_where(9, |record| record.addr.port() > 1).len(), 2);
    }

    #[tokio::test]
    async fn who_dials_us_is_believed_about_one_address_and_few_behind_one_ip() {
        let store = PeerStore::with_capacity(1000);
        let addr = |n: u16| SocketAddr::from(([10, 0, 0, 1], n));
        for n in 1..200 {
            store.note_listener(&addr(n), "same".into(), vec![]);
        }
        assert_eq!(store.all().await, [addr(199)]);
        for n in 1..200 {
            store.note_listener(&addr(n), format!("n{n}"), vec![]);
        }
        assert_eq!(store.all().await.len(), 64);
    }

    #[tokio::test]
    async fn the_store_never_holds_more_than_its_bound_and_keeps_what_answered() {
        let store = PeerStore::with_capacity(10);
        let addr = |n: u16| SocketAddr::from(([10, 0, 0, 1], n));
        store.insert(addr(1), PeerSource::Gossip).await;
        store.mark_success_with_meta(&addr(1), Some("a".into()), None).await;
        store.bulk_insert((2..100).map(addr), PeerSource::Gossip).await;
        assert_eq!(store.all().await.len(), 10);
        let first = &store.records().await[0];
        assert_eq!((first.addr, first.node_id.as_deref()), (addr(1), Some("a")));
        let exclude = HashSet::from([addr(1)]);
        let sample = store.sample(5, &exclude).await;
        assert!(sample.len() == 5 && !sample.contains(&addr(1)));
    }

    #[tokio::test]
    async fn what_answered_too_long_ago_is_forgotten_unless_it_is_connected() {
        let store = PeerStore::new();
        let at = |port: u16| SocketAddr::from(([10, 0, 0, 1], port));
        let record = |port: u16, last: Option<u64>, id: &str| PeerRecord {
            addr: at(port),
            source: PeerSource::Handshake,
            failures: 0,
            last_success_epoch: last,
            node_id: Some(id.into()),
            capabilities: None,
        };
        store.restore([
            record(1, Some(99), "old"),
            record(2, Some(100), "new"),
            record(3, Some(1), "connected"),
            record(4, None, "never"),
        ]);
        store.expire(150, 50, &HashSet::from(["connected".to_owned()]));
        let mut left: Vec<u16> = store.all().await.into_iter().map(|addr| addr.port()).collect();
        left.sort_unstable();
        assert_eq!(left, [2, 3, 4]);
        // It was connected a moment ago, however long before that it came.
        store.expire(160, 50, &HashSet::new());
        left = store.all().await.into_iter().map(|addr| addr.port()).collect();
        left.sort_unstable();
        assert_eq!(left, [3, 4]);
    }
}
