//! Capacities: of a type that holds too many records the oldest go, when it is written to.
//!
//! All at once for ordinary sizes, as clients have always seen it. What goes lies in memory until it is committed, so
//! one command evicts so much at most; what is left is noted in the state, and goes with the next Sweeps and writes.

use std::collections::BTreeSet;

use bytes::Bytes;

use super::{
    super::{
        Error,
        keyspace::{Keyspace, records as keys},
        wire::Parts,
    },
    Batch,
};

/// How much one command may still remove, or change in an index.
pub(super) struct Budget {
    count: u64,
    bytes: usize,
    /// The next one goes whatever its size: without it there would be no end.
    at_least_one: bool,
}

impl Budget {
    /// For a write. As many records as the greatest capacity that is set by default; and bytes for tens of thousands of
    /// records of the usual sizes. Memory holds twice that until the command is committed: the tombstones, too.
    const fn of_write() -> Self {
        Self { count: 50_000, bytes: 128 << 20, at_least_one: true }
    }

    /// For a write to a type of which something is left already. Hundreds of writes may share a batch: each takes about
    /// what it brings, and Sweep does the most of it.
    pub(super) const fn of_next_write() -> Self {
        Self { count: 256, bytes: 256 << 10, at_least_one: false }
    }

    /// For a Sweep that deletes so many records of a kind. The next one follows at once: so many bytes that others need
    /// not wait for long.
    pub(super) const fn of_sweep(at_most: usize) -> Self {
        Self { count: at_most as u64, bytes: 16 << 20, at_least_one: true }
    }

    /// For SetOptions: so many entries of indexes, and the bytes of so many keys of the usual sizes, of which some belong
    /// to the same record.
    pub(super) const fn of_options(entries: u64) -> Self {
        Self { count: entries, bytes: 16 << 20, at_least_one: true }
    }

    /// Whether one more of this size may be taken.
    pub(super) fn take(&mut self, bytes: usize) -> bool {
        self.take_all(1, bytes)
    }

    /// Whether so many more, of this size together, may be taken, as one.
    pub(super) fn take_all(&mut self, count: u64, bytes: usize) -> bool {
        let fits = (count <= self.count && bytes <= self.bytes) || (self.count > 0 && self.at_least_one);
        if fits {
            self.count = self.count.saturating_sub(count);
            self.bytes = self.bytes.saturating_sub(bytes);
            self.at_least_one = false;
        }
        fits
    }
}

impl Batch<'_> {
    /// Evicts the oldest records of types that hold more than their capacity.
    pub(super) fn enforce_capacities(&mut self, touched: BTreeSet<&Bytes>) -> Result<(), Error> {
        let (mut first, mut next) = (Budget::of_write(), Budget::of_next_write());
        for record_type in touched {
            let begun = self.state.evicting.binary_search(record_type).is_ok();
            self.evict(record_type, if begun { &mut next } else { &mut first })?;
        }
        Ok(())
    }

    /// Goes on with what writes have left.
    pub(super) fn sweep_excess(&mut self, mut budget: Budget) -> Result<(), Error> {
        for record_type in self.state.evicting.clone() {
            self.evict(&record_type, &mut budget)?;
        }
        Ok(())
    }

    /// Newest of them first.
    fn evict(&mut self, record_type: &Bytes, budget: &mut Budget) -> Result<(), Error> {
        let (oldest, all) = self.excess(record_type, budget)?;
        for parts in oldest.iter().rev() {
            self.retire(parts)?;
            self.evicted += 1;
        }
        match (self.state.evicting.binary_search(record_type), all) {
            (Ok(at), true) => drop(self.state.evicting.remove(at)),
            // Each of these has tens of thousands of records, or tens of megabytes, that are to go or to be put in
            // order of age: they are few.
            (Err(at), false) => self.state.evicting.insert(at, record_type.clone()),
            (Ok(_), false) | (Err(_), true) => {}
        }
        Ok(())
    }

    /// The oldest of the records that a type holds beyond its capacity, oldest first; and whether these are all.
    fn excess(&self, record_type: &Bytes, budget: &mut Budget) -> Result<(Vec<Parts>, bool), Error> {
        let Some(capacity) = self.rules.get(record_type).and_then(|rules| rules.options.capacity) else {
            return Ok((Vec::new(), true));
        };
        let excess = usize::try_from(self.live_count(record_type)?.saturating_sub(capacity)).unwrap_or(usize::MAX);
        if excess > 0 && !self.is_indexed_by_age(record_type) {
            // Which are the oldest will be known when the index is complete: then Sweep goes on here.
            return Ok((Vec::new(), false));
        }
        let bounds = keys::of_type(self.state.epoch, record_type);
        let mut oldest = Vec::new();
        for item in self.txn.range(Keyspace::AgeIndex.space(), bounds).take(excess) {
            let (_, id) = item?;
            let Some(parts) = self.live(record_type, &id)? else { continue };
            if !budget.take(parts.bytes()) {
                return Ok((oldest, false));
            }
            oldest.push(parts);
        }
        Ok((oldest, true))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_ends_with_its_records_or_its_bytes_but_not_before_the_first() {
        let mut of_one = Budget { count: 1, bytes: 10, at_least_one: true };
        assert!(of_one.take(11) && !of_one.take(0));
        let mut of_ten_bytes = Budget { count: 9, bytes: 10, at_least_one: true };
        assert!(of_ten_bytes.take(6) && !of_ten_bytes.take(5) && of_ten_bytes.take(4) && !of_ten_bytes.take(1));
        let mut strict = Budget { count: 9, bytes: 10, at_least_one: false };
        assert!(!strict.take(11) && strict.take(10));
        let mut in_groups = Budget { count: 5, bytes: 10, at_least_one: true };
        assert!(in_groups.take_all(4, 1) && !in_groups.take_all(2, 1) && !in_groups.take_all(1, 10));
        let mut of_a_large_group = Budget { count: 1, bytes: 10, at_least_one: true };
        assert!(of_a_large_group.take_all(9, 99) && !of_a_large_group.take(0));
    }
}
