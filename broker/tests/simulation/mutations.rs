//! The mutation gate: with each rule broken by a switch, some seed must break a rule that the judge holds. A switch
//! that nobody notices means that the simulation is too weak.
//!
//! Environment: `SIMULATION_MUTATIONS` (the name of one; default: all).
//!
//! Not here: the switches (`databroker::mutation`).

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::{Duration, Instant},
};

use databroker::mutation::Mutation;
use parking_lot::Mutex;

use crate::{
    THREADS,
    faults::Climate,
    trial::{Outcome, run_as},
};

/// Seeds that a switch may take.
const SEEDS_MAX: u64 = 2000;

/// Time that a switch may take: for a machine that has little of it, so that the seeds decide.
const PATIENCE: Duration = Duration::from_secs(600);

/// What provokes the consequences of a mutation more often than an ordinary world does.
fn provoke(mutation: Mutation, climate: &mut Climate) {
    match mutation {
        Mutation::ClearBeforeInstall => climate.weather.accidents = 800,
        Mutation::StepWithoutCatchUp => (climate.grows, climate.moves, climate.writer_pause) = (true, true, 20),
        Mutation::WipedKeepsId | Mutation::NoRetirement | Mutation::SnapshotWithoutCounters => climate.moves = true,
        _ => {}
    }
}

/// The lowest seed that notices, of those that were tried.
fn notice(mutation: Mutation) -> (Option<Outcome>, u64) {
    let (next, found, began) = (AtomicU64::new(1), Mutex::new(None::<Outcome>), Instant::now());
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                while found.lock().is_none() && began.elapsed() < PATIENCE {
                    let seed = next.fetch_add(1, Relaxed);
                    if seed > SEEDS_MAX {
                        return;
                    }
                    let outcome = run_as(seed, Some(mutation), |climate| provoke(mutation, climate));
                    if outcome.violation.is_some() {
                        found.lock().get_or_insert(outcome);
                    }
                }
            });
        }
    });
    (found.into_inner(), next.into_inner() - 1)
}

#[test]
fn every_mutation_is_noticed() {
    let wanted = std::env::var("SIMULATION_MUTATIONS").unwrap_or_default();
    let wanted = |mutation: &Mutation| wanted.is_empty() || format!("{mutation:?}") == wanted;
    let mut unnoticed = Vec::new();
    println!("{:<24} {:>6} {:>8}  noticed by", "mutation", "seeds", "seconds");
    for mutation in Mutation::ALL.into_iter().filter(wanted) {
        let began = Instant::now();
        let (found, seeds) = notice(mutation);
        let by = found.and_then(|outcome| outcome.violation).map_or("nobody".into(), |violation| violation.to_string());
        println!("{:<24} {seeds:>6} {:>8.1}  {}", format!("{mutation:?}"), began.elapsed().as_secs_f64(), cut(&by));
        if by == "nobody" {
            unnoticed.push(mutation);
        }
    }
    assert!(unnoticed.is_empty(), "nobody notices {unnoticed:?}");
}

/// The first words are enough.
fn cut(text: &str) -> String {
    text.chars().take(110).collect()
}
