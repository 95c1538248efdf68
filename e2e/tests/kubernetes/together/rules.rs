//! Objects that are refused, and objects that are edited: nothing is accepted and ignored.

use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use databroker_operator::api::Databroker;
use k8s_openapi::api::apps::v1::StatefulSet;
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use serde_json::{Value, json};

use crate::harness::{NAME, Scene, condition, is_ready, message, scene, tools::kubectl, until};

/// Specs that are refused when an object is made, and what is said.
fn refused() -> Vec<(Value, &'static str)> {
    vec![
        (json!({"replicas": 2}), "replicas must be 1, 3, 5 or 7"),
        (json!({"image": ""}), "spec.image"),
        (json!({"durability": "Perhaps"}), "Unsupported value"),
        (json!({"election": {"heartbeatInterval": "soon"}}), "heartbeatInterval"),
        (
            json!({"election": {"heartbeatInterval": "200ms"}}),
            "electionTimeoutMin must be at least three times heartbeatInterval",
        ),
        (
            json!({"election": {"electionTimeoutMin": "400ms", "electionTimeoutMax": "400ms"}}),
            "electionTimeoutMax must be above electionTimeoutMin",
        ),
        (json!({"election": {"heartbeatInterval": "9ms"}}), "heartbeatInterval must be at least 10ms"),
        (json!({"storage": {"size": "511Mi"}}), "storage.size must be at least 512Mi"),
        (json!({"podLabels": {"app.kubernetes.io/name": "mine"}}), "are the operator's"),
        (json!({"podAnnotations": {"databroker.dev/config": "mine"}}), "are the operator's"),
        (json!({"terminationGracePeriodSeconds": 1}), "terminationGracePeriodSeconds"),
        (json!({"storage": {"ephemeral": true, "size": "1Gi"}}), "ephemeral"),
        (json!({"tls": {"mode": "CertManager"}}), "Unsupported value"),
        (json!({"service": {"port": 0}}), "port"),
    ]
}

/// Changes that are refused of one that is there.
fn immutable() -> Vec<(Value, &'static str)> {
    vec![
        (json!({"storage": {"size": "2Gi"}}), "storage.size cannot be changed yet"),
        (json!({"storage": {"storageClassName": "other"}}), "storage.storageClassName cannot be changed"),
        (json!({"storage": {"ephemeral": true, "size": null}}), "storage.ephemeral cannot be changed"),
    ]
}

#[tokio::test]
async fn each_rule_is_refused_with_its_message() -> anyhow::Result<()> {
    scene("rules", async |scene| {
        let api = scene.databrokers();
        for (spec, message) in refused() {
            let object = json!({"apiVersion": "databroker.dev/v1alpha1", "kind": "Databroker",
                "metadata": {"name": NAME}, "spec": spec});
            match create(scene, &object).await {
                Ok(_) => bail!("accepted: {spec}"),
                Err(error) => ensure!(error.to_string().contains(message), "{spec}: {error}"),
            }
        }
        for (name, message) in [("0-is-no-name", "begin with a letter"), ("main-leader", "must not end in -leader")] {
            let misnamed = json!({"apiVersion": "databroker.dev/v1alpha1", "kind": "Databroker",
                "metadata": {"name": name}, "spec": {}});
            let error = create(scene, &misnamed).await.err().with_context(|| format!("{name} is accepted"))?;
            ensure!(error.to_string().contains(message), "{name}: {error}");
        }

        scene.apply(json!({"replicas": 1, "suspend": true, "storage": {"size": "1Gi"}})).await?;
        for (spec, message) in immutable() {
            let patch = Patch::Merge(json!({"spec": spec}));
            match api.patch(NAME, &PatchParams::default(), &patch).await {
                Ok(_) => bail!("accepted: {spec}"),
                Err(error) => ensure!(error.to_string().contains(message), "{spec}: {error}"),
            }
        }
        Ok(())
    })
    .await
}

async fn create(scene: &Scene, object: &Value) -> anyhow::Result<Value> {
    let path = format!("/apis/databroker.dev/v1alpha1/namespaces/{}/databrokers", scene.namespace);
    let request = http::Request::post(path).header("content-type", "application/json");
    Ok(scene.client.request(request.body(serde_json::to_vec(object)?)?).await?)
}

