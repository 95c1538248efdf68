//! Random schedules: the planner against a world of pods, volumes and disks in which everything happens at the wrong
//! moment. What the operator sees of Kubernetes is up to a while old, it dies between any two calls, pods are lost, disks
//! are lost, nodes go dark, and people change their minds, or what is not theirs to change.
//!
//! Held at every moment: a cluster is founded once; no pod is restarted by the operator's hand while a majority without it
//! is not caught up, or while another that it restarted is not back; no volume is discarded whose member votes; removed
//! members never find themselves in a majority of the past. And once everybody leaves it alone, it settles as asked.
//!
//! Environment: `PLANNER_SEEDS` (how many; default 1500, in some 15 s), `PLANNER_SEED` (one, told step by step).

use std::collections::VecDeque;

use rand::{RngExt as _, SeedableRng as _, rngs::SmallRng};

use super::*;

const NAMES: u32 = 7;

/// Seeds that once found something, which are run first and for ever: members were set while their pods were about to go;
/// two pods were restarted at once by what two caches of different age said; a mark outlived what it was for, and the volume
/// of a voter was discarded; data were given up for lost that lay on volumes without a pod; a marked volume was in the way of
/// those with the data.
const KNOWN: [u64; 5] = [4_232_141_981, 3_786_025_053, 1_286_120_572, 1_286_120_442, 3_084_382_062];

/// A disk: which member it is, of which cluster, and who voted when it last heard.
#[derive(Clone, Debug, Default)]
struct Disk {
    node: u64,
    cluster: bool,
    /// The voters that it knows of, with their ordinals.
    config: BTreeMap<u64, u32>,
    /// How much of the log it has: nobody votes for one who has less.
    position: u64,
    /// It has written down that it was removed.
    retired: bool,
}

#[derive(Clone, Debug)]
struct ModelPod {
    pod: Pod,
    /// Moments until it has started, or is gone.
    left: u32,
    /// Restarted by the operator, and not ready since.
    ours: bool,
}

#[derive(Clone, Debug, Default)]
struct Kubernetes {
    record: Record,
    pods_wanted: Option<u32>,
    revision: u32,
    pods: BTreeMap<u32, ModelPodSeen>,
    volumes: BTreeMap<u32, Volume>,
}

/// What a cache has of a pod.
type ModelPodSeen = Pod;

struct World {
    random: SmallRng,
    wanted: Wanted,
    revision: u32,
    record: Record,
    pods_wanted: Option<u32>,
    /// Pods stay that have no StatefulSet.
    orphans: bool,
    pods: BTreeMap<u32, ModelPod>,
    volumes: BTreeMap<u32, (Volume, Disk)>,
    /// The truth about the cluster, once founded.
    generation: u64,
    shape: BTreeSet<u32>,
    /// By node id: ordinal, votes, caught up.
    members: BTreeMap<u64, (u32, bool, bool)>,
    retired: Vec<Retired>,
    leader: Option<u64>,
    founded: bool,
    position: u64,
    next_id: u64,
    past: VecDeque<Kubernetes>,
    trace: bool,
}

impl World {
    fn new(seed: u64, trace: bool) -> Self {
        let mut random = SmallRng::seed_from_u64(seed);
        let replicas = [1, 3, 5][random.random_range(0..3)];
        let wanted = Wanted { replicas, restarts: true, ephemeral: false, discards_scaled: random.random() };
        Self {
            random,
            wanted,
            revision: 1,
            record: Record::default(),
            pods_wanted: None,
            orphans: false,
            pods: BTreeMap::new(),
            volumes: BTreeMap::new(),
            generation: 0,
            shape: BTreeSet::new(),
            members: BTreeMap::new(),
            retired: Vec::new(),
            leader: None,
            founded: false,
            position: 0,
            next_id: 1,
            past: VecDeque::new(),
            trace,
        }
    }

    fn tell(&self, what: impl FnOnce() -> String) {
        if self.trace {
            println!("{}", what());
        }
    }

