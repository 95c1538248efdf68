//! What a `Databroker` asks for. Defaults and rules (CEL) are part of the definition, so that the API server fills in and
//! refuses before anything is stored.
//!
//! A field that is not served yet is not here: nothing is accepted and ignored.
#![allow(unreachable_pub)] // What the derives make is.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::{
        core::v1::{Affinity, LocalObjectReference, ResourceRequirements, Toleration, TopologySpreadConstraint},
        networking::v1::NetworkPolicyPeer,
    },
    apimachinery::pkg::api::resource::Quantity,
};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::status::DatabrokerStatus;

/// A cluster of brokers: the data layer of an identity-aware access proxy.
#[derive(CustomResource, KubeSchema, Clone, Debug, Default, Deserialize, Serialize, PartialEq)]
#[kube(
    group = "databroker.dev",
    version = "v1alpha1",
    kind = "Databroker",
    plural = "databrokers",
    shortname = "dbk",
    category = "databroker",
    namespaced,
    status = "DatabrokerStatus",
    derive = "PartialEq",
    doc = "A cluster of brokers: the data layer of an identity-aware access proxy.",
    scale(
        spec_replicas_path = ".spec.replicas",
        status_replicas_path = ".status.replicas",
        label_selector_path = ".status.selector"
    ),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "Leader", type_ = "string", json_path = ".status.leader.member"),
    printcolumn(name = "Replicas", type_ = "integer", json_path = ".status.replicas"),
    printcolumn(name = "Synced", type_ = "string", json_path = ".status.conditions[?(@.type==\"MembersSynced\")].status"),
    printcolumn(name = "Version", type_ = "string", json_path = ".status.version"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Term", type_ = "integer", json_path = ".status.leader.term", priority = 1),
    printcolumn(name = "Last Failover", type_ = "date", json_path = ".status.lastFailover.at", priority = 1),
    printcolumn(
        name = "Message",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].message",
        priority = 1
    ),
    validation = Rule::new("self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$') && self.metadata.name.size() <= 40")
        .message("the name must be at most 40 lower-case letters, digits and dashes, and begin with a letter: it is part of the names of Services and pods"),
    validation = Rule::new("!self.metadata.name.endsWith('-leader') && !self.metadata.name.endsWith('-headless')")
        .message("the name must not end in -leader or -headless: Services of other Databrokers are called so")
)]
#[serde(rename_all = "camelCase")]
pub struct DatabrokerSpec {
    /// How many brokers vote. An even number tolerates no more failures than one less.
    #[serde(default = "defaults::replicas")]
    #[x_kube(validation = Rule::new("self in [1, 3, 5, 7]").message("replicas must be 1, 3, 5 or 7"))]
    pub replicas: i32,

    /// The broker's image. Absent: the operator's own default when the object is made, which stays when the operator is
    /// upgraded (see status.image). Setting it rolls the cluster.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1))]
    pub image: Option<String>,
    /// As in a pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_pull_policy: Option<ImagePullPolicy>,
    /// As in a pod.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub image_pull_secrets: Vec<LocalObjectReference>,

    /// Where records are kept.
    #[serde(default)]
    pub storage: Storage,
    /// When a write is acknowledged.
    #[serde(default)]
    pub durability: Durability,
    /// When a leader is missed. Absent fields are the broker's defaults.
    #[serde(default)]
    pub election: Election,
    /// How pods are brought to a new revision.
    #[serde(default)]
    pub update_strategy: UpdateStrategy,

    /// As in a container. Default: a request of 100m of a core and 128Mi of memory, no limits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resources: Option<ResourceRequirements>,
    /// As in a pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub affinity: Option<Affinity>,
    /// As in a pod. Absent: brokers are spread over zones and hosts where that is possible. Their selector is added.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub topology_spread_constraints: Option<Vec<TopologySpreadConstraint>>,
    /// As in a pod.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub node_selector: BTreeMap<String, String>,
    /// As in a pod.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tolerations: Vec<Toleration>,
    /// As in a pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub priority_class_name: Option<String>,
    /// Labels that pods get besides those of the operator.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[x_kube(validation = Rule::new("self.all(key, !key.startsWith('app.kubernetes.io/') && !key.startsWith('databroker.dev/'))").message("labels of app.kubernetes.io/ and databroker.dev/ are the operator's"))]
    pub pod_labels: BTreeMap<String, String>,
    /// Annotations that pods get besides those of the operator.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[x_kube(validation = Rule::new("self.all(key, !key.startsWith('databroker.dev/'))").message("annotations of databroker.dev/ are the operator's"))]
    pub pod_annotations: BTreeMap<String, String>,
    /// How long a stopping broker has, in seconds, to be forgotten by the Services, to hand over, and to end what is under way.
    #[serde(default = "defaults::termination_grace_period_seconds")]
    #[schemars(range(min = 10, max = 3600))]
    pub termination_grace_period_seconds: i64,

