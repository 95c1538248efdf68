//! What commands do to the store: one batch of log entries on its way into the engine.
//!
//! ```text
//!   entry ─▶ dispatch ─▶ records · patch · capacity · options · indexing · lease · registry · sweep · cluster
//!               │             └─▶ Txn (reads its own writes)   State   changes for the tail
//!               └─▶ answers (a request seen before is answered, not applied)
//! ```
//!
//! All of it is a function of the store and the command. Not here: opening, committing, publishing (`machine`).

use std::sync::Arc;

use bytes::Bytes;
use databroker_proto::{
    EncodedRecord,
    internal::{Cluster, State},
};
use ipnet::IpNet;

use super::{
    super::mutation,
    Error,
    command::{Answer, Command, Entry, Kind, Reason, outcome},
    inspect::Descriptors,
    keyspace::{Keyspace, NAME_BYTES_MAX, records as keys},
    txn::Txn,
};

mod answers;
mod capacity;
mod cluster;
mod indexing;
mod lease;
mod options;
mod patch;
mod records;
mod registry;
mod rules;
mod sweep;

pub use answers::Memory;
pub use cluster::{SHAPE_MEMBERS_MAX, check_shape};
pub use indexing::{INDEX_ENTRIES_MAX, is_indexed_by_field};
pub use rules::{Rules, TypeRules};

/// One change of the change log, for streams at the tail.
#[derive(Clone, Debug)]
pub struct Change {
    /// Its record version.
    pub version: u64,
    /// The record's type.
    pub record_type: Bytes,
    /// The record as stored; a tombstone has `deleted_at`.
    pub record: EncodedRecord,
}

/// A change of the address index.
#[derive(Clone, Debug)]
pub struct CidrChange {
    /// Type of the record.
    pub record_type: Bytes,
    /// Id of the record.
    pub id: Bytes,
    /// The prefix that came or went.
    pub net: IpNet,
    /// Whether it came.
    pub added: bool,
}

/// A batch under way: what has been written so far, and what readers must be told once it is committed.
pub(super) struct Batch<'a> {
    pub(super) txn: Txn<'a>,
    pub(super) state: State,
    pub(super) cluster: Arc<Cluster>,
    pub(super) rules: Rules,
    pub(super) memory: &'a mut Memory,
    pub(super) descriptors: &'a Descriptors,
    pub(super) changes: Vec<Change>,
    pub(super) cidr: Vec<CidrChange>,
    /// Clear ran: what readers hold in memory of earlier changes is void.
    pub(super) cleared: bool,
    /// Records that went because their type holds more than its capacity: for metrics.
    pub(super) evicted: u64,
    /// See [`super::Options::index_entries_max`].
    pub(super) index_entries_max: u64,
    /// Options of this entry have changed an index already.
    pub(super) indexed_at_once: bool,
}

/// What a refused command must undo.
struct Mark {
    txn: super::txn::Savepoint,
    state: State,
    changes: usize,
    cidr: usize,
}

/// The answer to a name that is too long for a key. Looked at here, and not only where requests come in: what stands in
/// the log must be applied or refused on every node, and never stop one.
fn too_long(what: &str, name: &str) -> Option<Answer> {
    let detail = || format!("{what} has {} bytes, more than {NAME_BYTES_MAX}", name.len());
    (name.len() > NAME_BYTES_MAX).then(|| Answer::rejected(Reason::InvalidData, detail()))
}

