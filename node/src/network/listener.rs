//! Accepts connections, within bounds: so many in all, so many strangers from one address.

use super::peers::Direction;
use super::session::carry;
use super::{Network, MAX_CONNECTIONS, MAX_GREETINGS_PER_IP};
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use thenodes::events::model::LogLevel;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

/// Opens the listening socket; a failure is the caller's, not a node that runs on deaf.
pub async fn bind(addr: SocketAddr) -> io::Result<TcpListener> {
    TcpListener::bind(addr).await
}

/// Strangers per address.
#[derive(Default)]
struct Strangers(Mutex<HashMap<IpAddr, usize>>);

/// One stranger; counted until dropped.
struct Stranger(Arc<Strangers>, IpAddr);

impl Strangers {
    fn admit(self: &Arc<Self>, ip: IpAddr) -> Option<Stranger> {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(ip).or_default();
        if *count >= MAX_GREETINGS_PER_IP {
            return None;
        }
        *count += 1;
        Some(Stranger(self.clone(), ip))
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        let mut counts = self.0 .0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.1) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.1);
            }
        }
    }
}

/// Accepts until the task is aborted.
pub async fn listen(network: Arc<Network>, listener: TcpListener) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let strangers = Arc::new(Strangers::default());
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let (tcp, addr) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors, usually: waiting is all that helps, and not waiting would spin.
                network.events.network(LogLevel::Error, "accept_failed", None, error.to_string());
                tokio::time::sleep(Duration::from_millis(200)).await;
                continue;
            }
        };
        let Some(stranger) = strangers.admit(addr.ip()) else {
            let detail = format!(
                "more than {MAX_GREETINGS_PER_IP} connections from this address wait for their handshake"
            );
            network.events.network(LogLevel::Warn, "too_many_handshakes", Some(addr.to_string()), detail);
            continue;
        };
        let network = network.clone();
        connections.spawn(async move {
            let _place = place;
            network.events.network(LogLevel::Debug, "incoming_connection", Some(addr.to_string()), None);
            carry(&network, tcp, addr, Direction::Inbound, stranger).await;
        });
    }
}
