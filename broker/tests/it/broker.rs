//! A broker in this process, on free ports, and clients for it.

use std::{net::SocketAddr, time::Duration};

use databroker::{
    config::{Grpc, Http, Limits, Secret, Secrets, TlsFiles},
    jwt::{METADATA_KEY, SharedKey, Signer},
    node::{self, Node},
    server::{Addresses, Certificates, DiskTimes, Ending, Server},
    store::command::Kind,
};
use databroker_proto::{
    EncodedRecord, Record,
    databroker::{
        PutRequest, PutResponse, checkpoint_service_client::CheckpointServiceClient,
        data_broker_service_client::DataBrokerServiceClient,
    },
    internal::{Report, ReportedService},
    registry::registry_client::RegistryClient,
};
use prost_types::Any;
use tokio::task::JoinHandle;
use tonic::{
    Request, Status,
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Channel, Endpoint},
};
use tracing_subscriber::EnvFilter;

/// How long anything may take before a test calls it stuck.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// The shared secret of all brokers here.
pub(crate) fn key() -> SharedKey {
    SharedKey::from_bytes([7; 32])
}

/// Puts a good token on each call.
#[derive(Clone)]
pub(crate) struct Token;

impl Interceptor for Token {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let token = Signer::new(&key()).sign(std::time::SystemTime::now()).unwrap();
        request.metadata_mut().insert(METADATA_KEY, token.parse().unwrap());
        Ok(request)
    }
}

pub(crate) type Transport = InterceptedService<Channel, Token>;
pub(crate) type Client = DataBrokerServiceClient<Transport>;

/// What a test may want different.
pub(crate) struct Options {
    pub(crate) tls: Option<TlsFiles>,
    pub(crate) limits: Limits,
    pub(crate) node: node::Options,
}

impl Default for Options {
    fn default() -> Self {
        let limits = Limits {
            request_bytes_max: 64 << 20,
            connections_max: 100,
            streams_max: 1000,
            connection_streams_max: 1000,
            stalled_max: PATIENCE,
        };
        Self { tls: None, limits, node: node::Options::new(node::Storage::Memory) }
    }
}

/// A running broker over the memory engine.
pub(crate) struct Broker {
    pub(crate) addresses: Addresses,
    ending: Ending,
    serving: JoinHandle<()>,
    node: Node,
}

impl Broker {
    pub(crate) async fn start() -> Self {
        Self::start_with(Options::default()).await
    }

    pub(crate) async fn start_with(options: Options) -> Self {
        // Logs of a failing test: RUST_LOG=debug cargo test … -- --nocapture
        let _ = tracing_subscriber::fmt().with_env_filter(EnvFilter::from_default_env()).with_test_writer().try_init();
        let node = Node::open(options.node).await.unwrap();
        let anywhere: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let grpc = Grpc { address: anywhere, tls: options.tls, limits: options.limits };
        let http = Http { health: anywhere, metrics: None };
        let secrets = Secrets { current: Some(Secret::Given(key())), previous: None };
        let ending = Ending::default();
        let disk = DiskTimes::default();
        let certificates = Certificates::default();
        let server = Server::bind(&node, &grpc, &http, &secrets, &disk, certificates, &ending).await.unwrap();
        let addresses = server.addresses();
        Self { addresses, ending, serving: tokio::spawn(server.serve()), node }
    }

    pub(crate) fn endpoint(&self) -> Endpoint {
        Endpoint::from_shared(format!("http://{}", self.addresses.grpc)).unwrap()
    }

    /// A connection without a token.
    pub(crate) async fn channel(&self) -> Channel {
        self.endpoint().connect().await.unwrap()
    }

    pub(crate) async fn transport(&self) -> Transport {
        InterceptedService::new(self.channel().await, Token)
    }

    pub(crate) async fn client(&self) -> Client {
        DataBrokerServiceClient::new(self.transport().await).max_decoding_message_size(usize::MAX)
    }

    pub(crate) async fn registry(&self) -> RegistryClient<Transport> {
        RegistryClient::new(self.transport().await)
    }

    pub(crate) async fn checkpoints(&self) -> CheckpointServiceClient<Transport> {
        CheckpointServiceClient::new(self.transport().await)
    }

    /// Has a sweep done within a second or two: there is one each minute, and one whenever a service's report runs out.
    pub(crate) async fn sweep_soon(&self) {
        let services = vec![ReportedService { kind: 1, endpoint: "http://runs.out".into() }];
        soon(self.node.propose(Kind::Report(Report { services, ttl_nanos: 1 }))).await.unwrap();
    }

    /// Tells the broker that it is about to stop.
    pub(crate) fn leave(&self) {
        self.ending.leaving.cancel();
    }

    /// Tells the broker to stop, without waiting for it.
    pub(crate) fn close(&self) {
        self.leave();
        self.ending.closing.cancel();
    }

    /// Stops the broker. Fails if requests do not end.
    pub(crate) async fn stop(self) {
        self.close();
        soon(self.serving).await.unwrap();
        soon(self.node.shutdown()).await;
    }
}

/// The result of something that must not take long.
pub(crate) async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("it takes too long")
}

pub(crate) fn record(record_type: &str, id: &str, data: &str) -> EncodedRecord {
    EncodedRecord::from(Record {
        r#type: record_type.into(),
        id: id.into(),
        data: Some(Any { type_url: "type.googleapis.com/x.Y".into(), value: data.into() }),
        ..Record::default()
    })
}

pub(crate) fn deleted(record_type: &str, id: &str) -> EncodedRecord {
    let deleted_at = Some(prost_types::Timestamp::default());
    EncodedRecord::from(Record { r#type: record_type.into(), id: id.into(), deleted_at, ..Record::default() })
}

pub(crate) async fn put(client: &mut Client, records: Vec<EncodedRecord>) -> PutResponse {
    client.put(PutRequest { records }).await.unwrap().into_inner()
}

/// The record versions in a response, in order.
pub(crate) fn versions<'a>(records: impl IntoIterator<Item = &'a EncodedRecord>) -> Vec<u64> {
    records.into_iter().map(|record| record.to_record().unwrap().version).collect()
}

pub(crate) async fn server_version(client: &mut Client) -> u64 {
    client.server_info(()).await.unwrap().into_inner().server_version
}
