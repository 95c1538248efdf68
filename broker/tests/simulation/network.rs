//! The network between simulated nodes: messages take time, get lost, come twice, overtake each other; links are cut,
//! in one direction or both.
//!
//! What passes is also evidence: who leads which term, who votes for whom, which requests are tried again. Not here:
//! when links are cut (`faults`).

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use databroker::{
    node::Node,
    raft::{
        Member,
        transport::{CallError, Peer, Transport},
    },
};
use databroker_proto::internal::{
    Membership, PeerReply, PeerRequest, SnapshotChunk, SnapshotReply, append_reply, log_entry, peer_reply,
    peer_request, snapshot_chunk,
};
use futures::{FutureExt as _, future::BoxFuture};
use parking_lot::Mutex;
use tokio::{
    sync::mpsc,
    time::{sleep, timeout},
};
use tokio_stream::wrappers::ReceiverStream;

use crate::{
    runtime::{self, Process, Simulated},
    world::World,
};

/// How long a link that swallows messages goes unnoticed: then the connection counts as broken.
const SILENCE: Duration = Duration::from_millis(1000);

/// A node that can be reached.
#[derive(Clone)]
pub struct Endpoint {
    pub process: Arc<Process>,
    pub node: Node<Simulated>,
}

/// What the network does to messages.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    /// Links that carry nothing, from and to.
    pub cut: BTreeSet<(usize, usize)>,
    /// Whether a cut link says so at once.
    pub refuses: bool,
    /// Requests, and as many answers, that get lost, of a thousand.
    pub lost: u64,
    /// Requests that come twice, of a thousand.
    pub doubled: u64,
    /// How long a message takes at most, in milliseconds.
    pub delay_max: u64,
    /// How long each chunk of a store takes at least, in milliseconds.
    pub chunk_delay: u64,
    /// Transfers of stores in whose middle the receiver dies, of a thousand.
    pub accidents: u64,
    /// A host that does not hear what the leader did with its clients' writes, for as long as this is set.
    pub deaf: Option<usize>,
}

impl Rules {
    /// A good day.
    pub fn calm() -> Self {
        Self { delay_max: 3, ..Self::default() }
    }
}

/// A change of voters that was just sent: who asks whether it was right.
pub type Reshaping = Box<dyn Fn(u64, u64, &BTreeSet<u64>) + Send + Sync>;

pub struct Network {
    world: Arc<World>,
    hosts: Mutex<BTreeMap<usize, Endpoint>>,
    pub rules: Mutex<Rules>,
    /// Hosts that are to die now.
    accidents: mpsc::Sender<usize>,
    /// Told of each joint membership: its term and index, and the voters to come.
    pub reshaping: Mutex<Option<Reshaping>>,
}

/// Accidents that may wait for the fault driver; more are left out.
const ACCIDENTS_MAX: usize = 4;

impl Network {
    pub fn new(world: Arc<World>) -> (Arc<Self>, mpsc::Receiver<usize>) {
        let (accidents, happening) = mpsc::channel(ACCIDENTS_MAX);
        let rules = Mutex::new(Rules::calm());
        let (hosts, reshaping) = (Mutex::default(), Mutex::default());
        (Arc::new(Self { world, hosts, rules, accidents, reshaping }), happening)
    }

    pub fn connect(&self, host: usize, endpoint: Endpoint) {
        self.hosts.lock().insert(host, endpoint);
    }

    pub fn disconnect(&self, host: usize) {
        self.hosts.lock().remove(&host);
    }

    fn delay(&self) -> Duration {
        let most = self.rules.lock().delay_max;
        self.world.millis(0..most + 1)
    }

    fn is_cut(&self, from: usize, to: usize) -> bool {
        self.rules.lock().cut.contains(&(from, to))
    }

    /// Passes a link, or fails to.
    async fn pass(&self, from: usize, to: usize, peer: &str) -> Result<(), CallError> {
        sleep(self.delay()).await;
        let (cut, refuses, lost) = {
            let rules = self.rules.lock();
            (rules.cut.contains(&(from, to)), rules.refuses, rules.lost)
        };
        if !cut && !self.world.chance(lost) {
            return Ok(());
        }
        self.world.count("messages lost");
        if !refuses {
            sleep(SILENCE).await;
        }
        Err(unreachable(peer, "the link is cut"))
    }

    fn endpoint(&self, host: usize, peer: &str) -> Result<Endpoint, CallError> {
        self.hosts.lock().get(&host).cloned().ok_or_else(|| unreachable(peer, "nobody listens"))
    }

