//! What a simulated node runs on: tasks that belong to a process which can be frozen and killed, lanes that take
//! virtual time, and a clock that may be wrong.
//!
//! ```text
//!   Scheduler (openraft's runtime) ─▶ Process: every task of one node, spawned ones included
//!   Lanes (disk work)              ─▶ jobs in order, each after a random virtual delay
//! ```
//!
//! Not here: what a crash does to a disk (`disk`), who is killed when (`faults`).

use std::{
    collections::VecDeque,
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use databroker::raft::runtime::{Clock, Executor, Failure, Job, Lane, Runtime};
use openraft_rt::{AsyncRuntime, deterministic_rng::DeterministicRng};
use openraft_rt_tokio::TokioRuntime;
use parking_lot::Mutex;
use tokio::{
    sync::Notify,
    task::{AbortHandle, JoinHandle},
    time::Instant,
};

use crate::world::World;

/// Each task has random numbers of its own, which follow from those of the task that spawned it.
type Seeded = DeterministicRng<TokioRuntime>;

/// Runs a world to its end, on this thread alone and in virtual time.
pub fn run<T>(seed: u64, world: impl Future<Output = T>) -> T {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_time().start_paused(true);
    let runtime = builder.rng_seed(tokio::runtime::RngSeed::from_bytes(&seed.to_be_bytes())).build().unwrap();
    runtime.block_on(Seeded::scope(seed, world))
}

/// Spawns a task that belongs to no node.
pub fn spawn<T: Send + 'static>(task: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
    Seeded::spawn(task)
}

tokio::task_local! {
    static PROCESS: Arc<Process>;
}

/// All tasks of one node from its start to its end.
#[derive(Default)]
pub struct Process {
    dead: AtomicBool,
    frozen: AtomicBool,
    /// Tasks that were woken while frozen.
    woken: Mutex<Vec<Waker>>,
    tasks: Mutex<Vec<AbortHandle>>,
}

/// So many tasks are remembered before those that have ended are forgotten.
const TASKS_KEPT: usize = 256;

impl Process {
    /// Spawns a task of this process. In a dead one it never runs.
    pub fn spawn<T: Send + 'static>(self: &Arc<Self>, task: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
        let task = Gated { process: self.clone(), task: Box::pin(task) };
        let handle = Seeded::spawn(PROCESS.scope(self.clone(), task));
        let mut tasks = self.tasks.lock();
        if tasks.len() >= TASKS_KEPT {
            tasks.retain(|task| !task.is_finished());
        }
        tasks.push(handle.abort_handle());
        if self.is_dead() {
            handle.abort();
        }
        handle
    }

    /// None of its tasks runs again.
    pub fn kill(&self) {
        self.dead.store(true, Relaxed);
        for task in std::mem::take(&mut *self.tasks.lock()) {
            task.abort();
        }
    }

    pub fn is_dead(&self) -> bool {
        self.dead.load(Relaxed)
    }

    pub fn is_frozen(&self) -> bool {
        self.frozen.load(Relaxed)
    }

    pub fn freeze(&self) {
        self.frozen.store(true, Relaxed);
    }

    pub fn thaw(&self) {
        self.frozen.store(false, Relaxed);
        for waker in std::mem::take(&mut *self.woken.lock()) {
            waker.wake();
        }
    }
}

/// A task that does not run while its process is frozen.
struct Gated<F> {
    process: Arc<Process>,
    task: Pin<Box<F>>,
}

impl<F: Future> Future for Gated<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        if self.process.is_frozen() {
            self.process.woken.lock().push(context.waker().clone());
            return Poll::Pending;
        }
        self.task.as_mut().poll(context)
    }
}

/// The runtime of simulated nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Simulated;

impl Runtime for Simulated {
    type Async = Scheduler;
}

/// Tokio with seeded random numbers, whose tasks belong to the process of the task that spawned them.
#[derive(Debug)]
pub struct Scheduler;

impl AsyncRuntime for Scheduler {
    type JoinError = <Seeded as AsyncRuntime>::JoinError;
    type JoinHandle<T: Send + 'static> = JoinHandle<T>;
    type Sleep = <Seeded as AsyncRuntime>::Sleep;
    type Instant = <Seeded as AsyncRuntime>::Instant;
    type TimeoutError = <Seeded as AsyncRuntime>::TimeoutError;
    type Timeout<R, T: Future<Output = R> + Send> = <Seeded as AsyncRuntime>::Timeout<R, T>;
    type ThreadLocalRng = <Seeded as AsyncRuntime>::ThreadLocalRng;
    type Mpsc = <Seeded as AsyncRuntime>::Mpsc;
    type Watch = <Seeded as AsyncRuntime>::Watch;
    type Oneshot = <Seeded as AsyncRuntime>::Oneshot;
    type Mutex<T: Send + 'static> = <Seeded as AsyncRuntime>::Mutex<T>;

    fn spawn<T>(future: T) -> JoinHandle<T::Output>
    where
        T: Future + Send + 'static,
        T::Output: Send + 'static,
    {
        match PROCESS.try_with(Clone::clone) {
            Ok(process) => process.spawn(future),
            Err(_) => Seeded::spawn(future),
        }
    }

