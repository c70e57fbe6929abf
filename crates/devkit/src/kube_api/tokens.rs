//! Tokens and their users (TokenReview).

use std::collections::BTreeMap;

use http::StatusCode;
use serde_json::{Value, json};

use super::{Failure, KubeApi, json_answer};
use crate::http::Answer;
use crate::recent::lock;

#[derive(Debug, Default)]
pub(super) struct Tokens(BTreeMap<String, Token>);

#[derive(Debug)]
struct Token {
    audience: String,
    user: Value,
}

impl KubeApi {
    /// Registers a token with its audience and user, in the format of a TokenReview's `UserInfo`.
    /// It never expires, whatever its claims.
    pub fn put_token(&self, token: &str, audience: &str, user: Value) {
        let audience = audience.to_owned();
        let tokens = &mut lock(&self.state.inner).tokens.0;
        tokens.insert(token.to_owned(), Token { audience, user });
    }
}

impl Tokens {
    pub(super) fn review(&self, body: &[u8]) -> Result<Answer, Failure> {
        let mut review: Value = serde_json::from_slice(body)
            .map_err(|error| Failure::new(400, format!("the body is not JSON: {error}")))?;
        let text = |pointer| review.pointer(pointer).and_then(Value::as_str);
        let token = text("/spec/token").and_then(|token| self.0.get(token));
        let asked = review.pointer("/spec/audiences").and_then(Value::as_array);
        let meant = |token: &&Token| {
            asked.is_some_and(|asked| asked.iter().any(|it| *it == *token.audience))
        };
        let status = match token.filter(meant) {
            Some(token) => json!({
                "authenticated": true, "user": token.user, "audiences": [token.audience],
            }),
            None => json!({ "error": "the stand-in does not know the token" }),
        };
        if let Some(review) = review.as_object_mut() {
            review.insert("status".into(), status);
        }
        Ok(json_answer(StatusCode::CREATED, &review))
    }
}

/// The discovery documents of ServiceAccount tokens.
#[derive(Debug)]
pub(super) struct TokenKeys {
    issuer: String,
    key_set: String,
}

impl TokenKeys {
    pub(super) fn new(issuer: &str, key_set: &str) -> Self {
        Self {
            issuer: issuer.to_owned(),
            key_set: key_set.to_owned(),
        }
    }

    pub(super) fn document(&self, path: &str) -> Option<String> {
        match path {
            "/.well-known/openid-configuration" => {
                Some(serde_json::json!({"issuer": self.issuer}).to_string())
            }
            "/openid/v1/jwks" => Some(self.key_set.clone()),
            _ => None,
        }
    }
}
