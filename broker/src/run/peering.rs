//! Where the node meets the peers' port: its answers and errors in the words of `peer`.
//!
//! Not here: any decision; `node` decides, `peer` carries.

use databroker_proto::internal::{
    HandoverReply, HandoverRequest, InitReply, InitRequest, PeerReply, PeerRequest, SetMembersReply, SetMembersRequest,
    SnapshotReply, StatusReply,
};

use std::{net::SocketAddr, path::Path, sync::Arc};

use futures::{StreamExt as _, future::BoxFuture};
use tokio::{runtime::Handle, task::JoinSet};
use tokio_util::sync::CancellationToken;

use crate::{
    config::{self, Secrets},
    net::Certificates,
    node::{self, HandoverError, Node, Seeds},
    peer::{
        self, Admin, AdminError, BindError, Chunks, PeerName, Peers, Refused, Socket, SocketError,
        identity::Identity,
        material::{self, Material},
    },
    raft::{
        Member,
        transport::{NoPeers, Peer, Transport},
    },
    server::{KeyError, read_key},
};

/// Why the node cannot meet its peers.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The certificates.
    #[error(transparent)]
    Material(#[from] material::Error),
    /// A shared secret.
    #[error(transparent)]
    Secret(#[from] KeyError),
    /// Nothing is given that peers could know each other by.
    #[error(
        "nodes of a cluster need one `shared_secret`, or certificates of their own (`databroker_peer_certificate_file`): \
         a secret that each of them makes up is no use"
    )]
    NoSecret,
    /// The port.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The socket for operators.
    #[error(transparent)]
    Socket(#[from] SocketError),
}

/// Both ends of the way to peers, made before the node is.
pub(super) struct Way {
    pub(super) transport: Arc<dyn Transport>,
    server: Option<peer::Server>,
    /// Those that the peers' port shows.
    pub(super) certificates: Certificates,
}

impl Way {
    /// Opens the peers' port, if there are to be peers.
    pub(super) async fn open(cluster: &config::Cluster, secrets: &Secrets) -> Result<Self, Error> {
        let Some(address) = cluster.raft_bind_address else {
            return Ok(Self { transport: Arc::new(NoPeers), server: None, certificates: Certificates::default() });
        };
        let me = Identity::node(&cluster.name, cluster.node.as_deref().unwrap_or_default());
        let material = match &cluster.peer_files {
            Some(files) => {
                let material = Material::from_files(files, me)?;
                material.follow(files);
                material
            }
            None => {
                let material = Material::derived(&keys(secrets)?, me)?;
                let (files, secrets) = (secrets.files(), secrets.clone());
                material.follow_secrets(files, move || keys(&secrets));
                material
            }
        };
        let mut certificates = Certificates::default();
        certificates.add("peers", material.shown());
        let server = peer::Server::bind(address, &material).await?;
        let client = peer::Client::new(material, Handle::current());
        Ok(Self { transport: Arc::new(client), server: Some(server), certificates })
    }

    /// Serves peers and operators until told to stop.
    pub(super) fn serve(
        self,
        node: &Node,
        folder: Option<&Path>,
        closing: &CancellationToken,
    ) -> Result<JoinSet<()>, Error> {
        let peering = Arc::new(Peering(node.clone()));
        let mut serving = JoinSet::new();
        if let Some(server) = self.server {
            serving.spawn(server.serve(peering.clone(), peering.clone(), closing.clone()));
        }
        if let Some(folder) = folder {
            serving.spawn(Socket::bind(folder)?.serve(peering, closing.clone()));
        }
        Ok(serving)
    }
}

fn keys(secrets: &Secrets) -> Result<Vec<crate::jwt::SharedKey>, Error> {
    let keys = secrets.all().map(read_key).collect::<Result<Vec<_>, _>>()?;
    if keys.is_empty() { Err(Error::NoSecret) } else { Ok(keys) }
}

/// The nodes behind one name.
pub(super) struct Discovered(pub(super) config::Discovery);

