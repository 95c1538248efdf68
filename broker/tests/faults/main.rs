//! What a cluster of processes may lose when nodes are killed, frozen, cut off or lose their disks: nothing that was
//! acknowledged, and no stream's place.
//!
//! Writers and streams roam over the nodes; a proxy in front of each node cuts connections. Afterwards all
//! acknowledged writes must be there, every stream must have seen every version once and in order, and all nodes must
//! hold the same.
//!
//! Environment: `FAULTS_ROUNDS` (faults of each kind; default 2), `FAULTS_SEED` (default: random, printed).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
// `pub` means here: for the other files of this test.
#![allow(unreachable_pub)]

mod clients;
mod cluster;
mod metrics;
mod proxy;
mod recovery;
#[path = "../support/mod.rs"]
mod support;

use std::{
    str::FromStr,
    time::{Duration, Instant},
};

use databroker_proto::databroker::GetRequest;
use rand::{RngExt as _, SeedableRng as _, rngs::SmallRng};
use std::sync::atomic::Ordering::Relaxed;

use self::{
    clients::{Addresses, Load, TYPE, Told},
    cluster::Cluster,
    support::PATIENCE,
};

const WRITERS: usize = 8;
const STREAMS: usize = 14;

fn from_environment<T: FromStr>(name: &str, default: T) -> T {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

fn seeded(test: &str) -> SmallRng {
    let seed = from_environment("FAULTS_SEED", rand::random::<u64>());
    println!("{test}: FAULTS_SEED={seed}");
    SmallRng::seed_from_u64(seed)
}

fn rounds() -> usize {
    from_environment("FAULTS_ROUNDS", 2)
}

fn addresses(cluster: &Cluster) -> Addresses {
    Addresses { ports: cluster.nodes.iter().map(|node| node.grpc).collect(), key: cluster.key.clone() }
}

/// A running cluster under load, and the gaps that faults have torn.
struct Trial {
    cluster: Cluster,
    load: Load,
    gaps: Vec<Duration>,
}

impl Trial {
    async fn start() -> Self {
        let cluster = Cluster::start(3).await;
        let server_version = addresses(&cluster).client(0).server_info(()).await.unwrap().into_inner().server_version;
        let load = Load::start(&addresses(&cluster), WRITERS, STREAMS, server_version);
        Self { cluster, load, gaps: Vec::new() }
    }

    /// Waits until writes are acknowledged again after a moment, for as long as `calm` at least.
    async fn recover(&mut self, since: Instant, calm: Duration) {
        let seen = || self.load.told.acknowledgements.lock().len();
        let (before, deadline) = (seen(), Instant::now() + PATIENCE);
        while seen() < before + 50 {
            assert!(Instant::now() < deadline, "no write is acknowledged any more\n{}", self.cluster.logs());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        tokio::time::sleep(calm).await;
        self.gaps.push(self.load.gap_since(since));
    }

    /// Somebody leads.
    async fn leader(&self) -> usize {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(leader) = self.cluster.leader() {
                return leader;
            }
            assert!(Instant::now() < deadline, "nobody leads\n{}", self.cluster.logs());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Every member is a voter again and has all that the leader has.
    async fn heal(&self) {
        self.cluster
            .wait_for("all members have caught up", |status| {
                let members = status["members"].as_array().cloned().unwrap_or_default();
                let voters = members.iter().filter(|m| matches!(m["role"].as_str(), Some("leader" | "voter")));
                voters.filter(|m| m["caughtUp"] == true && m["reachable"] == true).count() == 3 && members.len() == 3
            })
            .await;
    }

    /// Ends the load and holds what is there against what clients were told.
    async fn judge(self, what: &str) {
        self.heal().await;
        let addresses = addresses(&self.cluster);
        let upto = async || addresses.client(0).server_info(()).await.unwrap().into_inner().latest_record_version;
        let told = self.load.end(upto).await;
        let lost = lost(&addresses, &told).await;
        report(what, &told, &self.gaps, lost.len());
        assert!(lost.is_empty(), "lost: {:?}", &lost[..lost.len().min(5)]);
        let violations = told.violations.lock().clone();
        assert!(violations.is_empty(), "{:?}", &violations[..violations.len().min(5)]);
        assert_eq!(told.resyncs.load(Relaxed), 0, "streams had to begin again");
        let (failed, calls) = (told.failed.load(Relaxed), told.calls.load(Relaxed));
        assert!(failed * 1000 <= calls, "{failed} of {calls} calls failed");
    }
}

/// Acknowledged writes that a node does not have.
async fn lost(addresses: &Addresses, told: &Told) -> Vec<String> {
    let acknowledged = told.acknowledged.lock().clone();
    let mut lost = Vec::new();
    for node in 0..addresses.ports.len() {
        let mut client = addresses.client(node);
        for (id, (version, text)) in &acknowledged {
            let request = GetRequest { r#type: TYPE.into(), id: id.clone() };
            let found = client.get(request).await.map(|response| response.into_inner().record);
            let found = found.ok().flatten().and_then(|record| record.to_record().ok());
            // A write whose answer was lost may have come after the last that was acknowledged.
            let kept = found.as_ref().is_some_and(|found| {
                let same = found.data.as_ref().is_some_and(|data| data.value == text.as_bytes());
                found.version > *version || (found.version == *version && same)
            });
            if !kept {
                lost.push(format!("node {node}: {id} at {version}: {found:?}"));
            }
        }
    }
    lost
}

fn report(what: &str, told: &Told, gaps: &[Duration], lost: usize) {
    let mut gaps = gaps.to_vec();
    gaps.sort();
    let at = |share: usize| gaps.get((gaps.len() * share / 100).min(gaps.len().saturating_sub(1))).copied();
    println!(
        "{what}: {} faults, lost {lost}, violations {}, resyncs {}, failed calls {} of {}, acknowledged {}, events {}, \
         write gap p50 {:?} p99 {:?}, first status {:?}",
        gaps.len(),
        told.violations.lock().len(),
        told.resyncs.load(Relaxed),
        told.failed.load(Relaxed),
        told.calls.load(Relaxed),
        told.acknowledgements.lock().len(),
        told.events.load(Relaxed),
        at(50).unwrap_or_default(),
        at(99).unwrap_or_default(),
        told.first_failure.lock(),
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_leader_costs_no_acknowledged_write_and_no_streams_place() {
    let mut random = seeded("leader killed");
    let mut trial = Trial::start().await;
    for _ in 0..rounds() {
        let leader = trial.leader().await;
        tokio::time::sleep(Duration::from_millis(random.random_range(200..800))).await;
        let since = Instant::now();
        trial.cluster.kill(leader);
        trial.recover(since, Duration::from_millis(300)).await;
        trial.cluster.spawn(leader);
        trial.heal().await;
    }
    trial.judge("leader killed").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_and_frozen_followers_and_frozen_leaders_cost_nothing() {
    let mut random = seeded("frozen");
    let mut trial = Trial::start().await;
    for _ in 0..rounds() {
        let leader = trial.leader().await;
        let follower = (leader + random.random_range(1..3)) % 3;
        let since = Instant::now();
        trial.cluster.kill(follower);
        trial.recover(since, Duration::from_millis(200)).await;
        trial.cluster.spawn(follower);
        trial.heal().await;

        let frozen = if random.random_bool(0.5) { trial.leader().await } else { follower };
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
    for round in 0..rounds() {
        let leader = trial.leader().await;
        let pid = trial.cluster.pid(leader).unwrap();
        let one_way = round % 2 == 1;
        let others: Vec<u32> =
            (0..3).filter(|node| *node != leader).filter_map(|node| trial.cluster.pid(node)).collect();
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
    for round in 0..rounds() {
        let node = random.random_range(0..3);
        let since = Instant::now();
        if round % 2 == 0 {
            trial.cluster.kill(node);
            trial.cluster.wipe(node);
            trial.cluster.spawn(node);
        } else {
            // All at once, one of them without its disk.
            (0..3).for_each(|node| trial.cluster.kill(node));
            trial.cluster.wipe(node);
            (0..3).for_each(|node| trial.cluster.spawn(node));
        }
        trial.recover(since, Duration::from_millis(200)).await;
        trial.heal().await;
    }
    trial.judge("disk lost").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_is_stopped_hands_over_and_no_call_fails() {
    let mut trial = Trial::start().await;
    seeded("handover");
    for _ in 0..rounds() {
        let leader = trial.leader().await;
        let since = Instant::now();
        trial.cluster.stop(leader);
        trial.recover(since, Duration::from_millis(200)).await;
        trial.cluster.spawn(leader);
        trial.heal().await;
    }
    trial.judge("leader stopped").await;
}
