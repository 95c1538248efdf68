//! Another build of the operator, and what it may do.

use std::{collections::BTreeSet, fs, time::Duration};

use anyhow::{Context as _, ensure};
use databroker_operator::api::Databroker;
use k8s_openapi::api::rbac::v1::PolicyRule;
use serde::Deserialize as _;
use serde_json::{Value, json};

use crate::harness::{condition, figure, is_ready, operator, scene, tools, until};

#[tokio::test]
async fn another_operator_restarts_no_broker() -> anyhow::Result<()> {
    scene("upgrade", async |scene| {
        scene.found(json!({})).await?;
        let before = scene.uids().await?;
        operator::install(&format!("{}-next", tools::tag())).await?;
        let upgraded = async {
            scene.change(json!({"service": {"annotations": {"seen": "by the next"}}})).await?;
            // By the new one: it has applied the change.
            until("the new operator works", Duration::from_secs(60), async || {
                let own = ["get", "service", "databroker", "-n", &scene.namespace, "-o", "yaml"];
                Ok(tools::kubectl(&own).await?.contains("by the next").then_some(()))
            })
            .await?;
            // Its own brokers' image is another, which is told and no more.
            scene
                .until("Ready, and an update is there", Duration::from_secs(60), |object| {
                    is_ready(object) && condition(object, "Ready").1 == "UpdateAvailable"
                })
                .await
        }
        .await;
        operator::install(&tools::tag()).await?;
        upgraded?;
        let back = |object: &Databroker| is_ready(object) && condition(object, "Ready").1 == "AsExpected";
        scene.until("the old operator is back", Duration::from_secs(60), back).await?;
        ensure!(scene.uids().await? == before, "brokers were restarted");
        figure("operator upgraded and back: pods restarted", 0);
        Ok(())
    })
    .await
}

/// A right: what may be done to which kind, with its group.
type Right = (String, String, String);

/// By its name after the stories that use a right of their own: they have to have happened.
#[tokio::test]
async fn zz_the_operator_has_no_right_that_it_does_not_use() -> anyhow::Result<()> {
    let Some(log) = std::env::var_os("E2E_AUDIT_LOG") else {
        println!("LEFT OUT: no audit log of the API server at hand (E2E_AUDIT_LOG)");
        return Ok(());
    };
    let chart = tools::repository().join("charts/databroker-operator").to_string_lossy().into_owned();
    let own = ["template", operator::RELEASE, &chart, "--namespace", operator::NAMESPACE];
    let only = ["--show-only", "templates/rbac.yaml", "--set", "rbac.aggregate=false"];
    let granted = granted(&tools::run("helm", &[&own[..], &only].concat()).await?)?;
    let used = used(&fs::read_to_string(log)?)?;
    let unused: Vec<_> = granted.difference(&used).collect();
    ensure!(unused.is_empty(), "granted and never used: {unused:?}");
    figure("rights of the operator, all used", granted.len());
    Ok(())
}

fn granted(rendered: &str) -> anyhow::Result<BTreeSet<Right>> {
    let mut granted = BTreeSet::new();
    for document in serde_yaml::Deserializer::from_str(rendered) {
        let object = Value::deserialize(document)?;
        let Some(rules) = object.get("rules") else { continue };
        for rule in serde_json::from_value::<Vec<PolicyRule>>(rules.clone())? {
            for group in rule.api_groups.iter().flatten() {
                for resource in rule.resources.iter().flatten() {
                    granted.extend(rule.verbs.iter().map(|verb| (group.clone(), resource.clone(), verb.clone())));
                }
            }
        }
    }
    ensure!(!granted.is_empty(), "no rules in: {rendered}");
    Ok(granted)
}

fn used(log: &str) -> anyhow::Result<BTreeSet<Right>> {
    let mut used = BTreeSet::new();
    for event in operator::audited(log) {
        let about = |key: &str| event["objectRef"][key].as_str().unwrap_or_default().to_owned();
        let (group, mut resource) = (about("apiGroup"), about("resource"));
        let verb = event["verb"].as_str().context("an event without a verb")?.to_owned();
        match about("subresource") {
            none if none.is_empty() => {}
            sub => resource = format!("{resource}/{sub}"),
        }
        // What is applied and not there yet is made, and takes the right to.
        if verb == "patch" && event["responseStatus"]["code"] == 201 {
            used.insert((group.clone(), resource.clone(), "create".to_owned()));
        }
        used.insert((group, resource, verb));
    }
    Ok(used)
}
