//! What both engines must do alike, and what only the one on disk does. (Kills and damaged files: `crash`.)

use std::{
    collections::{BTreeMap, VecDeque},
    ops::{Bound, RangeBounds},
};

use proptest::{collection::vec, prelude::*};

use super::{
    fjall::{Fjall, FjallOptions},
    memory::Memory,
    *,
};

const NAMES: [&str; 2] = ["left", "right"];
const LEFT: Space = Space(0);
const RIGHT: Space = Space(1);
const ALL: KeyBounds = (Bound::Unbounded, Bound::Unbounded);

/// Small memtables, so that tests come to flushes and compactions.
const SMALL: FjallOptions =
    FjallOptions { cache_bytes: 1 << 20, memtable_bytes: 64 << 10, journals_bytes_max: 64 << 20, worker_threads: 1 };

fn on_disk(folder: &tempfile::TempDir) -> Fjall {
    Fjall::open(&folder.path().join("store"), &NAMES, SMALL).unwrap()
}

/// Runs a test on both engines.
fn on_both(test: impl Fn(&dyn Engine)) {
    test(&Memory::new(&NAMES));
    let folder = tempfile::tempdir().unwrap();
    test(&on_disk(&folder));
}

fn put(space: Space, key: impl Into<Bytes>, value: impl Into<Bytes>) -> Change {
    Change { space, key: key.into(), value: Some(value.into()) }
}

fn remove(space: Space, key: impl Into<Bytes>) -> Change {
    Change { space, key: key.into(), value: None }
}

fn commit(engine: &dyn Engine, batch: Batch) {
    engine.commit(batch, Durability::Written).unwrap();
}

fn all(view: &dyn View, space: Space) -> Vec<(Bytes, Bytes)> {
    view.range(space, ALL).collect::<Result<_, _>>().unwrap()
}

fn number(view: &dyn View, space: Space) -> u64 {
    let value = view.get(space, b"number").unwrap().unwrap();
    u64::from_be_bytes(value[..].try_into().unwrap())
}

#[test]
fn a_view_does_not_change_with_later_commits() {
    on_both(|engine| {
        commit(engine, vec![put(LEFT, "a", "1"), put(LEFT, "b", "2"), put(RIGHT, "a", "3")]);
        let view = engine.view().unwrap();
        let before = (all(&*view, LEFT), all(&*view, RIGHT));
        commit(engine, vec![put(LEFT, "a", "4"), remove(LEFT, "b"), put(LEFT, "c", "5"), remove(RIGHT, "a")]);
        assert_eq!((all(&*view, LEFT), all(&*view, RIGHT)), before);
        assert_eq!(view.get(LEFT, b"b").unwrap().unwrap(), "2");
        assert_eq!(view.get(LEFT, b"c").unwrap(), None);

        let after = engine.view().unwrap();
        assert_eq!(all(&*after, LEFT), [("a".into(), "4".into()), ("c".into(), "5".into())]);
        assert_eq!(all(&*after, RIGHT), []);
    });
}

#[test]
fn an_open_range_does_not_change_with_later_commits() {
    on_both(|engine| {
        commit(engine, vec![put(LEFT, "a", "1"), put(LEFT, "c", "2")]);
        let view = engine.view().unwrap();
        let mut range = view.range(LEFT, ALL);
        assert_eq!(range.next().unwrap().unwrap().0, "a");
        commit(engine, vec![put(LEFT, "b", "3"), remove(LEFT, "c")]);
        assert_eq!(range.next().unwrap().unwrap().0, "c");
        assert!(range.next().is_none());
    });
}

#[test]
fn views_of_the_committing_thread_never_show_half_a_batch_while_tables_are_written() {
    on_both(|engine| {
        for number in 0..600_u64 {
            let value = number.to_be_bytes();
            let filler = (0..8_u8).map(|i| put(LEFT, vec![b'x', i, number as u8], vec![i; 256]));
            let numbers = [put(LEFT, "number", value.to_vec()), put(RIGHT, "number", value.to_vec())];
            commit(engine, filler.chain(numbers).collect());
            let view = engine.view().unwrap();
            assert_eq!((self::number(&*view, LEFT), self::number(&*view, RIGHT)), (number, number));
        }
    });
}

