//! What must be equal between a store and the model.

use databroker_proto::Record;

use super::{TYPES, model::Model};
use crate::store::{Store, filter::Filter, query::Query};

pub(super) fn check_contents(store: &Store, model: &Model) {
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
        live.extend(chunk.iter().map(|record| record.to_record().unwrap()));
    }
    assert_eq!(live, model.live.values().cloned().collect::<Vec<_>>());
    for record_type in TYPES {
        let of_type: Vec<&Record> = model.live.values().filter(|record| record.r#type == record_type).collect();
        let count = snapshot.type_counts().unwrap().iter().find(|(t, _)| t == record_type).map_or(0, |(_, n)| *n);
        assert_eq!(count, of_type.len() as u64);
        assert_eq!(snapshot.options(record_type), model.options.get(record_type).cloned());
        check_index(
            store,
            record_type,
            &of_type,
            model.options.get(record_type).is_some_and(|o| !o.indexable_fields.is_empty()),
        );
        check_changes(store, record_type, model);
    }
    check_changes(store, "", model);
    let services = snapshot.services(&[]).unwrap();
    let services: Vec<_> = services.into_iter().map(|s| (s.kind, s.endpoint)).collect();
    assert_eq!(services, model.services.keys().cloned().collect::<Vec<_>>());
    let checkpoint = snapshot.checkpoint();
    assert_eq!((checkpoint.server_version, checkpoint.record_version), model.checkpoint);
}

pub(super) fn check_index(store: &Store, record_type: &str, of_type: &[&Record], indexed: bool) {
    for value in ["", "v2", "v3"] {
        let filter = prost_types::Struct {
            fields: [(
                "string_field".to_owned(),
                prost_types::Value { kind: Some(prost_types::value::Kind::StringValue(value.into())) },
            )]
            .into(),
        };
        let query = Query {
            record_type: record_type.into(),
            text: String::new(),
            filter: Some(Filter::parse(&filter).unwrap()),
            offset: 0,
            limit: u64::MAX,
            stop: Default::default(),
        };
        let (_, answer) = store.reader().query(&query).unwrap();
        let text_of = |record: &Record| {
            let bytes = record.data.as_ref().map(|any| any.value.clone())?;
            Some(String::from_utf8_lossy(bytes.get(2..).unwrap_or_default()).into_owned())
        };
        // An absent value is found under "" in an index, and equals nothing in a scan.
        let expected: Vec<Record> = of_type
            .iter()
            .filter(|record| text_of(record).is_some_and(|text| text == value && (indexed || !value.is_empty())))
            .map(|record| (*record).clone())
            .collect();
        let found: Vec<Record> = answer.records.iter().map(|record| record.to_record().unwrap()).collect();
        assert_eq!(found, expected, "type {record_type:?} value {value:?} indexed {indexed}");
        assert_eq!(answer.total_count, expected.len() as u64);
    }
}

pub(super) fn check_changes(store: &Store, record_type: &str, model: &Model) {
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
        found.extend(changes.records.iter().map(|record| record.to_record().unwrap()));
        position = changes.position;
        if changes.complete {
            break;
        }
    }
    assert_eq!(found, expected);
    // The disk alone tells the same.
    let mut from_disk = Vec::new();
    let mut position = model.earliest.saturating_sub(1);
    loop {
        let changes = snapshot.changes(record_type, position).unwrap();
        from_disk.extend(changes.records.iter().map(|record| record.to_record().unwrap()));
        position = changes.position;
        if changes.complete {
            break;
        }
    }
    assert_eq!(from_disk, expected);
}
