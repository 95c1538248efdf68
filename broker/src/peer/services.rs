//! The Raft and the Admin service: decode, ask the node, encode.
//!
//! Not here: who may call (`server`), which status an error is (`status`).

use std::sync::Arc;

use databroker_proto::internal::{
    HandoverReply, HandoverRequest, InitReply, InitRequest, PeerReply, PeerRequest, SetMembersReply, SetMembersRequest,
    SnapshotChunk, SnapshotReply, StatusReply, StatusRequest, admin_server, raft_server,
};
use futures::StreamExt as _;
use tonic::{Request, Response, Status, Streaming};

use super::{Admin, BrokenOff, PeerName, Peers, Refused, status::forbidden};

/// Answers peers.
pub(super) struct RaftService<P>(pub(super) Arc<P>);

/// Answers operators.
pub(super) struct AdminService<A>(pub(super) Arc<A>);

/// Who calls, as the gate has found out.
fn caller<T>(request: &Request<T>) -> Result<PeerName, Status> {
    request.extensions().get().cloned().ok_or_else(|| forbidden("a caller without a name"))
}

#[tonic::async_trait]
impl<P: Peers> raft_server::Raft for RaftService<P> {
    async fn call(&self, request: Request<PeerRequest>) -> Result<Response<PeerReply>, Status> {
        let from = caller(&request)?;
        let request = request.into_inner();
        if request.kind.is_none() {
            return Err(Refused::Unknown.into());
        }
        Ok(Response::new(self.0.answer(from, request).await?))
    }

    async fn install_snapshot(
        &self,
        request: Request<Streaming<SnapshotChunk>>,
    ) -> Result<Response<SnapshotReply>, Status> {
        let from = caller(&request)?;
        let chunks = request.into_inner().map(|chunk| chunk.map_err(BrokenOff::from)).boxed();
        Ok(Response::new(self.0.install(from, chunks).await?))
    }
}

#[tonic::async_trait]
impl<A: Admin> admin_server::Admin for AdminService<A> {
    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusReply>, Status> {
        Ok(Response::new(self.0.status().await?))
    }

    async fn init(&self, request: Request<InitRequest>) -> Result<Response<InitReply>, Status> {
        Ok(Response::new(self.0.init(request.into_inner()).await?))
    }

    async fn set_members(&self, request: Request<SetMembersRequest>) -> Result<Response<SetMembersReply>, Status> {
        Ok(Response::new(self.0.set_members(request.into_inner()).await?))
    }

    async fn handover(&self, request: Request<HandoverRequest>) -> Result<Response<HandoverReply>, Status> {
        Ok(Response::new(self.0.handover(request.into_inner()).await?))
    }
}
