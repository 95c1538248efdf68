//! Makes what was built and takes the step that was planned. The only place that changes anything but the status.
//!
//! Server-side apply with one field manager; an object that is as it should be is left alone, so that a settled cluster
//! costs the API server nothing. Every change names the version, or the id, of what it was decided on: what has changed
//! since is looked at again.

use std::{collections::BTreeMap, fmt::Debug};

use databroker_proto::internal::ShapeMember;
use k8s_openapi::{
    NamespaceResourceScope,
    api::{
        apps::v1::StatefulSet,
        core::v1::{PersistentVolumeClaim, Pod, Secret},
    },
};
use kube::{
    Api, Client, Resource, ResourceExt as _,
    api::{DeleteParams, Patch, PatchParams, Preconditions},
    runtime::reflector::{ObjectRef, Store},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

use super::{
    observe::There,
    plan::{Plan, Step},
    validate::{Valid, record},
};
use crate::{
    api::Databroker,
    brokers::{self, Address},
    context::{CallError, Context, call},
    resources::{Resources, meta, pod, secrets::Secrets, statefulset},
};

/// Why something could not be made or done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An object.
    #[error("cannot apply {kind} {name}: {source}")]
    Apply {
        /// Its kind.
        kind: String,
        /// Its name.
        name: String,
        /// Why.
        source: CallError,
    },
    /// One that should not be there.
    #[error("cannot delete {kind} {name}: {source}")]
    Delete {
        /// Its kind.
        kind: String,
        /// Its name.
        name: String,
        /// Why.
        source: CallError,
    },
    /// Before the cluster is founded, nobody else may have done so.
    #[error("cannot read the object again before its cluster is founded: {0}")]
    ReadAgain(#[source] CallError),
    /// A broker.
    #[error(transparent)]
    Broker(#[from] brokers::Error),
}

/// What a step has changed that the status has to know.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Done {
    /// The cluster was founded just now: its id.
    pub founded: Option<String>,
    /// The leader has handed over.
    pub handed_over: bool,
    /// The StatefulSet was changed: what was seen of it is no longer so.
    pub reshaped: bool,
}

/// Where `observed` first differs from what `desired` says, as a path; `None` where it has all of it. What is not said is
/// others' to decide.
pub fn difference(desired: &Value, observed: &Value) -> Option<String> {
    let within = |key: &str, inner: String| if inner.is_empty() { key.to_owned() } else { format!("{key}.{inner}") };
    match (desired, observed) {
        (Value::Object(desired), Value::Object(observed)) => desired.iter().find_map(|(key, value)| {
            let inner = match observed.get(key) {
                Some(observed) if ["requests", "limits"].contains(&key.as_str()) => {
                    (!are_equal_quantities(value, observed)).then(String::new)
                }
                Some(observed) => difference(value, observed),
                None => (!is_nothing(value)).then(String::new),
            };
            inner.map(|inner| within(key, inner))
        }),
        (Value::Array(desired), Value::Array(observed)) if desired.len() == observed.len() => {
            let mut pairs = desired.iter().zip(observed).enumerate();
            pairs.find_map(|(index, (a, b))| difference(a, b).map(|inner| within(&index.to_string(), inner)))
        }
        (desired, observed) => (desired != observed).then(String::new),
    }
}

/// Nothing, said in many words.
fn is_nothing(value: &Value) -> bool {
    value.is_null()
        || value.as_object().is_some_and(serde_json::Map::is_empty)
        || value.as_array().is_some_and(Vec::is_empty)
}

/// The API server writes quantities in its own way: 1024Mi comes back as 1Gi.
fn are_equal_quantities(desired: &Value, observed: &Value) -> bool {
    let (Some(desired), Some(observed)) = (desired.as_object(), observed.as_object()) else {
        return desired == observed;
    };
    desired.iter().all(|(key, value)| {
        let observed = observed.get(key);
        let number = |value: &Value| value.as_str().and_then(quantity);
        match (number(value), observed.and_then(number)) {
            (Some(desired), Some(observed)) => desired == observed,
            _ => Some(value) == observed,
        }
    })
}

/// The number of a quantity, in thousandths, as Kubernetes defines them; `None` for what is rarely written.
fn quantity(text: &str) -> Option<i128> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(digits);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let fraction = fraction.get(..fraction.len().min(3))?;
    let thousandths: i128 = format!("{whole}{fraction:0<3}").parse().ok()?;
    let factor: i128 = match suffix {
        "m" => return (thousandths % 1000 == 0).then_some(thousandths / 1000),
        "" => 1,
        "k" => 1000,
        "M" => 1000_i128.pow(2),
        "G" => 1000_i128.pow(3),
        "T" => 1000_i128.pow(4),
        "P" => 1000_i128.pow(5),
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        "Ti" => 1 << 40,
        "Pi" => 1 << 50,
        _ => return None,
    };
    thousandths.checked_mul(factor)
}

