//! The StatefulSet: pods with names and volumes of their own. All start at once; none restarts but by the operator's
//! hand, which knows who leads.

use k8s_openapi::{
    api::{
        apps::v1::{
            StatefulSet, StatefulSetPersistentVolumeClaimRetentionPolicy, StatefulSetSpec, StatefulSetUpdateStrategy,
        },
        core::v1::{PersistentVolumeClaim, PersistentVolumeClaimSpec, VolumeResourceRequirements},
    },
    apimachinery::pkg::{
        api::resource::Quantity,
        apis::meta::v1::{ObjectMeta, OwnerReference},
    },
};

use super::{meta, pod};
use crate::{api::databroker::Retention, reconcile::validate::Valid};

/// How many old revisions are kept: what `kubectl rollout history` shows.
const REVISIONS: i32 = 5;
/// What Kubernetes calls it that volumes stay.
const RETAIN: &str = "Retain";

/// The StatefulSet with so many pods.
pub fn build(valid: &Valid, replicas: u32, config_digest: &str) -> StatefulSet {
    let storage = &valid.spec.storage;
    StatefulSet {
        metadata: meta::owned(valid, valid.name.clone()),
        spec: Some(StatefulSetSpec {
            replicas: i32::try_from(replicas).ok(),
            selector: meta::selector(&valid.name),
            service_name: Some(meta::headless(&valid.name)),
            pod_management_policy: Some("Parallel".into()),
            update_strategy: Some(StatefulSetUpdateStrategy { type_: Some("OnDelete".into()), rolling_update: None }),
            revision_history_limit: Some(REVISIONS),
            // No volume goes with the StatefulSet, which somebody may delete by hand. One that was scaled away goes by the
            // operator's hand, once its member has ceased to vote; all go with the `Databroker`, where that owns them.
            persistent_volume_claim_retention_policy: (!storage.ephemeral).then(|| {
                StatefulSetPersistentVolumeClaimRetentionPolicy {
                    when_deleted: Some(RETAIN.into()),
                    when_scaled: Some(RETAIN.into()),
                }
            }),
            template: pod::template(valid, config_digest),
            volume_claim_templates: (!storage.ephemeral).then(|| vec![claim(valid)]),
            ..StatefulSetSpec::default()
        }),
        ..StatefulSet::default()
    }
}

fn claim(valid: &Valid) -> PersistentVolumeClaim {
    let storage = &valid.spec.storage;
    let size = storage.size.clone().unwrap_or_else(|| Quantity("1Gi".into()));
    PersistentVolumeClaim {
        metadata: ObjectMeta {
            name: Some(pod::DATA_VOLUME.into()),
            labels: Some(meta::labels(&valid.name)),
            ..ObjectMeta::default()
        },
        spec: Some(PersistentVolumeClaimSpec {
            access_modes: Some(vec!["ReadWriteOnce".into()]),
            storage_class_name: storage.storage_class_name.clone(),
            resources: Some(VolumeResourceRequirements {
                requests: Some([("storage".to_owned(), size)].into()),
                ..VolumeResourceRequirements::default()
            }),
            ..PersistentVolumeClaimSpec::default()
        }),
        ..PersistentVolumeClaim::default()
    }
}

/// Who is to own the claim of a volume that has these owners: the `Databroker`, if volumes are to go when it is deleted, and
/// others as they are. `None` if that is so.
pub fn owners(valid: &Valid, there: &[OwnerReference]) -> Option<Vec<OwnerReference>> {
    let goes = valid.spec.storage.retention_policy.unwrap_or_default().when_deleted == Retention::Delete;
    let (ours, others): (Vec<_>, Vec<_>) = there.iter().cloned().partition(|owner| owner.uid == valid.uid);
    // Not as the one that controls it: the StatefulSet's controller would take that for a conflict.
    let owner = goes.then(|| OwnerReference { controller: None, ..meta::owner(valid) });
    (ours.is_empty() == goes).then(|| others.into_iter().chain(owner).collect())
}
