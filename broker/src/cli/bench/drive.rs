//! Callers that call until their time is up: back to back, or at a given rate. Not here: what they call.

use std::time::Duration;

use tokio::{
    task::JoinSet,
    time::{Instant, sleep, sleep_until, timeout_at},
};
use tonic::Status;

use super::{
    tally::Tally,
    usage::{Meter, Usage},
};

/// Calls still unanswered this long after the end count as failed, so that a run always ends.
const GRACE: Duration = Duration::from_secs(20);

/// After a failed call; a server that is down must not be asked a million times.
const PAUSE_AFTER_ERROR: Duration = Duration::from_millis(10);

/// How hard and how long.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Pace {
    /// Callers at once.
    pub(super) callers: usize,
    /// Calls before this time do not count.
    pub(super) warm_up: Duration,
    /// How long it is counted.
    pub(super) duration: Duration,
    /// Calls per second of all callers together; `None`: each calls again as soon as it has its answer.
    pub(super) rate: Option<f64>,
}

/// Someone who calls.
pub(super) trait Caller: Send + 'static {
    /// One call; how many units it did.
    fn call(&mut self) -> impl Future<Output = Result<u64, Status>> + Send;
}

/// What came of a run.
#[derive(Debug)]
pub(super) struct Outcome {
    /// The counts of all callers.
    pub(super) tally: Tally,
    /// How long it was counted.
    pub(super) elapsed: Duration,
    /// What it cost.
    pub(super) usage: Usage,
}

impl Outcome {
    /// Units per second.
    pub(super) fn per_second(&self) -> f64 {
        self.tally.units as f64 / self.elapsed.as_secs_f64().max(1e-9)
    }
}

/// When one caller's calls are due.
#[derive(Clone, Copy, Debug)]
struct Turns {
    next: Instant,
    step: Option<Duration>,
}

impl Turns {
    /// Callers take turns, so that calls at a rate are spread evenly.
    fn of(caller: usize, pace: &Pace, start: Instant) -> Self {
        let Some(rate) = pace.rate.filter(|rate| *rate > 0.0) else { return Self { next: start, step: None } };
        let step = Duration::from_secs_f64(pace.callers.max(1) as f64 / rate);
        Self { next: start + step.mul_f64(caller as f64 / pace.callers.max(1) as f64), step: Some(step) }
    }

    /// Waits for the next turn. The time it was due is where its latency starts: had the server been faster, the call
    /// would have been made then.
    async fn wait(&mut self) -> Instant {
        let Some(step) = self.step else { return Instant::now() };
        let due = self.next;
        self.next += step;
        sleep_until(due).await;
        due
    }
}

/// Runs `callers` to the end of their time and adds up what they counted.
pub(super) async fn run<C: Caller>(pace: &Pace, server: Option<u32>, callers: impl IntoIterator<Item = C>) -> Outcome {
    let start = Instant::now();
    let counted_from = start + pace.warm_up;
    let end = counted_from + pace.duration;
    let mut tasks = JoinSet::new();
    for (number, caller) in callers.into_iter().take(pace.callers).enumerate() {
        tasks.spawn(until_end(caller, Turns::of(number, pace, start), counted_from, end));
    }
    sleep_until(counted_from).await;
    let meter = Meter::start(server);
    let tally = tasks.join_all().await.into_iter().collect();
    Outcome { tally, elapsed: counted_from.elapsed(), usage: meter.stop() }
}

async fn until_end<C: Caller>(mut caller: C, mut turns: Turns, counted_from: Instant, end: Instant) -> Tally {
    let mut tally = Tally::new();
    loop {
        let due = turns.wait().await;
        if due >= end {
            return tally;
        }
        // The deadline is the run's, not the call's: one timer entry that hardly ever fires.
        let Ok(result) = timeout_at(end + GRACE, caller.call()).await else {
            tally.failed(&Status::deadline_exceeded("no answer until the end of the run"));
            return tally;
        };
        match result {
            Ok(units) if due >= counted_from => tally.succeeded(units, due.elapsed()),
            Ok(_) => {}
            Err(status) => {
                tally.failed(&status);
                sleep(PAUSE_AFTER_ERROR).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fixed(Duration);

    impl Caller for Fixed {
        async fn call(&mut self) -> Result<u64, Status> {
            sleep(self.0).await;
            Ok(1)
        }
    }

    fn pace(callers: usize, rate: Option<f64>) -> Pace {
        Pace { callers, warm_up: Duration::from_secs(1), duration: Duration::from_secs(10), rate }
    }

    #[tokio::test(start_paused = true)]
    async fn callers_without_a_rate_call_back_to_back() {
        let pace = pace(2, None);
        let outcome = run(&pace, None, (0..2).map(|_| Fixed(Duration::from_millis(100)))).await;
        assert!((195..=205).contains(&outcome.tally.calls), "{outcome:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn callers_keep_to_a_rate() {
        let pace = pace(4, Some(50.0));
        let outcome = run(&pace, None, (0..4).map(|_| Fixed(Duration::from_millis(1)))).await;
        assert!((495..=505).contains(&outcome.tally.calls), "{outcome:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_that_had_to_wait_for_the_one_before_is_slow() {
        // Ten calls a second are due, but each takes a second: the last due in the window waits for all before it.
        let pace = pace(1, Some(10.0));
        let outcome = run(&pace, None, [Fixed(Duration::from_secs(1))]).await;
        assert!(outcome.tally.latencies.summary().unwrap().max_ms > 10_000.0, "{outcome:?}");
    }
}
