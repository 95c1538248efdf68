//! What operators ask: how the cluster stands, found it, who should be a voter.

use std::{collections::BTreeMap, num::NonZeroU64};

use databroker_proto::internal::{
    Introduction, MemberStatus, RefusingPeer, Reshaped, RetiredMember, SetMembersReply, SetShape, ShapeMember,
    StatusReply, member_status::Role,
};

use super::{Error, Node, OpenError, directory::Heard, hello::configured_digest, open::Founding, shape::Observed};
use crate::{
    raft::{Member, NodeId, runtime::Runtime},
    store::{
        check_shape,
        command::{Kind, outcome},
    },
};

/// Why the cluster is not founded, or its members are not set.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// It belongs to one already.
    #[error("this node belongs to cluster {cluster_id} already")]
    Founded {
        /// Which.
        cluster_id: String,
    },
    /// Founding a second one would divide them.
    #[error("a peer belongs to cluster {cluster_id} already: this node waits to be taken in")]
    PeerFounded {
        /// Which.
        cluster_id: String,
    },
    /// It may belong to one already: this node cannot know.
    #[error(
        "{peer} answers, but refuses this node ({reason}): a cluster founded here could be a second one. Make the \
         secrets or certificates equal, or take it out of `databroker_cluster_nodes`"
    )]
    PeerRefuses {
        /// Who.
        peer: String,
        /// What it says.
        reason: String,
    },
    /// The nodes do not agree on who should be a member.
    #[error("{name} lists other members in `databroker_cluster_nodes` than this node: make the files equal first")]
    Disagree {
        /// Who.
        name: String,
    },
    /// The id cannot be one.
    #[error("a cluster id has 1 to 64 letters, digits, dots and dashes")]
    BadId,
    /// The members contradict each other.
    #[error("invalid members: {0}")]
    BadMembers(String),
    /// The request could not be placed.
    #[error(transparent)]
    Node(#[from] Error),
    /// The cluster could not be founded.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The store answered something else.
    #[error("the store refused: {0}")]
    Refused(String),
}

impl<R: Runtime> Node<R> {
    /// Founds the cluster, with this node as its first voter and the configured members as its shape. Returns its id.
    /// What a crash broke off half done is completed.
    ///
    /// # Errors
    /// See [`AdminError`].
    pub async fn init(&self, cluster_id: Option<String>) -> Result<String, AdminError> {
        let snapshot = self.shared.reader.snapshot();
        let cluster_id = match (snapshot.cluster_id(), cluster_id) {
            (Some(ours), wanted) if wanted.as_deref().is_none_or(|wanted| wanted == ours) && self.is_half_founded() => {
                Some(ours.to_owned())
            }
            (Some(ours), wanted) if wanted.as_deref() != Some(ours) => {
                return Err(AdminError::Founded { cluster_id: ours.into() });
            }
            (Some(_), wanted) => wanted,
            (None, wanted) => {
                self.greet_all(&*self.shared.seeds).await;
                self.refuse_divided()?;
                wanted
            }
        };
        let cluster_id = cluster_id.unwrap_or_else(|| uuid::Uuid::new_v4().to_string());
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'.';
        if cluster_id.is_empty() || cluster_id.len() > 64 || !cluster_id.bytes().all(allowed) {
            return Err(AdminError::BadId);
        }
        let server_version: NonZeroU64 = rand::random();
        self.found(self.shared.member.clone(), Founding { cluster_id, server_version }).await?;
        if !self.shared.configured.is_empty() {
            // Not accepted: somebody has set one since.
            self.set_members(0, self.shared.configured.clone()).await?;
        }
        Ok(self.shared.reader.snapshot().cluster_id().unwrap_or_default().to_owned())
    }

    /// There is a cluster, but nobody has said who should belong to it, as `init` does last where members are listed.
    fn is_half_founded(&self) -> bool {
        let unshaped = self.shared.reader.snapshot().cluster().shape_generation == 0;
        unshaped && self.role().alone && !self.shared.configured.is_empty()
    }

    fn refuse_divided(&self) -> Result<(), AdminError> {
        if let Some(cluster_id) = self.shared.directory.clusters().into_iter().next() {
            return Err(AdminError::PeerFounded { cluster_id });
        }
        if let Some((peer, reason)) = self.shared.refusing.recent().into_iter().next() {
            return Err(AdminError::PeerRefuses { peer, reason });
        }
        let ours = configured_digest(&self.shared.configured);
        let all = self.shared.directory.all();
        let other = all.into_iter().find(|(_, heard)| heard.is_recent() && heard.said.configured_digest != ours);
        other.map_or(Ok(()), |(name, _)| Err(AdminError::Disagree { name }))
    }

    /// Says who should be a voter. Accepted only if the caller knew the current generation; the reply has the one that
    /// counts now.
    ///
    /// # Errors
    /// See [`AdminError`].
    pub async fn set_members(
        &self,
        expected_generation: u64,
        members: Vec<ShapeMember>,
    ) -> Result<SetMembersReply, AdminError> {
        check_shape(&members).map_err(AdminError::BadMembers)?;
        let answer = self.propose(Kind::SetShape(SetShape { expected_generation, members })).await?;
        match answer.outcome.kind {
            Some(outcome::Kind::Reshaped(Reshaped { accepted, generation })) => {
                Ok(SetMembersReply { accepted, generation })
            }
            Some(outcome::Kind::Rejected(rejected)) => Err(AdminError::Refused(rejected.detail)),
            _ => Err(AdminError::Refused("an answer to another command".into())),
        }
    }

