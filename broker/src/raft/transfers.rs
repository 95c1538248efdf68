//! How far stores have got on their way between nodes, told to whoever watches.
//!
//! Not here: the chunks themselves (`snapshot`).

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use databroker_proto::internal::snapshot_chunk::Kind;
use tokio::time::Instant;

use super::Observer;

/// Which way a store goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// To a peer.
    Sent,
    /// From a peer.
    Received,
}

/// How much of a store has come through, for those who hear how it ended. Cloning is cheap.
#[derive(Clone, Debug)]
pub(super) struct Tally {
    began: Instant,
    rows: Arc<AtomicU64>,
    bytes: Arc<AtomicU64>,
}

impl Tally {
    pub(super) fn new() -> Self {
        Self { began: Instant::now(), rows: Arc::default(), bytes: Arc::default() }
    }

    /// Rows, their bytes, and how long it has taken.
    pub(super) fn now(&self) -> (u64, u64, Duration) {
        (self.rows.load(Relaxed), self.bytes.load(Relaxed), self.began.elapsed())
    }
}

/// One transfer under way, to its end or until it breaks off.
pub(super) struct Transfer {
    tally: Tally,
    observer: Arc<dyn Observer>,
    direction: Direction,
}

impl Transfer {
    pub(super) fn begin(observer: Arc<dyn Observer>, direction: Direction, tally: Tally) -> Self {
        observer.transfer_began(direction);
        Self { tally, observer, direction }
    }

    /// A chunk has left, or has come.
    pub(super) fn moved(&self, chunk: &Kind) {
        let Kind::Rows(rows) = chunk else { return };
        let bytes = rows.rows.iter().map(|row| row.key.len() + row.value.len()).sum();
        self.tally.rows.fetch_add(rows.rows.len() as u64, Relaxed);
        self.tally.bytes.fetch_add(bytes as u64, Relaxed);
        self.observer.transfer_moved(self.direction, bytes);
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        self.observer.transfer_ended(self.direction);
    }
}
