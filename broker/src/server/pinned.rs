//! What a stream holds while its client reads, given back if the client does not.
//!
//! A snapshot keeps the store from freeing whatever has changed since. HTTP/2 asks a stream for more only when its client
//! has taken what there was, so a stream cannot notice by itself that nobody reads: a clock beside it does.

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::time::{Instant, sleep_until};
use tokio_util::task::AbortOnDropHandle;

use super::status::Error;

/// Something held for a client that reads.
pub(super) struct Pinned<T> {
    held: Arc<Mutex<Held<T>>>,
    _clock: AbortOnDropHandle<()>,
}

struct Held<T> {
    /// `None` once it was given back.
    what: Option<Arc<T>>,
    asked_for: Instant,
}

impl<T: Send + Sync + 'static> Pinned<T> {
    /// Holds on until nobody has asked for so long; then tells.
    pub(super) fn new(what: Arc<T>, idle_max: Duration, given_back: impl FnOnce() + Send + 'static) -> Self {
        let held = Arc::new(Mutex::new(Held { what: Some(what), asked_for: Instant::now() }));
        let clock = tokio::spawn(give_back(held.clone(), idle_max, given_back));
        Self { held, _clock: AbortOnDropHandle::new(clock) }
    }

    /// What is held. The client has taken all it was sent before.
    ///
    /// # Errors
    /// When it was given back.
    pub(super) fn get(&self) -> Result<Arc<T>, Error> {
        let mut held = self.held.lock();
        held.asked_for = Instant::now();
        held.what.clone().ok_or(Error::Stalled)
    }
}

async fn give_back<T>(held: Arc<Mutex<Held<T>>>, idle_max: Duration, given_back: impl FnOnce()) {
    loop {
        let due = held.lock().asked_for + idle_max;
        sleep_until(due).await;
        let mut held = held.lock();
        if held.asked_for + idle_max <= Instant::now() {
            held.what = None;
            break;
        }
    }
    given_back();
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

    use super::*;

    const MAX: Duration = Duration::from_secs(10);

    fn pinned() -> (Pinned<()>, std::sync::Weak<()>, Arc<AtomicU32>) {
        let what = Arc::new(());
        let (weak, told) = (Arc::downgrade(&what), Arc::new(AtomicU32::new(0)));
        let counter = told.clone();
        let tell = move || {
            counter.fetch_add(1, Relaxed);
        };
        (Pinned::new(what, MAX, tell), weak, told)
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_asked_for_is_held_and_what_is_not_is_given_back_once() {
        let (pinned, weak, told) = pinned();
        for _ in 0..5 {
            tokio::time::sleep(MAX * 9 / 10).await;
            assert!(pinned.get().is_ok());
        }
        assert!(weak.upgrade().is_some());
        tokio::time::sleep(MAX * 11 / 10).await;
        assert!(weak.upgrade().is_none());
        assert!(matches!(pinned.get(), Err(Error::Stalled)));
        tokio::time::sleep(MAX * 2).await;
        assert_eq!(told.load(Relaxed), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_that_ends_holds_nothing_and_is_not_counted() {
        let (pinned, weak, told) = pinned();
        tokio::task::yield_now().await;
        drop(pinned);
        tokio::time::sleep(MAX * 2).await;
        assert!(weak.upgrade().is_none());
        assert_eq!(told.load(Relaxed), 0);
    }
}
