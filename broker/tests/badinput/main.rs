//! Whatever a client sends: the broker refuses it, goes on answering, and keeps its memory.
//!
//! `rubbish` makes the bytes; `raw` sends them as a gRPC message or on a bare connection.
//!
//! Environment: `BADINPUT_SEED` (default: random, printed), `BADINPUT_ROUNDS` (how often the table is sent; default 4).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
// `pub` means here: for the other files of this test.
#![allow(unreachable_pub)]

mod raw;
mod rubbish;
#[path = "../support/mod.rs"]
mod support;

use std::{
    path::Path,
    str::FromStr,
    time::{Duration, Instant},
};

use databroker_proto::databroker::{GetRequest, PutRequest, Record, SyncRequest};
use rand::{SeedableRng as _, rngs::StdRng};
use tonic::Code;

use self::{
    raw::{Answer, Bare, Caller},
    support::{Broker, Client, PATIENCE},
};

/// Buffers, caches and the memory tail of the change log grow to their bounds and then no more. The allocator keeps some
/// of what a request of 64 MiB took.
const GROWTH_BYTES_MAX: u64 = 96 << 20;

/// Below the usual limit of open files of either process.
const CONNECTIONS: usize = 300;

fn from_environment<T: FromStr>(name: &str, default: T) -> T {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

fn start(folder: &Path) -> Broker {
    Broker::start(folder).unwrap_or_else(|refusal| panic!("the broker does not start: {refusal:?}"))
}

fn seeded() -> StdRng {
    let seed = from_environment("BADINPUT_SEED", rand::random::<u64>());
    println!("BADINPUT_SEED={seed}");
    StdRng::seed_from_u64(seed)
}

/// It runs, writes and reads.
async fn well(broker: &mut Broker, client: &mut Client, after: &str) {
    let name = || "well".to_owned();
    let exchange = async {
        let record = Record { r#type: name(), id: name(), ..Record::default() };
        client.put(PutRequest { records: vec![record.into()] }).await?;
        client.get(GetRequest { r#type: name(), id: name() }).await
    };
    let answered = tokio::time::timeout(PATIENCE, exchange).await;
    let runs = broker.runs();
    if !runs || !matches!(answered, Ok(Ok(_))) {
        panic!("after {after} the broker (running: {runs}) answers {answered:?}; it wrote:\n{}", broker.stderr());
    }
}

/// Waits until the resident memory is at most `bytes`; the allocator gives back what is free with a delay.
async fn settles_at(broker: &Broker, bytes: u64) -> Result<(), u64> {
    let began = Instant::now();
    loop {
        let resident = broker.resident_bytes().unwrap();
        if resident <= bytes {
            return Ok(());
        }
        if began.elapsed() > Duration::from_secs(30) {
            return Err(resident);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn malformed_requests_are_answered_and_memory_stays_flat() {
    let rounds: usize = from_environment("BADINPUT_ROUNDS", 4);
    let mut random = seeded();
    let parent = tempfile::tempdir().unwrap();
    let mut broker = start(&parent.path().join("data"));
    let mut client = broker.client().await;
    let server_version = client.server_info(()).await.unwrap().into_inner().server_version;
    let mut caller = Caller::new(&broker).await;
    let mut resident = 0;
    for round in 0..rounds {
        let mut wrong = Vec::new();
        for case in rubbish::cases(server_version, &mut random) {
            let answer = caller.call(case.method, case.message.clone(), case.quiet_max()).await;
            if !case.allows(&answer) {
                wrong.push(format!("{} to {}: {answer:?}, not {:?}", case.name, case.method, case.allowed));
            }
            if matches!(answer, Answer::Broken(_)) {
                caller = Caller::new(&broker).await;
            }
            well(&mut broker, &mut client, &format!("{} to {}", case.name, case.method)).await;
        }
        assert!(wrong.is_empty(), "{} answers:\n{}", wrong.len(), wrong.join("\n"));
        let now = broker.resident_bytes().unwrap();
        println!("round {}: {} MiB resident", round + 1, now >> 20);
        // A round writes a few MiB, and what has a bound fills over several: memtables and caches of store and log. The
        // other two thirds of the rounds may add no more than what these rise and fall by.
        if round == rounds / 3 {
            resident = now;
        }
    }
    let bound = resident + GROWTH_BYTES_MAX;
    settles_at(&broker, bound)
        .await
        .unwrap_or_else(|now| panic!("resident memory went from {resident} to {now} bytes"));
    println!(
        "resident: {resident} bytes after {} rounds, {} after {rounds}",
        rounds / 3 + 1,
        broker.resident_bytes().unwrap()
    );
    assert!(!broker.stderr().contains("panicked at"), "{}", broker.stderr());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_that_are_not_ours_open_nothing() {
    let parent = tempfile::tempdir().unwrap();
    let mut broker = start(&parent.path().join("data"));
    let mut client = broker.client().await;
    let mut caller = Caller::new(&broker).await;
    for method in rubbish::METHODS {
        for (name, token) in rubbish::tokens(&broker) {
            let answer = caller.call_with(method, rubbish::EMPTY, token, PATIENCE).await;
            assert!(answer.code() == Some(Code::Unauthenticated), "{name} to {method}: {answer:?}");
        }
    }
    let oversize = "x".repeat(1 << 20).parse().unwrap();
    let answer = caller.call_with(rubbish::METHODS[0], rubbish::EMPTY, Some(oversize), PATIENCE).await;
    assert!(!matches!(answer, Answer::Code(Code::Ok, _)), "a token of 1 MiB: {answer:?}");
    well(&mut broker, &mut client, "bad tokens").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_resume_beyond_every_version_overflows_nothing() {
    let parent = tempfile::tempdir().unwrap();
    let mut broker = start(&parent.path().join("data"));
    let mut client = broker.client().await;
    well(&mut broker, &mut client, "nothing").await;
    let server_version = client.server_info(()).await.unwrap().into_inner().server_version;
    for record_version in [u64::MAX, u64::MAX - 1, i64::MAX as u64, 1 << 32] {
        let request = SyncRequest { server_version, record_version, wait: Some(false), ..SyncRequest::default() };
        let mut stream = client.sync(request).await.unwrap().into_inner();
        while let Some(frame) = stream.message().await.unwrap() {
            assert!(
                !matches!(frame.response, Some(databroker_proto::databroker::sync_response::Response::Record(_))),
                "a record was sent to a client that has version {record_version}"
            );
        }
    }
    well(&mut broker, &mut client, "resumes beyond the end").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_on_a_connection_harms_nobody_else() {
    let mut random = seeded();
    let parent = tempfile::tempdir().unwrap();
    let mut broker = start(&parent.path().join("data"));
    let mut client = broker.client().await;
    well(&mut broker, &mut client, "nothing").await;
    let mut resident = 0;
    for round in 0..4 {
        for (name, bytes) in rubbish::connections(&mut random) {
            Bare::open(&broker).await.send(&bytes).await;
            well(&mut broker, &mut client, name).await;
        }
        if round == 0 {
            resident = broker.resident_bytes().unwrap();
        }
    }
    let bound = resident + GROWTH_BYTES_MAX;
    settles_at(&broker, bound)
        .await
        .unwrap_or_else(|now| panic!("resident memory went from {resident} to {now} bytes"));
    assert!(!broker.stderr().contains("panicked at"), "{}", broker.stderr());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_say_nothing_cost_little_and_are_closed() {
    let parent = tempfile::tempdir().unwrap();
    let mut broker = start(&parent.path().join("data"));
    let mut client = broker.client().await;
    well(&mut broker, &mut client, "nothing").await;
    let before = broker.resident_bytes().unwrap();
    let mut silent = Vec::new();
    for number in 0..CONNECTIONS {
        let mut bare = Bare::open(&broker).await;
        // From no byte at all to the preface without its last byte.
        bare.send(&rubbish::PREFACE[..number % rubbish::PREFACE.len()]).await;
        silent.push(bare);
    }
    well(&mut broker, &mut client, "many silent connections").await;
    let mut newcomer = broker.client().await;
    well(&mut broker, &mut newcomer, "many silent connections, for a newcomer").await;
    let grown = broker.resident_bytes().unwrap().saturating_sub(before);
    assert!(grown < (CONNECTIONS as u64) << 17, "{CONNECTIONS} silent connections hold {grown} bytes");
    for bare in silent {
        bare.closed_within(PATIENCE).await;
    }
    well(&mut broker, &mut client, "the silent connections were closed").await;
}