    /// The key that clients sign their tokens with.
    #[serde(default)]
    pub shared_secret: SharedSecret,
    /// TLS towards clients. Brokers among themselves always use mutual TLS.
    #[serde(default)]
    pub tls: Tls,
    /// The Service for clients.
    #[serde(default)]
    pub service: Service,
    /// Who may reach the brokers.
    #[serde(default)]
    pub network_policy: NetworkPolicy,
    /// Keeps evictions from stopping more than one broker at a time.
    #[serde(default)]
    pub pod_disruption_budget: PodDisruptionBudget,

    /// Nothing is changed while this is set; the status is still kept.
    #[serde(default)]
    pub suspend: bool,
}

/// When an image is pulled.
#[derive(JsonSchema, Clone, Copy, Debug, Deserialize, Serialize, PartialEq, Eq)]
pub enum ImagePullPolicy {
    /// At each start.
    Always,
    /// If the node has none.
    IfNotPresent,
    /// It has to be there.
    Never,
}

impl ImagePullPolicy {
    /// As a pod has it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Always => "Always",
            Self::IfNotPresent => "IfNotPresent",
            Self::Never => "Never",
        }
    }
}

/// Where records are kept.
#[derive(KubeSchema, Clone, Debug, Default, Deserialize, Serialize, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!(has(self.ephemeral) && self.ephemeral) || (!has(self.size) && !has(self.storageClassName) && !has(self.retentionPolicy))")
    .message("ephemeral storage has no volumes: leave out size, storageClassName and retentionPolicy"))]
#[x_kube(validation = Rule::new("(has(self.ephemeral) && self.ephemeral) == (has(oldSelf.ephemeral) && oldSelf.ephemeral)")
    .message("storage.ephemeral cannot be changed: make another Databroker and move the records with databroker export and import"))]
#[x_kube(validation = Rule::new("(has(self.size) ? quantity(self.size) : quantity('1Gi')).compareTo(has(oldSelf.size) ? quantity(oldSelf.size) : quantity('1Gi')) == 0")
    .message("storage.size cannot be changed yet"))]
#[x_kube(validation = Rule::new("has(self.storageClassName) == has(oldSelf.storageClassName) && (!has(self.storageClassName) || self.storageClassName == oldSelf.storageClassName)")
    .message("storage.storageClassName cannot be changed"))]
pub struct Storage {
    /// The size of each broker's volume. Default: 1Gi.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("quantity(self).isGreaterThan(quantity('511Mi'))").message("storage.size must be at least 512Mi"))]
    pub size: Option<Quantity>,
    /// The class of the volumes. Default: the cluster's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub storage_class_name: Option<String>,
    /// What becomes of volumes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retention_policy: Option<RetentionPolicy>,
    /// Records in memory, on no volume: for tests.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub ephemeral: bool,
}

/// What becomes of volumes.
#[derive(JsonSchema, Clone, Copy, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct RetentionPolicy {
    /// When the Databroker is deleted.
    #[serde(default)]
    pub when_deleted: Retention,
    /// When a broker is scaled away, once it has ceased to vote.
    #[serde(default)]
    pub when_scaled: Retention,
}

/// Whether a volume stays.
#[derive(JsonSchema, Clone, Copy, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
pub enum Retention {
    /// It stays.
    #[default]
    Retain,
    /// It goes.
    Delete,
}

/// When a write is acknowledged.
#[derive(JsonSchema, Clone, Copy, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
pub enum Durability {
    /// It is on the disks of a majority.
    #[default]
    Fsync,
    /// The operating systems of a majority have it: survives processes, not a power loss of a majority.
    Os,
}

/// When a leader is missed.
#[derive(KubeSchema, Clone, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("duration(has(self.electionTimeoutMin) ? self.electionTimeoutMin : '300ms') >= duration(has(self.heartbeatInterval) ? self.heartbeatInterval : '100ms') + duration(has(self.heartbeatInterval) ? self.heartbeatInterval : '100ms') + duration(has(self.heartbeatInterval) ? self.heartbeatInterval : '100ms')")
    .message("electionTimeoutMin must be at least three times heartbeatInterval"))]
#[x_kube(validation = Rule::new("duration(has(self.electionTimeoutMax) ? self.electionTimeoutMax : '400ms') > duration(has(self.electionTimeoutMin) ? self.electionTimeoutMin : '300ms')")
    .message("electionTimeoutMax must be above electionTimeoutMin"))]
#[x_kube(validation = Rule::new("duration(has(self.heartbeatInterval) ? self.heartbeatInterval : '100ms') >= duration('10ms') && duration(has(self.electionTimeoutMax) ? self.electionTimeoutMax : '400ms') <= duration('60s')")
    .message("heartbeatInterval must be at least 10ms, electionTimeoutMax at most 60s"))]
