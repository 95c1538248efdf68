//! The record streams: Sync follows the changes, SyncLatest sends what is there.
//!
//! Both are pulled by the client: a stream holds one chunk at most, and reads the next when that has gone out. A slow
//! client costs nobody else anything; one that falls below the floor of the change log, or keeps a snapshot for too long
//! without reading, is told so with ABORTED.
//! Not here: who may open a stream (`auth`), and how changes are kept (`store::tail`).

use std::sync::Arc;

use databroker_proto::{
    EncodedRecord,
    databroker::{
        SyncLatestRequest, SyncLatestResponse, SyncRequest, SyncResponse, TypedOptions, Versions, sync_latest_response,
        sync_response,
    },
};
use futures::{
    Stream, TryStreamExt as _,
    stream::{self, BoxStream},
};
use tokio::sync::watch;
use tonic::{Status, metadata::MetadataMap};

use super::{
    edge::{Edge, Readers},
    pinned::Pinned,
    status::Error,
    streams::Guard,
};
use crate::store::{Progress, Reader, Snapshot, keyspace::NAME_BYTES_MAX, snapshot::ScanCursor, tail::Changes};

/// What SyncLatest reads at once: enough that switching to the reading thread does not count, little enough that dozens
/// of streams need next to nothing.
const SCAN_BYTES_MAX: usize = 256 << 10;

/// A stream of responses as tonic wants it.
pub(super) type Responses<T> = BoxStream<'static, Result<T, Status>>;

