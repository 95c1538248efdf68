//! Calls that go from node to node until one answers, and the clients that make them: writers, readers, and the holder of a
//! lease.
//!
//! Not here: streams (`clients`), the judgement (`history`), and what an attempt that failed means (`attempts`).

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use databroker_proto::databroker::{AcquireLeaseRequest, GetRequest, PutRequest, RenewLeaseRequest};
use parking_lot::Mutex;
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use tonic::{Code, Request, Response, Status};

use crate::{
    attempts::Kind,
    clients::{Addresses, DEADLINE, TYPE, Told, record},
    support::Client,
};

/// Ids each writer uses in turn: few, so that records are overwritten.
const IDS: u64 = 50;

/// Between the reads of a reader, and between the renewals of a lease: they are to be there, and not to be the load.
const READ_EVERY: Duration = Duration::from_millis(10);
const RENEW_EVERY: Duration = Duration::from_millis(500);

/// Longer than a call may take, so that it ends only if several renewals fail.
const LEASE: Duration = Duration::from_secs(15);

/// A new token before the old one is over.
const CALLS_PER_TOKEN: u64 = 5_000;

/// A client that goes to another node when one does not answer.
pub struct Roaming {
    addresses: Addresses,
    told: Arc<Told>,
    clients: Vec<Client>,
    node: usize,
    calls: u64,
}

impl Roaming {
    pub fn new(addresses: Addresses, told: Arc<Told>, node: usize) -> Self {
        let clients = all(&addresses);
        let node = node % clients.len();
        Self { addresses, told, clients, node, calls: 0 }
    }

