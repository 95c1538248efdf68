//! Indexes that come and go in pieces, with budgets small enough to be reached: they end as if all had been done at once,
//! and nobody sees the difference meanwhile.

use std::{collections::BTreeSet, ops::Range, sync::Arc};

use bytes::Bytes;
use databroker_proto::{
    EncodedRecord, Record, databroker,
    internal::{self, Swept},
};
use proptest::{collection::vec, option, prelude::*, sample::select};
use prost::Message as _;
use serde_json::json;

use super::{
    Options,
    apply::INDEX_ENTRIES_MAX,
    command::{Answer, FIELDS_MAX, Kind, outcome},
    dump,
    engine::{fjall::Fjall, memory::Memory},
    keyspace::{Keyspace, records as keys},
    limits_tests::Log,
    query::{Cost, Query},
    samples::{any, descriptors, filter},
    strategies::{self, TYPES},
    wire,
};

const TEXT: &str = "string_field";
const INNER: &str = "proto_field.another_string_field";

fn options(index_entries_max: u64) -> Options {
    Options { index_entries_max, ..Options::default() }
}

fn log(index_entries_max: u64) -> Log {
    Log::on(Arc::new(Memory::new(&Keyspace::names())), &options(index_entries_max))
}

/// Every third record of a type has the text `v0`, the next `v1`, the next `v2`.
fn put(log: &mut Log, record_type: &str, numbers: Range<usize>) {
    put_texts(log, record_type, numbers, |n| format!("v{}", n % 3));
}

