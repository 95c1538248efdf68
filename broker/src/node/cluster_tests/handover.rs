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
