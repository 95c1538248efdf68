//! Who may call: every request but health and reflection shows a token signed with an accepted key.
//!
//! A tower layer, because it has to see the path. A stream is looked at when it opens, not later.
//! Not here: what a token looks like (`jwt`).

use std::{
    collections::HashMap,
    fs, io,
    path::PathBuf,
    sync::Arc,
    task::{Context, Poll},
    time::SystemTime,
};

use arc_swap::ArcSwap;
use futures::future::{Either, Ready, ready};
use http::{Request, Response};
use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;
use tonic::{Status, body::Body};
use tower::{Layer, Service};

use super::status::Error;
use crate::{
    config::{Secret, Secrets},
    jwt::{Expiry, METADATA_KEY, MalformedKey, SharedKey, Verifier},
    net::{Standing, watch_files},
};

/// Paths that need no token.
const OPEN: &[&str] = &["/grpc.health.v1.Health/", "/grpc.reflection.v1.", "/grpc.reflection.v1alpha."];

/// Whether this path needs no token.
pub(super) fn is_open(path: &str) -> bool {
    OPEN.iter().any(|prefix| path.starts_with(prefix))
}

/// How many verified tokens are remembered. Tokens minted in the same second are equal, and clients mint a new one for
/// each call: this is room for the tokens of some minutes.
const REMEMBERED_MAX: usize = 1024;

/// A longer token proves nothing: the claims leave no room for it.
const TOKEN_BYTES_MAX: usize = 1024;

/// Why there are no keys.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file cannot be read.
    #[error("cannot read the shared secret from {}: {source}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file holds something else.
    #[error("{}: {source}", path.display())]
    Malformed {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        source: MalformedKey,
    },
}

/// A key from where the configuration says it is.
///
/// # Errors
/// When a file cannot be read or holds no key.
pub fn read_key(secret: &Secret) -> Result<SharedKey, KeyError> {
    match secret {
        Secret::Given(key) => Ok(key.clone()),
        Secret::File(path) => {
            let content = fs::read(path).map_err(|source| KeyError::Read { path: path.clone(), source })?;
            let key = SharedKey::parse_file(&content);
            key.map_err(|source| KeyError::Malformed { path: path.clone(), source })
        }
    }
}

/// The accepted keys. Cloning shares them.
#[derive(Clone)]
pub(super) struct Keys(Arc<ArcSwap<Accepted>>);

/// One set of keys, and what was verified with it.
struct Accepted {
    verifiers: Vec<Verifier>,
    verified: Mutex<HashMap<Box<[u8]>, Expiry>>,
}

impl Keys {
    /// Reads the keys; those from files are read again when they change, until the returned keys are dropped.
    ///
    /// # Errors
    /// When a key cannot be read now. Later such an error is logged, and the keys stay.
    pub(super) fn load(secrets: &Secrets) -> Result<Self, KeyError> {
        let keys = Self(Arc::new(ArcSwap::from_pointee(Accepted::read(secrets)?)));
        let (weak, secrets) = (Arc::downgrade(&keys.0), secrets.clone());
        watch_files(secrets.files(), move || {
            let Some(keys) = weak.upgrade() else { return Ok::<_, KeyError>(()) };
            keys.store(Arc::new(Accepted::read(&secrets)?));
            Ok(())
        });
        Ok(keys)
    }

    /// Whether the request shows a good token. Of several values the first counts.
    fn admit<B>(&self, request: &Request<B>, now: SystemTime) -> Result<(), Error> {
        if is_open(request.uri().path()) {
            return Ok(());
        }
        let token = request.headers().get(METADATA_KEY).ok_or(Error::NoToken)?;
        if self.0.load().accepts(token.as_bytes(), now) { Ok(()) } else { Err(Error::BadToken) }
    }
}

impl Accepted {
    fn read(secrets: &Secrets) -> Result<Self, KeyError> {
        let verifiers = secrets.all().map(|secret| Ok(Verifier::new(&read_key(secret)?))).collect::<Result<_, _>>()?;
        Ok(Self { verifiers, verified: Mutex::default() })
    }

    fn accepts(&self, token: &[u8], now: SystemTime) -> bool {
        if let Some(expiry) = self.verified.lock().get(token) {
            return !expiry.passed(now);
        }
        if token.len() > TOKEN_BYTES_MAX {
            return false;
        }
        let expiry = self.verifiers.iter().find_map(|verifier| verifier.expiry(token).ok());
        let Some(expiry) = expiry.filter(|expiry| !expiry.passed(now)) else { return false };
        let mut verified = self.verified.lock();
        if verified.len() >= REMEMBERED_MAX {
            verified.clear();
        }
        verified.insert(token.into(), expiry);
        true
    }
}

/// Puts the check before a service.
#[derive(Clone)]
pub(super) struct AuthLayer {
    pub(super) keys: Keys,
    pub(super) refused: Counter,
}

impl<S> Layer<S> for AuthLayer {
    type Service = Auth<S>;

