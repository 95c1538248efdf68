//! Which streams are open, how many may be, and how far each has come.
//!
//! Not here: what a stream sends (`sync`, `registry`).

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use parking_lot::Mutex;

use super::{pinned::Pinned, status::Error};
use crate::store::Snapshot;

/// The bounds on streams.
#[derive(Clone, Copy, Debug)]
pub(super) struct StreamLimits {
    /// Open at once: each may hold one chunk in memory.
    pub(super) open_max: usize,
    /// How long one that is not read keeps its snapshot.
    pub(super) stalled_max: Duration,
}

/// The open streams of a server. Cloning shares them.
#[derive(Clone, Debug)]
pub(super) struct Streams(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    limits: StreamLimits,
    open: Mutex<Open>,
    stalled: AtomicU64,
}

#[derive(Debug, Default)]
struct Open {
    next_id: u64,
    /// The position of each stream; `u64::MAX` for streams that do not follow record versions.
    positions: HashMap<u64, Arc<AtomicU64>>,
}

impl Streams {
    /// Within these bounds.
    pub(super) fn new(limits: StreamLimits) -> Self {
        Self(Arc::new(Shared { limits, open: Mutex::default(), stalled: AtomicU64::new(0) }))
    }

    /// Holds a snapshot for a stream, until that is not read for too long.
    pub(super) fn pin(&self, snapshot: Arc<Snapshot>) -> Pinned<Snapshot> {
        let shared = self.0.clone();
        let count = move || {
            shared.stalled.fetch_add(1, Relaxed);
        };
        Pinned::new(snapshot, self.0.limits.stalled_max, count)
    }

    /// How many streams lost their snapshots because they were not read.
    pub(super) fn stalled(&self) -> u64 {
        self.0.stalled.load(Relaxed)
    }

    /// Counts a stream in until the guard is dropped.
    pub(super) fn open(&self) -> Result<Guard, Error> {
        let mut open = self.0.open.lock();
        if open.positions.len() >= self.0.limits.open_max {
            return Err(Error::TooManyStreams);
        }
        let id = open.next_id;
        open.next_id += 1;
        let position = Arc::new(AtomicU64::new(u64::MAX));
        open.positions.insert(id, position.clone());
        Ok(Guard { streams: self.clone(), id, position })
    }

    /// How many are open.
    pub(super) fn count(&self) -> usize {
        self.0.open.lock().positions.len()
    }

    /// How many record versions the slowest stream is behind `latest`.
    pub(super) fn lag(&self, latest: u64) -> u64 {
        let open = self.0.open.lock();
        let slowest = open.positions.values().map(|position| position.load(Relaxed)).min();
        latest.saturating_sub(slowest.unwrap_or(u64::MAX))
    }
}

/// One open stream.
#[derive(Debug)]
pub(super) struct Guard {
    streams: Streams,
    id: u64,
    position: Arc<AtomicU64>,
}

impl Guard {
    /// The stream has sent every change up to this version.
    pub(super) fn reached(&self, version: u64) {
        self.position.store(version, Relaxed);
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.streams.0.open.lock().positions.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn streams(open_max: usize) -> Streams {
        Streams::new(StreamLimits { open_max, stalled_max: Duration::from_secs(1) })
    }

    #[test]
    fn no_more_streams_open_than_allowed() {
        let streams = streams(1);
        let first = streams.open().unwrap();
        assert!(matches!(streams.open(), Err(Error::TooManyStreams)));
        drop(first);
        assert_eq!(streams.count(), 0);
        streams.open().unwrap();
    }

    #[test]
    fn the_lag_is_that_of_the_slowest_stream() {
        let streams = streams(3);
        assert_eq!(streams.lag(10), 0);
        let [slow, fast, _watch] = [0; 3].map(|_| streams.open().unwrap());
        slow.reached(4);
        fast.reached(12);
        assert_eq!(streams.lag(10), 6);
        drop(slow);
        assert_eq!(streams.lag(10), 0);
    }
}
