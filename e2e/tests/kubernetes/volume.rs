//! A volume that is lost, and the leader with it.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use kube::{ResourceExt as _, api::DeleteParams};
use serde_json::json;

use crate::harness::{NAME, figure, load::Way, scene};

#[tokio::test]
async fn a_wiped_member_comes_back_by_itself_and_never_leads_without_the_data() -> anyhow::Result<()> {
    scene("volume", async |scene| {
        scene.found(json!({})).await?;
        let load = scene.load("load", Way::EachPod, None).await?;
        load.goes_on(2_000, Duration::from_secs(60)).await?;
        let (leader, _) = scene.whole(3, Duration::from_secs(30)).await?;
        let brokers = scene.brokers().await?;
        let wiped = brokers.keys().find(|name| **name != leader).context("no follower")?.clone();
        let claim = format!("data-{wiped}");
        let before = scene.databrokers().get(NAME).await?.status.unwrap_or_default();
        let old = scene.claims().get(&claim).await?.uid();

        scene.claims().delete(&claim, &DeleteParams::default()).await?;
        scene.kill(&wiped).await?;
        crate::harness::until("the volume is another", Duration::from_secs(60), async || {
            let claim = scene.claims().get_opt(&claim).await?;
            Ok(claim.is_some_and(|claim| claim.uid() != old).then_some(()))
        })
        .await?;
        // While it is brought up.
        scene.kill(&leader).await?;
        load.goes_on(200, Duration::from_secs(60)).await?;
        scene.whole(3, Duration::from_secs(120)).await?;
        let after = scene.ready(Duration::from_secs(60)).await?.status.unwrap_or_default();
        let node = |status: &databroker_operator::api::DatabrokerStatus| {
            let own = status.members.iter().find(|member| member.name == wiped);
            own.and_then(|member| member.node_id.clone())
        };
        ensure!(node(&before).is_some() && node(&before) != node(&after), "the wiped member has its old id");
        ensure!(before.cluster_id == after.cluster_id, "it is another cluster");
        let report = load.finish().await?;
        figure(
            "volume wiped, then the leader killed: acknowledged writes lost",
            format!("0 of {}", report.acknowledged_in_all),
        );
        figure("volume wiped, then the leader killed: longest write gap (ms)", report.window.gap_millis);
        ensure!(report.window.resyncs == 0, "{report:?}");
        Ok(())
    })
    .await
}
