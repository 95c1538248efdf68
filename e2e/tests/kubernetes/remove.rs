//! A `Databroker` that is deleted and made again.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use kube::api::DeleteParams;
use serde_json::json;

use crate::harness::{NAME, Scene, scene, tools::in_pod, until};

#[tokio::test]
async fn what_is_retained_is_there_again_and_what_is_to_go_is_gone() -> anyhow::Result<()> {
    scene("remove", async |scene| {
        scene.found(json!({})).await?;
        let first = scene.databrokers().get(NAME).await?.status.unwrap_or_default();
        put(scene, "kept").await?;
        delete(scene).await?;
        ensure!(claims(scene).await? == 3, "volumes are gone");

        // The same disks, the same secret, the same cluster.
        scene.found(json!({})).await?;
        let second = scene.databrokers().get(NAME).await?.status.unwrap_or_default();
        ensure!(first.cluster_id == second.cluster_id && second.bootstrapped, "it is another cluster: {second:?}");
        ensure!(get(scene, "kept").await?, "the record is gone");

        scene.change(json!({"storage": {"retentionPolicy": {"whenDeleted": "Delete"}}})).await?;
        scene.ready(Duration::from_secs(90)).await?;
        delete(scene).await?;
        until("the volumes are gone", Duration::from_secs(60), async || Ok((claims(scene).await? == 0).then_some(())))
            .await?;
        scene.found(json!({})).await?;
        let third = scene.databrokers().get(NAME).await?.status.unwrap_or_default();
        ensure!(third.cluster_id != first.cluster_id, "an old cluster without its data: {third:?}");
        ensure!(!get(scene, "kept").await?, "the record is there");
        Ok(())
    })
    .await
}

async fn put(scene: &Scene, id: &str) -> anyhow::Result<()> {
    let pod = scene.brokers().await?.into_keys().next().context("no broker")?;
    let data = json!({"@type": "type.googleapis.com/google.protobuf.StringValue", "value": "x"});
    let record = json!({"type": "databroker.dev/e2e", "id": id, "data": data}).to_string();
    in_pod(&scene.namespace, &pod, &["/databroker", "put", "--exact-type", &record]).await.map(drop)
}

async fn get(scene: &Scene, id: &str) -> anyhow::Result<bool> {
    let pod = scene.brokers().await?.into_keys().next().context("no broker")?;
    match in_pod(&scene.namespace, &pod, &["/databroker", "get", "--exact-type", "databroker.dev/e2e", id]).await {
        Ok(_) => Ok(true),
        Err(error) if error.to_string().contains("there is no record") => Ok(false),
        Err(error) => Err(error),
    }
}

async fn delete(scene: &Scene) -> anyhow::Result<()> {
    scene.databrokers().delete(NAME, &DeleteParams::default()).await?;
    until("the brokers are gone", Duration::from_secs(90), async || {
        let gone = scene.databrokers().get_opt(NAME).await?.is_none() && scene.brokers().await?.is_empty();
        Ok(gone.then_some(()))
    })
    .await
}

async fn claims(scene: &Scene) -> anyhow::Result<usize> {
    Ok(scene.claims().list(&Default::default()).await?.items.len())
}
