//! The port of peers and administrators: lets in who shows a certificate of the cluster, and each only to what it may do.
//!
//! Not here: the handshake (`tls`), the table of rights (`identity`), answers (`services`).

use std::{
    convert::Infallible,
    io,
    net::SocketAddr,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use databroker_proto::internal::{admin_server::AdminServer, raft_server::RaftServer};
use futures::future::{Either, Ready, ready};
use http::{Request, Response};
use tokio_util::sync::CancellationToken;
use tonic::{body::Body, service::Routes};
use tower::Service;

use super::{
    Admin, MESSAGE_BYTES_MAX, PeerName, Peers,
    identity::{Identity, Role},
    material::Material,
    services::{AdminService, RaftService},
    status::forbidden,
    tls,
};
use crate::net::{Bounds, Caller, Listener};

/// Two per peer and one per operator: a bound against whoever opens them without end.
const CONNECTIONS_MAX: usize = 256;

/// More than a peer ever asks at a time.
const CONNECTION_STREAMS_MAX: u32 = 512;

/// A peer that is gone holds its connection no longer than this.
const PING_INTERVAL: Duration = Duration::from_secs(10);
const PING_TIMEOUT: Duration = Duration::from_secs(5);

/// Why peers cannot connect.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The port cannot be had.
    #[error("cannot listen on {address} for peers: {source}")]
    Bind {
        /// Where.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The library refuses.
    #[error("cannot set up TLS for peers: {0}")]
    Tls(#[source] rustls::Error),
}

/// A port that is open, but not served yet.
pub struct Server {
    listener: Listener,
    address: SocketAddr,
}

impl Server {
    /// Opens the port.
    ///
    /// # Errors
    /// When it cannot be had.
    pub async fn bind(address: SocketAddr, material: &Material) -> Result<Self, BindError> {
        let tls = tls::server_config(material).map_err(BindError::Tls)?;
        let failed = |source| BindError::Bind { address, source };
        let listener = Listener::bind(address, Some(tls), bounds()).await.map_err(failed)?;
        let address = listener.address().map_err(failed)?;
        Ok(Self { listener, address })
    }

    /// Where it listens, with the real port.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `closing`, and then until everything under way has ended, which may take as long as a store takes to
    /// come in.
    pub async fn serve<P: Peers, A: Admin>(self, peers: Arc<P>, admin: Arc<A>, closing: CancellationToken) {
        let raft = RaftServer::new(RaftService(peers)).max_decoding_message_size(MESSAGE_BYTES_MAX);
        let routes = Routes::new(raft).add_service(AdminServer::new(AdminService(admin))).prepare();
        self.listener.serve(move |caller| Gate::new(caller, routes.clone()), closing).await;
    }
}

fn bounds() -> Bounds {
    Bounds {
        connections_max: CONNECTIONS_MAX,
        connection_streams_max: CONNECTION_STREAMS_MAX,
        ping_interval: PING_INTERVAL,
        ping_timeout: PING_TIMEOUT,
        refusals_are_news: true,
        stranger_max: None,
    }
}

/// Stands before the services of one connection, and knows whose it is.
#[derive(Clone)]
struct Gate {
    who: Option<Identity>,
    routes: Routes,
}

impl Gate {
    fn new(caller: &Caller, routes: Routes) -> Self {
        let who = caller.certificate.as_ref().and_then(|shown| Identity::of_certificate(shown).ok());
        Self { who, routes }
    }
}

impl Service<Request<Body>> for Gate {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Either<<Routes as Service<Request<Body>>>::Future, Ready<Result<Response<Body>, Infallible>>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Service::<Request<Body>>::poll_ready(&mut self.routes, context)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        match &self.who {
            Some(who) if who.may(request.uri().path()) => {
                if let Role::Node(name) = &who.role {
                    request.extensions_mut().insert(PeerName::from(name.as_str()));
                }
                Either::Left(self.routes.call(request))
            }
            who => {
                let who = who.as_ref().map_or_else(|| "a stranger".to_owned(), ToString::to_string);
                tracing::warn!(%who, path = request.uri().path(), "refused a call");
                Either::Right(ready(Ok(forbidden(&who).into_http())))
            }
        }
    }
}
