//! The log of a node that does not run: read, and told that the store overtakes it.
//!
//! Not here: with what (`raft::recover`).

use std::{path::PathBuf, sync::Arc};

use bytes::Bytes;

use super::{
    super::{Entry, LogId, NodeId, Vote, convert},
    Error,
    found::{self, Found},
    mark::Mark,
    writer,
};
use crate::store::engine::{Durability, Engine};

/// Whoever holds it holds the log.
pub(in super::super) struct Stopped {
    engine: Arc<dyn Engine>,
    mark: Mark,
    found: Found,
    node_id: NodeId,
}

impl Stopped {
    /// Reads the log that an engine holds; none if nobody has ever written to it.
    ///
    /// # Errors
    /// It is damaged, or its node was removed from its cluster.
    pub(in super::super) fn open(engine: Arc<dyn Engine>, mark: PathBuf) -> Result<Option<Self>, Error> {
        let found = Found::read(&*engine)?;
        let Some(node_id) = found.node_id else { return Ok(None) };
        if found.retired {
            return Err(Error::Retired { node_id });
        }
        let mark = found::open_mark(mark, &found.position)?;
        Ok(Some(Self { engine, mark, found, node_id }))
    }

    pub(in super::super) fn node_id(&self) -> NodeId {
        self.node_id
    }

    /// Up to where it is purged, and where it ends.
    pub(in super::super) fn ends(&self) -> (Option<LogId>, Option<LogId>) {
        (self.found.tail.purged, self.found.tail.last)
    }

    pub(in super::super) fn vote(&self) -> Option<Vote> {
        self.found.tail.vote
    }

    /// See [`super::Log::installing`].
    pub(in super::super) fn installing(&self) -> Option<LogId> {
        self.found.installing
    }

    /// All entries from an index on. What the store has yet to apply is bounded: see `retention`.
    pub(in super::super) fn entries_from(&self, index: u64) -> Result<Vec<Entry>, Error> {
        let view = self.engine.view().map_err(Error::Read)?;
        let end = self.found.tail.last.map_or(0, |last| last.index + 1);
        let odd = |error: std::io::Error| Error::Damaged { what: error.to_string() };
        let (entries, _) = found::load(&*view, index.min(end)..end, usize::MAX).map_err(odd)?;
        let found = entries.first().map_or(end, |entry| entry.log_id.index);
        if found > index.min(end) {
            return Err(Error::Damaged { what: format!("the entries from {index} to {found} are missing") });
        }
        Ok(entries)
    }

    /// Votes, and notes that the store is about to stand at `at`, beyond the end of the log: from then on the next
    /// start takes the store's word for it if it does. A store that has overtaken the log before needs `purged`, for
    /// its own note is replaced. On the disk on return.
    pub(in super::super) fn announce(&mut self, vote: Vote, at: LogId, purged: Option<LogId>) -> Result<(), Error> {
        let mut position = self.found.position;
        position.sequence += 1;
        let mut batch = vec![
            writer::metadata(b"vote", convert::encode_vote(&vote)),
            writer::metadata(b"installing", convert::encode_log_id(&at)),
            writer::metadata(b"sequence", Bytes::copy_from_slice(&position.sequence.to_be_bytes())),
        ];
        if let Some(purged) = purged {
            position.last_index = position.last_index.max(purged.index);
            batch.push(writer::metadata(b"purged", convert::encode_log_id(&purged)));
        }
        self.engine.commit(batch, Durability::Synced).map_err(Error::Write)?;
        self.found.position = position;
        // After the batch: a mark that is older than the log says nothing wrong.
        self.mark.write(position).and_then(|()| self.mark.file()?.sync_all()).map_err(Error::MarkWrite)
    }
}
