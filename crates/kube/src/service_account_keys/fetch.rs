//! One fetch of both discovery documents.

use std::time::Duration;

use http::{Request, StatusCode};
use http_body_util::{BodyExt, Limited};
use kube::client::Body;
use rolegate_service_account_token::{Issuer, KeySet, KeySetError, MAX_KEY_SET_BYTES};
use serde::Deserialize;

use crate::client::Connection;
use crate::error::{Failure, chain};

/// Path of the document that names the issuer.
const CONFIGURATION: &str = "/.well-known/openid-configuration";
/// Path of the key set. The configuration's `jwks_uri` is not used: it may name a copy on a server
/// outside the cluster, but the API server always serves its own keys here.
const KEY_SET: &str = "/openid/v1/jwks";
/// Maximum size of the configuration, in bytes. The API server's has about 300.
const MAX_CONFIGURATION_BYTES: usize = 64 << 10;
/// Maximum length of an issuer, in bytes, as in AWS IAM's OIDC providers.
const MAX_ISSUER_BYTES: usize = 255;
/// Timeout of both requests together.
const FETCH_TIMEOUT: Duration = Duration::from_secs(5);

/// The reason why the keys cannot be fetched.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The API server cannot be reached, or refuses.
    #[error("{0}")]
    Call(String),
    /// The API server does not serve the documents.
    #[error(
        "the API server does not serve {0}: set its --service-account-issuer to an https URL, with \
         which it publishes the keys of its tokens"
    )]
    NotServed(&'static str),
    /// The agent has no right to read the documents.
    #[error(
        "the API server denies access to {0}: bind the ClusterRole \
         system:service-account-issuer-discovery to the agent's ServiceAccount"
    )]
    Denied(&'static str),
    /// Another status.
    #[error("the API server responded {1} to {0}")]
    Status(&'static str, StatusCode),
    /// The document is too long or broke off.
    #[error("cannot read {0} of the API server: {1}")]
    Body(&'static str, String),
    /// The configuration has no usable issuer.
    #[error("the API server's {CONFIGURATION} names no issuer")]
    Issuer,
    /// The key set cannot be used.
    #[error("the API server's {KEY_SET} cannot be used: {0}")]
    Keys(#[from] KeySetError),
    /// The API server did not respond in time.
    #[error("the API server did not respond within {FETCH_TIMEOUT:?}")]
    Timeout,
}

/// Both documents.
pub(super) struct Documents {
    pub(super) issuer: Issuer,
    pub(super) keys: KeySet,
    pub(super) text: Vec<u8>,
}

#[derive(Deserialize)]
struct Configuration {
    issuer: String,
}

/// Fetches both documents.
pub(super) async fn fetch(connection: &Connection) -> Result<Documents, FetchError> {
    let both = async {
        let configuration = get(connection, CONFIGURATION, MAX_CONFIGURATION_BYTES).await?;
        let text = get(connection, KEY_SET, MAX_KEY_SET_BYTES).await?;
        let configuration: Configuration =
            serde_json::from_slice(&configuration).map_err(|_| FetchError::Issuer)?;
        let issuer = configuration.issuer;
        if issuer.is_empty() || issuer.len() > MAX_ISSUER_BYTES {
            return Err(FetchError::Issuer);
        }
        Ok(Documents {
            issuer: Issuer::new(issuer),
            keys: KeySet::parse(&text)?,
            text,
        })
    };
    tokio::time::timeout(FETCH_TIMEOUT, both)
        .await
        .unwrap_or(Err(FetchError::Timeout))
}

async fn get(
    connection: &Connection,
    path: &'static str,
    max: usize,
) -> Result<Vec<u8>, FetchError> {
    let request = Request::get(path).body(Body::empty());
    let request = request.map_err(|error| FetchError::Call(error.to_string()))?;
    let response = connection.client().send(request).await;
    let response = response
        .map_err(|error| FetchError::Call(Failure::of_call(&error).sentence("discovery")))?;
    match response.status() {
        StatusCode::OK => {}
        StatusCode::NOT_FOUND => return Err(FetchError::NotServed(path)),
        StatusCode::FORBIDDEN => return Err(FetchError::Denied(path)),
        status => return Err(FetchError::Status(path, status)),
    }
    let body = Limited::new(response.into_body(), max).collect().await;
    let body = body.map_err(|error| FetchError::Body(path, chain(error.as_ref())))?;
    Ok(body.to_bytes().into())
}
