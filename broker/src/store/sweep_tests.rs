//! Expired records that are more than one Sweep removes. Not here: what is left by writes (`capacity_tests`) and by options
//! (`indexing_tests`).

use databroker_proto::{
    EncodedRecord, Record, databroker,
    internal::{self, Swept},
};
use prost::Message as _;

use super::{
    command::{Kind, outcome},
    limits_tests::Log,
};

fn put(log: &mut Log, record_type: &str, count: usize, bytes: usize) {
    for id in 0..count {
        let data = prost_types::Any { type_url: String::new(), value: vec![0; bytes] };
        let record = Record { r#type: record_type.into(), id: id.to_string(), data: Some(data), ..Record::default() };
        log.apply(Kind::Put(internal::Put { records: vec![EncodedRecord::from(record).into_bytes()] }));
    }
}

/// From now on all there is has expired.
fn expire(log: &mut Log, record_type: &str) {
    let ttl = Some(prost_types::Duration { seconds: 0, nanos: 1 });
    let options = databroker::Options { ttl, ..Default::default() }.encode_to_vec().into();
    log.apply(Kind::SetOptions(internal::SetOptions { r#type: record_type.into(), options }));
}

/// How many records went, and whether something is left.
fn sweep(log: &mut Log, deletions_max: u32) -> (u64, bool) {
    let sweep = internal::Sweep { change_log_cutoff_nanos: 0, change_log_bytes_max: u64::MAX, deletions_max };
    match log.apply(Kind::Sweep(sweep)).outcome.kind {
        Some(outcome::Kind::Swept(Swept { more, records, .. })) => (records, more),
        other => panic!("{other:?}"),
    }
}

fn live(log: &Log) -> Vec<(String, u64)> {
    log.store.reader().snapshot().type_counts().unwrap()
}

#[test]
fn expired_records_larger_than_a_sweep_takes_go_with_several() {
    let mut log = Log::new();
    put(&mut log, "t", 5, 6 << 20);
    put(&mut log, "u", 1, 17 << 20);
    expire(&mut log, "t");
    expire(&mut log, "u");
    // Two of 6 MiB fit, and one that is too large goes alone.
    let sweeps: Vec<(u64, bool)> = (0..5).map(|_| sweep(&mut log, 10_000)).collect();
    assert_eq!(sweeps, [(2, true), (1, true), (2, true), (1, false), (0, false)]);
    assert_eq!(live(&log), []);
}

#[test]
fn as_many_as_a_sweep_takes_leave_nothing() {
    let mut log = Log::new();
    put(&mut log, "t", 3, 0);
    expire(&mut log, "t");
    assert_eq!(sweep(&mut log, 2), (2, true));
    put(&mut log, "t", 1, 0);
    assert_eq!(sweep(&mut log, 2), (1, false));
}

#[test]
fn types_take_turns() {
    let mut log = Log::new();
    for (record_type, count) in [("a", 6), ("b", 3), ("c", 2)] {
        put(&mut log, record_type, count, 0);
        expire(&mut log, record_type);
    }
    let mut left = Vec::new();
    while let (2, _) = sweep(&mut log, 2) {
        left.push(
            live(&log).into_iter().map(|(record_type, count)| format!("{record_type}{count}")).collect::<String>(),
        );
    }
    assert_eq!(left, ["a4b3c2", "a4b1c2", "a4b1", "a2b1", "a1"]);
    assert_eq!(live(&log), []);
}
