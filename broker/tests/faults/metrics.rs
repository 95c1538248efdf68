//! What the nodes say about replication in their metrics: that it is there, and that it moves.
//!
//! Not here: stores on their way, which `recovery` sees.

use std::{
    collections::BTreeMap,
    io::{Read as _, Write as _},
    net::TcpStream,
    time::{Duration, Instant},
};

use databroker_proto::databroker::{GetRequest, PutRequest};

use super::{
    clients::{TYPE, record},
    cluster::Cluster,
    support::PATIENCE,
    trial::addresses,
};

/// How long a node that is frozen is waited for.
const ANSWER_MAX: Duration = Duration::from_secs(1);

/// Every series with its value. A node that runs may be slow to answer once.
pub fn metrics(cluster: &Cluster, node: usize) -> BTreeMap<String, f64> {
    let mut answers = (0..10).map(|_| scrape(cluster, node));
    answers.find_map(Result::ok).expect("a node that runs tells its metrics")
}

/// The same of a node that may not run.
pub fn scrape(cluster: &Cluster, node: usize) -> std::io::Result<BTreeMap<String, f64>> {
    let mut connection = TcpStream::connect(("127.0.0.1", cluster.nodes[node].health))?;
    connection.set_read_timeout(Some(ANSWER_MAX))?;
    connection.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
    let mut text = String::new();
    connection.read_to_string(&mut text)?;
    let series = text.lines().filter(|line| line.starts_with("databroker_"));
    let pairs = series.filter_map(|line| line.rsplit_once(' '));
    Ok(pairs.map(|(name, value)| (name.into(), value.parse().unwrap())).collect())
}

pub async fn until(cluster: &Cluster, node: usize, what: &str, holds: impl Fn(&BTreeMap<String, f64>) -> bool) {
    let began = Instant::now();
    loop {
        let now = metrics(cluster, node);
        if holds(&now) {
            return;
        }
        assert!(began.elapsed() < PATIENCE, "node {node}: it never came true that {what}: {now:#?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn leads(now: &BTreeMap<String, f64>) -> bool {
    now["databroker_raft_role{role=\"leader\"}"] == 1.0
}

async fn put(cluster: &Cluster, node: usize, ids: std::ops::Range<usize>, text: &str) {
    let mut client = addresses(cluster).client(node);
    for id in ids {
        client.put(PutRequest { records: vec![record(&id.to_string(), text).into()] }).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metrics_of_replication_are_there_and_move() {
    let mut cluster = Cluster::start(3).await;
    let leader = cluster.leader().unwrap();
    let (next, third) = ((leader + 1) % 3, (leader + 2) % 3);
    let name = |node: usize| format!("node-{}", node + 1);
    let lag = |node: usize| format!("databroker_raft_follower_lag_entries{{follower=\"{}\"}}", name(node));
    let clock = |node: usize| format!("databroker_raft_peer_clock_ahead_seconds{{peer=\"{}\"}}", name(node));
    put(&cluster, next, 0..20, "text").await;

    until(&cluster, leader, "the leader knows all", |now| {
        let there = ["term", "voters", "log_index_last", "log_index_committed", "log_index_applied"];
        let there = there.iter().all(|part| now.get(&format!("databroker_raft_{part}")).is_some_and(|at| *at > 0.0));
        let known = now.contains_key(&clock(next)) && now.contains_key(&clock(third));
        there
            && known
            && now["databroker_raft_shape_reached"] == 1.0
            && now[&lag(next)] == 0.0
            && now[&lag(third)] == 0.0
    })
    .await;
    let before = metrics(&cluster, leader);
    for series in ["requests", "requests_held", "snapshots_sending", "snapshots_receiving", "quorum_ack_age_seconds"] {
        assert!(before.contains_key(&format!("databroker_raft_{series}")), "{series}: {before:#?}");
    }
    for (series, value) in [("command_version", 1.0), ("command_version_known", 1.0), ("has_leader", 1.0)] {
        assert_eq!(before[&format!("databroker_raft_{series}")], value, "{series}");
    }
    assert!(leads(&before) && before[&clock(next)].abs() < 1.0);
    // A follower asks the leader before it reads.
    let fences = |now: &BTreeMap<String, f64>| now["databroker_raft_fence_seconds_count"];
    let fenced = fences(&metrics(&cluster, next));
    addresses(&cluster).client(next).get(GetRequest { r#type: TYPE.into(), id: "0".into() }).await.unwrap();
    assert!(fences(&metrics(&cluster, next)) > fenced);
    assert_eq!(metrics(&cluster, next)["databroker_raft_role{role=\"voter\"}"], 1.0);

    // Handed over: roles change, and everybody counts it.
    let changes = |cluster: &Cluster, node| metrics(cluster, node)["databroker_raft_leader_changes_total"];
    let counted = [0, 1, 2].map(|node| changes(&cluster, node));
    cluster.run_tool(leader, &["cluster", "handover", "--to", &name(next)]);
    until(&cluster, next, "it leads", leads).await;
    until(&cluster, leader, "the old one follows", |now| now["databroker_raft_role{role=\"voter\"}"] == 1.0).await;
    for (node, counted) in counted.into_iter().enumerate() {
        until(&cluster, node, "the change is counted", |now| now["databroker_raft_leader_changes_total"] > counted)
            .await;
    }
    assert!(!metrics(&cluster, leader).contains_key(&lag(third)), "only the leader knows");

    // A follower that is away falls behind, and catches up.
    cluster.kill(third);
    put(&cluster, next, 0..30, "later").await;
    until(&cluster, next, "it is behind", |now| now[&lag(third)] >= 10.0).await;
    cluster.spawn(third);
    until(&cluster, next, "it has caught up", |now| now[&lag(third)] == 0.0).await;

    // The leader dies: a write waits for the next one, and the wait is told by whoever held it.
    cluster.kill(next);
    put(&cluster, third, 0..1, "last").await;
    until(&cluster, third, "the gap is told", |now| {
        now.get("databroker_raft_failover_write_gap_seconds").is_some_and(|gap| *gap > 0.0 && *gap < 10.0)
    })
    .await;
}
