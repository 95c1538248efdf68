//! The way to other nodes. A lone voter has none; should a membership name another node all the same, it is
//! unreachable, and openraft keeps trying with growing pauses.

use openraft::{
    RaftNetworkFactory, RaftNetworkV2,
    alias::SnapshotOf,
    errors::{RPCError, ReplicationClosed, StreamingError, Unreachable},
    network::RPCOption,
    raft::{
        AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest, TransferLeaderResponse,
        VoteRequest, VoteResponse,
    },
};

use super::{Member, NodeId, TypeConfig, Vote, machine::SnapshotData, runtime::Runtime};

/// A network without peers.
#[derive(Clone, Copy, Debug)]
pub(super) struct NoPeers;

impl<R: Runtime> RaftNetworkFactory<TypeConfig<R>> for NoPeers {
    type Network = Self;

    async fn new_client(&mut self, _target: NodeId, _member: &Member) -> Self {
        *self
    }
}

fn unreachable<R: Runtime>() -> Unreachable<TypeConfig<R>> {
    Unreachable::from_string("this node has no network")
}

type Rpc<R, T> = Result<T, RPCError<TypeConfig<R>>>;

impl<R: Runtime> RaftNetworkV2<TypeConfig<R>> for NoPeers {
    type SnapshotData = SnapshotData;

    async fn append_entries(
        &mut self,
        _request: AppendEntriesRequest<TypeConfig<R>>,
        _option: RPCOption,
    ) -> Rpc<R, AppendEntriesResponse<TypeConfig<R>>> {
        Err(unreachable().into())
    }

    async fn vote(
        &mut self,
        _request: VoteRequest<TypeConfig<R>>,
        _option: RPCOption,
    ) -> Rpc<R, VoteResponse<TypeConfig<R>>> {
        Err(unreachable().into())
    }

    async fn pre_vote(
        &mut self,
        _request: VoteRequest<TypeConfig<R>>,
        _option: RPCOption,
    ) -> Rpc<R, VoteResponse<TypeConfig<R>>> {
        Err(unreachable().into())
    }

    async fn full_snapshot(
        &mut self,
        _vote: Vote,
        _snapshot: SnapshotOf<TypeConfig<R>, SnapshotData>,
        _cancel: impl Future<Output = ReplicationClosed> + Send + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig<R>>, StreamingError<TypeConfig<R>>> {
        Err(StreamingError::Unreachable(unreachable()))
    }

    async fn transfer_leader(
        &mut self,
        _request: TransferLeaderRequest<TypeConfig<R>>,
        _option: RPCOption,
    ) -> Rpc<R, TransferLeaderResponse<TypeConfig<R>>> {
        Err(unreachable().into())
    }
}
