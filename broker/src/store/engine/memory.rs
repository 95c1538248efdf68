//! The engine in memory: nothing survives the process, everything else is as on disk.
//!
//! Each space is a persistent B-tree: a view clones its root and shares the rest with what is written later.

use bytes::Bytes;
use imbl::OrdMap;
use parking_lot::Mutex;

use super::{
    Batch, Change, Durability, Engine, Error, KeyBounds, Range, Space, Stats, View, as_slices, is_empty, refuse_unfit,
};

type Tree = OrdMap<Bytes, Bytes>;

/// An engine in memory.
pub struct Memory {
    contents: Mutex<Contents>,
}

struct Contents {
    trees: Vec<Tree>,
    bytes: u64,
}

struct MemoryView {
    trees: Vec<Tree>,
}

impl Memory {
    /// An empty engine with a space per name.
    pub fn new(names: &[&str]) -> Self {
        Self { contents: Mutex::new(Contents { trees: vec![Tree::new(); names.len()], bytes: 0 }) }
    }
}

impl Engine for Memory {
    fn view(&self) -> Result<Box<dyn View>, Error> {
        let trees = self.contents.lock().trees.clone();
        Ok(Box::new(MemoryView { trees }))
    }

    fn commit(&self, batch: Batch, _: Durability) -> Result<(), Error> {
        let mut contents = self.contents.lock();
        refuse_unfit(&batch, contents.trees.len())?;
        batch.into_iter().for_each(|change| contents.apply(change));
        Ok(())
    }

    fn load(&self, rows: Batch) -> Result<(), Error> {
        // Copies: what is loaded lies in the buffers in which it came, which a tree would hold on to.
        let own = |bytes: Bytes| Bytes::copy_from_slice(&bytes);
        let own_row = |Change { space, key, value }| Change { space, key: own(key), value: value.map(own) };
        self.commit(rows.into_iter().map(own_row).collect(), Durability::Written)
    }

    fn sync(&self) -> Result<(), Error> {
        Ok(())
    }

    fn stats(&self) -> Stats {
        Stats { bytes: self.contents.lock().bytes, ..Stats::default() }
    }
}

impl Contents {
    fn apply(&mut self, Change { space, key, value }: Change) {
        let Some(tree) = self.trees.get_mut(usize::from(space.0)) else { return };
        let size = |value: &Bytes| (key.len() + value.len()) as u64;
        let added = value.as_ref().map_or(0, size);
        let old = match value {
            Some(value) => tree.insert(key.clone(), value),
            None => tree.remove(&key[..]),
        };
        self.bytes = (self.bytes + added).saturating_sub(old.as_ref().map_or(0, size));
    }
}

impl MemoryView {
    fn tree(&self, space: Space) -> Result<&Tree, Error> {
        self.trees.get(usize::from(space.0)).ok_or_else(|| Error::no_such_space(space, self.trees.len()))
    }
}

impl View for MemoryView {
    fn get(&self, space: Space, key: &[u8]) -> Result<Option<Bytes>, Error> {
        Ok(self.tree(space)?.get(key).cloned())
    }

    fn range(&self, space: Space, bounds: KeyBounds) -> Range<'_> {
        if is_empty(&bounds) {
            return Box::new(std::iter::empty());
        }
        match self.tree(space) {
            Ok(tree) => {
                Box::new(tree.range::<_, [u8]>(as_slices(&bounds)).map(|(key, value)| Ok((key.clone(), value.clone()))))
            }
            Err(error) => Box::new(std::iter::once(Err(error))),
        }
    }
}
