//! What the leader does next to make the voters equal to the shape. Pure: looking and doing are `steward`'s.
//!
//! ```text
//!   a joint change is under way ─▶ finish it
//!   a name has a node that is no member ─▶ make it a learner
//!   all new ones are caught up ─▶ one joint change to the voters that the shape names
//!   the leader is not among them ─▶ hand over first
//!   members that nobody named are left ─▶ remove them
//! ```
//!
//! Never a step after which fewer than a majority of the voters are caught up.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use databroker_proto::internal::ShapeMember;

use crate::{
    mutation::{self, Mutation},
    raft::{Member, NodeId},
};

/// How many entries a member may be behind the leader and still count as caught up: what is under way at full load in
/// the time of a few heartbeats.
pub const CAUGHT_UP_MAX: u64 = 256;

/// What the leader sees.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    /// The leader's own node id.
    pub me: NodeId,
    /// Who should be a voter; empty: nobody has said.
    pub shape: Vec<ShapeMember>,
    /// The sets of voters: one, or two while a change is under way.
    pub voters: Vec<BTreeSet<NodeId>>,
    /// All members, voters and learners.
    pub members: BTreeMap<NodeId, Member>,
    /// Who has said Hello lately, by name: the node that runs under it now.
    pub heard: BTreeMap<String, NodeId>,
    /// Who runs and refuses the leader, by name, and why.
    pub refuses: BTreeMap<String, String>,
    /// The newest command version of each node that was heard lately, and of the leader.
    pub knows: BTreeMap<NodeId, u32>,
    /// The command version that the cluster has raised: who knows less cannot belong to it.
    pub raised: u32,
    /// Nodes that were members once and must not come back.
    pub retired: BTreeSet<NodeId>,
    /// The last index in the leader's log.
    pub last_index: u64,
    /// Up to where each member's log is known to be the leader's.
    pub matched: BTreeMap<NodeId, u64>,
    /// Members that have answered the leader a moment ago.
    pub answering: BTreeSet<NodeId>,
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing: the voters are what the shape says, or there is no shape.
    Reached,
    /// Nothing yet.
    Wait(Waiting),
    /// Replicate to a node that does not vote yet.
    AddLearner(NodeId, Member),
    /// A member is reached elsewhere now.
    Readdress(NodeId, Member),
    /// Change the voters in one joint change; voters outside are removed.
    ChangeVoters(BTreeSet<NodeId>),
    /// Remove members that do not vote.
    RemoveLearners(BTreeSet<NodeId>),
    /// Let another voter lead, for this node is to go.
    HandOver(NodeId),
}

/// What is missing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Waiting {
    /// A name of the shape has not said Hello yet.
    Hello(String),
    /// The node under a name runs, and refuses the leader.
    Refused {
        /// Whose.
        name: String,
        /// What it says.
        reason: String,
    },
    /// The node under a name is of a release that does not know what the cluster uses.
    Upgrade {
        /// Whose.
        name: String,
        /// The command version it knows.
        knows: u32,
        /// What it has to know.
        needed: u32,
    },
    /// A new member is so many entries behind.
    CatchUp(String, u64),
    /// Too few of the voters to come are caught up.
    Majority {
        /// Those that are.
        caught_up: usize,
        /// So many are needed.
        needed: usize,
    },
    /// The leader is to go, and no other voter that stays is caught up.
    Successor,
}

impl fmt::Display for Waiting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hello(name) => write!(f, "waiting for {name} to start"),
            Self::Refused { name, reason } => write!(f, "waiting for {name}, which refuses the leader: {reason}"),
            Self::Upgrade { name, knows, needed } => write!(
                f,
                "waiting for {name} to be upgraded: it knows command version {knows}, the cluster uses {needed}"
            ),
            Self::CatchUp(name, 0) => write!(f, "waiting for {name} to answer"),
            Self::CatchUp(name, behind) => write!(f, "waiting for {name} to catch up: {behind} entries behind"),
            Self::Majority { caught_up, needed } => {
                write!(f, "waiting for a majority: {caught_up} of {needed} voters are caught up")
            }
            Self::Successor => f.write_str("waiting for a voter that can take over leadership"),
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Reached => Ok(()),
            Self::Wait(waiting) => waiting.fmt(f),
            Self::AddLearner(_, member) => write!(f, "adding {} as a learner", member.name),
            Self::Readdress(_, member) => write!(f, "taking over the new address of {}", member.name),
            Self::ChangeVoters(voters) => write!(f, "changing to {} voters", voters.len()),
            Self::RemoveLearners(nodes) => write!(f, "removing {} members that do not vote", nodes.len()),
            Self::HandOver(_) => f.write_str("handing leadership over"),
        }
    }
}

