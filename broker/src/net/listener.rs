//! Accepts connections and speaks HTTP/2 on them, within bounds.
//!
//! Not tonic's own server: that one fixes TLS at start, and answers a passed deadline with CANCELLED, which some
//! clients take for "stop for ever".
//! Not here: what a request does.

use std::{
    collections::HashMap,
    convert::Infallible,
    io,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use http::{Request, Response};
use hyper::{body::Incoming, server::conn::http2};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use parking_lot::Mutex;
use rustls::ServerConfig;
use rustls_pki_types::CertificateDer;
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::body::Body;
use tower::{Service, ServiceExt as _};

use super::{greeting::greeted, reason::reason};

/// Long enough for the slowest honest client.
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);

const TCP_KEEPALIVE: Duration = Duration::from_secs(60);

/// What a client may send before it has to wait: the default 64 KiB would make large requests slow over a real network.
const STREAM_WINDOW_BYTES: u32 = 4 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;

/// What a response stream may have buffered beyond what the client takes. Twenty bulk streams with slow clients hold
/// this much each, and one chunk.
const SEND_BUFFER_BYTES_MAX: usize = 512 << 10;

/// Metadata is small; this is what Go servers accept, too.
const HEADERS_BYTES_MAX: u32 = 16 << 10;

/// How long a client may take to leave that was asked to.
const FAREWELL: Duration = Duration::from_secs(5);

/// After an error that accepting alone cannot get over, such as no free file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Time between two refused handshakes that people are told about: whoever can connect could fill the log.
const NEWS_PAUSE: Duration = Duration::from_secs(1);

/// The same for two of one reason from one address: a peer with a wrong certificate tries for as long as it has one.
const SAME_NEWS_PAUSE: Duration = Duration::from_secs(60);

/// Addresses with reasons that are remembered. With more, some are told of too often, once each `NEWS_PAUSE` at most.
const NEWS_MAX: usize = 256;

/// What is allowed on a port.
#[derive(Clone, Debug)]
pub(crate) struct Bounds {
    /// Connections that are open at a time; more wait to be accepted.
    pub(crate) connections_max: usize,
    /// Requests and streams under way on one connection.
    pub(crate) connection_streams_max: u32,
    /// How often a connection is asked whether its other end is there.
    pub(crate) ping_interval: Duration,
    /// How long it has to say so.
    pub(crate) ping_timeout: Duration,
    /// Whether people want to know of a handshake that fails: on a port that only a few should know.
    pub(crate) refusals_are_news: bool,
    /// How long a connection nobody has vouched for keeps its place while others wait for one; `None` where whoever can
    /// connect is known.
    pub(crate) stranger_max: Option<Duration>,
}

/// Whether somebody has vouched for a connection. Its requests carry this as an extension.
#[derive(Clone, Debug, Default)]
pub(crate) struct Standing(Arc<AtomicBool>);

impl Standing {
    /// A request on it has shown who it is from.
    pub(crate) fn vouch(&self) {
        self.0.store(true, Relaxed);
    }

    fn is_known(&self) -> bool {
        self.0.load(Relaxed)
    }
}

/// Who has connected.
#[derive(Clone, Debug, Default)]
pub(crate) struct Caller {
    /// The certificate it showed, verified; none where none is asked for.
    pub(crate) certificate: Option<CertificateDer<'static>>,
}

/// A bound port or socket.
pub(crate) struct Listener {
    door: Door,
    bounds: Bounds,
}

enum Door {
    Tcp(TcpListener, Option<Arc<ServerConfig>>),
    Unix(UnixListener),
}

enum Accepted {
    Tcp(TcpStream, Option<Arc<ServerConfig>>),
    Unix(UnixStream),
}

impl Listener {
    /// Binds the address. `[::]` falls back to `0.0.0.0` on a machine without IPv6.
    ///
    /// # Errors
    /// When the port cannot be had.
    pub(crate) async fn bind(address: SocketAddr, tls: Option<Arc<ServerConfig>>, bounds: Bounds) -> io::Result<Self> {
        Ok(Self { door: Door::Tcp(bind(address).await?, tls), bounds })
    }

