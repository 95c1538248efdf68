//! Several replicas in one process, over a transport that can be cut and that can spoil stores on their way.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use databroker_proto::internal::{self as proto, PeerReply, PeerRequest, SnapshotChunk, SnapshotReply, snapshot_chunk};
use futures::{FutureExt as _, future::BoxFuture, stream};
use parking_lot::Mutex;
use prost::Message as _;
use tokio::sync::{mpsc, watch};

use super::super::{
    runtime::{Executor as _, Failure, SystemClock, Threads, Tokio},
    transport::{CallError, Peer, Transport},
    *,
};
use crate::store::{
    self, Reader, Store,
    command::{self, Kind},
    engine::{
        self, Durability, Engine,
        fjall::{Fjall, FjallOptions},
        memory::Memory,
        shelf::{FolderShelf, MemoryShelf, Shelf},
    },
    keyspace::Keyspace,
};

pub(super) const PATIENCE: Duration = Duration::from_secs(20);

/// Waits until something holds; fails after [`PATIENCE`].
pub(super) async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let polling = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    assert!(tokio::time::timeout(PATIENCE, polling).await.is_ok(), "never happened: {what}");
}

/// What happens to the next stores on their way, one each.
#[derive(Clone, Copy, Debug)]
pub(super) enum Spoil {
    BreakOff,
    FlipByte,
    SwapRows,
    ForgetChunk,
}

/// The network: who is there, and who cannot reach whom.
#[derive(Default)]
pub(super) struct Hub {
    pub(super) nodes: Mutex<BTreeMap<NodeId, Replica>>,
    pub(super) alone: Mutex<BTreeSet<NodeId>>,
    pub(super) spoils: Mutex<Vec<Spoil>>,
    pub(super) transfers: AtomicUsize,
    /// Stores wait before they go.
    pub(super) waits: watch::Sender<bool>,
    /// What leaders keep of the log for followers.
    pub(super) hold_bytes: AtomicU64,
    /// Nobody misses a leader that is there, however slow the machine is.
    pub(super) patient: AtomicBool,
}

impl Hub {
    /// One for tests that mean no election but the first.
    pub(super) fn patient() -> Arc<Self> {
        Arc::new(Self { patient: AtomicBool::new(true), ..Self::default() })
    }
}

pub(super) struct Line {
    pub(super) hub: Arc<Hub>,
    pub(super) from: NodeId,
}

impl Line {
    pub(super) fn reach(&self, to: &Peer) -> Result<Replica, CallError> {
        let alone = self.hub.alone.lock();
        let node = self.hub.nodes.lock().get(&to.node).cloned();
        let open = !alone.contains(&self.from) && !alone.contains(&to.node);
        node.filter(|_| open)
            .ok_or_else(|| CallError::Unreachable { peer: to.member.name.clone(), reason: "it is cut off".into() })
    }
}

pub(super) fn refused(to: &Peer, error: impl ToString) -> CallError {
    CallError::Refused { peer: to.member.name.clone(), reason: error.to_string() }
}

impl Transport for Line {
    fn call(
        &self,
        to: Peer,
        request: PeerRequest,
        patience: Duration,
    ) -> BoxFuture<'static, Result<PeerReply, CallError>> {
        let node = self.reach(&to);
        async move {
            // What the wire would carry.
            let request = PeerRequest::decode(request.encode_to_vec().as_slice()).unwrap();
            let answer = tokio::time::timeout(patience, node?.handle(request.kind.unwrap())).await;
            let answer = answer.map_err(|_| CallError::TimedOut { peer: to.member.name.clone() })?;
            let kind = answer.map_err(|error| refused(&to, error))?;
            Ok(PeerReply { from: to.node, kind: Some(kind) })
        }
        .boxed()
    }

    fn send_snapshot(
        &self,
        to: Peer,
        chunks: mpsc::Receiver<SnapshotChunk>,
        _: Duration,
    ) -> BoxFuture<'static, Result<SnapshotReply, CallError>> {
        let (node, spoil) = (self.reach(&to), self.hub.spoils.lock().pop());
        self.hub.transfers.fetch_add(1, Relaxed);
        let mut waits = self.hub.waits.subscribe();
        async move {
            waits.wait_for(|waits| !waits).await.unwrap();
            let chunks = stream::unfold((chunks, 0), |(mut chunks, count)| async move {
                Some((chunks.recv().await?, (chunks, count + 1)))
            });
            let chunks = futures::StreamExt::enumerate(chunks);
            let spoiled = futures::StreamExt::filter_map(chunks, move |(index, chunk)| {
                futures::future::ready(spoiled(spoil, index, chunk))
            });
            let broken = futures::StreamExt::take_while(spoiled, |chunk| futures::future::ready(chunk.kind.is_some()));
            node?.install(Box::pin(broken)).await.map_err(|error| refused(&to, error))
        }
        .boxed()
    }
}

