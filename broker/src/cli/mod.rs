//! The tools for people: they speak the public gRPC interface and nothing else, so any databroker can be the server.
//! Only `cluster` asks for what clients have no business with, and its `recover` asks nobody.
//!
//! Not here: serving, and the server's configuration.

pub mod bench;
mod certs;
mod child;
mod cluster;
mod cluster_recover;
mod cluster_status;
pub mod connect;
pub mod decode;
mod dev;
mod dump;
pub mod duration;
mod export;
mod failover;
pub mod failure;
mod import;
mod info;
mod lease;
mod options;
pub mod output;
mod progress;
pub mod record;
mod records;
mod sessions;
#[cfg(test)]
mod standin;
#[cfg(test)]
mod tests;
mod types;
mod watch;

use std::process::ExitCode;

use clap::{Args, Subcommand};
use clap_complete::Shell;
use tokio::signal::unix::{SignalKind, signal};

use self::{
    connect::{ConnectArgs, Connection},
    failure::{EXIT_CODES, Failure},
    lease::LeaseCommand,
    output::{Output, OutputArgs},
};

/// What the binary can do besides serving.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show one record
    #[command(after_help = EXIT_CODES)]
    Get(Tool<records::Get>),
    /// Store records, all or none
    ///
    /// Each is JSON as `get -o json` prints it: {"type": …, "id": …, "data": {"@type": …, …}}; data of a type this
    /// build does not know is {"@type": …, "value": "<base64>"}. A record with "deletedAt" is deleted. Version and time
    /// of change are given by the server.
    #[command(after_help = EXIT_CODES)]
    Put(Tool<records::Put>),
    /// Delete records
    #[command(after_help = EXIT_CODES)]
    Delete(Tool<records::Delete>),
    /// Find records
    #[command(after_help = EXIT_CODES)]
    Query(Tool<records::Query>),
    /// List the types of which there are records
    #[command(after_help = EXIT_CODES)]
    Types(Tool<records::Types>),
    /// Follow changes as they happen
    ///
    /// From now on, or from an earlier version. Goes on where it was after a break. When the server cannot tell what
    /// happened since (it was cleared, or its memory of changes does not reach back) this is said, and watching starts
    /// over.
    #[command(after_help = EXIT_CODES)]
    Watch(Tool<watch::Watch>),
    /// Show versions, record types with their counts, options, and how fast the server answers
    #[command(after_help = EXIT_CODES)]
    Info(Tool<info::Info>),
    /// Show and change what applies to all records of a type: capacity, time to live, indexed fields
    #[command(after_help = EXIT_CODES)]
    Options(Tool<Group<options::OptionsCommand>>),
    /// Take, keep and give back leases: named locks that end by themselves
    #[command(after_help = EXIT_CODES)]
    Lease(Tool<Group<LeaseCommand>>),
    /// Show who is logged in, and log them out
    #[command(after_help = EXIT_CODES)]
    Sessions(Tool<Group<sessions::SessionsCommand>>),
    /// Write all records and options into a file
    ///
    /// One JSON object a line, in the order of type and id: two exports of the same store are equal byte for byte.
    /// Works against any server of the interface.
    ///
    /// A record's data is kept byte for byte, whatever its type. Not in the file: tombstones, leases, the service
    /// registry, and each record's version and time of change, which a server gives anew on import. The options are
    /// those of all types that have records or are known to this build (the interface has no list of others).
    ///
    /// While it is written, the file has `.partial` after its name. The records are those of one moment as far as the
    /// server's SyncLatest gives that; the header says up to which record version they are complete.
    #[command(after_help = EXIT_CODES)]
    Export(export::Export),
    /// Put all records and options of an export into a server
    ///
    /// Options first. Records of the same type and id are replaced; others that the server has stay. Works against any
    /// server of the interface.
    ///
    /// The file is read and proved whole before anything is sent. Records carry new versions and times of change after
    /// the import, given by the server; those of a type with a capacity are evicted beyond it.
    ///
    /// An import may be interrupted and run again: FILE.progress remembers what the server acknowledged, until all is
    /// done. If the server is cleared or begins anew meanwhile, the import fails, and is to be run again from the
    /// beginning.
    #[command(after_help = EXIT_CODES)]
    Import(import::Import),
    /// Measure a server: throughput, latency, processor time
    #[command(after_help = EXIT_CODES)]
    Bench(Box<bench::Bench>),
    /// Look at a cluster, found it, and change who belongs to it
    #[command(after_help = EXIT_CODES)]
    Cluster(cluster::Cluster),
    /// Make certificates for the nodes of a cluster and for its administrators
    Certs(certs::Certs),
    /// Run a cluster on this machine, to see what happens when a node dies
    Dev(dev::Dev),
    /// Print a script that lets a shell complete the commands
    Completions {
        /// The shell
        shell: Shell,
    },
}

