//! This process as a member of a cluster: where writes go, and when a read may be answered.
//!
//! ```text
//!   propose ─▶ coalesce ─▶ raft::Replica ─▶ … ─▶ Answer
//!   fence ──▶ at once on a lone leader, else the leader's read index ─▶ Snapshot
//! ```
//!
//! Not here: openraft (`raft`), gRPC (`server`).

use std::{sync::Arc, thread::JoinHandle, time::Duration};

use databroker_proto::internal::ShapeMember;
use parking_lot::Mutex;
use tokio::{
    sync::{Semaphore, mpsc, oneshot, watch},
    time::{Instant, timeout, timeout_at},
};

use self::{
    coalesce::{Origin, Proposal, Room},
    directory::Directory,
    outbound::Outbound,
    refusals::Refusals,
    replication::WriteGap,
    space::Space,
    tracker::Requests,
};
use crate::{
    mutation::{self, Mutation},
    raft::{
        Member, Observer, Replica,
        runtime::{Clock, Failure, Runtime, Tokio},
    },
    store::{
        Progress, Reader, Snapshot,
        command::{self, Answer, Kind},
        engine::{self, Engine},
    },
};

mod absence;
mod admin;
mod answer;
mod clocks;
mod coalesce;
mod directory;
mod fence;
mod forward;
mod handover;
mod hello;
mod open;
mod outbound;
pub mod recover;
mod refusals;
mod replication;
mod retire;
pub mod route;
pub mod shape;
mod space;
mod steward;
mod sweep;
mod tracker;

pub use self::{
    admin::AdminError,
    answer::Refused,
    handover::Error as HandoverError,
    hello::{NoSeeds, Seeds},
    open::{Bootstrap, Founding, OpenError, Options, Parts, Peers, Storage},
    replication::{Part, Replication},
    space::{Full, Volume},
    sweep::ChangeLog,
};

/// Requests that may be under way at once: half of what the store remembers answers for.
const REQUESTS_MAX: usize = 4096;
/// Bytes of requests that may be under way at once. A single larger one may go alone.
const REQUEST_BYTES_MAX: usize = 64 << 20;

/// How far a clock may be behind the store's time, or ahead of another's, before people are told; unless something else is
/// configured.
pub const MAX_CLOCK_SKEW: Duration = Duration::from_secs(5);

/// Why a request could not be placed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The cluster was not initialised yet.
    #[error("this node belongs to no cluster yet")]
    NotInitialized,
    /// No leader was found within the hold time.
    #[error("the cluster has no leader")]
    NoLeader,
    /// The node is stopping.
    #[error("the node is shutting down")]
    ShuttingDown,
    /// Another node leads, and this one may not pass the request on.
    #[error("this node does not lead the cluster")]
    NotLeader,
    /// Too many requests wait already.
    #[error("too many requests are waiting on this node")]
    Overloaded,
    /// Not all members understand the command yet.
    #[error(
        "the request needs command version {needed}, but the cluster has raised its own to {raised} only: not all of \
         its nodes are of a release that knows it; upgrade the others"
    )]
    TooEarly {
        /// The command version it needs.
        needed: u32,
        /// What all members are known to understand.
        raised: u32,
    },
    /// The leader's disk is nearly full.
    #[error(transparent)]
    Full(#[from] Full),
    /// The store or the log failed; the process is about to end.
    #[error("the node has failed: {reason}")]
    Failed {
        /// What the log says about it.
        reason: String,
    },
}

/// Why something stopped that is not to stop.
fn stopped(failure: &Failure) -> Error {
    failure.reason().map_or(Error::ShuttingDown, |reason| Error::Failed { reason: reason.to_string() })
}

/// A handle on the running node. Cloning is cheap.
pub struct Node<R: Runtime = Tokio> {
    shared: Arc<Shared<R>>,
}

impl<R: Runtime> Clone for Node<R> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone() }
    }
}

