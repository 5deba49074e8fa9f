//! A secure channel to a peer: TCP alone, or TLS with the verdict about the peer's certificate. The verdict is enforced in
//! both directions, before a byte of the peer is read, and recorded either way. Trust on first use needs one thing more, the peer's
//! name: there HELLO is read, and nothing of it counts before the verdict ([`Pending`]).

use super::peers::Direction;
use super::rules::{Now, Rules};
use super::socket::Socket;
use super::{Link, Network};
use crate::config::{Encryption, TrustMode};
use crate::events::Emitter;
use crate::security::bindings::{Binding, Bindings, Meeting};
use crate::security::chain::{self, Authorities, Purpose};
use crate::security::directory::Trusted;
use crate::security::trust::{Decision, Verdict};
use crate::security::{directory, pki, tls, trust};
use rustls::pki_types::CertificateDer;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};
use thenodes::events::model::{LogEvent, LogLevel, TrustDecisionEvent};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{watch, RwLock};

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
    /// What is asked of authorities, where they are asked.
    pub chain: Option<Chain>,
    /// An authority vouches for the names in the certificate.
    pub vouched: bool,
    /// Whom the operator trusted at the verdict; with the certificate.
    pub listed: Option<Trusted>,
    /// The verdict, if it depends on who the peer says it is. Until then nothing of it may count but its name.
    pub pending: Option<Pending>,
}

/// A peer's certificates, to be held against the operator's authorities now and again.
#[derive(Debug, Clone)]
pub struct Chain {
    certificates: Vec<CertificateDer<'static>>,
    purpose: Purpose,
}

impl Chain {
    /// Looks for the path to one of these. Reads files: not for a worker.
    pub fn check(&self, authorities: &Authorities, now: i64) -> Result<chain::Anchor, chain::Broken> {
        chain::check(authorities, &self.certificates, self.purpose, now)
    }
}

fn purpose(direction: Direction) -> Purpose {
    match direction {
        Direction::Inbound => Purpose::Client,
        Direction::Outbound => Purpose::Server,
    }
}

/// A verdict that waits for the peer's name. One that is never asked for is a refusal, and recorded as such.
#[must_use = "a peer without a verdict is not let in"]
pub struct Pending {
    events: Emitter,
    forget: String,
    question: Option<Question>,
}

struct Question {
    /// What it was judged by, and what holds when it is asked.
    rules: Arc<Rules>,
    now: watch::Receiver<Now>,
    memory: Arc<RwLock<()>>,
    event: TrustDecisionEvent,
    fingerprint: String,
    bindings: Bindings,
    /// The operator trusts the key, whoever it is.
    trusted: bool,
}

impl Pending {
    /// Refuses, and records why.
    pub fn refuse(mut self, reason: &'static str) {
        if let Some(Question { mut event, .. }) = self.question.take() {
            event.reason = reason.into();
            tell(&self.events, event, false);
        }
    }

    /// Decides by what this id came with first, and records that. `connected`: somebody has the id now. `proved`: the operator says that
    /// it is this key's, and the memory only learns that.
    ///
    /// In a task of its own: whatever becomes of this connection meanwhile, what was remembered is also told.
    pub async fn decide(mut self, node_id: &str, connected: bool, proved: bool) -> Result<(), ChannelError> {
        let refused = ChannelError::Untrusted { reason: UNDECIDED };
        let Some(Question { rules, now, memory, mut event, fingerprint, bindings, trusted }) =
            self.question.take()
        else {
            return Err(refused);
        };
        let (events, id) = (self.events.clone(), node_id.to_owned());
        let forget = format!("if {id} has a new key: {} -- {id}", self.forget);
        let decided = tokio::spawn(async move {
            let _held = memory.read_owned().await;
            if !Arc::ptr_eq(&now.borrow().rules, &rules) {
                // By other rules it might have been sent away, and its id is not to be remembered for what does not hold any more.
                event.reason = RULES_CHANGED.into();
                tell(&events, event, false);
                return Err(ChannelError::Untrusted { reason: RULES_CHANGED });
            }
            let asked = tokio::task::spawn_blocking(move || {
                match bindings.meet(&id, &fingerprint, connected && !proved) {
                    // The memory learns what the operator says.
                    Ok(Meeting::Other { .. }) if proved => {
                        bindings.give(&Binding { node_id: id, fingerprint }).map(|()| Meeting::Again)
                    }
                    met => met,
                }
            });
            let met = asked.await.map_err(io::Error::other)?;
            if let Err(error) = &met {
                tracing::error!("first use: {error}");
            }
            // Whom the operator names needs no memory, and is let in where there is none.
            let (accepted, mut reason) = if proved { (true, "seen-before") } else { trust::first_use(&met) };
            if accepted && trusted {
                reason = "seen-before";
            }
            event.reason = reason.into();
            event.override_action = matches!(met, Ok(Meeting::Other { .. })).then_some(forget);
            tell(&events, event, accepted);
            if accepted {
                Ok(())
            } else {
                Err(ChannelError::Untrusted { reason })
            }
        });
        decided.await.map_err(io::Error::other)?
    }
}

