//! All that a store holds, in one order: to compare stores, in tests and between nodes.
//!
//! Stores at the same position have equal dumps and so equal hashes, on either engine. Not a format to read back: a
//! dump shows keys and values as bytes, secrets included, so it is never logged; a hash may be.

use std::{fmt, ops::Bound};

use bytes::Bytes;
use ring::digest;

use super::{
    engine::{Error, View},
    keyspace::Keyspace,
};

/// One key with its value. Shown as `keyspace key = value`, bytes escaped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Where.
    pub keyspace: Keyspace,
    /// Its key.
    pub key: Bytes,
    /// Its value.
    pub value: Bytes,
}

/// All rows by keyspace, then key. Reads as it goes: what is larger than memory can be walked.
pub fn rows(view: &dyn View) -> impl Iterator<Item = Result<Row, Error>> + '_ {
    Keyspace::ALL.into_iter().flat_map(move |(keyspace, _)| {
        let items = view.range(keyspace.space(), (Bound::Unbounded, Bound::Unbounded));
        items.map(move |item| item.map(|(key, value)| Row { keyspace, key, value }))
    })
}

/// All rows at once.
///
/// # Errors
/// Those of the view.
pub fn dump(view: &dyn View) -> Result<Vec<Row>, Error> {
    rows(view).collect()
}

/// A SHA-256 over all rows, in hexadecimal digits. Equal for equal dumps, on every release.
///
/// # Errors
/// Those of the view.
pub fn hash(view: &dyn View) -> Result<String, Error> {
    let mut digest = Digest::default();
    for row in rows(view) {
        let Row { keyspace, key, value } = row?;
        digest.add(keyspace, &key, &value);
    }
    Ok(digest.finish().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// A SHA-256 over rows, in the order of [`rows`].
pub(super) struct Digest(digest::Context);

impl Default for Digest {
    fn default() -> Self {
        Self(digest::Context::new(&digest::SHA256))
    }
}

impl Digest {
    /// With lengths, so that no two different rows give the same bytes.
    pub(super) fn add(&mut self, keyspace: Keyspace, key: &[u8], value: &[u8]) {
        self.0.update(&[keyspace.space().0]);
        for part in [key, value] {
            self.0.update(&(part.len() as u64).to_be_bytes());
            self.0.update(part);
        }
    }

    pub(super) fn finish(self) -> Vec<u8> {
        self.0.finish().as_ref().to_vec()
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {} = {}", self.keyspace, self.key.escape_ascii(), self.value.escape_ascii())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{
        engine::{
            Change, Durability, Engine, Space,
            fjall::{Fjall, FjallOptions},
            memory::Memory,
        },
        keyspace::Keyspace::{Leases, Metadata, Records},
    };

    fn put(engine: &dyn Engine, rows: &[(Keyspace, &'static str, &'static str)]) {
        let change = |(keyspace, key, value): &(Keyspace, &'static str, &'static str)| Change {
            space: keyspace.space(),
            key: Bytes::from_static(key.as_bytes()),
            value: Some(Bytes::from_static(value.as_bytes())),
        };
        engine.commit(rows.iter().map(change).collect(), Durability::Written).unwrap();
    }

    fn in_memory(rows: &[(Keyspace, &'static str, &'static str)]) -> Memory {
        let engine = Memory::new(&Keyspace::names());
        put(&engine, rows);
        engine
    }

    fn hash_of(rows: &[(Keyspace, &'static str, &'static str)]) -> String {
        hash(&*in_memory(rows).view().unwrap()).unwrap()
    }

    #[test]
    fn rows_come_by_keyspace_then_key() {
        let engine = in_memory(&[(Metadata, "a", "1"), (Records, "b\0", "\n2"), (Records, "a", "3")]);
        let rows = dump(&*engine.view().unwrap()).unwrap();
        let shown = rows.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(shown, ["Records a = 3", r"Records b\x00 = \n2", "Metadata a = 1"]);
    }

    #[test]
    fn the_hash_is_the_same_on_every_release() {
        assert_eq!(hash_of(&[]), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
        let hash = "0908dd97dd73b1fcb6ab374a2cde6076b3b12021c8dc657ab26e250fe0df3d90";
        assert_eq!(hash_of(&[(Records, "a", "1"), (Leases, "b", "2")]), hash);
    }

    #[test]
    fn the_hash_tells_where_keys_and_values_begin() {
        let hashes = [
            hash_of(&[(Records, "ab", "c")]),
            hash_of(&[(Records, "a", "bc")]),
            hash_of(&[(Leases, "ab", "c")]),
            hash_of(&[(Records, "a", "b"), (Records, "c", "")]),
            hash_of(&[(Records, "ab", "")]),
        ];
        assert!((1..hashes.len()).all(|index| !hashes[..index].contains(&hashes[index])));
    }

    #[test]
    fn engines_with_the_same_contents_have_the_same_dump_and_hash() {
        let folder = tempfile::tempdir().unwrap();
        let on_disk = Fjall::open(folder.path(), &Keyspace::names(), FjallOptions::default()).unwrap();
        let rows = [(Records, "b", "1"), (Records, "a", "2"), (Metadata, "c", "")];
        rows.iter().for_each(|row| put(&on_disk, &[*row]));
        let in_memory = in_memory(&rows);
        let (a, b) = (on_disk.view().unwrap(), in_memory.view().unwrap());
        assert_eq!(dump(&*a).unwrap(), dump(&*b).unwrap());
        assert_eq!(hash(&*a).unwrap(), hash(&*b).unwrap());
    }

    #[test]
    fn an_unreadable_keyspace_is_an_error() {
        let engine = Memory::new(&["records"]);
        assert!(dump(&*engine.view().unwrap()).is_err());
        assert!(hash(&*engine.view().unwrap()).is_err());
        assert!(engine.view().unwrap().get(Space(0), b"a").is_ok());
    }
}
