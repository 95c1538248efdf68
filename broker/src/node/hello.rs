//! How nodes find each other: each says Hello to every peer it knows, at its start and once a second from then on, and
//! hears what that one says about itself.
//!
//! Not here: who becomes a member because of it (`shape`, `steward`).

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Weak},
    time::Duration,
};

use databroker_proto::internal::{
    self, HelloReply, HelloRequest, Introduction, hello_reply::Standing, peer_reply, peer_request,
};
use futures::future::{BoxFuture, join_all};
use ring::digest;

use super::{Node, Shared, absence::Absence, shape::Observed};
use crate::raft::{
    NodeId,
    runtime::Runtime,
    transport::{CallError, Peer},
};

/// How often.
const EVERY: Duration = Duration::from_secs(1);

/// How long a peer may take to answer.
const PATIENCE: Duration = Duration::from_secs(1);

/// Peers greeted at most in one round: more than a cluster has members, with those it had.
pub(super) const PEERS_MAX: usize = 64;

/// Where peers may be found, beside those that are members or listed: behind a name, say.
pub trait Seeds: Send + Sync + 'static {
    /// Looks. A peer's node id is 0, and its name empty where only the address is known.
    fn look(&self) -> BoxFuture<'_, Vec<Peer>>;
}

/// Nowhere else.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoSeeds;

impl Seeds for NoSeeds {
    fn look(&self) -> BoxFuture<'_, Vec<Peer>> {
        Box::pin(std::future::ready(Vec::new()))
    }
}

/// Greets for as long as somebody holds the node.
pub(super) async fn run<R: Runtime>(node: Weak<Shared<R>>, seeds: Arc<dyn Seeds>) {
    let (mut differing, mut absence) = (BTreeSet::new(), Absence::default());
    while let Some(shared) = node.upgrade() {
        let node = Node { shared };
        node.greet_all(&*seeds).await;
        node.tell_clocks(&mut differing);
        node.tell_absence(&mut absence);
        drop(node);
        tokio::time::sleep(EVERY).await;
    }
}

impl<R: Runtime> Node<R> {
    /// One round: everybody at the same time.
    pub(super) async fn greet_all(&self, seeds: &dyn Seeds) {
        let peers = self.peers(seeds.look().await);
        join_all(peers.into_iter().map(|peer| self.greet(peer))).await;
    }

    /// Says whose clocks have come to differ, once each.
    fn tell_clocks(&self, told: &mut BTreeSet<String>) {
        let now = self.clocks_differing();
        for (peer, ahead_millis) in now.iter().filter(|(peer, _)| !told.contains(*peer)) {
            tracing::warn!(peer, ahead_millis, "the clocks of this node and of a peer differ");
        }
        *told = now.into_keys().collect();
    }

    /// Everybody this node knows of but itself, each address once: members first, for their ids are known.
    fn peers(&self, seeds: Vec<Peer>) -> Vec<Peer> {
        let me = self.shared.replica.node_id();
        let members = self.shared.replica.members().members;
        let members = members.into_iter().map(|(node, member)| Peer { node, member });
        let snapshot = self.shared.reader.snapshot();
        let named = snapshot.cluster().shape.iter().chain(&self.shared.configured);
        let named = named.map(|wanted| Peer { node: 0, member: wanted.clone().into() });
        let mut by_address = BTreeMap::new();
        for peer in members.chain(named).chain(seeds) {
            let is_me = peer.node == me || peer.member.raft_address == self.shared.member.raft_address;
            if !is_me && !peer.member.raft_address.is_empty() {
                by_address.entry(peer.member.raft_address.clone()).or_insert(peer);
            }
        }
        by_address.into_values().take(PEERS_MAX).collect()
    }

    async fn greet(&self, peer: Peer) {
        // Whoever runs there now: a disk may have been lost, and the id with it.
        let peer = Peer { node: 0, ..peer };
        let kind = peer_request::Kind::Hello(HelloRequest { me: Some(self.introduce()) });
        let who = if peer.member.name.is_empty() { &peer.member.raft_address } else { &peer.member.name }.clone();
        match self.shared.outbound.ask(peer, kind, PATIENCE).await {
            Ok(peer_reply::Kind::Hello(HelloReply { me: Some(them), standing })) => {
                let standing = Standing::try_from(standing).unwrap_or_default();
                if self.shared.refusing.forget(&who) {
                    tracing::info!(peer = who, "a peer that refused this node answers it now");
                }
                self.hear(them, standing);
            }
            Ok(_) => tracing::debug!("a peer answered a greeting with something else"),
            // It runs, and is not ours, or this node is not its own: nothing but a person can set that right.
            Err(CallError::Refused { peer, reason }) => {
                if self.shared.refusing.note(&who, &reason) {
                    tracing::error!(
                        peer,
                        reason,
                        "a peer refuses this node: it belongs to another cluster, or their secrets or certificates differ"
                    );
                }
            }
            Err(error) => tracing::debug!(%error, "a greeting was not answered"),
        }
    }

