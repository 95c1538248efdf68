//! More members and fewer, under load, whatever happens to the operator meanwhile.

use std::{
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::{Duration, Instant},
};

use anyhow::ensure;
use kube::ResourceExt as _;
use rand::RngExt as _;
use serde_json::{Value, json};

use crate::harness::{
    NAME, Scene, figure, is_ready,
    load::Way,
    operator, scene,
    tools::{Cutter, in_pod, kubectl},
    until,
};

/// A step of one or two members, with the operator killed on the way.
const STEP_MAX: Duration = Duration::from_secs(180);

#[tokio::test]
async fn from_one_to_five_and_back_under_load_while_the_operator_dies() -> anyhow::Result<()> {
    scene("scale", async |scene| {
        scene.found(json!({"replicas": 1})).await?;
        let load = scene.load("load", Way::Service, None).await?;
        let done = AtomicBool::new(false);
        let (killed, scaled) = tokio::join!(kill_operators(scene, &done), async {
            let scaled = through_sizes(scene).await;
            done.store(true, Relaxed);
            scaled
        });
        scaled?;
        figure("scaled 1, 3, 5, 3, 1, 3 under load: operators killed meanwhile", killed?);
        let report = load.finish().await?;
        figure("scaled under load: acknowledged writes lost", format!("0 of {}", report.acknowledged_in_all));
        figure("scaled under load: failed calls", report.window.failed);
        figure("scaled under load: resyncs", report.window.resyncs);
        ensure!(report.window.resyncs == 0, "{report:?}");
        Ok(())
    })
    .await
}

async fn through_sizes(scene: &Scene) -> anyhow::Result<()> {
    for replicas in [3, 5, 3, 1, 3] {
        // One of them in the other way.
        match replicas {
            5 => drop(kubectl(&["scale", "databroker", NAME, "--namespace", &scene.namespace, "--replicas=5"]).await?),
            _ => drop(scene.change(json!({"replicas": replicas})).await?),
        }
        // Ready is said once they vote; the pods of those who went may still be ending.
        scene
            .until(&format!("{replicas} replicas"), STEP_MAX, |object| {
                is_ready(object) && object.status.as_ref().is_some_and(|status| status.replicas == replicas)
            })
            .await?;
        let voters = usize::try_from(replicas)?;
        scene.whole(voters, Duration::from_secs(30)).await?;
        // Volumes of members that are gone are kept.
        let claims = scene.claims().list(&Default::default()).await?.items.len();
        ensure!(claims >= voters, "{claims} volumes for {replicas} members");
        println!("{replicas} members, {claims} volumes");
    }
    let claims = scene.claims().list(&Default::default()).await?.items.len();
    ensure!(claims == 5, "volumes are kept, but {claims} are there");
    Ok(())
}

/// Its old disk knows nothing of its removal: with another of its kind it could elect a leader beside the real one.
#[tokio::test]
async fn a_member_that_was_removed_unheard_returns_without_its_old_disk() -> anyhow::Result<()> {
    scene("unheard", async |scene| {
        scene.found(json!({})).await?;
        let load = scene.load("load", Way::EachPod, None).await?;
        let (name, claim) = (format!("{NAME}-2"), format!("data-{NAME}-2"));
        let node = scene.node_of(&name).await?;
        let old = scene.claims().get(&claim).await?.uid();
        kubectl(&["cordon", &node]).await?;
        let removed = async {
            // Its volume is on that node: it cannot come back.
            scene.kill(&name).await?;
            // A pod that is killed has a moment still, in which it would hear of it.
            until("it cannot be reached", STEP_MAX, async || {
                let status = scene.cluster().await?;
                let mut members = status["members"].as_array().into_iter().flatten();
                Ok(members.any(|member| member["name"] == name && member["reachable"] == false).then_some(()))
            })
            .await?;
            scene.change(json!({"replicas": 1})).await?;
            let marked = until("its volume is marked", STEP_MAX, async || {
                let claim = scene.claims().get(&claim).await?;
                Ok(claim.annotations().get("databroker.dev/retired").cloned())
            });
            println!("{claim} is marked as that of {}", marked.await?);
            scene
                .until("one replica", STEP_MAX, |object| {
                    is_ready(object) && object.status.as_ref().is_some_and(|status| status.replicas == 1)
                })
                .await
        }
        .await;
        kubectl(&["uncordon", &node]).await?;
        removed?;
        scene.change(json!({"replicas": 3})).await?;
        scene.until("three replicas", STEP_MAX, is_ready).await?;
        scene.whole(3, Duration::from_secs(30)).await?;
        ensure!(scene.claims().get(&claim).await?.uid() != old, "it has its old volume");
        let report = load.finish().await?;
        ensure!(report.window.resyncs == 0, "{report:?}");
        Ok(())
    })
    .await
}

/// Two of three disks are a majority of what they last heard of, if they heard of nothing since.
#[tokio::test]
async fn returning_members_elect_nobody_while_the_remaining_one_is_cut_off() -> anyhow::Result<()> {
    let Some(cutter) = Cutter::at_hand() else { return Ok(()) };
    scene("return", async |scene| {
        scene.found(json!({})).await?;
        scene.put("of three").await?;
        scene.change(json!({"replicas": 1})).await?;
        scene
            .until("one replica", STEP_MAX, |object| {
                is_ready(object) && object.status.as_ref().is_some_and(|status| status.replicas == 1)
            })
            .await?;
        scene.put("of one").await?;
        let node = scene.node_of(&format!("{NAME}-0")).await?;
        cutter.cut(&node).await?;
        let alone = returns_alone(scene).await;
        cutter.join(&node).await?;
        alone?;
        scene.until("three replicas", STEP_MAX, is_ready).await?;
        scene.whole(3, Duration::from_secs(60)).await?;
        ensure!(scene.has("of three").await? && scene.has("of one").await?, "a record is gone");
        Ok(())
    })
    .await
}

async fn returns_alone(scene: &Scene) -> anyhow::Result<()> {
    scene.change(json!({"replicas": 3})).await?;
    let returned = [1, 2].map(|ordinal| format!("{NAME}-{ordinal}"));
    let leader = async |pod: &str| -> anyhow::Result<Option<String>> {
        let said = in_pod(&scene.namespace, pod, &["/databroker", "cluster", "status", "-o", "json"]).await?;
        let status: Value = serde_json::from_str(&said)?;
        Ok(status["leader"].as_str().filter(|leader| !leader.is_empty()).map(str::to_owned))
    };
    until("both answer, on their old volumes", STEP_MAX, async || {
        for pod in &returned {
            leader(pod).await?;
        }
        Ok(Some(()))
    })
    .await?;
    // Many elections long.
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(10) {
        for pod in &returned {
            let leader = leader(pod).await?;
            ensure!(leader.is_none(), "{pod} says that {leader:?} leads");
        }
    }
    Ok(())
}

/// Kills it at random moments, until told to stop; returns how often.
async fn kill_operators(scene: &Scene, done: &AtomicBool) -> anyhow::Result<usize> {
    let mut killed = 0;
    while !done.load(Relaxed) {
        let pause = Duration::from_millis(rand::rng().random_range(2_000..12_000));
        tokio::time::sleep(pause).await;
        operator::kill(&scene.client).await?;
        killed += 1;
    }
    Ok(killed)
}
