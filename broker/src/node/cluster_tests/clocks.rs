//! A leader with a wrong clock.
//!
//! Not here: what counts as wrong (`node::clocks`).

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_whose_clock_is_ahead_of_the_others_hands_over_and_all_say_whose_clock_differs() {
    let cluster = Cluster::of([COMMAND_VERSION; 3]).await;
    let wrong = ["a", "b", "c"].into_iter().find(|name| cluster.running[name].role().leads).unwrap();
    assert!(cluster.running.values().all(|node| node.clocks_differing().is_empty()));
    cluster.clocks[wrong].0.store(60_000, Relaxed);
    let (right, ahead) = (|| cluster.running.iter().filter(|(name, _)| **name != wrong), &cluster.running[wrong]);
    cluster.eventually("another leads", |_| right().any(|(_, node)| node.role().leads)).await;
    let told = |_: &[&Node]| {
        let differs = |node: &Node| node.clocks_differing().get(wrong).is_some_and(|ahead| *ahead > 50_000);
        right().all(|(_, node)| differs(node)) && ahead.clocks_differing().len() == 2
    };
    cluster.eventually("all know whose clock differs", told).await;
    for (name, node) in &cluster.running {
        node.propose(put(name)).await.unwrap();
    }
    assert!(!ahead.role().leads && ahead.replication().clocks_ahead_millis.values().all(|ahead| *ahead < -50_000));
    cluster.all_equal().await;
    cluster.end().await;
}