/// A kind that is applied.
trait Object:
    Resource<DynamicType = (), Scope = NamespaceResourceScope> + Serialize + DeserializeOwned + Clone + Debug + 'static
{
}

impl<K> Object for K where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Serialize
        + DeserializeOwned
        + Clone
        + Debug
        + 'static
{
}

/// Applies objects of one `Databroker`.
struct Applier<'a> {
    client: &'a Client,
    namespace: &'a str,
}

impl Applier<'_> {
    fn api<K: Object>(&self) -> Api<K> {
        Api::namespaced(self.client.clone(), self.namespace)
    }

    /// Applies it, unless `there` is as it says; returns whether it was changed.
    async fn apply<K: Object>(&self, desired: &K, there: Option<&K>) -> Result<bool, Error> {
        let body = serde_json::to_value(desired).unwrap_or_default();
        let because = match there {
            None => "it was not there".to_owned(),
            Some(there) => match difference(&body, &serde_json::to_value(there).unwrap_or_default()) {
                None => return Ok(false),
                Some(path) => format!("{path} was another"),
            },
        };
        let name = desired.name_any();
        let params = PatchParams::apply(meta::MANAGER).force();
        let failed = |source| Error::Apply { kind: K::kind(&()).into_owned(), name: name.clone(), source };
        call(self.api::<K>().patch(&name, &params, &Patch::Apply(desired))).await.map_err(failed)?;
        tracing::info!(kind = %K::kind(&()), name, namespace = self.namespace, because, "applied");
        Ok(true)
    }

    /// The same with what the cache has of that name.
    async fn apply_cached<K: Object>(&self, desired: &K, store: &Store<K>) -> Result<(), Error> {
        let there = store.get(&ObjectRef::new(&desired.name_any()).within(self.namespace));
        self.apply(desired, there.as_deref()).await.map(drop)
    }

    /// One that may be absent: applied, or deleted if it is ours.
    async fn apply_optional<K: Object>(&self, name: &str, desired: Option<&K>, store: &Store<K>) -> Result<(), Error> {
        match desired {
            Some(desired) => self.apply_cached(desired, store).await,
            None => match store.get(&ObjectRef::new(name).within(self.namespace)) {
                Some(there) => self.delete::<K>(name, there.uid(), None).await,
                None => Ok(()),
            },
        }
    }

    /// Notes something in the metadata of the one of this id; that it is gone, or another by now, is as well.
    async fn note<K: Object>(&self, name: &str, uid: Option<String>, mut metadata: Value) -> Result<(), Error> {
        metadata["uid"] = json!(uid);
        let patch = Patch::Merge(json!({"metadata": metadata}));
        match call(self.api::<K>().patch(name, &PatchParams::default(), &patch)).await {
            Err(source) if !source.is_outdated() => {
                Err(Error::Apply { kind: K::kind(&()).into_owned(), name: name.to_owned(), source })
            }
            _ => Ok(()),
        }
    }

    /// Deletes the one of this id, and of this version if one is given; that it is gone, or another by now, is as well.
    async fn delete<K: Object>(&self, name: &str, uid: Option<String>, version: Option<String>) -> Result<(), Error> {
        let params = DeleteParams {
            preconditions: Some(Preconditions { uid, resource_version: version }),
            ..DeleteParams::default()
        };
        match call(self.api::<K>().delete(name, &params)).await {
            Err(error) if !error.is_outdated() => {
                Err(Error::Delete { kind: K::kind(&()).into_owned(), name: name.to_owned(), source: error })
            }
            _ => {
                tracing::info!(kind = %K::kind(&()), name, namespace = self.namespace, "deleted");
                Ok(())
            }
        }
    }
}

