//! Tokens and key sets from outside: parsing ends without a panic, and no token is accepted unless the
//! published key signed exactly its bytes.
#![no_main]

use std::sync::LazyLock;

use jiff::Timestamp;
use libfuzzer_sys::fuzz_target;
use rolegate_service_account_token::test_util::Signer;
use rolegate_service_account_token::{
    Algorithm, Issuer, KeySet, TokenRequirements, UnverifiedToken,
};

const ISSUER: &str = "https://issuer";

static KEYS: LazyLock<(Signer, KeySet)> = LazyLock::new(|| {
    let signer = Signer::generate("k", Algorithm::Es256);
    let keys = KeySet::parse(Signer::key_set(&[&signer]).as_bytes()).expect("own keys");
    (signer, keys)
});

fuzz_target!(|data: &[u8]| {
    let _ = KeySet::parse(data);
    let (signer, keys) = &*KEYS;
    let verify = |token: &[u8]| {
        let token = UnverifiedToken::parse(token).ok()?;
        let issuer = Issuer::new(ISSUER);
        let required = TokenRequirements {
            issuer: &issuer,
            serves_audience: &|audience| audience == "pods.eks.amazonaws.com",
            now: Timestamp::from_second(1_800_000_000).expect("a time"),
        };
        token.verify(keys.find(token.key_id())?, &required).ok()
    };
    // The fuzzer does not have the key.
    assert!(verify(data).is_none());
    // Claims that the key did sign.
    if let Ok(text) = std::str::from_utf8(data) {
        let header = signer.header().to_string();
        if let Some(identity) = verify(signer.sign_text(&header, text).as_bytes()) {
            assert!(!identity.pod.uid.is_empty() && !identity.namespace.is_empty());
        }
    }
});
