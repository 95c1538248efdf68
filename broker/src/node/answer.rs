//! What other nodes ask of this one. Each question is checked for whom it is before anything is done about it.

use std::pin::Pin;

use databroker_proto::internal::{
    Envelope, HelloRequest, PeerReply, PeerRequest, ReadIndexReply, SnapshotChunk, SnapshotReply, peer_reply,
    peer_request,
};
use futures::{Stream, StreamExt as _};

use super::{Node, forward};
use crate::raft::{self, NodeId, runtime::Runtime};

/// Why a question is not answered.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// It says not for whom it is, or not what it asks: a newer release may ask what this one does not know.
    #[error("the message has no {0} that this release knows")]
    Missing(&'static str),
    /// It is for another node: addresses are used again, node ids are not.
    #[error("the message is for node {to:x}, this is node {me:x}")]
    Node {
        /// For whom it is.
        to: NodeId,
        /// Who this is.
        me: NodeId,
    },
    /// It comes from another cluster.
    #[error("it belongs to cluster {ours}, and the message is of cluster {theirs}")]
    Cluster {
        /// Whose it is.
        theirs: String,
        /// Whose this node is.
        ours: String,
    },
    /// It is said to come from one node, and another's certificate was shown.
    #[error("the message says that it is from {says:?}, the certificate is {certified:?}'s")]
    Name {
        /// Whose it says it is.
        says: String,
        /// Whose certificate it came with.
        certified: String,
    },
    /// Raft cannot take it.
    #[error(transparent)]
    Raft(#[from] raft::HandleError),
    /// It forwards what is not forwarded.
    #[error(transparent)]
    Forward(#[from] forward::Unfit),
    /// That this node is retired cannot be written down.
    #[error("cannot write down that this node is retired: {0}")]
    Retire(#[source] std::io::Error),
    /// A snapshot could not be taken over.
    #[error(transparent)]
    Install(#[from] raft::InstallError),
}

/// Says whether a message is for this node. A node without a cluster takes what is addressed to its id: nobody else can
/// know that. In a greeting the other's id, and either's cluster, may be unknown.
fn check(envelope: &Envelope, me: NodeId, ours: &str, greeting: bool) -> Result<(), Refused> {
    let Envelope { cluster_id, to, .. } = envelope;
    let for_me = *to == me || (greeting && *to == 0);
    if !for_me {
        return Err(Refused::Node { to: *to, me });
    }
    if cluster_id == ours || ours.is_empty() || (greeting && cluster_id.is_empty()) {
        Ok(())
    } else {
        Err(Refused::Cluster { theirs: cluster_id.clone(), ours: ours.into() })
    }
}

impl<R: Runtime> Node<R> {
    /// Answers the node whose certificate says `from`.
    ///
    /// # Errors
    /// See [`Refused`].
    pub async fn answer_from(&self, from: &str, request: PeerRequest) -> Result<PeerReply, Refused> {
        if let Some(peer_request::Kind::Hello(HelloRequest { me: Some(me) })) = &request.kind {
            self.check_name(from, &me.name)?;
        }
        self.check_sender(from, request.envelope.as_ref())?;
        self.answer(request).await
    }

    /// Takes over the store of the node whose certificate says `from`.
    ///
    /// # Errors
    /// See [`Refused`]; the store in use is untouched.
    pub async fn install_from(
        &self,
        from: &str,
        chunks: impl Stream<Item = SnapshotChunk> + Unpin + Send,
    ) -> Result<SnapshotReply, Refused> {
        let mut chunks = chunks.peekable();
        let first = Pin::new(&mut chunks).peek().await;
        self.check_sender(from, first.and_then(|chunk| chunk.envelope.as_ref()))?;
        self.install(chunks).await
    }

    /// A member's id stands for its name. Who is no member, here or yet, may be anybody: a leader is heard before the
    /// membership is that has it.
    fn check_sender(&self, from: &str, envelope: Option<&Envelope>) -> Result<(), Refused> {
        let member = envelope.and_then(|envelope| self.shared.replica.peer(envelope.from));
        member.map_or(Ok(()), |peer| self.check_name(from, &peer.member.name))
    }

    fn check_name(&self, certified: &str, says: &str) -> Result<(), Refused> {
        if says == certified {
            return Ok(());
        }
        if self.shared.strangers.note(certified, says) {
            tracing::error!(certified, says, "a node says that it is another than its certificate says: it is refused");
        }
        Err(Refused::Name { says: says.into(), certified: certified.into() })
    }

    /// Answers another node, wherever it says it is from.
    ///
    /// # Errors
    /// See [`Refused`].
    pub async fn answer(&self, request: PeerRequest) -> Result<PeerReply, Refused> {
        let envelope = request.envelope.ok_or(Refused::Missing("envelope"))?;
        let kind = request.kind.ok_or(Refused::Missing("kind"))?;
        let me = self.shared.replica.node_id();
        let checked = self.check(&envelope, matches!(kind, peer_request::Kind::Hello(_)));
        if let (peer_request::Kind::Hello(hello), Err(Refused::Cluster { theirs, ours })) = (&kind, &checked) {
            self.tell_stranger(hello, theirs, ours);
        }
        checked?;
        let kind = match kind {
            peer_request::Kind::ReadIndex(_) => self.answer_read_index().await,
            peer_request::Kind::Forward(request) => self.answer_forward(envelope.from, request).await?,
            peer_request::Kind::Hello(request) => self.answer_hello(request),
            peer_request::Kind::Retire(request) => self.answer_retire(request).await?,
            raft => self.shared.replica.handle(raft).await?,
        };
        Ok(PeerReply { from: me, kind: Some(kind) })
    }

    /// Takes over the store of another node, wherever it says it is from.
    ///
    /// # Errors
    /// See [`Refused`]; the store in use is untouched.
    pub async fn install(
        &self,
        chunks: impl Stream<Item = SnapshotChunk> + Unpin + Send,
    ) -> Result<SnapshotReply, Refused> {
        let mut chunks = chunks.peekable();
        let first = Pin::new(&mut chunks).peek().await;
        let envelope = first.and_then(|chunk| chunk.envelope.as_ref()).ok_or(Refused::Missing("envelope"))?;
        self.check(envelope, false)?;
        Ok(self.shared.replica.install(chunks).await?)
    }

    fn check(&self, envelope: &Envelope, greeting: bool) -> Result<(), Refused> {
        let snapshot = self.shared.reader.snapshot();
        let ours = snapshot.cluster_id().unwrap_or_default();
        check(envelope, self.shared.replica.node_id(), ours, greeting)
    }

    async fn answer_read_index(&self) -> peer_reply::Kind {
        match self.shared.replica.read_index().await {
            Ok(index) => peer_reply::Kind::ReadIndex(ReadIndexReply { index }),
            Err(_) => self.not_leader(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_for_another_node_or_cluster_is_refused() {
        let envelope = |cluster: &str, to| Envelope { cluster_id: cluster.into(), from: 1, to };
        let taken = |cluster, to, ours, greeting| check(&envelope(cluster, to), 7, ours, greeting).is_ok();
        assert!(taken("c", 7, "c", false));
        assert!(taken("c", 7, "", false), "a node without a cluster is told by whoever knows its id");
        assert!(!taken("d", 7, "c", false));
        assert!(!taken("", 7, "c", false));
        assert!(!taken("c", 8, "c", false) && !taken("c", 0, "c", false));
        assert!(taken("", 0, "c", true) && taken("c", 0, "", true) && taken("", 7, "", true));
        assert!(!taken("d", 0, "c", true) && !taken("c", 8, "c", true));
    }
}
