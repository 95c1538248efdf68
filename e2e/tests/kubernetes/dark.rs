//! A node that does not answer, and a pod on it that may or may not live.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use databroker_operator::api::status::FailoverReason;
use serde_json::json;

use crate::harness::{condition, message, scene, tools::Cutter};

#[tokio::test]
async fn a_node_that_does_not_answer_is_named_and_its_pod_is_left_alone() -> anyhow::Result<()> {
    let Some(cutter) = Cutter::at_hand() else { return Ok(()) };
    scene("dark", async |scene| {
        scene.found(json!({})).await?;
        // That of the leader: another leads meanwhile.
        let (dark, _) = scene.whole(3, Duration::from_secs(30)).await?;
        let before = scene.uids().await?;
        let node = scene.node_of(&dark).await?;
        cutter.cut(&node).await?;
        // Kubernetes takes a while to miss it.
        let named = scene
            .until("the node is missed", Duration::from_secs(120), |object| {
                condition(object, "Degraded") == ("True".to_owned(), "NodeUnreachable".to_owned())
            })
            .await;
        cutter.join(&node).await?;
        let named = named?;
        let degraded = message(&named, "Degraded");
        ensure!(degraded.contains(dark.as_str()), "{dark} is not named: {degraded}");
        let failover = named.status.and_then(|status| status.last_failover).context("no failover is told")?;
        ensure!(
            failover.from == dark && failover.reason == FailoverReason::NodeUnreachable,
            "{dark} was cut off: {failover:?}"
        );
        scene.ready(Duration::from_secs(120)).await?;
        scene.whole(3, Duration::from_secs(60)).await?;
        ensure!(scene.uids().await? == before, "a pod was deleted");
        Ok(())
    })
    .await
}
