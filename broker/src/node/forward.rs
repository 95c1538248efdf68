//! Writes of other nodes' clients. The node that received a request sends its command to the leader, with the identity
//! that makes it take effect once; the leader proposes it like its own and sends back what the store answered.
//!
//! A node that does not lead never passes on what was passed to it: it says who leads, and the sender tries again. Of the
//! commands of one message each has an answer of its own, or a refusal.

use std::time::Duration;

use databroker_proto::{
    EncodedRecord,
    internal::{
        Busy, DiskFull, ForwardReply, ForwardRequest, ForwardedAnswer, NotLeader, TooEarly, forwarded_answer::Refusal,
        hello_reply::Standing, peer_reply,
    },
};
use futures::future::join_all;
use tokio::time::{Instant, timeout};

use super::{
    Error, Node,
    coalesce::{Origin, Proposal, RETRY_BUSY},
    space::Full,
};
use crate::{
    raft::{NodeId, runtime::Runtime},
    store::command::{self, Answer, Command, Kind},
};

/// Commands in one message at most: what shares an entry at most.
const COMMANDS_MAX: usize = super::coalesce::COMMANDS_MAX;

/// Longest time a sender may make the leader wait for, whatever it asks.
const PATIENCE_MAX: Duration = Duration::from_secs(60);

/// Of a sender's patience, the part that a command may wait for room, and no longer than until the sender would ask
/// again: the answers of the others travel with its refusal, and are to arrive before the sender gives up.
const ROOM_PART: u32 = 2;

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
    /// Answers are remembered for members only, until they are removed.
    #[error("the sender is no member of this cluster")]
    Stranger,
}

/// The answer of the store as it travels, or why there is none.
pub(super) fn encode(answer: Result<Answer, Error>) -> ForwardedAnswer {
    let refusal = match answer {
        Ok(Answer { outcome, records }) => {
            let records = records.into_iter().map(|record| record.as_bytes().clone()).collect();
            return ForwardedAnswer { outcome: Some(outcome), records, refusal: None };
        }
        Err(Error::Overloaded) => Refusal::Busy(Busy {}),
        Err(Error::TooEarly { needed, raised }) => Refusal::TooEarly(TooEarly { needed, raised }),
        Err(Error::Full(Full { free })) => Refusal::DiskFull(DiskFull { bytes_free: free }),
        // Whoever leads next has the answer, or takes the command.
        Err(
            Error::NotLeader | Error::NoLeader | Error::NotInitialized | Error::ShuttingDown | Error::Failed { .. },
        ) => Refusal::NotLeader(NotLeader { leader: 0 }),
    };
    ForwardedAnswer { outcome: None, records: Vec::new(), refusal: Some(refusal) }
}

/// The answer of the store as it was on the leader, or why there is none, as the leader's own client would hear it. What
/// a newer release may say beyond that is taken for a leader that knows nothing of the command.
pub(super) fn decode(answer: ForwardedAnswer) -> Result<Answer, Error> {
    let ForwardedAnswer { outcome, records, refusal } = answer;
    match (outcome, refusal) {
        (Some(outcome), None) => {
            Ok(Answer { outcome, records: records.into_iter().map(EncodedRecord::from_bytes).collect() })
        }
        (_, Some(Refusal::Busy(Busy {}))) => Err(Error::Overloaded),
        (_, Some(Refusal::TooEarly(TooEarly { needed, raised }))) => Err(Error::TooEarly { needed, raised }),
        (_, Some(Refusal::DiskFull(DiskFull { bytes_free }))) => Err(Full { free: bytes_free }.into()),
        (_, Some(Refusal::NotLeader(_))) | (None, None) => Err(Error::NotLeader),
    }
}

/// Whether a refused command may be taken later, here or by the next leader. `TooEarly` passes: the sender's store has the
/// version raised, and the leader's will in a moment.
pub(super) fn passes(refusal: &Error) -> bool {
    match refusal {
        Error::Overloaded | Error::TooEarly { .. } | Error::NotLeader => true,
        Error::Full(_) | Error::NoLeader | Error::NotInitialized | Error::ShuttingDown | Error::Failed { .. } => false,
    }
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
    /// Proposes what another node's clients want. A sender that hears "not the leader", of all commands or of some, sends
    /// them again, and what has taken effect is then answered from memory.
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
        // Of one that was removed each command is refused by the store, which tells the client why.
        if self.standing(from) == Standing::Unknown {
            return Err(Unfit::Stranger);
        }
        let answers = commands.into_iter().map(|(origin, kind)| self.propose_for(origin, kind, patience));
        let answers = join_all(answers).await.into_iter().map(encode).collect();
        Ok(peer_reply::Kind::Forward(ForwardReply { answers }))
    }

    async fn propose_for(&self, origin: Origin, kind: Kind, patience: Duration) -> Result<Answer, Error> {
        self.ready()?;
        let deadline = Instant::now() + patience;
        let room = timeout((patience / ROOM_PART).min(RETRY_BUSY), self.room(kind.encoded_len()));
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
        assert_eq!(decode(encode(Ok(answer.clone()))).ok(), Some(answer));
    }

    #[test]
    fn a_refusal_is_told_as_to_the_leaders_own_client_and_only_what_passes_is_tried_again() {
        let early = Error::TooEarly { needed: 3, raised: 2 };
        let through = |error| decode(encode(Err(error))).unwrap_err();
        let refused = [through(Full { free: 7 }.into()), through(early), through(Error::Overloaded)];
        assert!(matches!(
            refused,
            [Error::Full(Full { free: 7 }), Error::TooEarly { needed: 3, raised: 2 }, Error::Overloaded]
        ));
        assert_eq!(refused.map(|error| passes(&error)), [false, true, true]);
        for error in [Error::NotLeader, Error::NoLeader, Error::ShuttingDown, Error::Failed { reason: "x".into() }] {
            let refused = through(error);
            assert!(matches!(refused, Error::NotLeader) && passes(&refused), "the next leader is asked");
        }
        assert!(matches!(decode(ForwardedAnswer::default()), Err(Error::NotLeader)), "of a newer release");
    }
}
