//! Writes of other nodes' clients. The node that received a request sends its command to the leader, with the identity
//! that makes it take effect once; the leader proposes it like its own and sends back what the store answered.
//!
//! A node that does not lead never passes on what was passed to it: it says who leads, and the sender tries again.

use std::time::Duration;

use databroker_proto::{
    EncodedRecord,
    internal::{Busy, ForwardReply, ForwardRequest, ForwardedAnswer, NotLeader, peer_reply},
};
use futures::future::join_all;
use tokio::time::Instant;

use super::{
    Error, Node,
    coalesce::{Origin, Proposal},
};
use crate::{
    raft::{NodeId, runtime::Runtime},
    store::command::{self, Answer, Command, Kind},
};

/// Commands in one message at most: what shares an entry at most.
const COMMANDS_MAX: usize = super::coalesce::COMMANDS_MAX;

/// Longest time a sender may make the leader wait for, whatever it asks.
const PATIENCE_MAX: Duration = Duration::from_secs(60);

/// Why a message cannot be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// More commands than a node of any release sends.
    #[error("more than {COMMANDS_MAX} commands in one message")]
    TooMany,
    /// A command without identity could take effect twice.
    #[error("a command has no identity")]
    Anonymous,
    /// A node passes on what its own clients ask for, and nobody else's: the answer is remembered under its id.
    #[error("a command has another node's identity")]
    Another,
    /// A command that only the leader itself proposes, or none at all.
    #[error("a command is of a kind that is not forwarded")]
    NotForwarded,
    /// A command that is too large to be logged.
    #[error("a command asks for more than one may")]
    TooLarge,
}

/// The answer of the store as it travels.
pub(super) fn encode(answer: Answer) -> ForwardedAnswer {
    let records = answer.records.into_iter().map(|record| record.as_bytes().clone()).collect();
    ForwardedAnswer { outcome: Some(answer.outcome), records }
}

/// The answer of the store as it was on the leader.
pub(super) fn decode(answer: ForwardedAnswer) -> Answer {
    let records = answer.records.into_iter().map(EncodedRecord::from_bytes).collect();
    Answer { outcome: answer.outcome.unwrap_or_default(), records }
}

/// Looks at what another node sent before any of it is proposed.
fn fit(from: NodeId, request: ForwardRequest) -> Result<Vec<(Origin, Kind)>, Unfit> {
    if request.commands.len() > COMMANDS_MAX {
        return Err(Unfit::TooMany);
    }
    let fit = |Command { identity, kind }: Command| {
        let identity = identity.filter(|identity| identity.origin != 0).ok_or(Unfit::Anonymous)?;
        if identity.origin != from {
            return Err(Unfit::Another);
        }
        let kind = kind.filter(is_of_a_client).ok_or(Unfit::NotForwarded)?;
        command::check(&kind).map_err(|_| Unfit::TooLarge)?;
        Ok((Origin::Forwarded(identity), kind))
    };
    request.commands.into_iter().map(fit).collect()
}

pub(super) fn is_of_a_client(kind: &Kind) -> bool {
    match kind {
        Kind::Put(_)
        | Kind::Patch(_)
        | Kind::SetOptions(_)
        | Kind::Lease(_)
        | Kind::Report(_)
        | Kind::SetCheckpoint(_)
        | Kind::Clear(_)
        | Kind::SetShape(_) => true,
        Kind::Sweep(_) | Kind::Init(_) | Kind::ConfirmRetired(_) | Kind::RaiseCommandVersion(_) | Kind::Recover(_) => {
            false
        }
    }
}

