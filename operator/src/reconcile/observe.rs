//! What is there: from the caches, and from the brokers themselves. Reads, and decides nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use databroker_proto::internal::{MemberStatus, StatusReply, member_status::Role};
use futures::future::join_all;
use k8s_openapi::api::{
    apps::v1::StatefulSet,
    core::v1::{PersistentVolumeClaim, Pod, Secret},
};
use kube::{
    Api, Resource, ResourceExt as _,
    api::ListParams,
    runtime::reflector::{ObjectRef, Store},
};
use serde::de::DeserializeOwned;

use super::{
    plan::{Broker, Cluster, Member, Pod as SeenPod, Record, Retired, Seen, Volume},
    validate::Valid,
};
use crate::{
    brokers::{Address, Brokers},
    context::{Caches, CallError, Context, call},
    resources::{
        meta, pod,
        secrets::{self, Admin, Found},
    },
};

/// What Kubernetes has.
#[derive(Clone, Debug, Default)]
pub struct There {
    /// The StatefulSet.
    pub statefulset: Option<StatefulSet>,
    /// Pods, by ordinal.
    pub pods: BTreeMap<u32, Pod>,
    /// Claims, by ordinal.
    pub claims: BTreeMap<u32, PersistentVolumeClaim>,
    /// The data of Secrets, by name.
    pub secrets: Found,
}

/// What brokers answered, by ordinal.
pub type Answers = BTreeMap<u32, StatusReply>;

impl There {
    fn of(
        valid: &Valid,
        statefulset: Option<StatefulSet>,
        pods: Vec<Pod>,
        claims: Vec<PersistentVolumeClaim>,
        secrets: Found,
    ) -> Self {
        let pods = pods.into_iter().filter_map(|pod| Some((meta::ordinal(&valid.name, &pod.name_any())?, pod)));
        let claims = claims.into_iter();
        let claims = claims.filter_map(|claim| Some((meta::claim_ordinal(&valid.name, &claim.name_any())?, claim)));
        Self { statefulset, pods: pods.collect(), claims: claims.collect(), secrets }
    }
}

/// What the caches have of one `Databroker`.
pub fn there(caches: &Caches, valid: &Valid) -> There {
    let statefulset = caches.statefulsets.get(&ObjectRef::new(&valid.name).within(&valid.namespace));
    let secrets = list(&caches.secrets, valid).into_iter();
    There::of(
        valid,
        statefulset.map(Arc::unwrap_or_clone),
        list(&caches.pods, valid),
        list(&caches.claims, valid),
        secrets.map(|secret| (secret.name_any(), secret.data.unwrap_or_default())).collect(),
    )
}

/// The same from the API server itself, for what must not be decided on what is a little old. Secrets are taken as given.
///
/// # Errors
/// The API server does not answer.
pub async fn fresh(context: &Context, valid: &Valid, secrets: Found) -> Result<There, CallError> {
    let (client, namespace) = (&context.client, &valid.namespace);
    let own = ListParams::default().labels(&meta::selector_text(&valid.name));
    let statefulsets: Api<StatefulSet> = Api::namespaced(client.clone(), namespace);
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), namespace);
    let (pods, claims) = (call(pods.list(&own)).await?.items, call(claims.list(&own)).await?.items);
    Ok(There::of(valid, call(statefulsets.get_opt(&valid.name)).await?, pods, claims, secrets))
}

/// One object by its name, as the API server has it. By a list, which the operator may do anyway.
///
/// # Errors
/// The API server does not answer.
pub async fn named<K>(api: &Api<K>, name: &str) -> kube::Result<Option<K>>
where
    K: Resource<DynamicType = ()> + Clone + std::fmt::Debug + DeserializeOwned,
{
    let found = api.list(&ListParams::default().fields(&format!("metadata.name={name}"))).await?;
    Ok(found.items.into_iter().next())
}

/// Whether an object is this `Databroker`'s: its labels say so, or it is owned by it, whatever became of its labels.
fn is_own<K: Resource>(object: &K, valid: &Valid) -> bool {
    let owners = object.meta().owner_references.iter().flatten();
    meta::is_made_for(object, &valid.namespace, &valid.name) || owners.clone().any(|owner| owner.uid == valid.uid)
}

/// Whether the operator may change an object. A shared secret it may in any case: it keeps the value of one that was made
/// before, and only then is it this `Databroker`'s.
pub fn may_be_applied<K: Resource<DynamicType = ()>>(object: &K, valid: &Valid) -> bool {
    let is_shared_secret = K::kind(&()) == "Secret" && object.name_any() == meta::shared_secret(&valid.name);
    is_own(object, valid) || is_shared_secret
}

/// Adds the Secrets that the caches do not have although they are there: somebody changed their labels, made the shared one
/// beforehand, or the news of them is late. What is there is never made anew.
///
/// # Errors
/// The API server does not answer.
pub async fn missed_secrets(context: &Context, valid: &Valid, found: &mut Found) -> Result<(), CallError> {
    let api: Api<Secret> = Api::namespaced(context.client.clone(), &valid.namespace);
    for name in secrets::names(valid) {
        if found.contains_key(&name) {
            continue;
        }
        if let Some(secret) = call(named(&api, &name)).await?
            && may_be_applied(&secret, valid)
        {
            found.insert(name, secret.data.unwrap_or_default());
        }
    }
    Ok(())
}

