//! Who refuses this node, or is refused by it, and why: remembered so that each is told once, and shown while it lasts.
//!
//! Not here: what is refused (`answer`, `peer`).

use std::collections::BTreeMap;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::directory::LATELY;

/// Peers remembered at most: as many as are greeted in a round. Names that strangers give themselves are without end.
const PEERS_MAX: usize = super::hello::PEERS_MAX;

#[derive(Debug)]
struct Refusal {
    reason: String,
    at: Instant,
}

/// The last refusal of each peer.
#[derive(Debug, Default)]
pub(super) struct Refusals(Mutex<BTreeMap<String, Refusal>>);

impl Refusals {
    /// Takes note of a refusal. True if it is news: the first of this peer, or for another reason than its last.
    pub(super) fn note(&self, peer: &str, reason: &str) -> bool {
        let mut refusals = self.0.lock();
        let refusal = Refusal { reason: reason.into(), at: Instant::now() };
        let before = refusals.insert(peer.into(), refusal);
        if refusals.len() > PEERS_MAX {
            let oldest = refusals.iter().min_by_key(|(_, refusal)| refusal.at).map(|(peer, _)| peer.clone());
            oldest.and_then(|peer| refusals.remove(&peer));
        }
        before.is_none_or(|before| before.reason != reason)
    }

    /// The peer does not refuse any longer. True if it did.
    pub(super) fn forget(&self, peer: &str) -> bool {
        self.0.lock().remove(peer).is_some()
    }

    /// Who refused lately, and why.
    pub(super) fn recent(&self) -> BTreeMap<String, String> {
        let refusals = self.0.lock();
        let recent = refusals.iter().filter(|(_, refusal)| refusal.at.elapsed() <= LATELY);
        recent.map(|(peer, refusal)| (peer.clone(), refusal.reason.clone())).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_refusal_is_news_once_until_its_reason_changes_or_it_ends() {
        let refusals = Refusals::default();
        let news = |peer, reason| refusals.note(peer, reason);
        assert!(news("a", "x") && !news("a", "x") && news("b", "x") && news("a", "y") && !news("a", "y"));
        assert!(refusals.forget("a") && !refusals.forget("a"));
        assert!(news("a", "y"));
        tokio::time::advance(LATELY + Duration::from_millis(1)).await;
        assert!(!news("a", "y"), "it has not changed, however long nothing was heard");
        assert_eq!(refusals.recent(), BTreeMap::from([("a".into(), "y".into())]));
    }

    #[tokio::test(start_paused = true)]
    async fn the_oldest_is_forgotten_when_there_are_too_many() {
        let refusals = Refusals::default();
        for peer in 0..=PEERS_MAX {
            refusals.note(&format!("p{peer}"), "x");
            tokio::time::advance(Duration::from_millis(1)).await;
        }
        assert_eq!(refusals.recent().len(), PEERS_MAX);
        assert!(refusals.note("p0", "x"));
    }
}
