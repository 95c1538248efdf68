//! Clients that roam over the nodes: writers, readers, streams, and who wants leases. They tell the judge what they ask
//! and what they are told.
//!
//! Not here: what is wrong about an answer (`judge`).

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use databroker::{
    node::Node,
    store::{
        command::{Answer, Kind, Reason, outcome},
        tail::Changes,
    },
};
use databroker_proto::internal;
use parking_lot::Mutex;

use crate::{
    auditor::version_of,
    cluster::{Cluster, FIRST_SERVER_VERSION, HOLD},
    faults::Climate,
    judge::Place,
    records::{self, Key, TYPES},
    runtime::{self, Simulated},
    world::World,
};

const WRITERS: usize = 4;
const READERS: usize = 2;
const STREAMS: usize = 3;
const HOLDERS: usize = 3;
const REPORTERS: usize = 2;

/// Ids of each type: few, so that clients write to the same records.
const IDS: u64 = 5;

/// How long a patient client waits for an answer.
const PATIENCE: Duration = Duration::from_secs(6);

/// How far a clock may be set wrong.
pub const SKEW_MAX: Duration = Duration::from_millis(300);

/// All clients of a world.
pub struct Clients {
    world: Arc<World>,
    pub cluster: Arc<Cluster>,
    stop: AtomicBool,
    /// Whether the next Clear may be asked for, and with which server version.
    clears: bool,
    server_versions: AtomicU64,
    /// Where each stream is.
    pub streams: Mutex<BTreeMap<usize, Place>>,
    /// Pause between two writes of a writer, at most, in milliseconds.
    pause_max: u64,
}

impl Clients {
    pub fn start(cluster: &Arc<Cluster>, climate: &Climate) -> Arc<Self> {
        let clients = Arc::new(Self {
            world: cluster.world.clone(),
            cluster: cluster.clone(),
            stop: AtomicBool::new(false),
            clears: climate.clears,
            server_versions: AtomicU64::new(FIRST_SERVER_VERSION),
            streams: Mutex::default(),
            pause_max: climate.writer_pause,
        });
        for writer in 0..WRITERS {
            runtime::spawn(clients.clone().write(writer));
        }
        for _ in 0..READERS {
            runtime::spawn(clients.clone().read());
        }
        for stream in 0..STREAMS {
            runtime::spawn(clients.clone().follow(stream));
        }
        for holder in 0..HOLDERS {
            runtime::spawn(clients.clone().hold(holder));
        }
        for reporter in 0..if climate.reports { REPORTERS } else { 0 } {
            runtime::spawn(clients.clone().report(reporter));
        }
        clients
    }

    /// No new requests but those of streams.
    pub fn stop(&self) {
        self.stop.store(true, Relaxed);
    }

    fn is_stopped(&self) -> bool {
        self.stop.load(Relaxed) || self.world.is_over()
    }

    fn host(&self) -> usize {
        self.world.index(self.cluster.hosts.len())
    }

    fn key(&self) -> Key {
        let record_type = TYPES[self.world.index(TYPES.len())];
        (record_type.into(), format!("record-{}", self.world.pick(0..IDS)))
    }

    /// Most are patient; some hang up early.
    fn patience(&self) -> Duration {
        if self.world.chance(60) { self.world.millis(5..400) } else { PATIENCE }
    }

    async fn write(self: Arc<Self>, writer: usize) {
        let mut host = self.host();
        for count in 0_u64.. {
            self.world.pause(1..self.pause_max).await;
            if self.is_stopped() {
                return;
            }
            let value = format!("{writer}.{count}");
            let written = match self.world.pick(0..1000) {
                0..650 => self.put(host, &value).await,
                650..850 => self.patch(host, &value).await,
                850..940 => self.delete(host).await,
                940..944 if self.clears => self.clear(host).await,
                _ => self.checkpoint(host).await,
            };
            if !written || self.world.chance(150) {
                host = self.host();
            }
        }
    }

    /// Asks a node to take a write. None: no answer, it may have taken effect.
    pub async fn propose(&self, host: usize, patience: Duration, kind: Kind) -> Option<Answer> {
        let world = self.world.clone();
        let asked = self.cluster.call(host, patience, move |node| async move {
            let before = node.status();
            let answer = node.propose(kind).await.ok()?;
            let after = node.status();
            if before.leader && after.leader && before.term == after.term {
                judge_published(&world, &node, &answer);
            }
            Some(answer).filter(|answer| !came_by_removed(answer))
        });
        asked.await.flatten()
    }

    async fn put(&self, host: usize, value: &str) -> bool {
        let key = self.key();
        self.write_value(host, value, key.clone(), records::put(&key, value)).await
    }

