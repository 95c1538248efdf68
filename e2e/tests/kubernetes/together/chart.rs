//! What the chart renders, with its defaults and with what people set; and the manifest for those who have no Helm. Needs
//! `helm`, and of the cluster only that it accepts the manifest.
//!
//! Environment: `UPDATE_MANIFEST=1` writes the manifest anew.

use std::fs;

use anyhow::{Context as _, ensure};
use serde::Deserialize as _;
use serde_json::Value;

use crate::harness::{
    operator::{NAMESPACE, RELEASE},
    scene,
    tools::{kubectl, repository, run},
};

/// The chart rendered, with what is set, as text.
async fn text(set: &[&str]) -> anyhow::Result<String> {
    let chart = repository().join("charts/databroker-operator").to_string_lossy().into_owned();
    let own = ["template", RELEASE, &chart, "--namespace", NAMESPACE, "--skip-tests"];
    run("helm", &[&own[..], set].concat()).await
}

async fn render(set: &[&str]) -> anyhow::Result<Vec<Value>> {
    let documents = text(set).await?;
    let documents = serde_yaml::Deserializer::from_str(&documents).map(Value::deserialize);
    Ok(documents.collect::<Result<Vec<_>, _>>()?.into_iter().filter(|object| !object.is_null()).collect())
}

/// Kind and name of each, sorted.
fn names(objects: &[Value]) -> Vec<String> {
    let name = |object: &Value| {
        let (kind, name) = (object["kind"].as_str(), object["metadata"]["name"].as_str());
        format!("{}/{}", kind.unwrap_or("?"), name.unwrap_or("?"))
    };
    let mut names: Vec<_> = objects.iter().map(name).collect();
    names.sort();
    names
}

fn of_kind<'a>(objects: &'a [Value], kind: &str) -> Option<&'a Value> {
    objects.iter().find(|object| object["kind"] == kind)
}

