//! What members of a cluster say to each other, and operators to them: mutual TLS, both ends of the Raft and Admin
//! services.
//!
//! ```text
//!   raft ─▶ Client (Transport) ─ control, bulk ─▶ TLS ─▶ Server ─▶ Peers, Admin (what the node implements)
//!   databroker cluster ─ TLS, or the socket in the data folder ─▶ Server, Socket ──────────┘
//! ```
//!
//! Not here: what a message means (`raft`, `node`), the port of clients (`server`).

use std::{fmt, sync::Arc};

use databroker_proto::internal::{
    HandoverReply, HandoverRequest, InitReply, InitRequest, PeerReply, PeerRequest, SetMembersReply, SetMembersRequest,
    SnapshotChunk, SnapshotReply, StatusReply,
};
use futures::stream::BoxStream;

pub mod authority;
mod client;
mod dial;
pub mod discovery;
pub mod identity;
mod link;
pub mod material;
pub mod operator;
mod server;
mod services;
mod socket;
mod status;
#[cfg(test)]
mod tests;
pub mod tls;

pub use client::Client;
pub use discovery::discover;
pub use server::{BindError, Server};
pub use socket::{SOCKET_FILE, Socket, SocketError};

/// The largest message between nodes. A client's request, of 64 MiB unless configured otherwise, goes into one; nodes
/// trust each other's certificates, so that the bound is against mistakes.
pub const MESSAGE_BYTES_MAX: usize = 256 << 20;

/// The name of a node, as its certificate says it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PeerName(Arc<str>);

impl PeerName {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&str> for PeerName {
    fn from(name: &str) -> Self {
        Self(name.into())
    }
}

impl fmt::Display for PeerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A store on its way in. Ends after a chunk with the end in it, or else was broken off.
pub type Chunks = BoxStream<'static, Result<SnapshotChunk, BrokenOff>>;

/// A stream ended that was not at its end.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the transfer was broken off: {reason}")]
pub struct BrokenOff {
    /// What the network says.
    pub reason: String,
}

/// What a node answers its peers. A caller that loses patience goes away: its future is dropped, wherever it stands.
pub trait Peers: Send + Sync + 'static {
    /// Answers one question of the node whose certificate says `from`.
    fn answer(&self, from: PeerName, request: PeerRequest) -> impl Future<Output = Result<PeerReply, Refused>> + Send;

    /// Takes a store.
    fn install(&self, from: PeerName, chunks: Chunks) -> impl Future<Output = Result<SnapshotReply, Refused>> + Send;
}

/// What a node does for operators.
pub trait Admin: Send + Sync + 'static {
    /// How the cluster is.
    fn status(&self) -> impl Future<Output = Result<StatusReply, AdminError>> + Send;
    /// Founds it.
    fn init(&self, request: InitRequest) -> impl Future<Output = Result<InitReply, AdminError>> + Send;
    /// Says who should be a voter.
    fn set_members(
        &self,
        request: SetMembersRequest,
    ) -> impl Future<Output = Result<SetMembersReply, AdminError>> + Send;
    /// Moves leadership.
    fn handover(&self, request: HandoverRequest) -> impl Future<Output = Result<HandoverReply, AdminError>> + Send;
}

/// Why a peer gets no answer. It hears the reason as [`crate::raft::transport::CallError::Refused`], but for `Closing`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The message is of another cluster.
    #[error("it belongs to cluster {ours}, and the message is of cluster {found}")]
    OtherCluster {
        /// Of which.
        found: String,
        /// This node's; empty: none yet.
        ours: String,
    },
    /// The message is for another node: another life of this disk, or another disk at this address.
    #[error("the message is for node {found:016x}, this is {ours:016x}")]
    OtherNode {
        /// For whom.
        found: u64,
        /// Who this is.
        ours: u64,
    },
    /// The message is in another's name than the certificate's.
    #[error("the message says that it is from {found:?}, the certificate is {ours:?}'s")]
    OtherName {
        /// Whose it says it is.
        found: String,
        /// The certificate's.
        ours: String,
    },
    /// This release does not know the question.
    #[error("this release does not know what is asked")]
    Unknown,
    /// The message makes no sense.
    #[error("the message makes no sense: {reason}")]
    Malformed {
        /// Why.
        reason: String,
    },
    /// The node cannot do it as it is now.
    #[error("{reason}")]
    Unable {
        /// Why not.
        reason: String,
    },
    /// The node is stopping, or does not answer yet: the peer should take it for one that cannot be reached.
    #[error("the node is stopping")]
    Closing,
}

/// Why an operator's wish is not fulfilled.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AdminError {
    /// There is no cluster yet.
    #[error("this node belongs to no cluster yet: found one with `databroker cluster init`, on one node")]
    NotInitialized,
    /// There is one already.
    #[error("{reason}")]
    AlreadyInitialized {
        /// Where.
        reason: String,
    },
    /// Nobody leads, so that nothing can be changed.
    #[error("the cluster has no leader: a majority of its voters must be reachable")]
    NoLeader,
    /// The wish makes no sense.
    #[error("{reason}")]
    Invalid {
        /// Why.
        reason: String,
    },
    /// It cannot be fulfilled as things are.
    #[error("{reason}")]
    Unable {
        /// Why not, and what to do.
        reason: String,
    },
    /// The node is stopping.
    #[error("the node is stopping")]
    Closing,
    /// Something broke.
    #[error("{reason}")]
    Failed {
        /// What.
        reason: String,
    },
}
