//! The memory of answers: makes a write take effect at most once, however often it is proposed.
//!
//! A node that does not hear the answer to a write proposes it again on the next leader, under the same identity. The
//! store answers from here and changes nothing. An origin's answers are forgotten once the origin says they are settled.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    ops::Range,
};

use bytes::Bytes;
use databroker_proto::internal::{Answers, Identity, Membership, Outcome, Remembered, Requests};
use prost::Message as _;

use super::super::{
    super::mutation::{self, Mutation},
    Error,
    codec::{KeyReader, KeyWriter},
    engine::View,
    keyspace::Keyspace,
    txn::Txn,
};

/// Unsettled answers kept per origin: twice as many as a node lets requests be under way. There may be more of them while one
/// request takes long and thousands that began after it are done; then the oldest are forgotten, but not that their
/// requests took effect.
const ANSWERS_MAX: usize = 8192;

/// Gaps between forgotten answers that are kept per origin. Each is a request under way, of which there are half as many: only a
/// node that breaks that rule gets here, and its oldest gaps are closed.
const GAPS_MAX: usize = 8192;

/// What is known of a request.
#[derive(Debug, PartialEq)]
pub(super) enum Recall {
    /// Never seen.
    New,
    /// Applied before: this was the answer.
    Answered(Outcome),
    /// Applied before, and its answer is not kept any more.
    Settled,
}

#[derive(Debug, Default)]
struct Origin {
    settled: u64,
    answers: BTreeMap<u64, Outcome>,
    /// The requests of `answers` in the order in which they took effect; those that are settled are skipped.
    order: VecDeque<u64>,
    forgotten: Spans,
}

impl Origin {
    fn settle(&mut self, settled: u64) {
        self.settled = settled;
        self.answers = self.answers.split_off(&settled);
        while self.order.front().is_some_and(|request| *request < settled) {
            self.order.pop_front();
        }
        self.forgotten.cut(settled);
    }

    fn add(&mut self, request: u64, outcome: Outcome) {
        if self.answers.insert(request, outcome).is_none() {
            self.order.push_back(request);
        }
        while self.answers.len() > ANSWERS_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            if self.answers.remove(&oldest).is_some() {
                self.forgotten.insert(oldest..oldest.saturating_add(1));
            }
        }
        while self.forgotten.0.len() > GAPS_MAX
            && let Some((_, end)) = self.forgotten.0.pop_first()
        {
            self.settle(end);
        }
    }

    fn recall(&self, request: u64) -> Recall {
        if request < self.settled || self.forgotten.contains(request) {
            return Recall::Settled;
        }
        self.answers.get(&request).map_or(Recall::New, |outcome| Recall::Answered(outcome.clone()))
    }

    fn encode(&self) -> Vec<u8> {
        let kept = self.order.iter().filter_map(|request| Some((*request, self.answers.get(request)?.clone())));
        let answers = kept.map(|(request, outcome)| Remembered { request, outcome: Some(outcome) }).collect();
        let forgotten = self.forgotten.0.iter().map(|(first, end)| Requests { first: *first, end: *end }).collect();
        Answers { settled: self.settled, answers, forgotten }.encode_to_vec()
    }

    fn decode(stored: Answers) -> Self {
        let mut origin = Self { settled: stored.settled, ..Self::default() };
        for Remembered { request, outcome } in stored.answers {
            origin.order.push_back(request);
            origin.answers.insert(request, outcome.unwrap_or_default());
        }
        for Requests { first, end } in stored.forgotten {
            origin.forgotten.insert(first..end);
        }
        origin
    }
}

/// Numbers, as spans that do not touch: from the first of each to its end.
#[derive(Debug, Default, PartialEq)]
struct Spans(BTreeMap<u64, u64>);

impl Spans {
    fn insert(&mut self, span: Range<u64>) {
        let Range { mut start, mut end } = span;
        if start >= end {
            return;
        }
        // Those that touch it become one with it. Few do.
        while let Some((first, past)) = self.0.range(..=end).next_back().map(|(first, past)| (*first, *past))
            && past >= start
        {
            self.0.remove(&first);
            (start, end) = (start.min(first), end.max(past));
        }
        self.0.insert(start, end);
    }

    fn contains(&self, number: u64) -> bool {
        self.0.range(..=number).next_back().is_some_and(|(_, end)| number < *end)
    }

    /// Leaves what is not below `floor`.
    fn cut(&mut self, floor: u64) {
        let rest = self.0.split_off(&floor);
        let last = std::mem::replace(&mut self.0, rest).pop_last();
        if let Some((_, end)) = last.filter(|(_, end)| *end > floor) {
            self.0.insert(floor, end);
        }
    }
}

/// Answers of all origins.
#[derive(Debug, Default)]
pub struct Memory {
    origins: BTreeMap<u64, Origin>,
    changed: BTreeSet<u64>,
}

