//! What everybody in a world was told, and what the rules say about it.
//!
//! Some rules can be held at once (`violation` ends a run early); those that need the whole history are held in the
//! end, in `verdict`. All of it is linear in the number of operations: every acknowledgement carries a
//! version, and so its place.
//!
//! R1 an acknowledged write stays. R2 equal position, equal store. R3 versions are contiguous, time does not run back.
//! R4 the server version changes only by Clear. R5 nothing uncommitted is seen. R6 streams are ordered, unique,
//! gap-free. R7 a fenced read sees all that was acknowledged or streamed before. R8 a lease has one holder. R9 what was
//! reported survives. R10 an id does not come back with less. R11 all is well soon after the last fault. R12 bounds.
//! R13 a change of voters leaves a majority caught up. R14 a write takes effect once. R15 who was removed does not vote
//! or lead.
//!
//! Not here: looking (`auditor`, `network`, `clients`), and the wait until all is well (`trial`).

mod verdict;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fmt,
    time::Duration,
};

use bytes::Bytes;
use databroker::store::Progress;

use crate::records::Key;

/// A history and a place in it: server version and record version.
pub type Place = (u64, u64);

/// The newest place of each history that somebody was told of.
pub type Floor = BTreeMap<u64, u64>;

/// Positions whose numbers are remembered for comparison: nodes are rarely further apart, and then they cannot be
/// compared.
const POSITIONS_KEPT: usize = 20_000;

/// A broken rule.
#[derive(Clone, Debug)]
pub struct Violation {
    pub rule: &'static str,
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.rule, self.what)
    }
}

#[derive(Default)]
pub struct Judge {
    /// The first rule that was broken.
    pub first: Option<Violation>,
    /// Every change that anybody has seen.
    pub history: BTreeMap<u64, BTreeMap<u64, Bytes>>,
    /// Server versions in their order, as far as known.
    order: Vec<u64>,
    /// Clears that were asked for.
    clears: BTreeSet<u64>,
    floor: Floor,
    issued: BTreeMap<String, Key>,
    deletes: BTreeMap<Key, u64>,
    acknowledged: Vec<Acknowledged>,
    reads: Vec<Read>,
    holds: BTreeMap<String, Hold>,
    leaders: BTreeMap<u64, u64>,
    votes: BTreeMap<(u64, u64), u64>,
    /// The highest term each node has reported a vote in.
    reported: BTreeMap<u64, u64>,
    removed: BTreeMap<u64, u64>,
    /// The numbers of the store at positions.
    positions: BTreeMap<u64, (Progress, Option<String>)>,
    requests: BTreeMap<(u64, u64), ()>,
    joint: BTreeSet<(u64, u64)>,
    pub retried: u64,
    pub acknowledged_count: u64,
    /// The newest acknowledged places, for who waits for one.
    pub last_acknowledged: VecDeque<Place>,
}

struct Acknowledged {
    value: String,
    place: Place,
    floor: Floor,
}

struct Read {
    /// Where and when.
    who: String,
    key: Key,
    place: Place,
    floor: Floor,
    found: Option<Bytes>,
}

struct Hold {
    id: String,
    since: Duration,
    until: Duration,
}

impl Judge {
    pub fn violation(&mut self, rule: &'static str, what: impl fmt::Display) {
        if self.first.is_none() {
            self.first = Some(Violation { rule, what: what.to_string() });
        }
    }

    /// What an operation that begins now must not fall behind.
    pub fn floor(&self) -> Floor {
        self.floor.clone()
    }

    fn raise_floor(&mut self, (server, version): Place) {
        let newest = self.floor.entry(server).or_default();
        *newest = (*newest).max(version);
    }

    // ── writes ──

    /// A write is about to be asked for.
    pub fn issue(&mut self, value: &str, key: Key) {
        self.issued.insert(value.to_owned(), key);
    }

    pub fn issue_delete(&mut self, key: Key) {
        *self.deletes.entry(key).or_default() += 1;
    }

    pub fn issue_clear(&mut self, server_version: u64) {
        self.clears.insert(server_version);
    }

    /// A write was acknowledged.
    pub fn acknowledge(&mut self, value: &str, place: Place, floor: Floor) {
        self.raise_floor(place);
        self.acknowledged_count += 1;
        self.last_acknowledged.push_back(place);
        self.acknowledged.push(Acknowledged { value: value.to_owned(), place, floor });
    }

    /// A write that carries no version was acknowledged.
    pub fn acknowledge_other(&mut self) {
        self.acknowledged_count += 1;
    }

    /// A node shows a server version, or Clear answers with one: `before` was the one until then.
    pub fn follows(&mut self, before: u64, after: u64) {
        if before == after || after == 0 {
            return;
        }
        if before == 0 {
            if self.order.is_empty() {
                self.order.push(after);
            }
            return;
        }
        let place = self.order.iter().position(|known| *known == before);
        match (place, self.order.iter().position(|known| *known == after)) {
            (Some(before), Some(after)) if before < after => {}
            (Some(last), None) if last + 1 == self.order.len() => self.order.push(after),
            // Seen from further away: a node that took over a store passes over some.
            (None, None) | (Some(_), None) | (None, Some(_)) => {}
            (Some(_), Some(_)) => self.violation("R4", format!("server version {after} came after {before}")),
        }
        if !self.clears.contains(&after) {
            self.violation("R4", format!("nobody asked for server version {after}"));
        }
    }

