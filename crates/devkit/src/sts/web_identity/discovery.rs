//! The documents of an OIDC provider: its configuration and its keys, fetched over HTTPS for each
//! token, so that a changed key set applies at once.

use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, HOST};
use http::{Request, Uri};
use http_body_util::Full;
use serde::Deserialize;
use serde_json::Value;

use super::super::Refusal;
use super::provider::OidcProvider;
use super::{invalid, no_key};
use crate::https::{self, RequestError, trusting};

/// Timeout of both documents together, as AWS documents it.
const FETCH_TIMEOUT: Duration = Duration::from_secs(5);
const HTTPS_PORT: u16 = 443;

/// The fields without which STS finds no key.
#[derive(Debug, Deserialize)]
struct Configuration {
    issuer: String,
    jwks_uri: String,
    #[serde(rename = "response_types_supported")]
    _response_types: Vec<String>,
    #[serde(rename = "subject_types_supported")]
    _subject_types: Vec<String>,
    #[serde(rename = "id_token_signing_alg_values_supported")]
    _algorithms: Vec<String>,
}

/// Fetches the provider's key set.
pub(super) async fn keys(provider: &OidcProvider) -> Result<Value, Refusal> {
    let fetching = async {
        let url = format!("{}/.well-known/openid-configuration", provider.url);
        let document = fetch(provider, &url).await?;
        let configuration: Configuration =
            serde_json::from_slice(&document).map_err(|_| no_key())?;
        if configuration.issuer != provider.url {
            return Err(no_key());
        }
        let keys = fetch(provider, &configuration.jwks_uri).await?;
        serde_json::from_slice(&keys).map_err(|_| no_key())
    };
    let fetched = tokio::time::timeout(FETCH_TIMEOUT, fetching).await;
    fetched.unwrap_or_else(|_| Err(unreachable()))
}

async fn fetch(provider: &OidcProvider, url: &str) -> Result<Bytes, Refusal> {
    let uri: Uri = url.parse().map_err(|_| no_key())?;
    let host = uri.host().ok_or_else(no_key)?;
    if uri.scheme_str() != Some("https") {
        return Err(no_key());
    }
    let tls = trusting(provider.authorities.as_bytes()).map_err(|_| no_key())?;
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let request = Request::get(path)
        .header(HOST, host)
        .header(ACCEPT, "application/json")
        .body(Full::default())
        .map_err(|_| no_key())?;
    let response = match provider.address {
        Some(address) => https::send(tls, host, address, request).await,
        None => {
            let port = uri.port_u16().unwrap_or(HTTPS_PORT);
            https::send(tls, host, (host, port), request).await
        }
    };
    match response {
        Ok(response) if response.status() == 200 => Ok(response.into_body()),
        Ok(_) | Err(RequestError::Response(_)) => Err(no_key()),
        Err(RequestError::Connect(_)) => Err(unreachable()),
        Err(RequestError::Handshake(_)) => Err(invalid(
            "OpenIDConnect provider's HTTPS certificate doesn't match configured thumbprint",
        )),
    }
}

fn unreachable() -> Refusal {
    let message = "The request could not be fulfilled because the identity provider (IDP) that was \
                   asked to verify the incoming identity token could not be reached.";
    Refusal::new(400, "IDPCommunicationError", message)
}
