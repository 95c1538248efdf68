//! A running replica: openraft with this crate's log, store and network, behind an interface of our own.
//!
//! Not here: retries, coalescing, holding (`node`).

use std::{collections::BTreeMap, io, sync::Arc, time::Duration};

use bytes::Bytes;
use databroker_proto::internal::Envelope;
use openraft::{
    Config, ReadPolicy, SnapshotPolicy,
    alias::OneshotReceiverOf,
    async_runtime::WatchReceiver as _,
    errors::{ClientWriteError, Fatal, InitializeError, LinearizableReadError, RaftError},
    impls::ProgressResponder,
    raft::ClientWriteResult,
};
use parking_lot::Mutex;
use tokio::sync::watch;

use super::{
    LogId, Member, NodeId, Observer, Proposal, Retention, StoredMembership, TypeConfig,
    lease::{OldWord, Words},
    log::{self, Log},
    machine::{self, Machine},
    network::{Addresses, Network, Origin, Underway},
    presence::Presence,
    runtime::{Clock, Executor, Failure, Runtime, Tokio},
    snapshot::{CHUNK_PATIENCE, Receiver, Sender},
    transport::Transport,
};
use crate::store::{
    self, Progress, Store,
    command::Answer,
    engine::{self, Engine, shelf::Shelf},
};

/// When a follower misses its leader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timers {
    /// How often a leader says that it is there, in milliseconds.
    pub heartbeat_ms: u64,
    /// How long a follower waits at least, and a leader's lease: in milliseconds.
    pub election_ms_min: u64,
    /// How long a follower waits at most, in milliseconds. A narrow range is the cheapest speed-up, for the upper end
    /// is paid as the lease.
    pub election_ms_max: u64,
}

impl Default for Timers {
    fn default() -> Self {
        Self { heartbeat_ms: 100, election_ms_min: 300, election_ms_max: 400 }
    }
}

/// Everything a replica is made of.
pub struct Parts {
    /// The log's engine, opened with [`super::LOG_SPACES`].
    pub log_engine: Arc<dyn Engine>,
    /// How the log is opened.
    pub log: log::Options,
    /// What the log drives.
    pub store: Store,
    /// Where a store that comes from a peer is written, beside the one in use.
    pub shelf: Arc<dyn Shelf>,
    /// The way to peers; [`super::transport::NoPeers`] for a node that has none.
    pub transport: Arc<dyn Transport>,
    /// Where disk work is done.
    pub executor: Arc<dyn Executor>,
    /// The clock.
    pub clock: Arc<dyn Clock>,
    /// Hears of writes.
    pub observer: Arc<dyn Observer>,
    /// Hears of everything final.
    pub failure: Failure,
    /// Elections.
    pub timers: Timers,
    /// Bounds on the log.
    pub retention: Retention,
}

/// Why a replica cannot start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The timers contradict each other.
    #[error("the timers of the election are invalid: {reason}")]
    Timers {
        /// What openraft says.
        reason: String,
    },
    /// The log.
    #[error(transparent)]
    Log(#[from] log::Error),
    /// The store.
    #[error("cannot take over the store: {0}")]
    Store(#[source] store::Error),
    /// No thread for the store.
    #[error("cannot start the thread that applies: {0}")]
    Thread(#[source] io::Error),
    /// Log and store are not of the same life: one of them was lost, exchanged, or cut.
    #[error("log and store do not fit together, one of them is damaged: {what}")]
    Gap {
        /// What was found.
        what: String,
    },
    /// openraft cannot start.
    #[error("cannot start from log and store: {reason}")]
    Start {
        /// What openraft says.
        reason: String,
    },
    /// The first membership was refused.
    #[error("cannot initialize the cluster: {reason}")]
    Initialize {
        /// What openraft says.
        reason: String,
    },
}

/// Why the replica did not take a proposal, or cannot say that it took effect.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// This node does not lead, or does not know yet that it may: try again, there or here.
    #[error("this node does not lead")]
    NotLeader {
        /// Who does, if known.
        leader: Option<NodeId>,
    },
    /// The leader takes no more just now. Nothing took effect, or all of it may have.
    #[error("the leader is busy")]
    Busy,
    /// The leader changed while the proposal was under way; it may still take effect.
    #[error("the leader has changed")]
    Unknown,
    /// The replica has stopped.
    #[error("the replica has stopped")]
    Stopped,
}

/// What this node is in its cluster.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Role {
    /// The cluster exists: there is a membership.
    pub initialized: bool,
    /// This node leads, as far as it knows.
    pub leads: bool,
    /// The term.
    pub term: u64,
    /// Number of voters.
    pub voters: usize,
    /// This node is the only voter: nobody else can lead.
    pub alone: bool,
    /// Number of members, learners included.
    pub members: usize,
    /// Who leads, or led last: see [`Replica::present_leader`].
    pub leader: Option<NodeId>,
    /// How often another leader was seen, or the same in a new term, since the start.
    pub leader_changes: u64,
}

