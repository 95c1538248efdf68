//! The brokers' pod: one container, its probes and its files. It meets the Pod Security Standard *restricted*.
//!
//! Depends on the spec and the broker's image alone: whatever else changed it would restart brokers.

use k8s_openapi::{
    api::core::v1::{
        Capabilities, ConfigMapVolumeSource, Container, ContainerPort, EmptyDirVolumeSource, EnvVar, EnvVarSource,
        HTTPGetAction, KeyToPath, Lifecycle, LifecycleHandler, ObjectFieldSelector, PodSecurityContext, PodSpec,
        PodTemplateSpec, Probe, ResourceRequirements, SeccompProfile, SecretVolumeSource, SecurityContext, SleepAction,
        TopologySpreadConstraint, Volume, VolumeMount,
    },
    apimachinery::pkg::{api::resource::Quantity, apis::meta::v1::ObjectMeta, util::intstr::IntOrString},
};

use super::{config_map, meta};
use crate::{api::databroker::ImagePullPolicy, reconcile::validate::Valid};

/// The container.
pub const CONTAINER: &str = "databroker";

/// For clients.
pub const GRPC_PORT: i32 = 5443;
/// For probes and metrics.
pub const HTTP_PORT: i32 = 28080;
/// For brokers among themselves, and the operator.
pub const PEERS_PORT: i32 = 5999;
/// What [`GRPC_PORT`] is called.
pub const GRPC: &str = "grpc";
/// What [`HTTP_PORT`] is called.
pub const HTTP: &str = "http";
/// What [`PEERS_PORT`] is called.
pub const PEERS_NAME: &str = "peers";

/// Where the data is mounted.
pub const DATA: &str = "/data";
/// The configuration.
pub const CONFIG: &str = "/etc/databroker/config";
/// The shared secret.
pub const SHARED_SECRET: &str = "/etc/databroker/shared-secret";
/// Certificates of brokers.
pub const PEERS: &str = "/etc/databroker/peers";
/// The certificate for clients.
pub const TLS: &str = "/etc/databroker/tls";

/// What the key of the shared secret is called in the pod, whatever it is called in the Secret.
pub const SHARED_SECRET_FILE: &str = "shared_secret";

/// The volume of the data, as a claim template or an empty directory.
pub const DATA_VOLUME: &str = "data";

/// How long a pod that is to stop goes on as if nothing were: until every node has heard that the Services do not lead to
/// it any more. New connections would be refused in the meantime.
pub const LINGER_SECONDS: i64 = 3;

/// Nobody in particular. The image's user, too.
const USER: i64 = 65532;

/// On the pod: what it was configured with. A change rolls.
const CONFIG_ANNOTATION: &str = "databroker.dev/config";

/// The template.
pub fn template(valid: &Valid, config_digest: &str) -> PodTemplateSpec {
    let mut labels = valid.spec.pod_labels.clone();
    labels.extend(meta::labels(&valid.name));
    let mut annotations = valid.spec.pod_annotations.clone();
    annotations.insert(CONFIG_ANNOTATION.into(), config_digest.into());
    PodTemplateSpec {
        metadata: Some(ObjectMeta { labels: Some(labels), annotations: Some(annotations), ..ObjectMeta::default() }),
        spec: Some(spec(valid)),
    }
}

fn spec(valid: &Valid) -> PodSpec {
    let spec = &valid.spec;
    PodSpec {
        containers: vec![container(valid)],
        volumes: Some(volumes(valid)),
        service_account_name: Some(valid.name.clone()),
        automount_service_account_token: Some(false),
        enable_service_links: Some(false),
        termination_grace_period_seconds: Some(spec.termination_grace_period_seconds),
        security_context: Some(PodSecurityContext {
            run_as_non_root: Some(true),
            run_as_user: Some(USER),
            run_as_group: Some(USER),
            fs_group: Some(USER),
            fs_group_change_policy: Some("OnRootMismatch".into()),
            seccomp_profile: Some(SeccompProfile { type_: "RuntimeDefault".into(), localhost_profile: None }),
            ..PodSecurityContext::default()
        }),
        image_pull_secrets: some(spec.image_pull_secrets.clone()),
        affinity: spec.affinity.clone(),
        topology_spread_constraints: Some(spread(valid)),
        node_selector: (!spec.node_selector.is_empty()).then(|| spec.node_selector.clone()),
        tolerations: some(spec.tolerations.clone()),
        priority_class_name: spec.priority_class_name.clone(),
        ..PodSpec::default()
    }
}

