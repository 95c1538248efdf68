//! Turns requests into log entries: several that wait share one, and only a few entries are under way at a time, so
//! that requests gather while the disk is busy. Each stays a command of its own, with its own answer.
//!
//! ```text
//!   propose ─▶ queue ─▶ Batch ─▶ into the log in order, or to the leader ─▶ Flight: answers, or again until the
//!                                                                           hold time is over
//! ```

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use databroker_proto::internal::{Command, ForwardRequest, Identity, peer_reply, peer_request};
use prost::Message as _;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch},
    time::{Instant, sleep, timeout, timeout_at},
};

use super::{
    Error, forward,
    outbound::Outbound,
    replication::WriteGap,
    tracker::{OpenRequest, Requests},
};
use crate::{
    raft::{
        NodeId, Refusal, Replica, Submitted,
        runtime::{Clock, Failure, Runtime},
    },
    store::command::{self, Answer, Kind},
};

/// Commands that share an entry at most: beyond this the sync is cheap per command, and all wait for the last.
pub(super) const COMMANDS_MAX: usize = 256;
/// Bytes that share an entry at most.
const ENTRY_BYTES_MAX: usize = 1 << 20;
/// A request with more records than this gets an entry of its own: small ones would wait for it.
const RECORDS_SHARED_MAX: usize = 16;
/// How long to wait for a change of leadership before a refused entry is submitted again all the same: a new leader
/// refuses until its first quorum has answered, and nothing tells when.
const RETRY: Duration = Duration::from_millis(10);

/// How long to wait before a leader that takes no more is asked again: a message may be of a megabyte, and many nodes send
/// them.
pub(super) const RETRY_BUSY: Duration = Duration::from_millis(200);

/// A request on its way into the log.
pub(super) struct Proposal {
    kind: Kind,
    bytes: usize,
    caller: Caller,
}

/// Where a command comes from, and with that what makes it take effect once.
#[derive(Debug)]
pub(super) enum Origin {
    /// A client of this node.
    Client(OpenRequest),
    /// The leader itself: such a command does no harm twice.
    Leader,
    /// A client of another node, which gave it this identity. It is never passed on.
    Forwarded(Identity),
}

/// Who waits for an answer.
struct Caller {
    reply: oneshot::Sender<Result<Answer, Error>>,
    origin: Origin,
    deadline: Instant,
    /// Why the leader did not take it, when it was asked last; it may later.
    refused: Option<Error>,
    /// It may have taken effect: a leader that had it, or was sent it, has not said what became of it. The next may
    /// refuse it before its store is asked, so that a refusal says nothing about the time before.
    unclear: bool,
    /// What the request takes of the bounds on all requests.
    _room: Option<Room>,
}

/// One of the requests, and so many of the bytes, that may be under way.
pub(super) type Room = (OwnedSemaphorePermit, OwnedSemaphorePermit);

impl Proposal {
    pub(super) fn new(
        kind: Kind,
        origin: Origin,
        room: Option<Room>,
        deadline: Instant,
    ) -> (Self, oneshot::Receiver<Result<Answer, Error>>) {
        let (reply, answer) = oneshot::channel();
        let caller = Caller { reply, origin, deadline, refused: None, unclear: false, _room: room };
        (Self { bytes: kind.encoded_len(), kind, caller }, answer)
    }

    /// What is asked.
    pub(super) fn kind(&self) -> &Kind {
        &self.kind
    }

    fn is_large(&self) -> bool {
        let records = match &self.kind {
            Kind::Put(put) => put.records.len(),
            Kind::Patch(patch) => patch.records.len(),
            _ => 1,
        };
        records > RECORDS_SHARED_MAX
    }
}

impl Caller {
    fn is_expired(&self, now: Instant) -> bool {
        self.deadline <= now
    }

    /// The request is settled before its caller hears the answer, so that whatever the caller does next comes after. A
    /// caller that went away needs no answer; its request is settled all the same.
    fn answer(self, answer: Result<Answer, Error>) {
        let Self { reply, origin, deadline: _, refused: _, unclear: _, _room } = self;
        drop(origin);
        drop(reply.send(answer));
    }
}

/// Requests that share a log entry.
#[derive(Default)]
struct Batch {
    commands: Vec<Command>,
    callers: Vec<Caller>,
    bytes: usize,
}

impl Batch {
    fn has_room_for(&self, proposal: &Proposal) -> bool {
        self.callers.is_empty()
            || (self.callers.len() < COMMANDS_MAX
                && self.bytes + proposal.bytes <= ENTRY_BYTES_MAX
                && !proposal.is_large())
    }

