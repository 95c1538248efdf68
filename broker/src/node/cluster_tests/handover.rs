//! Leadership goes where an operator wants it, or the operator hears why not.
//!
//! Not here: that no write is lost meanwhile (`tests/faults`).

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_the_leader_hands_over_and_others_say_whom_to_ask() {
    let cluster = Cluster::of([COMMAND_VERSION; 3]).await;
    let all_agree = |nodes: &[&Node]| {
        let leader = nodes[0].leader_name();
        leader.is_some() && nodes.iter().all(|node| node.leader_name() == leader)
    };
    cluster.eventually("all know who leads", all_agree).await;
    let leader = cluster.leader().unwrap().leader_name().unwrap();
    let followers: Vec<_> = ["a", "b", "c"].into_iter().filter(|name| *name != leader).collect();
    let follower = &cluster.running[followers[0]];
    let elsewhere = HandoverError::Elsewhere { leader: leader.clone() };
    for to in [None, Some(followers[0]), Some(followers[1])] {
        assert_eq!(follower.hand_over(to).await, Err(elsewhere.clone()), "{to:?}");
    }
    // It leads already.
    assert_eq!(follower.hand_over(Some(&leader)).await, Ok(leader.clone()));
    for node in cluster.running.values() {
        assert_eq!(node.hand_over(Some("bogus")).await, Err(HandoverError::Unknown { name: "bogus".into() }));
    }
    let leading = cluster.running[leader.as_str()].clone();
    assert!(leading.role().leads);
    assert_eq!(leading.hand_over(Some(&leader)).await, Ok(leader.clone()));
    assert_eq!(leading.hand_over(Some(followers[1])).await, Ok(followers[1].into()));
    drop(leading);
    cluster.end().await;
}

/// A leader with two voters, of which the first is stopped, and lacks something of the log.
async fn with_one_stopped() -> (Cluster, Node, &'static str, &'static str) {
    let mut cluster = Cluster::of([COMMAND_VERSION; 3]).await;
    let leader = cluster.leader().unwrap().clone();
    let others: Vec<_> = ["a", "b", "c"].into_iter().filter(|name| *name != leader.shared.member.name).collect();
    cluster.stop(others[0]).await;
    leader.propose(put("x")).await.unwrap();
    (cluster, leader, others[0], others[1])
}

fn id_of(node: &Node, name: &str) -> crate::raft::NodeId {
    let members = node.shared.replica.members().members;
    members.into_iter().find(|(_, member)| member.name == name).unwrap().0
}

/// The steward, say: whoever it asks seemed to be there a moment ago.
fn hand_over_to(node: &Node, name: &str) -> tokio::task::JoinHandle<Result<String, HandoverError>> {
    let (node, to) = (node.clone(), id_of(node, name));
    tokio::spawn(async move { node.hand_over_to(to).await })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_voter_that_does_not_answer_is_refused_at_once_and_no_write_is_held_for_it() {
    let (cluster, leader, stopped, _) = with_one_stopped().await;
    let missed = id_of(&leader, stopped);
    cluster.eventually("it is missed", |_| !leader.observe().is_caught_up(missed)).await;
    let open = leader.shared.open.subscribe();
    assert_eq!(leader.hand_over(Some(stopped)).await, Err(HandoverError::NoSuccessor));
    assert!(leader.role().leads && !open.has_changed().unwrap());
    drop((leader, open));
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_handovers_at_once_the_second_begins_when_the_first_is_over() {
    let (cluster, leader, stopped, there) = with_one_stopped().await;
    let first = hand_over_to(&leader, stopped);
    cluster.eventually("writes are held", |_| !*leader.shared.open.borrow()).await;
    assert_eq!(leader.hand_over(Some(there)).await, Ok(there.into()));
    assert!(first.is_finished());
    assert_eq!(first.await.unwrap(), Err(HandoverError::TimedOut { name: stopped.into() }));
    drop(leader);
    cluster.end().await;
}

/// One is asked to lead that does not answer, and another leads meanwhile. Returns how the first handover ended; nothing
/// if the other took longer to lead than the first is waited for, as on a slow machine.
async fn another_leads_meanwhile() -> Option<(Result<String, HandoverError>, &'static str)> {
    let (cluster, leader, stopped, there) = with_one_stopped().await;
    let (other, mut led) = (id_of(&leader, there), false);
    let handing = hand_over_to(&leader, stopped);
    while !handing.is_finished() {
        // In this order: it led while writes were held.
        let leads = leader.role().leader == Some(other);
        let held = !*leader.shared.open.borrow();
        led |= leads && held;
        if held {
            // As if it was elected.
            drop(leader.shared.replica.transfer_leader(other).await);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let handed = handing.await.unwrap();
    assert!(*leader.shared.open.borrow());
    drop(leader);
    cluster.end().await;
    let too_slow = !led && handed == Err(HandoverError::TimedOut { name: stopped.into() });
    (!too_slow).then_some((handed, there))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_wait_for_one_ends_when_another_leads() {
    for _ in 0..10 {
        if let Some((handed, there)) = another_leads_meanwhile().await {
            assert_eq!(handed, Ok(there.into()));
            return;
        }
    }
    panic!("no other ever led in time");
}
