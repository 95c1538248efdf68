//! What peers ask of a replica: appends, votes, a transfer of leadership, a store to take over, retirement.
//!
//! Not here: who may ask (`peer`), and the other questions of peers (`node`).

use databroker_proto::internal::{
    SnapshotChunk, SnapshotReply, TransferLeaderReply, peer_reply as reply, peer_request as request,
};
use futures::{Stream, StreamExt as _};
use openraft::errors::RaftError;
use tokio::sync::oneshot;

use super::{
    Replica, SnapshotMeta, Vote, convert, rpc,
    runtime::Runtime,
    snapshot::{Chunks, InstallError, SnapshotData},
    transfers::{Direction, Tally, Transfer},
};
use crate::store::transfer::Arrived;

/// Why a peer gets no answer of Raft's.
#[derive(Debug, thiserror::Error)]
pub enum HandleError {
    /// The message makes no sense.
    #[error("{0}")]
    Malformed(String),
    /// The message is not for the replica.
    #[error("this is no message of Raft's")]
    NotRaft,
    /// A transfer of leadership cannot be accepted now.
    #[error("{0}")]
    Declined(String),
    /// The replica has stopped.
    #[error("the replica has stopped")]
    Stopped,
}

impl From<convert::Error> for HandleError {
    fn from(error: convert::Error) -> Self {
        Self::Malformed(error.to_string())
    }
}

/// openraft has no error of its own for these calls.
impl<R: Runtime> From<RaftError<super::TypeConfig<R>>> for HandleError {
    fn from(_: RaftError<super::TypeConfig<R>>) -> Self {
        Self::Stopped
    }
}

impl<R: Runtime> Replica<R> {
    /// Answers a peer's append, vote, pre-vote or transfer of leadership. Everything else is [`HandleError::NotRaft`].
    ///
    /// # Errors
    /// See [`HandleError`]; no message makes the replica panic.
    pub async fn handle(&self, kind: request::Kind) -> Result<reply::Kind, HandleError> {
        match kind {
            request::Kind::Append(append) => {
                // As it comes: the disk may take its time.
                self.presence.note(append.vote.as_ref());
                let answer = self.raft.append_entries(rpc::append_of::<R>(append)?).await?;
                Ok(reply::Kind::Append(rpc::append_reply_message(&answer, self.word_ms)))
            }
            request::Kind::Vote(vote) => {
                // A leader that asks for it has given up its lease.
                if !vote.leadership_transfer {
                    self.old_word.kept().await;
                }
                let answer = self.raft.vote(rpc::vote_request_of::<R>(&vote)?).await?;
                Ok(reply::Kind::Vote(rpc::vote_reply_message(&answer)))
            }
            request::Kind::PreVote(vote) => {
                self.old_word.kept().await;
                let answer = self.raft.pre_vote(rpc::vote_request_of::<R>(&vote)?).await?;
                Ok(reply::Kind::PreVote(rpc::vote_reply_message(&answer)))
            }
            request::Kind::TransferLeader(transfer) => {
                let transfer = rpc::transfer_of::<R>(&transfer, self.node_id)?;
                let answer = self.raft.handle_transfer_leader(transfer).await.map_err(|_| HandleError::Stopped)?;
                answer.map_err(|error| HandleError::Declined(error.to_string()))?;
                Ok(reply::Kind::TransferLeader(TransferLeaderReply {}))
            }
            request::Kind::ReadIndex(_)
            | request::Kind::Forward(_)
            | request::Kind::Hello(_)
            | request::Kind::Retire(_) => Err(HandleError::NotRaft),
        }
    }

    /// Takes over a leader's store, which then replaces this node's in one step. Until then this node serves from its
    /// own. One transfer at a time.
    ///
    /// # Errors
    /// See [`InstallError`]; the store in use is untouched, and the transfer can begin again.
    pub async fn install<S>(&self, chunks: S) -> Result<SnapshotReply, InstallError>
    where
        S: Stream<Item = SnapshotChunk> + Unpin + Send,
    {
        let tally = Tally::new();
        let installed = self.receive(chunks, tally.clone()).await;
        let (rows, bytes, took) = tally.now();
        let seconds = took.as_secs_f64();
        match &installed {
            // It was not needed any more.
            Ok(_) if rows == 0 => {}
            Ok(_) => tracing::info!(rows, bytes, seconds, "took over the store of a peer"),
            Err(error) => tracing::warn!(rows, bytes, seconds, %error, "the store of a peer was not taken over"),
        }
        installed
    }

