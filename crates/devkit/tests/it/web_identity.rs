//! The rules of `AssumeRoleWithWebIdentity`, each with the error of STS.

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _, RSA_PKCS1_SHA256,
    RSA_PKCS1_SHA384, RSA_PKCS1_SHA512, RsaKeyPair,
};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use parking_lot::Mutex;
use rcgen::{CertificateParams, CertifiedKey, KeyPair};
use rolegate_devkit::{OidcProvider, Sts};
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use serde_json::{Map, Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_util::task::AbortOnDropHandle;

use super::ANY;
use super::sts::{ROLE, element, form, post, unchecked};

const ISSUER: &str = "https://oidc.example.com/cluster";
const SUBJECT: &str = "system:serviceaccount:default:app";
const AUDIENCE: &str = "sts.amazonaws.com";
const NOT_VALIDATED: &str = "could not be validated by AWS";
const NO_KEY: &str = "Couldn't retrieve verification key from your identity provider,  please \
                      reference AssumeRoleWithWebIdentity documentation for requirements";
const INVALID: &str = "InvalidIdentityToken";

/// The issuer's documents, served over HTTPS with a certificate of its own.
struct Issuer {
    address: SocketAddr,
    certificate: String,
    documents: Arc<Mutex<Documents>>,
    _task: AbortOnDropHandle<()>,
}

struct Documents {
    configuration: Value,
    keys: Value,
}

impl Issuer {
    async fn start() -> Self {
        let key = KeyPair::generate().unwrap();
        let cert = CertificateParams::new(["oidc.example.com".to_owned()]).unwrap();
        let cert = cert.self_signed(&key).unwrap();
        let CertifiedKey { cert, signing_key } = CertifiedKey {
            cert,
            signing_key: key,
        };
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let private = PrivateKeyDer::try_from(signing_key.serialize_der()).unwrap();
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![cert.der().clone()], private)
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind(ANY).await.unwrap();
        let address = listener.local_addr().unwrap();
        let documents = Arc::new(Mutex::new(Documents {
            configuration: json!({
                "issuer": ISSUER,
                "jwks_uri": "https://oidc.example.com/keys",
                "response_types_supported": ["id_token"],
                "subject_types_supported": ["public"],
                "id_token_signing_alg_values_supported": ["RS256"],
            }),
            keys: json!({ "keys": [rsa_key("one")] }),
        }));
        let served = documents.clone();
        let task = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let Ok(mut stream) = acceptor.accept(stream).await else {
                    continue;
                };
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    let Ok(byte) = stream.read_u8().await else {
                        break;
                    };
                    head.push(byte);
                }
                let head = String::from_utf8_lossy(&head).into_owned();
                let body = {
                    let documents = served.lock();
                    match head.split(' ').nth(1).unwrap_or_default() {
                        "/keys" => documents.keys.to_string(),
                        "/cluster/.well-known/openid-configuration" => {
                            documents.configuration.to_string()
                        }
                        _ => String::new(),
                    }
                };
                let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
                let _ = stream.write_all((head + &body).as_bytes()).await;
                let _ = stream.shutdown().await;
            }
        });
        Self {
            address,
            certificate: cert.pem(),
            documents,
            _task: AbortOnDropHandle::new(task),
        }
    }

    fn provider(&self) -> OidcProvider {
        OidcProvider {
            account_id: "123456789012".into(),
            url: ISSUER.into(),
            client_ids: vec![AUDIENCE.into(), "other".into()],
            authorities: self.certificate.clone(),
            address: Some(self.address),
        }
    }

    fn set_keys(&self, keys: &[Value]) {
        self.documents.lock().keys = json!({ "keys": keys });
    }
}

/// Returns an issuer, and an STS with its provider and a role that trusts `SUBJECT`.
async fn service() -> (Issuer, Sts) {
    let issuer = Issuer::start().await;
    let sts = unchecked().await;
    let provider = issuer.provider();
    sts.set_trust_policy(ROLE, &trust(&provider.arn())).unwrap();
    sts.create_oidc_provider(provider).unwrap();
    (issuer, sts)
}

