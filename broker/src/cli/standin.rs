//! A databroker in memory, for tests of the tools: it answers as a server of the interface does that is not ours.
//!
//! Of its ways, those count that the tools must live with: versions and times are given by the server, deleting what is
//! not there does nothing, SetOptions with nothing answers NOT_FOUND, headers come with the first message of a stream,
//! 4 MiB is the limit of a request, and fields of a record that it does not know are not stored.

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use databroker_proto::{
    EncodedRecord, Record,
    databroker::{
        data_broker_service_server::{DataBrokerService, DataBrokerServiceServer},
        *,
    },
};
use futures::{Stream, StreamExt as _};
use parking_lot::Mutex;
use prost::Message as _;
use tokio::{
    net::TcpListener,
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{
    Request, Response, Status,
    service::Interceptor,
    transport::{Identity, Server, ServerTlsConfig},
};

use super::dump::Parts;
use crate::jwt::{SharedKey, Verifier};

type Key = (String, String);
type Frames<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// What a server remembers. It may be given to the next one, as after a restart.
pub(super) struct Store {
    pub(super) server_version: u64,
    latest: u64,
    earliest: u64,
    records: BTreeMap<Key, EncodedRecord>,
    log: Vec<(u64, Record)>,
    pub(super) options: BTreeMap<String, Options>,
    leases: HashMap<String, (String, Instant)>,
    /// Puts that were answered with OK.
    pub(super) puts: u64,
    /// Fails the put after so many more.
    pub(super) puts_left: Option<u64>,
    /// Clears before the put after so many more, once.
    pub(super) puts_to_clear: Option<u64>,
    /// Tells the server version with the answer to a put.
    pub(super) puts_tell_version: bool,
    /// Refuses so many calls of ServerInfo, as a server does that is on its way down.
    pub(super) infos_refused: u32,
    /// Ends SyncLatest with an error after so many records, once.
    pub(super) latest_left: Option<usize>,
    /// Keeps fields of records that it does not know.
    pub(super) keeps_unknown: bool,
    changed: watch::Sender<u64>,
}

impl Store {
    pub(super) fn new(server_version: u64) -> Arc<Mutex<Self>> {
        Arc::new(Mutex::new(Self {
            server_version,
            latest: 0,
            earliest: 0,
            records: BTreeMap::new(),
            log: Vec::new(),
            options: BTreeMap::new(),
            leases: HashMap::new(),
            puts: 0,
            puts_left: None,
            puts_to_clear: None,
            puts_tell_version: true,
            infos_refused: 0,
            latest_left: None,
            keeps_unknown: true,
            changed: watch::channel(0).0,
        }))
    }

    pub(super) fn put(&mut self, encoded: &EncodedRecord) -> EncodedRecord {
        let Ok(mut record) = encoded.to_record() else { return encoded.clone() };
        let key = (record.r#type.clone(), record.id.clone());
        let now = SystemTime::now();
        if record.deleted_at.is_some() {
            let Some(stored) = self.records.remove(&key) else { return encoded.clone() };
            let mut tombstone = stored.to_record().unwrap();
            self.latest += 1;
            tombstone.version = self.latest;
            tombstone.modified_at = Some(now.into());
            tombstone.deleted_at = Some(now.into());
            self.log.push((self.latest, tombstone));
            self.changed.send_replace(self.latest);
            return encoded.clone();
        }
        self.latest += 1;
        record.version = self.latest;
        record.modified_at = Some(now.into());
        let stored = match self.keeps_unknown {
            true => {
                let given = Record { version: record.version, modified_at: record.modified_at, ..Default::default() };
                let mut bytes = Parts::split(encoded).unwrap().join().as_bytes().to_vec();
                bytes.extend(given.encode_to_vec());
                EncodedRecord::from_bytes(bytes)
            }
            false => EncodedRecord::from(&record),
        };
        self.records.insert(key, stored.clone());
        self.log.push((self.latest, record));
        self.changed.send_replace(self.latest);
        stored
    }

    /// Forgets changes up to this version.
    pub(super) fn forget(&mut self, version: u64) {
        self.log.retain(|(logged, _)| *logged > version);
        self.earliest = version + 1;
    }

    pub(super) fn clear(&mut self) {
        self.server_version += 1;
        (self.latest, self.earliest) = (0, 0);
        self.records.clear();
        self.log.clear();
        self.options.clear();
        self.changed.send_replace(0);
    }

    /// Open Sync streams.
    pub(super) fn watchers(&self) -> usize {
        self.changed.receiver_count()
    }

    pub(super) fn ids(&self, r#type: &str) -> Vec<String> {
        self.records.keys().filter(|(t, _)| t == r#type).map(|(_, id)| id.clone()).collect()
    }

    pub(super) fn holds_lease(&self, name: &str) -> bool {
        self.leases.get(name).is_some_and(|(_, end)| *end > Instant::now())
    }

    pub(super) fn steal_lease(&mut self, name: &str) {
        self.leases.insert(name.to_owned(), ("thief".to_owned(), Instant::now() + Duration::from_secs(60)));
    }

    fn lease(&mut self, name: &str, id: &str, length: Option<prost_types::Duration>) -> bool {
        let now = Instant::now();
        let free = self.leases.get(name).is_none_or(|(holder, end)| holder == id || *end < now);
        if free {
            let length = length.and_then(|length| length.try_into().ok()).unwrap_or(Duration::ZERO);
            self.leases.insert(name.to_owned(), (id.to_owned(), now + length));
        }
        free
    }

    fn latest_frames(&mut self, r#type: &str) -> Vec<Result<SyncLatestResponse, Status>> {
        use sync_latest_response::Response as Frame;
        let records = self.records.iter().filter(|((t, _), _)| r#type.is_empty() || t == r#type);
        let mut frames: Vec<_> = records.map(|(_, record)| Frame::Record(record.clone())).collect();
        frames.extend(self.options_frames(r#type).into_iter().map(Frame::Options));
        let (server_version, latest_record_version) = (self.server_version, self.latest);
        frames.push(Frame::Versions(Versions { server_version, latest_record_version }));
        let left = self.latest_left.take();
        frames.truncate(left.unwrap_or(usize::MAX));
        let frames = frames.into_iter().map(|frame| Ok(SyncLatestResponse { response: Some(frame) }));
        frames.chain(left.map(|_| Err(Status::unavailable("shutting down")))).collect()
    }

    fn options_frames(&self, r#type: &str) -> Vec<TypedOptions> {
        let live = |t: &String| self.records.keys().any(|(live, _)| live == t);
        let sent = self.options.iter().filter(|(t, _)| if r#type.is_empty() { live(t) } else { *t == r#type });
        sent.map(|(t, options)| TypedOptions { type_url: t.clone(), options: Some(options.clone()) }).collect()
    }
}

/// A running stand-in.
pub(super) struct Standin {
    pub(super) address: SocketAddr,
    pub(super) store: Arc<Mutex<Store>>,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

/// The secret of all stand-ins.
pub(super) fn key() -> SharedKey {
    SharedKey::from_bytes([42; 32])
}

impl Standin {
    pub(super) async fn start() -> Self {
        Self::start_at("127.0.0.1:0".parse().unwrap(), Store::new(7), None).await
    }

    pub(super) async fn start_tls(identity: Identity) -> Self {
        Self::start_at("127.0.0.1:0".parse().unwrap(), Store::new(7), Some(identity)).await
    }

    pub(super) async fn start_at(address: SocketAddr, store: Arc<Mutex<Store>>, tls: Option<Identity>) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel();
        let service = DataBrokerServiceServer::with_interceptor(Service(Arc::clone(&store)), Check);
        let mut server = Server::builder();
        if let Some(identity) = tls {
            server = server.tls_config(ServerTlsConfig::new().identity(identity)).unwrap();
        }
        let serve = server.add_service(service).serve_with_incoming(TcpListenerStream::new(listener));
        let task = tokio::spawn(async move {
            // Not gracefully: a break is what is to be tested.
            tokio::select! { _ = serve => {}, _ = stopped => {} }
        });
        Self { address, store, stop, task }
    }

    /// Ends, and breaks all connections.
    pub(super) async fn stop(self) {
        drop(self.stop);
        self.task.await.unwrap();
    }
}

#[derive(Clone)]
struct Check;

impl Interceptor for Check {
    fn call(&mut self, request: Request<()>) -> Result<Request<()>, Status> {
        let token = request.metadata().get("jwt").ok_or_else(|| Status::unauthenticated("unauthenticated"))?;
        Verifier::new(&key())
            .verify(token.as_bytes(), SystemTime::now())
            .map_err(|_| Status::unauthenticated("invalid JWT"))?;
        Ok(request)
    }
}

struct Service(Arc<Mutex<Store>>);

/// As some servers do: the headers wait for the first message.
async fn with_first<T: Send + 'static>(mut frames: Frames<T>) -> Result<Response<Frames<T>>, Status> {
    match frames.next().await {
        Some(Ok(first)) => Ok(Response::new(Box::pin(futures::stream::iter([Ok(first)]).chain(frames)))),
        Some(Err(status)) => Err(status),
        None => Ok(Response::new(frames)),
    }
}

#[tonic::async_trait]
impl DataBrokerService for Service {
    async fn acquire_lease(&self, r: Request<AcquireLeaseRequest>) -> Result<Response<AcquireLeaseResponse>, Status> {
        let id = uuid::Uuid::new_v4().to_string();
        let r = r.into_inner();
        match self.0.lock().lease(&r.name, &id, r.duration) {
            true => Ok(Response::new(AcquireLeaseResponse { id })),
            false => Err(Status::already_exists("lease is already taken")),
        }
    }

    async fn renew_lease(&self, r: Request<RenewLeaseRequest>) -> Result<Response<()>, Status> {
        let r = r.into_inner();
        match self.0.lock().lease(&r.name, &r.id, r.duration) {
            true => Ok(Response::new(())),
            false => Err(Status::already_exists("lease no longer held")),
        }
    }

    async fn release_lease(&self, r: Request<ReleaseLeaseRequest>) -> Result<Response<()>, Status> {
        let r = r.into_inner();
        self.0.lock().lease(&r.name, &r.id, None);
        Ok(Response::new(()))
    }

    async fn clear(&self, _: Request<()>) -> Result<Response<ClearResponse>, Status> {
        Err(Status::unimplemented("not for the tools"))
    }

    async fn get(&self, r: Request<GetRequest>) -> Result<Response<GetResponse>, Status> {
        let r = r.into_inner();
        match self.0.lock().records.get(&(r.r#type, r.id)) {
            Some(record) => Ok(Response::new(GetResponse { record: Some(record.clone()) })),
            None => Err(Status::not_found("record not found")),
        }
    }

    async fn get_options(&self, r: Request<GetOptionsRequest>) -> Result<Response<GetOptionsResponse>, Status> {
        let r = r.into_inner();
        if r.r#type.is_empty() {
            return Err(Status::invalid_argument("options req type is empty"));
        }
        match self.0.lock().options.get(&r.r#type) {
            Some(options) => Ok(Response::new(GetOptionsResponse { options: Some(options.clone()) })),
            None => Err(Status::not_found("no such options for databroker record")),
        }
    }

    async fn set_options(&self, r: Request<SetOptionsRequest>) -> Result<Response<SetOptionsResponse>, Status> {
        let r = r.into_inner();
        let options = r.options.unwrap_or_default();
        if options == Options::default() {
            self.0.lock().options.remove(&r.r#type);
            return Err(Status::not_found("no such options for databroker record"));
        }
        self.0.lock().options.insert(r.r#type, options.clone());
        Ok(Response::new(SetOptionsResponse { options: Some(options) }))
    }

    async fn list_types(&self, _: Request<()>) -> Result<Response<ListTypesResponse>, Status> {
        let mut types: Vec<_> = self.0.lock().records.keys().map(|(t, _)| t.clone()).collect();
        types.dedup();
        Ok(Response::new(ListTypesResponse { types }))
    }

    async fn put(&self, r: Request<PutRequest>) -> Result<Response<PutResponse>, Status> {
        let mut store = self.0.lock();
        match &mut store.puts_left {
            Some(0) => return Err(Status::internal("disk full")),
            Some(left) => *left -= 1,
            None => {}
        }
        if let Some(left) = store.puts_to_clear.take() {
            match left.checked_sub(1) {
                Some(left) => store.puts_to_clear = Some(left),
                None => store.clear(),
            }
        }
        store.puts += 1;
        let records = r.into_inner().records.iter().map(|record| store.put(record)).collect();
        let server_version = if store.puts_tell_version { store.server_version } else { 0 };
        Ok(Response::new(PutResponse { server_version, records }))
    }

    async fn patch(&self, _: Request<PatchRequest>) -> Result<Response<PatchResponse>, Status> {
        Err(Status::unimplemented("not for the tools"))
    }

    /// Of filters only `{"id": …}`, and of texts only those in ids.
    async fn query(&self, r: Request<QueryRequest>) -> Result<Response<QueryResponse>, Status> {
        let r = r.into_inner();
        let wanted = match r.filter.as_ref().and_then(|filter| filter.fields.get("id")?.kind.clone()) {
            Some(prost_types::value::Kind::StringValue(id)) => Some(id),
            _ => None,
        };
        let store = self.0.lock();
        let matching = |(t, id): &Key| {
            (r.r#type.is_empty() || *t == r.r#type)
                && wanted.as_ref().is_none_or(|wanted| wanted == id)
                && id.contains(&r.query)
        };
        let all: Vec<_> =
            store.records.iter().filter(|(key, _)| matching(key)).map(|(_, record)| record.clone()).collect();
        let total_count = all.len() as i64;
        let records = all.into_iter().skip(r.offset as usize).take(r.limit as usize).collect();
        let (server_version, record_version) = (store.server_version, store.latest);
        Ok(Response::new(QueryResponse { records, total_count, server_version, record_version }))
    }

    async fn server_info(&self, _: Request<()>) -> Result<Response<ServerInfoResponse>, Status> {
        let mut store = self.0.lock();
        if store.infos_refused > 0 {
            store.infos_refused -= 1;
            return Err(Status::unavailable("shutting down"));
        }
        Ok(Response::new(ServerInfoResponse {
            server_version: store.server_version,
            earliest_record_version: store.earliest,
            latest_record_version: store.latest,
        }))
    }

    type SyncStream = Frames<SyncResponse>;

    async fn sync(&self, r: Request<SyncRequest>) -> Result<Response<Self::SyncStream>, Status> {
        let r = r.into_inner();
        let options = {
            let store = self.0.lock();
            if r.server_version != store.server_version {
                return Err(Status::aborted("invalid server version"));
            }
            if store.earliest > 0 && r.record_version < store.earliest - 1 {
                return Err(Status::aborted("invalid record version"));
            }
            store.options_frames(&r.r#type)
        };
        let (to, frames) = mpsc::channel(4);
        let store = Arc::clone(&self.0);
        tokio::spawn(async move {
            let mut changed = store.lock().changed.subscribe();
            for options in options {
                let _ = to.send(Ok(SyncResponse { response: Some(sync_response::Response::Options(options)) })).await;
            }
            let mut position = r.record_version;
            loop {
                changed.borrow_and_update();
                let (same, news) = {
                    let store = store.lock();
                    let news = store.log.iter().filter(|(version, _)| *version > position);
                    let news: Vec<_> =
                        news.filter(|(_, record)| r.r#type.is_empty() || record.r#type == r.r#type).cloned().collect();
                    (store.server_version == r.server_version, news)
                };
                if !same {
                    let _ = to.send(Err(Status::aborted("invalid server version"))).await;
                    return;
                }
                for (version, record) in news {
                    position = version;
                    let response = Some(sync_response::Response::Record((&record).into()));
                    if to.send(Ok(SyncResponse { response })).await.is_err() {
                        return;
                    }
                }
                if r.wait == Some(false) {
                    return;
                }
                tokio::select! { _ = changed.changed() => {}, () = to.closed() => return }
            }
        });
        with_first(Box::pin(ReceiverStream::new(frames))).await
    }

    type SyncLatestStream = Frames<SyncLatestResponse>;

    async fn sync_latest(&self, r: Request<SyncLatestRequest>) -> Result<Response<Self::SyncLatestStream>, Status> {
        let frames = self.0.lock().latest_frames(&r.into_inner().r#type);
        with_first(Box::pin(futures::stream::iter(frames))).await
    }
}
