//! One seed from its beginning to its verdict.
//!
//! Not here: what happens in between (`faults`, `clients`).

use std::{
    cell::Cell,
    collections::BTreeMap,
    sync::{Arc, Once},
    time::Duration,
};

use databroker::{mutation::Mutation, store::Progress};
use databroker_proto::internal::member_status::Role;

use crate::{
    auditor,
    clients::Clients,
    cluster::Cluster,
    faults::{Climate, Faults, is_settled},
    judge::{Place, Violation},
    network::Network,
    runtime,
    world::World,
};

/// How soon after the last fault all is well (R11).
const WELL_WITHIN: Duration = Duration::from_secs(3);

/// How soon after that the voters are those of the shape, and removed nodes know that they are.
const SETTLED_WITHIN: Duration = Duration::from_secs(20);

/// What became of a seed.
pub struct Outcome {
    pub seed: u64,
    pub violation: Option<Violation>,
    pub trace_hash: u64,
    pub lines: Vec<String>,
    pub counts: BTreeMap<&'static str, u64>,
    pub virtual_time: Duration,
}

impl Outcome {
    pub fn print(&self) {
        self.lines.iter().for_each(|line| println!("    {line}"));
        match &self.violation {
            Some(violation) => println!("seed {} breaks {violation}", self.seed),
            None => println!("seed {} breaks nothing: {:?}", self.seed, self.counts),
        }
        println!("  again with: SIMULATION_SEED={} e2e/test simulation", self.seed);
    }
}

thread_local! {
    /// A world is under way: what panics in it is judged, not printed.
    static IN_WORLD: Cell<bool> = const { Cell::new(false) };
}

/// Panics of other threads are printed as ever.
fn keep_quiet() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let loud = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if !IN_WORLD.get() || std::env::var_os("SIMULATION_SEED").is_some() {
                loud(panic);
            }
        }));
    });
}

/// Runs a seed.
pub fn run(seed: u64) -> Outcome {
    run_as(seed, None, |_| {})
}

/// Runs a seed with a rule broken, in a climate that was changed.
pub fn run_as(seed: u64, mutation: Option<Mutation>, change: impl FnOnce(&mut Climate)) -> Outcome {
    keep_quiet();
    IN_WORLD.set(true);
    databroker::mutation::set(mutation);
    let keeps_ids = mutation == Some(Mutation::WipedKeepsId);
    let outcome = runtime::run(seed, async move {
        let world = Arc::new(World::new(seed));
        let mut climate = Climate::of(&world);
        // Not by dice: seeds that were known before there was a registry are what they were.
        climate.reports = seed % 8 >= 6;
        change(&mut climate);
        live(&world, climate, keeps_ids).await;
        let mut counts = world.counts();
        let mut judge = world.judge.lock();
        counts.insert("writes acknowledged", judge.acknowledged_count);
        counts.insert("terms with a leader", judge.elections() as u64);
        counts.insert("requests tried again", judge.retried);
        Outcome {
            seed,
            violation: judge.first.take(),
            trace_hash: world.trace_hash(),
            lines: world.last_lines(),
            counts,
            virtual_time: world.time(),
        }
    });
    IN_WORLD.set(false);
    outcome
}

async fn live(world: &Arc<World>, climate: Climate, keeps_ids: bool) {
    world.note(format_args!("{climate:?}"));
    let (network, accidents) = Network::new(world.clone());
    let cluster = Cluster::new(world.clone(), network, climate.hosts, keeps_ids);
    let voters: Vec<usize> = (0..climate.voters).collect();
    cluster.found(if climate.grows { &voters[..1] } else { &voters }).await;
    let clients = Clients::start(&cluster, &climate);
    if climate.grows {
        world.pause(500..4000).await;
        cluster.reshape(&voters).await;
    } else {
        world.pause(500..1500).await;
    }
    Faults::run(&cluster, &clients, climate, accidents).await;
    clients.stop();
    if let Some(place) = is_well(world, &cluster, &clients).await {
        settle(world, &cluster).await;
        judge_history(world, &cluster, place);
    }
    for host in 0..cluster.hosts.len() {
        cluster.crash(host, false);
    }
}