fn trust(provider: &str) -> String {
    json!({ "Version": "2012-10-17", "Statement": {
        "Effect": "Allow",
        "Principal": { "Federated": provider },
        "Action": "sts:AssumeRoleWithWebIdentity",
        "Condition": { "StringEquals": {
            "oidc.example.com/cluster:sub": SUBJECT,
            "oidc.example.com/cluster:aud": [AUDIENCE, "other"],
        } },
    } })
    .to_string()
}

fn rsa() -> &'static RsaKeyPair {
    static KEY: OnceLock<RsaKeyPair> = OnceLock::new();
    KEY.get_or_init(|| RsaKeyPair::generate(KeySize::Rsa2048).unwrap())
}

fn ec() -> &'static EcdsaKeyPair {
    static KEY: OnceLock<EcdsaKeyPair> = OnceLock::new();
    KEY.get_or_init(|| EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap())
}

fn encode(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

fn rsa_key(id: &str) -> Value {
    // RSAPublicKey in DER (RFC 8017): two headers, the modulus, a header, the exponent.
    let public = rsa().public_key().as_ref();
    let (n, e) = (&public[9..265], &public[267..]);
    json!({ "kty": "RSA", "kid": id, "use": "sig", "n": encode(n), "e": encode(e) })
}

fn ec_key(id: &str) -> Value {
    let point = ec().public_key().as_ref();
    json!({
        "kty": "EC", "kid": id, "crv": "P-256",
        "x": encode(&point[1..33]), "y": encode(&point[33..]),
    })
}

/// Returns the key with other members. `null` removes one.
fn with(mut object: Value, changes: Value) -> Value {
    let members: &Map<String, Value> = changes.as_object().unwrap();
    for (name, value) in members {
        let object = object.as_object_mut().unwrap();
        if value.is_null() && name != "null" {
            object.remove(name);
        } else {
            object.insert(name.clone(), value.clone());
        }
    }
    object
}

fn in_seconds(seconds: i64) -> i64 {
    Timestamp::now().as_second() + seconds
}

fn claims() -> Value {
    json!({
        "iss": ISSUER, "sub": SUBJECT, "aud": [AUDIENCE], "iat": in_seconds(0),
        "nbf": in_seconds(0), "exp": in_seconds(600),
    })
}

fn sign(header: &Value, claims: &str) -> String {
    let signed = format!("{}.{}", encode(header.to_string()), encode(claims));
    let random = SystemRandom::new();
    let rsa = |algorithm| {
        let mut signature = vec![0; rsa().public_modulus_len()];
        rsa()
            .sign(algorithm, &random, signed.as_bytes(), &mut signature)
            .unwrap();
        signature
    };
    let signature = match header["alg"].as_str().unwrap_or_default() {
        "ES256" => ec()
            .sign(&random, signed.as_bytes())
            .unwrap()
            .as_ref()
            .to_vec(),
        "RS384" => rsa(&RSA_PKCS1_SHA384),
        "RS512" => rsa(&RSA_PKCS1_SHA512),
        _ => rsa(&RSA_PKCS1_SHA256),
    };
    format!("{signed}.{}", encode(signature))
}

fn token(header: Value, changes: Value) -> String {
    let header = with(json!({ "alg": "RS256", "kid": "one" }), header);
    sign(&header, &with(claims(), changes).to_string())
}

fn assume(token: &str) -> String {
    form(&[
        ("Action", "AssumeRoleWithWebIdentity"),
        ("RoleArn", ROLE),
        ("RoleSessionName", "default.app"),
        ("WebIdentityToken", token),
    ])
}

/// Returns the error code and message, or `("", ARN)`.
async fn outcome(sts: &Sts, token: &str) -> (String, String) {
    let reply = post(sts, &assume(token)).await;
    if reply.status == 200 {
        return (String::new(), element(&reply.body, "Arn").to_owned());
    }
    let text = |name| {
        element(&reply.body, name)
            .replace("&apos;", "'")
            .replace("&#39;", "'")
    };
    (text("Code"), text("Message"))
}

async fn accepts(sts: &Sts, token: &str) {
    let (code, message) = outcome(sts, token).await;
    assert_eq!(
        (code.as_str(), message.contains("assumed-role/reader/")),
        ("", true),
        "{message}"
    );
}

async fn refuses(sts: &Sts, token: &str, code: &str, message: &str) {
    let (found, text) = outcome(sts, token).await;
    assert_eq!(found, code, "{text}");
    assert!(text.contains(message), "{text} instead of {message}");
}

#[tokio::test]
async fn a_valid_token_gets_a_session() {
    let (_issuer, sts) = service().await;
    let reply = post(&sts, &assume(&token(json!({}), json!({})))).await;
    assert_eq!(reply.status, 200, "{}", reply.body);
    assert_eq!(element(&reply.body, "SubjectFromWebIdentityToken"), SUBJECT);
    assert_eq!(element(&reply.body, "Audience"), AUDIENCE);
    let provider = "arn:aws:iam::123456789012:oidc-provider/oidc.example.com/cluster";
    assert_eq!(element(&reply.body, "Provider"), provider);
}

#[tokio::test]
async fn algorithms() {
    let (issuer, sts) = service().await;
    issuer.set_keys(&[rsa_key("one"), ec_key("two")]);
    for algorithm in ["RS256", "RS384", "RS512"] {
        accepts(&sts, &token(json!({ "alg": algorithm }), json!({}))).await;
    }
    accepts(
        &sts,
        &token(json!({ "alg": "ES256", "kid": "two" }), json!({})),
    )
    .await;
    for algorithm in ["HS256", "PS256", "none", "EdDSA"] {
        let token = token(json!({ "alg": algorithm }), json!({}));
        refuses(&sts, &token, INVALID, NOT_VALIDATED).await;
    }
    // The algorithm of another type of key.
    refuses(
        &sts,
        &token(json!({ "kid": "two" }), json!({})),
        INVALID,
        NO_KEY,
    )
    .await;
}

#[tokio::test]
async fn claims_are_required() {
    let (_issuer, sts) = service().await;
    for name in ["iss", "sub", "aud", "iat", "exp"] {
        let without = token(json!({}), json!({ name: null }));
        let message = format!("Missing a required claim: {name}");
        refuses(&sts, &without, INVALID, &message).await;
    }
    let unknown = token(
        json!({}),
        json!({ "iss": "https://oidc.example.com/Cluster" }),
    );
    let message = "No OpenIDConnect provider found in your account for \
                   https://oidc.example.com/Cluster";
    refuses(&sts, &unknown, INVALID, message).await;
}

#[tokio::test]
async fn times_have_five_minutes_of_leeway() {
    let (_issuer, sts) = service().await;
    for good in [
        json!({ "exp": in_seconds(-280) }),
        json!({ "iat": in_seconds(280) }),
        json!({ "nbf": in_seconds(280) }),
        json!({ "nbf": null }),
        json!({ "exp": in_seconds(60).to_string() }),
    ] {
        accepts(&sts, &token(json!({}), good)).await;
    }
    let expired = token(json!({}), json!({ "exp": in_seconds(-301) }));
    let message = "Token expired: current date/time ";
    refuses(&sts, &expired, "ExpiredTokenException", message).await;
    for (bad, message) in [
        (
            json!({ "iat": in_seconds(320) }),
            "Token issued in the future",
        ),
        (json!({ "nbf": in_seconds(320) }), "Token not yet valid"),
        (json!({ "exp": 1.5 }), "Invalid timestamp in token claims."),
        (
            json!({ "iat": "soon" }),
            "Invalid timestamp in token claims.",
        ),
    ] {
        refuses(&sts, &token(json!({}), bad), INVALID, message).await;
    }
    let null = claims()
        .to_string()
        .replacen("\"nbf\":", "\"nbf\":null,\"x\":", 1);
    let null = sign(&json!({ "alg": "RS256", "kid": "one" }), &null);
    refuses(&sts, &null, INVALID, "Invalid timestamp in token claims.").await;
    sts.set_token_leeway(Duration::ZERO);
    let expired = token(json!({}), json!({ "exp": in_seconds(-1) }));
    refuses(&sts, &expired, "ExpiredTokenException", message_of_expiry()).await;
}

fn message_of_expiry() -> &'static str {
    "must be before the expiration date/time"
}

