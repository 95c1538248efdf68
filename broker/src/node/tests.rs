use std::{
    path::Path,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use databroker_proto::internal::Put;

use super::*;
use crate::store::command::outcome;

fn options(folder: &Path) -> Options {
    let timers = crate::raft::Timers { heartbeat_ms: 50, election_ms_min: 150, election_ms_max: 200 };
    Options { timers, ..Options::new(Storage::Folder(folder.into())) }
}

/// An encoded record of a type the store knows nothing about.
fn record(id: &str) -> bytes::Bytes {
    use prost::Message as _;
    let record = databroker_proto::Record { r#type: "t".into(), id: id.into(), ..Default::default() };
    record.encode_to_vec().into()
}

/// A Put of one record with so much data.
fn put_bytes(id: &str, bytes: usize) -> Kind {
    use prost::Message as _;
    let data = prost_types::Any { type_url: "type.googleapis.com/unknown".into(), value: vec![7; bytes] };
    let record = databroker_proto::Record { r#type: "t".into(), id: id.into(), data: Some(data), ..Default::default() };
    Kind::Put(Put { records: vec![record.encode_to_vec().into()] })
}

fn put(id: &str) -> Kind {
    Kind::Put(Put { records: vec![record(id)] })
}

fn first_version(answer: &Answer) -> u64 {
    match answer.outcome.kind.as_ref() {
        Some(outcome::Kind::Written(written)) => written.runs[0].first,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_fresh_node_answers_and_remembers() {
    let folder = tempfile::tempdir().unwrap();
    let node = Node::open(options(folder.path())).await.unwrap();
    assert_eq!(first_version(&node.propose(put("a")).await.unwrap()), 1);
    assert_eq!(first_version(&node.propose(put("b")).await.unwrap()), 2);
    let snapshot = node.fence().await.unwrap();
    assert!(snapshot.get("t", "b").unwrap().is_some());
    node.shutdown().await;
}

#[tokio::test]
async fn what_was_acknowledged_is_there_after_a_restart_and_versions_go_on() {
    let folder = tempfile::tempdir().unwrap();
    let mut server_version = None;
    for round in 0..3 {
        let node = Node::open(options(folder.path())).await.unwrap();
        let snapshot = node.fence().await.unwrap();
        for earlier in 0..round * 10 {
            assert!(snapshot.get("t", &format!("r{earlier}")).unwrap().is_some(), "round {round}: r{earlier}");
        }
        let version = *server_version.get_or_insert(snapshot.progress().server_version);
        assert_eq!(snapshot.progress().server_version, version);
        for index in round * 10..(round + 1) * 10 {
            let answer = node.propose(put(&format!("r{index}"))).await.unwrap();
            assert_eq!(first_version(&answer), index + 1);
        }
        drop(snapshot);
        node.shutdown().await;
    }
}

#[tokio::test]
async fn a_restarted_node_answers_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let node = Node::open(options(folder.path())).await.unwrap();
    node.propose(put("a")).await.unwrap();
    node.shutdown().await;

    // Far above what an election takes that nobody asked for.
    let timers = crate::raft::Timers { heartbeat_ms: 1000, election_ms_min: 60_000, election_ms_max: 60_001 };
    let started = Instant::now();
    let node = Node::open(Options { timers, ..options(folder.path()) }).await.unwrap();
    node.propose(put("b")).await.unwrap();
    assert!(started.elapsed() < Duration::from_secs(30), "it waited for its election timer");
    eprintln!("a restart took {:?}", started.elapsed());
    node.shutdown().await;
}

#[tokio::test]
async fn a_second_process_is_refused_the_folder() {
    let folder = tempfile::tempdir().unwrap();
    let node = Node::open(options(folder.path())).await.unwrap();
    let refused = Node::open(options(folder.path())).await.err().unwrap();
    assert!(refused.to_string().contains("in use by another process"), "{refused}");
    node.shutdown().await;
}

#[tokio::test]
async fn a_node_that_waits_for_its_cluster_refuses_requests() {
    let node = Node::open(Options { bootstrap: Bootstrap::Explicit, ..Options::new(Storage::Memory) }).await.unwrap();
    assert!(matches!(node.propose(put("a")).await, Err(Error::NotInitialized)));
    assert!(matches!(node.fence().await, Err(Error::NotInitialized)));
    assert_eq!(node.status().voters, 0);
    node.shutdown().await;
}

#[tokio::test]
async fn requests_of_one_caller_keep_their_order_though_they_share_entries() {
    let node = Node::open(Options::new(Storage::Memory)).await.unwrap();
    // Queued in this order by one task before the coalescer sees any of them; every fifth is too large to be shared.
    let requests = (0..300).map(|index| {
        let records = if index % 5 == 0 { 20 } else { 1 };
        Kind::Put(Put { records: (0..records).map(|r| record(&format!("{index}-{r}"))).collect() })
    });
    let calls = futures::future::join_all(requests.map(|kind| node.propose(kind)));
    // Else tokio interrupts the task in the middle of its calls, and lets the later ones go first.
    let answers = tokio::task::unconstrained(calls).await;
    let mut next = 1;
    for (index, answer) in answers.into_iter().enumerate() {
        assert_eq!(first_version(&answer.unwrap()), next, "request {index}");
        next += if index % 5 == 0 { 20 } else { 1 };
    }
    let entries = node.status().last_log_index.unwrap();
    assert!(entries < 250, "{entries} entries for 300 requests");
    node.shutdown().await;
}

#[tokio::test]
async fn a_caller_that_goes_away_leaves_no_open_request() {
    let node = Node::open(Options::new(Storage::Memory)).await.unwrap();
    for index in 0..50 {
        let mut call = Box::pin(node.propose(put(&format!("{index}"))));
        // Once is enough to hand it over.
        assert!(futures::poll!(&mut call).is_pending());
    }
    node.propose(put("last")).await.unwrap();
    let (requests, room) = (node.shared.requests.clone(), node.shared.request_room.clone());
    until("all are settled", || {
        requests.settled() == requests.begin().number()
            && room.available_permits() == REQUESTS_MAX
            && node.shared.byte_room.available_permits() == REQUEST_BYTES_MAX
    })
    .await;
    node.shutdown().await;
}

/// Polls a condition until it holds, or for too long.
async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < deadline, "it never came true that {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn the_same_request_proposed_twice_takes_effect_once() {
    let node = Node::open(Options::new(Storage::Memory)).await.unwrap();
    let replica = node.shared.replica.clone();
    let request = node.shared.requests.begin();
    let number = request.number();
    let entry = |settled: u64| {
        use databroker_proto::internal::{Command, Entry, Identity};
        use prost::Message as _;
        let identity = Identity { origin: node.shared.replica.node_id(), request: number, settled };
        let commands = vec![Command { identity: Some(identity), kind: Some(put("a")) }];
        bytes::Bytes::from(Entry { command_version: 1, now_nanos: 1, commands }.encode_to_vec())
    };
    let first = replica.submit(entry(number)).await.unwrap().answers().await.unwrap();
    let again = replica.submit(entry(number)).await.unwrap().answers().await.unwrap();
    assert_eq!(first[0].outcome, again[0].outcome);
    assert_eq!(node.reader().progress().latest_record_version, 1);

    // Settled by a later request: refused, and still not applied.
    drop(request);
    node.propose(put("b")).await.unwrap();
    let late = replica.submit(entry(number)).await.unwrap().answers().await.unwrap();
    assert!(matches!(late[0].outcome.kind, Some(outcome::Kind::Rejected(_))), "{late:?}");
    assert_eq!(node.reader().progress().latest_record_version, 2);
    node.shutdown().await;
}

#[tokio::test]
async fn a_shut_down_node_refuses_and_brings_its_store_to_the_disk() {
    let folder = tempfile::tempdir().unwrap();
    let node = Node::open(options(folder.path())).await.unwrap();
    node.propose(put("a")).await.unwrap();
    let handle = node.clone();
    node.shutdown().await;
    assert!(matches!(handle.propose(put("b")).await, Err(Error::ShuttingDown)));
    assert!(matches!(handle.fence().await, Err(Error::ShuttingDown)));
    assert_eq!(handle.failure(), None);
}

#[tokio::test]
async fn a_node_that_nobody_holds_gives_its_folder_back() {
    let folder = tempfile::tempdir().unwrap();
    drop(Node::open(options(folder.path())).await.unwrap());
    let deadline = Instant::now() + Duration::from_secs(20);
    let node = loop {
        match Node::open(options(folder.path())).await {
            Ok(node) => break node,
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    node.shutdown().await;
}

#[tokio::test]
async fn a_lost_store_and_a_lost_log_are_both_refused() {
    let retention = crate::raft::Retention { sync_bytes: 1 << 20, keep_bytes: 1 << 20, ..Default::default() };
    let folder = tempfile::tempdir().unwrap();
    let node = Node::open(Options { retention, ..options(folder.path()) }).await.unwrap();
    for index in 0..16 {
        node.propose(put_bytes(&format!("r{index}"), 512 << 10)).await.unwrap();
    }
    until("the log is purged", || node.status().purged_index > Some(2)).await;
    node.shutdown().await;

    let without = |parts: &[&str]| {
        let rest = tempfile::tempdir().unwrap();
        copy(folder.path(), rest.path());
        for part in parts.iter().map(|part| rest.path().join(part)) {
            if part.is_dir() { std::fs::remove_dir_all(part).unwrap() } else { std::fs::remove_file(part).unwrap() }
        }
        rest
    };
    for (parts, what) in [(&["store"][..], "log was purged up to"), (&["log", "log-mark"][..], "log ends at nothing")] {
        let rest = without(parts);
        let refused = Node::open(options(rest.path())).await.err().unwrap().to_string();
        assert!(refused.contains(what), "{refused}");
    }
}

/// The disk as a kill leaves it: copied while the node works.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_made_under_load_opens_with_all_that_was_acknowledged_before() {
    let folder = tempfile::tempdir().unwrap();
    let node = Node::open(options(folder.path())).await.unwrap();
    let acknowledged = Arc::new(std::sync::atomic::AtomicU64::new(0));
    let writer = tokio::spawn({
        let (node, acknowledged) = (node.clone(), acknowledged.clone());
        async move {
            for index in 0.. {
                if node.propose(put(&format!("r{index}"))).await.is_err() {
                    return;
                }
                acknowledged.store(index + 1, std::sync::atomic::Ordering::SeqCst);
            }
        }
    });
    until("there is something to lose", || acknowledged.load(std::sync::atomic::Ordering::SeqCst) > 50).await;
    let killed = tempfile::tempdir().unwrap();
    let before = acknowledged.load(std::sync::atomic::Ordering::SeqCst);
    // The log is copied last, as it is written first; its mark before it.
    for part in ["format", "store", "log-mark", "log"] {
        copy(&folder.path().join(part), &killed.path().join(part));
    }
    node.shutdown().await;
    writer.await.unwrap();

    let node = Node::open(options(killed.path())).await.unwrap();
    let snapshot = node.fence().await.unwrap();
    for index in 0..before {
        assert!(snapshot.get("t", &format!("r{index}")).unwrap().is_some(), "r{index} of {before} is missing");
    }
    node.shutdown().await;
}

fn copy(from: &Path, to: &Path) {
    if from.is_file() {
        std::fs::copy(from, to).unwrap();
        return;
    }
    std::fs::create_dir_all(to).unwrap();
    for file in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        copy(&file.path(), &to.join(file.file_name()));
    }
}

#[tokio::test]
async fn an_entry_that_cannot_be_applied_fails_the_node_visibly() {
    let node = Node::open(Options::new(Storage::Memory)).await.unwrap();
    let submitted = node.shared.replica.submit("no entry at all".into()).await.unwrap();
    assert!(submitted.answers().await.is_err());
    let reason = timeout(Duration::from_secs(20), node.failed()).await.unwrap();
    assert!(reason.contains("cannot apply the log entry at index"), "{reason}");
    assert!(matches!(node.propose(put("a")).await, Err(Error::Failed { .. })));
    assert!(matches!(node.fence().await, Err(Error::Failed { .. })));
    node.shutdown().await;
}

#[tokio::test]
async fn without_a_leader_requests_are_held_and_then_refused() {
    let hold = Duration::from_secs(2);
    let options = Options { bootstrap: Bootstrap::Explicit, hold, ..Options::new(Storage::Memory) };
    let node = Node::open(options).await.unwrap();
    let me = node.shared.replica.node_id();
    let members = [me, me ^ 1].map(|id| (id, crate::raft::Member::default()));
    node.shared.replica.initialize_with(members.into()).await.unwrap();
    until("there is a membership", || node.role().initialized).await;
    assert_eq!(node.route_role(), route::Role::Follower);

    let started = Instant::now();
    let counted = until("the write is counted as held", || node.replication().requests_held == 1);
    let (write, read, ()) = tokio::join!(node.propose(put("a")), node.fence(), counted);
    assert!(matches!(write, Err(Error::NoLeader)), "{write:?}");
    until("nothing is held any longer", || node.replication().requests_held == 0).await;
    assert!(!node.replication().has_leader);
    assert!(matches!(read, Err(Error::NoLeader)));
    assert!(started.elapsed() >= hold);
    assert_eq!(node.shared.requests.settled(), node.shared.requests.begin().number());
    node.shutdown().await;
}

#[tokio::test]
async fn too_many_requests_wait_for_room_and_are_then_refused() {
    let options = Options { hold: Duration::from_secs(2), ..Options::new(Storage::Memory) };
    let node = Node::open(options).await.unwrap();
    let all = node.shared.byte_room.clone().acquire_many_owned(REQUEST_BYTES_MAX as u32).await.unwrap();
    let started = Instant::now();
    assert!(matches!(node.propose(put("a")).await, Err(Error::Overloaded)));
    assert!(started.elapsed() >= Duration::from_secs(2));
    let (answer, ()) = tokio::join!(node.propose(put("a")), async { drop(all) });
    assert_eq!(first_version(&answer.unwrap()), 1);
    node.shutdown().await;
}

#[tokio::test]
async fn the_log_is_purged_by_bytes_up_to_what_the_store_has_on_disk() {
    let retention = crate::raft::Retention { sync_bytes: 2 << 20, keep_bytes: 2 << 20, ..Default::default() };
    let folder = tempfile::tempdir().unwrap();
    let node = Node::open(Options { retention, ..options(folder.path()) }).await.unwrap();
    for index in 0..32 {
        node.propose(put_bytes(&format!("r{index}"), 512 << 10)).await.unwrap();
    }
    until("most of the log is purged", || node.status().purged_index > Some(16)).await;
    let status = node.status();
    assert!(status.purged_index <= status.synced_index, "{status:?}");
    node.shutdown().await;

    let node = Node::open(options(folder.path())).await.unwrap();
    assert_eq!(node.fence().await.unwrap().progress().latest_record_version, 32);
    assert!(node.status().purged_index > Some(16));
    node.shutdown().await;
}

#[tokio::test]
async fn an_expired_service_is_swept_without_being_asked_for() {
    use databroker_proto::internal::{Report, ReportedService};
    let node = Node::open(Options::new(Storage::Memory)).await.unwrap();
    let services = vec![ReportedService { kind: 1, endpoint: "http://a".into() }];
    node.propose(Kind::Report(Report { services, ttl_nanos: 50_000_000 })).await.unwrap();
    assert_eq!(node.fence().await.unwrap().services(&[]).unwrap().len(), 1);
    until("it is gone", || node.reader().snapshot().services(&[]).unwrap().is_empty()).await;
    node.shutdown().await;
}

/// Disk work is done where it is asked for, and time is what the clock says: as a simulation runs a node.
async fn inline_node(clock: Arc<dyn Clock>) -> Node<openraft_rt_in_tests::Seeded> {
    inline_node_on(clock, Volume::default()).await
}

async fn inline_node_on(clock: Arc<dyn Clock>, volume: Volume) -> Node<openraft_rt_in_tests::Seeded> {
    inline_node_among(clock, volume, Arc::new(crate::raft::transport::NoPeers)).await
}

pub(super) async fn inline_node_among(
    clock: Arc<dyn Clock>,
    volume: Volume,
    transport: Arc<dyn crate::raft::transport::Transport>,
) -> Node<openraft_rt_in_tests::Seeded> {
    let engines = Engines {
        log: Arc::new(engine::memory::Memory::new(&crate::raft::LOG_SPACES)),
        store: Arc::new(engine::memory::Memory::new(&crate::store::keyspace::Keyspace::names())),
    };
    let replica = crate::raft::Parts {
        log_engine: engines.log.clone(),
        log: crate::raft::LogOptions { durability: engine::Durability::Synced, mark: None, fresh_node_id: 1 },
        store: crate::store::Store::open(engines.store.clone(), &Default::default()).unwrap(),
        shelf: Arc::new(engine::shelf::MemoryShelf::new(&crate::store::keyspace::Keyspace::names())),
        executor: Arc::new(crate::raft::runtime::Inline),
        clock,
        observer: Arc::new(crate::raft::Unobserved),
        failure: Failure::default(),
        timers: Default::default(),
        retention: Default::default(),
        transport,
    };
    let founding = Founding { cluster_id: "c".into(), server_version: 7.try_into().unwrap() };
    Node::<openraft_rt_in_tests::Seeded>::start(Parts {
        replica,
        engines,
        member: Default::default(),
        founding: Some(founding),
        hold: Duration::from_secs(5),
        max_clock_skew: MAX_CLOCK_SKEW,
        change_log: ChangeLog { keep: Duration::from_secs(3600), bytes_max: 1 << 20 },
        peers: Peers { volume, ..Peers::default() },
    })
    .await
    .unwrap()
}

#[test]
fn a_disk_that_is_nearly_full_takes_deletions_and_no_records() {
    use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

    use prost::Message as _;

    openraft_rt_in_tests::run(1, async {
        let left = Arc::new(AtomicU64::new(1 << 30));
        let told = left.clone();
        let volume = Volume { free: Arc::new(move || Some(told.load(Relaxed))), bytes: 1 << 30 };
        let node = inline_node_on(Arc::new(Set::to(1_000_000_000)), volume).await;
        let look = || tokio::time::sleep(Duration::from_secs(1));
        node.propose(put("a")).await.unwrap();
        left.store((320 << 20) - 1, Relaxed);
        look().await;
        let refused = node.propose(put("b")).await.unwrap_err();
        assert!(matches!(refused, Error::Full(_)) && refused.to_string().contains("319 MiB are free"), "{refused}");
        assert!(node.cluster_status().members[0].disk_full);
        let deleted_at = Some(prost_types::Timestamp::default());
        let deleted = databroker_proto::Record { r#type: "t".into(), id: "a".into(), deleted_at, ..Default::default() };
        let deleted: bytes::Bytes = deleted.encode_to_vec().into();
        // One record among them that stays is one too many.
        let mixed = Kind::Put(Put { records: vec![deleted.clone(), record("b")] });
        assert!(matches!(node.propose(mixed).await, Err(Error::Full(_))));
        let revoke =
            Kind::Patch(databroker_proto::internal::Patch { records: vec![deleted.clone()], paths: Vec::new() });
        node.propose(revoke).await.unwrap();
        let touch = Kind::Patch(databroker_proto::internal::Patch { records: vec![record("a")], paths: Vec::new() });
        assert!(matches!(node.propose(touch).await, Err(Error::Full(_))));
        let delete = Kind::Put(Put { records: vec![deleted] });
        node.propose(delete.clone()).await.unwrap();
        // A deletion is written too.
        left.store((240 << 20) - 1, Relaxed);
        look().await;
        assert!(matches!(node.propose(delete).await, Err(Error::Full(_))));
        left.store(320 << 20, Relaxed);
        look().await;
        node.propose(put("b")).await.unwrap();
        node.shutdown().await;
    });
}

/// Every task on one thread, disk work where it is asked for, time that jumps: as a simulation runs it.
#[test]
fn a_node_runs_on_one_thread_in_virtual_time() {
    use openraft_rt_in_tests::run;
    let answers = [1, 1].map(|seed| {
        run(seed, async {
            let node = inline_node(Arc::new(Set::to(1_000_000_000))).await;
            let mut answers = Vec::new();
            for index in 0..20 {
                answers.push(node.propose(put(&format!("r{index}"))).await.unwrap());
                tokio::time::sleep(Duration::from_secs(2)).await;
            }
            let last = node.fence().await.unwrap().progress();
            node.shutdown().await;
            (answers, last)
        })
    });
    assert_eq!(answers[0], answers[1]);
}

#[test]
fn a_clock_that_is_set_back_is_told_of() {
    openraft_rt_in_tests::run(1, async {
        const DAY: u64 = 86_400_000_000_000;
        let clock = Arc::new(Set::to(DAY));
        let node = inline_node(clock.clone()).await;
        node.propose(put("a")).await.unwrap();
        assert_eq!(node.clock_behind(), Duration::ZERO);
        clock.0.store(2 * DAY, Relaxed);
        node.propose(put("b")).await.unwrap();
        clock.0.store(DAY, Relaxed);
        node.propose(put("c")).await.unwrap();
        assert_eq!(node.clock_behind(), Duration::from_nanos(DAY));
        node.shutdown().await;
    });
}

/// A clock that says what it was set to.
struct Set(AtomicU64);

impl Set {
    fn to(nanos: u64) -> Self {
        Self(AtomicU64::new(nanos))
    }
}

impl Clock for Set {
    fn now_nanos(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

pub(super) mod openraft_rt_in_tests {
    use openraft_rt::deterministic_rng::DeterministicRng;

    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
    pub(in super::super) struct Seeded;

    impl crate::raft::runtime::Runtime for Seeded {
        type Async = DeterministicRng<openraft_rt_tokio::TokioRuntime>;
    }

    pub(in super::super) fn run<T>(seed: u64, future: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(<Seeded as crate::raft::runtime::Runtime>::Async::scope(seed, future))
    }
}

#[tokio::test]
async fn a_retired_node_sets_its_data_aside_and_begins_anew() {
    let folder = tempfile::tempdir().unwrap();
    let node = Node::open(options(folder.path())).await.unwrap();
    node.propose(put("a")).await.unwrap();
    let old = node.shared.replica.node_id();
    node.shared.replica.retire().await.unwrap();
    node.shutdown().await;
    for _ in 0..2 {
        let node = Node::open(options(folder.path())).await.unwrap();
        assert_ne!(node.shared.replica.node_id(), old);
        assert!(node.fence().await.unwrap().get("t", "a").unwrap().is_none());
        node.shutdown().await;
    }
    let aside = folder.path().join(format!("retired-{old}"));
    assert!(aside.join("log").is_dir() && aside.join("log-mark").is_file() && aside.join("store").is_dir());
}
