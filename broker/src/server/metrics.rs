//! What can be measured from outside, in OpenMetrics text.
//!
//! Counters of calls are kept as calls happen; everything else is asked of its owner when somebody looks.
//! Not here: the port on which it is shown (`http`).

use std::{
    fmt, fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{
        counter::{ConstCounter, Counter},
        family::Family,
        gauge::{ConstGauge, Gauge},
        histogram::Histogram,
    },
    registry::Registry,
};
use tonic::Code;

mod replication;

use super::streams::Streams;
use crate::{net::Certificates, node::Node, raft};

/// The methods that are told apart, as paths.
const METHODS: &[&str] = &[
    "/databroker.DataBrokerService/Get",
    "/databroker.DataBrokerService/Query",
    "/databroker.DataBrokerService/Put",
    "/databroker.DataBrokerService/Patch",
    "/databroker.DataBrokerService/Sync",
    "/databroker.DataBrokerService/SyncLatest",
    "/databroker.DataBrokerService/ListTypes",
    "/databroker.DataBrokerService/ServerInfo",
    "/databroker.DataBrokerService/GetOptions",
    "/databroker.DataBrokerService/SetOptions",
    "/databroker.DataBrokerService/AcquireLease",
    "/databroker.DataBrokerService/RenewLease",
    "/databroker.DataBrokerService/ReleaseLease",
    "/databroker.DataBrokerService/Clear",
    "/databroker.CheckpointService/GetCheckpoint",
    "/databroker.CheckpointService/SetCheckpoint",
    "/registry.Registry/Report",
    "/registry.Registry/List",
    "/registry.Registry/Watch",
    "/grpc.health.v1.Health/Check",
];

/// Upper bounds of the buckets for durations, in seconds: from a read in memory to a held request.
const SECONDS: [f64; 14] =
    [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 2.5, 10.0];

/// Upper bounds of the buckets for the size of batches.
const BATCHES: [f64; 8] = [1.0, 2.0, 4.0, 8.0, 16.0, 64.0, 256.0, 1024.0];

/// One of the known methods, or any other: paths come from clients and must not become labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Method(usize);

impl Method {
    pub(super) fn of(path: &str) -> Self {
        Self(METHODS.iter().position(|known| *known == path).unwrap_or(METHODS.len()))
    }

    /// Without the slash in front.
    pub(super) fn name(self) -> &'static str {
        METHODS.get(self.0).map_or("other", |path| &path[1..])
    }

    /// A stream lasts as long as its client likes: its duration says nothing.
    fn is_stream(self) -> bool {
        ["Sync", "SyncLatest", "Watch"].contains(&self.name().rsplit('/').next().unwrap_or_default())
    }
}

/// How many codes gRPC has.
const CODES: usize = 17;

/// The calls of each method. Cloning shares them; counting takes no lock but that of a histogram.
#[derive(Clone, Debug)]
pub(super) struct Calls(Arc<[OfMethod]>);

#[derive(Debug)]
struct OfMethod {
    in_flight: AtomicI64,
    ended: [AtomicU64; CODES],
    seconds: Histogram,
}

impl Default for Calls {
    fn default() -> Self {
        let of_method = || OfMethod {
            in_flight: AtomicI64::new(0),
            ended: [const { AtomicU64::new(0) }; CODES],
            seconds: Histogram::new(SECONDS),
        };
        Self((0..=METHODS.len()).map(|_| of_method()).collect())
    }
}

impl Calls {
    pub(super) fn started(&self, method: Method) {
        self.0[method.0].in_flight.fetch_add(1, Relaxed);
    }

    pub(super) fn ended(&self, method: Method, code: Code, took: Duration) {
        let calls = &self.0[method.0];
        calls.in_flight.fetch_sub(1, Relaxed);
        calls.ended[code as usize].fetch_add(1, Relaxed);
        if !method.is_stream() {
            calls.seconds.observe(took.as_secs_f64());
        }
    }

    #[cfg(test)]
    pub(super) fn count(&self, method: Method, code: Code) -> u64 {
        self.0[method.0].ended[code as usize].load(Relaxed)
    }

    #[cfg(test)]
    pub(super) fn in_flight(&self, method: Method) -> i64 {
        self.0[method.0].in_flight.load(Relaxed)
    }

