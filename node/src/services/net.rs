//! TCP streams for plugins. No socket enters a sandbox: the node resolves, checks, connects, and hands bytes over when the
//! plugin asks for them. Neither side is trusted: the plugin's arguments, the resolver's answers, the server's pace.
//!
//! The plugin pulls, so nothing is queued here and TCP's own back-pressure reaches the server: a byte is in the kernel's
//! buffers ([`SOCKET_BUFFER`]) or in one answer. Per process of a plugin that is at most [`Limits::connections`] sockets and
//! 64 calls of 64 KiB. Every wait ends by itself: [`Limits`].

use super::address;
use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;
use thenodes::host::{Bytes, HostError, Response};
use thenodes_ipc::{limits, Code};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::{watch, OwnedSemaphorePermit, Semaphore};
use tokio::task::AbortHandle;
use tokio::time::{timeout, timeout_at, Instant};

/// Bytes the kernel may hold for one socket, each way. What it takes by itself can be megabytes, and a plugin that never
/// reads would get them all.
pub const SOCKET_BUFFER: u32 = 256 * 1024;

/// What a plugin may reach over the network. Both questions are asked for every connection: the name before anything leaves
/// this machine (a lookup tells a secret to whoever answers for the name), then every address it resolves to.
pub trait NetPolicy: Send + Sync {
    /// True if a connection to this host may be tried. `host` is lower-case and without a final dot, or an IP address in its
    /// one spelling, IPv6 without brackets.
    fn allows_name(&self, host: &str, port: u16) -> bool;

    /// True if this address may be dialed. Addresses for which [`address::is_public`] is false are for scopes that name them
    /// explicitly. IPv4 inside IPv6 comes as IPv4.
    fn allows_addr(&self, addr: SocketAddr) -> bool;
}

/// Bounds of one plugin's connections.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Streams open at once, those being dialed included.
    pub connections: usize,
    /// Addresses of one name that are looked at.
    pub addresses: usize,
    /// Names that are resolved at once. A lookup cannot be taken back, so each holds a thread until the resolver gives up.
    pub lookups: usize,
    /// A name must be resolved by then.
    pub resolve: Duration,
    /// A connection must be there by then, whatever number of addresses is tried.
    pub connect: Duration,
    /// A read waits so long for a byte, a write for the last one to be taken. Less than
    /// [`limits::REQUEST_DEADLINE`], so that the answer can say what was waited for and how much was written.
    pub wait: Duration,
    /// A stream on which no byte has moved for so long is closed.
    pub idle: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 10,
            addresses: 16,
            lookups: 2,
            resolve: Duration::from_secs(5),
            connect: Duration::from_secs(10),
            wait: Duration::from_secs(25),
            idle: Duration::from_secs(300),
        }
    }
}

/// Finds the addresses of a name; blocks.
pub type Resolver = Arc<dyn Fn(&str, u16) -> io::Result<Vec<SocketAddr>> + Send + Sync>;

/// Turns a host and a port into a connection, or says why not. One for each plugin, for all its processes.
pub struct Dialer {
    policy: Arc<dyn NetPolicy>,
    limits: Limits,
    resolver: Resolver,
    lookups: Arc<Semaphore>,
}

impl Dialer {
    /// With so many connections for each process, the usual limits beside that, and the system's resolver.
    pub fn new(policy: Arc<dyn NetPolicy>, connections: usize) -> Self {
        let system = |host: &str, port: u16| Ok((host, port).to_socket_addrs()?.collect());
        Self::with(policy, Limits { connections, ..Limits::default() }, Arc::new(system))
    }

    /// With others.
    pub fn with(policy: Arc<dyn NetPolicy>, limits: Limits, resolver: Resolver) -> Self {
        let lookups = Arc::new(Semaphore::new(limits.lookups));
        Self { policy, limits, resolver, lookups }
    }

