//! The store as its one owner sees it: open, apply, sync.

use std::{ops::Bound, sync::Arc};

use bytes::Bytes;
use databroker_proto::internal::{Cluster, LogId, Membership, State, StoredMembership};
use prost::Message;

use super::{
    super::mutation::{self, Mutation},
    apply::{Batch, INDEX_ENTRIES_MAX, Memory, Rules, TypeRules},
    cache::{Caching, Counters},
    cidr::CidrTable,
    command::{self, Answer, COMMAND_VERSION, TooNew},
    engine::{self, Durability, Engine, View},
    inspect::{self, Descriptors},
    keyspace::{Keyspace, records as keys, rows, rows::metadata},
    migrate,
    snapshot::{Published, Reader},
    transfer::{Arrived, Claim},
    txn::Txn,
};

/// A place in the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// The leader's term.
    pub term: u64,
    /// The leader's node id.
    pub node: u64,
    /// The entry's index.
    pub index: u64,
}

impl From<LogId> for Position {
    fn from(id: LogId) -> Self {
        Self { term: id.term, node: id.node, index: id.index }
    }
}

impl From<Position> for LogId {
    fn from(position: Position) -> Self {
        Self { term: position.term, node: position.node, index: position.index }
    }
}

/// What one committed log entry asks of the store.
#[derive(Clone, Debug)]
pub enum Step {
    /// An encoded `databroker.internal.v1.Entry`.
    Commands(Bytes),
    /// An encoded `databroker.internal.v1.Membership`.
    Membership(Bytes),
    /// Nothing.
    Blank,
}

/// How a store is opened.
#[derive(Clone, Debug)]
pub struct Options {
    /// How much of the newest changes is kept in memory for streams, in bytes.
    pub tail_bytes_max: usize,
    /// How much memory the record cache may take, in bytes; 0: there is none.
    pub record_cache_bytes_max: u64,
    /// The newest command version that may be met. Only tests say something else than [`COMMAND_VERSION`].
    pub knows: u32,
    /// How many entries of indexes one SetOptions changes at most; it decides what is stored, so all nodes must have the
    /// same. Only tests say something else than [`INDEX_ENTRIES_MAX`].
    pub index_entries_max: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            tail_bytes_max: 8 << 20,
            record_cache_bytes_max: 16 << 20,
            knows: COMMAND_VERSION,
            index_entries_max: INDEX_ENTRIES_MAX,
        }
    }
}

