//! Changes in the making: what a batch of commands reads and writes before the engine commits it.
//!
//! ```text
//!   get, range ──▶ overlay (changes so far) ──▶ base (the view before the batch)
//!   put, remove ─▶ overlay, and how to undo it
//! ```
//!
//! Not here: what is written (`apply`), when it is committed (`machine`).

use std::collections::BTreeMap;

use bytes::Bytes;

use super::engine::{self, Batch, Change, Error, Item, KeyBounds, Range, Space, View};

/// Changed keys of one space; `None` stands for a removed one.
type Overlay = BTreeMap<Bytes, Option<Bytes>>;

/// Reads and writes on top of a view. Every read sees the writes before it.
pub struct Txn<'v> {
    base: &'v dyn View,
    /// By number of the space.
    overlays: Vec<Overlay>,
    undo: Vec<Undo>,
}

/// A moment of a [`Txn`] to go back to. Rolling back to a later moment than one already gone back to does nothing.
#[derive(Debug)]
#[must_use]
pub struct Savepoint(usize);

/// What the overlay held of a key before a write: `None` for nothing.
struct Undo {
    space: Space,
    key: Bytes,
    before: Option<Option<Bytes>>,
}

impl<'v> Txn<'v> {
    /// No changes yet.
    pub fn new(base: &'v dyn View) -> Self {
        Self { base, overlays: Vec::new(), undo: Vec::new() }
    }

    /// The value of a key.
    ///
    /// # Errors
    /// Those of the view.
    pub fn get(&self, space: impl Into<Space>, key: &[u8]) -> Result<Option<Bytes>, Error> {
        let space = space.into();
        match self.overlay(space).and_then(|overlay| overlay.get(key)) {
            Some(changed) => Ok(changed.clone()),
            None => self.base.get(space, key),
        }
    }

    /// The keys within bounds, in byte order.
    pub fn range(&self, space: impl Into<Space>, bounds: KeyBounds) -> Range<'_> {
        let space = space.into();
        if engine::is_empty(&bounds) {
            return Box::new(std::iter::empty());
        }
        let Some(overlay) = self.overlay(space) else { return self.base.range(space, bounds) };
        let changed = overlay.range::<[u8], _>(engine::as_slices(&bounds)).map(owned as fn(_) -> _);
        Box::new(Merge { changed: Ends::new(changed), base: Ends::new(self.base.range(space, bounds)) })
    }

    /// Sets the value of a key.
    pub fn put(&mut self, space: impl Into<Space>, key: impl Into<Bytes>, value: impl Into<Bytes>) {
        self.change(space.into(), key.into(), Some(value.into()));
    }

    /// Removes a key, whether it is there or not.
    pub fn remove(&mut self, space: impl Into<Space>, key: impl Into<Bytes>) {
        self.change(space.into(), key.into(), None);
    }

    /// Marks this moment.
    pub fn savepoint(&self) -> Savepoint {
        Savepoint(self.undo.len())
    }

    /// Takes back every change since the savepoint.
    pub fn rollback(&mut self, Savepoint(length): Savepoint) {
        while self.undo.len() > length {
            let Some(Undo { space, key, before }) = self.undo.pop() else { break };
            let overlay = self.overlay_mut(space);
            match before {
                Some(before) => overlay.insert(key, before),
                None => overlay.remove(&key),
            };
        }
    }

    /// Forgets how to undo what was done so far: no savepoint is gone back to any more.
    pub fn settle(&mut self) {
        self.undo.clear();
    }

    /// The changes, one per key, by space, then key.
    pub fn into_batch(self) -> Batch {
        let spaces = (0..=u8::MAX).map(Space).zip(self.overlays);
        let change = |space| move |(key, value)| Change { space, key, value };
        spaces.flat_map(|(space, overlay)| overlay.into_iter().map(change(space))).collect()
    }

    fn change(&mut self, space: Space, key: Bytes, value: Option<Bytes>) {
        let before = self.overlay_mut(space).insert(key.clone(), value);
        self.undo.push(Undo { space, key, before });
    }

    fn overlay(&self, Space(number): Space) -> Option<&Overlay> {
        self.overlays.get(usize::from(number)).filter(|overlay| !overlay.is_empty())
    }

    fn overlay_mut(&mut self, Space(number): Space) -> &mut Overlay {
        let index = usize::from(number);
        if self.overlays.len() <= index {
            self.overlays.resize_with(index + 1, Overlay::new);
        }
        &mut self.overlays[index]
    }
}

/// A changed key as [`Merge`] compares it: [`Bytes`] are cheap to clone.
type Changed = (Bytes, Option<Bytes>);

fn owned((key, value): (&Bytes, &Option<Bytes>)) -> Changed {
    (key.clone(), value.clone())
}

/// One order out of two: where both have a key the change counts, and removed keys are left out.
struct Merge<C: Iterator, B: Iterator> {
    changed: Ends<C>,
    base: Ends<B>,
}

