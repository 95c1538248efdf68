//! Room in memory: so many bytes over all that share it. Whoever finds too little left is told at once and never waits, for
//! two that each hold a part would wait for each other.
//!
//! Not here: what is charged, and when (`intake`, `outflow`).

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// In what room is counted: a semaphore takes 32 bits at once, and what is charged comes by the KiB.
const UNIT_BYTES: usize = 1 << 10;

/// Bytes that many share. Cloning shares them too.
#[derive(Clone)]
pub(super) struct Room(Arc<Semaphore>);

impl Room {
    /// Room for so many bytes, in whole KiB.
    pub(super) fn new(bytes: usize) -> Self {
        Self(Arc::new(Semaphore::new((bytes / UNIT_BYTES).min(Semaphore::MAX_PERMITS))))
    }

    /// A share of so many bytes; `None`: too little is left.
    pub(super) fn take(&self, bytes: usize) -> Option<Share> {
        let units = u32::try_from(bytes.div_ceil(UNIT_BYTES)).ok()?;
        self.0.clone().try_acquire_many_owned(units).ok().map(Share)
    }

    /// Bytes that nobody has taken.
    #[cfg(test)]
    pub(super) fn left(&self) -> usize {
        self.0.available_permits() * UNIT_BYTES
    }
}

/// A part of a [`Room`], given back when it is dropped.
pub(super) struct Share(OwnedSemaphorePermit);

impl Share {
    /// Makes this share one of so many bytes at least. False: too little is left, and it stays what it was.
    pub(super) fn grow(&mut self, room: &Room, bytes: usize) -> bool {
        let missing = bytes.saturating_sub(self.0.num_permits() * UNIT_BYTES);
        let Some(Self(more)) = room.take(missing) else { return false };
        self.0.merge(more);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_takes_whole_units_grows_while_there_is_room_and_is_given_back() {
        let room = Room::new(8 << 10);
        let mut share = room.take(0).unwrap();
        assert_eq!(room.left(), 8 << 10);
        assert!(share.grow(&room, 1) && share.grow(&room, 1 << 10));
        assert_eq!(room.left(), 7 << 10);
        assert!(!share.grow(&room, (8 << 10) + 1));
        assert_eq!(room.left(), 7 << 10);
        assert!(share.grow(&room, 8 << 10) && room.take(1).is_none());
        drop(share);
        assert_eq!(room.left(), 8 << 10);
        assert!(room.take(usize::MAX).is_none());
    }
}
