//! Callers that call until their time is up: back to back, or at a given rate. Not here: what they call.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

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

    /// How many attempts at calls were made again since this was last asked.
    fn take_retried(&mut self) -> u64 {
        0
    }
}

/// What came of a run.
#[derive(Debug)]
pub(super) struct Outcome {
    /// The counts of all callers.
    pub(super) tally: Tally,
    /// How long it was counted.
    pub(super) elapsed: Duration,
    /// The longest time in which no call of anybody succeeded, where that was looked at.
    pub(super) longest_gap: Option<Duration>,
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

/// When calls succeed, in microseconds from a beginning.
struct Pulse {
    begin: Instant,
    last: AtomicU64,
    longest_gap: AtomicU64,
}

impl Pulse {
    fn new(begin: Instant) -> Self {
        Self { begin, last: AtomicU64::new(0), longest_gap: AtomicU64::new(0) }
    }

    fn succeeded(&self, now: Instant) {
        let now = u64::try_from(now.saturating_duration_since(self.begin).as_micros()).unwrap_or(u64::MAX);
        let before = self.last.fetch_max(now, Relaxed);
        self.longest_gap.fetch_max(now.saturating_sub(before), Relaxed);
    }

    /// The longest time without a success until the end.
    fn longest_gap(&self, end: Instant) -> Duration {
        self.succeeded(end);
        Duration::from_micros(self.longest_gap.load(Relaxed))
    }
}

/// Runs `callers` to the end of their time and adds up what they counted.
pub(super) async fn run<C: Caller>(pace: &Pace, server: Option<u32>, callers: impl IntoIterator<Item = C>) -> Outcome {
    let start = Instant::now();
    let counted_from = start + pace.warm_up;
    let end = counted_from + pace.duration;
    let pulse = Arc::new(Pulse::new(counted_from));
    let mut tasks = JoinSet::new();
    for (number, caller) in callers.into_iter().take(pace.callers).enumerate() {
        tasks.spawn(until_end(caller, Turns::of(number, pace, start), pulse.clone(), end));
    }
    sleep_until(counted_from).await;
    let meter = Meter::start(server);
    let tally = tasks.join_all().await.into_iter().collect();
    let longest_gap = Some(pulse.longest_gap(end));
    Outcome { tally, elapsed: counted_from.elapsed(), longest_gap, usage: meter.stop() }
}

async fn until_end<C: Caller>(mut caller: C, mut turns: Turns, pulse: Arc<Pulse>, end: Instant) -> Tally {
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
        let counts = due >= pulse.begin;
        let retried = caller.take_retried();
        tally.retried += if counts { retried } else { 0 };
        if result.is_ok() {
            pulse.succeeded(Instant::now());
        }
        match result {
            Ok(units) if counts => tally.succeeded(units, due.elapsed()),
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

    #[test]
    fn the_longest_gap_is_that_of_all_callers_together_to_the_end() {
        let begin = Instant::now();
        let at = |seconds| begin + Duration::from_secs(seconds);
        let pulse = Pulse::new(at(10));
        assert_eq!(pulse.longest_gap(at(10)), Duration::ZERO);
        // The warm-up does not count, and callers report in any order.
        [5, 12, 11, 17, 18].into_iter().for_each(|seconds| pulse.succeeded(at(seconds)));
        assert_eq!(pulse.longest_gap(at(20)), Duration::from_secs(5));
        assert_eq!(pulse.longest_gap(at(30)), Duration::from_secs(10));
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_that_had_to_wait_for_the_one_before_is_slow() {
        // Ten calls a second are due, but each takes a second: the last due in the window waits for all before it.
        let pace = pace(1, Some(10.0));
        let outcome = run(&pace, None, [Fixed(Duration::from_secs(1))]).await;
        assert!(outcome.tally.latencies.summary().unwrap().max_ms > 10_000.0, "{outcome:?}");
    }
}
