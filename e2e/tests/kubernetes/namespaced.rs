//! An operator for one namespace alone, without a right in any other.

use std::{fs, time::Duration};

use anyhow::{Context as _, ensure};
use kube::{
    Api,
    api::{DeleteParams, Patch, PatchParams},
};
use serde_json::json;

use crate::harness::{NAME, Scene, is_ready, operator, scene, tools, until};

/// What it is called, so that it is no upgrade of the one that all stories share.
const RELEASE: &str = "alone";

/// How long nothing happens where nobody looks.
const WATCHED: Duration = Duration::from_secs(5);

#[tokio::test]
async fn an_operator_of_one_namespace_does_everything_there_and_nothing_elsewhere() -> anyhow::Result<()> {
    scene("namespaced", async |scene| {
        // Of two that look after a namespace each would undo what the other does.
        operator::scale(&scene.client, 0).await?;
        let told = tell(scene).await;
        if told.is_err() {
            // While its log is there.
            tools::dump(&scene.namespace);
        }
        let removed = tools::run("helm", &["uninstall", RELEASE, "--namespace", &scene.namespace, "--wait"]).await;
        let scaled = operator::scale(&scene.client, 2).await;
        told.and(removed.map(drop)).and(scaled)
    })
    .await
}

async fn tell(scene: &Scene) -> anyhow::Result<()> {
    let chart = tools::repository().join("charts/databroker-operator").to_string_lossy().into_owned();
    let values = format!(
        "watchNamespace={},crds.enabled=false,image.tag={tag},broker.tag={tag}",
        scene.namespace,
        tag = tools::tag()
    );
    let install = ["install", RELEASE, &chart, "--namespace", &scene.namespace, "--wait", "--timeout", "2m", "--set"];
    tools::run("helm", &[&install[..], &[&values]].concat()).await?;

    scene.found(json!({"replicas": 3})).await?;
    let before = scene.uids().await?;
    scene.change(json!({"podAnnotations": {"note": "a roll"}})).await?;
    scene
        .until("all pods are new", Duration::from_secs(120), |object| {
            is_ready(object) && object.status.as_ref().is_some_and(|status| status.updated_replicas == 3)
        })
        .await?;
    ensure!(scene.renewed(&before).await?.len() == 3, "not every pod is new");
    scene.put("kept").await?;
    scene.change(json!({"replicas": 1})).await?;
    scene.ready(Duration::from_secs(120)).await?;
    ensure!(scene.has("kept").await?, "the record is lost");

    // Elsewhere it sees nothing.
    let other: Api<databroker_operator::api::Databroker> = Api::namespaced(scene.client.clone(), operator::NAMESPACE);
    let object = json!({"apiVersion": "databroker.dev/v1alpha1", "kind": "Databroker", "metadata": {"name": NAME},
        "spec": {"replicas": 1}});
    other.patch(NAME, &PatchParams::apply("e2e").force(), &Patch::Apply(object)).await?;
    tokio::time::sleep(WATCHED).await;
    let seen = other.get(NAME).await?;
    other.delete(NAME, &DeleteParams::default()).await?;
    until("it is gone", Duration::from_secs(30), async || Ok(other.get_opt(NAME).await?.is_none().then_some(())))
        .await?;
    ensure!(seen.status.is_none(), "it was looked after: {:?}", seen.status);

    // Nor may it.
    let itself = format!("--as=system:serviceaccount:{}:{RELEASE}", scene.namespace);
    let may = async |namespace: &str| {
        tools::kubectl(&["auth", "can-i", "list", "secrets", "--namespace", namespace, &itself]).await.is_ok()
    };
    ensure!(may(&scene.namespace).await, "it may not list the Secrets that it keeps");
    ensure!(!may(operator::NAMESPACE).await, "it may list the Secrets of another namespace");

    // And it was refused nothing here.
    let Some(log) = std::env::var_os("E2E_AUDIT_LOG") else { return Ok(()) };
    let account = format!("serviceaccount:{}:{RELEASE}", scene.namespace);
    let log = fs::read_to_string(log)?;
    let mut own = log.lines().filter(|line| line.contains(&account)).peekable();
    ensure!(own.peek().is_some(), "the audit log has none of its calls");
    let refused = own.find(|line| {
        let code = |event: serde_json::Value| event["responseStatus"]["code"].as_u64();
        serde_json::from_str(line).ok().and_then(code) == Some(403)
    });
    ensure!(refused.is_none(), "it has not the right: {}", refused.context("a line")?);
    Ok(())
}
