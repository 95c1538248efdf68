//! What the log knows without asking its engine: its ends, its vote, and its newest entries.
//!
//! Pure: no engine, no locks. An entry is here from the moment it is appended; it may leave once it was written.

use std::{collections::VecDeque, ops::Range};

use super::super::{Entry, LogId, Payload, Vote};

/// What is kept in memory at most, in bytes of entries. Enough that followers which keep up, and the store, never read
/// the log from the engine.
const RING_BYTES_MAX: usize = 16 << 20;

/// What an entry costs beside its commands.
const ENTRY_OVERHEAD: usize = 128;

#[derive(Default)]
pub(super) struct Tail {
    /// The newest entries, consecutive.
    ring: VecDeque<Entry>,
    ring_bytes: usize,
    /// Entries below this index are in the engine.
    written: u64,
    pub(super) last: Option<LogId>,
    pub(super) purged: Option<LogId>,
    pub(super) vote: Option<Vote>,
    pub(super) committed: Option<LogId>,
}

/// Entries of a range: those in memory, and the indexes below them that only the engine has.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Found {
    pub(super) in_engine: Range<u64>,
    pub(super) in_memory: Vec<Entry>,
}

/// The bytes an entry counts for, in every bound of this module.
pub(super) fn size(entry: &Entry) -> usize {
    match &entry.payload {
        Payload::Normal(proposal) => proposal.0.len() + ENTRY_OVERHEAD,
        Payload::Membership(_) | Payload::Blank => ENTRY_OVERHEAD,
    }
}

fn after(id: Option<&LogId>) -> u64 {
    id.map_or(0, |id| id.index + 1)
}

impl Tail {
    /// The tail of a log as an engine holds it.
    pub(super) fn new(
        last: Option<LogId>,
        purged: Option<LogId>,
        vote: Option<Vote>,
        committed: Option<LogId>,
    ) -> Self {
        let written = after(last.as_ref());
        Self { written, last, purged, vote, committed, ..Self::default() }
    }

    pub(super) fn next_index(&self) -> u64 {
        after(self.last.as_ref())
    }

    pub(super) fn append(&mut self, entry: Entry) {
        self.last = Some(entry.log_id);
        self.ring_bytes += size(&entry);
        self.ring.push_back(entry);
    }

    /// Entries below this index are in the engine, written as durably as the log is.
    pub(super) fn written_below(&self) -> u64 {
        self.written
    }

    /// All entries below `index` are in the engine now: the oldest may leave memory.
    pub(super) fn wrote_below(&mut self, index: u64) {
        self.written = self.written.max(index).min(self.next_index());
        while self.ring_bytes > RING_BYTES_MAX && self.ring.front().is_some_and(|e| e.log_id.index < self.written) {
            self.forget_oldest();
        }
    }

    fn forget_oldest(&mut self) {
        if let Some(entry) = self.ring.pop_front() {
            self.ring_bytes -= size(&entry);
        }
    }

    /// Forgets what follows `last` and returns the indexes to remove; empty where nothing follows.
    pub(super) fn truncate_after(&mut self, last: Option<LogId>) -> Range<u64> {
        let doomed = after(last.as_ref())..self.next_index();
        if doomed.is_empty() {
            return doomed;
        }
        while self.ring.back().is_some_and(|entry| entry.log_id.index >= doomed.start) {
            self.ring_bytes -= self.ring.pop_back().as_ref().map_or(0, size);
        }
        self.last = last.max(self.purged);
        self.written = self.written.min(doomed.start);
        doomed
    }

    /// Forgets everything up to `upto`, which may lie beyond the end of the log.
    pub(super) fn purge(&mut self, upto: LogId) {
        while self.ring.front().is_some_and(|entry| entry.log_id.index <= upto.index) {
            self.forget_oldest();
        }
        if self.purged.is_none_or(|purged| purged.index < upto.index) {
            self.purged = Some(upto);
        }
        // By index: what a snapshot overtakes may be of a later term than its end.
        if self.last.is_none_or(|last| last.index < upto.index) {
            self.last = Some(upto);
        }
        self.written = self.written.max(after(self.purged.as_ref()));
    }

