//! How a replica reaches its peers. What carries the messages is a parameter, so that a simulation can lose, delay and
//! repeat them.
//!
//! Not here: connections and certificates (`peer`), what messages mean.

use std::time::Duration;

use databroker_proto::internal::{PeerReply, PeerRequest, SnapshotChunk, SnapshotReply};
use futures::future::BoxFuture;
use tokio::sync::mpsc;

use super::{Member, NodeId};

/// Another node: its id, and where it is reached.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Peer {
    /// 0: not known yet, as in a first Hello.
    pub node: NodeId,
    /// Its name and addresses.
    pub member: Member,
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// No connection. The request was not delivered, or it cannot be told.
    #[error("{peer} cannot be reached: {reason}")]
    Unreachable {
        /// Whom, by name and address.
        peer: String,
        /// What the network says.
        reason: String,
    },
    /// No answer within the caller's patience.
    #[error("{peer} did not answer in time")]
    TimedOut {
        /// Who.
        peer: String,
    },
    /// The peer refused: another cluster, another node, another certificate, or it cannot.
    #[error("{peer} refuses: {reason}")]
    Refused {
        /// Who.
        peer: String,
        /// What it says.
        reason: String,
    },
}

/// Carries messages to peers. Messages may be lost, repeated and reordered; they are never changed.
pub trait Transport: Send + Sync + 'static {
    /// Asks, and waits for the answer as long as the caller is patient.
    fn call(
        &self,
        to: Peer,
        request: PeerRequest,
        patience: Duration,
    ) -> BoxFuture<'static, Result<PeerReply, CallError>>;

    /// Sends a store. `chunks` ends after a chunk with the end in it; without that the transfer is broken off, and the
    /// receiver forgets what it has. `patience` is for each chunk, not for the whole.
    fn send_snapshot(
        &self,
        to: Peer,
        chunks: mpsc::Receiver<SnapshotChunk>,
        patience: Duration,
    ) -> BoxFuture<'static, Result<SnapshotReply, CallError>>;
}

/// A cluster of one has no peers. Should a membership name another node all the same, it is unreachable.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoPeers;

impl NoPeers {
    fn unreachable(to: &Peer) -> CallError {
        CallError::Unreachable { peer: to.member.name.clone(), reason: "this node has no peers".into() }
    }
}

impl Transport for NoPeers {
    fn call(&self, to: Peer, _: PeerRequest, _: Duration) -> BoxFuture<'static, Result<PeerReply, CallError>> {
        Box::pin(async move { Err(Self::unreachable(&to)) })
    }

    fn send_snapshot(
        &self,
        to: Peer,
        _: mpsc::Receiver<SnapshotChunk>,
        _: Duration,
    ) -> BoxFuture<'static, Result<SnapshotReply, CallError>> {
        Box::pin(async move { Err(Self::unreachable(&to)) })
    }
}
