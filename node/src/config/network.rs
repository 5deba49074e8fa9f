//! How an operator has the network run: `[network.*]` and `[discovery]`. The keys and their defaults are upstream's where it has
//! them, in both spellings that exist; what upstream clamps in silence is an error here.

use super::error::{ConfigError, Origin};
use super::is_node_id;
use serde::Deserialize;
use serde_spanned::Spanned;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Asking peers for peers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Discovery {
    /// Ask, and dial what is learned.
    pub ask: bool,
    /// Time between two questions to one peer.
    pub every: Duration,
    /// Addresses asked for at once.
    pub want: u16,
    /// Connections that this node makes of its own accord.
    pub target_peers: usize,
    /// Dial private and loopback addresses even if a public peer told them.
    pub private: bool,
}

/// Relaying for others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Relaying {
    /// Forward frames between peers.
    pub enabled: bool,
    /// Keep frames for peers that are away.
    pub store_forward: bool,
    /// Frames kept for one target.
    pub per_target: usize,
    /// Frames kept in all.
    pub global: usize,
    /// Bytes kept in all; one target may have a quarter.
    pub bytes: usize,
    /// How long a frame is kept at most.
    pub ttl: Duration,
    /// Hand frames for absent targets to the relay that the target's name selects.
    pub rendezvous: bool,
    /// Relays whose word counts when they hand on what others sent through them.
    pub relays: Vec<String>,
    /// File in which kept frames survive a restart; `None` keeps them in memory alone.
    pub journal: Option<PathBuf>,
    /// Frames a second of one peer; it is held up beyond. Zero is no limit.
    pub frames_per_s: u32,
}

/// What is known of addresses, on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Persistence {
    /// The file; `None` keeps addresses in memory alone.
    pub path: Option<PathBuf>,
    /// Entries kept, in memory and on disk.
    pub max_entries: usize,
    /// Age of the last success at which an entry is dropped.
    pub ttl: Duration,
    /// Time between two saves.
    pub every: Duration,
}

/// The way to a node that is not connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strategy {
    /// Only its own connection.
    DirectOnly,
    /// Its own connection, else a relay.
    DirectThenRelay,
    /// Always a relay.
    RelayOnly,
}

/// Connections: how they are made, watched and made again.
#[derive(Debug, Clone, PartialEq)]
pub struct Connecting {
    /// The way to a node.
    pub strategy: Strategy,
    /// A TCP connection must be there by then.
    pub connect: Duration,
    /// A peer is asked whether it lives.
    pub probe: Duration,
    /// A peer that answered probes and says nothing for so long is gone.
    pub silence: Duration,
    /// A peer that never answered a probe, as those of 0.2, and says nothing for so long is gone.
    pub idle: Duration,
    /// First pause before a lost connection is made again.
    pub base: Duration,
    /// Longest pause.
    pub max: Duration,
    /// Growth of the pause.
    pub multiplier: f64,
    /// Attempts to a node that is no bootstrap node; those are dialed for ever.
    pub attempts: u32,
    /// By how much of itself a pause is moved at random.
    pub jitter: f64,
}

/// Delivery classes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deliveries {
    /// Patience for messages without guarantee.
    pub plain: Duration,
    /// Patience for reliable ones.
    pub reliable: Duration,
    /// Patience for ordered ones.
    pub ordered: Duration,
    /// Repetitions of a reliable message.
    pub reliable_retries: u32,
    /// Repetitions of an ordered message.
    pub ordered_retries: u32,
    /// Time between two repetitions.
    pub retry: Duration,
    /// How long a message's identity is remembered.
    pub dedup: Duration,
    /// Messages of one stream that wait for an earlier one.
    pub buffered: usize,
}

/// Bounds of connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Accepting {
    /// Connections in all.
    pub all: usize,
    /// From one address.
    pub per_address: usize,
    /// From one /24 (IPv4) or /48 (IPv6). Loopback has none.
    pub per_subnet: usize,
    /// From one address, without a handshake yet; beyond, the oldest of them is closed.
    pub strangers: usize,
    /// Messages a second of one peer that go to plugins; it is held up beyond. Zero is no limit.
    pub messages_per_s: u32,
}

