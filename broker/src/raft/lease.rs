//! What a leader's lease rests on: every follower's word that, for a while after it heard the leader, it helps nobody else
//! to lead.
//!
//! openraft forgets its word when the process ends, and takes for granted that all nodes give the same. So a node that
//! starts again keeps the word of the process before, and a leader reads by its lease only while all voters' words last as
//! long as that. Not here: the lease itself (openraft), and which reads need one (`node`).

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use openraft::async_runtime::WatchReceiver as _;
use parking_lot::RwLock;
use tokio::time::{Instant, sleep, sleep_until};

use super::{NodeId, Replica, Timers, runtime::Runtime};

/// The word that the process before may have given last.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct OldWord(Option<Instant>);

impl OldWord {
    /// One for so many milliseconds, given a moment ago at the latest.
    pub(super) fn given(millis: u64) -> Self {
        Self(Instant::now().checked_add(Duration::from_millis(millis)))
    }

    /// Whether one may have been given.
    pub(super) fn is_any(self) -> bool {
        self.0.is_some()
    }

    /// Returns once it is kept.
    pub(super) async fn kept(self) {
        if let Some(until) = self.0 {
            sleep_until(until).await;
        }
    }
}

/// For how many milliseconds each node keeps its word, as it said when it answered last.
#[derive(Clone, Debug, Default)]
pub(super) struct Words(Arc<RwLock<BTreeMap<NodeId, u64>>>);

impl Words {
    /// A node answers. Heard before openraft counts the answer for the lease.
    pub(super) fn hear(&self, from: NodeId, millis: u64) {
        // Nearly always the same.
        if self.0.read().get(&from) != Some(&millis) {
            self.0.write().insert(from, millis);
        }
    }

    /// Forgets those that are no members.
    pub(super) fn retain(&self, is_member: impl Fn(NodeId) -> bool) {
        self.0.write().retain(|node, _| is_member(*node));
    }

    /// Whether all of these keep their word for so long. One that has not said so does not.
    pub(super) fn last(&self, millis: u64, mut nodes: impl Iterator<Item = NodeId>) -> bool {
        let words = self.0.read();
        nodes.all(|node| words.get(&node).is_some_and(|word| *word >= millis))
    }
}

impl<R: Runtime> Replica<R> {
    /// Whether nobody else can be elected while this leader's lease lasts.
    pub(super) fn may_read_by_lease(&self) -> bool {
        let metrics = self.raft.server_metrics();
        let metrics = metrics.borrow_watched();
        let others = metrics.membership_config.voter_ids().filter(|node| *node != self.node_id);
        self.words.last(self.word_ms, others)
    }

    /// Keeps the word of the process before; then this node may campaign.
    pub(super) async fn keep_old_word(self, word_before: Option<u64>, timers: Timers) {
        self.old_word.kept().await;
        if word_before.is_some_and(|before| before > self.word_ms) {
            // If it cannot be noted the node is about to end, and has said why.
            drop(self.log.note_word(self.word_ms).await);
        }
        if self.old_word.is_any() {
            // Nodes that were started together must not campaign together.
            let spread = timers.election_ms_max.saturating_sub(timers.election_ms_min).saturating_add(1);
            sleep(Duration::from_millis(self.node_id % spread)).await;
        }
        self.campaign();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_rests_on_words_that_last_as_long() {
        let words = Words::default();
        assert!(words.last(400, [].into_iter()));
        words.hear(1, 400);
        assert!(words.last(400, [1].into_iter()) && !words.last(400, [1, 2].into_iter()));
        words.hear(2, 300);
        assert!(words.last(300, [1, 2].into_iter()) && !words.last(400, [1, 2].into_iter()));
        words.hear(2, 500);
        assert!(words.last(400, [1, 2].into_iter()));
        words.retain(|node| node == 1);
        assert!(!words.last(400, [1, 2].into_iter()));
    }

    #[tokio::test(start_paused = true)]
    async fn an_old_word_is_kept_for_its_time_and_none_at_once() {
        let began = Instant::now();
        OldWord::default().kept().await;
        assert_eq!(began.elapsed(), Duration::ZERO);
        let word = OldWord::given(400);
        word.kept().await;
        assert!(began.elapsed() >= Duration::from_millis(400));
    }
}
