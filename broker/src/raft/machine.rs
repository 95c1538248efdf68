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
    snapshot::{Receiver, SnapshotData},
};
use crate::{
    mutation::{self, Mutation},
    store::{
        self, Position, Progress, Reader, Step, Store,
        engine::{self, Engine},
        transfer::Arrived,
    },
};

/// What one batch holds at most: it lies in memory twice, and nobody in it is answered before its end.
const BATCH_BYTES_MAX: usize = 4 << 20;
const BATCH_ENTRIES_MAX: usize = 1024;

/// openraft's view of the store.
pub(super) struct Machine {
    shared: Arc<Shared>,
    /// Entries below this index are in this node's log.
    written_below: watch::Receiver<u64>,
    applied: Option<LogId>,
    membership: StoredMembership,
}

pub(super) struct Shared {
    /// Only the lane locks it, but at open.
    store: Mutex<Store>,
    /// Of the store in use, for its sizes: whoever asks for them must not wait for a sync.
    engine: Mutex<Arc<dyn Engine>>,
    lane: Arc<dyn Lane>,
    progress: watch::Sender<Progress>,
    failure: Failure,
    pub(super) observer: Arc<dyn Observer>,
    bounds: Retention,
    ledger: Mutex<Ledger>,
    /// By bytes, the store is due to be synced.
    pub(super) sync_due: Notify,
    /// Up to where it was synced last so that the log may be purged.
    pub(super) built: watch::Sender<u64>,
    /// The newest command version this build can apply.
    pub(super) knows: u32,
    /// What the store publishes.
    pub(super) reader: Reader,
    /// Where stores of other nodes arrive.
    pub(super) receiver: Receiver,
}

impl Machine {
    /// Takes over a store. It is synced first: what it was opened with may be purged from the log from now on.
    ///
    /// # Errors
    /// The store cannot be synced, or what it holds makes no sense.
    pub(super) fn open(
        store: Store,
        lane: Arc<dyn Lane>,
        receiver: Receiver,
        written_below: watch::Receiver<u64>,
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
            knows: store.knows(),
            reader: store.reader().clone(),
            engine: Mutex::new(store.engine().clone()),
            store: Mutex::new(store),
            receiver,
            lane,
            failure,
            observer,
            bounds,
            ledger: Mutex::new(Ledger::new(bounds)),
            sync_due: Notify::new(),
            built: watch::Sender::default(),
        };
        Ok(Self { shared: Arc::new(shared), written_below, applied, membership })
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
        self.until_written(last.index).await?;
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

    /// A majority elsewhere may commit an entry before this node has written it. It is applied once this node's own log
    /// has it: else a crash would leave a store that is ahead of its log, which is what damage looks like.
    async fn until_written(&mut self, index: u64) -> io::Result<()> {
        tokio::select! {
            biased;
            written = self.written_below.wait_for(|below| *below > index) => {
                written.map(drop).map_err(|_| io::Error::other("the log has stopped"))
            }
            reason = self.shared.failure.wait() => Err(io::Error::other(reason.to_string())),
        }
    }
}

impl Shared {
    pub(super) fn failure(&self) -> &Failure {
        &self.failure
    }

    pub(super) fn progress(&self) -> watch::Receiver<Progress> {
        self.progress.subscribe()
    }

    /// Up to where the log may be purged: see [`Ledger::purge_upto`].
    pub(super) fn purge_upto(&self, synced: u64, needed: Option<u64>) -> Option<u64> {
        self.ledger.lock().purge_upto(synced, needed)
    }

    /// The order matters: apply publishes, then the callers hear of it, then the streams.
    fn apply<R: Runtime>(self: &Arc<Self>, steps: Vec<(Position, Step)>, waiting: Vec<Waiting<R>>) -> io::Result<()> {
        let (started, entries) = (Instant::now(), steps.len());
        let mut store = self.store.lock();
        let answers = store.apply(steps).map_err(|error| self.fail(error))?;
        self.observer.applied(entries, started.elapsed());
        mutation::publish(&Mutation::LATE[1..], move || {
            for (responder, answers) in waiting.into_iter().zip(answers) {
                responder.into_iter().for_each(|responder| responder.send(answers.clone()));
            }
        });
        let shared = self.clone();
        mutation::publish(&Mutation::LATE, move || shared.announce());
        Ok(())
    }

