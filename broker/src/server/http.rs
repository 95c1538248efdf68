//! The HTTP side, for those who watch the broker: health checks and metrics.
//!
//! Plain HTTP, without tokens: nothing here speaks of records.

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
    routing::get,
};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::metrics::Metrics;
use crate::node::{self, Node};

/// How long a check waits for the node before it says no. Probes give up after a second by default.
const PROBE_MAX: Duration = Duration::from_millis(800);

/// The content type of OpenMetrics.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What the pages are made from.
#[derive(Clone)]
pub(super) struct Pages {
    pub(super) node: Node,
    pub(super) closing: CancellationToken,
    pub(super) metrics: Arc<Metrics>,
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
    // A node without a leader is alive; one whose disk has failed, or whose threads no longer move, is not.
    match timeout(PROBE_MAX, pages.node.fence()).await {
        Ok(Err(error @ node::Error::Failed { .. })) => no(error),
        Ok(_) => "alive\n".into_response(),
        Err(_) => no("the node's threads do not move"),
    }
}

async fn ready(State(pages): State<Pages>) -> Response {
    if pages.closing.is_cancelled() {
        return no("the broker is shutting down");
    }
    match timeout(PROBE_MAX, pages.node.fence()).await {
        Ok(Ok(_)) => "ready\n".into_response(),
        Ok(Err(error)) => no(error),
        Err(_) => no("the node cannot answer reads now"),
    }
}

fn no(reason: impl std::fmt::Display) -> Response {
    (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")).into_response()
}

async fn show_metrics(State(pages): State<Pages>) -> Response {
    match pages.metrics.text() {
        Ok(text) => ([(CONTENT_TYPE, OPEN_METRICS)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}
