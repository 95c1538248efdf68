//! What a cluster of processes may lose when nodes are killed, frozen, cut off, removed or lose their disks: nothing that
//! was acknowledged, and no stream's place.
//!
//! Writers and streams roam over the nodes; a proxy in front of each node cuts connections. Afterwards all
//! acknowledged writes must be there at their versions, every stream must have seen every version once, in order and
//! with the same content, and all nodes must hold the last state.
//!
//! Environment: `FAULTS_ROUNDS` (how often each fault happens; default 2; `full`: as often as before a release, where
//! figures are wanted with `--test-threads=1`), `FAULTS_SEED` (default: random, printed), `FAULTS_RECORDS` (what a new
//! node has to be sent; default 20000).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
// `pub` means here: for the other files of this test.
#![allow(unreachable_pub)]

mod attempts;
mod clients;
mod cluster;
mod history;
mod learner;
mod membership;
mod metrics;
mod modes;
mod outages;
mod proxy;
mod reads;
mod recovery;
mod roaming;
#[path = "../support/mod.rs"]
mod support;
mod tools;
mod trial;

use std::str::FromStr;

use rand::{SeedableRng as _, rngs::SmallRng};

fn from_environment<T: FromStr>(name: &str, default: T) -> T {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

fn seeded(test: &str) -> SmallRng {
    let seed = from_environment("FAULTS_SEED", rand::random::<u64>());
    println!("{test}: FAULTS_SEED={seed}");
    SmallRng::seed_from_u64(seed)
}

/// Whether this is a run as before a release.
fn wants_figures() -> bool {
    std::env::var("FAULTS_ROUNDS").as_deref() == Ok("full")
}

/// How often a fault happens, where `full` is how often it does before a release.
fn rounds(full: usize) -> usize {
    match std::env::var("FAULTS_ROUNDS").as_deref() {
        Ok("full") => full,
        Ok(text) => text.parse().expect("FAULTS_ROUNDS is a number, or `full`"),
        Err(_) => 2,
    }
}