    fn hear(&self, them: Introduction, standing: Standing) {
        let ours = self.shared.reader.snapshot().cluster_id().is_some_and(|id| id == them.cluster_id);
        if standing == Standing::Removed && ours {
            self.stand_back(&them.name);
        }
        if !self.is_me(&them) {
            self.shared.directory.note(them);
        }
    }

    /// Discovery by name finds this node, too.
    fn is_me(&self, them: &Introduction) -> bool {
        them.node == self.shared.replica.node_id()
    }

    /// Says, once each, which node of another cluster takes this one for its own: two clusters where one was meant.
    pub(super) fn tell_stranger(&self, request: &HelloRequest, theirs: &str, ours: &str) {
        let Some(Introduction { name, node, raft_address, .. }) = &request.me else { return };
        if self.shared.strangers.note(&format!("{name} {node:016x}"), &format!("{theirs} {ours}")) {
            tracing::error!(name, raft_address, theirs, ours, "a node of another cluster says hello: it is refused");
        }
    }

    /// Answers a greeting. Its sender's cluster was looked at before.
    pub(super) fn answer_hello(&self, request: HelloRequest) -> peer_reply::Kind {
        let them = request.me.unwrap_or_default();
        let standing = self.standing(them.node);
        if !self.is_me(&them) {
            self.shared.directory.note(them);
        }
        peer_reply::Kind::Hello(HelloReply { me: Some(self.introduce()), standing: standing.into() })
    }

    /// What is known here of a node's id.
    pub(super) fn standing(&self, node: NodeId) -> Standing {
        let snapshot = self.shared.reader.snapshot();
        if self.shared.replica.members().members.contains_key(&node) {
            Standing::Member
        } else if snapshot.cluster().retired.iter().any(|retired| retired.node == node) {
            Standing::Removed
        } else {
            Standing::Unknown
        }
    }

    /// What this node says about itself.
    pub(super) fn introduce(&self) -> Introduction {
        let shared = &self.shared;
        let (snapshot, role, picture) = (shared.reader.snapshot(), self.role(), shared.replica.picture());
        let (progress, member) = (snapshot.progress(), &shared.member);
        let members = shared.replica.members().members;
        let judged = role.leads.then(|| self.observe());
        let those = |verdict: fn(&Observed, NodeId) -> bool| {
            let judged = judged.iter().flat_map(|seen| seen.members.keys().map(move |node| (seen, *node)));
            judged.filter(|(seen, node)| verdict(seen, *node)).map(|(_, node)| node).collect()
        };
        Introduction {
            node: shared.replica.node_id(),
            name: member.name.clone(),
            raft_address: member.raft_address.clone(),
            grpc_address: member.grpc_address.clone(),
            cluster_id: snapshot.cluster_id().unwrap_or_default().into(),
            command_version: shared.knows,
            version: env!("CARGO_PKG_VERSION").into(),
            now_nanos: self.clock().now_nanos(),
            leader: shared.replica.present_leader().unwrap_or(0),
            members: members.iter().map(|(node, member)| member.to_message(*node)).collect(),
            configured_digest: configured_digest(&shared.configured),
            applied_index: progress.applied.map_or(0, |applied| applied.index),
            disk_bytes: self.taken(),
            disk_bytes_free: shared.space.free().unwrap_or(0),
            disk_full: shared.space.full().is_some(),
            term: role.term,
            committed_index: picture.committed_index.unwrap_or(0),
            latest_record_version: progress.latest_record_version,
            store_now_nanos: progress.now_nanos,
            caught_up: those(Observed::is_caught_up),
            may_stop: those(Observed::may_stop),
        }
    }
}

/// A digest over the configured members, whatever their order; empty without any.
pub(super) fn configured_digest(members: &[internal::ShapeMember]) -> bytes::Bytes {
    if members.is_empty() {
        return bytes::Bytes::new();
    }
    let mut lines: Vec<_> =
        members.iter().map(|m| format!("{:?} {:?} {:?}\n", m.name, m.raft_address, m.grpc_address)).collect();
    lines.sort();
    bytes::Bytes::copy_from_slice(digest::digest(&digest::SHA256, lines.concat().as_bytes()).as_ref())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configured_lists_are_equal_whatever_their_order() {
        let member = |name: &str| internal::ShapeMember { name: name.into(), ..Default::default() };
        let (a, b) = (member("a"), member("b"));
        assert_eq!(configured_digest(&[a.clone(), b.clone()]), configured_digest(&[b, a.clone()]));
        assert_ne!(configured_digest(&[a]), configured_digest(&[]));
    }
}
