//! Which of this node's requests are still open. Pure.

use std::{collections::BTreeSet, sync::Arc};

use parking_lot::Mutex;

/// Requests a process may number before its numbers reach those of its next start: at a million a second, 12 days
/// times a thousand.
const REQUESTS_PER_START: u32 = 40;

/// Numbers requests, and knows the lowest one that may still be proposed (again).
#[derive(Debug)]
pub(super) struct Tracker {
    next: u64,
    open: BTreeSet<u64>,
}

impl Tracker {
    /// A tracker whose numbers were never given before: the store takes a lower number than one it has seen settled
    /// for an old request, so numbers must rise across restarts.
    pub(super) fn new(starts: u64) -> Self {
        Self { next: starts << REQUESTS_PER_START, open: BTreeSet::new() }
    }

    fn begin(&mut self) -> u64 {
        let request = self.next;
        self.next += 1;
        self.open.insert(request);
        request
    }

    /// All requests below this one have been answered, or will never be proposed again.
    fn settled(&self) -> u64 {
        self.open.first().copied().unwrap_or(self.next)
    }
}

/// A tracker that many callers share.
#[derive(Clone, Debug)]
pub(super) struct Requests(Arc<Mutex<Tracker>>);

impl Requests {
    pub(super) fn new(starts: u64) -> Self {
        Self(Arc::new(Mutex::new(Tracker::new(starts))))
    }

    /// Opens a request.
    pub(super) fn begin(&self) -> OpenRequest {
        OpenRequest { number: self.0.lock().begin(), requests: self.clone() }
    }

    /// See [`Tracker::settled`].
    pub(super) fn settled(&self) -> u64 {
        self.0.lock().settled()
    }
}

/// An open request. It is settled when this is dropped, whatever becomes of its caller.
#[derive(Debug)]
pub(super) struct OpenRequest {
    number: u64,
    requests: Requests,
}

impl OpenRequest {
    pub(super) fn number(&self) -> u64 {
        self.number
    }
}

impl Drop for OpenRequest {
    fn drop(&mut self) {
        self.requests.0.lock().open.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settled_is_the_lowest_open_request() {
        let requests = Requests::new(0);
        let (a, b, c) = (requests.begin(), requests.begin(), requests.begin());
        assert_eq!((a.number(), requests.settled()), (0, 0));
        drop(b);
        assert_eq!(requests.settled(), 0);
        drop(a);
        assert_eq!(requests.settled(), 2);
        drop(c);
        assert_eq!(requests.settled(), 3);
        assert_eq!(requests.begin().number(), 3);
    }

    #[test]
    fn numbers_rise_across_restarts() {
        let before = Requests::new(1);
        let last = (0..1000).map(|_| before.begin().number()).max();
        assert!(Some(Requests::new(2).begin().number()) > last);
    }
}
