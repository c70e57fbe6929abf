//! The HTTP client shared by all SDK clients of the process.
//!
//! It differs from the SDK's own in three ways. TLS and the system's root certificates are loaded
//! with the first `https` request, so they cost nothing if every endpoint is plain. Plain requests
//! never use a proxy: they are for metadata and container credentials on link-local addresses,
//! which a proxy cannot reach and must not see. Responses, which hold credentials, are wiped when
//! the SDK has read them, and connections, whose buffers held them too, are closed soon after a
//! burst of calls.

use std::time::Duration;

use aws_smithy_http_client::proxy::ProxyConfig;
use aws_smithy_http_client::tls::{Provider, rustls_provider::CryptoMode};
use aws_smithy_http_client::{Builder, ConnectorBuilder};
use aws_smithy_runtime_api::client::connector_metadata::ConnectorMetadata;
use aws_smithy_runtime_api::client::http::{
    HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpClient,
    SharedHttpConnector,
};
use aws_smithy_runtime_api::client::orchestrator::HttpRequest;
use aws_smithy_runtime_api::client::result::ConnectorError;
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use aws_smithy_types::body::SdkBody;
use aws_smithy_types::byte_stream::ByteStream;
use bytes::Bytes;
use zeroize::{Zeroize, Zeroizing};

/// The time for which an idle connection is kept. Calls come in bursts and share connections within
/// one; after that, a connection costs memory and keeps the last response in its buffers.
const IDLE_TIMEOUT: Duration = Duration::from_secs(2);
/// Maximum size of a response, in bytes. Those of STS and the metadata service have a few thousand.
const MAX_RESPONSE_BYTES: usize = 1024 * 1024;
/// Initial capacity for a response, in bytes. Nearly all are smaller.
const INITIAL_RESPONSE_BYTES: usize = 8 * 1024;

/// Sends `https` requests through `secure`, all others through `plain`.
#[derive(Debug, Clone)]
pub(crate) struct SplitClient {
    plain: SharedHttpClient,
    secure: SharedHttpClient,
}

impl SplitClient {
    /// Uses `HTTPS_PROXY` and `NO_PROXY` of the environment for `https`.
    pub(crate) fn new() -> Self {
        let secure = Builder::new().build_with_connector_fn(|settings, components| {
            let mut connector =
                ConnectorBuilder::default().tls_provider(Provider::rustls(CryptoMode::AwsLc));
            connector.set_connector_settings(settings.cloned());
            connector.set_sleep_impl(components.and_then(RuntimeComponents::sleep_impl));
            connector.set_proxy_config(Some(ProxyConfig::from_env()));
            connector.set_pool_idle_timeout(Some(Some(IDLE_TIMEOUT)));
            connector.build()
        });
        Self {
            plain: Builder::new().pool_idle_timeout(IDLE_TIMEOUT).build_http(),
            secure,
        }
    }
}

impl HttpClient for SplitClient {
    fn http_connector(
        &self,
        settings: &HttpConnectorSettings,
        components: &RuntimeComponents,
    ) -> SharedHttpConnector {
        SharedHttpConnector::new(SplitConnector {
            client: self.clone(),
            settings: settings.clone(),
            components: components.clone(),
        })
    }

    fn connector_metadata(&self) -> Option<ConnectorMetadata> {
        self.plain.connector_metadata()
    }
}

/// Chooses the client for each request, which is unknown when the SDK asks for a connector. The two
/// clients own the connection pools.
#[derive(Debug)]
struct SplitConnector {
    client: SplitClient,
    settings: HttpConnectorSettings,
    components: RuntimeComponents,
}

impl HttpConnector for SplitConnector {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let client = if request.uri().starts_with("https:") {
            &self.client.secure
        } else {
            &self.client.plain
        };
        let answer = client
            .http_connector(&self.settings, &self.components)
            .call(request);
        HttpConnectorFuture::new(async move {
            let mut answer = answer.await?;
            let body = std::mem::replace(answer.body_mut(), SdkBody::taken());
            *answer.body_mut() = SdkBody::from(wiped(ByteStream::new(body)).await?);
            Ok(answer)
        })
    }
}

/// Reads a whole response into memory that is wiped when the last reference is dropped.
async fn wiped(mut body: ByteStream) -> Result<Bytes, ConnectorError> {
    let mut whole = Zeroizing::new(Vec::with_capacity(INITIAL_RESPONSE_BYTES));
    while let Some(part) = body.next().await {
        let part = part.map_err(|error| ConnectorError::io(error.into()))?;
        let length = whole.len() + part.len();
        if length > MAX_RESPONSE_BYTES {
            let error = format!("the response has more than {MAX_RESPONSE_BYTES} bytes");
            return Err(ConnectorError::other(error.into(), None));
        }
        if length > whole.capacity() {
            // A growing vector would leave its old memory uncleared; this one is wiped.
            let mut larger = Zeroizing::new(Vec::with_capacity(length.next_power_of_two()));
            larger.extend_from_slice(&whole);
            whole = larger;
        }
        whole.extend_from_slice(&part);
        // Only data that the connection's own buffer does not share can be wiped.
        if let Ok(mut part) = part.try_into_mut() {
            part.zeroize();
        }
    }
    Ok(Bytes::from_owner(whole))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_answer_is_read_whole_and_within_its_bound() {
        for length in [
            0,
            1,
            INITIAL_RESPONSE_BYTES,
            INITIAL_RESPONSE_BYTES + 1,
            3 * INITIAL_RESPONSE_BYTES,
            MAX_RESPONSE_BYTES,
        ] {
            let sent: Vec<u8> = (0..length).map(|place| place as u8).collect();
            let read = wiped(ByteStream::from(sent.clone())).await.unwrap();
            assert!(read == sent, "{length}");
        }
        let error = wiped(ByteStream::from(vec![0; MAX_RESPONSE_BYTES + 1]))
            .await
            .unwrap_err();
        assert!(format!("{error:?}").contains("more than"), "{error:?}");
    }
}
