//! Nodes that are killed, frozen, cut off, stopped, or lose their disks.

use std::{
    sync::atomic::Ordering::Relaxed,
    time::{Duration, Instant},
};

use rand::RngExt as _;

use crate::{
    rounds, seeded,
    trial::{HANDED_OVER, KILLED, Trial},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_leader_costs_no_acknowledged_write_and_no_streams_place() {
    let mut random = seeded("leader killed");
    let mut trial = Trial::start().await;
    for _ in 0..rounds(50) {
        let leader = trial.leader().await;
        tokio::time::sleep(Duration::from_millis(random.random_range(200..800))).await;
        let since = Instant::now();
        trial.cluster.kill(leader);
        trial.recover(since, Duration::from_millis(300)).await;
        trial.cluster.spawn(leader);
        trial.heal().await;
    }
    trial.judge_gaps("leader killed", KILLED).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_follower_costs_nothing() {
    let mut random = seeded("follower killed");
    let mut trial = Trial::start().await;
    for _ in 0..rounds(20) {
        let follower = (trial.leader().await + random.random_range(1..3)) % 3;
        let since = Instant::now();
        trial.cluster.kill(follower);
        trial.recover(since, Duration::from_millis(random.random_range(100..500))).await;
        trial.cluster.spawn(follower);
        trial.heal().await;
    }
    trial.judge("follower killed").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_node_costs_nothing() {
    let mut random = seeded("frozen");
    let mut trial = Trial::start().await;
    for round in 0..rounds(10) {
        let leader = trial.leader().await;
        let frozen = if round % 2 == 0 { leader } else { (leader + random.random_range(1..3)) % 3 };
        let since = Instant::now();
        trial.cluster.freeze(frozen);
        trial.recover(since, Duration::from_millis(random.random_range(500..2500))).await;
        trial.cluster.thaw(frozen);
        trial.heal().await;
    }
    trial.judge("frozen").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_is_cut_off_costs_nothing() {
    let mut random = seeded("partition");
    let mut trial = Trial::start().await;
    for round in 0..rounds(20) {
        let leader = trial.leader().await;
        let pid = trial.cluster.pid(leader).unwrap();
        let one_way = round % 2 == 1;
        let others: Vec<u32> =
            (0..3).filter(|node| *node != leader).filter_map(|node| trial.cluster.pid(node)).collect();
        trial.cluster.disturbed.add(leader);
        let since = Instant::now();
        for (node, proxy) in trial.cluster.proxies.iter().enumerate() {
            proxy.change(|rules| {
                if node == leader {
                    // What others send to the leader, and what it answers them.
                    rules.cut_from.extend(others.iter().filter(|_| !one_way));
                    rules.cut_to.extend(&others);
                } else {
                    rules.cut_from.insert(pid);
                    rules.cut_to.extend(std::iter::once(pid).filter(|_| !one_way));
                }
            });
        }
        trial.recover(since, Duration::from_millis(random.random_range(300..1500))).await;
        trial.cluster.proxies.iter().for_each(|proxy| proxy.change(|rules| *rules = Default::default()));
        trial.heal().await;
    }
    trial.judge("leader cut off").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_disk_is_filled_again_and_costs_nothing() {
    let mut random = seeded("disk lost");
    let mut trial = Trial::start().await;
    for _ in 0..rounds(20) {
        let node = random.random_range(0..3);
        let since = Instant::now();
        trial.cluster.kill(node);
        trial.cluster.wipe(node);
        trial.cluster.spawn(node);
        trial.recover(since, Duration::from_millis(200)).await;
        trial.heal().await;
    }
    trial.judge("disk lost").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_of_all_loses_nothing() {
    let mut trial = Trial::start().await;
    seeded("all killed");
    for _ in 0..rounds(10) {
        restart_all(&mut trial, None).await;
    }
    trial.judge("all killed").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_of_all_one_of_them_without_its_disk_loses_nothing() {
    let mut random = seeded("all killed, a disk lost");
    let mut trial = Trial::start().await;
    for _ in 0..rounds(20) {
        restart_all(&mut trial, Some(random.random_range(0..3))).await;
    }
    trial.judge("all killed, a disk lost").await;
}

async fn restart_all(trial: &mut Trial, wiped: Option<usize>) {
    let since = Instant::now();
    (0..3).for_each(|node| trial.cluster.kill(node));
    wiped.into_iter().for_each(|node| trial.cluster.wipe(node));
    (0..3).for_each(|node| trial.cluster.spawn(node));
    trial.recover(since, Duration::from_millis(200)).await;
    trial.heal().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_is_stopped_hands_over_and_no_call_fails() {
    let mut trial = Trial::start().await;
    seeded("handover");
    for _ in 0..rounds(20) {
        let leader = trial.leader().await;
        let since = Instant::now();
        trial.cluster.stop(leader);
        trial.recover(since, Duration::from_millis(200)).await;
        trial.cluster.spawn(leader);
        trial.heal().await;
    }
    let told = trial.judge_gaps("leader stopped", HANDED_OVER).await;
    assert_eq!(told.failed.load(Relaxed), 0, "calls failed");
}
