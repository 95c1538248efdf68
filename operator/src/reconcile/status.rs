//! What people are told: computed once, from what was seen and done, and written once, only if it has changed.
//!
//! `compute` and `news` are pure. Not here: what is done about it (`plan`).

mod conditions;

use std::collections::BTreeSet;

use databroker_proto::internal::StatusReply;
use jiff::Timestamp;
use k8s_openapi::{api::core::v1::Pod, apimachinery::pkg::apis::meta::v1::Time};
use kube::ResourceExt as _;

use self::conditions::{Verdict, conditions, date, verdict};
use super::{
    apply::{self, Done},
    observe::{Answers, There, itself},
    plan::{Plan, Seen, Step, Waiting},
    validate::{Invalid, Valid},
};
use crate::{
    api::status::{
        Certificates, ConditionType, DatabrokerStatus, Endpoints, Failover, FailoverReason, Lag, Leader, Member,
        MemberRole, Quorum, Reason,
    },
    resources::{meta, pod},
};

/// What a visit has found and done.
pub struct Visit<'a> {
    /// What is wanted.
    pub valid: &'a Valid,
    /// What Kubernetes has.
    pub there: &'a There,
    /// What brokers say.
    pub answers: &'a Answers,
    /// Both, as the planner saw it.
    pub seen: &'a Seen,
    /// What it made of it.
    pub plan: &'a Plan,
    /// What was done.
    pub done: &'a Done,
    /// When the first certificate ends.
    pub not_after: Option<Timestamp>,
    /// What could not be done.
    pub failure: Option<Failure>,
}

/// What could not be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// A word for programs.
    pub reason: Reason,
    /// For people.
    pub message: String,
}

impl Failure {
    /// What an error says.
    pub fn new(error: &apply::Error) -> Self {
        let reason = match error {
            apply::Error::SecretMissing { .. } => Reason::SecretMissing,
            _ => Reason::ApplyFailed,
        };
        Self { reason, message: error.to_string() }
    }
}

/// The status after a visit.
pub fn compute(visit: &Visit<'_>, old: Option<&DatabrokerStatus>, now: Timestamp) -> DatabrokerStatus {
    let Visit { valid, there, seen, plan, done, .. } = visit;
    let set = there.statefulset.as_ref().and_then(|set| set.status.as_ref());
    let old = old.cloned().unwrap_or_default();
    let update = seen.update_revision.clone().or(old.update_revision.clone());
    let updated = there.pods.values().filter(|pod| revision(pod) == update.as_deref() && update.is_some());
    let leader = leader(visit, &old, now);
    let cluster_id = done.founded.clone().or_else(|| plan.record.cluster_id.clone()).or(old.cluster_id.clone());
    DatabrokerStatus {
        observed_generation: Some(valid.generation),
        conditions: date(conditions(visit, now), &old.conditions, valid.generation, now),
        replicas: i32::try_from(there.pods.len()).unwrap_or(i32::MAX),
        ready_replicas: set.and_then(|set| set.ready_replicas).unwrap_or_default(),
        updated_replicas: i32::try_from(updated.count()).unwrap_or(i32::MAX),
        selector: meta::selector_text(&valid.name),
        image: valid.remembered_image.clone(),
        bootstrapped: old.bootstrapped || plan.record.bootstrapped || done.founded.is_some(),
        cluster_id,
        last_leader: leader.as_ref().map(|leader| leader.member.clone()).or_else(|| old.last_leader.clone()),
        last_failover: failover(&old, leader.as_ref(), visit, now)
            .or(old.last_failover)
            .map(|failover| understood(failover, leader.as_ref(), visit)),
        leader,
        quorum: quorum(visit),
        members: members(visit),
        current_revision: set.and_then(|set| set.current_revision.clone()),
        update_revision: update,
        version: version(visit.answers).or(old.version),
        // One that is missing is made anew: until it is there, the condition says so.
        certificates: visit.not_after.map(|at| Certificates { not_after: Some(Time(at)) }).or(old.certificates),
        endpoints: Some(endpoints(valid)),
    }
}