fn put_texts(log: &mut Log, record_type: &str, numbers: Range<usize>, text: impl Fn(usize) -> String) {
    let record = |n: usize| {
        let data = Some(prost_types::Any::decode(&*any("test.Test", json!({"stringField": text(n)}))).unwrap());
        Record { r#type: record_type.into(), id: format!("{n:02}"), data, ..Record::default() }
    };
    let records = numbers.map(|n| EncodedRecord::from(record(n)).into_bytes()).collect();
    log.apply(Kind::Put(internal::Put { records }));
}

fn set_options(record_type: &str, options: &databroker::Options) -> Kind {
    Kind::SetOptions(internal::SetOptions { r#type: record_type.into(), options: options.encode_to_vec().into() })
}

fn set(log: &mut Log, record_type: &str, fields: &[&str], capacity: Option<u64>) -> Answer {
    let indexable_fields = fields.iter().map(|field| (*field).to_owned()).collect();
    log.apply(set_options(record_type, &databroker::Options { indexable_fields, capacity, ttl: None }))
}

fn sweep(log: &mut Log, deletions_max: u32) -> bool {
    let sweep = internal::Sweep { change_log_cutoff_nanos: 0, change_log_bytes_max: u64::MAX, deletions_max };
    match log.apply(Kind::Sweep(sweep)).outcome.kind {
        Some(outcome::Kind::Swept(Swept { more, .. })) => more,
        other => panic!("{other:?}"),
    }
}

fn is_indexing(log: &Log) -> bool {
    log.store.reader().progress().indexing
}

fn live(log: &Log) -> u64 {
    log.store.reader().snapshot().type_counts().unwrap().iter().map(|(_, count)| count).sum()
}

type Rows = BTreeSet<(Keyspace, Bytes, Bytes)>;

/// What the indexes hold.
fn indexed(log: &Log) -> Rows {
    let view = log.store.engine().view().unwrap();
    let rows = dump::dump(&*view).unwrap().into_iter();
    let of_index = rows.filter(|row| [Keyspace::FieldIndex, Keyspace::AgeIndex].contains(&row.keyspace));
    of_index.map(|row| (row.keyspace, row.key, row.value)).collect()
}

/// What they are to hold, seen from the live records.
fn expected(log: &Log) -> Rows {
    let snapshot = log.store.reader().snapshot();
    let mut rows = Rows::new();
    for item in snapshot.view().range(Keyspace::Records.space(), keys::all(snapshot.epoch())) {
        let parts = wire::parse(&item.unwrap().1).unwrap();
        let Some(rules) = snapshot.rules().get(&parts.record_type) else { continue };
        if rules.by_age() {
            let key = keys::by_version(snapshot.epoch(), &parts.record_type, parts.version);
            rows.insert((Keyspace::AgeIndex, key, parts.id.clone()));
        }
        let data: &[u8] = parts.data.as_deref().unwrap_or_default();
        for (nth, value) in descriptors().index_values(data, &rules.fields).unwrap_or_default() {
            let (field, value) = (&rules.fields[nth], value.as_bytes());
            let key = keys::field(snapshot.epoch(), &parts.record_type, field, value, &parts.id);
            rows.insert((Keyspace::FieldIndex, key, Bytes::new()));
        }
    }
    rows
}

/// The ids found under a value, and what it took.
fn find(log: &Log, field: &str, value: &str) -> (Vec<String>, Cost) {
    let filter = Some(filter(&json!({field: value})));
    let query = Query { record_type: "t".into(), filter, limit: u64::MAX, ..Query::default() };
    let (_, answer) = log.store.reader().query(&query).unwrap();
    let ids: Vec<String> = answer.records.iter().map(|record| record.to_record().unwrap().id).collect();
    assert_eq!(answer.total_count, ids.len() as u64);
    (ids, log.store.reader().cost(&query).unwrap())
}

#[test]
fn in_pieces_they_end_as_all_at_once() {
    let (mut in_pieces, mut at_once) = (log(5), log(INDEX_ENTRIES_MAX));
    put(&mut in_pieces, "t", 0..20);
    put(&mut at_once, "t", 0..20);
    let steps: [(&[&str], _); 6] = [
        (&[TEXT], None),
        (&[TEXT, INNER], Some(100)),
        (&[INNER], Some(100)),
        (&[], None),
        (&[TEXT, INNER], Some(100)),
        (&[], None),
    ];
    for (fields, capacity) in steps {
        set(&mut in_pieces, "t", fields, capacity);
        set(&mut at_once, "t", fields, capacity);
        assert_eq!((is_indexing(&in_pieces), is_indexing(&at_once)), (true, false));
        let mut sweeps = 1;
        while sweep(&mut in_pieces, 4) {
            assert!(is_indexing(&in_pieces));
            sweeps += 1;
        }
        assert!(sweeps >= 4 && !is_indexing(&in_pieces), "{sweeps}");
        assert_eq!(indexed(&in_pieces), indexed(&at_once));
        assert_eq!(indexed(&in_pieces), expected(&in_pieces));
    }
}

#[test]
fn a_field_is_found_by_a_scan_until_its_index_is_complete() {
    let mut log = log(5);
    put(&mut log, "t", 0..20);
    set(&mut log, "t", &[TEXT, INNER], None);
    let ids: Vec<String> = (0..20).map(|n| format!("{n:02}")).collect();
    let of_v1: Vec<String> = ids.iter().skip(1).step_by(3).cloned().collect();
    loop {
        let cost = if is_indexing(&log) { Cost::Scan } else { Cost::Lookup };
        assert_eq!(find(&log, TEXT, "v1"), (of_v1.clone(), cost));
        // What is not there has the empty text for an index, and none for a scan.
        assert_eq!(find(&log, INNER, ""), (ids.clone(), cost));
        if !sweep(&mut log, 7) && cost == Cost::Lookup {
            break;
        }
    }
    // One that is complete stays so while another is built.
    set(&mut log, "t", &[TEXT], None);
    while sweep(&mut log, 4) {}
    set(&mut log, "t", &[TEXT, INNER], None);
    assert!(is_indexing(&log));
    assert_eq!((find(&log, TEXT, "v1").1, find(&log, INNER, "").1), (Cost::Lookup, Cost::Scan));
}

#[test]
fn what_is_written_meanwhile_is_indexed_once() {
    let mut log = log(5);
    put(&mut log, "t", 10..20);
    set(&mut log, "t", &[TEXT], Some(100));
    assert!(sweep(&mut log, 3));
    // Before the place, behind it, and changed on both sides.
    put(&mut log, "t", 5..8);
    put(&mut log, "t", 20..23);
    put_texts(&mut log, "t", 10..12, |_| "other".into());
    put_texts(&mut log, "t", 18..20, |_| "other".into());
    while sweep(&mut log, 3) {}
    assert_eq!(indexed(&log), expected(&log));
    assert_eq!(find(&log, TEXT, "other"), (["10", "11", "18", "19"].map(String::from).to_vec(), Cost::Lookup));
}

#[test]
fn an_index_that_is_wanted_again_while_it_is_dropped_is_dropped_first() {
    for wanted_in_the_end in [true, false] {
        let mut log = log(5);
        put(&mut log, "t", 0..20);
        set(&mut log, "t", &[TEXT], Some(100));
        while sweep(&mut log, 100) {}
        set(&mut log, "t", &[], None);
        assert!(sweep(&mut log, 3));
        // Nobody takes the old entries of these away but the drop.
        put_texts(&mut log, "t", 0..20, |n| format!("w{}", n % 3));
        set(&mut log, "t", &[TEXT], Some(100));
        assert!(sweep(&mut log, 3));
        // Entries that come behind the place up to which was dropped.
        put_texts(&mut log, "t", 0..5, |_| "a".into());
        if !wanted_in_the_end {
            set(&mut log, "t", &[], None);
        }
        while sweep(&mut log, 3) {}
        assert_eq!(indexed(&log), expected(&log));
        assert_eq!(indexed(&log).is_empty(), !wanted_in_the_end);
    }
}

#[test]
fn a_store_that_is_opened_again_goes_on() {
    let (mut first, mut at_once) = (log(5), log(INDEX_ENTRIES_MAX));
    for log in [&mut first, &mut at_once] {
        put(log, "t", 0..20);
        set(log, "t", &[TEXT], Some(100));
    }
    assert!(sweep(&mut first, 4));
    let mut again = Log::on(first.store.engine().clone(), &options(5));
    assert!(is_indexing(&again));
    assert_eq!(find(&again, TEXT, "v0").1, Cost::Scan);
    let mut sweeps = 1;
    while sweep(&mut again, 4) {
        sweeps += 1;
    }
    // Twenty records of two entries each, less two at first and two by the sweep before.
    assert_eq!((indexed(&again), sweeps), (indexed(&at_once), 8));
}

#[test]
fn eviction_waits_for_the_order_of_age() {
    let mut log = log(5);
    put(&mut log, "t", 0..20);
    set(&mut log, "t", &[], Some(4));
    put(&mut log, "t", 20..21);
    assert_eq!((live(&log), log.store.reader().progress().evicting), (21, true));
    while sweep(&mut log, 7) {}
    assert_eq!((live(&log), log.store.reader().progress().evicting), (4, false));
    assert_eq!(indexed(&log), expected(&log));
    let newest = log.store.reader().snapshot();
    assert!((17..21).all(|n| newest.get("t", &format!("{n:02}")).unwrap().is_some()));
}

#[test]
fn expiry_waits_for_the_order_of_age() {
    let mut log = log(5);
    put(&mut log, "t", 0..20);
    let ttl = Some(prost_types::Duration { seconds: 0, nanos: 1 });
    log.apply(set_options("t", &databroker::Options { ttl, ..Default::default() }));
    assert!(sweep(&mut log, 10) && live(&log) == 20);
    while sweep(&mut log, 10) {}
    assert_eq!((live(&log), indexed(&log)), (0, Rows::new()));
}

#[test]
fn clear_forgets_what_is_left() {
    let mut log = log(5);
    put(&mut log, "t", 0..20);
    set(&mut log, "t", &[TEXT], None);
    log.apply(Kind::Clear(internal::Clear { server_version: 9 }));
    assert!(!is_indexing(&log));
    while sweep(&mut log, 100) {}
    assert_eq!(indexed(&log), Rows::new());
}

#[test]
fn types_come_one_after_the_other_and_small_ones_wait_for_nobody() {
    let mut log = log(5);
    for (record_type, count) in [("a", 20), ("t", 10), ("small", 5)] {
        put(&mut log, record_type, 0..count);
        set(&mut log, record_type, &[TEXT], None);
    }
    let entries = |log: &Log, record_type: &str| {
        let (start, end) = keys::of_type(log.store.reader().snapshot().epoch(), record_type.as_bytes());
        let view = log.store.engine().view().unwrap();
        view.range(Keyspace::FieldIndex.space(), (start, end)).count()
    };
    let all = |log: &Log| ["a", "t", "small"].map(|record_type| entries(log, record_type));
    assert_eq!(all(&log), [5, 5, 5]);
    sweep(&mut log, 10);
    assert_eq!(all(&log), [15, 5, 5]);
    // The same again changes nothing; others come last.
    set(&mut log, "a", &[TEXT], None);
    sweep(&mut log, 6);
    assert_eq!(all(&log), [20, 6, 5]);
    put(&mut log, "a", 20..30);
    set(&mut log, "a", &[], None);
    assert_eq!(all(&log), [25, 6, 5]);
    set(&mut log, "t", &[], None);
    assert!(sweep(&mut log, 4));
    assert_eq!(all(&log), [21, 6, 5]);
    while sweep(&mut log, 4) {}
    assert_eq!(all(&log), [0, 0, 5]);
}

#[test]
fn only_so_many_fields_wait_to_be_dropped() {
    let mut log = log(0);
    put(&mut log, "t", 0..1);
    let set_many = |log: &mut Log, name: &str| {
        let fields: Vec<String> = (0..FIELDS_MAX).map(|n| format!("{name}{n}")).collect();
        let answer = set(log, "t", &fields.iter().map(String::as_str).collect::<Vec<_>>(), None);
        !matches!(answer.outcome.kind, Some(outcome::Kind::Rejected(_)))
    };
    assert!(set_many(&mut log, "a") && set_many(&mut log, "b"));
    assert!(!set_many(&mut log, "c"));
    while sweep(&mut log, 1000) {}
    assert!(set_many(&mut log, "c"));
}

/// One step of a random history.
#[derive(Clone, Debug)]
enum Act {
    Put(Vec<Record>),
    Options(&'static str, databroker::Options),
    Sweep(u32),
    Clear,
}

fn act() -> impl Strategy<Value = Act> {
    let options = (select(TYPES.to_vec()), strategies::indexed(), option::of(0..4_u64), option::of(0..9_i32));
    prop_oneof![
        6 => strategies::batch().prop_map(Act::Put),
        4 => options.prop_map(|(record_type, fields, capacity, nanos)| {
            let indexable_fields = fields.into_iter().map(str::to_owned).collect();
            let ttl = nanos.map(|nanos| prost_types::Duration { seconds: 0, nanos });
            Act::Options(record_type, databroker::Options { indexable_fields, capacity, ttl })
        }),
        6 => (1..4_u32).prop_map(Act::Sweep),
        1 => Just(Act::Clear),
    ]
}

fn perform(log: &mut Log, act: &Act) {
    match act {
        Act::Put(records) => {
            let records = records.iter().map(|record| EncodedRecord::from(record.clone()).into_bytes()).collect();
            log.apply(Kind::Put(internal::Put { records }));
        }
        Act::Options(record_type, options) => drop(log.apply(set_options(record_type, options))),
        Act::Sweep(deletions_max) => drop(sweep(log, *deletions_max)),
        Act::Clear => drop(log.apply(Kind::Clear(internal::Clear { server_version: 9 }))),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn whatever_comes_between_indexes_end_as_the_records_and_options_say(
        acts in vec(act(), 1..40),
        index_entries_max in 0..4_u64,
        opened_again in 0..40_usize,
    ) {
        let folder = tempfile::tempdir().unwrap();
        let on_disk = Arc::new(Fjall::open(folder.path(), &Keyspace::names(), Default::default()).unwrap());
        let options = options(index_entries_max);
        let (mut on_disk, mut in_memory) = (Log::on(on_disk, &options), log(index_entries_max));
        for (nth, act) in acts.iter().enumerate() {
            perform(&mut on_disk, act);
            perform(&mut in_memory, act);
            if nth == opened_again {
                on_disk = Log::on(on_disk.store.engine().clone(), &options);
            }
        }
        let mut sweeps = 0;
        while sweep(&mut on_disk, 2) {
            sweep(&mut in_memory, 2);
            sweeps += 1;
            prop_assert!(sweeps < 2000, "sweeping comes to an end");
        }
        sweep(&mut in_memory, 2);
        let dump_of = |log: &Log| dump::dump(&*log.store.engine().view().unwrap()).unwrap();
        prop_assert_eq!(dump_of(&on_disk), dump_of(&in_memory));
        prop_assert_eq!(indexed(&on_disk), expected(&on_disk));
    }
}
