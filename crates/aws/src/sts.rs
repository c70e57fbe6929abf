//! Calls to AWS STS with the process's own credentials.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use aws_config::identity::IdentityCache;
use aws_config::retry::RetryConfig;
use aws_config::stalled_stream_protection::StalledStreamProtectionConfig;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_credential_types::provider::SharedCredentialsProvider;
use aws_sdk_sts::Client;
use aws_sdk_sts::config::endpoint::{DefaultResolver, EndpointFuture, Params, ResolveEndpoint};
use aws_sdk_sts::operation::assume_role::AssumeRoleOutput;
use aws_sdk_sts::operation::assume_role::builders::AssumeRoleFluentBuilder;
use aws_sdk_sts::types::{PolicyDescriptorType, Tag};
use jiff::Timestamp;
use rolegate_core::session::{
    Credentials, Failure, SessionKey, SessionLimits, Validity, check_credentials,
};
use rolegate_runtime::clock::Clock;
use rolegate_sessions::AssumeRole;
use tokio::sync::OnceCell;
use tokio::time::timeout;
use zeroize::Zeroizing;

use crate::chain::{AssumedRole, IntermediateRole};
use crate::error;
use crate::http_client::SplitClient;

/// Options for calling STS. If an option is `None`, the AWS SDK's defaults apply: the environment,
/// the profile, and the node's metadata.
#[derive(Clone)]
pub struct StsOptions {
    /// The Region of the endpoint and the signature.
    pub region: Option<String>,
    /// `AWS_STS_REGIONAL_ENDPOINTS`: `true` for `regional`. With `false`, `legacy`, the older
    /// Regions of partition `aws` use the global endpoint; all others are always regional.
    pub regional: bool,
    /// Timeout of a call, including the time to find credentials and connect.
    pub timeout: Duration,
    /// Timeout for connecting.
    pub connect_timeout: Duration,
    /// Another endpoint, such as `http://127.0.0.1:5000`.
    pub endpoint_url: Option<String>,
    /// Credentials other than those of the SDK's default chain.
    pub credentials: Option<SharedCredentialsProvider>,
    /// Intermediate roles, each assumed with the credentials of the previous one. All other calls
    /// use those of the last.
    pub chain: Vec<IntermediateRole>,
    /// The clock for the start and expiry of sessions.
    pub clock: Clock,
}

impl Default for StsOptions {
    fn default() -> Self {
        Self {
            region: None,
            regional: true,
            timeout: Duration::from_secs(5),
            connect_timeout: Duration::from_secs(2),
            endpoint_url: None,
            credentials: None,
            chain: Vec::new(),
            clock: Clock::system(),
        }
    }
}

impl fmt::Debug for StsOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StsOptions")
            .field("region", &self.region)
            .field("regional", &self.regional)
            .field("timeout", &self.timeout)
            .field("connect_timeout", &self.connect_timeout)
            .field("endpoint_url", &self.endpoint_url)
            .field("chain", &self.chain)
            .finish_non_exhaustive()
    }
}

/// The identity with which we call STS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CallerIdentity {
    /// `arn:PARTITION:sts::ACCOUNT:assumed-role/NAME/SESSION` for a role.
    pub arn: String,
    /// 12 digits.
    pub account: String,
}

impl CallerIdentity {
    /// Returns the role's name, without the path, which STS does not report. `None` if it is not a
    /// role.
    pub fn role_name(&self) -> Option<&str> {
        let resource = self.arn.split(':').nth(5)?;
        resource
            .strip_prefix("assumed-role/")?
            .split('/')
            .next()
            .filter(|name| !name.is_empty())
    }

    /// Returns the partition, such as `aws` or `aws-cn`.
    pub fn partition(&self) -> Option<&str> {
        self.arn
            .split(':')
            .nth(1)
            .filter(|partition| !partition.is_empty())
    }
}

/// A client of AWS STS. Cloning is cheap; clones share a connection pool.
///
/// Nothing is retried: the session engine decides about retries.
#[derive(Clone)]
pub struct Sts {
    inner: Arc<Inner>,
}