    fn chance(&mut self, of: u32, in_all: u32) -> bool {
        self.random.random_range(0..in_all) < of
    }

    fn id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    /// The disk of a broker that runs.
    fn disk(&self, ordinal: u32) -> Option<&Disk> {
        let up = self.pods.get(&ordinal).is_some_and(|pod| pod.pod.running && !pod.pod.unreachable);
        up.then(|| &self.volumes[&ordinal].1)
    }

    fn is_up(&self, node: u64) -> bool {
        self.members
            .get(&node)
            .is_some_and(|(ordinal, ..)| self.disk(*ordinal).is_some_and(|disk| disk.node == node && !disk.retired))
    }

    fn voters(&self) -> Vec<u64> {
        self.members.iter().filter(|(_, (_, votes, _))| *votes).map(|(node, _)| *node).collect()
    }

    /// Whether a majority of voters, without these, is up and caught up.
    fn majority_without(&self, without: &[u64]) -> bool {
        let voters = self.voters();
        let well = voters.iter().filter(|node| !without.contains(node) && self.is_up(**node) && self.members[*node].2);
        well.count() > voters.len() / 2
    }

    /// Whether a majority of those who stay is up and caught up.
    fn can_do_without(&self, leaving: Option<u64>) -> bool {
        let staying: Vec<u64> = self.voters().into_iter().filter(|node| Some(*node) != leaving).collect();
        let well = staying.iter().filter(|node| self.is_up(**node) && self.members[node].2);
        well.count() > staying.len() / 2
    }

    // ---- what happens by itself ----

    fn kubernetes(&mut self) {
        // Without a StatefulSet its pods go.
        let replicas = self.pods_wanted.unwrap_or(if self.orphans { NAMES } else { 0 });
        for ordinal in 0..self.pods_wanted.unwrap_or(0) {
            let volume_leaves = self.volumes.get(&ordinal).is_some_and(|(volume, _)| volume.terminating);
            if !self.pods.contains_key(&ordinal) && !volume_leaves && self.chance(1, 2) {
                if !self.volumes.contains_key(&ordinal) {
                    let uid = self.id().to_string();
                    self.volumes.insert(ordinal, (Volume { uid, ..Volume::default() }, Disk::default()));
                }
                let (uid, revision) = (self.id().to_string(), self.revision.to_string());
                let pod = Pod { uid, revision: Some(revision), ..Pod::default() };
                let left = self.random.random_range(0..4);
                self.pods.insert(ordinal, ModelPod { pod, left, ours: false });
            }
        }
        for ordinal in replicas..NAMES {
            if let Some(pod) = self.pods.get_mut(&ordinal)
                && !pod.pod.terminating
            {
                pod.pod.terminating = true;
                pod.left = 2;
            }
        }
        let ordinals: Vec<u32> = self.pods.keys().copied().collect();
        for ordinal in ordinals {
            self.age(ordinal);
        }
        let used: BTreeSet<u32> = self.pods.keys().copied().collect();
        self.volumes.retain(|ordinal, (volume, _)| !volume.terminating || used.contains(ordinal));
    }

    fn age(&mut self, ordinal: u32) {
        let pod = self.pods.get_mut(&ordinal).unwrap();
        if pod.pod.unreachable {
            return;
        }
        if pod.left > 0 {
            pod.left -= 1;
            return;
        }
        if pod.pod.terminating {
            self.pods.remove(&ordinal);
            return;
        }
        pod.pod.running = true;
        let empty = self.volumes[&ordinal].1.node == 0;
        if empty || self.volumes[&ordinal].1.retired {
            let node = self.id();
            self.volumes.get_mut(&ordinal).unwrap().1 = Disk { node, ..Disk::default() };
        }
        let node = self.volumes[&ordinal].1.node;
        // Ready means caught up once since it started; without a cluster that can wait for ever.
        let caught_up = self.members.get(&node).is_some_and(|(_, _, caught_up)| *caught_up);
        let pod = self.pods.get_mut(&ordinal).unwrap();
        if caught_up && self.leader.is_some() {
            pod.pod.ready = true;
            pod.ours = false;
        }
    }

