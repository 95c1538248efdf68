//! What readers see: the store at one moment.

use std::{
    ops::Bound,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use arc_swap::ArcSwap;
use bytes::Bytes;
use databroker_proto::{
    EncodedRecord, databroker,
    internal::{Cluster, State},
    registry,
};
use parking_lot::RwLock;

use super::{
    super::mutation::{self, Mutation},
    Error, Position,
    apply::{self, Change, CidrChange, Rules},
    cache::{self, Counters},
    cidr::CidrTable,
    engine::{KeyBounds, View},
    inspect::Descriptors,
    keyspace::{Keyspace, records as keys, rows},
    machine::{damaged, text},
    query,
    tail::{CHUNK_BYTES_MAX, Changes, Tail},
};

/// The numbers that move with every applied batch; cheap to copy, watched by streams.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Zero before `Init`.
    pub server_version: u64,
    /// The newest record version; 0 in an empty store.
    pub latest_record_version: u64,
    /// The first record version still in the change log; 0 until the log was swept for the first time.
    pub earliest_record_version: u64,
    /// Rises whenever the list of services changes.
    pub services_generation: u64,
    /// The last applied position.
    pub applied: Option<Position>,
    /// The store's time, nanoseconds since the Unix epoch.
    pub now_nanos: u64,
    /// When the earliest registry entry expires, nanoseconds since the Unix epoch; `None` without entries.
    pub next_service_expiry_nanos: Option<u64>,
    /// Some type holds more than its capacity: more had to go than one command evicts, and Sweep is to go on with it.
    pub evicting: bool,
    /// Some index is not yet as the options say: more was to be changed than one command does, and Sweep is to go on.
    pub indexing: bool,
}

/// What the owner hands to readers after a batch.
pub(super) struct Published {
    pub(super) view: Arc<dyn View>,
    pub(super) state: State,
    pub(super) cluster: Arc<Cluster>,
    pub(super) rules: Rules,
    pub(super) next_service_expiry_nanos: Option<u64>,
}

/// Hands out the published snapshot. Cloning is cheap.
#[derive(Clone)]
pub struct Reader(Arc<Shared>);

struct Shared {
    newest: ArcSwap<Snapshot>,
    /// Belongs to the newest snapshot: both change under the write lock, so whoever holds the read lock sees a pair.
    cidr: RwLock<CidrTable>,
    tail: Tail,
    descriptors: Arc<Descriptors>,
    evictions: AtomicU64,
    cache: Arc<Counters>,
}

impl Reader {
    pub(super) fn new(
        first: Published,
        descriptors: Arc<Descriptors>,
        cidr: CidrTable,
        tail_bytes_max: usize,
        cache: Arc<Counters>,
    ) -> Self {
        let state = &first.state;
        let tail = Tail::new(tail_bytes_max, state.server_version, state.latest_record_version);
        let newest = ArcSwap::from_pointee(Snapshot { published: first, descriptors: descriptors.clone() });
        let (cidr, evictions) = (RwLock::new(cidr), AtomicU64::new(0));
        Self(Arc::new(Shared { newest, cidr, tail, descriptors, evictions, cache }))
    }

    pub(super) fn publish(&self, next: Published, changes: Vec<Change>, cidr: &[CidrChange], cleared: bool) {
        let State { server_version, latest_record_version, .. } = next.state;
        let snapshot = Arc::new(Snapshot { published: next, descriptors: self.0.descriptors.clone() });
        // Held until the snapshot is out, so that whoever reads the table finds the pair.
        let mut table = (cleared || !cidr.is_empty()).then(|| self.0.cidr.write());
        if let Some(table) = &mut table {
            if cleared {
                **table = CidrTable::default();
            }
            for change in cidr {
                let (record_type, id) = (text(&change.record_type), text(&change.id));
                if change.added {
                    table.insert(&record_type, &id, change.net);
                } else {
                    table.remove(&record_type, &id, change.net);
                }
            }
        }
        let shared = self.0.clone();
        mutation::publish(&Mutation::LATE, move || shared.newest.store(snapshot));
        drop(table);
        // After the snapshot: what a stream shows, a read finds.
        let shared = self.0.clone();
        mutation::publish(&Mutation::LATE[..1], move || {
            shared.tail.extend(server_version, latest_record_version, cleared, changes);
        });
    }

