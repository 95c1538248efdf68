//! openraft's values to and from the messages of `databroker.internal.v1`: the one place where both are seen.
//!
//! Reading never trusts what a disk or a peer says: it returns an error and panics never.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use databroker_proto::internal as proto;
use openraft::EntryPayload;
use prost::Message;

use super::{Entry, LogId, Member, Membership, Payload, Proposal, StoredMembership, Vote};
use crate::store::{Position, Step};

/// Why a message is none of Raft's values.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// The bytes are no such message.
    #[error("{what} of {bytes} bytes cannot be decoded: {source}")]
    Malformed {
        /// What was expected.
        what: &'static str,
        /// How many bytes there were.
        bytes: usize,
        /// What is wrong.
        source: prost::DecodeError,
    },
    /// A field without which the message means nothing.
    #[error("{what} has no {field}")]
    Missing {
        /// The message.
        what: &'static str,
        /// The field.
        field: &'static str,
    },
    /// The fields contradict each other.
    #[error("{what} contradicts itself: {reason}")]
    Contradiction {
        /// The message.
        what: &'static str,
        /// What cannot be.
        reason: &'static str,
    },
    /// The voters and members contradict each other.
    #[error("a membership is invalid: {reason}")]
    Membership {
        /// What openraft says about it.
        reason: String,
    },
}

fn message<M: Message + Default>(what: &'static str, bytes: &[u8]) -> Result<M, Error> {
    M::decode(bytes).map_err(|source| Error::Malformed { what, bytes: bytes.len(), source })
}

fn encoded(message: &impl Message) -> Bytes {
    message.encode_to_vec().into()
}

/// One leader per term, so a log id holds no node; the field stays zero.
pub(super) fn log_id_message(id: &LogId) -> proto::LogId {
    proto::LogId { term: id.leader_id.term, node: 0, index: id.index }
}

pub(super) fn log_id_of(message: &proto::LogId) -> LogId {
    LogId { leader_id: message.term.into(), index: message.index }
}

pub(super) fn encode_log_id(id: &LogId) -> Bytes {
    encoded(&log_id_message(id))
}

pub(super) fn decode_log_id(bytes: &[u8]) -> Result<LogId, Error> {
    Ok(log_id_of(&message("a log id", bytes)?))
}

pub(super) fn position(id: &LogId) -> Position {
    Position { term: id.leader_id.term, node: 0, index: id.index }
}

pub(super) fn log_id(position: Position) -> LogId {
    LogId { leader_id: position.term.into(), index: position.index }
}

pub(super) fn vote_message(vote: &Vote) -> proto::Vote {
    proto::Vote { term: vote.leader_id.term, node: Some(vote.leader_id.voted_for), committed: vote.committed }
}

pub(super) fn encode_vote(vote: &Vote) -> Bytes {
    encoded(&vote_message(vote))
}

pub(super) fn decode_vote(bytes: &[u8]) -> Result<Vote, Error> {
    vote_of(&message("a vote", bytes)?)
}

pub(super) fn vote_of(vote: &proto::Vote) -> Result<Vote, Error> {
    let node = vote.node.ok_or(Error::Missing { what: "a vote", field: "node" })?;
    Ok(if vote.committed { Vote::new_committed(vote.term, node) } else { Vote::new(vote.term, node) })
}

fn membership_message(membership: &Membership) -> proto::Membership {
    let voters = membership.get_joint_config().iter();
    let members = membership.nodes().map(|(node, member)| member.to_message(*node));
    proto::Membership {
        voters: voters.map(|set| proto::VoterSet { nodes: set.iter().copied().collect() }).collect(),
        members: members.collect(),
    }
}

fn membership_of(message: proto::Membership) -> Result<Membership, Error> {
    let voters: Vec<BTreeSet<u64>> = message.voters.into_iter().map(|set| set.nodes.into_iter().collect()).collect();
    let members: BTreeMap<u64, Member> = message
        .members
        .into_iter()
        .map(|m| (m.node, Member { name: m.name, raft_address: m.raft_address, grpc_address: m.grpc_address }))
        .collect();
    Membership::new(voters, members).map_err(|error| Error::Membership { reason: error.to_string() })
}

pub(super) fn encode_membership(membership: &Membership) -> Bytes {
    encoded(&membership_message(membership))
}

pub(super) fn decode_membership(bytes: &[u8]) -> Result<Membership, Error> {
    membership_of(message("a membership", bytes)?)
}

/// The membership a store keeps with the position of its entry; none before the first.
pub(super) fn stored_membership(stored: Option<(Position, Bytes)>) -> Result<StoredMembership, Error> {
    let Some((at, bytes)) = stored else { return Ok(StoredMembership::default()) };
    let membership = decode_membership(&bytes)?;
    Ok(StoredMembership::new(Some(log_id(at)), membership))
}