#[tokio::test]
async fn the_chart_renders_what_its_values_say() -> anyhow::Result<()> {
    let objects = render(&[]).await?;
    let by_default = [
        "ClusterRole/databroker-operator",
        "ClusterRole/databroker-operator-edit",
        "ClusterRole/databroker-operator-view",
        "ClusterRoleBinding/databroker-operator",
        "CustomResourceDefinition/databrokers.databroker.dev",
        "Deployment/databroker-operator",
        "NetworkPolicy/databroker-operator",
        "PodDisruptionBudget/databroker-operator",
        "Role/databroker-operator-lease",
        "RoleBinding/databroker-operator-lease",
        "Service/databroker-operator-metrics",
        "ServiceAccount/databroker-operator",
    ];
    ensure!(names(&objects) == by_default, "{:?}", names(&objects));
    let deployment = of_kind(&objects, "Deployment").context("a Deployment")?;
    let pod = &deployment["spec"]["template"]["spec"];
    let container = &pod["containers"][0]["securityContext"];
    ensure!(deployment["spec"]["replicas"] == 2 && pod["securityContext"]["runAsNonRoot"] == true, "{deployment}");
    ensure!(pod["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault", "{pod}");
    ensure!(container["allowPrivilegeEscalation"] == false && container["readOnlyRootFilesystem"] == true, "{pod}");
    ensure!(container["capabilities"]["drop"] == serde_json::json!(["ALL"]), "{pod}");

    // In one namespace there is nothing that holds in all.
    let objects = render(&["--set", "watchNamespace=team"]).await?;
    ensure!(names(&objects).iter().all(|name| !name.starts_with("ClusterRole")), "{:?}", names(&objects));
    let role = objects.iter().find(|object| object["kind"] == "Role" && object["metadata"]["namespace"] == "team");
    ensure!(role.is_some_and(|role| role["rules"].to_string().contains("secrets")), "{role:?}");

    let alone = names(&render(&["--set", "replicas=1"]).await?);
    ensure!(alone.iter().all(|name| !name.starts_with("PodDisruptionBudget")), "{alone:?}");
    let bare = ["--set", "rbac.create=false,crds.enabled=false,networkPolicy.enabled=false"];
    let bare = names(&render(&bare).await?);
    let left = ["Deployment/", "PodDisruptionBudget/", "Service/", "ServiceAccount/"];
    ensure!(bare.len() == left.len() && bare.iter().zip(left).all(|(name, kind)| name.starts_with(kind)), "{bare:?}");

    let digest = format!("sha256:{}", "0".repeat(64));
    let pinned = render(&["--set", &format!("image.digest={digest},image.repository=registry.test/operator")]).await?;
    let pod = &of_kind(&pinned, "Deployment").context("a Deployment")?["spec"]["template"]["spec"];
    ensure!(pod["containers"][0]["image"] == format!("registry.test/operator@{digest}"), "{pod}");
    Ok(())
}

#[tokio::test]
async fn a_pod_monitor_is_made_only_where_the_cluster_knows_it() -> anyhow::Result<()> {
    let wanted = ["--set", "metrics.podMonitor.enabled=true,metrics.podMonitor.labels.release=prometheus"];
    ensure!(of_kind(&render(&wanted).await?, "PodMonitor").is_none(), "the cluster would refuse it");
    let known = ["--api-versions", "monitoring.coreos.com/v1/PodMonitor"];
    ensure!(of_kind(&render(&known).await?, "PodMonitor").is_none(), "nobody asked for it");
    let objects = render(&[wanted, known].concat()).await?;
    let monitor = of_kind(&objects, "PodMonitor").context("a PodMonitor")?;
    ensure!(monitor["metadata"]["labels"]["release"] == "prometheus", "{monitor}");
    let pod = &of_kind(&objects, "Deployment").context("a Deployment")?["spec"]["template"];
    let endpoint = &monitor["spec"]["podMetricsEndpoints"][0];
    let ports = pod["spec"]["containers"][0]["ports"].as_array().context("ports")?;
    ensure!(ports.iter().any(|port| port["name"] == endpoint["port"]), "{monitor} names no port of {pod}");
    let selector = monitor["spec"]["selector"]["matchLabels"].as_object().context("a selector")?;
    let labels = &pod["metadata"]["labels"];
    ensure!(selector.iter().all(|(key, value)| labels[key] == *value), "{monitor} does not select {labels}");
    Ok(())
}

#[tokio::test]
async fn the_manifest_for_kubectl_is_what_the_chart_renders_and_is_accepted() -> anyhow::Result<()> {
    scene("manifest", async |_| {
        let path = repository().join("charts/databroker-operator.yaml");
        let head = "# The operator of Databroker for `kubectl apply`, after `crds/`: the chart databroker-operator with its \
                    defaults. Written by\n# UPDATE_MANIFEST=1 e2e/test kubernetes, and compared by every other run of it.\n";
        let namespace = format!("apiVersion: v1\nkind: Namespace\nmetadata:\n  name: {NAMESPACE}\n");
        let rendered = text(&["--set", "crds.enabled=false"]).await?;
        let rendered = format!("{head}{namespace}{rendered}");
        if std::env::var_os("UPDATE_MANIFEST").is_some() {
            fs::write(&path, &rendered)?;
        }
        let there = fs::read_to_string(&path).with_context(|| format!("{} (UPDATE_MANIFEST=1)", path.display()))?;
        ensure!(there == rendered, "{} is not what the chart renders: UPDATE_MANIFEST=1", path.display());

        let (definition, manifest) = (repository().join("crds"), path);
        let files = ["-f", &definition.to_string_lossy(), "-f", &manifest.to_string_lossy()];
        let dry = ["apply", "--server-side", "--force-conflicts", "--dry-run=server", "-o", "name"];
        let accepted = kubectl(&[&dry[..], &files].concat()).await?;
        ensure!(accepted.lines().count() == there.matches("\nkind: ").count() + 1, "{accepted}");
        Ok(())
    })
    .await
}
