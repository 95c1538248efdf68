use std::{
    path::Path,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use openraft::{
    StorageError,
    testing::log::{StoreBuilder, Suite},
};

use super::{
    super::{
        Payload, Proposal, Retention, Unobserved,
        machine::Machine,
        runtime::{Inline, SystemClock, Threads, Tokio},
        snapshot::Receiver,
    },
    *,
};
use crate::store::{
    Store,
    engine::{
        Batch, Stats, View,
        fjall::{Fjall, FjallOptions},
        memory::Memory,
        shelf::MemoryShelf,
    },
    keyspace::Keyspace,
};

type C = TypeConfig<Tokio>;

fn id(term: u64, index: u64) -> LogId {
    LogId { leader_id: term.into(), index }
}

fn entry(term: u64, index: u64, bytes: usize) -> Entry {
    Entry { log_id: id(term, index), payload: Payload::Normal(Proposal(vec![7; bytes].into())) }
}

fn open_with(engine: Arc<dyn Engine>, mark: Option<PathBuf>, executor: &dyn Executor, failure: &Failure) -> Log {
    try_open(engine, mark, executor, failure).unwrap()
}

fn try_open(
    engine: Arc<dyn Engine>,
    mark: Option<PathBuf>,
    executor: &dyn Executor,
    failure: &Failure,
) -> Result<Log, Error> {
    let options = Options { durability: Durability::Synced, mark, fresh_node_id: 42 };
    Log::open(engine, options, executor, Arc::new(SystemClock), failure, Arc::new(Unobserved))
}

fn in_memory() -> Log {
    open_with(Arc::new(Memory::new(&SPACES)), None, &Inline, &Failure::default())
}

fn engine_in(folder: &Path) -> Arc<dyn Engine> {
    Arc::new(Fjall::open(&folder.join("log"), &SPACES, FjallOptions::default()).unwrap())
}

/// A log on disk whose jobs run inline, so that it closes with its last handle.
fn on_disk(folder: &Path) -> Log {
    try_on_disk(folder).unwrap()
}

fn try_on_disk(folder: &Path) -> Result<Log, Error> {
    try_open(engine_in(folder), Some(folder.join("mark")), &Inline, &Failure::default())
}

/// A report of openraft's kind, and where it arrives.
fn report() -> (IOFlushed<C>, oneshot::Receiver<io::Result<()>>) {
    let (done, waiting) = <openraft_rt_tokio::TokioOneshot as openraft::async_runtime::Oneshot>::channel();
    (IOFlushed::signal(done), waiting)
}

async fn append(log: &mut Log, entries: Vec<Entry>) -> io::Result<()> {
    let (flushed, waiting) = report();
    RaftLogStorage::<C>::append(log, entries, flushed).await?;
    waiting.await.map_err(io::Error::other)?
}

async fn vote(log: &mut Log, vote: Vote) -> io::Result<()> {
    RaftLogStorage::<C>::save_vote(log, &vote).await
}

async fn truncate(log: &mut Log, last: LogId) {
    RaftLogStorage::<C>::truncate_after(log, Some(last)).await.unwrap();
}

async fn purge(log: &mut Log, upto: LogId) {
    RaftLogStorage::<C>::purge(log, upto).await.unwrap();
}

async fn ends(log: &mut Log) -> (Option<LogId>, Option<LogId>) {
    let state = RaftLogStorage::<C>::get_log_state(log).await.unwrap();
    (state.last_purged_log_id, state.last_log_id)
}

async fn read(log: &mut Log, range: Range<u64>) -> Vec<LogId> {
    let entries = RaftLogReader::<C>::try_get_log_entries(log, range).await.unwrap();
    entries.into_iter().map(|entry| entry.log_id).collect()
}

#[tokio::test]
async fn votes_and_entries_survive_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let mut log = on_disk(folder.path());
    append(&mut log, (0..5).map(|index| entry(1, index, 10)).collect()).await.unwrap();
    vote(&mut log, Vote::new_committed(3, 42)).await.unwrap();
    truncate(&mut log, id(1, 2)).await;
    append(&mut log, vec![entry(3, 3, 10)]).await.unwrap();
    drop(log);

    let mut log = on_disk(folder.path());
    assert_eq!(RaftLogReader::<C>::read_vote(&mut log).await.unwrap(), Some(Vote::new_committed(3, 42)));
    assert_eq!(ends(&mut log).await, (None, Some(id(3, 3))));
    assert_eq!(read(&mut log, 0..9).await, [id(1, 0), id(1, 1), id(1, 2), id(3, 3)]);
}

