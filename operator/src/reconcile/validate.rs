//! From what people wrote to what the builders can rely on. Pure. The API server has held the object against the rules
//! of the definition already; what is looked at here again is what those rules may not have seen.

use kube::ResourceExt as _;

use crate::{
    api::{
        Databroker, DatabrokerSpec,
        databroker::{Retention, SecretKeyReference, TlsMode, UpdateStrategyType},
    },
    reconcile::plan::{Record, Wanted},
    resources::{meta, pod},
};

/// What the operator knows of itself.
#[derive(Clone, Debug)]
pub struct Names {
    /// Its namespace.
    pub namespace: String,
    /// The image of new `Databroker`s that name none.
    pub default_image: String,
}

/// A `Databroker` that can be built.
#[derive(Clone, Debug)]
pub struct Valid {
    /// Its name.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// Its own id.
    pub uid: String,
    /// Of its spec.
    pub generation: i64,
    /// Brokers.
    pub replicas: u32,
    /// Their image.
    pub image: String,
    /// The image that the status is to remember: set where the spec names none.
    pub remembered_image: Option<String>,
    /// The image that it would have if it were made now, where that is another than the remembered one.
    pub newer_image: Option<String>,
    /// The cluster that it is to be of, by a person's word.
    pub adopted: Option<String>,
    /// Where the operator runs.
    pub operator_namespace: String,
    /// The rest, as it was written.
    pub spec: DatabrokerSpec,
}

/// Why it cannot be built.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// Of the metadata, which the API server fills in.
    #[error("the object has no {0}: it was not read from an API server")]
    NoMetadata(&'static str),
    /// As the rule says.
    #[error("spec.replicas is {0}: it must be 1, 3, 5 or 7")]
    Replicas(i32),
    /// A volume's claim cannot be made from it.
    #[error("spec.storage.size {0:?} is not a quantity such as 10Gi")]
    Size(String),
}

/// The same with all that the builders need.
///
/// # Errors
/// See [`Invalid`].
pub fn validate(object: &Databroker, names: &Names) -> Result<Valid, Invalid> {
    let metadata = &object.metadata;
    let text = |value: &Option<String>, what| value.clone().ok_or(Invalid::NoMetadata(what));
    let spec = object.spec.clone();
    let replicas = match spec.replicas {
        1 | 3 | 5 | 7 => spec.replicas.unsigned_abs(),
        other => return Err(Invalid::Replicas(other)),
    };
    if let Some(size) = spec.storage.size.as_ref().filter(|size| !size.0.starts_with(|c: char| c.is_ascii_digit())) {
        return Err(Invalid::Size(size.0.clone()));
    }
    let remembered = object.status.as_ref().and_then(|status| status.image.clone());
    let remembered_image = spec.image.is_none().then(|| remembered.unwrap_or_else(|| names.default_image.clone()));
    let newer_image = remembered_image.is_some().then(|| names.default_image.clone());
    let newer_image = newer_image.filter(|newer| Some(newer) != remembered_image.as_ref());
    let image = spec.image.clone().or_else(|| remembered_image.clone()).unwrap_or_default();
    Ok(Valid {
        name: text(&metadata.name, "name")?,
        namespace: text(&metadata.namespace, "namespace")?,
        uid: text(&metadata.uid, "uid")?,
        generation: metadata.generation.unwrap_or_default(),
        replicas,
        image,
        remembered_image,
        newer_image,
        adopted: object.annotations().get(meta::ADOPT_ANNOTATION).filter(|id| !id.is_empty()).cloned(),
        operator_namespace: names.namespace.clone(),
        spec,
    })
}

/// What the status of an object remembers.
pub fn record(object: &Databroker) -> Record {
    let status = object.status.as_ref();
    Record {
        bootstrapped: status.is_some_and(|status| status.bootstrapped),
        cluster_id: status.and_then(|status| status.cluster_id.clone()),
    }
}

impl Valid {
    /// As far as steps depend on it.
    pub fn wanted(&self) -> Wanted {
        let strategy = self.spec.update_strategy;
        let retention = self.spec.storage.retention_policy.unwrap_or_default();
        Wanted {
            replicas: self.replicas,
            restarts: strategy.kind == UpdateStrategyType::LeaderLast && !strategy.paused,
            ephemeral: self.spec.storage.ephemeral,
            discards_scaled: retention.when_scaled == Retention::Delete,
        }
    }

    /// The Secret with the shared secret, and the key in it.
    pub fn shared_secret(&self) -> (String, String) {
        match &self.spec.shared_secret.secret_ref {
            Some(SecretKeyReference { name, key }) => (name.clone(), key.clone()),
            None => (meta::shared_secret(&self.name), pod::SHARED_SECRET_FILE.to_owned()),
        }
    }

    /// Whether the client port speaks TLS.
    pub fn has_tls(&self) -> bool {
        self.spec.tls.mode == TlsMode::SelfManaged
    }

    /// What clients' URLs begin with.
    pub fn scheme(&self) -> &'static str {
        if self.has_tls() { "https" } else { "http" }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use serde_json::json;

    use super::*;

    /// A `Databroker` as it comes from an API server, with this spec.
    pub(crate) fn object(spec: serde_json::Value) -> Databroker {
        serde_json::from_value(json!({
            "apiVersion": "databroker.dev/v1alpha1",
            "kind": "Databroker",
            "metadata": {"name": "main", "namespace": "access", "uid": "u-1", "generation": 3},
            "spec": spec,
        }))
        .unwrap()
    }

    /// The same, validated.
    pub(crate) fn valid(spec: serde_json::Value) -> Valid {
        let names = Names { namespace: "databroker-system".into(), default_image: "broker:1".into() };
        validate(&object(spec), &names).unwrap()
    }

    #[test]
    fn an_empty_spec_has_everything() {
        let valid = valid(json!({}));
        assert_eq!((valid.replicas, valid.image.as_str()), (3, "broker:1"));
        assert_eq!(valid.shared_secret(), ("main-shared-secret".into(), "shared_secret".into()));
        assert!(valid.has_tls() && valid.wanted().restarts);
    }

    #[test]
    fn the_image_that_was_the_default_stays_when_the_operators_changes() {
        let mut old = object(json!({}));
        old.status = Some(crate::api::DatabrokerStatus { image: Some("broker:1".into()), ..Default::default() });
        let newer = Names { namespace: "n".into(), default_image: "broker:2".into() };
        let valid = validate(&old, &newer).unwrap();
        assert_eq!((valid.image.as_str(), valid.newer_image.as_deref()), ("broker:1", Some("broker:2")));
        assert_eq!(self::valid(json!({})).newer_image, None);
        old.spec.image = Some("broker:3".into());
        let valid = validate(&old, &newer).unwrap();
        assert_eq!((valid.image.as_str(), valid.remembered_image, valid.newer_image), ("broker:3", None, None));
    }

    #[test]
    fn what_the_definition_refuses_is_refused_here_as_well() {
        let names = Names { namespace: "n".into(), default_image: "i".into() };
        assert_eq!(validate(&object(json!({"replicas": 2})), &names).unwrap_err(), Invalid::Replicas(2));
        let size = validate(&object(json!({"storage": {"size": "much"}})), &names).unwrap_err();
        assert_eq!(size, Invalid::Size("much".into()));
    }
}
