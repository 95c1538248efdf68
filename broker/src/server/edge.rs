//! What every service of the interface works with: the node, the open streams, and when it is over.
//!
//! Not here: any one request.

use std::{num::NonZero, sync::Arc, time::Duration};

use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tonic::metadata::MetadataMap;

use super::{Ending, mode::request_mode, status::Error, streams::Streams};
use crate::{
    node::{self, Node},
    store::{
        self, Progress, Snapshot,
        command::{self, Answer, Kind, outcome},
    },
};

/// How long a burst of batches is gathered before streams are woken again. Hundreds of streams that all wake for each
/// of thousands of batches a second would keep the machine busy with waking up alone.
const PULSE: Duration = Duration::from_millis(1);

/// Shared by all services. Cloning is cheap.
#[derive(Clone)]
pub(super) struct Edge {
    pub(super) node: Node,
    pub(super) streams: Streams,
    /// No new streams.
    pub(super) leaving: CancellationToken,
    /// Open ones end.
    pub(super) closing: CancellationToken,
    /// For reads that are over in about a millisecond: chunks of streams, lists.
    pub(super) chunks: Readers,
    /// For queries by an index, which may have very many records under a value.
    pub(super) lookups: Readers,
    /// For reads that may take seconds: queries that scan.
    pub(super) scans: Readers,
    pulse: watch::Receiver<Progress>,
}

impl Edge {
    /// Starts the pulse, which ends with `closing`.
    pub(super) fn new(node: Node, streams: Streams, ending: &Ending) -> Self {
        let Ending { leaving, closing } = ending.clone();
        let pulse = pulse(node.progress(), closing.clone());
        Self {
            node,
            streams,
            leaving,
            closing,
            chunks: Readers::new(),
            lookups: Readers::new(),
            scans: Readers::new(),
            pulse,
        }
    }

    /// Moves after each applied batch, at once where there was quiet before, else at most once per [`PULSE`].
    pub(super) fn pulse(&self) -> watch::Receiver<Progress> {
        self.pulse.clone()
    }

    /// Proposes a command. A refusal is an error.
    pub(super) async fn propose(&self, kind: Kind) -> Result<Answer, Error> {
        command::check(&kind).map_err(Error::Rejected)?;
        let answer = self.node.propose(kind).await?;
        match answer.outcome.kind {
            Some(outcome::Kind::Rejected(rejected)) => Err(Error::Rejected(rejected)),
            _ => Ok(answer),
        }
    }

    /// The snapshot from which a read with this metadata is answered.
    pub(super) async fn snapshot(&self, metadata: &MetadataMap) -> Result<Arc<Snapshot>, Error> {
        if reads_locally(metadata) { self.founded() } else { Ok(self.node.fence().await?) }
    }

    /// What this node has, however old. Where there is no store yet, that nothing is found would be untrue.
    pub(super) fn founded(&self) -> Result<Arc<Snapshot>, Error> {
        let snapshot = self.node.reader().snapshot();
        if snapshot.progress().server_version == 0 {
            return Err(node::Error::NotInitialized.into());
        }
        Ok(snapshot)
    }
}

/// Whether the client wants what this node has, however old.
pub(super) fn reads_locally(metadata: &MetadataMap) -> bool {
    !request_mode(metadata.as_ref()).is_fenced()
}

fn pulse(mut progress: watch::Receiver<Progress>, closing: CancellationToken) -> watch::Receiver<Progress> {
    let (sender, receiver) = watch::channel(*progress.borrow_and_update());
    tokio::spawn(closing.run_until_cancelled_owned(async move {
        while progress.changed().await.is_ok() {
            sender.send_replace(*progress.borrow_and_update());
            tokio::time::sleep(PULSE).await;
        }
    }));
    receiver
}

/// Threads that read the store for requests. Point reads are answered where they are; what takes longer is read here,
/// and no more of it at once than leaves a core to the log and the store: twenty clients that copy everything must not
/// hold up one that writes.
#[derive(Clone)]
pub(super) struct Readers(Arc<Semaphore>);

impl Readers {
    fn new() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
        Self(Arc::new(Semaphore::new((cores / 2).max(1))))
    }

    /// Reads on a thread that may wait for the disk, in the order of the calls.
    pub(super) async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce() -> Result<T, store::Error> + Send + 'static,
    ) -> Result<T, Error> {
        // The semaphore is never closed. The permit goes with the read: one that lost its caller runs to its end.
        let permit = self.0.clone().acquire_owned().await.map_err(|_| Error::Closing)?;
        let read = move || {
            let _permit = permit;
            read()
        };
        match tokio::task::spawn_blocking(read).await {
            Ok(result) => Ok(result?),
            Err(_) => Err(Error::ReadLost),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_pulse_is_immediate_after_quiet_and_gathers_a_burst() {
        let (sender, progress) = watch::channel(Progress::default());
        let closing = CancellationToken::new();
        let mut pulse = pulse(progress, closing.clone());
        let set = |version| sender.send_modify(|progress| progress.latest_record_version = version);
        tokio::time::sleep(PULSE).await;
        let quiet = tokio::time::Instant::now();
        set(1);
        pulse.changed().await.unwrap();
        assert_eq!(pulse.borrow_and_update().latest_record_version, 1);
        assert_eq!(quiet.elapsed(), Duration::ZERO);
        set(2);
        set(3);
        pulse.changed().await.unwrap();
        assert_eq!(pulse.borrow_and_update().latest_record_version, 3);
        assert!(quiet.elapsed() >= PULSE);
        closing.cancel();
        assert!(pulse.changed().await.is_err());
    }
}
