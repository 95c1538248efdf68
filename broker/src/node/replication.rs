//! What replication looks like from this node, in numbers: for metrics.
//!
//! Not here: their names and units as others see them (`server::metrics`).

use std::{collections::BTreeMap, time::Duration};

use parking_lot::Mutex;

use super::{Node, REQUESTS_MAX, clocks};
use crate::raft::runtime::Runtime;

/// What a node is in its cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// It leads.
    Leader,
    /// It votes, and follows.
    Voter,
    /// It follows and does not vote.
    Learner,
    /// It belongs to no cluster, or to one that has not taken it in.
    Outside,
}

impl Part {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Leader, Self::Voter, Self::Learner, Self::Outside];

    /// In one word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Leader => "leader",
            Self::Voter => "voter",
            Self::Learner => "learner",
            Self::Outside => "outside",
        }
    }
}

/// One moment's numbers.
#[derive(Clone, Debug, PartialEq)]
pub struct Replication {
    /// What this node is.
    pub part: Part,
    /// It knows who leads, and has heard of it lately.
    pub has_leader: bool,
    /// How often it saw another leader, or the same in a new term, since its start.
    pub leader_changes: u64,
    /// Of a leader: how many entries each other member is behind, by name.
    pub lag_entries: BTreeMap<String, u64>,
    /// Of a leader: how long ago a majority answered it.
    pub quorum_ack_age: Option<Duration>,
    /// The command version that the cluster has raised.
    pub command_version: u32,
    /// The newest command version that this build knows.
    pub command_version_known: u32,
    /// How far the clocks of others are ahead of this node's, in milliseconds, by name; behind is below zero.
    pub clocks_ahead_millis: BTreeMap<String, i64>,
    /// Of a leader: the voters are those that were asked for, and nothing is left to do.
    pub shape_reached: Option<bool>,
    /// Requests under way on this node.
    pub requests: usize,
    /// Those of them that wait because nobody leads, or leadership is handed over.
    pub requests_held: usize,
    /// The longest that a write of this node was held in the last change of leader that held one.
    pub write_gap: Option<Duration>,
}

/// The longest that a write was held, in the last term in which one was.
#[derive(Debug, Default)]
pub(super) struct WriteGap(Mutex<(u64, Option<Duration>)>);

impl WriteGap {
    /// Notes that a write was held for so long, and answered in this term.
    pub(super) fn note(&self, term: u64, held: Duration) {
        let mut last = self.0.lock();
        *last = match *last {
            (known, gap) if known == term => (term, gap.max(Some(held))),
            // An answer that comes late says nothing new.
            (known, gap) if known > term => (known, gap),
            _ => (term, Some(held)),
        };
    }

    /// The term, and how long; `None`: none was held yet.
    pub(super) fn last(&self) -> Option<(u64, Duration)> {
        let (term, gap) = *self.0.lock();
        gap.map(|gap| (term, gap))
    }
}

impl<R: Runtime> Node<R> {
    /// The numbers of this moment.
    pub fn replication(&self) -> Replication {
        let shared = &self.shared;
        let (role, me, seen) = (self.role(), shared.replica.node_id(), self.observe());
        let part = match () {
            () if role.leads => Part::Leader,
            () if seen.is_voter(me) => Part::Voter,
            () if seen.members.contains_key(&me) => Part::Learner,
            () => Part::Outside,
        };
        let requests = REQUESTS_MAX - shared.request_room.available_permits();
        let has_leader = shared.replica.present_leader().is_some();
        let waits = !has_leader || !*shared.open.borrow();
        let followers = seen.members.iter().filter(|(node, _)| role.leads && **node != me);
        Replication {
            part,
            has_leader,
            leader_changes: role.leader_changes,
            lag_entries: followers.map(|(node, member)| (member.name.clone(), seen.behind(*node))).collect(),
            quorum_ack_age: shared.replica.millis_since_quorum_ack().map(Duration::from_millis),
            command_version: seen.raised,
            command_version_known: shared.knows,
            clocks_ahead_millis: self.clocks_ahead_millis(),
            shape_reached: role.leads.then(|| shared.next_step.borrow().is_empty()),
            requests,
            requests_held: if waits { requests } else { 0 },
            write_gap: shared.write_gap.last().map(|(_, gap)| gap),
        }
    }

    /// How far the clocks of others that were heard lately are ahead of this node's, by name.
    fn clocks_ahead_millis(&self) -> BTreeMap<String, i64> {
        let clocks = self.shared.directory.clocks_ahead_millis(self.clock().now_nanos());
        clocks.into_iter().map(|(name, (_, ahead))| (name, ahead)).collect()
    }

    /// Whose clocks differ from this node's by more than they may, and how far they are ahead, in
    /// milliseconds.
    pub fn clocks_differing(&self) -> BTreeMap<String, i64> {
        clocks::differing(self.shared.max_clock_skew, &self.clocks_ahead_millis())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gap_is_the_longest_of_the_last_term_that_held_a_write() {
        let gap = WriteGap::default();
        assert_eq!(gap.last(), None);
        let millis = Duration::from_millis;
        for (term, held, expected) in
            [(3, 200, (3, 200)), (3, 900, (3, 900)), (3, 100, (3, 900)), (4, 50, (4, 50)), (3, 5000, (4, 50))]
        {
            gap.note(term, millis(held));
            assert_eq!(gap.last(), Some((expected.0, millis(expected.1))), "{held} ms in term {term}");
        }
    }
}
