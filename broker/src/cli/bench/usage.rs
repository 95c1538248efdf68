//! What processes use, as Linux tells under `/proc`. Elsewhere, or without the right to look, the figures are absent.

use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::task::AbortHandle;

/// The kernel counts processor time to programs in hundredths of a second, whatever its own clock does.
const TICKS_PER_SECOND: f64 = 100.0;

const SAMPLE_INTERVAL: Duration = Duration::from_millis(20);

/// Processor seconds that a process has used so far, in user and kernel mode.
pub(super) fn cpu_seconds(pid: u32) -> Option<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    parse_cpu_ticks(&stat).map(|ticks| ticks as f64 / TICKS_PER_SECOND)
}

/// Fields 14 and 15. The program's name, field 2, is in parentheses and may hold anything.
fn parse_cpu_ticks(stat: &str) -> Option<u64> {
    let after_name = stat.rsplit_once(')')?.1;
    let mut fields = after_name.split_ascii_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

/// Resident memory of a process in bytes.
pub(super) fn resident_bytes(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    parse_resident_bytes(&status)
}

fn parse_resident_bytes(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024)
}

/// Watches the resident memory of a process until dropped.
pub(super) struct PeakMemory {
    peak: Arc<AtomicU64>,
    sampler: AbortHandle,
}

impl PeakMemory {
    /// Starts watching.
    pub(super) fn of(pid: u32) -> Self {
        let peak = Arc::new(AtomicU64::new(resident_bytes(pid).unwrap_or(0)));
        let seen = peak.clone();
        let sampler = tokio::spawn(async move {
            loop {
                tokio::time::sleep(SAMPLE_INTERVAL).await;
                seen.fetch_max(resident_bytes(pid).unwrap_or(0), Ordering::Relaxed);
            }
        });
        Self { peak, sampler: sampler.abort_handle() }
    }

    /// The highest seen, in bytes.
    pub(super) fn bytes(&self) -> u64 {
        self.peak.load(Ordering::Relaxed)
    }
}

impl Drop for PeakMemory {
    fn drop(&mut self) {
        self.sampler.abort();
    }
}

/// Processor time and memory over a span of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize)]
pub(super) struct Usage {
    /// Processor seconds of this process.
    pub(super) client_cpu_seconds: Option<f64>,
    /// Processor seconds of the server.
    pub(super) server_cpu_seconds: Option<f64>,
    /// The server's memory when the span began, in bytes.
    pub(super) server_rss_before_bytes: Option<u64>,
    /// The highest seen of it.
    pub(super) server_rss_peak_bytes: Option<u64>,
}

impl Usage {
    /// Which side used more processor time, in words, if both are known.
    pub(super) fn busier(&self) -> Option<&'static str> {
        let (client, server) = (self.client_cpu_seconds?, self.server_cpu_seconds?);
        Some(if client > server * 1.1 {
            "client"
        } else if server > client * 1.1 {
            "server"
        } else {
            "both"
        })
    }

    /// How much the server's memory grew, in bytes.
    pub(super) fn server_growth_bytes(&self) -> Option<u64> {
        Some(self.server_rss_peak_bytes?.saturating_sub(self.server_rss_before_bytes?))
    }
}

/// Measures a [`Usage`] from its start on.
pub(super) struct Meter {
    server: Option<u32>,
    client_cpu: Option<f64>,
    server_cpu: Option<f64>,
    memory_before: Option<u64>,
    memory: Option<PeakMemory>,
}

impl Meter {
    /// Starts; the server is watched if its process id is known.
    pub(super) fn start(server: Option<u32>) -> Self {
        Self {
            server,
            client_cpu: cpu_seconds(std::process::id()),
            server_cpu: server.and_then(cpu_seconds),
            memory_before: server.and_then(resident_bytes),
            memory: server.map(PeakMemory::of),
        }
    }

    /// What was used since.
    pub(super) fn stop(self) -> Usage {
        let since = |before: Option<f64>, now: Option<f64>| Some(now? - before?);
        Usage {
            client_cpu_seconds: since(self.client_cpu, cpu_seconds(std::process::id())),
            server_cpu_seconds: since(self.server_cpu, self.server.and_then(cpu_seconds)),
            server_rss_before_bytes: self.memory_before,
            server_rss_peak_bytes: self.memory.map(|memory| memory.bytes()).filter(|bytes| *bytes > 0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processor_time_is_read_past_any_program_name() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194560 100 0 0 0 250 50 0 0 20 0 1 0 100 1000 10 18446744073709551615";
        assert_eq!(parse_cpu_ticks(stat), Some(300));
        assert_eq!(parse_cpu_ticks("nonsense"), None);
    }

    #[test]
    fn resident_memory_is_read_in_bytes() {
        assert_eq!(parse_resident_bytes("Name:\tx\nVmRSS:\t    40 kB\n"), Some(40_960));
        assert_eq!(parse_resident_bytes("Name:\tx\n"), None);
    }

    #[test]
    fn the_busier_side_is_named_only_when_both_are_known() {
        let usage =
            |client, server| Usage { client_cpu_seconds: client, server_cpu_seconds: server, ..Usage::default() };
        assert_eq!(usage(Some(2.0), Some(1.0)).busier(), Some("client"));
        assert_eq!(usage(Some(1.0), Some(2.0)).busier(), Some("server"));
        assert_eq!(usage(Some(1.0), Some(1.05)).busier(), Some("both"));
        assert_eq!(usage(Some(1.0), None).busier(), None);
    }
}
