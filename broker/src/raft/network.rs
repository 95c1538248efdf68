//! openraft's way to its peers, over a [`Transport`].
//!
//! What fails makes openraft wait: an unreachable or refusing peer for a growing while, one that does not answer in time
//! has taken that time already. Not here: what messages say (`rpc`), how they travel (`transport`, `peer`).

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use databroker_proto::internal::{Envelope, PeerRequest, peer_reply, peer_request};
use futures::future::{Either, select};
use openraft::{
    RaftNetworkFactory, RaftNetworkV2,
    alias::SnapshotOf,
    errors::{RPCError, ReplicationClosed, StreamingError, Timeout, Unreachable},
    network::{RPCOption, RPCTypes},
    raft::{
        AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest, TransferLeaderResponse,
        VoteRequest, VoteResponse,
    },
};
use parking_lot::{Mutex, RwLock};
use prost::Message as _;

use super::{
    Member, NodeId, TypeConfig, Vote, convert,
    lease::Words,
    rpc,
    runtime::Runtime,
    snapshot::{self, Sender, SnapshotData},
    transfers::Tally,
    transport::{CallError, Peer, Transport},
};
use crate::store::Reader;

/// How long an append with entries may take: its receiver syncs them, and a slow disk must not make the leader send them
/// again and again. Heartbeats, which carry none, keep openraft's much shorter time.
const APPEND_PATIENCE: Duration = Duration::from_secs(1);

/// A network is at least this fast, in bytes per second: an append gets the time that its bytes take then, or one that is
/// large would be given up, and sent again from its beginning, for ever.
const BYTES_PER_SECOND_MIN: u64 = 2 << 20;

/// How long an append of so many bytes may take.
fn append_patience(bytes: usize) -> Duration {
    APPEND_PATIENCE + Duration::from_millis(bytes as u64 * 1000 / BYTES_PER_SECOND_MIN)
}

/// What every message of this node begins with.
#[derive(Clone)]
pub(super) struct Origin {
    pub(super) node: NodeId,
    /// Knows the cluster's id, once there is one.
    pub(super) reader: Reader,
}

impl Origin {
    /// The envelope of a message to another node; without a cluster's id before `Init` is applied.
    pub(super) fn envelope(&self, to: NodeId) -> Envelope {
        let cluster_id = self.reader.snapshot().cluster_id().unwrap_or_default().to_owned();
        Envelope { cluster_id, from: self.node, to }
    }
}

/// Where members are reached. openraft keeps the way to a peer for as long as the peer is a member, so a way looks its
/// address up at each call: it may have changed.
pub(super) type Addresses = Arc<RwLock<BTreeMap<NodeId, Member>>>;

/// Stores on their way, by receiver: after which index it needs the log next. One that has come stays here until openraft
/// knows of it.
pub(super) type Underway = Arc<Mutex<BTreeMap<NodeId, u64>>>;

/// Makes the way to each peer.
#[derive(Clone)]
pub(super) struct Network {
    pub(super) origin: Origin,
    pub(super) addresses: Addresses,
    pub(super) transport: Arc<dyn Transport>,
    pub(super) sender: Sender,
    pub(super) words: Words,
    pub(super) underway: Underway,
}

/// The way to one peer.
pub(super) struct Way {
    network: Network,
    to: Peer,
}

impl<R: Runtime> RaftNetworkFactory<TypeConfig<R>> for Network {
    type Network = Way;

    async fn new_client(&mut self, target: NodeId, member: &Member) -> Way {
        Way { network: self.clone(), to: Peer { node: target, member: member.clone() } }
    }
}

type Rpc<R, T> = Result<T, RPCError<TypeConfig<R>>>;

/// A peer that says what makes no sense is as good as unreachable.
fn senseless<R: Runtime>(error: convert::Error) -> RPCError<TypeConfig<R>> {
    Unreachable::new(&error).into()
}

impl Way {
    /// The peer as the membership has it now; as it was where it is no member any longer.
    fn peer(&self) -> Peer {
        let member = self.network.addresses.read().get(&self.to.node).cloned();
        Peer { node: self.to.node, member: member.unwrap_or_else(|| self.to.member.clone()) }
    }

    async fn ask<R: Runtime>(
        &self,
        action: RPCTypes,
        kind: peer_request::Kind,
        patience: Duration,
    ) -> Rpc<R, peer_reply::Kind> {
        let request = PeerRequest { envelope: Some(self.network.origin.envelope(self.to.node)), kind: Some(kind) };
        let reply = self.network.transport.call(self.peer(), request, patience).await;
        match reply {
            Ok(reply) if reply.from != self.to.node => Err(self.odd(format_args!("node {} answered", reply.from))),
            Ok(reply) => reply.kind.ok_or_else(|| self.odd("the answer is empty")),
            Err(CallError::TimedOut { .. }) => Err(self.timeout(action, patience).into()),
            Err(error) => Err(Unreachable::new(&error).into()),
        }
    }

    fn odd<R: Runtime>(&self, what: impl std::fmt::Display) -> RPCError<TypeConfig<R>> {
        Unreachable::from_string(format_args!("{} ({}): {what}", self.to.member.name, self.to.node)).into()
    }

