//! Types that hold more than their capacity, where it is more than the random commands against the model ever make.

use databroker_proto::{
    EncodedRecord, Record, databroker,
    internal::{self, Swept},
};
use prost::Message as _;

use super::{
    command::{Kind, outcome},
    limits_tests::Log,
};

impl Log {
    fn put_many(&mut self, ids: std::ops::Range<usize>) {
        let record = |id| Record { r#type: "t".into(), id: format!("{id:06}"), ..Record::default() };
        let records = ids.map(|id| EncodedRecord::from(record(id)).into_bytes()).collect();
        let answer = self.apply(Kind::Put(internal::Put { records }));
        assert!(matches!(answer.outcome.kind, Some(outcome::Kind::Written(_))), "{answer:?}");
    }

    fn set_capacity(&mut self, capacity: Option<u64>) {
        let options = databroker::Options { capacity, ..Default::default() }.encode_to_vec().into();
        self.apply(Kind::SetOptions(internal::SetOptions { r#type: "t".into(), options }));
    }

    /// Whether it left something.
    fn sweep(&mut self) -> bool {
        let sweep =
            internal::Sweep { change_log_cutoff_nanos: 0, change_log_bytes_max: u64::MAX, deletions_max: 10_000 };
        match self.apply(Kind::Sweep(sweep)).outcome.kind {
            Some(outcome::Kind::Swept(Swept { more, .. })) => more,
            other => panic!("{other:?}"),
        }
    }

    fn live(&self) -> u64 {
        self.store.reader().snapshot().type_counts().unwrap().iter().map(|(_, count)| count).sum()
    }

    fn is_evicting(&self) -> bool {
        self.store.reader().progress().evicting
    }

    /// The ids of all tombstones, in order of version.
    fn evicted(&self) -> Vec<String> {
        let snapshot = self.store.reader().snapshot();
        let (mut found, mut position) = (Vec::new(), 0);
        loop {
            let changes = snapshot.changes("t", position).unwrap();
            let records = changes.records.iter().map(|record| record.to_record().unwrap());
            found.extend(records.filter(|record| record.deleted_at.is_some()).map(|record| record.id));
            position = changes.position;
            if changes.complete {
                return found;
            }
        }
    }
}

#[test]
fn tens_of_thousands_go_with_the_write_that_finds_them_too_many_newest_first() {
    let mut log = Log::new();
    log.put_many(0..30_000);
    log.set_capacity(Some(2));
    assert_eq!(log.live(), 30_000, "options alone evict nothing");
    assert!(!log.sweep() && log.live() == 30_000, "nor does a sweep");
    log.put_many(30_000..30_001);
    assert_eq!((log.live(), log.is_evicting()), (2, false));
    let expected: Vec<String> = (0..29_999).rev().map(|id| format!("{id:06}")).collect();
    assert_eq!(log.evicted(), expected);
}

#[test]
fn of_too_many_for_one_command_the_oldest_go_and_sweeps_and_writes_take_the_rest() {
    let mut log = Log::new();
    log.put_many(0..65_000);
    log.put_many(65_000..70_000);
    log.set_capacity(Some(5));
    // So many are not put in order of age at once, either.
    while log.sweep() {}
    log.put_many(70_000..70_001);
    assert_eq!((log.live(), log.is_evicting()), (20_001, true));
    assert_eq!(log.evicted().first().map(String::as_str), Some("049999"));
    log.put_many(70_001..70_002);
    assert_eq!((log.live(), log.is_evicting()), (20_002 - 256, true), "a write takes more than it brings");
    let mut sweeps = 1;
    while log.sweep() {
        sweeps += 1;
    }
    assert_eq!((log.live(), log.is_evicting(), sweeps), (5, false, 2));
    assert_eq!(log.evicted().len(), 70_002 - 5);
}

#[test]
fn what_is_left_to_evict_is_forgotten_with_the_capacity_and_with_clear() {
    for forget in [(|log: &mut Log| log.set_capacity(None)) as fn(&mut Log), |log| {
        drop(log.apply(Kind::Clear(internal::Clear { server_version: 9 })))
    }] {
        let mut log = Log::new();
        log.put_many(0..51_000);
        log.set_capacity(Some(0));
        while log.sweep() {}
        log.put_many(0..1);
        assert!(log.is_evicting());
        forget(&mut log);
        let live = log.live();
        while log.sweep() {}
        assert_eq!((log.live(), log.is_evicting()), (live, false));
    }
}
