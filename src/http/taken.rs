//! How much of what is written to a connection its peer has taken: who takes a little now and then is slow, who takes nothing is gone.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
};

use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

/// Counts the bytes that a connection's socket has taken. Each request of the connection carries it as an extension.
#[derive(Debug, Clone, Default)]
pub struct Taken(Arc<AtomicU64>);

impl Taken {
    /// Bytes so far.
    pub fn bytes(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A stream that counts what it takes.
pub(crate) struct Counted<S> {
    stream: S,
    taken: Taken,
    /// Writes without asking whether there is much room.
    push: fn(&S, &[u8]) -> io::Result<usize>,
}

impl Counted<TcpStream> {
    pub(crate) fn new(stream: TcpStream, taken: Taken) -> Self {
        Self { stream, taken, push: |stream, bytes| SockRef::from(stream).send(bytes) }
    }
}

#[cfg(test)]
impl<S> Counted<S> {
    pub(crate) fn without_pushing(stream: S, taken: Taken) -> Self {
        Self { stream, taken, push: |_, _| Err(io::ErrorKind::WouldBlock.into()) }
    }
}

impl<S> Counted<S> {
    /// The kernel tells that a socket is writable only when a third of its buffer is free, which may be a megabyte. Whoever looks
    /// again before (a timer does, while something waits to be sent) gets in what there is room for.
    fn settle(&self, written: Poll<io::Result<usize>>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let n_written = match written {
            Poll::Pending if !bytes.is_empty() => match (self.push)(&self.stream, bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Poll::Pending,
                pushed => pushed?,
            },
            written => ready!(written)?,
        };
        self.taken.0.fetch_add(n_written as u64, Ordering::Relaxed);
        Poll::Ready(Ok(n_written))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Counted<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Counted<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.settle(written, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        let first = slices.iter().find(|slice| !slice.is_empty());
        self.settle(written, first.map(|slice| &**slice).unwrap_or_default())
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures_util::FutureExt;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::{TcpListener, TcpSocket},
    };

    use super::*;

    #[tokio::test]
    async fn little_room_is_used_when_somebody_looks() {
        const PART: usize = 16 * 1024;
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.set_recv_buffer_size(32 * 1024).expect("set");
        let connecting = socket.connect(listener.local_addr().expect("an address"));
        let (client, accepted) = tokio::join!(connecting, listener.accept());
        let (mut client, (stream, _)) = (client.expect("connected"), accepted.expect("accepted"));
        let buffer = SockRef::from(&stream).send_buffer_size().expect("a size");
        let taken = Taken::default();
        let mut counted = Counted::new(stream, taken.clone());
        let bytes = vec![0; PART];
        // Until nothing gets in, also not a little later.
        for _ in 0..3 {
            while counted.write(&bytes).now_or_never().is_some() {}
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let full = taken.bytes();
        let mut n_read = 0;
        while taken.bytes() == full {
            n_read += client.read(&mut vec![0; PART]).await.expect("read");
            assert!(n_read < buffer / 3, "{n_read} of {buffer} bytes are read, and none gets in");
            tokio::time::sleep(Duration::from_millis(20)).await;
            let _written = counted.write(&bytes).now_or_never();
        }
    }

    #[tokio::test]
    async fn what_is_written_is_counted() {
        let (near, mut far) = tokio::io::duplex(8);
        let taken = Taken::default();
        let mut counted = Counted::without_pushing(near, taken.clone());
        assert!(counted.write_all(&[0; 20]).now_or_never().is_none());
        assert_eq!(taken.bytes(), 8);
        far.read_exact(&mut [0; 3]).await.expect("read");
        assert_eq!(counted.write(&[0; 20]).await.expect("written"), 3);
        assert_eq!(taken.bytes(), 11);
    }
}