    /// Connects. What is dialed is what was checked: there is no second lookup that could answer differently.
    async fn dial(&self, host: &str, port: u16) -> Result<Stream, HostError> {
        let Some(host) = address::host(host).filter(|_| port != 0) else {
            let text =
                "net.connect: a host is a DNS name in ASCII or a whole IP address, a port is from 1 to 65535";
            return Err(HostError::new(Code::InvalidInput, text));
        };
        let target = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
        if !self.policy.allows_name(&host, port) {
            let text = format!("net.connect {target}: no scope of the permission net.connect covers it");
            return Err(HostError::new(Code::PermissionDenied, text));
        }
        let found = match host.parse::<IpAddr>() {
            Ok(ip) => vec![SocketAddr::new(ip, port)],
            Err(_) => self.resolve(&host, port, &target).await?,
        };
        let found: Vec<_> = found.into_iter().take(self.limits.addresses).map(address::canonical).collect();
        let Some(first) = found.first().copied() else {
            return Err(HostError::new(
                Code::NetworkError,
                format!("net.connect {target}: it has no address"),
            ));
        };
        let allowed: Vec<_> =
            found.into_iter().filter(|addr| addr.port() == port && self.policy.allows_addr(*addr)).collect();
        if allowed.is_empty() {
            let what = if address::is_public(first.ip()) { "an" } else { "a local or reserved" };
            let text = format!(
                "net.connect {target}: it leads to {what} address, {}, and no scope of the permission net.connect names that address",
                first.ip()
            );
            return Err(HostError::new(Code::PermissionDenied, text));
        }
        self.first_of(&allowed, &target).await
    }

    async fn resolve(&self, host: &str, port: u16, target: &str) -> Result<Vec<SocketAddr>, HostError> {
        let late = |_| {
            let text =
                format!("net.connect {target}: the name was not resolved within {:?}", self.limits.resolve);
            HostError::new(Code::Timeout, text)
        };
        let failed = |why: String| HostError::new(Code::NetworkError, format!("resolving {target}: {why}"));
        let until = Instant::now() + self.limits.resolve;
        let place = timeout_at(until, self.lookups.clone().acquire_owned()).await.map_err(late)?;
        let (resolver, host) = (self.resolver.clone(), host.to_owned());
        let lookup = tokio::task::spawn_blocking(move || {
            let found = resolver(&host, port);
            drop(place); // only now: the thread is what the place stands for, whether anybody still waits or not
            found
        });
        match timeout_at(until, lookup).await.map_err(late)? {
            Ok(found) => found.map_err(|error| failed(error.to_string())),
            Err(error) => Err(failed(error.to_string())),
        }
    }

    /// Tries the addresses in the resolver's order; each gets its part of the time that is left.
    async fn first_of(&self, addrs: &[SocketAddr], target: &str) -> Result<Stream, HostError> {
        let until = Instant::now() + self.limits.connect;
        let mut failure = None;
        for (at, addr) in addrs.iter().enumerate() {
            let left = until.saturating_duration_since(Instant::now());
            let share = left / u32::try_from(addrs.len() - at).unwrap_or(u32::MAX);
            match timeout(share, open(*addr)).await {
                Ok(Ok(socket)) => return Ok(Stream::new(socket, format!("{target} ({addr})"))),
                Ok(Err(error)) => {
                    failure = Some((Code::NetworkError, format!("connecting to {target} ({addr}): {error}")));
                }
                Err(_) => {
                    let seconds = share.as_secs_f64();
                    let text = format!("connecting to {target} ({addr}): no answer within {seconds:.1} s");
                    failure.get_or_insert((Code::Timeout, text));
                }
            }
        }
        let (code, text) = failure.unwrap_or((Code::Internal, format!("{target}: nothing to dial")));
        Err(HostError::new(code, text))
    }
}

