//! The others are lost for good: one node's disk becomes a cluster of its own, and new nodes join that.
//!
//! Not here: where it may be broken off (`node::cluster_tests`).

use databroker_proto::databroker::{
    AcquireLeaseRequest, GetOptionsRequest, GetRequest, Options, PutRequest, SetOptionsRequest, SyncLatestRequest,
    SyncRequest, sync_latest_response,
};
use tonic::Code;

use super::{
    clients::{Addresses, TYPE, record},
    cluster::{Cluster, voters_well},
    metrics::metrics,
    trial::addresses,
};

const RECORDS: usize = 60;

/// Every record is on this node, with its data and its version.
async fn has_all(cluster: &Cluster, node: usize) {
    let mut client = addresses(cluster).client(node);
    for index in 0..RECORDS {
        let request = GetRequest { r#type: TYPE.into(), id: index.to_string() };
        let found = client.get(request).await;
        let found = found.unwrap_or_else(|status| panic!("node {node}, {index}: {status}\n{}", cluster.logs()));
        let found = found.into_inner().record.unwrap().to_record().unwrap();
        let text = format!("text {index}");
        assert_eq!((found.version, &found.data.unwrap().value[..]), (index as u64 + 1, text.as_bytes()), "node {node}");
    }
}

/// How a stream that begins at a position ends, or nothing if its first record comes instead.
async fn refusal(addresses: &Addresses, node: usize, server_version: u64) -> Option<Code> {
    let request = SyncRequest { server_version, record_version: 1, r#type: String::new(), wait: Some(true) };
    match addresses.client(node).sync(request).await {
        Ok(stream) => stream.into_inner().message().await.err().map(|status| status.code()),
        Err(status) => Some(status.code()),
    }
}

async fn server_version_of_all(addresses: &Addresses, node: usize) -> (u64, usize) {
    let latest = addresses.client(node).sync_latest(SyncLatestRequest { r#type: TYPE.into() }).await;
    let (mut stream, mut records, mut version) = (latest.unwrap().into_inner(), 0, 0);
    while let Some(message) = stream.message().await.unwrap() {
        match message.response.unwrap() {
            sync_latest_response::Response::Record(_) => records += 1,
            sync_latest_response::Response::Versions(versions) => version = versions.server_version,
            sync_latest_response::Response::Options(_) => {}
        }
    }
    (version, records)
}

fn lease(id: &str) -> AcquireLeaseRequest {
    let duration = prost_types::Duration { seconds: 3600, nanos: 0 };
    AcquireLeaseRequest { name: id.into(), duration: Some(duration) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_disk_of_three_becomes_a_cluster_again_and_clients_fetch_everything_once() {
    let mut cluster = Cluster::start(3).await;
    let addresses = addresses(&cluster);
    for index in 0..RECORDS {
        let records = vec![record(&index.to_string(), &format!("text {index}")).into()];
        addresses.client(index % 3).put(PutRequest { records }).await.unwrap();
    }
    let options = Options { capacity: Some(1000), ..Options::default() };
    let set = SetOptionsRequest { r#type: TYPE.into(), options: Some(options.clone()) };
    addresses.client(0).set_options(set).await.unwrap();
    addresses.client(1).acquire_lease(lease("kept")).await.unwrap();
    let old_version = addresses.client(0).server_info(()).await.unwrap().into_inner().server_version;
    assert_eq!(refusal(&addresses, 2, old_version).await, None);
    let old_id = cluster.status(2).unwrap()["clusterId"].as_str().unwrap().to_owned();

    let recover =
        |confirm: &str| ["cluster", "recover", "--force-new-cluster", "--confirm", confirm].map(str::to_owned);
    let attempt = |cluster: &Cluster, confirm: &str| {
        let output = cluster.tool(2, &recover(confirm).each_ref().map(String::as_str)).output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (done, said) = attempt(&cluster, &old_id);
    assert!(!done && said.contains("in use by another process"), "{said}");

    cluster.wait_for("all have everything", |status| voters_well(status).count() == 3).await;
    // A fenced read: the disk that stays has all that was acknowledged.
    has_all(&cluster, 2).await;
    (0..3).for_each(|node| cluster.kill(node));
    [0, 1].into_iter().for_each(|node| cluster.wipe(node));
    let (done, said) = attempt(&cluster, "another");
    assert!(!done && said.contains("is not the id of this cluster") && said.contains("nothing was changed"), "{said}");
    let (done, said) = attempt(&cluster, &old_id);
    assert!(done, "{said}");
    for part in [&old_id, "node-3", "node-1, node-2", "60, the newest has version 60", "is lost"] {
        assert!(said.contains(part), "{part}: {said}");
    }

    // The same configuration: three nodes, and an explicit bootstrap.
    cluster.spawn(2);
    cluster
        .wait_for("it leads, alone", |status| status["leader"] == "node-3" && voters_well(status).count() == 1)
        .await;
    let status = cluster.status(2).unwrap();
    let new_id = status["clusterId"].as_str().unwrap().to_owned();
    assert_ne!(new_id, old_id);
    has_all(&cluster, 2).await;
    assert_eq!(refusal(&addresses, 2, old_version).await, Some(Code::Aborted));
    let (new_version, records) = server_version_of_all(&addresses, 2).await;
    assert!(new_version != old_version && records == RECORDS, "{records}");
    assert_eq!(refusal(&addresses, 2, new_version).await, None);
    let kept = addresses.client(2).get_options(GetOptionsRequest { r#type: TYPE.into() }).await.unwrap();
    assert_eq!(kept.into_inner().options, Some(options));
    let taken = addresses.client(2).acquire_lease(lease("kept")).await;
    assert_eq!(taken.map_err(|status| status.code()).err(), Some(Code::AlreadyExists));
    let records = vec![record("after", "after").into()];
    addresses.client(2).put(PutRequest { records }).await.unwrap();

    [0, 1].into_iter().for_each(|node| cluster.spawn(node));
    cluster.add_members(2, &[0, 1]);
    cluster
        .wait_for("three vote again", |status| {
            voters_well(status).count() == 3 && status["clusterId"] == new_id.as_str()
        })
        .await;
    // No log holds the entries of two clusters: they got a whole store each, which shows in the metrics.
    for node in [0, 1] {
        assert!(metrics(&cluster, node)["databroker_raft_snapshot_received_bytes_total"] > 1000.0, "node {node}");
    }
    let sender = metrics(&cluster, 2);
    assert!(sender["databroker_raft_snapshot_sent_bytes_total"] > 2000.0);
    assert_eq!(sender["databroker_raft_snapshots_sending"], 0.0);
    for node in 0..3 {
        has_all(&cluster, node).await;
        let request = GetRequest { r#type: TYPE.into(), id: "after".into() };
        addresses.client(node).get(request).await.unwrap();
        assert_eq!(server_version_of_all(&addresses, node).await, (new_version, RECORDS + 1));
    }
}
