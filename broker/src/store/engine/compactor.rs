//! Gathers what lies in many tables into the last level, while next to nobody writes.
//!
//! fjall compacts what is written, when it is written: after the last of a large import a key may lie in any of several
//! runs of tables, and a read looks into one after the other. Of 1 M records that have come to rest in one run, Get takes
//! a third less of the processor. Under load this would only be in the way, so it waits for a pause.
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

/// What share of the tables may lie above the last level: the newest changes, which are few and often asked for. Less, and
/// a small change would rewrite all.
const ABOVE_SHARE: u64 = 8;

/// A store whose tables take less is in the cache anyway.
const TABLES_BYTES_MIN: u64 = 32 << 20;

/// Whoever writes no more than this in a second does not notice that somebody else does.
const QUIET_BYTES_PER_SECOND: f64 = 65_536.0;

/// After a compaction it rests for so many times as long as that took: a large store costs a small share of the machine,
/// like a small one.
const REST: u32 = 20;

/// What a decision is made by.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Seen {
    /// What all tables take, in bytes.
    pub(super) tables_bytes: u64,
    /// What of that is in the last level.
    pub(super) last_level_bytes: u64,
    /// Bytes written per second since the last look.
    pub(super) bytes_per_second: f64,
    /// What is free there, in bytes.
    pub(super) free_bytes: u64,
}

impl Seen {
    /// Old and new tables lie on the disk side by side, until the last reader of the old ones is gone.
    fn is_due(&self) -> bool {
        let above = self.tables_bytes.saturating_sub(self.last_level_bytes);
        let worth_it = self.tables_bytes >= TABLES_BYTES_MIN && above > self.tables_bytes / ABOVE_SHARE;
        let room = self.free_bytes / 2 > self.tables_bytes;
        worth_it && self.bytes_per_second <= QUIET_BYTES_PER_SECOND && room
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
            tracing::info!(bytes = seen.tables_bytes, ?took, "the store was idle and has been compacted");
            pause = every.max(took * REST);
        }
    };
    thread::Builder::new().name("compact".into()).spawn(watch)?;
    Ok(stop)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DUE: Seen =
        Seen { tables_bytes: 80 << 20, last_level_bytes: 69 << 20, bytes_per_second: 0.0, free_bytes: 161 << 20 };

    #[test]
    fn it_waits_for_enough_to_do_a_pause_and_room() {
        assert!(DUE.is_due());
        assert!(!Seen { last_level_bytes: 70 << 20, ..DUE }.is_due());
        assert!(!Seen { bytes_per_second: 100_000.0, ..DUE }.is_due());
        assert!(!Seen { free_bytes: 160 << 20, ..DUE }.is_due());
        assert!(!Seen { tables_bytes: 31 << 20, last_level_bytes: 0, ..DUE }.is_due());
    }
}
