//! What can be measured of the operator, in OpenMetrics text, and whether it is well.
//!
//! Not here: the brokers' own metrics.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
    routing::get,
};
use prometheus_client::{
    metrics::{counter::Counter, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};
use tokio::net::TcpListener;

/// Upper bounds of the buckets for visits, in seconds.
const SECONDS: [f64; 9] = [0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 2.5, 5.0, 15.0];

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// All metrics.
pub struct Metrics {
    registry: Registry,
    runs: Counter,
    failures: Counter,
    seconds: Histogram,
    leading: Gauge,
    ready: AtomicBool,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("databroker_operator");
        let (runs, failures) = (Counter::default(), Counter::default());
        let (seconds, leading) = (Histogram::new(SECONDS), Gauge::default());
        registry.register("reconcile_runs", "Visits to Databrokers", runs.clone());
        registry.register("reconcile_failures", "Visits that ended with an error", failures.clone());
        registry.register("reconcile_duration_seconds", "How long visits took", seconds.clone());
        registry.register("leading", "1 where this replica holds the Lease, and works", leading.clone());
        Self { registry, runs, failures, seconds, leading, ready: AtomicBool::new(false) }
    }
}

impl Metrics {
    /// A visit ended.
    pub fn reconciled(&self, took: Duration, failed: bool) {
        self.runs.inc();
        self.seconds.observe(took.as_secs_f64());
        if failed {
            self.failures.inc();
        }
    }

    /// This replica works, or waits for its turn.
    pub fn lead(&self, leads: bool) {
        self.leading.set(leads.into());
    }

    /// The API server was reached.
    pub fn ready(&self) {
        self.ready.store(true, Relaxed);
    }
}

/// Serves `/healthz`, `/readyz` and `/metrics` for as long as it is polled.
///
/// # Errors
/// The port cannot be had.
pub async fn serve(address: SocketAddr, metrics: Arc<Metrics>) -> std::io::Result<()> {
    let pages = Router::new()
        .route("/healthz", get(|| async { "alive\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(show))
        .with_state(metrics);
    axum::serve(TcpListener::bind(address).await?, pages).await
}

async fn ready(State(metrics): State<Arc<Metrics>>) -> Response {
    if metrics.ready.load(Relaxed) {
        "ready\n".into_response()
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "the API server was not reached yet\n").into_response()
    }
}

async fn show(State(metrics): State<Arc<Metrics>>) -> Response {
    let mut text = String::new();
    match prometheus_client::encoding::text::encode(&mut text, &metrics.registry) {
        Ok(()) => ([(CONTENT_TYPE, OPEN_METRICS)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}
