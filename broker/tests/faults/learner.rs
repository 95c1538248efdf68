//! A node that is behind is brought up while others write, from nothing by a store, or by the log: how fast, and what it
//! costs the writers.

use std::{
    collections::BTreeMap,
    ops::Range,
    time::{Duration, Instant},
};

use databroker_proto::databroker::PutRequest;

use crate::{
    clients::{Pressure, record},
    cluster::Cluster,
    from_environment,
    metrics::{scrape, until},
    seeded,
    support::PATIENCE,
    trial::{Trial, addresses},
};

/// Records per request while the store is filled.
const BATCH: usize = 500;

/// Keeps a log for all that a node is behind by, and what the writers add.
const KEPT: &str = "databroker_raft_log_bytes_kept: 2GiB\n";

async fn fill(cluster: &Cluster, nodes: &[usize], records: Range<usize>) {
    let addresses = addresses(cluster);
    let filling = (0..4).map(|part| {
        let (mut client, own) = (addresses.client(nodes[part % nodes.len()]), records.clone().skip(part).step_by(4));
        tokio::spawn(async move {
            for numbers in own.collect::<Vec<_>>().chunks(BATCH) {
                let records = numbers.iter().map(|number| record(&format!("{number:012}"), &"x".repeat(200)).into());
                client.put(PutRequest { records: records.collect() }).await.unwrap();
            }
        })
    });
    futures::future::join_all(filling).await.into_iter().for_each(|filled| filled.unwrap());
}

/// How often the node that is brought up is asked: a small part of the time it takes.
const ASKED_EVERY: Duration = Duration::from_millis(25);

/// What a node has applied, by its own word, if it votes and answers at all.
fn applied(cluster: &Cluster, node: usize) -> Option<f64> {
    let now = scrape(cluster, node).ok()?;
    let votes = ["voter", "leader"].map(|role| now.get(&format!("databroker_raft_role{{role=\"{role}\"}}")).copied());
    votes.contains(&Some(1.0)).then(|| now.get("databroker_raft_log_index_applied").copied())?
}

/// Whether the leader, which this is the status of, has not heard of a node for a while.
fn misses(status: &serde_json::Value, name: &str) -> bool {
    let mut members = status["members"].as_array().into_iter().flatten();
    status["leader"] == status["answeredBy"]
        && members.any(|member| member["name"] == name && member["reachable"] == false)
}

/// Waits until a node votes and has applied all that `leader` had when this began; by the node's own words, from after
/// that.
async fn brought_up(cluster: &Cluster, node: usize, leader: usize) {
    let target = (0..10).find_map(|_| applied(cluster, leader)).expect("the leader answers");
    let deadline = Instant::now() + PATIENCE;
    while applied(cluster, node).is_none_or(|applied| applied < target) {
        assert!(Instant::now() < deadline, "it never catches up\n{}", cluster.logs());
        tokio::time::sleep(ASKED_EVERY).await;
    }
}

/// The time in which 99 of 100 waits between acknowledgements of all writers together ended.
fn p99(trial: &Trial, since: Instant, until: Instant) -> Duration {
    let at = |moment: Instant| moment.duration_since(trial.load.began).as_micros() as u64;
    let mut took: Vec<u64> = trial
        .load
        .told
        .latencies
        .lock()
        .iter()
        .filter(|(ended, _)| (at(since)..at(until)).contains(ended))
        .map(|(_, took)| *took)
        .collect();
    took.sort_unstable();
    Duration::from_micros(took.get(took.len() * 99 / 100).copied().unwrap_or(0))
}

/// A cluster with so many records under load, in which nothing else is to be done; and the writers' p99 then.
async fn filled(records: usize, settings: &str) -> (Trial, Duration) {
    // Enough to see what it costs them, and not so much that it is the writers who are measured.
    let pressure = Pressure { writers: 8, readers: 0, leases: 0, streams: 1, pause: Duration::from_millis(10) };
    let trial = Trial::of(Cluster::start_directly(3, settings).await, pressure).await;
    fill(&trial.cluster, &[0, 1, 2], 0..records).await;
    trial.heal().await;
    // What it costs writers is held against what they have when nothing else is to be done.
    for node in 0..3 {
        let idle = |now: &BTreeMap<String, f64>| {
            now["databroker_store_compactions"] + now["databroker_store_flushes_pending"] == 0.0
        };
        until(&trial.cluster, node, "what was filled in is compacted", idle).await;
    }
    let calm = Instant::now();
    tokio::time::sleep(Duration::from_secs(3)).await;
    let quiet = p99(&trial, calm, Instant::now());
    (trial, quiet)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_without_anything_is_brought_up_by_a_store_while_others_write() {
    seeded("learner by store");
    let records: usize = from_environment("FAULTS_RECORDS", 20_000);
    let (mut trial, quiet) = filled(records, "").await;
    let node = (trial.leader().await + 1) % 3;
    trial.cluster.kill(node);
    trial.cluster.wipe(node);
    // Until then a second node of its name would be taken for one too many, and wait.
    let name = trial.cluster.nodes[node].name.clone();
    trial.cluster.wait_for("the node is missed", |status| misses(status, &name)).await;
    let leader = trial.leader().await;
    let began = Instant::now();
    trial.cluster.spawn(node);
    brought_up(&trial.cluster, node, leader).await;
    tell(&trial, "store", records, began, quiet);
    trial.judge("learner by store").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_behind_is_brought_up_by_the_log_while_others_write() {
    seeded("learner by log");
    let records: usize = from_environment("FAULTS_RECORDS", 20_000);
    let (trial, quiet) = filled(records, KEPT).await;
    let node = (trial.leader().await + 1) % 3;
    let others: Vec<_> = (0..3).filter(|other| *other != node).collect();
    // Frozen and not killed: what is measured begins with the first entry.
    trial.cluster.freeze(node);
    fill(&trial.cluster, &others, 0..records).await;
    let leader = trial.leader().await;
    let began = Instant::now();
    trial.cluster.thaw(node);
    brought_up(&trial.cluster, node, leader).await;
    tell(&trial, "log", records, began, quiet);
    trial.judge("learner by log").await;
}

fn tell(trial: &Trial, from: &str, records: usize, began: Instant, quiet: Duration) {
    let (took, busy) = (began.elapsed(), p99(trial, began, Instant::now()));
    println!(
        "{records} records by {from} in {took:?}, until it votes and has all: {:.0} records/s; the writers' p99 was \
         {quiet:?} before, {busy:?} meanwhile",
        records as f64 / took.as_secs_f64()
    );
}