#[tokio::test]
async fn audiences() {
    let (_issuer, sts) = service().await;
    accepts(&sts, &token(json!({}), json!({ "aud": AUDIENCE }))).await;
    let several = json!([AUDIENCE, "other"]);
    accepts(
        &sts,
        &token(json!({}), json!({ "aud": several, "azp": "other" })),
    )
    .await;
    for bad in [
        json!({ "aud": several }),
        json!({ "aud": "amazonaws.com" }),
        json!({ "azp": "unknown" }),
    ] {
        refuses(&sts, &token(json!({}), bad), INVALID, NOT_VALIDATED).await;
    }
    let empty = token(json!({}), json!({ "aud": [] }));
    refuses(
        &sts,
        &empty,
        INVALID,
        "Claim is not allowed to be empty: aud",
    )
    .await;
}

#[tokio::test]
async fn key_ids() {
    let (issuer, sts) = service().await;
    let without = token(json!({ "kid": null }), json!({}));
    // A token without a key ID works with a single key.
    accepts(&sts, &without).await;
    for id in ["unknown", ""] {
        refuses(
            &sts,
            &token(json!({ "kid": id }), json!({})),
            INVALID,
            NO_KEY,
        )
        .await;
    }
    issuer.set_keys(&[rsa_key("one"), rsa_key("two")]);
    refuses(&sts, &without, INVALID, NO_KEY).await;
    issuer.set_keys(&[with(rsa_key("one"), json!({ "kid": null }))]);
    refuses(&sts, &without, INVALID, NO_KEY).await;
    // The later of two keys with the same ID counts.
    let plain = token(json!({}), json!({}));
    issuer.set_keys(&[ec_key("one"), rsa_key("one")]);
    accepts(&sts, &plain).await;
    issuer.set_keys(&[rsa_key("one"), ec_key("one")]);
    refuses(&sts, &plain, INVALID, NO_KEY).await;
}

