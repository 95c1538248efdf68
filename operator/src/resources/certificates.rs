//! Certificates that the operator makes: one authority per `Databroker`, a certificate for each broker, one for clients'
//! connections, and one for the operator itself. Each is renewed once a third of its life is left, and brokers read them
//! again when they change.
//!
//! An authority is replaced in three moves, so that at no moment one broker shows what another does not trust: the next
//! one is made and trusted; a day later it signs; the old one is trusted until it ends.
//!
//! Not here: which Secrets they lie in (`secrets`).

use std::time::Duration;

use jiff::Timestamp;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType, string::Ia5String,
};
use rustls::pki_types::{CertificateDer, pem::PemObject as _};
use x509_parser::prelude::{FromDer as _, GeneralName, ParsedExtension, X509Certificate};

const DAY: Duration = Duration::from_secs(24 * 3600);

/// How long an authority is good.
const AUTHORITY_LIFE: Duration = Duration::from_secs(3650 * 24 * 3600);
/// How long what it signs is.
const LEAF_LIFE: Duration = Duration::from_secs(90 * 24 * 3600);
/// How long a new authority is trusted before it signs: every broker has it by then.
const TRUSTED_FIRST: Duration = DAY;
/// Clocks differ.
const BACKDATED: Duration = Duration::from_secs(3600);

/// Why nothing can be made or read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The library refuses.
    #[error("cannot make a certificate: {0}")]
    Make(#[from] rcgen::Error),
    /// A date beyond what certificates can have.
    #[error("the clock is out of range: {0}")]
    Clock(String),
}

/// A certificate and its private key, as PEM.
#[derive(Clone, PartialEq, Eq)]
pub struct Pair {
    /// The certificate.
    pub certificate: String,
    /// Its key.
    pub key: String,
}

impl std::fmt::Debug for Pair {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pair").field("certificate", &self.certificate).finish_non_exhaustive()
    }
}

/// The authorities of one `Databroker`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authorities {
    /// Signs.
    pub current: Pair,
    /// Will sign.
    pub next: Option<Pair>,
    /// Signed: its certificate, trusted until it ends.
    pub previous: Option<String>,
}

/// Whom a certificate is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subject {
    /// What it is called, for people.
    pub common_name: String,
    /// Who it is in the cluster; absent: nobody.
    pub uri: Option<String>,
    /// Hosts that it answers for.
    pub dns: Vec<String>,
    /// Whether it answers.
    pub server: bool,
    /// Whether it calls.
    pub client: bool,
}

/// What can be read of a certificate.
struct Read {
    begins: i64,
    ends: i64,
    uris: Vec<String>,
    dns: Vec<String>,
    key: Vec<u8>,
    signer: Option<Vec<u8>>,
    own: Option<Vec<u8>>,
}

fn read(pem: &str) -> Option<Read> {
    let der = CertificateDer::from_pem_slice(pem.as_bytes()).ok()?;
    let (_, certificate) = X509Certificate::from_der(&der).ok()?;
    let (mut uris, mut dns, mut signer, mut own) = (Vec::new(), Vec::new(), None, None);
    for extension in certificate.extensions() {
        match extension.parsed_extension() {
            ParsedExtension::SubjectAlternativeName(names) => {
                for name in &names.general_names {
                    match name {
                        GeneralName::URI(uri) => uris.push((*uri).to_owned()),
                        GeneralName::DNSName(name) => dns.push((*name).to_owned()),
                        _ => {}
                    }
                }
            }
            ParsedExtension::AuthorityKeyIdentifier(id) => {
                signer = id.key_identifier.as_ref().map(|id| id.0.to_vec());
            }
            ParsedExtension::SubjectKeyIdentifier(id) => own = Some(id.0.to_vec()),
            _ => {}
        }
    }
    let validity = certificate.validity();
    Some(Read {
        begins: validity.not_before.timestamp(),
        ends: validity.not_after.timestamp(),
        uris,
        dns,
        key: certificate.public_key().subject_public_key.data.to_vec(),
        signer,
        own,
    })
}

/// When a certificate ends, if it is one.
pub fn not_after(pem: &str) -> Option<Timestamp> {
    Timestamp::from_second(read(pem)?.ends).ok()
}