struct Inner {
    options: StsOptions,
    /// The client with the process's own credentials, if there are intermediate roles.
    source: Option<Sts>,
    client: OnceCell<Client>,
}

impl fmt::Debug for Sts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sts")
            .field("options", &self.inner.options)
            .finish_non_exhaustive()
    }
}

impl Sts {
    /// Creates a client without I/O. The first call looks up Region and credentials, and later
    /// calls retry that, since the node's metadata service may start after us.
    pub fn new(options: StsOptions) -> Self {
        let direct = |credentials, source| Self {
            inner: Arc::new(Inner {
                options: StsOptions {
                    credentials,
                    ..options.clone()
                },
                source,
                client: OnceCell::new(),
            }),
        };
        let source = direct(options.credentials.clone(), None);
        options.chain.iter().fold(source.clone(), |before, role| {
            let role = AssumedRole::new(before, role, options.clock.clone());
            let credentials = SharedCredentialsProvider::new(role);
            direct(Some(credentials), Some(source.clone()))
        })
    }

    /// Returns the client with the process's own credentials, if this one uses an intermediate
    /// role's.
    pub fn source(&self) -> Option<&Self> {
        self.inner.source.as_ref()
    }

    /// Returns the intermediate roles.
    pub fn chain(&self) -> &[IntermediateRole] {
        &self.inner.options.chain
    }

    /// Calls `AssumeRole` with the parameters of the key.
    ///
    /// # Errors
    /// Returns a [`Failure`], classified by whether a retry helps.
    pub async fn assume_role(&self, key: &SessionKey) -> Result<Credentials, Failure> {
        let from = self.inner.options.clock.now();
        let output = self.within_limit(self.inner.assume_role(key)).await?;
        let now = self.inner.options.clock.now();
        session(output, from, now)
    }

    /// Calls `GetCallerIdentity`, which no policy can deny.
    ///
    /// # Errors
    /// Returns a [`Failure`], as [`assume_role`](Self::assume_role) does.
    pub async fn caller_identity(&self) -> Result<CallerIdentity, Failure> {
        self.within_limit(self.inner.caller_identity()).await
    }

    async fn within_limit<T>(
        &self,
        call: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        let limit = self.inner.options.timeout;
        timeout(limit, Box::pin(call))
            .await
            .unwrap_or_else(|_| Err(error::timed_out(limit)))
    }
}

fn tags(limits: &SessionLimits) -> Result<Option<Vec<Tag>>, Failure> {
    let tags: Vec<_> = limits
        .tags
        .iter()
        .map(|(key, value)| Tag::builder().key(key).value(value).build())
        .collect::<Result<_, _>>()
        .map_err(|error| error::temporary("BadTag", &error.to_string()))?;
    Ok((!tags.is_empty()).then_some(tags))
}

fn transitive_tag_keys(limits: &SessionLimits) -> Option<Vec<String>> {
    let keys: Vec<_> = limits.tags.iter().map(|(key, _)| key.to_owned()).collect();
    (!keys.is_empty()).then_some(keys)
}

fn policy_arns(limits: &SessionLimits) -> Option<Vec<PolicyDescriptorType>> {
    let arns: Vec<_> = limits
        .policy_arns
        .iter()
        .map(|arn| PolicyDescriptorType::builder().arn(&**arn).build())
        .collect();
    (!arns.is_empty()).then_some(arns)
}

const NO_CREDENTIALS: &str = "the response from STS has no credentials: check which server is \
                              listening at its endpoint";

/// The place of a call in the chain of a session's roles.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hop {
    /// The session has one role.
    Only,
    /// The call for the role whose credentials assume the target role.
    First,
    /// The call for the target role.
    Last,
}

impl AssumeRole for Sts {
    async fn assume_role(&self, key: &SessionKey) -> Result<Credentials, Failure> {
        Self::assume_role(self, key).await
    }
}

