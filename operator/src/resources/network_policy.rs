//! Who may reach the brokers: clients their port, brokers and the operator the peers' port, and who watches the metrics.

use k8s_openapi::{
    api::networking::v1::{
        NetworkPolicy, NetworkPolicyIngressRule, NetworkPolicyPeer, NetworkPolicyPort, NetworkPolicySpec,
    },
    apimachinery::pkg::util::intstr::IntOrString,
};

use super::{meta, pod};
use crate::reconcile::validate::Valid;

fn on(port: &str) -> Option<Vec<NetworkPolicyPort>> {
    let port = IntOrString::String(port.into());
    Some(vec![NetworkPolicyPort { port: Some(port), protocol: Some("TCP".into()), end_port: None }])
}

/// Absent where it is not wanted.
pub fn build(valid: &Valid) -> Option<NetworkPolicy> {
    valid.spec.network_policy.enabled.then(|| NetworkPolicy {
        metadata: meta::owned(valid, valid.name.clone()),
        spec: Some(NetworkPolicySpec {
            pod_selector: Some(meta::selector(&valid.name)),
            policy_types: Some(vec!["Ingress".into()]),
            ingress: Some(rules(valid)),
            egress: None,
        }),
    })
}

fn rules(valid: &Valid) -> Vec<NetworkPolicyIngressRule> {
    let brokers = NetworkPolicyPeer { pod_selector: Some(meta::selector(&valid.name)), ..NetworkPolicyPeer::default() };
    let operator = NetworkPolicyPeer {
        namespace_selector: Some(meta::selector_of("kubernetes.io/metadata.name", &valid.operator_namespace)),
        pod_selector: Some(meta::selector_of(meta::NAME_LABEL, meta::OPERATOR_NAME)),
        ip_block: None,
    };
    let clients = valid.spec.network_policy.clients.clone();
    vec![
        NetworkPolicyIngressRule {
            // None: everybody.
            from: (!clients.is_empty()).then(|| [clients, vec![brokers.clone()]].concat()),
            ports: on(pod::GRPC),
        },
        // Health and metrics say nothing of records; probes come from the node.
        NetworkPolicyIngressRule { from: None, ports: on(pod::HTTP) },
        NetworkPolicyIngressRule { from: Some(vec![brokers, operator]), ports: on(pod::PEERS_NAME) },
    ]
}
