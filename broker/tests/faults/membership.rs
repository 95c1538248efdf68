//! Nodes that are removed, and come back on their old disks.

use std::time::{Duration, Instant};

use rand::RngExt as _;

use crate::{
    cluster::voters,
    rounds, seeded,
    support::PATIENCE,
    trial::{Trial, addresses},
};

/// Removes all nodes but one and waits until they are gone. Their processes run, or have ended by themselves.
async fn remove_all_but(trial: &Trial, kept: usize) {
    let others: Vec<_> = (0..3).filter(|node| *node != kept).collect();
    others.iter().for_each(|node| trial.cluster.disturbed.add(*node));
    trial.cluster.remove_members(kept, &others);
    trial
        .cluster
        .wait_for("one node is left, and leads", |status| {
            voters(status).count() == 1 && status["leader"] == trial.cluster.nodes[kept].name.as_str()
        })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scaling_to_one_and_back_to_three_on_the_old_disks_keeps_one_history() {
    let mut random = seeded("scaled");
    let mut trial = Trial::start().await;
    for round in 0..rounds(20) {
        let kept = random.random_range(0..3);
        let others: Vec<_> = (0..3).filter(|node| *node != kept).collect();
        let since = Instant::now();
        // Every other time one of them does not hear that it was removed.
        if round % 2 == 1 {
            trial.cluster.kill(others[0]);
        }
        remove_all_but(&trial, kept).await;
        others.iter().for_each(|node| trial.cluster.kill(*node));
        others.iter().for_each(|node| trial.cluster.spawn(*node));
        trial.cluster.add_members(kept, &others);
        trial.heal_supervised().await;
        trial.recover(since, Duration::from_millis(200)).await;
    }
    trial.judge("scaled").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn removed_nodes_that_come_back_alone_elect_nobody_and_serve_nothing() {
    let mut random = seeded("removed");
    let mut trial = Trial::start().await;
    let kept = random.random_range(0..3);
    let removed: Vec<_> = (0..3).filter(|node| *node != kept).collect();
    remove_all_but(&trial, kept).await;
    trial
        .cluster
        .wait_for("the removed nodes know that they are", |status| {
            let retired = status["retired"].as_array().map_or(&[][..], Vec::as_slice);
            retired.len() == 2 && retired.iter().all(|retired| retired["confirmed"] == true)
        })
        .await;
    removed.iter().for_each(|node| trial.cluster.kill(*node));
    let addresses = addresses(&trial.cluster);
    trial.cluster.freeze(kept);
    removed.iter().for_each(|node| trial.cluster.spawn(*node));
    // Ten times as long as an election takes.
    let (began, mut answers) = (Instant::now(), 0);
    while began.elapsed() < Duration::from_secs(4) || answers == 0 {
        assert!(began.elapsed() < PATIENCE, "the removed nodes never answered\n{}", trial.cluster.logs());
        for node in &removed {
            let Some(status) = trial.cluster.status(*node) else { continue };
            answers += 1;
            assert!(status["leader"].as_str().is_none_or(str::is_empty), "they elected a leader: {status:#}");
            let read = tokio::time::timeout(Duration::from_secs(1), addresses.client(*node).server_info(())).await;
            assert!(!matches!(read, Ok(Ok(_))), "a removed node serves: {read:?}");
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    println!("{answers} times the removed nodes said that nobody leads");
    trial.cluster.thaw(kept);
    trial.cluster.add_members(kept, &removed);
    trial.heal_supervised().await;
    trial.judge("removed").await;
}
