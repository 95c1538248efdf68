//! Several nodes in one process, each with a folder of its own, over a network that only knows who runs.
//!
//! Not here: real processes (`tests/it`), and what a cut network does (`raft::cluster_tests`).

mod absence;
mod clocks;
mod fences;
mod forwarding;
mod founding;
mod handover;
mod recovery;
mod releases;
mod retiring;
mod strangers;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    path::Path,
    sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
};

use databroker_proto::internal::{
    ForwardedAnswer, PeerReply, PeerRequest, Put, SnapshotChunk, SnapshotReply, peer_reply,
};
use futures::{FutureExt as _, future::BoxFuture};
use tokio_stream::wrappers::ReceiverStream;

use super::*;
use crate::{
    raft::{
        Retention, Timers,
        runtime::SystemClock,
        transport::{CallError, Peer, Transport},
    },
    store::{self, command::COMMAND_VERSION},
};

const PATIENCE: Duration = Duration::from_secs(30);

/// The network between them.
#[derive(Default)]
struct Hub {
    /// Who can be reached, by address.
    running: Mutex<BTreeMap<String, Node>>,
    /// Whose calls reach nobody.
    silent: Mutex<BTreeSet<String>>,
    /// The next read index that is told is one that nobody ever reaches.
    lies: AtomicBool,
    /// What becomes of the next answers to commands that were passed on: one is lost, or says this of each of them.
    forwarded: Mutex<VecDeque<Option<ForwardedAnswer>>>,
}

impl Hub {
    fn pass(&self, mut reply: PeerReply) -> Option<PeerReply> {
        if let Some(peer_reply::Kind::ReadIndex(told)) = &mut reply.kind
            && self.lies.swap(false, Relaxed)
        {
            told.index = u64::MAX;
        }
        if let Some(peer_reply::Kind::Forward(told)) = &mut reply.kind
            && let Some(instead) = self.forwarded.lock().pop_front()
        {
            told.answers.fill(instead?);
        }
        Some(reply)
    }
}

struct Line {
    hub: Arc<Hub>,
    from: String,
}

impl Line {
    fn reach(&self, to: &Peer) -> Result<Node, CallError> {
        let unreachable = || CallError::Unreachable { peer: to.member.name.clone(), reason: "it is stopped".into() };
        let node = self.hub.running.lock().get(&to.member.raft_address).cloned();
        node.filter(|_| !self.hub.silent.lock().contains(&self.from)).ok_or_else(unreachable)
    }
}

fn refused(peer: String) -> impl Fn(Refused) -> CallError {
    move |error| CallError::Refused { peer: peer.clone(), reason: error.to_string() }
}

impl Transport for Line {
    fn call(
        &self,
        to: Peer,
        request: PeerRequest,
        patience: Duration,
    ) -> BoxFuture<'static, Result<PeerReply, CallError>> {
        let (node, peer, hub) = (self.reach(&to), to.member.name, self.hub.clone());
        async move {
            let node = node?;
            let timed_out = || CallError::TimedOut { peer: peer.clone() };
            let answer = timeout(patience, node.answer(request)).await.map_err(|_| timed_out())?;
            hub.pass(answer.map_err(refused(peer.clone()))?).ok_or_else(timed_out)
        }
        .boxed()
    }

    fn send_snapshot(
        &self,
        to: Peer,
        chunks: mpsc::Receiver<SnapshotChunk>,
        _: Duration,
    ) -> BoxFuture<'static, Result<SnapshotReply, CallError>> {
        let (node, peer) = (self.reach(&to), to.member.name);
        async move { node?.install(ReceiverStream::new(chunks)).await.map_err(refused(peer)) }.boxed()
    }
}

/// Three places for nodes, "a", "b" and "c", and a fourth.
struct Cluster {
    hub: Arc<Hub>,
    folder: tempfile::TempDir,
    running: BTreeMap<&'static str, Node>,
    clocks: BTreeMap<&'static str, Arc<Shifted>>,
}

/// The machine's clock, but for so many milliseconds.
#[derive(Default)]
struct Shifted(AtomicU64);

impl Clock for Shifted {
    fn now_nanos(&self) -> u64 {
        SystemClock.now_nanos() + self.0.load(Relaxed) * 1_000_000
    }
}

