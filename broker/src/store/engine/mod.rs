//! What the store and the Raft log ask of a key-value engine, so that both run on either of two: fjall on disk, or a
//! B-tree in memory.
//!
//! An engine holds numbered *spaces* of ordered keys. One thread commits; it also opens the views that readers use.
//! Not here: what keys and values mean (`store::keyspace`, `raft::log`).

use std::ops::Bound;

use bytes::Bytes;

pub mod fjall;
pub mod memory;
pub mod shelf;

mod journal;

#[cfg(all(test, unix))]
mod crash;
#[cfg(test)]
mod suite;

/// The longest key an engine takes, in bytes: fjall's limit less the byte for the space. Kept by both engines, so that
/// both answer alike.
pub const KEY_BYTES_MAX: usize = u16::MAX as usize - 1;

/// A keyspace by its position in the list of names the engine was opened with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Space(pub u8);

/// How far a commit has gone when it returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// Handed to the operating system: survives the process, not a power loss.
    Written,
    /// On the disk.
    Synced,
}

/// One change of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Where.
    pub space: Space,
    /// Which key, of at most [`KEY_BYTES_MAX`] bytes. In one batch each key occurs at most once per space.
    pub key: Bytes,
    /// The new value; `None` removes the key. The engine holds on to the allocation behind it: a small slice of a
    /// large buffer keeps the whole buffer in memory.
    pub value: Option<Bytes>,
}

/// Changes that take effect together or not at all.
pub type Batch = Vec<Change>;

/// A key and its value, or why reading stopped.
pub type Item = Result<(Bytes, Bytes), Error>;

/// The keys of a range in order, from either end.
pub type Range<'a> = Box<dyn DoubleEndedIterator<Item = Item> + Send + 'a>;

/// Bounds of a range of keys.
pub type KeyBounds = (Bound<Bytes>, Bound<Bytes>);

/// An engine. All calls block.
pub trait Engine: Send + Sync + 'static {
    /// A consistent view of everything committed so far. Only the committing thread may call this: a view opened
    /// during a commit could show half of it.
    fn view(&self) -> Result<Box<dyn View>, Error>;

    /// Applies a batch atomically. Only one thread may call this.
    ///
    /// # Errors
    /// [`Error::Unfit`] changes nothing. After any other error nothing can be committed any more.
    fn commit(&self, batch: Batch, durability: Durability) -> Result<(), Error>;

    /// Takes a part of a whole that is being copied into an engine that held nothing: rows in the order of their spaces
    /// and keys, each beyond all that is there already. Faster than [`Engine::commit`], and no more durable before the
    /// next [`Engine::sync`]. Nothing of the rows' allocations is held on to. Only the committing thread may call this.
    ///
    /// # Errors
    /// As for [`Engine::commit`]; what was loaded in part is of no use.
    fn load(&self, rows: Batch) -> Result<(), Error>;

    /// Returns when everything committed so far is on the disk.
    fn sync(&self) -> Result<(), Error>;

    /// Sizes, for metrics.
    fn stats(&self) -> Stats;
}

/// What was committed at one moment. Later commits do not show.
pub trait View: Send + Sync {
    /// The value of a key.
    fn get(&self, space: Space, key: &[u8]) -> Result<Option<Bytes>, Error>;

    /// The keys within bounds, in byte order.
    fn range(&self, space: Space, bounds: KeyBounds) -> Range<'_>;
}

/// Sizes of an engine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Bytes on disk, journals included; bytes held for the memory engine.
    pub bytes: u64,
    /// Journal bytes not yet part of a table.
    pub journal_bytes: u64,
    /// Memtables waiting to be flushed.
    pub flushes_pending: u64,
    /// Compactions under way.
    pub compactions: u64,
}

/// Why an engine failed. None of these is retried: the process stops and says what happened. After a failed sync the
/// system may have thrown away what was to be written, so that a second one would succeed without it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another process holds the folder.
    #[error("the folder {path} is in use by another process")]
    Locked {
        /// The folder.
        path: String,
    },
    /// The folder could not be opened.
    #[error("cannot open {path}: {reason}")]
    Open {
        /// The folder.
        path: String,
        /// What the engine said.
        reason: String,
    },
    /// A read failed.
    #[error("cannot read from keyspace {space}: {reason}")]
    Read {
        /// The keyspace's name.
        space: String,
        /// What the engine said.
        reason: String,
    },
    /// A batch could not be written.
    #[error("cannot write a batch of {changes} changes: {reason}")]
    Commit {
        /// Its size.
        changes: usize,
        /// What the engine said.
        reason: String,
    },
    /// A batch holds what no engine takes: a mistake of the caller.
    #[error(
        "cannot write a key of {key_bytes} bytes with a value of {value_bytes} bytes to keyspace number {space}: \
         there are {spaces} keyspaces, a key has at most {KEY_BYTES_MAX} bytes, a value less than 4 GiB"
    )]
    Unfit {
        /// The number of the space.
        space: u8,
        /// The length of the key.
        key_bytes: usize,
        /// The length of the value.
        value_bytes: usize,
        /// How many spaces there are.
        spaces: usize,
    },
    /// What was written could not be synced.
    #[error("cannot sync to disk: {reason}")]
    Sync {
        /// What the engine said.
        reason: String,
    },
    /// What was read is not what was written.
    #[error("keyspace {space} is damaged: {reason}")]
    Damaged {
        /// The keyspace's name.
        space: String,
        /// What is wrong with which key.
        reason: String,
    },
}

impl Error {
    fn no_such_space(space: Space, spaces: usize) -> Self {
        Self::Read { space: format!("number {}", space.0), reason: format!("there are {spaces} keyspaces") }
    }
}

/// Checks a batch before anything of it is written: fjall would panic half-way.
fn refuse_unfit(batch: &[Change], spaces: usize) -> Result<(), Error> {
    let fits = |change: &Change| {
        usize::from(change.space.0) < spaces
            && change.key.len() <= KEY_BYTES_MAX
            && change.value.as_ref().is_none_or(|value| u32::try_from(value.len()).is_ok())
    };
    batch.iter().find(|change| !fits(change)).map_or(Ok(()), |Change { space: Space(space), key, value }| {
        let (key_bytes, value_bytes) = (key.len(), value.as_ref().map_or(0, Bytes::len));
        Err(Error::Unfit { space: *space, key_bytes, value_bytes, spaces })
    })
}

/// Whether no key can lie within the bounds. B-trees of the standard library panic when asked for such a range.
pub(super) fn is_empty(bounds: &KeyBounds) -> bool {
    match bounds {
        (Bound::Unbounded, _) | (_, Bound::Unbounded) => false,
        (Bound::Included(low), Bound::Included(high)) => low > high,
        (Bound::Included(low) | Bound::Excluded(low), Bound::Included(high) | Bound::Excluded(high)) => low >= high,
    }
}

/// The bounds as the maps take them.
pub(super) fn as_slices(bounds: &KeyBounds) -> (Bound<&[u8]>, Bound<&[u8]>) {
    (bounds.0.as_ref().map(|key| &key[..]), bounds.1.as_ref().map(|key| &key[..]))
}
