//! Who a certificate is for, and what that allows. Pure.
//!
//! A certificate binds the cluster's name and the node's *name*: numbers are for single lives of a disk, and stand in the
//! messages.
//! Not here: whether the certificate is genuine (`tls`), and how one is made (`authority`).

use std::fmt;

use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

/// How an identity begins, as a URI in the subject's alternative names.
const SCHEME: &str = "databroker://";

/// A name must fit into a URI, a file's name and a column; this is as long as a DNS name.
const NAME_BYTES_MAX: usize = 253;

/// What the Raft service is called on the wire.
pub const RAFT_SERVICE: &str = "databroker.internal.v1.Raft";
/// What the Admin service is called on the wire.
pub const ADMIN_SERVICE: &str = "databroker.internal.v1.Admin";

/// Whom a certificate names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The cluster's name.
    pub cluster: String,
    /// As what.
    pub role: Role,
}

/// As what somebody belongs to a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Role {
    /// The node of this name.
    Node(String),
    /// An operator, a person or a program.
    Admin,
}

/// Why a certificate names nobody.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Not X.509.
    #[error("the certificate cannot be read: {reason}")]
    Unreadable {
        /// What is wrong.
        reason: String,
    },
    /// No URI of ours.
    #[error("the certificate names no member of a cluster (a URI databroker://CLUSTER/node/NAME or …/admin)")]
    Nobody,
    /// It is not clear who.
    #[error("the certificate names more than one member of a cluster")]
    Several,
    /// The URI says something else.
    #[error("the certificate's {uri:?} names neither a node nor an administrator of a cluster")]
    Malformed {
        /// As it stands there.
        uri: String,
    },
}

impl Identity {
    /// The node of this name.
    pub fn node(cluster: &str, name: &str) -> Self {
        Self { cluster: cluster.to_owned(), role: Role::Node(name.to_owned()) }
    }

    /// An administrator.
    pub fn admin(cluster: &str) -> Self {
        Self { cluster: cluster.to_owned(), role: Role::Admin }
    }

    /// The one identity in a DER-encoded certificate.
    ///
    /// # Errors
    /// When there is none, or more than one, or it makes no sense.
    pub fn of_certificate(der: &[u8]) -> Result<Self, Error> {
        let unreadable = |reason: String| Error::Unreadable { reason };
        let (_, certificate) = X509Certificate::from_der(der).map_err(|error| unreadable(error.to_string()))?;
        let names = certificate.subject_alternative_name().map_err(|error| unreadable(error.to_string()))?;
        let names = names.map(|names| names.value.general_names.as_slice()).unwrap_or_default();
        let mut ours = names.iter().filter_map(|name| match name {
            GeneralName::URI(uri) if uri.starts_with(SCHEME) => Some(*uri),
            _ => None,
        });
        match (ours.next(), ours.next()) {
            (None, _) => Err(Error::Nobody),
            (Some(uri), None) => Self::parse(uri),
            (Some(_), Some(_)) => Err(Error::Several),
        }
    }

    fn parse(uri: &str) -> Result<Self, Error> {
        let malformed = || Error::Malformed { uri: uri.chars().take(NAME_BYTES_MAX).collect() };
        let (cluster, role) = uri.strip_prefix(SCHEME).and_then(|rest| rest.split_once('/')).ok_or_else(malformed)?;
        let role = match role.split_once('/') {
            None if role == "admin" => Role::Admin,
            Some(("node", name)) if is_name(name) => Role::Node(name.to_owned()),
            _ => return Err(malformed()),
        };
        if is_name(cluster) { Ok(Self { cluster: cluster.to_owned(), role }) } else { Err(malformed()) }
    }

    /// Whether this caller may call `/service/method`. The whole table: nodes speak Raft and look at the status,
    /// administrators administer, and nobody does both.
    pub fn may(&self, path: &str) -> bool {
        let Some((service, method)) = path.strip_prefix('/').and_then(|path| path.split_once('/')) else {
            return false;
        };
        match (&self.role, service) {
            (Role::Node(_), RAFT_SERVICE) | (Role::Admin, ADMIN_SERVICE) => true,
            (Role::Node(_), ADMIN_SERVICE) => method == "Status",
            _ => false,
        }
    }
}

/// As it stands in certificates.
impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.role {
            Role::Node(name) => write!(f, "{SCHEME}{}/node/{name}", self.cluster),
            Role::Admin => write!(f, "{SCHEME}{}/admin", self.cluster),
        }
    }
}

/// Whether a text can be the name of a node or a cluster: letters, digits, `-`, `_` and `.`, not first.
pub fn is_name(text: &str) -> bool {
    let first = text.chars().next().is_some_and(|c| c.is_ascii_alphanumeric());
    first && text.len() <= NAME_BYTES_MAX && text.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, SanType, string::Ia5String};

    use super::*;

    fn certificate(uris: &[&str]) -> Vec<u8> {
        let mut params = CertificateParams::new(vec!["host".to_owned()]).unwrap();
        let uris = uris.iter().map(|uri| SanType::URI(Ia5String::try_from(*uri).unwrap()));
        params.subject_alt_names.extend(uris);
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().to_vec()
    }

    #[test]
    fn a_certificate_names_exactly_one_member() {
        let of = |uris: &[&str]| Identity::of_certificate(&certificate(uris));
        assert_eq!(of(&["databroker://c/node/a-1"]), Ok(Identity::node("c", "a-1")));
        assert_eq!(of(&["databroker://c/admin", "https://x"]), Ok(Identity::admin("c")));
        assert_eq!(of(&[]), Err(Error::Nobody));
        assert_eq!(of(&["spiffe://c/node/a"]), Err(Error::Nobody));
        assert_eq!(of(&["databroker://c/admin", "databroker://c/node/a"]), Err(Error::Several));
        let long = format!("databroker://c/node/{}", "a".repeat(300));
        for bad in ["", "c", "c/", "/admin", "c/node", "c/node/", "c/node/a/b", "c/admin/", "c/root", "c/node/a%20"] {
            assert!(matches!(of(&[&format!("databroker://{bad}")]), Err(Error::Malformed { .. })), "{bad}");
        }
        assert!(matches!(of(&[&long]), Err(Error::Malformed { .. })));
        assert!(matches!(Identity::of_certificate(b"nothing"), Err(Error::Unreadable { .. })));
    }

    #[test]
    fn an_identity_is_written_as_it_is_read() {
        for identity in [Identity::node("c", "a"), Identity::admin("c")] {
            assert_eq!(Identity::parse(&identity.to_string()), Ok(identity));
        }
    }

    #[test]
    fn nodes_speak_raft_and_administrators_administer() {
        let (node, admin) = (Identity::node("c", "a"), Identity::admin("c"));
        for (path, as_node, as_admin) in [
            ("/databroker.internal.v1.Raft/Call", true, false),
            ("/databroker.internal.v1.Raft/InstallSnapshot", true, false),
            ("/databroker.internal.v1.Admin/Status", true, true),
            ("/databroker.internal.v1.Admin/Init", false, true),
            ("/databroker.internal.v1.Admin/SetMembers", false, true),
            ("/databroker.internal.v1.Admin/Handover", false, true),
            ("/databroker.DataBrokerService/Get", false, false),
            ("/grpc.health.v1.Health/Check", false, false),
            ("databroker.internal.v1.Raft", false, false),
            ("/", false, false),
        ] {
            assert_eq!((node.may(path), admin.may(path)), (as_node, as_admin), "{path}");
        }
    }
}
