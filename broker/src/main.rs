//! The binary: parses the command line, starts logging, and runs the broker or one of its tools.

use std::process::ExitCode;

use clap::{CommandFactory as _, Parser, Subcommand};
use databroker::{
    cli,
    config::{self, Config},
    run, server, telemetry,
};

// Scans and streams free much memory at once; this allocator gives it back.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// A replicated, durable data broker for Pomerium, and the tools to look into it.
#[derive(Parser)]
#[command(name = "databroker", version, propagate_version = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the broker
    Serve(config::Flags),
    /// Look at the configuration
    #[command(subcommand)]
    Config(ConfigCommand),
    #[command(flatten)]
    Tool(Box<cli::Command>),
}

#[derive(Subcommand)]
enum ConfigCommand {
    /// Say whether the configuration is valid, and the files it names can be used
    Check(config::Flags),
    /// Print the effective configuration as YAML, with who gave each value; secrets are left out
    Print(config::Flags),
}

fn main() -> ExitCode {
    match execute(Arguments::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("databroker: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn execute(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Serve(flags) => {
            let config = Config::load(&flags)?;
            telemetry::start(&config.log)?;
            let runtime = runtime()?;
            let served = runtime.block_on(run::serve(config));
            // The drain is over. A read that still scans has lost its client, and is not waited for.
            runtime.shutdown_background();
            served?;
        }
        Command::Config(ConfigCommand::Check(flags)) => {
            let config = Config::load(&flags)?;
            server::check_files(&config.grpc, &config.secrets)?;
            println!("the configuration is valid");
        }
        Command::Config(ConfigCommand::Print(flags)) => print!("{}", config::describe(&flags, config::environment)?),
        Command::Tool(tool) => return Ok(runtime()?.block_on(cli::run(*tool, Arguments::command()))),
    }
    Ok(ExitCode::SUCCESS)
}

fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()
}