fn shaped(name: &str) -> ShapeMember {
    ShapeMember { name: name.into(), raft_address: format!("{name}:1"), ..Default::default() }
}

fn put(id: &str) -> Kind {
    use prost::Message as _;
    let record = databroker_proto::Record { r#type: "t".into(), id: id.into(), ..Default::default() };
    Kind::Put(Put { records: vec![record.encode_to_vec().into()] })
}

impl Cluster {
    /// Nobody runs yet.
    fn of_none() -> Self {
        let (hub, folder) = (Arc::default(), tempfile::tempdir().unwrap());
        Self { hub, folder, running: BTreeMap::new(), clocks: BTreeMap::new() }
    }

    /// Three voters of these builds.
    async fn of(builds: [u32; 3]) -> Self {
        let mut cluster = Self::of_none();
        for (name, knows) in ["a", "b", "c"].into_iter().zip(builds) {
            cluster.start(name, knows).await.unwrap();
        }
        cluster.running["a"].init(None).await.unwrap();
        cluster.eventually("there are three voters", |nodes| nodes.iter().all(|node| node.status().voters == 3)).await;
        cluster
    }

    fn options(&self, name: &str, knows: u32) -> Options {
        let folder: &Path = self.folder.path();
        let ShapeMember { name, raft_address, grpc_address } = shaped(name);
        Options {
            bootstrap: Bootstrap::Explicit,
            timers: Timers { heartbeat_ms: 60, election_ms_min: 300, election_ms_max: 500 },
            // Whoever is away for a hundred entries gets a store.
            retention: Retention { sync_entries: 20, keep_entries: 5, hold_bytes: 0, ..Retention::default() },
            store: store::Options { knows, ..store::Options::default() },
            transport: Arc::new(Line { hub: self.hub.clone(), from: raft_address.clone() }),
            configured: ["a", "b", "c"].map(shaped).into(),
            member: Member { name: name.clone(), raft_address, grpc_address },
            ..Options::new(Storage::Folder(folder.join(name)))
        }
    }

    async fn start(&mut self, name: &'static str, knows: u32) -> Result<Node, OpenError> {
        self.start_at(&format!("{name}:1"), name, knows).await
    }

    /// Where its peers reach it, whatever is configured.
    async fn start_at(&mut self, address: &str, name: &'static str, knows: u32) -> Result<Node, OpenError> {
        let clock = self.clocks.entry(name).or_default().clone();
        let options = Options { clock, ..self.options(name, knows) };
        let options = Options {
            transport: Arc::new(Line { hub: self.hub.clone(), from: address.into() }),
            member: Member { raft_address: address.into(), ..options.member.clone() },
            ..options
        };
        let open = async || loop {
            match Node::open(options.clone()).await {
                // Whoever still talks to the node that has stopped here holds its disk for a moment.
                Err(OpenError::Engine { source: engine::Error::Locked { .. }, .. }) => {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                opened => return opened,
            }
        };
        let node = timeout(PATIENCE, open()).await.expect("the disk of a stopped node is free")?;
        self.hub.running.lock().insert(address.into(), node.clone());
        self.running.insert(name, node.clone());
        Ok(node)
    }

    async fn stop(&mut self, name: &'static str) {
        self.hub.running.lock().remove(&format!("{name}:1"));
        self.running.remove(name).unwrap().shutdown().await;
    }

    fn leader(&self) -> Option<&Node> {
        self.running.values().find(|node| node.role().leads)
    }

    fn follower(&self) -> &Node {
        self.running.values().find(|node| !node.role().leads).unwrap()
    }

    async fn eventually(&self, what: &str, holds: impl Fn(&[&Node]) -> bool) {
        let polling = async {
            while !holds(&self.running.values().collect::<Vec<_>>()) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        assert!(timeout(PATIENCE, polling).await.is_ok(), "never happened: {what}");
    }

    async fn all_equal(&self) {
        self.eventually("all stores are equal", |nodes| {
            let hashes: Vec<_> = nodes.iter().map(|node| node.reader().snapshot().hash().unwrap()).collect();
            hashes.windows(2).all(|two| two[0] == two[1])
        })
        .await;
    }

    async fn end(mut self) {
        for name in self.running.keys().copied().collect::<Vec<_>>() {
            self.stop(name).await;
        }
    }
}
