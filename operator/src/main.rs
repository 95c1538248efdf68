//! `databroker-operator run | crd | check`. Not here: anything that is decided.

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use databroker_operator::{api::definition, check::check, config::Config, controller};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

/// Runs clusters of brokers on Kubernetes.
#[derive(Parser)]
#[command(version)]
struct Command {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Looks after the Databrokers of a namespace, or of all.
    Run(Box<Config>),
    /// Prints the definition of the resource.
    Crd,
    /// Asks a page of an operator, http://host:port/readyz, whether all is well.
    Check {
        /// Its address.
        page: hyper::Uri,
    },
}

fn main() -> anyhow::Result<()> {
    match Command::parse().what {
        What::Crd => {
            print!("{}", definition::yaml()?);
            Ok(())
        }
        What::Check { page } => ask(page),
        What::Run(config) => run(*config),
    }
}

#[tokio::main(flavor = "current_thread")]
async fn ask(page: hyper::Uri) -> anyhow::Result<()> {
    println!("{}", check(page).await?);
    Ok(())
}

#[tokio::main(flavor = "current_thread")]
async fn run(config: Config) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(&config.log_level).context("--log-level")?;
    tracing_subscriber::fmt().json().with_span_list(false).with_env_filter(filter).init();
    // One for all of TLS in the process.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let stop = CancellationToken::new();
    let (mut terminated, mut interrupted) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let asked = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminated.recv() => {}
            _ = interrupted.recv() => {}
        }
        asked.cancel();
    });
    Ok(controller::run(config, stop).await?)
}
