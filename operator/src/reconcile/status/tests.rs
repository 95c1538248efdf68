//! What the status says of clusters in various states.

use databroker_proto::internal::{MemberStatus, StatusReply, member_status::Role};
use serde_json::json;

use super::*;
use crate::reconcile::{
    observe::seen,
    plan::{Record, plan},
    validate::tests::valid,
};

fn now() -> Timestamp {
    Timestamp::from_second(1_800_000_000).unwrap()
}

fn not_yet() -> Timestamp {
    Timestamp::from_second(1_800_000_001).unwrap()
}

fn answer(name: &str, leader: &str, term: u64) -> StatusReply {
    let member = |ordinal: u32| {
        let name = format!("main-{ordinal}");
        MemberStatus {
            node: u64::from(ordinal) + 100,
            role: if name == leader { Role::Leader.into() } else { Role::Voter.into() },
            reachable: true,
            caught_up: true,
            may_stop: true,
            version: "0.1.0".into(),
            name,
            ..MemberStatus::default()
        }
    };
    StatusReply {
        cluster_id: "c".into(),
        answered_by: name.into(),
        leader: leader.into(),
        term,
        shape_generation: 1,
        shape: (0..3)
            .map(|ordinal| databroker_proto::internal::ShapeMember {
                name: format!("main-{ordinal}"),
                ..Default::default()
            })
            .collect(),
        members: (0..3).map(member).collect(),
        ..StatusReply::default()
    }
}

fn there(ready: bool) -> There {
    let pod = |ordinal: u32| -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": format!("main-{ordinal}"), "uid": "u", "labels": {"controller-revision-hash": "main-1"}},
            "status": {
                "podIP": "10.0.0.7",
                "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}],
                "containerStatuses": [{"name": "databroker", "ready": ready, "restartCount": 0, "image": "i",
                    "imageID": "", "state": {"running": {"startedAt": "2026-11-20T00:00:00Z"}}}],
            },
        }))
        .unwrap()
    };
    let claim =
        || serde_json::from_value(json!({"status": {"phase": "Bound", "capacity": {"storage": "1Gi"}}})).unwrap();
    There {
        statefulset: serde_json::from_value(json!({
            "metadata": {"name": "main", "generation": 1},
            "spec": {"replicas": 3, "selector": {}, "serviceName": "main-headless", "template": {}},
            "status": {"replicas": 3, "readyReplicas": 3, "observedGeneration": 1, "updateRevision": "main-1", "currentRevision": "main-1"},
        }))
        .unwrap(),
        pods: (0..3).map(|ordinal| (ordinal, pod(ordinal))).collect(),
        claims: (0..3).map(|ordinal| (ordinal, claim())).collect(),
        ..There::default()
    }
}

/// The status of a founded cluster, after these answers.
fn told(answers: &Answers, there: &There, spec: serde_json::Value, old: Option<&DatabrokerStatus>) -> DatabrokerStatus {
    let valid = valid(spec);
    let record = Record { bootstrapped: true, cluster_id: Some("c".into()) };
    let seen = seen(there, answers, record, &valid);
    let plan = plan(valid.wanted(), &seen);
    let done = Done::default();
    let visit = Visit {
        valid: &valid,
        there,
        answers,
        seen: &seen,
        plan: &plan,
        done: &done,
        not_after: Some(not_yet()),
        failure: None,
    };
    compute(&visit, old, now())
}

fn all(leader: &str, term: u64) -> Answers {
    (0..3).map(|ordinal| (ordinal, answer(&format!("main-{ordinal}"), leader, term))).collect()
}

fn condition(status: &DatabrokerStatus, kind: ConditionType) -> (String, String) {
    let found = status.conditions.iter().find(|condition| condition.type_ == kind.to_string()).unwrap();
    (found.status.clone(), found.reason.clone())
}

