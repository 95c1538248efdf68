//! The engine on disk: one fjall database in one folder, one keyspace per space.
//!
//! What fjall guarantees here, and what the code relies on:
//! - A batch is atomic, and after a crash the batches present are a prefix of those committed, with every synced one.
//! - A snapshot taken while a batch is being applied may show half of it, so views come from the committing thread.
//! - After a failed write or sync the database is poisoned: every later commit fails.
//!
//! What it does not: a zeroed or broken page within the journal cuts everything after it without an error. Whoever
//! must notice keeps a mark of its own.

use std::{fs, io, ops::Bound, path::Path, sync::Arc};

use bytes::Bytes;
use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode, Readable};

use super::{
    Batch, Durability, Engine, Error, KEY_BYTES_MAX, KeyBounds, Range, Space, Stats, View, is_empty, refuse_unfit,
};

/// fjall panics below this bound of its journals.
const JOURNALS_BYTES_LEAST: u64 = 64 << 20;

/// How much memory, disk and threads a database may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FjallOptions {
    /// Cache of blocks read from disk, in bytes, shared by all keyspaces.
    pub cache_bytes: u64,
    /// Size at which a keyspace's memtable goes to disk, in bytes. Each keyspace can hold five of them. Settled when
    /// the keyspace is created: a later value has no effect on it.
    pub memtable_bytes: u64,
    /// Journals kept before idle keyspaces are made to flush, in bytes, at least 64 MiB. Bounds the time an open takes
    /// after a crash.
    pub journals_bytes_max: u64,
    /// Threads that flush and compact, at least one.
    pub worker_threads: usize,
}

impl Default for FjallOptions {
    fn default() -> Self {
        Self { cache_bytes: 32 << 20, memtable_bytes: 8 << 20, journals_bytes_max: 128 << 20, worker_threads: 2 }
    }
}

/// An engine on disk. The folder is locked until the engine and all its views are gone.
pub struct Fjall {
    database: Database,
    keyspaces: Arc<[Named]>,
}

struct Named {
    name: String,
    keyspace: Keyspace,
}

struct FjallView {
    snapshot: fjall::Snapshot,
    keyspaces: Arc<[Named]>,
}

impl Fjall {
    /// Opens the database in a folder, which is created if needed; so are the keyspaces, one per name, of at most 255
    /// bytes each. The folder and what is in it are closed to other users.
    ///
    /// # Errors
    /// [`Error::Locked`] when another process has it open, [`Error::Open`] for all else.
    pub fn open(path: &Path, names: &[&str], options: FjallOptions) -> Result<Self, Error> {
        let refuse = |reason: String| Error::Open { path: path.display().to_string(), reason };
        create_private(path).map_err(|error| refuse(error.to_string()))?;
        let database = open_database(path, options)?;
        let keyspaces = names.iter().map(|name| open_keyspace(&database, name, options)).collect::<Result<_, _>>();
        let keyspaces = keyspaces.map_err(refuse)?;
        close_to_others(path).map_err(|error| refuse(error.to_string()))?;
        Ok(Self { database, keyspaces })
    }

    fn write(&self, batch: Batch, durability: Durability) -> fjall::Result<()> {
        let mut writes = fjall::OwnedWriteBatch::with_capacity(self.database.clone(), batch.len());
        for change in batch {
            let Some(named) = self.keyspaces.get(usize::from(change.space.0)) else { continue };
            match change.value {
                Some(value) => writes.insert(&named.keyspace, change.key, value),
                None => writes.remove(&named.keyspace, change.key),
            }
        }
        let mode = match durability {
            Durability::Written => PersistMode::Buffer,
            Durability::Synced => PersistMode::SyncData,
        };
        writes.durability(Some(mode)).commit()
    }
}

impl Engine for Fjall {
    fn view(&self) -> Result<Box<dyn View>, Error> {
        Ok(Box::new(FjallView { snapshot: self.database.snapshot(), keyspaces: Arc::clone(&self.keyspaces) }))
    }

    fn commit(&self, batch: Batch, durability: Durability) -> Result<(), Error> {
        let changes = batch.len();
        refuse_unfit(&batch, self.keyspaces.len())?;
        // fjall returns from an empty batch before it comes to the sync.
        if batch.is_empty() && durability == Durability::Synced {
            return self.sync();
        }
        self.write(batch, durability).map_err(|error| Error::Commit { changes, reason: error.to_string() })
    }

    fn sync(&self) -> Result<(), Error> {
        self.database.persist(PersistMode::SyncData).map_err(|error| Error::Sync { reason: error.to_string() })
    }

    fn stats(&self) -> Stats {
        Stats {
            bytes: self.database.disk_space().unwrap_or_default(),
            journal_bytes: self.database.journal_disk_space().unwrap_or_default(),
            flushes_pending: self.database.outstanding_flushes() as u64,
            compactions: self.database.active_compactions() as u64,
        }
    }
}

