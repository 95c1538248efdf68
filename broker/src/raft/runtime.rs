//! What a replica runs on: an async runtime, a clock, and threads for disk work. All three are parameters, so that a
//! simulation can run whole clusters on one thread in virtual time.
//!
//! Not here: anything about logs or elections.

use std::{
    fmt::{Debug, Display},
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, mpsc},
    thread::JoinHandle,
    time::{SystemTime, UNIX_EPOCH},
};

use futures::FutureExt as _;
use openraft::AsyncRuntime;
use parking_lot::Mutex;
use tokio::sync::{oneshot, watch};

/// Chooses the async runtime at compile time.
///
/// A marker of our own, because openraft asks its type configuration for a row of derived traits that runtimes lack.
pub trait Runtime: Copy + Debug + Default + Eq + Ord + Send + Sync + 'static {
    /// The runtime as openraft drives it.
    type Async: AsyncRuntime;

    /// Spawns a task on the runtime of the caller. A panic in it is reported to `failure`. Tasks are spawned here and
    /// nowhere else, so that a simulation can give each of them its own stream of random numbers.
    fn spawn<F: Future<Output = ()> + Send + 'static>(name: &'static str, failure: &Failure, future: F) {
        let failure = failure.clone();
        drop(Self::Async::spawn(async move {
            if AssertUnwindSafe(future).catch_unwind().await.is_err() {
                failure.report(format_args!("the task {name:?} panicked"));
            }
        }));
    }
}

/// Tokio, as in production.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Tokio;

impl Runtime for Tokio {
    type Async = openraft_rt_tokio::TokioRuntime;
}

/// Tells the time of day.
pub trait Clock: Send + Sync + 'static {
    /// Nanoseconds since the Unix epoch.
    fn now_nanos(&self) -> u64;
}

/// The machine's clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now_nanos(&self) -> u64 {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since_epoch.as_nanos()).unwrap_or(u64::MAX)
    }
}

/// A piece of blocking work.
pub type Job = Box<dyn FnOnce() + Send>;

/// Runs jobs one after another, in the order they came.
pub trait Lane: Send + Sync + 'static {
    /// Adds a job. A job that comes after the lane has stopped is dropped, and with it the channel its caller waits on.
    fn run(&self, job: Job);
}

/// Runs a job on a lane and waits for what it returns.
///
/// # Errors
/// The lane has stopped, or the job panicked.
pub async fn call<T: Send + 'static>(lane: &dyn Lane, job: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    let (answer, waiting) = oneshot::channel();
    lane.run(Box::new(move || drop(answer.send(job()))));
    waiting.await.map_err(|_| io::Error::other("the disk thread has stopped"))
}

/// Opens lanes.
pub trait Executor: Send + Sync + 'static {
    /// A lane with a name of its own. A job that panics is reported to `failure`.
    ///
    /// # Errors
    /// No thread could be started.
    fn lane(&self, name: &'static str, failure: &Failure) -> io::Result<Arc<dyn Lane>>;

    /// The same, for work that gives way to all other where there is not enough processor for both.
    ///
    /// # Errors
    /// As for [`Executor::lane`].
    fn background_lane(&self, name: &'static str, failure: &Failure) -> io::Result<Arc<dyn Lane>> {
        self.lane(name, failure)
    }

    /// Returns when all jobs given so far are done; later ones are dropped.
    fn stop(&self);
}

/// One thread per lane.
#[derive(Default)]
pub struct Threads {
    running: Mutex<Vec<(mpsc::SyncSender<Order>, JoinHandle<()>)>>,
}

enum Order {
    Run(Job),
    Stop,
}

/// Jobs waiting per lane. Each owner of a lane keeps its own bounded queue and has at most a few jobs under way, so
/// this is never reached; a bound all the same, because every queue has one.
const LANE_JOBS_MAX: usize = 1024;

/// How nice a thread of the background is: of one core that both want, it gets about a tenth.
const BACKGROUND_NICENESS: i32 = 10;

struct Thread(mpsc::SyncSender<Order>);

impl Lane for Thread {
    fn run(&self, job: Job) {
        // The thread has stopped: dropping the job tells its caller.
        drop(self.0.send(Order::Run(job)));
    }
}

impl Threads {
    fn open(&self, name: &'static str, failure: &Failure, niceness: i32) -> io::Result<Arc<dyn Lane>> {
        let (orders, incoming) = mpsc::sync_channel(LANE_JOBS_MAX);
        let failure = failure.clone();
        let thread = std::thread::Builder::new().name(name.into()).spawn(move || {
            give_way(name, niceness);
            work(name, &incoming, &failure);
        })?;
        self.running.lock().push((orders.clone(), thread));
        Ok(Arc::new(Thread(orders)))
    }
}

impl Executor for Threads {
    fn lane(&self, name: &'static str, failure: &Failure) -> io::Result<Arc<dyn Lane>> {
        self.open(name, failure, 0)
    }

    fn background_lane(&self, name: &'static str, failure: &Failure) -> io::Result<Arc<dyn Lane>> {
        self.open(name, failure, BACKGROUND_NICENESS)
    }

