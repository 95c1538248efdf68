//! The tokens that prove the shared secret: HS256 over exactly `{"exp": …}`, signed by clients and checked by servers.
//!
//! Not here: where the secret lies (configuration, the tools' connection options) and what a refused token means on the
//! wire (the server's edge).

use std::{
    fmt,
    sync::Once,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use jsonwebtoken::{
    Algorithm, AlgorithmFamily, DecodingKey, EncodingKey, Header, Validation,
    crypto::{CryptoProvider, JwtSigner, JwtVerifier, KeyUtils},
    errors::{ErrorKind, Result as JwtResult, new_error},
};
use ring::{hkdf, hmac};
use serde_json::{Map, Value, json};

/// The metadata key that carries the token.
pub const METADATA_KEY: &str = "jwt";

/// How long a token is good for. Servers look at tokens only when a call or a stream starts.
pub const LIFETIME: Duration = Duration::from_secs(60 * 60);

/// Bytes in a shared key.
pub const KEY_BYTES: usize = 32;

/// The secret shared by servers and clients.
#[derive(Clone, PartialEq, Eq)]
pub struct SharedKey([u8; KEY_BYTES]);

impl SharedKey {
    /// Takes the key itself.
    pub fn from_bytes(bytes: [u8; KEY_BYTES]) -> Self {
        Self(bytes)
    }

    /// Reads standard base64 of 32 bytes (white space around it is dropped), or the 32 raw bytes as they lie in a
    /// Kubernetes secret. The lengths differ, so the two cannot be mistaken for each other.
    ///
    /// # Errors
    /// When it is neither.
    pub fn parse(text: &[u8]) -> Result<Self, MalformedKey> {
        if let Ok(raw) = <[u8; KEY_BYTES]>::try_from(text) {
            return Ok(Self(raw));
        }
        let decoded = STANDARD.decode(text.trim_ascii()).map_err(|_| MalformedKey::NotBase64)?;
        let length = decoded.len();
        decoded.try_into().map(Self).map_err(|_| MalformedKey::Length(length))
    }

    /// The same, of a file. A key of 32 raw bytes may have got a line break from an editor; one that happens to end in it has
    /// not.
    ///
    /// # Errors
    /// When it is neither.
    pub fn parse_file(content: &[u8]) -> Result<Self, MalformedKey> {
        match content.strip_suffix(b"\n") {
            Some(raw) if raw.len() == KEY_BYTES => Self::parse(raw),
            _ => Self::parse(content),
        }
    }

    /// A key for another purpose, from which this one cannot be told: HKDF-SHA256 (RFC 5869).
    pub fn derive(&self, purpose: &[&[u8]]) -> [u8; KEY_BYTES] {
        let mut derived = [0; KEY_BYTES];
        let pseudorandom = hkdf::Salt::new(hkdf::HKDF_SHA256, b"databroker").extract(&self.0);
        if let Ok(material) = pseudorandom.expand(purpose, hkdf::HKDF_SHA256) {
            // A hash's length can always be had.
            let _ = material.fill(&mut derived);
        }
        derived
    }

    /// The key as configuration files have it.
    pub fn to_base64(&self) -> String {
        STANDARD.encode(self.0)
    }
}

impl fmt::Debug for SharedKey {
    // A key must never reach a log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SharedKey(…)")
    }
}

/// Why a text is not a shared key.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum MalformedKey {
    /// Neither base64 nor 32 raw bytes.
    #[error("the shared secret is not standard base64 (make one with: head -c 32 /dev/urandom | base64)")]
    NotBase64,
    /// Base64 of something shorter or longer.
    #[error("the shared secret holds {0} bytes, not 32 (make one with: head -c 32 /dev/urandom | base64)")]
    Length(usize),
}

/// A token that does not prove the key. One error for all reasons: a stranger learns nothing from it.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid JWT")]
pub struct InvalidToken;

/// Signs tokens.
pub struct Signer(EncodingKey);

impl Signer {
    /// A signer with this key.
    pub fn new(key: &SharedKey) -> Self {
        install_provider();
        Self(EncodingKey::from_secret(&key.0))
    }

    /// A token that is good for [`LIFETIME`] from `now`.
    ///
    /// # Errors
    /// Never in practice: HMAC takes any key, and the claims are a constant shape.
    pub fn sign(&self, now: SystemTime) -> JwtResult<String> {
        let expires = unix_seconds(now).saturating_add(LIFETIME.as_secs());
        jsonwebtoken::encode(&Header::new(Algorithm::HS256), &json!({ "exp": expires }), &self.0)
    }
}

