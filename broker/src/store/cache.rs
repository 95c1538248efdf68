//! The record cache: live records by key, above the engine, so that a point read of a record that was written or read
//! lately costs a look-up in memory and not a search through memtables, filters, indexes and blocks.
//!
//! Reads are reads of a snapshot, and the cache must not change what they find. Batches are numbered; a view is of the
//! store after one of them.
//!
//! - Before a batch can be seen, each record that it writes replaces what the cache holds of it, from that number on
//!   ([`Caching::write`]), and a removed one goes.
//! - A view finds an entry only if it is not newer than the view.
//! - What a reader brings from the engine is kept only if nothing in its shard was written since the reader's view: else
//!   it may be old.
//!
//! So an entry is what every view from its number up to the newest would read. Absent records are not kept. Only point
//! reads come here: scans read past it, and leave what is in it alone. A store that comes from elsewhere begins with an
//! empty cache; what `Clear` leaves behind has keys of another epoch, and goes in time.
//!
//! Not here: what readers see (`snapshot`), blocks of files (the engine's own cache).

use std::{
    hash::BuildHasher as _,
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use bytes::Bytes;
use foldhash::fast::RandomState;
use parking_lot::Mutex;
use quick_cache::{Lifecycle, Weighter, unsync};

use super::{
    super::mutation::{self, Mutation},
    engine::{Change, Error, KeyBounds, Range, Space, View},
    keyspace::Keyspace,
};

/// Locks are held for a look-up each; this many are rarely waited for by a few dozen threads.
const SHARDS: usize = 64;

/// Larger records are read from the engine: copying one costs as much as finding it.
const VALUE_BYTES_MAX: usize = 16 << 10;

/// What an entry takes beside its key and value: two allocations' rounding, its place in the slab and in the table.
/// Measured: a million records of 200 bytes take as much as they are counted for, within a tenth.
const ENTRY_BYTES: usize = 120;

/// A record of average size, with its key: how many entries to prepare for.
const RECORD_BYTES_TYPICAL: u64 = 400;

/// What the cache did since the start, and holds now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Point reads that found their record here.
    pub hits: u64,
    /// Point reads that did not.
    pub misses: u64,
    /// Entries that had to go for others.
    pub evictions: u64,
    /// What it holds.
    pub entries: u64,
    /// What that takes, in bytes.
    pub bytes: u64,
}

/// Counts over all stores that a process has had, one after the other.
#[derive(Default)]
pub(super) struct Counters {
    hits: AtomicU64,
    misses: AtomicU64,
    evictions: Arc<AtomicU64>,
    current: Mutex<Weak<Cache>>,
}

impl Counters {
    pub(super) fn stats(&self) -> Stats {
        let current = self.current.lock().upgrade();
        let shards = current.as_ref().map(|cache| cache.shards.as_slice()).unwrap_or_default();
        let (mut entries, mut bytes) = (0, 0);
        for shard in shards {
            let shard = shard.lock();
            entries += shard.entries.len() as u64;
            bytes += shard.entries.weight();
        }
        let count = |counter: &AtomicU64| counter.load(Relaxed);
        let (hits, misses, evictions) = (count(&self.hits), count(&self.misses), count(&self.evictions));
        Stats { hits, misses, evictions, entries, bytes }
    }
}

/// The cache as the store's owner has it: with the number of the newest batch.
pub(super) struct Caching {
    bytes_max: u64,
    counters: Arc<Counters>,
    cache: Option<Arc<Cache>>,
    newest: u64,
}

impl Caching {
    /// An empty cache of at most `bytes_max` bytes; 0: none.
    pub(super) fn new(bytes_max: u64, counters: Arc<Counters>) -> Self {
        let cache = (bytes_max > 0).then(|| Arc::new(Cache::new(bytes_max, counters.clone())));
        *counters.current.lock() = cache.as_ref().map(Arc::downgrade).unwrap_or_default();
        Self { bytes_max, counters, cache, newest: 0 }
    }

