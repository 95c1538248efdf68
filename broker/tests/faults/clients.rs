//! Clients that go from node to node as they must, and remember what they were told.
//!
//! Not here: how calls are made (`roaming`), the judgement on it (`history`), and what an attempt that failed means
//! (`attempts`).

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use databroker::jwt::SharedKey;
use databroker_proto::{
    Record,
    databroker::{SyncRequest, data_broker_service_client::DataBrokerServiceClient, sync_response},
};
use parking_lot::Mutex;
use tokio::task::JoinHandle;
use tonic::{Code, service::interceptor::InterceptedService, transport::Endpoint};

use crate::{
    attempts::{Attempts, Disturbed},
    history::{Content, History},
    roaming::{Lease, Roaming, envy, hold, read, write},
    support::{Client, MESSAGE_BYTES_MAX, Token},
};

/// How long a call may take, over all nodes it is tried on.
pub const DEADLINE: Duration = Duration::from_secs(6);

/// The type of the records that writers write.
pub const TYPE: &str = "faults";

/// The nodes as clients know them.
#[derive(Clone)]
pub struct Addresses {
    pub ports: Vec<u16>,
    pub key: SharedKey,
    /// What the test does to them.
    pub disturbed: Arc<Disturbed>,
}

impl Addresses {
    /// A client of one node. It connects when it is first used.
    pub fn client(&self, node: usize) -> Client {
        let address = format!("http://127.0.0.1:{}", self.ports[node % self.ports.len()]);
        let endpoint = Endpoint::from_shared(address).expect("it is a URL").connect_timeout(Duration::from_millis(500));
        // As Go clients do: a server that does not answer is noticed.
        let endpoint = endpoint.http2_keep_alive_interval(Duration::from_secs(2));
        let endpoint = endpoint.keep_alive_timeout(Duration::from_secs(1)).keep_alive_while_idle(true);
        DataBrokerServiceClient::new(InterceptedService::new(endpoint.connect_lazy(), Token::signed(&self.key)))
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
    }
}

/// What all clients together were told.
#[derive(Default)]
pub struct Told {
    /// Acknowledgements and events, and what is wrong with them.
    pub history: Mutex<History>,
    /// When each write was acknowledged, in microseconds since the start.
    pub acknowledgements: Mutex<Vec<u64>>,
    /// When each of them was acknowledged, and how long it took, in microseconds.
    pub latencies: Mutex<Vec<(u64, u64)>>,
    /// The version that writers were last told of each record.
    pub acknowledged: Mutex<BTreeMap<String, u64>>,
    pub calls: AtomicU64,
    pub failed: AtomicU64,
    /// What calls were tried in vain on the way to success or failure.
    pub attempts: Attempts,
    /// Streams that were told to begin again from nothing.
    pub resyncs: AtomicU64,
    pub events: AtomicU64,
}

/// How much load.
#[derive(Clone, Copy, Debug)]
pub struct Pressure {
    pub writers: usize,
    pub readers: usize,
    /// Leases that one client holds all the time and another asks for.
    pub leases: usize,
    pub streams: usize,
    /// Between the acknowledgement of a write and the next write.
    pub pause: Duration,
}

/// Clients at work.
pub struct Load {
    pub told: Arc<Told>,
    pub began: Instant,
    stop: Arc<AtomicBool>,
    tasks: Vec<JoinHandle<()>>,
    streams: Vec<(JoinHandle<()>, Arc<AtomicU64>)>,
}