/// Of a cache, what belongs to one `Databroker`.
fn list<K>(store: &Store<K>, valid: &Valid) -> Vec<K>
where
    K: Resource<DynamicType = ()> + Clone + 'static,
{
    let own = |object: &&Arc<K>| meta::belongs(object.as_ref(), &valid.namespace, &valid.name);
    store.state().iter().filter(own).map(|object| K::clone(object)).collect()
}

/// Where the brokers are that may answer.
pub fn addresses(there: &There, valid: &Valid) -> BTreeMap<u32, Address> {
    let address = |ordinal: u32, pod: &Pod| {
        let ip: IpAddr = pod.status.as_ref()?.pod_ip.as_ref()?.parse().ok()?;
        is_running(pod).then(|| Address { ip, host: meta::host(valid, ordinal) })
    };
    there.pods.iter().filter_map(|(ordinal, pod)| Some((*ordinal, address(*ordinal, pod)?))).collect()
}

/// Asks all of them at once.
pub async fn ask(addresses: &BTreeMap<u32, Address>, brokers: &Brokers, admin: &Admin) -> Answers {
    let asked = addresses.iter().map(|(ordinal, address)| async move {
        match brokers.status(address, admin).await {
            Ok(answer) => Some((*ordinal, answer)),
            Err(error) => {
                tracing::debug!(%error, "a broker does not answer");
                None
            }
        }
    });
    join_all(asked).await.into_iter().flatten().collect()
}

/// What the planner gets to see.
pub fn seen(there: &There, answers: &Answers, record: Record, valid: &Valid) -> Seen {
    let set = there.statefulset.as_ref();
    let spec = set.and_then(|set| set.spec.as_ref());
    let brokers = answers.iter().map(|(ordinal, answer)| (*ordinal, broker(answer, valid)));
    let leader = answers.iter().find(|(_, answer)| !answer.leader.is_empty() && answer.leader == answer.answered_by);
    Seen {
        record,
        adopted: valid.adopted.clone(),
        pods_wanted: spec.map(|spec| spec.replicas.and_then(|replicas| u32::try_from(replicas).ok()).unwrap_or(1)),
        update_revision: set.and_then(update_revision),
        pods: there.pods.iter().map(|(ordinal, pod)| (*ordinal, seen_pod(pod))).collect(),
        volumes: there.claims.iter().map(|(ordinal, claim)| (*ordinal, volume(claim))).collect(),
        brokers: brokers.collect(),
        cluster: leader.map(|(ordinal, answer)| cluster(*ordinal, answer, valid)),
    }
}

/// The revision that pods are to have, once the controller has looked at the last change.
fn update_revision(set: &StatefulSet) -> Option<String> {
    let status = set.status.as_ref()?;
    (status.observed_generation == set.metadata.generation).then(|| status.update_revision.clone())?
}

fn seen_pod(pod: &Pod) -> SeenPod {
    let condition = |wanted: &str| {
        let conditions = pod.status.as_ref()?.conditions.as_ref()?;
        conditions.iter().find(|condition| condition.type_ == wanted)
    };
    SeenPod {
        uid: pod.uid().unwrap_or_default(),
        revision: pod.labels().get("controller-revision-hash").cloned(),
        terminating: pod.metadata.deletion_timestamp.is_some(),
        running: is_running(pod),
        ready: condition("Ready").is_some_and(|ready| ready.status == "True"),
        unreachable: is_unreachable(pod),
    }
}

/// Whether its node does not answer, by what Kubernetes then writes into a pod's status: the operator may look at no nodes
/// where it has one namespace alone. Kubernetes takes the readiness away and leaves all else as it was
/// (`MarkPodsNotReady` in pkg/controller/util/node); a kubelet never does the one without the other, but for the gates of others,
/// which have a reason. In some ways it notes `NodeLost` when such a pod is deleted.
fn is_unreachable(pod: &Pod) -> bool {
    let Some(status) = pod.status.as_ref() else { return false };
    let conditions = status.conditions.iter().flatten();
    let has = |kind: &str, word: &str| {
        let mut own = conditions.clone().filter(|condition| condition.type_ == kind && condition.status == word);
        own.any(|condition| condition.reason.as_deref().unwrap_or_default().is_empty())
    };
    status.reason.as_deref() == Some("NodeLost") || (has("Ready", "False") && has("ContainersReady", "True"))
}

fn is_running(pod: &Pod) -> bool {
    let containers = pod.status.as_ref().and_then(|status| status.container_statuses.as_ref());
    let own = containers.into_iter().flatten().find(|container| container.name == pod::CONTAINER);
    own.and_then(|container| container.state.as_ref()).is_some_and(|state| state.running.is_some())
}

