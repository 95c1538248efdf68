//! What reconciling needs of the world: a client, caches of what is there, and names. The pure steps see none of it.

use std::{future::Future, sync::Arc, time::Duration};

use k8s_openapi::api::{
    apps::v1::StatefulSet,
    core::v1::{ConfigMap, PersistentVolumeClaim, Pod, Secret, Service, ServiceAccount},
    networking::v1::NetworkPolicy,
    policy::v1::PodDisruptionBudget,
};
use kube::{
    Client,
    runtime::{events::Recorder, reflector::Store},
};

use crate::{brokers::Brokers, metrics::Metrics, reconcile::validate::Names};

/// How long a call to the API server may take. Reconciling is tried again; a call that hangs would hold it for ever.
const CALL_MAX: Duration = Duration::from_secs(15);

/// What is there, as far as it carries the operator's labels. A little old, as caches are.
pub struct Caches {
    /// By name: one per `Databroker`.
    pub statefulsets: Store<StatefulSet>,
    /// Brokers.
    pub pods: Store<Pod>,
    /// Their volumes.
    pub claims: Store<PersistentVolumeClaim>,
    /// Shared secrets and certificates.
    pub secrets: Store<Secret>,
    /// Their configuration.
    pub config_maps: Store<ConfigMap>,
    /// Ways to them.
    pub services: Store<Service>,
    /// Who they are.
    pub service_accounts: Store<ServiceAccount>,
    /// Budgets of evictions.
    pub pdbs: Store<PodDisruptionBudget>,
    /// Who may reach them.
    pub network_policies: Store<NetworkPolicy>,
}

/// All of it.
pub struct Context {
    /// Of the API server.
    pub client: Client,
    /// Publishes events.
    pub recorder: Recorder,
    /// What is there.
    pub caches: Caches,
    /// Brokers.
    pub brokers: Brokers,
    /// What the operator knows of itself.
    pub names: Names,
    /// What is counted.
    pub metrics: Arc<Metrics>,
}

/// Why the API server did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// It said no.
    #[error(transparent)]
    Refused(#[from] kube::Error),
    /// It said nothing.
    #[error("the API server did not answer in time")]
    TimedOut,
}

impl CallError {
    /// Whether what it is about is gone, or has changed since it was seen: another visit follows that change.
    pub fn is_outdated(&self) -> bool {
        matches!(self, Self::Refused(kube::Error::Api(status)) if status.is_conflict() || status.is_not_found())
    }

    /// Whether the API server says that what was asked for cannot be.
    pub fn is_invalid(&self) -> bool {
        matches!(self, Self::Refused(kube::Error::Api(status)) if status.code == 422)
    }
}

/// A call, within its time.
///
/// # Errors
/// See [`CallError`].
pub async fn call<T>(asked: impl Future<Output = kube::Result<T>>) -> Result<T, CallError> {
    match tokio::time::timeout(CALL_MAX, asked).await {
        Ok(answer) => Ok(answer?),
        Err(_) => Err(CallError::TimedOut),
    }
}
