//! The model: the interface's rules in plain collections.
//!
//! Not here: what is in the data of records (`data`), and what queries find (`queries`).

use std::collections::{BTreeMap, BTreeSet};

use databroker_proto::{Record, databroker};
use prost::Message as _;

use super::{
    SECOND,
    data::patched,
    ops::{Op, at, options_of},
};

/// The interface's rules in plain collections.
#[derive(Clone, Default)]
pub(super) struct Model {
    pub(super) server_version: u64,
    pub(super) latest: u64,
    pub(super) earliest: u64,
    pub(super) now: u64,
    pub(super) live: BTreeMap<(String, String), Record>,
    pub(super) log: BTreeMap<u64, Record>,
    pub(super) options: BTreeMap<String, databroker::Options>,
    pub(super) leases: BTreeMap<String, (String, u64)>,
    pub(super) services: BTreeMap<(i32, String), u64>,
    pub(super) checkpoint: (u64, u64),
    /// The last type of which the last sweep removed expired records, if it left some.
    pub(super) expiry_begins_after: String,
}

/// What a command is to be answered with.
#[derive(Debug)]
pub(super) enum Expected {
    Written(Vec<Record>),
    Leased(bool),
    /// The data do not fit the mask, or each other: nothing has changed.
    Refused,
    /// The model has no say in it.
    Anything,
}

impl Model {
    fn stamp(&mut self, mut record: Record, deleted: bool) -> Record {
        self.latest += 1;
        record.version = self.latest;
        record.modified_at = at(self.now);
        record.deleted_at = if deleted { at(self.now) } else { None };
        self.log.insert(self.latest, record.clone());
        record
    }

    fn upsert(&mut self, record: Record) -> Record {
        let stored = self.stamp(record, false);
        self.live.insert((stored.r#type.clone(), stored.id.clone()), stored.clone());
        stored
    }

    fn delete(&mut self, record_type: &str, id: &str) -> Option<Record> {
        let stored = self.live.remove(&(record_type.to_owned(), id.to_owned()))?;
        Some(self.stamp(stored, true))
    }

    fn evict<'a>(&mut self, touched: impl IntoIterator<Item = &'a Record>) {
        let types: BTreeSet<&str> = touched.into_iter().map(|record| record.r#type.as_str()).collect();
        for record_type in types {
            let Some(capacity) = self.options.get(record_type).and_then(|options| options.capacity) else { continue };
            let mut of_type: Vec<Record> =
                self.live.values().filter(|record| record.r#type == record_type).cloned().collect();
            of_type.sort_by_key(|record| std::cmp::Reverse(record.version));
            for record in of_type.into_iter().skip(capacity as usize) {
                self.delete(record_type, &record.id);
            }
        }
    }

    fn put(&mut self, records: &[Record]) -> Vec<Record> {
        let mut answered = Vec::new();
        for record in records {
            if record.deleted_at.is_some() {
                self.delete(&record.r#type, &record.id);
                answered.push(record.clone());
            } else {
                answered.push(self.upsert(record.clone()));
            }
        }
        self.evict(records);
        answered
    }

    /// `None`: one of them cannot be patched. Those before it were.
    fn patch(&mut self, records: &[Record], mask: &[String]) -> Option<Vec<Record>> {
        let mut answered = Vec::new();
        for input in records {
            let key = (input.r#type.clone(), input.id.clone());
            if input.deleted_at.is_some() {
                answered.extend(self.delete(&input.r#type, &input.id));
            } else if let Some(mut stored) = self.live.get(&key).cloned() {
                if !mask.is_empty() {
                    stored.data = Some(patched(stored.data.as_ref()?, input.data.as_ref()?, mask)?);
                }
                answered.push(self.upsert(stored));
            }
        }
        self.evict(&answered);
        Some(answered)
    }

    pub(super) fn apply(&mut self, op: &Op) -> Expected {
        match op {
            Op::Put(records) => return Expected::Written(self.put(records)),
            Op::Patch { records, mask } => {
                let before = self.clone();
                return match self.patch(records, mask) {
                    Some(patched) => Expected::Written(patched),
                    None => {
                        *self = before;
                        Expected::Refused
                    }
                };
            }
            Op::Options { record_type, capacity, ttl, indexed } => {
                let options = options_of(*capacity, *ttl, indexed);
                if options == databroker::Options::default() {
                    self.options.remove(*record_type);
                } else {
                    self.options.insert((*record_type).into(), options);
                }
            }
            Op::Lease { name, holder, seconds } => {
                let (name, holder) = (format!("n{name}"), format!("h{holder}"));
                let free = self.leases.get(&name).is_none_or(|(held, until)| *held == holder || *until < self.now);
                if free {
                    self.leases.insert(name, (holder, self.now.saturating_add_signed(seconds * SECOND as i64)));
                }
                return Expected::Leased(free);
            }
            Op::Report { kind, endpoint } => {
                self.services.insert((*kind, format!("e{endpoint}")), self.now + 30 * SECOND);
            }
            Op::Checkpoint(version) => self.checkpoint = (*version, version / 2),
            Op::Clear(server_version) => {
                *self = Self {
                    server_version: *server_version,
                    now: self.now,
                    leases: std::mem::take(&mut self.leases),
                    services: std::mem::take(&mut self.services),
                    ..Self::default()
                };
            }
            Op::Sweep { .. } | Op::Tick(_) | Op::Again => {}
        }
        Expected::Anything
    }

    pub(super) fn sweep(&mut self, age: u64, bytes_max: u64, at_most: usize) {
        let cutoff = self.now.saturating_sub(age * SECOND);
        let mut bytes: u64 = self.log.values().map(|record| record.encoded_len() as u64).sum();
        for _ in 0..at_most {
            let Some((&version, record)) = self.log.first_key_value() else { break };
            let modified = record.modified_at.unwrap();
            let too_old = modified.seconds as u64 * SECOND + (modified.nanos as u64) < cutoff;
            if version == self.latest || !(too_old || bytes > bytes_max) {
                break;
            }
            bytes -= record.encoded_len() as u64;
            self.log.remove(&version);
            self.earliest = version + 1;
        }
        let mut left = at_most;
        let mut last = std::mem::take(&mut self.expiry_begins_after);
        let (first, then): (Vec<_>, Vec<_>) = self.options.clone().into_iter().partition(|(of, _)| *of > last);
        for (record_type, options) in first.into_iter().chain(then) {
            let Some(ttl) = options.ttl.map(|ttl| ttl.seconds).filter(|ttl| *ttl > 0) else { continue };
            let cutoff = self.now.saturating_sub(ttl as u64 * SECOND);
            let mut expired: Vec<Record> = self
                .live
                .values()
                .filter(|record| record.r#type == record_type)
                .filter(|record| (record.modified_at.unwrap().seconds as u64) * SECOND < cutoff)
                .cloned()
                .collect();
            expired.sort_by_key(|record| record.version);
            for record in expired {
                if left == 0 {
                    self.expiry_begins_after = last;
                    return self.sweep_services(at_most);
                }
                left -= 1;
                last.clone_from(&record_type);
                self.delete(&record_type, &record.id);
            }
        }
        self.sweep_services(at_most);
    }

    fn sweep_services(&mut self, at_most: usize) {
        let due = self.services.iter().filter(|(_, expiry)| **expiry < self.now).take(at_most);
        for key in due.map(|(key, _)| key.clone()).collect::<Vec<_>>() {
            self.services.remove(&key);
        }
    }
}