    fn stop(&self) {
        let running = std::mem::take(&mut *self.running.lock());
        for (orders, thread) in running {
            drop(orders.send(Order::Stop));
            // A panic in the thread was reported when it happened.
            drop(thread.join());
        }
    }
}

/// Makes this thread nicer than the process. On Linux niceness is a thread's own; elsewhere it would be the process's,
/// and stays as it is.
fn give_way(name: &str, niceness: i32) {
    if !cfg!(target_os = "linux") || niceness == 0 {
        return;
    }
    let now = rustix::process::getpriority_process(None).unwrap_or(0);
    if let Err(error) = rustix::process::setpriority_process(None, now.saturating_add(niceness)) {
        tracing::debug!(name, %error, "the thread works with the priority of the others");
    }
}

/// What owns a lane may be half changed after a panic, so the lane ends with it.
fn work(name: &str, incoming: &mpsc::Receiver<Order>, failure: &Failure) {
    while let Ok(Order::Run(job)) = incoming.recv() {
        if catch_unwind(AssertUnwindSafe(job)).is_err() {
            return failure.report(format_args!("the thread {name:?} panicked"));
        }
    }
}

/// Runs each job at once, on the caller's thread.
#[derive(Clone, Copy, Debug, Default)]
pub struct Inline;

impl Lane for Inline {
    fn run(&self, job: Job) {
        job();
    }
}

impl Executor for Inline {
    fn lane(&self, _name: &'static str, _failure: &Failure) -> io::Result<Arc<dyn Lane>> {
        Ok(Arc::new(Self))
    }

    fn stop(&self) {}
}

/// Where whatever can fail for good reports it: the process is to end, with the first reason. Cloning is cheap.
#[derive(Clone, Debug)]
pub struct Failure(watch::Sender<Option<End>>);

/// Why it is to end.
#[derive(Clone, Debug)]
struct End {
    reason: Arc<str>,
    /// Nothing broke.
    orderly: bool,
}

impl Default for Failure {
    fn default() -> Self {
        Self(watch::Sender::new(None))
    }
}

impl Failure {
    /// Reports a failure; the first one stays.
    pub fn report(&self, reason: impl Display) {
        tracing::error!(%reason, "the node has failed");
        self.end(&reason, false);
    }

    /// Says that the process is to end although nothing broke; what was reported before stays the reason.
    pub fn retire(&self, reason: impl Display) {
        tracing::warn!(%reason, "the node ends");
        self.end(&reason, true);
    }

    fn end(&self, reason: &dyn Display, orderly: bool) {
        self.0.send_if_modified(|first| {
            let is_first = first.is_none();
            first.get_or_insert_with(|| End { reason: reason.to_string().into(), orderly });
            is_first
        });
    }

    /// Whether the process is to end although nothing broke.
    pub fn is_orderly(&self) -> bool {
        self.0.borrow().as_ref().is_some_and(|end| end.orderly)
    }

    /// The first reason, if there was any.
    pub fn reason(&self) -> Option<Arc<str>> {
        self.0.borrow().as_ref().map(|end| end.reason.clone())
    }

    /// Resolves with the first reason once there is one.
    pub async fn wait(&self) -> Arc<str> {
        let mut reasons = self.0.subscribe();
        loop {
            if let Some(reason) = self.reason() {
                return reason;
            }
            // This handle holds the sender, so the channel cannot close.
            drop(reasons.changed().await);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panicking_job_fails_the_node_and_ends_the_lane() {
        let (threads, failure) = (Threads::default(), Failure::default());
        let lane = threads.lane("frail", &failure).unwrap();
        assert_eq!(call(&*lane, || 7).await.unwrap(), 7);
        assert!(call(&*lane, || panic!("on purpose")).await.is_err());
        assert_eq!(&*failure.wait().await, "the thread \"frail\" panicked");
        assert!(call(&*lane, || 7).await.is_err());
        threads.stop();
    }

    #[tokio::test]
    async fn a_panicking_task_fails_the_node() {
        let failure = Failure::default();
        Tokio::spawn("frail", &failure, async { panic!("on purpose") });
        assert_eq!(&*failure.wait().await, "the task \"frail\" panicked");
    }

    #[tokio::test]
    async fn an_orderly_end_is_no_failure_and_the_first_reason_stays() {
        let (retired, failed) = (Failure::default(), Failure::default());
        retired.retire("removed");
        retired.report("broken, because it ends");
        assert_eq!((&*retired.wait().await, retired.is_orderly()), ("removed", true));
        failed.report("broken");
        failed.retire("removed");
        assert_eq!((&*failed.wait().await, failed.is_orderly()), ("broken", false));
    }

    #[tokio::test]
    async fn stop_waits_for_the_jobs_given_before() {
        let (threads, done) = (Threads::default(), Arc::new(Mutex::new(0)));
        let lane = threads.lane("busy", &Failure::default()).unwrap();
        for _ in 0..100 {
            let done = done.clone();
            lane.run(Box::new(move || *done.lock() += 1));
        }
        threads.stop();
        assert_eq!(*done.lock(), 100);
    }
}