    fn each(&self) -> impl Iterator<Item = (&'static str, &OfMethod)> {
        self.0.iter().enumerate().map(|(index, calls)| (Method(index).name(), calls))
    }
}

/// What the threads that write to the disk report, and what reads and transfers between nodes do.
#[derive(Debug)]
pub struct DiskTimes {
    log_seconds: Histogram,
    log_entries: Histogram,
    log_bytes: Counter,
    apply_seconds: Histogram,
    apply_entries: Histogram,
    happened: replication::Happened,
    /// The data folder; none with the memory engine.
    folder: Option<PathBuf>,
}

impl Default for DiskTimes {
    fn default() -> Self {
        Self {
            log_seconds: Histogram::new(SECONDS),
            log_entries: Histogram::new(BATCHES),
            log_bytes: Counter::default(),
            apply_seconds: Histogram::new(SECONDS),
            apply_entries: Histogram::new(BATCHES),
            happened: replication::Happened::default(),
            folder: None,
        }
    }
}

impl raft::Observer for DiskTimes {
    fn log_written(&self, write: raft::LogWrite) {
        self.log_seconds.observe(write.took.as_secs_f64());
        self.log_entries.observe(write.entries as f64);
        self.log_bytes.inc_by(write.bytes as u64);
    }

    fn applied(&self, entries: usize, took: Duration) {
        self.apply_seconds.observe(took.as_secs_f64());
        self.apply_entries.observe(entries as f64);
    }

    fn fenced(&self, took: Duration) {
        self.happened.fenced(took);
    }

    fn transfer_began(&self, direction: raft::Direction) {
        self.happened.transfer_began(direction);
    }

    fn transfer_moved(&self, direction: raft::Direction, bytes: usize) {
        self.happened.transfer_moved(direction, bytes);
    }

    fn transfer_ended(&self, direction: raft::Direction) {
        self.happened.transfer_ended(direction);
    }
}

impl DiskTimes {
    /// For a node that keeps its data in this folder.
    pub fn of(folder: PathBuf) -> Self {
        Self { folder: Some(folder), ..Self::default() }
    }

    fn register(&self, registry: &mut Registry) {
        let Self { log_seconds, log_entries, log_bytes, apply_seconds, apply_entries, happened, folder } = self;
        happened.register(registry);
        let help = "How long a write to the log took, its sync included, in seconds";
        registry.register("log_write_seconds", help, log_seconds.clone());
        registry.register("log_write_entries", "Entries that shared a write to the log", log_entries.clone());
        registry.register("log_written_bytes", "Bytes of entries written to the log", log_bytes.clone());
        registry.register("apply_seconds", "How long a batch took to apply, in seconds", apply_seconds.clone());
        registry.register("apply_entries", "Entries that were applied as one batch", apply_entries.clone());
        if let Some(folder) = folder {
            registry.register_collector(Box::new(FolderCollector(folder.clone())));
        }
    }
}

/// All metrics of the process.
pub(super) struct Metrics {
    registry: Registry,
    /// Requests without a good token.
    pub(super) tokens_refused: Counter,
}

impl Metrics {
    pub(super) fn new(
        calls: Calls,
        disk: &DiskTimes,
        node: Node,
        streams: Streams,
        certificates: Certificates,
    ) -> Self {
        let mut registry = Registry::with_prefix("databroker");
        let tokens_refused = Counter::default();
        registry.register("grpc_tokens_refused", "Requests without a good token", tokens_refused.clone());
        disk.register(&mut registry);
        let version = Family::<[(&str, &str); 1], Gauge>::default();
        version.get_or_create(&[("version", env!("CARGO_PKG_VERSION"))]).set(1);
        registry.register("build", "The running release", version);
        registry.register_collector(Box::new(CallCollector(calls)));
        registry.register_collector(Box::new(NodeCollector { node, streams }));
        registry.register_collector(Box::new(CertificateCollector(certificates)));
        Self { registry, tokens_refused }
    }

    /// The metrics as OpenMetrics text. Reads from the disk.
    ///
    /// # Errors
    /// Never in practice: a string takes any text.
    pub(super) fn text(&self) -> Result<String, fmt::Error> {
        let mut out = String::new();
        prometheus_client::encoding::text::encode(&mut out, &self.registry)?;
        Ok(out)
    }
}

