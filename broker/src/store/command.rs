//! What can be asked of the store, as it stands in the log, and what the store answers.
//!
//! The types are those of `databroker.internal.v1`: the log holds them encoded, and each node decodes them once.
//! Not here: what a command does (`apply`).

use bytes::Bytes;
use databroker_proto::{EncodedRecord, internal};
use prost::Message as _;

pub use internal::{Command, Entry, Identity, Outcome, Rejected, command::Kind, outcome, rejected::Reason};

/// The newest command version this build knows. Raised with every new kind of command, and every changed meaning,
/// the descriptors of record types included: they decide index entries and what Patch accepts.
pub const COMMAND_VERSION: u32 = 1;

/// Records of one Put or Patch at most. Applying takes about a kilobyte of memory for each, in one batch that every node
/// must be able to apply again after a restart; clients send a few thousand, for they keep requests under 1 MiB.
pub const RECORDS_MAX: usize = 65_536;

/// Paths of one field mask at most; clients send three.
pub const PATHS_MAX: usize = 256;

/// Indexed fields of one type at most; clients set two.
pub const FIELDS_MAX: usize = 256;

/// What the registry of services holds at most, see [`service_bytes`]: every Watch stream that is not read holds one list
/// of it, and so no more than a Sync stream's chunk. A few hundred replicas with all their services fit.
pub const REGISTRY_BYTES_MAX: usize = 64 << 10;

/// What a service counts in the registry: its endpoint, and what is around that in a list, rounded up.
pub fn service_bytes(endpoint: &[u8]) -> usize {
    endpoint.len() + 24
}

/// The refusal of services that do not fit the registry.
pub(super) fn registry_full(bytes: usize) -> Rejected {
    let detail = format!("the registry would hold {bytes} bytes of services, at most {REGISTRY_BYTES_MAX} are allowed");
    Rejected { reason: Reason::InvalidData.into(), detail }
}

/// Says whether a command asks for too much, before it is proposed, and again before it is applied: what stands in the
/// log will be applied on every node and after every restart.
///
/// # Errors
/// The refusal.
pub fn check(kind: &Kind) -> Result<(), Rejected> {
    if let Kind::Report(report) = kind {
        let bytes = report.services.iter().map(|service| service_bytes(service.endpoint.as_bytes())).sum();
        return if bytes > REGISTRY_BYTES_MAX { Err(registry_full(bytes)) } else { Ok(()) };
    }
    let (records, paths) = match kind {
        Kind::Put(put) => (put.records.len(), 0),
        Kind::Patch(patch) => (patch.records.len(), patch.paths.len()),
        _ => (0, 0),
    };
    for (what, count, max) in [("records", records, RECORDS_MAX), ("paths in the field mask", paths, PATHS_MAX)] {
        if count > max {
            let detail = format!("{count} {what} in one request, at most {max} are allowed: send several");
            return Err(Rejected { reason: Reason::InvalidData.into(), detail });
        }
    }
    Ok(())
}

/// An answer on its way to the caller: the outcome, which is remembered until settled, and the records it speaks of.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answer {
    /// What happened.
    pub outcome: Outcome,
    /// Put: one per record of the request, as stored, deletes echoed. Patch: the patched records. Else empty.
    pub records: Vec<EncodedRecord>,
}

impl Answer {
    /// An answer without records.
    pub fn of(kind: outcome::Kind) -> Self {
        Self { outcome: Outcome { kind: Some(kind) }, records: Vec::new() }
    }

    /// The answer to a command that was refused and changed nothing.
    pub fn rejected(reason: Reason, detail: impl Into<String>) -> Self {
        Self::of(outcome::Kind::Rejected(Rejected { reason: reason.into(), detail: detail.into() }))
    }
}

/// Why an entry of the log cannot be applied. The node stops: guessing would make stores differ.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// The bytes are no entry.
    #[error("a log entry of {bytes} bytes cannot be decoded: {source}")]
    Malformed {
        /// Its size.
        bytes: usize,
        /// What is wrong.
        source: prost::DecodeError,
    },
    /// The entry needs a newer build.
    #[error(
        "a log entry needs command version {needed}, this build knows {COMMAND_VERSION}: start a newer release of the broker"
    )]
    TooNew {
        /// What it needs.
        needed: u32,
    },
    /// A command of a kind that its version does not explain.
    #[error("a log entry of command version {version} holds a command of unknown kind: the log is damaged")]
    UnknownKind {
        /// The entry's version.
        version: u32,
    },
}

/// Decodes one entry; its byte fields share `bytes`.
///
/// # Errors
/// See [`DecodeError`]: each of them stops the node.
pub fn decode(bytes: Bytes) -> Result<Entry, DecodeError> {
    let length = bytes.len();
    let entry = Entry::decode(bytes).map_err(|source| DecodeError::Malformed { bytes: length, source })?;
    if entry.command_version > COMMAND_VERSION {
        return Err(DecodeError::TooNew { needed: entry.command_version });
    }
    if entry.commands.iter().any(|command| command.kind.is_none()) {
        return Err(DecodeError::UnknownKind { version: entry.command_version });
    }
    Ok(entry)
}
