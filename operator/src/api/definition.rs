//! The definition of the resource as the API server gets it: what the derives make, made fit to be stored and read.

use std::collections::BTreeMap;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSONSchemaProps, JSONSchemaPropsOrArray, JSONSchemaPropsOrBool,
};
use kube::CustomResourceExt as _;

use super::Databroker;

/// Parts of the spec that are Kubernetes' own types: their text is in its documentation, and would be most of the
/// definition.
const FOREIGN: [&str; 6] =
    ["affinity", "imagePullSecrets", "networkPolicy.clients", "resources", "tolerations", "topologySpreadConstraints"];

/// The definition.
pub fn definition() -> CustomResourceDefinition {
    let mut definition = Databroker::crd();
    definition.metadata.annotations = Some(BTreeMap::from([(
        // The smallest API server that knows all that is used here.
        "databroker.dev/kubernetes-min".to_owned(),
        "1.33".to_owned(),
    )]));
    for version in &mut definition.spec.versions {
        let spec = version.schema.as_mut().and_then(|schema| schema.open_api_v3_schema.as_mut());
        let spec = spec.and_then(|root| root.properties.as_mut()?.get_mut("spec"));
        let Some(spec) = spec else { continue };
        for path in FOREIGN {
            if let Some(part) = find(spec, path) {
                let said = part.description.take();
                silence(part);
                part.description = said;
            }
        }
    }
    definition
}

fn find<'a>(schema: &'a mut JSONSchemaProps, path: &str) -> Option<&'a mut JSONSchemaProps> {
    path.split('.').try_fold(schema, |at, name| at.properties.as_mut()?.get_mut(name))
}

/// Takes all descriptions out.
fn silence(schema: &mut JSONSchemaProps) {
    schema.description = None;
    schema.properties.iter_mut().flatten().for_each(|(_, property)| silence(property));
    match schema.items.as_mut() {
        Some(JSONSchemaPropsOrArray::Schema(items)) => silence(items),
        Some(JSONSchemaPropsOrArray::Schemas(items)) => items.iter_mut().for_each(silence),
        None => {}
    }
    if let Some(JSONSchemaPropsOrBool::Schema(other)) = schema.additional_properties.as_mut() {
        silence(other);
    }
}

/// The definition as it is printed, and stands in `crds/`.
///
/// # Errors
/// Never in practice: it is made of text and numbers.
pub fn yaml() -> Result<String, serde_yaml::Error> {
    serde_yaml::to_string(&definition())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `UPDATE_CRDS=1 cargo test` writes it anew.
    #[test]
    fn what_is_stored_is_what_is_printed() {
        let made = yaml().unwrap();
        // Helm reads no file outside a chart.
        for path in ["crds/databroker.yaml", "charts/databroker-operator/files/databroker.yaml"] {
            let file = format!("{}/../{path}", env!("CARGO_MANIFEST_DIR"));
            if std::env::var_os("UPDATE_CRDS").is_some() {
                std::fs::write(&file, &made).unwrap();
            }
            let stored = std::fs::read_to_string(&file).unwrap();
            assert!(stored == made, "{path} is not what `databroker-operator crd` prints: UPDATE_CRDS=1 cargo test");
        }
    }

    #[test]
    fn foreign_types_come_without_their_text_and_ours_with_it() {
        let made = yaml().unwrap();
        assert!(made.contains("When a write is acknowledged."));
        assert!(!made.contains("preferredDuringSchedulingIgnoredDuringExecution is"), "{made}");
        assert!(made.len() < 100_000, "{} bytes", made.len());
    }
}
