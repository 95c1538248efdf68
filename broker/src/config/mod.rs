//! The configuration: from flags, environment and a YAML file to validated, typed groups. No strings after this.
//!
//! ```text
//!   keys (the table) ─▶ settings (who says what) ─▶ values (text to type) ─▶ Config (what goes together)
//! ```
//!
//! Not here: acting on it. Each layer gets its own group, never the whole.

mod cluster;
mod keys;
mod settings;
#[cfg(test)]
mod tests;
mod values;

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use crate::jwt::SharedKey;
use keys::Key;
use values::Parsed;

pub use cluster::{Advertised, Bootstrap, Cluster, ClusterNode, Discovery, PeerFiles, Timers};
pub use settings::{Flags, Settings, Source};

/// Why there is no usable configuration.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("cannot read the configuration file {}: {source}", path.display())]
    ReadFile {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not YAML.
    #[error("the configuration file {} is not valid YAML: {source}", path.display())]
    ParseFile {
        /// Which.
        path: PathBuf,
        /// Why.
        source: serde_yaml::Error,
    },
    /// The file is YAML, but not keys with values.
    #[error("the configuration file {} must consist of `key: value` lines", path.display())]
    NoMapping {
        /// Which.
        path: PathBuf,
    },
    /// There is no such key.
    #[error("{place}: there is no key `{name}`{}", suggestion(*nearest))]
    UnknownKey {
        /// As written.
        name: String,
        /// Where.
        place: Source,
        /// The most similar key.
        nearest: Option<&'static str>,
    },
    /// A value cannot be understood.
    #[error("`{key}` ({place}) is not valid: {reason}")]
    Invalid {
        /// Which key.
        key: &'static str,
        /// Who gave it.
        place: Source,
        /// What is wrong.
        reason: String,
    },
    /// Values that do not go together.
    #[error("{0}")]
    Conflict(String),
}

fn suggestion(nearest: Option<&str>) -> String {
    nearest.map(|name| format!("; did you mean `{name}`?")).unwrap_or_default()
}

/// The whole configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// The gRPC interface.
    pub grpc: Grpc,
    /// What tokens are signed with.
    pub secrets: Secrets,
    /// The HTTP side.
    pub http: Http,
    /// Records on disk.
    pub storage: Storage,
    /// The other nodes.
    pub cluster: Cluster,
    /// What is logged.
    pub log: Log,
    /// How long a stopping broker waits for requests to finish.
    pub shutdown_grace_period: Duration,
}

/// The gRPC interface.
#[derive(Clone, Debug)]
pub struct Grpc {
    /// Where to listen.
    pub address: SocketAddr,
    /// Certificate and key; absent: plaintext.
    pub tls: Option<TlsFiles>,
    /// What a client may ask of the server.
    pub limits: Limits,
}

/// Certificate and key as PEM files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The certificate chain.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// How long a stream that is not read keeps its snapshot: no honest client pauses for minutes, and until then the store
/// cannot free what has changed since.
const STALLED_MAX: Duration = Duration::from_secs(5 * 60);

/// Bounds on what clients can make the server hold.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Size of a request message.
    pub request_bytes_max: usize,
    /// Open connections.
    pub connections_max: usize,
    /// Open streams over all connections.
    pub streams_max: usize,
    /// Requests and streams under way on one connection.
    pub connection_streams_max: u32,
    /// How long a stream that is not read keeps its snapshot of the store.
    pub stalled_max: Duration,
}

/// The accepted keys.
#[derive(Clone, Debug)]
pub struct Secrets {
    /// The shared secret; absent: a generated one in the data folder.
    pub current: Option<Secret>,
    /// A second key that is accepted.
    pub previous: Option<Secret>,
}

impl Secrets {
    /// All that are accepted, the one that signs first.
    pub fn all(&self) -> impl Iterator<Item = &Secret> {
        self.current.iter().chain(&self.previous)
    }

    /// The files among them, which may change.
    pub fn files(&self) -> Vec<PathBuf> {
        self.all().filter_map(Secret::file).collect()
    }
}

/// Where a key comes from.
#[derive(Clone, Debug)]
pub enum Secret {
    /// The configuration itself.
    Given(SharedKey),
    /// A file, which may change.
    File(PathBuf),
}

