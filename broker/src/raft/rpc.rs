//! openraft's requests and replies to and from the messages between peers.
//!
//! Reading checks what openraft takes for granted: it would end the node over a message that contradicts itself.
//! Not here: entries, votes and memberships by themselves (`convert`), who is asked (`network`).

use databroker_proto::internal as proto;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest, VoteRequest, VoteResponse,
};

use super::{
    Entry, LogId, NodeId, SnapshotMeta, StoredMembership, TypeConfig, Vote,
    convert::{self, Error, log_id_message, log_id_of, vote_message, vote_of},
    runtime::Runtime,
};

fn required<T>(field: Option<T>, what: &'static str, name: &'static str) -> Result<T, Error> {
    field.ok_or(Error::Missing { what, field: name })
}

fn contradiction<T>(what: &'static str, reason: &'static str) -> Result<T, Error> {
    Err(Error::Contradiction { what, reason })
}

fn some_log_id(message: Option<&proto::LogId>) -> Option<LogId> {
    message.map(log_id_of)
}

pub(super) fn append_message<R: Runtime>(request: &AppendEntriesRequest<TypeConfig<R>>) -> proto::AppendRequest {
    proto::AppendRequest {
        vote: Some(vote_message(&request.vote)),
        prev: request.prev_log_id.as_ref().map(log_id_message),
        entries: request.entries.iter().map(convert::entry_message).collect(),
        leader_commit: request.leader_commit.as_ref().map(log_id_message),
    }
}

pub(super) fn append_of<R: Runtime>(
    message: proto::AppendRequest,
) -> Result<AppendEntriesRequest<TypeConfig<R>>, Error> {
    const WHAT: &str = "an append";
    let vote = vote_of(&required(message.vote, WHAT, "vote")?)?;
    if !vote.committed {
        return contradiction(WHAT, "its sender was not elected");
    }
    let prev_log_id = some_log_id(message.prev.as_ref());
    let entries = message.entries.into_iter().map(convert::entry_of).collect::<Result<Vec<_>, _>>()?;
    refuse_unordered(&vote, prev_log_id, &entries)?;
    let leader_commit = some_log_id(message.leader_commit.as_ref());
    Ok(AppendEntriesRequest { vote, prev_log_id, entries, leader_commit })
}

/// Entries follow one another and what came before them, and none is of a later term than its sender's.
fn refuse_unordered(vote: &Vote, prev: Option<LogId>, entries: &[Entry]) -> Result<(), Error> {
    let mut before = prev;
    for Entry { log_id, .. } in entries {
        let next = before.map_or(Some(0), |before| before.index.checked_add(1));
        if next != Some(log_id.index) || before.is_some_and(|before| log_id.leader_id < before.leader_id) {
            return contradiction("an append", "its entries do not follow one another");
        }
        before = Some(*log_id);
    }
    if before.is_some_and(|last| last.leader_id.term > vote.leader_id.term || last.index == u64::MAX) {
        return contradiction("an append", "its end is beyond its sender's term, or beyond counting");
    }
    Ok(())
}

/// `word_millis`: for how long after this its sender helps nobody else to lead.
pub(super) fn append_reply_message<R: Runtime>(
    reply: &AppendEntriesResponse<TypeConfig<R>>,
    word_millis: u64,
) -> proto::AppendReply {
    use proto::append_reply::Result as Outcome;
    let result = match reply {
        AppendEntriesResponse::Success => Outcome::Success(proto::Done {}),
        AppendEntriesResponse::PartialSuccess(matching) => {
            Outcome::PartialSuccess(proto::PartialSuccess { matching: matching.as_ref().map(log_id_message) })
        }
        AppendEntriesResponse::Conflict => Outcome::Conflict(proto::Done {}),
        AppendEntriesResponse::HigherVote(vote) => Outcome::HigherVote(vote_message(vote)),
    };
    proto::AppendReply { result: Some(result), word_millis }
}