/// Checks tokens.
pub struct Verifier {
    key: DecodingKey,
    validation: Validation,
}

impl Verifier {
    /// A verifier with this key.
    pub fn new(key: &SharedKey) -> Self {
        install_provider();
        let mut validation = Validation::new(Algorithm::HS256);
        // The claims are checked below, against the caller's clock and with no leeway.
        validation.required_spec_claims.clear();
        validation.validate_exp = false;
        validation.validate_aud = false;
        Self { key: DecodingKey::from_secret(&key.0), validation }
    }

    /// Whether `token` is HS256 with this key, its only claim a numeric `exp` (fractions allowed) not before `now`.
    ///
    /// # Errors
    /// When it is not.
    pub fn verify(&self, token: &[u8], now: SystemTime) -> Result<(), InvalidToken> {
        if self.expiry(token)?.passed(now) { Err(InvalidToken) } else { Ok(()) }
    }

    /// The end of a token that is HS256 with this key and has the one numeric claim `exp`; it may have passed.
    ///
    /// # Errors
    /// When the token is anything else.
    pub fn expiry(&self, token: &[u8]) -> Result<Expiry, InvalidToken> {
        let claims =
            jsonwebtoken::decode::<Map<String, Value>>(token, &self.key, &self.validation).map_err(|_| InvalidToken)?;
        let expires = claims.claims.get("exp").and_then(Value::as_f64).ok_or(InvalidToken)?;
        if claims.claims.len() == 1 { Ok(Expiry(expires)) } else { Err(InvalidToken) }
    }
}

/// The moment after which a token is no longer good, in seconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Expiry(f64);

impl Expiry {
    /// Whether `now` is after it. There is no leeway.
    pub fn passed(self, now: SystemTime) -> bool {
        now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64() > self.0
    }
}

