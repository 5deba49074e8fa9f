//! TCP for plugins. There is no network in a sandbox: [`Net::connect`] asks the node, which checks name and address against
//! this plugin's permissions and keeps the socket; a [`TcpStream`] here is a number, and each read and write is a request.
//!
//! The node is asked for bytes only when somebody wants them, so a fast server waits for a slow plugin. A request that was
//! begun is kept until it is answered, so that dropping a `read` (in `select!`, in a timeout) loses no byte. Readers touch
//! only what is read and writers only what is written: the halves of `tokio::io::split` never take each other's wake-up.

use crate::host::{Bytes, Host, HostError, Notice, Request, Response};
use crate::network::peer_manager::{block_on, unexpected};
use std::fmt;
use std::future::{poll_fn, Future};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{ready, Context, Poll};
use thenodes_ipc::limits::MAX_STREAM_CHUNK;
use thenodes_ipc::Code;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The way to the network.
#[derive(Clone)]
pub struct Net {
    host: Arc<dyn Host>,
}

impl fmt::Debug for Net {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Net")
    }
}

impl Net {
    /// The network of this host.
    pub fn new(host: Arc<dyn Host>) -> Self {
        Self { host }
    }

    /// Connects to a host by name or IP address.
    ///
    /// Errors: `PERMISSION_DENIED` without the permission `net.connect` for this host and for the address it has,
    /// `NETWORK_ERROR` if it cannot be reached, `TIMEOUT` after 5 s for the name or 10 s for the connection,
    /// `RESOURCE_EXHAUSTED` if this plugin has as many connections open as it may, ten unless somebody says otherwise.
    ///
    /// ```
    /// # async fn example(ctx: &thenodes::plugin_host::PluginContext) -> Result<(), thenodes::host::HostError> {
    /// let mut stream = ctx.net().connect("example.org", 80).await?;
    /// stream.write_all(b"HEAD / HTTP/1.0\r\n\r\n").await?;
    /// let mut buffer = [0; 1024];
    /// let count = stream.read(&mut buffer).await?;
    /// # let _ = count;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn connect(&self, host: &str, port: u16) -> Result<TcpStream, HostError> {
        match self.host.call(Request::NetConnect { host: host.into(), port }).await? {
            Response::Stream(id) => Ok(TcpStream {
                host: self.host.clone(),
                id,
                arrived: Vec::new(),
                taken: 0,
                reading: None,
                writing: None,
                ending: None,
            }),
            other => Err(unexpected(&other)),
        }
    }
}

/// A request on its way.
type Asked<T> = Pin<Box<dyn Future<Output = Result<T, HostError>> + Send>>;

/// A TCP connection that the node keeps for this plugin. Dropping it closes it.
///
/// The methods here speak of [`HostError`]; the traits of tokio, which libraries take, of [`io::Error`]. A stream on which no
/// byte moves for 300 s is closed by the node.
pub struct TcpStream {
    host: Arc<dyn Host>,
    id: u64,
    /// Bytes that the node gave and nobody took yet, from `taken` on.
    arrived: Vec<u8>,
    taken: usize,
    reading: Option<Asked<Vec<u8>>>,
    /// The bytes of a write on its way, and its answer to come.
    writing: Option<(Vec<u8>, Asked<usize>)>,
    ending: Option<Asked<()>>,
}

impl fmt::Debug for TcpStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TcpStream({})", self.id)
    }
}

impl TcpStream {
    /// Waits for bytes; 0 is the end of the stream. After 25 s without one it is `TIMEOUT`: the stream is as good as before.
    pub async fn read(&mut self, buffer: &mut [u8]) -> Result<usize, HostError> {
        poll_fn(|cx| self.poll_bytes(cx, buffer)).await
    }

    /// Writes all of it. When this returns, the node has given it to the system that sends it; when it is dropped before, a
    /// part may have been sent.
    pub async fn write_all(&mut self, mut bytes: &[u8]) -> Result<(), HostError> {
        while !bytes.is_empty() {
            let count = poll_fn(|cx| self.poll_some(cx, bytes)).await?;
            bytes = &bytes[count..];
        }
        Ok(())
    }

    /// Tells the other side that no more will be written. Reading goes on.
    pub async fn shutdown(&mut self) -> Result<(), HostError> {
        poll_fn(|cx| self.poll_end(cx)).await
    }

    /// For code that is not async, such as `on_message`: the same stream with `std::io::Read` and `std::io::Write`.
    /// Answers come on a thread that runs no plugin code, so waiting for them anywhere delays but does not deadlock. (An
    /// embedder, whose host is the node itself, waits on a thread that has entered the node's runtime.)
    pub fn into_blocking(self) -> Blocking {
        Blocking(self)
    }