impl Memory {
    /// Reads what the store holds.
    pub(in super::super) fn load(view: &dyn View) -> Result<Self, Error> {
        let mut memory = Self::default();
        for item in view.range(Keyspace::Answers.space(), (std::ops::Bound::Unbounded, std::ops::Bound::Unbounded)) {
            let (key, value) = item?;
            let damaged = |what: String| Error::Damaged { what: format!("answers: {what}") };
            let origin = KeyReader::new(&key).u64().map_err(|error| damaged(error.to_string()))?;
            let stored = Answers::decode(value).map_err(|error| damaged(error.to_string()))?;
            memory.origins.insert(origin, Origin::decode(stored));
        }
        Ok(memory)
    }

    pub(super) fn recall(&mut self, identity: &Identity) -> Recall {
        let origin = self.origins.entry(identity.origin).or_default();
        if identity.settled > origin.settled {
            origin.settle(identity.settled);
            self.changed.insert(identity.origin);
        }
        if mutation::active(Mutation::NoMemoryOfRequests) {
            return Recall::New;
        }
        origin.recall(identity.request)
    }

    pub(super) fn remember(&mut self, identity: &Identity, outcome: Outcome) {
        self.origins.entry(identity.origin).or_default().add(identity.request, outcome);
        self.changed.insert(identity.origin);
    }

    /// Origins that are no longer members are not answered again.
    pub(in super::super) fn keep_members(&mut self, membership: &Membership) {
        let members: BTreeSet<u64> = membership.members.iter().map(|member| member.node).collect();
        let gone: Vec<u64> = self.origins.keys().filter(|origin| !members.contains(origin)).copied().collect();
        for origin in gone {
            self.origins.remove(&origin);
            self.changed.insert(origin);
        }
    }

    /// Writes what changed since the last call.
    pub(in super::super) fn save(&mut self, txn: &mut Txn<'_>) {
        for origin in std::mem::take(&mut self.changed) {
            let key: Bytes = KeyWriter::new().u64(origin).finish();
            match self.origins.get(&origin) {
                Some(kept) => txn.put(Keyspace::Answers.space(), key, kept.encode()),
                None => txn.remove(Keyspace::Answers.space(), key),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(request: u64) -> Identity {
        Identity { origin: 7, request, settled: 0 }
    }

    fn answered(memory: &mut Memory, request: u64) {
        assert_eq!(memory.recall(&identity(request)), Recall::New, "{request}");
        memory.remember(&identity(request), Outcome::default());
    }

    #[test]
    fn a_request_that_takes_long_takes_effect_however_many_are_done_meanwhile() {
        let mut memory = Memory::default();
        let last = 3 * ANSWERS_MAX as u64;
        (1..=last).for_each(|request| answered(&mut memory, request));
        answered(&mut memory, 0);
        let again = |memory: &mut Memory, request| memory.recall(&identity(request));
        let had = || Recall::Answered(Outcome::default());
        assert_eq!((again(&mut memory, 0), again(&mut memory, last)), (had(), had()));
        assert_eq!((again(&mut memory, 1), again(&mut memory, last / 2)), (Recall::Settled, Recall::Settled));
        let origin = &memory.origins[&7];
        assert_eq!((origin.answers.len(), origin.forgotten.0.len()), (ANSWERS_MAX, 1));
        // As it is read back.
        let back = Origin::decode(Answers::decode(&*origin.encode()).unwrap());
        assert_eq!((&back.order, &back.forgotten, back.settled), (&origin.order, &origin.forgotten, 0));
    }

    #[test]
    fn what_is_settled_leaves_nothing_behind() {
        let mut memory = Memory::default();
        let last = 2 * ANSWERS_MAX as u64;
        (1..=last).for_each(|request| answered(&mut memory, request));
        let next = Identity { origin: 7, request: last + 1, settled: last };
        assert_eq!(memory.recall(&next), Recall::New);
        assert_eq!(memory.recall(&identity(0)), Recall::Settled);
        let origin = &memory.origins[&7];
        assert_eq!((origin.answers.len(), origin.order.len(), origin.forgotten.0.len()), (1, 1, 0));
    }

    #[test]
    fn a_node_that_breaks_the_rules_costs_no_more_than_the_bounds() {
        let mut memory = Memory::default();
        // Every second request is never done.
        (0..3 * GAPS_MAX as u64 + ANSWERS_MAX as u64).for_each(|half| answered(&mut memory, 2 * half));
        let origin = &memory.origins[&7];
        assert_eq!((origin.answers.len(), origin.forgotten.0.len()), (ANSWERS_MAX, GAPS_MAX));
        assert!(origin.settled > 0);
    }

    #[test]
    fn spans_that_touch_are_one() {
        let mut spans = Spans::default();
        for span in [5..6, 1..2, 3..4, 2..3, 9..12, 4..5, 10..11, 7..7] {
            spans.insert(span);
        }
        assert_eq!(spans.0, BTreeMap::from([(1, 6), (9, 12)]));
        assert!(spans.contains(1) && spans.contains(5) && !spans.contains(6) && !spans.contains(0));
        spans.cut(3);
        assert_eq!(spans.0, BTreeMap::from([(3, 6), (9, 12)]));
        spans.cut(6);
        assert_eq!(spans.0, BTreeMap::from([(9, 12)]));
        spans.cut(20);
        assert_eq!(spans, Spans::default());
    }
}
