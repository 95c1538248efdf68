//! The memory of answers: makes a write take effect at most once, however often it is proposed.
//!
//! A node that does not hear the answer to a write proposes it again on the next leader, under the same identity. The
//! store answers from here and changes nothing. An origin's answers are forgotten once the origin says they are settled.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use databroker_proto::internal::{Answers, Identity, Membership, Outcome, Remembered};
use prost::Message as _;

use super::super::{
    super::mutation::{self, Mutation},
    Error,
    codec::{KeyReader, KeyWriter},
    engine::View,
    keyspace::Keyspace,
    txn::Txn,
};

/// Unsettled answers kept per origin. A node lets at most half as many requests be under way, so this is only reached by
/// a node that breaks the rule; its oldest answers are then taken as settled.
const ANSWERS_MAX: usize = 8192;

/// What is known of a request.
#[derive(Debug, PartialEq)]
pub(super) enum Recall {
    /// Never seen.
    New,
    /// Applied before: this was the answer.
    Answered(Outcome),
    /// Applied before, and its origin has had the answer.
    Settled,
}

#[derive(Debug, Default)]
struct Origin {
    settled: u64,
    answers: BTreeMap<u64, Outcome>,
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
            let answers = stored.answers.into_iter().map(|a| (a.request, a.outcome.unwrap_or_default())).collect();
            memory.origins.insert(origin, Origin { settled: stored.settled, answers });
        }
        Ok(memory)
    }

    pub(super) fn recall(&mut self, identity: &Identity) -> Recall {
        let origin = self.origins.entry(identity.origin).or_default();
        if identity.settled > origin.settled {
            origin.settled = identity.settled;
            origin.answers = origin.answers.split_off(&identity.settled);
            self.changed.insert(identity.origin);
        }
        if mutation::active(Mutation::NoMemoryOfRequests) {
            return Recall::New;
        }
        if identity.request < origin.settled {
            return Recall::Settled;
        }
        match origin.answers.get(&identity.request) {
            Some(outcome) => Recall::Answered(outcome.clone()),
            None => Recall::New,
        }
    }

    pub(super) fn remember(&mut self, identity: &Identity, outcome: Outcome) {
        let origin = self.origins.entry(identity.origin).or_default();
        origin.answers.insert(identity.request, outcome);
        while origin.answers.len() > ANSWERS_MAX {
            if let Some((request, _)) = origin.answers.pop_first() {
                origin.settled = request.saturating_add(1);
            }
        }
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

impl Origin {
    fn encode(&self) -> Vec<u8> {
        let answers = self
            .answers
            .iter()
            .map(|(request, outcome)| Remembered { request: *request, outcome: Some(outcome.clone()) })
            .collect();
        Answers { settled: self.settled, answers }.encode_to_vec()
    }
}
