//! One connection to a member: TCP, TLS, HTTP/2; or to the socket of a node on this machine.
//!
//! Not here: when to connect, and which connection a message takes (`link`, `client`).

use std::{
    io::{self, IoSlice},
    path::Path,
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context, Poll},
    time::Duration,
};

use futures::future::BoxFuture;
use http::{Request, Response};
use hyper::{
    body::Incoming,
    client::conn::http2::{Builder, SendRequest},
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use pin_project_lite::pin_project;
use rustls_pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpStream, UnixStream},
    time::timeout,
};
use tokio_rustls::TlsConnector;
use tonic::body::Body;
use tower::Service;

use super::{
    material::Material,
    tls::{self, Expected},
};
use crate::net::{reason, tls_error};

/// For connection and handshakes: longer than one lost packet takes to be sent again.
const CONNECT_MAX: Duration = Duration::from_secs(2);

/// A peer that is gone without a word is noticed within the sum.
const PING_INTERVAL: Duration = Duration::from_secs(1);
const PING_TIMEOUT: Duration = Duration::from_secs(2);

/// What a peer may send before it has to wait; answers are small.
const STREAM_WINDOW_BYTES: u32 = 4 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 8 << 20;

/// What is encoded ahead of what the network takes.
const SEND_BUFFER_BYTES_MAX: usize = 1 << 20;

/// What members call each other in TLS, where a name is obligatory. Nobody looks at it.
const NOBODY: &str = "databroker.internal";

/// Why there is no connection.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DialError {
    /// Nobody answers.
    #[error("{0}")]
    Unreachable(String),
    /// Somebody answers who is not the right one, or does not take us for the right one.
    #[error("{0}")]
    Refused(String),
}

/// An open connection. Clones share it.
#[derive(Clone)]
pub struct Open {
    requests: SendRequest<Body>,
    broke: Arc<OnceLock<DialError>>,
}

impl Open {
    /// A connection to a member at `host:port`.
    ///
    /// # Errors
    /// When there is none within two seconds, or one side refuses the other.
    pub(super) async fn tls(address: &str, material: &Material, expected: Expected) -> Result<Self, DialError> {
        let config = tls::client_config(material, expected).map_err(|error| DialError::Refused(error.to_string()))?;
        let connected = async {
            let socket = TcpStream::connect(address).await?;
            socket.set_nodelay(true)?;
            let name = ServerName::try_from(NOBODY).map_err(io::Error::other)?;
            TlsConnector::from(config).connect(name, socket).await
        };
        Self::begin(connected).await
    }

    /// A connection to a socket.
    ///
    /// # Errors
    /// When nobody listens there.
    pub(super) async fn unix(path: &Path) -> Result<Self, DialError> {
        Self::begin(UnixStream::connect(path)).await
    }

    async fn begin<S>(connected: impl Future<Output = io::Result<S>>) -> Result<Self, DialError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        match timeout(CONNECT_MAX, async { Self::speak(connected.await.map_err(|error| judged(&error))?).await }).await
        {
            Ok(open) => open,
            Err(_) => Err(DialError::Unreachable("no connection in time".into())),
        }
    }

    async fn speak(io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> Result<Self, DialError> {
        let broke = Arc::new(OnceLock::new());
        let watched = Watched { io, broke: broke.clone() };
        let spoken = protocol().handshake(TokioIo::new(watched)).await;
        let (requests, connection) = spoken.map_err(|error| DialError::Unreachable(error.to_string()))?;
        // Ends when the last clone is gone, or the connection breaks; then its requests say so.
        tokio::spawn(async move {
            let _ = connection.await;
        });
        Ok(Self { requests, broke })
    }

    /// Whether nothing can be asked any more.
    pub(super) fn is_closed(&self) -> bool {
        self.requests.is_closed()
    }

    /// How the connection broke, if it did. In TLS 1.3 this is how one hears that the other side refuses the
    /// certificate.
    pub(super) fn broke(&self) -> Option<&DialError> {
        self.broke.get()
    }
}

fn protocol() -> Builder<TokioExecutor> {
    let mut protocol = Builder::new(TokioExecutor::new());
    protocol
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_send_buf_size(SEND_BUFFER_BYTES_MAX)
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT)
        .keep_alive_while_idle(true);
    protocol
}

/// TLS refuses; the network breaks.
fn judged(error: &io::Error) -> DialError {
    match tls_error(error) {
        Some(_) => DialError::Refused(reason(error)),
        None => DialError::Unreachable(error.to_string()),
    }
}

impl Service<Request<Body>> for Open {
    type Response = Response<Incoming>;
    type Error = hyper::Error;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.requests.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        Box::pin(self.requests.send_request(request))
    }
}

pin_project! {
    /// A connection that remembers its first error: HTTP/2 keeps to itself what it was.
    struct Watched<S> {
        #[pin]
        io: S,
        broke: Arc<OnceLock<DialError>>,
    }
}

impl<S: AsyncRead> AsyncRead for Watched<S> {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.project();
        let read = this.io.poll_read(context, out);
        if let Poll::Ready(Err(error)) = &read {
            let _ = this.broke.set(judged(error));
        }
        read
    }
}

impl<S: AsyncWrite> AsyncWrite for Watched<S> {
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