    async fn receive<S>(&self, chunks: S, tally: Tally) -> Result<SnapshotReply, InstallError>
    where
        S: Stream<Item = SnapshotChunk> + Unpin + Send,
    {
        let receiver = self.machine.receiver.clone();
        let turn = receiver.turn.clone().try_lock_owned().map_err(|_| InstallError::Busy)?;
        // Given up before the turn is.
        let place = (receiver.place(), turn);
        let transfer = Transfer::begin(self.machine.observer.clone(), Direction::Received, tally);
        let watched = chunks.inspect(move |chunk| chunk.kind.iter().for_each(|kind| transfer.moved(kind)));
        let mut chunks = Chunks(watched);
        let header = chunks.header::<R>().await?;
        self.presence.note(header.vote.as_ref());
        let (vote, meta) = rpc::snapshot_header_of(&header)?;
        if let Some(mine) = self.unneeded(&vote, &meta).await? {
            return Ok(rpc::snapshot_reply_message(&mine));
        }
        let arrived = Box::new(receiver.receive::<R, _>(header.format, &meta, chunks).await?);
        if let Err(too_new) = arrived.check(self.machine.knows) {
            let error = InstallError::TooNew(too_new);
            self.machine.failure().report(&error);
            return Err(error);
        }
        if let Some(mine) = self.unneeded(&vote, &meta).await? {
            return Ok(rpc::snapshot_reply_message(&mine));
        }
        // To its end, even if the caller goes away: what the log notes must be what is taken over.
        let (done, installed) = oneshot::channel();
        let replica = self.clone();
        R::spawn("install", self.machine.failure(), async move {
            drop(done.send(replica.take_over(vote, meta, arrived).await));
            drop(place);
        });
        installed.await.map_err(|_| InstallError::Stopped)?
    }

    async fn take_over(
        self,
        vote: Vote,
        meta: SnapshotMeta,
        arrived: Box<Arrived>,
    ) -> Result<SnapshotReply, InstallError> {
        if let Some(last) = &meta.last_log_id {
            self.log.note_install(last).await.map_err(InstallError::Log)?;
        }
        let snapshot = openraft::Snapshot { snapshot: SnapshotData::Arrived(arrived), meta };
        let installed = self.raft.install_full_snapshot(vote, snapshot).await;
        let answer = installed.map_err(|_| InstallError::Stopped)?;
        Ok(rpc::snapshot_reply_message(&answer.vote))
    }

    /// This node's vote, if the sender's was overtaken or its store holds nothing new.
    ///
    /// # Errors
    /// The sender's store contradicts what is committed here: openraft would end the node over it.
    async fn unneeded(&self, vote: &Vote, meta: &SnapshotMeta) -> Result<Option<Vote>, InstallError> {
        let state = self.raft.with_raft_state(|state| (*state.vote_ref(), state.local_committed().copied())).await;
        let (mine, committed) = state.map_err(|_| InstallError::Stopped)?;
        let last = meta.last_log_id;
        if last > committed && last.map(|id| id.index) <= committed.map(|id| id.index) {
            return Err(InstallError::Malformed("it contradicts what is committed here".into()));
        }
        let overtaken = vote.partial_cmp(&mine).is_none_or(std::cmp::Ordering::is_lt);
        Ok((overtaken || last <= committed).then_some(mine))
    }

    /// Writes to the disk, beside the vote, that this node was removed from its cluster, and stops: it never votes
    /// again, and its log does not open again.
    ///
    /// # Errors
    /// It cannot be written; the process is about to end for that.
    pub async fn retire(&self) -> std::io::Result<()> {
        self.log.retire().await?;
        self.shutdown().await;
        Ok(())
    }
}
