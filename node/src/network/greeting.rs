//! From TCP to a peer: the channel, HELLO both ways, the checks, the place in the table. Until the last of them the other side is a
//! stranger: it gets little memory, little time, and no message of it reaches anybody.

use super::channel::{secure, Bytes, Chain, ChannelError, Secured};
use super::handshake::{hello, judge, Refusal};
use super::ownership::{claim, hold, learn, may_have, Claim, ID_OF_ANOTHER};
use super::peers::{Direction, Place};
use super::rejudge::until_unwelcome;
use super::rules::{Now, Rules, Security};
use super::session::{receive, run};
use super::wire::{encode, LineDecoder, WireError, MAX_HELLO, MAX_LINE};
use super::{Link, Network, HANDSHAKE_DEADLINE};
use crate::network::clock;
use crate::security::pki::CertificateFacts;
use crate::text::printable;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use thenodes::events::model::LogLevel;
use thenodes::host::PeerInfo;
use tokio::io::AsyncWriteExt;
use tokio::sync::watch;
use tokio::time::timeout;

/// How a connection ended.
#[derive(Debug)]
pub enum Outcome {
    /// There is no connection.
    NotReached(String),
    /// The peer was never greeted.
    Refused(GreetingError),
    /// It was, and the session ended.
    Ended {
        /// Who it was.
        peer: Arc<PeerInfo>,
        /// Why.
        why: String,
    },
}