fn is_due(read: &Read, now: Timestamp) -> bool {
    // A third of its life is left.
    read.ends - now.as_second() < (read.ends - read.begins) / 3
}

fn is_pair(read: &Read, key: &str) -> bool {
    KeyPair::from_pem(key).is_ok_and(|key| key.public_key_raw() == read.key)
}

fn dates(params: &mut CertificateParams, now: Timestamp, life: Duration) -> Result<(), Error> {
    let clock = |error: jiff::Error| Error::Clock(error.to_string());
    let begins = now.checked_sub(BACKDATED).map_err(clock)?;
    let ends = now.checked_add(life).map_err(clock)?;
    params.not_before = std::time::SystemTime::from(begins).into();
    params.not_after = std::time::SystemTime::from(ends).into();
    Ok(())
}

fn authority(cluster: &str, now: Timestamp) -> Result<Pair, Error> {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, format!("{cluster} databroker authority"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    dates(&mut params, now, AUTHORITY_LIFE)?;
    let key = KeyPair::generate()?;
    Ok(Pair { certificate: params.self_signed(&key)?.pem(), key: key.serialize_pem() })
}

impl Authorities {
    /// What is there, brought up to now: made, replaced step by step, or left.
    ///
    /// # Errors
    /// The library refuses.
    pub fn renew(found: Option<Self>, cluster: &str, now: Timestamp) -> Result<Self, Error> {
        let usable = |pair: &Pair| {
            let read = read(&pair.certificate)?;
            (read.ends > now.as_second() && is_pair(&read, &pair.key)).then_some(read)
        };
        let Some((found, current)) = found.and_then(|found| usable(&found.current).map(|read| (found, read))) else {
            return Ok(Self { current: authority(cluster, now)?, next: None, previous: None });
        };
        let previous = found.previous.filter(|pem| read(pem).is_some_and(|read| read.ends > now.as_second()));
        let next = found.next.and_then(|pair| usable(&pair).map(|read| (pair, read)));
        let trusted_for = |read: &Read| now.as_second() - read.begins - BACKDATED.as_secs().cast_signed();
        match next {
            Some((next, read)) if trusted_for(&read) >= TRUSTED_FIRST.as_secs().cast_signed() => {
                Ok(Self { current: next, next: None, previous: Some(found.current.certificate) })
            }
            Some((next, _)) => Ok(Self { current: found.current, next: Some(next), previous }),
            None if is_due(&current, now) => {
                Ok(Self { current: found.current, next: Some(authority(cluster, now)?), previous })
            }
            None => Ok(Self { current: found.current, next: None, previous }),
        }
    }

    /// All that are trusted, one after the other.
    pub fn bundle(&self) -> String {
        let next = self.next.as_ref().map(|pair| pair.certificate.as_str());
        [Some(self.current.certificate.as_str()), next, self.previous.as_deref()].into_iter().flatten().collect()
    }

    /// What is there for a subject, or a new one if that is not good for long any more, for somebody else, or of another
    /// authority.
    ///
    /// # Errors
    /// The library refuses.
    pub fn issue(&self, found: Option<Pair>, subject: &Subject, now: Timestamp) -> Result<Pair, Error> {
        match found.filter(|found| self.is_good(found, subject, now)) {
            Some(found) => Ok(found),
            None => self.make(subject, now),
        }
    }

    fn is_good(&self, found: &Pair, subject: &Subject, now: Timestamp) -> bool {
        let (Some(leaf), Some(authority)) = (read(&found.certificate), read(&self.current.certificate)) else {
            return false;
        };
        !is_due(&leaf, now)
            && leaf.begins <= now.as_second()
            && leaf.signer.is_some()
            && leaf.signer == authority.own
            && leaf.uris.iter().eq(subject.uri.iter())
            && leaf.dns == subject.dns
            && is_pair(&leaf, &found.key)
    }

    fn make(&self, subject: &Subject, now: Timestamp) -> Result<Pair, Error> {
        let issuer = Issuer::from_ca_cert_pem(&self.current.certificate, KeyPair::from_pem(&self.current.key)?)?;
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, subject.common_name.clone());
        if let Some(uri) = &subject.uri {
            params.subject_alt_names.push(SanType::URI(Ia5String::try_from(uri.as_str())?));
        }
        for name in &subject.dns {
            params.subject_alt_names.push(SanType::DnsName(Ia5String::try_from(name.as_str())?));
        }
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        let usages = [
            (subject.server, ExtendedKeyUsagePurpose::ServerAuth),
            (subject.client, ExtendedKeyUsagePurpose::ClientAuth),
        ];
        params.extended_key_usages = usages.into_iter().filter(|(wanted, _)| *wanted).map(|(_, usage)| usage).collect();
        params.use_authority_key_identifier_extension = true;
        dates(&mut params, now, LEAF_LIFE)?;
        let key = KeyPair::generate()?;
        Ok(Pair { certificate: params.signed_by(&key, &issuer)?.pem(), key: key.serialize_pem() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(days: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + days * 86_400).unwrap()
    }

    fn subject() -> Subject {
        Subject {
            common_name: "main-0".into(),
            uri: Some("databroker://access.main/node/main-0".into()),
            dns: vec!["main-0.main-headless.access.svc".into()],
            server: true,
            client: true,
        }
    }

    #[test]
    fn a_certificate_stays_until_a_third_of_its_life_is_left() {
        let authorities = Authorities::renew(None, "access.main", at(0)).unwrap();
        let first = authorities.issue(None, &subject(), at(0)).unwrap();
        assert_eq!(authorities.issue(Some(first.clone()), &subject(), at(59)).unwrap(), first);
        assert_ne!(authorities.issue(Some(first.clone()), &subject(), at(61)).unwrap(), first);
        assert_eq!(not_after(&first.certificate), Some(at(90)));
    }

    #[test]
    fn a_certificate_of_somebody_else_or_without_its_key_is_replaced() {
        let authorities = Authorities::renew(None, "access.main", at(0)).unwrap();
        let first = authorities.issue(None, &subject(), at(0)).unwrap();
        let other = Subject { uri: Some("databroker://access.main/node/main-1".into()), ..subject() };
        assert_ne!(authorities.issue(Some(first.clone()), &other, at(1)).unwrap(), first);
        let moved = Subject { dns: vec!["elsewhere".into()], ..subject() };
        assert_ne!(authorities.issue(Some(first.clone()), &moved, at(1)).unwrap(), first);
        let mixed = Pair { key: authorities.current.key.clone(), ..first.clone() };
        assert_ne!(authorities.issue(Some(mixed.clone()), &subject(), at(1)).unwrap(), mixed);
        let another = Authorities::renew(None, "access.main", at(0)).unwrap();
        assert_ne!(another.issue(Some(first.clone()), &subject(), at(1)).unwrap(), first);
    }

    #[test]
    fn an_authority_is_trusted_before_it_signs_and_after_it_has() {
        let began = Authorities::renew(None, "c", at(0)).unwrap();
        assert_eq!(Authorities::renew(Some(began.clone()), "c", at(2000)).unwrap(), began);
        let both = Authorities::renew(Some(began.clone()), "c", at(2500)).unwrap();
        assert!(both.current == began.current && both.next.is_some());
        assert_eq!(both.bundle().matches("BEGIN").count(), 2);
        assert_eq!(Authorities::renew(Some(both.clone()), "c", at(2500)).unwrap(), both);
        let after = Authorities::renew(Some(both.clone()), "c", at(2501)).unwrap();
        assert_eq!(Some(&after.current), both.next.as_ref());
        assert_eq!(after.previous.as_ref(), Some(&began.current.certificate));
        let leaf = began.issue(None, &subject(), at(2490)).unwrap();
        assert_ne!(after.issue(Some(leaf.clone()), &subject(), at(2501)).unwrap(), leaf);
        let ended = Authorities::renew(Some(after), "c", at(3651)).unwrap();
        assert_eq!((ended.bundle(), ended.previous), (both.next.unwrap().certificate, None));
    }

    #[test]
    fn keys_are_not_shown() {
        let authorities = Authorities::renew(None, "c", at(0)).unwrap();
        assert!(!format!("{authorities:?}").contains("PRIVATE"));
    }
}