impl Observed {
    /// A member whose log is nearly the leader's, which was heard of lately, and has answered a moment ago.
    pub fn is_caught_up(&self, node: NodeId) -> bool {
        let lax = mutation::active(Mutation::StepWithoutCatchUp);
        let there = self.is_heard(node) && self.answering.contains(&node);
        lax || node == self.me || (there && self.behind(node) <= CAUGHT_UP_MAX)
    }

    fn is_heard(&self, node: NodeId) -> bool {
        self.heard.values().any(|heard| *heard == node)
    }

    /// How many entries a member's log lacks of the leader's.
    pub fn behind(&self, node: NodeId) -> u64 {
        self.last_index.saturating_sub(self.matched.get(&node).copied().unwrap_or(0))
    }

    /// The member that has a name now, a voter before others.
    fn member_named(&self, name: &str) -> Option<NodeId> {
        let named = || self.members.iter().filter(|(_, member)| member.name == name).map(|(node, _)| *node);
        named().find(|node| self.is_voter(*node)).or_else(|| named().next())
    }

    /// Whether a node votes, before or after the change that is under way.
    pub fn is_voter(&self, node: NodeId) -> bool {
        self.voters.iter().any(|set| set.contains(&node))
    }

    /// The node that is to stand for a name: the one that runs there, else the member that had the name last.
    fn node_for(&self, name: &str) -> Option<NodeId> {
        let fit = |node: &NodeId| !self.retired.contains(node) && self.too_old(*node).is_none();
        let heard = self.heard.get(name).copied().filter(fit);
        heard.or_else(|| self.member_named(name))
    }

    /// What a node knows that is no member, if that is less than it would have to know.
    fn too_old(&self, node: NodeId) -> Option<u32> {
        let knows = self.knows.get(&node).copied().filter(|knows| *knows < self.raised);
        knows.filter(|_| !self.members.contains_key(&node))
    }

    /// The command version that all members know, learners included, for they are to vote. None while one of them has
    /// not been heard lately: it may come back as any release.
    pub fn understood_by_all(&self) -> Option<u32> {
        let known: Option<Vec<u32>> = self.members.keys().map(|node| self.knows.get(node).copied()).collect();
        known?.into_iter().min()
    }

    /// Whether the cluster can go on with these voters: a majority of them is caught up.
    fn has_majority(&self, voters: &BTreeSet<NodeId>) -> Result<(), Waiting> {
        let caught_up = voters.iter().filter(|node| self.is_caught_up(**node)).count();
        let needed = voters.len() / 2 + 1;
        if caught_up < needed { Err(Waiting::Majority { caught_up, needed }) } else { Ok(()) }
    }

    /// The voter to lead next: of those allowed the one that is furthest.
    pub fn successor(&self, allowed: impl Fn(NodeId) -> bool) -> Option<NodeId> {
        let voters = self.voters.iter().flatten().copied().filter(|node| *node != self.me && allowed(*node));
        voters.filter(|node| self.is_caught_up(*node)).max_by_key(|node| (self.matched.get(node).copied(), *node))
    }

    /// Whether a member can be stopped and the others go on: a majority of the voters without it is caught up.
    pub fn may_stop(&self, node: NodeId) -> bool {
        let enough = |set: &BTreeSet<NodeId>| {
            let left = set.iter().filter(|other| **other != node && self.is_caught_up(**other)).count();
            left > set.len() / 2
        };
        !self.is_voter(node) || self.voters.iter().all(enough)
    }
}

/// Decides. Asked again after each step, and whenever something has changed.
pub fn next_step(seen: &Observed) -> Step {
    let [.., voters] = seen.voters.as_slice() else { return Step::Reached };
    if seen.voters.len() > 1 {
        // A leader was lost in the middle of a change: the same target again ends it.
        return Step::ChangeVoters(voters.clone());
    }
    if seen.shape.is_empty() {
        return Step::Reached;
    }
    if let Some(step) = missing_member(seen) {
        return step;
    }
    match target(seen, voters) {
        Ok(target) if target == *voters => left_over(seen, &target).unwrap_or_else(|| unresolved(seen)),
        Ok(target) => change(seen, voters, target),
        Err(waiting) => Step::Wait(waiting),
    }
}