    fn raft(&mut self) {
        if !self.founded {
            return;
        }
        // Who is away falls behind, and has to catch up.
        let nodes: Vec<u64> = self.members.keys().copied().collect();
        for node in &nodes {
            if !self.is_up(*node) {
                self.members.get_mut(node).unwrap().2 = false;
            }
        }
        let voters = self.voters();
        // Acknowledged writes are on a majority; any majority of disks can elect.
        let up = voters.iter().filter(|node| self.is_up(**node)).count();
        let elects = up > voters.len() / 2;
        if self.leader.is_none_or(|leader| !self.is_up(leader) || !voters.contains(&leader)) || !elects {
            self.leader = elects.then(|| *voters.iter().find(|node| self.is_up(**node)).unwrap());
        }
        let Some(leader) = self.leader else { return };
        for node in nodes {
            if self.is_up(node) && (node == leader || self.chance(1, 3)) {
                self.members.get_mut(&node).unwrap().2 = true;
            }
        }
        self.steward();
        self.spread_config();
        for index in 0..self.retired.len() {
            let Retired { ordinal, node, confirmed } = self.retired[index];
            let there = self.disk(ordinal).is_some_and(|disk| disk.node == node);
            if !confirmed && there && self.chance(1, 2) {
                self.volumes.get_mut(&ordinal).unwrap().1.retired = true;
                self.retired[index].confirmed = true;
                // It ends, and begins anew as another.
                let pod = self.pods.get_mut(&ordinal).unwrap();
                (pod.pod.running, pod.pod.ready, pod.left) = (false, false, 1);
            }
        }
    }

    /// One change at a time, as the leader makes them.
    fn steward(&mut self) {
        let named = |ordinal: u32| self.members.iter().filter(move |(_, (own, ..))| *own == ordinal);
        // Learners for those who are wanted and not members.
        let mut adds = None;
        for ordinal in &self.shape {
            if let Some(disk) = self.disk(*ordinal)
                && !disk.cluster
                && !disk.retired
                && !self.members.contains_key(&disk.node)
            {
                adds = Some((*ordinal, disk.node));
            }
        }
        if let Some((ordinal, node)) = adds {
            self.members.insert(node, (ordinal, false, false));
            let disk = &mut self.volumes.get_mut(&ordinal).unwrap().1;
            disk.cluster = true;
            return;
        }
        // One whose disk was lost before it voted.
        let other_disk = |ordinal: u32, node: u64| self.disk(ordinal).is_some_and(|disk| disk.node != node);
        let lost = self.members.iter().find(|(node, (ordinal, votes, _))| !votes && other_disk(*ordinal, **node));
        if let Some(node) = lost.map(|(node, _)| *node) {
            self.remove(node);
            return;
        }
        let learner = self
            .members
            .iter()
            .find(|(_, (ordinal, votes, caught_up))| !votes && *caught_up && self.shape.contains(ordinal));
        if let Some((node, (ordinal, ..))) = learner.map(|(node, member)| (*node, *member)) {
            let old = named(ordinal).find(|(other, (_, votes, _))| **other != node && *votes).map(|(other, _)| *other);
            if self.can_do_without(old) {
                self.members.get_mut(&node).unwrap().1 = true;
                if let Some(old) = old {
                    self.remove(old);
                }
                return;
            }
        }
        let unwanted = self.members.iter().filter(|(node, (ordinal, ..))| {
            !self.shape.contains(ordinal) && (self.leader == Some(**node) || self.can_do_without(Some(**node)))
        });
        // Those who are away first: the others are needed for it.
        let unwanted = unwanted.map(|(node, _)| *node).min_by_key(|node| self.is_up(*node));
        let complete = self.shape.iter().all(|ordinal| named(*ordinal).any(|(_, (_, votes, _))| *votes));
        if let Some(node) = unwanted.filter(|_| complete) {
            if self.leader == Some(node) {
                let voters = self.voters();
                let next = voters.into_iter().find(|other| {
                    *other != node
                        && self.is_up(*other)
                        && self.members[other].2
                        && self.shape.contains(&self.members[other].0)
                });
                self.leader = next.or(self.leader);
            } else if self.can_do_without(Some(node)) {
                self.remove(node);
            }
        }
    }

