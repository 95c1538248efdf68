//! Makes what was built and takes the step that was planned. The only place that changes anything but the status.
//!
//! Server-side apply with one field manager; an object that is as it should be is left alone, so that a settled cluster
//! costs the API server nothing. Every change of what is there names the version, or the id, of what it was decided on: what
//! has changed since is looked at again.

use std::fmt::Debug;

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
use sha2::{Digest as _, Sha256};

use super::{
    Look,
    observe::{self, There},
    plan::{Plan, Step},
    status::Failure,
    validate::{Valid, record},
};
use crate::{
    api::Databroker,
    brokers,
    context::{CallError, Context, call},
    resources::{
        Resources, meta, pod,
        secrets::{Found, Secrets},
        statefulset,
    },
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
    /// There is one of that name that is not this operator's to change.
    #[error("there is a {kind} {name} that belongs to something else: delete it, or give the Databroker another name")]
    Taken {
        /// Its kind.
        kind: String,
        /// Its name.
        name: String,
    },
    /// The Secret that the spec names.
    #[error("the Secret {name} that spec.sharedSecret.secretRef names {lacks}: nothing is changed until it is there")]
    SecretMissing {
        /// Its name.
        name: String,
        /// What is missing.
        lacks: String,
    },
    /// The Secret could not be looked for.
    #[error("cannot look for the Secret {name}: {source}")]
    LookForSecret {
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
    /// What was not done, because something is missing for it.
    pub lacking: Option<Failure>,
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
        (Value::Array(desired), Value::Array(observed)) if is_by_key(desired) => desired.iter().find_map(|item| {
            let other = observed.iter().find(|other| key(other) == key(item));
            let inner = other.map_or(Some(String::new()), |other| difference(item, other));
            inner.map(|inner| within(&key(item).unwrap_or_default(), inner))
        }),
        (Value::Array(desired), Value::Array(observed)) if desired.len() == observed.len() => {
            let mut pairs = desired.iter().zip(observed).enumerate();
            pairs.find_map(|(index, (a, b))| difference(a, b).map(|inner| within(&index.to_string(), inner)))
        }
        (desired, observed) => (desired != observed).then(String::new),
    }
}

/// What an entry of a list is merged by, in the lists that are applied here: others may add entries of other keys
/// (<https://kubernetes.io/docs/reference/using-api/server-side-apply/#merge-strategy>).
fn key(item: &Value) -> Option<String> {
    let keys = [&["mountPath"][..], &["uid"], &["topologyKey", "whenUnsatisfiable"], &["name"]];
    let of = |names: &&[&str]| names.iter().map(|name| item[*name].as_str()).collect::<Option<Vec<_>>>();
    keys.iter().find_map(of).map(|values| values.join(","))
}

fn is_by_key(list: &[Value]) -> bool {
    !list.is_empty() && list.iter().all(|item| key(item).is_some())
}

/// What is said at all, without what is said of it: two bodies that say something of the same fields have the same. In an
/// annotation it tells the next visit that a field is no longer said, which does not show in what is there. Of values it
/// tells nothing, for some are secret.
fn fields(body: &Value) -> String {
    fn visit(value: &Value, path: &str, digest: &mut Sha256) {
        match value {
            Value::Object(object) => {
                object.iter().for_each(|(key, value)| visit(value, &format!("{path}/{key}"), digest));
            }
            Value::Array(list) if is_by_key(list) => {
                list.iter().for_each(|item| visit(item, &format!("{path}[{:?}]", key(item)), digest));
            }
            Value::Array(list) => {
                list.iter().enumerate().for_each(|(index, item)| visit(item, &format!("{path}[{index}]"), digest));
            }
            _ => {}
        }
        if !is_nothing(value) {
            digest.update(path.as_bytes());
            digest.update([0]);
        }
    }
    let mut digest = Sha256::new();
    visit(body, "", &mut digest);
    digest.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
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
    valid: &'a Valid,
}