    /// Asks until a node answers: with a message, or with one of `answers`. `None`: none did in time, which is counted.
    async fn call<Q: Clone, A>(
        &mut self,
        request: Q,
        answers: &[Code],
        ask: impl AsyncFn(&mut Client, Request<Q>) -> Result<Response<A>, Status>,
    ) -> Option<Result<A, Status>> {
        self.calls += 1;
        if self.calls.is_multiple_of(CALLS_PER_TOKEN) {
            self.clients = all(&self.addresses);
        }
        self.told.calls.fetch_add(1, Relaxed);
        let deadline = Instant::now() + DEADLINE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                self.told.failed.fetch_add(1, Relaxed);
                return None;
            }
            let (node, mut request) = (self.node, Request::new(request.clone()));
            request.set_timeout(left);
            let disturbed = self.addresses.disturbed.has(node);
            let status = match tokio::time::timeout(left, ask(&mut self.clients[node], request)).await {
                Ok(Ok(answer)) => return Some(Ok(answer.into_inner())),
                Ok(Err(status)) if answers.contains(&status.code()) => return Some(Err(status)),
                Ok(Err(status)) => Some(status),
                Err(_) => None,
            };
            // Disturbed before it began or while it ran: a dead connection may be noticed some time later.
            let disturbed = disturbed || self.addresses.disturbed.has(node);
            self.told.attempts.failed(Kind::of(status.as_ref(), disturbed));
            // The node is gone, or cannot place the request: another may.
            self.node = (node + 1) % self.clients.len();
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

fn all(addresses: &Addresses) -> Vec<Client> {
    (0..addresses.ports.len()).map(|node| addresses.client(node)).collect()
}

/// Writes one record after the other.
pub async fn write(mut roaming: Roaming, writer: usize, stop: Arc<AtomicBool>, (began, pause): (Instant, Duration)) {
    for count in 0_u64.. {
        if stop.load(Relaxed) {
            return;
        }
        let (id, text) = (format!("{writer}-{}", count % IDS), format!("{writer}.{count}"));
        let (started, request) = (Instant::now(), PutRequest { records: vec![record(&id, &text).into()] });
        let Some(Ok(answer)) = roaming.call(request, &[], async |client, request| client.put(request).await).await
        else {
            continue;
        };
        let version = answer.records[0].to_record().expect("it is a record").version;
        let (now, told) = (began.elapsed().as_micros() as u64, &roaming.told);
        told.acknowledgements.lock().push(now);
        told.latencies.lock().push((now, started.elapsed().as_micros() as u64));
        told.acknowledged.lock().insert(id.clone(), version);
        told.history.lock().acknowledge(version, (id, text));
        tokio::time::sleep(pause).await;
    }
}

/// Reads what was acknowledged to writers before: on any node it is there, or something newer.
pub async fn read(mut roaming: Roaming, seed: u64, stop: Arc<AtomicBool>) {
    let mut random = StdRng::seed_from_u64(seed);
    while !stop.load(Relaxed) {
        tokio::time::sleep(READ_EVERY).await;
        let known = {
            let acknowledged = roaming.told.acknowledged.lock();
            let at = random.random_range(0..acknowledged.len().max(1));
            acknowledged.iter().nth(at).map(|(id, version)| (id.clone(), *version))
        };
        let Some((id, version)) = known else { continue };
        let request = GetRequest { r#type: TYPE.into(), id: id.clone() };
        let answered =
            roaming.call(request, &[Code::NotFound], async |client, request| client.get(request).await).await;
        let found = match answered {
            None => continue,
            Some(answer) => answer.ok().and_then(|answer| answer.record),
        };
        let found = found.map(|record| record.to_record().expect("it is a record").version);
        if found < Some(version) {
            let node = roaming.node;
            let seen = format!("node {node} reads {id} as of {found:?}, and version {version} was acknowledged before");
            roaming.told.history.lock().violate(seen);
        }
    }
}

/// A lease that one client holds, and another would like to have.
pub struct Lease {
    name: String,
    /// Nobody else may have it before.
    ends: Mutex<Instant>,
}

impl Lease {
    pub fn new() -> Arc<Self> {
        Arc::new(Self { name: format!("held-{:x}", rand::random::<u32>()), ends: Mutex::new(Instant::now()) })
    }

    /// It was acquired or renewed by a call that began then.
    fn lasts_from(&self, asked: Instant) {
        *self.ends.lock() = asked + LEASE;
    }

    fn is_over(&self) -> bool {
        *self.ends.lock() < Instant::now()
    }
}

fn lease_duration() -> Option<prost_types::Duration> {
    prost_types::Duration::try_from(LEASE).ok()
}

/// Holds a lease, and renews it as its holder must.
pub async fn hold(mut roaming: Roaming, lease: Arc<Lease>, stop: Arc<AtomicBool>) {
    let (name, duration) = (lease.name.clone(), lease_duration());
    let held = loop {
        // A node may be frozen from the beginning: the first call to it takes all of its time.
        if stop.load(Relaxed) {
            return;
        }
        let (asked, acquire) = (Instant::now(), AcquireLeaseRequest { name: name.clone(), duration });
        let ask = async |client: &mut Client, request| client.acquire_lease(request).await;
        if let Some(Ok(held)) = roaming.call(acquire, &[], ask).await {
            lease.lasts_from(asked);
            break held;
        }
    };
    while !stop.load(Relaxed) {
        tokio::time::sleep(RENEW_EVERY).await;
        let (asked, renew) = (Instant::now(), RenewLeaseRequest { name: name.clone(), id: held.id.clone(), duration });
        let ask = async |client: &mut Client, request| client.renew_lease(request).await;
        match roaming.call(renew, &[Code::AlreadyExists], ask).await {
            Some(Ok(_)) => lease.lasts_from(asked),
            // Where no node answered for so long, the other may have it by now.
            Some(Err(_)) if lease.is_over() => return,
            Some(Err(status)) => {
                roaming.told.history.lock().violate(format!("a lease is lost that its holder renews: {status}"));
                return;
            }
            None => {}
        }
    }
}

/// Asks for the lease again and again.
pub async fn envy(mut roaming: Roaming, lease: Arc<Lease>, stop: Arc<AtomicBool>) {
    while !stop.load(Relaxed) {
        tokio::time::sleep(RENEW_EVERY).await;
        let acquire = AcquireLeaseRequest { name: lease.name.clone(), duration: lease_duration() };
        let ask = async |client: &mut Client, request| client.acquire_lease(request).await;
        // Not before the holder has it.
        if lease.is_over() {
            continue;
        }
        if let Some(Ok(_)) = roaming.call(acquire, &[Code::AlreadyExists], ask).await {
            if !lease.is_over() {
                roaming.told.history.lock().violate("a lease that its holder renews is given to another".into());
            }
            return;
        }
    }
}