/// The second chunk is spoiled; a chunk without a kind ends the stream.
pub(super) fn spoiled(spoil: Option<Spoil>, index: usize, mut chunk: SnapshotChunk) -> Option<SnapshotChunk> {
    let (Some(spoil), 1) = (spoil, index) else { return Some(chunk) };
    let Some(snapshot_chunk::Kind::Rows(rows)) = &mut chunk.kind else { panic!("no rows in the second chunk") };
    match spoil {
        Spoil::BreakOff => chunk.kind = None,
        Spoil::ForgetChunk => return None,
        Spoil::SwapRows => rows.rows.swap(0, 1),
        Spoil::FlipByte => {
            let mut value = rows.rows[0].value.to_vec();
            value[0] ^= 1;
            rows.rows[0].value = value.into();
        }
    }
    Some(chunk)
}

/// Where a replica keeps its data.
#[derive(Clone)]
pub(super) enum Place {
    Memory,
    Folder(PathBuf),
}

pub(super) struct Running {
    pub(super) id: NodeId,
    pub(super) replica: Replica,
    pub(super) reader: Reader,
    pub(super) failure: Failure,
    pub(super) threads: Arc<Threads>,
    pub(super) hub: Arc<Hub>,
}

pub(super) fn member(id: NodeId) -> Member {
    Member { name: format!("node-{id}"), ..Member::default() }
}

/// Tasks and threads of a replica that has stopped may take a moment to let go of its disk.
async fn once_free<T>(mut open: impl FnMut() -> Result<T, engine::Error>) -> T {
    let mut opened = None;
    eventually("the disk is free", || {
        opened = match open() {
            Err(engine::Error::Locked { .. }) => None,
            engine => Some(engine.unwrap()),
        };
        opened.is_some()
    })
    .await;
    opened.unwrap()
}

pub(super) async fn log_in(folder: &std::path::Path) -> Arc<dyn Engine> {
    Arc::new(once_free(|| Fjall::open(&folder.join("log"), &LOG_SPACES, FjallOptions::default())).await)
}

pub(super) fn shelf_in(folder: &std::path::Path) -> FolderShelf {
    FolderShelf::open(folder, &Keyspace::names(), FjallOptions::default()).unwrap()
}

pub(super) struct Opened {
    pub(super) log: Arc<dyn Engine>,
    pub(super) mark: Option<PathBuf>,
    pub(super) store: Arc<dyn Engine>,
    pub(super) shelf: Arc<dyn Shelf>,
}

impl Place {
    pub(super) async fn open(&self) -> Opened {
        match self {
            Self::Memory => Opened {
                log: Arc::new(Memory::new(&LOG_SPACES)),
                mark: None,
                store: Arc::new(Memory::new(&Keyspace::names())),
                shelf: Arc::new(MemoryShelf::new(&Keyspace::names())),
            },
            Self::Folder(folder) => {
                let (log, shelf) = (log_in(folder).await, shelf_in(folder));
                let store = once_free(|| shelf.current()).await;
                Opened { log, mark: Some(folder.join("log-mark")), store, shelf: Arc::new(shelf) }
            }
        }
    }
}