impl Applier<'_> {
    fn api<K: Object>(&self) -> Api<K> {
        Api::namespaced(self.client.clone(), &self.valid.namespace)
    }

    /// Applies it, unless `there` is as it says; returns whether it was changed, by this or by somebody else. One that is another's is left alone: what
    /// the caches do not have may be there all the same.
    async fn apply<K: Object>(&self, desired: &K, there: Option<&K>) -> Result<bool, Error> {
        let (kind, name) = (K::kind(&()).into_owned(), desired.name_any());
        let failed = |source| Error::Apply { kind: kind.clone(), name: name.clone(), source };
        let found = match there {
            Some(_) => None,
            None => call(observe::named(&self.api::<K>(), &name)).await.map_err(failed)?,
        };
        let there = there.or(found.as_ref());
        if there.is_some_and(|there| !observe::may_be_applied(there, self.valid)) {
            return Err(Error::Taken { kind, name });
        }
        let mut body = serde_json::to_value(desired).unwrap_or_default();
        let fields = fields(&body);
        body["metadata"]["annotations"][meta::FIELDS_ANNOTATION] = json!(fields);
        let because = match there {
            None => "it was not there".to_owned(),
            Some(there) => match difference(&body, &serde_json::to_value(there).unwrap_or_default()) {
                None => return Ok(false),
                Some(path) => format!("{path} was another"),
            },
        };
        let params = PatchParams::apply(meta::MANAGER).force();
        // Decided on what was seen: if that is old, the API server says so, and it is looked at again.
        let version = there.and_then(K::resource_version);
        if let Some(version) = &version {
            body["metadata"]["resourceVersion"] = json!(version);
        }
        let applied = match call(self.api::<K>().patch(&name, &params, &Patch::Apply(body))).await {
            Err(source) if source.is_outdated() => return Ok(true),
            applied => applied.map_err(failed)?,
        };
        if applied.resource_version() == version {
            // It says what it should in words that are not understood here.
            return Ok(false);
        }
        tracing::info!(kind, name, namespace = self.valid.namespace, because, "applied");
        Ok(true)
    }

    /// The same with what the cache has of that name.
    async fn apply_cached<K: Object>(&self, desired: &K, store: &Store<K>) -> Result<(), Error> {
        let there = store.get(&ObjectRef::new(&desired.name_any()).within(&self.valid.namespace));
        self.apply(desired, there.as_deref()).await.map(drop)
    }

    /// One that may be absent: applied, or deleted if it is ours.
    async fn apply_optional<K: Object>(&self, name: &str, desired: Option<&K>, store: &Store<K>) -> Result<(), Error> {
        match desired {
            Some(desired) => self.apply_cached(desired, store).await,
            None => match store.get(&ObjectRef::new(name).within(&self.valid.namespace)) {
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
                tracing::info!(kind = %K::kind(&()), name, namespace = self.valid.namespace, "deleted");
                Ok(())
            }
        }
    }
}

/// Whether the Secret that the spec names is there, when pods may be about to read it: a pod that cannot would wait for it, and
/// the next would be stopped. Not asked while nothing happens.
///
/// # Errors
/// It is not there, or lacks the key.
pub async fn named_secret(
    context: &Context,
    valid: &Valid,
    resources: &Resources,
    there: &There,
    plan: &Plan,
) -> Result<(), Error> {
    let Some(reference) = &valid.spec.shared_secret.secret_ref else { return Ok(()) };
    let body = |set: &StatefulSet| serde_json::to_value(set).unwrap_or_default();
    let is_reshaped =
        there.statefulset.as_ref().is_none_or(|set| difference(&body(&resources.statefulset), &body(set)).is_some());
    if plan.step == Step::Settled && !is_reshaped {
        return Ok(());
    }
    let name = reference.name.clone();
    let secrets: Api<Secret> = Api::namespaced(context.client.clone(), &valid.namespace);
    let found = call(observe::named(&secrets, &name)).await;
    let found = found.map_err(|source| Error::LookForSecret { name: name.clone(), source })?;
    let key = &reference.key;
    match found {
        None => Err(Error::SecretMissing { name, lacks: "is not there".into() }),
        Some(secret) if secret.data.as_ref().and_then(|data| data.get(key)).is_none_or(|value| value.0.is_empty()) => {
            Err(Error::SecretMissing { name, lacks: format!("has nothing under the key {key}") })
        }
        Some(_) => Ok(()),
    }
}

/// Applies the Secrets, before any pod that reads them.
///
/// # Errors
/// The API server refuses.
pub async fn secrets(context: &Context, valid: &Valid, secrets: &Secrets, found: &Found) -> Result<(), Error> {
    let applier = Applier { client: &context.client, valid };
    for secret in &secrets.all {
        // What was found may have been changed while brokers were asked: the change is another visit's.
        let name = secret.name_any();
        let now = context.caches.secrets.get(&ObjectRef::new(&name).within(&valid.namespace));
        if now.is_some_and(|now| found.get(&name).is_some_and(|found| now.data.as_ref() != Some(found))) {
            continue;
        }
        applier.apply_cached(secret, &context.caches.secrets).await?;
    }
    if !valid.has_tls() {
        applier.apply_optional::<Secret>(&meta::tls(&valid.name), None, &context.caches.secrets).await?;
    }
    Ok(())
}

