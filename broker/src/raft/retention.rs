//! When the store is synced so that the log may be purged, and how much of the log stays. Pure.
//!
//! openraft counts entries only; entries hold from a few bytes to many megabytes, so here bytes count as well.

use std::collections::VecDeque;

/// Bounds on the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// The store is synced after so many entries at the latest: a crash replays no more.
    pub sync_entries: u64,
    /// The store is synced after so many bytes of entries at the latest.
    pub sync_bytes: u64,
    /// Entries that stay after a sync, for followers that are a little behind.
    pub keep_entries: u64,
    /// Bytes of entries that stay after a sync.
    pub keep_bytes: u64,
}

impl Default for Retention {
    fn default() -> Self {
        Self { sync_entries: 10_000, sync_bytes: 32 << 20, keep_entries: 5_000, keep_bytes: 32 << 20 }
    }
}

/// Distance between two remembered places of the log, in bytes. With the bounds above a hundred of them.
const STEP_BYTES: u64 = 1 << 20;

/// What was applied since the process started, and where the log may be cut.
#[derive(Debug)]
pub(super) struct Ledger {
    bounds: Retention,
    /// Bytes applied so far.
    bytes: u64,
    bytes_at_sync: u64,
    /// Places by index, with the bytes applied up to there.
    places: VecDeque<(u64, u64)>,
}

impl Ledger {
    pub(super) fn new(bounds: Retention) -> Self {
        Self { bounds, bytes: 0, bytes_at_sync: 0, places: VecDeque::new() }
    }

    /// Notes an applied entry. True: by bytes, it is time to sync the store.
    pub(super) fn applied(&mut self, index: u64, bytes: u64) -> bool {
        self.bytes += bytes;
        if self.places.back().is_none_or(|(_, before)| self.bytes - before >= STEP_BYTES) {
            self.places.push_back((index, self.bytes));
        }
        self.forget_old_places();
        self.bytes - self.bytes_at_sync >= self.bounds.sync_bytes
    }

    /// Notes that the store is being synced.
    pub(super) fn syncing(&mut self) {
        self.bytes_at_sync = self.bytes;
    }

    /// The newest index after which more than `keep_bytes` were applied: up to there the log may go.
    pub(super) fn purge_upto(&self) -> Option<u64> {
        let place = self.places.front().filter(|(_, bytes)| self.is_old(*bytes));
        place.map(|(index, _)| *index)
    }

    fn is_old(&self, bytes: u64) -> bool {
        self.bytes - bytes > self.bounds.keep_bytes
    }

    /// Only the newest of the old places is of use.
    fn forget_old_places(&mut self) {
        while self.places.get(1).is_some_and(|(_, bytes)| self.is_old(*bytes)) {
            self.places.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ledger() -> Ledger {
        Ledger::new(Retention { sync_bytes: 8 << 20, keep_bytes: 4 << 20, ..Retention::default() })
    }

    fn apply(ledger: &mut Ledger, entries: u64, bytes: u64) {
        for index in 0..entries {
            ledger.applied(index, bytes);
        }
    }

    #[test]
    fn many_small_entries_and_a_few_large_ones_are_cut_at_the_same_bytes() {
        let mut small = ledger();
        apply(&mut small, 20 << 10, 1 << 10);
        let cut = small.purge_upto().unwrap();
        assert!((14 << 10..16 << 10).contains(&cut), "{cut}");
        let mut large = ledger();
        apply(&mut large, 20, 1 << 20);
        assert!((14..16).contains(&large.purge_upto().unwrap()));
        assert!(small.places.len() < 10 && large.places.len() < 10);
    }

    #[test]
    fn nothing_is_cut_below_the_bound() {
        let mut ledger = ledger();
        apply(&mut ledger, 4, 1 << 20);
        assert_eq!(ledger.purge_upto(), None);
    }

    #[test]
    fn a_sync_is_due_once_per_bytes() {
        let mut ledger = ledger();
        let due: Vec<_> = (1..=20)
            .filter(|index| {
                let due = ledger.applied(*index, 1 << 20);
                if due {
                    ledger.syncing();
                }
                due
            })
            .collect();
        assert_eq!(due, [8, 16]);
    }
}