/// Applies the Secrets, before any pod that reads them.
///
/// # Errors
/// The API server refuses.
pub async fn secrets(context: &Context, valid: &Valid, secrets: &Secrets) -> Result<(), Error> {
    let applier = Applier { client: &context.client, namespace: &valid.namespace };
    for secret in &secrets.all {
        applier.apply_cached(secret, &context.caches.secrets).await?;
    }
    if !valid.has_tls() {
        applier.apply_optional::<Secret>(&meta::tls(&valid.name), None, &context.caches.secrets).await?;
    }
    Ok(())
}

/// Applies all other objects; the StatefulSet last, because its pods need the rest. Returns whether that was changed, by this
/// or by somebody else.
///
/// # Errors
/// The API server refuses.
pub async fn resources(context: &Context, valid: &Valid, resources: &Resources, there: &There) -> Result<bool, Error> {
    let Resources { config_map, service_account, headless, client, leader, pdb, network_policy, statefulset } =
        resources;
    let (caches, name) = (&context.caches, &valid.name);
    let applier = Applier { client: &context.client, namespace: &valid.namespace };
    applier.apply_cached(service_account, &caches.service_accounts).await?;
    applier.apply_cached(config_map, &caches.config_maps).await?;
    for service in [headless, client, leader] {
        applier.apply_cached(service, &caches.services).await?;
    }
    applier.apply_optional(name, pdb.as_ref(), &caches.pdbs).await?;
    applier.apply_optional(name, network_policy.as_ref(), &caches.network_policies).await?;
    let mut statefulset = statefulset.clone();
    // Decided on what was seen: if that is old, the API server says so.
    statefulset.metadata.resource_version = there.statefulset.as_ref().and_then(StatefulSet::resource_version);
    match applier.apply(&statefulset, there.statefulset.as_ref()).await {
        Err(Error::Apply { source, .. }) if source.is_conflict() => Ok(true),
        applied => applied,
    }
}

/// Lets volumes go with the `Databroker`, or stay, as it says.
///
/// # Errors
/// The API server refuses.
pub async fn volume_owners(context: &Context, valid: &Valid, there: &There) -> Result<(), Error> {
    let applier = Applier { client: &context.client, namespace: &valid.namespace };
    for claim in there.claims.values() {
        let Some(owners) = statefulset::owners(valid, claim.owner_references()) else { continue };
        // With the version that was looked at: others may own it as well.
        let metadata = json!({"ownerReferences": owners, "resourceVersion": claim.resource_version()});
        applier.note::<PersistentVolumeClaim>(&claim.name_any(), claim.uid(), metadata).await?;
    }
    Ok(())
}

/// Says on the pods who leads.
///
/// # Errors
/// The API server refuses.
pub async fn leader_label(context: &Context, valid: &Valid, there: &There, leader: Option<u32>) -> Result<(), Error> {
    let Some(leader) = leader else { return Ok(()) };
    let applier = Applier { client: &context.client, namespace: &valid.namespace };
    for (ordinal, pod) in &there.pods {
        let labelled = pod.labels().get(meta::ROLE_LABEL).is_some_and(|role| role == meta::LEADER);
        if labelled == (*ordinal == leader) {
            continue;
        }
        let role = (*ordinal == leader).then_some(meta::LEADER);
        applier.note::<Pod>(&pod.name_any(), pod.uid(), json!({"labels": {meta::ROLE_LABEL: role}})).await?;
    }
    Ok(())
}

