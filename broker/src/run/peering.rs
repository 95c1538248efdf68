//! Where the node meets the peers' port: its answers and errors in the words of `peer`.
//!
//! Not here: any decision; `node` decides, `peer` carries.

use databroker_proto::internal::{
    HandoverReply, HandoverRequest, InitReply, InitRequest, PeerReply, PeerRequest, SetMembersReply, SetMembersRequest,
    SnapshotReply, StatusReply,
};

use futures::StreamExt as _;

use crate::{
    node::{self, HandoverError, Node},
    peer::{Admin, AdminError, Chunks, PeerName, Peers, Refused},
};

/// The node, for its peers and for operators.
pub(super) struct Peering(pub(super) Node);

impl Peers for Peering {
    async fn answer(&self, _from: PeerName, request: PeerRequest) -> Result<PeerReply, Refused> {
        self.0.answer(request).await.map_err(refused)
    }

    async fn install(&self, _from: PeerName, chunks: Chunks) -> Result<SnapshotReply, Refused> {
        // What ends without its end was broken off; whoever takes it in sees that.
        let chunks = chunks.take_while(|chunk| std::future::ready(chunk.is_ok())).filter_map(|chunk| std::future::ready(chunk.ok()));
        self.0.install(Box::pin(chunks)).await.map_err(refused)
    }
}

impl Admin for Peering {
    async fn status(&self) -> Result<StatusReply, AdminError> {
        Ok(self.0.cluster_status())
    }

    async fn init(&self, request: InitRequest) -> Result<InitReply, AdminError> {
        let cluster_id = Some(request.cluster_id).filter(|id| !id.is_empty());
        let cluster_id = self.0.init(cluster_id).await.map_err(unfulfilled)?;
        Ok(InitReply { cluster_id })
    }

    async fn set_members(&self, request: SetMembersRequest) -> Result<SetMembersReply, AdminError> {
        self.0.set_members(request.expected_generation, request.members).await.map_err(unfulfilled)
    }

    async fn handover(&self, request: HandoverRequest) -> Result<HandoverReply, AdminError> {
        let to = Some(request.to.as_str()).filter(|to| !to.is_empty());
        let reason = |error: HandoverError| AdminError::Unable { reason: error.to_string() };
        Ok(HandoverReply { leader: self.0.hand_over(to).await.map_err(reason)? })
    }
}

fn refused(error: node::Refused) -> Refused {
    match error {
        node::Refused::Missing(_) => Refused::Unknown,
        node::Refused::Node { to, me } => Refused::OtherNode { found: to, ours: me },
        node::Refused::Cluster { theirs, ours } => Refused::OtherCluster { found: theirs, ours },
        node::Refused::Forward(unfit) => Refused::Malformed { reason: unfit.to_string() },
        error @ (node::Refused::Raft(_) | node::Refused::Retire(_) | node::Refused::Install(_)) => {
            Refused::Unable { reason: error.to_string() }
        }
    }
}

fn unfulfilled(error: node::AdminError) -> AdminError {
    let reason = error.to_string();
    match error {
        node::AdminError::Founded { .. } | node::AdminError::PeerFounded { .. } => {
            AdminError::AlreadyInitialized { reason }
        }
        node::AdminError::BadId | node::AdminError::BadMembers(_) => AdminError::Invalid { reason },
        node::AdminError::Disagree { .. } | node::AdminError::Refused(_) => AdminError::Unable { reason },
        node::AdminError::Node(error) => match error {
            node::Error::NotInitialized => AdminError::NotInitialized,
            node::Error::NoLeader | node::Error::NotLeader | node::Error::Overloaded => AdminError::NoLeader,
            node::Error::ShuttingDown => AdminError::Closing,
            node::Error::Failed { .. } => AdminError::Failed { reason },
        },
        node::AdminError::Open(_) => AdminError::Failed { reason },
    }
}
