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
        wire,
    },
    Batch,
    capacity::Budget,
};

impl Batch<'_> {
    /// Sweeps garbage of earlier epochs, the change log, records past their ttl, those that writes have left beyond a
    /// capacity, and expired services; of each kind at most so many, so that none starves another.
    pub(super) fn sweep(&mut self, sweep: &Sweep) -> Result<Answer, Error> {
        let at_most = usize::try_from(sweep.deletions_max).unwrap_or(usize::MAX).max(1);
        let garbage = self.sweep_epochs(at_most)?;
        let change_log_entries = self.sweep_change_log(sweep, at_most)?;
        let records = self.sweep_expired_records(at_most)?;
        self.sweep_excess(Budget::of_sweep(at_most))?;
        let services = self.sweep_services(at_most)?;
        let more =
            [garbage, change_log_entries, records, services].contains(&at_most) || !self.state.evicting.is_empty();
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

    fn sweep_expired_records(&mut self, at_most: usize) -> Result<usize, Error> {
        let rules = self.rules.clone();
        let mut swept = 0;
        for (record_type, rules) in rules.iter() {
            let Some(ttl) = rules.ttl_nanos else { continue };
            let cutoff = self.state.now_nanos.saturating_sub(ttl);
            for id in self.expired(record_type, cutoff, at_most - swept)? {
                swept += 1;
                self.delete(record_type, &id)?;
            }
        }
        Ok(swept)
    }

    /// Ids of records last modified before the cutoff, oldest first. Time never runs back, so order of version is order
    /// of time.
    fn expired(&self, record_type: &Bytes, cutoff_nanos: u64, at_most: usize) -> Result<Vec<Bytes>, Error> {
        let mut found = Vec::new();
        let bounds = keys::of_type(self.state.epoch, record_type);
        for item in self.txn.range(Keyspace::AgeIndex.space(), bounds).take(at_most) {
            let (_, id) = item?;
            match self.live(record_type, &id)? {
                Some(parts) if parts.modified_at_nanos < cutoff_nanos => found.push(id),
                _ => break,
            }
        }
        Ok(found)
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
