//! The one owner of the log's engine: turns all orders that wait into one batch and one sync, then tells who waited.
//!
//! ```text
//!   append, vote, purge … ─▶ pending ─▶ Round ─▶ commit + sync ─▶ mark ─▶ done(Ok)
//!                                         └ truncation: a round of its own
//! ```

use std::{collections::VecDeque, io, ops::Range, sync::Arc, time::Instant};

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::{
    super::{
        Entry, LogId, LogWrite, Observer, Vote, convert,
        runtime::{Clock, Failure, Lane},
    },
    ENTRIES, Error, METADATA, mark,
    mark::Mark,
    tail,
};
use crate::{
    mutation::{self, Mutation},
    store::engine::{Batch, Change, Durability, Engine, View},
};

/// Told once an order is on the disk, or never will be.
pub(super) type Done = Box<dyn FnOnce(io::Result<()>) + Send>;

pub(super) enum Order {
    Append {
        entries: Vec<Entry>,
        done: Done,
        /// Gives the bytes back that these entries take of the bound on what waits.
        room: OwnedSemaphorePermit,
    },
    Vote(Vote, Done),
    Truncate(Range<u64>, Done),
    Purge(LogId),
    /// Something to remember beside the vote.
    Note(Change, Done),
    /// A view of everything ordered before.
    View(oneshot::Sender<Box<dyn View>>),
}

/// What goes into one batch at most, in bytes of entries: beyond this a longer batch saves no sync worth having, and
/// makes everyone in it wait.
const ROUND_BYTES_MAX: usize = 8 << 20;

/// How many purged entries one batch removes. Removal has no hurry, and a vote must not wait for it.
const REMOVALS_MAX: u64 = 512;

/// How often the mark is synced by itself. In between it survives the process only: after a power loss a mark that is
/// older than the log says nothing wrong.
const MARK_SYNC_NANOS: u64 = 1_000_000_000;

/// The next orders to share a batch. A truncation stands alone: in one batch a key may occur only once, and the
/// entries that replace truncated ones have the same keys. So does a note, for the same reason.
pub(super) fn next_round(pending: &mut VecDeque<Order>) -> Vec<Order> {
    let mut round = Vec::new();
    let mut bytes = 0;
    while let Some(order) = pending.front() {
        let alone = matches!(order, Order::Truncate(..) | Order::Note(..));
        if !round.is_empty() && (alone || bytes > ROUND_BYTES_MAX) {
            break;
        }
        if let Order::Append { entries, .. } = order {
            bytes += entries.iter().map(tail::size).sum::<usize>();
        }
        round.extend(pending.pop_front());
        if alone {
            break;
        }
    }
    round
}

/// Where the entries of a round end, if it has any: below this index everything will be in the engine.
pub(super) fn written_below(round: &[Order]) -> Option<u64> {
    round.iter().rev().find_map(|order| match order {
        Order::Append { entries, .. } => entries.last().map(|entry| entry.log_id.index + 1),
        Order::Vote(..) | Order::Truncate(..) | Order::Purge(_) | Order::Note(..) | Order::View(_) => None,
    })
}

pub(super) struct Writer {
    pub(super) engine: Arc<dyn Engine>,
    /// What a commit waits for.
    pub(super) durability: Durability,
    /// None for a log in memory.
    pub(super) mark: Option<MarkKeeper>,
    pub(super) position: mark::Position,
    /// Purged entries that are still in the engine.
    pub(super) doomed: Doomed,
    pub(super) observer: Arc<dyn Observer>,
}

/// Purged entries that are still in the engine, oldest first.
pub(super) struct Doomed {
    ranges: VecDeque<Range<u64>>,
    /// Everything below is purged.
    purged_below: u64,
}

impl Doomed {
    /// The entries from `first` to `purged_below` are still there.
    pub(super) fn new(first: u64, purged_below: u64) -> Self {
        let range = Some(first..purged_below).filter(|range| !range.is_empty());
        Self { ranges: range.into_iter().collect(), purged_below }
    }

    /// Adds the entries up to `upto`, of which those after `last` never were there: a snapshot overtook the log.
    fn purge(&mut self, upto: u64, last: u64) {
        let end = upto.min(last) + 1;
        if self.purged_below < end {
            self.ranges.push_back(self.purged_below..end);
        }
        self.purged_below = self.purged_below.max(upto + 1);
    }

    /// Takes some of the oldest.
    fn take(&mut self) -> Range<u64> {
        let Some(oldest) = self.ranges.front_mut() else { return 0..0 };
        let end = oldest.end.min(oldest.start.saturating_add(REMOVALS_MAX));
        let taken = oldest.start..end;
        oldest.start = end;
        if oldest.is_empty() {
            self.ranges.pop_front();
        }
        taken
    }
}

#[derive(Default)]
struct Round {
    batch: Batch,
    /// Someone waits for this batch to be on the disk.
    durable: bool,
    entries: usize,
    bytes: usize,
    vote: Option<Vote>,
    purged: Option<LogId>,
    done: Vec<Done>,
    rooms: Vec<OwnedSemaphorePermit>,
    views: Vec<oneshot::Sender<Box<dyn View>>>,
}

impl Writer {
    pub(super) fn has_removals(&self) -> bool {
        !self.doomed.ranges.is_empty()
    }

