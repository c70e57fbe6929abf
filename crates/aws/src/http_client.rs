//! The HTTP client that all SDK clients of the process share.
//!
//! It differs from the SDK's own in three ways. TLS and the system's root certificates are loaded
//! with the first `https` request and not before, so where every endpoint is plain they cost
//! nothing. Plain requests never go through a proxy: they are for metadata and container
//! credentials on link-local addresses, which a proxy can't reach and must not see. And answers,
//! which hold credentials, are wiped when the SDK has read them; connections, whose buffers had
//! them too, end soon after a burst of calls.

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

/// The time for which an idle connection is kept. Calls come in bursts and share
/// connections within one; after that, a connection costs memory and keeps the last answer in its
/// buffers.
const IDLE_TIMEOUT: Duration = Duration::from_secs(2);
/// The most bytes of an answer that are read; STS's and the metadata service's have few thousand.
const MOST: usize = 1024 * 1024;
/// The bytes of an answer for which there is room from the start: more than nearly all have.
const USUAL: usize = 8 * 1024;

/// Sends `https` through `secure`, everything else through `plain`.
#[derive(Debug, Clone)]
pub(crate) struct SplitClient {
    plain: SharedHttpClient,
    secure: SharedHttpClient,
}

impl SplitClient {
    /// `HTTPS_PROXY` and `NO_PROXY` of the environment are honoured for `https`.
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

/// Chooses by the request, which the client doesn't know yet when it is asked for a connector.
/// The connectors with their pools live in the two clients.
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

/// The whole of an answer, in memory that is wiped when the last that reads it lets go.
async fn wiped(mut body: ByteStream) -> Result<Bytes, ConnectorError> {
    let mut whole = Zeroizing::new(Vec::with_capacity(USUAL));
    while let Some(part) = body.next().await {
        let part = part.map_err(|error| ConnectorError::io(error.into()))?;
        let length = whole.len() + part.len();
        if length > MOST {
            let error = format!("the answer has more than {MOST} bytes");
            return Err(ConnectorError::other(error.into(), None));
        }
        if length > whole.capacity() {
            // A vector that grows leaves its old memory as it was; this one is wiped.
            let mut larger = Zeroizing::new(Vec::with_capacity(length.next_power_of_two()));
            larger.extend_from_slice(&whole);
            whole = larger;
        }
        whole.extend_from_slice(&part);
        // Only a part that the connection's own buffer doesn't share can be wiped.
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
        for length in [0, 1, USUAL, USUAL + 1, 3 * USUAL, MOST] {
            let sent: Vec<u8> = (0..length).map(|place| place as u8).collect();
            let read = wiped(ByteStream::from(sent.clone())).await.unwrap();
            assert!(read == sent, "{length}");
        }
        let error = wiped(ByteStream::from(vec![0; MOST + 1]))
            .await
            .unwrap_err();
        assert!(format!("{error:?}").contains("more than"), "{error:?}");
    }
}
