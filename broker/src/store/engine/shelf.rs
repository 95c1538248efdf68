//! Where stores stand side by side: the one in use, and one that is being received.
//!
//! ```text
//!   <data>/store           the first one
//!   <data>/store.<n>       one that came from another node
//!   <data>/store-current   the name of the one in use; without this file it is `store`
//! ```
//!
//! Replacing the file is the one step in which a store that has arrived takes the place of the old one. What the file
//! does not name is removed: at open, or as soon as its last reader is gone.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use parking_lot::Mutex;

use super::{
    Engine, Error,
    fjall::{Fjall, FjallOptions, is_idle},
    memory::Memory,
};

/// Makes room for a store beside the one in use.
pub trait Shelf: Send + Sync + 'static {
    /// A new, empty engine. Only one may be under way at a time: the one before, unless it was adopted, is forgotten.
    ///
    /// # Errors
    /// It cannot be made.
    fn begin(&self) -> Result<Arc<dyn Engine>, Error>;

    /// Makes the last engine that was begun, which is synced, the one that the next start opens; on return that is on
    /// the disk.
    ///
    /// # Errors
    /// Final: it is not known which of the two the next start opens.
    fn adopt(&self) -> Result<(), Error>;

    /// Gives up the last engine that was begun, unless it was adopted. It can be removed from then on.
    fn abandon(&self) {}

    /// Removes what is neither in use nor being received, as far as nobody reads it any longer.
    fn tidy(&self);
}

/// Engines in memory.
#[derive(Debug)]
pub struct MemoryShelf {
    names: Vec<&'static str>,
}

impl MemoryShelf {
    /// Its engines have a space per name.
    pub fn new(names: &[&'static str]) -> Self {
        Self { names: names.to_vec() }
    }
}

impl Shelf for MemoryShelf {
    fn begin(&self) -> Result<Arc<dyn Engine>, Error> {
        Ok(Arc::new(Memory::new(&self.names)))
    }

    fn adopt(&self) -> Result<(), Error> {
        Ok(())
    }

    fn tidy(&self) {}
}

const FIRST: &str = "store";
const POINTER: &str = "store-current";

/// Engines in folders beside each other.
pub struct FolderShelf {
    folder: PathBuf,
    names: Vec<&'static str>,
    options: FjallOptions,
    state: Mutex<State>,
}

struct State {
    current: String,
    begun: Option<String>,
    next: u64,
}

impl FolderShelf {
    /// Opens the shelf in a folder; what is not in use is removed.
    ///
    /// # Errors
    /// The folder cannot be read, or the file that names the store in use makes no sense.
    pub fn open(folder: &Path, names: &[&'static str], options: FjallOptions) -> Result<Self, Error> {
        let current = read_pointer(folder)?;
        let found = numbers(folder).map_err(|error| refused(folder, error))?;
        let state = State { current, begun: None, next: found.into_iter().max().map_or(1, |newest| newest + 1) };
        let shelf = Self { folder: folder.into(), names: names.to_vec(), options, state: Mutex::new(state) };
        shelf.tidy();
        Ok(shelf)
    }

    /// The engine in use. Without a name in the file, and so without a store, a new one.
    ///
    /// # Errors
    /// Those of [`Fjall::open`]; and the store that the file names is gone.
    pub fn current(&self) -> Result<Arc<dyn Engine>, Error> {
        let current = self.state.lock().current.clone();
        let path = self.folder.join(&current);
        if current != FIRST && !path.is_dir() {
            return Err(refused(&path, "it is gone, though it should be in use"));
        }
        Ok(Arc::new(Fjall::open(&path, &self.names, self.options)?))
    }
}

impl Shelf for FolderShelf {
    fn begin(&self) -> Result<Arc<dyn Engine>, Error> {
        let name = {
            let mut state = self.state.lock();
            let name = format!("{FIRST}.{}", state.next);
            state.next += 1;
            state.begun = Some(name.clone());
            name
        };
        self.tidy();
        Ok(Arc::new(Fjall::open(&self.folder.join(name), &self.names, self.options)?))
    }

    fn adopt(&self) -> Result<(), Error> {
        let mut state = self.state.lock();
        let Some(name) = state.begun.take() else { return Ok(()) };
        write_pointer(&self.folder, &name).map_err(|error| refused(&self.folder.join(POINTER), error))?;
        state.current = name;
        Ok(())
    }

    fn abandon(&self) {
        self.state.lock().begun = None;
    }

