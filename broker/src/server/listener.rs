//! Accepts connections and speaks HTTP/2 on them, within bounds.
//!
//! Not tonic's own server: that one fixes TLS at start, and answers a passed deadline with CANCELLED, which some
//! clients take for "stop for ever".
//! Not here: what a request does (`super`).

use std::{convert::Infallible, io, net::SocketAddr, sync::Arc, time::Duration};

use http::{Request, Response};
use hyper::{body::Incoming, server::conn::http2};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use rustls::ServerConfig;
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::body::Body;
use tower::{Service, ServiceExt as _};

use super::greeting::greeted;
use crate::config::Limits;

/// Long enough for the slowest honest client.
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);

/// Pings keep middleboxes from dropping quiet connections, and find clients that are gone.
const PING_INTERVAL: Duration = Duration::from_secs(300);
const PING_TIMEOUT: Duration = Duration::from_secs(20);
const TCP_KEEPALIVE: Duration = Duration::from_secs(60);

/// What a client may send before it has to wait: the default 64 KiB would make large requests slow over a real network.
const STREAM_WINDOW_BYTES: u32 = 4 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;

/// What a response stream may have buffered beyond what the client takes. Twenty bulk streams with slow clients hold
/// this much each, and one chunk.
const SEND_BUFFER_BYTES_MAX: usize = 512 << 10;

/// Metadata is small; this is what Go servers accept, too.
const HEADERS_BYTES_MAX: u32 = 16 << 10;

/// After an error that accepting alone cannot get over, such as no free file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A bound port.
pub(super) struct Listener {
    tcp: TcpListener,
    tls: Option<Arc<ServerConfig>>,
    limits: Limits,
}

impl Listener {
    /// Binds the address. `[::]` falls back to `0.0.0.0` on a machine without IPv6.
    ///
    /// # Errors
    /// When the port cannot be had.
    pub(super) async fn bind(address: SocketAddr, tls: Option<Arc<ServerConfig>>, limits: Limits) -> io::Result<Self> {
        Ok(Self { tcp: bind(address).await?, tls, limits })
    }

    /// The address with its real port.
    ///
    /// # Errors
    /// When the system does not know.
    pub(super) fn address(&self) -> io::Result<SocketAddr> {
        self.tcp.local_addr()
    }

    /// Serves until `closing`; then accepts nobody, lets each connection end what is under way, and returns when all
    /// are closed.
    pub(super) async fn serve<S>(self, service: S, closing: CancellationToken)
    where
        S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
        S::Future: Send + 'static,
    {
        let connections = TaskTracker::new();
        let free = Arc::new(Semaphore::new(self.limits.connections_max));
        while let Some((socket, permit)) = closing.run_until_cancelled(accept(&self.tcp, &free)).await {
            let connection = Connection {
                tls: self.tls.clone(),
                streams_max: self.limits.connection_streams_max,
                closing: closing.clone(),
            };
            let service = service.clone();
            connections.spawn(async move {
                connection.serve(socket, service).await;
                drop(permit);
            });
        }
        // The port is free from here on: who comes now is refused, and goes elsewhere.
        drop(self.tcp);
        connections.close();
        connections.wait().await;
    }
}

/// Binds a TCP port, see [`Listener::bind`].
pub(super) async fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    match TcpListener::bind(address).await {
        Err(_) if address.ip() == std::net::Ipv6Addr::UNSPECIFIED => {
            TcpListener::bind((std::net::Ipv4Addr::UNSPECIFIED, address.port())).await
        }
        result => result,
    }
}

/// The next connection, once there is room for it.
async fn accept(tcp: &TcpListener, free: &Arc<Semaphore>) -> (TcpStream, OwnedSemaphorePermit) {
    loop {
        // The semaphore is never closed.
        let Ok(permit) = free.clone().acquire_owned().await else { continue };
        match tcp.accept().await {
            Ok((socket, _)) => return (socket, permit),
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

struct Connection {
    tls: Option<Arc<ServerConfig>>,
    streams_max: u32,
    closing: CancellationToken,
}

impl Connection {
    async fn serve<S>(self, socket: TcpStream, service: S)
    where
        S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
        S::Future: Send + 'static,
    {
        if let Err(error) = configure(&socket) {
            tracing::debug!(%error, "cannot configure a connection");
        }
        match self.tls.clone() {
            // Whoever connects has to say something; a silent connection would hold its place for nothing.
            None => {
                if let Some(greeted) = self.in_time(greeted(socket)).await {
                    self.speak(greeted, service).await;
                }
            }
            Some(tls) => {
                let accept = async { greeted(TlsAcceptor::from(tls).accept(socket).await?).await };
                if let Some(greeted) = self.in_time(accept).await {
                    self.speak(greeted, service).await;
                }
            }
        }
    }

    /// What a client does first, unless it takes too long over it, or gets it wrong, or the server is stopping.
    async fn in_time<T>(&self, first: impl Future<Output = io::Result<T>>) -> Option<T> {
        match self.closing.run_until_cancelled(timeout(HANDSHAKE_MAX, first)).await? {
            Ok(Ok(done)) => return Some(done),
            Ok(Err(error)) => tracing::debug!(%error, "a handshake failed"),
            Err(_) => tracing::debug!("a handshake took too long"),
        }
        None
    }

    async fn speak<S>(self, io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, service: S)
    where
        S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
        S::Future: Send + 'static,
    {
        let service =
            TowerToHyperService::new(service.map_request(|request: Request<Incoming>| request.map(Body::new)));
        let connection = self.protocol().serve_connection(TokioIo::new(io), service);
        tokio::pin!(connection);
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = self.closing.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = ended {
            tracing::debug!(%error, "a connection broke");
        }
    }

    fn protocol(&self) -> http2::Builder<TokioExecutor> {
        let mut protocol = http2::Builder::new(TokioExecutor::new());
        protocol
            .timer(TokioTimer::new())
            .max_concurrent_streams(self.streams_max)
            // A proxy carries the calls of many clients, and may cancel all of them at once.
            .max_pending_accept_reset_streams(self.streams_max as usize)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_send_buf_size(SEND_BUFFER_BYTES_MAX)
            .max_header_list_size(HEADERS_BYTES_MAX)
            .keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_TIMEOUT);
        protocol
    }
}

fn configure(socket: &TcpStream) -> io::Result<()> {
    socket.set_nodelay(true)?;
    SockRef::from(socket)
        .set_tcp_keepalive(&TcpKeepalive::new().with_time(TCP_KEEPALIVE).with_interval(TCP_KEEPALIVE / 4))
}
