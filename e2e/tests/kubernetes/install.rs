//! A chart, a `Databroker`, and clients: what the quick start promises.

use std::time::Duration;

use anyhow::ensure;
use serde_json::json;

use crate::harness::{
    NAME, condition, figure,
    load::Way,
    operator::{NAMESPACE, RELEASE},
    scene,
    tools::{in_pod, kubectl, run},
};

#[tokio::test]
async fn a_smallest_databroker_is_ready_within_a_minute_and_clients_in_pods_write_and_read() -> anyhow::Result<()> {
    scene("install", async |scene| {
        run("helm", &["test", RELEASE, "--namespace", NAMESPACE, "--timeout", "1m"]).await?;
        let took = scene.found(json!({})).await?;
        figure("applied to Ready, 3 replicas (s, at most 30)", format!("{:.1}", took.as_secs_f64()));
        ensure!(took < Duration::from_secs(60), "it took {took:?}");

        let object = scene.databrokers().get(NAME).await?;
        let status = object.status.clone().unwrap_or_default();
        for (wanted, holds) in [
            ("Ready", "True"),
            ("Available", "True"),
            ("Reconciling", "False"),
            ("Stalled", "False"),
            ("Degraded", "False"),
            ("MembersSynced", "True"),
            ("StorageReady", "True"),
            ("CertificatesReady", "True"),
        ] {
            let (seen, reason) = condition(&object, wanted);
            ensure!(seen == holds, "{wanted} is {seen:?} ({reason}), not {holds}");
        }
        ensure!(status.bootstrapped && status.cluster_id.is_some() && status.members.len() == 3, "{status:?}");
        ensure!((status.replicas, status.ready_replicas, status.updated_replicas) == (3, 3, 3), "{status:?}");
        let leader = status.leader.map(|leader| leader.member).unwrap_or_default();

        let get = ["get", "databroker", NAME, "--namespace", &scene.namespace];
        let table = kubectl(&get).await?;
        let mut lines = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        let heads = ["NAME", "READY", "LEADER", "REPLICAS", "SYNCED", "VERSION", "AGE"];
        ensure!(lines.next().as_deref() == Some(&heads), "{table}");
        let row = lines.next().unwrap_or_default();
        ensure!(row.get(1..5) == Some(&["True", &leader, "3", "True"]), "{table}");
        let wide = kubectl(&[&get[..], &["-o", "wide"]].concat()).await?;
        ensure!(wide.contains("TERM") && wide.contains("MESSAGE"), "{wide}");

        // What the README says to type.
        let said = in_pod(&scene.namespace, "databroker-0", &["/databroker", "cluster", "status"]).await?;
        ensure!((0..3).all(|ordinal| said.contains(&format!("{NAME}-{ordinal}"))), "{said}");
        let said = in_pod(&scene.namespace, "databroker-1", &["/databroker", "info"]).await?;
        ensure!(!said.is_empty(), "info says nothing");

        let load = scene.load("load", Way::Service, None).await?;
        load.goes_on(1_000, Duration::from_secs(60)).await?;
        let report = load.finish().await?;
        ensure!(report.window.failed == 0 && report.window.resyncs == 0, "{report:?}");
        Ok(())
    })
    .await
}
