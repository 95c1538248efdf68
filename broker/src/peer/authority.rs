//! Makes certificates: an authority, and what it issues to nodes and administrators.
//!
//! Not here: where they lie (`cli::certs` writes files, `material` reads them).

use std::{
    net::IpAddr,
    time::{Duration, SystemTime},
};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType, SerialNumber, string::Ia5String,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use super::identity::{Identity, Role};
use crate::jwt::SharedKey;

/// Clocks of machines differ: what is made now is already valid on one that is behind.
const CLOCK_SKEW_MAX: Duration = Duration::from_secs(3600);

/// A hundred years: certificates have four digits for the year.
pub const VALID_FOR_MAX: Duration = Duration::from_secs(36_500 * 24 * 3600);

/// What stands before the 32 bytes of an Ed25519 key in PKCS #8 (RFC 8410, section 7).
const ED25519_PKCS8: [u8; 16] =
    [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];

/// Why a certificate cannot be made.
#[derive(Debug, thiserror::Error)]
#[error("cannot make {what}: {source}")]
pub struct Error {
    /// Whose.
    pub what: String,
    /// Why.
    #[source]
    pub source: rcgen::Error,
}

/// Whoever signs the certificates of a cluster.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
}

/// A certificate and its key.
pub struct Issued {
    /// In DER.
    pub certificate: CertificateDer<'static>,
    /// The certificate as a PEM file has it.
    pub certificate_pem: String,
    key: KeyPair,
}

impl Issued {
    /// The private key in DER.
    pub fn key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.key.serialize_der()))
    }

    /// The private key as a PEM file has it.
    pub fn key_pem(&self) -> String {
        self.key.serialize_pem()
    }
}

impl Authority {
    /// A new authority, and what to keep of it.
    ///
    /// # Errors
    /// When the system gives no random numbers.
    pub fn make(cluster: &str, valid_for: Duration) -> Result<(Self, Issued), Error> {
        let what = || format!("an authority for {cluster:?}");
        let failed = |source| Error { what: what(), source };
        let key = KeyPair::generate().map_err(failed)?;
        let mut params = authority(cluster);
        limit(&mut params, valid_for);
        let made = params.self_signed(&key).map_err(failed)?;
        let (certificate, certificate_pem) = (made.der().clone(), made.pem());
        let kept = KeyPair::from_pem(&key.serialize_pem()).map_err(failed)?;
        let issued = Issued { certificate: certificate.clone(), certificate_pem, key };
        Ok((Self { issuer: Issuer::new(params, kept), certificate }, issued))
    }

    /// The authority in two PEM files.
    ///
    /// # Errors
    /// When they hold anything else.
    pub fn from_pem(certificate: &str, key: &str) -> Result<Self, Error> {
        let failed = |source| Error { what: "anything with this authority".to_owned(), source };
        let der = pem_certificate(certificate).map_err(failed)?;
        let key = KeyPair::from_pem(key).map_err(failed)?;
        Ok(Self { issuer: Issuer::from_ca_cert_der(&der, key).map_err(failed)?, certificate: der })
    }

    /// The authority that everybody has who has the shared secret: the same one on every node, byte by byte.
    ///
    /// # Errors
    /// Never in practice: any 32 bytes are a key.
    pub fn derived(secret: &SharedKey, cluster: &str) -> Result<Self, Error> {
        let failed = |source| Error { what: "an authority from the shared secret".to_owned(), source };
        let seed = secret.derive(&[b"peers authority, ed25519: ", cluster.as_bytes()]);
        let pkcs8 = PrivatePkcs8KeyDer::from([&ED25519_PKCS8[..], &seed].concat());
        let key = KeyPair::from_pkcs8_der_and_sign_algo(&pkcs8, &rcgen::PKCS_ED25519).map_err(failed)?;
        let mut params = authority(cluster);
        params.serial_number = Some(SerialNumber::from(1));
        let certificate = params.self_signed(&key).map_err(failed)?.der().clone();
        Ok(Self { issuer: Issuer::new(params, key), certificate })
    }

    /// The certificate of the authority itself.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// A certificate, with a new key. `hosts` are for tools that look for the name they dialled; peers do not.
    /// Without `valid_for` it never expires: for keys that never leave the process.
    ///
    /// # Errors
    /// When a host is no name, or the system gives no random numbers.
    pub fn issue(&self, identity: &Identity, hosts: &[String], valid_for: Option<Duration>) -> Result<Issued, Error> {
        let failed = |source| Error { what: format!("a certificate for {identity}"), source };
        let mut params = CertificateParams::default();
        params.distinguished_name.push(
            DnType::CommonName,
            match &identity.role {
                Role::Node(name) => name.clone(),
                Role::Admin => "admin".to_owned(),
            },
        );
        params.distinguished_name.push(DnType::OrganizationName, identity.cluster.clone());
        let uri = Ia5String::try_from(identity.to_string()).map_err(failed)?;
        params.subject_alt_names.push(SanType::URI(uri));
        for host in hosts {
            params.subject_alt_names.push(host_name(host).map_err(failed)?);
        }
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        // An administrator has no business in answering.
        if identity.role != Role::Admin {
            params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
        }
        params.use_authority_key_identifier_extension = true;
        if let Some(valid_for) = valid_for {
            limit(&mut params, valid_for);
        }
        let key = KeyPair::generate().map_err(failed)?;
        let made = params.signed_by(&key, &self.issuer).map_err(failed)?;
        Ok(Issued { certificate: made.der().clone(), certificate_pem: made.pem(), key })
    }
}

fn authority(cluster: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, format!("{cluster} databroker authority"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn limit(params: &mut CertificateParams, valid_for: Duration) {
    let now = SystemTime::now();
    params.not_before = now.checked_sub(CLOCK_SKEW_MAX).unwrap_or(now).into();
    params.not_after = now.checked_add(valid_for.min(VALID_FOR_MAX)).unwrap_or(now).into();
}

fn host_name(host: &str) -> Result<SanType, rcgen::Error> {
    match host.parse::<IpAddr>() {
        Ok(address) => Ok(SanType::IpAddress(address)),
        Err(_) => Ok(SanType::DnsName(Ia5String::try_from(host)?)),
    }
}

fn pem_certificate(text: &str) -> Result<CertificateDer<'static>, rcgen::Error> {
    use rustls_pki_types::pem::PemObject as _;
    CertificateDer::from_pem_slice(text.as_bytes()).map_err(|_| rcgen::Error::CouldNotParseCertificate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_derived_authority_is_the_same_everywhere_and_of_one_secret_and_cluster() {
        let of = |byte, cluster| {
            let authority = Authority::derived(&SharedKey::from_bytes([byte; 32]), cluster).unwrap();
            authority.certificate().to_vec()
        };
        assert_eq!(of(1, "c"), of(1, "c"));
        assert_ne!(of(1, "c"), of(2, "c"));
        assert_ne!(of(1, "c"), of(1, "d"));
    }
}
