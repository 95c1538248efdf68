//! Claims about the configuration as a whole.

use std::io::Write as _;

use clap::{Args as _, FromArgMatches as _};

use super::*;

const SECRET: &str = "BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=";

fn flags(args: &[&str]) -> Flags {
    let command = Flags::augment_args(clap::Command::new("databroker")).no_binary_name(true);
    Flags::from_arg_matches(&command.try_get_matches_from(args).unwrap()).unwrap()
}

fn load(args: &[&str], environment: &[(&str, &str)]) -> Result<Config, Error> {
    let read = |name: &str| environment.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
    Config::from_settings(&Settings::gather(&flags(args), read)?)
}

fn file(content: &str) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(content.as_bytes()).unwrap();
    file
}

fn load_file(content: &str) -> Result<Config, Error> {
    let file = file(content);
    load(&["--config", file.path().to_str().unwrap()], &[])
}

fn error(result: Result<Config, Error>) -> String {
    result.unwrap_err().to_string()
}

#[test]
fn the_defaults_are_a_broker_on_loopback() {
    let config = load(&[], &[]).unwrap();
    assert_eq!(config.grpc.address.to_string(), "127.0.0.1:5443");
    assert_eq!(config.http.health.to_string(), "127.0.0.1:28080");
    assert_eq!(config.storage.folder, PathBuf::from("./databroker-data"));
    assert_eq!(config.storage.medium, Medium::File);
    assert_eq!(config.storage.durability, Durability::Fsync);
    assert_eq!(config.storage.change_log_retention, Duration::from_secs(3600));
    assert_eq!(config.cluster.bootstrap, Bootstrap::Auto);
    assert_eq!(config.grpc.limits.request_bytes_max, 64 << 20);
}

#[test]
fn flags_win_over_environment_over_file_over_default() {
    let file = file("grpc_address: 127.0.0.1:1\nhealth_check_addr: 127.0.0.1:2\nmetrics_address: 127.0.0.1:3\n");
    let config = load(
        &["--config", file.path().to_str().unwrap(), "--grpc-address", "127.0.0.1:7"],
        &[("GRPC_ADDRESS", "127.0.0.1:8"), ("HEALTH_CHECK_ADDR", "127.0.0.1:9")],
    );
    let config = config.unwrap();
    assert_eq!(config.grpc.address.port(), 7);
    assert_eq!(config.http.health.port(), 9);
    assert_eq!(config.http.metrics.unwrap().port(), 3);
}

#[test]
fn an_unknown_key_names_file_line_and_nearest_key() {
    let text = error(load_file("\ngrpc_adress: 127.0.0.1:1\n"));
    assert!(text.contains(":2: there is no key `grpc_adress`; did you mean `grpc_address`?"), "{text}");
    assert!(!error(load_file("zzz: 1")).contains("did you mean"));
}

#[test]
fn an_invalid_value_names_key_and_source() {
    let text = error(load_file("log_level: info\ngrpc_address: nowhere\n"));
    assert!(text.starts_with("`grpc_address` (") && text.contains(":2) is not valid"), "{text}");
    let text = error(load(&[], &[("DURABILITY", "maybe")]));
    assert_eq!(text, "`durability` (environment DURABILITY) is not valid: one of fsync, os is wanted");
}

#[test]
fn postgres_says_how_to_move() {
    let text = error(load(&["--databroker-storage-type=postgres"], &[]));
    assert!(text.contains("databroker export") && text.contains("databroker import"), "{text}");
}

#[test]
fn plaintext_beyond_loopback_has_to_be_wanted() {
    assert!(error(load(&["--grpc-address=:5443"], &[])).contains("grpc_insecure: true"));
    load(&["--grpc-address=:5443", "--grpc-insecure"], &[]).unwrap();
    load(&["--grpc-address=:5443", "--certificate-file=c", "--certificate-key-file=k"], &[]).unwrap();
    load(&["--grpc-address=[::1]:0"], &[]).unwrap();
    assert!(error(load(&["--certificate-file=c"], &[])).contains("`certificate_key_file` is not"));
    assert!(error(load(&["--certificate-key-file=k"], &[])).contains("`certificate_file` is not"));
}

