//! Which streams are open, how many may be, and how far each has come.
//!
//! Not here: what a stream sends (`sync`, `registry`).

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use parking_lot::Mutex;

use super::status::Error;

/// The open streams of a server. Cloning shares them.
#[derive(Clone, Debug)]
pub(super) struct Streams(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    open_max: usize,
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    next_id: u64,
    /// The position of each stream; `u64::MAX` for streams that do not follow record versions.
    positions: HashMap<u64, Arc<AtomicU64>>,
}

impl Streams {
    /// At most `open_max` at once: each may hold one chunk in memory.
    pub(super) fn new(open_max: usize) -> Self {
        Self(Arc::new(Shared { open_max, open: Mutex::default() }))
    }

    /// Counts a stream in until the guard is dropped.
    pub(super) fn open(&self) -> Result<Guard, Error> {
        let mut open = self.0.open.lock();
        if open.positions.len() >= self.0.open_max {
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

    #[test]
    fn no_more_streams_open_than_allowed() {
        let streams = Streams::new(1);
        let first = streams.open().unwrap();
        assert!(matches!(streams.open(), Err(Error::TooManyStreams)));
        drop(first);
        assert_eq!(streams.count(), 0);
        streams.open().unwrap();
    }

    #[test]
    fn the_lag_is_that_of_the_slowest_stream() {
        let streams = Streams::new(3);
        assert_eq!(streams.lag(10), 0);
        let [slow, fast, _watch] = [0; 3].map(|_| streams.open().unwrap());
        slow.reached(4);
        fast.reached(12);
        assert_eq!(streams.lag(10), 6);
        drop(slow);
        assert_eq!(streams.lag(10), 0);
    }
}
