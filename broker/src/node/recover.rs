//! One node's disk becomes a cluster of its own, for the day on which the others are lost for good.
//!
//! Not here: who asks for it, and confirms it (`cli`), and what is done to log and store (`raft::recover`).

use std::{path::Path, sync::Arc};

use super::open::{Founding, open_log, open_stores};
use crate::{
    raft::{self, identity::DataFolder},
    store::{
        self, Store,
        engine::{self, fjall::FjallOptions},
    },
};

pub use crate::raft::recover::Held;

/// Why a disk is left as it is, or what is missing after it was changed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no node's data.
    #[error("{path} holds no node's data")]
    Nothing {
        /// The folder.
        path: String,
    },
    /// The folder: a broker runs on it, say.
    #[error(transparent)]
    Folder(#[from] raft::identity::Error),
    /// An engine.
    #[error("cannot open the {what}: {source}")]
    Engine {
        /// Whose engine.
        what: &'static str,
        /// Why not.
        source: engine::Error,
    },
    /// The store.
    #[error("cannot open the store: {0}")]
    Store(#[source] store::Error),
    /// Log and store.
    #[error(transparent)]
    Disk(#[from] raft::recover::Error),
}

/// A data folder that nobody uses, with what it holds.
pub struct Stopped {
    pub(super) inner: raft::recover::Stopped,
    // After the engines in it: it is given back last.
    folder: DataFolder,
}

impl Stopped {
    /// Takes the folder, so that no broker starts on it meanwhile, and reads what is there. Changes
    /// nothing but the format of an older release's store.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn open(path: &Path) -> Result<Self, Error> {
        if !path.join("log").is_dir() {
            return Err(Error::Nothing { path: path.display().to_string() });
        }
        let folder = DataFolder::open(path)?;
        let failed = |what| move |source| Error::Engine { what, source };
        let log = open_log(&folder).map_err(failed("log"))?;
        let (_, engine) = open_stores(&folder, FjallOptions::default()).map_err(failed("store"))?;
        let store = Store::open(engine, &store::Options::default()).map_err(Error::Store)?;
        let inner = raft::recover::Stopped::open(Arc::new(log), folder.log_mark(), store)?;
        Ok(Self { inner, folder })
    }

    /// What is here.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn held(&self) -> Result<Held, Error> {
        Ok(self.inner.held()?)
    }

    /// Makes this disk a cluster of its own, and returns what that is called.
    ///
    /// # Errors
    /// See [`Error`]; it can be tried again.
    pub fn recover(self) -> Result<Founding, Error> {
        let Self { inner, folder } = self;
        let founding = Founding::random();
        inner.end_cluster(founding.cluster_id.clone(), founding.server_version.get())?;
        drop(folder);
        Ok(founding)
    }
}