#[test]
fn a_cluster_that_is_as_asked_is_ready_and_has_every_condition() {
    let status = told(&all("main-1", 4), &there(true), json!({}), None);
    let types: Vec<_> = status.conditions.iter().map(|condition| condition.type_.clone()).collect();
    assert_eq!(types, ConditionType::ALL.map(|kind| kind.to_string()));
    for (kind, holds) in
        ConditionType::ALL.into_iter().zip(["True", "True", "False", "False", "False", "True", "True", "True"])
    {
        assert_eq!(condition(&status, kind), (holds.into(), "AsExpected".into()), "{kind}");
    }
    assert_eq!(status.leader.as_ref().map(|leader| (leader.member.as_str(), leader.term)), Some(("main-1", 4)));
    assert_eq!(status.quorum, Some(Quorum { voters: 3, healthy_voters: 3, required: 2 }));
    assert_eq!(status.version.as_deref(), Some("0.1.0"));
    assert_eq!((status.replicas, status.ready_replicas, status.updated_replicas), (3, 3, 3));
    let member = &status.members[1];
    assert_eq!((member.role, member.lag, member.volume_size.as_deref()), (MemberRole::Leader, Lag::None, Some("1Gi")));
    assert_eq!(member.node_id.as_deref(), Some("0000000000000065"));
}

#[test]
fn a_disk_that_is_nearly_full_is_named() {
    let mut answers = all("main-1", 4);
    answers.get_mut(&1).unwrap().members[2].disk_full = true;
    let status = told(&answers, &there(true), json!({}), None);
    assert_eq!(condition(&status, ConditionType::StorageReady), ("False".into(), "DiskFull".into()));
    assert_eq!(condition(&status, ConditionType::Ready), ("False".into(), "DiskFull".into()));
    assert_eq!(condition(&status, ConditionType::Available).0, "True");
    let said = status.conditions.iter().find(|condition| condition.reason == "DiskFull").unwrap();
    assert!(said.message.contains("main-2"), "{}", said.message);
}

#[test]
fn what_a_broker_said_before_it_ended_is_repeated() {
    let mut there = there(true);
    let status = there.pods.get_mut(&2).unwrap().status.as_mut().unwrap();
    status.container_statuses =
        serde_json::from_value(json!([{"name": "databroker", "ready": false, "restartCount": 4,
        "image": "i", "imageID": "", "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 40s"}},
        "lastState": {"terminated": {"exitCode": 1, "message": "INFO first\nthe node has failed: no space left\n"}}}]))
        .unwrap();
    let mut answers = all("main-1", 4);
    answers.get_mut(&1).unwrap().members[2].caught_up = false;
    let status = told(&answers, &there, json!({}), None);
    let said = status.conditions.iter().find(|own| own.type_ == ConditionType::Reconciling.to_string()).unwrap();
    assert!(said.message.ends_with("main-2: CrashLoopBackOff: the node has failed: no space left"), "{}", said.message);
}

#[test]
fn the_same_again_changes_nothing() {
    let first = told(&all("main-1", 4), &there(true), json!({}), None);
    assert_eq!(told(&all("main-1", 4), &there(true), json!({}), Some(&first)), first);
    assert!(news(Some(&first), &first, false).is_empty());
}

#[test]
fn a_cluster_without_a_majority_says_so_and_what_to_do() {
    let lonely: Answers = [(0, answer("main-0", "", 4))].into();
    let status = told(&lonely, &there(false), json!({}), None);
    assert_eq!(condition(&status, ConditionType::Available), ("False".into(), "QuorumLost".into()));
    assert_eq!(condition(&status, ConditionType::Ready), ("False".into(), "QuorumLost".into()));
    assert_eq!(condition(&status, ConditionType::Degraded).0, "True");
    assert!(status.leader.is_none());
}

#[test]
fn another_leader_that_nobody_asked_for_is_a_failover() {
    let first = told(&all("main-1", 4), &there(true), json!({}), None);
    // In between nobody leads.
    let pending = told(
        &(0..2).map(|at| (at, answer(&format!("main-{at}"), "", 4))).collect(),
        &there(true),
        json!({}),
        Some(&first),
    );
    assert_eq!(condition(&pending, ConditionType::Available).1, "LeaderElectionPending");
    assert_eq!((pending.leader.as_ref(), pending.last_leader.as_deref()), (None, Some("main-1")));
    let after = told(&all("main-2", 5), &there(true), json!({}), Some(&pending));
    let failover = after.last_failover.clone().unwrap();
    assert_eq!((failover.from.as_str(), failover.to.as_str()), ("main-1", "main-2"));
    assert_eq!(reasons(&pending, &after, false), ["Failover"]);
}

