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

/// What a stop has time for, one thing after the other: each ends so long after the signal at the latest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Periods {
    /// Leadership is handed over.
    pub hand_over: Duration,
    /// Requests and streams end.
    pub drain: Duration,
    /// Peers hear the last answers.
    pub farewell: Duration,
    /// Everything is written to the disk: whoever sent the signal may kill then.
    pub flush: Duration,
}

/// How long peers may take to hear the last answers, whatever time there is.
pub const FAREWELL_MAX: Duration = Duration::from_secs(1);

impl Periods {
    /// Within a grace period.
    pub fn of(grace: Duration) -> Self {
        const RESERVE_MAX: Duration = Duration::from_secs(3);
        let reserve = (grace / 3).min(RESERVE_MAX);
        let drain = grace - reserve;
        Self { hand_over: drain / 2, drain, farewell: drain + (reserve / 3).min(FAREWELL_MAX), flush: grace }
    }
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
    fn each_part_of_a_stop_leaves_time_for_the_next() {
        let millis = Duration::from_millis;
        for (grace, hand_over, drain, farewell) in [
            (0, 0, 0, 0),
            (900, 300, 600, 700),
            (9_000, 3_000, 6_000, 7_000),
            (10_000, 3_500, 7_000, 8_000),
            (600_000, 298_500, 597_000, 598_000),
        ] {
            let [hand_over, drain, farewell, flush] = [hand_over, drain, farewell, grace].map(millis);
            assert_eq!(Periods::of(millis(grace)), Periods { hand_over, drain, farewell, flush });
        }
    }
}
