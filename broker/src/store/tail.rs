//! The newest changes in memory, encoded once and shared by every stream that keeps up.
//!
//! A ring bounded by bytes: a stream that falls behind it reads the change log on disk instead. Not here: waiting for
//! changes (streams watch `Progress`).

use std::collections::VecDeque;

use databroker_proto::EncodedRecord;
use parking_lot::RwLock;

use super::apply::Change;

/// How many bytes of changes one call hands out at most: enough to fill a connection's window, little enough that a slow
/// stream holds next to nothing.
pub const CHUNK_BYTES_MAX: usize = 64 << 10;

/// How many changes one call looks at, so that a stream of a rare type does not hold the lock for long.
const CHUNK_CHANGES_MAX: usize = 1024;

/// What a change costs beside its record, in bytes.
const OVERHEAD: usize = 96;

/// Consecutive changes for one stream.
#[derive(Clone, Debug, Default)]
pub struct Changes {
    /// The history they belong to. A stream of another server version is over.
    pub server_version: u64,
    /// In order of version.
    pub records: Vec<EncodedRecord>,
    /// Every change of the wanted type up to this version has been returned: the next question starts here.
    pub position: u64,
    /// Nothing newer was there at the moment of the call.
    pub complete: bool,
}

/// The ring.
#[derive(Debug)]
pub(super) struct Tail {
    bytes_max: usize,
    ring: RwLock<Ring>,
}

#[derive(Debug, Default)]
struct Ring {
    server_version: u64,
    latest: u64,
    bytes: usize,
    /// Contiguous versions, ending with `latest`.
    changes: VecDeque<Change>,
}

impl Tail {
    pub(super) fn new(bytes_max: usize, server_version: u64, latest: u64) -> Self {
        Self { bytes_max, ring: RwLock::new(Ring { server_version, latest, ..Ring::default() }) }
    }

    /// Adds what one batch changed. `cleared`: what came before belongs to a history that is over.
    pub(super) fn extend(&self, server_version: u64, latest: u64, cleared: bool, changes: Vec<Change>) {
        let mut ring = self.ring.write();
        if cleared {
            ring.changes.clear();
            ring.bytes = 0;
        }
        ring.server_version = server_version;
        ring.latest = latest;
        for change in changes {
            ring.bytes += cost(&change);
            ring.changes.push_back(change);
        }
        while ring.bytes > self.bytes_max {
            let Some(oldest) = ring.changes.pop_front() else { break };
            ring.bytes -= cost(&oldest);
        }
    }

    /// Forgets all: the store was replaced by one that stands here.
    pub(super) fn reset(&self, server_version: u64, latest: u64) {
        *self.ring.write() = Ring { server_version, latest, ..Ring::default() };
    }

    /// Changes after `after`; `None` where the ring does not reach back so far.
    pub(super) fn after(&self, record_type: &str, after: u64) -> Option<Changes> {
        let ring = self.ring.read();
        let mut found = Changes {
            server_version: ring.server_version,
            records: Vec::new(),
            position: after.min(ring.latest),
            complete: true,
        };
        if after >= ring.latest {
            // Also a client that is ahead of the store: it waits until versions exceed its own.
            found.position = after;
            return Some(found);
        }
        let first = ring.changes.front()?.version;
        let skip = usize::try_from((after + 1).checked_sub(first)?).ok()?;
        let mut bytes = 0;
        for change in ring.changes.range(skip..).take(CHUNK_CHANGES_MAX) {
            if bytes >= CHUNK_BYTES_MAX {
                break;
            }
            found.position = change.version;
            if record_type.is_empty() || change.record_type == record_type.as_bytes() {
                bytes += change.record.as_bytes().len();
                found.records.push(change.record.clone());
            }
        }
        found.complete = found.position == ring.latest;
        Some(found)
    }

    /// Bytes held now.
    pub(super) fn bytes(&self) -> usize {
        self.ring.read().bytes
    }
}

fn cost(change: &Change) -> usize {
    change.record.as_bytes().len() + OVERHEAD
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn change(version: u64, record_type: &'static str) -> Change {
        Change {
            version,
            record_type: record_type.into(),
            record: EncodedRecord::from_bytes(Bytes::from(vec![0; 100])),
        }
    }

    fn filled(bytes_max: usize, count: u64) -> Tail {
        let tail = Tail::new(bytes_max, 7, 0);
        for version in 1..=count {
            tail.extend(7, version, false, vec![change(version, if version % 2 == 0 { "even" } else { "odd" })]);
        }
        tail
    }

    #[test]
    fn a_stream_at_the_tail_gets_each_change_once_in_order() {
        let tail = filled(1 << 20, 2000);
        let (mut position, mut seen) = (0, 0);
        while position < 2000 {
            let changes = tail.after("", position).unwrap();
            seen += changes.records.len() as u64;
            assert!(changes.position > position);
            position = changes.position;
            assert_eq!(seen, position);
        }
        assert!(tail.after("", position).unwrap().complete);
    }

    #[test]
    fn a_typed_stream_moves_past_changes_of_other_types() {
        let tail = filled(1 << 20, 11);
        let changes = tail.after("even", 0).unwrap();
        assert_eq!((changes.records.len(), changes.position, changes.complete), (5, 11, true));
    }

    #[test]
    fn a_stream_behind_the_ring_is_sent_to_the_disk() {
        let tail = filled(10 * (100 + OVERHEAD), 100);
        assert!(tail.after("", 50).is_none());
        assert_eq!(tail.after("", 90).unwrap().records.len(), 10);
        assert_eq!(tail.bytes(), 10 * (100 + OVERHEAD));
    }

    #[test]
    fn a_client_ahead_of_the_store_waits() {
        let tail = filled(1 << 20, 3);
        for ahead in [4, u64::MAX] {
            let changes = tail.after("", ahead).unwrap();
            assert_eq!((changes.position, changes.complete, changes.records.len()), (ahead, true, 0));
        }
    }

    #[test]
    fn clear_starts_a_new_history() {
        let tail = filled(1 << 20, 3);
        tail.extend(8, 1, true, vec![change(1, "odd")]);
        let changes = tail.after("", 0).unwrap();
        assert_eq!((changes.server_version, changes.position), (8, 1));
    }
}
