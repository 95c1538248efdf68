//! Entries of the log: bytes that are no entry are refused; an entry does the same to every store, whatever it asks.
#![no_main]

use std::sync::Arc;

use arbitrary::Arbitrary;
use bytes::Bytes;
use databroker::store::{
    Options, Position, Step, Store,
    command::{self, Command, Entry, Kind},
    dump,
    engine::{Engine, memory::Memory},
    keyspace::Keyspace,
};
use databroker_proto::internal;
use databroker_proto::{EncodedRecord, Record, databroker::Options as TypeOptions};
use libfuzzer_sys::fuzz_target;
use prost::Message;

const TYPES: &[&str] = &["a", "type.googleapis.com/test.Test", "type.googleapis.com/session.SessionBinding", "\0"];

/// Commands over few names, so that they meet.
#[derive(Arbitrary, Debug)]
enum Op<'a> {
    Put(Vec<(u8, u8, bool, &'a [u8])>),
    Patch(Vec<(u8, u8, bool, &'a [u8])>, Vec<&'a str>),
    SetOptions(u8, Option<u16>, Option<i64>, Vec<&'a str>),
    Lease(u8, u8, i64),
    Report(i32, &'a str, i64),
    Checkpoint(u64, u64),
    Clear(u64),
    Sweep(u64, u64, u8),
    Raw(&'a [u8]),
}

/// An entry of the log: its time, its request if it has one, and what it does.
type Wanted<'a> = (u64, Option<(u8, u8, u8)>, Vec<Op<'a>>);

#[derive(Arbitrary, Debug)]
struct Input<'a> {
    entries: Vec<Wanted<'a>>,
}

fn records(given: &[(u8, u8, bool, &[u8])]) -> Vec<Bytes> {
    let record = |(kind, id, deleted, data): &(u8, u8, bool, &[u8])| {
        let type_url = TYPES[usize::from(*kind) % TYPES.len()].to_owned();
        let record = Record {
            r#type: type_url.clone(),
            id: (id % 8).to_string(),
            data: Some(prost_types::Any { type_url, value: data.to_vec() }),
            deleted_at: deleted.then(Default::default),
            ..Record::default()
        };
        EncodedRecord::from(record).into_bytes()
    };
    given.iter().map(record).collect()
}

fn kind(op: &Op<'_>) -> Option<Kind> {
    Some(match op {
        Op::Put(given) => Kind::Put(internal::Put { records: records(given) }),
        Op::Patch(given, paths) => Kind::Patch(internal::Patch {
            records: records(given),
            paths: paths.iter().map(|path| (*path).to_owned()).collect(),
        }),
        Op::SetOptions(kind, capacity, seconds, fields) => {
            let options = TypeOptions {
                capacity: capacity.map(u64::from),
                ttl: seconds.map(|seconds| prost_types::Duration { seconds, nanos: 0 }),
                indexable_fields: fields.iter().map(|field| (*field).to_owned()).collect(),
            };
            Kind::SetOptions(internal::SetOptions {
                r#type: TYPES[usize::from(*kind) % TYPES.len()].to_owned(),
                options: options.encode_to_vec().into(),
            })
        }
        Op::Lease(name, id, ttl_nanos) => Kind::Lease(internal::Lease {
            name: (name % 3).to_string(),
            id: (id % 3).to_string(),
            ttl_nanos: *ttl_nanos,
        }),
        Op::Report(kind, endpoint, ttl_nanos) => Kind::Report(internal::Report {
            services: vec![internal::ReportedService { kind: *kind, endpoint: (*endpoint).to_owned() }],
            ttl_nanos: *ttl_nanos,
        }),
        Op::Checkpoint(server_version, record_version) => Kind::SetCheckpoint(internal::SetCheckpoint {
            server_version: *server_version,
            record_version: *record_version,
        }),
        Op::Clear(server_version) => Kind::Clear(internal::Clear { server_version: *server_version }),
        Op::Sweep(cutoff, bytes_max, deletions_max) => Kind::Sweep(internal::Sweep {
            change_log_cutoff_nanos: *cutoff,
            change_log_bytes_max: *bytes_max,
            deletions_max: u32::from(*deletions_max),
        }),
        Op::Raw(bytes) => return Command::decode(*bytes).ok().and_then(|command| command.kind),
    })
}

/// The log: first what makes an empty store a cluster's.
fn log(input: &Input<'_>) -> Vec<Bytes> {
    let init = Kind::Init(internal::Init { cluster_id: "c".into(), server_version: 7 });
    let first =
        Entry { command_version: 1, now_nanos: 1, commands: vec![Command { identity: None, kind: Some(init) }] };
    let entries = input.entries.iter().map(|(now_nanos, identity, ops)| Entry {
        command_version: 1,
        now_nanos: *now_nanos,
        commands: ops
            .iter()
            .filter_map(kind)
            .map(|kind| Command {
                identity: identity.map(|(origin, request, settled)| internal::Identity {
                    origin: u64::from(origin % 3),
                    request: u64::from(request),
                    settled: u64::from(settled),
                }),
                kind: Some(kind),
            })
            .collect(),
    });
    std::iter::once(first).chain(entries).map(|entry| entry.encode_to_vec().into()).collect()
}

fn position(index: usize) -> Position {
    Position { term: 1, node: 1, index: index as u64 }
}

/// The rows of a store that applied the log in batches of `size`.
fn applied(log: &[Bytes], size: usize) -> (Vec<dump::Row>, Vec<Vec<command::Answer>>) {
    let engine = Arc::new(Memory::new(&Keyspace::names()));
    let mut store = Store::open(engine.clone(), &Options::default()).expect("an empty store opens");
    let mut answers = Vec::new();
    let steps: Vec<_> =
        log.iter().enumerate().map(|(index, entry)| (position(index), Step::Commands(entry.clone()))).collect();
    for batch in steps.chunks(size) {
        answers.extend(store.apply(batch.to_vec()).expect("entries that decode can be applied"));
    }
    let rows = dump::dump(&*engine.view().expect("memory")).expect("memory");
    (rows, answers)
}

fuzz_target!(|input: Input<'_>| {
    for (_, _, ops) in &input.entries {
        for op in ops {
            if let Op::Raw(bytes) = op {
                let _ = command::decode(Bytes::copy_from_slice(bytes), command::COMMAND_VERSION);
            }
        }
    }
    let log = log(&input);
    if log.iter().any(|entry| command::decode(entry.clone(), command::COMMAND_VERSION).is_err()) {
        return;
    }
    let (rows, answers) = applied(&log, 1);
    let (other_rows, other_answers) = applied(&log, log.len());
    assert_eq!(answers, other_answers, "how entries are batched does not change answers");
    assert_eq!(rows, other_rows, "how entries are batched does not change the store");
});
