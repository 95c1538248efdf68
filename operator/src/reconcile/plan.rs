//! The next step of a cluster: a pure function of what is wanted and what was seen. The only place that decides to found
//! a cluster, to change its members, to restart a pod or to discard a volume.
//!
//! Rules, each held by the simulation beside this file:
//! - A cluster is founded once. Disks that are all empty afterwards are a loss that a person has to know of.
//! - A pod is restarted only while a majority of voters without it is caught up, by the word of the leader, and while no
//!   other pod is on its way. What does not run anyway may always be restarted.
//! - Pods go away after their members have ceased to vote, and know it. A member that cannot be told leaves a mark on its
//!   volume, and that volume is emptied before its name is used again.
//! - A volume is discarded only if nobody votes with it.
//! - Pods that somebody took away by hand come back, also where that has left no leader.
//! - Before data are given up for lost, or a cluster is founded, every volume that is there has been asked.
//!
//! What was seen of Kubernetes may be old (it is a cache); what brokers say is from a moment ago. A plan by which something
//! goes away is made once more from what is there now ([`Plan::is_disruptive`]). Not here: doing it (`apply`), saying it
//! (`status`).

use std::collections::{BTreeMap, BTreeSet};

/// As many pods as there can be.
pub const PODS_MAX: u32 = 7;

/// What the spec asks for, as far as steps depend on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Brokers.
    pub replicas: u32,
    /// The operator restarts pods of an old revision.
    pub restarts: bool,
    /// Records are in memory: a cluster that has lost them all begins anew.
    pub ephemeral: bool,
    /// Volumes of brokers that were scaled away are discarded.
    pub discards_scaled: bool,
}

/// What was seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// What the status remembers.
    pub record: Record,
    /// The id of the cluster that a person says this is, after the one before was lost for good.
    pub adopted: Option<String>,
    /// How many pods the StatefulSet is to have; absent: there is none.
    pub pods_wanted: Option<u32>,
    /// The revision that pods are to have, once the StatefulSet's controller has said it.
    pub update_revision: Option<String>,
    /// Pods, by ordinal.
    pub pods: BTreeMap<u32, Pod>,
    /// Claims of volumes, by ordinal.
    pub volumes: BTreeMap<u32, Volume>,
    /// Brokers that answered, by ordinal.
    pub brokers: BTreeMap<u32, Broker>,
    /// What the broker says that leads.
    pub cluster: Option<Cluster>,
}

/// What the status remembers: the cluster was founded, and its id.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Record {
    /// Latched: never founded twice.
    pub bootstrapped: bool,
    /// Its id.
    pub cluster_id: Option<String>,
}

/// A pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pod {
    /// Which of those that had its name.
    pub uid: String,
    /// Its revision.
    pub revision: Option<String>,
    /// It is being deleted.
    pub terminating: bool,
    /// Its broker runs.
    pub running: bool,
    /// Its broker serves, and has caught up since it started.
    pub ready: bool,
    /// Its node does not answer: it may be deleted without ever going away.
    pub unreachable: bool,
}

/// The claim of a volume.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Volume {
    /// Which of those that had its name.
    pub uid: String,
    /// The member that was removed while it could not be reached, and whose data may be there.
    pub retired: Option<u64>,
    /// It is being deleted.
    pub terminating: bool,
}

/// A broker that answered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Broker {
    /// The cluster it belongs to.
    pub cluster_id: Option<String>,
    /// The id of its disk, if it says so.
    pub node: Option<u64>,
    /// Whose votes it knows of, by ordinal.
    pub voters: BTreeSet<u32>,
}

/// The cluster by the word of its leader.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cluster {
    /// The leader's ordinal.
    pub leader: u32,
    /// Of the shape.
    pub generation: u64,
    /// Who is to be a member, by ordinal. `None`: somebody of another name is among them.
    pub shape: Option<BTreeSet<u32>>,
    /// The shape is reached.
    pub settled: bool,
    /// Who is a member. Two of one ordinal while a lost disk is replaced.
    pub members: Vec<Member>,
    /// Who was one, and may come back.
    pub retired: Vec<Retired>,
}

/// A member.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Member {
    /// Its pod.
    pub ordinal: u32,
    /// The id of its disk.
    pub node: u64,
    /// It votes.
    pub votes: bool,
    /// It has all that the leader had a moment ago.
    pub caught_up: bool,
    /// A majority of voters without it is caught up.
    pub may_stop: bool,
}

/// A member that was removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Retired {
    /// Its pod.
    pub ordinal: u32,
    /// The id of its disk.
    pub node: u64,
    /// It has written down that it was.
    pub confirmed: bool,
}

