//! A look at the journals before fjall opens them, for the damage it passes over in silence.
//!
//! fjall reads each journal up to its first broken entry and goes on with the next file, and it takes a batch's
//! sequence number, which is under no checksum, as it is. Each batch of ours begins with its number (see `fjall`), so
//! this can check:
//! - Numbers go up by one, from file to file, too, and only the newest file may be empty: else batches are missing in
//!   the middle.
//! - Sequence numbers rise: else fjall would drop a batch, or keep it hidden behind an older one.
//!
//! Not checked: keys and values (fjall does, by checksum), and what follows the last whole batch, where after a crash
//! a torn one is no damage. Reads all lengths but passes over what they measure.
//!
//! ```text
//!   start = 01, u32 entries, u64 sequence number
//!   entry = 02, u8 kind, u8 compression, u64 keyspace, u16 key, u32 value, u32 value on disk (lengths), key, value
//!         | 04, u64 keyspace
//!   end   = 03, u64 checksum, "FJL" 03         all numbers little-endian; a batch is: start, entries, end
//! ```

use std::{
    fs::{self, File},
    io::{self, BufReader, ErrorKind, Read},
    path::{Path, PathBuf},
};

/// The key of the number of a batch. It is the first entry; the value is a big-endian `u64`.
pub(super) const NUMBER: [u8; 1] = [0xff];

/// The bytes after a batch's checksum.
const END_MARK: [u8; 4] = *b"FJL\x03";

/// A whole batch in a journal.
#[derive(Clone, Copy)]
struct Batch {
    sequence: u64,
    number: u64,
}

/// Checks the journals in a folder and returns the number of the last batch in them, if there is one.
///
/// # Errors
/// What is wrong with which file, for people.
pub(super) fn check(folder: &Path) -> Result<Option<u64>, String> {
    let journals = journals_in(folder).map_err(|error| format!("cannot list the journals: {error}"))?;
    let newest = journals.len().saturating_sub(1);
    let mut last = None;
    for (index, (_, path)) in journals.iter().enumerate() {
        let batches = follow(path, &mut last).and_then(|batches| match batches {
            0 if index < newest => Err("it holds no batch, though a newer journal follows".to_owned()),
            batches => Ok(batches),
        });
        batches.map_err(|reason| format!("{} is damaged: {reason}", path.display()))?;
    }
    Ok(last.map(|batch| batch.number))
}

/// Whether no batch was ever written to the journals in a folder.
pub(super) fn are_blank(folder: &Path) -> io::Result<bool> {
    for (_, path) in journals_in(folder)? {
        if Journal::open(&path)?.batch()?.is_some() {
            return Ok(false);
        }
    }
    Ok(true)
}

/// By number, oldest first.
fn journals_in(folder: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let mut journals = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let number = path.file_stem().and_then(|stem| stem.to_str()?.parse().ok());
        if let (Some(number), true) = (number, path.extension().is_some_and(|extension| extension == "jnl")) {
            journals.push((number, path));
        }
    }
    journals.sort();
    Ok(journals)
}

/// Goes from batch to batch and returns how many there are. `last` is the newest one so far.
fn follow(path: &Path, last: &mut Option<Batch>) -> Result<u64, String> {
    let mut batches = 0;
    let mut journal = Journal::open(path).map_err(|error| error.to_string())?;
    while let Some(next) = journal.batch().map_err(|error| error.to_string())? {
        let follows = |last: Batch| next.number == last.number + 1 && next.sequence > last.sequence;
        if let Some(last) = last.filter(|last| !follows(*last)) {
            let (Batch { number, sequence }, at) = (next, journal.at);
            return Err(format!(
                "batch {number} (sequence number {sequence}), which ends at byte {at}, comes after batch {} ({})",
                last.number, last.sequence
            ));
        }
        *last = Some(next);
        batches += 1;
    }
    Ok(batches)
}

struct Journal {
    file: BufReader<File>,
    at: u64,
}

impl Journal {
    fn open(path: &Path) -> io::Result<Self> {
        Ok(Self { file: BufReader::new(File::open(path)?), at: 0 })
    }

    /// Passes over the next whole batch, or returns nothing where there is none.
    fn batch(&mut self) -> io::Result<Option<Batch>> {
        match self.whole_batch() {
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok(None),
            result => result,
        }
    }

    fn whole_batch(&mut self) -> io::Result<Option<Batch>> {
        if self.array()? != [1] {
            return Ok(None);
        }
        let entries = u32::from_le_bytes(self.array()?);
        let sequence = u64::from_le_bytes(self.array()?);
        let Some(number) = self.number()? else { return Ok(None) };
        for _ in 1..entries {
            match self.array()? {
                [2] => self.pass_entry()?,
                [4] => self.pass(8)?,
                _ => return Ok(None),
            }
        }
        let whole = self.array()? == [3] && self.array::<8>().is_ok() && self.array()? == END_MARK;
        Ok(whole.then_some(Batch { sequence, number }))
    }

    /// The value of the first entry, if it is a batch's number.
    fn number(&mut self) -> io::Result<Option<u64>> {
        if self.array()? != [2] || self.lengths()? != (NUMBER.len() as u16, 8) || self.array()? != NUMBER {
            return Ok(None);
        }
        Ok(Some(u64::from_be_bytes(self.array()?)))
    }

    fn pass_entry(&mut self) -> io::Result<()> {
        let (key, value) = self.lengths()?;
        self.pass(i64::from(key) + i64::from(value))
    }

    /// The lengths of key and value of an entry, which begin after what is returned.
    fn lengths(&mut self) -> io::Result<(u16, u32)> {
        self.pass(10)?;
        let key = u16::from_le_bytes(self.array()?);
        self.pass(4)?;
        Ok((key, u32::from_le_bytes(self.array()?)))
    }

    fn array<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.file.read_exact(&mut bytes)?;
        self.at += N as u64;
        Ok(bytes)
    }

    fn pass(&mut self, bytes: i64) -> io::Result<()> {
        self.at += bytes.unsigned_abs();
        self.file.seek_relative(bytes)
    }
}