    fn push(&mut self, proposal: Proposal, me: u64) {
        let Proposal { kind, bytes, caller } = proposal;
        let identity = match &caller.origin {
            Origin::Client(open) => Some(Identity { origin: me, request: open.number(), settled: 0 }),
            Origin::Leader => None,
            Origin::Forwarded(identity) => Some(*identity),
        };
        self.commands.push(Command { identity, kind: Some(kind) });
        self.callers.push(caller);
        self.bytes += bytes;
    }

    /// Says in each of this node's own commands which of its requests are settled: that moves on between submissions.
    fn settle(&mut self, settled: u64) {
        for (command, caller) in self.commands.iter_mut().zip(&self.callers) {
            if let (Some(identity), Origin::Client(_)) = (&mut command.identity, &caller.origin) {
                identity.settled = settled;
            }
        }
    }

    /// The entry as it stands in the log.
    fn encode(&mut self, now_nanos: u64) -> Bytes {
        let commands = std::mem::take(&mut self.commands);
        let entry = command::entry(now_nanos, commands);
        let bytes = entry.encode_to_vec().into();
        self.commands = entry.commands;
        bytes
    }

    fn answer(self, answers: Vec<Answer>) {
        self.callers.into_iter().zip(answers).for_each(|(caller, answer)| caller.answer(Ok(answer)));
    }

    /// Apart again, to wait for another entry.
    fn into_proposals(self) -> impl Iterator<Item = Proposal> {
        let all = self.commands.into_iter().zip(self.callers);
        all.filter_map(|(command, caller)| {
            let kind = command.kind?;
            Some(Proposal { bytes: kind.encoded_len(), kind, caller })
        })
    }

    /// Takes note that nobody knows what became of them.
    fn note_unclear(&mut self) {
        self.callers.iter_mut().for_each(|caller| caller.unclear = true);
    }

    /// Answers those of which the leader has said what became of them; those that may be taken later stay, and those
    /// that may have been taken before.
    fn answer_some(&mut self, answers: Vec<Result<Answer, Error>>) {
        let all = std::mem::take(&mut self.commands).into_iter().zip(std::mem::take(&mut self.callers));
        for ((command, caller), answer) in all.zip(answers) {
            match answer {
                Err(refusal) if caller.unclear || forward::passes(&refusal) => {
                    // It may have been in the log when its leader ceased to be one.
                    let unclear = caller.unclear || matches!(refusal, Error::NotLeader);
                    let refused = Some(refusal).filter(|refusal| !matches!(refusal, Error::NotLeader));
                    self.commands.push(command);
                    self.callers.push(Caller { refused, unclear, ..caller });
                }
                answer => caller.answer(answer),
            }
        }
    }

    fn refuse(self, why: impl Fn() -> Error) {
        self.callers.into_iter().for_each(|caller| caller.answer(Err(why())));
    }

    /// Gives up those that have waited for too long: for what the leader said, if it said something and they cannot
    /// have taken effect before. True if others are left.
    fn refuse_expired(&mut self, why: impl Fn() -> Error) -> bool {
        let now = Instant::now();
        self.refuse_some(|caller| caller.is_expired(now), why)
    }

    /// Sends back what another node has passed on: it asks whoever leads. True if others are left.
    fn refuse_forwarded(&mut self) -> bool {
        self.refuse_some(|caller| matches!(caller.origin, Origin::Forwarded(_)), || Error::NotLeader)
    }

    /// Leaves what one node may send to another: what its own clients asked for. What this node proposed while it led is
    /// the next leader's business, which would refuse all of the message for it. True if something is left.
    fn keep_clients(&mut self) -> bool {
        self.refuse_some(|caller| !matches!(caller.origin, Origin::Client(_)), || Error::NotLeader)
    }

    fn refuse_some(&mut self, which: impl Fn(&Caller) -> bool, why: impl Fn() -> Error) -> bool {
        if self.callers.iter().any(&which) {
            let all = std::mem::take(&mut self.commands).into_iter().zip(std::mem::take(&mut self.callers));
            let (refused, left): (Vec<_>, Vec<_>) = all.partition(|(_, caller)| which(caller));
            (self.commands, self.callers) = left.into_iter().unzip();
            for (_, mut caller) in refused {
                let said = caller.refused.take().filter(|_| !caller.unclear);
                caller.answer(Err(said.unwrap_or_else(&why)));
            }
        }
        !self.callers.is_empty()
    }

