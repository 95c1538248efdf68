//! Hosts with their disks, and the real node that runs on each: started, crashed, stopped, wiped.
//!
//! Not here: when (`faults`), and what clients ask (`clients`).

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64},
    },
    time::Duration,
};

use databroker::{
    node::{ChangeLog, Engines, Founding, Node, Parts, Peers, Seeds},
    raft::{
        self, LogOptions, Retention, Timers, Unobserved,
        runtime::{Executor as _, Failure},
        transport::Peer,
    },
    store::{self, Store, engine::Durability},
};
use databroker_proto::internal::ShapeMember;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::{
    auditor,
    disk::Disk,
    network::{Endpoint, Line, Network, member},
    runtime::{Lanes, Process, Simulated, SimulatedClock, Slowness, Stalled},
    world::World,
};

/// How long a node holds a request without a leader.
pub const HOLD: Duration = Duration::from_secs(5);

/// Few entries, so that stores are sent and logs purged all the time.
const RETENTION: Retention =
    Retention { sync_entries: 40, sync_bytes: 1 << 20, keep_entries: 10, keep_bytes: 1 << 20, hold_bytes: 2 << 20 };

/// For a record or two a shard, so that some are found, some are not, and some have to go.
const RECORD_CACHE_BYTES: u64 = 32 << 10;

/// The server version of the first history.
pub const FIRST_SERVER_VERSION: u64 = 1000;

pub struct Host {
    pub index: usize,
    pub disk: Mutex<Disk>,
    running: Mutex<Option<Running>>,
    /// When its process died last, and which node that was.
    died: Mutex<Option<(Instant, u64)>>,
    pub skew: Arc<AtomicI64>,
    pub slowness: Slowness,
    pub stalled: Stalled,
}

/// A process from the moment it is started.
#[derive(Clone)]
struct Running {
    process: Arc<Process>,
    lanes: Arc<Lanes>,
    /// Once it is open.
    node: Option<Node<Simulated>>,
}

pub struct Cluster {
    pub world: Arc<World>,
    pub network: Arc<Network>,
    pub hosts: Vec<Host>,
    /// A wiped host gets its old node id again: a mutation.
    pub keeps_ids: bool,
}

/// Every host, whether it is a member or not: as behind a name.
struct AllHosts(usize);

impl Seeds for AllHosts {
    fn look(&self) -> BoxFuture<'_, Vec<Peer>> {
        let peers = (0..self.0).map(|host| Peer { node: 0, member: member(host) }).collect();
        Box::pin(std::future::ready(peers))
    }
}

impl Cluster {
    pub fn new(world: Arc<World>, network: Arc<Network>, hosts: usize, keeps_ids: bool) -> Arc<Self> {
        let host = |index| Host {
            index,
            disk: Mutex::default(),
            running: Mutex::default(),
            died: Mutex::default(),
            skew: Arc::new(AtomicI64::new(0)),
            slowness: Arc::new(AtomicU64::new(1)),
            stalled: Stalled::default(),
        };
        let cluster = Arc::new(Self { world, network, hosts: (0..hosts).map(host).collect(), keeps_ids });
        let judge = Arc::downgrade(&cluster);
        *cluster.network.reshaping.lock() = Some(Box::new(move |_, index, target| {
            if let Some(cluster) = judge.upgrade() {
                cluster.judge_change(index, target);
            }
        }));
        cluster
    }

    /// The first host founds the cluster, and names the others.
    pub async fn found(self: &Arc<Self>, first: &[usize]) {
        let founding = Founding {
            cluster_id: "simulated".into(),
            server_version: std::num::NonZeroU64::new(FIRST_SERVER_VERSION).unwrap(),
        };
        self.start(first[0], Some(founding)).await;
        for host in 0..self.hosts.len() {
            self.start(host, None).await;
        }
        self.reshape(first).await;
    }

    /// Names the voters, as far as the shape has not changed meanwhile.
    pub async fn reshape(self: &Arc<Self>, hosts: &[usize]) -> bool {
        let Some(leader) = self.leader() else { return false };
        let members = hosts.iter().map(|host| {
            let raft::Member { name, raft_address, grpc_address } = member(*host);
            ShapeMember { name, raft_address, grpc_address }
        });
        let members: Vec<_> = members.collect();
        let set = self.call(leader, HOLD, move |node| async move {
            let generation = node.cluster_status().shape_generation;
            node.set_members(generation, members).await
        });
        matches!(set.await, Some(Ok(reply)) if reply.accepted)
    }