    fn remove(&mut self, node: u64) {
        let (ordinal, ..) = self.members.remove(&node).unwrap();
        self.retired.push(Retired { ordinal, node, confirmed: false });
    }

    fn spread_config(&mut self) {
        let config: BTreeMap<u64, u32> = self.voters().into_iter().map(|node| (node, self.members[&node].0)).collect();
        let up: Vec<u64> = self.members.keys().copied().filter(|node| self.is_up(*node)).collect();
        self.position += 1;
        for node in up {
            let ordinal = self.members[&node].0;
            let disk = &mut self.volumes.get_mut(&ordinal).unwrap().1;
            (disk.config, disk.position) = (config.clone(), self.position);
        }
    }

    /// A majority of the past that elects a leader beside the real one.
    fn ghosts(&self) -> Option<Vec<u64>> {
        let up: Vec<&Disk> = (0..NAMES).filter_map(|ordinal| self.disk(ordinal)).collect();
        let ghosts = up.iter().filter(|disk| disk.cluster && !disk.retired && !self.members.contains_key(&disk.node));
        let ghosts: Vec<_> = ghosts.collect();
        let of_a_majority = ghosts.iter().find(|ghost| {
            let votes = |other: &&&&Disk| ghost.config.contains_key(&other.node) && other.position <= ghost.position;
            ghosts.iter().filter(votes).count() > ghost.config.len() / 2
        });
        of_a_majority.map(|_| ghosts.iter().map(|ghost| ghost.node).collect())
    }

    // ---- what happens to it ----

    fn chaos(&mut self) {
        match self.random.random_range(0..60) {
            0 => {
                self.wanted.replicas = [1, 3, 5, 7][self.random.random_range(0..4)];
                self.tell(|| format!("wanted: {} replicas", self.wanted.replicas));
            }
            1 => {
                self.revision += 1;
                self.tell(|| format!("wanted: revision {}", self.revision));
            }
            2 => self.wanted.restarts = !self.wanted.restarts,
            3..6 => {
                // A process dies, or a pod is evicted.
                let ordinal = self.random.random_range(0..NAMES);
                if let Some(pod) = self.pods.get_mut(&ordinal) {
                    (pod.pod.running, pod.pod.ready, pod.left) = (false, false, 2);
                    self.tell(|| format!("pod {ordinal} dies"));
                }
            }
            6 => {
                // A disk is lost, if the rest can do without.
                let ordinal = self.random.random_range(0..NAMES);
                let Some((_, disk)) = self.volumes.get(&ordinal) else { return };
                let node = disk.node;
                let whole =
                    self.voters().iter().all(|voter| *voter == node || (self.is_up(*voter) && self.members[voter].2));
                let voters = self.voters();
                let enough = !voters.contains(&node) || voters.len() - 1 > voters.len() / 2;
                if whole && enough {
                    self.tell(|| format!("disk {ordinal} is lost"));
                    let uid = self.id().to_string();
                    self.volumes.insert(ordinal, (Volume { uid, ..Volume::default() }, Disk::default()));
                    if let Some(pod) = self.pods.get_mut(&ordinal) {
                        (pod.pod.running, pod.pod.ready, pod.left) = (false, false, 2);
                    }
                }
            }
            7 => {
                let ordinal = self.random.random_range(0..NAMES);
                if let Some(pod) = self.pods.get_mut(&ordinal) {
                    pod.pod.unreachable = true;
                    pod.pod.ready = false;
                    self.tell(|| format!("node of {ordinal} goes dark"));
                }
            }
            8..12 => self.light(),
            12 if self.founded => {
                // The object is deleted and made again over its volumes, when nothing is under way.
                self.record = Record::default();
                self.tell(|| "the status is lost".into());
            }
            13 => {
                // Somebody takes pods away. (Not: adds some. That could start a volume before it is discarded.)
                let Some(pods) = self.pods_wanted else { return };
                self.pods_wanted = Some(self.random.random_range(0..=pods));
                self.tell(|| format!("by hand: {:?} pods instead of {pods}", self.pods_wanted));
            }
            14 => {
                self.pods_wanted = None;
                self.orphans = self.random.random();
                self.tell(|| format!("by hand: the StatefulSet is deleted, its pods stay: {}", self.orphans));
            }
            _ => {}
        }
    }