/// Takes the step.
///
/// # Errors
/// The API server or a broker refuses.
pub async fn step(
    context: &Context,
    valid: &Valid,
    there: &There,
    plan: &Plan,
    addresses: &BTreeMap<u32, Address>,
    secrets: &Secrets,
) -> Result<Done, Error> {
    let applier = Applier { client: &context.client, namespace: &valid.namespace };
    let mut done = Done::default();
    match &plan.step {
        Step::Settled | Step::Wait(_) | Step::Stalled(_) => {}
        Step::Found { ordinal, again } => {
            let Some(address) = addresses.get(ordinal) else { return Ok(done) };
            if may_found(&applier, valid, *again).await? {
                done.founded = Some(context.brokers.found(address, &secrets.admin).await?);
            }
        }
        Step::SetMembers { generation, members } => {
            let Some(address) = addresses.values().next() else { return Ok(done) };
            let members = members.iter().map(|ordinal| member(valid, *ordinal)).collect();
            context.brokers.set_members(address, &secrets.admin, *generation, members).await?;
        }
        Step::Handover { from } => {
            if let Some(address) = addresses.get(from) {
                let leader = context.brokers.hand_over(address, &secrets.admin).await?;
                tracing::info!(name = valid.name, namespace = valid.namespace, leader, "leadership was handed over");
                done.handed_over = true;
            }
        }
        Step::RestartPod { ordinal, uid } => {
            let version = there.pods.get(ordinal).and_then(Pod::resource_version);
            applier.delete::<Pod>(&meta::pod(&valid.name, *ordinal), Some(uid.clone()), version).await?;
        }
        Step::MarkRetired { ordinal, uid, node } => {
            let name = meta::claim(&valid.name, *ordinal);
            let metadata = json!({"annotations": {meta::RETIRED_ANNOTATION: format!("{node:016x}")}});
            applier.note::<PersistentVolumeClaim>(&name, Some(uid.clone()), metadata).await?;
        }
        Step::Unmark { ordinal, uid } => {
            let name = meta::claim(&valid.name, *ordinal);
            let metadata = json!({"annotations": {meta::RETIRED_ANNOTATION: null}});
            applier.note::<PersistentVolumeClaim>(&name, Some(uid.clone()), metadata).await?;
        }
        Step::DiscardVolume { ordinal, uid } => {
            let name = meta::claim(&valid.name, *ordinal);
            applier.delete::<PersistentVolumeClaim>(&name, Some(uid.clone()), None).await?;
        }
    }
    Ok(done)
}

/// Whether nobody has founded it since: the latch is read anew, past the caches.
async fn may_found(applier: &Applier<'_>, valid: &Valid, again: bool) -> Result<bool, Error> {
    let now = call(applier.api::<Databroker>().get(&valid.name)).await.map_err(Error::ReadAgain)?;
    let same = now.uid().as_deref() == Some(valid.uid.as_str()) && now.metadata.deletion_timestamp.is_none();
    Ok(same && record(&now).bootstrapped == again)
}

fn member(valid: &Valid, ordinal: u32) -> ShapeMember {
    let host = meta::host(valid, ordinal);
    let scheme = valid.scheme();
    ShapeMember {
        name: meta::pod(&valid.name, ordinal),
        raft_address: format!("{host}:{}", pod::PEERS_PORT),
        grpc_address: format!("{scheme}://{host}:{}", pod::GRPC_PORT),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_add_is_no_reason_to_apply_and_what_they_change_is() {
        let desired = json!({"a": 1, "list": [{"name": "x"}], "none": null, "empty": {}});
        let differs = |observed| difference(&desired, &observed);
        assert_eq!(differs(json!({"a": 1, "b": 2, "list": [{"name": "x", "default": true}]})), None);
        assert_eq!(differs(json!({"a": 2, "list": [{"name": "x"}]})).as_deref(), Some("a"));
        assert_eq!(differs(json!({"a": 1, "list": [{"name": "y"}]})).as_deref(), Some("list.0.name"));
        assert_eq!(differs(json!({"a": 1, "list": [{"name": "x"}, {"name": "y"}]})).as_deref(), Some("list"));
        assert_eq!(differs(json!({"a": 1})).as_deref(), Some("list"));
    }

    #[test]
    fn quantities_are_compared_by_what_they_mean_where_they_are_quantities() {
        let of = |text: &str| json!({"requests": {"memory": text}});
        let equal = |a: &str, b: &str| difference(&of(a), &of(b)).is_none();
        assert!(equal("1024Mi", "1Gi") && equal("0.5", "500m") && equal("much", "much"));
        assert!(!equal("1G", "1Gi") && !equal("much", "1Gi"));
        let annotation = |text: &str| json!({"annotations": {"a": text}});
        assert!(difference(&annotation("1k"), &annotation("1000")).is_some());
    }
}
