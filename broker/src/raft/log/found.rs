//! Reads what an engine holds of a log, and tells damage from a log that is merely short.

use std::{
    io,
    ops::{Bound, Range},
    path::PathBuf,
};

use bytes::Bytes;

use super::{
    super::{Entry, LogId, NodeId, convert},
    ENTRIES, Error, METADATA,
    mark::{self, Mark},
    tail::{self, Tail},
    writer::{self, Doomed},
};
use crate::store::engine::{Engine, View};

/// Opens the mark and compares it with the log.
pub(super) fn open_mark(path: PathBuf, log: &mark::Position) -> Result<Mark, Error> {
    let unreadable = |source| Error::MarkRead { path: path.clone(), source };
    let (mark, marked) = Mark::open(&path).map_err(unreadable)?;
    match marked {
        Some(marked) if marked.sequence > log.sequence => Err(Error::Damaged {
            what: format!(
                "its last {} writes are missing; it ends at index {} but had reached {}",
                marked.sequence - log.sequence,
                log.last_index,
                marked.last_index
            ),
        }),
        Some(_) => Ok(mark),
        None if log.sequence > 0 => {
            Err(Error::Damaged { what: format!("its high-water mark {} is gone", path.display()) })
        }
        None => {
            mark.write(*log).and_then(|()| mark.file()?.sync_all()).map_err(Error::MarkWrite)?;
            Ok(mark)
        }
    }
}

/// The node that was removed from its cluster, if it was.
pub(super) fn retired(engine: &dyn Engine) -> Result<Option<NodeId>, Error> {
    let view = engine.view().map_err(Error::Read)?;
    let metadata = |name: &str| view.get(METADATA, name.as_bytes()).map_err(Error::Read);
    if metadata("retired")?.is_none() {
        return Ok(None);
    }
    metadata("node_id")?.map(|bytes| number(&bytes)).transpose()
}

/// What an engine holds of a log.
pub(super) struct Found {
    pub(super) tail: Tail,
    pub(super) position: mark::Position,
    pub(super) node_id: Option<NodeId>,
    pub(super) starts: u64,
    /// The position of the last store that came from a peer.
    pub(super) installing: Option<LogId>,
    /// For how many milliseconds its process kept its word to its leader.
    pub(super) word: Option<u64>,
    /// The node was removed from its cluster.
    pub(super) retired: bool,
    /// Purged entries that are still there.
    pub(super) doomed: Doomed,
}

impl Found {
    pub(super) fn read(engine: &dyn Engine) -> Result<Self, Error> {
        let view = engine.view().map_err(Error::Read)?;
        let metadata = |name: &str| view.get(METADATA, name.as_bytes()).map_err(Error::Read);
        let log_id = |name: &str| metadata(name)?.map(|bytes| convert::decode_log_id(&bytes)).transpose().map_err(odd);
        let counter = |name: &str| metadata(name)?.map(|bytes| number(&bytes)).transpose();
        let vote = metadata("vote")?.map(|bytes| convert::decode_vote(&bytes)).transpose().map_err(odd)?;
        let (purged, committed) = (log_id("purged")?, log_id("committed")?);
        let mut entries = view.range(ENTRIES, (Bound::Unbounded, Bound::Unbounded));
        let first = entries.next().transpose().map_err(Error::Read)?.map(entry_of).transpose()?;
        let newest = entries.next_back().transpose().map_err(Error::Read)?.map(entry_of).transpose()?;
        let newest = newest.or_else(|| first.clone()).map(|entry| entry.log_id);
        // By index: what a snapshot overtook may be of a later term than the snapshot's end.
        let last = newest.filter(|id| purged.is_none_or(|purged| id.index > purged.index)).or(purged);
        let next_purged = purged.map_or(0, |id| id.index + 1);
        let start = first.map_or(next_purged, |entry| entry.log_id.index);
        if start > next_purged {
            return Err(Error::Damaged { what: format!("the entries from {next_purged} to {start} are missing") });
        }
        let position =
            mark::Position { sequence: counter("sequence")?.unwrap_or(0), last_index: last.map_or(0, |id| id.index) };
        let node_id = counter("node_id")?;
        // Saved too early by half: see `Tail::committed_below`.
        let tail = Tail::new(last, purged, vote, committed.min(last));
        let starts = counter("starts")?.unwrap_or(0);
        let (installing, retired) = (log_id("installing")?, metadata("retired")?.is_some());
        let word = counter("word")?;
        Ok(Self { tail, position, node_id, starts, installing, word, retired, doomed: Doomed::new(start, next_purged) })
    }
}

fn odd(error: convert::Error) -> Error {
    Error::Damaged { what: error.to_string() }
}

fn number(bytes: &[u8]) -> Result<u64, Error> {
    let bytes = bytes.try_into().map_err(|_| Error::Damaged { what: format!("a number of {} bytes", bytes.len()) })?;
    Ok(u64::from_be_bytes(bytes))
}

fn entry_of((key, value): (Bytes, Bytes)) -> Result<Entry, Error> {
    let index = number(&key)?;
    let entry = convert::decode_entry(value).map_err(odd)?;
    if entry.log_id.index != index {
        let what = format!("the entry at index {index} says it is number {}", entry.log_id.index);
        return Err(Error::Damaged { what });
    }
    Ok(entry)
}

/// Entries of a range, in order and without holes, and whether these are all; after `bytes_max` it stops, but not before
/// the first.
pub(super) fn load(view: &dyn View, range: Range<u64>, bytes_max: usize) -> io::Result<(Vec<Entry>, bool)> {
    let mut entries: Vec<Entry> = Vec::new();
    let mut bytes = 0;
    let bounds = (Bound::Included(writer::key(range.start)), Bound::Excluded(writer::key(range.end)));
    for item in view.range(ENTRIES, bounds) {
        let entry = entry_of(item.map_err(io::Error::other)?).map_err(io::Error::other)?;
        if let Some(before) = entries.last().filter(|before| before.log_id.index + 1 != entry.log_id.index) {
            let (before, after) = (before.log_id.index, entry.log_id.index);
            return Err(io::Error::other(format!("the log has a hole between {before} and {after}")));
        }
        bytes += tail::size(&entry);
        if bytes > bytes_max && !entries.is_empty() {
            return Ok((entries, false));
        }
        entries.push(entry);
    }
    Ok((entries, true))
}
