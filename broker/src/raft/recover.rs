//! What a stopped node holds, and how its store becomes that of a new cluster in which it is alone.
//!
//! ```text
//!   log: "the store will stand behind your end" ─▶ store: what is left of the log, a membership of this node alone,
//!   (synced)                                       Recover, as one batch (synced) ─▶ the next start purges the log
//! ```
//!
//! The batch decides: before it nothing has happened, after it the old cluster is over. It is the way in which stores
//! of peers are taken over, so a start finishes it. All that the log holds is applied, committed or not: what this disk
//! has may have been acknowledged, and what nobody acknowledged does no harm. No log holds both clusters: who joins the
//! new one gets its store.
//!
//! Not here: opening the disk and asking people (`node::recover`, `cli`).

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::Arc,
};

use databroker_proto::internal::{Command, Recover};
use prost::Message as _;

use super::{
    Entry, LogId, Member, Membership, NodeId, Payload, Vote, convert, log,
    replica::{self, fit_together},
};
use crate::store::{
    self, Step, Store,
    command::{self, Kind},
    engine::Engine,
};

/// Why there is nothing to recover, or it cannot be done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No cluster was ever founded here.
    #[error("this node belongs to no cluster: there is nothing to recover, `databroker cluster init` founds one")]
    NoCluster,
    /// The cluster does not know this node.
    #[error("this node is no member of cluster {cluster_id}: it may hold very little, recover on another one")]
    NoMember {
        /// Which.
        cluster_id: String,
    },
    /// The log is damaged: it cannot be told what this disk holds.
    #[error(
        "the log of this disk is damaged: {what}. Recover on another disk. If this is the last one, keep a copy of the whole \
         folder, remove the folder, start a new cluster, and import the newest export into it"
    )]
    DamagedLog {
        /// What was found.
        what: String,
    },
    /// The log.
    #[error(transparent)]
    Log(log::Error),
    /// The store.
    #[error("cannot read the store: {0}")]
    Store(#[source] store::Error),
    /// The store cannot be written, or not with what the log holds.
    #[error("cannot write the store: {0}")]
    Write(#[source] store::Error),
    /// Log and store are not of the same life.
    #[error(transparent)]
    Gap(replica::Error),
    /// The membership.
    #[error("cannot read the membership: {0}")]
    Membership(String),
}

impl From<log::Error> for Error {
    fn from(error: log::Error) -> Self {
        match error {
            log::Error::Damaged { what } => Self::DamagedLog { what },
            error => Self::Log(error),
        }
    }
}

impl From<convert::Error> for Error {
    fn from(error: convert::Error) -> Self {
        Self::Membership(error.to_string())
    }
}

/// What a stopped node holds, for people to decide by.
#[derive(Clone, Debug, PartialEq)]
pub struct Held {
    /// The cluster's id.
    pub cluster_id: String,
    /// This disk's node id.
    pub node_id: NodeId,
    /// The node's name.
    pub name: String,
    /// Names of the other members.
    pub others: Vec<String>,
    /// The last term it has voted in.
    pub term: u64,
    /// The term of the last entry of the log: of several nodes the one with the latest has most.
    pub last_term: u64,
    /// The index of that entry. All up to there will be applied.
    pub last_index: u64,
    /// The last index that the store has applied.
    pub applied_index: u64,
    /// Live records in the store.
    pub records: u64,
    /// The newest record version in the store.
    pub record_version: u64,
    /// When that record was changed; none if its change is not kept any more.
    pub changed_at: Option<prost_types::Timestamp>,
}

/// A node that does not run.
pub struct Stopped {
    log: log::Stopped,
    store: Store,
    member: Member,
    others: Vec<String>,
    applied: Option<LogId>,
    /// What the log holds beyond that.
    rest: Vec<Entry>,
    /// Up to where the log has yet to be purged, because the store has overtaken it.
    overtaken: Option<LogId>,
}

impl Stopped {
    /// Reads log and store.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn open(log_engine: Arc<dyn Engine>, mark: PathBuf, store: Store) -> Result<Self, Error> {
        let log = log::Stopped::open(log_engine, mark)?.ok_or(Error::NoCluster)?;
        let (purged, last) = log.ends();
        let (applied, stored) = store.applied();
        let applied = applied.map(convert::log_id);
        let overtaken = fit_together(purged, last, applied, log.installing()).map_err(Error::Gap)?;
        let cluster_id = store.reader().snapshot().cluster_id().ok_or(Error::NoCluster)?.to_owned();
        let rest = log.entries_from(applied.map_or(0, |id| id.index + 1))?;
        let unapplied = rest.iter().rev().find_map(|entry| match &entry.payload {
            Payload::Membership(membership) => Some(membership.clone()),
            Payload::Normal(_) | Payload::Blank => None,
        });
        let membership = match unapplied {
            Some(membership) => membership,
            None => convert::stored_membership(stored)?.membership().clone(),
        };
        let me = log.node_id();
        let member = membership.get_node(&me).cloned().ok_or(Error::NoMember { cluster_id })?;
        let others = membership.nodes().filter(|(node, _)| **node != me).map(|(_, member)| member.name.clone());
        let mut others: Vec<_> = others.collect();
        others.sort();
        Ok(Self { log, store, member, others, applied, rest, overtaken })
    }

    /// The node as its cluster knows it.
    pub fn member(&self) -> &Member {
        &self.member
    }

    /// What is here.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn held(&self) -> Result<Held, Error> {
        let snapshot = self.store.reader().snapshot();
        let progress = snapshot.progress();
        let newest = snapshot.changes("", progress.latest_record_version.saturating_sub(1)).map_err(Error::Store)?;
        let newest = newest.records.last().and_then(|record| record.to_record().ok());
        let records = snapshot.type_counts().map_err(Error::Store)?.iter().map(|(_, count)| count).sum();
        Ok(Held {
            cluster_id: snapshot.cluster_id().unwrap_or_default().to_owned(),
            node_id: self.log.node_id(),
            name: self.member.name.clone(),
            others: self.others.clone(),
            term: self.log.vote().map_or(0, |vote| vote.leader_id.term),
            last_term: self.end().map_or(0, |id| id.leader_id.term),
            last_index: self.end().map_or(0, |id| id.index),
            applied_index: progress.applied.map_or(0, |applied| applied.index),
            records,
            record_version: progress.latest_record_version,
            changed_at: newest.and_then(|record| record.modified_at),
        })
    }

    /// The last that this disk holds.
    fn end(&self) -> Option<LogId> {
        self.rest.last().map(|entry| entry.log_id).or(self.applied)
    }

    /// Ends the old cluster on this disk, and begins another: on return that is for certain.
    ///
    /// # Errors
    /// See [`Error`]. Nothing has happened, unless the disk has failed in the middle of it: then it is done, or not, as
    /// a whole.
    pub fn end_cluster(mut self, cluster_id: String, server_version: u64) -> Result<(), Error> {
        let [membership_at, recover_at] = self.announce()?;
        let me = self.log.node_id();
        let alone = Membership::new(vec![BTreeSet::from([me])], BTreeMap::from([(me, self.member.clone())]));
        let alone = alone.map_err(|error| Error::Membership(error.to_string()))?;
        let recover = Recover { cluster_id, server_version, name: self.member.name };
        // The store's time stands still: nobody's clock is asked.
        let recover = command::entry(0, vec![Command { identity: None, kind: Some(Kind::Recover(recover)) }]);
        let rest = self.rest.into_iter().map(|entry| (entry.log_id, convert::step(entry.payload)));
        let last = [
            (membership_at, Step::Membership(convert::encode_membership(&alone))),
            (recover_at, Step::Commands(recover.encode_to_vec().into())),
        ];
        let steps = rest.chain(last).map(|(id, step)| (convert::position(&id), step)).collect();
        self.store.apply(steps).map_err(Error::Write)?;
        self.store.sync().map_err(Error::Write)
    }

    /// Tells the log where the store is about to stand. By itself that means nothing but a vote for itself in a new
    /// term.
    pub(crate) fn announce(&mut self) -> Result<[LogId; 2], Error> {
        let voted = self.log.vote().map_or(0, |vote| vote.leader_id.term);
        // Higher than any term this disk has seen, in what a peer's store has overtaken in the log, too: as if the node
        // had led, with nobody else there.
        let seen = [self.end(), self.log.ends().1].into_iter().flatten().map(|id| id.leader_id.term).max();
        let term = seen.unwrap_or(0).max(voted).saturating_add(1);
        let next = self.end().map_or(0, |id| id.index + 1);
        let at = |index| LogId { leader_id: term.into(), index };
        self.log.announce(Vote::new(term, self.log.node_id()), at(next + 1), self.overtaken)?;
        Ok([at(next), at(next + 1)])
    }
}