    /// Listens on a socket in the file system. Who may open its file may call.
    pub(crate) fn unix(socket: UnixListener, bounds: Bounds) -> Self {
        Self { door: Door::Unix(socket), bounds }
    }

    /// The address with its real port.
    ///
    /// # Errors
    /// When the system does not know, or it is not a port.
    pub(crate) fn address(&self) -> io::Result<SocketAddr> {
        match &self.door {
            Door::Tcp(tcp, _) => tcp.local_addr(),
            Door::Unix(_) => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    /// Serves until `closing`, each connection with the service made for its caller; then accepts nobody, lets each
    /// connection end what is under way, and returns when all are closed.
    pub(crate) async fn serve<F, S>(self, service_for: F, closing: CancellationToken)
    where
        F: Fn(&Caller) -> S + Clone + Send + 'static,
        S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
        S::Future: Send + 'static,
    {
        let connections = TaskTracker::new();
        let free = Arc::new(Semaphore::new(self.bounds.connections_max));
        let news = Arc::new(News::default());
        while let Some((accepted, permit)) = closing.run_until_cancelled(self.door.accept(&free)).await {
            let connection = Connection {
                bounds: self.bounds.clone(),
                free: free.clone(),
                news: news.clone(),
                closing: closing.clone(),
            };
            let service_for = service_for.clone();
            connections.spawn(async move {
                connection.serve(accepted, service_for).await;
                drop(permit);
            });
        }
        // The port is free from here on: who comes now is refused, and goes elsewhere.
        drop(self.door);
        connections.close();
        connections.wait().await;
    }
}

/// Binds a TCP port, see [`Listener::bind`].
pub(crate) async fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    match TcpListener::bind(address).await {
        Err(_) if address.ip() == std::net::Ipv6Addr::UNSPECIFIED => {
            TcpListener::bind((std::net::Ipv4Addr::UNSPECIFIED, address.port())).await
        }
        result => result,
    }
}

impl Door {
    /// The next connection, once there is room for it.
    async fn accept(&self, free: &Arc<Semaphore>) -> (Accepted, OwnedSemaphorePermit) {
        accept(free, || async {
            match self {
                Self::Tcp(tcp, tls) => tcp.accept().await.map(|(socket, _)| Accepted::Tcp(socket, tls.clone())),
                Self::Unix(unix) => unix.accept().await.map(|(socket, _)| Accepted::Unix(socket)),
            }
        })
        .await
    }
}

/// The next connection, once there is room for it, by whatever accepts one.
pub(crate) async fn accept<T, F: Future<Output = io::Result<T>>>(
    free: &Arc<Semaphore>,
    next: impl Fn() -> F,
) -> (T, OwnedSemaphorePermit) {
    loop {
        // The semaphore is never closed.
        let Ok(permit) = free.clone().acquire_owned().await else { continue };
        match next().await {
            Ok(accepted) => return (accepted, permit),
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

struct Connection {
    bounds: Bounds,
    /// Places for others.
    free: Arc<Semaphore>,
    news: Arc<News>,
    closing: CancellationToken,
}

impl Connection {
    async fn serve<F, S>(self, accepted: Accepted, service_for: F)
    where
        F: Fn(&Caller) -> S,
        S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
        S::Future: Send + 'static,
    {
        match accepted {
            // Whoever connects has to say something; a silent connection would hold its place for nothing.
            Accepted::Unix(socket) => {
                if let Some(greeted) = self.in_time(None, greeted(socket)).await {
                    self.speak(greeted, service_for(&Caller::default())).await;
                }
            }
            Accepted::Tcp(socket, None) => {
                configure(&socket);
                let from = socket.peer_addr().ok();
                if let Some(greeted) = self.in_time(from, greeted(socket)).await {
                    self.speak(greeted, service_for(&Caller::default())).await;
                }
            }
            Accepted::Tcp(socket, Some(tls)) => {
                configure(&socket);
                let from = socket.peer_addr().ok();
                let accept = async {
                    let stream = TlsAcceptor::from(tls).accept(socket).await?;
                    let shown = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
                    let caller = Caller { certificate: shown.map(|leaf| leaf.clone().into_owned()) };
                    Ok((greeted(stream).await?, caller))
                };
                if let Some((greeted, caller)) = self.in_time(from, accept).await {
                    self.speak(greeted, service_for(&caller)).await;
                }
            }
        }
    }

    /// What a client does first, unless it takes too long over it, or gets it wrong, or the server is stopping.
    async fn in_time<T>(&self, from: Option<SocketAddr>, first: impl Future<Output = io::Result<T>>) -> Option<T> {
        match self.closing.run_until_cancelled(timeout(HANDSHAKE_MAX, first)).await? {
            Ok(Ok(done)) => return Some(done),
            // Port checks connect and go; that is no news.
            Ok(Err(error)) => {
                let reason = reason(&error);
                let is_news = self.bounds.refusals_are_news
                    && refused(&error)
                    && self.news.due(from.map(|from| from.ip()), &reason, Instant::now());
                if is_news {
                    tracing::warn!(?from, reason, "refused a connection");
                } else {
                    tracing::debug!(?from, reason, "a handshake failed");
                }
            }
            Err(_) => tracing::debug!(?from, "a handshake took too long"),
        }
        None
    }

    async fn speak<S>(self, io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, service: S)
    where
        S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
        S::Future: Send + 'static,
    {
        let standing = Standing::default();
        let vouched = standing.clone();
        let service = TowerToHyperService::new(service.map_request(move |request: Request<Incoming>| {
            let mut request = request.map(Body::new);
            request.extensions_mut().insert(vouched.clone());
            request
        }));
        let connection = self.protocol().serve_connection(TokioIo::new(io), service);
        tokio::pin!(connection);
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = self.closing.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
            () = self.unwelcome(&standing) => {
                connection.as_mut().graceful_shutdown();
                // Whoever is told and stays is cut off.
                timeout(FAREWELL, connection).await.unwrap_or(Ok(()))
            }
        };
        if let Err(error) = ended {
            tracing::debug!(%error, "a connection broke");
        }
    }

    /// Returns when a connection that nobody has vouched for stands in the way of others.
    async fn unwelcome(&self, standing: &Standing) {
        let Some(patience) = self.bounds.stranger_max else { return std::future::pending().await };
        loop {
            tokio::time::sleep(patience).await;
            if !standing.is_known() && self.free.available_permits() == 0 {
                return;
            }
        }
    }

    fn protocol(&self) -> http2::Builder<TokioExecutor> {
        let streams_max = self.bounds.connection_streams_max;
        let mut protocol = http2::Builder::new(TokioExecutor::new());
        protocol
            .timer(TokioTimer::new())
            .max_concurrent_streams(streams_max)
            // A proxy carries the calls of many clients, and may cancel all of them at once.
            .max_pending_accept_reset_streams(streams_max as usize)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_send_buf_size(SEND_BUFFER_BYTES_MAX)
            .max_header_list_size(HEADERS_BYTES_MAX)
            .keep_alive_interval(self.bounds.ping_interval)
            .keep_alive_timeout(self.bounds.ping_timeout);
        protocol
    }
}

/// TLS says no, as opposed to a connection that breaks.
fn refused(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::InvalidData
}

/// Lets people hear of something at most once in [`NEWS_PAUSE`], and of the same at most once in [`SAME_NEWS_PAUSE`].
#[derive(Default)]
struct News(Mutex<Told>);

#[derive(Default)]
struct Told {
    last: Option<Instant>,
    of: HashMap<(Option<IpAddr>, String), Instant>,
}

impl News {
    fn due(&self, from: Option<IpAddr>, reason: &str, now: Instant) -> bool {
        let mut told = self.0.lock();
        let is_over = |at: &Instant, pause| now.duration_since(*at) >= pause;
        if !told.last.as_ref().is_none_or(|at| is_over(at, NEWS_PAUSE)) {
            return false;
        }
        told.of.retain(|_, at| !is_over(at, SAME_NEWS_PAUSE));
        let what = (from, reason.to_owned());
        if told.of.contains_key(&what) {
            return false;
        }
        told.last = Some(now);
        if told.of.len() < NEWS_MAX {
            told.of.insert(what, now);
        }
        true
    }
}

fn configure(socket: &TcpStream) {
    let keepalive = TcpKeepalive::new().with_time(TCP_KEEPALIVE).with_interval(TCP_KEEPALIVE / 4);
    let configured = socket.set_nodelay(true).and_then(|()| SockRef::from(socket).set_tcp_keepalive(&keepalive));
    if let Err(error) = configured {
        tracing::debug!(%error, "cannot configure a connection");
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    /// A client that says what HTTP/2 begins with, and no more; returns its connection once the server has said its part.
    async fn silent(address: SocketAddr) -> TcpStream {
        let mut socket = TcpStream::connect(address).await.unwrap();
        socket.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
        let mut frame = [0; 9];
        timeout(Duration::from_secs(20), socket.read_exact(&mut frame)).await.expect("it has no place").unwrap();
        socket
    }

    #[tokio::test]
    async fn a_silent_connection_makes_room_for_others_and_one_that_is_vouched_for_does_not() {
        let bounds = Bounds {
            connections_max: 1,
            connection_streams_max: 10,
            ping_interval: Duration::from_secs(300),
            ping_timeout: Duration::from_secs(20),
            refusals_are_news: false,
            stranger_max: Some(Duration::from_millis(100)),
        };
        let listener = Listener::bind("127.0.0.1:0".parse().unwrap(), None, bounds.clone()).await.unwrap();
        let (address, closing) = (listener.address().unwrap(), CancellationToken::new());
        let service =
            tower::service_fn(|_: Request<Body>| async { Ok::<_, Infallible>(Response::new(Body::default())) });
        let serving = tokio::spawn(listener.serve(move |_| service, closing.clone()));
        let first = silent(address).await;
        drop(silent(address).await);
        drop(first);
        closing.cancel();
        serving.await.unwrap();

        let full = Arc::new(Semaphore::new(0));
        let connection = Connection { bounds, free: full, news: Arc::default(), closing: CancellationToken::new() };
        let (known, stranger) = (Standing::default(), Standing::default());
        known.vouch();
        let while_ = Duration::from_millis(400);
        assert!(timeout(while_, connection.unwelcome(&known)).await.is_err());
        assert!(timeout(while_, connection.unwelcome(&stranger)).await.is_ok());
    }

    #[test]
    fn the_same_refusal_is_told_once_a_minute_and_any_once_a_second() {
        let (news, began) = (News::default(), Instant::now());
        let due = |seconds, from: u8, reason: &str| {
            news.due(Some([127, 0, 0, from].into()), reason, began + Duration::from_secs(seconds))
        };
        assert!(due(0, 1, "a") && !due(0, 1, "b") && !due(0, 2, "a"));
        assert!(!due(2, 1, "a") && due(2, 1, "b") && due(3, 2, "a"));
        assert!(!due(59, 1, "a") && due(60, 1, "a") && !due(61, 1, "b") && due(62, 1, "b"));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let (news, began) = (News::default(), Instant::now());
        for number in 0..2 * NEWS_MAX as u64 {
            // A day's worth in no time: none of them is over.
            news.0.lock().last = None;
            assert!(news.due(None, &number.to_string(), began));
        }
        assert_eq!(news.0.lock().of.len(), NEWS_MAX);
    }
}
