//! The leader's care for the cluster: it makes the voters equal to the shape, tells removed nodes that they are, and
//! raises what commands may be used once all voters understand them.
//!
//! Looks and does; what is to be done is decided in `shape`.

use std::{collections::BTreeSet, sync::Weak, time::Duration};

use databroker_proto::internal::{ConfirmRetired, RaiseCommandVersion, RetireRequest, peer_reply, peer_request};

use super::{
    Node, Shared,
    shape::{self, Observed, Step},
};
use crate::{
    mutation::{self, Mutation},
    raft::{Member, runtime::Runtime, transport::Peer},
    store::command::{COMMAND_VERSION, Kind},
};

/// How often it looks: a new node waits for this before it is replicated to.
const EVERY: Duration = Duration::from_millis(200);

/// How often the only voter looks, which rarely has anything to do: an idle broker is to cost next to nothing.
const EVERY_ALONE: Duration = Duration::from_secs(1);

/// How long a removed node may take to write down that it is.
const PATIENCE: Duration = Duration::from_secs(2);

/// Looks after the cluster for as long as somebody holds the node.
pub(super) async fn run<R: Runtime>(node: Weak<Shared<R>>) {
    while let Some(shared) = node.upgrade() {
        let node = Node { shared };
        node.look_after().await;
        let pause = if node.role().alone { EVERY_ALONE } else { EVERY };
        // Nobody else holds the node while it waits.
        drop(node);
        tokio::time::sleep(pause).await;
    }
}

impl<R: Runtime> Node<R> {
    async fn look_after(&self) {
        if !self.role().leads || self.ready().is_err() {
            self.shared.next_step.send_replace(String::new());
            return;
        }
        let step = shape::next_step(&self.observe());
        let text = step.to_string();
        self.shared.next_step.send_if_modified(|before| {
            let changed = *before != text;
            if changed && !text.is_empty() {
                tracing::info!(step = text, "towards the shape");
            }
            before.clone_from(&text);
            changed
        });
        self.take(step).await;
        self.tell_removed().await;
        self.raise_command_version().await;
    }

    /// What the leader sees.
    pub(super) fn observe(&self) -> Observed {
        let replica = &self.shared.replica;
        let snapshot = self.shared.reader.snapshot();
        let members = replica.members();
        let me = replica.node_id();
        let mut heard = self.shared.directory.recent(snapshot.cluster_id().unwrap_or_default());
        heard.insert(self.shared.member.name.clone(), me);
        Observed {
            me,
            shape: snapshot.cluster().shape.clone(),
            voters: members.voters,
            members: members.members,
            heard,
            retired: snapshot.cluster().retired.iter().map(|retired| retired.node).collect(),
            last_index: replica.picture().last_log_index.unwrap_or(0),
            matched: replica.matched().into_iter().filter_map(|(node, index)| Some((node, index?))).collect(),
        }
    }

    async fn take(&self, step: Step) {
        let replica = &self.shared.replica;
        let taken = match step {
            Step::Reached | Step::Wait(_) => return,
            Step::AddLearner(node, member) | Step::Readdress(node, member) => replica.add_learner(node, member).await,
            Step::ChangeVoters(voters) => replica.change_voters(voters).await,
            Step::RemoveLearners(nodes) => replica.remove_learners(nodes).await,
            Step::HandOver(node) => {
                if let Err(error) = self.hand_over_to(node).await {
                    tracing::warn!(%error, "leadership could not be handed over");
                }
                return;
            }
        };
        // Looked at again in a moment: a leader may have lost its office meanwhile.
        if let Err(error) = taken {
            tracing::warn!(%error, "a step towards the shape failed");
        }
    }

    /// Removed nodes do not hear from Raft that they are; two that come back together could elect one of them.
    async fn tell_removed(&self) {
        let snapshot = self.shared.reader.snapshot();
        if mutation::active(Mutation::NoRetirement) {
            return;
        }
        for retired in snapshot.cluster().retired.iter().filter(|retired| !retired.confirmed) {
            let member = Member {
                name: retired.name.clone(),
                raft_address: retired.raft_address.clone(),
                grpc_address: String::new(),
            };
            // Only the node itself can confirm; a new one under its name would deny it, and the old disk may come back.
            if !self.is_running(&retired.name, retired.node) {
                continue;
            }
            let peer = Peer { node: retired.node, member };
            let kind = peer_request::Kind::Retire(RetireRequest { node: retired.node });
            match self.shared.outbound.ask(peer, kind, PATIENCE).await {
                Ok(peer_reply::Kind::Retire(_)) => self.confirm(retired.node).await,
                Ok(_) => {}
                Err(error) => tracing::debug!(%error, "a removed node cannot be told yet"),
            }
        }
    }

    /// Whether a node was heard of lately under its name. Before anything was heard of a name, it may be.
    fn is_running(&self, name: &str, node: u64) -> bool {
        self.shared.directory.named(name).is_none_or(|heard| heard.said.node == node && heard.is_recent())
    }

    async fn confirm(&self, node: u64) {
        if let Err(error) = self.propose_own(Kind::ConfirmRetired(ConfirmRetired { node })).await {
            tracing::debug!(%error, "that a node is retired could not be noted yet");
        }
    }

    /// A voter that was not heard of may be of any release.
    async fn raise_command_version(&self) {
        let raised = self.shared.reader.snapshot().cluster().command_version;
        if raised >= COMMAND_VERSION {
            return;
        }
        let all = self.shared.directory.all();
        let me = self.shared.replica.node_id();
        let voters: BTreeSet<u64> = self.shared.replica.members().voters.into_iter().flatten().collect();
        let version = |node: &u64| match *node == me {
            true => Some(COMMAND_VERSION),
            false => all.values().find(|heard| heard.said.node == *node).map(|heard| heard.said.command_version),
        };
        let lowest = voters.iter().map(version).min().flatten().unwrap_or(0);
        if lowest > raised {
            let raise = RaiseCommandVersion { version: lowest };
            if let Err(error) = self.propose_own(Kind::RaiseCommandVersion(raise)).await {
                tracing::debug!(%error, "the command version could not be raised yet");
            }
        }
    }
}