/// What is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// How many pods the StatefulSet is to have now.
    pub replicas: u32,
    /// What the status is to remember.
    pub record: Record,
    /// The next step.
    pub step: Step,
}

/// A step. At most one is taken at a time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Everything is as it should be.
    Settled,
    /// Something has to happen by itself first.
    Wait(Waiting),
    /// Nothing goes on without a person.
    Stalled(Stall),
    /// This broker is to found the cluster. `again`: the one before has lost all its records.
    Found {
        /// Its pod.
        ordinal: u32,
        /// For the second time.
        again: bool,
    },
    /// These are to be the members.
    SetMembers {
        /// Of the shape that this replaces.
        generation: u64,
        /// By ordinal.
        members: BTreeSet<u32>,
    },
    /// The leader is to let another lead.
    Handover {
        /// The leader's pod.
        from: u32,
    },
    /// The pod is to be deleted, so that it comes back in its new revision; unless it has changed since it was seen.
    RestartPod {
        /// Which.
        ordinal: u32,
        /// Which of that name.
        uid: String,
    },
    /// The volume is to be marked: a removed member that could not be told may be on it.
    MarkRetired {
        /// Whose.
        ordinal: u32,
        /// Which of that name.
        uid: String,
        /// The member's id.
        node: u64,
    },
    /// The mark is to be taken off: another member is on the volume by now.
    Unmark {
        /// Whose.
        ordinal: u32,
        /// Which of that name.
        uid: String,
    },
    /// The volume is to be deleted.
    DiscardVolume {
        /// Whose.
        ordinal: u32,
        /// Which of that name.
        uid: String,
    },
}

/// What is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waiting {
    /// The StatefulSet and its pods.
    Creating,
    /// All brokers are to answer, so that it is known whether there is a cluster.
    Brokers,
    /// A leader.
    Leader,
    /// New members are caught up and vote.
    ScalingUp,
    /// Removed members cease to vote, and write it down.
    ScalingDown,
    /// A pod that was restarted comes back.
    Rolling,
    /// Voters catch up before the next pod is restarted.
    CatchingUp,
    /// Pods of an old revision, which somebody else restarts, or nobody yet.
    Held,
    /// A pod that should be there is not, or is not ready.
    Pod,
    /// A lost disk is replaced, or a member catches up.
    Members,
    /// The StatefulSet's controller is to say which revision the last change is.
    Revision,
}

/// What a person has to look at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stall {
    /// The cluster was founded, and all disks are empty.
    DataMissing,
    /// Disks belong to different clusters: this one's does not belong here.
    ForeignData {
        /// Whose.
        ordinal: u32,
        /// The cluster's id.
        cluster_id: String,
    },
}

impl Volume {
    /// It may be used again as it is.
    fn is_kept(&self) -> bool {
        self.retired.is_none() && !self.terminating
    }
}

impl Cluster {
    fn is_member(&self, ordinal: u32) -> bool {
        self.members.iter().any(|member| member.ordinal == ordinal)
    }
}

impl Plan {
    /// Whether something goes away by it, or begins: then it has to be made from what is there now. Caches that differ in age
    /// could together show a state that never was; names that are to be members could belong to pods that are about to go, and
    /// a pod could start on a volume that has been marked.
    pub fn is_disruptive(&self, seen: &Seen) -> bool {
        let resizes = seen.pods_wanted != Some(self.replicas);
        match self.step {
            Step::Settled | Step::Wait(_) | Step::Stalled(_) | Step::MarkRetired { .. } | Step::Unmark { .. } => {
                resizes
            }
            Step::Found { .. }
            | Step::SetMembers { .. }
            | Step::Handover { .. }
            | Step::RestartPod { .. }
            | Step::DiscardVolume { .. } => true,
        }
    }
}

/// The next step.
pub fn plan(wanted: Wanted, seen: &Seen) -> Plan {
    let Some(pods_wanted) = seen.pods_wanted else {
        // Somebody may have deleted it, and left its pods: they are the new one's. A volume that must not come back may be left, too.
        let there = seen.pods.iter().rfind(|(_, pod)| !pod.terminating).map_or(0, |(ordinal, _)| past(*ordinal));
        let (replicas, step) = match grow(seen, there, needed(wanted, seen, there)) {
            (replicas, Step::Wait(Waiting::ScalingUp)) => (replicas.max(there), Step::Wait(Waiting::Creating)),
            in_the_way => in_the_way,
        };
        return Plan { replicas, record: seen.record.clone(), step };
    };
    let needed = if seen.cluster.is_some() { 0 } else { needed(wanted, seen, pods_wanted) };
    let (record, step) = match identity(wanted, seen, pods_wanted.max(needed)) {
        Ok(record) => (record, None),
        Err(step) => (seen.record.clone(), Some(step)),
    };
    let (replicas, step) = match (step, &seen.cluster) {
        (Some(step @ (Step::Stalled(_) | Step::Found { .. })), _) => (pods_wanted, step),
        _ if pods_wanted < needed => grow(seen, pods_wanted, needed),
        (Some(step), _) => (pods_wanted, step),
        (None, Some(cluster)) => members(wanted, seen, pods_wanted, cluster),
        (None, None) => (pods_wanted, leaderless(wanted, seen)),
    };
    Plan { replicas, record, step }
}

