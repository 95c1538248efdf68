//! The way from this node to others: whom to ask, and what an answer may be trusted for.
//!
//! Not here: what carries messages (`raft::transport`), what is asked (`forward`, `fence`, `hello`).

use std::{sync::Arc, time::Duration};

use databroker_proto::internal::{PeerRequest, peer_reply, peer_request};

use crate::raft::{
    NodeId, Refusal, Replica,
    runtime::Runtime,
    transport::{CallError, Peer, Transport},
};

/// Asks other nodes.
pub(super) struct Outbound<R: Runtime> {
    replica: Replica<R>,
    transport: Arc<dyn Transport>,
}

impl<R: Runtime> Clone for Outbound<R> {
    fn clone(&self) -> Self {
        let Self { replica, transport } = self;
        Self { replica: replica.clone(), transport: transport.clone() }
    }
}

impl<R: Runtime> Outbound<R> {
    pub(super) fn new(replica: Replica<R>, transport: Arc<dyn Transport>) -> Self {
        Self { replica, transport }
    }

    /// Who leads, if that is another node.
    pub(super) fn leader_elsewhere(&self) -> Option<NodeId> {
        let role = *self.replica.role().borrow();
        role.leader.filter(|leader| !role.leads && *leader != self.replica.node_id())
    }

    /// Asks any node.
    pub(super) async fn ask(
        &self,
        peer: Peer,
        kind: peer_request::Kind,
        patience: Duration,
    ) -> Result<peer_reply::Kind, CallError> {
        let name = peer.member.name.clone();
        let request = PeerRequest { envelope: Some(self.replica.envelope(peer.node)), kind: Some(kind) };
        let reply = self.transport.call(peer, request, patience).await?;
        reply.kind.ok_or_else(|| CallError::Refused { peer: name, reason: "it sent an empty answer".into() })
    }

    /// Asks the leader, and gives up as soon as another is known, or none: a leader that has gone silent may never
    /// answer. What was asked may have taken effect all the same.
    ///
    /// # Errors
    /// [`Refusal::NotLeader`] when it says so, [`Refusal::Stopped`] when this node has stopped, [`Refusal::Unknown`] for
    /// all else.
    pub(super) async fn ask_leader(
        &self,
        leader: NodeId,
        kind: peer_request::Kind,
        patience: Duration,
    ) -> Result<peer_reply::Kind, Refusal> {
        let peer = self.replica.peer(leader).ok_or(Refusal::NotLeader { leader: None })?;
        let mut role = self.replica.role().clone();
        let moved = role.wait_for(|role| role.leader != Some(leader));
        let answered = self.ask(peer, kind, patience);
        tokio::select! {
            reply = answered => match reply {
                Ok(peer_reply::Kind::NotLeader(hint)) => {
                    Err(Refusal::NotLeader { leader: Some(hint.leader).filter(|leader| *leader != 0) })
                }
                Ok(reply) => Ok(reply),
                Err(error) => {
                    tracing::debug!(%error, "the leader was asked in vain");
                    Err(Refusal::Unknown)
                }
            },
            // Nobody tells the role any more once the replica has stopped: asking again would never wait.
            moved = moved => Err(if moved.is_ok() { Refusal::Unknown } else { Refusal::Stopped }),
        }
    }
}