/// Why the store cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The engine failed.
    #[error(transparent)]
    Engine(#[from] engine::Error),
    /// A committed entry cannot be applied.
    #[error("cannot apply the log entry at index {index}: {source}")]
    Decode {
        /// Where.
        index: u64,
        /// Why.
        source: command::DecodeError,
    },
    /// The cluster uses commands that this build does not know.
    #[error("the store is of a cluster of a newer release: {0}")]
    TooNew(#[source] TooNew),
    /// What the store holds makes no sense.
    #[error("the store is damaged: {what}")]
    Damaged {
        /// What was found.
        what: String,
    },
    /// A read was stopped by whoever asked: see [`super::query::Stop`].
    #[error("the read was stopped")]
    Stopped,
    /// The records of an answer are too many for one message.
    #[error(
        "the records found are more than {} MiB, which is too much for one response: use offset and limit",
        super::query::ANSWER_BYTES_MAX >> 20
    )]
    AnswerTooLarge,
    /// The store's format is not one this build can use.
    #[error(transparent)]
    Format(#[from] migrate::Error),
    /// The built-in record types could not be read.
    #[error("the built-in record types cannot be read: {0}")]
    Descriptors(#[from] inspect::Error),
}

/// The state machine. One owner applies; readers get snapshots through [`Reader`].
pub struct Store {
    engine: Arc<dyn Engine>,
    caching: Caching,
    reader: Reader,
    view: Arc<dyn View>,
    state: State,
    cluster: Arc<Cluster>,
    membership: StoredMembership,
    rules: Rules,
    memory: Memory,
    descriptors: Arc<Descriptors>,
    knows: u32,
    index_entries_max: u64,
}

/// What an engine holds of a store, with all of it that is kept in memory.
pub(super) struct Contents {
    engine: Arc<dyn Engine>,
    view: Arc<dyn View>,
    state: State,
    cluster: Arc<Cluster>,
    membership: StoredMembership,
    rules: Rules,
    memory: Memory,
    cidr: CidrTable,
    next_service_expiry_nanos: Option<u64>,
}

impl Contents {
    /// Brings an engine to the format of this release and reads it.
    pub(super) fn read(engine: Arc<dyn Engine>) -> Result<Self, Error> {
        migrate::run(&*engine)?;
        let view: Arc<dyn View> = engine.view()?.into();
        let state: State = read_metadata(&*view, metadata::STATE)?;
        Ok(Self {
            cluster: Arc::new(read_metadata(&*view, metadata::CLUSTER)?),
            membership: read_metadata(&*view, metadata::MEMBERSHIP)?,
            rules: read_rules(&*view, state.epoch)?,
            memory: Memory::load(&*view)?,
            cidr: read_cidr(&*view, state.epoch)?,
            next_service_expiry_nanos: next_service_expiry(&*view)?,
            engine,
            view,
            state,
        })
    }

    pub(super) fn claim(&self) -> Claim {
        claim(&self.state, &self.membership)
    }

    /// Whether a build that knows commands up to a version can go on from here.
    pub(super) fn check(&self, knows: u32) -> Result<(), TooNew> {
        TooNew::check(self.cluster.command_version, knows)
    }

    /// With its view read through a cache that has nothing of another store.
    fn cached(self, caching: &Caching) -> Self {
        Self { view: caching.view(self.view), ..self }
    }

    fn published(&self) -> Published {
        Published {
            view: self.view.clone(),
            state: self.state.clone(),
            cluster: self.cluster.clone(),
            rules: self.rules.clone(),
            next_service_expiry_nanos: self.next_service_expiry_nanos,
        }
    }
}

fn claim(state: &State, membership: &StoredMembership) -> Claim {
    let membership = membership.id.map(|id| (id.into(), membership.membership.clone()));
    Claim { applied: state.applied.map(Position::from), membership }
}

impl Store {
    /// Opens the store an engine holds; an empty one is made ready.
    ///
    /// # Errors
    /// When the engine fails, or holds what this build cannot read.
    pub fn open(engine: Arc<dyn Engine>, options: &Options) -> Result<Self, Error> {
        let descriptors = Arc::new(Descriptors::builtin()?);
        let contents = Contents::read(engine)?;
        contents.check(options.knows).map_err(Error::TooNew)?;
        let counters = Arc::new(Counters::default());
        let caching = Caching::new(options.record_cache_bytes_max, counters.clone());
        let contents = contents.cached(&caching);
        let published = contents.published();
        let Contents { engine, view, state, cluster, membership, rules, memory, cidr, .. } = contents;
        let reader = Reader::new(published, descriptors.clone(), cidr, options.tail_bytes_max, counters);
        let Options { knows, index_entries_max, .. } = *options;
        Ok(Self {
            engine,
            caching,
            reader,
            view,
            state,
            cluster,
            membership,
            rules,
            memory,
            descriptors,
            knows,
            index_entries_max,
        })
    }

    /// The newest command version it can apply.
    pub fn knows(&self) -> u32 {
        self.knows
    }

    /// Becomes the store that has arrived from another node, and publishes it through the same [`Reader`]. The old
    /// engine is closed with the last snapshot of it.
    pub fn adopt(&mut self, arrived: Arrived) {
        self.caching = self.caching.renewed();
        let contents = arrived.contents.cached(&self.caching);
        let published = contents.published();
        let Contents { engine, view, state, cluster, membership, rules, memory, cidr, .. } = contents;
        (self.engine, self.view, self.state, self.cluster) = (engine, view, state, cluster);
        (self.membership, self.rules, self.memory) = (membership, rules, memory);
        if mutation::active(Mutation::SnapshotWithoutCounters) {
            self.state.latest_record_version = 0;
        }
        self.reader.replace(published, cidr);
    }

    /// For readers.
    pub fn reader(&self) -> &Reader {
        &self.reader
    }

    /// Where the store stands: the last applied position and the last membership, with its position, as given to
    /// [`Store::apply`].
    pub fn applied(&self) -> (Option<Position>, Option<(Position, Bytes)>) {
        let Claim { applied, membership } = claim(&self.state, &self.membership);
        (applied, membership)
    }

    /// Applies committed entries as one batch, with the last position in it, and publishes the new snapshot before it
    /// returns. Not synced: after a crash the log is replayed from [`Store::applied`].
    ///
    /// Returns, per step, the answers of its commands.
    ///
    /// # Errors
    /// Every error is final: the node stops.
    pub fn apply(&mut self, steps: Vec<(Position, Step)>) -> Result<Vec<Vec<Answer>>, Error> {
        if steps.is_empty() {
            return Ok(Vec::new());
        }
        let view = self.view.clone();
        let mut batch = Batch {
            txn: Txn::new(&*view),
            state: self.state.clone(),
            cluster: self.cluster.clone(),
            rules: self.rules.clone(),
            memory: &mut self.memory,
            descriptors: &self.descriptors,
            changes: Vec::new(),
            cidr: Vec::new(),
            cleared: false,
            evicted: 0,
            index_entries_max: self.index_entries_max,
            indexed_at_once: false,
        };
        let mut answers = Vec::with_capacity(steps.len());
        for (position, step) in steps {
            answers.push(match step {
                Step::Commands(bytes) => {
                    let decode = |source| Error::Decode { index: position.index, source };
                    batch.apply(command::decode(bytes, self.knows).map_err(decode)?)?
                }
                Step::Membership(bytes) => {
                    let members = Membership::decode(bytes.clone()).map_err(|error| Error::Damaged {
                        what: format!("the membership at index {}: {error}", position.index),
                    })?;
                    let before = Membership::decode(self.membership.membership.clone());
                    batch.change_members(&before.map_err(|error| damaged("the last membership", error))?, &members);
                    self.membership = StoredMembership { id: Some(position.into()), membership: bytes };
                    batch.txn.put(Keyspace::Metadata.space(), metadata::MEMBERSHIP, self.membership.encode_to_vec());
                    Vec::new()
                }
                Step::Blank => Vec::new(),
            });
            batch.state.applied = Some(position.into());
        }
        batch.memory.save(&mut batch.txn);
        if !Arc::ptr_eq(&batch.cluster, &self.cluster) {
            batch.txn.put(Keyspace::Metadata.space(), metadata::CLUSTER, batch.cluster.encode_to_vec());
        }
        // The position goes with what it stands for: in the same batch.
        let (at, standing) = (Keyspace::Metadata.space(), Bytes::from(batch.state.encode_to_vec()));
        let apart = mutation::active(Mutation::AppliedOutsideBatch);
        if !apart {
            batch.txn.put(at, metadata::STATE, standing.clone());
        }
        let Batch { txn, state, cluster, rules, changes, cidr, cleared, evicted, .. } = batch;
        let batch = txn.into_batch();
        // Before anybody can see it. Should the engine refuse it, nobody ever will: that is final.
        self.caching.write(&batch);
        self.engine.commit(batch, Durability::Written)?;
        if apart {
            let change = engine::Change { space: at, key: Bytes::from_static(metadata::STATE), value: Some(standing) };
            self.engine.commit(vec![change], Durability::Written)?;
        }
        let services_changed = state.services_generation != self.state.services_generation;
        (self.state, self.cluster, self.rules) = (state, cluster, rules);
        self.view = self.caching.view(self.engine.view()?.into());
        self.reader.count_evictions(evicted);
        self.publish(changes, &cidr, cleared, services_changed)?;
        Ok(answers)
    }

    fn publish(
        &self,
        changes: Vec<super::apply::Change>,
        cidr: &[super::apply::CidrChange],
        cleared: bool,
        services_changed: bool,
    ) -> Result<(), Error> {
        let next_service_expiry_nanos = if services_changed {
            next_service_expiry(&*self.view)?
        } else {
            self.reader.progress().next_service_expiry_nanos
        };
        let published = Published {
            view: self.view.clone(),
            state: self.state.clone(),
            cluster: self.cluster.clone(),
            rules: self.rules.clone(),
            next_service_expiry_nanos,
        };
        self.reader.publish(published, changes, cidr, cleared);
        Ok(())
    }

    /// Returns when all that was applied is on the disk: from then on the log up to there may be purged.
    ///
    /// # Errors
    /// Final, like every failed sync.
    pub fn sync(&self) -> Result<(), Error> {
        Ok(self.engine.sync()?)
    }

    /// The engine in use, for its sizes. Only the store commits to it.
    pub fn engine(&self) -> &Arc<dyn Engine> {
        &self.engine
    }
}

/// What the store holds makes no sense: which thing, and what is wrong with it.
pub(super) fn damaged(what: &str, error: impl std::fmt::Display) -> Error {
    Error::Damaged { what: format!("{what}: {error}") }
}

fn read_metadata<M: Message + Default>(view: &dyn View, name: &[u8]) -> Result<M, Error> {
    match view.get(Keyspace::Metadata.space(), name)? {
        None => Ok(M::default()),
        Some(value) => M::decode(value).map_err(|error| damaged(&String::from_utf8_lossy(name), error)),
    }
}

fn read_rules(view: &dyn View, epoch: u32) -> Result<Rules, Error> {
    let mut rules = Rules::default();
    for item in view.range(Keyspace::Options.space(), keys::all(epoch)) {
        let (key, value) = item?;
        let record_type = keys::read_named(&key).map_err(|error| damaged("an options key", error))?;
        rules.insert(record_type, TypeRules::decode(value).map_err(|error| damaged("options", error))?);
    }
    Ok(rules)
}

fn read_cidr(view: &dyn View, epoch: u32) -> Result<CidrTable, Error> {
    let mut table = CidrTable::default();
    for item in view.range(Keyspace::CidrIndex.space(), keys::all(epoch)) {
        let (key, value) = item?;
        let (record_type, id) = keys::read_record(&key).map_err(|error| damaged("a CIDR key", error))?;
        let net = String::from_utf8_lossy(&value).parse().map_err(|error| damaged("a CIDR entry", error))?;
        table.insert(&text(&record_type), &text(&id), net);
    }
    Ok(table)
}

fn next_service_expiry(view: &dyn View) -> Result<Option<u64>, Error> {
    let mut earliest: Option<u64> = None;
    for item in view.range(Keyspace::Services.space(), (Bound::Unbounded, Bound::Unbounded)) {
        let expiry = rows::read_number(&item?.1).map_err(|error| damaged("a service's expiry", error))?;
        earliest = Some(earliest.map_or(expiry, |known| known.min(expiry)));
    }
    Ok(earliest)
}

/// Keys hold what was checked to be text when it came in.
pub(super) fn text(bytes: &[u8]) -> std::borrow::Cow<'_, str> {
    String::from_utf8_lossy(bytes)
}