/// How many pods there have to be for a cluster to have a leader: all that are asked for, and those of all voters that
/// somebody knows of. If all of them are empty, the data may be on a volume that has no pod.
fn needed(wanted: Wanted, seen: &Seen, pods_wanted: u32) -> u32 {
    let voters = seen.brokers.values().filter_map(|broker| broker.voters.last());
    let asked = voters.map(|last| past(*last)).max().unwrap_or(0).max(wanted.replicas);
    let is_empty = |ordinal| seen.brokers.get(&ordinal).is_some_and(|broker| broker.cluster_id.is_none());
    if !(0..asked.max(pods_wanted)).all(is_empty) {
        return asked;
    }
    let kept = seen.volumes.iter().rfind(|(_, volume)| volume.is_kept()).map_or(0, |(ordinal, _)| past(*ordinal));
    // A marked one would be discarded on the way; but a person may need it, if it is all that is left.
    let is_free = seen.volumes.range(asked..kept.max(asked)).all(|(_, volume)| volume.is_kept());
    if is_free { kept.max(asked) } else { asked }
}

/// How many pods there are up to this one.
fn past(ordinal: u32) -> u32 {
    ordinal.saturating_add(1).min(PODS_MAX)
}

/// Which cluster this is; or the step that comes before there is one.
fn identity(wanted: Wanted, seen: &Seen, pods: u32) -> Result<Record, Step> {
    let record = &seen.record;
    let mut ids = seen.brokers.iter().filter_map(|(ordinal, broker)| Some((*ordinal, broker.cluster_id.as_ref()?)));
    let first = ids.next();
    // One that began anew without its status having been written has another id than that.
    let remembered = record.cluster_id.as_ref().filter(|_| record.bootstrapped && !wanted.ephemeral);
    // What is in memory is not recovered.
    let adopted = seen.adopted.as_ref().filter(|_| !wanted.ephemeral);
    let ours = adopted.or(remembered).or(first.map(|(_, id)| id));
    let foreign = first.into_iter().chain(ids).find(|(_, id)| Some(*id) != ours);
    if let Some((ordinal, cluster_id)) = foreign {
        return Err(Step::Stalled(Stall::ForeignData { ordinal, cluster_id: cluster_id.clone() }));
    }
    if first.is_some() {
        return Ok(Record { bootstrapped: true, cluster_id: ours.cloned() });
    }
    let all_answer = (0..pods).all(|ordinal| seen.brokers.contains_key(&ordinal));
    let is_unasked = seen.volumes.range(pods..PODS_MAX.max(pods)).any(|(_, volume)| volume.is_kept());
    match (all_answer, record.bootstrapped || adopted.is_some() || is_unasked) {
        (false, false) => Err(Step::Wait(Waiting::Brokers)),
        (false, true) => Ok(record.clone()),
        (true, false) => Err(Step::Found { ordinal: 0, again: false }),
        (true, true) if wanted.ephemeral => Err(Step::Found { ordinal: 0, again: true }),
        (true, true) => Err(Step::Stalled(Stall::DataMissing)),
    }
}

/// Without a leader nothing can be changed; but a pod that cannot start may be given the revision that can.
fn leaderless(wanted: Wanted, seen: &Seen) -> Step {
    let dead = outdated(seen).find(|(ordinal, pod)| is_dead(seen, *ordinal, pod));
    match dead.filter(|_| wanted.restarts) {
        Some((ordinal, pod)) => Step::RestartPod { ordinal, uid: pod.uid.clone() },
        None => Step::Wait(Waiting::Leader),
    }
}

/// Its broker does not run, by the word of the cache, and does not answer.
fn is_dead(seen: &Seen, ordinal: u32, pod: &Pod) -> bool {
    !pod.running && !pod.terminating && !seen.brokers.contains_key(&ordinal)
}