/// R11: waits until all is well, which is soon. Where the history ends.
async fn is_well(world: &World, cluster: &Cluster, clients: &Clients) -> Option<Place> {
    let (since, mut last, mut ill) = (world.time(), None, String::new());
    for attempt in 0.. {
        if world.is_over() {
            return None;
        }
        let spent = world.time() - since;
        if spent > WELL_WITHIN {
            world.violation("R11", format_args!("{} ms after the last fault: {ill}", spent.as_millis()));
            return None;
        }
        match last {
            None => {
                let writing = tokio::time::timeout(WELL_WITHIN.saturating_sub(spent), clients.write_last(attempt));
                last = writing.await.ok().flatten();
                ill = "nothing can be written".into();
            }
            Some(place) => match illness(cluster, clients, place) {
                None => return Some(place),
                Some(what) => ill = what,
            },
        }
        world.pause(10..30).await;
    }
    None
}

/// What is not well yet.
fn illness(cluster: &Cluster, clients: &Clients, place: Place) -> Option<String> {
    let nodes = cluster.nodes();
    let leaders = nodes.iter().filter(|(_, node)| node.status().leader).count();
    if leaders != 1 {
        return Some(format!("{leaders} nodes lead"));
    }
    let leader = cluster.node(cluster.leader()?)?;
    let stands = leader.reader().progress();
    let members = leader.cluster_status().members;
    for member in members.iter().filter(|member| Role::try_from(member.role) != Ok(Role::Waiting)) {
        let Some((_, node)) = nodes.iter().find(|(_, node)| node.status().node_id == member.node) else { continue };
        let progress: Progress = node.reader().progress();
        if progress != stands {
            return Some(format!("{} is at {:?}, the leader at {:?}", member.name, progress.applied, stands.applied));
        }
    }
    let streams = clients.streams.lock();
    let behind = streams.iter().find(|(_, at)| **at < place);
    behind.map(|(stream, at)| format!("stream {stream} is at {at:?}, not at {place:?}"))
}

async fn settle(world: &World, cluster: &Cluster) {
    let since = world.time();
    let is_done = || is_settled(cluster) && all_retired(cluster);
    while !world.is_over() && !is_done() {
        if world.time() - since > SETTLED_WITHIN {
            let status = cluster.leader().and_then(|leader| cluster.node(leader)).map(|node| node.cluster_status());
            let rule = if is_settled(cluster) { "R15" } else { "R11" };
            return world
                .violation(rule, format_args!("the shape is not reached, or not all removed know it: {status:?}"));
        }
        world.pause(40..60).await;
    }
}

/// Every removed node that still has its disk knows that it is none any longer.
fn all_retired(cluster: &Cluster) -> bool {
    let Some(leader) = cluster.leader().and_then(|leader| cluster.node(leader)) else { return false };
    let there: Vec<u64> = cluster.hosts.iter().filter_map(|host| host.disk.lock().node_id()).collect();
    leader.cluster_status().retired.iter().all(|retired| !there.contains(&retired.node))
}

fn judge_history(world: &World, cluster: &Cluster, (server, _): Place) {
    let nodes = cluster.nodes();
    let Some(leader) = cluster.leader().and_then(|leader| cluster.node(leader)) else { return };
    let snapshot = leader.reader().snapshot();
    let progress = snapshot.progress();
    auditor::look(world, "the leader", &snapshot, &mut (server, 0));
    // Of all that stand where the leader does: R2.
    let equal = nodes.iter().filter(|(_, node)| node.reader().progress().applied == progress.applied);
    for (host, node) in equal {
        if node.reader().snapshot().hash().unwrap() != snapshot.hash().unwrap() {
            world.violation("R2", format_args!("the store of node-{host} is not the leader's"));
        }
    }
    world.judge.lock().verdict((progress.server_version, progress.latest_record_version));
}
