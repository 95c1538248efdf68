//! The shared secret, and the tokens clients sign with it: a JWT, HS256, with the one claim `exp`.
//!
//! Both sides are here: what a client mints and what the server accepts.
//! Not here: where a request carries its token, and what is cached (`server::auth`).

use std::{fmt, io, path::Path, sync::Once, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use jsonwebtoken::{
    Algorithm, DecodingKey, EncodingKey, Header, Validation,
    crypto::{CryptoProvider, JwtSigner, JwtVerifier, KeyUtils},
    errors::{Error as JwtError, ErrorKind},
};
use ring::hmac;
use serde_json::{Map, Value};

/// Length of the shared secret in bytes.
pub const KEY_BYTES: usize = 32;

/// How long a minted token is good for, as clients of the interface have it.
const LIFETIME: Duration = Duration::from_secs(3600);

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("cannot read the key file {path}: {source}")]
    ReadFile {
        /// Which.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// The file holds something else.
    #[error("the key file {path} holds neither 32 bytes nor the base64 of 32 bytes")]
    BadFile {
        /// Which.
        path: String,
    },
    /// The text is no key.
    #[error("standard base64 of exactly 32 bytes is wanted")]
    BadText,
    /// No token could be made.
    #[error("cannot sign a token: {0}")]
    Sign(JwtError),
}

/// A shared secret. It is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Key([u8; KEY_BYTES]);

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key([redacted])")
    }
}

impl Key {
    /// Takes the bytes of a key.
    pub fn from_bytes(bytes: [u8; KEY_BYTES]) -> Self {
        Self(bytes)
    }

    /// A key from standard base64, with padding.
    ///
    /// # Errors
    /// When it is not base64 of exactly 32 bytes.
    pub fn from_base64(text: &str) -> Result<Self, Error> {
        let bytes = STANDARD.decode(text).map_err(|_| Error::BadText)?;
        bytes.try_into().map(Self).map_err(|_| Error::BadText)
    }

    /// A key from a file: the 32 bytes themselves, or their base64; one trailing line break is left out.
    ///
    /// # Errors
    /// When the file cannot be read or holds something else.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let shown = || path.display().to_string();
        let bytes = std::fs::read(path).map_err(|source| Error::ReadFile { path: shown(), source })?;
        Self::from_file_content(&bytes).ok_or_else(|| Error::BadFile { path: shown() })
    }

    fn from_file_content(bytes: &[u8]) -> Option<Self> {
        // The raw form is looked at first: its last byte may happen to be a line break.
        if let Ok(raw) = bytes.try_into() {
            return Some(Self(raw));
        }
        let trimmed = bytes.strip_suffix(b"\n").unwrap_or(bytes);
        let trimmed = trimmed.strip_suffix(b"\r").unwrap_or(trimmed);
        match trimmed.try_into() {
            Ok(raw) => Some(Self(raw)),
            Err(_) => Self::from_base64(std::str::from_utf8(trimmed).ok()?).ok(),
        }
    }

    /// The key as base64, for the file that holds it.
    pub fn to_base64(&self) -> String {
        STANDARD.encode(self.0)
    }

    /// A token good for an hour from `now` (time since the Unix epoch).
    ///
    /// # Errors
    /// Never in practice.
    pub fn mint(&self, now: Duration) -> Result<String, Error> {
        install_provider();
        let claims = serde_json::json!({ "exp": (now + LIFETIME).as_secs() });
        let key = EncodingKey::from_secret(&self.0);
        jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims, &key).map_err(Error::Sign)
    }

    /// The `exp` claim (seconds since the Unix epoch) of a token signed with this key; `None` if the token is not
    /// exactly what clients mint. Whether it has expired is the caller's question.
    pub fn verify(&self, token: &str) -> Option<i64> {
        install_provider();
        let mut validation = Validation::new(Algorithm::HS256);
        // The one claim is looked at below: the library's rules allow leeway and other claims.
        validation.required_spec_claims.clear();
        validation.validate_exp = false;
        validation.validate_aud = false;
        let key = DecodingKey::from_secret(&self.0);
        let claims = jsonwebtoken::decode::<Map<String, Value>>(token, &key, &validation).ok()?.claims;
        match claims.get("exp") {
            Some(Value::Number(exp)) if claims.len() == 1 => exp.as_i64().or_else(|| whole_seconds(exp.as_f64()?)),
            _ => None,
        }
    }
}

/// Fractions are cut off; what is beyond every clock is no time.
fn whole_seconds(exp: f64) -> Option<i64> {
    (exp.abs() < 1e15).then_some(exp as i64)
}

/// Whether `exp` lies in the past at `now` (time since the Unix epoch). There is no leeway.
pub fn expired(exp: i64, now: Duration) -> bool {
    match u64::try_from(exp) {
        Ok(exp) => now > Duration::from_secs(exp),
        Err(_) => true,
    }
}

struct Hs256(hmac::Key);

impl signature::Signer<Vec<u8>> for Hs256 {
    fn try_sign(&self, message: &[u8]) -> Result<Vec<u8>, signature::Error> {
        Ok(hmac::sign(&self.0, message).as_ref().to_vec())
    }
}

