//! A secure channel to a peer: TCP alone, or TLS with the verdict about the peer's certificate. The verdict is enforced in
//! both directions, before a byte of the peer is read, and recorded either way.

use super::peers::Direction;
use super::Network;
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

/// Secures a connection as the configuration says.
pub async fn secure(
    network: &Network,
    tcp: TcpStream,
    addr: SocketAddr,
    direction: Direction,
) -> Result<(Box<dyn Bytes>, Option<pki::CertificateFacts>), ChannelError> {
    // Messages are small and each is one write: waiting to fill a segment only delays them.
    let _ = tcp.set_nodelay(true);
    let Some((tls, encryption)) = &network.security else { return Ok((Box::new(tcp), None)) };
    let stream = match direction {
        Direction::Inbound => tls.accept(tcp).await?,
        Direction::Outbound => tls.connect(tcp, addr).await?,
    };
    let certificate = tls::peer_certificate(&stream);
    let facts = certificate.as_ref().map(|certificate| pki::facts(certificate));
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |t| t.as_secs() as i64);
    // The directory is read anew for each handshake, off the workers, so that a newly trusted peer needs no restart.
    let dir = encryption.trusted_dir.clone();
    let trusted = tokio::task::spawn_blocking(move || pki::trusted(&dir)).await.map_err(io::Error::other)?;
    if let Err(error) = &trusted {
        tracing::error!("trusted certificates: {error}");
    }
    let policy = &encryption.policy;
    let verdict = trust::judge(policy, facts.as_ref(), trusted.as_ref().ok(), &network.local.realm.name, now);
    let mut stored = false;
    if let (true, Some(facts), Some(certificate)) = (policy.store_observed, &facts, &certificate) {
        let (dir, fingerprint, der) =
            (encryption.observed_dir.clone(), facts.fingerprint.clone(), certificate.to_vec());
        let written = tokio::task::spawn_blocking(move || pki::observe(&dir, &fingerprint, &der)).await;
        stored = matches!(written, Ok(Ok(true)));
    }
    let level = if verdict.accepted { LogLevel::Info } else { LogLevel::Warn };
    let mendable = verdict.reason == "not-in-allowlist";
    let event = TrustDecisionEvent {
        meta: network.events.meta(level),
        role: direction.word().into(),
        decision: if verdict.accepted { "Accept" } else { "Reject" }.into(),
        reason: verdict.reason.into(),
        mode: policy.mode.event_name().into(),
        fingerprint: facts.as_ref().map(|facts| facts.fingerprint.clone()),
        pinned_fingerprint_match: verdict.pinned_fingerprint,
        pinned_subject_match: verdict.pinned_subject,
        realm_binding: verdict.realm_binding.into(),
        chain_valid: None,
        chain_reason: None,
        time_valid: verdict.time_valid,
        time_reason: None,
        stored: stored.to_string(),
        peer_addr: Some(addr.to_string()),
        realm: Some(network.local.realm.canonical_code()),
        dry_run: false,
        override_action: facts
            .as_ref()
            .filter(|_| mendable)
            .map(|facts| format!("to trust this peer: {} {}", network.trust_command, facts.fingerprint)),
    };
    network.events.emit(LogEvent::TrustDecision(event));
    if verdict.accepted {
        Ok((Box::new(stream), facts))
    } else {
        // A close_notify tells the peer that this was meant; without it upstream keeps waiting.
        let mut stream = stream;
        let _ = tokio::io::AsyncWriteExt::shutdown(&mut stream).await;
        Err(ChannelError::Untrusted { reason: verdict.reason })
    }
}
