//! What people are told about a `Databroker`.
//!
//! Reasons are an enum here, and text nowhere else.
#![allow(unreachable_pub)] // What the derives make is.

use std::fmt;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How a cluster stands.
#[derive(KubeSchema, Clone, Debug, Default, Deserialize, Serialize, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct DatabrokerStatus {
    /// The generation that this is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// One of each type.
    #[serde(default)]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    /// Pods that exist.
    #[serde(default)]
    pub replicas: i32,
    /// Pods that are ready.
    #[serde(default)]
    pub ready_replicas: i32,
    /// Pods of the update revision.
    #[serde(default)]
    pub updated_replicas: i32,
    /// The pods' labels, for the scale subresource.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub selector: String,
    /// The image in use where the spec names none: the operator's default when the object was made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// The cluster's id, once founded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster_id: Option<String>,
    /// The cluster was founded; it is never founded again.
    #[serde(default)]
    pub bootstrapped: bool,
    /// Who leads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub leader: Option<Leader>,
    /// Who led last, also while nobody does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_leader: Option<String>,
    /// What is left of the majority.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quorum: Option<Quorum>,
    /// Each broker.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub members: Vec<Member>,
    /// The revision that not all pods have left.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub current_revision: Option<String>,
    /// The revision that all pods are to have.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub update_revision: Option<String>,
    /// The brokers' release.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// The last change of leader that nobody asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_failover: Option<Failover>,
    /// The certificates that the operator keeps.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub certificates: Option<Certificates>,
    /// Where things are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoints: Option<Endpoints>,
}

/// Who leads.
#[derive(JsonSchema, Clone, Debug, Default, Deserialize, Serialize, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Leader {
    /// The pod.
    pub member: String,
    /// Its term.
    pub term: i64,
    /// Since when it is known to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<Time>,
}

/// What is left of the majority.
#[derive(JsonSchema, Clone, Copy, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Quorum {
    /// Members that vote.
    pub voters: i32,
    /// Of them, those that are caught up.
    pub healthy_voters: i32,
    /// How many it takes.
    pub required: i32,
}

/// A broker.
#[derive(JsonSchema, Clone, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Member {
    /// The pod.
    pub name: String,
    /// What it does.
    pub role: MemberRole,
    /// Whether the pod is ready.
    #[serde(default)]
    pub ready: bool,
    /// How far it is behind, in a word: numbers would change all the time.
    pub lag: Lag,
    /// The id of its disk, in hexadecimal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_id: Option<String>,
    /// The pod's revision.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// The size of its volume.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub volume_size: Option<String>,
}

/// What a broker does.
#[derive(JsonSchema, Clone, Copy, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
pub enum MemberRole {
    /// It leads.
    Leader,
    /// It votes.
    Voter,
    /// It is brought up, and does not vote yet.
    Learner,
    /// It belongs to no cluster.
    Outside,
    /// It was not heard of.
    #[default]
    Unknown,
}

/// How far a broker is behind.
#[derive(JsonSchema, Clone, Copy, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
pub enum Lag {
    /// Not at all.
    None,
    /// Some records.
    Behind,
    /// It was not heard of lately.
    #[default]
    Unknown,
}

/// A change of leader that nobody asked for.
#[derive(JsonSchema, Clone, Debug, Default, Deserialize, Serialize, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Failover {
    /// Who led before.
    pub from: String,
    /// Who leads since.
    pub to: String,
    /// In which term.
    #[serde(default)]
    pub term: i64,
    /// When it was seen.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at: Option<Time>,
    /// What is known of the one who led before.
    #[serde(default)]
    pub reason: FailoverReason,
    /// The longest that a write was held meanwhile, as far as brokers that answer tell; absent: none was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub write_gap_millis: Option<i64>,
}

/// Why another leads, by how the pod stood that led before when that was seen.
#[derive(JsonSchema, Clone, Copy, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
pub enum FailoverReason {
    /// Its node does not answer.
    NodeUnreachable,
    /// It is gone, or its broker does not run.
    PodNotRunning,
    /// It runs: it started again meanwhile, or was not heard by the others for a while.
    #[default]
    LeaderReplaced,
}

/// The certificates that the operator keeps.
#[derive(JsonSchema, Clone, Debug, Default, Deserialize, Serialize, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Certificates {
    /// When the first of them ends. They are renewed before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_after: Option<Time>,
}

/// Where things are.
#[derive(JsonSchema, Clone, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Endpoints {
    /// For clients: a URL.
    pub client: String,
    /// The leader's: a URL.
    pub leader: String,
    /// Each pod's metrics: a path and port.
    pub metrics: String,
}

/// The conditions of a `Databroker`, all of them set from the first visit on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ConditionType {
    /// The summary: what was asked for is there, and works.
    Ready,
    /// A leader takes writes.
    Available,
    /// Something is on its way.
    Reconciling,
    /// Nothing goes on without a person.
    Stalled,
    /// It works, with less than it should have.
    Degraded,
    /// All members are voters, and caught up.
    MembersSynced,
    /// Every broker has its volume.
    StorageReady,
    /// Every broker has certificates that are good for a while.
    CertificatesReady,
}

impl ConditionType {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Ready,
        Self::Available,
        Self::Reconciling,
        Self::Stalled,
        Self::Degraded,
        Self::MembersSynced,
        Self::StorageReady,
        Self::CertificatesReady,
    ];
}

impl fmt::Display for ConditionType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

/// Why a condition is as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// All is as asked.
    AsExpected,
    /// All is as asked, and the operator would use a newer image if the object were made today.
    UpdateAvailable,
    /// Pods, volumes or objects are being made.
    Creating,
    /// Brokers have not said how they stand.
    BrokersStarting,
    /// The cluster is being founded.
    Founding,
    /// No leader, but a majority may be there.
    LeaderElectionPending,
    /// No majority is there.
    QuorumLost,
    /// Members are added.
    ScalingUp,
    /// Members are removed.
    ScalingDown,
    /// Pods are brought to a new revision.
    RollingUpdate,
    /// Pods of an old revision stay, because somebody said so.
    UpdatePaused,
    /// Members are caught up.
    CatchingUp,
    /// A pod is not ready.
    PodNotReady,
    /// A pod's node does not answer.
    NodeUnreachable,
    /// All disks of a founded cluster are empty.
    DataMissing,
    /// An ephemeral cluster has lost its records, and began anew.
    DataDiscarded,
    /// Disks are of different clusters.
    ForeignData,
    /// A volume is not bound.
    VolumePending,
    /// A volume has hardly any room left.
    DiskFull,
    /// The spec asks for what cannot be.
    InvalidSpec,
    /// A Secret that the spec names is missing, or has no such key.
    SecretMissing,
    /// The API server or a broker refuses something, or an object is another's.
    ApplyFailed,
    /// A certificate has ended.
    Expired,
    /// Nothing is changed while the spec says so.
    Suspended,
    /// It is not known yet.
    Unknown,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}
