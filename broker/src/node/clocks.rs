//! What differing clocks mean. Pure: comparing and handing over are others'.
//!
//! The leader's clock is the store's time, which never runs back: a leader that is ahead makes leases and records of
//! all nodes expire early, and after it nothing expires until the others have caught up. Not here: a clock that is
//! behind the store's time already (`Node::clock_behind`).

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use tokio::time::Instant;

use super::directory::LATELY;
use crate::raft::NodeId;

/// How long a leader is ahead before it acts: a message that was held up makes one clock seem to be behind, but not two
/// rounds of Hello long. After an attempt that failed it waits as long again, for writes are held while it is made.
const SETTLED: Duration = LATELY;

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

/// Of those heard lately, by name: who differs from this node by more than `max`, and how far they are ahead, in milliseconds.
pub(super) fn differing(max: Duration, ahead_millis: &BTreeMap<String, i64>) -> BTreeMap<String, i64> {
    let too_far = |(_, ahead): &(&String, &i64)| ahead.abs() > millis(max);
    ahead_millis.iter().filter(too_far).map(|(name, ahead)| (name.clone(), *ahead)).collect()
}

/// If this node is ahead of a majority of all voters by more than `max`: those it is ahead of. `others` has, of the other
/// voters that were heard lately, how far they are ahead of it, in milliseconds.
pub(super) fn ahead_of(max: Duration, voters: usize, others: &BTreeMap<NodeId, i64>) -> Option<BTreeSet<NodeId>> {
    let behind: BTreeSet<NodeId> =
        others.iter().filter(|(_, ahead)| **ahead < -millis(max)).map(|(node, _)| *node).collect();
    (behind.len() > voters / 2).then_some(behind)
}

/// Remembers how long something has been so.
#[derive(Debug, Default)]
pub(super) struct Since(Option<Instant>);

impl Since {
    /// Whether it is time to act on it: it has been so for long enough, and then begins anew.
    pub(super) fn is_due(&mut self, so: bool, now: Instant) -> bool {
        let since = *self.0.get_or_insert(now);
        let due = so && now.duration_since(since) >= SETTLED;
        if !so || due {
            self.0 = None;
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX: Duration = Duration::from_secs(5);

    #[test]
    fn a_node_hands_over_only_if_it_is_ahead_of_a_majority_of_all_voters() {
        let others = |ahead: &[(NodeId, i64)]| ahead.iter().copied().collect();
        assert_eq!(ahead_of(MAX, 3, &others(&[(2, -5001), (3, -9000)])), Some(BTreeSet::from([2, 3])));
        assert_eq!(ahead_of(MAX, 3, &others(&[(2, -5000), (3, -9000)])), None, "just within the bound");
        assert_eq!(ahead_of(MAX, 3, &others(&[(2, -9000)])), None, "the third was not heard");
        assert_eq!(ahead_of(MAX, 3, &others(&[(2, 9000), (3, 9000)])), None, "it is behind");
        assert_eq!(ahead_of(MAX, 2, &others(&[(2, -9000)])), None, "of two nobody knows who is right");
        assert_eq!(ahead_of(MAX, 5, &others(&[(2, -9000), (3, -9000), (4, 0), (5, 0)])), None);
        assert_eq!(ahead_of(MAX, 1, &others(&[])), None);
    }

    #[test]
    fn either_way_counts_as_differing() {
        let clocks = [("a", -5001), ("b", 5001), ("c", 5000)].map(|(name, ahead)| (name.to_owned(), ahead)).into();
        assert_eq!(differing(MAX, &clocks).into_keys().collect::<Vec<_>>(), ["a", "b"]);
    }

    #[tokio::test(start_paused = true)]
    async fn it_acts_after_a_while_and_then_waits_again() {
        let mut since = Since::default();
        let mut after = async |millis, so| {
            tokio::time::advance(Duration::from_millis(millis)).await;
            since.is_due(so, Instant::now())
        };
        let long = SETTLED.as_millis() as u64;
        assert!(!after(0, true).await && !after(long - 1, true).await && !after(0, false).await);
        assert!(!after(1, true).await, "it was not so in between");
        assert!(after(long, true).await && !after(1, true).await);
        assert!(!after(long - 1, true).await && after(1, true).await);
    }
}
