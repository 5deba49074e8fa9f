//! Peers tell each other of peers. Both sides of a connection ask and answer; what is told is hearsay, kept as such within bounds,
//! and dialed only if it is an address that this peer can know of: nobody behind a public address sends us to our own network.

use super::pace::Pace;
use super::Network;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};
use thenodes::events::model::LogLevel;
use thenodes::host::PeerInfo;
use thenodes::network::message::{Message, MessageType};
use thenodes::network::peer_store::PeerRecord;
use thenodes::network::PeerSource;
use tokio::time::MissedTickBehavior;

/// Addresses in one list, told or believed.
pub const MAX_LIST: usize = 256;
/// Lists that a peer may ask for and tell, a second; more is passed over.
const LISTS_PER_S: u32 = 2;

/// Where an address can be reached from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reach {
    /// This machine alone.
    Host,
    /// A private network.
    Private,
    /// Anywhere.
    Public,
    /// Nowhere: unspecified, multicast, documentation.
    Nowhere,
}

fn v6_reach(ip: Ipv6Addr) -> Reach {
    let first = ip.segments()[0];
    match first {
        _ if ip.is_loopback() => Reach::Host,
        _ if ip.is_unspecified() || ip.is_multicast() => Reach::Nowhere,
        0xfc00..=0xfdff | 0xfe80..=0xfebf => Reach::Private,
        0x2001 if ip.segments()[1] == 0x0db8 => Reach::Nowhere,
        0x2000..=0x3fff => Reach::Public,
        _ => Reach::Nowhere,
    }
}

/// Where an address can be reached from.
pub fn reach(ip: IpAddr) -> Reach {
    let v4 = match ip {
        IpAddr::V4(v4) => v4,
        IpAddr::V6(v6) => match v6.to_ipv4_mapped() {
            Some(v4) => v4,
            None => return v6_reach(v6),
        },
    };
    let [a, b, ..] = v4.octets();
    if v4.is_loopback() {
        Reach::Host
    } else if v4.is_unspecified() || v4.is_broadcast() || v4.is_documentation() || a == 0 || a >= 224 {
        Reach::Nowhere
    } else if v4.is_private()
        || v4.is_link_local()
        || (a == 100 && (64..128).contains(&b))
        || (a == 198 && (18..20).contains(&b))
    {
        Reach::Private
    } else {
        Reach::Public
    }
}

/// True if this address may be dialed on the word of a peer at that one: a peer knows of its own network and of those beyond.
pub fn is_believable(told: SocketAddr, by: IpAddr, private: bool) -> bool {
    let reaches = reach(told.ip());
    told.port() != 0 && reaches != Reach::Nowhere && (private || reaches >= reach(by))
}

/// What a node that listens at this port believes of a list that the peer at that address told.
pub fn believed(told: &[String], by: IpAddr, private: bool, own_port: u16) -> Vec<SocketAddr> {
    let own = |addr: &SocketAddr| addr.port() == own_port && reach(addr.ip()) == Reach::Host;
    told.iter()
        .take(MAX_LIST)
        .filter_map(|text| text.parse::<SocketAddr>().ok())
        .filter(|addr| is_believable(*addr, by, private) && !own(addr))
        .collect()
}

/// When this node asks a peer for peers.
pub(super) struct Asking<'a> {
    network: &'a Network,
    peer: &'a PeerInfo,
    ticks: Option<tokio::time::Interval>,
}

impl<'a> Asking<'a> {
    pub(super) fn new(network: &'a Network, peer: &'a PeerInfo) -> Self {
        let config = &network.net.discovery;
        let ticks = config.ask.then(|| {
            let mut ticks =
                tokio::time::interval_at(tokio::time::Instant::now() + config.every, config.every);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            ticks
        });
        Self { network, peer, ticks }
    }

    /// The first question, which waits for nothing; none, if this node asks nobody.
    pub(super) fn first(&self) -> Option<Message> {
        self.ticks.is_some().then(|| self.question())
    }

    /// The next question; never, if this node asks nobody.
    pub(super) async fn next(&mut self) -> Message {
        match &mut self.ticks {
            None => std::future::pending().await,
            Some(ticks) => ticks.tick().await,
        };
        self.question()
    }

