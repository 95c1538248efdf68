//! Notices that files have changed: keys and certificates are replaced under a running server.
//!
//! By polling, which also sees files that are replaced through links, as mounted Kubernetes secrets are.

use std::{
    error::Error,
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

/// How often the files are looked at.
const INTERVAL: Duration = Duration::from_secs(2);

/// What tells one state of a file from another; `None` if it is not there.
type Stamp = Option<(SystemTime, u64, u64)>;

/// What the caller's reading of the files failed with.
type Failure = Box<dyn Error + Send + Sync>;

/// Calls `read` after one of the files has changed. If that fails, what was read before stays in use, and the next
/// change gets another chance. Ends with the process: nobody needs to wait for it.
pub(crate) fn watch_files<E: Into<Failure>>(
    files: Vec<PathBuf>,
    read: impl Fn() -> Result<(), E> + Send + Sync + 'static,
) {
    if files.is_empty() {
        return;
    }
    let mut seen = stamps(&files);
    tokio::spawn(async move {
        let mut ticks = tokio::time::interval(INTERVAL);
        loop {
            ticks.tick().await;
            let now = stamps(&files);
            if now != seen {
                report(&files, read().map_err(Into::into));
                seen = now;
            }
        }
    });
}

/// A few calls that ask the kernel for what it has in memory: not worth another thread.
fn stamps(files: &[PathBuf]) -> Vec<Stamp> {
    files.iter().map(|file| stamp(file)).collect()
}

fn stamp(file: &Path) -> Stamp {
    let metadata = fs::metadata(file).ok()?;
    Some((metadata.modified().ok()?, metadata.len(), metadata.ino()))
}

fn report(files: &[PathBuf], result: Result<(), Failure>) {
    match result {
        Ok(()) => tracing::info!(?files, "read changed files"),
        Err(error) => tracing::error!(?files, %error, "cannot use changed files: keeping what was read before"),
    }
}
