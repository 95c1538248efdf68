//! A store on its way between nodes: in chunks, a few of which are in memory at any time.
//!
//! ```text
//!   Sender:    Snapshot ─▶ Outgoing (lane "snapshot") ─▶ bounded channel ─▶ transport
//!   Receiver:  chunks ─▶ Incoming (lane "snapshot") ─▶ new engine beside the old ─▶ openraft ─▶ Machine swaps
//! ```
//!
//! Neither end works on the lane that applies. Not here: the rows and their checks (`store::transfer`), the swap
//! (`machine`).

use std::{sync::Arc, time::Duration};

use databroker_proto::internal::{Envelope, SnapshotChunk, SnapshotHeader, snapshot_chunk::Kind};
use openraft::{alias::SnapshotOf, async_runtime::AsyncRuntime as _};
use tokio::sync::mpsc;

use futures::{Stream, StreamExt as _};

use super::{
    Observer, SnapshotMeta, TypeConfig, Vote, convert, rpc,
    runtime::{self, Failure, Lane, Runtime},
    transfers::{Direction, Tally, Transfer},
};
use crate::{
    mutation::{self, Mutation},
    store::{
        Snapshot,
        command::TooNew,
        engine::{self, shelf::Shelf},
        transfer::{self, Arrived, Claim, Incoming, Outgoing},
    },
};

/// How long either end waits for the next chunk, and the sender for the answer: the receiver syncs what it has and reads
/// the new store's indexes before it answers.
pub const CHUNK_PATIENCE: Duration = Duration::from_secs(20);

/// Chunks read ahead: enough that reading and sending overlap.
const CHUNKS_AHEAD: usize = 4;

/// A snapshot as openraft hands it around.
pub(super) enum SnapshotData {
    /// Of this node's store, at the position of its metadata.
    Taken(Arc<Snapshot>),
    /// Of another node's store, in an engine of its own.
    Arrived(Box<Arrived>),
}

/// What a store says of itself where its metadata are these.
pub(super) fn claim(meta: &SnapshotMeta) -> Claim {
    let membership = meta.last_membership.log_id().as_ref().map(|id| {
        let bytes = convert::encode_membership(meta.last_membership.membership());
        (convert::position(id), bytes)
    });
    Claim { applied: meta.last_log_id.as_ref().map(convert::position), membership }
}

/// Reads snapshots for peers.
#[derive(Clone)]
pub(super) struct Sender {
    pub(super) lane: Arc<dyn Lane>,
    pub(super) failure: Failure,
    pub(super) observer: Arc<dyn Observer>,
}

impl Sender {
    /// The chunks of a snapshot, and what has to be polled so that they come. A snapshot that cannot be read ends
    /// without an end.
    pub(super) fn send<R: Runtime>(
        &self,
        envelope: Envelope,
        vote: &Vote,
        snapshot: SnapshotOf<TypeConfig<R>, SnapshotData>,
        tally: Tally,
    ) -> (mpsc::Receiver<SnapshotChunk>, impl Future<Output = ()> + Send + use<R>) {
        let (chunks, receiver) = mpsc::channel(CHUNKS_AHEAD);
        let header = Kind::Header(rpc::snapshot_header(vote, &snapshot.meta, transfer::format()));
        let (lane, failure, observer) = (self.lane.clone(), self.failure.clone(), self.observer.clone());
        let producing = async move {
            // openraft sends what `get_current_snapshot` returned.
            let SnapshotData::Taken(snapshot) = snapshot.snapshot else { return };
            let chunk = |kind| SnapshotChunk { envelope: None, kind: Some(kind) };
            let first = SnapshotChunk { envelope: Some(envelope), kind: Some(header) };
            if chunks.send(first).await.is_err() {
                return;
            }
            let transfer = Transfer::begin(observer, Direction::Sent, tally);
            let mut outgoing = Outgoing::new(snapshot);
            loop {
                let (next, read) = match runtime::call(&*lane, move || read(outgoing)).await {
                    Ok(Ok(read)) => read,
                    Ok(Err(error)) => return failure.report(error),
                    // The node is stopping.
                    Err(_) => return,
                };
                transfer.moved(&read);
                // The receiver went away: why is in the answer to the transfer.
                if chunks.send(chunk(read)).await.is_err() {
                    return;
                }
                match next {
                    Some(rest) => outgoing = rest,
                    None => return,
                }
            }
        };
        (receiver, producing)
    }
}

/// The next chunk, and what follows it.
fn read(mut outgoing: Outgoing) -> Result<(Option<Outgoing>, Kind), engine::Error> {
    Ok(match outgoing.next_rows()? {
        Some(rows) => (Some(outgoing), Kind::Rows(rows)),
        None => (None, Kind::End(outgoing.end())),
    })
}

