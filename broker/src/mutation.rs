//! Switches that break one rule each, for the simulation to notice: a test of the tests. Without the cargo feature
//! `mutations` every switch is off for good, and the compiler leaves its place out.
//!
//! A switch is on for one thread, for a simulated world lives on one. Not here: what the rules are (`ARCHITECTURE.md`),
//! and the mutation that is not made in the product: a disk that is lost and whose node keeps its id.

/// What can be broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutation {
    /// Entries are reported as flushed before they are synced.
    AcknowledgeBeforeSync,
    /// A vote is answered before it is synced.
    VoteNotSynced,
    /// The position is written after the batch, by itself.
    AppliedOutsideBatch,
    /// Answers leave before their batch can be seen.
    AnswerBeforeBatch,
    /// The log is purged although the store was not synced.
    PurgeBeyondSynced,
    /// A node whose disk was lost comes back under the old id. Broken by whoever starts it.
    WipedKeepsId,
    /// Reads do not ask the leader.
    ReadWithoutFence,
    /// Streams show what reads do not find yet.
    StreamAheadOfApplied,
    /// The old store is given up when a new one begins to arrive.
    ClearBeforeInstall,
    /// A store that arrives forgets which version was the last.
    SnapshotWithoutCounters,
    /// What is stored depends on the order of a hash map.
    MapIterationInApply,
    /// The store looks at a clock.
    OwnClockInApply,
    /// Voters are changed whether they are caught up or not.
    StepWithoutCatchUp,
    /// A request that comes again is applied again.
    NoMemoryOfRequests,
    /// Nobody tells removed nodes.
    NoRetirement,
    /// What is written is not written to the record cache.
    CacheNotWritten,
}

impl Mutation {
    /// Those that publish late what was applied: the first all of it but the answers, the second all but what streams
    /// read.
    pub(crate) const LATE: [Self; 2] = [Self::AnswerBeforeBatch, Self::StreamAheadOfApplied];

    /// All of them.
    pub const ALL: [Self; 16] = [
        Self::AcknowledgeBeforeSync,
        Self::VoteNotSynced,
        Self::AppliedOutsideBatch,
        Self::AnswerBeforeBatch,
        Self::PurgeBeyondSynced,
        Self::WipedKeepsId,
        Self::ReadWithoutFence,
        Self::StreamAheadOfApplied,
        Self::ClearBeforeInstall,
        Self::SnapshotWithoutCounters,
        Self::MapIterationInApply,
        Self::OwnClockInApply,
        Self::StepWithoutCatchUp,
        Self::NoMemoryOfRequests,
        Self::NoRetirement,
        Self::CacheNotWritten,
    ];
}

#[cfg(not(feature = "mutations"))]
mod switches {
    use bytes::Bytes;

    use super::Mutation;
    use crate::store::inspect::Descriptors;

    /// Never.
    pub(crate) const fn active(_: Mutation) -> bool {
        false
    }

    /// At once.
    pub(crate) fn publish(_: &[Mutation], act: impl FnOnce() + Send + 'static) {
        act();
    }

    /// As it is.
    pub(crate) fn encoded_again(_: &Descriptors, any: Bytes) -> Bytes {
        any
    }

    /// None.
    pub(crate) const fn own_clock_nanos() -> u64 {
        0
    }
}

#[cfg(feature = "mutations")]
mod switches {
    use std::{
        cell::{Cell, RefCell},
        collections::VecDeque,
        time::{SystemTime, UNIX_EPOCH},
    };

    use bytes::Bytes;
    use prost::Message as _;
    use prost_reflect::DynamicMessage;

    use super::Mutation;
    use crate::store::inspect::Descriptors;

    thread_local! {
        static ACTIVE: Cell<Option<Mutation>> = const { Cell::new(None) };
        /// What was to be published, and waits: one for each batch between two calls of `publish_late`.
        static LATE: RefCell<VecDeque<Box<dyn FnOnce() + Send>>> = const { RefCell::new(VecDeque::new()) };
    }

    /// Switches one on for this thread, and all others off.
    pub fn set(mutation: Option<Mutation>) {
        ACTIVE.set(mutation);
        LATE.take();
    }

    /// Whether a rule is broken on this thread.
    pub fn active(mutation: Mutation) -> bool {
        ACTIVE.get() == Some(mutation)
    }

    /// Publishes at once, or, where one of these is on, when [`publish_late`] is called.
    pub(crate) fn publish(late: &[Mutation], act: impl FnOnce() + Send + 'static) {
        if late.iter().any(|mutation| active(*mutation)) {
            LATE.with_borrow_mut(|waiting| waiting.push_back(Box::new(act)));
        } else {
            act();
        }
    }

    /// Publishes what waits.
    pub fn publish_late() {
        LATE.take().into_iter().for_each(|act| act());
    }

    /// Encodes what is in an `Any` anew, if that is on: maps come out in the order of a hash map.
    pub(crate) fn encoded_again(descriptors: &Descriptors, any: Bytes) -> Bytes {
        if !active(Mutation::MapIterationInApply) {
            return any;
        }
        let anew = || {
            let mut any = prost_types::Any::decode(any.clone()).ok()?;
            let descriptor = descriptors.message(databroker_proto::message_name(&any.type_url))?;
            any.value = DynamicMessage::decode(descriptor, any.value.as_slice()).ok()?.encode_to_vec();
            Some(Bytes::from(any.encode_to_vec()))
        };
        anew().unwrap_or(any)
    }

    /// The machine's clock, if that is on.
    pub(crate) fn own_clock_nanos() -> u64 {
        let on = active(Mutation::OwnClockInApply);
        let since = SystemTime::now().duration_since(UNIX_EPOCH).ok().filter(|_| on);
        since.and_then(|since| u64::try_from(since.as_nanos()).ok()).unwrap_or(0)
    }
}

#[cfg(not(feature = "mutations"))]
pub(crate) use switches::active;
#[cfg(feature = "mutations")]
pub use switches::{active, publish_late, set};
pub(crate) use switches::{encoded_again, own_clock_nanos, publish};
