//! Whole clusters in virtual time: the real nodes, on simulated disks, networks and clocks, under everything that may
//! happen to them; afterwards the rules R1 to R15 (see `judge`) must hold. The same seed gives the same run.
//!
//! ```text
//!   faults ─▶ cluster (hosts: disk, process, real Node) ◀─ clients ─▶ judge
//!                 └─ network ─┘     auditor, network ──────────────▶ judge
//! ```
//!
//! Runs with the feature `mutations` and `RUSTFLAGS="--cfg tokio_unstable"` only, for tokio's seeded scheduler: see
//! `e2e/test simulation`.
//!
//! Environment: `SIMULATION_SEED` (one seed; with `SIMULATION_TRACE` all of its trace), else `SIMULATION_SEEDS` (how many; default 40) or
//! `SIMULATION_MINUTES` (default 3), whichever is first, from `SIMULATION_FIRST` on (default: random, printed).
//!
//! Not here: real disks, sockets and threads (`crash`, `faults`).
#![cfg(tokio_unstable)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
// `pub` means here: for the other files of this test.
#![allow(unreachable_pub, missing_docs)]

mod auditor;
mod clients;
mod cluster;
mod disk;
mod faults;
mod judge;
mod mutations;
mod network;
mod records;
mod runtime;
mod scripted;
mod trial;
mod world;

use std::{
    collections::BTreeMap,
    process::Command,
    str::FromStr,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use self::trial::{Outcome, run};

/// Seeds that once found something, which are run first and for ever.
const KNOWN: &str = include_str!("seeds.txt");

fn known_seeds() -> impl Iterator<Item = u64> {
    KNOWN.lines().filter_map(|line| line.split_whitespace().next()?.parse().ok())
}

fn from_environment<T: FromStr>(name: &str) -> Option<T> {
    std::env::var(name).ok()?.parse().ok()
}

/// Worlds run side by side, each on a thread of its own.
const THREADS: usize = 2;

/// What all seeds together came to.
#[derive(Default)]
struct Sum {
    seeds: u64,
    virtual_time: Duration,
    counts: BTreeMap<&'static str, u64>,
    failed: Vec<Outcome>,
}

impl Sum {
    fn add(&mut self, outcome: Outcome) {
        self.seeds += 1;
        self.virtual_time += outcome.virtual_time;
        for (what, count) in &outcome.counts {
            *self.counts.entry(what).or_default() += count;
        }
        if outcome.violation.is_some() {
            outcome.print();
            self.failed.push(outcome);
        }
    }

    fn print(&self, took: Duration) {
        let per_minute = self.seeds as f64 * 60.0 / took.as_secs_f64();
        println!(
            "simulation: {} seeds in {:.0} s ({per_minute:.0} a minute), {:.0} virtual seconds, {} failed",
            self.seeds,
            took.as_secs_f64(),
            self.virtual_time.as_secs_f64(),
            self.failed.len()
        );
        for (what, count) in &self.counts {
            println!("  {count:>9} {what}");
        }
    }
}

/// A world that takes longer than this, in real time, goes round in circles without its time moving on.
const ENDLESS: Duration = Duration::from_secs(120);

/// Seeds under way, and since when.
type UnderWay = Mutex<BTreeMap<u64, Instant>>;

/// Ends the process, for a circle cannot be left from outside.
fn watch_for_circles(under_way: &UnderWay, is_done: impl Fn() -> bool) {
    while !is_done() {
        std::thread::sleep(Duration::from_millis(50));
        let endless = under_way.lock().iter().find(|(_, since)| since.elapsed() > ENDLESS).map(|(seed, _)| *seed);
        if let Some(seed) = endless {
            println!(
                "seed {seed} goes round in circles: R11\n  again with: SIMULATION_SEED={seed} e2e/test simulation"
            );
            std::process::exit(1);
        }
    }
}

/// Runs seeds until they are through, the time is over, or several have failed.
fn run_all(seeds: &[u64], limit: Duration) -> Sum {
    /// More say no more.
    const FAILURES_MAX: usize = 5;
    let (next, sum, began) = (AtomicU64::new(0), Mutex::new(Sum::default()), Instant::now());
    let (under_way, idle) = (UnderWay::default(), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                while began.elapsed() < limit && sum.lock().failed.len() < FAILURES_MAX {
                    let Some(seed) = seeds.get(next.fetch_add(1, Relaxed) as usize) else { break };
                    under_way.lock().insert(*seed, Instant::now());
                    let outcome = run(*seed);
                    under_way.lock().remove(seed);
                    sum.lock().add(outcome);
                }
                idle.fetch_add(1, Relaxed);
            });
        }
        watch_for_circles(&under_way, || idle.load(Relaxed) == THREADS as u64);
    });
    let sum = sum.into_inner();
    sum.print(began.elapsed());
    sum
}

#[test]
fn the_rules_hold_whatever_happens() {
    if let Some(seed) = from_environment("SIMULATION_SEED") {
        let outcome = run(seed);
        outcome.print();
        assert!(outcome.violation.is_none());
        return;
    }
    let count = from_environment("SIMULATION_SEEDS").unwrap_or(40);
    let minutes: f64 = from_environment("SIMULATION_MINUTES").unwrap_or(3.0);
    let first = from_environment("SIMULATION_FIRST").unwrap_or_else(|| u64::from(rand::random::<u32>()));
    println!("simulation: SIMULATION_FIRST={first}");
    let seeds: Vec<u64> = known_seeds().chain(first..first + count).collect();
    let sum = run_all(&seeds, Duration::from_secs_f64(minutes * 60.0));
    let failed: Vec<u64> = sum.failed.iter().map(|outcome| outcome.seed).collect();
    assert!(failed.is_empty(), "seeds {failed:?} failed");
}

/// In two processes, so that addresses, hash seeds and the real time differ.
#[test]
fn the_same_seed_gives_the_same_trace_in_two_processes() {
    const ASKED: &str = "SIMULATION_HASH_OF";
    if let Some(seed) = from_environment(ASKED) {
        let outcome = run(seed);
        println!("hash {:016x} of {} events", outcome.trace_hash, outcome.counts.values().sum::<u64>());
        return;
    }
    let hash_of = |seed: u64| {
        let mut child = Command::new(std::env::current_exe().unwrap());
        child.args(["the_same_seed_gives_the_same_trace_in_two_processes", "--exact", "--nocapture"]);
        let output = child.env(ASKED, seed.to_string()).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.lines().find(|line| line.contains("hash ")).unwrap_or_else(|| panic!("no hash in {text}")).to_owned()
    };
    for seed in [7, 8] {
        assert_eq!(hash_of(seed), hash_of(seed), "seed {seed}");
    }
    assert_ne!(hash_of(7), hash_of(8));
}
