//! Carries a replica's messages to its peers.
//!
//! Not here: how a connection is made (`dial`), which messages there are (`raft`).

use std::{collections::HashMap, sync::Arc, time::Duration};

use databroker_proto::internal::{
    PeerReply, PeerRequest, SnapshotChunk, SnapshotReply, peer_request::Kind, raft_client::RaftClient,
};
use futures::{Stream, future::BoxFuture, stream};
use http::Uri;
use parking_lot::Mutex;
use prost::Message as _;
use tokio::{
    runtime::Handle,
    sync::{mpsc, watch},
    time::timeout,
};
use tokio_util::task::AbortOnDropHandle;

use super::{
    MESSAGE_BYTES_MAX,
    dial::{DialError, Open},
    link::{Link, Target},
    material::Material,
    status::call_error,
    tls::Expected,
};
use crate::raft::transport::{CallError, Peer, Transport};

/// From this size on a request could hold up a heartbeat behind it.
const BULK_BYTES_MIN: usize = 64 << 10;

/// A peer nobody speaks to any more is forgotten, and its connections are closed.
const UNUSED_MAX: Duration = Duration::from_secs(300);

/// Peers with open connections; a cluster has fewer by far, and addresses change seldom.
const PEERS_MAX: usize = 64;

/// Speaks to peers. Clones share the connections.
#[derive(Clone)]
pub struct Client {
    shared: Arc<Shared>,
    runtime: Handle,
}

struct Shared {
    material: Material,
    links: Mutex<HashMap<String, (Target, Arc<Link>)>>,
}

impl Client {
    /// Nothing is connected before it is needed. All work is done on `runtime`, whoever calls: encryption has no place
    /// beside elections.
    pub fn new(material: Material, runtime: Handle) -> Self {
        Self { shared: Arc::new(Shared { material, links: Mutex::default() }), runtime }
    }

    /// Runs a call where the connections are. It ends when its caller goes away.
    fn there<T: Send + 'static>(
        &self,
        peer: String,
        call: impl Future<Output = Result<T, CallError>> + Send + 'static,
    ) -> BoxFuture<'static, Result<T, CallError>> {
        let task = AbortOnDropHandle::new(self.runtime.spawn(call));
        let stopped = move |_| CallError::Unreachable { peer, reason: "this node is stopping".into() };
        Box::pin(async move { task.await.unwrap_or_else(|error| Err(stopped(error))) })
    }
}

impl Transport for Client {
    fn call(
        &self,
        to: Peer,
        request: PeerRequest,
        patience: Duration,
    ) -> BoxFuture<'static, Result<PeerReply, CallError>> {
        let (shared, runtime, peer) = (self.shared.clone(), self.runtime.clone(), shown(&to));
        self.there(peer.clone(), async move {
            let asked = shared.ask(&to, request, &runtime);
            timeout(patience, asked).await.unwrap_or(Err(CallError::TimedOut { peer }))
        })
    }

    fn send_snapshot(
        &self,
        to: Peer,
        chunks: mpsc::Receiver<SnapshotChunk>,
        patience: Duration,
    ) -> BoxFuture<'static, Result<SnapshotReply, CallError>> {
        let (shared, runtime, peer) = (self.shared.clone(), self.runtime.clone(), shown(&to));
        self.there(peer.clone(), async move {
            let (pace, paced) = watch::channel(Pace::Wanted);
            tokio::select! {
                reply = shared.send(&to, chunks, pace, &runtime) => reply,
                () = stuck(paced, patience) => Err(CallError::TimedOut { peer }),
            }
        })
    }
}

impl Shared {
    async fn ask(&self, to: &Peer, request: PeerRequest, runtime: &Handle) -> Result<PeerReply, CallError> {
        let link = self.link(to)?;
        let lane = if is_bulk(&request) { &link.bulk } else { &link.control };
        let opened = lane.open(&self.material, runtime).await;
        let (open, _permit) = opened.map_err(|error| undialled(to, &error))?;
        match stub(open.clone()).call(request).await {
            Ok(reply) => Ok(reply.into_inner()),
            Err(status) => Err(explained(to, &open, &status)),
        }
    }