fn outdated(seen: &Seen) -> impl Iterator<Item = (u32, &Pod)> {
    let update = seen.update_revision.as_ref();
    let pods = seen.pods.iter().map(|(ordinal, pod)| (*ordinal, pod));
    pods.filter(move |(_, pod)| update.is_some() && pod.revision.as_ref() != update)
}

/// How many pods, and the step, of a cluster that has a leader.
fn members(wanted: Wanted, seen: &Seen, pods_wanted: u32, cluster: &Cluster) -> (u32, Step) {
    if let Some(step) = unmark(seen, cluster).or_else(|| mark(seen, cluster, wanted)) {
        return (pods_wanted, step);
    }
    if pods_wanted < wanted.replicas {
        return grow(seen, pods_wanted, wanted.replicas);
    }
    // Not yet one whose volume is marked still: as long as it is, it may be discarded.
    let is_free = |ordinal: &u32| seen.volumes.get(ordinal).is_none_or(|volume| volume.retired.is_none());
    let target: BTreeSet<u32> = (0..wanted.replicas).filter(is_free).collect();
    if cluster.shape.as_ref() != Some(&target) {
        return (pods_wanted, Step::SetMembers { generation: cluster.generation, members: target });
    }
    if pods_wanted > wanted.replicas {
        return shrink(wanted, seen, pods_wanted, cluster);
    }
    if let Some(step) = discard_scaled(wanted, seen, cluster) {
        return (pods_wanted, step);
    }
    (pods_wanted, roll(wanted, seen, cluster).unwrap_or_else(|| rest(seen, cluster)))
}

/// A removed member that came back before its volume was discarded has begun anew as another.
fn unmark(seen: &Seen, cluster: &Cluster) -> Option<Step> {
    let is_removed = |node: u64| cluster.retired.iter().any(|retired| retired.node == node);
    let mut begun = seen.volumes.iter().filter(|(ordinal, volume)| {
        let there = seen.brokers.get(ordinal).and_then(|broker| broker.node);
        let another = |there| volume.retired.is_some_and(|retired| retired != there) && !is_removed(there);
        !volume.terminating && there.is_some_and(another)
    });
    let (ordinal, volume) = begun.next()?;
    Some(Step::Unmark { ordinal: *ordinal, uid: volume.uid.clone() })
}

/// A member that was removed, does not know it, and cannot be asked: its volume must not come back as it is.
fn mark(seen: &Seen, cluster: &Cluster, wanted: Wanted) -> Option<Step> {
    let unaware = cluster.retired.iter().filter(|retired| !retired.confirmed);
    let away = unaware.filter(|retired| {
        let ordinal = retired.ordinal;
        // Under a name that is in use there is another disk: the old one is gone.
        ordinal >= wanted.replicas && !cluster.is_member(ordinal) && !seen.brokers.contains_key(&ordinal)
    });
    // Of several that had the name the last is on the disk.
    let mut unmarked = away.rev().filter_map(|retired| {
        let volume = seen.volumes.get(&retired.ordinal)?;
        let uid = (volume.retired.is_none() && !volume.terminating).then(|| volume.uid.clone())?;
        Some(Step::MarkRetired { ordinal: retired.ordinal, uid, node: retired.node })
    });
    unmarked.next()
}

/// Removes a marked volume, or waits until it is gone.
fn discard(seen: &Seen, ordinal: u32) -> Option<Step> {
    let volume = seen.volumes.get(&ordinal)?;
    match (volume.terminating, volume.retired) {
        // Its pod uses it to the last.
        (true, _) => Some(Step::Wait(Waiting::ScalingDown)),
        (false, Some(_)) => Some(Step::DiscardVolume { ordinal, uid: volume.uid.clone() }),
        (false, None) => None,
    }
}

/// More pods, once no volume is left that must not come back.
fn grow(seen: &Seen, pods_wanted: u32, target: u32) -> (u32, Step) {
    let in_the_way = (pods_wanted..target).find_map(|ordinal| {
        // Still there from the last time: it would be taken for the new one.
        let leaving = seen.pods.get(&ordinal).is_some_and(|pod| pod.terminating);
        discard(seen, ordinal).or(leaving.then_some(Step::Wait(Waiting::ScalingDown)))
    });
    match in_the_way {
        Some(step) => (pods_wanted, step),
        None => (target, Step::Wait(Waiting::ScalingUp)),
    }
}

