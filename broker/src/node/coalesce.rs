//! Turns requests into log entries: several that wait share one, and only a few entries are under way at a time, so
//! that requests gather while the disk is busy. Each stays a command of its own, with its own answer.
//!
//! ```text
//!   propose ─▶ queue ─▶ Entries ─▶ submit in order ─▶ Flight: answers, or again until the hold time is over
//! ```

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use databroker_proto::internal::{Command, Entry, Identity};
use prost::Message as _;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot},
    time::{Instant, timeout},
};

use super::{
    Error,
    tracker::{OpenRequest, Requests},
};
use crate::{
    raft::{
        Refusal, Replica, Submitted,
        runtime::{Clock, Failure, Runtime},
    },
    store::command::{Answer, COMMAND_VERSION, Kind},
};

/// Commands that share an entry at most: beyond this the sync is cheap per command, and all wait for the last.
const COMMANDS_MAX: usize = 256;
/// Bytes that share an entry at most.
const ENTRY_BYTES_MAX: usize = 1 << 20;
/// A request with more records than this gets an entry of its own: small ones would wait for it.
const RECORDS_SHARED_MAX: usize = 16;
/// How long to wait for a change of leadership before a refused entry is submitted again all the same: a new leader
/// refuses until its first quorum has answered, and nothing tells when.
const RETRY: Duration = Duration::from_millis(10);

/// A request on its way into the log.
pub(super) struct Proposal {
    kind: Kind,
    bytes: usize,
    caller: Caller,
}

/// Who waits for an answer.
struct Caller {
    reply: oneshot::Sender<Result<Answer, Error>>,
    /// Absent for the leader's own commands, which may take effect twice.
    request: Option<OpenRequest>,
    deadline: Instant,
    /// What the request takes of the bounds on all requests.
    _room: Option<Room>,
}

/// One of the requests, and so many of the bytes, that may be under way.
pub(super) type Room = (OwnedSemaphorePermit, OwnedSemaphorePermit);

impl Proposal {
    pub(super) fn new(
        kind: Kind,
        request: Option<OpenRequest>,
        room: Option<Room>,
        deadline: Instant,
    ) -> (Self, oneshot::Receiver<Result<Answer, Error>>) {
        let (reply, answer) = oneshot::channel();
        let caller = Caller { reply, request, deadline, _room: room };
        (Self { bytes: kind.encoded_len(), kind, caller }, answer)
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
        let Self { reply, request, deadline: _, _room } = self;
        drop(request);
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

    fn push(&mut self, proposal: Proposal, origin: u64) {
        let Proposal { kind, bytes, caller } = proposal;
        let identity = caller.request.as_ref().map(|open| Identity { origin, request: open.number(), settled: 0 });
        self.commands.push(Command { identity, kind: Some(kind) });
        self.callers.push(caller);
        self.bytes += bytes;
    }

    /// The entry as it stands in the log. Called for every submission: time and settled requests have moved on.
    fn encode(&mut self, now_nanos: u64, settled: u64) -> Bytes {
        self.commands.iter_mut().filter_map(|command| command.identity.as_mut()).for_each(|id| id.settled = settled);
        let commands = std::mem::take(&mut self.commands);
        let entry = Entry { command_version: COMMAND_VERSION, now_nanos, commands };
        let bytes = entry.encode_to_vec().into();
        self.commands = entry.commands;
        bytes
    }

    fn answer(self, answers: Vec<Answer>) {
        self.callers.into_iter().zip(answers).for_each(|(caller, answer)| caller.answer(Ok(answer)));
    }

    fn refuse(self, why: impl Fn() -> Error) {
        self.callers.into_iter().for_each(|caller| caller.answer(Err(why())));
    }

    /// Gives up those that have waited for too long; true if others are left.
    fn refuse_expired(&mut self) -> bool {
        let now = Instant::now();
        if self.callers.iter().any(|caller| caller.is_expired(now)) {
            let all = std::mem::take(&mut self.commands).into_iter().zip(std::mem::take(&mut self.callers));
            let (expired, left): (Vec<_>, Vec<_>) = all.partition(|(_, caller)| caller.is_expired(now));
            (self.commands, self.callers) = left.into_iter().unzip();
            expired.into_iter().for_each(|(_, caller)| caller.answer(Err(Error::NoLeader)));
        }
        !self.callers.is_empty()
    }
}

/// What every flight needs.
pub(super) struct Ground<R: Runtime> {
    pub(super) replica: Replica<R>,
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
            let mut batch = self.gather(first);
            if !batch.refuse_expired() {
                continue;
            }
            let mut flight = Flight { batch, ground: self.ground.clone(), _slot: slot };
            // Here and not in the task, so that entries keep the order of their requests.
            let submitted = flight.submit().await;
            R::spawn("flight", &self.ground.failure, flight.land(submitted));
        }
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
    _slot: OwnedSemaphorePermit,
}

impl<R: Runtime> Flight<R> {
    async fn submit(&mut self) -> Result<Submitted<R>, Refusal> {
        let Ground { replica, requests, clock, .. } = &*self.ground;
        replica.submit(self.batch.encode(clock.now_nanos(), requests.settled())).await
    }

    /// Waits for the answers. While nobody leads, submits again, under the same identities: a request that took effect
    /// although its leader vanished is answered from memory.
    async fn land(mut self, mut submitted: Result<Submitted<R>, Refusal>) {
        loop {
            let refusal = match submitted {
                Ok(submitted) => match submitted.answers().await {
                    Ok(answers) => return self.answer(answers),
                    Err(refusal) => refusal,
                },
                Err(refusal) => refusal,
            };
            if refusal == Refusal::Stopped {
                return self.batch.refuse(|| super::stopped(&self.ground.failure));
            }
            let mut role = self.ground.replica.role().clone();
            role.mark_unchanged();
            drop(timeout(RETRY, role.changed()).await);
            if !self.batch.refuse_expired() {
                return;
            }
            submitted = self.submit().await;
        }
    }

    fn answer(self, answers: Vec<Answer>) {
        let (expected, found) = (self.batch.callers.len(), answers.len());
        if expected != found {
            self.ground.failure.report(format_args!("the store gave {found} answers to {expected} commands"));
        }
        self.batch.answer(answers);
    }
}