    /// Publishes a store that came from elsewhere. Memory of changes begins anew: streams go on with the change log.
    pub(super) fn replace(&self, next: Published, cidr: CidrTable) {
        let State { server_version, latest_record_version, .. } = next.state;
        let snapshot = Arc::new(Snapshot { published: next, descriptors: self.0.descriptors.clone() });
        let mut table = self.0.cidr.write();
        *table = cidr;
        self.0.newest.store(snapshot);
        drop(table);
        self.0.tail.reset(server_version, latest_record_version);
    }

    /// The newest snapshot. It holds everything whose answer was given before the call.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.0.newest.load_full()
    }

    /// The numbers of the newest snapshot.
    pub fn progress(&self) -> Progress {
        self.0.newest.load().progress()
    }

    /// Changes after `after`, of one type (or all for `""`), from memory: `None` where memory does not reach back so
    /// far (then ask [`Snapshot::changes`]). Never blocks.
    pub fn recent_changes(&self, record_type: &str, after: u64) -> Option<Changes> {
        self.0.tail.after(record_type, after)
    }

    /// Answers a query, with the snapshot it was answered from: the newest one. May read from the disk for as long as a
    /// scan takes.
    ///
    /// # Errors
    /// When the engine fails.
    pub fn query(&self, query: &query::Query) -> Result<(Arc<Snapshot>, query::Answer), Error> {
        let (snapshot, hits) = self.with_hits(query, query::CidrHits::look_up);
        let answer = query::answer(&snapshot, query, &hits)?;
        Ok((snapshot, answer))
    }

    /// What answering a query takes now, without answering it. Reads a few rows at most.
    ///
    /// # Errors
    /// When the engine fails.
    pub fn cost(&self, query: &query::Query) -> Result<query::Cost, Error> {
        let (snapshot, hits) = self.with_hits(query, query::CidrHits::look_up_points);
        query.cost(&snapshot, &hits)
    }

    /// The newest snapshot, and what the address index has for a query in it.
    pub(super) fn with_hits(
        &self,
        query: &query::Query,
        look_up: impl FnOnce(&CidrTable, &str, Vec<&str>) -> query::CidrHits,
    ) -> (Arc<Snapshot>, query::CidrHits) {
        let values = query.filter.as_ref().map(query::cidr_values).unwrap_or_default();
        if values.is_empty() {
            return (self.snapshot(), query::CidrHits::default());
        }
        let table = self.0.cidr.read();
        (self.snapshot(), look_up(&table, &query.record_type, values))
    }

    pub(super) fn count_evictions(&self, more: u64) {
        self.0.evictions.fetch_add(more, Relaxed);
    }

    /// Records evicted since the start because their type held more than its capacity.
    pub fn evictions(&self) -> u64 {
        self.0.evictions.load(Relaxed)
    }

    /// What the record cache holds, and did since the start.
    pub fn record_cache(&self) -> cache::Stats {
        self.0.cache.stats()
    }

    /// Bytes of changes held in memory for streams.
    pub fn tail_bytes(&self) -> usize {
        self.0.tail.bytes()
    }
}

/// The store at one moment. All calls may read from the disk: use a blocking thread for scans.
pub struct Snapshot {
    published: Published,
    descriptors: Arc<Descriptors>,
}

/// The built-in and client-set options of one type as a stream announces them.
pub type TypedOptions = (String, databroker::Options);

/// Where a scan goes on.
#[derive(Clone, Debug)]
pub struct ScanCursor(Bytes);

impl Snapshot {
    pub(super) fn view(&self) -> &dyn View {
        &*self.published.view
    }

    pub(super) fn epoch(&self) -> u32 {
        self.published.state.epoch
    }