    fn sleep(duration: Duration) -> Self::Sleep {
        Seeded::sleep(duration)
    }

    fn sleep_until(deadline: Self::Instant) -> Self::Sleep {
        Seeded::sleep_until(deadline)
    }

    fn timeout<R, F: Future<Output = R> + Send>(duration: Duration, future: F) -> Self::Timeout<R, F> {
        Seeded::timeout(duration, future)
    }

    fn timeout_at<R, F: Future<Output = R> + Send>(deadline: Self::Instant, future: F) -> Self::Timeout<R, F> {
        Seeded::timeout_at(deadline, future)
    }

    fn is_panic(error: &Self::JoinError) -> bool {
        Seeded::is_panic(error)
    }

    fn thread_rng() -> Self::ThreadLocalRng {
        Seeded::thread_rng()
    }

    fn new(_threads: usize) -> Self {
        Self
    }

    fn block_on<F, T>(&mut self, future: F) -> T
    where
        F: Future<Output = T>,
    {
        run(0, future)
    }
}

/// How slow a disk is: all delays are multiplied by this.
pub type Slowness = Arc<AtomicU64>;

/// The lane that does nothing for now, if any.
pub type Stalled = Arc<Mutex<Option<&'static str>>>;

/// Disk work in virtual time.
pub struct Lanes {
    world: Arc<World>,
    process: Arc<Process>,
    slowness: Slowness,
    stalled: Stalled,
    lanes: Mutex<Vec<Arc<Queue>>>,
}

#[derive(Default)]
struct Queue {
    jobs: Mutex<VecDeque<Job>>,
    bell: Notify,
}

impl Lane for Queue {
    fn run(&self, job: Job) {
        self.jobs.lock().push_back(job);
        self.bell.notify_one();
    }
}

impl Lanes {
    pub fn new(world: Arc<World>, process: Arc<Process>, slowness: Slowness, stalled: Stalled) -> Self {
        Self { world, process, slowness, stalled, lanes: Mutex::default() }
    }

    /// What a disk may still do in the moment of a crash: some of the jobs that wait are done, and nobody hears of it.
    pub fn last_words(&self) {
        for lane in self.lanes.lock().iter() {
            let jobs = std::mem::take(&mut *lane.jobs.lock());
            let done = self.world.index(jobs.len() + 1);
            for job in jobs.into_iter().take(done) {
                // A panic was the end of this process anyway.
                drop(catch_unwind(AssertUnwindSafe(job)));
            }
        }
    }
}

impl Executor for Lanes {
    fn lane(&self, name: &'static str, failure: &Failure) -> io::Result<Arc<dyn Lane>> {
        let queue = Arc::new(Queue::default());
        self.lanes.lock().push(queue.clone());
        let (lane, world, slowness, failure) =
            (queue.clone(), self.world.clone(), self.slowness.clone(), failure.clone());
        let stalled = self.stalled.clone();
        self.process.spawn(async move {
            loop {
                lane.bell.notified().await;
                while !lane.jobs.lock().is_empty() {
                    let delay = delay(name, &world) * slowness.load(Relaxed) as u32;
                    if !delay.is_zero() {
                        tokio::time::sleep(delay).await;
                    }
                    while *stalled.lock() == Some(name) {
                        tokio::time::sleep(Duration::from_millis(5)).await;
                    }
                    let job = lane.jobs.lock().pop_front();
                    if catch_unwind(AssertUnwindSafe(|| job.map(|job| job()))).is_err() {
                        return failure.report(format_args!("the lane {name:?} panicked"));
                    }
                    publish_late(&world);
                }
            }
        });
        Ok(queue)
    }

    fn stop(&self) {}
}

/// How long a job waits before it is done: a sync takes a while, and now and then a long one.
fn delay(lane: &str, world: &World) -> Duration {
    match lane {
        "log" if world.chance(20) => world.millis(10..60),
        "log" => world.millis(0..5),
        "apply" if world.chance(700) => Duration::ZERO,
        "snapshot" => world.millis(0..4),
        _ => world.millis(0..3),
    }
}

/// Mutations that publish late do so a while after the job that should have.
fn publish_late(world: &Arc<World>) {
    use databroker::mutation::{self, Mutation};
    if mutation::active(Mutation::AnswerBeforeBatch) || mutation::active(Mutation::StreamAheadOfApplied) {
        let world = world.clone();
        spawn(async move {
            world.pause(1..8).await;
            mutation::publish_late();
        });
    }
}

/// A clock that goes right but may be set wrong.
pub struct SimulatedClock {
    began: Instant,
    /// How far it is ahead, in nanoseconds.
    pub skew: Arc<AtomicI64>,
}

/// When simulated worlds begin, nanoseconds since the Unix epoch: in the past, so that a real clock would show.
const EPOCH_NANOS: u64 = 1_500_000_000_000_000_000;

impl SimulatedClock {
    pub fn new(world: &World, skew: Arc<AtomicI64>) -> Self {
        Self { began: world.began, skew }
    }
}

impl Clock for SimulatedClock {
    fn now_nanos(&self) -> u64 {
        (EPOCH_NANOS + self.began.elapsed().as_nanos() as u64).saturating_add_signed(self.skew.load(Relaxed))
    }
}