#[test]
fn a_view_may_be_read_by_other_threads_during_commits() {
    on_both(|engine| {
        commit(engine, (0..500_u32).map(|i| put(LEFT, i.to_be_bytes().to_vec(), "old")).collect());
        let view = engine.view().unwrap();
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| (0..50).all(|_| view.range(LEFT, ALL).all(|item| item.unwrap().1 == "old")));
            for i in 0..500_u32 {
                commit(engine, vec![put(LEFT, i.to_be_bytes().to_vec(), vec![b'n'; 300])]);
            }
            assert!(reader.join().unwrap());
        });
    });
}

#[test]
fn any_byte_round_trips_in_key_and_value() {
    on_both(|engine| {
        let every = (0..=u8::MAX).collect::<Vec<_>>();
        commit(
            engine,
            vec![
                put(LEFT, every.clone(), every.clone()),
                put(LEFT, "\0", ""),
                put(LEFT, "", "empty"),
                put(LEFT, vec![0xff], "\0"),
            ],
        );
        let view = engine.view().unwrap();
        assert_eq!(view.get(LEFT, &every).unwrap().unwrap(), every);
        assert_eq!(view.get(LEFT, b"\0").unwrap().unwrap(), "");
        assert_eq!(view.get(LEFT, b"\xff").unwrap().unwrap(), "\0");
        assert_eq!(view.get(LEFT, b"").unwrap().unwrap(), "empty");
        assert_eq!(all(&*view, LEFT).len(), 4);
    });
}

#[test]
fn what_does_not_fit_is_refused_and_nothing_of_its_batch_is_written() {
    on_both(|engine| {
        let long = vec![b'k'; KEY_BYTES_MAX + 1];
        for unfit in [put(LEFT, long.clone(), ""), remove(LEFT, long), put(Space(2), "a", "")] {
            let refused = engine.commit(vec![put(LEFT, "a", "1"), unfit], Durability::Written);
            assert!(matches!(refused, Err(Error::Unfit { .. })));
        }
        assert_eq!(all(&*engine.view().unwrap(), LEFT), []);
        commit(engine, vec![put(LEFT, vec![b'k'; KEY_BYTES_MAX], "longest")]);
        assert_eq!(all(&*engine.view().unwrap(), LEFT).len(), 1);
    });
}

#[test]
fn reads_of_an_unknown_space_are_errors() {
    on_both(|engine| {
        let view = engine.view().unwrap();
        assert!(matches!(view.get(Space(2), b"a"), Err(Error::Read { .. })));
        assert!(view.range(Space(2), ALL).all(|item| item.is_err()));
        assert_eq!(view.range(Space(2), ALL).count(), 1);
    });
}

#[test]
fn bounds_longer_than_any_key_find_the_same_keys() {
    on_both(|engine| {
        let longest = vec![b'k'; KEY_BYTES_MAX];
        commit(engine, vec![put(LEFT, "a", ""), put(LEFT, longest.clone(), ""), put(LEFT, "z", "")]);
        let view = engine.view().unwrap();
        let longer = Bytes::from(vec![b'k'; KEY_BYTES_MAX + 1]);
        assert_eq!(view.get(LEFT, &longer).unwrap(), None);
        let keys = |bounds| view.range(LEFT, bounds).map(|item| item.unwrap().0).collect::<Vec<_>>();
        for bound in [Bound::Included(longer.clone()), Bound::Excluded(longer)] {
            assert_eq!(keys((bound.clone(), Bound::Unbounded)), ["z"]);
            assert_eq!(keys((Bound::Unbounded, bound)), [Bytes::from_static(b"a"), longest.clone().into()]);
        }
    });
}

#[test]
fn empty_batches_and_syncs_are_fine() {
    on_both(|engine| {
        engine.commit(vec![], Durability::Written).unwrap();
        engine.commit(vec![], Durability::Synced).unwrap();
        engine.commit(vec![put(LEFT, "a", "1")], Durability::Synced).unwrap();
        engine.sync().unwrap();
        assert_eq!(all(&*engine.view().unwrap(), LEFT).len(), 1);
    });
}

