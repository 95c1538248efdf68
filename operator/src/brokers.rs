//! What the operator asks of brokers: how they stand, to found their cluster, who is to be a member, and to hand over.
//! Over mutual TLS, with the operator's own certificate, on connections that are kept from visit to visit: to shake hands would
//! be most of what an operator does that has nothing to do.
//!
//! Not here: what to ask when (`reconcile::plan`).

use std::{
    collections::HashMap,
    net::IpAddr,
    time::{Duration, Instant},
};

use databroker_proto::internal::{
    HandoverRequest, InitRequest, SetMembersRequest, ShapeMember, StatusReply, StatusRequest, admin_client::AdminClient,
};
use tokio::sync::Mutex;
use tonic::{
    Request,
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity},
};

use crate::resources::{pod::PEERS_PORT, secrets::Admin};

/// For a connection and its handshake.
const CONNECT_MAX: Duration = Duration::from_secs(2);
/// For an answer about the status: a broker that takes longer is as good as silent.
const ASK_MAX: Duration = Duration::from_secs(3);
/// For what changes something: the broker holds it while a leader is elected.
const CHANGE_MAX: Duration = Duration::from_secs(15);

/// A connection that no visit has used for so long is of a pod that is gone.
const UNUSED_MAX: Duration = Duration::from_secs(60);
/// Connections that are kept: more than brokers that one operator can look after in time. Beyond that all are made anew.
const KEPT_MAX: usize = 4096;

/// Where a broker is, and who it is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
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

/// A connection, and with what it was made.
struct Kept {
    channel: Channel,
    trusted: String,
    certificate: String,
    used: Instant,
}

/// The ways to brokers.
#[derive(Default)]
pub struct Brokers {
    kept: Mutex<HashMap<Address, Kept>>,
}

impl Brokers {
    async fn client(&self, address: &Address, admin: &Admin) -> Result<AdminClient<Channel>, Error> {
        let now = Instant::now();
        {
            let mut kept = self.kept.lock().await;
            kept.retain(|_, one| now.duration_since(one.used) < UNUSED_MAX);
            if let Some(one) = kept.get_mut(address)
                && one.trusted == admin.trusted
                && one.certificate == admin.pair.certificate
            {
                one.used = now;
                return Ok(AdminClient::new(one.channel.clone()));
            }
        }
        // Not under the lock: others would wait for a broker that does not answer.
        let channel = connect(address, admin).await?;
        let (trusted, certificate) = (admin.trusted.clone(), admin.pair.certificate.clone());
        let one = Kept { channel: channel.clone(), trusted, certificate, used: now };
        let mut kept = self.kept.lock().await;
        if kept.len() >= KEPT_MAX {
            kept.clear();
        }
        kept.insert(address.clone(), one);
        Ok(AdminClient::new(channel))
    }

    /// The answer; after anything else the connection is not used again.
    async fn heard<T>(
        &self,
        address: &Address,
        what: &'static str,
        answer: Result<tonic::Response<T>, tonic::Status>,
    ) -> Result<T, Error> {
        match answer {
            Ok(answer) => Ok(answer.into_inner()),
            Err(status) => {
                self.kept.lock().await.remove(address);
                Err(Error::Refused { host: address.host.clone(), what, status: Box::new(status) })
            }
        }
    }

    /// How it stands, and the cluster by its word.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn status(&self, address: &Address, admin: &Admin) -> Result<StatusReply, Error> {
        let mut client = self.client(address, admin).await?;
        let answer = client.status(within(ASK_MAX, StatusRequest {})).await;
        self.heard(address, "tell its status", answer).await
    }

    /// Founds the cluster; returns its id.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn found(&self, address: &Address, admin: &Admin) -> Result<String, Error> {
        let mut client = self.client(address, admin).await?;
        let answer = client.init(within(CHANGE_MAX, InitRequest { cluster_id: String::new() })).await;
        Ok(self.heard(address, "found the cluster", answer).await?.cluster_id)
    }

    /// Says who is to be a member, unless somebody else has since `generation`; returns whether it was taken.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn set_members(
        &self,
        address: &Address,
        admin: &Admin,
        generation: u64,
        members: Vec<ShapeMember>,
    ) -> Result<bool, Error> {
        let mut client = self.client(address, admin).await?;
        let asked = SetMembersRequest { expected_generation: generation, members };
        let answer = client.set_members(within(CHANGE_MAX, asked)).await;
        Ok(self.heard(address, "set the members", answer).await?.accepted)
    }

    /// Lets another lead; returns who.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn hand_over(&self, address: &Address, admin: &Admin) -> Result<String, Error> {
        let mut client = self.client(address, admin).await?;
        let answer = client.handover(within(CHANGE_MAX, HandoverRequest { to: String::new() })).await;
        Ok(self.heard(address, "hand over", answer).await?.leader)
    }
}

fn within<T>(patience: Duration, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(patience);
    request
}

async fn connect(address: &Address, admin: &Admin) -> Result<Channel, Error> {
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
    let endpoint = endpoint.tls_config(tls).map_err(failed)?.connect_timeout(CONNECT_MAX).timeout(CHANGE_MAX);
    endpoint.connect().await.map_err(failed)
}