/// The status of an object that cannot be built.
pub fn refused(generation: i64, invalid: &Invalid, old: Option<&DatabrokerStatus>, now: Timestamp) -> DatabrokerStatus {
    let old = old.cloned().unwrap_or_default();
    let verdicts = ConditionType::ALL.map(|kind| {
        let verdict = match kind {
            ConditionType::Ready | ConditionType::Reconciling => {
                verdict(false, Reason::InvalidSpec, invalid.to_string())
            }
            ConditionType::Stalled => verdict(true, Reason::InvalidSpec, invalid.to_string()),
            _ => Verdict { holds: None, reason: Reason::InvalidSpec, message: "the spec cannot be used".into() },
        };
        (kind, verdict)
    });
    let conditions = date(verdicts.into(), &old.conditions, generation, now);
    DatabrokerStatus { observed_generation: Some(generation), conditions, ..old }
}

fn revision(pod: &Pod) -> Option<&str> {
    pod.labels().get("controller-revision-hash").map(String::as_str)
}

fn version(answers: &Answers) -> Option<String> {
    let versions: BTreeSet<&str> = answers
        .values()
        .filter_map(itself)
        .map(|member| member.version.as_str())
        .filter(|version| !version.is_empty())
        .collect();
    // The oldest: what the whole can do.
    versions.into_iter().next().map(str::to_owned)
}

fn endpoints(valid: &Valid) -> Endpoints {
    let scheme = valid.scheme();
    let (namespace, port) = (&valid.namespace, valid.spec.service.port);
    let url = |service: &str| format!("{scheme}://{service}.{namespace}.svc:{port}");
    Endpoints {
        client: url(&valid.name),
        leader: url(&meta::leader(&valid.name)),
        metrics: format!(":{}/metrics", pod::HTTP_PORT),
    }
}

/// Who leads, by its own word. While nobody does, there is none.
fn leader(visit: &Visit<'_>, old: &DatabrokerStatus, now: Timestamp) -> Option<Leader> {
    let cluster = visit.seen.cluster.as_ref()?;
    let term = visit.answers.get(&cluster.leader).map(|answer| i64::try_from(answer.term).unwrap_or(i64::MAX));
    let (member, term) = (meta::pod(&visit.valid.name, cluster.leader), term.unwrap_or_default());
    let same = old.leader.clone().filter(|leader| leader.member == member && leader.term == term);
    Some(same.unwrap_or(Leader { member, term, since: Some(Time(now)) }))
}

/// A change of leader that was not asked for: not by a handover, and not by a pod that was told to stop.
fn failover(old: &DatabrokerStatus, leader: Option<&Leader>, visit: &Visit<'_>, now: Timestamp) -> Option<Failover> {
    let to = leader?;
    // Remembered over the visits in between, in which nobody leads.
    let from = old.last_leader.clone()?;
    let ordinal = meta::ordinal(&visit.valid.name, &from);
    let asked = ordinal.and_then(|ordinal| visit.seen.pods.get(&ordinal)).is_some_and(|pod| pod.terminating)
        || ordinal.is_some_and(|ordinal| ordinal >= visit.valid.replicas)
        || visit.done.handed_over
        || matches!(visit.plan.step, Step::RestartPod { .. } | Step::Wait(Waiting::Rolling));
    (from != to.member && !asked).then(|| Failover {
        from,
        to: to.member.clone(),
        term: to.term,
        at: Some(Time(now)),
        reason: match ordinal.and_then(|ordinal| visit.seen.pods.get(&ordinal)) {
            Some(pod) if pod.running => FailoverReason::LeaderReplaced,
            _ => FailoverReason::PodNotRunning,
        },
        write_gap_millis: None,
    })
}