struct Shared<R: Runtime> {
    replica: Replica<R>,
    reader: Reader,
    /// Of the log, for its sizes.
    log_engine: Arc<dyn Engine>,
    /// The newest command version of this build.
    knows: u32,
    hold: Duration,
    max_clock_skew: Duration,
    clock: Arc<dyn Clock>,
    failure: Failure,
    observer: Arc<dyn Observer>,
    /// What changes of leader cost.
    write_gap: Arc<WriteGap>,
    requests: Requests,
    proposals: mpsc::Sender<Proposal>,
    fences: mpsc::Sender<fence::Waiter>,
    outbound: Outbound<R>,
    /// Whether writes are placed; false while leadership is handed over.
    open: watch::Sender<bool>,
    /// Held by whoever hands leadership over.
    handing_over: tokio::sync::Mutex<()>,
    /// Who was heard.
    directory: Directory,
    /// Peers that refuse this node.
    refusing: Refusals,
    /// Nodes of other clusters that this one refuses.
    strangers: Refusals,
    /// Where peers may be found.
    seeds: Arc<dyn Seeds>,
    /// This node as its peers will know it.
    member: Member,
    /// The members that the configuration lists: the first shape.
    configured: Vec<ShapeMember>,
    /// What the leader does next, for people; empty when there is nothing to do.
    next_step: watch::Sender<String>,
    space: Space,
    /// When it was looked at last what the data takes, and what was seen.
    taken: Mutex<Option<(Instant, u64)>>,
    request_room: Arc<Semaphore>,
    byte_room: Arc<Semaphore>,
    stopping: watch::Sender<bool>,
    /// The thread of openraft's runtime; none where the node runs on its caller's.
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// How old the sizes of the data may be: looking takes milliseconds, and elections wait meanwhile.
const DISK_LOOK: Duration = Duration::from_secs(10);

/// The engines below a node.
#[derive(Clone)]
pub struct Engines {
    /// Of the log.
    pub log: Arc<dyn Engine>,
    /// Of the store.
    pub store: Arc<dyn Engine>,
}

/// What the node says about itself.
#[derive(Clone, Debug, Default)]
pub struct Status {
    /// The cluster's id, once known.
    pub cluster_id: Option<String>,
    /// This disk's random node id.
    pub node_id: u64,
    /// The configured name.
    pub name: String,
    /// Whether this node leads.
    pub leader: bool,
    /// The current term.
    pub term: u64,
    /// The last index in the log.
    pub last_log_index: Option<u64>,
    /// The last index that is written to it, as durably as it is to be.
    pub written_index: Option<u64>,
    /// The last index known to be committed.
    pub committed_index: Option<u64>,
    /// The last index the store has applied.
    pub applied_index: Option<u64>,
    /// The last index that the store has on the disk for certain.
    pub synced_index: Option<u64>,
    /// The last index that is gone from the log.
    pub purged_index: Option<u64>,
    /// Number of voters.
    pub voters: usize,
}

impl<R: Runtime> Node<R> {
    /// Proposes a command and waits for its answer.
    ///
    /// Held during elections up to the hold time; takes effect at most once. A caller that goes away does not take
    /// its command with it.
    ///
    /// # Errors
    /// See [`Error`]. After [`Error::NoLeader`], [`Error::ShuttingDown`] and [`Error::Failed`] the command may have
    /// taken effect, or may still; after all others it has none.
    pub async fn propose(&self, kind: Kind) -> Result<Answer, Error> {
        let shared = &self.shared;
        self.ready()?;
        let deadline = Instant::now() + shared.hold;
        let room = timeout_at(deadline, self.room(kind.encoded_len())).await.map_err(|_| Error::Overloaded)??;
        self.fits(&kind)?;
        self.send(Proposal::new(kind, Origin::Client(shared.requests.begin()), Some(room), deadline)).await
    }

    /// Proposes a command of the leader itself: without an identity, for it does no harm twice, and without taking
    /// room from clients.
    async fn propose_own(&self, kind: Kind) -> Result<Answer, Error> {
        self.send(Proposal::new(kind, Origin::Leader, None, Instant::now() + self.shared.hold)).await
    }

