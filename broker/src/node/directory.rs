//! What nodes have said about themselves lately, by name. Nothing here is decided by it alone: it may be old, and a
//! peer may say anything its certificate does not forbid.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use databroker_proto::internal::Introduction;
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::raft::NodeId;

/// What was heard longer ago than this says nothing about now: several rounds of Hello.
pub(super) const LATELY: Duration = Duration::from_secs(4);

/// Names remembered at most: far more than a cluster has, or had while it was scaled up and down.
const NAMES_MAX: usize = 64;

/// One node's own words, and when it spoke.
#[derive(Clone, Debug)]
pub(super) struct Heard {
    pub(super) said: Introduction,
    pub(super) at: Instant,
    /// When another node than before, heard a moment ago as well, began to speak under its name.
    flipped: Option<Instant>,
    /// The node that spoke under the name before that.
    before: Option<NodeId>,
    /// That nodes take turns was told.
    told: bool,
}

impl Heard {
    /// Said now.
    pub(super) fn now(said: Introduction) -> Self {
        Self { said, at: Instant::now(), flipped: None, before: None, told: false }
    }

    /// The next words under the same name.
    fn followed_by(&self, said: Introduction) -> Self {
        let now = Self::now(said);
        if now.said.node == self.said.node {
            return Self { flipped: self.flipped, before: self.before, told: self.told && self.is_unsettled(), ..now };
        }
        let flipped = self.is_recent().then_some(now.at);
        Self { flipped, before: Some(self.said.node), told: self.told && flipped.is_some(), ..now }
    }

    /// Two nodes spoke under this name within a moment: it is not clear whose it is.
    fn is_unsettled(&self) -> bool {
        self.flipped.is_some_and(|flipped| flipped.elapsed() <= LATELY)
    }

    /// How far its clock was ahead of this node's when it spoke, in milliseconds; behind is below zero. Good to the
    /// time that a message takes.
    pub(super) fn clock_ahead_millis(&self, now_nanos: u64) -> i64 {
        let since = u64::try_from(self.at.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let (theirs, ours) = (i128::from(self.said.now_nanos), i128::from(now_nanos.saturating_sub(since)));
        i64::try_from((theirs - ours) / 1_000_000).unwrap_or(i64::MAX)
    }

    /// Whether it spoke a moment ago.
    pub(super) fn is_recent(&self) -> bool {
        self.at.elapsed() <= LATELY
    }
}

/// Who was heard.
#[derive(Debug, Default)]
pub(super) struct Directory(Mutex<BTreeMap<String, Heard>>);

impl Directory {
    /// Takes note of what a node says about itself.
    pub(super) fn note(&self, said: Introduction) {
        let mut heard = self.0.lock();
        let (name, node) = (said.name.clone(), said.node);
        let next = match heard.get(&name) {
            None => Heard::now(said),
            Some(last) => {
                let back = last.is_unsettled() && last.before == Some(node) && last.said.node != node;
                let next = last.followed_by(said);
                if back && !next.told {
                    let other = format!("{:016x}", last.said.node);
                    let node = format!("{node:016x}");
                    tracing::warn!(name, node, other, "two nodes run under one name: stop the one that is too many");
                }
                Heard { told: next.told || back, ..next }
            }
        };
        heard.insert(name, next);
        while heard.len() > NAMES_MAX {
            let oldest = heard.iter().min_by_key(|(_, heard)| heard.at).map(|(name, _)| name.clone());
            oldest.and_then(|name| heard.remove(&name));
        }
    }

    /// Everybody, by name.
    pub(super) fn all(&self) -> BTreeMap<String, Heard> {
        self.0.lock().clone()
    }

    /// Whoever has a name.
    pub(super) fn named(&self, name: &str) -> Option<Heard> {
        self.0.lock().get(name).cloned()
    }

    /// Names of those who spoke lately and belong to this cluster, or to none yet, with the node that runs there. A name
    /// that two nodes use is left out: what is done for the one would be undone for the other.
    pub(super) fn recent(&self, cluster_id: &str) -> BTreeMap<String, NodeId> {
        let heard = self.0.lock();
        let ours = |said: &Introduction| said.cluster_id.is_empty() || said.cluster_id == cluster_id;
        let usable = |heard: &Heard| heard.is_recent() && !heard.is_unsettled() && ours(&heard.said);
        let recent = heard.iter().filter(|(_, heard)| usable(heard));
        recent.map(|(name, heard)| (name.clone(), heard.said.node)).collect()
    }