impl Inner {
    async fn assume_role(&self, key: &SessionKey) -> Result<AssumeRoleOutput, Failure> {
        let client = self.client().await?;
        let Some(target) = &key.target else {
            let call = self.call(client, key, Hop::Only);
            return self.send(call?, key).await;
        };
        let first = self.send(self.call(client, key, Hop::First)?, key).await?;
        let credentials = first
            .credentials
            .ok_or_else(|| error::temporary("BadAnswer", NO_CREDENTIALS))?;
        let credentials = aws_credential_types::Credentials::new(
            credentials.access_key_id,
            credentials.secret_access_key,
            Some(credentials.session_token),
            None,
            "role of a chain",
        );
        // The shared client's configuration, and thus its connections, with other credentials.
        let config = client.config().to_builder();
        let config = config
            .credentials_provider(credentials)
            .identity_cache(IdentityCache::no_cache());
        let client = Client::from_conf(config.build());
        let key = SessionKey {
            role: target.role.clone(),
            external_id: target.external_id.clone(),
            ..key.clone()
        };
        self.send(self.call(&client, &key, Hop::Last)?, &key).await
    }

    async fn send(
        &self,
        call: AssumeRoleFluentBuilder,
        key: &SessionKey,
    ) -> Result<AssumeRoleOutput, Failure> {
        let answer = call.send().await;
        answer.map_err(|error| error::from_sdk(&error, Some(key), self.options.timeout))
    }

    /// Returns the call for a key, or for one of the roles of its chain.
    fn call(
        &self,
        client: &Client,
        key: &SessionKey,
        hop: Hop,
    ) -> Result<AssumeRoleFluentBuilder, Failure> {
        // Values above STS's maximum of 43,200 are rejected by STS with a good message.
        let seconds = i32::try_from(key.duration_seconds).unwrap_or(i32::MAX);
        let limits = key.limits.as_deref();
        // STS adds the transitive tags and the source identity of the first call to the second one,
        // and refuses to set them again.
        let attribution = limits.filter(|_| hop != Hop::Last);
        let policies = limits.filter(|_| hop != Hop::First);
        let is_transitive = |limits: &&SessionLimits| limits.transitive || hop == Hop::First;
        Ok(client
            .assume_role()
            .role_arn(key.role.as_str())
            .role_session_name(key.name.as_ref())
            .set_external_id(key.external_id.as_deref().map(str::to_owned))
            .duration_seconds(seconds)
            .set_tags(attribution.map(tags).transpose()?.flatten())
            .set_transitive_tag_keys(
                attribution
                    .filter(is_transitive)
                    .and_then(transitive_tag_keys),
            )
            .set_source_identity(
                attribution.and_then(|limits| limits.source_identity.as_deref().map(str::to_owned)),
            )
            .set_policy_arns(policies.and_then(policy_arns))
            .set_policy(policies.and_then(|limits| limits.policy.as_deref().map(str::to_owned))))
    }

    async fn caller_identity(&self) -> Result<CallerIdentity, Failure> {
        let output = self
            .client()
            .await?
            .get_caller_identity()
            .send()
            .await
            .map_err(|error| error::from_sdk(&error, None, self.options.timeout))?;
        match (output.arn, output.account) {
            (Some(arn), Some(account)) => Ok(CallerIdentity { arn, account }),
            _ => Err(error::temporary(
                "BadAnswer",
                "the response from STS to GetCallerIdentity has no identity: check which server \
                 is listening at its endpoint",
            )),
        }
    }

    async fn client(&self) -> Result<&Client, Failure> {
        self.client
            .get_or_try_init(|| async {
                let config = self.load().await;
                if config.region().is_none() {
                    return Err(error::temporary(
                        "NoRegion",
                        "no AWS Region is known: set AWS_REGION, or make the node's metadata \
                     service reachable",
                    ));
                }
                let mut builder = aws_sdk_sts::config::Builder::from(&config);
                if !self.options.regional {
                    builder = builder.endpoint_resolver(LegacyEndpoints::default());
                }
                Ok(Client::from_conf(builder.build()))
            })
            .await
    }