/// A node that runs under a name of the shape and is no member yet, or one that is reached elsewhere.
fn missing_member(seen: &Observed) -> Option<Step> {
    seen.shape.iter().find_map(|wanted| {
        let node = seen.node_for(&wanted.name)?;
        let member: Member = wanted.clone().into();
        match seen.members.get(&node) {
            None => Some(Step::AddLearner(node, member)),
            Some(known) if *known != member => Some(Step::Readdress(node, member)),
            Some(_) => None,
        }
    })
}

/// The voters to come. While a name of the shape was never heard of, only nodes that replace others under the same name
/// change: an even number of voters is no gain, but a lost disk is not to wait for a pod that cannot be placed.
fn target(seen: &Observed, voters: &BTreeSet<NodeId>) -> Result<BTreeSet<NodeId>, Waiting> {
    let nodes: BTreeMap<&str, Option<NodeId>> =
        seen.shape.iter().map(|wanted| (wanted.name.as_str(), seen.node_for(&wanted.name))).collect();
    let target: BTreeSet<NodeId> = if nodes.values().all(Option::is_some) {
        nodes.values().flatten().copied().collect()
    } else {
        let name = |node: &NodeId| seen.members.get(node).map_or("", |member| member.name.as_str());
        voters.iter().map(|node| nodes.get(name(node)).copied().flatten().unwrap_or(*node)).collect()
    };
    for node in target.difference(voters) {
        if !seen.is_caught_up(*node) {
            let name = seen.members.get(node).map_or_else(String::new, |member| member.name.clone());
            return Err(Waiting::CatchUp(name, seen.behind(*node)));
        }
    }
    Ok(target)
}

/// From these voters to those: with a leader that stays.
fn change(seen: &Observed, voters: &BTreeSet<NodeId>, target: BTreeSet<NodeId>) -> Step {
    if let Err(waiting) = seen.has_majority(&target) {
        return Step::Wait(waiting);
    }
    if target.contains(&seen.me) {
        return Step::ChangeVoters(target);
    }
    if let Some(successor) = seen.successor(|node| target.contains(&node)) {
        return Step::HandOver(successor);
    }
    // None of those that stay votes yet: they join first, and the leader goes after.
    let with_leader: BTreeSet<NodeId> = target.iter().copied().chain([seen.me]).collect();
    if with_leader == *voters { Step::Wait(Waiting::Successor) } else { Step::ChangeVoters(with_leader) }
}

/// Members that do not vote and are not to.
fn left_over(seen: &Observed, target: &BTreeSet<NodeId>) -> Option<Step> {
    let wanted: BTreeSet<NodeId> = seen.shape.iter().filter_map(|wanted| seen.node_for(&wanted.name)).collect();
    let left: BTreeSet<NodeId> =
        seen.members.keys().filter(|node| !target.contains(node) && !wanted.contains(node)).copied().collect();
    (!left.is_empty()).then_some(Step::RemoveLearners(left))
}