#[tokio::test]
async fn the_node_id_stays_and_starts_are_counted() {
    let folder = tempfile::tempdir().unwrap();
    for start in 1..=3 {
        let log = on_disk(folder.path());
        assert_eq!((log.node_id(), log.starts()), (42, start));
    }
}

#[tokio::test]
async fn purged_entries_stay_gone_and_their_removal_goes_on_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let mut log = on_disk(folder.path());
    append(&mut log, (0..2000).map(|index| entry(1, index, 1)).collect()).await.unwrap();
    purge(&mut log, id(1, 1499)).await;
    assert_eq!(read(&mut log, 0..1502).await, [id(1, 1500), id(1, 1501)]);
    drop(log);

    let mut log = on_disk(folder.path());
    assert_eq!(ends(&mut log).await, (Some(id(1, 1499)), Some(id(1, 1999))));
    append(&mut log, vec![entry(1, 2000, 1)]).await.unwrap();
    drop(log);
    let view = engine_in(folder.path()).view().unwrap();
    assert_eq!(view.range(ENTRIES, (Bound::Unbounded, Bound::Unbounded)).count(), 501);
}

/// What a node finds whose disk gives back an older journal than it had acknowledged.
#[tokio::test]
async fn a_log_that_ends_before_its_mark_is_damaged() {
    for forgotten in ["an entry", "a vote", "a truncation"] {
        let folder = tempfile::tempdir().unwrap();
        let mut log = on_disk(folder.path());
        append(&mut log, vec![entry(1, 0, 10), entry(1, 1, 10)]).await.unwrap();
        drop(log);
        let older = tempfile::tempdir().unwrap();
        copy(&folder.path().join("log"), &older.path().join("log"));

        let mut log = on_disk(folder.path());
        match forgotten {
            "an entry" => append(&mut log, vec![entry(1, 2, 10)]).await.unwrap(),
            "a vote" => vote(&mut log, Vote::new(2, 42)).await.unwrap(),
            _ => truncate(&mut log, id(1, 0)).await,
        }
        drop(log);
        std::fs::copy(folder.path().join("mark"), older.path().join("mark")).unwrap();
        let refused = try_on_disk(older.path()).err().unwrap();
        assert!(matches!(refused, Error::Damaged { .. }), "{forgotten}: {refused}");
        assert!(refused.to_string().contains("writes are missing"), "{forgotten}: {refused}");
    }
}

#[tokio::test]
async fn a_log_without_its_mark_is_damaged() {
    let folder = tempfile::tempdir().unwrap();
    drop(on_disk(folder.path()));
    std::fs::remove_file(folder.path().join("mark")).unwrap();
    assert!(matches!(try_on_disk(folder.path()), Err(Error::Damaged { .. })));
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for file in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        match file.file_type().unwrap().is_dir() {
            true => copy(&file.path(), &to.join(file.file_name())),
            false => drop(std::fs::copy(file.path(), to.join(file.file_name())).unwrap()),
        }
    }
}

#[tokio::test]
async fn a_retired_node_stays_retired() {
    let folder = tempfile::tempdir().unwrap();
    let log = on_disk(folder.path());
    assert_eq!(retired(&*engine_of(&log)).unwrap(), None);
    log.retire().await.unwrap();
    drop(log);
    assert_eq!(retired(&*engine_in(folder.path())).unwrap(), Some(42));
    for _ in 0..2 {
        assert!(matches!(try_on_disk(folder.path()), Err(Error::Retired { node_id: 42 })));
    }
}

fn engine_of(log: &Log) -> Arc<dyn Engine> {
    log.shared.writer.lock().engine.clone()
}