/// Numbers of the replica at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Picture {
    /// The last index in the log.
    pub last_log_index: Option<u64>,
    /// The last index that is written to it, as durably as it is to be.
    pub written_index: Option<u64>,
    /// The last index known to be committed.
    pub committed_index: Option<u64>,
    /// The last applied index.
    pub applied_index: Option<u64>,
    /// The last index that the store has on the disk for certain.
    pub synced_index: Option<u64>,
    /// The last index that is gone from the log.
    pub purged_index: Option<u64>,
}

/// A handle on the running replica. Cloning is cheap.
pub struct Replica<R: Runtime = Tokio> {
    pub(super) raft: openraft::Raft<TypeConfig<R>, Machine>,
    pub(super) machine: Arc<machine::Shared>,
    pub(super) log: Log,
    pub(super) role: watch::Receiver<Role>,
    pub(super) presence: Presence,
    pub(super) node_id: NodeId,
    /// For how many milliseconds this node keeps its word to a leader; as a leader, how long its lease is.
    pub(super) word_ms: u64,
    pub(super) words: Words,
    pub(super) old_word: OldWord,
    pub(super) stands_back: Arc<Mutex<bool>>,
    pub(super) underway: Underway,
}

impl<R: Runtime> Clone for Replica<R> {
    fn clone(&self) -> Self {
        let Self { raft, machine, log, role, presence, node_id, word_ms, words, old_word, stands_back, underway } =
            self;
        Self {
            raft: raft.clone(),
            machine: machine.clone(),
            log: log.clone(),
            role: role.clone(),
            presence: presence.clone(),
            node_id: *node_id,
            word_ms: *word_ms,
            words: words.clone(),
            old_word: *old_word,
            stands_back: stands_back.clone(),
            underway: underway.clone(),
        }
    }
}

fn config(timers: Timers, retention: Retention) -> Result<Config, Error> {
    let config = Config {
        cluster_name: "databroker".into(),
        heartbeat_interval: timers.heartbeat_ms,
        election_timeout_min: timers.election_ms_min,
        election_timeout_max: timers.election_ms_max,
        enable_pre_vote: Some(true),
        // Not before the word of the process before is kept.
        enable_elect: false,
        // A leader that restarts asks for votes again: it may have lost what was not synced.
        enable_leader_restore: Some(false),
        snapshot_policy: SnapshotPolicy::LogsSinceLast(retention.sync_entries),
        // `follow_size` purges.
        max_in_snapshot_log_to_keep: u64::MAX,
        install_snapshot_timeout: u64::try_from(CHUNK_PATIENCE.as_millis()).unwrap_or(u64::MAX),
        ..Config::default()
    };
    config.validate().map_err(|error| Error::Timers { reason: error.to_string() })
}

