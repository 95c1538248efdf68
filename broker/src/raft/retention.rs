//! When the store is synced so that the log may be purged, and how much of the log stays. Pure.
//!
//! openraft counts entries only, and knows nothing of followers that have yet to get them; here bytes count as well, for
//! entries hold from a few of them to many megabytes.

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
    /// Bytes of entries that stay at most for a follower that has yet to get them: while a store is on its way to it,
    /// others write on, and what they write must be there when it has come. 0: none stay for that.
    pub hold_bytes: u64,
}

impl Default for Retention {
    fn default() -> Self {
        Self {
            sync_entries: 10_000,
            sync_bytes: 32 << 20,
            keep_entries: 5_000,
            keep_bytes: 32 << 20,
            hold_bytes: 256 << 20,
        }
    }
}

impl Retention {
    /// So many bytes of entries stay, and as many more entries than by default; the rest is as by default.
    pub fn keeping(bytes: u64) -> Self {
        let default = Self::default();
        // In the same proportion: each entry costs more than its bytes.
        let keep_entries = bytes.div_ceil(default.keep_bytes.div_ceil(default.keep_entries));
        Self { keep_entries, keep_bytes: bytes, hold_bytes: default.hold_bytes.max(bytes), ..default }
    }
}

/// Distance between two remembered places of the log, in bytes. With the bounds above some hundreds of them.
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

    /// Up to where the log may go when the store is synced up to `synced`; `needed`: all after this is still to go to a
    /// follower. `None`: nowhere.
    pub(super) fn purge_upto(&self, synced: u64, needed: Option<u64>) -> Option<u64> {
        let by_count = synced.checked_sub(self.bounds.keep_entries);
        let upto = by_count.max(self.followed_by(self.bounds.keep_bytes))?.min(synced);
        let held = needed.filter(|_| self.bounds.hold_bytes > 0).map_or(upto, |needed| upto.min(needed));
        let too_old = self.followed_by(self.bounds.hold_bytes).map(|index| index.min(upto));
        Some(held.max(too_old.unwrap_or(0)))
    }

    /// The newest index after which more than so many bytes were applied.
    fn followed_by(&self, bytes: u64) -> Option<u64> {
        let place = self.places.iter().rfind(|(_, before)| self.bytes - before > bytes);
        place.map(|(index, _)| *index)
    }

    /// Of those that are too old for anything, only the newest is of use.
    fn forget_old_places(&mut self) {
        let bytes = self.bounds.keep_bytes.max(self.bounds.hold_bytes);
        while self.places.get(1).is_some_and(|(_, before)| self.bytes - before > bytes) {
            self.places.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ledger() -> Ledger {
        let bounds = Retention {
            sync_entries: 1,
            sync_bytes: 8 << 20,
            keep_entries: 1 << 40,
            keep_bytes: 4 << 20,
            hold_bytes: 4 << 20,
        };
        Ledger::new(bounds)
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
        let cut = small.purge_upto(20 << 10, None).unwrap();
        assert!((14 << 10..16 << 10).contains(&cut), "{cut}");
        let mut large = ledger();
        apply(&mut large, 20, 1 << 20);
        assert!((14..16).contains(&large.purge_upto(20, None).unwrap()));
        assert!(small.places.len() < 10 && large.places.len() < 10);
    }

    #[test]
    fn more_bytes_keep_more_entries_and_the_default_is_the_default() {
        let default = Retention::default();
        assert_eq!(Retention::keeping(default.keep_bytes), default);
        let eight = Retention::keeping(8 * default.hold_bytes);
        assert_eq!(eight.hold_bytes, eight.keep_bytes);
        assert!((63..65).contains(&(eight.keep_entries / default.keep_entries)), "{eight:?}");
        assert_eq!(Retention::keeping(1).hold_bytes, default.hold_bytes);
    }

    #[test]
    fn nothing_is_cut_below_the_bound() {
        let mut ledger = ledger();
        apply(&mut ledger, 4, 1 << 20);
        assert_eq!(ledger.purge_upto(4, None), None);
    }

    #[test]
    fn entries_are_counted_and_none_goes_that_is_not_synced() {
        let mut ledger = Ledger::new(Retention { keep_entries: 10, ..Retention::default() });
        apply(&mut ledger, 100, 1);
        assert_eq!((ledger.purge_upto(9, None), ledger.purge_upto(99, None)), (None, Some(89)));
        let mut ledger = self::ledger();
        apply(&mut ledger, 20, 1 << 20);
        assert_eq!(ledger.purge_upto(3, None), Some(3));
    }

    #[test]
    fn what_a_follower_has_yet_to_get_stays_within_a_bound() {
        let mut ledger = ledger();
        ledger.bounds.hold_bytes = 8 << 20;
        apply(&mut ledger, 20, 1 << 20);
        let free = ledger.purge_upto(20, None).unwrap();
        assert_eq!(ledger.purge_upto(20, Some(13)), Some(13));
        assert_eq!(ledger.purge_upto(20, Some(19)), Some(free));
        // Eight of twenty are the most.
        let held = ledger.purge_upto(20, Some(2)).unwrap();
        assert!((10..12).contains(&held), "{held}");
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
