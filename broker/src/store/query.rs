//! Answers queries: by index where one helps, else by a scan.
//!
//! A filter becomes a plan, in which whatever an index answers (ids, addresses, indexed fields) is a set of keys, found
//! before any record is read. If the sets bound the matches, only those records are read; else all of the type.

use std::{
    collections::HashSet,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use bytes::Bytes;
use databroker_proto::EncodedRecord;

use super::{
    Error,
    cidr::CidrTable,
    filter::{Field, Filter, Operator, Subject},
    keyspace::{INDEXED_VALUE_BYTES_MAX, Keyspace, records as keys},
    machine::text as as_text,
    snapshot::Snapshot,
    text, wire,
};

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
#[derive(Clone, Debug)]
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

/// What the address index said to each address a filter asks for.
#[derive(Clone, Debug, Default)]
pub(super) struct CidrHits(Vec<(String, Keys)>);

impl CidrHits {
    pub(super) fn look_up(table: &CidrTable, record_type: &str, values: Vec<String>) -> Self {
        let hits = values.into_iter().map(|value| {
            let found = table.lookup(record_type, &value);
            let mut found: Keys = found.into_iter().map(|(t, id)| (Bytes::from(t), Bytes::from(id))).collect();
            found.sort_unstable();
            (value, found)
        });
        Self(hits.collect())
    }

    fn of(&self, value: &str) -> Keys {
        self.0.iter().find(|(asked, _)| asked == value).map(|(_, keys)| keys.clone()).unwrap_or_default()
    }
}

/// The addresses a filter asks the address index for.
pub(super) fn cidr_values(filter: &Filter) -> Vec<String> {
    match filter {
        Filter::And(children) | Filter::Or(children) => children.iter().flat_map(cidr_values).collect(),
        Filter::Not(child) => cidr_values(child),
        Filter::Compare(comparison) if comparison.field == Field::Cidr => {
            comparison.value.as_text().into_iter().map(str::to_owned).collect()
        }
        Filter::Compare(_) => Vec::new(),
    }
}

enum Plan<'a> {
    And(Vec<Plan<'a>>),
    Or(Vec<Plan<'a>>),
    Not(Box<Plan<'a>>),
    /// Exactly these records match.
    Set(Keys),
    /// Only the record can tell.
    Test(&'a Filter),
}

impl Plan<'_> {
    /// Keys that all matches are among, if the sets say so.
    fn candidates(&self) -> Option<Keys> {
        match self {
            Self::Set(keys) => Some(keys.clone()),
            Self::And(children) => children.iter().filter_map(Self::candidates).reduce(|a, b| {
                let (fewer, more) = if a.len() < b.len() { (a, b) } else { (b, a) };
                fewer.into_iter().filter(|key| more.binary_search(key).is_ok()).collect()
            }),
            Self::Or(children) => {
                let mut all: Keys = children.iter().map(Self::candidates).collect::<Option<Vec<Keys>>>()?.concat();
                all.sort_unstable();
                all.dedup();
                Some(all)
            }
            Self::Not(_) | Self::Test(_) => None,
        }
    }

    fn matches(&self, key: &Key, subject: &Subject<'_>) -> bool {
        match self {
            Self::And(children) => children.iter().all(|child| child.matches(key, subject)),
            Self::Or(children) => children.iter().any(|child| child.matches(key, subject)),
            Self::Not(child) => !child.matches(key, subject),
            Self::Set(keys) => keys.binary_search(key).is_ok(),
            Self::Test(filter) => filter.matches(subject),
        }
    }
}

fn plan<'a>(snapshot: &Snapshot, record_type: &str, filter: &'a Filter, hits: &CidrHits) -> Result<Plan<'a>, Error> {
    // A condition that stands there again decides nothing more, and its keys would be held once more.
    let each = |children: &'a [Filter]| {
        let mut seen = HashSet::new();
        let distinct = children.iter().filter(|child| seen.insert(*child));
        distinct.map(|child| plan(snapshot, record_type, child, hits)).collect::<Result<Vec<_>, _>>()
    };
    Ok(match filter {
        // Nothing asked is nothing found.
        Filter::And(children) | Filter::Or(children) if children.is_empty() => Plan::Set(Keys::new()),
        Filter::And(children) => Plan::And(each(children)?),
        Filter::Or(children) => Plan::Or(each(children)?),
        Filter::Not(child) => Plan::Not(Box::new(plan(snapshot, record_type, child, hits)?)),
        Filter::Compare(comparison) => {
            let value = comparison.value.as_text();
            match (&comparison.field, comparison.operator, value) {
                (Field::Cidr, Operator::Equals, Some(value)) => Plan::Set(hits.of(value)),
                (Field::Cidr, ..) => Plan::Set(Keys::new()),
                (Field::Id, Operator::Equals, Some(value)) => Plan::Set(with_id(snapshot, record_type, value)?),
                (Field::Path(path), Operator::Equals, Some(value)) => {
                    let path = path.join(".");
                    match value.len() <= INDEXED_VALUE_BYTES_MAX && indexed(snapshot, record_type, &path) {
                        true => Plan::Set(by_field(snapshot, record_type, &path, value)?),
                        false => Plan::Test(filter),
                    }
                }
                _ => Plan::Test(filter),
            }
        }
    })
}

