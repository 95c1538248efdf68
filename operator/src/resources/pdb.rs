//! Keeps evictions from stopping more than one broker at a time: a broker is ready once it has caught up.

use k8s_openapi::{
    api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec},
    apimachinery::pkg::util::intstr::IntOrString,
};

use super::meta;
use crate::reconcile::validate::Valid;

/// None for a single broker: it could never be evicted, and would hold up every drain.
/// `replicas` is how many there are now: while some still vote that are to go, they are protected too.
pub fn build(valid: &Valid, replicas: u32) -> Option<PodDisruptionBudget> {
    (valid.spec.pod_disruption_budget.enabled && replicas > 1).then(|| PodDisruptionBudget {
        metadata: meta::owned(valid, valid.name.clone()),
        spec: Some(PodDisruptionBudgetSpec {
            max_unavailable: Some(IntOrString::Int(1)),
            selector: Some(meta::selector(&valid.name)),
            // A broker that does not run holds up nothing by being evicted.
            unhealthy_pod_eviction_policy: Some("AlwaysAllow".into()),
            ..PodDisruptionBudgetSpec::default()
        }),
        ..PodDisruptionBudget::default()
    })
}