impl Secret {
    /// The file, if it comes from one.
    pub fn file(&self) -> Option<PathBuf> {
        match self {
            Self::Given(_) => None,
            Self::File(path) => Some(path.clone()),
        }
    }
}

/// The HTTP side.
#[derive(Clone, Debug)]
pub struct Http {
    /// Health checks.
    pub health: SocketAddr,
    /// Metrics, where they are not beside the health checks.
    pub metrics: Option<SocketAddr>,
}

/// Where and how records are kept.
#[derive(Clone, Debug)]
pub struct Storage {
    /// On disk, or in memory.
    pub medium: Medium,
    /// The data folder. With the memory engine only a generated secret is put there.
    pub folder: PathBuf,
    /// When a write is acknowledged.
    pub durability: Durability,
    /// Age at which a change leaves the change log.
    pub change_log_retention: Duration,
    /// Size above which the oldest changes leave the change log; `None`: what the volume allows.
    pub change_log_bytes_max: Option<u64>,
    /// Memory for records that were read or written lately; `None`: what the machine allows.
    pub record_cache_bytes_max: Option<u64>,
}

/// What records are kept on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Medium {
    /// The data folder.
    File,
    /// Memory: gone at exit.
    Memory,
}

/// When a write is acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// It is on the disk.
    Fsync,
    /// The operating system has it.
    Os,
}

/// What is logged.
#[derive(Clone, Debug)]
pub struct Log {
    /// A level or a filter.
    pub filter: String,
    /// Its form.
    pub format: LogFormat,
}

/// The form of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// For programs.
    Json,
}

impl Config {
    /// Flags, the process's environment and the file, validated.
    ///
    /// # Errors
    /// Names the key, who gave it, and what is wrong.
    pub fn load(flags: &Flags) -> Result<Self, Error> {
        Self::from_settings(&Settings::gather(flags, environment)?)
    }

    /// The typed form of settings.
    ///
    /// # Errors
    /// See [`Config::load`].
    pub fn from_settings(settings: &Settings) -> Result<Self, Error> {
        Ok(Self {
            grpc: grpc(settings)?,
            secrets: Secrets {
                current: secret(settings, &keys::SHARED_SECRET, &keys::SHARED_SECRET_FILE)?,
                previous: secret(settings, &keys::PREVIOUS_SHARED_SECRET, &keys::PREVIOUS_SHARED_SECRET_FILE)?,
            },
            http: Http {
                health: required(settings, &keys::HEALTH_CHECK_ADDR, values::address)?,
                metrics: optional(settings, &keys::METRICS_ADDRESS, values::address)?,
            },
            storage: storage(settings)?,
            cluster: cluster::cluster(settings)?,
            log: Log {
                filter: required(settings, &keys::LOG_LEVEL, |text| Ok(text.to_owned()))?,
                format: required(settings, &keys::LOG_FORMAT, |text| {
                    values::choice(text, &[("text", LogFormat::Text), ("json", LogFormat::Json)])
                })?,
            },
            shutdown_grace_period: required(settings, &keys::SHUTDOWN_GRACE_PERIOD, values::duration)?,
        })
    }
}

fn optional<T>(
    settings: &Settings,
    key: &'static Key,
    parse: impl FnOnce(&str) -> Parsed<T>,
) -> Result<Option<T>, Error> {
    settings.get(key, |value| parse(&values::scalar(value)?))
}

fn required<T>(settings: &Settings, key: &'static Key, parse: impl FnOnce(&str) -> Parsed<T>) -> Result<T, Error> {
    optional(settings, key, parse)?.ok_or_else(|| Error::Conflict(format!("`{}` is required", key.name)))
}

