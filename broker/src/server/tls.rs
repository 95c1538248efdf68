//! TLS towards clients, with a certificate that may be replaced while connections are open.
//!
//! Not here: the handshake and its time-out (`net`).

use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::{
    ServerConfig,
    crypto::{CryptoProvider, ring},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};

use crate::{
    config::TlsFiles,
    net::{PemError, Shown, certified, watch_files},
};

/// Why there is no TLS.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Certificate and key.
    #[error(transparent)]
    Files(#[from] PemError),
    /// The library refuses.
    #[error("cannot set up TLS: {0}")]
    Setup(rustls::Error),
}

/// The configuration of the listener, and what it shows. The files are read again when they change; open connections stay as they are.
///
/// # Errors
/// When the files cannot be used now. Later such an error is logged, and the certificate stays.
pub(super) fn server_config(files: &TlsFiles) -> Result<(Arc<ServerConfig>, Shown), Error> {
    let provider = Arc::new(ring::default_provider());
    let current = Arc::new(ArcSwap::from_pointee(load(files, &provider)?));
    let (weak, again, with) = (Arc::downgrade(&current), files.clone(), provider.clone());
    watch_files(vec![files.certificate.clone(), files.key.clone()], move || {
        let Some(current) = weak.upgrade() else { return Ok::<_, Error>(()) };
        current.store(Arc::new(load(&again, &with)?));
        Ok(())
    });
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(Error::Setup)?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(Current(current.clone())));
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok((Arc::new(config), Arc::new(move || current.load_full())))
}

/// Says whether the files can be used now.
///
/// # Errors
/// When they cannot.
pub(super) fn check(files: &TlsFiles) -> Result<(), Error> {
    load(files, &ring::default_provider()).map(drop)
}

fn load(files: &TlsFiles, provider: &CryptoProvider) -> Result<CertifiedKey, Error> {
    Ok(certified(&files.certificate, &files.key, provider)?)
}

/// Shows the current certificate, whatever name is asked for.
#[derive(Debug)]
struct Current(Arc<ArcSwap<CertifiedKey>>);

impl ResolvesServerCert for Current {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load_full())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn write_pair(files: &TlsFiles) {
        let made = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
        fs::write(&files.certificate, made.cert.pem()).unwrap();
        fs::write(&files.key, made.signing_key.serialize_pem()).unwrap();
    }

    fn files(folder: &tempfile::TempDir) -> TlsFiles {
        TlsFiles { certificate: folder.path().join("cert.pem"), key: folder.path().join("key.pem") }
    }

    #[tokio::test]
    async fn files_that_make_no_pair_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let files = files(&folder);
        assert!(matches!(server_config(&files), Err(Error::Files(PemError::Read { what: "a certificate", .. }))));
        write_pair(&files);
        assert_eq!(server_config(&files).unwrap().0.alpn_protocols, [b"h2"]);
        let other = TlsFiles { certificate: folder.path().join("other.pem"), ..files.clone() };
        write_pair(&other);
        assert!(server_config(&other).is_ok());
        assert!(matches!(server_config(&files), Err(Error::Files(PemError::Pair { .. }))));
        fs::write(&files.key, "nothing").unwrap();
        assert!(matches!(server_config(&files), Err(Error::Files(PemError::Read { what: "a private key", .. }))));
    }
}