#[test]
fn a_failover_says_how_long_writes_were_held_and_is_told_once() {
    let mut answers = all("main-2", 5);
    let first = told(&all("main-1", 4), &there(true), json!({}), None);
    let after = told(&answers, &there(true), json!({}), Some(&first));
    assert_eq!(after.last_failover.as_ref().unwrap().write_gap_millis, None);
    // One of another term, and of this one.
    for (at, term, millis) in [(0, 4, 9000), (1, 5, 700), (2, 5, 650)] {
        let answer = answers.get_mut(&at).unwrap();
        (answer.write_gap_term, answer.write_gap_millis) = (term, millis);
    }
    let measured = told(&answers, &there(true), json!({}), Some(&after));
    assert_eq!(measured.last_failover.as_ref().unwrap().write_gap_millis, Some(700));
    assert_eq!(reasons(&after, &measured, false), [""; 0]);
    // Brokers that started again know of none.
    let later = told(&all("main-2", 5), &there(true), json!({}), Some(&measured));
    assert_eq!(later.last_failover, measured.last_failover);
}

#[test]
fn a_failover_says_how_the_pod_stands_that_led() {
    let first = told(&all("main-1", 4), &there(true), json!({}), None);
    let reason = |there: &There| told(&all("main-2", 5), there, json!({}), Some(&first)).last_failover.unwrap().reason;
    assert_eq!(reason(&there(true)), FailoverReason::LeaderReplaced);
    let mut gone = there(true);
    gone.pods.remove(&1);
    assert_eq!(reason(&gone), FailoverReason::PodNotRunning);
    let mut dark = there(true);
    dark.pods.get_mut(&1).unwrap().status.as_mut().unwrap().reason = Some("NodeLost".into());
    assert_eq!(reason(&dark), FailoverReason::NodeUnreachable);
    // It is missed later than its broker, and found again: neither is another failover.
    let before = told(&all("main-2", 5), &there(true), json!({}), Some(&first));
    let missed = told(&all("main-2", 5), &dark, json!({}), Some(&before));
    assert_eq!(missed.last_failover.as_ref().unwrap().reason, FailoverReason::NodeUnreachable);
    assert_eq!(reasons(&before, &missed, false), [""; 0]);
    let found = told(&all("main-2", 5), &there(true), json!({}), Some(&missed));
    assert_eq!(found.last_failover, missed.last_failover);
}

#[test]
fn a_newer_image_is_told_and_the_cluster_is_ready_all_the_same() {
    let (mut valid, there, answers) = (valid(json!({})), there(true), all("main-1", 4));
    let old = told(&answers, &there, json!({}), None);
    valid.newer_image = Some("broker:2".into());
    let record = Record { bootstrapped: true, cluster_id: Some("c".into()) };
    let seen = seen(&there, &answers, record, &valid);
    let (plan, done) = (plan(valid.wanted(), &seen), Done::default());
    let (valid, there, answers, seen, plan, done) = (&valid, &there, &answers, &seen, &plan, &done);
    let visit = Visit { valid, there, answers, seen, plan, done, not_after: Some(not_yet()), failure: None };
    let new = compute(&visit, Some(&old), now());
    assert_eq!(condition(&new, ConditionType::Ready), ("True".into(), "UpdateAvailable".into()));
    assert_eq!(reasons(&old, &new, false), ["UpdateAvailable"]);
    assert_eq!(reasons(&new, &new, false), [""; 0]);
    // Nor after a while in which it was not Ready.
    let mut ill = new.clone();
    ill.conditions[0].reason = Reason::CatchingUp.to_string();
    assert_eq!(reasons(&ill, &new, false), [""; 0]);
}

#[test]
fn renewed_certificates_are_told() {
    let old = told(&all("main-1", 4), &there(true), json!({}), None);
    let mut new = old.clone();
    let later = not_yet() + jiff::SignedDuration::from_hours(24);
    new.certificates = Some(Certificates { not_after: Some(Time(later)) });
    assert_eq!(reasons(&old, &new, false), ["SecretRotated"]);
    assert_eq!(reasons(&new, &old, false), [""; 0]);
}

fn reasons(old: &DatabrokerStatus, new: &DatabrokerStatus, ephemeral: bool) -> Vec<&'static str> {
    news(Some(old), new, ephemeral).into_iter().map(|news| news.reason).collect()
}

/// The status where so many pods are of the new revision, and the condition Reconciling has this reason.
fn rolled(updated: usize, reason: Reason) -> DatabrokerStatus {
    let mut status = told(&all("main-1", 4), &there(true), json!({}), None);
    status.update_revision = Some("main-2".into());
    status.members.iter_mut().take(updated).for_each(|member| member.revision = Some("main-2".into()));
    let reconciling = ConditionType::Reconciling.to_string();
    let own = status.conditions.iter_mut().find(|condition| condition.type_ == reconciling).unwrap();
    own.reason = reason.to_string();
    status
}

