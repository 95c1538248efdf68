//! Attempts that failed, by what failed them, and whether the test itself had a hand in it.
//!
//! A call goes from node to node until one acknowledges it: it may succeed after attempts that did not. Not here: calls
//! that failed on all nodes (`clients`).

use std::{
    collections::{BTreeMap, BTreeSet},
    error::Error as _,
    fmt,
};

use parking_lot::Mutex;
use tonic::{Code, Status};

/// Kinds that are told apart: texts may hold numbers.
const KINDS_MAX: usize = 30;

/// Nodes that the test has killed, stopped, frozen, cut off or removed, until the cluster is whole again.
#[derive(Default)]
pub struct Disturbed(Mutex<BTreeSet<usize>>);

impl Disturbed {
    pub fn add(&self, node: usize) {
        self.0.lock().insert(node);
    }

    /// The cluster is whole.
    pub fn clear(&self) {
        self.0.lock().clear();
    }

    pub fn has(&self, node: usize) -> bool {
        self.0.lock().contains(&node)
    }
}

/// Why an attempt failed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Kind {
    /// The test had disturbed the node, and a node that is away fails thus.
    pub expected: bool,
    what: String,
}

impl Kind {
    /// An attempt on a node ended with this status, or with none in time.
    pub fn of(status: Option<&Status>, disturbed: bool) -> Self {
        let Some(status) = status else { return Self { expected: disturbed, what: "no answer in time".into() } };
        let broke = status.source().is_some();
        let (code, from) = (status.code(), if broke { "connection" } else { "node" });
        let away = broke || code == Code::Unavailable;
        Self { expected: disturbed && away, what: format!("{code:?} from the {from}: {}", status.message()) }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let node = if self.expected { "disturbed node" } else { "NODE LEFT ALONE, or no sign of one that is away" };
        write!(f, "{} ({node})", self.what)
    }
}

/// How many attempts failed, by kind.
#[derive(Default)]
pub struct Attempts(Mutex<BTreeMap<Kind, u64>>);

impl Attempts {
    pub fn failed(&self, kind: Kind) {
        let mut kinds = self.0.lock();
        let full = kinds.len() >= KINDS_MAX && !kinds.contains_key(&kind);
        let kind = if full { Kind { what: "other".into(), ..kind } } else { kind };
        *kinds.entry(kind).or_default() += 1;
    }

    /// How many failed as expected, and how many otherwise.
    pub fn counts(&self) -> (u64, u64) {
        let kinds = self.0.lock();
        let of =
            |expected: bool| kinds.iter().filter(move |(kind, _)| kind.expected == expected).map(|(_, count)| count);
        (of(true).sum(), of(false).sum())
    }
}

impl fmt::Display for Attempts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.lock().iter().try_for_each(|(kind, count)| writeln!(f, "  {count} × {kind}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_node_that_is_away_says_is_expected_of_it() {
        let unavailable = Status::unavailable("shutting down");
        assert!(Kind::of(Some(&unavailable), true).expected);
        assert!(!Kind::of(Some(&unavailable), false).expected);
        assert!(!Kind::of(Some(&Status::internal("no")), true).expected);
        assert!(Kind::of(None, true).expected && !Kind::of(None, false).expected);
        let broke = Status::from_error(Box::new(std::io::Error::other("broken")));
        assert!(Kind::of(Some(&broke), true).expected);
    }

    #[test]
    fn attempts_are_counted_by_kind_and_kinds_are_bounded() {
        let attempts = Attempts::default();
        (0..100).for_each(|n| attempts.failed(Kind::of(Some(&Status::internal(n.to_string())), true)));
        attempts.failed(Kind::of(None, true));
        assert_eq!(attempts.counts(), (1, 100));
        assert!(attempts.to_string().lines().count() <= KINDS_MAX + 2);
    }
}
