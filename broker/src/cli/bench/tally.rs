//! What a run counted: operations, their latencies, errors.

use std::{fmt, time::Duration};

use hdrhistogram::Histogram;
use tonic::Status;

use super::super::failure::code_name;

/// Latencies above this are recorded as this; a run is over long before.
const LATENCY_MICROS_MAX: u64 = 600_000_000;
const SIGNIFICANT_DIGITS: u8 = 3;

/// Latencies in microseconds, about 0.1 % exact.
#[derive(Clone)]
pub(super) struct Latencies(Option<Histogram<u32>>);

impl Latencies {
    /// None yet.
    pub(super) fn new() -> Self {
        // The bounds are constants that the library accepts; without a histogram only the latencies would be missing.
        Self(Histogram::new_with_bounds(1, LATENCY_MICROS_MAX, SIGNIFICANT_DIGITS).ok())
    }

    /// Adds one.
    pub(super) fn record(&mut self, latency: Duration) {
        let micros = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
        if let Some(histogram) = &mut self.0 {
            histogram.saturating_record(micros.clamp(1, LATENCY_MICROS_MAX));
        }
    }

    /// Adds all of another.
    pub(super) fn add(&mut self, other: &Self) {
        if let (Some(mine), Some(theirs)) = (&mut self.0, &other.0) {
            // Both have the same bounds, the only thing that could fail.
            let _ = mine.add(theirs);
        }
    }

    /// The usual quantiles, unless there is nothing.
    pub(super) fn summary(&self) -> Option<Summary> {
        let histogram = self.0.as_ref().filter(|histogram| !histogram.is_empty())?;
        let millis = |quantile| histogram.value_at_quantile(quantile) as f64 / 1000.0;
        Some(Summary { p50_ms: millis(0.5), p99_ms: millis(0.99), max_ms: histogram.max() as f64 / 1000.0 })
    }
}

impl fmt::Debug for Latencies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Latencies({:?})", self.summary())
    }
}

/// Quantiles in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub(super) struct Summary {
    /// Half were faster.
    pub(super) p50_ms: f64,
    /// One in a hundred was slower.
    pub(super) p99_ms: f64,
    /// The slowest.
    pub(super) max_ms: f64,
}

/// One caller's counts, or those of several added up.
#[derive(Clone, Debug)]
pub(super) struct Tally {
    /// Units done: calls, records or events, as the workload says.
    pub(super) units: u64,
    /// Calls that succeeded.
    pub(super) calls: u64,
    /// Latency of each of them.
    pub(super) latencies: Latencies,
    /// Attempts that were made again, on another address.
    pub(super) retried: u64,
    /// Calls that failed.
    pub(super) errors: u64,
    /// The first failure, as a person reads it.
    pub(super) first_error: Option<String>,
}

impl Tally {
    /// Nothing yet.
    pub(super) fn new() -> Self {
        Self { units: 0, calls: 0, latencies: Latencies::new(), retried: 0, errors: 0, first_error: None }
    }

    /// A call that did `units`.
    pub(super) fn succeeded(&mut self, units: u64, latency: Duration) {
        self.units += units;
        self.calls += 1;
        self.latencies.record(latency);
    }

    /// A call that failed.
    pub(super) fn failed(&mut self, status: &Status) {
        self.errors += 1;
        self.first_error.get_or_insert_with(|| format!("{}: {}", code_name(status.code()), status.message()));
    }

    /// Adds another's counts.
    pub(super) fn add(&mut self, other: &Self) {
        self.units += other.units;
        self.calls += other.calls;
        self.latencies.add(&other.latencies);
        self.retried += other.retried;
        self.errors += other.errors;
        if self.first_error.is_none() {
            self.first_error.clone_from(&other.first_error);
        }
    }
}

impl FromIterator<Self> for Tally {
    fn from_iter<I: IntoIterator<Item = Self>>(tallies: I) -> Self {
        tallies.into_iter().fold(Self::new(), |mut sum, tally| {
            sum.add(&tally);
            sum
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tallies_add_up() {
        let mut one = Tally::new();
        one.succeeded(100, Duration::from_millis(1));
        let mut other = Tally::new();
        other.succeeded(100, Duration::from_millis(9));
        other.failed(&Status::aborted("no"));
        other.retried = 3;
        let sum: Tally = [one, other].into_iter().collect();
        assert_eq!((sum.units, sum.calls, sum.retried, sum.errors), (200, 2, 3, 1));
        assert_eq!(sum.first_error.as_deref(), Some("ABORTED: no"));
        let summary = sum.latencies.summary().unwrap();
        assert!((0.99..1.01).contains(&summary.p50_ms) && (8.9..9.1).contains(&summary.max_ms), "{summary:?}");
    }

    #[test]
    fn no_calls_have_no_latency() {
        assert_eq!(Tally::new().latencies.summary(), None);
    }
}
