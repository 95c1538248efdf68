//! The schema on one screen: every keyspace of the store with its key, its value and how long entries live.
//!
//! One file per family turns typed keys and values into bytes and back; nothing else touches bytes. `seg(x)` is an
//! escaped, terminated segment and `u64` is big-endian (see `codec`), so byte order is (field, field, …) order.
//! Ordinals are for ever: a new keyspace gets the next number, an old number is never given again.

use super::engine::Space;

pub mod records;
pub mod rows;

/// The longest type, id, lease name or endpoint in bytes. An engine's key is short of 64 KiB, an escaped segment takes up
/// to twice its bytes, and the longest key, of the field index, holds a type, a path, a value and an id.
pub const NAME_BYTES_MAX: usize = 8 << 10;

/// The longest path of an indexed field in bytes; see [`NAME_BYTES_MAX`].
pub const PATH_BYTES_MAX: usize = 1 << 10;

/// The longest value that is indexed, in bytes; see [`NAME_BYTES_MAX`]. Longer ones are found by a scan.
pub const INDEXED_VALUE_BYTES_MAX: usize = 8 << 10;

/// A keyspace of the store. Those marked *epoch* start every key with the `u32 epoch` that Clear raises.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Keyspace {
    /// *epoch* `seg(type) id` → encoded `databroker.Record`. The live records.
    Records = 0,
    /// *epoch* `u64 version` → encoded `databroker.Record`, tombstones with `deleted_at`. The change log: until swept.
    Changes = 1,
    /// *epoch* `seg(type) u64 last version` → versions. The changes one command made to one type: a row per command, so
    /// that a large Put costs one. Lives as long as the last of them.
    ChangesByType = 2,
    /// *epoch* `seg(type) seg(path) seg(value) id` → nothing. One entry per live record and indexed field of its type.
    FieldIndex = 3,
    /// *epoch* `seg(type) id` → the prefix as text. Live records with a valid `$index.cidr`; read into a trie at open.
    CidrIndex = 4,
    /// *epoch* `seg(type) u64 version` → id. Live records by age, only for types with a capacity or a ttl.
    AgeIndex = 5,
    /// *epoch* `type` → `u64` live records. Types with at least one.
    Types = 6,
    /// *epoch* `type` → encoded `databroker.Options`.
    Options = 7,
    /// `seg(name)` → holder and expiry. Leases are never removed: names are few.
    Leases = 8,
    /// `u32 kind, endpoint` → `u64` expiry in nanoseconds. Until swept.
    Services = 9,
    /// `u64 origin` → answers of that node's unsettled requests.
    Answers = 10,
    /// `name of the value` → value. See `metadata`.
    Metadata = 11,
}

impl Keyspace {
    /// All keyspaces by ordinal, with the names they have on disk.
    pub const ALL: [(Self, &'static str); 12] = [
        (Self::Records, "records"),
        (Self::Changes, "changes"),
        (Self::ChangesByType, "changes_by_type"),
        (Self::FieldIndex, "field_index"),
        (Self::CidrIndex, "cidr_index"),
        (Self::AgeIndex, "age_index"),
        (Self::Types, "types"),
        (Self::Options, "options"),
        (Self::Leases, "leases"),
        (Self::Services, "services"),
        (Self::Answers, "answers"),
        (Self::Metadata, "metadata"),
    ];

    /// The engine's number for this keyspace.
    pub const fn space(self) -> Space {
        Space(self as u8)
    }

    /// The keyspaces that Clear empties.
    pub const OF_AN_EPOCH: [Self; 8] = [
        Self::Records,
        Self::Changes,
        Self::ChangesByType,
        Self::FieldIndex,
        Self::CidrIndex,
        Self::AgeIndex,
        Self::Types,
        Self::Options,
    ];

    /// The names in the order of [`Keyspace::space`].
    pub fn names() -> Vec<&'static str> {
        Self::ALL.iter().map(|(_, name)| *name).collect()
    }
}

impl From<Keyspace> for Space {
    fn from(keyspace: Keyspace) -> Self {
        keyspace.space()
    }
}