    async fn ask(
        self: Arc<Self>,
        (from, to): (usize, usize),
        peer: String,
        request: PeerRequest,
    ) -> Result<PeerReply, CallError> {
        let name = name(&request);
        self.pass(from, to, &peer).await?;
        let endpoint = self.endpoint(to, &peer)?;
        self.world.note(format_args!("{from}>{to} {name}"));
        self.look_at(&request);
        let doubled = self.rules.lock().doubled;
        if self.world.chance(doubled) {
            self.deliver_again(from, to, request.clone());
        }
        let (node, asked) = (endpoint.node, request.clone());
        let answering = endpoint.process.spawn(async move { node.answer(asked).await });
        let answer = answering.await.map_err(|_| unreachable(&peer, "the connection broke"))?;
        if let Ok(reply) = &answer {
            self.look_at_answer(&request, reply);
        }
        match &answer {
            Ok(_) => self.world.note(format_args!("{to}>{from} {name} ok")),
            Err(why) => self.world.note(format_args!("{to}>{from} {name} refused: {why}")),
        }
        if matches!(request.kind, Some(peer_request::Kind::Forward(_))) {
            self.reach_ears(from, &peer).await?;
        }
        self.pass(to, from, &peer).await?;
        answer.map_err(|error| CallError::Refused { peer, reason: error.to_string() })
    }

    /// What came for a deaf host is lost when it hears again.
    async fn reach_ears(&self, host: usize, peer: &str) -> Result<(), CallError> {
        let is_deaf = || self.rules.lock().deaf == Some(host);
        if !is_deaf() {
            return Ok(());
        }
        while is_deaf() {
            sleep(Duration::from_millis(5)).await;
        }
        Err(unreachable(peer, "the answer was lost"))
    }

    fn deliver_again(self: &Arc<Self>, from: usize, to: usize, request: PeerRequest) {
        let network = self.clone();
        runtime::spawn(async move {
            network.world.pause(1..200).await;
            if network.is_cut(from, to) {
                return;
            }
            if let Ok(endpoint) = network.endpoint(to, "") {
                network.world.count("messages doubled");
                drop(endpoint.process.spawn(async move { drop(endpoint.node.answer(request).await) }).await);
            }
        });
    }

    /// What a request that arrives says about its sender.
    fn look_at(&self, request: &PeerRequest) {
        let from = request.envelope.as_ref().map_or(0, |envelope| envelope.from);
        match &request.kind {
            Some(peer_request::Kind::Append(append)) => {
                let term = append.vote.map_or(0, |vote| vote.term);
                self.world.judge.lock().leads(from, term);
                for entry in &append.entries {
                    if let (Some(id), Some(log_entry::Payload::Membership(membership))) = (&entry.id, &entry.payload) {
                        self.look_at_membership(from, id.term, id.index, membership);
                    }
                }
            }
            Some(peer_request::Kind::Forward(forward)) => {
                let mut judge = self.world.judge.lock();
                for identity in forward.commands.iter().filter_map(|command| command.identity) {
                    judge.request(identity.origin, identity.request);
                }
            }
            _ => {}
        }
    }

    fn look_at_membership(&self, from: u64, term: u64, index: u64, membership: &Membership) {
        let [_, target] = membership.voters.as_slice() else { return };
        if self.world.judge.lock().is_new_change(term, index) {
            self.world.count("changes of voters");
            let target = target.nodes.iter().copied().collect();
            self.world.note(format_args!("{from:x} changes the voters to {target:x?}"));
            if let Some(reshaping) = &*self.reshaping.lock() {
                reshaping(from, index, &target);
            }
        }
    }

    /// What an answer commits its sender to.
    fn look_at_answer(&self, request: &PeerRequest, reply: &PeerReply) {
        let mut judge = self.world.judge.lock();
        match (&request.kind, &reply.kind) {
            (Some(peer_request::Kind::Vote(asked)), Some(peer_reply::Kind::Vote(vote))) if vote.granted => {
                let (term, candidate) = asked.vote.map_or((0, 0), |vote| (vote.term, vote.node.unwrap_or(0)));
                judge.voted(reply.from, term, candidate, true);
            }
            (Some(peer_request::Kind::Append(append)), Some(peer_reply::Kind::Append(answer)))
                if matches!(answer.result, Some(append_reply::Result::Success(_))) =>
            {
                judge.voted(reply.from, append.vote.map_or(0, |vote| vote.term), 0, false);
            }
            _ => {}
        }
    }

