//! What is written to a peer: whatever gathered in its outbox, in one piece, and the probes and questions that are due. Ends when the
//! connection is to end, with a goodbye; no peer holds it up for longer than a deadline.

use super::outbox::{Next, Outbox};
use super::peers::Place;
use super::relay::{self, seat};
use super::wire::encode;
use super::{clock, discovery, Network, WRITE_DEADLINE};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use thenodes::network::message::{Message, MessageType, Payload};
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::time::{timeout, Instant, MissedTickBehavior};

/// Texts of HEARTBEAT messages, since 0.3.
pub(super) const PROBE: &str = "liveness_probe_v1";
pub(super) const ANSWER: &str = "liveness_response_v1";

pub(super) fn heartbeat(network: &Network, to: &str, text: &str) -> Message {
    let payload = Some(Payload::Text(text.into()));
    let realm = Some(network.local.realm.clone());
    Message::new(&network.local.node_id, to, MessageType::Heartbeat, payload, realm)
}

/// The write loop. Whether the peer `hears` is looked at before the goodbye.
pub(super) async fn write(
    network: &Network,
    place: &Place,
    mut writer: impl AsyncWrite + Unpin,
    hears: &AtomicBool,
) {
    let (peer, outbox) = (&place.info, &place.outbox);
    let acknowledges = seat::has(peer, relay::CAPABILITY_ACKNOWLEDGES);
    // The first probe goes out at once: whoever answers it can be expected to answer the next ones. Without a timer, which would wake
    // another thread for each connection, and with what else there is to say.
    outbox.own(&encode(&heartbeat(network, &peer.node_id, PROBE)));
    let every = network.net.connecting.probe;
    let mut probes = tokio::time::interval_at(Instant::now() + every, every);
    probes.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut asks = discovery::Asking::new(network, peer);
    if let Some(request) = asks.first() {
        outbox.own(&encode(&request));
    }
    let mut spare = Vec::new();
    let why = loop {
        // What is kept for the peer is not given to a connection that ends: nobody may be there to take it.
        if network.relay.config.store_forward && !outbox.is_closing() {
            network.relay.drain(network, &peer.node_id, outbox, acknowledges);
        }
        let next = tokio::select! {
            biased; // however much there is to write, a peer that only reads must be asked whether it lives
            _ = probes.tick() => {
                outbox.own(&encode(&heartbeat(network, &peer.node_id, PROBE)));
                continue;
            }
            request = asks.next() => {
                outbox.own(&encode(&request));
                continue;
            }
            next = std::future::poll_fn(|cx| outbox.poll_next(cx, &mut spare)) => next,
        };
        let lines = match next {
            Next::Lines(lines) => lines,
            Next::Look => continue,
            Next::Close => break "closed by this node".to_owned(),
        };
        if let Err(why) = Box::pin(write_all(outbox, &mut writer, &lines)).await {
            break why;
        }
        spare = lines;
    };
    outbox.set_why(why);
    let goodbye = Box::pin(async {
        if hears.load(Ordering::Relaxed) {
            let local = &network.local;
            let realm = Some(local.realm.clone());
            let message = Message::new(&local.node_id, &peer.node_id, MessageType::Disconnect, None, realm);
            writer.write_all(&encode(&message)).await?;
        }
        writer.shutdown().await
    });
    let _ = timeout(Duration::from_secs(1), goodbye).await;
}

/// Writes lines piece by piece: each piece that the peer takes is a sign of life.
async fn write_all(
    outbox: &Outbox,
    writer: &mut (impl AsyncWrite + Unpin),
    lines: &[u8],
) -> Result<(), String> {
    let too_slow = || format!("the peer took no data for {} s", WRITE_DEADLINE.as_secs());
    let mut at = 0;
    while at < lines.len() {
        match timeout(WRITE_DEADLINE, writer.write(&lines[at..])).await {
            Ok(Ok(0)) => return Err("writing: the connection takes nothing".into()),
            Ok(Ok(count)) => {
                at += count;
                outbox.wrote(count, clock());
            }
            Ok(Err(error)) => return Err(format!("writing: {error}")),
            Err(_) => return Err(too_slow()),
        }
    }
    match timeout(WRITE_DEADLINE, writer.flush()).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(format!("writing: {error}")),
        Err(_) => Err(too_slow()),
    }
}