#[test]
fn a_roll_is_finished_when_all_pods_are_new_and_not_when_it_stops() {
    let before = told(&all("main-1", 4), &there(true), json!({}), None);
    let mut gone = rolled(3, Reason::ApplyFailed);
    gone.members[2].revision = None;
    let steps = [
        (before, rolled(0, Reason::RollingUpdate), vec!["RollStarted"]),
        (rolled(1, Reason::RollingUpdate), rolled(1, Reason::UpdatePaused), vec![]),
        (rolled(1, Reason::RollingUpdate), rolled(1, Reason::ApplyFailed), vec![]),
        (rolled(1, Reason::ApplyFailed), rolled(1, Reason::RollingUpdate), vec![]),
        (rolled(2, Reason::RollingUpdate), gone, vec![]),
        (rolled(3, Reason::RollingUpdate), rolled(3, Reason::AsExpected), vec!["RollFinished"]),
        (rolled(3, Reason::PodNotReady), rolled(3, Reason::AsExpected), vec![]),
    ];
    for (index, (old, new, expected)) in steps.iter().enumerate() {
        assert_eq!(reasons(old, new, false), *expected, "step {index}");
    }
}

#[test]
fn certificates_that_have_ended_are_not_ready() {
    let (valid, there, answers) = (valid(json!({})), there(true), all("main-1", 4));
    let record = Record { bootstrapped: true, cluster_id: Some("c".into()) };
    let seen = seen(&there, &answers, record, &valid);
    let (plan, done) = (plan(valid.wanted(), &seen), Done::default());
    for (not_after, reason) in [(None, "Creating"), (Some(now()), "Expired")] {
        let (valid, there, answers, seen, plan, done) = (&valid, &there, &answers, &seen, &plan, &done);
        let visit = Visit { valid, there, answers, seen, plan, done, not_after, failure: None };
        let status = compute(&visit, None, now());
        assert_eq!(condition(&status, ConditionType::CertificatesReady), ("False".into(), reason.into()));
        assert_eq!(condition(&status, ConditionType::Ready), ("False".into(), reason.into()));
    }
}

#[test]
fn what_cannot_be_done_is_the_first_thing_told_but_for_a_lost_majority() {
    let (valid, there, answers) = (valid(json!({})), there(false), Answers::new());
    let ready = |bootstrapped| {
        let seen = seen(&there, &answers, Record { bootstrapped, cluster_id: None }, &valid);
        let plan = plan(valid.wanted(), &seen);
        let failure = Failure { reason: Reason::SecretMissing, message: "no Secret".into() };
        let visit = Visit {
            valid: &valid,
            there: &there,
            answers: &answers,
            seen: &seen,
            plan: &plan,
            done: &Done::default(),
            not_after: None,
            failure: Some(failure),
        };
        condition(&compute(&visit, None, now()), ConditionType::Ready).1
    };
    assert_eq!((ready(false).as_str(), ready(true).as_str()), ("SecretMissing", "QuorumLost"));
}

#[test]
fn a_cluster_that_was_recovered_is_not_told_as_lost() {
    let old = told(&all("main-1", 4), &there(true), json!({}), None);
    let new = DatabrokerStatus { cluster_id: Some("d".into()), ..old.clone() };
    assert_eq!(reasons(&old, &new, false), ["ClusterAdopted"]);
    assert_eq!(reasons(&old, &new, true), ["DataDiscarded"]);
}

#[test]
fn suspended_is_not_ready_and_says_why() {
    let status = told(&all("main-1", 4), &there(true), json!({"suspend": true}), None);
    assert_eq!(condition(&status, ConditionType::Ready), ("False".into(), "Suspended".into()));
    assert_eq!(condition(&status, ConditionType::Available).0, "True");
}

#[test]
fn a_spec_that_cannot_be_used_is_told_as_such() {
    let status = refused(7, &Invalid::Replicas(2), None, now());
    assert_eq!(condition(&status, ConditionType::Stalled), ("True".into(), "InvalidSpec".into()));
    assert_eq!(condition(&status, ConditionType::Ready), ("False".into(), "InvalidSpec".into()));
    assert_eq!(status.conditions.len(), ConditionType::ALL.len());
}
