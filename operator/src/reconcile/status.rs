//! What people are told: computed once, from what was seen and done, and written once, only if it has changed.
//!
//! `compute` and `news` are pure. Not here: what is done about it (`plan`).

use std::collections::BTreeSet;

use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::Pod,
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
};
use kube::ResourceExt as _;

use super::{
    apply::Done,
    observe::{Answers, There, itself},
    plan::{Plan, Seen, Stall, Step, Waiting},
    validate::{Invalid, Valid},
};
use crate::{
    api::status::{
        Certificates, ConditionType, DatabrokerStatus, Endpoints, Failover, Lag, Leader, Member, MemberRole, Quorum,
        Reason,
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
    /// What could not be done, in words.
    pub failure: Option<String>,
}

/// A condition before it is dated.
struct Verdict {
    holds: Option<bool>,
    reason: Reason,
    message: String,
}

fn verdict(holds: bool, reason: Reason, message: impl Into<String>) -> Verdict {
    Verdict { holds: Some(holds), reason, message: message.into() }
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
        conditions: date(conditions(visit), &old.conditions, valid.generation, now),
        replicas: i32::try_from(there.pods.len()).unwrap_or(i32::MAX),
        ready_replicas: set.and_then(|set| set.ready_replicas).unwrap_or_default(),
        updated_replicas: i32::try_from(updated.count()).unwrap_or(i32::MAX),
        selector: meta::selector_text(&valid.name),
        image: valid.remembered_image.clone(),
        bootstrapped: old.bootstrapped || plan.record.bootstrapped || done.founded.is_some(),
        cluster_id,
        last_leader: leader.as_ref().map(|leader| leader.member.clone()).or_else(|| old.last_leader.clone()),
        last_failover: failover(&old, leader.as_ref(), visit, now).or(old.last_failover),
        leader,
        quorum: quorum(visit),
        members: members(visit),
        current_revision: set.and_then(|set| set.current_revision.clone()),
        update_revision: update,
        version: version(visit.answers).or(old.version),
        certificates: visit.not_after.map(|at| Certificates { not_after: Some(Time(at)) }),
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
    let scheme = if valid.has_tls() { "https" } else { "http" };
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
    (from != to.member && !asked).then(|| Failover { from, to: to.member.clone(), at: Some(Time(now)) })
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

fn conditions(visit: &Visit<'_>) -> Vec<(ConditionType, Verdict)> {
    let (available, synced) = (available(visit), synced(visit));
    let (storage, certificates) = (storage(visit), certificates(visit));
    let (reconciling, stalled) = (reconciling(visit), stalled(visit));
    let ready = ready(visit, &[&available, &synced, &storage, &certificates], &reconciling, &stalled);
    let degraded = degraded(visit, &available, &synced);
    vec![
        (ConditionType::Ready, ready),
        (ConditionType::Available, available),
        (ConditionType::Reconciling, reconciling),
        (ConditionType::Stalled, stalled),
        (ConditionType::Degraded, degraded),
        (ConditionType::MembersSynced, synced),
        (ConditionType::StorageReady, storage),
        (ConditionType::CertificatesReady, certificates),
    ]
}

/// The first of what is not as it should be.
fn ready(visit: &Visit<'_>, parts: &[&Verdict], reconciling: &Verdict, stalled: &Verdict) -> Verdict {
    if visit.valid.spec.suspend {
        return verdict(false, Reason::Suspended, "nothing is changed while spec.suspend is set");
    }
    let bad = |part: &&&Verdict| part.holds != Some(true);
    let broken = Some(stalled).filter(|stalled| stalled.holds == Some(true));
    let missing = parts.iter().find(bad).copied();
    let moving = Some(reconciling).filter(|moving| moving.holds == Some(true) && moving.reason != Reason::UpdatePaused);
    match broken.or(missing).or(moving) {
        Some(cause) => verdict(false, cause.reason, cause.message.clone()),
        None => {
            let voters = visit.seen.cluster.as_ref().map_or(0, |cluster| cluster.members.len());
            verdict(true, Reason::AsExpected, format!("{voters} members vote and are caught up"))
        }
    }
}

fn available(visit: &Visit<'_>) -> Verdict {
    let Some(cluster) = &visit.seen.cluster else {
        return without_leader(visit);
    };
    let leader = meta::pod(&visit.valid.name, cluster.leader);
    verdict(true, Reason::AsExpected, format!("{leader} leads"))
}

fn without_leader(visit: &Visit<'_>) -> Verdict {
    if !visit.plan.record.bootstrapped {
        let answered = visit.answers.len();
        let wanted = visit.seen.pods_wanted.unwrap_or(visit.valid.replicas);
        let message = format!("{answered} of {wanted} brokers answer; the cluster is founded once all do");
        return verdict(false, Reason::BrokersStarting, message);
    }
    // By what the brokers that answer knew last of who votes.
    let known = visit.answers.values().map(|answer| {
        use databroker_proto::internal::member_status::Role;
        answer.members.iter().filter(|member| matches!(member.role(), Role::Leader | Role::Voter)).count()
    });
    let voters = known.max().unwrap_or(0).max(1);
    let answer = visit.answers.values().filter(|answer| !answer.cluster_id.is_empty()).count();
    if answer > voters / 2 {
        return verdict(false, Reason::LeaderElectionPending, "a majority answers, and is about to elect a leader");
    }
    let remedy = "bring the missing brokers back; if their disks are gone for good, see `databroker cluster recover`";
    verdict(false, Reason::QuorumLost, format!("{answer} of {voters} voters answer, no majority: {remedy}"))
}

fn synced(visit: &Visit<'_>) -> Verdict {
    let Some(cluster) = &visit.seen.cluster else {
        return Verdict { holds: None, reason: Reason::Unknown, message: "no leader tells".into() };
    };
    let target: BTreeSet<u32> = (0..visit.valid.replicas).collect();
    let voters: BTreeSet<u32> =
        cluster.members.iter().filter(|member| member.votes).map(|member| member.ordinal).collect();
    let names = |ordinals: Vec<u32>| {
        ordinals.into_iter().map(|ordinal| meta::pod(&visit.valid.name, ordinal)).collect::<Vec<_>>().join(", ")
    };
    let missing: Vec<u32> = target.difference(&voters).copied().collect();
    if !missing.is_empty() {
        return verdict(false, Reason::ScalingUp, format!("{} do not vote yet", names(missing)));
    }
    let extra: Vec<u32> = voters.difference(&target).copied().collect();
    if !extra.is_empty() {
        return verdict(false, Reason::ScalingDown, format!("{} still vote", names(extra)));
    }
    let behind: Vec<u32> =
        cluster.members.iter().filter(|member| !member.caught_up).map(|member| member.ordinal).collect();
    if !behind.is_empty() {
        return verdict(false, Reason::CatchingUp, format!("{} are not caught up", names(behind)));
    }
    verdict(true, Reason::AsExpected, "all members vote and are caught up")
}

fn storage(visit: &Visit<'_>) -> Verdict {
    if visit.valid.spec.storage.ephemeral {
        return verdict(true, Reason::AsExpected, "records are in memory");
    }
    let bound = |ordinal: u32| {
        let claim = visit.there.claims.get(&ordinal)?;
        Some(claim.status.as_ref()?.phase.as_deref()? == "Bound")
    };
    let wanted = visit.seen.pods_wanted.unwrap_or(visit.valid.replicas);
    let pending: Vec<String> = (0..wanted)
        .filter(|ordinal| bound(*ordinal) != Some(true))
        .map(|ordinal| meta::claim(&visit.valid.name, ordinal))
        .collect();
    if pending.is_empty() {
        verdict(true, Reason::AsExpected, "all volumes are bound")
    } else {
        verdict(false, Reason::VolumePending, format!("not bound: {}", pending.join(", ")))
    }
}

fn certificates(visit: &Visit<'_>) -> Verdict {
    match visit.not_after {
        Some(at) => verdict(true, Reason::AsExpected, format!("the first ends at {at}, and is renewed before")),
        None => verdict(false, Reason::Creating, "they are being made"),
    }
}

fn reconciling(visit: &Visit<'_>) -> Verdict {
    let moves = |reason, message: &str| verdict(true, reason, message);
    if visit.valid.spec.suspend {
        return verdict(false, Reason::Suspended, "spec.suspend is set");
    }
    if let Some(failure) = &visit.failure {
        return verdict(true, Reason::ApplyFailed, failure.clone());
    }
    match &visit.plan.step {
        Step::Settled => verdict(false, Reason::AsExpected, "nothing is to be done"),
        Step::Stalled(_) => verdict(false, Reason::AsExpected, "nothing can be done without a person"),
        Step::Found { again: false, .. } => moves(Reason::Founding, "the cluster is founded"),
        Step::Found { again: true, .. } => {
            moves(Reason::DataDiscarded, "all records are lost: a new cluster is founded")
        }
        Step::SetMembers { .. } => moves(Reason::ScalingUp, "the members are set"),
        Step::Handover { .. } => moves(Reason::RollingUpdate, "the leader hands over before it is restarted"),
        Step::RestartPod { ordinal, .. } => {
            moves(Reason::RollingUpdate, &format!("{} is restarted", meta::pod(&visit.valid.name, *ordinal)))
        }
        Step::MarkRetired { ordinal, .. } | Step::DiscardVolume { ordinal, .. } => moves(
            Reason::ScalingDown,
            &format!("the volume of {} is dealt with", meta::pod(&visit.valid.name, *ordinal)),
        ),
        Step::Wait(waiting) => wait(visit, *waiting),
    }
}

fn wait(visit: &Visit<'_>, waiting: Waiting) -> Verdict {
    let next = visit.answers.values().map(|answer| answer.next_step.as_str()).find(|next| !next.is_empty());
    let (reason, message) = match waiting {
        Waiting::Creating => (Reason::Creating, "pods and volumes are made"),
        Waiting::Brokers => (Reason::BrokersStarting, "all brokers are to answer first"),
        Waiting::Leader => (Reason::LeaderElectionPending, "nothing can be changed without a leader"),
        Waiting::ScalingUp => (Reason::ScalingUp, "new members are brought up"),
        Waiting::ScalingDown => (Reason::ScalingDown, "members cease to vote before their pods go"),
        Waiting::Rolling => (Reason::RollingUpdate, "a pod that was restarted is to be ready before the next"),
        Waiting::CatchingUp => {
            (Reason::RollingUpdate, "a majority is to be caught up before the next pod is restarted")
        }
        Waiting::Held => (Reason::UpdatePaused, "pods of an old revision stay, as spec.updateStrategy says"),
        Waiting::Pod => (Reason::PodNotReady, "a pod is not ready"),
        Waiting::Members => (Reason::CatchingUp, "members catch up"),
    };
    let cause = trouble(visit).or(next.map(str::to_owned));
    let message = cause.map_or(message.to_owned(), |cause| format!("{message}: {cause}"));
    verdict(true, reason, message)
}

/// What Kubernetes says of a pod that does not come up.
fn trouble(visit: &Visit<'_>) -> Option<String> {
    visit.there.pods.values().find_map(|pod| {
        let status = pod.status.as_ref()?;
        let waiting = status.container_statuses.iter().flatten().find_map(|container| {
            let waiting = container.state.as_ref()?.waiting.as_ref()?;
            let reason = waiting.reason.clone().filter(|reason| reason != "ContainerCreating")?;
            Some(format!("{reason}: {}", waiting.message.clone().unwrap_or_default()))
        });
        let unscheduled = status
            .conditions
            .iter()
            .flatten()
            .find(|condition| condition.type_ == "PodScheduled" && condition.status == "False");
        let said = waiting.or_else(|| unscheduled?.message.clone())?;
        Some(format!("{}: {said}", pod.name_any()))
    })
}

fn stalled(visit: &Visit<'_>) -> Verdict {
    match &visit.plan.step {
        Step::Stalled(Stall::DataMissing) => verdict(
            true,
            Reason::DataMissing,
            "the cluster was founded, and the disks of all brokers are empty: restore the volumes, or delete the \
             Databroker and make it again if the records may be lost",
        ),
        Step::Stalled(Stall::ForeignData { ordinal, cluster_id }) => {
            let name = meta::pod(&visit.valid.name, *ordinal);
            let claim = meta::claim(&visit.valid.name, *ordinal);
            verdict(
                true,
                Reason::ForeignData,
                format!(
                    "the disk of {name} is of the cluster {cluster_id}, not of this one: delete {claim} and the pod if its records may be lost"
                ),
            )
        }
        _ => verdict(false, Reason::AsExpected, "nothing waits for a person"),
    }
}

fn degraded(visit: &Visit<'_>, available: &Verdict, synced: &Verdict) -> Verdict {
    let dark: Vec<String> = visit
        .seen
        .pods
        .iter()
        .filter(|(_, pod)| pod.unreachable)
        .map(|(ordinal, _)| meta::pod(&visit.valid.name, *ordinal))
        .collect();
    if !dark.is_empty() {
        let names = dark.join(", ");
        let remedy = "if the node is gone for good, delete it (or taint it node.kubernetes.io/out-of-service), and the pod moves";
        return verdict(true, Reason::NodeUnreachable, format!("the nodes of {names} do not answer: {remedy}"));
    }
    if visit.plan.record.bootstrapped && available.holds != Some(true) {
        return verdict(true, available.reason, available.message.clone());
    }
    if synced.holds == Some(false) && synced.reason == Reason::CatchingUp {
        return verdict(true, synced.reason, synced.message.clone());
    }
    verdict(false, Reason::AsExpected, "nothing is missing")
}

/// Gives each condition the moment of its last change.
fn date(verdicts: Vec<(ConditionType, Verdict)>, old: &[Condition], generation: i64, now: Timestamp) -> Vec<Condition> {
    let word = |holds| match holds {
        Some(true) => "True",
        Some(false) => "False",
        None => "Unknown",
    };
    let dated = |(kind, verdict): (ConditionType, Verdict)| {
        let (type_, status) = (kind.to_string(), word(verdict.holds).to_owned());
        let before = old.iter().find(|condition| condition.type_ == type_ && condition.status == status);
        Condition {
            last_transition_time: before.map_or(Time(now), |before| before.last_transition_time.clone()),
            type_,
            status,
            reason: verdict.reason.to_string(),
            message: verdict.message,
            observed_generation: Some(generation),
        }
    };
    verdicts.into_iter().map(dated).collect()
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

/// What has changed from one status to the next.
pub fn news(old: Option<&DatabrokerStatus>, new: &DatabrokerStatus) -> Vec<News> {
    let empty = DatabrokerStatus::default();
    let old = old.unwrap_or(&empty);
    let tell = |reason, note: String, warning| News { reason, note, warning };
    let mut news = Vec::new();
    if new.bootstrapped && !old.bootstrapped {
        news.push(tell("Bootstrapped", format!("cluster {}", new.cluster_id.as_deref().unwrap_or_default()), false));
    }
    if new.bootstrapped && old.bootstrapped && old.cluster_id.is_some() && new.cluster_id != old.cluster_id {
        news.push(tell("DataDiscarded", "all records were lost: a new cluster was founded".into(), true));
    }
    if new.last_failover != old.last_failover
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
    let rolling = |status: &DatabrokerStatus| {
        status.conditions.iter().any(|condition| {
            condition.type_ == ConditionType::Reconciling.to_string()
                && condition.reason == Reason::RollingUpdate.to_string()
        })
    };
    let revision = new.update_revision.as_deref().unwrap_or_default();
    match (rolling(old), rolling(new)) {
        (false, true) => news.push(tell("RollStarted", format!("pods are brought to {revision}"), false)),
        (true, false) => news.push(tell("RollFinished", format!("pods are of {revision}"), false)),
        _ => {}
    }
    news
}

#[cfg(test)]
mod tests;
