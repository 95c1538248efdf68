//! The keys of a cluster: who this node is, who the others are, and how they prove it.
//!
//! Half a cluster configuration must never start a store of its own beside the real one: what does not fit together is
//! an error that says what to do.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use serde::Deserialize;

use super::{Error, keys, optional, required, settings::Settings, values};

/// Where peers connect if there are any, and nothing else is said.
const RAFT_PORT: u16 = 5999;

/// The cluster this node is part of.
#[derive(Clone, Debug)]
pub struct Cluster {
    /// The cluster's name, as it stands in the certificates of its members.
    pub name: String,
    /// This node's name.
    pub node: Option<String>,
    /// All nodes, this one included; empty: none but this one, or as many as `discovery` finds.
    pub nodes: Vec<ClusterNode>,
    /// Where other nodes are found.
    pub discovery: Option<Discovery>,
    /// Where other nodes connect; absent: nowhere.
    pub raft_bind_address: Option<SocketAddr>,
    /// Where the others reach this node: `host:port`, and a URL. Known if `raft_bind_address` is.
    pub advertised: Option<Advertised>,
    /// The certificate for peers; absent: one is made from the shared secret.
    pub peer_files: Option<PeerFiles>,
    /// How an empty node begins.
    pub bootstrap: Bootstrap,
    /// When a leader is missed.
    pub timers: Timers,
    /// Bytes of the log that stay for nodes that are behind.
    pub log_bytes_kept: u64,
    /// How long a request waits for a leader.
    pub hold: Duration,
    /// How far clocks may differ before something is done about it.
    pub max_clock_skew: Duration,
}

/// A node of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, serde::Serialize)]
#[serde(deny_unknown_fields)]
pub struct ClusterNode {
    /// Its name.
    pub id: String,
    /// Its gRPC interface, as a URL.
    pub grpc_address: String,
    /// Its address for other nodes, `host:port`.
    pub raft_address: String,
}

/// A name that stands for the addresses of all nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Discovery {
    /// The host's name.
    pub host: String,
    /// The port for peers.
    pub port: u16,
}

/// Where others reach this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Advertised {
    /// Peers: `host:port`.
    pub raft_address: String,
    /// Clients: a URL. May be empty.
    pub grpc_address: String,
}

/// What this node shows to its peers and whom it trusts, as PEM files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerFiles {
    /// The authorities that are trusted.
    pub ca: PathBuf,
    /// The node's certificate chain.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// How an empty node begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bootstrap {
    /// It makes itself a cluster of one.
    Auto,
    /// It waits to be told.
    Explicit,
}

/// When a leader is missed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timers {
    /// How often it says that it is there.
    pub heartbeat: Duration,
    /// How long followers wait at least.
    pub election_min: Duration,
    /// How long they wait at most.
    pub election_max: Duration,
}

/// Reads the keys, and checks that they go together.
pub(super) fn cluster(settings: &Settings) -> Result<Cluster, Error> {
    let nodes = settings.get(&keys::CLUSTER_NODES, values::cluster_nodes)?.unwrap_or_default();
    let discovery = optional(settings, &keys::CLUSTER_DISCOVERY, values::discovery)?;
    let node = optional(settings, &keys::CLUSTER_NODE_ID, values::name)?;
    let bind = optional(settings, &keys::RAFT_BIND_ADDRESS, values::address)?;
    check_members(node.as_deref(), &nodes, discovery.is_some(), bind.is_some())?;
    let clustered = !nodes.is_empty() || discovery.is_some();
    let everywhere = SocketAddr::from((std::net::Ipv6Addr::UNSPECIFIED, RAFT_PORT));
    let alone = nodes.len() < 2 && discovery.is_none();
    Ok(Cluster {
        name: required(settings, &keys::CLUSTER_NAME, values::name)?,
        advertised: advertised(settings, node.as_deref(), &nodes, discovery.is_some())?,
        node,
        nodes,
        discovery,
        raft_bind_address: bind.or(clustered.then_some(everywhere)),
        peer_files: peer_files(settings)?,
        bootstrap: bootstrap(settings, alone)?,
        timers: timers(settings)?,
        log_bytes_kept: log_bytes_kept(settings)?,
        hold: required(settings, &keys::HOLD, values::duration)?,
        max_clock_skew: max_clock_skew(settings)?,
    })
}

fn conflict<T>(text: impl Into<String>) -> Result<T, Error> {
    Err(Error::Conflict(text.into()))
}

fn check_members(name: Option<&str>, nodes: &[ClusterNode], discovery: bool, bound: bool) -> Result<(), Error> {
    let Some(name) = name else {
        if nodes.is_empty() && !bound && !discovery {
            return Ok(());
        }
        return conflict(
            "NO_CLUSTER_NODE_ID: `databroker_cluster_node_id` is required but not set: give this node's name",
        );
    };
    if nodes.is_empty() && !discovery {
        return conflict(
            "NO_CLUSTER_NODES: `databroker_cluster_nodes` is required but not set: list all nodes, this one included, or \
             set `databroker_cluster_discovery`",
        );
    }
    check_list(nodes)?;
    if !discovery && !nodes.iter().any(|node| node.id == name) {
        return conflict(format!(
            "`databroker_cluster_node_id` is `{name}`, which is not in `databroker_cluster_nodes`: add it, or correct it"
        ));
    }
    Ok(())
}