impl Load {
    pub fn start(addresses: &Addresses, pressure: Pressure, server_version: u64) -> Self {
        let Pressure { writers, readers, leases, streams, pause } = pressure;
        let (told, stop, began) = (Arc::new(Told::default()), Arc::new(AtomicBool::new(false)), Instant::now());
        let roaming = |at| Roaming::new(addresses.clone(), told.clone(), at);
        let writing = (0..writers).map(|at| tokio::spawn(write(roaming(at), at, stop.clone(), (began, pause))));
        let reading = (0..readers).map(|at| tokio::spawn(read(roaming(at), at as u64, stop.clone())));
        let holding = (0..leases).flat_map(|at| {
            let lease = Lease::new();
            let holder = hold(roaming(at), lease.clone(), stop.clone());
            [tokio::spawn(holder), tokio::spawn(envy(roaming(at + 1), lease, stop.clone()))]
        });
        let tasks = writing.chain(reading).chain(holding).collect();
        let streams = (0..streams)
            .map(|stream| {
                let at = Arc::new(AtomicU64::new(0));
                (tokio::spawn(follow(addresses.clone(), stream, server_version, told.clone(), at.clone())), at)
            })
            .collect();
        Self { told, began, stop, tasks, streams }
    }

    /// The longest time without an acknowledged write that began after a moment.
    pub fn gap_since(&self, since: Instant) -> Duration {
        let from = since.duration_since(self.began).as_micros() as u64;
        let times = self.told.acknowledgements.lock();
        let mut relevant: Vec<u64> =
            times.iter().copied().filter(|time| *time >= from.saturating_sub(50_000)).collect();
        relevant.sort_unstable();
        let gaps = relevant.windows(2).map(|pair| pair[1] - pair[0]);
        Duration::from_micros(gaps.max().unwrap_or(0))
    }

    /// Ends the writers, waits until every stream has seen `upto`, and ends the streams.
    pub async fn end(self, upto: impl AsyncFnOnce() -> u64) -> Arc<Told> {
        self.stop.store(true, Relaxed);
        for task in self.tasks {
            task.await.expect("a client does not panic");
        }
        let upto = upto().await;
        let deadline = Instant::now() + Duration::from_secs(20);
        for (stream, (task, at)) in self.streams.into_iter().enumerate() {
            while at.load(Relaxed) < upto {
                if Instant::now() > deadline {
                    let missing = format!("stream {stream} stands at {} of {upto}", at.load(Relaxed));
                    self.told.history.lock().violate(missing);
                    break;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            task.abort();
        }
        self.told
    }
}

async fn follow(addresses: Addresses, stream: usize, server_version: u64, told: Arc<Told>, at: Arc<AtomicU64>) {
    for attempt in stream.. {
        if attempt > stream {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let mut client = addresses.client(attempt);
        let request =
            SyncRequest { server_version, record_version: at.load(Relaxed), r#type: String::new(), wait: Some(true) };
        let mut messages = match tokio::time::timeout(DEADLINE, client.sync(request)).await {
            Ok(Ok(response)) => response.into_inner(),
            // Refused where it wants to go on: a client would read everything anew.
            Ok(Err(status)) if status.code() == Code::Aborted => {
                told.resyncs.fetch_add(1, Relaxed);
                continue;
            }
            _ => continue,
        };
        loop {
            match messages.message().await {
                Ok(Some(message)) => {
                    let Some(sync_response::Response::Record(record)) = message.response else { continue };
                    let record = record.to_record().expect("it is a record");
                    let (after, version) = (at.load(Relaxed), record.version);
                    told.history.lock().show(stream, after, version, content(record));
                    at.store(version, Relaxed);
                    told.events.fetch_add(1, Relaxed);
                }
                Ok(None) => break,
                Err(status) => {
                    match status.code() {
                        Code::Aborted => _ = told.resyncs.fetch_add(1, Relaxed),
                        Code::Cancelled => told.history.lock().violate(format!("stream {stream}: {status}")),
                        _ => {}
                    }
                    break;
                }
            }
        }
    }
}

/// A record whose content is a text.
pub fn record(id: &str, text: &str) -> Record {
    let data =
        prost_types::Any { type_url: "type.googleapis.com/google.protobuf.StringValue".into(), value: text.into() };
    Record { r#type: TYPE.into(), id: id.into(), data: Some(data), ..Record::default() }
}

/// The id and the text of a record.
pub fn content(record: Record) -> Content {
    let text = record.data.map(|data| String::from_utf8_lossy(&data.value).into_owned());
    (record.id, text.unwrap_or_default())
}