async fn open(addr: SocketAddr) -> io::Result<TcpStream> {
    let socket = if addr.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_recv_buffer_size(SOCKET_BUFFER)?;
    socket.set_send_buffer_size(SOCKET_BUFFER)?;
    let stream = socket.connect(addr).await?;
    // The plugin's chunks are what it means to send; waiting for more of them helps nobody.
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// An open connection.
struct Stream {
    socket: TcpStream,
    /// Where it leads, for messages.
    target: String,
    /// When the last byte moved.
    moved: Mutex<Instant>,
    /// Tells calls that wait on it that it was closed.
    closed: watch::Sender<bool>,
}

impl Stream {
    fn new(socket: TcpStream, target: String) -> Self {
        Self { socket, target, moved: Mutex::new(Instant::now()), closed: watch::Sender::new(false) }
    }

    fn touch(&self) {
        *self.moved.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    fn idle(&self) -> Duration {
        self.moved.lock().unwrap_or_else(PoisonError::into_inner).elapsed()
    }

    fn failed(&self, what: &str, error: impl std::fmt::Display) -> HostError {
        HostError::new(Code::NetworkError, format!("{what} {}: {error}", self.target))
    }

    /// Waits for some work on the socket until it is done or the stream is closed.
    async fn unless_closed<T>(
        &self,
        work: impl Future<Output = Result<T, HostError>>,
    ) -> Result<T, HostError> {
        let mut closed = self.closed.subscribe();
        tokio::select! {
            biased;
            _ = closed.wait_for(|closed| *closed) => {
                Err(HostError::new(Code::NotFound, format!("the stream to {} was closed meanwhile", self.target)))
            }
            done = work => done,
        }
    }
}

struct Entry {
    stream: Arc<Stream>,
    _slot: OwnedSemaphorePermit,
}

type Open = Mutex<HashMap<u64, Entry>>;

/// The streams of one process of a plugin. Dropping it closes them.
pub struct Streams {
    dialer: Arc<Dialer>,
    slots: Arc<Semaphore>,
    open: Arc<Open>,
    next: AtomicU64,
    sweeper: OnceLock<Sweeper>,
}

/// The task that closes idle streams.
struct Sweeper(AbortHandle);

impl Drop for Sweeper {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Streams {
    /// None yet.
    pub fn new(dialer: Arc<Dialer>) -> Self {
        let slots = Arc::new(Semaphore::new(dialer.limits.connections));
        Self { dialer, slots, open: Arc::default(), next: AtomicU64::new(1), sweeper: OnceLock::new() }
    }

    /// Opens a connection. Taking the call back takes the connection back.
    pub async fn connect(&self, host: &str, port: u16) -> Result<Response, HostError> {
        let Ok(slot) = self.slots.clone().try_acquire_owned() else {
            let text = match self.dialer.limits.connections {
                0 => "limits.connections = 0: this plugin has no connections".to_owned(),
                most => format!(
                    "{most} connections are open, and limits.connections allows no more; close one first"
                ),
            };
            return Err(HostError::new(Code::ResourceExhausted, text));
        };
        let stream = Arc::new(self.dialer.dial(host, port).await?);
        self.sweeper.get_or_init(|| sweep(&self.open, self.dialer.limits.idle));
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        self.entries().insert(id, Entry { stream, _slot: slot });
        Ok(Response::Stream(id))
    }

    /// Waits for bytes, at most `max` of them; none at all is the end of the stream.
    pub async fn read(&self, id: u64, max: u32) -> Result<Response, HostError> {
        let max = usize::try_from(max).unwrap_or(usize::MAX).min(limits::MAX_STREAM_CHUNK);
        if max == 0 {
            return Err(HostError::new(
                Code::InvalidInput,
                "net.read: max is 0, and no bytes would mean the end",
            ));
        }
        let stream = self.find(id)?;
        let arrived = async {
            loop {
                stream.socket.readable().await?;
                // Not before there is something: calls that wait hold no memory.
                let mut bytes = Vec::with_capacity(max);
                match stream.socket.try_read_buf(&mut bytes) {
                    Ok(_) => return Ok(bytes),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => return Err(error),
                }
            }
        };
        let wait = self.dialer.limits.wait;
        let bytes = stream.unless_closed(async {
            match timeout(wait, arrived).await {
                Ok(arrived) => arrived.map_err(|error: io::Error| stream.failed("reading from", error)),
                Err(_) => {
                    let text = format!(
                        "no byte came from {} within {wait:?}; read again to wait longer",
                        stream.target
                    );
                    Err(HostError::new(Code::Timeout, text))
                }
            }
        });
        let bytes = bytes.await?;
        if !bytes.is_empty() {
            stream.touch();
        }
        Ok(Response::Bytes(Bytes(bytes)))
    }

    /// Writes bytes. The number that was taken is less than asked for only if the other side stopped reading.
    pub async fn write(&self, id: u64, bytes: &[u8]) -> Result<Response, HostError> {
        if bytes.len() > limits::MAX_STREAM_CHUNK {
            let text =
                format!("net.write: {} bytes; at most {} in one call", bytes.len(), limits::MAX_STREAM_CHUNK);
            return Err(HostError::new(Code::InvalidInput, text));
        }
        let stream = self.find(id)?;
        let until = Instant::now() + self.dialer.limits.wait;
        let written = stream.unless_closed(async {
            let mut written = 0;
            while written < bytes.len() {
                match timeout_at(until, stream.socket.writable()).await {
                    Ok(ready) => ready.map_err(|error| stream.failed("writing to", error))?,
                    Err(_) if written > 0 => break,
                    Err(_) => {
                        let text =
                            format!("{} took no byte within {:?}", stream.target, self.dialer.limits.wait);
                        return Err(HostError::new(Code::Timeout, text));
                    }
                }
                match stream.socket.try_write(&bytes[written..]) {
                    Ok(count) => {
                        written += count;
                        stream.touch();
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => return Err(stream.failed("writing to", error)),
                }
            }
            Ok(written)
        });
        Ok(Response::Done(written.await? as u64))
    }

    /// Tells the other side that nothing more will be written; reading goes on.
    pub fn shut_down(&self, id: u64) -> Result<Response, HostError> {
        let stream = self.find(id)?;
        nix::sys::socket::shutdown(stream.socket.as_raw_fd(), nix::sys::socket::Shutdown::Write)
            .map_err(|error| stream.failed("ending the writing to", error))?;
        Ok(Response::Done(1))
    }

    /// Closes a stream; calls that wait on it hear so.
    pub fn close(&self, id: u64) -> Result<Response, HostError> {
        let entry = self.entries().remove(&id).ok_or_else(|| unknown(id))?;
        entry.stream.closed.send_replace(true);
        Ok(Response::Done(1))
    }

    fn find(&self, id: u64) -> Result<Arc<Stream>, HostError> {
        self.entries().get(&id).map(|entry| entry.stream.clone()).ok_or_else(|| unknown(id))
    }

    fn entries(&self) -> std::sync::MutexGuard<'_, HashMap<u64, Entry>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn unknown(id: u64) -> HostError {
    let text =
        format!("there is no open stream {id}: it was closed, by its owner or for want of any traffic");
    HostError::new(Code::NotFound, text)
}

/// Starts the task that closes streams on which nothing moves. It looks often enough to be late by an eighth at most.
fn sweep(open: &Arc<Open>, idle: Duration) -> Sweeper {
    let open = Arc::downgrade(open);
    let task = tokio::spawn(async move {
        loop {
            tokio::time::sleep(idle / 8).await;
            let Some(open) = open.upgrade() else { return };
            open.lock().unwrap_or_else(PoisonError::into_inner).retain(|_, entry| {
                let keep = entry.stream.idle() < idle;
                if !keep {
                    entry.stream.closed.send_replace(true);
                }
                keep
            });
        }
    });
    Sweeper(task.abort_handle())
}

#[cfg(test)]
mod tests;