#[derive(Clone, Copy)]
enum End {
    Front,
    Back,
}

impl<C, B> Merge<C, B>
where
    C: DoubleEndedIterator<Item = Changed>,
    B: DoubleEndedIterator<Item = Item>,
{
    fn step(&mut self, end: End) -> Option<Item> {
        loop {
            if self.base_comes_first(end) {
                return self.base.take(end);
            }
            let (key, value) = self.changed.take(end)?;
            self.base.take_if(end, |base| matches!(base, Ok((base, _)) if *base == key));
            if let Some(value) = value {
                return Some(Ok((key, value)));
            }
        }
    }

    /// Whether the next key from this end is one of the base that no change hides. An error comes first, too.
    fn base_comes_first(&mut self, end: End) -> bool {
        let Some(base) = self.base.peek(end) else { return false };
        let Ok((base, _)) = base else { return true };
        let Some((changed, _)) = self.changed.peek(end) else { return true };
        match end {
            End::Front => base < changed,
            End::Back => base > changed,
        }
    }
}

impl<C, B> Iterator for Merge<C, B>
where
    C: DoubleEndedIterator<Item = Changed>,
    B: DoubleEndedIterator<Item = Item>,
{
    type Item = Item;

    fn next(&mut self) -> Option<Item> {
        self.step(End::Front)
    }
}

impl<C, B> DoubleEndedIterator for Merge<C, B>
where
    C: DoubleEndedIterator<Item = Changed>,
    B: DoubleEndedIterator<Item = Item>,
{
    fn next_back(&mut self) -> Option<Item> {
        self.step(End::Back)
    }
}

/// An iterator that can be peeked at from both ends. Its last item may wait at either end and is given to both.
struct Ends<I: Iterator> {
    between: std::iter::Fuse<I>,
    front: Option<I::Item>,
    back: Option<I::Item>,
}

impl<I: DoubleEndedIterator> Ends<I> {
    fn new(between: I) -> Self {
        Self { between: between.fuse(), front: None, back: None }
    }

    fn peek(&mut self, end: End) -> Option<&I::Item> {
        self.slot(end).as_ref()
    }

    fn take(&mut self, end: End) -> Option<I::Item> {
        self.slot(end).take()
    }

    fn take_if(&mut self, end: End, condition: impl FnOnce(&I::Item) -> bool) {
        self.slot(end).take_if(|item| condition(item));
    }