/// Applies all other objects; the StatefulSet last, because its pods need the rest, and only `with_pods`. Returns whether that
/// was changed, by this or by somebody else.
///
/// # Errors
/// The API server refuses.
pub async fn resources(
    context: &Context,
    valid: &Valid,
    resources: &Resources,
    there: &There,
    with_pods: bool,
) -> Result<bool, Error> {
    let Resources { config_map, service_account, headless, client, leader, pdb, network_policy, statefulset } =
        resources;
    let (caches, name) = (&context.caches, &valid.name);
    let applier = Applier { client: &context.client, valid };
    applier.apply_cached(service_account, &caches.service_accounts).await?;
    applier.apply_cached(config_map, &caches.config_maps).await?;
    for service in [headless, client, leader] {
        applier.apply_cached(service, &caches.services).await?;
    }
    applier.apply_optional(name, pdb.as_ref(), &caches.pdbs).await?;
    applier.apply_optional(name, network_policy.as_ref(), &caches.network_policies).await?;
    if !with_pods {
        return Ok(false);
    }
    applier.apply(statefulset, there.statefulset.as_ref()).await
}

/// Lets volumes go with the `Databroker`, or stay, as it says.
///
/// # Errors
/// The API server refuses.
pub async fn volume_owners(context: &Context, valid: &Valid, there: &There) -> Result<(), Error> {
    let applier = Applier { client: &context.client, valid };
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
    let applier = Applier { client: &context.client, valid };
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
pub(super) async fn step(context: &Context, valid: &Valid, look: &Look, secrets: &Secrets) -> Result<Done, Error> {
    let Look { there, addresses, answers: _, seen, plan } = look;
    let applier = Applier { client: &context.client, valid };
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
            // The node of another may not answer, although its pod is said to run.
            let leader = seen.cluster.as_ref().map(|cluster| cluster.leader);
            let answering = leader.into_iter().chain(seen.brokers.keys().copied());
            let Some(address) = answering.filter_map(|ordinal| addresses.get(&ordinal)).next() else { return Ok(done) };
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
        assert_eq!(differs(json!({"a": 1, "list": [{"name": "y"}]})).as_deref(), Some("list.x"));
        assert_eq!(differs(json!({"a": 1, "list": [{"name": "x"}, {"name": "y"}]})), None);
        assert_eq!(differs(json!({"a": 1})).as_deref(), Some("list"));
    }

    #[test]
    fn entries_of_others_in_a_list_by_name_are_left_and_ours_are_found_wherever_they_are() {
        let desired = json!({"env": [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}]});
        let differs = |observed| difference(&desired, &json!({"env": observed}));
        let (a, b, theirs) =
            (json!({"name": "A", "value": "1"}), json!({"name": "B", "value": "2"}), json!({"name": "X"}));
        assert_eq!(differs(json!([theirs, b, a])), None);
        assert_eq!(differs(json!([b, theirs])).as_deref(), Some("env.A"));
        assert_eq!(differs(json!([{"name": "A", "value": "3"}, b])).as_deref(), Some("env.A.value"));
        let mounts = json!([{"name": "data", "mountPath": "/data"}]);
        let more = json!([{"name": "data", "mountPath": "/other"}, {"name": "data", "mountPath": "/data"}]);
        assert!(difference(&mounts, &more).is_none() && difference(&more, &mounts).is_some());
        let zones = json!([{"topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule", "maxSkew": 1}]);
        let hosts = json!({"topologyKey": "host", "whenUnsatisfiable": "DoNotSchedule", "maxSkew": 1});
        assert!(difference(&zones, &json!([hosts, zones[0]])).is_none());
        // A list without keys is said as a whole.
        assert!(difference(&json!([{"key": "a"}]), &json!([{"key": "a"}, {"key": "b"}])).is_some());
    }

    #[test]
    fn a_field_that_is_no_longer_said_shows_and_a_value_does_not() {
        let body = json!({"metadata": {"name": "x"}, "spec": {"a": {"b": 1}, "list": [{"name": "c"}], "plain": ["d"]}});
        let changed = |pointer: &str, value: Value| {
            let mut other = body.clone();
            *other.pointer_mut(pointer).unwrap() = value;
            fields(&other) != fields(&body)
        };
        for (pointer, value) in [
            ("/spec/a", json!({})),
            ("/spec/a/b", json!(null)),
            ("/spec/list", json!([])),
            ("/spec/list/0/name", json!("other")),
            ("/spec/plain", json!(["d", "e"])),
            ("/metadata", json!({"name": "x", "ownerReferences": [{"uid": "u"}]})),
        ] {
            assert!(changed(pointer, value), "{pointer}");
        }
        assert!(!changed("/spec/a/b", json!(2)));
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