/// `sent`: where the request began and where it ended; a reply must not speak of anything else.
pub(super) fn append_reply_of<R: Runtime>(
    message: proto::AppendReply,
    sent: (Option<LogId>, Option<LogId>),
) -> Result<AppendEntriesResponse<TypeConfig<R>>, Error> {
    use proto::append_reply::Result as Outcome;
    const WHAT: &str = "the answer to an append";
    Ok(match required(message.result, WHAT, "result")? {
        Outcome::Success(_) => AppendEntriesResponse::Success,
        Outcome::PartialSuccess(partial) => {
            let matching = some_log_id(partial.matching.as_ref());
            if matching < sent.0 || matching > sent.1 {
                return contradiction(WHAT, "it matches what was not sent");
            }
            AppendEntriesResponse::PartialSuccess(matching)
        }
        Outcome::Conflict(_) if sent.0.is_none() => return contradiction(WHAT, "nothing conflicts with the beginning"),
        Outcome::Conflict(_) => AppendEntriesResponse::Conflict,
        Outcome::HigherVote(vote) => AppendEntriesResponse::HigherVote(vote_of(&vote)?),
    })
}

pub(super) fn vote_request_message<R: Runtime>(request: &VoteRequest<TypeConfig<R>>) -> proto::VoteRequest {
    proto::VoteRequest {
        vote: Some(vote_message(&request.vote)),
        last_log: request.last_log_id.as_ref().map(log_id_message),
        leadership_transfer: request.leadership_transfer,
    }
}

pub(super) fn vote_request_of<R: Runtime>(message: &proto::VoteRequest) -> Result<VoteRequest<TypeConfig<R>>, Error> {
    const WHAT: &str = "a request for a vote";
    let vote = vote_of(required(message.vote.as_ref(), WHAT, "vote")?)?;
    if vote.committed {
        return contradiction(WHAT, "its sender says it was elected");
    }
    let mut request = VoteRequest::new(vote, some_log_id(message.last_log.as_ref()));
    request.leadership_transfer = message.leadership_transfer;
    Ok(request)
}

pub(super) fn vote_reply_message<R: Runtime>(reply: &VoteResponse<TypeConfig<R>>) -> proto::VoteReply {
    proto::VoteReply {
        vote: Some(vote_message(&reply.vote)),
        granted: reply.vote_granted,
        last_log: reply.last_log_id.as_ref().map(log_id_message),
    }
}

pub(super) fn vote_reply_of<R: Runtime>(message: &proto::VoteReply) -> Result<VoteResponse<TypeConfig<R>>, Error> {
    let vote = vote_of(required(message.vote.as_ref(), "a vote", "vote")?)?;
    Ok(VoteResponse::new(vote, some_log_id(message.last_log.as_ref()), message.granted))
}

pub(super) fn transfer_message<R: Runtime>(
    request: &TransferLeaderRequest<TypeConfig<R>>,
) -> proto::TransferLeaderRequest {
    proto::TransferLeaderRequest {
        from: Some(vote_message(request.from_leader())),
        to: *request.to_node_id(),
        last_log: request.last_log_id().map(log_id_message),
    }
}

pub(super) fn transfer_of<R: Runtime>(
    message: &proto::TransferLeaderRequest,
    me: NodeId,
) -> Result<TransferLeaderRequest<TypeConfig<R>>, Error> {
    const WHAT: &str = "a transfer of leadership";
    let from = vote_of(required(message.from.as_ref(), WHAT, "from")?)?;
    if message.to != me || !from.committed {
        return contradiction(WHAT, "it is for another node, or not from a leader");
    }
    Ok(TransferLeaderRequest::new(from, message.to, some_log_id(message.last_log.as_ref())))
}

/// What a snapshot's header says: who sends it, and of which moment it is.
pub(super) fn snapshot_header(vote: &Vote, meta: &SnapshotMeta, format: u32) -> proto::SnapshotHeader {
    proto::SnapshotHeader {
        vote: Some(vote_message(vote)),
        last_log: meta.last_log_id.as_ref().map(log_id_message),
        membership_at: meta.last_membership.log_id().as_ref().map(log_id_message),
        membership: convert::encode_membership(meta.last_membership.membership()),
        format,
    }
}

