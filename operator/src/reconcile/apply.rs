//! Makes what was built and takes the step that was planned. The only place that changes anything but the status.
//!
//! Server-side apply with one field manager; an object that is as it should be is left alone, so that a settled cluster
//! costs the API server nothing. Every change of what is there names the version, or the id, of what it was decided on: what
//! has changed since is looked at again.

use std::{fmt::Debug, sync::Arc};

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
    Look,
    difference::{body, difference},
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
    #[error(
        "the Secret {name} that spec.sharedSecret.secretRef names {lacks}: no pod is made or stopped until it is there"
    )]
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

    /// Applies it, unless `there` is as it says; returns whether it was changed, by this or by somebody else. One that is
    /// another's is left alone: what the caches do not have may be there all the same.
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
        let mut body = body(desired);
        let because = match there {
            None => "it was not there".to_owned(),
            Some(there) => match difference(&body, &serde_json::to_value(there).unwrap_or_default()) {
                None => return Ok(false),
                Some(path) => format!("{path} was another"),
            },
        };
        // Decided on what was seen: if that is old, the API server says so, and it is looked at again.
        let version = there.and_then(K::resource_version);
        if let Some(version) = &version {
            body["metadata"]["resourceVersion"] = json!(version);
        }
        let applied = match self.patch::<K>(&name, body).await {
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

    /// Applies a body. A Service's ports are merged by number: one of ours to which somebody gave another number would stand
    /// beside ours, which have the same names, and is refused. Then all are written anew first; if it was not that, the second
    /// answer says so.
    async fn patch<K: Object>(&self, name: &str, mut body: Value) -> Result<K, CallError> {
        let (api, params) = (self.api::<K>(), PatchParams::apply(meta::MANAGER).force());
        let applied = call(api.patch(name, &params, &Patch::Apply(&body))).await;
        let (version, ports) = (&body["metadata"]["resourceVersion"], &body["spec"]["ports"]);
        if !applied.as_ref().is_err_and(CallError::is_invalid) || version.is_null() || !ports.is_array() {
            return applied;
        }
        let whole = PatchParams { field_manager: params.field_manager.clone(), ..PatchParams::default() };
        let ports = json!({"metadata": {"resourceVersion": version}, "spec": {"ports": ports}});
        let there: K = call(api.patch(name, &whole, &Patch::Merge(ports))).await?;
        body["metadata"]["resourceVersion"] = json!(there.resource_version());
        call(api.patch(name, &params, &Patch::Apply(&body))).await
    }

    /// What a cache has of that name.
    fn cached<K: Object>(&self, name: &str, store: &Store<K>) -> Option<Arc<K>> {
        store.get(&ObjectRef::new(name).within(&self.valid.namespace))
    }

    /// Applies it, unless what the cache has of that name is as it says.
    async fn apply_cached<K: Object>(&self, desired: &K, store: &Store<K>) -> Result<(), Error> {
        let there = self.cached(&desired.name_any(), store);
        self.apply(desired, there.as_deref()).await.map(drop)
    }

    /// One that may be absent: applied, or deleted if it is ours.
    async fn apply_optional<K: Object>(&self, name: &str, desired: Option<&K>, store: &Store<K>) -> Result<(), Error> {
        match desired {
            Some(desired) => self.apply_cached(desired, store).await,
            None => match self.cached(name, store) {
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
    let differs = |set: &StatefulSet| {
        difference(&body(&resources.statefulset), &serde_json::to_value(set).unwrap_or_default()).is_some()
    };
    let is_reshaped = there.statefulset.as_ref().is_none_or(differs);
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
        let now = applier.cached(&name, &context.caches.secrets);
        let has_changed = |now: &Secret| found.get(&name).is_some_and(|found| now.data.as_ref() != Some(found));
        if !now.as_deref().is_some_and(has_changed) {
            applier.apply(secret, now.as_deref()).await?;
        }
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