/// Opens a Sync stream. The response headers leave as soon as this returns: the client knows that it is connected.
///
/// # Errors
/// When the position cannot be followed, too many streams are open, or the server is stopping; when the position is of
/// another history than this node's, and no leader can be asked which of the two is old.
pub(super) async fn sync(edge: &Edge, request: SyncRequest) -> Result<Responses<SyncResponse>, Error> {
    let guard = open(edge, &request.r#type)?;
    let may_follow = |now: &Progress| check(now, request.server_version, request.record_version);
    match may_follow(&edge.node.reader().snapshot().progress()) {
        // Clients throw everything away when they hear that. It may be this node that is behind: its disk is being filled
        // again, or it has not heard of a Clear yet.
        Err(Error::ServerVersion) => may_follow(&edge.node.fence().await?.progress())?,
        followed => followed?,
    }
    guard.reached(request.record_version);
    let follower = Follower {
        options_sent: false,
        reader: edge.node.reader().clone(),
        pulse: edge.pulse(),
        edge: edge.clone(),
        guard,
        record_type: request.r#type,
        server_version: request.server_version,
        position: request.record_version,
        wait: request.wait.unwrap_or(true),
    };
    Ok(responses(stream::try_unfold(follower, Follower::next)))
}

/// Opens a SyncLatest stream.
///
/// # Errors
/// When no snapshot can be had, too many streams are open, or the server is stopping.
pub(super) async fn sync_latest(
    edge: &Edge,
    metadata: &MetadataMap,
    request: SyncLatestRequest,
) -> Result<Responses<SyncLatestResponse>, Error> {
    let guard = open(edge, &request.r#type)?;
    let snapshot = edge.snapshot(metadata).await?;
    let stage = Stage::Records(None);
    let snapshot = edge.streams.pin(snapshot);
    let scan = Scan { snapshot, edge: edge.clone(), record_type: request.r#type, stage, _guard: guard };
    Ok(responses(stream::try_unfold(scan, Scan::next)))
}

/// The type stays for as long as the stream does: it is bounded as that of a record is.
fn open(edge: &Edge, record_type: &str) -> Result<Guard, Error> {
    if record_type.len() > NAME_BYTES_MAX {
        return Err(Error::TypeTooLong(record_type.len()));
    }
    if edge.leaving.is_cancelled() {
        return Err(Error::Closing);
    }
    edge.streams.open()
}

/// Chunks as single responses.
fn responses<T: Send + 'static>(chunks: impl Stream<Item = Result<Vec<T>, Error>> + Send + 'static) -> Responses<T> {
    let each = |chunk: Vec<T>| stream::iter(chunk.into_iter().map(Ok::<_, Error>));
    Box::pin(chunks.map_ok(each).try_flatten().map_err(Status::from))
}

/// Whether a stream can go on after `position`. The client's numbers may be anything: none is added to.
fn check(now: &Progress, server_version: u64, position: u64) -> Result<(), Error> {
    // Before the store is made ready its version is 0, and 0 never matches.
    if server_version == 0 || server_version != now.server_version {
        return Err(Error::ServerVersion);
    }
    if position < now.earliest_record_version.saturating_sub(1) { Err(Error::RecordVersion) } else { Ok(()) }
}

/// A Sync stream.
struct Follower {
    /// Options come first.
    options_sent: bool,
    reader: Reader,
    pulse: watch::Receiver<Progress>,
    edge: Edge,
    guard: Guard,
    record_type: String,
    server_version: u64,
    /// Every change up to here has been sent.
    position: u64,
    wait: bool,
}

impl Follower {
    async fn next(mut self) -> Result<Option<(Vec<SyncResponse>, Self)>, Error> {
        if !self.options_sent {
            self.options_sent = true;
            // Looked up only now: a snapshot would be held for as long as the client does not begin to read.
            let (snapshot, record_type) = (self.reader.snapshot(), self.record_type.clone());
            let options = sync_response::Response::Options;
            return Ok(Some((options_frames(&self.edge.chunks, snapshot, record_type, options).await?, self)));
        }
        loop {
            if self.edge.closing.is_cancelled() {
                return Err(Error::Closing);
            }
            // What is applied from here on moves the pulse again: nothing is missed between reading and waiting.
            self.pulse.mark_unchanged();
            let changes = self.read().await?;
            // The position may be ahead of the store: it never goes back.
            self.position = self.position.max(changes.position);
            self.guard.reached(self.position);
            if !changes.records.is_empty() {
                return Ok(Some((changes.records.into_iter().map(record_frame).collect(), self)));
            }
            if changes.complete && !self.wait {
                return Ok(None);
            }
            if changes.complete {
                // The pulse ends when the server is about to.
                self.pulse.changed().await.map_err(|_| Error::Closing)?;
            }
        }
    }

    /// The next changes, from memory if it reaches back far enough, else from the change log.
    async fn read(&self) -> Result<Changes, Error> {
        let changes = match self.reader.recent_changes(&self.record_type, self.position) {
            Some(changes) => changes,
            None => self.read_log().await?,
        };
        if changes.server_version == self.server_version { Ok(changes) } else { Err(Error::ServerVersion) }
    }

    async fn read_log(&self) -> Result<Changes, Error> {
        let snapshot = self.reader.snapshot();
        check(&snapshot.progress(), self.server_version, self.position)?;
        let (record_type, position) = (self.record_type.clone(), self.position);
        self.edge.chunks.read(move || snapshot.changes(&record_type, position)).await
    }
}

/// A SyncLatest stream.
struct Scan {
    snapshot: Pinned<Snapshot>,
    edge: Edge,
    record_type: String,
    stage: Stage,
    _guard: Guard,
}

/// What a SyncLatest stream sends next.
enum Stage {
    Records(Option<ScanCursor>),
    Options,
    Versions,
    Nothing,
}

impl Scan {
    async fn next(mut self) -> Result<Option<(Vec<SyncLatestResponse>, Self)>, Error> {
        if self.edge.closing.is_cancelled() {
            return Err(Error::Closing);
        }
        let snapshot = self.snapshot.get()?;
        let frames = match self.stage {
            Stage::Records(cursor) => {
                let (records, cursor) = scan(&self.edge.chunks, snapshot, self.record_type.clone(), cursor).await?;
                self.stage = if records.is_empty() { Stage::Options } else { Stage::Records(cursor) };
                records.into_iter().map(latest_frame).collect()
            }
            Stage::Options => {
                self.stage = Stage::Versions;
                let options = sync_latest_response::Response::Options;
                options_frames(&self.edge.chunks, snapshot, self.record_type.clone(), options).await?
            }
            Stage::Versions => {
                self.stage = Stage::Nothing;
                vec![versions_frame(&snapshot.progress())]
            }
            Stage::Nothing => return Ok(None),
        };
        Ok(Some((frames, self)))
    }
}

async fn scan(
    readers: &Readers,
    snapshot: Arc<Snapshot>,
    record_type: String,
    mut cursor: Option<ScanCursor>,
) -> Result<(Vec<EncodedRecord>, Option<ScanCursor>), Error> {
    readers
        .read(move || {
            let records = snapshot.scan(&record_type, &mut cursor, SCAN_BYTES_MAX)?;
            Ok((records, cursor))
        })
        .await
}

/// A response of one of the two streams, made from its `oneof`.
trait Frame<T> {
    fn frame(response: T) -> Self;
}

impl Frame<sync_response::Response> for SyncResponse {
    fn frame(response: sync_response::Response) -> Self {
        Self { response: Some(response) }
    }
}

impl Frame<sync_latest_response::Response> for SyncLatestResponse {
    fn frame(response: sync_latest_response::Response) -> Self {
        Self { response: Some(response) }
    }
}

async fn options_frames<R, F: Frame<R>>(
    readers: &Readers,
    snapshot: Arc<Snapshot>,
    record_type: String,
    response: fn(TypedOptions) -> R,
) -> Result<Vec<F>, Error> {
    let options = readers.read(move || snapshot.stream_options(&record_type)).await?;
    let typed = options.into_iter().map(|(type_url, options)| TypedOptions { type_url, options: Some(options) });
    Ok(typed.map(|typed| F::frame(response(typed))).collect())
}

fn record_frame(record: EncodedRecord) -> SyncResponse {
    SyncResponse::frame(sync_response::Response::Record(record))
}

fn latest_frame(record: EncodedRecord) -> SyncLatestResponse {
    SyncLatestResponse::frame(sync_latest_response::Response::Record(record))
}

fn versions_frame(progress: &Progress) -> SyncLatestResponse {
    SyncLatestResponse::frame(sync_latest_response::Response::Versions(Versions {
        server_version: progress.server_version,
        latest_record_version: progress.latest_record_version,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(server_version: u64, earliest: u64, latest: u64) -> Progress {
        Progress {
            server_version,
            earliest_record_version: earliest,
            latest_record_version: latest,
            ..Progress::default()
        }
    }

    #[test]
    fn only_the_same_server_version_is_followed_and_never_zero() {
        assert!(check(&at(7, 0, 5), 7, 0).is_ok());
        assert!(matches!(check(&at(7, 0, 5), 8, 0), Err(Error::ServerVersion)));
        assert!(matches!(check(&at(7, 0, 5), 0, 0), Err(Error::ServerVersion)));
        assert!(matches!(check(&at(0, 0, 0), 0, 0), Err(Error::ServerVersion)));
    }

    #[test]
    fn a_position_is_followed_from_just_below_the_floor_to_any_number() {
        assert!(check(&at(7, 0, 9), 7, 0).is_ok());
        assert!(check(&at(7, 1, 9), 7, 0).is_ok());
        assert!(check(&at(7, 5, 9), 7, 4).is_ok());
        assert!(matches!(check(&at(7, 5, 9), 7, 3), Err(Error::RecordVersion)));
        assert!(check(&at(7, 5, 9), 7, u64::MAX).is_ok());
    }
}