    async fn carry_store(
        self: Arc<Self>,
        (from, to): (usize, usize),
        peer: String,
        mut chunks: mpsc::Receiver<SnapshotChunk>,
        patience: Duration,
    ) -> Result<SnapshotReply, CallError> {
        let timed_out = || CallError::TimedOut { peer: peer.clone() };
        let endpoint = self.endpoint(to, &peer)?;
        self.world.count("stores sent");
        let (feed, arriving) = mpsc::channel(1);
        let node = endpoint.node;
        let installing = endpoint.process.spawn(async move { node.install(ReceiverStream::new(arriving)).await });
        let accident = self.world.chance(self.rules.lock().accidents);
        while let Some(chunk) = timeout(patience, chunks.recv()).await.map_err(|_| timed_out())? {
            self.pass(from, to, &peer).await?;
            let wait = self.rules.lock().chunk_delay;
            self.world.pause(wait..wait + 3).await;
            self.world.note(format_args!("{from}>{to} chunk"));
            if accident && matches!(chunk.kind, Some(snapshot_chunk::Kind::Rows(_))) && self.world.chance(300) {
                self.world.count("died while a store arrived");
                self.accidents.try_send(to).ok();
            }
            // The receiver went away: why is in its answer.
            if timeout(patience, feed.send(chunk)).await.map_err(|_| timed_out())?.is_err() {
                break;
            }
        }
        drop(feed);
        let answer = timeout(patience, installing).await.map_err(|_| timed_out())?;
        let answer = answer.map_err(|_| unreachable(&peer, "the connection broke"))?;
        self.world.note(format_args!("{to}>{from} store {}", if answer.is_ok() { "ok" } else { "refused" }));
        self.pass(to, from, &peer).await?;
        answer.map_err(|error| CallError::Refused { peer, reason: error.to_string() })
    }
}

fn unreachable(peer: &str, reason: &str) -> CallError {
    CallError::Unreachable { peer: peer.into(), reason: reason.into() }
}

fn name(request: &PeerRequest) -> &'static str {
    match &request.kind {
        Some(peer_request::Kind::Append(append)) if append.entries.is_empty() => "heartbeat",
        Some(peer_request::Kind::Append(_)) => "append",
        Some(peer_request::Kind::Vote(_)) => "vote",
        Some(peer_request::Kind::PreVote(_)) => "pre-vote",
        Some(peer_request::Kind::TransferLeader(_)) => "transfer",
        Some(peer_request::Kind::ReadIndex(_)) => "read index",
        Some(peer_request::Kind::Forward(_)) => "forward",
        Some(peer_request::Kind::Hello(_)) => "hello",
        Some(peer_request::Kind::Retire(_)) => "retire",
        None => "nothing",
    }
}

/// Where a host is reached.
pub fn address(host: usize) -> String {
    format!("host-{host}:5999")
}

/// A host as peers know it.
pub fn member(host: usize) -> Member {
    Member { name: format!("node-{host}"), raft_address: address(host), grpc_address: String::new() }
}

fn host_at(address: &str) -> Option<usize> {
    address.strip_prefix("host-")?.strip_suffix(":5999")?.parse().ok()
}

/// One host's way into the network.
pub struct Line {
    pub network: Arc<Network>,
    pub from: usize,
}

impl Transport for Line {
    fn call(
        &self,
        to: Peer,
        request: PeerRequest,
        patience: Duration,
    ) -> BoxFuture<'static, Result<PeerReply, CallError>> {
        let (network, from) = (self.network.clone(), self.from);
        let peer = to.member.raft_address;
        async move {
            let host = host_at(&peer).ok_or_else(|| unreachable(&peer, "no such host"))?;
            let asked = timeout(patience, network.ask((from, host), peer.clone(), request)).await;
            asked.unwrap_or(Err(CallError::TimedOut { peer }))
        }
        .boxed()
    }

    fn send_snapshot(
        &self,
        to: Peer,
        chunks: mpsc::Receiver<SnapshotChunk>,
        patience: Duration,
    ) -> BoxFuture<'static, Result<SnapshotReply, CallError>> {
        let (network, from) = (self.network.clone(), self.from);
        let peer = to.member.raft_address;
        async move {
            let host = host_at(&peer).ok_or_else(|| unreachable(&peer, "no such host"))?;
            network.carry_store((from, host), peer, chunks, patience).await
        }
        .boxed()
    }
}
