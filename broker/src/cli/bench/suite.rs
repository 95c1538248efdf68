//! Every figure of the README's table, measured one after the other, with its target beside it.
//!
//! The order is chosen so that the store only grows: figures of a small store come first, those of a large one last.

use std::{path::Path, time::Duration};

use tokio::time::sleep;

use super::{
    Bench,
    directory::Directory,
    drive::{self, Outcome, Pace},
    figures::{Check, Row, Unit, render},
    fill,
    served::Served,
    streams::{Copier, FanOut},
    unary::{Operation, Single},
    usage::{Meter, cpu_seconds, resident_bytes},
    wire::Lanes,
};
use crate::cli::{connect::ConnectArgs, failure::Failure};

const SMALL: u64 = 1_000;
const MEDIUM: u64 = 100_000;
const COPIED: u64 = 200_000;
const LARGE: u64 = 1_000_000;

const IDLE_SPAN: Duration = Duration::from_secs(10);

/// Runs the suite and prints it.
///
/// # Errors
/// When the server cannot be reached or refuses. A missed target is a result, not an error.
pub(super) async fn run(bench: &Bench) -> Result<(), Failure> {
    let mut suite = Suite::prepare(bench).await?;
    suite.run().await?;
    println!("{}", render(&suite.rows, bench.output).trim_end());
    Ok(())
}

struct Suite {
    served: Option<Served>,
    connect: ConnectArgs,
    pid: Option<u32>,
    record_type: String,
    size: usize,
    duration: Duration,
    warm_up: Duration,
    lanes: Lanes,
    rows: Vec<Row>,
}

impl Suite {
    async fn prepare(bench: &Bench) -> Result<Self, Failure> {
        let served = match bench.serve {
            true => Some(Served::start(bench.serve_in.as_deref().map(Path::new)).await?),
            false => None,
        };
        let connect = served.as_ref().map_or_else(|| bench.connect.clone(), Served::connect);
        let lanes = Lanes::open(&connect, bench.load.connections as usize).await?;
        Ok(Self {
            pid: served.as_ref().map(Served::pid).or(bench.load.server_pid),
            served,
            connect,
            record_type: bench.load.record_type.clone(),
            size: bench.load.size as usize,
            duration: bench.load.duration,
            warm_up: bench.load.warm_up,
            lanes,
            rows: Vec::new(),
        })
    }

    async fn run(&mut self) -> Result<(), Failure> {
        self.idle().await;
        self.fill(SMALL).await?;
        let small = self.three_rates(SMALL).await;
        self.fill(MEDIUM).await?;
        self.puts().await;
        self.reads_and_patches().await;
        self.fill(COPIED).await?;
        self.copies().await?;
        self.fan_out().await?;
        self.directory().await?;
        self.fill(LARGE).await?;
        let large = self.three_rates(LARGE).await;
        self.growth(small, large);
        self.large_copy().await?;
        self.restarts().await
    }

    /// Progress goes to standard error, so that a person sees that the suite is alive.
    fn add(&mut self, row: Row) {
        let measured: Vec<String> = row.checks.iter().map(Check::measured).collect();
        eprintln!("{}: {}{}", row.figure, measured.join(", "), if row.met { "" } else { "  (target missed)" });
        self.rows.push(row);
    }

    async fn fill(&self, records: u64) -> Result<(), Failure> {
        fill::ensure(&self.lanes, &self.record_type, self.size, records, self.pid).await
    }

    fn pace(&self, callers: usize) -> Pace {
        Pace { callers, warm_up: self.warm_up, duration: self.duration, rate: None }
    }

    async fn single(&self, operation: &Operation, callers: usize, records: u64) -> Outcome {
        let calling = Single::callers(&self.lanes, operation, callers, records);
        drive::run(&self.pace(callers), self.pid, calling).await
    }

    async fn idle(&mut self) {
        let Some((pid, before)) = self.served.as_ref().and(self.pid).and_then(|pid| Some((pid, cpu_seconds(pid)?)))
        else {
            return;
        };
        sleep(IDLE_SPAN).await;
        let used = cpu_seconds(pid).unwrap_or(before) - before;
        let memory = resident_bytes(pid).unwrap_or(0) as f64;
        self.add(Row::new(
            "idle, just started",
            vec![
                Check::at_most("memory", memory, Unit::Bytes, mib(40)),
                Check::at_most("of a core", used / IDLE_SPAN.as_secs_f64() * 100.0, Unit::Percent, 1.0),
            ],
        ));
    }

