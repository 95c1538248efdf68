//! What the operator asks of brokers: how they stand, to found their cluster, who is to be a member, and to hand over.
//! Over mutual TLS, with the operator's own certificate.
//!
//! Not here: what to ask when (`reconcile::plan`).

use std::{net::IpAddr, time::Duration};

use databroker_proto::internal::{
    HandoverRequest, InitRequest, SetMembersRequest, ShapeMember, StatusReply, StatusRequest, admin_client::AdminClient,
};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

use crate::resources::{pod::PEERS_PORT, secrets::Admin};

/// For a connection and its handshake.
const CONNECT_MAX: Duration = Duration::from_secs(2);
/// For an answer about the status: a broker that takes longer is as good as silent.
const ASK_MAX: Duration = Duration::from_secs(3);
/// For what changes something: the broker holds it while a leader is elected.
const CHANGE_MAX: Duration = Duration::from_secs(15);

/// Where a broker is, and who it is.
#[derive(Clone, Debug)]
pub struct Address {
    /// Its pod's.
    pub ip: IpAddr,
    /// As its certificate says.
    pub host: String,
}

/// Why a broker did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot be reached, or is somebody else.
    #[error("cannot connect to {host}: {source}")]
    Connect {
        /// Whom.
        host: String,
        /// Why.
        source: tonic::transport::Error,
    },
    /// It refused, or did not answer in time.
    #[error("{host} did not {what}: {status}")]
    Refused {
        /// Who.
        host: String,
        /// What it was asked.
        what: &'static str,
        /// What it says.
        status: Box<tonic::Status>,
    },
}

async fn connect(address: &Address, admin: &Admin, patience: Duration) -> Result<AdminClient<Channel>, Error> {
    let failed = |source| Error::Connect { host: address.host.clone(), source };
    let tls = ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(&admin.trusted))
        .identity(Identity::from_pem(&admin.pair.certificate, &admin.pair.key))
        .domain_name(&address.host);
    let uri = match address.ip {
        IpAddr::V4(ip) => format!("https://{ip}:{PEERS_PORT}"),
        IpAddr::V6(ip) => format!("https://[{ip}]:{PEERS_PORT}"),
    };
    let endpoint = Endpoint::from_shared(uri).map_err(failed)?;
    let endpoint = endpoint.tls_config(tls).map_err(failed)?.connect_timeout(CONNECT_MAX).timeout(patience);
    Ok(AdminClient::new(endpoint.connect().await.map_err(failed)?))
}

fn refused(address: &Address, what: &'static str) -> impl FnOnce(tonic::Status) -> Error {
    let host = address.host.clone();
    move |status| Error::Refused { host, what, status: Box::new(status) }
}

/// How it stands, and the cluster by its word.
///
/// # Errors
/// See [`Error`].
pub async fn status(address: &Address, admin: &Admin) -> Result<StatusReply, Error> {
    let mut client = connect(address, admin, ASK_MAX).await?;
    let answer = client.status(StatusRequest {}).await;
    Ok(answer.map_err(refused(address, "tell its status"))?.into_inner())
}

/// Founds the cluster; returns its id.
///
/// # Errors
/// See [`Error`].
pub async fn found(address: &Address, admin: &Admin) -> Result<String, Error> {
    let mut client = connect(address, admin, CHANGE_MAX).await?;
    let answer = client.init(InitRequest { cluster_id: String::new() }).await;
    Ok(answer.map_err(refused(address, "found the cluster"))?.into_inner().cluster_id)
}

/// Says who is to be a member, unless somebody else has since `generation`; returns whether it was taken.
///
/// # Errors
/// See [`Error`].
pub async fn set_members(
    address: &Address,
    admin: &Admin,
    generation: u64,
    members: Vec<ShapeMember>,
) -> Result<bool, Error> {
    let mut client = connect(address, admin, CHANGE_MAX).await?;
    let answer = client.set_members(SetMembersRequest { expected_generation: generation, members }).await;
    Ok(answer.map_err(refused(address, "set the members"))?.into_inner().accepted)
}

/// Lets another lead; returns who.
///
/// # Errors
/// See [`Error`].
pub async fn hand_over(address: &Address, admin: &Admin) -> Result<String, Error> {
    let mut client = connect(address, admin, CHANGE_MAX).await?;
    let answer = client.handover(HandoverRequest { to: String::new() }).await;
    Ok(answer.map_err(refused(address, "hand over"))?.into_inner().leader)
}