    async fn send(
        &self,
        (proposal, answer): (Proposal, oneshot::Receiver<Result<Answer, Error>>),
    ) -> Result<Answer, Error> {
        self.allow(proposal.kind())?;
        self.shared.proposals.send(proposal).await.map_err(|_| stopped(&self.shared.failure))?;
        answer.await.unwrap_or_else(|_| Err(stopped(&self.shared.failure)))
    }

    /// The one gate before the log: nothing enters it that a member does not understand.
    fn allow(&self, kind: &Kind) -> Result<(), Error> {
        let needed = command::needs(kind);
        if needed <= command::FIRST_VERSION {
            return Ok(());
        }
        let raised = self.shared.reader.snapshot().cluster().command_version;
        if command::is_allowed(kind, raised) { Ok(()) } else { Err(Error::TooEarly { needed, raised }) }
    }

    async fn room(&self, bytes: usize) -> Result<Room, Error> {
        let bytes = u32::try_from(bytes.min(REQUEST_BYTES_MAX)).unwrap_or(u32::MAX);
        let closed = |_| stopped(&self.shared.failure);
        let request = self.shared.request_room.clone().acquire_owned().await.map_err(closed)?;
        let bytes = self.shared.byte_room.clone().acquire_many_owned(bytes).await.map_err(closed)?;
        Ok((request, bytes))
    }

    fn ready(&self) -> Result<(), Error> {
        if self.is_stopping() || self.shared.failure.reason().is_some() {
            return Err(stopped(&self.shared.failure));
        }
        if !self.role().initialized {
            return Err(Error::NotInitialized);
        }
        Ok(())
    }

    /// A snapshot that holds everything acknowledged, or streamed, anywhere in the cluster before the call.
    ///
    /// # Errors
    /// No leader could be asked within the hold time, or the node is at its end.
    pub async fn fence(&self) -> Result<Arc<Snapshot>, Error> {
        self.fence_within(self.shared.hold).await
    }

    async fn fence_within(&self, limit: Duration) -> Result<Arc<Snapshot>, Error> {
        self.ready()?;
        let snapshot = self.shared.reader.snapshot();
        if self.needs_no_fence(&snapshot) || mutation::active(Mutation::ReadWithoutFence) {
            return Ok(snapshot);
        }
        let began = Instant::now();
        timeout(limit, self.reach_fence()).await.map_err(|_| Error::NoLeader)??;
        self.shared.observer.fenced(began.elapsed());
        Ok(self.shared.reader.snapshot())
    }

    /// The only member leads, and has applied an entry of its own term: then everything acknowledged, now or before a
    /// restart, has been applied and published. A learner could have applied, and streamed, more than its leader.
    fn needs_no_fence(&self, snapshot: &Snapshot) -> bool {
        let role = self.role();
        role.leads
            && role.alone
            && role.members == 1
            && snapshot.progress().applied.is_some_and(|applied| applied.term == role.term)
    }

    async fn reach_fence(&self) -> Result<(), Error> {
        let (waiter, reached) = oneshot::channel();
        let stopped = || stopped(&self.shared.failure);
        self.shared.fences.send(waiter).await.map_err(|_| stopped())?;
        reached.await.map_err(|_| stopped())
    }

    /// For streams and for reads that need no fence.
    pub fn reader(&self) -> &Reader {
        &self.shared.reader
    }

    /// Moves with every applied batch.
    pub fn progress(&self) -> watch::Receiver<Progress> {
        self.shared.replica.progress()
    }

    /// What this node is for routing.
    pub fn route_role(&self) -> route::Role {
        match self.role() {
            crate::raft::Role { members: 0 | 1, .. } => route::Role::Standalone,
            crate::raft::Role { leads: true, .. } => route::Role::Leader,
            crate::raft::Role { leads: false, .. } => route::Role::Follower,
        }
    }