    async fn puts(&mut self) {
        let put = Operation::put(&self.record_type, self.size, 1);
        let outcome = self.single(&put, 64, MEDIUM).await;
        let checks = vec![at_least(&outcome, 10_000.0), p99_at_most(&outcome, 20.0)];
        self.add(Row::from_run("put, 64 callers", checks, &outcome));

        let outcome = self.single(&put, 1, MEDIUM).await;
        self.add(Row::from_run("put, 1 caller", vec![at_least(&outcome, 1_600.0)], &outcome));

        let batches = Operation::put(&self.record_type, self.size, 100);
        let outcome = self.single(&batches, 16, MEDIUM).await;
        let figure = "put, batches of 100, 16 callers: records";
        self.add(Row::from_run(figure, vec![at_least(&outcome, 60_000.0)], &outcome));
    }

    async fn reads_and_patches(&mut self) {
        let outcome = self.single(&Operation::get(&self.record_type), 64, MEDIUM).await;
        self.add(Row::from_run("get, 64 callers, 100 k records", vec![at_least(&outcome, 18_000.0)], &outcome));

        let outcome = self.single(&Operation::query(&self.record_type), 64, MEDIUM).await;
        self.add(Row::from_run("authorize query, 64 callers", vec![at_least(&outcome, 16_000.0)], &outcome));

        let outcome = self.single(&Operation::patch(&self.record_type), 16, MEDIUM).await;
        self.add(Row::from_run("patch (touch), 16 callers", vec![at_least(&outcome, 7_000.0)], &outcome));
    }

    async fn copies(&mut self) -> Result<(), Failure> {
        let outcome = drive::run(&self.pace(1), self.pid, Copier::callers(&self.lanes, &self.record_type, 1)).await;
        let figure = "SyncLatest, 200 k records, 1 client: records";
        self.add(Row::from_run(figure, vec![at_least(&outcome, 800_000.0)], &outcome));
        self.copies_at_once().await
    }

    async fn copies_at_once(&mut self) -> Result<(), Failure> {
        const CLIENTS: usize = 20;
        const PUTS_PER_SECOND: f64 = 500.0;
        let lanes = Lanes::open(&self.connect, CLIENTS).await?;
        // Memory is compared with that before the first copy: no warm-up.
        let copying = Pace { callers: CLIENTS, warm_up: Duration::ZERO, duration: self.duration, rate: None };
        let putting = Pace { callers: 16, rate: Some(PUTS_PER_SECOND), ..copying };
        let put = Operation::put(&self.record_type, self.size, 1);
        let (copies, puts) = tokio::join!(
            drive::run(&copying, self.pid, Copier::callers(&lanes, &self.record_type, CLIENTS)),
            drive::run(&putting, None, Single::callers(&self.lanes, &put, putting.callers, MEDIUM)),
        );
        let mut checks = vec![p99_at_most(&puts, 50.0)];
        checks[0].name = "put p99 meanwhile";
        if let Some(growth) = copies.usage.server_growth_bytes() {
            checks.push(Check::at_most("memory grows", growth as f64, Unit::Bytes, mib(100)));
        }
        let row = Row::from_run("SyncLatest, 200 k records, 20 clients at once", checks, &copies);
        self.add(row.failed((puts.tally.errors, puts.tally.first_error)));
        Ok(())
    }

    async fn fan_out(&mut self) -> Result<(), Failure> {
        let fan_out = FanOut {
            record_type: self.record_type.clone(),
            size: self.size,
            records: MEDIUM,
            streams: 140,
            pace: Pace { rate: Some(2_000.0), ..self.pace(64) },
        };
        let outcome = fan_out.run(&self.lanes, &self.lanes, self.pid).await?;
        let p99 = outcome.delivery.latencies.summary().map_or(f64::INFINITY, |latency| latency.p99_ms);
        let checks = vec![
            // The rate is what is put in; a hundredth less is the rounding of its start and end.
            Check::at_least("events", outcome.events_per_second, Unit::PerSecond, 0.98 * 280_000.0),
            Check::at_most("p99", p99, Unit::Millis, 30.0),
        ];
        let mut row =
            Row::from_run("fan-out, 140 streams, 2,000 puts/s", checks, &outcome.puts).failed(outcome.failures);
        row.met &= outcome.kept_up;
        self.add(row);
        Ok(())
    }

