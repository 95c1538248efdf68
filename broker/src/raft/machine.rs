//! Drives the store with what is committed: in batches, on a thread of its own. An answer leaves after the store has
//! published what it speaks of.
//!
//! Not here: what commands do (`store`).

use std::{io, sync::Arc, time::Instant};

use futures::{Stream, TryStreamExt as _};
use openraft::{
    RaftSnapshotBuilder,
    alias::SnapshotOf,
    storage::{ApplyResponder, EntryResponder, RaftStateMachine},
};
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use super::{
    Entry, LogId, Observer, Payload, SnapshotMeta, StoredMembership, TypeConfig, convert,
    retention::{Ledger, Retention},
    runtime::{self, Failure, Lane, Runtime},
};
use crate::store::{self, Position, Progress, Step, Store};

/// What one batch holds at most: it lies in memory twice, and nobody in it is answered before its end.
const BATCH_BYTES_MAX: usize = 4 << 20;
const BATCH_ENTRIES_MAX: usize = 1024;

/// openraft's view of the store.
pub(super) struct Machine {
    shared: Arc<Shared>,
    applied: Option<LogId>,
    membership: StoredMembership,
}

pub(super) struct Shared {
    /// Only the lane locks it, but at open.
    store: Mutex<Store>,
    lane: Arc<dyn Lane>,
    progress: watch::Sender<Progress>,
    failure: Failure,
    observer: Arc<dyn Observer>,
    ledger: Mutex<Ledger>,
    /// By bytes, the store is due to be synced.
    pub(super) sync_due: Notify,
    /// What the store is known to have on the disk.
    synced: Mutex<Option<SnapshotMeta>>,
}

impl Machine {
    /// Takes over a store. It is synced first: what it was opened with may be purged from the log from now on.
    ///
    /// # Errors
    /// The store cannot be synced, or what it holds makes no sense.
    pub(super) fn open(
        store: Store,
        lane: Arc<dyn Lane>,
        failure: Failure,
        observer: Arc<dyn Observer>,
        bounds: Retention,
    ) -> Result<Self, store::Error> {
        store.sync()?;
        let (applied, membership) = store.applied();
        let membership =
            convert::stored_membership(membership).map_err(|e| store::Error::Damaged { what: e.to_string() })?;
        let applied = applied.map(convert::log_id);
        let shared = Shared {
            progress: watch::Sender::new(store.reader().progress()),
            store: Mutex::new(store),
            lane,
            failure,
            observer,
            ledger: Mutex::new(Ledger::new(bounds)),
            sync_due: Notify::new(),
            synced: Mutex::new(applied.map(|id| meta(Some(id), membership.clone()))),
        };
        Ok(Self { shared: Arc::new(shared), applied, membership })
    }

    /// Where the store stands.
    pub(super) fn applied(&self) -> Option<LogId> {
        self.applied
    }

    pub(super) fn shared(&self) -> Arc<Shared> {
        self.shared.clone()
    }

    async fn apply_batch<R: Runtime>(&mut self, batch: Batch<R>) -> io::Result<()> {
        let Some(last) = batch.steps.last().map(|(position, _)| convert::log_id(*position)) else { return Ok(()) };
        let shared = self.shared.clone();
        let (steps, waiting) = (batch.steps, batch.waiting);
        runtime::call(&*self.shared.lane, move || shared.apply(steps, waiting)).await??;
        self.applied = Some(last);
        self.membership = batch.membership.unwrap_or_else(|| std::mem::take(&mut self.membership));
        if self.shared.ledger.lock().applied(last.index, batch.bytes as u64) {
            self.shared.sync_due.notify_one();
        }
        Ok(())
    }
}

impl Shared {
    pub(super) fn progress(&self) -> watch::Receiver<Progress> {
        self.progress.subscribe()
    }

    /// By bytes, up to where the log may be purged.
    pub(super) fn purge_upto(&self) -> Option<u64> {
        self.ledger.lock().purge_upto()
    }

    /// The order matters: apply publishes, then the callers hear of it, then the streams.
    fn apply<R: Runtime>(&self, steps: Vec<(Position, Step)>, waiting: Vec<Waiting<R>>) -> io::Result<()> {
        let (started, entries) = (Instant::now(), steps.len());
        let mut store = self.store.lock();
        let answers = store.apply(steps).map_err(|error| self.fail(error))?;
        self.observer.applied(entries, started.elapsed());
        for (responder, answers) in waiting.into_iter().zip(answers) {
            responder.into_iter().for_each(|responder| responder.send(answers.clone()));
        }
        let progress = store.reader().progress();
        self.progress.send_if_modified(|before| std::mem::replace(before, progress) != progress);
        Ok(())
    }