    /// When the last of the callers gives up.
    fn deadline(&self) -> Instant {
        self.callers.iter().map(|caller| caller.deadline).max().unwrap_or_else(Instant::now)
    }
}

/// What every flight needs.
pub(super) struct Ground<R: Runtime> {
    pub(super) replica: Replica<R>,
    pub(super) outbound: Outbound<R>,
    /// Of the coalescer, for what a leader does not take just now. It ends when nobody holds the node.
    pub(super) queue: mpsc::WeakSender<Proposal>,
    /// Closed while leadership is handed over: what comes meanwhile goes to the next leader.
    pub(super) open: watch::Receiver<bool>,
    /// How long writes were held.
    pub(super) write_gap: Arc<WriteGap>,
    pub(super) requests: Requests,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) failure: Failure,
}

/// The queue's reader.
pub(super) struct Coalescer<R: Runtime> {
    pub(super) ground: Arc<Ground<R>>,
    pub(super) incoming: mpsc::Receiver<Proposal>,
    /// Came out of the queue, but did not fit the last entry.
    pub(super) carried: Option<Proposal>,
    /// Shared entries that may be under way.
    pub(super) shared: Arc<Semaphore>,
    /// Entries of a single large request that may be under way.
    pub(super) single: Arc<Semaphore>,
}

impl<R: Runtime> Coalescer<R> {
    /// Submits entries until the queue is closed.
    pub(super) async fn run(mut self) {
        while let Some(first) = self.next().await {
            // The slot comes first: while all are taken, more requests gather.
            let slots = if first.is_large() { &self.single } else { &self.shared };
            let Ok(slot) = slots.clone().acquire_owned().await else { return };
            let (mut batch, began) = (self.gather(first), Instant::now());
            let held = self.wait_until_open(batch.deadline()).await;
            if !batch.refuse_expired(|| Error::NoLeader) {
                continue;
            }
            let mut flight = Flight { batch, ground: self.ground.clone(), began, held, slot };
            // Here and not in the task, so that entries keep the order of their requests.
            let placed = flight.place().await;
            R::spawn("flight", &self.ground.failure, flight.land(placed));
        }
    }

    /// True if it had to wait.
    async fn wait_until_open(&self, deadline: Instant) -> bool {
        let mut open = self.ground.open.clone();
        let closed = !*open.borrow();
        // Past the deadline the batch is refused by the caller.
        drop(timeout_at(deadline, open.wait_for(|open| *open)).await);
        closed
    }

    async fn next(&mut self) -> Option<Proposal> {
        match self.carried.take() {
            Some(proposal) => Some(proposal),
            None => self.incoming.recv().await,
        }
    }

    /// Takes what waits and fits.
    fn gather(&mut self, first: Proposal) -> Batch {
        let origin = self.ground.replica.node_id();
        let mut batch = Batch::default();
        let closed = first.is_large();
        batch.push(first, origin);
        while !closed && let Ok(proposal) = self.incoming.try_recv() {
            if !batch.has_room_for(&proposal) {
                self.carried = Some(proposal);
                break;
            }
            batch.push(proposal, origin);
        }
        batch
    }
}

/// An entry under way.
struct Flight<R: Runtime> {
    batch: Batch,
    ground: Arc<Ground<R>>,
    began: Instant,
    /// A change of leader was in its way.
    held: bool,
    slot: OwnedSemaphorePermit,
}

/// Where an entry went.
enum Placed<R: Runtime> {
    /// Into this node's log.
    Here(Submitted<R>),
    /// Another node leads: the commands are to be sent there.
    Elsewhere(NodeId),
}

impl<R: Runtime> Flight<R> {
    /// Into the log, if this node may lead. What was passed on to a node that does not is sent back.
    async fn place(&mut self) -> Result<Placed<R>, Refusal> {
        let Ground { replica, outbound, requests, clock, .. } = &*self.ground;
        self.batch.settle(requests.settled());
        self.batch.callers.iter_mut().for_each(|caller| caller.refused = None);
        match outbound.leader_elsewhere() {
            Some(leader) => Ok(Placed::Elsewhere(leader)),
            None => replica.submit(self.batch.encode(clock.now_nanos())).await.map(Placed::Here),
        }
    }

