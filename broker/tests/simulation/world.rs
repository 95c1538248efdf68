//! What everything in one simulated world shares: the dice, the trace, the counters, and the judge.
//!
//! All chance comes from the dice, which are seeded. The trace is hashed as it grows: the same seed gives the same
//! hash. Not here: what is thrown for.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
    ops::Range,
    time::Duration,
};

use parking_lot::Mutex;
use rand::{RngExt as _, SeedableRng as _, rngs::SmallRng};
use tokio::time::Instant;

use crate::judge::Judge;

/// Lines of the trace that are kept for a report.
const LINES_KEPT: usize = 50;

/// One world.
pub struct World {
    dice: Mutex<SmallRng>,
    trace: Mutex<Trace>,
    counts: Mutex<BTreeMap<&'static str, u64>>,
    /// Whether the whole trace is printed.
    prints: bool,
    pub judge: Mutex<Judge>,
    pub began: Instant,
}

#[derive(Default)]
struct Trace {
    hash: u64,
    lines: VecDeque<String>,
}

impl World {
    /// A world whose chances follow from the seed. To be made inside its runtime: its time begins here.
    pub fn new(seed: u64) -> Self {
        Self {
            dice: Mutex::new(SmallRng::seed_from_u64(seed)),
            trace: Mutex::default(),
            counts: Mutex::default(),
            prints: std::env::var_os("SIMULATION_TRACE").is_some(),
            judge: Mutex::default(),
            began: Instant::now(),
        }
    }

    /// A number of a range.
    pub fn pick(&self, range: Range<u64>) -> u64 {
        self.dice.lock().random_range(range)
    }

    /// An index of so many.
    pub fn index(&self, of: usize) -> usize {
        self.dice.lock().random_range(0..of.max(1))
    }

    /// True so many times of a thousand.
    pub fn chance(&self, permille: u64) -> bool {
        permille > 0 && self.pick(0..1000) < permille
    }

    /// A time between two, in milliseconds.
    pub fn millis(&self, range: Range<u64>) -> Duration {
        Duration::from_millis(self.pick(range))
    }

    /// Waits for a time between two, in milliseconds.
    pub async fn pause(&self, range: Range<u64>) {
        let time = self.millis(range);
        if !time.is_zero() {
            tokio::time::sleep(time).await;
        }
    }

    /// Time since the world began.
    pub fn time(&self) -> Duration {
        self.began.elapsed()
    }

    /// Adds a line to the trace.
    pub fn note(&self, line: fmt::Arguments<'_>) {
        let line = format!("{:>7} {line}", self.time().as_millis());
        if self.prints {
            println!("{line}");
        }
        let mut trace = self.trace.lock();
        for byte in line.bytes() {
            // FNV-1a: the same on every machine and release.
            trace.hash = (trace.hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        if trace.lines.len() == LINES_KEPT {
            trace.lines.pop_front();
        }
        trace.lines.push_back(line);
    }

    /// The hash of the trace so far.
    pub fn trace_hash(&self) -> u64 {
        self.trace.lock().hash
    }

    /// The newest lines of the trace.
    pub fn last_lines(&self) -> Vec<String> {
        self.trace.lock().lines.iter().cloned().collect()
    }

    /// Counts something for the report.
    pub fn count(&self, what: &'static str) {
        *self.counts.lock().entry(what).or_default() += 1;
    }

    /// What was counted.
    pub fn counts(&self) -> BTreeMap<&'static str, u64> {
        self.counts.lock().clone()
    }

    /// A rule was broken.
    pub fn violation(&self, rule: &'static str, what: impl fmt::Display) {
        self.note(format_args!("VIOLATION {rule}: {what}"));
        self.judge.lock().violation(rule, what);
    }

    /// A rule was broken, and the rest of the run says nothing any more.
    pub fn is_over(&self) -> bool {
        self.judge.lock().first.is_some()
    }
}
