//! The store against a plain model: random commands must give equal answers, equal contents, and byte-equal dumps on
//! both engines, however the commands are cut into batches.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use databroker_proto::{
    Record, databroker,
    internal::{
        self, Clear, Command, Entry, Identity, Init, Lease, Patch, Put, Report, ReportedService, SetCheckpoint,
        SetOptions, Sweep, command::Kind, outcome,
    },
};
use proptest::prelude::*;
use prost::Message as _;

use super::{
    Options, Position, Step, Store,
    command::Answer,
    dump,
    engine::{Engine, fjall::Fjall, memory::Memory},
    filter::Filter,
    keyspace::Keyspace,
    query::Query,
};

const TEST_URL: &str = "type.googleapis.com/test.Test";
const TYPES: [&str; 3] = [TEST_URL, "nul\0in\0type", "nul"];
const IDS: [&str; 4] = ["", "a", "a\0b", "b"];
const SECOND: u64 = 1_000_000_000;

#[derive(Clone, Debug)]
struct Item {
    record_type: usize,
    id: usize,
    value: u8,
    deleted: bool,
}

#[derive(Clone, Debug)]
enum Op {
    Put(Vec<Item>),
    Patch {
        items: Vec<Item>,
        mask: bool,
    },
    BadPatch(Vec<Item>),
    Options {
        record_type: usize,
        capacity: Option<u64>,
        ttl: Option<i64>,
        indexed: bool,
    },
    Lease {
        name: u8,
        holder: u8,
        seconds: i64,
    },
    Report {
        kind: i32,
        endpoint: u8,
    },
    Checkpoint(u64),
    Clear(u64),
    Sweep {
        age: u64,
        bytes_max: u64,
        deletions_max: u32,
    },
    Tick(u64),
    /// The last command once more, under the same identity.
    Again,
}

fn item() -> impl Strategy<Value = Item> {
    (0..TYPES.len(), 0..IDS.len(), 0..4_u8, prop::bool::weighted(0.2))
        .prop_map(|(record_type, id, value, deleted)| Item { record_type, id, value, deleted })
}

fn op() -> impl Strategy<Value = Op> {
    let items = || prop::collection::vec(item(), 0..4);
    let capacity = prop::option::of(0..3_u64);
    prop_oneof![
        8 => items().prop_map(Op::Put),
        4 => (items(), Just(false)).prop_map(|(items, mask)| Op::Patch { items, mask }),
        1 => items().prop_map(Op::BadPatch),
        3 => (0..TYPES.len(), capacity, prop::option::of(-1..20_i64), any::<bool>()).prop_map(
            |(record_type, capacity, ttl, indexed)| Op::Options { record_type, capacity, ttl, indexed }),
        2 => (0..2_u8, 0..3_u8, -1..10_i64).prop_map(|(name, holder, seconds)| Op::Lease { name, holder, seconds }),
        1 => (-1..3_i32, 0..3_u8).prop_map(|(kind, endpoint)| Op::Report { kind, endpoint }),
        1 => any::<u64>().prop_map(Op::Checkpoint),
        1 => (1..u64::MAX).prop_map(Op::Clear),
        3 => (0..30_u64, 0..2000_u64, 1..20_u32).prop_map(
            |(age, bytes_max, deletions_max)| Op::Sweep { age, bytes_max, deletions_max }),
        3 => (0..20_u64).prop_map(Op::Tick),
        2 => Just(Op::Again),
    ]
}

fn data(value: u8) -> Option<prost_types::Any> {
    // Value 0 has no data at all; value 1 an empty message.
    let text = (value > 1).then(|| format!("v{value}"));
    let value_bytes = text.map_or_else(Vec::new, |text| {
        let mut bytes = Vec::new();
        prost::encoding::string::encode(1, &text, &mut bytes);
        bytes
    });
    (value > 0).then(|| prost_types::Any { type_url: TEST_URL.into(), value: value_bytes })
}

