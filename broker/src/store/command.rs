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
