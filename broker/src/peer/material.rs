//! What this node shows to peers and whom it trusts: from PEM files, read again when they change, or from the shared
//! secret. Keys are in memory only.
//!
//! Not here: the handshake (`tls`).

use std::{
    fmt, fs, io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use arc_swap::ArcSwap;
use rustls::{RootCertStore, crypto::ring, sign::CertifiedKey};

use super::{
    authority::{self, Authority},
    identity::{self, Identity},
};
use crate::{
    config::PeerFiles,
    jwt::SharedKey,
    net::{PemError, Shown, certificates, certified, watch_files},
};

/// Why there is nothing to show.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Certificate and key.
    #[error(transparent)]
    Files(#[from] PemError),
    /// A certificate cannot be an authority's.
    #[error("cannot use {} as an authority: {source}", path.display())]
    Authority {
        /// The file.
        path: PathBuf,
        /// Why.
        source: rustls::Error,
    },
    /// The certificate names nobody.
    #[error("{}: {source}", path.display())]
    Nameless {
        /// The certificate's file.
        path: PathBuf,
        /// What is wrong with it.
        source: identity::Error,
    },
    /// The certificate is somebody else's.
    #[error("{} is for {found}, but this is {wanted}: make one with `databroker certs`", path.display())]
    Another {
        /// The certificate's file.
        path: PathBuf,
        /// Whom it names.
        found: Identity,
        /// Who this is.
        wanted: Identity,
    },
    /// Nothing can be made from the shared secret.
    #[error(transparent)]
    Make(#[from] authority::Error),
    /// What was made cannot be used.
    #[error("cannot use what was made from the shared secret: {0}")]
    Made(#[source] rustls::Error),
    /// No secret is given.
    #[error("there is neither a certificate for peers nor a shared secret to make one from")]
    NoSecret,
}

/// What to show and whom to trust, now. Clones share it.
#[derive(Clone)]
pub struct Material {
    me: Identity,
    current: Arc<ArcSwap<Keys>>,
}

impl fmt::Debug for Material {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Material({})", self.me)
    }
}

pub(super) struct Keys {
    pub(super) certified: Arc<CertifiedKey>,
    pub(super) roots: Arc<RootCertStore>,
    /// Whether certificates of administrators are worth anything.
    pub(super) admins: bool,
}

impl Material {
    /// What lies in files. It must be for `me`.
    ///
    /// # Errors
    /// When the files cannot be used.
    pub fn from_files(files: &PeerFiles, me: Identity) -> Result<Self, Error> {
        let keys = read(files, &me)?;
        Ok(Self { me, current: Arc::new(ArcSwap::from_pointee(keys)) })
    }

    /// What lies in files that name somebody; who that is.
    ///
    /// # Errors
    /// When the files cannot be used.
    pub fn of_anybody(files: &PeerFiles) -> Result<(Self, Identity), Error> {
        let me = holder(&files.certificate)?;
        Ok((Self::from_files(files, me.clone())?, me))
    }

    /// What can be made from the shared secret. The first secret signs; what any of them signs is trusted, so that nodes
    /// can move from one to the next. Administrators are trusted by none: clients have the secret.
    ///
    /// # Errors
    /// When there is no secret.
    pub fn derived(secrets: &[SharedKey], me: Identity) -> Result<Self, Error> {
        let keys = derive(secrets, &me)?;
        tracing::warn!(
            "peers trust whoever has the shared secret: it could pose as a node. Give the nodes certificates of their \
             own (databroker certs) to change that"
        );
        Ok(Self { me, current: Arc::new(ArcSwap::from_pointee(keys)) })
    }

    /// Reads the files again whenever they change, as long as this is in use. Open connections stay as they are. If the
    /// new ones cannot be used, that is logged, and the old stay.
    pub fn follow(&self, files: &PeerFiles) {
        let (weak, me, again) = (Arc::downgrade(&self.current), self.me.clone(), files.clone());
        watch_files(vec![files.ca.clone(), files.certificate.clone(), files.key.clone()], move || {
            let Some(current) = weak.upgrade() else { return Ok::<_, Error>(()) };
            current.store(Arc::new(read(&again, &me)?));
            Ok(())
        });
    }

    /// Makes everything anew from the shared secrets whenever one of their files changes, as [`Material::derived`] does,
    /// as long as this is in use. Open connections stay as they are. What cannot be read is logged, and the old stays.
    pub fn follow_secrets<E>(
        &self,
        files: Vec<PathBuf>,
        read: impl Fn() -> Result<Vec<SharedKey>, E> + Send + Sync + 'static,
    ) where
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let (weak, me) = (Arc::downgrade(&self.current), self.me.clone());
        watch_files(files, move || {
            let Some(current) = weak.upgrade() else { return Ok(()) };
            current.store(Arc::new(derive(&read().map_err(Into::into)?, &me)?));
            Ok::<_, Box<dyn std::error::Error + Send + Sync>>(())
        });
    }

    /// Whom it shows.
    pub fn identity(&self) -> &Identity {
        &self.me
    }

    /// Gives the certificate that is shown now.
    pub(crate) fn shown(&self) -> Shown {
        let current = self.current.clone();
        Arc::new(move || current.load().certified.clone())
    }

    pub(super) fn now(&self) -> Arc<Keys> {
        self.current.load_full()
    }
}

fn read(files: &PeerFiles, me: &Identity) -> Result<Keys, Error> {
    // First, because it says more than that the key is not the certificate's.
    let found = holder(&files.certificate)?;
    if found != *me {
        return Err(Error::Another { path: files.certificate.clone(), found, wanted: me.clone() });
    }
    warn_if_open(&files.key);
    let certified = certified(&files.certificate, &files.key, &ring::default_provider())?;
    Ok(Keys { certified: Arc::new(certified), roots: Arc::new(roots(&files.ca)?), admins: true })
}

/// Whom the first certificate in a file names.
fn holder(path: &Path) -> Result<Identity, Error> {
    let chain = certificates("a certificate", path)?;
    let leaf = chain.first().map_or(&[][..], AsRef::as_ref);
    Identity::of_certificate(leaf).map_err(|source| Error::Nameless { path: path.to_owned(), source })
}

fn roots(path: &Path) -> Result<RootCertStore, Error> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates("an authority", path)? {
        roots.add(certificate).map_err(|source| Error::Authority { path: path.to_owned(), source })?;
    }
    Ok(roots)
}