    /// Starts a host's process and waits until its node is open, or dead.
    pub async fn start(self: &Arc<Self>, host: usize, founding: Option<Founding>) {
        let it = &self.hosts[host];
        if it.running.lock().is_some() {
            return;
        }
        let process = Arc::new(Process::default());
        let lanes = Arc::new(Lanes::new(self.world.clone(), process.clone(), it.slowness.clone(), it.stalled.clone()));
        *it.running.lock() = Some(Running { process: process.clone(), lanes: lanes.clone(), node: None });
        self.set_aside(host);
        let failure = Failure::default();
        let parts = match self.parts(host, lanes, failure.clone(), founding) {
            Ok(parts) => parts,
            Err(error) => {
                return self.world.violation("R9", format_args!("node-{host} cannot open its store: {error}"));
            }
        };
        let fresh = it.disk.lock().node_id().is_none();
        self.world.note(format_args!("node-{host} starts"));
        let starting = process.spawn(async move { Node::<Simulated>::start(parts).await });
        let node = match starting.await {
            Ok(Ok(node)) => node,
            Ok(Err(error)) => {
                return self.world.violation("R9", format_args!("node-{host} cannot start: {error}"));
            }
            // It crashed while it started.
            Err(_) => return,
        };
        if process.is_dead() {
            return;
        }
        let id = node.status().node_id;
        self.world.note(format_args!("node-{host} is {id:x}"));
        if fresh {
            self.world.judge.lock().is_new(id);
        }
        if let Some(running) = &mut *it.running.lock() {
            running.node = Some(node.clone());
        }
        self.network.connect(host, Endpoint { process: process.clone(), node: node.clone() });
        process.spawn(auditor::watch(self.world.clone(), host, node));
        let cluster = self.clone();
        crate::runtime::spawn(cluster.heed(host, process, failure));
    }

    /// As production does with the data of a node that was removed.
    fn set_aside(&self, host: usize) {
        let mut disk = self.hosts[host].disk.lock();
        if let Ok(Some(node)) = raft::retired(&*disk.log) {
            self.world.note(format_args!("node-{host} sets the data of {node:x} aside"));
            self.world.count("nodes retired");
            *disk = Disk::default();
        }
        if let Some(node) = disk.node_id() {
            self.world.judge.lock().opens(node, disk.vote().0);
        }
    }

    fn parts(
        &self,
        host: usize,
        lanes: Arc<Lanes>,
        failure: Failure,
        founding: Option<Founding>,
    ) -> Result<Parts, store::Error> {
        let it = &self.hosts[host];
        let disk = it.disk.lock();
        let random = self.world.pick(1..u64::MAX);
        let fresh_node_id = if self.keeps_ids { host as u64 + 1 } else { random };
        let replica = raft::Parts {
            log_engine: disk.log.clone(),
            log: LogOptions { durability: Durability::Synced, mark: None, fresh_node_id },
            store: Store::open(
                disk.store(),
                &store::Options { record_cache_bytes_max: RECORD_CACHE_BYTES, ..Default::default() },
            )?,
            shelf: disk.shelf(),
            transport: Arc::new(Line { network: self.network.clone(), from: host }),
            executor: lanes,
            clock: Arc::new(SimulatedClock::new(&self.world, it.skew.clone())),
            observer: Arc::new(Unobserved),
            failure,
            timers: Timers::default(),
            // Some leaders keep the log for followers; the others send them stores.
            retention: Retention {
                hold_bytes: if host.is_multiple_of(2) { RETENTION.hold_bytes } else { 0 },
                ..RETENTION
            },
        };
        Ok(Parts {
            replica,
            engines: Engines { log: disk.log.clone(), store: disk.store() },
            member: member(host),
            founding,
            hold: HOLD,
            max_clock_skew: databroker::node::MAX_CLOCK_SKEW,
            change_log: ChangeLog { keep: Duration::from_secs(3600), bytes_max: 1 << 30 },
            peers: Peers { seeds: Arc::new(AllHosts(self.hosts.len())), ..Peers::default() },
        })
    }

