//! The gRPC edge: decode, call, encode. And the HTTP port beside it, for those who watch.
//!
//! ```text
//!   net::Listener (TCP, TLS, HTTP/2) ─▶ calls (count, log) ─▶ deadline ─▶ auth (token) ─▶ mode ─▶ intake (bytes) ─▶ routes ─┐
//!                                                    records, sync, query, registry, checkpoint, health ◀──────┘
//! ```
//!
//! Not here: what a command does, who leads, what lies on disk. Errors become statuses in `status` alone.

mod auth;
mod calls;
mod checkpoint;
mod deadline;
mod edge;
mod health;
mod http;
mod intake;
mod metrics;
mod mode;
mod outflow;
mod pinned;
mod query;
mod records;
mod registry;
mod room;
mod status;
mod streams;
mod sync;
mod tls;

use std::{convert::Infallible, io, net::SocketAddr, sync::Arc, time::Duration};

use ::http::{Request, Response};
use axum::Router;
use databroker_proto::{
    SERVICES_DESCRIPTOR_SET,
    databroker::{
        checkpoint_service_server::CheckpointServiceServer, data_broker_service_server::DataBrokerServiceServer,
    },
    registry::registry_server::RegistryServer,
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::{body::Body, service::Routes};
use tonic_health::pb::health_server::HealthServer;
use tower::{Service, ServiceBuilder};

pub use crate::net::Certificates;
use crate::{
    config::{Grpc, Http, Limits, Secrets},
    net::{self, Bounds, Listener},
    node::Node,
};
pub use auth::{KeyError, read_key};
use calls::CallLayer;
use deadline::DeadlineLayer;
use edge::Edge;
use http::Pages;
use intake::{FREE_BYTES, IntakeLayer};
pub use metrics::DiskTimes;
use metrics::{Calls, Metrics};
use mode::ModeLayer;

/// Why the server cannot start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A port cannot be had.
    #[error("cannot listen on {address} for {what}: {source}")]
    Bind {
        /// What it is for.
        what: &'static str,
        /// Where.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// There are no keys.
    #[error(transparent)]
    Keys(#[from] KeyError),
    /// There is no TLS.
    #[error(transparent)]
    Tls(#[from] tls::Error),
    /// The interface's own description cannot be read.
    #[error("cannot describe the services: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
}

/// Says whether the files that the configuration names can be used: what a server reads when it starts.
///
/// # Errors
/// When a key or a certificate cannot be had.
pub fn check_files(grpc: &Grpc, secrets: &Secrets) -> Result<(), Error> {
    for secret in secrets.current.iter().chain(&secrets.previous) {
        read_key(secret)?;
    }
    Ok(grpc.tls.as_ref().map_or(Ok(()), tls::check)?)
}

/// How a server is told to end, in two steps: between them its node may hand over leadership.
#[derive(Clone, Debug, Default)]
pub struct Ending {
    /// Health checks say so, and no new streams are taken.
    pub leaving: CancellationToken,
    /// Open streams end, and nobody is accepted any more.
    pub closing: CancellationToken,
}

/// A server whose ports are open.
pub struct Server {
    grpc: Listener,
    routes: Routes,
    calls: Calls,
    auth: auth::AuthLayer,
    mode: ModeLayer,
    intake: IntakeLayer,
    pages: Vec<(TcpListener, Router)>,
    addresses: Addresses,
    certificates: Certificates,
    closing: CancellationToken,
}

/// Where a server listens, with real ports.
#[derive(Clone, Copy, Debug)]
pub struct Addresses {
    /// The gRPC interface.
    pub grpc: SocketAddr,
    /// Health checks.
    pub health: SocketAddr,
    /// Metrics.
    pub metrics: SocketAddr,
}

impl Server {
    /// Opens the ports. `certificates` are those that other ports show; `ending` is how the server is told to stop.
    ///
    /// # Errors
    /// When a port, a key or a certificate cannot be had.
    pub async fn bind(
        node: &Node,
        grpc: &Grpc,
        http: &Http,
        secrets: &Secrets,
        disk: &DiskTimes,
        mut certificates: Certificates,
        ending: &Ending,
    ) -> Result<Self, Error> {
        let keys = auth::Keys::load(secrets)?;
        let (tls, shown) = grpc.tls.as_ref().map(tls::server_config).transpose()?.unzip();
        if let Some(shown) = shown {
            certificates.add("grpc", shown);
        }
        let failed = |what, address| move |source| Error::Bind { what, address, source };
        let listening = Listener::bind(grpc.address, tls, bounds(&grpc.limits)).await;
        let listener = listening.map_err(failed("gRPC", grpc.address))?;

        let streams = streams::Streams::new(streams::StreamLimits {
            open_max: grpc.limits.streams_max,
            stalled_max: grpc.limits.stalled_max,
        });
        let calls = Calls::default();
        let metrics = Arc::new(Metrics::new(calls.clone(), disk, node.clone(), streams.clone(), certificates.clone()));
        let auth = auth::AuthLayer { keys, refused: metrics.tokens_refused.clone() };
        let pages = Pages { node: node.clone(), leaving: ending.leaving.clone(), metrics, watchdog: Arc::default() };
        let edge = Edge::new(node.clone(), streams, ending);
        let routes = routes(&edge, grpc.limits.request_bytes_max)?;
        let (pages, health, metrics) = open_pages(http, pages).await?;
        let grpc_address = listener.address().map_err(failed("gRPC", grpc.address))?;
        let addresses = Addresses { grpc: grpc_address, health, metrics };
        let intake = IntakeLayer::new(grpc.limits.request_bytes_max, grpc.limits.stalled_max);
        Ok(Self {
            grpc: listener,
            routes,
            calls,
            auth,
            mode: ModeLayer(node.clone()),
            intake,
            pages,
            addresses,
            certificates,
            closing: ending.closing.clone(),
        })
    }

    /// Where it listens.
    pub fn addresses(&self) -> Addresses {
        self.addresses
    }

    /// Serves until told to stop, and until every request under way has ended. The HTTP side answers to the last.
    pub async fn serve(self) {
        let mut beside: Vec<_> =
            self.pages.into_iter().map(|(tcp, router)| tokio::spawn(http::serve(tcp, router))).collect();
        beside.push(tokio::spawn(self.certificates.tell()));
        let calls = CallLayer { calls: self.calls, closing: self.closing.clone() };
        let service = layered(self.routes, calls, self.auth, self.mode, self.intake);
        self.grpc.serve(move |_| service.clone(), self.closing).await;
        for task in beside {
            task.abort();
        }
    }
}

/// Pings keep middleboxes from dropping quiet connections, and find clients that are gone.
fn bounds(limits: &Limits) -> Bounds {
    Bounds {
        connections_max: limits.connections_max,
        connection_streams_max: limits.connection_streams_max,
        ping_interval: Duration::from_secs(300),
        ping_timeout: Duration::from_secs(20),
        refusals_are_news: false,
        stranger_max: Some(Duration::from_secs(30)),
    }
}

fn layered(
    routes: Routes,
    calls: CallLayer,
    auth: auth::AuthLayer,
    mode: ModeLayer,
    intake: IntakeLayer,
) -> impl Service<Request<Body>, Response = Response<Body>, Error = Infallible, Future: Send + 'static>
+ Clone
+ Send
+ 'static {
    ServiceBuilder::new().layer(calls).layer(DeadlineLayer).layer(auth).layer(mode).layer(intake).service(routes)
}

fn routes(edge: &Edge, request_bytes_max: usize) -> Result<Routes, tonic_reflection::server::Error> {
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(SERVICES_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let records = DataBrokerServiceServer::new(records::Records(edge.clone()));
    Ok(Routes::new(records.max_decoding_message_size(request_bytes_max))
        .add_service(CheckpointServiceServer::new(checkpoint::Checkpoints(edge.clone())))
        .add_service(RegistryServer::new(registry::Services(edge.clone())))
        // These need no token: small messages are all they take.
        .add_service(HealthServer::new(health::Health::new(edge)).max_decoding_message_size(FREE_BYTES))
        .add_service(reflection().build_v1()?.max_decoding_message_size(FREE_BYTES))
        .add_service(reflection().build_v1alpha()?.max_decoding_message_size(FREE_BYTES))
        .prepare())
}

/// Opens the ports of the HTTP side: one, or two if metrics have their own.
async fn open_pages(http: &Http, pages: Pages) -> Result<(Vec<(TcpListener, Router)>, SocketAddr, SocketAddr), Error> {
    let health = http::health(pages.clone());
    let metrics = http::metrics(pages);
    match http.metrics.filter(|address| *address != http.health) {
        None => {
            let (tcp, address) = bind_page("health and metrics", http.health).await?;
            Ok((vec![(tcp, health.merge(metrics))], address, address))
        }
        Some(own) => {
            let (health_tcp, health_address) = bind_page("health", http.health).await?;
            let (metrics_tcp, metrics_address) = bind_page("metrics", own).await?;
            Ok((vec![(health_tcp, health), (metrics_tcp, metrics)], health_address, metrics_address))
        }
    }
}

async fn bind_page(what: &'static str, address: SocketAddr) -> Result<(TcpListener, SocketAddr), Error> {
    let failed = |source| Error::Bind { what, address, source };
    let tcp = net::bind(address).await.map_err(failed)?;
    let address = tcp.local_addr().map_err(failed)?;
    Ok((tcp, address))
}
