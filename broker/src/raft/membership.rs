//! Who belongs to the cluster, and how the leader changes it: one step per call.
//!
//! Not here: which steps to take, and when (`node`).

use std::collections::{BTreeMap, BTreeSet};

use openraft::{
    ChangeMembers,
    async_runtime::{Instant as _, WatchReceiver as _},
    errors::{ClientWriteError, RaftError},
};

use super::{Member, NodeId, Replica, StoredMembership, TypeConfig, runtime::Runtime, transport::Peer};

/// The membership that counts: the newest in the log, committed or not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Members {
    /// The sets of voters; two while a change is under way, none before there is a cluster. A majority of each decides.
    pub voters: Vec<BTreeSet<NodeId>>,
    /// Every member, learners included.
    pub members: BTreeMap<NodeId, Member>,
    /// Where in the log it stands.
    pub log_index: Option<u64>,
    /// It is known to be committed: no change is under way, unless it is joint.
    pub committed: bool,
}

impl Members {
    fn new(effective: &StoredMembership, committed: &StoredMembership) -> Self {
        Self {
            voters: effective.membership().get_joint_config().clone(),
            members: effective.nodes().map(|(node, member)| (*node, member.clone())).collect(),
            log_index: effective.log_id().as_ref().map(|id| id.index),
            committed: effective.log_id() == committed.log_id(),
        }
    }

    /// Whether a change of voters is half done.
    pub fn is_joint(&self) -> bool {
        self.voters.len() > 1
    }

    /// Whether the node votes, before or after the change that is under way.
    pub fn is_voter(&self, node: NodeId) -> bool {
        self.voters.iter().any(|set| set.contains(&node))
    }

    /// Members that do not vote.
    pub fn learners(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.members.keys().copied().filter(|node| !self.is_voter(*node))
    }
}

/// Why a step was not taken, or is not known to have been.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    /// This node does not lead.
    #[error("this node does not lead")]
    NotLeader {
        /// Who does, if known.
        leader: Option<NodeId>,
    },
    /// Another change is not committed yet: try again.
    #[error("another change of the membership is under way")]
    InProgress,
    /// The leader changed meanwhile: the change may still take effect, or be half done.
    #[error("the leader has changed")]
    Unknown,
    /// The step makes no sense: a voter that is no member, or no voter at all.
    #[error("the change of the membership is refused: {reason}")]
    Refused {
        /// What openraft says.
        reason: String,
    },
    /// The replica has stopped.
    #[error("the replica has stopped")]
    Stopped,
}

fn refused<R: Runtime>(error: RaftError<TypeConfig<R>, ClientWriteError<TypeConfig<R>>>) -> ChangeError {
    use openraft::errors::ChangeMembershipError;
    match error {
        RaftError::Fatal(_) => ChangeError::Stopped,
        RaftError::APIError(ClientWriteError::ForwardToLeader(forward)) => {
            ChangeError::NotLeader { leader: forward.leader_id }
        }
        RaftError::APIError(ClientWriteError::ChangeMembershipError(ChangeMembershipError::InProgress(_))) => {
            ChangeError::InProgress
        }
        RaftError::APIError(ClientWriteError::ChangeMembershipError(error)) => {
            ChangeError::Refused { reason: error.to_string() }
        }
        RaftError::APIError(_) => ChangeError::Unknown,
    }
}

impl<R: Runtime> Replica<R> {
    /// Who belongs to the cluster, as far as this node's log says.
    pub fn members(&self) -> Members {
        let metrics = self.raft.metrics().borrow_watched().clone();
        Members::new(&metrics.membership_config, &metrics.committed_membership_config)
    }

    /// A member by its id, with where it is reached.
    pub fn peer(&self, node: NodeId) -> Option<Peer> {
        self.members().members.remove(&node).map(|member| Peer { node, member })
    }

    /// Adds a member that does not vote, or changes its addresses. Returns when that is committed, not when it has
    /// caught up: see [`Replica::matched`].
    ///
    /// # Errors
    /// See [`ChangeError`].
    pub async fn add_learner(&self, node: NodeId, member: Member) -> Result<(), ChangeError> {
        self.change(ChangeMembers::SetNodes(BTreeMap::from([(node, member)])), true).await
    }

    /// Makes these the voters, in one joint change. Each must be a member; voters that are not among them are members
    /// no longer. Learners stay what they are. Asked again after a change that was left half done, it completes it.
    ///
    /// # Errors
    /// See [`ChangeError`].
    pub async fn change_voters(&self, voters: BTreeSet<NodeId>) -> Result<(), ChangeError> {
        self.change(ChangeMembers::ReplaceAllVoters(voters), false).await
    }

    /// Removes members that do not vote; who is no member is none afterwards.
    ///
    /// # Errors
    /// See [`ChangeError`]. One of them votes: refused.
    pub async fn remove_learners(&self, nodes: BTreeSet<NodeId>) -> Result<(), ChangeError> {
        self.change(ChangeMembers::RemoveNodes(nodes), false).await
    }

    async fn change(&self, change: ChangeMembers<NodeId, Member>, retain: bool) -> Result<(), ChangeError> {
        self.raft.change_membership(change, retain).await.map(drop).map_err(refused)
    }

    /// Asks another voter to take over at once. Whether it does shows in [`Replica::role`]; it may not, if its log is
    /// behind or its answer gets lost.
    ///
    /// # Errors
    /// The replica has stopped.
    pub async fn transfer_leader(&self, to: NodeId) -> Result<(), ChangeError> {
        self.raft.trigger().transfer_leader(to).await.map_err(|_| ChangeError::Stopped)
    }

    /// From now on this node does not campaign when it misses a leader. True: until now it did.
    pub fn stand_back(&self) -> bool {
        let mut stands_back = self.stands_back.lock();
        self.raft.runtime_config().elect(false);
        !std::mem::replace(&mut *stands_back, true)
    }

    /// It does, unless it was told to stand back meanwhile.
    pub(super) fn campaign(&self) {
        let stands_back = self.stands_back.lock();
        self.raft.runtime_config().elect(!*stands_back);
    }

    /// How far each member's log is known to agree with this leader's, this node included; nothing where this node does
    /// not lead.
    pub fn matched(&self) -> BTreeMap<NodeId, Option<u64>> {
        let replication = self.raft.metrics().borrow_watched().replication.clone();
        let indexes = replication.into_iter().flatten().map(|(node, matched)| (node, matched.map(|id| id.index)));
        indexes.collect()
    }

    /// Other members that have answered this leader a moment ago; nobody where this node does not lead.
    pub fn answering(&self) -> BTreeSet<NodeId> {
        let heard = self.raft.metrics().borrow_watched().heartbeat.clone();
        let answered = heard.into_iter().flatten().filter_map(|(node, acked)| Some((node, acked?.elapsed())));
        answered.filter(|(_, silence)| self.presence.is_recent(*silence)).map(|(node, _)| node).collect()
    }

    /// Milliseconds since a majority last heard this leader; `None` where this node does not lead, or no majority has
    /// answered yet.
    pub fn millis_since_quorum_ack(&self) -> Option<u64> {
        let acked = self.raft.metrics().borrow_watched().last_quorum_acked?;
        Some(u64::try_from(acked.elapsed().as_millis()).unwrap_or(u64::MAX))
    }
}
