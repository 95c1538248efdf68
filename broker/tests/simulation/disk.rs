//! Disks that tell what was synced from what was only written, and that forget in a crash.
//!
//! A power loss keeps what was synced and some of the batches written since, in order; the death of a process keeps all
//! that was written. Not here: when disks crash (`faults`), what is on them.

use std::{collections::BTreeSet, ops::Bound, sync::Arc};

use bytes::Bytes;
use databroker::{
    raft::LOG_SPACES,
    store::{
        engine::{Batch, Change, Durability, Engine, Error, KeyBounds, Range, Space, Stats, View, shelf::Shelf},
        keyspace::Keyspace,
    },
};
use databroker_proto::internal;
use imbl::OrdMap;
use parking_lot::Mutex;
use prost::Message as _;

use crate::world::World;

type Tree = OrdMap<Bytes, Bytes>;

/// Batches since the last sync that are told apart: beyond this the oldest count as synced. A kernel writes back, too.
const UNSYNCED_MAX: usize = 4096;

/// An engine in memory that survives, as far as it was synced.
pub struct SimulatedEngine(Mutex<Contents>);

#[derive(Clone)]
struct Contents {
    now: Vec<Tree>,
    synced: Vec<Tree>,
    unsynced: Vec<Batch>,
}

fn apply(trees: &mut [Tree], batch: &Batch) {
    for Change { space, key, value } in batch {
        let tree = &mut trees[usize::from(space.0)];
        match value {
            Some(value) => tree.insert(key.clone(), value.clone()),
            None => tree.remove(&key[..]),
        };
    }
}

impl Contents {
    fn new(spaces: usize) -> Self {
        Self { now: vec![Tree::new(); spaces], synced: vec![Tree::new(); spaces], unsynced: Vec::new() }
    }

    fn sync(&mut self) {
        self.synced = self.now.clone();
        self.unsynced.clear();
    }
}

impl SimulatedEngine {
    fn new(spaces: usize) -> Self {
        Self(Mutex::new(Contents::new(spaces)))
    }

    /// What is there after a crash: everything written, or what was synced and some of what was written since.
    fn after_crash(&self, world: &World, power_lost: bool) -> Self {
        let mut contents = self.0.lock().clone();
        if power_lost {
            let kept = world.index(contents.unsynced.len() + 1);
            contents.now = contents.synced.clone();
            for batch in contents.unsynced.iter().take(kept) {
                apply(&mut contents.now, batch);
            }
        }
        // What was found after the restart is on the disk.
        contents.sync();
        Self(Mutex::new(contents))
    }

    fn get(&self, space: u8, key: &[u8]) -> Option<Bytes> {
        self.0.lock().now[usize::from(space)].get(key).cloned()
    }
}

struct Moment(Vec<Tree>);

impl Engine for SimulatedEngine {
    fn view(&self) -> Result<Box<dyn View>, Error> {
        Ok(Box::new(Moment(self.0.lock().now.clone())))
    }

    fn commit(&self, batch: Batch, durability: Durability) -> Result<(), Error> {
        let mut contents = self.0.lock();
        apply(&mut contents.now, &batch);
        match durability {
            Durability::Synced => contents.sync(),
            Durability::Written => contents.unsynced.push(batch),
        }
        if contents.unsynced.len() > UNSYNCED_MAX {
            contents.sync();
        }
        Ok(())
    }

    fn load(&self, rows: Batch) -> Result<(), Error> {
        self.commit(rows, Durability::Written)
    }

    fn sync(&self) -> Result<(), Error> {
        self.0.lock().sync();
        Ok(())
    }

    fn stats(&self) -> Stats {
        let contents = self.0.lock();
        let rows = contents.now.iter().flat_map(|tree| tree.iter());
        Stats { bytes: rows.map(|(key, value)| (key.len() + value.len()) as u64).sum(), ..Stats::default() }
    }
}

impl View for Moment {
    fn get(&self, space: Space, key: &[u8]) -> Result<Option<Bytes>, Error> {
        Ok(self.0[usize::from(space.0)].get(key).cloned())
    }

