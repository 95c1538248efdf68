//! The engine on disk: one fjall database in one folder, all spaces in one tree.
//!
//! ```text
//!   space (1 byte) key → value     what was committed
//!   ff                 → u64       the number of the last batch, put by each batch as its first entry
//! ```
//!
//! Why one tree and not a fjall keyspace per space: fjall writes each keyspace's tables at its own time, and a journal
//! that was cut gives no error. What was only in the journal is then older than what was already in tables, so that
//! spaces would contradict each other. In one tree a cut journal leaves an older whole: the tables, and as much of the
//! journal as is left. One tree also has one set of memtables, so that memory does not grow with the number of spaces,
//! and idle spaces do not keep journals from being removed.
//!
//! What fjall guarantees here, and what the code relies on:
//! - A batch is atomic, and after a crash the batches present are a prefix of those committed, with every synced one.
//! - A snapshot taken while a batch is being applied may show half of it, so views come from the committing thread.
//! - After a failed write or sync the database is poisoned: every later commit fails.
//!
//! What it does not, and is checked at open, is that nothing is missing: batches in the journals are numbered without
//! a gap, and no table has a later one than they do. What cannot be told: that the journal's end is lost beyond what
//! is in tables. Whoever must notice keeps a mark of its own.

use std::{
    fs, io,
    ops::Bound,
    panic::{self, AssertUnwindSafe},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use fjall::{
    Database, Keyspace, KeyspaceCreateOptions, PersistMode, Readable,
    compaction::Leveled,
    config::{PartitioningPolicy, PinningPolicy},
};

use super::{
    Batch, Change, Durability, Engine, Error, KEY_BYTES_MAX, KeyBounds, Range, Space, Stats, View, is_empty, journal,
    refuse_unfit,
};

/// The name of the one tree.
const TREE: &str = "spaces";

/// fjall panics below this bound of its journals.
const JOURNALS_BYTES_LEAST: u64 = 64 << 20;

/// The length of fjall's file `version` once it is written.
const VERSION_BYTES: u64 = 4;

/// How much memory, disk and threads a database may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FjallOptions {
    /// Cache of blocks read from disk, in bytes.
    pub cache_bytes: u64,
    /// Size at which the memtable goes to disk, in bytes; there can be five of them. Settled when the database is
    /// created: a later value has no effect on it.
    pub memtable_bytes: u64,
    /// Size of the journals at which the memtable goes to disk even if it is small, in bytes, at least 64 MiB. Bounds
    /// the time an open takes after a crash.
    pub journals_bytes_max: u64,
    /// Threads that flush and compact, at least one. With more than one, the first of them passes compactions on to the
    /// others by putting them back into the queue, and spins on it while the others are busy: on a machine of few
    /// cores that costs more than a second compaction gains.
    pub worker_threads: usize,
}

impl Default for FjallOptions {
    fn default() -> Self {
        Self { cache_bytes: 32 << 20, memtable_bytes: 16 << 20, journals_bytes_max: 128 << 20, worker_threads: 1 }
    }
}

/// An engine on disk. The folder is locked until the engine and all its views are gone.
pub struct Fjall {
    database: Database,
    tree: Keyspace,
    names: Arc<[String]>,
    /// The number of the last batch.
    committed: AtomicU64,
}

struct FjallView {
    snapshot: fjall::Snapshot,
    tree: Keyspace,
    names: Arc<[String]>,
}

impl Fjall {
    /// Opens the database in a folder, which is created if needed, with a space per name, of which there may be 255.
    /// The folder and what is in it are closed to other users.
    ///
    /// # Errors
    /// [`Error::Locked`] when another process has it open, [`Error::Open`] for all else.
    pub fn open(path: &Path, names: &[&str], options: FjallOptions) -> Result<Self, Error> {
        let refused = |reason: String| Error::Open { path: path.display().to_string(), reason };
        let failed = |error: io::Error| refused(error.to_string());
        create_private(path).map_err(failed)?;
        let lock = lock(path)?;
        discard_unfinished(path).map_err(failed)?;
        let in_journals = journal::check(path).map_err(refused)?;
        // fjall takes the lock itself. Dropping the file would not do: a process being forked has it open, too.
        lock.unlock().map_err(failed)?;
        let (database, tree) = open_tree(path, options)?;
        let committed = last_number(&tree).map_err(refused)?;
        if let Some(last) = in_journals.filter(|last| *last != committed) {
            return Err(refused(format!("the journals end with batch {last}, but the tables have batch {committed}")));
        }
        close_to_others(path).map_err(failed)?;
        let names = names.iter().map(ToString::to_string).collect();
        Ok(Self { database, tree, names, committed: committed.into() })
    }

    fn write(&self, batch: Batch, durability: Durability) -> fjall::Result<()> {
        let mut writes = fjall::OwnedWriteBatch::with_capacity(self.database.clone(), 1 + batch.len());
        let number = self.committed.fetch_add(1, Ordering::Relaxed) + 1;
        writes.insert(&self.tree, &journal::NUMBER[..], &number.to_be_bytes()[..]);
        for change in batch {
            let key = on_disk(change.space, &change.key);
            match change.value {
                Some(value) => writes.insert(&self.tree, key, value),
                None => writes.remove(&self.tree, key),
            }
        }
        let mode = match durability {
            Durability::Written => PersistMode::Buffer,
            Durability::Synced => PersistMode::SyncData,
        };
        writes.durability(Some(mode)).commit()
    }