/// All of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Networking {
    /// Asking for peers.
    pub discovery: Discovery,
    /// Relaying.
    pub relay: Relaying,
    /// Peer store.
    pub persistence: Persistence,
    /// Connections.
    pub connecting: Connecting,
    /// Delivery.
    pub delivery: Deliveries,
    /// Bounds.
    pub accepting: Accepting,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawNetwork {
    persistence: Option<RawPersistence>,
    relay: Option<RawRelay>,
    nat: Option<toml::Table>,
    udp: Option<toml::Table>,
    connection_policy: Option<RawConnecting>,
    nat_traversal: Option<toml::Table>,
    delivery: Option<RawDelivery>,
    limits: Option<RawAccepting>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawDiscovery {
    pub(super) enabled: bool,
    request_interval_secs: Option<Spanned<u64>>,
    request_want: Option<Spanned<u64>>,
    target_peers: Option<Spanned<u64>>,
    dial_private: Option<bool>,
}

impl RawDiscovery {
    /// As a plugin suggests it.
    pub(super) fn suggested(enabled: bool, interval: Option<u64>, want: Option<u16>) -> Self {
        let plain = |value| Spanned::new(0..0, value);
        Self {
            enabled,
            request_interval_secs: interval.filter(|n| (1..=86_400).contains(n)).map(plain),
            request_want: want.map(u64::from).filter(|n| (1..=256).contains(n)).map(plain),
            target_peers: None,
            dial_private: None,
        }
    }
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawPersistence {
    enabled: Option<bool>,
    path: Option<PathBuf>,
    max_entries: Option<Spanned<u64>>,
    ttl_secs: Option<Spanned<u64>>,
    save_interval_secs: Option<Spanned<u64>>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRelay {
    enabled: Option<bool>,
    #[serde(alias = "store_forward_enabled")]
    store_forward: Option<bool>,
    queue_max_per_target: Option<Spanned<u64>>,
    queue_max_global: Option<Spanned<u64>>,
    queue_max_mb: Option<Spanned<u64>>,
    ttl_secs: Option<Spanned<u64>>,
    selection: Option<Spanned<String>>,
    selection_enabled: Option<bool>,
    relays: Option<Vec<Spanned<String>>>,
    durable: Option<bool>,
    frames_per_s: Option<Spanned<u64>>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawConnecting {
    strategy: Option<Spanned<String>>,
    direct_tcp_timeout_ms: Option<Spanned<u64>>,
    direct_udp_timeout_ms: Option<u64>,
    punch_timeout_ms: Option<u64>,
    heartbeat_interval_ms: Option<Spanned<u64>>,
    heartbeat_timeout_ms: Option<Spanned<u64>>,
    idle_timeout_ms: Option<Spanned<u64>>,
    reconnect_base_delay_ms: Option<Spanned<u64>>,
    #[serde(alias = "reconnect_delay_multiplier")]
    reconnect_multiplier: Option<Spanned<f64>>,
    reconnect_max_delay_ms: Option<Spanned<u64>>,
    reconnect_max_attempts: Option<Spanned<u64>>,
    reconnect_jitter_ratio: Option<Spanned<f64>>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawDelivery {
    fire_and_forget_timeout_ms: Option<Spanned<u64>>,
    reliable_timeout_ms: Option<Spanned<u64>>,
    ordered_reliable_timeout_ms: Option<Spanned<u64>>,
    reliable_retry_budget: Option<Spanned<u64>>,
    ordered_reliable_retry_budget: Option<Spanned<u64>>,
    dedup_window_secs: Option<Spanned<u64>>,
    ordered_max_buffered_messages: Option<Spanned<u64>>,
    retry_interval_ms: Option<Spanned<u64>>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawAccepting {
    connections: Option<Spanned<u64>>,
    connections_per_address: Option<Spanned<u64>>,
    connections_per_subnet: Option<Spanned<u64>>,
    handshakes_per_address: Option<Spanned<u64>>,
    messages_per_s: Option<Spanned<u64>>,
}

/// A number within its range, or its default.
fn within<T: PartialOrd + Copy + std::fmt::Display>(
    origin: &Origin,
    value: Option<&Spanned<T>>,
    default: T,
    range: std::ops::RangeInclusive<T>,
) -> Result<T, ConfigError> {
    match value {
        None => Ok(default),
        Some(value) if range.contains(value.get_ref()) => Ok(*value.get_ref()),
        Some(value) => {
            let help = format!("from {} to {}; the default is {default}", range.start(), range.end());
            Err(origin.error(value.span(), "out of range", Some(&help)))
        }
    }
}

fn size(n: u64) -> usize {
    usize::try_from(n).unwrap_or(usize::MAX)
}

fn count(n: u64) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

impl RawRelay {
    fn check(&self, origin: &Origin, state_dir: &Path) -> Result<Relaying, ConfigError> {
        let rendezvous = match self.selection.as_ref().map(|word| (word, word.get_ref().as_str())) {
            None => self.selection_enabled.unwrap_or(false),
            Some((_, "rendezvous")) => true,
            Some((_, "none")) => false,
            Some((word, _)) => {
                let help = "use \"none\" or \"rendezvous\"";
                return Err(origin.error(word.span(), "no such selection of relays", Some(help)));
            }
        };
        let relays = self.relays.as_deref().unwrap_or_default();
        if let Some(wrong) = relays.iter().find(|id| !is_node_id(id.get_ref())) {
            let help = "write node ids of relays";
            return Err(origin.error(wrong.span(), "not a node id", Some(help)));
        }
        let durable = self.durable.unwrap_or(false);
        Ok(Relaying {
            enabled: self.enabled.unwrap_or(false),
            store_forward: self.store_forward.unwrap_or(false),
            per_target: size(within(origin, self.queue_max_per_target.as_ref(), 1024, 1..=65_536)?),
            global: size(within(origin, self.queue_max_global.as_ref(), 8192, 1..=1_048_576)?),
            bytes: size(within(origin, self.queue_max_mb.as_ref(), 64, 4..=4096)?) * 1024 * 1024,
            ttl: Duration::from_secs(within(origin, self.ttl_secs.as_ref(), 3600, 1..=2_592_000)?),
            rendezvous,
            relays: relays.iter().map(|id| id.get_ref().clone()).collect(),
            journal: durable.then(|| state_dir.join("relay-queue.bin")),
            frames_per_s: count(within(origin, self.frames_per_s.as_ref(), 0, 0..=10_000_000)?),
        })
    }
}

impl RawConnecting {
    fn check(&self, origin: &Origin, idle: &mut Vec<String>) -> Result<Connecting, ConfigError> {
        let ms = |value: &Option<Spanned<u64>>, default, range| {
            within(origin, value.as_ref(), default, range).map(Duration::from_millis)
        };
        let strategy = match self.strategy.as_ref().map(|word| (word, word.get_ref().as_str())) {
            None | Some((_, "direct_then_relay")) => Strategy::DirectThenRelay,
            Some((_, "direct_only")) => Strategy::DirectOnly,
            Some((_, "relay_only")) => Strategy::RelayOnly,
            Some((_, word @ ("direct_then_udp_then_relay" | "direct_then_punch_then_relay"))) => {
                idle.push(format!(
                    "network.connection_policy.strategy: {word} is direct_then_relay without UDP and punching"
                ));
                Strategy::DirectThenRelay
            }
            Some((word, _)) => {
                let help = "use \"direct_only\", \"direct_then_relay\" or \"relay_only\"";
                return Err(origin.error(word.span(), "no such strategy", Some(help)));
            }
        };
        if self.direct_udp_timeout_ms.is_some() || self.punch_timeout_ms.is_some() {
            idle.push(
                "network.connection_policy: timeouts of UDP and punching, which this release has not".into(),
            );
        }
        let connecting = Connecting {
            strategy,
            connect: ms(&self.direct_tcp_timeout_ms, 3000, 50..=60_000)?,
            probe: ms(&self.heartbeat_interval_ms, 30_000, 100..=3_600_000)?,
            silence: ms(&self.heartbeat_timeout_ms, 90_000, 200..=86_400_000)?,
            idle: ms(&self.idle_timeout_ms, 3_600_000, 200..=86_400_000)?,
            base: ms(&self.reconnect_base_delay_ms, 1000, 10..=3_600_000)?,
            max: ms(&self.reconnect_max_delay_ms, 60_000, 10..=86_400_000)?,
            multiplier: within(origin, self.reconnect_multiplier.as_ref(), 2.0, 1.0..=10.0)?,
            attempts: count(within(origin, self.reconnect_max_attempts.as_ref(), 8, 0..=1_000_000)?),
            jitter: within(origin, self.reconnect_jitter_ratio.as_ref(), 0.2, 0.0..=1.0)?,
        };
        if let Some(value) =
            self.heartbeat_timeout_ms.as_ref().filter(|_| connecting.silence < connecting.probe)
        {
            let help = "a peer is asked once in heartbeat_interval_ms, and needs time for its answer";
            return Err(origin.error(value.span(), "less than heartbeat_interval_ms", Some(help)));
        }
        Ok(connecting)
    }
}

impl RawDelivery {
    fn check(&self, origin: &Origin) -> Result<Deliveries, ConfigError> {
        let ms = |value: &Option<Spanned<u64>>, default| {
            within(origin, value.as_ref(), default, 10..=600_000).map(Duration::from_millis)
        };
        let retries = |value: &Option<Spanned<u64>>| within(origin, value.as_ref(), 3, 0..=100).map(count);
        Ok(Deliveries {
            plain: ms(&self.fire_and_forget_timeout_ms, 1000)?,
            reliable: ms(&self.reliable_timeout_ms, 5000)?,
            ordered: ms(&self.ordered_reliable_timeout_ms, 10_000)?,
            reliable_retries: retries(&self.reliable_retry_budget)?,
            ordered_retries: retries(&self.ordered_reliable_retry_budget)?,
            retry: ms(&self.retry_interval_ms, 500)?,
            dedup: Duration::from_secs(within(origin, self.dedup_window_secs.as_ref(), 3600, 1..=604_800)?),
            buffered: size(within(origin, self.ordered_max_buffered_messages.as_ref(), 1024, 1..=65_536)?),
        })
    }
}

impl RawAccepting {
    fn check(&self, origin: &Origin) -> Result<Accepting, ConfigError> {
        let number = |value: &Option<Spanned<u64>>, default, most| {
            within(origin, value.as_ref(), default, 1..=most).map(size)
        };
        Ok(Accepting {
            all: number(&self.connections, 4096, 1_000_000)?,
            per_address: number(&self.connections_per_address, 64, 1_000_000)?,
            per_subnet: number(&self.connections_per_subnet, 512, 1_000_000)?,
            strangers: number(&self.handshakes_per_address, 16, 1_000_000)?,
            messages_per_s: count(within(origin, self.messages_per_s.as_ref(), 0, 0..=10_000_000)?),
        })
    }
}

/// Checks every value and fills in defaults. What has no effect in this release goes to `idle`, with its reason.
pub(super) fn check(
    origin: &Origin,
    network: Option<&RawNetwork>,
    discovery: Option<&RawDiscovery>,
    state_dir: &Path,
    idle: &mut Vec<String>,
) -> Result<Networking, ConfigError> {
    let none = RawNetwork::default();
    let network = network.unwrap_or(&none);
    for (name, table) in
        [("nat", &network.nat), ("udp", &network.udp), ("nat_traversal", &network.nat_traversal)]
    {
        if table.is_some() {
            idle.push(format!("network.{name}: not in this release"));
        }
    }
    let file = network.persistence.clone().unwrap_or_default();
    let asks = discovery.cloned().unwrap_or_default();
    Ok(Networking {
        discovery: Discovery {
            ask: asks.enabled,
            every: Duration::from_secs(within(origin, asks.request_interval_secs.as_ref(), 90, 1..=86_400)?),
            want: u16::try_from(within(origin, asks.request_want.as_ref(), 16, 1..=256)?).unwrap_or(256),
            target_peers: size(within(origin, asks.target_peers.as_ref(), 8, 0..=1024)?),
            private: asks.dial_private.unwrap_or(false),
        },
        relay: network.relay.clone().unwrap_or_default().check(origin, state_dir)?,
        persistence: Persistence {
            path: file
                .enabled
                .unwrap_or(false)
                .then(|| file.path.clone().unwrap_or_else(|| state_dir.join("peers.json"))),
            max_entries: size(within(origin, file.max_entries.as_ref(), 1024, 1..=65_536)?),
            ttl: Duration::from_secs(within(origin, file.ttl_secs.as_ref(), 604_800, 1..=315_360_000)?),
            every: Duration::from_secs(within(origin, file.save_interval_secs.as_ref(), 60, 1..=86_400)?),
        },
        connecting: network.connection_policy.clone().unwrap_or_default().check(origin, idle)?,
        delivery: network.delivery.clone().unwrap_or_default().check(origin)?,
        accepting: network.limits.clone().unwrap_or_default().check(origin)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Raw;

    fn written(text: &str) -> Result<Networking, String> {
        let config = Raw::parse(Path::new("c.toml"), text).and_then(Raw::validate);
        config.map(|config| config.networking).map_err(|error| error.to_string())
    }

    #[test]
    fn nothing_written_relays_nothing_and_asks_nobody() {
        let net = written("").expect("valid");
        assert!(!net.relay.enabled && !net.relay.store_forward && !net.discovery.ask);
        assert_eq!((net.persistence.path, net.connecting.strategy), (None, Strategy::DirectThenRelay));
    }

    #[test]
    fn both_spellings_of_the_relay_keys_count() {
        let seed = "[network.relay]\nenabled = true\nstore_forward_enabled = true\nselection_enabled = true";
        let code = "[network.relay]\nenabled = true\nstore_forward = true\nselection = \"rendezvous\"";
        assert_eq!(written(seed), written(code));
        assert!(written(code).is_ok_and(|net| net.relay.rendezvous && net.relay.store_forward));
    }

    #[test]
    fn what_cannot_be_is_an_error_with_its_place() {
        for wrong in [
            "[network.relay]\nselection = \"best\"",
            "[network.relay]\nqueue_max_global = 0",
            "[network.persistence]\nsave_interval_secs = 0",
            "[network.connection_policy]\nstrategy = \"direct\"",
            "[network.connection_policy]\nheartbeat_timeout_ms = 1000",
            "[network.connection_policy]\nreconnect_jitter_ratio = 2.0",
            "[network.delivery]\nretry_interval_ms = 0",
            "[network.limits]\nconnections = 0",
            "[network.limits]\nconections = 1",
        ] {
            let error = written(wrong).expect_err(wrong);
            assert!(error.contains("c.toml:2:"), "{wrong}: {error}");
        }
        assert!(written("[discovery]\nenabled = true\nrequest_want = 0").is_err());
    }
}
