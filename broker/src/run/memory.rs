//! How much memory this process may use: that of the machine, or of its control group if that is less.
//!
//! Not here: what it is used for.

use std::fs;

/// Where version 2 and version 1 of control groups say it, as a process in a container sees them.
const LIMITS: [&str; 2] = ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"];

/// The part of it for the record cache: a quarter, but at least 16 MiB and at most 512 MiB. What cannot be found out
/// counts as nothing.
pub(super) fn record_cache_bytes() -> u64 {
    let limits = LIMITS.iter().filter_map(|path| fs::read_to_string(path).ok());
    share(of_machine(&fs::read_to_string("/proc/meminfo").unwrap_or_default()), limits)
}

fn share(machine: Option<u64>, limits: impl Iterator<Item = String>) -> u64 {
    // "max" is no number, and means none.
    let limits = limits.filter_map(|limit| limit.trim().parse().ok());
    (machine.into_iter().chain(limits).min().unwrap_or(0) / 4).clamp(16 << 20, 512 << 20)
}

/// From a line such as `MemTotal:       24609044 kB`.
fn of_machine(meminfo: &str) -> Option<u64> {
    let total = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kibibytes: u64 = total.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quarter_of_the_least_that_is_said_but_within_bounds() {
        let share =
            |meminfo, limits: &[&str]| share(of_machine(meminfo), limits.iter().map(|limit| (*limit).to_owned()));
        let gibibyte = "Cached: 5 kB\nMemTotal:       1048576 kB\nMemFree: 1 kB\n";
        assert_eq!(share(gibibyte, &[]), 256 << 20);
        assert_eq!(share(gibibyte, &["max\n"]), 256 << 20);
        assert_eq!(share(gibibyte, &["max\n", "536870912\n"]), 128 << 20);
        // Version 1 says this where there is no limit.
        assert_eq!(share(gibibyte, &["9223372036854771712\n"]), 256 << 20);
        assert_eq!(share(gibibyte, &["1000000"]), 16 << 20);
        assert_eq!(share("MemTotal: 99999999 kB", &[]), 512 << 20);
        for unreadable in
            ["", "MemTotal: much", "MemTotal: 99999999999999999999 kB", "MemTotal: 18446744073709551615 kB"]
        {
            assert_eq!(share(unreadable, &[]), 16 << 20, "{unreadable}");
        }
    }
}
