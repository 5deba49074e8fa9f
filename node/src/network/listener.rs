//! Accepts connections, within bounds: so many in all, so many strangers from one address.

use super::peers::Direction;
use super::session::carry;
use super::{Network, MAX_CONNECTIONS, MAX_CONNECTIONS_PER_IP, MAX_GREETINGS_PER_IP};
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

/// Connections per address.
#[derive(Default)]
struct Strangers(Mutex<HashMap<IpAddr, usize>>);

/// One connection; counted until dropped.
struct Stranger(Arc<Strangers>, IpAddr);

impl Strangers {
    fn admit(self: &Arc<Self>, ip: IpAddr, most: usize) -> Option<Stranger> {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(ip).or_default();
        if *count >= most {
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
    let (all, strangers) = (Arc::new(Strangers::default()), Arc::new(Strangers::default()));
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let (tcp, addr) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors, usually: waiting is all that helps, and not waiting would spin.
                network.events.network(LogLevel::Error, "accept_failed", None, error.to_string());
                tokio::time::sleep(Duration::from_millis(200)).await;
                continue;
            }
        };
        let Ok(place) = places.clone().try_acquire_owned() else {
            let detail = format!("{MAX_CONNECTIONS} connections are open");
            network.events.network(LogLevel::Warn, "too_many_connections", Some(addr.to_string()), detail);
            continue;
        };
        let Some(from_ip) = all.admit(addr.ip(), MAX_CONNECTIONS_PER_IP) else {
            let detail = format!("{MAX_CONNECTIONS_PER_IP} connections from this address are open");
            network.events.network(LogLevel::Warn, "too_many_connections", Some(addr.to_string()), detail);
            continue;
        };
        let Some(stranger) = strangers.admit(addr.ip(), MAX_GREETINGS_PER_IP) else {
            let detail = format!(
                "more than {MAX_GREETINGS_PER_IP} connections from this address wait for their handshake"
            );
            network.events.network(LogLevel::Warn, "too_many_handshakes", Some(addr.to_string()), detail);
            continue;
        };
        let network = network.clone();
        connections.spawn(async move {
            let _place = (place, from_ip);
            network.events.network(LogLevel::Debug, "incoming_connection", Some(addr.to_string()), None);
            carry(&network, tcp, addr, Direction::Inbound, stranger).await;
        });
    }
}