/// All is done that can be: is a name still silent, or of an old release?
fn unresolved(seen: &Observed) -> Step {
    let old = seen.shape.iter().find_map(|wanted| {
        let knows = seen.too_old(*seen.heard.get(&wanted.name)?)?;
        Some(Waiting::Upgrade { name: wanted.name.clone(), knows, needed: seen.raised })
    });
    if let Some(waiting) = old {
        return Step::Wait(waiting);
    }
    let silent = seen.shape.iter().find(|wanted| seen.node_for(&wanted.name).is_none());
    silent.map_or(Step::Reached, |ShapeMember { name, .. }| {
        let (name, reason) = (name.clone(), seen.refuses.get(name).cloned());
        Step::Wait(match reason {
            Some(reason) => Waiting::Refused { name, reason },
            None => Waiting::Hello(name),
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shaped(name: &str) -> ShapeMember {
        ShapeMember { name: name.into(), raft_address: format!("{name}:5999"), grpc_address: String::new() }
    }

    fn member(name: &str) -> Member {
        Member { name: name.into(), raft_address: format!("{name}:5999"), grpc_address: String::new() }
    }

    /// Members by name and node id, the first `voters` of them vote, all heard and caught up; the first leads.
    fn cluster(shape: &[&str], members: &[(&str, NodeId)], voters: usize) -> Observed {
        Observed {
            me: members[0].1,
            shape: shape.iter().map(|name| shaped(name)).collect(),
            voters: vec![members[..voters].iter().map(|(_, node)| *node).collect()],
            members: members.iter().map(|(name, node)| (*node, member(name))).collect(),
            heard: members.iter().map(|(name, node)| (name.to_string(), *node)).collect(),
            refuses: BTreeMap::new(),
            knows: members.iter().map(|(_, node)| (*node, 1)).collect(),
            raised: 1,
            retired: BTreeSet::new(),
            last_index: 1000,
            answering: (1..10).collect(),
            matched: members.iter().map(|(_, node)| (*node, 1000)).collect(),
        }
    }

    fn set(nodes: &[NodeId]) -> BTreeSet<NodeId> {
        nodes.iter().copied().collect()
    }

    #[test]
    fn without_a_shape_or_with_it_reached_nothing_is_done() {
        assert_eq!(next_step(&cluster(&[], &[("a", 1)], 1)), Step::Reached);
        assert_eq!(next_step(&cluster(&["a", "b", "c"], &[("a", 1), ("b", 2), ("c", 3)], 3)), Step::Reached);
        assert_eq!(next_step(&Observed::default()), Step::Reached);
    }

    #[test]
    fn a_cluster_grows_by_learners_that_catch_up_and_one_change() {
        let mut seen = cluster(&["a", "b", "c"], &[("a", 1)], 1);
        assert_eq!(next_step(&seen), Step::Wait(Waiting::Hello("b".into())));
        seen.heard.insert("b".into(), 2);
        assert_eq!(next_step(&seen), Step::AddLearner(2, member("b")));
        seen.members.insert(2, member("b"));
        assert_eq!(next_step(&seen), Step::Wait(Waiting::Hello("c".into())));
        seen.heard.insert("c".into(), 3);
        seen.members.insert(3, member("c"));
        assert_eq!(next_step(&seen), Step::Wait(Waiting::CatchUp("b".into(), 1000)));
        seen.matched.insert(2, 1000);
        seen.matched.insert(3, 1000 - CAUGHT_UP_MAX);
        assert_eq!(next_step(&seen), Step::ChangeVoters(set(&[1, 2, 3])));
    }

    #[test]
    fn a_lost_disk_is_replaced_under_its_name() {
        let mut seen = cluster(&["a", "b", "c"], &[("a", 1), ("b", 2), ("c", 3)], 3);
        seen.heard.insert("b".into(), 9);
        assert_eq!(next_step(&seen), Step::AddLearner(9, member("b")));
        seen.members.insert(9, member("b"));
        assert_eq!(next_step(&seen), Step::Wait(Waiting::CatchUp("b".into(), 1000)));
        seen.matched.insert(9, 990);
        assert_eq!(next_step(&seen), Step::ChangeVoters(set(&[1, 3, 9])));
    }

    #[test]
    fn a_lost_disk_does_not_wait_for_a_new_member_that_never_came() {
        let mut seen = cluster(&["a", "b", "c", "d", "e"], &[("a", 1), ("b", 2), ("c", 3)], 3);
        seen.heard.insert("b".into(), 9);
        seen.members.insert(9, member("b"));
        seen.matched.insert(9, 1000);
        assert_eq!(next_step(&seen), Step::ChangeVoters(set(&[1, 3, 9])));
    }

    #[test]
    fn a_silent_voter_of_the_shape_stays() {
        let mut seen = cluster(&["a", "b", "c"], &[("a", 1), ("b", 2), ("c", 3)], 3);
        seen.heard.remove("c");
        assert_eq!(next_step(&seen), Step::Reached);
    }

    #[test]
    fn names_outside_the_shape_are_removed_only_while_a_majority_of_the_rest_is_caught_up() {
        let five = [("a", 1), ("b", 2), ("c", 3), ("d", 4), ("e", 5)];
        let mut seen = cluster(&["a", "b", "c"], &five, 5);
        assert_eq!(next_step(&seen), Step::ChangeVoters(set(&[1, 2, 3])));
        seen.matched.insert(2, 1);
        assert_eq!(next_step(&seen), Step::ChangeVoters(set(&[1, 2, 3])));
        seen.heard.remove("c");
        assert_eq!(next_step(&seen), Step::Wait(Waiting::Majority { caught_up: 1, needed: 2 }));
    }

    #[test]
    fn a_leader_outside_the_shape_hands_over_to_the_furthest_that_stays() {
        let mut seen = cluster(&["b", "c"], &[("a", 1), ("b", 2), ("c", 3)], 3);
        seen.matched.insert(2, 995);
        assert_eq!(next_step(&seen), Step::HandOver(3));
        seen.heard.remove("c");
        assert_eq!(next_step(&seen), Step::Wait(Waiting::Majority { caught_up: 1, needed: 2 }));
    }

    #[test]
    fn when_no_voter_stays_the_new_ones_join_before_the_leader_goes() {
        let mut seen = cluster(&["b"], &[("a", 1), ("b", 2)], 1);
        assert_eq!(next_step(&seen), Step::ChangeVoters(set(&[1, 2])));
        seen.voters = vec![set(&[1, 2])];
        assert_eq!(next_step(&seen), Step::HandOver(2));
        seen.me = 2;
        assert_eq!(next_step(&seen), Step::ChangeVoters(set(&[2])));
    }

    #[test]
    fn an_interrupted_change_is_finished_first() {
        let mut seen = cluster(&["a"], &[("a", 1), ("b", 2)], 2);
        seen.voters = vec![set(&[1, 2]), set(&[1, 2, 3])];
        assert_eq!(next_step(&seen), Step::ChangeVoters(set(&[1, 2, 3])));
    }

    #[test]
    fn members_that_nobody_named_go_last_and_retired_nodes_never_come_back() {
        let mut seen = cluster(&["a"], &[("a", 1), ("x", 7)], 1);
        assert_eq!(next_step(&seen), Step::RemoveLearners(set(&[7])));
        seen.members.remove(&7);
        seen.shape.push(shaped("x"));
        seen.retired.insert(7);
        assert_eq!(next_step(&seen), Step::Wait(Waiting::Hello("x".into())));
    }

    #[test]
    fn who_has_stopped_answering_is_not_caught_up_whatever_was_heard() {
        let mut seen = cluster(&["a", "b"], &[("a", 1), ("b", 2)], 1);
        assert_eq!(next_step(&seen), Step::ChangeVoters(BTreeSet::from([1, 2])));
        seen.answering.remove(&2);
        assert_eq!(next_step(&seen), Step::Wait(Waiting::CatchUp("b".into(), 0)));
    }

    #[test]
    fn a_node_that_knows_less_than_the_cluster_uses_is_not_added() {
        let mut seen = cluster(&["a", "b"], &[("a", 1)], 1);
        seen.raised = 2;
        seen.heard.insert("b".into(), 2);
        seen.knows = BTreeMap::from([(1, 2), (2, 1)]);
        let step = next_step(&seen);
        assert_eq!(step, Step::Wait(Waiting::Upgrade { name: "b".into(), knows: 1, needed: 2 }));
        assert!(step.to_string().contains("b to be upgraded"), "{step}");
        seen.knows.insert(2, 2);
        assert_eq!(next_step(&seen), Step::AddLearner(2, member("b")));
    }

    #[test]
    fn what_all_members_know_is_unknown_while_one_is_silent() {
        let mut seen = cluster(&["a"], &[("a", 1), ("b", 2), ("learner", 3)], 2);
        seen.knows = BTreeMap::from([(1, 3), (2, 2), (3, 2), (9, 1)]);
        assert_eq!(seen.understood_by_all(), Some(2));
        seen.knows.insert(3, 1);
        assert_eq!(seen.understood_by_all(), Some(1));
        seen.knows.remove(&3);
        assert_eq!(seen.understood_by_all(), None);
    }

    #[test]
    fn a_member_that_moved_is_reached_at_its_new_address() {
        let mut seen = cluster(&["a", "b"], &[("a", 1), ("b", 2)], 2);
        seen.shape[1].raft_address = "elsewhere:1".into();
        let moved = Member { raft_address: "elsewhere:1".into(), ..member("b") };
        assert_eq!(next_step(&seen), Step::Readdress(2, moved));
    }

    #[test]
    fn a_voter_may_stop_only_while_a_majority_of_the_others_is_caught_up() {
        let mut seen = cluster(&["a", "b", "c"], &[("a", 1), ("b", 2), ("c", 3)], 3);
        assert!([1, 2, 3].iter().all(|node| seen.may_stop(*node)));
        seen.heard.remove("c");
        assert_eq!([1, 2, 3].map(|node| seen.may_stop(node)), [false, false, true]);
        assert!(!cluster(&["a"], &[("a", 1)], 1).may_stop(1));
    }
}
