//! `databroker bench`: how fast a databroker is, ours or another, through the public interface alone.
//!
//! ```text
//!  suite ─▶ workloads (unary, streams, directory, fill) ─▶ drive (callers, rate, time) ─▶ wire ─▶ server
//!                                                            └▶ tally, usage ─▶ report
//! ```
//!
//! Client and server usually share one machine, so the client is made cheap (see `wire`) and reports its own costs.
//! Runs are bounded in time and count, and talk to the given address alone. Not here: profiles, comparisons of runs.

mod directory;
mod drive;
mod figures;
mod fill;
mod follow;
mod report;
mod request;
mod served;
mod streams;
mod suite;
mod tally;
mod unary;
mod usage;
mod wire;

use std::{path::PathBuf, time::Duration};

use self::{
    directory::Directory,
    drive::Pace,
    report::{Format, Report, render},
    streams::{Copier, FanOut},
    unary::{MIX_SHARES, Mixed, Operation, Single},
    wire::Lanes,
};
use super::{connect::ConnectArgs, duration, failure::Failure};

/// What to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Workload {
    /// Put records, --batch at a time
    Put,
    /// Get records by id
    Get,
    /// Query as an access proxy does for each request: by id or address, limit 1
    Query,
    /// Touch records: a Patch without a mask
    Patch,
    /// 70 % query, 15 % get, 10 % patch, 5 % put
    Mixed,
    /// Put --rate records a second that --streams streams follow
    SyncFanout,
    /// Copy all records, --callers copies at once
    SyncLatest,
    /// Import 300,000 users and 30,000 groups, then change 1,000 users that 14 streams follow
    Directory,
    /// Fill the store up to --records records
    Load,
    /// Delete all records of --type
    Clear,
    /// Every figure of the README's table, with its target
    Suite,
}

/// Measure a databroker: throughput, latency, processor time
#[derive(Clone, Debug, clap::Args)]
pub struct Bench {
    /// What to run
    #[arg(value_enum)]
    pub workload: Workload,

    #[command(flatten)]
    connect: ConnectArgs,

    #[command(flatten)]
    load: Load,

    /// How to print
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,

    /// suite: start a server of this binary in a temporary folder, and measure its memory and its start too
    #[arg(long, conflicts_with_all = ["address", "server_pid"])]
    serve: bool,

    /// suite: where that temporary folder is made; the disk matters [default: the system's folder for temporary files]
    #[arg(long, value_name = "DIR", requires = "serve")]
    serve_in: Option<PathBuf>,
}

/// How hard, how long, with what.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Load")]
struct Load {
    /// Calls at once [default: 64; patch 16; sync-latest 1]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    callers: Option<u32>,

    /// Connections that callers and streams share
    #[arg(long, default_value = "4", value_parser = clap::value_parser!(u32).range(1..=256))]
    connections: u32,

    /// Records in one Put
    #[arg(long, default_value = "1", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    batch: u32,

    /// Bytes of one record
    #[arg(long, default_value = "200", value_parser = clap::value_parser!(u32).range(1..=16 << 20))]
    size: u32,

    /// Records to choose from; those that are missing are put first
    #[arg(long, default_value = "100000", value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    records: u64,

    /// How long to measure
    #[arg(long, visible_alias = "seconds", default_value = "10s", value_parser = span)]
    duration: Duration,

    /// How long to run before measuring
    #[arg(long, default_value = "2s", value_parser = span)]
    warm_up: Duration,

    /// Calls a second of all callers together; latency then counts from when a call was due [default: as fast as
    /// answers come; sync-fanout: 2000]
    #[arg(long, value_parser = rate)]
    rate: Option<f64>,

    /// Streams of sync-fanout
    #[arg(long, default_value = "140", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    streams: u32,

    /// Type of the records
    #[arg(long = "type", default_value = "bench.databroker.dev/Record", value_name = "TYPE")]
    record_type: String,

    /// Process id of the server, if it runs on this machine: tells its processor time and memory
    #[arg(long, value_name = "PID")]
    server_pid: Option<u32>,
}

