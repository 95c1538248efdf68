//! The operator as people install it, with its chart; stopped, killed and upgraded.

use std::time::Duration;

use anyhow::Context as _;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client, ResourceExt as _,
    api::{DeleteParams, ListParams},
};
use serde_json::Value;
use tokio::sync::OnceCell;

use super::{
    is_pod_ready,
    tools::{kubectl, repository, run, tag},
    until,
};

pub(crate) const NAMESPACE: &str = "databroker-system";
pub(crate) const RELEASE: &str = "databroker-operator";

static INSTALLED: OnceCell<()> = OnceCell::const_new();

/// Installs the chart, once per run.
///
/// # Errors
/// Helm says why.
pub(crate) async fn ensure_installed(client: &Client) -> anyhow::Result<()> {
    INSTALLED.get_or_try_init(async || install(&tag()).await).await?;
    until("the operator's pods are all there", Duration::from_secs(60), async || {
        let pods = pods(client).await?;
        Ok((pods.len() == 2 && pods.iter().all(is_pod_ready)).then_some(()))
    })
    .await
}

/// Installs or upgrades it, with brokers of the same tag.
///
/// # Errors
/// Helm says why.
pub(crate) async fn install(tag: &str) -> anyhow::Result<()> {
    let chart = repository().join("charts/databroker-operator").to_string_lossy().into_owned();
    let image = format!("image.tag={tag}");
    let broker = format!("broker.tag={tag}");
    let own = ["upgrade", "--install", RELEASE, &chart, "--namespace", NAMESPACE, "--create-namespace", "--wait"];
    let set = ["--timeout", "2m", "--set", &image, "--set", &broker];
    run("helm", &[&own[..], &set].concat()).await.map(drop)
}

/// Sets how many replicas run, and waits until it is so.
///
/// # Errors
/// It is not, in time.
pub(crate) async fn scale(client: &Client, replicas: usize) -> anyhow::Result<()> {
    kubectl(&["scale", "deployment", RELEASE, "--namespace", NAMESPACE, &format!("--replicas={replicas}")]).await?;
    until(&format!("{replicas} replicas of the operator"), Duration::from_secs(60), async || {
        let pods = pods(client).await?;
        Ok((pods.len() == replicas && pods.iter().all(is_pod_ready)).then_some(()))
    })
    .await
}

/// Kills the replica that works, without any grace.
///
/// # Errors
/// Nobody holds the Lease.
pub(crate) async fn kill(client: &Client) -> anyhow::Result<()> {
    let holder = kubectl(&[
        "get",
        "lease",
        "databroker-operator",
        "--namespace",
        NAMESPACE,
        "-o",
        "jsonpath={.spec.holderIdentity}",
    ])
    .await?;
    let api: Api<Pod> = Api::namespaced(client.clone(), NAMESPACE);
    let pods = pods(client).await?;
    let pod = pods.iter().find(|pod| holder.contains(&pod.name_any())).or(pods.first()).context("no operator")?;
    api.delete(&pod.name_any(), &DeleteParams::default().grace_period(0)).await?;
    Ok(())
}

/// What the API server's audit log has of its calls.
pub(crate) fn audited(log: &str) -> impl Iterator<Item = Value> {
    let own = log.lines().filter(|line| line.contains("serviceaccount:databroker-system:databroker-operator"));
    // The last line may be half written.
    own.filter_map(|line| serde_json::from_str(line).ok())
}

/// Its pods.
///
/// # Errors
/// The API server does not answer.
pub(crate) async fn pods(client: &Client) -> anyhow::Result<Vec<Pod>> {
    let api: Api<Pod> = Api::namespaced(client.clone(), NAMESPACE);
    let own = ListParams::default().labels("app.kubernetes.io/name=databroker-operator");
    Ok(api.list(&own).await?.items)
}
