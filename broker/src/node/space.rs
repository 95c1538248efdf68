//! The space that is left on the disk, and when it is too little for more records. A disk that is full ends the node, and with it
//! what records are read from; so the last of it is kept for what has to go on: elections, leases, deletions, and putting files
//! together.
//!
//! Not here: how the space is found out (`open`), and who asks (`Node::propose`).

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use databroker_proto::internal::{Patch, Put};
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::store::{command::Kind, wire};

/// Of a large volume, so much is kept: what was taken a moment ago has yet to be written, to the log and to the store, and
/// both put tables together while the old ones are still there (up to 200 MiB, see `TABLE_BYTES` of the engine).
const RESERVE_MAX: u64 = 320 << 20;
/// Of a small one, this part. A quarter was seen to be too little on 512 MiB under load.
const RESERVE_PART: u64 = 2;
/// Of the reserve, so many parts of so many are not for deletions either: a deleted record is kept for a while, for streams that resume.
const FLOOR_PARTS: (u64, u64) = (3, 4);
/// How old what was seen may be: a disk is not filled by more than some tens of megabytes in that time.
const LOOK: Duration = Duration::from_millis(200);

/// Tells how many bytes are free on the volume of the data; `None` where there is none, or nobody can tell.
type FreeSpace = Arc<dyn Fn() -> Option<u64> + Send + Sync>;

/// The volume of a node's data.
#[derive(Clone)]
pub struct Volume {
    /// What is left of it.
    pub free: FreeSpace,
    /// Its size; 0 where there is none.
    pub bytes: u64,
}

/// None: data in memory.
impl Default for Volume {
    fn default() -> Self {
        Self { free: Arc::new(|| None), bytes: 0 }
    }
}

/// The same, as a node looks at it.
pub(super) struct Space {
    free: FreeSpace,
    reserve: u64,
    judged: Mutex<Option<(Instant, Option<Full>)>>,
}

/// Why no more records are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the leader's disk is nearly full, {} MiB are free: records can be read, and deleted while there is room for that; for more, its \
     volume has to be larger",
    free >> 20
)]
pub struct Full {
    /// Bytes that are left on it.
    pub free: u64,
}

impl Space {
    pub(super) fn new(Volume { free, bytes }: Volume) -> Self {
        Self { free, reserve: RESERVE_MAX.min(bytes / RESERVE_PART), judged: Mutex::default() }
    }

    /// What is left.
    pub(super) fn free(&self) -> Option<u64> {
        (self.free)()
    }

    /// Whether that is too little for more records.
    pub(super) fn full(&self) -> Option<Full> {
        let free = self.free().filter(|free| *free < self.reserve)?;
        Some(Full { free })
    }

    /// Whether a disk that has no more than this keeps a command out.
    pub(super) fn keeps_from(&self, full: &Full, kind: &Kind) -> bool {
        match kind {
            Kind::Put(Put { records }) | Kind::Patch(Patch { records, .. }) => {
                full.free < self.reserve / FLOOR_PARTS.1 * FLOOR_PARTS.0 || !are_deletions(records)
            }
            _ => false,
        }
    }

    /// What `judge` said of the leader's disk a moment ago. Every write asks.
    pub(super) fn of_leader(&self, judge: impl FnOnce() -> Option<Full>) -> Option<Full> {
        let mut judged = self.judged.lock();
        match *judged {
            Some((at, full)) if at.elapsed() < LOOK => full,
            _ => {
                let full = judge();
                *judged = Some((Instant::now(), full));
                full
            }
        }
    }
}

/// Whether none of them is stored. A Patch deletes as a Put does: some sessions are revoked that way.
fn are_deletions(records: &[Bytes]) -> bool {
    records.iter().all(|record| wire::parse(record).is_ok_and(|parts| parts.deleted))
}
