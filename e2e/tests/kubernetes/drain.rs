//! Nodes that are emptied for maintenance, one after the other.

use std::time::Duration;

use anyhow::ensure;
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use kube::ResourceExt as _;
use serde_json::json;

use crate::harness::{
    Scene, figure,
    load::{Load, Way},
    nodes, scene,
    tools::kubectl,
};

#[tokio::test]
async fn nodes_are_drained_in_turn_without_a_lost_write_and_volumes_stay() -> anyhow::Result<()> {
    scene("drain", async |scene| {
        scene.found(json!({})).await?;
        let before = volumes(scene).await?;
        let nodes = nodes(&scene.client).await?;
        let load = scene.load("load", Way::EachPod, None).await?;
        let load_on = scene.node_of("load").await?;
        for node in &nodes {
            // The load itself would be evicted, and ends nothing: it stays where it is.
            let drained = drain(scene, node, &load).await;
            kubectl(&["uncordon", node]).await?;
            drained?;
            println!("{node} drained{}", if *node == load_on { ", with the load on it" } else { "" });
        }
        ensure!(volumes(scene).await? == before, "volumes have changed");
        let report = load.finish().await?;
        figure("nodes drained in turn: failed calls", format!("{} {:?}", report.window.failed, report.window.errors));
        figure("nodes drained in turn: longest write gap (ms)", report.window.gap_millis);
        ensure!(report.window.resyncs == 0, "{report:?}");
        Ok(())
    })
    .await
}

async fn drain(scene: &Scene, node: &str, load: &Load<'_>) -> anyhow::Result<()> {
    // The brokers' budget lets one go at a time, and none while another is not caught up.
    kubectl(&["drain", node, "--pod-selector=app.kubernetes.io/name=databroker", "--timeout=60s"]).await?;
    load.goes_on(200, Duration::from_secs(30)).await?;
    // Its volume is on the node: it comes back with it.
    kubectl(&["uncordon", node]).await?;
    scene.whole(3, Duration::from_secs(90)).await?;
    scene.ready(Duration::from_secs(60)).await.map(drop)
}

async fn volumes(scene: &Scene) -> anyhow::Result<Vec<(String, Option<String>)>> {
    let claims = scene.claims().list(&Default::default()).await?;
    let bound = |claim: PersistentVolumeClaim| {
        let name = claim.name_any();
        (name, claim.spec.and_then(|spec| spec.volume_name))
    };
    let mut claims: Vec<_> = claims.into_iter().map(bound).collect();
    claims.sort();
    Ok(claims)
}
