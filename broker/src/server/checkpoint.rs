//! `databroker.CheckpointService`: a place in some other server's changes, kept for whoever follows it.

use databroker_proto::{
    databroker::{
        GetCheckpointRequest, GetCheckpointResponse, SetCheckpointRequest, SetCheckpointResponse,
        checkpoint_service_server::CheckpointService,
    },
    internal,
};
use tonic::{Request, Response, Status};

use super::edge::Edge;
use crate::store::command::Kind;

/// The service.
pub(super) struct Checkpoints(pub(super) Edge);

#[tonic::async_trait]
impl CheckpointService for Checkpoints {
    async fn get_checkpoint(
        &self,
        request: Request<GetCheckpointRequest>,
    ) -> Result<Response<GetCheckpointResponse>, Status> {
        let checkpoint = Some(self.0.snapshot(request.metadata()).await?.checkpoint());
        // A node without peers leads nobody.
        let status = self.0.node.status();
        Ok(Response::new(GetCheckpointResponse { checkpoint, is_leader: status.leader && status.voters > 1 }))
    }

    async fn set_checkpoint(
        &self,
        request: Request<SetCheckpointRequest>,
    ) -> Result<Response<SetCheckpointResponse>, Status> {
        let checkpoint = request.into_inner().checkpoint.unwrap_or_default();
        let command = internal::SetCheckpoint {
            server_version: checkpoint.server_version,
            record_version: checkpoint.record_version,
        };
        self.0.propose(Kind::SetCheckpoint(command)).await?;
        Ok(Response::new(SetCheckpointResponse {}))
    }
}