/// With what is known of it since. A broker that holds writes tells after it has answered them, so it may be more at a later
/// visit; one that started anew knows nothing, so it is never less. And Kubernetes misses a node later than brokers miss
/// their leader.
fn understood(failover: Failover, leader: Option<&Leader>, visit: &Visit<'_>) -> Failover {
    let of_term =
        |answer: &&StatusReply| answer.write_gap_term > 0 && i64::try_from(answer.write_gap_term) == Ok(failover.term);
    let gaps = visit.answers.values().filter(of_term).map(|answer| answer.write_gap_millis);
    let longest = gaps.max().map(|millis| i64::try_from(millis).unwrap_or(i64::MAX));
    let pod = meta::ordinal(&visit.valid.name, &failover.from).and_then(|ordinal| visit.seen.pods.get(&ordinal));
    let is_last = leader.is_some_and(|leader| leader.term == failover.term);
    let reason = match pod {
        Some(pod) if pod.unreachable && is_last => FailoverReason::NodeUnreachable,
        _ => failover.reason,
    };
    Failover { write_gap_millis: longest.max(failover.write_gap_millis), reason, ..failover }
}

fn quorum(visit: &Visit<'_>) -> Option<Quorum> {
    let cluster = visit.seen.cluster.as_ref()?;
    let count = |number: usize| i32::try_from(number).unwrap_or(i32::MAX);
    let voters: Vec<_> = cluster.members.iter().filter(|member| member.votes).collect();
    let healthy = voters.iter().filter(|member| member.caught_up).count();
    Some(Quorum { voters: count(voters.len()), healthy_voters: count(healthy), required: count(voters.len() / 2 + 1) })
}

fn members(visit: &Visit<'_>) -> Vec<Member> {
    let Visit { valid, there, seen, .. } = visit;
    let ordinals: BTreeSet<u32> = there.pods.keys().copied().chain(0..valid.replicas).collect();
    let member = |ordinal: u32| {
        let pod = there.pods.get(&ordinal);
        let cluster = seen.cluster.as_ref();
        let broker = seen.brokers.get(&ordinal);
        let own = cluster.and_then(|cluster| {
            let named = cluster.members.iter().filter(|member| member.ordinal == ordinal);
            // Of a lost disk that is being replaced there are two: the one that runs.
            named.max_by_key(|member| broker.is_some_and(|broker| broker.node == Some(member.node)))
        });
        let role = match (own, cluster) {
            (Some(_), Some(cluster)) if cluster.leader == ordinal => MemberRole::Leader,
            (Some(member), _) if member.votes => MemberRole::Voter,
            (Some(_), _) => MemberRole::Learner,
            (None, Some(_)) if broker.is_some() => MemberRole::Outside,
            (None, _) if broker.is_some_and(|broker| broker.cluster_id.is_none()) => MemberRole::Outside,
            (None, _) => MemberRole::Unknown,
        };
        let lag = match own {
            Some(member) if member.caught_up => Lag::None,
            Some(_) if broker.is_some() => Lag::Behind,
            _ => Lag::Unknown,
        };
        let node = own.map(|member| member.node).or_else(|| broker?.node);
        Member {
            name: meta::pod(&valid.name, ordinal),
            role,
            ready: seen.pods.get(&ordinal).is_some_and(|pod| pod.ready),
            lag,
            node_id: node.map(|node| format!("{node:016x}")),
            revision: pod.and_then(revision).map(str::to_owned),
            volume_size: there.claims.get(&ordinal).and_then(|claim| {
                let capacity = claim.status.as_ref()?.capacity.as_ref()?.get("storage")?;
                Some(capacity.0.clone())
            }),
        }
    };
    ordinals.into_iter().map(member).collect()
}

/// Whether all pods are there, ready, and of the revision that all are to have.
fn are_all_new(status: &DatabrokerStatus) -> bool {
    let is_new = |member: &Member| member.ready && member.revision == status.update_revision;
    status.update_revision.is_some() && status.members.iter().all(is_new)
}

/// Something that is told once, as an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct News {
    /// A word for programs.
    pub reason: &'static str,
    /// For people.
    pub note: String,
    /// Whether somebody should look.
    pub warning: bool,
}