fn record_of(item: &Item) -> Record {
    Record {
        version: 99,
        r#type: TYPES[item.record_type].into(),
        id: IDS[item.id].into(),
        data: data(item.value),
        modified_at: None,
        deleted_at: item.deleted.then(prost_types::Timestamp::default),
    }
}

fn encoded(items: &[Item]) -> Vec<Bytes> {
    items.iter().map(|item| record_of(item).encode_to_vec().into()).collect()
}

fn at(nanos: u64) -> Option<prost_types::Timestamp> {
    Some(prost_types::Timestamp { seconds: (nanos / SECOND) as i64, nanos: (nanos % SECOND) as i32 })
}

/// The interface's rules in plain collections.
#[derive(Default)]
struct Model {
    server_version: u64,
    latest: u64,
    earliest: u64,
    now: u64,
    live: BTreeMap<(String, String), Record>,
    log: BTreeMap<u64, Record>,
    options: BTreeMap<String, databroker::Options>,
    leases: BTreeMap<String, (String, u64)>,
    services: BTreeMap<(i32, String), u64>,
    checkpoint: (u64, u64),
}

impl Model {
    fn stamp(&mut self, mut record: Record, deleted: bool) -> Record {
        self.latest += 1;
        record.version = self.latest;
        record.modified_at = at(self.now);
        record.deleted_at = if deleted { at(self.now) } else { None };
        self.log.insert(self.latest, record.clone());
        record
    }

