//! The log on an engine of its own: entries and vote, written by one thread with one sync for all that wait.
//!
//! An append returns as soon as the entries can be read, and reports when they are on the disk; a vote and a
//! truncation return when they are. After a failed write nothing is tried again: every later call fails, and the node
//! stops.
//!
//! Not here: what entries mean (`store`), when to purge (`retention`).

mod found;
mod mark;
mod stopped;
mod tail;
mod writer;

use std::{
    collections::VecDeque,
    fmt::Debug,
    io,
    ops::{Bound, Range, RangeBounds},
    path::PathBuf,
    sync::Arc,
};

use bytes::Bytes;
use futures::{Stream, TryStreamExt as _, stream};
use openraft::{
    LogState, RaftLogReader,
    storage::{IOFlushed, RaftLogStorage},
};
use parking_lot::Mutex;
use tokio::sync::{Semaphore, oneshot, watch};

pub(super) use self::stopped::Stopped;
use self::{
    found::Found,
    tail::Tail,
    writer::{Done, MarkKeeper, Order, Writer},
};
use super::{
    Entry, LogId, NodeId, Observer, TypeConfig, Vote, convert,
    runtime::{self, Clock, Executor, Failure, Lane, Runtime},
};
use crate::store::engine::{self, Durability, Engine, Space};

/// The spaces of the log's engine, in the order of their numbers.
pub const SPACES: [&str; 2] = ["entries", "metadata"];
/// `u64` index → encoded `LogEntry`.
const ENTRIES: Space = Space(0);
/// `vote`, `committed`, `purged` → that; `sequence` → `u64` number of the last batch; `node_id`, `starts` → `u64`;
/// `installing` → the position of the last store that came from a peer; `retired` → nothing: the node was removed.
const METADATA: Space = Space(1);

/// What may wait for the disk, in bytes of entries. The node bounds what it proposes; this bounds what a leader sends.
const WAITING_BYTES_MAX: usize = 64 << 20;

/// How much one read hands to replication or to the store at most: a request between nodes stays well below the limit
/// of a message, and applying goes on while the next is read.
const READ_BYTES_MAX: usize = 1 << 20;

