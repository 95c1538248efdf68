//! What readers see: the store at one moment.

use std::sync::Arc;

use databroker_proto::{EncodedRecord, databroker, registry};

use super::{Error, Position, query, tail::Changes};

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
}

/// Hands out the published snapshot. Cloning is cheap.
#[derive(Clone)]
pub struct Reader {}

impl Reader {
    /// The newest snapshot. It holds everything whose answer was given before the call.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        todo!()
    }

    /// The numbers of the newest snapshot.
    pub fn progress(&self) -> Progress {
        todo!()
    }

    /// Changes after `after`, of one type (or all for `""`), from memory: `None` where memory does not reach back so
    /// far (then ask [`Snapshot::changes`]). Never blocks.
    pub fn recent_changes(&self, record_type: &str, after: u64) -> Option<Changes> {
        let _ = (record_type, after);
        todo!()
    }
}

/// The store at one moment. All calls may read from the disk: use a blocking thread for scans.
pub struct Snapshot {}

/// The built-in and client-set options of one type as a stream announces them.
pub type TypedOptions = (String, databroker::Options);

impl Snapshot {
    /// The numbers of this snapshot.
    pub fn progress(&self) -> Progress {
        todo!()
    }

    /// One live record.
    pub fn get(&self, record_type: &str, id: &str) -> Result<Option<EncodedRecord>, Error> {
        let _ = (record_type, id);
        todo!()
    }

    /// Types with at least one live record, in byte order.
    pub fn types(&self) -> Result<Vec<String>, Error> {
        todo!()
    }

    /// Number of live records per type, in byte order of the types.
    pub fn type_counts(&self) -> Result<Vec<(String, u64)>, Error> {
        todo!()
    }

    /// The options of a type, if any are set.
    pub fn options(&self, record_type: &str) -> Result<Option<databroker::Options>, Error> {
        let _ = record_type;
        todo!()
    }

    /// The options a stream announces: those of the type, or for `""` of every type with live records, in type order.
    pub fn stream_options(&self, record_type: &str) -> Result<Vec<TypedOptions>, Error> {
        let _ = record_type;
        todo!()
    }

    /// Answers a query.
    pub fn query(&self, query: &query::Query) -> Result<query::Answer, Error> {
        let _ = query;
        todo!()
    }

    /// The next live records in (type, id) order, of one type (or all for `""`): at least one unless there are no more,
    /// else as many as fit `bytes_max`. `cursor` starts as `None` and is moved past what was returned.
    pub fn scan(
        &self,
        record_type: &str,
        cursor: &mut Option<ScanCursor>,
        bytes_max: usize,
    ) -> Result<Vec<EncodedRecord>, Error> {
        let _ = (record_type, cursor, bytes_max);
        todo!()
    }

    /// Changes after `after`, of one type (or all for `""`), from the change log: at most `bytes_max` bytes, but at
    /// least one change where there is one.
    pub fn changes(&self, record_type: &str, after: u64, bytes_max: usize) -> Result<Changes, Error> {
        let _ = (record_type, after, bytes_max);
        todo!()
    }

    /// The services of the given kinds (all, if none is given), by kind, then endpoint.
    pub fn services(&self, kinds: &[i32]) -> Result<Vec<registry::ServiceRegistration>, Error> {
        let _ = kinds;
        todo!()
    }

    /// The stored checkpoint; zeros until one was set.
    pub fn checkpoint(&self) -> databroker::Checkpoint {
        todo!()
    }

    /// The cluster's id; `None` before `Init`.
    pub fn cluster_id(&self) -> Option<String> {
        todo!()
    }
}

/// Where a scan goes on.
#[derive(Clone, Debug)]
pub struct ScanCursor {}
