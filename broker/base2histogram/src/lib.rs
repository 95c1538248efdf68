//! A histogram of the name, and with the part of the interface, that openraft uses for statistics of its own core.
//!
//! It is not a general histogram, and nothing of the broker reads it. It stands in (by `[patch.crates-io]`) for the crate
//! of this name, which makes tables for every precision it knows at the first use of any: 25 MiB that are never read
//! again, more than all else that an idle node keeps. What is left out is what only openraft's feature `runtime-stats`
//! calls.

use std::{fmt, marker::PhantomData};

/// Bits of a value below its highest one that a bucket keeps: a bucket is at most a quarter of its values wide.
const BITS: u32 = 2;

/// Buckets per power of two.
const PER_POWER: usize = 1 << BITS;

/// Buckets for all of `u64`: one per value below [`PER_POWER`], then [`PER_POWER`] for each of the powers above.
const BUCKETS: usize = PER_POWER * (64 - BITS as usize + 1);

/// Counts of values by size. It takes no memory for buckets before the first value.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Histogram<T = ()> {
    counts: Vec<u64>,
    total: u64,
    data: PhantomData<T>,
}

/// Values below which stand so many of all: `p99` 99 %, `p0_1` 0.1 %. Each is the least value of its bucket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PercentileStats {
    /// How many values were counted; with none all else is 0.
    pub samples: u64,
    /// 0.1 %
    pub p0_1: u64,
    /// 1 %
    pub p1: u64,
    /// 5 %
    pub p5: u64,
    /// 10 %
    pub p10: u64,
    /// 50 %
    pub p50: u64,
    /// 90 %
    pub p90: u64,
    /// 99 %
    pub p99: u64,
    /// 99.9 %
    pub p99_9: u64,
}

impl fmt::Display for PercentileStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} values, p50 {}, p90 {}, p99 {}, p99.9 {}", self.samples, self.p50, self.p90, self.p99, self.p99_9)
    }
}

/// Histograms by name. openraft builds one only for a report that needs its feature `runtime-stats`.
#[derive(Clone, Debug, Default)]
pub struct AsciiChart<T = ()> {
    series: Vec<(String, Histogram<T>)>,
}

impl<T> Histogram<T> {
    /// A histogram of nothing.
    #[must_use]
    pub fn new() -> Self {
        Self { counts: Vec::new(), total: 0, data: PhantomData }
    }

    /// Counts a value.
    pub fn record(&mut self, value: u64) {
        self.record_n(value, 1);
    }

    /// Counts a value so many times.
    pub fn record_n(&mut self, value: u64, times: u64) {
        if self.counts.is_empty() {
            self.counts = vec![0; BUCKETS];
        }
        if let Some(count) = self.counts.get_mut(bucket(value)) {
            *count = count.saturating_add(times);
            self.total = self.total.saturating_add(times);
        }
    }

    /// How many values were counted.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.total
    }

    /// The values at the usual shares.
    #[must_use]
    pub fn percentile_stats(&self) -> PercentileStats {
        PercentileStats {
            samples: self.total,
            p0_1: self.at(1),
            p1: self.at(10),
            p5: self.at(50),
            p10: self.at(100),
            p50: self.at(500),
            p90: self.at(900),
            p99: self.at(990),
            p99_9: self.at(999),
        }
    }

    /// The least value of the bucket in which so many thousandths of all values are reached; 0 without values.
    fn at(&self, thousandths: u128) -> u64 {
        let wanted = (u128::from(self.total) * thousandths).div_ceil(1000);
        let mut seen = 0;
        let reached = self.counts.iter().position(|count| {
            seen += u128::from(*count);
            seen >= wanted
        });
        reached.map_or(0, least)
    }
}

impl<T> AsciiChart<T> {
    /// A chart of nothing.
    #[must_use]
    pub fn new() -> Self {
        Self { series: Vec::new() }
    }

    /// The chart with one more histogram.
    #[must_use]
    pub fn add(mut self, name: &str, histogram: Histogram<T>) -> Self {
        self.series.push((name.to_owned(), histogram));
        self
    }
}

/// The bucket that holds a value.
fn bucket(value: u64) -> usize {
    let highest = value.checked_ilog2().unwrap_or(0);
    let shift = highest.saturating_sub(BITS);
    let within = (value >> shift) as usize;
    if highest < BITS { within } else { shift as usize * PER_POWER + within }
}

/// The least value that a bucket holds.
fn least(bucket: usize) -> u64 {
    if bucket < 2 * PER_POWER {
        return bucket as u64;
    }
    let shift = bucket / PER_POWER - 1;
    ((bucket % PER_POWER + PER_POWER) as u64) << shift
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_is_in_the_bucket_that_begins_at_most_a_quarter_below_it() {
        let edges = (0..64).flat_map(|power| [1_u64 << power, (1 << power) + 1, (1_u64 << power) - 1]);
        for value in edges.chain(0..5000).chain([u64::MAX]) {
            let least = least(bucket(value));
            assert!(bucket(value) < BUCKETS, "{value}");
            assert!(least <= value && value - least <= value / 4, "{value} is in the bucket of {least}");
        }
    }

    #[test]
    fn buckets_follow_each_other_without_a_gap() {
        for next in 1..BUCKETS {
            assert_eq!(bucket(least(next)), next);
            assert_eq!(bucket(least(next) - 1), next - 1);
        }
    }

    #[test]
    fn percentiles_are_the_values_that_were_counted() {
        let mut histogram = Histogram::<()>::new();
        assert_eq!(histogram.percentile_stats(), PercentileStats::default());
        (0..1000).for_each(|value| histogram.record(if value < 900 { 3 } else { 1024 }));
        let stats = histogram.percentile_stats();
        assert_eq!((stats.samples, stats.p0_1, stats.p50, stats.p90, stats.p99), (1000, 3, 3, 3, 1024));
    }
}