    fn poll_bytes(&mut self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<Result<usize, HostError>> {
        if buffer.is_empty() {
            return Poll::Ready(Ok(0));
        }
        if self.taken == self.arrived.len() {
            let reading = self.reading.get_or_insert_with(|| {
                let (host, stream) = (self.host.clone(), self.id);
                let max = u32::try_from(buffer.len().min(MAX_STREAM_CHUNK)).unwrap_or(u32::MAX);
                Box::pin(async move {
                    match host.call(Request::NetRead { stream, max }).await? {
                        Response::Bytes(Bytes(bytes)) => Ok(bytes),
                        other => Err(unexpected(&other)),
                    }
                })
            });
            let answer = ready!(reading.as_mut().poll(cx));
            self.reading = None;
            self.arrived = answer?;
            self.taken = 0;
        }
        let waiting = &self.arrived[self.taken..];
        let count = waiting.len().min(buffer.len());
        buffer[..count].copy_from_slice(&waiting[..count]);
        self.taken += count;
        Poll::Ready(Ok(count))
    }

    /// Writes some bytes: ready when the node has taken them. Called again with the same bytes (or more of them), it is the
    /// same write going on; called with others, a write that was given up is waited for first, so that nothing gets mixed.
    fn poll_some(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<Result<usize, HostError>> {
        if !self.writing.as_ref().is_some_and(|(begun, _)| bytes.starts_with(begun)) {
            ready!(self.poll_written(cx))?;
            let begun = bytes[..bytes.len().min(MAX_STREAM_CHUNK)].to_vec();
            if begun.is_empty() {
                return Poll::Ready(Ok(0));
            }
            let (host, stream, chunk) = (self.host.clone(), self.id, Bytes(begun.clone()));
            let asked = async move {
                match host.call(Request::NetWrite { stream, bytes: chunk }).await? {
                    Response::Done(0) => {
                        Err(HostError::new(Code::NetworkError, format!("stream {stream}: no byte was taken")))
                    }
                    Response::Done(taken) => Ok(usize::try_from(taken).unwrap_or(usize::MAX)),
                    other => Err(unexpected(&other)),
                }
            };
            self.writing = Some((begun, Box::pin(asked)));
        }
        self.poll_written(cx)
    }

    /// Ready when no write is on its way; the number of bytes that the last one wrote.
    fn poll_written(&mut self, cx: &mut Context<'_>) -> Poll<Result<usize, HostError>> {
        let Some((begun, writing)) = &mut self.writing else { return Poll::Ready(Ok(0)) };
        let most = begun.len(); // a node that claims more must not make the writer skip bytes
        let done = ready!(writing.as_mut().poll(cx));
        self.writing = None;
        Poll::Ready(done.map(|taken| taken.min(most)))
    }

    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), HostError>> {
        ready!(self.poll_written(cx))?;
        let ending = self.ending.get_or_insert_with(|| {
            let (host, stream) = (self.host.clone(), self.id);
            Box::pin(async move {
                match host.call(Request::NetShutdown { stream }).await? {
                    Response::Done(_) => Ok(()),
                    other => Err(unexpected(&other)),
                }
            })
        });
        let done = ready!(ending.as_mut().poll(cx));
        self.ending = None;
        Poll::Ready(done)
    }
}

impl Drop for TcpStream {
    fn drop(&mut self) {
        // First what is on its way, so that the node does not find it on a closed stream.
        self.reading = None;
        self.writing = None;
        self.ending = None;
        self.host.notify(Notice::CloseStream(self.id));
    }
}

impl AsyncRead for TcpStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let count = ready!(self.poll_bytes(cx, buffer.initialize_unfilled()))?;
        buffer.advance(count);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for TcpStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_some(cx, bytes).map_err(Into::into)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Only a write that was given up can be on its way: the others were waited for.
        self.poll_written(cx).map_ok(drop).map_err(Into::into)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_end(cx).map_err(Into::into)
    }
}

/// A [`TcpStream`] whose methods wait on the calling thread.
#[derive(Debug)]
pub struct Blocking(TcpStream);

impl Blocking {
    /// Tells the other side that no more will be written. Reading goes on.
    pub fn shutdown(&mut self) -> Result<(), HostError> {
        block_on(self.0.shutdown())
    }
}

impl io::Read for Blocking {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        Ok(block_on(self.0.read(buffer))?)
    }
}

impl io::Write for Blocking {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let chunk = &bytes[..bytes.len().min(MAX_STREAM_CHUNK)];
        block_on(self.0.write_all(chunk))?;
        Ok(chunk.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(()) // `write` waits until the node has it
    }
}