/// Only a warning: file systems of containers mount secrets as they like.
fn warn_if_open(key: &Path) {
    let mode = fs::metadata(key).map(|metadata| metadata.permissions().mode());
    if is_open(&mode) {
        tracing::warn!(path = %key.display(), "everybody on this machine can read the private key: make it 0600");
    }
}

fn is_open(mode: &io::Result<u32>) -> bool {
    mode.as_ref().is_ok_and(|mode| mode & 0o007 != 0)
}

fn derive(secrets: &[SharedKey], me: &Identity) -> Result<Keys, Error> {
    let mut authorities =
        secrets.iter().map(|secret| Authority::derived(secret, &me.cluster)).collect::<Result<Vec<_>, _>>()?;
    let mut roots = RootCertStore::empty();
    for authority in &authorities {
        roots.add(authority.certificate().clone()).map_err(Error::Made)?;
    }
    if authorities.is_empty() {
        return Err(Error::NoSecret);
    }
    let issued = authorities.remove(0).issue(me, &[], None)?;
    let made = CertifiedKey::from_der(vec![issued.certificate.clone()], issued.key(), &ring::default_provider());
    Ok(Keys { certified: Arc::new(made.map_err(Error::Made)?), roots: Arc::new(roots), admins: false })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_that_others_can_read_is_noticed() {
        assert!(is_open(&Ok(0o100_644)) && is_open(&Ok(0o100_604)));
        assert!(!is_open(&Ok(0o100_600)) && !is_open(&Ok(0o100_440)));
    }
}
