//! The HTTP side, for those who watch the broker: health checks and metrics.
//!
//! Plain HTTP, without tokens: nothing here speaks of records.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
    routing::get,
};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use parking_lot::Mutex;
use tokio::{net::TcpListener, sync::Semaphore, time::timeout};
use tokio_util::sync::CancellationToken;

use super::metrics::Metrics;
use crate::{
    net,
    node::{self, Node},
};

/// How long a check waits for the node before it says no. Probes give up after a second by default.
const PROBE_MAX: Duration = Duration::from_millis(800);

/// How long an entry of the log may wait to be applied before the threads that write are taken for stuck. A disk may
/// well pause for seconds.
const STUCK_AFTER: Duration = Duration::from_secs(30);

/// Connections that are open at a time; more wait to be accepted. Those who watch are few, and ask one thing at a time; and
/// where few files may be open, the engines need the rest.
const CONNECTIONS_MAX: usize = 64;

/// How long a connection may last, from its first byte to the last of its answer: whoever connects and says nothing must not
/// keep others out.
const CONNECTION_MAX: Duration = Duration::from_secs(5);

/// The content type of OpenMetrics.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What the pages are made from.
#[derive(Clone)]
pub(super) struct Pages {
    pub(super) node: Node,
    pub(super) leaving: CancellationToken,
    pub(super) metrics: Arc<Metrics>,
    pub(super) watchdog: Arc<Mutex<Watchdog>>,
}

/// Notices that a thread moves no more although there is something for it to do: the one that writes the log, or the one
/// that applies what is committed. What is not committed says nothing of this node: without a majority it waits for others.
#[derive(Debug, Default)]
pub(super) struct Watchdog {
    writing: Pace,
    applying: Pace,
}

impl Watchdog {
    /// Looks at the node, and says whether its threads are stuck.
    fn is_stuck(&mut self, status: &node::Status, now: Instant) -> bool {
        let writes = self.writing.rests(status.written_index, status.last_log_index, now);
        let applies = self.applying.rests(status.applied_index, status.committed_index, now);
        writes.max(applies) > STUCK_AFTER
    }
}

/// How far a thread was when it was first seen to wait for more, and when that was.
#[derive(Debug, Default)]
struct Pace(Option<(Option<u64>, Instant)>);

impl Pace {
    /// For how long it has been there, with more before it.
    fn rests(&mut self, done: Option<u64>, wanted: Option<u64>, now: Instant) -> Duration {
        if wanted <= done {
            self.0 = None;
            return Duration::ZERO;
        }
        let (_, since) = *self.0.insert(self.0.filter(|(before, _)| *before == done).unwrap_or((done, now)));
        now.duration_since(since)
    }
}

/// Serves pages, one to a connection.
pub(super) async fn serve(tcp: TcpListener, router: Router) {
    let free = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut protocol = http1::Builder::new();
    protocol.timer(TokioTimer::new()).keep_alive(false);
    loop {
        let ((socket, _), permit) = net::accept(&free, || tcp.accept()).await;
        let connection = protocol.serve_connection(TokioIo::new(socket), TowerToHyperService::new(router.clone()));
        tokio::spawn(async move {
            if let Ok(Err(error)) = timeout(CONNECTION_MAX, connection).await {
                tracing::debug!(%error, "a connection for health or metrics broke");
            }
            drop(permit);
        });
    }
}

/// Health checks.
pub(super) fn health(pages: Pages) -> Router {
    Router::new()
        .route("/healthz", get(alive))
        .route("/readyz", get(ready))
        // The ports listen only once the store is open: that somebody answers is all there is to ask.
        .route("/startupz", get(|| async { "started\n" }))
        .with_state(pages)
}

/// Metrics.
pub(super) fn metrics(pages: Pages) -> Router {
    Router::new().route("/metrics", get(show_metrics)).with_state(pages)
}

