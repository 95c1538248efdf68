//! Put: records come, change and go, together with everything that finds them.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use databroker_proto::{
    EncodedRecord,
    internal::{Put, VersionRun, Written},
};

use super::{
    super::{
        Error, cidr,
        command::{Answer, Reason, outcome},
        keyspace::{INDEXED_VALUE_BYTES_MAX, Keyspace, records as keys, rows},
        wire::{self, Parts, Stamp},
    },
    Batch, Change, CidrChange,
};

/// Versions given out by one command, as runs.
#[derive(Default)]
pub(super) struct Versions(Vec<VersionRun>);

impl Versions {
    /// Adds the version of the next record; 0 where nothing was stored.
    pub(super) fn push(&mut self, version: u64) {
        match self.0.last_mut() {
            Some(run) if run.first == 0 && version == 0 => run.count += 1,
            Some(run) if run.first != 0 && run.first + run.count == version => run.count += 1,
            _ => self.0.push(VersionRun { first: version, count: 1 }),
        }
    }
}

impl Batch<'_> {
    /// Stores or deletes records in request order, then enforces the capacity of every type touched.
    pub(super) fn put(&mut self, put: Put) -> Result<Answer, Error> {
        let parsed: Result<Vec<Parts>, wire::Error> = put.records.iter().map(wire::parse).collect();
        let parsed = match parsed {
            Ok(parsed) => parsed,
            Err(error) => return Ok(Answer::rejected(Reason::InvalidRecord, error.to_string())),
        };
        let mut versions = Versions::default();
        let mut records = Vec::with_capacity(parsed.len());
        for (sent, parts) in put.records.iter().zip(&parsed) {
            if parts.deleted {
                self.delete(&parts.record_type, &parts.id)?;
                // A delete is answered with what the client sent.
                versions.push(0);
                records.push(EncodedRecord::from_bytes(sent.clone()));
            } else {
                let record = self.upsert(parts)?;
                versions.push(self.state.latest_record_version);
                records.push(record);
            }
        }
        self.enforce_capacities(parsed.iter().map(|parts| &parts.record_type).collect())?;
        Ok(self.written(versions, records))
    }

    pub(super) fn written(&self, versions: Versions, records: Vec<EncodedRecord>) -> Answer {
        let written = Written {
            server_version: self.state.server_version,
            modified_at_nanos: self.state.now_nanos,
            runs: versions.0,
        };
        Answer { records, ..Answer::of(outcome::Kind::Written(written)) }
    }

    /// The live record under a type and id.
    pub(super) fn live(&self, record_type: &[u8], id: &[u8]) -> Result<Option<Parts>, Error> {
        let key = keys::record(self.state.epoch, record_type, id);
        let Some(bytes) = self.txn.get(Keyspace::Records.space(), &key)? else {
            return Ok(None);
        };
        let parts = wire::parse(&bytes)
            .map_err(|error| Error::Damaged { what: format!("a record in the records keyspace: {error}") })?;
        Ok(Some(parts))
    }

    /// Writes a record with the next version.
    pub(super) fn upsert(&mut self, parts: &Parts) -> Result<EncodedRecord, Error> {
        let old = self.live(&parts.record_type, &parts.id)?;
        let record = self.append(parts, false);
        let version = self.state.latest_record_version;
        let key = keys::record(self.state.epoch, &parts.record_type, &parts.id);
        self.txn.put(Keyspace::Records.space(), key, record.as_bytes().clone());
        if old.is_none() {
            self.count(&parts.record_type, 1)?;
        }
        self.reindex(&parts.record_type, &parts.id, old.as_ref(), Some((parts, version)));
        Ok(record)
    }

    /// Removes a record, if it exists, leaving a tombstone with the stored data.
    pub(super) fn delete(&mut self, record_type: &[u8], id: &[u8]) -> Result<Option<EncodedRecord>, Error> {
        let live = self.live(record_type, id)?;
        live.map(|parts| self.retire(&parts)).transpose()
    }

    /// Removes a live record, leaving a tombstone with its data.
    pub(super) fn retire(&mut self, live: &Parts) -> Result<EncodedRecord, Error> {
        let tombstone = self.append(live, true);
        let key = keys::record(self.state.epoch, &live.record_type, &live.id);
        self.txn.remove(Keyspace::Records.space(), key);
        self.count(&live.record_type, -1)?;
        self.reindex(&live.record_type, &live.id, Some(live), None);
        Ok(tombstone)
    }

    /// Adds to the change log.
    fn append(&mut self, parts: &Parts, deleted: bool) -> EncodedRecord {
        // 2^64 writes are out of reach; saturating keeps even that from wrapping.
        let version = self.state.latest_record_version.saturating_add(1);
        self.state.latest_record_version = version;
        let bytes = wire::assemble(parts, Stamp { version, now_nanos: self.state.now_nanos, deleted });
        let epoch = self.state.epoch;
        self.state.change_log_bytes = self.state.change_log_bytes.saturating_add(bytes.len() as u64);
        self.txn.put(Keyspace::Changes.space(), keys::change(epoch, version), bytes.clone());
        let record = EncodedRecord::from_bytes(bytes);
        self.changes.push(Change { version, record_type: parts.record_type.clone(), record: record.clone() });
        record
    }

    /// Notes which changes the command made to which types: one row per type.
    pub(super) fn note_changes(&mut self, since: usize) {
        let mut by_type: BTreeMap<Bytes, Vec<u64>> = BTreeMap::new();
        for change in &self.changes[since..] {
            by_type.entry(change.record_type.clone()).or_default().push(change.version);
        }
        for (record_type, versions) in by_type {
            let Some(last) = versions.last() else { continue };
            let key = keys::by_version(self.state.epoch, &record_type, *last);
            self.txn.put(Keyspace::ChangesByType.space(), key, keys::versions(&versions));
        }
    }

    fn count(&mut self, record_type: &[u8], by: i64) -> Result<(), Error> {
        let now = self.live_count(record_type)?.saturating_add_signed(by);
        let key = keys::named(self.state.epoch, record_type);
        if now == 0 {
            self.txn.remove(Keyspace::Types.space(), key);
        } else {
            self.txn.put(Keyspace::Types.space(), key, rows::number(now));
        }
        Ok(())
    }

    pub(super) fn live_count(&self, record_type: &[u8]) -> Result<u64, Error> {
        let key = keys::named(self.state.epoch, record_type);
        match self.txn.get(Keyspace::Types.space(), &key)? {
            None => Ok(0),
            Some(value) => rows::read_number(&value)
                .map_err(|error| Error::Damaged { what: format!("the count of a type: {error}") }),
        }
    }

    /// Moves the index entries of one record from its old state to its new one.
    fn reindex(&mut self, record_type: &Bytes, id: &Bytes, old: Option<&Parts>, new: Option<(&Parts, u64)>) {
        self.reindex_cidr(record_type, id, old, new.map(|(parts, _)| parts));
        let Some(rules) = self.rules.get(record_type).cloned() else {
            return;
        };
        let epoch = self.state.epoch;
        if rules.by_age() {
            if let Some(old) = old {
                self.txn.remove(Keyspace::AgeIndex.space(), keys::by_version(epoch, record_type, old.version));
            }
            if let Some((_, version)) = new {
                self.txn.put(Keyspace::AgeIndex.space(), keys::by_version(epoch, record_type, version), id.clone());
            }
        }
        if rules.fields.is_empty() {
            return;
        }
        let before = old.map(|parts| self.field_keys(parts, &rules.fields)).unwrap_or_default();
        let after = new.map(|(parts, _)| self.field_keys(parts, &rules.fields)).unwrap_or_default();
        for key in before.difference(&after) {
            self.txn.remove(Keyspace::FieldIndex.space(), key.clone());
        }
        for key in after.difference(&before) {
            self.txn.put(Keyspace::FieldIndex.space(), key.clone(), Bytes::new());
        }
    }

    /// The field-index keys of a record under the given fields.
    pub(super) fn field_keys(&self, parts: &Parts, fields: &[String]) -> BTreeSet<Bytes> {
        let values = parts.data.as_ref().and_then(|data| self.descriptors.index_values(data, fields));
        values
            .into_iter()
            .flatten()
            .filter(|(_, value)| value.len() <= INDEXED_VALUE_BYTES_MAX)
            .map(|(nth, value)| {
                keys::field(self.state.epoch, &parts.record_type, &fields[nth], value.as_bytes(), &parts.id)
            })
            .collect()
    }

    fn reindex_cidr(&mut self, record_type: &Bytes, id: &Bytes, old: Option<&Parts>, new: Option<&Parts>) {
        let net =
            |parts: Option<&Parts>| parts.and_then(|parts| parts.data.as_ref()).and_then(|data| cidr::cidr_of(data));
        let (old, new) = (net(old), net(new));
        if old == new {
            return;
        }
        let key = keys::record(self.state.epoch, record_type, id);
        let change = |net, added| CidrChange { record_type: record_type.clone(), id: id.clone(), net, added };
        if let Some(net) = old {
            self.txn.remove(Keyspace::CidrIndex.space(), key.clone());
            self.cidr.push(change(net, false));
        }
        if let Some(net) = new {
            self.txn.put(Keyspace::CidrIndex.space(), key, net.to_string());
            self.cidr.push(change(net, true));
        }
    }
}
