//! Whether the leader that this node knows of is still there.
//!
//! A term does not move while nobody can be elected, so that the leader of the term is known long after it has gone: that
//! is good enough as a hint whom to ask, and wrong as an answer to who leads. Not here: what openraft decides by it.

use std::{sync::Arc, time::Duration};

use databroker_proto::internal::Vote;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::NodeId;

/// So many times the longest wait for a leader, and nobody leads: an election, and one that failed, fit in.
const ELECTIONS: u32 = 3;

#[derive(Clone, Copy, Debug)]
struct Heard {
    term: u64,
    leader: NodeId,
    at: Instant,
}

/// When a leader was heard last, and which.
#[derive(Clone, Debug)]
pub(super) struct Presence {
    last: Arc<Mutex<Option<Heard>>>,
    /// A leader that was silent for longer is none.
    silence_max: Duration,
}

impl Presence {
    pub(super) fn new(election_ms_max: u64) -> Self {
        Self { last: Arc::default(), silence_max: Duration::from_millis(election_ms_max) * ELECTIONS }
    }

    /// A leader speaks. One whose term is over says nothing.
    pub(super) fn note(&self, vote: Option<&Vote>) {
        let Some(Vote { term, node: Some(leader), .. }) = vote else { return };
        let mut last = self.last.lock();
        if last.is_none_or(|last| last.term <= *term) {
            *last = Some(Heard { term: *term, leader: *leader, at: Instant::now() });
        }
    }

    /// Whether the leader of a term was heard lately.
    pub(super) fn is_there(&self, term: u64, leader: NodeId) -> bool {
        let last = *self.last.lock();
        last.is_some_and(|last| (last.term, last.leader) == (term, leader) && self.is_recent(last.at.elapsed()))
    }

    /// Whether a silence of this length is none.
    pub(super) fn is_recent(&self, silence: Duration) -> bool {
        silence <= self.silence_max
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vote(term: u64, node: NodeId) -> Vote {
        Vote { term, node: Some(node), committed: true }
    }

    #[tokio::test(start_paused = true)]
    async fn a_leader_is_there_for_three_elections_after_it_spoke() {
        let presence = Presence::new(400);
        assert!(!presence.is_there(3, 7), "known from before a restart, never heard");
        presence.note(Some(&vote(3, 7)));
        assert!(presence.is_there(3, 7) && !presence.is_there(4, 7) && !presence.is_there(3, 8));
        tokio::time::advance(Duration::from_millis(1200)).await;
        assert!(presence.is_there(3, 7));
        tokio::time::advance(Duration::from_millis(1)).await;
        assert!(!presence.is_there(3, 7));
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_led_before_does_not_count() {
        let presence = Presence::new(400);
        presence.note(Some(&vote(4, 8)));
        presence.note(Some(&vote(3, 7)));
        presence.note(None);
        assert!(presence.is_there(4, 8) && !presence.is_there(3, 7));
    }
}
