//! Every configuration key: its name, default and meaning. The only list of them.
//!
//! A flag is the name with dashes, an environment variable the name in upper case, a line of the YAML file the name
//! itself. Where Pomerium has a key for the same thing, it has the same name here.
//! Not here: what a value looks like once it is read (`values`), and which values go together (`super`).

/// One configuration key.
#[derive(Debug)]
pub(super) struct Key {
    /// As it stands in a YAML file.
    pub(super) name: &'static str,
    /// What it does, one sentence.
    pub(super) help: &'static str,
    /// The value if nobody gives one.
    pub(super) default: Option<&'static str>,
    /// Never shown.
    pub(super) secret: bool,
    /// May be given as a flag without a value, which means `true`.
    pub(super) switch: bool,
}

impl Key {
    /// The name of the flag, without the dashes in front.
    pub(super) fn flag(&self) -> String {
        self.name.replace('_', "-")
    }

    /// The name of the environment variable.
    pub(super) fn variable(&self) -> String {
        self.name.to_uppercase()
    }

    const fn defaults_to(mut self, value: &'static str) -> Self {
        self.default = Some(value);
        self
    }

    const fn secret(mut self) -> Self {
        self.secret = true;
        self
    }

    const fn switch(mut self) -> Self {
        self.switch = true;
        self.defaults_to("false")
    }
}

const fn key(name: &'static str, help: &'static str) -> Key {
    Key { name, help, default: None, secret: false, switch: false }
}

/// Declares the keys as constants, and the list of all of them, so that none can be missing from it.
macro_rules! keys {
    ($($constant:ident: $key:expr;)*) => {
        $(pub(super) static $constant: Key = $key;)*
        /// All keys, in the order in which they are explained and printed.
        pub(super) static ALL: &[&Key] = &[$(&$constant),*];
    };
}