    /// Waits for the answers. While nobody leads, places the commands again, under the same identities: a request that
    /// took effect although its leader vanished is answered from memory.
    async fn land(mut self, mut placed: Result<Placed<R>, Refusal>) {
        loop {
            let answers = match placed {
                Ok(Placed::Here(submitted)) => self.hear(submitted).await,
                Ok(Placed::Elsewhere(leader)) => self.forward(leader).await,
                Err(refusal) => Err(refusal),
            };
            match answers {
                Ok(answers) => return self.answer(answers),
                Err(Refusal::Stopped) => return self.batch.refuse(|| super::stopped(&self.ground.failure)),
                Err(Refusal::Busy) => return self.put_back().await,
                Err(Refusal::Unknown) => self.batch.note_unclear(),
                Err(Refusal::NotLeader { .. }) => {}
            }
            if !self.batch.refuse_forwarded() {
                return;
            }
            self.held = true;
            let mut role = self.ground.replica.role().clone();
            role.mark_unchanged();
            if let Ok(Err(_)) = timeout(RETRY, role.changed()).await {
                // Nobody tells the role any more: the replica has stopped, and to ask again would go round in circles.
                return self.batch.refuse(|| super::stopped(&self.ground.failure));
            }
            if !self.batch.refuse_expired(|| Error::NoLeader) {
                return;
            }
            placed = self.place().await;
        }
    }

    /// What the leader does not take just now waits without a slot, for it may take others, and then for another entry.
    async fn put_back(self) {
        let Self { mut batch, ground, began: _, held: _, slot } = self;
        drop(slot);
        sleep(RETRY_BUSY).await;
        if !batch.refuse_expired(|| Error::NoLeader) {
            return;
        }
        for proposal in batch.into_proposals() {
            // Whoever waits for one that is dropped hears that the node has stopped.
            let Some(queue) = ground.queue.upgrade() else { return };
            drop(queue.send(proposal).await);
        }
    }

    /// A leader that is cut off from the others does not hear that it leads no longer: its callers are not to wait for
    /// it for ever. A lone node's disk may take its time.
    async fn hear(&mut self, submitted: Submitted<R>) -> Result<Vec<Answer>, Refusal> {
        if self.ground.replica.role().borrow().alone {
            return submitted.answers().await;
        }
        timeout_at(self.batch.deadline(), submitted.answers()).await.unwrap_or(Err(Refusal::Unknown))
    }

    /// Sends the commands to the node that leads. Returns no answers, for those that came were passed on already; what
    /// the leader did not take is left, and it is an error that something is.
    async fn forward(&mut self, leader: NodeId) -> Result<Vec<Answer>, Refusal> {
        if !self.batch.keep_clients() {
            return Ok(Vec::new());
        }
        let patience = self.batch.deadline().saturating_duration_since(Instant::now());
        let request = ForwardRequest {
            commands: self.batch.commands.clone(),
            patience_ms: u32::try_from(patience.as_millis()).unwrap_or(u32::MAX),
        };
        let asked = self.ground.outbound.ask_leader(leader, peer_request::Kind::Forward(request), patience);
        match asked.await? {
            peer_reply::Kind::Forward(reply) if reply.answers.len() == self.batch.callers.len() => {
                self.pass_on(reply.answers.into_iter().map(forward::decode).collect())
            }
            _ => Err(Refusal::Unknown),
        }
    }

    fn pass_on(&mut self, answers: Vec<Result<Answer, Error>>) -> Result<Vec<Answer>, Refusal> {
        if answers.iter().any(Result::is_ok) {
            self.note_gap();
        }
        self.batch.answer_some(answers);
        match self.batch.callers.as_slice() {
            [] => Ok(Vec::new()),
            left if left.iter().all(|caller| caller.refused.is_some()) => Err(Refusal::Busy),
            _ => Err(Refusal::NotLeader { leader: None }),
        }
    }

    /// Before the answers leave: whoever has one may look at the gap next.
    fn note_gap(&self) {
        if self.held {
            let term = self.ground.replica.role().borrow().term;
            self.ground.write_gap.note(term, self.began.elapsed());
        }
    }

    fn answer(self, answers: Vec<Answer>) {
        if !answers.is_empty() {
            self.note_gap();
        }
        let (expected, found) = (self.batch.callers.len(), answers.len());
        if expected != found {
            self.ground.failure.report(format_args!("the store gave {found} answers to {expected} commands"));
        }
        self.batch.answer(answers);
    }
}

#[cfg(test)]
mod tests {
    use databroker_proto::internal::{Clear, Sweep};

    use super::*;

