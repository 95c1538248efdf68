//! A node that is behind is brought up while others write, from nothing by a store, or by the log: how fast, and what it
//! costs the writers.

use std::{
    ops::Range,
    time::{Duration, Instant},
};

use databroker_proto::databroker::PutRequest;

use crate::{
    clients::{Pressure, record},
    cluster::Cluster,
    from_environment, seeded,
    trial::{Trial, addresses},
};

/// Records per request while the store is filled.
const BATCH: usize = 500;

/// Records that surely fit into the part of the log that is kept for followers.
const LOGGED: usize = 80_000;

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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_behind_is_brought_up_while_others_write() {
    seeded("learner");
    let records: usize = from_environment("FAULTS_RECORDS", 20_000);
    // Enough to see what it costs them, and not so much that it is the writers who are measured.
    let mut trial = Trial::under(Pressure { writers: 8, streams: 1, pause: Duration::from_millis(10) }).await;
    fill(&trial.cluster, &[0, 1, 2], 0..records).await;
    trial.heal().await;
    let node = (trial.leader().await + 1) % 3;
    let others: Vec<_> = (0..3).filter(|other| *other != node).collect();
    let calm = Instant::now();
    tokio::time::sleep(Duration::from_secs(3)).await;
    let quiet = p99(&trial, calm, Instant::now());

    trial.cluster.kill(node);
    trial.cluster.wipe(node);
    let began = Instant::now();
    trial.cluster.spawn(node);
    trial.heal().await;
    tell(&trial, "store", records, began, quiet);

    // Frozen and not killed: what is measured begins with the first entry.
    trial.cluster.freeze(node);
    let behind = records.min(LOGGED);
    fill(&trial.cluster, &others, 0..behind).await;
    let began = Instant::now();
    trial.cluster.thaw(node);
    trial.heal().await;
    tell(&trial, "log", behind, began, quiet);
    trial.judge("learner").await;
}

fn tell(trial: &Trial, from: &str, records: usize, began: Instant, quiet: Duration) {
    let (took, busy) = (began.elapsed(), p99(trial, began, Instant::now()));
    println!(
        "{records} records by {from} in {took:?}, until it votes and has all: {:.0} records/s; the writers' p99 was \
         {quiet:?} before, {busy:?} meanwhile",
        records as f64 / took.as_secs_f64()
    );
}