/// What has changed from one status to the next. `ephemeral`: its records are in memory, and it is founded again if they are
/// lost; any other's cluster changes only if one is adopted.
pub fn news(old: Option<&DatabrokerStatus>, new: &DatabrokerStatus, ephemeral: bool) -> Vec<News> {
    let empty = DatabrokerStatus::default();
    let old = old.unwrap_or(&empty);
    let tell = |reason, note: String, warning| News { reason, note, warning };
    let mut news = Vec::new();
    if new.bootstrapped && !old.bootstrapped {
        news.push(tell("Bootstrapped", format!("cluster {}", new.cluster_id.as_deref().unwrap_or_default()), false));
    }
    if new.bootstrapped && old.bootstrapped && old.cluster_id.is_some() && new.cluster_id != old.cluster_id {
        let cluster = new.cluster_id.as_deref().unwrap_or_default();
        news.push(if ephemeral {
            tell("DataDiscarded", "all records were lost: a new cluster was founded".into(), true)
        } else {
            tell("ClusterAdopted", format!("the cluster is {cluster} now, which was recovered"), false)
        });
    }
    // One is the same while its write gap becomes known.
    let moment =
        |status: &DatabrokerStatus| status.last_failover.as_ref().map(|failover| (failover.at.clone(), failover.term));
    if moment(new) != moment(old)
        && let Some(failover) = &new.last_failover
    {
        news.push(tell("Failover", format!("{} leads in place of {}", failover.to, failover.from), true));
    } else if let (Some(was), Some(is)) = (&old.last_leader, &new.last_leader)
        && was != is
    {
        news.push(tell("LeaderChanged", format!("{is} leads in place of {was}"), false));
    }
    let voting = |status: &DatabrokerStatus| -> BTreeSet<String> {
        let votes = |member: &&Member| matches!(member.role, MemberRole::Leader | MemberRole::Voter);
        status.members.iter().filter(votes).map(|member| member.name.clone()).collect()
    };
    // While nobody leads, nobody is known to vote.
    if new.leader.is_some() && old.leader.is_some() {
        let (was, is) = (voting(old), voting(new));
        news.extend(is.difference(&was).map(|name| tell("MemberAdded", format!("{name} votes"), false)));
        news.extend(was.difference(&is).map(|name| tell("MemberRemoved", format!("{name} votes no more"), false)));
    }
    let says = |status: &DatabrokerStatus, kind: ConditionType, reason: Reason| {
        let mut own = status.conditions.iter().filter(|condition| condition.type_ == kind.to_string());
        own.any(|condition| condition.reason == reason.to_string())
    };
    let moves = |status: &DatabrokerStatus, reason| says(status, ConditionType::Reconciling, reason);
    let (was, is) = (moves(old, Reason::RollingUpdate), moves(new, Reason::RollingUpdate));
    let revision = new.update_revision.as_deref().unwrap_or_default();
    // One that could not go on for a moment was told before.
    if is && !was && !moves(old, Reason::ApplyFailed) {
        news.push(tell("RollStarted", format!("pods are brought to {revision}"), false));
    }
    // One that is paused, or comes to a stop, is not finished.
    if was && !is && are_all_new(new) {
        news.push(tell("RollFinished", format!("all pods are of {revision}"), false));
    }
    let ends = |status: &DatabrokerStatus| status.certificates.as_ref()?.not_after.as_ref().map(|at| at.0);
    if let (Some(was), Some(is)) = (ends(old), ends(new))
        && was < is
    {
        news.push(tell("SecretRotated", format!("certificates were renewed: the first ends at {is}"), false));
    }
    // Once: also when it was not Ready for a while.
    if says(new, ConditionType::Ready, Reason::UpdateAvailable) && says(old, ConditionType::Ready, Reason::AsExpected) {
        let ready = ConditionType::Ready.to_string();
        let message =
            new.conditions.iter().find(|condition| condition.type_ == ready).map(|ready| ready.message.clone());
        news.push(tell("UpdateAvailable", message.unwrap_or_default(), false));
    }
    news
}

#[cfg(test)]
mod tests;