    async fn send(
        &self,
        to: &Peer,
        chunks: mpsc::Receiver<SnapshotChunk>,
        pace: watch::Sender<Pace>,
        runtime: &Handle,
    ) -> Result<SnapshotReply, CallError> {
        let link = self.link(to)?;
        let (open, _permit) = link.bulk.open(&self.material, runtime).await.map_err(|error| undialled(to, &error))?;
        match stub(open.clone()).install_snapshot(paced(chunks, pace)).await {
            Ok(reply) => Ok(reply.into_inner()),
            Err(status) => Err(explained(to, &open, &status)),
        }
    }

    /// The connections to a peer. At another address, or under another name, they are others.
    fn link(&self, to: &Peer) -> Result<Arc<Link>, CallError> {
        let target = target(to)?;
        let mut links = self.links.lock();
        links.retain(|_, (_, link)| link.used().elapsed() < UNUSED_MAX);
        let known = links.get(&shown(to)).filter(|(known, _)| *known == target).map(|(_, link)| link.clone());
        let link = known.unwrap_or_else(|| Arc::new(Link::new(&target)));
        link.touch();
        links.insert(shown(to), (target, link.clone()));
        if links.len() > PEERS_MAX {
            let oldest = links.iter().min_by_key(|(_, (_, link))| link.used()).map(|(name, _)| name.clone());
            oldest.and_then(|name| links.remove(&name));
        }
        Ok(link)
    }
}

fn target(to: &Peer) -> Result<Target, CallError> {
    let address = to.member.raft_address.clone();
    if address.is_empty() {
        return Err(CallError::Unreachable { peer: shown(to), reason: "its address is not known".into() });
    }
    let expected = match to.member.name.as_str() {
        "" => Expected::AnyNode,
        name => Expected::Node(name.to_owned()),
    };
    Ok(Target { address, expected })
}

/// A peer as errors name it.
fn shown(to: &Peer) -> String {
    match to.member.name.as_str() {
        "" => to.member.raft_address.clone(),
        name => format!("{name} ({})", to.member.raft_address),
    }
}

fn is_bulk(request: &PeerRequest) -> bool {
    match &request.kind {
        Some(Kind::Forward(_)) => true,
        Some(Kind::Append(append)) => append.encoded_len() >= BULK_BYTES_MIN,
        _ => false,
    }
}

fn stub(open: Open) -> RaftClient<Open> {
    RaftClient::with_origin(open, Uri::from_static("https://databroker.internal"))
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX)
}

fn undialled(to: &Peer, error: &DialError) -> CallError {
    let (peer, reason) = (shown(to), error.to_string());
    match error {
        DialError::Unreachable(_) => CallError::Unreachable { peer, reason },
        DialError::Refused(_) => CallError::Refused { peer, reason },
    }
}

/// What a failed call means; how the connection broke says more than what HTTP/2 makes of it.
fn explained(to: &Peer, open: &Open, status: &tonic::Status) -> CallError {
    match open.broke() {
        Some(error) => undialled(to, error),
        None => call_error(shown(to), status),
    }
}

/// Who is to make the next move in a transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pace {
    /// The connection, or the peer, is to take what it was given.
    Given,
    /// The sender is to give more.
    Awaited,
    /// No chunk was asked for yet: the connection is being made.
    Wanted,
}

/// The chunks, with a note of whose turn it is.
fn paced(
    chunks: mpsc::Receiver<SnapshotChunk>,
    pace: watch::Sender<Pace>,
) -> impl Stream<Item = SnapshotChunk> + Send + 'static {
    stream::unfold((chunks, pace), |(mut chunks, pace)| async move {
        pace.send_replace(Pace::Awaited);
        let chunk = chunks.recv().await;
        pace.send_replace(Pace::Given);
        chunk.map(|chunk| (chunk, (chunks, pace)))
    })
}

/// Ends when the peer, or the connection to it, has had its turn for longer than one is patient.
async fn stuck(mut pace: watch::Receiver<Pace>, patience: Duration) {
    loop {
        let turn = *pace.borrow_and_update();
        let moved = match turn {
            Pace::Awaited => pace.changed().await,
            Pace::Given | Pace::Wanted => match timeout(patience, pace.changed()).await {
                Ok(moved) => moved,
                Err(_) => return,
            },
        };
        if moved.is_err() {
            // All chunks are taken: what is left is the answer.
            tokio::time::sleep(patience).await;
            return;
        }
    }
}
