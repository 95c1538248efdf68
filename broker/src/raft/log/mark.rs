//! The high-water mark: a small file that knows how far the log had got, in case the log itself forgets.
//!
//! An engine may cut a damaged journal at open and report nothing: the log would come back short, and a node with a
//! short log or a forgotten vote breaks what it promised. So every batch of the log carries a sequence number, and the
//! number of the last one is also written here, after the batch and before anyone hears of it. A log that opens with a
//! lower number has lost something, be it an entry, a vote, or a truncation.
//!
//! Two slots are written in turn, each with a checksum, so that a torn write spoils only the newer one.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read as _},
    os::unix::fs::FileExt as _,
    path::Path,
};

/// Where the log stood: the number of its last batch and the index of its last entry. The index only serves to say
/// what is missing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Position {
    pub(super) sequence: u64,
    pub(super) last_index: u64,
}

const MAGIC: [u8; 4] = *b"DBHW";
const SLOT_BYTES: usize = 24;
/// The slots lie in sectors of their own.
const SLOT_DISTANCE: u64 = 512;

pub(super) struct Mark {
    file: File,
}

impl Mark {
    /// Opens the file, or makes it, and returns what it holds: `None` in a new one.
    ///
    /// # Errors
    /// The file cannot be read, or neither slot is intact.
    pub(super) fn open(path: &Path) -> io::Result<(Self, Option<Position>)> {
        let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        let mut bytes = Vec::new();
        file.by_ref().take(2 * SLOT_DISTANCE).read_to_end(&mut bytes)?;
        let newest = [0, SLOT_DISTANCE as usize].into_iter().filter_map(|at| decode(bytes.get(at..)?)).max();
        if newest.is_none() && !bytes.is_empty() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "neither of its two slots is intact"));
        }
        Ok((Self { file }, newest))
    }

    /// Writes a position; it survives the process, and a power loss after the next [`Mark::sync`].
    pub(super) fn write(&self, position: Position) -> io::Result<()> {
        self.file.write_all_at(&encode(position), position.sequence % 2 * SLOT_DISTANCE)
    }

    /// Another handle on the file, to sync it elsewhere.
    pub(super) fn file(&self) -> io::Result<File> {
        self.file.try_clone()
    }
}

fn encode(position: Position) -> [u8; SLOT_BYTES] {
    let mut slot = [0; SLOT_BYTES];
    slot[..4].copy_from_slice(&MAGIC);
    slot[4..12].copy_from_slice(&position.sequence.to_be_bytes());
    slot[12..20].copy_from_slice(&position.last_index.to_be_bytes());
    let checksum = crc32fast::hash(&slot[..20]);
    slot[20..].copy_from_slice(&checksum.to_be_bytes());
    slot
}

fn decode(bytes: &[u8]) -> Option<Position> {
    let slot: &[u8; SLOT_BYTES] = bytes.first_chunk()?;
    let number = |at: usize| slot[at..].first_chunk().map(|bytes| u64::from_be_bytes(*bytes));
    let position = Position { sequence: number(4)?, last_index: number(12)? };
    (encode(position) == *slot).then_some(position)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(sequence: u64) -> Position {
        Position { sequence, last_index: sequence + 100 }
    }

    #[test]
    fn the_newest_position_comes_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mark");
        assert_eq!(Mark::open(&path).unwrap().1, None);
        for sequence in 1..=5 {
            let (mark, before) = Mark::open(&path).unwrap();
            assert_eq!(before, (sequence > 1).then(|| at(sequence - 1)));
            mark.write(at(sequence)).unwrap();
        }
    }

    #[test]
    fn a_torn_write_leaves_the_position_before_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mark");
        let (mark, _) = Mark::open(&path).unwrap();
        mark.write(at(1)).unwrap();
        mark.write(at(2)).unwrap();
        mark.file.write_all_at(b"torn", 6).unwrap();
        assert_eq!(Mark::open(&path).unwrap().1, Some(at(1)));
        mark.file.write_all_at(b"torn", SLOT_DISTANCE + 6).unwrap();
        assert!(Mark::open(&path).is_err());
    }
}
