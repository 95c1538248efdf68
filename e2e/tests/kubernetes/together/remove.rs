//! A `Databroker` that is deleted and made again.

use std::{collections::BTreeSet, time::Duration};

use anyhow::ensure;
use kube::{ResourceExt as _, api::DeleteParams};
use serde_json::json;

use crate::harness::{NAME, Scene, is_ready, scene, tools::kubectl, until};

#[tokio::test]
async fn what_is_retained_is_there_again_and_what_is_to_go_is_gone() -> anyhow::Result<()> {
    scene("remove", async |scene| {
        scene.found(json!({})).await?;
        let first = scene.databrokers().get(NAME).await?.status.unwrap_or_default();
        scene.put("kept").await?;
        delete(scene).await?;
        ensure!(uids(scene).await?.len() == 3, "volumes are gone");

        // The same disks, the same secret, the same cluster.
        scene.found(json!({})).await?;
        let second = scene.databrokers().get(NAME).await?.status.unwrap_or_default();
        ensure!(first.cluster_id == second.cluster_id && second.bootstrapped, "it is another cluster: {second:?}");
        ensure!(scene.has("kept").await?, "the record is gone");

        scene.change(json!({"storage": {"retentionPolicy": {"whenDeleted": "Delete"}}})).await?;
        scene.ready(Duration::from_secs(90)).await?;
        // They go with the Databroker, and with nothing else.
        let before = uids(scene).await?;
        kubectl(&["delete", "statefulset", NAME, "--namespace", &scene.namespace]).await?;
        scene.until("the StatefulSet is missed", Duration::from_secs(30), |object| !is_ready(object)).await?;
        scene.ready(Duration::from_secs(90)).await?;
        ensure!(uids(scene).await? == before && scene.has("kept").await?, "volumes went with the StatefulSet");

        delete(scene).await?;
        until("the volumes are gone", Duration::from_secs(60), async || {
            Ok(uids(scene).await?.is_empty().then_some(()))
        })
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

/// Which volumes there are.
async fn uids(scene: &Scene) -> anyhow::Result<BTreeSet<Option<String>>> {
    Ok(scene.claims().list(&Default::default()).await?.into_iter().map(|claim| claim.uid()).collect())
}
