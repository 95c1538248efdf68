//! Sweep: removes what is over, at most so much at a time.
//!
//! Which deletions are due follows from the command and the store's time alone, so every node deletes the same.

use std::ops::Bound;

use bytes::Bytes;
use databroker_proto::internal::{Sweep, Swept};

use super::{
    super::{
        Error,
        codec::KeyWriter,
        command::{Answer, outcome},
        engine::KeyBounds,
        keyspace::{Keyspace, records as keys, rows},
        machine::damaged,
        wire::{self, Parts},
    },
    Batch,
    capacity::Budget,
};

impl Batch<'_> {
    /// Sweeps garbage of earlier epochs, the change log, indexes that options have left unfinished, records past their ttl,
    /// those that writes have left beyond a capacity, and expired services; of each kind at most so many, so that none
    /// starves another.
    pub(super) fn sweep(&mut self, sweep: &Sweep) -> Result<Answer, Error> {
        let at_most = usize::try_from(sweep.deletions_max).unwrap_or(usize::MAX).max(1);
        let garbage = self.sweep_epochs(at_most)?;
        let change_log_entries = self.sweep_change_log(sweep, at_most)?;
        // Before what reads them.
        self.sweep_indexes(Budget::of_sweep(at_most))?;
        let (records, all) = self.sweep_expired_records(Budget::of_sweep(at_most))?;
        self.sweep_excess(Budget::of_sweep(at_most))?;
        let services = self.sweep_services(at_most)?;
        let more = [garbage, change_log_entries, services].contains(&at_most)
            || !all
            || !self.state.evicting.is_empty()
            || !self.state.indexing.is_empty();
        let (change_log_entries, records, services) = (change_log_entries as u64, records as u64, services as u64);
        Ok(Answer::of(outcome::Kind::Swept(Swept { more, change_log_entries, records, services })))
    }

    fn sweep_epochs(&mut self, at_most: usize) -> Result<usize, Error> {
        if self.state.epochs_swept == self.state.epoch {
            return Ok(0);
        }
        let below: KeyBounds = (Bound::Unbounded, Bound::Excluded(KeyWriter::new().u32(self.state.epoch).finish()));
        let mut swept = 0;
        for keyspace in Keyspace::OF_AN_EPOCH {
            let found = self.txn.range(keyspace.space(), below.clone()).take(at_most - swept);
            let found: Vec<Bytes> = found.map(|item| item.map(|(key, _)| key)).collect::<Result<_, _>>()?;
            swept += found.len();
            for key in found {
                self.txn.remove(keyspace.space(), key);
            }
        }
        if swept < at_most {
            self.state.epochs_swept = self.state.epoch;
        }
        Ok(swept)
    }

    /// From the oldest on, while entries are too old or the log too large; the newest always stays.
    fn sweep_change_log(&mut self, sweep: &Sweep, at_most: usize) -> Result<usize, Error> {
        let state = &self.state;
        let newest = keys::change(state.epoch, state.latest_record_version);
        let oldest = keys::change(state.epoch, state.earliest_record_version);
        let mut bytes_left = state.change_log_bytes;
        let mut due = Vec::new();
        for item in self.txn.range(Keyspace::Changes.space(), (Bound::Included(oldest), Bound::Excluded(newest))) {
            let (key, value) = item?;
            if due.len() >= at_most {
                break;
            }
            let parts = wire::parse(&value).map_err(|error| damaged("a change", error))?;
            let too_old = parts.modified_at_nanos < sweep.change_log_cutoff_nanos;
            if !too_old && bytes_left <= sweep.change_log_bytes_max {
                break;
            }
            bytes_left = bytes_left.saturating_sub(value.len() as u64);
            // Not the record: thousands of large ones would lie in memory at once.
            due.push((key, parts.version, Bytes::copy_from_slice(&parts.record_type)));
        }
        self.state.change_log_bytes = bytes_left;
        let swept = due.len();
        for (key, version, record_type) in due {
            let by_type = keys::by_version(self.state.epoch, &record_type, version);
            self.txn.remove(Keyspace::Changes.space(), key);
            self.txn.remove(Keyspace::ChangesByType.space(), by_type);
            self.state.earliest_record_version = self.state.earliest_record_version.max(version + 1);
        }
        Ok(swept)
    }

    /// Types take turns: the one that was swept when the last sweep ended comes last. Returns how many went, and whether
    /// these are all. A type whose index by age is not complete waits for it: `State::indexing` says that more is left.
    fn sweep_expired_records(&mut self, mut budget: Budget) -> Result<(usize, bool), Error> {
        let rules = self.rules.clone();
        let mut last = std::mem::take(&mut self.state.expiry_begins_after);
        let mut swept = 0;
        for (record_type, rules) in rules.iter_after(&last.clone()) {
            let Some(ttl) = rules.ttl_nanos.filter(|_| self.is_indexed_by_age(record_type)) else { continue };
            let cutoff = self.state.now_nanos.saturating_sub(ttl);
            let (oldest, all) = self.expired(record_type, cutoff, &mut budget)?;
            swept += oldest.len();
            oldest.iter().try_for_each(|parts| self.retire(parts).map(drop))?;
            if !oldest.is_empty() {
                last = record_type.clone();
            }
            if !all {
                self.state.expiry_begins_after = last;
                return Ok((swept, false));
            }
        }
        Ok((swept, true))
    }

    /// Records last modified before the cutoff, oldest first, and whether these are all. Time never runs back, so order
    /// of version is order of time.
    fn expired(
        &self,
        record_type: &Bytes,
        cutoff_nanos: u64,
        budget: &mut Budget,
    ) -> Result<(Vec<Parts>, bool), Error> {
        let mut oldest = Vec::new();
        let bounds = keys::of_type(self.state.epoch, record_type);
        for item in self.txn.range(Keyspace::AgeIndex.space(), bounds) {
            let (_, id) = item?;
            match self.live(record_type, &id)? {
                Some(parts) if parts.modified_at_nanos < cutoff_nanos => {
                    if !budget.take(parts.bytes()) {
                        return Ok((oldest, false));
                    }
                    oldest.push(parts);
                }
                _ => break,
            }
        }
        Ok((oldest, true))
    }

    fn sweep_services(&mut self, at_most: usize) -> Result<usize, Error> {
        let mut expired = Vec::new();
        for item in self.txn.range(Keyspace::Services.space(), (Bound::Unbounded, Bound::Unbounded)) {
            let (key, value) = item?;
            let expiry = rows::read_number(&value).map_err(|error| damaged("a service's expiry", error))?;
            if expiry < self.state.now_nanos && expired.len() < at_most {
                expired.push(key);
            }
        }
        if !expired.is_empty() {
            self.state.services_generation = self.state.services_generation.saturating_add(1);
        }
        let swept = expired.len();
        for key in expired {
            self.txn.remove(Keyspace::Services.space(), key);
        }
        Ok(swept)
    }
}