#[derive(Debug)]
struct FolderCollector(PathBuf);

impl Collector for FolderCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let gauge = ConstGauge::new(0i64).metric_type();
        let mut data = encoder.encode_descriptor("data_bytes", "What the data takes on the disk", None, gauge)?;
        for part in ["log", "store"] {
            let bytes = i64::try_from(bytes_of(&self.0, part)).unwrap_or(i64::MAX);
            ConstGauge::new(bytes).encode(data.encode_family(&[("part", part)])?)?;
        }
        if let Ok(bytes) = fs4::available_space(&self.0) {
            let help = "What is free on the volume of the data; when it is nearly full, no more records are taken";
            let free = encoder.encode_descriptor("volume_free_bytes", help, None, gauge)?;
            ConstGauge::new(i64::try_from(bytes).unwrap_or(i64::MAX)).encode(free)?;
        }
        Ok(())
    }
}

/// How much of the disk a part takes: its folder, and those beside it that are numbered, one of which is in use once a store
/// came from another node.
fn bytes_of(folder: &Path, part: &str) -> u64 {
    let Ok(entries) = fs::read_dir(folder) else { return 0 };
    let is_of = |name: &str| name.strip_prefix(part).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
    let own = entries.flatten().filter(|entry| entry.file_name().to_str().is_some_and(is_of));
    own.map(|entry| bytes_on_disk(&entry.path())).sum()
}

/// How much of the disk a folder takes. What cannot be read, or vanishes meanwhile, counts as nothing.
fn bytes_on_disk(folder: &Path) -> u64 {
    /// The unit in which the system counts blocks.
    const BLOCK_BYTES: u64 = 512;
    let Ok(entries) = fs::read_dir(folder) else { return 0 };
    let size = |entry: fs::DirEntry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => bytes_on_disk(&entry.path()),
        Ok(metadata) => metadata.blocks() * BLOCK_BYTES,
        Err(_) => 0,
    };
    entries.filter_map(Result::ok).map(size).sum()
}

struct CertificateCollector(Certificates);

impl fmt::Debug for CertificateCollector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CertificateCollector")
    }
}

impl Collector for CertificateCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let gauge = ConstGauge::new(0i64).metric_type();
        let help = "When the certificate that a port shows ends, in seconds since the Unix epoch";
        let mut ends = encoder.encode_descriptor("certificate_expiry_timestamp_seconds", help, None, gauge)?;
        for (port, validity) in self.0.validities() {
            ConstGauge::new(validity.ends).encode(ends.encode_family(&[("port", port)])?)?;
        }
        Ok(())
    }
}

#[derive(Debug)]
struct CallCollector(Calls);

impl Collector for CallCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let counter = ConstCounter::new(0u64).metric_type();
        let mut ended = encoder.encode_descriptor("grpc_calls", "Calls that ended, by status code", None, counter)?;
        for (method, calls) in self.0.each() {
            for (code, count) in calls.ended.iter().enumerate() {
                let count = count.load(Relaxed);
                // Most codes never occur for most methods: they would be most of the page.
                if count > 0 {
                    let code = format!("{:?}", Code::from_i32(code as i32));
                    let labels = [("method", method), ("code", code.as_str())];
                    ConstCounter::new(count).encode(ended.encode_family(&labels)?)?;
                }
            }
        }
        let gauge = ConstGauge::new(0i64).metric_type();
        let mut in_flight = encoder.encode_descriptor("grpc_calls_in_flight", "Calls under way", None, gauge)?;
        for (method, calls) in self.0.each() {
            ConstGauge::new(calls.in_flight.load(Relaxed)).encode(in_flight.encode_family(&[("method", method)])?)?;
        }
        self.encode_seconds(encoder)
    }
}

impl CallCollector {
    fn encode_seconds(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let histogram = Histogram::new(SECONDS).metric_type();
        let help = "How long calls took, streams left out, in seconds";
        let mut seconds = encoder.encode_descriptor("grpc_call_duration_seconds", help, None, histogram)?;
        for (method, calls) in
            self.0.each().filter(|(_, calls)| calls.ended.iter().any(|count| count.load(Relaxed) > 0))
        {
            calls.seconds.encode(seconds.encode_family(&[("method", method)])?)?;
        }
        Ok(())
    }
}