impl<R: Runtime> Replica<R> {
    /// Starts a replica on the async runtime of the caller.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn start(parts: Parts) -> Result<Self, Error> {
        let Parts { log_engine, log, store, shelf, transport, executor, clock, observer, failure, timers, retention } =
            parts;
        let config = Arc::new(config(timers, retention)?);
        let log = Log::open(log_engine, log, &*executor, clock, &failure, observer.clone())?;
        let applying = executor.lane("apply", &failure).map_err(Error::Thread)?;
        // Whole stores on their way: writers do not wait for them.
        let transfers = executor.background_lane("snapshot", &failure).map_err(Error::Thread)?;
        let receiver = Receiver { lane: transfers.clone(), shelf, turn: Arc::default() };
        let origin = Origin { node: log.node_id(), reader: store.reader().clone() };
        let written = log.written_below();
        let machine = Machine::open(store, applying, receiver, written, failure.clone(), observer, retention);
        let machine = machine.map_err(Error::Store)?;
        let (purged, last) = log.ends();
        if let Some(upto) = fit_together(purged, last, machine.applied(), log.installing())? {
            log.purge(upto).map_err(|error| Error::Start { reason: error.to_string() })?;
        }
        let (node_id, shared) = (log.node_id(), machine.shared());
        let (addresses, observer) = (Addresses::default(), shared.observer.clone());
        let sender = Sender { lane: transfers, failure: failure.clone(), observer };
        let (word_ms, words) = (timers.election_ms_max, Words::default());
        // One that was not noted was as long as this one.
        let word_before = log.word().or_else(|| (log.starts() > 1).then_some(word_ms));
        if log.word().is_none_or(|before| before < word_ms) {
            // Before any is given.
            log.note_word(word_ms).await.map_err(|error| Error::Start { reason: error.to_string() })?;
        }
        let underway = Underway::default();
        let network = Network {
            origin,
            addresses: addresses.clone(),
            transport,
            sender,
            words: words.clone(),
            underway: underway.clone(),
        };
        let raft = openraft::Raft::new(node_id, config, network, log.clone(), machine)
            .await
            .map_err(|error| Error::Start { reason: error.to_string() })?;
        let (announce, role) = watch::channel(Role::default());
        let presence = Presence::new(timers.election_ms_max);
        let failed = |error: Fatal<TypeConfig<R>>| Error::Start { reason: error.to_string() };
        let membership = raft.with_raft_state(|state| state.membership_state.effective().clone());
        let membership = membership.await.map_err(failed)?;
        let old_word = match word_before {
            Some(before) if !is_alone(&membership, node_id) => OldWord::given(before.max(word_ms)),
            // Nobody was given any.
            _ => OldWord::default(),
        };
        let stands_back = Arc::default();
        let replica = Self {
            raft,
            machine: shared,
            log,
            role,
            presence,
            node_id,
            word_ms,
            words,
            old_word,
            stands_back,
            underway,
        };
        R::spawn("role", &failure, replica.clone().follow_role(announce, addresses, failure.clone()));
        R::spawn("size", &failure, replica.clone().follow_size());
        R::spawn("word", &failure, replica.clone().keep_old_word(word_before, timers));
        replica.find_place(&membership).await?;
        Ok(replica)
    }

    /// This disk's node id.
    pub fn node_id(&self) -> NodeId {
        self.node_id
    }

    /// How often this disk was opened, this time included.
    pub fn starts(&self) -> u64 {
        self.log.starts()
    }

    /// What a message of this node to another begins with.
    pub fn envelope(&self, to: NodeId) -> Envelope {
        Origin { node: self.node_id, reader: self.machine.reader.clone() }.envelope(to)
    }

    /// Sizes of the store's engine, which changes when a store of a peer is taken over. May read from the disk.
    pub fn store_stats(&self) -> engine::Stats {
        self.machine.stats()
    }

    /// Changes when leadership or membership change.
    pub fn role(&self) -> &watch::Receiver<Role> {
        &self.role
    }

    /// Who leads, if it is there: heard by this node a moment ago or, if it is this one, by a majority.
    pub fn present_leader(&self) -> Option<NodeId> {
        let role = *self.role.borrow();
        let followed = || {
            let silence = self.millis_since_quorum_ack().map(Duration::from_millis);
            role.alone || silence.is_some_and(|silence| self.presence.is_recent(silence))
        };
        role.leader.filter(|leader| if role.leads { followed() } else { self.presence.is_there(role.term, *leader) })
    }

    /// Moves with every applied batch.
    pub fn progress(&self) -> watch::Receiver<Progress> {
        self.machine.progress()
    }

    /// The numbers of this moment.
    pub fn picture(&self) -> Picture {
        let metrics = self.raft.metrics().borrow_watched().clone();
        Picture {
            last_log_index: metrics.last_log_index,
            written_index: self.log.written_below().borrow().checked_sub(1),
            committed_index: metrics.local_committed.map(|id| id.index),
            applied_index: metrics.last_applied.map(|id| id.index),
            synced_index: metrics.snapshot.map(|id| id.index),
            purged_index: metrics.purged.map(|id| id.index),
        }
    }

    /// Makes this node the first and only voter of a new cluster.
    ///
    /// # Errors
    /// openraft refuses; that the node belongs to a cluster already is no error.
    pub async fn initialize(&self, member: Member) -> Result<(), Error> {
        self.initialize_with(BTreeMap::from([(self.node_id, member)])).await
    }

    /// Starts a cluster of these voters.
    pub(crate) async fn initialize_with(&self, members: BTreeMap<NodeId, Member>) -> Result<(), Error> {
        match self.raft.initialize(members).await {
            Ok(()) | Err(RaftError::APIError(InitializeError::NotAllowed(_))) => Ok(()),
            Err(error) => Err(Error::Initialize { reason: error.to_string() }),
        }
    }

    /// Hands an encoded entry to the log. Entries are logged in the order of these calls.
    ///
    /// # Errors
    /// The replica has stopped.
    pub async fn submit(&self, entry: Bytes) -> Result<Submitted<R>, Refusal> {
        let (responder, answers) = ProgressResponder::complete_only();
        let submitted = self.raft.client_write_ff(Proposal(entry), Some(responder)).await;
        submitted.map(|()| Submitted(answers)).map_err(|_| Refusal::Stopped)
    }

    /// The index that a read has to wait for to see everything acknowledged before the call, wherever it was.
    ///
    /// # Errors
    /// This node cannot tell, because it does not lead.
    pub async fn read_index(&self) -> Result<u64, Refusal> {
        let policy = if self.may_read_by_lease() { ReadPolicy::LeaseRead } else { ReadPolicy::ReadIndex };
        match self.raft.get_read_log_id(policy).await {
            Ok((id, _applied)) => Ok(id.index()),
            Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(forward))) => {
                Err(Refusal::NotLeader { leader: forward.leader_id })
            }
            Err(RaftError::APIError(LinearizableReadError::QuorumNotEnough(_))) => {
                Err(Refusal::NotLeader { leader: None })
            }
            Err(RaftError::Fatal(_)) => Err(Refusal::Stopped),
        }
    }

    /// Stops, with everything applied on the disk.
    pub async fn shutdown(&self) {
        // The error says that a task of openraft panicked; `follow_role` has reported that.
        drop(self.raft.shutdown().await);
        // `follow_size` sees the end and lets go of the log.
        self.machine.sync_due.notify_one();
        // Reported by itself.
        drop(self.machine.sync().await);
    }

    /// Returns once this node knows whether it belongs to a cluster. A lone voter campaigns at once: it need not wait
    /// until it misses a leader that cannot exist.
    async fn find_place(&self, membership: &StoredMembership) -> Result<(), Error> {
        let failed = |error: Fatal<TypeConfig<R>>| Error::Start { reason: error.to_string() };
        if is_alone(membership, self.node_id) {
            self.raft.trigger().elect(false).await.map_err(failed)?;
        }
        if membership.voter_ids().next().is_some() {
            let stopped = |_| Error::Start { reason: "it has stopped".into() };
            self.role.clone().wait_for(|role| role.initialized).await.map_err(stopped)?;
        }
        Ok(())
    }

    /// Tells the changes of this node's role until openraft ends, and why if that was no shutdown.
    async fn follow_role(self, announce: watch::Sender<Role>, addresses: Addresses, failure: Failure) {
        let mut metrics = self.raft.server_metrics();
        let (mut led, mut leader_changes) = (None, 0);
        loop {
            let now = metrics.borrow_and_update().clone();
            let membership = &now.membership_config;
            *addresses.write() = membership.nodes().map(|(node, member)| (*node, member.clone())).collect();
            self.words.retain(|node| membership.get_node(&node).is_some());
            let leads = now.current_leader.map(|leader| (now.vote.leader_id.term, leader));
            if leads.is_some() && led != leads {
                (led, leader_changes) = (leads, leader_changes + 1);
                tell_leader(membership, leads);
            }
            let role = Role {
                initialized: membership.voter_ids().next().is_some(),
                leads: now.state.is_leader(),
                term: now.vote.leader_id.term,
                voters: membership.voter_ids().count(),
                alone: is_alone(membership, self.node_id),
                members: membership.nodes().count(),
                leader: now.current_leader,
                leader_changes,
            };
            announce.send_if_modified(|before| std::mem::replace(before, role) != role);
            if metrics.changed().await.is_err() {
                break;
            }
        }
        let ended = self.raft.metrics().borrow_watched().running_state.clone();
        match ended {
            Ok(()) | Err(Fatal::Stopped) => {}
            Err(error @ (Fatal::StorageError(_) | Fatal::Panicked)) => failure.report(error),
        }
    }
}

