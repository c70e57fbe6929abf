//! Kubeconfigs: where an API server is, and who asks.

use std::path::PathBuf;

use serde_json::{Value, json};

use crate::ca::Pair;

/// Who talks to the API server.
pub(crate) enum Identity<'a> {
    Certificate(&'a Pair),
    Token(&'a str),
}

/// The kubeconfig for one user, as JSON, which is YAML as well.
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