    async fn patch(&self, host: usize, value: &str) -> bool {
        let key = self.key();
        self.write_value(host, value, key.clone(), records::patch(&key, value)).await
    }

    pub async fn write_value(&self, host: usize, value: &str, key: Key, kind: Kind) -> bool {
        let floor = {
            let mut judge = self.world.judge.lock();
            judge.issue(value, key);
            judge.floor()
        };
        let Some(answer) = self.propose(host, self.patience(), kind).await else { return false };
        if let Some(place) = place_of(&answer) {
            self.world.note(format_args!("{value} is at {place:?}"));
            self.world.judge.lock().acknowledge(value, place, floor);
        } else {
            self.judge_refusal(value, &answer);
        }
        true
    }

    fn judge_refusal(&self, value: &str, answer: &Answer) {
        if let Some(outcome::Kind::Rejected(rejected)) = &answer.outcome.kind {
            self.world.violation("R14", format_args!("{value} was refused: {}", rejected.detail));
        }
        self.world.judge.lock().acknowledge_other();
    }

    async fn delete(&self, host: usize) -> bool {
        let key = self.key();
        self.world.judge.lock().issue_delete(key.clone());
        let deleted = self.propose(host, self.patience(), records::delete(&key)).await;
        if let Some(answer) = &deleted {
            self.judge_refusal("a delete", answer);
        }
        deleted.is_some()
    }

    async fn clear(&self, host: usize) -> bool {
        let server_version = self.server_versions.fetch_add(1, Relaxed) + 1;
        self.world.judge.lock().issue_clear(server_version);
        let kind = Kind::Clear(internal::Clear { server_version });
        let Some(answer) = self.propose(host, PATIENCE, kind).await else { return false };
        if let Some(outcome::Kind::Cleared(cleared)) = answer.outcome.kind {
            self.world.count("clears");
            self.world.note(format_args!("cleared: {cleared:?}"));
            self.world.judge.lock().follows(cleared.old_server_version, cleared.new_server_version);
        }
        true
    }

    async fn checkpoint(&self, host: usize) -> bool {
        let checkpoint = internal::SetCheckpoint { server_version: 1, record_version: self.world.pick(0..1000) };
        self.propose(host, self.patience(), Kind::SetCheckpoint(checkpoint)).await.is_some()
    }

    async fn read(self: Arc<Self>) {
        loop {
            self.world.pause(1..2 * self.pause_max).await;
            if self.is_stopped() {
                return;
            }
            let (key, floor) = (self.key(), self.world.judge.lock().floor());
            let (wanted, host, since) = (key.clone(), self.host(), self.world.time());
            let asked = self.cluster.call(host, self.patience(), move |node| async move {
                let snapshot = node.fence().await.ok()?;
                let progress = snapshot.progress();
                let found = snapshot.get(&wanted.0, &wanted.1).unwrap();
                Some(((progress.server_version, progress.latest_record_version), found))
            });
            if let Some(Some((place, found))) = asked.await {
                self.world.count("fenced reads");
                let who = format!("a read of node-{host} from {since:?} to {:?}", self.world.time());
                self.world.judge.lock().read(who, key, place, floor, found.map(|record| record.into_bytes()));
            }
        }
    }

    async fn follow(self: Arc<Self>, stream: usize) {
        let (mut place, mut host) = ((FIRST_SERVER_VERSION, 0), self.host());
        while !self.world.is_over() {
            let world = self.world.clone();
            let asked = self.cluster.call(host, Duration::from_secs(1), move |node| next_changes(world, node, place));
            match asked.await {
                Some(Ok(changes)) => self.take(stream, &mut place, &changes),
                // A client would read everything anew; here the new history is followed from its beginning.
                Some(Err(now)) if self.is_later(now, place.0) => place = (now, 0),
                Some(Err(_)) | None => {
                    host = self.host();
                    self.world.pause(5..40).await;
                }
            }
            self.streams.lock().insert(stream, place);
            if self.world.chance(50) {
                host = self.host();
            }
        }
    }

    /// A node that is behind may still show the history before.
    fn is_later(&self, now: u64, than: u64) -> bool {
        self.world.judge.lock().is_later(now, than)
    }

    fn take(&self, stream: usize, place: &mut Place, changes: &Changes) {
        let mut judge = self.world.judge.lock();
        let who = format!("stream {stream}");
        for record in &changes.records {
            let version = version_of(record);
            if version != place.1 + 1 {
                judge.violation("R6", format_args!("{who}: {version} came after {}", place.1));
            }
            judge.see(&who, (place.0, version), record.as_bytes());
            place.1 = version;
        }
        judge.streamed(*place);
    }

