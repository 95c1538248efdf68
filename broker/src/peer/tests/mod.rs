//! Claims about both ends of the peers' port, with a node that only pretends.

mod carriage;
mod rights;

use std::{path::Path, sync::Arc, time::Duration};

use databroker_proto::internal::{
    HandoverReply, HandoverRequest, HelloReply, HelloRequest, InitReply, InitRequest, PeerReply, PeerRequest,
    ReadIndexReply, ReadIndexRequest, SetMembersReply, SetMembersRequest, SnapshotReply, StatusReply, peer_reply,
    peer_request,
};
use futures::StreamExt as _;
use parking_lot::Mutex;
use tokio::{runtime::Handle, sync::Semaphore, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use super::{
    Admin, AdminError, Chunks, Client, PeerName, Peers, Refused, Server, authority::Authority, identity::Identity,
    material::Material,
};
use crate::{
    config::PeerFiles,
    raft::{
        Member,
        transport::{CallError, Peer, Transport as _},
    },
};

const PATIENCE: Duration = Duration::from_secs(10);

/// Half of what it is sent, it takes at once.
const TAKEN_AT_ONCE: usize = 50 << 20;

/// A node that answers, and remembers who asked.
struct Pretender {
    asked_by: Mutex<Vec<String>>,
    /// Says when the second half of a store may be taken.
    second_half: Semaphore,
    /// Says when a Hello is answered.
    hello: Semaphore,
}

impl Default for Pretender {
    fn default() -> Self {
        Self { asked_by: Mutex::default(), second_half: Semaphore::new(0), hello: Semaphore::new(0) }
    }
}

impl Peers for Pretender {
    async fn answer(&self, from: PeerName, request: PeerRequest) -> Result<PeerReply, Refused> {
        self.asked_by.lock().push(from.to_string());
        let kind = match request.kind {
            Some(peer_request::Kind::ReadIndex(_)) => peer_reply::Kind::ReadIndex(ReadIndexReply { index: 7 }),
            Some(peer_request::Kind::Hello(_)) => {
                self.hello.acquire().await.unwrap().forget();
                peer_reply::Kind::Hello(HelloReply::default())
            }
            _ => return Err(Refused::OtherNode { found: 1, ours: 2 }),
        };
        Ok(PeerReply { from: 1, kind: Some(kind) })
    }

    async fn install(&self, _: PeerName, mut chunks: Chunks) -> Result<SnapshotReply, Refused> {
        let mut taken = 0;
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk.map_err(|error| Refused::Unable { reason: error.to_string() })?;
            let before = taken;
            taken += prost::Message::encoded_len(&chunk);
            if before < TAKEN_AT_ONCE && taken >= TAKEN_AT_ONCE {
                self.second_half.acquire().await.unwrap().forget();
            }
        }
        Ok(SnapshotReply::default())
    }
}

impl Admin for Pretender {
    async fn status(&self) -> Result<StatusReply, AdminError> {
        Ok(StatusReply { leader: "a".into(), ..StatusReply::default() })
    }

    async fn init(&self, request: InitRequest) -> Result<InitReply, AdminError> {
        Ok(InitReply { cluster_id: request.cluster_id })
    }

    async fn set_members(&self, _: SetMembersRequest) -> Result<SetMembersReply, AdminError> {
        Err(AdminError::NoLeader)
    }

    async fn handover(&self, _: HandoverRequest) -> Result<HandoverReply, AdminError> {
        Err(AdminError::Unable { reason: "c is behind".into() })
    }
}

/// A served port, until it is stopped.
struct Served {
    node: Arc<Pretender>,
    address: String,
    closing: CancellationToken,
    serving: JoinHandle<()>,
}

impl Served {
    async fn start(material: &Material) -> Self {
        Self::start_at("127.0.0.1:0", material).await
    }

    async fn start_at(address: &str, material: &Material) -> Self {
        let server = Server::bind(address.parse().unwrap(), material).await.unwrap();
        let (node, closing) = (Arc::new(Pretender::default()), CancellationToken::new());
        let address = server.address().to_string();
        let serving = tokio::spawn(server.serve(node.clone(), node.clone(), closing.clone()));
        Self { node, address, closing, serving }
    }

    fn peer(&self, name: &str) -> Peer {
        let member = Member { name: name.into(), raft_address: self.address.clone(), ..Member::default() };
        Peer { node: 1, member }
    }

    async fn stop(self) {
        self.closing.cancel();
        self.serving.await.unwrap();
    }
}

fn issued(files: &PeerFiles, authority: &Authority, identity: &Identity) {
    let issued = authority.issue(identity, &[], None).unwrap();
    std::fs::write(&files.key, issued.key_pem()).unwrap();
    std::fs::write(&files.certificate, &issued.certificate_pem).unwrap();
}

/// A cluster's authority with a folder for what it issues.
struct Issuer {
    authority: Authority,
    ca_pem: String,
}

impl Issuer {
    fn new() -> Self {
        let (authority, kept) = Authority::make("c", Duration::from_secs(3600)).unwrap();
        Self { authority, ca_pem: kept.certificate_pem }
    }

    fn write(&self, folder: &Path, identity: &Identity) -> PeerFiles {
        let file = |name: &str| folder.join(name);
        let files = PeerFiles { ca: file("ca.pem"), certificate: file("cert.pem"), key: file("key.pem") };
        std::fs::write(&files.ca, &self.ca_pem).unwrap();
        issued(&files, &self.authority, identity);
        files
    }

    fn material(&self, identity: Identity) -> Material {
        let folder = tempfile::tempdir().unwrap();
        Material::from_files(&self.write(folder.path(), &identity), identity).unwrap()
    }

    fn node(&self, name: &str) -> Material {
        self.material(Identity::node("c", name))
    }
}

fn client(material: &Material) -> Client {
    Client::new(material.clone(), Handle::current())
}

fn ask(kind: peer_request::Kind) -> PeerRequest {
    PeerRequest { envelope: None, kind: Some(kind) }
}

fn read_index() -> PeerRequest {
    ask(peer_request::Kind::ReadIndex(ReadIndexRequest {}))
}

fn hello() -> PeerRequest {
    ask(peer_request::Kind::Hello(HelloRequest::default()))
}

async fn read(client: &Client, to: Peer) -> Result<PeerReply, CallError> {
    client.call(to, read_index(), PATIENCE).await
}

fn refusal<T: std::fmt::Debug>(result: Result<T, CallError>) -> String {
    match result {
        Err(CallError::Refused { reason, .. }) => reason,
        other => panic!("not refused: {other:?}"),
    }
}
