//! Answers queries: by index where one helps, else by a scan.
//!
//! A filter becomes a plan (`plan`), in which whatever an index answers (ids, addresses, indexed fields) is a set of keys,
//! found before any record is read. If the sets bound the matches, only those records are read; else all of the type.

mod plan;

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering::Relaxed},
};

use bytes::Bytes;
use databroker_proto::EncodedRecord;

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

/// Answers a query from one snapshot.
pub(super) fn answer(snapshot: &Snapshot, query: &Query, hits: &CidrHits) -> Result<Answer, Error> {
    answer_within(plan::KEYS_MAX, snapshot, query, hits)
}

/// Answers with so many keys in memory at most; the answer does not depend on it.
fn answer_within(keys_max: usize, snapshot: &Snapshot, query: &Query, hits: &CidrHits) -> Result<Answer, Error> {
    let Some(filter) = &query.filter else {
        return if query.text.is_empty() { page_of_all(snapshot, query) } else { scan(snapshot, query, None) };
    };
    if query.text.is_empty()
        && let Some(keys) = plan::exact_keys(snapshot, &query.record_type, filter, hits)
    {
        return page_of(snapshot, query, keys);
    }
    let plan = Plan::of(snapshot, &query.record_type, filter, hits, keys_max)?;
    let Some(candidates) = plan.candidates() else {
        return scan(snapshot, query, Some(&plan));
    };
    let mut page = Page::of(query);
    for key in candidates {
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
    keys: impl Iterator<Item = Result<Key, Error>>,
) -> Result<Answer, Error> {
    let mut page = Page::of(query);
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

fn scan(snapshot: &Snapshot, query: &Query, plan: Option<&Plan<'_>>) -> Result<Answer, Error> {
    let mut page = Page::of(query);
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

    /// Counts a match, and reads it if it is wanted.
    fn add(&mut self, stored: impl FnOnce() -> Result<Bytes, Error>) -> Result<(), Error> {
        let nth = self.found.total_count;
        self.found.total_count += 1;
        if nth >= self.offset && nth - self.offset < self.limit {
            self.found.records.push(EncodedRecord::from_bytes(stored()?));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use databroker_proto::{Record, internal};
    use serde_json::json;

    use super::{
        super::{command::Kind, limits_tests::Log, samples::filter},
        *,
    };

    /// Whether the record of this number is to be found.
    type Matches = fn(usize) -> bool;

    const BINDING: &str = "type.googleapis.com/session.SessionBinding";

    fn is_b(n: usize) -> bool {
        n.is_multiple_of(3)
    }

    fn is_y(n: usize) -> bool {
        n.is_multiple_of(4)
    }

    /// Twelve records: every third of user `b`, every fourth of session `y`, the others of `a` and `x`.
    fn filled() -> Log {
        let record = |n: usize| {
            let mut value = Vec::new();
            prost::encoding::string::encode(2, &if is_y(n) { "y" } else { "x" }.to_owned(), &mut value);
            prost::encoding::string::encode(3, &if is_b(n) { "b" } else { "a" }.to_owned(), &mut value);
            let data = Some(prost_types::Any { type_url: BINDING.into(), value });
            Record { r#type: BINDING.into(), id: format!("{n:02}"), data, ..Record::default() }
        };
        let mut log = Log::new();
        let records = (0..12).map(|n| EncodedRecord::from(record(n)).into_bytes()).collect();
        log.apply(Kind::Put(internal::Put { records }));
        log
    }

    #[test]
    fn an_answer_does_not_depend_on_how_many_keys_are_held() {
        let log = filled();
        let snapshot = log.store.reader().snapshot();
        let (a, b) = (json!({"user_id": "a"}), json!({"user_id": "b"}));
        let (x, y) = (json!({"session_id": "x"}), json!({"session_id": "y"}));
        let cases: [(_, Matches); 8] = [
            (a.clone(), |n| !is_b(n)),
            (json!({"user_id": "none"}), |_| false),
            (json!({"$or": [a, b]}), |_| true),
            (json!({"$or": [b, y]}), |n| is_b(n) || is_y(n)),
            (json!({"$and": [a, x]}), |n| !is_b(n) && !is_y(n)),
            (json!({"$not": b}), |n| !is_b(n)),
            (json!({"$and": [{"$or": [b, y]}, {"$not": x}]}), is_y),
            (json!({"$and": [a, {"id": "02"}]}), |n| n == 2),
        ];
        for (json, expected) in &cases {
            for (offset, limit) in [(0, u64::MAX), (0, 1), (2, 3), (50, 1), (0, 0)] {
                let query = Query {
                    record_type: BINDING.into(),
                    filter: Some(filter(json)),
                    offset,
                    limit,
                    ..Query::default()
                };
                let matching: Vec<String> = (0..12).filter(|n| expected(*n)).map(|n| format!("{n:02}")).collect();
                let page: Vec<&String> = matching.iter().skip(offset as usize).take(limit as usize).collect();
                for keys_max in [0, 1, 4, 8, 100] {
                    let found = answer_within(keys_max, &snapshot, &query, &CidrHits::default()).unwrap();
                    assert_eq!(found.total_count, matching.len() as u64, "{json} {keys_max}");
                    let ids: Vec<String> = found.records.iter().map(|r| r.to_record().unwrap().id).collect();
                    assert_eq!(ids.iter().collect::<Vec<_>>(), page, "{json} {keys_max} {offset} {limit}");
                }
            }
        }
    }

    #[test]
    fn a_plan_holds_no_more_keys_of_indexes_than_allowed() {
        fn held(plan: &Plan<'_>) -> usize {
            match plan {
                Plan::And(children) | Plan::Or(children) => children.iter().map(held).sum(),
                Plan::Not(child) => held(child),
                Plan::Set(keys) => keys.len(),
                Plan::Value(_) | Plan::Test(_) => 0,
            }
        }
        let log = filled();
        let snapshot = log.store.reader().snapshot();
        let filter = filter(&json!({"$or": [{"user_id": "a"}, {"user_id": "b"}, {"session_id": "y"}]}));
        for (keys_max, expected) in [(0, 0), (3, 3), (8, 8), (12, 12), (14, 12), (15, 15)] {
            let plan = Plan::of(&snapshot, BINDING, &filter, &CidrHits::default(), keys_max).unwrap();
            assert_eq!(held(&plan), expected, "{keys_max}");
        }
    }
}
