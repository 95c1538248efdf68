//! What an HTTP/2 client says first, read before the protocol begins: the protocol's own code waits for it for ever.
//!
//! Not here: how long the client has, and whether it is the right greeting (the protocol says that, to whom it reads).

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll},
};

use pin_project_lite::pin_project;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};

/// The connection preface of HTTP/2 (RFC 9113, 3.4) has this many bytes.
const GREETING_BYTES: usize = 24;

pin_project! {
    /// A connection whose greeting has come; it is read again, and then what follows.
    pub(super) struct Greeted<S> {
        #[pin]
        io: S,
        greeting: [u8; GREETING_BYTES],
        read_again: usize,
    }
}

/// Waits for as many bytes as a greeting has.
pub(super) async fn greeted<S: AsyncRead + Unpin>(mut io: S) -> io::Result<Greeted<S>> {
    let mut greeting = [0; GREETING_BYTES];
    io.read_exact(&mut greeting).await?;
    Ok(Greeted { io, greeting, read_again: 0 })
}

impl<S: AsyncRead> AsyncRead for Greeted<S> {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.project();
        let left = this.greeting.get(*this.read_again..).unwrap_or_default();
        if left.is_empty() {
            return this.io.poll_read(context, out);
        }
        let (now, _) = left.split_at(left.len().min(out.remaining()));
        out.put_slice(now);
        *this.read_again += now.len();
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite> AsyncWrite for Greeted<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.project().io.poll_write(context, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.project().io.poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.project().io.poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.project().io.poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt as _;

    use super::*;

    #[tokio::test]
    async fn a_greeting_is_read_again_in_front_of_what_follows() {
        let sent = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nand more";
        let (mut client, server) = tokio::io::duplex(64);
        client.write_all(sent).await.unwrap();
        client.shutdown().await.unwrap();
        let mut read = Vec::new();
        greeted(server).await.unwrap().read_to_end(&mut read).await.unwrap();
        assert_eq!(read, sent);
    }

    #[tokio::test]
    async fn half_a_greeting_is_none() {
        let (mut client, server) = tokio::io::duplex(64);
        client.write_all(b"PRI * HTTP").await.unwrap();
        client.shutdown().await.unwrap();
        assert!(greeted(server).await.is_err());
    }
}
