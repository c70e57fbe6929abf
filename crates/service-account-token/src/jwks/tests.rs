use serde_json::json;

use super::*;
use crate::key::Algorithm;
use crate::test_util::Signer;

fn parse(keys: &[Value]) -> Result<KeySet, KeySetError> {
    KeySet::parse(json!({ "keys": keys }).to_string().as_bytes())
}

fn with(jwk: &Value, name: &str, value: Option<Value>) -> Value {
    let mut jwk = jwk.clone();
    let members = jwk.as_object_mut().unwrap();
    match value {
        Some(value) => members.insert(name.into(), value),
        None => members.remove(name),
    };
    jwk
}

#[test]
fn keys_of_each_algorithm_are_found_by_id() {
    let signers = Algorithm::ALL.map(|algorithm| Signer::generate(algorithm.as_str(), algorithm));
    let set = KeySet::parse(Signer::key_set(&signers.each_ref()).as_bytes()).unwrap();
    assert_eq!(set.keys().len(), 4);
    assert_eq!(set.ignored(), []);
    for algorithm in Algorithm::ALL {
        assert_eq!(set.find(algorithm.as_str()).unwrap().algorithm(), algorithm);
    }
    assert!(set.find("other").is_none());
}

#[test]
fn unusable_keys_are_ignored_with_a_reason() {
    let rsa = Signer::generate("rsa", Algorithm::Rs256).jwk();
    let ec = Signer::generate("ec", Algorithm::Es256).jwk();
    let good = Signer::generate("good", Algorithm::Es256).jwk();
    let (x, y) = (ec["x"].clone(), ec["y"].clone());
    let n = |bytes: usize| {
        use base64::Engine as _;
        Some(
            base64::engine::general_purpose::URL_SAFE_NO_PAD
                .encode(vec![255; bytes])
                .into(),
        )
    };
    for (jwk, why) in [
        (json!(1), KeyError::Malformed),
        (with(&rsa, "n", Some(json!(1))), KeyError::Malformed),
        (with(&rsa, "kid", None), KeyError::KeyId),
        (with(&rsa, "kid", Some("".into())), KeyError::KeyId),
        (
            with(&rsa, "kid", Some("k".repeat(257).into())),
            KeyError::KeyId,
        ),
        (with(&rsa, "use", Some("enc".into())), KeyError::Use),
        (
            with(&rsa, "key_ops", Some(json!(["encrypt"]))),
            KeyError::Use,
        ),
        (with(&rsa, "key_ops", Some(json!([]))), KeyError::Use),
        (with(&rsa, "kty", Some("oct".into())), KeyError::Type),
        (with(&rsa, "kty", None), KeyError::Type),
        (with(&rsa, "alg", Some("RS512".into())), KeyError::Algorithm),
        (with(&rsa, "alg", Some("HS256".into())), KeyError::Algorithm),
        (with(&ec, "alg", Some("ES384".into())), KeyError::Algorithm),
        (with(&ec, "crv", Some("P-384".into())), KeyError::Numbers),
        (with(&ec, "crv", Some("secp256k1".into())), KeyError::Type),
        (with(&ec, "x", Some(y.clone())), KeyError::Numbers),
        (
            with(&with(&ec, "x", Some(y)), "y", Some(x)),
            KeyError::Numbers,
        ),
        (with(&ec, "y", None), KeyError::Numbers),
        (with(&ec, "y", Some("====".into())), KeyError::Numbers),
        (with(&rsa, "n", n(128)), KeyError::Size),
        (with(&rsa, "n", n(255)), KeyError::Size),
        (with(&rsa, "n", n(1025)), KeyError::Numbers),
        (with(&rsa, "n", Some("".into())), KeyError::Size),
        (with(&rsa, "e", Some("AQ".into())), KeyError::Numbers),
        (with(&rsa, "e", Some("Ag".into())), KeyError::Numbers),
        (with(&rsa, "e", Some("AQAAAAE".into())), KeyError::Numbers),
        (with(&rsa, "e", Some("".into())), KeyError::Numbers),
    ] {
        let set = parse(&[jwk.clone(), good.clone()]).unwrap();
        assert_eq!(set.keys().len(), 1, "{jwk}");
        let ignored: Vec<_> = set.ignored().iter().map(|key| key.why.clone()).collect();
        assert_eq!(ignored, [why], "{jwk}");
    }
    for jwk in [
        with(&rsa, "alg", None),
        with(&rsa, "use", None),
        with(&rsa, "key_ops", Some(json!(["verify", "sign"]))),
        with(&rsa, "x5c", Some(json!(["not a certificate"]))),
        with(&rsa, "x5t", Some(json!({"any": 1}))),
    ] {
        assert_eq!(
            parse(std::slice::from_ref(&jwk)).unwrap().ignored(),
            [],
            "{jwk}"
        );
    }
}

#[test]
fn keys_with_the_same_id_are_all_ignored() {
    let signers = [0; 3].map(|_| Signer::generate("k", Algorithm::Es256));
    let other = Signer::generate("other", Algorithm::Es256);
    let [a, b, c] = &signers;
    for signers in [vec![a, b, &other], vec![a, &other, b, c]] {
        let set = KeySet::parse(Signer::key_set(&signers).as_bytes()).unwrap();
        assert!(set.find("k").is_none());
        assert!(set.find("other").is_some());
        assert_eq!(set.ignored()[0].why, KeyError::DuplicateKeyId);
    }
}

#[test]
fn key_sets_are_bounded() {
    let jwk = Signer::generate("k", Algorithm::Es256).jwk();
    let keys = |count| -> Vec<_> {
        (0..count)
            .map(|n: usize| with(&jwk, "kid", Some(n.to_string().into())))
            .collect()
    };
    assert_eq!(parse(&keys(MAX_KEYS)).unwrap().keys().len(), MAX_KEYS);
    assert!(matches!(
        parse(&keys(MAX_KEYS + 1)),
        Err(KeySetError::TooMany)
    ));
    assert!(matches!(parse(&[]), Err(KeySetError::Empty)));
    let long = vec![b' '; MAX_KEY_SET_BYTES + 1];
    assert!(matches!(KeySet::parse(&long), Err(KeySetError::TooLong)));
    for text in ["", "{}", "[]", r#"{"keys":{}}"#, r#"{"keys":[],"keys":[]}"#] {
        let refused = KeySet::parse(text.as_bytes());
        assert!(matches!(refused, Err(KeySetError::Malformed(_))), "{text}");
    }
}