/// Why a store that a peer sends is not taken. The store in use is untouched, and the transfer can begin again.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// Another transfer is under way.
    #[error("another transfer of a store is under way")]
    Busy,
    /// The chunks ended before the end, or did not come in time.
    #[error("the transfer of a store was broken off")]
    BrokenOff,
    /// The chunks make no sense.
    #[error("the transfer of a store makes no sense: {0}")]
    Malformed(String),
    /// What arrived is not what was sent.
    #[error(transparent)]
    Transfer(#[from] transfer::Error),
    /// The sender's cluster uses commands that this build does not know. This node ends for it.
    #[error("the store that arrived is of a cluster of a newer release: {0}")]
    TooNew(#[source] TooNew),
    /// The new store cannot be made.
    #[error("cannot make room for the store: {0}")]
    Room(#[source] engine::Error),
    /// The log cannot note what is coming.
    #[error("cannot note the transfer in the log: {0}")]
    Log(#[source] std::io::Error),
    /// The replica has stopped.
    #[error("the replica has stopped")]
    Stopped,
}

impl From<convert::Error> for InstallError {
    fn from(error: convert::Error) -> Self {
        Self::Malformed(error.to_string())
    }
}

/// The chunks of one transfer as they come.
pub(super) struct Chunks<S>(pub(super) S);

impl<S: Stream<Item = SnapshotChunk> + Unpin + Send> Chunks<S> {
    /// The next chunk.
    async fn next<R: Runtime>(&mut self) -> Result<Kind, InstallError> {
        let next = R::Async::timeout(CHUNK_PATIENCE, self.0.next()).await;
        let chunk = next.ok().flatten().ok_or(InstallError::BrokenOff)?;
        chunk.kind.ok_or_else(|| InstallError::Malformed("a chunk is empty, or of an unknown kind".into()))
    }

    /// What every transfer begins with.
    pub(super) async fn header<R: Runtime>(&mut self) -> Result<SnapshotHeader, InstallError> {
        match self.next::<R>().await? {
            Kind::Header(header) => Ok(header),
            Kind::Rows(_) | Kind::End(_) => Err(InstallError::Malformed("it does not begin with its header".into())),
        }
    }
}

/// Receives stores, one at a time.
#[derive(Clone)]
pub(super) struct Receiver {
    pub(super) lane: Arc<dyn Lane>,
    pub(super) shelf: Arc<dyn Shelf>,
    /// Held by the transfer under way.
    pub(super) turn: Arc<tokio::sync::Mutex<()>>,
}

impl Receiver {
    /// Writes all that follows the header into a new engine.
    pub(super) async fn receive<R: Runtime, S: Stream<Item = SnapshotChunk> + Unpin + Send>(
        &self,
        format: u32,
        meta: &SnapshotMeta,
        mut chunks: Chunks<S>,
    ) -> Result<Arrived, InstallError> {
        let shelf = self.shelf.clone();
        let begin = move || {
            let engine = shelf.begin().map_err(InstallError::Room)?;
            if mutation::active(Mutation::ClearBeforeInstall) {
                shelf.adopt().map_err(InstallError::Room)?;
            }
            Ok::<_, InstallError>(Incoming::new(engine, format)?)
        };
        let mut incoming = self.on_lane(begin).await?;
        loop {
            match chunks.next::<R>().await? {
                Kind::Header(_) => return Err(InstallError::Malformed("it has two headers".into())),
                Kind::Rows(rows) => {
                    incoming = self.on_lane(move || incoming.take(rows).map(|()| incoming)).await?;
                }
                Kind::End(end) => {
                    let claim = claim(meta);
                    return self.on_lane(move || incoming.end(&end, &claim)).await;
                }
            }
        }
    }

    async fn on_lane<T: Send + 'static, E: Into<InstallError> + Send + 'static>(
        &self,
        job: impl FnOnce() -> Result<T, E> + Send + 'static,
    ) -> Result<T, InstallError> {
        runtime::call(&*self.lane, job).await.map_err(|_| InstallError::Stopped)?.map_err(Into::into)
    }

    /// Holds the place of the store that arrives next, however its transfer ends.
    pub(super) fn place(&self) -> Place {
        Place(self.clone())
    }

    /// Removes what a store that was replaced left behind.
    pub(super) fn tidy(&self) {
        let shelf = self.shelf.clone();
        self.lane.run(Box::new(move || shelf.tidy()));
    }

    /// Copies a snapshot of this very node, which only a test of openraft's asks for.
    pub(super) async fn copy(&self, snapshot: Arc<Snapshot>, meta: &SnapshotMeta) -> Result<Arrived, InstallError> {
        let (shelf, claim) = (self.shelf.clone(), claim(meta));
        let copy = move || {
            let engine = shelf.begin().map_err(InstallError::Room)?;
            Ok::<_, InstallError>(transfer::copy(snapshot, &claim, engine)?)
        };
        self.on_lane(copy).await
    }
}

/// The place of a store that arrives. When it is dropped, what was not taken over by then is removed.
pub(super) struct Place(Receiver);

impl Drop for Place {
    fn drop(&mut self) {
        let shelf = self.0.shelf.clone();
        // After whatever the transfer still does there, and before the next one begins.
        self.0.lane.run(Box::new(move || {
            shelf.abandon();
            shelf.tidy();
        }));
    }
}