    fn announce(&self) {
        let progress = self.reader.progress();
        self.progress.send_if_modified(|before| std::mem::replace(before, progress) != progress);
    }

    /// Puts a store that has arrived in the place of this one. First on the disk: what was published must not be gone
    /// after a crash.
    fn swap(&self, arrived: Arrived) -> io::Result<()> {
        self.receiver.shelf.adopt().map_err(|error| self.fail(error.into()))?;
        let mut store = self.store.lock();
        store.adopt(arrived);
        *self.engine.lock() = store.engine().clone();
        drop(store);
        *self.ledger.lock() = Ledger::new(self.bounds);
        self.announce();
        Ok(())
    }

    /// Sizes of the store's engine. Waits for nothing but the file system.
    pub(super) fn stats(&self) -> engine::Stats {
        let engine = self.engine.lock().clone();
        engine.stats()
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
        match &entry.payload {
            Payload::Blank => {}
            Payload::Normal(proposal) => self.bytes += proposal.0.len(),
            Payload::Membership(membership) => {
                self.membership = Some(StoredMembership::new(Some(entry.log_id), membership.clone()));
            }
        }
        self.steps.push((convert::position(&entry.log_id), convert::step(entry.payload)));
        self.waiting.push(waiting);
    }

    fn is_full(&self) -> bool {
        self.bytes >= BATCH_BYTES_MAX || self.steps.len() >= BATCH_ENTRIES_MAX
    }
}

/// Makes a snapshot: brings to the disk what the store had applied, so that the log may be purged up to there.
pub(super) struct SnapshotBuilder {
    shared: Arc<Shared>,
    snapshot: Arc<store::Snapshot>,
    meta: SnapshotMeta,
}

impl<R: Runtime> RaftSnapshotBuilder<TypeConfig<R>> for SnapshotBuilder {
    type SnapshotData = SnapshotData;

    async fn build_snapshot(&mut self) -> io::Result<SnapshotOf<TypeConfig<R>, SnapshotData>> {
        if !mutation::active(Mutation::PurgeBeyondSynced) {
            self.shared.sync().await?;
        }
        self.shared.receiver.tidy();
        self.shared.built.send_replace(self.meta.last_log_id.map_or(0, |id| id.index));
        let snapshot = SnapshotData::Taken(self.snapshot.clone());
        Ok(openraft::Snapshot { meta: self.meta.clone(), snapshot })
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

    /// Nothing is applied while this is asked, so snapshot and metadata belong together.
    async fn get_snapshot_builder(&mut self) -> SnapshotBuilder {
        let meta = meta(self.applied, self.membership.clone());
        SnapshotBuilder { shared: self.shared.clone(), snapshot: self.shared.reader.snapshot(), meta }
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, data: SnapshotData) -> io::Result<()> {
        let arrived = match data {
            SnapshotData::Arrived(arrived) => *arrived,
            SnapshotData::Taken(snapshot) => {
                self.shared.receiver.copy(snapshot, meta).await.map_err(io::Error::other)?
            }
        };
        let shared = self.shared.clone();
        runtime::call(&*self.shared.lane, move || shared.swap(arrived)).await??;
        (self.applied, self.membership) = (meta.last_log_id, meta.last_membership.clone());
        self.shared.receiver.tidy();
        Ok(())
    }

    /// The store as it stands, for a peer: synced first, for the metadata of a snapshot never claim more than the disk
    /// has.
    async fn get_current_snapshot(&mut self) -> io::Result<Option<SnapshotOf<TypeConfig<R>, SnapshotData>>> {
        if self.applied.is_none() {
            return Ok(None);
        }
        self.shared.sync().await?;
        let snapshot = SnapshotData::Taken(self.shared.reader.snapshot());
        Ok(Some(openraft::Snapshot { meta: meta(self.applied, self.membership.clone()), snapshot }))
    }
}