    /// For another store: empty. Snapshots of the old one go on with the old cache, for as long as they are held.
    pub(super) fn renewed(&self) -> Self {
        Self::new(self.bytes_max, self.counters.clone())
    }

    /// Takes in a batch that nobody can see yet. Views that are opened from now on are of the store after it.
    pub(super) fn write(&mut self, batch: &[Change]) {
        self.newest += 1;
        let Some(cache) = &self.cache else { return };
        let records = batch.iter().filter(|change| change.space == Keyspace::Records.space());
        records.for_each(|change| cache.write(&change.key, change.value.as_deref(), self.newest));
    }

    /// The view, read through the cache.
    pub(super) fn view(&self, view: Arc<dyn View>) -> Arc<dyn View> {
        match &self.cache {
            None => view,
            Some(cache) => Arc::new(Cached { view, cache: cache.clone(), at: self.newest }),
        }
    }
}

/// A view that looks into the cache first.
struct Cached {
    view: Arc<dyn View>,
    cache: Arc<Cache>,
    /// The batch after which it was opened.
    at: u64,
}

impl View for Cached {
    fn get(&self, space: Space, key: &[u8]) -> Result<Option<Bytes>, Error> {
        if space != Keyspace::Records.space() {
            return self.view.get(space, key);
        }
        if let Some(value) = self.cache.find(key, self.at) {
            return Ok(Some(value));
        }
        let found = self.view.get(space, key)?;
        if let Some(value) = &found {
            self.cache.offer(key, value, self.at);
        }
        Ok(found)
    }

    fn range(&self, space: Space, bounds: KeyBounds) -> Range<'_> {
        self.view.range(space, bounds)
    }
}

struct Cache {
    shards: Vec<Mutex<Shard>>,
    hasher: RandomState,
    counters: Arc<Counters>,
}

type Entries = unsync::Cache<Box<[u8]>, Entry, Bulk, RandomState, Evicted>;

struct Shard {
    entries: Entries,
    /// The newest batch that wrote a record whose key belongs here.
    written: u64,
}

/// A record, as every view from `since` on reads it.
struct Entry {
    since: u64,
    value: Box<[u8]>,
}

impl Shard {
    fn put(&mut self, key: &[u8], entry: Entry) {
        // Not by inserting alone, which counts what it replaces as evicted.
        match self.entries.get_mut(key) {
            Some(mut there) => *there = entry,
            None => self.entries.insert(key.into(), entry),
        }
    }
}

impl Cache {
    fn new(bytes_max: u64, counters: Arc<Counters>) -> Self {
        let hasher = RandomState::default();
        let shard = || Mutex::new(Shard { entries: entries(bytes_max, &hasher, &counters), written: 0 });
        Self { shards: (0..SHARDS).map(|_| shard()).collect(), hasher: hasher.clone(), counters }
    }

    fn shard(&self, key: &[u8]) -> Option<&Mutex<Shard>> {
        // The table within a shard uses the low and the highest bits of the same hash.
        let number = (self.hasher.hash_one(key) >> 40) as usize % SHARDS;
        self.shards.get(number)
    }

    fn find(&self, key: &[u8], at: u64) -> Option<Bytes> {
        let shard = self.shard(key)?.lock();
        let entry = shard.entries.get(key).filter(|entry| entry.since <= at);
        let value = entry.map(|entry| Bytes::copy_from_slice(&entry.value));
        drop(shard);
        let counter = if value.is_some() { &self.counters.hits } else { &self.counters.misses };
        counter.fetch_add(1, Relaxed);
        value
    }

    /// What a view has read from the engine.
    fn offer(&self, key: &[u8], value: &[u8], at: u64) {
        let Some(shard) = self.shard(key) else { return };
        let mut shard = shard.lock();
        if shard.written <= at && value.len() <= VALUE_BYTES_MAX {
            let since = shard.written;
            shard.put(key, Entry { since, value: value.into() });
        }
    }

