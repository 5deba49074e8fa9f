//! A peer's TCP connection, whose end holds nobody up. A peer may send megabytes that are never read; the kernel lets go of them within
//! `close`, which takes it up to a millisecond, and a thread of the runtime that waits for that looks after nobody meanwhile.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::runtime::Handle;

/// Unread bytes that are let go where the connection ends; more of them elsewhere.
const LITTLE: u64 = 64 * 1024;

/// The connection. Closed when dropped.
#[derive(Debug)]
pub(super) struct Socket(Option<TcpStream>); // `None` only within `drop`

impl Socket {
    /// Takes a connection over.
    pub(super) fn new(tcp: TcpStream) -> Self {
        Self(Some(tcp))
    }

    fn tcp(&mut self) -> io::Result<Pin<&mut TcpStream>> {
        self.0.as_mut().map(Pin::new).ok_or_else(|| io::ErrorKind::NotConnected.into())
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let Some(tcp) = self.0.take() else { return };
        let unread = rustix::io::ioctl_fionread(&tcp).unwrap_or(0);
        if let (true, Ok(runtime)) = (unread > LITTLE, Handle::try_current()) {
            runtime.spawn_blocking(move || drop(tcp));
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.tcp()?.poll_read(cx, into)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.tcp()?.poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.tcp()?.poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.as_ref().is_some_and(AsyncWrite::is_write_vectored)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.tcp()?.poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.tcp()?.poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt;

    /// A connection and its other end, with so much in it that nobody reads.
    async fn filled() -> (Socket, TcpStream) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let connected = TcpStream::connect(listener.local_addr().expect("an address"));
        let (other, accepted) = tokio::join!(connected, listener.accept());
        let (mut other, (tcp, _)) = (other.expect("connected"), accepted.expect("accepted"));
        other.write_all(&[b'x'; 3 * LITTLE as usize]).await.expect("the kernel has room");
        let all = async {
            while rustix::io::ioctl_fionread(&tcp).expect("it says") <= LITTLE {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(std::time::Duration::from_secs(10), all).await.expect("it arrives");
        (Socket::new(tcp), other)
    }

    async fn is_closed(mut other: TcpStream) {
        let told = tokio::time::timeout(std::time::Duration::from_secs(10), async {
            while other.write_all(b"more").await.is_ok() {
                tokio::task::yield_now().await;
            }
        });
        told.await.expect("closed, not kept open by whoever should close it");
    }

    #[test]
    fn what_nobody_read_is_let_go_on_another_thread() {
        let builder = &mut tokio::runtime::Builder::new_current_thread();
        let runtime = builder.max_blocking_threads(1).enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let (socket, mut other) = filled().await;
            // The only other thread has something else to do until it is told.
            let (tell, told) = std::sync::mpsc::channel::<()>();
            let busy = tokio::task::spawn_blocking(move || told.recv());
            drop(socket);
            // Closed here, the kernel would refuse the second of these at the latest.
            for _ in 0..2 {
                other.write_all(b"more").await.expect("still open");
            }
            tell.send(()).expect("it waits");
            busy.await.expect("no panic").expect("told");
            is_closed(other).await;
        });
    }

    #[test]
    fn without_a_runtime_it_is_let_go_here() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let (socket, other) = runtime.block_on(filled());
        drop(socket);
        runtime.block_on(is_closed(other));
    }
}
