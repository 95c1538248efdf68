//! What no engine has a key for must be refused by `apply`: an entry of the log that cannot be applied stops every node,
//! at every start.

use std::sync::Arc;

use databroker_proto::{EncodedRecord, Record, internal};
use prost::Message as _;

use super::{
    Options, Position, Step, Store,
    command::{Answer, Command, Entry, FIELDS_MAX, Kind, outcome},
    engine::{Engine, memory::Memory},
    keyspace::{INDEXED_VALUE_BYTES_MAX, Keyspace, NAME_BYTES_MAX, PATH_BYTES_MAX},
};

const BINDING: &str = "type.googleapis.com/session.SessionBinding";

/// A store in memory, and what is applied to it.
pub(super) struct Log {
    pub(super) store: Store,
    index: u64,
}

impl Log {
    pub(super) fn new() -> Self {
        Self::on(Arc::new(Memory::new(&Keyspace::names())), &Options::default())
    }

    /// Goes on where the engine stands.
    pub(super) fn on(engine: Arc<dyn Engine>, options: &Options) -> Self {
        let store = Store::open(engine, options).unwrap();
        let index = store.applied().0.map_or(0, |position| position.index);
        let mut log = Self { store, index };
        if index == 0 {
            log.apply(Kind::Init(internal::Init { cluster_id: "c".into(), server_version: 7 }));
        }
        log
    }

    pub(super) fn apply(&mut self, kind: Kind) -> Answer {
        self.index += 1;
        let command = Command { identity: None, kind: Some(kind) };
        let entry = Entry { command_version: 1, now_nanos: self.index, commands: vec![command] };
        let position = Position { term: 1, node: 1, index: self.index };
        let step = Step::Commands(entry.encode_to_vec().into());
        self.store.apply(vec![(position, step)]).unwrap().remove(0).remove(0)
    }

    fn put(&mut self, record_type: &str, id: &str, data: Option<prost_types::Any>) -> Answer {
        let record = Record { r#type: record_type.into(), id: id.into(), data, ..Record::default() };
        self.apply(Kind::Put(internal::Put { records: vec![EncodedRecord::from(record).into_bytes()] }))
    }
}

fn refused(answer: &Answer) -> bool {
    matches!(answer.outcome.kind, Some(outcome::Kind::Rejected(_)))
}

#[test]
fn names_too_long_for_a_key_are_refused_and_stop_nothing() {
    let mut log = Log::new();
    let long = "x".repeat(70_000);
    let lease = |name: &str| Kind::Lease(internal::Lease { name: name.into(), id: "i".into(), ttl_nanos: 1 });
    let report = |endpoint: &str| {
        let services = vec![internal::ReportedService { kind: 1, endpoint: endpoint.into() }];
        Kind::Report(internal::Report { services, ttl_nanos: 1 })
    };
    let options = |record_type: &str, path: &str| {
        let options =
            databroker_proto::databroker::Options { indexable_fields: vec![path.into()], ..Default::default() };
        Kind::SetOptions(internal::SetOptions { r#type: record_type.into(), options: options.encode_to_vec().into() })
    };
    assert!(refused(&log.put("t", &long, None)));
    assert!(refused(&log.put(&long, "i", None)));
    assert!(refused(&log.apply(lease(&long))));
    assert!(refused(&log.apply(report(&long))));
    assert!(refused(&log.apply(options(&long, "f"))));
    assert!(refused(&log.apply(options("t", &long))));
    assert!(!refused(&log.apply(lease(""))), "an empty name is a name");
    assert!(!refused(&log.put("", "", None)), "so are an empty type and id");
}

#[test]
fn more_indexed_fields_than_allowed_are_refused_though_they_be_the_same() {
    let mut log = Log::new();
    let options = |fields: usize| {
        let indexable_fields = vec!["f".to_owned(); fields];
        let options = databroker_proto::databroker::Options { indexable_fields, ..Default::default() };
        Kind::SetOptions(internal::SetOptions { r#type: "t".into(), options: options.encode_to_vec().into() })
    };
    assert!(!refused(&log.apply(options(FIELDS_MAX))));
    assert!(refused(&log.apply(options(FIELDS_MAX + 1))));
}

#[test]
fn the_longest_names_of_nul_bytes_fit_every_key() {
    let mut log = Log::new();
    let longest = "\0".repeat(NAME_BYTES_MAX);
    let fields = vec!["\0".repeat(PATH_BYTES_MAX)];
    let options = databroker_proto::databroker::Options { indexable_fields: fields, capacity: Some(9), ttl: None };
    log.apply(Kind::SetOptions(internal::SetOptions {
        r#type: longest.clone(),
        options: options.encode_to_vec().into(),
    }));
    let value = vec![0x0a, 1, b'v'];
    let data = prost_types::Any { type_url: "type.googleapis.com/test.Test".into(), value };
    assert!(!refused(&log.put(&longest, &longest, Some(data))));
}

#[test]
fn a_value_too_long_for_the_index_is_found_by_a_scan() {
    let mut log = Log::new();
    let long = "\0".repeat(INDEXED_VALUE_BYTES_MAX + 1);
    let mut value = Vec::new();
    // `session.SessionBinding.user_id`, which is indexed from the start.
    prost::encoding::string::encode(3, &long, &mut value);
    assert!(!refused(&log.put(BINDING, "i", Some(prost_types::Any { type_url: BINDING.into(), value }))));
    let filter = prost_types::Struct {
        fields: [(
            "user_id".to_owned(),
            prost_types::Value { kind: Some(prost_types::value::Kind::StringValue(long)) },
        )]
        .into(),
    };
    let query = super::query::Query {
        record_type: BINDING.into(),
        filter: Some(super::filter::Filter::parse(&filter).unwrap()),
        text: String::new(),
        offset: 0,
        limit: 10,
        stop: Default::default(),
    };
    let (_, answer) = log.store.reader().query(&query).unwrap();
    assert_eq!(answer.total_count, 1);
}

#[test]
fn a_scan_whose_caller_has_gone_ends_at_its_next_record() {
    let mut log = Log::new();
    assert!(!refused(&log.put("t", "i", Some(prost_types::Any::default()))));
    let query = super::query::Query {
        record_type: "t".into(),
        filter: None,
        text: "x".into(),
        offset: 0,
        limit: 10,
        stop: Default::default(),
    };
    assert_eq!(log.store.reader().query(&query).unwrap().1.total_count, 0);
    query.stop.stop();
    assert!(matches!(log.store.reader().query(&query), Err(super::Error::Stopped)));
}

#[test]
fn the_registry_has_a_bound_and_whoever_is_in_it_stays() {
    let mut log = Log::new();
    let report = |names: std::ops::Range<usize>, bytes: usize| {
        let service = |n: usize| internal::ReportedService { kind: 1, endpoint: format!("{n:0bytes$}") };
        Kind::Report(internal::Report { services: names.map(service).collect(), ttl_nanos: 1 })
    };
    assert!(refused(&log.apply(report(0..70_000, 1))), "one report asks for too much");
    assert!(super::command::check(&report(0..10, 7_000)).is_err(), "and is told before it is proposed");
    assert!(!refused(&log.apply(report(0..7, 7_000))));
    assert!(refused(&log.apply(report(7..10, 7_000))), "together they are too many");
    assert!(!refused(&log.apply(report(0..7, 7_000))), "who is in it may report again");
    assert!(!refused(&log.apply(report(7..9, 7_000))), "there is room for two");
    assert_eq!(log.store.reader().snapshot().services(&[]).unwrap().len(), 9);
}