/// The list itself makes sense.
fn check_list(nodes: &[ClusterNode]) -> Result<(), Error> {
    for (index, node) in nodes.iter().enumerate() {
        let before = &nodes[..index];
        if before.iter().any(|other| other.id == node.id) {
            return conflict(format!("`databroker_cluster_nodes` names `{}` twice", node.id));
        }
        if let Some(other) = before.iter().find(|other| other.raft_address == node.raft_address) {
            return conflict(format!(
                "`databroker_cluster_nodes` has the raft_address {} for both `{}` and `{}`",
                node.raft_address, other.id, node.id
            ));
        }
        let named = |reason: String| Error::Conflict(format!("`databroker_cluster_nodes`, `{}`: {reason}", node.id));
        values::name(&node.id).map_err(named)?;
        values::host_and_port(&node.raft_address).map_err(|reason| named(format!("raft_address: {reason}")))?;
    }
    Ok(())
}

/// What stands in the list, or else what is given for this node alone.
fn advertised(
    settings: &Settings,
    name: Option<&str>,
    nodes: &[ClusterNode],
    discovery: bool,
) -> Result<Option<Advertised>, Error> {
    let raft = optional(settings, &keys::RAFT_ADVERTISE_ADDRESS, values::host_and_port)?;
    let grpc = optional(settings, &keys::GRPC_ADVERTISE_ADDRESS, |text| Ok(text.to_owned()))?;
    match (nodes.iter().find(|node| Some(node.id.as_str()) == name), raft) {
        (Some(_), Some(_)) => conflict(
            "`databroker_raft_advertise_address` is set, but `databroker_cluster_nodes` has this node's address: leave \
             out one of them",
        ),
        (Some(node), None) => {
            let grpc_address = grpc.unwrap_or_else(|| node.grpc_address.clone());
            Ok(Some(Advertised { raft_address: node.raft_address.clone(), grpc_address }))
        }
        (None, Some(raft_address)) => Ok(Some(Advertised { raft_address, grpc_address: grpc.unwrap_or_default() })),
        (None, None) if discovery => conflict(
            "with `databroker_cluster_discovery`, set `databroker_raft_advertise_address` to the address at which the \
             other nodes reach this one",
        ),
        (None, None) => Ok(None),
    }
}

fn peer_files(settings: &Settings) -> Result<Option<PeerFiles>, Error> {
    let ca = optional(settings, &keys::PEER_CA_FILE, values::path)?;
    let certificate = optional(settings, &keys::PEER_CERTIFICATE_FILE, values::path)?;
    let key = optional(settings, &keys::PEER_CERTIFICATE_KEY_FILE, values::path)?;
    match (ca, certificate, key) {
        (Some(ca), Some(certificate), Some(key)) => Ok(Some(PeerFiles { ca, certificate, key })),
        (None, None, None) => Ok(None),
        _ => conflict(
            "`databroker_peer_ca_file`, `databroker_peer_certificate_file` and `databroker_peer_certificate_key_file` \
             belong together: set all three (`databroker certs` makes them), or none to use the shared secret",
        ),
    }
}

fn bootstrap(settings: &Settings, alone: bool) -> Result<Bootstrap, Error> {
    let said = optional(settings, &keys::CLUSTER_BOOTSTRAP, |text| {
        values::choice(text, &[("auto", Bootstrap::Auto), ("explicit", Bootstrap::Explicit)])
    })?;
    match said {
        Some(Bootstrap::Auto) if !alone => conflict(
            "`databroker_cluster_bootstrap: auto` would make every node a cluster of its own: leave it out, and run \
             `databroker cluster init` once",
        ),
        Some(said) => Ok(said),
        None if alone => Ok(Bootstrap::Auto),
        None => Ok(Bootstrap::Explicit),
    }
}

/// A message may be a while on its way, and makes its sender's clock seem to be behind: less would be a false alarm.
const CLOCK_SKEW_MIN: Duration = Duration::from_secs(1);

fn max_clock_skew(settings: &Settings) -> Result<Duration, Error> {
    let skew = required(settings, &keys::MAX_CLOCK_SKEW, values::duration)?;
    if skew < CLOCK_SKEW_MIN {
        return conflict("`databroker_max_clock_skew` must be at least 1s: messages between nodes take time as well");
    }
    Ok(skew)
}

/// A place in the log is remembered for each mebibyte that is kept: this many are 16 MiB.
const LOG_BYTES_KEPT_MAX: u64 = 1 << 40;

fn log_bytes_kept(settings: &Settings) -> Result<u64, Error> {
    let bytes = required(settings, &keys::RAFT_LOG_BYTES_KEPT, values::bytes)?;
    if bytes > LOG_BYTES_KEPT_MAX {
        return conflict("`databroker_raft_log_bytes_kept` must be at most 1024GiB");
    }
    Ok(bytes)
}

fn timers(settings: &Settings) -> Result<Timers, Error> {
    let timers = Timers {
        heartbeat: required(settings, &keys::RAFT_HEARTBEAT_INTERVAL, values::duration)?,
        election_min: required(settings, &keys::RAFT_ELECTION_TIMEOUT_MIN, values::duration)?,
        election_max: required(settings, &keys::RAFT_ELECTION_TIMEOUT_MAX, values::duration)?,
    };
    if timers.heartbeat < Duration::from_millis(10) {
        return conflict("`databroker_raft_heartbeat_interval` must be at least 10ms");
    }
    if timers.election_min < timers.heartbeat * 2 {
        return conflict(
            "`databroker_raft_election_timeout_min` must be at least twice `databroker_raft_heartbeat_interval`: one late \
             heartbeat would cost the leader",
        );
    }
    // Whole milliseconds, as they are counted.
    if timers.election_max.as_millis() <= timers.election_min.as_millis() {
        return conflict(
            "`databroker_raft_election_timeout_max` must be above `databroker_raft_election_timeout_min`: nodes that wait \
             equally long elect nobody",
        );
    }
    Ok(timers)
}