/// A cluster's flags: node `a` of the given ones.
fn cluster_of(ids: &[&str], more: &[&str]) -> Result<Config, Error> {
    let node =
        |(at, id): (usize, &&str)| format!(r#"{{"id":"{id}","grpc_address":"http://h:1","raft_address":"h{at}:2"}}"#);
    let nodes = ids.iter().enumerate().map(node).collect::<Vec<_>>().join(",");
    let nodes = [("DATABROKER_CLUSTER_NODES", format!("[{nodes}]"))];
    let nodes: Vec<_> = nodes.iter().map(|(key, value)| (*key, value.as_str())).collect();
    load(&[&["--databroker-cluster-node-id=a"], more].concat(), &nodes)
}

#[test]
fn half_a_cluster_is_an_error_that_says_what_to_do() {
    assert!(error(load(&["--databroker-raft-bind-address=:1"], &[])).starts_with("NO_CLUSTER_NODE_ID"));
    assert!(error(load(&["--databroker-cluster-discovery=dns://h:1"], &[])).starts_with("NO_CLUSTER_NODE_ID"));
    assert!(error(load(&["--databroker-cluster-node-id=a"], &[])).starts_with("NO_CLUSTER_NODES"));
    for (ids, more, part) in [
        (&["b", "c"][..], &[][..], "not in `databroker_cluster_nodes`: add it"),
        (&["a", "b", "a"], &[], "names `a` twice"),
        (&["a", "b/c"], &[], "`b/c`: a name of letters"),
        (&["a", "b"], &["--databroker-cluster-bootstrap=auto"], "cluster init"),
        (&["a", "b"], &["--databroker-peer-ca-file=f"], "set all three"),
        (&["a", "b"], &["--databroker-raft-advertise-address=h:1"], "leave out one of them"),
        (&["a"], &["--databroker-raft-election-timeout-min=150ms"], "at least twice"),
        (&["a"], &["--databroker-raft-election-timeout-max=300ms"], "elect nobody"),
        (&["a"], &["--databroker-raft-heartbeat-interval=1ms"], "at least 10ms"),
        (&["a"], &["--databroker-max-clock-skew=500ms"], "at least 1s"),
        (&["a"], &["--databroker-raft-log-bytes-kept=2048GiB"], "at most 1024GiB"),
    ] {
        let text = error(cluster_of(ids, more));
        assert!(text.contains(part), "{text}");
    }
    let discovery = ["--databroker-cluster-node-id=a", "--databroker-cluster-discovery=dns://peers:5999"];
    assert!(error(load(&discovery, &[])).contains("`databroker_raft_advertise_address`"));
    let same = "databroker_cluster_node_id: a\ndatabroker_cluster_nodes:\n  - {id: a, grpc_address: g, raft_address: \
                h:1}\n  - {id: b, grpc_address: g, raft_address: h:1}\n";
    assert!(error(load_file(same)).contains("for both `a` and `b`"));
}

#[test]
fn a_cluster_waits_to_be_founded_and_listens_for_peers() {
    let cluster = cluster_of(&["a", "b", "c"], &[]).unwrap().cluster;
    assert_eq!(cluster.bootstrap, Bootstrap::Explicit);
    assert_eq!(cluster.raft_bind_address.unwrap().to_string(), "[::]:5999");
    assert_eq!(cluster.advertised.as_ref().unwrap().raft_address, "h0:2");
    assert_eq!((cluster.name.as_str(), cluster.peer_files.as_ref()), ("databroker", None));
    assert_eq!(cluster.timers.election_min, Duration::from_millis(300));
    assert_eq!(cluster.max_clock_skew, Duration::from_secs(5));
    let patient = cluster_of(&["a", "b", "c"], &["--databroker-max-clock-skew=1m"]).unwrap().cluster;
    assert_eq!(patient.max_clock_skew, Duration::from_secs(60));
    assert_eq!((cluster.log_bytes_kept, patient.log_bytes_kept), (32 << 20, 32 << 20));
    let keeps = cluster_of(&["a", "b", "c"], &["--databroker-raft-log-bytes-kept=1GiB"]).unwrap().cluster;
    assert_eq!(keeps.log_bytes_kept, 1 << 30);

    let flags = [
        "--databroker-cluster-node-id=a",
        "--databroker-cluster-discovery=dns://peers:5999",
        "--databroker-raft-advertise-address=a.peers:5999",
    ];
    let cluster = load(&flags, &[]).unwrap().cluster;
    assert_eq!(cluster.discovery, Some(Discovery { host: "peers".into(), port: 5999 }));
    assert_eq!(cluster.bootstrap, Bootstrap::Explicit);
    assert!(cluster.raft_bind_address.is_some());

    let alone = load(&[], &[]).unwrap().cluster;
    assert_eq!((alone.bootstrap, alone.raft_bind_address), (Bootstrap::Auto, None));
}

#[test]
fn cluster_nodes_are_a_list_in_the_file() {
    let text =
        "databroker_cluster_node_id: a\ndatabroker_cluster_nodes:\n  - {id: a, grpc_address: g, raft_address: r:1}\n";
    let config = load_file(text).unwrap();
    assert_eq!(config.cluster.nodes.len(), 1);
}

#[test]
fn a_secret_is_shown_nowhere() {
    let environment = |name: &str| (name == "SHARED_SECRET").then(|| SECRET.to_owned());
    let printed = describe(&flags(&[]), environment).unwrap();
    assert!(printed.contains("shared_secret: \"[redacted]\"  # environment SHARED_SECRET"), "{printed}");
    let config = load(&[], &[("SHARED_SECRET", SECRET)]).unwrap();
    for shown in [printed, format!("{config:?}"), error(load(&[], &[("SHARED_SECRET", &SECRET[1..])]))] {
        assert!(!shown.contains("BwcH"), "{shown}");
    }
}

#[test]
fn a_key_given_twice_is_an_error() {
    let text = error(load(&["--shared-secret-file=f"], &[("SHARED_SECRET", SECRET)]));
    assert!(text.contains("both `shared_secret` and `shared_secret_file`"), "{text}");
}

#[test]
fn what_is_printed_can_be_read_again() {
    let printed = describe(&flags(&["--log-format=json", "--change-log-retention=2h"]), |_| None).unwrap();
    let config = load_file(&printed).unwrap();
    assert_eq!(config.log.format, LogFormat::Json);
    assert_eq!(config.storage.change_log_retention, Duration::from_secs(7200));
}

#[test]
fn a_file_that_is_no_mapping_is_not_repeated_in_the_error() {
    let text = error(load_file(SECRET));
    assert!(text.contains("`key: value`") && !text.contains("BwcH"), "{text}");
    load_file("").unwrap();
}

/// The file is what the operator's own test holds its configuration against; the environment is that of its pods.
#[test]
fn what_the_operator_writes_is_understood() {
    let keys = include_str!("../../../operator/src/resources/broker.json");
    let file = file(keys);
    let environment = [
        ("DATABROKER_CLUSTER_NODE_ID", "main-0"),
        ("DATABROKER_RAFT_ADVERTISE_ADDRESS", "main-0.main-headless.access.svc:5999"),
        ("DATABROKER_GRPC_ADVERTISE_ADDRESS", "https://main-0.main-headless.access.svc:5443"),
        ("DATABROKER_PEER_CERTIFICATE_FILE", "/etc/databroker/peers/main-0.crt"),
        ("DATABROKER_PEER_CERTIFICATE_KEY_FILE", "/etc/databroker/peers/main-0.key"),
    ];
    let config = load(&["--config", file.path().to_str().unwrap()], &environment).unwrap();
    assert_eq!(config.cluster.node.as_deref(), Some("main-0"));
    assert_eq!(config.cluster.bootstrap, Bootstrap::Explicit);
    assert!(config.cluster.peer_files.is_some() && config.grpc.tls.is_some());
    let plain = keys.replace("\"certificate_file\": \"/etc/databroker/tls/tls.crt\",", "\"grpc_insecure\": true,");
    let plain = plain.replace("\"certificate_key_file\": \"/etc/databroker/tls/tls.key\",", "");
    let file = self::file(&plain.replace("\"file\"", "\"memory\""));
    load(&["--config", file.path().to_str().unwrap()], &environment).unwrap();
}
