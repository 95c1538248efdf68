//! Single decisions. Whole lives are in `simulation`.

use super::*;

const WANTED: Wanted = Wanted { replicas: 3, restarts: true, ephemeral: false, discards_scaled: false };

fn pod(ordinal: u32, revision: &str) -> Pod {
    Pod { uid: format!("pod-{ordinal}"), revision: Some(revision.into()), running: true, ready: true, ..Pod::default() }
}

fn member(ordinal: u32) -> Member {
    Member { ordinal, node: u64::from(ordinal) + 100, votes: true, caught_up: true, may_stop: true }
}

/// Three brokers, all well; `1` leads.
fn settled() -> Seen {
    let broker = |ordinal: u32| Broker {
        cluster_id: Some("c".into()),
        node: Some(u64::from(ordinal) + 100),
        voters: (0..3).collect(),
    };
    Seen {
        record: Record { bootstrapped: true, cluster_id: Some("c".into()) },
        adopted: None,
        pods_wanted: Some(3),
        update_revision: Some("a".into()),
        pods: (0..3).map(|ordinal| (ordinal, pod(ordinal, "a"))).collect(),
        volumes: (0..3).map(|ordinal| (ordinal, Volume { uid: ordinal.to_string(), ..Volume::default() })).collect(),
        brokers: (0..3).map(|ordinal| (ordinal, broker(ordinal))).collect(),
        cluster: Some(Cluster {
            leader: 1,
            generation: 4,
            shape: Some((0..3).collect()),
            settled: true,
            members: (0..3).map(member).collect(),
            retired: Vec::new(),
        }),
    }
}

fn step(seen: &Seen) -> Step {
    plan(WANTED, seen).step
}

fn restart(ordinal: u32) -> Step {
    Step::RestartPod { ordinal, uid: format!("pod-{ordinal}") }
}

#[test]
fn what_is_as_asked_is_left_alone() {
    let seen = settled();
    assert_eq!(plan(WANTED, &seen), Plan { replicas: 3, record: seen.record.clone(), step: Step::Settled });
}

#[test]
fn a_cluster_is_founded_once_all_brokers_have_said_that_there_is_none() {
    let mut seen = Seen { record: Record::default(), cluster: None, ..settled() };
    seen.brokers.values_mut().for_each(|broker| broker.cluster_id = None);
    assert_eq!(step(&seen), Step::Found { ordinal: 0, again: false });
    let silent = seen.brokers.remove(&2);
    assert_eq!(step(&seen), Step::Wait(Waiting::Brokers));
    seen.brokers.extend(silent.map(|broker| (2, broker)));
    seen.record = settled().record;
    assert_eq!(step(&seen), Step::Stalled(Stall::DataMissing));
    assert_eq!(plan(Wanted { ephemeral: true, ..WANTED }, &seen).step, Step::Found { ordinal: 0, again: true });
}

#[test]
fn data_that_is_there_is_adopted_and_other_clusters_data_is_not() {
    let seen = Seen { record: Record::default(), ..settled() };
    assert_eq!(plan(WANTED, &seen).record, settled().record);
    let mut seen = settled();
    seen.brokers.get_mut(&2).unwrap().cluster_id = Some("d".into());
    assert_eq!(step(&seen), Step::Stalled(Stall::ForeignData { ordinal: 2, cluster_id: "d".into() }));
}

#[test]
fn the_id_of_a_recovered_cluster_is_adopted_by_a_persons_word_alone() {
    let mut seen = settled();
    seen.brokers.values_mut().for_each(|broker| broker.cluster_id = Some("d".into()));
    let foreign = |cluster_id: &str| Step::Stalled(Stall::ForeignData { ordinal: 0, cluster_id: cluster_id.into() });
    assert_eq!((step(&seen), plan(WANTED, &seen).record), (foreign("d"), settled().record));
    seen.adopted = Some("d".into());
    let record = Record { bootstrapped: true, cluster_id: Some("d".into()) };
    assert_eq!(plan(WANTED, &seen), Plan { replicas: 3, record, step: Step::Settled });
    // A wrong word changes nothing that is remembered.
    let mistaken = Seen { adopted: Some("x".into()), ..settled() };
    assert_eq!((step(&mistaken), plan(WANTED, &mistaken).record), (foreign("c"), settled().record));
    // Nor does it found a cluster.
    seen.record = Record::default();
    seen.brokers.values_mut().for_each(|broker| broker.cluster_id = None);
    assert_eq!(step(&seen), Step::Stalled(Stall::DataMissing));
}

#[test]
fn a_roll_takes_followers_from_the_last_and_the_leader_after_a_handover() {
    let mut seen = Seen { update_revision: Some("b".into()), ..settled() };
    assert_eq!(step(&seen), restart(2));
    seen.pods.insert(2, Pod { ready: false, ..pod(2, "b") });
    assert_eq!(step(&seen), Step::Wait(Waiting::Rolling));
    seen.pods.insert(2, pod(2, "b"));
    seen.cluster.as_mut().unwrap().members[0].may_stop = false;
    assert_eq!(step(&seen), Step::Wait(Waiting::CatchingUp));
    seen.cluster.as_mut().unwrap().members[0].may_stop = true;
    assert_eq!(step(&seen), restart(0));
    seen.pods.insert(0, pod(0, "b"));
    assert_eq!(step(&seen), Step::Handover { from: 1 });
    seen.cluster.as_mut().unwrap().leader = 2;
    assert_eq!(step(&seen), restart(1));
}