impl Batch<'_> {
    /// Applies the commands of one entry, in order.
    pub(super) fn apply(&mut self, entry: Entry) -> Result<Vec<Answer>, Error> {
        // Time never runs back, whatever a new leader's clock says.
        self.state.now_nanos = self.state.now_nanos.max(entry.now_nanos).max(mutation::own_clock_nanos());
        self.indexed_at_once = false;
        let each = entry.commands.into_iter().map(|command| {
            let answer = self.apply_once(command);
            // A thousand commands may share a batch, and no one undoes another.
            self.txn.settle();
            answer
        });
        each.collect()
    }

    fn apply_once(&mut self, command: Command) -> Result<Answer, Error> {
        let Some(kind) = command.kind else {
            return Ok(Answer::rejected(Reason::Unspecified, "the command has no kind"));
        };
        let Some(identity) = command.identity else {
            return self.dispatch(kind);
        };
        if self.is_removed(identity.origin) {
            return Ok(Answer::rejected(
                Reason::Removed,
                "this request came by a node that was removed from the cluster",
            ));
        }
        match self.memory.recall(&identity) {
            answers::Recall::New => {
                let answer = self.dispatch(kind)?;
                self.memory.remember(&identity, answer.outcome.clone());
                Ok(answer)
            }
            answers::Recall::Answered(outcome) => self.answer_again(kind, outcome),
            answers::Recall::Settled => {
                Ok(Answer::rejected(Reason::Settled, "this request was answered before and its answer was received"))
            }
        }
    }

    fn dispatch(&mut self, kind: Kind) -> Result<Answer, Error> {
        if self.state.server_version == 0 && !matches!(kind, Kind::Init(_)) {
            return Ok(Answer::rejected(Reason::NotInitialized, "the store was not initialized"));
        }
        if let Err(refused) = super::command::check(&kind) {
            return Ok(Answer::of(outcome::Kind::Rejected(refused)));
        }
        let since = self.changes.len();
        let answer = self.run(kind)?;
        // Clear starts the list anew, and itself changes no record.
        self.note_changes(since.min(self.changes.len()));
        Ok(answer)
    }

    fn run(&mut self, kind: Kind) -> Result<Answer, Error> {
        match kind {
            Kind::Put(put) => self.put(put),
            Kind::Patch(patch) => self.patch(patch),
            Kind::SetOptions(set) => self.set_options(&set),
            Kind::Lease(lease) => self.lease(&lease),
            Kind::Report(report) => self.report(&report),
            Kind::SetCheckpoint(checkpoint) => Ok(self.set_checkpoint(&checkpoint)),
            Kind::Clear(clear) => self.clear(&clear),
            Kind::Sweep(sweep) => self.sweep(&sweep),
            Kind::SetShape(shape) => Ok(self.set_shape(shape)),
            Kind::ConfirmRetired(confirm) => Ok(self.confirm_retired(&confirm)),
            Kind::RaiseCommandVersion(raise) => Ok(self.raise_command_version(&raise)),
            Kind::Init(init) => self.init(init),
            Kind::Recover(recover) => Ok(self.recover(recover)),
        }
    }

    /// The records of a remembered answer are found in the change log; where they are gone (swept, cleared) the
    /// answer goes without them.
    fn answer_again(&self, kind: Kind, outcome: super::command::Outcome) -> Result<Answer, Error> {
        let mut answer = Answer { outcome, records: Vec::new() };
        let Some(outcome::Kind::Written(written)) = &answer.outcome.kind else {
            return Ok(answer);
        };
        let (sent, echo) = match kind {
            Kind::Put(put) => (put.records, true),
            Kind::Patch(patch) => (patch.records, false),
            _ => return Ok(answer),
        };
        let versions = written.runs.iter().flat_map(|run| {
            (0..run.count).map(move |nth| if run.first == 0 { 0 } else { run.first.saturating_add(nth) })
        });
        for (record, version) in sent.into_iter().zip(versions) {
            match version {
                0 if echo => answer.records.push(EncodedRecord::from_bytes(record)),
                0 => {}
                _ => answer.records.extend(self.change_at(version)?),
            }
        }
        Ok(answer)
    }

    fn change_at(&self, version: u64) -> Result<Option<EncodedRecord>, Error> {
        let key = keys::change(self.state.epoch, version);
        let found = self.txn.get(Keyspace::Changes.space(), &key)?;
        Ok(found.map(EncodedRecord::from_bytes))
    }

    fn mark(&mut self) -> Mark {
        Mark {
            txn: self.txn.savepoint(),
            state: self.state.clone(),
            changes: self.changes.len(),
            cidr: self.cidr.len(),
        }
    }

    fn undo(&mut self, mark: Mark) {
        self.txn.rollback(mark.txn);
        self.state = mark.state;
        self.changes.truncate(mark.changes);
        self.cidr.truncate(mark.cidr);
    }
}
