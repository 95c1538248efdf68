//! A leader may name an index that nobody ever reaches: it dies before the entry is committed.
//!
//! Not here: that a read sees what was acknowledged (`tests/simulation`).

use super::*;

/// A node that does not lead, and has been told of such an index by the one that does.
async fn misled(cluster: &Cluster) -> (Node, Node) {
    let leader = cluster.leader().unwrap().clone();
    let knows = |node: &&Node| node.role().leader == Some(leader.shared.replica.node_id());
    cluster.eventually("all know who leads", |nodes| nodes.iter().all(knows)).await;
    let follower = cluster.running.values().find(|node| !node.role().leads).unwrap().clone();
    cluster.hub.lies.store(true, Relaxed);
    (leader, follower)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_asks_the_next_leader_if_the_last_one_named_an_index_that_never_comes() {
    let cluster = Cluster::of([COMMAND_VERSION; 3]).await;
    let (leader, follower) = misled(&cluster).await;
    let reading = follower.clone();
    let read = tokio::spawn(async move { reading.fence_within(PATIENCE).await.map(drop) });
    cluster.eventually("it was asked", |_| !cluster.hub.lies.load(Relaxed)).await;
    leader.hand_over(None).await.unwrap();
    assert!(read.await.unwrap().is_ok());
    drop((leader, follower));
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_that_gave_up_keep_nobody_waiting() {
    let cluster = Cluster::of([COMMAND_VERSION; 3]).await;
    let (leader, follower) = misled(&cluster).await;
    let reading = async {
        while cluster.hub.lies.load(Relaxed) {
            drop(follower.fence_within(Duration::from_millis(50)).await);
        }
    };
    timeout(PATIENCE, reading).await.unwrap();
    assert!(follower.fence().await.is_ok());
    drop((leader, follower));
    cluster.end().await;
}