/// The store must stand where the log can go on, and nowhere the log has not been: an entry is synced in the log before
/// it is applied, and purged only after the store was synced. openraft would skip over either gap.
///
/// Only a store that came from a peer may be ahead of the log: the process ended before the log was purged up to it.
/// The log knows of it, for that was noted before; it is purged now. By index, since entries that such a store
/// overtakes may be of a later term than its end. Returned is up to where.
pub(super) fn fit_together(
    purged: Option<LogId>,
    last: Option<LogId>,
    applied: Option<LogId>,
    installing: Option<LogId>,
) -> Result<Option<LogId>, Error> {
    let at = |id: Option<LogId>| id.map_or("nothing".to_owned(), |id| format!("index {}", id.index));
    let index = |id: Option<LogId>| id.map(|id| id.index);
    if index(applied) < index(purged) {
        let what = format!("the store holds {}, but the log was purged up to {}", at(applied), at(purged));
        return Err(Error::Gap { what });
    }
    match applied {
        Some(applied) if Some(applied.index) <= index(last) => Ok(None),
        Some(applied) if Some(applied) == installing => Ok(Some(applied)),
        Some(_) => {
            let what = format!("the store holds {}, but the log ends at {}", at(applied), at(last));
            Err(Error::Gap { what })
        }
        None => Ok(None),
    }
}

