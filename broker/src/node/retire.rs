//! A node that was removed must never vote again. The leader says so, the node writes it down, and its process ends: at
//! its next start it moves its data aside and is a new node under the old name.
//!
//! The leader tells all of them at once, in a task of its own: a host that swallows messages holds up nothing else.

use std::{sync::Weak, time::Duration};

use databroker_proto::internal::{ConfirmRetired, RetireReply, RetireRequest, RetiredNode, peer_reply, peer_request};
use futures::future::join_all;

use super::{Node, Shared, answer::Refused};
use crate::{
    mutation::{self, Mutation},
    raft::{Member, NodeId, runtime::Runtime, transport::Peer},
    store::command::Kind,
};

/// How long a removed node may take to write down that it is.
const PATIENCE: Duration = Duration::from_secs(2);

/// How long the answer has to leave before the process ends.
const FAREWELL: Duration = Duration::from_millis(200);

/// Tells removed nodes that they are, for as long as somebody holds the node.
pub(super) async fn run<R: Runtime>(node: Weak<Shared<R>>) {
    while let Some(shared) = node.upgrade() {
        let node = Node { shared };
        node.tell_removed().await;
        let pause = node.pause();
        drop(node);
        tokio::time::sleep(pause).await;
    }
}

impl<R: Runtime> Node<R> {
    /// Removed nodes do not hear from Raft that they are; two that come back together could elect one of them. The store
    /// remembers a few dozen at most.
    async fn tell_removed(&self) {
        if mutation::active(Mutation::NoRetirement) || !self.role().leads || self.ready().is_err() {
            return;
        }
        let snapshot = self.shared.reader.snapshot();
        let unaware = snapshot.cluster().retired.iter().filter(|retired| !retired.confirmed);
        let there: Vec<Peer> = unaware.filter_map(|retired| self.whereabouts(retired)).collect();
        // Its view of the store is not to be kept for as long as they may take.
        drop(snapshot);
        join_all(there.into_iter().map(|peer| self.tell(peer))).await;
    }

    /// Where a removed node may be running: where it said it is, a moment ago; before anything was heard of its name,
    /// where it was as a member. Only the node itself can confirm; a new one under its name would deny it, and the old
    /// disk may come back.
    fn whereabouts(&self, retired: &RetiredNode) -> Option<Peer> {
        let raft_address = match self.shared.directory.named(&retired.name) {
            None => retired.raft_address.clone(),
            Some(heard) if heard.said.node == retired.node && heard.is_recent() => heard.said.raft_address,
            Some(_) => return None,
        };
        let member = Member { name: retired.name.clone(), raft_address, grpc_address: String::new() };
        Some(Peer { node: retired.node, member })
    }

    async fn tell(&self, peer: Peer) {
        let node = peer.node;
        let kind = peer_request::Kind::Retire(RetireRequest { node });
        match self.shared.outbound.ask(peer, kind, PATIENCE).await {
            Ok(peer_reply::Kind::Retire(_)) => self.confirm(node).await,
            Ok(_) => {}
            Err(error) => tracing::debug!(%error, "a removed node cannot be told yet"),
        }
    }

    async fn confirm(&self, node: NodeId) {
        if let Err(error) = self.propose_own(Kind::ConfirmRetired(ConfirmRetired { node })).await {
            tracing::debug!(%error, "that a node is retired could not be noted yet");
        }
    }

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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use databroker_proto::internal::{PeerReply, PeerRequest, SnapshotChunk, SnapshotReply};
    use futures::future::BoxFuture;
    use tokio::{sync::mpsc, time::Instant};

    use super::{
        super::{
            Volume,
            tests::{inline_node_among, openraft_rt_in_tests::run},
        },
        *,
    };
    use crate::raft::{
        runtime::SystemClock,
        transport::{CallError, Transport},
    };

    /// Takes everything, and never answers.
    struct Swallows;

    impl Transport for Swallows {
        fn call(
            &self,
            to: Peer,
            _: PeerRequest,
            patience: Duration,
        ) -> BoxFuture<'static, Result<PeerReply, CallError>> {
            Box::pin(async move {
                tokio::time::sleep(patience).await;
                Err(CallError::TimedOut { peer: to.member.name })
            })
        }

        fn send_snapshot(
            &self,
            to: Peer,
            _: mpsc::Receiver<SnapshotChunk>,
            _: Duration,
        ) -> BoxFuture<'static, Result<SnapshotReply, CallError>> {
            Box::pin(async move { Err(CallError::TimedOut { peer: to.member.name }) })
        }
    }

    #[test]
    fn removed_nodes_that_swallow_messages_are_told_at_the_same_time() {
        run(1, async {
            let node = inline_node_among(Arc::new(SystemClock), Volume::default(), Arc::new(Swallows)).await;
            for id in 2..10 {
                let member = Member { name: format!("n{id}"), ..Member::default() };
                node.shared.replica.add_learner(id, member).await.unwrap();
            }
            node.shared.replica.remove_learners((2..10).collect()).await.unwrap();
            assert_eq!(node.cluster_status().retired.len(), 8);
            let began = Instant::now();
            node.tell_removed().await;
            assert!((PATIENCE..2 * PATIENCE).contains(&began.elapsed()), "{:?}", began.elapsed());
            node.shutdown().await;
        });
    }
}