/// A tool that asks one server and prints what it answers.
#[derive(Debug, Args)]
pub struct Tool<T: Args> {
    #[command(flatten)]
    tool: T,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    connect: ConnectArgs,
}

/// What a tool asks of a server, and prints.
pub trait Ask: Send {
    /// Asks, and prints the answer.
    fn run(self, connection: &Connection, output: &mut Output) -> impl Future<Output = Result<(), Failure>> + Send;
}

impl<T: Args + Ask> Tool<T> {
    async fn run(self, open: impl FnOnce(OutputArgs) -> Output) -> Result<(), Failure> {
        let connection = self.connect.connect().await?;
        self.tool.run(&connection, &mut open(self.output)).await
    }
}

/// A tool that has subcommands.
#[derive(Debug, Args)]
pub struct Group<T: Subcommand> {
    #[command(subcommand)]
    command: T,
}

impl<T: Subcommand + Ask> Ask for Group<T> {
    async fn run(self, connection: &Connection, output: &mut Output) -> Result<(), Failure> {
        self.command.run(connection, output).await
    }
}

/// Runs a tool to its end, or until Ctrl-C. `root` is the whole command line, for its completions.
pub async fn run(command: Command, root: clap::Command) -> ExitCode {
    let outcome = match &command {
        // It must give the lease back, and so waits for the signal by itself.
        Command::Lease(Tool { tool: Group { command: LeaseCommand::Run(_) }, .. }) => {
            execute(command, root, Output::stdout).await
        }
        // There is no other way to end it.
        Command::Watch(_) => {
            interruptible(execute(command, root, Output::stdout)).await.or_else(|failure| match failure {
                Failure::Interrupted => Ok(()),
                failure => Err(failure),
            })
        }
        // They start brokers, in folders that hold secrets: both are to go with them.
        Command::Dev(_) | Command::Bench(_) => tokio::select! {
            outcome = interruptible(execute(command, root, Output::stdout)) => outcome,
            () = terminated() => Err(Failure::Terminated),
        },
        _ => interruptible(execute(command, root, Output::stdout)).await,
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

async fn interruptible(tool: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    tokio::select! {
        outcome = tool => outcome,
        signal = tokio::signal::ctrl_c() => match signal {
            Ok(()) => Err(Failure::Interrupted),
            Err(error) => Err(Failure::Failed(format!("cannot wait for signals: {error}"))),
        },
    }
}

/// Waits for SIGTERM, one that comes before the first poll included; for ever if that is not possible.
fn terminated() -> impl Future<Output = ()> {
    let signal = signal(SignalKind::terminate());
    async move {
        match signal {
            Ok(mut signal) => drop(signal.recv().await),
            Err(_) => std::future::pending().await,
        }
    }
}

/// `open` says where the results go.
async fn execute(
    command: Command,
    mut root: clap::Command,
    open: impl FnOnce(OutputArgs) -> Output,
) -> Result<(), Failure> {
    match command {
        Command::Get(tool) => tool.run(open).await,
        Command::Put(tool) => tool.run(open).await,
        Command::Delete(tool) => tool.run(open).await,
        Command::Query(tool) => tool.run(open).await,
        Command::Types(tool) => tool.run(open).await,
        Command::Watch(tool) => tool.run(open).await,
        Command::Info(tool) => tool.run(open).await,
        Command::Options(tool) => tool.run(open).await,
        Command::Lease(tool) => tool.run(open).await,
        Command::Sessions(tool) => tool.run(open).await,
        Command::Export(export) => export.run().await,
        Command::Import(import) => import.run(open).await,
        Command::Bench(bench) => bench::run(*bench).await,
        Command::Cluster(cluster) => cluster.run(open).await,
        Command::Certs(certs) => certs.run(),
        Command::Dev(dev) => dev.run().await,
        Command::Completions { shell } => {
            let name = root.get_name().to_owned();
            // Into memory first: the generator panics when nobody reads what it writes.
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut root, name, &mut script);
            open(OutputArgs::default()).bytes(&script)
        }
    }
}