/// Even entries of a later term than the snapshot's, which were never committed.
#[tokio::test]
async fn a_log_that_a_snapshot_overtook_begins_after_it() {
    let folder = tempfile::tempdir().unwrap();
    let mut log = on_disk(folder.path());
    append(&mut log, (0..900).map(|index| entry(5, index, 1)).collect()).await.unwrap();
    purge(&mut log, id(3, 5000)).await;
    vote(&mut log, Vote::new(6, 42)).await.unwrap();
    assert_eq!(ends(&mut log).await, (Some(id(3, 5000)), Some(id(3, 5000))));
    drop(log);

    let mut log = on_disk(folder.path());
    assert_eq!(ends(&mut log).await, (Some(id(3, 5000)), Some(id(3, 5000))));
    append(&mut log, (5001..5100).map(|index| entry(6, index, 1)).collect()).await.unwrap();
    purge(&mut log, id(6, 5050)).await;
    append(&mut log, vec![entry(6, 5100, 1)]).await.unwrap();
    assert_eq!(read(&mut log, 0..5053).await, [id(6, 5051), id(6, 5052)]);
    drop(log);
    let view = engine_in(folder.path()).view().unwrap();
    assert_eq!(view.range(ENTRIES, (Bound::Unbounded, Bound::Unbounded)).count(), 50);
}

#[tokio::test]
async fn the_commit_point_is_never_beyond_the_log() {
    let folder = tempfile::tempdir().unwrap();
    let mut log = on_disk(folder.path());
    append(&mut log, vec![entry(1, 0, 1), entry(1, 1, 1)]).await.unwrap();
    RaftLogStorage::<C>::save_committed(&mut log, Some(id(1, 9))).await.unwrap();
    assert_eq!(RaftLogStorage::<C>::read_committed(&mut log).await.unwrap(), Some(id(1, 1)));
    append(&mut log, vec![entry(1, 2, 1)]).await.unwrap();
    drop(log);
    let mut log = on_disk(folder.path());
    assert_eq!(RaftLogStorage::<C>::read_committed(&mut log).await.unwrap(), None);

    RaftLogStorage::<C>::save_committed(&mut log, Some(id(1, 2))).await.unwrap();
    append(&mut log, vec![entry(1, 3, 1)]).await.unwrap();
    drop(log);
    let mut log = on_disk(folder.path());
    assert_eq!(RaftLogStorage::<C>::read_committed(&mut log).await.unwrap(), Some(id(1, 2)));
}

#[tokio::test]
async fn reads_reach_back_beyond_memory_and_come_in_bounded_pieces() {
    let mut log = in_memory();
    for index in 0..40 {
        append(&mut log, vec![entry(1, index, 600 << 10)]).await.unwrap();
    }
    let all: Vec<LogId> = (0..40).map(|index| id(1, index)).collect();
    assert_eq!(read(&mut log, 0..40).await, all);
    assert_eq!(read(&mut log, 3..5).await, all[3..5]);
    let streamed: Vec<Entry> = RaftLogReader::<C>::entries_stream(&mut log, 0..40).await.try_collect().await.unwrap();
    assert_eq!(streamed.iter().map(|entry| entry.log_id).collect::<Vec<_>>(), all);
    for start in 0..40 {
        let piece = RaftLogReader::<C>::limited_get_log_entries(&mut log, start, 40).await.unwrap();
        assert_eq!(piece.iter().map(|entry| entry.log_id).collect::<Vec<_>>(), [id(1, start)]);
    }
}

/// An engine that counts commits, holds them up, and fails when told to.
struct Fragile {
    inner: Memory,
    commits: AtomicUsize,
    fails: std::sync::atomic::AtomicBool,
    gate: Mutex<()>,
}

impl Fragile {
    fn new() -> Arc<Self> {
        let inner = Memory::new(&SPACES);
        Arc::new(Self { inner, commits: AtomicUsize::new(0), fails: false.into(), gate: Mutex::new(()) })
    }
}

impl Engine for Fragile {
    fn view(&self) -> Result<Box<dyn View>, engine::Error> {
        self.inner.view()
    }

    fn commit(&self, batch: Batch, durability: Durability) -> Result<(), engine::Error> {
        let _open = self.gate.lock();
        self.commits.fetch_add(1, Ordering::Relaxed);
        if self.fails.load(Ordering::Relaxed) {
            return Err(engine::Error::Sync { reason: "the disk is gone".into() });
        }
        self.inner.commit(batch, durability)
    }

    fn load(&self, rows: Batch) -> Result<(), engine::Error> {
        self.inner.load(rows)
    }

    fn sync(&self) -> Result<(), engine::Error> {
        Ok(())
    }

    fn stats(&self) -> Stats {
        Stats::default()
    }
}

