//! How many files this process may have open, and how many of them are for clients' connections: without any left, the
//! engines cannot write, and that ends the node.
//!
//! Not here: the bound that is configured.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// For everything but clients: tables and journals of the engines, peers, tools, those who watch.
const OTHERS: u64 = 1024;

/// Allows as many open files as the system lets us have; returns how many.
fn raise() -> u64 {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current == maximum || setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).is_err() {
        return current.unwrap_or(u64::MAX);
    }
    maximum.unwrap_or(u64::MAX)
}

/// How many connections clients may have: as many as are wanted, if there are files for them.
pub(super) fn connections(wanted: usize) -> usize {
    let files = raise();
    let possible = share(files);
    if possible < wanted {
        tracing::warn!(
            files,
            connections = possible,
            wanted,
            "fewer connections than configured are taken, for the system allows too few open files (ulimit -n)"
        );
    }
    possible.min(wanted)
}

/// The part of so many files that connections get: what is over, and half where there are few.
fn share(files: u64) -> usize {
    usize::try_from(files.saturating_sub(OTHERS).max(files / 2)).unwrap_or(usize::MAX).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_for_the_engines_are_left() {
        assert_eq!(share(1 << 20), (1 << 20) - 1024);
        assert_eq!((share(2048), share(1024), share(256), share(0)), (1024, 512, 128, 1));
    }
}