#[test]
fn stats_rise_with_what_is_stored() {
    on_both(|engine| {
        commit(engine, vec![put(LEFT, "a", vec![7; 1000])]);
        assert!(engine.stats().bytes >= 1000);
    });
}

#[test]
fn the_bytes_of_the_memory_engine_are_those_of_its_keys_and_values() {
    let engine = Memory::new(&NAMES);
    commit(&engine, vec![put(LEFT, "key", "12345"), put(RIGHT, "key", "1")]);
    commit(&engine, vec![put(LEFT, "key", "12"), remove(RIGHT, "key"), remove(RIGHT, "none")]);
    assert_eq!(engine.stats().bytes, 5);
}

type Model = BTreeMap<Bytes, Option<Bytes>>;

fn key() -> impl Strategy<Value = Bytes> {
    vec(0..4_u8, 0..3).prop_map(Bytes::from)
}

fn bound() -> impl Strategy<Value = Bound<Bytes>> {
    prop_oneof![Just(Bound::Unbounded), key().prop_map(Bound::Included), key().prop_map(Bound::Excluded)]
}

/// A batch, with each key once; `None` removes.
fn changes() -> impl Strategy<Value = Model> {
    let value = proptest::option::of(vec(any::<u8>(), 1).prop_map(Bytes::from));
    proptest::collection::btree_map(key(), value, 0..12)
}

