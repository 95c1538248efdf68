//! Gathers what lies in many runs of tables into one, while next to nobody writes.
//!
//! fjall compacts what is written, when it is written: after the last of a large import a key may lie in any of half a
//! dozen runs, and a read looks into one after the other. Of 1 M records that have come to rest as one run, Get takes a
//! third less of the processor. Under load this would only be in the way, so it waits for a pause.
//!
//! Not here: the compactions of fjall's own, which keep the number of runs within bounds at any time.

use std::{
    io,
    sync::{
        Arc,
        mpsc::{self, RecvTimeoutError},
    },
    thread,
    time::{Duration, Instant},
};

use super::fjall::Tree;

/// From so many runs on it is worth it: one that holds nearly all, and the newest changes in two more, are quick to read.
const RUNS_MIN: usize = 4;

/// Whoever writes no more than this in a second does not notice that somebody else does.
const QUIET_BYTES_PER_SECOND: f64 = 65_536.0;

/// After a compaction it rests for so many times as long as that took: a large store costs a small share of the machine,
/// like a small one.
const REST: u32 = 20;

/// What a decision is made by.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Seen {
    /// Runs of tables, over all levels.
    pub(super) runs: usize,
    /// Bytes written per second since the last look.
    pub(super) bytes_per_second: f64,
    /// What the store takes on the disk, in bytes.
    pub(super) store_bytes: u64,
    /// What is free there, in bytes.
    pub(super) free_bytes: u64,
}

impl Seen {
    /// Old and new tables lie on the disk side by side, until the last reader of the old ones is gone.
    fn is_due(&self) -> bool {
        let room = self.free_bytes / 2 > self.store_bytes;
        self.runs >= RUNS_MIN && self.bytes_per_second <= QUIET_BYTES_PER_SECOND && room
    }
}

/// Looks now and then, until the engine is gone. Stops when what is returned is dropped; a compaction under way goes on.
///
/// # Errors
/// There is no thread to be had.
pub(super) fn start(tree: &Arc<Tree>, every: Duration) -> io::Result<mpsc::SyncSender<()>> {
    let (stop, stopped) = mpsc::sync_channel(1);
    let tree = Arc::downgrade(tree);
    let watch = move || {
        let (mut written, mut pause) = (0, every);
        while stopped.recv_timeout(pause) == Err(RecvTimeoutError::Timeout) {
            let Some(tree) = tree.upgrade() else { return };
            let before = std::mem::replace(&mut written, tree.written_bytes());
            let seen = tree.seen((written.saturating_sub(before)) as f64 / pause.as_secs_f64());
            pause = every;
            if !seen.is_due() {
                continue;
            }
            let began = Instant::now();
            if let Err(error) = tree.compact() {
                // What is there stays as it is. If the disk is at its end, the next write says so.
                tracing::warn!(%error, "the store could not be compacted");
                return;
            }
            let took = began.elapsed();
            tracing::debug!(runs = seen.runs, bytes = seen.store_bytes, ?took, "the store was compacted into one run");
            pause = every.max(took * REST);
        }
    };
    thread::Builder::new().name("compact".into()).spawn(watch)?;
    Ok(stop)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DUE: Seen = Seen { runs: RUNS_MIN, bytes_per_second: 0.0, store_bytes: 1000, free_bytes: 2002 };

    #[test]
    fn it_waits_for_a_pause_and_for_room() {
        assert!(DUE.is_due());
        assert!(!Seen { runs: RUNS_MIN - 1, ..DUE }.is_due());
        assert!(!Seen { bytes_per_second: 100_000.0, ..DUE }.is_due());
        assert!(!Seen { free_bytes: 2001, ..DUE }.is_due());
    }
}
