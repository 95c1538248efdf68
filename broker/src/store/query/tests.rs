//! Queries against small stores, with bounds small enough to be reached.

use std::net::IpAddr;

use databroker_proto::{Record, databroker, internal};
use proptest::{collection::vec, prelude::*};
use prost::Message as _;
use serde_json::json;

use super::{
    super::{
        Reader,
        cidr::cidr_of,
        command::Kind,
        filter::{Comparison, Operator},
        limits_tests::Log,
        samples::{any, descriptors, filter},
        strategies::{self, TYPES},
    },
    *,
};

/// A bound on keys alone.
fn keys(max: usize) -> Bounds {
    Bounds { keys: max, bytes: usize::MAX }
}

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

/// How many keys a plan holds.
fn held(plan: &Plan<'_>) -> usize {
    match plan {
        Plan::And(children) | Plan::Or(children) => children.iter().map(held).sum(),
        Plan::Not(child) => held(child),
        Plan::Set(keys) => keys.len(),
        Plan::Value(_) | Plan::Network(_) | Plan::Test(_) => 0,
    }
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
            let query =
                Query { record_type: BINDING.into(), filter: Some(filter(json)), offset, limit, ..Query::default() };
            let matching: Vec<String> = (0..12).filter(|n| expected(*n)).map(|n| format!("{n:02}")).collect();
            let page: Vec<&String> = matching.iter().skip(offset as usize).take(limit as usize).collect();
            for keys_max in [0, 1, 4, 8, 100] {
                let found = answer_within(keys(keys_max), &snapshot, &query, &CidrHits::default()).unwrap();
                assert_eq!(found.total_count, matching.len() as u64, "{json} {keys_max}");
                let ids: Vec<String> = found.records.iter().map(|r| r.to_record().unwrap().id).collect();
                assert_eq!(ids.iter().collect::<Vec<_>>(), page, "{json} {keys_max} {offset} {limit}");
            }
        }
    }
}

#[test]
fn a_plan_holds_no_more_keys_of_indexes_than_allowed() {
    let log = filled();
    let snapshot = log.store.reader().snapshot();
    let filter = filter(&json!({"$or": [{"user_id": "a"}, {"user_id": "b"}, {"session_id": "y"}]}));
    let query = Query { record_type: BINDING.into(), ..Query::default() };
    for (keys_max, expected) in [(0, 0), (3, 3), (8, 8), (12, 12), (14, 12), (15, 15)] {
        let plan = Plan::of(&snapshot, &query, &filter, &CidrHits::default(), keys_max).unwrap();
        assert_eq!(held(&plan), expected, "{keys_max}");
    }
}

