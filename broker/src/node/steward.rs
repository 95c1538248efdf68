//! The leader's care for the cluster: it makes the voters equal to the shape, and raises what commands may be used once
//! all voters understand them.
//!
//! Looks and does; what is to be done is decided in `shape`. Not here: telling removed nodes that they are (`retire`),
//! which may take its time.

use std::{collections::BTreeSet, sync::Weak, time::Duration};

use databroker_proto::internal::RaiseCommandVersion;
use tokio::time::Instant;

use super::{
    Node, Shared,
    clocks::{self, Since},
    directory::LATELY,
    shape::{self, Observed, Step},
};
use crate::{raft::runtime::Runtime, store::command::Kind};

/// How often it looks: a new node waits for this before it is replicated to.
const EVERY: Duration = Duration::from_millis(200);

/// How often the only voter looks, which rarely has anything to do: an idle broker is to cost next to nothing.
const EVERY_ALONE: Duration = Duration::from_secs(1);

/// How long it waits after leadership could not be handed over: writes are held while that is tried.
const RESPITE: Duration = LATELY;

/// When leadership could not be handed over.
#[derive(Debug, Default)]
struct Respite(Option<Instant>);

impl Respite {
    /// Whether it may be tried.
    fn is_over(&self, now: Instant) -> bool {
        self.0.is_none_or(|failed| now.duration_since(failed) >= RESPITE)
    }
}

/// Looks after the cluster for as long as somebody holds the node.
pub(super) async fn run<R: Runtime>(node: Weak<Shared<R>>) {
    let (mut ahead, mut respite) = (Since::default(), Respite::default());
    while let Some(shared) = node.upgrade() {
        let node = Node { shared };
        node.look_after(&mut respite).await;
        node.mind_clock(&mut ahead).await;
        let pause = node.pause();
        // Nobody else holds the node while it waits.
        drop(node);
        tokio::time::sleep(pause).await;
    }
}

impl<R: Runtime> Node<R> {
    /// How long until the leader's care looks again.
    pub(super) fn pause(&self) -> Duration {
        if self.role().alone { EVERY_ALONE } else { EVERY }
    }

    async fn look_after(&self, respite: &mut Respite) {
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
        self.take(step, respite).await;
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
        let mut knows = self.shared.directory.versions();
        knows.insert(me, self.shared.knows);
        Observed {
            me,
            shape: snapshot.cluster().shape.clone(),
            voters: members.voters,
            members: members.members,
            heard,
            refuses: self.shared.refusing.recent(),
            knows,
            raised: snapshot.cluster().command_version,
            retired: snapshot.cluster().retired.iter().map(|retired| retired.node).collect(),
            last_index: replica.picture().last_log_index.unwrap_or(0),
            answering: replica.answering(),
            matched: replica.matched().into_iter().filter_map(|(node, index)| Some((node, index?))).collect(),
        }
    }

    async fn take(&self, step: Step, respite: &mut Respite) {
        let replica = &self.shared.replica;
        let taken = match step {
            Step::Reached | Step::Wait(_) => return,
            Step::AddLearner(node, member) | Step::Readdress(node, member) => replica.add_learner(node, member).await,
            Step::ChangeVoters(voters) => replica.change_voters(voters).await,
            Step::RemoveLearners(nodes) => replica.remove_learners(nodes).await,
            Step::HandOver(node) => {
                if respite.is_over(Instant::now())
                    && let Err(error) = self.hand_over_to(node).await
                {
                    *respite = Respite(Some(Instant::now()));
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

    /// A leader whose clock is ahead of the others' gives its office to one of them: its clock is the store's time.
    async fn mind_clock(&self, ahead: &mut Since) {
        let behind = self.voters_behind();
        if !ahead.is_due(behind.is_some(), Instant::now()) {
            return;
        }
        let Some(successor) = behind.and_then(|behind| self.observe().successor(|node| behind.contains(&node))) else {
            return;
        };
        match self.hand_over_to(successor).await {
            Ok(leader) => tracing::warn!(leader, "this node's clock is ahead of the others': another leads now"),
            Err(error) => tracing::warn!(%error, "this node's clock is ahead of the others', but nobody took over"),
        }
    }

    /// If this node leads, with a clock too far ahead of a majority's: whom it is ahead of.
    fn voters_behind(&self) -> Option<BTreeSet<u64>> {
        let role = self.role();
        if !role.leads || role.alone {
            return None;
        }
        let voters: BTreeSet<u64> = self.shared.replica.members().voters.into_iter().flatten().collect();
        let others = self.shared.directory.clocks_ahead_millis(self.clock().now_nanos());
        let others = others.into_values().filter(|(node, _)| voters.contains(node)).collect();
        clocks::ahead_of(self.shared.max_clock_skew, voters.len(), &others)
    }

    /// Lets new commands be used once all members understand them.
    async fn raise_command_version(&self) {
        if self.shared.reader.snapshot().cluster().command_version >= self.shared.knows {
            return;
        }
        let seen = self.observe();
        let Some(version) = seen.understood_by_all().filter(|version| *version > seen.raised) else { return };
        let raise = RaiseCommandVersion { version };
        if let Err(error) = self.propose_own(Kind::RaiseCommandVersion(raise)).await {
            tracing::debug!(%error, "the command version could not be raised yet");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handover_that_failed_is_tried_again_after_a_while() {
        let now = Instant::now();
        assert!(Respite::default().is_over(now));
        let failed = Respite(Some(now));
        assert!(!failed.is_over(now) && !failed.is_over(now + RESPITE - Duration::from_millis(1)));
        assert!(failed.is_over(now + RESPITE));
    }
}
