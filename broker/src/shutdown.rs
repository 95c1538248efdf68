//! Signals: the first one asks the broker to end in good order, the second ends it at once.

use std::{io, time::Duration};

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// The exit code after a second signal.
const AT_ONCE: i32 = 130;

/// A token that the first SIGTERM or SIGINT cancels.
///
/// # Errors
/// When the system does not let us listen for signals.
pub fn on_signal() -> io::Result<CancellationToken> {
    let mut signals = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let closing = CancellationToken::new();
    let token = closing.clone();
    tokio::spawn(async move {
        next(&mut signals).await;
        tracing::info!("stopping; a second signal ends the process at once");
        token.cancel();
        next(&mut signals).await;
        tracing::warn!("stopped at once by a second signal");
        std::process::exit(AT_ONCE);
    });
    Ok(closing)
}

/// How much of the grace period requests get: the rest is for writing everything to the disk.
pub fn drain_period(grace: Duration) -> Duration {
    const RESERVE_MAX: Duration = Duration::from_secs(3);
    grace - (grace / 3).min(RESERVE_MAX)
}

async fn next(signals: &mut (Signal, Signal)) {
    tokio::select! {
        _ = signals.0.recv() => {}
        _ = signals.1.recv() => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_leave_time_for_the_disk() {
        for (grace, drain) in [(0, 0), (300, 200), (6_000, 4_000), (10_000, 7_000), (600_000, 597_000)] {
            assert_eq!(drain_period(Duration::from_millis(grace)), Duration::from_millis(drain));
        }
    }
}
