//! What a broker that was killed, or whose files were damaged, may have lost: nothing that it acknowledged.
//!
//! `load` writes and remembers what was acknowledged; `history` compares that with what a restarted broker holds; `damage`
//! spoils copies of a data folder; `full` fills a volume.
//!
//! Environment: `CRASH_ROUNDS` (kills; default 10), `CRASH_COPIES` (damaged copies; default 30), `CRASH_SEED` (default:
//! random, printed).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
// `pub` means here: for the other files of this test.
#![allow(unreachable_pub)]

mod damage;
mod full;
mod history;
mod load;
#[path = "../support/mod.rs"]
mod support;

use std::{path::Path, str::FromStr, time::Duration};

use rand::{RngExt as _, SeedableRng as _, rngs::SmallRng};

use self::{
    damage::Damage,
    history::{Finding, History},
    load::{Load, WRITERS},
    support::Broker,
};

fn from_environment<T: FromStr>(name: &str, default: T) -> T {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

fn seeded(test: &str) -> SmallRng {
    let seed = from_environment("CRASH_SEED", rand::random::<u64>());
    println!("{test}: CRASH_SEED={seed}");
    SmallRng::seed_from_u64(seed)
}

fn start(folder: &Path) -> Broker {
    Broker::start(folder).unwrap_or_else(|refusal| panic!("the broker does not start: {refusal:?}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acknowledged_is_lost_when_the_broker_is_killed_under_load() {
    let rounds: usize = from_environment("CRASH_ROUNDS", 10);
    let mut random = seeded("kill");
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("data");
    let mut history = History::default();
    for round in 1..=rounds {
        // Killed while it opens, too: what a replay leaves half done must not count.
        if round % 3 == 0 {
            let mut child = Broker::spawn(&folder);
            tokio::time::sleep(Duration::from_millis(random.random_range(0..150))).await;
            child.kill().unwrap();
            child.wait().unwrap();
        }
        let broker = start(&folder);
        history.check(&mut broker.client().await).await.unwrap_or_else(|finding| panic!("round {round}: {finding}"));
        let load = Load::start(&broker, &mut history, &mut random).await;
        tokio::time::sleep(Duration::from_millis(random.random_range(20..600))).await;
        broker.kill();
        load.end(&mut history).await;
    }
    let broker = start(&folder);
    history.check(&mut broker.client().await).await.unwrap_or_else(|finding| panic!("after the last round: {finding}"));
    println!("{rounds} kills, {} acknowledged operations, {} versions", history.acknowledged, history.versions());
    assert!(history.acknowledged > rounds * WRITERS, "the load was too light to prove anything");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_on_demand_loses_nothing_and_answers_what_it_took() {
    let mut random = seeded("stop");
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("data");
    let mut history = History::default();
    for _ in 0..3 {
        let broker = start(&folder);
        history.check(&mut broker.client().await).await.unwrap_or_else(|finding| panic!("{finding}"));
        let load = Load::start(&broker, &mut history, &mut random).await;
        tokio::time::sleep(Duration::from_millis(random.random_range(50..300))).await;
        let status = broker.stop();
        assert!(status.success(), "ended with {status}");
        load.end(&mut history).await;
    }
    let broker = start(&folder);
    history.check(&mut broker.client().await).await.unwrap_or_else(|finding| panic!("{finding}"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damaged_files_are_read_whole_or_refused_and_never_silently_short() {
    let copies: usize = from_environment("CRASH_COPIES", 30);
    let mut random = seeded("damage");
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("data");
    let mut history = History::default();
    // Several lives, so that tables, journals and a replayed log are there to be damaged.
    for _ in 0..4 {
        let broker = start(&folder);
        history.check(&mut broker.client().await).await.unwrap_or_else(|finding| panic!("{finding}"));
        let load = Load::start(&broker, &mut history, &mut random).await;
        tokio::time::sleep(Duration::from_millis(700)).await;
        if random.random_bool(0.5) {
            broker.kill();
        } else {
            broker.stop();
        }
        load.end(&mut history).await;
    }
    let (mut whole, mut refused, mut unreadable) = (0, 0, 0);
    let mut wrong = Vec::new();
    for copy in 0..copies {
        let copied = parent.path().join(format!("copy-{copy}"));
        damage::copy_folder(&folder, &copied);
        let damage = Damage::inflict(&copied, &mut random);
        match verdict(&copied, &history).await {
            Verdict::Whole => whole += 1,
            Verdict::Refused => refused += 1,
            Verdict::Unreadable => unreadable += 1,
            Verdict::Wrong(what) => wrong.push(format!("{damage}: {what}")),
        }
        std::fs::remove_dir_all(&copied).unwrap();
    }
    println!("{copies} damaged copies: {whole} whole, {refused} refused at start, {unreadable} refused when read");
    assert!(wrong.is_empty(), "{} of {copies} copies:\n{}", wrong.len(), wrong.join("\n"));
}

enum Verdict {
    /// Everything acknowledged is there.
    Whole,
    /// It did not start, and said why.
    Refused,
    /// It started, and a read met the damage and failed.
    Unreadable,
    /// Something acknowledged is missing or different, or nothing says what is wrong.
    Wrong(String),
}

async fn verdict(folder: &Path, history: &History) -> Verdict {
    let broker = match Broker::start(folder) {
        Ok(broker) => broker,
        Err(refusal) if refusal.status.code() != Some(0) && refusal.status.code().is_some() => {
            let panicked = refusal.stderr.contains("panicked at");
            return if refusal.stderr.trim().is_empty() || panicked {
                Verdict::Wrong(format!("refused without a clear error: {refusal:?}"))
            } else {
                Verdict::Refused
            };
        }
        Err(refusal) => return Verdict::Wrong(format!("ended with {refusal:?}")),
    };
    match history.clone().check(&mut broker.client().await).await {
        Ok(()) => Verdict::Whole,
        Err(Finding::Unreadable(_)) => Verdict::Unreadable,
        Err(finding @ Finding::Wrong(_)) => Verdict::Wrong(finding.to_string()),
    }
}
