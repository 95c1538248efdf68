//! The three Services: each pod by name, any pod that is ready, and the one that leads.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{Service, ServicePort, ServiceSpec},
    apimachinery::pkg::util::intstr::IntOrString,
};

use super::{meta, pod};
use crate::{
    api::databroker::{ServiceType, TlsMode},
    reconcile::validate::Valid,
};

fn port(name: &str, number: i32, target: &str) -> ServicePort {
    ServicePort {
        name: Some(name.into()),
        port: number,
        target_port: Some(IntOrString::String(target.into())),
        protocol: Some("TCP".into()),
        ..ServicePort::default()
    }
}

fn grpc(valid: &Valid, number: i32) -> ServicePort {
    // For meshes and proxies: https://kubernetes.io/docs/concepts/services-networking/service/#application-protocol
    let protocol = match valid.spec.tls.mode {
        TlsMode::SelfManaged => "https",
        TlsMode::Disabled => "kubernetes.io/h2c",
    };
    ServicePort { app_protocol: Some(protocol.into()), ..port(pod::GRPC, number, pod::GRPC) }
}

/// Finds each pod by name, also before it is ready: members find each other through it.
pub fn headless(valid: &Valid) -> Service {
    Service {
        metadata: meta::owned(valid, meta::headless(&valid.name)),
        spec: Some(ServiceSpec {
            cluster_ip: Some("None".into()),
            publish_not_ready_addresses: Some(true),
            selector: Some(meta::selector_labels(&valid.name)),
            ports: Some(vec![
                grpc(valid, pod::GRPC_PORT),
                port(pod::HTTP, pod::HTTP_PORT, pod::HTTP),
                port(pod::PEERS_NAME, pod::PEERS_PORT, pod::PEERS_NAME),
            ]),
            ..ServiceSpec::default()
        }),
        ..Service::default()
    }
}

/// For clients: any broker takes any request.
pub fn client(valid: &Valid) -> Service {
    let wanted = &valid.spec.service;
    let annotations = (!wanted.annotations.is_empty()).then(|| wanted.annotations.clone());
    let mut service = balanced(valid, valid.name.clone(), wanted.port, BTreeMap::new());
    service.metadata.annotations = annotations;
    if let Some(spec) = &mut service.spec {
        spec.type_ = Some(wanted.kind.as_str().into());
    }
    service
}

/// Finds the leader: for those who want to save a hop, and do not mind that it is a moment late.
pub fn leader(valid: &Valid) -> Service {
    let label = (meta::ROLE_LABEL.to_owned(), meta::LEADER.to_owned());
    let mut service = balanced(valid, meta::leader(&valid.name), valid.spec.service.port, BTreeMap::from([label]));
    if let Some(spec) = &mut service.spec {
        spec.type_ = Some(ServiceType::ClusterIP.as_str().into());
    }
    service
}

fn balanced(valid: &Valid, name: String, number: i32, more: BTreeMap<String, String>) -> Service {
    let mut selector = meta::selector_labels(&valid.name);
    selector.extend(more);
    Service {
        metadata: meta::owned(valid, name),
        spec: Some(ServiceSpec {
            selector: Some(selector),
            ports: Some(vec![grpc(valid, number)]),
            ..ServiceSpec::default()
        }),
        ..Service::default()
    }
}