fn span(text: &str) -> Result<Duration, String> {
    const LONGEST: Duration = Duration::from_secs(3600);
    let span = duration::parse(text)?;
    if span > LONGEST { Err("longer than an hour".to_owned()) } else { Ok(span) }
}

fn rate(text: &str) -> Result<f64, String> {
    let rate: f64 = text.parse().map_err(|_| format!("{text:?} is not a number"))?;
    if (0.01..=10_000_000.0).contains(&rate) { Ok(rate) } else { Err("not between 0.01 and 10,000,000".to_owned()) }
}

/// Runs what was asked for and prints what came of it.
///
/// # Errors
/// When the server cannot be reached, refuses, or a call of the run failed.
pub async fn run(bench: Bench) -> Result<(), Failure> {
    if bench.workload == Workload::Suite {
        return suite::run(&bench).await;
    }
    let lanes = Lanes::open(&bench.connect, bench.load.connections as usize).await?;
    let reports = bench.load.run(bench.workload, &lanes).await?;
    println!("{}", render(&reports, bench.output).trim_end());
    let errors: u64 = reports.iter().map(|report| report.errors).sum();
    match errors {
        0 => Ok(()),
        errors => Err(Failure::Failed(format!("{errors} calls or streams failed"))),
    }
}

impl Load {
    async fn run(&self, workload: Workload, lanes: &Lanes) -> Result<Vec<Report>, Failure> {
        match workload {
            Workload::Put => {
                self.unary("put", Operation::put(&self.record_type, self.size(), self.batch as usize), lanes).await
            }
            Workload::Get => self.unary("get", Operation::get(&self.record_type), lanes).await,
            Workload::Query => self.unary("query", Operation::query(&self.record_type), lanes).await,
            Workload::Patch => self.unary("patch", Operation::patch(&self.record_type), lanes).await,
            Workload::Mixed => self.mixed(lanes).await,
            Workload::SyncFanout => self.fan_out(lanes).await,
            Workload::SyncLatest => self.sync_latest(lanes).await,
            Workload::Directory => self.directory(lanes).await,
            Workload::Load => self.load(lanes).await,
            Workload::Clear => self.clear(lanes).await,
            Workload::Suite => Ok(Vec::new()),
        }
    }

    fn size(&self) -> usize {
        self.size as usize
    }

    fn pace(&self, callers: usize) -> Pace {
        let callers = self.callers.map_or(callers, |callers| callers as usize);
        Pace { callers, warm_up: self.warm_up, duration: self.duration, rate: self.rate }
    }

    async fn fill(&self, lanes: &Lanes) -> Result<(), Failure> {
        fill::ensure(lanes, &self.record_type, self.size(), self.records, self.server_pid).await
    }

    async fn unary(&self, name: &str, operation: Operation, lanes: &Lanes) -> Result<Vec<Report>, Failure> {
        const CALLERS: usize = 64;
        // Patches are made by a few services at once, not by every request.
        const PATCHERS: usize = 16;
        let pace = self.pace(if name == "patch" { PATCHERS } else { CALLERS });
        self.fill(lanes).await?;
        let callers = Single::callers(lanes, &operation, pace.callers, self.records);
        let outcome = drive::run(&pace, self.server_pid, callers).await;
        let batch = if name == "put" { self.batch } else { 1 };
        let title = match batch {
            1 => format!("{name}, {} callers", pace.callers),
            batch => format!("{name}, batches of {batch}, {} callers", pace.callers),
        };
        Ok(vec![Report::of(title, if batch == 1 { "calls" } else { "records" }, &outcome)])
    }

    async fn mixed(&self, lanes: &Lanes) -> Result<Vec<Report>, Failure> {
        self.fill(lanes).await?;
        let pace = self.pace(64);
        let callers = Mixed::callers(lanes, &self.record_type, self.size(), pace.callers, self.records);
        let outcome = drive::run(&pace, self.server_pid, callers).await;
        Ok(vec![Report::of(format!("mixed, {} callers", pace.callers), "calls", &outcome).note(MIX_SHARES)])
    }

