//! A cluster under load, held against what its clients were told. Not here: the faults, and what is a violation
//! (`history`).

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use databroker_proto::databroker::GetRequest;
use futures::{StreamExt as _, TryStreamExt as _};
use tonic::Code;

use crate::{
    clients::{Addresses, Load, Pressure, TYPE, Told, content},
    cluster::{Cluster, Status, voters, voters_well},
    history::{Found, Verdict},
    support::PATIENCE,
    wants_figures,
};

const WRITERS: usize = 8;
const STREAMS: usize = 14;
/// Of the clients that read.
const READERS_AT_WORK: usize = 2;

/// Reads at once while a node is asked for everything.
const READERS: usize = 32;

/// The gaps in writing that are aimed at. Told and not asserted: they depend on the machine.
#[derive(Clone, Copy)]
pub struct Aims {
    p50_max: Duration,
    p99_max: Duration,
}

/// When a leader dies.
pub const KILLED: Aims = Aims { p50_max: Duration::from_millis(900), p99_max: Duration::from_secs(2) };
/// When it hands over.
pub const HANDED_OVER: Aims = Aims { p50_max: Duration::from_millis(250), p99_max: Duration::from_millis(250) };

pub fn addresses(cluster: &Cluster) -> Addresses {
    let ports = cluster.nodes.iter().map(|node| node.grpc).collect();
    Addresses { ports, key: cluster.key.clone(), disturbed: cluster.disturbed.clone() }
}

/// A running cluster under load, and the gaps that faults have torn.
pub struct Trial {
    pub cluster: Cluster,
    pub load: Load,
    gaps: Vec<Duration>,
}

impl Trial {
    pub async fn start() -> Self {
        let pressure =
            Pressure { writers: WRITERS, readers: READERS_AT_WORK, leases: 1, streams: STREAMS, pause: Duration::ZERO };
        Self::of(Cluster::start(3).await, pressure).await
    }

    /// A cluster and a load of its own.
    pub async fn of(cluster: Cluster, pressure: Pressure) -> Self {
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
        self.cluster.disturbed.clear();
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
        self.cluster.disturbed.clear();
    }

    /// As [`Trial::judge`], and where figures are wanted, says whether the gaps are as short as they are to be.
    pub async fn judge_gaps(self, what: &str, aims: Aims) -> Arc<Told> {
        let gaps = self.gaps.clone();
        let told = self.judge(what).await;
        if wants_figures() {
            println!("{what}: {}", aims.verdict(&gaps));
        }
        told
    }

    /// Ends the load and holds what is there against what clients were told.
    pub async fn judge(self, what: &str) -> Arc<Told> {
        self.heal().await;
        let addresses = addresses(&self.cluster);
        let upto = async || addresses.client(0).server_info(()).await.unwrap().into_inner().latest_record_version;
        let told = self.load.end(upto).await;
        let mut nodes = Vec::new();
        for node in 0..addresses.ports.len() {
            nodes.push(answers(&addresses, node, &told).await);
        }
        let verdict = told.history.lock().verdict(&nodes);
        report(what, &told, &self.gaps, &verdict);
        let Verdict { lost, violations } = verdict;
        assert!(lost.is_empty(), "lost: {:?}", &lost[..lost.len().min(5)]);
        assert!(violations.is_empty(), "{:?}", &violations[..violations.len().min(5)]);
        assert_eq!(told.resyncs.load(Relaxed), 0, "streams had to begin again");
        let (failed, calls) = (told.failed.load(Relaxed), told.calls.load(Relaxed));
        assert!(failed * 1000 <= calls, "{failed} of {calls} calls failed");
        told
    }
}

/// The leader says that all three nodes vote and have caught up, and it means those that run: each knows itself by the
/// node id that the leader has for its name.
pub fn is_whole(statuses: &[Status]) -> bool {
    let Some((_, leaders)) = statuses.iter().find(|(name, status)| status["leader"] == name.as_str()) else {
        return false;
    };
    let agree = statuses.iter().filter(|(name, status)| {
        let own = voters(status).find(|voter| voter["name"] == name.as_str());
        own.is_some_and(|own| voters_well(leaders).any(|voter| voter["node"] == own["node"]))
    });
    agree.count() == 3 && leaders["members"].as_array().is_some_and(|members| members.len() == 3)
}

/// What a node answers to Get for each record that streams have shown.
async fn answers(addresses: &Addresses, node: usize, told: &Told) -> BTreeMap<String, Found> {
    let ids: Vec<String> = told.history.lock().last().into_keys().map(str::to_owned).collect();
    let client = addresses.client(node);
    let asked = futures::stream::iter(ids).map(|id| {
        let mut client = client.clone();
        async move {
            let request = GetRequest { r#type: TYPE.into(), id: id.clone() };
            match client.get(request).await {
                Ok(response) => {
                    let record = response.into_inner().record.expect("it is there").to_record().unwrap();
                    Ok((id, Some((record.version, content(record).1))))
                }
                Err(status) if status.code() == Code::NotFound => Ok((id, None)),
                Err(status) => Err(status),
            }
        }
    });
    let answers = asked.buffer_unordered(READERS).try_collect().await;
    answers.unwrap_or_else(|status| panic!("node {node} does not answer: {status}"))
}

/// The gap that `share` of a hundred faults did not exceed.
fn quantile(gaps: &[Duration], share: usize) -> Duration {
    let mut gaps = gaps.to_vec();
    gaps.sort();
    gaps.get((gaps.len() * share / 100).min(gaps.len().saturating_sub(1))).copied().unwrap_or_default()
}

impl Aims {
    fn verdict(self, gaps: &[Duration]) -> String {
        let (Self { p50_max, p99_max }, p50, p99) = (self, quantile(gaps, 50), quantile(gaps, 99));
        let met = if p50 <= p50_max && p99 <= p99_max { "met" } else { "missed" };
        format!("target p50 ≤ {p50_max:?}, p99 ≤ {p99_max:?}: {met} with p50 {p50:?}, p99 {p99:?}")
    }
}

fn report(what: &str, told: &Told, gaps: &[Duration], verdict: &Verdict) {
    let (expected, unexpected) = told.attempts.counts();
    println!(
        "{what}: {} faults, lost {}, violations {}, resyncs {}, failed calls {} of {}, failed attempts {expected} on \
         disturbed nodes and {unexpected} others, acknowledged {}, events {}, write gap p50 {:?} p99 {:?}\n{}",
        gaps.len(),
        verdict.lost.len(),
        verdict.violations.len(),
        told.resyncs.load(Relaxed),
        told.failed.load(Relaxed),
        told.calls.load(Relaxed),
        told.history.lock().acknowledged(),
        told.events.load(Relaxed),
        quantile(gaps, 50),
        quantile(gaps, 99),
        told.attempts,
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_are_held_against_what_is_aimed_at() {
        let short = [Duration::from_millis(300); 10];
        let aims = |gaps: &[Duration]| KILLED.verdict(gaps);
        assert!(aims(&short).contains(": met with p50 300ms"), "{}", aims(&short));
        assert!(aims(&[Duration::from_millis(901)]).contains(": missed"));
        assert!(HANDED_OVER.verdict(&short).contains(": missed"));
        let once = [&[Duration::from_secs(3)][..], &short[..]].concat();
        assert!(aims(&once).contains(": missed with p50 300ms, p99 3s"), "{}", aims(&once));
    }
}