impl signature::Verifier<Vec<u8>> for Hs256 {
    fn verify(&self, message: &[u8], signature: &Vec<u8>) -> Result<(), signature::Error> {
        hmac::verify(&self.0, message, signature).map_err(|_| signature::Error::new())
    }
}

impl JwtSigner for Hs256 {
    fn algorithm(&self) -> Algorithm {
        Algorithm::HS256
    }
}

impl JwtVerifier for Hs256 {
    fn algorithm(&self) -> Algorithm {
        Algorithm::HS256
    }
}

fn hs256(algorithm: Algorithm, secret: &[u8]) -> Result<Hs256, JwtError> {
    match algorithm {
        Algorithm::HS256 => Ok(Hs256(hmac::Key::new(hmac::HMAC_SHA256, secret))),
        _ => Err(ErrorKind::InvalidAlgorithm.into()),
    }
}

/// The library's own providers bring a second TLS stack or an RSA with a known weakness; HS256 is all that is needed.
static PROVIDER: CryptoProvider = CryptoProvider {
    signer_factory: |algorithm, key| Ok(Box::new(hs256(*algorithm, key.as_bytes())?)),
    verifier_factory: |algorithm, key| Ok(Box::new(hs256(*algorithm, key.try_get_as_bytes()?)?)),
    key_utils: KeyUtils::new_unimplemented(),
};

fn install_provider() {
    static INSTALLED: Once = Once::new();
    // An error would mean that somebody else installed one, and nobody does.
    INSTALLED.call_once(|| {
        let _ = PROVIDER.install_default();
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::from_millis(1_800_000_000_500);

    fn key(byte: u8) -> Key {
        Key([byte; KEY_BYTES])
    }

    fn sign(claims: &str, header: &str, algorithm: hmac::Algorithm) -> String {
        use base64::engine::general_purpose::URL_SAFE_NO_PAD as B64;
        let text = format!("{}.{}", B64.encode(header), B64.encode(claims));
        let tag = hmac::sign(&hmac::Key::new(algorithm, &[7; KEY_BYTES]), text.as_bytes());
        format!("{text}.{}", B64.encode(tag))
    }

    fn hs256(claims: &str) -> String {
        sign(claims, r#"{"alg":"HS256","typ":"JWT"}"#, hmac::HMAC_SHA256)
    }

    #[test]
    fn a_minted_token_is_good_for_an_hour() {
        let exp = key(7).verify(&key(7).mint(NOW).unwrap()).unwrap();
        assert_eq!(exp, 1_800_003_600);
        assert!(!expired(exp, Duration::from_secs(1_800_003_600)));
        assert!(expired(exp, Duration::from_millis(1_800_003_600_001)));
    }

    #[test]
    fn another_key_does_not_verify() {
        assert_eq!(key(8).verify(&key(7).mint(NOW).unwrap()), None);
    }

    #[test]
    fn exactly_the_claim_exp_is_accepted() {
        assert_eq!(key(7).verify(&hs256(r#"{"exp":5}"#)), Some(5));
        assert_eq!(key(7).verify(&hs256(r#"{"exp":5.9}"#)), Some(5));
        for claims in [
            "{}",
            r#"{"iat":5}"#,
            r#"{"exp":5,"iat":5}"#,
            r#"{"exp":5,"aud":"x"}"#,
            r#"{"exp":"5"}"#,
            r#"{"exp":null}"#,
            r#"{"exp":1e300}"#,
            "[5]",
            "5",
            "",
        ] {
            assert_eq!(key(7).verify(&hs256(claims)), None, "{claims}");
        }
    }

    #[test]
    fn only_hs256_is_accepted() {
        for (algorithm, tag) in
            [("HS384", hmac::HMAC_SHA384), ("HS512", hmac::HMAC_SHA512), ("none", hmac::HMAC_SHA256)]
        {
            let token = sign(r#"{"exp":5}"#, &format!(r#"{{"alg":"{algorithm}"}}"#), tag);
            assert_eq!(key(7).verify(&token), None, "{algorithm}");
        }
        let token = sign(r#"{"exp":5}"#, r#"{"alg":"HS256"}"#, hmac::HMAC_SHA256);
        assert_eq!(key(7).verify(&token), Some(5));
    }

    #[test]
    fn a_broken_token_is_refused() {
        let good = key(7).mint(NOW).unwrap();
        for bad in ["", ".", "..", "...", "a.b.c", &good[..good.len() - 1], &format!("{good}.x"), "\u{e9}"] {
            assert_eq!(key(7).verify(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_key_file_holds_bytes_or_base64() {
        let text = STANDARD.encode([7; KEY_BYTES]);
        for content in
            [&[7; 32][..], &[&[7; 32][..], b"\n"].concat(), text.as_bytes(), format!("{text}\r\n").as_bytes()]
        {
            assert_eq!(Key::from_file_content(content), Some(key(7)));
        }
        let ends_in_break = [&[7; 31][..], b"\n"].concat();
        assert_eq!(Key::from_file_content(&ends_in_break).unwrap().0[31], b'\n');
        for content in [&b""[..], b"short", &[7; 31], format!(" {text}").as_bytes(), &[0xff; 44]] {
            assert_eq!(Key::from_file_content(content), None);
        }
    }

    #[test]
    fn a_key_is_not_printed() {
        assert_eq!(format!("{:?}", key(7)), "Key([redacted])");
    }
}
