//! The Admin service on a socket in the data folder. Whoever may open the file, which is the user the broker runs as, may
//! administer: that user can change everything anyway.

use std::{
    fs, io,
    os::unix::fs::{FileTypeExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use databroker_proto::internal::admin_server::AdminServer;
use tokio::net::UnixListener;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

use super::{Admin, services::AdminService};
use crate::net::{Bounds, Listener};

/// The socket's name in the data folder.
pub const SOCKET_FILE: &str = "admin.sock";

/// A few people and programs.
const CONNECTIONS_MAX: usize = 32;

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} the socket {}: {source}", path.display())]
pub struct SocketError {
    /// What was tried.
    pub action: &'static str,
    /// The socket.
    pub path: PathBuf,
    /// Why not.
    #[source]
    pub source: io::Error,
}

/// A socket that is open, but not served yet. Its file goes with it.
pub struct Socket {
    listener: Listener,
    file: SocketFile,
}

struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

impl Socket {
    /// Opens the socket in a data folder that this process holds: what lies there under its name is left from before.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn bind(folder: &Path) -> Result<Self, SocketError> {
        let path = folder.join(SOCKET_FILE);
        let failed = |action, source| SocketError { action, path: path.clone(), source };
        match fs::symlink_metadata(&path) {
            Ok(found) if found.file_type().is_socket() => {
                fs::remove_file(&path).map_err(|source| failed("remove", source))?;
            }
            _ => {}
        }
        let (listener, file) = bind_private(&path).map_err(|source| failed("make", source))?;
        Ok(Self { listener: Listener::unix(listener, bounds()), file })
    }

    /// Serves until `closing`, and then until everything under way has ended.
    pub async fn serve<A: Admin>(self, admin: Arc<A>, closing: CancellationToken) {
        let routes = Routes::new(AdminServer::new(AdminService(admin))).prepare();
        self.listener.serve(move |_| routes.clone(), closing).await;
        drop(self.file);
    }
}

/// Nobody else can connect at any moment: the socket gets its name only once it is private.
fn bind_private(path: &Path) -> io::Result<(UnixListener, SocketFile)> {
    let draft = path.with_extension("new");
    match fs::remove_file(&draft) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&draft)?;
    let unnamed = SocketFile(draft.clone());
    fs::set_permissions(&draft, fs::Permissions::from_mode(0o600))?;
    fs::rename(&draft, path)?;
    drop(unnamed);
    Ok((listener, SocketFile(path.to_owned())))
}

fn bounds() -> Bounds {
    Bounds {
        connections_max: CONNECTIONS_MAX,
        connection_streams_max: 16,
        ping_interval: Duration::from_secs(60),
        ping_timeout: Duration::from_secs(20),
        refusals_are_news: false,
        stranger_max: None,
    }
}
