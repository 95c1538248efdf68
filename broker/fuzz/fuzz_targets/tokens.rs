//! Tokens: no bytes but those of a signer with the key are accepted, and keys are read without a panic.
#![no_main]

use std::{
    sync::LazyLock,
    time::{Duration, UNIX_EPOCH},
};

use databroker::jwt::{SharedKey, Signer, Verifier};
use libfuzzer_sys::fuzz_target;

static KEY: LazyLock<SharedKey> = LazyLock::new(|| SharedKey::from_bytes([1; 32]));
static VERIFIER: LazyLock<Verifier> = LazyLock::new(|| Verifier::new(&KEY));
static TOKEN: LazyLock<String> =
    LazyLock::new(|| Signer::new(&KEY).sign(UNIX_EPOCH + Duration::from_secs(1_000_000)).expect("signs"));

fuzz_target!(|input: (&[u8], Option<(u8, u8)>)| {
    let now = UNIX_EPOCH + Duration::from_secs(1_000_001);
    let (bytes, flip) = input;
    let _ = SharedKey::parse(bytes);
    assert!(VERIFIER.verify(TOKEN.as_bytes(), now).is_ok());
    // Nobody who has not the key makes a token, so whatever is accepted is the one that was signed.
    if VERIFIER.verify(bytes, now).is_ok() {
        assert_eq!(bytes, TOKEN.as_bytes());
    }
    if let Some((at, by)) = flip {
        let mut token = TOKEN.clone().into_bytes();
        let at = usize::from(at) % token.len();
        token[at] ^= by;
        if token != TOKEN.as_bytes() {
            assert!(VERIFIER.verify(&token, now).is_err(), "a token with another byte at {at} is accepted");
        }
    }
});