pub(super) fn snapshot_header_of(message: &proto::SnapshotHeader) -> Result<(Vote, SnapshotMeta), Error> {
    const WHAT: &str = "the header of a snapshot";
    let vote = vote_of(required(message.vote.as_ref(), WHAT, "vote")?)?;
    let last = log_id_of(required(message.last_log.as_ref(), WHAT, "last_log")?);
    let at = some_log_id(message.membership_at.as_ref());
    if !vote.committed || last.leader_id.term > vote.leader_id.term {
        return contradiction(WHAT, "its sender cannot have this log");
    }
    if at > Some(last) || at.is_some_and(|at| at.index > last.index) || last.index == u64::MAX {
        return contradiction(WHAT, "its membership is newer than its end");
    }
    let last_membership = StoredMembership::new(at, convert::decode_membership(&message.membership)?);
    Ok((vote, SnapshotMeta { last_log_id: Some(last), last_membership }))
}

pub(super) fn snapshot_reply_message(vote: &Vote) -> proto::SnapshotReply {
    proto::SnapshotReply { vote: Some(vote_message(vote)) }
}

pub(super) fn snapshot_reply_of<R: Runtime>(
    message: &proto::SnapshotReply,
) -> Result<SnapshotResponse<TypeConfig<R>>, Error> {
    let vote = required(message.vote.as_ref(), "the answer to a snapshot", "vote")?;
    Ok(SnapshotResponse { vote: vote_of(vote)? })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use prost::Message;

    use super::{super::runtime::Tokio, *};

    fn id(term: u64, index: u64) -> Option<LogId> {
        Some(LogId { leader_id: term.into(), index })
    }

    #[test]
    fn votes_keep_that_the_leader_asked_for_them() {
        for leadership_transfer in [false, true] {
            let mut request = VoteRequest::<TypeConfig<Tokio>>::new(Vote::new(7, 3), id(6, 9));
            request.leadership_transfer = leadership_transfer;
            assert_eq!(vote_request_of::<Tokio>(&vote_request_message(&request)).unwrap(), request);
        }
        let reply = VoteResponse::<TypeConfig<Tokio>>::new(Vote::new(7, 3), None, true);
        assert_eq!(vote_reply_of::<Tokio>(&vote_reply_message(&reply)).unwrap(), reply);
    }

    #[test]
    fn answers_to_appends_round_trip_and_speak_only_of_what_was_sent() {
        type Reply = AppendEntriesResponse<TypeConfig<Tokio>>;
        let (sent, trip) = ((id(1, 3), id(2, 8)), |reply: Reply, sent| {
            append_reply_of::<Tokio>(append_reply_message(&reply, 400), sent).map(|back| assert_eq!(back, reply))
        });
        let higher = Reply::HigherVote(Vote::new_committed(9, 1));
        for reply in [Reply::Success, Reply::PartialSuccess(id(1, 5)), Reply::Conflict, higher] {
            trip(reply, sent).unwrap();
        }
        assert!(trip(Reply::PartialSuccess(id(2, 9)), sent).is_err());
        assert!(trip(Reply::PartialSuccess(None), sent).is_err());
        assert!(trip(Reply::Conflict, (None, id(2, 8))).is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_make_reading_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let bytes = bytes.as_slice();
            let _ = proto::AppendRequest::decode(bytes).map(append_of::<Tokio>);
            let _ = proto::AppendReply::decode(bytes).map(|reply| append_reply_of::<Tokio>(reply, (None, None)));
            let _ = proto::VoteRequest::decode(bytes).map(|vote| vote_request_of::<Tokio>(&vote).map(drop));
            let _ = proto::VoteReply::decode(bytes).map(|vote| vote_reply_of::<Tokio>(&vote).map(drop));
            let _ = proto::TransferLeaderRequest::decode(bytes).map(|it| transfer_of::<Tokio>(&it, 1).map(drop));
            let _ = proto::SnapshotHeader::decode(bytes).map(|header| snapshot_header_of(&header).map(drop));
        }
    }
}
