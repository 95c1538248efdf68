//! New certificates under load.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context as _, ensure};
use k8s_openapi::api::core::v1::{Event, Pod, Secret};
use kube::{
    Api, ResourceExt as _,
    api::{DeleteParams, ListParams, Patch, PatchParams},
};
use serde_json::json;

use crate::harness::{NAME, Scene, figure, load::Way, scene, until};

#[tokio::test]
async fn new_certificates_are_taken_up_under_load_without_a_restart() -> anyhow::Result<()> {
    scene("certificates", async |scene| {
        scene.found(json!({})).await?;
        let load = scene.load("load", Way::Service, None).await?;
        let (pods, before) = (scene.brokers().await?, ends(scene).await?);

        // As if they had come to their end: made anew, by the same authority.
        let secrets: Api<Secret> = Api::namespaced(scene.client.clone(), &scene.namespace);
        for name in [format!("{NAME}-peers"), format!("{NAME}-tls")] {
            let old = secrets.get(&name).await?.uid();
            secrets.delete(&name, &DeleteParams::default()).await?;
            until("the Secret is there again", Duration::from_secs(30), async || {
                Ok(secrets.get_opt(&name).await?.is_some_and(|secret| secret.uid() != old).then_some(()))
            })
            .await?;
        }
        // The operator's own is beside the authority.
        let without = Patch::Merge(json!({"data": {"admin.crt": null, "admin.key": null}}));
        secrets.patch(&format!("{NAME}-ca"), &PatchParams::default(), &without).await?;
        // Nodes look at what they have mounted each minute; at a pod that has changed they look at once.
        for name in pods.keys() {
            let note = Patch::Merge(json!({"metadata": {"annotations": {"look": "again"}}}));
            scene.pods().patch(name, &PatchParams::default(), &note).await?;
        }
        until("every broker shows the new ones on both ports", Duration::from_secs(120), async || {
            let now = ends(scene).await?;
            let new = |(at, end): (&(String, String), &f64)| before.get(at).is_some_and(|old| end > old);
            Ok((now.len() == before.len() && now.iter().all(new)).then_some(()))
        })
        .await?;
        load.goes_on(500, Duration::from_secs(30)).await?;

        let renewed = load.begin().await?;
        figure("certificates renewed under load: failed calls (0)", renewed.failed);
        ensure!(renewed.failed == 0, "{renewed:?}");

        // What is connected stays so: a leader that dies makes everybody connect anew.
        let (leader, term) = scene.whole(3, Duration::from_secs(30)).await?;
        scene.kill(&leader).await?;
        until("another leads, and the pod is there again", Duration::from_secs(90), async || {
            let (_, now) = scene.whole(3, Duration::from_secs(60)).await?;
            let uid = scene.pods().get(&leader).await?.uid();
            Ok((now > term && uid != pods[&leader].uid()).then_some(()))
        })
        .await?;
        scene.ready(Duration::from_secs(60)).await?;
        load.goes_on(500, Duration::from_secs(30)).await?;
        let after = scene.brokers().await?;
        ensure!(after.len() == 3, "{:?}", after.keys());
        // The killed one may have found its volume still in use.
        for (name, pod) in after.iter().filter(|(name, _)| **name != leader) {
            let same = pod.uid() == pods[name].uid();
            ensure!(same && restarts(pod) == 0, "{name} was restarted: {:?}", pod.status);
        }
        let report = load.finish().await?;
        ensure!(report.window.resyncs == 0, "{report:?}");

        let events: Api<Event> = Api::namespaced(scene.client.clone(), &scene.namespace);
        until("an event says that certificates are new", Duration::from_secs(30), async || {
            let events = events.list(&ListParams::default()).await?;
            let told = events.iter().any(|event| event.reason.as_deref() == Some("SecretRotated"));
            Ok(told.then_some(()))
        })
        .await
    })
    .await
}

fn restarts(pod: &Pod) -> i32 {
    let containers = pod.status.iter().flat_map(|status| status.container_statuses.iter().flatten());
    containers.map(|container| container.restart_count).sum()
}

/// When the certificates end that brokers show, by pod and port, as they say.
async fn ends(scene: &Scene) -> anyhow::Result<BTreeMap<(String, String), f64>> {
    let mut ends = BTreeMap::new();
    for name in scene.brokers().await?.into_keys() {
        let path = format!("/api/v1/namespaces/{}/pods/{name}:28080/proxy/metrics", scene.namespace);
        let said = scene.client.request_text(http::Request::get(path).body(Vec::new())?).await?;
        for line in said.lines() {
            let Some(rest) = line.strip_prefix("databroker_certificate_expiry_timestamp_seconds{port=\"") else {
                continue;
            };
            let (port, end) = rest.split_once("\"} ").context("a line of metrics")?;
            ends.insert((name.clone(), port.to_owned()), end.parse()?);
        }
    }
    ensure!(ends.len() == 6, "three brokers with two ports: {ends:?}");
    Ok(ends)
}