    /// All nodes answer again.
    fn light(&mut self) {
        self.pods.values_mut().for_each(|pod| pod.pod.unreachable = false);
    }

    // ---- the operator ----

    fn kubernetes_now(&self) -> Kubernetes {
        Kubernetes {
            record: self.record.clone(),
            pods_wanted: self.pods_wanted,
            revision: self.revision,
            pods: self.pods.iter().map(|(ordinal, pod)| (*ordinal, pod.pod.clone())).collect(),
            volumes: self.volumes.iter().map(|(ordinal, (volume, _))| (*ordinal, volume.clone())).collect(),
        }
    }

    fn see(&mut self, stale: bool) -> Seen {
        self.past.push_front(self.kubernetes_now());
        self.past.truncate(6);
        let of = |world: &mut SmallRng| if stale { world.random_range(0..self.past.len()) } else { 0 };
        let mut random = self.random.clone();
        // Each kind has a cache of its own; the object itself is read with its StatefulSet.
        let (base, pods, volumes) = (of(&mut random), of(&mut random), of(&mut random));
        self.random = random;
        let base = &self.past[base];
        let brokers = (0..NAMES).filter_map(|ordinal| {
            let disk = self.disk(ordinal)?;
            let cluster_id = disk.cluster.then(|| "c".to_owned());
            let voters = disk.config.values().copied().collect();
            Some((ordinal, Broker { cluster_id, node: Some(disk.node), voters }))
        });
        Seen {
            record: base.record.clone(),
            adopted: None,
            pods_wanted: base.pods_wanted,
            update_revision: base.pods_wanted.map(|_| base.revision.to_string()),
            pods: self.past[pods].pods.clone(),
            volumes: self.past[volumes].volumes.clone(),
            brokers: brokers.collect(),
            cluster: self.leader.filter(|_| self.founded).map(|leader| self.cluster(leader)),
        }
    }

    fn cluster(&self, leader: u64) -> Cluster {
        let settled = self.members.iter().all(|(_, (ordinal, votes, _))| *votes && self.shape.contains(ordinal))
            && self.members.len() == self.shape.len();
        let members = self.members.iter().map(|(node, (ordinal, votes, caught_up))| Member {
            ordinal: *ordinal,
            node: *node,
            votes: *votes,
            caught_up: *caught_up,
            may_stop: self.majority_without(&[*node]),
        });
        Cluster {
            leader: self.members[&leader].0,
            generation: self.generation,
            shape: Some(self.shape.clone()),
            settled,
            members: members.collect(),
            retired: self.retired.clone(),
        }
    }

    fn operate(&mut self, stale: bool) -> Result<Step, String> {
        let mut seen = self.see(stale);
        let mut plan = super::plan(self.wanted, &seen);
        if plan.is_disruptive(&seen) {
            seen = self.see(false);
            plan = super::plan(self.wanted, &seen);
        }
        self.tell(|| format!("{plan:?}\n    of {seen:?}"));
        // It may die before any call.
        if stale && self.chance(1, 8) {
            return Ok(plan.step);
        }
        self.apply_replicas(&seen, plan.replicas)?;
        if stale && self.chance(1, 8) {
            return Ok(plan.step);
        }
        let record = self.act(&seen, &plan.step)?.unwrap_or(plan.record);
        if stale && self.chance(1, 8) {
            return Ok(plan.step);
        }
        self.record = Record { bootstrapped: self.record.bootstrapped || record.bootstrapped, ..record };
        Ok(plan.step)
    }