impl Seeds for Discovered {
    fn look(&self) -> BoxFuture<'_, Vec<Peer>> {
        Box::pin(async move {
            let found = peer::discovery::discover(&self.0).await.unwrap_or_else(|error| {
                tracing::debug!(%error, host = self.0.host, "no peers are found by name");
                Vec::new()
            });
            let unnamed = |address: SocketAddr| Member { raft_address: address.to_string(), ..Member::default() };
            found.into_iter().map(|address| Peer { node: 0, member: unnamed(address) }).collect()
        })
    }
}

/// The node, for its peers and for operators.
pub(super) struct Peering(pub(super) Node);

impl Peers for Peering {
    async fn answer(&self, from: PeerName, request: PeerRequest) -> Result<PeerReply, Refused> {
        self.0.answer_from(from.as_str(), request).await.map_err(refused)
    }

    async fn install(&self, from: PeerName, chunks: Chunks) -> Result<SnapshotReply, Refused> {
        // What ends without its end was broken off; whoever takes it in sees that.
        let chunks = chunks
            .take_while(|chunk| std::future::ready(chunk.is_ok()))
            .filter_map(|chunk| std::future::ready(chunk.ok()));
        self.0.install_from(from.as_str(), Box::pin(chunks)).await.map_err(refused)
    }
}

impl Admin for Peering {
    async fn status(&self) -> Result<StatusReply, AdminError> {
        Ok(self.0.cluster_status())
    }

    async fn init(&self, request: InitRequest) -> Result<InitReply, AdminError> {
        let cluster_id = Some(request.cluster_id).filter(|id| !id.is_empty());
        let cluster_id = self.0.init(cluster_id).await.map_err(unfulfilled)?;
        Ok(InitReply { cluster_id })
    }

    async fn set_members(&self, request: SetMembersRequest) -> Result<SetMembersReply, AdminError> {
        self.0.set_members(request.expected_generation, request.members).await.map_err(unfulfilled)
    }

    async fn handover(&self, request: HandoverRequest) -> Result<HandoverReply, AdminError> {
        let to = Some(request.to.as_str()).filter(|to| !to.is_empty());
        let failed = |error: HandoverError| match error {
            HandoverError::Unknown { .. } => AdminError::Invalid { reason: error.to_string() },
            HandoverError::NotLeader => AdminError::NoLeader,
            HandoverError::Elsewhere { .. } | HandoverError::NoSuccessor | HandoverError::TimedOut { .. } => {
                AdminError::Unable { reason: error.to_string() }
            }
        };
        Ok(HandoverReply { leader: self.0.hand_over(to).await.map_err(failed)? })
    }
}

fn refused(error: node::Refused) -> Refused {
    match error {
        node::Refused::Missing(_) => Refused::Unknown,
        node::Refused::Node { to, me } => Refused::OtherNode { found: to, ours: me },
        node::Refused::Cluster { theirs, ours } => Refused::OtherCluster { found: theirs, ours },
        node::Refused::Name { says, certified } => Refused::OtherName { found: says, ours: certified },
        node::Refused::Forward(unfit) => Refused::Malformed { reason: unfit.to_string() },
        error @ (node::Refused::Raft(_) | node::Refused::Retire(_) | node::Refused::Install(_)) => {
            Refused::Unable { reason: error.to_string() }
        }
    }
}

fn unfulfilled(error: node::AdminError) -> AdminError {
    let reason = error.to_string();
    match error {
        node::AdminError::Founded { .. } | node::AdminError::PeerFounded { .. } => {
            AdminError::AlreadyInitialized { reason }
        }
        node::AdminError::BadId | node::AdminError::BadMembers(_) => AdminError::Invalid { reason },
        node::AdminError::PeerRefuses { .. } | node::AdminError::Disagree { .. } | node::AdminError::Refused(_) => {
            AdminError::Unable { reason }
        }
        node::AdminError::Node(error) => match error {
            node::Error::NotInitialized => AdminError::NotInitialized,
            node::Error::NoLeader | node::Error::NotLeader | node::Error::Overloaded => AdminError::NoLeader,
            node::Error::ShuttingDown => AdminError::Closing,
            node::Error::TooEarly { .. } | node::Error::Full(_) => AdminError::Unable { reason },
            node::Error::Failed { .. } => AdminError::Failed { reason },
        },
        node::AdminError::Open(_) => AdminError::Failed { reason },
    }
}
