//! The streaming workloads: fan-out of changes to many followers, and copies of everything.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use databroker_proto::databroker as pb;
use prost::Message as _;
use tonic::Status;

use super::{
    super::failure::Failure,
    drive::{Caller, Outcome, Pace, run},
    follow::{Delivery, Followers, Ledger, versions},
    request::{Numbers, Template},
    wire::{Frame, Lane, Lanes, Method, PutVersion},
};

/// How long followers may lag behind the last put before the run gives up on them.
const PATIENCE: Duration = Duration::from_secs(30);

/// A follower that needs longer than this after the last put did not keep up.
const KEPT_UP_WITHIN: Duration = Duration::from_secs(1);

/// A put rate below this share of the one asked for means that the writers, not the streams, were measured.
const RATE_SHARE_MIN: f64 = 0.98;

/// What is put, and who follows.
#[derive(Clone, Debug)]
pub(super) struct FanOut {
    /// Type of the records put and followed.
    pub(super) record_type: String,
    /// Bytes of one.
    pub(super) size: usize,
    /// Key space.
    pub(super) records: u64,
    /// Streams over all lanes.
    pub(super) streams: usize,
    /// Writers, their rate and time.
    pub(super) pace: Pace,
}

/// What came of it.
pub(super) struct FanOutOutcome {
    /// The writers' side.
    pub(super) puts: Outcome,
    /// The streams' side.
    pub(super) delivery: Delivery,
    /// Events a second.
    pub(super) events_per_second: f64,
    /// Whether puts came at the rate asked for and no stream fell behind.
    pub(super) kept_up: bool,
    /// How long after the last put the last stream had everything.
    pub(super) drained: Duration,
    /// Streams that ended, and why the first did.
    pub(super) failures: (u64, Option<String>),
}

impl FanOut {
    /// Runs it. Followers and writers have lanes of their own.
    ///
    /// # Errors
    /// What the server answered before the clock started.
    pub(super) async fn run(
        &self,
        followers: &Lanes,
        writers: &Lanes,
        server: Option<u32>,
    ) -> Result<FanOutOutcome, Failure> {
        let start = versions(writers).await?;
        let ledger = Arc::new(Ledger::open(start.latest_record_version, self.expected_puts()));
        let streams = Followers::open(followers, &self.record_type, start.server_version, self.streams, ledger.clone());
        let putters = self.putters(writers, &ledger);
        let puts = run(&self.pace, server, putters).await;
        let last = versions(writers).await?.latest_record_version;
        let ended = tokio::time::Instant::now();
        let complete = streams.caught_up(last, PATIENCE).await;
        let drained = ended.elapsed();
        let delivery = ledger.delivery(self.pace.warm_up, self.streams as u32);
        let span = delivery.last_event.saturating_sub(self.pace.warm_up).max(puts.elapsed);
        let rate_held = self.pace.rate.is_none_or(|rate| puts.per_second() >= rate * RATE_SHARE_MIN);
        Ok(FanOutOutcome {
            events_per_second: delivery.events as f64 / span.as_secs_f64().max(1e-9),
            kept_up: complete && rate_held && drained <= KEPT_UP_WITHIN && delivery.missing == 0,
            drained,
            failures: streams.failures(),
            delivery,
            puts,
        })
    }

    fn expected_puts(&self) -> usize {
        const UNBOUNDED_RATE: f64 = 50_000.0;
        let seconds = (self.pace.warm_up + self.pace.duration).as_secs_f64() + 1.0;
        (self.pace.rate.unwrap_or(UNBOUNDED_RATE) * seconds) as usize + self.pace.callers
    }

    fn putters(&self, lanes: &Lanes, ledger: &Arc<Ledger>) -> Vec<TimedPut> {
        let template = Template::put(&self.record_type, self.size, 1);
        let putter = |n| TimedPut {
            lane: lanes.lane(n),
            template: template.clone(),
            numbers: Numbers::new(n as u64, self.records),
            ledger: ledger.clone(),
        };
        (0..self.pace.callers).map(putter).collect()
    }
}

/// Puts one record and notes when it was acknowledged.
pub(super) struct TimedPut {
    lane: Lane,
    template: Template,
    numbers: Numbers,
    ledger: Arc<Ledger>,
}

impl Caller for TimedPut {
    async fn call(&mut self) -> Result<u64, Status> {
        let request = self.template.about(self.numbers.next());
        let PutVersion(version) = self.lane.unary(Method::Put, request).await?;
        self.ledger.acknowledged(version);
        Ok(1)
    }

    fn take_retried(&mut self) -> u64 {
        self.lane.take_retried()
    }
}

/// Copies everything of a type; a call is one whole copy, a unit one record.
pub(super) struct Copier {
    lane: Lane,
    request: Bytes,
}

impl Copier {
    /// `clients` of them over the lanes.
    pub(super) fn callers(lanes: &Lanes, record_type: &str, clients: usize) -> Vec<Self> {
        let request = Bytes::from(pb::SyncLatestRequest { r#type: record_type.to_owned() }.encode_to_vec());
        (0..clients).map(|n| Self { lane: lanes.lane(n), request: request.clone() }).collect()
    }
}

impl Caller for Copier {
    async fn call(&mut self) -> Result<u64, Status> {
        let mut frames = self.lane.stream::<Frame>(Method::SyncLatest, self.request.clone()).await?;
        let mut records = 0;
        let mut last = None;
        while let Some(frame) = frames.message().await? {
            records += u64::from(matches!(frame, Frame::Record(_)));
            last = Some(frame);
        }
        match last {
            Some(Frame::Other) => Ok(records),
            _ => Err(Status::data_loss("the copy does not end with the versions")),
        }
    }
}
