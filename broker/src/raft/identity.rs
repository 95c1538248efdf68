//! The data folder: who holds it, and in which format it is.
//!
//! ```text
//!   <data>/lock       held by the process that uses the folder
//!   <data>/format     the format's number
//!   <data>/log        the engine of the log, vote and node id in it
//!   <data>/log-mark   how far the log had got
//!   <data>/store*     the engine of the store, and which one is in use: see `store::engine::shelf`
//!   <data>/retired-<node id>   all of this of the last node that its cluster removed, but for the lock and the format
//! ```
//!
//! Not here: what is in the engines.

use std::{
    fs::{self, DirBuilder, File, TryLockError},
    io::{self, Write as _},
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
};

/// The format this build writes. A newer one is refused. A change of the layout raises it and brings a migration.
pub const FORMAT: u32 = 1;

/// How the names of all that belongs to a store begin.
const STORES: &str = "store";

/// How the name of the folder with the data of a removed node begins.
const RETIRED: &str = "retired-";

/// Why a data folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another process has it.
    #[error("the data folder {path} is in use by another process")]
    InUse {
        /// The folder.
        path: PathBuf,
    },
    /// It was written by a newer release.
    #[error("the data folder {path} has format {found}, this release knows up to {FORMAT}: start a newer release")]
    TooNew {
        /// The folder.
        path: PathBuf,
        /// Its format.
        found: u32,
    },
    /// The file that names the format makes no sense.
    #[error("{path} should hold the number of a format but holds {found:?}")]
    UnknownFormat {
        /// The file.
        path: PathBuf,
        /// What it holds.
        found: String,
    },
    /// The file system refuses.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// With what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// A data folder that this process holds for as long as the value lives.
#[derive(Debug)]
pub struct DataFolder {
    path: PathBuf,
    /// Closing the file gives the lock back.
    _lock: File,
}

impl DataFolder {
    /// Opens the folder, or makes it, for this process alone.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn open(path: &Path) -> Result<Self, Error> {
        // Records are secrets: nobody else may look into the folder.
        let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
        made.map_err(|source| Error::Io { action: "make", path: path.into(), source })?;
        let lock = lock(path)?;
        match format(path)? {
            Some(FORMAT) => {}
            Some(found) if found > FORMAT => return Err(Error::TooNew { path: path.into(), found }),
            // There is no older format yet: a new folder.
            Some(_) | None => write_format(path)?,
        }
        Ok(Self { path: path.into(), _lock: lock })
    }

    /// The folder of the log's engine.
    pub fn log(&self) -> PathBuf {
        self.path.join("log")
    }

    /// The file of the log's high-water mark.
    pub fn log_mark(&self) -> PathBuf {
        self.path.join("log-mark")
    }

    /// The folder itself, where the stores stand side by side.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Moves the data of a node that its cluster has removed to a folder of its own, so that a new node can begin here,
    /// and returns which. The log goes last: as long as it is here, it says that the rest has to go. What was set aside
    /// before is removed: the last such data are kept for people who have erred, and a node that is removed again and
    /// again must not fill its disk.
    ///
    /// # Errors
    /// The file system refuses. What was moved by then stays there; the next call moves the rest.
    pub fn set_aside(&self, node_id: u64) -> Result<PathBuf, Error> {
        let aside = self.path.join(format!("{RETIRED}{node_id}"));
        let failed = |action, path: &Path| {
            let path = path.to_owned();
            move |source| Error::Io { action, path, source }
        };
        for name in self.named(RETIRED)? {
            let older = self.path.join(name);
            if older != aside {
                fs::remove_dir_all(&older).map_err(failed("remove", &older))?;
            }
        }
        DirBuilder::new().recursive(true).mode(0o700).create(&aside).map_err(failed("make", &aside))?;
        for name in self.named(STORES)?.into_iter().chain(["log-mark".into(), "log".into()]) {
            let path = self.path.join(&name);
            match fs::rename(&path, aside.join(&name)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed("move", &path)(error)),
                _ => sync_folder(&self.path).map_err(failed("sync", &self.path))?,
            }
        }
        Ok(aside)
    }

    /// The names of all that begins with something.
    fn named(&self, prefix: &str) -> Result<Vec<std::ffi::OsString>, Error> {
        let names = fs::read_dir(&self.path).and_then(|entries| {
            entries.map(|entry| entry.map(|entry| entry.file_name())).collect::<io::Result<Vec<_>>>()
        });
        let mut names = names.map_err(|source| Error::Io { action: "list", path: self.path.clone(), source })?;
        names.retain(|name| name.to_str().is_some_and(|name| name.starts_with(prefix)));
        Ok(names)
    }
}

fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

fn lock(folder: &Path) -> Result<File, Error> {
    let path = folder.join("lock");
    let failed = |action| move |source| Error::Io { action, path: folder.join("lock"), source };
    let file = File::options().write(true).create(true).truncate(false).open(&path).map_err(failed("open"))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(Error::InUse { path: folder.into() }),
        Err(TryLockError::Error(source)) => Err(failed("lock")(source)),
    }
}

fn format(folder: &Path) -> Result<Option<u32>, Error> {
    let path = folder.join("format");
    match fs::read_to_string(&path) {
        Ok(text) => match text.trim().parse() {
            Ok(number) => Ok(Some(number)),
            Err(_) => Err(Error::UnknownFormat { path, found: text.chars().take(20).collect() }),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::Io { action: "read", path, source }),
    }
}

/// By way of another name, so that a crash leaves no half-written number.
fn write_format(folder: &Path) -> Result<(), Error> {
    let (path, draft) = (folder.join("format"), folder.join("format.new"));
    let written = File::create(&draft)
        .and_then(|mut file| file.write_all(format!("{FORMAT}\n").as_bytes()).and_then(|()| file.sync_all()))
        .and_then(|()| fs::rename(&draft, &path))
        .and_then(|()| sync_folder(folder));
    written.map_err(|source| Error::Io { action: "write", path, source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_holder_is_refused_until_the_first_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        let first = DataFolder::open(folder.path()).unwrap();
        let refused = DataFolder::open(folder.path()).unwrap_err();
        assert!(matches!(refused, Error::InUse { .. }));
        assert!(refused.to_string().contains(folder.path().to_str().unwrap()));
        drop(first);
        DataFolder::open(folder.path()).unwrap();
    }

    #[test]
    fn of_removed_nodes_the_last_ones_data_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        let data = DataFolder::open(folder.path()).unwrap();
        for node in [1, 2] {
            for part in ["log", "store", "store.3"] {
                fs::create_dir(folder.path().join(part)).unwrap();
            }
            fs::write(folder.path().join("store-current"), "store.3").unwrap();
            assert_eq!(data.set_aside(node).unwrap(), folder.path().join(format!("retired-{node}")));
        }
        let names = |path: &Path| {
            let names = fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
            names.collect::<std::collections::BTreeSet<_>>()
        };
        assert_eq!(names(folder.path()), ["format", "lock", "retired-2"].map(Into::into).into());
        let kept = names(&folder.path().join("retired-2"));
        assert_eq!(kept, ["log", "store", "store-current", "store.3"].map(Into::into).into());
    }

    #[test]
    fn a_newer_format_is_refused_and_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("format"), "2\n").unwrap();
        let refused = DataFolder::open(folder.path()).unwrap_err();
        assert!(matches!(refused, Error::TooNew { found: 2, .. }), "{refused}");
        assert_eq!(fs::read_to_string(folder.path().join("format")).unwrap(), "2\n");
    }

    #[test]
    fn an_odd_format_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("format"), "one").unwrap();
        assert!(matches!(DataFolder::open(folder.path()), Err(Error::UnknownFormat { .. })));
    }
}