    /// What a batch writes.
    fn write(&self, key: &[u8], value: Option<&[u8]>, batch: u64) {
        if mutation::active(Mutation::CacheNotWritten) {
            return;
        }
        let Some(shard) = self.shard(key) else { return };
        let mut shard = shard.lock();
        shard.written = batch;
        match value.filter(|value| value.len() <= VALUE_BYTES_MAX) {
            Some(value) => shard.put(key, Entry { since: batch, value: value.into() }),
            None => drop(shard.entries.remove(key)),
        }
    }
}

fn entries(bytes_max: u64, hasher: &RandomState, counters: &Counters) -> Entries {
    let bytes = bytes_max / SHARDS as u64;
    let items = usize::try_from(bytes / RECORD_BYTES_TYPICAL).unwrap_or(usize::MAX);
    let evicted = Evicted(counters.evictions.clone());
    unsync::Cache::with(items.max(1), bytes, Bulk, hasher.clone(), evicted)
}

/// How many bytes an entry takes.
#[derive(Clone)]
struct Bulk;

impl Weighter<Box<[u8]>, Entry> for Bulk {
    fn weight(&self, key: &Box<[u8]>, entry: &Entry) -> u64 {
        (key.len() + entry.value.len() + ENTRY_BYTES) as u64
    }
}

/// Counts what had to go.
#[derive(Clone)]
struct Evicted(Arc<AtomicU64>);

impl Lifecycle<Box<[u8]>, Entry> for Evicted {
    type RequestState = ();

    fn begin_request(&self) {}