    async fn directory(&mut self) -> Result<(), Failure> {
        let directory = Directory::of_a_large_company();
        let outcome = directory.run(&self.lanes, self.pid).await?;
        let import = outcome.import.elapsed.as_secs_f64();
        let checks = vec![Check::at_most("", import, Unit::Seconds, 15.0)];
        self.add(Row::from_run("directory, 300,000 users and 30,000 groups: import", checks, &outcome.import));
        let seen = outcome.seen_after.map_or(f64::INFINITY, |after| after.as_secs_f64());
        let checks = vec![Check::at_most("", seen, Unit::Seconds, 1.0)];
        let row = Row::from_run("directory, 1,000 changes seen by 14 streams", checks, &outcome.changes);
        self.add(row.failed(outcome.failures));
        Ok(())
    }

    /// Rates of get, put and query with so many records.
    async fn three_rates(&self, records: u64) -> [f64; 3] {
        let mut rates = [0.0; 3];
        let operations = [
            Operation::get(&self.record_type),
            Operation::put(&self.record_type, self.size, 1),
            Operation::query(&self.record_type),
        ];
        for (rate, operation) in rates.iter_mut().zip(&operations) {
            *rate = self.single(operation, 64, records).await.per_second();
        }
        rates
    }

    fn growth(&mut self, small: [f64; 3], large: [f64; 3]) {
        let check = |at: usize, name| Check::at_most(name, small[at] / large[at].max(1e-9), Unit::Times, 1.3);
        let checks = vec![check(0, "get"), check(1, "put"), check(2, "query")];
        self.add(Row::new("slower with 1 M records than with 1 k", checks));
    }

    async fn large_copy(&mut self) -> Result<(), Failure> {
        if self.restarted(true).await?.is_none() && self.pid.is_none() {
            return Ok(());
        }
        let meter = Meter::start(self.pid);
        let once = Pace { callers: 1, warm_up: Duration::ZERO, duration: Duration::from_millis(1), rate: None };
        let outcome = drive::run(&once, self.pid, Copier::callers(&self.lanes, &self.record_type, 1)).await;
        let growth = meter.stop().server_growth_bytes().map_or(f64::INFINITY, |bytes| bytes as f64);
        let checks = vec![Check::at_most("memory over idle", growth, Unit::Bytes, mib(64))];
        self.add(Row::from_run("SyncLatest of 1 M records, 1 client", checks, &outcome));
        Ok(())
    }

    async fn restarts(&mut self) -> Result<(), Failure> {
        for (politely, figure, bound) in
            [(true, "open with 1 M records, clean", 1.5), (false, "open with 1 M records, after SIGKILL", 4.0)]
        {
            // Something must be unflushed for a kill to matter.
            let put = Operation::put(&self.record_type, self.size, 100);
            self.single(&put, 16, LARGE).await;
            if let Some(took) = self.restarted(politely).await? {
                self.add(Row::new(figure, vec![Check::at_most("", took.as_secs_f64(), Unit::Seconds, bound)]));
            }
        }
        Ok(())
    }

    /// Restarts our own server and connects anew; `None` if the server is not ours.
    async fn restarted(&mut self, politely: bool) -> Result<Option<Duration>, Failure> {
        let Some(served) = &mut self.served else { return Ok(None) };
        let took = served.restart(politely).await?;
        self.pid = Some(served.pid());
        self.connect = served.connect();
        self.lanes = Lanes::open(&self.connect, 4).await?;
        Ok(Some(took))
    }
}

fn mib(count: u32) -> f64 {
    f64::from(count) * f64::from(1 << 20)
}

fn at_least(outcome: &Outcome, per_second: f64) -> Check {
    Check::at_least("", outcome.per_second(), Unit::PerSecond, per_second)
}

fn p99_at_most(outcome: &Outcome, bound_ms: f64) -> Check {
    let p99 = outcome.tally.latencies.summary().map_or(f64::INFINITY, |latency| latency.p99_ms);
    Check::at_most("p99", p99, Unit::Millis, bound_ms)
}
