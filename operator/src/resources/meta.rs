//! Names, labels and owners, each said once.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::ServiceAccount,
    apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta, OwnerReference},
};
use kube::Resource;

use super::pod::DATA_VOLUME;
use crate::{api::Databroker, reconcile::validate::Valid};

/// Who applies objects, in their managed fields and labels.
pub const MANAGER: &str = "databroker-operator";

/// On the pod that leads. Information only: nobody decides by it, and the `-leader` Service follows it.
pub const ROLE_LABEL: &str = "databroker.dev/role";
/// The value of [`ROLE_LABEL`] on that pod.
pub const LEADER: &str = "leader";
/// On a volume's claim: the id of a member that was removed while it could not be reached. Its data must go before the
/// name is used again.
pub const RETIRED_ANNOTATION: &str = "databroker.dev/retired";
/// On a `Databroker`: the id that `databroker cluster recover` gave its cluster. A person sets it.
pub const ADOPT_ANNOTATION: &str = "databroker.dev/adopt-cluster";

/// On what the operator applies: which fields it said something of, so that one it no longer speaks of is given up.
pub const FIELDS_ANNOTATION: &str = "databroker.dev/applied-fields";

/// What a thing is, whose it is, and who made it:
/// <https://kubernetes.io/docs/concepts/overview/working-with-objects/common-labels/>.
pub const NAME_LABEL: &str = "app.kubernetes.io/name";
/// The `Databroker`.
pub const INSTANCE_LABEL: &str = "app.kubernetes.io/instance";
const MANAGED_BY_LABEL: &str = "app.kubernetes.io/managed-by";

/// Selects the operator's pods in NetworkPolicies.
pub const OPERATOR_NAME: &str = "databroker-operator";

/// What selects the pods of one `Databroker`. It can never change: a StatefulSet's selector is fixed.
pub fn selector_labels(name: &str) -> BTreeMap<String, String> {
    owned_pairs([(NAME_LABEL, "databroker"), (INSTANCE_LABEL, name)])
}

fn owned_pairs<const N: usize>(pairs: [(&str, &str); N]) -> BTreeMap<String, String> {
    pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).into()
}

/// Selects whatever has this label.
pub fn selector_of(key: &str, value: &str) -> LabelSelector {
    LabelSelector { match_labels: Some(owned_pairs([(key, value)])), ..LabelSelector::default() }
}

/// Selects all that the operator has made, as text.
pub fn ours() -> String {
    format!("{MANAGED_BY_LABEL}={MANAGER}")
}

/// Whether an object belongs to the `Databroker` of this name.
pub fn belongs<K: Resource>(object: &K, namespace: &str, name: &str) -> bool {
    let labels = object.meta().labels.as_ref();
    object.meta().namespace.as_deref() == Some(namespace)
        && selector_labels(name).iter().all(|(key, value)| labels.and_then(|labels| labels.get(key)) == Some(value))
}

/// Whether the operator made it for the `Databroker` of this name: others use the same words for what it is and whose.
pub fn is_made_for<K: Resource>(object: &K, namespace: &str, name: &str) -> bool {
    let labels = object.meta().labels.as_ref();
    let manager = labels.and_then(|labels| labels.get(MANAGED_BY_LABEL));
    belongs(object, namespace, name) && manager.is_some_and(|manager| manager == MANAGER)
}

/// What selects the pods, as a selector.
pub fn selector(name: &str) -> LabelSelector {
    LabelSelector { match_labels: Some(selector_labels(name)), ..LabelSelector::default() }
}

/// The same as text, for the scale subresource and for lists.
pub fn selector_text(name: &str) -> String {
    let labels = selector_labels(name);
    labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",")
}

/// The labels of every object.
pub fn labels(name: &str) -> BTreeMap<String, String> {
    let mut labels = selector_labels(name);
    labels.insert("app.kubernetes.io/component".into(), "broker".into());
    labels.insert(MANAGED_BY_LABEL.into(), MANAGER.into());
    labels
}

