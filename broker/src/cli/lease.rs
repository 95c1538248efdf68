//! `lease`: named locks with an end.

use std::{
    process::{ExitStatus, Stdio},
    time::Duration,
};

use databroker_proto::databroker::{AcquireLeaseRequest, ReleaseLeaseRequest, RenewLeaseRequest};
use rustix::process::{Pid, Signal, kill_process};
use serde::Serialize;
use tokio::{
    process::{Child, Command},
    time::{Instant, MissedTickBehavior, interval_at, sleep, timeout},
};
use tonic::Code;

use super::{
    Ask,
    connect::Connection,
    duration,
    failure::Failure,
    output::{Output, notice, printable},
    terminated,
};

/// A lease is renewed each time such a part of it has passed, so that one lost answer does not lose it. The last part is for
/// the command to end in, before anybody else can have the lease.
const RENEWALS_PER_DURATION: u32 = 4;

/// How long a command may go on when somebody else has its lease.
const TAKEN_MAX: Duration = Duration::from_secs(1);

/// How long to wait before asking again for a lease that somebody holds: half its length, but no longer than this.
const RETRY_MAX: Duration = Duration::from_secs(5);

/// Take, keep and give back leases: named locks that end by themselves.
#[derive(Debug, clap::Subcommand)]
pub enum LeaseCommand {
    /// Take a lease and print its id; fails if somebody holds it
    Acquire(Acquire),
    /// Keep a lease for longer; takes it if it is free
    Renew(Renew),
    /// Give a lease back; of no effect if somebody else holds it
    Release(Release),
    /// Run a command while holding a lease: waits for the lease, renews it, ends the command if it is lost
    ///
    /// The command is asked to end with SIGTERM, and killed if it still runs a quarter of the lease's duration later. It is
    /// ended in the same way when this tool gets SIGTERM.
    Run(Run),
}

impl Ask for LeaseCommand {
    async fn run(self, connection: &Connection, output: &mut Output) -> Result<(), Failure> {
        match self {
            Self::Acquire(command) => command.run(connection, output).await,
            Self::Renew(command) => command.run(connection).await,
            Self::Release(command) => release(connection, &command.name, &command.id).await,
            Self::Run(command) => command.run(connection).await,
        }
    }
}

/// Arguments of `lease acquire`.
#[derive(Debug, clap::Args)]
pub struct Acquire {
    /// The lease's name
    pub name: String,
    /// How long it lasts
    #[arg(long, default_value = "30s", value_parser = duration::parse)]
    pub duration: Duration,
}

#[derive(Serialize)]
struct LeaseJson {
    name: String,
    id: String,
}

impl Acquire {
    async fn run(self, connection: &Connection, output: &mut Output) -> Result<(), Failure> {
        let id = acquire(connection, &self.name, self.duration).await?;
        if output.for_people() {
            return output.line(&printable(&id));
        }
        output.value(&LeaseJson { name: self.name, id })
    }
}

/// Arguments of `lease renew`.
#[derive(Debug, clap::Args)]
pub struct Renew {
    /// The lease's name
    pub name: String,
    /// The id that `acquire` printed
    pub id: String,
    /// How long it lasts from now
    #[arg(long, default_value = "30s", value_parser = duration::parse)]
    pub duration: Duration,
}

impl Renew {
    async fn run(self, connection: &Connection) -> Result<(), Failure> {
        renew(connection, &self.name, &self.id, self.duration).await
    }
}

/// Arguments of `lease release`.
#[derive(Debug, clap::Args)]
pub struct Release {
    /// The lease's name
    pub name: String,
    /// The id that `acquire` printed
    pub id: String,
}

/// Arguments of `lease run`.
#[derive(Debug, clap::Args)]
pub struct Run {
    /// The lease's name
    pub name: String,
    /// How long it lasts after the last renewal
    #[arg(long, default_value = "30s", value_parser = parse_renewable)]
    pub duration: Duration,
    /// Fail at once if somebody holds the lease
    #[arg(long)]
    pub no_wait: bool,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub command: Vec<String>,
}

fn parse_renewable(text: &str) -> Result<Duration, String> {
    match duration::parse(text)? {
        enough if enough >= Duration::from_secs(1) => Ok(enough),
        _ => Err("a lease to be renewed must last at least 1s".to_owned()),
    }
}

