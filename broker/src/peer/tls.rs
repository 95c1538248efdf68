//! Mutual TLS 1.3 between members of a cluster. Both sides show a certificate; what counts in it is not a host's name but
//! whom it names in its cluster.
//!
//! Not here: which calls a caller may make (`identity`), where certificates come from (`material`).

use std::sync::Arc;

use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, OtherError, RootCertStore, ServerConfig,
    SignatureScheme,
    client::{
        ResolvesClientCert, Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor,
    },
    crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature},
    server::{
        ClientHello, NoServerSessionStorage, ParsedCertificate, ResolvesServerCert, WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    sign::CertifiedKey,
    version::TLS13,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use super::{
    identity::{self, Identity, Role},
    material::Material,
};

/// Why a certificate that is genuine is refused all the same.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It names nobody.
    #[error(transparent)]
    Nobody(#[from] identity::Error),
    /// It is of another cluster.
    #[error("it belongs to the cluster {found:?}, this is {ours:?}")]
    OtherCluster {
        /// Its.
        found: String,
        /// Ours.
        ours: String,
    },
    /// Another node answers than the one that was dialled.
    #[error("{found} answers where the node {wanted:?} was expected")]
    OtherNode {
        /// Who answers.
        found: Identity,
        /// Who should.
        wanted: String,
    },
    /// An administrator, and the authority is the shared secret.
    #[error("administrators need a certificate of an authority of its own: the shared secret is not enough")]
    DerivedAdmin,
}

impl From<Refusal> for rustls::Error {
    fn from(refusal: Refusal) -> Self {
        Self::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(refusal))))
    }
}

/// Which node is expected to answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expected {
    /// The one of this name.
    Node(String),
    /// Any of the cluster: the first Hello to an address of which no more is known, or a question of an administrator.
    AnyNode,
}

/// Whether a node of `ours` takes this caller.
fn caller_is_welcome(certificate: &[u8], ours: &str, admins: bool) -> Result<(), Refusal> {
    let found = Identity::of_certificate(certificate)?;
    if found.cluster != ours {
        return Err(Refusal::OtherCluster { found: found.cluster, ours: ours.to_owned() });
    }
    if found.role == Role::Admin && !admins { Err(Refusal::DerivedAdmin) } else { Ok(()) }
}

/// Whether this is whom we dialled.
fn answerer_is_expected(certificate: &[u8], ours: &str, expected: &Expected) -> Result<(), Refusal> {
    let found = Identity::of_certificate(certificate)?;
    if found.cluster != ours {
        return Err(Refusal::OtherCluster { found: found.cluster, ours: ours.to_owned() });
    }
    match (expected, &found.role) {
        (Expected::Node(wanted), Role::Node(name)) if wanted == name => Ok(()),
        (Expected::AnyNode, Role::Node(_)) => Ok(()),
        (Expected::Node(wanted), _) => Err(Refusal::OtherNode { found, wanted: wanted.clone() }),
        (Expected::AnyNode, Role::Admin) => Err(Refusal::OtherNode { found, wanted: "any".to_owned() }),
    }
}

/// For the port on which peers and administrators call.
pub(super) fn server_config(material: &Material) -> Result<Arc<ServerConfig>, rustls::Error> {
    let provider = Arc::new(ring::default_provider());
    let verifier =
        Arc::new(Verifier { material: material.clone(), provider: provider.clone(), expected: Expected::AnyNode });
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::new(Shown(material.clone())));
    config.alpn_protocols = vec![b"h2".to_vec()];
    // A resumed session would skip the certificate, which may no longer be trusted.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

/// For a connection to a node.
pub(super) fn client_config(material: &Material, expected: Expected) -> Result<Arc<ClientConfig>, rustls::Error> {
    let provider = Arc::new(ring::default_provider());
    let verifier = Arc::new(Verifier { material: material.clone(), provider: provider.clone(), expected });
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_client_cert_resolver(Arc::new(Shown(material.clone())));
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

/// Shows the current certificate.
#[derive(Debug)]
struct Shown(Material);

impl ResolvesServerCert for Shown {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.now().certified.clone())
    }
}

impl ResolvesClientCert for Shown {
    fn resolve(&self, _hints: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.0.now().certified.clone())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// Verifies the chain as webpki does, with what is trusted now, and then whom the certificate names.
#[derive(Debug)]
struct Verifier {
    material: Material,
    provider: Arc<CryptoProvider>,
    expected: Expected,
}

impl Verifier {
    fn signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn old_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for Verifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let keys = self.material.now();
        let chain = WebPkiClientVerifier::builder_with_provider(keys.roots.clone(), self.provider.clone())
            .build()
            .map_err(|error| rustls::Error::General(error.to_string()))?;
        let verified = chain.verify_client_cert(leaf, intermediates, now)?;
        caller_is_welcome(leaf, &self.material.identity().cluster, keys.admins)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.old_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes()
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let roots: &RootCertStore = &self.material.now().roots;
        let parsed = ParsedCertificate::try_from(leaf)?;
        let algorithms = self.provider.signature_verification_algorithms.all;
        verify_server_cert_signed_by_trust_anchor(&parsed, roots, intermediates, now, algorithms)?;
        answerer_is_expected(leaf, &self.material.identity().cluster, &self.expected)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.old_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes()
    }
}