    fn apply_replicas(&mut self, seen: &Seen, replicas: u32) -> Result<(), String> {
        // Applied with the version that was seen: what was changed since is not overwritten.
        if seen.pods_wanted != self.pods_wanted {
            return Ok(());
        }
        // Orphans are the new one's, and go if they are too many.
        let goes = |ordinal: u32| match self.pods_wanted {
            Some(before) => (replicas..before).contains(&ordinal),
            None => ordinal >= replicas && self.pods.get(&ordinal).is_some_and(|pod| !pod.pod.terminating),
        };
        for (node, (ordinal, votes, _)) in &self.members {
            if *votes && goes(*ordinal) {
                return Err(format!("pod {ordinal} goes, and its member {node:x} votes"));
            }
        }
        self.pods_wanted = Some(replicas);
        Ok(())
    }

    fn act(&mut self, seen: &Seen, step: &Step) -> Result<Option<Record>, String> {
        match step {
            Step::Settled | Step::Wait(_) => {}
            // A marked volume is in the way of others, and may be all that is left: a person decides, by asking for all.
            Step::Stalled(Stall::DataMissing) if self.wanted.replicas < NAMES && is_any_marked(seen) => {
                self.wanted.replicas = NAMES;
                self.tell(|| "a person asks for all replicas".into());
            }
            Step::Stalled(stall) => return Err(format!("stalled: {stall:?}")),
            Step::Found { ordinal, again } => {
                // The broker asks the others that it can reach, and what has a cluster refuses.
                let knows = (0..NAMES).any(|other| self.disk(other).is_some_and(|disk| disk.cluster));
                if knows || self.record.bootstrapped {
                    return Ok(None);
                }
                if self.founded || *again {
                    return Err("founded twice".into());
                }
                let Some(node) = self.disk(*ordinal).map(|disk| disk.node) else { return Ok(None) };
                self.founded = true;
                self.shape = [*ordinal].into();
                self.generation = 1;
                self.members.insert(node, (*ordinal, true, true));
                self.volumes.get_mut(ordinal).unwrap().1.cluster = true;
                return Ok(Some(Record { bootstrapped: true, cluster_id: Some("c".into()) }));
            }
            Step::SetMembers { generation, members } => {
                if *generation == self.generation && self.leader.is_some() {
                    self.generation += 1;
                    self.shape.clone_from(members);
                }
            }
            Step::Handover { .. } => {
                let leader = self.leader;
                let next = self
                    .voters()
                    .into_iter()
                    .find(|node| Some(*node) != leader && self.is_up(*node) && self.members[node].2);
                self.leader = next.or(leader);
            }
            Step::RestartPod { ordinal, .. } => return self.restart(*ordinal, &seen.pods[ordinal]).map(|()| None),
            Step::MarkRetired { ordinal, uid, node } => {
                if let Some((volume, _)) = self.volumes.get_mut(ordinal).filter(|(volume, _)| volume.uid == *uid) {
                    volume.retired = Some(*node);
                }
            }
            Step::Unmark { ordinal, uid } => {
                if let Some((volume, _)) = self.volumes.get_mut(ordinal).filter(|(volume, _)| volume.uid == *uid) {
                    volume.retired = None;
                }
            }
            Step::DiscardVolume { ordinal, uid } => {
                if let Some((volume, disk)) = self.volumes.get_mut(ordinal).filter(|(volume, _)| volume.uid == *uid) {
                    if self.members.get(&disk.node).is_some_and(|(_, votes, _)| *votes) {
                        return Err(format!("the volume of {ordinal} is discarded, and its member votes"));
                    }
                    volume.terminating = true;
                }
            }
        }
        Ok(None)
    }

