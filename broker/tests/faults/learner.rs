//! A node that lost its disk is brought up from nothing while others write: how fast, and what it costs the writers.

use std::time::{Duration, Instant};

use databroker_proto::databroker::PutRequest;

use crate::{
    clients::record,
    cluster::Cluster,
    from_environment, seeded,
    trial::{Trial, addresses},
};

/// Records per request while the store is filled.
const BATCH: usize = 500;

async fn fill(cluster: &Cluster, records: usize) {
    let addresses = addresses(cluster);
    let filling = (0..4).map(|part| {
        let mut client = addresses.client(part);
        tokio::spawn(async move {
            let own: Vec<_> = (0..records).filter(|number| number % 4 == part).collect();
            for numbers in own.chunks(BATCH) {
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
async fn a_node_without_a_disk_is_sent_the_store_while_others_write() {
    seeded("learner");
    let records: usize = from_environment("FAULTS_RECORDS", 20_000);
    let mut trial = Trial::start().await;
    fill(&trial.cluster, records).await;
    trial.heal().await;
    let node = (trial.leader().await + 1) % 3;
    let calm = Instant::now();
    tokio::time::sleep(Duration::from_secs(3)).await;
    trial.cluster.kill(node);
    trial.cluster.wipe(node);
    let began = Instant::now();
    trial.cluster.spawn(node);
    trial.heal().await;
    let (took, quiet, busy) = (began.elapsed(), p99(&trial, calm, began), p99(&trial, began, Instant::now()));
    println!(
        "{records} records sent in {took:?} from the start of the process to its vote: {:.0} records/s; \
         writers' p99 {quiet:?} before, {busy:?} meanwhile",
        records as f64 / took.as_secs_f64()
    );
    trial.judge("learner").await;
}
