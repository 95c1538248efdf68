//! The conditions of a `Databroker`: what each says of a visit. Pure.
//!
//! Not here: the rest of the status (`super`), and what is done about it (`plan`).

use std::collections::BTreeSet;

use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::ContainerStatus,
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
};
use kube::ResourceExt as _;

use super::Visit;
use crate::{
    api::status::{ConditionType, Reason},
    reconcile::{
        observe::votes,
        plan::{Stall, Step, Waiting},
    },
    resources::meta,
};

/// Of what a broker said last, so much goes into a status, in characters: a sentence or two.
const LAST_WORDS_MAX: usize = 300;

/// A condition before it is dated.
pub(super) struct Verdict {
    pub(super) holds: Option<bool>,
    pub(super) reason: Reason,
    pub(super) message: String,
}

pub(super) fn verdict(holds: bool, reason: Reason, message: impl Into<String>) -> Verdict {
    Verdict { holds: Some(holds), reason, message: message.into() }
}

/// All of them, in their order.
pub(super) fn conditions(visit: &Visit<'_>, now: Timestamp) -> Vec<(ConditionType, Verdict)> {
    let (available, synced) = (available(visit), synced(visit));
    let (storage, certificates) = (storage(visit), certificates(visit, now));
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
    // What is missing may be missing because of it. Without a leader there is something worse.
    let failed = moving.filter(|_| visit.failure.is_some() && !is_leaderless(visit));
    match broken.or(failed).or(missing).or(moving) {
        Some(cause) => verdict(false, cause.reason, cause.message.clone()),
        None => {
            let voters = visit.seen.cluster.as_ref().map_or(0, |cluster| cluster.members.len());
            let well = format!("{voters} members vote and are caught up");
            match &visit.valid.newer_image {
                None => verdict(true, Reason::AsExpected, well),
                Some(newer) => {
                    let image = &visit.valid.image;
                    let message =
                        format!("{well}; they run {image}, and the operator has {newer}: set spec.image to take it");
                    verdict(true, Reason::UpdateAvailable, message)
                }
            }
        }
    }
}

/// Whether a cluster that was founded has no leader.
fn is_leaderless(visit: &Visit<'_>) -> bool {
    visit.plan.record.bootstrapped && visit.seen.cluster.is_none()
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
    let known = visit.answers.values().map(|answer| answer.members.iter().filter(|member| votes(member)).count());
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
    if !pending.is_empty() {
        return verdict(false, Reason::VolumePending, format!("not bound: {}", pending.join(", ")));
    }
    let members = visit.answers.values().flat_map(|answer| &answer.members);
    let full: BTreeSet<&str> =
        members.filter(|member| member.disk_full && member.reachable).map(|member| member.name.as_str()).collect();
    if !full.is_empty() {
        let names = full.into_iter().collect::<Vec<_>>().join(", ");
        let remedy =
            "while one of them leads, records can be read and deleted only; enlarge the volumes, or delete records";
        return verdict(false, Reason::DiskFull, format!("the disks of {names} are nearly full: {remedy}"));
    }
    verdict(true, Reason::AsExpected, "all volumes are bound, and have room")
}

fn certificates(visit: &Visit<'_>, now: Timestamp) -> Verdict {
    match visit.not_after {
        Some(at) if at <= now => verdict(false, Reason::Expired, format!("the first has ended at {at}")),
        Some(at) if visit.valid.spec.suspend => verdict(
            true,
            Reason::AsExpected,
            format!("the first ends at {at}, and none is renewed while spec.suspend is set"),
        ),
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
        return verdict(true, failure.reason, failure.message.clone());
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
        Step::MarkRetired { ordinal, .. } | Step::Unmark { ordinal, .. } | Step::DiscardVolume { ordinal, .. } => {
            moves(
                Reason::ScalingDown,
                &format!("the volume of {} is dealt with", meta::pod(&visit.valid.name, *ordinal)),
            )
        }
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
        Waiting::Revision => (Reason::Creating, "the StatefulSet was changed just now"),
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
            let last = last_words(container).filter(|_| reason == "CrashLoopBackOff");
            let said = last.or(waiting.message.clone());
            Some(format!("{reason}: {}", said.unwrap_or_default()))
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

/// What a container said before it ended: the last line, and no more than a status can bear.
fn last_words(container: &ContainerStatus) -> Option<String> {
    let ended = container.last_state.as_ref()?.terminated.as_ref()?;
    let line = ended.message.as_deref()?.lines().rfind(|line| !line.trim().is_empty())?;
    Some(line.chars().take(LAST_WORDS_MAX).collect())
}

fn stalled(visit: &Visit<'_>) -> Verdict {
    match &visit.plan.step {
        Step::Stalled(Stall::DataMissing) => {
            let annotated = match &visit.seen.adopted {
                Some(id) => format!(" without its annotation {}={id}", meta::ADOPT_ANNOTATION),
                None => String::new(),
            };
            let message = format!(
                "the cluster was founded, and the disks of all brokers are empty: restore the volumes, or delete the Databroker, and \
                 what is left of its volumes, and make it again{annotated} if the records may be lost",
            );
            verdict(true, Reason::DataMissing, message)
        }
        Step::Stalled(Stall::ForeignData { ordinal, cluster_id }) => {
            let name = meta::pod(&visit.valid.name, *ordinal);
            let claim = meta::claim(&visit.valid.name, *ordinal);
            let own = visit.seen.adopted.as_ref().or(visit.seen.record.cluster_id.as_ref());
            let message = format!(
                "the disk of {name} is of the cluster {cluster_id}, not of {}: delete {claim} and the pod if its records may be \
                 lost, or annotate the Databroker with {}={cluster_id} if that is the cluster now, because it was recovered",
                own.map_or("this one", String::as_str),
                meta::ADOPT_ANNOTATION,
            );
            verdict(true, Reason::ForeignData, message)
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
pub(super) fn date(
    verdicts: Vec<(ConditionType, Verdict)>,
    old: &[Condition],
    generation: i64,
    now: Timestamp,
) -> Vec<Condition> {
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