/// The reason of a verdict that was not asked for: no HELLO came, or one that is refused whoever sent it.
const UNDECIDED: &str = "no-valid-hello";
/// The reason where there are other rules by the time of HELLO.
const RULES_CHANGED: &str = "trust-rules-changed";

impl Drop for Pending {
    fn drop(&mut self) {
        if let Some(Question { mut event, .. }) = self.question.take() {
            event.reason = UNDECIDED.into();
            tell(&self.events, event, false);
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
    let mut meta = network.events.meta(LogLevel::Info);
    meta.policy_checksum = Some(encryption.policy.checksum());
    TrustDecisionEvent {
        meta,
        role: direction.word().into(),
        decision: String::new(),
        reason: verdict.reason.into(),
        mode: encryption.policy.mode.event_name().into(),
        fingerprint: facts.map(|facts| facts.fingerprint.clone()),
        pinned_fingerprint_match: verdict.pinned_fingerprint,
        pinned_subject_match: verdict.pinned_subject,
        realm_binding: verdict.realm_binding.into(),
        chain_valid: verdict.chain.map(|chain| chain.is_ok()),
        chain_reason: verdict.chain.and_then(Result::err).map(Into::into),
        time_valid: verdict.time_valid,
        time_reason: verdict.time_reason.map(Into::into),
        stored: false.to_string(),
        peer_addr: Some(addr.to_string()),
        realm: Some(network.local.realm.canonical_code()),
        dry_run: false,
        override_action: facts
            .filter(|_| mendable)
            .map(|facts| format!("to trust this peer: {}trust add {}", network.command, facts.fingerprint)),
    }
}

/// The record of a verdict, for the operator and the audit log.
pub(super) fn tell(events: &Emitter, event: TrustDecisionEvent, accepted: bool) {
    events.emit(verdict_told(events, event, accepted));
}

fn verdict_told(events: &Emitter, mut event: TrustDecisionEvent, accepted: bool) -> LogEvent {
    let policy_checksum = event.meta.policy_checksum.take();
    event.meta = events.meta(if accepted { LogLevel::Info } else { LogLevel::Warn });
    event.meta.policy_checksum = policy_checksum;
    event.decision = if accepted { "Accept" } else { "Reject" }.into();
    LogEvent::TrustDecision(event)
}

/// Secures a connection as these rules say; without any it is plain.
pub async fn secure(
    network: &Network,
    rules: Option<&Arc<Rules>>,
    link: Link,
    addr: SocketAddr,
    direction: Direction,
) -> Result<Secured, ChannelError> {
    let plain = |stream| {
        Ok(Secured { stream, certificate: None, chain: None, vouched: false, listed: None, pending: None })
    };
    let tcp = match (link, &rules) {
        (Link::Tcp(tcp), _) => tcp,
        (Link::Bytes(stream, _), None) => return plain(stream),
        (Link::Bytes(..), Some(_)) => {
            return Err(ChannelError::Untrusted { reason: "no-tls-on-this-transport" })
        }
    };
    // Messages are small and each is one write: waiting to fill a segment only delays them. An accepted connection has that of its listener.
    if direction == Direction::Outbound {
        let _ = tcp.set_nodelay(true);
    }
    match rules {
        None => plain(Box::new(Socket::new(tcp))),
        // On the heap: who speaks plainly does not pay for it.
        Some(rules) => Box::pin(tls_channel(network, rules, Socket::new(tcp), addr, direction)).await,
    }
}

async fn tls_channel(
    network: &Network,
    rules: &Arc<Rules>,
    tcp: Socket,
    addr: SocketAddr,
    direction: Direction,
) -> Result<Secured, ChannelError> {
    let Rules { tls, encryption, .. } = &**rules;
    let shaken = match direction {
        Direction::Inbound => tls.accept(tcp).await,
        Direction::Outbound => tls.connect(tcp, addr).await,
    };
    let mut stream = match shaken {
        Ok(stream) => stream,
        Err(error) => {
            if let Some(reason) = tls::refusal(&error) {
                // A few bytes of anybody are enough for one: they must not push other verdicts out of the record.
                let verdict = Verdict::refused(reason);
                let told = verdict_told(
                    &network.events,
                    event(network, encryption, &verdict, None, direction, addr),
                    false,
                );
                network.events.emit_of_strangers(told);
            }
            return Err(error.into());
        }
    };
    let certificates = tls::peer_certificates(&stream);
    let certificate = certificates.first().cloned();
    let facts = certificate.as_ref().map(|certificate| pki::facts(certificate));
    // The directory is read anew for each handshake, off the workers, so that a newly trusted peer needs no restart.
    let dir = encryption.trusted_dir.clone();
    let chain = encryption
        .policy
        .needs_chain()
        .then(|| Chain { certificates: certificates.clone(), purpose: purpose(direction) });
    let (asked, authorities) = (chain.clone(), encryption.authorities.clone());
    let looked = tokio::task::spawn_blocking(move || {
        (directory::trusted(&dir), asked.map(|chain| chain.check(&authorities, now())))
    });
    let (trusted, path) = looked.await.map_err(io::Error::other)?;
    let vouched = path == Some(Ok(chain::Anchor::Authority));
    let path = path.map(|path| path.map(drop));
    if let Err(error) = &trusted {
        tracing::error!("trusted certificates: {error}");
    }
    let policy = &encryption.policy;
    let verdict = trust::judge(
        policy,
        facts.as_ref(),
        trusted.as_ref().ok().map(|of| &of.keys),
        path,
        &network.local.realm.name,
        now(),
    );
    if let (Decision::Reject, Some(dir), Some(facts), Some(certificate)) =
        (verdict.decision, &encryption.rejected_dir, &facts, &certificate)
    {
        let (dir, fingerprint, der) = (dir.clone(), facts.fingerprint.clone(), certificate.to_vec());
        // Bounded like the observed ones, and lost if it cannot be written: the record of the verdict is in the events.
        let _ = tokio::task::spawn_blocking(move || directory::observe(&dir, &fingerprint, &der)).await;
    }
    let mut stored = false;
    let keeps = policy.mode.keeps_strangers(policy.store_observed);
    let known =
        trusted.as_ref().ok().zip(facts.as_ref()).is_some_and(|(set, of)| set.keys.contains(&of.fingerprint));
    if let (true, Some(facts), Some(certificate)) = (keeps && !known, &facts, &certificate) {
        let (dir, fingerprint, der) =
            (encryption.observed_dir.clone(), facts.fingerprint.clone(), certificate.to_vec());
        let written = tokio::task::spawn_blocking(move || directory::observe(&dir, &fingerprint, &der)).await;
        stored = matches!(written, Ok(Ok(true)));
    }
    let mut event = event(network, encryption, &verdict, facts.as_ref(), direction, addr);
    event.stored = stored.to_string();
    let remembers = policy.mode == TrustMode::Tofu;
    let listed = trusted.ok();
    let pending = match (verdict.decision, &facts) {
        (Decision::AskMemory, Some(of)) => Some(ask(network, rules, event, &of.fingerprint, false)),
        // Its id is remembered too, so that no stranger has it after a restart.
        (Decision::Accept, Some(of)) if remembers => Some(ask(network, rules, event, &of.fingerprint, true)),
        (Decision::Accept, _) => {
            tell(&network.events, event, true);
            None
        }
        (Decision::Reject | Decision::AskMemory, _) => {
            tell(&network.events, event, false);
            // A close_notify tells the peer that this was meant; without it upstream keeps waiting.
            let _ = tokio::io::AsyncWriteExt::shutdown(&mut stream).await;
            return Err(ChannelError::Untrusted { reason: verdict.reason });
        }
    };
    Ok(Secured { stream: Box::new(stream), certificate: facts, chain, vouched, listed, pending })
}

fn ask(
    network: &Network,
    rules: &Arc<Rules>,
    event: TrustDecisionEvent,
    fingerprint: &str,
    trusted: bool,
) -> Pending {
    let question = network.security.as_ref().map(|security| Question {
        rules: rules.clone(),
        now: security.subscribe(),
        memory: security.memory.clone(),
        event,
        fingerprint: fingerprint.to_owned(),
        bindings: Bindings::below(&rules.encryption.observed_dir),
        trusted,
    });
    Pending { events: network.events.clone(), forget: format!("{}trust forget", network.command), question }
}
