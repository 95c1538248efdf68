//! A stage for stories: a namespace of its own, what is waited for, and what is kept when a story ends badly.

pub(crate) mod load;
pub(crate) mod operator;
pub(crate) mod tools;

use std::{
    collections::BTreeMap,
    fmt::Display,
    io::Write as _,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use databroker_operator::api::Databroker;
use k8s_openapi::{
    api::core::v1::{Namespace, Node, PersistentVolumeClaim, Pod},
    apimachinery::pkg::apis::meta::v1::Condition,
};
use kube::{
    Api, Client, ResourceExt as _,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};

/// How often something that is waited for is looked at.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// What all stories call their cluster.
pub(crate) const NAME: &str = "databroker";
/// The type of the records that stories write.
const RECORD_TYPE: &str = "databroker.dev/e2e";

/// A namespace, and a way to the cluster.
pub(crate) struct Scene {
    pub(crate) client: Client,
    pub(crate) namespace: String,
}

/// Plays a story in a namespace of its own, with the operator installed and working. What is there is written down if it
/// ends with an error; afterwards the namespace is gone.
pub(crate) async fn scene(story: &str, play: impl AsyncFnOnce(&Scene) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    ensure!(std::env::var_os("KUBECONFIG").is_some(), "KUBECONFIG names no cluster: run e2e/test kubernetes");
    let client = Client::try_default().await?;
    operator::ensure_installed(&client).await?;
    let namespace = format!("e2e-{story}-{:04x}", rand::random::<u16>());
    let restricted = json!({"metadata": {"name": namespace, "labels": {
        "pod-security.kubernetes.io/enforce": "restricted",
        "pod-security.kubernetes.io/enforce-version": "latest",
    }}});
    let namespaces: Api<Namespace> = Api::all(client.clone());
    namespaces.create(&PostParams::default(), &serde_json::from_value(restricted)?).await?;
    let scene = Scene { client, namespace };
    let began = Instant::now();
    let played = play(&scene).await;
    let took = began.elapsed();
    if let Err(error) = &played {
        println!("{story} failed: {error:#}");
        tools::dump(&scene.namespace);
        if std::env::var_os("E2E_KEEP").is_some() {
            return played;
        }
    }
    namespaces.delete(&scene.namespace, &DeleteParams::default()).await?;
    // Nobody waits for what they would do in good order, and nothing starts them again in a namespace that goes.
    scene.pods().delete_collection(&DeleteParams::default().grace_period(0), &ListParams::default()).await?;
    until("the namespace is gone", Duration::from_secs(90), async || {
        Ok(namespaces.get_opt(&scene.namespace).await?.is_none().then_some(()))
    })
    .await?;
    println!("{story}: told in {:.0?}, tidied up in {:.0?}", took, began.elapsed() - took);
    played
}

/// Looks until it gives something; an error is looked at again too, and told if it was the last.
///
/// # Errors
/// It did not, in time.
pub(crate) async fn until<T>(
    what: &str,
    within: Duration,
    mut look: impl AsyncFnMut() -> anyhow::Result<Option<T>>,
) -> anyhow::Result<T> {
    let began = Instant::now();
    loop {
        let seen = look().await;
        if let Ok(Some(found)) = seen {
            return Ok(found);
        }
        if began.elapsed() > within {
            let last = seen.err().map_or_else(String::new, |error| format!(": {error:#}"));
            bail!("not within {within:?}: {what}{last}");
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// A figure, for people and for the table of figures.
pub(crate) fn figure(what: &str, value: impl Display) {
    println!("figure: {what}: {value}");
    if let Some(file) = std::env::var_os("E2E_FIGURES") {
        let opened = std::fs::OpenOptions::new().create(true).append(true).open(&file);
        if let Err(error) = opened.and_then(|mut file| writeln!(file, "{what}: {value}")) {
            println!("cannot note it in {}: {error}", file.display());
        }
    }
}

impl Scene {
    pub(crate) fn databrokers(&self) -> Api<Databroker> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    pub(crate) fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    pub(crate) fn claims(&self) -> Api<PersistentVolumeClaim> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// Applies a `Databroker` as a person would.
    pub(crate) async fn apply(&self, spec: Value) -> anyhow::Result<Databroker> {
        self.apply_as(NAME, spec).await
    }

    /// The same under another name, where a story has several.
    pub(crate) async fn apply_as(&self, name: &str, spec: Value) -> anyhow::Result<Databroker> {
        let object = json!({
            "apiVersion": "databroker.dev/v1alpha1",
            "kind": "Databroker",
            "metadata": {"name": name},
            "spec": spec,
        });
        let params = PatchParams::apply("e2e").force();
        Ok(self.databrokers().patch(name, &params, &Patch::Apply(object)).await?)
    }

    /// Changes some of its spec.
    pub(crate) async fn change(&self, spec: Value) -> anyhow::Result<Databroker> {
        let patch = Patch::Merge(json!({"spec": spec}));
        Ok(self.databrokers().patch(NAME, &PatchParams::default(), &patch).await?)
    }

    /// Applies it, waits, and returns how long it took.
    pub(crate) async fn found(&self, spec: Value) -> anyhow::Result<Duration> {
        let began = Instant::now();
        self.apply(spec).await?;
        self.ready(Duration::from_secs(90)).await?;
        Ok(began.elapsed())
    }

    /// Waits until the object is as `check` wants it.
    pub(crate) async fn until(
        &self,
        what: &str,
        within: Duration,
        check: impl Fn(&Databroker) -> bool,
    ) -> anyhow::Result<Databroker> {
        let mut last = None;
        let seen = until(what, within, async || {
            let object = self.databrokers().get(NAME).await?;
            let met = check(&object);
            last = object.status.clone();
            Ok(met.then_some(object))
        })
        .await;
        seen.with_context(|| format!("the last status: {}", serde_json::to_string(&last).unwrap_or_default()))
    }

    /// Waits until what the spec says now is so.
    pub(crate) async fn ready(&self, within: Duration) -> anyhow::Result<Databroker> {
        self.until("the Databroker is Ready", within, is_ready).await
    }

    /// The brokers' pods, by name.
    pub(crate) async fn brokers(&self) -> anyhow::Result<BTreeMap<String, Pod>> {
        let own = ListParams::default().labels("app.kubernetes.io/name=databroker");
        let pods = self.pods().list(&own).await?;
        Ok(pods.into_iter().map(|pod| (pod.name_any(), pod)).collect())
    }

    /// The ids of the pods, to see whether any was made anew.
    pub(crate) async fn uids(&self) -> anyhow::Result<BTreeMap<String, String>> {
        let brokers = self.brokers().await?;
        Ok(brokers.into_iter().map(|(name, pod)| (name, pod.uid().unwrap_or_default())).collect())
    }

    /// The pods that were made anew since [`Self::uids`] said this; one that is gone is none of them.
    pub(crate) async fn renewed(&self, before: &BTreeMap<String, String>) -> anyhow::Result<Vec<String>> {
        let now = self.uids().await?;
        Ok(now.into_iter().filter(|(name, uid)| before.get(name) != Some(uid)).map(|(name, _)| name).collect())
    }

    /// How the cluster stands by its own word: asked in the pods, one after the other, until a leader is known.
    pub(crate) async fn cluster(&self) -> anyhow::Result<Value> {
        let mut failed = None;
        // One that is cut off is asked last.
        let brokers = self.brokers().await?.into_iter();
        let (ready, unready): (Vec<_>, Vec<_>) = brokers.partition(|(_, pod)| is_pod_ready(pod));
        for (name, _) in ready.into_iter().chain(unready) {
            match tools::in_pod(&self.namespace, &name, &["/databroker", "cluster", "status", "-o", "json"]).await {
                Ok(said) => {
                    let status: Value = serde_json::from_str(&said)?;
                    if status["leader"].as_str().is_some_and(|leader| !leader.is_empty()) {
                        return Ok(status);
                    }
                }
                Err(error) => failed = Some(error),
            }
        }
        Err(failed.unwrap_or_else(|| anyhow::anyhow!("no broker knows a leader")))
    }

    /// Waits until so many members vote and are caught up, by their own word; returns who leads, and in which term.
    pub(crate) async fn whole(&self, voters: usize, within: Duration) -> anyhow::Result<(String, u64)> {
        until(&format!("{voters} members are caught up"), within, async || {
            let status = self.cluster().await?;
            let members = status["members"].as_array().context("members")?;
            let well = |member: &&Value| {
                let votes = ["leader", "voter"].iter().any(|role| member["role"].as_str() == Some(role));
                votes && member["caughtUp"] == true && member["reachable"] == true
            };
            let leader = status["leader"].as_str().unwrap_or_default().to_owned();
            let term = status["term"].as_u64().unwrap_or_default();
            Ok((members.len() == voters && members.iter().filter(well).count() == voters).then_some((leader, term)))
        })
        .await
    }

    /// Writes a record, with the tool in a broker's pod.
    pub(crate) async fn put(&self, id: &str) -> anyhow::Result<()> {
        let data = json!({"@type": "type.googleapis.com/google.protobuf.StringValue", "value": "x"});
        let record = json!({"type": RECORD_TYPE, "id": id, "data": data}).to_string();
        let put = ["/databroker", "put", "--exact-type", &record];
        tools::in_pod(&self.namespace, &self.some_broker().await?, &put).await.map(drop)
    }

    /// Whether there is a record that [`Self::put`] wrote.
    pub(crate) async fn has(&self, id: &str) -> anyhow::Result<bool> {
        let get = ["/databroker", "get", "--exact-type", RECORD_TYPE, id];
        match tools::in_pod(&self.namespace, &self.some_broker().await?, &get).await {
            Ok(_) => Ok(true),
            Err(error) if error.to_string().contains("there is no record") => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn some_broker(&self) -> anyhow::Result<String> {
        let brokers = self.brokers().await?;
        let (name, _) = brokers.into_iter().find(|(_, pod)| is_pod_ready(pod)).context("no broker is ready")?;
        Ok(name)
    }

    /// Deletes a pod without any grace, as if it had crashed.
    pub(crate) async fn kill(&self, pod: &str) -> anyhow::Result<()> {
        self.pods().delete(pod, &DeleteParams::default().grace_period(0)).await?;
        Ok(())
    }

    /// On which node a pod is.
    pub(crate) async fn node_of(&self, pod: &str) -> anyhow::Result<String> {
        let pod = self.pods().get(pod).await?;
        pod.spec.and_then(|spec| spec.node_name).context("the pod is on no node")
    }
}

/// Whether a pod is ready and stays.
pub(crate) fn is_pod_ready(pod: &Pod) -> bool {
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    pod.metadata.deletion_timestamp.is_none()
        && conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

/// Whether it is Ready, and that is about the present spec.
pub(crate) fn is_ready(object: &Databroker) -> bool {
    let Some(status) = &object.status else { return false };
    status.observed_generation == object.metadata.generation && condition(object, "Ready").0 == "True"
}

/// A condition's status and reason.
pub(crate) fn condition(object: &Databroker, wanted: &str) -> (String, String) {
    find(object, wanted).map_or_else(Default::default, |condition| (condition.status.clone(), condition.reason.clone()))
}

/// A condition's message.
pub(crate) fn message(object: &Databroker, wanted: &str) -> String {
    find(object, wanted).map_or_else(String::new, |condition| condition.message.clone())
}

fn find<'a>(object: &'a Databroker, wanted: &str) -> Option<&'a Condition> {
    object.status.as_ref()?.conditions.iter().find(|condition| condition.type_ == wanted)
}

/// The names of all nodes.
pub(crate) async fn nodes(client: &Client) -> anyhow::Result<Vec<String>> {
    let nodes: Api<Node> = Api::all(client.clone());
    Ok(nodes.list(&ListParams::default()).await?.into_iter().map(|node| node.name_any()).collect())
}