    /// Where the next item of this end waits: empty only if there is none.
    fn slot(&mut self, end: End) -> &mut Option<I::Item> {
        let Self { between, front, back } = self;
        match end {
            End::Front => {
                *front = front.take().or_else(|| between.next()).or_else(|| back.take());
                front
            }
            End::Back => {
                *back = back.take().or_else(|| between.next_back()).or_else(|| front.take());
                back
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::ops::Bound;

    use proptest::{collection::vec, prelude::*};

    use super::*;
    use crate::store::engine::{Durability, Engine, memory::Memory};

    const SPACES: u8 = 3;

    type Model = BTreeMap<(u8, Vec<u8>), Vec<u8>>;

    /// One step of a random history. Keys are few, so that steps meet.
    #[derive(Clone, Debug)]
    enum Act {
        Put(u8, Vec<u8>, u8),
        Remove(u8, Vec<u8>),
        Save,
        /// Back to the newest, the one before it, … savepoint.
        Rollback(usize),
        Settle,
    }

    fn key() -> impl Strategy<Value = Vec<u8>> {
        vec(0..3_u8, 1..4)
    }

    fn contents() -> impl Strategy<Value = Model> {
        proptest::collection::btree_map((0..SPACES, key()), vec(any::<u8>(), 1), 0..20)
    }

    fn act() -> impl Strategy<Value = Act> {
        prop_oneof![
            4 => (0..SPACES, key(), any::<u8>()).prop_map(|(space, key, value)| Act::Put(space, key, value)),
            4 => (0..SPACES, key()).prop_map(|(space, key)| Act::Remove(space, key)),
            1 => Just(Act::Save),
            1 => (0..3_usize).prop_map(Act::Rollback),
            1 => Just(Act::Settle),
        ]
    }

    fn bound() -> impl Strategy<Value = Bound<Bytes>> {
        prop_oneof![
            Just(Bound::Unbounded),
            key().prop_map(|key| Bound::Included(key.into())),
            key().prop_map(|key| Bound::Excluded(key.into())),
        ]
    }

    fn stored(model: &Model) -> Memory {
        let engine = Memory::new(&["a", "b", "c"]);
        let change = |((space, key), value): (&(u8, Vec<u8>), &Vec<u8>)| Change {
            space: Space(*space),
            key: key.clone().into(),
            value: Some(value.clone().into()),
        };
        engine.commit(model.iter().map(change).collect(), Durability::Written).unwrap();
        engine
    }

    fn perform(txn: &mut Txn<'_>, model: &mut Model, acts: Vec<Act>) {
        let mut saved = Vec::new();
        for act in acts {
            match act {
                Act::Put(space, key, value) => {
                    txn.put(Space(space), key.clone(), vec![value]);
                    model.insert((space, key), vec![value]);
                }
                Act::Remove(space, key) => {
                    txn.remove(Space(space), key.clone());
                    model.remove(&(space, key));
                }
                Act::Save => saved.push((txn.savepoint(), model.clone())),
                Act::Settle => {
                    saved.clear();
                    txn.settle();
                }
                Act::Rollback(back) => {
                    let keep = saved.len().saturating_sub(back + 1);
                    if let Some((savepoint, then)) = saved.drain(keep..).next() {
                        txn.rollback(savepoint);
                        *model = then;
                    }
                }
            }
        }
    }

    fn within(model: &Model, space: u8, bounds: &KeyBounds) -> Vec<(Bytes, Bytes)> {
        use std::ops::RangeBounds;

        let of_space = model.iter().filter(|((of, _), _)| *of == space);
        let items = of_space.map(|((_, key), value)| (Bytes::from(key.clone()), Bytes::from(value.clone())));
        items.filter(|(key, _)| bounds.contains(key)).collect()
    }

    proptest! {
        #[test]
        fn reads_and_batch_are_those_of_a_plain_map(
            base in contents(),
            acts in vec(act(), 0..40),
            bounds in vec((0..SPACES, bound(), bound()), 8),
            ends in vec(any::<bool>(), 0..20),
        ) {
            let engine = stored(&base);
            let view = engine.view()?;
            let mut txn = Txn::new(&*view);
            let mut model = base;
            perform(&mut txn, &mut model, acts);

            for (space, low, high) in bounds {
                let bounds = (low, high);
                let expected = within(&model, space, &bounds);
                let forwards = txn.range(Space(space), bounds.clone()).collect::<Result<Vec<_>, _>>()?;
                prop_assert_eq!(&forwards, &expected);
                let mut backwards = txn.range(Space(space), bounds.clone()).rev().collect::<Result<Vec<_>, _>>()?;
                backwards.reverse();
                prop_assert_eq!(&backwards, &expected);

                // From both ends in turn: what one end took the other does not see.
                let mut range = txn.range(Space(space), bounds);
                let mut left = std::collections::VecDeque::from(expected);
                for front in &ends {
                    let item = if *front { range.next() } else { range.next_back() };
                    prop_assert_eq!(item.transpose()?, if *front { left.pop_front() } else { left.pop_back() });
                }
            }
            for (space, key) in model.keys().cloned().chain([(0, vec![1]), (1, vec![2, 2]), (2, vec![0, 1, 2])]) {
                let value = txn.get(Space(space), &key)?;
                prop_assert_eq!(value.as_deref(), model.get(&(space, key)).map(Vec::as_slice));
            }

            let batch = txn.into_batch();
            prop_assert!(batch.is_sorted_by(|a, b| (a.space, &a.key) < (b.space, &b.key)));
            engine.commit(batch, Durability::Written)?;
            let view = engine.view()?;
            for space in 0..SPACES {
                let all = (Bound::Unbounded, Bound::Unbounded);
                let expected = within(&model, space, &all);
                prop_assert_eq!(view.range(Space(space), all).collect::<Result<Vec<_>, _>>()?, expected);
            }
        }
    }

    /// A view that counts reads.
    struct Counting {
        gets: std::sync::atomic::AtomicUsize,
    }

    impl View for Counting {
        fn get(&self, _: Space, _: &[u8]) -> Result<Option<Bytes>, Error> {
            self.gets.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            Ok(None)
        }

        fn range(&self, _: Space, _: KeyBounds) -> Range<'_> {
            Box::new(std::iter::once(Err(Error::Sync { reason: "no range".to_owned() })))
        }
    }

    #[test]
    fn writes_do_not_read_the_base_and_changed_keys_are_not_looked_up_in_it() {
        let base = Counting { gets: 0.into() };
        let mut txn = Txn::new(&base);
        txn.put(Space(0), &b"a"[..], &b"1"[..]);
        txn.remove(Space(0), &b"b"[..]);
        let _ = (txn.get(Space(0), b"a"), txn.get(Space(0), b"b"));
        assert_eq!(base.gets.load(std::sync::atomic::Ordering::Relaxed), 0);
        let _ = txn.get(Space(0), b"c");
        assert_eq!(base.gets.load(std::sync::atomic::Ordering::Relaxed), 1);
    }

    #[test]
    fn an_error_of_the_base_is_not_hidden_by_changes() {
        let base = Counting { gets: 0.into() };
        let mut txn = Txn::new(&base);
        txn.put(Space(0), &b"a"[..], &b"1"[..]);
        assert!(txn.range(Space(0), (Bound::Unbounded, Bound::Unbounded)).any(|item| item.is_err()));
    }
}