keys! {
    GRPC_ADDRESS: key("grpc_address", "Address of the gRPC interface; port 0 takes a free port, `:5443` listens everywhere.")
        .defaults_to("127.0.0.1:5443");
    GRPC_INSECURE: key("grpc_insecure", "Serve gRPC without TLS on an address that is not loopback.").switch();
    CERTIFICATE_FILE: key("certificate_file", "PEM file with the certificate chain of the gRPC interface; read again when it changes.");
    CERTIFICATE_KEY_FILE: key("certificate_key_file", "PEM file with the certificate's private key; read again when it changes.");
    SHARED_SECRET: key("shared_secret", "The key clients sign their tokens with: base64 of 32 bytes. Generated into the data folder if not given.")
        .secret();
    SHARED_SECRET_FILE: key("shared_secret_file", "File with the shared secret: base64, or the 32 bytes themselves; read again when it changes.");
    PREVIOUS_SHARED_SECRET: key("previous_shared_secret", "A second key that is accepted while clients move to a new one.").secret();
    PREVIOUS_SHARED_SECRET_FILE: key("previous_shared_secret_file", "File with the previous shared secret.");
    STORAGE_TYPE: key("databroker_storage_type", "Where records are kept: `file`, or `memory` (lost at exit).").defaults_to("file");
    STORAGE_CONNECTION: key("databroker_storage_connection_string", "The data folder, as `file:///folder` or a path.")
        .defaults_to("./databroker-data");
    DURABILITY: key("durability", "When a write is acknowledged: `fsync` (on the disk), or `os` (survives the process, not a power loss).")
        .defaults_to("fsync");
    CHANGE_LOG_RETENTION: key("change_log_retention", "How long changes are kept for streams that resume, such as `1h`.").defaults_to("1h");
    CHANGE_LOG_BYTES_MAX: key("change_log_bytes_max", "Older changes go earlier once the change log holds more than this. Default: a quarter of the volume, at most 1GiB.");
    RECORD_CACHE_BYTES_MAX: key("record_cache_bytes_max", "Memory for records that were read or written lately; `0` for none. Default: a quarter of the memory, at least 16MiB, at most 512MiB.");
    CLUSTER_NAME: key("databroker_cluster_name", "The cluster's name, as it stands in the certificates of its members.").defaults_to("databroker");
    CLUSTER_NODE_ID: key("databroker_cluster_node_id", "This node's name in a cluster.");
    CLUSTER_NODES: key("databroker_cluster_nodes", "The cluster's nodes, this one included: a list of `{id, grpc_address, raft_address}`.");
    CLUSTER_DISCOVERY: key("databroker_cluster_discovery", "Finds the other nodes by name instead: `dns://host:port`.");
    CLUSTER_BOOTSTRAP: key("databroker_cluster_bootstrap", "How an empty node begins: `auto` (a cluster of its own) or `explicit` (waits to be told). Default: auto without other nodes.");
    RAFT_BIND_ADDRESS: key("databroker_raft_bind_address", "Address for the other nodes. Default: `:5999` in a cluster.");
    RAFT_ADVERTISE_ADDRESS: key("databroker_raft_advertise_address", "Where the other nodes reach this one, `host:port`. Default: as in the list of nodes.");
    GRPC_ADVERTISE_ADDRESS: key("databroker_grpc_advertise_address", "Where clients reach this node, as a URL. Default: as in the list of nodes.");
    PEER_CA_FILE: key("databroker_peer_ca_file", "PEM file with the authorities trusted between nodes; read again when it changes.");
    PEER_CERTIFICATE_FILE: key("databroker_peer_certificate_file", "PEM file with this node's certificate for the others; read again when it changes. Without one it is made from the shared secret.");
    PEER_CERTIFICATE_KEY_FILE: key("databroker_peer_certificate_key_file", "PEM file with that certificate's private key; read again when it changes.");
    RAFT_HEARTBEAT_INTERVAL: key("databroker_raft_heartbeat_interval", "How often a leader says that it is there.").defaults_to("100ms");
    RAFT_ELECTION_TIMEOUT_MIN: key("databroker_raft_election_timeout_min", "How long the others wait for it at least.").defaults_to("300ms");
    RAFT_ELECTION_TIMEOUT_MAX: key("databroker_raft_election_timeout_max", "How long the others wait for it at most.").defaults_to("400ms");
    RAFT_LOG_BYTES_KEPT: key("databroker_raft_log_bytes_kept", "How much of the log stays on disk for nodes that are behind; one that is behind by more is sent the whole store.")
        .defaults_to("32MiB");
    HOLD: key("hold", "How long a request waits while the cluster has no leader.").defaults_to("5s");
    MAX_CLOCK_SKEW: key("databroker_max_clock_skew", "How far the clocks of two nodes may differ, or a clock from the store's time, before people are told and a leader that is ahead hands over.")
        .defaults_to("5s");
    HEALTH_CHECK_ADDR: key("health_check_addr", "Address for /healthz, /readyz and /startupz over HTTP.").defaults_to("127.0.0.1:28080");
    METRICS_ADDRESS: key("metrics_address", "Address for /metrics over HTTP; beside the health checks if not given.");
    LOG_LEVEL: key("log_level", "What is logged: error, warn, info, debug, trace, or a filter such as `info,databroker::raft=debug`.")
        .defaults_to("info");
    LOG_FORMAT: key("log_format", "How it is logged: `text` or `json`.").defaults_to("text");
    SHUTDOWN_GRACE_PERIOD: key("shutdown_grace_period", "How long a stopping broker waits for requests to finish.").defaults_to("10s");
    REQUEST_BYTES_MAX: key("request_bytes_max", "The largest request message that is accepted.").defaults_to("64MiB");
    CONNECTIONS_MAX: key("connections_max", "How many client connections are open at most; more wait to be accepted.").defaults_to("4096");
    STREAMS_MAX: key("streams_max", "How many Sync, SyncLatest and Watch streams are open at most, over all connections.").defaults_to("20000");
    CONNECTION_STREAMS_MAX: key("connection_streams_max", "How many requests and streams one connection may have under way.").defaults_to("2000");
}

/// The key of this name.
pub(super) fn find(name: &str) -> Option<&'static Key> {
    ALL.iter().copied().find(|key| key.name == name)
}

/// The key whose name is most like this one, if any is alike at all.
pub(super) fn nearest(name: &str) -> Option<&'static str> {
    let name = name.to_lowercase().replace('-', "_");
    let likeness = |key: &Key| strsim::jaro_winkler(&name, key.name);
    ALL.iter()
        .map(|key| (likeness(key), key.name))
        .filter(|(likeness, _)| *likeness > 0.75)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, name)| name)
}
