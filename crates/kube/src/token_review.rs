//! Validates service-account tokens with the TokenReview API.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use kube::api::PostParams;
use kube::{Api, Client};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use zeroize::Zeroize;

use crate::error::Failure;

/// Timeout for a review.
const REVIEW_TIMEOUT: Duration = Duration::from_secs(5);

const POD_NAME: &str = "authentication.kubernetes.io/pod-name";
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";
const NODE_NAME: &str = "authentication.kubernetes.io/node-name";

/// The result of a token review.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reviewed {
    /// `true` if the token was issued by this cluster and is valid.
    pub authenticated: bool,
    /// The user name: `system:serviceaccount:NAMESPACE:NAME` for a service account.
    pub username: String,
    /// The requested audiences that the token is valid for. An API server that does not validate
    /// audiences reports none.
    pub audiences: Vec<String>,
    /// The name of the pod that the token is bound to.
    pub pod_name: Option<String>,
    /// The UID of the pod that the token is bound to.
    pub pod_uid: Option<String>,
    /// The node of that pod. API servers before 1.30 do not report it.
    pub node_name: Option<String>,
    /// The token's own expiry. `None` for tokens that do not expire.
    pub until: Option<Timestamp>,
}

/// Reviews `token` for `audience`.
///
/// # Errors
/// Returns a message if the API server does not respond or forbids the request.
pub async fn review(client: Client, token: &str, audience: &str) -> Result<Reviewed, String> {
    let api = Api::<TokenReview>::all(client);
    let mut review = TokenReview {
        spec: TokenReviewSpec {
            audiences: Some(vec![audience.into()]),
            token: Some(token.into()),
        },
        ..TokenReview::default()
    };
    let params = PostParams::default();
    let answer = tokio::time::timeout(REVIEW_TIMEOUT, api.create(&params, &review)).await;
    review.spec.token.zeroize();
    let failed = |failure: Failure| failure.sentence("tokenreviews");
    let mut review = answer
        .map_err(|_| failed(Failure::no_answer(REVIEW_TIMEOUT)))?
        .map_err(|error| failed(Failure::of_call(&error)))?;
    // The API server returns the token.
    review.spec.token.zeroize();
    let status = review.status.unwrap_or_default();
    let user = status.user.unwrap_or_default();
    let mut extra = user.extra.unwrap_or_default();
    // Each key has one value. Several values would have an unknown meaning.
    let mut single = |key: &str| match extra.remove(key)?.as_slice() {
        [value] => Some(value.clone()),
        _ => None,
    };
    Ok(Reviewed {
        authenticated: status.authenticated.unwrap_or(false),
        username: user.username.unwrap_or_default(),
        audiences: status.audiences.unwrap_or_default(),
        pod_name: single(POD_NAME),
        pod_uid: single(POD_UID),
        node_name: single(NODE_NAME),
        until: until(token),
    })
}

/// Reads the unverified claims of a service account's token: the most that the API server could
/// confirm. `None` if it is not such a token.
pub fn claimed(token: &str) -> Option<Reviewed> {
    let claims: Claims = claims(token)?;
    let bound = claims.kubernetes;
    Some(Reviewed {
        authenticated: true,
        username: claims.sub,
        audiences: match claims.aud {
            Audiences::One(one) => vec![one],
            Audiences::All(all) => all,
        },
        pod_name: bound.pod.as_ref().map(|pod| pod.name.clone()),
        pod_uid: bound.pod.map(|pod| pod.uid),
        node_name: bound.node.map(|node| node.name),
        until: until(token),
    })
}

/// The claims of a service account's token, see the API server's `pkg/serviceaccount/claims.go`.
#[derive(Deserialize)]
struct Claims {
    sub: String,
    #[serde(default)]
    aud: Audiences,
    #[serde(rename = "kubernetes.io", default)]
    kubernetes: Bound,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Audiences {
    One(String),
    All(Vec<String>),
}

impl Default for Audiences {
    fn default() -> Self {
        Self::All(Vec::new())
    }
}

/// The objects that the token is bound to.
#[derive(Default, Deserialize)]
struct Bound {
    pod: Option<Reference>,
    node: Option<Reference>,
}

#[derive(Deserialize)]
struct Reference {
    #[serde(default)]
    name: String,
    #[serde(default)]
    uid: String,
}

fn claims<C: DeserializeOwned>(token: &str) -> Option<C> {
    let claims = token.split('.').nth(1)?;
    let claims = URL_SAFE_NO_PAD.decode(claims).ok()?;
    serde_json::from_slice(&claims).ok()
}

/// Reads the token's expiry, which the API server validates but does not report.
fn until(token: &str) -> Option<Timestamp> {
    #[derive(Deserialize)]
    struct Claims {
        exp: i64,
    }
    let claims: Claims = claims(token)?;
    Timestamp::from_second(claims.exp).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expiry_is_read_from_the_token() {
        let token = |claims: &str| format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(claims));
        let then = "2026-01-01T00:00:00Z".parse().unwrap();
        assert_eq!(until(&token(r#"{"exp":1767225600,"iss":"x"}"#)), Some(then));
        for odd in [
            &*token("{}"),
            &token(r#"{"exp":9e99}"#),
            "opaque",
            "a.b.c",
            "",
        ] {
            assert_eq!(until(odd), None, "{odd}");
        }
    }

    #[test]
    fn claims_are_read_from_the_token() {
        let token = |claims: &str| format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(claims));
        // As issued by kube-apiserver 1.36.
        let whole = r#"{"aud":["rolegate"],"exp":1767225600,"iat":1767222000,"iss":"https://kubernetes.default.svc",
            "jti":"x","kubernetes.io":{"namespace":"rolegate-system","node":{"name":"node-1","uid":"n"},
            "pod":{"name":"agent","uid":"u"},"serviceaccount":{"name":"rolegate-agent","uid":"s"}},
            "nbf":1767222000,"sub":"system:serviceaccount:rolegate-system:rolegate-agent"}"#;
        let expected = Reviewed {
            authenticated: true,
            username: "system:serviceaccount:rolegate-system:rolegate-agent".into(),
            audiences: vec!["rolegate".into()],
            pod_name: Some("agent".into()),
            pod_uid: Some("u".into()),
            node_name: Some("node-1".into()),
            until: "2026-01-01T00:00:00Z".parse().ok(),
        };
        assert_eq!(claimed(&token(whole)), Some(expected));
        let least = claimed(&token(r#"{"sub":"x","aud":"one"}"#)).unwrap();
        assert_eq!((least.audiences, least.pod_uid), (vec!["one".into()], None));
        for odd in ["", "opaque", "a.b.c", &*token("{}"), &token("[]")] {
            assert_eq!(claimed(odd), None, "{odd}");
        }
    }
}