/// Fewer pods, once nobody votes who is to go, and everybody who was removed knows it or is marked.
fn shrink(wanted: Wanted, seen: &Seen, pods_wanted: u32, cluster: &Cluster) -> (u32, Step) {
    let leaving = |ordinal: u32| ordinal >= wanted.replicas;
    let votes_still = cluster.members.iter().any(|member| leaving(member.ordinal));
    let is_known = |retired: &Retired| {
        let volume = seen.volumes.get(&retired.ordinal);
        let gone = volume.is_none_or(|volume| volume.terminating || volume.retired.is_some());
        // Another disk has its name: the one that was removed is gone.
        let other = seen
            .brokers
            .get(&retired.ordinal)
            .is_some_and(|broker| broker.node.is_some_and(|node| node != retired.node));
        retired.confirmed || gone || other
    };
    let all_known = cluster.retired.iter().filter(|retired| leaving(retired.ordinal)).all(is_known);
    if votes_still || !cluster.settled || !all_known {
        return (pods_wanted, Step::Wait(Waiting::ScalingDown));
    }
    (wanted.replicas, Step::Wait(Waiting::ScalingDown))
}

/// Volumes of those who were scaled away, where that is wanted.
fn discard_scaled(wanted: Wanted, seen: &Seen, cluster: &Cluster) -> Option<Step> {
    let mut left = seen.volumes.iter().filter(|(ordinal, volume)| {
        let in_use = seen.pods.contains_key(ordinal) || seen.brokers.contains_key(ordinal);
        **ordinal >= wanted.replicas && !volume.terminating && !in_use && !cluster.is_member(**ordinal)
    });
    let (ordinal, volume) = left.next().filter(|_| wanted.discards_scaled)?;
    Some(Step::DiscardVolume { ordinal: *ordinal, uid: volume.uid.clone() })
}

/// The next pod of an old revision, the leader last; `None` once all pods are of the new one.
fn roll(wanted: Wanted, seen: &Seen, cluster: &Cluster) -> Option<Step> {
    // A pod on a node that does not answer goes away when the node does: the others do not wait for it.
    let old: Vec<(u32, &Pod)> = outdated(seen).filter(|(_, pod)| !(pod.terminating && pod.unreachable)).collect();
    if old.is_empty() {
        return None;
    }
    if !wanted.restarts {
        return Some(Step::Wait(Waiting::Held));
    }
    let restart = |(ordinal, pod): (u32, &Pod)| Step::RestartPod { ordinal, uid: pod.uid.clone() };
    if let Some(dead) = old.iter().find(|(ordinal, pod)| is_dead(seen, *ordinal, pod)) {
        return Some(restart(*dead));
    }
    if in_flight(wanted, seen, &old) {
        return Some(Step::Wait(Waiting::Rolling));
    }
    let votes = |ordinal: u32| cluster.members.iter().any(|member| member.ordinal == ordinal && member.votes);
    if let Some(idle) = old.iter().rev().find(|(ordinal, _)| !votes(*ordinal)) {
        return Some(restart(*idle));
    }
    if !cluster.settled {
        return Some(Step::Wait(Waiting::CatchingUp));
    }
    let may_stop = |ordinal: u32| cluster.members.iter().any(|member| member.ordinal == ordinal && member.may_stop);
    match old.iter().rev().find(|(ordinal, _)| *ordinal != cluster.leader) {
        Some(follower) if may_stop(follower.0) => Some(restart(*follower)),
        Some(_) => Some(Step::Wait(Waiting::CatchingUp)),
        None if wanted.replicas == 1 => old.first().map(|leader| restart(*leader)),
        None if may_stop(cluster.leader) => Some(Step::Handover { from: cluster.leader }),
        None => Some(Step::Wait(Waiting::CatchingUp)),
    }
}

/// Whether a pod is missing, on its way, or new and not ready yet.
fn in_flight(wanted: Wanted, seen: &Seen, old: &[(u32, &Pod)]) -> bool {
    (0..wanted.replicas).any(|ordinal| match seen.pods.get(&ordinal) {
        None => true,
        Some(pod) if pod.unreachable => false,
        // One of the old that is not ready is what the roll may be for.
        Some(pod) => pod.terminating || (!pod.ready && old.iter().all(|(old, _)| *old != ordinal)),
    })
}

/// Nothing is to be done; whether all is well.
fn rest(seen: &Seen, cluster: &Cluster) -> Step {
    if seen.update_revision.is_none() {
        // Every pod may be of an old one.
        return Step::Wait(Waiting::Revision);
    }
    let pods_wanted = seen.pods_wanted.unwrap_or_default();
    let well = |ordinal| seen.pods.get(&ordinal).is_some_and(|pod| pod.ready && !pod.terminating);
    if !cluster.settled || cluster.members.iter().any(|member| !member.votes || !member.caught_up) {
        return Step::Wait(Waiting::Members);
    }
    if !(0..pods_wanted).all(well) { Step::Wait(Waiting::Pod) } else { Step::Settled }
}

#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;
