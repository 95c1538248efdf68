//! A new image, one pod after the other, the leader last.

use std::time::Duration;

use anyhow::ensure;
use serde_json::json;

use crate::harness::{condition, figure, is_ready, load::Way, scene, tools::tag, until};

#[tokio::test]
async fn a_roll_changes_the_leader_once_and_fails_no_call() -> anyhow::Result<()> {
    scene("roll", async |scene| {
        scene.found(json!({})).await?;
        let (leader, term) = scene.whole(3, Duration::from_secs(30)).await?;
        let before = scene.uids().await?;
        let load = scene.load("load", Way::Service, None).await?;

        // Held in the middle: some pod is new, and it stays at that.
        scene.change(json!({"image": format!("databroker:{}-next", tag())})).await?;
        until("the first pod is made anew", Duration::from_secs(60), async || {
            Ok((!scene.renewed(&before).await?.is_empty()).then_some(()))
        })
        .await?;
        scene.change(json!({"updateStrategy": {"paused": true}})).await?;
        let held = scene.ready(Duration::from_secs(60)).await?;
        ensure!(condition(&held, "Reconciling").1 == "UpdatePaused", "{:?}", condition(&held, "Reconciling"));
        let updated = held.status.map(|status| status.updated_replicas).unwrap_or_default();
        ensure!((1..3).contains(&updated), "{updated} pods are new while the roll is held");
        let renewed = scene.renewed(&before).await?;
        ensure!(!renewed.contains(&leader), "the leader was restarted before the others");
        load.goes_on(1_000, Duration::from_secs(30)).await?;
        ensure!(scene.renewed(&before).await? == renewed, "the roll went on while it was held");

        scene.change(json!({"updateStrategy": {"paused": false}})).await?;
        scene
            .until("all pods are of the new revision", Duration::from_secs(120), |object| {
                is_ready(object) && object.status.as_ref().is_some_and(|status| status.updated_replicas == 3)
            })
            .await?;
        let (after, last) = scene.whole(3, Duration::from_secs(60)).await?;
        ensure!(scene.renewed(&before).await?.len() == 3, "not every pod is new");
        ensure!(after != leader, "{leader} leads again");
        let report = load.finish().await?;
        figure("roll of 3: changes of the leader, by terms (1)", last - term);
        figure("roll of 3: failed calls (0)", format!("{} {:?}", report.window.failed, report.window.errors));
        figure("roll of 3: longest write gap (ms, at most 250)", report.window.gap_millis);
        figure("roll of 3: acknowledged writes lost", format!("0 of {}", report.acknowledged_in_all));
        ensure!(last - term == 1, "the term went from {term} to {last}");
        ensure!(report.window.failed == 0 && report.window.resyncs == 0, "{report:?}");
        Ok(())
    })
    .await
}
