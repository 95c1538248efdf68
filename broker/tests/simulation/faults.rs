//! What happens to a cluster: crashes, lost power, lost disks, cut links, frozen processes, wrong clocks, slow disks,
//! handovers, new shapes. And the end of all that.
//!
//! Never more than a cluster is to survive: a disk is lost only while every other voter has its own, and no two at
//! once.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use databroker_proto::internal::member_status::Role;
use tokio::sync::mpsc;

use crate::{
    clients::{Clients, SKEW_MAX},
    cluster::Cluster,
    network::Rules,
    runtime,
    world::World,
};

/// Faults that may be under way at the same time.
const AT_ONCE: u64 = 3;

/// What a world is like.
#[derive(Clone, Debug)]
pub struct Climate {
    /// Hosts there are.
    pub hosts: usize,
    /// Hosts in the first shape.
    pub voters: usize,
    /// How long faults happen, in milliseconds.
    pub storm: u64,
    /// Longest pause between two faults, in milliseconds.
    pub pause_max: u64,
    /// Whether shapes change and disks are lost.
    pub moves: bool,
    /// Whether the store is cleared.
    pub clears: bool,
    /// Longest pause of a writer, in milliseconds.
    pub writer_pause: u64,
    /// The network on a bad day.
    pub weather: Rules,
    /// Begin with one node, and grow to `voters` when it has a history.
    pub grows: bool,
    /// Whether services report to the registry, and with them what expires.
    pub reports: bool,
}

impl Climate {
    /// Mostly three nodes of four hosts; now and then five, or one that becomes three.
    pub fn of(world: &World) -> Self {
        let five = world.chance(120);
        let weather = Rules {
            lost: [0, 5, 30][world.index(3)],
            doubled: [0, 20][world.index(2)],
            delay_max: [3, 10, 40][world.index(3)],
            chunk_delay: [0, 100][world.index(2)],
            accidents: [0, 300][world.index(2)],
            ..Rules::calm()
        };
        Self {
            hosts: if five { 6 } else { 4 },
            voters: if five { 5 } else { 3 },
            storm: world.pick(6_000..14_000),
            pause_max: [300, 900, 2000][world.index(3)],
            moves: world.chance(600),
            clears: world.chance(100),
            writer_pause: [25, 60, 150][world.index(3)],
            weather,
            grows: world.chance(200),
            reports: false,
        }
    }
}

pub struct Faults {
    world: Arc<World>,
    cluster: Arc<Cluster>,
    climate: Climate,
    under_way: AtomicU64,
}

impl Faults {
    /// Lets things happen for as long as the storm takes.
    pub async fn run(
        cluster: &Arc<Cluster>,
        clients: &Arc<Clients>,
        climate: Climate,
        mut accidents: mpsc::Receiver<usize>,
    ) {
        let (world, cluster) = (cluster.world.clone(), cluster.clone());
        let faults = Arc::new(Self { world: world.clone(), cluster, climate, under_way: AtomicU64::new(0) });
        let (dying, storm) = (faults.clone(), Duration::from_millis(faults.climate.storm));
        let accidents = runtime::spawn(async move {
            while let Some(host) = accidents.recv().await {
                runtime::spawn(dying.clone().crash(host, true));
            }
        });
        let until = world.time() + storm;
        let calm = faults.cluster.network.rules.lock().clone();
        *faults.cluster.network.rules.lock() = Rules { cut: calm.cut, ..faults.climate.weather.clone() };
        while world.time() < until && !world.is_over() {
            world.pause(20..faults.climate.pause_max).await;
            if faults.under_way.load(Relaxed) < AT_ONCE {
                faults.under_way.fetch_add(1, Relaxed);
                let (faults, clients) = (faults.clone(), clients.clone());
                runtime::spawn(async move {
                    faults.clone().one(&clients).await;
                    faults.under_way.fetch_sub(1, Relaxed);
                });
            }
        }
        accidents.abort();
        faults.end().await;
    }

    fn host(&self) -> usize {
        let leader = self.cluster.leader();
        match leader {
            Some(leader) if self.world.chance(400) => leader,
            _ => self.world.index(self.cluster.hosts.len()),
        }
    }

