//! The checks of `AssumeRoleWithWebIdentity`: the token, the provider's keys, and the claims. The
//! role's trust policy comes after them.

mod claims;
mod discovery;
mod key_set;
mod provider;
mod token;

use std::collections::HashMap;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};

use super::{IdentityToken, Refusal};
pub use provider::{InvalidOidcProvider, OidcProvider};
use token::Token;

/// The clock skew that STS accepts.
const DEFAULT_LEEWAY: SignedDuration = SignedDuration::from_mins(5);

/// The OIDC providers, and the accepted clock skew.
#[derive(Debug)]
pub(super) struct WebIdentities {
    /// By account and URL.
    providers: HashMap<(String, String), Arc<OidcProvider>>,
    pub(super) leeway: SignedDuration,
}

impl Default for WebIdentities {
    fn default() -> Self {
        Self {
            providers: HashMap::new(),
            leeway: DEFAULT_LEEWAY,
        }
    }
}

/// The identity that a valid token proves.
#[derive(Debug)]
pub(super) struct WebIdentity {
    pub(super) provider_arn: String,
    /// The issuer without `https://`, with which condition keys begin.
    pub(super) provider_name: String,
    pub(super) subject: String,
    /// The client ID for which the token was issued.
    pub(super) audience: String,
}

/// A parsed token with its provider, before its signature is verified.
#[derive(Debug)]
pub(super) struct Unverified<'a> {
    token: Token<'a>,
    provider: Arc<OidcProvider>,
    identity: WebIdentity,
}

impl WebIdentities {
    pub(super) fn create_provider(
        &mut self,
        provider: OidcProvider,
    ) -> Result<(), InvalidOidcProvider> {
        provider.validate()?;
        let key = (provider.account_id.clone(), provider.url.clone());
        self.providers.insert(key, Arc::new(provider));
        Ok(())
    }

    /// Checks the claims of a token for a role of this account.
    pub(super) fn examine<'a>(
        &self,
        token: &'a IdentityToken,
        account_id: &str,
        now: Timestamp,
    ) -> Result<Unverified<'a>, Refusal> {
        let token = Token::parse(token.as_str())?;
        let claims = claims::Claims::read(&token.claims)?;
        let key = (account_id.to_owned(), claims.issuer.to_owned());
        let provider = self.providers.get(&key).ok_or_else(|| {
            invalid(format!(
                "No OpenIDConnect provider found in your account for {}",
                claims.issuer
            ))
        })?;
        claims.check_times(now, self.leeway)?;
        let audience = claims.audience(&provider.client_ids)?.to_owned();
        let identity = WebIdentity {
            provider_arn: provider.arn(),
            provider_name: provider.name().to_owned(),
            subject: claims.subject.to_owned(),
            audience,
        };
        Ok(Unverified {
            token,
            provider: provider.clone(),
            identity,
        })
    }
}

impl Unverified<'_> {
    /// Fetches the provider's keys and verifies the signature.
    pub(super) async fn verify(self) -> Result<WebIdentity, Refusal> {
        let keys = discovery::keys(&self.provider).await?;
        key_set::verify(&keys, &self.token)?;
        Ok(self.identity)
    }
}

impl WebIdentity {
    /// Returns the values of the condition keys, by key in lower case.
    pub(super) fn context(&self) -> HashMap<String, String> {
        let key = |claim| format!("{}:{claim}", self.provider_name).to_ascii_lowercase();
        HashMap::from([
            (key("sub"), self.subject.clone()),
            (key("aud"), self.audience.clone()),
        ])
    }
}

fn invalid(message: impl Into<String>) -> Refusal {
    Refusal::new(400, "InvalidIdentityToken", message)
}

/// The error of STS for tokens that are wrong in a way that it does not name.
fn not_validated() -> Refusal {
    invalid(
        "The web identity token that was passed could not be validated by AWS. Get a new identity \
         token from the identity provider and then retry the request.",
    )
}

/// The error of STS if the provider's documents lack the token's key. The text has two spaces.
fn no_key() -> Refusal {
    invalid(
        "Couldn't retrieve verification key from your identity provider,  please reference \
         AssumeRoleWithWebIdentity documentation for requirements",
    )
}