    /// Writes a round and tells who waits for it.
    ///
    /// # Errors
    /// The log is unusable from now on; whoever waited was told.
    pub(super) fn write(&mut self, orders: Vec<Order>, committed: Option<LogId>) -> Result<(), Error> {
        let mut round = Round::default();
        self.remove_doomed(&mut round);
        orders.into_iter().for_each(|order| self.add(order, &mut round));
        round.put_metadata(committed);
        let written = self.commit(&mut round);
        // All of them are on the disk at once. The newest comes first: openraft then skips the older ones.
        for done in std::mem::take(&mut round.done).into_iter().rev() {
            done(written.as_ref().copied().map_err(|error| io::Error::other(error.to_string())));
        }
        written?;
        self.open_views(round.views)
    }

    /// Removes some entries that were purged in an earlier round.
    fn remove_doomed(&mut self, round: &mut Round) {
        round.batch.extend(self.doomed.take().map(removal));
    }

    fn add(&mut self, order: Order, round: &mut Round) {
        match order {
            Order::Append { entries, done, room } => {
                for entry in &entries {
                    self.position.last_index = entry.log_id.index;
                    round.put_entry(entry);
                }
                round.wait(done);
                round.rooms.push(room);
            }
            Order::Vote(vote, done) => {
                round.vote = Some(vote);
                round.wait(done);
            }
            Order::Truncate(range, done) => {
                self.position.last_index = range.start.saturating_sub(1);
                round.batch.extend(range.map(removal));
                round.wait(done);
            }
            Order::Purge(upto) => {
                self.doomed.purge(upto.index, self.position.last_index);
                self.position.last_index = self.position.last_index.max(upto.index);
                round.purged = Some(upto);
            }
            Order::Note(change, done) => {
                round.batch.push(change);
                round.wait(done);
            }
            Order::View(wanted) => round.views.push(wanted),
        }
    }

    fn commit(&mut self, round: &mut Round) -> Result<(), Error> {
        if round.batch.is_empty() {
            return Ok(());
        }
        if round.durable {
            self.position.sequence += 1;
            round.batch.push(metadata(b"sequence", Bytes::copy_from_slice(&self.position.sequence.to_be_bytes())));
        }
        let started = Instant::now();
        let spared = (round.entries > 0 && mutation::active(Mutation::AcknowledgeBeforeSync))
            || (round.vote.is_some() && mutation::active(Mutation::VoteNotSynced));
        let durability = if round.durable && !spared { self.durability } else { Durability::Written };
        self.engine.commit(std::mem::take(&mut round.batch), durability).map_err(Error::Write)?;
        if round.durable {
            let took = started.elapsed();
            self.observer.log_written(LogWrite { entries: round.entries, bytes: round.bytes, took });
            self.keep_mark()?;
        }
        Ok(())
    }

    fn keep_mark(&mut self) -> Result<(), Error> {
        self.mark.as_mut().map_or(Ok(()), |keeper| keeper.keep(self.position)).map_err(Error::MarkWrite)
    }

    fn open_views(&self, wanted: Vec<oneshot::Sender<Box<dyn View>>>) -> Result<(), Error> {
        for reader in wanted {
            // A reader that went away needs no view.
            drop(reader.send(self.engine.view().map_err(Error::Read)?));
        }
        Ok(())
    }
}

impl Round {
    fn wait(&mut self, done: Done) {
        self.durable = true;
        self.done.push(done);
    }

    fn put_entry(&mut self, entry: &Entry) {
        let value = convert::encode_entry(entry);
        self.entries += 1;
        self.bytes += value.len();
        self.batch.push(Change { space: ENTRIES, key: key(entry.log_id.index), value: Some(value) });
    }

    fn put_metadata(&mut self, committed: Option<LogId>) {
        self.batch.extend(self.vote.as_ref().map(|vote| metadata(b"vote", convert::encode_vote(vote))));
        self.batch.extend(self.purged.as_ref().map(|id| metadata(b"purged", convert::encode_log_id(id))));
        self.batch.extend(committed.as_ref().map(|id| metadata(b"committed", convert::encode_log_id(id))));
    }
}

pub(super) fn key(index: u64) -> Bytes {
    Bytes::copy_from_slice(&index.to_be_bytes())
}

pub(super) fn metadata(name: &'static [u8], value: Bytes) -> Change {
    Change { space: METADATA, key: Bytes::from_static(name), value: Some(value) }
}

fn removal(index: u64) -> Change {
    Change { space: ENTRIES, key: key(index), value: None }
}

/// Writes the mark after each batch, and has it synced now and then, off the writer's thread.
pub(super) struct MarkKeeper {
    pub(super) mark: Mark,
    pub(super) lane: Arc<dyn Lane>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) failure: Failure,
    pub(super) synced_at_nanos: u64,
}

impl MarkKeeper {
    fn keep(&mut self, position: mark::Position) -> io::Result<()> {
        self.mark.write(position)?;
        let now = self.clock.now_nanos();
        if now.abs_diff(self.synced_at_nanos) < MARK_SYNC_NANOS {
            return Ok(());
        }
        self.synced_at_nanos = now;
        let (file, failure) = (self.mark.file()?, self.failure.clone());
        self.lane.run(Box::new(move || {
            if let Err(error) = file.sync_data() {
                failure.report(Error::MarkWrite(error));
            }
        }));
        Ok(())
    }
}
