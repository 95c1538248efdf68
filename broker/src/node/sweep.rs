//! The leader's broom: proposes `Sweep`, which removes old changes, records past their ttl, and expired services, and goes
//! on with what writes and options have left.
//!
//! When is decided purely; what goes is decided in the store.

use std::{sync::Weak, time::Duration};

use databroker_proto::internal::{Sweep, Swept};

use super::{Node, Shared};
use crate::{
    raft::runtime::Runtime,
    store::{
        Progress,
        command::{Kind, outcome},
    },
};

/// How long changes stay in the change log. Whichever bound is met first counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChangeLog {
    /// So long.
    pub keep: Duration,
    /// So many bytes.
    pub bytes_max: u64,
}

/// How often there is a sweep at least.
const EVERY_NANOS: u64 = 60_000_000_000;
/// How often at most, unless the last one left something.
const PAUSE_NANOS: u64 = 1_000_000_000;
/// What one sweep deletes of each kind at most: a few milliseconds during which nothing else is applied.
const DELETIONS_MAX: u32 = 10_000;

/// What the last sweep of this leader said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Last {
    at_nanos: Option<u64>,
    more: bool,
    /// That the clock is behind has been said.
    warned: bool,
}

/// When the next sweep is due.
fn due_nanos(last: Last, progress: &Progress) -> u64 {
    let Some(at) = last.at_nanos.filter(|_| !last.more) else { return 0 };
    let is_left = progress.evicting || progress.indexing;
    let expiry = if is_left { 0 } else { progress.next_service_expiry_nanos.unwrap_or(u64::MAX) };
    expiry.clamp(at.saturating_add(PAUSE_NANOS), at.saturating_add(EVERY_NANOS))
}

/// Sweeps for as long as somebody holds the node. Looks once a pause whether something is due: registry entries come
/// and go.
pub(super) async fn run<R: Runtime>(node: Weak<Shared<R>>, change_log: ChangeLog) {
    let mut last = Last::default();
    while let Some(shared) = node.upgrade() {
        last = look(&Node { shared }, change_log, last).await;
        if !last.more {
            tokio::time::sleep(Duration::from_nanos(PAUSE_NANOS)).await;
        }
    }
}

async fn look<R: Runtime>(node: &Node<R>, change_log: ChangeLog, last: Last) -> Last {
    if !node.role().leads {
        // What is left is the business of whoever leads now.
        return Last::default();
    }
    let now = node.clock().now_nanos();
    let behind = node.clock_too_far_behind();
    if let Some(behind) = behind.filter(|_| !last.warned) {
        tracing::warn!(
            seconds = behind.as_secs(),
            "the clock is behind the store's time: leases, times to live and the registry stand still until it catches up"
        );
    }
    let last = Last { warned: behind.is_some(), ..last };
    // A clock that was set back says nothing about how long ago the last sweep was.
    let set_back = last.at_nanos.is_some_and(|at| now < at);
    if !set_back && now < due_nanos(last, &node.reader().progress()) {
        return last;
    }
    Last { at_nanos: Some(now), more: sweep(node, change_log, now).await, ..last }
}

/// Proposes one sweep; true if it left something.
async fn sweep<R: Runtime>(node: &Node<R>, change_log: ChangeLog, now: u64) -> bool {
    let keep = u64::try_from(change_log.keep.as_nanos()).unwrap_or(u64::MAX);
    let kind = Kind::Sweep(Sweep {
        change_log_cutoff_nanos: now.saturating_sub(keep),
        change_log_bytes_max: change_log.bytes_max,
        deletions_max: DELETIONS_MAX,
    });
    match node.propose_own(kind).await.map(|answer| answer.outcome.kind) {
        Ok(Some(outcome::Kind::Swept(Swept { more, change_log_entries, records, services }))) => {
            tracing::debug!(change_log_entries, records, services, more, "swept");
            more
        }
        // Nothing to sweep before `Init`, and no use in trying again at once after an error.
        Ok(_) | Err(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: u64 = 1_000_000_000;

    #[test]
    fn a_sweep_is_due_each_minute_when_something_expires_or_when_more_is_left() {
        let last = |at: u64, more| Last { at_nanos: Some(at), more, warned: false };
        let due = |last, next_service_expiry_nanos| {
            due_nanos(last, &Progress { next_service_expiry_nanos, ..Progress::default() })
        };
        assert_eq!(due(Last::default(), None), 0);
        assert_eq!(due(last(100 * S, true), None), 0);
        assert_eq!(due(last(100 * S, false), None), 160 * S);
        assert_eq!(due(last(100 * S, false), Some(130 * S)), 130 * S);
        assert_eq!(due(last(100 * S, false), Some(900 * S)), 160 * S);
        // Twice a second is too often, even if an entry is overdue.
        assert_eq!(due(last(100 * S, false), Some(50 * S)), 101 * S);
        let evicting = Progress { evicting: true, ..Progress::default() };
        assert_eq!(due_nanos(last(100 * S, false), &evicting), 101 * S);
        let indexing = Progress { indexing: true, ..Progress::default() };
        assert_eq!(due_nanos(last(100 * S, false), &indexing), 101 * S);
    }
}