pub(super) async fn try_start(hub: &Arc<Hub>, id: NodeId, place: &Place) -> Result<Running, Error> {
    let Opened { log: log_engine, mark, store, shelf } = place.open().await;
    let store = Store::open(store, &store::Options::default()).unwrap();
    let (reader, failure, threads) = (store.reader().clone(), Failure::default(), Arc::new(Threads::default()));
    let parts = Parts {
        log_engine,
        log: LogOptions { durability: Durability::Synced, mark, fresh_node_id: id },
        store,
        shelf,
        transport: Arc::new(Line { hub: hub.clone(), from: id }),
        executor: threads.clone(),
        clock: Arc::new(SystemClock),
        observer: Arc::new(Unobserved),
        failure: failure.clone(),
        timers: if hub.patient.load(Relaxed) {
            Timers { heartbeat_ms: 60, election_ms_min: 10_000, election_ms_max: 12_000 }
        } else {
            Timers { heartbeat_ms: 60, election_ms_min: 300, election_ms_max: 500 }
        },
        retention: Retention {
            sync_entries: 20,
            keep_entries: 5,
            hold_bytes: hub.hold_bytes.load(Relaxed),
            ..Retention::default()
        },
    };
    let started = Replica::<Tokio>::start(parts).await;
    if started.is_err() {
        threads.stop();
    }
    let replica = started?;
    hub.nodes.lock().insert(id, replica.clone());
    Ok(Running { id, replica, reader, failure, threads, hub: hub.clone() })
}

pub(super) async fn start(hub: &Arc<Hub>, id: NodeId, place: &Place) -> Running {
    try_start(hub, id, place).await.unwrap()
}

impl Running {
    /// Stops, and gives the disk back.
    pub(super) async fn stop(self) {
        self.hub.nodes.lock().remove(&self.id);
        self.replica.shutdown().await;
        assert_eq!(self.failure.reason(), None, "node {}", self.id);
        self.threads.stop();
    }

    pub(super) fn leads(&self) -> bool {
        self.replica.role().borrow().leads
    }

    pub(super) fn applied(&self) -> u64 {
        self.reader.progress().applied.map_or(0, |position| position.index)
    }

    pub(super) async fn propose(&self, kind: Kind) -> Result<(), Refusal> {
        self.replica.submit(entry(kind)).await?.answers().await.map(drop)
    }

    pub(super) async fn put(&self, id: &str) {
        let putting = async {
            while self.propose(put(id)).await.is_err() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, putting).await.unwrap();
    }

    pub(super) fn has(&self, id: &str) -> bool {
        self.reader.snapshot().get("t", id).unwrap().is_some()
    }
}

pub(super) fn entry(kind: Kind) -> Bytes {
    let commands = vec![proto::Command { identity: None, kind: Some(kind) }];
    command::entry(1, commands).encode_to_vec().into()
}

/// With enough data that a store of a hundred of them takes several chunks.
pub(super) fn put(id: &str) -> Kind {
    let data = prost_types::Any { type_url: "type.googleapis.com/unknown".into(), value: vec![7; 4096] };
    let record = databroker_proto::Record { r#type: "t".into(), id: id.into(), data: Some(data), ..Default::default() };
    Kind::Put(proto::Put { records: vec![record.encode_to_vec().into()] })
}

pub(super) fn init() -> Kind {
    Kind::Init(proto::Init { cluster_id: "c".into(), server_version: 7 })
}

/// Starts a cluster of these voters, with a store that knows its cluster.
pub(super) async fn found(hub: &Arc<Hub>, places: &[Place]) -> Vec<Running> {
    let mut nodes = Vec::new();
    for (id, place) in (1..).zip(places) {
        nodes.push(start(hub, id, place).await);
    }
    nodes[0].replica.initialize_with(nodes.iter().map(|node| (node.id, member(node.id))).collect()).await.unwrap();
    let leader = leader_of(&nodes).await;
    nodes[leader].propose(init()).await.unwrap();
    nodes
}

pub(super) async fn leader_of(nodes: &[Running]) -> usize {
    let mut leader = 0;
    eventually("a leader that can write", || {
        let found = nodes.iter().position(|node| node.leads() && node.replica.millis_since_quorum_ack().is_some());
        found.inspect(|found| leader = *found).is_some()
    })
    .await;
    leader
}

pub(super) async fn all_equal(nodes: &[Running]) {
    let last = nodes.iter().map(Running::applied).max().unwrap();
    eventually("all have applied everything", || nodes.iter().all(|node| node.applied() >= last)).await;
    eventually("all stores are equal", || {
        let hashes: BTreeSet<_> = nodes.iter().map(|node| node.reader.snapshot().hash().unwrap()).collect();
        hashes.len() == 1
    })
    .await;
}