fn some<T>(list: Vec<T>) -> Option<Vec<T>> {
    (!list.is_empty()).then_some(list)
}

/// Over hosts and zones where that is possible.
fn spread(valid: &Valid) -> Vec<TopologySpreadConstraint> {
    let selector = || Some(meta::selector(&valid.name));
    match &valid.spec.topology_spread_constraints {
        Some(wanted) => wanted
            .iter()
            .cloned()
            .map(|mut constraint| {
                constraint.label_selector = constraint.label_selector.or_else(selector);
                constraint
            })
            .collect(),
        None => ["topology.kubernetes.io/zone", "kubernetes.io/hostname"]
            .map(|key| TopologySpreadConstraint {
                max_skew: 1,
                topology_key: key.into(),
                when_unsatisfiable: "ScheduleAnyway".into(),
                label_selector: selector(),
                ..TopologySpreadConstraint::default()
            })
            .into(),
    }
}

fn container(valid: &Valid) -> Container {
    Container {
        name: CONTAINER.into(),
        image: Some(valid.image.clone()),
        image_pull_policy: valid.spec.image_pull_policy.map(|policy: ImagePullPolicy| policy.as_str().to_owned()),
        args: Some(vec!["serve".into(), "--config".into(), format!("{CONFIG}/{}", config_map::FILE)]),
        env: Some(environment(valid)),
        ports: Some(
            [(GRPC, GRPC_PORT), (HTTP, HTTP_PORT), (PEERS_NAME, PEERS_PORT)]
                .map(|(name, port)| ContainerPort {
                    name: Some(name.into()),
                    container_port: port,
                    protocol: Some("TCP".into()),
                    ..ContainerPort::default()
                })
                .into(),
        ),
        resources: Some(valid.spec.resources.clone().unwrap_or_else(resources)),
        // Opening a store after a crash reads its journals: minutes at worst.
        startup_probe: Some(Probe { period_seconds: Some(1), failure_threshold: Some(600), ..probe("/startupz") }),
        readiness_probe: Some(Probe { period_seconds: Some(2), failure_threshold: Some(2), ..probe("/readyz") }),
        liveness_probe: Some(Probe { period_seconds: Some(10), failure_threshold: Some(6), ..probe("/healthz") }),
        lifecycle: Some(Lifecycle {
            pre_stop: Some(LifecycleHandler {
                sleep: Some(SleepAction { seconds: LINGER_SECONDS }),
                ..LifecycleHandler::default()
            }),
            ..Lifecycle::default()
        }),
        security_context: Some(SecurityContext {
            allow_privilege_escalation: Some(false),
            read_only_root_filesystem: Some(true),
            capabilities: Some(Capabilities { drop: Some(vec!["ALL".into()]), add: None }),
            ..SecurityContext::default()
        }),
        volume_mounts: Some(mounts(valid)),
        // What a broker that ends says last is in its pod's status then, and the operator repeats it.
        termination_message_policy: Some("FallbackToLogsOnError".into()),
        ..Container::default()
    }
}

fn resources() -> ResourceRequirements {
    let requests = [("cpu", "100m"), ("memory", "128Mi")].map(|(key, value)| (key.to_owned(), Quantity(value.into())));
    ResourceRequirements { requests: Some(requests.into()), ..ResourceRequirements::default() }
}

fn probe(path: &str) -> Probe {
    Probe {
        http_get: Some(HTTPGetAction {
            path: Some(path.into()),
            port: IntOrString::String(HTTP.into()),
            ..HTTPGetAction::default()
        }),
        timeout_seconds: Some(1),
        ..Probe::default()
    }
}