impl Run {
    async fn run(self, connection: &Connection) -> Result<(), Failure> {
        let id = self.wait_for_lease(connection).await?;
        let ended = self.hold(connection, &id).await;
        // Whatever happened, the next one should not have to wait for the lease to end by itself.
        let released = release(connection, &self.name, &id).await;
        let status = ended?;
        released?;
        match status.code() {
            Some(0) => Ok(()),
            code => Err(Failure::Command(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1))),
        }
    }

    async fn wait_for_lease(&self, connection: &Connection) -> Result<String, Failure> {
        let mut told = false;
        loop {
            match acquire(connection, &self.name, self.duration).await {
                Err(failure) if failure.code() == Some(Code::AlreadyExists) && !self.no_wait => {
                    if !std::mem::replace(&mut told, true) {
                        notice(&format!("waiting for lease {:?}", self.name));
                    }
                    sleep((self.duration / 2).min(RETRY_MAX)).await;
                }
                result => return result,
            }
        }
    }

    async fn hold(&self, connection: &Connection, id: &str) -> Result<ExitStatus, Failure> {
        // From before the command starts, so that it is not left alone by a signal that comes at once.
        let terminated = terminated();
        let mut child = self.spawn()?;
        // So long the lease lasts at least, unless somebody else has it.
        let patience = self.duration / RENEWALS_PER_DURATION;
        tokio::select! {
            status = child.wait() => status.map_err(|error| self.failed("wait for", &error)),
            lost = self.keep(connection, id) => {
                ask_to_end(&child);
                let taken = lost.code() == Some(Code::AlreadyExists);
                end_within(&mut child, if taken { patience.min(TAKEN_MAX) } else { patience }).await;
                Err(lost)
            }
            // The command did not get this one.
            () = terminated => {
                ask_to_end(&child);
                end_within(&mut child, patience).await;
                Err(Failure::Terminated)
            }
            // The command got the same signal from the terminal.
            _ = tokio::signal::ctrl_c() => {
                end_within(&mut child, patience).await;
                Err(Failure::Interrupted)
            }
        }
    }

    fn spawn(&self) -> Result<Child, Failure> {
        let [program, arguments @ ..] = &self.command[..] else {
            return Err(Failure::Usage("no command was given".to_owned()));
        };
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::inherit()).kill_on_drop(true);
        command.spawn().map_err(|error| self.failed("start", &error))
    }

    fn failed(&self, action: &str, error: &std::io::Error) -> Failure {
        Failure::Failed(format!("cannot {action} {:?}: {error}", self.command.first().map_or("", String::as_str)))
    }

    /// Renews until the lease is lost, and says why. A renewal that fails for another reason than that somebody has the
    /// lease is tried again until the lease has nearly run out: then the command has to end.
    async fn keep(&self, connection: &Connection, id: &str) -> Failure {
        let step = self.duration / RENEWALS_PER_DURATION;
        let mut renewals = interval_at(Instant::now() + step, step);
        renewals.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut ends = Instant::now() + self.duration - step;
        loop {
            renewals.tick().await;
            let asked = Instant::now();
            match tokio::time::timeout_at(ends, renew(connection, &self.name, id, self.duration)).await {
                Ok(Ok(())) => ends = asked + self.duration - step,
                Ok(Err(failure)) if failure.code() == Some(Code::AlreadyExists) => return failure,
                Ok(Err(failure)) if Instant::now() >= ends => return failure,
                Ok(Err(failure)) => notice(&format!("cannot renew lease {:?}, will try again: {failure}", self.name)),
                Err(_) => return Failure::Failed(format!("lease {:?} ran out: no answer to its renewal", self.name)),
            }
        }
    }
}

/// Lets a command end in its own way.
fn ask_to_end(child: &Child) {
    let pid = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
    if let Some(pid) = pid {
        // It fails only if the command has just ended by itself.
        let _ = kill_process(pid, Signal::TERM);
    }
}

/// Waits for the end of a command, and kills it if that does not come soon enough.
async fn end_within(child: &mut Child, patience: Duration) {
    if timeout(patience, child.wait()).await.is_err() {
        // It fails only if the command has just ended by itself.
        let _ = child.kill().await;
    }
}

async fn acquire(connection: &Connection, name: &str, length: Duration) -> Result<String, Failure> {
    let request = AcquireLeaseRequest { name: name.to_owned(), duration: Some(proto_duration(length)?) };
    Ok(connection.call(connection.records().acquire_lease(request)).await?.id)
}

async fn renew(connection: &Connection, name: &str, id: &str, length: Duration) -> Result<(), Failure> {
    let duration = Some(proto_duration(length)?);
    let request = RenewLeaseRequest { name: name.to_owned(), id: id.to_owned(), duration };
    connection.call(connection.records().renew_lease(request)).await
}

async fn release(connection: &Connection, name: &str, id: &str) -> Result<(), Failure> {
    let request = ReleaseLeaseRequest { name: name.to_owned(), id: id.to_owned() };
    connection.call(connection.records().release_lease(request)).await
}

fn proto_duration(length: Duration) -> Result<prost_types::Duration, Failure> {
    length.try_into().map_err(|_| Failure::Usage("--duration is too long".to_owned()))
}
