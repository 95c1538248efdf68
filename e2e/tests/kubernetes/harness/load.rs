//! Clients inside the cluster: `e2e/conformance/load` in a pod, asked through the API server.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context as _, ensure};
use kube::api::PostParams;
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};

use super::{NAME, Scene, tools::tag, until};

/// How they dial.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Way {
    /// The Service for clients.
    Service,
    /// Every broker, by the headless name, with a deadline of a second for each call.
    EachPod,
}

/// What was seen since the last beginning.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Window {
    pub(crate) acknowledged: u64,
    pub(crate) failed: u64,
    pub(crate) errors: BTreeMap<String, u64>,
    pub(crate) gap_millis: u64,
    pub(crate) resyncs: u64,
}

/// What was seen at the end.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Report {
    #[serde(flatten)]
    pub(crate) window: Window,
    pub(crate) acknowledged_in_all: u64,
    pub(crate) lost: u64,
    pub(crate) lost_ids: Option<Vec<String>>,
    pub(crate) missed_by_copies: u64,
}

/// A pod that writes and keeps copies.
pub(crate) struct Load<'a> {
    scene: &'a Scene,
    pod: String,
}

impl Scene {
    /// Starts one, on a node if one is named, and waits until its writes are acknowledged.
    pub(crate) async fn load(&self, name: &str, way: Way, node: Option<&str>) -> anyhow::Result<Load<'_>> {
        let (address, deadline) = match way {
            Way::Service => (format!("{NAME}.{}.svc:5443", self.namespace), "10s"),
            Way::EachPod => (format!("dns:///{NAME}-headless.{}.svc:5443", self.namespace), "1s"),
        };
        let argument = |key: &str, value: &str| format!("-{key}={value}");
        let mut pod = json!({
            "metadata": {"name": name},
            "spec": {
                "restartPolicy": "Never",
                "automountServiceAccountToken": false,
                "terminationGracePeriodSeconds": 0,
                "securityContext": {"runAsNonRoot": true, "runAsUser": 65532, "runAsGroup": 65532, "fsGroup": 65532,
                    "seccompProfile": {"type": "RuntimeDefault"}},
                "containers": [{
                    "name": "load",
                    "image": format!("databroker-load:{}", tag()),
                    "imagePullPolicy": "IfNotPresent",
                    "args": [argument("address", &address), argument("ca-file", "/ca/ca.crt"),
                        argument("deadline", deadline), argument("run", name)],
                    "securityContext": {"allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
                        "capabilities": {"drop": ["ALL"]}},
                    "volumeMounts": [{"name": "secret", "mountPath": "/secret"}, {"name": "ca", "mountPath": "/ca"}],
                }],
                "volumes": [
                    {"name": "secret", "secret": {"secretName": format!("{NAME}-shared-secret")}},
                    {"name": "ca", "secret": {"secretName": format!("{NAME}-tls"),
                        "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
                ],
            },
        });
        if let Some(node) = node {
            pod["spec"]["nodeSelector"] = json!({"kubernetes.io/hostname": node});
        }
        self.pods().create(&PostParams::default(), &serde_json::from_value(pod)?).await?;
        let load = Load { scene: self, pod: name.to_owned() };
        until("the load is acknowledged", Duration::from_secs(60), async || {
            let seen: Window = load.ask("progress").await?;
            Ok((seen.acknowledged > 20).then_some(()))
        })
        .await?;
        load.begin().await?;
        Ok(load)
    }
}

impl Load<'_> {
    /// Through the API server, so that it works from wherever the test runs.
    fn path(&self, what: &str) -> String {
        format!("/api/v1/namespaces/{}/pods/{}:8080/proxy/{what}", self.scene.namespace, self.pod)
    }

    async fn ask<T: DeserializeOwned>(&self, what: &str) -> anyhow::Result<T> {
        let request = http::Request::get(self.path(what)).body(Vec::new())?;
        let said = self.scene.client.request_text(request).await?;
        serde_json::from_str(&said).with_context(|| format!("{what}: {said}"))
    }

    /// Greets a server from inside the cluster, with a certificate or with none; returns why it does not answer.
    pub(crate) async fn greet(&self, stranger: &Value) -> anyhow::Result<Option<String>> {
        let request = http::Request::post(self.path("greet")).header("content-type", "application/json");
        let said = self.scene.client.request_text(request.body(serde_json::to_vec(stranger)?)?).await?;
        let said: Value = serde_json::from_str(&said).with_context(|| format!("greet: {said}"))?;
        Ok(said["refused"].as_str().map(ToOwned::to_owned))
    }

    /// Counts anew from here; returns what was seen until now.
    pub(crate) async fn begin(&self) -> anyhow::Result<Window> {
        self.ask("begin").await
    }

    /// What was seen since the last beginning.
    pub(crate) async fn progress(&self) -> anyhow::Result<Window> {
        self.ask("progress").await
    }

    /// Waits until so many more writes are acknowledged.
    pub(crate) async fn goes_on(&self, writes: u64, within: Duration) -> anyhow::Result<()> {
        let before = self.progress().await?.acknowledged;
        until("writes go on", within, async || {
            Ok((self.progress().await?.acknowledged >= before + writes).then_some(()))
        })
        .await
    }

    /// Ends it. Nothing acknowledged may be missing, in the store or in a copy.
    pub(crate) async fn finish(self) -> anyhow::Result<Report> {
        let report = until("what was written is read back", Duration::from_secs(180), async || {
            Ok(Some(self.ask::<Report>("finish").await?))
        })
        .await?;
        ensure!(report.lost == 0, "{} acknowledged writes are lost: {:?}", report.lost, report.lost_ids);
        ensure!(report.missed_by_copies == 0, "copies miss {} acknowledged writes", report.missed_by_copies);
        Ok(report)
    }
}
