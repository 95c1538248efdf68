//! A `Databroker` that is deleted and made again.

use std::time::Duration;

use anyhow::ensure;
use kube::api::DeleteParams;
use serde_json::json;

use crate::harness::{NAME, Scene, scene, until};

#[tokio::test]
async fn what_is_retained_is_there_again_and_what_is_to_go_is_gone() -> anyhow::Result<()> {
    scene("remove", async |scene| {
        scene.found(json!({})).await?;
        let first = scene.databrokers().get(NAME).await?.status.unwrap_or_default();
        scene.put("kept").await?;
        delete(scene).await?;
        ensure!(claims(scene).await? == 3, "volumes are gone");

        // The same disks, the same secret, the same cluster.
        scene.found(json!({})).await?;
        let second = scene.databrokers().get(NAME).await?.status.unwrap_or_default();
        ensure!(first.cluster_id == second.cluster_id && second.bootstrapped, "it is another cluster: {second:?}");
        ensure!(scene.has("kept").await?, "the record is gone");

        scene.change(json!({"storage": {"retentionPolicy": {"whenDeleted": "Delete"}}})).await?;
        scene.ready(Duration::from_secs(90)).await?;
        delete(scene).await?;
        until("the volumes are gone", Duration::from_secs(60), async || Ok((claims(scene).await? == 0).then_some(())))
            .await?;
        scene.found(json!({})).await?;
        let third = scene.databrokers().get(NAME).await?.status.unwrap_or_default();
        ensure!(third.cluster_id != first.cluster_id, "an old cluster without its data: {third:?}");
        ensure!(!scene.has("kept").await?, "the record is there");
        Ok(())
    })
    .await
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
