//! What several replicas do together, in one process, while their network fails them.

mod hub;

use std::{
    collections::BTreeSet,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use databroker_proto::internal::{self as proto, SnapshotChunk, snapshot_chunk};
use futures::stream;

use self::hub::*;
use super::{
    runtime::{Executor as _, Failure, SystemClock, Threads},
    *,
};
use crate::store::{
    engine::{Durability, shelf::Shelf as _},
    transfer,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_replicas_elect_a_leader_and_apply_byte_equal_stores() {
    let folders: Vec<_> = (0..2).map(|_| tempfile::tempdir().unwrap()).collect();
    let mut places: Vec<_> = folders.iter().map(|folder| Place::Folder(folder.path().into())).collect();
    places.push(Place::Memory);
    let nodes = found(&Hub::patient(), &places).await;
    let leader = leader_of(&nodes).await;
    for index in 0..50 {
        nodes[leader].put(&index.to_string()).await;
    }
    all_equal(&nodes).await;
    assert_eq!(nodes[leader].replica.members().voters, [BTreeSet::from([1, 2, 3])]);
    assert_eq!(nodes[leader].replica.matched().len(), 3);
    let other = &nodes[(leader + 1) % 3].replica;
    assert!(other.matched().is_empty() && other.millis_since_quorum_ack().is_none());
    assert_eq!(other.envelope(1).cluster_id, "c");
    for node in nodes {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_leader_that_is_cut_off_could_not_commit_is_lost_and_the_others_go_on() {
    let hub = Arc::<Hub>::default();
    let nodes = found(&hub, &[Place::Memory, Place::Memory, Place::Memory]).await;
    let old = leader_of(&nodes).await;
    nodes[old].put("before").await;
    all_equal(&nodes).await;
    hub.alone.lock().insert(nodes[old].id);
    let lost = nodes[old].replica.submit(entry(put("lost"))).await.unwrap();
    let others = || nodes.iter().enumerate().filter(|(index, _)| *index != old).map(|(_, node)| node);
    // Who leads may change between two looks.
    let writing = async {
        loop {
            let leader = others().find(|node| node.leads());
            if let Some(leader) = leader
                && leader.propose(put("after")).await.is_ok()
            {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, writing).await.expect("the others go on");
    hub.alone.lock().clear();
    let answer = tokio::time::timeout(PATIENCE, lost.answers()).await.unwrap();
    assert!(answer.is_err(), "{answer:?}");
    all_equal(&nodes).await;
    assert!(nodes.iter().all(|node| node.has("before") && node.has("after") && !node.has("lost")));
    for node in nodes {
        node.stop().await;
    }
}

/// A follower that was away for longer than the log is kept, with every kind of damage on the way.
async fn is_left_behind(places: &[Place]) {
    let hub = Hub::patient();
    let mut nodes = found(&hub, places).await;
    let leader = leader_of(&nodes).await;
    nodes[leader].put("before").await;
    all_equal(&nodes).await;
    let away = (leader + 1) % 3;
    hub.alone.lock().insert(nodes[away].id);
    for index in 0..150 {
        nodes[leader].put(&index.to_string()).await;
    }
    let behind = nodes[away].reader.progress().applied.unwrap().index + 1;
    eventually("the log is purged", || nodes[leader].replica.picture().purged_index > Some(behind)).await;
    *hub.spoils.lock() = vec![Spoil::BreakOff, Spoil::FlipByte, Spoil::SwapRows, Spoil::ForgetChunk];
    let old = nodes[away].reader.snapshot();
    let moves = nodes[away].replica.progress();
    hub.alone.lock().clear();
    eventually("the store arrives", || nodes[away].has("149")).await;
    assert!(hub.transfers.load(Relaxed) >= 5, "{:?}", hub.transfers);
    eventually("progress moves", || moves.has_changed().unwrap()).await;
    assert!(old.get("t", "before").unwrap().is_some() && old.get("t", "149").unwrap().is_none());
    drop(old);
    all_equal(&nodes).await;
    nodes[leader].put("later").await;
    all_equal(&nodes).await;
    let picture = nodes[away].replica.picture();
    assert!(picture.purged_index > Some(behind), "{picture:?}");
    // It restarts from what it took over.
    if let Place::Folder(folder) = &places[away] {
        let node = nodes.remove(away);
        let id = node.id;
        node.stop().await;
        let node = start(&hub, id, &Place::Folder(folder.clone())).await;
        nodes.push(node);
        all_equal(&nodes).await;
        // By the next snapshot at the latest.
        let leader = leader_of(&nodes).await;
        for index in 0..30 {
            nodes[leader].put(&index.to_string()).await;
        }
        eventually("the old store is gone", || !folder.join("store").exists()).await;
    }
    for node in nodes {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_left_behind_takes_over_a_store_however_often_it_breaks_on_the_way() {
    is_left_behind(&[Place::Memory, Place::Memory, Place::Memory]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_on_disk() {
    let folders: Vec<_> = (0..3).map(|_| tempfile::tempdir().unwrap()).collect();
    is_left_behind(&folders.iter().map(|folder| Place::Folder(folder.path().into())).collect::<Vec<_>>()).await;
}

/// Else a store would have to follow the store, again and again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_written_while_a_store_is_on_its_way_is_there_when_it_has_come() {
    let hub = Hub::patient();
    hub.hold_bytes.store(Retention::default().hold_bytes, Relaxed);
    let mut nodes = found(&hub, &[Place::Memory]).await;
    for index in 0..60 {
        nodes[0].put(&index.to_string()).await;
    }
    let purged = |nodes: &[Running]| nodes[0].replica.picture().purged_index.unwrap_or(0);
    eventually("the log is purged", || purged(&nodes) > 20).await;
    hub.waits.send_replace(true);
    nodes.push(start(&hub, 2, &Place::Memory).await);
    let (leader, adding) = (nodes[0].replica.clone(), member(2));
    let adding = tokio::spawn(async move { leader.add_learner(2, adding).await });
    eventually("a store is on its way", || hub.transfers.load(Relaxed) == 1).await;
    let before = nodes[0].applied();
    for index in 60..200 {
        nodes[0].put(&index.to_string()).await;
    }
    let synced = || nodes[0].replica.picture().synced_index.unwrap_or(0);
    eventually("the store was synced", || synced() > before + 100).await;
    assert!(purged(&nodes) <= before, "{} of {before}", purged(&nodes));
    hub.waits.send_replace(false);
    adding.await.unwrap().unwrap();
    all_equal(&nodes).await;
    assert_eq!(hub.transfers.load(Relaxed), 1);
    // It is kept for nobody any more.
    for index in 200..260 {
        nodes[0].put(&index.to_string()).await;
    }
    eventually("the log is purged again", || purged(&nodes) > before + 100).await;
    for node in nodes {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_come_vote_lead_and_go() {
    // Each change is asked of the one that leads: none may be elected meanwhile that was not asked to lead.
    let hub = Hub::patient();
    let mut nodes = found(&hub, &[Place::Memory]).await;
    for index in 0..60 {
        nodes[0].put(&index.to_string()).await;
    }
    for id in [2, 3] {
        nodes.push(start(&hub, id, &Place::Memory).await);
        nodes[0].replica.add_learner(id, member(id)).await.unwrap();
    }
    let leader = &nodes[0].replica;
    // Answers come from the store, and may overtake what openraft tells about itself.
    eventually("both are learners", || leader.members().learners().eq([2, 3])).await;
    all_equal(&nodes).await;
    let refused = leader.change_voters(BTreeSet::from([1, 9])).await;
    assert!(matches!(refused, Err(ChangeError::Refused { .. })), "{refused:?}");
    leader.change_voters(BTreeSet::from([1, 2, 3])).await.unwrap();
    eventually("the change is known to be committed", || leader.members().committed).await;
    let members = leader.members();
    assert_eq!((members.is_joint(), members.learners().count(), members.committed), (false, 0, true));
    assert_eq!(members.members[&3].name, "node-3");
    let last = leader.picture().last_log_index;
    eventually("2 has everything", || leader.matched().get(&2).is_some_and(|matched| *matched >= last)).await;

    leader.transfer_leader(2).await.unwrap();
    // It knows what is committed once its first entry is, and takes no change before.
    let first_is_committed = || {
        let picture = nodes[1].replica.picture();
        picture.committed_index > last && picture.committed_index == picture.last_log_index
    };
    eventually("2 leads", || nodes[1].leads() && first_is_committed()).await;
    let asked = nodes[0].replica.add_learner(4, member(4)).await;
    assert!(matches!(asked, Err(ChangeError::NotLeader { .. })), "{asked:?}");
    let leader = &nodes[1].replica;
    leader.change_voters(BTreeSet::from([2, 3])).await.unwrap();
    eventually("1 is no member", || leader.members().members.keys().copied().eq([2, 3])).await;
    leader.add_learner(1, Member { grpc_address: "g".into(), ..member(1) }).await.unwrap();
    leader.remove_learners(BTreeSet::from([1])).await.unwrap();
    assert!(matches!(leader.remove_learners(BTreeSet::from([3])).await, Err(ChangeError::Refused { .. })));
    nodes[1].put("after").await;
    all_equal(&nodes[1..]).await;
    for node in nodes {
        node.stop().await;
    }
}

/// A crash between any two steps of an installation: each leaves a disk that opens, with the old store or the new one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_in_the_middle_of_an_installation_does_no_harm() {
    for (steps, expected) in [(1, "old"), (2, "old"), (3, "new")] {
        let folders: Vec<_> = (0..3).map(|_| tempfile::tempdir().unwrap()).collect();
        let places: Vec<_> = folders.iter().map(|folder| Place::Folder(folder.path().into())).collect();
        let hub = Hub::patient();
        let mut nodes = found(&hub, &places).await;
        let away = (leader_of(&nodes).await + 1) % 3;
        all_equal(&nodes).await;
        let node = nodes.remove(away);
        let id = node.id;
        node.stop().await;
        let leader = leader_of(&nodes).await;
        for index in 0..60 {
            nodes[leader].put(&index.to_string()).await;
        }
        all_equal(&nodes).await;
        let at = nodes[leader].applied();
        take_steps(folders[away].path(), &nodes[leader], steps, true).await;
        hub.alone.lock().insert(id);
        let node = start(&hub, id, &places[away]).await;
        assert_eq!(node.applied() == at, expected == "new", "after step {steps}");
        hub.alone.lock().clear();
        nodes.push(node);
        let leader = leader_of(&nodes).await;
        nodes[leader].put("later").await;
        all_equal(&nodes).await;
        for node in nodes {
            node.stop().await;
        }
    }
}

/// The first so many steps of what a replica does with a store that arrives: written, noted in the log, adopted.
async fn take_steps(folder: &std::path::Path, from: &Running, steps: usize, noted: bool) {
    let snapshot = from.reader.snapshot();
    let at = snapshot.progress().applied.unwrap();
    let members = from.replica.raft.metrics();
    let members = openraft::async_runtime::WatchReceiver::borrow_watched(&members).committed_membership_config.clone();
    let membership = members.log_id().as_ref().map(convert::position);
    let claim = transfer::Claim {
        applied: Some(at),
        membership: membership.map(|at| (at, convert::encode_membership(members.membership()))),
    };
    let shelf = shelf_in(folder);
    drop(transfer::copy(snapshot, &claim, shelf.begin().unwrap()).unwrap());
    if steps >= 2 && noted {
        let options =
            LogOptions { durability: Durability::Synced, mark: Some(folder.join("log-mark")), fresh_node_id: 9 };
        let (clock, failure, threads) = (Arc::new(SystemClock), Failure::default(), Threads::default());
        let log =
            log::Log::open(log_in(folder).await, options, &threads, clock, &failure, Arc::new(Unobserved)).unwrap();
        log.note_install(&convert::log_id(at)).await.unwrap();
        threads.stop();
    }
    if steps >= 3 {
        shelf.adopt().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_ahead_of_its_log_that_nobody_announced_is_refused() {
    let (folder, hub) = (tempfile::tempdir().unwrap(), Arc::<Hub>::default());
    let place = Place::Folder(folder.path().into());
    let nodes = found(&hub, &[Place::Memory]).await;
    for index in 0..10 {
        nodes[0].put(&index.to_string()).await;
    }
    start(&hub, 2, &place).await.stop().await;
    take_steps(folder.path(), &nodes[0], 3, false).await;
    let refused = try_start(&hub, 2, &place).await.err().unwrap();
    assert!(matches!(refused, Error::Gap { .. }), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retired_replica_does_not_start_again() {
    let (folder, hub) = (tempfile::tempdir().unwrap(), Arc::<Hub>::default());
    let place = Place::Folder(folder.path().into());
    let node = start(&hub, 2, &place).await;
    node.replica.retire().await.unwrap();
    node.stop().await;
    for _ in 0..2 {
        let refused = try_start(&hub, 2, &place).await.err().unwrap();
        assert!(matches!(refused, Error::Log(LogError::Retired { node_id: 2 })), "{refused}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_that_contradict_themselves_are_refused_and_do_no_harm() {
    use databroker_proto::internal::peer_request::Kind as Request;
    let nodes = found(&Arc::default(), &[Place::Memory]).await;
    let vote = |committed| Some(proto::Vote { term: 99, node: Some(2), committed });
    let id = |term, index| Some(proto::LogId { term, node: 0, index });
    let entry = |term, index| proto::LogEntry {
        id: id(term, index),
        payload: Some(proto::log_entry::Payload::Blank(proto::Blank {})),
    };
    let append =
        |vote, prev, entries| Request::Append(proto::AppendRequest { vote, prev, entries, leader_commit: None });
    let odd = [
        append(None, None, vec![]),
        append(vote(false), None, vec![]),
        append(vote(true), None, vec![entry(1, 5)]),
        append(vote(true), id(7, 5), vec![entry(6, 6)]),
        append(vote(true), id(7, 5), vec![entry(100, 6)]),
        append(vote(true), id(7, u64::MAX), vec![entry(7, 0)]),
        Request::Vote(proto::VoteRequest { vote: vote(true), ..Default::default() }),
        Request::PreVote(proto::VoteRequest::default()),
        Request::TransferLeader(proto::TransferLeaderRequest { from: vote(true), to: 9, last_log: None }),
    ];
    for kind in odd {
        let refused = nodes[0].replica.handle(kind.clone()).await;
        assert!(matches!(refused, Err(HandleError::Malformed(_))), "{kind:?}: {refused:?}");
    }
    assert!(matches!(nodes[0].replica.handle(Request::Hello(Default::default())).await, Err(HandleError::NotRaft)));
    let header = proto::SnapshotHeader { vote: vote(true), last_log: id(98, 1), format: 1, ..Default::default() };
    let chunk = SnapshotChunk { envelope: None, kind: Some(snapshot_chunk::Kind::Header(header)) };
    let refused = nodes[0].replica.install(stream::iter([chunk])).await;
    assert!(matches!(refused, Err(InstallError::Malformed(_))), "{refused:?}");
    assert!(matches!(nodes[0].replica.install(stream::iter([])).await, Err(InstallError::BrokenOff)));
    nodes[0].put("still").await;
    for node in nodes {
        node.stop().await;
    }
}