/// What an entry asks of the store.
pub(super) fn step(payload: Payload) -> Step {
    match payload {
        EntryPayload::Blank => Step::Blank,
        EntryPayload::Normal(proposal) => Step::Commands(proposal.0),
        EntryPayload::Membership(membership) => Step::Membership(encode_membership(&membership)),
    }
}

pub(super) fn encode_entry(entry: &Entry) -> Bytes {
    encoded(&entry_message(entry))
}

pub(super) fn entry_message(entry: &Entry) -> proto::LogEntry {
    use proto::log_entry::Payload;
    let payload = match &entry.payload {
        EntryPayload::Blank => Payload::Blank(proto::Blank {}),
        EntryPayload::Normal(proposal) => Payload::Commands(proposal.0.clone()),
        EntryPayload::Membership(membership) => Payload::Membership(membership_message(membership)),
    };
    proto::LogEntry { id: Some(log_id_message(&entry.log_id)), payload: Some(payload) }
}

/// The commands of the entry share `bytes`.
pub(super) fn decode_entry(bytes: Bytes) -> Result<Entry, Error> {
    let length = bytes.len();
    let malformed = |source| Error::Malformed { what: "a log entry", bytes: length, source };
    entry_of(proto::LogEntry::decode(bytes).map_err(malformed)?)
}

pub(super) fn entry_of(entry: proto::LogEntry) -> Result<Entry, Error> {
    use proto::log_entry::Payload;
    const WHAT: &str = "a log entry";
    let id = entry.id.ok_or(Error::Missing { what: WHAT, field: "id" })?;
    let payload = match entry.payload.ok_or(Error::Missing { what: WHAT, field: "payload" })? {
        Payload::Blank(_) => EntryPayload::Blank,
        Payload::Commands(bytes) => EntryPayload::Normal(Proposal(bytes)),
        Payload::Membership(membership) => EntryPayload::Membership(membership_of(membership)?),
    };
    Ok(Entry { log_id: log_id_of(&id), payload })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn joint() -> Membership {
        let member = |name: &str| Member { name: name.into(), raft_address: "r:1".into(), grpc_address: "g:2".into() };
        let members = BTreeMap::from([(1, member("a")), (2, member("b")), (u64::MAX, member("learner"))]);
        Membership::new(vec![BTreeSet::from([1, 2]), BTreeSet::from([2])], members).unwrap()
    }

    #[test]
    fn every_kind_of_entry_round_trips() {
        let log_id = LogId { leader_id: 7.into(), index: u64::MAX };
        let payloads = [
            EntryPayload::Blank,
            EntryPayload::Normal(Proposal(Bytes::from_static(b"\0\xff"))),
            EntryPayload::Normal(Proposal(Bytes::new())),
            EntryPayload::Membership(joint()),
        ];
        for payload in payloads {
            let entry = Entry { log_id, payload };
            assert_eq!(decode_entry(encode_entry(&entry)).unwrap(), entry);
        }
    }

    #[test]
    fn votes_memberships_and_positions_round_trip() {
        for vote in [Vote::new(3, 9), Vote::new_committed(u64::MAX, u64::MAX)] {
            assert_eq!(decode_vote(&encode_vote(&vote)).unwrap(), vote);
        }
        let at = Position { term: 4, node: 0, index: 5 };
        assert_eq!(position(&log_id(at)), at);
        let stored = stored_membership(Some((at, encode_membership(&joint())))).unwrap();
        assert_eq!(stored, StoredMembership::new(Some(log_id(at)), joint()));
        assert_eq!(stored_membership(None).unwrap(), StoredMembership::default());
    }

    #[test]
    fn a_voter_that_is_no_member_is_an_error() {
        let lost = proto::Membership { voters: vec![proto::VoterSet { nodes: vec![1] }], members: vec![] };
        assert!(matches!(membership_of(lost), Err(Error::Membership { .. })));
    }

    #[test]
    fn missing_fields_are_named() {
        let error = decode_entry(Bytes::new()).unwrap_err();
        assert_eq!(error.to_string(), "a log entry has no id");
        assert_eq!(decode_vote(&[]).unwrap_err().to_string(), "a vote has no node");
    }

    proptest! {
        #[test]
        fn no_bytes_make_reading_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode_entry(bytes.clone().into());
            let _ = decode_vote(&bytes);
            let _ = decode_log_id(&bytes);
            let _ = stored_membership(Some((Position::default(), bytes.into())));
        }
    }
}
