//! Which addresses this node dials of its own accord: as many connections as the operator wants, from what is known, each address
//! after a growing, jittered pause. Bootstrap nodes have tasks of their own ([`dialer`]); this is for all others.

use super::dialer::{self, pause};
use super::discovery::{reach, Reach};
use super::greeting::Outcome;
use super::pace::Pace;
use super::peers::Direction;
use super::Network;
use crate::network::clock;
use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use thenodes::network::peer_store::PeerRecord;
use thenodes::network::PeerSource;
use tokio::sync::{watch, Notify};
use tokio::task::JoinSet;

/// Addresses that are dialed at the same time.
const AT_ONCE: usize = 4;
/// Addresses that are wanted at once.
const MAX_WANTED: usize = 64;
/// Addresses that are dialed in a second.
const DIALS_PER_S: u32 = 8;
/// How often the connector looks, if nothing happens.
const LOOK: Duration = Duration::from_secs(5);
/// How long after somebody came or went it looks: many who come and go cost one look together.
const SETTLED: Duration = Duration::from_millis(50);
/// Addresses whose failures are remembered.
const MAX_TRIED: usize = 4096;
/// Connections to one network, of those that this node makes of its own accord. (Loopback is no network.)
const PER_SUBNET: usize = 4;

/// What is known of attempts.
#[derive(Debug, Clone, Copy)]
struct Tried {
    failures: u32,
    not_before: Instant,
}

/// The connector's memory, and the way to wake it.
#[derive(Debug, Default)]
pub struct Connector {
    tried: Mutex<HashMap<SocketAddr, Tried>>,
    /// Addresses of nodes that somebody wants to reach now, whatever the target.
    wanted: Mutex<HashSet<SocketAddr>>,
    wake: Notify,
}

/// A network: /24 of IPv4, /48 of IPv6.
pub fn subnet(ip: IpAddr) -> [u8; 6] {
    match ip.to_canonical() {
        IpAddr::V4(v4) => {
            let [a, b, c, _] = v4.octets();
            [4, a, b, c, 0, 0]
        }
        IpAddr::V6(v6) => {
            let octets = v6.octets();
            [octets[0], octets[1], octets[2], octets[3], octets[4], octets[5]]
        }
    }
}

impl Connector {
    /// Something became known that may be dialed.
    pub fn look_again(&self) {
        self.wake.notify_one();
    }

    /// Somebody has a message for the node at this address: it is dialed beyond the target, after its pause like any other.
    pub fn want(&self, addr: SocketAddr) {
        let mut wanted = self.wanted.lock().unwrap_or_else(PoisonError::into_inner);
        if wanted.len() < MAX_WANTED && wanted.insert(addr) {
            self.wake.notify_one();
        }
    }

    /// Those that are wanted and may be dialed now.
    fn take_wanted(&self, busy: &HashSet<SocketAddr>, now: Instant) -> Vec<SocketAddr> {
        let mut wanted = self.wanted.lock().unwrap_or_else(PoisonError::into_inner);
        if wanted.is_empty() {
            return Vec::new();
        }
        let tried = self.tried.lock().unwrap_or_else(PoisonError::into_inner);
        let waits = |addr: &SocketAddr| tried.get(addr).is_some_and(|tried| tried.not_before > now);
        wanted.drain().filter(|addr| !busy.contains(addr) && !waits(addr)).collect()
    }

    /// What may be dialed now. Pure but for the memory of attempts.
    fn choose(
        &self,
        records: &[PeerRecord],
        connected: &HashSet<String>,
        busy: &HashSet<SocketAddr>,
        subnets: &HashMap<[u8; 6], usize>,
        attempts: u32,
        now: Instant,
    ) -> Vec<SocketAddr> {
        let tried = self.tried.lock().unwrap_or_else(PoisonError::into_inner);
        let mut subnets = subnets.clone();
        let mut chosen = Vec::new();
        for record in records {
            let known = record.node_id.as_ref().is_some_and(|id| connected.contains(id));
            // Bootstrap nodes are dialed by their own tasks.
            if known || busy.contains(&record.addr) || record.source == PeerSource::Bootstrap {
                continue;
            }
            let waits = tried
                .get(&record.addr)
                .is_some_and(|tried| tried.failures > attempts || tried.not_before > now);
            if waits || reach(record.addr.ip()) == Reach::Nowhere {
                continue;
            }
            let count = subnets.entry(subnet(record.addr.ip())).or_default();
            if *count >= PER_SUBNET && reach(record.addr.ip()) != Reach::Host {
                continue;
            }
            *count += 1;
            chosen.push(record.addr);
        }
        chosen
    }

    /// What became of an attempt.
    fn tried(&self, addr: SocketAddr, succeeded: bool, network: &Network, now: Instant) {
        let mut tried = self.tried.lock().unwrap_or_else(PoisonError::into_inner);
        if tried.len() >= MAX_TRIED && !tried.contains_key(&addr) {
            tried.retain(|_, tried| tried.not_before > now);
            if tried.len() >= MAX_TRIED {
                return;
            }
        }
        let entry = tried.entry(addr).or_insert(Tried { failures: 0, not_before: now });
        entry.failures = if succeeded { 0 } else { entry.failures.saturating_add(1) };
        entry.not_before =
            now + pause(&network.net.connecting, entry.failures.saturating_sub(1), dialer::chance());
    }
}