#[tokio::test]
async fn members_of_keys() {
    let (issuer, sts) = service().await;
    let plain = token(json!({}), json!({}));
    issuer.set_keys(&[with(rsa_key("one"), json!({ "alg": "RS512", "use": null }))]);
    accepts(&sts, &plain).await;
    for change in [
        json!({ "use": "enc" }),
        json!({ "key_ops": ["verify"] }),
        json!({ "x5c": ["MIIB"] }),
        json!({ "n": null, "e": null, "x5c": ["MIIB"] }),
    ] {
        issuer.set_keys(&[with(rsa_key("one"), change.clone())]);
        let (code, message) = outcome(&sts, &plain).await;
        assert_eq!(
            (code.as_str(), message.as_str()),
            (INVALID, NO_KEY),
            "{change}"
        );
    }
    // A certificate that contains the key.
    let n = rsa_key("one");
    let decode = |name: &str| URL_SAFE_NO_PAD.decode(n[name].as_str().unwrap()).unwrap();
    let (modulus, exponent) = (decode("n"), decode("e"));
    let mut der = vec![0x30, 2, 0x82, 1, 1, 0];
    der.extend(modulus);
    der.extend([2, 3]);
    der.extend(exponent);
    let certificate = base64::engine::general_purpose::STANDARD.encode(der);
    issuer.set_keys(&[with(rsa_key("one"), json!({ "x5c": [certificate] }))]);
    accepts(&sts, &plain).await;
}

#[tokio::test]
async fn more_than_a_hundred_keys_of_a_type_fail() {
    let (issuer, sts) = service().await;
    let mut keys: Vec<Value> = (0..100).map(|n| rsa_key(&n.to_string())).collect();
    keys.push(ec_key("ec"));
    issuer.set_keys(&keys);
    accepts(&sts, &token(json!({ "kid": "99" }), json!({}))).await;
    keys.push(rsa_key("100"));
    issuer.set_keys(&keys);
    refuses(
        &sts,
        &token(json!({ "kid": "99" }), json!({})),
        INVALID,
        NO_KEY,
    )
    .await;
    accepts(
        &sts,
        &token(json!({ "alg": "ES256", "kid": "ec" }), json!({})),
    )
    .await;
}

