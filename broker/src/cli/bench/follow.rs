//! Streams that follow changes, and the ledger of who has seen which change when.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use databroker_proto::databroker as pb;
use parking_lot::Mutex;
use prost::Message as _;
use tokio::{task::JoinSet, time::Instant};
use tonic::Status;

use super::{
    super::failure::{Failure, code_name},
    tally::Latencies,
    wire::{Frame, Lane, Lanes, Method},
};

/// Changes that a ledger keeps the times of; those beyond are followed but not timed. 48 MB at most.
const LEDGER_SLOTS_MAX: usize = 2_000_000;

const POLL_INTERVAL: Duration = Duration::from_millis(1);

/// For each version from a base on: when its put was acknowledged, how many streams have seen it, and when the latest
/// did. Times are microseconds since the ledger was opened, plus one, so that zero means never.
pub(super) struct Ledger {
    opened: Instant,
    base: u64,
    slots: Vec<Slot>,
}

#[derive(Default)]
struct Slot {
    acknowledged: AtomicU64,
    seen_last: AtomicU64,
    seen: AtomicU32,
}

/// What a ledger says of the changes acknowledged from some time on.
#[derive(Debug)]
pub(super) struct Delivery {
    /// Changes seen, each counted once a stream.
    pub(super) events: u64,
    /// Changes that some stream did not see, counted likewise.
    pub(super) missing: u64,
    /// From the acknowledgement of a change to its receipt by the last stream.
    pub(super) latencies: Latencies,
    /// When the last event arrived, since the ledger was opened.
    pub(super) last_event: Duration,
}

impl Ledger {
    /// For the `expected` versions that follow `base`.
    pub(super) fn open(base: u64, expected: usize) -> Self {
        let slots = std::iter::repeat_with(Slot::default).take(expected.min(LEDGER_SLOTS_MAX)).collect();
        Self { opened: Instant::now(), base, slots }
    }

    fn now(&self) -> u64 {
        self.opened.elapsed().as_micros() as u64 + 1
    }

    fn slot(&self, version: u64) -> Option<&Slot> {
        let index = version.checked_sub(self.base + 1)?;
        self.slots.get(usize::try_from(index).ok()?)
    }

    /// The put of this version was acknowledged just now.
    pub(super) fn acknowledged(&self, version: u64) {
        if let Some(slot) = self.slot(version) {
            slot.acknowledged.store(self.now(), Ordering::Relaxed);
        }
    }

    /// One more stream has seen this version, just now.
    fn seen(&self, version: u64) {
        if let Some(slot) = self.slot(version) {
            slot.seen.fetch_add(1, Ordering::Relaxed);
            slot.seen_last.fetch_max(self.now(), Ordering::Relaxed);
        }
    }

    /// Sums up the changes acknowledged at `from` (since the ledger was opened) or later.
    pub(super) fn delivery(&self, from: Duration, streams: u32) -> Delivery {
        let from = from.as_micros() as u64;
        let mut delivery = Delivery { events: 0, missing: 0, latencies: Latencies::new(), last_event: Duration::ZERO };
        for slot in &self.slots {
            let acknowledged = slot.acknowledged.load(Ordering::Relaxed);
            if acknowledged == 0 || acknowledged < from {
                continue;
            }
            let seen = slot.seen.load(Ordering::Relaxed).min(streams);
            let last = slot.seen_last.load(Ordering::Relaxed);
            delivery.events += u64::from(seen);
            delivery.missing += u64::from(streams - seen);
            delivery.last_event = delivery.last_event.max(Duration::from_micros(last));
            if seen == streams {
                // A stream may well be faster than the acknowledgement: that is no wait at all.
                delivery.latencies.record(Duration::from_micros(last.saturating_sub(acknowledged)));
            }
        }
        delivery
    }
}

/// Streams that follow one type from one version on.
pub(super) struct Followers {
    shared: Arc<Shared>,
    // Dropping it ends the streams.
    _tasks: JoinSet<()>,
}