/// Forwards, and from both ends in turn: what one end took the other does not see.
fn assert_same_range(view: &dyn View, model: &Model, bounds: &KeyBounds, ends: &[bool]) {
    let live = model.iter().filter_map(|(key, value)| Some((key.clone(), value.clone()?)));
    let mut expected = live.filter(|(key, _)| bounds.contains(key)).collect::<VecDeque<_>>();
    let range = || view.range(LEFT, bounds.clone());
    assert_eq!(range().collect::<Result<VecDeque<_>, _>>().unwrap(), expected);
    let mut range = range();
    for front in ends {
        let item = if *front { range.next() } else { range.next_back() };
        assert_eq!(item.transpose().unwrap(), if *front { expected.pop_front() } else { expected.pop_back() });
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn ranges_are_those_of_a_plain_map_from_both_ends(
        batches in vec(changes(), 1..6),
        bounds in vec((bound(), bound()), 12),
        ends in vec(any::<bool>(), 12),
    ) {
        on_both(|engine| {
            let mut model = Model::new();
            for batch in &batches {
                let change = |(key, value): (Bytes, Option<Bytes>)| Change { space: LEFT, key, value };
                commit(engine, batch.clone().into_iter().map(change).collect());
                model.extend(batch.clone());
            }
            let view = engine.view().unwrap();
            bounds.iter().for_each(|bounds| assert_same_range(&*view, &model, bounds, &ends));
        });
    }
}

#[test]
fn what_was_committed_is_there_after_reopening() {
    let folder = tempfile::tempdir().unwrap();
    for round in 0..5_u32 {
        let engine = on_disk(&folder);
        let view = engine.view().unwrap();
        assert_eq!(all(&*view, LEFT).len(), round as usize * 300);
        let key = |i: u32| [round.to_be_bytes(), i.to_be_bytes()].concat();
        commit(&engine, (0..300).map(|i| put(LEFT, key(i), vec![7; 100])).collect());
        commit(&engine, vec![put(RIGHT, "number", u64::from(round).to_be_bytes().to_vec())]);
        assert_eq!(number(&*engine.view().unwrap(), RIGHT), u64::from(round));
    }
    assert_eq!(number(&*on_disk(&folder).view().unwrap(), RIGHT), 4);
}

#[test]
fn what_was_loaded_and_synced_is_there_after_reopening_and_commits_go_on() {
    let folder = tempfile::tempdir().unwrap();
    let key = |i: u32| i.to_be_bytes().to_vec();
    {
        let engine = on_disk(&folder);
        for part in 0..4 {
            engine.load((0..500).map(|i| put(LEFT, key(part * 500 + i), vec![7; 100])).collect()).unwrap();
        }
        engine.load(vec![put(LEFT, key(2000), "last"), put(RIGHT, "a", "1")]).unwrap();
        engine.load(vec![]).unwrap();
        engine.sync().unwrap();
    }
    for round in 0..2 {
        let engine = on_disk(&folder);
        let view = engine.view().unwrap();
        assert_eq!((all(&*view, LEFT).len(), all(&*view, RIGHT).len()), (2001 - round, 1 + round));
        commit(&engine, vec![remove(LEFT, key(round as u32)), put(RIGHT, vec![round as u8], "more")]);
        let view = engine.view().unwrap();
        assert_eq!(view.get(LEFT, &key(round as u32)).unwrap(), None);
        assert_eq!(view.get(LEFT, &key(2000)).unwrap().unwrap(), "last");
    }
}

#[test]
fn rows_that_are_not_in_order_are_not_loaded_on_disk() {
    let folder = tempfile::tempdir().unwrap();
    let engine = on_disk(&folder);
    for rows in [vec![put(LEFT, "b", "1"), put(LEFT, "a", "2")], vec![put(RIGHT, "a", "1"), put(LEFT, "b", "2")]] {
        assert!(matches!(engine.load(rows), Err(Error::Commit { .. })));
    }
    assert!(all(&*engine.view().unwrap(), LEFT).is_empty());
}

#[test]
fn an_added_name_is_a_new_empty_keyspace() {
    let folder = tempfile::tempdir().unwrap();
    commit(&on_disk(&folder), vec![put(LEFT, "a", "1")]);
    let engine = Fjall::open(&folder.path().join("store"), &["left", "right", "new"], SMALL).unwrap();
    commit(&engine, vec![put(Space(2), "b", "2")]);
    let view = engine.view().unwrap();
    assert_eq!((all(&*view, LEFT).len(), all(&*view, RIGHT).len(), all(&*view, Space(2)).len()), (1, 0, 1));
}

#[test]
fn a_folder_is_locked_until_engine_and_views_are_gone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store");
    let engine = on_disk(&folder);
    let view = engine.view().unwrap();
    let again = || Fjall::open(&path, &NAMES, SMALL);
    assert!(matches!(again(), Err(Error::Locked { path: named }) if named == path.display().to_string()));
    drop(engine);
    assert!(matches!(again(), Err(Error::Locked { .. })));
    drop(view);
    assert!(again().is_ok());
}

#[test]
fn a_path_that_cannot_be_a_folder_is_named_in_the_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    std::fs::write(&path, "in the way").unwrap();
    let refused = Fjall::open(&path, &NAMES, SMALL).err().unwrap();
    assert!(matches!(&refused, Error::Open { path: named, .. } if *named == path.display().to_string()), "{refused}");
}

#[cfg(unix)]
#[test]
fn folder_and_files_are_closed_to_others() {
    use std::os::unix::fs::PermissionsExt;

    fn open_to_others(path: &std::path::Path) -> Vec<std::path::PathBuf> {
        let metadata = std::fs::metadata(path).unwrap();
        let own = (metadata.permissions().mode() & 0o077 != 0).then(|| path.to_owned());
        let entries = if metadata.is_dir() { std::fs::read_dir(path).unwrap().collect() } else { Vec::new() };
        own.into_iter().chain(entries.into_iter().flat_map(|entry| open_to_others(&entry.unwrap().path()))).collect()
    }

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a/store");
    let open = || Fjall::open(&path, &NAMES, SMALL).unwrap();
    drop(open());
    assert_eq!(open_to_others(&folder.path().join("a")), [] as [std::path::PathBuf; 0]);

    // As a careless copy leaves it.
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::set_permissions(path.join("0.jnl"), std::fs::Permissions::from_mode(0o644)).unwrap();
    drop(open());
    assert_eq!(open_to_others(&path), [] as [std::path::PathBuf; 0]);
}
