//! A removed node hears that it is, wherever it comes back.
//!
//! Not here: what it does then (`node::tests`), and that it does not vote meanwhile (`tests/simulation`).

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_node_that_comes_back_at_another_address_is_told_there() {
    let mut cluster = Cluster::of([COMMAND_VERSION; 3]).await;
    cluster.running["c"].step_down().await;
    cluster.stop("c").await;
    cluster.eventually("one of the others leads", |nodes| nodes.iter().any(|node| node.role().leads)).await;
    let leader = cluster.leader().unwrap().clone();
    let generation = leader.cluster_status().shape_generation;
    assert!(leader.set_members(generation, ["a", "b"].map(shaped).into()).await.unwrap().accepted);
    cluster.eventually("it is removed", |_| leader.cluster_status().retired.len() == 1).await;
    let back = cluster.start_at("elsewhere:1", "c", COMMAND_VERSION).await.unwrap();
    let reason = timeout(PATIENCE, back.failed()).await.unwrap();
    assert!(back.was_removed() && reason.contains("was removed from its cluster"), "{reason}");
    cluster.eventually("that is noted", |_| leader.cluster_status().retired.iter().all(|it| it.confirmed)).await;
    drop((leader, back));
    cluster.end().await;
}
