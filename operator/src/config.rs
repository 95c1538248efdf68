//! How the operator is run.

use std::net::SocketAddr;

/// Flags, or environment variables.
#[derive(clap::Args, Clone, Debug)]
pub struct Config {
    /// The namespace that is looked after; absent: all of them.
    #[arg(long, env = "WATCH_NAMESPACE", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    pub watch_namespace: Option<String>,
    /// The namespace of the operator itself.
    #[arg(long, env = "POD_NAMESPACE", default_value = "databroker-system")]
    pub namespace: String,
    /// This replica, in the Lease.
    #[arg(long, env = "POD_NAME", default_value = "databroker-operator")]
    pub identity: String,
    /// The Lease that one replica holds: replicas of the same name share the work, operators of different namespaces do not.
    #[arg(long, env = "LEASE_NAME", default_value = "databroker-operator")]
    pub lease: String,
    /// The brokers' image of a Databroker that names none.
    #[arg(long, env = "DEFAULT_IMAGE", default_value = concat!("databroker:", env!("CARGO_PKG_VERSION")))]
    pub default_image: String,
    /// Where /healthz, /readyz and /metrics are.
    #[arg(long, env = "METRICS_ADDRESS", default_value = "[::]:8080")]
    pub metrics_address: SocketAddr,
    /// What is logged: error, warn, info, debug, trace, or a filter.
    #[arg(long, env = "LOG_LEVEL", default_value = "info")]
    pub log_level: String,
}