    /// Whether a history is known to have come after another.
    pub fn is_later(&self, now: u64, than: u64) -> bool {
        self.rank(now).is_some_and(|now| self.rank(than).is_none_or(|than| now > than))
    }

    // ── what is seen ──

    /// A node or a stream shows a change.
    pub fn see(&mut self, who: &str, (server, version): Place, record: &Bytes) {
        let known = self.history.entry(server).or_default();
        match known.get(&version) {
            None => _ = known.insert(version, record.clone()),
            Some(seen) if seen == record => {}
            Some(_) => {
                self.violation(
                    "R5",
                    format!("{who} shows another change at {version} of {server} than was seen before"),
                );
            }
        }
    }

    /// A stream has shown its client everything up to a place.
    pub fn streamed(&mut self, place: Place) {
        self.raise_floor(place);
    }

    /// A fenced read was answered.
    pub fn read(&mut self, who: String, key: Key, place: Place, floor: Floor, found: Option<Bytes>) {
        self.reads.push(Read { who, key, place, floor, found });
    }

    /// A node's store stands at a position.
    pub fn position(&mut self, who: &str, progress: Progress, hash: Option<String>) {
        let Some(applied) = progress.applied else { return };
        match self.positions.get_mut(&applied.index) {
            Some((known, _)) if *known != progress => {
                let what = format!("at index {} {who} has {progress:?}, another {known:?}", applied.index);
                self.violation("R2", what);
            }
            Some((_, known)) => match (&known, hash) {
                (Some(known), Some(hash)) if *known != hash => {
                    self.violation("R2", format!("at index {} the store of {who} is another", applied.index));
                }
                (None, Some(hash)) => *known = Some(hash),
                _ => {}
            },
            None => {
                self.positions.insert(applied.index, (progress, hash));
                if self.positions.len() > POSITIONS_KEPT {
                    self.positions.pop_first();
                }
            }
        }
    }

    // ── leases ──

    /// A lease was taken or kept between two moments of true time, by clocks that may be off by `skew`.
    pub fn lease(&mut self, name: &str, id: &str, (asked, told): (Duration, Duration), ttl: Duration, skew: Duration) {
        if let Some(hold) = self.holds.get(name)
            && hold.id != id
            && hold.since < asked
            && told < hold.until
        {
            let (other, until) = (hold.id.clone(), hold.until);
            self.violation("R8", format!("{id} got {name} at {told:?}, {other} holds it until {until:?}"));
        }
        let until = (asked + ttl).saturating_sub(2 * skew);
        self.holds.insert(name.to_owned(), Hold { id: id.to_owned(), since: told, until });
    }

    /// A holder gives a lease up, or may have lost it.
    pub fn release(&mut self, name: &str) {
        self.holds.remove(name);
    }

    // ── elections ──

    /// A node speaks as the leader of a term.
    pub fn leads(&mut self, node: u64, term: u64) {
        match self.leaders.insert(term, node) {
            Some(other) if other != node => {
                self.violation("R9", format!("nodes {other:x} and {node:x} both lead term {term}"));
            }
            _ => {}
        }
        if self.removed.get(&node).is_some_and(|removed| *removed < term) {
            self.violation("R15", format!("node {node:x}, which was removed, leads term {term}"));
        }
    }

    /// A node has said for whom it votes.
    pub fn voted(&mut self, node: u64, term: u64, candidate: u64, granted: bool) {
        let reported = self.reported.entry(node).or_default();
        *reported = (*reported).max(term);
        if !granted {
            return;
        }
        match self.votes.insert((node, term), candidate) {
            Some(other) if other != candidate => {
                let what = format!("node {node:x} voted for {other:x} and for {candidate:x} in term {term}");
                self.violation("R9", what);
            }
            _ => {}
        }
    }

    /// A disk is about to be opened, and this is the vote on it.
    pub fn opens(&mut self, node: u64, term: u64) {
        let reported = self.reported.get(&node).copied().unwrap_or(0);
        if term < reported {
            self.violation("R9", format!("node {node:x} has reported a vote in term {reported}, its disk has {term}"));
        }
    }

    /// A node has taken this id on a disk that was empty.
    pub fn is_new(&mut self, node: u64) {
        if self.reported.contains_key(&node) {
            self.violation("R10", format!("node {node:x} has come back on an empty disk"));
        }
    }

    /// A committed membership says that a node was removed; `term`: of that membership, or later.
    pub fn removed(&mut self, node: u64, term: u64) {
        self.removed.entry(node).or_insert(term);
    }

    pub fn elections(&self) -> usize {
        self.leaders.len()
    }

    /// A request between nodes is under way; one that is seen again was tried again.
    pub fn request(&mut self, origin: u64, request: u64) {
        if self.requests.insert((origin, request), ()).is_some() {
            self.retried += 1;
        }
    }

    /// Whether a change of voters is seen for the first time.
    pub fn is_new_change(&mut self, term: u64, index: u64) -> bool {
        self.joint.insert((term, index))
    }
}
