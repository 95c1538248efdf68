//! The composition root of `databroker serve`, top to bottom: data folder, node, server, drain.
//!
//! Not here: any decision. What is wired together decides for itself.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write as _},
    net::SocketAddr,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use databroker_proto::internal::ShapeMember;
use tokio_util::sync::CancellationToken;

use self::peering::{Discovered, Way};
use crate::{
    config::{self, Config, Durability, Medium, Secret, Secrets},
    jwt::{KEY_BYTES, SharedKey},
    node::{self, Node},
    raft,
    server::{self, Addresses, DiskTimes, Ending, Server},
    shutdown,
    store::engine,
};

mod files;
mod memory;
mod peering;
pub mod recovery;

pub use peering::Error as PeeringError;

/// The file in the data folder that names the running server's URL, for the tools on the same machine.
const ADDRESS_FILE: &str = "address";

/// Why the broker ends other than as asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration asks for what this release cannot do.
    #[error(transparent)]
    Config(#[from] config::Error),
    /// The node cannot be opened.
    #[error(transparent)]
    Open(#[from] node::OpenError),
    /// The way to peers cannot be opened.
    #[error(transparent)]
    Peers(#[from] PeeringError),
    /// The ports cannot be opened.
    #[error(transparent)]
    Serve(#[from] server::Error),
    /// A file of ours cannot be written.
    #[error("cannot write {}: {source}", path.display())]
    Write {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The system gives no signals.
    #[error("cannot listen for signals: {0}")]
    Signals(#[source] io::Error),
    /// The node was removed from its cluster while it served: nothing broke, but it cannot go on as it was. Whoever
    /// restarts what ends with an error starts it anew.
    #[error("{0}")]
    Removed(String),
    /// The node failed while it served.
    #[error("the node has failed: {0}")]
    Failed(String),
}

/// Whatever is made from here on, the engine's files included, is nobody else's to read.
fn keep_private() {
    rustix::process::umask(rustix::fs::Mode::RWXG | rustix::fs::Mode::RWXO);
}

/// Serves until a signal, or until the node fails.
///
/// # Errors
/// See [`Error`].
pub async fn serve(config: Config) -> Result<(), Error> {
    keep_private();
    let asked = shutdown::on_signal().map_err(Error::Signals)?;
    let (ending, parting) = (Ending::default(), CancellationToken::new());
    // A log that is replayed may take a while. It is left where it is: what is half done is done again.
    let Some(opened) = asked.run_until_cancelled(open(&config, &ending)).await else {
        tracing::info!("stopped before the store was open");
        return Ok(());
    };
    let Opened { way, node, server } = opened?;

    let folder = (config.storage.medium == Medium::File).then_some(config.storage.folder.as_path());
    let mut peers = way.serve(&node, folder, &parting)?;
    let mut serving = tokio::spawn(server.serve());
    let failure = tokio::select! {
        reason = node.failed() => Some(if node.was_removed() { Error::Removed(reason) } else { Error::Failed(reason) }),
        () = asked.cancelled() => None,
    };
    let (now, periods) = (tokio::time::Instant::now(), shutdown::Periods::of(config.shutdown_grace_period));
    ending.leaving.cancel();
    if failure.is_none() && tokio::time::timeout_at(now + periods.hand_over, node.step_down()).await.is_err() {
        tracing::warn!("leadership was not handed over in time: the others will elect");
    }
    ending.closing.cancel();
    let drained = tokio::time::timeout_at(now + periods.drain, &mut serving).await;
    serving.abort();
    // To the last the others are answered: a write that waits here may still go to whoever leads now.
    parting.cancel();
    let farewell = (now + periods.farewell).min(tokio::time::Instant::now() + shutdown::FAREWELL_MAX);
    drop(tokio::time::timeout_at(farewell, async { while peers.join_next().await.is_some() {} }).await);
    peers.shutdown().await;
    // Whoever sent the signal may kill at the end of the period. What is not flushed by then is in the log.
    if tokio::time::timeout_at(now + periods.flush, node.shutdown()).await.is_err() {
        tracing::warn!("the store was not flushed within the grace period: the next start takes longer");
    }
    match (failure, drained) {
        (Some(failure), _) => Err(failure),
        // A client that takes nothing any more cannot be waited for; nothing acknowledged is lost.
        (None, Err(_)) => {
            tracing::warn!("some requests did not end within the grace period");
            Ok(())
        }
        (None, Ok(_)) => Ok(()),
    }
}

/// What serves.
struct Opened {
    way: Way,
    node: Node,
    server: Server,
}

/// Opens the data, then the ports, and says so.
async fn open(config: &Config, ending: &Ending) -> Result<Opened, Error> {
    let disk = Arc::new(match config.storage.medium {
        Medium::File => DiskTimes::of(config.storage.folder.clone()),
        Medium::Memory => DiskTimes::default(),
    });
    // Before any engine opens its files.
    let mut grpc = config.grpc.clone();
    grpc.limits.connections_max = files::connections(grpc.limits.connections_max);
    let way = Way::open(&config.cluster, &config.secrets).await?;
    let mut options = node_options(config, disk.clone());
    options.transport = way.transport.clone();
    let node = Node::open(options).await?;
    // The folder is ours now: nobody else generates a secret in it at the same time.
    let (secrets, generated) = secrets(config)?;
    let certificates = way.certificates.clone();
    let server = Server::bind(&node, &grpc, &config.http, &secrets, &disk, certificates, ending).await?;
    announce(config, server.addresses(), generated.as_deref())?;
    Ok(Opened { way, node, server })
}

fn node_options(config: &Config, disk: Arc<DiskTimes>) -> node::Options {
    let storage = match config.storage.medium {
        Medium::File => node::Storage::Folder(config.storage.folder.clone()),
        Medium::Memory => node::Storage::Memory,
    };
    let mut options = node::Options::new(storage);
    options.durability = match config.storage.durability {
        Durability::Fsync => engine::Durability::Synced,
        Durability::Os => engine::Durability::Written,
    };
    options.member = member(&config.cluster);
    options.bootstrap = match config.cluster.bootstrap {
        config::Bootstrap::Auto => node::Bootstrap::Auto,
        config::Bootstrap::Explicit => node::Bootstrap::Explicit,
    };
    options.timers = timers(config.cluster.timers);
    options.retention = raft::Retention::keeping(config.cluster.log_bytes_kept);
    options.hold = config.cluster.hold;
    options.max_clock_skew = config.cluster.max_clock_skew;
    if let Some(discovery) = config.cluster.discovery.clone() {
        options.seeds = Arc::new(Discovered(discovery));
    }
    options.configured = config.cluster.nodes.iter().map(configured).collect();
    options.change_log_keep = config.storage.change_log_retention;
    options.change_log_bytes_max = config.storage.change_log_bytes_max;
    options.store.record_cache_bytes_max = match config.storage.medium {
        Medium::File => config.storage.record_cache_bytes_max.unwrap_or_else(memory::record_cache_bytes),
        // Records are in memory anyway.
        Medium::Memory => 0,
    };
    options.observer = disk;
    options
}

fn timers(timers: config::Timers) -> raft::Timers {
    let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    raft::Timers {
        heartbeat_ms: millis(timers.heartbeat),
        election_ms_min: millis(timers.election_min),
        election_ms_max: millis(timers.election_max),
    }
}

fn configured(node: &config::ClusterNode) -> ShapeMember {
    ShapeMember {
        name: node.id.clone(),
        raft_address: node.raft_address.clone(),
        grpc_address: node.grpc_address.clone(),
    }
}

/// This node as its cluster will know it.
fn member(cluster: &config::Cluster) -> raft::Member {
    let name = cluster.node.clone().unwrap_or_default();
    match &cluster.advertised {
        None => raft::Member { name, ..raft::Member::default() },
        Some(at) => raft::Member { name, raft_address: at.raft_address.clone(), grpc_address: at.grpc_address.clone() },
    }
}

/// The configured keys, or one from the data folder, and its file if it was generated just now.
fn secrets(config: &Config) -> Result<(Secrets, Option<PathBuf>), Error> {
    if config.secrets.current.is_some() {
        return Ok((config.secrets.clone(), None));
    }
    let path = config.storage.generated_secret();
    let failed = |source| Error::Write { path: path.clone(), source };
    let generated = if path.exists() { false } else { generate_secret(&path).map(|()| true).map_err(failed)? };
    let secrets = Secrets { current: Some(Secret::File(path.clone())), ..config.secrets.clone() };
    Ok((secrets, generated.then_some(path)))
}

fn generate_secret(path: &Path) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    }
    let key = SharedKey::from_bytes(rand::random::<[u8; KEY_BYTES]>());
    // Written beside and renamed: a crash never leaves half a secret.
    let draft = path.with_extension("new");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&draft)?;
    file.write_all(key.to_base64().as_bytes())?;
    file.sync_all()?;
    fs::rename(&draft, path)
}

/// Tells people and tools where the broker is.
fn announce(config: &Config, addresses: Addresses, generated: Option<&Path>) -> Result<(), Error> {
    let scheme = if config.grpc.tls.is_some() { "https" } else { "http" };
    let url = format!("{scheme}://{}", reachable(addresses.grpc));
    if config.storage.folder.is_dir() {
        let path = config.storage.folder.join(ADDRESS_FILE);
        fs::write(&path, &url).map_err(|source| Error::Write { path, source })?;
    }
    let text = greeting(config, addresses, &url, generated);
    // Nobody may be listening on standard output; that is no reason not to serve.
    let _ = io::stdout().write_all(text.as_bytes());
    Ok(())
}

fn greeting(config: &Config, addresses: Addresses, url: &str, generated: Option<&Path>) -> String {
    let folder = config.storage.folder.display();
    let mut text = format!("databroker {} serves {url}\n", env!("CARGO_PKG_VERSION"));
    text += &match config.storage.medium {
        Medium::File => format!("  records   {folder}\n"),
        Medium::Memory => "  records   in memory: they are gone when the broker ends\n".to_owned(),
    };
    if let Some(path) = generated {
        text += &format!("  secret    generated into {}: clients need it as `shared_secret`\n", path.display());
    } else if config.secrets.current.is_none() {
        text += &format!("  secret    {}\n", config.storage.generated_secret().display());
    }
    text += &format!("  health    http://{}/readyz\n", reachable(addresses.health));
    text += &format!("  metrics   http://{}/metrics\n", reachable(addresses.metrics));
    let folder = if config.storage.folder == Path::new("./databroker-data") {
        String::new()
    } else {
        format!(" --data-dir {folder}")
    };
    text + &format!("Next, in another terminal: databroker info{folder}\n")
}

/// Where a client on this machine finds an address that means "everywhere".
fn reachable(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        address.set_ip(std::net::Ipv4Addr::LOCALHOST.into());
    }
    address
}
