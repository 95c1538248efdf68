//! Nodes of two releases in one cluster: one build knows one command more than the other.
//!
//! Not here: real processes (`tests/it`), and what a cut network does (`raft::cluster_tests`).

use std::{collections::BTreeMap, path::Path};

use databroker_proto::internal::{
    PeerReply, PeerRequest, Put, RaiseCommandVersion, SnapshotChunk, SnapshotReply, member_status,
};
use futures::{FutureExt as _, future::BoxFuture};
use tokio_stream::wrappers::ReceiverStream;

use super::*;
use crate::{
    raft::{
        Retention, Timers,
        transport::{CallError, Peer, Transport},
    },
    store::{self, command::COMMAND_VERSION},
};

/// What the two builds know.
const OLD: u32 = COMMAND_VERSION;
const NEW: u32 = COMMAND_VERSION + 1;

const PATIENCE: Duration = Duration::from_secs(30);

/// Who runs, by address.
#[derive(Default)]
struct Hub(Mutex<BTreeMap<String, Node>>);

struct Line(Arc<Hub>);

impl Line {
    fn reach(&self, to: &Peer) -> Result<Node, CallError> {
        let unreachable = || CallError::Unreachable { peer: to.member.name.clone(), reason: "it is stopped".into() };
        self.0.0.lock().get(&to.member.raft_address).cloned().ok_or_else(unreachable)
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
        let (node, peer) = (self.reach(&to), to.member.name);
        async move {
            let node = node?;
            let answer = timeout(patience, node.answer(request)).await;
            answer.map_err(|_| CallError::TimedOut { peer: peer.clone() })?.map_err(refused(peer))
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
}

fn shaped(name: &str) -> ShapeMember {
    ShapeMember { name: name.into(), raft_address: format!("{name}:1"), ..Default::default() }
}

fn put(id: &str) -> Kind {
    use prost::Message as _;
    let record = databroker_proto::Record { r#type: "t".into(), id: id.into(), ..Default::default() };
    Kind::Put(Put { records: vec![record.encode_to_vec().into()] })
}

fn next() -> Kind {
    Kind::SetCheckpoint(command::tests::NEXT)
}

impl Cluster {
    /// Three voters of these builds.
    async fn of(builds: [u32; 3]) -> Self {
        let (hub, folder) = (Arc::default(), tempfile::tempdir().unwrap());
        let mut cluster = Self { hub, folder, running: BTreeMap::new() };
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
            retention: Retention { sync_entries: 20, keep_entries: 5, ..Retention::default() },
            store: store::Options { knows, ..store::Options::default() },
            transport: Arc::new(Line(self.hub.clone())),
            configured: ["a", "b", "c"].map(shaped).into(),
            member: Member { name: name.clone(), raft_address, grpc_address },
            ..Options::new(Storage::Folder(folder.join(name)))
        }
    }

    async fn start(&mut self, name: &'static str, knows: u32) -> Result<Node, OpenError> {
        let node = Node::open(self.options(name, knows)).await?;
        self.hub.0.lock().insert(format!("{name}:1"), node.clone());
        self.running.insert(name, node.clone());
        Ok(node)
    }

    async fn stop(&mut self, name: &'static str) {
        self.hub.0.lock().remove(&format!("{name}:1"));
        self.running.remove(name).unwrap().shutdown().await;
    }

    async fn upgrade(&mut self, name: &'static str) {
        self.running[name].step_down().await;
        self.stop(name).await;
        self.start(name, NEW).await.unwrap();
    }

    fn leader(&self) -> Option<&Node> {
        self.running.values().find(|node| node.role().leads)
    }

    async fn eventually(&self, what: &str, holds: impl Fn(&[&Node]) -> bool) {
        let polling = async {
            while !holds(&self.running.values().collect::<Vec<_>>()) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        assert!(timeout(PATIENCE, polling).await.is_ok(), "never happened: {what}");
    }

    async fn raised_to(&self, version: u32) {
        let raised = |node: &&Node| node.reader().snapshot().cluster().command_version == version;
        self.eventually("all know that the version is raised", |nodes| nodes.iter().all(raised)).await;
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mixed_releases_work_and_the_new_command_waits_until_all_nodes_know_it() {
    let mut cluster = Cluster::of([OLD, OLD, NEW]).await;
    // Whoever leads, the new one too.
    for leader in ["c", "a"] {
        if !cluster.running[leader].role().leads {
            cluster.leader().unwrap().hand_over(Some(leader)).await.unwrap();
        }
        let leads = cluster.running[leader].clone();
        cluster.eventually("all were heard", |_| leads.observe().understood_by_all() == Some(OLD)).await;
        for (name, node) in &cluster.running {
            node.propose(put(&format!("{leader}{name}"))).await.unwrap();
            let refused = node.propose(next()).await;
            assert!(matches!(refused, Err(Error::TooEarly { needed: NEW, raised: OLD })), "{name}: {refused:?}");
        }
    }
    cluster.all_equal().await;
    cluster.upgrade("a").await;
    cluster.upgrade("b").await;
    cluster.raised_to(NEW).await;
    for node in cluster.running.values() {
        node.propose(next()).await.unwrap();
    }
    cluster.all_equal().await;

    // One that knows less is not taken in.
    cluster.start("d", OLD).await.unwrap();
    let leader = cluster.leader().unwrap().clone();
    let members = ["a", "b", "c", "d"].map(shaped).into();
    assert!(leader.set_members(1, members).await.unwrap().accepted);
    let text = format!("waiting for d to be upgraded: it knows command version {OLD}, the cluster uses {NEW}");
    cluster.eventually("the leader says why", |_| leader.cluster_status().next_step == text).await;
    assert_eq!(leader.status().voters, 3);
    cluster.stop("d").await;
    cluster.start("d", NEW).await.unwrap();
    cluster.eventually("it votes", |_| leader.status().voters == 4).await;
    assert!(leader.cluster_status().members.iter().all(|member| member.role() != member_status::Role::Waiting));
    cluster.end().await;
}

/// A node of the old release that was away, and comes back to a log that is ahead of what it knows; or, with so much
/// written meanwhile, to a store.
async fn comes_back_too_old(writes: usize, expected: &str) {
    let mut cluster = Cluster::of([OLD, OLD, OLD]).await;
    cluster.upgrade("a").await;
    cluster.upgrade("b").await;
    cluster.all_equal().await;
    cluster.running["c"].step_down().await;
    cluster.stop("c").await;
    cluster.eventually("one of the others leads", |nodes| nodes.iter().any(|node| node.role().leads)).await;
    // As if it had last been heard as a new one, and was set back since.
    let leader = cluster.leader().unwrap().clone();
    leader.propose_own(Kind::RaiseCommandVersion(RaiseCommandVersion { version: NEW })).await.unwrap();
    leader.propose(next()).await.unwrap();
    for index in 0..writes {
        leader.propose(put(&index.to_string())).await.unwrap();
    }
    let old = cluster.start("c", OLD).await.unwrap();
    let reason = timeout(PATIENCE, old.failed()).await.unwrap();
    for part in [expected, "needs command version 2", "knows 1", "upgrade this node"] {
        assert!(reason.contains(part), "{reason}");
    }
    assert!(!reason.contains("damage"), "{reason}");
    drop(old);
    cluster.stop("c").await;
    // The same disk, and the newer build.
    cluster.start("c", NEW).await.unwrap();
    leader.propose(put("last")).await.unwrap();
    cluster.all_equal().await;
    // And never back again.
    cluster.stop("c").await;
    let refused = cluster.start("c", OLD).await.err().unwrap();
    assert!(matches!(refused, OpenError::Store(store::Error::TooNew(_))), "{refused}");
    assert!(refused.to_string().contains("upgrade this node"), "{refused}");
    cluster.start("c", NEW).await.unwrap();
    cluster.all_equal().await;
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_meets_a_command_it_does_not_know_stops_and_its_disk_is_good_for_a_newer_build() {
    comes_back_too_old(0, "cannot apply the log entry at index").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn so_does_one_that_is_sent_a_store_of_a_cluster_that_is_ahead_of_it() {
    comes_back_too_old(150, "the store that arrived is of a cluster of a newer release").await;
}