    async fn one(self: Arc<Self>, clients: &Arc<Clients>) {
        let power_lost = self.world.chance(600);
        match self.world.pick(0..100) {
            0..14 => self.clone().crash(self.host(), power_lost).await,
            14..22 => self.crash_after_answer(clients).await,
            22..30 => self.crash_all(power_lost).await,
            30..44 => self.cut_off(self.host()).await,
            44..50 => self.cut_link().await,
            50..60 => self.freeze(self.host()).await,
            60..66 => self.hand_over().await,
            66..71 => self.stop(self.host()).await,
            71..76 => self.slow_disk(self.host()).await,
            76..80 => self.set_clock(self.host()),
            80..90 if self.climate.moves => self.wipe(self.host()).await,
            90..100 if self.climate.moves => self.reshape().await,
            _ => self.storm().await,
        }
    }

    fn begins(&self, what: &'static str) {
        self.world.count(what);
        self.world.note(format_args!("fault: {what}"));
    }

    async fn crash(self: Arc<Self>, host: usize, power_lost: bool) {
        self.begins(if power_lost { "power lost" } else { "killed" });
        self.cluster.crash(host, power_lost);
        self.restart(host).await;
    }

    async fn restart(&self, host: usize) {
        if self.world.chance(300) {
            self.world.pause(500..4000).await;
        }
        self.world.pause(10..600).await;
        self.cluster.start(host, None).await;
    }

