//! Puts a node together: data folder, engines, store, replica, and the tasks around it.
//!
//! [`Node::open`] is for production: it gives openraft a thread of its own. [`Node::start`] takes every part from its
//! caller and runs where it is called, as a simulation wants it.

use std::{
    io,
    num::NonZeroU64,
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use databroker_proto::internal::{Init, ShapeMember};
use parking_lot::Mutex;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};

use super::{
    Engines, Error, Node, REQUEST_BYTES_MAX, REQUESTS_MAX, Shared,
    coalesce::{Coalescer, Ground},
    directory::Directory,
    fence,
    hello::{self, NoSeeds, Seeds},
    outbound::Outbound,
    refusals::Refusals,
    replication::WriteGap,
    retire,
    space::{Space, Volume},
    steward,
    sweep::{self, ChangeLog},
    tracker::Requests,
};
use crate::{
    raft::{
        self, LOG_SPACES, LogOptions, Member, Observer, Replica, Retention, Timers,
        identity::{self, DataFolder},
        runtime::{Clock, Executor, Failure, Runtime, SystemClock, Threads},
        transport::{NoPeers, Transport},
    },
    store::{
        self, Store,
        command::{Kind, Reason, outcome},
        engine::{
            self, Durability,
            fjall::{Fjall, FjallOptions},
            memory::Memory,
            shelf::{FolderShelf, MemoryShelf, Shelf},
        },
        keyspace::Keyspace,
    },
};

/// Entries of several requests that may be under way at once. Few, so that requests gather meanwhile and share a sync;
/// more than one, so that the next is written while the last is applied. Of one, two, three, four and eight, two had
/// the lowest p99 at 64 callers.
const SHARED_ENTRIES_MAX: usize = 2;
/// Entries of a single large request that may be under way at once. They gather nothing; their sync is shared by the
/// log's writer.
const SINGLE_ENTRIES_MAX: usize = 16;

/// How long the store may take at start to catch up with the log. Far more than the bounds on the log allow for.
const REPLAY_PATIENCE: Duration = Duration::from_secs(120);

/// The engine of the log. What is written is rarely read again and soon purged: next to no cache, and one thread.
const LOG_ENGINE: FjallOptions =
    FjallOptions { cache_bytes: 4 << 20, memtable_bytes: 16 << 20, journals_bytes_max: 64 << 20, worker_threads: 1 };

/// Where a node keeps its data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Storage {
    /// In a folder.
    Folder(PathBuf),
    /// In memory: a restart is the loss of a disk.
    Memory,
}

/// How a node without data comes to belong to a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bootstrap {
    /// It makes itself a cluster of one.
    Auto,
    /// It waits for someone's word.
    Explicit,
}

/// How a node is opened.
#[derive(Clone)]
pub struct Options {
    /// Where its data is.
    pub storage: Storage,
    /// What a write waits for before it is acknowledged.
    pub durability: Durability,
    /// Its name and addresses, as the cluster will know them.
    pub member: Member,
    /// What it does without data.
    pub bootstrap: Bootstrap,
    /// Elections.
    pub timers: Timers,
    /// Bounds on the log.
    pub retention: Retention,
    /// How long a request waits for a leader, or for room.
    pub hold: Duration,
    /// How far clocks may differ before people are told, and a leader that is ahead hands over.
    pub max_clock_skew: Duration,
    /// How long changes are kept.
    pub change_log_keep: Duration,
    /// How many bytes of changes are kept; `None`: a quarter of the volume, at most 1 GiB.
    pub change_log_bytes_max: Option<u64>,
    /// The store.
    pub store: store::Options,
    /// The engine of the store, on disk.
    pub store_engine: FjallOptions,
    /// Tells the time.
    pub clock: Arc<dyn Clock>,
    /// Hears of writes.
    pub observer: Arc<dyn Observer>,
    /// The way to other nodes.
    pub transport: Arc<dyn Transport>,
    /// Where other nodes may be found.
    pub seeds: Arc<dyn Seeds>,
    /// Who is to be a member from the beginning.
    pub configured: Vec<ShapeMember>,
}

impl Options {
    /// Everything else as it is by default.
    pub fn new(storage: Storage) -> Self {
        Self {
            storage,
            durability: Durability::Synced,
            member: Member::default(),
            bootstrap: Bootstrap::Auto,
            timers: Timers::default(),
            retention: Retention::default(),
            hold: Duration::from_secs(5),
            max_clock_skew: super::MAX_CLOCK_SKEW,
            change_log_keep: Duration::from_secs(3600),
            change_log_bytes_max: None,
            store: store::Options::default(),
            store_engine: FjallOptions::default(),
            clock: Arc::new(SystemClock),
            observer: Arc::new(raft::Unobserved),
            transport: Arc::new(NoPeers),
            seeds: Arc::new(NoSeeds),
            configured: Vec::new(),
        }
    }
}