    async fn load(&self) -> SdkConfig {
        let options = &self.options;
        let mut loader = aws_config::defaults(BehaviorVersion::latest())
            .http_client(SplitClient::new())
            .retry_config(RetryConfig::disabled())
            .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
            .timeout_config(
                TimeoutConfig::builder()
                    .connect_timeout(options.connect_timeout)
                    .operation_timeout(options.timeout)
                    .build(),
            );
        if let Some(region) = &options.region {
            loader = loader.region(Region::new(region.clone()));
        }
        if let Some(url) = &options.endpoint_url {
            loader = loader.endpoint_url(url);
        }
        if let Some(credentials) = &options.credentials {
            loader = loader.credentials_provider(credentials.clone());
        }
        if self.source.is_some() {
            // The chain caches its sessions, and knows better when to refresh them.
            loader = loader.identity_cache(IdentityCache::no_cache());
        }
        loader.load().await
    }
}

/// Reads the session from a response that arrived at `now` to a call made at `from`.
fn session(
    output: AssumeRoleOutput,
    from: Timestamp,
    now: Timestamp,
) -> Result<Credentials, Failure> {
    let nothing = || error::temporary("BadAnswer", NO_CREDENTIALS);
    let credentials = output.credentials.ok_or_else(nothing)?;
    let secret_access_key = Zeroizing::new(credentials.secret_access_key);
    let session_token = Zeroizing::new(credentials.session_token);
    let until = credentials.expiration;
    let until = Timestamp::from_second(until.secs()).map_err(|_| nothing())?;
    // Checked here and not only by agents, which would reject a broker's whole stream.
    check_credentials(
        &credentials.access_key_id,
        &secret_access_key,
        &session_token,
    )
    .map_err(|_| nothing())?;
    let validity = Validity {
        not_before: from,
        not_after: until,
    };
    if !validity.is_valid(now) {
        return Err(error::temporary(
            "ClockSkew",
            &format!(
                "the session from STS expired at {until} and the node's clock shows {now}: \
             check the clock"
            ),
        ));
    }
    Ok(Credentials::new(
        credentials.access_key_id,
        &secret_access_key,
        &session_token,
        validity,
    ))
}

/// The endpoint rules with `UseGlobalEndpoint`, which know the Regions that it applies to.
#[derive(Debug, Default)]
struct LegacyEndpoints(DefaultResolver);

impl ResolveEndpoint for LegacyEndpoints {
    fn resolve_endpoint<'a>(&'a self, params: &'a Params) -> EndpointFuture<'a> {
        let legacy = Params::builder()
            .set_region(params.region().map(str::to_owned))
            .set_use_dual_stack(params.use_dual_stack())
            .set_use_fips(params.use_fips())
            .set_endpoint(params.endpoint().map(str::to_owned))
            .use_global_endpoint(true)
            .build();
        EndpointFuture::new(async move {
            let legacy = legacy?;
            ResolveEndpoint::resolve_endpoint(&self.0, &legacy).await
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn legacy_is_global_for_the_older_regions_of_one_partition() {
        for (region, endpoint, url) in [
            ("eu-west-1", None, "https://sts.amazonaws.com"),
            ("us-east-1", None, "https://sts.amazonaws.com"),
            ("eu-south-2", None, "https://sts.eu-south-2.amazonaws.com"),
            (
                "cn-north-1",
                None,
                "https://sts.cn-north-1.amazonaws.com.cn",
            ),
            (
                "us-gov-west-1",
                None,
                "https://sts.us-gov-west-1.amazonaws.com",
            ),
            (
                "us-iso-east-1",
                None,
                "https://sts.us-iso-east-1.c2s.ic.gov",
            ),
            (
                "eusc-de-east-1",
                None,
                "https://sts.eusc-de-east-1.amazonaws.eu",
            ),
            (
                "eu-west-1",
                Some("http://127.0.0.1:1"),
                "http://127.0.0.1:1",
            ),
        ] {
            let params = Params::builder()
                .region(region)
                .set_endpoint(endpoint.map(str::to_owned))
                .build()
                .unwrap();
            let found = LegacyEndpoints::default()
                .resolve_endpoint(&params)
                .await
                .unwrap();
            assert_eq!(found.url(), url, "{region}");
        }
    }
}