#[tokio::test]
async fn malformed_and_forged_tokens() {
    let (_issuer, sts) = service().await;
    let not_a_jwt = "is not a valid JWT";
    let good = token(json!({}), json!({}));
    for bad in [
        "abcd",
        "a.b.c",
        &good.replace('.', " "),
        &token(json!({ "crit": ["x"] }), json!({})),
    ] {
        refuses(&sts, bad, INVALID, not_a_jwt).await;
    }
    let (signed, _) = good.rsplit_once('.').unwrap();
    let other = token(
        json!({}),
        json!({ "sub": "system:serviceaccount:default:other" }),
    );
    let (_, signature) = other.rsplit_once('.').unwrap();
    let forged = format!("{signed}.{signature}");
    refuses(&sts, &forged, INVALID, NOT_VALIDATED).await;
    // Of duplicate claims, the last one counts.
    let twice = claims()
        .to_string()
        .replacen('{', "{\"sub\":\"someone-else\",", 1);
    accepts(
        &sts,
        &sign(&json!({ "alg": "RS256", "kid": "one" }), &twice),
    )
    .await;
    let longest = "x".repeat(20_000);
    refuses(&sts, &longest, INVALID, not_a_jwt).await;
    let too_long = "x".repeat(20_001);
    refuses(
        &sts,
        &too_long,
        "ValidationError",
        "'***' at 'webIdentityToken'",
    )
    .await;
}

#[tokio::test]
async fn trust_policies() {
    let (issuer, sts) = service().await;
    let other = token(
        json!({}),
        json!({ "sub": "system:serviceaccount:default:other" }),
    );
    let message = "Not authorized to perform sts:AssumeRoleWithWebIdentity";
    refuses(&sts, &other, "AccessDenied", message).await;
    // The session may outlive its token.
    let short = token(json!({}), json!({ "exp": in_seconds(5) }));
    accepts(&sts, &short).await;
    // A role without a trust policy trusts no web identity, and one for web identity no other caller.
    let elsewhere = assume(&short).replace("reader", "writer");
    let reply = post(&sts, &elsewhere).await;
    assert_eq!(element(&reply.body, "Message"), message);
    let reply = post(&sts, &super::sts::assume(&[])).await;
    assert_eq!(element(&reply.body, "Code"), "AccessDenied");
    drop(issuer);
}

#[tokio::test]
async fn documents() {
    let (issuer, sts) = service().await;
    let plain = token(json!({}), json!({}));
    let complete = issuer.documents.lock().configuration.clone();
    for change in [
        json!({ "issuer": "https://oidc.example.com/other" }),
        json!({ "jwks_uri": "http://oidc.example.com/keys" }),
        json!({ "jwks_uri": "https://oidc.example.com/missing" }),
        json!({ "response_types_supported": null }),
    ] {
        issuer.documents.lock().configuration = with(complete.clone(), change);
        refuses(&sts, &plain, INVALID, NO_KEY).await;
    }
    let mut provider = issuer.provider();
    provider.authorities = Issuer::start().await.certificate;
    sts.create_oidc_provider(provider.clone()).unwrap();
    refuses(&sts, &plain, INVALID, "certificate doesn't match").await;
    let free = TcpListener::bind(ANY).await.unwrap().local_addr().unwrap();
    provider.address = Some(free);
    sts.create_oidc_provider(provider.clone()).unwrap();
    refuses(
        &sts,
        &plain,
        "IDPCommunicationError",
        "could not be reached",
    )
    .await;
    for url in [
        "http://oidc.example.com",
        "https://oidc.example.com:8443",
        "https://oidc.example.com/a?b",
        &format!("https://oidc.example.com/{}", "a".repeat(255)),
    ] {
        provider.url = url.into();
        assert!(sts.create_oidc_provider(provider.clone()).is_err(), "{url}");
    }
}
