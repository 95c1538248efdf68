//! Certificates and keys in PEM files.
//!
//! Not here: whom a certificate names, and who trusts it.

use std::path::{Path, PathBuf};

use rustls::{crypto::CryptoProvider, sign::CertifiedKey};
use rustls_pki_types::{
    CertificateDer, PrivateKeyDer,
    pem::{Error as Reason, PemObject as _},
};

/// Why files cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PemError {
    /// A file cannot be read, or has nothing of the kind in it.
    #[error("cannot read {what} from {}: {source}", path.display())]
    Read {
        /// What should be in it.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: Reason,
    },
    /// Certificate and key do not make a pair.
    #[error("cannot use the certificate {} with the key {}: {source}", certificate.display(), key.display())]
    Pair {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// Why.
        source: rustls::Error,
    },
}

/// All certificates in a file, at least one.
///
/// # Errors
/// [`PemError::Read`].
pub(crate) fn certificates(what: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, PemError> {
    let failed = |source| PemError::Read { what, path: path.to_owned(), source };
    let found = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>).map_err(failed)?;
    if found.is_empty() { Err(failed(Reason::NoItemsFound)) } else { Ok(found) }
}

/// A chain from one file with the key from another.
///
/// # Errors
/// See [`PemError`].
pub(crate) fn certified(certificate: &Path, key: &Path, provider: &CryptoProvider) -> Result<CertifiedKey, PemError> {
    let chain = certificates("a certificate", certificate)?;
    let private = PrivateKeyDer::from_pem_file(key);
    let private = private.map_err(|source| PemError::Read { what: "a private key", path: key.to_owned(), source })?;
    let pair = |source| PemError::Pair { certificate: certificate.to_owned(), key: key.to_owned(), source };
    CertifiedKey::from_der(chain, private, provider).map_err(pair)
}