#[tokio::test]
async fn all_that_waits_shares_one_sync() {
    let (engine, threads, failure) = (Fragile::new(), Threads::default(), Failure::default());
    let mut log = open_with(engine.clone(), None, &threads, &failure);
    let before = engine.commits.load(Ordering::Relaxed);
    let mut waiting = Vec::new();
    let closed = engine.gate.lock();
    for index in 0..100 {
        let (report, flushed) = report();
        // No await on what is flushed: the gate is closed.
        let appending = RaftLogStorage::<C>::append(&mut log, [entry(1, index, 10)], report);
        futures::executor::block_on(appending).unwrap();
        waiting.push(flushed);
    }
    assert!(waiting.iter_mut().all(|flushed| flushed.try_recv().is_err()), "reported before it was on the disk");
    drop(closed);
    for flushed in waiting {
        flushed.await.unwrap().unwrap();
    }
    // The first alone, for the writer took it before the others came; then all others.
    assert!(engine.commits.load(Ordering::Relaxed) - before <= 2);
    threads.stop();
}

#[tokio::test]
async fn after_a_failed_write_everything_fails_and_nothing_is_tried_again() {
    let (engine, threads, failure) = (Fragile::new(), Threads::default(), Failure::default());
    let mut log = open_with(engine.clone(), None, &threads, &failure);
    append(&mut log, vec![entry(1, 0, 10)]).await.unwrap();
    engine.fails.store(true, Ordering::Relaxed);
    assert!(append(&mut log, vec![entry(1, 1, 10)]).await.is_err());
    let commits = engine.commits.load(Ordering::Relaxed);
    engine.fails.store(false, Ordering::Relaxed);
    assert!(vote(&mut log, Vote::new(2, 42)).await.is_err());
    assert!(append(&mut log, vec![entry(1, 2, 10)]).await.is_err());
    assert_eq!(engine.commits.load(Ordering::Relaxed), commits);
    let reason = tokio::time::timeout(Duration::from_secs(5), failure.wait()).await.unwrap();
    assert!(reason.contains("the disk is gone"), "{reason}");
    threads.stop();
}

struct OnDisk;
struct InMemory;

/// What a test of the suite holds on to.
struct Guard {
    threads: Threads,
    _folder: Option<tempfile::TempDir>,
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.threads.stop();
    }
}

fn machine(engine: Arc<dyn Engine>, threads: &Threads) -> Machine {
    let (failure, store) = (Failure::default(), Store::open(engine, &Default::default()).unwrap());
    let lane = |name| threads.lane(name, &failure).unwrap();
    let shelf = Arc::new(MemoryShelf::new(&Keyspace::names()));
    let receiver = Receiver { lane: lane("snapshot"), shelf, turn: Arc::default() };
    // The suite applies what it never appended.
    let (_, written) = tokio::sync::watch::channel(u64::MAX);
    let observer = Arc::new(Unobserved);
    Machine::open(store, lane("apply"), receiver, written, failure.clone(), observer, Retention::default()).unwrap()
}

impl StoreBuilder<C, Log, Machine, Guard> for OnDisk {
    async fn build(&self) -> Result<(Guard, Log, Machine), StorageError<C>> {
        let (threads, folder) = (Threads::default(), tempfile::tempdir().unwrap());
        let log = open_with(engine_in(folder.path()), Some(folder.path().join("mark")), &threads, &Failure::default());
        // Opening a store on disk forty times takes a minute; its engine has tests of its own.
        let machine = machine(Arc::new(Memory::new(&Keyspace::names())), &threads);
        Ok((Guard { threads, _folder: Some(folder) }, log, machine))
    }
}

impl StoreBuilder<C, Log, Machine, Guard> for InMemory {
    async fn build(&self) -> Result<(Guard, Log, Machine), StorageError<C>> {
        let threads = Threads::default();
        let log = open_with(Arc::new(Memory::new(&SPACES)), None, &threads, &Failure::default());
        let machine = machine(Arc::new(Memory::new(&Keyspace::names())), &threads);
        Ok((Guard { threads, _folder: None }, log, machine))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn openrafts_suite_passes_on_disk() {
    Suite::test_all(OnDisk).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn openrafts_suite_passes_in_memory() {
    Suite::test_all(InMemory).await.unwrap();
}
