//! The brokers' configuration file. The keys are the broker's: a test there pins those that are used here.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::ConfigMap;
use serde_json::json;
use sha2::{Digest as _, Sha256};

use super::{meta, pod};
use crate::{
    api::databroker::{Durability, TlsMode},
    reconcile::validate::Valid,
};

/// The file's name.
pub const FILE: &str = "databroker.yaml";

/// What the broker leaves of the pod's grace period, in seconds: time to write down what is in memory and to exit.
const RESERVE_SECONDS: i64 = 2;

/// The configuration.
pub fn build(valid: &Valid) -> ConfigMap {
    // JSON is YAML, and has no words that one reader takes for text and another for a boolean.
    let text = serde_json::to_string_pretty(&keys(valid)).unwrap_or_default() + "\n";
    ConfigMap {
        metadata: meta::owned(valid, meta::config_map(&valid.name)),
        data: Some(BTreeMap::from([(FILE.to_owned(), text)])),
        ..ConfigMap::default()
    }
}

/// What is left of the pod's grace period for the broker to stop in.
fn stopping_seconds(grace_seconds: i64) -> i64 {
    (grace_seconds - pod::LINGER_SECONDS - RESERVE_SECONDS).max(1)
}

fn keys(valid: &Valid) -> BTreeMap<&'static str, serde_json::Value> {
    let spec = &valid.spec;
    let mut keys = BTreeMap::from([
        ("grpc_address", json!(format!(":{}", pod::GRPC_PORT))),
        ("health_check_addr", json!(format!(":{}", pod::HTTP_PORT))),
        ("log_format", json!("json")),
        ("shared_secret_file", json!(format!("{}/{}", pod::SHARED_SECRET, pod::SHARED_SECRET_FILE))),
        ("databroker_storage_type", json!(if spec.storage.ephemeral { "memory" } else { "file" })),
        ("databroker_storage_connection_string", json!(format!("file://{}", pod::DATA))),
        (
            "durability",
            json!(match spec.durability {
                Durability::Fsync => "fsync",
                Durability::Os => "os",
            }),
        ),
        ("databroker_cluster_name", json!(meta::cluster(valid))),
        ("databroker_cluster_bootstrap", json!("explicit")),
        ("databroker_cluster_discovery", json!(format!("dns://{}:{}", meta::domain(valid), pod::PEERS_PORT))),
        ("databroker_raft_bind_address", json!(format!(":{}", pod::PEERS_PORT))),
        ("databroker_peer_ca_file", json!(format!("{}/ca.crt", pod::PEERS))),
        ("shutdown_grace_period", json!(format!("{}s", stopping_seconds(spec.termination_grace_period_seconds)))),
    ]);
    match spec.tls.mode {
        TlsMode::SelfManaged => {
            keys.insert("certificate_file", json!(format!("{}/tls.crt", pod::TLS)));
            keys.insert("certificate_key_file", json!(format!("{}/tls.key", pod::TLS)));
        }
        TlsMode::Disabled => _ = keys.insert("grpc_insecure", json!(true)),
    }
    let election = &spec.election;
    for (key, value) in [
        ("databroker_raft_heartbeat_interval", &election.heartbeat_interval),
        ("databroker_raft_election_timeout_min", &election.election_timeout_min),
        ("databroker_raft_election_timeout_max", &election.election_timeout_max),
    ] {
        if let Some(value) = value {
            keys.insert(key, json!(value));
        }
    }
    keys
}

/// What a broker has to be restarted for.
pub fn digest(config_map: &ConfigMap) -> String {
    let mut hasher = Sha256::new();
    for (key, value) in config_map.data.iter().flatten() {
        for part in [key, value] {
            hasher.update((part.len() as u64).to_be_bytes());
            hasher.update(part);
        }
    }
    hasher.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}
