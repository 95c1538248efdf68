//! How an operator's tool reaches a node: over TLS with an administrator's certificate, or over the node's socket.

use std::path::Path;

use databroker_proto::internal::admin_client::AdminClient;
use http::Uri;

use super::material::Material;
pub use super::{
    dial::{DialError, Open},
    tls::Expected,
};

/// A client of the Admin service, over one connection.
pub struct Connection {
    open: Open,
}

impl Connection {
    /// Connects to any node of the cluster whose certificates these are.
    ///
    /// # Errors
    /// When nobody answers, or one side refuses the other.
    pub async fn tls(address: &str, material: &Material) -> Result<Self, DialError> {
        Ok(Self { open: Open::tls(address, material, Expected::AnyNode).await? })
    }

    /// Connects to the node whose socket this is.
    ///
    /// # Errors
    /// When nobody listens there.
    pub async fn socket(path: &Path) -> Result<Self, DialError> {
        Ok(Self { open: Open::unix(path).await? })
    }

    /// The client.
    pub fn admin(&self) -> AdminClient<Open> {
        AdminClient::with_origin(self.open.clone(), Uri::from_static("https://databroker.internal"))
    }

    /// Why the connection broke, if it did: the node may not like the certificate.
    pub fn broke(&self) -> Option<&DialError> {
        self.open.broke()
    }
}