#[tokio::test]
async fn an_object_edited_by_hand_is_applied_or_reported_and_never_wedges_the_operator() -> anyhow::Result<()> {
    scene("edits", async |scene| {
        scene.found(json!({"replicas": 1})).await?;
        let sets: Api<StatefulSet> = Api::namespaced(scene.client.clone(), &scene.namespace);

        // Everything that is passed on to the pod.
        scene
            .change(json!({
                "podLabels": {"team": "access"},
                "podAnnotations": {"note": "by hand"},
                "resources": {"requests": {"cpu": "50m", "memory": "64Mi"}},
                "nodeSelector": {"kubernetes.io/os": "linux"},
                "tolerations": [{"key": "e2e", "operator": "Exists"}],
                "priorityClassName": "system-cluster-critical",
                "terminationGracePeriodSeconds": 20,
                "imagePullPolicy": "IfNotPresent",
                "topologySpreadConstraints": [],
                "election": {"heartbeatInterval": "60ms", "electionTimeoutMin": "400ms", "electionTimeoutMax": "600ms"},
                "durability": "Os",
                "service": {"port": 6000, "annotations": {"note": "by hand"}},
                "podDisruptionBudget": {"enabled": false},
                "networkPolicy": {"enabled": false},
            }))
            .await?;
        scene.ready(Duration::from_secs(120)).await?;
        let template = sets.get(NAME).await?.spec.context("spec")?.template;
        let labels = template.metadata.and_then(|metadata| metadata.labels).unwrap_or_default();
        let pod = template.spec.context("pod")?;
        ensure!(labels.get("team").is_some_and(|team| team == "access"), "{labels:?}");
        ensure!(pod.termination_grace_period_seconds == Some(20) && pod.tolerations.is_some(), "{pod:?}");
        let config = kubectl(&["get", "configmap", "databroker-config", "-n", &scene.namespace, "-o", "yaml"]).await?;
        ensure!(config.contains("60ms") && config.contains("\"os\""), "{config}");
        let services = kubectl(&["get", "services", "-n", &scene.namespace]).await?;
        ensure!(services.contains("6000/TCP"), "{services}");
        let none = kubectl(&["get", "networkpolicies", "-n", &scene.namespace, "-o", "name"]).await?;
        ensure!(none.is_empty(), "{none}");

        // What is no longer asked for is given up.
        scene
            .change(json!({
                "podLabels": null, "podAnnotations": null, "resources": null, "nodeSelector": null, "tolerations": null,
                "priorityClassName": null, "imagePullPolicy": null, "service": {"annotations": null},
            }))
            .await?;
        until("they are gone from the StatefulSet", Duration::from_secs(60), async || {
            let template = serde_json::to_string(&sets.get(NAME).await?.spec.context("spec")?.template)?;
            let old = ["\"team\"", "by hand", "50m", "\"key\":\"e2e\"", "system-cluster-critical", "kubernetes.io/os"];
            Ok(old.iter().all(|word| !template.contains(word)).then_some(()))
        })
        .await?;
        let service = kubectl(&["get", "service", NAME, "-n", &scene.namespace, "-o", "yaml"]).await?;
        ensure!(!service.contains("by hand"), "{service}");
        scene.ready(Duration::from_secs(120)).await?;

        // Its certificate goes, and comes again.
        scene.change(json!({"tls": {"mode": "Disabled"}})).await?;
        scene.ready(Duration::from_secs(120)).await?;
        let secrets = kubectl(&["get", "secrets", "-n", &scene.namespace, "-o", "name"]).await?;
        ensure!(!secrets.contains("databroker-tls"), "{secrets}");
        scene.change(json!({"tls": {"mode": "SelfManaged"}})).await?;
        scene.ready(Duration::from_secs(120)).await?;

        // Pods that are a person's to restart stay until they are.
        let before = scene.uids().await?;
        scene.change(json!({"updateStrategy": {"type": "OnDelete"}, "podAnnotations": {"note": "later"}})).await?;
        let held = |object: &Databroker| is_ready(object) && condition(object, "Reconciling").1 == "UpdatePaused";
        scene.until("the new revision waits", Duration::from_secs(60), held).await?;
        ensure!(scene.uids().await? == before, "a pod was restarted");
        scene.kill(&format!("{NAME}-0")).await?;
        scene
            .until("the pod is of the new revision", Duration::from_secs(120), |object| {
                let updated = object.status.as_ref().is_some_and(|status| status.updated_replicas == 1);
                is_ready(object) && updated && condition(object, "Reconciling").1 == "AsExpected"
            })
            .await?;
        scene.change(json!({"updateStrategy": null, "podAnnotations": null})).await?;
        scene.ready(Duration::from_secs(120)).await?;

        // What cannot be is reported, and stops no pod.
        let (running, shape) = (scene.uids().await?, sets.get(NAME).await?.metadata.generation);
        scene.change(json!({"sharedSecret": {"secretRef": {"name": "missing", "key": "key"}}})).await?;
        let object = scene
            .until("the missing Secret is reported", Duration::from_secs(60), |object| {
                condition(object, "Ready") == ("False".into(), "SecretMissing".into())
            })
            .await?;
        println!("a missing Secret: {}", message(&object, "Ready"));
        ensure!(sets.get(NAME).await?.metadata.generation == shape, "pods are to read a Secret that is not there");
        ensure!(scene.uids().await? == running, "a pod was stopped for a Secret that is not there");
        scene.change(json!({"sharedSecret": null})).await?;
        scene.ready(Duration::from_secs(120)).await?;

        // What others change of our objects is put right.
        let patch = Patch::Merge(json!({"spec": {"template": {"spec": {"terminationGracePeriodSeconds": 7}}}}));
        sets.patch(NAME, &PatchParams::default(), &patch).await?;
        until("the StatefulSet is put right", Duration::from_secs(60), async || {
            let template = sets.get(NAME).await?.spec.context("spec")?.template;
            Ok((template.spec.context("pod")?.termination_grace_period_seconds == Some(20)).then_some(()))
        })
        .await?;
        let moved = json!({"spec": {"ports": [{"name": "grpc", "port": 6001, "targetPort": "grpc"}]}}).to_string();
        kubectl(&["patch", "service", NAME, "--type=merge", "-p", &moved, "-n", &scene.namespace]).await?;
        until("the Service is put right", Duration::from_secs(60), async || {
            let services = kubectl(&["get", "service", NAME, "-n", &scene.namespace]).await?;
            Ok((services.contains("6000/TCP") && !services.contains("6001")).then_some(()))
        })
        .await?;
        scene.ready(Duration::from_secs(120)).await?;
        scene.change(json!({"replicas": 3})).await?;
        let before = scene.ready(Duration::from_secs(120)).await?;

        // Also when it leaves nobody who could lead.
        let id_of = |object: &Databroker| object.status.as_ref().and_then(|status| status.cluster_id.clone());
        for taken_away in [
            &["scale", "statefulset", NAME, "--replicas=0"][..],
            &["scale", "statefulset", NAME, "--replicas=1"],
            &["delete", "statefulset", NAME],
        ] {
            let old = sets.get(NAME).await?.metadata;
            kubectl(&[taken_away, &["-n", &scene.namespace]].concat()).await?;
            until("the pods are there again", Duration::from_secs(60), async || {
                let Some(set) = sets.get_opt(NAME).await? else { return Ok(None) };
                let changed = (set.metadata.uid, set.metadata.generation) != (old.uid.clone(), old.generation);
                let ready = set.status.and_then(|status| status.ready_replicas);
                Ok((changed && set.spec.and_then(|spec| spec.replicas) == Some(3) && ready == Some(3)).then_some(()))
            })
            .await?;
            let after = scene.ready(Duration::from_secs(120)).await?;
            ensure!(id_of(&after).is_some() && id_of(&after) == id_of(&before), "after {taken_away:?}: {after:?}");
        }
        Ok(())
    })
    .await
}