/// The object that owns all others.
pub fn owner(valid: &Valid) -> OwnerReference {
    OwnerReference {
        api_version: Databroker::api_version(&()).into_owned(),
        kind: Databroker::kind(&()).into_owned(),
        name: valid.name.clone(),
        uid: valid.uid.clone(),
        controller: Some(true),
        // Nothing waits for it, and setting it takes a right more where that is enforced.
        block_owner_deletion: None,
    }
}

/// Of an object that goes with the `Databroker`.
pub fn owned(valid: &Valid, name: String) -> ObjectMeta {
    ObjectMeta { owner_references: Some(vec![owner(valid)]), ..kept(valid, name) }
}

/// Of an object that outlives it.
pub fn kept(valid: &Valid, name: String) -> ObjectMeta {
    ObjectMeta {
        name: Some(name),
        namespace: Some(valid.namespace.clone()),
        labels: Some(labels(&valid.name)),
        ..ObjectMeta::default()
    }
}

/// The pod of an ordinal.
pub fn pod(name: &str, ordinal: u32) -> String {
    format!("{name}-{ordinal}")
}

/// The ordinal in a pod's name.
pub fn ordinal(name: &str, pod: &str) -> Option<u32> {
    let digits = pod.strip_prefix(name)?.strip_prefix('-')?;
    let ordinal = digits.parse().ok()?;
    // Not `+1` or `01`.
    (self::pod(name, ordinal) == pod).then_some(ordinal)
}

/// The claim of an ordinal's volume.
pub fn claim(name: &str, ordinal: u32) -> String {
    format!("{DATA_VOLUME}-{}", pod(name, ordinal))
}

/// The ordinal in a claim's name.
pub fn claim_ordinal(name: &str, claim: &str) -> Option<u32> {
    ordinal(name, claim.strip_prefix(DATA_VOLUME)?.strip_prefix('-')?)
}

/// The Service that finds each pod by name.
pub fn headless(name: &str) -> String {
    format!("{name}-headless")
}

/// The Service that finds the leader.
pub fn leader(name: &str) -> String {
    format!("{name}-leader")
}

/// The brokers' configuration.
pub fn config_map(name: &str) -> String {
    format!("{name}-config")
}

/// The generated shared secret.
pub fn shared_secret(name: &str) -> String {
    format!("{name}-shared-secret")
}

/// The authority with its key, and the operator's own certificate: no pod mounts it.
pub fn authority(name: &str) -> String {
    format!("{name}-ca")
}

/// The brokers' certificates for each other.
pub fn peers(name: &str) -> String {
    format!("{name}-peers")
}

/// The brokers' certificate for clients.
pub fn tls(name: &str) -> String {
    format!("{name}-tls")
}

/// What all pods' names in the DNS of the cluster end with, without the cluster's own domain: the name of all of them.
pub fn domain(valid: &Valid) -> String {
    format!("{}.{}.svc", headless(&valid.name), valid.namespace)
}

/// A pod's name in the DNS.
pub fn host(valid: &Valid, ordinal: u32) -> String {
    format!("{}.{}", pod(&valid.name, ordinal), domain(valid))
}

/// The cluster's name in certificates. Two namespaces never share one.
pub fn cluster(valid: &Valid) -> String {
    format!("{}.{}", valid.namespace, valid.name)
}

/// Of the brokers. They never speak to the API server.
pub fn service_account(valid: &Valid) -> ServiceAccount {
    ServiceAccount {
        metadata: owned(valid, valid.name.clone()),
        automount_service_account_token: Some(false),
        ..ServiceAccount::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_selector_is_what_it_has_always_been() {
        assert_eq!(selector_text("x"), "app.kubernetes.io/instance=x,app.kubernetes.io/name=databroker");
    }

    #[test]
    fn ordinals_are_read_back_and_nothing_else_is() {
        assert_eq!(ordinal("a-b", &pod("a-b", 12)), Some(12));
        for other in ["a-b", "a-b-", "a-b-+1", "a-b-01", "a-b-x", "a-c-1", "a-b-1-2"] {
            assert_eq!(ordinal("a-b", other), None, "{other}");
        }
        assert_eq!(claim_ordinal("a-b", &claim("a-b", 12)), Some(12));
        assert_eq!(claim_ordinal("a-b", "a-b-12"), None);
    }
}