    /// Straight into tables, past journal and memtable. They have no batch number: those are for what a journal holds.
    fn ingest(&self, rows: Batch) -> fjall::Result<()> {
        let mut ingestion = self.tree.start_ingestion()?;
        for Change { space, key, value } in rows {
            let key = on_disk(space, &key);
            match value {
                Some(value) => ingestion.write(key, value)?,
                None => ingestion.write_tombstone(key)?,
            }
        }
        ingestion.finish()
    }
}

impl Engine for Fjall {
    fn view(&self) -> Result<Box<dyn View>, Error> {
        let (tree, names) = (self.tree.clone(), Arc::clone(&self.names));
        Ok(Box::new(FjallView { snapshot: self.database.snapshot(), tree, names }))
    }

    fn commit(&self, batch: Batch, durability: Durability) -> Result<(), Error> {
        let changes = batch.len();
        refuse_unfit(&batch, self.names.len())?;
        if batch.is_empty() {
            return if durability == Durability::Synced { self.sync() } else { Ok(()) };
        }
        self.write(batch, durability).map_err(|error| Error::Commit { changes, reason: error.to_string() })
    }

    fn load(&self, rows: Batch) -> Result<(), Error> {
        let changes = rows.len();
        refuse_unfit(&rows, self.names.len())?;
        // fjall panics on keys that do not rise.
        if !rows.is_sorted_by(|before, after| (before.space, &before.key) < (after.space, &after.key)) {
            let reason = "the rows to be loaded are not in order".to_owned();
            return Err(Error::Commit { changes, reason });
        }
        self.ingest(rows).map_err(|error| Error::Commit { changes, reason: error.to_string() })
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
    fn name(&self, space: Space) -> Result<&str, Error> {
        let name = self.names.get(usize::from(space.0)).map(String::as_str);
        name.ok_or_else(|| Error::no_such_space(space, self.names.len()))
    }
}

/// What is returned shares memory with a whole block of the cache: copy what is kept for long.
impl View for FjallView {
    fn get(&self, space: Space, key: &[u8]) -> Result<Option<Bytes>, Error> {
        let name = self.name(space)?;
        // fjall panics when asked for a key that cannot be there.
        if key.len() > KEY_BYTES_MAX {
            return Ok(None);
        }
        let value = self.snapshot.get(&self.tree, on_disk(space, key)).map_err(|error| unreadable(name, &error))?;
        Ok(value.map(Bytes::from))
    }

    fn range(&self, space: Space, bounds: KeyBounds) -> Range<'_> {
        if is_empty(&bounds) {
            return Box::new(std::iter::empty());
        }
        match self.name(space) {
            Ok(name) => Box::new(self.snapshot.range(&self.tree, bounds_on_disk(space, bounds)).map(move |guard| {
                let (key, value) = guard.into_inner().map_err(|error| unreadable(name, &error))?;
                Ok((Bytes::from(key).slice(1..), value.into()))
            })),
            Err(error) => Box::new(std::iter::once(Err(error))),
        }
    }
}

fn unreadable(space: &str, error: &fjall::Error) -> Error {
    Error::Read { space: space.to_owned(), reason: error.to_string() }
}

fn on_disk(Space(number): Space, key: &[u8]) -> Vec<u8> {
    let mut on_disk = Vec::with_capacity(1 + key.len());
    on_disk.push(number);
    on_disk.extend_from_slice(key);
    on_disk
}

fn bounds_on_disk(space: Space, (low, high): KeyBounds) -> (Bound<Vec<u8>>, Bound<Vec<u8>>) {
    // fjall panics on a bound that is longer than any key. No key lies between such a bound and its first bytes, and a
    // key equal to those lies below the bound.
    let cut = |key: &Bytes| on_disk(space, &key[..KEY_BYTES_MAX]);
    let long = |key: &Bytes| key.len() > KEY_BYTES_MAX;
    let low = match low {
        Bound::Included(key) | Bound::Excluded(key) if long(&key) => Bound::Excluded(cut(&key)),
        Bound::Unbounded => Bound::Included(on_disk(space, &[])),
        low => low.map(|key| on_disk(space, &key)),
    };
    let high = match high {
        Bound::Included(key) | Bound::Excluded(key) if long(&key) => Bound::Included(cut(&key)),
        Bound::Unbounded => space.0.checked_add(1).map_or(Bound::Unbounded, |next| Bound::Excluded(vec![next])),
        high => high.map(|key| on_disk(space, &key)),
    };
    (low, high)
}

fn last_number(tree: &Keyspace) -> Result<u64, String> {
    let value = tree.get(journal::NUMBER).map_err(|error| error.to_string())?;
    let number = value.map_or(Ok([0; 8]), |value| <[u8; 8]>::try_from(&value[..]));
    number.map(u64::from_be_bytes).map_err(|_| "the number of the last batch is damaged".to_owned())
}

