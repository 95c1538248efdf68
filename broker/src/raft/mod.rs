//! The replicated log: everything that knows openraft, and nothing outside this folder does.
//!
//! ```text
//!            submit(entry) ─▶ openraft ─▶ log ──▶ one batch, one sync for all that wait (thread "log")
//!                                │ committed
//!                                ▼
//!   Answers ◀──────────────── machine ──▶ store.apply in batches (thread "apply"), then Progress moves
//! ```
//!
//! openraft itself runs on a single-threaded runtime of its own; disk work never runs there, so that heartbeats and
//! elections cannot wait behind a sync.
//!
//! Not here: who may propose what and when (`node`), what commands mean (`store`), the network between nodes.

use std::{fmt, marker::PhantomData, time::Duration};

use bytes::Bytes;
use databroker_proto::internal;
use openraft::impls::{BoxedErrorSource, InlineBatch, ProgressResponder, leader_id_std};

use self::runtime::Runtime;
use crate::store::command::Answer;

mod convert;
pub mod identity;
mod lease;
mod log;
mod machine;
mod membership;
mod network;
mod peers;
mod presence;
mod purge;
pub mod recover;
mod replica;
mod retention;
mod rpc;
pub mod runtime;
mod snapshot;
mod transfers;
pub mod transport;

pub use log::{Error as LogError, Options as LogOptions, SPACES as LOG_SPACES, retired};
pub use membership::{ChangeError, Members};
pub use peers::HandleError;
pub use replica::{Error, Parts, Picture, Refusal, Replica, Role, Submitted, Timers};
pub use retention::Retention;
pub use snapshot::{CHUNK_PATIENCE, InstallError};
pub use transfers::Direction;

/// Hears what log, store, reads and transfers do, for metrics. Called where it happens: it must be quick.
pub trait Observer: Send + Sync + 'static {
    /// A batch of the log was written and synced.
    fn log_written(&self, write: LogWrite) {
        let _ = write;
    }

    /// Committed entries were applied to the store, as one batch.
    fn applied(&self, entries: usize, took: Duration) {
        let _ = (entries, took);
    }

    /// A read waited for so long, until this node had everything that was acknowledged before.
    fn fenced(&self, took: Duration) {
        let _ = took;
    }

    /// A store is on its way to a peer, or from one.
    fn transfer_began(&self, direction: Direction) {
        let _ = direction;
    }

    /// So many bytes of its rows have left, or have come.
    fn transfer_moved(&self, direction: Direction, bytes: usize) {
        let _ = (direction, bytes);
    }

    /// It is over, as a whole or broken off.
    fn transfer_ended(&self, direction: Direction) {
        let _ = direction;
    }
}

/// Hears nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unobserved;

impl Observer for Unobserved {}

/// One batch of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogWrite {
    /// Entries in it; none where only a vote was written.
    pub entries: usize,
    /// Their bytes.
    pub bytes: usize,
    /// How long it took, the sync included.
    pub took: Duration,
}

/// A node's number: random, made at the first start, never used again once its disk is lost.
pub type NodeId = u64;

/// A member of the cluster as every node knows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Member {
    /// Where it runs: the name an operator gave it.
    pub name: String,
    /// Where its peers reach it.
    pub raft_address: String,
    /// Where clients reach it.
    pub grpc_address: String,
}

impl From<internal::ShapeMember> for Member {
    fn from(wanted: internal::ShapeMember) -> Self {
        let internal::ShapeMember { name, raft_address, grpc_address } = wanted;
        Self { name, raft_address, grpc_address }
    }
}

impl Member {
    /// The member as messages have it.
    pub fn to_message(&self, node: NodeId) -> internal::Member {
        let Self { name, raft_address, grpc_address } = self.clone();
        internal::Member { node, name, raft_address, grpc_address }
    }
}

/// An encoded `databroker.internal.v1.Entry`: what openraft carries and never looks into.
#[derive(Clone, PartialEq, Eq)]
pub struct Proposal(pub Bytes);

/// Only the size: openraft writes proposals into its logs, and records are nobody's business there.
impl fmt::Display for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

impl fmt::Debug for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Proposal({self})")
    }
}

type LeaderId = leader_id_std::LeaderId<u64, NodeId>;
type CommittedLeaderId = <LeaderId as openraft::vote::RaftLeaderId>::Committed;
type LogId = openraft::LogId<CommittedLeaderId>;
type Vote = openraft::Vote<LeaderId>;
type Membership = openraft::Membership<NodeId, Member>;
type StoredMembership = openraft::StoredMembership<CommittedLeaderId, NodeId, Member>;
type SnapshotMeta = openraft::SnapshotMeta<CommittedLeaderId, NodeId, Member>;
type Payload = openraft::EntryPayload<Proposal, NodeId, Member>;
type Entry = openraft::Entry<CommittedLeaderId, Payload>;

/// openraft's type parameters. Only the runtime varies; entries, votes and memberships are the same for all of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct TypeConfig<R>(PhantomData<R>);

impl<R: Runtime> openraft::RaftTypeConfig for TypeConfig<R> {
    type D = Proposal;
    type R = Vec<Answer>;
    type NodeId = NodeId;
    type Node = Member;
    type Term = u64;
    type LeaderId = LeaderId;
    type Vote = Vote;
    type Payload = Payload;
    type Entry = Entry;
    type AsyncRuntime = R::Async;
    type Responder<T>
        = ProgressResponder<Self, T>
    where
        T: Send + 'static;
    type Batch<T>
        = InlineBatch<T>
    where
        T: Send + 'static;
    type ErrorSource = BoxedErrorSource;
}

#[cfg(test)]
mod cluster_tests;
