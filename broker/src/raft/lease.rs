//! What a leader's lease rests on: every follower's word that, for a while after it heard the leader, it helps nobody else
//! to lead.
//!
//! openraft forgets its word when the process ends, and takes for granted that all nodes give the same. So a node that
//! starts again keeps the word of the process before, and a leader reads by its lease only while all voters' words last as
//! long as that. Not here: the lease itself (openraft), and which reads need one (`node`).

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use parking_lot::RwLock;
use tokio::time::{Instant, sleep_until};

use super::NodeId;

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