pub struct Election {
    /// How often a leader says that it is there, as `100ms`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^[0-9]+(ms|s)$"))]
    pub heartbeat_interval: Option<String>,
    /// How long the others wait for it at least, as `300ms`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^[0-9]+(ms|s)$"))]
    pub election_timeout_min: Option<String>,
    /// How long they wait at most, as `400ms`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^[0-9]+(ms|s)$"))]
    pub election_timeout_max: Option<String>,
}

/// How pods are brought to a new revision.
#[derive(JsonSchema, Clone, Copy, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct UpdateStrategy {
    /// Who restarts pods.
    #[serde(default, rename = "type")]
    pub kind: UpdateStrategyType,
    /// Holds a roll where it is.
    #[serde(default)]
    pub paused: bool,
}

/// Who restarts pods for a new revision.
#[derive(JsonSchema, Clone, Copy, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
pub enum UpdateStrategyType {
    /// The operator, one at a time, the leader last.
    #[default]
    LeaderLast,
    /// Whoever deletes them.
    OnDelete,
}

/// The key that clients sign their tokens with.
#[derive(JsonSchema, Clone, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct SharedSecret {
    /// Where it is: 32 bytes, raw or in base64. Absent: generated once, into the Secret `NAME-shared-secret`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret_ref: Option<SecretKeyReference>,
}

/// A key of a Secret in the same namespace.
#[derive(JsonSchema, Clone, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct SecretKeyReference {
    /// The Secret.
    #[schemars(length(min = 1))]
    pub name: String,
    /// The key in it.
    #[serde(default = "defaults::secret_key")]
    #[schemars(length(min = 1))]
    pub key: String,
}

/// TLS towards clients.
#[derive(JsonSchema, Clone, Copy, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
pub struct Tls {
    /// Where certificates come from.
    #[serde(default)]
    pub mode: TlsMode,
}

/// Where certificates for clients come from.
#[derive(JsonSchema, Clone, Copy, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
pub enum TlsMode {
    /// From an authority that the operator keeps for this Databroker: clients trust `ca.crt` of the Secret `NAME-tls`.
    #[default]
    SelfManaged,
    /// Plaintext: tokens can be read on the way.
    Disabled,
}

/// The Service for clients.
#[derive(JsonSchema, Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Service {
    /// Its type.
    #[serde(default, rename = "type")]
    pub kind: ServiceType,
    /// Its annotations.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// Its port.
    #[serde(default = "defaults::service_port")]
    #[schemars(range(min = 1, max = 65535))]
    pub port: i32,
}

impl Default for Service {
    fn default() -> Self {
        Self { kind: ServiceType::default(), annotations: BTreeMap::new(), port: defaults::service_port() }
    }
}

/// The type of a Service.
#[derive(JsonSchema, Clone, Copy, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
pub enum ServiceType {
    /// Inside the cluster.
    #[default]
    ClusterIP,
    /// On a port of every node, too.
    NodePort,
    /// Behind a load balancer, too.
    LoadBalancer,
}

impl ServiceType {
    /// As a Service has it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ClusterIP => "ClusterIP",
            Self::NodePort => "NodePort",
            Self::LoadBalancer => "LoadBalancer",
        }
    }
}

/// Who may reach the brokers.
#[derive(JsonSchema, Clone, Debug, Deserialize, Serialize, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct NetworkPolicy {
    /// Whether there is a NetworkPolicy: the peers' port is then for brokers and the operator alone.
    #[serde(default = "defaults::yes")]
    pub enabled: bool,
    /// Who may reach the port for clients. Empty: everybody who can reach the pod.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub clients: Vec<NetworkPolicyPeer>,
}

impl Default for NetworkPolicy {
    fn default() -> Self {
        Self { enabled: true, clients: Vec::new() }
    }
}

/// Keeps evictions from stopping more than one broker at a time.
#[derive(JsonSchema, Clone, Copy, Debug, Deserialize, Serialize, PartialEq, Eq)]
pub struct PodDisruptionBudget {
    /// Whether there is one. There is none for a single broker.
    #[serde(default = "defaults::yes")]
    pub enabled: bool,
}

impl Default for PodDisruptionBudget {
    fn default() -> Self {
        Self { enabled: true }
    }
}

/// What is not said, as functions because serde wants them so.
mod defaults {
    pub(super) fn replicas() -> i32 {
        3
    }

    pub(super) fn termination_grace_period_seconds() -> i64 {
        30
    }

    pub(super) fn secret_key() -> String {
        "shared_secret".into()
    }

    pub(super) fn service_port() -> i32 {
        5443
    }

    pub(super) fn yes() -> bool {
        true
    }
}