impl<R: Runtime> Node<R> {
    /// Proposes what another node's clients want. All or nothing is answered: a sender that hears "not the leader"
    /// sends all of it again, and what has taken effect is then answered from memory.
    pub(super) async fn answer_forward(
        &self,
        from: NodeId,
        request: ForwardRequest,
    ) -> Result<peer_reply::Kind, Unfit> {
        let patience = Duration::from_millis(request.patience_ms.into()).min(PATIENCE_MAX);
        let commands = fit(from, request)?;
        if !self.role().leads {
            return Ok(self.not_leader());
        }
        let deadline = Instant::now() + patience;
        let answers = join_all(commands.into_iter().map(|(origin, kind)| self.propose_for(origin, kind, deadline)));
        let answers: Result<Vec<Answer>, Error> = answers.await.into_iter().collect();
        Ok(match answers {
            Ok(answers) => {
                peer_reply::Kind::Forward(ForwardReply { answers: answers.into_iter().map(encode).collect() })
            }
            // It leads, and another would take no more. `TooEarly` passes: the sender's store has the version raised, and
            // this one's will in a moment.
            Err(error @ (Error::Overloaded | Error::TooEarly { .. } | Error::Full(_))) => {
                peer_reply::Kind::Busy(Busy { reason: error.to_string() })
            }
            Err(
                Error::NotLeader | Error::NoLeader | Error::NotInitialized | Error::ShuttingDown | Error::Failed { .. },
            ) => self.not_leader(),
        })
    }

    async fn propose_for(&self, origin: Origin, kind: Kind, deadline: Instant) -> Result<Answer, Error> {
        self.ready()?;
        let room = tokio::time::timeout_at(deadline, self.room(kind.encoded_len()));
        let room = room.await.map_err(|_| Error::Overloaded)??;
        // The sender has asked the same, and may have heard of it too late.
        self.fits(&kind)?;
        self.send(Proposal::new(kind, origin, Some(room), deadline)).await
    }

    /// Says who leads, as far as this node knows; never itself, for that is what it denies.
    pub(super) fn not_leader(&self) -> peer_reply::Kind {
        let leader = self.role().leader.filter(|leader| *leader != self.shared.replica.node_id());
        peer_reply::Kind::NotLeader(NotLeader { leader: leader.unwrap_or(0) })
    }
}

#[cfg(test)]
mod tests {
    use databroker_proto::internal::{Identity, Put, Sweep};

    use super::*;

    fn request(identity: Option<Identity>, kind: Option<Kind>) -> ForwardRequest {
        ForwardRequest { commands: vec![Command { identity, kind }], patience_ms: 1 }
    }

    #[test]
    fn only_clients_commands_with_an_identity_are_taken() {
        let identity = Some(Identity { origin: 7, request: 1, settled: 1 });
        let put = Some(Kind::Put(Put::default()));
        assert!(fit(7, request(identity, put.clone())).is_ok());
        assert_eq!(fit(8, request(identity, put.clone())).err(), Some(Unfit::Another));
        assert_eq!(fit(7, request(None, put.clone())).err(), Some(Unfit::Anonymous));
        assert_eq!(fit(7, request(Some(Identity::default()), put.clone())).err(), Some(Unfit::Anonymous));
        assert_eq!(fit(7, request(identity, None)).err(), Some(Unfit::NotForwarded));
        assert_eq!(fit(7, request(identity, Some(Kind::Sweep(Sweep::default())))).err(), Some(Unfit::NotForwarded));
        let paths = vec![String::new(); command::PATHS_MAX + 1];
        let patch = Kind::Patch(databroker_proto::internal::Patch { records: Vec::new(), paths });
        assert_eq!(fit(7, request(identity, Some(patch))).err(), Some(Unfit::TooLarge));
        let many = vec![Command { identity, kind: put }; COMMANDS_MAX + 1];
        assert_eq!(fit(7, ForwardRequest { commands: many, patience_ms: 1 }).err(), Some(Unfit::TooMany));
    }

    #[test]
    fn an_answer_travels_whole() {
        let record = EncodedRecord::from_bytes(bytes::Bytes::from_static(b"\x12\x01t"));
        let answer = Answer { records: vec![record], ..Answer::of(command::outcome::Kind::Done(Default::default())) };
        assert_eq!(decode(encode(answer.clone())), answer);
    }
}