    pub(super) fn rules(&self) -> &Rules {
        &self.published.rules
    }

    /// Whether the index of a field has all that it is to have, so that it may be read.
    pub(super) fn is_indexed_by_field(&self, record_type: &[u8], field: &str) -> bool {
        apply::is_indexed_by_field(&self.published.state, record_type, field)
    }

    pub(super) fn descriptors(&self) -> &Descriptors {
        &self.descriptors
    }

    /// The numbers of this snapshot.
    pub fn progress(&self) -> Progress {
        let state = &self.published.state;
        Progress {
            server_version: state.server_version,
            latest_record_version: state.latest_record_version,
            earliest_record_version: state.earliest_record_version,
            services_generation: state.services_generation,
            applied: state.applied.map(Position::from),
            now_nanos: state.now_nanos,
            next_service_expiry_nanos: self.published.next_service_expiry_nanos,
            evicting: !state.evicting.is_empty(),
            indexing: !state.indexing.is_empty(),
        }
    }

    /// A hash over all that the store held: see [`super::dump::hash`].
    ///
    /// # Errors
    /// When the engine fails.
    pub fn hash(&self) -> Result<String, Error> {
        Ok(super::dump::hash(self.view())?)
    }

    /// One live record.
    pub fn get(&self, record_type: &str, id: &str) -> Result<Option<EncodedRecord>, Error> {
        let key = keys::record(self.epoch(), record_type.as_bytes(), id.as_bytes());
        Ok(self.view().get(Keyspace::Records.space(), &key)?.map(EncodedRecord::from_bytes))
    }

    /// Types with at least one live record, in byte order, as they stand in keys.
    pub(super) fn type_names(&self) -> impl Iterator<Item = Result<Bytes, Error>> {
        self.view().range(Keyspace::Types.space(), keys::all(self.epoch())).map(|item| {
            let (key, _) = item?;
            keys::read_named(&key).map_err(|error| damaged("a type's key", error))
        })
    }

    /// Types with at least one live record, in byte order.
    pub fn types(&self) -> Result<Vec<String>, Error> {
        Ok(self.type_counts()?.into_iter().map(|(record_type, _)| record_type).collect())
    }

    /// Number of live records per type, in byte order of the types.
    pub fn type_counts(&self) -> Result<Vec<(String, u64)>, Error> {
        self.view()
            .range(Keyspace::Types.space(), keys::all(self.epoch()))
            .map(|item| {
                let (key, value) = item?;
                let record_type = keys::read_named(&key).map_err(|error| damaged("a type's key", error))?;
                let count = rows::read_number(&value).map_err(|error| damaged("a type's count", error))?;
                Ok((text(&record_type).into_owned(), count))
            })
            .collect()
    }

    /// The options of a type, if any are set.
    pub fn options(&self, record_type: &str) -> Option<databroker::Options> {
        self.rules().get(record_type.as_bytes()).map(|rules| rules.options.clone())
    }

    /// The options a stream announces: those of the type, or for `""` of every type with live records, in type order.
    pub fn stream_options(&self, record_type: &str) -> Result<Vec<TypedOptions>, Error> {
        let types = if record_type.is_empty() { self.types()? } else { vec![record_type.to_owned()] };
        Ok(types
            .into_iter()
            .filter_map(|record_type| self.options(&record_type).map(|options| (record_type, options)))
            .collect())
    }

    /// The next live records in (type, id) order, of one type (or all for `""`): at least one unless there are no more,
    /// else as many as fit `bytes_max`. `cursor` starts as `None` and is moved past what was returned.
    pub fn scan(
        &self,
        record_type: &str,
        cursor: &mut Option<ScanCursor>,
        bytes_max: usize,
    ) -> Result<Vec<EncodedRecord>, Error> {
        let (mut start, end) = self.records_of(record_type);
        if let Some(ScanCursor(last)) = cursor {
            start = Bound::Excluded(last.clone());
        }
        let (mut records, mut bytes, mut last) = (Vec::new(), 0, None);
        for item in self.view().range(Keyspace::Records.space(), (start, end)) {
            let (key, value) = item?;
            bytes += value.len();
            if bytes > bytes_max && !records.is_empty() {
                break;
            }
            records.push(EncodedRecord::from_bytes(value));
            last = Some(key);
        }
        if let Some(last) = last {
            *cursor = Some(ScanCursor(last));
        }
        Ok(records)
    }