    /// A process that fails for good ends; only a removed node may, and starts again as another.
    fn heed(self: Arc<Self>, host: usize, process: Arc<Process>, failure: Failure) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            let reason = loop {
                // A killed process fails no more, and nobody else ends this wait.
                match tokio::time::timeout(Duration::from_millis(500), failure.wait()).await {
                    Ok(reason) => break reason,
                    Err(_) if process.is_dead() => return,
                    Err(_) => {}
                }
            };
            if process.is_dead() {
                return;
            }
            if !reason.contains("was removed from its cluster") {
                return self.world.violation("R9", format_args!("node-{host} has failed: {reason}"));
            }
            self.crash(host, false);
            self.world.pause(10..300).await;
            self.start(host, None).await;
        })
    }

    /// The process ends now. Without power, what was not synced may go with it.
    pub fn crash(&self, host: usize, power_lost: bool) {
        let it = &self.hosts[host];
        let Some(running) = it.running.lock().take() else { return };
        self.world.note(format_args!("node-{host} dies{}", if power_lost { " without power" } else { "" }));
        running.process.kill();
        self.network.disconnect(host);
        running.lanes.last_words();
        running.lanes.stop();
        let mut disk = it.disk.lock();
        *it.died.lock() = disk.node_id().map(|node| (Instant::now(), node));
        *disk = disk.after_crash(&self.world, power_lost);
    }

    /// As with SIGTERM.
    pub async fn stop(&self, host: usize) {
        let Some(node) = self.node(host) else { return };
        let Some(process) = self.process(host) else { return };
        self.world.note(format_args!("node-{host} is told to stop"));
        let stopping = process.spawn(async move {
            node.step_down().await;
            node.shutdown().await;
        });
        drop(tokio::time::timeout(Duration::from_secs(10), stopping).await);
        if !process.is_dead() {
            self.crash(host, false);
        }
    }

    /// The disk is lost, and with it the node that lived on it.
    pub fn wipe(&self, host: usize) {
        self.crash(host, true);
        self.world.note(format_args!("node-{host} loses its disk"));
        *self.hosts[host].disk.lock() = Disk::default();
    }

    pub fn process(&self, host: usize) -> Option<Arc<Process>> {
        self.hosts[host].running.lock().as_ref().map(|running| running.process.clone())
    }

    pub fn node(&self, host: usize) -> Option<Node<Simulated>> {
        self.hosts[host].running.lock().as_ref()?.node.clone()
    }

    /// The nodes that are open, by host.
    pub fn nodes(&self) -> Vec<(usize, Node<Simulated>)> {
        (0..self.hosts.len()).filter_map(|host| Some((host, self.node(host)?))).collect()
    }

    /// The host whose node leads the newest term.
    pub fn leader(&self) -> Option<usize> {
        let leading = self.nodes().into_iter().map(|(host, node)| (node.status(), host));
        leading.filter(|(status, _)| status.leader).max_by_key(|(status, _)| status.term).map(|(_, host)| host)
    }

    /// Calls a node as a client does: the call is served by the process, and dies with it. None: no answer.
    pub async fn call<T: Send + 'static, F: Future<Output = T> + Send + 'static>(
        &self,
        host: usize,
        patience: Duration,
        ask: impl FnOnce(Node<Simulated>) -> F + Send,
    ) -> Option<T> {
        self.world.pause(0..3).await;
        let (process, node) = (self.process(host)?, self.node(host)?);
        let serving = process.spawn(ask(node));
        let abort = serving.abort_handle();
        let answer = tokio::time::timeout(patience, serving).await;
        if answer.is_err() {
            // The client hangs up.
            abort.abort();
        }
        let answer = answer.ok()?.ok()?;
        self.world.pause(0..2).await;
        Some(answer)
    }

    /// R13, by what is on the disks: a majority of the voters to come has nearly all of the log.
    fn judge_change(&self, index: u64, target: &BTreeSet<u64>) {
        // What the product allows, and something for what was under way while it looked.
        const BEHIND_MAX: u64 = databroker::node::shape::CAUGHT_UP_MAX + 64;
        // For so long nobody can know that a node is gone: the leader goes by answers of the last second.
        const UNNOTICED: Duration = Duration::from_millis(1500);
        let caught_up = self.hosts.iter().filter(|host| {
            let just_died = |(at, node): &(Instant, u64)| at.elapsed() <= UNNOTICED && target.contains(node);
            if host.died.lock().as_ref().is_some_and(just_died) {
                return true;
            }
            let disk = host.disk.lock();
            let is_one = disk.node_id().is_some_and(|node| target.contains(&node));
            is_one && disk.last_index() + BEHIND_MAX >= index
        });
        let (caught_up, needed) = (caught_up.count(), target.len() / 2 + 1);
        if caught_up < needed {
            let what = format!("{caught_up} of {} voters to come are caught up at index {index}", target.len());
            self.world.violation("R13", what);
        }
    }
}