    /// The newest command version that each node which spoke lately says it knows.
    pub(super) fn versions(&self) -> BTreeMap<NodeId, u32> {
        let heard = self.0.lock();
        let recent = heard.values().filter(|heard| heard.is_recent());
        recent.map(|heard| (heard.said.node, heard.said.command_version)).collect()
    }

    /// How far the clocks of those who spoke lately are ahead of this node's, in milliseconds, by name, with the node.
    pub(super) fn clocks_ahead_millis(&self, now_nanos: u64) -> BTreeMap<String, (NodeId, i64)> {
        let heard = self.0.lock();
        let recent = heard.iter().filter(|(_, heard)| heard.is_recent());
        recent.map(|(name, heard)| (name.clone(), (heard.said.node, heard.clock_ahead_millis(now_nanos)))).collect()
    }

    /// The clusters that those who spoke lately belong to.
    pub(super) fn clusters(&self) -> BTreeSet<String> {
        let heard = self.0.lock();
        let recent = heard.values().filter(|heard| heard.is_recent() && !heard.said.cluster_id.is_empty());
        recent.map(|heard| heard.said.cluster_id.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn introduction(name: &str, node: NodeId, cluster_id: &str) -> Introduction {
        Introduction { name: name.into(), node, cluster_id: cluster_id.into(), ..Introduction::default() }
    }

    #[tokio::test(start_paused = true)]
    async fn only_what_was_heard_lately_of_this_cluster_or_none_counts() {
        let directory = Directory::default();
        directory.note(introduction("old", 1, "c"));
        tokio::time::advance(LATELY + Duration::from_millis(1)).await;
        directory.note(introduction("new", 2, ""));
        directory.note(introduction("member", 3, "c"));
        directory.note(introduction("foreign", 4, "other"));
        let recent = directory.recent("c");
        assert_eq!(recent, BTreeMap::from([("member".into(), 3), ("new".into(), 2)]));
        assert_eq!(directory.clusters(), BTreeSet::from(["c".into(), "other".into()]));
        assert_eq!(directory.all().len(), 4);
    }

    #[tokio::test(start_paused = true)]
    async fn a_clock_is_compared_with_that_of_the_moment_it_was_heard() {
        const S: u64 = 1_000_000_000;
        let said = Introduction { now_nanos: 107 * S, ..Introduction::default() };
        let heard = Heard::now(said);
        assert_eq!(heard.clock_ahead_millis(100 * S), 7000);
        tokio::time::advance(Duration::from_secs(2)).await;
        assert_eq!(heard.clock_ahead_millis(102 * S), 7000);
        assert_eq!(heard.clock_ahead_millis(110 * S), -1000);
    }

    #[tokio::test(start_paused = true)]
    async fn a_name_that_two_nodes_use_is_nobodys_until_one_of_them_is_silent() {
        let directory = Directory::default();
        let second = Duration::from_secs(1);
        for node in [1, 2, 1, 2, 1] {
            directory.note(introduction("a", node, ""));
            assert_eq!(directory.recent("c").is_empty(), node == 2 || directory.named("a").unwrap().before.is_some());
            tokio::time::advance(second).await;
        }
        assert!(directory.named("a").unwrap().told);
        for _ in 0..4 {
            directory.note(introduction("a", 1, ""));
            tokio::time::advance(second).await;
        }
        directory.note(introduction("a", 1, ""));
        assert_eq!(directory.recent("c"), BTreeMap::from([("a".into(), 1)]));
        // A disk was lost: the next node is its successor, once the old one has been silent for a moment.
        tokio::time::advance(LATELY + second).await;
        directory.note(introduction("a", 3, ""));
        assert_eq!(directory.recent("c"), BTreeMap::from([("a".into(), 3)]));
        assert!(!directory.named("a").unwrap().told);
    }

    #[tokio::test(start_paused = true)]
    async fn the_oldest_is_forgotten_when_there_are_too_many() {
        let directory = Directory::default();
        for node in 0..=NAMES_MAX as u64 {
            directory.note(introduction(&format!("n{node}"), node, ""));
            tokio::time::advance(Duration::from_millis(1)).await;
        }
        assert_eq!(directory.all().len(), NAMES_MAX);
        assert!(!directory.all().contains_key("n0"));
    }
}