    fn question(&self) -> Message {
        let local = &self.network.local;
        let ask = MessageType::PeerRequest { want: self.network.net.discovery.want };
        Message::new(&local.node_id, &self.peer.node_id, ask, None, Some(local.realm.clone()))
    }
}

/// One peer's lists.
#[derive(Debug)]
pub(super) struct Lists {
    asked: Pace,
    told: Pace,
}

impl Default for Lists {
    fn default() -> Self {
        Self { asked: Pace::new(LISTS_PER_S), told: Pace::new(LISTS_PER_S) }
    }
}

impl Lists {
    /// The answer to a peer that asks for peers: addresses that answered us and that it can reach; none if there is none.
    pub(super) fn answer(
        &mut self,
        network: &Network,
        peer: &PeerInfo,
        want: u16,
        now: Instant,
    ) -> Option<Message> {
        if self.asked.take(1, now) > Duration::ZERO {
            return None;
        }
        let want = usize::from(want).min(MAX_LIST);
        // Hearsay is not passed on: an address that nobody can reach would live for ever in what nodes tell each other.
        let tell = |record: &PeerRecord| {
            record.last_success_epoch.is_some()
                && record.failures < 3
                && record.addr != peer.addr
                && record.node_id.as_deref() != Some(&*peer.node_id)
                && is_believable(record.addr, peer.addr.ip(), false)
        };
        let addrs = network.store.sample_where(want, tell);
        if addrs.is_empty() {
            return None;
        }
        let local = &network.local;
        let list = MessageType::PeerList { peers: addrs.iter().map(ToString::to_string).collect() };
        network.events.network(
            LogLevel::Debug,
            "peer_list_sent",
            Some(peer.addr.to_string()),
            format!("node_id={} count={}", peer.node_id, addrs.len()),
        );
        Some(Message::new(&local.node_id, &peer.node_id, list, None, Some(local.realm.clone())))
    }

    /// Remembers what a peer tells, as hearsay.
    pub(super) fn learn(&mut self, network: &Network, peer: &PeerInfo, told: &[String], now: Instant) {
        if !network.net.discovery.ask || self.told.take(1, now) > Duration::ZERO {
            return;
        }
        let private = network.net.discovery.private;
        let believed = believed(told, peer.addr.ip(), private, network.local.port);
        let added = network.store.learn(&believed, PeerSource::Gossip);
        let detail =
            format!("node_id={} told={} believed={} new={added}", peer.node_id, told.len(), believed.len());
        network.events.network(LogLevel::Debug, "peer_list_received", Some(peer.addr.to_string()), detail);
        if added > 0 {
            network.connector.look_again();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_sends_us_to_a_network_nearer_than_its_own() {
        let ip = |text: &str| text.parse::<IpAddr>().expect("an address");
        let at = |text: &str| SocketAddr::new(ip(text), 1);
        for (told, by, believable) in [
            ("203.0.113.9", "8.8.8.8", false), // documentation
            ("9.9.9.9", "8.8.8.8", true),
            ("10.0.0.1", "8.8.8.8", false),
            ("127.0.0.1", "8.8.8.8", false),
            ("::1", "2a00::1", false),
            ("::ffff:127.0.0.1", "8.8.8.8", false),
            ("169.254.1.1", "8.8.8.8", false),
            ("100.64.0.1", "8.8.8.8", false),
            ("fd00::1", "2a00::1", false),
            ("10.0.0.1", "10.0.0.2", true),
            ("127.0.0.1", "10.0.0.2", false),
            ("127.0.0.1", "127.0.0.1", true),
            ("9.9.9.9", "127.0.0.1", true),
            ("0.0.0.0", "127.0.0.1", false),
            ("224.0.0.1", "127.0.0.1", false),
        ] {
            assert_eq!(is_believable(at(told), ip(by), false), believable, "{told} by {by}");
        }
        assert!(is_believable(at("10.0.0.1"), ip("8.8.8.8"), true), "where the operator says so");
        assert!(!is_believable(SocketAddr::new(ip("9.9.9.9"), 0), ip("8.8.8.8"), true));
    }
}
