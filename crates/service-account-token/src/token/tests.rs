//! Forged, malformed and outdated tokens.

use jiff::Timestamp;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::claims::{CLOCK_SKEW, Issuer};
use crate::jwks::KeySet;
use crate::test_util::{Signer, claims};

const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";
const ISSUED: i64 = 1_800_000_000;

fn keys(signers: &[&Signer]) -> KeySet {
    KeySet::parse(Signer::key_set(signers).as_bytes()).unwrap()
}

fn verify_at(keys: &KeySet, token: &str, seconds: i64) -> Result<Identity, TokenError> {
    let token = UnverifiedToken::parse(token.as_bytes())?;
    let key = keys.find(token.key_id()).ok_or(TokenError::NoKeyId)?;
    let required = TokenRequirements {
        issuer: &Issuer::new(ISSUER),
        serves_audience: &|audience| audience == "pods.eks.amazonaws.com",
        now: Timestamp::from_second(seconds).unwrap(),
    };
    token.verify(key, &required)
}

fn verify(keys: &KeySet, token: &str) -> Result<Identity, TokenError> {
    verify_at(keys, token, ISSUED + 10)
}

fn good() -> Value {
    claims(ISSUER, "web-1", "pod-1", ISSUED)
}

/// Returns good claims with one value replaced, or removed for `None`.
fn with(pointer: &str, value: Option<Value>) -> Value {
    let mut claims = good();
    let (parent, name) = pointer.rsplit_once('/').unwrap();
    let parent = claims.pointer_mut(parent).unwrap().as_object_mut().unwrap();
    match value {
        Some(value) => parent.insert(name.into(), value),
        None => parent.remove(name),
    };
    claims
}

#[test]
fn each_algorithm_of_kubernetes_is_accepted() {
    for algorithm in Algorithm::ALL {
        let signer = Signer::generate("k1", algorithm);
        let identity = verify(&keys(&[&signer]), &signer.sign(&good())).unwrap();
        assert_eq!(&*identity.namespace, "shop");
        assert_eq!(&*identity.service_account.name, "web");
        assert_eq!(&*identity.service_account.uid, "sa-1");
        assert_eq!(&*identity.pod.name, "web-1");
        assert_eq!(&*identity.pod.uid, "pod-1");
        assert_eq!(&*identity.node.unwrap().name, "node-1");
        assert_eq!(&*identity.audience, "pods.eks.amazonaws.com");
        assert_eq!(identity.expires_at.as_second(), ISSUED + 3600);
    }
}