async fn alive(State(pages): State<Pages>) -> Response {
    // A node without a leader is alive; one whose disk has failed, or no longer answers, is not.
    if let Some(reason) = pages.node.failure() {
        return no(reason);
    }
    if pages.watchdog.lock().is_stuck(&pages.node.status(), Instant::now()) {
        return no("the threads that write to the disk do not move");
    }
    "alive\n".into_response()
}

async fn ready(State(pages): State<Pages>) -> Response {
    if pages.leaving.is_cancelled() {
        return no("the broker is shutting down");
    }
    match timeout(PROBE_MAX, pages.node.fence()).await {
        Ok(Ok(_)) => match pages.node.clock_too_far_behind() {
            Some(behind) => {
                let seconds = behind.as_secs();
                format!("ready, but the clock is {seconds} s behind the store's time: nothing expires\n")
                    .into_response()
            }
            None => format!("ready{}\n", clocks(&pages.node.clocks_differing())).into_response(),
        },
        Ok(Err(error)) => no(error),
        Err(_) => no("the node cannot answer reads now"),
    }
}

/// Whose clocks differ, if any do: a node whose clock is wrong serves, but somebody should look after it.
fn clocks(differing: &BTreeMap<String, i64>) -> String {
    let each = differing.iter().map(|(peer, ahead)| {
        let (seconds, which) = (ahead.unsigned_abs() / 1000, if *ahead > 0 { "ahead" } else { "behind" });
        format!("{peer} is {seconds} s {which}")
    });
    let each: Vec<_> = each.collect();
    if each.is_empty() { String::new() } else { format!(", but clocks differ: {}", each.join(", ")) }
}

fn no(reason: impl std::fmt::Display) -> Response {
    (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")).into_response()
}

async fn show_metrics(State(pages): State<Pages>) -> Response {
    match tokio::task::spawn_blocking(move || pages.metrics.text()).await {
        Ok(Ok(text)) => ([(CONTENT_TYPE, OPEN_METRICS)], text).into_response(),
        Ok(Err(error)) => no(error),
        Err(error) => no(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_that_is_ready_says_whose_clock_differs() {
        let differing = BTreeMap::from([("n1".to_owned(), 6_500), ("n2".to_owned(), -61_000)]);
        assert_eq!(clocks(&differing), ", but clocks differ: n1 is 6 s ahead, n2 is 61 s behind");
        assert_eq!(clocks(&BTreeMap::new()), "");
    }

    #[test]
    fn a_node_is_stuck_when_it_applies_nothing_for_too_long_although_there_is_more() {
        let at = |committed, applied| node::Status {
            last_log_index: Some(committed),
            written_index: Some(committed),
            committed_index: Some(committed),
            applied_index: Some(applied),
            ..node::Status::default()
        };
        let (mut watchdog, start) = (Watchdog::default(), Instant::now());
        let late = start + STUCK_AFTER + Duration::from_secs(1);
        assert!(!watchdog.is_stuck(&at(5, 4), start));
        assert!(watchdog.is_stuck(&at(9, 4), late));
        // It moves, and then catches up.
        assert!(!watchdog.is_stuck(&at(9, 5), late));
        assert!(!watchdog.is_stuck(&at(9, 9), late));
        assert!(!watchdog.is_stuck(&at(10, 9), late + STUCK_AFTER * 2));
    }

    #[test]
    fn a_node_without_a_majority_is_alive_and_one_whose_disk_hangs_is_not() {
        let at = |last, written| node::Status {
            last_log_index: Some(last),
            written_index: Some(written),
            committed_index: Some(4),
            applied_index: Some(4),
            ..node::Status::default()
        };
        let (start, late) = (Instant::now(), Instant::now() + STUCK_AFTER * 2);
        // What is in the log and cannot be committed stays so for as long as the others are away.
        let mut alone = Watchdog::default();
        assert!(!alone.is_stuck(&at(5, 5), start) && !alone.is_stuck(&at(5, 5), late));
        let mut hanging = Watchdog::default();
        assert!(!hanging.is_stuck(&at(6, 5), start) && hanging.is_stuck(&at(6, 5), late));
    }
}