#[tokio::test]
async fn what_belongs_to_something_else_is_left_alone_and_a_secret_made_before_is_used() -> anyhow::Result<()> {
    scene("others", async |scene| {
        let theirs = ["create", "service", "clusterip", NAME, "--tcp=80", "-n", &scene.namespace];
        kubectl(&theirs).await?;
        let value = "--from-literal=shared_secret=MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=";
        let name = format!("{NAME}-shared-secret");
        kubectl(&["create", "secret", "generic", &name, value, "-n", &scene.namespace]).await?;
        let text = async || {
            let path = "jsonpath={.data.shared_secret}{.metadata.labels}";
            kubectl(&["get", "secret", &name, "-n", &scene.namespace, "-o", path]).await
        };
        let before = text().await?;
        scene.apply(json!({"replicas": 1, "storage": {"size": "512Mi"}})).await?;
        let object = scene
            .until("the Service of others is reported", Duration::from_secs(60), |object| {
                message(object, "Ready").contains("belongs to something else")
            })
            .await?;
        ensure!(condition(&object, "Ready").1 == "ApplyFailed", "{object:?}");
        let service = kubectl(&["get", "service", NAME, "-n", &scene.namespace, "-o", "yaml"]).await?;
        ensure!(!service.contains("databroker-operator") && service.contains("port: 80"), "{service}");

        kubectl(&["delete", "service", NAME, "-n", &scene.namespace]).await?;
        scene.ready(Duration::from_secs(120)).await?;
        let after = text().await?;
        let data = |text: &str| text.split('{').next().map(str::to_owned);
        ensure!(data(&after) == data(&before) && data(&after).is_some_and(|data| !data.is_empty()), "it was changed");

        // Whatever becomes of its labels.
        kubectl(&["label", "secret", &name, "app.kubernetes.io/managed-by-", "-n", &scene.namespace]).await?;
        until("it is labelled again", Duration::from_secs(60), async || {
            Ok(text().await?.contains("managed-by").then_some(()))
        })
        .await?;
        ensure!(data(&text().await?) == data(&before), "it was changed");
        scene.ready(Duration::from_secs(60)).await.map(drop)
    })
    .await
}

#[tokio::test]
async fn the_definition_that_is_installed_is_the_one_of_the_source() -> anyhow::Result<()> {
    scene("definition", async |scene| {
        let path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/databrokers.databroker.dev";
        let installed: Value = scene.client.request(http::Request::get(path).body(Vec::new())?).await?;
        ensure!(
            installed["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep",
            "it would go with the chart"
        );
        let accepted = installed["status"]["conditions"].as_array().context("conditions")?;
        let violated = accepted.iter().find(|one| one["type"] == "NonStructuralSchema" && one["status"] == "True");
        ensure!(violated.is_none(), "{violated:?}");
        Ok(())
    })
    .await
}