    fn range(&self, space: Space, bounds: KeyBounds) -> Range<'_> {
        let empty = match &bounds {
            (Bound::Unbounded, _) | (_, Bound::Unbounded) => false,
            (Bound::Included(low), Bound::Included(high)) => low > high,
            (Bound::Included(low) | Bound::Excluded(low), Bound::Included(high) | Bound::Excluded(high)) => low >= high,
        };
        if empty {
            return Box::new(std::iter::empty());
        }
        let bounds = (bounds.0.as_ref().map(|key| &key[..]), bounds.1.as_ref().map(|key| &key[..]));
        let rows = self.0[usize::from(space.0)].range::<_, [u8]>(bounds);
        Box::new(rows.map(|(key, value)| Ok((key.clone(), value.clone()))))
    }
}

/// The disk of one node.
pub struct Disk {
    pub log: Arc<SimulatedEngine>,
    stores: Arc<Stores>,
}

/// The store in use, and one that arrives.
struct Stores(Mutex<Shelved>);

struct Shelved {
    current: Arc<SimulatedEngine>,
    begun: Option<Arc<SimulatedEngine>>,
}

fn empty_store() -> Arc<SimulatedEngine> {
    Arc::new(SimulatedEngine::new(Keyspace::names().len()))
}

impl Default for Disk {
    fn default() -> Self {
        let stores = Shelved { current: empty_store(), begun: None };
        Self { log: Arc::new(SimulatedEngine::new(LOG_SPACES.len())), stores: Arc::new(Stores(Mutex::new(stores))) }
    }
}

impl Disk {
    pub fn store(&self) -> Arc<SimulatedEngine> {
        self.stores.0.lock().current.clone()
    }

    pub fn shelf(&self) -> Arc<dyn Shelf> {
        self.stores.clone()
    }

    /// The disk as the next start finds it. What still writes to the old one changes nothing any more.
    pub fn after_crash(&self, world: &World, power_lost: bool) -> Self {
        let store = Arc::new(self.store().after_crash(world, power_lost));
        let stores = Shelved { current: store, begun: None };
        Self { log: Arc::new(self.log.after_crash(world, power_lost)), stores: Arc::new(Stores(Mutex::new(stores))) }
    }

    /// The id of the node whose disk this is, once it has one.
    pub fn node_id(&self) -> Option<u64> {
        let id = self.log.get(1, b"node_id")?;
        Some(u64::from_be_bytes(id[..].try_into().ok()?))
    }

    /// The vote that stands on the disk: the term, and whom it is for.
    pub fn vote(&self) -> (u64, u64) {
        let vote = self.log.get(1, b"vote").and_then(|vote| internal::Vote::decode(vote).ok()).unwrap_or_default();
        (vote.term, vote.node.unwrap_or(0))
    }

    /// The voters of the membership that the store has applied; none while a change is half done.
    pub fn applied_voters(&self) -> Option<BTreeSet<u64>> {
        let stored = self.store().get(Keyspace::Metadata.space().0, b"membership")?;
        let stored = internal::StoredMembership::decode(stored).ok()?;
        match internal::Membership::decode(stored.membership).ok()?.voters.as_slice() {
            [voters] => Some(voters.nodes.iter().copied().collect()),
            _ => None,
        }
    }

    /// The last index of the log.
    pub fn last_index(&self) -> u64 {
        let contents = self.log.0.lock();
        let last = contents.now[0].get_max().map(|(key, _)| u64::from_be_bytes(key[..].try_into().unwrap()));
        let purged = contents.now[1].get(&b"purged"[..]).and_then(|id| internal::LogId::decode(id.clone()).ok());
        last.unwrap_or(0).max(purged.map_or(0, |id| id.index))
    }
}

impl Shelf for Stores {
    fn begin(&self) -> Result<Arc<dyn Engine>, Error> {
        let engine = empty_store();
        self.0.lock().begun = Some(engine.clone());
        Ok(engine)
    }

    fn adopt(&self) -> Result<(), Error> {
        let mut shelved = self.0.lock();
        if let Some(engine) = shelved.begun.take() {
            shelved.current = engine;
        }
        Ok(())
    }

    fn tidy(&self) {}
}
