//! Random operations, and the commands they become.

use bytes::Bytes;
use databroker_proto::{
    Record, databroker,
    internal::{Clear, Lease, Patch, Put, Report, ReportedService, SetCheckpoint, SetOptions, Sweep, command::Kind},
};
use proptest::prelude::*;
use prost::Message as _;

use super::{IDS, SECOND, TEST_URL, TYPES};

#[derive(Clone, Debug)]
pub(super) struct Item {
    pub(super) record_type: usize,
    pub(super) id: usize,
    pub(super) value: u8,
    pub(super) deleted: bool,
}

#[derive(Clone, Debug)]
pub(super) enum Op {
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

pub(super) fn item() -> impl Strategy<Value = Item> {
    (0..TYPES.len(), 0..IDS.len(), 0..4_u8, prop::bool::weighted(0.2))
        .prop_map(|(record_type, id, value, deleted)| Item { record_type, id, value, deleted })
}

pub(super) fn op() -> impl Strategy<Value = Op> {
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

pub(super) fn data(value: u8) -> Option<prost_types::Any> {
    // Value 0 has no data at all; value 1 an empty message.
    let text = (value > 1).then(|| format!("v{value}"));
    let value_bytes = text.map_or_else(Vec::new, |text| {
        let mut bytes = Vec::new();
        prost::encoding::string::encode(1, &text, &mut bytes);
        bytes
    });
    (value > 0).then(|| prost_types::Any { type_url: TEST_URL.into(), value: value_bytes })
}

pub(super) fn record_of(item: &Item) -> Record {
    Record {
        version: 99,
        r#type: TYPES[item.record_type].into(),
        id: IDS[item.id].into(),
        data: data(item.value),
        modified_at: None,
        deleted_at: item.deleted.then(prost_types::Timestamp::default),
    }
}

pub(super) fn encoded(items: &[Item]) -> Vec<Bytes> {
    items.iter().map(|item| record_of(item).encode_to_vec().into()).collect()
}

pub(super) fn at(nanos: u64) -> Option<prost_types::Timestamp> {
    Some(prost_types::Timestamp { seconds: (nanos / SECOND) as i64, nanos: (nanos % SECOND) as i32 })
}

pub(super) fn options_of(capacity: Option<u64>, ttl: Option<i64>, indexed: bool) -> databroker::Options {
    databroker::Options {
        capacity,
        indexable_fields: indexed.then(|| "string_field".to_owned()).into_iter().collect(),
        ttl: ttl.map(|seconds| prost_types::Duration { seconds, nanos: 0 }),
    }
}

pub(super) fn kind_of(op: &Op, now: u64) -> Option<Kind> {
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
pub(super) fn agreeable(op: Op) -> Op {
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
