//! A whole store on its way to another node: read in chunks from one snapshot, written into an empty engine.
//!
//! ```text
//!   Snapshot ─▶ Outgoing ─▶ rows, rows, … end ─▶ Incoming ─▶ new engine, synced ─▶ Arrived ─▶ Store::adopt
//! ```
//!
//! Both ends hold a chunk at a time. A chunk has a checksum, and the end a hash over all rows, the one of [`super::dump`]:
//! what arrives is what was sent, or it is refused. Not here: who sends to whom, and when.

use std::{ops::Bound, sync::Arc};

use bytes::Bytes;
use databroker_proto::internal::{SnapshotEnd, SnapshotRow, SnapshotRows};

use super::{
    Position, Snapshot,
    command::TooNew,
    dump::Digest,
    engine::{self, Batch, Change, Engine},
    keyspace::Keyspace,
    machine::{Contents, Error as StoreError},
    migrate,
};

/// Bytes of keys and values in one chunk; a row that is larger comes alone. Large enough that messages cost little, small
/// enough that a few of them in memory are nothing.
pub const CHUNK_BYTES: usize = 256 << 10;

/// What is loaded into the receiving engine at once, in bytes. Each part becomes a table that is synced on its own, so
/// that parts should be large; and is held in memory, so that they should not.
const PART_BYTES: usize = 16 << 20;

/// Why what arrives is not taken. The store in use is untouched.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The sender's store has a format that this release does not know.
    #[error("the sender's store has format {found}, this release knows up to {known}: upgrade this node first")]
    TooNew {
        /// The sender's format.
        found: u32,
        /// The newest format of this release.
        known: u32,
    },
    /// What arrived is not what was sent.
    #[error("the transfer of a store is damaged: {0}")]
    Damaged(String),
    /// The new engine failed, or what it holds makes no sense.
    #[error("cannot take over the store that arrived: {0}")]
    Store(#[source] StoreError),
}

impl From<engine::Error> for Error {
    fn from(error: engine::Error) -> Self {
        Self::Store(error.into())
    }
}

/// The format this release sends.
pub fn format() -> u32 {
    migrate::newest()
}

/// CRC-32 over keyspace, keys and values, with lengths.
fn crc32(keyspace: u32, rows: &[SnapshotRow]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&keyspace.to_be_bytes());
    for part in rows.iter().flat_map(|row| [&row.key, &row.value]) {
        hasher.update(&(part.len() as u64).to_be_bytes());
        hasher.update(part);
    }
    hasher.finalize()
}

/// A snapshot that is read from beginning to end.
pub struct Outgoing {
    snapshot: Arc<Snapshot>,
    /// Which keyspace is being read, by its place in [`Keyspace::ALL`].
    keyspace: usize,
    /// The last key of it that was read.
    last: Option<Bytes>,
    rows: u64,
    digest: Digest,
}

impl Outgoing {
    /// Begins with the first row.
    pub fn new(snapshot: Arc<Snapshot>) -> Self {
        Self { snapshot, keyspace: 0, last: None, rows: 0, digest: Digest::default() }
    }

    /// The next rows; `None` after the last.
    ///
    /// # Errors
    /// Those of the engine.
    pub fn next_rows(&mut self) -> Result<Option<SnapshotRows>, engine::Error> {
        while let Some((keyspace, _)) = Keyspace::ALL.get(self.keyspace) {
            let rows = self.read(*keyspace)?;
            if rows.is_empty() {
                (self.keyspace, self.last) = (self.keyspace + 1, None);
                continue;
            }
            self.rows += rows.len() as u64;
            self.last = rows.last().map(|row| row.key.clone());
            rows.iter().for_each(|row| self.digest.add(*keyspace, &row.key, &row.value));
            let number = u32::from(keyspace.space().0);
            let crc32 = crc32(number, &rows);
            return Ok(Some(SnapshotRows { keyspace: number, rows, crc32 }));
        }
        Ok(None)
    }

    fn read(&self, keyspace: Keyspace) -> Result<Vec<SnapshotRow>, engine::Error> {
        let start = self.last.clone().map_or(Bound::Unbounded, Bound::Excluded);
        let (mut rows, mut bytes) = (Vec::new(), 0);
        for item in self.snapshot.view().range(keyspace.space(), (start, Bound::Unbounded)) {
            let (key, value) = item?;
            bytes += key.len() + value.len();
            if bytes > CHUNK_BYTES && !rows.is_empty() {
                break;
            }
            rows.push(SnapshotRow { key, value });
        }
        Ok(rows)
    }