    fn layer(&self, inner: S) -> Auth<S> {
        Auth { inner, layer: self.clone() }
    }
}

/// A service with the check before it.
#[derive(Clone)]
pub(super) struct Auth<S> {
    inner: S,
    layer: AuthLayer,
}

impl<S, B> Service<Request<B>> for Auth<S>
where
    S: Service<Request<B>, Response = Response<Body>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Either<S::Future, Ready<Result<S::Response, S::Error>>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        match self.layer.keys.admit(&request, SystemTime::now()) {
            Ok(()) => {
                if !is_open(request.uri().path())
                    && let Some(standing) = request.extensions().get::<Standing>()
                {
                    standing.vouch();
                }
                Either::Left(self.inner.call(request))
            }
            Err(error) => {
                self.layer.refused.inc();
                Either::Right(ready(Ok(Status::from(error).into_http())))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::jwt::Signer;

    const NOW: SystemTime = SystemTime::UNIX_EPOCH;

    fn key(byte: u8) -> SharedKey {
        SharedKey::from_bytes([byte; 32])
    }

    fn keys(secrets: &[u8]) -> Keys {
        let mut secrets = secrets.iter().map(|byte| Secret::Given(key(*byte)));
        let secrets = Secrets { current: secrets.next(), previous: secrets.next() };
        Keys(Arc::new(ArcSwap::from_pointee(Accepted::read(&secrets).unwrap())))
    }

    fn request(path: &str, tokens: &[&str]) -> Request<()> {
        let mut request = Request::builder().uri(format!("http://h{path}"));
        for token in tokens {
            request = request.header(METADATA_KEY, *token);
        }
        request.body(()).unwrap()
    }

    fn token(byte: u8) -> String {
        Signer::new(&key(byte)).sign(NOW).unwrap()
    }

    const GET: &str = "/databroker.DataBrokerService/Get";

    #[test]
    fn every_method_but_health_and_reflection_needs_a_token() {
        let keys = keys(&[1]);
        for path in [GET, "/databroker.CheckpointService/GetCheckpoint", "/registry.Registry/List", "/x/y", "/"] {
            assert!(matches!(keys.admit(&request(path, &[]), NOW), Err(Error::NoToken)), "{path}");
        }
        for path in [
            "/grpc.health.v1.Health/Check",
            "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
            "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        ] {
            assert!(keys.admit(&request(path, &[]), NOW).is_ok(), "{path}");
        }
    }

    #[test]
    fn either_key_is_accepted_and_no_other() {
        let keys = keys(&[1, 2]);
        assert!(keys.admit(&request(GET, &[&token(1)]), NOW).is_ok());
        assert!(keys.admit(&request(GET, &[&token(2)]), NOW).is_ok());
        assert!(matches!(keys.admit(&request(GET, &[&token(3)]), NOW), Err(Error::BadToken)));
    }

    #[test]
    fn the_first_value_counts() {
        let keys = keys(&[1]);
        assert!(keys.admit(&request(GET, &[&token(1), "x"]), NOW).is_ok());
        assert!(matches!(keys.admit(&request(GET, &["x", &token(1)]), NOW), Err(Error::BadToken)));
    }

    #[test]
    fn a_remembered_token_still_expires() {
        let keys = keys(&[1]);
        let request = request(GET, &[&token(1)]);
        assert!(keys.admit(&request, NOW).is_ok());
        assert!(keys.admit(&request, NOW + Duration::from_secs(3600)).is_ok());
        assert!(keys.admit(&request, NOW + Duration::from_secs(3601)).is_err());
    }

    #[test]
    fn no_more_tokens_are_remembered_than_allowed() {
        let keys = keys(&[1]);
        let signer = Signer::new(&key(1));
        for second in 0..(REMEMBERED_MAX as u64 + 10) {
            let token = signer.sign(NOW + Duration::from_secs(second)).unwrap();
            assert!(keys.admit(&request(GET, &[&token]), NOW).is_ok());
        }
        assert!(keys.0.load().verified.lock().len() <= REMEMBERED_MAX);
        assert!(keys.admit(&request(GET, &[&"x".repeat(TOKEN_BYTES_MAX + 1)]), NOW).is_err());
    }

    #[tokio::test]
    async fn a_key_file_is_read_again_when_it_changes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        fs::write(&path, key(1).to_base64()).unwrap();
        let keys = Keys::load(&Secrets { current: Some(Secret::File(path.clone())), previous: None }).unwrap();
        let admits = |byte| keys.admit(&request(GET, &[&token(byte)]), NOW).is_ok();
        assert!(admits(1) && !admits(2));
        // Half a key changes nothing; a whole one does.
        fs::write(&path, "half").unwrap();
        fs::write(&path, format!("{}\n", key(2).to_base64())).unwrap();
        let changed = async {
            while !admits(2) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), changed).await.unwrap();
        assert!(!admits(1));
    }
}