struct NodeCollector {
    node: Node,
    streams: Streams,
}

impl fmt::Debug for NodeCollector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NodeCollector")
    }
}

impl Collector for NodeCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let snapshot = self.node.reader().snapshot();
        let (progress, status) = (snapshot.progress(), self.node.status());
        let records = snapshot.type_counts().map_or(0, |counts| counts.iter().map(|(_, count)| count).sum());
        let mut gauge = |name: &str, help: &str, value: u64| {
            let gauge = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
            let metric = encoder.encode_descriptor(name, help, None, gauge.metric_type())?;
            gauge.encode(metric)
        };
        gauge("streams", "Open Sync, SyncLatest and Watch streams", self.streams.count() as u64)?;
        let lag = self.streams.lag(progress.latest_record_version);
        gauge("stream_lag_versions_max", "Record versions the slowest stream is behind", lag)?;
        gauge("records", "Live records", records)?;
        gauge("record_version", "The newest record version", progress.latest_record_version)?;
        gauge("record_version_earliest", "The first change still kept", progress.earliest_record_version)?;
        let cache = self.node.reader().record_cache();
        gauge("record_cache_bytes", "What the record cache takes", cache.bytes)?;
        gauge("record_cache_records", "Records in the record cache", cache.entries)?;
        gauge("tail_bytes", "Changes held in memory for streams", self.node.reader().tail_bytes() as u64)?;
        let (log, store) = self.node.engine_stats();
        gauge("store_bytes", "The store on disk, its journals included", store.bytes)?;
        gauge("store_journal_bytes", "Journals of the store", store.journal_bytes)?;
        gauge("store_flushes_pending", "Memtables of the store that wait for the disk", store.flushes_pending)?;
        gauge("store_compactions", "Compactions of the store under way", store.compactions)?;
        gauge("log_bytes", "The log on disk, its journals included", log.bytes)?;
        let behind = self.node.clock_behind().as_secs();
        gauge(
            "clock_behind_seconds",
            "How far the clock is behind the store's time; nothing expires meanwhile",
            behind,
        )?;
        replication::encode(&self.node, &status, &mut encoder)?;
        let mut count = |name: &str, help: &str, value: u64| {
            let counter = ConstCounter::new(value);
            counter.encode(encoder.encode_descriptor(name, help, None, counter.metric_type())?)
        };
        count("record_cache_hits", "Records found in the record cache", cache.hits)?;
        count("record_cache_misses", "Records that were not in the record cache", cache.misses)?;
        count("record_cache_evictions", "Records that left the record cache for others", cache.evictions)?;
        let help = "SyncLatest streams that were not read, and lost their snapshots";
        count("streams_stalled", help, self.streams.stalled())?;
        let help = "Records evicted because their type held more than its capacity";
        count("evictions", help, self.node.reader().evictions())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_paths_share_one_label() {
        assert_eq!(Method::of("/databroker.DataBrokerService/Get").name(), "databroker.DataBrokerService/Get");
        assert_eq!(Method::of("/a").name(), "other");
        assert_eq!(Method::of("/a"), Method::of("/b"));
    }

    #[test]
    fn calls_are_shown_by_method_and_code() {
        let calls = Calls::default();
        let get = Method::of("/databroker.DataBrokerService/Get");
        calls.started(get);
        calls.started(get);
        calls.ended(get, Code::NotFound, Duration::from_micros(200));
        let mut registry = Registry::with_prefix("databroker");
        registry.register_collector(Box::new(CallCollector(calls)));
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        let label = r#"method="databroker.DataBrokerService/Get""#;
        for line in [
            format!(r#"databroker_grpc_calls_total{{{label},code="NotFound"}} 1"#),
            format!("databroker_grpc_calls_in_flight{{{label}}} 1"),
            format!(r#"databroker_grpc_call_duration_seconds_bucket{{le="0.00025",{label}}} 1"#),
        ] {
            assert!(text.lines().any(|got| got == line), "{line}\n{text}");
        }
    }
}