#[test]
fn a_held_roll_restarts_nothing_and_a_pod_that_cannot_start_is_restarted_without_a_leader() {
    let mut seen = Seen { update_revision: Some("b".into()), ..settled() };
    let held = Wanted { restarts: false, ..WANTED };
    assert_eq!(plan(held, &seen).step, Step::Wait(Waiting::Held));
    seen.cluster = None;
    assert_eq!(step(&seen), Step::Wait(Waiting::Leader));
    seen.pods.get_mut(&1).unwrap().running = false;
    assert_eq!(step(&seen), Step::Wait(Waiting::Leader), "its broker answers: the cache is old");
    seen.brokers.remove(&1);
    assert_eq!((step(&seen), plan(held, &seen).step), (restart(1), Step::Wait(Waiting::Leader)));
}

#[test]
fn pods_come_before_members_and_go_after_them() {
    let seen = settled();
    let more = Wanted { replicas: 5, ..WANTED };
    assert_eq!((plan(more, &seen).replicas, plan(more, &seen).step), (5, Step::Wait(Waiting::ScalingUp)));
    let members = |count: u32| Step::SetMembers { generation: 4, members: (0..count).collect() };
    assert_eq!(plan(more, &Seen { pods_wanted: Some(5), ..seen.clone() }).step, members(5));

    let less = Wanted { replicas: 1, ..WANTED };
    let mut seen = seen;
    assert_eq!((plan(less, &seen).replicas, plan(less, &seen).step), (3, members(1)));
    let cluster = seen.cluster.as_mut().unwrap();
    cluster.shape = Some([0].into());
    cluster.members.truncate(1);
    cluster.retired = [1, 2].map(|ordinal| Retired { ordinal, node: u64::from(ordinal) + 100, confirmed: true }).into();
    cluster.retired[1].confirmed = false;
    assert_eq!(plan(less, &seen).replicas, 3, "one of them does not know it yet");
    seen.brokers.remove(&2);
    assert_eq!(plan(less, &seen).step, Step::MarkRetired { ordinal: 2, uid: "2".into(), node: 102 });
    seen.volumes.get_mut(&2).unwrap().retired = Some(102);
    assert_eq!(plan(less, &seen).replicas, 1);
}

#[test]
fn a_marked_volume_is_discarded_before_its_name_is_used_again() {
    let mut seen = settled();
    seen.pods_wanted = Some(1);
    seen.pods.retain(|ordinal, _| *ordinal == 0);
    let cluster = seen.cluster.as_mut().unwrap();
    cluster.shape = Some([0].into());
    cluster.members.truncate(1);
    seen.volumes.get_mut(&2).unwrap().retired = Some(102);
    let discard = Step::DiscardVolume { ordinal: 2, uid: "2".into() };
    assert_eq!((plan(WANTED, &seen).replicas, step(&seen)), (1, discard));
    seen.volumes.get_mut(&2).unwrap().terminating = true;
    assert_eq!(plan(WANTED, &seen).replicas, 1);
    seen.volumes.remove(&2);
    assert_eq!(plan(WANTED, &seen).replicas, 3);
}

#[test]
fn pods_that_were_taken_away_come_back_without_a_leader() {
    let mut seen = Seen { pods_wanted: Some(0), cluster: None, ..settled() };
    (seen.pods, seen.brokers) = (BTreeMap::new(), BTreeMap::new());
    assert_eq!(plan(WANTED, &seen).replicas, 3);
    let less = Wanted { replicas: 1, ..WANTED };
    assert_eq!(plan(less, &seen).replicas, 1);
    seen.pods_wanted = Some(1);
    assert_eq!(plan(less, &seen).replicas, 1);
    seen.brokers.extend(settled().brokers.remove_entry(&0));
    assert_eq!(plan(less, &seen).replicas, 3, "two more vote, as the first knows");
    seen.brokers.get_mut(&0).unwrap().voters.insert(u32::MAX);
    assert_eq!(plan(less, &seen).replicas, PODS_MAX);
    seen.volumes.get_mut(&2).unwrap().retired = Some(102);
    let discard = Step::DiscardVolume { ordinal: 2, uid: "2".into() };
    assert_eq!((plan(WANTED, &seen).replicas, step(&seen)), (1, discard));
}

#[test]
fn every_volume_is_asked_before_a_cluster_is_founded_or_given_up_for_lost() {
    let one = Wanted { replicas: 1, ..WANTED };
    for record in [Record::default(), settled().record] {
        let mut seen = Seen { record, pods_wanted: Some(1), cluster: None, ..settled() };
        seen.brokers = [(0, Broker { node: Some(7), ..Broker::default() })].into();
        let seen_plan = plan(one, &seen);
        assert!(matches!(seen_plan.step, Step::Wait(_)), "{seen_plan:?}");
        assert_eq!(seen_plan.replicas, 3);
        seen.volumes.retain(|ordinal, _| *ordinal == 0);
        let seen_plan = plan(one, &seen);
        assert!(matches!(seen_plan.step, Step::Stalled(Stall::DataMissing) | Step::Found { .. }), "{seen_plan:?}");
    }
}

#[test]
fn a_mark_goes_once_another_member_is_on_the_volume_and_nobody_is_a_member_before() {
    let mut seen = settled();
    seen.volumes.get_mut(&2).unwrap().retired = Some(7);
    let broker = seen.brokers.remove(&2);
    let two = Step::SetMembers { generation: 4, members: [0, 1].into() };
    assert_eq!(step(&seen), two);
    seen.brokers.extend(broker.map(|broker| (2, broker)));
    assert_eq!(step(&seen), Step::Unmark { ordinal: 2, uid: "2".into() });
}

/// Or a change of the image would be Ready before it has begun.
#[test]
fn nothing_is_settled_before_the_last_change_has_a_revision() {
    assert_eq!(step(&settled()), Step::Settled);
    assert_eq!(step(&Seen { update_revision: None, ..settled() }), Step::Wait(Waiting::Revision));
}