    pub(super) fn records_of(&self, record_type: &str) -> KeyBounds {
        if record_type.is_empty() {
            keys::all(self.epoch())
        } else {
            keys::of_type(self.epoch(), record_type.as_bytes())
        }
    }

    /// Changes after `after`, of one type (or all for `""`), from the change log: some 64 KiB at most, but at least one
    /// change where there is one.
    pub fn changes(&self, record_type: &str, after: u64) -> Result<Changes, Error> {
        let Progress { server_version, latest_record_version: latest, .. } = self.progress();
        let mut found = Changes { server_version, position: after, complete: true, records: Vec::new() };
        let Some(from) = after.checked_add(1).filter(|from| *from <= latest) else {
            return Ok(found);
        };
        let mut bytes = 0;
        if record_type.is_empty() {
            let bounds = (Bound::Included(keys::change(self.epoch(), from)), keys::all(self.epoch()).1);
            for item in self.view().range(Keyspace::Changes.space(), bounds) {
                let (key, value) = item?;
                if bytes >= CHUNK_BYTES_MAX {
                    found.complete = false;
                    break;
                }
                bytes += value.len();
                found.position = keys::read_change(&key).map_err(|error| damaged("a change's key", error))?;
                found.records.push(EncodedRecord::from_bytes(value));
            }
        } else {
            let of_type = keys::of_type(self.epoch(), record_type.as_bytes());
            let start = keys::by_version(self.epoch(), record_type.as_bytes(), from);
            'rows: for row in self.view().range(Keyspace::ChangesByType.space(), (Bound::Included(start), of_type.1)) {
                let versions = keys::read_versions(&row?.1).map_err(|error| damaged("versions by type", error))?;
                for version in versions.into_iter().filter(|version| *version >= from) {
                    if bytes >= CHUNK_BYTES_MAX {
                        found.complete = false;
                        break 'rows;
                    }
                    let value = self.view().get(Keyspace::Changes.space(), &keys::change(self.epoch(), version))?;
                    let value =
                        value.ok_or_else(|| damaged("the change log", format!("version {version} is missing")))?;
                    bytes += value.len();
                    found.position = version;
                    found.records.push(EncodedRecord::from_bytes(value));
                }
            }
        }
        if found.complete {
            found.position = latest;
        }
        Ok(found)
    }

    /// The services of the given kinds (all, if none is given), by kind, then endpoint.
    pub fn services(&self, kinds: &[i32]) -> Result<Vec<registry::Service>, Error> {
        let mut services = Vec::new();
        for item in self.view().range(Keyspace::Services.space(), (Bound::Unbounded, Bound::Unbounded)) {
            let (key, _) = item?;
            let (kind, endpoint) = rows::read_service(&key).map_err(|error| damaged("a service's key", error))?;
            if kinds.is_empty() || kinds.contains(&kind) {
                services.push(registry::Service { kind, endpoint: text(&endpoint).into_owned() });
            }
        }
        Ok(services)
    }

    /// The stored checkpoint; zeros until one was set.
    pub fn checkpoint(&self) -> databroker::Checkpoint {
        let state = &self.published.state;
        databroker::Checkpoint {
            server_version: state.checkpoint_server_version,
            record_version: state.checkpoint_record_version,
        }
    }

    /// The cluster's id; `None` before `Init`.
    pub fn cluster_id(&self) -> Option<&str> {
        Some(self.published.cluster.id.as_str()).filter(|id| !id.is_empty())
    }

    /// What concerns the cluster as a whole: its id, shape, removed nodes, and the commands that all understand.
    pub fn cluster(&self) -> &Arc<Cluster> {
        &self.published.cluster
    }
}
