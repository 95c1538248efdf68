//! A cluster under load, and the judgement on it. Not here: the faults.

use std::{
    sync::atomic::Ordering::Relaxed,
    time::{Duration, Instant},
};

use databroker_proto::databroker::GetRequest;
use tonic::Code;

use crate::{
    clients::{Addresses, Load, Pressure, TYPE, Told},
    cluster::{Cluster, Status},
    support::PATIENCE,
};

const WRITERS: usize = 8;
const STREAMS: usize = 14;

pub fn addresses(cluster: &Cluster) -> Addresses {
    Addresses { ports: cluster.nodes.iter().map(|node| node.grpc).collect(), key: cluster.key.clone() }
}

/// A running cluster under load, and the gaps that faults have torn.
pub struct Trial {
    pub cluster: Cluster,
    pub load: Load,
    gaps: Vec<Duration>,
}

impl Trial {
    pub async fn start() -> Self {
        Self::under(Pressure { writers: WRITERS, streams: STREAMS, pause: Duration::ZERO }).await
    }

    /// A cluster under a load of its own.
    pub async fn under(pressure: Pressure) -> Self {
        let cluster = Cluster::start(3).await;
        let server_version = addresses(&cluster).client(0).server_info(()).await.unwrap().into_inner().server_version;
        let load = Load::start(&addresses(&cluster), pressure, server_version);
        Self { cluster, load, gaps: Vec::new() }
    }

    /// Waits until writes are acknowledged again after a moment, for as long as `calm` at least.
    pub async fn recover(&mut self, since: Instant, calm: Duration) {
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
    pub async fn leader(&self) -> usize {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(leader) = self.cluster.leader() {
                return leader;
            }
            assert!(Instant::now() < deadline, "nobody leads\n{}", self.cluster.logs());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// All nodes are voters again and have all that the leader has.
    pub async fn heal(&self) {
        self.cluster.wait_for_all("all nodes have caught up", is_whole).await;
    }

    /// The same, with a supervisor: processes that end by themselves, as nodes do that learn that they were removed, are
    /// started again.
    pub async fn heal_supervised(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        while !is_whole(&self.cluster.statuses()) {
            assert!(Instant::now() < deadline, "the cluster is never whole again\n{}", self.cluster.logs());
            self.cluster.restart_ended();
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Ends the load and holds what is there against what clients were told.
    pub async fn judge(self, what: &str) {
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

/// The leader says that all three nodes vote and have caught up, and it means those that run: each knows itself by the
/// node id that the leader has for its name.
fn is_whole(statuses: &[Status]) -> bool {
    let Some((_, leaders)) = statuses.iter().find(|(name, status)| status["leader"] == name.as_str()) else {
        return false;
    };
    let voters = |status: &serde_json::Value| -> Vec<serde_json::Value> {
        let members = status["members"].as_array().cloned().unwrap_or_default();
        members.into_iter().filter(|member| matches!(member["role"].as_str(), Some("leader" | "voter"))).collect()
    };
    let well: Vec<_> =
        voters(leaders).into_iter().filter(|voter| voter["caughtUp"] == true && voter["reachable"] == true).collect();
    let agree = statuses.iter().filter(|(name, status)| {
        let own = voters(status).into_iter().find(|voter| voter["name"] == name.as_str());
        own.is_some_and(|own| well.iter().any(|voter| voter["node"] == own["node"]))
    });
    agree.count() == 3 && leaders["members"].as_array().is_some_and(|members| members.len() == 3)
}

/// Acknowledged writes that a node does not have.
async fn lost(addresses: &Addresses, told: &Told) -> Vec<String> {
    let acknowledged = told.acknowledged.lock().clone();
    let mut lost = Vec::new();
    for node in 0..addresses.ports.len() {
        let mut client = addresses.client(node);
        for (id, (version, text)) in &acknowledged {
            let request = GetRequest { r#type: TYPE.into(), id: id.clone() };
            let found = match client.get(request).await {
                Ok(response) => response.into_inner().record.map(|record| record.to_record().unwrap()),
                Err(status) if status.code() == Code::NotFound => None,
                Err(status) => panic!("node {node} does not answer: {status}"),
            };
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