fn with_id(snapshot: &Snapshot, record_type: &str, id: &str) -> Result<Keys, Error> {
    let types = if record_type.is_empty() { snapshot.types()? } else { vec![record_type.to_owned()] };
    let id = Bytes::copy_from_slice(id.as_bytes());
    Ok(types.into_iter().map(|record_type| (Bytes::from(record_type), id.clone())).collect())
}

fn indexed(snapshot: &Snapshot, record_type: &str, path: &str) -> bool {
    snapshot.rules().get(record_type.as_bytes()).is_some_and(|rules| rules.fields.iter().any(|field| field == path))
}

fn by_field(snapshot: &Snapshot, record_type: &str, path: &str, value: &str) -> Result<Keys, Error> {
    let type_bytes = Bytes::copy_from_slice(record_type.as_bytes());
    let bounds = keys::field_value(snapshot.epoch(), record_type.as_bytes(), path, value.as_bytes());
    snapshot
        .view()
        .range(Keyspace::FieldIndex.space(), bounds)
        .map(|item| {
            let id = keys::read_field_id(&item?.0)
                .map_err(|error| Error::Damaged { what: format!("a field-index key: {error}") })?;
            Ok((type_bytes.clone(), id))
        })
        .collect()
}

/// Answers a query from one snapshot.
pub(super) fn answer(snapshot: &Snapshot, query: &Query, hits: &CidrHits) -> Result<Answer, Error> {
    let Some(filter) = &query.filter else {
        return if query.text.is_empty() { page_of_all(snapshot, query) } else { scan(snapshot, query, None) };
    };
    let plan = plan(snapshot, &query.record_type, filter, hits)?;
    if let Plan::Set(keys) = &plan
        && is_exact(filter)
        && query.text.is_empty()
    {
        return page_of(snapshot, query, keys);
    }
    let Some(candidates) = plan.candidates() else {
        return scan(snapshot, query, Some(&plan));
    };
    let mut page = Page::of(query);
    for key in candidates {
        let stored = snapshot.view().get(Keyspace::Records.space(), &keys::record(snapshot.epoch(), &key.0, &key.1))?;
        if let Some(stored) = stored
            && matches(snapshot, query, Some(&plan), &key, &stored)?
        {
            page.add(stored);
        }
    }
    Ok(page.found)
}

/// Whether the keys of this filter's set are all of live records. An index has no others; an id may be anybody's.
fn is_exact(filter: &Filter) -> bool {
    matches!(filter, Filter::Compare(comparison) if comparison.field != Field::Id)
}

/// Exactly these records: counted without looking, read only as far as the page goes.
fn page_of(snapshot: &Snapshot, query: &Query, keys: &[Key]) -> Result<Answer, Error> {
    let skip = usize::try_from(query.offset).unwrap_or(usize::MAX);
    let take = usize::try_from(query.limit).unwrap_or(usize::MAX);
    let mut records = Vec::new();
    for (record_type, id) in keys.iter().skip(skip).take(take) {
        query.stop.check()?;
        let key = keys::record(snapshot.epoch(), record_type, id);
        let stored = snapshot.view().get(Keyspace::Records.space(), &key)?;
        let stored = stored.ok_or_else(|| Error::Damaged { what: "an index entry has no record".to_owned() })?;
        records.push(EncodedRecord::from_bytes(stored));
    }
    Ok(Answer { records, total_count: keys.len() as u64 })
}

fn scan(snapshot: &Snapshot, query: &Query, plan: Option<&Plan<'_>>) -> Result<Answer, Error> {
    let mut page = Page::of(query);
    for item in snapshot.view().range(Keyspace::Records.space(), snapshot.records_of(&query.record_type)) {
        let (key, stored) = item?;
        let key =
            keys::read_record(&key).map_err(|error| Error::Damaged { what: format!("a record's key: {error}") })?;
        if matches(snapshot, query, plan, &key, &stored)? {
            page.add(stored);
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
    Ok(plan.is_none_or(|plan| plan.matches(key, &subject))
        && (query.text.is_empty() || text::matches(snapshot.descriptors(), data, &query.text)))
}

/// Everything of a type: counted without looking, read only as far as the page goes.
fn page_of_all(snapshot: &Snapshot, query: &Query) -> Result<Answer, Error> {
    let counts = snapshot.type_counts()?;
    let wanted = counts.iter().filter(|(t, _)| query.record_type.is_empty() || *t == query.record_type);
    let total_count = wanted.map(|(_, count)| count).sum();
    let mut records = Vec::new();
    if query.limit > 0 && query.offset < total_count {
        let skip = usize::try_from(query.offset).unwrap_or(usize::MAX);
        let take = usize::try_from(query.limit).unwrap_or(usize::MAX);
        let bounds = snapshot.records_of(&query.record_type);
        for item in snapshot.view().range(Keyspace::Records.space(), bounds).skip(skip).take(take) {
            records.push(EncodedRecord::from_bytes(item?.1));
        }
    }
    Ok(Answer { records, total_count })
}

/// Counts matches and keeps those of the page.
struct Page {
    offset: u64,
    limit: u64,
    found: Answer,
}

impl Page {
    fn of(query: &Query) -> Self {
        Self { offset: query.offset, limit: query.limit, found: Answer::default() }
    }

    fn add(&mut self, stored: Bytes) {
        let nth = self.found.total_count;
        self.found.total_count += 1;
        if nth >= self.offset && nth - self.offset < self.limit {
            self.found.records.push(EncodedRecord::from_bytes(stored));
        }
    }
}
