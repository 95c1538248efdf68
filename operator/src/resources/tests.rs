//! Whole objects, as the API server gets them.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use serde_json::json;

use super::*;
use crate::reconcile::validate::tests::valid;

fn template(spec: serde_json::Value) -> serde_json::Value {
    serde_json::to_value(build(&valid(spec), 3).statefulset.spec.unwrap().template).unwrap()
}

#[test]
fn the_pod_meets_the_standard_restricted() {
    let template = template(json!({}));
    let pod = &template["spec"];
    assert_eq!(pod["securityContext"]["runAsNonRoot"], true);
    assert_eq!(pod["securityContext"]["seccompProfile"], json!({"type": "RuntimeDefault"}));
    assert_eq!(pod["automountServiceAccountToken"], false);
    assert_eq!(
        pod["containers"][0]["securityContext"],
        json!({"allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": {"drop": ["ALL"]}})
    );
}

#[test]
fn the_template_does_not_depend_on_the_number_of_pods_or_the_operator() {
    let of = |replicas: u32, namespace: &str| {
        let mut valid = valid(json!({"replicas": replicas}));
        valid.operator_namespace = namespace.into();
        build(&valid, replicas).statefulset.spec.unwrap().template
    };
    assert_eq!(of(1, "a"), of(5, "b"));
}

#[test]
fn a_changed_configuration_changes_the_template() {
    assert_ne!(template(json!({})), template(json!({"durability": "Os"})));
    assert_ne!(template(json!({})), template(json!({"tls": {"mode": "Disabled"}})));
}

/// The broker reads the same file in a test of its own.
#[test]
fn the_configuration_is_what_the_broker_reads() {
    let config_map = build(
        &valid(json!({"election": {
            "heartbeatInterval": "50ms",
            "electionTimeoutMin": "300ms",
            "electionTimeoutMax": "400ms",
        }})),
        3,
    )
    .config_map;
    let keys: serde_json::Value = serde_yaml::from_str(&config_map.data.unwrap()[config_map::FILE]).unwrap();
    let pinned: serde_json::Value = serde_json::from_str(include_str!("broker.json")).unwrap();
    assert_eq!(keys, pinned);
}

#[test]
fn pods_start_together_and_are_restarted_by_nobody_but_the_operator() {
    let set = serde_json::to_value(build(&valid(json!({})), 3).statefulset).unwrap();
    assert_eq!(set["spec"]["podManagementPolicy"], "Parallel");
    assert_eq!(set["spec"]["updateStrategy"], json!({"type": "OnDelete"}));
    assert_eq!(
        set["spec"]["persistentVolumeClaimRetentionPolicy"],
        json!({"whenDeleted": "Retain", "whenScaled": "Retain"})
    );
    let ephemeral =
        serde_json::to_value(build(&valid(json!({"storage": {"ephemeral": true}})), 3).statefulset).unwrap();
    assert_eq!(ephemeral["spec"]["volumeClaimTemplates"], serde_json::Value::Null);
}

#[test]
fn volumes_go_with_the_databroker_if_it_says_so_and_never_with_the_statefulset() {
    let retained = valid(json!({}));
    let deleted = valid(json!({"storage": {"retentionPolicy": {"whenDeleted": "Delete"}}}));
    let set = serde_json::to_value(build(&deleted, 3).statefulset).unwrap();
    assert_eq!(set["spec"]["persistentVolumeClaimRetentionPolicy"]["whenDeleted"], "Retain");

    let other = OwnerReference { uid: "of another".into(), ..OwnerReference::default() };
    let there = statefulset::owners(&deleted, std::slice::from_ref(&other)).unwrap();
    assert_eq!((&there[0], there[1].uid.as_str(), there[1].controller), (&other, deleted.uid.as_str(), None));
    assert_eq!(statefulset::owners(&deleted, &there), None);
    assert_eq!(statefulset::owners(&retained, &there), Some(vec![other]));
    assert_eq!(statefulset::owners(&retained, &[]), None);
}

#[test]
fn the_budget_is_one_pod_and_none_for_a_single_broker() {
    let pdb = serde_json::to_value(build(&valid(json!({})), 3).pdb.unwrap().spec.unwrap()).unwrap();
    assert_eq!((&pdb["maxUnavailable"], &pdb["unhealthyPodEvictionPolicy"]), (&json!(1), &json!("AlwaysAllow")));
    assert!(build(&valid(json!({"replicas": 1})), 1).pdb.is_none());
    assert!(build(&valid(json!({"podDisruptionBudget": {"enabled": false}})), 3).pdb.is_none());
}

#[test]
fn the_peers_port_is_for_brokers_and_the_operator_alone() {
    let policy = build(&valid(json!({})), 3).network_policy.unwrap();
    let rules = serde_json::to_value(policy.spec.unwrap().ingress.unwrap()).unwrap();
    let peers = rules.as_array().unwrap().iter().find(|rule| rule["ports"][0]["port"] == "peers").unwrap();
    assert_eq!(
        peers["from"],
        json!([
            {"podSelector": {"matchLabels": {"app.kubernetes.io/name": "databroker", "app.kubernetes.io/instance": "main"}}},
            {
                "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "databroker-system"}},
                "podSelector": {"matchLabels": {"app.kubernetes.io/name": "databroker-operator"}},
            },
        ])
    );
    assert!(build(&valid(json!({"networkPolicy": {"enabled": false}})), 3).network_policy.is_none());
}

#[test]
fn services_find_any_broker_the_leader_and_each_by_name() {
    let resources = build(&valid(json!({"service": {"port": 443, "annotations": {"a": "b"}}})), 3);
    let client = serde_json::to_value(&resources.client).unwrap();
    assert_eq!(
        (&client["spec"]["ports"][0]["port"], &client["metadata"]["annotations"]["a"]),
        (&json!(443), &json!("b"))
    );
    let leader = serde_json::to_value(&resources.leader).unwrap();
    assert_eq!(leader["spec"]["selector"]["databroker.dev/role"], "leader");
    let headless = serde_json::to_value(&resources.headless).unwrap();
    assert_eq!(
        (&headless["spec"]["clusterIP"], &headless["spec"]["publishNotReadyAddresses"]),
        (&json!("None"), &json!(true))
    );
}