    /// Says that a service is there, which then is for a short while: what expires is swept.
    async fn report(self: Arc<Self>, reporter: usize) {
        while !self.is_stopped() {
            self.world.pause(20..1500).await;
            let ttl = self.world.millis(200..2500).as_nanos() as i64;
            let endpoint = format!("service-{reporter}-{}", self.world.pick(0..3));
            let services = vec![internal::ReportedService { kind: 1, endpoint }];
            let kind = Kind::Report(internal::Report { services, ttl_nanos: ttl });
            if self.propose(self.host(), self.patience(), kind).await.is_some() {
                self.world.count("services reported");
            }
        }
    }

    /// Takes a lease, keeps it for a while, and gives it up or forgets it.
    async fn hold(self: Arc<Self>, holder: usize) {
        for count in 0_u64.. {
            self.world.pause(10..400).await;
            let (id, mut held) = (format!("{holder}.{count}"), false);
            for _ in 0..self.world.pick(1..5) {
                if self.is_stopped() {
                    return;
                }
                let ttl = self.world.millis(800..3000);
                let asked = self.world.time();
                let kind = records::lease("lease", &id, ttl.as_nanos() as i64);
                let answer = self.propose(self.host(), PATIENCE, kind).await;
                match answer.and_then(|answer| answer.outcome.kind) {
                    Some(outcome::Kind::Leased(leased)) if leased.acquired => {
                        held = true;
                        let times = (asked, self.world.time());
                        self.world.judge.lock().lease("lease", &id, times, ttl, SKEW_MAX);
                        self.world.count("leases");
                    }
                    // What was lost on the way may still come, and make it end earlier: nothing is known any more.
                    None => {
                        self.world.judge.lock().release("lease");
                        break;
                    }
                    _ => break,
                }
                self.world.pause(50..600).await;
            }
            if held && self.world.chance(600) {
                self.world.judge.lock().release("lease");
                self.propose(self.host(), PATIENCE, records::lease("lease", &id, -1)).await;
            }
        }
    }

    /// Writes a last time, as often as it takes. Where it stands.
    pub async fn write_last(&self, count: u64) -> Option<Place> {
        let (value, key) = (format!("last.{count}"), (TYPES[0].to_owned(), "last".to_owned()));
        let floor = {
            let mut judge = self.world.judge.lock();
            judge.issue(&value, key.clone());
            judge.floor()
        };
        let answer = self.propose(self.host(), HOLD, records::put(&key, &value)).await?;
        let place = place_of(&answer)?;
        self.world.judge.lock().acknowledge(&value, place, floor);
        Some(place)
    }
}

/// The node is none any longer, and whether the write took effect is not known.
fn came_by_removed(answer: &Answer) -> bool {
    matches!(&answer.outcome.kind, Some(outcome::Kind::Rejected(why)) if why.reason() == Reason::Removed)
}

/// Where a write of one record stands; None where it changed nothing.
pub fn place_of(answer: &Answer) -> Option<Place> {
    match &answer.outcome.kind {
        Some(outcome::Kind::Written(written)) => {
            let version = written.runs.first().map(|run| run.first).filter(|first| *first != 0)?;
            Some((written.server_version, version))
        }
        _ => None,
    }
}

/// A leader answers after it has published: whoever asks it next sees the write.
fn judge_published(world: &World, node: &Node<Simulated>, answer: &Answer) {
    let Some((server, version)) = place_of(answer) else { return };
    let now = node.reader().progress();
    if now.server_version == server && now.latest_record_version < version {
        let shown = now.latest_record_version;
        world.violation("R7", format_args!("a leader acknowledged {version} and still shows {shown}"));
    }
}

/// What a Sync stream does for its client: the changes after a place, as soon as there are any. An error is the server
/// version of another history.
async fn next_changes(world: Arc<World>, node: Node<Simulated>, (server, after): Place) -> Result<Changes, u64> {
    let (mut pulse, reader) = (node.progress(), node.reader().clone());
    loop {
        pulse.mark_unchanged();
        let changes = match reader.recent_changes("", after) {
            Some(changes) => changes,
            None => reader.snapshot().changes("", after).unwrap(),
        };
        if changes.server_version != server {
            return Err(changes.server_version);
        }
        if !changes.records.is_empty() {
            let shown = reader.progress();
            if shown.server_version == server && shown.latest_record_version < changes.position {
                let (streamed, read) = (changes.position, shown.latest_record_version);
                world.violation("R7", format_args!("a node streams {streamed} and still reads {read}"));
            }
            return Ok(changes);
        }
        if pulse.changed().await.is_err() {
            return Ok(changes);
        }
    }
}