    fn on_evict(&self, (): &mut (), _: Box<[u8]>, _: Entry) {
        self.0.fetch_add(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::{collection::vec, prelude::*};

    use super::*;
    use crate::store::engine::{Durability, Engine, memory::Memory};

    /// A store of nothing but records, with its cache.
    struct Owner {
        engine: Memory,
        caching: Caching,
    }

    impl Owner {
        fn new(bytes_max: u64) -> Self {
            let caching = Caching::new(bytes_max, Arc::default());
            Self { engine: Memory::new(&Keyspace::names()), caching }
        }

        fn commit(&mut self, changes: &[(u8, Option<u8>)]) -> Arc<dyn View> {
            let batch: Vec<_> = changes.iter().map(|(key, value)| change(*key, *value)).collect();
            self.caching.write(&batch);
            self.engine.commit(batch, Durability::Written).unwrap();
            self.view()
        }

        fn view(&self) -> Arc<dyn View> {
            self.caching.view(self.engine.view().unwrap().into())
        }
    }

    fn change(key: u8, value: Option<u8>) -> Change {
        let value = value.map(|value| Bytes::from(vec![value; 40]));
        Change { space: Keyspace::Records.space(), key: Bytes::from(vec![key; 20]), value }
    }

    fn read(view: &Arc<dyn View>, key: u8) -> Option<u8> {
        view.get(Keyspace::Records.space(), &[key; 20]).unwrap().map(|value| value[0])
    }

    #[derive(Clone, Debug)]
    enum Act {
        /// A batch: for each key at most one value, or its removal.
        Commit(BTreeMap<u8, Option<u8>>),
        /// A key, read in the view that was opened so many batches ago.
        Read(u8, usize),
        /// The views so old are given up.
        Forget(usize),
    }

    fn act() -> impl Strategy<Value = Act> {
        let commit = proptest::collection::btree_map(0..12_u8, any::<Option<u8>>(), 0..4);
        prop_oneof![
            3 => commit.prop_map(Act::Commit),
            8 => (0..12_u8, 0..6_usize).prop_map(|(key, back)| Act::Read(key, back)),
            1 => (1..6_usize).prop_map(Act::Forget),
        ]
    }

    proptest! {
        #[test]
        fn every_view_reads_what_was_there_when_it_was_opened(
            // From one in which nothing fits to one in which everything does.
            entries in prop_oneof![Just(1_u64), 1..4_u64, Just(1000)],
            acts in vec(act(), 0..120),
        ) {
            let mut owner = Owner::new(entries * 200 * SHARDS as u64);
            let mut views = vec![(owner.view(), BTreeMap::new())];
            for act in acts {
                match act {
                    Act::Commit(changes) => {
                        let mut model = views.last().unwrap().1.clone();
                        model.extend(changes.clone());
                        views.push((owner.commit(&changes.into_iter().collect::<Vec<_>>()), model));
                    }
                    Act::Read(key, back) => {
                        let (view, model) = &views[views.len().saturating_sub(back + 1)];
                        prop_assert_eq!(read(view, key), model.get(&key).copied().flatten());
                    }
                    Act::Forget(back) => drop(views.drain(..views.len().saturating_sub(back))),
                }
            }
        }
    }

    #[test]
    fn a_value_read_before_a_write_is_not_kept_after_it() {
        let mut owner = Owner::new(1 << 20);
        let old = owner.commit(&[(1, Some(1))]);
        let space = Keyspace::Records.space();
        let cache = owner.caching.cache.clone().unwrap();
        // A reader has read from the engine, and before it offers what it has read the next batch is written.
        let stale = old.get(space, &[1; 20]).unwrap().unwrap();
        let new = owner.commit(&[(1, Some(2))]);
        cache.offer(&[1; 20], &stale, 1);
        assert_eq!((read(&new, 1), read(&old, 1)), (Some(2), Some(1)));
        // The same with a removal, after which there is no entry to be in the way.
        let gone = owner.commit(&[(1, None)]);
        cache.offer(&[1; 20], &stale, 2);
        assert_eq!((read(&gone, 1), read(&new, 1)), (None, Some(2)));
    }

    #[test]
    fn what_was_written_or_read_is_found_without_the_engine_and_counted() {
        let mut owner = Owner::new(1 << 20);
        let view = owner.commit(&[(1, Some(1)), (2, Some(2))]);
        assert_eq!((read(&view, 1), read(&view, 2), read(&view, 3)), (Some(1), Some(2), None));
        let stats = owner.caching.counters.stats();
        assert_eq!(stats, Stats { hits: 2, misses: 1, evictions: 0, entries: 2, bytes: 2 * (60 + ENTRY_BYTES as u64) });
        // What replaces itself evicts nothing.
        let view = owner.commit(&[(1, Some(1)), (2, Some(3))]);
        assert_eq!((read(&view, 2), owner.caching.counters.stats().evictions), (Some(3), 0));
        // Another store begins empty, and goes on counting.
        owner.caching = owner.caching.renewed();
        assert_eq!(read(&owner.view(), 1), Some(1));
        assert_eq!(read(&owner.view(), 1), Some(1));
        let stats = owner.caching.counters.stats();
        assert_eq!((stats.hits, stats.misses, stats.entries), (4, 2, 1));
    }

    #[test]
    fn it_stays_within_its_bound_and_takes_no_giants() {
        let mut owner = Owner::new(64 << 10);
        for batch in 0..2000_u32 {
            let key = Bytes::from(batch.to_be_bytes().to_vec());
            let change = Change { space: Keyspace::Records.space(), key, value: Some(Bytes::from(vec![0; 100])) };
            owner.caching.write(&[change]);
        }
        let stats = owner.caching.counters.stats();
        assert!(stats.bytes <= 64 << 10 && stats.entries > 100 && stats.evictions > 1000, "{stats:?}");
        let giant = vec![0; VALUE_BYTES_MAX + 1];
        let space = Keyspace::Records.space();
        owner.caching.write(&[Change { space, key: Bytes::from_static(b"giant"), value: Some(giant.into()) }]);
        assert!(owner.caching.cache.as_ref().unwrap().find(b"giant", u64::MAX).is_none());
    }

    #[test]
    fn a_size_of_nothing_is_no_cache() {
        let mut owner = Owner::new(0);
        let view = owner.commit(&[(1, Some(1))]);
        assert_eq!((read(&view, 1), owner.caching.counters.stats()), (Some(1), Stats::default()));
    }
}
