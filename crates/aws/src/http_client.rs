//! The HTTP client that all SDK clients of the process share.
//!
//! It differs from the SDK's own in two ways. TLS and the system's root certificates are loaded
//! with the first `https` request and not before, so where every endpoint is plain they cost
//! nothing. And plain requests never go through a proxy: they are for metadata and container
//! credentials on link-local addresses, which a proxy can't reach and must not see.

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
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;

/// Calls come in bursts, and a connection that waits for the next one costs memory.
const IDLE_TIMEOUT: Duration = Duration::from_secs(20);

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
        client
            .http_connector(&self.settings, &self.components)
            .call(request)
    }
}