/// Why a connection has no peer.
#[derive(Debug, thiserror::Error)]
pub enum GreetingError {
    /// No channel.
    #[error(transparent)]
    Channel(#[from] ChannelError),
    /// A check of HELLO.
    #[error(transparent)]
    Hello(#[from] Refusal),
    /// The first line was no message.
    #[error("before HELLO: {0}")]
    Wire(#[from] WireError),
    /// It closed.
    #[error("the peer closed the connection before HELLO: {0}")]
    Closed(String),
    /// It took too long.
    #[error("no HELLO within {} s", HANDSHAKE_DEADLINE.as_secs())]
    Deadline,
}

impl GreetingError {
    fn action(&self) -> &'static str {
        match self {
            GreetingError::Channel(ChannelError::Tls(_)) => "secure_channel_failed",
            GreetingError::Channel(ChannelError::Untrusted { .. }) => "secure_channel_refused",
            GreetingError::Hello(refusal) => refusal.action(),
            GreetingError::Wire(_) => "message_invalid",
            GreetingError::Closed(_) => "peer_closed_connection",
            GreetingError::Deadline => "handshake_timeout",
        }
    }
}

/// Carries one connection from its first byte to its end. `stranger` is dropped when the peer is known, or refused.
pub fn carry<'a, S: Send + 'a>(
    network: &'a Network,
    link: Link,
    addr: SocketAddr,
    direction: Direction,
    stranger: S,
) -> impl Future<Output = Outcome> + Send + 'a {
    // On the heap, so that a connection pays for its handshake only as long as it lasts.
    let greeting = Box::pin(greet(network, link, addr, direction));
    carry_on(network, greeting, addr, direction, stranger)
}

async fn carry_on<S>(
    network: &Network,
    greeting: impl Future<Output = Result<Greeted, GreetingError>>,
    addr: SocketAddr,
    direction: Direction,
    stranger: S,
) -> Outcome {
    let greeting = timeout(HANDSHAKE_DEADLINE, greeting);
    let Greeted { stream, decoder, place, certificate, chain, judged } =
        match greeting.await.unwrap_or(Err(GreetingError::Deadline)) {
            Ok(greeted) => greeted,
            Err(error) => {
                drop(stranger);
                let detail = printable(&error.to_string(), 500);
                let level = match error {
                    GreetingError::Hello(Refusal::Duplicate(_)) => LogLevel::Debug,
                    _ => LogLevel::Warn,
                };
                let role = direction.word();
                network.events.network(
                    level,
                    error.action(),
                    Some(addr.to_string()),
                    format!("{role}: {detail}"),
                );
                return Outcome::Refused(error);
            }
        };
    drop(stranger);
    let peer = place.info.clone();
    let connected = format!("node_id={} direction={}", peer.node_id, direction.word());
    network.events.network(LogLevel::Info, "app_handshake_success", Some(addr.to_string()), connected);
    let shown = (certificate.as_ref(), chain.as_ref());
    let why = {
        let unwelcome = std::pin::pin!(until_unwelcome(network, &peer, direction, shown, judged));
        run(network, stream, decoder, place, unwelcome).await
    };
    let detail = format!("node_id={} reason={}", peer.node_id, printable(&why, 300));
    network.events.network(LogLevel::Info, "peer_disconnected", Some(addr.to_string()), detail);
    Outcome::Ended { peer, why }
}

/// A peer that was let in.
struct Greeted {
    stream: Box<dyn Bytes>,
    decoder: LineDecoder,
    place: Place,
    certificate: Option<CertificateFacts>,
    chain: Option<Chain>,
    /// By which rules, and what changes from before the verdict on; nothing where nobody is judged.
    judged: Option<(Arc<Rules>, watch::Receiver<Now>)>,
}

async fn greet(
    network: &Network,
    link: Link,
    addr: SocketAddr,
    direction: Direction,
) -> Result<Greeted, GreetingError> {
    let closed = |e: std::io::Error| GreetingError::Closed(e.to_string());
    let own = link.own_addr().map_err(closed)?;
    // Before the verdict: what changes meanwhile is a reason for another one.
    let now = network.security.as_ref().map(Security::subscribe);
    let rules = network.rules();
    let Secured { mut stream, certificate, chain, vouched, listed, pending } =
        secure(network, rules.as_ref(), link, addr, direction).await?;
    // The acceptor speaks first.
    if direction == Direction::Inbound {
        stream.write_all(&encode(&hello(&network.local, own, &addr.to_string()))).await.map_err(closed)?;
        stream.flush().await.map_err(closed)?;
    }
    let mut decoder = LineDecoder::new(MAX_HELLO);
    let first = loop {
        if let Some(message) = decoder.next()? {
            break message;
        }
        match receive(&mut stream, &mut decoder, MAX_HELLO).await {
            Ok(0) => return Err(GreetingError::Closed("end of stream".into())),
            Ok(_) => {}
            Err(error) => return Err(closed(error)),
        }
    };
    let greeted = judge(&network.local, &first)?;
    if network.held_off(&greeted.node_id) {
        return Err(Refusal::HeldOff(greeted.node_id).into());
    }
    let id = &greeted.node_id;
    let asked = certificate.as_ref().zip(rules.as_ref());
    let asked = asked.map(|(facts, rules)| claim(&rules.encryption, id, facts, vouched, listed.as_ref()));
    let known = match (pending, asked) {
        (Some(pending), Some(Ok(claim))) => {
            let connected = network.peers.by_id(id).is_some();
            if let Err(refused) = pending.decide(id, connected, claim == Claim::Proved).await {
                let _ = stream.shutdown().await; // it was meant
                return Err(refused.into());
            }
            None
        }
        (Some(pending), Some(Err(refused))) => {
            pending.refuse(ID_OF_ANOTHER);
            let _ = stream.shutdown().await;
            return Err(refused.into());
        }
        (_, Some(claim)) => {
            let claim = claim?;
            if claim == Claim::Open {
                may_have(network, id, certificate.as_ref(), listed.as_ref())?;
            }
            (!vouched).then_some(claim)
        }
        (_, None) => None,
    };
    if direction == Direction::Outbound {
        stream.write_all(&encode(&hello(&network.local, own, &first.from))).await.map_err(closed)?;
        stream.flush().await.map_err(closed)?;
    }
    let info = PeerInfo { node_id: greeted.node_id, addr, capabilities: greeted.capabilities };
    let place = network
        .peers
        .take(info, direction, clock())
        .map_err(|info| GreetingError::Hello(Refusal::Duplicate(info.node_id)))?;
    // Only who has the place has the id.
    hold(network, rules.as_ref())?;
    if let (Some(claim), Some(facts)) = (known, &certificate) {
        learn(network, rules.as_ref(), &place.info.node_id, facts, listed.as_ref(), claim)?;
    }
    drop(listed);
    decoder.set_max(MAX_LINE);
    if direction == Direction::Outbound {
        let (id, capabilities) = (place.info.node_id.clone(), place.info.capabilities.clone());
        network.store.mark_success_with_meta(&addr, Some(id), Some(capabilities)).await;
    } else if let Some(listens) = greeted.listen_addr.and_then(|text| text.parse::<SocketAddr>().ok()) {
        // Where it listens is its own word: kept only if it speaks of the address it really has.
        if listens.ip() == addr.ip() && listens.port() != 0 {
            let (id, capabilities) = (place.info.node_id.clone(), place.info.capabilities.clone());
            network.store.note_listener(&listens, id, capabilities);
        }
    }
    Ok(Greeted { stream, decoder, place, certificate, chain, judged: rules.zip(now) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::for_tests::a_network;
    use tokio::net::TcpStream;

    /// What a connection waits with is most of what an idle peer costs; a future that grows here costs it for every peer.
    #[tokio::test]
    async fn a_connection_that_waits_is_small() {
        let network = a_network();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let addr = listener.local_addr().expect("an address");
        let tcp = TcpStream::connect(addr).await.expect("connected");
        let size = std::mem::size_of_val(&carry(&network, Link::Tcp(tcp), addr, Direction::Inbound, ()));
        assert!(size <= 2048, "{size} bytes");
    }
}
