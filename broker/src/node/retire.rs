//! A node that was removed must never vote again. The leader says so, the node writes it down, and its process ends: at
//! its next start it moves its data aside and is a new node under the old name.

use std::time::Duration;

use databroker_proto::internal::{RetireReply, RetireRequest, peer_reply};

use super::{Node, answer::Refused};
use crate::raft::runtime::Runtime;

/// How long the answer has to leave before the process ends.
const FAREWELL: Duration = Duration::from_millis(200);

impl<R: Runtime> Node<R> {
    /// Writes down that this node is none of the cluster any longer, and ends.
    ///
    /// # Errors
    /// It is not this node that is meant, or the disk refuses.
    pub(super) async fn answer_retire(&self, request: RetireRequest) -> Result<peer_reply::Kind, Refused> {
        let me = self.shared.replica.node_id();
        if request.node != me {
            return Err(Refused::Node { to: request.node, me });
        }
        self.shared.replica.retire().await.map_err(Refused::Retire)?;
        let failure = self.shared.failure.clone();
        R::spawn("farewell", &self.shared.failure, async move {
            tokio::time::sleep(FAREWELL).await;
            failure.retire(
                "this node was removed from its cluster: at its next start it moves its data aside and is a new one",
            );
        });
        Ok(peer_reply::Kind::Retire(RetireReply {}))
    }

    /// A peer says that this node is no member any longer: it does not stand for election until the leader has told it
    /// what to do.
    pub(super) fn stand_back(&self, who: &str) {
        if self.shared.replica.stand_back() {
            tracing::warn!(
                peer = who,
                "a peer says that this node was removed from the cluster: it will not stand for election"
            );
        }
    }
}