fn grpc(settings: &Settings) -> Result<Grpc, Error> {
    let address = required(settings, &keys::GRPC_ADDRESS, values::address)?;
    let insecure = required(settings, &keys::GRPC_INSECURE, values::switch)?;
    let certificate = optional(settings, &keys::CERTIFICATE_FILE, values::path)?;
    let key = optional(settings, &keys::CERTIFICATE_KEY_FILE, values::path)?;
    let tls = tls(certificate, key)?;
    check_transport(address, insecure, tls.is_some())?;
    let size = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX);
    let limits = Limits {
        request_bytes_max: size(required(settings, &keys::REQUEST_BYTES_MAX, values::bytes)?),
        connections_max: required(settings, &keys::CONNECTIONS_MAX, values::count)? as usize,
        streams_max: required(settings, &keys::STREAMS_MAX, values::count)? as usize,
        connection_streams_max: required(settings, &keys::CONNECTION_STREAMS_MAX, values::count)?,
        stalled_max: STALLED_MAX,
    };
    Ok(Grpc { address, tls, limits })
}

fn tls(certificate: Option<PathBuf>, key: Option<PathBuf>) -> Result<Option<TlsFiles>, Error> {
    match (certificate, key) {
        (Some(certificate), Some(key)) => Ok(Some(TlsFiles { certificate, key })),
        (None, None) => Ok(None),
        (Some(_), None) => Err(Error::Conflict("`certificate_file` is set, but `certificate_key_file` is not".into())),
        (None, Some(_)) => Err(Error::Conflict("`certificate_key_file` is set, but `certificate_file` is not".into())),
    }
}

/// Tokens on a plaintext connection can be read on the way: beyond loopback someone has to want that.
fn check_transport(address: SocketAddr, insecure: bool, tls: bool) -> Result<(), Error> {
    if tls && insecure {
        return Err(Error::Conflict(
            "`grpc_insecure` is true, but a certificate is given: leave out one of them".into(),
        ));
    }
    if !tls && !insecure && !address.ip().is_loopback() {
        return Err(Error::Conflict(format!(
            "`grpc_address` {address} is not loopback: give `certificate_file` and `certificate_key_file`, or allow \
             plaintext with `grpc_insecure: true`"
        )));
    }
    Ok(())
}

fn secret(settings: &Settings, given: &'static Key, file: &'static Key) -> Result<Option<Secret>, Error> {
    let key = optional(settings, given, |text| SharedKey::parse(text.as_bytes()).map_err(|error| error.to_string()))?;
    let path = optional(settings, file, values::path)?;
    match (key, path) {
        (Some(_), Some(_)) => {
            Err(Error::Conflict(format!("both `{}` and `{}` are set: leave out one of them", given.name, file.name)))
        }
        (Some(key), None) => Ok(Some(Secret::Given(key))),
        (None, path) => Ok(path.map(Secret::File)),
    }
}

fn storage(settings: &Settings) -> Result<Storage, Error> {
    Ok(Storage {
        medium: required(settings, &keys::STORAGE_TYPE, medium)?,
        folder: required(settings, &keys::STORAGE_CONNECTION, values::folder)?,
        durability: required(settings, &keys::DURABILITY, |text| {
            values::choice(text, &[("fsync", Durability::Fsync), ("os", Durability::Os)])
        })?,
        change_log_retention: required(settings, &keys::CHANGE_LOG_RETENTION, values::duration)?,
        change_log_bytes_max: optional(settings, &keys::CHANGE_LOG_BYTES_MAX, values::bytes)?,
        record_cache_bytes_max: optional(settings, &keys::RECORD_CACHE_BYTES_MAX, values::bytes_or_nothing)?,
    })
}

fn medium(text: &str) -> Parsed<Medium> {
    if text == "postgres" {
        return Err("this broker keeps records itself, not in Postgres. To move: run `databroker export` against the \
                    databroker that uses Postgres, start this one with `file`, then run `databroker import` against it"
            .into());
    }
    values::choice(text, &[("file", Medium::File), ("memory", Medium::Memory)])
}

impl Storage {
    /// Where a generated shared secret lies.
    pub fn generated_secret(&self) -> PathBuf {
        self.folder.join("shared_secret")
    }
}

/// A variable of this process.
pub fn environment(variable: &str) -> Option<String> {
    std::env::var(variable).ok()
}

/// What `databroker config check` and `print` answer.
///
/// # Errors
/// See [`Config::load`].
pub fn describe(flags: &Flags, environment: impl Fn(&str) -> Option<String>) -> Result<String, Error> {
    let settings = Settings::gather(flags, environment)?;
    Config::from_settings(&settings)?;
    Ok(settings.print())
}
