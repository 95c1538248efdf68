//! What can be asked of the store, as it stands in the log, and what the store answers.
//!
//! The types are those of `databroker.internal.v1`: the log holds them encoded, and each node decodes them once.
//! Not here: what a command does (`apply`).

use bytes::Bytes;
use databroker_proto::{EncodedRecord, internal};
use prost::Message as _;

pub use internal::{Command, Entry, Identity, Outcome, Rejected, command::Kind, outcome, rejected::Reason};

/// The newest command version this build knows. Raised with every new kind of command, and every changed meaning,
/// the descriptors of record types included: they decide index entries and what Patch accepts. [`needs`] says which
/// commands need it.
pub const COMMAND_VERSION: u32 = 1;

/// The version that every release knows, and that a cluster begins with.
pub const FIRST_VERSION: u32 = 1;

/// Records of one Put or Patch at most. Applying takes about a kilobyte of memory for each, in one batch that every node
/// must be able to apply again after a restart; clients send a few thousand, for they keep requests under 1 MiB.
pub const RECORDS_MAX: usize = 65_536;

/// Paths of one field mask at most; clients send three.
pub const PATHS_MAX: usize = 256;

/// Indexed fields of one type at most; clients set two.
pub const FIELDS_MAX: usize = 256;

/// The lowest command version that a node must know to apply a command.
pub fn needs(kind: &Kind) -> u32 {
    match kind {
        #[cfg(test)]
        Kind::SetCheckpoint(checkpoint) if *checkpoint == tests::NEXT => COMMAND_VERSION + 1,
        // Whoever does not know what may come from then on stops here, and not in the middle of it.
        Kind::RaiseCommandVersion(raise) => raise.version.max(FIRST_VERSION),
        Kind::Put(_)
        | Kind::Patch(_)
        | Kind::SetOptions(_)
        | Kind::Lease(_)
        | Kind::Report(_)
        | Kind::SetCheckpoint(_)
        | Kind::Clear(_)
        | Kind::Sweep(_)
        | Kind::SetShape(_)
        | Kind::Init(_)
        | Kind::ConfirmRetired(_)
        | Kind::Recover(_) => FIRST_VERSION,
    }
}

/// Whether a command may be proposed in a cluster that has raised its version so far. Only what raises it may be of a
/// later one: who proposes that has asked all members.
pub fn is_allowed(kind: &Kind, raised: u32) -> bool {
    matches!(kind, Kind::RaiseCommandVersion(_)) || needs(kind) <= raised.max(FIRST_VERSION)
}

/// Commands as they stand in the log: under the lowest version that all of them can be applied with.
pub fn entry(now_nanos: u64, commands: Vec<Command>) -> Entry {
    let kinds = commands.iter().filter_map(|command| command.kind.as_ref());
    let command_version = kinds.map(needs).max().unwrap_or(FIRST_VERSION);
    Entry { command_version, now_nanos, commands }
}

/// What the registry of services holds at most, see [`service_bytes`]: every Watch stream that is not read holds one
/// list of it, and so no more than a Sync stream's chunk. A few hundred replicas with all their services fit.
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
    #[error(transparent)]
    TooNew(#[from] TooNew),
    /// A command of a kind that its version does not explain.
    #[error(
        "it says that command version {version} is enough, but holds a command of a kind that this build, which knows \
         {known}, has never heard of: upgrade this node; if it is of the newest release, the log is damaged"
    )]
    UnknownKind {
        /// The entry's version.
        version: u32,
        /// What this build knows.
        known: u32,
    },
}

/// Something is of a later release than this build. It is not damaged: a newer build goes on with the same disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "it needs command version {needed}, this build knows {known}: upgrade this node to the release of the others, its \
     data stays as it is"
)]
pub struct TooNew {
    /// The command version it needs.
    pub needed: u32,
    /// The newest this build knows.
    pub known: u32,
}

