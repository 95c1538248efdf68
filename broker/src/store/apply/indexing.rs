//! Indexes that come and go with the options of a type.
//!
//! ```text
//!   SetOptions ─▶ what is to go, and to come ─▶ all of it, for ordinary sizes
//!                                         └─ what is left: State::indexing ─▶ Sweep ─▶ Sweep ─▶ …
//! ```
//!
//! What changes lies in memory until it is committed, so one command changes so much at most. Until an index is complete
//! nobody reads it: queries look into each record, and what must find the oldest waits. Writes keep all indexes of the
//! options from the first moment on. Not here: which entries a record has (`records`).

use std::{collections::BTreeSet, ops::Bound};

use bytes::Bytes;
use databroker_proto::internal::{IndexWork, State};

use super::{
    super::{
        Error,
        engine::KeyBounds,
        keyspace::{Keyspace, records as keys},
        machine::damaged,
        wire,
    },
    Batch,
    capacity::Budget,
    rules::TypeRules,
};

/// Entries of indexes that one SetOptions changes at most: one for each record of the greatest capacity that is set by
/// default. Each takes some hundreds of bytes of memory until the command is committed.
pub const INDEX_ENTRIES_MAX: u64 = 50_000;

/// Whether the index of a field has all that it is to have.
pub fn is_indexed_by_field(state: &State, record_type: &[u8], field: &str) -> bool {
    let is_built = |work: &IndexWork| work.built_fields.iter().any(|built| built == field);
    !state.indexing.iter().any(|work| work.r#type == record_type && is_built(work))
}

/// What is left to do once options follow others, with what was left before. What is both dropped and built may still
/// have entries from before it was dropped; they go first.
fn planned(left: &IndexWork, old: &TypeRules, new: &TypeRules) -> IndexWork {
    // Sorted, each once: see `TypeRules`.
    let has = |rules: &TypeRules, field: &String| rules.fields.binary_search(field).is_ok();
    let gone = old.fields.iter().filter(|field| !has(new, field));
    let dropped: BTreeSet<&String> = left.dropped_fields.iter().chain(gone).collect();
    let built = new.fields.iter().filter(|field| !has(old, field) || left.built_fields.contains(field));
    let (was_by_age, is_by_age) = (old.by_age(), new.by_age());
    let mut plan = IndexWork {
        r#type: left.r#type.clone(),
        dropped_fields: dropped.into_iter().cloned().collect(),
        drops_age: left.drops_age || (was_by_age && !is_by_age),
        built_fields: built.cloned().collect(),
        builds_age: is_by_age && (left.builds_age || !was_by_age),
        after: left.after.clone(),
    };
    if plan != *left {
        // From the start: entries may have come behind that are now to go, and records lack entries of another field.
        plan.after.clear();
    }
    plan
}

/// Reading takes time, and not memory: so many bytes of records count as one of the budget's.
const READ_PARTS: usize = 4;

fn drops_nothing(work: &IndexWork) -> bool {
    work.dropped_fields.is_empty() && !work.drops_age
}

fn builds_nothing(work: &IndexWork) -> bool {
    work.built_fields.is_empty() && !work.builds_age
}

/// What is left of a range after the last key that was dealt with.
fn rest((start, end): KeyBounds, after: &Bytes) -> KeyBounds {
    (if after.is_empty() { start } else { Bound::Excluded(after.clone()) }, end)
}

impl Batch<'_> {
    /// Whether the index by age has all records of a type that is to have one.
    pub(super) fn is_indexed_by_age(&self, record_type: &Bytes) -> bool {
        !self.state.indexing.iter().any(|work| work.r#type == record_type && work.builds_age)
    }

    /// What is to be done to the indexes of a type if its options become these.
    pub(super) fn index_work(&self, record_type: &Bytes, new: &TypeRules) -> IndexWork {
        let none = || IndexWork { r#type: record_type.clone(), ..IndexWork::default() };
        let left = self.state.indexing.iter().find(|work| work.r#type == record_type).cloned().unwrap_or_else(none);
        let old = self.rules.get(record_type).map(|rules| (**rules).clone()).unwrap_or_default();
        planned(&left, &old, new)
    }

    /// Begins with it, instead of what was left before. The same options again cost nothing.
    pub(super) fn replace_index_work(&mut self, mut work: IndexWork) -> Result<(), Error> {
        match self.state.indexing.iter().position(|left| left.r#type == work.r#type) {
            Some(at) if self.state.indexing.get(at) == Some(&work) => return Ok(()),
            // Hundreds of commands may share a batch: once something is left, only Sweep goes on with it.
            Some(at) => drop(self.state.indexing.remove(at)),
            // The same for what comes after the first in an entry.
            None => {
                let first = !std::mem::replace(&mut self.indexed_at_once, true);
                let whole = Budget::of_options(self.index_entries_max);
                self.proceed(&mut work, &mut if first { whole } else { Budget::of_next_write() })?;
            }
        }
        if !(drops_nothing(&work) && builds_nothing(&work)) {
            // Each of these has tens of thousands of entries: they are few.
            self.state.indexing.push(work);
        }
        Ok(())
    }

    /// Goes on with what options have left, in order.
    pub(super) fn sweep_indexes(&mut self, mut budget: Budget) -> Result<(), Error> {
        let mut left = std::mem::take(&mut self.state.indexing);
        for work in &mut left {
            self.proceed(work, &mut budget)?;
        }
        left.retain(|work| !(drops_nothing(work) && builds_nothing(work)));
        self.state.indexing = left;
        Ok(())
    }

    /// Does what is next, as far as the budget goes.
    fn proceed(&mut self, work: &mut IndexWork, budget: &mut Budget) -> Result<(), Error> {
        let epoch = self.state.epoch;
        while let Some(field) = work.dropped_fields.first() {
            let entries = keys::field_path(epoch, &work.r#type, field);
            if !self.drop_entries(Keyspace::FieldIndex, entries, &mut work.after, budget)? {
                return Ok(());
            }
            work.dropped_fields.remove(0);
        }
        if work.drops_age {
            let entries = keys::of_type(epoch, &work.r#type);
            work.drops_age = !self.drop_entries(Keyspace::AgeIndex, entries, &mut work.after, budget)?;
        }
        if drops_nothing(work) && !builds_nothing(work) && self.build_entries(work, budget)? {
            work.built_fields.clear();
            work.builds_age = false;
        }
        Ok(())
    }

    /// Removes the entries of an index. Whether these are all.
    fn drop_entries(
        &mut self,
        keyspace: Keyspace,
        entries: KeyBounds,
        after: &mut Bytes,
        budget: &mut Budget,
    ) -> Result<bool, Error> {
        let (mut due, mut all) = (Vec::new(), true);
        for item in self.txn.range(keyspace.space(), rest(entries, after)) {
            let (key, _) = item?;
            all = budget.take(key.len());
            if !all {
                break;
            }
            *after = key.clone();
            due.push(key);
        }
        if all {
            after.clear();
        }
        for key in due {
            self.txn.remove(keyspace.space(), key);
        }
        Ok(all)
    }

    /// Puts the entries of the records into the indexes. Whether these were all records.
    fn build_entries(&mut self, work: &mut IndexWork, budget: &mut Budget) -> Result<bool, Error> {
        let epoch = self.state.epoch;
        let records = rest(keys::of_type(epoch, &work.r#type), &work.after);
        let (mut due, mut all) = (Vec::new(), true);
        for item in self.txn.range(Keyspace::Records.space(), records) {
            let (key, value) = item?;
            let parts = wire::parse(&value).map_err(|error| damaged("a record", error))?;
            // Keys only: the records of a type may be more than memory holds.
            let of_fields = self.field_keys(&parts, &work.built_fields).into_iter();
            let mut entries: Vec<_> = of_fields.map(|key| (Keyspace::FieldIndex, key, Bytes::new())).collect();
            if work.builds_age {
                let key = keys::by_version(epoch, &work.r#type, parts.version);
                entries.push((Keyspace::AgeIndex, key, Bytes::copy_from_slice(&parts.id)));
            }
            let written: usize = entries.iter().map(|(_, key, id)| key.len() + id.len()).sum();
            let bytes = written + value.len() / READ_PARTS;
            // One that has none was looked at all the same.
            all = budget.take_all((entries.len() as u64).max(1), bytes);
            if !all {
                break;
            }
            work.after = key;
            due.append(&mut entries);
        }
        if all {
            work.after.clear();
        }
        for (keyspace, key, value) in due {
            self.txn.put(keyspace.space(), key, value);
        }
        Ok(all)
    }
}
