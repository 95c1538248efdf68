//! Structured logs on standard error, as text or JSON. Neither secrets nor record data are ever logged.
//!
//! Not here: metrics (`server`).

use std::io::IsTerminal as _;

use tracing_subscriber::{EnvFilter, filter::ParseError, fmt};

use crate::config::{Log, LogFormat};

/// Why there are no logs.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The filter makes no sense.
    #[error("`log_level` is not valid: {0}")]
    Filter(ParseError),
    /// Something logs already.
    #[error("cannot start logging: {0}")]
    Install(Box<dyn std::error::Error + Send + Sync>),
}

/// Starts logging for the whole process; libraries that use the `log` crate included.
///
/// # Errors
/// When the filter makes no sense, or logging was started before.
pub fn start(log: &Log) -> Result<(), Error> {
    let filter = EnvFilter::try_new(directives(&log.filter)).map_err(Error::Filter)?;
    let logs = fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // Starting it also takes over what libraries write through the `log` crate.
    match log.format {
        LogFormat::Text => logs.with_ansi(std::io::stderr().is_terminal()).try_init(),
        LogFormat::Json => logs.json().flatten_event(true).try_init(),
    }
    .map_err(Error::Install)
}

/// A bare level is meant for the broker; of the libraries below it only what is wrong is of interest.
fn directives(filter: &str) -> String {
    if filter.contains(['=', ',']) { filter.to_owned() } else { format!("warn,openraft=error,databroker={filter}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_level_and_filter_is_understood() {
        for filter in ["error", "info", "trace", "info,databroker::raft=debug", "databroker=debug"] {
            EnvFilter::try_new(directives(filter)).unwrap();
        }
        assert!(EnvFilter::try_new(directives("loud")).is_err());
    }
}