/// Waits until somebody came or went, and a little longer.
async fn settled(changes: &mut watch::Receiver<u64>) {
    let _ = changes.changed().await; // an error is the end of the network, and of this task
    tokio::time::sleep(SETTLED).await;
}

/// Dials until the network ends.
pub async fn run(network: Arc<Network>) {
    let (connector, config) = (&network.connector, &network.net);
    let mut dials: JoinSet<(SocketAddr, bool)> = JoinSet::new();
    let mut pace = Pace::new(DIALS_PER_S);
    let mut busy: HashSet<SocketAddr> = HashSet::new();
    let mut changes = network.peers.changes();
    loop {
        tokio::select! {
            Some(done) = dials.join_next() => {
                if let Ok((addr, lasted)) = done {
                    busy.remove(&addr);
                    // A connection that lasted is made again, after a pause like any other.
                    connector.tried(addr, lasted, &network, clock());
                }
            }
            () = connector.wake.notified() => {}
            () = settled(&mut changes) => {}
            () = tokio::time::sleep(LOOK) => {}
        }
        let mut spawn = |addr: SocketAddr, busy: &mut HashSet<SocketAddr>| {
            busy.insert(addr);
            let network = network.clone();
            dials.spawn(async move {
                let begun = clock();
                let outcome = dial(&network, addr).await;
                let lasted = clock().saturating_duration_since(begun) >= dialer::LASTED;
                (addr, lasted && matches!(outcome, Outcome::Ended { .. }))
            });
        };
        for addr in connector.take_wanted(&busy, clock()) {
            spawn(addr, &mut busy);
        }
        if network.peers.count().0 >= config.discovery.target_peers {
            continue;
        }
        let peers = network.peers.list();
        let room = config.discovery.target_peers.saturating_sub(peers.len());
        let greeting =
            busy.len().saturating_sub(peers.iter().filter(|peer| busy.contains(&peer.addr)).count());
        let room = room.min(AT_ONCE).saturating_sub(greeting);
        if room == 0 {
            continue;
        }
        let connected: HashSet<String> = peers.iter().map(|peer| peer.node_id.clone()).collect();
        let mut subnets: HashMap<[u8; 6], usize> = HashMap::new();
        for peer in &peers {
            *subnets.entry(subnet(peer.addr.ip())).or_default() += 1;
        }
        let mut taken = busy.clone();
        taken.extend(peers.iter().map(|peer| peer.addr));
        let records = network.store.records().await;
        // What nobody ever reached is believed only where the operator asked for it.
        let records: Vec<PeerRecord> = records
            .into_iter()
            .filter(|record| config.discovery.ask || record.source != PeerSource::Gossip)
            .filter(|record| record.node_id.as_ref().is_none_or(|id| !network.held_off(id)))
            .collect();
        let attempts = config.connecting.attempts;
        let chosen = connector.choose(&records, &connected, &taken, &subnets, attempts, clock());
        for addr in chosen.into_iter().take(room) {
            spawn(addr, &mut busy);
            // What peers tell must not make this node knock at many doors.
            let pause = pace.take(1, clock());
            if !pause.is_zero() {
                tokio::time::sleep(pause).await;
            }
        }
    }
}

/// Dials one address and carries the connection to its end.
async fn dial(network: &Network, addr: SocketAddr) -> Outcome {
    match dialer::connect(network, addr).await {
        Ok(link) => super::greeting::carry(network, link, addr, Direction::Outbound, ()).await,
        Err(error) => {
            network.store.mark_failure(&addr).await;
            Outcome::NotReached(error)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(addr: &str, id: Option<&str>, source: PeerSource) -> PeerRecord {
        PeerRecord {
            addr: addr.parse().expect("an address"),
            source,
            failures: 0,
            last_success_epoch: None,
            node_id: id.map(Into::into),
            capabilities: None,
        }
    }

    #[test]
    fn no_network_gets_more_than_its_share_and_nobody_is_dialed_twice() {
        let connector = Connector::default();
        let now = Instant::now();
        let mut records: Vec<_> =
            (1..10u8).map(|n| record(&format!("9.9.9.{n}:1"), None, PeerSource::Gossip)).collect();
        records.push(record("8.8.8.8:1", Some("here"), PeerSource::Gossip));
        records.push(record("7.7.7.7:1", None, PeerSource::Bootstrap));
        records.push(record("6.6.6.6:1", None, PeerSource::Gossip));
        let connected = HashSet::from(["here".to_owned()]);
        let busy = HashSet::from(["6.6.6.6:1".parse().expect("an address")]);
        let chosen = connector.choose(&records, &connected, &busy, &HashMap::new(), 8, now);
        assert_eq!(chosen.len(), PER_SUBNET);
        let full = HashMap::from([(subnet("9.9.9.1".parse().expect("an address")), PER_SUBNET)]);
        assert!(connector.choose(&records, &connected, &busy, &full, 8, now).is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn many_who_come_and_go_at_once_cost_one_look() {
        let (sender, mut changes) = watch::channel(0);
        let come_and_go = async {
            for _ in 0..1000 {
                sender.send_modify(|n| *n += 1);
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        let looks = async {
            let mut looks = 0;
            while tokio::time::timeout(Duration::from_secs(1), settled(&mut changes)).await.is_ok() {
                looks += 1;
            }
            looks
        };
        let ((), looks) = tokio::join!(come_and_go, looks);
        assert!((10..=25).contains(&looks), "{looks}");
    }
}
