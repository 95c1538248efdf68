//! What a `Databroker` is made of: pure functions from a validated one to objects of Kubernetes, one kind a file.
//!
//! ```text
//!   Valid ─▶ build ─▶ Resources<Prepared> ─▶ apply (client) ─▶ Resources<Applied> ─▶ status
//! ```
//!
//! Not here: whether and when they are applied (`reconcile`). The pod template depends on the spec and the broker's image
//! alone, so that another operator restarts no broker.

pub mod certificates;
pub mod config_map;
pub mod meta;
pub mod network_policy;
pub mod pdb;
pub mod pod;
pub mod secrets;
pub mod services;
pub mod statefulset;

use k8s_openapi::api::{
    apps::v1::StatefulSet,
    core::v1::{ConfigMap, Service, ServiceAccount},
    networking::v1::NetworkPolicy,
    policy::v1::PodDisruptionBudget,
};

use crate::reconcile::validate::Valid;

/// All objects but the Secrets, which depend on what is there already (`secrets`).
#[derive(Clone, Debug)]
pub struct Resources {
    /// The brokers' configuration.
    pub config_map: ConfigMap,
    /// Of the brokers, without a token.
    pub service_account: ServiceAccount,
    /// Finds each pod by name.
    pub headless: Service,
    /// For clients.
    pub client: Service,
    /// Finds the leader.
    pub leader: Service,
    /// Absent for a single broker, or where it is not wanted.
    pub pdb: Option<PodDisruptionBudget>,
    /// Absent where it is not wanted.
    pub network_policy: Option<NetworkPolicy>,
    /// The pods and their volumes.
    pub statefulset: StatefulSet,
}

/// Builds them. `replicas` is how many pods there are to be now, which the planner says.
pub fn build(valid: &Valid, replicas: u32) -> Resources {
    let config_map = config_map::build(valid);
    Resources {
        statefulset: statefulset::build(valid, replicas, &config_map::digest(&config_map)),
        config_map,
        service_account: meta::service_account(valid),
        headless: services::headless(valid),
        client: services::client(valid),
        leader: services::leader(valid),
        pdb: pdb::build(valid, replicas),
        network_policy: network_policy::build(valid),
    }
}

#[cfg(test)]
mod tests;