/// What differs from pod to pod: who it is, and where it is found.
fn environment(valid: &Valid) -> Vec<EnvVar> {
    let field = EnvVarSource {
        field_ref: Some(ObjectFieldSelector { field_path: "metadata.name".into(), api_version: None }),
        ..EnvVarSource::default()
    };
    let own = |key: &str, value: String| EnvVar { name: key.into(), value: Some(value), value_from: None };
    let host = format!("$(POD_NAME).{}", meta::domain(valid));
    let scheme = valid.scheme();
    vec![
        EnvVar { name: "POD_NAME".into(), value: None, value_from: Some(field) },
        own("DATABROKER_CLUSTER_NODE_ID", "$(POD_NAME)".into()),
        own("DATABROKER_RAFT_ADVERTISE_ADDRESS", format!("{host}:{PEERS_PORT}")),
        own("DATABROKER_GRPC_ADVERTISE_ADDRESS", format!("{scheme}://{host}:{GRPC_PORT}")),
        own("DATABROKER_PEER_CERTIFICATE_FILE", format!("{PEERS}/$(POD_NAME).crt")),
        own("DATABROKER_PEER_CERTIFICATE_KEY_FILE", format!("{PEERS}/$(POD_NAME).key")),
        // For the tools, so that `kubectl exec` needs no flags.
        own("DATABROKER_DATA_DIR", DATA.into()),
        own("DATABROKER_ADDRESS", format!("{scheme}://{host}:{GRPC_PORT}")),
        own("DATABROKER_CA_FILE", format!("{PEERS}/ca.crt")),
        own("SHARED_SECRET_FILE", format!("{SHARED_SECRET}/{SHARED_SECRET_FILE}")),
    ]
}

fn mounts(valid: &Valid) -> Vec<VolumeMount> {
    let mount = |name: &str, path: &str, read_only: bool| VolumeMount {
        name: name.into(),
        mount_path: path.into(),
        // The API server leaves out what is false: it would differ for ever.
        read_only: read_only.then_some(true),
        ..VolumeMount::default()
    };
    let mut mounts = vec![
        mount(DATA_VOLUME, DATA, false),
        mount("config", CONFIG, true),
        mount("shared-secret", SHARED_SECRET, true),
        mount("peers", PEERS, true),
    ];
    if valid.has_tls() {
        mounts.push(mount("tls", TLS, true));
    }
    mounts
}

fn volumes(valid: &Valid) -> Vec<Volume> {
    let secret = |name: &str, secret: String, items: Option<Vec<KeyToPath>>| Volume {
        name: name.into(),
        // The broker's user reads through its group.
        secret: Some(SecretVolumeSource {
            secret_name: Some(secret),
            default_mode: Some(0o440),
            items,
            ..SecretVolumeSource::default()
        }),
        ..Volume::default()
    };
    let (shared_secret, key) = valid.shared_secret();
    let item = KeyToPath { key, path: SHARED_SECRET_FILE.into(), mode: None };
    let mut volumes = vec![
        Volume {
            name: "config".into(),
            config_map: Some(ConfigMapVolumeSource {
                name: meta::config_map(&valid.name),
                ..ConfigMapVolumeSource::default()
            }),
            ..Volume::default()
        },
        secret("shared-secret", shared_secret, Some(vec![item])),
        secret("peers", meta::peers(&valid.name), None),
    ];
    if valid.has_tls() {
        let items = ["tls.crt", "tls.key"].map(|key| KeyToPath { key: key.into(), path: key.into(), mode: None });
        volumes.push(secret("tls", meta::tls(&valid.name), Some(items.into())));
    }
    if valid.spec.storage.ephemeral {
        volumes.push(Volume {
            name: DATA_VOLUME.into(),
            empty_dir: Some(EmptyDirVolumeSource::default()),
            ..Volume::default()
        });
    }
    volumes
}