    fn upsert(&mut self, record: Record) -> Record {
        let stored = self.stamp(record, false);
        self.live.insert((stored.r#type.clone(), stored.id.clone()), stored.clone());
        stored
    }

    fn delete(&mut self, record_type: &str, id: &str) -> Option<Record> {
        let stored = self.live.remove(&(record_type.to_owned(), id.to_owned()))?;
        Some(self.stamp(stored, true))
    }

    fn evict(&mut self, items: &[Item]) {
        let mut types: Vec<&str> = items.iter().map(|item| TYPES[item.record_type]).collect();
        types.sort_unstable();
        types.dedup();
        for record_type in types {
            let Some(capacity) = self.options.get(record_type).and_then(|options| options.capacity) else { continue };
            let mut of_type: Vec<Record> =
                self.live.values().filter(|record| record.r#type == record_type).cloned().collect();
            of_type.sort_by_key(|record| std::cmp::Reverse(record.version));
            for record in of_type.into_iter().skip(capacity as usize) {
                self.delete(record_type, &record.id);
            }
        }
    }

    fn apply(&mut self, op: &Op) -> (Vec<Record>, Option<bool>) {
        let mut records = Vec::new();
        let mut acquired = None;
        match op {
            Op::Put(items) => {
                for item in items {
                    let record = record_of(item);
                    if item.deleted {
                        self.delete(&record.r#type, &record.id);
                        records.push(record);
                    } else {
                        records.push(self.upsert(record));
                    }
                }
                self.evict(items);
            }
            Op::Patch { items, mask } => {
                let mut touched = Vec::new();
                for item in items {
                    let input = record_of(item);
                    let key = (input.r#type.clone(), input.id.clone());
                    if item.deleted {
                        if let Some(tombstone) = self.delete(&input.r#type, &input.id) {
                            records.push(tombstone);
                            touched.push(item.clone());
                        }
                    } else if let Some(mut stored) = self.live.get(&key).cloned() {
                        if *mask {
                            stored.data = input.data;
                        }
                        records.push(self.upsert(stored));
                        touched.push(item.clone());
                    }
                }
                self.evict(&touched);
            }
            Op::BadPatch(_) | Op::Tick(_) | Op::Again => {}
            Op::Options { record_type, capacity, ttl, indexed } => {
                let options = options_of(*capacity, *ttl, *indexed);
                if options == databroker::Options::default() {
                    self.options.remove(TYPES[*record_type]);
                } else {
                    self.options.insert(TYPES[*record_type].into(), options);
                }
            }
            Op::Lease { name, holder, seconds } => {
                let (name, holder) = (format!("n{name}"), format!("h{holder}"));
                let free = self.leases.get(&name).is_none_or(|(held, until)| *held == holder || *until < self.now);
                if free {
                    self.leases.insert(name, (holder, self.now.saturating_add_signed(seconds * SECOND as i64)));
                }
                acquired = Some(free);
            }
            Op::Report { kind, endpoint } => {
                self.services.insert((*kind, format!("e{endpoint}")), self.now + 30 * SECOND);
            }
            Op::Checkpoint(version) => self.checkpoint = (*version, version / 2),
            Op::Clear(server_version) => {
                *self = Self {
                    server_version: *server_version,
                    now: self.now,
                    leases: std::mem::take(&mut self.leases),
                    services: std::mem::take(&mut self.services),
                    ..Self::default()
                };
            }
            Op::Sweep { .. } => {}
        }
        (records, acquired)
    }

    fn sweep(&mut self, age: u64, bytes_max: u64, at_most: usize) {
        let cutoff = self.now.saturating_sub(age * SECOND);
        let mut bytes: u64 = self.log.values().map(|record| record.encoded_len() as u64).sum();
        for _ in 0..at_most {
            let Some((&version, record)) = self.log.first_key_value() else { break };
            let modified = record.modified_at.unwrap();
            let too_old = modified.seconds as u64 * SECOND + (modified.nanos as u64) < cutoff;
            if version == self.latest || !(too_old || bytes > bytes_max) {
                break;
            }
            bytes -= record.encoded_len() as u64;
            self.log.remove(&version);
            self.earliest = version + 1;
        }
        let mut left = at_most;
        for (record_type, options) in self.options.clone() {
            let Some(ttl) = options.ttl.map(|ttl| ttl.seconds).filter(|ttl| *ttl > 0) else { continue };
            let cutoff = self.now.saturating_sub(ttl as u64 * SECOND);
            let mut expired: Vec<Record> = self
                .live
                .values()
                .filter(|record| record.r#type == record_type)
                .filter(|record| (record.modified_at.unwrap().seconds as u64) * SECOND < cutoff)
                .cloned()
                .collect();
            expired.sort_by_key(|record| record.version);
            for record in expired {
                if left == 0 {
                    return self.sweep_services(at_most);
                }
                left -= 1;
                self.delete(&record_type, &record.id);
            }
        }
        self.sweep_services(at_most);
    }

    fn sweep_services(&mut self, at_most: usize) {
        let due = self.services.iter().filter(|(_, expiry)| **expiry < self.now).take(at_most);
        for key in due.map(|(key, _)| key.clone()).collect::<Vec<_>>() {
            self.services.remove(&key);
        }
    }
}

fn options_of(capacity: Option<u64>, ttl: Option<i64>, indexed: bool) -> databroker::Options {
    databroker::Options {
        capacity,
        indexable_fields: indexed.then(|| "string_field".to_owned()).into_iter().collect(),
        ttl: ttl.map(|seconds| prost_types::Duration { seconds, nanos: 0 }),
    }
}

fn kind_of(op: &Op, now: u64) -> Option<Kind> {
    let strings = |paths: &[&str]| paths.iter().map(|path| (*path).to_owned()).collect();
    Some(match op {
        Op::Put(items) => Kind::Put(Put { records: encoded(items) }),
        Op::Patch { items, mask: false } => Kind::Patch(Patch { records: encoded(items), paths: vec![] }),
        Op::Patch { items, mask: true } => {
            // A mask needs data on both sides: records without data are given some, so that every patch succeeds.
            Kind::Patch(Patch { records: encoded(items), paths: strings(&["string_field", "proto_field"]) })
        }
        Op::BadPatch(items) => {
            Kind::Patch(Patch { records: encoded(items), paths: strings(&["string_field", "none"]) })
        }
        Op::Options { record_type, capacity, ttl, indexed } => Kind::SetOptions(SetOptions {
            r#type: TYPES[*record_type].into(),
            options: options_of(*capacity, *ttl, *indexed).encode_to_vec().into(),
        }),
        Op::Lease { name, holder, seconds } => Kind::Lease(Lease {
            name: format!("n{name}"),
            id: format!("h{holder}"),
            ttl_nanos: seconds * SECOND as i64,
        }),
        Op::Report { kind, endpoint } => Kind::Report(Report {
            services: vec![ReportedService { kind: *kind, endpoint: format!("e{endpoint}") }],
            ttl_nanos: 30 * SECOND as i64,
        }),
        Op::Checkpoint(version) => {
            Kind::SetCheckpoint(SetCheckpoint { server_version: *version, record_version: version / 2 })
        }
        Op::Clear(server_version) => Kind::Clear(Clear { server_version: *server_version }),
        Op::Sweep { age, bytes_max, deletions_max } => Kind::Sweep(Sweep {
            change_log_cutoff_nanos: now.saturating_sub(age * SECOND),
            change_log_bytes_max: *bytes_max,
            deletions_max: *deletions_max,
        }),
        Op::Tick(_) | Op::Again => return None,
    })
}

/// Patches with a mask are refused where data is missing on either side: the model has no say in that, so such
/// operations are turned into what both agree on.
fn agreeable(op: Op) -> Op {
    let with_data = |mut items: Vec<Item>| {
        items.iter_mut().for_each(|item| item.value = item.value.max(1));
        items
    };
    match op {
        Op::Put(items) => Op::Put(with_data(items)),
        Op::Patch { items, mask } => Op::Patch { items: with_data(items), mask },
        // Refused only if a record is there to be patched: deletes and absent records never look at the mask.
        other => other,
    }
}

struct Driver {
    store: Store,
    index: u64,
    batch: Vec<(Position, Step)>,
}

impl Driver {
    fn open(engine: Arc<dyn Engine>) -> Self {
        let store = Store::open(engine, &Options { tail_bytes_max: 2000 }).unwrap();
        Self { store, index: 0, batch: Vec::new() }
    }

    fn enqueue(&mut self, entry: &Entry) {
        self.index += 1;
        let position = Position { term: 1, node: 5, index: self.index };
        self.batch.push((position, Step::Commands(entry.encode_to_vec().into())));
    }

    fn flush(&mut self) -> Vec<Answer> {
        self.store.apply(std::mem::take(&mut self.batch)).unwrap().into_iter().flatten().collect()
    }

    fn one(&mut self, entry: &Entry) -> Answer {
        self.enqueue(entry);
        self.flush().pop().unwrap()
    }
}

fn entry(now: u64, request: Option<u64>, kind: Kind) -> Entry {
    let identity = request.map(|request| Identity { origin: 5, request, settled: request.saturating_sub(1).max(1) });
    Entry { command_version: 1, now_nanos: now, commands: vec![Command { identity, kind: Some(kind) }] }
}

fn decoded(answer: &Answer) -> Vec<Record> {
    answer.records.iter().map(|record| record.to_record().unwrap()).collect()
}

fn check_contents(store: &Store, model: &Model) {
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
        if false {
            check_index(
                store,
                record_type,
                &of_type,
                model.options.get(record_type).is_some_and(|o| !o.indexable_fields.is_empty()),
            );
        }
        check_changes(store, record_type, model);
    }
    check_changes(store, "", model);
    let services = snapshot.services(&[]).unwrap();
    let services: Vec<_> = services.into_iter().map(|s| (s.kind, s.endpoint)).collect();
    assert_eq!(services, model.services.keys().cloned().collect::<Vec<_>>());
    let checkpoint = snapshot.checkpoint();
    assert_eq!((checkpoint.server_version, checkpoint.record_version), model.checkpoint);
}

fn check_index(store: &Store, record_type: &str, of_type: &[&Record], indexed: bool) {
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

fn run(ops: Vec<Op>, cuts: &[bool]) {
    let folder = tempfile::tempdir().unwrap();
    let names = Keyspace::names();
    let on_disk = Arc::new(Fjall::open(folder.path(), &names, Default::default()).unwrap());
    let in_memory = Arc::new(Memory::new(&names));
    let (mut one_by_one, mut batched) = (Driver::open(in_memory.clone()), Driver::open(on_disk.clone()));
    let mut now = 1_700_000_000 * SECOND;
    let init = entry(now, None, Kind::Init(Init { cluster_id: "c".into(), server_version: 3 }));
    one_by_one.one(&init);
    batched.enqueue(&init);
    let mut model = Model { server_version: 3, now, ..Model::default() };
    let mut request = 1;
    let mut last: Option<(Kind, Answer)> = None;
    let mut expected_answers = vec![Answer::of(outcome::Kind::Done(internal::Done {}))];
    for (nth, op) in ops.into_iter().map(agreeable).enumerate() {
        if let Op::Tick(seconds) = op {
            now += seconds * SECOND;
            continue;
        }
        model.now = now;
        if let Op::Again = op {
            let Some((kind, answer)) = &last else { continue };
            let again = entry(now, Some(request), kind.clone());
            let second = one_by_one.one(&again);
            assert_eq!(second.outcome, answer.outcome, "a command seen again gives the same answer");
            batched.enqueue(&again);
            expected_answers.push(second);
            continue;
        }
        request += 1;
        let kind = kind_of(&op, now).unwrap();
        let command = entry(now, Some(request), kind.clone());
        let answer = one_by_one.one(&command);
        let (records, acquired) = model.apply(&op);
        match (&op, &answer.outcome.kind) {
            (Op::Lease { .. }, Some(outcome::Kind::Leased(leased))) => assert_eq!(Some(leased.acquired), acquired),
            (Op::Put(_) | Op::Patch { .. }, Some(outcome::Kind::Written(_))) => assert_eq!(decoded(&answer), records),
            (Op::Put(_) | Op::Patch { .. } | Op::Lease { .. }, other) => panic!("{op:?} answered {other:?}"),
            (Op::BadPatch(_), Some(outcome::Kind::Written(_))) => {
                // Nothing was there to be patched, or only deletes: replay those on the model.
                let Op::BadPatch(items) = &op else { unreachable!() };
                let (records, _) = model.apply(&Op::Patch { items: items.clone(), mask: false });
                assert_eq!(decoded(&answer), records);
            }
            (Op::Sweep { age, bytes_max, deletions_max }, Some(outcome::Kind::Swept(first))) => {
                let at_most = *deletions_max as usize;
                model.sweep(*age, *bytes_max, at_most);
                let mut more = first.more;
                batched.enqueue(&command);
                expected_answers.push(answer.clone());
                let mut rounds = 0;
                while more {
                    let next = entry(now, None, kind.clone());
                    let answer = one_by_one.one(&next);
                    let Some(outcome::Kind::Swept(swept)) = &answer.outcome.kind else { panic!("{answer:?}") };
                    more = swept.more;
                    model.sweep(*age, *bytes_max, at_most);
                    batched.enqueue(&next);
                    expected_answers.push(answer);
                    rounds += 1;
                    assert!(rounds < 2000, "sweeping comes to an end");
                }
            }
            _ => {}
        }
        if !matches!(op, Op::Sweep { .. }) {
            batched.enqueue(&command);
            expected_answers.push(answer.clone());
        }
        last = Some((kind, answer));
        check_contents(&one_by_one.store, &model);
        if cuts.get(nth).copied().unwrap_or(false) {
            assert_eq!(batched.flush(), std::mem::take(&mut expected_answers));
        }
    }
    assert_eq!(batched.flush(), expected_answers);
    let dump_of = |engine: &dyn Engine| dump::dump(&*engine.view().unwrap()).unwrap();
    assert_eq!(dump_of(&*in_memory), dump_of(&*on_disk), "batches do not show in what is stored");
    // What was stored is read back after a restart.
    let reopened = Driver::open(on_disk);
    assert_eq!(reopened.store.applied(), one_by_one.store.applied());
    check_contents(&reopened.store, &model);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]
    #[test]
    fn random_commands_do_what_the_model_does(
        ops in prop::collection::vec(op(), 1..40),
        cuts in prop::collection::vec(any::<bool>(), 40),
    ) {
        run(ops, &cuts);
    }
}