/// Why the log cannot be opened, or not be used any longer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Reading failed.
    #[error("cannot read the log: {0}")]
    Read(#[source] engine::Error),
    /// Writing failed. It is not known what is on the disk now.
    #[error("cannot write the log: {0}")]
    Write(#[source] engine::Error),
    /// The high-water mark could not be written.
    #[error("cannot write the high-water mark of the log: {0}")]
    MarkWrite(#[source] io::Error),
    /// The high-water mark could not be read.
    #[error("cannot read the high-water mark of the log, {path}: {source}")]
    MarkRead {
        /// Its file.
        path: PathBuf,
        /// What went wrong.
        source: io::Error,
    },
    /// The log is not what was written: this disk is as good as lost.
    #[error(
        "the log is damaged: {what}. A node that forgot what it promised must not go on: remove its data folder and let \
         it join again as a new node, or restore a backup"
    )]
    Damaged {
        /// What was found.
        what: String,
    },
    /// The cluster has removed this node: it must never vote again. What it holds is of no use to the cluster.
    #[error("node {node_id} was removed from its cluster")]
    Retired {
        /// Its id, which is never used again.
        node_id: NodeId,
    },
    /// No thread for the log.
    #[error("cannot start a thread of the log: {0}")]
    Thread(#[source] io::Error),
}

/// The id of the node whose log an engine with [`SPACES`] holds, if its cluster has removed it. Such a log is never
/// opened again: the node begins anew, under another id.
///
/// # Errors
/// The log cannot be read.
pub fn retired(engine: &dyn Engine) -> Result<Option<NodeId>, Error> {
    found::retired(engine)
}

/// How a log is opened.
pub struct Options {
    /// What a write waits for.
    pub durability: Durability,
    /// The file of the high-water mark; `None` for a log in memory.
    pub mark: Option<PathBuf>,
    /// The id this node gets if the log has none yet. Zero is none.
    pub fresh_node_id: NodeId,
}

/// A handle on the log. Cloning is cheap.
#[derive(Clone)]
pub(super) struct Log {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    /// [`Tail::written_below`], for who waits for it.
    written: watch::Sender<u64>,
    /// Only the writer's lane locks it.
    writer: Mutex<Writer>,
    /// Where the writer works.
    lane: Arc<dyn Lane>,
    /// For what must not hold up the writer: reading old entries, syncing the mark.
    side_lane: Arc<dyn Lane>,
    room: Arc<Semaphore>,
    failure: Failure,
    node_id: NodeId,
    starts: u64,
    installing: Option<LogId>,
    word: Option<u64>,
}

#[derive(Default)]
struct State {
    tail: Tail,
    pending: VecDeque<Order>,
    /// The writer is at work, or about to be.
    writing: bool,
    /// Why nothing can be written any more.
    poison: Option<Arc<str>>,
}

impl Log {
    /// Opens the log that an engine with [`SPACES`] holds.
    ///
    /// # Errors
    /// The log is damaged, or cannot be read.
    pub(super) fn open(
        engine: Arc<dyn Engine>,
        options: Options,
        executor: &dyn Executor,
        clock: Arc<dyn Clock>,
        failure: &Failure,
        observer: Arc<dyn Observer>,
    ) -> Result<Self, Error> {
        let found = Found::read(&*engine)?;
        if let Some(node_id) = found.node_id.filter(|_| found.retired) {
            return Err(Error::Retired { node_id });
        }
        let side_lane = executor.lane("log-side", failure).map_err(Error::Thread)?;
        let mark = options.mark.map(|path| found::open_mark(path, &found.position)).transpose()?.map(|mark| {
            MarkKeeper { mark, lane: side_lane.clone(), clock, failure: failure.clone(), synced_at_nanos: 0 }
        });
        let (durability, position) = (options.durability, found.position);
        let mut writer = Writer { engine, durability, mark, position, doomed: found.doomed, observer };
        let node_id = found.node_id.unwrap_or(options.fresh_node_id);
        writer.begin(node_id, found.starts + 1)?;
        let shared = Shared {
            written: watch::Sender::new(found.tail.written_below()),
            state: Mutex::new(State { tail: found.tail, ..State::default() }),
            writer: Mutex::new(writer),
            lane: executor.lane("log", failure).map_err(Error::Thread)?,
            side_lane,
            room: Arc::new(Semaphore::new(WAITING_BYTES_MAX)),
            failure: failure.clone(),
            node_id,
            starts: found.starts + 1,
            installing: found.installing,
            word: found.word,
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// This disk's node id.
    pub(super) fn node_id(&self) -> NodeId {
        self.shared.node_id
    }

    /// Up to where the log is purged, and where it ends.
    pub(super) fn ends(&self) -> (Option<LogId>, Option<LogId>) {
        let state = self.shared.state.lock();
        (state.tail.purged, state.tail.last)
    }

    /// How often this disk was opened, this time included. Never the same twice.
    pub(super) fn starts(&self) -> u64 {
        self.shared.starts
    }

    /// Entries below this index are in the log's engine.
    pub(super) fn written_below(&self) -> watch::Receiver<u64> {
        self.shared.written.subscribe()
    }

    /// The position of the last store that came from a peer, as it was noted when the log was opened: the store may
    /// stand there although the log does not reach so far.
    pub(super) fn installing(&self) -> Option<LogId> {
        self.shared.installing
    }

    /// For how many milliseconds the process before kept its word to its leader, as it was noted when the log was opened.
    pub(super) fn word(&self) -> Option<u64> {
        self.shared.word
    }

    /// Notes, on the disk, for how many milliseconds this process keeps its word.
    pub(super) async fn note_word(&self, millis: u64) -> io::Result<()> {
        let note = writer::metadata(b"word", Bytes::copy_from_slice(&millis.to_be_bytes()));
        self.settle(|_, done| Some(Order::Note(note, done))).await
    }

    /// Notes, on the disk, that a store at this position is about to take the place of the present one.
    pub(super) async fn note_install(&self, at: &LogId) -> io::Result<()> {
        let note = writer::metadata(b"installing", convert::encode_log_id(at));
        self.settle(|_, done| Some(Order::Note(note, done))).await
    }

    /// Notes, on the disk, that this node was removed from its cluster: the log cannot be opened again.
    pub(super) async fn retire(&self) -> io::Result<()> {
        let note = writer::metadata(b"retired", Bytes::new());
        self.settle(|_, done| Some(Order::Note(note, done))).await
    }

    /// Forgets everything up to `upto`, which may lie beyond the end of the log.
    pub(super) fn purge(&self, upto: LogId) -> io::Result<()> {
        self.submit_with(|tail| {
            tail.purge(upto);
            Some(Order::Purge(upto))
        })
    }

    fn submit(&self, order: Order) -> io::Result<()> {
        self.submit_with(|_| Some(order))
    }

    /// Changes the tail and orders the same change from the writer, in one step that no other order can come between.
    fn submit_with(&self, change: impl FnOnce(&mut Tail) -> Option<Order>) -> io::Result<()> {
        let wake = {
            let mut state = self.shared.state.lock();
            if let Some(reason) = &state.poison {
                return Err(io::Error::other(reason.to_string()));
            }
            let Some(order) = change(&mut state.tail) else { return Ok(()) };
            self.shared.tell_written(&state.tail);
            state.pending.push_back(order);
            !std::mem::replace(&mut state.writing, true)
        };
        if wake {
            let shared = self.shared.clone();
            self.shared.lane.run(Box::new(move || shared.write_all()));
        }
        Ok(())
    }

    /// Submits an order and waits until it is on the disk.
    async fn settle(&self, change: impl FnOnce(&mut Tail, Done) -> Option<Order>) -> io::Result<()> {
        let (done, waiting) = oneshot::channel();
        let mut unneeded = true;
        self.submit_with(|tail| {
            let order = change(tail, Box::new(move |result| drop(done.send(result))));
            unneeded = order.is_none();
            order
        })?;
        if unneeded { Ok(()) } else { waiting.await.map_err(|_| stopped())? }
    }

    async fn read(&self, range: Range<u64>, bytes_max: usize) -> io::Result<Vec<Entry>> {
        let found = self.shared.state.lock().tail.read(range);
        if found.in_engine.is_empty() {
            return Ok(found.in_memory);
        }
        let (wanted, view) = oneshot::channel();
        self.submit(Order::View(wanted))?;
        let view = view.await.map_err(|_| stopped())?;
        let old = move || found::load(&*view, found.in_engine, bytes_max);
        let (mut entries, complete) = runtime::call(&*self.shared.side_lane, old).await??;
        if complete {
            entries.extend(found.in_memory);
        }
        Ok(entries)
    }

    async fn read_some(&self, range: Range<u64>) -> io::Result<Vec<Entry>> {
        let range = self.shared.state.lock().tail.limit(range, READ_BYTES_MAX);
        self.read(range, READ_BYTES_MAX).await
    }
}

fn stopped() -> io::Error {
    io::Error::other("the log has stopped")
}

impl Shared {
    /// Writes round after round until nothing waits.
    fn write_all(&self) {
        let mut writer = self.writer.lock();
        loop {
            let (round, written_below, committed) = {
                let mut state = self.state.lock();
                let round = writer::next_round(&mut state.pending);
                let idle = round.is_empty() && !writer.has_removals();
                if idle || state.poison.is_some() {
                    state.writing = false;
                    return;
                }
                let written_below = writer::written_below(&round);
                let committed = written_below.and_then(|index| state.tail.committed_below(index));
                (round, written_below, committed)
            };
            match writer.write(round, committed) {
                Ok(()) => self.wrote(written_below),
                Err(error) => self.poison(&error),
            }
        }
    }

    fn wrote(&self, below: Option<u64>) {
        if let Some(index) = below {
            let mut state = self.state.lock();
            state.tail.wrote_below(index);
            self.tell_written(&state.tail);
        }
    }

    fn tell_written(&self, tail: &Tail) {
        let now = tail.written_below();
        self.written.send_if_modified(|before| std::mem::replace(before, now) != now);
    }

    /// What waits is dropped, which tells its callers; what comes later is refused.
    fn poison(&self, error: &Error) {
        self.failure.report(error);
        let mut state = self.state.lock();
        state.poison = Some(error.to_string().into());
        for order in std::mem::take(&mut state.pending) {
            if let Order::Append { done, .. } | Order::Vote(_, done) | Order::Truncate(_, done) | Order::Note(_, done) =
                order
            {
                done(Err(io::Error::other(error.to_string())));
            }
        }
    }
}

impl Writer {
    /// Writes who this is and how often it has started.
    fn begin(&mut self, node_id: NodeId, starts: u64) -> Result<(), Error> {
        self.position.sequence += 1;
        let number = |number: u64| Bytes::copy_from_slice(&number.to_be_bytes());
        let batch = vec![
            writer::metadata(b"node_id", number(node_id)),
            writer::metadata(b"starts", number(starts)),
            writer::metadata(b"sequence", number(self.position.sequence)),
        ];
        // Always synced: the numbers of requests depend on it.
        self.engine.commit(batch, Durability::Synced).map_err(Error::Write)?;
        let mark = self.mark.as_ref().map_or(Ok(()), |keeper| keeper.mark.write(self.position));
        mark.map_err(Error::MarkWrite)
    }
}

fn range_of(bounds: &impl RangeBounds<u64>) -> Range<u64> {
    let start = match bounds.start_bound() {
        Bound::Included(index) => *index,
        Bound::Excluded(index) => index.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let end = match bounds.end_bound() {
        Bound::Included(index) => index.saturating_add(1),
        Bound::Excluded(index) => *index,
        Bound::Unbounded => u64::MAX,
    };
    start..end
}

impl<R: Runtime> RaftLogReader<TypeConfig<R>> for Log {
    async fn try_get_log_entries<B>(&mut self, range: B) -> io::Result<Vec<Entry>>
    where
        B: RangeBounds<u64> + Clone + Debug + Send,
    {
        self.read(range_of(&range), usize::MAX).await
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        Ok(self.shared.state.lock().tail.vote)
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<Entry>> {
        self.read_some(start..end).await
    }

    /// In pieces, so that a long log replayed at start never lies in memory as a whole.
    async fn entries_stream<B>(&mut self, range: B) -> impl Stream<Item = io::Result<Entry>> + Send
    where
        B: RangeBounds<u64> + Clone + Debug + Send,
    {
        let log = self.clone();
        let pieces = stream::try_unfold(range_of(&range), move |range| {
            let log = log.clone();
            async move {
                if range.is_empty() {
                    return Ok(None);
                }
                let entries = log.read_some(range.clone()).await?;
                let next = entries.last().map_or(range.end, |entry| entry.log_id.index + 1);
                Ok::<_, io::Error>(Some((stream::iter(entries.into_iter().map(Ok)), next..range.end)))
            }
        });
        Box::pin(pieces.try_flatten())
    }
}

impl<R: Runtime> RaftLogStorage<TypeConfig<R>> for Log {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> io::Result<LogState<TypeConfig<R>>> {
        let state = self.shared.state.lock();
        Ok(LogState { last_purged_log_id: state.tail.purged, last_log_id: state.tail.last })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        self.settle(|_, done| Some(Order::Vote(*vote, done))).await?;
        self.shared.state.lock().tail.vote = Some(*vote);
        Ok(())
    }

    /// Kept in memory; the next append carries it to the disk. Losing it only means a longer replay.
    async fn save_committed(&mut self, committed: Option<LogId>) -> io::Result<()> {
        self.shared.state.lock().tail.committed = committed;
        Ok(())
    }

    async fn read_committed(&mut self) -> io::Result<Option<LogId>> {
        let state = self.shared.state.lock();
        Ok(state.tail.committed.min(state.tail.last))
    }

    async fn append<I>(&mut self, entries: I, flushed: IOFlushed<TypeConfig<R>>) -> io::Result<()>
    where
        I: IntoIterator<Item = Entry> + Send,
        I::IntoIter: Send,
    {
        let entries: Vec<Entry> = entries.into_iter().collect();
        let bytes = entries.iter().map(tail::size).sum::<usize>().min(WAITING_BYTES_MAX);
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        let room = self.shared.room.clone().acquire_many_owned(bytes).await.map_err(|_| stopped())?;
        self.submit_with(|tail| {
            entries.iter().for_each(|entry| tail.append(entry.clone()));
            Some(Order::Append { entries, done: Box::new(|result| flushed.io_completed(result)), room })
        })
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> io::Result<()> {
        self.settle(|tail, done| {
            let doomed = tail.truncate_after(last);
            (!doomed.is_empty()).then(|| Order::Truncate(doomed, done))
        })
        .await
    }

    async fn purge(&mut self, upto: LogId) -> io::Result<()> {
        Self::purge(self, upto)
    }
}

#[cfg(test)]
mod tests;
