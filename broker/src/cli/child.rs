//! Brokers that a tool starts for itself, and the folder it keeps them in: both are gone with the tool.

use std::{
    fs::{self, DirBuilder},
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    process::Child,
};

use super::failure::Failure;

/// A process, killed when dropped.
pub(super) struct Process(pub(super) Child);

impl Process {
    /// Whether it still runs.
    pub(super) fn runs(&mut self) -> bool {
        matches!(self.0.try_wait(), Ok(None))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A folder of our own making. Deleted with all that is in it when dropped, unless it is to stay.
pub(super) struct Folder {
    path: PathBuf,
    stays: bool,
}

impl Folder {
    /// Makes a folder that nobody else may look into: a broker keeps its secret there.
    ///
    /// # Errors
    /// When it cannot be made, or is there already.
    pub(super) fn make(path: PathBuf, stays: bool) -> Result<Self, Failure> {
        let made = DirBuilder::new().mode(0o700).create(&path);
        made.map_err(|source| Failure::Write { file: path.clone(), source })?;
        Ok(Self { path, stays })
    }

    /// Makes one with a name of its own under `parent`.
    ///
    /// # Errors
    /// When it cannot be made.
    pub(super) fn temporary(parent: &Path, purpose: &str) -> Result<Self, Failure> {
        Self::make(parent.join(format!("databroker-{purpose}-{}", uuid::Uuid::new_v4())), false)
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if !self.stays {
            // Nobody is left to be told; what remains is in the folder for temporary files.
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}
