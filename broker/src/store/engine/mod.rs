//! What the store and the Raft log ask of a key-value engine, so that both run on either of two: fjall on disk, or a
//! B-tree in memory.
//!
//! An engine holds numbered *spaces* of ordered keys. One thread commits; it also opens the views that readers use.
//! Not here: what keys and values mean (`store::keyspace`, `raft::log`).

use std::ops::Bound;

use bytes::Bytes;

pub mod fjall;
pub mod memory;

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
    /// Which key. In one batch each key occurs at most once per space.
    pub key: Bytes,
    /// The new value; `None` removes the key.
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
    fn commit(&self, batch: Batch, durability: Durability) -> Result<(), Error>;

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

/// Why an engine failed. None of these is retried: the process stops and says what happened (see `replication.md` 3 in
/// the architecture notes: a failed write or sync is never repeated).
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