    /// Refused by the API server if the pod is not as it was seen.
    fn restart(&mut self, ordinal: u32, seen: &Pod) -> Result<(), String> {
        let Some(pod) = self.pods.get(&ordinal).filter(|pod| pod.pod == *seen && !pod.pod.terminating) else {
            return Ok(());
        };
        if pod.pod.running && !pod.pod.unreachable {
            let node = self.volumes[&ordinal].1.node;
            let votes = self.members.get(&node).is_some_and(|(_, votes, _)| *votes);
            if votes && self.voters().len() > 1 && !self.majority_without(&[node]) {
                return Err(format!("pod {ordinal} is restarted below a majority"));
            }
            let others = self.pods.iter().filter(|(other, pod)| **other != ordinal && pod.ours && !pod.pod.unreachable);
            let others: Vec<_> = others.map(|(other, _)| *other).collect();
            if !others.is_empty() {
                return Err(format!("pod {ordinal} is restarted while {others:?} are not back"));
            }
        }
        let pod = self.pods.get_mut(&ordinal).unwrap();
        (pod.pod.terminating, pod.left, pod.ours) = (true, 1, true);
        Ok(())
    }

    fn is_as_asked(&self) -> Result<(), String> {
        let target: BTreeSet<u32> = (0..self.wanted.replicas).collect();
        let voters: BTreeSet<u32> = self.voters().iter().map(|node| self.members[node].0).collect();
        if voters != target || self.members.len() != target.len() {
            return Err(format!("{:?} are members, {target:?} should vote", self.members));
        }
        if self.pods_wanted != Some(self.wanted.replicas) {
            return Err(format!("{:?} pods", self.pods_wanted));
        }
        let update = self.revision.to_string();
        let current = |pod: &ModelPod| pod.pod.revision.as_ref() == Some(&update) || !self.wanted.restarts;
        if !self.pods.values().all(|pod| pod.pod.ready && current(pod)) {
            return Err(format!("pods {:?}", self.pods));
        }
        let left = self.volumes.keys().any(|ordinal| *ordinal >= self.wanted.replicas);
        if left && self.wanted.discards_scaled { Err("volumes are left".into()) } else { Ok(()) }
    }

    fn live(&mut self) -> Result<(), String> {
        for moment in 0..260 {
            self.chaos();
            self.kubernetes();
            self.raft();
            if let Some(ghosts) = self.ghosts() {
                return Err(format!("at {moment}: the removed members {ghosts:x?} elect a leader of their own"));
            }
            if self.chance(2, 3) {
                self.operate(true).map_err(|what| format!("at {moment}: {what}"))?;
            }
        }
        self.light();
        self.tell(|| "-- left alone --".into());
        let mut last = None;
        for _ in 0..600 {
            self.kubernetes();
            self.raft();
            let step = self.operate(false)?;
            if let Some(ghosts) = self.ghosts() {
                return Err(format!("left alone: the removed members {ghosts:x?} elect a leader of their own"));
            }
            let rests = step == Step::Settled || step == Step::Wait(Waiting::Held);
            if rests && self.is_as_asked().is_ok() {
                return Ok(());
            }
            last = Some(step);
        }
        Err(format!("does not settle: {last:?}, {:?}", self.is_as_asked()))
    }
}

fn is_any_marked(seen: &Seen) -> bool {
    seen.volumes.values().any(|volume| volume.retired.is_some())
}

fn from_environment(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[test]
fn the_rules_hold_and_everything_settles_whatever_happens() {
    let first: u64 = rand::random::<u32>().into();
    let (seeds, trace) = match from_environment("PLANNER_SEED") {
        Some(seed) => (seed..seed + 1, true),
        None => (first..first + from_environment("PLANNER_SEEDS").unwrap_or(1500), false),
    };
    println!("seeds {seeds:?}");
    let known = KNOWN.into_iter().filter(|_| !trace);
    let broken = known.chain(seeds).filter_map(|seed| Some((seed, World::new(seed, trace).live().err()?)));
    let broken: Vec<_> = broken.take(3).collect();
    assert!(broken.is_empty(), "{broken:#?}\nagain, step by step: PLANNER_SEED=…");
}