    /// A message with a command that no other node takes would be refused as a whole, again and again.
    #[tokio::test]
    async fn only_what_clients_asked_for_is_sent_to_another_node() {
        let (mut batch, requests) = (Batch::default(), Requests::new(1));
        let (clear, sweep) = (Kind::Clear(Clear::default()), Kind::Sweep(Sweep::default()));
        let identity = Identity { origin: 9, request: 1, settled: 1 };
        let mut waiting = Vec::new();
        for (kind, origin) in [
            (sweep, Origin::Leader),
            (clear.clone(), Origin::Client(requests.begin())),
            (clear, Origin::Forwarded(identity)),
        ] {
            let (proposal, answer) = Proposal::new(kind, origin, None, Instant::now());
            batch.push(proposal, 7);
            waiting.push(answer);
        }
        assert!(batch.keep_clients());
        assert_eq!(batch.commands.iter().map(|c| c.identity.map(|it| it.origin)).collect::<Vec<_>>(), [Some(7)]);
        assert!(matches!(waiting.remove(0).await.unwrap(), Err(Error::NotLeader)));
        assert!(matches!(waiting.remove(1).await.unwrap(), Err(Error::NotLeader)));
        assert!(waiting.remove(0).try_recv().is_err(), "the client still waits");
    }

    /// Commands of so many clients, which wait no longer than until now.
    fn of_clients(count: usize) -> (Batch, Vec<oneshot::Receiver<Result<Answer, Error>>>) {
        let (mut batch, requests, mut waiting) = (Batch::default(), Requests::new(1), Vec::new());
        for _ in 0..count {
            let origin = Origin::Client(requests.begin());
            let (proposal, answer) = Proposal::new(Kind::Clear(Clear::default()), origin, None, Instant::now());
            batch.push(proposal, 7);
            waiting.push(answer);
        }
        (batch, waiting)
    }

    /// The leader before may have committed it; the next has no room, say, and does not look into its store.
    #[tokio::test]
    async fn what_may_have_taken_effect_is_not_said_to_be_refused() {
        for all_at_once in [true, false] {
            let (mut batch, mut waiting) = of_clients(3);
            if all_at_once {
                batch.note_unclear();
            } else {
                batch.answer_some((0..3).map(|_| Err(Error::NotLeader)).collect());
            }
            let full = Error::Full(super::super::Full { free: 1 });
            let early = Error::TooEarly { needed: 3, raised: 2 };
            batch.answer_some(vec![Err(full), Err(early), Err(Error::Overloaded)]);
            assert!(waiting.iter_mut().all(|waiting| waiting.try_recv().is_err()), "these still wait");
            assert!(batch.callers.iter().all(|caller| caller.refused.is_some()), "and are not sent again at once");
            let numbers = |batch: &Batch| batch.commands.iter().map(|command| command.identity).collect::<Vec<_>>();
            let (sent, mut again) = (numbers(&batch), Batch::default());
            batch.into_proposals().for_each(|proposal| again.push(proposal, 7));
            assert_eq!(numbers(&again), sent, "each is the same request still");
            assert!(!again.refuse_expired(|| Error::NoLeader));
            for answer in waiting {
                assert!(matches!(answer.await.unwrap(), Err(Error::NoLeader)));
            }
        }
    }

    #[tokio::test]
    async fn each_caller_hears_what_the_leader_said_of_its_own_command_and_the_rest_is_tried_again() {
        let (mut batch, mut waiting) = of_clients(4);
        let sent: Vec<_> = batch.commands.iter().map(|command| command.identity.map(|it| it.request)).collect();
        let full = Error::Full(super::super::Full { free: 1 });
        batch.answer_some(vec![Err(full), Err(Error::Overloaded), Ok(Answer::default()), Err(Error::NotLeader)]);
        let left: Vec<_> = batch.commands.iter().map(|command| command.identity.map(|it| it.request)).collect();
        assert_eq!(left, [sent[1], sent[3]], "and no other command is sent again");
        assert!(matches!(waiting.remove(0).await.unwrap(), Err(Error::Full(_))));
        assert!(waiting.remove(1).await.unwrap().is_ok());
        assert!(waiting.iter_mut().all(|waiting| waiting.try_recv().is_err()), "these still wait");
        assert!(!batch.refuse_expired(|| Error::NoLeader));
        assert!(matches!(waiting.remove(0).await.unwrap(), Err(Error::Overloaded)), "for what the leader said");
        assert!(matches!(waiting.remove(0).await.unwrap(), Err(Error::NoLeader)));
    }
}
