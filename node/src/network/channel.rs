//! A secure channel to a peer: TCP alone, or TLS with the verdict about the peer's certificate. The verdict is enforced in
//! both directions, before a byte of the peer is read, and recorded either way. Trust on first use needs one thing more, the peer's
//! name: there HELLO is read, and nothing of it counts before the verdict ([`Pending`]).

use super::peers::Direction;
use super::Network;
use crate::config::Encryption;
use crate::security::bindings::{Bindings, Meeting};
use crate::security::trust::{Decision, Verdict};
use crate::security::{pki, tls, trust};
use std::io;
use std::net::SocketAddr;
use std::time::{SystemTime, UNIX_EPOCH};
use thenodes::events::model::{LogEvent, LogLevel, TrustDecisionEvent};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

/// Whatever carries bytes.
pub trait Bytes: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Bytes for T {}

/// Why there is no channel.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// The TLS handshake failed.
    #[error("TLS: {0}")]
    Tls(#[from] io::Error),
    /// The peer's certificate is not welcome.
    #[error("certificate refused: {reason}")]
    Untrusted {
        /// Why.
        reason: &'static str,
    },
}

/// A connection on which bytes may flow.
pub struct Secured {
    /// The bytes.
    pub stream: Box<dyn Bytes>,
    /// What the peer's certificate says, if it showed one.
    pub certificate: Option<pki::CertificateFacts>,
    /// The verdict, if it depends on who the peer says it is. Until then nothing of it may count but its name.
    pub pending: Option<Pending>,
}

/// A verdict that waits for the peer's name.
#[must_use = "a peer without a verdict is not let in"]
pub struct Pending {
    event: TrustDecisionEvent,
    fingerprint: String,
    bindings: Bindings,
}

impl Pending {
    /// Decides by what this id came with first, and records that.
    pub async fn decide(self, network: &Network, node_id: &str) -> Result<(), ChannelError> {
        let Pending { mut event, fingerprint, bindings } = self;
        let (id, of) = (node_id.to_owned(), fingerprint.clone());
        let met =
            tokio::task::spawn_blocking(move || bindings.meet(&id, &of)).await.map_err(io::Error::other)?;
        if let Err(error) = &met {
            tracing::error!("first use: {error}");
        }
        let (accepted, reason) = trust::first_use(&met);
        event.reason = reason.into();
        // The command to trust a key, with another word.
        event.override_action = matches!(met, Ok(Meeting::Other { .. })).then(|| {
            let command = network.trust_command.replace("trust add", "trust forget");
            format!("if {node_id} has a new key: {command} {node_id}")
        });
        tell(network, event, accepted);
        if accepted {
            Ok(())
        } else {
            Err(ChannelError::Untrusted { reason })
        }
    }
}

/// Seconds since 1970.
pub(super) fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |t| t.as_secs() as i64)
}

/// What is recorded of a verdict.
pub(super) fn event(
    network: &Network,
    encryption: &Encryption,
    verdict: &Verdict,
    facts: Option<&pki::CertificateFacts>,
    direction: Direction,
    addr: SocketAddr,
) -> TrustDecisionEvent {
    let mendable = matches!(verdict.reason, "not-in-allowlist" | "observe-only");
    TrustDecisionEvent {
        meta: network.events.meta(LogLevel::Info),
        role: direction.word().into(),
        decision: String::new(),
        reason: verdict.reason.into(),
        mode: encryption.policy.mode.event_name().into(),
        fingerprint: facts.map(|facts| facts.fingerprint.clone()),
        pinned_fingerprint_match: verdict.pinned_fingerprint,
        pinned_subject_match: verdict.pinned_subject,
        realm_binding: verdict.realm_binding.into(),
        chain_valid: None,
        chain_reason: None,
        time_valid: verdict.time_valid,
        time_reason: None,
        stored: false.to_string(),
        peer_addr: Some(addr.to_string()),
        realm: Some(network.local.realm.canonical_code()),
        dry_run: false,
        override_action: facts
            .filter(|_| mendable)
            .map(|facts| format!("to trust this peer: {} {}", network.trust_command, facts.fingerprint)),
    }
}

/// The record of a verdict, for the operator and the audit log.
pub(super) fn tell(network: &Network, mut event: TrustDecisionEvent, accepted: bool) {
    event.meta = network.events.meta(if accepted { LogLevel::Info } else { LogLevel::Warn });
    event.decision = if accepted { "Accept" } else { "Reject" }.into();
    network.events.emit(LogEvent::TrustDecision(event));
}

/// Secures a connection as the configuration says.
pub async fn secure(
    network: &Network,
    tcp: TcpStream,
    addr: SocketAddr,
    direction: Direction,
) -> Result<Secured, ChannelError> {
    // Messages are small and each is one write: waiting to fill a segment only delays them.
    let _ = tcp.set_nodelay(true);
    let Some((tls, encryption)) = &network.security else {
        return Ok(Secured { stream: Box::new(tcp), certificate: None, pending: None });
    };
    let mut stream = match direction {
        Direction::Inbound => tls.accept(tcp).await?,
        Direction::Outbound => tls.connect(tcp, addr).await?,
    };
    let certificate = tls::peer_certificate(&stream);
    let facts = certificate.as_ref().map(|certificate| pki::facts(certificate));
    // The directory is read anew for each handshake, off the workers, so that a newly trusted peer needs no restart.
    let dir = encryption.trusted_dir.clone();
    let trusted = tokio::task::spawn_blocking(move || pki::trusted(&dir)).await.map_err(io::Error::other)?;
    if let Err(error) = &trusted {
        tracing::error!("trusted certificates: {error}");
    }
    let policy = &encryption.policy;
    let verdict =
        trust::judge(policy, facts.as_ref(), trusted.as_ref().ok(), &network.local.realm.name, now());
    let mut stored = false;
    let keeps = policy.mode.keeps_strangers(policy.store_observed);
    let known =
        trusted.as_ref().ok().zip(facts.as_ref()).is_some_and(|(set, of)| set.contains(&of.fingerprint));
    if let (true, Some(facts), Some(certificate)) = (keeps && !known, &facts, &certificate) {
        let (dir, fingerprint, der) =
            (encryption.observed_dir.clone(), facts.fingerprint.clone(), certificate.to_vec());
        let written = tokio::task::spawn_blocking(move || pki::observe(&dir, &fingerprint, &der)).await;
        stored = matches!(written, Ok(Ok(true)));
    }
    let mut event = event(network, encryption, &verdict, facts.as_ref(), direction, addr);
    event.stored = stored.to_string();
    match (verdict.decision, &facts) {
        (Decision::Accept, _) => {
            tell(network, event, true);
            Ok(Secured { stream: Box::new(stream), certificate: facts, pending: None })
        }
        (Decision::AskMemory, Some(of)) => {
            let fingerprint = of.fingerprint.clone();
            let bindings = Bindings::below(&encryption.observed_dir);
            let pending = Some(Pending { event, fingerprint, bindings });
            Ok(Secured { stream: Box::new(stream), certificate: facts, pending })
        }
        (Decision::Reject | Decision::AskMemory, _) => {
            tell(network, event, false);
            // A close_notify tells the peer that this was meant; without it upstream keeps waiting.
            let _ = tokio::io::AsyncWriteExt::shutdown(&mut stream).await;
            Err(ChannelError::Untrusted { reason: verdict.reason })
        }
    }
}