/// Four records of each of six types, all with the same four ids: two in 10.0.0.0/8, one in 10.1.0.0/16, one nowhere.
fn networks() -> Log {
    let networks = [Some("10.0.0.0/8"), Some("10.0.0.0/8"), Some("10.1.0.0/16"), None];
    let record = |n: usize| {
        let value = networks[n % 4].map_or(json!({}), |network| json!({"$index": {"cidr": network}}));
        let data = prost_types::Any::decode(&*any("google.protobuf.Struct", value)).unwrap();
        Record { r#type: format!("t{}", n / 4), id: (n % 4).to_string(), data: Some(data), ..Record::default() }
    };
    let mut log = Log::new();
    let records = (0..24).map(|n| EncodedRecord::from(record(n)).into_bytes()).collect();
    log.apply(Kind::Put(internal::Put { records }));
    log
}

fn hits_within(keys_max: usize, reader: &Reader, query: &Query) -> (Arc<Snapshot>, CidrHits) {
    reader.with_hits(query, |table, of_type, values| CidrHits::look_up_within(keys_max, table, of_type, values))
}

#[test]
fn ids_of_all_types_and_addresses_are_held_within_the_bound_and_found_beyond_it() {
    let log = networks();
    let reader = log.store.reader();
    let (wide, other, narrow) =
        (json!({"$index": "10.9.0.1"}), json!({"$index": "10.8.0.1"}), json!({"$index": "10.1.2.3"}));
    let ids = json!({"$or": [{"id": "0"}, {"id": "2"}, {"id": "none"}]});
    // Of each type, these ids.
    let cases: [(_, &[&str]); 8] = [
        (json!({"id": "2"}), &["2"]),
        (ids.clone(), &["0", "2"]),
        (json!({"$not": ids}), &["1", "3"]),
        (wide.clone(), &["0", "1"]),
        (json!({"$or": [wide, other]}), &["0", "1"]),
        (json!({"$or": [wide, narrow, {"$index": "11.0.0.1"}]}), &["0", "1", "2"]),
        (json!({"$and": [wide, ids]}), &["0"]),
        (json!({"$and": [{"$not": narrow}, {"$not": wide}]}), &["3"]),
    ];
    for record_type in ["", "t3"] {
        for (json, expected) in &cases {
            let query = Query {
                record_type: record_type.into(),
                filter: Some(filter(json)),
                limit: u64::MAX,
                ..Query::default()
            };
            let types = (0..6).map(|n| format!("t{n}")).filter(|t| record_type.is_empty() || t == record_type);
            let expected: Vec<_> = types.flat_map(|t| expected.iter().map(move |id| format!("{t}/{id}"))).collect();
            for keys_max in [0, 1, 2, 5, 6, 11, 12, 17, 18, 100] {
                let (snapshot, hits) = hits_within(keys_max, reader, &query);
                let found = answer_within(keys(keys_max), &snapshot, &query, &hits).unwrap();
                let found = found.records.iter().map(|record| record.to_record().unwrap());
                let found: Vec<_> = found.map(|record| format!("{}/{}", record.r#type, record.id)).collect();
                assert_eq!(found, expected, "{json} of {record_type:?} with {keys_max}");
                let plan = Plan::of(&snapshot, &query, query.filter.as_ref().unwrap(), &hits, keys_max).unwrap();
                assert!(held(&plan) <= keys_max, "{json} of {record_type:?} with {keys_max}: {}", held(&plan));
                assert!(hits.records.values().flatten().map(Vec::len).sum::<usize>() <= keys_max);
            }
        }
    }
}

#[test]
fn addresses_of_one_network_take_room_once() {
    let log = networks();
    let reader = log.store.reader();
    let addresses: Vec<_> = (0..200).map(|n| json!({"$index": format!("10.9.0.{n}")})).collect();
    let query = Query { filter: Some(filter(&json!({"$or": addresses}))), ..Query::default() };
    let (snapshot, hits) = hits_within(12, reader, &query);
    let plan = Plan::of(&snapshot, &query, query.filter.as_ref().unwrap(), &hits, 12).unwrap();
    assert_eq!(held(&plan), 12);
    assert_eq!(plan.candidates().map(|keys| keys.len()), Some(12), "no scan is needed");
}

#[test]
fn planning_ends_when_the_caller_has_gone() {
    let log = networks();
    let query = Query { filter: Some(filter(&json!({"$or": [{"id": "0"}, {"id": "1"}]}))), ..Query::default() };
    query.stop.stop();
    let snapshot = log.store.reader().snapshot();
    let planned = Plan::of(&snapshot, &query, query.filter.as_ref().unwrap(), &CidrHits::default(), 100);
    assert!(matches!(planned, Err(Error::Stopped)));
}

#[test]
fn the_cost_counts_records_and_not_values() {
    let log = networks();
    let reader = log.store.reader();
    let cost = |record_type: &str, json: &serde_json::Value| {
        let filter = Some(filter(json));
        reader.cost(&Query { record_type: record_type.into(), filter, ..Query::default() }).unwrap()
    };
    let three = json!({"$or": [{"id": "0"}, {"id": "1"}, {"id": "2"}]});
    assert_eq!((cost("t1", &three), cost("", &three)), (Cost::Point, Cost::Lookup), "three ids of six types");
    let two = json!({"$or": [{"$index": "10.9.0.1"}, {"$index": "10.1.0.1"}]});
    assert_eq!((cost("t1", &two), cost("", &two)), (Cost::Point, Cost::Lookup), "two addresses of eighteen records");
    let negated = json!({"id": "0", "$not": three});
    assert_eq!(cost("", &negated), Cost::Lookup, "what is negated is looked up, too");
}

#[test]
fn an_answer_that_is_too_large_for_one_message_is_refused() {
    let log = filled();
    let snapshot = log.store.reader().snapshot();
    let record_bytes = snapshot.get(BINDING, "01").unwrap().unwrap().into_bytes().len() + 16;
    let filters = [None, Some(json!({"user_id": "a"})), Some(json!({"$not": {"user_id": "b"}}))];
    for filter in filters.iter().map(|json| json.as_ref().map(filter)) {
        let page = |limit: u64, records: usize| {
            let query =
                Query { record_type: BINDING.into(), filter: filter.clone(), limit, offset: 1, ..Query::default() };
            let within = Bounds { keys: 100, bytes: FRAME_BYTES + records * record_bytes };
            answer_within(within, &snapshot, &query, &CidrHits::default()).map(|found| found.records.len())
        };
        assert!(matches!(page(u64::MAX, 3), Err(Error::AnswerTooLarge)));
        assert_eq!(page(3, 3).unwrap(), 3);
        assert_eq!(page(u64::MAX, 100).unwrap(), if filter.is_none() { 11 } else { 7 });
        assert_eq!(page(1, 0).unwrap(), 1, "one record may be of any size");
    }
}

/// All records of a type, to be held against filters one by one: what an index would know is looked up in each.
struct FullScan {
    records: Vec<Record>,
    indexed: Vec<String>,
}

impl FullScan {
    fn keeps(&self, filter: &Filter, record: &Record) -> bool {
        match filter {
            Filter::And(all) => !all.is_empty() && all.iter().all(|filter| self.keeps(filter, record)),
            Filter::Or(any) => any.iter().any(|filter| self.keeps(filter, record)),
            Filter::Not(child) => !self.keeps(child, record),
            Filter::Compare(comparison) => self.compares(comparison, record),
        }
    }

    fn compares(&self, comparison: &Comparison, record: &Record) -> bool {
        let data = encoded_data(record);
        match (&comparison.field, comparison.operator, comparison.value.as_text()) {
            (Field::Cidr, Operator::Equals, Some(value)) => {
                let network = self.smallest_around(value);
                network.is_some() && cidr_of(&data) == network
            }
            (Field::Path(path), Operator::Equals, Some(value)) if self.indexed.contains(&path.join(".")) => {
                let held = descriptors().index_values(&data, &[path.join(".")]);
                held.is_some_and(|held| held.iter().any(|(_, held)| held == value))
            }
            _ => {
                let descriptors = descriptors();
                let subject = Subject::new(&record.r#type, &record.id, &data, &descriptors);
                Filter::Compare(comparison.clone()).matches(&subject)
            }
        }
    }

    fn smallest_around(&self, value: &str) -> Option<IpNet> {
        let address = || value.parse::<IpAddr>().ok().map(IpNet::from);
        let sought = value.parse::<IpNet>().ok().or_else(address)?;
        let networks = self.records.iter().filter_map(|record| cidr_of(&encoded_data(record)));
        networks.filter(|network| network.contains(&sought)).max_by_key(IpNet::prefix_len)
    }
}

fn encoded_data(record: &Record) -> Vec<u8> {
    record.data.as_ref().map(|data| data.encode_to_vec()).unwrap_or_default()
}

fn decoded(records: &[EncodedRecord]) -> Vec<Record> {
    records.iter().map(|record| record.to_record().unwrap()).collect()
}

fn compare_with_full_scans(batches: Vec<Vec<Record>>, indexed: &[&str], filters: &[serde_json::Value]) {
    let mut log = Log::new();
    let indexed: Vec<String> = indexed.iter().map(|field| (*field).to_owned()).collect();
    let options = databroker::Options { indexable_fields: indexed.clone(), ..Default::default() }.encode_to_vec();
    for record_type in TYPES {
        let options = options.clone().into();
        log.apply(Kind::SetOptions(internal::SetOptions { r#type: record_type.into(), options }));
    }
    for batch in batches {
        let records = batch.into_iter().map(|record| EncodedRecord::from(record).into_bytes()).collect();
        log.apply(Kind::Put(internal::Put { records }));
    }
    let reader = log.store.reader();
    for record_type in TYPES.into_iter().chain([""]) {
        // No index is of all types.
        let indexed = if record_type.is_empty() { Vec::new() } else { indexed.clone() };
        let all = Query { record_type: record_type.into(), limit: u64::MAX, ..Query::default() };
        let scan = FullScan { records: decoded(&reader.query(&all).unwrap().1.records), indexed };
        for json in filters {
            let wanted = filter(json);
            let query = Query { filter: Some(wanted.clone()), ..all.clone() };
            let kept = scan.records.iter().filter(|record| scan.keeps(&wanted, record));
            let expected: Vec<Record> = kept.cloned().collect();
            for keys_max in [0, 1, 3, 100] {
                let (snapshot, hits) = hits_within(keys_max, reader, &query);
                let found = answer_within(keys(keys_max), &snapshot, &query, &hits).unwrap();
                assert_eq!(decoded(&found.records), expected, "{json} of {record_type:?} with {keys_max}");
                assert_eq!(found.total_count, expected.len() as u64);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn a_planned_answer_is_that_of_a_full_scan(
        batches in vec(strategies::batch(), 0..8),
        indexed in strategies::indexed(),
        filters in vec(strategies::filter(), 8),
    ) {
        compare_with_full_scans(batches, &indexed, &filters);
    }
}