    /// What follows the last row.
    pub fn end(self) -> SnapshotEnd {
        SnapshotEnd { rows: self.rows, sha256: self.digest.finish().into() }
    }
}

/// A store that is being written into an empty engine.
pub struct Incoming {
    engine: Arc<dyn Engine>,
    last: Option<(Keyspace, Bytes)>,
    rows: u64,
    digest: Digest,
    part: Batch,
    part_bytes: usize,
}

impl Incoming {
    /// Begins, with an engine that holds nothing and nobody else writes to.
    ///
    /// # Errors
    /// [`Error::TooNew`].
    pub fn new(engine: Arc<dyn Engine>, sender_format: u32) -> Result<Self, Error> {
        let known = migrate::newest();
        if sender_format > known {
            return Err(Error::TooNew { found: sender_format, known });
        }
        Ok(Self { engine, last: None, rows: 0, digest: Digest::default(), part: Vec::new(), part_bytes: 0 })
    }

    /// Takes the next rows.
    ///
    /// # Errors
    /// They are damaged, or not the next ones, or cannot be written.
    pub fn take(&mut self, chunk: SnapshotRows) -> Result<(), Error> {
        let SnapshotRows { keyspace, rows, crc32: expected } = chunk;
        if crc32(keyspace, &rows) != expected {
            return Err(Error::Damaged(format!("rows after the first {} have the wrong checksum", self.rows)));
        }
        let known = usize::try_from(keyspace).ok().and_then(|number| Keyspace::ALL.get(number));
        let Some((keyspace, _)) = known else {
            return Err(Error::Damaged(format!("there is no keyspace number {keyspace}")));
        };
        rows.into_iter().try_for_each(|row| self.add(*keyspace, row))
    }

    fn add(&mut self, keyspace: Keyspace, SnapshotRow { key, value }: SnapshotRow) -> Result<(), Error> {
        let follows = self.last.as_ref().is_none_or(|last| (last.0, &last.1) < (keyspace, &key));
        if !follows {
            return Err(Error::Damaged(format!("row {} is out of order", self.rows)));
        }
        self.last = Some((keyspace, key.clone()));
        self.rows += 1;
        self.digest.add(keyspace, &key, &value);
        self.part_bytes += key.len() + value.len();
        self.part.push(Change { space: keyspace.space(), key, value: Some(value) });
        if self.part_bytes >= PART_BYTES { self.load() } else { Ok(()) }
    }

    fn load(&mut self) -> Result<(), Error> {
        self.part_bytes = 0;
        Ok(self.engine.load(std::mem::take(&mut self.part))?)
    }

    /// Checks the whole and brings it to the disk. `applied` and `membership` are what the sender says it is.
    ///
    /// # Errors
    /// Something is missing, or is not what was sent.
    pub fn end(mut self, end: &SnapshotEnd, claim: &Claim) -> Result<Arrived, Error> {
        if end.rows != self.rows {
            return Err(Error::Damaged(format!("it has {} rows, not {}", self.rows, end.rows)));
        }
        self.load()?;
        if self.digest.finish()[..] != end.sha256[..] {
            return Err(Error::Damaged("its hash is not the sender's".into()));
        }
        let contents = Contents::read(self.engine.clone()).map_err(Error::Store)?;
        if contents.claim() != *claim {
            return Err(Error::Damaged("it stands at another position than its header says".into()));
        }
        self.engine.sync()?;
        Ok(Arrived { contents })
    }
}

/// Where a store stands: its position, and its membership with the position of that.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Claim {
    /// The last applied position.
    pub applied: Option<Position>,
    /// The last membership.
    pub membership: Option<(Position, Bytes)>,
}

/// A store that has arrived as a whole, on the disk, and can be taken over at once.
pub struct Arrived {
    pub(super) contents: Contents,
}

impl Arrived {
    /// Whether a build that knows commands up to a version can go on from it.
    ///
    /// # Errors
    /// Its cluster uses later ones.
    pub fn check(&self, knows: u32) -> Result<(), TooNew> {
        self.contents.check(knows)
    }
}

/// Copies a snapshot into an empty engine.
///
/// # Errors
/// Those of either engine.
pub fn copy(from: Arc<Snapshot>, claim: &Claim, into: Arc<dyn Engine>) -> Result<Arrived, Error> {
    let (mut outgoing, mut incoming) = (Outgoing::new(from), Incoming::new(into, format())?);
    while let Some(rows) = outgoing.next_rows()? {
        incoming.take(rows)?;
    }
    incoming.end(&outgoing.end(), claim)
}
