//! Answers queries: by index where one helps, else by a scan.
//!
//! A filter becomes a plan (`plan`), in which whatever an index answers (ids, addresses, indexed fields) is a set of keys,
//! found before any record is read. If the sets bound the matches, only those records are read; else all of the type.

mod plan;
#[cfg(test)]
mod tests;

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use bytes::Bytes;
use databroker_proto::EncodedRecord;
use ipnet::IpNet;

use super::{
    Error,
    cidr::CidrTable,
    filter::{Field, Filter, Subject},
    keyspace::{Keyspace, records as keys},
    machine::text as as_text,
    snapshot::Snapshot,
    text, wire,
};
use plan::{Candidate, Plan};

pub use plan::Cost;

/// How many bytes the records of one answer have at most: no more than the largest message that our own tools take, and
/// than may be sent. One record alone may be of any size.
pub(super) const ANSWER_BYTES_MAX: usize = 64 << 20;

/// What a response holds besides the records, rounded up.
const FRAME_BYTES: usize = 64;

/// What answering may take of memory.
#[derive(Clone, Copy)]
struct Bounds {
    keys: usize,
    bytes: usize,
}

/// Stops a query from outside: whoever asked has gone, and a scan may go on for seconds. Clones stop the same query.
#[derive(Clone, Debug, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// The query ends at its next record, with [`Error::Stopped`].
    pub fn stop(&self) {
        self.0.store(true, Relaxed);
    }

    fn check(&self) -> Result<(), Error> {
        if self.0.load(Relaxed) { Err(Error::Stopped) } else { Ok(()) }
    }
}

/// A query as the edge understood it.
#[derive(Clone, Debug, Default)]
pub struct Query {
    /// `""`: all types.
    pub record_type: String,
    /// Free text, in lower case; `""` matches everything.
    pub text: String,
    /// Absent: every record of the type.
    pub filter: Option<Filter>,
    /// How many matches to leave out at the start.
    pub offset: u64,
    /// How many to return at most. 0 returns none.
    pub limit: u64,
    /// Ends it early.
    pub stop: Stop,
}

/// What a query found, in (type, id) order.
#[derive(Clone, Debug, Default)]
pub struct Answer {
    /// The requested page.
    pub records: Vec<EncodedRecord>,
    /// How many match in all.
    pub total_count: u64,
}

/// The type and id of a record.
type Key = (Bytes, Bytes);

/// Sorted, each once.
type Keys = Vec<Key>;

/// What the address index said to the addresses a filter asks for.
#[derive(Clone, Debug, Default)]
pub(super) struct CidrHits {
    /// The smallest network around each address. One that is in none is not here.
    networks: HashMap<String, IpNet>,
    /// The records of these networks, however many addresses are in one; `None`: more than are held.
    records: HashMap<IpNet, Option<Keys>>,
}

impl CidrHits {
    pub(super) fn look_up(table: &CidrTable, record_type: &str, values: Vec<&str>) -> Self {
        Self::look_up_within(plan::KEYS_MAX, table, record_type, values)
    }

    /// Only as much as says whether the query is a [`Cost::Point`]: more addresses are none, whatever is around them.
    pub(super) fn look_up_points(table: &CidrTable, record_type: &str, values: Vec<&str>) -> Self {
        let values = if values.len() > plan::POINTS_MAX { Vec::new() } else { values };
        Self::look_up_within(plan::POINTS_MAX, table, record_type, values)
    }

    /// Holds so many keys at most. The table is locked meanwhile, so nothing is copied in vain.
    fn look_up_within(keys_max: usize, table: &CidrTable, record_type: &str, values: Vec<&str>) -> Self {
        let (mut hits, mut keys_left) = (Self::default(), keys_max);
        for value in values {
            let Some(network) = table.smallest(record_type, value) else { continue };
            hits.networks.insert(value.to_owned(), network);
            hits.records.entry(network).or_insert_with(|| {
                if table.records(record_type, network).nth(keys_left).is_some() {
                    return None;
                }
                let owned = |text: &str| Bytes::copy_from_slice(text.as_bytes());
                let keys = table.records(record_type, network).map(|(of_type, id)| (owned(of_type), owned(id)));
                let keys: Keys = keys.collect();
                keys_left -= keys.len();
                Some(keys)
            });
        }
        hits
    }

    fn network(&self, value: &str) -> Option<IpNet> {
        self.networks.get(value).copied()
    }

    /// The records of a network, unless they are more than are held.
    fn records(&self, network: IpNet) -> Option<&Keys> {
        self.records.get(&network)?.as_ref()
    }
}

/// The addresses a filter asks the address index for.
pub(super) fn cidr_values(filter: &Filter) -> Vec<&str> {
    match filter {
        Filter::And(children) | Filter::Or(children) => children.iter().flat_map(cidr_values).collect(),
        Filter::Not(child) => cidr_values(child),
        Filter::Compare(comparison) if comparison.field == Field::Cidr => {
            comparison.value.as_text().into_iter().collect()
        }
        Filter::Compare(_) => Vec::new(),
    }
}

/// Answers a query from one snapshot.
pub(super) fn answer(snapshot: &Snapshot, query: &Query, hits: &CidrHits) -> Result<Answer, Error> {
    answer_within(Bounds { keys: plan::KEYS_MAX, bytes: ANSWER_BYTES_MAX }, snapshot, query, hits)
}