    /// A moment's picture of the node.
    pub fn status(&self) -> Status {
        let (role, picture) = (self.role(), self.shared.replica.picture());
        Status {
            cluster_id: self.shared.reader.snapshot().cluster_id().map(str::to_owned),
            node_id: self.shared.replica.node_id(),
            name: self.shared.member.name.clone(),
            leader: role.leads,
            term: role.term,
            last_log_index: picture.last_log_index,
            written_index: picture.written_index,
            committed_index: picture.committed_index,
            applied_index: picture.applied_index,
            synced_index: picture.synced_index,
            purged_index: picture.purged_index,
            voters: role.voters,
        }
    }

    /// Sizes of the engines, of the log and of the store: for metrics. May read from the disk.
    pub fn engine_stats(&self) -> (engine::Stats, engine::Stats) {
        (self.shared.log_engine.stats(), self.shared.replica.store_stats())
    }

    /// Whether the leader's disk has space for a command.
    fn fits(&self, kind: &Kind) -> Result<(), Error> {
        let space = &self.shared.space;
        let full = space.of_leader(|| self.leader_full());
        full.filter(|full| space.keeps_from(full, kind)).map_or(Ok(()), |full| Err(full.into()))
    }

    /// Whether the leader's disk is nearly full: this node's own, or by what the leader said a moment ago.
    fn leader_full(&self) -> Option<Full> {
        if self.role().leads {
            return self.shared.space.full();
        }
        let leader = self.shared.replica.present_leader()?;
        let known = self.shared.directory.all();
        let said = &known.values().find(|heard| heard.said.node == leader && heard.is_recent())?.said;
        said.disk_full.then_some(Full { free: said.disk_bytes_free })
    }

    /// What the data takes on the disk, a moment ago, in bytes.
    fn taken(&self) -> u64 {
        let mut last = self.shared.taken.lock();
        if let Some((at, seen)) = *last
            && at.elapsed() < DISK_LOOK
        {
            return seen;
        }
        let (log, store) = self.engine_stats();
        let seen = log.bytes + store.bytes;
        *last = Some((Instant::now(), seen));
        seen
    }

    /// Resolves with the reason once the node has failed for good: the process is to end.
    pub async fn failed(&self) -> String {
        self.shared.failure.wait().await.to_string()
    }

    /// Why the node has failed, if it has.
    pub fn failure(&self) -> Option<String> {
        self.shared.failure.reason().map(|reason| reason.to_string())
    }

    /// Whether it is to end because it was removed from its cluster, and not because something broke.
    pub fn was_removed(&self) -> bool {
        self.shared.failure.is_orderly()
    }

    /// Stops: nothing new is taken, what was applied is brought to the disk, all threads end. What is still under way
    /// fails with [`Error::ShuttingDown`].
    pub async fn shutdown(self) {
        self.shared.stopping.send_replace(true);
        let thread = self.shared.thread.lock().take();
        match thread {
            // A panic in it was reported; there is nothing else to say.
            Some(thread) => drop(tokio::task::spawn_blocking(move || thread.join()).await),
            None => self.shared.replica.shutdown().await,
        }
    }

    fn role(&self) -> crate::raft::Role {
        *self.shared.replica.role().borrow()
    }

    /// How far this node's clock is behind the store's time. That never runs back: after a clock that was ahead is set
    /// right, it stands still until the clock has caught up, and with it whatever expires.
    pub fn clock_behind(&self) -> Duration {
        let store = self.shared.reader.progress().now_nanos;
        Duration::from_nanos(store.saturating_sub(self.clock().now_nanos()))
    }

    /// The same, if it is more than a clock may be behind.
    pub fn clock_too_far_behind(&self) -> Option<Duration> {
        Some(self.clock_behind()).filter(|behind| *behind > self.shared.max_clock_skew)
    }

    fn clock(&self) -> &dyn Clock {
        &*self.shared.clock
    }

    fn is_stopping(&self) -> bool {
        *self.shared.stopping.borrow()
    }
}

#[cfg(test)]
mod cluster_tests;
#[cfg(test)]
mod tests;