/// Why a node cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The data folder.
    #[error(transparent)]
    Folder(#[from] identity::Error),
    /// An engine.
    #[error("cannot open the {what}: {source}")]
    Engine {
        /// Whose engine.
        what: &'static str,
        /// Why not.
        source: engine::Error,
    },
    /// The store.
    #[error("cannot open the store: {0}")]
    Store(#[source] store::Error),
    /// The replica.
    #[error(transparent)]
    Replica(#[from] raft::Error),
    /// The new cluster could not be founded.
    #[error("cannot found the cluster: {0}")]
    Bootstrap(#[source] Error),
    /// The store refused to be founded.
    #[error("cannot found the cluster: the store answers {0:?}")]
    Refused(Option<outcome::Kind>),
    /// The thread or the runtime of the replica.
    #[error("cannot start the thread of the replica: {0}")]
    Thread(#[source] io::Error),
    /// It ended before the node was open.
    #[error("the thread of the replica has ended early")]
    Ended,
}

/// What a new cluster gets, chosen before it is proposed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Founding {
    /// The cluster's id.
    pub cluster_id: String,
    /// The server version.
    pub server_version: NonZeroU64,
}

impl Founding {
    pub(super) fn random() -> Self {
        Self { cluster_id: uuid::Uuid::new_v4().to_string(), server_version: rand::random() }
    }
}

/// A node in parts.
pub struct Parts {
    /// The replica.
    pub replica: raft::Parts,
    /// Its engines again, for their sizes.
    pub engines: Engines,
    /// This node as the cluster will know it.
    pub member: Member,
    /// If the node has no cluster: found one.
    pub founding: Option<Founding>,
    /// How long a request waits for a leader, or for room.
    pub hold: Duration,
    /// How far clocks may differ before people are told, and a leader that is ahead hands over.
    pub max_clock_skew: Duration,
    /// How long changes are kept.
    pub change_log: ChangeLog,
    /// What it knows of others.
    pub peers: Peers,
}

/// What a node is told about others.
#[derive(Clone)]
pub struct Peers {
    /// Where they may be found.
    pub seeds: Arc<dyn Seeds>,
    /// Who is to be a member from the beginning; empty: this node alone, or whoever an operator names.
    pub configured: Vec<ShapeMember>,
    /// The volume of this node's data.
    pub volume: Volume,
}

impl Default for Peers {
    fn default() -> Self {
        Self { seeds: Arc::new(NoSeeds), configured: Vec::new(), volume: Volume::default() }
    }
}

impl<R: Runtime> Node<R> {
    /// Starts a node on the async runtime of the caller.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub async fn start(parts: Parts) -> Result<Self, OpenError> {
        let Parts { replica, engines, member, founding, hold, max_clock_skew, change_log, peers } = parts;
        let Peers { seeds, configured, volume } = peers;
        let transport = replica.transport.clone();
        let (clock, failure) = (replica.clock.clone(), replica.failure.clone());
        let (observer, write_gap) = (replica.observer.clone(), Arc::new(WriteGap::default()));
        let (reader, knows) = (replica.store.reader().clone(), replica.store.knows());
        let replica = Replica::<R>::start(replica).await?;
        let requests = Requests::new(replica.starts());
        let (proposals, incoming) = mpsc::channel(REQUESTS_MAX);
        let queue = proposals.downgrade();
        let (fences, waiting) = mpsc::channel(fence::WAITING_MAX);
        let outbound = Outbound::new(replica.clone(), transport);
        let open = watch::Sender::new(true);
        let shared = Shared {
            replica: replica.clone(),
            reader,
            // The store's is not held: it goes when a peer's store takes its place.
            log_engine: engines.log,
            knows,
            hold,
            max_clock_skew,
            clock: clock.clone(),
            failure: failure.clone(),
            observer,
            write_gap: write_gap.clone(),
            requests: requests.clone(),
            proposals,
            fences,
            outbound: outbound.clone(),
            open: open.clone(),
            handing_over: tokio::sync::Mutex::default(),
            directory: Directory::default(),
            refusing: Refusals::default(),
            strangers: Refusals::default(),
            seeds: seeds.clone(),
            member: member.clone(),
            configured,
            next_step: watch::Sender::default(),
            space: Space::new(volume),
            taken: Mutex::default(),
            request_room: Arc::new(Semaphore::new(REQUESTS_MAX)),
            byte_room: Arc::new(Semaphore::new(REQUEST_BYTES_MAX)),
            stopping: watch::Sender::new(false),
            thread: Mutex::new(None),
        };
        let node = Self { shared: Arc::new(shared) };
        let ground = Ground {
            replica: replica.clone(),
            outbound: outbound.clone(),
            queue,
            open: open.subscribe(),
            write_gap,
            requests,
            clock,
            failure: failure.clone(),
        };
        let ground = Arc::new(ground);
        let slots = |entries| Arc::new(Semaphore::new(entries));
        let (shared, single) = (slots(SHARED_ENTRIES_MAX), slots(SINGLE_ENTRIES_MAX));
        R::spawn("coalesce", &failure, Coalescer { ground, incoming, carried: None, shared, single }.run());
        R::spawn("fence", &failure, fence::run(replica, outbound, waiting));
        if let Some(founding) = founding {
            node.found(member, founding).await?;
        }
        R::spawn("sweep", &failure, sweep::run(Arc::downgrade(&node.shared), change_log));
        R::spawn("hello", &failure, hello::run(Arc::downgrade(&node.shared), seeds));
        R::spawn("steward", &failure, steward::run(Arc::downgrade(&node.shared)));
        R::spawn("retire", &failure, retire::run(Arc::downgrade(&node.shared)));
        Ok(node)
    }

    /// Makes this node a cluster of one, unless it belongs to a cluster. A crash between the steps does no harm: each
    /// is done only if it was not done before.
    pub(super) async fn found(&self, member: Member, founding: Founding) -> Result<(), OpenError> {
        self.shared.replica.initialize(member).await?;
        let mut role = self.shared.replica.role().clone();
        let role = *role.wait_for(|role| role.initialized).await.map_err(|_| OpenError::Ended)?;
        if !role.alone {
            return Ok(());
        }
        let snapshot = self.fence_within(REPLAY_PATIENCE).await.map_err(OpenError::Bootstrap)?;
        if snapshot.cluster_id().is_some() {
            return Ok(());
        }
        let Founding { cluster_id, server_version } = founding;
        let init = Kind::Init(Init { cluster_id, server_version: server_version.get() });
        let answer = self.propose_own(init).await.map_err(OpenError::Bootstrap)?;
        match answer.outcome.kind {
            Some(outcome::Kind::Rejected(ref why)) if why.reason() != Reason::AlreadyInitialized => {
                Err(OpenError::Refused(answer.outcome.kind))
            }
            Some(_) => Ok(()),
            None => Err(OpenError::Refused(None)),
        }
    }
}

impl Node {
    /// Opens a node, with openraft on a thread of its own.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub async fn open(options: Options) -> Result<Self, OpenError> {
        let (opened, opening) = oneshot::channel();
        let failure = Failure::default();
        let hosting = move || {
            let host = AssertUnwindSafe(|| host(options, opened, failure.clone()));
            if catch_unwind(host).is_err() {
                failure.report("the thread \"raft\" panicked");
            }
        };
        let thread = std::thread::Builder::new().name("raft".into()).spawn(hosting).map_err(OpenError::Thread)?;
        let node = opening.await.map_err(|_| OpenError::Ended)??;
        *node.shared.thread.lock() = Some(thread);
        Ok(node)
    }
}

/// Runs a node from open to shutdown.
fn host(options: Options, opened: oneshot::Sender<Result<Node, OpenError>>, failure: Failure) {
    let executor = Arc::new(Threads::default());
    // Held until all threads have ended.
    let mut folder = None;
    let hosted = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(OpenError::Thread);
    let hosted = hosted.and_then(|runtime| {
        let parts = gather(options, &mut folder, executor.clone(), failure)?;
        let node = runtime.block_on(Node::start(parts))?;
        Ok((runtime, node))
    });
    match hosted {
        Ok((runtime, node)) => {
            runtime.block_on(serve(node, opened));
            drop(runtime);
            executor.stop();
        }
        Err(error) => {
            executor.stop();
            // Given back first, so that the opener may try again at once.
            drop(folder);
            // The opener may have gone away; then nobody is there to be told.
            drop(opened.send(Err(error)));
        }
    }
}

/// Hands the node over and waits until it is told to stop, or until nobody holds it any longer.
async fn serve(node: Node, opened: oneshot::Sender<Result<Node, OpenError>>) {
    let (replica, mut stopping) = (node.shared.replica.clone(), node.shared.stopping.subscribe());
    // Without an opener the last handle is gone here, and the wait is over.
    drop(opened.send(Ok(node)));
    drop(stopping.wait_for(|stopping| *stopping).await);
    replica.shutdown().await;
}

/// Opens the disk, or memory, and takes the parts that production uses.
fn gather(
    options: Options,
    folder: &mut Option<DataFolder>,
    executor: Arc<dyn Executor>,
    failure: Failure,
) -> Result<Parts, OpenError> {
    if let Storage::Folder(path) = &options.storage {
        *folder = Some(DataFolder::open(path)?);
    }
    let engines = match folder.as_ref() {
        Some(folder) => on_disk(folder, options.store_engine)?,
        None => in_memory(),
    };
    let (engines, shelf) = engines;
    let fresh_node_id: NonZeroU64 = rand::random();
    let replica = raft::Parts {
        log_engine: engines.log.clone(),
        log: LogOptions {
            durability: options.durability,
            mark: folder.as_ref().map(DataFolder::log_mark),
            fresh_node_id: fresh_node_id.get(),
        },
        store: Store::open(engines.store.clone(), &options.store).map_err(OpenError::Store)?,
        shelf,
        executor,
        clock: options.clock,
        observer: options.observer,
        failure,
        timers: options.timers,
        retention: options.retention,
        transport: options.transport,
    };
    let volume = volume(&options.storage);
    let bytes_max = options.change_log_bytes_max.unwrap_or_else(|| change_log_bytes(&options.storage));
    Ok(Parts {
        replica,
        engines,
        member: options.member,
        founding: (options.bootstrap == Bootstrap::Auto).then(Founding::random),
        hold: options.hold,
        max_clock_skew: options.max_clock_skew,
        change_log: ChangeLog { keep: options.change_log_keep, bytes_max },
        peers: Peers { seeds: options.seeds, configured: options.configured, volume },
    })
}

/// The engine of the log, in its place.
pub(super) fn open_log(folder: &DataFolder) -> Result<Fjall, engine::Error> {
    Fjall::open(&folder.log(), &LOG_SPACES, LOG_ENGINE)
}

/// The shelf of stores, and the engine of the one in use.
pub(super) fn open_stores(
    folder: &DataFolder,
    options: FjallOptions,
) -> Result<(FolderShelf, Arc<dyn engine::Engine>), engine::Error> {
    let shelf = FolderShelf::open(folder.path(), &Keyspace::names(), options)?;
    let store = shelf.current()?;
    Ok((shelf, store))
}

fn on_disk(folder: &DataFolder, store_options: FjallOptions) -> Result<(Engines, Arc<dyn Shelf>), OpenError> {
    let failed = |what| move |source| OpenError::Engine { what, source };
    let mut log = open_log(folder).map_err(failed("log"))?;
    if let Some(node_id) = raft::retired(&log).map_err(raft::Error::from)? {
        drop(log);
        let aside = folder.set_aside(node_id)?;
        let (node, aside) = (format!("{node_id:016x}"), aside.display());
        tracing::warn!(node, %aside, "this node was removed from its cluster: it begins anew, its old data is set aside");
        log = open_log(folder).map_err(failed("log"))?;
    }
    let (shelf, store) = open_stores(folder, store_options).map_err(failed("store"))?;
    Ok((Engines { log: Arc::new(log), store }, Arc::new(shelf)))
}

fn in_memory() -> (Engines, Arc<dyn Shelf>) {
    let shelf = MemoryShelf::new(&Keyspace::names());
    let store = Arc::new(Memory::new(&Keyspace::names()));
    (Engines { log: Arc::new(Memory::new(&LOG_SPACES)), store }, Arc::new(shelf))
}

/// The volume of the data. One whose size nobody tells is never full.
fn volume(storage: &Storage) -> Volume {
    match storage.clone() {
        Storage::Folder(path) => Volume {
            bytes: fs4::total_space(&path).unwrap_or(0),
            free: Arc::new(move || fs4::available_space(&path).ok()),
        },
        Storage::Memory => Volume::default(),
    }
}

/// A quarter of the volume, at most 1 GiB; that as well where the size of the volume is unknown.
fn change_log_bytes(storage: &Storage) -> u64 {
    const MOST: u64 = 1 << 30;
    match storage {
        Storage::Folder(path) => fs4::total_space(path).map_or(MOST, |bytes| MOST.min(bytes / 4)),
        Storage::Memory => MOST / 4,
    }
}
