//! The store as its one owner sees it: open, apply, sync.

use std::sync::Arc;

use bytes::Bytes;

use super::{
    command::{self, Answer},
    engine::{self, Engine},
    snapshot::Reader,
};

/// A place in the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// The leader's term.
    pub term: u64,
    /// The leader's node id.
    pub node: u64,
    /// The entry's index.
    pub index: u64,
}

/// What one committed log entry asks of the store.
#[derive(Clone, Debug)]
pub enum Step {
    /// An encoded `databroker.internal.v1.Entry`.
    Commands(Bytes),
    /// An encoded membership, kept for Raft as it is.
    Membership(Bytes),
    /// Nothing.
    Blank,
}

/// How a store is opened.
#[derive(Clone, Debug)]
pub struct Options {
    /// How much of the newest changes is kept in memory for streams, in bytes.
    pub tail_bytes_max: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { tail_bytes_max: 8 << 20 }
    }
}

/// Why the store cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The engine failed.
    #[error(transparent)]
    Engine(#[from] engine::Error),
    /// A committed entry cannot be applied.
    #[error("cannot apply the log entry at index {index}: {source}")]
    Decode {
        /// Where.
        index: u64,
        /// Why.
        source: command::DecodeError,
    },
    /// What the store holds makes no sense.
    #[error("the store is damaged: {what}")]
    Damaged {
        /// What was found.
        what: String,
    },
    /// The store was written by a newer release.
    #[error("the store has format {found}, this release knows up to {known}: start a newer release of the broker")]
    TooNew {
        /// The store's format.
        found: u32,
        /// The newest format of this build.
        known: u32,
    },
}

/// The state machine. One owner applies; readers get snapshots through [`Reader`].
pub struct Store {
    engine: Arc<dyn Engine>,
    reader: Reader,
}

impl Store {
    /// Opens the store an engine holds; an empty one is made ready.
    pub fn open(engine: Arc<dyn Engine>, options: Options) -> Result<Self, Error> {
        let _ = options;
        let _ = engine;
        todo!()
    }

    /// For readers.
    pub fn reader(&self) -> &Reader {
        &self.reader
    }

    /// Where the store stands: the last applied position and the last membership, with its position, as given to
    /// [`Store::apply`].
    pub fn applied(&self) -> (Option<Position>, Option<(Position, Bytes)>) {
        todo!()
    }

    /// Applies committed entries as one batch, with the last position in it, and publishes the new snapshot before it
    /// returns. Not synced: after a crash the log is replayed from [`Store::applied`].
    ///
    /// Returns, per step, the answers of its commands.
    ///
    /// # Errors
    /// Every error is final: the node stops.
    pub fn apply(&mut self, steps: Vec<(Position, Step)>) -> Result<Vec<Vec<Answer>>, Error> {
        let _ = steps;
        todo!()
    }

    /// Returns when all that was applied is on the disk: from then on the log up to there may be purged.
    pub fn sync(&self) -> Result<(), Error> {
        Ok(self.engine.sync()?)
    }
}
