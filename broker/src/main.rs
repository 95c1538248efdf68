//! The binary: parses the command line, starts logging, and runs the broker or one of its tools.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use databroker::{
    config::{self, Config},
    run, telemetry,
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
    /// Run the broker.
    Serve(config::Flags),
    /// Look at the configuration.
    #[command(subcommand)]
    Config(ConfigCommand),
}

#[derive(Subcommand)]
enum ConfigCommand {
    /// Say whether the configuration is valid.
    Check(config::Flags),
    /// Print the effective configuration as YAML, with who gave each value; secrets are left out.
    Print(config::Flags),
}

fn main() -> ExitCode {
    match run_command(Arguments::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("databroker: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run_command(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Serve(flags) => serve(&flags),
        Command::Config(ConfigCommand::Check(flags)) => {
            config::describe(&flags, config::environment)?;
            println!("the configuration is valid");
            Ok(())
        }
        Command::Config(ConfigCommand::Print(flags)) => {
            print!("{}", config::describe(&flags, config::environment)?);
            Ok(())
        }
    }
}

fn serve(flags: &config::Flags) -> anyhow::Result<()> {
    let config = Config::load(flags)?;
    telemetry::start(&config.log)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    Ok(runtime.block_on(run::serve(config))?)
}