    /// The entries of a range, as far as the log has them.
    pub(super) fn read(&self, range: Range<u64>) -> Found {
        let range = range.start.max(after(self.purged.as_ref()))..range.end.min(self.next_index());
        if range.is_empty() {
            return Found::default();
        }
        let ring_start = self.next_index() - self.ring.len() as u64;
        let split = ring_start.clamp(range.start, range.end);
        let offset = |index: u64| usize::try_from(index.saturating_sub(ring_start)).unwrap_or(usize::MAX);
        let in_memory = self.ring.range(offset(split)..offset(range.end).min(self.ring.len()));
        Found { in_engine: range.start..split, in_memory: in_memory.cloned().collect() }
    }

    /// Where a read of `range` has to end so that it returns at most `bytes_max` from memory, but at least one entry;
    /// a read that has to ask the engine ends where memory begins.
    pub(super) fn limit(&self, range: Range<u64>, bytes_max: usize) -> Range<u64> {
        let ring_start = self.next_index() - self.ring.len() as u64;
        if range.start < ring_start {
            return range.start..range.end.min(ring_start);
        }
        let skipped = usize::try_from(range.start - ring_start).unwrap_or(usize::MAX);
        let mut bytes = 0;
        let fitting = self.ring.iter().skip(skipped).take_while(|entry| {
            bytes += size(entry);
            bytes <= bytes_max
        });
        let end = range.start + (fitting.count() as u64).max(1);
        range.start..end.min(range.end)
    }

    /// The commit point that may be saved once all entries below `written` are in the engine. Saved too early, it could
    /// lie beyond the log after a crash, and openraft would refuse to start.
    pub(super) fn committed_below(&self, written: u64) -> Option<LogId> {
        self.committed.filter(|id| id.index < written)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::{super::super::Proposal, *};

    fn id(index: u64) -> LogId {
        LogId { leader_id: 1.into(), index }
    }

    fn entry(index: u64, bytes: usize) -> Entry {
        Entry { log_id: id(index), payload: Payload::Normal(Proposal(Bytes::from(vec![0; bytes]))) }
    }

    fn tail(entries: Range<u64>, bytes: usize) -> Tail {
        let mut tail = Tail::default();
        entries.for_each(|index| tail.append(entry(index, bytes)));
        tail
    }

    fn indexes(found: &Found) -> Vec<u64> {
        found.in_memory.iter().map(|entry| entry.log_id.index).collect()
    }

    #[test]
    fn only_written_entries_leave_memory() {
        let mut tail = tail(0..40, 1 << 20);
        tail.wrote_below(0);
        assert_eq!(tail.read(0..40).in_engine, 0..0);
        tail.wrote_below(10);
        assert_eq!(tail.read(0..40).in_engine, 0..10);
        tail.wrote_below(40);
        let found = tail.read(0..40);
        assert!((15..=16).contains(&found.in_memory.len()), "{} entries", found.in_memory.len());
        assert_eq!(found.in_engine.end, found.in_memory[0].log_id.index);
    }

    #[test]
    fn truncating_past_the_end_does_nothing() {
        let mut tail = tail(0..3, 1);
        assert!(tail.truncate_after(Some(id(2))).is_empty());
        assert!(tail.truncate_after(Some(id(9))).is_empty());
        assert_eq!(tail.last, Some(id(2)));
        assert_eq!(tail.truncate_after(Some(id(0))), 1..3);
        assert_eq!((tail.last, indexes(&tail.read(0..9))), (Some(id(0)), vec![0]));
        assert_eq!(tail.truncate_after(None), 0..1);
        assert_eq!(tail.last, None);
    }

    #[test]
    fn purging_beyond_the_end_moves_the_end() {
        let mut tail = tail(0..3, 1);
        tail.purge(id(1));
        assert_eq!(indexes(&tail.read(0..9)), [2]);
        tail.purge(id(7));
        assert_eq!((tail.last, tail.next_index()), (Some(id(7)), 8));
        assert_eq!(tail.read(0..9), Found::default());
        tail.append(entry(8, 1));
        assert_eq!(indexes(&tail.read(0..9)), [8]);
    }

    #[test]
    fn a_limited_read_holds_at_least_one_entry() {
        let tail = tail(0..10, 1000);
        assert_eq!(tail.limit(2..10, 1), 2..3);
        assert_eq!(tail.limit(2..10, 3 * (1000 + ENTRY_OVERHEAD)), 2..5);
        assert_eq!(tail.limit(8..10, usize::MAX), 8..10);
    }

    #[test]
    fn the_commit_point_waits_until_it_is_covered() {
        let mut tail = tail(0..3, 1);
        tail.committed = Some(id(2));
        assert_eq!(tail.committed_below(2), None);
        assert_eq!(tail.committed_below(3), Some(id(2)));
    }
}