struct Shared {
    ledger: Arc<Ledger>,
    /// The version each stream has reached.
    reached: Vec<AtomicU64>,
    failures: Mutex<Failures>,
}

#[derive(Default)]
struct Failures {
    count: u64,
    first: Option<String>,
}

impl Followers {
    /// Opens `streams` streams over the lanes. Some servers answer only with the first change, so being connected is
    /// not awaited; no change after the ledger's base is lost by that.
    pub(super) fn open(
        lanes: &Lanes,
        record_type: &str,
        server_version: u64,
        streams: usize,
        ledger: Arc<Ledger>,
    ) -> Self {
        let request = pb::SyncRequest {
            server_version,
            record_version: ledger.base,
            r#type: record_type.to_owned(),
            wait: Some(true),
        };
        let request = bytes::Bytes::from(request.encode_to_vec());
        let reached = std::iter::repeat_with(AtomicU64::default).take(streams).collect();
        let shared = Arc::new(Shared { ledger, reached, failures: Mutex::default() });
        let mut tasks = JoinSet::new();
        for number in 0..streams {
            let (lane, request, shared) = (lanes.lane(number), request.clone(), shared.clone());
            tasks.spawn(async move { shared.note_end(shared.follow(number, lane, request).await) });
        }
        Self { shared, _tasks: tasks }
    }

    /// Waits until every stream has reached `version`; false when that takes longer than `patience` or a stream ended.
    pub(super) async fn caught_up(&self, version: u64, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        let behind = |reached: &AtomicU64| reached.load(Ordering::Relaxed) < version;
        while self.shared.reached.iter().any(behind) {
            if Instant::now() >= deadline || self.failures().0 > 0 {
                return false;
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
        true
    }

    /// How many streams ended, and why the first did.
    pub(super) fn failures(&self) -> (u64, Option<String>) {
        let failures = self.shared.failures.lock();
        (failures.count, failures.first.clone())
    }
}

impl Shared {
    async fn follow(&self, number: usize, mut lane: Lane, request: bytes::Bytes) -> Result<(), Status> {
        let mut frames = lane.stream::<Frame>(Method::Sync, request).await?;
        while let Some(frame) = frames.message().await? {
            if let Frame::Record(version) = frame {
                self.ledger.seen(version);
                self.reached[number].store(version, Ordering::Relaxed);
            }
        }
        Ok(())
    }

    /// A stream that waits for changes has no reason to end by itself.
    fn note_end(&self, result: Result<(), Status>) {
        let why = match result {
            Ok(()) => "the server ended the stream".to_owned(),
            Err(status) => format!("{}: {}", code_name(status.code()), status.message()),
        };
        let mut failures = self.failures.lock();
        failures.count += 1;
        failures.first.get_or_insert(why);
    }
}

/// The server's versions.
///
/// # Errors
/// What the server answered.
pub(super) async fn versions(lanes: &Lanes) -> Result<pb::ServerInfoResponse, Failure> {
    let connection = lanes.connection(0);
    connection.call(connection.records().server_info(())).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_delivery_counts_what_all_streams_saw_and_what_some_did_not() {
        let ledger = Ledger::open(100, 10);
        let wait = |millis| tokio::time::advance(Duration::from_millis(millis));
        // Before the counted time.
        ledger.acknowledged(101);
        ledger.seen(101);
        wait(10).await;
        ledger.acknowledged(102);
        wait(5).await;
        ledger.seen(102);
        wait(2).await;
        ledger.seen(102);
        ledger.acknowledged(103);
        ledger.seen(103);
        // Not ours: nobody acknowledged it.
        ledger.seen(104);
        ledger.seen(99);
        ledger.seen(5000);

        let delivery = ledger.delivery(Duration::from_millis(5), 2);
        assert_eq!((delivery.events, delivery.missing), (3, 1));
        let latency = delivery.latencies.summary().unwrap();
        assert!((6.9..7.1).contains(&latency.max_ms), "{latency:?}");
    }
}
