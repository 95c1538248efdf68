//! This process as a member of a cluster: where writes go, and when a read may be answered.
//!
//! Not here: openraft (`raft`), gRPC (`server`).

use std::sync::Arc;

use tokio::sync::watch;

use crate::store::{
    Progress, Reader, Snapshot,
    command::{Answer, Kind},
};

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
    /// Too many requests wait already.
    #[error("too many requests are waiting on this node")]
    Overloaded,
    /// The store or the log failed; the process is about to end.
    #[error("the node has failed: {reason}")]
    Failed {
        /// What the log says about it.
        reason: String,
    },
}

/// A handle on the running node. Cloning is cheap.
#[derive(Clone)]
pub struct Node {}

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
    /// The last index known to be committed.
    pub committed_index: Option<u64>,
    /// The last index the store has applied.
    pub applied_index: Option<u64>,
    /// Number of voters.
    pub voters: usize,
}

impl Node {
    /// Proposes a command and waits for its answer.
    ///
    /// Held during elections up to the hold time; takes effect at most once.
    pub async fn propose(&self, kind: Kind) -> Result<Answer, Error> {
        let _ = kind;
        todo!()
    }

    /// A snapshot that holds everything acknowledged, or streamed, anywhere in the cluster before the call.
    pub async fn fence(&self) -> Result<Arc<Snapshot>, Error> {
        todo!()
    }

    /// For streams and for reads that need no fence.
    pub fn reader(&self) -> &Reader {
        todo!()
    }

    /// Moves with every applied batch.
    pub fn progress(&self) -> watch::Receiver<Progress> {
        todo!()
    }

    /// A moment's picture of the node.
    pub fn status(&self) -> Status {
        todo!()
    }
}