fn open_tree(path: &Path, options: FjallOptions) -> Result<(Database, Keyspace), Error> {
    let open = || {
        let database = Database::builder(path)
            .cache_size(options.cache_bytes)
            .max_journaling_size(options.journals_bytes_max.max(JOURNALS_BYTES_LEAST))
            .worker_threads(options.worker_threads.max(1))
            .open()?;
        let create = || tree_options(options);
        let tree = database.keyspace(TREE, create)?;
        Ok((database, tree))
    };
    let path = || path.display().to_string();
    // On some damaged files fjall panics.
    let damaged = |_| Err(Error::Open { path: path(), reason: "its files are damaged".to_owned() });
    panic::catch_unwind(AssertUnwindSafe(|| {
        open().map_err(|error| match error {
            fjall::Error::Locked => Error::Locked { path: path() },
            error => Error::Open { path: path(), reason: error.to_string() },
        })
    }))
    .unwrap_or_else(damaged)
}

/// The size of a table. It bounds what a compaction takes of the disk: it writes all of the first levels anew before it gives
/// the old tables back, which are at most some memtables, and in the second level some tables more than
/// [`FIRST_TABLES`]. With fjall's own 64 MiB that is nearly half a gibibyte, and a disk that is full then ends the node.
const TABLE_BYTES: u64 = 16 << 20;
/// So many memtables that were written are put together with the second level, which holds as many tables.
const FIRST_TABLES: u8 = 4;

/// How tables are laid out, settled when the database is created. Most reads are of keys that are there, one by one:
/// - A table's index is one block that stays in memory (about a hundredth of what is on the disk): a read looks into it
///   without asking the cache.
/// - Below the first level filters are cut into blocks of some KiB, which the cache holds one by one. Uncut, those of a
///   table of 64 MiB are blocks of up to a megabyte: they do not stay in a small cache, and every read then fetches and
///   checks a megabyte to find one record.
/// - The last level, which holds nine tenths of all, has no filters: a key that got there is nearly always found. That
///   leaves the cache to data, at the price of one block read for a key that is nowhere.
fn tree_options(options: FjallOptions) -> KeyspaceCreateOptions {
    KeyspaceCreateOptions::default()
        .max_memtable_size(options.memtable_bytes)
        .compaction_strategy(Arc::new(
            Leveled::default().with_table_target_size(TABLE_BYTES).with_l0_threshold(FIRST_TABLES),
        ))
        .index_block_partitioning_policy(PartitioningPolicy::all(false))
        .index_block_pinning_policy(PinningPolicy::all(true))
        .filter_block_partitioning_policy(PartitioningPolicy::new([false, true]))
        .expect_point_read_hits(true)
}

/// Takes fjall's lock, so that the files can be looked at before fjall opens them.
fn lock(path: &Path) -> Result<fs::File, Error> {
    let file = fs::File::options().create(true).truncate(false).write(true).open(path.join("lock"));
    let locked = file.map_err(fs::TryLockError::Error).and_then(|file| file.try_lock().map(|()| file));
    let path = || path.display().to_string();
    locked.map_err(|error| match error {
        fs::TryLockError::WouldBlock => Error::Locked { path: path() },
        fs::TryLockError::Error(error) => Error::Open { path: path(), reason: error.to_string() },
    })
}

/// Whether there is a database in the folder that no engine, and no view of one, has open.
pub(super) fn is_idle(path: &Path) -> bool {
    path.is_dir() && lock(path).is_ok()
}

/// Removes what a first start left that was killed half-way: fjall would refuse it for ever. Nothing was committed as
/// long as there are no tables, not even those of fjall itself, which it makes after it has written its version. Should
/// all of them be lost, a journal with batches is kept all the same.
fn discard_unfinished(path: &Path) -> io::Result<()> {
    let (version, tables) = (path.join("version"), path.join("keyspaces"));
    let finished = fs::metadata(&version).is_ok_and(|version| version.len() >= VERSION_BYTES);
    let has_tables = fs::read_dir(tables).is_ok_and(|mut tables| tables.next().is_some());
    if finished || has_tables || !journal::are_blank(path)? {
        return Ok(());
    }
    [path.join("0.jnl"), version].into_iter().try_for_each(|left| fs::remove_file(left).or_else(unless_gone))
}

/// Something else may have removed a file meanwhile.
fn unless_gone(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
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
        fs::set_permissions(path, fs::Permissions::from_mode(mode & 0o7700)).or_else(unless_foreign)?;
    }
    if metadata.is_dir() {
        for entry in fs::read_dir(path)? {
            close_to_others(&entry?.path()).or_else(unless_foreign)?;
        }
    }
    Ok(())
}

#[cfg(unix)]
fn unless_foreign(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::PermissionDenied { Ok(()) } else { unless_gone(error) }
}

#[cfg(not(unix))]
fn close_to_others(_: &Path) -> io::Result<()> {
    Ok(())
}