impl FjallView {
    fn named(&self, space: Space) -> Result<&Named, Error> {
        self.keyspaces.get(usize::from(space.0)).ok_or_else(|| Error::no_such_space(space, self.keyspaces.len()))
    }
}

/// What is returned shares memory with a whole block of the cache: copy what is kept for long.
impl View for FjallView {
    fn get(&self, space: Space, key: &[u8]) -> Result<Option<Bytes>, Error> {
        let named = self.named(space)?;
        // fjall panics when asked for a key that cannot be there.
        if key.len() > KEY_BYTES_MAX {
            return Ok(None);
        }
        let value = self.snapshot.get(&named.keyspace, key).map_err(|error| named.unreadable(&error))?;
        Ok(value.map(Bytes::from))
    }

    fn range(&self, space: Space, bounds: KeyBounds) -> Range<'_> {
        if is_empty(&bounds) {
            return Box::new(std::iter::empty());
        }
        match self.named(space) {
            Ok(named) => Box::new(self.snapshot.range(&named.keyspace, shorten(bounds)).map(|guard| {
                let (key, value) = guard.into_inner().map_err(|error| named.unreadable(&error))?;
                Ok((key.into(), value.into()))
            })),
            Err(error) => Box::new(std::iter::once(Err(error))),
        }
    }
}

impl Named {
    fn unreadable(&self, error: &fjall::Error) -> Error {
        Error::Read { space: self.name.clone(), reason: error.to_string() }
    }
}

/// Bounds of the same keys without a bound longer than any key, on which fjall would panic: no key lies between a long
/// bound and its first [`KEY_BYTES_MAX`] bytes, and a key equal to those lies below the bound.
fn shorten((low, high): KeyBounds) -> KeyBounds {
    let long = |key: &Bytes| key.len() > KEY_BYTES_MAX;
    let low = match low {
        Bound::Included(key) | Bound::Excluded(key) if long(&key) => Bound::Excluded(key.slice(..KEY_BYTES_MAX)),
        low => low,
    };
    let high = match high {
        Bound::Included(key) | Bound::Excluded(key) if long(&key) => Bound::Included(key.slice(..KEY_BYTES_MAX)),
        high => high,
    };
    (low, high)
}

fn open_database(path: &Path, options: FjallOptions) -> Result<Database, Error> {
    let opened = Database::builder(path)
        .cache_size(options.cache_bytes)
        .max_journaling_size(options.journals_bytes_max.max(JOURNALS_BYTES_LEAST))
        .worker_threads(options.worker_threads.max(1))
        .open();
    let path = || path.display().to_string();
    opened.map_err(|error| match error {
        fjall::Error::Locked => Error::Locked { path: path() },
        error => Error::Open { path: path(), reason: error.to_string() },
    })
}

fn open_keyspace(database: &Database, name: &str, options: FjallOptions) -> Result<Named, String> {
    // Outside of this fjall panics.
    if !(1..=255).contains(&name.len()) {
        return Err(format!("{name:?} cannot be the name of a keyspace"));
    }
    let create = || KeyspaceCreateOptions::default().max_memtable_size(options.memtable_bytes);
    let keyspace = database.keyspace(name, create).map_err(|error| error.to_string())?;
    Ok(Named { name: name.to_owned(), keyspace })
}

#[cfg(unix)]
fn create_private(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;

    fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

#[cfg(not(unix))]
fn create_private(path: &Path) -> io::Result<()> {
    fs::create_dir_all(path)
}

/// Takes from others what rights the umask left them on the folder and what is in it. Files that fjall makes later are
/// out of reach behind the folder itself. What belongs to somebody else is left as it is: whoever mounted it decided.
#[cfg(unix)]
fn close_to_others(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;

    let metadata = fs::symlink_metadata(path)?;
    let mode = metadata.permissions().mode();
    if mode & 0o077 != 0 && !metadata.is_symlink() {
        unless_gone_or_foreign(fs::set_permissions(path, fs::Permissions::from_mode(mode & 0o7700)))?;
    }
    if metadata.is_dir() {
        for entry in fs::read_dir(path)? {
            unless_gone_or_foreign(close_to_others(&entry?.path()))?;
        }
    }
    Ok(())
}

/// Compaction may remove a file meanwhile.
#[cfg(unix)]
fn unless_gone_or_foreign(result: io::Result<()>) -> io::Result<()> {
    use io::ErrorKind::{NotFound, PermissionDenied};

    result.or_else(|error| if matches!(error.kind(), NotFound | PermissionDenied) { Ok(()) } else { Err(error) })
}

#[cfg(not(unix))]
fn close_to_others(_: &Path) -> io::Result<()> {
    Ok(())
}