    fn tidy(&self) {
        let (current, begun) = {
            let state = self.state.lock();
            (state.current.clone(), state.begun.clone())
        };
        let numbered = numbers(&self.folder).unwrap_or_default().into_iter().map(|number| format!("{FIRST}.{number}"));
        for name in std::iter::once(FIRST.to_owned()).chain(numbered) {
            let path = self.folder.join(&name);
            if name != current && Some(&name) != begun.as_ref() && is_idle(&path) {
                // It is tried again at the next occasion; all it costs is room.
                drop(fs::remove_dir_all(path));
            }
        }
    }
}

fn refused(path: &Path, reason: impl ToString) -> Error {
    Error::Open { path: path.display().to_string(), reason: reason.to_string() }
}

/// The numbers of the folders beside the first.
fn numbers(folder: &Path) -> io::Result<Vec<u64>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let name = entry?.file_name();
        found.extend(name.to_str().and_then(number_of));
    }
    Ok(found)
}

/// Only in the form in which it is written.
fn number_of(name: &str) -> Option<u64> {
    let number = name.strip_prefix(FIRST)?.strip_prefix('.')?;
    number.parse().ok().filter(|parsed: &u64| parsed.to_string() == number)
}

fn read_pointer(folder: &Path) -> Result<String, Error> {
    let path = folder.join(POINTER);
    match fs::read_to_string(&path) {
        Ok(name) if name == FIRST || number_of(&name).is_some() => Ok(name),
        Ok(_) => Err(refused(&path, "it does not name a store")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(FIRST.to_owned()),
        Err(error) => Err(refused(&path, error)),
    }
}

/// By way of another name, so that a crash leaves the old name or the new one. Syncing the folder also keeps the entry of
/// the store itself.
fn write_pointer(folder: &Path, name: &str) -> io::Result<()> {
    let draft = folder.join(format!("{POINTER}.new"));
    let mut file = File::create(&draft)?;
    file.write_all(name.as_bytes())?;
    file.sync_all()?;
    fs::rename(draft, folder.join(POINTER))?;
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::store::engine::{Change, Durability, Space};

    const NAMES: [&str; 1] = ["a"];

    fn shelf(folder: &Path) -> FolderShelf {
        FolderShelf::open(folder, &NAMES, FjallOptions::default()).unwrap()
    }

    fn put(engine: &dyn Engine, value: &'static str) {
        let change = Change { space: Space(0), key: Bytes::from_static(b"k"), value: Some(value.into()) };
        engine.commit(vec![change], Durability::Synced).unwrap();
    }

    fn value(engine: &dyn Engine) -> Option<Bytes> {
        engine.view().unwrap().get(Space(0), b"k").unwrap()
    }

    fn stores(folder: &Path) -> Vec<String> {
        let names = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
        let mut names: Vec<_> = names.filter(|entry| entry.path().is_dir()).map(|entry| entry.file_name()).collect();
        names.sort();
        names.into_iter().map(|name| name.into_string().unwrap()).collect()
    }

    #[test]
    fn what_was_adopted_is_in_use_after_a_restart_and_the_old_one_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        let first = shelf(folder.path());
        let old = first.current().unwrap();
        put(&*old, "old");
        let new = first.begin().unwrap();
        put(&*new, "new");
        first.adopt().unwrap();
        let view = old.view().unwrap();
        drop(old);
        first.tidy();
        assert_eq!(view.get(Space(0), b"k").unwrap(), Some("old".into()), "a reader of the old store lost it");
        drop(view);
        first.tidy();
        assert_eq!(stores(folder.path()), ["store.1"]);
        drop(new);
        assert_eq!(value(&*shelf(folder.path()).current().unwrap()), Some("new".into()));
    }

    #[test]
    fn what_was_not_adopted_is_removed_at_the_next_start_and_at_the_next_beginning() {
        let folder = tempfile::tempdir().unwrap();
        let first = shelf(folder.path());
        put(&*first.current().unwrap(), "old");
        put(&*first.begin().unwrap(), "broken off");
        put(&*first.begin().unwrap(), "broken off, too");
        assert_eq!(stores(folder.path()), ["store", "store.2"]);
        let second = shelf(folder.path());
        assert_eq!(stores(folder.path()), ["store"]);
        assert_eq!(value(&*second.current().unwrap()), Some("old".into()));
    }

    #[test]
    fn what_was_given_up_is_removed_and_what_was_adopted_stays() {
        let folder = tempfile::tempdir().unwrap();
        let first = shelf(folder.path());
        put(&*first.current().unwrap(), "old");
        put(&*first.begin().unwrap(), "broken off");
        first.abandon();
        first.tidy();
        assert_eq!(stores(folder.path()), ["store"]);
        put(&*first.begin().unwrap(), "new");
        first.adopt().unwrap();
        first.abandon();
        first.tidy();
        assert_eq!(stores(folder.path()), ["store.2"]);
    }

    #[test]
    fn a_lost_store_is_not_replaced_by_an_empty_one() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(POINTER), "store.3").unwrap();
        assert!(matches!(shelf(folder.path()).current(), Err(Error::Open { .. })));
        for odd in ["", "../elsewhere", "store.03", "store.x"] {
            fs::write(folder.path().join(POINTER), odd).unwrap();
            assert!(FolderShelf::open(folder.path(), &NAMES, FjallOptions::default()).is_err(), "{odd}");
        }
    }
}