    fn timeout<R: Runtime>(&self, action: RPCTypes, timeout: Duration) -> Timeout<TypeConfig<R>> {
        Timeout { action, id: self.network.origin.node, target: self.to.node, timeout }
    }

    async fn send<R: Runtime>(
        &self,
        vote: Vote,
        snapshot: SnapshotOf<TypeConfig<R>, SnapshotData>,
    ) -> Result<SnapshotResponse<TypeConfig<R>>, StreamingError<TypeConfig<R>>> {
        let envelope = self.network.origin.envelope(self.to.node);
        let (peer, tally) = (self.peer(), Tally::new());
        if let Some(last) = snapshot.meta.last_log_id {
            self.network.underway.lock().insert(self.to.node, last.index);
        }
        let (chunks, producing) = self.network.sender.send::<R>(envelope, &vote, snapshot, tally.clone());
        let sending = self.network.transport.send_snapshot(peer.clone(), chunks, snapshot::CHUNK_PATIENCE);
        // A failed read ends the node, through `Failure`; the peer sees a transfer without an end.
        let (reply, ()) = futures::join!(sending, producing);
        let ((rows, bytes, took), peer) = (tally.now(), peer.member.name);
        let seconds = took.as_secs_f64();
        match &reply {
            Ok(_) => tracing::info!(peer, rows, bytes, seconds, "sent a store"),
            Err(error) => {
                self.network.underway.lock().remove(&self.to.node);
                tracing::warn!(peer, rows, bytes, seconds, %error, "a store was not taken over");
            }
        }
        match reply {
            Ok(reply) => rpc::snapshot_reply_of(&reply).map_err(|error| Unreachable::new(&error).into()),
            Err(CallError::TimedOut { .. }) => {
                Err(self.timeout(RPCTypes::InstallSnapshot, snapshot::CHUNK_PATIENCE).into())
            }
            Err(error) => Err(Unreachable::new(&error).into()),
        }
    }
}

impl<R: Runtime> RaftNetworkV2<TypeConfig<R>> for Way {
    type SnapshotData = SnapshotData;

    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<TypeConfig<R>>,
        option: RPCOption,
    ) -> Rpc<R, AppendEntriesResponse<TypeConfig<R>>> {
        let last = request.entries.last().map(|entry| entry.log_id);
        let sent = (request.prev_log_id, last.or(request.prev_log_id));
        let message = rpc::append_message(&request);
        let patience = match last {
            Some(_) => append_patience(message.encoded_len()).max(option.hard_ttl()),
            None => option.hard_ttl(),
        };
        let append = peer_request::Kind::Append(message);
        match self.ask::<R>(RPCTypes::AppendEntries, append, patience).await? {
            peer_reply::Kind::Append(reply) => {
                self.network.words.hear(self.to.node, reply.word_millis);
                rpc::append_reply_of(reply, sent).map_err(senseless::<R>)
            }
            _ => Err(self.odd("it answered something else")),
        }
    }

    async fn vote(
        &mut self,
        request: VoteRequest<TypeConfig<R>>,
        option: RPCOption,
    ) -> Rpc<R, VoteResponse<TypeConfig<R>>> {
        let vote = peer_request::Kind::Vote(rpc::vote_request_message(&request));
        match self.ask::<R>(RPCTypes::Vote, vote, option.hard_ttl()).await? {
            peer_reply::Kind::Vote(reply) => rpc::vote_reply_of(&reply).map_err(senseless::<R>),
            _ => Err(self.odd("it answered something else")),
        }
    }

    async fn pre_vote(
        &mut self,
        request: VoteRequest<TypeConfig<R>>,
        option: RPCOption,
    ) -> Rpc<R, VoteResponse<TypeConfig<R>>> {
        let vote = peer_request::Kind::PreVote(rpc::vote_request_message(&request));
        match self.ask::<R>(RPCTypes::Vote, vote, option.hard_ttl()).await? {
            peer_reply::Kind::PreVote(reply) => rpc::vote_reply_of(&reply).map_err(senseless::<R>),
            _ => Err(self.odd("it answered something else")),
        }
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: SnapshotOf<TypeConfig<R>, SnapshotData>,
        cancel: impl Future<Output = ReplicationClosed> + Send + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig<R>>, StreamingError<TypeConfig<R>>> {
        match select(Box::pin(self.send::<R>(vote, snapshot)), Box::pin(cancel)).await {
            Either::Left((sent, _)) => sent,
            Either::Right((closed, _)) => Err(closed.into()),
        }
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<TypeConfig<R>>,
        option: RPCOption,
    ) -> Rpc<R, TransferLeaderResponse<TypeConfig<R>>> {
        let transfer = peer_request::Kind::TransferLeader(rpc::transfer_message(&request));
        match self.ask::<R>(RPCTypes::TransferLeader, transfer, option.hard_ttl()).await? {
            peer_reply::Kind::TransferLeader(_) => Ok(Ok(())),
            _ => Err(self.odd("it answered something else")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_append_may_take_as_long_as_its_bytes_need_on_a_slow_network() {
        assert_eq!(append_patience(0), APPEND_PATIENCE);
        assert_eq!(append_patience(64 << 20), APPEND_PATIENCE + Duration::from_secs(32));
    }
}
