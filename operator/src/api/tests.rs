//! The rules of the definition, run without an API server: each is broken by something, and by nothing that is right. That
//! the API server has the same ones, and what it says of values of the wrong type, is told by the stories on a cluster.

use std::collections::BTreeSet;

use kube::core::cel::{ValidationErrors, validate_cel, validate_cel_update};
use serde_json::{Value, json};

use super::{Databroker, definition::definition};

fn object(name: &str, spec: &Value) -> Databroker {
    let object = json!({"apiVersion": "databroker.dev/v1alpha1", "kind": "Databroker",
        "metadata": {"name": name}, "spec": spec});
    serde_json::from_value(object).unwrap()
}

fn said(checked: Result<(), ValidationErrors>) -> BTreeSet<String> {
    let errors = checked.err().into_iter().flat_map(ValidationErrors::into_vec);
    errors.map(|error| error.message).collect()
}

/// The messages of all rules, wherever they stand.
fn messages(schema: &Value, found: &mut BTreeSet<String>) {
    match schema {
        Value::Object(members) => {
            for rule in members.get("x-kubernetes-validations").and_then(Value::as_array).into_iter().flatten() {
                found.insert(rule["message"].as_str().unwrap_or("a rule without a message").to_owned());
            }
            members.values().for_each(|member| messages(member, found));
        }
        Value::Array(items) => items.iter().for_each(|item| messages(item, found)),
        _ => {}
    }
}

/// Names and specs that break a rule when an object is made.
fn wrong() -> Vec<(&'static str, Value)> {
    let spec = |spec| ("databroker", spec);
    vec![
        ("0-is-no-letter", json!({})),
        ("a-name-of-forty-one-characters-0123456789", json!({})),
        ("main-leader", json!({})),
        ("main-headless", json!({})),
        spec(json!({"replicas": 2})),
        spec(json!({"replicas": 9})),
        spec(json!({"podLabels": {"app.kubernetes.io/name": "mine"}})),
        spec(json!({"podAnnotations": {"databroker.dev/config": "mine"}})),
        spec(json!({"storage": {"ephemeral": true, "size": "1Gi"}})),
        spec(json!({"storage": {"size": "511Mi"}})),
        spec(json!({"election": {"heartbeatInterval": "150ms"}})),
        spec(json!({"election": {"electionTimeoutMax": "300ms"}})),
        spec(json!({"election": {"heartbeatInterval": "5ms"}})),
        spec(json!({"election": {"electionTimeoutMax": "61s"}})),
    ]
}

/// From what to what a spec cannot be changed.
fn immutable() -> Vec<(Value, Value)> {
    let storage = |storage: Value| json!({"storage": storage});
    vec![
        (json!({}), storage(json!({"size": "2Gi"}))),
        (storage(json!({"size": "2Gi"})), json!({})),
        (json!({}), storage(json!({"storageClassName": "fast"}))),
        (storage(json!({"storageClassName": "fast"})), storage(json!({"storageClassName": "slow"}))),
        (json!({}), storage(json!({"ephemeral": true}))),
        (storage(json!({"ephemeral": true})), json!({})),
    ]
}

#[test]
fn every_rule_is_broken_by_something_and_says_so() {
    let mut broken = BTreeSet::new();
    for (name, spec) in wrong() {
        let said = said(validate_cel(&object(name, &spec)));
        assert_eq!(said.len(), 1, "{name} {spec}: {said:?}");
        broken.extend(said);
    }
    for (from, to) in immutable() {
        let (from, to) = (object("databroker", &from), object("databroker", &to));
        assert_eq!(said(validate_cel(&to)), BTreeSet::new(), "{to:?}");
        let said = said(validate_cel_update(&to, &from));
        assert_eq!(said.len(), 1, "{from:?} to {to:?}: {said:?}");
        broken.extend(said);
    }
    let mut all = BTreeSet::new();
    messages(&serde_json::to_value(definition()).unwrap(), &mut all);
    assert_eq!(broken, all, "the left are those that were broken, the right all that there are");
}

#[test]
fn what_is_right_breaks_no_rule() {
    let production = json!({
        "replicas": 5,
        "storage": {"size": "512Mi", "storageClassName": "fast"},
        "election": {"heartbeatInterval": "50ms", "electionTimeoutMin": "150ms", "electionTimeoutMax": "200ms"},
        "podLabels": {"team": "access"},
        "podAnnotations": {"example.com/note": "x"},
    });
    for spec in [json!({}), json!({"storage": {"ephemeral": true}}), production] {
        assert_eq!(said(validate_cel(&object("databroker", &spec))), BTreeSet::new(), "{spec}");
    }
    // The same size in other words, and everything else.
    let from = object("databroker", &json!({"storage": {"size": "1Gi"}}));
    let to = object("databroker", &json!({"replicas": 7, "storage": {"size": "1024Mi"}, "durability": "Os"}));
    assert_eq!(said(validate_cel_update(&to, &from)), BTreeSet::new());
}
