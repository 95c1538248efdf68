//! Purges the log whenever the store was synced, of what no follower that answers has yet to get.
//!
//! Not here: how much stays (`retention`), syncing (`machine`).

use std::time::Duration;

use openraft::{RaftMetrics, async_runtime::WatchReceiver as _};

use super::{Replica, TypeConfig, runtime::Runtime};

/// How long a triggered snapshot may take before the log is purged without it.
const SNAPSHOT_PATIENCE: Duration = Duration::from_secs(10);

impl<R: Runtime> Replica<R> {
    /// Has the store synced when its log has grown by bytes, for openraft itself counts entries; and the log purged whenever
    /// the store was synced.
    pub(super) async fn follow_size(self) {
        let mut built = self.machine.built.subscribe();
        loop {
            let done = tokio::select! {
                () = self.machine.sync_due.notified() => self.raft.trigger().snapshot().await,
                _ = built.changed() => {
                    let synced = *built.borrow_and_update();
                    let snapshot = self.raft.wait(Some(SNAPSHOT_PATIENCE));
                    let is_known = |metrics: &RaftMetrics<TypeConfig<R>>| metrics.snapshot.map(|id| id.index) >= Some(synced);
                    // What openraft does not know to be synced it does not purge; the next round makes up for it.
                    drop(snapshot.metrics(is_known, "snapshot").await);
                    match self.machine.purge_upto(synced, self.needed()) {
                        Some(upto) => self.raft.trigger().purge_log(upto).await,
                        None => Ok(()),
                    }
                }
            };
            if done.is_err() {
                return;
            }
        }
    }

    /// After which index a follower that answers has yet to get entries, if the log has all of them; nowhere where this node
    /// does not lead.
    fn needed(&self) -> Option<u64> {
        let purged = self.raft.metrics().borrow_watched().purged.map(|id| id.index);
        let (matched, answering) = (self.matched(), self.answering());
        let mut underway = self.underway.lock();
        underway.retain(|node, end| matched.get(node).is_some_and(|matched| *matched < Some(*end)));
        let followers = matched.iter().filter(|(node, _)| answering.contains(node));
        let needed = followers.filter_map(|(node, matched)| underway.get(node).copied().max(*matched));
        needed.filter(|index| Some(*index) >= purged).min()
    }
}
