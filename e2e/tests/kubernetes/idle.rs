//! What the operator costs when nothing is to be done.

use std::{fs, time::Duration};

use anyhow::{Context as _, ensure};
use jiff::Timestamp;
use kube::Client;
use serde_json::{Value, json};

use crate::harness::{
    figure, is_ready, nodes,
    operator::{self, NAMESPACE},
    scene,
    tools::kubectl,
    until,
};

const CLUSTERS: usize = 10;
/// Long enough for the kubelet to have looked a few times.
const WINDOW: Duration = Duration::from_secs(60);

#[tokio::test]
async fn an_operator_whose_ten_clusters_are_settled_hardly_works() -> anyhow::Result<()> {
    scene("idle", async |scene| {
        for number in 0..CLUSTERS {
            let name = format!("settled-{number}");
            // Most alone, so that the nodes are not busy with brokers.
            let replicas = if number < 3 { 3 } else { 1 };
            scene.apply_as(&name, json!({"replicas": replicas})).await?;
        }
        until("all are Ready", Duration::from_secs(180), async || {
            let all = scene.databrokers().list(&Default::default()).await?.items;
            Ok((all.len() == CLUSTERS && all.iter().all(is_ready)).then_some(()))
        })
        .await?;
        // Certificates and labels are applied a moment after that.
        let settled = Timestamp::now();
        let versions = async || -> anyhow::Result<Vec<Option<String>>> {
            let all = scene.databrokers().list(&Default::default()).await?.items;
            Ok(all.into_iter().map(|object| object.metadata.resource_version).collect())
        };
        let mut last = versions().await?;
        until("nothing changes for twenty seconds", Duration::from_secs(120), async || {
            tokio::time::sleep(Duration::from_secs(20)).await;
            let before = std::mem::replace(&mut last, versions().await?);
            Ok((before == last).then_some(()))
        })
        .await?;
        println!("settled in {:.0}", Timestamp::now().duration_since(settled));

        let (from, before) = (Timestamp::now(), costs(&scene.client).await?);
        tokio::time::sleep(WINDOW).await;
        let (to, after) = (Timestamp::now(), costs(&scene.client).await?);
        let (mut busiest, mut largest) = (0.0_f64, 0);
        for (pod, cost) in &after {
            let (_, earlier) = before.iter().find(|(other, _)| other == pod).context("an operator was restarted")?;
            let nanos = cost.cpu_nanos.saturating_sub(earlier.cpu_nanos) as f64;
            let took = (cost.at.as_millisecond() - earlier.at.as_millisecond()).max(1) as f64 * 1e6;
            busiest = busiest.max(100.0 * nanos / took);
            largest = largest.max(cost.memory_bytes);
        }
        figure("operator, 10 settled Databrokers: processor (% of a core, under 0.5)", format!("{busiest:.2}"));
        figure("operator, 10 settled Databrokers: memory (MiB, at most 30)", largest >> 20);
        ensure!(largest > 0 && largest <= 30 << 20, "{largest} bytes");
        ensure!(after.len() == 2, "{} replicas of the operator", after.len());
        let Some(log) = std::env::var_os("E2E_AUDIT_LOG") else {
            println!("LEFT OUT: no audit log of the API server at hand (E2E_AUDIT_LOG)");
            return Ok(());
        };
        let calls = calls(&fs::read_to_string(log)?, from, to);
        figure("operator, 10 settled Databrokers: calls to the API server in a minute (at most 60)", calls.len());
        ensure!(calls.len() <= 60, "{calls:?}");
        Ok(())
    })
    .await
}

struct Cost {
    at: Timestamp,
    cpu_nanos: u64,
    memory_bytes: u64,
}

/// Of each replica of the operator, as the kubelets tell.
async fn costs(client: &Client) -> anyhow::Result<Vec<(String, Cost)>> {
    let mut costs = Vec::new();
    for node in nodes(client).await? {
        let path = format!("/api/v1/nodes/{node}/proxy/stats/summary");
        let said: Value = serde_json::from_str(&kubectl(&["get", "--raw", &path]).await?)?;
        for pod in said["pods"].as_array().into_iter().flatten() {
            let name = pod["podRef"]["name"].as_str().unwrap_or_default();
            if pod["podRef"]["namespace"] != NAMESPACE || !name.starts_with("databroker-operator") {
                continue;
            }
            let container = &pod["containers"][0];
            let cpu_nanos = container["cpu"]["usageCoreNanoSeconds"].as_u64();
            let memory_bytes = container["memory"]["workingSetBytes"].as_u64();
            let at = container["cpu"]["time"].as_str().context("no time")?.parse()?;
            let (cpu_nanos, memory_bytes) = cpu_nanos.zip(memory_bytes).with_context(|| format!("{container}"))?;
            costs.push((name.to_owned(), Cost { at, cpu_nanos, memory_bytes }));
        }
    }
    Ok(costs)
}

/// The operator's calls that began between these times, one each.
fn calls(log: &str, from: Timestamp, to: Timestamp) -> Vec<String> {
    let mut calls = std::collections::BTreeMap::new();
    for event in operator::audited(log) {
        let began = event["requestReceivedTimestamp"].as_str().and_then(|at| at.parse::<Timestamp>().ok());
        if began.is_some_and(|began| from <= began && began <= to) {
            let what = format!("{} {}", event["verb"], event["requestURI"]);
            calls.insert(event["auditID"].to_string(), what);
        }
    }
    calls.into_values().collect()
}
