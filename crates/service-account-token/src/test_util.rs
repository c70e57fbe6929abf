//! A signer of tokens for tests: a stand-in for an API server's key.

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING,
    ECDSA_P521_SHA512_FIXED_SIGNING, EcdsaKeyPair, KeyPair, RSA_PKCS1_SHA256, RsaKeyPair,
};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use crate::key::Algorithm;

/// The private key of a cluster.
pub struct Signer {
    id: String,
    algorithm: Algorithm,
    pair: Pair,
}

enum Pair {
    Rsa(RsaKeyPair),
    Ecdsa(EcdsaKeyPair),
}

impl Signer {
    /// Generates a key with this `kid`; an RSA key has 2,048 bits.
    ///
    /// # Panics
    /// Panics if the system has no randomness.
    #[expect(clippy::expect_used, reason = "a test fails by a panic")]
    pub fn generate(id: &str, algorithm: Algorithm) -> Self {
        let ecdsa = match algorithm {
            Algorithm::Rs256 => None,
            Algorithm::Es256 => Some(&ECDSA_P256_SHA256_FIXED_SIGNING),
            Algorithm::Es384 => Some(&ECDSA_P384_SHA384_FIXED_SIGNING),
            Algorithm::Es512 => Some(&ECDSA_P521_SHA512_FIXED_SIGNING),
        };
        let pair = match ecdsa {
            Some(kind) => Pair::Ecdsa(EcdsaKeyPair::generate(kind).expect("randomness")),
            None => Pair::Rsa(RsaKeyPair::generate(KeySize::Rsa2048).expect("randomness")),
        };
        Self {
            id: id.to_owned(),
            algorithm,
            pair,
        }
    }

    /// Returns the public key as a JWK.
    pub fn jwk(&self) -> Value {
        let mut jwk = match &self.pair {
            Pair::Rsa(pair) => {
                // RSAPublicKey (RFC 8017, A.1.1) of 2,048 bits: both lengths are fixed.
                let der = pair.public_key().as_ref();
                let part = |range| URL_SAFE_NO_PAD.encode(der.get(range).unwrap_or_default());
                json!({"kty": "RSA", "n": part(9..265), "e": part(267..270)})
            }
            Pair::Ecdsa(pair) => {
                let point = pair.public_key().as_ref().get(1..).unwrap_or_default();
                let (x, y) = point.split_at(point.len() / 2);
                let crv = match self.algorithm {
                    Algorithm::Es256 => "P-256",
                    Algorithm::Es384 => "P-384",
                    Algorithm::Rs256 | Algorithm::Es512 => "P-521",
                };
                let [x, y] = [x, y].map(|part| URL_SAFE_NO_PAD.encode(part));
                json!({"kty": "EC", "crv": crv, "x": x, "y": y})
            }
        };
        for (name, value) in [
            ("kid", self.id.as_str()),
            ("alg", self.algorithm.as_str()),
            ("use", "sig"),
        ] {
            if let Some(members) = jwk.as_object_mut() {
                members.insert(name.into(), value.into());
            }
        }
        jwk
    }

    /// Returns a key set with the public keys of `signers`.
    pub fn key_set(signers: &[&Self]) -> String {
        let keys: Vec<_> = signers.iter().map(|signer| signer.jwk()).collect();
        json!({ "keys": keys }).to_string()
    }

    /// Returns the header of this key's tokens.
    pub fn header(&self) -> Value {
        json!({"alg": self.algorithm.as_str(), "kid": self.id})
    }

    /// Signs a token.
    pub fn sign(&self, claims: &Value) -> String {
        self.sign_text(&self.header().to_string(), &claims.to_string())
    }

    /// Signs a header and claims that need not be JSON.
    ///
    /// # Panics
    /// Panics if the system has no randomness.
    #[expect(clippy::expect_used, reason = "a test fails by a panic")]
    pub fn sign_text(&self, header: &str, claims: &str) -> String {
        let [header, claims] = [header, claims].map(|part| URL_SAFE_NO_PAD.encode(part));
        let signed = format!("{header}.{claims}");
        let random = SystemRandom::new();
        let signature = match &self.pair {
            Pair::Rsa(pair) => {
                let mut signature = vec![0; pair.public_modulus_len()];
                pair.sign(
                    &RSA_PKCS1_SHA256,
                    &random,
                    signed.as_bytes(),
                    &mut signature,
                )
                .expect("a signature");
                signature
            }
            Pair::Ecdsa(pair) => {
                let signature = pair.sign(&random, signed.as_bytes()).expect("a signature");
                signature.as_ref().to_vec()
            }
        };
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
    }
}

/// Returns the claims that an API server writes for a pod `name` with the UID `uid` in `shop`, with
/// the ServiceAccount `web`, for an hour from `issued_at`, in Unix seconds.
pub fn claims(issuer: &str, name: &str, uid: &str, issued_at: i64) -> Value {
    json!({
        "iss": issuer,
        "sub": "system:serviceaccount:shop:web",
        "aud": ["pods.eks.amazonaws.com"],
        "iat": issued_at,
        "nbf": issued_at,
        "exp": issued_at + 3600,
        "jti": "5a1f7b0e-1f0a-4b5e-9b3c-1d2e3f405162",
        "kubernetes.io": {
            "namespace": "shop",
            "serviceaccount": {"name": "web", "uid": "sa-1"},
            "pod": {"name": name, "uid": uid},
            "node": {"name": "node-1", "uid": "node-uid"},
            "warnafter": issued_at + 3000,
        },
    })
}