    /// The moment in which a promise that was not kept yet is lost.
    async fn crash_after_answer(&self, clients: &Arc<Clients>) {
        self.begins("power lost after an answer");
        let seen = |world: &World| world.judge.lock().acknowledged_count;
        let before = seen(&self.world);
        for _ in 0..200 {
            if seen(&self.world) > before {
                break;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let all = self.world.chance(500);
        let leader = clients.cluster.leader();
        let hosts: Vec<usize> = match leader {
            Some(leader) if !all => vec![leader],
            _ => (0..self.cluster.hosts.len()).collect(),
        };
        hosts.iter().for_each(|host| self.cluster.crash(*host, true));
        for host in hosts {
            self.restart_later(host);
        }
    }

    fn restart_later(&self, host: usize) {
        let (world, cluster) = (self.world.clone(), self.cluster.clone());
        runtime::spawn(async move {
            world.pause(10..800).await;
            cluster.start(host, None).await;
        });
    }

    async fn crash_all(&self, power_lost: bool) {
        self.begins("all crashed");
        for host in 0..self.cluster.hosts.len() {
            self.cluster.crash(host, power_lost);
            self.restart_later(host);
        }
    }

    async fn cut_off(&self, host: usize) {
        self.begins("cut off");
        let others: Vec<usize> = (0..self.cluster.hosts.len()).filter(|other| *other != host).collect();
        let (to, from) = [(true, true), (true, false), (false, true)][self.world.index(3)];
        let out = others.iter().filter(|_| to).map(|other| (host, *other));
        let back = others.iter().filter(|_| from).map(|other| (*other, host));
        self.cut(out.chain(back).collect()).await;
    }

    async fn cut_link(&self) {
        self.begins("link cut");
        let (one, other) = (self.host(), self.host());
        self.cut(BTreeSet::from([(one, other), (other, one)])).await;
    }

    async fn cut(&self, links: BTreeSet<(usize, usize)>) {
        {
            let mut rules = self.cluster.network.rules.lock();
            rules.refuses = self.world.chance(500);
            rules.cut.extend(&links);
        }
        self.world.pause(100..3500).await;
        self.cluster.network.rules.lock().cut.retain(|link| !links.contains(link));
    }

    async fn freeze(&self, host: usize) {
        self.begins("frozen");
        let Some(process) = self.cluster.process(host) else { return };
        process.freeze();
        self.world.pause(50..3000).await;
        process.thaw();
    }

    async fn hand_over(&self) {
        self.begins("handover");
        let Some(leader) = self.cluster.leader() else { return };
        let handed =
            self.cluster.call(leader, Duration::from_secs(6), |node| async move { node.hand_over(None).await });
        let handed = handed.await;
        self.world.note(format_args!("handed over: {handed:?}"));
    }

    async fn stop(&self, host: usize) {
        self.begins("stopped");
        self.cluster.stop(host).await;
        self.restart(host).await;
    }

    async fn slow_disk(&self, host: usize) {
        self.begins("slow disk");
        let slowness = self.cluster.hosts[host].slowness.clone();
        slowness.store(self.world.pick(5..25), Relaxed);
        self.world.pause(200..2500).await;
        slowness.store(1, Relaxed);
    }

    fn set_clock(&self, host: usize) {
        self.begins("clock set");
        let most = SKEW_MAX.as_nanos() as u64;
        let skew = self.world.pick(0..2 * most) as i64 - most as i64;
        self.cluster.hosts[host].skew.store(skew, Relaxed);
    }

    /// All links are bad for a while.
    async fn storm(&self) {
        self.begins("bad network");
        let before = {
            let mut rules = self.cluster.network.rules.lock();
            let before = (rules.lost, rules.delay_max);
            (rules.lost, rules.delay_max) = (self.world.pick(50..300), self.world.pick(5..80));
            before
        };
        self.world.pause(300..2500).await;
        let mut rules = self.cluster.network.rules.lock();
        (rules.lost, rules.delay_max) = before;
    }

    /// Only where every voter has its disk, and as many are left as decide.
    async fn wipe(&self, host: usize) {
        if !self.is_settled() || self.voters().len() < 3 {
            return;
        }
        self.begins("disk lost");
        self.cluster.wipe(host);
        self.restart(host).await;
    }

    async fn reshape(&self) {
        if !self.is_settled() {
            return;
        }
        let count = [1, 3, 3, 3, 2, self.climate.voters][self.world.index(6)];
        let mut hosts: Vec<usize> = (0..self.cluster.hosts.len()).collect();
        while hosts.len() > count {
            hosts.remove(self.world.index(hosts.len()));
        }
        self.begins("reshaped");
        let accepted = self.cluster.reshape(&hosts).await;
        self.world.note(format_args!("shape {hosts:?}: {accepted}"));
    }

    /// The voters' node ids, as the leader has them.
    fn voters(&self) -> BTreeSet<u64> {
        voters(&self.cluster).unwrap_or_default()
    }

    fn is_settled(&self) -> bool {
        is_settled(&self.cluster)
    }

    /// Everything is as it should be again.
    async fn end(&self) {
        *self.cluster.network.rules.lock() = Rules::calm();
        for host in &self.cluster.hosts {
            host.slowness.store(1, Relaxed);
            if let Some(process) = self.cluster.process(host.index) {
                process.thaw();
            }
        }
        // Faults that are still under way end first: none of them takes longer.
        for _ in 0..200 {
            if self.under_way.load(Relaxed) == 0 {
                break;
            }
            self.world.pause(50..51).await;
        }
        // Those that began in the meantime restored what was before them.
        *self.cluster.network.rules.lock() = Rules::calm();
        for host in 0..self.cluster.hosts.len() {
            let cluster = self.cluster.clone();
            runtime::spawn(async move { cluster.start(host, None).await });
        }
        self.world.note(format_args!("all faults have ended"));
    }
}

/// The voters' node ids, as the leader has them.
pub fn voters(cluster: &Cluster) -> Option<BTreeSet<u64>> {
    let status = cluster.node(cluster.leader()?)?.cluster_status();
    let votes = |role| matches!(Role::try_from(role), Ok(Role::Leader | Role::Voter));
    Some(status.members.iter().filter(|member| votes(member.role)).map(|member| member.node).collect())
}

/// The voters are those of the shape, each on the disk of its host.
pub fn is_settled(cluster: &Cluster) -> bool {
    let Some(host) = cluster.leader() else { return false };
    let Some(leader) = cluster.node(host) else { return false };
    let status = leader.cluster_status();
    let Some(voters) = voters(cluster) else { return false };
    let disks: BTreeSet<u64> = cluster
        .hosts
        .iter()
        .filter(|host| status.shape.iter().any(|wanted| wanted.name == format!("node-{}", host.index)))
        .filter_map(|host| host.disk.lock().node_id())
        .collect();
    let members = status.members.iter().filter(|member| Role::try_from(member.role) != Ok(Role::Waiting));
    let committed = cluster.hosts[host].disk.lock().applied_voters();
    status.next_step.is_empty()
        && voters == disks
        && committed.as_ref() == Some(&voters)
        && members.count() == voters.len()
}