    /// How the cluster stands, as this node sees it.
    pub fn cluster_status(&self) -> StatusReply {
        let snapshot = self.shared.reader.snapshot();
        let (cluster, progress, role) = (snapshot.cluster(), snapshot.progress(), self.role());
        let (retired, refusing) = (cluster.retired.iter(), self.shared.refusing.recent().into_iter());
        let (write_gap_term, write_gap) = self.shared.write_gap.last().unwrap_or_default();
        StatusReply {
            cluster_id: cluster.id.clone(),
            answered_by: self.shared.member.name.clone(),
            leader: self.present_leader_name().unwrap_or_default(),
            term: role.term,
            command_version: cluster.command_version,
            shape_generation: cluster.shape_generation,
            shape: cluster.shape.clone(),
            members: self.member_statuses(),
            retired: retired
                .map(|node| RetiredMember { name: node.name.clone(), node: node.node, confirmed: node.confirmed })
                .collect(),
            server_version: progress.server_version,
            latest_record_version: progress.latest_record_version,
            next_step: self.shared.next_step.borrow().clone(),
            refusing: refusing.map(|(peer, reason)| RefusingPeer { peer, reason }).collect(),
            write_gap_term,
            write_gap_millis: u64::try_from(write_gap.as_millis()).unwrap_or(u64::MAX),
        }
    }

    fn member_statuses(&self) -> Vec<MemberStatus> {
        let mut known = self.shared.directory.all();
        let me = Heard::now(self.introduce());
        known.insert(self.shared.member.name.clone(), me);
        let seen = self.judge(&known);
        let leader = self.shared.replica.present_leader();
        let head = known.values().find(|heard| Some(heard.said.node) == leader).map(|heard| &heard.said);
        let leads = self.role().leads;
        // From a leader of an earlier release there is none.
        let verdict = head.filter(|head| !leads && !head.caught_up.is_empty());
        let sight = Sight { seen: &seen, leader, head, verdict, now_nanos: self.clock().now_nanos() };
        let mut statuses: Vec<_> = seen
            .members
            .iter()
            .map(|(node, member)| sight.of(*node, member, known.values().find(|heard| heard.said.node == *node)))
            .collect();
        let waiting = known.values().filter(|heard| {
            heard.is_recent()
                && !seen.members.contains_key(&heard.said.node)
                && !seen.retired.contains(&heard.said.node)
        });
        statuses.extend(waiting.map(|heard| {
            let Introduction { name, raft_address, grpc_address, .. } = heard.said.clone();
            let status = sight.of(heard.said.node, &Member { name, raft_address, grpc_address }, Some(heard));
            MemberStatus { role: Role::Waiting.into(), ..status }
        }));
        statuses.sort_by(|a, b| a.name.cmp(&b.name));
        statuses
    }

    /// As the leader judges it; elsewhere by what the others say about themselves.
    fn judge(&self, known: &BTreeMap<String, Heard>) -> Observed {
        let mut seen = self.observe();
        if !self.role().leads {
            let recent = known.values().filter(|heard| heard.is_recent());
            seen.matched = recent.clone().map(|heard| (heard.said.node, heard.said.applied_index)).collect();
            seen.last_index = recent.map(|heard| heard.said.committed_index).max().unwrap_or(0);
            seen.me = 0;
        }
        seen
    }
}

/// What a member is held against.
struct Sight<'a> {
    seen: &'a Observed,
    leader: Option<NodeId>,
    /// What the leader said last.
    head: Option<&'a Introduction>,
    /// What it judged then, where another leads: what this node knows of the others is a moment old, and under load
    /// everybody would seem to be behind.
    verdict: Option<&'a Introduction>,
    /// This node's clock.
    now_nanos: u64,
}

impl Sight<'_> {
    fn of(&self, node: NodeId, member: &Member, heard: Option<&Heard>) -> MemberStatus {
        let said = heard.map(|heard| heard.said.clone()).unwrap_or_default();
        let behind =
            |number: fn(&Introduction) -> u64| self.head.map_or(0, |head| number(head).saturating_sub(number(&said)));
        let (caught_up, may_stop) = match self.verdict {
            Some(leader) => (leader.caught_up.contains(&node), leader.may_stop.contains(&node)),
            None => (self.seen.is_caught_up(node), self.seen.may_stop(node)),
        };
        MemberStatus {
            name: member.name.clone(),
            node,
            role: self.role(node).into(),
            raft_address: member.raft_address.clone(),
            grpc_address: member.grpc_address.clone(),
            reachable: heard.is_some_and(Heard::is_recent),
            committed_index: said.committed_index,
            applied_index: said.applied_index,
            lag_records: behind(|said| said.latest_record_version),
            // A store in which nothing has happened yet is not behind by the time since 1970.
            lag_millis: if said.store_now_nanos == 0 { 0 } else { behind(|said| said.store_now_nanos) / 1_000_000 },
            disk_bytes: said.disk_bytes,
            disk_bytes_free: said.disk_bytes_free,
            disk_full: said.disk_full,
            version: said.version.clone(),
            command_version: said.command_version,
            caught_up,
            may_stop,
            clock_ahead_millis: heard.map_or(0, |heard| heard.clock_ahead_millis(self.now_nanos)),
            term: said.term,
        }
    }

    fn role(&self, node: NodeId) -> Role {
        match () {
            () if self.leader == Some(node) => Role::Leader,
            () if self.seen.is_voter(node) => Role::Voter,
            () => Role::Learner,
        }
    }
}