    fn fail(&self, error: store::Error) -> io::Error {
        self.failure.report(&error);
        io::Error::other(error)
    }

    /// Brings everything applied so far to the disk.
    pub(super) async fn sync(self: &Arc<Self>) -> io::Result<()> {
        let shared = self.clone();
        self.ledger.lock().syncing();
        runtime::call(&*self.lane, move || shared.store.lock().sync().map_err(|error| shared.fail(error))).await?
    }
}

fn meta(last_log_id: Option<LogId>, last_membership: StoredMembership) -> SnapshotMeta {
    SnapshotMeta { last_log_id, last_membership }
}

type Waiting<R> = Option<ApplyResponder<TypeConfig<R>>>;

/// Committed entries on their way to the store.
struct Batch<R: Runtime> {
    steps: Vec<(Position, Step)>,
    /// Who waits for the answers of each step.
    waiting: Vec<Waiting<R>>,
    bytes: usize,
    /// The last membership among them.
    membership: Option<StoredMembership>,
}

impl<R: Runtime> Default for Batch<R> {
    fn default() -> Self {
        Self { steps: Vec::new(), waiting: Vec::new(), bytes: 0, membership: None }
    }
}

impl<R: Runtime> Batch<R> {
    fn push(&mut self, entry: Entry, waiting: Waiting<R>) {
        let step = match entry.payload {
            Payload::Blank => Step::Blank,
            Payload::Normal(proposal) => {
                self.bytes += proposal.0.len();
                Step::Commands(proposal.0)
            }
            Payload::Membership(membership) => {
                let bytes = convert::encode_membership(&membership);
                self.membership = Some(StoredMembership::new(Some(entry.log_id), membership));
                Step::Membership(bytes)
            }
        };
        self.steps.push((convert::position(&entry.log_id), step));
        self.waiting.push(waiting);
    }

    fn is_full(&self) -> bool {
        self.bytes >= BATCH_BYTES_MAX || self.steps.len() >= BATCH_ENTRIES_MAX
    }
}

/// What a snapshot carries besides its metadata: nothing yet, for a lone voter never sends one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct SnapshotData;

/// Makes a snapshot: brings to the disk what the store had applied, so that the log may be purged up to there.
pub(super) struct SnapshotBuilder {
    shared: Arc<Shared>,
    meta: SnapshotMeta,
}

impl<R: Runtime> RaftSnapshotBuilder<TypeConfig<R>> for SnapshotBuilder {
    type SnapshotData = SnapshotData;

    async fn build_snapshot(&mut self) -> io::Result<SnapshotOf<TypeConfig<R>, SnapshotData>> {
        self.shared.sync().await?;
        *self.shared.synced.lock() = Some(self.meta.clone());
        Ok(openraft::Snapshot { meta: self.meta.clone(), snapshot: SnapshotData })
    }
}

impl<R: Runtime> RaftStateMachine<TypeConfig<R>> for Machine {
    type SnapshotData = SnapshotData;
    type SnapshotBuilder = SnapshotBuilder;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        Ok((self.applied, self.membership.clone()))
    }

    async fn apply<S>(&mut self, mut entries: S) -> io::Result<()>
    where
        S: Stream<Item = io::Result<EntryResponder<TypeConfig<R>>>> + Unpin + Send,
    {
        let mut batch = Batch::<R>::default();
        while let Some((entry, waiting)) = entries.try_next().await? {
            batch.push(entry, waiting);
            if batch.is_full() {
                self.apply_batch(std::mem::take(&mut batch)).await?;
            }
        }
        self.apply_batch(batch).await
    }

    async fn get_snapshot_builder(&mut self) -> SnapshotBuilder {
        SnapshotBuilder { shared: self.shared.clone(), meta: meta(self.applied, self.membership.clone()) }
    }

    async fn install_snapshot(&mut self, _meta: &SnapshotMeta, _data: SnapshotData) -> io::Result<()> {
        Err(io::Error::new(io::ErrorKind::Unsupported, "this release does not install snapshots of other nodes"))
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<SnapshotOf<TypeConfig<R>, SnapshotData>>> {
        let synced = self.shared.synced.lock().clone();
        Ok(synced.map(|meta| openraft::Snapshot { meta, snapshot: SnapshotData }))
    }
}
