//! What must be equal between a store and the model.

use databroker_proto::Record;

use super::{
    data::assert_same,
    decoded,
    model::Model,
    queries::{Ask, always},
};
use crate::store::{Store, strategies::TYPES};

pub(super) fn check_contents(store: &Store, model: &Model, asks: &[Ask]) {
    let snapshot = store.reader().snapshot();
    let progress = snapshot.progress();
    assert_eq!(
        (progress.server_version, progress.earliest_record_version, progress.latest_record_version),
        (model.server_version, model.earliest, model.latest)
    );
    let mut cursor = None;
    let mut live = Vec::new();
    loop {
        let chunk = snapshot.scan("", &mut cursor, 100).unwrap();
        if chunk.is_empty() {
            break;
        }
        live.extend(decoded(&chunk));
    }
    assert_same(&live, &model.live.values().cloned().collect::<Vec<_>>(), &"live");
    for record_type in TYPES {
        let live = model.live.values().filter(|record| record.r#type == record_type).count();
        let count = snapshot.type_counts().unwrap().iter().find(|(t, _)| t == record_type).map_or(0, |(_, n)| *n);
        assert_eq!(count, live as u64);
        assert_eq!(snapshot.options(record_type), model.options.get(record_type).cloned());
        check_changes(store, record_type, model);
    }
    check_changes(store, "", model);
    check_answers(store, model, asks);
    let services = snapshot.services(&[]).unwrap();
    let services: Vec<_> = services.into_iter().map(|s| (s.kind, s.endpoint)).collect();
    assert_eq!(services, model.services.keys().cloned().collect::<Vec<_>>());
    let checkpoint = snapshot.checkpoint();
    assert_eq!((checkpoint.server_version, checkpoint.record_version), model.checkpoint);
}

/// Every question finds what it finds in the model.
fn check_answers(store: &Store, model: &Model, asks: &[Ask]) {
    for ask in always().chain(asks.iter().cloned()) {
        let (_, answer) = store.reader().query(&ask.query()).unwrap();
        let (page, total_count) = model.query(&ask);
        assert_same(&decoded(&answer.records), &page, &ask);
        assert_eq!(answer.total_count, total_count, "{ask:?}");
    }
}

fn check_changes(store: &Store, record_type: &str, model: &Model) {
    let expected: Vec<Record> =
        model.log.values().filter(|r| record_type.is_empty() || r.r#type == record_type).cloned().collect();
    let snapshot = store.reader().snapshot();
    let mut position = model.earliest.saturating_sub(1);
    let mut found = Vec::new();
    loop {
        let changes = match store.reader().recent_changes(record_type, position) {
            Some(changes) => changes,
            None => snapshot.changes(record_type, position).unwrap(),
        };
        assert_eq!(changes.server_version, model.server_version);
        found.extend(decoded(&changes.records));
        position = changes.position;
        if changes.complete {
            break;
        }
    }
    assert_same(&found, &expected, &record_type);
    // The disk alone tells the same.
    let mut from_disk = Vec::new();
    let mut position = model.earliest.saturating_sub(1);
    loop {
        let changes = snapshot.changes(record_type, position).unwrap();
        from_disk.extend(decoded(&changes.records));
        position = changes.position;
        if changes.complete {
            break;
        }
    }
    assert_same(&from_disk, &expected, &record_type);
}
