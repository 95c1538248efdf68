//! Random operations, and the commands they become.

use bytes::Bytes;
use databroker_proto::{
    Record, databroker,
    internal::{Clear, Lease, Patch, Put, Report, ReportedService, SetCheckpoint, SetOptions, Sweep, command::Kind},
};
use proptest::{collection::vec, option, prelude::*, sample::select};
use prost::Message as _;

use super::SECOND;
use crate::store::strategies::{Data, TYPES, batch, data, indexed, record};

#[derive(Clone, Debug)]
pub(super) enum Op {
    /// Records with `deleted_at` are deleted, here and in patches.
    Put(Vec<Record>),
    Patch {
        records: Vec<Record>,
        mask: Vec<String>,
    },
    Options {
        record_type: &'static str,
        capacity: Option<u64>,
        ttl: Option<i64>,
        indexed: Vec<&'static str>,
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

pub(super) fn op() -> impl Strategy<Value = Op> {
    let patch = data().prop_flat_map(|data| (vec(record(data), 0..4), mask(data)));
    let capacity = option::of(0..3_u64);
    prop_oneof![
        8 => batch().prop_map(Op::Put),
        6 => patch.prop_map(|(records, mask)| Op::Patch { records, mask }),
        3 => (select(TYPES.to_vec()), capacity, option::of(-1..20_i64), indexed()).prop_map(
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

impl Op {
    /// Options with nothing for which the oldest must be found: that waits for an index that is not complete.
    pub(super) fn without_age(self) -> Self {
        match self {
            Self::Options { record_type, indexed, .. } => {
                Self::Options { record_type, capacity: None, ttl: None, indexed }
            }
            other => other,
        }
    }
}

/// Paths into this kind of data in any order, at times none, at times with one that leads nowhere.
fn mask(data: Data) -> impl Strategy<Value = Vec<String>> {
    let paths: &[&'static str] = match data {
        Data::Test | Data::Opaque => &["string_field", "proto_field", "proto_field.another_string_field"],
        Data::Session => &[
            "user_id",
            "id_token",
            "id_token.issuer",
            "id_token.subject",
            "id_token.expires_at",
            "id_token.expires_at.seconds",
            "oauth_token.access_token",
            "audience",
            "claims",
            "refresh_disabled",
            "impersonate_session_id",
        ],
        Data::Struct => &["fields"],
    };
    let nowhere = [
        "",
        "none",
        "stringField",
        "string_field.x",
        "proto_field.none",
        "id_token.none",
        "id_token.expires_at.none",
        "user_id.x",
        "audience.x",
        "claims.a",
        "fields.name",
    ];
    let (paths, nowhere) = (vec(select(paths.to_vec()), 0..5), option::weighted(0.2, select(nowhere.to_vec())));
    (paths, nowhere)
        .prop_map(|(paths, nowhere)| paths.into_iter().chain(nowhere).map(str::to_owned).collect::<Vec<_>>())
        .prop_shuffle()
}

fn encoded(records: &[Record]) -> Vec<Bytes> {
    records.iter().map(|record| record.encode_to_vec().into()).collect()
}

pub(super) fn at(nanos: u64) -> Option<prost_types::Timestamp> {
    Some(prost_types::Timestamp { seconds: (nanos / SECOND) as i64, nanos: (nanos % SECOND) as i32 })
}

pub(super) fn options_of(capacity: Option<u64>, ttl: Option<i64>, indexed: &[&str]) -> databroker::Options {
    databroker::Options {
        capacity,
        indexable_fields: indexed.iter().map(|field| (*field).to_owned()).collect(),
        ttl: ttl.map(|seconds| prost_types::Duration { seconds, nanos: 0 }),
    }
}

pub(super) fn kind_of(op: &Op, now: u64) -> Option<Kind> {
    Some(match op {
        Op::Put(records) => Kind::Put(Put { records: encoded(records) }),
        Op::Patch { records, mask } => Kind::Patch(Patch { records: encoded(records), paths: mask.clone() }),
        Op::Options { record_type, capacity, ttl, indexed } => Kind::SetOptions(SetOptions {
            r#type: (*record_type).into(),
            options: options_of(*capacity, *ttl, indexed).encode_to_vec().into(),
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
