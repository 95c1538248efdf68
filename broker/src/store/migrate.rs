//! The format of the store on disk: a number within it, and the numbered steps that lift older ones.
//!
//! A release reads exactly one format. Opening an older store takes the steps from its number on, one batch each with
//! the new number in it: a crash repeats at most the step that was under way. A newer store is refused and not
//! touched. What is not a change of format: new keyspaces, new protobuf fields, new metadata values.

use std::ops::Bound;

use bytes::Bytes;

use super::{
    codec::{KeyReader, KeyWriter},
    engine::{self, Durability, Engine, View},
    keyspace::Keyspace,
    txn::Txn,
};

/// The name of the number in `Metadata`; its value is a `u32`. Every release, older or newer, reads this one.
const FORMAT: &[u8] = b"format";

/// The format before any step.
const FIRST: u32 = 1;

/// The steps of this release: the first lifts format 1 to 2, the next 2 to 3. A step is never changed once released.
const STEPS: &[Step] = &[];

/// What lifts a store to the next format.
struct Step {
    /// For the log.
    name: &'static str,
    /// Rewrites what has changed. All of it goes in one batch, so it must fit into memory.
    rewrite: fn(&mut Txn<'_>) -> Result<(), engine::Error>,
}

/// Why a store cannot be brought to the format of this release.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The engine failed.
    #[error(transparent)]
    Engine(#[from] engine::Error),
    /// The store was written by a newer release.
    #[error("the store has format {found}, this release knows up to {known}: start a newer release of the broker")]
    TooNew {
        /// The store's format.
        found: u32,
        /// The newest format of this release.
        known: u32,
    },
    /// There is data without a number, or the number is none.
    #[error("the store has no readable format number: it is damaged, or not a store of the broker")]
    Unknown,
}

/// Brings a store to the format of this release; an empty one gets its number. On return that is on the disk.
///
/// # Errors
/// [`Error`]; the store is as it was or, after some of several steps, of a format in between.
pub fn run(engine: &dyn Engine) -> Result<(), Error> {
    lift(engine, STEPS)
}

/// The format of this release.
pub fn newest() -> u32 {
    newest_of(STEPS)
}

fn newest_of(steps: &[Step]) -> u32 {
    steps.iter().fold(FIRST, |format, _| format + 1)
}

fn lift(engine: &dyn Engine, steps: &[Step]) -> Result<(), Error> {
    let known = newest_of(steps);
    let view = engine.view()?;
    match read_format(&*view)? {
        None if is_empty(&*view)? => commit(engine, Txn::new(&*view), known),
        Some(found) if found > known => Err(Error::TooNew { found, known }),
        Some(found @ FIRST..) => take(engine, found, steps),
        Some(_) | None => Err(Error::Unknown),
    }
}

/// Takes the steps that a store of this format still lacks.
fn take(engine: &dyn Engine, found: u32, steps: &[Step]) -> Result<(), Error> {
    for (format, step) in (FIRST..).zip(steps).filter(|(format, _)| *format >= found) {
        tracing::info!(from = format, to = format + 1, step = step.name, "changing the format of the store");
        let view = engine.view()?;
        let mut txn = Txn::new(&*view);
        (step.rewrite)(&mut txn)?;
        commit(engine, txn, format + 1)?;
    }
    Ok(())
}

fn commit(engine: &dyn Engine, mut txn: Txn<'_>, format: u32) -> Result<(), Error> {
    txn.put(Keyspace::Metadata, Bytes::from_static(FORMAT), KeyWriter::new().u32(format).finish());
    Ok(engine.commit(txn.into_batch(), Durability::Synced)?)
}

fn read_format(view: &dyn View) -> Result<Option<u32>, Error> {
    let Some(value) = view.get(Keyspace::Metadata.space(), FORMAT)? else { return Ok(None) };
    let mut reader = KeyReader::new(&value);
    let format = reader.u32().map_err(|_| Error::Unknown)?;
    reader.end().map_err(|_| Error::Unknown)?;
    Ok(Some(format))
}

fn is_empty(view: &dyn View) -> Result<bool, engine::Error> {
    for (keyspace, _) in Keyspace::ALL {
        let first = view.range(keyspace.space(), (Bound::Unbounded, Bound::Unbounded)).next();
        if first.transpose()?.is_some() {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{
        dump,
        engine::{
            Change, Space,
            fjall::{Fjall, FjallOptions},
            memory::Memory,
        },
    };

    /// A step that notes the value of the one before it.
    macro_rules! note {
        ($name:literal) => {
            Step {
                name: $name,
                rewrite: |txn| {
                    let before = txn.get(Keyspace::Leases, b"notes")?.unwrap_or_default();
                    txn.put(Keyspace::Leases, "notes", [&before, $name.as_bytes()].concat());
                    Ok(())
                },
            }
        };
    }

    const THREE: [Step; 3] = [note!("a"), note!("b"), note!("c")];

    const FAILING: Step = Step {
        name: "failing",
        rewrite: |txn| {
            txn.put(Keyspace::Leases, "notes", "half");
            Err(engine::Error::Damaged { space: "leases".to_owned(), reason: "test".to_owned() })
        },
    };

    fn empty() -> Memory {
        Memory::new(&Keyspace::names())
    }

    fn put(engine: &dyn Engine, space: Space, key: &'static str, value: impl Into<Bytes>) {
        let change = Change { space, key: key.into(), value: Some(value.into()) };
        engine.commit(vec![change], Durability::Written).unwrap();
    }

    /// A store as the release with these steps leaves it, with some data.
    fn of_format(engine: Memory, steps: &[Step]) -> Memory {
        lift(&engine, steps).unwrap();
        put(&engine, Keyspace::Records.space(), "record", "data");
        engine
    }

    fn format(engine: &dyn Engine) -> Option<u32> {
        read_format(&*engine.view().unwrap()).unwrap()
    }

    fn notes(engine: &dyn Engine) -> Option<Bytes> {
        engine.view().unwrap().get(Keyspace::Leases.space(), b"notes").unwrap()
    }

    #[test]
    fn an_empty_store_gets_the_newest_number_and_no_step() {
        let engine = empty();
        lift(&engine, &THREE).unwrap();
        assert_eq!((format(&engine), notes(&engine)), (Some(4), None));
    }

    #[test]
    fn the_format_of_this_release_is_1() {
        let engine = empty();
        run(&engine).unwrap();
        assert_eq!(format(&engine), Some(1));
    }

    #[test]
    fn an_older_store_takes_the_steps_it_lacks_in_order() {
        for (before, expected) in [(0, "abc"), (1, "bc"), (2, "c")] {
            let engine = of_format(empty(), &THREE[..before]);
            lift(&engine, &THREE).unwrap();
            assert_eq!((format(&engine), notes(&engine).unwrap()), (Some(4), expected.into()));
        }
    }

    #[test]
    fn a_store_of_this_format_is_left_as_it_is() {
        let engine = of_format(empty(), &THREE);
        let dump = || dump::dump(&*engine.view().unwrap()).unwrap();
        let before = dump();
        lift(&engine, &THREE).unwrap();
        assert_eq!(dump(), before);
    }

    #[test]
    fn a_newer_store_is_refused_untouched_with_both_numbers() {
        let engine = of_format(empty(), &THREE);
        let dump = || dump::dump(&*engine.view().unwrap()).unwrap();
        let before = dump();
        let refused = lift(&engine, &THREE[..1]).unwrap_err();
        assert!(matches!(refused, Error::TooNew { found: 4, known: 2 }));
        assert!(refused.to_string().contains("format 4") && refused.to_string().contains("up to 2"), "{refused}");
        assert_eq!(dump(), before);
    }

    #[test]
    fn a_failed_step_changes_nothing_and_is_taken_again_at_the_next_start() {
        let engine = of_format(empty(), &[]);
        assert!(matches!(lift(&engine, &[note!("a"), FAILING]), Err(Error::Engine(_))));
        assert_eq!((format(&engine), notes(&engine).unwrap()), (Some(2), "a".into()));
        lift(&engine, &THREE).unwrap();
        assert_eq!((format(&engine), notes(&engine).unwrap()), (Some(4), "abc".into()));
    }

    #[test]
    fn data_without_a_readable_number_is_refused() {
        let engine = empty();
        put(&engine, Keyspace::Records.space(), "record", "data");
        assert!(matches!(run(&engine), Err(Error::Unknown)));
        for number in [&b""[..], b"\0\0\0", b"\0\0\0\0", b"\0\0\0\x01\0"] {
            put(&engine, Keyspace::Metadata.space(), "format", number);
            assert!(matches!(run(&engine), Err(Error::Unknown)), "{number:?}");
        }
    }

    #[test]
    fn the_number_is_found_after_reopening() {
        let folder = tempfile::tempdir().unwrap();
        let open = || Fjall::open(folder.path(), &Keyspace::names(), FjallOptions::default()).unwrap();
        lift(&open(), &THREE).unwrap();
        assert!(matches!(run(&open()), Err(Error::TooNew { found: 4, known: 1 })));
    }
}
