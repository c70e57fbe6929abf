//! Kubeconfigs for an API server and a user.

use std::path::PathBuf;

use serde_json::{Value, json};

use crate::ca::Pair;

/// The user of a kubeconfig.
pub(crate) enum Identity<'a> {
    Certificate(&'a Pair),
    Token(&'a str),
}

/// Returns the kubeconfig of one user as JSON, which is also YAML.
pub(crate) fn kubeconfig(server: &str, authority: PathBuf, identity: &Identity) -> Value {
    let user = match identity {
        Identity::Certificate(pair) => json!({
            "client-certificate": pair.certificate, "client-key": pair.key,
        }),
        Identity::Token(token) => json!({ "token": token }),
    };
    json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{ "name": "test", "cluster": {
            "server": server, "certificate-authority": authority,
        }}],
        "users": [{ "name": "test", "user": user }],
        "contexts": [{ "name": "test", "context": { "cluster": "test", "user": "test" }}],
        "current-context": "test",
    })
}
