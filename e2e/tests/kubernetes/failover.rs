//! A leader that is lost, while nobody looks after the cluster but itself.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde_json::json;

use crate::harness::{
    Scene, figure,
    load::{Load, Way},
    nodes, operator, scene,
    tools::{Cutter, in_pod},
};

/// How often the leader's pod is killed.
const KILLS: usize = 10;
/// How often its node is cut off.
const CUTS: usize = 3;

#[tokio::test]
async fn without_the_operator_a_killed_leader_costs_no_write_and_no_resync() -> anyhow::Result<()> {
    scene("failover", async |scene| {
        scene.found(json!({})).await?;
        let load = scene.load("load", Way::EachPod, None).await?;
        operator::scale(&scene.client, 0).await?;
        let played = kill_leaders(scene, &load).await;
        // The next story needs it.
        operator::scale(&scene.client, 2).await?;
        played?;
        let report = load.finish().await?;
        figure("leader killed: acknowledged writes lost", format!("0 of {}", report.acknowledged_in_all));
        Ok(())
    })
    .await
}

async fn kill_leaders(scene: &Scene, load: &Load<'_>) -> anyhow::Result<()> {
    let (mut gaps, mut failed, mut resyncs) = (Vec::new(), 0, 0);
    for _ in 0..KILLS {
        let (leader, _) = scene.whole(3, Duration::from_secs(60)).await?;
        load.begin().await?;
        scene.kill(&leader).await?;
        load.goes_on(200, Duration::from_secs(30)).await?;
        scene.whole(3, Duration::from_secs(60)).await?;
        let seen = load.progress().await?;
        println!("{leader} killed: {seen:?}");
        gaps.push(seen.gap_millis);
        failed += seen.failed;
        resyncs += seen.resyncs;
    }
    gaps.sort_unstable();
    figure(
        "leader killed: write gap, median and longest (ms, at most 1200 and 3000)",
        format!("{} and {}", gaps[gaps.len() / 2], gaps[gaps.len() - 1]),
    );
    figure("leader killed: failed calls with a deadline of 1 s", failed);
    figure("leader killed: resyncs", resyncs);
    ensure!(resyncs == 0, "{resyncs} resyncs");
    Ok(())
}

#[tokio::test]
async fn a_leader_whose_node_is_cut_off_costs_no_write_and_no_resync() -> anyhow::Result<()> {
    let Some(cutter) = Cutter::at_hand() else { return Ok(()) };
    scene("cut", async |scene| {
        scene.found(json!({})).await?;
        let nodes = nodes(&scene.client).await?;
        // Clients stay where they are, and the leader is never beside them.
        let home = nodes.first().context("no nodes")?;
        let by_pods = scene.load("by-pods", Way::EachPod, Some(home)).await?;
        let by_service = scene.load("by-service", Way::Service, Some(home)).await?;
        operator::scale(&scene.client, 0).await?;
        let mut cut = None;
        let played = cut_leaders(scene, &cutter, home, [&by_pods, &by_service], &mut cut).await;
        if let Some(node) = cut {
            cutter.join(&node).await?;
        }
        operator::scale(&scene.client, 2).await?;
        played?;
        let written = by_pods.finish().await?.acknowledged_in_all + by_service.finish().await?.acknowledged_in_all;
        figure("node cut off: acknowledged writes lost", format!("0 of {written}"));
        Ok(())
    })
    .await
}

async fn cut_leaders(
    scene: &Scene,
    cutter: &Cutter,
    home: &str,
    loads: [&Load<'_>; 2],
    cut: &mut Option<String>,
) -> anyhow::Result<()> {
    let (mut gaps, mut resyncs) = ([Vec::new(), Vec::new()], 0);
    for _ in 0..CUTS {
        let leader = leader_away_from(scene, home).await?;
        let node = scene.node_of(&leader).await?;
        for load in loads {
            load.begin().await?;
        }
        *cut = Some(node.clone());
        cutter.cut(&node).await?;
        loads[0].goes_on(200, Duration::from_secs(30)).await?;
        loads[1].goes_on(200, Duration::from_secs(60)).await?;
        cutter.join(&node).await?;
        *cut = None;
        scene.whole(3, Duration::from_secs(90)).await?;
        for (load, gaps) in loads.iter().zip(&mut gaps) {
            let seen = load.progress().await?;
            println!("{node} with {leader} cut off: {seen:?}");
            gaps.push(seen.gap_millis);
            resyncs += seen.resyncs;
        }
    }
    let longest = |gaps: &[u64]| gaps.iter().max().copied().unwrap_or_default();
    figure("node cut off: longest write gap of a client that dials every pod (ms, at most 3000)", longest(&gaps[0]));
    figure("node cut off: longest write gap of a client of the Service (ms)", longest(&gaps[1]));
    figure("node cut off: resyncs", resyncs);
    ensure!(resyncs == 0, "{resyncs} resyncs");
    Ok(())
}

/// Who leads; another is made to, if it is on this node.
async fn leader_away_from(scene: &Scene, home: &str) -> anyhow::Result<String> {
    let (leader, _) = scene.whole(3, Duration::from_secs(90)).await?;
    if scene.node_of(&leader).await? != home {
        return Ok(leader);
    }
    in_pod(&scene.namespace, &leader, &["/databroker", "cluster", "handover"]).await?;
    let (leader, _) = scene.whole(3, Duration::from_secs(60)).await?;
    ensure!(scene.node_of(&leader).await? != home, "two brokers are on {home}");
    Ok(leader)
}
