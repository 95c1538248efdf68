//! Who might be a peer: the addresses behind one name. Whether they are is found out by saying Hello.

use std::{io, net::SocketAddr, time::Duration};

use tokio::time::timeout;

use crate::config::Discovery;

/// More addresses than a cluster has nodes are a mistake in the name.
const ADDRESSES_MAX: usize = 64;

/// How long a name server may take. Those that are known already are greeted afterwards, and must not seem silent because a
/// name server is.
const PATIENCE: Duration = Duration::from_secs(1);

/// All addresses behind the name now, in order, this node's own among them.
///
/// # Errors
/// When the name cannot be resolved, as before the first node is ready, or not in time.
pub async fn discover(discovery: &Discovery) -> io::Result<Vec<SocketAddr>> {
    let looking = tokio::net::lookup_host((discovery.host.as_str(), discovery.port));
    let found = timeout(PATIENCE, looking).await??;
    let mut found: Vec<_> = found.take(ADDRESSES_MAX).collect();
    found.sort();
    found.dedup();
    Ok(found)
}