/// Another leads, or the same in a new term.
fn tell_leader(membership: &StoredMembership, leads: Option<(u64, NodeId)>) {
    let Some((term, node)) = leads else { return };
    match membership.get_node(&node).map(|member| member.name.as_str()) {
        // A broker by itself needs no name.
        None | Some("") => tracing::info!(node, term, "node {node:016x} leads, in term {term}"),
        Some(name) => tracing::info!(leader = name, term, "{name} leads, in term {term}"),
    }
}

fn is_alone(membership: &StoredMembership, me: NodeId) -> bool {
    membership.voter_ids().eq([me])
}

/// A proposal on its way.
pub struct Submitted<R: Runtime>(OneshotReceiverOf<TypeConfig<R>, ClientWriteResult<TypeConfig<R>>>);

impl<R: Runtime> Submitted<R> {
    /// The answers of its commands, once the store has applied it.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub async fn answers(self) -> Result<Vec<Answer>, Refusal> {
        match self.0.await {
            Ok(Ok(response)) => Ok(response.data),
            Ok(Err(ClientWriteError::ForwardToLeader(forward))) => {
                Err(Refusal::NotLeader { leader: forward.leader_id })
            }
            Ok(Err(_)) => Err(Refusal::Unknown),
            Err(_) => Err(Refusal::Stopped),
        }
    }
}