fn volume(claim: &PersistentVolumeClaim) -> Volume {
    let mark = claim.annotations().get(meta::RETIRED_ANNOTATION);
    Volume {
        uid: claim.uid().unwrap_or_default(),
        // A mark that cannot be read is a mark.
        retired: mark.map(|node| u64::from_str_radix(node, 16).unwrap_or(u64::MAX)),
        terminating: claim.metadata.deletion_timestamp.is_some(),
    }
}

fn broker(answer: &StatusReply, valid: &Valid) -> Broker {
    let voters = answer.members.iter().filter(|member| votes(member));
    Broker {
        cluster_id: (!answer.cluster_id.is_empty()).then(|| answer.cluster_id.clone()),
        node: itself(answer).map(|member| member.node),
        voters: voters.filter_map(|member| meta::ordinal(&valid.name, &member.name)).collect(),
    }
}

/// What a broker says of itself. One that comes with a new disk knows of a member of its name that is not reachable: the
/// old disk. One that was removed does not speak of itself.
pub fn itself(answer: &StatusReply) -> Option<&MemberStatus> {
    answer.members.iter().find(|member| member.name == answer.answered_by && member.reachable)
}

/// Whether a member votes, by the word of a broker.
pub fn votes(member: &MemberStatus) -> bool {
    matches!(member.role(), Role::Leader | Role::Voter)
}

fn cluster(leader: u32, answer: &StatusReply, valid: &Valid) -> Cluster {
    let ordinal = |name: &str| meta::ordinal(&valid.name, name);
    let shape: Option<BTreeSet<u32>> = answer.shape.iter().map(|member| ordinal(&member.name)).collect();
    let member = |member: &MemberStatus| {
        let votes = votes(member);
        (votes || member.role() == Role::Learner).then(|| Member {
            // A member of another name is none of ours, and is removed with the next shape.
            ordinal: ordinal(&member.name).unwrap_or(u32::MAX),
            node: member.node,
            votes,
            caught_up: member.caught_up && member.reachable,
            may_stop: member.may_stop,
        })
    };
    let retired = answer.retired.iter().filter_map(|retired| {
        Some(Retired { ordinal: ordinal(&retired.name)?, node: retired.node, confirmed: retired.confirmed })
    });
    Cluster {
        leader,
        generation: answer.shape_generation,
        shape,
        settled: answer.next_step.is_empty(),
        members: answer.members.iter().filter_map(member).collect(),
        retired: retired.collect(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::reconcile::validate::tests::valid;

    #[test]
    fn a_pod_is_read_as_kubernetes_writes_it() {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "main-0", "uid": "u", "labels": {"controller-revision-hash": "main-7"}},
            "status": {
                "podIP": "10.0.0.7",
                "reason": "NodeLost",
                "conditions": [{"type": "Ready", "status": "False"}],
                "containerStatuses": [{"name": "databroker", "ready": true, "restartCount": 0, "image": "i",
                    "imageID": "", "state": {"running": {"startedAt": "2026-11-20T00:00:00Z"}}}],
            },
        }))
        .unwrap();
        let seen = seen_pod(&pod);
        assert_eq!(seen.revision.as_deref(), Some("main-7"));
        assert!(seen.running && seen.unreachable && !seen.ready && !seen.terminating);
        let there = There { pods: [(0, pod)].into(), ..There::default() };
        assert_eq!(addresses(&there, &valid(json!({})))[&0].host, "main-0.main-headless.access.svc");
    }

    #[test]
    fn a_node_that_does_not_answer_shows_in_its_pods() {
        let pod =
            |conditions| -> Pod { serde_json::from_value(json!({"status": {"conditions": conditions}})).unwrap() };
        let ready = |ready: &str, containers: &str| json!([{"type": "Ready", "status": ready}, {"type": "ContainersReady", "status": containers}]);
        assert!(is_unreachable(&pod(ready("False", "True"))));
        assert!(!is_unreachable(&pod(ready("True", "True"))));
        assert!(!is_unreachable(&pod(ready("False", "False"))));
        let gated = json!([{"type": "Ready", "status": "False", "reason": "ReadinessGatesNotReady"},
            {"type": "ContainersReady", "status": "True"}]);
        assert!(!is_unreachable(&pod(gated)));
    }

    #[test]
    fn a_revision_counts_once_the_controller_has_seen_the_last_change() {
        let set = |observed| -> StatefulSet {
            serde_json::from_value(json!({
                "metadata": {"generation": 4},
                "status": {"replicas": 3, "observedGeneration": observed, "updateRevision": "main-8"},
            }))
            .unwrap()
        };
        assert_eq!(update_revision(&set(4)).as_deref(), Some("main-8"));
        assert_eq!(update_revision(&set(3)), None);
    }

    #[test]
    fn a_mark_that_cannot_be_read_is_a_mark() {
        let claim = |mark: &str| -> PersistentVolumeClaim {
            serde_json::from_value(json!({"metadata": {"annotations": {meta::RETIRED_ANNOTATION: mark}}})).unwrap()
        };
        assert_eq!(volume(&claim("00000000000000ff")).retired, Some(255));
        assert_eq!(volume(&claim("?")).retired, Some(u64::MAX));
    }
}