/// Answers within these bounds. The answer does not depend on that of keys.
fn answer_within(within: Bounds, snapshot: &Snapshot, query: &Query, hits: &CidrHits) -> Result<Answer, Error> {
    let Some(filter) = &query.filter else {
        return if query.text.is_empty() {
            page_of_all(snapshot, query, within)
        } else {
            scan(snapshot, query, within, None)
        };
    };
    if query.text.is_empty()
        && let Some(keys) = plan::exact_keys(snapshot, &query.record_type, filter, hits)
    {
        return page_of(snapshot, query, within, keys);
    }
    let plan = Plan::of(snapshot, query, filter, hits, within.keys)?;
    let Some(candidates) = plan.candidates() else {
        return scan(snapshot, query, within, Some(&plan));
    };
    let mut page = Page::of(query, within);
    for key in candidates {
        // Most ids are of no record in most types: many may be asked for in vain.
        query.stop.check()?;
        let stored = snapshot.view().get(Keyspace::Records.space(), &keys::record(snapshot.epoch(), &key.0, &key.1))?;
        if let Some(stored) = stored
            && matches(snapshot, query, Some(&plan), &key, &stored)?
        {
            page.add(|| Ok(stored))?;
        }
    }
    Ok(page.found)
}

/// Exactly these records: counted without looking, read only as far as the page goes.
fn page_of(
    snapshot: &Snapshot,
    query: &Query,
    within: Bounds,
    keys: impl Iterator<Item = Result<Key, Error>>,
) -> Result<Answer, Error> {
    let mut page = Page::of(query, within);
    for key in keys {
        query.stop.check()?;
        let (record_type, id) = key?;
        page.add(|| {
            let key = keys::record(snapshot.epoch(), &record_type, &id);
            let stored = snapshot.view().get(Keyspace::Records.space(), &key)?;
            stored.ok_or_else(|| Error::Damaged { what: "an index entry has no record".to_owned() })
        })?;
    }
    Ok(page.found)
}

fn scan(snapshot: &Snapshot, query: &Query, within: Bounds, plan: Option<&Plan<'_>>) -> Result<Answer, Error> {
    let mut page = Page::of(query, within);
    for item in snapshot.view().range(Keyspace::Records.space(), snapshot.records_of(&query.record_type)) {
        let (key, stored) = item?;
        let key =
            keys::read_record(&key).map_err(|error| Error::Damaged { what: format!("a record's key: {error}") })?;
        if matches(snapshot, query, plan, &key, &stored)? {
            page.add(|| Ok(stored))?;
        }
    }
    Ok(page.found)
}

fn matches(
    snapshot: &Snapshot,
    query: &Query,
    plan: Option<&Plan<'_>>,
    key: &Key,
    stored: &Bytes,
) -> Result<bool, Error> {
    query.stop.check()?;
    // Most queries are answered by their sets alone, and never look into a record.
    if query.text.is_empty() && matches!(plan, None | Some(Plan::Set(_))) {
        return Ok(true);
    }
    let parts = wire::parse(stored).map_err(|error| Error::Damaged { what: format!("a record: {error}") })?;
    let data: &[u8] = parts.data.as_deref().unwrap_or_default();
    let (record_type, id) = (as_text(&key.0), as_text(&key.1));
    let subject = Subject::new(&record_type, &id, data, snapshot.descriptors());
    let candidate = Candidate::new(key, &subject, data, snapshot.descriptors());
    Ok(plan.is_none_or(|plan| plan.matches(&candidate))
        && (query.text.is_empty() || text::matches(snapshot.descriptors(), data, &query.text)))
}

/// Everything of a type: counted without looking, read only as far as the page goes.
fn page_of_all(snapshot: &Snapshot, query: &Query, within: Bounds) -> Result<Answer, Error> {
    let counts = snapshot.type_counts()?;
    let wanted = counts.iter().filter(|(t, _)| query.record_type.is_empty() || *t == query.record_type);
    let total_count = wanted.map(|(_, count)| count).sum();
    let mut page = Page::of(query, within);
    if query.limit > 0 && query.offset < total_count {
        let skip = usize::try_from(query.offset).unwrap_or(usize::MAX);
        let take = usize::try_from(query.limit).unwrap_or(usize::MAX);
        let bounds = snapshot.records_of(&query.record_type);
        let items = snapshot.view().range(Keyspace::Records.space(), bounds);
        for (nth, item) in items.take(skip.saturating_add(take)).enumerate() {
            query.stop.check()?;
            let (_, stored) = item?;
            if nth >= skip {
                page.keep(stored)?;
            }
        }
    }
    page.found.total_count = total_count;
    Ok(page.found)
}

/// Counts matches and keeps those of the page.
struct Page {
    offset: u64,
    limit: u64,
    bytes_left: usize,
    found: Answer,
}

impl Page {
    fn of(query: &Query, within: Bounds) -> Self {
        let bytes_left = within.bytes.saturating_sub(FRAME_BYTES);
        Self { offset: query.offset, limit: query.limit, bytes_left, found: Answer::default() }
    }

    /// Counts a match, and reads it if it is wanted.
    fn add(&mut self, stored: impl FnOnce() -> Result<Bytes, Error>) -> Result<(), Error> {
        let nth = self.found.total_count;
        self.found.total_count += 1;
        if nth >= self.offset && nth - self.offset < self.limit {
            self.keep(stored()?)?;
        }
        Ok(())
    }

    /// Not even so many are collected as would then be refused.
    fn keep(&mut self, stored: Bytes) -> Result<(), Error> {
        // The tag and length of a record in the list.
        const FIELD_BYTES: usize = 6;
        let left = self.bytes_left.checked_sub(stored.len() + FIELD_BYTES);
        if left.is_none() && !self.found.records.is_empty() {
            return Err(Error::AnswerTooLarge);
        }
        self.bytes_left = left.unwrap_or_default();
        self.found.records.push(EncodedRecord::from_bytes(stored));
        Ok(())
    }
}
