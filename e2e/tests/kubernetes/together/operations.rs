//! What docs/operations.md says: what the status shows when something is wrong, and that what is to be typed helps. Lost pods,
//! nodes and volumes have stories of their own.

use std::{fs, time::Duration};

use anyhow::{Context as _, ensure};
use kube::ResourceExt as _;
use serde_json::json;

use crate::harness::{
    NAME, Scene, condition, is_ready, message, scene,
    tools::{kubectl, repository, tag},
    until,
};

#[tokio::test]
async fn a_roll_to_an_image_that_is_not_there_says_so_and_another_change_puts_it_right() -> anyhow::Result<()> {
    scene("stuck", async |scene| {
        scene.found(json!({})).await?;
        let (leader, _) = scene.whole(3, Duration::from_secs(30)).await?;
        let before = scene.uids().await?;
        scene.change(json!({"image": "databroker:no-such-tag"})).await?;
        let stuck = scene
            .until("the first pod of the roll is missed", Duration::from_secs(60), |object| {
                let (_, reason) = condition(object, "Reconciling");
                reason == "RollingUpdate" && condition(object, "Degraded").0 == "True"
            })
            .await?;
        ensure!(!is_ready(&stuck) && condition(&stuck, "Available").0 == "True", "{:?}", stuck.status);
        // It serves, and the two others are as they were, for longer than any step takes.
        until("the image is not there", Duration::from_secs(60), async || {
            let pods = kubectl(&["get", "pods", "-n", &scene.namespace]).await?;
            Ok((pods.contains("ImagePullBackOff") || pods.contains("ErrImage")).then_some(()))
        })
        .await?;
        scene.put("meanwhile").await?;
        let other = scene.renewed(&before).await?;
        let kept = scene.uids().await?.get(&leader) == before.get(&leader);
        ensure!(other.len() == 1 && kept, "more than one pod was restarted: {other:?}");
        let said = message(&scene.databrokers().get(NAME).await?, "Reconciling");
        ensure!(said.contains(other[0].as_str()), "{said} without {other:?}");

        scene.change(json!({"image": format!("databroker:{}", tag())})).await?;
        scene.ready(Duration::from_secs(120)).await?;
        scene.whole(3, Duration::from_secs(60)).await?;
        ensure!(scene.has("meanwhile").await?, "the record is gone");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_majority_lost_for_good_is_recovered_from_one_volume_by_a_persons_word() -> anyhow::Result<()> {
    scene("recovery", async |scene| {
        scene.found(json!({})).await?;
        scene.put("kept").await?;
        let (leader, _) = scene.whole(3, Duration::from_secs(30)).await?;
        let before = scene.databrokers().get(NAME).await?.status.unwrap_or_default();
        let old = before.cluster_id.context("a cluster's id")?;

        // Two volumes are lost: the status says that there is no majority, and nothing is done about it.
        let brokers = scene.brokers().await?;
        let lost: Vec<_> = brokers.keys().filter(|name| **name != leader).cloned().collect();
        let own = ["-n", scene.namespace.as_str()];
        for name in &lost {
            kubectl(&[&["delete", "pvc", &format!("data-{name}"), "--wait=false"][..], &own].concat()).await?;
            scene.kill(name).await?;
        }
        let seen = scene
            .until("the majority is missed", Duration::from_secs(90), |object| {
                condition(object, "Available") == ("False".to_owned(), "QuorumLost".to_owned())
            })
            .await?;
        ensure!(condition(&seen, "Ready").0 == "False", "{:?}", seen.status);

        // As docs/operations.md has it.
        scene.change(json!({"suspend": true})).await?;
        scene
            .until("nothing is changed any more", Duration::from_secs(30), |object| {
                condition(object, "Ready").1 == "Suspended"
            })
            .await?;
        kubectl(&[&["scale", "statefulset", NAME, "--replicas=0"][..], &own].concat()).await?;
        until("the pods are gone", Duration::from_secs(90), async || {
            Ok(scene.brokers().await?.is_empty().then_some(()))
        })
        .await?;
        for name in &lost {
            kubectl(&[&["delete", "pvc", &format!("data-{name}"), "--ignore-not-found"][..], &own].concat()).await?;
        }
        let told = recover(scene, &leader, None).await?;
        ensure!(told.contains(&old) && told.contains("--confirm"), "{told}");
        let told = recover(scene, &leader, Some(&old)).await?;
        let new = told.split("of cluster ").nth(1).and_then(|rest| rest.split_whitespace().next());
        let new = new.with_context(|| format!("no id in: {told}"))?.to_owned();
        scene.change(json!({"suspend": false})).await?;

        // Not without the annotation: it could be any disk.
        scene
            .until("the recovered cluster is taken for a foreign one", Duration::from_secs(90), |object| {
                condition(object, "Stalled") == ("True".to_owned(), "ForeignData".to_owned())
            })
            .await?;
        let adopt = format!("databroker.dev/adopt-cluster={new}");
        kubectl(&[&["annotate", "databroker", NAME, &adopt][..], &own].concat()).await?;
        let after = scene.ready(Duration::from_secs(120)).await?;
        scene.whole(3, Duration::from_secs(60)).await?;
        ensure!(after.status.and_then(|status| status.cluster_id).as_ref() == Some(&new), "another id than {new}");
        ensure!(scene.has("kept").await?, "the record is gone");
        Ok(())
    })
    .await
}

/// Runs the example's pod on the volume of `name`; what it said.
async fn recover(scene: &Scene, name: &str, confirm: Option<&str>) -> anyhow::Result<String> {
    let example = fs::read_to_string(repository().join("e2e/examples/recovery.yaml"))?;
    let mut pod: serde_json::Value = serde_yaml::from_str(&example)?;
    let pod_name = if confirm.is_some() { "recovery-done" } else { "recovery-asks" };
    pod["metadata"]["name"] = json!(pod_name);
    pod["spec"]["volumes"][0]["persistentVolumeClaim"]["claimName"] = json!(format!("data-{name}"));
    pod["spec"]["containers"][0]["image"] = json!(format!("databroker:{}", tag()));
    if let (Some(id), Some(arguments)) = (confirm, pod["spec"]["containers"][0]["args"].as_array_mut()) {
        arguments.extend([json!("--confirm"), json!(id)]);
    }
    let pods = scene.pods();
    let pod = pods.create(&Default::default(), &serde_json::from_value(pod)?).await?;
    until("the recovery has ended", Duration::from_secs(60), async || {
        let phase = pods.get(&pod.name_any()).await?.status.and_then(|status| status.phase);
        Ok(phase.is_some_and(|phase| phase == "Succeeded" || phase == "Failed").then_some(()))
    })
    .await?;
    let said = kubectl(&["logs", "-n", &scene.namespace, pod_name]).await?;
    // The volume is free again.
    kubectl(&["delete", "pod", "-n", &scene.namespace, pod_name]).await?;
    Ok(said)
}