/// Whole seconds since 1970; 0 for a clock set before.
pub fn unix_seconds(now: SystemTime) -> u64 {
    now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// HMAC-SHA256 from ring, so that the tree holds one crypto library.
static PROVIDER: CryptoProvider = CryptoProvider {
    signer_factory: hs256_signer,
    verifier_factory: hs256_verifier,
    key_utils: KeyUtils::new_unimplemented(),
};

fn install_provider() {
    static INSTALLED: Once = Once::new();
    // It fails only if a provider is there already, and this is the only place that sets one.
    INSTALLED.call_once(|| {
        let _ = PROVIDER.install_default();
    });
}

struct Hs256(hmac::Key);

fn hs256_signer(algorithm: &Algorithm, key: &EncodingKey) -> JwtResult<Box<dyn JwtSigner>> {
    expect_hs256(*algorithm, key.family())?;
    Ok(Box::new(Hs256(hmac::Key::new(hmac::HMAC_SHA256, key.as_bytes()))))
}

fn hs256_verifier(algorithm: &Algorithm, key: &DecodingKey) -> JwtResult<Box<dyn JwtVerifier>> {
    expect_hs256(*algorithm, key.family())?;
    Ok(Box::new(Hs256(hmac::Key::new(hmac::HMAC_SHA256, key.try_get_as_bytes()?))))
}

fn expect_hs256(algorithm: Algorithm, family: AlgorithmFamily) -> JwtResult<()> {
    match (algorithm, family) {
        (Algorithm::HS256, AlgorithmFamily::Hmac) => Ok(()),
        _ => Err(new_error(ErrorKind::UnsupportedAlgorithm)),
    }
}

impl signature::Signer<Vec<u8>> for Hs256 {
    fn try_sign(&self, message: &[u8]) -> Result<Vec<u8>, signature::Error> {
        Ok(hmac::sign(&self.0, message).as_ref().to_vec())
    }
}

impl JwtSigner for Hs256 {
    fn algorithm(&self) -> Algorithm {
        Algorithm::HS256
    }
}

impl signature::Verifier<Vec<u8>> for Hs256 {
    fn verify(&self, message: &[u8], tag: &Vec<u8>) -> Result<(), signature::Error> {
        hmac::verify(&self.0, message, tag).map_err(|_| signature::Error::new())
    }
}

impl JwtVerifier for Hs256 {
    fn algorithm(&self) -> Algorithm {
        Algorithm::HS256
    }
}

#[cfg(test)]
mod tests {
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;

    use super::*;

    fn key(byte: u8) -> SharedKey {
        SharedKey::from_bytes([byte; KEY_BYTES])
    }

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn token(key: &SharedKey, header: &str, claims: &str) -> String {
        let message = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
        let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &key.0), message.as_bytes());
        format!("{message}.{}", URL_SAFE_NO_PAD.encode(tag))
    }

    const HEADER: &str = r#"{"alg":"HS256","typ":"JWT"}"#;

    #[test]
    fn a_raw_key_in_a_file_may_end_in_a_line_break() {
        let mut content = vec![7; KEY_BYTES];
        let key = SharedKey::parse_file(&content).unwrap();
        content.push(b'\n');
        assert_eq!(SharedKey::parse_file(&content).unwrap().to_base64(), key.to_base64());
        let own = [[7; KEY_BYTES - 1].as_slice(), b"\n"].concat();
        assert_eq!(SharedKey::parse_file(&own).unwrap().to_base64(), STANDARD.encode(&own));
    }

    #[test]
    fn a_token_holds_for_an_hour_and_not_longer() {
        let token = Signer::new(&key(1)).sign(at(1000)).unwrap();
        let verifier = Verifier::new(&key(1));
        assert_eq!(verifier.verify(token.as_bytes(), at(1000)), Ok(()));
        assert_eq!(verifier.verify(token.as_bytes(), at(4600)), Ok(()));
        assert_eq!(verifier.verify(token.as_bytes(), at(4601)), Err(InvalidToken));
    }

    #[test]
    fn a_token_names_its_type_and_nothing_but_its_end() {
        let token = Signer::new(&key(1)).sign(at(1000)).unwrap();
        let parts: Vec<_> = token.split('.').map(|part| URL_SAFE_NO_PAD.decode(part).unwrap()).collect();
        let header: Value = serde_json::from_slice(&parts[0]).unwrap();
        assert_eq!(header, json!({"typ": "JWT", "alg": "HS256"}));
        assert_eq!(parts[1], br#"{"exp":4600}"#);
    }

    #[test]
    fn another_key_is_refused() {
        let token = Signer::new(&key(1)).sign(at(1000)).unwrap();
        assert_eq!(Verifier::new(&key(2)).verify(token.as_bytes(), at(1000)), Err(InvalidToken));
    }

    #[test]
    fn only_a_lone_numeric_exp_is_accepted() {
        let verifier = Verifier::new(&key(1));
        let verify = |claims: &str| verifier.verify(token(&key(1), HEADER, claims).as_bytes(), at(1000));
        assert_eq!(verify(r#"{"exp":1000.5}"#), Ok(()));
        for claims in
            [r#"{}"#, r#"{"exp":999}"#, r#"{"exp":"4600"}"#, r#"{"exp":4600,"iat":1}"#, r#"{"iat":4600}"#, "[]", ""]
        {
            assert_eq!(verify(claims), Err(InvalidToken), "{claims}");
        }
    }

    #[test]
    fn only_hs256_is_accepted() {
        let verifier = Verifier::new(&key(1));
        for algorithm in ["none", "HS384", "HS512", "RS256", "x"] {
            let header = format!(r#"{{"alg":"{algorithm}","typ":"JWT"}}"#);
            let token = token(&key(1), &header, r#"{"exp":4600}"#);
            assert_eq!(verifier.verify(token.as_bytes(), at(1000)), Err(InvalidToken), "{algorithm}");
        }
    }

    #[test]
    fn garbage_is_refused() {
        let verifier = Verifier::new(&key(1));
        for garbage in [&b""[..], b".", b"..", b"...", b"a.b.c", &[0xff; 9], b"eyJhbGciOiJIUzI1NiJ9.."] {
            assert_eq!(verifier.verify(garbage, at(1000)), Err(InvalidToken));
        }
    }

    #[test]
    fn a_key_is_read_from_base64_or_raw_bytes() {
        let key = key(7);
        let text = key.to_base64();
        assert_eq!(SharedKey::parse(text.as_bytes()), Ok(key.clone()));
        assert_eq!(SharedKey::parse(format!(" {text}\n").as_bytes()), Ok(key.clone()));
        assert_eq!(SharedKey::parse(&[7; 32]), Ok(key.clone()));
        assert_eq!(SharedKey::parse(b"AAAA"), Err(MalformedKey::Length(3)));
        assert_eq!(SharedKey::parse(b"?"), Err(MalformedKey::NotBase64));
        assert!(!format!("{key:?}").contains('7'));
    }
}