impl TooNew {
    /// Compares what is needed with what a build knows.
    ///
    /// # Errors
    /// It knows less.
    pub fn check(needed: u32, known: u32) -> Result<(), Self> {
        if needed > known { Err(Self { needed, known }) } else { Ok(()) }
    }
}

/// Decodes one entry for a build that knows commands up to a version; its byte fields share `bytes`.
///
/// # Errors
/// See [`DecodeError`]: each of them stops the node.
pub fn decode(bytes: Bytes, known: u32) -> Result<Entry, DecodeError> {
    let length = bytes.len();
    let entry = Entry::decode(bytes).map_err(|source| DecodeError::Malformed { bytes: length, source })?;
    TooNew::check(entry.command_version, known)?;
    if entry.commands.iter().any(|command| command.kind.is_none()) {
        return Err(DecodeError::UnknownKind { version: entry.command_version, known });
    }
    Ok(entry)
}

#[cfg(test)]
pub(crate) mod tests {
    use databroker_proto::internal::{Put, RaiseCommandVersion, SetCheckpoint};

    use super::*;

    /// Stands for what a release to come may say: builds of command version [`COMMAND_VERSION`] do not know it.
    pub(crate) const NEXT: SetCheckpoint =
        SetCheckpoint { server_version: 0x6e65_7874_6e65_7874, record_version: u64::MAX };

    fn command(kind: Kind) -> Command {
        Command { identity: None, kind: Some(kind) }
    }

    #[test]
    fn an_entry_needs_no_more_than_its_commands_do() {
        let put = || command(Kind::Put(Put::default()));
        assert_eq!(entry(1, vec![put(), put()]).command_version, FIRST_VERSION);
        assert_eq!(entry(1, vec![]).command_version, FIRST_VERSION);
        let next = command(Kind::SetCheckpoint(NEXT));
        assert_eq!(entry(1, vec![put(), next, put()]).command_version, COMMAND_VERSION + 1);
    }

    #[test]
    fn a_command_is_allowed_once_the_cluster_has_raised_its_version() {
        let next = Kind::SetCheckpoint(NEXT);
        assert!(!is_allowed(&next, COMMAND_VERSION) && is_allowed(&next, COMMAND_VERSION + 1));
        let init = Kind::Init(internal::Init::default());
        assert!(is_allowed(&init, 0), "a store that has no cluster yet has raised nothing");
        assert!(is_allowed(&Kind::RaiseCommandVersion(RaiseCommandVersion { version: 9 }), 1));
    }

    #[test]
    fn what_a_build_does_not_know_is_refused_with_both_versions_and_what_to_do() {
        let next = Bytes::from(entry(1, vec![command(Kind::SetCheckpoint(NEXT))]).encode_to_vec());
        let refused = decode(next.clone(), COMMAND_VERSION).unwrap_err().to_string();
        assert!(refused.contains("version 2") && refused.contains("knows 1"), "{refused}");
        assert!(refused.contains("upgrade this node") && !refused.contains("damage"), "{refused}");
        decode(next, COMMAND_VERSION + 1).unwrap();
        let raise = command(Kind::RaiseCommandVersion(RaiseCommandVersion { version: 2 }));
        assert!(decode(entry(1, vec![raise]).encode_to_vec().into(), 1).is_err());
    }

    #[test]
    fn a_kind_that_nobody_has_heard_of_is_refused_whatever_the_entry_says() {
        // Field 1000 of a command: a kind to come, in an entry that claims to need nothing new.
        let mut command = vec![0xc2, 0x3e, 0x00];
        let mut bytes = Entry { command_version: 1, now_nanos: 1, commands: vec![] }.encode_to_vec();
        bytes.extend([0x1a, command.len() as u8]);
        bytes.append(&mut command);
        let refused = decode(bytes.into(), 1).unwrap_err();
        assert!(matches!(refused, DecodeError::UnknownKind { version: 1, known: 1 }), "{refused}");
        assert!(refused.to_string().contains("upgrade this node"));
    }
}
