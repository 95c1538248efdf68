//! How far stores have got on their way between nodes, told to whoever watches.
//!
//! Not here: the chunks themselves (`snapshot`).

use std::sync::Arc;

use databroker_proto::internal::snapshot_chunk::Kind;

use super::Observer;

/// Which way a store goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// To a peer.
    Sent,
    /// From a peer.
    Received,
}

/// One transfer under way, to its end or until it breaks off.
pub(super) struct Transfer {
    observer: Arc<dyn Observer>,
    direction: Direction,
}

impl Transfer {
    pub(super) fn begin(observer: Arc<dyn Observer>, direction: Direction) -> Self {
        observer.transfer_began(direction);
        Self { observer, direction }
    }

    /// A chunk has left, or has come.
    pub(super) fn moved(&self, chunk: &Kind) {
        let Kind::Rows(rows) = chunk else { return };
        let bytes = rows.rows.iter().map(|row| row.key.len() + row.value.len()).sum();
        self.observer.transfer_moved(self.direction, bytes);
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        self.observer.transfer_ended(self.direction);
    }
}