#[test]
fn forged_headers_are_refused() {
    let signer = Signer::generate("k1", Algorithm::Rs256);
    let other = Signer::generate("k1", Algorithm::Rs256);
    let elliptic = Signer::generate("k2", Algorithm::Es256);
    let keys = keys(&[&signer, &elliptic]);
    let body = good().to_string();
    for (header, error) in [
        (r#"{"alg":"none","kid":"k1"}"#, "algorithm is not one of"),
        (r#"{"alg":"None","kid":"k1"}"#, "algorithm is not one of"),
        (r#"{"alg":"rs256","kid":"k1"}"#, "algorithm is not one of"),
        (r#"{"alg":"HS256","kid":"k1"}"#, "algorithm is not one of"),
        (r#"{"alg":"RS512","kid":"k1"}"#, "algorithm is not one of"),
        (r#"{"alg":"PS256","kid":"k1"}"#, "algorithm is not one of"),
        (r#"{"alg":"EdDSA","kid":"k1"}"#, "algorithm is not one of"),
        (r#"{"alg":"ES256","kid":"k1"}"#, "not the one of the key"),
        (r#"{"alg":"RS256","kid":"k2"}"#, "not the one of the key"),
        (r#"{"alg":"RS256","kid":"k1","crit":["b64"]}"#, "critical"),
        (r#"{"alg":"RS256","kid":"k1","crit":[]}"#, "critical"),
        (r#"{"alg":"RS256","kid":"k1","crit":null}"#, "critical"),
        (
            r#"{"alg":"RS256","alg":"RS256","kid":"k1"}"#,
            "header cannot be parsed",
        ),
        (
            r#"{"alg":"RS256","kid":"k1","kid":"k1"}"#,
            "header cannot be parsed",
        ),
        (r#"{"alg":"RS256","kid":1}"#, "header cannot be parsed"),
        (r#"["RS256"]"#, "header cannot be parsed"),
        (r#"{"alg":"RS256"}"#, "names no key"),
        (r#"{"alg":"RS256","kid":""}"#, "names no key"),
        (r#"{"alg":"RS256","kid":"k3"}"#, "names no key"),
    ] {
        let refused = verify(&keys, &signer.sign_text(header, &body)).unwrap_err();
        assert!(refused.to_string().contains(error), "{header}: {refused}");
    }
    // Another cluster's key with the same kid, and keys that the token brings along.
    let header = json!({"alg": "RS256", "kid": "k1", "jwk": other.jwk(), "x5c": ["MIIB"]});
    for forged in [
        other.sign(&good()),
        other.sign_text(&header.to_string(), &body),
    ] {
        let refused = verify(&keys, &forged).unwrap_err();
        assert!(matches!(refused, TokenError::Signature), "{refused}");
    }
}

#[test]
fn changed_and_malformed_tokens_are_refused() {
    let signer = Signer::generate("k1", Algorithm::Es256);
    let keys = keys(&[&signer]);
    let token = signer.sign(&good());
    let [header, payload, signature] = token.split('.').collect::<Vec<_>>()[..] else {
        panic!("{token}");
    };
    let other =
        URL_SAFE_NO_PAD.encode(with("/sub", Some("system:serviceaccount:a:b".into())).to_string());
    for forged in [
        format!("{header}.{other}.{signature}"),
        format!("{header}.{payload}."),
        format!("{header}..{signature}"),
        format!("{header}.{payload}"),
        format!("{header}.{payload}.{signature}.{signature}"),
        format!("{header}.{payload}.{signature}="),
        format!("{header}.{payload}.{signature}\n"),
        format!("Bearer {token}"),
        format!(" {token}"),
        format!("{}.{payload}.{signature}", header.replace('e', "-")),
        String::new(),
        ".".into(),
        "..".into(),
        "é.é.é".into(),
        "a".repeat(MAX_TOKEN_BYTES + 1),
    ] {
        assert!(verify(&keys, &forged).is_err(), "{forged}");
    }
    // An unused bit of the last character would be a second spelling of the same token.
    let mut last = signature.to_owned();
    let end = last.pop().unwrap();
    let respelled = char::from_u32(u32::from(end) + 1).unwrap();
    last.push(respelled);
    assert!(verify(&keys, &format!("{header}.{payload}.{last}")).is_err());
    // The same number in DER, which libraries of other languages write.
    let refused = verify(&keys, &format!("{header}.{payload}.MAYCAQECAQE")).unwrap_err();
    assert!(matches!(refused, TokenError::Signature), "{refused}");
    assert!(verify(&keys, &token).is_ok());
}

#[test]
fn claims_of_others_are_refused() {
    let signer = Signer::generate("k1", Algorithm::Es256);
    let keys = keys(&[&signer]);
    let node = json!({"name": "", "uid": "u"});
    for (pointer, value, error) in [
        ("/iss", Some(json!(format!("{ISSUER}/"))), "issuer"),
        ("/iss", Some(json!("https://other")), "issuer"),
        ("/iss", None, "claims cannot be parsed"),
        ("/aud", Some(json!(["sts.amazonaws.com"])), "audience"),
        ("/aud", Some(json!([])), "audience"),
        (
            "/aud",
            Some(json!("https://kubernetes.default.svc")),
            "audience",
        ),
        ("/aud", Some(json!({})), "claims cannot be parsed"),
        ("/aud", None, "claims cannot be parsed"),
        (
            "/sub",
            Some(json!("system:serviceaccount:shop:other")),
            "do not name",
        ),
        (
            "/sub",
            Some(json!("system:serviceaccount:other:web")),
            "do not name",
        ),
        ("/sub", None, "claims cannot be parsed"),
        ("/exp", Some(json!("1900000000")), "claims cannot be parsed"),
        ("/exp", Some(json!(1.9e9)), "claims cannot be parsed"),
        ("/exp", Some(json!(i64::MAX)), "order"),
        ("/exp", Some(json!(ISSUED)), "order"),
        ("/exp", None, "claims cannot be parsed"),
        ("/nbf", None, "claims cannot be parsed"),
        ("/iat", None, "claims cannot be parsed"),
        ("/kubernetes.io", None, "claims cannot be parsed"),
        ("/kubernetes.io/pod", None, "not bound to a pod"),
        (
            "/kubernetes.io/pod",
            Some(Value::Null),
            "not bound to a pod",
        ),
        ("/kubernetes.io/pod/uid", Some(json!("")), "do not name"),
        (
            "/kubernetes.io/pod/uid",
            Some(json!("u".repeat(129))),
            "do not name",
        ),
        (
            "/kubernetes.io/pod/name",
            Some(json!("n".repeat(254))),
            "do not name",
        ),
        ("/kubernetes.io/pod/name", None, "claims cannot be parsed"),
        ("/kubernetes.io/node", Some(node), "do not name"),
        (
            "/kubernetes.io/serviceaccount",
            None,
            "claims cannot be parsed",
        ),
        ("/kubernetes.io/namespace", Some(json!("")), "do not name"),
    ] {
        let claims = with(pointer, value);
        let refused = verify(&keys, &signer.sign(&claims)).unwrap_err();
        assert!(refused.to_string().contains(error), "{claims}: {refused}");
    }
    for (pointer, value) in [
        ("/aud", json!("pods.eks.amazonaws.com")),
        ("/aud", json!(["other", "pods.eks.amazonaws.com"])),
        ("/kubernetes.io/node", Value::Null),
        ("/more", json!({"a": [1]})),
    ] {
        let claims = with(pointer, Some(value));
        let verified = verify(&keys, &signer.sign(&claims));
        assert!(verified.is_ok(), "{claims}: {verified:?}");
    }
}

#[test]
fn duplicate_claims_are_refused() {
    let signer = Signer::generate("k1", Algorithm::Es256);
    let keys = keys(&[&signer]);
    let header = signer.header().to_string();
    let good = good().to_string();
    for (from, to) in [
        (r#""uid":"pod-1""#, r#""uid":"pod-1","uid":"pod-2""#),
        (r#""uid":"pod-1""#, r#""uid":"pod-1","u\u0069d":"pod-2""#),
        (r#""nbf":"#, r#""nbf":1,"nbf":"#),
        (r#""nbf":"#, r#""unknown":1,"unknown":1,"nbf":"#),
    ] {
        let twice = good.replace(from, to);
        assert_ne!(twice, good);
        let refused = verify(&keys, &signer.sign_text(&header, &twice)).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "the token's claims cannot be parsed",
            "{twice}"
        );
    }
}

#[test]
fn times_are_checked_to_the_second() {
    let signer = Signer::generate("k1", Algorithm::Es256);
    let keys = keys(&[&signer]);
    let token = signer.sign(&good());
    let skew = CLOCK_SKEW.as_secs();
    for (offset, error) in [
        (-skew - 1, Some("clocks")),
        (-skew, None),
        (0, None),
        (3599, None),
        (3600, Some("expired")),
        (86_400, Some("expired")),
    ] {
        let result = verify_at(&keys, &token, ISSUED + offset);
        match error {
            None => assert!(result.is_ok(), "{offset}: {result:?}"),
            Some(error) => {
                let refused = result.unwrap_err().to_string();
                assert!(refused.contains(error), "{offset}: {refused}");
            }
        }
    }
    let later = with("/nbf", Some(json!(ISSUED + 600)));
    assert!(matches!(
        verify(&keys, &signer.sign(&later)).unwrap_err(),
        TokenError::Claim(ClaimError::NotYetValid)
    ));
    let issued = with("/iat", Some(json!(ISSUED + 600)));
    assert!(matches!(
        verify(&keys, &signer.sign(&issued)).unwrap_err(),
        TokenError::Claim(ClaimError::IssuedInTheFuture)
    ));
}

#[test]
fn messages_quote_nothing_of_the_token() {
    let signer = Signer::generate("k1", Algorithm::Es256);
    let secret = "s3cr3t";
    let header = format!(r#"{{"alg":"ES256","kid":"k1","{secret}":1,"{secret}":1}}"#);
    let refused = UnverifiedToken::parse(signer.sign_text(&header, "{}").as_bytes()).unwrap_err();
    assert!(!refused.to_string().contains(secret), "{refused}");
}

proptest! {
    #[test]
    fn no_changed_byte_is_accepted(place in 0usize..600, byte in 0u8..=127) {
        // Generated once: a key per case would take minutes.
        static SIGNED: std::sync::OnceLock<(KeySet, String)> = std::sync::OnceLock::new();
        let (keys, token) = SIGNED.get_or_init(|| {
            let signer = Signer::generate("k1", Algorithm::Es256);
            (keys(&[&signer]), signer.sign(&good()))
        });
        let mut bytes = token.clone().into_bytes();
        let place = place % bytes.len();
        prop_assume!(bytes[place] != byte);
        bytes[place] = byte;
        let changed = String::from_utf8(bytes).unwrap();
        prop_assert!(verify(keys, &changed).is_err());
    }

    #[test]
    fn any_bytes_are_parsed_without_a_panic(bytes: Vec<u8>, text in "[A-Za-z0-9_.-]{0,400}") {
        let _ = UnverifiedToken::parse(&bytes);
        let _ = UnverifiedToken::parse(text.as_bytes());
        let _ = KeySet::parse(&bytes);
    }
}
