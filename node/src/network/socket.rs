//! A peer's TCP connection, whose end holds up nobody as a rule. A peer may send megabytes that are never read; the kernel lets go of them
//! within `close`, which takes it up to a millisecond, and a thread of the runtime that waits for that looks after nobody meanwhile. So one
//! thread closes such connections, one after the other; while it has enough of them, the next are closed where they end.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::mpsc::{sync_channel, Receiver, SyncSender};
use std::sync::OnceLock;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// Unread bytes that are let go where the connection ends, as far as the kernel counts them (not behind an urgent one).
const LITTLE: u64 = 64 * 1024;
/// Connections that may wait for the thread: their places are given to others already.
const WAITING: usize = 8;

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
        if let Some(tcp) = self.0.take() {
            close(tcp, closer);
        }
    }
}

/// The way to the thread; none where there can be no such thread.
fn closer() -> Option<&'static SyncSender<TcpStream>> {
    static CLOSER: OnceLock<Option<SyncSender<TcpStream>>> = OnceLock::new();
    let start = || {
        let (sender, receiver): (_, Receiver<TcpStream>) = sync_channel(WAITING);
        let thread = std::thread::Builder::new().name("closer".into());
        thread.spawn(move || receiver.into_iter().for_each(drop)).ok().map(|_| sender)
    };
    CLOSER.get_or_init(start).as_ref()
}

fn close<'a>(tcp: TcpStream, closer: impl FnOnce() -> Option<&'a SyncSender<TcpStream>>) {
    if rustix::io::ioctl_fionread(&tcp).unwrap_or(0) > LITTLE {
        if let Some(closer) = closer() {
            let _ = closer.try_send(tcp); // what it does not take is dropped here
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
    use std::time::Duration;
    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpSocket;

    /// A connection and its other end, with so many bytes in it that nobody reads.
    async fn filled(bytes: u64) -> (TcpStream, TcpStream) {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.set_recv_buffer_size(4 * LITTLE as u32).expect("set"); // taken over by connections
        socket.bind("127.0.0.1:0".parse().expect("an address")).expect("bound");
        let listener = socket.listen(1).expect("listens");
        let connected = TcpStream::connect(listener.local_addr().expect("an address"));
        let (other, accepted) = tokio::join!(connected, listener.accept());
        let (mut other, (tcp, _)) = (other.expect("connected"), accepted.expect("accepted"));
        other.write_all(&vec![b'x'; bytes as usize]).await.expect("the kernel has room");
        let all = async {
            while rustix::io::ioctl_fionread(&tcp).expect("it says") < bytes {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), all).await.expect("it arrives");
        (tcp, other)
    }

    /// A connection that was closed with something unread is refused by the kernel at the second write at the latest.
    async fn is_open(other: &mut TcpStream) -> bool {
        other.write_all(b"more").await.is_ok() && other.write_all(b"more").await.is_ok()
    }

    #[tokio::test]
    async fn what_nobody_read_is_let_go_elsewhere() {
        let (sender, receiver) = sync_channel(1);
        let (tcp, mut other) = filled(LITTLE + 1).await;
        close(tcp, || Some(&sender));
        assert!(is_open(&mut other).await);
        drop(receiver.try_recv().expect("handed over"));
        assert!(!is_open(&mut other).await);
    }

    #[tokio::test]
    async fn little_or_too_many_at_once_are_let_go_where_they_end() {
        let (sender, _receiver) = sync_channel(1);
        let (tcp, mut other) = filled(LITTLE).await;
        close(tcp, || panic!("not for so little"));
        assert!(!is_open(&mut other).await);
        close(filled(LITTLE + 1).await.0, || Some(&sender));
        let (tcp, mut other) = filled(LITTLE + 1).await;
        close(tcp, || Some(&sender));
        assert!(!is_open(&mut other).await, "the thread has enough");
        let (tcp, mut other) = filled(LITTLE + 1).await;
        close(tcp, || None);
        assert!(!is_open(&mut other).await, "there is no thread");
    }

    #[tokio::test]
    async fn a_dropped_connection_is_closed_by_the_thread() {
        let (tcp, mut other) = filled(LITTLE + 1).await;
        drop(Socket::new(tcp));
        let closed = async {
            while is_open(&mut other).await {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), closed).await.expect("closed");
    }
}