    async fn fan_out(&self, lanes: &Lanes) -> Result<Vec<Report>, Failure> {
        const RATE: f64 = 2000.0;
        let mut pace = self.pace(64);
        pace.rate = Some(pace.rate.unwrap_or(RATE));
        let fan_out = FanOut {
            record_type: self.record_type.clone(),
            size: self.size(),
            records: self.records,
            streams: self.streams as usize,
            pace,
        };
        // Writers share the lanes: as in a pod, where all go through one proxy.
        let outcome = fan_out.run(lanes, lanes, self.server_pid).await?;
        let title =
            format!("sync-fanout, {} streams, {} puts/s", self.streams, report::grouped(pace.rate.unwrap_or(0.0)));
        let kept_up = if outcome.kept_up { "kept up" } else { "DID NOT KEEP UP" };
        let delivery = &outcome.delivery;
        let streams = Report::of(title, "events", &outcome.puts)
            .counting("events", delivery.events, outcome.events_per_second, &delivery.latencies)
            .stream_failures(outcome.failures)
            .note("latency is from a put's acknowledgement to its receipt by the last stream")
            .note(format!(
                "{kept_up}: {} events missing, the last stream was done {} ms after the last put",
                delivery.missing,
                outcome.drained.as_millis()
            ));
        Ok(vec![streams, Report::of("its puts", "calls", &outcome.puts)])
    }

    async fn sync_latest(&self, lanes: &Lanes) -> Result<Vec<Report>, Failure> {
        self.fill(lanes).await?;
        let pace = self.pace(1);
        let outcome = drive::run(&pace, self.server_pid, Copier::callers(lanes, &self.record_type, pace.callers)).await;
        let title = format!("sync-latest, {} at once", pace.callers);
        let report = Report::of(title, "records", &outcome).note("latency is that of one whole copy");
        Ok(vec![match outcome.usage.server_growth_bytes() {
            Some(growth) => report.note(format!("the server's memory grew by {}", report::mebibytes(growth))),
            None => report,
        }])
    }

    async fn directory(&self, lanes: &Lanes) -> Result<Vec<Report>, Failure> {
        let directory = Directory::of_a_large_company();
        let outcome = directory.run(lanes, self.server_pid).await?;
        let import = Report::of("directory, import", "records", &outcome.import).note(format!(
            "{} records in {:.2} s",
            outcome.import.tally.units,
            outcome.import.elapsed.as_secs_f64()
        ));
        let seen = match outcome.seen_after {
            Some(after) => format!("seen by all {} streams after {:.3} s", directory.streams, after.as_secs_f64()),
            None => format!("NOT seen by all {} streams", directory.streams),
        };
        let changes = Report::of(format!("directory, {} changes", directory.changes), "calls", &outcome.changes)
            .stream_failures(outcome.failures)
            .note(seen);
        Ok(vec![import, changes])
    }

    async fn load(&self, lanes: &Lanes) -> Result<Vec<Report>, Failure> {
        let present = fill::count(lanes, &self.record_type).await?.min(self.records);
        let outcome = fill::load(lanes, &self.record_type, self.size(), present..self.records, self.server_pid).await?;
        Ok(vec![Report::of(format!("load, {present} to {} records", self.records), "records", &outcome)])
    }

    async fn clear(&self, lanes: &Lanes) -> Result<Vec<Report>, Failure> {
        let deleted = fill::clear(lanes, &self.record_type).await?;
        eprintln!("deleted {deleted} records of type {}", self.record_type);
        Ok(Vec::new())
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        bench: Bench,
    }

    fn parse(line: &str) -> Result<Bench, clap::Error> {
        Line::try_parse_from(line.split(' ')).map(|line| line.bench)
    }

    #[test]
    fn runs_are_bounded() {
        assert!(parse("bench put").is_ok());
        for line in ["--duration 2h", "--callers 0", "--rate 0", "--rate inf", "--batch 1000000", "--connections 1000"]
        {
            assert!(parse(&format!("bench put {line}")).is_err(), "{line}");
        }
    }

    #[test]
    fn serving_and_a_given_server_exclude_each_other() {
        assert!(parse("bench suite --serve").is_ok());
        assert!(parse("bench suite --serve --address localhost:1").is_err());
        assert!(parse("bench suite --serve-in /x").is_err());
    }
}
