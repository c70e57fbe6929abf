//! An OIDC provider of IAM.

use std::net::SocketAddr;

use http::Uri;

use crate::https::trusting;

const MAX_URL_CHARS: usize = 255;
const MAX_CLIENT_IDS: usize = 100;
const SCHEME: &str = "https://";

/// An OIDC provider of an account, as `CreateOpenIDConnectProvider` creates it.
#[derive(Clone, Debug)]
pub struct OidcProvider {
    /// The account, 12 digits.
    pub account_id: String,
    /// The issuer: `https://`, a host without a port, and optionally a path. Tokens must have
    /// exactly this `iss`.
    pub url: String,
    /// Accepted audiences.
    pub client_ids: Vec<String>,
    /// Certificates of the authorities of the provider's servers, in PEM. In AWS these are public
    /// authorities, or thumbprints.
    pub authorities: String,
    /// The address at which the hosts of the issuer and its keys are reached, whatever their names
    /// and ports are. `None`: by DNS.
    pub address: Option<SocketAddr>,
}

/// The reason why a provider cannot be created.
#[derive(Debug, thiserror::Error)]
pub enum InvalidOidcProvider {
    /// The URL is not one that IAM accepts.
    #[error("the URL {0} must begin with https://, without port, query and fragment")]
    Url(String),
    /// There are more client IDs than IAM accepts.
    #[error("a provider can have at most 100 client IDs")]
    ClientIds,
    /// The authorities are not PEM certificates.
    #[error("the authorities are not certificates: {0}")]
    Authorities(String),
}

impl OidcProvider {
    /// Returns its ARN, the principal of trust policies.
    pub fn arn(&self) -> String {
        format!(
            "arn:aws:iam::{}:oidc-provider/{}",
            self.account_id,
            self.name()
        )
    }

    /// Returns the URL without its scheme.
    pub(super) fn name(&self) -> &str {
        self.url.strip_prefix(SCHEME).unwrap_or(&self.url)
    }

    pub(super) fn validate(&self) -> Result<(), InvalidOidcProvider> {
        let url: Option<Uri> = self.url.parse().ok();
        let accepted = url.is_some_and(|url| {
            self.url.starts_with(SCHEME)
                && self.url.len() <= MAX_URL_CHARS
                && !self.url.contains(['?', '#', '@'])
                && url.port().is_none()
        });
        if !accepted {
            return Err(InvalidOidcProvider::Url(self.url.clone()));
        }
        if self.client_ids.len() > MAX_CLIENT_IDS {
            return Err(InvalidOidcProvider::ClientIds);
        }
        trusting(self.authorities.as_bytes())
            .map(drop)
            .map_err(InvalidOidcProvider::Authorities)
    }
}
